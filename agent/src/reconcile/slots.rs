//! The loop: triggers, observation merged into slots, plans started as tasks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sigil_core::model::{Deployment, DeploymentId, InstanceId, Outcome, ReleaseNo, Run, Stream};
use sigil_core::plan::{self, Action, Backoff, Failed, Inst, Phase};
use sigil_core::sleep::Depth;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::lives::Lives;
use super::{Deps, Shared, act, budget, learnt, reclaim, routes, sleep, status};
use crate::audit::by_agent;
use crate::sample;
use crate::upstream::{LAST_OUTPUT, Replica, RouteTable};

/// A full look at the engine happens at least this often: its event stream drops silently.
const RESYNC: Duration = Duration::from_secs(30);
/// After an engine error, look again after this.
const ENGINE_RETRY: Duration = Duration::from_secs(1);
/// A round shorter than this needs no rest.
const REST_MIN: Duration = Duration::from_millis(5);
/// Longest rest after a round.
const REST_MAX: Duration = Duration::from_millis(250);

/// What the loop knows of one instance.
pub(super) struct Slot {
    pub id: InstanceId,
    pub deployment: DeploymentId,
    pub release: ReleaseNo,
    pub restart: u64,
    pub phase: Phase,
    pub busy: bool,
    /// The word for what the task is doing.
    pub doing: &'static str,
    pub container: Option<String>,
    pub pid: Option<u32>,
    pub started_at: Option<Timestamp>,
    pub ready_since: Option<Timestamp>,
    pub restarts: u32,
    pub message: String,
    pub replica: Option<Replica>,
    /// Ends the task that brings it up.
    pub cancel: CancellationToken,
    /// Seen running before this agent touched it.
    pub adopted: bool,
    /// Being taken over from a former agent right now.
    pub returning: bool,
    /// Processes of it that the kernel killed for want of memory, in which of its lives.
    pub oom_kills: Option<(sample::Life, u64)>,
}

/// What the loop knows of one deployment beside its record.
#[derive(Default)]
pub(super) struct Memory {
    pub backoff: Backoff,
    pub failed: Option<Failed>,
    pub failure: Option<(u64, String)>,
    pub last_output: Vec<String>,
    pub restarts: u32,
    pub plan: plan::Plan,
    /// Desired state that the memory belongs to: a change of it forgives.
    pub generation: u64,
    pub cleaning: bool,
    pub sleep: sleep::Sleep,
    /// When processes of it ran out of memory last, and the words for it.
    pub starved: Option<(Timestamp, String)>,
    /// The host has no room for what it wants.
    pub waiting: Option<budget::Waiting>,
}

/// What a task reports.
pub(super) enum Done {
    /// It is at this point now.
    Progress {
        instance: InstanceId,
        doing: &'static str,
        container: Option<String>,
        pid: Option<u32>,
        started_at: Option<Timestamp>,
    },
    /// It serves.
    Up {
        instance: InstanceId,
        replica: Box<Replica>,
        gated: bool,
        /// It was woken; this took it.
        woke: Option<Duration>,
    },
    /// It could not be brought up. `blameless`: the engine was away, which says nothing about the release.
    Failed { instance: InstanceId, why: String, output: Vec<String>, blameless: bool },
    /// What one printed last that ran and ended by itself.
    Output { deployment: DeploymentId, lines: Vec<String> },
    /// It sleeps, or could not be put to sleep.
    Slept { instance: InstanceId, depth: Depth, error: Option<String> },
    /// Its frozen containers run again, or could not be thawed.
    Woken { deployment: DeploymentId, error: Option<String> },
    /// Memory of a frozen one was given back, bytes by instance, or cannot be on this host.
    Reclaimed { deployment: DeploymentId, given: Vec<(InstanceId, u64)>, trouble: Option<String> },
    /// Somebody calls it, and its containers have ended.
    Wanted { deployment: DeploymentId },
    /// Told to stop trying.
    Cancelled { instance: InstanceId },
    /// Its container is gone.
    Removed { instance: InstanceId },
    /// It could not be removed.
    Stuck { instance: InstanceId, why: String },
    /// Everything else of a removed deployment is gone.
    Cleaned { deployment: DeploymentId, error: Option<String> },
    /// An orphan is gone, or not.
    Orphan { container: String },
}

impl Done {
    /// Whether its instance is nobody's work any more: then the engine is asked what became of it meanwhile.
    fn ends(&self) -> bool {
        let goes_on = matches!(self, Self::Progress { .. } | Self::Woken { error: None, .. } | Self::Wanted { .. });
        !goes_on && !matches!(self, Self::Reclaimed { .. })
    }
}

pub(super) struct Room {
    pub deps: Arc<Deps>,
    pub shared: Arc<Shared>,
    pub slots: HashMap<InstanceId, Slot>,
    pub memory: HashMap<DeploymentId, Memory>,
    pub orphans: HashSet<String>,
    /// The engine can freeze containers; it is asked once.
    pub can_pause: bool,
    /// The host is short of memory.
    pub tight: bool,
    pub reclaim: reclaim::Reclaim,
    /// The most that a replica was seen to take of memory, bytes.
    pub measured: HashMap<DeploymentId, u64>,
    pub lives: Lives,
    pub book: learnt::Book,
    stop: CancellationToken,
    pub done_tx: mpsc::Sender<Done>,
    done_rx: mpsc::Receiver<Done>,
    wakes: mpsc::Receiver<(DeploymentId, String)>,
    pub seen_engine: bool,
    /// A container went (or a former agent's may have): init binaries may be unused.
    pub sweep: bool,
    /// Instances whose links a former agent had: later ones have an owner.
    pub former: Vec<InstanceId>,
}

impl Room {
    pub(super) fn new(
        deps: Deps,
        shared: Arc<Shared>,
        wakes: mpsc::Receiver<(DeploymentId, String)>,
        stop: CancellationToken,
    ) -> Self {
        let (done_tx, done_rx) = mpsc::channel(256);
        let former = deps.links.known();
        let (book, learnt) = learnt::Book::open(&deps.data_dir);
        let mut room = Self {
            former,
            lives: shared.lives.clone(),
            deps: Arc::new(deps),
            shared,
            slots: HashMap::new(),
            memory: HashMap::new(),
            orphans: HashSet::new(),
            can_pause: false,
            tight: false,
            reclaim: reclaim::Reclaim::default(),
            measured: HashMap::new(),
            stop,
            done_tx,
            done_rx,
            wakes,
            seen_engine: false,
            sweep: true,
            book,
        };
        room.recall(learnt);
        room
    }

    pub(super) async fn run(mut self) {
        let mut store = self.deps.store.changes();
        let mut events = self.deps.engine.events();
        let mut links = self.deps.links.changes();
        let mut drift = self.deps.drift.changes();
        let mut look = true;
        let mut used = self.deps.sample.latest();
        loop {
            let round = Instant::now();
            let mut began = round;
            if look {
                if !self.seen_engine {
                    self.can_pause = self.deps.engine.capabilities().await.is_ok_and(|can| can.pause);
                }
                let seen = self.deps.engine.observe().await;
                began = Instant::now();
                look = !self.observed(seen);
            }
            let wake = if self.seen_engine { self.pass() } else { None };
            self.publish();
            self.shared.passed(began.elapsed());
            // with thousands of containers a look is dear: the loop takes half of a core at most, whatever happens
            let rest = round.elapsed().min(REST_MAX);
            if rest >= REST_MIN {
                tokio::select! {
                    () = self.stop.cancelled() => break,
                    () = tokio::time::sleep(rest) => {}
                }
            }
            let mut pause = if look { ENGINE_RETRY } else { RESYNC };
            if let Some(wake) = wake {
                let until = wake.duration_since(Timestamp::now());
                let until = Duration::try_from(until).unwrap_or_default();
                pause = pause.min(until.max(Duration::from_millis(10)));
            }
            let mut resync = false;
            tokio::select! {
                () = self.stop.cancelled() => break,
                Ok(()) = store.changed() => {}
                Ok(()) = drift.changed() => {}
                Ok(()) = events.changed() => resync = true,
                Ok(()) = links.changed() => resync = true,
                Some((deployment, why)) = self.wakes.recv() => self.wake_ahead(deployment, &why),
                Some(done) = self.done_rx.recv() => { resync = done.ends(); self.take(done).await; }
                Ok(()) = used.changed() => {
                    self.tight = self.is_tight();
                    self.measure(Timestamp::now());
                    self.reclaim(Timestamp::now());
                    self.keep_learnt();
                }
                () = tokio::time::sleep(pause) => resync = true,
            }
            // one pass for everything that is already here
            while let Ok(done) = self.done_rx.try_recv() {
                resync |= done.ends();
                self.take(done).await;
            }
            look = look || resync;
        }
        for slot in self.slots.values() {
            slot.cancel.cancel();
        }
        self.keep_last().await;
    }

    async fn take(&mut self, done: Done) {
        match done {
            Done::Progress { instance, doing, container, pid, started_at } => {
                if let Some(slot) = self.slots.get_mut(&instance) {
                    slot.doing = doing;
                    slot.container = container.or(slot.container.take());
                    slot.pid = pid.or(slot.pid);
                    slot.started_at = started_at.or(slot.started_at);
                }
            }
            Done::Up { instance, replica, gated, woke } => {
                let Some(slot) = self.slots.get_mut(&instance) else { return };
                slot.busy = false;
                slot.returning = false;
                slot.phase = Phase::Ready;
                slot.ready_since = Some(Timestamp::now());
                slot.replica = Some(*replica);
                slot.message.clear();
                let (id, release) = (slot.deployment, slot.release);
                if gated {
                    let slot = &self.slots[&instance];
                    self.mark(slot, &format!("release {release} is ready"));
                }
                if let Some(memory) = self.memory.get_mut(&id) {
                    memory.failed = None;
                    memory.sleep.took = woke.or(memory.sleep.took);
                    memory.sleep.nap.touch();
                }
                self.passed(id, release).await;
            }
            // the crash itself was counted when it was seen, and the instance may be on its way up again
            Done::Output { deployment, lines } => {
                if !lines.is_empty() {
                    self.memory.entry(deployment).or_default().last_output = lines;
                }
            }
            Done::Failed { instance, why, output, blameless } => {
                let Some(slot) = self.slots.get_mut(&instance) else { return };
                let id = slot.deployment;
                let memory = self.memory.entry(id).or_default();
                slot.busy = false;
                slot.returning = false;
                if blameless {
                    // what is planned next waits for the engine, as everything does
                    slot.phase = Phase::Down;
                    slot.replica = None;
                    slot.message = why;
                    memory.backoff.fail(Timestamp::now());
                    return;
                }
                let (release, restart) = (slot.release, slot.restart);
                // what another release printed says nothing of this one
                if !output.is_empty() || memory.failed.is_some_and(|(failed, _)| failed != release) {
                    memory.last_output = output;
                }
                slot.phase = Phase::Down;
                slot.replica = None;
                slot.message.clone_from(&why);
                // what goes anyway says nothing of what was asked for last
                let now = self.deps.store.deployment(id);
                let asked = now.filter(|d| d.desired.release == release && d.desired.restart == restart);
                let generation = asked.map_or(0, |d| d.generation);
                memory.backoff.fail(Timestamp::now());
                memory.failed = Some((release, restart));
                memory.failure = Some((generation, why.clone()));
                let slot = &self.slots[&instance];
                // the server's output is in the log already
                let words = why.split(LAST_OUTPUT).next().unwrap_or_default();
                self.mark(slot, &format!("release {release} did not become ready: {words}"));
                self.failed(id, release, why).await;
            }
            Done::Slept { instance, depth, error } => self.slept(instance, depth, error),
            Done::Woken { deployment, error } => self.woken(deployment, error),
            Done::Wanted { deployment } => self.wanted(deployment),
            Done::Reclaimed { deployment, given, trouble } => self.reclaimed(deployment, &given, trouble),
            Done::Cancelled { instance } => {
                if let Some(slot) = self.slots.get_mut(&instance) {
                    slot.busy = false;
                    slot.returning = false;
                    slot.phase = Phase::Down;
                    if slot.container.is_none() {
                        self.slots.remove(&instance);
                        self.forget(instance);
                    }
                }
            }
            Done::Removed { instance } => {
                self.sweep = true;
                if let Some(slot) = self.slots.remove(&instance) {
                    self.mark(&slot, "stopped");
                }
                self.forget(instance);
            }
            Done::Stuck { instance, why } => {
                if let Some(slot) = self.slots.get_mut(&instance) {
                    slot.busy = false;
                    slot.message = why;
                    slot.phase = Phase::Draining { since: Timestamp::UNIX_EPOCH, in_flight: 0 };
                }
            }
            Done::Cleaned { deployment, error } => {
                if let Some(memory) = self.memory.get_mut(&deployment) {
                    memory.cleaning = false;
                    memory.failure = error.map(|e| (0, e));
                }
                if self.deps.store.deployment(deployment).is_none() {
                    self.memory.remove(&deployment);
                }
            }
            Done::Orphan { container } => {
                self.sweep = true;
                self.orphans.remove(&container);
            }
        }
    }

    /// A gate proved a release: kept, so that rollback may return to it.
    async fn passed(&self, id: DeploymentId, release: ReleaseNo) {
        let Some(deployment) = self.deps.store.deployment(id) else { return };
        let known = deployment.release(release).is_some_and(|r| r.outcome == Outcome::Good);
        let target = deployment.desired.release == release;
        if known && (!target || deployment.serving == Some(release)) {
            return;
        }
        let kept = self
            .deps
            .store
            .update(id, None, &format!("release {release} passed its gate"), move |d| {
                if d.desired.release == release {
                    d.serving = Some(release);
                }
                if let Some(r) = d.releases.iter_mut().find(|r| r.number == release) {
                    r.outcome = Outcome::Good;
                }
                Ok(())
            })
            .await;
        if let Err(error) = kept {
            tracing::error!(%error, "could not keep that release {release} passed its gate");
        }
    }

    /// A gate failed. A release that never passed is marked; where another one served, it is desired again.
    async fn failed(&mut self, id: DeploymentId, release: ReleaseNo, why: String) {
        let Some(deployment) = self.deps.store.deployment(id) else { return };
        if deployment.desired.release != release || deployment.desired.run != Run::Running {
            return;
        }
        let pending = deployment.release(release).is_some_and(|r| r.outcome == Outcome::Pending);
        let back = deployment.serving.filter(|s| *s != release && deployment.release(*s).is_some());
        if !pending && back.is_none() {
            return;
        }
        // who waits for the verdict looks at the status as soon as it is in the store: reason and output must be there
        self.publish();
        let reason = match back {
            Some(back) => format!("release {release} failed its gate; back to release {back}"),
            None => format!("release {release} failed its gate"),
        };
        let kept = self
            .deps
            .store
            .update(id, Some(deployment.generation), &reason, move |d| {
                if let Some(r) = d.releases.iter_mut().find(|r| r.number == release)
                    && r.outcome == Outcome::Pending
                {
                    r.outcome = Outcome::Failed { why };
                }
                if let Some(back) = back {
                    d.desired.release = back;
                }
                Ok(())
            })
            .await;
        match kept {
            Err(error) => tracing::warn!(%error, "could not keep that release {release} failed"),
            Ok(_) => {
                if let Some(back) = back {
                    let record = by_agent("release.return").target(deployment.name.to_string(), id.to_string());
                    let record = record.before("release", release).after("release", back);
                    self.deps.audit.keep(record.after("reason", "it failed its gate")).await;
                }
            }
        }
    }

    /// Who belongs to whom, oldest first. Made once for all deployments: a search through all slots for each of them
    /// is what a thousand deployments cannot pay.
    pub(super) fn by_deployment(&self) -> HashMap<DeploymentId, Vec<InstanceId>> {
        let mut all: HashMap<DeploymentId, Vec<InstanceId>> = HashMap::with_capacity(self.memory.len());
        for slot in self.slots.values() {
            all.entry(slot.deployment).or_default().push(slot.id);
        }
        all.values_mut().for_each(|ids| ids.sort_unstable());
        all
    }

    /// Plans every deployment and starts what is missing. Answers when to look again.
    fn pass(&mut self) -> Option<Timestamp> {
        let now = Timestamp::now();
        let mut wake: Option<Timestamp> = None;
        let by_deployment = self.by_deployment();
        let mut deployments = self.deps.store.deployments();
        // room goes to whoever has waited for it the longest
        if self.memory.values().any(|memory| memory.waiting.is_some()) {
            let since = |id: &DeploymentId| self.memory.get(id).and_then(|m| m.waiting.as_ref()).map(|w| w.since);
            deployments.sort_by_cached_key(|deployment| since(&deployment.id).unwrap_or(Timestamp::MAX));
        }
        let mut budget = None;
        for deployment in deployments {
            let ids = by_deployment.get(&deployment.id).map_or(&[][..], Vec::as_slice);
            let memory = self.memory.entry(deployment.id).or_default();
            if memory.generation != deployment.generation {
                // what was asked for is done in front of whoever asked: a sleeper wakes for it
                if memory.generation != 0 {
                    memory.sleep.end(now);
                }
                // a person asked for something: start at once, whatever went wrong before. The return to a good
                // release after a failed gate is no person's wish, but its release did not fail either.
                memory.generation = deployment.generation;
                memory.backoff = Backoff::default();
            }
            if let Some(at) = self.tend(&deployment, ids, now) {
                wake = Some(wake.map_or(at, |w| w.min(at)));
            }
            let memory = self.memory.entry(deployment.id).or_default();
            let mut insts: Vec<Inst> = Vec::new();
            for id in ids {
                let Some(slot) = self.slots.get_mut(id) else { continue };
                if let Phase::Draining { since, .. } = slot.phase {
                    slot.phase = Phase::Draining { since, in_flight: (self.deps.in_flight)(slot.id) };
                }
                if let Some(since) = slot.ready_since.filter(|_| slot.phase == Phase::Ready) {
                    memory.backoff.settle(since, now);
                }
                let unwanted = deployment.desired.run != Run::Running
                    || slot.release != deployment.desired.release
                    || slot.restart != deployment.desired.restart;
                if slot.busy && unwanted {
                    slot.cancel.cancel();
                }
                insts.push(Inst {
                    id: slot.id,
                    release: slot.release,
                    restart: slot.restart,
                    phase: slot.phase.clone(),
                    busy: slot.busy,
                });
            }
            let mut plan = plan::plan(&deployment, &insts, &memory.backoff, memory.failed, memory.sleep.rest, now);
            self.admit(&deployment, &mut plan, &mut budget, now);
            let memory = self.memory.entry(deployment.id).or_default();
            if let Some(at) = plan.wake_at {
                wake = Some(wake.map_or(at, |w| w.min(at)));
            }
            // requests of a draining instance end without telling us, and so does the wait of one that is told to now
            if insts.iter().any(|i| matches!(i.phase, Phase::Draining { .. }))
                || plan.actions.iter().any(|a| matches!(a, Action::Drain(_)))
            {
                let soon = now + jiff::SignedDuration::from_millis(100);
                wake = Some(wake.map_or(soon, |w| w.min(soon)));
            }
            memory.plan = plan.clone();
            let actions = plan.actions;
            if deployment.desired.run == Run::Removed && insts.is_empty() && !memory.cleaning {
                memory.cleaning = true;
                act::clean(
                    self.deps.clone(),
                    self.lives.clone(),
                    deployment.clone(),
                    self.done_tx.clone(),
                    &self.shared.tasks,
                );
            }
            for action in actions {
                self.start(&deployment, action);
            }
        }
        wake
    }

    fn start(&mut self, deployment: &Arc<Deployment>, action: Action) {
        tracing::debug!(deployment = %deployment.name, %action, "plan");
        match action {
            Action::Create { release, restart } => {
                let id = InstanceId(ulid::Ulid::generate());
                let slot = Slot {
                    id,
                    deployment: deployment.id,
                    release,
                    restart,
                    phase: Phase::Making,
                    busy: true,
                    doing: "creating",
                    container: None,
                    pid: None,
                    started_at: None,
                    ready_since: None,
                    restarts: 0,
                    message: String::new(),
                    replica: None,
                    cancel: self.stop.child_token(),
                    adopted: false,
                    returning: false,
                    oom_kills: None,
                };
                self.deps.tail.instance(crate::tail::Instance { instance: id, deployment: deployment.id, release });
                self.slots.insert(id, slot);
                self.bring_up(deployment, id, act::From::Nothing);
            }
            Action::Start(id) => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    if slot.phase == Phase::Down {
                        slot.restarts += 1;
                        if let Some(memory) = self.memory.get_mut(&slot.deployment) {
                            memory.restarts += 1;
                        }
                    }
                    slot.phase = Phase::Gating;
                }
                self.bring_up(deployment, id, act::From::Container);
            }
            Action::Gate(id) => {
                let adopted = self.slots.get(&id).is_some_and(|s| s.adopted);
                self.bring_up(deployment, id, if adopted { act::From::Adopted } else { act::From::Container });
            }
            Action::Wake(id) => {
                let Some(Phase::Asleep(depth)) = self.slots.get(&id).map(|slot| slot.phase.clone()) else { return };
                self.slots.entry(id).and_modify(|slot| slot.phase = Phase::Gating);
                self.bring_up(deployment, id, act::From::Asleep(depth));
            }
            Action::Rest(id, depth) => {
                let Some(slot) = self.slots.get_mut(&id) else { return };
                slot.busy = true;
                slot.doing = act::FALLING_ASLEEP;
                let (container, done) = (slot.container.clone(), self.done_tx.clone());
                act::rest(self.deps.clone(), id, container, depth, done, &self.shared.tasks);
            }
            Action::Drain(id) => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.phase = Phase::Draining { since: Timestamp::now(), in_flight: 0 };
                }
            }
            Action::Remove(id) => {
                let Some(slot) = self.slots.get_mut(&id) else { return };
                slot.busy = true;
                slot.doing = "stopping";
                slot.replica = None;
                let (container, done) = (slot.container.clone(), self.done_tx.clone());
                act::remove(self.deps.clone(), deployment.id, id, container, done, &self.shared.tasks);
            }
        }
    }

    fn bring_up(&mut self, deployment: &Arc<Deployment>, id: InstanceId, from: act::From) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let Some(release) = deployment.release(slot.release) else { return };
        slot.busy = true;
        slot.doing = if slot.container.is_some() { "starting" } else { "creating" };
        slot.adopted = false;
        // a frozen one that a former agent left has sessions that go on
        slot.returning = matches!(from, act::From::Adopted | act::From::Asleep(Depth::Paused));
        slot.cancel = self.stop.child_token();
        let task = act::BringUp {
            deps: self.deps.clone(),
            deployment: deployment.clone(),
            release: release.number,
            restart: slot.restart,
            spec: Arc::new(release.spec.clone()),
            good: release.outcome == Outcome::Good,
            instance: id,
            container: slot.container.clone(),
            began: None,
            link: None,
            woke: None,
            from,
            nap: self.memory.get(&deployment.id).map(|memory| memory.sleep.nap.clone()).unwrap_or_default(),
            done: self.done_tx.clone(),
            cancel: slot.cancel.clone(),
            lives: self.lives.clone(),
            tasks: self.shared.tasks.clone(),
            stop: self.stop.clone(),
        };
        self.shared.tasks.spawn(task.run());
    }

    /// Statuses and routes for the rooms above.
    fn publish(&mut self) {
        self.deps.sample.instances(status::running(&self.slots));
        let by_deployment = self.by_deployment();
        let changed = status::publish(self, &by_deployment);
        if changed {
            self.shared.changes.send_modify(|n| *n += 1);
        }
        let mut table = RouteTable { known: true, ..RouteTable::default() };
        for deployment in self.deps.store.deployments() {
            let instances = by_deployment.get(&deployment.id).map_or(&[][..], Vec::as_slice);
            table.routes.insert(deployment.name.to_string(), Arc::new(self.route(&deployment, instances)));
        }
        let changed = {
            let old = self.deps.routes.borrow();
            !old.known
                || old.routes.len() != table.routes.len()
                || table.routes.iter().any(|(name, route)| old.routes.get(name).is_none_or(|r| !routes::same(r, route)))
        };
        if changed {
            self.deps.routes.send_replace(Arc::new(table));
        }
    }

    pub(super) fn forget(&self, instance: InstanceId) {
        self.deps.tail.instance_gone(instance);
        let links = self.deps.links.clone();
        self.shared.tasks.spawn(async move { links.forget(instance).await });
    }

    /// A mark in the log: what happened to an instance, in words.
    pub(super) fn mark(&self, slot: &Slot, words: &str) {
        let (tail, deployment, release, instance) = (self.deps.tail.clone(), slot.deployment, slot.release, slot.id);
        let words = words.to_owned();
        self.shared.tasks.spawn(async move {
            tail.append(deployment, release, Some(instance), Stream::Agent, Timestamp::now(), words.into()).await;
        });
    }
}
