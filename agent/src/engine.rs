//! Owns: the connection to the container engine (Docker or Podman), one instance at a time.
//! May touch: the engine's API. Nothing of ours is kept here.
//! Never: plans, retries a whole change, or touches what lacks this agent's label.
//! Tested by: `tests/contract` (one suite for Docker, Podman and the fake).

pub mod docker;
pub mod fake;
mod user;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use sigil_core::cgroup::Reading;
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo, Resources};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Label keys (architecture.md).
pub mod label {
    /// The agent's id.
    pub const AGENT: &str = "sigil.agent";
    /// Deployment name at creation.
    pub const DEPLOYMENT: &str = "sigil.deployment";
    /// Deployment id.
    pub const DEPLOYMENT_ID: &str = "sigil.deployment-id";
    /// Team.
    pub const TEAM: &str = "sigil.team";
    /// Release number.
    pub const RELEASE: &str = "sigil.release";
    /// Instance id.
    pub const INSTANCE: &str = "sigil.instance";
    /// Count of asked-for restarts this instance was born under.
    pub const RESTART: &str = "sigil.restart";
    /// What a container is for: `replica` or `build`.
    pub const ROLE: &str = "sigil.role";
}

/// First part of the repository that holds stages of finished builds, followed by `/<agent id, lower case>`: the builder
/// puts no label on a stage, so their tag says whose they are.
pub const CACHE_REPOSITORY: &str = "sigil-cache";

/// What the engine can do, asked once per connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// `docker` or `podman`.
    pub name: String,
    /// Engine version.
    pub version: String,
    /// Negotiated API version.
    pub api_version: String,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Capped log driver to use: `local` or `k8s-file`.
    pub log_driver: String,
    /// Whether `pause` works.
    pub pause: bool,
    /// CPUs of the host.
    pub cpus: u64,
    /// Memory of the host, bytes.
    pub memory: u64,
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// Where the engine keeps images; `None` when it does not say.
    pub root_dir: Option<PathBuf>,
}

/// A container's state as the engine tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Its PID 1 lives.
    Running {
        /// PID 1, in the host's numbering.
        pid: u32,
        /// When it was started.
        started_at: Timestamp,
    },
    /// Frozen.
    Paused {
        /// PID 1, in the host's numbering.
        pid: u32,
    },
    /// Ended.
    Exited {
        /// Exit code (128 + signal when killed).
        code: i64,
        /// The kernel killed it for memory.
        oom: bool,
        /// When it was started last.
        started_at: Option<Timestamp>,
        /// When it ended.
        finished_at: Option<Timestamp>,
        /// The engine's own error (a command that could not be started), else empty.
        error: String,
    },
    /// Being removed, dead, or a state we do not know, in the engine's word.
    Other(String),
}

/// A container that carries this agent's label.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// All its labels.
    pub labels: BTreeMap<String, String>,
    /// Its image's id.
    pub image: String,
    /// Its state.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Host paths that are mounted in it; `None` when the engine did not say.
    pub mounts: Option<Vec<String>>,
}

impl Container {
    /// The instance this container is, when its labels say so.
    pub fn instance(&self) -> Option<InstanceId> {
        self.labels.get(label::INSTANCE)?.parse().ok()
    }
    /// The deployment it belongs to.
    pub fn deployment(&self) -> Option<DeploymentId> {
        self.labels.get(label::DEPLOYMENT_ID)?.parse().ok()
    }
    /// The release it was made for.
    pub fn release(&self) -> Option<ReleaseNo> {
        self.labels.get(label::RELEASE)?.parse().ok()
    }
}

/// A file or directory of the host shown inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Host path, or the engine's volume name when `volume` is set.
    pub source: String,
    /// Path inside.
    pub target: String,
    /// No writes.
    pub read_only: bool,
    /// `source` names an engine volume.
    pub volume: bool,
}

/// How a container is networked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Loopback only (the default).
    None,
    /// The named engine network.
    Named(String),
    /// The network of another container.
    Container(String),
    /// The engine's default (only for tests).
    Default,
}

/// Everything about a container to be made. Hardening that is the same for all (no capabilities,
/// no-new-privileges, read-only root, restart policy `no`, capped log) is not asked for: it is always there.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Name; contains the agent's id.
    pub name: String,
    /// Image id.
    pub image: String,
    /// Command line of PID 1 (our init), replacing the image's entrypoint.
    pub entrypoint: Vec<String>,
    /// Environment of PID 1. Never a secret.
    pub env: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `uid:gid`, or what [`Engine::resolve_user`] makes one of; root is refused.
    pub user: String,
    /// Working directory.
    pub workdir: String,
    /// Limits.
    pub resources: Resources,
    /// Quota from start until the gate passed, in cores.
    pub start_cpus: f64,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// tmpfs paths with their size in bytes (`/tmp`, `/run`, the home).
    pub tmpfs: BTreeMap<String, u64>,
    /// Network.
    pub network: Network,
    /// Resolver addresses written to `/etc/resolv.conf` (init answers on 127.0.0.1 for `Network::None`).
    pub dns: Vec<String>,
    /// Host name inside.
    pub hostname: String,
}

/// An image as the engine holds it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Image {
    /// `sha256:…`
    pub id: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Digests by repository.
    pub digests: Vec<String>,
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub cmd: Vec<String>,
    /// ENV, `K=V`.
    pub env: Vec<String>,
    /// WORKDIR.
    pub workdir: String,
    /// USER.
    pub user: String,
    /// EXPOSE, `8080/tcp`.
    pub exposed: Vec<String>,
    /// VOLUME paths.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Bytes.
    pub size: u64,
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// When it was made.
    pub created_at: Option<Timestamp>,
}

/// A build through the engine.
#[derive(Clone, Debug)]
pub struct BuildSpec {
    /// Path of the Dockerfile within the context.
    pub dockerfile: String,
    /// Tag of the result.
    pub tag: String,
    /// Build arguments. Never a secret.
    pub args: BTreeMap<String, String>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// Network of each step.
    pub network: Network,
    /// Memory limit of each step, bytes.
    pub memory: u64,
    /// CPU quota of each step, cores.
    pub cpus: f64,
    /// Target stage, empty for the last.
    pub target: String,
    /// Do not use the layer cache.
    pub no_cache: bool,
    /// Extra `/etc/hosts` entries `host:ip`.
    pub extra_hosts: Vec<String>,
    /// Repository ([`CACHE_REPOSITORY`]`/<agent id>`) under which stages before the last are kept as the cache of later
    /// builds, tagged with their short id. Empty: they are removed after the build.
    pub cache: String,
}

/// A registry login.
#[derive(Clone)]
pub struct RegistryLogin {
    /// Registry host.
    pub host: String,
    /// Login.
    pub username: String,
    /// Password or token.
    pub password: secrecy::SecretString,
}

impl std::fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryLogin").field("host", &self.host).field("username", &self.username).finish()
    }
}

/// A line of the engine's capped log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineLine {
    /// When the engine saw it.
    pub time: Timestamp,
    /// stderr, not stdout.
    pub stderr: bool,
    /// Without its newline.
    pub line: Bytes,
}

/// A stream of a build context (a tar).
pub type Context = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// Why the engine did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// Nothing answers at the socket.
    #[error("the container engine at {host} cannot be reached: {why}")]
    Unreachable {
        /// Where.
        host: String,
        /// Why, in the system's words.
        why: String,
    },
    /// The socket refuses this user.
    #[error("no permission on the engine's socket {host}")]
    Permission {
        /// Where.
        host: String,
    },
    /// Older than we can use.
    #[error("the engine's API {found} is older than {needed}")]
    TooOld {
        /// What it speaks.
        found: String,
        /// What we need.
        needed: String,
    },
    /// No such container, image, network or volume.
    #[error("the engine knows no {0}")]
    NotFound(String),
    /// The name is taken, or the state forbids it.
    #[error("conflict: {0}")]
    Conflict(String),
    /// A build or pull failed inside a 200.
    #[error("{0}")]
    Failed(String),
    /// It did not answer in time.
    #[error("the engine did not answer '{what}' within {seconds} s")]
    Timeout {
        /// The call.
        what: String,
        /// The deadline.
        seconds: u64,
    },
    /// Cancelled by us.
    #[error("cancelled")]
    Cancelled,
    /// Anything else the API says.
    #[error("engine: {0}")]
    Api(String),
}

impl EngineError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => {
                "is the engine running? `systemctl start docker`, or set [engine] host in the agent's configuration"
            }
            Self::Permission { .. } => "run the agent as root or as a member of the socket's group",
            Self::TooOld { .. } => "upgrade the engine: Docker 20.10 or Podman 4 and later work",
            Self::NotFound(_) => "it may have been removed meanwhile; ask again",
            Self::Conflict(_) => "wait for the other change to finish and try again",
            Self::Failed(_) => "read the output above",
            Self::Timeout { .. } => "the engine is overloaded or hung; look at its own log",
            Self::Cancelled => "start it again when you like",
            Self::Api(_) => "look at the engine's own log",
        }
    }
}

/// Result of an engine call.
pub type Result<T> = std::result::Result<T, EngineError>;

/// Says by its path whether a file is wanted.
pub type Wanted = fn(&str) -> bool;

/// A container engine. Every call has a deadline of its own; none hangs.
#[async_trait]
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// What it can do. Connects when needed.
    async fn capabilities(&self) -> Result<Capabilities>;
    /// A number that changes whenever the engine reported an event about our containers, or the connection was lost or
    /// came back: a reason to look, never the truth itself.
    fn events(&self) -> watch::Receiver<u64>;

    /// Every container with our label, whatever its state.
    async fn observe(&self) -> Result<Vec<Container>>;
    /// One container by id or name; `NotFound` also when it is not ours.
    async fn inspect(&self, id: &str) -> Result<Container>;
    /// Makes a container; the name is idempotent: an existing one of ours with that name and instance is answered.
    async fn create(&self, spec: &ContainerSpec) -> Result<String>;
    /// The numeric `uid:gid` behind an image's USER: a number stands for itself, a name is looked up in the image's
    /// `/etc/passwd` and `/etc/group`. `Failed` when it is root's, or unknown there.
    async fn resolve_user(&self, image: &str, user: &str) -> Result<String> {
        let _ = image;
        user::numeric(user)?.ok_or_else(|| EngineError::Failed(format!("user '{user}' is not numeric")))
    }
    /// The files of an image that are wanted, by path without a leading slash: regular ones of at most `most` bytes.
    /// Nothing of the image runs.
    async fn read_image(&self, image: &str, wanted: Wanted, most: u64) -> Result<Vec<(String, Vec<u8>)>>;
    /// Starts it; already running is fine.
    async fn start(&self, id: &str) -> Result<()>;
    /// SIGTERM, grace in seconds, SIGKILL; already stopped or gone is fine.
    async fn stop(&self, id: &str, grace: u32) -> Result<()>;
    /// Sends a signal (`SIGKILL`).
    async fn kill(&self, id: &str, signal: &str) -> Result<()>;
    /// Freezes.
    async fn pause(&self, id: &str) -> Result<()>;
    /// Thaws.
    async fn unpause(&self, id: &str) -> Result<()>;
    /// Removes with force and its anonymous volumes; gone is fine.
    async fn remove(&self, id: &str) -> Result<()>;
    /// Sets the CPU quota (after the gate).
    async fn set_cpus(&self, id: &str, cpus: f64) -> Result<()>;
    /// What a container used, by the engine's own figures; `None` of one that does not run or is gone. The engine asks the
    /// kernel anew and takes its time (up to two seconds): for where the kernel's files cannot be read.
    async fn stats(&self, id: &str) -> Result<Option<Reading>>;
    /// Lines of the engine's capped log since a time, oldest first, read once, at most `limit` newest ones.
    async fn engine_log(&self, id: &str, since: Option<Timestamp>, limit: usize) -> Result<Vec<EngineLine>>;

    /// Builds; output lines go to `out` (bounded; awaiting it is the back-pressure). Answers the image id.
    /// Dropping or cancelling ends the build and leaves no container of it.
    async fn build(
        &self,
        context: Context,
        spec: &BuildSpec,
        logins: &[RegistryLogin],
        out: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<String>;
    /// Pulls a reference; progress goes to `out`. Answers the image id.
    async fn pull(
        &self,
        reference: &str,
        login: Option<&RegistryLogin>,
        out: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<String>;
    /// Pushes a reference that is here; progress goes to `out`. Answers the digest that the registry has it under.
    async fn push(
        &self,
        reference: &str,
        login: Option<&RegistryLogin>,
        out: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<String>;
    /// An image by id or reference, `None` when it is not here.
    async fn image(&self, reference: &str) -> Result<Option<Image>>;
    /// Images with our agent label.
    async fn images(&self) -> Result<Vec<Image>>;
    /// Every image, whosever, with a tag in a repository (`sigil-base/python`).
    async fn images_named(&self, repository: &str) -> Result<Vec<Image>>;
    /// Adds a tag; a tag that names another's image is not moved.
    async fn tag(&self, image: &str, reference: &str) -> Result<()>;
    /// Removes an image or a tag; gone is fine, in use is `Conflict`.
    async fn remove_image(&self, reference: &str) -> Result<()>;

    /// Makes sure a volume of ours exists; a new one is given to `user` (`uid:gid`).
    async fn ensure_volume(&self, name: &str, labels: &BTreeMap<String, String>, user: &str) -> Result<()>;
    /// Removes a volume of ours; gone is fine.
    async fn remove_volume(&self, name: &str) -> Result<()>;
    /// Volumes of ours by name, with their labels.
    async fn volumes(&self) -> Result<Vec<(String, BTreeMap<String, String>)>>;
    /// Volumes of ours by name, with their labels, and where their files are on this host. Of one that is not here, or of an
    /// engine without a host, there is nothing.
    async fn volume_places(&self) -> Result<Vec<(String, BTreeMap<String, String>, PathBuf)>> {
        Ok(Vec::new())
    }
    /// Makes sure a bridge network of ours exists, on a small free subnet.
    async fn ensure_network(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<()>;
    /// Removes a network of ours; gone is fine.
    async fn remove_network(&self, name: &str) -> Result<()>;
    /// Networks of ours by name.
    async fn networks(&self) -> Result<Vec<String>>;
}
