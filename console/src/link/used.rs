//! What deployments and the host use, now and before.

use jiff::Timestamp;
use serde::Serialize;
use sigil_protocol::v1;

use super::error::LinkError;
use super::{Link, Wire, convert};

/// Everything, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Top {
    /// When it was measured.
    pub at: Option<Timestamp>,
    /// The host; missing for whoever may not look at everything.
    pub host: Option<HostUse>,
    /// By name.
    pub deployments: Vec<DeploymentUse>,
}

/// The host.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct HostUse {
    /// CPUs.
    pub cpus: u32,
    /// Percent of all of them together.
    pub cpu_percent: f64,
    /// Load averages of 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Still to be had, bytes.
    pub memory_available_bytes: u64,
    /// Swap, bytes.
    pub swap_bytes: u64,
    /// Of it used.
    pub swap_used_bytes: u64,
    /// File system of the agent's data directory, bytes.
    pub disk_bytes: u64,
    /// Free there.
    pub disk_free_bytes: u64,
    /// Inodes there; 0: it has no number of them.
    pub inodes: u64,
    /// Of them free.
    pub inodes_free: u64,
    /// Percent of the last ten seconds in which something waited for CPU.
    pub pressure_cpu_percent: Option<f64>,
    /// For memory.
    pub pressure_memory_percent: Option<f64>,
    /// For disks.
    pub pressure_io_percent: Option<f64>,
    /// Bytes a second.
    pub received_per_second: f64,
    /// Bytes a second.
    pub sent_per_second: f64,
    /// CPU of the agent, percent of one core.
    pub agent_cpu_percent: f64,
    /// Its resident memory, bytes.
    pub agent_memory_bytes: u64,
}

/// A deployment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DeploymentUse {
    /// Its name.
    pub name: String,
    /// The word for how it is.
    pub state: String,
    /// Replicas that serve.
    pub ready: u32,
    /// CPU of all replicas, percent of one core.
    pub cpu_percent: f64,
    /// CPU of the quota, percent.
    pub cpu_limit_percent: f64,
    /// Memory of all replicas, bytes.
    pub memory_bytes: u64,
    /// Memory above what they need without load, percent of the limit.
    pub memory_load_percent: f64,
    /// Requests of the last minute.
    pub rpm: f64,
    /// Median of their time.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Share that failed, 0 to 1.
    pub error_rate: f64,
    /// Requests without an answer.
    pub in_flight: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Bytes a second from the world.
    pub received_per_second: f64,
    /// Bytes a second to the world.
    pub sent_per_second: f64,
    /// Bytes a second from and to disks.
    pub disk_per_second: f64,
    /// Disk that its volumes take, bytes.
    pub volume_bytes: u64,
    /// Each replica.
    pub replicas: Vec<ReplicaUse>,
}

/// A replica.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ReplicaUse {
    /// Which one.
    pub instance: String,
    /// Its release.
    pub release: u32,
    /// Whether it serves.
    pub ready: bool,
    /// Whether it is frozen.
    pub paused: bool,
    /// Percent of one core.
    pub cpu_percent: f64,
    /// Quota, cores.
    pub cpu_limit_cores: f64,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// With the page cache.
    pub memory_total_bytes: u64,
    /// The most that the total ever was; 0: unknown.
    pub memory_peak_bytes: u64,
    /// Limit.
    pub memory_limit_bytes: u64,
    /// What it needs without load; 0: unknown.
    pub memory_baseline_bytes: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Time held back by the CPU quota, seconds.
    pub throttled_seconds: f64,
    /// The engine was asked, since the kernel's files could not be read.
    pub by_engine: bool,
}

impl Link {
    /// What everything uses now.
    pub async fn top(&self) -> Result<Top, LinkError> {
        let mut client = v1::metrics_client::MetricsClient::<Wire>::new(self.wire.clone());
        let reply = self.ask("top", client.top(v1::TopRequest {})).await?;
        Ok(Top {
            at: convert::time(reply.at),
            host: reply.host.map(host),
            deployments: reply.deployments.into_iter().map(deployment).collect(),
        })
    }
}

fn host(h: v1::HostUse) -> HostUse {
    HostUse {
        cpus: h.cpus,
        cpu_percent: h.cpu_percent,
        load: [h.load1, h.load5, h.load15],
        memory_bytes: h.memory_bytes,
        memory_available_bytes: h.memory_available_bytes,
        swap_bytes: h.swap_bytes,
        swap_used_bytes: h.swap_used_bytes,
        disk_bytes: h.disk_bytes,
        disk_free_bytes: h.disk_free_bytes,
        inodes: h.inodes,
        inodes_free: h.inodes_free,
        pressure_cpu_percent: h.pressure_cpu,
        pressure_memory_percent: h.pressure_memory,
        pressure_io_percent: h.pressure_io,
        received_per_second: h.received_per_second,
        sent_per_second: h.sent_per_second,
        agent_cpu_percent: h.agent_cpu_percent,
        agent_memory_bytes: h.agent_memory_bytes,
    }
}

fn deployment(d: v1::DeploymentUse) -> DeploymentUse {
    DeploymentUse {
        name: d.name,
        state: d.state,
        ready: d.ready,
        cpu_percent: d.cpu_percent,
        cpu_limit_percent: d.cpu_limit_percent,
        memory_bytes: d.memory_bytes,
        memory_load_percent: d.memory_load_percent,
        rpm: d.rpm,
        p50_ms: d.p50_ms,
        p90_ms: d.p90_ms,
        p99_ms: d.p99_ms,
        error_rate: d.error_rate,
        in_flight: d.in_flight,
        sessions: d.sessions,
        received_per_second: d.received_per_second,
        sent_per_second: d.sent_per_second,
        disk_per_second: d.disk_per_second,
        volume_bytes: d.volume_bytes,
        replicas: d.replicas.into_iter().map(replica).collect(),
    }
}

fn replica(r: v1::ReplicaUse) -> ReplicaUse {
    ReplicaUse {
        instance: r.instance,
        release: r.release,
        ready: r.ready,
        paused: r.paused,
        cpu_percent: r.cpu_percent,
        cpu_limit_cores: r.cpu_limit_cores,
        memory_bytes: r.memory_bytes,
        memory_total_bytes: r.memory_total_bytes,
        memory_peak_bytes: r.memory_peak_bytes,
        memory_limit_bytes: r.memory_limit_bytes,
        memory_baseline_bytes: r.memory_baseline_bytes,
        processes: r.processes,
        oom_kills: r.oom_kills,
        throttled_seconds: r.throttled_seconds,
        by_engine: r.by_engine,
    }
}
