//! Files that are ours alone: read only when nobody else can reach them, replaced so that a crash leaves the old or the new.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Whether something is there, be it a link that leads nowhere.
pub(super) fn there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The file beside one, which takes its place when a change of keys is through.
pub(super) fn next_to(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".next");
    path.with_file_name(name)
}

/// A credential: systemd owns it, and mounts it readable for this process alone.
pub(super) fn read_any(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut bytes = Zeroizing::new(Vec::new());
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    file.take(64 << 10).read_to_end(&mut bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(bytes)
}

/// Reads a file that must be ours alone: a regular file, no link, our uid, mode 0600 or stricter.
pub(super) fn read_private(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, String> {
    let shown = path.display();
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(path)
        .map_err(|e| format!("{shown}: {e}"))?;
    let meta = file.metadata().map_err(|e| format!("{shown}: {e}"))?;
    if !meta.is_file() {
        return Err(format!("{shown} is not a regular file"));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(format!("{shown} belongs to user {}, not to the agent's", meta.uid()));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(format!("{shown} can be reached by others (mode {:o}); chmod 600 it", meta.mode() & 0o777));
    }
    // no growing buffer: what it left behind would not be wiped
    let room = usize::try_from(meta.len().min(limit)).unwrap_or(0) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| format!("{shown}: {e}"))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(format!("{shown} is longer than it can be"));
    }
    Ok(bytes)
}

/// Replaces a file so that it is the old or the new one after any crash: temporary, fsync, rename, fsync of the folder.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let why = |e: std::io::Error| format!("{}: {e}", path.display());
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    // a leftover of a crash may be a link that someone placed
    remove(&temporary)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(why)?;
    file.write_all(bytes).map_err(why)?;
    file.sync_all().map_err(why)?;
    std::fs::rename(&temporary, path).map_err(why)?;
    sync(folder).map_err(why)
}

/// Makes the folder of a file where it is missing: for its owner alone.
pub(super) fn make_folder(path: &Path) -> Result<(), String> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|e| format!("{}: {e}", folder.display()))
}

/// Puts a file into the place of another, on the disk when this returns.
pub(super) fn put_in_place(from: &Path, to: &Path) -> Result<(), String> {
    let why = |e: std::io::Error| format!("{}: {e}", to.display());
    std::fs::rename(from, to).map_err(why)?;
    sync(to.parent().unwrap_or(Path::new("."))).map_err(why)
}

/// Removes a file; one that is not there is no error.
pub(super) fn remove(path: &Path) -> Result<(), String> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {e}", path.display())),
        _ => Ok(()),
    }
}

fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}
