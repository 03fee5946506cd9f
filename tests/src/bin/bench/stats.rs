//! What containers use: the kernel's files as the agent reads them, beside the engine's own figures of the same moment, and
//! what either costs.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use sigil_agent::sample::figures;
use sigil_core::cgroup::Reading;
use sigil_tests::docker;
use sigil_tests::engine::{SHELL, import_shell};

use crate::machine::{cpu_seconds, descendants};
use crate::report::{Bar, Sample, Section, percentile};
use crate::{Options, ROUNDS};

const CONTAINERS: usize = 50;
/// Of them compute all the time, at a tenth of a core each.
const BUSY: usize = 10;
/// Of them talk to each other over a network.
const TALKING: usize = 4;
/// Passes over all containers through the files, for each one through the engine: it is that much cheaper.
const PASSES: u32 = 20;

struct Made(Vec<String>);

impl Drop for Made {
    fn drop(&mut self) {
        let mut command = Command::new("docker");
        // what cannot be removed is seen with `docker ps`
        let _ = command.args(["rm", "-f", "-v"]).args(&self.0).output();
    }
}

/// What each container holds: figures of a few pages say nothing, since the kernel counts by the 32.
const FILL: &str = "busybox dd if=/dev/zero of=/dev/shm/x bs=1M count=24 2>/dev/null";

pub fn run(_: &Options, section: &mut Section) -> anyhow::Result<()> {
    if !Command::new("docker").args(["image", "inspect", SHELL]).output()?.status.success() {
        import_shell("unix:///var/run/docker.sock");
    }
    let mut made = Made(Vec::new());
    for n in 0..CONTAINERS {
        let (network, script) = match n {
            n if n < BUSY => ("none", "while :; do :; done"),
            n if networked(n) => ("bridge", "while :; do busybox wget -q -O /dev/null -T 1 http://192.0.2.1/; done"),
            _ => ("none", "while :; do busybox sleep 1000; done"),
        };
        let script = format!("{FILL}; {script}");
        let limits = ["--cpus", "0.1", "--memory", "64m"];
        let what = ["--entrypoint", "/bin/sh", SHELL, "-c", &script];
        made.0.push(docker(&[&["run", "-d", "--network", network], &limits[..], &what[..]].concat()));
    }
    let pid = |id: &String| docker(&["inspect", "-f", "{{.State.Pid}}", id]).parse();
    let pids: Vec<u32> = made.0.iter().map(pid).collect::<Result<_, _>>()?;
    std::thread::sleep(Duration::from_secs(5));
    let daemons = daemons()?;
    let (mut ours_ms, mut theirs_ms) = (Vec::new(), Vec::new());
    let mut apart: HashMap<&str, Vec<f64>> = HashMap::new();
    for _ in 0..ROUNDS {
        let before = cpu_seconds(std::process::id())?;
        for _ in 0..PASSES {
            for (n, pid) in pids.iter().enumerate() {
                anyhow::ensure!(figures(*pid, networked(n)).is_some(), "a container's files cannot be read");
            }
        }
        ours_ms.push((cpu_seconds(std::process::id())? - before) * 1e3 / f64::from(PASSES));
        let before = total(&daemons)?;
        for (n, (id, pid)) in made.0.iter().zip(&pids).enumerate() {
            let read = || figures(*pid, networked(n)).ok_or_else(|| anyhow::anyhow!("a container has ended"));
            let first = read()?;
            let told = asked(id)?;
            let last = read()?;
            // what was used in between is nobody's error: only what lies outside of both readings is
            let mut off = |what, low: u64, high: u64, told: u64| {
                let beyond = low.saturating_sub(told).max(told.saturating_sub(high));
                apart.entry(what).or_default().push(beyond as f64 / told.max(1) as f64 * 100.0);
            };
            let number = |path: &str| told.pointer(path).and_then(Value::as_u64);
            let cpu = number("/cpu_stats/cpu_usage/total_usage").unwrap_or(0) / 1000;
            off("CPU", first.cpu_micros, last.cpu_micros, cpu);
            let cache = number("/memory_stats/stats/total_inactive_file");
            let cache = cache.or_else(|| number("/memory_stats/stats/inactive_file")).unwrap_or(0);
            let memory = number("/memory_stats/usage").unwrap_or(0).saturating_sub(cache);
            off("memory", first.memory.min(last.memory), first.memory.max(last.memory), memory);
            if networked(n) {
                let all = told["networks"].as_object().into_iter().flatten();
                let of = |network: &Value, name: &str| network[name].as_u64().unwrap_or(0);
                let sum = all.map(|(_, network)| of(network, "rx_bytes") + of(network, "tx_bytes")).sum();
                off("network", carried(&first), carried(&last), sum);
            }
        }
        theirs_ms.push((total(&daemons)? - before) * 1e3);
    }
    for what in ["CPU", "memory", "network"] {
        let values = apart.get_mut(what).ok_or_else(|| anyhow::anyhow!("no {what} was compared"))?;
        let worst = percentile(values, 1.0);
        section.row(
            &format!("{what}: largest difference to the engine"),
            "%",
            Sample::one(worst),
            None,
            Bar::AtMost(2.0),
        );
    }
    let beside = Some(("the engine", Sample::of(theirs_ms)?));
    section.row("CPU time for 50 containers, once", "ms", Sample::of(ours_ms)?, beside, Bar::RatioAtMost(0.1));
    section.note("the engine's is that of its daemon and of containerd, asked one-shot, without the client's own");
    Ok(())
}

/// The engine's figures of a container, asked for as its API has it for a single reading.
fn asked(id: &str) -> anyhow::Result<Value> {
    let mut socket = UnixStream::connect("/var/run/docker.sock")?;
    write!(socket, "GET /v1.41/containers/{id}/stats?stream=false&one-shot=true HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok(serde_json::from_str(body)?)
}

fn carried(reading: &Reading) -> u64 {
    reading.received_bytes + reading.sent_bytes
}

fn networked(n: usize) -> bool {
    (BUSY..BUSY + TALKING).contains(&n)
}

/// The engine's daemon, and what it runs that is no container.
fn daemons() -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for pid in descendants(1)? {
        // one that ended meanwhile is none
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if ["dockerd", "containerd"].contains(&name.trim()) {
            found.push(pid);
        }
    }
    anyhow::ensure!(!found.is_empty(), "there is no dockerd here whose CPU could be read");
    Ok(found)
}

fn total(pids: &[u32]) -> anyhow::Result<f64> {
    pids.iter().map(|pid| cpu_seconds(*pid)).sum()
}
