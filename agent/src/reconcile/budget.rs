//! Whether the host has room for what a plan would start. What has none waits, the longest waiting first, and sleeping
//! deployments make room.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use sigil_core::admit::{self, Admission, Host, Sleeper, Taken};
use sigil_core::model::{Deployment, DeploymentId, ReleaseNo, Run};
use sigil_core::plan::{Action, Phase, Plan};
use sigil_core::sleep::Depth;

use super::slots::Room;

/// Who waits is looked at again after this.
const AGAIN: SignedDuration = SignedDuration::from_secs(1);
/// Cores promised for each one that there is, where the owner says nothing: most servers wait for somebody else most of the time.
const PROMISED: u32 = 32;
/// Least memory that is left to the host, bytes.
const RESERVE: u64 = 256 << 20;

/// That a server ran out of its memory is shown for this long.
const STARVED: SignedDuration = SignedDuration::from_hours(1);

/// What waits for room.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Waiting {
    pub since: Timestamp,
    /// For whoever asks why.
    pub why: String,
}

/// What the host has and what is taken of it, looked at once in a pass in which something is to start.
pub(super) type Budget = Option<(Host, Taken)>;

impl Room {
    /// Takes out of a plan what the host has no room for.
    pub(super) fn admit(&mut self, deployment: &Deployment, plan: &mut Plan, budget: &mut Budget, now: Timestamp) {
        let starts = |action: &Action| match action {
            Action::Create { release, .. } => Some(*release),
            Action::Start(id) => self.slots.get(id).map(|slot| slot.release),
            // what is frozen has its memory
            Action::Wake(id) => {
                self.slots.get(id).filter(|slot| slot.phase == Phase::Asleep(Depth::Stopped)).map(|slot| slot.release)
            }
            _ => None,
        };
        let wanted: Vec<Option<ReleaseNo>> = plan.actions.iter().map(starts).collect();
        if wanted.iter().all(Option::is_none) {
            // one that does not run any more waits for nothing
            if plan.actions.is_empty() || deployment.desired.run != Run::Running {
                self.waits(deployment.id, None, now);
            }
            return;
        }
        let (host, taken) = budget.get_or_insert_with(|| (self.host(), self.taken()));
        let mut refused = None;
        let mut wanted = wanted.into_iter();
        plan.actions.retain(|_| {
            let Some(release) = wanted.next().flatten().and_then(|number| deployment.release(number)) else {
                return true;
            };
            let resources = &release.spec.resources;
            let expected = admit::expected(resources, self.measured.get(&deployment.id).copied());
            let mut verdict = admit::admit(host, taken, resources, expected, &[]);
            if matches!(verdict, Admission::Wait(_)) {
                verdict = admit::admit(host, taken, resources, expected, &self.sleepers(deployment.id));
            }
            match verdict {
                Admission::Go => {
                    taken.coming += expected;
                    taken.cpus += resources.cpu_share;
                    return true;
                }
                Admission::Evict(ids) => {
                    refused = Some(("sleeping servers make room for it".to_owned(), ids));
                }
                Admission::Wait(why) | Admission::Refuse(why) => refused = Some((why, Vec::new())),
            }
            false
        });
        let Some((why, evicted)) = refused else { return self.waits(deployment.id, None, now) };
        for id in evicted {
            if let Some(memory) = self.memory.get_mut(&id) {
                memory.sleep.evicted = true;
            }
        }
        plan.notes.push(why.clone());
        let soon = now + AGAIN;
        plan.wake_at = Some(plan.wake_at.map_or(soon, |at| at.min(soon)));
        self.waits(deployment.id, Some(why), now);
    }

    fn waits(&mut self, deployment: DeploymentId, why: Option<String>, now: Timestamp) {
        let memory = self.memory.entry(deployment).or_default();
        memory.waiting = why.map(|why| {
            let since = memory.waiting.as_ref().map_or(now, |waiting| waiting.since);
            Waiting { since, why }
        });
    }

    /// What the host has, as it was measured last.
    fn host(&self) -> Host {
        let limits = self.deps.config.borrow().limits.clone();
        let seen = match self.deps.own_host {
            true => self.deps.sample.latest().borrow().host.clone(),
            false => Arc::default(),
        };
        let known = seen.memory_total > 0;
        let reserve = match limits.memory_reserve {
            0 => RESERVE.max(seen.memory_total / 20),
            bytes => bytes,
        };
        Host {
            memory: known.then_some(seen.memory_total),
            available: known.then_some(seen.memory_available),
            reserve,
            budget: (limits.memory > 0).then_some(limits.memory),
            cpus: match limits.cpus {
                0 => (seen.cpus > 0).then(|| f64::from(PROMISED) * seen.cpus as f64),
                cores => Some(f64::from(cores)),
            },
            disk: (seen.disk_total > 0).then_some(seen.disk_free),
        }
    }

    /// What replicas take, or are about to.
    fn taken(&self) -> Taken {
        let snapshot = self.deps.sample.latest().borrow().clone();
        let mut taken = Taken::default();
        for slot in self.slots.values() {
            let Some(deployment) = self.deps.store.deployment(slot.deployment) else { continue };
            let Some(release) = deployment.release(slot.release) else { continue };
            let resources = &release.spec.resources;
            let used = snapshot.deployments.get(&slot.deployment).and_then(|used| {
                used.replicas.iter().find(|replica| replica.instance == slot.id).map(|replica| replica.reading.memory)
            });
            taken.memory += used.unwrap_or(0);
            match slot.phase {
                Phase::Asleep(_) | Phase::Down | Phase::Created if !slot.busy => continue,
                Phase::Asleep(_) => continue,
                Phase::Ready | Phase::Draining { .. } => {}
                Phase::Making | Phase::Created | Phase::Gating | Phase::Down => {
                    let expected = admit::expected(resources, self.measured.get(&slot.deployment).copied());
                    taken.coming += expected.saturating_sub(used.unwrap_or(0));
                }
            }
            taken.cpus += resources.cpu_share;
        }
        taken
    }

    /// Who is frozen, and what stopping them gives.
    fn sleepers(&self, but: DeploymentId) -> Vec<Sleeper> {
        let snapshot = self.deps.sample.latest().borrow().clone();
        let frozen = |(id, memory): (&DeploymentId, &super::slots::Memory)| {
            (*id != but && memory.sleep.rest == Some(Depth::Paused)).then(|| Sleeper {
                id: *id,
                memory: snapshot.deployments.get(id).map_or(0, |used| used.memory_bytes),
                held: (self.deps.sessions)(*id) > 0,
                quiet_ms: u64::try_from(memory.sleep.nap.quiet().as_millis()).unwrap_or(u64::MAX),
            })
        };
        self.memory.iter().filter_map(frozen).collect()
    }

    /// Remembers what servers need, the most that a replica of theirs was seen to take, and tells of those that needed more
    /// than they may have: the kernel then ends one of their processes, which need not be the container's first.
    pub(super) fn measure(&mut self, now: Timestamp) {
        let snapshot = self.deps.sample.latest().borrow().clone();
        for (id, used) in &snapshot.deployments {
            for replica in &used.replicas {
                let Some(slot) = self.slots.get_mut(&replica.instance) else { continue };
                let (life, kills) = (replica.life, replica.reading.oom_kills);
                // another life counts anew
                let known = slot.oom_kills.replace((life, kills)).filter(|(before, _)| *before == life);
                let new = kills.saturating_sub(known.map_or(0, |(_, kills)| kills));
                if new == 0 {
                    continue;
                }
                let limit = replica.memory_limit >> 20;
                let what = if new == 1 { "a process".to_owned() } else { format!("{new} processes") };
                let words = format!("{what} of it ran out of memory and was killed: it may have {limit} MiB");
                self.memory.entry(*id).or_default().starved = Some((now, words.clone()));
                self.mark(&self.slots[&replica.instance], &words);
            }
            if let Some(most) = used.replicas.iter().map(|replica| replica.reading.memory).max() {
                let known = self.measured.entry(*id).or_default();
                *known = most.max(*known);
            }
        }
        self.measured.retain(|id, _| self.memory.contains_key(id));
    }
}

/// That a server's memory was enough, lately; what to do where it was not.
pub(super) fn enough(starved: Option<&(Timestamp, String)>, now: Timestamp) -> Option<String> {
    let (at, words) = starved.filter(|(at, _)| now.duration_since(*at) < STARVED)?;
    Some(format!("{words} ({}); give it a larger tier: sigil deploy … --tier", at.strftime("%H:%M:%S UTC")))
}
