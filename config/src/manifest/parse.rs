//! Owns: `mcp.yaml` -> [`Manifest`], all flaws at once. May touch: nothing. Never: lets a path leave the tree.
//! Tested by: units here, `samples/mcp.yaml`.
//!
//! One walk over the tree of values, in the order of the documentation. It is long because the format has many keys,
//! not because anything here is involved.

use super::{
    Build, Health, InjectAs, Limits, Manifest, Network, PRESETS, Resources, Runtime, Scaling, ScalingPolicy, Secret,
    SecretKind, Sessions, TIERS, Tool, Volume, is_env_name,
};
use crate::flaw::Flaw;
use crate::node::{self, Node, Value, Walk};
use crate::size;

const KEYS: &[&str] = &[
    "name",
    "description",
    "version",
    "category",
    "tags",
    "runtime",
    "transport",
    "port",
    "path",
    "entrypoint",
    "command",
    "build",
    "env",
    "tools",
    "secrets",
    "config",
    "resources",
    "scaling",
    "health",
    "network",
    "volumes",
    "sessions",
];

/// Fields of a scaling policy that a later version reads: naming them is no spelling mistake.
const LATER: &[&str] = &[
    "targetCpu",
    "targetMemory",
    "targetResponseTime",
    "targetErrorRate",
    "requestsUp",
    "requestsDown",
    "cooldownUp",
    "cooldownDown",
    "idleTimeout",
    "interval",
    "weights",
    "cpu",
    "memory",
];

/// Reads a manifest of our own format. `file` is its name for messages.
///
/// # Errors
/// All flaws, in the order of the file.
pub fn parse(file: &str, text: &str) -> Result<Manifest, Vec<Flaw>> {
    let (root, flaws) = node::yaml(file, text);
    let syntax = !flaws.is_empty();
    let mut walk = Walk { flaws };
    let manifest = manifest(&mut walk, &root);
    if walk.flaws.is_empty() {
        return Ok(manifest);
    }
    if syntax {
        // what follows a syntax error was not read: what seems missing then is no flaw of the author's
        walk.flaws.retain(|f| !f.message.contains(" is missing"));
    }
    walk.flaws.sort_by_key(|f| (f.at.line, f.at.column));
    Err(walk.flaws)
}

/// The keys of a manifest, for documentation and tests.
pub fn camel_keys() -> &'static [&'static str] {
    KEYS
}

/// A path within the source tree in its shortest form (`./a//b/` -> `a/b`, the root is `.`).
///
/// # Errors
/// Why it is none: absolute, leaves the tree, or holds a NUL or backslash.
pub fn safe_path(path: &str) -> Result<String, &'static str> {
    if path.is_empty() {
        return Err("is empty");
    }
    if path.starts_with('/') || path.starts_with('~') {
        return Err("is absolute");
    }
    if path.contains(['\0', '\\', '\n', '\r']) {
        return Err("has a character that paths here do not have");
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            // also a '..' that would come back: with symlinks in the tree it need not
            ".." => return Err("leaves the source tree"),
            part => parts.push(part),
        }
    }
    Ok(if parts.is_empty() { ".".to_owned() } else { parts.join("/") })
}

/// A volume as flags and short manifests write it: `name:/path`, `name:/path:ro` (also `shared`, `exclusive`,
/// `read-only`, `rw`).
///
/// # Errors
/// What is wrong, one line.
pub fn volume(text: &str) -> Result<Volume, String> {
    let mut parts = text.splitn(3, ':');
    let (name, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mode = match parts.next() {
        None => None,
        Some("ro" | "read-only") => Some("read-only"),
        Some("rw" | "exclusive") => Some("exclusive"),
        Some("shared") => Some("shared"),
        Some(other) => return Err(format!("volume '{text}': the mode '{other}' is none of ro, rw, shared")),
    };
    volume_name(name).map_err(|why| format!("volume '{text}': {why}"))?;
    mount_path(path).map_err(|why| format!("volume '{text}': {why}"))?;
    Ok(Volume { name: name.to_owned(), path: path.to_owned(), mode: mode.map(str::to_owned) })
}

fn volume_name(name: &str) -> Result<(), String> {
    if name.starts_with('/') {
        let escapes = name.split('/').any(|p| p == "..");
        return if escapes { Err(format!("the host path '{name}' has a '..'")) } else { Ok(()) };
    }
    let fine = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b));
    if fine {
        Ok(())
    } else {
        Err(format!("'{name}' is no volume name (a-z, 0-9, '-', '_', '.'; at most 64) and no absolute host path"))
    }
}

fn mount_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("the path '{path}' is not absolute"));
    }
    if path.split('/').any(|p| p == "..") {
        return Err(format!("the path '{path}' has a '..'"));
    }
    let clean = path.trim_end_matches('/');
    if matches!(clean, "" | "/proc" | "/sys" | "/dev") || clean.starts_with("/proc/") || clean.starts_with("/sys/") {
        return Err(format!("the path '{path}' belongs to the container itself"));
    }
    Ok(())
}

fn manifest(walk: &mut Walk, root: &Node) -> Manifest {
    let mut m = Manifest::default();
    let fields = walk.fields(root, "a manifest", KEYS);
    let get = |key: &str| fields.get(key).copied();

    if let Some(n) = get("name") {
        m.name = walk.text(n, "name", false);
        let name = m.name.as_deref().unwrap_or("x");
        if name.len() > 200 || !name.contains(|c: char| c.is_ascii_alphanumeric()) || name.contains(char::is_control) {
            walk.flaw_hint(
                n,
                format!("name cannot be '{name}'"),
                "at least one letter or digit, at most 200 characters",
            );
        }
    }
    m.description = get("description").and_then(|n| walk.text(n, "description", false));
    m.version = get("version").and_then(|n| walk.text(n, "version", true));
    m.category = get("category").and_then(|n| walk.text(n, "category", false));
    m.tags = get("tags").map(|n| walk.texts(n, "tags")).unwrap_or_default();
    m.runtime = get("runtime").and_then(|n| runtime(walk, n));
    m.transport = get("transport").and_then(|n| walk.word(n, "transport", &["http", "sse", "stdio"]));
    m.port = get("port").and_then(|n| walk.int(n, "port", 1, 65_535)).map(|p| p as u16);
    if let Some(n) = get("path") {
        m.path = walk.text(n, "path", false).filter(|path| {
            let fine = path.starts_with('/') && !path.contains(|c: char| c.is_whitespace() || "?#".contains(c));
            if !fine {
                walk.flaw_hint(n, format!("path cannot be '{path}'"), "write the path of a URL, as in /mcp");
            }
            fine
        });
    }
    m.entrypoint = get("entrypoint").map(|n| words(walk, n, "entrypoint")).unwrap_or_default();
    if let (Some(n), Some(first)) = (get("entrypoint"), m.entrypoint.first_mut()) {
        match safe_path(first) {
            Ok(path) => *first = path,
            Err(why) => {
                let hint = "a path within the source tree; for a program of the image use 'command'";
                walk.flaw_hint(n, format!("entrypoint '{first}' {why}"), hint);
            }
        }
    }
    m.command = get("command").map(|n| words(walk, n, "command")).unwrap_or_default();
    m.build = get("build").map(|n| build(walk, n)).unwrap_or_default();
    if let Some(n) = get("env") {
        m.env = env(walk, n, "env");
    }
    m.tools = get("tools").map(|n| list(walk, n, "tools", tool)).unwrap_or_default();
    let http = matches!(m.transport.as_deref(), Some("http" | "sse"));
    if let Some(n) = get("secrets") {
        m.secrets = list(walk, n, "secrets", |walk, n| secret(walk, n, http));
        for (i, node) in n.items().iter().enumerate() {
            let name = |n: &Node| n.as_text().or_else(|| n.get("name")?.as_text()).map(str::to_owned);
            let Some(this) = name(node) else { continue };
            if n.items()[..i].iter().any(|n| name(n).as_ref() == Some(&this)) {
                walk.flaw(node, format!("the secret '{this}' is written twice"));
            }
            if m.env.contains_key(&this) {
                walk.flaw_hint(node, format!("'{this}' is a secret and in env"), "keep one of them");
            }
        }
    }
    if let Some(n) = get("config") {
        m.config = schema(walk, n, "config");
    }
    m.resources = get("resources").and_then(|n| resources(walk, n));
    m.scaling = get("scaling").and_then(|n| scaling(walk, n));
    if let Some(n) = get("health") {
        let f = walk.fields(n, "health", &["startTimeout", "requestTimeout"]);
        let mut time = |key: &str| f.get(key).and_then(|n| duration(walk, n, &format!("health.{key}")));
        m.health = Health { start_timeout: time("startTimeout"), request_timeout: time("requestTimeout") };
    }
    if let Some(n) = get("network") {
        let f = walk.fields(n, "network", &["mode", "egress"]);
        m.network = Network {
            mode: f.get("mode").and_then(|n| walk.word(n, "network.mode", &["link", "bridge"])),
            egress: f.get("egress").map(|n| egress(walk, n)).unwrap_or_default(),
        };
    }
    if let Some(n) = get("volumes") {
        m.volumes = list(walk, n, "volumes", volume_node);
        for (i, node) in n.items().iter().enumerate() {
            let path = |n: &Node| n.get("path").and_then(Node::as_text).map(|p| p.trim_end_matches('/').to_owned());
            if let Some(this) = path(node)
                && n.items()[..i].iter().any(|n| path(n).as_ref() == Some(&this))
            {
                walk.flaw(node, format!("two volumes are mounted at '{this}'"));
            }
        }
    }
    if let Some(n) = get("sessions") {
        let f = walk.fields(n, "sessions", &["max"]);
        let max = f.get("max").and_then(|n| walk.int(n, "sessions.max", 1, 100_000));
        m.sessions = Sessions { max: max.map(|n| n as u32) };
    }
    m
}

fn list<T>(walk: &mut Walk, node: &Node, what: &str, mut each: impl FnMut(&mut Walk, &Node) -> Option<T>) -> Vec<T> {
    if !matches!(node.value, Value::List(_)) {
        walk.wrong(node, what, "a list");
    }
    node.items().iter().filter_map(|n| each(walk, n)).collect()
}

/// A command line: a list, or a text that is split as a shell would, without expanding anything.
pub(crate) fn words(walk: &mut Walk, node: &Node, what: &str) -> Vec<String> {
    let words = match &node.value {
        Value::Text(text) => match shell_words::split(text) {
            Ok(words) => words,
            Err(_) => {
                walk.flaw_hint(node, format!("{what} has a quote without its end"), "write a list instead");
                return Vec::new();
            }
        },
        Value::List(items) => items.iter().filter_map(|n| walk.text(n, what, true)).collect(),
        _ => {
            walk.wrong(node, what, "a text or a list of texts");
            return Vec::new();
        }
    };
    if words.first().is_none_or(String::is_empty) {
        walk.flaw(node, format!("{what} is empty"));
    }
    if words.iter().any(|w| w.contains('\0')) {
        walk.flaw(node, format!("{what} has a NUL character"));
    }
    words
}

fn runtime(walk: &mut Walk, node: &Node) -> Option<Runtime> {
    let text = walk.text(node, "runtime", false)?;
    Some(match text.as_str() {
        "node" => Runtime::Node,
        "python" => Runtime::Python,
        "go" => Runtime::Go,
        "rust" => Runtime::Rust,
        "container" => Runtime::Container,
        "typescript" | "javascript" | "nodejs" => {
            walk.flaw_hint(node, format!("runtime cannot be '{text}'"), "write 'node'");
            return None;
        }
        _ => {
            walk.word(node, "runtime", &["node", "python", "go", "rust", "container"]);
            return None;
        }
    })
}

/// A path within the tree, in its shortest form.
pub(crate) fn tree_path(walk: &mut Walk, node: &Node, what: &str) -> Option<String> {
    let path = walk.text(node, what, false)?;
    match safe_path(&path) {
        Ok(path) => Some(path),
        Err(why) => {
            walk.flaw_hint(node, format!("{what} '{path}' {why}"), "write a path within the source tree");
            None
        }
    }
}

fn build(walk: &mut Walk, node: &Node) -> Build {
    let f = walk.fields(node, "build", &["dockerfile", "context", "args", "baseImage", "packages"]);
    let mut b = Build {
        dockerfile: f.get("dockerfile").and_then(|n| tree_path(walk, n, "build.dockerfile")),
        context: f.get("context").and_then(|n| tree_path(walk, n, "build.context")),
        args: f.get("args").map(|n| env(walk, n, "build.args")).unwrap_or_default(),
        ..Build::default()
    };
    if let Some(n) = f.get("baseImage") {
        b.base_image = walk.text(n, "build.baseImage", false).filter(|image| {
            let fine = !image.is_empty() && !image.starts_with('-') && !image.contains(char::is_whitespace);
            if !fine {
                walk.flaw(n, format!("build.baseImage cannot be '{image}'"));
            }
            fine
        });
    }
    if let Some(n) = f.get("packages") {
        b.packages = walk.texts(n, "build.packages");
        for package in &b.packages {
            // it becomes a word of a command line: nothing but the characters of Debian's package names and versions
            let fine = package.starts_with(|c: char| c.is_ascii_alphanumeric())
                && package.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.=:~".contains(&b));
            if !fine {
                walk.flaw(n, format!("build.packages: '{package}' is no name of a Debian package"));
            }
        }
    }
    b
}

fn env(walk: &mut Walk, node: &Node, what: &str) -> std::collections::BTreeMap<String, String> {
    for entry in node.entries() {
        if !is_env_name(&entry.key) {
            let message = format!("'{}' in {what} is no name of an environment variable", entry.key);
            walk.flaws.push(Flaw::new(&entry.at, message).hint("letters, digits and '_', no digit first"));
        }
    }
    walk.text_map(node, what)
}

/// A JSON Schema that compiles; references to other documents are refused, nothing here reads them.
pub(crate) fn schema(walk: &mut Walk, node: &Node, what: &str) -> Option<serde_json::Value> {
    if !matches!(node.value, Value::Map(_) | Value::Bool(_)) {
        walk.wrong(node, what, "a JSON Schema (a map)");
        return None;
    }
    let value = node.to_json();
    match jsonschema::validator_for(&value) {
        Ok(_) => Some(value),
        Err(error) => {
            let at = node.locate(&error.instance_path().to_string()).clone();
            walk.flaws.push(Flaw::new(&at, format!("{what} is no valid JSON Schema: {error}")));
            None
        }
    }
}

fn tool(walk: &mut Walk, node: &Node) -> Option<Tool> {
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

fn secret(walk: &mut Walk, node: &Node, http: bool) -> Option<Secret> {
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

fn inject(walk: &mut Walk, node: &Node) -> Option<InjectAs> {
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

fn resources(walk: &mut Walk, node: &Node) -> Option<Resources> {
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

fn scaling(walk: &mut Walk, node: &Node) -> Option<Scaling> {
    if matches!(node.value, Value::Text(_)) {
        return walk.word(node, "scaling", &PRESETS).map(Scaling::Preset);
    }
    // what a later version reads is named as such, apart from what is misspelt
    let mut known = node.clone();
    if let Value::Map(entries) = &mut known.value {
        entries.retain(|e| {
            let later = LATER.contains(&e.key.as_str());
            if later {
                walk.flaws.push(
                    Flaw::new(&e.at, format!("scaling.{} is not used by this version", e.key)).hint("leave it out"),
                );
            }
            !later
        });
    }
    let f = walk.fields(&known, "scaling", &["preset", "min", "max"]);
    let policy = ScalingPolicy {
        preset: f.get("preset").and_then(|n| walk.word(n, "scaling.preset", &PRESETS)),
        min: f.get("min").and_then(|n| walk.int(n, "scaling.min", 0, 10_000)).map(|n| n as u32),
        max: f.get("max").and_then(|n| walk.int(n, "scaling.max", 1, 10_000)).map(|n| n as u32),
    };
    if let (Some(min), Some(max)) = (policy.min, policy.max)
        && min > max
    {
        walk.flaw(f.get("min").copied().unwrap_or(node), format!("scaling.min ({min}) is above scaling.max ({max})"));
    }
    Some(Scaling::Policy(policy))
}

fn duration(walk: &mut Walk, node: &Node, what: &str) -> Option<u64> {
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

fn egress(walk: &mut Walk, node: &Node) -> Vec<String> {
    let hosts = walk.texts(node, "network.egress");
    for host in &hosts {
        if !is_egress(host) {
            let hint = "write host, *.host or host:port";
            walk.flaw_hint(node, format!("network.egress cannot hold '{host}'"), hint);
        }
    }
    hosts
}

fn is_egress(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().is_ok_and(|p| p > 0)),
        None => (text, true),
    };
    let host = host.strip_prefix("*.").unwrap_or(host);
    let label =
        |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    port && host.len() <= 253 && host.split('.').all(label)
}

fn volume_node(walk: &mut Walk, node: &Node) -> Option<Volume> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flaw::lines;

    fn flaws(text: &str) -> String {
        lines(&parse("mcp.yaml", text).unwrap_err())
    }

    #[test]
    fn a_full_manifest_is_read() {
        let m = parse(
            "mcp.yaml",
            r#"
name: "@acme/weather"
version: 1.10
runtime: node
transport: stdio
command: node dist/index.js --name "two words"
build: { base_image: "acme/node:20", packages: [git], args: { A: 1 } }
env: { PORT: 8080, DEBUG: true }
tools:
  - name: forecast
    input_schema: { type: object }
secrets:
  - API_KEY
  - { name: TOKEN, required: false, type: number, inject: { as: header, name: X-Token } }
config: { type: object, properties: { units: { enum: [c, f] } } }
resources: { tier: standard, cpu: 500m, memory: 256Mi }
scaling: { min: 0, max: 3 }
health: { startTimeout: 2m }
network: { mode: bridge, egress: ["*.example.org", "api.example.org:8443"] }
volumes: [{ name: data, path: /data }, "cache:/cache:ro"]
sessions: { max: 4 }
"#,
        )
        .unwrap();
        assert_eq!(m.version.as_deref(), Some("1.10"));
        assert_eq!(m.command, ["node", "dist/index.js", "--name", "two words"]);
        assert_eq!(m.build.base_image.as_deref(), Some("acme/node:20"));
        assert_eq!(m.env["PORT"], "8080");
        assert!(m.tools[0].input_schema.is_some());
        assert_eq!((m.secrets[0].name.as_str(), m.secrets[0].required), ("API_KEY", true));
        assert_eq!(m.secrets[1].inject.as_ref().unwrap().place, "header");
        let Some(Resources::Limits(limits)) = m.resources else { panic!() };
        assert_eq!((limits.cpu, limits.memory), (Some(0.5), Some(serde_json::json!(256 << 20))));
        assert_eq!(m.health.start_timeout, Some(120));
        assert_eq!(m.volumes[1].mode.as_deref(), Some("read-only"));
        assert_eq!(m.sessions.max, Some(4));
        assert_eq!(parse("mcp.yaml", "").unwrap(), Manifest::default());
    }

    #[test]
    fn all_flaws_are_named_at_once() {
        insta::assert_snapshot!(flaws(
            r#"naem: x
name: "--"
version: [1]
runtime: typescript
transport: stdo
port: 0
path: mcp
entrypoint: ../server.py
command: node "dist
build:
  dockerfile: /etc/passwd
  context: a/../../b
  baseimage: x
  packages: ["git; rm -rf /"]
env:
  9LIVES: "1"
  OK: [1]
tools:
  - description: nameless
  - name: t
    inputSchema: { type: objekt }
secrets:
  - name: my-key
  - name: A
    type: text
    inject: { as: cookie }
  - name: A
    per: everyone
    required: yes
config:
  type: object
  properties:
    x: { type: strnig }
resources:
  tier: huge
  cpu: 0
  memory: 12
  storage: big
scaling: { min: 5, max: 2, targetCpu: 3, mx: 1 }
health: { startTimeout: never }
network: { mode: host, egress: ["http://x"] }
volumes:
  - { name: Data, path: data }
  - { name: d, path: /a/../b, mode: rw }
  - { name: ../x, path: /proc }
sessions: { max: 0 }
"#
        ));
    }

    #[test]
    fn tiers_presets_and_bad_shapes() {
        assert_eq!(
            flaws("resources: enormous\nscaling: wide\ntools: x\nvolumes: 3\nhealth: []\n"),
            "mcp.yaml:1:12: resources cannot be 'enormous'; known: micro, router, standard, processor, compute\n\
             mcp.yaml:2:10: scaling cannot be 'wide'; known: router, standard, processor, compute\n\
             mcp.yaml:3:8: tools must be a list, this is a text\n\
             mcp.yaml:4:10: volumes must be a list, this is a number\n\
             mcp.yaml:5:9: health must be a map, this is a list"
        );
        assert_eq!(flaws("- a\n"), "mcp.yaml:1:1: a manifest must be a map, this is a list");
        assert!(flaws("name: [a\n").starts_with("mcp.yaml:"));
        assert!(
            flaws("transport: http\nsecrets: [{name: A, per: user}]\n")
                .contains("mcp.yaml:2:26: a secret of each user"),
        );
    }

    #[test]
    fn paths_stay_in_the_tree() {
        for (path, expected) in [("./a//b/", Ok("a/b")), (".", Ok(".")), ("a/./b", Ok("a/b")), ("..a", Ok("..a"))] {
            assert_eq!(safe_path(path).as_deref(), expected.as_ref().map(|s: &&str| *s));
        }
        for path in ["", "/", "/a", "..", "a/..", "a/../..", "~/x", "a\\..\\b", "a\nb"] {
            assert!(safe_path(path).is_err(), "{path}");
        }
    }

    #[test]
    fn volumes_of_flags() {
        assert_eq!(volume("d:/data:ro").unwrap().mode.as_deref(), Some("read-only"));
        assert_eq!(volume("/srv/x:/data").unwrap().name, "/srv/x");
        for text in ["d", "d:data", "d:/data:x", ":/data", "D:/data", "d:/", "d:/a/../b", "/a/../b:/x"] {
            assert!(volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_sample_parses_and_names_every_key() {
        let sample = include_str!("../../samples/mcp.yaml");
        parse("mcp.yaml", sample).map_err(|f| lines(&f)).unwrap();
        let (tree, _) = node::yaml("mcp.yaml", sample);
        let all: Vec<&str> = KEYS
            .iter()
            .copied()
            .chain([
                "build.dockerfile",
                "build.context",
                "build.args",
                "build.baseImage",
                "build.packages",
                "resources.tier",
                "resources.cpu",
                "resources.memory",
                "resources.storage",
                "resources.processes",
                "scaling.preset",
                "scaling.min",
                "scaling.max",
                "health.startTimeout",
                "health.requestTimeout",
                "network.mode",
                "network.egress",
                "sessions.max",
            ])
            .collect();
        for key in all {
            assert!(tree.at_path(key).is_some(), "the sample lacks {key}");
        }
        // the structs have no key that the walk does not read
        let json = serde_json::to_value(Manifest::default()).unwrap();
        let mut fields: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut keys = KEYS.to_vec();
        fields.sort_unstable();
        keys.sort_unstable();
        assert_eq!(fields, keys);
    }
}
