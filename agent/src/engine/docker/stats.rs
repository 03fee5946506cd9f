//! What a container used, by the engine's own figures.

use std::collections::BTreeMap;

use serde::Deserialize;
use sigil_core::cgroup::Reading;

use super::connect::Shared;
use super::{Inner, READ};
use crate::engine::{EngineError, Result};

/// What we read of the figures; every field may be missing.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Stats {
    cpu_stats: Cpu,
    memory_stats: Memory,
    pids_stats: Processes,
    blkio_stats: Disks,
    networks: Option<BTreeMap<String, Network>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Cpu {
    cpu_usage: Usage,
    throttling_data: Throttling,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Usage {
    /// Nanoseconds.
    total_usage: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Throttling {
    throttled_periods: u64,
    /// Nanoseconds.
    throttled_time: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Memory {
    usage: u64,
    max_usage: u64,
    stats: Option<BTreeMap<String, u64>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Processes {
    current: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Disks {
    io_service_bytes_recursive: Option<Vec<Moved>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Moved {
    op: String,
    value: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Network {
    rx_bytes: u64,
    tx_bytes: u64,
}

pub(super) async fn read(inner: &Inner, conn: &Shared, id: &str) -> Result<Option<Reading>> {
    let path = format!("/containers/{id}/stats?stream=false&one-shot=true");
    match inner.call(conn, "container stats", READ, conn.get::<Stats>(&path)).await {
        Ok(stats) => Ok(reading(&stats)),
        Err(EngineError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One that ended while it was asked about has no figures.
fn reading(stats: &Stats) -> Option<Reading> {
    let memory = &stats.memory_stats;
    if stats.cpu_stats.cpu_usage.total_usage == 0 && memory.usage == 0 {
        return None;
    }
    // the first name is version 1's
    let of = |names: [&str; 2]| names.iter().find_map(|name| memory.stats.as_ref()?.get(*name).copied());
    let moved = |op: &str| {
        let all = stats.blkio_stats.io_service_bytes_recursive.iter().flatten();
        all.filter(|m| m.op.eq_ignore_ascii_case(op)).map(|m| m.value).sum()
    };
    let networks = || stats.networks.iter().flat_map(BTreeMap::values);
    Some(Reading {
        cpu_micros: stats.cpu_stats.cpu_usage.total_usage / 1000,
        throttled_periods: stats.cpu_stats.throttling_data.throttled_periods,
        throttled_micros: stats.cpu_stats.throttling_data.throttled_time / 1000,
        memory_total: memory.usage,
        memory: memory.usage.saturating_sub(of(["total_inactive_file", "inactive_file"]).unwrap_or(0)),
        anonymous: of(["total_rss", "anon"]).unwrap_or(memory.usage),
        peak: memory.max_usage,
        oom_kills: 0, // no engine tells
        processes: stats.pids_stats.current,
        read_bytes: moved("read"),
        written_bytes: moved("write"),
        received_bytes: networks().map(|n| n.rx_bytes).sum(),
        sent_bytes: networks().map(|n| n.tx_bytes).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_and_one_that_ended() {
        let one = r#"{"cpu_stats":{"cpu_usage":{"total_usage":9000},"throttling_data":{"throttled_periods":1,"throttled_time":2000}},
            "memory_stats":{"usage":500,"max_usage":900,"stats":{"inactive_file":1,"total_inactive_file":100,"total_rss":50}},
            "pids_stats":{"current":3},"networks":{"eth0":{"rx_bytes":5,"tx_bytes":6},"eth1":{"rx_bytes":1,"tx_bytes":1}},
            "blkio_stats":{"io_service_bytes_recursive":[{"op":"Read","value":7},{"op":"write","value":8},{"op":"Total","value":15}]}}"#;
        let expected = Reading {
            cpu_micros: 9,
            throttled_periods: 1,
            throttled_micros: 2,
            memory_total: 500,
            memory: 400,
            anonymous: 50,
            peak: 900,
            processes: 3,
            read_bytes: 7,
            written_bytes: 8,
            received_bytes: 6,
            sent_bytes: 7,
            ..Reading::default()
        };
        assert_eq!(reading(&serde_json::from_str(one).unwrap()), Some(expected));
        let two = r#"{"cpu_stats":{"cpu_usage":{"total_usage":1000}},"memory_stats":{"usage":500,"stats":{"inactive_file":100,"anon":20}},"blkio_stats":{"io_service_bytes_recursive":null}}"#;
        let read = reading(&serde_json::from_str(two).unwrap()).unwrap();
        assert_eq!((read.memory, read.anonymous, read.peak), (400, 20, 0));
        assert_eq!(reading(&serde_json::from_str("{\"memory_stats\":{},\"networks\":null}").unwrap()), None);
    }
}
