//! What deployments' volumes take on disk. Nobody keeps count of that, so their files are looked at: seldom, on a thread of the
//! least priority, so many at most in one pass and no longer than so. What a pass does not get to, the next begins with.
//!
//! Servers write there what they like: no link is followed, no other file system entered, and no path is opened that a server
//! could have put something else in the place of.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use sigil_core::model::DeploymentId;
use tokio_util::sync::CancellationToken;

use super::Deps;
use crate::engine::label;

/// How often they are looked at.
const EVERY: Duration = Duration::from_secs(1800);
/// Files and directories of one pass.
const FILES: u64 = 1_000_000;
/// How long a pass takes at most.
const TIME: Duration = Duration::from_secs(60);
/// Between so many files it rests, and for how long.
const BATCH: u64 = 512;
const REST: Duration = Duration::from_millis(5);
/// How deep directories are followed: each has a descriptor while it is looked at.
const DEPTH: usize = 64;
/// Names of files with several that are remembered, so that each counts once.
const LINKED: usize = 100_000;

/// What a deployment's volumes take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volumes {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files and directories.
    pub files: u64,
    /// There is more: it was too much to be looked at, or could not be.
    pub more: bool,
}

/// One volume, as it was seen last.
#[derive(Clone, Debug)]
struct Seen {
    deployment: DeploymentId,
    took: Volumes,
}

#[derive(Default)]
struct Held {
    by_name: HashMap<String, Seen>,
    /// With whom the next pass begins.
    next: Option<String>,
    sums: Arc<HashMap<DeploymentId, Volumes>>,
    /// Told once.
    unreadable: bool,
}

/// Looks at volumes, off the loop.
pub(super) struct Disk {
    deps: Arc<Deps>,
    held: Arc<Mutex<Held>>,
    looked: Option<Instant>,
    looking: Option<tokio::task::JoinHandle<()>>,
    stop: CancellationToken,
}

impl Disk {
    pub(super) fn new(deps: Arc<Deps>, stop: CancellationToken) -> Self {
        Self { deps, held: Arc::default(), looked: None, looking: None, stop }
    }

    pub(super) fn volumes(&self) -> Arc<HashMap<DeploymentId, Volumes>> {
        lock(&self.held).sums.clone()
    }

    /// Begins a pass when it is time; one at a time.
    pub(super) fn look(&mut self) {
        let due = self.looked.is_none_or(|at| at.elapsed() >= EVERY);
        if !due || self.looking.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        self.looked = Some(Instant::now());
        let (deps, held, stop) = (self.deps.clone(), self.held.clone(), self.stop.clone());
        self.looking = Some(tokio::spawn(pass(deps, held, stop)));
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pass(deps: Arc<Deps>, held: Arc<Mutex<Held>>, stop: CancellationToken) {
    let listed = match deps.engine.volume_places().await {
        Ok(listed) => listed,
        Err(error) => return tracing::debug!(%error, "volumes cannot be listed; what they took counts on"),
    };
    let known: HashSet<DeploymentId> = deps.store.deployments().iter().map(|d| d.id).collect();
    let place = |(name, labels, path): (String, std::collections::BTreeMap<String, String>, PathBuf)| {
        let deployment = labels.get(label::DEPLOYMENT_ID)?.parse().ok()?;
        known.contains(&deployment).then_some((name, deployment, path))
    };
    let mut places: Vec<(String, DeploymentId, PathBuf)> = listed.into_iter().filter_map(place).collect();
    places.sort();
    let (done, ended) = tokio::sync::oneshot::channel();
    // its own thread: the priority of one that others use next could not be raised again
    let made = std::thread::Builder::new().name("volumes".to_owned()).spawn(move || {
        if let Err(error) = rustix::process::setpriority_process(None, 19) {
            tracing::debug!(%error, "volumes are looked at with the agent's own priority");
        }
        walk_all(&held, &places, &stop);
        let _nobody_waits = done.send(());
    });
    match made {
        Ok(_ends_by_itself) => drop(ended.await),
        Err(error) => tracing::warn!(%error, "volumes cannot be looked at"),
    }
}

fn walk_all(held: &Mutex<Held>, places: &[(String, DeploymentId, PathBuf)], stop: &CancellationToken) {
    let (mut by_name, next) = {
        let held = lock(held);
        (held.by_name.clone(), held.next.clone())
    };
    let names: HashSet<&str> = places.iter().map(|(name, ..)| name.as_str()).collect();
    by_name.retain(|name, _| names.contains(name.as_str()));
    let first = next.and_then(|next| places.iter().position(|(name, ..)| *name == next)).unwrap_or(0);
    let mut walk = Walk::new(FILES, TIME, stop.clone());
    let mut next = None;
    for at in 0..places.len() {
        let Some((name, deployment, path)) = places.get((first + at) % places.len()) else { break };
        if walk.is_over() {
            next = Some(name.clone());
            break;
        }
        match walk.volume(path) {
            Ok(took) => {
                // one that was not looked at wholly has at least what it had
                let old = by_name.get(name).filter(|_| took.more).map_or(0, |old| old.took.bytes);
                let took = Volumes { bytes: took.bytes.max(old), ..took };
                by_name.insert(name.clone(), Seen { deployment: *deployment, took });
            }
            Err(error) => {
                if !std::mem::replace(&mut lock(held).unreadable, true) {
                    tracing::warn!(%error, path = %path.display(), "a volume cannot be read: its storage is not counted");
                }
                let old = by_name.get(name).map(|seen| seen.took).unwrap_or_default();
                by_name.insert(name.clone(), Seen { deployment: *deployment, took: Volumes { more: true, ..old } });
            }
        }
    }
    let mut sums: HashMap<DeploymentId, Volumes> = HashMap::new();
    for seen in by_name.values() {
        let sum = sums.entry(seen.deployment).or_default();
        sum.bytes += seen.took.bytes;
        sum.files += seen.took.files;
        sum.more |= seen.took.more;
    }
    let mut held = lock(held);
    (held.by_name, held.next, held.sums) = (by_name, next, Arc::new(sums));
}

/// One pass, and what is left of its time.
struct Walk {
    left: u64,
    until: Instant,
    rested: u64,
    stop: CancellationToken,
}

impl Walk {
    fn new(files: u64, time: Duration, stop: CancellationToken) -> Self {
        Self { left: files, until: Instant::now() + time, rested: 0, stop }
    }

    fn is_over(&self) -> bool {
        self.left == 0 || Instant::now() >= self.until || self.stop.is_cancelled()
    }

    /// Everything below a directory, and the directory.
    fn volume(&mut self, path: &Path) -> Result<Volumes, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&root)?;
        let device = stat.st_dev;
        let mut sum = Volumes { bytes: on_disk(stat.st_blocks), files: 1, more: false };
        let mut linked: HashSet<u64> = HashSet::new();
        let mut open: Vec<Dir> = vec![Dir::new(root)?];
        while let Some(directory) = open.last_mut() {
            let entry = match directory.read() {
                None => {
                    open.pop();
                    continue;
                }
                Some(Ok(entry)) => entry,
                Some(Err(_)) => {
                    sum.more = true;
                    open.pop();
                    continue;
                }
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if self.is_over() {
                sum.more = true;
                break;
            }
            self.left -= 1;
            self.rested += 1;
            if self.rested.is_multiple_of(BATCH) {
                std::thread::sleep(REST);
            }
            let Ok(at) = directory.fd() else { continue };
            // it may have gone meanwhile
            let Ok(stat) = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if stat.st_dev != device {
                continue;
            }
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if stat.st_nlink > 1 && !is_directory {
                if linked.contains(&stat.st_ino) {
                    continue;
                }
                if linked.len() < LINKED {
                    linked.insert(stat.st_ino);
                }
            }
            sum.files += 1;
            sum.bytes += on_disk(stat.st_blocks);
            if is_directory {
                let below: Result<OwnedFd, Errno> = rustix::fs::openat(at, name, flags, Mode::empty());
                match below.and_then(Dir::new) {
                    Ok(below) if open.len() < DEPTH => open.push(below),
                    _ => sum.more = true,
                }
            }
        }
        Ok(sum)
    }
}

/// A file's blocks are counted in 512 bytes, whatever the file system's own are.
fn on_disk(blocks: i64) -> u64 {
    u64::try_from(blocks).unwrap_or(0).saturating_mul(512)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn walk(files: u64) -> Walk {
        Walk::new(files, Duration::from_secs(60), CancellationToken::new())
    }

    fn du(path: &Path) -> u64 {
        let told = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(path).output().unwrap();
        String::from_utf8(told.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn a_volume_takes_what_du_says_and_links_count_once() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
        std::fs::create_dir_all(volume.join("a/b")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(outside.join("large"), vec![1; 3 << 20]).unwrap();
        std::fs::write(volume.join("a/b/file"), vec![1; 300_000]).unwrap();
        std::fs::hard_link(volume.join("a/b/file"), volume.join("a/again")).unwrap();
        symlink(&outside, volume.join("out")).unwrap();
        symlink(outside.join("large"), volume.join("a/out")).unwrap();
        // one with a hole: what it takes, not what it says
        std::fs::File::create(volume.join("hole")).unwrap().set_len(1 << 30).unwrap();
        let took = walk(1000).volume(&volume).unwrap();
        assert_eq!((took.bytes, took.more), (du(&volume), false));
        assert_eq!(took.files, 7, "{took:?}");
        assert!(took.bytes < 1 << 20);
        assert!(walk(1000).volume(&dir.path().join("none")).is_err());
        symlink(&outside, dir.path().join("link")).unwrap();
        assert!(walk(1000).volume(&dir.path().join("link")).is_err(), "a place that is a link is none");
    }

    #[test]
    fn a_pass_has_an_end_and_the_next_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let deployment = |n: u128| DeploymentId::from(ulid::Ulid::from(n));
        let mut places = Vec::new();
        for (at, name) in ["a", "b", "c"].iter().enumerate() {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            for n in 0..10 {
                std::fs::write(path.join(n.to_string()), b"x").unwrap();
            }
            places.push(((*name).to_owned(), deployment(if at < 2 { 1 } else { 2 }), path));
        }
        let took = walk(5).volume(&places[0].2).unwrap();
        assert!(took.more && took.files == 6, "{took:?}");
        let mut deep = dir.path().join("a");
        for _ in 0..DEPTH + 5 {
            deep = deep.join("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        let took = walk(1000).volume(&places[0].2).unwrap();
        assert!(took.more && took.files > DEPTH as u64, "{took:?}");

        let held = Mutex::new(Held { next: Some("c".into()), ..Held::default() });
        let stop = CancellationToken::new();
        walk_all(&held, &places, &stop);
        let sums = lock(&held).sums.clone();
        assert_eq!(sums[&deployment(2)].files, 11);
        assert!(sums[&deployment(1)].files > 22 && sums[&deployment(1)].more);
        // one whose files cannot be looked at keeps what it had
        std::fs::remove_dir_all(dir.path().join("c")).unwrap();
        walk_all(&held, &places, &stop);
        let again = lock(&held).sums.clone();
        assert_eq!((again[&deployment(2)].bytes, again[&deployment(2)].more), (sums[&deployment(2)].bytes, true));
        // and one that is gone has nothing
        walk_all(&held, &places[..2], &stop);
        assert!(!lock(&held).sums.contains_key(&deployment(2)));
        stop.cancel();
        walk_all(&held, &places, &stop);
        assert_eq!(lock(&held).next.as_deref(), Some("a"), "nothing was looked at");
    }
}
