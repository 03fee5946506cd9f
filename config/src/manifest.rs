//! Manifests: what an author writes about a server (`mcp.yaml`), one shape for every origin.
//!
//! Owns: the shape of a manifest and its checks. May touch: nothing. Never: reads files, or lets a path leave the tree.
//! Tested by: units in `manifest/`, which also hold `samples/mcp.yaml` against these structs.

mod parse;
pub mod session;
mod values;

pub use parse::{camel_keys, parse, safe_path, scaling_policy, volume};
pub(crate) use parse::{schema, tree_path, words};
pub use values::{BadConfig, check_config, check_fixed};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Names of the resource tiers, smallest first.
pub const TIERS: [&str; 5] = ["micro", "router", "standard", "processor", "compute"];

/// Names of the scaling presets.
pub const PRESETS: [&str; 4] = ["router", "standard", "processor", "compute"];

/// The product's own manifest. Every field is optional: a manifest adds to what is recognised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// Name of the server.
    pub name: Option<String>,
    /// One sentence.
    pub description: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Category of the registry.
    pub category: Option<String>,
    /// Tags of the registry.
    pub tags: Vec<String>,
    /// `node`, `python`, `go`, `rust` or `container`.
    pub runtime: Option<Runtime>,
    /// `http`, `sse` or `stdio`.
    pub transport: Option<String>,
    /// Port of an HTTP server.
    pub port: Option<u16>,
    /// Path of the MCP endpoint, `/mcp` by default.
    pub path: Option<String>,
    /// File (or module) within the tree that starts the server, run by the runtime, then its arguments.
    pub entrypoint: Vec<String>,
    /// Whole command line; wins over `entrypoint`.
    pub command: Vec<String>,
    /// How the image is made.
    pub build: Build,
    /// Plain environment.
    pub env: BTreeMap<String, String>,
    /// Tools, for the registry.
    pub tools: Vec<Tool>,
    /// Secrets asked for.
    pub secrets: Vec<Secret>,
    /// JSON Schema of the configuration values.
    pub config: Option<serde_json::Value>,
    /// A tier's name or explicit limits.
    pub resources: Option<Resources>,
    /// A policy's name or its fields.
    pub scaling: Option<Scaling>,
    /// How health is judged.
    pub health: Health,
    /// How it reaches the world.
    pub network: Network,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Sessions.
    pub sessions: Sessions,
    /// JavaScript that makes the command line from the configuration values; only `smithery.yaml` has one. Evaluate it
    /// with [`crate::smithery::start`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_function: Option<String>,
}

/// What a tree is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// JavaScript and TypeScript.
    Node,
    /// Python.
    Python,
    /// Go.
    Go,
    /// Rust.
    Rust,
    /// A Dockerfile of its own, or a ready image.
    Container,
}

impl Runtime {
    /// The word in manifests and base image names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Python => "python",
            Self::Go => "go",
            Self::Rust => "rust",
            Self::Container => "container",
        }
    }
}

/// How the image is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Build {
    /// Dockerfile within the tree.
    pub dockerfile: Option<String>,
    /// Build context within the tree, `.` by default.
    pub context: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Base image instead of the configured one.
    pub base_image: Option<String>,
    /// Debian packages that the server needs at run time.
    pub packages: Vec<String>,
}

/// A tool as the author describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tool {
    /// Name.
    pub name: String,
    /// What it does.
    #[serde(default)]
    pub description: String,
    /// JSON Schema of its arguments.
    #[serde(default)]
    pub input_schema: Option<serde_json::Value>,
}

/// A secret asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Secret {
    /// Name in the store, a valid environment variable name.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// Missing refuses the deploy.
    #[serde(default = "yes")]
    pub required: bool,
    /// `string`, `number` or `boolean`.
    #[serde(default, rename = "type")]
    pub kind: SecretKind,
    /// Where it goes; by default the environment variable of its own name.
    #[serde(default)]
    pub inject: Option<InjectAs>,
    /// `user`: each caller's own (checked at the call).
    #[serde(default)]
    pub per: Option<String>,
}

fn yes() -> bool {
    true
}

/// Type of a secret's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum SecretKind {
    /// Any text.
    #[default]
    String,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
}

impl SecretKind {
    /// Whether a value is one.
    pub fn fits(self, value: &str) -> bool {
        match self {
            Self::String => true,
            Self::Number => value.parse::<f64>().is_ok_and(f64::is_finite),
            Self::Boolean => matches!(value, "true" | "false"),
        }
    }

    /// What it has to be, in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::String => "a text",
            Self::Number => "a number",
            Self::Boolean => "true or false",
        }
    }
}

/// Where a secret's value goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectAs {
    /// `environment`, `header`, `query` or `body`.
    #[serde(rename = "as")]
    pub place: String,
    /// Its name there.
    #[serde(default)]
    pub name: Option<String>,
}

/// A tier's name or explicit limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Resources {
    /// `micro`, `router`, `standard`, `processor` or `compute`.
    Tier(String),
    /// Explicit limits; missing ones come from `tier` (default `router`).
    Limits(Limits),
}

/// Explicit limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Where missing ones come from.
    pub tier: Option<String>,
    /// Hard CPU quota, cores.
    pub cpu: Option<f64>,
    /// `256Mi`, `1G`, or bytes.
    pub memory: Option<serde_json::Value>,
    /// Like `memory`.
    pub storage: Option<serde_json::Value>,
    /// Processes and threads.
    pub processes: Option<u32>,
}

/// A policy's name or its fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scaling {
    /// A preset.
    Preset(String),
    /// Fields.
    Policy(Box<ScalingPolicy>),
}

/// Fields of a scaling policy; missing ones come from its preset (default `router`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ScalingPolicy {
    /// Where missing ones come from.
    pub preset: Option<String>,
    /// Fewest replicas (0: may sleep).
    pub min: Option<u32>,
    /// Most replicas.
    pub max: Option<u32>,
    /// Target for CPU, percent of the replica's hard limit.
    pub cpu: Option<f64>,
    /// Target for memory above the replica's baseline, percent of the replica's limit.
    pub memory: Option<f64>,
    /// Target for the time within which 95 of 100 calls are answered, milliseconds.
    pub response_time: Option<u64>,
    /// Target for calls that fail, percent.
    pub error_rate: Option<f64>,
    /// Up above so many requests a minute a replica.
    pub requests_up: Option<f64>,
    /// Down below so many.
    pub requests_down: Option<f64>,
    /// Shortest time from a step to the next one up, seconds.
    pub up_cooldown: Option<u64>,
    /// Shortest time from a step to the next one down, seconds.
    pub down_cooldown: Option<u64>,
    /// Time between evaluations, seconds.
    pub evaluate_every: Option<u64>,
    /// A step down needs that so many seconds have asked for nothing more.
    pub stabilisation: Option<u64>,
    /// Most replicas that a step adds.
    pub step_up: Option<u32>,
    /// Most replicas that a step takes away.
    pub step_down: Option<u32>,
    /// `single` or `weighted`.
    pub mode: Option<String>,
    /// What counts how much in the score of `weighted`.
    pub weights: Option<ScalingWeights>,
    /// Whether the next hour's need is taken from the last seven days.
    pub predictive: Option<bool>,
    /// Most that a step may add to the cost of an hour, in the currency of the rates.
    pub cost_cap: Option<f64>,
    /// Idle time after which it sleeps, seconds; 0: never.
    pub idle_timeout: Option<u64>,
    /// How deep: `auto`, `paused` or `stopped`.
    pub sleep: Option<String>,
}

/// What counts how much in the score of a weighted policy; missing ones count nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ScalingWeights {
    /// CPU.
    pub cpu: f64,
    /// Memory.
    pub memory: f64,
    /// Response time.
    pub response_time: f64,
    /// Errors.
    pub errors: f64,
}

/// How health is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Health {
    /// Longest start, seconds (60 by default).
    pub start_timeout: Option<u64>,
    /// Longest answer to a request, seconds (30 by default).
    pub request_timeout: Option<u64>,
    /// Between two looks at a replica, seconds (30 by default).
    pub every: Option<u64>,
    /// An answer that takes longer is slow, milliseconds (2000 by default).
    pub slow: Option<u64>,
    /// A harmless tool that is called with each look, without arguments.
    pub tool: Option<String>,
    /// What is done about a replica that does not answer: `restart` (default), `replace` or `leave`.
    pub on_failure: Option<String>,
    /// Calls that are to be answered, percent (99.5 by default).
    pub availability: Option<f64>,
}

/// How it reaches the world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// `link` (default) or `bridge`.
    pub mode: Option<String>,
    /// Hosts it may reach, `host` or `host:port`.
    pub egress: Vec<String>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    /// Its name, or an absolute host path.
    pub name: String,
    /// Where the server sees it.
    pub path: String,
    /// `exclusive` (default), `shared` or `read-only`.
    #[serde(default)]
    pub mode: Option<String>,
}

/// Sessions: how many, and what they may bring along.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Sessions {
    /// stdio: most of them in one replica.
    pub max: Option<u32>,
    /// Whether callers give configuration values of their own with a session. What the deploy sets stays as it is.
    pub config: bool,
    /// Whether a session may be opened again with what its client said when it began: nothing else of it counts.
    pub replayable: bool,
    /// Values with which the server can be looked at where nobody has given any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub example: Option<serde_json::Value>,
}

/// Whether a text is a valid name of an environment variable (letters, digits, `_`, no digit first).
pub fn is_env_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
