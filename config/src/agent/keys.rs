//! Owns: the table of keys (type, bounds, live or not) and comparing two configurations. May touch: nothing.
//! Never: reads files. Tested by: units here (the table against the structs and their docs).

use serde_json::Value as Json;

use super::AgentConfig;

/// What values a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// An absolute path that may not exist yet.
    Path,
    /// An absolute path of a file that can be read now.
    File,
    /// `address:port`; the flag says that others on the network reach it without any login.
    Listen {
        /// Whether to warn when it is no loopback address.
        plain: bool,
    },
    /// `http://…` or `https://…`.
    Url,
    /// The same, not shown, or `file:/path`.
    HiddenUrl,
    /// `unix:///path`.
    Engine,
    /// Directives of a log filter.
    Level,
    /// A whole number from, to.
    Int(u64, u64),
    /// Like `Int`; also `16MiB`.
    Bytes(u64, u64),
    /// A number of cores from, to.
    Cores(f64, f64),
    /// A number from 0 to 1.
    Share,
    /// Money: a number from 0 on.
    Rate,
    /// `true` or `false`.
    Bool,
    /// A list of texts.
    Texts,
    /// A list of hosts and networks ([`crate::egress`]).
    Hosts,
    /// A list of these words.
    Words(&'static [&'static str]),
    /// A list of `scheme://host[:port]`.
    Origins,
    /// A list of absolute paths.
    Paths,
    /// A list of port numbers.
    Ports,
    /// A map from these names to texts.
    MapOf(&'static [&'static str]),
    /// A map from names (environment variable names) to texts.
    Map,
    /// A map from any names to texts.
    Named,
    /// A map from names of lower-case letters, digits, '.', '_' and '-' to addresses.
    NamedUrl,
    /// A map from any names to one of these words.
    NamedWord(&'static [&'static str]),
    /// A map from names of headers to values that are not shown, or to `file:/path`.
    Headers,
}

impl Kind {
    /// Whether it has entries of its own names.
    pub(super) fn is_map(self) -> bool {
        matches!(self, Self::Map | Self::MapOf(_) | Self::Named | Self::NamedUrl | Self::NamedWord(_) | Self::Headers)
    }
}

/// A key that may be set.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its path, dotted.
    pub path: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// Whether a change counts without a restart.
    pub live: bool,
}

const LIVE: bool = true;
const RESTART: bool = false;

const fn key(path: &'static str, kind: Kind, live: bool) -> Key {
    Key { path, kind, live }
}

/// What a scan may stop.
const LEAST: [&str; 5] = ["info", "warning", "error", "block", "never"];

/// Every key of `agent.toml`, in the order of the sample.
pub const KEYS: &[Key] = &[
    key("data_dir", Kind::Path, RESTART),
    key("name", Kind::Text, LIVE),
    key("engine.host", Kind::Engine, RESTART),
    key("grpc.listen", Kind::Listen { plain: false }, RESTART),
    key("grpc.certificate", Kind::File, RESTART),
    key("grpc.key", Kind::File, RESTART),
    key("grpc.client_ca", Kind::File, RESTART),
    key("grpc.require_client_certificate", Kind::Bool, RESTART),
    key("gateway.listen", Kind::Listen { plain: true }, RESTART),
    key("gateway.allowed_origins", Kind::Origins, LIVE),
    key("gateway.allowed_hosts", Kind::Texts, LIVE),
    key("gateway.max_body", Kind::Bytes(1024, 1 << 40), LIVE),
    key("gateway.max_connections", Kind::Int(1, 1_000_000), LIVE),
    key("gateway.session_idle_seconds", Kind::Int(1, 31_536_000), LIVE),
    key("gateway.translate", Kind::Bool, LIVE),
    key("gateway.anonymous", Kind::Word(&["loopback", "anywhere"]), LIVE),
    key("gateway.public_url", Kind::Url, LIVE),
    key("gateway.domain", Kind::Text, LIVE),
    key("gateway.tls", Kind::Word(&["off", "own", "files"]), RESTART),
    key("gateway.certificate", Kind::File, RESTART),
    key("gateway.key", Kind::File, RESTART),
    key("gateway.connections_per_address", Kind::Int(1, 1_000_000), LIVE),
    key("gateway.access_log", Kind::Bool, LIVE),
    key("gateway.compress", Kind::Bool, LIVE),
    key("gateway.cache_memory", Kind::Bytes(0, 1 << 40), LIVE),
    key("gateway.cache_seconds", Kind::Int(1, 3600), LIVE),
    key("oauth.issuer", Kind::Url, LIVE),
    key("oauth.jwks_url", Kind::Url, LIVE),
    key("oauth.audience", Kind::Texts, LIVE),
    key("oauth.scopes", Kind::Texts, LIVE),
    key("oauth.tool_scopes", Kind::Named, LIVE),
    key("oauth.user_claim", Kind::Text, LIVE),
    key("builder.base_images", Kind::MapOf(&["node", "python", "go", "rust"]), LIVE),
    key("builder.npm_registry", Kind::Url, LIVE),
    key("builder.pypi_index", Kind::Url, LIVE),
    key("builder.go_proxy", Kind::Text, LIVE),
    key("builder.cargo_registry", Kind::Text, LIVE),
    key("builder.apt_mirror", Kind::Url, LIVE),
    key("builder.extra_ca", Kind::File, LIVE),
    key("builder.args", Kind::Map, LIVE),
    key("builder.network", Kind::Word(&["link", "bridge"]), LIVE),
    key("builder.egress", Kind::Hosts, LIVE),
    key("builder.timeout_seconds", Kind::Int(1, 604_800), LIVE),
    key("builder.max_image", Kind::Bytes(1 << 20, 1 << 50), LIVE),
    key("builder.memory", Kind::Bytes(64 << 20, 1 << 50), LIVE),
    key("builder.cpus", Kind::Cores(0.1, 1024.0), LIVE),
    key("builder.concurrency", Kind::Int(1, 64), LIVE),
    key("sources.allowed", Kind::Words(&["folder", "git", "npm", "pypi", "mcpb", "image"]), LIVE),
    key("sources.max_bytes", Kind::Bytes(1024, 1 << 50), LIVE),
    key("sources.max_files", Kind::Int(1, 100_000_000), LIVE),
    key("sources.timeout_seconds", Kind::Int(1, 604_800), LIVE),
    key("sources.cache_bytes", Kind::Bytes(0, 1 << 50), LIVE),
    key("scan.block", Kind::Word(&LEAST), LIVE),
    key("scan.trust", Kind::NamedWord(&LEAST), LIVE),
    key("scan.rules", Kind::Path, LIVE),
    key("limits.host_paths", Kind::Paths, LIVE),
    key("limits.allow_bridge", Kind::Bool, LIVE),
    key("limits.max_replicas", Kind::Int(1, 10_000), LIVE),
    key("limits.max_deployments", Kind::Int(1, 100_000), LIVE),
    key("limits.memory", Kind::Bytes(0, 1 << 50), LIVE),
    key("limits.memory_reserve", Kind::Bytes(0, 1 << 50), LIVE),
    key("limits.cpus", Kind::Int(0, 1_000_000), LIVE),
    key("limits.min_free_disk", Kind::Bytes(0, 1 << 50), LIVE),
    key("limits.registries", Kind::Texts, LIVE),
    key("limits.signatures", Kind::Named, LIVE),
    key("scaling.default", Kind::Word(&["", "router", "standard", "processor", "compute"]), LIVE),
    key("logs.max_bytes", Kind::Bytes(1 << 16, 1 << 50), LIVE),
    key("logs.ring_bytes", Kind::Bytes(1 << 12, 1 << 34), LIVE),
    key("logs.max_line", Kind::Bytes(256, 1 << 24), LIVE),
    key("logs.level", Kind::Level, LIVE),
    key("logs.format", Kind::Word(&["text", "json"]), RESTART),
    key("secrets.master_key", Kind::Word(&["auto", "credential", "file", "passphrase", "kernel"]), RESTART),
    key("secrets.key_file", Kind::Path, RESTART),
    key("secrets.passphrase_file", Kind::Path, RESTART),
    key("audit.max_bytes", Kind::Bytes(1 << 20, 1 << 40), LIVE),
    key("metrics.max_bytes", Kind::Bytes(16 << 20, 1 << 40), LIVE),
    key("metrics.server_metrics", Kind::Bool, LIVE),
    key("cost.currency", Kind::Text, LIVE),
    key("cost.deployment_month", Kind::Rate, LIVE),
    key("cost.requests_10k", Kind::Rate, LIVE),
    key("cost.cpu_hour", Kind::Rate, LIVE),
    key("cost.memory_gb_hour", Kind::Rate, LIVE),
    key("cost.egress_gb", Kind::Rate, LIVE),
    key("cost.storage_gb_month", Kind::Rate, LIVE),
    key("quota.action", Kind::Word(&["warn", "throttle", "stop"]), LIVE),
    key("registry.anonymous", Kind::Word(&["never", "loopback", "anywhere"]), LIVE),
    key("registry.mirrors", Kind::NamedUrl, LIVE),
    key("registry.mirror_filters", Kind::Named, LIVE),
    key("registry.mirror_seconds", Kind::Int(60, 31_536_000), LIVE),
    key("outbound.proxy", Kind::Url, LIVE),
    key("outbound.no_proxy", Kind::Texts, LIVE),
    key("outbound.ports", Kind::Ports, LIVE),
    key("outbound.default", Kind::Word(&["deny", "allow"]), LIVE),
    key("outbound.allow", Kind::Hosts, LIVE),
    key("outbound.deny", Kind::Hosts, LIVE),
    key("telemetry.otlp_endpoint", Kind::Url, LIVE),
    key("telemetry.sample_ratio", Kind::Share, LIVE),
    key("telemetry.metrics_seconds", Kind::Int(0, 86_400), LIVE),
    key("telemetry.service_name", Kind::Text, LIVE),
    key("telemetry.headers", Kind::Headers, LIVE),
    key("alerts.after_seconds", Kind::Int(0, 86_400), LIVE),
    key("alerts.webhooks", Kind::Headers, LIVE),
    key("alerts.command", Kind::Texts, LIVE),
    key("alerts.heartbeat", Kind::HiddenUrl, LIVE),
    key("alerts.heartbeat_seconds", Kind::Int(5, 86_400), LIVE),
];

/// A key whose value differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key's path.
    pub path: &'static str,
    /// Whether the new value counts without a restart.
    pub live: bool,
}

/// The keys that differ, in the order of [`KEYS`].
pub fn diff(old: &AgentConfig, new: &AgentConfig) -> Vec<Change> {
    let (old, new) = (json(old), json(new));
    let changed = |k: &&Key| old.pointer(&pointer(k.path)) != new.pointer(&pointer(k.path));
    KEYS.iter().filter(changed).map(|k| Change { path: k.path, live: k.live }).collect()
}

/// `new` with the values that need a restart taken from `old`, and the names of those keys that differ.
pub fn with_live(old: &AgentConfig, new: &AgentConfig) -> (AgentConfig, Vec<&'static str>) {
    let mut kept = new.clone();
    // written out by hand: a key that is forgotten here fails the test that walks the table
    kept.data_dir.clone_from(&old.data_dir);
    kept.engine.host.clone_from(&old.engine.host);
    kept.grpc = old.grpc.clone();
    kept.gateway.listen.clone_from(&old.gateway.listen);
    kept.gateway.tls.clone_from(&old.gateway.tls);
    kept.gateway.certificate.clone_from(&old.gateway.certificate);
    kept.gateway.key.clone_from(&old.gateway.key);
    kept.logs.format.clone_from(&old.logs.format);
    kept.secrets = old.secrets.clone();
    let waiting = diff(old, new).into_iter().filter(|c| !c.live).map(|c| c.path).collect();
    (kept, waiting)
}

/// The configuration as JSON. It has no maps with other than text keys and no type that can fail, so `Null` is never
/// seen; returning it keeps this free of panics.
pub(super) fn json(config: &AgentConfig) -> Json {
    serde_json::to_value(config).unwrap_or(Json::Null)
}

pub(super) fn pointer(path: &str) -> String {
    format!("/{}", path.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(value: &Json, path: &str, out: &mut Vec<String>) {
        match value {
            // maps that are values are empty by default, sections are not
            Json::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    leaves(value, &if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, out);
                }
            }
            _ => out.push(path.to_owned()),
        }
    }

    #[test]
    fn the_table_names_exactly_the_keys_of_the_structs() {
        let mut keys = Vec::new();
        leaves(&json(&AgentConfig::default()), "", &mut keys);
        let mut table: Vec<String> = KEYS.iter().map(|k| k.path.to_owned()).collect();
        keys.sort();
        table.sort();
        assert_eq!(table, keys);
    }

    /// A value that differs from the default, for any key.
    pub(in crate::agent) fn changed(path: &str) -> AgentConfig {
        let mut value = json(&AgentConfig::default());
        let slot = value.pointer_mut(&pointer(path)).unwrap();
        *slot = match slot {
            Json::Null => Json::from("/other"),
            Json::Bool(b) => Json::from(!*b),
            Json::Number(n) if n.is_f64() => Json::from(7.5),
            Json::Number(_) => Json::from(12_345),
            Json::String(_) => Json::from("other"),
            Json::Array(_) if path == "outbound.ports" => Json::from(vec![8080]),
            Json::Array(_) => Json::from(vec!["other"]),
            Json::Object(_) => serde_json::json!({"go": "other"}),
        };
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn each_key_is_seen_by_diff_and_kept_back_unless_live() {
        let old = AgentConfig::default();
        for key in KEYS {
            let new = changed(key.path);
            assert_eq!(diff(&old, &new), [Change { path: key.path, live: key.live }]);
            let (kept, waiting) = with_live(&old, &new);
            match key.live {
                true => assert_eq!((&kept, waiting), (&new, vec![]), "{}", key.path),
                false => assert_eq!((&kept, waiting), (&old, vec![key.path]), "{}", key.path),
            }
        }
        assert_eq!(diff(&old, &old), []);
    }

    #[test]
    fn the_docs_of_each_key_say_whether_it_is_live() {
        let source = include_str!("../agent.rs");
        for key in KEYS {
            let (section, field) = key.path.rsplit_once('.').unwrap_or(("agent", key.path));
            let mut upper = section.to_owned();
            upper[..1].make_ascii_uppercase();
            let body = source.split_once(&format!("pub struct {upper}Config {{")).unwrap().1;
            let before = body.split_once(&format!("pub {field}: ")).unwrap().0;
            let tail: Vec<&str> = before.lines().rev().take_while(|l| !l.contains("pub ")).collect();
            let docs = tail.into_iter().rev().map(|l| l.trim().trim_start_matches("///").trim()).collect::<Vec<_>>();
            let docs = docs.join(" ");
            assert_eq!(docs.contains("Live"), key.live, "{}: {docs}", key.path);
            assert_eq!(docs.contains("Needs a restart"), !key.live, "{}: {docs}", key.path);
        }
    }
}
