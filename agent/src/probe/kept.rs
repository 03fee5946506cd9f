//! What is kept on disk of each deployment: probes (a line of JSON each), turns from one state to another and what was done
//! about them (`<id>.turns`, the same), and calls by the hour (`<id>.hours`, a ring).

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_core::health::{Calls, Outcome, State};
use sigil_core::model::{DeploymentId, InstanceId};

use crate::lines::Lines;

/// Bytes of one file of probes; there are two of a deployment at most.
const SHARE: u64 = 512 << 10;
/// Bytes of one file of turns; there are two of a deployment at most.
const TURNS: u64 = 64 << 10;
/// Hours of the ring: thirty days and a bit.
const HOURS: i64 = 31 * 24;
/// A record of the ring: hour, calls, failed ones, check sum.
const RECORD: usize = 28;

/// A probe as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// When.
    pub at: Timestamp,
    /// Of which replica.
    pub instance: InstanceId,
    /// How it does since.
    pub state: State,
    /// How long the answer took, milliseconds.
    pub ms: f64,
    /// What was found.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a replica did from then on, and what was done about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turned {
    /// When.
    pub at: Timestamp,
    /// Of which replica.
    pub instance: InstanceId,
    /// How it did until then.
    pub from: State,
    /// And since.
    pub to: State,
    /// Why.
    pub why: String,
    /// `restarted` or `replaced`: no change, but what was done about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub done: String,
}

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Files {
    lines: Lines,
    turns: Lines,
}

impl Files {
    /// `<data>/health`, made when something is written.
    pub(super) fn new(data_dir: &Path) -> Self {
        let dir = data_dir.join("health");
        Self { lines: Lines::new(dir.clone(), SHARE), turns: Lines::new(dir, TURNS) }
    }

    /// Adds a turn. Blocks.
    pub(super) fn turned(&self, id: DeploymentId, turn: Turned) -> io::Result<()> {
        self.turns.append(&format!("{id}.turns"), &[turn])
    }

    /// The newest turns, newest first. Blocks.
    pub(super) fn turns(&self, id: DeploymentId, limit: usize) -> Vec<Turned> {
        self.turns.newest(&format!("{id}.turns"), limit, |_| true)
    }

    /// Adds probes. Blocks.
    pub(super) fn append(&self, id: DeploymentId, probes: &[Kept]) -> io::Result<()> {
        self.lines.append(&id.to_string(), probes)
    }

    /// The newest probes, newest first. Blocks.
    pub(super) fn newest(&self, id: DeploymentId, limit: usize) -> Vec<Kept> {
        self.lines.newest(&id.to_string(), limit, |_| true)
    }

    /// Writes the calls of an hour. Blocks.
    pub(super) fn put_hour(&self, id: DeploymentId, hour: i64, calls: Calls) -> io::Result<()> {
        let mut record = Vec::with_capacity(RECORD);
        record.extend_from_slice(&hour.to_le_bytes());
        record.extend_from_slice(&calls.all.to_le_bytes());
        record.extend_from_slice(&calls.failed.to_le_bytes());
        record.extend_from_slice(&crc32c::crc32c(&record).to_le_bytes());
        let place = hour.rem_euclid(HOURS).unsigned_abs() * RECORD as u64;
        self.lines.open(&format!("{id}.hours"))?.write_all_at(&record, place)
    }

    fn hours(&self, id: DeploymentId) -> Vec<(i64, Calls)> {
        let bytes = fs::read(self.lines.dir().join(format!("{id}.hours"))).unwrap_or_default();
        bytes.chunks_exact(RECORD).filter_map(record).collect()
    }

    /// The calls of an hour. Blocks.
    pub(super) fn hour(&self, id: DeploymentId, hour: i64) -> Calls {
        self.hours(id).into_iter().find(|(of, _)| *of == hour).map(|(_, calls)| calls).unwrap_or_default()
    }

    /// The calls of the last so many hours, the one that is not over included. Blocks.
    pub(super) fn calls<const N: usize>(&self, id: DeploymentId, now: i64, windows: [u32; N]) -> [Calls; N] {
        let hours = self.hours(id);
        windows.map(|window| {
            let from = now - i64::from(window);
            let within = hours.iter().filter(|(hour, _)| (from + 1..=now).contains(hour));
            within.fold(Calls::default(), |sum, (_, calls)| sum.plus(*calls))
        })
    }

    /// Removes what is kept of deployments that are gone. Blocks.
    pub(super) fn prune(&self, there: impl Fn(DeploymentId) -> bool) {
        self.lines.prune(|name| name.parse().is_ok_and(|id| !there(id)));
    }
}

fn record(record: &[u8]) -> Option<(i64, Calls)> {
    let (content, sum) = record.split_at_checked(RECORD - 4)?;
    if crc32c::crc32c(content).to_le_bytes() != sum {
        return None;
    }
    let number = |at: usize| Some(u64::from_le_bytes(content.get(at..at + 8)?.try_into().ok()?));
    let hour = i64::from_le_bytes(content.get(..8)?.try_into().ok()?);
    Some((hour, Calls { all: number(8)?, failed: number(16)? }))
}
