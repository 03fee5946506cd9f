//! The files of the log: segments `<number of the first record>.jsonl`, a lock, and a file of attempts for each process.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use sigil_core::audit::{GENESIS, Record, TRIM};

use super::{AuditError, Result, by_agent};

/// Bytes set aside behind the last record before an attempt is let through.
const RESERVE: u64 = 1 << 20;
/// The longest segment, bytes.
const SEGMENT_MAX: u64 = 8 << 20;

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> AuditError + '_ {
    move |e| match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => AuditError::Full,
        _ => AuditError::Io(format!("{}: {e}", path.display())),
    }
}

/// Who the files belong to, where root writes for an agent that runs as another user.
pub(super) type Owner = Option<(u32, u32)>;

/// A new file for the agent's eyes only; an old one is opened, a link never.
pub(super) fn private(path: &Path, owner: Owner, options: &mut OpenOptions) -> Result<File> {
    let options = options.mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    let file = options.open(path).map_err(failed(path))?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid)).map_err(failed(path))?;
    }
    Ok(file)
}

/// Makes or checks the directory. Answers for whom files are made.
pub(super) fn directory(data_dir: &Path, dir: &Path) -> Result<Owner> {
    let owner = fs::metadata(data_dir).map_err(failed(data_dir))?;
    let root = rustix::process::geteuid().is_root();
    let foreign = (root && owner.uid() != 0).then(|| (owner.uid(), owner.gid()));
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {
            if let Some((uid, gid)) = foreign {
                std::os::unix::fs::lchown(dir, Some(uid), Some(gid)).map_err(failed(dir))?;
            }
            sync_dir(data_dir)?;
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(failed(dir)(e)),
    }
    let meta = fs::symlink_metadata(dir).map_err(failed(dir))?;
    let me = rustix::process::geteuid().as_raw();
    let fine = meta.is_dir() && (meta.uid() == me || foreign.is_some_and(|(uid, _)| uid == meta.uid()));
    if !fine {
        return Err(AuditError::Io(format!("{} is no directory of the agent's user", dir.display())));
    }
    if meta.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed(dir))?;
    }
    Ok(foreign)
}

pub(super) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).map_err(failed(path))
}

/// Takes the log for this process, until the file is dropped or [`unlock`]ed.
pub(super) fn lock(file: &File) -> Result<()> {
    flock(file, FlockOperation::LockExclusive).map_err(|e| AuditError::Io(format!("its lock: {e}")))
}

pub(super) fn unlock(file: &File) {
    if let Err(error) = flock(file, FlockOperation::Unlock) {
        tracing::error!(%error, "the audit log stays locked");
    }
}

pub(super) fn segment(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.jsonl"))
}

/// Segments by the number of their first record, with their size.
pub(super) fn segments(dir: &Path) -> Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        let entry = entry.map_err(failed(dir))?;
        let name = entry.file_name();
        let first = name.to_str().and_then(|n| n.strip_suffix(".jsonl")).filter(|n| n.len() == 20);
        if let Some(first) = first.and_then(|n| n.parse().ok())
            && let Ok(meta) = entry.metadata()
        {
            found.push((first, meta.len()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The end of the log: where the next record goes.
#[derive(Debug)]
pub(super) struct End {
    dir: PathBuf,
    owner: Owner,
    file: File,
    /// Number of the newest segment's first record.
    first: u64,
    /// Its length, all whole lines.
    len: u64,
    /// Up to where its blocks are set aside.
    reserved: u64,
    /// The newest record.
    pub seq: u64,
    pub head: String,
}

/// What was found at the end of the log and is no record.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Bytes of an unfinished line that were cut off.
    pub torn: u64,
    /// Whole lines of the newest segment that are damaged.
    pub damaged: u64,
}

impl End {
    /// Reads the newest segment (the log's lock is held). An unfinished last line is cut off: nobody was told of it.
    pub fn find(dir: &Path, owner: Owner) -> Result<(Self, Found)> {
        let mut found = Found::default();
        let all = segments(dir)?;
        let Some(&(first, _)) = all.last() else {
            return Ok((Self::start(dir, owner, 1, 0, GENESIS.to_owned())?, found));
        };
        let path = segment(dir, first);
        let mut file = private(&path, owner, OpenOptions::new().read(true).write(true))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed(&path))?;
        // after a power cut a file may have its length and not its content
        let written = text.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        let whole = text[..written].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            found.torn = (text.len() - whole) as u64;
            file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(failed(&path))?;
        }
        let (mut seq, mut head) = (first - 1, None);
        for line in text[..whole].split_inclusive(|b| *b == b'\n') {
            match Record::parse(&line[..line.len() - 1]) {
                Ok(record) => (seq, head) = (seq.max(record.seq), Some(record.hash)),
                Err((_, record)) => {
                    found.damaged += 1;
                    // its number counts as given out all the same
                    seq = record.map_or(seq + 1, |r| r.seq.clamp(seq, seq + 1).max(seq));
                }
            }
        }
        let head = match head {
            Some(head) => head,
            // a segment that was begun and holds nothing yet goes on from the one before
            None => match all.len().checked_sub(2).map(|at| last_of(dir, all[at].0)) {
                Some(last) => last?.map_or_else(|| GENESIS.to_owned(), |(_, hash)| hash),
                None => GENESIS.to_owned(),
            },
        };
        file.seek(SeekFrom::End(0)).map_err(failed(&path))?;
        let len = whole as u64;
        Ok((Self { dir: dir.to_owned(), owner, file, first, len, reserved: len, seq, head }, found))
    }

    fn start(dir: &Path, owner: Owner, first: u64, seq: u64, head: String) -> Result<Self> {
        let path = segment(dir, first);
        let file = private(&path, owner, OpenOptions::new().read(true).write(true).create(true).truncate(false))?;
        sync_dir(dir)?;
        Ok(Self { dir: dir.to_owned(), owner, file, first, len: 0, reserved: 0, seq, head })
    }

    /// Whether another process has written since.
    pub fn is_stale(&self) -> bool {
        let newest = segments(&self.dir).ok().and_then(|all| all.last().copied());
        newest != Some((self.first, self.len))
    }

    /// Sets blocks aside, so that what is let through now can be recorded when the disk is full by then.
    pub fn reserve(&mut self) -> Result<()> {
        if self.reserved >= self.len + RESERVE {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.len, 2 * RESERVE) {
            Ok(()) => {
                self.reserved = self.len + 2 * RESERVE;
                Ok(())
            }
            Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => Err(AuditError::Full),
            // a file system that sets nothing aside: what is free now has to do
            Err(_) => match rustix::fs::statvfs(&self.dir) {
                Ok(s) if s.f_bavail.saturating_mul(s.f_frsize) < 2 * RESERVE => Err(AuditError::Full),
                _ => Ok(()),
            },
        }
    }

    /// Seals and appends records and what keeping the log below `max` needs; on the disk when this returns. Nothing is
    /// left of a failure.
    pub fn append(&mut self, records: Vec<Record>, max: u64) -> Result<()> {
        let cap = (max / 8).clamp(64 << 10, SEGMENT_MAX);
        if self.len >= cap {
            // blocks behind the end are given back
            let _ = self.file.set_len(self.len);
            *self = Self::start(&self.dir, self.owner, self.seq + 1, self.seq, self.head.clone())?;
        }
        let (mut seq, mut head) = (self.seq, self.head.clone());
        let mut text = String::new();
        let mut add = |record: Record| {
            seq += 1;
            let sealed = record.bounded().sealed(seq, &head);
            text.push_str(&sealed.line());
            text.push('\n');
            head = sealed.hash;
        };
        records.into_iter().for_each(&mut add);
        let surplus = self.surplus(max)?;
        for (first, last) in &surplus {
            let size = fs::metadata(segment(&self.dir, *first)).map_or(0, |m| m.len());
            let record = by_agent(TRIM).target(format!("{first:020}.jsonl"), "");
            let record = record.before("first", first).before("last", last.0).before("head", &last.1);
            add(record.before("bytes", size));
        }
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            let back = self.file.set_len(self.len).and_then(|()| self.file.seek(SeekFrom::Start(self.len)));
            if let Err(error) = back {
                tracing::error!(%error, "an unfinished audit record could not be taken back; it is cut off later");
            }
            return Err(failed(&segment(&self.dir, self.first))(error));
        }
        self.len += text.len() as u64;
        (self.seq, self.head) = (seq, head);
        for (first, _) in surplus {
            let path = segment(&self.dir, first);
            // it is on record already: what stays now goes with the next one
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "an old audit segment could not be removed");
            }
        }
        Ok(())
    }

    /// The oldest segments that must go, with number and hash of their last record.
    fn surplus(&self, max: u64) -> Result<Vec<(u64, (u64, String))>> {
        let all = segments(&self.dir)?;
        let mut total: u64 = all.iter().map(|(_, len)| len).sum();
        let mut out = Vec::new();
        for (first, len) in all {
            if total <= max || first == self.first {
                break;
            }
            // one that cannot be read goes, too: its successor does not follow from this, and verifying says so
            out.push((first, last_of(&self.dir, first).ok().flatten().unwrap_or((first, GENESIS.to_owned()))));
            total -= len;
        }
        Ok(out)
    }
}

/// Number and hash of the last whole record of a segment.
fn last_of(dir: &Path, first: u64) -> Result<Option<(u64, String)>> {
    let path = segment(dir, first);
    let text = fs::read(&path).map_err(failed(&path))?;
    let mut back = text.rsplit(|b| *b == b'\n').filter_map(|line| Record::parse(line).ok());
    Ok(back.next().map(|r| (r.seq, r.hash)))
}

/// Attempts of this process: what was begun, one line each, until none is under way.
#[derive(Debug)]
pub(super) struct Attempts {
    path: PathBuf,
    file: File,
}

impl Attempts {
    /// Makes the file (the log's lock is held).
    pub fn create(dir: &Path, owner: Owner) -> Result<Self> {
        let path = dir.join(format!("attempts-{}", ulid::Ulid::generate()));
        let file = private(&path, owner, OpenOptions::new().read(true).append(true).create_new(true))?;
        // held as long as this process lives: by that others know
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| failed(&path)(e.into()))?;
        sync_dir(dir)?;
        Ok(Self { path, file })
    }

    pub fn append(&mut self, lines: &str) -> Result<()> {
        self.file.write_all(lines.as_bytes()).and_then(|()| self.file.sync_data()).map_err(failed(&self.path))
    }

    pub fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.len())
    }

    /// Forgets all of them: none is under way.
    pub fn clear(&mut self) {
        // what stays by a failure is recognised by its id
        if let Err(error) = self.file.set_len(0) {
            tracing::warn!(%error, "ended attempts stay in their file");
        }
    }

    pub fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a file of audited attempts could not be removed");
        }
    }
}

/// Files of attempts whose process is gone (the log's lock is held), with what is in them.
pub(super) fn orphans(dir: &Path) -> Result<Vec<(PathBuf, Vec<Record>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        if !path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("attempts-")) {
            continue;
        }
        let mut file = match private(&path, None, OpenOptions::new().read(true)) {
            Ok(file) => file,
            // its process ended, and took it along, since the folder was read
            Err(_) if path.symlink_metadata().is_err() => continue,
            Err(error) => return Err(error),
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed(&path))?;
        let records = text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        found.push((path, records));
    }
    Ok(found)
}
