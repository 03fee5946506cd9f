//! Owns: when deployments with a scaling policy are evaluated, what was decided, and their load of the last days; when those
//! that sleep are woken ahead of their calls.
//! May touch: of the store `desired.replicas`, with a reason; `<data>/scaling`; the audit log for its own steps.
//! Never: decides (`sigil_core::scale` and `sigil_core::sleep` do), goes below one replica (sleeping is reconcile's), or
//! undoes what a person has stopped or scaled to none.
//! Tested by: unit tests here; `tests/sim` (waking ahead); `scripts/bench scale` on real containers.
//!
//! One task wakes each second, and evaluates whose time has come. A step that a person makes counts for the cool-downs like
//! one of its own. Time is that of the monotonic clock: setting the host's clock moves no cool-down.

mod early;
mod kept;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use jiff::Timestamp;
use sigil_config::agent::AgentConfig;
use sigil_core::model::{Deployment, DeploymentId, Outcome, ReleaseSpec, Run, State};
use sigil_core::scale::{
    BUCKET_SECONDS, Basis, Bucket, Decision, Forecast, Held, HeldBy, History, Memory, Policy, Signals, decide, trial,
};
use sigil_core::sleep::ahead;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{Audit, by_agent};
use crate::gateway::Recent;
use crate::kept::Kept as File;
use crate::reconcile::Status;
use crate::sample::DeploymentUse;
use crate::store::Store;
pub use early::Sleeping;
use early::{Early, Woken};
use kept::Files;
pub use kept::Kept;

/// How often is looked whose time has come.
const TICK: Duration = Duration::from_secs(1);
/// How often what is kept of removed deployments is removed.
const PRUNE: Duration = Duration::from_secs(3600);
/// Histories of sleepers that are read in one round.
const READS: usize = 2;
/// A replica's start in trials of the forecast, seconds: rather long than short.
const START_SECONDS: f64 = 10.0;

/// What a deployment does, as others measured it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// It sleeps: there is nothing to decide.
    pub asleep: bool,
    /// The inputs of a decision.
    pub signals: Signals,
    /// CPU of all replicas, cores.
    pub cores: f64,
    /// Requests that were answered since the agent's start.
    pub calls: u64,
}

impl Seen {
    /// From what is observed and measured of a deployment.
    pub fn of(status: &Status, used: Option<&DeploymentUse>, recent: &Recent) -> Self {
        // a replica that was not measured yet says nothing, as if it could not be read
        let measured = used.filter(|used| used.replicas.iter().any(|replica| replica.ready));
        Self {
            asleep: status.state == State::Sleeping,
            signals: Signals {
                ready: status.ready,
                cpu: measured.map(|used| used.cpu_limit_percent),
                memory: measured.map(|used| used.memory_load_percent),
                requests: recent.rpm,
                p50: recent.times.map(|(median, _)| median),
                p95: recent.times.map(|(_, p95)| p95),
                errors: recent.errors,
                in_flight: recent.in_flight,
                sessions: recent.sessions,
            },
            cores: used.map_or(0.0, |used| used.cpu_percent / 100.0),
            calls: recent.calls,
        }
    }
}

/// What a deployment did in about the last so many seconds; `None`: nothing is known of it.
pub type Look = Arc<dyn Fn(DeploymentId, u32) -> Option<Seen> + Send + Sync>;
/// What one replica of a release costs an hour; `None`: the owner has set no rates.
pub type Price = Arc<dyn Fn(&ReleaseSpec) -> Option<f64> + Send + Sync>;

/// How a deployment sleeps.
pub type Asleep = Arc<dyn Fn(DeploymentId) -> Sleeping + Send + Sync>;
/// Minutes since 1970 of the last eight days in which somebody called a deployment.
pub type Called = Arc<dyn Fn(DeploymentId) -> BoxFuture<'static, BTreeSet<i64>> + Send + Sync>;
/// Wakes a deployment whose containers have ended; with the reason.
pub type Wake = Arc<dyn Fn(DeploymentId, String) + Send + Sync>;

/// What the room needs.
pub struct Deps {
    /// Desired state.
    pub store: Store,
    /// Limits of the owner.
    pub config: watch::Receiver<Arc<AgentConfig>>,
    /// Steps are on record.
    pub audit: Audit,
    /// Where decisions are kept.
    pub data_dir: PathBuf,
    /// What deployments do.
    pub seen: Look,
    /// What replicas cost.
    pub price: Price,
    /// How deployments sleep.
    pub asleep: Asleep,
    /// When they were called.
    pub called: Called,
    /// Wakes one.
    pub wake: Wake,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

/// What it would do now, and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explained {
    /// The decision; `None`: none would be made, and the notes say why.
    pub decision: Option<Decision>,
    /// What else is to know, one line each.
    pub notes: Vec<String>,
    /// Until the next evaluation, seconds.
    pub next_seconds: u32,
}

/// The room's handle.
#[derive(Clone, Debug)]
pub struct Autoscale {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    deps: Deps,
    files: Files,
    began: Instant,
    watched: Mutex<HashMap<DeploymentId, Watched>>,
    /// The day's wakes ahead of calls as they are written down; before the first of its own a former agent's.
    woken: Mutex<BTreeMap<DeploymentId, Woken>>,
    woken_file: Arc<Mutex<File>>,
    tasks: TaskTracker,
}

/// What is remembered of a deployment between evaluations.
#[derive(Debug)]
struct Watched {
    policy: Policy,
    memory: Memory,
    /// Replicas desired when it was last looked at.
    replicas: u32,
    /// When it is evaluated next, milliseconds since the room began.
    due: i64,
    /// When it was last evaluated.
    last: Option<i64>,
    gathered: Gathered,
    ahead: Ahead,
    /// Requests answered and under way at the last evaluation.
    counted: Option<(u64, u64)>,
    early: Early,
}

/// Load of the bucket that is not over.
#[derive(Clone, Copy, Debug, Default)]
struct Gathered {
    number: i64,
    seconds: f64,
    requests: f64,
    cores: f64,
    peak: f64,
}

/// What is looked ahead, and when that was worked out.
#[derive(Clone, Debug, Default)]
struct Ahead {
    bucket: i64,
    day: i64,
    tried: Option<Result<String, String>>,
    forecast: Option<Forecast>,
    /// One line, for [`Explained::notes`].
    note: String,
}

impl Autoscale {
    /// Evaluates until `stop`.
    pub fn spawn(deps: Deps, stop: CancellationToken) -> Self {
        let shared = Arc::new(Shared::new(deps));
        shared.tasks.spawn(run(shared.clone(), stop));
        shared.tasks.close();
        Self { shared }
    }

    /// The newest decisions, newest first; `changes`: only those that did or refused something.
    pub async fn history(&self, id: DeploymentId, limit: usize, changes: bool) -> Vec<Kept> {
        let files = self.shared.files.clone();
        let read = move || {
            let tells = |k: &Kept| !changes || k.decision.from != k.decision.to || !k.decision.held.is_empty();
            files.newest(id, limit, tells)
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }

    /// The load of the last eight days.
    pub async fn load(&self, id: DeploymentId) -> History {
        let files = self.shared.files.clone();
        tokio::task::spawn_blocking(move || files.load(id)).await.unwrap_or_default()
    }

    /// What it would do now, and why; nothing is done.
    pub fn explain(&self, deployment: &Deployment) -> Explained {
        let shared = &self.shared;
        let mut out = Explained::default();
        let Some(policy) = deployment.scaling.as_deref() else {
            out.notes.push("no scaling policy: it keeps as many replicas as were asked for".into());
            return out;
        };
        if let Some(why) = idle(deployment) {
            out.notes.push(why);
            return out;
        }
        let seen = (shared.deps.seen)(deployment.id, policy.evaluate_every);
        out.notes.extend(shared.early_note(deployment.id, policy));
        if seen.is_some_and(|seen| seen.asleep) {
            out.notes.insert(0, "it sleeps: a request wakes it".into());
            return out;
        }
        let now = shared.now();
        let watched = shared.watched();
        let (memory, ahead) = watched.get(&deployment.id).map_or_else(Default::default, |w| {
            let left = u64::try_from((w.due - now).max(0)).unwrap_or(0).div_ceil(1000);
            out.next_seconds = u32::try_from(left).unwrap_or(u32::MAX);
            let mut memory = w.memory.clone();
            if w.replicas != deployment.desired.replicas {
                memory.stepped(now, w.replicas, deployment.desired.replicas);
            }
            (memory, w.ahead.clone())
        });
        drop(watched);
        if policy.predictive {
            let unknown = || "the forecast is worked out with the next evaluation".to_owned();
            out.notes.push(if ahead.note.is_empty() { unknown() } else { ahead.note.clone() });
        }
        let price = shared.price(deployment);
        if policy.cost_cap.is_some() && price.is_none() {
            out.notes.push("costCap is not checked: the owner has set no rates".into());
        }
        let signals = seen.map(|seen| seen.signals);
        out.decision = Some(shared.decide(deployment, policy, signals.as_ref(), &memory, ahead.forecast.as_ref(), now));
        out
    }

    /// What one replica of a deployment costs an hour; `None`: the owner has set no rates.
    pub fn price(&self, deployment: &Deployment) -> Option<f64> {
        self.shared.price(deployment)
    }

    /// Waits until the loop has ended, at most this long.
    pub async fn closed(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.shared.tasks.wait()).await.is_ok()
    }
}

/// Why nothing is decided about a deployment, if so.
fn idle(deployment: &Deployment) -> Option<String> {
    let release = deployment.release(deployment.desired.release);
    match deployment.desired.run {
        Run::Stopped | Run::Removed => Some("it is stopped: nothing is decided".into()),
        Run::Running if deployment.desired.replicas == 0 => {
            Some("somebody scaled it to none: the policy leaves that alone until it is scaled again".into())
        }
        Run::Running if release.is_none_or(|r| r.outcome != Outcome::Good) => {
            Some(format!("release {} does not serve yet: nothing is decided meanwhile", deployment.desired.release))
        }
        Run::Running => None,
    }
}

impl Shared {
    fn new(deps: Deps) -> Self {
        let files = Files::new(&deps.data_dir);
        let (watched, tasks) = (Mutex::default(), TaskTracker::new());
        let (file, woken) = File::open(&deps.data_dir, "woken");
        let (woken, woken_file) = (Mutex::new(woken), Arc::new(Mutex::new(file)));
        Self { deps, files, began: Instant::now(), watched, woken, woken_file, tasks }
    }

    fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<DeploymentId, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn price(&self, deployment: &Deployment) -> Option<f64> {
        (self.deps.price)(&deployment.release(deployment.desired.release)?.spec)
    }

    fn decide(
        &self,
        deployment: &Deployment,
        policy: &Policy,
        signals: Option<&Signals>,
        memory: &Memory,
        forecast: Option<&Forecast>,
        now: i64,
    ) -> Decision {
        let release = deployment.release(deployment.desired.release);
        let exclusive = release.is_some_and(|r| r.spec.is_exclusive());
        let owner = self.deps.config.borrow().limits.max_replicas;
        let ceiling =
            if exclusive { (1, "its volume is exclusive") } else { (owner, "the owner's [limits] max_replicas") };
        let basis = Basis {
            policy,
            signals,
            replicas: deployment.desired.replicas,
            ceiling: Some(ceiling),
            price: release.and_then(|r| (self.deps.price)(&r.spec)),
            forecast,
            now,
        };
        decide(&basis, memory)
    }

    /// Takes on deployments that have a policy, and forgets those that have none any more.
    fn follow(&self, deployments: &[Arc<Deployment>]) {
        let mut new = Vec::new();
        {
            let mut watched = self.watched();
            watched.retain(|id, _| deployments.iter().any(|d| d.id == *id && d.scaling.is_some()));
            for (deployment, policy) in deployments.iter().filter_map(|d| Some((d, d.scaling.as_deref()?))) {
                match watched.get_mut(&deployment.id) {
                    Some(known) if known.policy != *policy => {
                        known.policy = policy.clone();
                        known.due = self.now();
                        known.ahead = Ahead::default();
                        known.early = Early::default();
                    }
                    Some(_) => {}
                    None => new.push((deployment.id, policy.clone(), deployment.desired.replicas)),
                }
            }
        }
        for (id, policy, replicas) in new {
            // files are read without the lock
            let (now, wall) = (self.now(), Timestamp::now());
            let ages =
                self.files.steps(id).into_iter().map(|(at, from, to)| {
                    (wall.duration_since(at).as_millis().try_into().unwrap_or(i64::MAX), from, to)
                });
            let memory = Memory::resumed(now, ages);
            let due = now + i64::from(policy.evaluate_every) * 1000;
            let (gathered, ahead) = (Gathered::default(), Ahead::default());
            let early = Early::resumed(self.woken().get(&id).copied().unwrap_or_default());
            let fresh = Watched { policy, memory, replicas, due, last: None, gathered, ahead, counted: None, early };
            self.watched().insert(id, fresh);
        }
    }

    /// What is to be said about waking it ahead, if that is asked for.
    fn early_note(&self, id: DeploymentId, policy: &Policy) -> Option<String> {
        Some(match early::minutes(policy)? {
            Err(why) => format!("waking ahead of calls is not needed: {why}"),
            Ok(_) => self.watched().get(&id).map_or_else(|| Early::default().note(), |w| w.early.note()),
        })
    }

    /// Wakes sleepers whose calls are about to come. `now`: seconds since 1970.
    async fn wake_ahead(&self, now: i64) {
        let can =
            |(id, w): (&DeploymentId, &Watched)| Some((*id, w.policy.idle_timeout, early::minutes(&w.policy)?.ok()?));
        let sleepers: Vec<_> = self.watched().iter().filter_map(can).collect();
        let mut reads = 0;
        for (id, idle, (quiet, stays)) in sleepers {
            let sleeping = (self.deps.asleep)(id);
            let of = |watched: &mut HashMap<DeploymentId, Watched>| {
                let early = watched.get(&id).map(|w| &w.early)?;
                Some((early.is_stale(now), early.is_due(now, sleeping.start)))
            };
            let Some((stale, mut due)) = of(&mut self.watched()) else { continue };
            if stale && sleeping.asleep && reads < READS {
                reads += 1;
                let called = (self.deps.called)(id).await;
                let learn = move || ahead::expect(&called, quiet, stays, now.div_euclid(60));
                let learnt = tokio::task::spawn_blocking(learn).await.unwrap_or_else(|e| Err(e.to_string()));
                let mut watched = self.watched();
                let Some(w) = watched.get_mut(&id) else { continue };
                w.early.learn(now, learnt);
                due = w.early.is_due(now, sleeping.start);
            }
            if !due {
                continue;
            }
            let seen = (self.deps.seen)(id, 60).unwrap_or_default();
            let calls = seen.calls + seen.signals.in_flight;
            let wake = self.watched().get_mut(&id).and_then(|w| w.early.look(now, sleeping, calls, idle.into()));
            if let Some(why) = wake {
                tracing::info!(deployment = %id, why, "woken ahead of its calls");
                (self.deps.wake)(id, why);
            }
        }
        self.keep_woken().await;
    }

    fn woken(&self) -> MutexGuard<'_, BTreeMap<DeploymentId, Woken>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep_woken(&self) {
        let woken: BTreeMap<DeploymentId, Woken> =
            self.watched().iter().filter_map(|(id, w)| Some((*id, w.early.woken()?))).collect();
        if std::mem::replace(&mut *self.woken(), woken.clone()) == woken {
            return;
        }
        let file = self.woken_file.clone();
        let keep = move || file.lock().unwrap_or_else(PoisonError::into_inner).keep(&woken);
        let kept = tokio::task::spawn_blocking(keep).await;
        if let Err(error) = kept.map_err(std::io::Error::other).and_then(|kept| kept) {
            tracing::warn!(%error, "wakes ahead of calls are not kept");
        }
    }

    /// Whose time has come.
    fn due(&self, now: i64) -> Vec<DeploymentId> {
        self.watched().iter().filter(|(_, w)| w.due <= now).map(|(id, _)| *id).collect()
    }

    /// One evaluation. Answers what is to be kept of it.
    async fn evaluate(&self, id: DeploymentId) -> Option<Kept> {
        let deployment = self.deps.store.deployment(id)?;
        let now = self.now();
        let (policy, period) = {
            let mut watched = self.watched();
            let w = watched.get_mut(&id)?;
            w.due = now + i64::from(w.policy.evaluate_every) * 1000;
            let replicas = deployment.desired.replicas;
            if w.replicas != replicas {
                w.memory.stepped(now, w.replicas, replicas);
                w.replicas = replicas;
            }
            let period = w.last.map_or(0.0, |last| (now - last) as f64 / 1e3);
            w.last = Some(now);
            (w.policy.clone(), period)
        };
        if idle(&deployment).is_some() {
            return None;
        }
        let mut seen = (self.deps.seen)(id, policy.evaluate_every);
        if seen.is_some_and(|seen| seen.asleep) {
            return None;
        }
        if let Some(seen) = &mut seen {
            self.arrived(id, seen, period);
        }
        if let Some(seen) = &seen {
            self.gather(id, seen, period.min(f64::from(policy.evaluate_every) * 2.0)).await;
        }
        if policy.predictive {
            self.look_ahead(id, &deployment, &policy).await;
        }
        let mut decision = {
            let watched = self.watched();
            let w = watched.get(&id)?;
            let signals = seen.as_ref().map(|seen| &seen.signals);
            self.decide(&deployment, &policy, signals, &w.memory, w.ahead.forecast.as_ref(), now)
        };
        if decision.to != decision.from
            && let Err(why) = self.act(&deployment, &decision).await
        {
            decision.to = decision.from;
            decision.held.push(Held { by: HeldBy::Host, why });
        }
        if let Some(w) = self.watched().get_mut(&id) {
            w.memory.note(now, &decision);
            w.replicas = decision.to;
        }
        Some(Kept { at: Timestamp::now(), decision })
    }

    /// Writes the step into desired state, if it is still as it was looked at.
    async fn act(&self, deployment: &Deployment, decision: &Decision) -> Result<(), String> {
        let (from, to) = (decision.from, decision.to);
        let line = format!("scaled from {from} to {to}: {}", decision.reason);
        let change = move |d: &mut Deployment| {
            if d.desired.replicas != from || d.desired.run != Run::Running || d.scaling.is_none() {
                return Err("it was changed meanwhile".into());
            }
            d.desired.replicas = to;
            Ok(())
        };
        self.deps.store.update(deployment.id, None, &line, change).await.map_err(|e| e.to_string())?;
        tracing::info!(deployment = %deployment.name, from, to, reason = decision.reason, "scaled");
        let record = by_agent("scaling.step")
            .target(deployment.name.as_str(), deployment.id.to_string())
            .before("replicas", from)
            .after("replicas", to)
            .after("reason", &decision.reason);
        self.deps.audit.keep(record).await;
        Ok(())
    }

    /// Requests that came since the last evaluation, not those that were answered: an overloaded server answers no more than
    /// it can.
    fn arrived(&self, id: DeploymentId, seen: &mut Seen, period: f64) {
        let now = (seen.calls, seen.signals.in_flight);
        let before = self.watched().get_mut(&id).and_then(|w| w.counted.replace(now));
        let Some((calls, in_flight)) = before.filter(|_| period > 0.0) else { return };
        let answered = seen.calls.saturating_sub(calls) as f64;
        let waiting = now.1 as f64 - in_flight as f64;
        seen.signals.requests = (answered + waiting).max(0.0) / period * 60.0;
    }

    /// Adds an evaluation to the bucket of now; one that is over is written down.
    async fn gather(&self, id: DeploymentId, seen: &Seen, seconds: f64) {
        let number = History::number(Timestamp::now().as_second());
        let over = {
            let mut watched = self.watched();
            let Some(g) = watched.get_mut(&id).map(|w| &mut w.gathered) else { return };
            let over = (g.number != number && g.seconds > 0.0).then_some(*g);
            if g.number != number {
                *g = Gathered { number, ..Gathered::default() };
            }
            g.seconds += seconds;
            g.requests += seen.signals.requests * seconds;
            g.cores += seen.cores * seconds;
            g.peak = g.peak.max(seen.signals.requests);
            over
        };
        let Some(over) = over else { return };
        let files = self.files.clone();
        // figures for a forecast: the precision of f32 is more than they have
        let whole = over.seconds.max(BUCKET_SECONDS as f64);
        let bucket = Bucket {
            requests: (over.requests / whole) as f32,
            peak: over.peak as f32,
            cores: (over.cores / whole) as f32,
        };
        let written = tokio::task::spawn_blocking(move || files.put_load(id, over.number, bucket)).await;
        if let Err(error) = written.map_err(std::io::Error::other).and_then(|written| written) {
            tracing::warn!(%error, deployment = %id, "a deployment's load is not kept");
        }
    }

    /// Works the forecast out anew once in a bucket, and once a day whether it is worth anything.
    async fn look_ahead(&self, id: DeploymentId, deployment: &Deployment, policy: &Policy) {
        let now = Timestamp::now().as_second();
        let (bucket, day) = (History::number(now), now.div_euclid(86_400));
        let mut ahead = match self.watched().get(&id) {
            Some(w) if w.ahead.bucket != bucket => w.ahead.clone(),
            _ => return,
        };
        let cpu_limit = deployment.release(deployment.desired.release).map_or(1.0, |r| r.spec.resources.cpu_limit);
        let (files, policy) = (self.files.clone(), policy.clone());
        let work = move || {
            let history = files.load(id);
            ahead.bucket = bucket;
            let capacity = history.capacity(&policy, cpu_limit);
            if ahead.tried.is_none() || ahead.day != day {
                ahead.day = day;
                let tried = capacity.clone().and_then(|c| trial(&history, &policy, c, START_SECONDS));
                ahead.tried = Some(match tried {
                    Ok(trial) if trial.better => Ok(trial.why),
                    Ok(trial) => Err(trial.why),
                    Err(why) => Err(why),
                });
            }
            let forecast = match &ahead.tried {
                Some(Err(why)) => Err(why.clone()),
                _ => capacity.and_then(|capacity| history.forecast(now, capacity)),
            };
            ahead.note = match (&forecast, &ahead.tried) {
                (Ok(f), Some(Ok(why))) => format!("looking ahead is on ({why}): {}", f.why),
                (Ok(f), _) => format!("looking ahead is on: {}", f.why),
                (Err(why), _) => format!("looking ahead is off: {why}"),
            };
            ahead.forecast = forecast.ok();
            ahead
        };
        if let Ok(ahead) = tokio::task::spawn_blocking(work).await
            && let Some(w) = self.watched().get_mut(&id)
        {
            w.ahead = ahead;
        }
    }
}

async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut changes = shared.deps.store.changes();
    let mut every = tokio::time::interval(TICK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pruned: Option<Instant> = None;
    changes.mark_changed();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        if changes.has_changed().unwrap_or(false) {
            changes.mark_unchanged();
            let (shared, deployments) = (shared.clone(), shared.deps.store.deployments());
            // it reads files of those that are new
            let _ended = tokio::task::spawn_blocking(move || shared.follow(&deployments)).await;
        }
        shared.wake_ahead(Timestamp::now().as_second()).await;
        let mut decisions = Vec::new();
        for id in shared.due(shared.now()) {
            decisions.extend(shared.evaluate(id).await.map(|kept| (id, kept)));
            if stop.is_cancelled() {
                break;
            }
        }
        let prune = pruned.is_none_or(|at| at.elapsed() > PRUNE);
        if prune {
            pruned = Some(Instant::now());
        }
        if decisions.is_empty() && !prune {
            continue;
        }
        let shared = shared.clone();
        let write = move || {
            for (id, kept) in decisions {
                if let Err(error) = shared.files.append(id, &[kept]) {
                    tracing::warn!(%error, deployment = %id, "a scaling decision is not kept");
                }
            }
            if prune {
                shared.files.prune(|id| shared.deps.store.deployment(id).is_some());
            }
        };
        let _ended = tokio::task::spawn_blocking(write).await;
    }
}
