//! A deployment's files: `<data>/logs/<deployment id>/`.
//!
//! - `<seq>.head`: the newest frames as they came, plus one frame with how far each stream was taken in. Its writes are
//!   what an acknowledgement stands for: they outlive the agent's death (a lost power may take the last seconds).
//! - `<seq>.seg`: blocks of frames, compressed one by one, with their range of sequence and time in a header, so that a
//!   reader seeks by either. When the sizes together pass the limit, the oldest file goes.
//!
//! Nothing is ever rewritten in place. A kill between any two system calls leaves either the head that was, or the
//! segment and a head whose frames are recognised as sealed by their sequence numbers.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::frame::{self, Frame, Key, Note, Reader, Record};

const MAGIC: u32 = 0x3142_4753;
const BLOCK_HEADER: usize = 48;
/// A block that claims more than this is damaged.
const BLOCK_MAX: u32 = 256 << 20;

/// One compressed block of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// Where its header begins in the file.
    pub(super) offset: u64,
    raw: u32,
    compressed: u32,
    crc: u32,
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) min: i64,
    pub(super) max: i64,
}

impl Block {
    pub(super) fn next(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    fn header(&self) -> [u8; BLOCK_HEADER] {
        let mut h = [0; BLOCK_HEADER];
        h[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        h[4..8].copy_from_slice(&self.raw.to_le_bytes());
        h[8..12].copy_from_slice(&self.compressed.to_le_bytes());
        h[12..16].copy_from_slice(&self.crc.to_le_bytes());
        h[16..24].copy_from_slice(&self.first.to_le_bytes());
        h[24..28].copy_from_slice(&self.count.to_le_bytes());
        h[28..36].copy_from_slice(&self.min.to_le_bytes());
        h[36..44].copy_from_slice(&self.max.to_le_bytes());
        let crc = crc32c::crc32c(&h[..44]);
        h[44..48].copy_from_slice(&crc.to_le_bytes());
        h
    }

    fn parse(offset: u64, h: &[u8; BLOCK_HEADER]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(h.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(h.get(at..at + 8)?.try_into().ok()?));
        if u32_at(0)? != MAGIC || u32_at(44)? != crc32c::crc32c(&h[..44]) {
            return None;
        }
        let block = Self {
            offset,
            raw: u32_at(4)?,
            compressed: u32_at(8)?,
            crc: u32_at(12)?,
            first: u64_at(16)?,
            count: u32_at(24)?,
            min: u64_at(28)? as i64,
            max: u64_at(36)? as i64,
        };
        (block.raw <= BLOCK_MAX && block.compressed <= BLOCK_MAX).then_some(block)
    }

    /// Its frames. Blocks the thread.
    pub(super) fn read(&self, path: &Path) -> io::Result<Bytes> {
        let mut packed = vec![0; self.compressed as usize];
        File::open(path)?.read_exact_at(&mut packed, self.offset + BLOCK_HEADER as u64)?;
        if crc32c::crc32c(&packed) != self.crc {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "checksum does not fit"));
        }
        zstd::bulk::decompress(&packed, self.raw as usize).map(Bytes::from)
    }
}

/// One file of blocks.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) blocks: Vec<Block>,
}

impl Segment {
    pub(super) fn next(&self) -> u64 {
        self.blocks.last().map_or(0, Block::next)
    }
}

/// What a directory holds.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) segments: VecDeque<Segment>,
    /// Not yet in a segment, oldest first, without holes.
    pub(super) frames: Vec<Frame>,
    /// The sequence number of the next line.
    pub(super) next: u64,
    /// How far each stream was taken in.
    pub(super) notes: HashMap<Key, Note>,
    /// Losses that no line was written after.
    pub(super) gaps: Vec<(u64, String)>,
    heads: Vec<PathBuf>,
}

/// Reads a deployment's directory; nothing is changed. A directory that does not exist is empty. Blocks the thread.
pub(super) fn recover(dir: &Path) -> io::Result<Recovered> {
    let mut out = Recovered { next: 1, ..Recovered::default() };
    let mut heads = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(out),
        Err(e) => return Err(e),
    };
    let mut segments = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let first = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<u64>().ok());
        match (first, path.extension().and_then(|e| e.to_str())) {
            (Some(first), Some("seg")) => segments.push((first, path)),
            (Some(first), Some("head")) => heads.push((first, path)),
            _ => out.heads.push(path),
        }
    }
    segments.sort();
    heads.sort();
    for (_, path) in segments {
        let segment = scan(&path)?;
        if segment.blocks.is_empty() {
            out.heads.push(path);
            continue;
        }
        out.next = out.next.max(segment.next());
        out.segments.push_back(segment);
    }
    for (first, path) in heads {
        let bytes = Bytes::from(fs::read(&path)?);
        out.next = out.next.max(first);
        // A head begins with everything that the one before it knew.
        out.gaps.clear();
        let mut at = 0;
        while let Some(frame) = frame::check(&bytes.slice(at..)) {
            at += frame.bytes.len();
            remember(&mut out, &frame);
            if frame.meta.count > 0 && frame.meta.first >= out.next {
                out.next = frame.meta.next();
                // Copied, so that a kept frame does not hold the whole file in memory.
                out.frames.push(Frame { meta: frame.meta, bytes: Bytes::copy_from_slice(&frame.bytes) });
            }
        }
        out.heads.push(path);
    }
    Ok(out)
}

/// Takes in what a frame says beside lines.
fn remember(out: &mut Recovered, frame: &Frame) {
    if frame.meta.count > 0 {
        out.gaps.clear();
    }
    let mut reader = Reader::new(frame.bytes.clone());
    while let Some(record) = reader.next() {
        match record {
            Record::Gap { lost, reason, .. } if frame.meta.count == 0 => out.gaps.push((lost, reason.to_owned())),
            Record::Note(mut note) => {
                if let (true, Some(old)) = (note.appends, out.notes.get_mut(&note.key)) {
                    let mut partial = std::mem::take(&mut old.partial);
                    partial.append(&mut note.partial);
                    note.partial = partial;
                }
                out.notes.insert(note.key.clone(), note);
            }
            Record::Gap { .. } | Record::Line { .. } => {}
        }
    }
}

/// The index of a segment; ends at the first block that is torn or damaged.
fn scan(path: &Path) -> io::Result<Segment> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut segment = Segment { path: path.to_owned(), bytes, blocks: Vec::new() };
    let mut at = 0;
    let mut header = [0; BLOCK_HEADER];
    while at + BLOCK_HEADER as u64 <= bytes {
        file.read_exact_at(&mut header, at)?;
        let Some(block) = Block::parse(at, &header) else { break };
        at += BLOCK_HEADER as u64 + u64::from(block.compressed);
        if at > bytes {
            break;
        }
        segment.blocks.push(block);
    }
    Ok(segment)
}

/// The writing side; one per deployment.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    head: Option<File>,
    head_path: Option<PathBuf>,
    head_len: u64,
    /// Bytes of former heads of this life.
    stale_len: u64,
    /// Former heads (and leftovers), removed once the next head is there.
    stale: Vec<PathBuf>,
    frames: Vec<Frame>,
    frames_bytes: usize,
    current: Option<Current>,
}

/// The segment that grows.
#[derive(Debug)]
struct Current {
    file: File,
    path: PathBuf,
    len: u64,
}

/// What sealing changed in the index.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) path: PathBuf,
    pub(super) block: Block,
    pub(super) bytes: u64,
}

impl Disk {
    pub(super) fn new(dir: PathBuf, recovered: &mut Recovered) -> Self {
        let frames = recovered.frames.clone();
        Self {
            dir,
            head: None,
            head_path: None,
            head_len: 0,
            stale_len: 0,
            stale: std::mem::take(&mut recovered.heads),
            frames_bytes: frames.iter().map(|f| f.bytes.len()).sum(),
            frames,
            current: None,
        }
    }

    /// What is not in a segment yet, as the ring counts it.
    pub(super) fn unsealed(&self) -> usize {
        self.frames_bytes + self.frames.len() * super::writer::OVERHEAD
    }

    /// Bytes of head files.
    pub(super) fn head_len(&self) -> u64 {
        self.head_len + self.stale_len
    }

    /// Puts a frame into the head file. After an error nothing of it counts.
    pub(super) fn append(&mut self, frame: &Frame, notes: impl FnOnce() -> Frame) -> io::Result<()> {
        if self.head.is_none() {
            self.begin(frame.meta.first, &notes())?;
        }
        let Some(head) = &mut self.head else { return Err(io::Error::other("no head")) };
        if let Err(e) = head.write_all(&frame.bytes) {
            // Half of it may be there: the next write makes a new file.
            self.abandon();
            return Err(e);
        }
        self.head_len += frame.bytes.len() as u64;
        self.frames_bytes += frame.bytes.len();
        self.frames.push(frame.clone());
        Ok(())
    }

    fn abandon(&mut self) {
        self.head = None;
        self.stale_len += std::mem::take(&mut self.head_len);
        self.stale.extend(self.head_path.take());
    }

    /// A new head: how far each stream is, and what is not sealed yet.
    fn begin(&mut self, next: u64, notes: &Frame) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let first = self.frames.first().map_or(next, |f| f.meta.first);
        let path = self.dir.join(format!("{first:020}.head"));
        let temporary = self.dir.join("head.tmp");
        let write = || -> io::Result<(File, u64)> {
            let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&temporary)?;
            let mut len = 0;
            for frame in self.frames.iter().chain([notes]) {
                file.write_all(&frame.bytes)?;
                len += frame.bytes.len() as u64;
            }
            fs::rename(&temporary, &path)?;
            Ok((file, len))
        };
        let (file, len) = write().inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        for old in self.stale.drain(..).filter(|old| *old != path && *old != temporary) {
            if let Err(e) = fs::remove_file(&old)
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(file = %old.display(), error = %e, "a former log file stays");
            }
        }
        (self.head, self.head_path, self.head_len, self.stale_len) = (Some(file), Some(path), len, 0);
        Ok(())
    }

    /// Compresses what is in the head into the newest segment. `None` when the head held no line.
    pub(super) fn seal(&mut self, segment_max: u64) -> io::Result<Option<Sealed>> {
        let lines: u32 = self.frames.iter().map(|f| f.meta.count).sum();
        if lines == 0 {
            self.forget_frames();
            return Ok(None);
        }
        let mut raw = Vec::with_capacity(self.frames_bytes);
        let (mut min, mut max, mut first) = (i64::MAX, i64::MIN, None);
        // A frame without lines matters only to the next writer; readers see its gaps with the next line.
        for frame in self.frames.iter().filter(|f| f.meta.count > 0) {
            raw.extend_from_slice(&frame.bytes);
            first = first.or(Some(frame.meta.first));
            min = min.min(frame.meta.min);
            max = max.max(frame.meta.max);
        }
        let first = first.unwrap_or_default();
        let packed = zstd::bulk::compress(&raw, 1)?;
        if self.current.as_ref().is_some_and(|c| c.len >= segment_max) {
            self.current = None;
        }
        let mut current = match self.current.take() {
            Some(current) => current,
            None => {
                let path = self.dir.join(format!("{first:020}.seg"));
                let file = OpenOptions::new().create(true).write(true).truncate(true).open(&path)?;
                Current { file, path, len: 0 }
            }
        };
        let block = Block {
            offset: current.len,
            raw: raw.len() as u32,
            compressed: packed.len() as u32,
            crc: crc32c::crc32c(&packed),
            first,
            count: lines,
            min,
            max,
        };
        let mut bytes = block.header().to_vec();
        bytes.extend_from_slice(&packed);
        if let Err(e) = current.file.write_all_at(&bytes, current.len) {
            // A torn block at the end of a file ends its index there; the next block begins a new file.
            if current.len == 0 {
                let _ = fs::remove_file(&current.path);
            }
            return Err(e);
        }
        current.len += bytes.len() as u64;
        let path = current.path.clone();
        self.current = Some(current);
        self.forget_frames();
        Ok(Some(Sealed { path, block, bytes: bytes.len() as u64 }))
    }

    /// Drops what could not be sealed; answers how many lines that were.
    pub(super) fn give_up(&mut self) -> u64 {
        let lines = self.frames.iter().map(|f| u64::from(f.meta.count)).sum();
        self.forget_frames();
        lines
    }

    fn forget_frames(&mut self) {
        self.frames.clear();
        self.frames_bytes = 0;
        self.abandon();
    }

    /// Told that the newest segment was deleted.
    pub(super) fn current_gone(&mut self) {
        self.current = None;
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Builder, Source};
    use super::*;
    use sigil_core::model::Stream;

    fn frame(first: u64, lines: &[&str]) -> Frame {
        let mut b = Builder::new(first, 64);
        for (i, line) in lines.iter().enumerate() {
            b.line(
                Source { instance: None, release: 1 },
                Stream::Stdout,
                first as i64 + i as i64,
                line.as_bytes(),
                false,
            );
        }
        b.finish()
    }

    fn empty() -> Frame {
        Builder::new(0, 0).finish()
    }

    #[test]
    fn a_kill_between_sealing_and_the_next_head_repeats_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = Disk::new(dir.path().join("d"), &mut recover(dir.path().join("d").as_path()).unwrap());
        disk.append(&frame(1, &["a", "b"]), empty).unwrap();
        disk.append(&frame(3, &["c"]), empty).unwrap();
        let sealed = disk.seal(1 << 20).unwrap().unwrap();
        assert_eq!((sealed.block.first, sealed.block.count, sealed.block.min, sealed.block.max), (1, 3, 1, 3));
        // The old head is still there.
        let found = recover(&dir.path().join("d")).unwrap();
        assert_eq!((found.next, found.frames.len(), found.segments.len()), (4, 0, 1));
        let block = found.segments[0].blocks[0];
        let mut reader = Reader::new(block.read(&found.segments[0].path).unwrap());
        let mut seqs = Vec::new();
        while let Some(record) = reader.next() {
            if let Record::Line { seq, .. } = record {
                seqs.push(seq);
            }
        }
        assert_eq!(seqs, [1, 2, 3]);
        disk.append(&frame(4, &["d"]), empty).unwrap();
        let found = recover(&dir.path().join("d")).unwrap();
        assert_eq!((found.next, found.frames.len(), found.heads.len()), (5, 1, 1));
    }
}
