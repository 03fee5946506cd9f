//! `sigil get`.

use jiff::Timestamp;

use super::fail::{DONE, Outcome};
use super::output::{Paint, Table, cell, paint, state, state_paint};
use super::{Ctx, text, time};
use crate::link::Detail;

/// Show one deployment: conditions, replicas, endpoint, last operation
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sigil get time\n  sigil get time -o json | jq -r .endpoint")]
pub struct Args {
    /// The deployment
    name: String,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let detail = match link.get(&args.name).await {
        Ok(detail) => detail,
        Err(e) => return Err(ctx.named(&link, &args.name, e).await),
    };
    ctx.emit(&detail, || page(ctx, &detail, Timestamp::now()))?;
    Ok(DONE)
}

/// What it may reach, in words; nothing when the agent does not say.
fn egress(detail: &Detail) -> String {
    let list = text::one_line(&detail.egress.join(", "));
    match (detail.network.as_str(), list.is_empty()) {
        ("", _) => String::new(),
        ("bridge", _) => "whatever the engine's network reaches (network.mode: bridge)".into(),
        (_, true) if detail.egress_open => "any public host (the agent's [outbound] default)".into(),
        (_, false) if detail.egress_open => format!("{list}, and any public host (the agent's [outbound] default)"),
        (_, true) => "nothing (list hosts with network.egress or --egress)".into(),
        (_, false) => list,
    }
}

fn page(ctx: &Ctx, detail: &Detail, now: Timestamp) -> String {
    let d = &detail.deployment;
    let colour = ctx.term.colour;
    let mut out = String::new();
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            out.push_str(&format!("{}{value}\n", paint(&format!("{name:<12}"), Paint::Bold, colour)));
        }
    };
    let clean = text::one_line;
    let message = if d.message.is_empty() { String::new() } else { format!("  {}", clean(&d.message)) };
    field("name", clean(&d.name));
    field("state", format!("{}{message}", paint(&clean(&d.state), state_paint(&d.state), colour)));
    field("health", paint(&clean(&d.health), state_paint(&d.health), colour));
    field("replicas", format!("{} of {} ready", d.ready, d.desired));
    let wanted = if d.desired_release != 0 && d.desired_release != d.release {
        format!(" (wanted: {})", d.desired_release)
    } else {
        String::new()
    };
    field("release", format!("{}{wanted}", d.release));
    field("endpoint", clean(&d.endpoint));
    field("access", clean(&detail.access));
    field("bundles", clean(&detail.bundles.join(", ")));
    field("egress", egress(detail));
    field("transport", clean(&d.transport));
    field("tier", clean(&d.tier));
    field("source", clean(&d.source));
    field(
        "load",
        format!(
            "{:.0} req/min, p99 {:.0} ms, {:.1}% errors, {:.0}% CPU, {}, {} sessions",
            d.rpm,
            d.p99_ms,
            d.error_rate * 100.0,
            d.cpu_percent,
            time::size(d.memory_bytes),
            d.sessions
        ),
    );
    if detail.volume_bytes > 0 {
        field("volumes", format!("{} on disk", time::size(detail.volume_bytes)));
    }
    field("created", time::ago(d.created_at, now));
    let why = if detail.reason.is_empty() { String::new() } else { format!(": {}", clean(&detail.reason)) };
    field("changed", format!("{} (generation {}){why}", time::ago(d.changed_at, now), detail.generation));
    if let Some(operation) = &detail.last_operation {
        let what = paint(&clean(&operation.state), state_paint(&operation.state), colour);
        let summary = operation.error.as_ref().map_or(&operation.summary, |e| &e.message);
        let ended = time::ago(operation.ended_at.or(operation.created_at), now);
        field("last op", format!("{} {what} {ended}  {}  {}", operation.kind, clean(summary), operation.id));
    }
    let mut section = |title: &str, body: String| {
        if !body.is_empty() {
            out.push_str(&format!("\n{}\n{body}", paint(title, Paint::Bold, colour)));
        }
    };
    if !detail.conditions.is_empty() {
        let mut table = Table::new(&["CONDITION", "HOLDS", "SINCE", "REASON"], "REASON");
        for c in &detail.conditions {
            let holds = if c.ok { "yes" } else { "no" };
            table.row(vec![cell(&c.kind), cell(holds), cell(time::ago(c.since, now)), cell(&c.reason)]);
        }
        section("Conditions", table.text(ctx.width(), colour));
    }
    if !detail.replicas.is_empty() {
        let mut table =
            Table::new(&["INSTANCE", "RELEASE", "STATE", "RESTARTS", "SESSIONS", "STARTED", "MESSAGE"], "MESSAGE");
        for r in &detail.replicas {
            table.row(vec![
                cell(&r.instance),
                cell(r.release.to_string()),
                state(&r.state),
                cell(r.restarts.to_string()),
                cell(r.sessions.to_string()),
                cell(time::ago(r.started_at, now)),
                cell(&r.message),
            ]);
        }
        section("Replicas", table.text(ctx.width(), colour));
    }
    if !detail.refused.is_empty() {
        let mut table = Table::new(&["HOST", "PORT", "TIMES", "LAST", "WHY"], "WHY");
        for r in &detail.refused {
            let (port, count) = (r.port.to_string(), r.count.to_string());
            table.row(vec![cell(&r.host), cell(port), cell(count), cell(time::ago(r.last, now)), cell(&r.why)]);
        }
        section(&format!("Refused egress ({} times)", detail.refused_total), table.text(ctx.width(), colour));
    }
    section("Plan", detail.plan.iter().map(|l| format!("  {}\n", clean(l))).collect());
    let last: String =
        detail.last_output.iter().map(|l| format!("  {}\n", text::for_terminal(l.as_bytes(), colour))).collect();
    section("Last output of the failed replica", last);
    out
}
