//! Many clients of many deployments while replicas are killed and releases replace one another: whether anybody gets a
//! wrong answer, another's answer, or none, whether a call runs twice, and whether the agent grows. A minute is a test;
//! `scripts/bench soak` takes as long as it is told.

mod client;

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Agent, Dice, binary, docker, eventually};

/// For whatever has to come to rest at the end.
const REST: Duration = Duration::from_secs(60);
/// So many findings say what is wrong.
const ENOUGH: usize = 20;
/// Where servers over HTTP listen.
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
        if all.len() < ENOUGH {
            all.push(what);
        }
    }
}

/// A deployment of the soak.
#[derive(Debug, Clone)]
struct Site {
    name: String,
    /// The command that deploys it.
    deploy: Vec<String>,
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
    let began = Instant::now();
    eventually("every client is answered", REST * 2, || {
        (tally.sessions.load(Relaxed) >= plan.clients as u64 * 4 / 5 || !noted(&tally).is_empty()).then_some(())
    });
    say(format!("{} clients call after {:.0?}", plan.clients, began.elapsed()));
    let mut rolls = trouble(&agent, &sites, plan, &tally, &mut soak);
    tally.stop.store(true, Relaxed);
    say("clients leave".to_owned());
    runtime.block_on(async {
        for client in clients {
            let ended = tokio::time::timeout(client::PATIENCE * 2, client).await;
            ended.expect("a client ends in time").expect("a client ends");
        }
    });
    for roll in &mut rolls {
        let status = eventually("a release is rolled out", REST * 2, || roll.child.try_wait().expect("a child"));
        rolled(roll, status, &mut soak);
    }
    soak.calls = tally.calls.load(Relaxed);
    soak.sessions = tally.sessions.load(Relaxed);
    soak.events = tally.events.load(Relaxed);
    soak.longest = Duration::from_millis(tally.longest_ms.load(Relaxed));
    soak.told.append(&mut tally.told.lock().unwrap_or_else(PoisonError::into_inner));
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
    let args = ["deploy", &source, "--name", &name, "--replicas", replicas];
    let deploy: Vec<String> = args.iter().chain(transport).map(|arg| (*arg).to_owned()).collect();
    let args: Vec<&str> = deploy.iter().map(String::as_str).collect();
    agent.sigil(&args).ok();
    let key = n.is_multiple_of(2).then(|| {
        let made = agent.sigil(&["key", "create", &name, "-o", "json"]).ok().json();
        made["text"].as_str().expect("its text").to_owned()
    });
    let access = if key.is_some() { "key" } else { "anonymous" };
    agent.sigil(&["policy", "set", &name, "--access", access]).ok();
    Site { name, deploy, stateless, stdio, key }
}

/// A new release on its way.
#[derive(Debug)]
struct Roll {
    name: String,
    child: Child,
    /// One of its deployment's replicas was killed meanwhile: then it may fail, and the old release serves on.
    hit: bool,
}

/// Kills and rolls until the time is over.
fn trouble(agent: &Agent, sites: &[Site], plan: Plan, tally: &Tally, soak: &mut Soak) -> Vec<Roll> {
    let mut dice = Dice::new();
    let began = Instant::now();
    let (mut kill, mut roll, mut look) = (began + plan.kill_every, began + plan.roll_every, began);
    // each waits until the old release's sessions are over
    let mut rolls: Vec<Roll> = Vec::new();
    let mut begun = 0_u32;
    while began.elapsed() < plan.time && noted(tally).len() < ENOUGH {
        let now = Instant::now();
        if now >= look {
            look += Duration::from_secs(1);
            soak.memory.push(resident_mib(agent.pid()));
        }
        if now >= kill {
            kill += plan.kill_every;
            let site = &sites[dice.pick(sites.len())];
            if let Some(container) = up(agent, site).first() {
                // it may be on its way out already
                let killed = Command::new("docker").args(["kill", container]).output();
                soak.kills += u64::from(killed.is_ok_and(|out| out.status.success()));
                rolls.iter_mut().filter(|roll| roll.name == site.name).for_each(|roll| roll.hit = true);
            }
        }
        rolls.retain_mut(|roll| {
            let ended = roll.child.try_wait().expect("a child");
            ended.iter().for_each(|status| rolled(roll, *status, soak));
            ended.is_none()
        });
        if now >= roll {
            roll += plan.roll_every;
            let site = &sites[dice.pick(sites.len())];
            if rolls.iter().all(|roll| roll.name != site.name) {
                begun += 1;
                let round = format!("ROUND={begun}");
                let args: Vec<&str> = site.deploy.iter().map(String::as_str).collect();
                let child = agent
                    .command(&[&args[..], &["--env", &round]].concat())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("sigil starts");
                rolls.push(Roll { name: site.name.clone(), child, hit: false });
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    rolls
}

fn rolled(roll: &Roll, status: ExitStatus, soak: &mut Soak) {
    match (status.success(), roll.hit) {
        (true, _) => soak.rolls += 1,
        (false, true) => *soak.told.entry("a release whose replica was killed failed".to_owned()).or_default() += 1,
        (false, false) => soak.findings.push(format!("a new release of {} failed: {status}", roll.name)),
    }
}

/// Containers of a deployment that run.
fn up(agent: &Agent, site: &Site) -> Vec<String> {
    let filters = [format!("label=sigil.agent={}", agent.id()), format!("label=sigil.deployment={}", site.name)];
    let all = docker(&["ps", "-q", "--filter", &filters[0], "--filter", &filters[1]]);
    all.lines().map(str::to_owned).collect()
}

/// Conversations that may stay open in a deployment, for clients that come without a session.
const SHARED: u64 = 8;

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
        for container in up(agent, site) {
            let Ok(out) = Command::new("docker").args(["top", &container]).output() else { continue };
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
