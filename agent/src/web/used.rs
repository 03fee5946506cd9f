//! What replicas and the host use, what measuring that took, and what servers tell of themselves.

use sigil_core::exposition::{Kind, Sink};

use super::Measured;
use crate::sample::{Effort, Host, ReplicaUse, Volumes};

type Family = (&'static str, Kind, &'static str, fn(&ReplicaUse) -> f64);

const REPLICA: [Family; 16] = [
    ("sigil_replica_cpu_seconds_total", Kind::Total, "CPU time.", |r| r.reading.cpu_micros as f64 / 1e6),
    ("sigil_replica_cpu_limit_cores", Kind::Gauge, "CPU quota.", |r| r.cpu_limit),
    ("sigil_replica_cpu_throttled_seconds_total", Kind::Total, "Time held back by the CPU quota.", |r| {
        r.reading.throttled_micros as f64 / 1e6
    }),
    ("sigil_replica_cpu_throttled_periods_total", Kind::Total, "Periods held back by the CPU quota.", |r| {
        r.reading.throttled_periods as f64
    }),
    ("sigil_replica_memory_bytes", Kind::Gauge, "Memory without what the kernel would drop first.", |r| {
        r.reading.memory as f64
    }),
    ("sigil_replica_memory_total_bytes", Kind::Gauge, "Memory with the page cache.", |r| r.reading.memory_total as f64),
    (
        "sigil_replica_memory_peak_bytes",
        Kind::Gauge,
        "The most that the total ever was; 0: the kernel does not say.",
        |r| r.reading.peak as f64,
    ),
    ("sigil_replica_memory_limit_bytes", Kind::Gauge, "Memory limit.", |r| r.memory_limit as f64),
    ("sigil_replica_memory_baseline_bytes", Kind::Gauge, "Memory of its own when it passed its gate.", |r| {
        r.baseline.unwrap_or(0) as f64
    }),
    ("sigil_replica_oom_kills_total", Kind::Total, "Processes killed for want of memory.", |r| {
        r.reading.oom_kills as f64
    }),
    ("sigil_replica_processes", Kind::Gauge, "Processes and threads.", |r| r.reading.processes as f64),
    ("sigil_replica_received_bytes_total", Kind::Total, "Bytes received from the world.", |r| {
        r.reading.received_bytes as f64
    }),
    ("sigil_replica_sent_bytes_total", Kind::Total, "Bytes sent to the world.", |r| r.reading.sent_bytes as f64),
    ("sigil_replica_disk_read_bytes_total", Kind::Total, "Bytes read from disks.", |r| r.reading.read_bytes as f64),
    ("sigil_replica_disk_written_bytes_total", Kind::Total, "Bytes written to disks.", |r| {
        r.reading.written_bytes as f64
    }),
    ("sigil_replica_paused", Kind::Gauge, "1 while it is paused.", |r| f64::from(u8::from(r.frozen))),
];

pub(super) fn replicas(out: &mut dyn Sink, measured: &Measured) {
    let mut all: Vec<(&str, String, &ReplicaUse)> = Vec::new();
    for (id, used) in &measured.snapshot.deployments {
        let Some(name) = measured.names.get(id) else { continue };
        all.extend(used.replicas.iter().map(|r| (name.as_str(), r.instance.to_string(), r)));
    }
    all.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    for (name, kind, help, value) in REPLICA {
        out.family(name, kind, help);
        for (deployment, replica, used) in &all {
            out.value(&[("deployment", deployment), ("replica", replica)], value(used));
        }
    }
}

pub(super) fn volumes(out: &mut dyn Sink, measured: &Measured) {
    let named =
        measured.snapshot.volumes.iter().filter_map(|(id, took)| Some((measured.names.get(id)?.as_str(), took)));
    let mut all: Vec<(&str, &Volumes)> = named.collect();
    all.sort_unstable_by_key(|(name, _)| *name);
    for (name, help, value) in [
        ("sigil_volume_bytes", "Disk that volumes take.", (|v| v.bytes as f64) as fn(&Volumes) -> f64),
        ("sigil_volume_files", "Files and directories in volumes.", |v| v.files as f64),
        ("sigil_volume_incomplete", "1 where volumes are too large to be looked at wholly, or cannot be read.", |v| {
            f64::from(u8::from(v.more))
        }),
    ] {
        out.family(name, Kind::Gauge, help);
        for (deployment, took) in &all {
            out.value(&[("deployment", deployment)], value(took));
        }
    }
}

pub(super) fn host(out: &mut dyn Sink, host: &Host) {
    let mut one = |name: &str, kind: Kind, help: &str, value: f64| {
        out.family(name, kind, help);
        out.value(&[], value);
    };
    one("sigil_host_cpus", Kind::Gauge, "CPUs of the host.", host.cpus as f64);
    one("sigil_host_cpu_ratio", Kind::Gauge, "CPU in use, of all CPUs.", host.cpu_percent / 100.0);
    one("sigil_host_memory_bytes", Kind::Gauge, "Memory of the host.", host.memory_total as f64);
    one("sigil_host_memory_available_bytes", Kind::Gauge, "Memory still to be had.", host.memory_available as f64);
    one("sigil_host_swap_bytes", Kind::Gauge, "Swap of the host.", host.swap_total as f64);
    one("sigil_host_swap_used_bytes", Kind::Gauge, "Swap in use.", host.swap_used as f64);
    one("sigil_host_disk_bytes", Kind::Gauge, "File system of the data directory.", host.disk_total as f64);
    one("sigil_host_disk_free_bytes", Kind::Gauge, "Free there.", host.disk_free as f64);
    one("sigil_host_inodes", Kind::Gauge, "Inodes there; 0: it has no number of them.", host.inodes_total as f64);
    one("sigil_host_inodes_free", Kind::Gauge, "Free inodes there.", host.inodes_free as f64);
    one("sigil_host_received_bytes_total", Kind::Total, "Bytes received.", host.received_bytes as f64);
    one("sigil_host_sent_bytes_total", Kind::Total, "Bytes sent.", host.sent_bytes as f64);
    one("sigil_agent_cpu_ratio", Kind::Gauge, "CPU of the agent, of one core.", host.agent_cpu_percent / 100.0);
    one("sigil_agent_memory_bytes", Kind::Gauge, "Resident memory of the agent.", host.agent_memory as f64);
    out.family("sigil_host_load", Kind::Gauge, "Load averages.");
    for (minutes, load) in ["1", "5", "15"].iter().zip(host.load) {
        out.value(&[("minutes", minutes)], load);
    }
    out.family("sigil_host_pressure_ratio", Kind::Gauge, "Share of the last ten seconds in which something waited.");
    let all = [("cpu", host.pressure_cpu), ("memory", host.pressure_memory), ("io", host.pressure_io)];
    for (resource, pressure) in all {
        if let Some(percent) = pressure {
            out.value(&[("resource", resource)], percent / 100.0);
        }
    }
}

pub(super) fn effort(out: &mut dyn Sink, effort: &Effort) {
    for (name, kind, help, value) in [
        ("sigil_sample_rounds_total", Kind::Counter, "Rounds of measuring.", effort.rounds as f64),
        ("sigil_sample_seconds", Kind::Gauge, "Time that the last one took.", effort.last.as_secs_f64()),
        ("sigil_sample_files_total", Kind::Counter, "Containers measured by the kernel's files.", effort.files as f64),
        ("sigil_sample_engine_total", Kind::Counter, "Containers measured by asking the engine.", effort.engine as f64),
        ("sigil_sample_failed_total", Kind::Counter, "Containers that could not be measured.", effort.failed as f64),
        ("sigil_sample_points_lost_total", Kind::Counter, "Points that could not be kept.", effort.lost as f64),
        ("sigil_sample_ring_bytes", Kind::Gauge, "Disk that history takes at most.", effort.ring_bytes as f64),
        ("sigil_server_pages_total", Kind::Counter, "Pages /mcp/metrics that were asked for.", effort.pages as f64),
        (
            "sigil_server_lines_left_out_total",
            Kind::Counter,
            "Lines of such pages that do not fit the form or are too many.",
            effort.page_lines_left_out as f64,
        ),
    ] {
        out.family(name, kind, help);
        out.value(&[], value);
    }
}
