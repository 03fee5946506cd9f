//! The agent's configuration (`agent.toml`). Layers: default < file < environment (`SIGIL_…`) < flag.
//!
//! Owns: the keys and what they mean. May touch: the file it is told to read. Never: writes. Tested by: units in
//! `agent/`, which also hold `samples/agent.toml` against these structs.
//!
//! Each key's docs end with `Live` (a change counts at once) or `Needs a restart`; [`KEYS`] says the same to programs.

mod keys;
mod load;
mod show;

pub use keys::{Change, KEYS, Key, Kind, diff, with_live};
pub use load::{ConfigErrors, Loaded, Override, data_dir, default_path, find, load, parse};
pub use show::{check_text, show};

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An annotated `agent.toml` with every key at its default.
pub const SAMPLE: &str = include_str!("../samples/agent.toml");

/// Everything the owner of a host may set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Where state lives. Empty: `/var/lib/sigil` as root, else `$XDG_STATE_HOME/sigil`. Needs a restart.
    pub data_dir: Option<PathBuf>,
    /// Name shown in consoles; empty: the host name. Live.
    pub name: String,
    /// The container engine.
    pub engine: EngineConfig,
    /// gRPC for consoles.
    pub grpc: GrpcConfig,
    /// HTTP for MCP clients.
    pub gateway: GatewayConfig,
    /// Tokens of an identity provider that open deployments with `access = "oauth"`.
    pub oauth: OauthConfig,
    /// How images are made.
    pub builder: BuilderConfig,
    /// Where sources may come from, and how.
    pub sources: SourcesConfig,
    /// What the scanner stops.
    pub scan: ScanConfig,
    /// Limits that no console can widen.
    pub limits: LimitsConfig,
    /// How deployments that say nothing about it are scaled.
    pub scaling: ScalingConfig,
    /// Container and build output.
    pub logs: LogsConfig,
    /// What keeps the secrets' keys.
    pub secrets: SecretsConfig,
    /// Who did what.
    pub audit: AuditConfig,
    /// What is measured, and how much of it is kept.
    pub metrics: MetricsConfig,
    /// What use costs.
    pub cost: CostConfig,
    /// What becomes of deployments that use up their tier's quota.
    pub quota: QuotaConfig,
    /// Packages for others to find.
    pub registry: RegistryConfig,
    /// How containers reach the world.
    pub outbound: OutboundConfig,
    /// Traces of requests, for a collector.
    pub telemetry: TelemetryConfig,
    /// Who is told when something is wrong.
    pub alerts: AlertsConfig,
}

/// The container engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// `unix:///var/run/docker.sock`; empty: `DOCKER_HOST`, Docker's socket, then Podman's. Needs a restart.
    pub host: String,
}

/// gRPC for consoles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcConfig {
    /// TLS address (`0.0.0.0:7451`); empty: unix socket only. Needs a restart.
    pub listen: String,
    /// Certificate and key (PEM); empty: the agent makes its own. Needs a restart.
    pub certificate: Option<PathBuf>,
    /// Key of `certificate` (PEM). Needs a restart.
    pub key: Option<PathBuf>,
    /// Authorities (PEM) whose certificates are taken from consoles: the common name is the user's. Needs a restart.
    pub client_ca: Option<PathBuf>,
    /// Whether a console without such a certificate is refused, with a key too. Needs a restart.
    pub require_client_certificate: bool,
}

/// HTTP for MCP clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Listening address. Needs a restart.
    pub listen: String,
    /// Origins beside loopback ones that browsers may call from. Live.
    pub allowed_origins: Vec<String>,
    /// Host names beside loopback ones that requests may name. Live.
    pub allowed_hosts: Vec<String>,
    /// Largest request body, bytes. Live.
    pub max_body: u64,
    /// Most connections at once. Live.
    pub max_connections: u32,
    /// An idle stdio session ends after this, seconds. Live.
    pub session_idle_seconds: u64,
    /// Whether clients of one era of MCP (a handshake, or stateless) reach servers that know only the other. Live.
    pub translate: bool,
    /// From where deployments that ask for no key may be called: `loopback` or `anywhere`. Live.
    pub anonymous: String,
    /// What clients call the gateway by (`https://mcp.example.org`); empty: as each request names it. Live.
    pub public_url: String,
    /// `<name>.<domain>` is the deployment `<name>`, beside its path; empty: paths only. Live.
    pub domain: String,
    /// `off`, `own` (a certificate of the agent's own) or `files`. Needs a restart.
    pub tls: String,
    /// Certificate chain (PEM) of `tls = "files"`. Needs a restart.
    pub certificate: Option<PathBuf>,
    /// Key of `certificate` (PEM). Needs a restart.
    pub key: Option<PathBuf>,
    /// Most connections of one address, loopback exempt. Live.
    pub connections_per_address: u32,
    /// Whether each request is one line of the agent's log (target `sigil::access`). Live.
    pub access_log: bool,
    /// Whether whole answers above 1 KiB are compressed for clients that ask. Live.
    pub compress: bool,
    /// Memory for answers of tools that a policy's `[tools.cache]` names, bytes; 0: none is kept. Live.
    pub cache_memory: u64,
    /// How long such an answer is kept where the policy does not say, seconds. Live.
    pub cache_seconds: u64,
}

/// Tokens of an identity provider (OAuth 2.1 resource server, RFC 9728).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OauthConfig {
    /// Who signs the tokens, exactly as they say it; empty: no tokens are taken. Live.
    pub issuer: String,
    /// Its keys; empty: as its metadata says (RFC 8414, OpenID Connect Discovery). Live.
    pub jwks_url: String,
    /// Audiences taken beside a deployment's own address (RFC 8707). Live.
    pub audience: Vec<String>,
    /// Scopes that every token must have. Live.
    pub scopes: Vec<String>,
    /// Scope to the tools that it opens, patterns (`tool`, `deployment/tool`) with spaces between; empty: a token opens
    /// every tool. Live.
    pub tool_scopes: BTreeMap<String, String>,
    /// The claim that names the user. Live.
    pub user_claim: String,
}

impl Default for OauthConfig {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            jwks_url: String::new(),
            audience: Vec::new(),
            scopes: Vec::new(),
            tool_scopes: BTreeMap::new(),
            user_claim: "sub".into(),
        }
    }
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7450".into(),
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            max_body: 16 << 20,
            max_connections: 4096,
            session_idle_seconds: 1800,
            translate: true,
            anonymous: "loopback".into(),
            public_url: String::new(),
            domain: String::new(),
            tls: "off".into(),
            certificate: None,
            key: None,
            connections_per_address: 512,
            access_log: false,
            compress: true,
            cache_memory: 50 << 20,
            cache_seconds: 300,
        }
    }
}

/// How images are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BuilderConfig {
    /// Base image by runtime (`node`, `python`, `go`, `rust`); missing: `sigil-base/<runtime>` when the engine has
    /// one, else the official image. Live.
    pub base_images: BTreeMap<String, String>,
    /// npm registry URL; empty: the default one. Live.
    pub npm_registry: String,
    /// PyPI simple index URL; empty: the default one. Live.
    pub pypi_index: String,
    /// Go module proxy; empty: the default one. Live.
    pub go_proxy: String,
    /// crates.io replacement (sparse index URL); empty: the default one. Live.
    pub cargo_registry: String,
    /// Debian mirror for builds that install packages; empty: the base image's own. Live.
    pub apt_mirror: String,
    /// PEM file of extra certificate authorities, trusted by fetches and builds. Live.
    pub extra_ca: Option<PathBuf>,
    /// Build arguments for every build. Live.
    pub args: BTreeMap<String, String>,
    /// `link`: steps reach the world through the agent only; `bridge`: the engine's default network. Live.
    pub network: String,
    /// Hosts that steps may reach (mode `link`), beside the registries, indexes and mirrors above; a host without a port
    /// has all of them, `*` is everything public. Live.
    pub egress: Vec<String>,
    /// Longest build, seconds. Live.
    pub timeout_seconds: u64,
    /// Largest image, bytes. Live.
    pub max_image: u64,
    /// Memory of a build step, bytes. Live.
    pub memory: u64,
    /// CPU of a build step, cores. Live.
    pub cpus: f64,
    /// Builds at once. Live.
    pub concurrency: u32,
}

impl Default for BuilderConfig {
    fn default() -> Self {
        Self {
            base_images: BTreeMap::new(),
            npm_registry: String::new(),
            pypi_index: String::new(),
            go_proxy: String::new(),
            cargo_registry: String::new(),
            apt_mirror: String::new(),
            extra_ca: None,
            args: BTreeMap::new(),
            network: "link".into(),
            egress: vec!["*".into()],
            timeout_seconds: 1800,
            max_image: 10 << 30,
            memory: 4 << 30,
            cpus: 2.0,
            concurrency: 2,
        }
    }
}

/// Where sources may come from, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourcesConfig {
    /// Kinds allowed: `folder`, `git`, `npm`, `pypi`, `mcpb`, `image`. Live.
    pub allowed: Vec<String>,
    /// Largest source tree, unpacked, bytes. Live.
    pub max_bytes: u64,
    /// Most files in a tree. Live.
    pub max_files: u64,
    /// Longest fetch, seconds. Live.
    pub timeout_seconds: u64,
    /// Unpacked trees kept in the cache, bytes. Live.
    pub cache_bytes: u64,
}

impl Default for SourcesConfig {
    fn default() -> Self {
        Self {
            allowed: ["folder", "git", "npm", "pypi", "mcpb", "image"].map(String::from).to_vec(),
            max_bytes: 512 << 20,
            max_files: 100_000,
            timeout_seconds: 300,
            cache_bytes: 4 << 30,
        }
    }
}

/// Limits that no console can widen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Host paths (prefixes) that volumes may show; empty: none. Live.
    pub host_paths: Vec<PathBuf>,
    /// Whether a manifest may ask for `network.mode: bridge`: nothing holds such a container to its egress list. Live.
    pub allow_bridge: bool,
    /// Most replicas of one deployment. Live.
    pub max_replicas: u32,
    /// Most deployments. Live.
    pub max_deployments: u32,
    /// Memory that all servers together may take, bytes; 0: what the host has. Live.
    pub memory: u64,
    /// Memory that is left to the host itself, bytes; 0: the larger of 256 MiB and 5 %. Live.
    pub memory_reserve: u64,
    /// Cores that tiers' shares may promise, all servers that are awake together; 0: 32 for each core of the host. Live.
    pub cpus: u32,
    /// Free bytes kept on the engine's and our file system (checked before build, pull, deploy); 0: the larger of 5 GB
    /// and 10 %. Live.
    pub min_free_disk: u64,
    /// Registries images may come from; empty: any. Live.
    pub registries: Vec<String>,
    /// Of registries, or of paths in them: the public key (PEM) by which images from there have to be signed with cosign;
    /// the longest entry that fits counts. Live.
    pub signatures: BTreeMap<String, PathBuf>,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            host_paths: Vec::new(),
            allow_bridge: false,
            max_replicas: 50,
            max_deployments: 1000,
            memory: 0,
            memory_reserve: 0,
            cpus: 0,
            min_free_disk: 0,
            registries: Vec::new(),
            signatures: BTreeMap::new(),
        }
    }
}

/// How deployments that say nothing about it are scaled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct ScalingConfig {
    /// Preset of new deployments that name no policy (`router`, `standard`, `processor`, `compute`); empty: they keep as
    /// many replicas as were asked for. Live.
    pub default: String,
}

/// Container and build output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogsConfig {
    /// Compressed output kept on disk for one deployment, bytes. Live.
    pub max_bytes: u64,
    /// Lines held in memory for one deployment, bytes. Live.
    pub ring_bytes: u64,
    /// Longest line, bytes; more is cut and marked. Live.
    pub max_line: u32,
    /// Verbosity of the agent itself (`info`, `debug`, `sigil_agent::gateway=trace`). Live.
    pub level: String,
    /// `text` or `json`. Needs a restart.
    pub format: String,
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 20,
            ring_bytes: 1 << 20,
            max_line: 64 << 10,
            level: "info".into(),
            format: "text".into(),
        }
    }
}

/// What the scanner stops before it is built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScanConfig {
    /// The least severity that stops a build: `info`, `warning`, `error`, `block` or `never`. Live.
    pub block: String,
    /// The same for sources that a pattern fits (`npm:@own/*`, `folder`); the longest one counts. Live.
    pub trust: BTreeMap<String, String>,
    /// The owner's own rules: a file, or a directory of files (`.toml`, `.yaml`); unset: none. Live, and so are the files.
    pub rules: Option<PathBuf>,
}

impl Default for ScanConfig {
    fn default() -> Self {
        Self { block: "block".into(), trust: BTreeMap::new(), rules: None }
    }
}

/// What keeps the secrets' keys: the master key, under which the ring of data keys lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecretsConfig {
    /// Where the master key comes from: `auto`, `credential`, `file`, `passphrase` or `kernel`. Needs a restart.
    pub master_key: String,
    /// The key file, made at the first run; empty: `keyring.key` in the data directory. Needs a restart.
    pub key_file: Option<PathBuf>,
    /// A file with the passphrase; empty: the systemd credential `sigil-passphrase`, else the terminal. Needs a restart.
    pub passphrase_file: Option<PathBuf>,
}

impl Default for SecretsConfig {
    fn default() -> Self {
        Self { master_key: "auto".into(), key_file: None, passphrase_file: None }
    }
}

/// Who did what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// Audit log kept, bytes; the oldest part goes first, and that is on record. Live.
    pub max_bytes: u64,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { max_bytes: 64 << 20 }
    }
}

/// What is measured, and how much of it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// History of all deployments and the host kept on disk, bytes; a deployment's takes 1.6 MB at most. Live.
    pub max_bytes: u64,
    /// Whether what HTTP servers tell of themselves (`/mcp/metrics`) is read and shown with `/metrics`. Live.
    pub server_metrics: bool,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { max_bytes: 512 << 20, server_metrics: true }
    }
}

/// What use costs, in whatever currency the owner counts in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CostConfig {
    /// What the figures are called (`EUR`); empty: nothing. Live.
    pub currency: String,
    /// A deployment, a month. Live.
    pub deployment_month: f64,
    /// Ten thousand requests. Live.
    pub requests_10k: f64,
    /// An hour of CPU time. Live.
    pub cpu_hour: f64,
    /// A GB (10^9 bytes) of memory, an hour. Live.
    pub memory_gb_hour: f64,
    /// A GB that leaves, for the world or for clients. Live.
    pub egress_gb: f64,
    /// A GB of disk, a month. Live.
    pub storage_gb_month: f64,
}

impl Default for CostConfig {
    fn default() -> Self {
        Self {
            currency: String::new(),
            deployment_month: 5.0,
            requests_10k: 0.5,
            cpu_hour: 0.02,
            memory_gb_hour: 0.01,
            egress_gb: 0.1,
            storage_gb_month: 0.3,
        }
    }
}

/// What becomes of deployments that use up their tier's quota of requests or egress a month.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaConfig {
    /// `warn`, `throttle` (six requests a minute) or `stop` (requests are refused until the month is over). Live.
    pub action: String,
}

impl Default for QuotaConfig {
    fn default() -> Self {
        Self { action: "warn".into() }
    }
}

/// Packages for others to find: the MCP Registry API on the gateway's address (`/v0.1/servers`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// From where it may be read without a key: `never`, `loopback` or `anywhere`. Live.
    pub anonymous: String,
    /// Other registries whose packages are taken in, address by name. Live.
    pub mirrors: BTreeMap<String, String>,
    /// Which of a mirror's packages: patterns of names with spaces between, `!` before what is left out; missing: all. Live.
    pub mirror_filters: BTreeMap<String, String>,
    /// How often a mirror is asked what changed, seconds. Live.
    pub mirror_seconds: u64,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            anonymous: "loopback".into(),
            mirrors: BTreeMap::new(),
            mirror_filters: BTreeMap::new(),
            mirror_seconds: 3600,
        }
    }
}

/// How containers and the agent reach the world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboundConfig {
    /// HTTP proxy (`http://user@proxy:3128`) for the agent's connections; empty: `HTTPS_PROXY`/`HTTP_PROXY`. Live.
    pub proxy: String,
    /// Hosts reached without it (`.corp.example`, `10.0.0.0/8`); empty: `NO_PROXY`. Live.
    pub no_proxy: Vec<String>,
    /// Ports beside the usual ones that containers reach by host name. Live for new containers.
    pub ports: Vec<u16>,
    /// What becomes of public hosts that a deployment does not list: `deny` or `allow`. Live.
    pub default: String,
    /// The widest that a deployment may list; a host without a port has all of them, `*` is everything public, addresses
    /// that are not public count only as addresses or networks. Empty: everything public. Live.
    pub allow: Vec<String>,
    /// What nobody reaches, builds included. Live.
    pub deny: Vec<String>,
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self {
            proxy: String::new(),
            no_proxy: Vec::new(),
            ports: Vec::new(),
            default: "deny".into(),
            allow: Vec::new(),
            deny: Vec::new(),
        }
    }
}

/// Traces of requests over the gateway, and metrics, sent to a collector by OTLP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// The collector's OTLP/HTTP address (`http://127.0.0.1:4318`); empty: nothing is sent. Live.
    pub otlp_endpoint: String,
    /// Share of the traces that begin here that is recorded, 0 to 1; a caller's own choice goes first. Live.
    pub sample_ratio: f64,
    /// How often metrics are sent, seconds; 0: never. Live.
    pub metrics_seconds: u64,
    /// What the collector calls this agent (`service.name`). Live.
    pub service_name: String,
    /// Headers that the collector asks for, by name: a value, or `file:` and the path of a file that holds it. Live.
    pub headers: BTreeMap<String, Hidden>,
}

/// Who is told when something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertsConfig {
    /// How long something is wrong before that is told, and is well again before that is, seconds. Live.
    pub after_seconds: u64,
    /// Addresses that get a JSON object by POST, by name: a URL, or `file:` and the path of a file that holds it. Live.
    pub webhooks: BTreeMap<String, Hidden>,
    /// A program and its arguments, run with the object on its standard input; empty: none. Live.
    pub command: Vec<String>,
    /// An address that gets a POST again and again while the agent runs, so that somebody notices when none comes: a URL, or
    /// `file:` and the path of a file that holds it; empty: none. Live.
    pub heartbeat: Hidden,
    /// How often, seconds. Live.
    pub heartbeat_seconds: u64,
}

impl Default for AlertsConfig {
    fn default() -> Self {
        Self {
            after_seconds: 60,
            webhooks: BTreeMap::new(),
            command: Vec::new(),
            heartbeat: Hidden::default(),
            heartbeat_seconds: 60,
        }
    }
}

/// A text that is not shown: where a configuration is printed for debugging, stars stand in its place.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Hidden(String);

impl Hidden {
    /// The text, for use.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Hidden {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: String::new(),
            sample_ratio: 1.0,
            metrics_seconds: 60,
            service_name: "sigil-agent".into(),
            headers: BTreeMap::new(),
        }
    }
}
