//! `sigil ls`.

use jiff::Timestamp;

use super::fail::{DONE, Failure, Outcome};
use super::output::{self, Table, cell, state};
use super::{Ctx, Format, time, wait};
use crate::link::{Deployment, Fleet, Progress};

/// List deployments and how they are
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil ls\n  sigil ls -o json | jq '.[] | select(.state != \"ready\")'\n  sigil ls -w"
)]
pub struct Args {
    /// Go on, showing every change
    #[arg(short, long)]
    watch: bool,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    if !args.watch {
        let all = link.deployments().await?;
        show(ctx, &all.iter().collect::<Vec<_>>())?;
        return Ok(DONE);
    }
    ctx.quiet_interrupt();
    let mut fleet = Fleet::default();
    let mut complete = false;
    let mut watch = link.watch();
    while let Some(step) = watch.next().await? {
        match step {
            Progress::Item(update) => {
                complete = update.complete || (complete && !update.resync);
                fleet.apply(update);
                if complete {
                    if ctx.term.stdout && !ctx.format.is_data() {
                        output::write(b"\x1b[H\x1b[2J")?;
                    }
                    redraw(ctx, &fleet.by_name())?;
                }
            }
            Progress::Lost { why, wait } => wait::lost(ctx, &why, wait),
            Progress::Back => wait::back(ctx),
        }
    }
    Ok(DONE)
}

/// One list a line for a script, the table for a person.
fn redraw(ctx: &Ctx, all: &[&Deployment]) -> Result<(), Failure> {
    match ctx.format {
        Format::Json => output::line(&serde_json::to_string(all).unwrap_or_default()),
        _ => show(ctx, all),
    }
}

fn show(ctx: &Ctx, all: &[&Deployment]) -> Result<(), Failure> {
    if all.is_empty() && !ctx.format.is_data() {
        output::note("no deployments yet. try: sigil deploy pypi:mcp-server-time");
        return Ok(());
    }
    ctx.emit(&all, || table(ctx, all, Timestamp::now()))
}

fn table(ctx: &Ctx, all: &[&Deployment], now: Timestamp) -> String {
    let wide = ctx.format == Format::Wide;
    let mut headings = vec!["NAME", "STATE", "READY", "REL", "RPM", "P99", "CPU", "MEMORY", "AGE", "MESSAGE"];
    if wide {
        headings.extend(["RESTARTS", "SESSIONS", "HEALTH", "TIER", "TRANSPORT", "ENDPOINT", "SOURCE"]);
    }
    let mut table = Table::new(&headings, "MESSAGE");
    for d in all {
        let release = match d.desired_release {
            0 => d.release.to_string(),
            desired if desired == d.release => d.release.to_string(),
            desired => format!("{}>{desired}", d.release),
        };
        let age = d.created_at.map_or_else(|| "-".to_owned(), |t| time::span(now.duration_since(t).unsigned_abs()));
        let mut row = vec![
            cell(&d.name),
            state(&d.state),
            cell(format!("{}/{}", d.ready, d.desired)),
            cell(release),
            cell(format!("{:.0}", d.rpm)),
            cell(format!("{:.0} ms", d.p99_ms)),
            cell(format!("{:.0}%", d.cpu_percent)),
            cell(time::size(d.memory_bytes)),
            cell(age),
            cell(&d.message),
        ];
        if wide {
            row.extend([
                cell(d.restarts.to_string()),
                cell(d.sessions.to_string()),
                state(&d.health),
                cell(&d.tier),
                cell(&d.transport),
                cell(&d.endpoint),
                cell(&d.source),
            ]);
        }
        table.row(row);
    }
    table.text(ctx.width(), ctx.term.colour)
}
