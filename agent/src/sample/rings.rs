//! The rings on disk: `<data>/metrics/<deployment id>/<tier>.ring` and `<data>/metrics/host/…`.
//!
//! A file gets its whole length when it is made (what was never written takes no blocks), and points are written in place,
//! each with a checksum; none is synced. A kill tears one point at most, which is then none. What a coarser tier needs it
//! reads from the finer one, so nothing that a restart could lose is held in memory.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sigil_core::model::DeploymentId;
use sigil_core::series::{self, HEADER_BYTES, POINT_BYTES, Point, TIERS, Tier};

use super::Of;

/// Intervals of the finer tier that are looked at again after a start, for what was not rolled up.
const CATCH_UP: [u32; 2] = [60, 26];

/// Where all rings are.
pub(super) fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("metrics")
}

fn path(directory: &Path, of: Of, tier: Tier) -> PathBuf {
    let name = match of {
        Of::Host => "host".to_owned(),
        Of::Deployment(id) => id.to_string(),
    };
    directory.join(name).join(format!("{}.ring", tier.name))
}

/// Points of a tier from one interval to another, both included; none from a series that has no file.
pub(super) fn read(directory: &Path, of: Of, tier: Tier, from: u32, to: u32) -> io::Result<Vec<Point>> {
    let file = match File::open(path(directory, of, tier)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    if !is_ring(&file, tier) {
        return Ok(Vec::new());
    }
    let mut points = Vec::new();
    let mut at = from;
    while at <= to {
        // as many as lie beside each other
        let run = (tier.slots - at % tier.slots).min(to - at + 1).min(4096);
        let mut bytes = vec![0; run as usize * POINT_BYTES];
        let filled = fill(&file, &mut bytes, tier.offset(at))?;
        let found = bytes[..filled].chunks_exact(POINT_BYTES).filter_map(Point::decode);
        points.extend(found.filter(|point| (at..at + run).contains(&point.interval)));
        at += run;
    }
    Ok(points)
}

fn fill(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(filled)
}

fn is_ring(file: &File, tier: Tier) -> bool {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).is_ok() && header == tier.header()
}

/// Writes rings, within a budget.
#[derive(Debug)]
pub(super) struct Rings {
    directory: PathBuf,
    /// Series that have a directory, and the newest interval (10 s) written to each.
    known: HashMap<Of, u32>,
    /// Points that found no place.
    pub(super) lost: u64,
    /// Whether that was said.
    said: bool,
}

impl Rings {
    /// Finds what is there.
    pub(super) fn open(directory: &Path) -> Self {
        let mut known = HashMap::new();
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let of = match name.to_str() {
                Some("host") => Some(Of::Host),
                Some(name) => name.parse::<DeploymentId>().ok().map(Of::Deployment),
                None => None,
            };
            if let Some(of) = of {
                known.insert(of, 0);
            }
        }
        Self { directory: directory.to_owned(), known, lost: 0, said: false }
    }

    /// Bytes that all series may come to.
    pub(super) fn bytes(&self) -> u64 {
        self.known.len() as u64 * series::series_bytes()
    }

    /// Rolls up what an agent that ended did not get to.
    pub(super) fn catch_up(&self, now: i64) {
        for of in self.known.keys() {
            for (tier, count) in TIERS[1..].iter().zip(CATCH_UP) {
                let current = tier.interval(now);
                for interval in current.saturating_sub(count)..current {
                    let there = read(&self.directory, *of, *tier, interval, interval);
                    if there.is_ok_and(|points| points.is_empty())
                        && let Err(error) = self.roll_up(*of, *tier, interval)
                    {
                        tracing::debug!(%error, ?of, "an interval is not rolled up");
                    }
                }
            }
        }
    }

    /// Keeps points of the finest tier, and rolls up what their time completes. `budget`: bytes of all rings together.
    pub(super) fn write(&mut self, points: &[(Of, Point)], budget: u64) {
        for (of, point) in points {
            let kept = self.make_room(*of, budget).and_then(|room| {
                if room {
                    self.put(*of, TIERS[0], point)?;
                    self.known.insert(*of, point.interval);
                }
                Ok(room)
            });
            match kept {
                Ok(true) => {}
                Ok(false) => self.lost += 1,
                Err(error) => {
                    self.lost += 1;
                    if !std::mem::replace(&mut self.said, true) {
                        tracing::warn!(%error, directory = %self.directory.display(), "metrics cannot be kept");
                    }
                }
            }
        }
    }

    /// Rolls up the intervals of all series that have ended between two moments.
    pub(super) fn roll(&mut self, before: i64, now: i64) {
        let [finest, ..] = TIERS;
        for (lower, tier) in TIERS.iter().zip(&TIERS[1..]) {
            let (from, to) = (tier.interval(before), tier.interval(now));
            // a clock that jumped ahead completes nothing between
            let Some(interval) = (to > from).then(|| from.max(to - 1)) else { continue };
            let begin = finest.interval(tier.start(interval));
            let fresh = |(of, last): (&Of, &u32)| (*last >= begin).then_some(*of);
            let all: Vec<Of> = self.known.iter().filter_map(fresh).collect();
            for of in all {
                if let Err(error) = self.roll_up(of, *tier, interval) {
                    self.lost += 1;
                    tracing::debug!(%error, ?of, lower = lower.name, "an interval is not rolled up");
                }
            }
        }
    }

    fn roll_up(&self, of: Of, tier: Tier, interval: u32) -> io::Result<()> {
        let at = TIERS.iter().position(|t| *t == tier).unwrap_or(1);
        let lower = TIERS[at.saturating_sub(1)];
        let first = lower.interval(tier.start(interval));
        let points = read(&self.directory, of, lower, first, first + tier.step / lower.step - 1)?;
        if points.is_empty() {
            return Ok(());
        }
        self.put(of, tier, &series::merge(of.metrics(), interval, &points))
    }

    /// Whether there is room for a series: one that was written to longest ago makes it.
    fn make_room(&mut self, of: Of, budget: u64) -> io::Result<bool> {
        if self.known.contains_key(&of) {
            return Ok(true);
        }
        while self.bytes() + series::series_bytes() > budget {
            let others = self.known.iter().filter(|(of, _)| **of != Of::Host);
            let Some((oldest, last)) = others.min_by_key(|(_, last)| **last).map(|(of, last)| (*of, *last)) else {
                return Ok(false);
            };
            // all are in use: the newcomer waits
            if last > 0 && self.known.values().all(|other| other.saturating_sub(last) < 360) {
                return Ok(false);
            }
            tracing::info!(series = ?oldest, "metrics: the oldest series makes room ([metrics] max_bytes)");
            self.forget(oldest)?;
        }
        Ok(true)
    }

    fn put(&self, of: Of, tier: Tier, point: &Point) -> io::Result<()> {
        let path = path(&self.directory, of, tier);
        let options = || OpenOptions::new().read(true).write(true).open(&path);
        let file = match options() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(&path, tier)?,
            other => other?,
        };
        // another version's, or cut short: it begins anew
        let file =
            if file.metadata()?.len() == tier.bytes() && is_ring(&file, tier) { file } else { make(&path, tier)? };
        file.write_all_at(&point.encode(), tier.offset(point.interval))
    }

    /// Forgets all deployments but those that `is_there`.
    pub(super) fn keep(&mut self, is_there: impl Fn(DeploymentId) -> bool) {
        let gone = |of: &&Of| matches!(of, Of::Deployment(id) if !is_there(*id));
        let gone: Vec<Of> = self.known.keys().filter(gone).copied().collect();
        for of in gone {
            if let Err(error) = self.forget(of) {
                tracing::warn!(%error, ?of, "a deployment's metrics stay behind");
            }
        }
    }

    fn forget(&mut self, of: Of) -> io::Result<()> {
        if let Some(directory) = path(&self.directory, of, TIERS[0]).parent() {
            match fs::remove_dir_all(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.known.remove(&of);
        Ok(())
    }
}

fn make(path: &Path, tier: Tier) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(tier.bytes())?;
    file.write_all_at(&tier.header(), 0)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigil_core::series::{REQUESTS, SECONDS};

    fn of() -> Of {
        Of::Deployment(DeploymentId(ulid::Ulid::generate()))
    }

    fn point(interval: u32, requests: f64) -> Point {
        let mut point = Point::new(interval);
        (point.values[SECONDS], point.values[REQUESTS]) = (10.0, requests);
        point
    }

    const PLENTY: u64 = 1 << 30;

    #[test]
    fn a_restart_goes_on_and_a_torn_point_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let of = of();
        let begin = TIERS[0].interval(1_800_000_000);
        let requests = |tier: Tier, from: u32, to: u32| {
            let points = read(dir.path(), of, tier, from, to).unwrap();
            points.iter().map(|p| (p.interval, p.values[REQUESTS].round())).collect::<Vec<_>>()
        };
        // an agent that dies before the minute's end
        let mut rings = Rings::open(dir.path());
        for interval in begin..begin + 4 {
            rings.write(&[(of, point(interval, 1.0))], PLENTY);
        }
        drop(rings);
        let mut rings = Rings::open(dir.path());
        for interval in begin + 4..begin + 7 {
            rings.write(&[(of, point(interval, 1.0))], PLENTY);
            rings.roll(TIERS[0].start(interval - 1), TIERS[0].start(interval));
        }
        assert_eq!(requests(TIERS[1], begin / 6, begin / 6), [(begin / 6, 6.0)]);
        // one that dies after it, before it was rolled up
        for interval in begin + 7..begin + 12 {
            rings.write(&[(of, point(interval, 2.0))], PLENTY);
        }
        drop(rings);
        Rings::open(dir.path()).catch_up(TIERS[0].start(begin + 13));
        assert_eq!(requests(TIERS[1], begin / 6, begin / 6 + 2), [(begin / 6, 6.0), (begin / 6 + 1, 11.0)]);
        // a point that was half written
        let path = path(dir.path(), of, TIERS[0]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[7; POINT_BYTES / 2], TIERS[0].offset(begin + 1)).unwrap();
        assert_eq!(requests(TIERS[0], begin, begin + 2), [(begin, 1.0), (begin + 2, 1.0)]);
        assert_eq!(fs::metadata(&path).unwrap().len(), TIERS[0].bytes());
        // a file of something else
        fs::write(&path, "what").unwrap();
        assert_eq!(requests(TIERS[0], begin, begin + 2), []);
        let mut rings = Rings::open(dir.path());
        rings.write(&[(of, point(begin, 5.0))], PLENTY);
        assert_eq!((requests(TIERS[0], begin, begin + 2), rings.lost), (vec![(begin, 5.0)], 0));
    }

    #[test]
    fn reading_goes_around() {
        let dir = tempfile::tempdir().unwrap();
        let (of, tier) = (of(), TIERS[0]);
        let begin = 20_000 * tier.slots - 2;
        let mut rings = Rings::open(dir.path());
        for interval in begin..begin + 5 {
            rings.write(&[(of, point(interval, 1.0))], PLENTY);
        }
        let found = read(dir.path(), of, tier, begin - tier.slots + 6, begin + 9).unwrap();
        assert_eq!(found.iter().map(|p| p.interval).collect::<Vec<_>>(), (begin..begin + 5).collect::<Vec<_>>());
    }

    #[test]
    fn the_budget_holds_and_what_is_gone_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let budget = 3 * series::series_bytes();
        let [old, other, third, fourth] = [of(), of(), of(), of()];
        let mut rings = Rings::open(dir.path());
        rings.write(&[(old, point(1000, 1.0)), (other, point(5000, 1.0)), (Of::Host, point(5000, 1.0))], budget);
        // the one that was still for longest makes room
        rings.write(&[(third, point(5000, 1.0))], budget);
        assert!(!rings.known.contains_key(&old) && rings.known.contains_key(&third));
        // all are in use: nobody does
        rings.write(&[(fourth, point(5000, 1.0))], budget);
        assert_eq!((rings.known.contains_key(&fourth), rings.lost, rings.bytes()), (false, 1, budget));
        let on_disk = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(on_disk, 3);
        let Of::Deployment(kept) = third else { unreachable!() };
        rings.keep(|id| id == kept);
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [kept.to_string().as_str(), "host"]);
    }
}
