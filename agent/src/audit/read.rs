//! Reading the log: lines as they are, from where a reader is, as fast as it takes them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use sigil_core::audit::{Filter, Record};
use tokio::sync::watch;

use super::files::{failed, segment, segments};
use super::{AuditError, Result};

/// Bytes of lines in one batch, about.
const BATCH: usize = 256 << 10;
/// Lines looked at before a batch is given out, even when none fitted.
const LOOKED_AT: usize = 20_000;
/// How often a follower looks at what another process may have written.
const LOOK: Duration = Duration::from_secs(1);

/// What a reader wants.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Which records.
    pub filter: Filter,
    /// Only the newest that fit.
    pub tail: Option<u64>,
    /// Go on with what comes.
    pub follow: bool,
    /// Only records with a greater number.
    pub after: u64,
}

/// Lines without their ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Oldest first. Without a filter whatever stands there, record or not.
    pub lines: Vec<Vec<u8>>,
    /// With a filter: lines that are no records.
    pub damaged: u64,
}

/// Where a reader is.
#[derive(Debug)]
struct Place {
    dir: PathBuf,
    query: Query,
    /// Segments to come, opened at the beginning: the size cap takes none away under a reader.
    ahead: VecDeque<(u64, File)>,
    current: Option<(u64, BufReader<File>)>,
    /// The newest segment that is, or was, among these.
    newest: u64,
    /// Records that fit and are passed over.
    skip: u64,
    /// A record after `query.after` has been seen: what is no record before it is not asked for either.
    past: bool,
}

/// A reader of the log.
#[derive(Debug)]
pub struct Reader {
    place: Option<Place>,
    begun: bool,
    follow: bool,
    newest: watch::Receiver<u64>,
}

impl Reader {
    pub(super) fn new(dir: PathBuf, query: Query, newest: watch::Receiver<u64>) -> Self {
        let (follow, query_begins) = (query.follow, query.after == 0);
        let place = Place { dir, query, ahead: VecDeque::new(), current: None, newest: 0, skip: 0, past: query_begins };
        Self { place: Some(place), begun: false, follow, newest }
    }

    /// The next lines; `None` at the end of what is there, unless it is followed.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn next(&mut self) -> Result<Option<Batch>> {
        loop {
            // seen before the files are read: what comes after wakes us
            self.newest.mark_unchanged();
            let Some(mut place) = self.place.take() else { return Ok(None) };
            let begun = std::mem::replace(&mut self.begun, true);
            let read = tokio::task::spawn_blocking(move || {
                if !begun {
                    place.begin()?;
                }
                let batch = place.read()?;
                Ok::<_, AuditError>((place, batch))
            });
            let (place, batch) = read.await.map_err(|e| AuditError::Io(e.to_string()))??;
            self.place = Some(place);
            match batch {
                Some(batch) if batch.lines.is_empty() && batch.damaged == 0 => {}
                Some(batch) => return Ok(Some(batch)),
                None if !self.follow => return Ok(None),
                None => {
                    if tokio::time::timeout(LOOK, self.newest.changed()).await.is_ok_and(|c| c.is_err()) {
                        return Ok(None);
                    }
                }
            }
        }
    }
}

impl Place {
    fn begin(&mut self) -> Result<()> {
        self.more()?;
        let Some(tail) = self.query.tail else { return Ok(()) };
        // counted from the newest segment back, until there are enough
        let (mut have, mut kept) = (0u64, VecDeque::new());
        while have < tail
            && let Some((first, file)) = self.ahead.pop_back()
        {
            let mut reader = BufReader::new(&file);
            let mut line = Vec::new();
            while self.line(&mut reader, first, &mut line)? {
                have += u64::from(self.fits(&line).unwrap_or(self.query.filter.is_open()));
            }
            (&file).seek(SeekFrom::Start(0)).map_err(failed(&segment(&self.dir, first)))?;
            kept.push_front((first, file));
        }
        self.skip = have.saturating_sub(tail);
        self.ahead = kept;
        Ok(())
    }

    /// Opens segments that are newer than those it has.
    fn more(&mut self) -> Result<()> {
        let mut all = segments(&self.dir)?;
        // the one after is known by its name: older ones need not be opened
        let from = all.iter().rposition(|(first, _)| *first <= self.query.after + 1).unwrap_or(0);
        for (first, _) in all.drain(..).skip(from) {
            if first <= self.newest {
                continue;
            }
            let path = segment(&self.dir, first);
            match File::open(&path) {
                Ok(file) => {
                    self.newest = first;
                    self.ahead.push_back((first, file));
                }
                // removed since it was listed: older than what comes
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed(&path)(e)),
            }
        }
        Ok(())
    }

    /// A whole line without its end; false when there is none (yet).
    fn line(&self, reader: &mut (impl BufRead + Seek), first: u64, line: &mut Vec<u8>) -> Result<bool> {
        line.clear();
        let bad = |e| failed(&segment(&self.dir, first))(e);
        let read = reader.read_until(b'\n', line).map_err(bad)?;
        if line.pop() == Some(b'\n') {
            return Ok(true);
        }
        // it is being written: read again when it is whole
        reader.seek_relative(-i64::try_from(read).unwrap_or(0)).map_err(|e| failed(&segment(&self.dir, first))(e))?;
        Ok(false)
    }

    /// Whether a line is asked for; `None` when it is no record.
    fn fits(&self, line: &[u8]) -> Option<bool> {
        let record = match Record::parse(line) {
            Ok(record) => record,
            Err((_, record)) => *record?,
        };
        Some(record.seq > self.query.after && self.query.filter.lets(&record))
    }

    /// What comes next; `None` at the end.
    fn read(&mut self) -> Result<Option<Batch>> {
        let open = self.query.filter.is_open();
        let (mut batch, mut bytes, mut line) = (Batch::default(), 0, Vec::new());
        for _ in 0..LOOKED_AT {
            if self.current.is_none() {
                self.current = self.ahead.pop_front().map(|(first, file)| (first, BufReader::new(file)));
            }
            let Some((first, mut reader)) = self.current.take() else {
                self.more()?;
                if self.ahead.is_empty() {
                    return Ok((!batch.lines.is_empty() || batch.damaged > 0).then_some(batch));
                }
                continue;
            };
            if !self.line(&mut reader, first, &mut line)? {
                // a segment ends when there is a newer one
                if self.ahead.is_empty() {
                    self.more()?;
                }
                let again = !self.ahead.is_empty() && self.line(&mut reader, first, &mut line)?;
                if !again {
                    if self.ahead.is_empty() {
                        self.current = Some((first, reader));
                        return Ok((!batch.lines.is_empty() || batch.damaged > 0).then_some(batch));
                    }
                    // an unfinished line before a newer segment is damage, and is shown
                    let mut rest = Vec::new();
                    io::Read::read_to_end(&mut reader, &mut rest).map_err(failed(&segment(&self.dir, first)))?;
                    if rest.is_empty() {
                        continue;
                    }
                    line = rest;
                } else {
                    self.current = Some((first, reader));
                }
            } else {
                self.current = Some((first, reader));
            }
            let fits = self.fits(&line);
            self.past |= fits == Some(true);
            match fits {
                None if !self.past => continue,
                None if !open => {
                    batch.damaged += 1;
                    continue;
                }
                Some(false) => continue,
                None | Some(true) => {}
            }
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            bytes += line.len();
            batch.lines.push(std::mem::take(&mut line));
            if bytes >= BATCH {
                break;
            }
        }
        Ok(Some(batch))
    }
}
