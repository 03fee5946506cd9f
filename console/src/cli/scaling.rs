//! `sigil scaling`.

mod fields;
pub(crate) mod simulate;

use std::path::PathBuf;

use jiff::Timestamp;
use sigil_core::scale::{Decision, Verdict};

use super::fail::{DONE, Failure, Outcome};
use super::output::{self, Table, cell};
use super::{Ctx, text, time};
use crate::link::scaling::{Decided, Explained, Scaling};
use fields::Fields;

/// Show and set how a server is scaled, what was decided and why, and try a policy out
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil scaling get time\n  sigil scaling set time --preset standard --max 8\n  sigil scaling explain time\n  sigil scaling history time --changes\n  sigil scaling simulate time --requests-up 100\n  sigil guide scaling    # what the fields mean"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show the policy, as the YAML that set --file takes
    #[command(after_help = "Example:\n  sigil scaling get time > scaling.yaml")]
    Get {
        /// The deployment
        name: String,
    },
    /// Change what is given, leave the rest; --file replaces all of it, --off ends it
    #[command(
        after_help = "Example:\n  sigil scaling set time --min 0 --idle-timeout 10m\n  sigil scaling set time --file scaling.yaml\n  sigil scaling set time --off"
    )]
    Set(Box<Set>),
    /// Past decisions and refusals with their reasons, newest first
    #[command(after_help = "Example:\n  sigil scaling history time --changes -n 20")]
    History {
        /// The deployment
        name: String,
        /// So many
        #[arg(short = 'n', long, value_name = "N", default_value_t = 30)]
        limit: u32,
        /// Only those that did or refused something
        #[arg(long)]
        changes: bool,
    },
    /// What it would do now, and why; nothing is done
    #[command(after_help = "Example:\n  sigil scaling explain time")]
    Explain {
        /// The deployment
        name: String,
    },
    /// Replay a deployment's last days, or a trace, against a policy: replicas, cost, queueing
    #[command(
        after_help = "A trace is a CSV file: time (seconds or RFC 3339), requests a minute from then on.\n\nExample:\n  sigil scaling simulate time\n  sigil scaling simulate time --max 2\n  sigil scaling simulate --trace day.csv --policy scaling.yaml --capacity 120"
    )]
    Simulate(Box<simulate::Args>),
}

#[derive(Debug, clap::Args)]
struct Set {
    /// The deployment
    name: String,
    /// A whole policy; '-' reads stdin
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// No policy any more: it keeps the replicas that it has
    #[arg(long, conflicts_with = "file")]
    off: bool,
    #[command(flatten)]
    fields: Fields,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    match args.verb {
        Verb::Get { name } => {
            let link = ctx.link().await?;
            match link.scaling(&name).await {
                Ok(scaling) => show(ctx, &scaling),
                Err(error) => Err(ctx.named(&link, &name, error).await),
            }
        }
        Verb::Set(set) => {
            let fields = set.fields.yaml();
            let (policy, merge) = match (&set.file, fields.is_empty(), set.off) {
                (Some(file), true, false) => (Some(super::policy::read(file)?), false),
                (None, false, false) => (Some(fields), true),
                (None, true, true) => (None, false),
                (None, true, false) => {
                    return Err(Failure::usage("nothing is to be changed", "see 'sigil scaling set --help'"));
                }
                (Some(_), ..) => {
                    return Err(Failure::usage("--file is a whole policy", "put the other flags into the file"));
                }
                (None, false, true) => {
                    return Err(Failure::usage("--off ends the policy", "leave the other flags out"));
                }
            };
            let link = ctx.link().await?;
            match link.set_scaling(&set.name, policy, merge).await {
                Ok(scaling) => show(ctx, &scaling),
                Err(error) => Err(ctx.named(&link, &set.name, error).await),
            }
        }
        Verb::History { name, limit, changes } => {
            let link = ctx.link().await?;
            let decisions = match link.scaling_history(&name, limit, changes).await {
                Ok(decisions) => decisions,
                Err(error) => return Err(ctx.named(&link, &name, error).await),
            };
            ctx.emit(&decisions, || history(ctx, &decisions))?;
            if !ctx.format.is_data() && decisions.is_empty() {
                output::note("nothing was decided yet");
            }
            Ok(DONE)
        }
        Verb::Explain { name } => {
            let link = ctx.link().await?;
            match link.explain_scaling(&name).await {
                Ok(explained) => {
                    ctx.emit(&explained, || explain(ctx, &explained))?;
                    Ok(DONE)
                }
                Err(error) => Err(ctx.named(&link, &name, error).await),
            }
        }
        Verb::Simulate(args) => simulate::run(ctx, *args).await,
    }
}

fn show(ctx: &Ctx, scaling: &Scaling) -> Outcome {
    let policy = sigil_core::scale::Policy::read("policy", &scaling.policy, None).ok();
    let policy = policy.filter(|_| !scaling.policy.is_empty());
    let data = serde_json::json!({ "name": scaling.name, "replicas": scaling.replicas, "policy": policy });
    ctx.emit(&data, || scaling.policy.clone())?;
    if !ctx.format.is_data() {
        let none = if scaling.policy.is_empty() { ", no scaling policy" } else { "" };
        output::note(&format!("{}: {} replicas desired{none}", scaling.name, scaling.replicas));
    }
    Ok(DONE)
}

/// What was done, in a word or two.
fn step(d: &Decision) -> String {
    match d.from == d.to {
        true if d.held.is_empty() => format!("{}", d.from),
        true => format!("{} (wanted {})", d.from, d.wanted),
        false => format!("{} -> {}", d.from, d.to),
    }
}

fn why(d: &Decision) -> String {
    let held: Vec<&str> = d.held.iter().map(|held| held.why.as_str()).collect();
    std::iter::once(d.reason.as_str()).chain(held).collect::<Vec<_>>().join("; ")
}

fn history(ctx: &Ctx, decisions: &[Decided]) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(&["WHEN", "REPLICAS", "REQ/MIN", "CPU %", "P95 MS", "WHY"], "WHY");
    let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.0}"));
    for Decided { at, decision } in decisions {
        let signals = decision.signals.unwrap_or_default();
        table.row(vec![
            cell(time::ago(Some(*at), now)),
            cell(step(decision)),
            cell(format!("{:.0}", signals.requests)),
            cell(figure(signals.cpu)),
            cell(figure(signals.p95)),
            cell(why(decision)),
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}

fn explain(ctx: &Ctx, explained: &Explained) -> String {
    let mut out = String::new();
    if let Some(d) = &explained.decision {
        let what = if d.from == d.to { format!("stays at {}", d.from) } else { format!("{} -> {}", d.from, d.to) };
        out.push_str(&format!("{}: {what} replicas: {}\n", explained.name, text::one_line(&d.reason)));
        for held in &d.held {
            out.push_str(&format!("  refused: {}\n", text::one_line(&held.why)));
        }
        if !d.measures.is_empty() {
            let mut table = Table::new(&["MEASURE", "NOW", "UP ABOVE", "DOWN BELOW", "SAYS", "NEEDS"], "MEASURE");
            let number = |value: f64| format!("{}", (value * 100.0).round() / 100.0);
            for m in &d.measures {
                let says = match m.verdict {
                    Verdict::Up => "up",
                    Verdict::Hold => "hold",
                    Verdict::Down => "down",
                    Verdict::Unknown => "unknown",
                };
                table.row(vec![
                    cell(&m.name),
                    cell(m.value.map_or_else(|| "-".to_owned(), number)),
                    cell(number(m.up)),
                    cell(number(m.down)),
                    cell(says),
                    cell(m.need.to_string()),
                ]);
            }
            out.push_str(&table.text(ctx.width(), ctx.term.colour));
        }
        out.push_str(&format!("next evaluation in {} s\n", explained.next_seconds));
    }
    for note in &explained.notes {
        out.push_str(&format!("{}\n", text::one_line(note)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigil_core::scale::{Held, HeldBy};

    #[test]
    fn a_decision_is_told_in_one_line() {
        let decision = |from, to, wanted, held: &[&str]| Decision {
            from,
            to,
            wanted,
            reason: "CPU, 95.0 %, is above 70.0 %".into(),
            held: held.iter().map(|why| Held { by: HeldBy::Cooldown, why: (*why).to_owned() }).collect(),
            measures: Vec::new(),
            signals: None,
            forecast: None,
        };
        assert_eq!(step(&decision(1, 2, 2, &[])), "1 -> 2");
        assert_eq!(step(&decision(1, 1, 1, &[])), "1");
        let held = decision(1, 1, 3, &["3 wanted; the cool-down for steps up ends in 4 s"]);
        assert_eq!(step(&held), "1 (wanted 3)");
        assert_eq!(why(&held), "CPU, 95.0 %, is above 70.0 %; 3 wanted; the cool-down for steps up ends in 4 s");
    }
}
