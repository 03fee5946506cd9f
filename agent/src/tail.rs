//! Owns: log lines, in memory and on disk.
//! May touch: `<data>/logs`.
//! Never: waits for a reader, or lets one deployment's output hold up another's.
//! Tested by: unit tests here (with a property test of crash recovery), `tests/docker`, `tests/src/bin/bench-logs.rs`.
//!
//! A chunk of init's output is split into lines, encoded as one frame, appended to the deployment's head file and only
//! then acknowledged; the frame is also in the ring. Full heads become compressed blocks of a segment. Every reader is
//! a [`Cursor`] that pulls from ring and files by sequence number: a stalled one costs nothing.
//!
//! Unfinished lines: kept until their newline, for at most 250 ms of silence on that stream (a prompt, a last word
//! without a newline), or until their instance is gone. They are on disk meanwhile, so a restarted agent goes on with them.

mod cursor;
mod disk;
mod frame;
mod late;
mod split;
mod store;
#[cfg(test)]
mod tests;
mod worker;
mod writer;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use sigil_config::agent::LogsConfig;
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo, Stream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::initlink::OutputChunk;
pub use cursor::Cursor;
use cursor::Filter;
use store::{Dep, Msg, lock};
use worker::Common;
use writer::Item;

/// Why the tail room could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// Reading or making files failed.
    #[error("logs: {0}")]
    Io(String),
    /// `--grep` is no regular expression.
    #[error("'{pattern}' is not a regular expression: {why}")]
    BadPattern {
        /// As given.
        pattern: String,
        /// The parser's message.
        why: String,
    },
    /// More lines than can be picked out of several deployments or through a filter.
    #[error("the last {0} lines cannot be picked out of several deployments or through a filter")]
    TooMany(u64),
}

impl TailError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io(_) => "see the agent's log, and that its data directory is on a disk with room",
            Self::BadPattern { .. } => "escape special characters with a backslash, as in '\\[warn\\]'",
            Self::TooMany(_) => "ask for at most 1,000,000, or use --since",
        }
    }
}

/// Results of this room.
pub type Result<T> = std::result::Result<T, TailError>;

/// A kept line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When init read it.
    pub time: Timestamp,
    /// Whose it is.
    pub deployment: DeploymentId,
    /// The replica that wrote it; `None` for builds and marks about the whole deployment.
    pub instance: Option<InstanceId>,
    /// The release that wrote it.
    pub release: ReleaseNo,
    /// Where it was written to.
    pub stream: Stream,
    /// Counts the deployment's lines from 1, without holes.
    pub seq: u64,
    /// Without its line end; any bytes.
    pub bytes: Bytes,
    /// Longer than the limit: it goes on in the next line.
    pub cut: bool,
}

/// Lines that were lost: to a reader that was too slow for what is kept, or on the way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Where.
    pub deployment: DeploymentId,
    /// How many lines; 0 when only bytes are known (then `reason` says how many).
    pub lost: u64,
    /// The line before them.
    pub after_seq: u64,
    /// Why, for people.
    pub reason: String,
}

/// What a cursor gives out at once.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Merged by time.
    pub lines: Vec<Line>,
    /// Belong before the first line of their deployment with a greater sequence number.
    pub gaps: Vec<Gap>,
    /// Where to go on after this batch (`Query::resume`); only those that moved.
    pub positions: Vec<(DeploymentId, u64)>,
}

/// Who an instance is: told by reconcile before it starts.
#[derive(Debug, Clone)]
pub struct Instance {
    /// The replica.
    pub instance: InstanceId,
    /// Whose it is.
    pub deployment: DeploymentId,
    /// What it runs.
    pub release: ReleaseNo,
}

/// What a reader wants.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Whose lines; one that has none yet is fine.
    pub deployments: Vec<DeploymentId>,
    /// Empty: all.
    pub streams: Vec<Stream>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// Only the newest so many of what is kept now (then `follow` goes on).
    pub tail: Option<u64>,
    /// A regular expression over bytes that a line must match.
    pub grep: Option<String>,
    /// Goes on with what comes.
    pub follow: bool,
    /// Go on after these sequence numbers; `tail` does not count for them.
    pub resume: Vec<(DeploymentId, u64)>,
    /// Only lines of instances that no longer run.
    pub previous: bool,
}

/// What is kept of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of compressed segments.
    pub bytes: u64,
    /// The oldest kept line.
    pub first: u64,
    /// The line that comes next.
    pub next: u64,
    /// Lines given up since the agent started: aged out, or not writable.
    pub dropped: u64,
}

/// Where lines are that init had to write to the engine's capped log while no agent was there, its last words and their
/// marks included.
#[async_trait]
pub trait GapSource: Send + Sync + std::fmt::Debug {
    /// Lines that the instance's container wrote to the engine's log from `since` to `until`, oldest first:
    /// (time, from stderr, bytes). Empty when the engine no longer has them.
    async fn lines(&self, instance: InstanceId, since: Timestamp, until: Timestamp) -> Vec<(Timestamp, bool, Bytes)>;
}

/// Output of instances that nobody has named yet, all together, bytes.
const HELD: usize = 16 << 20;
/// And of one instance.
const HELD_ONE: usize = 1 << 20;
/// What a held chunk counts beside its bytes.
const CHUNK: usize = 256;

/// How long a reader waits for output that is on its way to the files.
const CATCH_UP: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Names {
    known: HashMap<InstanceId, Instance>,
    held: HashMap<InstanceId, Held>,
    held_bytes: usize,
}

#[derive(Debug, Default)]
struct Held {
    chunks: VecDeque<OutputChunk>,
    bytes: usize,
    lost: u64,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    common: Arc<Common>,
    deps: Mutex<HashMap<DeploymentId, Arc<Dep>>>,
    names: Mutex<Names>,
    runtime: tokio::runtime::Handle,
    workers: tokio_util::task::TaskTracker,
}

/// The room's handle.
#[derive(Clone, Debug)]
pub struct Tail {
    inner: Arc<Inner>,
}

impl Tail {
    /// Starts reading `output`; a chunk is acknowledged when its lines are written to a file. What a former life kept
    /// in `<data>/logs` is recovered when its deployment is first asked for. Ends with `stop`, after writing what waits.
    pub async fn spawn(
        data_dir: &Path,
        config: LogsConfig,
        output: mpsc::Receiver<OutputChunk>,
        stop: CancellationToken,
    ) -> Result<Self> {
        let root = data_dir.join("logs");
        tokio::fs::create_dir_all(&root).await.map_err(|e| TailError::Io(format!("{}: {e}", root.display())))?;
        let common = Arc::new(Common {
            config: RwLock::new(config),
            gap_source: RwLock::new(None),
            masks: Arc::default(),
            stop: stop.clone(),
        });
        let workers = tokio_util::task::TaskTracker::new();
        let inner = Inner {
            root,
            common,
            deps: Mutex::new(HashMap::new()),
            names: Mutex::new(Names::default()),
            runtime: tokio::runtime::Handle::current(),
            workers: workers.clone(),
        };
        let tail = Self { inner: Arc::new(inner) };
        workers.spawn(tail.clone().read(output));
        Ok(tail)
    }

    async fn read(self, mut output: mpsc::Receiver<OutputChunk>) {
        let stop = self.inner.common.stop.clone();
        loop {
            let chunk = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                chunk = output.recv() => chunk,
            };
            let Some(chunk) = chunk else { return };
            self.route(chunk);
        }
    }

    fn route(&self, chunk: OutputChunk) {
        let mut names = lock(&self.inner.names);
        if let Some(known) = names.known.get(&chunk.instance) {
            let (deployment, release) = (known.deployment, known.release);
            drop(names);
            return self.push(&self.dep(deployment), Msg::Chunk(chunk, release));
        }
        let size = chunk.bytes.len() + CHUNK;
        let room = names.held_bytes + size <= HELD;
        let held = names.held.entry(chunk.instance).or_default();
        if room && held.bytes + size <= HELD_ONE && held.lost == 0 {
            held.bytes += size;
            held.chunks.push_back(chunk);
            names.held_bytes += size;
        } else {
            held.lost += chunk.bytes.len() as u64;
            chunk.ack();
        }
    }

    /// Where to ask for output that went to the engine's log while no agent ran. Set it before instances are named.
    pub fn set_gap_source(&self, source: Arc<dyn GapSource>) {
        *self.inner.common.gap_source.write().unwrap_or_else(PoisonError::into_inner) = Some(source);
    }

    /// What takes secret values out of lines before they are kept; `None`: there is none in it. The first one counts.
    pub fn set_masks(&self, masks: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) {
        let _ = self.inner.common.masks.set(frame::Masks(Arc::new(masks)));
    }

    /// New limits, from the next line on.
    pub fn configure(&self, config: LogsConfig) {
        *self.inner.common.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// An instance exists. Output of unknown instances is held until they are named (at most 1 MiB each, more is
    /// counted as lost).
    pub fn instance(&self, instance: Instance) {
        let mut names = lock(&self.inner.names);
        let held = names.held.remove(&instance.instance).unwrap_or_default();
        names.held_bytes -= held.bytes;
        let (deployment, release) = (instance.deployment, instance.release);
        names.known.insert(instance.instance, instance);
        if held.chunks.is_empty() && held.lost == 0 {
            return;
        }
        // Under the lock, so that newer chunks queue behind.
        let dep = self.dep(deployment);
        for chunk in held.chunks {
            self.push(&dep, Msg::Chunk(chunk, release));
        }
        if held.lost > 0 {
            let reason = "output came before its instance was known".to_owned();
            self.push(&dep, Msg::Item(Item::Lost { bytes: held.lost, reason }));
        }
    }

    /// The instance is gone for good: its unfinished lines are ended and it counts as `previous`.
    pub fn instance_gone(&self, instance: InstanceId) {
        let deployment = {
            let mut names = lock(&self.inner.names);
            if let Some(held) = names.held.remove(&instance) {
                names.held_bytes -= held.bytes;
            }
            names.known.remove(&instance).map(|k| k.deployment)
        };
        if let Some(deployment) = deployment {
            self.push(&self.dep(deployment), Msg::Item(Item::Gone(instance)));
        }
    }

    /// A named instance's container has ended: what its init wrote to the engine's log instead of the link is read
    /// back, each byte once however often this is called. The answer waits until it is written.
    pub fn ended(&self, instance: InstanceId) -> impl Future<Output = ()> + Send + 'static {
        let known = lock(&self.inner.names).known.get(&instance).map(|k| (k.deployment, k.release));
        let written = known.map(|(deployment, release)| {
            let dep = self.dep(deployment);
            let (done, written) = oneshot::channel();
            self.push(&dep, Msg::Late(instance, release));
            self.push(&dep, Msg::Barrier(done));
            written
        });
        async move {
            if let Some(written) = written {
                // An error is a queue that closed: the agent stops, and the next one reads it.
                let _ = written.await;
            }
        }
    }

    /// The time of the newest output of a named instance that is kept: what a former agent already had. Reads the
    /// deployment's head file when it was not read yet.
    pub fn kept(&self, instance: InstanceId) -> Option<Timestamp> {
        let deployment = lock(&self.inner.names).known.get(&instance).map(|k| k.deployment)?;
        let dep = self.dep(deployment);
        if let Err(e) = dep.load(&self.inner.common.config()) {
            tracing::warn!(%deployment, error = %e, "kept log lines cannot be read");
            return None;
        }
        let micros = dep.shared().kept.get(&instance).copied()?;
        Timestamp::from_microsecond(micros).ok()
    }

    /// Adds lines that did not come over a link (marks of the agent, garbage on a stdio server's stdout, build
    /// output). `line` may hold several; its last line end may be missing. Waits only while 4 MiB are ahead of it.
    pub async fn append(
        &self,
        deployment: DeploymentId,
        release: ReleaseNo,
        instance: Option<InstanceId>,
        stream: Stream,
        time: Timestamp,
        line: Bytes,
    ) {
        let dep = self.dep(deployment);
        if dep.room().await {
            self.push(&dep, Msg::Item(Item::Line { release, instance, stream, time, bytes: line }));
        }
    }

    /// A place to read from.
    pub fn cursor(&self, query: Query) -> Result<Cursor> {
        let filter = Filter::new(&query, || lock(&self.inner.names).known.keys().copied().collect::<HashSet<_>>())?;
        let mut seen = HashSet::new();
        let deps = query.deployments.iter().filter(|d| seen.insert(**d)).map(|d| self.dep(*d)).collect();
        Cursor::new(deps, &query, filter, Arc::clone(&self.inner.common))
    }

    /// Waits until what was taken in before this call is written, so that a reader who does not follow sees it; at most
    /// 5 s: the engine's log of an instance that ended may be slow to come.
    pub async fn caught_up(&self, deployments: &[DeploymentId]) {
        let deps: Vec<_> = {
            let all = lock(&self.inner.deps);
            deployments.iter().filter_map(|id| all.get(id).cloned()).collect()
        };
        let written = futures::future::join_all(deps.iter().map(|dep| self.barrier(dep)));
        let _late = tokio::time::timeout(CATCH_UP, written).await;
    }

    /// Last lines of output of one instance (or of any), oldest first, for 'why did it fail'; its unfinished line too.
    pub async fn last(&self, deployment: DeploymentId, instance: Option<InstanceId>, n: usize) -> Vec<Line> {
        let dep = self.dep(deployment);
        self.push(&dep, Msg::Item(Item::Finish(instance)));
        self.barrier(&dep).await;
        let found = tokio::task::spawn_blocking(move || cursor::last(&dep, &Filter::output(instance), n)).await;
        found.unwrap_or_default()
    }

    /// Forgets a removed deployment: its files, its instances. Its followers end.
    pub async fn forget(&self, deployment: DeploymentId) {
        let dep = self.dep(deployment);
        lock(&self.inner.names).known.retain(|_, k| k.deployment != deployment);
        let (done, gone) = oneshot::channel();
        self.push(&dep, Msg::Forget(done));
        let _ = gone.await;
        lock(&self.inner.deps).retain(|_, d| !Arc::ptr_eq(d, &dep));
    }

    /// Returns when everything taken in so far is written. After `stop`: when all writers have ended.
    pub async fn flush(&self) {
        if self.inner.common.stop.is_cancelled() {
            self.inner.workers.close();
            return self.inner.workers.wait().await;
        }
        let deps: Vec<_> = lock(&self.inner.deps).values().cloned().collect();
        for dep in deps {
            self.barrier(&dep).await;
        }
    }

    /// What is kept of a deployment.
    pub async fn stats(&self, deployment: DeploymentId) -> Result<Stats> {
        let (dep, config) = (self.dep(deployment), self.inner.common.config());
        let loaded = tokio::task::spawn_blocking(move || dep.load(&config).map(|()| dep)).await;
        let dep = loaded.map_err(|e| TailError::Io(e.to_string()))?.map_err(|e| TailError::Io(e.to_string()))?;
        let shared = dep.shared();
        Ok(Stats { bytes: shared.segment_bytes(), first: shared.first(), next: shared.next, dropped: shared.dropped })
    }

    async fn barrier(&self, dep: &Arc<Dep>) {
        let (done, written) = oneshot::channel();
        self.push(dep, Msg::Barrier(done));
        // An error is a queue that closed: the agent stops.
        let _ = written.await;
    }

    fn dep(&self, id: DeploymentId) -> Arc<Dep> {
        let mut deps = lock(&self.inner.deps);
        Arc::clone(deps.entry(id).or_insert_with(|| Arc::new(Dep::new(id, self.inner.root.join(id.to_string())))))
    }

    fn push(&self, dep: &Arc<Dep>, msg: Msg) {
        if dep.push(msg) {
            let work = worker::run(Arc::clone(dep), Arc::clone(&self.inner.common));
            self.inner.workers.spawn_on(work, &self.inner.runtime);
        }
    }
}
