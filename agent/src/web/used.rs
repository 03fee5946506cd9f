//! What replicas and the host use, what measuring that took, and what servers tell of themselves.

use sigil_core::exposition::Families;

use super::{Measured, head, line};
use crate::sample::{Effort, Host, ReplicaUse};

type Family = (&'static str, &'static str, &'static str, fn(&ReplicaUse) -> f64);

const REPLICA: [Family; 16] = [
    ("sigil_replica_cpu_seconds_total", "counter", "CPU time.", |r| r.reading.cpu_micros as f64 / 1e6),
    ("sigil_replica_cpu_limit_cores", "gauge", "CPU quota.", |r| r.cpu_limit),
    ("sigil_replica_cpu_throttled_seconds_total", "counter", "Time held back by the CPU quota.", |r| {
        r.reading.throttled_micros as f64 / 1e6
    }),
    ("sigil_replica_cpu_throttled_periods_total", "counter", "Periods held back by the CPU quota.", |r| {
        r.reading.throttled_periods as f64
    }),
    ("sigil_replica_memory_bytes", "gauge", "Memory without what the kernel would drop first.", |r| {
        r.reading.memory as f64
    }),
    ("sigil_replica_memory_total_bytes", "gauge", "Memory with the page cache.", |r| r.reading.memory_total as f64),
    (
        "sigil_replica_memory_peak_bytes",
        "gauge",
        "The most that the total ever was; 0: the kernel does not say.",
        |r| r.reading.peak as f64,
    ),
    ("sigil_replica_memory_limit_bytes", "gauge", "Memory limit.", |r| r.memory_limit as f64),
    ("sigil_replica_memory_baseline_bytes", "gauge", "Memory of its own when it passed its gate.", |r| {
        r.baseline.unwrap_or(0) as f64
    }),
    ("sigil_replica_oom_kills_total", "counter", "Processes killed for want of memory.", |r| {
        r.reading.oom_kills as f64
    }),
    ("sigil_replica_processes", "gauge", "Processes and threads.", |r| r.reading.processes as f64),
    ("sigil_replica_received_bytes_total", "counter", "Bytes received from the world.", |r| {
        r.reading.received_bytes as f64
    }),
    ("sigil_replica_sent_bytes_total", "counter", "Bytes sent to the world.", |r| r.reading.sent_bytes as f64),
    ("sigil_replica_disk_read_bytes_total", "counter", "Bytes read from disks.", |r| r.reading.read_bytes as f64),
    ("sigil_replica_disk_written_bytes_total", "counter", "Bytes written to disks.", |r| {
        r.reading.written_bytes as f64
    }),
    ("sigil_replica_paused", "gauge", "1 while it is paused.", |r| f64::from(u8::from(r.frozen))),
];

pub(super) fn replicas(out: &mut String, measured: &Measured) {
    let mut all: Vec<(&str, String, &ReplicaUse)> = Vec::new();
    for (id, used) in &measured.snapshot.deployments {
        let Some(name) = measured.names.get(id) else { continue };
        all.extend(used.replicas.iter().map(|r| (name.as_str(), r.instance.to_string(), r)));
    }
    all.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    for (name, kind, help, value) in REPLICA {
        head(out, name, kind, help);
        for (deployment, replica, used) in &all {
            line(out, name, &[("deployment", deployment), ("replica", replica)], value(used));
        }
    }
}

pub(super) fn host(out: &mut String, host: &Host) {
    let mut one = |name: &str, kind: &str, help: &str, value: f64| {
        head(out, name, kind, help);
        line(out, name, &[], value);
    };
    one("sigil_host_cpus", "gauge", "CPUs of the host.", host.cpus as f64);
    one("sigil_host_cpu_ratio", "gauge", "CPU in use, of all CPUs.", host.cpu_percent / 100.0);
    one("sigil_host_memory_bytes", "gauge", "Memory of the host.", host.memory_total as f64);
    one("sigil_host_memory_available_bytes", "gauge", "Memory still to be had.", host.memory_available as f64);
    one("sigil_host_swap_bytes", "gauge", "Swap of the host.", host.swap_total as f64);
    one("sigil_host_swap_used_bytes", "gauge", "Swap in use.", host.swap_used as f64);
    one("sigil_host_disk_bytes", "gauge", "File system of the data directory.", host.disk_total as f64);
    one("sigil_host_disk_free_bytes", "gauge", "Free there.", host.disk_free as f64);
    one("sigil_host_inodes", "gauge", "Inodes there; 0: it has no number of them.", host.inodes_total as f64);
    one("sigil_host_inodes_free", "gauge", "Free inodes there.", host.inodes_free as f64);
    one("sigil_host_received_bytes_total", "counter", "Bytes received.", host.received_bytes as f64);
    one("sigil_host_sent_bytes_total", "counter", "Bytes sent.", host.sent_bytes as f64);
    one("sigil_agent_cpu_ratio", "gauge", "CPU of the agent, of one core.", host.agent_cpu_percent / 100.0);
    one("sigil_agent_memory_bytes", "gauge", "Resident memory of the agent.", host.agent_memory as f64);
    head(out, "sigil_host_load", "gauge", "Load averages.");
    for (minutes, load) in ["1", "5", "15"].iter().zip(host.load) {
        line(out, "sigil_host_load", &[("minutes", minutes)], load);
    }
    head(out, "sigil_host_pressure_ratio", "gauge", "Share of the last ten seconds in which something waited.");
    let all = [("cpu", host.pressure_cpu), ("memory", host.pressure_memory), ("io", host.pressure_io)];
    for (resource, pressure) in all {
        if let Some(percent) = pressure {
            line(out, "sigil_host_pressure_ratio", &[("resource", resource)], percent / 100.0);
        }
    }
}

pub(super) fn effort(out: &mut String, effort: &Effort) {
    for (name, kind, help, value) in [
        ("sigil_sample_rounds_total", "counter", "Rounds of measuring.", effort.rounds as f64),
        ("sigil_sample_seconds", "gauge", "Time that the last one took.", effort.last.as_secs_f64()),
        ("sigil_sample_files_total", "counter", "Containers measured by the kernel's files.", effort.files as f64),
        ("sigil_sample_engine_total", "counter", "Containers measured by asking the engine.", effort.engine as f64),
        ("sigil_sample_failed_total", "counter", "Containers that could not be measured.", effort.failed as f64),
        ("sigil_sample_points_lost_total", "counter", "Points that could not be kept.", effort.lost as f64),
        ("sigil_sample_ring_bytes", "gauge", "Disk that history takes at most.", effort.ring_bytes as f64),
        ("sigil_server_pages_total", "counter", "Pages /mcp/metrics that were asked for.", effort.pages as f64),
        (
            "sigil_server_lines_left_out_total",
            "counter",
            "Lines of such pages that do not fit the form or are too many.",
            effort.page_lines_left_out as f64,
        ),
    ] {
        head(out, name, kind, help);
        line(out, name, &[], value);
    }
}

pub(super) fn servers(out: &mut String, families: &Families) {
    for (name, family) in families {
        // names and kinds were checked when they were taken
        for part in ["# TYPE ", name, " ", &family.kind, "\n"] {
            out.push_str(part);
        }
        for line in &family.lines {
            out.push_str(line);
            out.push('\n');
        }
    }
}
