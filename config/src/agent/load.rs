//! Owns: layers and checks of the agent's configuration. May touch: the configuration file, and whether files that it
//! names can be read. Never: stops at the first flaw. Tested by: units here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::keys::{KEYS, Key, Kind, json, pointer};
use super::{AgentConfig, diff};
use crate::egress::{Ports, Rule};
use crate::flaw::{At, Flaw, did_you_mean, lines};
use crate::folders;
use crate::node::{self, Entry, Node, Value};
use crate::size;

/// A value given by a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The flag as a person writes it (`--data-dir`).
    pub flag: String,
    /// The key's path (`data_dir`).
    pub path: String,
    /// The value, written as in the environment.
    pub value: String,
}

impl Override {
    /// An override of `path` by `flag`.
    pub fn new(flag: &str, path: &str, value: impl Into<String>) -> Self {
        Self { flag: flag.to_owned(), path: path.to_owned(), value: value.into() }
    }
}

/// A configuration that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The values.
    pub config: AgentConfig,
    /// The file read, if any.
    pub file: Option<PathBuf>,
    /// Worth a second look, but no reason to refuse.
    pub warnings: Vec<Flaw>,
    /// Where each key that is not at its default was set.
    pub origins: BTreeMap<&'static str, At>,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", lines(.flaws))]
pub struct ConfigErrors {
    /// All flaws, never empty.
    pub flaws: Vec<Flaw>,
    /// Warnings found on the way.
    pub warnings: Vec<Flaw>,
}

impl ConfigErrors {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        "mend the lines named, then look again with 'sigil-agent config check'"
    }
}

/// Where the configuration is looked for without `--config`: `/etc/sigil/agent.toml` as root, else
/// `$XDG_CONFIG_HOME/sigil/agent.toml` (`~/.config` when unset).
pub fn default_path() -> PathBuf {
    if is_root() {
        return PathBuf::from("/etc/sigil/agent.toml");
    }
    folders::config().join("sigil/agent.toml")
}

/// The file to read: the one asked for, whether it exists or not, else the default one if it exists.
pub fn find(asked: Option<PathBuf>) -> Option<PathBuf> {
    asked.or_else(|| Some(default_path()).filter(|p| p.exists()))
}

/// Where state lives: the configured directory, else `/var/lib/sigil` as root, else `$XDG_STATE_HOME/sigil`
/// (`~/.local/state` when unset).
pub fn data_dir(config: &AgentConfig) -> PathBuf {
    match &config.data_dir {
        Some(dir) => dir.clone(),
        None if is_root() => PathBuf::from("/var/lib/sigil"),
        None => folders::state().join("sigil"),
    }
}

/// Agents run on Linux; elsewhere only their configuration is read.
#[cfg(not(unix))]
fn is_root() -> bool {
    false
}

#[cfg(unix)]
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // the owner of our own entry in /proc is our effective uid, without a system call crate
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Reads all layers: default < file < environment < flags. `env` may be the whole environment.
///
/// # Errors
/// All flaws of all layers at once, and a file that cannot be read.
pub fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    flags: &[Override],
) -> Result<Loaded, ConfigErrors> {
    let text = match file {
        None => None,
        Some(path) => match std::fs::read_to_string(path) {
            Ok(text) => Some((path.display().to_string(), text)),
            Err(error) => {
                let flaw = Flaw::new(&At::whole(path.display().to_string()), format!("cannot be read: {error}"));
                return Err(ConfigErrors { flaws: vec![flaw], warnings: Vec::new() });
            }
        },
    };
    let mut loaded = parse(text.as_ref().map(|(name, text)| (name.as_str(), text.as_str())), env, flags)?;
    loaded.file = file.map(Path::to_owned);
    let mut flaws = Vec::new();
    let values = json(&loaded.config);
    for key in KEYS.iter().filter(|k| k.kind == Kind::File) {
        let (Some(Json::String(path)), Some(at)) = (values.pointer(&pointer(key.path)), loaded.origins.get(key.path))
        else {
            continue;
        };
        if let Err(error) = std::fs::File::open(path) {
            flaws.push(Flaw::new(at, format!("{}: '{path}' cannot be read: {error}", key.path)));
        }
    }
    if flaws.is_empty() { Ok(loaded) } else { Err(ConfigErrors { flaws, warnings: loaded.warnings }) }
}

/// [`load`] without touching a file: `file` is its name and text. Files that it names are not looked at.
///
/// # Errors
/// All flaws of all layers at once.
pub fn parse(
    file: Option<(&str, &str)>,
    env: impl IntoIterator<Item = (String, String)>,
    flags: &[Override],
) -> Result<Loaded, ConfigErrors> {
    let mut layers = Layers { values: json(&AgentConfig::default()), ..Layers::default() };
    if let Some((name, text)) = file {
        layers.file(name, text);
    }
    let known = |name: &str| name.starts_with("SIGIL_") || name.starts_with("OTEL_");
    let mut env: Vec<_> = env.into_iter().filter(|(name, _)| known(name)).collect();
    env.sort();
    // our own names come later, and count
    for (name, value) in env {
        if name.starts_with("OTEL_") {
            layers.otel(&name, &value);
        } else {
            layers.env(&name, &value);
        }
    }
    for flag in flags {
        let at = At::whole(flag.flag.as_str());
        match KEYS.iter().find(|k| k.path == flag.path) {
            Some(key) => layers.outside(key, None, &at, &flag.value),
            None => layers.flaws.push(Flaw::new(&at, format!("sets no key ('{}')", flag.path))),
        }
    }
    layers.finish()
}

#[derive(Default)]
struct Layers {
    values: Json,
    origins: BTreeMap<&'static str, At>,
    flaws: Vec<Flaw>,
    warnings: Vec<Flaw>,
}

impl Layers {
    fn file(&mut self, name: &str, text: &str) {
        let (root, flaws) = node::toml(name, text);
        self.flaws.extend(flaws);
        self.table(&root, "");
    }

    /// Takes every known key of a section; a section is known when a key begins with it.
    fn table(&mut self, table: &Node, prefix: &str) {
        for Entry { key: name, at, value } in table.entries() {
            let path = format!("{prefix}{name}");
            if let Some(key) = KEYS.iter().find(|k| k.path == path) {
                self.set(key, value);
                continue;
            }
            let section = format!("{path}.");
            if KEYS.iter().any(|k| k.path.starts_with(&section)) {
                match value.value {
                    Value::Map(_) => self.table(value, &section),
                    _ => self.wrong(value, &path, "a section"),
                }
                continue;
            }
            let siblings: BTreeSet<&str> = KEYS
                .iter()
                .filter_map(|k| k.path.strip_prefix(prefix))
                .map(|rest| rest.split('.').next().unwrap_or(rest))
                .collect();
            let mut hint = did_you_mean(name, siblings);
            if !hint.starts_with("did")
                && let Some(other) = KEYS.iter().find(|k| k.path.rsplit('.').next() == Some(name.as_str()))
            {
                hint = format!("did you mean '{}'?", other.path);
            }
            self.flaws.push(Flaw::new(at, format!("unknown key '{path}'")).hint(hint));
        }
    }

    fn env(&mut self, name: &str, value: &str) {
        // these two belong to the console
        if matches!(name, "SIGIL_HOST" | "SIGIL_TOKEN") {
            return;
        }
        let at = At::whole(name);
        let (base, entry) = match name.split_once("__") {
            Some((base, entry)) => (base, Some(entry)),
            None => (name, None),
        };
        let key = KEYS.iter().find(|k| variable(k.path) == base);
        match (key, entry) {
            (Some(key), _) if entry.is_some() == key.kind.is_map() => {
                self.outside(key, entry, &at, value);
            }
            (Some(key), None) => {
                let message = format!("'{}' is a map", key.path);
                self.flaws.push(Flaw::new(&at, message).hint(format!("set one of its entries with {base}__NAME")));
            }
            _ => {
                let names: Vec<String> = KEYS.iter().map(|k| variable(k.path)).collect();
                let hint = did_you_mean(name, names.iter().map(String::as_str));
                self.warnings.push(Flaw::new(&at, "names no key of the configuration; ignored").hint(hint));
            }
        }
    }

    /// Takes the names that OpenTelemetry gives to what is configured here (opentelemetry.io/docs/specs/otel/configuration,
    /// Environment variables). Others of its names are not ours.
    fn otel(&mut self, name: &str, value: &str) {
        let value = value.trim();
        // an empty one counts as if it were not there, by the same page
        if value.is_empty() {
            return;
        }
        let at = At::whole(name);
        let mut set = |path: &str, entry: Option<&str>, value: &str| {
            if let Some(key) = KEYS.iter().find(|k| k.path == path) {
                self.outside(key, entry, &at, value);
            }
        };
        match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => set("telemetry.otlp_endpoint", None, value),
            "OTEL_SERVICE_NAME" => set("telemetry.service_name", None, value),
            "OTEL_METRICS_EXPORTER" if value == "none" => set("telemetry.metrics_seconds", None, "0"),
            "OTEL_METRIC_EXPORT_INTERVAL" => {
                // milliseconds there; what is none is told as what it is
                let seconds = value.parse::<u64>().map(|ms| ms.div_ceil(1000).to_string());
                set("telemetry.metrics_seconds", None, seconds.as_deref().unwrap_or(value));
            }
            "OTEL_EXPORTER_OTLP_HEADERS" => {
                for pair in value.split(',').filter(|pair| !pair.trim().is_empty()) {
                    let (header, text) = pair.split_once('=').unwrap_or((pair, ""));
                    set("telemetry.headers", Some(header.trim()), &unescaped(text.trim()));
                }
            }
            _ => {}
        }
    }

    /// Takes a value written as text outside the file.
    fn outside(&mut self, key: &'static Key, entry: Option<&str>, at: &At, text: &str) {
        let plain = Node::text(at, text);
        let scalar = |value: Value| Node { at: at.clone(), raw: text.to_owned(), value };
        let node = match key.kind {
            Kind::Int(..) => scalar(text.trim().parse().map_or(plain.value, Value::Int)),
            Kind::Cores(..) | Kind::Share | Kind::Rate => scalar(text.trim().parse().map_or(plain.value, Value::Float)),
            Kind::Bool => match text.trim() {
                "true" | "1" => scalar(Value::Bool(true)),
                "false" | "0" => scalar(Value::Bool(false)),
                _ => plain,
            },
            Kind::Texts | Kind::Hosts | Kind::Words(_) | Kind::Origins | Kind::Paths => {
                let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
                scalar(Value::List(parts.map(|p| Node::text(at, p)).collect()))
            }
            Kind::Ports => {
                let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
                let port = |p: &str| match p.parse() {
                    Ok(i) => scalar(Value::Int(i)),
                    Err(_) => Node::text(at, p),
                };
                scalar(Value::List(parts.map(port).collect()))
            }
            Kind::MapOf(_) | Kind::Map | Kind::Named | Kind::NamedUrl | Kind::NamedWord(_) | Kind::Headers => {
                let name = entry.unwrap_or_default();
                let name = match key.kind {
                    Kind::Map | Kind::Named | Kind::NamedWord(_) => name.to_owned(),
                    // variables have no '-', headers no '_'
                    Kind::Headers => name.to_lowercase().replace('_', "-"),
                    _ => name.to_lowercase(),
                };
                let mut node = Node { at: at.clone(), raw: String::new(), value: Value::Map(Vec::new()) };
                // one variable sets one entry; the others stay
                if let Some(Json::Object(map)) = self.values.pointer(&pointer(key.path))
                    && let Value::Map(entries) = &mut node.value
                {
                    for (key, value) in map.iter().filter(|(k, _)| **k != name) {
                        let value = Node::text(at, value.as_str().unwrap_or_default());
                        entries.push(Entry { key: key.clone(), at: at.clone(), value });
                    }
                    entries.push(Entry { key: name, at: at.clone(), value: plain });
                }
                node
            }
            _ => plain,
        };
        self.set(key, &node);
    }

    fn wrong(&mut self, node: &Node, path: &str, wanted: &str) {
        self.flaws.push(Flaw::new(&node.at, format!("{path} must be {wanted}, this is {}", node.kind())));
    }

    fn set(&mut self, key: &'static Key, node: &Node) {
        let Some(value) = self.checked(key, node) else { return };
        if let Some(slot) = self.values.pointer_mut(&pointer(key.path)) {
            *slot = value;
        }
        self.origins.insert(key.path, node.at.clone());
    }

    fn checked(&mut self, key: &Key, node: &Node) -> Option<Json> {
        let path = key.path;
        match key.kind {
            Kind::Text
            | Kind::Word(_)
            | Kind::Path
            | Kind::File
            | Kind::Listen { .. }
            | Kind::Url
            | Kind::HiddenUrl
            | Kind::Engine
            | Kind::Level => {
                let Some(text) = node.as_text() else {
                    self.wrong(node, path, "a text");
                    return None;
                };
                self.checked_text(key, node, text)
            }
            Kind::Int(least, most) => match node.value {
                Value::Int(i) => self.within(path, node, u64::try_from(i).ok(), least, most),
                _ => {
                    self.wrong(node, path, "a whole number");
                    None
                }
            },
            Kind::Bytes(least, most) => {
                let size = match &node.value {
                    Value::Int(i) => u64::try_from(*i).ok(),
                    Value::Text(text) => match size::bytes(text) {
                        Some(bytes) => Some(bytes),
                        None => {
                            let message = format!("{path} cannot be '{text}'");
                            self.flaws.push(Flaw::new(&node.at, message).hint("write bytes, or a size such as 16MiB"));
                            return None;
                        }
                    },
                    _ => {
                        self.wrong(node, path, "a size (bytes, or a text such as \"16MiB\")");
                        return None;
                    }
                };
                self.within(path, node, size, least, most)
            }
            Kind::Cores(least, most) => self.number(path, node, (least, most), "a number of cores", " cores"),
            Kind::Share => self.number(path, node, (0.0, 1.0), "a number", ""),
            Kind::Rate => self.number(path, node, (0.0, 1e12), "a number", ""),
            Kind::Bool => match node.value {
                Value::Bool(b) => Some(Json::from(b)),
                _ => {
                    self.wrong(node, path, "true or false");
                    None
                }
            },
            Kind::Texts | Kind::Hosts | Kind::Words(_) | Kind::Origins | Kind::Paths | Kind::Ports => {
                if !matches!(node.value, Value::List(_)) {
                    self.wrong(node, path, "a list");
                    return None;
                }
                let members: Vec<Option<Json>> = node.items().iter().map(|n| self.member(key, n)).collect();
                members.into_iter().collect::<Option<Vec<_>>>().map(Json::Array)
            }
            Kind::MapOf(_) | Kind::Map | Kind::Named | Kind::NamedUrl | Kind::NamedWord(_) | Kind::Headers => {
                self.map(key, node)
            }
        }
    }

    fn number(&mut self, path: &str, node: &Node, (least, most): (f64, f64), what: &str, unit: &str) -> Option<Json> {
        let number = match node.value {
            Value::Int(i) => i as f64,
            Value::Float(f) => f,
            _ => {
                self.wrong(node, path, what);
                return None;
            }
        };
        if !(least..=most).contains(&number) {
            let message = format!("{path} must be from {least} to {most}{unit}, not {}", node.raw);
            self.flaws.push(Flaw::new(&node.at, message));
            return None;
        }
        Some(Json::from(number))
    }

    fn within(&mut self, path: &str, node: &Node, value: Option<u64>, least: u64, most: u64) -> Option<Json> {
        match value {
            Some(n) if (least..=most).contains(&n) => Some(Json::from(n)),
            _ => {
                let message = format!("{path} must be from {least} to {most}, not {}", node.raw);
                self.flaws.push(Flaw::new(&node.at, message));
                None
            }
        }
    }

    fn checked_text(&mut self, key: &Key, node: &Node, text: &str) -> Option<Json> {
        let path = key.path;
        let mut bad = |hint: String| {
            self.flaws.push(Flaw::new(&node.at, format!("{path} cannot be '{}'", mask(text))).hint(hint));
            None
        };
        // empty is the default everywhere but where a default is written out
        if text.is_empty() {
            return match key.kind {
                Kind::Path | Kind::File => Some(Json::Null),
                Kind::Word(known) if !known.contains(&"") => bad(format!("known: {}", known.join(", "))),
                Kind::Listen { plain: true } => bad("write address:port, as in 127.0.0.1:7450".into()),
                Kind::Level => bad("write a level, as in info".into()),
                _ => Some(Json::from("")),
            };
        }
        match key.kind {
            Kind::Text if key.path == "gateway.domain" && !domain(text) => {
                return bad("write a domain, such as mcp.example.org".into());
            }
            Kind::Word(known) if !known.contains(&text) => {
                return bad(format!("known: {}", known.join(", ")));
            }
            // a relative path in a file means another place for every way of starting the agent
            Kind::Path | Kind::File if node.at.line > 0 && !text.starts_with('/') => {
                return bad("write an absolute path".into());
            }
            Kind::Listen { plain } => {
                let Some(loopback) = listen(text) else {
                    return bad("write address:port, as in 127.0.0.1:7450".into());
                };
                if plain && !loopback {
                    let message = format!("{path}: others on the network reach '{text}' without encryption");
                    let hint = "put a TLS proxy in front, or keep 127.0.0.1";
                    self.warnings.push(Flaw::new(&node.at, message).hint(hint));
                }
            }
            Kind::Url if !is_url(text) => return bad("write an http:// or https:// URL".into()),
            Kind::HiddenUrl if !text.starts_with("file:/") && !is_url(text) => {
                // never with the text: it may be the secret
                let hint = "write an http:// or https:// URL, or file: and the path of a file that holds it";
                self.flaws.push(Flaw::new(&node.at, format!("{path} is no address")).hint(hint));
                return None;
            }
            Kind::Engine if !text.strip_prefix("unix://").is_some_and(|p| p.starts_with('/') && p.len() > 1) => {
                return bad("the engine is on this host: write unix:///path/to/docker.sock".into());
            }
            Kind::Level if !level(text) => {
                return bad("write error, warn, info, debug, trace or off, or target=level, comma separated".into());
            }
            _ => {}
        }
        Some(Json::from(text))
    }

    fn member(&mut self, key: &Key, node: &Node) -> Option<Json> {
        let path = key.path;
        if key.kind == Kind::Ports {
            return match node.value {
                Value::Int(i) => self.within(path, node, u64::try_from(i).ok(), 1, 65_535),
                _ => {
                    self.wrong(node, path, "a list of port numbers");
                    None
                }
            };
        }
        let Some(text) = node.as_text() else {
            self.wrong(node, path, "a list of texts");
            return None;
        };
        if key.kind == Kind::Hosts {
            return match Rule::parse(text, Ports::Any) {
                Ok(_) => Some(Json::from(text)),
                Err(error) => {
                    self.flaws.push(Flaw::new(&node.at, format!("{path}: {error}")).hint(error.hint()));
                    None
                }
            };
        }
        let hint = match key.kind {
            Kind::Words(known) if !known.contains(&text) => format!("known: {}", known.join(", ")),
            Kind::Paths if !text.starts_with('/') || text.split('/').any(|p| p == "..") => {
                "write an absolute path without '..'".into()
            }
            Kind::Origins if text != "*" && !origin(text) => "write scheme://host[:port], as browsers send it".into(),
            _ if text.is_empty() => "leave empty members out".into(),
            _ => return Some(Json::from(text)),
        };
        self.flaws.push(Flaw::new(&node.at, format!("{path} cannot hold '{text}'")).hint(hint));
        None
    }

    fn map(&mut self, key: &Key, node: &Node) -> Option<Json> {
        let path = key.path;
        if !matches!(node.value, Value::Map(_)) {
            self.wrong(node, path, "a map");
            return None;
        }
        let mut map = serde_json::Map::new();
        let before = self.flaws.len();
        for entry in node.entries() {
            let name = entry.key.as_str();
            match key.kind {
                Kind::MapOf(known) if !known.contains(&name) => {
                    let hint = did_you_mean(name, known.iter().copied());
                    self.flaws.push(Flaw::new(&entry.at, format!("unknown key '{path}.{name}'")).hint(hint));
                }
                Kind::Map if !crate::manifest::is_env_name(name) => {
                    let message = format!("{path}: '{name}' is no name for a build argument");
                    self.flaws.push(Flaw::new(&entry.at, message).hint("letters, digits and '_', no digit first"));
                }
                Kind::Headers if !header_name(name) => {
                    let hint = "letters, digits and '-', and none that says how a message is sent";
                    let message = format!("{path}: '{name}' is no header for a login");
                    self.flaws.push(Flaw::new(&entry.at, message).hint(hint));
                }
                // the value itself is in no message
                Kind::Headers if entry.value.as_text().is_some_and(|text| !header_value(text)) => {
                    let hint = "visible ASCII on one line, or 'file:' and an absolute path";
                    let message = format!("{path}.{name} cannot be a header's value");
                    self.flaws.push(Flaw::new(&entry.value.at, message).hint(hint));
                }
                Kind::NamedUrl if !mirror_name(name) => {
                    let hint = "1 to 64 of a-z, 0-9, '.', '_' and '-'";
                    let message = format!("{path}: '{name}' is no name for a mirror");
                    self.flaws.push(Flaw::new(&entry.at, message).hint(hint));
                }
                Kind::NamedUrl
                    if entry.value.as_text().is_some_and(|text| !is_url(text) || text.contains(['@', '?', '#'])) =>
                {
                    let message = format!("{path}.{name} is no address");
                    let hint = "write http://… or https://…, without a login: that is kept as a source secret";
                    self.flaws.push(Flaw::new(&entry.value.at, message).hint(hint));
                }
                Kind::NamedWord(words) if entry.value.as_text().is_some_and(|text| !words.contains(&text)) => {
                    let hint = format!("one of {}", words.join(", "));
                    let message = format!("{path}.{name} is none of its words");
                    self.flaws.push(Flaw::new(&entry.value.at, message).hint(hint));
                }
                _ => {}
            }
            match entry.value.as_text() {
                Some(text) => {
                    map.insert(name.to_owned(), Json::from(text));
                }
                None => self.wrong(&entry.value, &format!("{path}.{name}"), "a text"),
            }
        }
        (self.flaws.len() == before).then_some(Json::Object(map))
    }

    fn finish(mut self) -> Result<Loaded, ConfigErrors> {
        let set = |values: &Json, path| values.pointer(&pointer(path)).is_some_and(|v: &Json| !v.is_null());
        for (one, other) in [("grpc.certificate", "grpc.key"), ("grpc.key", "grpc.certificate")] {
            if let Some(at) = self.origins.get(one)
                && set(&self.values, one)
                && !set(&self.values, other)
            {
                self.flaws.push(Flaw::new(at, format!("{one} is set without {other}")).hint("set both or neither"));
            }
        }
        let required = self.values.pointer(&pointer("grpc.require_client_certificate")) == Some(&Json::Bool(true));
        if let Some(at) = self.origins.get("grpc.require_client_certificate")
            && required
            && !set(&self.values, "grpc.client_ca")
        {
            let flaw = "grpc.require_client_certificate is set without grpc.client_ca";
            self.flaws.push(Flaw::new(at, flaw).hint("say whose certificates are good"));
        }
        let config = if self.flaws.is_empty() {
            serde_json::from_value::<AgentConfig>(self.values).map_err(|e| {
                // only reached when the table of keys and the structs disagree
                self.flaws.push(Flaw::new(&At::whole("configuration"), e.to_string()));
            })
        } else {
            Err(())
        };
        match config {
            Ok(config) => {
                let differs: BTreeSet<_> = diff(&AgentConfig::default(), &config).iter().map(|c| c.path).collect();
                self.origins.retain(|path, _| differs.contains(path));
                Ok(Loaded { config, file: None, warnings: self.warnings, origins: self.origins })
            }
            Err(()) => Err(ConfigErrors { flaws: self.flaws, warnings: self.warnings }),
        }
    }
}

/// `builder.base_images` -> `SIGIL_BUILDER_BASE_IMAGES`.
pub(super) fn variable(path: &str) -> String {
    format!("SIGIL_{}", path.replace('.', "_").to_uppercase())
}

/// A URL's password, if it has one, replaced.
pub(super) fn mask(text: &str) -> String {
    let masked = url::Url::parse(text).ok().filter(|u| u.password().is_some()).and_then(|mut url| {
        url.set_password(Some("***")).ok()?;
        Some(url.to_string())
    });
    masked.unwrap_or_else(|| text.to_owned())
}

/// Whether an address to listen on is loopback; `None` when it is no address with a port.
fn listen(text: &str) -> Option<bool> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.ip().is_loopback());
    }
    let (host, port) = text.rsplit_once(':')?;
    let label = |l: &str| !l.is_empty() && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    // digits and dots only would be a mistyped address, not a name
    let fine = host.split('.').all(label) && host.contains(|c: char| c.is_ascii_alphabetic());
    port.parse::<u16>().ok().filter(|_| fine).map(|_| host == "localhost")
}

fn mirror_name(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    matches!(name.len(), 1..=64) && name.chars().all(fine)
}

fn header_name(name: &str) -> bool {
    const OURS: [&str; 6] =
        ["content-type", "content-length", "content-encoding", "host", "connection", "transfer-encoding"];
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-';
    !name.is_empty() && name.chars().all(fine) && !OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours))
}

fn header_value(text: &str) -> bool {
    match text.strip_prefix("file:") {
        Some(path) => path.starts_with('/') && !path.split('/').any(|part| part == ".."),
        None => !text.trim().is_empty() && text.chars().all(|c| c == ' ' || c.is_ascii_graphic()),
    }
}

fn domain(text: &str) -> bool {
    let label = |l: &str| !l.is_empty() && l.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    text.split('.').all(label)
}

fn origin(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|u| u.has_host() && u.path().len() <= 1 && !text.ends_with('/'))
}

fn level(text: &str) -> bool {
    let word =
        |w: &str| matches!(w.to_ascii_lowercase().as_str(), "off" | "error" | "warn" | "info" | "debug" | "trace");
    text.split(',').map(str::trim).all(|directive| match directive.rsplit_once('=') {
        Some((target, level)) => !target.is_empty() && !target.contains(char::is_whitespace) && word(level),
        None => word(directive),
    })
}

fn is_url(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.has_host())
}

/// A text with `%41` for `A`; what is no such escape stays.
fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).filter(|d| *first == b'%' && d.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 16).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests;
