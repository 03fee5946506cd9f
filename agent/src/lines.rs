//! Files of records, a line of JSON each: a young one, and the one before it. When the young one has its share it becomes
//! the old one. What is damaged is left out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A directory of such files.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    dir: PathBuf,
    /// Bytes of one file; there are two of a name at most.
    share: u64,
}

impl Lines {
    /// In a directory that is made when something is written. `share`: bytes of one file.
    pub(crate) fn new(dir: PathBuf, share: u64) -> Self {
        Self { dir, share }
    }

    /// Where they are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file of the directory, for reading and writing.
    pub(crate) fn open(&self, name: &str) -> io::Result<File> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let path = self.dir.join(name);
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    /// Adds records. Blocks.
    pub(crate) fn append<T: Serialize>(&self, name: &str, records: &[T]) -> io::Result<()> {
        let (young, old) = (format!("{name}.log"), format!("{name}.old"));
        let mut file = self.open(&young)?;
        let mut end = file.seek(SeekFrom::End(0))?;
        if end >= self.share {
            fs::rename(self.dir.join(&young), self.dir.join(old))?;
            file = self.open(&young)?;
            end = 0;
        }
        let mut text = Vec::new();
        // half a line: the agent ended while it wrote
        let mut last = [0];
        if end > 0 && file.read_exact_at(&mut last, end - 1).is_ok() && last != *b"\n" {
            text.push(b'\n');
        }
        for record in records {
            serde_json::to_writer(&mut text, record)?;
            text.push(b'\n');
        }
        file.write_all_at(&text, end)
    }

    /// The newest records that are wanted, newest first. Blocks.
    pub(crate) fn newest<T: DeserializeOwned>(&self, name: &str, limit: usize, wanted: impl Fn(&T) -> bool) -> Vec<T> {
        let mut found = Vec::new();
        for suffix in ["log", "old"] {
            let text = fs::read(self.dir.join(format!("{name}.{suffix}"))).unwrap_or_default();
            for line in text.rsplit(|byte| *byte == b'\n') {
                if found.len() == limit {
                    return found;
                }
                found.extend(serde_json::from_slice::<T>(line).ok().filter(|record| wanted(record)));
            }
        }
        found
    }

    /// Records in the last bytes of the young file, oldest first. Blocks.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub(crate) fn tail<T: DeserializeOwned>(&self, name: &str, bytes: u64) -> io::Result<Vec<T>> {
        let mut file = match File::open(self.dir.join(format!("{name}.log"))) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let from = file.seek(SeekFrom::End(0))?.saturating_sub(bytes);
        file.seek(SeekFrom::Start(from))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }

    /// Removes files whose name, up to its first dot, is not wanted any more. Blocks.
    pub(crate) fn prune(&self, gone: impl Fn(&str) -> bool) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let stem = name.to_str().and_then(|n| n.split('.').next());
            if stem.is_some_and(&gone)
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!(%error, path = %entry.path().display(), "a file of a removed deployment stays");
            }
        }
    }
}
