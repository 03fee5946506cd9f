//! Owns: whether replicas that serve still answer, what was found when, and how available deployments were.
//! May touch: upstream, `<data>/health`; the engine, to end a container whose server hangs (reconcile then starts it again,
//! or another, as after any other end). What the gateway and sample know it is told by functions.
//! Never: wakes a sleeper, counts as traffic, starts a process of a stdio server.
//! Tested by: unit tests here and in `sigil_core::health`; `upstream` and `gateway` test the asking; `tests/remedies` on a
//! real engine.

mod kept;
#[cfg(test)]
mod tests;
mod treated;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use jiff::Timestamp;
use sigil_core::health::{Calls, Course, Outcome, Remedy, Silence, State, Turn, Work, together};
use sigil_core::model::{DeploymentId, InstanceId, Stream, Transport};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{Audit, by_agent};
use crate::engine::Engine;
use crate::tail::Tail;
use crate::upstream::{self, Probed, Replica, RouteTable};
use kept::Files;
pub use kept::{Kept, Turned};
use treated::Treated;

/// How often is looked whose time has come.
const TICK: Duration = Duration::from_secs(1);
/// How often calls are counted.
const COUNT: Duration = Duration::from_secs(10);
/// How often what is kept of removed deployments is removed.
const PRUNE: Duration = Duration::from_secs(3600);
/// Probes at once.
const AT_ONCE: usize = 16;
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Hours of which availability is told.
pub const WINDOWS: [u32; 3] = [24, 7 * 24, 30 * 24];

/// What callers did since the agent's start.
pub type Counted = Arc<dyn Fn() -> Vec<(DeploymentId, Calls)> + Send + Sync>;
/// What a replica has to do now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Doing {
    /// Calls under way.
    pub under_way: u64,
    /// One of them is answered by a stream.
    pub streams: bool,
    /// Pieces of answers that came from it so far.
    pub heard: u64,
    /// A process runs that stateless requests share (stdio).
    pub shared: bool,
    /// CPU that it uses and CPU that it may use, cores; `None`: not known.
    pub cpu: Option<(f64, f64)>,
}

/// What a replica has to do now.
pub type Look = Arc<dyn Fn(DeploymentId, InstanceId) -> Doing + Send + Sync>;
/// Asks the process that a stdio server's stateless requests share; `None`: none runs.
pub type Discover = Arc<dyn Fn(InstanceId, Duration) -> BoxFuture<'static, Option<Result<(), String>>> + Send + Sync>;
/// The engine's id of a replica's container.
pub type Container = Arc<dyn Fn(DeploymentId, InstanceId) -> Option<String> + Send + Sync>;

/// What the room needs.
pub struct Deps {
    /// What serves.
    pub routes: watch::Receiver<Arc<RouteTable>>,
    /// Where servers' output goes, and words about them.
    pub tail: Tail,
    /// For what hangs.
    pub engine: Arc<dyn Engine>,
    /// What is done to replicas is on record.
    pub audit: Audit,
    /// Where probes are kept.
    pub data_dir: PathBuf,
    /// Whether a deployment sleeps: then it is left alone.
    pub asleep: Arc<dyn Fn(DeploymentId) -> bool + Send + Sync>,
    /// Whose container is whose.
    pub container: Container,
    /// The gateway's counts.
    pub counted: Counted,
    /// What replicas have to do.
    pub look: Look,
    /// The way to shared processes.
    pub discover: Discover,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

/// One replica's health.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaHealth {
    /// Which one.
    pub instance: InstanceId,
    /// How it does.
    pub state: State,
    /// Why.
    pub why: String,
    /// What the last answer took.
    pub took: Duration,
    /// When it was asked last.
    pub at: Option<Timestamp>,
    /// How often something was done about it.
    pub remedies: u32,
}

/// A deployment's health.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// How it does.
    pub state: State,
    /// Its replicas.
    pub replicas: Vec<ReplicaHealth>,
}

/// The room's handle.
#[derive(Clone, Debug)]
pub struct Probe {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    deps: Deps,
    files: Files,
    began: Instant,
    watched: Mutex<HashMap<InstanceId, Watched>>,
    treated: Mutex<Treated>,
    calls: Mutex<HashMap<DeploymentId, Counting>>,
    tasks: TaskTracker,
}

/// What is remembered of a replica.
#[derive(Debug, Default)]
struct Watched {
    deployment: Option<DeploymentId>,
    course: Course,
    silence: Silence,
    modern: bool,
    tools: Option<u64>,
    due: i64,
    busy: bool,
    /// It has answered a probe.
    answered: bool,
    /// Its waiting process is not asked: it answers no ping before it is greeted.
    mute: bool,
    took: Duration,
    at: Option<Timestamp>,
}

/// What one probe led to.
#[derive(Debug)]
struct Found {
    kept: Kept,
    turn: Option<Turn>,
    /// To be done about it now.
    remedy: Option<Remedy>,
}

/// Calls of a deployment: what the gateway last said, and those of the hour.
#[derive(Clone, Copy, Debug, Default)]
struct Counting {
    last: Calls,
    hour: i64,
    of_hour: Calls,
}

impl Probe {
    /// Probes until `stop`.
    pub fn spawn(deps: Deps, stop: CancellationToken) -> Self {
        let shared = Arc::new(Shared::new(deps));
        shared.tasks.spawn(run(shared.clone(), stop));
        shared.tasks.close();
        Self { shared }
    }

    /// How a deployment does.
    pub fn health(&self, id: DeploymentId) -> Health {
        self.shared.health(id)
    }

    /// The newest turns from one state to another, and what was done about them, newest first.
    pub async fn turns(&self, id: DeploymentId, limit: usize) -> Vec<Turned> {
        let files = self.shared.files.clone();
        tokio::task::spawn_blocking(move || files.turns(id, limit)).await.unwrap_or_default()
    }

    /// The newest probes, newest first.
    pub async fn history(&self, id: DeploymentId, limit: usize) -> Vec<Kept> {
        let files = self.shared.files.clone();
        tokio::task::spawn_blocking(move || files.newest(id, limit)).await.unwrap_or_default()
    }

    /// Calls of the last 24 h, 7 d and 30 d ([`WINDOWS`]), as callers saw them.
    pub async fn calls(&self, id: DeploymentId) -> [Calls; 3] {
        let files = self.shared.files.clone();
        let now = hour(Timestamp::now());
        tokio::task::spawn_blocking(move || files.calls(id, now, WINDOWS)).await.unwrap_or_default()
    }

    /// Waits until the loop has ended, at most this long.
    pub async fn closed(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.shared.tasks.wait()).await.is_ok()
    }
}

fn hour(at: Timestamp) -> i64 {
    at.as_second().div_euclid(3600)
}

impl Shared {
    fn new(deps: Deps) -> Self {
        let files = Files::new(&deps.data_dir);
        let (watched, treated, calls, tasks) =
            (Mutex::default(), Mutex::default(), Mutex::default(), TaskTracker::new());
        Self { files, deps, began: Instant::now(), watched, treated, calls, tasks }
    }

    fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<InstanceId, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn treated(&self) -> MutexGuard<'_, Treated> {
        self.treated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counting(&self) -> MutexGuard<'_, HashMap<DeploymentId, Counting>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self, id: DeploymentId) -> Health {
        let watched = self.watched();
        let treated = self.treated();
        let mut replicas: Vec<ReplicaHealth> = watched
            .iter()
            .filter(|(_, w)| w.deployment == Some(id))
            .map(|(instance, w)| ReplicaHealth {
                instance: *instance,
                state: w.course.state(),
                why: w.course.why().to_owned(),
                took: w.took,
                at: w.at,
                remedies: treated.of.get(instance).map_or(0, |t| t.times),
            })
            .collect();
        replicas.sort_by_key(|replica| replica.instance);
        let states: Vec<State> = replicas.iter().map(|replica| replica.state).collect();
        Health { state: together(&states), replicas }
    }

    /// Replicas whose time has come. Those that are gone are forgotten; new ones are spread over their period.
    fn due(&self) -> Vec<Replica> {
        let (now, table) = (self.now(), self.deps.routes.borrow().clone());
        let mut due = Vec::new();
        let mut watched = self.watched();
        let mut treated = self.treated();
        let mut there = std::collections::HashSet::new();
        for route in table.routes.values() {
            there.extend(route.ready.iter().map(|replica| replica.instance));
            if (self.deps.asleep)(route.id) {
                continue;
            }
            for replica in &route.ready {
                let every = i64::from(replica.spec.health.every.max(1)) * 1000;
                // the last bits of an id are random
                let spread = (replica.instance.0.0 % every.unsigned_abs() as u128) as i64;
                let w = watched.entry(replica.instance).or_insert_with(|| {
                    treated.seen(route.id, replica.instance);
                    Watched { deployment: Some(route.id), due: now + spread, ..Watched::default() }
                });
                let doing = (self.deps.look)(route.id, replica.instance);
                w.silence.look(now, doing.under_way, doing.heard);
                if w.due <= now && !w.busy && (!w.mute || doing.shared) {
                    (w.due, w.busy) = (now + every, true);
                    due.push(replica.clone());
                }
            }
        }
        watched.retain(|instance, _| there.contains(instance));
        treated.forget(now, |instance| there.contains(instance));
        due
    }

    /// Asks a replica. The process that stateless requests of a stdio server share is asked where one runs; else the one that
    /// waits for a session.
    async fn ask(&self, replica: &Replica) -> Probed {
        let (modern, mute) = self.watched().get(&replica.instance).map_or((false, false), |w| (w.modern, w.mute));
        if replica.spec.transport == Transport::Stdio && replica.link.is_up() {
            let began = Instant::now();
            let asked = (self.deps.discover)(replica.instance, TIMEOUT).await;
            if asked.is_some() || mute {
                let outcome = match asked {
                    Some(Ok(())) => Outcome::Good,
                    Some(Err(why)) => Outcome::Failed(why),
                    None => Outcome::Skipped("no process runs that stateless requests share".into()),
                };
                return Probed { outcome, took: began.elapsed(), tools: None, modern }.judged(&replica.spec);
            }
        }
        upstream::probe(replica, &self.deps.tail, modern, TIMEOUT).await
    }

    /// Takes in what a probe found; `heard`: pieces of answers that its callers had got when it was asked.
    fn found(&self, replica: &Replica, heard: u64, probed: Probed) -> Found {
        let now = self.now();
        let doing = (self.deps.look)(replica.deployment, replica.instance);
        let mut outcome = probed.outcome;
        let at = Timestamp::now();
        let mut watched = self.watched();
        let w = watched.entry(replica.instance).or_default();
        (w.busy, w.modern, w.deployment) = (false, probed.modern, Some(replica.deployment));
        (w.took, w.at) = (probed.took, Some(at));
        if matches!(outcome, Outcome::Good | Outcome::Poor(_)) {
            w.answered = true;
            w.silence.broken();
        }
        // not every server answers before it is greeted: only one that did and does no more is at fault
        let failed = matches!(outcome, Outcome::Failed(_));
        if replica.spec.transport == Transport::Stdio && !w.answered && failed && !doing.shared {
            w.mute = true;
            outcome = Outcome::Skipped("it answers no ping before it is greeted, and is not asked again".into());
        }
        match (w.tools, probed.tools) {
            (Some(before), Some(now)) if before != now && outcome == Outcome::Good => {
                outcome = Outcome::Poor("its tools are not those that it had when it was first asked".into());
            }
            (None, tools) => w.tools = tools,
            _ => {}
        }
        // frozen while it was asked: that says nothing of it
        if matches!(outcome, Outcome::Failed(_)) && (self.deps.asleep)(replica.deployment) {
            outcome = Outcome::Skipped("it went to sleep meanwhile".into());
        }
        let work = Work {
            is_up: replica.link.is_up(),
            under_way: doing.under_way,
            streams: doing.streams,
            answers: doing.heard != heard,
            silence: w.silence.lasts(now),
            limit: i64::try_from(replica.spec.request_timeout_ms).unwrap_or(i64::MAX),
            cpu: doing.cpu,
        };
        let weighed = work.weigh(outcome);
        let turn = w.course.take(now, &weighed.outcome);
        let remedy = replica.spec.health.remedy;
        let mut treated = self.treated();
        let treatment = treated.of.entry(replica.instance).or_default();
        let due = treatment.backoff.due(now, remedy, &w.course, weighed.spared);
        if due {
            treatment.times += 1;
            if remedy == Remedy::Replace {
                treated.leaves(replica.deployment, replica.instance);
            }
        }
        let (instance, state) = (replica.instance, w.course.state());
        let ms = probed.took.as_secs_f64() * 1e3;
        let kept = Kept { at, instance, state, ms, outcome: weighed.outcome };
        Found { kept, turn, remedy: due.then_some(remedy) }
    }

    /// Ends what hangs; reconcile does the rest.
    async fn act(&self, replica: &Replica, remedy: Remedy, why: &str) {
        let (id, instance) = (replica.deployment, replica.instance);
        let Some(container) = (self.deps.container)(id, instance) else { return };
        let (word, ended) = match remedy {
            Remedy::Leave => return,
            Remedy::Restart => ("restarted", self.deps.engine.kill(&container, "SIGKILL").await),
            Remedy::Replace => ("replaced", self.deps.engine.remove(&container).await),
        };
        if let Err(error) = ended {
            tracing::warn!(%error, %instance, "a replica that does not answer could not be ended");
            return;
        }
        tracing::warn!(deployment = %id, %instance, why, "a replica that does not answer is {word}");
        self.say(replica, format!("it does not answer ({why}) and is {word}")).await;
        let (from, to) = (State::Unhealthy, State::Unhealthy);
        self.turned(id, Turned { at: Timestamp::now(), instance, from, to, why: why.into(), done: word.into() }).await;
        let record = by_agent("health.remedy")
            .target("", id.to_string())
            .after("instance", instance)
            .after("done", word)
            .after("reason", why);
        self.deps.audit.keep(record).await;
    }

    /// Keeps a turn.
    async fn turned(&self, id: DeploymentId, turn: Turned) {
        let files = self.files.clone();
        let written = tokio::task::spawn_blocking(move || files.turned(id, turn)).await;
        if let Err(error) = written.map_err(std::io::Error::other).and_then(|written| written) {
            tracing::warn!(%error, deployment = %id, "a turn of its health is not kept");
        }
    }

    /// A word in its log.
    async fn say(&self, replica: &Replica, text: String) {
        let now = Timestamp::now();
        let (id, release, instance) = (replica.deployment, replica.release, Some(replica.instance));
        self.deps.tail.append(id, release, instance, Stream::Agent, now, text.into()).await;
    }

    /// Adds what callers did since the last time to the hour. Answers what changed.
    fn count(&self, now: i64) -> Vec<(DeploymentId, i64, Calls)> {
        let told = (self.deps.counted)();
        let mut counting = self.counting();
        let mut changed = Vec::new();
        counting.retain(|id, _| told.iter().any(|(other, _)| other == id));
        for (id, calls) in told {
            // of an hour that an earlier agent began, the file has its part
            let c = counting.entry(id).or_insert_with(|| Counting {
                hour: now,
                of_hour: self.files.hour(id, now),
                ..Counting::default()
            });
            let new =
                Calls { all: calls.all.saturating_sub(c.last.all), failed: calls.failed.saturating_sub(c.last.failed) };
            c.last = calls;
            if c.hour != now {
                (c.hour, c.of_hour) = (now, Calls::default());
            }
            if new.all > 0 {
                c.of_hour = c.of_hour.plus(new);
                changed.push((id, now, c.of_hour));
            }
        }
        changed
    }
}

async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut every = tokio::time::interval(TICK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut probes: JoinSet<(Replica, u64, Probed)> = JoinSet::new();
    let mut waiting: std::collections::VecDeque<Replica> = std::collections::VecDeque::new();
    let (mut counted, mut pruned) = (Instant::now(), Instant::now());
    loop {
        let found = tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => None,
            Some(done) = probes.join_next() => done.ok(),
        };
        if let Some((replica, heard, probed)) = found {
            let Found { kept, turn, remedy } = shared.found(&replica, heard, probed);
            if let Some(Turn { from, state: to, why, .. }) = turn {
                let because = if why.is_empty() { String::new() } else { format!(": {why}") };
                shared.say(&replica, format!("it is {}{because}", to.as_str())).await;
                let turned = Turned { at: kept.at, instance: kept.instance, from, to, why, done: String::new() };
                shared.turned(replica.deployment, turned).await;
            }
            if let (Some(remedy), Outcome::Failed(why)) = (remedy, &kept.outcome) {
                shared.act(&replica, remedy, why).await;
            }
            let (files, id) = (shared.files.clone(), replica.deployment);
            let written = tokio::task::spawn_blocking(move || files.append(id, &[kept])).await;
            if let Err(error) = written.map_err(std::io::Error::other).and_then(|written| written) {
                tracing::warn!(%error, deployment = %id, "a probe is not kept");
            }
        } else {
            waiting.extend(shared.due());
        }
        while probes.len() < AT_ONCE
            && let Some(replica) = waiting.pop_front()
        {
            let shared = shared.clone();
            probes.spawn(async move {
                let heard = (shared.deps.look)(replica.deployment, replica.instance).heard;
                let probed = shared.ask(&replica).await;
                (replica, heard, probed)
            });
        }
        let prune = pruned.elapsed() > PRUNE;
        if counted.elapsed() < COUNT && !prune {
            continue;
        }
        counted = Instant::now();
        if prune {
            pruned = counted;
        }
        let shared = shared.clone();
        let work = move || {
            for (id, hour, calls) in shared.count(hour(Timestamp::now())) {
                if let Err(error) = shared.files.put_hour(id, hour, calls) {
                    tracing::warn!(%error, deployment = %id, "calls of an hour are not kept");
                }
            }
            let table = shared.deps.routes.borrow().clone();
            if prune && table.known {
                shared.files.prune(|id| table.routes.values().any(|route| route.id == id));
            }
        };
        let _ended = tokio::task::spawn_blocking(work).await;
    }
}
