//! Directories, the lock, syncing and free space: what the store asks of the file system.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};

use super::{Result, StoreError};

/// Turns an IO error into one that names the file.
pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    move |e| StoreError::Io(format!("{}: {e}", path.display()))
}

/// Makes a private directory (0700), or tightens one that we own. Inner directories may not be symbolic links: whoever
/// could place one there could point our secrets elsewhere.
pub(super) fn private_dir(path: &Path, may_link: bool) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error(path))?;
    let meta = if may_link { fs::metadata(path) } else { fs::symlink_metadata(path) }.map_err(io_error(path))?;
    if !meta.is_dir() {
        return Err(StoreError::Io(format!("{} is not a directory", path.display())));
    }
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        return Err(StoreError::Io(format!("{} belongs to uid {}, not to {me}", path.display(), meta.uid())));
    }
    if meta.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io_error(path))?;
    }
    Ok(())
}

/// Takes the data directory for this process. The lock ends with the file (or the process, however it ends).
pub(super) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error(&path))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder);
        let holder = holder.trim();
        let who = if holder.is_empty() { "unknown process".to_owned() } else { format!("process {holder}") };
        return Err(StoreError::Locked(format!("{} ({who})", dir.display())));
    }
    let pid = std::process::id().to_string();
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| file.write_all(pid.as_bytes()))
        .map_err(io_error(&path))?;
    Ok(file)
}

/// A new file for our eyes only; fails when it exists.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// fsync of a directory: makes renames and new names in it survive a power cut.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a whole file (0600) so that after a crash either the old or the new content is there. `owner` is a user and group
/// to give it to.
pub(crate) fn replace_file(path: &Path, content: &[u8], owner: Option<(u32, u32)>) -> io::Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temp = tempfile::Builder::new().prefix(".tmp-").tempfile_in(dir)?; // made 0600
    temp.write_all(content)?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::fchown(temp.as_file(), Some(uid), Some(gid))?;
    }
    temp.as_file().sync_all()?;
    temp.persist(path).map_err(|e| e.error)?;
    sync_dir(dir)
}

/// fsync of every file below (sled's own flush is no fsync), and 0600 or 0700 for what sled made wider.
pub(super) fn sync_tree(dir: &Path) -> io::Result<()> {
    if fs::symlink_metadata(dir)?.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            match File::open(entry.path()) {
                Ok(file) => {
                    if file.metadata()?.permissions().mode() & 0o077 != 0 {
                        file.set_permissions(fs::Permissions::from_mode(0o600))?;
                    }
                    file.sync_all()?;
                }
                // sled replaces its snapshot file whenever it likes
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    sync_dir(dir)
}

/// Bytes of all files below.
pub(super) fn tree_size(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => tree_size(&e.path()),
            Ok(m) => m.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Renames something out of the way, never over anything, never deleting. Answers where it is now.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf> {
    let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ").to_string();
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    for n in 0..1000 {
        let suffix = if n == 0 { String::new() } else { format!("-{n}") };
        let target = path.with_file_name(format!("{name}.aside-{stamp}{suffix}"));
        if target.exists() {
            continue;
        }
        fs::rename(path, &target).map_err(io_error(path))?;
        if let Some(parent) = path.parent() {
            sync_dir(parent).map_err(io_error(parent))?;
        }
        return Ok(target);
    }
    Err(StoreError::Io(format!("{}: no free name to set it aside", path.display())))
}

/// True when less than `percent` of the file system is free for us.
pub(super) fn is_full(dir: &Path, percent: u64) -> bool {
    match rustix::fs::statvfs(dir) {
        Ok(s) => s.f_blocks > 0 && s.f_bavail.saturating_mul(100) < s.f_blocks.saturating_mul(percent),
        Err(_) => false, // the write itself will tell
    }
}
