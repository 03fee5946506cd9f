//! The append journal: what makes an acknowledged change durable. sled's `flush` is `sync_file_range`, not fsync;
//! here one fdatasync covers a whole group of changes.
//!
//! A segment is a file `<first sequence>.journal`: a header of 12 bytes, then frames
//! `magic(4) length(4) sequence(8) crc32c(4) payload`. The magic holds 0xff, which never occurs in JSON or in UTF-8
//! keys, so that after damage the next whole frame can be found. Segments are kept until the oldest kept export covers
//! them: then a damaged sled costs nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::disk::{create_private, io_error, set_aside, sync_dir};
use super::record::{Op, decode_ops, encode_ops};
use super::{Result, StoreError};

const HEADER: usize = 12;
const FORMAT: u16 = 1;
const MAGIC: [u8; 4] = [0xff, b'J', 0xfe, b'R'];
const FRAME: usize = 20;
/// A segment is closed when it is longer than this, in bytes.
pub(super) const SEGMENT_BYTES: u64 = 8 << 20;
const FRAME_MAX: usize = 64 << 20;

fn header() -> [u8; HEADER] {
    let mut h = [0; HEADER];
    h[..6].copy_from_slice(b"sigilj");
    h[6..8].copy_from_slice(&FORMAT.to_le_bytes());
    let crc = crc32c::crc32c(&h[..8]);
    h[8..].copy_from_slice(&crc.to_le_bytes());
    h
}

fn frame_crc(len: u32, seq: u64, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &seq.to_le_bytes());
    crc32c::crc32c_append(crc, payload)
}

/// Appends the frame of one change to `out`.
pub(super) fn encode_frame(seq: u64, ops: &[Op], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME]);
    encode_ops(ops, out);
    let len = (out.len() - start - FRAME) as u32;
    let crc = frame_crc(len, seq, &out[start + FRAME..]);
    let head = &mut out[start..start + FRAME];
    head[..4].copy_from_slice(&MAGIC);
    head[4..8].copy_from_slice(&len.to_le_bytes());
    head[8..16].copy_from_slice(&seq.to_le_bytes());
    head[16..].copy_from_slice(&crc.to_le_bytes());
}

/// A whole frame at the beginning of `bytes`: its sequence, payload and length.
fn frame_at(bytes: &[u8]) -> Option<(u64, &[u8], usize)> {
    let head: &[u8; FRAME] = bytes.first_chunk()?;
    if head[..4] != MAGIC {
        return None;
    }
    let len = u32::from_le_bytes(head[4..8].try_into().ok()?);
    let seq = u64::from_le_bytes(head[8..16].try_into().ok()?);
    let crc = u32::from_le_bytes(head[16..].try_into().ok()?);
    let len_bytes = len as usize;
    if len_bytes > FRAME_MAX {
        return None;
    }
    let payload = bytes.get(FRAME..FRAME + len_bytes)?;
    (frame_crc(len, seq, payload) == crc).then_some((seq, payload, FRAME + len_bytes))
}

/// What a segment held.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// Changes in order.
    pub frames: Vec<(u64, Vec<Op>)>,
    /// Highest sequence of any whole frame, wanted or not.
    pub last: u64,
    /// End of the last whole frame.
    pub good_end: u64,
    /// Bytes after it: a write that a crash tore.
    pub torn: u64,
    /// Places where bytes between whole frames make no sense.
    pub damaged: u32,
}

/// Reads the frames after sequence `after`. Bad bytes are stepped over: what stands whole behind them counts.
pub(super) fn parse(bytes: &[u8], after: u64, name: &str) -> Result<Read> {
    let mut read = Read::default();
    let mut at = 0;
    match bytes.first_chunk::<HEADER>() {
        Some(h) if *h == header() => at = HEADER,
        Some(h) if &h[..6] == b"sigilj" && crc32c::crc32c(&h[..8]).to_le_bytes() == h[8..] => {
            let found = u16::from_le_bytes([h[6], h[7]]);
            return Err(StoreError::Newer { what: format!("journal {name}"), found: found.into() });
        }
        // a damaged header: the frames behind it are still looked for
        Some(_) => {}
        None => return Ok(Read { torn: bytes.len() as u64, ..Read::default() }),
    }
    read.good_end = at as u64;
    let mut bad = at == 0;
    while at < bytes.len() {
        match frame_at(&bytes[at..]) {
            Some((seq, payload, len)) => {
                if bad {
                    read.damaged += 1;
                    bad = false;
                }
                if seq > after {
                    read.frames.push((seq, decode_ops(payload)?));
                }
                read.last = read.last.max(seq);
                at += len;
                read.good_end = at as u64;
            }
            None => {
                bad = true;
                let next = bytes[at + 1..].iter().position(|b| *b == MAGIC[0]);
                at = next.map_or(bytes.len(), |n| at + 1 + n);
            }
        }
    }
    if read.good_end == 0 {
        // nothing but damage
        read.damaged += 1;
    }
    read.torn = bytes.len() as u64 - read.good_end;
    Ok(read)
}

/// Segments by first sequence.
pub(super) fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error(dir))? {
        let path = entry.map_err(io_error(dir))?.path();
        if path.extension().is_some_and(|e| e == "journal")
            && let Some(first) = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok())
        {
            found.push((first, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes segments that hold nothing after `covered`. The newest one stays.
pub(super) fn prune(dir: &Path, covered: u64) -> Result<()> {
    let segments = list(dir)?;
    for pair in segments.windows(2) {
        if pair[1].0 <= covered + 1 {
            fs::remove_file(&pair[0].1).map_err(io_error(&pair[0].1))?;
        }
    }
    Ok(())
}

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    file: File,
    /// Length up to which everything is whole and on disk.
    len: u64,
    broken: bool,
    /// Bytes appended since the count was last taken, for deciding on an export.
    pub grown: u64,
}

impl Journal {
    /// Begins a segment whose first change will be `first`.
    pub fn create(dir: &Path, first: u64) -> Result<Self> {
        let path = dir.join(format!("{first:020}.journal"));
        match fs::symlink_metadata(&path) {
            // begun by a former life that wrote nothing into it
            Ok(meta) if meta.len() <= HEADER as u64 => fs::remove_file(&path).map_err(io_error(&path))?,
            Ok(_) => {
                set_aside(&path)?;
            }
            Err(_) => {}
        }
        let mut file = create_private(&path).map_err(io_error(&path))?;
        file.write_all(&header()).and_then(|()| file.sync_all()).map_err(io_error(&path))?;
        sync_dir(dir).map_err(io_error(dir))?;
        Ok(Self { dir: dir.to_owned(), file, len: HEADER as u64, broken: false, grown: 0 })
    }

    /// Goes on in an undamaged segment, cutting what a crash tore.
    pub fn go_on(dir: &Path, path: &Path, good_end: u64) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(path)
            .map_err(io_error(path))?;
        if file.metadata().map_err(io_error(path))?.len() != good_end {
            file.set_len(good_end).and_then(|()| file.sync_all()).map_err(io_error(path))?;
        }
        file.seek(SeekFrom::End(0)).map_err(io_error(path))?;
        Ok(Self { dir: dir.to_owned(), file, len: good_end, broken: false, grown: good_end })
    }

    /// Writes whole frames and waits until they are on the disk. `first` is the sequence of the first of them. After an
    /// error nothing of them counts: they are cut off again, and when even that fails the journal takes no more.
    pub fn append(&mut self, first: u64, frames: &[u8]) -> Result<()> {
        if self.broken {
            return Err(StoreError::Io("the journal failed earlier and could not be repaired".into()));
        }
        if self.len >= SEGMENT_BYTES {
            let grown = self.grown;
            *self = Self::create(&self.dir, first)?;
            self.grown = grown;
        }
        let written = self.file.write_all(frames).and_then(|()| Ok(rustix::fs::fdatasync(&self.file)?));
        match written {
            Ok(()) => {
                self.len += frames.len() as u64;
                self.grown += frames.len() as u64;
                Ok(())
            }
            Err(e) => {
                let cut = self
                    .file
                    .set_len(self.len)
                    .and_then(|()| self.file.seek(SeekFrom::Start(self.len)))
                    .and_then(|_| self.file.sync_all());
                self.broken = cut.is_err();
                if e.kind() == io::ErrorKind::StorageFull {
                    return Err(StoreError::DiskFull);
                }
                Err(StoreError::Io(format!("journal: {e}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ops(n: u64) -> Vec<Op> {
        vec![Op {
            key: format!("d/{n}"),
            value: Some(format!("{{\"n\":{n},\"pad\":\"{}\"}}", "x".repeat((n % 37) as usize)).into_bytes()),
        }]
    }

    fn segment(count: u64) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = header().to_vec();
        let mut ends = Vec::new();
        for seq in 1..=count {
            encode_frame(seq, &ops(seq), &mut bytes);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), 1).unwrap();
        let mut buf = Vec::new();
        for seq in 1..=3 {
            buf.clear();
            encode_frame(seq, &ops(seq), &mut buf);
            journal.append(seq, &buf).unwrap();
        }
        let (first, path) = list(dir.path()).unwrap().remove(0);
        assert_eq!(first, 1);
        let read = parse(&fs::read(path).unwrap(), 1, "x").unwrap();
        assert_eq!(read.frames, vec![(2, ops(2)), (3, ops(3))]);
        assert_eq!((read.torn, read.damaged, read.last), (0, 0, 3));
    }

    #[test]
    fn a_newer_format_is_refused_and_kept() {
        let mut h = header();
        h[6] = 7;
        let crc = crc32c::crc32c(&h[..8]);
        h[8..].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(parse(&h, 0, "x"), Err(StoreError::Newer { found: 7, .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// A cut keeps exactly the changes before it.
        #[test]
        fn truncation_keeps_what_was_whole(count in 1u64..30, cut in 0.0f64..1.0) {
            let (bytes, ends) = segment(count);
            let n = (bytes.len() as f64 * cut) as usize;
            let read = parse(&bytes[..n], 0, "x").unwrap();
            let whole = ends.iter().filter(|e| **e <= n).count() as u64;
            prop_assert_eq!(read.frames, (1..=whole).map(|s| (s, ops(s))).collect::<Vec<_>>());
            prop_assert_eq!(read.good_end + read.torn, n as u64);
        }

        /// A flipped bit costs the change it hits, and no other; nothing is invented.
        #[test]
        fn a_flip_costs_one_change_at_most(count in 1u64..30, at in 0.0f64..1.0, bit in 0u8..8) {
            let (mut bytes, ends) = segment(count);
            let i = ((bytes.len() - 1) as f64 * at) as usize;
            bytes[i] ^= 1 << bit;
            let read = parse(&bytes, 0, "x").unwrap();
            let hit = if i < HEADER { 0 } else { ends.iter().position(|e| i < *e).unwrap() as u64 + 1 };
            let expected: Vec<_> = (1..=count).filter(|s| *s != hit).map(|s| (s, ops(s))).collect();
            prop_assert_eq!(read.frames, expected);
            // the last change hit looks like a torn write, any other like damage
            prop_assert_eq!(read.damaged > 0, hit < count);
        }
    }
}
