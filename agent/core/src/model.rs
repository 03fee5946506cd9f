//! The words of the product as types. Names follow `product.md`: deployment, release, replica, operation.
//!
//! Everything here is plain data: it is stored, planned over and shown. Identifiers are ULIDs made by callers
//! (this crate has neither clock nor randomness).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_config::manifest::SecretKind;

use crate::follow::{Follow, Previewed};
use crate::gate::Waiver;
use crate::health;
use crate::policy::{Access, Policy};
use crate::recipe::{self, RecipeError};
use crate::scale;

/// Makes an identifier type around a ULID, so that one kind can never be passed for another.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub ulid::Ulid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl FromStr for $name {
            type Err = BadId;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                ulid::Ulid::from_string(s).map(Self).map_err(|_| BadId(s.to_owned()))
            }
        }
        impl From<ulid::Ulid> for $name {
            fn from(value: ulid::Ulid) -> Self {
                Self(value)
            }
        }
    };
}

/// A text that is not an identifier of ours.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not an identifier (26 characters, Crockford base 32)")]
pub struct BadId(String);

id!(
    /// A deployment, whatever its name is now.
    DeploymentId
);
id!(
    /// One replica's life: one container. A restart in place keeps it, a replacement gets a new one.
    InstanceId
);
id!(
    /// A deploy, build, restart or other change, with its event stream.
    OperationId
);
id!(
    /// The agent itself; kept in `<data>/agent-id` and on every label.
    AgentId
);

/// A release's number within its deployment, from 1.
pub type ReleaseNo = u32;

/// A deployment's name: a DNS label of at most 40 characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Longest name of a deployment, in characters.
pub const NAME_MAX: usize = 40;

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The nearest valid name to any text (`@scope/My_Server` -> `my-server`), or `None` when nothing is left.
    pub fn derive(text: &str) -> Option<Self> {
        let last = text.rsplit('/').find(|part| !part.is_empty())?;
        let mut name = String::new();
        for c in last.chars().map(|c| c.to_ascii_lowercase()) {
            if c.is_ascii_alphanumeric() {
                name.push(c);
            } else if !name.ends_with('-') && !name.is_empty() {
                name.push('-');
            }
            if name.len() == NAME_MAX {
                break;
            }
        }
        let name = name.trim_end_matches('-');
        Self::from_str(name).ok()
    }
}

/// Why a text is no name for a deployment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Nothing there.
    #[error("a name is empty")]
    Empty,
    /// More than [`NAME_MAX`] characters.
    #[error("'{0}' is longer than {NAME_MAX} characters")]
    TooLong(String),
    /// A character that no DNS label has.
    #[error("'{0}' has a character other than a-z, 0-9 and '-', or begins or ends with '-'")]
    Character(String),
}

impl FromStr for Name {
    type Err = BadName;
    fn from_str(s: &str) -> Result<Self, BadName> {
        if s.is_empty() {
            return Err(BadName::Empty);
        }
        if s.len() > NAME_MAX {
            return Err(BadName::TooLong(s.to_owned()));
        }
        let fine = s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !fine || s.starts_with('-') || s.ends_with('-') {
            return Err(BadName::Character(s.to_owned()));
        }
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = BadName;
    fn try_from(value: String) -> Result<Self, BadName> {
        value.parse()
    }
}

impl From<Name> for String {
    fn from(value: Name) -> Self {
        value.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a server speaks MCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Streamable HTTP on one path.
    Http,
    /// The 2024-11-05 transport with two endpoints.
    Sse,
    /// Newline-delimited JSON-RPC on stdin and stdout; bridged by the agent.
    Stdio,
}

impl Transport {
    /// The word for it in manifests, flags and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Sse => "sse",
            Self::Stdio => "stdio",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Limits enforced on every container of a release.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Resources {
    /// The tier these come from, or `custom`.
    pub tier: String,
    /// Share of a core that the host's budget counts (CPU weight), in cores.
    pub cpu_share: f64,
    /// Hard CPU quota, in cores.
    pub cpu_limit: f64,
    /// Memory limit, in bytes.
    pub memory: u64,
    /// Limit of volumes and writable layers, in bytes.
    pub storage: u64,
    /// Processes and threads.
    pub processes: u32,
    /// Open file descriptors of one process.
    pub files: u32,
}

/// How a volume may be used by replicas.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeMode {
    /// One replica at most; a new release stops the old one first.
    Exclusive,
    /// Any number of replicas, writing.
    Shared,
    /// Any number of replicas, reading.
    ReadOnly,
}

/// A volume of a deployment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Its name within the deployment, or an absolute host path (only where the owner's limits allow).
    pub source: String,
    /// Where the server sees it.
    pub path: String,
    /// Who may write.
    pub mode: VolumeMode,
}

/// How a container reaches the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// No engine network; connections go out through init and the agent.
    #[default]
    Link,
    /// A small bridge network of its own, for UDP and literal addresses.
    Bridge,
}

impl NetworkMode {
    /// The word for it in manifests and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Bridge => "bridge",
        }
    }
}

/// Where a secret's value goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "as", content = "name")]
pub enum Inject {
    /// Environment variable of that name.
    Environment(String),
    /// Header of the upstream request.
    Header(String),
    /// Query parameter of the upstream request.
    Query(String),
    /// Key of the JSON body.
    Body(String),
}

/// A secret that a release asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SecretUse {
    /// Its name in the store.
    pub name: String,
    /// Missing refuses the deploy.
    pub required: bool,
    /// Where the value goes.
    pub inject: Inject,
    /// What the value has to be.
    #[serde(default, rename = "type")]
    pub kind: SecretKind,
    /// Each caller's own, looked up at the call.
    #[serde(default)]
    pub per_user: bool,
}

impl SecretUse {
    /// One of any text, the same for all callers.
    pub fn new(name: impl Into<String>, required: bool, inject: Inject) -> Self {
        Self { name: name.into(), required, inject, kind: SecretKind::String, per_user: false }
    }
}

/// Configuration that callers give with a session.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SessionConfig {
    /// JSON Schema of all values.
    pub schema: serde_json::Value,
    /// What the deploy has set; callers cannot change it.
    pub fixed: serde_json::Value,
    /// Values with which the server runs where nobody has given any: for the gate, and for lists of tools.
    pub stand_in: serde_json::Value,
    /// The same as a server over HTTP gets it.
    pub looks: sigil_config::manifest::session::Upstream,
    /// A `commandFunction`, and the runtime whose commands it makes.
    pub function: Option<(String, sigil_config::manifest::Runtime)>,
    /// Arguments that the deploy puts behind the command.
    pub args: Vec<String>,
    /// Environment that the deploy sets; no configuration changes it.
    pub kept: Vec<String>,
}

/// Everything that decides what a container of a release is. Two equal specs are the same release.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ReleaseSpec {
    /// The image's content id (`sha256:…`), never a tag.
    pub image: String,
    /// The source as a person wrote it, pinned (`git+https://…@<commit>`, `pypi:name==1.2`).
    pub source: String,
    /// Content digest of the source tree.
    pub source_digest: String,
    /// Commit of a git source.
    pub commit: Option<String>,
    /// How the server speaks.
    pub transport: Transport,
    /// Port that the server listens on (HTTP and SSE), also given as `PORT`.
    pub port: u16,
    /// Path of the MCP endpoint (`/mcp`, `/sse`).
    pub path: String,
    /// The whole command line; never empty.
    pub command: Vec<String>,
    /// Working directory, from the image.
    pub workdir: String,
    /// User of the container, never root: `uid:gid`, or a name that the image knows.
    pub user: String,
    /// Plain environment. Secrets are never here.
    pub env: BTreeMap<String, String>,
    /// Secrets asked for.
    pub secrets: Vec<SecretUse>,
    /// Limits.
    pub resources: Resources,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// How it reaches the world.
    pub network: NetworkMode,
    /// Hosts it may reach, as [`crate::egress`] reads them; empty: none, unless the owner allows what is not listed.
    pub egress: Vec<String>,
    /// Configuration values, checked against the manifest's schema.
    pub config: serde_json::Value,
    /// What callers may set for a session of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Box<SessionConfig>>,
    /// `anonymous`, `key` or `oauth`.
    pub access: String,
    /// Most stdio sessions a replica holds; `None` derives it from memory.
    pub sessions_max: Option<u32>,
    /// A session holds nothing but what its client said when it began: it may be begun again in its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sessions_replayable: bool,
    /// Longest wait for the answer to one request, in milliseconds (streams exempt).
    pub request_timeout_ms: u64,
    /// Longest time from start to a passed gate, in milliseconds.
    pub start_timeout_ms: u64,
    /// How its replicas are looked at while they serve.
    #[serde(default)]
    pub health: health::Rules,
}

/// How a process of a session is started; see [`ReleaseSpec::started_with`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Started {
    /// The whole command line.
    pub command: Vec<String>,
    /// Names that leave the environment.
    pub remove: Vec<String>,
    /// What comes into it.
    pub env: BTreeMap<String, String>,
}

impl ReleaseSpec {
    /// The command line and the environment of a stdio process for a session's configuration: what to take out of the
    /// release's own environment, and what to put in.
    ///
    /// # Errors
    /// The manifest's `commandFunction` gives no command for these values.
    pub fn started_with(&self, session: &SessionConfig, values: &serde_json::Value) -> Result<Started, RecipeError> {
        let secret = |name: &String| self.secrets.iter().any(|s| s.inject == Inject::Environment(name.clone()));
        let mut started = Started { command: self.command.clone(), remove: Vec::new(), env: BTreeMap::new() };
        if let Some((function, runtime)) = &session.function {
            let (command, env) = recipe::start(function, *runtime, values)?;
            let (_, before) = recipe::start(function, *runtime, &session.stand_in)?;
            started.command = command.into_iter().chain(session.args.iter().cloned()).collect();
            started.env = env;
            started.remove = before.into_keys().filter(|name| !session.kept.contains(name)).collect();
        }
        started.env.insert("SIGIL_CONFIG".into(), values.to_string());
        started.env.retain(|name, _| !session.kept.contains(name) && !secret(name));
        started.remove.retain(|name| !secret(name));
        Ok(started)
    }

    /// True when two releases may not run beside each other (an exclusive volume).
    pub fn is_exclusive(&self) -> bool {
        self.volumes.iter().any(|v| v.mode == VolumeMode::Exclusive)
    }
}

/// What became of a release.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum Outcome {
    /// Not gated yet.
    Pending,
    /// Passed its gate at least once; rollback may return to it.
    Good,
    /// Never passed.
    Failed {
        /// One line.
        why: String,
    },
}

/// One image and one configuration, numbered, immutable but for its outcome.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Release {
    /// Its number, from 1.
    pub number: ReleaseNo,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// What it is.
    pub spec: ReleaseSpec,
    /// What became of it.
    pub outcome: Outcome,
    /// What was recognised in the source, and why; for `get` and `releases`.
    pub recognised: String,
    /// All that was asked for with it, as JSON of whoever deploys: what follows a repository asks for the same of a newer
    /// commit. `None`: a folder's, whose upload is gone, or made before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Box<serde_json::Value>>,
}

/// What a deployment should do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Run {
    /// Serve with `replicas` replicas.
    Running,
    /// Keep everything, run nothing.
    Stopped,
    /// Being removed: no containers, then no record.
    Removed,
}

/// Desired state: the only thing that changes ask for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Desired {
    /// Whether to run.
    pub run: Run,
    /// Replicas while running.
    pub replicas: u32,
    /// The release that should serve.
    pub release: ReleaseNo,
    /// Counts asked-for restarts: instances born under a smaller count are replaced.
    pub restart: u64,
}

/// A named, running server with a desired state.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Deployment {
    /// Immutable identity.
    pub id: DeploymentId,
    /// Its name now.
    pub name: Name,
    /// Owning team, by its id.
    pub team: String,
    /// What its manifest is tagged with: roles can be held on a tag.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// Counts changes of `desired`.
    pub generation: u64,
    /// Why the last change was made, one line.
    pub reason: String,
    /// When the last change was made.
    pub changed_at: Timestamp,
    /// What it should do.
    pub desired: Desired,
    /// The release that last served: what a failed successor falls back to.
    pub serving: Option<ReleaseNo>,
    /// Kept releases, oldest first.
    pub releases: Vec<Release>,
    /// Who may call, and what; changed without a release.
    #[serde(default)]
    pub policy: Policy,
    /// Findings of its source that somebody answers for; they count for each deploy until they are over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waivers: Vec<Waiver>,
    /// How it is scaled; `None`: it has as many replicas as were asked for, and never sleeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Box<scale::Policy>>,
    /// What it follows its repository by; `None`: it is what was deployed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<Box<Follow>>,
    /// It is there for a while only, and is removed then; `None`: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Whose preview it is; `None`: nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<Box<Previewed>>,
}

impl Deployment {
    /// A kept release by number.
    pub fn release(&self, number: ReleaseNo) -> Option<&Release> {
        self.releases.iter().find(|r| r.number == number)
    }

    /// Who may call: the policy's word, else that of the wanted release.
    pub fn access(&self) -> Access {
        let released = || self.release(self.desired.release).and_then(|r| r.spec.access.parse().ok());
        // a word that nobody knows opens nothing
        self.policy.access.or_else(released).unwrap_or(Access::Key)
    }

    /// The number the next release gets.
    pub fn next_release(&self) -> ReleaseNo {
        self.releases.last().map_or(1, |r| r.number + 1)
    }
}

/// What scripts see of a deployment (`cli.md`, `ls -o json`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Asked for, nothing done.
    Pending,
    /// Its source is being fetched, scanned or built.
    Building,
    /// Containers start or are gated.
    Starting,
    /// As many replicas serve as desired.
    Ready,
    /// Fewer replicas serve than desired, or the newest release failed.
    Degraded,
    /// Nothing serves and nothing will without a change (or a crash loop's next try).
    Failed,
    /// Scaled to zero.
    Sleeping,
    /// Stopped by a person.
    Stopped,
}

impl State {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Building => "building",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
            Self::Sleeping => "sleeping",
            Self::Stopped => "stopped",
        }
    }
}

/// Which stream of a process a line came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output (of a stdio server: only lines that are not JSON-RPC, marked).
    Stdout,
    /// Standard error.
    Stderr,
    /// Output of a build.
    Build,
    /// Marks written by the agent: started, exited, released.
    Agent,
}

impl Stream {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Build => "build",
            Self::Agent => "agent",
        }
    }
}
