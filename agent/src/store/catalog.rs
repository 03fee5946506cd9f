//! The second database: packages, whole registries of them. It is opened when it is first asked for, and written without
//! waiting for the disk (a second later it is there): what is ours is in the state as well, what is mirrored comes again.
//! So a damaged one is set aside, and an empty one takes its place.
//!
//! A value has a version byte and a checksum as in the state; larger ones are compressed. All of this blocks.

use std::borrow::Cow;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::disk::{io_error, is_full, private_dir, set_aside, sync_tree, tree_size};
use super::record::{BadRecord, seal, unseal};
use super::{Result, StoreError};

/// Bytes of sled's page cache.
const CACHE_BYTES: u64 = 8 << 20;
/// Values beyond this are compressed, bytes.
const COMPRESSED: usize = 256;
/// Largest value, bytes.
const VALUE_MAX: usize = 16 << 20;
/// Nothing is written when less of the file system is free, percent.
const MIN_FREE_PERCENT: u64 = 5;
/// Which database this is: a text that another one does not have.
const ID: &str = "m/id";

/// A key and its value.
pub type Entry = (String, Vec<u8>);

#[derive(Debug, Default)]
struct Slot {
    db: Option<sled::Db>,
    /// What was set aside and why, since the agent's start.
    alarms: Vec<String>,
    closed: bool,
}

/// The database of packages. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Catalog {
    path: Arc<PathBuf>,
    slot: Arc<Mutex<Slot>>,
}

enum Flaw {
    /// Its files, or a record of it.
    Damaged(String),
    /// Not for this build to touch.
    Newer(StoreError),
}

impl Catalog {
    /// That of a data directory which this process has. Nothing is opened.
    pub fn at(data_dir: &Path) -> Self {
        Self { path: Arc::new(data_dir.join("catalog")), slot: Arc::default() }
    }

    /// Whether there is one. Cheap; opens nothing.
    pub fn exists(&self) -> bool {
        self.path.join("db").exists() || self.path.join("conf").exists()
    }

    /// What was set aside since the agent's start, a line each.
    pub fn alarms(&self) -> Vec<String> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).alarms.clone()
    }

    /// A text that another database, or this one after it was lost, does not have.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn id(&self) -> Result<String> {
        let id = self.get(ID)?.unwrap_or_default();
        String::from_utf8(id).map_err(|e| StoreError::Io(e.to_string()))
    }

    /// A record.
    ///
    /// # Errors
    /// The database cannot be read. A damaged one is set aside.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.with(|db| {
            let raw = guarded("read", || db.get(key))?;
            raw.map(|raw| open_value(key, &raw)).transpose()
        })
    }

    /// Records behind a key, by key: at most `limit`, whose keys begin with `prefix`.
    ///
    /// # Errors
    /// As [`Catalog::get`].
    pub fn after(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<Entry>> {
        self.with(|db| {
            let from =
                if after < prefix { Bound::Included(prefix.as_bytes()) } else { Bound::Excluded(after.as_bytes()) };
            let mut found = Vec::new();
            let walked = guarded("read", || {
                for entry in db.range::<&[u8], _>((from, Bound::Unbounded)) {
                    let (key, raw) = entry?;
                    if found.len() == limit || !key.starts_with(prefix.as_bytes()) {
                        break;
                    }
                    found.push((key, raw));
                }
                Ok(())
            });
            walked?;
            let read = |(key, raw): (sled::IVec, sled::IVec)| {
                let key = std::str::from_utf8(&key).map_err(|_| Flaw::Damaged("a key is not text".into()))?;
                Ok((key.to_owned(), open_value(key, &raw)?))
            };
            found.into_iter().map(read).collect()
        })
    }

    /// Writes (`Some`) and removes (`None`) records, all or nothing. On the disk about a second later.
    ///
    /// # Errors
    /// The database cannot be written, or a value is too large.
    pub fn apply(&self, changes: &[(String, Option<Vec<u8>>)]) -> Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) if value.len() > VALUE_MAX => {
                    return Err(StoreError::Refused(format!("{} bytes are too many for one record", value.len())));
                }
                Some(value) => batch.insert(key.as_bytes(), seal(key, &packed(value)?).0),
                None => batch.remove(key.as_bytes()),
            }
        }
        private_dir(&self.path, false)?;
        if is_full(&self.path, MIN_FREE_PERCENT) {
            return Err(StoreError::DiskFull);
        }
        self.with(|db| guarded("write", || db.apply_batch(batch)))
    }

    /// Everything on the disk.
    ///
    /// # Errors
    /// Disk errors.
    pub fn sync(&self) -> Result<()> {
        self.with(|db| guarded("flush", || db.flush()).map(|_| ()))?;
        sync_tree(&self.path).map_err(io_error(&self.path))
    }

    /// Bytes of its files.
    pub fn size(&self) -> u64 {
        tree_size(&self.path)
    }

    /// Lets go of it: it is opened again when it is asked for.
    pub fn rest(&self) {
        let db = self.slot.lock().unwrap_or_else(PoisonError::into_inner).db.take();
        if let Some(db) = db
            && let Err(Flaw::Damaged(why)) = guarded("flush", || db.flush())
        {
            tracing::warn!(why, "the catalogue's database was not flushed");
        }
    }

    /// Lets go of it for good.
    pub fn close(&self) {
        self.rest();
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    }

    fn with<T>(&self, run: impl FnOnce(&sled::Db) -> std::result::Result<T, Flaw>) -> Result<T> {
        let db = self.database()?;
        let flaw = match run(&db) {
            Ok(value) => return Ok(value),
            Err(Flaw::Newer(newer)) => return Err(newer),
            Err(Flaw::Damaged(why)) => why,
        };
        drop(db);
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        // nothing of a damaged one is believed: what is ours is in the state, the rest comes again
        slot.db = None;
        self.put_aside(&mut slot, &flaw)?;
        Err(StoreError::Io(format!("the catalogue was damaged ({flaw}) and is made anew; try again")))
    }

    fn put_aside(&self, slot: &mut Slot, why: &str) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let target = set_aside(&self.path)?;
        let line = format!("the catalogue of packages was damaged ({why}) and is now {}", target.display());
        tracing::error!("{line}");
        slot.alarms.push(line);
        slot.alarms.truncate(super::ALARMS_KEPT);
        Ok(())
    }

    fn database(&self) -> Result<sled::Db> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = &slot.db {
            return Ok(db.clone());
        }
        if slot.closed {
            return Err(StoreError::Closed);
        }
        let mut tried = false;
        let db = loop {
            private_dir(&self.path, false)?;
            match open(&self.path) {
                Ok(db) => break db,
                Err(Flaw::Newer(newer)) => return Err(newer),
                Err(Flaw::Damaged(why)) if tried => return Err(StoreError::Io(format!("catalogue: {why}"))),
                Err(Flaw::Damaged(why)) => {
                    tried = true;
                    self.put_aside(&mut slot, &why)?;
                }
            }
        };
        slot.db = Some(db.clone());
        Ok(db)
    }
}

fn guarded<T>(what: &str, run: impl FnOnce() -> sled::Result<T>) -> std::result::Result<T, Flaw> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Flaw::Damaged(format!("{what}: {e}"))),
        Err(_) => Err(Flaw::Damaged(format!("{what}: the database library panicked"))),
    }
}

fn open(path: &Path) -> std::result::Result<sled::Db, Flaw> {
    let db = guarded("open", || {
        sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace)
            .flush_every_ms(Some(1000))
            .open()
    })?;
    let id = guarded("read", || db.get(ID))?;
    match id {
        Some(raw) => drop(open_value(ID, &raw)?),
        None if guarded("read", || Ok(db.is_empty()))? => {
            let id = packed(ulid::Ulid::generate().to_string().as_bytes()).map_err(|e| Flaw::Damaged(e.to_string()))?;
            guarded("write", || db.insert(ID, seal(ID, &id).0))?;
        }
        None => return Err(Flaw::Damaged("its first record is missing".into())),
    }
    Ok(db)
}

/// A value as it is kept: one byte for how, then itself.
fn packed(value: &[u8]) -> Result<Vec<u8>> {
    let plain = || [&[0], value].concat();
    if value.len() <= COMPRESSED {
        return Ok(plain());
    }
    let zipped = zstd::bulk::compress(value, 3).map_err(|e| StoreError::Io(format!("compression: {e}")))?;
    Ok(if zipped.len() < value.len() { [&[1], zipped.as_slice()].concat() } else { plain() })
}

fn open_value(key: &str, raw: &[u8]) -> std::result::Result<Vec<u8>, Flaw> {
    let value = match unseal(key, raw) {
        Ok((value, _)) => value,
        Err(BadRecord::Newer(found)) => {
            return Err(Flaw::Newer(StoreError::Newer { what: "the catalogue".into(), found: found.into() }));
        }
        Err(e) => return Err(Flaw::Damaged(format!("record {key:?}: {e}"))),
    };
    let read: Cow<'_, [u8]> = match value {
        [0, plain @ ..] => Cow::Borrowed(plain),
        [1, zipped @ ..] => {
            zstd::bulk::decompress(zipped, VALUE_MAX).map_err(|e| Flaw::Damaged(format!("record {key:?}: {e}")))?.into()
        }
        _ => return Err(Flaw::Damaged(format!("record {key:?} has no known form"))),
    };
    Ok(read.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(catalog: &Catalog, entries: &[(&str, &str)]) {
        let changes: Vec<_> =
            entries.iter().map(|(key, value)| ((*key).to_owned(), Some(value.as_bytes().to_vec()))).collect();
        catalog.apply(&changes).unwrap();
    }

    #[test]
    fn records_come_by_key_and_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::at(dir.path());
        assert!(!catalog.exists());
        let long = "x".repeat(10_000);
        put(&catalog, &[("p/b", "2"), ("p/a", "1"), ("p/c", &long), ("q/a", "4")]);
        let id = catalog.id().unwrap();
        catalog.apply(&[("p/b".into(), None)]).unwrap();
        catalog.sync().unwrap();
        catalog.rest();
        let again = Catalog::at(dir.path());
        assert!(again.exists());
        let all = again.after("p/", "", 10).unwrap();
        assert_eq!(all.iter().map(|(k, v)| (k.as_str(), v.len())).collect::<Vec<_>>(), [("p/a", 1), ("p/c", 10_000)]);
        assert_eq!(again.after("p/", "p/a", 1).unwrap()[0].0, "p/c");
        assert_eq!(again.id().unwrap(), id);
        assert_eq!(again.get("p/b").unwrap(), None);
        again.close();
        assert_eq!(again.get("p/a"), Err(StoreError::Closed));
    }

    #[test]
    fn a_damaged_one_is_set_aside_and_the_next_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::at(dir.path());
        put(&catalog, &[("p/a", "1")]);
        let id = catalog.id().unwrap();
        // one record becomes another's: its checksum is over its key
        let db = catalog.database().unwrap();
        let raw = db.get("p/a").unwrap().unwrap();
        db.insert("p/b", raw).unwrap();
        drop(db);
        let error = catalog.get("p/b").unwrap_err();
        assert!(error.to_string().contains("made anew"), "{error}");
        assert_eq!(catalog.get("p/a").unwrap(), None);
        assert_ne!(catalog.id().unwrap(), id);
        assert_eq!(catalog.alarms().len(), 1);
        let aside = std::fs::read_dir(dir.path()).unwrap().flatten();
        assert_eq!(aside.filter(|e| e.file_name().to_string_lossy().starts_with("catalog.aside-")).count(), 1);
    }

    #[test]
    fn files_that_are_none_of_a_database_are_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::at(dir.path());
        put(&catalog, &[("p/a", "1")]);
        catalog.sync().unwrap();
        catalog.rest();
        std::fs::remove_file(dir.path().join("catalog/db")).unwrap();
        std::fs::create_dir(dir.path().join("catalog/db")).unwrap();
        let again = Catalog::at(dir.path());
        assert_eq!(again.get("p/a").unwrap(), None);
        assert_eq!(again.alarms().len(), 1);
    }
}
