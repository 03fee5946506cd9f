//! What it ran on, and what a process used.

use std::process::Command;

use anyhow::Context as _;
use serde::Serialize;

/// The machine and the versions.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub cpu: String,
    pub memory_mib: u64,
    pub kernel: String,
    pub sigil: String,
    pub engine: String,
    pub rustc: String,
}

impl Machine {
    pub fn look() -> anyhow::Result<Self> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
        let cpu = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown CPU");
        let meminfo = std::fs::read_to_string("/proc/meminfo")?;
        let total = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:")).context("MemTotal")?;
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            cpu: cpu.trim_start_matches([':', ' ', '\t']).to_owned(),
            memory_mib: total.trim().trim_end_matches(" kB").parse::<u64>()? / 1024,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            sigil: said(Command::new(sigil_tests::binary("sigil")).arg("version")),
            engine: format!("Docker {}", said(Command::new("docker").args(["version", "-f", "{{.Server.Version}}"]))),
            rustc: said(Command::new("rustc").arg("--version")),
        })
    }
}

fn said(command: &mut Command) -> String {
    match command.output() {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// Load averages of 1, 5 and 15 minutes.
pub fn load() -> anyhow::Result<[f64; 3]> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    let mut words = text.split(' ').map(str::parse::<f64>);
    let mut next = || words.next().context("a load average").and_then(|w| Ok(w?));
    Ok([next()?, next()?, next()?])
}

/// Processor seconds of a process so far.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = fields.get(11).context("utime")?.parse::<f64>()? + fields.get(12).context("stime")?.parse::<f64>()?;
    // USER_HZ: 100 on every Linux that a program can see
    Ok(ticks / 100.0)
}

/// A line of `/proc/PID/status`, MiB: `VmRSS` or `RssAnon`.
pub fn memory_mib(pid: u32, key: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).context("a memory line")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0)
}

/// A process's descendants.
pub fn descendants(pid: u32) -> anyhow::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // one that ended meanwhile is none
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (parent, child)));
    }
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(parents.iter().filter(|(p, _)| *p == parent).map(|(_, child)| *child));
        at += 1;
    }
    found.remove(0);
    Ok(found)
}
