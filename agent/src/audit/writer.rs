//! The one writer of this process, a thread: it takes what waits, appends it in one go, and answers when it is on the
//! disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sigil_core::audit::{Record, UNKNOWN};
use tokio::sync::{mpsc, oneshot};

use super::files::{self, Attempts, End, Found, Owner, directory, failed, private};
use super::{Attempt, Redact, Result, Shared, by_agent};

/// Commands joined in one sync at most.
const GROUP: usize = 256;
/// Records of what has happened, kept while the log cannot be written; more are counted.
const BACKLOG: usize = 1000;
/// Attempts are written anew, without those that ended, when their file is longer than this.
const ATTEMPTS_MAX: u64 = 1 << 20;
/// Segments looked through for the ends of attempts.
const LOOK_BACK: usize = 2;
/// How often writing is tried again.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Command {
    Begin {
        attempt: Attempt,
        tell: oneshot::Sender<Result<Attempt>>,
    },
    /// `keep`: tried again until it is written.
    Add {
        records: Vec<Record>,
        keep: bool,
        tell: Option<oneshot::Sender<Result<()>>>,
    },
    Close(oneshot::Sender<()>),
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    dir: PathBuf,
    owner: Owner,
    lock: File,
    end: End,
    attempts: Attempts,
    /// Lines of what is under way, by id.
    open: BTreeMap<String, String>,
    /// What could not be written and is tried again.
    backlog: VecDeque<Record>,
    lost: u64,
}

impl Writer {
    pub fn open(shared: Arc<Shared>, data_dir: &Path, commands: mpsc::Receiver<Command>) -> Result<Self> {
        let dir = shared.dir.clone();
        let owner = directory(data_dir, &dir)?;
        let lock = private(&dir.join("lock"), owner, OpenOptions::new().write(true).create(true).truncate(false))?;
        files::lock(&lock)?;
        let (end, found) = End::find(&dir, owner)?;
        let attempts = Attempts::create(&dir, owner)?;
        let mut writer = Self {
            shared,
            commands,
            dir,
            owner,
            lock,
            end,
            attempts,
            open: BTreeMap::new(),
            backlog: VecDeque::new(),
            lost: 0,
        };
        let taken = writer.take_up(&found);
        files::unlock(&writer.lock);
        taken?;
        writer.shared.newest.send_replace(writer.end.seq);
        Ok(writer)
    }

    /// Records what a former process left: a torn line, damage, and what it had begun.
    fn take_up(&mut self, found: &Found) -> Result<()> {
        let mut records: Vec<Record> = repairs(found).into_iter().collect();
        let orphans = files::orphans(&self.dir)?;
        if orphans.iter().any(|(_, left)| !left.is_empty()) {
            let ended = self.ended()?;
            for mut record in orphans.iter().flat_map(|(_, left)| left.iter().cloned()) {
                if !ended.contains(&record.id) {
                    UNKNOWN.clone_into(&mut record.outcome);
                    record.after.insert("note".into(), "the agent ended before it was answered".into());
                    records.push(record);
                }
            }
        }
        if !records.is_empty() {
            self.end.append(records, self.shared.max_bytes.load(Ordering::Relaxed))?;
        }
        for (path, _) in orphans {
            std::fs::remove_file(&path).map_err(failed(&path))?;
        }
        Ok(())
    }

    /// Ids of the calls that the newest segments tell the end of.
    fn ended(&self) -> Result<BTreeSet<String>> {
        let mut ids = BTreeSet::new();
        for (first, _) in files::segments(&self.dir)?.into_iter().rev().take(LOOK_BACK) {
            let path = files::segment(&self.dir, first);
            let text = std::fs::read(&path).map_err(failed(&path))?;
            let records = text.split(|b| *b == b'\n').filter_map(|line| Record::parse(line).ok());
            ids.extend(records.map(|r| r.id).filter(|id| !id.is_empty()));
        }
        Ok(ids)
    }

    pub fn run(mut self) {
        let mut closing = None;
        while let Some(first) = self.next() {
            let mut group = Vec::new();
            let mut next = Some(first);
            while let Some(command) = next.take() {
                match command {
                    Command::Close(done) => {
                        self.commands.close();
                        closing = Some(done);
                    }
                    other => group.push(other),
                }
                if group.len() < GROUP {
                    next = self.commands.try_recv().ok();
                }
            }
            self.commit(group);
        }
        if !self.backlog.is_empty() {
            tracing::error!(records = self.backlog.len(), "audit records could not be written");
        }
        // whatever is still under way becomes a record of the next agent
        if self.open.is_empty() {
            self.attempts.remove();
        }
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }

    /// The next command; `None` at the end. Meanwhile what could not be written is tried again.
    fn next(&mut self) -> Option<Command> {
        while !self.backlog.is_empty() || self.is_troubled() {
            match self.commands.try_recv() {
                Ok(command) => return Some(command),
                Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Err(mpsc::error::TryRecvError::Empty) => {
                    std::thread::sleep(AGAIN);
                    self.commit(Vec::new());
                }
            }
        }
        self.commands.blocking_recv()
    }

    fn is_troubled(&self) -> bool {
        self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn commit(&mut self, group: Vec<Command>) {
        let mut begins = Vec::new();
        let mut records: Vec<Record> = self.backlog.drain(..).collect();
        if self.lost > 0 {
            records.push(by_agent("audit.lost").after("records", self.lost));
        }
        let (mut kept, mut tells) = (records.clone(), Vec::new());
        let redact = self.shared.redact.read().unwrap_or_else(PoisonError::into_inner).clone();
        for command in group {
            match command {
                Command::Begin { attempt, tell } => begins.push((attempt, tell)),
                Command::Add { records: new, keep, tell } => {
                    let new: Vec<Record> = new.into_iter().map(|r| redacted(r, redact.as_ref())).collect();
                    tells.extend(tell);
                    if keep {
                        kept.extend(new.iter().cloned());
                    }
                    records.extend(new);
                }
                Command::Close(_) => {}
            }
        }
        let ids: Vec<String> = records.iter().map(|r| r.id.clone()).filter(|id| !id.is_empty()).collect();
        let written = self.locked(|this| this.write(records));
        match &written {
            Ok(()) => {
                self.lost = 0;
                for id in ids {
                    self.open.remove(&id);
                }
            }
            Err(error) => {
                if !self.is_troubled() {
                    tracing::error!(%error, "audit records cannot be written: changes are refused until they can");
                }
                kept.retain(|r| r.what != "audit.lost");
                self.lost += kept.len().saturating_sub(BACKLOG) as u64;
                self.backlog = kept.into_iter().take(BACKLOG).collect();
            }
        }
        *self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner) = written.clone().err();
        for tell in tells {
            let _ = tell.send(written.clone());
        }
        self.begin(begins, redact.as_ref(), written);
        self.shared.newest.send_if_modified(|seq| std::mem::replace(seq, self.end.seq) != self.end.seq);
    }

    fn write(&mut self, mut records: Vec<Record>) -> Result<()> {
        if self.end.is_stale() {
            let (end, found) = End::find(&self.dir, self.owner)?;
            self.end = end;
            // damage was said at the start; a torn line is another process' that was killed since
            records.splice(0..0, repairs(&Found { damaged: 0, ..found }));
        }
        if records.is_empty() {
            return Ok(());
        }
        #[cfg(test)]
        if self.shared.full.load(Ordering::Relaxed) {
            return Err(super::AuditError::Full);
        }
        self.end.append(records, self.shared.max_bytes.load(Ordering::Relaxed))
    }

    /// Lets attempts through, once they are on the disk and there is room for their ends.
    fn begin(
        &mut self,
        begins: Vec<(Attempt, oneshot::Sender<Result<Attempt>>)>,
        redact: Option<&Redact>,
        so_far: Result<()>,
    ) {
        if self.open.is_empty() && self.attempts.len() > 0 {
            self.attempts.clear();
        }
        if begins.is_empty() {
            return;
        }
        let records = begins.iter().filter_map(|(attempt, _)| attempt.record.as_deref().cloned());
        let records = records.map(|record| redacted(record, redact).bounded());
        let lines: Vec<(String, String)> =
            records.map(|record| (record.id.clone(), format!("{}\n", record.line()))).collect();
        let kept = so_far.and_then(|()| {
            #[cfg(test)]
            if self.shared.full.load(Ordering::Relaxed) {
                return Err(super::AuditError::Full);
            }
            self.end.reserve()?;
            if self.attempts.len() > ATTEMPTS_MAX {
                self.rewrite()?;
            }
            self.attempts.append(&lines.iter().map(|(_, line)| line.as_str()).collect::<String>())
        });
        if kept.is_ok() {
            self.open.extend(lines);
        }
        for (attempt, tell) in begins {
            match &kept {
                // one that nobody waits for any more is dropped, and that ends it
                Ok(()) => drop(tell.send(Ok(attempt))),
                Err(error) => {
                    attempt.refused();
                    drop(tell.send(Err(error.clone())));
                }
            }
        }
    }

    /// A new file of attempts with what is under way only.
    fn rewrite(&mut self) -> Result<()> {
        let mut new = self.locked(|this| Attempts::create(&this.dir, this.owner))?;
        new.append(&self.open.values().map(String::as_str).collect::<String>())?;
        std::mem::replace(&mut self.attempts, new).remove();
        Ok(())
    }

    fn locked<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        files::lock(&self.lock)?;
        let done = work(self);
        files::unlock(&self.lock);
        done
    }
}

fn repairs(found: &Found) -> Option<Record> {
    if found.torn == 0 && found.damaged == 0 {
        return None;
    }
    tracing::error!(torn = found.torn, damaged = found.damaged, "the audit log was damaged at its end");
    let record = by_agent("audit.repair").after("bytes cut off", found.torn);
    Some(record.after("damaged lines", found.damaged))
}

/// The record with live values masked in every text that a caller may have written.
fn redacted(mut record: Record, redact: Option<&Redact>) -> Record {
    let Some(redact) = redact else { return record };
    for text in [&mut record.who, &mut record.target, &mut record.request] {
        *text = redact(text);
    }
    for value in record.before.values_mut().chain(record.after.values_mut()) {
        *value = redact(value);
    }
    record
}
