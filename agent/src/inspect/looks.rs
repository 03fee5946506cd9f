//! What the scanner has said of files, kept on disk by digest: an append-only file of records, and the one before it.
//!
//! `magic`, then records: key (32 bytes), length and CRC-32C of key and value (4 each, little endian), value (zstd). When
//! the file has its share, it becomes the old one and the one before it goes; what is still asked for moves on. Nothing of
//! it is needed: what is damaged or gone is looked at again.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Changes with the format.
const MAGIC: &[u8; 8] = b"sigllk01";
const HEAD: usize = 40;
/// Of one value, unpacked.
const LONGEST: usize = 8 << 20;

pub(super) type Key = [u8; 32];

/// Where a value lies, without its head.
type Place = (u64, u32);

#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    index: HashMap<Key, Place>,
    end: u64,
}

#[derive(Debug)]
pub(super) struct Looks {
    dir: PathBuf,
    /// Bytes of one file.
    share: u64,
    segments: Mutex<Segments>,
}

#[derive(Debug)]
struct Segments {
    young: Segment,
    old: Option<Segment>,
}

impl Looks {
    /// Opens what is kept in a directory that is made if it is not there; `max` bytes are kept at most.
    pub(super) fn open(dir: &Path, max: u64) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let young = Segment::open(&dir.join("young"))?;
        let old = dir.join("old");
        let old = if old.exists() { Some(Segment::open(&old)?) } else { None };
        Ok(Self { dir: dir.to_owned(), share: max / 2, segments: Mutex::new(Segments { young, old }) })
    }

    fn segments(&self) -> std::sync::MutexGuard<'_, Segments> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let found = {
            let segments = self.segments();
            let of = |segment: &Segment| Some((segment.file.clone(), *segment.index.get(key)?));
            of(&segments.young).map(|found| (found, false)).or_else(|| Some((of(segments.old.as_ref()?)?, true)))
        };
        let ((file, (at, length)), old) = found?;
        let mut record = vec![0; HEAD + length as usize];
        let whole = file
            .read_exact_at(&mut record, at)
            .is_ok()
            .then_some(())
            .and_then(|()| value(key, &record))
            .and_then(|packed| zstd::bulk::decompress(packed, LONGEST).ok());
        let Some(whole) = whole else {
            let mut segments = self.segments();
            segments.young.index.remove(key);
            if let Some(old) = segments.old.as_mut() {
                old.index.remove(key);
            }
            return None;
        };
        if old {
            self.append(&mut self.segments(), key, &record);
        }
        Some(whole)
    }

    pub(super) fn put(&self, key: &Key, whole: &[u8]) {
        if whole.len() > LONGEST {
            return;
        }
        let Ok(packed) = zstd::bulk::compress(whole, 1) else { return };
        let Ok(length) = u32::try_from(packed.len()) else { return };
        let mut record = Vec::with_capacity(HEAD + packed.len());
        record.extend_from_slice(key);
        record.extend_from_slice(&length.to_le_bytes());
        record.extend_from_slice(&check(key, &packed).to_le_bytes());
        record.extend_from_slice(&packed);
        self.append(&mut self.segments(), key, &record);
    }

    fn append(&self, segments: &mut Segments, key: &Key, record: &[u8]) {
        let size = record.len() as u64;
        if segments.young.index.contains_key(key) || size + MAGIC.len() as u64 > self.share {
            return;
        }
        if segments.young.end + size > self.share {
            let (young, old) = (self.dir.join("young"), self.dir.join("old"));
            match fs::rename(&young, &old).and_then(|()| Segment::open(&young)) {
                Ok(new) => segments.old = Some(std::mem::replace(&mut segments.young, new)),
                Err(error) => return tracing::warn!(%error, "looks at files cannot be kept"),
            }
        }
        let young = &mut segments.young;
        if let Err(error) = young.file.write_all_at(record, young.end) {
            return tracing::warn!(%error, "a look at a file cannot be kept");
        }
        young.index.insert(*key, (young.end, (record.len() - HEAD) as u32));
        young.end += size;
    }
}

impl Segment {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        let mut index = HashMap::new();
        let mut end = 0;
        let mut from = BufReader::with_capacity(1 << 16, &file);
        let mut magic = [0; MAGIC.len()];
        if length >= MAGIC.len() as u64 && from.read_exact(&mut magic).is_ok() && magic == *MAGIC {
            end = MAGIC.len() as u64;
            let mut head = [0; HEAD];
            while from.read_exact(&mut head).is_ok() {
                let Some((key, size)) = head.split_at_checked(32) else { break };
                let (Ok(key), Ok(size)) = (Key::try_from(key), <[u8; 4]>::try_from(&size[..4])) else { break };
                let size = u32::from_le_bytes(size);
                let next = end + HEAD as u64 + u64::from(size);
                if next > length || from.seek_relative(i64::from(size)).is_err() {
                    break;
                }
                index.insert(key, (end, size));
                end = next;
            }
        }
        drop(from);
        if end == 0 {
            file.set_len(0)?;
            file.write_all_at(MAGIC, 0)?;
            end = MAGIC.len() as u64;
        } else if end < length {
            // half a record: the agent ended while it wrote
            file.set_len(end)?;
        }
        Ok(Self { file: Arc::new(file), index, end })
    }
}

fn check(key: &Key, packed: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), packed)
}

/// The value of a record that is what was written.
fn value<'r>(key: &Key, record: &'r [u8]) -> Option<&'r [u8]> {
    let (head, packed) = record.split_at_checked(HEAD)?;
    let sum = u32::from_le_bytes(head.get(36..40)?.try_into().ok()?);
    (head.get(..32)? == key && sum == check(key, packed)).then_some(packed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        [n; 32]
    }

    /// What does not get smaller.
    fn noise(n: u8, length: usize) -> Vec<u8> {
        let mut state = u64::from(n) + 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn what_is_kept_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let looks = Looks::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(looks.get(&key(1)), None);
        looks.put(&key(1), b"one");
        looks.put(&key(2), b"");
        drop(looks);
        let looks = Looks::open(dir.path(), 1 << 20).unwrap();
        assert_eq!((looks.get(&key(1)), looks.get(&key(2))), (Some(b"one".to_vec()), Some(Vec::new())));
    }

    #[test]
    fn it_stays_below_its_bound_and_keeps_what_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let looks = Looks::open(dir.path(), 20_000).unwrap();
        for n in 0..100 {
            looks.put(&key(n), &noise(n, 1000));
            assert_eq!(looks.get(&key(0)), Some(noise(0, 1000)), "asked for all the time, after {n}");
            let bytes: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
            assert!(bytes <= 20_000, "{bytes}");
        }
        assert_eq!(looks.get(&key(1)), None);
        looks.put(&key(200), &noise(1, 50_000));
        assert_eq!(looks.get(&key(200)), None, "too long for its share");
    }

    #[test]
    fn damage_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("young");
        let looks = Looks::open(dir.path(), 1 << 20).unwrap();
        (0..3).for_each(|n| looks.put(&key(n), &noise(n, 500)));
        drop(looks);
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            let looks = Looks::open(dir.path(), 1 << 20).unwrap();
            for n in 0..3 {
                assert!(looks.get(&key(n)).is_none_or(|value| value == noise(n, 500)), "byte {at}");
            }
        }
        for length in (0..good.len()).step_by(11) {
            fs::write(&path, &good[..length]).unwrap();
            let looks = Looks::open(dir.path(), 1 << 20).unwrap();
            looks.put(&key(9), b"new");
            assert_eq!(looks.get(&key(9)), Some(b"new".to_vec()), "cut at {length}");
            drop(looks);
            assert_eq!(Looks::open(dir.path(), 1 << 20).unwrap().get(&key(9)), Some(b"new".to_vec()));
        }
    }
}
