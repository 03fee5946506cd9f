//! Rounds on recorded trees of both versions of control groups, and on an engine whose containers have none.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use sigil_core::cgroup::Reading;
use sigil_core::model::{Deployment, DeploymentId, InstanceId};
use sigil_core::series::{DEPLOYMENT, place};
use tokio_util::sync::CancellationToken;

use super::work::Work;
use super::*;
use crate::engine::fake::Fake;
use crate::store::tests::deployment;

struct House {
    dir: tempfile::TempDir,
    deps: Arc<Deps>,
    fake: Fake,
    deployment: Arc<Deployment>,
    _stop: tokio_util::sync::DropGuard,
}

async fn house() -> House {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let (store, _) = Store::open(dir.path()).unwrap();
    let fake = Fake::new(store.agent_id());
    let (links, _output) = InitLinks::spawn(dir.path(), Default::default(), stop.clone()).await.unwrap();
    let deployment = store.create(deployment("clock")).await.unwrap();
    let (_, config) = watch::channel(Arc::new(AgentConfig::default()));
    let deps = Deps { store, engine: Arc::new(fake.clone()), links, config, data_dir: dir.path().to_owned() };
    House { dir, deps: Arc::new(deps), fake, deployment, _stop: stop.drop_guard() }
}

impl House {
    fn trees(&self) -> Trees {
        Trees { proc: self.dir.path().join("proc"), cgroup: self.dir.path().join("cgroup") }
    }

    fn put(&self, path: &str, text: &str) {
        put(self.dir.path(), path, text);
    }

    /// A process of a group of version 1, and what that used.
    fn one(&self, pid: u32, began: u64, micros: u64, memory: u64) {
        self.process(pid, began, "4:cpu,cpuacct:/d/x\n5:memory:/d/x\n6:pids:/d/x\n7:blkio:/d/x\n8:freezer:/d/x\n");
        self.put("cgroup/cpuacct/d/x/cpuacct.usage", &format!("{}\n", micros * 1000));
        self.put("cgroup/cpu/d/x/cpu.stat", "nr_periods 1\nnr_throttled 1\nthrottled_time 5000\n");
        self.put("cgroup/memory/d/x/memory.usage_in_bytes", &format!("{}\n", memory + 100));
        self.put("cgroup/memory/d/x/memory.stat", &format!("total_inactive_file 100\ntotal_rss {memory}\n"));
        self.put("cgroup/memory/d/x/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n");
        self.put("cgroup/pids/d/x/pids.current", "2\n");
        self.put("cgroup/freezer/d/x/freezer.state", "THAWED\n");
    }

    fn process(&self, pid: u32, began: u64, groups: &str) {
        let fields = (0..18).map(|_| "0").collect::<Vec<_>>().join(" ");
        self.put(&format!("proc/{pid}/stat"), &format!("{pid} (init) S {fields} {began} 0 0"));
        self.put(&format!("proc/{pid}/cgroup"), groups);
    }

    fn instance(&self, pid: u32) -> Instance {
        Instance {
            instance: InstanceId(ulid::Ulid::from_parts(1, u128::from(pid))),
            deployment: self.deployment.id,
            release: 1,
            container: String::new(),
            pid,
            ready: true,
        }
    }
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn round(work: &mut Work, instances: &[Instance], calls: u64) -> Snapshot {
    let mut traffic = Traffic { deployment: "clock".into(), in_flight: 1, ..Traffic::default() };
    traffic.latency.buckets[3] = calls;
    let id = instances.first().map_or(DeploymentId(ulid::Ulid::from_parts(9, 9)), |i| i.deployment);
    let seen = work.look(instances, true);
    work.round(instances, seen, Some(vec![(id, traffic)]), true)
}

fn value(used: &DeploymentUse, name: &str) -> f64 {
    used.window.back().unwrap().values[place(&DEPLOYMENT, name).unwrap()]
}

#[tokio::test]
async fn a_replica_is_followed_through_its_lives() {
    let house = house().await;
    let mut work = Work::new(house.deps.clone(), house.trees());
    house.one(42, 1000, 500_000, 1 << 20);
    let instance = [house.instance(42)];
    round(&mut work, &instance, 10);
    tokio::time::sleep(Duration::from_millis(120)).await;
    house.one(42, 1000, 512_000, 3 << 20);
    let used = round(&mut work, &instance, 25).deployments[&house.deployment.id].clone();
    let replica = &used.replicas[0];
    // 12 ms in a little more than 120 ms
    assert!((0.02..=0.1).contains(&replica.cpu_cores), "{}", replica.cpu_cores);
    assert_eq!((replica.reading.memory, replica.reading.memory_total), (3 << 20, (3 << 20) + 100));
    assert_eq!(replica.baseline, Some(1 << 20), "of the moment at which it served");
    let limit = house.deployment.release(1).unwrap().spec.resources.memory;
    assert!((replica.memory_load_percent() - (2 << 20) as f64 / limit as f64 * 100.0).abs() < 1e-9);
    assert_eq!((value(&used, "requests"), value(&used, "cpu_seconds")), (15.0, 0.012));
    assert_eq!(value(&used, "replicas"), 1.0);
    // the container started again: its counters began anew, and so did its baseline
    house.one(43, 2000, 7_000, 2 << 20);
    let again = [Instance { pid: 43, ..instance[0].clone() }];
    let used = round(&mut work, &again, 25).deployments[&house.deployment.id].clone();
    assert_eq!((value(&used, "cpu_seconds"), used.replicas[0].baseline), (0.007, Some(2 << 20)));
    // another agent knows the baseline of the life that goes on
    let mut next = Work::new(house.deps.clone(), house.trees());
    house.one(43, 2000, 8_000, 9 << 20);
    let used = round(&mut next, &again, 25).deployments[&house.deployment.id].clone();
    assert_eq!(used.replicas[0].baseline, Some(2 << 20));
    // it ended
    fs::remove_dir_all(house.dir.path().join("proc/43")).unwrap();
    assert!(round(&mut next, &[], 25).deployments.values().all(|used| used.replicas.is_empty()));
}

#[tokio::test]
async fn who_is_frozen_costs_nothing() {
    let house = house().await;
    let mut work = Work::new(house.deps.clone(), house.trees());
    house.one(42, 1000, 500_000, 1 << 20);
    let instance = [house.instance(42)];
    round(&mut work, &instance, 0);
    house.put("cgroup/freezer/d/x/freezer.state", "FROZEN\n");
    let used = round(&mut work, &instance, 0).deployments[&house.deployment.id].clone();
    assert!(used.replicas[0].frozen);
    // it is not read while it stands still, so what the files say now is not seen
    house.put("cgroup/memory/d/x/memory.usage_in_bytes", "9\n");
    let snapshot = round(&mut work, &instance, 0);
    let used = &snapshot.deployments[&house.deployment.id];
    assert_eq!((used.replicas[0].reading.memory, used.replicas[0].cpu_cores), (1 << 20, 0.0));
    assert_eq!(snapshot.effort.files, 2);
    house.one(42, 1000, 600_000, 4 << 20);
    let snapshot = round(&mut work, &instance, 0);
    assert_eq!(snapshot.deployments[&house.deployment.id].replicas[0].reading.memory, 4 << 20);
}

#[tokio::test]
async fn version_two_and_its_network() {
    let house = house().await;
    let mut work = Work::new(house.deps.clone(), house.trees());
    house.process(7, 5, "0::/s/docker-z.scope\n");
    for (name, text) in [
        ("cpu.stat", "usage_usec 77\nnr_throttled 4\nthrottled_usec 30\n"),
        ("memory.current", "800\n"),
        ("memory.stat", "anon 100\ninactive_file 300\n"),
        ("cgroup.events", "populated 1\nfrozen 0\n"),
    ] {
        house.put(&format!("cgroup/s/docker-z.scope/{name}"), text);
    }
    let used = round(&mut work, &[house.instance(7)], 0).deployments[&house.deployment.id].clone();
    let replica = &used.replicas[0];
    assert_eq!((replica.reading.cpu_micros, replica.reading.memory, replica.by_engine), (77, 500, false));
    assert_eq!(replica.life, Life { boot: 0, began: 5, pid: 7 });
}

#[tokio::test]
async fn the_engine_is_asked_where_files_cannot_be_read() {
    let house = house().await;
    let stop = CancellationToken::new();
    let deps = Deps {
        store: house.deps.store.clone(),
        engine: house.deps.engine.clone(),
        links: house.deps.links.clone(),
        config: house.deps.config.clone(),
        data_dir: house.deps.data_dir.clone(),
    };
    let sample = Sample::spawn(deps, stop.clone());
    let id = house.fake.add_own("clock-1");
    let figures = Reading { cpu_micros: 5, memory: 4096, ..Reading::default() };
    house.fake.uses(&id, figures);
    // no process has this number
    let instance = Instance { container: id, pid: u32::MAX, ..house.instance(9) };
    let mut latest = sample.latest();
    sample.instances(vec![instance]);
    let seen = async {
        loop {
            latest.changed().await.unwrap();
            if let Some(used) = sample.deployment(house.deployment.id) {
                return used;
            }
        }
    };
    let used = tokio::time::timeout(Duration::from_secs(30), seen).await.expect("not asked");
    assert!(used.replicas[0].by_engine);
    assert_eq!(used.replicas[0].reading, figures);
    assert_eq!((latest.borrow().effort.engine, used.memory_bytes), (1, 4096));
    stop.cancel();
    assert!(sample.closed(Duration::from_secs(10)).await);
}
