//! A folder of this machine as a source: what belongs to it, and its archive.
//!
//! The archive is the same for the same content: sorted, without times and owners, so that an unchanged folder is
//! recognised by its digest.

mod ignored;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sigil_core::recipe::Tree;
use tokio::sync::mpsc;

use super::Ctx;
use super::fail::{Failure, USAGE};
use super::progress::Progress;
use super::time::size;
use crate::link::{Link, Upload};
use crate::os;

/// Largest folder, uncompressed.
pub const BYTES_MAX: u64 = 512 << 20;
/// Most entries: beyond, somebody named the wrong folder.
const ENTRIES_MAX: usize = 200_000;
/// Bytes of one upload message.
const CHUNK: usize = 512 << 10;
/// Largest body that recognition reads.
const BODY_MAX: u64 = 4 << 20;

/// What an entry is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A file with its length; true: executable.
    File(u64, bool),
    /// A folder.
    Dir,
    /// A symbolic link that stays inside, with its target.
    Link(PathBuf),
}

/// One entry: its path within the folder, with `/`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Relative to the folder.
    pub path: String,
    /// What it is.
    pub kind: Kind,
}

/// A folder that was looked through.
#[derive(Debug, Clone)]
pub struct Folder {
    /// Where it is.
    pub root: PathBuf,
    /// Sorted by path.
    pub entries: Vec<Entry>,
    /// Of all files.
    pub bytes: u64,
    /// Sockets, pipes and devices, which no archive takes.
    pub skipped: Vec<String>,
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Everything that a build needs: ignore files count.
    Build,
    /// Everything that may be shipped: built output counts, ignored or not.
    Scan,
}

/// A path's name in an archive, and in what is said of it: '/' between its parts on every system. None: not UTF-8.
fn archived(relative: &Path) -> Option<String> {
    let parts: Option<Vec<&str>> = relative.iter().map(|part| part.to_str()).collect();
    Some(parts?.join("/"))
}

/// Looks through a folder.
pub fn walk(root: &Path, purpose: Purpose) -> Result<Folder, Failure> {
    let mut found: BTreeMap<String, Kind> = BTreeMap::new();
    let mut skipped = Vec::new();
    let mut links = Vec::new();
    let paths = ignored::paths(root, purpose)
        .map_err(|e| Failure::usage(format!("the folder cannot be read: {e}"), "check the permissions"))?;
    for relative in &paths {
        let real = root.join(relative);
        let Some(path) = archived(relative) else {
            let shown = relative.to_string_lossy();
            return Err(Failure::usage(
                format!("the file name '{shown}' is not UTF-8"),
                "rename the file or ignore it",
            ));
        };
        let unreadable =
            |e: io::Error| Failure::usage(format!("'{path}' cannot be read: {e}"), "check the permissions");
        let metadata = std::fs::symlink_metadata(&real).map_err(unreadable)?;
        let kind = if metadata.is_dir() {
            Kind::Dir
        } else if metadata.is_file() {
            Kind::File(metadata.len(), os::is_executable(&metadata))
        } else if metadata.is_symlink() {
            let target = std::fs::read_link(&real).map_err(unreadable)?;
            if leaves(root, relative, &target) {
                links.push(format!("{path} -> {}", target.display()));
            }
            Kind::Link(target)
        } else {
            skipped.push(path);
            continue;
        };
        found.insert(path, kind);
        if found.len() > ENTRIES_MAX {
            return Err(too_large(format!("the folder has more than {ENTRIES_MAX} entries"), &found));
        }
    }
    if purpose == Purpose::Build && !links.is_empty() {
        return Err(Failure::new(
            USAGE,
            "BAD_SOURCE",
            format!("symbolic links leave the folder: {}", links.join(", ")),
            "replace them by what they point to, or ignore them in .dockerignore",
        ));
    }
    // a scan reads small files only: what a build could not take, it may well look at
    let counted = |length: &u64| purpose == Purpose::Build || *length <= sigil_core::scan::MAX_FILE as u64;
    let bytes = found.values().map(length).filter(counted).sum();
    if bytes > BYTES_MAX {
        return Err(too_large(format!("the folder has {}, the most is {}", size(bytes), size(BYTES_MAX)), &found));
    }
    if !found.values().any(|kind| matches!(kind, Kind::File(..))) {
        return Err(Failure::new(
            USAGE,
            "BAD_SOURCE",
            format!("the folder {} is empty", root.display()),
            "name a folder with a server in it; ignored files do not count",
        ));
    }
    let entries = found.into_iter().map(|(path, kind)| Entry { path, kind }).collect();
    Ok(Folder { root: root.to_owned(), entries, bytes, skipped })
}

fn length(kind: &Kind) -> u64 {
    if let Kind::File(length, _) = kind { *length } else { 0 }
}

fn too_large(message: String, found: &BTreeMap<String, Kind>) -> Failure {
    // two levels tell more than one (`src/assets`, not `src`), and never more lines than a person reads
    let mut folders: BTreeMap<String, u64> = BTreeMap::new();
    for (path, kind) in found {
        let parts: Vec<&str> = path.split('/').collect();
        let key = match parts.as_slice() {
            [file] => (*file).to_owned(),
            [first, _] => format!("{first}/"),
            [first, second, ..] => format!("{first}/{second}/"),
            [] => continue,
        };
        *folders.entry(key).or_default() += length(kind);
    }
    let mut folders: Vec<(String, u64)> = folders.into_iter().collect();
    folders.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let named: Vec<String> = folders.iter().take(5).map(|(name, bytes)| format!("{name} {}", size(*bytes))).collect();
    let details: Vec<_> =
        folders.iter().take(5).map(|(name, bytes)| serde_json::json!({ "path": name, "bytes": bytes })).collect();
    Failure::new(
        USAGE,
        "SOURCE_TOO_LARGE",
        format!("{message}; largest: {}", named.join(", ")),
        "name what a build does not need in .dockerignore",
    )
    .with_details(serde_json::json!({ "largest": details }))
}

/// Whether a link points outside the folder, by its words or by what they lead to.
fn leaves(root: &Path, link: &Path, target: &Path) -> bool {
    if target.is_absolute() {
        return true;
    }
    let mut depth = link.components().count().saturating_sub(1);
    for part in target.components() {
        match part {
            Component::ParentDir if depth == 0 => return true,
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            _ => {}
        }
    }
    // a link that leads nowhere leads nowhere outside either
    root.join(link).canonicalize().is_ok_and(|real| !real.starts_with(root))
}

impl Folder {
    /// The folder as recognition sees it.
    pub fn tree(&self) -> Result<Tree, Failure> {
        let files: Vec<&Entry> = self.entries.iter().filter(|e| matches!(e.kind, Kind::File(..))).collect();
        let mut bodies = BTreeMap::new();
        for entry in &files {
            if Tree::wanted(&entry.path) && length(&entry.kind) <= BODY_MAX {
                bodies.insert(entry.path.clone(), self.read(entry)?);
            }
        }
        Ok(Tree { files: files.into_iter().map(|e| e.path.clone()).collect(), bodies })
    }

    /// One file's content.
    pub fn read(&self, entry: &Entry) -> Result<Vec<u8>, Failure> {
        std::fs::read(self.root.join(&entry.path))
            .map_err(|e| Failure::usage(format!("'{}' cannot be read: {e}", entry.path), "check the permissions"))
    }

    /// Writes the archive: tar in zstd.
    fn pack(&self, out: impl Write, done: &AtomicU64) -> io::Result<()> {
        let mut tar = tar::Builder::new(zstd::stream::write::Encoder::new(out, 3)?);
        for entry in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            let named = |e: io::Error| io::Error::new(e.kind(), format!("'{}': {e}", entry.path));
            match &entry.kind {
                Kind::Dir => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(0o755);
                    header.set_size(0);
                    tar.append_data(&mut header, format!("{}/", entry.path), io::empty()).map_err(named)?;
                }
                Kind::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    tar.append_link(&mut header, &entry.path, target).map_err(named)?;
                }
                Kind::File(length, executable) => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_mode(if *executable { 0o755 } else { 0o644 });
                    header.set_size(*length);
                    let file = File::open(self.root.join(&entry.path)).map_err(named)?;
                    let mut body = Counted { inner: file.take(*length), left: *length, done };
                    tar.append_data(&mut header, &entry.path, &mut body).map_err(named)?;
                    if body.left > 0 {
                        return Err(io::Error::other(format!("'{}' became shorter while it was read", entry.path)));
                    }
                }
            }
        }
        tar.into_inner()?.finish()?.flush()
    }

    /// Sends the archive to the agent, showing how far it is.
    pub async fn upload(self, ctx: &Ctx, link: &Link, label: &str) -> Result<Upload, Failure> {
        for path in &self.skipped {
            super::output::note(&format!("left out: {path} (neither file nor folder)"));
        }
        let mut progress = Progress::new(ctx);
        self.send(link, label, |done, total| progress.share("upload", done, total)).await
    }

    /// Sends the archive to the agent, telling five times a second how many bytes of how many are read.
    pub async fn send(self, link: &Link, label: &str, mut told: impl FnMut(u64, u64)) -> Result<Upload, Failure> {
        let (send, chunks) = mpsc::channel(4);
        let done = Arc::new(AtomicU64::new(0));
        let total = self.bytes;
        let counter = Arc::clone(&done);
        let mut packing = tokio::task::spawn_blocking(move || {
            let mut out = Chunks { send, buffer: Vec::with_capacity(CHUNK) };
            let packed = self.pack(&mut out, &counter).and_then(|()| out.send_buffer());
            if packed.is_err() {
                // so that the agent sees a broken upload, never half a tree
                drop(out.send.blocking_send(Err(())));
            }
            packed
        });
        let mut clock = tokio::time::interval(std::time::Duration::from_millis(200));
        let sending = link.upload(label, chunks);
        tokio::pin!(sending);
        let mut packed = false;
        loop {
            tokio::select! {
                upload = &mut sending => return Ok(upload?),
                result = &mut packing, if !packed => {
                    packed = true;
                    let result = result.unwrap_or_else(|e| Err(io::Error::other(e.to_string())));
                    // a closed channel means that the agent gave up: its own words come from `sending`
                    if let Err(e) = result && e.kind() != io::ErrorKind::BrokenPipe {
                        return Err(Failure::io("the folder cannot be read", &e));
                    }
                }
                _ = clock.tick() => told(done.load(Ordering::Relaxed), total),
            }
        }
    }
}

/// Counts what is read, for the progress and for the check that nothing is missing.
struct Counted<'a, R> {
    inner: R,
    left: u64,
    done: &'a AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.saturating_sub(n as u64);
        self.done.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Cuts the archive into messages; a slow link holds the reading back.
struct Chunks {
    send: mpsc::Sender<Result<Vec<u8>, ()>>,
    buffer: Vec<u8>,
}

impl Chunks {
    fn send_buffer(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.send.blocking_send(Ok(full)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        if self.buffer.len() == CHUNK {
            self.send_buffer()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn put(root: &Path, files: &[(&str, &str)]) {
        for (path, body) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, body).unwrap();
        }
    }

    fn paths(root: &Path, purpose: Purpose) -> Vec<String> {
        let folder = walk(root, purpose).unwrap();
        folder.entries.into_iter().filter(|e| !matches!(e.kind, Kind::Dir)).map(|e| e.path).collect()
    }

    fn root() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        (dir, root)
    }

    #[test]
    fn ignore_files_are_honoured_and_litter_is_never_taken() {
        let (_dir, root) = root();
        put(
            &root,
            &[
                (".gitignore", "*.log\ndist/\n"),
                (".dockerignore", "docs\n*.md\n!README.md\nDockerfile\n"),
                ("Dockerfile", "FROM scratch"),
                ("README.md", ""),
                ("NOTES.md", ""),
                ("a.log", ""),
                ("src/index.ts", ""),
                ("src/docs/kept.txt", ""),
                ("src/deep.md", ""),
                ("docs/x.txt", ""),
                ("dist/index.js", ""),
                (".git/config", ""),
                ("node_modules/x/index.js", ""),
                ("Cargo.toml", ""),
                ("target/debug/x", ""),
                ("pkg/target/kept.py", ""),
                ("pkg/__pycache__/x.pyc", ""),
                (".venv/bin/python", ""),
                (".env.example", ""),
            ],
        );
        let built = [
            ".dockerignore",
            ".env.example",
            ".gitignore",
            "Cargo.toml",
            "Dockerfile",
            "README.md",
            "pkg/target/kept.py",
            "src/deep.md",
            "src/docs/kept.txt",
            "src/index.ts",
        ];
        assert_eq!(paths(&root, Purpose::Build), built);
        let scanned = paths(&root, Purpose::Scan);
        assert!(scanned.contains(&"dist/index.js".to_owned()), "built output is scanned: {scanned:?}");
        assert!(!scanned.contains(&"a.log".to_owned()));
        assert!(!scanned.iter().any(|p| p.contains("node_modules")));
    }

    #[test]
    fn dockerignore_may_take_everything_back() {
        let (_dir, root) = root();
        put(&root, &[(".dockerignore", "**\n!src/**\n!go.mod"), ("go.mod", ""), ("src/a/main.go", ""), ("x/y", "")]);
        assert_eq!(paths(&root, Purpose::Build), [".dockerignore", "go.mod", "src/a/main.go"]);
    }

    #[test]
    fn the_repository_around_a_folder_ignores_too() {
        let (_dir, root) = root();
        put(&root, &[(".git/HEAD", ""), (".gitignore", ".env\n"), ("server/.env", "KEY=1"), ("server/main.py", "")]);
        assert_eq!(paths(&root.join("server"), Purpose::Build), ["main.py"]);
    }

    #[test]
    fn links_stay_inside_or_are_named() {
        let (_dir, root) = root();
        put(&root, &[("a/file", "x")]);
        symlink("file", root.join("a/inside")).unwrap();
        symlink("../a/file", root.join("a/around")).unwrap();
        assert_eq!(paths(&root, Purpose::Build), ["a/around", "a/file", "a/inside"]);
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        symlink("../../out", root.join("a/up")).unwrap();
        symlink(".", root.join("dot")).unwrap();
        symlink("dot/../../etc", root.join("sly")).unwrap();
        let failure = walk(&root, Purpose::Build).unwrap_err();
        assert_eq!(failure.exit, USAGE);
        for name in ["absolute -> /etc/passwd", "a/up -> ../../out", "sly -> dot/../../etc"] {
            assert!(failure.message.contains(name), "{}", failure.message);
        }
        assert!(!failure.message.contains("inside"));
    }

    #[test]
    fn too_large_and_empty_folders_are_refused() {
        let (_dir, root) = root();
        assert_eq!(walk(&root, Purpose::Build).unwrap_err().exit, USAGE);
        std::fs::create_dir_all(root.join("models/big")).unwrap();
        // a sparse file costs no disk
        File::create(root.join("models/big/weights")).unwrap().set_len(BYTES_MAX + 1).unwrap();
        put(&root, &[("src/main.py", "x")]);
        let failure = walk(&root, Purpose::Build).unwrap_err();
        assert_eq!((failure.exit, failure.code.as_str()), (USAGE, "SOURCE_TOO_LARGE"));
        assert!(failure.message.contains("largest: models/big/ 512 MiB"), "{}", failure.message);
    }

    #[test]
    fn the_same_content_makes_the_same_archive() {
        let pack = |root: &Path| {
            let mut out = Vec::new();
            walk(root, Purpose::Build).unwrap().pack(&mut out, &AtomicU64::new(0)).unwrap();
            out
        };
        let ((_a, one), (_b, two)) = (root(), root());
        let long = format!("{}/x", "d".repeat(120));
        put(&one, &[("b", "2"), ("a/x", "1"), (&long, "3")]);
        put(&two, &[(&long, "3"), ("a/x", "1"), ("b", "2")]);
        std::fs::set_permissions(one.join("b"), std::fs::Permissions::from_mode(0o640)).unwrap();
        let archive = pack(&one);
        assert_eq!(archive, pack(&two));
        let mut tar = tar::Archive::new(zstd::stream::read::Decoder::new(&archive[..]).unwrap());
        let names: Vec<String> =
            tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert!(names.contains(&long) && names.contains(&"a/x".to_owned()), "{names:?}");
    }
}
