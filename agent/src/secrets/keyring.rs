//! Envelope encryption: a key-encryption key wraps a ring of data keys; a data key seals records.
//!
//! `<data>/keyring` is `version, algorithm, nonce, AES-256-GCM(JSON)`. Beside the data keys it holds, for every
//! record, the version last acknowledged (its *floor*), so that an old copy of a record put back into the store is
//! told from the current one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

/// A data key is replaced after this many seals: 96-bit random nonces stay far from colliding.
const USES_MAX: u64 = 1 << 30;
const VERSION: u8 = 1;
const AES_256_GCM: u8 = 1;
const NONCE: usize = 12;
/// The largest keyring read back: about 200,000 secrets.
const FILE_MAX: u64 = 32 << 20;

type KeyBytes = Zeroizing<[u8; 32]>;

struct DataKey {
    id: u32,
    created: Timestamp,
    count: u64,
    bytes: KeyBytes,
}

/// Neither shown nor cloned.
pub(super) struct Keyring {
    path: PathBuf,
    kek: KeyBytes,
    /// Oldest first; the last one seals.
    keys: Vec<DataKey>,
    floors: BTreeMap<String, u32>,
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

impl Keyring {
    /// Opens or makes; the flag says that it was made.
    pub(super) fn open(data_dir: &Path, credential: Option<&Path>) -> Result<(Self, bool), String> {
        let path = data_dir.join("keyring");
        let exists = path.symlink_metadata().is_ok();
        let kek = match credential {
            Some(file) => from_credential(file)?,
            None => from_key_file(&data_dir.join("keyring.key"), !exists)?,
        };
        if !exists {
            let mut ring = Self { path, kek, keys: Vec::new(), floors: BTreeMap::new() };
            ring.add_key()?;
            return Ok((ring, true));
        }
        let sealed = read_private(&path, FILE_MAX)?;
        let wrong = || format!("{} does not open with its key", path.display());
        let plain = unwrap(&kek, &sealed, &[b"sigil keyring".to_vec()]).ok_or_else(wrong)?;
        let stored: Stored = serde_json::from_slice(&plain).map_err(|_| wrong())?;
        let mut keys = Vec::new();
        for key in &stored.keys {
            let mut bytes = Zeroizing::new([0; 32]);
            hex::decode_to_slice(key.key.as_bytes(), &mut bytes[..]).map_err(|_| wrong())?;
            keys.push(DataKey { id: key.id, created: key.created, count: key.count, bytes });
        }
        if keys.is_empty() {
            return Err(wrong());
        }
        Ok((Self { path, kek, keys, floors: stored.floors }, false))
    }

    /// The version of a record below which nothing is believed; 0 for one never seen.
    pub(super) fn floor(&self, key: &str) -> u32 {
        self.floors.get(key).copied().unwrap_or(0)
    }

    /// Raises the floor and writes the ring, counts of uses included.
    pub(super) fn raise_floor(&mut self, key: &str, version: u32) -> Result<(), String> {
        let before = self.floors.insert(key.to_owned(), version.max(self.floor(key)));
        self.save().inspect_err(|_| {
            match before {
                Some(before) => self.floors.insert(key.to_owned(), before),
                None => self.floors.remove(key),
            };
        })
    }

    /// `version, algorithm, key id, nonce, ciphertext`.
    pub(super) fn seal(&mut self, parts: &[Vec<u8>], plain: &[u8]) -> Result<Vec<u8>, String> {
        if self.keys.last().is_none_or(|key| key.count >= USES_MAX) {
            // on disk before anything is sealed with it
            self.add_key()?;
        }
        let key = self.keys.last_mut().ok_or("it holds no data key")?;
        key.count += 1;
        let mut bound = parts.to_vec();
        bound.push(key.id.to_be_bytes().to_vec());
        let body = wrap(&key.bytes, plain, &bound)?;
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
        unwrap(&key.bytes, &[head, rest].concat(), &bound)
    }

    fn add_key(&mut self) -> Result<(), String> {
        let id = self.keys.last().map_or(1, |key| key.id + 1);
        self.keys.push(DataKey { id, created: Timestamp::now(), count: 0, bytes: random_key()? });
        self.save().inspect_err(|_| {
            self.keys.pop();
        })
    }

    fn save(&self) -> Result<(), String> {
        let text = |key: &DataKey| hex::encode(&key.bytes[..]);
        let keys = self.keys.iter();
        let stored = Stored {
            keys: keys.map(|k| StoredKey { id: k.id, created: k.created, count: k.count, key: text(k) }).collect(),
            floors: self.floors.clone(),
        };
        let plain = Zeroizing::new(serde_json::to_vec(&stored).map_err(|e| e.to_string())?);
        let sealed = wrap(&self.kek, &plain, &[b"sigil keyring".to_vec()])?;
        write_private(&self.path, &sealed)
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
}

/// Associated data: each part with its length before it, so that no two lists of parts read the same.
fn associated(version: u8, algorithm: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    let mut data = vec![version, algorithm];
    for part in parts {
        data.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        data.extend_from_slice(part);
    }
    data
}

fn wrap(key: &KeyBytes, plain: &[u8], parts: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(|e| format!("no randomness: {e}"))?;
    let aad = associated(VERSION, AES_256_GCM, parts);
    let cipher = Aes256Gcm::new(&Key::<Aes256Gcm>::from(**key));
    let body = cipher
        .encrypt(&Nonce::from(nonce), Payload { msg: plain, aad: &aad })
        .map_err(|_| "a value is too long to seal".to_owned())?;
    Ok([&[VERSION, AES_256_GCM], nonce.as_slice(), &body].concat())
}

fn unwrap(key: &KeyBytes, sealed: &[u8], parts: &[Vec<u8>]) -> Option<Zeroizing<Vec<u8>>> {
    let (&[version, algorithm], rest) = sealed.split_first_chunk::<2>()?;
    if version != VERSION || algorithm != AES_256_GCM {
        return None;
    }
    let (nonce, body) = rest.split_first_chunk::<NONCE>()?;
    let aad = associated(version, algorithm, parts);
    let cipher = Aes256Gcm::new(&Key::<Aes256Gcm>::from(**key));
    cipher.decrypt(&Nonce::from(*nonce), Payload { msg: body, aad: &aad }).ok().map(Zeroizing::new)
}

fn random_key() -> Result<KeyBytes, String> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut bytes[..]).map_err(|e| format!("no randomness: {e}"))?;
    Ok(bytes)
}

/// The credential may be of any form; its hash is the key.
fn from_credential(path: &Path) -> Result<KeyBytes, String> {
    let text = read_any(path)?;
    if text.len() < 32 {
        return Err(format!("the credential {} is shorter than 32 bytes", path.display()));
    }
    let mut hash = Sha256::new();
    hash.update(b"sigil key-encryption key 1");
    hash.update(&text[..]);
    Ok(Zeroizing::new(hash.finalize().into()))
}

/// The key beside the ring. Made only together with the ring: a ring without its key is a loss to be told.
fn from_key_file(path: &Path, may_make: bool) -> Result<KeyBytes, String> {
    if path.symlink_metadata().is_err() {
        if !may_make {
            return Err(format!("{} is missing; without it the kept secrets cannot be read", path.display()));
        }
        let key = random_key()?;
        write_private(path, &key[..])?;
        return Ok(key);
    }
    let bytes = Zeroizing::new(read_private(path, 64)?);
    let fixed: [u8; 32] =
        bytes.as_slice().try_into().map_err(|_| format!("{} does not hold a key of 32 bytes", path.display()))?;
    Ok(Zeroizing::new(fixed))
}

/// A credential: systemd owns it, and mounts it readable for this process alone.
fn read_any(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut bytes = Zeroizing::new(Vec::new());
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    file.take(64 << 10).read_to_end(&mut bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(bytes)
}

/// Reads a file that must be ours alone: a regular file, no link, our uid, mode 0600 or stricter.
fn read_private(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(path)
        .map_err(|e| format!("{shown}: {e}"))?;
    let meta = file.metadata().map_err(|e| format!("{shown}: {e}"))?;
    if !meta.is_file() {
        return Err(format!("{shown} is not a regular file"));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(format!("{shown} belongs to user {}, not to the agent's", meta.uid()));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(format!("{shown} can be reached by others (mode {:o}); chmod 600 it", meta.mode() & 0o777));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| format!("{shown}: {e}"))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(format!("{shown} is longer than it can be"));
    }
    Ok(bytes)
}

/// Replaces a file so that it is the old or the new one after any crash: temporary, fsync, rename, fsync of the folder.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let why = |e: std::io::Error| format!("{}: {e}", path.display());
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    // a leftover of a crash may be a link that someone placed
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(why(e)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(why)?;
    file.write_all(bytes).map_err(why)?;
    file.sync_all().map_err(why)?;
    std::fs::rename(&temporary, path).map_err(why)?;
    File::open(folder).and_then(|f| f.sync_all()).map_err(why)
}
