//! Echo calls through the gateway. The server is this very program: in a container behind the agent, and as a process
//! of the host for the direct way and for nginx. As it ships: callers show a key, headers are checked, calls are counted.
//! The bars are the first stage of the numbers to reach, as ratios, for the machine's speed drifts by a factor of two: 6 CPU
//! s for 100,000 calls where nginx needs 2.05, 100 us more than the direct way where nginx needs 33.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sigil_tests::{Agent, docker, eventually};

use crate::load::{MIRROR, Work, load};
use crate::machine::{cpu_seconds, descendants, memory_mib};
use crate::report::{Bar, Sample, Section, percentile};
use crate::{Options, ROUNDS};

const TIME: Duration = Duration::from_secs(2);
const PORT: u16 = 8080;
pub const SOON: Duration = Duration::from_secs(10);

/// A child that ends with this.
pub struct Held(pub Child);

impl Drop for Held {
    fn drop(&mut self) {
        // nginx's workers end with their master only when it is told to end, not when it is killed
        let pid = rustix::process::Pid::from_child(&self.0);
        let _told = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + SOON;
        while self.0.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        // one that waits for its connections to end waits for ever
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// The first stage's CPU, and the time that a call gains, over nginx's own (shared/bars.md, the same run).
const CPU_OF_NGINX: f64 = 2.9;
const ADDED_OF_NGINX: f64 = 3.0;
/// Sessions at once.
const SIZES: [usize; 4] = [1, 16, 128, 1024];
const RATES: [&str; 4] = ["calls, 1 connection", "calls, 16", "calls, 128", "calls, 1,024"];

struct Way {
    name: &'static str,
    address: SocketAddr,
    path: &'static str,
    /// Whose CPU is counted.
    own: Vec<u32>,
    rates: [Vec<f64>; 4],
    p50: Vec<f64>,
    p99: Vec<f64>,
    cpu: Vec<f64>,
    large: Vec<f64>,
}

impl Way {
    fn new(name: &'static str, address: SocketAddr, path: &'static str, own: Vec<u32>) -> Self {
        let none = Vec::new;
        let rates = Default::default();
        Self { name, address, path, own, rates, p50: none(), p99: none(), cpu: none(), large: none() }
    }

    fn cpu(&self) -> anyhow::Result<f64> {
        self.own.iter().map(|pid| cpu_seconds(*pid)).sum()
    }

    fn round(&mut self, options: &Options, key: &'static str) -> anyhow::Result<()> {
        let go = |work| options.runtime.block_on(load(self.address, self.path, Work { key: Some(key), ..work }));
        for (at, connections) in SIZES.into_iter().enumerate() {
            let before = self.cpu()?;
            let mut load = go(Work::small(connections, TIME))?;
            self.rates[at].push(load.rate);
            match connections {
                1 => self.p50.push(percentile(&mut load.micros, 0.5)),
                16 => {
                    self.cpu.push((self.cpu()? - before) / load.micros.len() as f64 * 1e5);
                    self.p99.push(percentile(&mut load.micros, 0.99));
                }
                _ => {}
            }
        }
        let large = Work { tool: MIRROR, bytes: 1 << 20, ..Work::small(16, TIME) };
        self.large.push(go(large)?.rate);
        Ok(())
    }
}

/// An address of this machine that nobody listens on.
pub fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

pub fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let direct = free()?;
    let mut command = Command::new(std::env::current_exe()?);
    let server = Held(command.args(["--echo", &direct.to_string()]).stdin(Stdio::null()).spawn()?);
    let dir = tempfile::tempdir()?;
    let agent = Agent::start();
    let tag = deploy(&agent, dir.path(), 1)?;
    let made = agent.sigil(&["key", "create", "bench", "-o", "json"]).ok().json();
    let key: &'static str = made["text"].as_str().context("no key")?.to_owned().leak();
    agent.sigil(&["policy", "set", "echo", "--access", "key"]).ok();
    let mut ways = vec![Way::new("direct", direct, "/mcp", vec![server.0.id()])];
    let address = free()?;
    let nginx = start_nginx(dir.path(), address, direct)?;
    ways.push(Way::new("sigil", SocketAddr::from((Ipv4Addr::LOCALHOST, agent.port)), "/mcp/echo", vec![agent.pid()]));
    match &nginx {
        Some(nginx) => ways.insert(1, Way::new("nginx", address, "/mcp", vec![nginx.0.id()])),
        None => section.note("nginx is not installed: no figures beside it (apt-get install nginx-light)"),
    }
    for way in &mut ways {
        eventually("it listens", SOON, || std::net::TcpStream::connect(way.address).ok());
        if way.name == "nginx" {
            // its workers do the work
            way.own = descendants(way.own[0])?;
        }
    }
    for round in 0..ROUNDS {
        for way in &mut ways {
            way.round(options, key)?;
        }
        section.say(&format!("round {} of {ROUNDS}", round + 1));
    }
    let Some(ours) = ways.pop() else { anyhow::bail!("no way was measured") };
    for other in &ways {
        let beside = |values: &[f64]| Ok::<_, anyhow::Error>(Some((other.name, Sample::of(values.to_vec())?)));
        let sample = |values: &[f64]| Sample::of(values.to_vec());
        for (at, what) in RATES.into_iter().enumerate() {
            section.row(what, "calls/s", sample(&ours.rates[at])?, beside(&other.rates[at])?, Bar::None);
        }
        section.row("calls of 1 MiB, echoed, 16", "calls/s", sample(&ours.large)?, beside(&other.large)?, Bar::None);
        section.row("a call, 1 connection, p50", "us", sample(&ours.p50)?, beside(&other.p50)?, Bar::None);
        section.row("a call, 16, p99", "us", sample(&ours.p99)?, beside(&other.p99)?, Bar::None);
        if other.name == "nginx" {
            let bar = Bar::RatioAtMost(CPU_OF_NGINX);
            section.row("its own CPU for 100,000 calls at 16", "s", sample(&ours.cpu)?, beside(&other.cpu)?, bar);
        }
    }
    if let [direct, nginx] = ways.as_slice() {
        let added = |way: &Way| Sample::of(way.p50.iter().zip(&direct.p50).map(|(way, direct)| way - direct));
        let beside = Some(("nginx", added(nginx)?));
        let bar = Bar::RatioAtMost(ADDED_OF_NGINX);
        section.row("added to the direct way at 1, p50", "us", added(&ours)?, beside, bar);
    }
    section.note(
        "first stage of bars.md: 6 CPU s and 100 us on a machine where nginx needs 1.9-2.2 and 31-35; goal: 2.5, 35",
    );
    let resident = memory_mib(agent.pid(), "VmRSS")?;
    section.row("the agent's resident memory afterwards", "MiB", Sample::one(resident), None, Bar::None);
    agent.sigil(&["rm", "echo", "--yes"]).ok();
    docker(&["rmi", "-f", &tag]);
    Ok(())
}

/// An image of this program on the Python base image, which every machine that runs these tests has; nothing is fetched.
pub fn image(dir: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let context = dir.join("context");
    std::fs::create_dir(&context)?;
    std::fs::copy(std::env::current_exe()?, context.join("echo"))?;
    let command = serde_json::to_string(&[&["/echo"], arguments].concat())?;
    let dockerfile = format!("FROM sigil-base/python\nCOPY echo /echo\nUSER 10001:10001\nCMD {command}\n");
    std::fs::write(context.join("Dockerfile"), dockerfile)?;
    let tag = format!("sigil-bench-echo:{}", std::process::id());
    docker(&["build", "-q", "-t", &tag, &context.to_string_lossy()]);
    Ok(tag)
}

pub fn deploy(agent: &Agent, dir: &Path, replicas: usize) -> anyhow::Result<String> {
    let tag = image(dir, &["--echo", &format!("127.0.0.1:{PORT}")])?;
    let (source, port, replicas) = (format!("image:{tag}"), PORT.to_string(), replicas.to_string());
    let args = ["deploy", &source, "--name", "echo", "--transport", "http", "--port", &port, "--tier", "compute"];
    agent.sigil(&[&args[..], &["--replicas", &replicas]].concat()).ok();
    Ok(tag)
}

pub fn start_nginx(dir: &Path, listen: SocketAddr, upstream: SocketAddr) -> anyhow::Result<Option<Held>> {
    let found = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"].iter().find(|p| Path::new(p).exists());
    let Some(binary) = found else { return Ok(None) };
    let home = dir.display();
    let config = format!(
        "daemon off; worker_processes auto; pid {home}/nginx.pid; error_log {home}/nginx.log;\n\
         events {{ worker_connections 65536; }}\n\
         http {{ access_log off; client_max_body_size 0; proxy_request_buffering off; client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;\n\
         uwsgi_temp_path {home}/u; scgi_temp_path {home}/s; keepalive_requests 1000000000;\n\
         upstream echo {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}\n\
         server {{ listen {listen}; location / {{ proxy_pass http://echo; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_buffering off; }} }} }}\n"
    );
    let path = dir.join("nginx.conf");
    std::fs::write(&path, config)?;
    let mut command = Command::new(binary);
    command.arg("-c").arg(&path).arg("-p").arg(dir).stdin(Stdio::null()).stderr(Stdio::null());
    Ok(Some(Held(command.spawn()?)))
}
