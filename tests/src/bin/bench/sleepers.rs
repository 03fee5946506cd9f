//! What two hundred deployments that sleep cost the agent, beside one that has none: half of them frozen, half stopped. And
//! how long a scrape of what is known of them takes.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full};

use sigil_tests::{Agent, docker, eventually};

use crate::Options;
use crate::machine::{cpu_seconds, memory_mib};
use crate::report::{Bar, Sample, Section};
use crate::wake;

/// Deployments.
const ALL: usize = 200;
/// Tools of each that were called.
const TOOLS: usize = 20;
const SCRAPES: usize = 20;
/// 20 MB in MiB.
const MEMORY: f64 = 20e6 / (1 << 20) as f64;
/// How long the agent is watched.
const WATCHED: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(180);

pub fn run(_: &Options, section: &mut Section) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let image = wake::image(dir.path())?;
    let mut agent = Agent::start();
    std::thread::sleep(Duration::from_secs(15));
    let empty = memory_mib(agent.pid(), "VmRSS")?;
    for n in 0..ALL {
        let depth = if n % 2 == 0 { "paused" } else { "stopped" };
        let manifest = dir.path().join("mcp.yaml");
        let scaling = format!("scaling: {{min: 0, max: 1, idleTimeout: 1, sleep: {depth}}}\n");
        std::fs::write(&manifest, format!("command: [/server, stateless, \"8080\"]\n{scaling}"))?;
        let (source, name, manifest) =
            (format!("image:{image}"), format!("s{n:03}"), manifest.to_string_lossy().into_owned());
        let args = ["deploy", &source, "--name", &name, "--manifest", &manifest, "--transport", "http"];
        agent.sigil(&[&args[..], &["--port", "8080", "--access", "anonymous"]].concat()).ok();
        if n % 50 == 49 {
            section.say(&format!("{} deployed", n + 1));
        }
    }
    all_asleep(&agent);
    // a minute after the last deploy its image is read for its bill of materials, once
    std::thread::sleep(Duration::from_secs(90));
    let (percent, resident) = watched(&agent)?;
    // a new process has nothing left over from two hundred deploys
    agent.terminate();
    agent.up();
    all_asleep(&agent);
    let (percent_anew, resident_anew) = watched(&agent)?;
    section.row("CPU of one core, in the agent that deployed them", "%", Sample::one(percent), None, Bar::AtMost(1.0));
    section.row("CPU of one core, in a new agent", "%", Sample::one(percent_anew), None, Bar::AtMost(1.0));
    let empty_one = || Some(("an empty agent", Sample::one(empty)));
    section.row("resident, in the agent that deployed them", "MiB", Sample::one(resident), empty_one(), Bar::None);
    let beyond = Sample::one(resident_anew - empty);
    section.row("resident, in a new agent, beyond an empty one", "MiB", beyond, empty_one(), Bar::AtMost(MEMORY));
    let scrapes = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(scraped(&agent))?;
    section.row(
        &format!("scrape of /metrics, {ALL} deployments with {TOOLS} tools each"),
        "ms",
        Sample::of(scrapes)?,
        None,
        Bar::AtMost(20.0),
    );
    section
        .note(format!("{ALL} deployments, half frozen, half stopped; watched for {} s each time", WATCHED.as_secs()));
    drop(agent);
    docker(&["rmi", "-f", &image]);
    Ok(())
}

/// Milliseconds of each scrape, once every deployment has been called by the names of so many tools.
async fn scraped(agent: &Agent) -> anyhow::Result<Vec<f64>> {
    let url = agent.url("s000");
    let port = url.split([':', '/']).filter_map(|part| part.parse::<u16>().ok()).next().context("no port")?;
    let mut sender = wake::connect(port).await?;
    for n in 0..ALL {
        for tool in 0..TOOLS {
            let (path, tool) = (format!("/mcp/s{n:03}"), format!("a_tool_with_a_name_{tool}"));
            wake::call_of(&mut sender, &path, &tool, "scraped").await?;
        }
    }
    let mut took = Vec::new();
    for _ in 0..SCRAPES {
        let began = Instant::now();
        let request = hyper::Request::get("/metrics").header("host", "127.0.0.1").body(Full::default())?;
        let response = sender.send_request(request).await?;
        anyhow::ensure!(response.status() == hyper::StatusCode::OK, "{}", response.status());
        let text = response.into_body().collect().await?.to_bytes();
        took.push(began.elapsed().as_secs_f64() * 1e3);
        let series = String::from_utf8_lossy(&text).matches("\nsigil_tool_duration_seconds_count{").count();
        anyhow::ensure!(series == ALL * TOOLS, "{series} tools are told");
    }
    Ok(took)
}

fn all_asleep(agent: &Agent) {
    eventually("all sleep", LONG, || {
        let all = agent.sigil(&["ls", "-o", "json"]).json();
        let asleep = all.as_array()?.iter().filter(|d| d["state"] == "sleeping").count();
        (asleep == ALL).then_some(())
    });
}

/// Share of a core, percent, and resident memory, MiB.
fn watched(agent: &Agent) -> anyhow::Result<(f64, f64)> {
    std::thread::sleep(Duration::from_secs(15));
    let before = cpu_seconds(agent.pid())?;
    std::thread::sleep(WATCHED);
    let used = cpu_seconds(agent.pid())? - before;
    Ok((used / WATCHED.as_secs_f64() * 100.0, memory_mib(agent.pid(), "VmRSS")?))
}
