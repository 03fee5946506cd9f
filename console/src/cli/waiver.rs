//! `sigil waiver`.

use super::fail::{DONE, Outcome};
use super::output::{self, Table, cell};
use super::{Ctx, text};
use crate::link::Waiver;

/// List, add and take back findings that somebody answers for
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A finding that stops a build does not stop it while somebody answers for it, with a reason and a last day. `sigil deploy --waive` does the same on the way.\n\nExample:\n  sigil waiver ls time\n  sigil waiver add time command-injection:server.py --reason 'only admins reach it' --until 2027-01-31\n  sigil waiver rm time command-injection:server.py"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List them
    #[command(after_help = "Example:\n  sigil waiver ls time")]
    Ls {
        /// The deployment
        name: String,
    },
    /// Answer for a finding of a deployment's source, for its next deploys
    #[command(
        after_help = "Example:\n  sigil waiver add time ssrf --reason 'the host is checked by the proxy' --until 2027-01-31"
    )]
    Add {
        /// The deployment
        name: String,
        /// The rule, or RULE:PATH for one file
        finding: String,
        /// Why it may stay
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// The last day on which it counts (2027-01-31)
        #[arg(long, value_name = "DATE")]
        until: String,
    },
    /// Take one back; what runs goes on
    #[command(after_help = "Example:\n  sigil waiver rm time ssrf")]
    Rm {
        /// The deployment
        name: String,
        /// As it was waived
        finding: String,
    },
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let (name, all) = match args.verb {
        Verb::Ls { name } => (name.clone(), link.waivers(&name).await),
        Verb::Add { name, finding, reason, until } => {
            (name.clone(), link.add_waiver(&name, &finding, &reason, &until).await)
        }
        Verb::Rm { name, finding } => (name.clone(), link.remove_waiver(&name, &finding).await),
    };
    let all = match all {
        Ok(all) => all,
        Err(error) => return Err(ctx.named(&link, &name, error).await),
    };
    if all.is_empty() && !ctx.format.is_data() {
        output::note(&format!("no finding of {name} is waived"));
        return Ok(DONE);
    }
    ctx.emit(&all, || table(ctx, &all))?;
    Ok(DONE)
}

fn table(ctx: &Ctx, all: &[Waiver]) -> String {
    let mut table = Table::new(&["FINDING", "UNTIL", "BY", "REASON"], "REASON");
    for waiver in all {
        let until = if waiver.over { format!("{} (over)", waiver.until) } else { waiver.until.clone() };
        table.row(vec![
            cell(text::one_line(&waiver.finding)),
            cell(until),
            cell(text::one_line(&waiver.by)),
            cell(text::one_line(&waiver.reason)),
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}
