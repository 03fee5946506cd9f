//! The build context: the same tree makes the same bytes, whatever its times, owners and order on disk.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use sigil_core::recipe::Tree;
use tokio::sync::mpsc;

use super::{BODY, BuildError, OWN};
use crate::engine::Context;

/// Time of every entry, seconds: 2 January 1980. Not zero, because zip archives, and with them Python wheels made
/// from the tree, cannot say anything older than 1980.
const MTIME: u64 = 315_619_200;
/// One piece of the stream.
const PIECE: usize = 64 << 10;
/// Pieces between reader and engine.
const AHEAD: usize = 8;

/// A path of a recipe within the tree. Recipes are checked where they are made; this is the last door.
pub(super) fn within(tree: &Path, path: &str) -> Result<PathBuf, BuildError> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let escapes = || {
        BuildError::failed(format!("'{path}' leaves the source tree"), "paths in a manifest are relative to its tree")
    };
    if !plain {
        return Err(escapes());
    }
    let root = tree.canonicalize().map_err(|error| gone(tree, &error))?;
    let full = root.join(path);
    // A symbolic link in the tree may point anywhere.
    let real = full.canonicalize().map_err(|error| gone(&full, &error))?;
    if real.starts_with(&root) { Ok(real) } else { Err(escapes()) }
}

fn gone(path: &Path, error: &io::Error) -> BuildError {
    let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    BuildError::failed(format!("{name} in the source tree: {error}"), "is it named rightly in the manifest?")
}

/// The tree as recognition and Dockerfiles see it: every file, and the bodies of those that are `wanted`.
pub(super) async fn tree(root: &Path, wanted: impl Fn(&str) -> bool + Send + 'static) -> Result<Tree, BuildError> {
    let root = root.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let mut tree = Tree::default();
        for entry in walk(&root, &Rules::default())? {
            let Some(name) = entry.name.to_str().filter(|_| matches!(entry.kind, Kind::File { .. })) else { continue };
            if wanted(name) && std::fs::metadata(root.join(name))?.len() <= BODY {
                tree.bodies.insert(name.to_owned(), std::fs::read(root.join(name))?);
            }
            tree.files.push(name.to_owned());
        }
        Ok::<_, io::Error>(tree)
    });
    match read.await {
        Ok(Ok(tree)) => Ok(tree),
        Ok(Err(error)) => Err(BuildError::failed(format!("the source tree: {error}"), "fetch it again")),
        Err(error) => Err(BuildError::failed(format!("the source tree: {error}"), "try again")),
    }
}

/// A stream of the context: the tree at `root` (without what its `.dockerignore` names), and our own files.
pub(super) fn stream(root: Option<PathBuf>, dockerfile: String, ca: Option<Vec<u8>>) -> Context {
    let (pieces, stream) = mpsc::channel::<io::Result<Bytes>>(AHEAD);
    tokio::task::spawn_blocking(move || {
        let writer = Pieces { pieces: pieces.clone(), buffer: Vec::with_capacity(PIECE) };
        if let Err(error) = write(writer, root.as_deref(), &dockerfile, ca.as_deref()) {
            // An engine that went away shows as a send that fails, too; then nobody hears this either.
            let _gone = pieces.blocking_send(Err(error));
        }
    });
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(stream))
}

/// Writes into a bounded channel.
struct Pieces {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE)));
        self.pieces.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn write(out: impl Write, root: Option<&Path>, dockerfile: &str, ca: Option<&[u8]>) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    tar.mode(tar::HeaderMode::Deterministic);
    if let Some(root) = root {
        let rules = Rules::read(root)?;
        for entry in walk(root, &rules)? {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(MTIME);
            header.set_uid(0);
            header.set_gid(0);
            match entry.kind {
                Kind::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(0o755);
                    header.set_size(0);
                    tar.append_data(&mut header, entry.name, io::empty())?;
                }
                Kind::File { executable } => {
                    let file = std::fs::File::open(root.join(&entry.name))?;
                    let size = file.metadata()?.len();
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_mode(if executable { 0o755 } else { 0o644 });
                    header.set_size(size);
                    // A file that grows meanwhile must not shift what follows; one that shrinks fails the build.
                    tar.append_data(&mut header, entry.name, Exactly { file, left: size })?;
                }
                Kind::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    tar.append_link(&mut header, entry.name, target)?;
                }
            }
        }
    }
    let own = [("Dockerfile", Some(dockerfile.as_bytes())), ("ca.crt", ca)];
    for (name, body) in own.into_iter().filter_map(|(name, body)| Some((name, body?))) {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(MTIME);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o644);
        header.set_size(body.len() as u64);
        tar.append_data(&mut header, format!("{OWN}/{name}"), body)?;
    }
    tar.into_inner()?.flush()
}

/// Reads as many bytes as were promised, or fails.
struct Exactly {
    file: std::fs::File,
    left: u64,
}

impl io::Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a file of the source tree shrank while it was read",
            ));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

struct Entry {
    /// Relative to the root.
    name: PathBuf,
    kind: Kind,
}

enum Kind {
    Directory,
    File { executable: bool },
    Link(PathBuf),
}

/// Everything under `root` that the rules leave, sorted by path; devices, sockets and our own directory left out.
fn walk(root: &Path, rules: &Rules) -> io::Result<Vec<Entry>> {
    let mut all = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let name = dir.join(entry.file_name());
            let meta = entry.metadata()?;
            let is_dir = meta.is_dir();
            let excluded = rules.exclude(&name, is_dir);
            if is_dir && name != Path::new(OWN) && (!excluded || rules.readmits) {
                open.push(name.clone());
            }
            if excluded || name.starts_with(OWN) {
                continue;
            }
            let kind = if is_dir {
                Kind::Directory
            } else if meta.is_file() {
                Kind::File { executable: meta.permissions().mode() & 0o111 != 0 }
            } else if meta.is_symlink() {
                Kind::Link(std::fs::read_link(entry.path())?)
            } else {
                continue;
            };
            all.insert(name, kind);
        }
    }
    Ok(all.into_iter().map(|(name, kind)| Entry { name, kind }).collect())
}

/// `.dockerignore`: the last line that names a path or a directory above it decides, and paths begin at the root.
/// Both differ from `.gitignore`, so each line is a matcher of its own.
#[derive(Default)]
struct Rules {
    lines: Vec<(Gitignore, bool)>,
    readmits: bool,
}

impl Rules {
    fn read(root: &Path) -> io::Result<Self> {
        match std::fs::read_to_string(root.join(".dockerignore")) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> io::Result<Self> {
        let mut rules = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (pattern, readmit) = match line.strip_prefix('!') {
                Some(pattern) => (pattern.trim(), true),
                None => (line, false),
            };
            let pattern = pattern.trim_start_matches("./").trim_matches('/');
            if pattern.is_empty() || pattern == "." {
                continue;
            }
            let mut one = GitignoreBuilder::new("");
            one.add_line(None, &format!("/{pattern}")).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!(".dockerignore: {line}: {error}"))
            })?;
            let one = one.build().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            rules.readmits |= readmit;
            rules.lines.push((one, readmit));
        }
        Ok(rules)
    }

    fn exclude(&self, path: &Path, is_dir: bool) -> bool {
        self.lines.iter().fold(false, |excluded, (line, readmit)| {
            if line.matched_path_or_any_parents(path, is_dir).is_ignore() { !readmit } else { excluded }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(rules: &str, paths: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            let full = dir.path().join(path);
            std::fs::create_dir_all(full.parent().unwrap()).unwrap();
            std::fs::write(full, path).unwrap();
        }
        let rules = Rules::parse(rules).unwrap();
        let all = walk(dir.path(), &rules).unwrap();
        all.iter()
            .filter(|entry| matches!(entry.kind, Kind::File { .. }))
            .map(|entry| entry.name.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn dockerignore_is_read_as_docker_does() {
        let paths = ["a.log", "b/a.log", "b/keep/x", "b/y", "node_modules/m", "sub/node_modules/m", ".sigil/x", "z"];
        assert_eq!(names("*.log\nnode_modules/\n", &paths), ["b/a.log", "b/keep/x", "b/y", "sub/node_modules/m", "z"]);
        assert_eq!(names("**/node_modules\n**/*.log\n# c\n", &paths), ["b/keep/x", "b/y", "z"]);
        assert_eq!(names("*\n!b/keep\n", &paths), ["b/keep/x"]);
        assert_eq!(names("./b\n!b/y\nz", &paths), ["a.log", "b/y", "node_modules/m", "sub/node_modules/m"]);
    }

    #[test]
    fn the_same_tree_makes_the_same_bytes() {
        let bytes = |order: [&str; 3]| {
            let dir = tempfile::tempdir().unwrap();
            for name in order {
                std::fs::write(dir.path().join(name), "x").unwrap();
            }
            std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
            std::fs::set_permissions(dir.path().join("b"), PermissionsExt::from_mode(0o775)).unwrap();
            let mut out = Vec::new();
            write(&mut out, Some(dir.path()), "FROM x\n", Some(b"pem")).unwrap();
            out
        };
        let one = bytes(["a", "b", "c"]);
        assert_eq!(one, bytes(["c", "b", "a"]));
        let mut archive = tar::Archive::new(one.as_slice());
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                assert_eq!((header.uid().unwrap(), header.mtime().unwrap()), (0, MTIME));
                (entry.path().unwrap().to_string_lossy().into_owned(), header.mode().unwrap())
            })
            .collect();
        let want = [
            ("a", 0o644),
            ("b", 0o755),
            ("c", 0o644),
            ("link", 0o777),
            (".sigil/Dockerfile", 0o644),
            (".sigil/ca.crt", 0o644),
        ];
        assert_eq!(found, want.map(|(name, mode)| (name.to_owned(), mode)));
    }

    #[test]
    fn nothing_outside_the_tree_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", tree.join("Dockerfile")).unwrap();
        for path in ["../secret", "/etc/passwd", "a/../../secret", "Dockerfile"] {
            let error = within(&tree, path).unwrap_err();
            assert!(error.to_string().contains("leaves the source tree"), "{path}: {error}");
        }
        assert!(within(&tree, ".").is_ok() && within(&tree, "").is_ok());
    }

    #[tokio::test]
    async fn a_tree_that_cannot_be_read_fails_the_stream() {
        use futures::StreamExt;
        let dir = tempfile::tempdir().unwrap();
        let mut pieces = stream(Some(dir.path().join("none")), "FROM x".into(), None);
        assert!(pieces.next().await.unwrap().is_err());
        let mut pieces = stream(None, "FROM x".into(), None);
        assert!(pieces.next().await.unwrap().unwrap().len() >= 512);
    }
}
