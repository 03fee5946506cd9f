//! Echo calls through the gateway. The server is this very program: in a container behind the agent, and as a process
//! of the host for the direct way and for nginx. As it ships: callers show a key, headers are checked, calls are counted.
//! The bars are the first stage of the numbers to reach: 6 CPU s for 100,000 calls, 100 us more than the direct way.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sigil_tests::{Agent, docker, eventually};

use crate::load::{Work, load};
use crate::machine::{cpu_seconds, memory_mib};
use crate::report::{Bar, Sample, Section, percentile};
use crate::{Options, ROUNDS};

const TIME: Duration = Duration::from_secs(3);
const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(10);

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

#[derive(Default)]
struct Way {
    name: &'static str,
    one: Vec<f64>,
    sixteen: Vec<f64>,
    p50: Vec<f64>,
}

/// An address of this machine that nobody listens on.
pub fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

pub fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let direct = free()?;
    let mut command = Command::new(std::env::current_exe()?);
    let _server = Held(command.args(["--echo", &direct.to_string()]).stdin(Stdio::null()).spawn()?);
    let dir = tempfile::tempdir()?;
    let agent = Agent::start();
    let tag = deploy(&agent, dir.path())?;
    let made = agent.sigil(&["key", "create", "bench", "-o", "json"]).ok().json();
    let key: &'static str = made["text"].as_str().context("no key")?.to_owned().leak();
    agent.sigil(&["policy", "set", "echo", "--access", "key"]).ok();
    let mut ways = vec![(direct, "/mcp", Way { name: "direct", ..Way::default() })];
    let nginx = free()?;
    let _nginx = start_nginx(dir.path(), nginx, direct)?;
    if _nginx.is_some() {
        ways.push((nginx, "/mcp", Way { name: "nginx", ..Way::default() }));
    } else {
        section.note("nginx is not installed: no figures beside it (apt-get install nginx-light)");
    }
    ways.push((
        SocketAddr::from((Ipv4Addr::LOCALHOST, agent.port)),
        "/mcp/echo",
        Way { name: "sigil", ..Way::default() },
    ));
    for (address, ..) in &ways {
        eventually("it listens", SOON, || std::net::TcpStream::connect(address).ok());
    }
    let mut cpu = Vec::new();
    for round in 0..ROUNDS {
        for (address, path, way) in &mut ways {
            let mut alone =
                options.runtime.block_on(load(*address, path, Work { key: Some(key), ..Work::small(1, TIME) }))?;
            way.one.push(alone.rate);
            way.p50.push(percentile(&mut alone.micros, 0.5));
            let before = cpu_seconds(agent.pid())?;
            let many =
                options.runtime.block_on(load(*address, path, Work { key: Some(key), ..Work::small(16, TIME) }))?;
            way.sixteen.push(many.rate);
            if way.name == "sigil" {
                cpu.push((cpu_seconds(agent.pid())? - before) / many.micros.len() as f64 * 1e5);
            }
        }
        section.say(&format!("round {} of {ROUNDS}", round + 1));
    }
    let Some((_, _, ours)) = ways.pop() else { anyhow::bail!("no way was measured") };
    for (_, _, other) in &ways {
        let beside = |values: &[f64]| Ok::<_, anyhow::Error>(Some((other.name, Sample::of(values.to_vec())?)));
        section.row("calls, 1 connection", "calls/s", Sample::of(ours.one.clone())?, beside(&other.one)?, Bar::None);
        section.row("calls, 16", "calls/s", Sample::of(ours.sixteen.clone())?, beside(&other.sixteen)?, Bar::None);
        section.row("a call, 1 connection, p50", "us", Sample::of(ours.p50.clone())?, beside(&other.p50)?, Bar::None);
    }
    if let Some((_, _, direct)) = ways.first() {
        let added: Vec<f64> = ours.p50.iter().zip(&direct.p50).map(|(ours, direct)| ours - direct).collect();
        section.row("of which added to the direct way", "us", Sample::of(added)?, None, Bar::AtMost(100.0));
    }
    section.row("the agent's CPU for 100,000 calls at 16", "s", Sample::of(cpu)?, None, Bar::AtMost(6.0));
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

fn deploy(agent: &Agent, dir: &Path) -> anyhow::Result<String> {
    let tag = image(dir, &["--echo", &format!("127.0.0.1:{PORT}")])?;
    let (source, port) = (format!("image:{tag}"), PORT.to_string());
    let args = ["deploy", &source, "--name", "echo", "--transport", "http", "--port", &port, "--tier", "compute"];
    agent.sigil(&args).ok();
    Ok(tag)
}

fn start_nginx(dir: &Path, listen: SocketAddr, upstream: SocketAddr) -> anyhow::Result<Option<Held>> {
    let found = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"].iter().find(|p| Path::new(p).exists());
    let Some(binary) = found else { return Ok(None) };
    let home = dir.display();
    let config = format!(
        "daemon off; worker_processes auto; pid {home}/nginx.pid; error_log {home}/nginx.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;\n\
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
