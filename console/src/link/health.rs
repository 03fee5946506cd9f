//! Whether replicas answer, and how available deployments were.

use jiff::Timestamp;
use serde::Serialize;
use sigil_core::health::Calls;
use sigil_protocol::v1;

use super::error::LinkError;
use super::{Link, convert};

/// A deployment's health.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// The deployment.
    pub name: String,
    /// `healthy`, `degraded`, `unhealthy` or `unknown`.
    pub state: String,
    /// Its replicas.
    pub replicas: Vec<Replica>,
    /// What callers saw in the last day, week and month.
    pub availability: Vec<Window>,
    /// Calls that are to be answered, percent.
    pub target: f64,
    /// The newest probes, newest first.
    pub probes: Vec<Probe>,
    /// The newest changes of replicas' states, and what was done about them, newest first.
    pub turns: Vec<Turn>,
    /// How containers ended lately that nobody had asked to, newest first.
    pub lives: Vec<Life>,
}

/// A change of a replica's state, or what was done about it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Turn {
    /// When.
    pub at: Option<Timestamp>,
    /// Of which replica.
    pub instance: String,
    /// How it did until then.
    pub from: String,
    /// And since.
    pub to: String,
    /// Why.
    pub why: String,
    /// `restarted` or `replaced`; else empty.
    pub done: String,
}

/// A life of a container, until an end that nobody had asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Life {
    /// When it ended.
    pub at: Option<Timestamp>,
    /// When it had started.
    pub began: Option<Timestamp>,
    /// How long it lasted, milliseconds.
    pub lasted_ms: Option<i64>,
    /// Of which replica.
    pub instance: String,
    /// Of which release.
    pub release: u32,
    /// It had passed its gate.
    pub served: bool,
    /// The exit code; 128 + signal when it was killed.
    pub code: Option<i64>,
    /// The kernel killed it for want of memory.
    pub oom: bool,
    /// In words.
    pub why: String,
    /// The last of its output, oldest first.
    pub output: Vec<Line>,
    /// There was more of it.
    pub cut: bool,
}

/// A line of output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// When.
    pub at: Option<Timestamp>,
    /// `stdout` or `stderr`.
    pub stream: &'static str,
    /// What.
    pub line: String,
}

/// How much of each history is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Probes.
    pub probes: u32,
    /// Turns.
    pub turns: u32,
    /// Ended lives.
    pub lives: u32,
}

/// One replica's health.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replica {
    /// Which one.
    pub instance: String,
    /// How it does.
    pub state: String,
    /// Why.
    pub why: String,
    /// The last answer's time, milliseconds.
    pub ms: f64,
    /// When it was asked last.
    pub at: Option<Timestamp>,
    /// How often it was restarted or replaced since it was first asked.
    pub remedies: u32,
}

/// Calls of a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Window {
    /// So many hours until now.
    pub hours: u32,
    /// All, and those that failed.
    #[serde(flatten)]
    pub calls: Calls,
    /// Those that were answered, percent.
    pub available: Option<f64>,
    /// What is left of the failures that the target allows, percent of them.
    pub budget_left: Option<f64>,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probe {
    /// When.
    pub at: Option<Timestamp>,
    /// Of which replica.
    pub instance: String,
    /// `good`, `poor`, `busy`, `failed` or `skipped`.
    pub outcome: String,
    /// Why.
    pub why: String,
    /// The answer's time, milliseconds.
    pub ms: f64,
}

impl Link {
    /// How a deployment does, with the newest of what is kept of it.
    pub async fn health(&self, name: &str, wanted: Wanted) -> Result<Health, LinkError> {
        let Wanted { probes, turns, lives } = wanted;
        let request = v1::HealthRequest { name: name.to_owned(), probes, turns, lives };
        let reply = self.ask("health", v1::health_client::HealthClient::new(self.wire.clone()).get(request)).await?;
        let target = reply.target;
        let replica = |r: v1::ReplicaHealth| Replica {
            instance: r.instance,
            state: r.state,
            why: r.why,
            ms: r.ms,
            at: convert::time(r.at),
            remedies: r.remedies,
        };
        let window = |w: v1::Availability| {
            let calls = Calls { all: w.calls, failed: w.failed };
            Window { hours: w.hours, calls, available: calls.available(), budget_left: calls.budget_left(target) }
        };
        let probe = |p: v1::ProbeResult| Probe {
            at: convert::time(p.at),
            instance: p.instance,
            outcome: p.outcome,
            why: p.why,
            ms: p.ms,
        };
        let turn = |t: v1::HealthTurn| Turn {
            at: convert::time(t.at),
            instance: t.instance,
            from: t.from,
            to: t.to,
            why: t.why,
            done: t.done,
        };
        let line = |l: v1::EndedLine| Line {
            at: convert::time(l.at),
            stream: if l.stderr { "stderr" } else { "stdout" },
            line: l.line,
        };
        let life = |l: v1::EndedLife| Life {
            at: convert::time(l.at),
            began: convert::time(l.began),
            lasted_ms: (l.began > 0).then(|| (l.at - l.began).max(0) / 1000),
            instance: l.instance,
            release: l.release,
            served: l.served,
            code: l.code,
            oom: l.oom,
            why: l.why,
            output: l.output.into_iter().map(line).collect(),
            cut: l.cut,
        };
        Ok(Health {
            name: reply.name,
            state: reply.state,
            replicas: reply.replicas.into_iter().map(replica).collect(),
            availability: reply.availability.into_iter().map(window).collect(),
            target,
            probes: reply.probes.into_iter().map(probe).collect(),
            turns: reply.turns.into_iter().map(turn).collect(),
            lives: reply.lives.into_iter().map(life).collect(),
        })
    }
}
