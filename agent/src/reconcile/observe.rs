//! What the engine shows, merged into the slots: who runs, who ended, what belongs to nobody.

use std::collections::HashSet;

use jiff::Timestamp;
use sigil_core::model::{DeploymentId, InstanceId, Outcome, Run};
use sigil_core::plan::Phase;
use sigil_core::sleep::Depth;
use tokio_util::sync::CancellationToken;

use super::act;
use super::lives::Ended;
use super::slots::{Done, Room, Slot};
use crate::engine::{Container, ContainerState, label};

/// Created containers without an owner are leftovers once older than this.
const LEFTOVER_SECONDS: i64 = 300;

impl Room {
    /// Brings the slots up to date with what the engine shows. False when it cannot be seen.
    pub(super) fn observed(&mut self, seen: crate::engine::Result<Vec<Container>>) -> bool {
        let containers = match seen {
            Ok(containers) => containers,
            Err(error) => {
                if self.shared.engine_trouble.read().is_ok_and(|t| t.is_none()) {
                    tracing::warn!(%error, hint = error.hint(), "the engine cannot be seen; what runs goes on serving");
                }
                self.shared.set_engine_trouble(Some(error.to_string()));
                return false;
            }
        };
        if self.shared.engine_trouble.read().is_ok_and(|t| t.is_some()) {
            tracing::info!("the engine answers again");
        }
        self.shared.set_engine_trouble(None);
        self.seen_engine = true;
        let mut present = HashSet::new();
        for container in &containers {
            // a container that a person made of an image of ours inherits the image's labels, and has no role
            let Some(role) = container.labels.get(label::ROLE) else { continue };
            if role == "build" {
                continue;
            }
            match (container.instance(), container.deployment()) {
                (Some(instance), Some(deployment)) if self.deps.store.deployment(deployment).is_some() => {
                    present.insert(instance);
                    self.merge(instance, deployment, container);
                }
                _ => self.orphan(container),
            }
        }
        let gone: Vec<InstanceId> =
            self.slots.values().filter(|s| !s.busy && !present.contains(&s.id)).map(|s| s.id).collect();
        for id in gone {
            if let Some(slot) = self.slots.remove(&id) {
                tracing::warn!(instance = %id, "its container was removed from outside");
                self.mark(&slot, "its container was removed from outside");
                self.forget(id);
            }
        }
        // a container that did not say what it mounts may mount anything: then the next look decides
        let mounted: Option<Vec<Vec<String>>> = containers.iter().map(|c| c.mounts.clone()).collect();
        if let Some(mounted) = mounted.filter(|_| self.sweep) {
            self.sweep = false;
            let links = self.deps.links.clone();
            self.shared.tasks.spawn(async move { links.sweep(mounted.concat()).await });
        }
        // socket directories that a former agent left behind
        for id in std::mem::take(&mut self.former) {
            if !self.slots.contains_key(&id) && !present.contains(&id) {
                self.forget(id);
            }
        }
        true
    }

    fn merge(&mut self, instance: InstanceId, deployment: DeploymentId, container: &Container) {
        let number = |key: &str| container.labels.get(key).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        let release = u32::try_from(number(label::RELEASE)).unwrap_or(0);
        let restart = number(label::RESTART);
        let new = !self.slots.contains_key(&instance);
        if new {
            self.deps.tail.instance(crate::tail::Instance { instance, deployment, release });
        }
        let sleeps = new && self.may_sleep(deployment);
        let slot = self.slots.entry(instance).or_insert_with(|| Slot {
            id: instance,
            deployment,
            release,
            restart,
            phase: Phase::Created,
            busy: false,
            doing: "adopting",
            container: Some(container.id.clone()),
            pid: None,
            started_at: None,
            ready_since: None,
            restarts: 0,
            message: String::new(),
            replica: None,
            cancel: CancellationToken::new(),
            adopted: true,
            returning: false,
            oom_kills: None,
        });
        if slot.busy {
            return;
        }
        slot.container = Some(container.id.clone());
        match &container.state {
            ContainerState::Running { pid, started_at } => {
                // the number alone may have been given out again
                let same_life = slot.pid == Some(*pid) && slot.started_at == Some(*started_at);
                slot.pid = Some(*pid);
                slot.started_at = Some(*started_at);
                match slot.phase {
                    Phase::Created | Phase::Down => slot.phase = Phase::Gating,
                    // it ended and came back between two looks
                    Phase::Ready if !same_life => {
                        slot.replica = None;
                        slot.phase = Phase::Gating;
                    }
                    _ => {}
                }
            }
            // a former agent put it to sleep, or this one
            ContainerState::Paused { pid } if sleeps => {
                slot.pid = Some(*pid);
                slot.phase = Phase::Asleep(Depth::Paused);
            }
            ContainerState::Paused { .. } if matches!(slot.phase, Phase::Asleep(_)) => {}
            ContainerState::Paused { pid } => {
                slot.pid = Some(*pid);
                slot.replica = None;
                slot.phase = Phase::Down;
                slot.message = "paused from outside".into();
            }
            ContainerState::Created => slot.phase = Phase::Created,
            ContainerState::Exited { .. } if slot.phase == Phase::Asleep(Depth::Stopped) => {}
            ContainerState::Exited { code, oom, error, started_at, finished_at } => {
                if new || slot.pid.is_some() {
                    // queued before anything of a next life can be
                    drop(self.deps.tail.ended(instance));
                }
                // ended while it was frozen, or while no agent watched: nobody called it since
                if sleeps || matches!(slot.phase, Phase::Asleep(_)) {
                    slot.pid = None;
                    slot.replica = None;
                    slot.phase = Phase::Asleep(Depth::Stopped);
                    return;
                }
                let was = slot.phase.clone();
                slot.pid = None;
                slot.replica = None;
                if let Phase::Draining { .. } = was {
                    slot.phase = Phase::Draining { since: Timestamp::UNIX_EPOCH, in_flight: 0 };
                    return;
                }
                slot.phase = Phase::Down;
                if matches!(was, Phase::Ready | Phase::Gating) && !new {
                    let why = exit_words(*code, *oom, error);
                    slot.message.clone_from(&why);
                    let served = slot.ready_since.filter(|_| was == Phase::Ready);
                    self.crashed(instance, why, served, (*code, *oom));
                } else if new {
                    // it ended while no agent watched (an engine restart, a reboot): start again at once
                    slot.message = exit_words(*code, *oom, error);
                    let at = finished_at.unwrap_or_else(Timestamp::now);
                    self.ended_unseen(instance, (*started_at, at), (*code, *oom));
                }
            }
            ContainerState::Other(word) => slot.message = format!("the engine says '{word}'"),
        }
    }

    /// Counts a crash of an instance that ran; `served`: since when it was ready; `end`: its exit code, and whether the kernel
    /// killed it for want of memory.
    fn crashed(&mut self, instance: InstanceId, why: String, served: Option<Timestamp>, (code, oom): (i64, bool)) {
        let Some(slot) = self.slots.get(&instance) else { return };
        let asked = self.deps.store.deployment(slot.deployment);
        let asked = asked.filter(|d| d.desired.release == slot.release && d.desired.restart == slot.restart);
        let generation = asked.map_or(0, |d| d.generation);
        let memory = self.memory.entry(slot.deployment).or_default();
        let now = Timestamp::now();
        if let Some(since) = served {
            // what nobody looked at since is forgiven first
            memory.backoff.settle(since, now);
        }
        memory.backoff.fail(now);
        memory.failure = Some((generation, why.clone()));
        self.mark(slot, &why);
        let life = Ended {
            at: now,
            began: slot.started_at,
            instance,
            release: slot.release,
            served: served.is_some(),
            code: Some(code),
            oom,
            why,
            output: Vec::new(),
            cut: false,
        };
        let lives = self.lives.clone();
        let (tail, deployment) = (self.deps.tail.clone(), slot.deployment);
        let tx = self.done_tx.clone();
        // the last output is read off the loop: it may come from disk
        self.shared.tasks.spawn(async move {
            let output = act::last_output(&tail, deployment, instance).await;
            let _closed = tx.send(Done::Output { deployment, lines: output }).await;
            lives.ended(&tail, deployment, life).await;
        });
    }

    /// Keeps how an instance ended while no agent ran, where nobody had asked it to. It counts as no failure: more often than
    /// not the machine was started anew.
    fn ended_unseen(
        &mut self,
        instance: InstanceId,
        (began, at): (Option<Timestamp>, Timestamp),
        (code, oom): (i64, bool),
    ) {
        let Some(slot) = self.slots.get(&instance) else { return };
        let deployment = self.deps.store.deployment(slot.deployment);
        let asked = deployment.filter(|d| d.desired.release == slot.release && d.desired.restart == slot.restart);
        let Some(asked) = asked.filter(|d| d.desired.run == Run::Running) else { return };
        let good = asked.release(slot.release).is_some_and(|release| release.outcome == Outcome::Good);
        let why = format!("{}, while no agent ran", slot.message);
        self.mark(slot, &why);
        let (output, cut, release) = (Vec::new(), false, slot.release);
        let life = Ended { at, began, instance, release, served: good, code: Some(code), oom, why, output, cut };
        let (lives, tail, deployment) = (self.lives.clone(), self.deps.tail.clone(), slot.deployment);
        self.shared.tasks.spawn(async move { lives.found(&tail, deployment, life).await });
    }

    fn orphan(&mut self, container: &Container) {
        let young = Timestamp::now().duration_since(container.created_at).as_secs() < LEFTOVER_SECONDS;
        if container.state == ContainerState::Created && young && container.deployment().is_none() {
            return;
        }
        if !self.orphans.insert(container.id.clone()) {
            return;
        }
        tracing::warn!(container = %container.name, "carries our label and belongs to nothing we know: removed");
        let (engine, id, tx) = (self.deps.engine.clone(), container.id.clone(), self.done_tx.clone());
        self.shared.tasks.spawn(async move {
            if let Err(error) = engine.remove(&id).await {
                tracing::warn!(%error, container = %id, "a leftover could not be removed");
            }
            let _closed = tx.send(Done::Orphan { container: id }).await;
        });
    }
}

fn exit_words(code: i64, oom: bool, error: &str) -> String {
    if oom {
        return "ran out of memory and was killed (give it a larger tier)".into();
    }
    if !error.is_empty() {
        return format!("the engine could not start it: {error}");
    }
    match code {
        0 => "exited with code 0: a server must keep running".into(),
        code @ 129..=192 => format!("was killed by signal {} (exit code {code})", code - 128),
        code => format!("exited with code {code}"),
    }
}
