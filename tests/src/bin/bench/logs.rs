//! Lines of real containers: to segments on disk, to a reader, and at 64 MB/s past a reader that stalls.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde_json::Value;
use sigil_tests::{Agent, docker, eventually, fixture};

use crate::machine::{cpu_seconds, memory_mib};
use crate::report::{Bar, Sample, Section, percentile};
use crate::{Options, ROUNDS};

/// Lines of one round of the disk part: 100 MB.
const LINES: u64 = 1_000_000;
const LINE: u64 = 100;
/// What bars.md asks for, lines a second from one container to disk.
const TO_DISK: f64 = 400_000.0;
/// What it asks for from a line's printing to a reader, ms.
const TO_READER: f64 = 50.0;
/// One round of the latency part.
const WINDOW: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(120);
/// What the flood writes, MB/s.
const FLOOD: f64 = 64.0;
/// Most that memory may move during it, MB.
const FLAT: f64 = 20.0;
/// `logs.max_bytes` during the flood. With the default of 256 MiB most of it is still on disk when its reader comes back,
/// and little or nothing is lost.
const KEPT: &str = "33554432";
/// The flood's first seconds fill caches and buffers that stay.
const FILLING: Duration = Duration::from_secs(5);

pub fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let agent = Agent::start();
    to_disk(&agent, section)?;
    to_reader(&agent, section)?;
    drop(agent);
    flood(options, section)?;
    in_process(section)
}

fn deploy(agent: &Agent, name: &str, tier: &str, env: &[&str]) {
    let chatty = fixture("chatty");
    let mut args = vec!["deploy", &chatty, "--name", name, "--tier", tier, "--env", "CHATTY_LINE=100"];
    args.extend(["--env", "CHATTY_STAMP=1"]);
    args.extend(env.iter().flat_map(|e| ["--env", e]));
    agent.sigil(&args).ok();
}

/// The newest line on disk: its sequence number, its own number and its nanosecond.
fn newest(agent: &Agent, name: &str) -> Option<(u64, u64, u64)> {
    let ran = agent.sigil(&["logs", name, "--stream", "stderr", "--tail", "1", "-o", "json"]);
    let line: Value = serde_json::from_str(ran.out.lines().last()?).ok()?;
    let (number, stamp) = parts(line["line"].as_str()?)?;
    Some((line["seq"].as_u64()?, number, stamp))
}

/// Number and nanosecond of a line of `chatty`.
fn parts(line: &str) -> Option<(u64, u64)> {
    Some((line.get(..12)?.parse().ok()?, line.get(13..32)?.parse().ok()?))
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// One container writes as fast as it can, beside the same into the engine's own `local` log, which nobody follows.
fn to_disk(agent: &Agent, section: &mut Section) -> anyhow::Result<()> {
    let lines = format!("CHATTY_LINES={LINES}");
    deploy(agent, "disk", "compute", &["CHATTY_RATE=0", &lines]);
    let image = docker(&["inspect", "-f", "{{.Image}}", &agent.containers()[0]]);
    let (mut ours, mut engine, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let before = newest(agent, "disk").map_or(0, |(seq, ..)| seq);
        let (began, used) = (now_ns(), cpu_seconds(agent.pid())?);
        let session = agent.session("disk");
        let (seq, stamp) = eventually("all lines are on disk", LIMIT, || {
            let (seq, number, stamp) = newest(agent, "disk")?;
            (number == LINES - 1 && seq > before && stamp > began).then_some((seq, stamp))
        });
        cpu.push((cpu_seconds(agent.pid())? - used) / (LINES as f64 / 1e6));
        drop(session);
        let first = first_stamp(agent, seq + 1 - LINES)?;
        ours.push(LINES as f64 / ((stamp - first) as f64 / 1e9));
        engine.push(engine_local(&image, &lines)?);
        section.say(&format!("to disk, round {}: {:.0} lines/s, engine {:.0}", round + 1, ours[round], engine[round]));
    }
    agent.sigil(&["rm", "disk", "--yes"]).ok();
    let beside = Some(("engine's local log", Sample::of(engine)?));
    section.row("one container to disk, 100 B lines", "lines/s", Sample::of(ours)?, beside, Bar::AtLeast(TO_DISK));
    section.row("the agent's CPU for a million of them", "s", Sample::of(cpu)?, None, Bar::None);
    Ok(())
}

/// When the line with this sequence number was written; that it is number 0 proves that none in between is missing.
fn first_stamp(agent: &Agent, seq: u64) -> anyhow::Result<u64> {
    let grep = format!("^{:012} ", 0);
    let ran = agent.sigil(&["logs", "disk", "--stream", "stderr", "--grep", &grep, "-o", "json"]).ok();
    let mut lines = ran.out.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
    let first = lines.rfind(|l| l["seq"].as_u64() == Some(seq));
    let first = first.with_context(|| format!("line 0 does not have sequence number {seq}: lines are missing"))?;
    Ok(parts(first["line"].as_str().unwrap_or_default()).context("a stamp")?.1)
}

/// Lines a second of the same server when the engine keeps its output.
fn engine_local(image: &str, lines: &str) -> anyhow::Result<f64> {
    let stamp = "CHATTY_STAMP=1";
    let log = ["--log-driver", "local", "--log-opt", "max-size=200m", "--log-opt", "max-file=2"];
    let mut args = vec!["run", "-d", "-i", "--network", "none", "-e", "CHATTY_RATE=0", "-e", "CHATTY_LINE=100"];
    args.extend(["-e", "CHATTY_NOW=1"]);
    // the image's own label would make it the agent's, which removes what it did not start
    args.extend(["-e", stamp, "-e", lines, "--label", "sigil.agent=nobody"]);
    args.extend(log);
    args.push(image);
    let id = docker(&args);
    let at = |which: &[&str]| {
        let mut command = Command::new("docker");
        let out = command.arg("logs").args(which).arg(&id).stdout(Stdio::null()).stderr(Stdio::piped()).output();
        let text = String::from_utf8_lossy(&out.ok()?.stderr).into_owned();
        parts(text.lines().next()?)
    };
    let last = eventually("the engine has all lines", LIMIT, || {
        at(&["--tail", "1"]).filter(|(number, _)| *number == LINES - 1)
    });
    // the whole log is a hundred megabytes: its first line is enough
    let mut all = Command::new("docker").args(["logs", &id]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut first = String::new();
    BufReader::new(all.stderr.take().context("piped")?).read_line(&mut first)?;
    let _killed = all.kill();
    let _reaped = all.wait();
    docker(&["rm", "-f", &id]);
    let (number, stamp) = parts(&first).context("a numbered line")?;
    Ok((LINES - number) as f64 / ((last.1 - stamp) as f64 / 1e9))
}

/// A follower that reads: each line's arrival, and how many milliseconds it was under way.
struct Reader {
    child: Child,
    seen: Arc<Mutex<Vec<(Instant, f64)>>>,
}

impl Reader {
    fn start(agent: &Agent, name: &str) -> anyhow::Result<Self> {
        let mut command = agent.command(&["logs", name, "-f", "--tail", "0", "--stream", "stderr", "-o", "json"]);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("piped")?);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = seen.clone();
        std::thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|n| n > 0) {
                // no parser: at ten thousand lines a second it would be measured too
                let text = line.find("\"line\":\"").and_then(|at| line.get(at + 8..));
                if let Some((_, stamp)) = text.and_then(parts) {
                    let ms = now_ns().saturating_sub(stamp) as f64 / 1e6;
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), ms));
                }
                line.clear();
            }
        });
        Ok(Self { child, seen })
    }

    /// Delays of the lines that came within this time from now on.
    fn window(&self, length: Duration) -> Vec<f64> {
        let from = Instant::now();
        std::thread::sleep(length);
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|(at, _)| *at >= from).map(|(_, ms)| *ms).collect()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn to_reader(agent: &Agent, section: &mut Section) -> anyhow::Result<()> {
    deploy(agent, "read", "router", &["CHATTY_RATE=10000"]);
    let reader = Reader::start(agent, "read")?;
    let session = agent.session("read");
    eventually("lines arrive", LIMIT, || (reader.window(Duration::from_millis(100)).len() > 100).then_some(()));
    let (mut p50, mut p99, mut rate, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let used = cpu_seconds(agent.pid())?;
        let mut delays = reader.window(WINDOW);
        cpu.push((cpu_seconds(agent.pid())? - used) / WINDOW.as_secs_f64());
        rate.push(delays.len() as f64 / WINDOW.as_secs_f64());
        p50.push(percentile(&mut delays, 0.5));
        p99.push(percentile(&mut delays, 0.99));
    }
    drop(session);
    drop(reader);
    agent.sigil(&["rm", "read", "--yes"]).ok();
    section.row("lines to a reader (`sigil logs -f`)", "lines/s", Sample::of(rate)?, None, Bar::AtLeast(9_900.0));
    section.row("container line to reader at 10,000/s, p50", "ms", Sample::of(p50)?, None, Bar::None);
    section.row("container line to reader at 10,000/s, p99", "ms", Sample::of(p99)?, None, Bar::AtMost(TO_READER));
    section.row("the agent's CPU at 10,000 lines/s", "cores", Sample::of(cpu)?, None, Bar::None);
    Ok(())
}

fn flood(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let agent = &Agent::start_with(&[("SIGIL_LOGS_MAX_BYTES", KEPT)]);
    deploy(agent, "steady", "router", &["CHATTY_RATE=100"]);
    deploy(agent, "flood", "compute", &["CHATTY_RATE=640000"]);
    let steady = agent.session("steady");
    let reader = Reader::start(agent, "steady")?;
    eventually("lines arrive", LIMIT, || (!reader.window(Duration::from_millis(100)).is_empty()).then_some(()));
    let mut quiet = reader.window(Duration::from_secs(10));
    let idle = memory_mib(agent.pid(), "VmRSS")?;

    // from the flood's first line on, and nobody reads its output
    let mut command = agent.command(&["logs", "flood", "-f", "--tail", "0", "--stream", "stderr", "-o", "json"]);
    let mut stalled = command.stdout(Stdio::piped()).spawn()?;
    // the gate of its deploy made it write, too: the newest line until now is that one's, of a while ago
    let asked = now_ns();
    let flooding = agent.session("flood");
    let first = eventually("the flood begins", LIMIT, || newest(agent, "flood").filter(|line| line.2 > asked));
    let began = Instant::now();
    let length = Duration::from_secs(options.seconds);
    let (mut resident, mut anonymous) = (Vec::new(), Vec::new());
    let used = cpu_seconds(agent.pid())?;
    let beside = std::thread::scope(|scope| -> anyhow::Result<Vec<f64>> {
        let beside = scope.spawn(|| reader.window(length));
        while began.elapsed() < length {
            if began.elapsed() >= FILLING {
                resident.push(memory_mib(agent.pid(), "VmRSS")?);
                anonymous.push(memory_mib(agent.pid(), "RssAnon")?);
            }
            std::thread::sleep(Duration::from_millis(250));
        }
        beside.join().map_err(|_| anyhow::anyhow!("the reader beside failed"))
    });
    let cpu = (cpu_seconds(agent.pid())? - used) / began.elapsed().as_secs_f64();
    let last = newest(agent, "flood").context("the flood's newest line")?;
    drop(flooding);
    let lines = last.1 - first.1;
    let rate = (lines * LINE) as f64 / ((last.2 - first.2) as f64 / 1e9) / 1e6;
    let mut beside = beside?;
    let (resident, anonymous) = (Sample::of(resident)?, Sample::of(anonymous)?);
    let moved = |s: &Sample| (s.max - s.min) * 1.048_576;
    section.row(
        "flood of one container, a stalled reader",
        "MB/s",
        Sample::one(rate),
        None,
        Bar::AtLeast(FLOOD * 0.97),
    );
    section.row("agent's memory, highest less lowest", "MB", Sample::one(moved(&resident)), None, Bar::AtMost(FLAT));
    section.row("of its own (anonymous) memory", "MB", Sample::one(moved(&anonymous)), None, Bar::AtMost(FLAT));
    let before = Some(("before the flood", Sample::one(percentile(&mut quiet, 0.99))));
    let p99 = Sample::one(percentile(&mut beside, 0.99));
    section.row("another's line to its reader meanwhile, p99", "ms", p99, before, Bar::AtMost(TO_READER));
    let arrived = beside.len() as f64 / length.as_secs_f64();
    section.row("another's lines that arrived meanwhile", "lines/s", Sample::one(arrived), None, Bar::AtLeast(99.0));
    section.row("the agent's CPU meanwhile", "cores", Sample::one(cpu), None, Bar::None);
    section.note(format!(
        "{} s; agent's memory before {idle:.1} MiB, meanwhile {:.1} to {:.1} MiB; the stalled `sigil logs` had {:.1} MiB",
        options.seconds, resident.min, resident.max, memory_mib(stalled.id(), "VmRSS")?,
    ));
    let told = wake(agent, &mut stalled)?;
    section.row(
        "lines that the stalled reader misses, untold",
        "lines",
        Sample::one(told.untold as f64),
        None,
        Bar::AtMost(0.0),
    );
    section.note(format!(
        "the stalled reader then got {} lines and was told of {} lost ones: together all {} of the flood",
        told.shown,
        told.lost,
        told.shown + told.lost
    ));
    anyhow::ensure!(told.lost > 0, "a reader that stalled for the whole flood lost nothing: the flood was none");
    drop(steady);
    Ok(())
}

#[derive(Default)]
struct Told {
    shown: u64,
    lost: u64,
    untold: i64,
}

/// The stalled reader reads again, to the flood's end: what it shows and what it says is lost must be all there was.
fn wake(agent: &Agent, stalled: &mut Child) -> anyhow::Result<Told> {
    let end = newest(agent, "flood").context("the flood's newest line")?.0;
    let mut told = Told::default();
    let mut next: Option<u64> = None;
    let mut gap = 0;
    for line in BufReader::new(stalled.stdout.take().context("piped")?).lines() {
        let line: Value = serde_json::from_str(&line?)?;
        if let Some(lost) = line["gap"]["lost"].as_u64() {
            gap += lost;
            continue;
        }
        let seq = line["seq"].as_u64().context("a sequence number")?;
        let missing = seq - next.unwrap_or(seq);
        told.untold += i64::try_from(missing)? - i64::try_from(gap)?;
        told.lost += std::mem::take(&mut gap);
        told.shown += 1;
        next = Some(seq + 1);
        if seq >= end {
            break;
        }
    }
    let _killed = stalled.kill();
    let _reaped = stalled.wait();
    told.untold = told.untold.abs();
    Ok(told)
}

/// The same path without containers: what a line costs the agent.
fn in_process(section: &mut Section) -> anyhow::Result<()> {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let out = Command::new(std::env::current_exe()?).args(["--in-process-tail", "3"]).output()?;
        anyhow::ensure!(out.status.success(), "in process: {}", String::from_utf8_lossy(&out.stderr));
        rounds.push(serde_json::from_slice::<Value>(&out.stdout)?);
    }
    let figure = |key: &str| -> anyhow::Result<Sample> {
        let values: Option<Vec<f64>> = rounds.iter().map(|figures| figures[key].as_f64()).collect();
        Sample::of(values.with_context(|| format!("{key} in {rounds:?}"))?)
    };
    section.row("in process, chunks to disk", "lines/s", figure("chunks_to_disk_lines_s")?, None, Bar::None);
    section.row("in process, a core", "lines/s", figure("lines_per_core_second")?, None, Bar::AtLeast(1e6));
    section.row("read back from disk", "lines/s", figure("read_lines_s")?, None, Bar::None);
    Ok(())
}
