//! An operation's events: one file of JSON lines, followed by any number of readers.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use sigil_core::model::OperationId;
use tokio::sync::watch;

use super::{Event, EventKind};
use crate::store::{OperationRecord, Store};

/// Output beyond this is counted, not kept: a build that never stops talking must not fill the disk.
const MAX_BYTES: u64 = 32 << 20;

fn path(data_dir: &Path, id: OperationId) -> PathBuf {
    data_dir.join("operations").join(format!("{id}.jsonl"))
}

/// Removes event files of forgotten operations.
pub(super) fn clean(data_dir: &Path, store: &Store) {
    let Ok(entries) = std::fs::read_dir(data_dir.join("operations")) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|n| n.strip_suffix(".jsonl")).and_then(|n| n.parse::<OperationId>().ok());
        if id.is_some_and(|id| store.operation(id).is_none())
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::warn!(%error, path = %entry.path().display(), "an old event file could not be removed");
        }
    }
}

/// The writing side.
#[derive(Debug)]
pub(super) struct Events {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    path: PathBuf,
}

#[derive(Debug)]
struct State {
    file: Option<File>,
    seq: u64,
    bytes: u64,
    dropped: u64,
    done: bool,
}

impl Events {
    /// Opens the file and goes on after its last whole line.
    pub(super) fn open(data_dir: &Path, id: OperationId) -> Self {
        let path = path(data_dir, id);
        let mut state = State { file: None, seq: 0, bytes: 0, dropped: 0, done: false };
        let opened = OpenOptions::new().create(true).read(true).append(true).open(&path).and_then(|file| {
            let mut whole = 0u64;
            let mut reader = BufReader::new(&file);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line)? > 0 {
                if line.ends_with(b"\n") {
                    whole += line.len() as u64;
                    state.seq += 1;
                }
                line.clear();
            }
            // a line cut by a crash would glue itself to the next one
            file.set_len(whole)?;
            state.bytes = whole;
            Ok(file)
        });
        match opened {
            Ok(file) => state.file = Some(file),
            Err(error) => tracing::error!(%error, path = %path.display(), "events of an operation are not kept"),
        }
        let seq = state.seq;
        Self { state: Mutex::new(state), changes: watch::channel(seq).0, path }
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn is_done(&self) -> bool {
        self.state.lock().map_or(true, |s| s.done)
    }

    /// Adds an event.
    pub(super) fn emit(&self, what: EventKind) {
        let Ok(mut state) = self.state.lock() else { return };
        let output = matches!(what, EventKind::Output { .. });
        if output && state.bytes > MAX_BYTES {
            state.dropped += 1;
            return;
        }
        let done = matches!(what, EventKind::Done(_));
        if done && state.dropped > 0 {
            let lost = format!("{} lines of output were not kept (more than {} MiB)", state.dropped, MAX_BYTES >> 20);
            self.write(&mut state, EventKind::Note(lost));
        }
        self.write(&mut state, what);
        state.done |= done;
        let seq = state.seq;
        drop(state);
        self.changes.send_replace(seq);
    }

    fn write(&self, state: &mut State, what: EventKind) {
        let event = Event { seq: state.seq + 1, time: Timestamp::now(), what };
        let Ok(mut line) = serde_json::to_vec(&event) else { return };
        line.push(b'\n');
        if let Some(file) = &mut state.file {
            if let Err(error) = file.write_all(&line) {
                tracing::error!(%error, path = %self.path.display(), "an event was not kept");
                return;
            }
            state.seq += 1;
            state.bytes += line.len() as u64;
        }
    }
}

/// A reader of one operation's events.
#[derive(Debug)]
pub struct Follow {
    file: Option<BufReader<File>>,
    offset: u64,
    live: Option<watch::Receiver<u64>>,
    events: Option<Arc<Events>>,
    after: u64,
    ended: bool,
    record: Arc<OperationRecord>,
}

impl Follow {
    pub(super) fn new(data_dir: &Path, record: Arc<OperationRecord>, events: Option<Arc<Events>>, after: u64) -> Self {
        Self {
            file: File::open(path(data_dir, record.id)).ok().map(BufReader::new),
            offset: 0,
            live: events.as_ref().map(|e| e.changes()),
            events,
            after,
            ended: false,
            record,
        }
    }

    /// The next event; `None` after `Done`.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if self.ended {
                return None;
            }
            // seen before the file is read: what comes after wakes us
            let finished = self.events.as_ref().is_none_or(|e| e.is_done());
            if let Some(event) = self.read() {
                self.ended = matches!(event.what, EventKind::Done(_));
                if event.seq > self.after {
                    return Some(event);
                }
                continue;
            }
            if finished {
                self.ended = true;
                // the file is gone or was cut: the record still tells how it ended
                let seq = self.after + 1;
                return self.record.ended_at.map(|time| Event {
                    seq,
                    time,
                    what: EventKind::Done(Box::new(self.record.as_ref().clone())),
                });
            }
            match &mut self.live {
                Some(live) => {
                    if live.changed().await.is_err() {
                        self.live = None;
                    }
                }
                None => self.ended = true,
            }
        }
    }

    fn read(&mut self) -> Option<Event> {
        let file = self.file.as_mut()?;
        let mut line = Vec::new();
        let read = file.read_until(b'\n', &mut line).ok()?;
        if !line.ends_with(b"\n") {
            // not whole yet: read it again when it is
            if read > 0 {
                file.seek(SeekFrom::Start(self.offset)).ok()?;
            }
            return None;
        }
        self.offset += read as u64;
        serde_json::from_slice(&line).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: OperationId) -> Arc<OperationRecord> {
        Arc::new(OperationRecord {
            id,
            kind: "deploy".into(),
            deployment: None,
            name: "x".into(),
            created_by: "t".into(),
            created_at: Timestamp::now(),
            ended_at: None,
            state: "running".into(),
            step: String::new(),
            request: serde_json::Value::Null,
            progress: serde_json::Value::Null,
            release: None,
            error: None,
            result: serde_json::Value::Null,
            summary: String::new(),
            request_id: String::new(),
        })
    }

    #[tokio::test]
    async fn a_follower_sees_every_event_once_across_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("operations")).unwrap();
        let id = OperationId(ulid::Ulid::generate());
        let events = Events::open(dir.path(), id);
        events.emit(EventKind::Note("one".into()));
        events.emit(EventKind::Note("two".into()));
        drop(events);
        // a crash in the middle of a line
        OpenOptions::new().append(true).open(path(dir.path(), id)).unwrap().write_all(b"{\"seq\":3,\"ti").unwrap();
        let events = Arc::new(Events::open(dir.path(), id));
        let mut follow = Follow::new(dir.path(), record(id), Some(events.clone()), 1);
        let writer = events.clone();
        let task = tokio::spawn(async move {
            writer.emit(EventKind::Note("three".into()));
            tokio::task::yield_now().await;
            writer.emit(EventKind::Done(Box::new(record(id).as_ref().clone())));
        });
        let mut seen = vec![];
        while let Some(event) = follow.next().await {
            seen.push(event.seq);
        }
        task.await.unwrap();
        assert_eq!(seen, [2, 3, 4]);
    }
}
