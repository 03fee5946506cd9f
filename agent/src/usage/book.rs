//! The totals, and the counters that they were made from.
//!
//! A counter belongs to a life: of a container, of this agent. What it counted since it was read last is added to the total;
//! of a life that was not seen before, all of it. Both are kept together, so reading a counter again adds nothing.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_core::cgroup::Reading;
use sigil_core::cost::judge::Whose;
use sigil_core::cost::{Amounts, Month};
use sigil_core::model::{DeploymentId, InstanceId};

use crate::sample::{Ending, Life, ReplicaUse};

/// Months that are kept.
const MONTHS: usize = 25;

/// Of what of a deployment an amount is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// Requests of a user's keys, by the user's id.
    User(String),
    /// Calls of a tool.
    Tool(String),
}

/// Which amount.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) month: Month,
    pub(crate) deployment: DeploymentId,
    pub(crate) part: Part,
}

/// Where the counters of a container stood.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Last {
    life: Life,
    cpu_micros: u64,
    /// Level then, bytes.
    memory: u64,
    /// When, since the machine's boot, milliseconds: no change of the clock makes it longer.
    uptime_ms: u64,
    network: Life,
    sent: u64,
    /// It was read when a process of it ended: likely there is nothing more of this life.
    #[serde(default)]
    ended: bool,
}

/// What the gateway counted since the agent's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) sent: u64,
}

impl Counts {
    /// What was added since; counters that went back began anew.
    fn since(self, old: Self) -> Self {
        let anew = self.requests < old.requests || self.errors < old.errors || self.sent < old.sent;
        let old = if anew { Self::default() } else { old };
        Self { requests: self.requests - old.requests, errors: self.errors - old.errors, sent: self.sent - old.sent }
    }
}

/// Where the gateway's counters stood, of which run of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Gate {
    run: String,
    counts: Counts,
}

/// What a deployment is, or was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) name: String,
    /// Its team's id.
    pub(crate) team: String,
    /// Who made it: a user's id where it is one.
    pub(crate) user: String,
    pub(crate) tier: String,
    /// Since when it is counted, seconds since 1970.
    pub(crate) since: i64,
    /// Until when its being there is counted, seconds since 1970.
    pub(crate) counted_to: i64,
    pub(crate) gone: bool,
}

/// A deployment now.
#[derive(Clone, Debug)]
pub(crate) struct There {
    pub(crate) id: DeploymentId,
    pub(crate) about: About,
    /// What it takes on disk, bytes.
    pub(crate) storage: u64,
    pub(crate) replicas: Vec<ReplicaUse>,
    /// Since the agent's start.
    pub(crate) counts: Vec<(Part, Counts)>,
}

/// When something is taken in.
#[derive(Clone, Copy)]
pub(crate) struct Moment<'m> {
    /// Of the agent: whose counters the gateway's are.
    pub(crate) run: &'m str,
    pub(crate) now: Timestamp,
    /// The machine's boot, from which `uptime_ms` counts.
    pub(crate) boot: u64,
    pub(crate) uptime_ms: u64,
    /// Whether the process of a life is still there.
    pub(crate) lives: &'m dyn Fn(Life) -> bool,
}

/// What changed, as it is now; `None`: gone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Frame {
    rows: Vec<(Key, Option<Amounts>)>,
    lasts: Vec<(InstanceId, Option<Last>)>,
    gates: Vec<(DeploymentId, Part, Option<Gate>)>,
    about: Vec<(DeploymentId, Option<About>)>,
    stopped: Vec<(Month, Whose)>,
    /// Runs of the agent whose last counts were taken in after their end.
    former: Vec<String>,
}

impl Frame {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Everything that is kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Book {
    pub(crate) rows: BTreeMap<Key, Amounts>,
    lasts: BTreeMap<InstanceId, Last>,
    gates: BTreeMap<(DeploymentId, Part), Gate>,
    pub(crate) about: BTreeMap<DeploymentId, About>,
    /// Budgets for which deployments were stopped: once a month, so that who starts one again has it.
    pub(crate) stopped: BTreeSet<(Month, Whose)>,
    /// Former runs that are wholly in here, as long as their files may be there.
    former: BTreeSet<String>,
    dirty: Dirty,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Dirty {
    rows: BTreeSet<Key>,
    lasts: BTreeSet<InstanceId>,
    gates: BTreeSet<(DeploymentId, Part)>,
    about: BTreeSet<DeploymentId>,
    stopped: bool,
    former: bool,
}

impl Book {
    /// Sets what a frame says.
    pub(crate) fn apply(&mut self, frame: Frame) {
        fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => drop(map.insert(key, value)),
                None => drop(map.remove(&key)),
            }
        }
        frame.rows.into_iter().for_each(|(key, value)| set(&mut self.rows, key, value));
        frame.lasts.into_iter().for_each(|(key, value)| set(&mut self.lasts, key, value));
        frame.gates.into_iter().for_each(|(id, part, value)| set(&mut self.gates, (id, part), value));
        frame.about.into_iter().for_each(|(key, value)| set(&mut self.about, key, value));
        self.stopped.extend(frame.stopped);
        self.former.extend(frame.former);
    }

    /// Everything.
    pub(crate) fn whole(&self) -> Frame {
        Frame {
            rows: self.rows.iter().map(|(k, v)| (k.clone(), Some(*v))).collect(),
            lasts: self.lasts.iter().map(|(k, v)| (*k, Some(*v))).collect(),
            gates: self.gates.iter().map(|((id, part), v)| (*id, part.clone(), Some(v.clone()))).collect(),
            about: self.about.iter().map(|(k, v)| (*k, Some(v.clone()))).collect(),
            stopped: self.stopped.iter().cloned().collect(),
            former: self.former.iter().cloned().collect(),
        }
    }

    /// What changed since the last call.
    pub(crate) fn changed(&mut self) -> Frame {
        let dirty = std::mem::take(&mut self.dirty);
        let gates = dirty.gates.into_iter().map(|key| {
            let gate = self.gates.get(&key).cloned();
            (key.0, key.1, gate)
        });
        Frame {
            gates: gates.collect(),
            rows: dirty.rows.into_iter().map(|k| (k.clone(), self.rows.get(&k).copied())).collect(),
            lasts: dirty.lasts.into_iter().map(|k| (k, self.lasts.get(&k).copied())).collect(),
            about: dirty.about.into_iter().map(|k| (k, self.about.get(&k).cloned())).collect(),
            stopped: if dirty.stopped { self.stopped.iter().cloned().collect() } else { Vec::new() },
            former: if dirty.former { self.former.iter().cloned().collect() } else { Vec::new() },
        }
    }

    fn add(&mut self, month: Month, deployment: DeploymentId, part: Part, more: Amounts) {
        if more == Amounts::default() {
            return;
        }
        let key = Key { month, deployment, part };
        self.rows.entry(key.clone()).or_default().add(&more);
        self.dirty.rows.insert(key);
    }

    /// Takes in where the gateway's counters stood when a run of the agent ended. Once: whatever was taken in since, a run
    /// that is in here adds nothing. `month` is the one of its end; `known`: deployments that there are.
    pub(crate) fn end(
        &mut self,
        run: &str,
        month: Month,
        counts: &[(DeploymentId, Vec<(Part, Counts)>)],
        known: impl Fn(DeploymentId) -> bool,
    ) {
        if !self.former.insert(run.to_owned()) {
            return;
        }
        self.dirty.former = true;
        for (id, parts) in counts {
            // of what nothing is known any more nothing could be shown
            if !self.about.contains_key(id) && !known(*id) {
                continue;
            }
            for (part, counts) in parts {
                self.calls(run, month, *id, part, *counts);
            }
        }
    }

    /// Forgets former runs but these.
    pub(crate) fn keep_former(&mut self, runs: &BTreeSet<String>) {
        self.former.retain(|run| runs.contains(run));
    }

    /// Takes in where a counter of the gateway stands. Answers whether there were requests.
    fn calls(&mut self, run: &str, month: Month, id: DeploymentId, part: &Part, counts: Counts) -> bool {
        let gate = (id, part.clone());
        let old = self.gates.get(&gate).filter(|gate| gate.run == run).map(|gate| gate.counts);
        let more = counts.since(old.unwrap_or_default());
        if old == Some(counts) || (old.is_none() && counts == Counts::default()) {
            return false;
        }
        let amounts =
            Amounts { requests: more.requests, errors: more.errors, egress_bytes: more.sent, ..Amounts::default() };
        self.add(month, id, part.clone(), amounts);
        self.gates.insert(gate.clone(), Gate { run: run.to_owned(), counts });
        self.dirty.gates.insert(gate);
        more.requests > 0
    }

    /// Takes in what everything stands at. Answers whether it is to be written down at once: there were requests, or a
    /// container whose memory is counted from here on.
    pub(crate) fn take(&mut self, moment: &Moment<'_>, there: &[There]) -> bool {
        let Moment { run, now, .. } = *moment;
        let month = Month::of(now);
        let mut urgent = false;
        let mut seen = BTreeSet::new();
        for deployment in there {
            let id = deployment.id;
            self.there(month, now.as_second(), deployment);
            for replica in &deployment.replicas {
                seen.insert(replica.instance);
                urgent |= self.lasts.get(&replica.instance).is_none_or(|last| last.life != replica.life);
                let more = self.replica(replica, moment);
                self.add(month, id, Part::Whole, more);
            }
            for (part, counts) in &deployment.counts {
                urgent |= self.calls(run, month, id, part, *counts);
            }
        }
        self.forget(&seen, there, moment.lives);
        urgent
    }

    /// A deployment's being there, and its disk.
    fn there(&mut self, month: Month, now: i64, deployment: &There) {
        let old = self.about.get(&deployment.id);
        let (since, from) = old.map_or((now, now), |about| (about.since, about.counted_to));
        let seconds = u64::try_from(now - from).unwrap_or(0);
        let about = About { since, counted_to: now, gone: false, ..deployment.about.clone() };
        self.about.insert(deployment.id, about);
        self.dirty.about.insert(deployment.id);
        let storage_kib_seconds = (deployment.storage / 1024).saturating_mul(seconds);
        self.add(month, deployment.id, Part::Whole, Amounts { seconds, storage_kib_seconds, ..Amounts::default() });
    }

    /// Takes in the last figures of a container. Its deployment may be gone already.
    pub(crate) fn ending(&mut self, moment: &Moment<'_>, ending: &Ending) {
        if !self.about.contains_key(&ending.deployment) {
            return;
        }
        let Ending { instance, life, network_life, reading, .. } = *ending;
        let more = self.counters(instance, &reading, (life, network_life), moment, true);
        self.add(Month::of(moment.now), ending.deployment, Part::Whole, more);
    }

    /// What a replica used since it was read last.
    fn replica(&mut self, replica: &ReplicaUse, moment: &Moment<'_>) -> Amounts {
        let lives = (replica.life, replica.network_life);
        self.counters(replica.instance, &replica.reading, lives, moment, false)
    }

    fn counters(
        &mut self,
        instance: InstanceId,
        reading: &Reading,
        (life, network): (Life, Life),
        moment: &Moment<'_>,
        ended: bool,
    ) -> Amounts {
        let uptime_ms = moment.uptime_ms;
        let old = self.lasts.get(&instance).copied();
        let same = old.filter(|old| old.life == life && life.boot == moment.boot);
        // a reading from before the end that was taken in says nothing new
        if same.is_some_and(|old| old.ended && !ended && reading.cpu_micros <= old.cpu_micros) {
            return Amounts::default();
        }
        let (cpu_micros, memory, sent) = (reading.cpu_micros, reading.memory, reading.sent_bytes);
        self.lasts.insert(instance, Last { life, cpu_micros, memory, uptime_ms, network, sent, ended });
        self.dirty.lasts.insert(instance);
        let elapsed = same.map_or(0, |old| uptime_ms.saturating_sub(old.uptime_ms));
        // between two readings of a level its mean counts
        let memory = same.map_or(0, |old| u64::midpoint(old.memory, reading.memory));
        let sent = old.filter(|old| old.network == network).map_or(0, |old| old.sent);
        Amounts {
            cpu_micros: reading.cpu_micros.saturating_sub(same.map_or(0, |old| old.cpu_micros)),
            memory_kib_seconds: (memory / 1024).saturating_mul(elapsed) / 1000,
            egress_bytes: if reading.sent_bytes >= sent { reading.sent_bytes - sent } else { reading.sent_bytes },
            ..Amounts::default()
        }
    }

    fn forget(&mut self, seen: &BTreeSet<InstanceId>, there: &[There], lives: &dyn Fn(Life) -> bool) {
        // one that is only not seen yet, as after a start, counts on where it stood
        let over = |(id, last): &(&InstanceId, &Last)| !seen.contains(id) && !lives(last.life);
        let gone: Vec<InstanceId> = self.lasts.iter().filter(over).map(|(id, _)| *id).collect();
        for id in gone {
            self.lasts.remove(&id);
            self.dirty.lasts.insert(id);
        }
        let ids: BTreeSet<DeploymentId> = there.iter().map(|d| d.id).collect();
        for (id, about) in self.about.iter_mut().filter(|(id, about)| !about.gone && !ids.contains(id)) {
            about.gone = true;
            self.dirty.about.insert(*id);
        }
        let gates: Vec<_> = self.gates.keys().filter(|(id, _)| !ids.contains(id)).cloned().collect();
        for gate in gates {
            self.gates.remove(&gate);
            self.dirty.gates.insert(gate);
        }
        let months: BTreeSet<Month> = self.rows.keys().map(|key| key.month).collect();
        if let Some(oldest) = months.iter().rev().nth(MONTHS - 1).filter(|_| months.len() > MONTHS) {
            let old: Vec<Key> = self.rows.keys().filter(|key| key.month < *oldest).cloned().collect();
            for key in old {
                self.rows.remove(&key);
                self.dirty.rows.insert(key);
            }
        }
    }

    /// A budget's deployments were stopped; false when they were this month already.
    pub(crate) fn stop(&mut self, month: Month, whose: &Whose) -> bool {
        let new = self.stopped.insert((month, whose.clone()));
        self.dirty.stopped |= new;
        new
    }
}
