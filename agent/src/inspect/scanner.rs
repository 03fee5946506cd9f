//! Runs the scanner over a tree, on every processor there is, and keeps what it says of each file.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use jiff::Timestamp;
use sigil_config::flaw::Flaw;
use sigil_config::rules::{Followed, Rule};
use sigil_core::scan::{self, Look, Own, Report};
use tokio::sync::watch;

use super::looks::Looks;
use super::verdicts::Verdicts;

/// Bytes of looks that are kept on disk.
const KEPT: u64 = 64 << 20;

/// The scanner with what it has seen; clones share it.
#[derive(Clone, Debug)]
pub struct Scanner {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    /// Open while somebody scans: an agent that has nothing to scan holds no index in memory.
    looks: Mutex<Weak<Looks>>,
    /// The owner's rules as they are read, and the last of them ready to run.
    rules: watch::Receiver<Followed>,
    ready: Mutex<(Arc<Vec<Rule>>, Arc<Own>)>,
    verdicts: Mutex<Verdicts>,
}

/// What is wrong with rules that can be read: their examples are run.
pub fn examine(rules: &[Rule]) -> Vec<Flaw> {
    match Own::new(rules) {
        Ok(_) => scan::examine(rules),
        Err(flaws) => flaws,
    }
}

/// A tree that has been scanned.
#[derive(Debug)]
pub struct Scanned {
    /// What was found.
    pub report: Report,
    /// Files that had been looked at before, and are the same.
    pub known: usize,
}

impl Scanner {
    /// A scanner that keeps its looks in `<data>/scan`, with the owner's rules of the moment.
    pub fn new(data_dir: &Path, rules: watch::Receiver<Followed>) -> Self {
        let (dir, looks, ready) = (data_dir.join("scan"), Mutex::default(), Mutex::default());
        let verdicts = Mutex::new(Verdicts::open(&dir));
        Self { shared: Arc::new(Shared { dir, looks, rules, ready, verdicts }) }
    }

    /// What scans have said of sources.
    pub(super) fn verdicts(&self) -> MutexGuard<'_, Verdicts> {
        self.shared.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the last scan of a source with this digest said, and when; `None`: it is not known any more, or never was scanned.
    pub fn said(&self, digest: &str) -> Option<(Vec<scan::Finding>, Timestamp)> {
        self.verdicts().get(digest).map(|verdict| (verdict.findings.clone(), verdict.at))
    }

    /// The owner's rules, as they change.
    pub(super) fn rules(&self) -> watch::Receiver<Followed> {
        self.shared.rules.clone()
    }

    /// Which scanner this is, with which rules: another one may say something else.
    pub fn stamp(&self) -> String {
        stamp(&self.own())
    }

    /// The owner's rules that are in force.
    fn own(&self) -> Arc<Own> {
        let given = self.shared.rules.borrow().rules.clone();
        let mut ready = self.shared.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&ready.0, &given) {
            match Own::new(&given) {
                Ok(own) => *ready = (given, Arc::new(own)),
                // they were examined before they were given on
                Err(flaws) => tracing::error!(?flaws, "the scanner's own rules cannot be used"),
            }
        }
        ready.1.clone()
    }

    /// Scans the files below a directory, and remembers what is said of the source with this digest. Blocks.
    ///
    /// # Errors
    /// The first file or directory that cannot be read.
    pub fn scan(&self, root: &Path, digest: &str) -> std::io::Result<Scanned> {
        self.run(root, digest, std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// The same on one processor, while others have work to do.
    ///
    /// # Errors
    /// As [`Scanner::scan`].
    pub fn scan_quietly(&self, root: &Path, digest: &str) -> std::io::Result<Scanned> {
        self.run(root, digest, 1)
    }

    fn run(&self, root: &Path, digest: &str, threads: usize) -> std::io::Result<Scanned> {
        let began = Instant::now();
        let files = read(root)?;
        let (looks, own) = (self.looks(), self.own());
        let known = AtomicUsize::new(0);
        let threads = threads.min(files.len().max(1));
        let next = AtomicUsize::new(0);
        let work = || {
            let file = || files.get(next.fetch_add(1, Ordering::Relaxed));
            std::iter::from_fn(file)
                .map(|(path, bytes)| one(path, bytes, &own, looks.as_deref(), &known))
                .collect::<Vec<_>>()
        };
        let all = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut all = work();
            for other in others {
                match other.join() {
                    Ok(more) => all.extend(more),
                    // a file that is not looked at must not pass as clean
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            all
        });
        let mut report = scan::join_with(all, &own);
        report.elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.verdicts().put(digest, &stamp(&own), &report, Timestamp::now());
        Ok(Scanned { report, known: known.into_inner() })
    }

    fn looks(&self) -> Option<Arc<Looks>> {
        let mut held = self.shared.looks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = held.upgrade() {
            return Some(open);
        }
        match Looks::open(&self.shared.dir, KEPT) {
            Ok(looks) => {
                let looks = Arc::new(looks);
                *held = Arc::downgrade(&looks);
                Some(looks)
            }
            Err(error) => {
                tracing::warn!(%error, "looks at files cannot be kept; every file is looked at");
                None
            }
        }
    }
}

fn stamp(own: &Own) -> String {
    format!("{}+{}", scan::ENGINE, hex::encode(own.digest()))
}

/// Looks at one file, or takes what was seen of it before.
fn one<'f>(path: &'f str, bytes: &'f [u8], own: &Own, looks: Option<&Looks>, known: &AtomicUsize) -> Look<'f> {
    let Some(looks) = looks.filter(|_| scan::is_text(bytes)) else { return scan::look_with(path, bytes, own) };
    let key = scan::key(path, bytes, own);
    if let Some(look) = looks.get(&key).and_then(|kept| Look::kept(path, bytes, &kept)) {
        known.fetch_add(1, Ordering::Relaxed);
        return look;
    }
    let look = scan::look_with(path, bytes, own);
    if let Some(kept) = look.keep() {
        looks.put(&key, &kept);
    }
    look
}

/// The files of a tree. Of those that no rule reads there is no more than that they are there.
fn read(root: &Path) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut stack: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let path = entry.path();
            if kind.is_dir() {
                stack.push(path);
            } else if kind.is_file() && entry.metadata()?.len() <= scan::MAX_FILE as u64 {
                let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                let bytes = std::fs::read(&path)?;
                files.push((name, if scan::is_text(&bytes) { bytes } else { vec![0] }));
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanner(data: &Path) -> Scanner {
        Scanner::new(data, watch::channel(Followed::default()).1)
    }

    #[test]
    fn other_rules_look_again() {
        let (data, tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(tree.path().join("a.py"), "legacy()\n").unwrap();
        let (set, rules) = watch::channel(Followed::default());
        let scanner = Scanner::new(data.path(), rules);
        assert!(scanner.scan(tree.path(), "sha256:t").unwrap().report.findings.is_empty());
        let text =
            "[[rule]]\nid='own'\nclass='c'\nseverity='block'\ncall=['legacy']\nmessage='m'\nimpact='i'\nfix='f'\n";
        let (own, flaws) = sigil_config::rules::parse("r.toml", text, false);
        assert_eq!((flaws, examine(&own)), (vec![], vec![]));
        set.send_replace(Followed { rules: Arc::new(own), refused: None });
        for known in [0, 1] {
            let scanned = scanner.scan(tree.path(), "sha256:t").unwrap();
            assert_eq!((scanned.known, scanned.report.findings[0].rule.as_str()), (known, "own"));
        }
        set.send_replace(Followed::default());
        let scanned = scanner.scan(tree.path(), "sha256:t").unwrap();
        assert_eq!((scanned.known, scanned.report.findings.len()), (1, 0));
    }

    #[test]
    fn a_file_that_was_looked_at_is_known_and_a_changed_one_is_not() {
        let (data, tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let put = |name: &str, text: &str| std::fs::write(tree.path().join(name), text).unwrap();
        put("Dockerfile", "FROM x\n");
        put("a.py", "d = 'x\u{e0041}'\n");
        let scanner = scanner(data.path());
        let first = scanner.scan(tree.path(), "sha256:t").unwrap();
        let second = scanner.scan(tree.path(), "sha256:t").unwrap();
        assert_eq!((first.known, second.known), (0, 2));
        assert_eq!(first.report.findings, second.report.findings);
        assert_eq!(second.report.files, 2);
        put("a.py", "d = 'x'\n");
        let third = scanner.clone().scan(tree.path(), "sha256:t").unwrap();
        assert_eq!(third.known, 1);
        assert!(third.report.findings.iter().all(|f| f.path == "Dockerfile"), "{third:?}");
    }

    #[test]
    fn without_a_place_to_keep_looks_every_file_is_looked_at() {
        let (data, tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(data.path().join("scan"), "no directory").unwrap();
        std::fs::write(tree.path().join("Dockerfile"), "FROM x\n").unwrap();
        let scanner = scanner(data.path());
        for _ in 0..2 {
            let scanned = scanner.scan(tree.path(), "sha256:t").unwrap();
            assert_eq!((scanned.known, scanned.report.findings.is_empty()), (0, false));
        }
    }
}
