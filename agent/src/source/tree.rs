//! Writes a tree safely, names it by its content, and reads it again.
//!
//! Archives and repositories are written by others: nothing they say may place a byte outside the root, follow a link
//! of theirs, or fill the disk. Links are made last, after each has been followed within the tree.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::SourceError;

/// Longest path within a tree, in bytes.
const PATH_MAX: usize = 1024;
/// Longest name of a file, in bytes.
const NAME_MAX: usize = 255;
/// Links followed before a loop is assumed.
const HOPS_MAX: usize = 40;
/// A Git LFS pointer file begins so.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/v1\n";

/// Caps of one tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Unpacked bytes.
    pub bytes: u64,
    /// Files, links and folders.
    pub files: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Dir,
    File { executable: bool, hash: [u8; 32] },
    Link(String),
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    /// `sha256:…`
    pub digest: String,
    /// Bytes of files.
    pub bytes: u64,
    /// Files and links.
    pub files: u64,
    /// Files that are Git LFS pointers.
    pub lfs: Vec<String>,
}

/// A tree being written under an empty folder of ours.
pub(super) struct TreeWriter {
    root: PathBuf,
    limits: Limits,
    cancel: CancellationToken,
    entries: BTreeMap<String, Entry>,
    bytes: u64,
    lfs: Vec<String>,
}

impl TreeWriter {
    /// `root` must exist, be empty, and be reachable by nobody else.
    pub(super) fn new(root: &Path, limits: Limits, cancel: CancellationToken) -> Self {
        Self { root: root.to_owned(), limits, cancel, entries: BTreeMap::new(), bytes: 0, lfs: Vec::new() }
    }

    /// Adds a folder; there already is fine.
    pub(super) fn dir(&mut self, path: &str) -> Result<(), SourceError> {
        let path = tidy(path)?;
        if !path.is_empty() {
            self.parents(&format!("{path}/x"))?;
        }
        Ok(())
    }

    /// Adds a file, replacing an earlier one of that path, as tar does.
    pub(super) fn file(&mut self, path: &str, executable: bool, mut body: impl Read) -> Result<(), SourceError> {
        let path = tidy(path)?;
        if path.is_empty() {
            return Err(refused(format!("a file without a name: {path:?}")));
        }
        self.parents(&path)?;
        match self.entries.get(&path) {
            None => self.count(&path)?,
            Some(Entry::File { .. }) => fs::remove_file(self.root.join(&path)).map_err(|e| failed(&path, &e))?,
            Some(_) => return Err(refused(format!("'{path}' is there twice, as different things"))),
        }
        let mode = if executable { 0o755 } else { 0o644 };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(self.root.join(&path))
            .map_err(|e| failed(&path, &e))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        let mut length = 0_usize;
        let mut pointer = false;
        loop {
            if self.cancel.is_cancelled() {
                return Err(SourceError::Cancelled);
            }
            let count = match body.read(&mut buffer) {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(unreadable(&path, &e)),
            };
            if count == 0 {
                break;
            }
            if length == 0 {
                pointer = buffer[..count].starts_with(LFS);
            }
            length += count;
            self.bytes = self.bytes.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            if self.bytes > self.limits.bytes {
                return Err(too_large(self.limits.bytes));
            }
            hash.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(|e| failed(&path, &e))?;
        }
        // the umask may have taken bits away
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(|e| failed(&path, &e))?;
        if pointer && length < 1024 {
            self.lfs.push(path.clone());
        }
        self.entries.insert(path, Entry::File { executable, hash: hash.finalize().into() });
        Ok(())
    }

    /// Adds a symbolic link; where it leads is judged by [`Self::finish`].
    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<(), SourceError> {
        let path = tidy(path)?;
        if path.is_empty() || target.is_empty() || target.len() > PATH_MAX || target.contains('\0') {
            return Err(refused(format!("the link '{path}' leads nowhere")));
        }
        self.parents(&path)?;
        if self.entries.contains_key(&path) {
            return Err(refused(format!("'{path}' is there twice, as different things")));
        }
        self.count(&path)?;
        self.entries.insert(path, Entry::Link(target.to_owned()));
        Ok(())
    }

    /// Adds a copy of a file that is already there: what a hard link within an archive means.
    pub(super) fn hard_link(&mut self, path: &str, target: &str) -> Result<(), SourceError> {
        let target = tidy(target).map_err(|_| refused(format!("the hard link '{path}' leaves the tree: {target}")))?;
        let Some(Entry::File { executable, .. }) = self.entries.get(&target) else {
            return Err(refused(format!("the hard link '{path}' leads to no file of the tree: {target}")));
        };
        let executable = *executable;
        let source = fs::File::open(self.root.join(&target)).map_err(|e| failed(&target, &e))?;
        if tidy(path)? == target {
            return Ok(());
        }
        self.file(path, executable, source)
    }

    /// Judges and makes the links, and names the tree.
    pub(super) fn finish(self) -> Result<Written, SourceError> {
        let leaving: Vec<String> = self
            .entries
            .iter()
            .filter_map(|(path, entry)| match entry {
                Entry::Link(target) if !stays(&self.entries, path, target) => Some(format!("{path} -> {target}")),
                _ => None,
            })
            .collect();
        if !leaving.is_empty() {
            let more = leaving.len().saturating_sub(5);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let named: Vec<&str> = leaving.iter().take(5).map(String::as_str).collect();
            return Err(refused(format!("symbolic links leave the source tree: {}{more}", named.join(", "))));
        }
        for (path, entry) in &self.entries {
            if let Entry::Link(target) = entry {
                std::os::unix::fs::symlink(target, self.root.join(path)).map_err(|e| failed(path, &e))?;
            }
        }
        let files = self.entries.values().filter(|entry| !matches!(entry, Entry::Dir)).count();
        Ok(Written {
            digest: digest(&self.entries),
            bytes: self.bytes,
            files: u64::try_from(files).unwrap_or(u64::MAX),
            lfs: self.lfs,
        })
    }

    /// Makes the folders above a path, none of which may be anything else.
    fn parents(&mut self, path: &str) -> Result<(), SourceError> {
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            match self.entries.get(parent) {
                Some(Entry::Dir) => {}
                Some(_) => return Err(refused(format!("'{path}' lies under '{parent}', which is no folder"))),
                None => {
                    self.count(parent)?;
                    fs::create_dir(self.root.join(parent)).map_err(|e| failed(parent, &e))?;
                    self.entries.insert(parent.to_owned(), Entry::Dir);
                }
            }
        }
        Ok(())
    }

    fn count(&self, path: &str) -> Result<(), SourceError> {
        if self.cancel.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        if u64::try_from(self.entries.len()).unwrap_or(u64::MAX) >= self.limits.files {
            return Err(SourceError::Refused {
                what: format!("the source has more than {} files (at '{path}')", self.limits.files),
                hint: "leave out what the server does not need (.dockerignore), or raise [sources] max_files".into(),
            });
        }
        Ok(())
    }
}

/// A relative path with '/', without empty and '.' parts; '' for the root itself.
fn tidy(path: &str) -> Result<String, SourceError> {
    if path.starts_with('/') {
        return Err(refused(format!("an absolute path: {path}")));
    }
    if path.contains('\0') {
        return Err(refused(format!("a NUL in a path: {path:?}")));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(refused(format!("a path that leaves the tree: {path}")));
    }
    let tidy = parts.join("/");
    if tidy.len() > PATH_MAX || parts.iter().any(|part| part.len() > NAME_MAX) {
        let start: String = tidy.chars().take(60).collect();
        return Err(refused(format!(
            "a path longer than {PATH_MAX} bytes, or a name longer than {NAME_MAX}: {start}…"
        )));
    }
    Ok(tidy)
}

/// Whether a link, followed as the kernel would, never leaves the tree. What does not exist stays where it would be.
fn stays(entries: &BTreeMap<String, Entry>, path: &str, target: &str) -> bool {
    let mut at: Vec<&str> = path.split('/').collect();
    at.pop();
    let mut todo: Vec<&str> = target.split('/').rev().collect();
    if target.starts_with('/') {
        return false;
    }
    let mut hops = 0;
    while let Some(part) = todo.pop() {
        match part {
            "" | "." => {}
            ".." => {
                if at.pop().is_none() {
                    return false;
                }
            }
            name => {
                at.push(name);
                if let Some(Entry::Link(next)) = entries.get(&at.join("/")) {
                    hops += 1;
                    if hops > HOPS_MAX || next.starts_with('/') {
                        return false;
                    }
                    at.pop();
                    todo.extend(next.split('/').rev());
                }
            }
        }
    }
    true
}

/// The same for the same paths, kinds, executable bits, targets and bytes. Folders count where nothing is in them.
fn digest(entries: &BTreeMap<String, Entry>) -> String {
    let mut hash = Sha256::new();
    hash.update(b"sigil tree 1\n");
    let mut put = |kind: u8, path: &str, body: &[u8]| {
        hash.update([kind]);
        for part in [path.as_bytes(), body] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part);
        }
    };
    for (path, entry) in entries {
        match entry {
            Entry::File { executable, hash } => put(if *executable { b'x' } else { b'f' }, path, hash),
            Entry::Link(target) => put(b'l', path, target.as_bytes()),
            Entry::Dir => {
                let below = format!("{path}/");
                let empty = entries.range(below.clone()..).next().is_none_or(|(next, _)| !next.starts_with(&below));
                if empty {
                    put(b'd', path, b"");
                }
            }
        }
    }
    format!("sha256:{}", hex::encode(hash.finalize()))
}

/// Calls `each` with (path relative to the root, metadata) for everything below a root, never following links.
pub(super) fn walk(root: &Path, each: &mut dyn FnMut(String, &fs::Metadata) -> io::Result<()>) -> io::Result<()> {
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a name that is not UTF-8 in '{folder}'"),
                ));
            };
            let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            let meta = entry.metadata()?;
            if meta.is_dir() {
                folders.push(path.clone());
            }
            each(path, &meta)?;
        }
    }
    Ok(())
}

/// The digest of a tree on disk, and its size in bytes.
pub(super) fn measure(root: &Path) -> io::Result<(String, u64)> {
    let mut entries = BTreeMap::new();
    let mut bytes = 0;
    walk(root, &mut |path, meta| {
        let full = root.join(&path);
        let entry = if meta.is_dir() {
            Entry::Dir
        } else if meta.is_symlink() {
            let target = fs::read_link(&full)?;
            Entry::Link(target.to_str().unwrap_or_default().to_owned())
        } else {
            let mut hash = Sha256::new();
            bytes += io::copy(&mut fs::File::open(&full)?, &mut HashWriter(&mut hash))?;
            Entry::File { executable: meta.permissions().mode() & 0o111 != 0, hash: hash.finalize().into() }
        };
        entries.insert(path, entry);
        Ok(())
    })?;
    Ok((digest(&entries), bytes))
}

/// Feeds a hash.
pub(super) struct HashWriter<'a, D: Digest>(pub &'a mut D);

impl<D: Digest> Write for HashWriter<'_, D> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn refused(what: String) -> SourceError {
    SourceError::Refused {
        what: format!("the source is not safe to unpack: {what}"),
        hint: "mend the source and try again".into(),
    }
}

/// The cap on unpacked bytes was passed.
pub(super) fn too_large(limit: u64) -> SourceError {
    SourceError::Refused {
        what: format!("the source is larger than {} MiB unpacked", limit >> 20),
        hint: "leave out what the server does not need (.dockerignore), or raise [sources] max_bytes".into(),
    }
}

/// Writing failed.
fn failed(path: &str, error: &io::Error) -> SourceError {
    let hint = if error.kind() == io::ErrorKind::StorageFull {
        "the disk is full; free some space"
    } else {
        "look at the data directory's file system and permissions"
    };
    SourceError::Failed { what: format!("cannot write '{path}' of the source: {error}"), hint: hint.into() }
}

/// Reading the archive failed.
fn unreadable(path: &str, error: &io::Error) -> SourceError {
    SourceError::Failed {
        what: format!("the source's archive is damaged at '{path}': {error}"),
        hint: "fetch or upload it again".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        dir: tempfile::TempDir,
        writer: TreeWriter,
    }

    fn case() -> Case {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { bytes: 1000, files: 20 };
        let writer = TreeWriter::new(dir.path(), limits, CancellationToken::new());
        Case { dir, writer }
    }

    fn refusal(result: Result<impl std::fmt::Debug, SourceError>) -> String {
        match result {
            Err(SourceError::Refused { what, .. }) => what,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn the_digest_is_of_content_alone_and_measured_the_same_from_disk() {
        let build = |reverse: bool| {
            let mut case = case();
            let mut files = vec![("a/b.py", false, "x"), ("run", true, "y"), ("a-c", false, "")];
            if reverse {
                files.reverse();
            }
            for (path, executable, body) in files {
                case.writer.file(path, executable, body.as_bytes()).unwrap();
            }
            case.writer.link("l", "a/b.py").unwrap();
            case.writer.dir("empty/").unwrap();
            let written = case.writer.finish().unwrap();
            let (digest, bytes) = measure(case.dir.path()).unwrap();
            assert_eq!((&digest, bytes), (&written.digest, written.bytes));
            assert_eq!((written.bytes, written.files), (2, 4));
            digest
        };
        assert_eq!(build(false), build(true));

        let one = |path: &str, executable: bool, body: &str| {
            let mut case = case();
            case.writer.file(path, executable, body.as_bytes()).unwrap();
            case.writer.finish().unwrap().digest
        };
        let base = one("a", false, "b");
        assert!(base.starts_with("sha256:") && base.len() == 71);
        for other in [one("b", false, "b"), one("a", true, "b"), one("a", false, "c"), one("a/a", false, "b")] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn paths_that_leave_are_refused() {
        for path in ["/etc/passwd", "../x", "a/../../x", "a/..", "a\0b", &"x/".repeat(600), &"y".repeat(256)] {
            let mut case = case();
            refusal(case.writer.file(path, false, &b"x"[..]));
            refusal(case.writer.dir(path));
            refusal(case.writer.link(path, "t"));
        }
        let mut case = case();
        refusal(case.writer.file("./", false, &b"x"[..]));
        case.writer.file("./a/./b", false, &b"x"[..]).unwrap();
        assert!(case.dir.path().join("a/b").is_file());
    }

    #[test]
    fn links_that_leave_are_refused_by_name_also_through_other_links() {
        let cases: [&[(&str, &str)]; 7] = [
            &[("l", "/etc/passwd")],
            &[("l", "..")],
            &[("a/b/l", "../../../x")],
            &[("here", "."), ("l", "here/..")],
            &[("a/up", ".."), ("l", "a/up/..")],
            &[("l", "m"), ("m", "l")],
            &[("l", "a/m"), ("a/m", "/etc")],
        ];
        for links in cases {
            let mut case = case();
            case.writer.dir("a/b").unwrap();
            for (path, target) in links {
                case.writer.link(path, target).unwrap();
            }
            let what = refusal(case.writer.finish());
            assert!(what.contains("l -> "), "{what}");
            assert!(case.dir.path().join("l").symlink_metadata().is_err());
        }
    }

    #[test]
    fn links_that_stay_are_kept_dangling_ones_too() {
        let mut case = case();
        case.writer.file("a/b/f", false, &b"x"[..]).unwrap();
        for (path, target) in [("l1", "a/b/f"), ("a/b/l2", "../../l1"), ("l3", "a/missing"), ("l4", "a/b/../b/f")] {
            case.writer.link(path, target).unwrap();
        }
        case.writer.finish().unwrap();
        assert_eq!(fs::read_to_string(case.dir.path().join("a/b/l2")).unwrap(), "x");
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let mut case = case();
        case.writer.link("d", "/tmp").unwrap();
        refusal(case.writer.file("d/evil", false, &b"x"[..]));
        refusal(case.writer.file("d", false, &b"x"[..]));
        refusal(case.writer.dir("d/e"));
        case.writer.file("f", false, &b"1"[..]).unwrap();
        refusal(case.writer.file("f/g", false, &b"x"[..]));
        refusal(case.writer.link("f", "x"));
    }

    #[test]
    fn hard_links_copy_files_of_the_tree_only() {
        let mut case = case();
        case.writer.file("a", true, &b"body"[..]).unwrap();
        case.writer.hard_link("b/c", "./a").unwrap();
        for target in ["/etc/passwd", "../a", "missing", "b"] {
            refusal(case.writer.hard_link("d", target));
        }
        case.writer.finish().unwrap();
        let copy = case.dir.path().join("b/c");
        assert_eq!(fs::read_to_string(&copy).unwrap(), "body");
        assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn bombs_end_at_the_caps() {
        let mut case = case();
        let what = refusal(case.writer.file("big", false, io::repeat(0)));
        assert!(what.contains("larger than"), "{what}");
        let mut case = self::case();
        let flood = (0..100).try_for_each(|i| case.writer.file(&format!("f{i}"), false, io::empty()));
        assert!(refusal(flood).contains("more than 20 files"));
        let mut case = self::case();
        let deep = case.writer.file(&"d/".repeat(50), false, io::empty());
        assert!(refusal(deep).contains("more than 20 files"));
    }

    #[test]
    fn a_cancelled_one_stops_within_a_file() {
        let mut case = case();
        case.writer.cancel.cancel();
        assert!(matches!(case.writer.file("a", false, io::repeat(0)), Err(SourceError::Cancelled)));
    }

    #[test]
    fn lfs_pointers_are_noticed() {
        let mut case = case();
        let pointer = [LFS, b"oid sha256:00\nsize 5\n"].concat();
        case.writer.file("model.bin", false, &pointer[..]).unwrap();
        case.writer.file("other", false, &b"version 1"[..]).unwrap();
        assert_eq!(case.writer.finish().unwrap().lfs, ["model.bin"]);
    }
}
