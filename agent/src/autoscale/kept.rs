//! What is kept on disk of each deployment that has a policy: decisions (`<id>.log` and the one before it, a line of JSON
//! each) and its load in five minutes each (`<id>.load`, a ring of fixed size). Nothing of it is needed to serve: what is
//! damaged is left out.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_core::model::DeploymentId;
use sigil_core::scale::{Bucket, Decision, HISTORY_BUCKETS, History};

use crate::lines::Lines;

/// Bytes of one file of decisions; there are two of a deployment at most.
const SHARE: u64 = 1 << 20;
/// Bytes that are looked through for the last steps.
const TAIL: u64 = 128 << 10;
/// A record of the ring: number, three figures, check sum.
const RECORD: usize = 24;

/// A decision as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// When.
    pub at: Timestamp,
    /// What, and why.
    #[serde(flatten)]
    pub decision: Decision,
}

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Files(Lines);

impl Files {
    /// `<data>/scaling`, made when something is written.
    pub(super) fn new(data_dir: &Path) -> Self {
        Self(Lines::new(data_dir.join("scaling"), SHARE))
    }

    /// Adds decisions. Blocks.
    pub(super) fn append(&self, id: DeploymentId, decisions: &[Kept]) -> io::Result<()> {
        self.0.append(&id.to_string(), decisions)
    }

    /// The newest decisions that are wanted, newest first. Blocks.
    pub(super) fn newest(&self, id: DeploymentId, limit: usize, wanted: impl Fn(&Kept) -> bool) -> Vec<Kept> {
        self.0.newest(&id.to_string(), limit, wanted)
    }

    /// The steps of the last decisions, oldest first. Blocks.
    pub(super) fn steps(&self, id: DeploymentId) -> Vec<(Timestamp, u32, u32)> {
        let kept: Vec<Kept> = self.0.tail(&id.to_string(), TAIL).unwrap_or_else(|error| {
            tracing::warn!(%error, deployment = %id, "past scaling decisions cannot be read");
            Vec::new()
        });
        let steps = kept.iter().filter(|k| k.decision.from != k.decision.to);
        steps.map(|k| (k.at, k.decision.from, k.decision.to)).collect()
    }

    /// Writes one bucket of the load. Blocks.
    pub(super) fn put_load(&self, id: DeploymentId, number: i64, bucket: Bucket) -> io::Result<()> {
        let mut record = Vec::with_capacity(RECORD);
        record.extend_from_slice(&number.to_le_bytes());
        for figure in [bucket.requests, bucket.peak, bucket.cores] {
            record.extend_from_slice(&figure.to_le_bytes());
        }
        record.extend_from_slice(&crc32c::crc32c(&record).to_le_bytes());
        let place = number.rem_euclid(HISTORY_BUCKETS).unsigned_abs() * RECORD as u64;
        self.0.open(&format!("{id}.load"))?.write_all_at(&record, place)
    }

    /// The load of the last eight days. Blocks.
    pub(super) fn load(&self, id: DeploymentId) -> History {
        let bytes = fs::read(self.0.dir().join(format!("{id}.load"))).unwrap_or_default();
        let mut all: Vec<(i64, Bucket)> = bytes.chunks_exact(RECORD).filter_map(bucket).collect();
        all.sort_by_key(|(number, _)| *number);
        let mut history = History::default();
        all.into_iter().for_each(|(number, bucket)| history.set(number, bucket));
        history
    }

    /// Removes what is kept of deployments that are gone. Blocks.
    pub(super) fn prune(&self, there: impl Fn(DeploymentId) -> bool) {
        self.0.prune(|name| name.parse().is_ok_and(|id| !there(id)));
    }
}

fn bucket(record: &[u8]) -> Option<(i64, Bucket)> {
    let (content, sum) = record.split_at_checked(RECORD - 4)?;
    if crc32c::crc32c(content).to_le_bytes() != sum {
        return None;
    }
    let number = i64::from_le_bytes(content.get(..8)?.try_into().ok()?);
    let figure = |at: usize| Some(f32::from_le_bytes(content.get(at..at + 4)?.try_into().ok()?));
    Some((number, Bucket { requests: figure(8)?, peak: figure(12)?, cores: figure(16)? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigil_core::scale::{Basis, Memory, Policy, Signals, decide};

    fn kept(second: i64, from: u32, to: u32) -> Kept {
        let policy = Policy::default();
        let signals = Signals { ready: from, requests: 7.5, ..Signals::default() };
        let basis = Basis {
            policy: &policy,
            signals: Some(&signals),
            replicas: from,
            ceiling: None,
            price: None,
            forecast: None,
            now: 0,
        };
        let decision = Decision { to, ..decide(&basis, &Memory::default()) };
        Kept { at: Timestamp::from_second(second).unwrap(), decision }
    }

    fn id() -> DeploymentId {
        ulid::Ulid::generate().into()
    }

    #[test]
    fn decisions_are_there_again_newest_first_within_their_share() {
        let dir = tempfile::tempdir().unwrap();
        let (files, one) = (Files::new(dir.path()), id());
        assert_eq!(files.newest(one, 5, |_| true), []);
        files.append(one, &[kept(1, 1, 2), kept(2, 2, 2)]).unwrap();
        assert_eq!(files.newest(one, 5, |_| true), [kept(2, 2, 2), kept(1, 1, 2)]);
        assert_eq!(files.newest(one, 1, |k| k.decision.from != k.decision.to), [kept(1, 1, 2)]);
        let many: Vec<Kept> = (3..500).map(|second| kept(second, 2, 2)).collect();
        for _ in 0..30 {
            files.append(one, &many).unwrap();
        }
        let bytes: u64 = fs::read_dir(files.0.dir()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= 3 * SHARE, "{bytes}");
        assert_eq!(files.newest(one, 2000, |_| true).len(), 2000);
        files.prune(|_| false);
        assert_eq!(fs::read_dir(files.0.dir()).unwrap().count(), 0);
    }

    #[test]
    fn half_a_line_costs_that_line() {
        let dir = tempfile::tempdir().unwrap();
        let (files, one) = (Files::new(dir.path()), id());
        files.append(one, &[kept(1, 1, 2), kept(2, 2, 3)]).unwrap();
        let path = files.0.dir().join(format!("{one}.log"));
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() - 20]).unwrap();
        files.append(one, &[kept(3, 3, 2)]).unwrap();
        let steps: Vec<(u32, u32)> = files.steps(one).into_iter().map(|(_, from, to)| (from, to)).collect();
        assert_eq!(steps, [(1, 2), (3, 2)]);
    }

    #[test]
    fn the_load_is_a_ring_of_eight_days() {
        let dir = tempfile::tempdir().unwrap();
        let (files, one) = (Files::new(dir.path()), id());
        let of = |number: i64| Bucket { requests: number as f32, peak: 2.0, cores: 0.5 };
        for number in 100..HISTORY_BUCKETS + 200 {
            files.put_load(one, number, of(number)).unwrap();
        }
        let path = files.0.dir().join(format!("{one}.load"));
        let size = fs::metadata(&path).unwrap().len();
        assert_eq!(size, HISTORY_BUCKETS as u64 * RECORD as u64);
        let all: Vec<(i64, Bucket)> = files.load(one).buckets().collect();
        assert_eq!((all.len() as i64, all[0]), (HISTORY_BUCKETS, (200, of(200))));
        let mut bytes = fs::read(&path).unwrap();
        bytes[10] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(files.load(one).buckets().count() as i64, HISTORY_BUCKETS - 1);
    }
}
