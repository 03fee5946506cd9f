//! Owns: the sockets that inits connect to, dialling into containers, their outbound connections and DNS.
//! May touch: `<data>/init`, `<data>/run`. Never: plans, or believes what comes over a link: PID 1 and the server
//! share a uid, so every frame is checked, bounded and answered by closing the link when it makes no sense.
//! Tested by: unit tests with a bare init, `tests/tests/init.rs` and `tests/tests/hostile.rs` (real engine).

mod connection;
mod embedded;
mod instance;
mod outbound;
mod output;
mod proxy;
#[cfg(test)]
mod tests;
mod walls;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sigil_core::model::{DeploymentId, InstanceId};
use sigil_init::MAIN;
use sigil_init::wire::ToInit;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::engine::Mount;
use connection::Reply;
use instance::Instance;
pub use output::{OutputChunk, OutputGap};
pub use proxy::environment as proxy_environment;
pub use walls::{Grant, Mark, Refused, limits, place};

/// Where the instance's socket directory is seen inside.
const RUN_INSIDE: &str = "/.sigil/run";
/// Where init is seen inside.
const BIN_INSIDE: &str = "/.sigil/bin";
/// Chunks on the way to whoever keeps output.
const OUTPUT_CHANNEL: usize = 256;
/// Longest wait for init to do a small thing.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest wait for the server to take a connection.
const DIAL: Duration = Duration::from_secs(5);

/// Why something did not happen inside a container.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// No link at the moment.
    #[error("init is not connected")]
    Away,
    /// The server does not listen (yet).
    #[error("nothing listens on port {0} in the container")]
    Refused(u16),
    /// The command is wrong for this image.
    #[error("'{argv0}' could not be started: {why}")]
    Spawn {
        /// First word of the command.
        argv0: String,
        /// In words.
        why: String,
    },
    /// Init or the server is stuck, or the container is paused.
    #[error("no answer within {0} ms")]
    Timeout(u64),
    /// Files, sockets, and what init says about anything else.
    #[error("link: {0}")]
    Io(String),
}

impl LinkError {
    /// Whether it is the link that is down, as while a container starts again, and not what the container holds.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Away | Self::Io(_))
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Away => "the container is starting, stopping or paused; try again",
            Self::Refused(_) => "the server has not started to listen, or listens on another port than its PORT",
            Self::Spawn { .. } => "check the command in the manifest against what the image contains",
            Self::Timeout(_) => "the server is overloaded or hung; look at its logs",
            Self::Io(_) => "look at the agent's log",
        }
    }
}

/// Result of something done inside a container.
pub type Result<T> = std::result::Result<T, LinkError>;

fn io_error(what: impl fmt::Display, error: &std::io::Error) -> LinkError {
    LinkError::Io(format!("{what}: {error}"))
}

/// A lock whose holder cannot leave it half changed: a panic elsewhere is no reason to stop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process to start in a container. Environment values are secret until proven otherwise.
#[derive(Debug, Clone)]
pub struct Process {
    /// Command line, not empty.
    pub argv: Vec<String>,
    /// The whole environment; nothing else is inherited.
    pub env: Vec<(String, SecretString)>,
    /// Working directory, `/` when empty.
    pub workdir: String,
}

/// How a process ended. Both `None`: its container ended first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// What it returned.
    pub code: Option<i32>,
    /// What killed it.
    pub signal: Option<i32>,
}

/// A process that init knows.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its name in the container.
    pub key: String,
    /// Process id inside the container.
    pub pid: u32,
    /// Set when it ended and nobody closed it yet.
    pub exit: Option<Exit>,
}

/// Pipes of a session process; init keeps duplicates, so dropping these ends nothing (`Link::close` does).
#[derive(Debug)]
pub struct Pipes {
    /// Its stdin. Drop it before `Link::close`, or the process sees no end of input.
    pub stdin: tokio::net::unix::pipe::Sender,
    /// Its stdout.
    pub stdout: tokio::net::unix::pipe::Receiver,
    /// Process id inside the container.
    pub pid: u32,
    /// Set once when it ended.
    pub exit: watch::Receiver<Option<Exit>>,
}

/// One container's init. Outlives connections: after a break the same handle works again.
#[derive(Clone)]
pub struct Link {
    instance: Arc<Instance>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("instance", &self.instance.id).field("up", &self.is_up()).finish()
    }
}

impl Link {
    /// Whose it is.
    pub fn instance(&self) -> InstanceId {
        self.instance.id
    }

    /// Still connected?
    pub fn is_up(&self) -> bool {
        self.instance.is_up()
    }

    async fn start(&self, key: &str, main: bool, process: &Process) -> Result<Reply> {
        let argv: Vec<&str> = process.argv.iter().map(String::as_str).collect();
        let argv0 = argv.first().copied().unwrap_or_default().to_owned();
        let spawn_error = |why: String| LinkError::Spawn { argv0: argv0.clone(), why };
        if argv0.is_empty() {
            return Err(spawn_error("the command is empty".to_owned()));
        }
        if !sigil_init::wire::is_key(key) {
            return Err(LinkError::Io(format!("'{key}' is no name for a process")));
        }
        let env: Vec<(&str, &str)> = process.env.iter().map(|(n, v)| (n.as_str(), v.expose_secret())).collect();
        let size = argv.iter().map(|a| a.len() + 4).sum::<usize>()
            + env.iter().map(|(n, v)| n.len() + v.len() + 8).sum::<usize>()
            + process.workdir.len()
            + 256;
        if size > sigil_init::wire::TO_INIT_MAX || argv.len().max(env.len()) > sigil_init::wire::LIST_MAX {
            return Err(spawn_error("its arguments and environment are too large".to_owned()));
        }
        let workdir = process.workdir.as_str();
        let frame = |req| ToInit::Start { req, main, key, argv: argv.clone(), env: env.clone(), workdir };
        match self.instance.ask(ANSWER, frame).await? {
            Reply::Failed(sigil_init::wire::Why::Spawn, why) => Err(spawn_error(why)),
            other => Ok(other),
        }
    }

    /// Starts the container's main process (HTTP servers); its exit ends the container. Repeating it is harmless.
    /// Answers its process id inside.
    pub async fn start_main(&self, process: Process) -> Result<u32> {
        match self.start(MAIN, true, &process).await? {
            Reply::Started { pid, .. } => Ok(pid),
            other => Err(other.unexpected()),
        }
    }

    /// Exit of the main process, when it has ended.
    pub fn main_exit(&self) -> watch::Receiver<Option<Exit>> {
        self.instance.main_exit()
    }

    /// Starts a process with pipes for stdin and stdout; stderr is log. `key` names it within the container: up to
    /// 128 visible ASCII characters, not used before in this container.
    pub async fn spawn(&self, key: &str, process: Process) -> Result<Pipes> {
        let reply = self.start(key, false, &process).await?;
        self.pipes(reply)
    }

    /// Takes the pipes of a process that a former agent started; `None` when there is none of that key, or it was closed.
    pub async fn resume(&self, key: &str) -> Result<Option<Pipes>> {
        match self.instance.ask(ANSWER, |req| ToInit::Resume { req, key }).await? {
            Reply::Failed(sigil_init::wire::Why::Unknown, _) => Ok(None),
            reply => self.pipes(reply).map(Some),
        }
    }

    fn pipes(&self, reply: Reply) -> Result<Pipes> {
        let Reply::Started { serial, pid, fds } = reply else { return Err(reply.unexpected()) };
        let mut fds = fds.into_iter();
        let (Some(stdin), Some(stdout)) = (fds.next(), fds.next()) else {
            return Err(LinkError::Io("a process came without pipes".to_owned()));
        };
        // Both constructors check that it is a pipe, open in the right direction.
        let stdin = tokio::net::unix::pipe::Sender::from_owned_fd(stdin).map_err(|e| io_error("stdin", &e))?;
        let stdout = tokio::net::unix::pipe::Receiver::from_owned_fd(stdout).map_err(|e| io_error("stdout", &e))?;
        Ok(Pipes { stdin, stdout, pid, exit: self.instance.exit_of(serial) })
    }

    /// Every process that init knows (main has key `main`), ended ones that nobody closed included.
    pub async fn processes(&self) -> Result<Vec<Running>> {
        match self.instance.ask(ANSWER, |req| ToInit::List { req }).await? {
            Reply::Processes(list) => Ok(list),
            other => Err(other.unexpected()),
        }
    }

    /// Closes its stdin, then TERM after `grace`, KILL after twice that, and forgets it. Answers once init knows;
    /// `Pipes::exit` tells the end. A key that is not known is fine.
    pub async fn close(&self, key: &str, grace: Duration) -> Result<()> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.instance.ask(ANSWER, |req| ToInit::Close { req, key, grace_ms }).await?.done()
    }

    /// Whether this container's init knows [`Self::rename`] (version 2 of the link).
    pub fn renames(&self) -> bool {
        self.instance.version() >= 2
    }

    /// Gives a running process the key `to`, which must be free. An init of before version 2 cannot, and the error says so.
    pub async fn rename(&self, key: &str, to: &str) -> Result<()> {
        if !self.renames() {
            return Err(LinkError::Io("this container's init is of an older agent and cannot rename".to_owned()));
        }
        self.instance.ask(ANSWER, |req| ToInit::Rename { req, key, to }).await?.done()?;
        self.instance.renamed(key, to);
        Ok(())
    }

    /// Sends a signal (1 to 31) to the process and what it started.
    pub async fn signal(&self, key: &str, signal: i32) -> Result<()> {
        self.instance.ask(ANSWER, |req| ToInit::Signal { req, key, signal }).await?.done()
    }

    /// Connects to 127.0.0.1:port (then ::1) inside; the socket itself is passed out, so that no byte goes through init.
    pub async fn dial(&self, port: u16) -> Result<tokio::net::TcpStream> {
        let timeout_ms = u32::try_from(DIAL.as_millis()).unwrap_or(u32::MAX);
        let reply = self.instance.ask(DIAL + ANSWER, |req| ToInit::Dial { req, port, timeout_ms }).await?;
        match reply {
            Reply::Dialled(fd) => connection::stream(fd).map_err(|e| io_error("dial", &e)),
            Reply::Failed(sigil_init::wire::Why::Refused, _) => Err(LinkError::Refused(port)),
            Reply::Failed(sigil_init::wire::Why::Timeout, _) => Err(LinkError::Timeout(u64::from(timeout_ms))),
            other => Err(other.unexpected()),
        }
    }
}

/// What every instance shares.
struct Shared {
    data_dir: PathBuf,
    binary: PathBuf,
    instances: Mutex<HashMap<InstanceId, Arc<Instance>>>,
    output: mpsc::Sender<OutputChunk>,
    changes: watch::Sender<u64>,
    outbound: outbound::Outbound,
    ending: OnceLock<Box<Ending>>,
    stop: CancellationToken,
}

/// Is told that a process of an instance has ended, before its init is let go; and init's pid.
type Ending = dyn Fn(InstanceId, u32) + Send + Sync;

impl Shared {
    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }
    fn directory(&self, instance: InstanceId) -> PathBuf {
        self.data_dir.join("run").join(instance.to_string())
    }
}

/// All inits of this agent.
#[derive(Clone)]
pub struct InitLinks {
    shared: Arc<Shared>,
}

impl fmt::Debug for InitLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InitLinks").field("binary", &self.shared.binary).finish_non_exhaustive()
    }
}

impl InitLinks {
    /// Writes the embedded init binary, listens for all instances found in `<data>/run`, and gives out what they print.
    pub async fn spawn(
        data_dir: &Path,
        outbound: sigil_config::agent::OutboundConfig,
        stop: CancellationToken,
    ) -> Result<(Self, mpsc::Receiver<OutputChunk>)> {
        let data_dir = std::path::absolute(data_dir).map_err(|e| io_error(data_dir.display(), &e))?;
        let run = data_dir.join("run");
        // Blocking, but small and before anything else runs.
        let binary = embedded::install(&data_dir)?;
        embedded::directory(&run, 0o700)?;
        let (output, chunks) = mpsc::channel(OUTPUT_CHANNEL);
        let shared = Arc::new(Shared {
            data_dir,
            binary,
            instances: Mutex::default(),
            output,
            changes: watch::Sender::new(0),
            outbound: outbound::Outbound::new(outbound),
            ending: OnceLock::new(),
            stop,
        });
        let links = Self { shared };
        for entry in std::fs::read_dir(&run).map_err(|e| io_error(run.display(), &e))?.flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            links.listen(id)?;
        }
        Ok((links, chunks))
    }

    /// The instance, listened for.
    fn listen(&self, id: InstanceId) -> Result<Arc<Instance>> {
        let mut instances = lock(&self.shared.instances);
        if let Some(known) = instances.get(&id) {
            return Ok(known.clone());
        }
        let directory = self.shared.directory(id);
        // Any uid inside connects; nobody else gets past `<data>/run`.
        embedded::directory(&directory, 0o755)?;
        let listener = embedded::listen(&directory)?;
        let instance = Instance::new(id, self.shared.stop.child_token());
        connection::serve(self.shared.clone(), instance.clone(), listener);
        instances.insert(id, instance.clone());
        Ok(instance)
    }

    fn find(&self, id: InstanceId) -> Option<Arc<Instance>> {
        lock(&self.shared.instances).get(&id).cloned()
    }

    /// Makes the instance's socket directory and listens. Answers the mounts, PID 1's command line and its environment.
    /// `outbound`: whether init answers DNS and forwards connections (containers without an engine network); such a
    /// container needs `dns = 127.0.0.1` and `net.ipv4.ip_unprivileged_port_start=0`. Build steps that join its
    /// network use the same. Repeating it is harmless.
    pub async fn prepare(
        &self,
        instance: InstanceId,
        outbound: bool,
    ) -> Result<(Vec<Mount>, Vec<String>, BTreeMap<String, String>)> {
        self.listen(instance)?;
        let mount = |source: &Path, target: &str| Mount {
            source: source.to_string_lossy().into_owned(),
            target: target.to_owned(),
            read_only: true,
            volume: false,
        };
        let binary = self.shared.binary.parent().unwrap_or(&self.shared.binary);
        let mounts = vec![mount(&self.shared.directory(instance), RUN_INSIDE), mount(binary, BIN_INSIDE)];
        let mut argv = vec![format!("{BIN_INSIDE}/{}", embedded::NAME)];
        argv.extend(["--socket".to_owned(), format!("{RUN_INSIDE}/{}", embedded::SOCKET)]);
        if outbound {
            argv.push("--outbound".to_owned());
            let ports = self.shared.outbound.ports();
            if !ports.is_empty() {
                argv.extend(["--ports".to_owned(), ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")]);
            }
        }
        // Makes the C library overwrite what is freed: no secret outlives its use in init's memory.
        let env = BTreeMap::from([("GLIBC_TUNABLES".to_owned(), "glibc.malloc.perturb=85".to_owned())]);
        Ok((mounts, argv, env))
    }

    /// PID 1 of the instance as the engine tells it: connections from any other process are refused. Call after
    /// every start and every adoption; connections that came earlier have waited for it.
    pub fn expect(&self, instance: InstanceId, pid: u32) {
        if let Some(instance) = self.find(instance) {
            instance.expect(pid);
        }
    }

    /// Waits until the instance's init is connected.
    pub async fn wait(&self, instance: InstanceId, timeout: Duration) -> Result<Link> {
        let found = self.find(instance).ok_or(LinkError::Away)?;
        tokio::select! {
            () = found.connected() => Ok(Link { instance: found }),
            () = found.stop.cancelled() => Err(LinkError::Away),
            () = tokio::time::sleep(timeout) => {
                Err(LinkError::Timeout(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)))
            }
        }
    }

    /// The instance's link while it is connected.
    pub fn link(&self, instance: InstanceId) -> Option<Link> {
        self.find(instance).filter(|i| i.is_up()).map(|instance| Link { instance })
    }

    /// Changes whenever an init connects, disconnects or reports an exit.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Stops listening and removes the directory.
    pub async fn forget(&self, instance: InstanceId) {
        let known = lock(&self.shared.instances).remove(&instance);
        if let Some(known) = known {
            known.stop.cancel();
        }
        let directory = self.shared.directory(instance);
        match tokio::fs::remove_dir_all(&directory).await {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => tracing::warn!(directory = %directory.display(), error = %e, "a socket directory stays behind"),
        }
        self.shared.outbound.gate().forget(instance);
        self.shared.outbound.forget(instance);
        self.shared.changed();
    }

    /// Instances that have a directory, whether anybody asked for them or not.
    pub fn known(&self) -> Vec<InstanceId> {
        lock(&self.shared.instances).keys().copied().collect()
    }

    /// Removes former init binaries from disk that are in none of the mounted host paths.
    pub async fn sweep(&self, mounted: Vec<String>) {
        let shared = self.shared.clone();
        let swept =
            tokio::task::spawn_blocking(move || embedded::sweep(&shared.data_dir, &shared.binary, &mounted)).await;
        if let Err(error) = swept {
            tracing::warn!(%error, "former init binaries were not looked at");
        }
    }

    /// The init binary on disk.
    pub fn binary(&self) -> PathBuf {
        self.shared.binary.clone()
    }

    /// Tells who is to know of processes that end, while their container is still there. Must not take long: its init waits.
    /// Only the first call counts.
    pub fn tell_ending(&self, ending: impl Fn(InstanceId, u32) + Send + Sync + 'static) {
        self.shared.ending.set(Box::new(ending)).ok();
    }

    /// New settings: the proxy holds for new connections, the ports for new containers, the limits at once.
    pub fn set_outbound(&self, config: sigil_config::agent::OutboundConfig) {
        self.shared.outbound.set(config);
    }

    /// What a container may reach. Tell it before its init is expected: without it everything is refused.
    pub fn grant(&self, instance: InstanceId, grant: Grant) {
        self.shared.outbound.gate().grant(instance, grant);
    }

    /// Ports on which this agent listens: containers reach them only where an entry says so to the letter.
    pub fn set_agent_ports(&self, ports: Vec<u16>) {
        self.shared.outbound.gate().set_agent_ports(ports);
    }

    /// What was refused to a deployment since the agent's start: how often, and where to, the newest first.
    pub fn refusals(&self, deployment: DeploymentId) -> (u64, Vec<Refused>) {
        self.shared.outbound.gate().refusals(deployment)
    }

    /// The same of a build, by its helper.
    pub fn build_refusals(&self, helper: InstanceId) -> Vec<Refused> {
        self.shared.outbound.gate().build_refusals(helper)
    }

    /// How often connections of each deployment were refused.
    pub fn refused_totals(&self) -> Vec<(DeploymentId, u64)> {
        self.shared.outbound.gate().totals()
    }

    /// Lines about refusals for the logs of deployments, from now on; a second caller takes them over.
    pub fn marks(&self) -> mpsc::Receiver<Mark> {
        self.shared.outbound.gate().marks()
    }

    /// A deployment is gone for good.
    pub fn forget_deployment(&self, deployment: DeploymentId) {
        self.shared.outbound.gate().forget_deployment(deployment);
    }

    /// Bytes that an instance received from the world and sent there over connections that the agent carries, since the
    /// agent's start; `None` while it never asked for one.
    pub fn carried(&self, instance: InstanceId) -> Option<(u64, u64)> {
        self.shared.outbound.carried(instance)
    }

    /// Outbound connections: open now, made so far, failed so far.
    pub fn outbound_counts(&self) -> (u64, u64, u64) {
        self.shared.outbound.counts()
    }
}
