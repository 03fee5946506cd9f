//! `sigil info`.

use jiff::Timestamp;
use serde_json::json;

use super::fail::{DONE, Outcome};
use super::output::{Paint, paint};
use super::{Ctx, text, time};
use crate::contexts;
use crate::link::{AgentInfo, Link};

/// Show the agent, its engine, and every path that the console uses
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sigil info\n  sigil info -o json | jq .agent.engine")]
pub struct Args {}

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub async fn run(ctx: &Ctx, _: Args) -> Outcome {
    let target = contexts::resolve(ctx.host.as_deref())?;
    let console = json!({
        "version": VERSION,
        "contexts": contexts::path(),
        "config": sigil_config::console::path(),
        "state_dir": contexts::state_dir(),
        "context": target.context,
        "address": target.address.to_string(),
        "local_sockets": crate::link::local_sockets(),
    });
    let agent = async { Link::connect(target).await?.info().await }.await;
    let shown = json!({ "console": console, "agent": agent.as_ref().ok() });
    ctx.emit(&shown, || {
        let mut out = String::new();
        let colour = ctx.term.colour;
        let mut field = |name: &str, value: &str| {
            if !value.is_empty() {
                let name = paint(&format!("{name:<12}"), Paint::Bold, colour);
                out.push_str(&format!("{name}{}\n", text::one_line(value)));
            }
        };
        field("console", VERSION);
        field("address", console["address"].as_str().unwrap_or_default());
        field("context", console["context"].as_str().unwrap_or_default());
        field("contexts", console["contexts"].as_str().unwrap_or_default());
        field("config", console["config"].as_str().unwrap_or_default());
        field("state dir", console["state_dir"].as_str().unwrap_or_default());
        if let Ok(agent) = &agent {
            agent_fields(agent, &mut field);
        }
        out
    })?;
    agent?;
    Ok(DONE)
}

fn agent_fields(agent: &AgentInfo, field: &mut impl FnMut(&str, &str)) {
    let now = Timestamp::now();
    let skew = if agent.version == VERSION { "" } else { "  (not this console's version)" };
    field("agent", &format!("{}{skew}", agent.version));
    field("host", &agent.hostname);
    field("agent id", &agent.agent_id);
    let all: Vec<String> = agent.grants.iter().map(|g| format!("{} on {}", g.role, g.on)).collect();
    // who has one role on everything needs no list of it
    let may = match agent.grants.as_slice() {
        [only] if only.on == "all" => agent.role.clone(),
        [] => agent.role.clone(),
        _ => all.join(", "),
    };
    field("you are", &format!("{} ({may})", agent.who));
    field("started", &time::ago(agent.started_at, now));
    field("data", &agent.data_dir);
    field("gateway", &agent.gateway);
    field("memory", &time::size(agent.memory_rss));
    if let Some(clock) = agent.now {
        let off = now.duration_since(clock).unsigned_abs();
        if off.as_secs() >= 5 {
            field("clock", &format!("differs from this machine's by {}", time::span(off)));
        }
    }
    match &agent.engine {
        Some(e) if e.reachable => field(
            "engine",
            &format!(
                "{} {} (API {}, cgroup v{}, logs {}) at {}",
                e.name, e.version, e.api_version, e.cgroup_version, e.log_driver, e.host
            ),
        ),
        Some(e) => field("engine", &format!("does not answer at {}: {}", e.host, e.message)),
        None => field("engine", "none"),
    }
    for line in &agent.notes {
        field("note", line);
    }
}
