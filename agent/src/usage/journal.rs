//! The file in which usage is kept: `<data>/usage/journal`.
//!
//! It is a sequence of frames (length, checksum, JSON); a frame sets what changed to what it is now, totals and the counters
//! that they were made from together. So a frame is there wholly or not at all, one that is read twice changes nothing, and
//! what a torn last frame lost is counted again from the counters, which count on. When the file has grown it is written
//! anew as one frame, beside the old one, and takes its place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::book::{Book, Frame};

/// The file is written anew when it is longer than this and than twice what it then was.
const COMPACT: u64 = 1 << 20;
/// It is brought to the disk itself this often: a lost power may take so much, a killed agent takes nothing.
const SYNC: Duration = Duration::from_secs(60);
/// Bytes before a frame's JSON.
const HEADER: usize = 8;
/// Longest frame, bytes: what claims to be longer is damaged.
const FRAME_MAX: usize = 1 << 30;

pub(super) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    compacted: u64,
    synced: Instant,
}

impl Journal {
    /// Opens it, and reads what it holds. What is damaged at its end goes; a file that cannot be read at all is set aside.
    pub(super) fn open(data_dir: &Path) -> io::Result<(Self, Book)> {
        let directory = data_dir.join("usage");
        fs::create_dir_all(&directory)?;
        let path = directory.join("journal");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut book = Book::default();
        let (mut at, mut frames) = (0, 0);
        while let Some((frame, next)) = frame_at(&bytes, at) {
            book.apply(frame);
            (at, frames) = (next, frames + 1);
        }
        if at < bytes.len() {
            tracing::warn!(lost = bytes.len() - at, frames, "usage: the journal's end is damaged and goes");
            if frames == 0 {
                let aside = path.with_extension(format!("damaged-{}", jiff::Timestamp::now().as_second()));
                fs::rename(&path, &aside)?;
                tracing::error!(aside = %aside.display(), "usage: the journal cannot be read; counting begins anew");
            }
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        file.set_len(at as u64)?;
        let journal = Self { path, file, bytes: at as u64, compacted: at as u64, synced: Instant::now() };
        Ok((journal, book))
    }

    /// Adds a frame.
    pub(super) fn append(&mut self, frame: &Frame) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        let bytes = encode(frame)?;
        // at a place of our own choice: what an append that failed half way left is written over
        self.file.write_all_at(&bytes, self.bytes)?;
        self.bytes += bytes.len() as u64;
        if self.synced.elapsed() >= SYNC {
            self.sync()?;
        }
        Ok(())
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.synced = Instant::now();
        self.file.sync_data()
    }

    /// Whether it is time for [`Journal::compact`].
    pub(super) fn has_grown(&self) -> bool {
        self.bytes > COMPACT.max(2 * self.compacted)
    }

    /// Writes everything as one frame, in the place of what was there.
    pub(super) fn compact(&mut self, book: &Book) -> io::Result<()> {
        let bytes = encode(&book.whole())?;
        let next = self.path.with_extension("new");
        let mut file = File::create(&next)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&next, &self.path)?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        (self.file, self.bytes, self.compacted) = (file, bytes.len() as u64, bytes.len() as u64);
        Ok(())
    }
}

fn encode(frame: &Frame) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(frame)?;
    let mut bytes = Vec::with_capacity(HEADER + json.len());
    bytes.extend_from_slice(&u32::try_from(json.len()).map_err(io::Error::other)?.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&json).to_le_bytes());
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// The frame that begins there, and where the next one does.
fn frame_at(bytes: &[u8], at: usize) -> Option<(Frame, usize)> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let length = usize::try_from(word(at)?).ok().filter(|length| *length <= FRAME_MAX)?;
    let (begin, sum) = (at + HEADER, word(at + 4)?);
    let json = bytes.get(begin..begin.checked_add(length)?)?;
    if crc32c::crc32c(json) != sum {
        return None;
    }
    Some((serde_json::from_slice(json).ok()?, begin + length))
}
