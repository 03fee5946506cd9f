//! Owns: what containers, deployments and the host use now and used before: the latest reading, a short window, the rings on
//! disk, and what servers tell of themselves (`/mcp/metrics`).
//! May touch: `/proc`, `/sys/fs/cgroup`, `<data>/metrics`; sizes of files in volumes; the engine's figures where files cannot be read; of a server only
//! that one page, through its init.
//! Never: wakes anybody, counts as traffic, or decides what a figure means.
//! Tested by: unit tests here (recorded trees of both versions of control groups), `tests/contract` (the engine's figures),
//! `scripts/bench stats` (agreement with the engine, and the cost).
//!
//! Reconcile tells which instances run. Every ten seconds one thread that may wait reads the files of all of them; one that
//! is frozen is looked at for that alone, and wholly once a minute.

mod disk;
mod ending;
mod host;
mod read;
mod rings;
mod scrape;
#[cfg(test)]
mod tests;
mod work;

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_config::agent::AgentConfig;
use sigil_core::cgroup::Reading;
use sigil_core::exposition::Families;
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo};
use sigil_core::series::{self, Metric, Point, TIERS, WIDTH};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use disk::Volumes;
pub use ending::Ending;
pub use host::Host;
pub use read::{figures, lives, needed, reclaim_file, uptime};

use crate::engine::Engine;
use crate::initlink::InitLinks;
use crate::store::Store;
use crate::web::Traffic;

/// Points of the window: ten minutes.
pub const WINDOW: usize = 60;
/// Points of one answer of [`Sample::series`], at most.
pub const POINTS_MAX: usize = 11_520;

/// Instances that are expected at once; of more the end is not told.
const EXPECTED_MAX: usize = 8192;

/// An instance that runs, as reconcile knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Which one.
    pub instance: InstanceId,
    /// Of which deployment.
    pub deployment: DeploymentId,
    /// Of which release.
    pub release: ReleaseNo,
    /// The engine's id of its container.
    pub container: String,
    /// Its PID 1, in this host's numbering.
    pub pid: u32,
    /// Whether it passed its gate and serves.
    pub ready: bool,
}

/// One life of a container: from a start to its end. Counters of a [`Reading`] count from its begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Life {
    /// Of the machine's boot, the first eight bytes of its id.
    pub boot: u64,
    /// When its PID 1 began, clock ticks since the boot.
    pub began: u64,
    /// Its PID 1.
    pub pid: u32,
}

/// What a replica uses.
#[derive(Clone, Debug)]
pub struct ReplicaUse {
    /// Which one.
    pub instance: InstanceId,
    /// Of which release.
    pub release: ReleaseNo,
    /// Of which life of it `reading` tells.
    pub life: Life,
    /// Counters and levels, as they were at `at`.
    pub reading: Reading,
    /// Of which the counters of network traffic count: a life of the container where it has a network of its own; else the
    /// agent carries its connections, and they count from the agent's start.
    pub network_life: Life,
    /// CPU used since the reading before, cores.
    pub cpu_cores: f64,
    /// Its hard quota, cores.
    pub cpu_limit: f64,
    /// Its hard limit, bytes.
    pub memory_limit: u64,
    /// Memory that was no file's when it passed its gate, bytes; what it needs without any load.
    pub baseline: Option<u64>,
    /// Whether it is paused.
    pub frozen: bool,
    /// Whether it serves.
    pub ready: bool,
    /// Whether the engine was asked, since files could not be read.
    pub by_engine: bool,
    /// When.
    pub at: Timestamp,
}

impl ReplicaUse {
    /// CPU of its quota, percent.
    pub fn cpu_limit_percent(&self) -> f64 {
        if self.cpu_limit > 0.0 { self.cpu_cores / self.cpu_limit * 100.0 } else { 0.0 }
    }

    /// Memory of its limit, percent.
    pub fn memory_limit_percent(&self) -> f64 {
        percent(self.reading.memory, self.memory_limit)
    }

    /// Memory above the baseline, percent of the limit: what load made of it. Runtimes do not give memory back.
    pub fn memory_load_percent(&self) -> f64 {
        percent(self.reading.memory.saturating_sub(self.baseline.unwrap_or(self.reading.memory)), self.memory_limit)
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 }
}

/// What a deployment uses, all replicas together.
#[derive(Clone, Debug, Default)]
pub struct DeploymentUse {
    /// Each replica that runs or is paused.
    pub replicas: Vec<ReplicaUse>,
    /// CPU, percent of one core.
    pub cpu_percent: f64,
    /// CPU of the quota, percent, mean of the replicas that serve.
    pub cpu_limit_percent: f64,
    /// Memory without what the kernel would drop first, bytes.
    pub memory_bytes: u64,
    /// Memory above the baseline, percent of the limit, mean of the replicas that serve.
    pub memory_load_percent: f64,
    /// What the gateway counted since the agent's start.
    pub traffic: Arc<Traffic>,
    /// The last ten minutes, oldest first, ten seconds each, values as [`series::DEPLOYMENT`] has them. What was not
    /// measured is missing.
    pub window: Arc<VecDeque<Point>>,
}

/// Everything, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When; `None` before the first round.
    pub at: Option<Timestamp>,
    /// The host, and the agent itself.
    pub host: Arc<Host>,
    /// By deployment; those that run nothing and are not called are missing.
    pub deployments: HashMap<DeploymentId, Arc<DeploymentUse>>,
    /// How it was measured.
    pub effort: Effort,
    /// What volumes take on disk, by deployment; those that have none are missing.
    pub volumes: Arc<HashMap<DeploymentId, Volumes>>,
    /// What servers tell of themselves.
    pub servers: Arc<Families>,
}

/// What measuring took, since the agent's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// Rounds.
    pub rounds: u64,
    /// How long the last one took, without waiting for the engine.
    pub last: Duration,
    /// Containers whose files were read.
    pub files: u64,
    /// Containers about which the engine was asked.
    pub engine: u64,
    /// Containers about which neither could say anything.
    pub failed: u64,
    /// Points that could not be kept.
    pub lost: u64,
    /// Bytes that the rings take on disk at most.
    pub ring_bytes: u64,
    /// Pages of servers that were read.
    pub pages: u64,
    /// Lines of those that do not fit the form, or were beyond the limit.
    pub page_lines_left_out: u64,
}

/// What a series is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Of {
    /// The host.
    Host,
    /// A deployment.
    Deployment(DeploymentId),
}

impl Of {
    /// What its points hold.
    pub fn metrics(self) -> &'static [Metric; WIDTH] {
        match self {
            Self::Host => &series::HOST,
            Self::Deployment(_) => &series::DEPLOYMENT,
        }
    }
}

/// What the gateway has counted, by deployment.
pub type Counted = dyn Fn() -> Vec<(DeploymentId, Traffic)> + Send + Sync;

/// What the room needs.
#[derive(Debug)]
pub struct Deps {
    /// Limits of releases; which deployments there are.
    pub store: Store,
    /// Where files cannot be read.
    pub engine: Arc<dyn Engine>,
    /// What the agent carries for containers, and the way to a server's page.
    pub links: InitLinks,
    /// `[metrics]`.
    pub config: watch::Receiver<Arc<AgentConfig>>,
    /// The data directory.
    pub data_dir: PathBuf,
}

/// The room's handle.
#[derive(Clone)]
pub struct Sample {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sample").field("rings", &self.shared.rings).finish_non_exhaustive()
    }
}

struct Shared {
    instances: watch::Sender<Arc<Vec<Instance>>>,
    latest: watch::Sender<Arc<Snapshot>>,
    counted: OnceLock<Box<Counted>>,
    /// Somebody is new, or newly ready.
    hurry: Notify,
    endings: ending::Endings,
    /// Those whose init is about to be heard, until they are in `instances`.
    expected: Mutex<HashMap<InstanceId, Instance>>,
    links: InitLinks,
    rings: PathBuf,
    tasks: TaskTracker,
}

impl Sample {
    /// Starts measuring, and goes on until `stop`.
    pub fn spawn(deps: Deps, stop: CancellationToken) -> Self {
        let shared = Arc::new(Shared {
            instances: watch::Sender::default(),
            latest: watch::Sender::default(),
            counted: OnceLock::new(),
            hurry: Notify::new(),
            endings: ending::Endings::default(),
            expected: Mutex::default(),
            links: deps.links.clone(),
            rings: rings::directory(&deps.data_dir),
            tasks: TaskTracker::new(),
        });
        shared.tasks.spawn(work::run(deps, shared.clone(), stop));
        shared.tasks.close();
        Self { shared }
    }

    /// Tells which instances run or are paused; the whole list each time.
    pub fn instances(&self, mut now: Vec<Instance>) {
        now.sort_unstable_by_key(|i| i.instance);
        let known = |id: &InstanceId| now.binary_search_by_key(id, |i| i.instance).is_ok();
        self.shared.expected.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| !known(id));
        let changed = self.shared.instances.send_if_modified(|held| {
            let other = **held != now;
            if other {
                *held = Arc::new(now);
            }
            other
        });
        if changed {
            self.shared.hurry.notify_one();
        }
    }

    /// Tells of an instance before its init may be heard: the first thing that it says may be that its server has ended, while
    /// no agent was there.
    pub fn expect(&self, instance: Instance) {
        let mut expected = self.shared.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if expected.len() < EXPECTED_MAX {
            expected.insert(instance.instance, instance);
        }
    }

    /// Tells where the gateway's counts are. Only the first call counts.
    pub fn tell_traffic(&self, counted: impl Fn() -> Vec<(DeploymentId, Traffic)> + Send + Sync + 'static) {
        self.shared.counted.set(Box::new(counted)).ok();
    }

    /// A process of an instance has ended, and its init, which has this pid, is about to: reads what it used, for
    /// [`Self::endings`].
    pub fn ending(&self, instance: InstanceId, pid: u32) {
        let instances = self.shared.instances.borrow().clone();
        let of = instances.iter().find(|i| i.instance == instance && i.pid == pid).cloned();
        let expected = || self.shared.expected.lock().unwrap_or_else(PoisonError::into_inner).get(&instance).cloned();
        if let Some(of) = of.or_else(expected).filter(|of| of.pid == pid) {
            self.shared.endings.read(&of, self.shared.links.carried(instance));
        }
    }

    /// Whether [`Self::endings`] has any.
    pub fn has_endings(&self) -> bool {
        self.shared.endings.any()
    }

    /// The last figures of containers that ended since this was asked last; each is told once.
    pub fn endings(&self) -> Vec<Ending> {
        self.shared.endings.take()
    }

    /// The latest reading of everything, and each that follows.
    pub fn latest(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.latest.subscribe()
    }

    /// The latest reading of a deployment; `None` while it runs nothing and is not called.
    pub fn deployment(&self, id: DeploymentId) -> Option<Arc<DeploymentUse>> {
        self.shared.latest.borrow().deployments.get(&id).cloned()
    }

    /// What was measured from one moment to another (seconds since 1970), in steps of `step` seconds or of what is kept
    /// of that time, oldest first; at most [`POINTS_MAX`], the newest ones. A step in which nothing was measured is missing.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub async fn series(&self, of: Of, from: i64, to: i64, step: u32) -> std::io::Result<(u32, Vec<(i64, Point)>)> {
        let directory = self.shared.rings.clone();
        let tier = series::tier_for(Timestamp::now().as_second(), from, step);
        let step = if step.is_multiple_of(tier.step) { step.max(tier.step) } else { tier.step };
        let read = move || {
            let oldest = tier.interval(to).saturating_sub(tier.slots - 1);
            let from = tier.interval(from).max(oldest);
            rings::read(&directory, of, tier, from, tier.interval(to))
        };
        let points = tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other)??;
        let mut steps = series::in_steps(of.metrics(), tier, &points, step);
        steps.drain(..steps.len().saturating_sub(POINTS_MAX));
        Ok((step, steps))
    }

    /// Waits until it has ended, at most this long.
    pub async fn closed(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.shared.tasks.wait()).await.is_ok()
    }
}

/// How often everything is read: the finest that is kept.
pub const EVERY: Duration = Duration::from_secs(TIERS[0].step as u64);

/// Where the kernel's files are.
#[derive(Clone, Debug)]
struct Trees {
    proc: PathBuf,
    cgroup: PathBuf,
}

impl Default for Trees {
    fn default() -> Self {
        Self { proc: Path::new("/proc").to_owned(), cgroup: Path::new("/sys/fs/cgroup").to_owned() }
    }
}
