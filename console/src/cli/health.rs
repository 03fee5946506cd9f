//! `sigil health`.

use jiff::Timestamp;

use super::fail::{DONE, Outcome};
use super::output::{self, Table, cell, state};
use super::{Ctx, time};
use crate::link::health::Health;

/// Show whether a server's replicas answer, and how available it was to its callers
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Replicas are asked every 30 s as MCP servers, not only whether they run; a sleeping deployment is not woken. `sigil guide health` says what is asked.\n\nExample:\n  sigil health time\n  sigil health time --probes 20"
)]
pub struct Args {
    /// The deployment
    name: String,
    /// The newest probes, too
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    probes: u32,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let health = match link.health(&args.name, args.probes).await {
        Ok(health) => health,
        Err(error) => return Err(ctx.named(&link, &args.name, error).await),
    };
    ctx.emit(&health, || show(ctx, &health))?;
    if !ctx.format.is_data() {
        output::note(&format!("{}: {}", health.name, health.state));
    }
    Ok(DONE)
}

fn show(ctx: &Ctx, health: &Health) -> String {
    let now = Timestamp::now();
    let ms = |ms: f64| format!("{ms:.0} ms");
    let mut replicas = Table::new(&["REPLICA", "STATE", "ASKED", "ANSWERED IN", "RESTARTS", "WHY"], "WHY");
    for r in &health.replicas {
        replicas.row(vec![
            cell(&r.instance),
            state(&r.state),
            cell(time::ago(r.at, now)),
            cell(ms(r.ms)),
            cell(r.remedies.to_string()),
            cell(&r.why),
        ]);
    }
    let target = format!("TARGET {} %", health.target);
    let mut windows = Table::new(&["CALLERS SAW", "AVAILABLE", "CALLS", "FAILED", "BUDGET LEFT"], "CALLERS SAW");
    for w in &health.availability {
        let days = w.hours / 24;
        let percent = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$} %"))
        };
        windows.row(vec![
            cell(if days <= 1 { format!("last {} h", w.hours) } else { format!("last {days} days") }),
            cell(percent(w.available, 3)),
            cell(w.calls.all.to_string()),
            cell(w.calls.failed.to_string()),
            cell(percent(w.budget_left, 0)),
        ]);
    }
    let mut out = replicas.text(ctx.width(), ctx.term.colour);
    out.push_str(&format!("\n{}{target}\n", windows.text(ctx.width(), ctx.term.colour)));
    if !health.probes.is_empty() {
        let mut probes = Table::new(&["WHEN", "REPLICA", "FOUND", "TOOK", "WHY"], "WHY");
        for p in &health.probes {
            probes.row(vec![
                cell(time::ago(p.at, now)),
                cell(&p.instance),
                cell(&p.outcome),
                cell(ms(p.ms)),
                cell(&p.why),
            ]);
        }
        out.push_str(&format!("\n{}", probes.text(ctx.width(), ctx.term.colour)));
    }
    out
}
