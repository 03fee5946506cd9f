//! `sigil alert`.

mod watch;

use jiff::Timestamp;

use super::fail::{DONE, FAILED, Outcome};
use super::output::{self, Table, cell};
use super::{Ctx, text, time};
use crate::link::alerts::{Alerts, Delivery};

/// See what is wrong and what was, try whether alerts arrive, and watch agents from elsewhere
#[derive(Debug, clap::Args)]
#[command(
    after_help = "What lasts longer than [alerts] after_seconds is told once, with its all-clear. `sigil guide alerts` says what is told and how.\n\nExample:\n  sigil alert list\n  sigil alert test\n  sigil alert watch --all --webhook file:/etc/sigil/hook"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List what fires now, and what did lately
    #[command(after_help = "Example:\n  sigil alert list\n  sigil alert list -o json | jq '.firing[].text'")]
    List {
        /// So many of those that are over
        #[arg(long, value_name = "N", default_value_t = 20)]
        ended: usize,
    },
    /// Send a test message to everybody who would be told. Exit code 1 when it does not reach one of them
    #[command(after_help = "Example:\n  sigil alert test")]
    Test,
    /// Watch agents from this machine, and tell when one of them is lost and when it is back
    #[command(
        after_help = "It runs until Ctrl-C. What it tells is a line on stdout (-o json: the object that webhooks get), and goes to the webhooks and the command. No agent is needed where it runs: run it somewhere else than the agents.\n\nExample:\n  sigil alert watch\n  sigil alert watch --context cellar --context attic --webhook https://chat.example/hooks/1\n  sigil alert watch --all --after 120 --command 'mail -s \"$SIGIL_ALERT_TEXT\" ops'"
    )]
    Watch(watch::Args),
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    match args.verb {
        Verb::List { ended } => {
            let mut alerts = ctx.link().await?.alerts().await?;
            alerts.ended.truncate(ended);
            if alerts.firing.is_empty() && !ctx.format.is_data() {
                output::note("nothing fires");
            }
            ctx.emit(&alerts, || table(ctx, &alerts))?;
            Ok(DONE)
        }
        Verb::Test => {
            let deliveries = ctx.link().await?.test_alerts().await?;
            if deliveries.is_empty() && !ctx.format.is_data() {
                output::note(
                    "nobody is told: [alerts] of the agent's configuration has no webhook, command or heartbeat",
                );
            }
            ctx.emit(&deliveries, || tried(ctx, &deliveries))?;
            Ok(if deliveries.iter().all(|d| d.trouble.is_empty()) { DONE } else { FAILED })
        }
        Verb::Watch(args) => watch::run(ctx, args).await,
    }
}

fn table(ctx: &Ctx, alerts: &Alerts) -> String {
    if alerts.firing.is_empty() && alerts.ended.is_empty() {
        return String::new();
    }
    let now = Timestamp::now();
    let mut table = Table::new(&["ALERT", "ABOUT", "SINCE", "ENDED", "WHY"], "WHY");
    for alert in alerts.firing.iter().chain(&alerts.ended) {
        table.row(vec![
            cell(&alert.kind),
            cell(text::one_line(&alert.about)),
            cell(time::ago(alert.since, now)),
            cell(alert.ended.map_or_else(|| "fires".to_owned(), |at| time::ago(Some(at), now))),
            cell(text::one_line(&alert.text)),
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}

fn tried(ctx: &Ctx, deliveries: &[Delivery]) -> String {
    if deliveries.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["TO", "ARRIVED", "AFTER", "WHY NOT"], "WHY NOT");
    for d in deliveries {
        let arrived = if d.trouble.is_empty() { "yes" } else { "no" };
        table.row(vec![
            cell(text::one_line(&d.to)),
            cell(arrived),
            cell(format!("{:.0} ms", d.ms)),
            cell(text::one_line(&d.trouble)),
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}
