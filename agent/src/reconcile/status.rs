//! From slots to what people and scripts see.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use sigil_core::model::{Deployment, DeploymentId, InstanceId, Outcome, Run, State};
use sigil_core::pins::Pinning;
use sigil_core::plan::Phase;

use super::slots::{Memory, Room, Slot};
use super::{Condition, ReplicaStatus, Status};
use super::{budget, sleep};
use crate::sample::Instance;

/// What runs, for whoever measures it.
pub(super) fn running(slots: &HashMap<InstanceId, Slot>) -> Vec<Instance> {
    let one = |slot: &Slot| {
        Some(Instance {
            instance: slot.id,
            deployment: slot.deployment,
            release: slot.release,
            container: slot.container.clone()?,
            pid: slot.pid?,
            ready: slot.phase == Phase::Ready,
        })
    };
    slots.values().filter_map(one).collect()
}

/// Computes all statuses; true when one changed.
pub(super) fn publish(room: &mut Room, by_deployment: &HashMap<DeploymentId, Vec<InstanceId>>) -> bool {
    let trouble = room.shared.engine_trouble.read().ok().and_then(|t| t.clone());
    let deployments = room.deps.store.deployments();
    let mut next: HashMap<DeploymentId, Arc<Status>> = HashMap::with_capacity(deployments.len());
    let mut changed = false;
    for deployment in &deployments {
        let old = room.shared.statuses.read().ok().and_then(|s| s.get(&deployment.id).cloned());
        let instances = by_deployment.get(&deployment.id).map_or(&[][..], Vec::as_slice);
        let status = one(room, deployment, instances, trouble.as_deref(), old.as_deref());
        match old {
            Some(old) if *old == status => {
                next.insert(deployment.id, old);
            }
            _ => {
                changed = true;
                next.insert(deployment.id, Arc::new(status));
            }
        }
    }
    if let Ok(mut statuses) = room.shared.statuses.write() {
        changed |= statuses.len() != next.len();
        *statuses = next;
    }
    changed
}

fn one(
    room: &Room,
    deployment: &Arc<Deployment>,
    instances: &[InstanceId],
    trouble: Option<&str>,
    old: Option<&Status>,
) -> Status {
    let empty = Memory::default();
    let memory = room.memory.get(&deployment.id).unwrap_or(&empty);
    let desired = &deployment.desired;
    let slots: Vec<&Slot> = instances.iter().filter_map(|id| room.slots.get(id)).collect();
    // while the engine cannot be seen, a container that ended is known by its init's silence alone
    let reached = |s: &Slot| trouble.is_none() || room.deps.links.link(s.id).is_some_and(|l| l.is_up());
    let is_ready = |s: &&&Slot| s.phase == Phase::Ready && reached(s);
    let ready = slots.iter().filter(is_ready).count() as u32;
    let target_ready =
        slots.iter().filter(is_ready).filter(|s| s.release == desired.release && s.restart == desired.restart).count()
            as u32;
    let serving = slots.iter().filter(is_ready).map(|s| s.release).max();
    let release = deployment.release(desired.release);
    let hopeless = release.is_none_or(|r| matches!(r.outcome, Outcome::Failed { .. }));
    let want = match release {
        Some(r) if r.spec.is_exclusive() => desired.replicas.min(1),
        _ => desired.replicas,
    };
    let failure = memory.failure.as_ref();
    let loops = memory.backoff.is_crash_loop();
    let waiting = memory.waiting.as_ref().filter(|_| ready < want && desired.run == Run::Running);

    let (state, mut message) = match desired.run {
        Run::Removed => (State::Stopped, "is being removed".to_owned()),
        Run::Stopped if ready > 0 => (State::Stopped, "is stopping".to_owned()),
        Run::Stopped => (State::Stopped, String::new()),
        Run::Running if want == 0 => (State::Sleeping, String::new()),
        Run::Running if memory.sleep.rest.is_some() => (State::Sleeping, sleep::message(&memory.sleep)),
        Run::Running if ready >= want => (State::Ready, String::new()),
        Run::Running if ready > 0 => (State::Degraded, format!("{ready} of {want} replicas serve")),
        Run::Running if hopeless || loops => (State::Failed, String::new()),
        Run::Running => (State::Starting, String::new()),
    };
    if desired.run == Run::Running {
        let last = failure.map(|(_, why)| why.as_str()).unwrap_or_default();
        if let Some(waiting) = waiting {
            message = format!("waits for room: {}", waiting.why);
        } else if state == State::Sleeping {
            // what went wrong before it slept says nothing of now
        } else if loops && ready < want {
            let next = memory.backoff.until(Timestamp::now());
            let next = next.map_or_else(|| "now".to_owned(), |t| t.strftime("%H:%M:%S UTC").to_string());
            message = format!("crash loop: {last} ({} times in a row, next try at {next})", memory.backoff.failures);
        } else if let Some(Outcome::Failed { why }) = release.map(|r| &r.outcome) {
            message.clone_from(why);
        } else if ready < want && !last.is_empty() {
            message = last.to_owned();
        } else if let Some(newest) = deployment.releases.last()
            && let Outcome::Failed { why } = &newest.outcome
            && newest.number > desired.release
        {
            message = format!("release {} failed ({why}); release {} serves", newest.number, desired.release);
        } else if serving.is_some_and(|s| s != desired.release) {
            message = format!("release {} is being rolled out", desired.release);
        }
    }
    let drift = room.deps.drift.of(deployment.id).filter(|_| desired.run == Run::Running);
    if let Some(drift) = drift.as_ref().filter(|drift| drift.stopped > 0 && message.is_empty()) {
        let findings = if drift.stopped == 1 { "finding" } else { "findings" };
        message = format!("{} new {findings} of the scanner: sigil get {}", drift.stopped, deployment.name);
    }
    if let Some(trouble) = trouble {
        message = format!("the engine cannot be seen: {trouble}");
    }
    let health = match (desired.run, ready) {
        (Run::Running, _) if state == State::Sleeping => "unknown",
        (Run::Running, 0) if loops || hopeless => "unhealthy",
        (Run::Running, n) if n > 0 && n >= want => "healthy",
        (Run::Running, n) if n > 0 => "degraded",
        _ => "unknown",
    };
    let settled = memory.generation == deployment.generation
        && memory.plan.actions.is_empty()
        && slots.iter().all(|s| !s.busy)
        && match desired.run {
            Run::Running if memory.sleep.rest.is_some() => true,
            Run::Running => target_ready == want && slots.len() as u32 == want,
            Run::Stopped | Run::Removed => slots.is_empty(),
        };
    let now = Timestamp::now();
    let condition = |kind: &str, ok: bool, reason: String| {
        let since =
            old.and_then(|o| o.conditions.iter().find(|c| c.kind == kind && c.ok == ok)).map_or(now, |c| c.since);
        Condition { kind: kind.to_owned(), ok, reason, since }
    };
    let mut conditions = vec![
        match memory.sleep.rest {
            Some(_) => condition("Available", true, "asleep; the next call wakes it".into()),
            None => condition("Available", ready > 0, format!("{ready} of {want} replicas serve")),
        },
        condition(
            "Settled",
            settled,
            if settled { "nothing is left to do".into() } else { memory.plan.notes.join("; ") },
        ),
        condition("EngineReachable", trouble.is_none(), trouble.unwrap_or_default().to_owned()),
    ];
    let pins = room.deps.inspect.pins(deployment.id, desired.release);
    if let Some(pins) = pins.filter(|_| deployment.policy.pins != Pinning::Off) {
        let reason = match pins.held.len() {
            0 => format!("{} tools are as they were when release {} was deployed", pins.tools.len(), pins.release),
            n => format!("{n} held: sigil pins diff {}", deployment.name),
        };
        conditions.push(condition("ToolsAsPinned", pins.held.is_empty(), reason));
    }
    if let Some(words) = budget::enough(memory.starved.as_ref(), now) {
        conditions.push(condition("MemoryEnough", false, words));
    }
    if let Some(drift) = drift {
        conditions.push(condition("ScanCurrent", drift.ok, drift.reason.clone()));
    }
    let used = room.deps.sample.deployment(deployment.id).unwrap_or_default();
    Status {
        id: deployment.id,
        state,
        ready,
        restarts: memory.restarts,
        serving,
        message,
        waits_for_room: waiting.is_some(),
        health: health.to_owned(),
        conditions,
        replicas: slots.iter().map(|s| replica(s, memory)).collect(),
        plan: memory.plan.actions.iter().map(ToString::to_string).chain(memory.plan.notes.iter().cloned()).collect(),
        generation: deployment.generation,
        settled,
        changed_at: old.filter(|o| o.state == state).map_or(now, |o| o.changed_at),
        failure: memory.failure.clone(),
        last_output: memory.last_output.clone(),
        wake_took: memory.sleep.took,
        cpu_percent: used.cpu_percent,
        memory_bytes: used.memory_bytes,
    }
}

fn replica(slot: &Slot, memory: &Memory) -> ReplicaStatus {
    let state = match slot.phase {
        _ if slot.busy => slot.doing,
        Phase::Making => "creating",
        Phase::Created => "created",
        Phase::Gating => "gating",
        Phase::Ready => "ready",
        Phase::Asleep(depth) => depth.as_str(),
        Phase::Draining { .. } => "draining",
        Phase::Down if memory.backoff.failures > 0 => "backing-off",
        Phase::Down => "down",
    };
    ReplicaStatus {
        instance: slot.id,
        release: slot.release,
        state: state.to_owned(),
        container: slot.container.clone().unwrap_or_default(),
        pid: slot.pid,
        started_at: slot.started_at,
        restarts: slot.restarts,
        message: slot.message.clone(),
    }
}
