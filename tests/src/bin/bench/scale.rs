//! Loads of five shapes on real replicas with a scaling policy, and the simulator on the same load. A replica answers one call
//! at a time, in a time that is known, so that it is known what a number of replicas can do.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sigil_core::scale::{Point, Policy, Replay, Server, simulate};
use sigil_tests::{Agent, Dice, binary, docker};
use tokio::net::TcpStream;

use crate::Options;
use crate::report::{Bar, Sample, Section, percentile};

const NAME: &str = "paced";
const PORT: &str = "8080";
/// A call's time; a replica does one at a time.
const CALL: Duration = Duration::from_millis(50);
const CAPACITY: f64 = 60_000.0 / 50.0;
/// Length of each shape.
const LENGTH: u64 = 80;
/// The policy's time between evaluations, seconds.
const EVERY: u64 = 5;
/// The policy's target, milliseconds.
const TARGET: f64 = 400.0;
const POLICY: &str = "{preset: standard, min: 1, max: 6, requestsUp: 720, requestsDown: 400, responseTime: 400, \
                      evaluateEvery: 5, upCooldown: 5, downCooldown: 10, stabilisation: 10}";
/// Between shapes: until there is one replica again.
const REST: Duration = Duration::from_secs(90);
/// Longest answer that is waited for.
const PATIENCE: Duration = Duration::from_secs(40);

/// Calls a second at a second of a shape.
type Shape = fn(u64, &mut Dice) -> f64;

const SHAPES: [(&str, Shape); 5] = [
    ("step", |at, _| if (20..60).contains(&at) { 40.0 } else { 2.0 }),
    ("spike", |at, _| if (20..28).contains(&at) { 60.0 } else { 4.0 }),
    ("ramp", |at, _| 2.0 + at as f64 * 0.7),
    ("sine", |at, _| 26.0 - 24.0 * (at as f64 / 40.0 * std::f64::consts::TAU).cos()),
    ("noise", |_, dice| 4.0 + dice.below(45) as f64),
];

/// A call: when it began, seconds since the shape's beginning, and what it took.
type Call = (f64, Result<f64, String>);

/// What a shape did to the real ones.
struct Ran {
    calls: Vec<Call>,
    /// Replicas desired at each second.
    replicas: Vec<u32>,
    steps: Vec<(f64, u32, u32)>,
}

async fn call(address: SocketAddr) -> anyhow::Result<()> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {}});
    let arguments = json!({"call": "paced", "ms": CALL.as_millis() as u64, "alone": true});
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "count", "arguments": arguments, "_meta": meta}});
    let request = Request::post(format!("/mcp/{NAME}"))
        .header("host", address.to_string())
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", "count")
        .body(Full::<Bytes>::from(message.to_string()))?;
    let answer = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    let answer: Value = serde_json::from_slice(&answer)?;
    anyhow::ensure!(answer.get("result").is_some(), "{answer}");
    Ok(())
}

/// Calls come when they come, whether those before are answered or not.
async fn drive(address: SocketAddr, shape: Shape) -> Vec<Call> {
    let mut dice = Dice::seeded(7);
    let began = Instant::now();
    let mut running = Vec::new();
    let mut owed = 0.0;
    for second in 0..LENGTH {
        owed += shape(second, &mut dice);
        let due = owed as u32;
        owed -= f64::from(due);
        // within the second at any time, as callers do
        let mut times: Vec<f64> = (0..due).map(|_| second as f64 + dice.below(1000) as f64 / 1e3).collect();
        times.sort_by(f64::total_cmp);
        for at in times {
            tokio::time::sleep_until((began + Duration::from_secs_f64(at)).into()).await;
            running.push(tokio::spawn(async move {
                let asked = Instant::now();
                let answer = tokio::time::timeout(PATIENCE, call(address)).await;
                let took = asked.elapsed().as_secs_f64() * 1e3;
                let answer = match answer {
                    Ok(answer) => answer.map(|()| took).map_err(|e| format!("{e:#}")),
                    Err(_) => Err(format!("no answer within {PATIENCE:?}")),
                };
                (at, answer)
            }));
        }
    }
    let mut calls = Vec::new();
    for task in running {
        calls.extend(task.await.ok());
    }
    calls
}

fn history(agent: &Agent) -> anyhow::Result<Vec<Value>> {
    let all = agent.sigil(&["scaling", "history", NAME, "--changes", "-n", "500", "-o", "json"]).ok().json();
    Ok(all.as_array().context("no list")?.clone())
}

fn desired(agent: &Agent) -> Option<u32> {
    agent.ls(NAME)?["desired"].as_u64()?.try_into().ok()
}

fn one(options: &Options, agent: &Agent, shape: Shape) -> anyhow::Result<Ran> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, agent.port));
    let (began, wall) = (Instant::now(), jiff::Timestamp::now());
    let driving = options.runtime.spawn(async move { drive(address, shape).await });
    let mut replicas = Vec::new();
    while began.elapsed().as_secs() < LENGTH {
        let second = began.elapsed().as_secs() as usize;
        let now = desired(agent).context("it is gone")?;
        while replicas.len() <= second {
            replicas.push(now);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let calls = options.runtime.block_on(driving)?;
    let mut steps = Vec::new();
    for decision in history(agent)?.iter().rev() {
        let at: jiff::Timestamp = decision["at"].as_str().context("no time")?.parse()?;
        let number = |key: &str| decision[key].as_u64().and_then(|n| u32::try_from(n).ok()).context("no number");
        let (from, to) = (number("from")?, number("to")?);
        if at >= wall && from != to {
            steps.push((at.duration_since(wall).as_secs_f64(), from, to));
        }
    }
    Ok(Ran { calls, replicas, steps })
}

/// The simulator's replicas at each second, for the calls that came.
fn simulated(policy: &Policy, calls: &[Call]) -> Vec<u32> {
    let trace: Vec<Point> = (0..LENGTH)
        .map(|second| {
            let came = calls.iter().filter(|(at, _)| *at as u64 == second).count();
            Point { at: second as f64, requests: came as f64 * 60.0 }
        })
        .collect();
    let server = Server { capacity: CAPACITY, time_ms: CALL.as_secs_f64() * 1e3, start_seconds: 2.0 };
    let ran = simulate(&Replay::new(policy, server), &trace);
    let at = |second: u64| ran.ticks.iter().rev().find(|tick| tick.at <= second as f64).map_or(1, |t| t.replicas);
    (0..LENGTH).map(at).collect()
}

/// How far two curves are apart, where one may be as much earlier or later as an evaluation comes.
fn apart(real: &[u32], other: &[u32]) -> u32 {
    let slack = EVERY as usize * 2;
    let near = |at: usize, value: u32| {
        let (from, to) = (at.saturating_sub(slack), (at + slack).min(other.len().saturating_sub(1)));
        other[from..=to].iter().map(|o| o.abs_diff(value)).min().unwrap_or(0)
    };
    real.iter().enumerate().map(|(at, value)| near(at, *value)).max().unwrap_or(0)
}

/// Seconds from a moment until 95 of 100 calls of each later second, up to `until`, are answered in time.
fn calm(calls: &[Call], from: u64, until: u64) -> f64 {
    let slow = |second: u64| {
        let mut took: Vec<f64> = calls
            .iter()
            .filter(|(at, _)| *at as u64 == second)
            .map(|(_, took)| *took.as_ref().unwrap_or(&f64::INFINITY))
            .collect();
        !took.is_empty() && percentile(&mut took, 0.95) > TARGET
    };
    (from..until).rev().find(|second| slow(*second)).map_or(0.0, |last| (last + 1 - from) as f64)
}

pub fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let policy = Policy::read("policy", POLICY, None)?;
    let agent = Agent::start();
    let dir = tempfile::tempdir()?;
    std::fs::copy(binary("count-server"), dir.path().join("server"))?;
    let dockerfile = format!(
        "FROM sigil-base/python\nCOPY server /server\nUSER 10001:10001\nCMD [\"/server\", \"stateless\", \"{PORT}\"]\n"
    );
    std::fs::write(dir.path().join("Dockerfile"), dockerfile)?;
    let tag = format!("sigil-bench-scale:{}", std::process::id());
    docker(&["build", "-q", "-t", &tag, &dir.path().to_string_lossy()]);
    let source = format!("image:{tag}");
    agent.sigil(&["deploy", &source, "--name", NAME, "--transport", "http", "--port", PORT]).ok();
    agent.sigil(&["policy", "set", NAME, "--access", "anonymous"]).ok();
    let file = dir.path().join("scaling.yaml");
    std::fs::write(&file, policy.to_yaml())?;
    agent.sigil(&["scaling", "set", NAME, "--file", &file.to_string_lossy()]).ok();
    let (least, most) = policy.awake();
    let (mut outside, mut flapped, mut failed, mut all) = (0_u32, 0_u32, 0_usize, 0_usize);
    for (name, shape) in SHAPES {
        let rested = Instant::now();
        while desired(&agent) != Some(1) && rested.elapsed() < REST {
            std::thread::sleep(Duration::from_secs(1));
        }
        anyhow::ensure!(desired(&agent) == Some(1), "it does not come back to one replica within {REST:?}");
        let ran = one(options, &agent, shape)?;
        outside += ran.replicas.iter().filter(|n| !(least..=most).contains(*n)).count() as u32;
        for pair in ran.steps.windows(2) {
            let [(at, from, to), (next, before, after)] = pair else { continue };
            let turned = (to > from) != (after > before);
            let cooldown = if after > before { policy.up_cooldown } else { policy.down_cooldown };
            flapped += u32::from(turned && next - at < f64::from(cooldown) - 0.5);
        }
        all += ran.calls.len();
        let wrong: Vec<&String> = ran.calls.iter().filter_map(|(_, took)| took.as_ref().err()).collect();
        failed += wrong.len();
        if let Some(first) = wrong.first() {
            section.note(format!("{name}: {} calls failed, the first: {first}", wrong.len()));
        }
        let beside = simulated(&policy, &ran.calls);
        let peak = |curve: &[u32]| f64::from(curve.iter().copied().max().unwrap_or(0));
        let simulator = Some(("simulator", Sample::one(peak(&beside))));
        section.row(&format!("{name}: most replicas"), "", Sample::one(peak(&ran.replicas)), simulator, Bar::None);
        let difference = f64::from(apart(&ran.replicas, &beside)).max((peak(&ran.replicas) - peak(&beside)).abs());
        let what = format!("{name}: replicas apart from the simulator's");
        section.row(&what, "", Sample::one(difference), None, Bar::AtMost(1.0));
        if name == "step" {
            let seconds = Sample::one(calm(&ran.calls, 20, 60));
            let bar = Bar::AtMost((EVERY * 2) as f64);
            section.row("step: until p95 is back under its target", "s", seconds, None, bar);
        }
        let took: Vec<String> = ran.steps.iter().map(|(at, from, to)| format!("{from}->{to} at {at:.0} s")).collect();
        section.note(format!(
            "{name}: {}; real {:?}, simulated {:?}",
            took.join(", "),
            thin(&ran.replicas),
            thin(&beside)
        ));
        section.say(&format!("{name} is done"));
    }
    section.row("replicas outside of the bounds", "s", Sample::one(outside.into()), None, Bar::AtMost(0.0));
    section.row("reversals within a cool-down", "", Sample::one(flapped.into()), None, Bar::AtMost(0.0));
    section.row(&format!("calls that failed, of {all}"), "", Sample::one(failed as f64), None, Bar::AtMost(0.0));
    agent.sigil(&["rm", NAME, "--yes"]).ok();
    docker(&["rmi", "-f", &tag]);
    Ok(())
}

/// Every fifth second.
fn thin(curve: &[u32]) -> Vec<u32> {
    curve.iter().step_by(EVERY as usize).copied().collect()
}
