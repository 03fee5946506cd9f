//! Trees by content digest, with an index from what was asked for (`npm name 1.2.3 <integrity>`) to the digest.
//!
//! A tree is `<digest>/`, complete from the moment it has its name. Beside it `<digest>.used`, whose time is that of
//! the last use and whose text is the size. `index/<hash>` names a digest. `tmp/` is emptied at start.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::tree::{self, Written};
use super::{SourceError, blocking, disk};

#[derive(Debug, Default)]
struct Uses {
    /// Guards by digest (hex).
    held: HashMap<String, usize>,
    /// Trees whose content was compared with their name since the start.
    verified: HashSet<String>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    uses: Mutex<Uses>,
}

/// The cache; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    inner: Arc<Inner>,
}

/// Keeps a tree from the cache's cleaner.
#[derive(Debug)]
pub struct TreeGuard {
    held: Option<(Arc<Inner>, String)>,
}

impl TreeGuard {
    /// Guards nothing (images have no tree).
    pub fn none() -> Self {
        Self { held: None }
    }
}

impl Drop for TreeGuard {
    fn drop(&mut self) {
        if let Some((inner, hex)) = self.held.take() {
            let mut uses = lock(&inner.uses);
            if let Some(count) = uses.held.get_mut(&hex) {
                *count -= 1;
                if *count == 0 {
                    uses.held.remove(&hex);
                }
            }
        }
    }
}

fn lock(uses: &Mutex<Uses>) -> MutexGuard<'_, Uses> {
    uses.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    pub(super) fn open(dir: &Path) -> Result<Self, SourceError> {
        let tmp = dir.join("tmp");
        match fs::remove_dir_all(&tmp) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(disk(&tmp, &e)),
            _ => {}
        }
        for folder in [dir.to_owned(), dir.join("index"), tmp] {
            private_dir(&folder)?;
        }
        Ok(Self { inner: Arc::new(Inner { dir: dir.to_owned(), uses: Mutex::default() }) })
    }

    /// A folder of one's own, removed when dropped, and at start after a crash.
    pub(super) fn scratch(&self) -> Result<tempfile::TempDir, SourceError> {
        let tmp = self.inner.dir.join("tmp");
        let private = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
        tempfile::Builder::new().prefix("f-").permissions(private).tempdir_in(&tmp).map_err(|e| disk(&tmp, &e))
    }

    /// Digest, tree and guard of what was kept under a key.
    pub(super) async fn find(&self, key: &str) -> Result<Option<(String, PathBuf, Arc<TreeGuard>)>, SourceError> {
        let cache = self.clone();
        let index = self.index(key);
        blocking(move || {
            let Ok(text) = fs::read_to_string(&index) else { return Ok(None) };
            let hex = text.trim();
            if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Ok(None);
            }
            Ok(cache.take(hex)?.map(|(path, guard)| (format!("sha256:{hex}"), path, guard)))
        })
        .await
    }

    /// A tree by its digest.
    pub(super) async fn tree(&self, digest: &str) -> Result<Option<(PathBuf, Arc<TreeGuard>)>, SourceError> {
        let cache = self.clone();
        let hex = digest.trim_start_matches("sha256:").to_owned();
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(None);
        }
        blocking(move || cache.take(&hex)).await
    }

    /// A tree by digest, compared with its name once after each start: a power cut may have left it half written.
    fn take(&self, hex: &str) -> Result<Option<(PathBuf, Arc<TreeGuard>)>, SourceError> {
        let path = self.inner.dir.join(hex);
        let guard = self.hold(hex);
        if !path.is_dir() {
            return Ok(None);
        }
        if !lock(&self.inner.uses).verified.contains(hex) {
            let good = tree::measure(&path).is_ok_and(|(digest, _)| digest == format!("sha256:{hex}"));
            if !good {
                tracing::warn!(digest = hex, "a kept source tree was damaged and is fetched again");
                drop(guard);
                self.evict(hex);
                return Ok(None);
            }
            lock(&self.inner.uses).verified.insert(hex.to_owned());
        }
        self.touch(hex);
        Ok(Some((path, guard)))
    }

    /// Moves a written tree to its name. Another fetch may have been first: then that one is used.
    pub(super) fn keep(
        &self,
        tree: &Path,
        written: &Written,
        key: &str,
        budget: u64,
    ) -> Result<(PathBuf, Arc<TreeGuard>), SourceError> {
        let hex = written.digest.trim_start_matches("sha256:");
        let found = match self.take(hex)? {
            Some(found) => found,
            None => {
                let path = self.inner.dir.join(hex);
                let guard = self.hold(hex);
                match fs::rename(tree, &path) {
                    Ok(()) => {}
                    Err(_) if path.is_dir() => {}
                    Err(e) => return Err(disk(&path, &e)),
                }
                let used = self.used(hex);
                fs::write(&used, written.bytes.to_string()).map_err(|e| disk(&used, &e))?;
                lock(&self.inner.uses).verified.insert(hex.to_owned());
                (path, guard)
            }
        };
        let index = self.index(key);
        let temporary = self.inner.dir.join("tmp").join(format!("i-{}", ulid_name()));
        fs::write(&temporary, hex).and_then(|()| fs::rename(&temporary, &index)).map_err(|e| disk(&index, &e))?;
        self.sweep(budget);
        Ok(found)
    }

    /// Removes the longest unused trees until the rest fits, and index entries that lead nowhere.
    pub(super) fn sweep(&self, budget: u64) {
        let mut kept: Vec<(SystemTime, String, u64)> = Vec::new();
        let mut total = 0_u64;
        for entry in fs::read_dir(&self.inner.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(hex) = name.to_str().filter(|n| n.len() == 64).map(str::to_owned) else { continue };
            let used = self.used(&hex);
            let size = fs::read_to_string(&used).ok().and_then(|t| t.parse().ok());
            // a crash between rename and note: measure it now
            let size = size.unwrap_or_else(|| {
                let size = tree::measure(&entry.path()).map_or(0, |(_, size)| size);
                let _measured_again_next_time = fs::write(&used, size.to_string());
                size
            });
            let time = fs::metadata(&used).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            total = total.saturating_add(size);
            kept.push((time, hex, size));
        }
        kept.sort();
        for (_, hex, size) in kept {
            if total <= budget {
                break;
            }
            if self.evict(&hex) {
                total = total.saturating_sub(size);
            }
        }
        for entry in fs::read_dir(self.inner.dir.join("index")).into_iter().flatten().flatten() {
            let leads = fs::read_to_string(entry.path()).is_ok_and(|hex| self.inner.dir.join(hex.trim()).is_dir());
            if !leads {
                let _tried_again_next_time = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes a tree unless it is held; answers whether it did.
    fn evict(&self, hex: &str) -> bool {
        let aside = self.inner.dir.join("tmp").join(format!("e-{}", ulid_name()));
        {
            let mut uses = lock(&self.inner.uses);
            if uses.held.contains_key(hex) || fs::rename(self.inner.dir.join(hex), &aside).is_err() {
                return false;
            }
            uses.verified.remove(hex);
        }
        let _gone_already = fs::remove_file(self.used(hex));
        if let Err(error) = fs::remove_dir_all(&aside) {
            tracing::warn!(%error, "a dropped source tree could not be removed; the next start tries again");
        }
        true
    }

    fn hold(&self, hex: &str) -> Arc<TreeGuard> {
        *lock(&self.inner.uses).held.entry(hex.to_owned()).or_insert(0) += 1;
        Arc::new(TreeGuard { held: Some((self.inner.clone(), hex.to_owned())) })
    }

    fn touch(&self, hex: &str) {
        let now = fs::File::options().append(true).open(self.used(hex)).and_then(|f| f.set_modified(SystemTime::now()));
        if let Err(error) = now {
            tracing::debug!(%error, "the time of use of a source tree was not noted");
        }
    }

    fn used(&self, hex: &str) -> PathBuf {
        self.inner.dir.join(format!("{hex}.used"))
    }

    fn index(&self, key: &str) -> PathBuf {
        self.inner.dir.join("index").join(hex::encode(Sha256::digest(key.as_bytes())))
    }
}

/// A name that no other one of this process has had.
pub(super) fn ulid_name() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A folder that only we can reach.
pub(super) fn private_dir(path: &Path) -> Result<(), SourceError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| disk(path, &e))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|e| disk(path, &e))
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::super::tree::{Limits, TreeWriter};
    use super::*;

    fn put(cache: &Cache, key: &str, body: &[u8], budget: u64) -> (PathBuf, Arc<TreeGuard>) {
        let scratch = cache.scratch().unwrap();
        let root = scratch.path().join("tree");
        fs::create_dir(&root).unwrap();
        let mut writer = TreeWriter::new(&root, Limits { bytes: 1 << 20, files: 10 }, CancellationToken::new());
        writer.file("f", false, body).unwrap();
        let written = writer.finish().unwrap();
        cache.keep(&root, &written, key, budget).unwrap()
    }

    #[tokio::test]
    async fn what_was_kept_is_found_again_also_by_another_key_and_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let (path, _guard) = put(&cache, "a", b"x", 1 << 20);
        assert_eq!(put(&cache, "b", b"x", 1 << 20).0, path);
        let cache = Cache::open(dir.path()).unwrap();
        let (digest, found, _guard) = cache.find("b").await.unwrap().unwrap();
        assert_eq!(found, path);
        assert!(path.ends_with(digest.trim_start_matches("sha256:")));
        assert!(cache.find("c").await.unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_damaged_tree_is_not_answered() {
        let dir = tempfile::tempdir().unwrap();
        let (path, guard) = put(&Cache::open(dir.path()).unwrap(), "a", b"x", 1 << 20);
        drop(guard);
        fs::write(path.join("f"), "y").unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        assert!(cache.find("a").await.unwrap().is_none());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_longest_unused_goes_first_and_what_is_held_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let (a, held) = put(&cache, "a", &[b'a'; 100], 1000);
        let (b, guard) = put(&cache, "b", &[b'b'; 100], 1000);
        drop(guard);
        let (c, guard) = put(&cache, "c", &[b'c'; 100], 1000);
        drop(guard);
        for (path, age) in [(&a, 30), (&b, 20), (&c, 10)] {
            let used = path.with_extension("used");
            let time = SystemTime::now() - std::time::Duration::from_secs(age);
            fs::File::options().append(true).open(used).unwrap().set_modified(time).unwrap();
        }
        cache.sweep(200);
        assert_eq!((a.exists(), b.exists(), c.exists()), (true, false, true));
        assert!(cache.find("b").await.unwrap().is_none());
        cache.sweep(0);
        assert_eq!((a.exists(), c.exists()), (true, false));
        drop(held);
        cache.sweep(0);
        assert!(!a.exists());
        assert_eq!(fs::read_dir(dir.path().join("index")).unwrap().count(), 0);
    }

    #[test]
    fn leftovers_of_a_crash_are_removed_at_start() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let left = cache.scratch().unwrap().keep();
        fs::write(left.join("half"), "x").unwrap();
        Cache::open(dir.path()).unwrap();
        assert!(!left.exists());
    }
}
