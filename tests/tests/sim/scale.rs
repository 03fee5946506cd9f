//! Scale on paper, simulated: 1,000 deployments with 3,000 replicas on one agent. The bars are those of a release build;
//! tests are debug builds, which take about four times as long, so that is what is asserted there. Memory is the whole
//! process: the agent, and 3,000 simulated containers with their servers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sigil_agent::store::Store;
use sigil_core::model::*;
use sigil_protocol::v1;
use sigil_protocol::v1::start_request::What;

use crate::world::*;

const DEPLOYMENTS: usize = 1000;
const REPLICAS: u32 = 3;
/// The bars, release build.
const PASS: Duration = Duration::from_millis(50);
const VISIBLE: Duration = Duration::from_millis(200);
/// 300 MB beyond what this process took before the agent began.
const MEMORY_MIB: u64 = 286;
/// Freed memory is given back within this.
const SETTLES: Duration = Duration::from_secs(20);
const FACTOR: u32 = if cfg!(debug_assertions) { 4 } else { 1 };
/// How many changes are followed to the screen.
const CHANGES: usize = 5;

fn deployment(number: usize, image: &str) -> Deployment {
    let now = jiff::Timestamp::now();
    let spec = ReleaseSpec {
        image: image.to_owned(),
        source: "image:sim/server:1".into(),
        source_digest: String::new(),
        commit: None,
        transport: Transport::Http,
        port: 8080,
        path: "/mcp".into(),
        command: vec!["/server".into()],
        workdir: "/".into(),
        user: "10001:10001".into(),
        env: BTreeMap::new(),
        secrets: vec![],
        resources: Resources {
            tier: "router".into(),
            cpu_share: 0.1,
            cpu_limit: 0.25,
            memory: 256 << 20,
            storage: 512 << 20,
            processes: 512,
            files: 1024,
        },
        volumes: vec![],
        network: NetworkMode::Link,
        egress: vec![],
        config: serde_json::Value::Null,
        session: None,
        access: "anonymous".into(),
        sessions_max: None,
        sessions_replayable: false,
        request_timeout_ms: 30_000,
        start_timeout_ms: 60_000,
        health: sigil_core::health::Rules::default(),
    };
    Deployment {
        id: DeploymentId(ulid::Ulid::generate()),
        name: format!("d{number:04}").parse().unwrap(),
        team: "default".into(),
        tags: Vec::new(),
        created_by: "sim".into(),
        created_at: now,
        generation: 1,
        reason: "deployed".into(),
        changed_at: now,
        desired: Desired { run: Run::Running, replicas: REPLICAS, release: 1, restart: 0 },
        serving: Some(1),
        policy: sigil_core::policy::Policy::default(),
        waivers: Vec::new(),
        scaling: None,
        follow: None,
        until: None,
        preview: None,
        releases: vec![Release {
            number: 1,
            created_at: now,
            created_by: "sim".into(),
            spec,
            outcome: Outcome::Good,
            recognised: String::new(),
            asked: None,
        }],
    }
}

/// Resident memory of this process, MiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

/// The rows of a console that watches.
struct Console {
    events: tonic::Streaming<v1::WatchEvent>,
    rows: BTreeMap<String, v1::Deployment>,
}

impl Console {
    async fn open(agent: &Agent) -> Self {
        let events = agent.deployments().watch(v1::WatchRequest::default()).await.unwrap().into_inner();
        let mut console = Self { events, rows: BTreeMap::new() };
        while !console.next(LONG).await {}
        console
    }

    /// Takes one event; true when the table is whole.
    async fn next(&mut self, limit: Duration) -> bool {
        let event = tokio::time::timeout(limit, self.events.message()).await.expect("an event in time");
        let event = event.unwrap().unwrap();
        self.rows.extend(event.changed.into_iter().map(|d| (d.name.clone(), d)));
        event.complete
    }

    async fn until(&mut self, name: &str, wanted: impl Fn(&v1::Deployment) -> bool) {
        while !self.rows.get(name).is_some_and(&wanted) {
            self.next(LONG).await;
        }
    }
}

fn middle_and_most(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_deployments_with_three_thousand_replicas() {
    raise_files();
    let world = World::new();
    let image = sigil_agent::engine::Engine::image(&world.fake, "sim/server:1").await.unwrap().unwrap().id;
    let before = memory();
    let (store, _) = Store::open(world.dir.path()).unwrap();
    let made = (0..DEPLOYMENTS).map(|number| store.create(deployment(number, &image)));
    futures::future::try_join_all(made).await.unwrap();
    store.close().await;
    drop(store);

    let began = Instant::now();
    let agent = world.agent_with(&[]).await;
    println!("agent up with {DEPLOYMENTS} deployments in {:?}", began.elapsed());
    let mut console = Console::open(&agent).await;
    let all = |c: &Console| c.rows.len() == DEPLOYMENTS && c.rows.values().all(|d| d.ready == REPLICAS);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !all(&console) {
        let ready: u32 = console.rows.values().map(|d| d.ready).sum();
        assert!(Instant::now() < deadline, "{ready} replicas are ready");
        console.next(LONG).await;
    }
    let (count, took) = (DEPLOYMENTS * REPLICAS as usize, began.elapsed());
    println!("{count} replicas through their gates in {took:?} ({:.0}/s)", count as f64 / took.as_secs_f64());
    let passes = agent.app.as_ref().unwrap().reconcile().passes();
    println!("passes while starting: {}, longest {:?}", passes.count, passes.longest);

    // a server crashes; a person scales: how long until the screen shows it, and how long a pass takes meanwhile
    let (mut crashes, mut changes, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let name = format!("d{:04}", number * 37);
        let running = world.running(&name);
        let (began, restarts) = (Instant::now(), console.rows[&name].restarts);
        world.fake.crash(&running[0].0, 1, false);
        // on a busy machine it may be back before a screen is drawn: then that it was started again is what shows it
        console.until(&name, |d| d.ready < REPLICAS || d.restarts > restarts).await;
        crashes.push(began.elapsed());
        console.until(&name, |d| d.ready == REPLICAS).await;

        let name = format!("d{:04}", number * 37 + 1);
        let began = Instant::now();
        let scale = What::Scale(v1::ScaleRequest { name: name.clone(), replicas: REPLICAS - 1 });
        agent.operations().start(request(&name, scale)).await.unwrap();
        console.until(&name, |d| d.desired == REPLICAS - 1).await;
        changes.push(began.elapsed());
        console.until(&name, |d| d.ready == REPLICAS - 1).await;
        times.push(agent.app.as_ref().unwrap().reconcile().passes().last);
    }
    // what was freed goes back to the system within some seconds (jemalloc's decay), not at once
    let (used, deadline) = (memory(), Instant::now() + SETTLES);
    let mut least = used;
    while least >= before + MEMORY_MIB && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(250)).await;
        least = least.min(memory());
    }
    // it never waits for anything, so a busy machine only adds to it
    let (pass, longest) = (times.iter().min().copied().unwrap(), times.iter().max().copied().unwrap());
    let (crash, slowest_crash) = middle_and_most(crashes);
    let (change, slowest_change) = middle_and_most(changes);
    println!("a pass: {pass:?}, longest {longest:?}");
    println!("a crash on the screen: {crash:?}, longest {slowest_crash:?}");
    println!("a change on the screen: {change:?}, longest {slowest_change:?}");
    println!("memory: {used} MiB, at least {least}, {before} MiB of it before the agent began");
    assert!(pass < PASS * FACTOR, "a pass takes {pass:?}");
    assert!(crash < VISIBLE * FACTOR, "a crash is seen after {crash:?}");
    assert!(change < VISIBLE * FACTOR, "a change is seen after {change:?}");
    assert!(least < before + MEMORY_MIB, "{used} MiB, never less than {least}, and {before} before the agent began");
    agent.crash().await;
}

/// Both ends of every link and connection are in this process.
fn raise_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    assert!(limit.maximum.is_none_or(|n| n >= 18_000), "3,000 simulated replicas need 18,000 files: {limit:?}");
}
