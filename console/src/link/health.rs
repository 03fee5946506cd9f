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
    /// `good`, `poor`, `failed` or `skipped`.
    pub outcome: String,
    /// Why.
    pub why: String,
    /// The answer's time, milliseconds.
    pub ms: f64,
}

impl Link {
    /// How a deployment does, with so many of the newest probes.
    pub async fn health(&self, name: &str, probes: u32) -> Result<Health, LinkError> {
        let request = v1::HealthRequest { name: name.to_owned(), probes };
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
        Ok(Health {
            name: reply.name,
            state: reply.state,
            replicas: reply.replicas.into_iter().map(replica).collect(),
            availability: reply.availability.into_iter().map(window).collect(),
            target,
            probes: reply.probes.into_iter().map(probe).collect(),
        })
    }
}
