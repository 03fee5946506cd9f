//! From slots to what people and scripts see.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sigil_core::model::{Deployment, DeploymentId, InstanceId, Outcome, Run, State};
use sigil_core::pins::Pinning;
use sigil_core::plan::Phase;

use super::slots::{Memory, Room, Slot};
use super::{Condition, ReplicaStatus, Status};

/// CPU and memory are read this often.
pub(super) const USAGE_EVERY: Duration = Duration::from_secs(10);

/// CPU and memory of running instances, from their cgroup files.
#[derive(Default)]
pub(super) struct Usage {
    last: HashMap<InstanceId, (Instant, u64)>,
    now: HashMap<DeploymentId, (f64, u64)>,
}

impl Usage {
    /// Reads all; a file that cannot be read counts nothing.
    pub(super) fn sample(&mut self, slots: &HashMap<InstanceId, Slot>) {
        let mut next = HashMap::new();
        let mut sums: HashMap<DeploymentId, (f64, u64)> = HashMap::new();
        for slot in slots.values() {
            let Some(reading) = slot.pid.and_then(cgroup::read) else { continue };
            let now = Instant::now();
            let sum = sums.entry(slot.deployment).or_default();
            if let Some((then, before)) = self.last.get(&slot.id) {
                let micros = now.duration_since(*then).as_micros().max(1) as f64;
                sum.0 += reading.cpu_micros.saturating_sub(*before) as f64 / micros * 100.0;
            }
            sum.1 += reading.memory;
            next.insert(slot.id, (now, reading.cpu_micros));
        }
        self.last = next;
        self.now = sums;
    }

    pub(super) fn forget(&mut self, deployment: DeploymentId) {
        self.now.remove(&deployment);
    }
}

/// What the container of this process needs of its memory and could not give back, bytes.
pub(super) fn needed(pid: u32) -> Option<u64> {
    cgroup::read(pid).map(|reading| reading.anonymous)
}

/// Resource use of one container, straight from cgroup files (v1 and v2).
mod cgroup {
    use std::fs;
    use std::path::{Path, PathBuf};

    pub(super) struct Reading {
        pub cpu_micros: u64,
        /// Without what the kernel would drop first.
        pub memory: u64,
        /// Of it what is no file's.
        pub anonymous: u64,
    }

    pub(super) fn read(pid: u32) -> Option<Reading> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        from_tree(Path::new("/sys/fs/cgroup"), &text)
    }

    /// `text` is `/proc/PID/cgroup`, `root` the mount of the hierarchies.
    pub(super) fn from_tree(root: &Path, text: &str) -> Option<Reading> {
        let path_of = |controller: &str| -> Option<PathBuf> {
            text.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let controllers = parts.next()?;
                let path = parts.next()?.trim_start_matches('/');
                controllers.split(',').any(|c| c == controller).then(|| root.join(controller).join(path))
            })
        };
        let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let field = |path: PathBuf, name: &str| {
            fs::read_to_string(path).ok()?.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        if let (Some(memory), Some(cpu)) = (path_of("memory"), path_of("cpuacct")) {
            let used = number(memory.join("memory.usage_in_bytes"))?;
            let cache = field(memory.join("memory.stat"), "total_inactive_file ").unwrap_or(0);
            let anonymous = field(memory.join("memory.stat"), "total_rss ").unwrap_or(used);
            let nanos = number(cpu.join("cpuacct.usage"))?;
            return Some(Reading { cpu_micros: nanos / 1000, memory: used.saturating_sub(cache), anonymous });
        }
        let path = text.lines().find_map(|l| l.strip_prefix("0::"))?.trim_start_matches('/');
        let dir = root.join(path);
        let used = number(dir.join("memory.current"))?;
        let cache = field(dir.join("memory.stat"), "inactive_file ").unwrap_or(0);
        let anonymous = field(dir.join("memory.stat"), "anon ").unwrap_or(used);
        let cpu_micros = field(dir.join("cpu.stat"), "usage_usec ")?;
        Some(Reading { cpu_micros, memory: used.saturating_sub(cache), anonymous })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn both_versions_are_read() {
            let dir = tempfile::tempdir().unwrap();
            let put = |path: &str, text: &str| {
                let path = dir.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            };
            put("memory/docker/x/memory.usage_in_bytes", "5000\n");
            put("memory/docker/x/memory.stat", "cache 7\ntotal_rss 2000\ntotal_rss_huge 9\ntotal_inactive_file 1000\n");
            put("cpuacct/docker/x/cpuacct.usage", "9000000\n");
            let v1 = "12:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/docker/x\n";
            let reading = from_tree(dir.path(), v1).unwrap();
            assert_eq!((reading.cpu_micros, reading.memory, reading.anonymous), (9000, 4000, 2000));

            put("y/memory.current", "800\n");
            put("y/memory.stat", "anon 100\nanon_thp 1\ninactive_file 300\n");
            put("y/cpu.stat", "usage_usec 77\nuser_usec 1\n");
            let reading = from_tree(dir.path(), "0::/y\n").unwrap();
            assert_eq!((reading.cpu_micros, reading.memory, reading.anonymous), (77, 500, 100));
        }
    }
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

    let (state, mut message) = match desired.run {
        Run::Removed => (State::Stopped, "is being removed".to_owned()),
        Run::Stopped if ready > 0 => (State::Stopped, "is stopping".to_owned()),
        Run::Stopped => (State::Stopped, String::new()),
        Run::Running if want == 0 => (State::Sleeping, String::new()),
        Run::Running if ready >= want => (State::Ready, String::new()),
        Run::Running if ready > 0 => (State::Degraded, format!("{ready} of {want} replicas serve")),
        Run::Running if hopeless || loops => (State::Failed, String::new()),
        Run::Running => (State::Starting, String::new()),
    };
    if desired.run == Run::Running {
        let last = failure.map(|(_, why)| why.as_str()).unwrap_or_default();
        if loops && ready < want {
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
        (Run::Running, 0) if loops || hopeless => "unhealthy",
        (Run::Running, n) if n > 0 && n >= want => "healthy",
        (Run::Running, n) if n > 0 => "degraded",
        _ => "unknown",
    };
    let settled = memory.generation == deployment.generation
        && memory.plan.actions.is_empty()
        && slots.iter().all(|s| !s.busy)
        && match desired.run {
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
        condition("Available", ready > 0, format!("{ready} of {want} replicas serve")),
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
    if let Some(drift) = drift {
        conditions.push(condition("ScanCurrent", drift.ok, drift.reason.clone()));
    }
    let (cpu_percent, memory_bytes) = room.usage.now.get(&deployment.id).copied().unwrap_or_default();
    Status {
        id: deployment.id,
        state,
        ready,
        restarts: memory.restarts,
        serving,
        message,
        health: health.to_owned(),
        conditions,
        replicas: slots.iter().map(|s| replica(s, memory)).collect(),
        plan: memory.plan.actions.iter().map(ToString::to_string).chain(memory.plan.notes.iter().cloned()).collect(),
        generation: deployment.generation,
        settled,
        changed_at: old.filter(|o| o.state == state).map_or(now, |o| o.changed_at),
        failure: memory.failure.clone(),
        last_output: memory.last_output.clone(),
        cpu_percent,
        memory_bytes,
    }
}

fn replica(slot: &Slot, memory: &Memory) -> ReplicaStatus {
    let state = match slot.phase {
        _ if slot.busy => slot.doing,
        Phase::Making => "creating",
        Phase::Created => "created",
        Phase::Gating => "gating",
        Phase::Ready => "ready",
        Phase::Draining { .. } => "draining",
        Phase::Down if memory.backoff.failures > 0 => "backing-off",
        Phase::Down => "down",
    };
    ReplicaStatus {
        instance: slot.id,
        release: slot.release,
        state: state.to_owned(),
        container: slot.container.clone().unwrap_or_default(),
        started_at: slot.started_at,
        restarts: slot.restarts,
        message: slot.message.clone(),
    }
}
