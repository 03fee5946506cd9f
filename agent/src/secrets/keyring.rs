//! Envelope encryption: a master key wraps a ring of data keys; a data key seals records.
//!
//! `<data>/keyring` is `2, length of header, header, version, algorithm, nonce, AES-256-GCM(JSON), CRC-32C`. The header is
//! JSON in clear, bound into the seal: where the master key comes from, and an id that tells it from another. The sum at
//! the end tells damage from a wrong key. Beside the data keys the ring holds, for every record, the version last
//! acknowledged (its *floor*), so that an old copy of a record put back into the store is told from the current one.
//! A former ring (`1, algorithm, nonce, AES-256-GCM(JSON)`) is read, and written in the new form when it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_config::agent::SecretsConfig;
use zeroize::{Zeroize, Zeroizing};

use super::files::{read_private, there, write_private};
use super::key::{self, Key};
use super::master::{Given, Place, Settle, Trouble};

/// A data key is replaced after this many seals: 96-bit random nonces stay far from colliding.
const USES_MAX: u64 = 1 << 30;
/// Seals between two writings of the counts. A ring that is opened counts so many more: those that were never written.
const UNWRITTEN_MAX: u64 = 512;
/// The form of the file.
const FORM: u8 = 2;
/// The largest keyring read back: about 200,000 secrets.
const FILE_MAX: u64 = 32 << 20;

struct DataKey {
    id: u32,
    created: Timestamp,
    count: u64,
    key: Key,
}

/// What is shown of a data key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataKeyInfo {
    /// Counts up.
    pub id: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// Seals made with it, at most.
    pub uses: u64,
    /// Records that are sealed with it.
    pub records: u64,
}

/// Neither shown nor cloned.
pub(super) struct Keyring {
    path: PathBuf,
    data_dir: PathBuf,
    master: Key,
    place: Place,
    /// Oldest first; the last one seals.
    keys: Vec<DataKey>,
    floors: BTreeMap<String, u32>,
    /// Seals since the counts were written.
    unwritten: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// The master key's.
    key: String,
    master: Place,
}

/// The ring as kept, inside the seal.
#[derive(Serialize, Deserialize)]
struct Stored {
    keys: Vec<StoredKey>,
    floors: BTreeMap<String, u32>,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    id: u32,
    created: Timestamp,
    count: u64,
    key: String,
}

impl Drop for StoredKey {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// How a ring is to be opened.
pub(super) enum With<'a> {
    /// As configured, or not at all.
    Config(&'a SecretsConfig),
    /// As it says itself, whatever the configuration says: to wrap it anew.
    Itself(&'a SecretsConfig),
}

impl Keyring {
    /// Opens or makes; the flag says that it was made. Nothing is touched where it does not open.
    pub(super) fn open(data_dir: &Path, with: &With<'_>, given: &Given) -> Result<(Self, bool), Trouble> {
        let (With::Config(config) | With::Itself(config)) = *with;
        let path = data_dir.join("keyring");
        if !there(&path) {
            let (place, master) = Place::first(config, data_dir, given)?;
            let data_dir = data_dir.to_owned();
            let (keys, floors) = (Vec::new(), BTreeMap::new());
            let mut ring = Self { path, data_dir, master, place, keys, floors, unwritten: 0 };
            ring.add_key()?;
            return Ok((ring, true));
        }
        let file = read_private(&path, FILE_MAX)?;
        let (master, place, stored, settle) = match file.first() {
            Some(&FORM) => opened(&path, data_dir, &file, with, given)?,
            _ => former(&path, data_dir, &file, config, given)?,
        };
        let mut ring = Self {
            path,
            data_dir: data_dir.to_owned(),
            master,
            place,
            keys: Vec::new(),
            floors: stored.floors.clone(),
            unwritten: 0,
        };
        for kept in &stored.keys {
            let key = Key::of_hex(&kept.key).ok_or_else(|| ring.damaged())?;
            ring.keys.push(DataKey { id: kept.id, created: kept.created, count: kept.count, key });
        }
        let last = ring.keys.last_mut();
        last.ok_or_else(|| Trouble::from(format!("{} holds no data key", ring.path.display())))?.count += UNWRITTEN_MAX;
        settle.done()?;
        Ok((ring, false))
    }

    fn damaged(&self) -> Trouble {
        damaged(&self.path)
    }

    /// The version of a record below which nothing is believed; 0 for one never seen.
    pub(super) fn floor(&self, key: &str) -> u32 {
        self.floors.get(key).copied().unwrap_or(0)
    }

    /// Raises floors and writes the ring, counts of uses included.
    pub(super) fn raise_floors(&mut self, raised: &[(String, u32)]) -> Result<(), Trouble> {
        let before = self.floors.clone();
        for (key, version) in raised {
            let version = (*version).max(self.floor(key));
            self.floors.insert(key.clone(), version);
        }
        self.save().inspect_err(|_| self.floors = before)
    }

    /// `version, algorithm, key id, nonce, ciphertext`.
    pub(super) fn seal(&mut self, parts: &[Vec<u8>], plain: &[u8]) -> Result<Vec<u8>, Trouble> {
        if self.keys.last().is_none_or(|key| key.count >= USES_MAX) {
            // on disk before anything is sealed with it
            self.add_key()?;
        }
        if self.unwritten + 1 >= UNWRITTEN_MAX {
            self.save()?;
        }
        let key = self.keys.last_mut().ok_or_else(|| "the keyring holds no data key".to_owned())?;
        key.count += 1;
        self.unwritten += 1;
        let mut bound = parts.to_vec();
        bound.push(key.id.to_be_bytes().to_vec());
        let body = key::wrap(&key.key, plain, &bound)?;
        let (head, rest) = body.split_at(2);
        Ok([head, &key.id.to_be_bytes(), rest].concat())
    }

    /// `None` when anything differs from what was sealed.
    pub(super) fn open_sealed(&self, parts: &[Vec<u8>], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (head, rest) = sealed.split_at_checked(2)?;
        let (id, rest) = rest.split_first_chunk::<4>()?;
        let key = self.keys.iter().find(|key| key.id == u32::from_be_bytes(*id))?;
        let mut bound = parts.to_vec();
        bound.push(id.to_vec());
        key::unwrap(&key.key, &[head, rest].concat(), &bound)
    }

    /// Adds a data key, on the disk when this returns: everything is sealed with it from now on.
    pub(super) fn add_key(&mut self) -> Result<u32, Trouble> {
        let id = self.keys.last().map_or(1, |key| key.id + 1);
        self.keys.push(DataKey { id, created: Timestamp::now(), count: 0, key: Key::random()? });
        self.save().inspect_err(|_| drop(self.keys.pop()))?;
        Ok(id)
    }

    /// Whether something is sealed with the newest data key.
    pub(super) fn is_current(&self, sealed: &[u8]) -> bool {
        self.keys.last().is_some_and(|key| Some(key.id) == key_of(sealed))
    }

    /// The id of the data key that seals; 0 without one.
    pub(super) fn newest(&self) -> u32 {
        self.keys.last().map_or(0, |key| key.id)
    }

    /// Whether there are older data keys.
    pub(super) fn has_former(&self) -> bool {
        self.keys.len() > 1
    }

    /// Forgets the data keys with which nothing is sealed, but for the newest; answers their ids.
    pub(super) fn retire(&mut self, used: &BTreeSet<u32>) -> Result<Vec<u32>, Trouble> {
        let Some(newest) = self.keys.last().map(|key| key.id) else { return Ok(Vec::new()) };
        let (kept, gone) =
            std::mem::take(&mut self.keys).into_iter().partition(|key| key.id == newest || used.contains(&key.id));
        self.keys = kept;
        let gone: Vec<DataKey> = gone;
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        let ids = gone.iter().map(|key| key.id).collect();
        match self.save() {
            Ok(()) => Ok(ids),
            Err(trouble) => {
                self.keys.extend(gone);
                self.keys.sort_by_key(|key| key.id);
                Err(trouble)
            }
        }
    }

    /// Its data keys, and how many records each has of these.
    pub(super) fn info<'a>(&self, sealed: impl Iterator<Item = &'a [u8]>) -> Vec<DataKeyInfo> {
        let mut records: BTreeMap<u32, u64> = BTreeMap::new();
        for id in sealed.filter_map(key_of) {
            *records.entry(id).or_default() += 1;
        }
        let of = |id| records.get(&id).copied().unwrap_or(0);
        let shown = |k: &DataKey| DataKeyInfo { id: k.id, created_at: k.created, uses: k.count, records: of(k.id) };
        self.keys.iter().map(shown).collect()
    }

    /// The word for where its master key comes from.
    pub(super) fn source(&self) -> &'static str {
        self.place.word()
    }

    /// Wraps the ring with another master key. Killed at any moment, it opens with the former key or with the new one: the
    /// new one lies beside the former, on the disk, before the ring says that it is its own, and moves into its place after.
    pub(super) fn rewrap(&mut self, config: &SecretsConfig, given: &Given) -> Result<(), Trouble> {
        let place = Place::wanted(config, &self.place, given)?;
        let (master, settle) = place.next(&self.data_dir, &self.master.id(), given)?;
        let before = (std::mem::replace(&mut self.master, master), std::mem::replace(&mut self.place, place));
        self.save().inspect_err(|_| (self.master, self.place) = before)?;
        settle.done().map_err(|why| {
            Trouble::new(
                format!("the ring lies under its new master key, which is not yet in its place: {why}"),
                "what lies beside it with .next behind its name is the key: the agent goes on with it; move it there",
            )
        })
    }

    fn save(&mut self) -> Result<(), Trouble> {
        let text = |key: &DataKey| hex::encode(key.key.bytes());
        let keys = self.keys.iter();
        let stored = Stored {
            keys: keys.map(|k| StoredKey { id: k.id, created: k.created, count: k.count, key: text(k) }).collect(),
            floors: self.floors.clone(),
        };
        // grown by no reallocation that would leave keys behind
        let mut plain = Zeroizing::new(Vec::with_capacity(serialized(&stored)?));
        serde_json::to_writer(&mut *plain, &stored).map_err(|e| e.to_string())?;
        let header = Header { key: self.master.id(), master: self.place.clone() };
        let header = serde_json::to_vec(&header).map_err(|e| e.to_string())?;
        let length =
            u16::try_from(header.len()).map_err(|_| "a path in the keyring's header is too long".to_owned())?;
        let body = key::wrap(&self.master, &plain, &bound(&header))?;
        let mut file = [&[FORM], length.to_be_bytes().as_slice(), &header, &body].concat();
        file.extend_from_slice(&crc32c::crc32c(&file).to_le_bytes());
        write_private(&self.path, &file)?;
        self.unwritten = 0;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        for key in &mut self.keys {
            key.count = USES_MAX;
        }
    }

    #[cfg(test)]
    pub(super) fn key_ids(&self) -> Vec<u32> {
        self.keys.iter().map(|key| key.id).collect()
    }

    /// The ring in its former form.
    #[cfg(test)]
    pub(super) fn save_as_former(&self) {
        let keys = self.keys.iter();
        let text = |key: &DataKey| hex::encode(key.key.bytes());
        let stored = Stored {
            keys: keys.map(|k| StoredKey { id: k.id, created: k.created, count: k.count, key: text(k) }).collect(),
            floors: self.floors.clone(),
        };
        let plain = serde_json::to_vec(&stored).unwrap_or_default();
        let sealed = key::wrap(&self.master, &plain, &[b"sigil keyring".to_vec()]).unwrap_or_default();
        drop(write_private(&self.path, &sealed));
    }
}

/// The data key that something was sealed with.
pub(super) fn key_of(sealed: &[u8]) -> Option<u32> {
    let (_, rest) = sealed.split_at_checked(2)?;
    Some(u32::from_be_bytes(*rest.first_chunk::<4>()?))
}

fn serialized(stored: &Stored) -> Result<usize, String> {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, stored).map_err(|e| e.to_string())?;
    Ok(count.0)
}

fn bound(header: &[u8]) -> Vec<Vec<u8>> {
    vec![b"sigil keyring 2".to_vec(), header.to_vec()]
}

fn damaged(path: &Path) -> Trouble {
    Trouble::new(
        format!("{} is damaged", path.display()),
        "nothing was changed. Restore it from a backup: with the key that it lies under it opens what was sealed until then",
    )
}

type Opened = (Key, Place, Stored, Settle);

fn opened(path: &Path, data_dir: &Path, file: &[u8], with: &With<'_>, given: &Given) -> Result<Opened, Trouble> {
    let damaged = || damaged(path);
    let (content, sum) = file.split_last_chunk::<4>().ok_or_else(damaged)?;
    if crc32c::crc32c(content).to_le_bytes() != *sum {
        return Err(damaged());
    }
    let (length, rest) = content[1..].split_first_chunk::<2>().ok_or_else(damaged)?;
    let (header, body) = rest.split_at_checked(u16::from_be_bytes(*length).into()).ok_or_else(damaged)?;
    let Header { key: id, master } = serde_json::from_slice(header).map_err(|_| damaged())?;
    let place = match with {
        With::Config(config) => Place::agreed(config, &master)?,
        With::Itself(_) => master,
    };
    let (master, settle) = place.find(path, data_dir, &id, given)?;
    let plain = key::unwrap(&master, body, &bound(header)).ok_or_else(damaged)?;
    let stored = serde_json::from_slice(&plain).map_err(|_| damaged())?;
    Ok((master, place, stored, settle))
}

fn former(path: &Path, data_dir: &Path, file: &[u8], config: &SecretsConfig, given: &Given) -> Result<Opened, Trouble> {
    let (place, master, words) = Place::former(config, data_dir, given)?;
    let wrong = || Trouble::from(format!("{} does not open with its key, {words}", path.display()));
    let plain = key::unwrap(&master, file, &[b"sigil keyring".to_vec()]).ok_or_else(wrong)?;
    let stored = serde_json::from_slice(&plain).map_err(|_| wrong())?;
    Ok((master, place, stored, Settle::default()))
}
