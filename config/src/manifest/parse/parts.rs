//! The nested parts of a manifest, each from its node.

use super::{mount_path, schema, volume, volume_name};
use crate::egress::Rule;
use crate::flaw::Flaw;
use crate::manifest::{
    Health, InjectAs, Limits, PRESETS, Resources, Scaling, ScalingPolicy, ScalingWeights, Secret, SecretKind, TIERS,
    Tool, Volume, is_env_name,
};
use crate::node::{Node, Value, Walk};
use crate::size;

pub(super) fn tool(walk: &mut Walk, node: &Node) -> Option<Tool> {
    let f = walk.fields(node, "a tool", &["name", "description", "inputSchema"]);
    let tool = Tool {
        name: f.get("name").and_then(|n| walk.text(n, "a tool's name", false)).unwrap_or_default(),
        description: f.get("description").and_then(|n| walk.text(n, "description", false)).unwrap_or_default(),
        input_schema: f.get("inputSchema").and_then(|n| schema(walk, n, "inputSchema")),
    };
    if matches!(node.value, Value::Map(_)) && !f.contains_key("name") {
        walk.flaw(node, "the name of this tool is missing");
    }
    Some(tool)
}

pub(super) fn secret(walk: &mut Walk, node: &Node, http: bool) -> Option<Secret> {
    let mut secret = Secret {
        name: String::new(),
        description: String::new(),
        required: true,
        kind: SecretKind::String,
        inject: None,
        per: None,
    };
    let name = if matches!(node.value, Value::Text(_)) {
        Some(node)
    } else {
        let f = walk.fields(node, "a secret", &["name", "description", "required", "type", "inject", "per"]);
        if let Some(n) = f.get("description") {
            secret.description = walk.text(n, "description", false).unwrap_or_default();
        }
        if let Some(n) = f.get("required") {
            secret.required = walk.boolean(n, "required").unwrap_or(true);
        }
        if let Some(n) = f.get("type") {
            secret.kind = match walk.word(n, "type", &["string", "number", "boolean"]).as_deref() {
                Some("number") => SecretKind::Number,
                Some("boolean") => SecretKind::Boolean,
                _ => SecretKind::String,
            };
        }
        secret.inject = f.get("inject").and_then(|n| inject(walk, n));
        secret.per = f.get("per").and_then(|n| walk.word(n, "per", &["user"]));
        let environment = secret.inject.as_ref().is_none_or(|i| i.place == "environment");
        if let (true, true, Some(n)) = (http, environment, f.get("per").filter(|_| secret.per.is_some())) {
            let hint = "inject it as header, query or body, or use transport: stdio";
            walk.flaw_hint(n, "a secret of each user cannot be in the environment of an HTTP server", hint);
        }
        if matches!(node.value, Value::Map(_)) && !f.contains_key("name") {
            walk.flaw(node, "the name of this secret is missing");
        }
        f.get("name").copied()
    };
    if let Some(n) = name {
        secret.name = walk.text(n, "a secret's name", false).unwrap_or_default();
        if !secret.name.is_empty() && !is_env_name(&secret.name) {
            let hint = "a valid environment variable name, as in API_KEY";
            walk.flaw_hint(n, format!("a secret cannot be named '{}'", secret.name), hint);
        }
    }
    Some(secret)
}

pub(super) fn inject(walk: &mut Walk, node: &Node) -> Option<InjectAs> {
    const PLACES: &[&str] = &["environment", "header", "query", "body"];
    if matches!(node.value, Value::Text(_)) {
        return Some(InjectAs { place: walk.word(node, "inject", PLACES)?, name: None });
    }
    let f = walk.fields(node, "inject", &["as", "name"]);
    let name = f.get("name").and_then(|n| walk.text(n, "inject.name", false));
    let Some(place) = f.get("as") else {
        if matches!(node.value, Value::Map(_)) {
            walk.flaw_hint(node, "where to inject is missing", format!("add 'as': {}", PLACES.join(", ")));
        }
        return None;
    };
    let place = walk.word(place, "inject.as", PLACES)?;
    if let (Some(text), Some(n)) = (&name, f.get("name")) {
        let token =
            |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
        let fine = match place.as_str() {
            "environment" => is_env_name(text),
            "header" => token(text),
            _ => !text.is_empty(),
        };
        if !fine {
            walk.flaw(
                n,
                format!("'{text}' is no name of an {place} value")
                    .replace("an h", "a h")
                    .replace("an q", "a q")
                    .replace("an b", "a b"),
            );
        }
    }
    Some(InjectAs { place, name })
}

pub(super) fn resources(walk: &mut Walk, node: &Node) -> Option<Resources> {
    if matches!(node.value, Value::Text(_)) {
        return walk.word(node, "resources", &TIERS).map(Resources::Tier);
    }
    let f = walk.fields(node, "resources", &["tier", "cpu", "memory", "storage", "processes"]);
    let mut limits =
        Limits { tier: f.get("tier").and_then(|n| walk.word(n, "resources.tier", &TIERS)), ..Limits::default() };
    if let Some(n) = f.get("cpu") {
        let cores = match &n.value {
            Value::Int(i) => Some(*i as f64),
            Value::Float(f) => Some(*f),
            // thousandths of a core, as Kubernetes writes them
            Value::Text(t) => t.strip_suffix('m').and_then(|t| t.parse::<u32>().ok()).map(|m| f64::from(m) / 1000.0),
            _ => None,
        };
        match cores {
            Some(cores) if (0.01..=1024.0).contains(&cores) => limits.cpu = Some(cores),
            _ => walk.flaw_hint(n, "resources.cpu must be from 0.01 to 1024 cores", "as in 0.5 or 500m"),
        }
    }
    let mut sizes = |key: &str, least: u64| {
        let n = f.get(key)?;
        match &n.value {
            Value::Int(_) | Value::Text(_) => match size::bytes(&n.raw) {
                Some(bytes) if bytes >= least => return Some(serde_json::Value::from(bytes)),
                Some(_) => walk.flaw(n, format!("resources.{key} is less than {least} bytes")),
                None => {
                    walk.flaw_hint(n, format!("resources.{key} cannot be '{}'", n.raw), "as in 256Mi, 1G, or bytes")
                }
            },
            _ => walk.wrong(n, &format!("resources.{key}"), "a size such as 256Mi"),
        }
        None
    };
    limits.memory = sizes("memory", 16 << 20);
    limits.storage = sizes("storage", 1 << 20);
    let processes = f.get("processes").and_then(|n| walk.int(n, "resources.processes", 2, 65_536));
    limits.processes = processes.map(|n| n as u32);
    Some(Resources::Limits(limits))
}

/// What fields of a policy are called elsewhere.
const ALIASES: [(&str, &str); 9] = [
    ("targetCpu", "cpu"),
    ("targetMemory", "memory"),
    ("targetResponseTime", "responseTime"),
    ("targetErrorRate", "errorRate"),
    ("cooldownUp", "upCooldown"),
    ("cooldownDown", "downCooldown"),
    ("interval", "evaluateEvery"),
    ("minReplicas", "min"),
    ("maxReplicas", "max"),
];

const SCALING: [&str; 21] = [
    "preset",
    "min",
    "max",
    "cpu",
    "memory",
    "responseTime",
    "errorRate",
    "requestsUp",
    "requestsDown",
    "upCooldown",
    "downCooldown",
    "evaluateEvery",
    "stabilisation",
    "stepUp",
    "stepDown",
    "mode",
    "weights",
    "predictive",
    "costCap",
    "idleTimeout",
    "sleep",
];

pub(super) fn scaling(walk: &mut Walk, node: &Node) -> Option<Scaling> {
    if matches!(node.value, Value::Text(_)) {
        return walk.word(node, "scaling", &PRESETS).map(Scaling::Preset);
    }
    let known = renamed(walk, node);
    let f = walk.fields(&known, "scaling", &SCALING);
    let get = |key: &str| f.get(key).copied();
    let count = |walk: &mut Walk, key: &str, least| {
        get(key).and_then(|n| walk.int(n, &format!("scaling.{key}"), least, 10_000)).map(|n| n as u32)
    };
    let share = |walk: &mut Walk, key: &str, least, most| {
        get(key).and_then(|n| number(walk, n, &format!("scaling.{key}"), least, most))
    };
    let time = |walk: &mut Walk, key: &str, least, most| {
        get(key).and_then(|n| span(walk, n, &format!("scaling.{key}"), least, most))
    };
    let word = |walk: &mut Walk, key: &str, known: &[&str]| {
        get(key).and_then(|n| walk.word(n, &format!("scaling.{key}"), known))
    };
    let policy = ScalingPolicy {
        preset: word(walk, "preset", &PRESETS),
        min: count(walk, "min", 0),
        max: count(walk, "max", 1),
        cpu: share(walk, "cpu", 1.0, 100.0),
        memory: share(walk, "memory", 1.0, 100.0),
        response_time: get("responseTime").and_then(|n| millis(walk, n, "scaling.responseTime")),
        error_rate: share(walk, "errorRate", 0.0, 100.0),
        requests_up: share(walk, "requestsUp", 0.1, 1e9),
        requests_down: share(walk, "requestsDown", 0.0, 1e9),
        up_cooldown: time(walk, "upCooldown", 0, 86_400),
        down_cooldown: time(walk, "downCooldown", 0, 86_400),
        evaluate_every: time(walk, "evaluateEvery", 1, 3600),
        stabilisation: time(walk, "stabilisation", 0, 86_400),
        step_up: count(walk, "stepUp", 1),
        step_down: count(walk, "stepDown", 1),
        mode: word(walk, "mode", &["single", "weighted"]),
        weights: get("weights").and_then(|n| weights(walk, n)),
        predictive: get("predictive").and_then(|n| walk.boolean(n, "scaling.predictive")),
        cost_cap: share(walk, "costCap", 0.0, 1e9),
        idle_timeout: time(walk, "idleTimeout", 0, 2_592_000),
        sleep: word(walk, "sleep", &["auto", "paused", "stopped"]),
    };
    let mut against = |key: &str, wrong: bool, message: String| {
        if let Some(n) = get(key).filter(|_| wrong) {
            walk.flaw(n, message);
        }
    };
    if let (Some(min), Some(max)) = (policy.min, policy.max) {
        against("min", min > max, format!("scaling.min ({min}) is above scaling.max ({max})"));
    }
    if let (Some(down), Some(up)) = (policy.requests_down, policy.requests_up) {
        let message = format!("scaling.requestsDown ({down}) is not below scaling.requestsUp ({up})");
        against("requestsDown", down >= up, message);
    }
    let keeps = policy.min.is_some_and(|min| min > 0) && policy.idle_timeout.is_some_and(|idle| idle > 0);
    against(
        "idleTimeout",
        keeps,
        "scaling.idleTimeout needs scaling.min: 0; what keeps a replica does not sleep".into(),
    );
    let single = policy.mode.as_deref() == Some("single");
    against("weights", single, "scaling.weights count with mode: weighted only".into());
    matches!(node.value, Value::Map(_)).then_some(Scaling::Policy(Box::new(policy)))
}

/// The node without fields that are called otherwise here; each is a flaw that names the word to write.
fn renamed(walk: &mut Walk, node: &Node) -> Node {
    let mut known = node.clone();
    if let Value::Map(entries) = &mut known.value {
        entries.retain(|e| {
            let alias = ALIASES.iter().find(|(other, _)| *other == e.key);
            if let Some((_, ours)) = alias {
                let message = format!("unknown key '{}' in scaling", e.key);
                walk.flaws.push(Flaw::new(&e.at, message).hint(format!("write '{ours}'")));
            }
            alias.is_none()
        });
    }
    known
}

fn weights(walk: &mut Walk, node: &Node) -> Option<ScalingWeights> {
    let f = walk.fields(node, "scaling.weights", &["cpu", "memory", "responseTime", "errors"]);
    let mut weight = |key: &str| {
        f.get(key).and_then(|n| number(walk, n, &format!("scaling.weights.{key}"), 0.0, 1.0)).unwrap_or_default()
    };
    let weights = ScalingWeights {
        cpu: weight("cpu"),
        memory: weight("memory"),
        response_time: weight("responseTime"),
        errors: weight("errors"),
    };
    if weights == ScalingWeights::default() {
        let hint = "give at least one of cpu, memory, responseTime, errors";
        walk.flaw_hint(node, "scaling.weights are all 0", hint);
        return None;
    }
    Some(weights)
}

/// A number within bounds (both allowed).
fn number(walk: &mut Walk, node: &Node, what: &str, least: f64, most: f64) -> Option<f64> {
    let value = match node.value {
        Value::Int(i) => i as f64,
        Value::Float(f) => f,
        _ => {
            walk.wrong(node, what, "a number");
            return None;
        }
    };
    if (least..=most).contains(&value) {
        return Some(value);
    }
    walk.flaw(node, format!("{what} must be from {least} to {most}, not {value}"));
    None
}

/// Milliseconds: a number, or a text with its unit.
fn millis(walk: &mut Walk, node: &Node, what: &str) -> Option<u64> {
    let text = node.raw.trim();
    let ms = match text.strip_suffix("ms") {
        Some(number) => number.trim().parse().ok(),
        None if text.ends_with(['s', 'm']) => size::seconds(text).and_then(|s| s.checked_mul(1000)),
        None => text.parse().ok(),
    };
    let ms = ms.filter(|ms| (1..=600_000).contains(ms) && matches!(node.value, Value::Int(_) | Value::Text(_)));
    if ms.is_none() {
        let hint = "from 1 ms to 10 minutes, as in 500, 500ms or 2s";
        walk.flaw_hint(node, format!("{what} cannot be '{}'", node.raw), hint);
    }
    ms
}

/// Seconds within bounds (both allowed).
fn span(walk: &mut Walk, node: &Node, what: &str, least: u64, most: u64) -> Option<u64> {
    if !matches!(node.value, Value::Int(_) | Value::Text(_)) {
        walk.wrong(node, what, "seconds, or a text such as 2m");
        return None;
    }
    let seconds = size::seconds(&node.raw).filter(|s| (least..=most).contains(s));
    if seconds.is_none() {
        let hint = format!("from {least} s to {most} s, as in 30, 30s or 2m");
        walk.flaw_hint(node, format!("{what} cannot be '{}'", node.raw), hint);
    }
    seconds
}

pub(super) fn health(walk: &mut Walk, node: &Node) -> Health {
    let known = ["startTimeout", "requestTimeout", "every", "slow", "tool", "onFailure", "availability"];
    let f = walk.fields(node, "health", &known);
    let time = |walk: &mut Walk, key: &str| f.get(key).and_then(|n| duration(walk, n, &format!("health.{key}")));
    Health {
        start_timeout: time(walk, "startTimeout"),
        request_timeout: time(walk, "requestTimeout"),
        every: time(walk, "every"),
        slow: f.get("slow").and_then(|n| millis(walk, n, "health.slow")),
        tool: f.get("tool").and_then(|n| walk.text(n, "health.tool", false)),
        on_failure: f.get("onFailure").and_then(|n| walk.word(n, "health.onFailure", &["restart", "replace", "leave"])),
        availability: f.get("availability").and_then(|n| number(walk, n, "health.availability", 0.0, 100.0)),
    }
}

pub(super) fn duration(walk: &mut Walk, node: &Node, what: &str) -> Option<u64> {
    let seconds = match &node.value {
        Value::Int(_) | Value::Text(_) => size::seconds(&node.raw),
        _ => {
            walk.wrong(node, what, "seconds, or a text such as 2m");
            return None;
        }
    };
    match seconds {
        Some(s) if (1..=86_400).contains(&s) => Some(s),
        _ => {
            walk.flaw_hint(node, format!("{what} cannot be '{}'", node.raw), "from 1 s to 24 h, as in 30, 30s or 2m");
            None
        }
    }
}

pub(super) fn egress(walk: &mut Walk, node: &Node) -> Vec<String> {
    let hosts = walk.texts(node, "network.egress");
    for host in &hosts {
        if let Err(error) = host.parse::<Rule>() {
            walk.flaw_hint(node, format!("network.egress: {error}"), error.hint());
        }
    }
    hosts
}

pub(super) fn volume_node(walk: &mut Walk, node: &Node) -> Option<Volume> {
    if let Value::Text(text) = &node.value {
        return volume(text).map_err(|why| walk.flaw(node, why)).ok();
    }
    let f = walk.fields(node, "a volume", &["name", "path", "mode"]);
    let mut take = |key: &str, check: fn(&str) -> Result<(), String>| {
        let Some(n) = f.get(key) else {
            if matches!(node.value, Value::Map(_)) {
                walk.flaw(node, format!("the {key} of this volume is missing"));
            }
            return None;
        };
        let text = walk.text(n, &format!("a volume's {key}"), false)?;
        check(&text).map_err(|why| walk.flaw(n, why)).ok().map(|()| text)
    };
    let (name, path) = (take("name", volume_name), take("path", mount_path));
    let mode = f.get("mode").and_then(|n| walk.word(n, "a volume's mode", &["exclusive", "shared", "read-only"]));
    Some(Volume { name: name?, path: path?, mode })
}
