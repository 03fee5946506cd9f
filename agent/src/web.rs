//! Owns: the pages that machines read: liveness, readiness, metrics.
//! May touch: what it is told ([`Status`] and the gateway's own counters). Has no listener of its own: the gateway's.
//! Never: names a session, a key or a caller.
//! Tested by: unit tests here and in `gateway`.

use std::fmt::Write;

use hyper::StatusCode;

/// What the rest of the agent tells these pages. Called for every page, so it must be cheap.
pub trait Status: Send + Sync {
    /// Why the agent is not ready to serve, one line; `Ok` when it is.
    fn ready(&self) -> Result<(), String>;
    /// How many deployments are in each state (`product.md` words).
    fn deployments(&self) -> Vec<(&'static str, u64)>;
}

/// A deployment's numbers, as the gateway counted them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traffic {
    /// Its name.
    pub deployment: String,
    /// Requests since the agent's start.
    pub requests: u64,
    /// Of them failed.
    pub errors: u64,
    /// Time of all of them, seconds.
    pub seconds: f64,
    /// Requests without an answer yet.
    pub in_flight: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Replicas that serve.
    pub ready: u64,
    /// By tool.
    pub tools: Vec<ToolTraffic>,
}

/// A tool's numbers since the agent's start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolTraffic {
    /// As its server calls it.
    pub tool: String,
    /// Calls.
    pub calls: u64,
    /// Of them failed.
    pub errors: u64,
    /// Time of all of them, seconds.
    pub seconds: f64,
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
    let mut out = String::new();
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
    by("sigil_requests_total", "counter", "MCP requests passed on.", &|t| t.requests as f64);
    by("sigil_request_errors_total", "counter", "MCP requests that failed.", &|t| t.errors as f64);
    by("sigil_request_seconds_total", "counter", "Time of all MCP requests.", &|t| t.seconds);
    by("sigil_requests_in_flight", "gauge", "MCP requests without an answer yet.", &|t| t.in_flight as f64);
    by("sigil_sessions", "gauge", "Open MCP sessions.", &|t| t.sessions as f64);
    by("sigil_replicas_ready", "gauge", "Replicas that serve.", &|t| t.ready as f64);
    let mut by_tool = |name: &str, help: &str, value: &dyn Fn(&ToolTraffic) -> f64| {
        head(&mut out, name, "counter", help);
        for traffic in &facts.traffic {
            for tool in &traffic.tools {
                line(&mut out, name, &[("deployment", &traffic.deployment), ("tool", &tool.tool)], value(tool));
            }
        }
    };
    by_tool("sigil_tool_calls_total", "Tool calls passed on.", &|t| t.calls as f64);
    by_tool("sigil_tool_errors_total", "Tool calls that failed.", &|t| t.errors as f64);
    by_tool("sigil_tool_seconds_total", "Time of all tool calls.", &|t| t.seconds);
    head(&mut out, "sigil_gateway_refusals_total", "counter", "Requests that the gateway refused, by code.");
    for (code, count) in &facts.refusals {
        line(&mut out, "sigil_gateway_refusals_total", &[("code", code)], *count as f64);
    }
    head(&mut out, "sigil_gateway_connections", "gauge", "Connections of MCP clients.");
    line(&mut out, "sigil_gateway_connections", &[], facts.connections as f64);
    head(&mut out, "sigil_gateway_connections_refused_total", "counter", "Connections beyond the limit.");
    line(&mut out, "sigil_gateway_connections_refused_total", &[], facts.connections_refused as f64);
    head(&mut out, "sigil_gateway_messages_dropped_total", "counter", "Messages of servers that found no client.");
    line(&mut out, "sigil_gateway_messages_dropped_total", &[], facts.dropped as f64);
    head(&mut out, "sigil_gateway_recalled_total", "counter", "Lists answered for servers that were not ready.");
    line(&mut out, "sigil_gateway_recalled_total", &[], facts.recalled as f64);
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // writing to a String cannot fail
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    out.push_str(name);
    for (index, (label, text)) in labels.iter().enumerate() {
        let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
    }
    if !labels.is_empty() {
        out.push('}');
    }
    let _ = writeln!(out, " {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let mut facts = Facts {
            deployments: vec![("ready", 2)],
            traffic: vec![Traffic { deployment: "a\"b".into(), requests: 3, seconds: 0.25, ..Traffic::default() }],
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
            "sigil_requests_total{deployment=\"a\\\"b\"} 3\n",
            "sigil_request_seconds_total{deployment=\"a\\\"b\"} 0.25\n",
            "sigil_ready 0\n",
        ] {
            assert!(text.contains(wanted), "{wanted} in\n{text}");
        }
        let typed = text.lines().filter(|l| l.starts_with("# TYPE")).count();
        assert_eq!(typed, text.lines().filter(|l| l.starts_with("# HELP")).count());
    }
}
