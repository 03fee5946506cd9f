//! A small file of what a room has learnt by itself and a new agent goes on with: JSON, replaced wholly, and only when it says
//! something else than before. It holds nothing that anybody asked for: one that is lost or damaged is learnt again.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::replace_file;

/// The file, and what it says.
#[derive(Debug)]
pub(crate) struct Kept {
    path: PathBuf,
    said: Vec<u8>,
}

impl Kept {
    /// Opens `<data>/learnt/<name>.json`, and reads what a former agent knew. Blocks.
    pub(crate) fn open<T: DeserializeOwned + Default>(data_dir: &Path, name: &str) -> (Self, T) {
        let path = data_dir.join("learnt").join(format!("{name}.json"));
        let said = std::fs::read(&path).unwrap_or_default();
        let known = match serde_json::from_slice(&said) {
            Ok(known) => known,
            Err(_) if said.is_empty() => T::default(),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what was learnt cannot be read; it is learnt again");
                T::default()
            }
        };
        (Self { path, said }, known)
    }

    /// Writes it where it says something new. Blocks then, for an fsync.
    pub(crate) fn keep<T: Serialize>(&mut self, known: &T) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        let says = serde_json::to_vec(known)?;
        if says == self.said {
            return Ok(());
        }
        if let Some(directory) = self.path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        replace_file(&self.path, &says, None)?;
        self.said = says;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_is_known_is_known_again_and_damage_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let known = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let (mut kept, before) = Kept::open::<BTreeMap<String, u32>>(dir.path(), "x");
        assert!(before.is_empty());
        kept.keep(&before).unwrap();
        kept.keep(&known).unwrap();
        let path = dir.path().join("learnt/x.json");
        let written = || std::fs::metadata(&path).unwrap().modified().unwrap();
        let at = written();
        kept.keep(&known).unwrap();
        assert_eq!(written(), at, "nothing new, nothing written");
        assert_eq!(Kept::open::<BTreeMap<String, u32>>(dir.path(), "x").1, known);
        std::fs::write(&path, b"{\"a\":").unwrap();
        let (mut kept, after) = Kept::open::<BTreeMap<String, u32>>(dir.path(), "x");
        assert!(after.is_empty());
        kept.keep(&known).unwrap();
        assert_eq!(Kept::open::<BTreeMap<String, u32>>(dir.path(), "x").1, known);
    }
}
