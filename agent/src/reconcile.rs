//! Owns: observed instances, conditions, the last plan, the route table.
//! May touch: engine, initlink, secrets, tail, upstream, `<data>/lives`; of the store only what a gate proves (a release's outcome, and
//! the return to the last good one).
//! Never: invents desired state, or forgets what it started.
//! Tested by: `tests/sim` (fake engine), `tests/docker`.
//!
//! One task holds all slots and is level-triggered: whatever woke it, it observes, plans (in `sigil_core::plan`) and
//! starts what is missing. Slow things (create, start, gate, stop) run in tasks of their own, one per instance, whose
//! results come back over one bounded channel, so that a hung engine call holds up one instance only.

mod act;
mod budget;
mod learnt;
mod lives;
mod observe;
mod reclaim;
mod routes;
mod sleep;
mod slots;
mod status;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use sigil_config::agent::AgentConfig;
use sigil_core::model::{AgentId, DeploymentId, InstanceId, ReleaseNo, State};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use lives::{Ended, LIVES_MAX, Said};

use crate::audit::Audit;
use crate::engine::Engine;
use crate::initlink::InitLinks;
use crate::inspect::{Drift, Inspect};
use crate::sample::Sample;
use crate::secrets::Secrets;
use crate::store::Store;
use crate::tail::Tail;
use crate::upstream::RouteTable;

/// Wakes that nobody calls for and that wait for the loop.
const WAKES: usize = 64;

/// A deployment as observed.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Which one.
    pub id: DeploymentId,
    /// The word for it.
    pub state: State,
    /// Replicas that serve.
    pub ready: u32,
    /// Restarts of its replicas since the agent started.
    pub restarts: u32,
    /// The release that serves, if any.
    pub serving: Option<ReleaseNo>,
    /// What a person should know, one line; empty when all is well.
    pub message: String,
    /// The host has no room for what it wants; the message says what is missing.
    pub waits_for_room: bool,
    /// healthy, degraded, unhealthy, unknown
    pub health: String,
    /// What holds and what does not.
    pub conditions: Vec<Condition>,
    /// Its instances.
    pub replicas: Vec<ReplicaStatus>,
    /// What would be done now, and why something is not.
    pub plan: Vec<String>,
    /// Generation this was computed from.
    pub generation: u64,
    /// What is desired is there, and nothing is left to do.
    pub settled: bool,
    /// When `state` last changed.
    pub changed_at: Timestamp,
    /// The last failed start or gate, and the generation it happened under.
    pub failure: Option<(u64, String)>,
    /// Last output of the last failed instance.
    pub last_output: Vec<String>,
    /// What its last start from a sleep took, until it could be called.
    pub wake_took: Option<Duration>,
    /// CPU of all replicas, percent of one core.
    pub cpu_percent: f64,
    /// Memory of all replicas, bytes.
    pub memory_bytes: u64,
}

/// One thing that holds or does not.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// `Available`, `Progressing`, `EngineReachable`.
    pub kind: String,
    /// Whether it holds.
    pub ok: bool,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// One instance.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaStatus {
    /// Which one.
    pub instance: InstanceId,
    /// Its release.
    pub release: ReleaseNo,
    /// creating, starting, gating, ready, draining, backing-off, stopping
    pub state: String,
    /// The engine's id, empty while it is made.
    pub container: String,
    /// Its PID 1, in this host's numbering, while it runs or is paused.
    pub pid: Option<u32>,
    /// When its container last started.
    pub started_at: Option<Timestamp>,
    /// How often it was started again.
    pub restarts: u32,
    /// Why it is where it is.
    pub message: String,
}

/// What the room needs.
pub struct Deps {
    /// Desired state.
    pub store: Store,
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// Links to the inits.
    pub links: InitLinks,
    /// Plaintext at the moment of create.
    pub secrets: Secrets,
    /// Who pins tools.
    pub inspect: Inspect,
    /// What the scanner of today says of what runs.
    pub drift: Drift,
    /// What is changed without anybody asking.
    pub audit: Audit,
    /// Who prints what.
    pub tail: Tail,
    /// Who is told what runs, and tells what it uses.
    pub sample: Sample,
    /// Requests that an instance still carries; told by the gateway.
    pub in_flight: Arc<dyn Fn(InstanceId) -> u64 + Send + Sync>,
    /// Whether a request may still reach an instance; told by the gateway.
    pub reachable: Arc<dyn Fn(DeploymentId, InstanceId) -> bool + Send + Sync>,
    /// Sessions that a deployment holds; told by the gateway.
    pub sessions: Arc<dyn Fn(DeploymentId) -> u64 + Send + Sync>,
    /// Containers run on this host: its memory, disk and CPUs are theirs. Not so on a simulated engine.
    pub own_host: bool,
    /// `[limits]`, and how long a session lives that nobody uses.
    pub config: watch::Receiver<Arc<AgentConfig>>,
    /// Where is kept how containers ended.
    pub data_dir: PathBuf,
    /// Our id, for labels and names.
    pub agent: AgentId,
    /// Where routes go.
    pub routes: watch::Sender<Arc<RouteTable>>,
    /// Images whose servers passed the gate.
    pub proven: Proven,
}

/// What one process of a stdio server needs of memory, bytes, by image, from gates that it passed since this agent
/// started. Such a server's first session need not wait for the gate's end to get its process.
#[derive(Debug, Default)]
pub struct Proven(std::sync::Mutex<std::collections::HashMap<String, u64>>);

impl Proven {
    /// Images remembered; beyond that all are forgotten, which costs the next gate of each a second.
    const MOST: usize = 4096;

    fn map(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn memory(&self, image: &str) -> Option<u64> {
        self.map().get(image).copied()
    }

    fn passed(&self, image: &str, memory: u64) {
        let mut map = self.map();
        if map.len() >= Self::MOST {
            map.clear();
        }
        map.insert(image.to_owned(), memory);
    }
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("agent", &self.agent).finish_non_exhaustive()
    }
}

/// The room's handle.
#[derive(Clone, Debug)]
pub struct Reconcile {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    statuses: RwLock<HashMap<DeploymentId, Arc<Status>>>,
    engine_trouble: RwLock<Option<String>>,
    changes: watch::Sender<u64>,
    tasks: TaskTracker,
    took: Took,
    lives: lives::Lives,
    wakes: mpsc::Sender<(DeploymentId, String)>,
    reclaim_trouble: watch::Sender<Option<String>>,
}

/// How long the loop's work took, microseconds.
#[derive(Debug, Default)]
struct Took {
    count: AtomicU64,
    last: AtomicU64,
    longest: AtomicU64,
}

/// How long passes take: observed containers merged, everything planned, statuses and routes published. Without the
/// engine's own time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passes {
    /// How many there were.
    pub count: u64,
    /// The last one.
    pub last: Duration,
    /// The longest one since the agent started.
    pub longest: Duration,
}

impl Reconcile {
    /// Starts the loop. It ends with `stop`; containers stay as they are.
    pub fn spawn(deps: Deps, stop: CancellationToken) -> Self {
        let (wakes, wanted) = mpsc::channel(WAKES);
        let shared = Arc::new(Shared {
            statuses: RwLock::default(),
            engine_trouble: RwLock::default(),
            changes: watch::channel(0).0,
            tasks: TaskTracker::new(),
            took: Took::default(),
            lives: lives::Lives::new(&deps.data_dir),
            wakes,
            reclaim_trouble: watch::Sender::default(),
        });
        let room = slots::Room::new(deps, shared.clone(), wanted, stop);
        shared.tasks.spawn(room.run());
        shared.tasks.close();
        Self { shared }
    }

    /// One deployment as observed; `None` before the first pass saw it.
    pub fn status(&self, id: DeploymentId) -> Option<Arc<Status>> {
        self.shared.statuses.read().ok()?.get(&id).cloned()
    }

    /// The engine's id of an instance's container; `None`: there is none.
    pub fn container(&self, id: DeploymentId, instance: InstanceId) -> Option<String> {
        let status = self.status(id)?;
        let replica = status.replicas.iter().find(|replica| replica.instance == instance)?;
        Some(replica.container.clone()).filter(|container| !container.is_empty())
    }

    /// Wakes a deployment whose containers have ended, though nobody calls it; the reason is in its log. One that is awake or
    /// frozen stays as it is, and so does each where the host is short of memory.
    pub fn wake(&self, id: DeploymentId, why: String) {
        if self.shared.wakes.try_send((id, why)).is_err() {
            tracing::warn!(deployment = %id, "it is not woken ahead of its calls: too much is going on");
        }
    }

    /// How its containers ended the last times that nobody had asked for, newest first; at most [`LIVES_MAX`].
    pub async fn lives(&self, id: DeploymentId, limit: usize) -> Vec<Ended> {
        let lives = self.shared.lives.clone();
        tokio::task::spawn_blocking(move || lives.newest(id, limit)).await.unwrap_or_default()
    }

    /// Changes with every change of any status.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Why the engine cannot be seen, while it cannot.
    pub fn engine_trouble(&self) -> Option<String> {
        self.shared.engine_trouble.read().ok()?.clone()
    }

    /// Why memory of frozen deployments cannot be given back to the host, once that was tried.
    pub fn reclaim_trouble(&self) -> watch::Receiver<Option<String>> {
        self.shared.reclaim_trouble.subscribe()
    }

    /// How long the loop's passes take.
    pub fn passes(&self) -> Passes {
        let Took { count, last, longest } = &self.shared.took;
        let micros = |n: &AtomicU64| Duration::from_micros(n.load(Ordering::Relaxed));
        Passes { count: count.load(Ordering::Relaxed), last: micros(last), longest: micros(longest) }
    }

    /// Waits until the loop and its tasks have ended, at most this long.
    pub async fn closed(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.shared.tasks.wait()).await.is_ok()
    }
}

impl Shared {
    fn passed(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.took.last.store(micros, Ordering::Relaxed);
        self.took.longest.fetch_max(micros, Ordering::Relaxed);
        self.took.count.fetch_add(1, Ordering::Relaxed);
    }

    fn set_engine_trouble(&self, trouble: Option<String>) {
        if let Ok(mut slot) = self.engine_trouble.write()
            && *slot != trouble
        {
            *slot = trouble;
            self.changes.send_modify(|n| *n += 1);
        }
    }
}
