//! Bills of materials: `<data>/sbom/<image>.json`, one for each image of a release that is kept. Made a while after a release
//! has been deployed, or when it is asked for, from what its source locks and what its image has installed; by another agent
//! process than the one that deployed it from the image alone.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use sigil_core::model::Release;
use sigil_core::sbom::{self, Packages};

use super::{Failure, Operate};
use crate::engine::Engine;
use crate::store::{Store, replace_file};

/// Bills younger than this are kept whatever they are of: their release may be about to be made.
const YOUNG: Duration = Duration::from_secs(3600);
/// How long after a deploy the bill of its image is made at the earliest.
const LATER: Duration = Duration::from_secs(60);
/// Bills that wait to be made; of more images they are made when they are asked for.
const PENDING: usize = 100;
/// Said where the source was not at hand.
const NO_LOCKS: &str = "made from the image alone: what its source locks is not in it";

/// A lock file of a source: its path in the tree, and its text.
pub(super) type Lock = (String, String);

/// The lock files of a tree. Blocks.
pub(super) fn locks(tree: &Path) -> Vec<Lock> {
    let mut found = Vec::new();
    let walk = ignore::WalkBuilder::new(tree).standard_filters(false).follow_links(false).max_depth(Some(8)).build();
    for entry in walk.flatten() {
        let Ok(path) = entry.path().strip_prefix(tree) else { continue };
        let path = path.to_string_lossy().into_owned();
        let small = entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= sbom::FILE_MAX);
        if small
            && sbom::is_lock(&path)
            && let Ok(bytes) = std::fs::read(entry.path())
        {
            found.push((path, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    found.sort();
    found
}

fn wanted(path: &str) -> bool {
    sbom::is_installed_record(path) || matches!(path, "etc/os-release" | "usr/lib/os-release")
}

async fn make(engine: &Arc<dyn Engine>, release: &Release, locks: Option<Vec<Lock>>) -> Result<String, Failure> {
    let spec = &release.spec;
    let files = engine
        .read_image(&spec.image, wanted, sbom::FILE_MAX)
        .await
        .map_err(|e| Failure::new("ENGINE", 1, format!("the image cannot be read: {e}"), e.hint()))?;
    let source = spec.source.clone();
    let image = spec.image.clone();
    let made = tokio::task::spawn_blocking(move || {
        let notes = if locks.is_none() { vec![NO_LOCKS.to_owned()] } else { Vec::new() };
        let mut packages = Packages::default();
        for (path, text) in locks.unwrap_or_default() {
            packages.lock(&path, &text);
        }
        let mut distribution = String::new();
        for (path, bytes) in files {
            let text = String::from_utf8_lossy(&bytes);
            if path.ends_with("os-release") {
                distribution = sbom::distribution(&text);
            } else {
                packages.installed(&path, &text);
            }
        }
        let of =
            sbom::Image { name: &source, version: "", id: &image, source: &source, distribution: &distribution, notes };
        sbom::cyclonedx(&of, &packages)
    });
    let made = made.await.map_err(|e| e.to_string()).and_then(|made| made);
    made.map_err(|why| Failure::new("STATE", 1, format!("the bill of materials cannot be written: {why}"), ""))
}

fn place(data_dir: &Path, image: &str) -> PathBuf {
    let plain: String = image.chars().filter(char::is_ascii_alphanumeric).collect();
    data_dir.join("sbom").join(format!("{plain}.json"))
}

fn keep(data_dir: &Path, image: &str, text: &str) -> std::io::Result<()> {
    let path = place(data_dir, image);
    std::fs::create_dir_all(data_dir.join("sbom"))?;
    replace_file(&path, text.as_bytes(), None)
}

/// Removes bills of images that no kept release has. Blocks.
fn tidy(data_dir: &Path, store: &Store) {
    let deployments = store.deployments();
    let releases = deployments.iter().flat_map(|d| &d.releases);
    let kept: HashSet<PathBuf> = releases.map(|release| place(data_dir, &release.spec.image)).collect();
    let Ok(all) = std::fs::read_dir(data_dir.join("sbom")) else { return };
    for file in all.flatten() {
        let made = file.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let old = made.elapsed().is_ok_and(|age| age > YOUNG);
        if old
            && !kept.contains(&file.path())
            && let Err(error) = std::fs::remove_file(file.path())
        {
            tracing::warn!(%error, path = %file.path().display(), "a bill of materials could not be removed");
        }
    }
}

impl Operate {
    /// Makes the bill of a release's image where there is none, some time later, when nothing else is going on: to read an
    /// image through takes the engine seconds, and whoever deploys now may deploy again at once.
    pub(super) fn bill_later(&self, release: &Release, locks: Vec<Lock>) {
        let image = release.spec.image.clone();
        if place(&self.inner.deps.data_dir, &image).exists() {
            return;
        }
        let mut pending = self.pending_bills();
        if pending.len() >= PENDING || pending.insert(image.clone(), locks).is_some() {
            return;
        }
        drop(pending);
        let (this, release) = (self.clone(), release.clone());
        self.inner.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LATER) => {}
                    () = this.inner.stop.cancelled() => return,
                }
                if this.inner.running.lock().is_ok_and(|running| running.is_empty()) {
                    break;
                }
            }
            let (data_dir, store) = (this.inner.deps.data_dir.clone(), this.inner.deps.store.clone());
            let _tidied = tokio::task::spawn_blocking(move || tidy(&data_dir, &store)).await;
            let made = tokio::select! {
                made = this.bill(&release) => made,
                () = this.inner.stop.cancelled() => return,
            };
            this.pending_bills().remove(&image);
            if let Err(failure) = made {
                let error = failure.message;
                tracing::warn!(error, image, "no bill of materials was made; it is when it is asked for");
            }
        });
    }

    /// What is known of images whose bill is to be made: what their sources lock.
    fn pending_bills(&self) -> MutexGuard<'_, HashMap<String, Vec<Lock>>> {
        self.inner.bills.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bill of materials of a release's image: CycloneDX as JSON.
    ///
    /// # Errors
    /// When there is none and the image cannot be read.
    pub async fn bill(&self, release: &Release) -> Result<String, Failure> {
        let path = place(&self.inner.deps.data_dir, &release.spec.image);
        if let Ok(text) = tokio::fs::read_to_string(&path).await {
            return Ok(text);
        }
        let _turn = self.inner.reading.lock().await;
        // it may have been under way
        if let Ok(text) = tokio::fs::read_to_string(&path).await {
            return Ok(text);
        }
        let locks = self.pending_bills().get(&release.spec.image).cloned();
        let text = make(&self.inner.deps.engine, release, locks).await?;
        let (data_dir, image, kept) = (self.inner.deps.data_dir.clone(), release.spec.image.clone(), text.clone());
        let kept = tokio::task::spawn_blocking(move || keep(&data_dir, &image, &kept)).await;
        if let Err(error) = kept.map_err(std::io::Error::other).and_then(|kept| kept) {
            tracing::warn!(%error, image = release.spec.image, "a bill of materials is not kept");
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_files_of_a_tree_are_found_below_its_folders_and_not_behind_links() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("package-lock.json", "{}"),
            ("server/uv.lock", ""),
            ("node_modules/x/package-lock.json", "{}"),
            ("README.md", ""),
            (".hidden/Cargo.lock", ""),
        ] {
            std::fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            std::fs::write(dir.path().join(path), text).unwrap();
        }
        std::os::unix::fs::symlink("/etc", dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("go.sum")).unwrap();
        let found: Vec<String> = locks(dir.path()).into_iter().map(|(path, _)| path).collect();
        assert_eq!(found, [".hidden/Cargo.lock", "package-lock.json", "server/uv.lock"]);
    }

    #[test]
    fn a_bill_is_named_by_its_image_and_nothing_else() {
        let dir = Path::new("/data");
        assert_eq!(place(dir, "sha256:ab12"), Path::new("/data/sbom/sha256ab12.json"));
        assert_eq!(place(dir, "../../x"), Path::new("/data/sbom/x.json"));
    }
}
