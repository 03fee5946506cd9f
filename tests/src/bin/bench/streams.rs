//! Idle event streams: what each costs the agent, and how soon an event gets through while they are open. Beside nginx,
//! which knows nothing of MCP.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use http_body_util::BodyExt as _;
use rustix::process::{Resource, getrlimit, setrlimit};
use sigil_tests::{Agent, docker, eventually};

use crate::Options;
use crate::gateway::{Held, SOON, deploy, free, start_nginx};
use crate::load::Client;
use crate::machine::{cpu_seconds, descendants, memory_mib};
use crate::report::{Bar, Sample, Section, percentile};

/// As many as bars.md asks for; fewer where the machine lets a process have too few files.
const STREAMS: u64 = 10_000;
/// Files of a process beside its streams.
const OTHERS: u64 = 400;
/// Streams of a replica: its server may have 1,024 files (product.md).
const EACH: usize = 960;
/// How long events are timed.
const TIME: Duration = Duration::from_secs(10);
/// Memory of a stream, KiB: the first stage of bars.md.
const STREAM: f64 = 20.0;

struct Way {
    name: &'static str,
    address: SocketAddr,
    path: &'static str,
    /// Whose memory and CPU it is.
    own: Vec<u32>,
}

#[derive(Default)]
struct Cost {
    kib: f64,
    before: f64,
    session_ms: f64,
    idle_cores: f64,
    p50: f64,
    p99: f64,
}

pub fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    // children get what this has: as many files as it may
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let files = limit.maximum.unwrap_or(u64::MAX);
    // each stream is two sockets of whoever is between
    let count = usize::try_from(STREAMS.min(files.saturating_sub(OTHERS) / 2))?;
    if count < usize::try_from(STREAMS)? {
        section.note(format!("{count} streams and not {STREAMS}: a process may have {files} files here"));
    }
    let direct = free()?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    let _server = Held(command.args(["--echo", &direct.to_string()]).stdin(std::process::Stdio::null()).spawn()?);
    let dir = tempfile::tempdir()?;
    let agent = Agent::start_with(&[("SIGIL_GATEWAY_MAX_CONNECTIONS", &(count + 100).to_string())]);
    let tag = deploy(&agent, dir.path(), count.div_ceil(EACH))?;
    let made = agent.sigil(&["key", "create", "bench", "-o", "json"]).ok().json();
    let key: &'static str = made["text"].as_str().context("no key")?.to_owned().leak();
    agent.sigil(&["policy", "set", "echo", "--access", "key"]).ok();
    let mut ways = Vec::new();
    let address = free()?;
    let nginx = start_nginx(dir.path(), address, direct)?;
    match &nginx {
        Some(nginx) => {
            eventually("it listens", SOON, || std::net::TcpStream::connect(address).ok());
            ways.push(Way { name: "nginx", address, path: "/mcp", own: descendants(nginx.0.id())? });
        }
        None => section.note("nginx is not installed: no figures beside it (apt-get install nginx-light)"),
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, agent.port));
    ways.push(Way { name: "sigil", address, path: "/mcp/echo", own: vec![agent.pid()] });
    let mut costs = Vec::new();
    for way in &ways {
        let cost = options.runtime.block_on(cost(way, count, key)).with_context(|| way.name)?;
        section.say(&format!("{}: {count} streams, {:.1} KiB each", way.name, cost.kib));
        costs.push(cost);
    }
    let Some(ours) = costs.pop() else { anyhow::bail!("nothing was measured") };
    let beside = |of: fn(&Cost) -> f64| costs.first().map(|other| ("nginx", Sample::one(of(other))));
    let mut row = |what: &str, unit, of: fn(&Cost) -> f64, bar| {
        section.row(what, unit, Sample::one(of(&ours)), beside(of), bar);
    };
    row("memory of an idle stream", "KiB", |c| c.kib, Bar::AtMost(STREAM));
    row("resident memory before", "MiB", |c| c.before, Bar::None);
    row("CPU of a new session with its stream", "ms", |c| c.session_ms, Bar::None);
    row("CPU while all are idle", "cores", |c| c.idle_cores, Bar::None);
    row("an event to its reader meanwhile, p50", "us", |c| c.p50, Bar::None);
    row("an event to its reader meanwhile, p99", "us", |c| c.p99, Bar::None);
    agent.sigil(&["rm", "echo", "--yes"]).ok();
    docker(&["rmi", "-f", &tag]);
    Ok(())
}

async fn cost(way: &Way, count: usize, key: &'static str) -> anyhow::Result<Cost> {
    let resident = || way.own.iter().map(|pid| memory_mib(*pid, "VmRSS")).sum::<anyhow::Result<f64>>();
    let cpu = || way.own.iter().map(|pid| cpu_seconds(*pid)).sum::<anyhow::Result<f64>>();
    // what the first ones cost is the program's own
    let mut all = Vec::new();
    for _ in 0..20 {
        all.push(Client::open(way.address, way.path, Some(key)).await?.listen("").await?);
    }
    let (before, used) = (resident()?, cpu()?);
    for _ in 0..count {
        let opened = async { Client::open(way.address, way.path, Some(key)).await?.listen("").await };
        let so_far = all.len();
        all.push(opened.await.with_context(|| format!("after {so_far} streams"))?);
    }
    let session_ms = (cpu()? - used) * 1e3 / count as f64;
    let kib = (resident()? - before) * 1024.0 / count as f64;
    let used = cpu()?;
    tokio::time::sleep(TIME).await;
    let idle_cores = (cpu()? - used) / TIME.as_secs_f64();
    let (_client, mut events) = Client::open(way.address, way.path, Some(key)).await?.listen("?events").await?;
    let mut micros = Vec::new();
    let until = tokio::time::Instant::now() + TIME;
    while let Ok(frame) = tokio::time::timeout_at(until, events.body_mut().frame()).await {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let data = frame.context("the stream ended")??.into_data().unwrap_or_default();
        let text = String::from_utf8_lossy(&data);
        let sent = text.split("\"ns\":").nth(1).and_then(|rest| rest.split('}').next()?.parse::<u128>().ok());
        micros.extend(sent.map(|sent| now.saturating_sub(sent) as f64 / 1e3));
    }
    anyhow::ensure!(micros.len() > 100, "only {} events came", micros.len());
    let (p50, p99) = (percentile(&mut micros, 0.5), percentile(&mut micros, 0.99));
    anyhow::ensure!(all.len() == count + 20, "streams were lost");
    Ok(Cost { kib, before, session_ms, idle_cores, p50, p99 })
}
