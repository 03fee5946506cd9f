//! Calls in the moment in which they end: `<data>/usage/tally-<run>`, a record for each user of each deployment.
//!
//! The book learns of calls a quarter of a second after they ended, and a killed agent would take those with it. So whoever
//! counts a call writes the new count over the old one in this file, a few bytes into the kernel's cache, before the answer's
//! end goes out. The next agent reads what its forerunner's stood at. They are the same counters of the same run that the book
//! read, so what the book has is not added again.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sigil_core::model::DeploymentId;

use super::book::{Counts, Part};

const PREFIX: &str = "tally-";
/// Bytes of a record: whose it is (checksum, deployment, length of the name, name), and the counts.
const RECORD: usize = 192;
/// Where the counts begin.
const COUNTS: usize = 160;
/// Where the name begins.
const NAME: usize = 22;
/// Longest name; longer ones are counted together with others by whoever counts.
const NAME_MAX: usize = COUNTS - NAME;

/// This run's file.
#[derive(Clone, Debug)]
pub struct Tally(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    run: String,
    path: PathBuf,
    /// Made when there is something to write.
    file: Mutex<Option<Arc<File>>>,
    places: Mutex<HashMap<(DeploymentId, String), u64>>,
    /// The last write failed.
    failed: AtomicBool,
}

/// A user's place in it.
#[derive(Debug)]
pub struct Slot {
    tally: Arc<Inner>,
    at: u64,
    whose: [u8; COUNTS],
    stood: Mutex<Stood>,
}

#[derive(Debug, Default)]
struct Stood {
    file: Option<Arc<File>>,
    counts: [u64; 3],
}

/// What a former run's file says.
#[derive(Debug, PartialEq)]
pub(super) struct Former {
    pub(super) run: String,
    path: PathBuf,
    pub(super) counts: Vec<(DeploymentId, Vec<(Part, Counts)>)>,
    /// When it was last written to.
    pub(super) at: jiff::Timestamp,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    /// A new run's. Nothing is written until something is counted.
    pub fn new(data_dir: &Path) -> Self {
        let run = ulid::Ulid::generate().to_string();
        let path = data_dir.join("usage").join(format!("{PREFIX}{run}"));
        let (file, places, failed) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        Self(Arc::new(Inner { run, path, file, places, failed }))
    }

    /// The run's name.
    pub(super) fn run(&self) -> &str {
        &self.0.run
    }

    /// Where a user's calls of a deployment are written. `user` is an id of at most 138 bytes, or a longer one's first.
    pub fn slot(&self, deployment: DeploymentId, user: &str) -> Slot {
        let user = user.get(..user.floor_char_boundary(NAME_MAX)).unwrap_or_default();
        let mut places = lock(&self.0.places);
        let next = places.len() as u64 * RECORD as u64;
        let at = *places.entry((deployment, user.to_owned())).or_insert(next);
        let stood = Mutex::default();
        Slot { tally: self.0.clone(), at, whose: whose(deployment, user), stood }
    }

    /// Whether the last write failed: calls then are counted a quarter of a second later.
    pub fn failed(&self) -> bool {
        self.0.failed.load(Relaxed)
    }
}

impl Inner {
    fn file(&self) -> io::Result<Arc<File>> {
        let mut held = lock(&self.file);
        if let Some(file) = &*held {
            return Ok(file.clone());
        }
        if let Some(directory) = self.path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        Ok(held.insert(Arc::new(file)).clone())
    }
}

impl Slot {
    /// Writes what the counts are now: requests, failed ones, bytes sent. Takes about a microsecond.
    pub fn set(&self, counts: impl Fn() -> [u64; 3]) {
        let mut stood = lock(&self.stood);
        // read under the lock: an older count never comes behind a newer one
        let counts = counts();
        if counts == stood.counts {
            return;
        }
        let written = match &stood.file {
            Some(file) => file.write_all_at(&words(counts), self.at + COUNTS as u64),
            None => self.begin(counts).map(|file| stood.file = Some(file)),
        };
        let failed = written.is_err();
        if !failed {
            stood.counts = counts;
        }
        if self.tally.failed.load(Relaxed) != failed {
            self.tally.failed.store(failed, Relaxed);
            if let Err(error) = written {
                tracing::warn!(%error, "calls cannot be written down as they end; they are, a moment later");
            }
        }
    }

    fn begin(&self, counts: [u64; 3]) -> io::Result<Arc<File>> {
        let file = self.tally.file()?;
        let mut record = [0; RECORD];
        for (to, from) in record.iter_mut().zip(self.whose.iter().chain(&words(counts))) {
            *to = *from;
        }
        file.write_all_at(&record, self.at)?;
        Ok(file)
    }
}

fn words(counts: [u64; 3]) -> [u8; 24] {
    let mut bytes = [0; 24];
    for (to, from) in bytes.iter_mut().zip(counts.iter().flat_map(|n| n.to_le_bytes())) {
        *to = from;
    }
    bytes
}

fn whose(deployment: DeploymentId, user: &str) -> [u8; COUNTS] {
    let mut bytes = [0; COUNTS];
    let length = u16::try_from(user.len()).unwrap_or(0).to_le_bytes();
    let said = deployment.0.to_bytes().into_iter().chain(length).chain(user.bytes());
    for (to, from) in bytes.iter_mut().skip(4).zip(said) {
        *to = from;
    }
    let sum = crc32c::crc32c(bytes.get(4..).unwrap_or_default()).to_le_bytes();
    for (to, from) in bytes.iter_mut().zip(sum) {
        *to = from;
    }
    bytes
}

/// What a record says; `None`: it was never written wholly.
fn read(record: &[u8]) -> Option<(DeploymentId, String, Counts)> {
    let sum = u32::from_le_bytes(record.get(..4)?.try_into().ok()?);
    if crc32c::crc32c(record.get(4..COUNTS)?) != sum {
        return None;
    }
    let deployment = DeploymentId(ulid::Ulid::from_bytes(record.get(4..20)?.try_into().ok()?));
    let length = usize::from(u16::from_le_bytes(record.get(20..NAME)?.try_into().ok()?));
    let user = std::str::from_utf8(record.get(NAME..NAME + length)?).ok()?.to_owned();
    let word = |at: usize| Some(u64::from_le_bytes(record.get(COUNTS + at..COUNTS + at + 8)?.try_into().ok()?));
    Some((deployment, user, Counts { requests: word(0)?, errors: word(8)?, sent: word(16)? }))
}

/// The files of runs that are over, the oldest first. One that cannot be read is left, and said.
pub(super) fn former(data_dir: &Path) -> Vec<Former> {
    let directory = data_dir.join("usage");
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    let names: BTreeSet<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let runs = names.iter().filter_map(|name| name.strip_prefix(PREFIX));
    let read = |run: &str| {
        let path = directory.join(format!("{PREFIX}{run}"));
        one(run, &path)
            .inspect_err(|error| tracing::warn!(%error, path = %path.display(), "usage: calls of a former run"))
            .ok()
    };
    runs.filter_map(read).collect()
}

fn one(run: &str, path: &Path) -> io::Result<Former> {
    let bytes = fs::read(path)?;
    let at = jiff::Timestamp::try_from(fs::metadata(path)?.modified()?).unwrap_or_else(|_| jiff::Timestamp::now());
    let mut all: HashMap<DeploymentId, Vec<(Part, Counts)>> = HashMap::new();
    for (deployment, user, counts) in bytes.chunks(RECORD).filter_map(read) {
        let parts = all.entry(deployment).or_insert_with(|| vec![(Part::Whole, Counts::default())]);
        if let Some((_, whole)) = parts.first_mut() {
            whole.requests += counts.requests;
            whole.errors += counts.errors;
            whole.sent += counts.sent;
        }
        parts.push((Part::User(user), counts));
    }
    Ok(Former { run: run.to_owned(), path: path.to_owned(), counts: all.into_iter().collect(), at })
}

impl Former {
    /// Its counts are in the book, and the book is written down. Answers whether the file is gone.
    pub(super) fn remove(&self) -> bool {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.path.display(), "usage: a file that nobody needs is not removed");
                false
            }
            _ => true,
        }
    }
}
