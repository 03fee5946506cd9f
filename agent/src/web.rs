//! Owns: the pages that machines read: liveness, readiness, metrics.
//! May touch: what it is told ([`Status`] and the gateway's own counters). Has no listener of its own: the gateway's.
//! Never: names a session or a person, or shows a key (keys are named as their owners named them).
//! Tested by: unit tests here and in `gateway`.

mod used;

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use hyper::StatusCode;
use sigil_core::exposition::escaped;
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

/// The page of a path (`/healthz`, `/readyz`, `/metrics`).
pub fn page(path: &str, facts: &Facts) -> Page {
    let plain = "text/plain; charset=utf-8";
    match path {
        "/healthz" => Page { status: StatusCode::OK, media_type: plain, text: "ok\n".into() },
        "/readyz" => match &facts.not_ready {
            None => Page { status: StatusCode::OK, media_type: plain, text: "ready\n".into() },
            Some(why) => {
                Page { status: StatusCode::SERVICE_UNAVAILABLE, media_type: plain, text: format!("not ready: {why}\n") }
            }
        },
        "/metrics" => Page {
            status: StatusCode::OK,
            media_type: "text/plain; version=0.0.4; charset=utf-8",
            text: metrics(facts),
        },
        _ => Page { status: StatusCode::NOT_FOUND, media_type: plain, text: "not found\n".into() },
    }
}

fn metrics(facts: &Facts) -> String {
    let tools: usize = facts.traffic.iter().map(|t| 1 + t.tools.len()).sum();
    // a histogram has 19 lines of about 90 bytes
    let mut out = String::with_capacity((64 << 10) + tools * 19 * 96);
    head(&mut out, "sigil_build_info", "gauge", "Version of the agent.");
    line(&mut out, "sigil_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    head(&mut out, "sigil_ready", "gauge", "1 when the agent is ready to serve.");
    line(&mut out, "sigil_ready", &[], if facts.not_ready.is_none() { 1.0 } else { 0.0 });
    head(&mut out, "sigil_deployments", "gauge", "Deployments by state.");
    for (state, count) in &facts.deployments {
        line(&mut out, "sigil_deployments", &[("state", state)], *count as f64);
    }
    let mut by = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Traffic) -> f64| {
        head(&mut out, name, kind, help);
        for traffic in &facts.traffic {
            line(&mut out, name, &[("deployment", &traffic.deployment)], value(traffic));
        }
    };
    by("sigil_request_errors_total", "counter", "MCP requests that failed.", &|t| t.latency.errors as f64);
    by("sigil_requests_in_flight", "gauge", "MCP requests without an answer yet.", &|t| t.in_flight as f64);
    by("sigil_bytes_received_total", "counter", "Bytes of clients' messages.", &|t| t.bytes_in as f64);
    by("sigil_bytes_sent_total", "counter", "Bytes of answers to clients.", &|t| t.bytes_out as f64);
    by("sigil_sessions", "gauge", "Open MCP sessions.", &|t| t.sessions as f64);
    by("sigil_replicas_ready", "gauge", "Replicas that serve.", &|t| t.ready as f64);
    by("sigil_cache_hits_total", "counter", "Tool calls answered from the cache.", &|t| t.cached.hits as f64);
    by("sigil_cache_misses_total", "counter", "Tool calls that the cache had no answer to.", &|t| {
        t.cached.misses as f64
    });
    let name = "sigil_cache_passed_total";
    head(&mut out, name, "counter", "Calls of tools that a policy caches, passed by the cache, by reason.");
    for traffic in &facts.traffic {
        for (reason, count) in traffic.cached.passed.iter().filter(|(reason, _)| !reason.is_empty()) {
            line(&mut out, name, &[("deployment", &*traffic.deployment), ("reason", *reason)], *count as f64);
        }
    }
    head(&mut out, "sigil_cache_bytes", "gauge", "Memory that cached answers take.");
    line(&mut out, "sigil_cache_bytes", &[], facts.cache_bytes as f64);
    let name = "sigil_request_duration_seconds";
    head(&mut out, name, "histogram", "MCP requests passed on, from their arrival to the end of their answer.");
    for traffic in &facts.traffic {
        histogram(&mut out, name, &[("deployment", &traffic.deployment)], &traffic.latency);
    }
    head(&mut out, "sigil_tool_errors_total", "counter", "Tool calls that failed.");
    for (labels, latency) in facts.traffic.iter().flat_map(tools_of) {
        line(&mut out, "sigil_tool_errors_total", &labels, latency.errors as f64);
    }
    head(&mut out, "sigil_tool_duration_seconds", "histogram", "Tool calls passed on.");
    for (labels, latency) in facts.traffic.iter().flat_map(tools_of) {
        histogram(&mut out, "sigil_tool_duration_seconds", &labels, latency);
    }
    let mut by_key = |name: &str, kind: &str, help: &str, value: &dyn Fn(&KeyTraffic) -> u64| {
        head(&mut out, name, kind, help);
        for key in &facts.keys {
            line(&mut out, name, &[("key", &key.key)], value(key) as f64);
        }
    };
    by_key("sigil_key_calls_total", "counter", "MCP requests passed on, by key.", &|k| k.calls);
    by_key("sigil_key_errors_total", "counter", "MCP requests that failed, by key.", &|k| k.errors);
    by_key("sigil_key_refused_total", "counter", "MCP requests not passed on, by key.", &|k| k.refused);
    by_key("sigil_key_in_flight", "gauge", "MCP requests without an answer yet, by key.", &|k| k.in_flight);
    by_key("sigil_key_bytes_received_total", "counter", "Bytes of clients' messages, by key.", &|k| k.bytes_in);
    by_key("sigil_key_bytes_sent_total", "counter", "Bytes of answers to clients, by key.", &|k| k.bytes_out);
    head(&mut out, "sigil_gateway_refusals_total", "counter", "Requests that the gateway refused, by code.");
    for (code, count) in &facts.refusals {
        line(&mut out, "sigil_gateway_refusals_total", &[("code", code)], *count as f64);
    }
    head(&mut out, "sigil_outbound_refused_total", "counter", "Connections of containers that are not allowed.");
    for (deployment, count) in &facts.outbound.refused {
        line(&mut out, "sigil_outbound_refused_total", &[("deployment", deployment)], *count as f64);
    }
    for (name, kind, help, value) in [
        ("sigil_outbound_connections", "gauge", "Open connections of containers to the outside.", facts.outbound.open),
        ("sigil_outbound_connections_total", "counter", "Connections of containers begun.", facts.outbound.made),
        ("sigil_outbound_failed_total", "counter", "Of them did not come about.", facts.outbound.failed),
    ] {
        head(&mut out, name, kind, help);
        line(&mut out, name, &[], value as f64);
    }
    head(&mut out, "sigil_gateway_connections", "gauge", "Connections of MCP clients.");
    line(&mut out, "sigil_gateway_connections", &[], facts.connections as f64);
    head(&mut out, "sigil_gateway_connections_refused_total", "counter", "Connections beyond the limit.");
    line(&mut out, "sigil_gateway_connections_refused_total", &[], facts.connections_refused as f64);
    head(&mut out, "sigil_gateway_messages_dropped_total", "counter", "Messages of servers that found no client.");
    line(&mut out, "sigil_gateway_messages_dropped_total", &[], facts.dropped as f64);
    head(&mut out, "sigil_gateway_recalled_total", "counter", "Lists answered for servers that were not ready.");
    line(&mut out, "sigil_gateway_recalled_total", &[], facts.recalled as f64);
    let name = "sigil_gateway_sessions_replayed_total";
    head(&mut out, name, "counter", "Sessions begun again in their clients' place.");
    line(&mut out, name, &[], facts.replayed as f64);
    head(&mut out, "sigil_spans_sent_total", "counter", "Spans that the collector of traces took.");
    line(&mut out, "sigil_spans_sent_total", &[], facts.spans_sent as f64);
    head(&mut out, "sigil_spans_dropped_total", "counter", "Spans that no collector took, or that found no room.");
    line(&mut out, "sigil_spans_dropped_total", &[], facts.spans_dropped as f64);
    used::replicas(&mut out, &facts.measured);
    used::host(&mut out, &facts.measured.snapshot.host);
    used::effort(&mut out, &facts.measured.snapshot.effort);
    used::servers(&mut out, &facts.measured.snapshot.servers);
    out
}

fn tools_of(traffic: &Traffic) -> impl Iterator<Item = ([(&str, &str); 2], &Latency)> {
    traffic.tools.iter().map(|tool| ([("deployment", &*traffic.deployment), ("tool", &*tool.tool)], &tool.latency))
}

/// [`BOUNDS`] as they are written, and the bucket beyond.
const BOUND_WORDS: [&str; BOUNDS.len() + 1] = [
    "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30",
    "60", "+Inf",
];

/// The lines that a page has most of: labels are put together once for all of them.
fn histogram(out: &mut String, name: &str, labels: &[(&str, &str)], latency: &Latency) {
    let mut shown = String::with_capacity(128);
    put_labels(&mut shown, labels);
    let mut sum = 0;
    for (bound, count) in BOUND_WORDS.iter().zip(latency.buckets) {
        sum += count;
        for part in [name, "_bucket{", &shown, ",le=\"", bound, "\"} "] {
            out.push_str(part);
        }
        number(out, sum as f64);
    }
    for (end, value) in [("_sum{", latency.seconds), ("_count{", sum as f64)] {
        for part in [name, end, &shown, "} "] {
            out.push_str(part);
        }
        number(out, value);
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // writing to a String cannot fail
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn put_labels(out: &mut String, labels: &[(&str, &str)]) {
    for (index, (label, text)) in labels.iter().enumerate() {
        out.push_str(if index == 0 { "" } else { "," });
        out.push_str(label);
        out.push_str("=\"");
        out.push_str(&escaped(text));
        out.push('"');
    }
}

fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    out.push_str(name);
    if !labels.is_empty() {
        out.push('{');
        put_labels(out, labels);
        out.push('}');
    }
    out.push(' ');
    number(out, value);
}

/// A number and the line's end. Most are whole: these are written without the machinery that others need.
fn number(out: &mut String, value: f64) {
    if (0.0..9_007_199_254_740_992.0).contains(&value) && value.fract() == 0.0 {
        // whole, and below 2 to the power of 53
        let (mut rest, mut digits, mut at) = (value as u64, [0_u8; 20], 20);
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        out.extend(digits[at..].iter().map(|digit| char::from(*digit)));
    } else {
        let _ = write!(out, "{value}");
    }
    out.push('\n');
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
        assert_eq!(page("/readyz", &facts).status, StatusCode::OK);
        facts.not_ready = Some("the engine is away".into());
        let page_of = page("/readyz", &facts);
        assert_eq!((page_of.status.as_u16(), page_of.text.as_str()), (503, "not ready: the engine is away\n"));
        assert_eq!(page("/healthz", &facts).status, StatusCode::OK);
        let text = page("/metrics", &facts).text;
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

    #[test]
    fn numbers_and_bounds_are_written_as_they_are() {
        for value in [0.0, 1.0, 9.0, 10.0, 1234567890.0, 0.25, -1.0, 1e18, f64::NAN, 9_007_199_254_740_991.0] {
            let mut text = String::new();
            number(&mut text, value);
            assert_eq!(text, format!("{value}\n"));
        }
        let bounds = BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]).collect::<Vec<_>>();
        assert_eq!(BOUND_WORDS.to_vec(), bounds);
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
            let length = page("/metrics", &facts).text.len();
            (began.elapsed(), length)
        };
        // the best of some: others may use the machine
        let (best, length) = (0..5).map(|_| took()).min().unwrap();
        println!("/metrics of 200 deployments with 20 tools each: {length} bytes in {best:?}");
        let bar = if cfg!(debug_assertions) { 200 } else { 20 };
        assert!(best.as_millis() < bar, "{best:?}");
    }
}
