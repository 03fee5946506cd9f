//! What differs between the systems that `sigil` runs on: owners and modes of files, this machine's name, local sockets.
//!
//! Owns: every call that exists on one kind of system only (signals are `tui/signals.rs`'). May touch: files it is handed. Never: decides what a
//! difference means to a person. Tested by: those who call it.

pub use system::{LocalStream, allot, connect, host_name, is_executable, is_open, is_root, private, private_folders};

#[cfg(unix)]
mod system {
    use std::fs::{DirBuilder, File, Metadata, OpenOptions};
    use std::io;
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
    use std::path::Path;

    /// A stream to a socket of this machine.
    pub type LocalStream = tokio::net::UnixStream;

    /// Connects to a socket of this machine.
    pub async fn connect(path: &Path) -> io::Result<LocalStream> {
        LocalStream::connect(path).await
    }

    /// This machine's name.
    pub fn host_name() -> String {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    }

    /// Whether this process may do everything.
    pub fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    /// Whether its owner may run a file.
    pub fn is_executable(about: &Metadata) -> bool {
        about.permissions().mode() & 0o100 != 0
    }

    /// Whether others than its owner may do anything with a file.
    pub fn is_open(about: &Metadata) -> bool {
        about.permissions().mode() & 0o077 != 0
    }

    /// Gives a new file the owner and the permissions of the one it replaces. False: the owner is another, and may not be set.
    pub fn allot(file: &File, about: &Metadata) -> io::Result<bool> {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (about.uid(), about.gid())
            && std::os::unix::fs::fchown(file, Some(about.uid()), Some(about.gid())).is_err()
        {
            return Ok(false);
        }
        file.set_permissions(about.permissions())?;
        Ok(true)
    }

    /// Files that are made with these options are their owner's alone.
    pub fn private(options: &mut OpenOptions) -> &mut OpenOptions {
        options.mode(0o600)
    }

    /// Makes folders, with those on the way, that are their owner's alone.
    pub fn private_folders() -> DirBuilder {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
    }
}

#[cfg(windows)]
mod system {
    use std::fs::{DirBuilder, File, Metadata, OpenOptions};
    use std::io;
    use std::path::Path;

    /// A stream to a socket of this machine. There is none: an agent runs on Linux, and is reached by `ssh://` or `tls://`.
    pub type LocalStream = tokio::io::DuplexStream;

    /// Says that there are no such sockets here.
    pub async fn connect(_: &Path) -> io::Result<LocalStream> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "no local agent on Windows: use ssh:// or tls://"))
    }

    /// This machine's name.
    pub fn host_name() -> String {
        std::env::var("COMPUTERNAME").unwrap_or_else(|_| "windows".to_owned())
    }

    /// Whether this process may do everything: nobody may, here.
    pub fn is_root() -> bool {
        false
    }

    /// Files have no such mark here. As with Docker's builds from Windows every file may be run, so that scripts can be.
    pub fn is_executable(_: &Metadata) -> bool {
        true
    }

    /// Whether others than its owner may do anything with a file. The list of a profile's folder admits its owner and administrators.
    pub fn is_open(_: &Metadata) -> bool {
        false
    }

    /// Gives a new file the permissions of the one it replaces; owner and list come from the folder.
    pub fn allot(file: &File, about: &Metadata) -> io::Result<bool> {
        file.set_permissions(about.permissions())?;
        Ok(true)
    }

    /// Files that are made with these options are as private as their folder.
    pub fn private(options: &mut OpenOptions) -> &mut OpenOptions {
        options
    }

    /// Makes folders, with those on the way, that are as private as the one around them.
    pub fn private_folders() -> DirBuilder {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        builder
    }
}
