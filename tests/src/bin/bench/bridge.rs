//! Echo calls to a stdio server through what makes one reachable over HTTP: Sigil, whose server is in a container, and
//! the bridges that people use, whose server is a process of the host. The server is this very program, over its pipes,
//! so that the bridges are measured and not what is behind them.
//!
//! `scripts/bench` installs the peers and says where in `SIGIL_BENCH_PEERS`; without one there are no figures beside.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sigil_tests::{Agent, docker, eventually};

use crate::gateway::{Held, free, image};
use crate::load::{Load, MIRROR, Work, work};
use crate::machine::{cpu_seconds, descendants, memory_mib};
use crate::report::{Bar, Sample, Section, percentile};
use crate::{Options, ROUNDS};

const TIME: Duration = Duration::from_secs(3);
/// A start of Node on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// Longest measurement, opening and ending of its sessions included.
const LIMIT: Duration = Duration::from_secs(120);
const SIZES: [usize; 3] = [1, 16, 128];
/// So many sessions and processes one replica holds.
const SESSIONS: u32 = 300;
/// A server process is gone so soon after its session.
const GONE: Duration = Duration::from_secs(20);
/// Processes that are as many for so long stay as many.
const CALM: Duration = Duration::from_secs(3);
const SUPERGATEWAY: &str = "supergateway";
/// bars.md, of another day: for orientation.
const AGENTGATEWAY_AT_16: f64 = 9_431.0;

/// A way to a stdio server.
struct Bridge {
    name: &'static str,
    address: SocketAddr,
    path: &'static str,
    /// The bridge's own processes; a server's are not its own.
    own: Vec<u32>,
    /// Whose descendants the servers are.
    root: u32,
    /// How many there are without a session.
    idle: usize,
    rates: [Vec<f64>; SIZES.len()],
    p50: Vec<f64>,
    cpu: Vec<f64>,
    resident: Vec<f64>,
    servers: Vec<f64>,
    large: Vec<f64>,
    /// Why a megabyte does not go through.
    refused: Option<String>,
    _held: Option<Held>,
}

impl Bridge {
    fn new(name: &'static str, address: SocketAddr, path: &'static str, own: Vec<u32>, root: u32) -> Self {
        Self {
            name,
            address,
            path,
            own,
            root,
            idle: 0,
            rates: Default::default(),
            p50: Vec::new(),
            cpu: Vec::new(),
            resident: Vec::new(),
            servers: Vec::new(),
            large: Vec::new(),
            refused: None,
            _held: None,
        }
    }

    fn cpu(&self) -> anyhow::Result<f64> {
        self.own.iter().map(|pid| cpu_seconds(*pid)).sum()
    }

    /// Does so much, and looks at the bridge while all sessions are open: its resident memory, and how many servers run.
    fn go(&self, what: Work) -> anyhow::Result<(Load, f64, usize)> {
        let look = || -> anyhow::Result<(f64, usize)> {
            let resident = self.own.iter().map(|pid| memory_mib(*pid, "VmRSS")).sum::<anyhow::Result<f64>>()?;
            Ok((resident, descendants(self.root)?.len()))
        };
        let work = async { tokio::time::timeout(LIMIT, work(self.address, self.path, what, look)).await };
        // one thread is enough for the clients of any bridge, and leaves it more of the cores than several do, which wake
        // each other
        let clients = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outcome = clients.block_on(work);
        let (load, seen) = outcome.with_context(|| format!("{} took longer than {LIMIT:?}", self.name))??;
        let (resident, servers) = seen?;
        Ok((load, resident, servers))
    }

    /// Waits until its processes are this few and stay as many (one that waits for the next session starts a moment after
    /// another was taken), or long enough. Answers how many there are.
    fn settled(&self, few: usize) -> anyhow::Result<usize> {
        let deadline = Instant::now() + GONE;
        let (mut last, mut since) = (descendants(self.root)?.len(), Instant::now());
        loop {
            let count = descendants(self.root)?.len();
            if count != last {
                (last, since) = (count, Instant::now());
            }
            if (count <= few && since.elapsed() > CALM) || Instant::now() > deadline {
                return Ok(count);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn round(&mut self) -> anyhow::Result<()> {
        for (at, connections) in SIZES.into_iter().enumerate() {
            let before = self.cpu()?;
            let (mut load, resident, servers) = self.go(Work::small(connections, TIME))?;
            self.rates[at].push(load.rate);
            match connections {
                1 => self.p50.push(percentile(&mut load.micros, 0.5) / 1000.0),
                16 => self.cpu.push((self.cpu()? - before) / load.micros.len() as f64 * 1e5),
                _ => {
                    self.resident.push(resident);
                    self.servers.push(servers.saturating_sub(self.idle) as f64);
                }
            }
        }
        if self.refused.is_none() {
            let large = Work { connections: 16, time: TIME, tool: MIRROR, bytes: 1 << 20, key: None };
            match self.go(large) {
                Ok((load, ..)) => self.large.push(load.rate),
                Err(error) => self.refused = Some(format!("{error:#}")),
            }
        }
        Ok(())
    }
}

pub fn run(_: &Options, section: &mut Section) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = Agent::start();
    let (tag, ours) = deploy(&agent, dir.path())?;
    let mut bridges = Vec::new();
    for peer in [supergateway(dir.path())?, mcp_proxy()?] {
        match peer {
            Ok(bridge) => bridges.push(bridge),
            Err(missing) => section.note(missing),
        }
    }
    bridges.push(ours);
    for bridge in &mut bridges {
        eventually("it listens", SOON, || std::net::TcpStream::connect(bridge.address).ok());
        let first = bridge.go(Work::small(1, Duration::from_millis(300)));
        first.with_context(|| format!("{} does not work", bridge.name))?;
        // a process that waits for the next session, or one that all share
        bridge.idle = bridge.settled(1)?;
    }
    for round in 0..ROUNDS {
        for bridge in &mut bridges {
            bridge.round()?;
        }
        section.say(&format!("round {} of {ROUNDS}", round + 1));
    }
    let left: Vec<usize> =
        bridges.iter().map(|b| Ok(b.settled(b.idle)?.saturating_sub(b.idle))).collect::<anyhow::Result<_>>()?;
    rows(section, &bridges, &left)?;
    agent.sigil(&["rm", "echo", "--yes"]).ok();
    docker(&["rmi", "-f", &tag]);
    Ok(())
}

fn rows(section: &mut Section, bridges: &[Bridge], left: &[usize]) -> anyhow::Result<()> {
    let Some((ours, peers)) = bridges.split_last() else { anyhow::bail!("no bridge was measured") };
    let sample = |values: &[f64]| Sample::of(values.to_vec());
    let other = |peer: Option<&Bridge>, of: fn(&Bridge) -> &[f64]| -> anyhow::Result<Option<(&'static str, Sample)>> {
        let peer = peer.filter(|peer| !of(peer).is_empty());
        peer.map(|peer| Ok((peer.name, Sample::of(of(peer).to_vec())?))).transpose()
    };
    let beside: Vec<Option<&Bridge>> = if peers.is_empty() { vec![None] } else { peers.iter().map(Some).collect() };
    for (at, peer) in beside.into_iter().enumerate() {
        // what is a bar without a peer is one once
        let bar = |bar: Bar| if at == 0 { bar } else { Bar::None };
        let least = if peer.is_some_and(|p| p.name == SUPERGATEWAY) { Bar::RatioAtLeast(20.0) } else { Bar::None };
        let calls = "calls/s";
        section.row("calls, 1 session", calls, sample(&ours.rates[0])?, other(peer, |b| &b.rates[0])?, Bar::None);
        section.row("calls, 16", calls, sample(&ours.rates[1])?, other(peer, |b| &b.rates[1])?, least);
        section.row("calls, 128", calls, sample(&ours.rates[2])?, other(peer, |b| &b.rates[2])?, Bar::None);
        let what = "a call, 1 session, p50";
        section.row(what, "ms", sample(&ours.p50)?, other(peer, |b| &b.p50)?, bar(Bar::AtMost(0.15)));
        let what = "the bridge's own CPU for 100,000 calls at 16";
        section.row(what, "s", sample(&ours.cpu)?, other(peer, |b| &b.cpu)?, bar(Bar::AtMost(6.0)));
        let what = "the bridge's own resident memory at 128";
        section.row(what, "MiB", sample(&ours.resident)?, other(peer, |b| &b.resident)?, bar(Bar::AtMost(60.0)));
        let what = "calls of 1 MiB, echoed, 16 sessions";
        section.row(what, calls, sample(&ours.large)?, other(peer, |b| &b.large)?, bar(Bar::AtLeast(200.0)));
        let what = "server processes for 128 sessions";
        section.row(what, "processes", sample(&ours.servers)?, other(peer, |b| &b.servers)?, Bar::None);
    }
    for (bridge, left) in bridges.iter().zip(left) {
        let bar = if bridge.name == ours.name { Bar::AtMost(0.0) } else { Bar::None };
        section.row(
            &format!("processes left by ended sessions, {}", bridge.name),
            "",
            Sample::one(*left as f64),
            None,
            bar,
        );
    }
    for bridge in bridges {
        if let Some(why) = &bridge.refused {
            section.note(format!("{}: 1 MiB does not go through: {why}", bridge.name));
        }
    }
    let at_16 = Sample::of(ours.rates[1].clone())?.median;
    section.note(format!(
        "agentgateway did {AGENTGATEWAY_AT_16} calls/s at 16 on another day: ours is {:.2} times that, for orientation",
        at_16 / AGENTGATEWAY_AT_16
    ));
    section.note(
        "own: ours the agent and the container's init, theirs the bridge; the servers' processes are no part of it",
    );
    Ok(())
}

/// The agent with the server in a container.
fn deploy(agent: &Agent, dir: &Path) -> anyhow::Result<(String, Bridge)> {
    let tag = image(dir, &["--echo-stdio"])?;
    let manifest = dir.join("mcp.yaml");
    std::fs::write(&manifest, format!("name: echo\ntransport: stdio\nsessions: {{max: {SESSIONS}}}\n"))?;
    let (source, manifest) = (format!("image:{tag}"), manifest.to_string_lossy().into_owned());
    let args = ["deploy", &source, "--name", "echo", "--manifest", &manifest, "--tier", "compute"];
    agent.sigil(&[&args[..], &["--", "/echo", "--echo-stdio"]].concat()).ok();
    let container = agent.containers().pop().context("a container")?;
    let init: u32 = docker(&["inspect", "-f", "{{.State.Pid}}", &container]).parse()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, agent.port));
    Ok((tag, Bridge::new("sigil", address, "/mcp/echo", vec![agent.pid(), init], init)))
}

/// A peer, or why there is none.
type Peer = Result<Bridge, String>;

fn peers() -> PathBuf {
    std::env::var_os("SIGIL_BENCH_PEERS").map(PathBuf::from).unwrap_or_default()
}

fn missing(name: &str) -> String {
    format!(
        "{name} is not installed: no figures beside it (scripts/bench installs it where npm and PyPI can be reached)"
    )
}

/// It listens on every address of the machine: this keeps it to the loopback one.
const LOOPBACK: &str = "const { Server } = require('net');\n\
    const listen = Server.prototype.listen;\n\
    Server.prototype.listen = function (port, ...rest) {\n\
    \x20 return listen.call(this, { port: Number(port), host: '127.0.0.1' }, ...rest.filter((r) => typeof r === 'function'));\n\
    };\n";

fn supergateway(dir: &Path) -> anyhow::Result<Peer> {
    let script = peers().join("node_modules/supergateway/dist/index.js");
    if !script.exists() {
        return Ok(Err(missing(SUPERGATEWAY)));
    }
    let (preload, address) = (dir.join("loopback.cjs"), free()?);
    std::fs::write(&preload, LOOPBACK)?;
    let server = format!("{} --echo-stdio", std::env::current_exe()?.display());
    let mut command = Command::new("node");
    command.arg("--require").arg(preload).arg(script);
    command.args(["--stdio", &server, "--outputTransport", "streamableHttp", "--stateful", "--logLevel", "none"]);
    command.args(["--port", &address.port().to_string()]);
    start(SUPERGATEWAY, "/mcp", address, command).map(Ok)
}

fn mcp_proxy() -> anyhow::Result<Peer> {
    let program = peers().join("venv/bin/mcp-proxy");
    if !program.exists() {
        return Ok(Err(missing("mcp-proxy")));
    }
    let address = free()?;
    let mut command = Command::new(program);
    command.args(["--host", "127.0.0.1", "--port", &address.port().to_string(), "--pass-environment", "--"]);
    command.arg(std::env::current_exe()?).arg("--echo-stdio");
    start("mcp-proxy", "/mcp/", address, command).map(Ok)
}

fn start(name: &'static str, path: &'static str, address: SocketAddr, mut command: Command) -> anyhow::Result<Bridge> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let pid = child.id();
    let mut bridge = Bridge::new(name, address, path, vec![pid], pid);
    bridge._held = Some(Held(child));
    Ok(bridge)
}
