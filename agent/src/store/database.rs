//! sled, kept at arm's length: every record verified at open, every error an answer (sled 0.34 panics on some damage),
//! and a sum over all records, so that one that silently vanished is noticed too.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::{io_error, private_dir, sync_tree, tree_size};
use super::record::{BadRecord, HEAD, Op, seal, unseal};
use super::{Result, StoreError};

/// Bytes of sled's page cache. All reads are served from memory, so it only has to hold what is being written.
const CACHE_BYTES: u64 = 16 << 20;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Head {
    format: u32,
    /// The last change applied.
    seq: u64,
    /// Records beside this one.
    count: u64,
    /// Sum of their checksums.
    sum: u64,
}

/// What the database held.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub seq: u64,
    pub records: BTreeMap<String, Vec<u8>>,
}

/// How opening went when it did not go well.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Damaged, with what could still be read and verified.
    Bad { why: String, salvage: BTreeMap<String, Vec<u8>> },
    /// Whole, but not for this build to touch.
    Refused(StoreError),
}

/// An open database.
#[derive(Debug)]
pub(super) struct Database {
    db: sled::Db,
    path: PathBuf,
    sums: HashMap<String, u32>,
    sum: u64,
}

fn guarded<T>(what: &str, run: impl FnOnce() -> sled::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(format!("{what}: {e}")),
        Err(_) => Err(format!("{what}: the database library panicked")),
    }
}

fn open_sled(path: &Path) -> std::result::Result<sled::Db, String> {
    guarded("open", || {
        sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace)
            .flush_every_ms(Some(1000))
            .open()
    })
}

impl Database {
    /// Opens, reads and verifies everything. A new directory is an empty database at sequence 0.
    pub fn open(path: &Path) -> std::result::Result<(Self, Loaded), Trouble> {
        private_dir(path, false).map_err(Trouble::Refused)?;
        let bad = |why: String| Trouble::Bad { why, salvage: BTreeMap::new() };
        let db = open_sled(path).map_err(bad)?;
        let mut records = BTreeMap::new();
        let mut this = Self { db, path: path.to_owned(), sums: HashMap::new(), sum: 0 };
        let mut head: Option<Head> = None;
        let mut flaw: Option<String> = None;
        let mut newer: Option<StoreError> = None;
        let walked = guarded("read", || {
            for entry in this.db.iter() {
                let (key, raw) = entry?;
                let Ok(key) = std::str::from_utf8(&key) else {
                    flaw = Some("a key is not text".into());
                    continue;
                };
                match unseal(key, &raw) {
                    Ok((value, _)) if key == HEAD => head = serde_json::from_slice(value).ok(),
                    Ok((value, crc)) => {
                        this.sum = this.sum.wrapping_add(crc.into());
                        this.sums.insert(key.to_owned(), crc);
                        records.insert(key.to_owned(), value.to_vec());
                    }
                    Err(BadRecord::Newer(found)) => {
                        newer = Some(StoreError::Newer { what: format!("record {key}"), found: found.into() });
                    }
                    Err(e) => flaw = Some(format!("record {key}: {e}")),
                }
            }
            Ok(())
        });
        if let Some(newer) = newer {
            return Err(Trouble::Refused(newer));
        }
        if let Err(why) = walked {
            return Err(Trouble::Bad { why, salvage: records });
        }
        if let Some(why) = flaw {
            return Err(Trouble::Bad { why, salvage: records });
        }
        let head = match head {
            Some(head) if head.format > 1 => {
                return Err(Trouble::Refused(StoreError::Newer { what: "the database".into(), found: head.format }));
            }
            Some(head) => head,
            None if records.is_empty() => Head { format: 1, ..Head::default() },
            None => return Err(Trouble::Bad { why: "its head record is missing".into(), salvage: records }),
        };
        if (head.count, head.sum) != (this.sums.len() as u64, this.sum) {
            let why = format!("{} of {} records are there, or not the newest ones", this.sums.len(), head.count);
            return Err(Trouble::Bad { why, salvage: records });
        }
        Ok((this, Loaded { seq: head.seq, records }))
    }

    /// Makes a database that holds exactly these records, all of it on the disk. `path` must not exist.
    pub fn build(path: &Path, seq: u64, records: &[(String, Vec<u8>)]) -> Result<Self> {
        private_dir(path, false)?;
        let db = open_sled(path).map_err(|why| StoreError::Io(format!("{}: {why}", path.display())))?;
        let mut this = Self { db, path: path.to_owned(), sums: HashMap::new(), sum: 0 };
        let ops: Vec<Op> =
            records.iter().map(|(key, value)| Op { key: key.clone(), value: Some(value.clone()) }).collect();
        this.apply(seq, &ops)?;
        this.sync()?;
        Ok(this)
    }

    /// Applies changes up to `seq`, all or nothing.
    pub fn apply(&mut self, seq: u64, ops: &[Op]) -> Result<()> {
        let mut batch = sled::Batch::default();
        for op in ops {
            let old = match &op.value {
                Some(value) => {
                    let (raw, crc) = seal(&op.key, value);
                    batch.insert(op.key.as_bytes(), raw);
                    self.sum = self.sum.wrapping_add(crc.into());
                    self.sums.insert(op.key.clone(), crc)
                }
                None => {
                    batch.remove(op.key.as_bytes());
                    self.sums.remove(&op.key)
                }
            };
            self.sum = self.sum.wrapping_sub(old.unwrap_or(0).into());
        }
        let head = Head { format: 1, seq, count: self.sums.len() as u64, sum: self.sum };
        let head = serde_json::to_vec(&head).map_err(|e| StoreError::Io(e.to_string()))?;
        batch.insert(HEAD.as_bytes(), seal(HEAD, &head).0);
        guarded("write", || self.db.apply_batch(batch)).map_err(StoreError::Io)
    }

    /// Everything on the disk: sled's flush, then a real fsync of its files.
    pub fn sync(&self) -> Result<()> {
        guarded("flush", || self.db.flush()).map_err(StoreError::Io)?;
        sync_tree(&self.path).map_err(io_error(&self.path))
    }

    /// True when the files hold more than four times what lives in them.
    pub fn is_bloated(&self, live_bytes: u64, floor: u64) -> bool {
        tree_size(&self.path) > floor.max(live_bytes.saturating_mul(4))
    }
}
