//! How lines lie in memory and on disk: frames of records.
//!
//! A frame is what one write took in; it stands by itself and carries its checksum. The same bytes are in the ring, in
//! the head file and (compressed, many together) in a segment's block, so that a line is encoded once and copied once.
//!
//! Frame, little-endian: `len` u32 (of what follows the checksum) · `crc32c` u32 (of what follows) · `first` u64 · `count` u32 ·
//! `base` i64 (time of the first line, microseconds) · `min` i64 · `max` i64 · records. Integers in records are LEB128.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use sigil_core::model::{InstanceId, ReleaseNo, Stream};

/// Bytes before the records.
pub(super) const HEADER: usize = 44;

const SOURCE: u8 = 1;
const LINE: u8 = 2;
const NOTE: u8 = 3;
const GAP: u8 = 4;
/// In a line's tag: the stream in two bits, then whether it was cut.
const STREAM_SHIFT: u8 = 3;
const CUT: u8 = 1 << 5;

/// Which process's stream of which instance: what an offset counts in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) instance: InstanceId,
    pub(super) stream: Stream,
    pub(super) process: String,
    /// Which start of the instance's container.
    pub(super) life: u64,
}

/// How far a stream was taken in; the newest one counts after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) key: Key,
    /// Offset behind the last byte taken in.
    pub(super) end: u64,
    /// When init read that byte, microseconds.
    pub(super) time: i64,
    /// Up to when the engine's log was read to fill a gap, microseconds.
    pub(super) filled: i64,
    /// Whether `partial` goes on where the former note's ended, or replaces it.
    pub(super) appends: bool,
    /// Bytes after the last newline.
    pub(super) partial: Vec<u8>,
}

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) instance: Option<InstanceId>,
    pub(super) release: ReleaseNo,
}

/// One record of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record<'a> {
    Line {
        seq: u64,
        time: i64,
        source: Source,
        stream: Stream,
        cut: bool,
        bytes: &'a [u8],
    },
    Note(Note),
    /// Lost right before line `before`.
    Gap {
        before: u64,
        lost: u64,
        reason: &'a str,
    },
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) min: i64,
    pub(super) max: i64,
}

impl Meta {
    pub(super) fn next(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

/// A finished frame.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) meta: Meta,
    pub(super) bytes: Bytes,
}

/// What takes secret values out of lines; `None`: there is none in it.
type Mask = dyn Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync;

/// Takes values out of lines before they are kept.
#[derive(Clone)]
pub(super) struct Masks(pub(super) std::sync::Arc<Mask>);

impl std::fmt::Debug for Masks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Masks")
    }
}

/// Encodes one frame.
#[derive(Debug)]
pub(super) struct Builder {
    masks: Option<Masks>,
    buf: BytesMut,
    sources: Vec<Source>,
    meta: Meta,
    base: i64,
    last: i64,
    records: bool,
}

impl Builder {
    pub(super) fn new(first: u64, capacity: usize) -> Self {
        let mut buf = BytesMut::with_capacity(HEADER + capacity);
        buf.put_bytes(0, HEADER);
        let meta = Meta { first, count: 0, min: i64::MAX, max: i64::MIN };
        Self { masks: None, buf, sources: Vec::new(), meta, base: 0, last: 0, records: false }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.buf.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.records
    }

    /// Lines so far.
    pub(super) fn count(&self) -> u32 {
        self.meta.count
    }

    /// The same that masks its lines.
    pub(super) fn masked(self, masks: Option<Masks>) -> Self {
        Self { masks, ..self }
    }

    pub(super) fn line(&mut self, source: Source, stream: Stream, time: i64, bytes: &[u8], cut: bool) {
        let masked = self.masks.as_ref().and_then(|masks| masks.0(bytes));
        let bytes = masked.as_deref().unwrap_or(bytes);
        if self.meta.count == 0 {
            (self.base, self.last) = (time, time);
        }
        // Nearly always the newest one: frames hold what came together.
        let index = self.sources.iter().rposition(|s| *s == source).unwrap_or_else(|| {
            self.buf.put_u8(SOURCE);
            self.buf.put_u128_le(source.instance.map_or(0, |i| i.0.0));
            self.buf.put_u32_le(source.release);
            self.sources.push(source);
            self.sources.len() - 1
        });
        self.buf.put_u8(LINE | (stream_code(stream) << STREAM_SHIFT) | if cut { CUT } else { 0 });
        put(&mut self.buf, index as u64);
        put(&mut self.buf, zigzag(time.wrapping_sub(self.last)));
        put(&mut self.buf, bytes.len() as u64);
        self.buf.extend_from_slice(bytes);
        self.last = time;
        self.meta.min = self.meta.min.min(time);
        self.meta.max = self.meta.max.max(time);
        self.meta.count += 1;
        self.records = true;
    }

    pub(super) fn note(&mut self, note: &Note) {
        self.buf.put_u8(NOTE);
        self.buf.put_u128_le(note.key.instance.0.0);
        self.buf.put_u8(stream_code(note.key.stream) | if note.appends { 0x80 } else { 0 });
        put(&mut self.buf, note.key.process.len() as u64);
        self.buf.extend_from_slice(note.key.process.as_bytes());
        put(&mut self.buf, note.key.life);
        put(&mut self.buf, note.end);
        put(&mut self.buf, zigzag(note.time));
        put(&mut self.buf, zigzag(note.filled));
        put(&mut self.buf, note.partial.len() as u64);
        self.buf.extend_from_slice(&note.partial);
        self.records = true;
    }

    pub(super) fn gap(&mut self, lost: u64, reason: &str) {
        self.buf.put_u8(GAP);
        put(&mut self.buf, lost);
        put(&mut self.buf, reason.len() as u64);
        self.buf.extend_from_slice(reason.as_bytes());
        self.records = true;
    }

    pub(super) fn finish(mut self) -> Frame {
        if self.meta.count == 0 {
            (self.meta.min, self.meta.max) = (0, 0);
        }
        let len = (self.buf.len() - 8) as u32;
        self.buf[0..4].copy_from_slice(&len.to_le_bytes());
        self.buf[8..16].copy_from_slice(&self.meta.first.to_le_bytes());
        self.buf[16..20].copy_from_slice(&self.meta.count.to_le_bytes());
        self.buf[20..28].copy_from_slice(&self.base.to_le_bytes());
        self.buf[28..36].copy_from_slice(&self.meta.min.to_le_bytes());
        self.buf[36..44].copy_from_slice(&self.meta.max.to_le_bytes());
        let crc = crc32c::crc32c(&self.buf[8..]);
        self.buf[4..8].copy_from_slice(&crc.to_le_bytes());
        // A ring keeps it and counts its length: the rest of a buffer made for many lines would be held uncounted.
        Frame { meta: self.meta, bytes: Bytes::copy_from_slice(&self.buf) }
    }
}

/// The whole frame at the beginning of `bytes` and its header; `None` when it is torn or damaged.
pub(super) fn check(bytes: &Bytes) -> Option<Frame> {
    let len = u32::from_le_bytes(bytes.get(0..4)?.try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    let body = bytes.get(8..8usize.checked_add(len)?)?;
    if len < HEADER - 8 || crc32c::crc32c(body) != crc {
        return None;
    }
    Some(Frame { meta: meta(bytes)?, bytes: bytes.slice(..8 + len) })
}

/// The header of the frame at the beginning of tested bytes, and the frame's length.
pub(super) fn peek(bytes: &[u8]) -> Option<(Meta, usize)> {
    let len = u32::from_le_bytes(bytes.get(0..4)?.try_into().ok()?) as usize;
    Some((meta(bytes)?, len.checked_add(8)?))
}

fn meta(bytes: &[u8]) -> Option<Meta> {
    Some(Meta {
        first: u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?),
        count: u32::from_le_bytes(bytes.get(16..20)?.try_into().ok()?),
        min: i64::from_le_bytes(bytes.get(28..36)?.try_into().ok()?),
        max: i64::from_le_bytes(bytes.get(36..44)?.try_into().ok()?),
    })
}

/// Reads the records of one frame after the other; keeps its place between calls.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    bytes: Bytes,
    more: VecDeque<Bytes>,
    at: usize,
    end: usize,
    seq: u64,
    time: i64,
    sources: Vec<Source>,
}

impl Reader {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { bytes, more: VecDeque::new(), at: 0, end: 0, seq: 0, time: 0, sources: Vec::new() }
    }

    /// Over several buffers of whole frames.
    pub(super) fn over(mut buffers: VecDeque<Bytes>) -> Self {
        let first = buffers.pop_front().unwrap_or_default();
        Self { more: buffers, ..Self::new(first) }
    }

    /// The next record, or `None` at the end (or where the bytes make no sense: checksums were tested before).
    pub(super) fn next(&mut self) -> Option<Record<'_>> {
        loop {
            while self.at == self.end {
                self.open()?;
            }
            // Progress is kept in `at` even when a record is malformed: the end of the frame is where we go on.
            match *self.bytes.get(self.at)? {
                SOURCE => {
                    let mut c = Cut { bytes: self.bytes.get(self.at + 1..self.end)? };
                    let instance = u128::from_le_bytes(c.take(16)?.try_into().ok()?);
                    let release = u32::from_le_bytes(c.take(4)?.try_into().ok()?);
                    self.at = self.end - c.bytes.len();
                    let instance = (instance != 0).then_some(InstanceId(ulid::Ulid(instance)));
                    self.sources.push(Source { instance, release });
                }
                _ => break,
            }
        }
        let tag = self.bytes[self.at];
        let mut c = Cut { bytes: self.bytes.get(self.at + 1..self.end)? };
        let record = match tag & 0x07 {
            LINE => {
                let source = *self.sources.get(usize::try_from(c.int()?).ok()?)?;
                self.time = self.time.wrapping_add(unzigzag(c.int()?));
                let len = usize::try_from(c.int()?).ok()?;
                let bytes = c.take(len)?;
                let seq = self.seq;
                self.seq += 1;
                let stream = stream_of((tag >> STREAM_SHIFT) & 3);
                Record::Line { seq, time: self.time, source, stream, cut: tag & CUT != 0, bytes }
            }
            NOTE => {
                let instance = InstanceId(ulid::Ulid(u128::from_le_bytes(c.take(16)?.try_into().ok()?)));
                let flags = *c.take(1)?.first()?;
                let len = usize::try_from(c.int()?).ok()?;
                let process = String::from_utf8_lossy(c.take(len)?).into_owned();
                let life = c.int()?;
                let end = c.int()?;
                let time = unzigzag(c.int()?);
                let filled = unzigzag(c.int()?);
                let len = usize::try_from(c.int()?).ok()?;
                let partial = c.take(len)?.to_vec();
                let key = Key { instance, stream: stream_of(flags & 3), process, life };
                Record::Note(Note { key, end, time, filled, appends: flags & 0x80 != 0, partial })
            }
            GAP => {
                let lost = c.int()?;
                let len = usize::try_from(c.int()?).ok()?;
                Record::Gap { before: self.seq, lost, reason: std::str::from_utf8(c.take(len)?).unwrap_or_default() }
            }
            _ => return None,
        };
        self.at = self.end - c.bytes.len();
        Some(record)
    }

    /// Begins the next frame.
    fn open(&mut self) -> Option<()> {
        if self.at == self.bytes.len() {
            self.bytes = self.more.pop_front()?;
            (self.at, self.end) = (0, 0);
        }
        let frame = self.bytes.get(self.at..)?;
        let len = u32::from_le_bytes(frame.get(0..4)?.try_into().ok()?) as usize;
        let header = meta(frame)?;
        self.time = i64::from_le_bytes(frame.get(20..28)?.try_into().ok()?);
        self.seq = header.first;
        self.end = self.at.checked_add(8)?.checked_add(len)?;
        if self.end > self.bytes.len() {
            return None;
        }
        self.at += HEADER;
        self.sources.clear();
        Some(())
    }
}

struct Cut<'a> {
    bytes: &'a [u8],
}

impl<'a> Cut<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(n)?;
        self.bytes = rest;
        Some(head)
    }

    fn int(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

fn put(buf: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        buf.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buf.put_u8(value as u8);
}

fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

fn unzigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

pub(super) fn stream_code(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
        Stream::Build => 2,
        Stream::Agent => 3,
    }
}

fn stream_of(code: u8) -> Stream {
    match code {
        0 => Stream::Stdout,
        1 => Stream::Stderr,
        2 => Stream::Build,
        _ => Stream::Agent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let a = Source { instance: Some(InstanceId(ulid::Ulid(7))), release: 3 };
        let b = Source { instance: None, release: 0 };
        let key =
            Key { instance: InstanceId(ulid::Ulid(7)), stream: Stream::Stderr, process: "main".into(), life: 300 };
        let note = Note { key, end: 1 << 40, time: -5, filled: 9, appends: true, partial: b"half".to_vec() };
        let mut builder = Builder::new(10, 64);
        assert!(builder.is_empty());
        builder.line(a, Stream::Stdout, 1_000, b"one", false);
        builder.gap(1_204, "slow");
        builder.line(b, Stream::Agent, 900, b"\xff\x00", true);
        builder.note(&note);
        let frame = builder.finish();
        assert_eq!(frame.meta, Meta { first: 10, count: 2, min: 900, max: 1_000 });
        assert_eq!(check(&frame.bytes).unwrap().meta, frame.meta);

        let twice = Bytes::from([&frame.bytes[..], &frame.bytes[..]].concat());
        let mut reader = Reader::new(twice);
        for _ in 0..2 {
            let line =
                Record::Line { seq: 10, time: 1_000, source: a, stream: Stream::Stdout, cut: false, bytes: b"one" };
            assert_eq!(reader.next().unwrap(), line);
            assert_eq!(reader.next().unwrap(), Record::Gap { before: 11, lost: 1_204, reason: "slow" });
            let line =
                Record::Line { seq: 11, time: 900, source: b, stream: Stream::Agent, cut: true, bytes: b"\xff\x00" };
            assert_eq!(reader.next().unwrap(), line);
            assert_eq!(reader.next().unwrap(), Record::Note(note.clone()));
        }
        assert_eq!(reader.next(), None);
    }

    #[test]
    fn a_frame_holds_no_more_memory_than_its_length_says() {
        let mut builder = Builder::new(1, 4096);
        builder.line(Source { instance: None, release: 1 }, Stream::Stdout, 1, b"one line of a quiet server", false);
        let bytes = builder.finish().bytes;
        let len = bytes.len();
        assert!(bytes.try_into_mut().unwrap().capacity() <= len + 64);
    }

    #[test]
    fn torn_or_damaged_frames_are_refused() {
        let mut builder = Builder::new(1, 64);
        builder.line(Source { instance: None, release: 1 }, Stream::Stdout, 1, b"text", false);
        let frame = builder.finish();
        for len in 0..frame.bytes.len() {
            assert!(check(&frame.bytes.slice(..len)).is_none(), "{len}");
        }
        for at in 0..frame.bytes.len() {
            let mut bytes = frame.bytes.to_vec();
            bytes[at] ^= 0x10;
            assert!(check(&Bytes::from(bytes)).is_none(), "{at}");
        }
    }
}
