//! What `install` wrote, so that `uninstall` can leave each file as it was: `clients.json` beside the console's other state.
//! No secret is in it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sigil_config::client::Made;

use crate::cli::fail::Failure;
use crate::contexts;

/// All of it.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// By path, links followed.
    pub files: BTreeMap<PathBuf, FileNote>,
}

/// A file that has entries of ours.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileNote {
    /// It was not there before.
    pub created: bool,
    /// Folders that were not there before, the outermost first.
    #[serde(default)]
    pub folders: Vec<PathBuf>,
    /// What in it held nothing before.
    #[serde(default)]
    pub made: Vec<Made>,
    /// What is in it.
    pub entries: Vec<EntryNote>,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryNote {
    /// Id of the client.
    pub client: String,
    /// Whether the file is a project's.
    pub project: bool,
    /// Keys to where entries are.
    pub path: Vec<String>,
    /// The entry's name.
    pub name: String,
    /// The deployment's.
    pub deployment: String,
    /// `--host` of the agent; absent: the one on this machine.
    pub host: Option<String>,
    /// `stdio` or `http`.
    pub form: String,
    /// Id of the key that was made for it.
    pub key: Option<String>,
    /// Id of what the client asks for.
    pub input: Option<String>,
}

impl Ledger {
    fn path() -> PathBuf {
        contexts::state_dir().join("clients.json")
    }

    /// Reads it; none is empty.
    pub fn load() -> Result<Self, Failure> {
        let path = Self::path();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(Failure::io(path.display(), &e)),
        };
        serde_json::from_str(&text)
            .map_err(|e| Failure::usage(format!("{}: {e}", path.display()), "mend the file or move it away"))
    }

    /// Writes it at once or not at all.
    pub fn save(&self) -> Result<(), Failure> {
        let path = Self::path();
        let failed = |e: &std::io::Error| Failure::io(path.display(), e);
        let dir = contexts::state_dir();
        std::fs::create_dir_all(&dir).map_err(|e| failed(&e))?;
        let mut file = tempfile::NamedTempFile::new_in(&dir).map_err(|e| failed(&e))?;
        serde_json::to_writer_pretty(&mut file, self).map_err(|e| failed(&e.into()))?;
        file.write_all(b"\n").and_then(|()| file.as_file().sync_all()).map_err(|e| failed(&e))?;
        file.persist(&path).map_err(|e| failed(&e.error))?;
        Ok(())
    }

    /// Every entry with its file.
    pub fn entries(&self) -> impl Iterator<Item = (&Path, &EntryNote)> {
        self.files.iter().flat_map(|(path, file)| file.entries.iter().map(move |entry| (path.as_path(), entry)))
    }

    /// The note about an entry.
    pub fn find(&self, file: &Path, path: &[String], name: &str) -> Option<&EntryNote> {
        self.files.get(file)?.entries.iter().find(|entry| entry.name == name && entry.path == path)
    }

    /// Notes an entry, and what was made for it.
    pub fn add(&mut self, file: &Path, entry: EntryNote, made: Vec<Made>) {
        let note = self.files.entry(file.to_path_buf()).or_default();
        note.entries.retain(|known| known.name != entry.name || known.path != entry.path);
        note.entries.push(entry);
        note.made.retain(|known| made.iter().all(|new| new.path != known.path));
        note.made.extend(made);
    }

    /// Forgets an entry. Answers the note of the file when it was the last.
    pub fn remove(&mut self, file: &Path, path: &[String], name: &str, made: Vec<Made>) -> Option<FileNote> {
        let note = self.files.get_mut(file)?;
        note.entries.retain(|entry| entry.name != name || entry.path != path);
        note.made = made;
        if note.entries.is_empty() { self.files.remove(file) } else { None }
    }
}
