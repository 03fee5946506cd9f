//! Reading and replacing a client's file: whole or not at all, its mode and owner kept, links followed, what was there kept for a
//! while. One lock for all clients: two installs at once take turns, each reading what the other wrote.

use std::fs::{File, Metadata, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use crate::cli::fail::{FAILED, Failure};
use crate::{contexts, os};

/// How long another `sigil` may hold the lock.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// Largest file that is read, bytes.
const SIZE_MAX: u64 = 64 << 20;
/// Backups that are kept of each file.
const BACKUPS: usize = 10;

/// The lock; it ends with this.
pub struct Held(#[allow(dead_code, reason = "held, not read")] File);

impl Held {
    /// Waits for the lock.
    pub async fn take() -> Result<Self, Failure> {
        let dir = contexts::state_dir();
        let path = dir.join("clients.lock");
        let failed = |e: &std::io::Error| Failure::io(path.display(), e);
        std::fs::create_dir_all(&dir).map_err(|e| failed(&e))?;
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| failed(&e))?;
        let since = tokio::time::Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_WAIT => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(TryLockError::WouldBlock) => {
                    let message = "another sigil has been changing clients' files for 30 s";
                    return Err(Failure::new(FAILED, "LOCKED", message, "wait for it, or end it, and try again"));
                }
                Err(TryLockError::Error(e)) => return Err(failed(&e)),
            }
        }
    }
}

/// A file as it is.
pub struct Real {
    /// Where it is, links followed.
    pub path: PathBuf,
    /// Its text; none: it is not there.
    pub text: Option<String>,
    about: Option<Metadata>,
}

/// What a change left behind.
#[derive(Debug, Default)]
pub struct Written {
    /// What was there before.
    pub backup: Option<PathBuf>,
    /// Folders that were made, the outermost first.
    pub folders: Vec<PathBuf>,
}

/// Follows links to the place that would be written, also when nothing is there yet.
fn real(path: &Path) -> Result<PathBuf, Failure> {
    let mut at = path.to_path_buf();
    for _ in 0..40 {
        match std::fs::read_link(&at) {
            Ok(to) => at = at.parent().unwrap_or(Path::new("/")).join(to),
            Err(_) => {
                // the folder's own links, too, so that one file has one name in the ledger
                let folder = at.parent().and_then(|folder| folder.canonicalize().ok());
                return Ok(match (folder, at.file_name()) {
                    (Some(folder), Some(name)) => folder.join(name),
                    _ => at,
                });
            }
        }
    }
    Err(Failure::new(FAILED, "CLIENT_FILE", format!("{}: links without an end", path.display()), "mend the links"))
}

/// Reads a client's file.
pub fn read(path: &Path) -> Result<Real, Failure> {
    let path = real(path)?;
    let failed = |e: &std::io::Error| Failure::io(path.display(), e);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Real { path, text: None, about: None }),
        Err(e) => return Err(failed(&e)),
    };
    let about = file.metadata().map_err(|e| failed(&e))?;
    let odd = |why: &str| {
        let message = format!("{} {why}", path.display());
        Err(Failure::new(FAILED, "CLIENT_FILE", message, "nothing was changed; look at the file"))
    };
    if !about.is_file() {
        return odd("is not a file");
    }
    if about.len() > SIZE_MAX {
        return odd("is larger than 64 MiB");
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    let Ok(text) = String::from_utf8(bytes) else { return odd("is not UTF-8") };
    Ok(Real { path, text: Some(text), about: Some(about) })
}

impl Real {
    /// Whether others than its owner may read it.
    pub fn is_open(&self) -> bool {
        self.about.as_ref().is_some_and(os::is_open)
    }

    fn failed(&self, e: &std::io::Error) -> Failure {
        Failure::io(self.path.display(), e)
    }

    /// Puts another text in its place. What was there is kept as a backup.
    pub fn replace(&self, text: &str, client: &str) -> Result<Written, Failure> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let folders = missing(folder);
        std::fs::create_dir_all(folder).map_err(|e| self.failed(&e))?;
        let backup = self.text.as_deref().map(|text| back_up(&self.path, text, client)).transpose()?;
        // beside it, so that the last step is one rename; mode 0600 until it is the old one's
        let mut file = tempfile::Builder::new().prefix(".sigil-").tempfile_in(folder).map_err(|e| self.failed(&e))?;
        file.write_all(text.as_bytes()).map_err(|e| self.failed(&e))?;
        if let Some(about) = &self.about
            && !os::allot(file.as_file(), about).map_err(|e| self.failed(&e))?
        {
            let message = format!("{} belongs to another user or group", self.path.display());
            let hint = "run this as its owner; nothing was changed";
            return Err(Failure::new(FAILED, "CLIENT_FILE", message, hint));
        }
        file.as_file().sync_all().map_err(|e| self.failed(&e))?;
        self.unchanged()?;
        file.persist(&self.path).map_err(|e| self.failed(&e.error))?;
        sync(folder);
        Ok(Written { backup, folders })
    }

    /// Takes it away, and folders that were made for it when nothing else is in them.
    pub fn remove(&self, folders: &[PathBuf], client: &str) -> Result<Option<PathBuf>, Failure> {
        let backup = self.text.as_deref().map(|text| back_up(&self.path, text, client)).transpose()?;
        self.unchanged()?;
        std::fs::remove_file(&self.path).map_err(|e| self.failed(&e))?;
        for folder in folders.iter().rev() {
            // one that is not empty stays, and so do those around it
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
        Ok(backup)
    }

    /// A client may have written it since it was read; it knows nothing of our lock.
    fn unchanged(&self) -> Result<(), Failure> {
        if read(&self.path)?.text == self.text {
            return Ok(());
        }
        let message = format!("{} was changed by another program just now", self.path.display());
        Err(Failure::new(FAILED, "CLIENT_FILE", message, "try again; nothing was changed by this command"))
    }
}

/// Folders on the way that are not there, the outermost first.
fn missing(folder: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        folder.ancestors().take_while(|folder| !folder.exists()).map(Path::to_path_buf).collect();
    folders.reverse();
    folders
}

fn sync(folder: &Path) {
    // not every file system can; the rename itself is done
    if let Ok(folder) = File::open(folder) {
        drop(folder.sync_all());
    }
}

/// Keeps what a file said, readable by its owner only, and the last few of each file.
fn back_up(path: &Path, text: &str, client: &str) -> Result<PathBuf, Failure> {
    let dir = contexts::state_dir().join("client-backups");
    let failed = |e: &std::io::Error| Failure::io(dir.display(), e);
    os::private_folders().create(&dir).map_err(|e| failed(&e))?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // two projects have files of the same name
    let place = hex::encode(&<sha2::Sha256 as sha2::Digest>::digest(path.as_os_str().as_encoded_bytes())[..4]);
    let stem = format!("{client}-{place}-");
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%S%6f");
    let kept = dir.join(format!("{stem}{time}-{name}"));
    let mut file = tempfile::NamedTempFile::new_in(&dir).map_err(|e| failed(&e))?;
    file.write_all(text.as_bytes()).map_err(|e| failed(&e))?;
    file.persist(&kept).map_err(|e| failed(&e.error))?;
    let mut all: Vec<PathBuf> = std::fs::read_dir(&dir)
        .map_err(|e| failed(&e))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&stem)))
        .collect();
    all.sort();
    for old in all.iter().take(all.len().saturating_sub(BACKUPS)) {
        std::fs::remove_file(old).map_err(|e| failed(&e))?;
    }
    Ok(kept)
}
