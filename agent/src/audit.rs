//! Owns: the audit log: its segments, its chain, its size, and what is begun and not yet answered.
//! May touch: `<data>/audit`.
//! Never: changes a line that is written, holds a secret's value, or lets a change through that it cannot record.
//! Tested by: unit tests on a temporary directory; the records and their chain in `sigil-core`.
//!
//! A change is recorded twice: an attempt, before it is made, in a file of its own, and its end, as a record of the
//! chain, before it is answered. Both are on the disk (one fdatasync for all that wait) when the caller goes on. So a
//! change that no record tells of cannot be: where the log cannot be written (a full disk), it is refused before it is
//! made, since a log that misses what was done while somebody filled the disk is worth nothing; and what a killed agent
//! had begun becomes a record of the next one. Room for ends is set aside on the disk before an attempt is let through.
//!
//! Several processes append to one log: the agent, and its command line beside it. A lock on the directory is held for
//! each group; who finds that the log has grown reads its end again.

mod files;
mod read;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;
use sigil_core::audit::{Record, UNKNOWN};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

pub use read::{Batch, Query, Reader};
use writer::{Command, Writer};

/// Commands that may wait for the writer. An attempt that is under way holds a place for its end.
const QUEUE: usize = 1024;
/// Attempts under way at once; more wait. Fewer than places, so that beginnings find one, too.
const ATTEMPTS: usize = 256;
/// Size of the log where nobody says another one.
const MAX_BYTES: u64 = 64 << 20;

/// Why something could not be recorded or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuditError {
    /// No room for the record of its end.
    #[error("there is no room on the disk for a record of it")]
    Full,
    /// Disk.
    #[error("audit log: {0}")]
    Io(String),
    /// The agent is shutting down.
    #[error("the audit log is closed")]
    Closed,
}

impl AuditError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Full => {
                "free some space on the file system of the data directory: what cannot be recorded is not done"
            }
            Self::Io(_) => "look at the agent's log, and at <data>/audit: what cannot be recorded is not done",
            Self::Closed => "the agent is shutting down; try again when it is back",
        }
    }
}

/// Result of a call to this room.
pub type Result<T> = std::result::Result<T, AuditError>;

/// Takes values out of texts.
type Redact = Arc<dyn Fn(&str) -> String + Send + Sync>;

struct Shared {
    dir: PathBuf,
    max_bytes: AtomicU64,
    /// Number of the newest record that is on the disk.
    newest: watch::Sender<u64>,
    redact: RwLock<Option<Redact>>,
    /// Why the last group could not be written.
    trouble: Mutex<Option<AuditError>>,
    /// A disk that is full.
    #[cfg(test)]
    full: std::sync::atomic::AtomicBool,
}

/// The audit log. Clones write to the same one.
#[derive(Clone)]
pub struct Audit {
    shared: Arc<Shared>,
    writer: mpsc::Sender<Command>,
    attempts: Arc<Semaphore>,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Audit").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl Audit {
    /// Opens the log of a data directory, making it as needed; takes up what a former process had begun. Blocks.
    ///
    /// # Errors
    /// [`AuditError::Io`]: the directory belongs to another user, or cannot be written.
    pub fn open(data_dir: &Path) -> Result<Self> {
        let shared = Arc::new(Shared {
            dir: data_dir.join("audit"),
            max_bytes: AtomicU64::new(MAX_BYTES),
            newest: watch::Sender::new(0),
            redact: RwLock::new(None),
            trouble: Mutex::new(None),
            #[cfg(test)]
            full: false.into(),
        });
        let (tx, rx) = mpsc::channel(QUEUE);
        let writer = Writer::open(shared.clone(), data_dir, rx)?;
        std::thread::Builder::new()
            .name("sigil-audit".into())
            .spawn(move || writer.run())
            .map_err(|e| AuditError::Io(e.to_string()))?;
        Ok(Self { shared, writer: tx, attempts: Arc::new(Semaphore::new(ATTEMPTS)) })
    }

    /// Sets how much is kept, from the next record on.
    pub fn set_max_bytes(&self, bytes: u64) {
        self.shared.max_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Sets what takes live values out of texts before they are written: a caller may put one where a name belongs.
    pub fn set_redactor(&self, redact: impl Fn(&str) -> String + Send + Sync + 'static) {
        *self.shared.redact.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(redact));
    }

    /// Why nothing can be recorded at the moment; `None` when all is well.
    pub fn trouble(&self) -> Option<AuditError> {
        self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps that something is about to be tried. What is tried may be done once this returns.
    ///
    /// # Errors
    /// When its end could not be recorded: it must not be done.
    pub async fn begin(&self, mut record: Record) -> Result<Attempt> {
        record.id = ulid::Ulid::generate().to_string();
        let turn = self.attempts.clone().acquire_owned().await.map_err(|_| AuditError::Closed)?;
        let place = self.writer.clone().reserve_owned().await.map_err(|_| AuditError::Closed)?;
        let (tell, told) = oneshot::channel();
        // it travels with its beginning: whoever stops waiting for it leaves none open
        let attempt = Attempt { record: Some(Box::new(record)), place: Some(place), _turn: turn };
        self.writer.send(Command::Begin { attempt, tell }).await.map_err(|_| AuditError::Closed)?;
        told.await.map_err(|_| AuditError::Closed)?
    }

    /// Appends records; they are on the disk when this returns.
    ///
    /// # Errors
    /// When they are not.
    pub async fn record(&self, records: Vec<Record>) -> Result<()> {
        self.add(records, false).await
    }

    /// Appends a record of what has happened already; on the disk when this returns, or as soon as that is possible.
    pub async fn keep(&self, record: Record) {
        if let Err(error) = self.add(vec![record], true).await {
            tracing::error!(%error, "an audit record waits to be written");
        }
    }

    async fn add(&self, records: Vec<Record>, keep: bool) -> Result<()> {
        let (tell, told) = oneshot::channel();
        let add = Command::Add { records, keep, tell: Some(tell) };
        self.writer.send(add).await.map_err(|_| AuditError::Closed)?;
        told.await.map_err(|_| AuditError::Closed)?
    }

    /// [`Audit::record`] where there is no runtime.
    ///
    /// # Errors
    /// As there.
    pub fn record_blocking(&self, records: Vec<Record>) -> Result<()> {
        let (tell, told) = oneshot::channel();
        let add = Command::Add { records, keep: false, tell: Some(tell) };
        self.writer.blocking_send(add).map_err(|_| AuditError::Closed)?;
        told.blocking_recv().map_err(|_| AuditError::Closed)?
    }

    /// Appends a record without waiting for the disk: for what happens in the middle of a loop that must not stand. It is
    /// tried again until it is written.
    ///
    /// # Errors
    /// When the log is in trouble, or too many wait: what the record is about must then not happen.
    pub fn note(&self, record: Record) -> Result<()> {
        if let Some(trouble) = self.trouble() {
            return Err(trouble);
        }
        let add = Command::Add { records: vec![record], keep: true, tell: None };
        self.writer.try_send(add).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => AuditError::Io("more records wait than can be kept".into()),
            mpsc::error::TrySendError::Closed(_) => AuditError::Closed,
        })
    }

    /// Reads what is there, and what comes when it is followed.
    pub fn read(&self, query: Query) -> Reader {
        Reader::new(self.shared.dir.clone(), query, self.shared.newest.subscribe())
    }

    /// Writes what waits and ends.
    pub async fn close(&self) {
        let (tell, told) = oneshot::channel();
        if self.writer.send(Command::Close(tell)).await.is_ok() {
            let _ = told.await;
        }
    }
}

/// Something that was begun. Dropped without an end (its caller went away), it is recorded with an unknown outcome.
#[derive(Debug)]
pub struct Attempt {
    record: Option<Box<Record>>,
    /// A place in the writer's queue, so that the end needs no waiting.
    place: Option<mpsc::OwnedPermit<Command>>,
    _turn: OwnedSemaphorePermit,
}

impl Attempt {
    /// Its record, to be filled in.
    pub fn record(&mut self) -> Option<&mut Record> {
        self.record.as_deref_mut()
    }

    /// It was not let through: there is nothing to record.
    fn refused(mut self) {
        (self.record, self.place) = (None, None);
    }

    /// Records its end; on the disk when this returns.
    ///
    /// # Errors
    /// When it is not: it will be as soon as that is possible, and the attempt is kept until then.
    pub async fn end(mut self, outcome: &str) -> Result<()> {
        let (Some(mut record), Some(place)) = (self.record.take(), self.place.take()) else { return Ok(()) };
        outcome.clone_into(&mut record.outcome);
        let (tell, told) = oneshot::channel();
        place.send(Command::Add { records: vec![*record], keep: true, tell: Some(tell) });
        told.await.map_err(|_| AuditError::Closed)?
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let (Some(mut record), Some(place)) = (self.record.take(), self.place.take()) else { return };
        UNKNOWN.clone_into(&mut record.outcome);
        record.after.insert("note".into(), "the caller went away before the answer".into());
        place.send(Command::Add { records: vec![*record], keep: true, tell: None });
    }
}

/// A record of what the agent itself does.
pub fn by_agent(what: &str) -> Record {
    Record::new(Timestamp::now(), "agent", "agent", what)
}
