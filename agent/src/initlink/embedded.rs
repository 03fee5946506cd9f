//! The init binary on disk, and the socket directories.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio::net::UnixListener;

use super::{Result, io_error};

static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sigil-init"));

/// File name of the binary.
pub const NAME: &str = "sigil-init";
/// File name of an instance's socket.
pub const SOCKET: &str = "agent.sock";
/// Longest path of a unix socket that the kernel takes.
const SOCKET_PATH_MAX: usize = 107;

/// Makes a directory with exactly this mode.
pub fn directory(path: &Path, mode: u32) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|e| io_error(path.display(), &e))?;
    // The umask may have taken bits away, and a directory of a former life may have others.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(|e| io_error(path.display(), &e))
}

/// Writes the binary to `<data>/init/<sha256>/sigil-init`. Never overwrites: running containers map it.
pub fn install(data_dir: &Path) -> Result<PathBuf> {
    let home = data_dir.join("init");
    let leaf = home.join(hex::encode(Sha256::digest(INIT)));
    let path = leaf.join(NAME);
    let is_there = std::fs::read(&path).is_ok_and(|found| found == INIT);
    directory(&home, 0o700)?;
    directory(&leaf, 0o755)?;
    if !is_there {
        let failed = |e: std::io::Error| io_error(path.display(), &e);
        let mut file = tempfile::NamedTempFile::new_in(&home).map_err(failed)?;
        file.write_all(INIT).map_err(failed)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|e| failed(e.error))?;
    }
    Ok(path)
}

/// Removes directories of former binaries that are neither `current` nor the end of one of the `mounted` paths.
pub fn sweep(data_dir: &Path, current: &Path, mounted: &[String]) {
    let Ok(entries) = std::fs::read_dir(data_dir.join("init")) else { return };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        // only what we made: a digest's directory. Compared by name, as a path may be written in several ways.
        let digest = name.to_str().is_some_and(|n| n.len() == 64 && n.bytes().all(|b| b.is_ascii_hexdigit()));
        let used = current.parent().and_then(Path::file_name) == Some(&name)
            || mounted.iter().any(|m| Path::new(m).components().any(|c| c.as_os_str() == name));
        if !digest || used {
            continue;
        }
        match std::fs::remove_dir_all(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed a former init that no container uses"),
            Err(e) => tracing::warn!(path = %path.display(), error = %e, "a former init stays"),
        }
    }
}

/// Listens in an instance's directory, in the place of a former agent.
pub fn listen(directory: &Path) -> Result<UnixListener> {
    let path = directory.join(SOCKET);
    let failed = |e: std::io::Error| io_error(path.display(), &e);
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    let listener = if path.as_os_str().len() <= SOCKET_PATH_MAX {
        UnixListener::bind(&path)
    } else {
        // Reached through the directory itself, however deep it lies.
        let opened = std::fs::File::open(directory).map_err(failed)?;
        UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", opened.as_raw_fd()))
    };
    let listener = listener.map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_binaries_that_nobody_uses_go() {
        let dir = tempfile::tempdir().unwrap();
        let current = install(dir.path()).unwrap();
        let home = dir.path().join("init");
        let (mounted, old) = ("a".repeat(64), "b".repeat(64));
        for name in [mounted.as_str(), old.as_str(), "mine"] {
            std::fs::create_dir(home.join(name)).unwrap();
            std::fs::write(home.join(name).join(NAME), "former").unwrap();
        }
        // an engine may tell the path through another link
        sweep(dir.path(), &current, &["/other/way".into(), format!("/elsewhere/init/{mounted}")]);
        let left = |name: &str| home.join(name).exists();
        assert!(left(&mounted) && left("mine") && current.exists());
        assert!(!left(&old));
        sweep(dir.path(), &current, &[]);
        assert!(!left(&mounted) && current.exists());
        assert_eq!(install(dir.path()).unwrap(), current);
    }
}
