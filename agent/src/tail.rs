//! Owns: log lines, in memory and on disk. May touch: `<data>/logs`. Never: waits for a reader. Tested by: unit tests, `tests/docker`, bench.
use std::path::Path;
use std::sync::Arc;
use bytes::Bytes;
use jiff::Timestamp;
use sigil_config::agent::LogsConfig;
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo, Stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use crate::initlink::OutputChunk;

#[derive(Debug, thiserror::Error)]
pub enum TailError {
    #[error("logs: {0}")]
    Io(String),
    #[error("'{pattern}' is not a regular expression: {why}")]
    BadPattern { pattern: String, why: String },
}
pub type Result<T> = std::result::Result<T, TailError>;

/// A kept line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub time: Timestamp,
    pub deployment: DeploymentId,
    pub instance: Option<InstanceId>,
    pub release: ReleaseNo,
    pub stream: Stream,
    /// Counts the deployment's lines from 1, without holes.
    pub seq: u64,
    pub bytes: Bytes,
    pub cut: bool,
}
/// Lines that were lost: to a reader that was too slow for what is kept, or on the way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap { pub deployment: DeploymentId, pub lost: u64, pub after_seq: u64, pub reason: String }
#[derive(Debug, Clone, Default)]
pub struct Batch { pub lines: Vec<Line>, pub gaps: Vec<Gap>, pub positions: Vec<(DeploymentId, u64)> }

/// Who an instance is: told by reconcile before it starts.
#[derive(Debug, Clone)]
pub struct Instance { pub instance: InstanceId, pub deployment: DeploymentId, pub release: ReleaseNo }

#[derive(Debug, Clone, Default)]
pub struct Query {
    pub deployments: Vec<DeploymentId>,
    pub streams: Vec<Stream>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub tail: Option<u64>,
    pub grep: Option<String>,
    pub follow: bool,
    /// Go on after these sequence numbers.
    pub resume: Vec<(DeploymentId, u64)>,
    /// Only lines of instances that no longer run.
    pub previous: bool,
}

#[derive(Debug)]
pub struct Cursor {}
impl Cursor {
    /// The next lines (at most ~1,000 or 256 KiB), merged by time; `None` at the end (only without `follow`).
    /// Cancel-safe. A reader that lags is told what it lost by a `Gap`.
    pub async fn next(&mut self) -> Result<Option<Batch>> { todo!() }
}

#[derive(Clone, Debug)]
pub struct Tail {}
impl Tail {
    /// Recovers segments of a former life and starts reading `output`; acks a chunk when its lines are written to a file.
    pub async fn spawn(_data_dir: &Path, _config: LogsConfig, _output: mpsc::Receiver<OutputChunk>, _stop: CancellationToken) -> Result<Self> { todo!() }
    /// An instance exists (or is gone). Output of unknown instances is held until they are named (bounded).
    pub fn instance(&self, _instance: Instance) { todo!() }
    pub fn instance_gone(&self, _instance: InstanceId) { todo!() }
    /// The highest init offset kept per (instance, stream): what a former agent already has; and the time of the newest kept line.
    pub fn kept(&self, _instance: InstanceId) -> Option<Timestamp> { todo!() }
    /// Adds lines that did not come over a link (marks of the agent, garbage on a stdio server's stdout, the engine log's gap).
    pub async fn append(&self, _deployment: DeploymentId, _release: ReleaseNo, _instance: Option<InstanceId>, _stream: Stream, _time: Timestamp, _line: Bytes) { todo!() }
    pub fn cursor(&self, _query: Query) -> Result<Cursor> { todo!() }
    /// Last lines of one instance, oldest first, for 'why did it fail'.
    pub async fn last(&self, _deployment: DeploymentId, _instance: Option<InstanceId>, _n: usize) -> Vec<Line> { todo!() }
    /// Forgets a removed deployment's files.
    pub async fn forget(&self, _deployment: DeploymentId) { todo!() }
    /// Finishes writing.
    pub async fn flush(&self) { todo!() }
    #[doc(hidden)] pub fn _u(_: Arc<()>) {}
}
