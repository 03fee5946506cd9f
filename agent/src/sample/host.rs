//! The host, and the agent itself.

use std::path::{Path, PathBuf};
use std::time::Instant;

use sigil_core::cgroup;
use sigil_core::series::{self, Point, SECONDS};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use super::Trees;
use super::read::file;

/// What the host has and uses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Host {
    /// CPUs.
    pub cpus: usize,
    /// All CPUs together, percent of all of them.
    pub cpu_percent: f64,
    /// Load averages of 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Memory, bytes.
    pub memory_total: u64,
    /// What programs could still have, bytes.
    pub memory_available: u64,
    /// Swap, bytes.
    pub swap_total: u64,
    /// Of it used, bytes.
    pub swap_used: u64,
    /// The data directory's file system, bytes.
    pub disk_total: u64,
    /// What is free there for the agent, bytes.
    pub disk_free: u64,
    /// Its inodes; 0 on a file system without a number of them.
    pub inodes_total: u64,
    /// Of them free.
    pub inodes_free: u64,
    /// Share of the last ten seconds in which something waited for CPU, percent; `None` where the kernel does not say.
    pub pressure_cpu: Option<f64>,
    /// The same for memory.
    pub pressure_memory: Option<f64>,
    /// The same for disks.
    pub pressure_io: Option<f64>,
    /// Bytes received over all interfaces but loopback. Counter.
    pub received_bytes: u64,
    /// Bytes sent. Counter.
    pub sent_bytes: u64,
    /// CPU of the agent's own process, percent of one core.
    pub agent_cpu_percent: f64,
    /// Resident memory of the agent's own process, bytes.
    pub agent_memory: u64,
}

/// Reads the host.
pub(super) struct Reader {
    trees: Trees,
    data_dir: PathBuf,
    /// Missing where it cannot be read; that was said.
    system: Option<System>,
    last: Option<(Instant, Host, u64)>,
}

impl Reader {
    pub(super) fn new(trees: Trees, data_dir: &Path) -> Self {
        let what = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::everything());
        let system = System::new_with_specifics(what);
        let system = system.map_err(|error| tracing::warn!(%error, "the host's CPU and memory cannot be read")).ok();
        Self { trees, data_dir: data_dir.to_owned(), system, last: None }
    }

    /// The host now, and the point since the look before.
    pub(super) fn read(&mut self, buffer: &mut String) -> (Host, Point) {
        let mut host = Host::default();
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
            host.cpus = system.cpus().len();
            host.cpu_percent = f64::from(system.global_cpu_usage());
            (host.memory_total, host.memory_available) = (system.total_memory(), system.available_memory());
            (host.swap_total, host.swap_used) = (system.total_swap(), system.used_swap());
        }
        if let Ok(load) = System::load_average() {
            host.load = [load.one, load.five, load.fifteen];
        }
        if let Ok(disk) = rustix::fs::statvfs(&self.data_dir) {
            host.disk_total = disk.f_blocks.saturating_mul(disk.f_frsize);
            host.disk_free = disk.f_bavail.saturating_mul(disk.f_frsize);
            (host.inodes_total, host.inodes_free) = (disk.f_files, disk.f_favail);
        }
        let proc = |name: &str| self.trees.proc.join(name);
        let mut pressure =
            |name: &str| file(&proc(&format!("pressure/{name}")), buffer).then(|| cgroup::pressure(buffer)).flatten();
        host.pressure_cpu = pressure("cpu");
        host.pressure_memory = pressure("memory");
        host.pressure_io = pressure("io");
        // the host's own network: this process may be in another
        if file(&proc("1/net/dev"), buffer) || file(&proc("net/dev"), buffer) {
            (host.received_bytes, host.sent_bytes) = cgroup::network(buffer);
        }
        let own = self.own(buffer);
        host.agent_memory = own.1;
        let now = Instant::now();
        let mut point = Point::new(0);
        if let Some((then, before, ticks)) = &self.last {
            let seconds = now.duration_since(*then).as_secs_f64().max(0.001);
            host.agent_cpu_percent = own.0.saturating_sub(*ticks) as f64 / TICKS / seconds * 100.0;
            let mut set = |name: &str, value: f64| {
                if let Some(at) = series::place(&series::HOST, name) {
                    point.values[at] = value;
                }
            };
            set("cpu_percent", host.cpu_percent);
            set("load1", host.load[0]);
            set("memory_used_bytes", host.memory_total.saturating_sub(host.memory_available) as f64);
            set("memory_available_bytes", host.memory_available as f64);
            set("swap_used_bytes", host.swap_used as f64);
            set("disk_used_bytes", host.disk_total.saturating_sub(host.disk_free) as f64);
            set("disk_free_bytes", host.disk_free as f64);
            set("inodes_free", host.inodes_free as f64);
            set("pressure_cpu_percent", host.pressure_cpu.unwrap_or(0.0));
            set("pressure_memory_percent", host.pressure_memory.unwrap_or(0.0));
            set("pressure_io_percent", host.pressure_io.unwrap_or(0.0));
            set("received_bytes", host.received_bytes.saturating_sub(before.received_bytes) as f64);
            set("sent_bytes", host.sent_bytes.saturating_sub(before.sent_bytes) as f64);
            set("agent_cpu_percent", host.agent_cpu_percent);
            set("agent_memory_bytes", host.agent_memory as f64);
            point.values[SECONDS] = seconds;
        }
        self.last = Some((now, host.clone(), own.0));
        (host, point)
    }

    /// CPU time of this process so far, clock ticks, and its resident memory, bytes.
    fn own(&self, buffer: &mut String) -> (u64, u64) {
        let mut fields = Vec::new();
        if file(&self.trees.proc.join("self/stat"), buffer)
            && let Some((_, rest)) = buffer.rsplit_once(')')
        {
            fields = rest.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
        }
        let field = |at: usize| fields.get(at).copied().unwrap_or(0_u64);
        (field(11) + field(12), field(21).saturating_mul(rustix::param::page_size() as u64))
    }
}

/// Clock ticks of a second, as `/proc` counts them: USER_HZ, the same on every Linux that a program can see.
const TICKS: f64 = 100.0;
