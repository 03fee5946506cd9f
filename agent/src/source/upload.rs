//! Folders uploaded by a console, as zstd-compressed tars named by their hash.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cache::{private_dir, ulid_name};
use super::{SourceError, blocking, disk};

/// A finished upload is kept so long after its last use: an operation that goes on after a restart needs it again.
const KEPT: Duration = Duration::from_secs(3600);
/// Uploads under way at once.
const AT_ONCE: usize = 16;

#[derive(Clone, Debug)]
pub(super) struct Uploads {
    dir: Arc<Path>,
    turns: Arc<Semaphore>,
}

/// An upload in progress; dropping it leaves nothing.
#[derive(Debug)]
pub struct Upload {
    label: String,
    file: Option<fs::File>,
    temporary: tempfile::TempPath,
    dir: Arc<Path>,
    hash: Sha256,
    announced: u64,
    limit: u64,
    received: u64,
    _turn: OwnedSemaphorePermit,
}

impl Uploads {
    pub(super) fn open(dir: &Path) -> Result<Self, SourceError> {
        private_dir(dir)?;
        for entry in fs::read_dir(dir).map_err(|e| disk(dir, &e))?.flatten() {
            if entry.path().extension().is_some_and(|e| e == "part") {
                fs::remove_file(entry.path()).map_err(|e| disk(&entry.path(), &e))?;
            }
        }
        let uploads = Self { dir: dir.into(), turns: Arc::new(Semaphore::new(AT_ONCE)) };
        uploads.sweep();
        Ok(uploads)
    }

    pub(super) fn begin(&self, label: &str, size: u64, limit: u64) -> Result<Upload, SourceError> {
        if size > limit {
            return Err(too_large(label, limit));
        }
        let turn = self.turns.clone().try_acquire_owned().map_err(|_| {
            SourceError::refused(format!("{AT_ONCE} uploads are under way"), "wait for one of them to finish")
        })?;
        let path = self.dir.join(format!("{}.part", ulid_name()));
        let file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(|e| disk(&path, &e))?;
        let temporary = tempfile::TempPath::try_from_path(path.clone()).map_err(|e| disk(&path, &e))?;
        Ok(Upload {
            label: label.to_owned(),
            file: Some(file),
            temporary,
            dir: self.dir.clone(),
            hash: Sha256::new(),
            announced: size,
            limit,
            received: 0,
            _turn: turn,
        })
    }

    /// The archive of a finished upload.
    pub(super) fn open_finished(&self, id: &str) -> Result<PathBuf, SourceError> {
        let hex = id.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
            return Err(SourceError::refused(format!("'{id}' is not an upload"), "it is sha256: and 64 hex digits"));
        }
        let path = self.dir.join(format!("{hex}.tar.zst"));
        let touched = fs::File::options().append(true).open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        match touched {
            Ok(()) => Ok(path),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(SourceError::not_found(
                format!("upload {id} is not here (any more)"),
                "uploads are kept for an hour; upload the folder again",
            )),
            Err(e) => Err(disk(&path, &e)),
        }
    }

    /// Removes what expired.
    pub(super) fn sweep(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let old =
                entry.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|age| age > KEPT));
            if old && entry.path().extension().is_some_and(|e| e == "zst") {
                let _tried_again_next_time = fs::remove_file(entry.path());
            }
        }
    }
}

impl Upload {
    /// Adds a chunk.
    ///
    /// # Errors
    /// [`SourceError::Refused`] when more comes than was announced or is allowed; [`SourceError::Failed`] from the disk.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), SourceError> {
        self.received = self.received.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if self.received > self.limit {
            return Err(too_large(&self.label, self.limit));
        }
        if self.announced > 0 && self.received > self.announced {
            return Err(SourceError::refused(
                format!("the upload of '{}' is longer than the {} bytes announced", self.label, self.announced),
                "upload it again",
            ));
        }
        self.hash.update(data);
        let Some(mut file) = self.file.take() else {
            return Err(SourceError::failed(
                format!("the upload of '{}' failed before", self.label),
                "upload it again",
            ));
        };
        let (path, data) = (self.temporary.to_path_buf(), data.to_vec());
        let written = blocking(move || {
            file.write_all(&data).map_err(|e| disk(&path, &e))?;
            Ok(file)
        });
        self.file = Some(written.await?);
        Ok(())
    }

    /// Ends it; answers its id (`sha256:…` of the archive) and its length in bytes.
    ///
    /// # Errors
    /// [`SourceError::Refused`] when less came than was announced; [`SourceError::Failed`] from the disk.
    pub async fn finish(self) -> Result<(String, u64), SourceError> {
        let Self { label, file, temporary, dir, hash, announced, received, .. } = self;
        if received == 0 || (announced > 0 && received < announced) {
            return Err(SourceError::refused(
                format!("the upload of '{label}' ended after {received} of {announced} bytes"),
                "upload it again",
            ));
        }
        let Some(file) = file else {
            return Err(SourceError::failed(format!("the upload of '{label}' failed before"), "upload it again"));
        };
        let hex = hex::encode(hash.finalize());
        let path = dir.join(format!("{hex}.tar.zst"));
        blocking(move || {
            file.sync_all().map_err(|e| disk(&path, &e))?;
            temporary.persist(&path).map_err(|e| disk(&path, &e.error))?;
            Ok((format!("sha256:{hex}"), received))
        })
        .await
    }
}

fn too_large(label: &str, limit: u64) -> SourceError {
    SourceError::refused(
        format!("'{label}' is larger than {} MiB", limit >> 20),
        "leave out what the server does not need (.dockerignore), or raise [sources] max_bytes",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|e| e.unwrap().file_name().to_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn an_upload_is_named_by_its_hash() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path()).unwrap();
        let mut upload = uploads.begin("./x", 6, 100).unwrap();
        upload.write(b"abc").await.unwrap();
        upload.write(b"def").await.unwrap();
        let (id, size) = upload.finish().await.unwrap();
        assert_eq!((id, size), (format!("sha256:{}", hex::encode(Sha256::digest(b"abcdef"))), 6));
        let id = format!("sha256:{}", hex::encode(Sha256::digest(b"abcdef")));
        assert_eq!(fs::read(uploads.open_finished(&id).unwrap()).unwrap(), b"abcdef");
        assert_eq!(names(dir.path()).len(), 1);
    }

    #[tokio::test]
    async fn wrong_lengths_are_refused_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path()).unwrap();
        assert!(matches!(uploads.begin("./x", 101, 100), Err(SourceError::Refused { .. })));
        let mut upload = uploads.begin("./x", 5, 100).unwrap();
        assert!(matches!(upload.write(b"abcdef").await, Err(SourceError::Refused { .. })));
        drop(upload);
        let mut upload = uploads.begin("./x", 5, 100).unwrap();
        upload.write(b"abc").await.unwrap();
        assert!(matches!(upload.finish().await, Err(SourceError::Refused { .. })));
        let mut upload = uploads.begin("./x", 0, 100).unwrap();
        assert!(matches!(upload.write(&[0; 101]).await, Err(SourceError::Refused { .. })));
        drop(upload);
        assert!(matches!(uploads.begin("./x", 0, 1).unwrap().finish().await, Err(SourceError::Refused { .. })));
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn ids_are_checked_and_old_uploads_go() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path()).unwrap();
        for id in ["", "sha256:", "sha256:../../etc/passwd", &format!("sha256:{}", "G".repeat(64))] {
            assert!(matches!(uploads.open_finished(id), Err(SourceError::Refused { .. })), "{id}");
        }
        let missing = format!("sha256:{}", "0".repeat(64));
        assert!(matches!(uploads.open_finished(&missing), Err(SourceError::NotFound { .. })));
        let old = dir.path().join(format!("{}.tar.zst", "0".repeat(64)));
        fs::write(&old, "x").unwrap();
        let time = SystemTime::now() - KEPT - Duration::from_secs(1);
        fs::File::options().append(true).open(&old).unwrap().set_modified(time).unwrap();
        fs::write(dir.path().join("1-2.part"), "x").unwrap();
        Uploads::open(dir.path()).unwrap();
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn only_so_many_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path()).unwrap();
        let mut under_way: Vec<_> = (0..AT_ONCE).map(|_| uploads.begin("./x", 1, 100).unwrap()).collect();
        assert!(matches!(uploads.begin("./x", 1, 100), Err(SourceError::Refused { .. })));
        under_way.pop();
        assert!(uploads.begin("./x", 1, 100).is_ok());
    }
}
