//! The one writer, a thread: it takes what waits, makes one group of it, and answers when the group is on the disk.
//! Beside it a thread that writes exports from snapshots, so that no change waits for one.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::database::Database;
use super::disk::{is_full, set_aside};
use super::journal::{self, Journal, encode_frame};
use super::record::Op;
use super::recover::Paths;
use super::state::{Change, Snapshot};
use super::{Result, Shared, StoreError, export};

/// Changes joined in one sync at most.
const GROUP: usize = 256;
/// An export is made when the journal has grown by this many bytes since the last one.
const EXPORT_AFTER_BYTES: u64 = 32 << 20;
/// … or after this long, when anything changed.
const EXPORT_EVERY: Duration = Duration::from_secs(3600);

/// Told whether the group reached the disk.
pub(super) type Answer = Box<dyn FnOnce(Result<()>) + Send>;
/// Makes the change; answers whom to tell. An `Err` inside is kept by the answer.
pub(super) type Run = Box<dyn FnOnce(&mut Change) -> Answer + Send>;

/// What the writer is asked.
pub(super) enum Command {
    Change(Run),
    /// Rebuild the database when its files are much larger than what lives in them.
    Compact,
    Close(oneshot::Sender<()>),
}

/// What the exporter is asked.
pub(super) enum ExportCommand {
    Now(oneshot::Sender<Result<PathBuf>>),
    /// The journal grew: soon, nobody waits.
    Due,
    Close(oneshot::Sender<()>),
}

pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub commands: mpsc::Receiver<Command>,
    pub exporter: SyncSender<ExportCommand>,
    pub journal: Journal,
    /// `None` after an error that even rebuilding did not end: the journal alone then carries on.
    pub database: Option<Database>,
    pub paths: Paths,
    pub min_free_percent: u64,
    pub compact_floor: u64,
    /// Held until everything is closed.
    pub lock: File,
}

impl Writer {
    pub fn run(mut self) {
        let mut closing = None;
        while let Some(first) = self.commands.blocking_recv() {
            let mut group = Vec::new();
            let mut next = Some(first);
            let mut compact = false;
            while let Some(command) = next.take() {
                match command {
                    Command::Change(run) => group.push(run),
                    Command::Compact => compact = true,
                    Command::Close(done) => {
                        self.commands.close();
                        closing = Some(done);
                    }
                }
                if group.len() < GROUP {
                    next = self.commands.try_recv().ok();
                }
            }
            self.commit(group);
            if compact {
                self.compact();
            }
        }
        if let Some(database) = &self.database
            && let Err(e) = database.sync()
        {
            tracing::warn!(error = %e, "closing the database; the journal has everything");
        }
        // the database first: its files must be free before another agent may come
        let Self { database, journal, lock, .. } = self;
        drop(database);
        drop(journal);
        drop(lock);
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }

    fn commit(&mut self, group: Vec<Run>) {
        if group.is_empty() {
            return;
        }
        let before = self.shared.snapshot();
        let mut change = Change { state: Snapshot::clone(&before), ops: Vec::new() };
        let first = before.seq + 1;
        let mut frames = Vec::new();
        let mut all_ops: Vec<Op> = Vec::new();
        let mut answers = Vec::with_capacity(group.len());
        for run in group {
            answers.push(run(&mut change));
            if !change.ops.is_empty() {
                change.state.seq += 1;
                encode_frame(change.state.seq, &change.ops, &mut frames);
                all_ops.append(&mut change.ops);
            }
        }
        let outcome = if all_ops.is_empty() {
            Ok(())
        } else if is_full(&self.paths.journal, self.min_free_percent) {
            Err(StoreError::DiskFull)
        } else {
            self.journal.append(first, &frames)
        };
        match &outcome {
            Ok(()) if !all_ops.is_empty() => {
                let seq = change.state.seq;
                self.shared.publish(&before, change.state);
                for answer in answers {
                    answer(Ok(()));
                }
                self.apply(seq, &all_ops);
                if self.journal.grown > EXPORT_AFTER_BYTES {
                    match self.exporter.try_send(ExportCommand::Due) {
                        Ok(()) | Err(TrySendError::Full(_)) => self.journal.grown = 0,
                        Err(TrySendError::Disconnected(_)) => {}
                    }
                }
            }
            Ok(()) => answers.into_iter().for_each(|answer| answer(Ok(()))),
            Err(e) => answers.into_iter().for_each(|answer| answer(Err(e.clone()))),
        }
    }

    fn apply(&mut self, seq: u64, ops: &[Op]) {
        let Some(database) = &mut self.database else { return };
        if let Err(e) = database.apply(seq, ops) {
            self.shared.alarm(format!("the database failed ({e}); nothing is lost, the journal has it"));
            self.rebuild(false);
        }
    }

    fn compact(&mut self) {
        let records = self.shared.snapshot().records();
        let live = records.map_or(u64::MAX, |r| r.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum());
        if self.database.as_ref().is_none_or(|d| d.is_bloated(live, self.compact_floor)) {
            self.rebuild(true);
        }
    }

    /// Sets the database aside and builds one from memory. After a compaction the old one, being whole, is removed.
    fn rebuild(&mut self, compaction: bool) {
        let whole = compaction && self.database.is_some();
        self.database = None;
        let built = (|| {
            let aside = if self.paths.state.exists() { Some(set_aside(&self.paths.state)?) } else { None };
            let snapshot = self.shared.snapshot();
            let database = Database::build(&self.paths.state, snapshot.seq, &snapshot.records()?)?;
            Ok::<_, StoreError>((aside, database))
        })();
        match built {
            Ok((aside, database)) => {
                self.database = Some(database);
                match aside {
                    Some(aside) if whole => {
                        if let Err(e) = std::fs::remove_dir_all(&aside) {
                            tracing::warn!(error = %e, path = %aside.display(), "the database before compaction stays");
                        }
                    }
                    Some(aside) => {
                        self.shared.alarm(format!("the database was built anew; the old one is {}", aside.display()))
                    }
                    None => {}
                }
            }
            Err(e) => self.shared.alarm(format!("the database could not be rebuilt ({e}); the journal carries on")),
        }
    }
}

/// Runs one user closure so that its panic is an error and not the end of the writer.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(StoreError::Io("the change panicked".into())))
}

pub(super) struct Exporter {
    pub shared: Weak<Shared>,
    pub commands: Receiver<ExportCommand>,
    pub writer: mpsc::WeakSender<Command>,
    pub paths: Paths,
    pub agent_id: String,
    pub min_free_percent: u64,
    /// What the newest export covers.
    pub exported: u64,
}

impl Exporter {
    pub fn run(mut self) {
        loop {
            match self.commands.recv_timeout(EXPORT_EVERY) {
                Ok(ExportCommand::Now(answer)) => {
                    let _ = answer.send(self.export());
                }
                Ok(ExportCommand::Due) => self.export_or_alarm(),
                Ok(ExportCommand::Close(done)) => {
                    self.export_if_changed();
                    let _ = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.export_if_changed();
                    if let Some(writer) = self.writer.upgrade() {
                        let _ = writer.try_send(Command::Compact);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn export_if_changed(&mut self) {
        if self.shared.upgrade().is_some_and(|s| s.snapshot().seq != self.exported) {
            self.export_or_alarm();
        }
    }

    fn export_or_alarm(&mut self) {
        if let Err(e) = self.export()
            && let Some(shared) = self.shared.upgrade()
        {
            shared.alarm(format!("the export failed: {e}"));
        }
    }

    fn export(&mut self) -> Result<PathBuf> {
        let Some(shared) = self.shared.upgrade() else { return Err(StoreError::Closed) };
        if is_full(&self.paths.exports, self.min_free_percent) {
            return Err(StoreError::DiskFull);
        }
        let snapshot = shared.snapshot();
        let path = export::write(&self.paths.exports, &self.agent_id, snapshot.seq, &snapshot.records()?)?;
        self.exported = snapshot.seq;
        let covered = export::prune(&self.paths.exports)?;
        journal::prune(&self.paths.journal, covered)?;
        Ok(path)
    }
}
