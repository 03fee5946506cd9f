//! `sigil health`.

use jiff::Timestamp;

use super::fail::{DONE, Outcome};
use super::output::{self, Table, cell, state};
use super::{Ctx, text, time};
use crate::link::health::{Health, Life, Turn, Wanted};

/// Turns and ended lives that are shown.
const SHOWN: u32 = 10;

/// Show whether replicas answer, how they ended, and how available they were to callers
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Replicas are asked every 30 s as MCP servers, not only whether they run; a sleeping deployment is not woken. `sigil guide health` says what is asked.\n\nExample:\n  sigil health time\n  sigil health time --last-output  # the last words of each life\n  sigil health time --probes 20"
)]
pub struct Args {
    /// The deployment
    name: String,
    /// The newest probes, too
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    probes: u32,
    /// What containers printed last before they ended, too
    #[arg(long)]
    last_output: bool,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let wanted = Wanted { probes: args.probes, turns: SHOWN, lives: SHOWN };
    let health = match link.health(&args.name, wanted).await {
        Ok(health) => health,
        Err(error) => return Err(ctx.named(&link, &args.name, error).await),
    };
    ctx.emit(&health, || show(ctx, &health, args.last_output))?;
    if !ctx.format.is_data() {
        output::note(&format!("{}: {}", health.name, health.state));
    }
    Ok(DONE)
}

fn show(ctx: &Ctx, health: &Health, with_output: bool) -> String {
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
    if !health.turns.is_empty() {
        out.push_str(&format!("\n{}", turns(&health.turns, now).text(ctx.width(), ctx.term.colour)));
    }
    if !health.lives.is_empty() {
        out.push_str(&format!("\n{}", lives(&health.lives, now).text(ctx.width(), ctx.term.colour)));
        if with_output {
            health.lives.iter().for_each(|life| last_words(life, now, ctx.term.colour, &mut out));
        }
    }
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

fn turns(turns: &[Turn], now: Timestamp) -> Table {
    let mut table = Table::new(&["TURNED", "REPLICA", "FROM", "TO", "WHY"], "WHY");
    for t in turns {
        let to = if t.done.is_empty() { state(&t.to) } else { cell(&t.done) };
        table.row(vec![cell(time::ago(t.at, now)), cell(&t.instance), state(&t.from), to, cell(&t.why)]);
    }
    table
}

/// `137 (memory)`, or what is known.
fn exit(life: &Life) -> String {
    match (life.code, life.oom) {
        (Some(code), true) => format!("{code} (memory)"),
        (Some(code), false) => code.to_string(),
        (None, true) => "memory".to_owned(),
        (None, false) => "-".to_owned(),
    }
}

fn lives(lives: &[Life], now: Timestamp) -> Table {
    let mut table = Table::new(&["ENDED", "LASTED", "RELEASE", "REPLICA", "EXIT", "WHY"], "WHY");
    for life in lives {
        let lasted = life.lasted_ms.and_then(|ms| u64::try_from(ms).ok()).map_or_else(|| "-".to_owned(), time::took);
        table.row(vec![
            cell(time::ago(life.at, now)),
            cell(lasted),
            cell(life.release.to_string()),
            cell(&life.instance),
            cell(exit(life)),
            cell(&life.why),
        ]);
    }
    table
}

/// What it printed last.
fn last_words(life: &Life, now: Timestamp, colour: bool, out: &mut String) {
    out.push_str(&format!("\n{}, ended {}:\n", life.instance, time::ago(life.at, now)));
    if life.cut {
        out.push_str("  …\n");
    }
    if life.output.is_empty() {
        out.push_str("  nothing was printed\n");
    }
    for line in &life.output {
        out.push_str(&format!("  {}\n", text::for_terminal(line.line.as_bytes(), colour)));
    }
}
