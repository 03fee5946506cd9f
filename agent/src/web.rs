//! Owns: the pages that machines read: liveness, readiness, metrics, the registry's API.
//! May touch: what it is told ([`Status`] and the gateway's own counters); for the API the registry, access and audit. Has
//! no listener of its own: the gateway's.
//! Never: names a session or a person, or shows a key (keys are named as their owners named them).
//! Tested by: unit tests here and in `gateway`.

pub mod registry;
mod used;

use std::collections::HashMap;
use std::sync::Arc;

use hyper::StatusCode;
use sigil_core::exposition::{Kind, Sink, Text};
use sigil_core::model::DeploymentId;

use crate::sample::Snapshot;

/// What the rest of the agent tells these pages. Called for every page, so it must be cheap.
pub trait Status: Send + Sync {
    /// Why the agent is not ready to serve, one line; `Ok` when it is.
    fn ready(&self) -> Result<(), String>;
    /// How many deployments are in each state (`product.md` words).
    fn deployments(&self) -> Vec<(&'static str, u64)>;
    /// Connections of containers to the outside.
    fn outbound(&self) -> Outbound {
        Outbound::default()
    }
    /// What replicas and the host use.
    fn measured(&self) -> Measured {
        Measured::default()
    }
}

/// What replicas and the host use.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// The latest reading.
    pub snapshot: Arc<Snapshot>,
    /// What deployments are called.
    pub names: HashMap<DeploymentId, String>,
}

/// Connections of containers to the outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outbound {
    /// Open now.
    pub open: u64,
    /// Begun since the agent's start.
    pub made: u64,
    /// Of them did not come about.
    pub failed: u64,
    /// Not begun because they are not allowed, by deployment.
    pub refused: Vec<(String, u64)>,
}

/// Upper bounds of the buckets of a [`Latency`], seconds. Beyond the last one there is one more bucket.
pub const BOUNDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Times of calls since the agent's start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Latency {
    /// Calls by the bucket they fell into.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// Time of all of them, seconds.
    pub seconds: f64,
    /// Of them failed.
    pub errors: u64,
}

impl Latency {
    /// All calls.
    pub fn calls(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// A deployment's numbers, as the gateway counted them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traffic {
    /// Its name.
    pub deployment: String,
    /// Its requests.
    pub latency: Latency,
    /// Bytes of clients' messages.
    pub bytes_in: u64,
    /// Bytes of answers.
    pub bytes_out: u64,
    /// Requests without an answer yet.
    pub in_flight: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Clients to which an event stream is open, or a long answer on its way.
    pub connections: u64,
    /// Replicas that serve.
    pub ready: u64,
    /// By tool.
    pub tools: Vec<ToolTraffic>,
    /// Calls whose answers the policy would have kept.
    pub cached: Cached,
}

/// What became of calls whose answers a deployment's policy would have kept, since the agent's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cached {
    /// Answered by the gateway.
    pub hits: u64,
    /// Answered by the server.
    pub misses: u64,
    /// Passed on as if nothing were kept, by why.
    pub passed: [(&'static str, u64); 3],
}

/// Requests since the agent's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// All that were passed on.
    pub requests: u64,
    /// Of them failed.
    pub errors: u64,
    /// Bytes of answers to clients.
    pub sent: u64,
}

/// Who used a deployment, since the agent's start.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// Which one.
    pub deployment: DeploymentId,
    /// Everybody.
    pub whole: Count,
    /// By user, by id; whoever shows nothing is `(anonymous)`, whom there is no room for `(others)`.
    pub users: Vec<(String, Count)>,
    /// By tool; bytes are not told apart.
    pub tools: Vec<(String, Count)>,
}

/// A tool's numbers since the agent's start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolTraffic {
    /// As its server calls it.
    pub tool: String,
    /// Its calls.
    pub latency: Latency,
}

/// A key's numbers since the agent's start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeyTraffic {
    /// Its name.
    pub key: String,
    /// Requests passed on.
    pub calls: u64,
    /// Of them failed.
    pub errors: u64,
    /// Requests that were not passed on.
    pub refused: u64,
    /// Requests without an answer yet.
    pub in_flight: u64,
    /// Bytes of its messages.
    pub bytes_in: u64,
    /// Bytes of answers to it.
    pub bytes_out: u64,
}

/// Everything the pages show.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Why not ready; `None`: ready.
    pub not_ready: Option<String>,
    /// Deployments by state.
    pub deployments: Vec<(&'static str, u64)>,
    /// By deployment.
    pub traffic: Vec<Traffic>,
    /// Connections of containers to the outside.
    pub outbound: Outbound,
    /// What replicas and the host use.
    pub measured: Measured,
    /// Connections of clients now.
    pub connections: u64,
    /// Connections refused because there were too many.
    pub connections_refused: u64,
    /// Refusals of the gateway by code.
    pub refusals: Vec<(&'static str, u64)>,
    /// Messages of servers that found no client.
    pub dropped: u64,
    /// Lists answered in the place of servers that were not ready.
    pub recalled: u64,
    /// Sessions of servers begun again in their clients' place, since the agent's start.
    pub replayed: u64,
    /// By key.
    pub keys: Vec<KeyTraffic>,
    /// Bytes of kept answers.
    pub cache_bytes: u64,
    /// Rounds of metrics that a collector took.
    pub rounds_sent: u64,
    /// Rounds that none took.
    pub rounds_lost: u64,
    /// Spans that a collector took.
    pub spans_sent: u64,
    /// Spans that none took, or that found no room.
    pub spans_dropped: u64,
}

/// An answer.
#[derive(Debug)]
pub struct Page {
    /// HTTP status.
    pub status: StatusCode,
    /// Content type.
    pub media_type: &'static str,
    /// Body.
    pub text: String,
}

/// Content type of pages that are one word.
pub const PLAIN: &str = "text/plain; charset=utf-8";
/// Content type of the page of metrics.
pub const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `/healthz`: whoever reads it is answered.
pub fn health() -> Page {
    Page { status: StatusCode::OK, media_type: PLAIN, text: "ok\n".into() }
}

/// `/readyz`; `not_ready`: why not.
pub fn readiness(not_ready: Option<&str>) -> Page {
    match not_ready {
        None => Page { status: StatusCode::OK, media_type: PLAIN, text: "ready\n".into() },
        Some(why) => {
            Page { status: StatusCode::SERVICE_UNAVAILABLE, media_type: PLAIN, text: format!("not ready: {why}\n") }
        }
    }
}

/// `/metrics`. A large host's takes milliseconds: not to be made where calls are answered.
pub fn metrics(facts: &Facts) -> String {
    let tools: usize = facts.traffic.iter().map(|t| 1 + t.tools.len()).sum();
    // a histogram has 19 lines of about 90 bytes
    let mut text = Text::with_capacity((64 << 10) + tools * 19 * 96);
    tell(facts, &mut text);
    text.page()
}

/// All metrics, to whatever shows them.
pub fn tell(facts: &Facts, out: &mut dyn Sink) {
    out.family("sigil_build_info", Kind::Gauge, "Version of the agent.");
    out.value(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    out.family("sigil_ready", Kind::Gauge, "1 when the agent is ready to serve.");
    out.value(&[], if facts.not_ready.is_none() { 1.0 } else { 0.0 });
    out.family("sigil_deployments", Kind::Gauge, "Deployments by state.");
    for (state, count) in &facts.deployments {
        out.value(&[("state", state)], *count as f64);
    }
    let mut by = |name: &str, kind: Kind, help: &str, value: &dyn Fn(&Traffic) -> f64| {
        out.family(name, kind, help);
        for traffic in &facts.traffic {
            out.value(&[("deployment", &traffic.deployment)], value(traffic));
        }
    };
    by("sigil_request_errors_total", Kind::Counter, "MCP requests that failed.", &|t| t.latency.errors as f64);
    by("sigil_requests_in_flight", Kind::Gauge, "MCP requests without an answer yet.", &|t| t.in_flight as f64);
    by("sigil_bytes_received_total", Kind::Counter, "Bytes of clients' messages.", &|t| t.bytes_in as f64);
    by("sigil_bytes_sent_total", Kind::Counter, "Bytes of answers to clients.", &|t| t.bytes_out as f64);
    by("sigil_sessions", Kind::Gauge, "Open MCP sessions.", &|t| t.sessions as f64);
    let help = "Clients to which an event stream is open, or a long answer on its way.";
    by("sigil_connections", Kind::Gauge, help, &|t| t.connections as f64);
    by("sigil_replicas_ready", Kind::Gauge, "Replicas that serve.", &|t| t.ready as f64);
    by("sigil_cache_hits_total", Kind::Counter, "Tool calls answered from the cache.", &|t| t.cached.hits as f64);
    by("sigil_cache_misses_total", Kind::Counter, "Tool calls that the cache had no answer to.", &|t| {
        t.cached.misses as f64
    });
    let name = "sigil_cache_passed_total";
    out.family(name, Kind::Counter, "Calls of tools that a policy caches, passed by the cache, by reason.");
    for traffic in &facts.traffic {
        for (reason, count) in traffic.cached.passed.iter().filter(|(reason, _)| !reason.is_empty()) {
            out.value(&[("deployment", &*traffic.deployment), ("reason", *reason)], *count as f64);
        }
    }
    out.family("sigil_cache_bytes", Kind::Gauge, "Memory that cached answers take.");
    out.value(&[], facts.cache_bytes as f64);
    let name = "sigil_request_duration_seconds";
    out.family(name, Kind::Histogram, "MCP requests passed on, from their arrival to the end of their answer.");
    for traffic in &facts.traffic {
        histogram(out, &[("deployment", &traffic.deployment)], &traffic.latency);
    }
    out.family("sigil_tool_errors_total", Kind::Counter, "Tool calls that failed.");
    for (labels, latency) in facts.traffic.iter().flat_map(tools_of) {
        out.value(&labels, latency.errors as f64);
    }
    out.family("sigil_tool_duration_seconds", Kind::Histogram, "Tool calls passed on.");
    for (labels, latency) in facts.traffic.iter().flat_map(tools_of) {
        histogram(out, &labels, latency);
    }
    let mut by_key = |name: &str, kind: Kind, help: &str, value: &dyn Fn(&KeyTraffic) -> u64| {
        out.family(name, kind, help);
        for key in &facts.keys {
            out.value(&[("key", &key.key)], value(key) as f64);
        }
    };
    by_key("sigil_key_calls_total", Kind::Counter, "MCP requests passed on, by key.", &|k| k.calls);
    by_key("sigil_key_errors_total", Kind::Counter, "MCP requests that failed, by key.", &|k| k.errors);
    by_key("sigil_key_refused_total", Kind::Counter, "MCP requests not passed on, by key.", &|k| k.refused);
    by_key("sigil_key_in_flight", Kind::Gauge, "MCP requests without an answer yet, by key.", &|k| k.in_flight);
    by_key("sigil_key_bytes_received_total", Kind::Counter, "Bytes of clients' messages, by key.", &|k| k.bytes_in);
    by_key("sigil_key_bytes_sent_total", Kind::Counter, "Bytes of answers to clients, by key.", &|k| k.bytes_out);
    out.family("sigil_gateway_refusals_total", Kind::Counter, "Requests that the gateway refused, by code.");
    for (code, count) in &facts.refusals {
        out.value(&[("code", code)], *count as f64);
    }
    out.family("sigil_outbound_refused_total", Kind::Counter, "Connections of containers that are not allowed.");
    for (deployment, count) in &facts.outbound.refused {
        out.value(&[("deployment", deployment)], *count as f64);
    }
    for (name, kind, help, value) in [
        (
            "sigil_outbound_connections",
            Kind::Gauge,
            "Open connections of containers to the outside.",
            facts.outbound.open,
        ),
        ("sigil_outbound_connections_total", Kind::Counter, "Connections of containers begun.", facts.outbound.made),
        ("sigil_outbound_failed_total", Kind::Counter, "Of them did not come about.", facts.outbound.failed),
    ] {
        out.family(name, kind, help);
        out.value(&[], value as f64);
    }
    out.family("sigil_gateway_connections", Kind::Gauge, "Connections of MCP clients.");
    out.value(&[], facts.connections as f64);
    out.family("sigil_gateway_connections_refused_total", Kind::Counter, "Connections beyond the limit.");
    out.value(&[], facts.connections_refused as f64);
    out.family("sigil_gateway_messages_dropped_total", Kind::Counter, "Messages of servers that found no client.");
    out.value(&[], facts.dropped as f64);
    out.family("sigil_gateway_recalled_total", Kind::Counter, "Lists answered for servers that were not ready.");
    out.value(&[], facts.recalled as f64);
    let name = "sigil_gateway_sessions_replayed_total";
    out.family(name, Kind::Counter, "Sessions begun again in their clients' place.");
    out.value(&[], facts.replayed as f64);
    out.family("sigil_spans_sent_total", Kind::Counter, "Spans that the collector of traces took.");
    out.value(&[], facts.spans_sent as f64);
    out.family("sigil_spans_dropped_total", Kind::Counter, "Spans that no collector took, or that found no room.");
    out.value(&[], facts.spans_dropped as f64);
    out.family("sigil_metrics_sent_total", Kind::Counter, "Rounds of metrics that the collector took.");
    out.value(&[], facts.rounds_sent as f64);
    out.family("sigil_metrics_lost_total", Kind::Counter, "Rounds of metrics that no collector took.");
    out.value(&[], facts.rounds_lost as f64);
    used::replicas(out, &facts.measured);
    used::volumes(out, &facts.measured);
    used::host(out, &facts.measured.snapshot.host);
    used::effort(out, &facts.measured.snapshot.effort);
    out.told(&facts.measured.snapshot.servers);
}

fn tools_of(traffic: &Traffic) -> impl Iterator<Item = ([(&str, &str); 2], &Latency)> {
    traffic.tools.iter().map(|tool| ([("deployment", &*traffic.deployment), ("tool", &*tool.tool)], &tool.latency))
}

fn histogram(out: &mut dyn Sink, labels: &[(&str, &str)], latency: &Latency) {
    out.histogram(labels, &BOUNDS, &latency.buckets, latency.seconds);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let mut latency = Latency { seconds: 0.25, ..Latency::default() };
        (latency.buckets[1], latency.buckets[BOUNDS.len()]) = (2, 1);
        let mut facts = Facts {
            deployments: vec![("ready", 2)],
            outbound: Outbound { refused: vec![("clock".into(), 3)], ..Outbound::default() },
            traffic: vec![Traffic { deployment: "a\"b".into(), latency, ..Traffic::default() }],
            ..Facts::default()
        };
        assert_eq!(readiness(None).status, StatusCode::OK);
        let away = readiness(Some("the engine is away"));
        assert_eq!((away.status.as_u16(), away.text.as_str()), (503, "not ready: the engine is away\n"));
        assert_eq!(health().status, StatusCode::OK);
        facts.not_ready = Some("the engine is away".into());
        let text = metrics(&facts);
        for wanted in [
            "sigil_deployments{state=\"ready\"} 2\n",
            "sigil_request_duration_seconds_bucket{deployment=\"a\\\"b\",le=\"0.0005\"} 0\n",
            "sigil_request_duration_seconds_bucket{deployment=\"a\\\"b\",le=\"60\"} 2\n",
            "sigil_request_duration_seconds_bucket{deployment=\"a\\\"b\",le=\"+Inf\"} 3\n",
            "sigil_request_duration_seconds_sum{deployment=\"a\\\"b\"} 0.25\n",
            "sigil_request_duration_seconds_count{deployment=\"a\\\"b\"} 3\n",
            "sigil_ready 0\n",
            "sigil_outbound_refused_total{deployment=\"clock\"} 3\n",
        ] {
            assert!(text.contains(wanted), "{wanted} in\n{text}");
        }
        let typed = text.lines().filter(|l| l.starts_with("# TYPE")).count();
        assert_eq!(typed, text.lines().filter(|l| l.starts_with("# HELP")).count());
    }

    /// The page of a large host. The bar of 20 ms is for a release build; a debug build has ten times as long.
    #[test]
    fn a_large_page_scales() {
        let latency = Latency { seconds: 12.5, buckets: [1234; BOUNDS.len() + 1], errors: 3 };
        let tool = |n: usize| ToolTraffic { tool: format!("a_tool_with_a_name_{n}"), latency: latency.clone() };
        let traffic = |n: usize| Traffic {
            deployment: format!("deployment-{n}"),
            latency: latency.clone(),
            tools: (0..20).map(tool).collect(),
            ..Traffic::default()
        };
        let facts = Facts { traffic: (0..200).map(traffic).collect(), ..Facts::default() };
        let took = || {
            let began = std::time::Instant::now();
            let length = metrics(&facts).len();
            (began.elapsed(), length)
        };
        // the best of some: others may use the machine
        let (best, length) = (0..5).map(|_| took()).min().unwrap();
        println!("/metrics of 200 deployments with 20 tools each: {length} bytes in {best:?}");
        let bar = if cfg!(debug_assertions) { 200 } else { 20 };
        assert!(best.as_millis() < bar, "{best:?}");
    }
}
