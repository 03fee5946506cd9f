//! One deployment's lines as readers see them, and the queue in front of its writer.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sigil_config::agent::LogsConfig;
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo};
use sigil_core::ring::{Entry, Lost, Ring};
use tokio::sync::{Notify, oneshot};

use super::disk::{self, Block, Disk, Sealed, Segment};
use super::frame::{Frame, Key, Note};
use super::writer::{Item, ring_budget};
use crate::initlink::OutputChunk;

/// Bytes that wait for one deployment's writer before output is dropped (and counted). An init that keeps to its
/// window of 256 KiB a stream never gets there; one that does not harms only itself.
const QUEUE: usize = 16 << 20;
/// What an entry of the queue counts beside its bytes.
const ENTRY: usize = 256;

/// A message to a deployment's worker.
#[derive(Debug)]
pub(super) enum Msg {
    Chunk(OutputChunk, ReleaseNo),
    Item(Item),
    /// The instance's container ended: the engine's log may have what the link did not bring.
    Late(InstanceId, ReleaseNo),
    /// Everything before it is written.
    Barrier(oneshot::Sender<()>),
    /// Remove the files and end.
    Forget(oneshot::Sender<()>),
}

impl Msg {
    fn cost(&self) -> usize {
        ENTRY
            + match self {
                Self::Chunk(chunk, _) => chunk.bytes.len(),
                Self::Item(Item::Line { bytes, .. }) => bytes.len(),
                _ => 0,
            }
    }
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Msg>,
    bytes: usize,
    closed: bool,
    running: bool,
}

/// What readers see.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) ring: Ring<Frame>,
    pub(super) segments: VecDeque<Segment>,
    /// The sequence number of the next line.
    pub(super) next: u64,
    /// Time of the newest output taken in, per instance, microseconds.
    pub(super) kept: HashMap<InstanceId, i64>,
    /// Lines that are no longer kept or never could be.
    pub(super) dropped: u64,
    pub(super) forgotten: bool,
}

/// What comes next for a reader.
#[derive(Debug)]
pub(super) enum Find {
    /// Whole frames from memory.
    Frames(VecDeque<bytes::Bytes>, u64),
    /// A block to read from a file.
    Block(PathBuf, Block),
    Lost(Lost),
    End,
}

impl Shared {
    pub(super) fn segment_bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    pub(super) fn add(&mut self, sealed: Sealed) {
        match self.segments.back_mut() {
            Some(segment) if segment.path == sealed.path => {
                segment.bytes += sealed.bytes;
                segment.blocks.push(sealed.block);
            }
            _ => {
                self.segments.push_back(Segment { path: sealed.path, bytes: sealed.bytes, blocks: vec![sealed.block] })
            }
        }
    }

    /// The oldest line that is still there.
    pub(super) fn first(&self) -> u64 {
        self.segments.front().and_then(|s| s.blocks.first()).map_or_else(|| self.ring.first(), |b| b.first)
    }

    /// What holds line `seq`; at most about `budget` bytes at once, and nothing that lies outside `times`.
    pub(super) fn find(&self, seq: u64, budget: usize, times: (i64, i64)) -> Find {
        if seq >= self.next {
            return Find::End;
        }
        if let Some(entries) = self.ring.from(seq) {
            let mut frames = VecDeque::new();
            let (mut bytes, mut next) = (0, seq);
            for entry in entries {
                if bytes >= budget {
                    break;
                }
                next = entry.next();
                if entry.value.meta.max >= times.0 && entry.value.meta.min <= times.1 {
                    bytes += entry.value.bytes.len();
                    frames.push_back(entry.value.bytes.clone());
                }
            }
            return Find::Frames(frames, next);
        }
        let at = self.segments.partition_point(|s| s.next() <= seq);
        let found = self.segments.get(at).and_then(|s| {
            let block = s.blocks.get(s.blocks.partition_point(|b| b.next() <= seq))?;
            Some((s.path.clone(), *block))
        });
        match found {
            Some((_, block)) if block.first > seq => Find::Lost(Lost { from: seq, to: block.first }),
            Some((_, block)) if block.max < times.0 || block.min > times.1 => {
                Find::Frames(VecDeque::new(), block.next())
            }
            Some((path, block)) => Find::Block(path, block),
            None => Find::Lost(Lost { from: seq, to: self.ring.first() }),
        }
    }

    /// Everything that is kept, newest first: memory, then files.
    pub(super) fn units(&self) -> Vec<Unit> {
        let memory = self.ring.first();
        let frames = self.ring.iter().rev().map(|e| Unit::Frame(e.value.clone()));
        let blocks =
            self.segments.iter().rev().flat_map(|s| {
                s.blocks.iter().rev().filter(|b| b.first < memory).map(|b| Unit::Block(s.path.clone(), *b))
            });
        frames.chain(blocks).collect()
    }
}

/// A frame in memory or a block in a file.
#[derive(Debug, Clone)]
pub(super) enum Unit {
    Frame(Frame),
    Block(PathBuf, Block),
}

impl Unit {
    /// (oldest, newest) time in it.
    pub(super) fn times(&self) -> (i64, i64) {
        match self {
            Self::Frame(f) => (f.meta.min, f.meta.max),
            Self::Block(_, b) => (b.min, b.max),
        }
    }

    /// Its frames. Blocks the thread.
    pub(super) fn read(&self) -> std::io::Result<bytes::Bytes> {
        match self {
            Self::Frame(f) => Ok(f.bytes.clone()),
            Self::Block(path, block) => block.read(path),
        }
    }
}

/// What the writer begins with.
#[derive(Debug)]
pub(super) struct Seed {
    pub(super) disk: Disk,
    pub(super) notes: HashMap<Key, Note>,
    pub(super) next: u64,
    pub(super) gaps: Vec<(u64, String)>,
}

#[derive(Debug)]
enum Load {
    Not,
    Seed(Box<Seed>),
    Taken,
}

/// One deployment's log.
#[derive(Debug)]
pub(super) struct Dep {
    pub(super) id: DeploymentId,
    pub(super) dir: PathBuf,
    load: Mutex<Load>,
    shared: Mutex<Shared>,
    queue: Mutex<Queue>,
    pub(super) ready: Notify,
    space: Notify,
    readers: Mutex<Vec<Weak<Notify>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Dep {
    pub(super) fn new(id: DeploymentId, dir: PathBuf) -> Self {
        let shared = Shared {
            ring: Ring::new(0, 1),
            segments: VecDeque::new(),
            next: 1,
            kept: HashMap::new(),
            dropped: 0,
            forgotten: false,
        };
        Self {
            id,
            dir,
            load: Mutex::new(Load::Not),
            shared: Mutex::new(shared),
            queue: Mutex::new(Queue::default()),
            ready: Notify::new(),
            space: Notify::new(),
            readers: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// Reads what a former life left, once: the headers of its blocks and at most one head. Blocks the thread.
    pub(super) fn load(&self, config: &LogsConfig) -> std::io::Result<()> {
        let mut load = lock(&self.load);
        if !matches!(*load, Load::Not) {
            return Ok(());
        }
        let mut found = disk::recover(&self.dir)?;
        let disk = Disk::new(self.dir.clone(), &mut found);
        let mut shared = self.shared();
        // All that is in no segment must be in the ring, whatever the configuration says now.
        let cost = |f: &Frame| f.bytes.len() + super::writer::OVERHEAD;
        let unsealed: usize = found.frames.iter().map(cost).sum();
        let first = found.frames.first().map_or(found.next, |f| f.meta.first);
        shared.ring = Ring::new(ring_budget(config).max(unsealed), first);
        for frame in found.frames {
            let entry = Entry { first: frame.meta.first, count: frame.meta.count, cost: cost(&frame), value: frame };
            if let Err(e) = shared.ring.push(entry) {
                tracing::error!(deployment = %self.id, error = %e, "a kept log frame is out of order");
            }
        }
        shared.segments = found.segments;
        shared.next = found.next;
        for note in found.notes.values() {
            let newest = shared.kept.entry(note.key.instance).or_insert(note.time);
            *newest = (*newest).max(note.time);
        }
        *load = Load::Seed(Box::new(Seed { disk, notes: found.notes, next: found.next, gaps: found.gaps }));
        Ok(())
    }

    /// The writer's part; once.
    pub(super) fn seed(&self) -> Option<Box<Seed>> {
        let mut load = lock(&self.load);
        match std::mem::replace(&mut *load, Load::Taken) {
            Load::Seed(seed) => Some(seed),
            other => {
                *load = other;
                None
            }
        }
    }

    /// A reader that wants to be woken when lines were added.
    pub(super) fn subscribe(&self, reader: &Arc<Notify>) {
        let mut readers = lock(&self.readers);
        readers.retain(|r| r.strong_count() > 0);
        readers.push(Arc::downgrade(reader));
    }

    pub(super) fn wake(&self) {
        for reader in lock(&self.readers).iter().filter_map(Weak::upgrade) {
            reader.notify_one();
        }
    }

    /// Adds a message without waiting; output beyond what may wait is dropped and counted. `true`: a worker is needed.
    pub(super) fn push(&self, msg: Msg) -> bool {
        let mut queue = lock(&self.queue);
        if queue.closed {
            // Not acknowledged: init keeps it for the next agent.
            return false;
        }
        let msg = match msg {
            Msg::Chunk(chunk, _) if queue.bytes + chunk.bytes.len() > QUEUE => {
                let lost = chunk.bytes.len() as u64;
                chunk.ack();
                if let Some(Msg::Item(Item::Lost { bytes, .. })) = queue.messages.back_mut() {
                    *bytes += lost;
                    return false;
                }
                Msg::Item(Item::Lost { bytes: lost, reason: "output came faster than it could be written".into() })
            }
            msg => msg,
        };
        queue.bytes += msg.cost();
        queue.messages.push_back(msg);
        let start = !std::mem::replace(&mut queue.running, true);
        drop(queue);
        self.ready.notify_one();
        start
    }

    /// Waits until there is room. `false`: the agent stops.
    pub(super) async fn room(&self) -> bool {
        loop {
            let space = self.space.notified();
            tokio::pin!(space);
            space.as_mut().enable();
            {
                let queue = lock(&self.queue);
                if queue.closed {
                    return false;
                }
                if queue.bytes < QUEUE / 4 {
                    return true;
                }
            }
            space.await;
        }
    }

    /// Takes up to about `budget` bytes of messages; empty when nothing waits.
    pub(super) fn take(&self, budget: usize) -> Vec<Msg> {
        let mut queue = lock(&self.queue);
        let mut out = Vec::new();
        let mut bytes = 0;
        while bytes < budget
            && let Some(msg) = queue.messages.pop_front()
        {
            bytes += msg.cost();
            out.push(msg);
        }
        queue.bytes -= bytes;
        drop(queue);
        if !out.is_empty() {
            self.space.notify_waiters();
        }
        out
    }

    /// Nothing more is taken in; what waits is dropped, unacknowledged.
    pub(super) fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        queue.messages.clear();
        queue.bytes = 0;
        drop(queue);
        self.space.notify_waiters();
    }
}
