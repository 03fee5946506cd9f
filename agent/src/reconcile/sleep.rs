//! Putting deployments to sleep that nobody calls, and having them back. That one sleeps is nowhere but here, in memory, and
//! in the state of its containers: a new agent reads it from the engine.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sigil_core::model::{Deployment, DeploymentId, InstanceId, Outcome, Run};
use sigil_core::plan::Phase;
use sigil_core::scale;
use sigil_core::sleep::{self, Depth, Facts, Rest, Terms};

use super::act;
use super::reclaim::{self, Back};
use super::slots::{Done, Room, Slot};
use crate::upstream::nap::Nap;

/// Sleeps whose length is remembered.
const NAPS: usize = 9;

/// A deployment's sleep, as the loop knows it.
#[derive(Default)]
pub(super) struct Sleep {
    /// Who calls it goes through here.
    pub nap: Nap,
    /// It is to sleep so deep.
    pub rest: Option<Depth>,
    /// Since when.
    pub since: Timestamp,
    /// Its memory is wanted: it is stopped, whoever has sessions with it.
    pub evicted: bool,
    /// Memory that it gave back in this sleep; `None`: it was not asked to.
    pub given_back: Option<Back>,
    /// What its waker is made for.
    armed: Option<Depth>,
    /// What the last start of its containers took, until it could be called.
    pub took: Option<Duration>,
    /// How long it slept the last times.
    naps: VecDeque<SignedDuration>,
}

impl Sleep {
    /// It is to be awake from now on.
    pub fn end(&mut self, now: Timestamp) {
        self.evicted = false;
        self.given_back = None;
        if self.rest.take().is_some() && self.armed.take().is_some() {
            self.naps.truncate(NAPS - 1);
            self.naps.push_front(now.duration_since(self.since).max(SignedDuration::ZERO));
        }
    }
}

impl Sleep {
    /// How long it slept the last times, seconds, the newest first.
    pub fn lengths(&self) -> Vec<i64> {
        self.naps.iter().map(|nap| nap.as_secs()).collect()
    }

    /// As a former agent saw them.
    pub fn recall(&mut self, lengths: &[i64]) {
        self.naps = lengths.iter().take(NAPS).map(|seconds| SignedDuration::from_secs((*seconds).max(0))).collect();
    }
}

impl Room {
    /// Whether a deployment may sleep, and how.
    fn terms(&self, deployment: &Deployment) -> Option<Terms> {
        let release = deployment.release(deployment.desired.release)?;
        // a release that has not shown yet that it works is not taken out of sight
        let proven = release.outcome == Outcome::Good && deployment.desired.run == Run::Running;
        let scaling = deployment.scaling.as_ref().filter(|_| proven && deployment.desired.replicas > 0)?;
        if scaling.min > 0 || scaling.idle_timeout == 0 {
            return None;
        }
        Some(Terms {
            idle: SignedDuration::from_secs(scaling.idle_timeout.into()),
            depth: match scaling.sleep {
                scale::Depth::Auto => None,
                scale::Depth::Paused => Some(Depth::Paused),
                scale::Depth::Stopped => Some(Depth::Stopped),
            },
            replayable: release.spec.sessions_replayable,
            can_pause: self.can_pause,
            session_life: i64::try_from(self.deps.config.borrow().gateway.session_idle_seconds)
                .map_or(SignedDuration::MAX, SignedDuration::from_secs),
        })
    }

    /// Decides whether a deployment sleeps. Answers when that is to be asked again.
    pub(super) fn tend(&mut self, deployment: &Deployment, ids: &[InstanceId], now: Timestamp) -> Option<Timestamp> {
        let terms = self.terms(deployment);
        let slots: Vec<&Slot> = ids.iter().filter_map(|id| self.slots.get(id)).collect();
        let desired = &deployment.desired;
        let exclusive = deployment.release(desired.release).is_some_and(|r| r.spec.is_exclusive());
        let want = if exclusive { desired.replicas.min(1) } else { desired.replicas } as usize;
        let target = |slot: &Slot| slot.release == desired.release && slot.restart == desired.restart;
        let whole = slots.len() == want && slots.iter().all(|slot| target(slot) && !slot.busy);
        let all = |so: fn(&Phase) -> bool| whole && slots.iter().all(|slot| so(&slot.phase));
        let (ready, asleep) = (all(|p| *p == Phase::Ready), all(|p| matches!(p, Phase::Asleep(_))));
        let depth = slots.iter().filter_map(|slot| asleep_in(&slot.phase)).max();
        let frozen = slots.iter().all(|slot| slot.replica.is_some());
        let falling = slots.iter().any(|slot| slot.busy && slot.doing == act::FALLING_ASLEEP);
        let waking = slots.iter().any(|slot| slot.busy || matches!(slot.phase, Phase::Asleep(_)));
        let serves = slots.iter().any(|slot| slot.phase == Phase::Ready);
        let tight = self.tight;
        let memory = self.memory.entry(deployment.id).or_default();
        let sleep = &mut memory.sleep;
        let Some(terms) = terms else {
            if !falling {
                sleep.end(now);
            }
            if sleep.rest.is_none() && !sleep.nap.is_awake() && (serves || !waking) {
                sleep.nap.woke();
            }
            return None;
        };
        match sleep.rest {
            // a new agent finds it so
            None if asleep && sleep.nap.is_awake() => {
                if let Some(depth) = depth.filter(|_| sleep.nap.close()) {
                    (sleep.rest, sleep.since) = (Some(depth), now);
                }
            }
            None => {
                if !sleep.nap.is_awake() && (serves || !waking) {
                    sleep.nap.woke();
                }
                if !ready {
                    return None;
                }
            }
            // what is left of it is brought up as ever
            Some(_) if !falling && !asleep && !ready => {
                sleep.end(now);
                return None;
            }
            Some(_) => {}
        }
        if let (Some(_), Some(depth), true) = (sleep.rest, depth, asleep) {
            let depth = if frozen { depth } else { Depth::Stopped };
            if sleep.armed != Some(depth) && (sleep.armed.is_none() || sleep.nap.close()) {
                sleep.armed = Some(depth);
                let nap = sleep.nap.clone();
                let waker = self.waker(deployment.id, ids, depth, nap.clone());
                nap.closed(waker);
            }
        }
        let memory = self.memory.entry(deployment.id).or_default();
        let sleep = &mut memory.sleep;
        if sleep.rest.is_some() && !asleep {
            // on its way
            return None;
        }
        let naps: Vec<SignedDuration> = sleep.naps.iter().copied().collect();
        let facts = Facts {
            asleep: sleep.rest.map(|depth| (depth, sleep.since)),
            used: now - sleep.nap.quiet(),
            busy: sleep.nap.is_busy(),
            sessions: (self.deps.sessions)(deployment.id),
            attached: sleep.nap.attached(),
            tight,
            naps: &naps,
        };
        let decided = match sleep.rest {
            Some(Depth::Paused) if sleep.evicted && !facts.busy => Rest::Go(Depth::Stopped),
            _ => sleep::rest(&terms, &facts, now),
        };
        match decided {
            Rest::Stay(until) => until,
            Rest::Go(depth) if sleep.nap.close() => {
                if sleep.rest.is_none() {
                    sleep.since = now;
                }
                (sleep.rest, sleep.armed) = (Some(depth), None);
                None
            }
            // somebody came at this moment
            Rest::Go(_) => Some(now + SignedDuration::from_secs(1)),
        }
    }

    /// What brings a deployment back: at once where its containers are only frozen, by the loop where they have ended.
    fn waker(
        &self,
        deployment: DeploymentId,
        ids: &[InstanceId],
        depth: Depth,
        nap: Nap,
    ) -> impl FnOnce() + Send + 'static {
        let containers: Vec<String> =
            ids.iter().filter_map(|id| self.slots.get(id)).filter_map(|slot| slot.container.clone()).collect();
        let (engine, done, tasks) = (self.deps.engine.clone(), self.done_tx.clone(), self.shared.tasks.clone());
        move || {
            tasks.spawn(async move {
                if depth == Depth::Stopped {
                    let _closed = done.send(Done::Wanted { deployment }).await;
                    return;
                }
                let mut error = None;
                for container in containers {
                    if let Err(e) = engine.unpause(&container).await {
                        error = Some(e.to_string());
                    }
                }
                if error.is_none() {
                    nap.woke();
                }
                let _closed = done.send(Done::Woken { deployment, error }).await;
            });
        }
    }

    /// Wakes one whose containers have ended before anybody calls it.
    pub(super) fn wake_ahead(&mut self, deployment: DeploymentId, why: &str) {
        let Some(memory) = self.memory.get(&deployment) else { return };
        if memory.sleep.rest != Some(Depth::Stopped) || memory.sleep.armed.is_none() || self.tight {
            return;
        }
        let nap = memory.sleep.nap.clone();
        for slot in self.slots.values().filter(|slot| slot.deployment == deployment) {
            self.mark(slot, &format!("woken ahead: {why}"));
        }
        nap.wake();
    }

    /// Whether the host is short of memory: then who sleeps is stopped, not only frozen.
    pub(super) fn is_tight(&self) -> bool {
        let host = self.deps.sample.latest().borrow().host.clone();
        host.memory_total > 0 && host.memory_available < host.memory_total / 10
    }

    /// Whether what a former agent left of a deployment may be asleep.
    pub(super) fn may_sleep(&self, deployment: DeploymentId) -> bool {
        self.deps.store.deployment(deployment).is_some_and(|deployment| self.terms(&deployment).is_some())
    }

    /// Its frozen containers run again, or could not be thawed: then they are looked at like any other.
    pub(super) fn woken(&mut self, deployment: DeploymentId, error: Option<String>) {
        let now = Timestamp::now();
        let Some(memory) = self.memory.get_mut(&deployment) else { return };
        let slept = now.duration_since(memory.sleep.since);
        memory.sleep.end(now);
        if let Some(error) = error {
            tracing::warn!(%error, %deployment, "a sleeping deployment could not be thawed");
            return;
        }
        let asleep = |slot: &&mut Slot| slot.deployment == deployment && slot.phase == Phase::Asleep(Depth::Paused);
        let mut woken = Vec::new();
        for slot in self.slots.values_mut().filter(asleep) {
            slot.phase = Phase::Ready;
            slot.ready_since = Some(now);
            woken.push(slot.id);
        }
        for slot in woken.iter().filter_map(|id| self.slots.get(id)) {
            self.mark(slot, &format!("awake again after {}", words(slept)));
        }
    }

    /// Somebody calls a deployment whose containers have ended: the plan starts them.
    pub(super) fn wanted(&mut self, deployment: DeploymentId) {
        if let Some(memory) = self.memory.get_mut(&deployment) {
            memory.sleep.end(Timestamp::now());
        }
    }

    /// An instance sleeps now, or could not be put to sleep.
    pub(super) fn slept(&mut self, instance: InstanceId, depth: Depth, error: Option<String>) {
        let Some(slot) = self.slots.get_mut(&instance) else { return };
        slot.busy = false;
        let deployment = slot.deployment;
        match error {
            None => {
                slot.phase = Phase::Asleep(depth);
                slot.message.clear();
                if depth == Depth::Stopped {
                    slot.replica = None;
                    slot.pid = None;
                }
                let slot = &self.slots[&instance];
                self.mark(slot, &format!("asleep ({}): nobody calls it", depth.as_str()));
            }
            Some(error) => {
                slot.message = format!("could not be put to sleep: {error}");
                if let Some(memory) = self.memory.get_mut(&deployment) {
                    memory.sleep.end(Timestamp::now());
                }
            }
        }
    }
}

/// How deep an instance sleeps.
fn asleep_in(phase: &Phase) -> Option<Depth> {
    match phase {
        Phase::Asleep(depth) => Some(*depth),
        _ => None,
    }
}

/// A length of time for a person.
fn words(length: SignedDuration) -> String {
    match length.as_secs() {
        s @ ..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

/// What a deployment's statuses show of its sleep.
pub(super) fn message(sleep: &Sleep) -> String {
    match sleep.rest {
        None => String::new(),
        Some(depth) => {
            let since = sleep.since.strftime("%H:%M:%S UTC");
            let back = reclaim::words(sleep.given_back.filter(|_| depth == Depth::Paused));
            format!("asleep ({}) since {since}{back}; the next call wakes it", depth.as_str())
        }
    }
}

/// The handle that the gateway gets.
pub(super) fn nap(room: &Room, deployment: DeploymentId) -> Nap {
    room.memory.get(&deployment).map(|memory| memory.sleep.nap.clone()).unwrap_or_default()
}

/// The table with a woken replica in it, before the loop has come to know of it.
pub(super) fn publish(deps: &super::Deps, deployment: &Deployment, replica: &crate::upstream::Replica) {
    deps.routes.send_if_modified(|table| {
        let Some(old) = table.routes.get(deployment.name.as_str()) else { return false };
        if old.ready.iter().any(|ready| ready.instance == replica.instance) {
            return false;
        }
        let mut route = old.as_ref().clone();
        route.ready.push(replica.clone());
        let mut next = table.as_ref().clone();
        next.routes.insert(deployment.name.to_string(), Arc::new(route));
        *table = Arc::new(next);
        true
    });
}
