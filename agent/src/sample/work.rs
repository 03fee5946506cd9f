//! The loop: what is read when, and what becomes of it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_core::cgroup::Reading;
use sigil_core::model::{DeploymentId, InstanceId, NetworkMode};
use sigil_core::series::{self, DEPLOYMENT, Point, REQUESTS, SECONDS, TIERS};
use tokio_util::sync::CancellationToken;

use super::disk::Disk;
use super::host;
use super::read::{self, Place};
use super::rings::{self, Rings};
use super::scrape::Pages;
use super::{DeploymentUse, Deps, EVERY, Effort, Instance, Life, Of, ReplicaUse, Shared, Snapshot, Trees, WINDOW};
use crate::web::{BOUNDS, Traffic};

/// A frozen container is read wholly this often: the kernel may take memory from it.
const FROZEN: Duration = Duration::from_secs(60);
/// A container about which the engine has to be asked is asked about this often.
const ENGINE_EVERY: Duration = Duration::from_secs(30);
/// Questions to the engine at once.
const ENGINE_PARALLEL: usize = 4;
/// How long the newest instances are waited for, so that several that come at once are read at once.
const GATHER: Duration = Duration::from_millis(200);
/// Where baselines outlive the agent.
const BASELINES: &str = "baselines.json";

/// What is known of an instance between rounds.
struct Held {
    place: Option<Place>,
    pid: u32,
    life: Life,
    read_at: Option<Instant>,
    use_: Option<ReplicaUse>,
    /// When the engine was asked last.
    asked: Option<Instant>,
    /// As of the last point.
    counted: Option<(Life, Reading)>,
}

/// A baseline, and the life of which it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Baseline {
    life: Life,
    bytes: u64,
}

/// Everything that rounds need, handed to a thread that may wait and back.
pub(super) struct Work {
    deps: Arc<Deps>,
    trees: Trees,
    boot: u64,
    held: HashMap<InstanceId, Held>,
    baselines: BTreeMap<InstanceId, Baseline>,
    baselines_file: PathBuf,
    traffic: HashMap<DeploymentId, Arc<Traffic>>,
    windows: HashMap<DeploymentId, Arc<VecDeque<Point>>>,
    host: host::Reader,
    host_last: Arc<host::Host>,
    rings: Rings,
    effort: Effort,
    /// Life under which counts of the agent's own count.
    own: Life,
    last: Option<(Timestamp, Instant)>,
    buffer: String,
}

/// What a look at an instance gave.
pub(super) enum Seen {
    /// As it was.
    Same,
    Read(Reading, bool),
    /// Its files cannot be read.
    Dark,
}

pub(super) async fn run(deps: Deps, shared: Arc<Shared>, stop: CancellationToken) {
    let deps = Arc::new(deps);
    let made = {
        let deps = deps.clone();
        tokio::task::spawn_blocking(move || {
            let work = Work::new(deps, Trees::default());
            work.rings.catch_up(Timestamp::now().as_second());
            work
        })
    };
    let Ok(mut work) = made.await else { return };
    let mut instances = shared.instances.subscribe();
    let (mut pages, mut disk) = (Pages::new(deps.clone()), Disk::new(deps.clone(), stop.clone()));
    // the first round is at once: rates need two
    let mut due = Timestamp::now().as_millisecond();
    loop {
        let mut whole = tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(until(&mut due)) => true,
            () = shared.hurry.notified() => false,
        };
        if !whole {
            // what is due meanwhile is not put off by those that come
            let left = until(&mut due);
            whole = left <= GATHER;
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(left.min(GATHER)) => {}
            }
        }
        if whole {
            due = next_round(Timestamp::now());
        }
        let now = instances.borrow_and_update().clone();
        let counted = shared.counted.get().filter(|_| whole).map(|counted| counted());
        let list = now.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let seen = work.look(&list, whole);
            work.effort.last = began.elapsed();
            (work, seen)
        });
        // a panic there is in the log; nothing can be measured without the state that is lost
        let Ok((back, mut seen)) = looked.await else { return };
        work = back;
        work.ask_engine(&now, &mut seen).await;
        let list = now.clone();
        let done = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let snapshot = work.round(&list, seen, counted, whole);
            work.effort.last += began.elapsed();
            (work, snapshot)
        });
        let Ok((back, mut snapshot)) = done.await else { return };
        work = back;
        (snapshot.servers, snapshot.volumes) = (pages.families(), disk.volumes());
        (snapshot.effort.pages, snapshot.effort.page_lines_left_out) = pages.counted();
        shared.latest.send_replace(Arc::new(snapshot));
        if whole {
            pages.look(&now);
            disk.look();
        }
    }
}

/// When the next round is due, milliseconds since 1970: where an interval of ten seconds begins, and not at once: a timer may
/// be a little early by the clock.
fn next_round(now: Timestamp) -> i64 {
    let every = i64::try_from(EVERY.as_millis()).unwrap_or(10_000);
    let now = now.as_millisecond();
    let next = now - now.rem_euclid(every) + every;
    if next - now < every / 2 { next + every } else { next }
}

/// Until a round is due. A clock that was set back makes it no later than it would be anyway.
fn until(due: &mut i64) -> Duration {
    let now = Timestamp::now();
    *due = (*due).min(next_round(now));
    Duration::from_millis(u64::try_from(*due - now.as_millisecond()).unwrap_or(0))
}

impl Work {
    pub(super) fn new(deps: Arc<Deps>, trees: Trees) -> Self {
        let boot = read::boot(&trees);
        let directory = rings::directory(&deps.data_dir);
        let baselines_file = directory.join(BASELINES);
        let baselines = std::fs::read(&baselines_file).ok();
        let mut buffer = String::new();
        let own = read::life(&trees, boot, std::process::id(), &mut buffer).unwrap_or_default();
        Self {
            boot,
            held: HashMap::new(),
            // without them a baseline is what a replica needs when it is seen again: too much, and the safe side
            baselines: baselines.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default(),
            baselines_file,
            traffic: HashMap::new(),
            windows: HashMap::new(),
            host: host::Reader::new(trees.clone(), &deps.data_dir),
            host_last: Arc::default(),
            rings: Rings::open(&directory),
            effort: Effort::default(),
            own,
            last: None,
            buffer,
            trees,
            deps,
        }
    }

    fn network_of(&self, instance: &Instance) -> bool {
        let deployment = self.deps.store.deployment(instance.deployment);
        let release = deployment.as_ref().and_then(|d| d.release(instance.release));
        release.is_some_and(|r| r.spec.network == NetworkMode::Bridge)
    }

    /// Reads all instances; not `whole`: those only that are new, or newly ready.
    pub(super) fn look(&mut self, instances: &[Instance], whole: bool) -> Vec<Seen> {
        let there: HashSet<InstanceId> = instances.iter().map(|i| i.instance).collect();
        self.held.retain(|id, _| there.contains(id));
        instances.iter().map(|instance| self.look_at(instance, whole)).collect()
    }

    fn look_at(&mut self, instance: &Instance, whole: bool) -> Seen {
        let id = instance.instance;
        if self.held.get(&id).is_none_or(|held| held.pid != instance.pid) {
            let network = self.network_of(instance);
            let place = Place::find(&self.trees, self.boot, instance.pid, network, &mut self.buffer);
            let life = place.as_ref().map_or(Life { boot: self.boot, began: 0, pid: instance.pid }, |p| p.life);
            let counted = self.held.remove(&id).and_then(|old| old.counted);
            let held = Held { place, pid: instance.pid, life, read_at: None, use_: None, asked: None, counted };
            self.held.insert(id, held);
        }
        let Some(held) = self.held.get_mut(&id) else { return Seen::Dark };
        let newly_ready = instance.ready && held.use_.as_ref().is_none_or(|u| !u.ready);
        if !whole && held.use_.is_some() && !newly_ready {
            return Seen::Same;
        }
        let Some(place) = &held.place else { return Seen::Dark };
        let frozen = place.is_frozen(&mut self.buffer);
        let fresh = held.read_at.is_some_and(|at| at.elapsed() < FROZEN);
        if frozen && fresh && held.use_.as_ref().is_some_and(|u| u.frozen) {
            return Seen::Same;
        }
        match place.read(&mut self.buffer) {
            Some(reading) => {
                self.effort.files += 1;
                Seen::Read(reading, frozen)
            }
            None => Seen::Dark,
        }
    }

    /// Asks the engine about those whose files cannot be read.
    async fn ask_engine(&mut self, instances: &[Instance], seen: &mut [Seen]) {
        let mut asked = Vec::new();
        for (index, (instance, seen)) in instances.iter().zip(seen.iter()).enumerate() {
            let Some(held) = self.held.get_mut(&instance.instance).filter(|_| matches!(seen, Seen::Dark)) else {
                continue;
            };
            if instance.container.is_empty() || held.asked.is_some_and(|at| at.elapsed() < ENGINE_EVERY) {
                continue;
            }
            held.asked = Some(Instant::now());
            asked.push((index, instance.container.clone()));
        }
        let engine = &self.deps.engine;
        let ask = |(index, id): (usize, String)| async move { (index, engine.stats(&id).await) };
        let answers: Vec<_> = futures::stream::iter(asked).map(ask).buffer_unordered(ENGINE_PARALLEL).collect().await;
        for (index, answer) in answers {
            match answer {
                Ok(Some(reading)) => {
                    self.effort.engine += 1;
                    if let Some(slot) = seen.get_mut(index) {
                        *slot = Seen::Read(reading, false);
                    }
                }
                // it has ended meanwhile
                Ok(None) => {}
                Err(error) => {
                    self.effort.failed += 1;
                    tracing::debug!(%error, "a container's figures cannot be read");
                }
            }
        }
    }

    /// Turns what was seen into uses, points and a snapshot.
    pub(super) fn round(
        &mut self,
        instances: &[Instance],
        seen: Vec<Seen>,
        counted: Option<Vec<(DeploymentId, Traffic)>>,
        whole: bool,
    ) -> Snapshot {
        let now = (Timestamp::now(), Instant::now());
        let mut baselines_changed = false;
        for (instance, seen) in instances.iter().zip(seen) {
            baselines_changed |= self.take(instance, seen, now);
        }
        let gone = self.baselines.len();
        self.baselines.retain(|id, _| self.held.contains_key(id));
        if baselines_changed || gone != self.baselines.len() {
            self.keep_baselines();
        }
        if whole {
            self.effort.rounds += 1;
        }
        let counted = counted.map(|all| all.into_iter().map(|(id, t)| (id, Arc::new(t))).collect::<HashMap<_, _>>());
        let mut points = Vec::new();
        if whole {
            let (read, mut point) = self.host.read(&mut self.buffer);
            self.host_last = Arc::new(read);
            point.interval = interval(now.0);
            if point.values[SECONDS] > 0.0 {
                points.push((Of::Host, point));
            }
        }
        let before = self.counted_before(now.1);
        let deployments = self.deployments(instances, counted.as_ref(), &before, now, whole, &mut points);
        if whole {
            let seconds = now.0.as_second();
            let budget = self.deps.config.borrow().metrics.max_bytes;
            self.rings.write(&points, budget);
            if let Some((then, _)) = self.last {
                self.rings.roll(then.as_second(), seconds);
                if TIERS[1].interval(seconds) != TIERS[1].interval(then.as_second()) {
                    let store = self.deps.store.clone();
                    self.rings.keep(|id| store.deployment(id).is_some());
                    self.windows.retain(|id, _| store.deployment(*id).is_some());
                }
            }
            self.last = Some(now);
            for held in self.held.values_mut() {
                held.counted = held.use_.as_ref().map(|u| (u.life, u.reading));
            }
        }
        if let Some(counted) = counted {
            self.traffic = counted;
        }
        (self.effort.lost, self.effort.ring_bytes) = (self.rings.lost, self.rings.bytes());
        Snapshot {
            at: Some(now.0),
            host: self.host_last.clone(),
            deployments,
            effort: self.effort,
            servers: Arc::default(),
            volumes: Arc::default(),
        }
    }

    /// Where the counters of each instance stood at the last point. Those of a new life stood at nothing.
    fn counted_before(&self, now: Instant) -> HashMap<InstanceId, Reading> {
        let seconds = self.last.map_or(0.0, |(_, then)| now.duration_since(then).as_secs_f64());
        let one = |(id, held): (&InstanceId, &Held)| {
            let use_ = held.use_.as_ref()?;
            match held.counted {
                Some((life, reading)) if life == use_.life => Some((*id, reading)),
                Some(_) => Some((*id, Reading::default())),
                // what it cannot have used since then it used before anybody looked
                None => {
                    let most = seconds * use_.cpu_limit.max(1.0) * 1e6;
                    (use_.reading.cpu_micros as f64 <= most).then(|| (*id, Reading::default()))
                }
            }
        };
        self.held.iter().filter_map(one).collect()
    }

    /// One instance's use; true when its baseline is new.
    fn take(&mut self, instance: &Instance, seen: Seen, (now, at): (Timestamp, Instant)) -> bool {
        let Some(held) = self.held.get_mut(&instance.instance) else { return false };
        let (mut reading, frozen, by_engine) = match seen {
            Seen::Read(reading, frozen) => (reading, frozen, held.place.is_none()),
            Seen::Same | Seen::Dark => {
                if let Some(use_) = held.use_.as_mut() {
                    use_.ready = instance.ready;
                    if use_.frozen {
                        (use_.cpu_cores, use_.at) = (0.0, now);
                    }
                }
                return false;
            }
        };
        let network = self.deps.links.carried(instance.instance);
        let mut network_life = held.life;
        if let Some((received, sent)) = network
            && (reading.received_bytes, reading.sent_bytes) == (0, 0)
        {
            (reading.received_bytes, reading.sent_bytes) = (received, sent);
            network_life = self.own;
        }
        let elapsed = held.read_at.map(|then| at.duration_since(then).as_micros().max(1) as f64);
        let cpu_cores = match (&held.use_, elapsed) {
            (Some(old), Some(micros)) if old.life == held.life => {
                reading.cpu_micros.saturating_sub(old.reading.cpu_micros) as f64 / micros
            }
            _ => 0.0,
        };
        let known = self.baselines.get(&instance.instance).filter(|b| b.life == held.life).map(|b| b.bytes);
        let baseline = known.or(instance.ready.then_some(reading.anonymous));
        let new = instance.ready && known.is_none();
        if new {
            let baseline = Baseline { life: held.life, bytes: reading.anonymous };
            self.baselines.insert(instance.instance, baseline);
        }
        let deployment = self.deps.store.deployment(instance.deployment);
        let limits = deployment.as_ref().and_then(|d| d.release(instance.release)).map(|r| &r.spec.resources);
        held.read_at = Some(at);
        held.use_ = Some(ReplicaUse {
            instance: instance.instance,
            release: instance.release,
            life: held.life,
            reading,
            network_life,
            cpu_cores,
            cpu_limit: limits.map_or(0.0, |l| l.cpu_limit),
            memory_limit: limits.map_or(0, |l| l.memory),
            baseline,
            frozen,
            ready: instance.ready,
            by_engine,
            at: now,
        });
        new
    }

    fn keep_baselines(&self) {
        let write = || -> std::io::Result<()> {
            if let Some(directory) = self.baselines_file.parent() {
                std::fs::create_dir_all(directory)?;
            }
            let next = self.baselines_file.with_extension("new");
            std::fs::write(&next, serde_json::to_vec(&self.baselines)?)?;
            std::fs::rename(&next, &self.baselines_file)
        };
        if let Err(error) = write() {
            tracing::debug!(%error, "baselines are not kept over a restart");
        }
    }

    fn deployments(
        &mut self,
        instances: &[Instance],
        counted: Option<&HashMap<DeploymentId, Arc<Traffic>>>,
        before: &HashMap<InstanceId, Reading>,
        now: (Timestamp, Instant),
        whole: bool,
        points: &mut Vec<(Of, Point)>,
    ) -> HashMap<DeploymentId, Arc<DeploymentUse>> {
        let mut all: HashMap<DeploymentId, DeploymentUse> = HashMap::new();
        for instance in instances {
            let Some(use_) = self.held.get(&instance.instance).and_then(|h| h.use_.clone()) else { continue };
            all.entry(instance.deployment).or_default().replicas.push(use_);
        }
        let counts = counted.unwrap_or(&self.traffic).clone();
        for (id, traffic) in &counts {
            if traffic.latency.calls() > 0 || traffic.sessions > 0 || traffic.in_flight > 0 {
                all.entry(*id).or_default();
            }
            if let Some(use_) = all.get_mut(id) {
                use_.traffic = traffic.clone();
            }
        }
        let seconds = self.last.map_or(0.0, |(_, then)| now.1.duration_since(then).as_secs_f64());
        for (id, use_) in &mut all {
            sum_up(use_);
            if whole && seconds > 0.0 {
                let old = self.traffic.get(id);
                if let Some(point) = point_of(use_, old.map(|t| &**t), before, interval(now.0), seconds) {
                    points.push((Of::Deployment(*id), point));
                    let window = Arc::make_mut(self.windows.entry(*id).or_default());
                    window.push_back(point);
                }
            }
            if let Some(window) = self.windows.get_mut(id) {
                let oldest = interval(now.0).saturating_sub(WINDOW as u32);
                if window.front().is_some_and(|p| p.interval <= oldest) {
                    let window = Arc::make_mut(window);
                    while window.front().is_some_and(|p| p.interval <= oldest) {
                        window.pop_front();
                    }
                }
                use_.window = window.clone();
            }
        }
        all.into_iter().map(|(id, use_)| (id, Arc::new(use_))).collect()
    }
}

/// The interval that has just ended.
fn interval(now: Timestamp) -> u32 {
    // a round begins with an interval, and tells of the one before
    TIERS[0].interval(now.as_second() - 5)
}

fn sum_up(use_: &mut DeploymentUse) {
    use_.cpu_percent = use_.replicas.iter().map(|r| r.cpu_cores * 100.0).sum();
    use_.memory_bytes = use_.replicas.iter().map(|r| r.reading.memory).sum();
    let mean = |of: fn(&ReplicaUse) -> f64| {
        let serving: Vec<f64> = use_.replicas.iter().filter(|r| r.ready && !r.frozen).map(of).collect();
        if serving.is_empty() { 0.0 } else { serving.iter().sum::<f64>() / serving.len() as f64 }
    };
    let (cpu, memory) = (mean(ReplicaUse::cpu_limit_percent), mean(ReplicaUse::memory_load_percent));
    (use_.cpu_limit_percent, use_.memory_load_percent) = (cpu, memory);
}

/// What a deployment did since the round before. `None` when nothing did anything: one that sleeps has a point a minute.
fn point_of(
    use_: &DeploymentUse,
    old: Option<&Traffic>,
    before: &HashMap<InstanceId, Reading>,
    interval: u32,
    seconds: f64,
) -> Option<Point> {
    let traffic = &use_.traffic;
    // counts that went back began anew
    let since = |now: u64, old: u64| if now >= old { now - old } else { now };
    let mut buckets = [0; BOUNDS.len() + 1];
    for (index, bucket) in buckets.iter_mut().enumerate() {
        *bucket = since(traffic.latency.buckets[index], old.map_or(0, |o| o.latency.buckets[index]));
    }
    let calls: u64 = buckets.iter().sum();
    let idle = calls == 0 && traffic.in_flight == 0 && use_.replicas.iter().all(|r| r.frozen);
    if idle && (use_.replicas.is_empty() || interval % 6 != 5) {
        return None;
    }
    let mut point = Point::new(interval);
    let mut set = |name: &str, value: f64| {
        if let Some(at) = series::place(&DEPLOYMENT, name) {
            point.values[at] = value;
        }
    };
    // what was used before it was first seen has no interval; `usage` counts it all the same
    let used = |of: fn(&Reading) -> u64| -> u64 {
        let each = use_.replicas.iter().filter_map(|r| Some(since(of(&r.reading), of(before.get(&r.instance)?))));
        each.sum()
    };
    let level = |of: fn(&ReplicaUse) -> f64| use_.replicas.iter().map(of);
    set("cpu_seconds", used(|r| r.cpu_micros) as f64 / 1e6);
    set("cpu_limit_percent", use_.cpu_limit_percent);
    set("cpu_limit_percent_max", level(ReplicaUse::cpu_limit_percent).fold(0.0, f64::max));
    set("throttled_seconds", used(|r| r.throttled_micros) as f64 / 1e6);
    set("memory_total_bytes", level(|r| r.reading.memory_total as f64).sum());
    set("memory_bytes", use_.memory_bytes as f64);
    set("memory_replica_max_bytes", level(|r| r.reading.memory as f64).fold(0.0, f64::max));
    set("memory_limit_percent_max", level(ReplicaUse::memory_limit_percent).fold(0.0, f64::max));
    set("memory_load_percent", use_.memory_load_percent);
    set("processes", level(|r| r.reading.processes as f64).sum());
    set("oom_kills", used(|r| r.oom_kills) as f64);
    set("received_bytes", used(|r| r.received_bytes) as f64);
    set("sent_bytes", used(|r| r.sent_bytes) as f64);
    set("disk_bytes", (used(|r| r.read_bytes) + used(|r| r.written_bytes)) as f64);
    set("errors", since(traffic.latency.errors, old.map_or(0, |o| o.latency.errors)) as f64);
    let took = traffic.latency.seconds - old.map_or(0.0, |o| o.latency.seconds);
    set("request_seconds", if took < 0.0 { traffic.latency.seconds } else { took });
    for (name, share) in [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99)] {
        set(name, series::quantile(&BOUNDS, &buckets, share) * 1e3);
    }
    set("in_flight", traffic.in_flight as f64);
    set("sessions", traffic.sessions as f64);
    set("replicas", use_.replicas.iter().filter(|r| r.ready).count() as f64);
    (point.values[SECONDS], point.values[REQUESTS]) = (seconds, calls as f64);
    Some(point)
}
