//! Many clients of many deployments while replicas are killed and releases replace one another: whether anybody gets a
//! wrong answer, another's answer, or none, whether a call runs twice, and whether the agent grows. A minute is a test;
//! `scripts/bench soak` takes as long as it is told.

mod client;

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Agent, Dice, binary, docker, eventually};

/// For whatever has to come to rest at the end.
const REST: Duration = Duration::from_secs(60);
/// The tool image's port.
const PORT: &str = "8080";

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Deployments, each of one of four kinds in turn.
    pub deployments: usize,
    /// Clients at once.
    pub clients: usize,
    /// How long they call.
    pub time: Duration,
    /// Between two killed replicas.
    pub kill_every: Duration,
    /// Between two releases.
    pub roll_every: Duration,
}

impl Plan {
    /// 1,000 clients of 20 deployments: a replica killed every three seconds, a release rolled every six.
    pub fn minutes(time: Duration) -> Self {
        let (kill_every, roll_every) = (Duration::from_secs(3), Duration::from_secs(6));
        Self { deployments: 20, clients: 1000, time, kill_every, roll_every }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Soak {
    /// Calls that were answered with their result.
    pub calls: u64,
    /// Sessions that were begun.
    pub sessions: u64,
    /// Events on clients' streams.
    pub events: u64,
    /// What a client may be told while its server is killed, in words, and how often it was.
    pub told: BTreeMap<String, u64>,
    /// Replicas killed.
    pub kills: u64,
    /// Releases rolled out.
    pub rolls: u64,
    /// Calls that the servers' logs know.
    pub ran: u64,
    /// The longest call that was answered.
    pub longest: Duration,
    /// The agent's resident memory, MiB, each second from the moment all clients had been answered.
    pub memory: Vec<f64>,
    /// What was wrong: nothing may be.
    pub findings: Vec<String>,
}

impl Soak {
    /// Resident memory in the second and in the last quarter of the time, MiB.
    pub fn growth(&self) -> (f64, f64) {
        let quarter = self.memory.len() / 4;
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
        (mean(&self.memory[quarter..quarter * 2]), mean(&self.memory[self.memory.len() - quarter..]))
    }
}

/// What the clients write down.
#[derive(Debug, Default)]
struct Tally {
    stop: AtomicBool,
    calls: AtomicU64,
    sessions: AtomicU64,
    events: AtomicU64,
    longest_ms: AtomicU64,
    told: Mutex<BTreeMap<String, u64>>,
    findings: Mutex<Vec<String>>,
}

impl Tally {
    fn told(&self, what: String) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    fn finding(&self, what: String) {
        let mut all = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        // the first ones say enough
        if all.len() < 50 {
            all.push(what);
        }
    }
}

/// A deployment of the soak.
#[derive(Debug, Clone)]
struct Site {
    name: String,
    /// Its server has no sessions.
    stateless: bool,
    stdio: bool,
    key: Option<String>,
}

/// Runs it on an agent of its own.
///
/// # Panics
/// When the agent does not come up, or its servers do not deploy.
pub fn run(plan: Plan, say: &mut dyn FnMut(String)) -> Soak {
    let agent = Agent::start();
    let images = images();
    let mut sites = Vec::new();
    for n in 0..plan.deployments {
        sites.push(deploy(&agent, &images, n));
    }
    say(format!("{} deployments serve", sites.len()));
    let tally = Arc::new(Tally::default());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, agent.port));
    let clients: Vec<_> = (0..plan.clients)
        .map(|n| runtime.spawn(client::run(n, address, sites[n % sites.len()].clone(), tally.clone())))
        .collect();
    let mut soak = Soak::default();
    eventually("every client is answered", REST, || {
        (tally.sessions.load(Relaxed) >= plan.clients as u64 * 4 / 5 || !noted(&tally).is_empty()).then_some(())
    });
    say(format!("{} clients call", plan.clients));
    trouble(&agent, &sites, plan, &tally, &mut soak);
    tally.stop.store(true, Relaxed);
    say("clients leave".to_owned());
    runtime.block_on(async {
        for client in clients {
            let ended = tokio::time::timeout(client::PATIENCE * 2, client).await;
            ended.expect("a client ends in time").expect("a client ends");
        }
    });
    soak.calls = tally.calls.load(Relaxed);
    soak.sessions = tally.sessions.load(Relaxed);
    soak.events = tally.events.load(Relaxed);
    soak.longest = Duration::from_millis(tally.longest_ms.load(Relaxed));
    soak.told = tally.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
    soak.findings.append(&mut noted(&tally));
    rest(&agent, &sites, &mut soak);
    for site in &sites {
        read_back(&agent, site, &mut soak);
    }
    for (image, _) in images {
        docker(&["rmi", "-f", &image]);
    }
    soak
}

fn noted(tally: &Tally) -> Vec<String> {
    tally.findings.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// An image for each kind of server; nothing is fetched.
fn images() -> Vec<(String, [&'static str; 2])> {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::copy(binary("count-server"), dir.path().join("server")).expect("it can be copied");
    let kinds = [["sessions", PORT], ["sessions", "stdio"], ["stateless", PORT], ["stateless", "stdio"]];
    kinds
        .into_iter()
        .map(|[era, way]| {
            let dockerfile = format!(
                "FROM sigil-base/python\nCOPY server /server\nUSER 10001:10001\nCMD [\"/server\", \"{era}\", \"{way}\"]\n"
            );
            std::fs::write(dir.path().join("Dockerfile"), dockerfile).expect("it can be written");
            let tag = format!("sigil-soak-{era}-{way}:{}", std::process::id());
            docker(&["build", "-q", "-t", &tag, &dir.path().to_string_lossy()]);
            (tag, [era, way])
        })
        .collect()
}

fn deploy(agent: &Agent, images: &[(String, [&str; 2])], n: usize) -> Site {
    let (image, [era, way]) = &images[n % images.len()];
    let (source, stdio, stateless) = (format!("image:{image}"), *way == "stdio", *era == "stateless");
    let name = format!("s{n}");
    let transport: &[&str] = if stdio { &["--transport", "stdio"] } else { &["--transport", "http", "--port", PORT] };
    // a process a session: one replica takes 32. Elsewhere one that is killed is missed less where there is another
    let replicas = match (stdio && !stateless, n % 8 < 4) {
        (true, _) => "3",
        (_, true) => "2",
        _ => "1",
    };
    let args = ["deploy", &source, "--name", &name, "--replicas", replicas, "--env", "ROUND=0"];
    agent.sigil(&[&args[..], transport].concat()).ok();
    let key = (n % 2 == 0).then(|| {
        let made = agent.sigil(&["key", "create", &name, "-o", "json"]).ok().json();
        made["text"].as_str().expect("its text").to_owned()
    });
    let access = if key.is_some() { "key" } else { "anonymous" };
    agent.sigil(&["policy", "set", &name, "--access", access]).ok();
    Site { name, stateless, stdio, key }
}

/// Kills and rolls until the time is over.
fn trouble(agent: &Agent, sites: &[Site], plan: Plan, tally: &Tally, soak: &mut Soak) {
    let mut dice = Dice::new();
    let began = Instant::now();
    let (mut kill, mut roll, mut look) = (began + plan.kill_every, began + plan.roll_every, began);
    let mut rolling: Option<(String, std::process::Child)> = None;
    while began.elapsed() < plan.time && noted(tally).is_empty() {
        let now = Instant::now();
        if now >= look {
            look += Duration::from_secs(1);
            soak.memory.push(resident_mib(agent.pid()));
        }
        if now >= kill {
            kill += plan.kill_every;
            let site = &sites[dice.pick(sites.len())];
            let filters =
                [format!("label=sigil.agent={}", agent.id()), format!("label=sigil.deployment={}", site.name)];
            let up = docker(&["ps", "-q", "--filter", &filters[0], "--filter", &filters[1]]);
            if let Some(container) = up.lines().next() {
                // it may be on its way out already
                let killed = std::process::Command::new("docker").args(["kill", container]).output();
                soak.kills += u64::from(killed.is_ok_and(|out| out.status.success()));
            }
        }
        if let Some((name, child)) = &mut rolling
            && let Some(status) = child.try_wait().expect("a child")
        {
            if !status.success() {
                soak.findings.push(format!("a new release of {name} failed: {status}"));
            }
            soak.rolls += 1;
            rolling = None;
        }
        if now >= roll && rolling.is_none() {
            roll += plan.roll_every;
            let site = &sites[dice.pick(sites.len())];
            let spec = agent.ls(&site.name).expect("it is deployed");
            let source = spec["source"].as_str().expect("its source").to_owned();
            let round = format!("ROUND={}", soak.rolls + 1);
            let child = agent
                .command(&["deploy", &source, "--name", &site.name, "--env", &round])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("sigil starts");
            rolling = Some((site.name.clone(), child));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    if let Some((_, mut child)) = rolling {
        let _status = child.wait();
    }
}

/// Conversations that may stay open in a deployment, for clients that come without a session.
const SHARED: u64 = 4;

/// After the last client has left, nothing stays but what such clients share.
fn rest(agent: &Agent, sites: &[Site], soak: &mut Soak) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, agent.port));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let deadline = Instant::now() + REST;
    loop {
        let text = runtime.block_on(client::get(address, "/metrics")).expect("metrics");
        let open: Vec<&str> = text
            .lines()
            .filter(|line| {
                let most = if line.starts_with("sigil_sessions{") { SHARED } else { 0 };
                let counts = most > 0 || line.starts_with("sigil_in_flight{");
                counts && line.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).is_none_or(|n| n > most)
            })
            .collect();
        let processes = processes(agent, sites);
        if open.is_empty() && processes.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            soak.findings.push(format!("left when all clients had gone: {open:?} {processes:?}"));
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Containers of stdio servers with more than init, a spare process and the one that stateless clients share.
fn processes(agent: &Agent, sites: &[Site]) -> Vec<String> {
    let mut found = Vec::new();
    for site in sites.iter().filter(|site| site.stdio) {
        let filters = [format!("label=sigil.agent={}", agent.id()), format!("label=sigil.deployment={}", site.name)];
        for container in docker(&["ps", "-q", "--filter", &filters[0], "--filter", &filters[1]]).lines() {
            let Ok(out) = std::process::Command::new("docker").args(["top", container]).output() else { continue };
            let servers = String::from_utf8_lossy(&out.stdout).lines().filter(|l| l.contains("/server ")).count();
            if servers > 2 {
                found.push(format!("{}: {servers} processes", site.name));
            }
        }
    }
    found
}

/// The log of a server: no call may have run twice.
fn read_back(agent: &Agent, site: &Site, soak: &mut Soak) {
    let mut command = agent.command(&["logs", &site.name, "--stream", "stderr", "-o", "json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("sigil starts");
    let mut seen = HashSet::new();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let value: Value = serde_json::from_str(&line.expect("UTF-8")).expect("JSON");
        let Some(call) = value["line"].as_str().and_then(|line| line.strip_prefix("ran ")) else { continue };
        soak.ran += 1;
        if !seen.insert(call.to_owned()) {
            soak.findings.push(format!("{}: call {call} ran twice", site.name));
        }
    }
    assert!(child.wait().expect("a child").success(), "the log of {} could be read", site.name);
}

fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}
