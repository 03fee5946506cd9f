//! The first call of a deployment that sleeps, made by fifty callers at once, beside the engine's own part of it: its unpause
//! of a container like it, or its start until that container's server answers by itself. No call may fail or run twice.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bollard::Docker;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use sigil_tests::{Agent, binary, docker, eventually};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use crate::Options;
use crate::gateway::{Held, free};
use crate::mcp::Piped;
use crate::report::{Bar, Sample, Section, percentile};

/// Callers at once.
const CALLERS: usize = 50;
/// What waking may cost beyond the engine's own part, milliseconds: frozen, and stopped.
const FROZEN: f64 = 5.0;
const STOPPED: f64 = 20.0;
/// Where the server listens in its container.
const PORT: u16 = 8080;
const LONG: Duration = Duration::from_secs(60);

/// What is put to sleep.
struct Case {
    transport: &'static str,
    depth: &'static str,
    state: &'static str,
    allowed: f64,
}

const CASES: [Case; 4] = [
    Case { transport: "http", depth: "paused", state: "paused", allowed: FROZEN },
    Case { transport: "stdio", depth: "paused", state: "paused", allowed: FROZEN },
    Case { transport: "http", depth: "stopped", state: "stopped", allowed: STOPPED },
    Case { transport: "stdio", depth: "stopped", state: "stopped", allowed: STOPPED },
];

pub fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let image = image(dir.path())?;
    let agent = Agent::start();
    for case in &CASES {
        one(options, section, &agent, dir.path(), &image, case)?;
    }
    drop(agent);
    docker(&["rmi", "-f", &image]);
    section.note(format!(
        "{CALLERS} callers at once, {} wakes of each; ours: from sending until the first answer is read; the engine's: its \
         API's unpause of a container with the same walls, or its start and the server's first answer as a bare process",
        options.wakes
    ));
    Ok(())
}

fn one(
    options: &Options,
    section: &mut Section,
    agent: &Agent,
    dir: &Path,
    image: &str,
    case: &Case,
) -> anyhow::Result<()> {
    let name = format!("{}-{}", case.transport, case.depth);
    let manifest = dir.join("mcp.yaml");
    let server = match case.transport {
        "http" => format!("command: [/server, stateless, \"{PORT}\"]\n"),
        _ => "command: [/server, stateless, stdio]\n".to_owned(),
    };
    std::fs::write(&manifest, format!("{server}scaling: {{min: 0, max: 1, idleTimeout: 1, sleep: {}}}\n", case.depth))?;
    let (source, manifest) = (format!("image:{image}"), manifest.to_string_lossy().into_owned());
    let args = ["deploy", &source, "--name", &name, "--manifest", &manifest, "--transport", case.transport];
    agent.sigil(&[&args[..], &["--port", "8080", "--tier", "standard", "--access", "anonymous"]].concat()).ok();
    let twin = Twin::new(image, case)?;
    let docker = Docker::connect_with_local_defaults()?;
    let (mut ours, mut theirs, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let mut asked = 0_usize;
    for round in 0..options.wakes {
        asleep(agent, &name, case.state)?;
        theirs.push(options.runtime.block_on(twin.wake(&docker, case))?);
        let woken = options.runtime.block_on(wake(agent.port, &name, round))?;
        asked += woken.len();
        ours.push(woken.first().copied().context("an answer")?);
        last.push(woken.last().copied().context("an answer")?);
    }
    let ran = ran(agent, &name)?;
    anyhow::ensure!(ran.len() == asked, "{asked} calls were answered, {} ran", ran.len());
    anyhow::ensure!(ran.values().all(|times| *times == 1), "a call ran twice");
    let limit = percentile(&mut theirs.clone(), 0.5);
    let (half, most) = (limit + case.allowed, 2.0 * (limit + case.allowed));
    let p99 = percentile(&mut ours.clone(), 0.99);
    let engine = Some(("the engine's part", Sample::of(theirs)?));
    section.row(
        &format!("{} {}: first answer, p50", case.transport, case.depth),
        "ms",
        Sample::of(ours)?,
        engine,
        Bar::AtMost(half),
    );
    section.row(
        &format!("{} {}: first answer, p99", case.transport, case.depth),
        "ms",
        Sample::one(p99),
        None,
        Bar::AtMost(most),
    );
    section.row(
        &format!("{} {}: the last of {CALLERS} answers", case.transport, case.depth),
        "ms",
        Sample::of(last)?,
        None,
        Bar::None,
    );
    agent.sigil(&["rm", &name, "--yes"]).ok();
    Ok(())
}

/// Waits until the deployment's replica sleeps.
fn asleep(agent: &Agent, name: &str, state: &str) -> anyhow::Result<()> {
    eventually(&format!("'{name}' is {state}"), LONG, || {
        let detail = agent.sigil(&["get", name, "-o", "json"]).json();
        (detail["replicas"][0]["state"] == state).then_some(())
    });
    Ok(())
}

/// Milliseconds until each of the callers had its answer, in order.
async fn wake(port: u16, name: &str, round: u32) -> anyhow::Result<Vec<f64>> {
    let ready = Arc::new(Barrier::new(CALLERS));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (ready, name) = (ready.clone(), name.to_owned());
            tokio::spawn(async move {
                let mut sender = connect(port).await?;
                ready.wait().await;
                let began = Instant::now();
                call(&mut sender, &format!("/mcp/{name}"), &format!("{round}-{caller}")).await?;
                anyhow::Ok(began.elapsed().as_secs_f64() * 1e3)
            })
        })
        .collect();
    let mut took = Vec::new();
    for caller in callers {
        took.push(caller.await??);
    }
    took.sort_by(f64::total_cmp);
    Ok(took)
}

pub async fn connect(port: u16) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // it ends with its sender
    tokio::spawn(connection);
    Ok(sender)
}

fn message(tool: &str, id: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{{"call":"{id}"}},"_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{{}},"io.modelcontextprotocol/clientInfo":{{"name":"bench","version":"1"}}}}}}}}"#
    )
}

async fn call(sender: &mut SendRequest<Full<Bytes>>, path: &str, id: &str) -> anyhow::Result<()> {
    call_of(sender, path, "count", id).await
}

/// A call of a tool of that name: the server takes any.
pub async fn call_of(sender: &mut SendRequest<Full<Bytes>>, path: &str, tool: &str, id: &str) -> anyhow::Result<()> {
    let request = Request::post(path)
        .header("host", "127.0.0.1")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", tool)
        .body(Full::from(message(tool, id)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let text = response.into_body().collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&text);
    anyhow::ensure!(status == StatusCode::OK && text.contains(&format!("\\\"{id}\\\"")), "{status}: {text}");
    Ok(())
}

/// Calls that the server ran, by the server's own word.
fn ran(agent: &Agent, name: &str) -> anyhow::Result<HashMap<String, u32>> {
    let lines = agent.sigil(&["logs", name, "--tail", "1000000", "-o", "json"]).ok().out;
    let mut ran = HashMap::new();
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        if let Some(call) = line["line"].as_str().and_then(|line| line.strip_prefix("ran ")) {
            *ran.entry(call.to_owned()).or_insert(0) += 1;
        }
    }
    Ok(ran)
}

/// A container with the walls of the deployment's, by hand: without a network of the engine's, so that its server is
/// measured as a bare process.
struct Twin {
    id: String,
    port: u16,
}

impl Twin {
    fn new(image: &str, case: &Case) -> anyhow::Result<Self> {
        let port = free()?.port();
        let way = if case.transport == "http" { port.to_string() } else { "stdio".to_owned() };
        let walls = "create -i --network none --read-only --cap-drop ALL --security-opt no-new-privileges --ipc private \
                     --log-driver local --tmpfs /tmp --tmpfs /home/app --pids-limit 512 --memory 1g --memory-swap 1g --cpus 1";
        let walls: Vec<&str> = walls.split_whitespace().collect();
        let id = docker(&[&walls[..], &[image, "/server", "stateless", &way]].concat());
        if case.depth == "paused" {
            docker(&["start", &id]);
            docker(&["pause", &id]);
        }
        Ok(Self { id, port })
    }

    /// Milliseconds of the engine's part. Afterwards it sleeps again.
    async fn wake(&self, engine: &Docker, case: &Case) -> anyhow::Result<f64> {
        let began = Instant::now();
        if case.depth == "paused" {
            engine.unpause_container(&self.id).await?;
            let took = began.elapsed().as_secs_f64() * 1e3;
            engine.pause_container(&self.id).await?;
            return Ok(took);
        }
        engine.start_container(&self.id, None).await?;
        let mut took = began.elapsed();
        let began = Instant::now();
        let mut command = Command::new(binary("count-server"));
        command.arg("stateless").stderr(Stdio::null());
        if case.transport == "http" {
            let server = Held(command.arg(self.port.to_string()).spawn()?);
            loop {
                if let Ok(mut sender) = connect(self.port).await
                    && call(&mut sender, "/", "twin").await.is_ok()
                {
                    break;
                }
                anyhow::ensure!(began.elapsed() < LONG, "the bare server does not answer");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            took += began.elapsed();
            drop(server);
        } else {
            let mut server = Piped::start(command.arg("stdio"))?;
            server.ask(&message("count", "twin"))?;
            took += began.elapsed();
        }
        let options = bollard::query_parameters::StopContainerOptions { t: Some(0), signal: None };
        engine.stop_container(&self.id, Some(options)).await?;
        Ok(took.as_secs_f64() * 1e3)
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        docker(&["rm", "-f", &self.id]);
    }
}

/// The counting server on the Python base image, which every machine that runs these tests has; nothing is fetched.
pub fn image(dir: &Path) -> anyhow::Result<String> {
    let context = dir.join("context");
    std::fs::create_dir(&context)?;
    std::fs::copy(binary("count-server"), context.join("server"))?;
    let dockerfile = "FROM sigil-base/python\nCOPY server /server\nUSER 10001:10001\nCMD [\"/server\"]\n";
    std::fs::write(context.join("Dockerfile"), dockerfile)?;
    let tag = format!("sigil-bench-wake:{}", std::process::id());
    docker(&["build", "-q", "-t", &tag, &context.to_string_lossy()]);
    Ok(tag)
}
