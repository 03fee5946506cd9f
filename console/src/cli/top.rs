//! `sigil top`.

use std::time::Duration;

use super::fail::{DONE, Failure, Outcome};
use super::output::{self, Table, cell, state};
use super::{Ctx, Format, time};
use crate::link::{HostUse, Top};

/// Show what deployments and the host use
#[derive(Debug, clap::Args)]
#[command(
    after_help = "On a terminal it goes on until Ctrl-C; into a pipe, or with -o json, it is shown once. CPU is of one core, %CPU of what a replica may have. LOAD is memory above what a replica needs without load, of its limit. -w shows each replica.\n\nExample:\n  sigil top\n  sigil top --once\n  sigil top -o json | jq '.deployments[] | select(.cpu_limit_percent > 80) | .name'"
)]
pub struct Args {
    /// Show it once
    #[arg(long)]
    once: bool,
    /// Look again after so long
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    /// What comes first
    #[arg(long, value_enum, default_value_t = Sort::Cpu, value_name = "COLUMN")]
    sort: Sort,
}

/// What rows are ordered by.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Sort {
    /// The busiest first
    Cpu,
    /// The largest first
    Memory,
    /// The most called first
    Rpm,
    /// By name
    Name,
}

/// What a narrow terminal does without, the first first.
const YIELDS: [&str; 7] = ["DISK", "NET", "P50", "LOAD", "%CPU", "READY", "ERRORS"];

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let live = ctx.term.stdout && !ctx.format.is_data() && !args.once;
    if live {
        ctx.quiet_interrupt();
    }
    loop {
        let mut top = link.top().await?;
        sort(&mut top, args.sort);
        if !live {
            show(ctx, &top)?;
            return Ok(DONE);
        }
        let rows = crossterm::terminal::size().map_or(24, |(_, rows)| usize::from(rows));
        output::write(screen(&text(ctx, &top), rows).as_bytes())?;
        tokio::time::sleep(Duration::from_secs(args.every)).await;
    }
}

fn sort(top: &mut Top, by: Sort) {
    match by {
        Sort::Cpu => top.deployments.sort_by(|a, b| b.cpu_percent.total_cmp(&a.cpu_percent)),
        Sort::Memory => top.deployments.sort_by_key(|d| std::cmp::Reverse(d.memory_bytes)),
        Sort::Rpm => top.deployments.sort_by(|a, b| b.rpm.total_cmp(&a.rpm)),
        Sort::Name => top.deployments.sort_by(|a, b| a.name.cmp(&b.name)),
    }
}

fn show(ctx: &Ctx, top: &Top) -> Result<(), Failure> {
    if top.at.is_none() && !ctx.format.is_data() {
        output::note("nothing is measured yet; the first reading comes within ten seconds of the agent's start");
    }
    ctx.emit(top, || text(ctx, top))
}

fn text(ctx: &Ctx, top: &Top) -> String {
    let mut text = top.host.as_ref().filter(|_| top.at.is_some()).map(host).unwrap_or_default();
    let wide = ctx.format == Format::Wide;
    let mut headings =
        vec!["NAME", "STATE", "READY", "CPU", "%CPU", "MEMORY", "LOAD", "RPM", "P50", "P99", "ERRORS", "NET", "DISK"];
    if wide {
        headings.extend(["P90", "FLIGHT", "SESSIONS", "VOLUMES"]);
    }
    let mut table = Table::new(&headings, "NAME").yielding(&YIELDS);
    for d in &top.deployments {
        let mut row = vec![
            cell(&d.name),
            state(&d.state),
            cell(d.ready.to_string()),
            cell(format!("{:.1}%", d.cpu_percent)),
            cell(format!("{:.0}%", d.cpu_limit_percent)),
            cell(time::size(d.memory_bytes)),
            cell(format!("{:.0}%", d.memory_load_percent)),
            cell(format!("{:.0}", d.rpm)),
            cell(format!("{:.0} ms", d.p50_ms)),
            cell(format!("{:.0} ms", d.p99_ms)),
            cell(format!("{:.1}%", d.error_rate * 100.0)),
            cell(rate(d.received_per_second + d.sent_per_second)),
            cell(rate(d.disk_per_second)),
        ];
        if wide {
            let (p90, volumes) = (format!("{:.0} ms", d.p90_ms), time::size(d.volume_bytes));
            let more = [p90, d.in_flight.to_string(), d.sessions.to_string(), volumes];
            row.extend(more.map(cell));
        }
        table.row(row);
    }
    text.push_str(&table.text(ctx.width(), ctx.term.colour));
    let replicas = top.deployments.iter().flat_map(|d| d.replicas.iter().map(move |r| (d, r)));
    let mut table = Table::new(
        &["REPLICA", "OF", "STATE", "CPU", "QUOTA", "MEMORY", "CACHE", "PEAK", "LIMIT", "PROC", "THROTTLED", "OOM"],
        "OF",
    );
    let mut any = false;
    for (d, r) in replicas.filter(|_| wide) {
        any = true;
        let how = if r.paused {
            "paused"
        } else if r.ready {
            "ready"
        } else {
            "starting"
        };
        table.row(vec![
            cell(&r.instance),
            cell(&d.name),
            state(how),
            cell(format!("{:.1}%", r.cpu_percent)),
            cell(format!("{:.2}", r.cpu_limit_cores)),
            cell(time::size(r.memory_bytes)),
            cell(time::size(r.memory_total_bytes.saturating_sub(r.memory_bytes))),
            cell(if r.memory_peak_bytes == 0 { "-".to_owned() } else { time::size(r.memory_peak_bytes) }),
            cell(time::size(r.memory_limit_bytes)),
            cell(r.processes.to_string()),
            cell(format!("{:.1} s", r.throttled_seconds)),
            cell(r.oom_kills.to_string()),
        ]);
    }
    if any {
        text.push('\n');
        text.push_str(&table.text(ctx.width(), ctx.term.colour));
    }
    text
}

fn rate(bytes: f64) -> String {
    // never negative, and far from the largest number
    format!("{}/s", time::size(bytes.round() as u64))
}

/// A page over the one before, without a flicker. What a screen has no room for is left out, and counted.
fn screen(text: &str, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    // the cursor stands in the last row
    let room = rows.saturating_sub(1).max(1);
    let shown = if lines.len() > room { room - 1 } else { lines.len() };
    let mut out = "\x1b[H".to_owned();
    for line in &lines[..shown] {
        out.push_str(line);
        out.push_str("\x1b[K\n");
    }
    if shown < lines.len() {
        out.push_str(&format!("… {} more; --sort says who comes first\x1b[K\n", lines.len() - shown));
    }
    out.push_str("\x1b[J");
    out
}

/// The host in four lines of at most 80 columns.
fn host(h: &HostUse) -> String {
    let pressure = |p: Option<f64>| p.map_or_else(|| "-".to_owned(), |p| format!("{p:.1}%"));
    let used = h.memory_bytes.saturating_sub(h.memory_available_bytes);
    let inodes = if h.inodes == 0 {
        String::new()
    } else {
        format!(", {:.0}% of inodes free", h.inodes_free as f64 / h.inodes as f64 * 100.0)
    };
    format!(
        "host   {:.0}% of {} CPUs, load {:.2} {:.2} {:.2}; the agent {:.1}% CPU, {}\n       \
         memory {} of {}, disk {} free of {}{inodes}\n       \
         waiting for CPU {}, memory {}, disk {}\n       \
         network {} in, {} out\n\n",
        h.cpu_percent,
        h.cpus,
        h.load[0],
        h.load[1],
        h.load[2],
        h.agent_cpu_percent,
        time::size(h.agent_memory_bytes),
        time::size(used),
        time::size(h.memory_bytes),
        time::size(h.disk_free_bytes),
        time::size(h.disk_bytes),
        pressure(h.pressure_cpu_percent),
        pressure(h.pressure_memory_percent),
        pressure(h.pressure_io_percent),
        rate(h.received_per_second),
        rate(h.sent_per_second),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_fills_its_screen_and_no_more() {
        let lines = |n: usize| (0..n).map(|n| format!("line {n}\n")).collect::<String>();
        let shown = |text: &str, rows| screen(text, rows).matches('\n').count();
        assert_eq!((shown(&lines(5), 24), shown(&lines(23), 24), shown(&lines(24), 24)), (5, 23, 23));
        assert!(screen(&lines(30), 24).contains("line 21\x1b[K\n… 8 more"), "{:?}", screen(&lines(30), 24));
        assert!(!screen(&lines(23), 24).contains("more") && shown(&lines(5), 1) == 1);
        assert!(screen("", 24).starts_with("\x1b[H\x1b[J"));
    }
}
