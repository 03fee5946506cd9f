//! Owns: the sockets that inits connect to, dialling into containers, their outbound connections and DNS.
//! May touch: `<data>/init`, `<data>/run`. Never: plans. Tested by: `tests/docker`, unit tests with a bare init.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use bytes::Bytes;
use secrecy::SecretString;
use sigil_core::model::{InstanceId, Stream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use crate::engine::Mount;

#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    #[error("init is not connected")]
    Away,
    #[error("nothing listens on port {0} in the container")]
    Refused(u16),
    #[error("'{argv0}' could not be started: {why}")]
    Spawn { argv0: String, why: String },
    #[error("no answer within {0} ms")]
    Timeout(u64),
    #[error("link: {0}")]
    Io(String),
}
pub type Result<T> = std::result::Result<T, LinkError>;

/// A process to start in a container. Environment values are secret until proven otherwise.
#[derive(Debug, Clone)]
pub struct Process { pub argv: Vec<String>, pub env: Vec<(String, SecretString)>, pub workdir: String }

/// Output that init had to write to the engine's log because no agent was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputGap {
    /// How much.
    pub bytes: u64,
    /// When init began to write it there.
    pub since: jiff::Timestamp,
    /// When it stopped.
    pub until: jiff::Timestamp,
}

/// Output that init read, in order per (instance, stream). Dropping it without `ack` leaves it with init, to be sent again.
pub struct OutputChunk {
    pub instance: InstanceId,
    pub stream: Stream,
    /// Position of the first byte in this stream of this container's life (counted by init from 0).
    pub offset: u64,
    /// When init read it.
    pub time: jiff::Timestamp,
    pub bytes: Bytes,
    /// The process that wrote it (`main`, or a session's key).
    pub process: String,
    /// Which start of the container: offsets begin at 0 in each.
    pub life: u64,
    /// What is missing right before it.
    pub gap_before: Option<OutputGap>,
    ack: Box<dyn FnOnce() + Send>,
}
impl std::fmt::Debug for OutputChunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutputChunk").field("instance", &self.instance).field("offset", &self.offset).finish_non_exhaustive()
    }
}
impl OutputChunk {
    /// A chunk of process `main` without a gap before it.
    pub fn new(instance: InstanceId, stream: Stream, offset: u64, time: jiff::Timestamp, bytes: Bytes, ack: Box<dyn FnOnce() + Send>) -> Self {
        Self { instance, stream, offset, time, bytes, process: "main".into(), life: 0, gap_before: None, ack }
    }
    /// Kept safely: init may forget everything up to here.
    pub fn ack(self) { (self.ack)() }
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit { pub code: Option<i32>, pub signal: Option<i32> }

/// A process that init runs.
#[derive(Debug, Clone)]
pub struct Running { pub key: String, pub pid: u32 }

/// Pipes of a session process; init keeps duplicates, so dropping these ends nothing (`Link::close` does).
#[derive(Debug)]
pub struct Pipes {
    pub stdin: tokio::net::unix::pipe::Sender,
    pub stdout: tokio::net::unix::pipe::Receiver,
    pub pid: u32,
    /// Set once when it ended.
    pub exit: watch::Receiver<Option<Exit>>,
}

/// One container's init.
#[derive(Clone, Debug)]
pub struct Link {}
impl Link {
    pub fn instance(&self) -> InstanceId { todo!() }
    /// Still connected?
    pub fn is_up(&self) -> bool { todo!() }
    /// Starts the container's main process (HTTP servers); its exit ends the container. Repeating it is harmless.
    pub async fn start_main(&self, _process: Process) -> Result<u32> { todo!() }
    /// Exit of the main process, when it has ended.
    pub fn main_exit(&self) -> watch::Receiver<Option<Exit>> { todo!() }
    /// Starts a process with pipes for stdin and stdout; stderr is log. `key` names it within the container.
    pub async fn spawn(&self, _key: &str, _process: Process) -> Result<Pipes> { todo!() }
    /// Takes the pipes of a process that a former agent started.
    pub async fn resume(&self, _key: &str) -> Result<Pipes> { todo!() }
    /// Every process that init runs (main has key `main`).
    pub async fn processes(&self) -> Result<Vec<Running>> { todo!() }
    /// Closes its stdin, then TERM after `grace`, KILL after twice that, and forgets it.
    pub async fn close(&self, _key: &str, _grace: std::time::Duration) -> Result<()> { todo!() }
    pub async fn signal(&self, _key: &str, _signal: i32) -> Result<()> { todo!() }
    /// Connects to 127.0.0.1:port (then ::1) inside; the socket itself is passed out, so that no byte goes through init.
    pub async fn dial(&self, _port: u16) -> Result<tokio::net::TcpStream> { todo!() }
}

#[derive(Clone, Debug)]
pub struct InitLinks {}
impl InitLinks {
    /// Writes the embedded init binary, listens for all instances found in `<data>/run`, and gives out what they print.
    pub async fn spawn(_data_dir: &Path, _outbound: sigil_config::agent::OutboundConfig, _stop: CancellationToken) -> Result<(Self, mpsc::Receiver<OutputChunk>)> { todo!() }
    /// Makes the instance's socket directory and listens. Answers the mounts and PID 1's command line.
    /// `outbound`: whether init answers DNS and forwards connections (containers without an engine network).
    pub async fn prepare(&self, _instance: InstanceId, _outbound: bool) -> Result<(Vec<Mount>, Vec<String>, BTreeMap<String, String>)> { todo!() }
    /// PID 1 of the instance as the engine tells it: connections from any other process are refused. Call after start and after every adoption.
    pub fn expect(&self, _instance: InstanceId, _pid: u32) { todo!() }
    /// Waits until the instance's init is connected.
    pub async fn wait(&self, _instance: InstanceId, _timeout: std::time::Duration) -> Result<Link> { todo!() }
    pub fn link(&self, _instance: InstanceId) -> Option<Link> { todo!() }
    /// Changes whenever an init connects, disconnects or reports an exit.
    pub fn changes(&self) -> watch::Receiver<u64> { todo!() }
    /// Stops listening and removes the directory.
    pub async fn forget(&self, _instance: InstanceId) { todo!() }
    /// Directories of instances that nobody asked for.
    pub fn known(&self) -> Vec<InstanceId> { todo!() }
    pub fn binary(&self) -> PathBuf { todo!() }
    #[doc(hidden)] pub fn _unused(_: Arc<()>) {}
}
