//! Owns: `mcp.yaml` -> [`Manifest`], all flaws at once. May touch: nothing. Never: lets a path leave the tree.
//! Tested by: units here, `samples/mcp.yaml`.
//!
//! One walk over the tree of values, in the order of the documentation. It is long because the format has many keys,
//! not because anything here is involved.

mod parts;

use super::{Build, Manifest, Network, Runtime, Scaling, Sessions, Volume, is_env_name};
use crate::flaw::Flaw;
use crate::node::{self, Node, Value, Walk};
use parts::{egress, health, resources, scaling, secret, tool, volume_node};

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

/// Reads a scaling policy by itself: what `scaling` of a manifest holds, a preset's name or fields.
///
/// # Errors
/// All flaws, in the order of the file.
pub fn scaling_policy(file: &str, text: &str) -> Result<Scaling, Vec<Flaw>> {
    let (root, flaws) = node::yaml(file, text);
    let mut walk = Walk { flaws };
    let read = scaling(&mut walk, &root);
    walk.flaws.sort_by_key(|f| (f.at.line, f.at.column));
    match read {
        Some(policy) if walk.flaws.is_empty() => Ok(policy),
        _ => Err(walk.flaws),
    }
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
        m.health = health(walk, n);
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
        let f = walk.fields(n, "sessions", &["max", "config", "replayable", "example"]);
        let max = f.get("max").and_then(|n| walk.int(n, "sessions.max", 1, 100_000));
        let config = f.get("config").and_then(|n| walk.boolean(n, "sessions.config")).unwrap_or(false);
        if let (true, Some(n)) = (config && m.config.is_none(), f.get("config")) {
            walk.flaw_hint(n, "sessions.config needs a schema", "say with `config` which values there are");
        }
        m.sessions = Sessions {
            max: max.map(|n| n as u32),
            config,
            replayable: f.get("replayable").and_then(|n| walk.boolean(n, "sessions.replayable")).unwrap_or(false),
            example: f.get("example").map(|n| n.to_json()),
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flaw::lines;
    use crate::manifest::Resources;

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
scaling: { min: 0, max: 3, cpu: 50, response_time: 2s, weights: { cpu: 1 }, mode: weighted, idleTimeout: 10m }
health: { startTimeout: 2m }
network: { mode: bridge, egress: ["*.example.org", "api.example.org:8443"] }
volumes: [{ name: data, path: /data }, "cache:/cache:ro"]
sessions: { max: 4, replayable: true }
"#,
        )
        .unwrap();
        let Some(Scaling::Policy(policy)) = &m.scaling else { panic!() };
        assert_eq!((policy.cpu, policy.response_time, policy.idle_timeout), (Some(50.0), Some(2000), Some(600)));
        assert_eq!(policy.weights.map(|w| (w.cpu, w.memory)), Some((1.0, 0.0)));
        assert!(m.sessions.replayable);
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
    fn a_scaling_policy_is_checked_as_a_whole() {
        let flaws = |text: &str| lines(&scaling_policy("policy.yaml", text).unwrap_err());
        assert_eq!(
            flaws(
                "preset: wide\nmax: 0\ncpu: 0\nmemory: 120\nresponseTime: soon\nerrorRate: -1\nrequestsUp: 10\n\
                 requestsDown: 10\nupCooldown: 2d\nevaluateEvery: 0\nstepUp: 0\nmode: both\n\
                 weights: {cpu: 0, errors: 0}\npredictive: 1\ncostCap: x\nmin: 1\nidleTimeout: 60\nsleep: deep\n"
            ),
            "policy.yaml:1:9: scaling.preset cannot be 'wide'; known: router, standard, processor, compute\n\
             policy.yaml:2:6: scaling.max must be from 1 to 10000, not 0\n\
             policy.yaml:3:6: scaling.cpu must be from 1 to 100, not 0\n\
             policy.yaml:4:9: scaling.memory must be from 1 to 100, not 120\n\
             policy.yaml:5:15: scaling.responseTime cannot be 'soon'; from 1 ms to 10 minutes, as in 500, 500ms or 2s\n\
             policy.yaml:6:12: scaling.errorRate must be from 0 to 100, not -1\n\
             policy.yaml:8:15: scaling.requestsDown (10) is not below scaling.requestsUp (10)\n\
             policy.yaml:9:13: scaling.upCooldown cannot be '2d'; from 0 s to 86400 s, as in 30, 30s or 2m\n\
             policy.yaml:10:16: scaling.evaluateEvery cannot be '0'; from 1 s to 3600 s, as in 30, 30s or 2m\n\
             policy.yaml:11:9: scaling.stepUp must be from 1 to 10000, not 0\n\
             policy.yaml:12:7: scaling.mode cannot be 'both'; known: single, weighted\n\
             policy.yaml:13:10: scaling.weights are all 0; give at least one of cpu, memory, responseTime, errors\n\
             policy.yaml:14:13: scaling.predictive must be true or false, this is a number\n\
             policy.yaml:15:10: scaling.costCap must be a number, this is a text\n\
             policy.yaml:17:14: scaling.idleTimeout needs scaling.min: 0; what keeps a replica does not sleep\n\
             policy.yaml:18:8: scaling.sleep cannot be 'deep'; known: auto, paused, stopped"
        );
        assert_eq!(
            flaws("targetCpu: 70\nweights: {cpu: 1}\nmode: single\n"),
            "policy.yaml:1:1: unknown key 'targetCpu' in scaling; write 'cpu'\n\
             policy.yaml:2:10: scaling.weights count with mode: weighted only"
        );
        assert_eq!(scaling_policy("p", "compute").unwrap(), Scaling::Preset("compute".into()));
        assert!(scaling_policy("p", "min: [").is_err());
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
                "scaling.cpu",
                "scaling.memory",
                "scaling.responseTime",
                "scaling.errorRate",
                "scaling.requestsUp",
                "scaling.requestsDown",
                "scaling.upCooldown",
                "scaling.downCooldown",
                "scaling.evaluateEvery",
                "scaling.stabilisation",
                "scaling.stepUp",
                "scaling.stepDown",
                "scaling.mode",
                "scaling.weights.cpu",
                "scaling.weights.memory",
                "scaling.weights.responseTime",
                "scaling.weights.errors",
                "scaling.predictive",
                "scaling.costCap",
                "scaling.idleTimeout",
                "scaling.sleep",
                "health.startTimeout",
                "health.requestTimeout",
                "health.every",
                "health.slow",
                "health.tool",
                "health.onFailure",
                "health.availability",
                "network.mode",
                "network.egress",
                "sessions.max",
                "sessions.config",
                "sessions.replayable",
                "sessions.example",
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
