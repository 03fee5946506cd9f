//! Output on its way to whoever keeps it, and the bookkeeping of what is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use jiff::Timestamp;
use sigil_core::model::{InstanceId, Stream};
use tokio::sync::Notify;

use super::lock;

/// Output that went to the engine's log, because no agent was there to take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputGap {
    /// How many bytes (whole lines, but for a line over 64 KiB).
    pub bytes: u64,
    /// When the first was written. The engine stamps lines when it reads them, so a little later.
    pub since: Timestamp,
    /// When the last was written.
    pub until: Timestamp,
}

/// Output that init read, in order per (instance, life, process, stream).
///
/// Drop it without `ack` and init keeps it, to be given out again when the link is made anew; until then at most
/// 256 KiB a stream follow, since init forgets nothing behind it either.
pub struct OutputChunk {
    /// Whose.
    pub instance: InstanceId,
    /// Key of the process: `main`, or a session's.
    pub process: String,
    /// Which start of the container: offsets begin at 0 in each.
    pub life: u64,
    /// Stdout or stderr.
    pub stream: Stream,
    /// Position of the first byte in this stream of this process (counted by init from 0, gaps included).
    pub offset: u64,
    /// When init read it.
    pub time: Timestamp,
    /// What was printed. Empty when the chunk only tells of a gap.
    pub bytes: Bytes,
    /// Bytes right before `offset` that are in the engine's log and nowhere else.
    pub gap_before: Option<OutputGap>,
    ack: Box<dyn FnOnce() + Send>,
}

impl OutputChunk {
    /// A chunk of process `main` without a gap. `ack` runs when it is kept safely.
    pub fn new(
        instance: InstanceId,
        stream: Stream,
        offset: u64,
        time: Timestamp,
        bytes: Bytes,
        ack: Box<dyn FnOnce() + Send>,
    ) -> Self {
        let process = sigil_init::MAIN.to_owned();
        Self { instance, process, life: 0, stream, offset, time, bytes, gap_before: None, ack }
    }

    /// Kept safely: init may forget everything up to here.
    pub fn ack(self) {
        (self.ack)();
    }
}

impl fmt::Debug for OutputChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputChunk")
            .field("instance", &self.instance)
            .field("process", &self.process)
            .field("stream", &self.stream)
            .field("offset", &self.offset)
            .field("bytes", &self.bytes.len())
            .field("gap_before", &self.gap_before)
            .finish_non_exhaustive()
    }
}

/// A stream's identity on the link.
pub type Key = (u32, sigil_init::wire::Stream);

#[derive(Debug, Default)]
struct Kept {
    /// Everything before is kept.
    acked: u64,
    /// What was given out behind it: start -> (end, kept).
    given: BTreeMap<u64, (u64, bool)>,
    /// `acked` moved since init was last told.
    dirty: bool,
}

#[derive(Debug, Default)]
struct Streams {
    kept: BTreeMap<Key, Kept>,
    /// Given out and neither kept nor given back.
    frames: usize,
    bytes: usize,
}

/// How far each stream of one life of a container is kept.
#[derive(Debug, Default)]
pub struct Ledger {
    streams: Mutex<Streams>,
    /// Something is to be acknowledged.
    pub notify: Notify,
}

/// Twice what init may have on its way: a new connection may find the old one's still unsettled.
pub const FRAMES_MAX: usize = sigil_init::IN_FLIGHT_FRAMES * 2;
const BYTES_MAX: usize = sigil_init::IN_FLIGHT_BYTES * 2;

/// What to do with a piece of output.
#[derive(Debug)]
pub enum Verdict {
    /// Give out what begins here.
    New(u64, Receipt),
    /// It was given out before.
    Known,
    /// Init sends more than it may: it is not our init.
    Absurd,
}

/// Kept or given back, once.
#[derive(Debug)]
pub struct Receipt {
    ledger: Arc<Ledger>,
    key: Key,
    start: u64,
    bytes: usize,
    kept: bool,
}

impl Receipt {
    /// What it stands for is safe.
    pub fn kept(mut self) {
        self.kept = true;
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.ledger.settle(self);
    }
}

impl Ledger {
    /// `from..to` came, as bytes or as a gap.
    pub fn receive(self: &Arc<Self>, key: Key, from: u64, to: u64, is_gap: bool) -> Verdict {
        let mut streams = lock(&self.streams);
        // The first thing that is seen of a stream begins it: what lies before was another agent's.
        let kept = streams.kept.entry(key).or_insert_with(|| Kept { acked: from, ..Kept::default() });
        let mut start = from.max(kept.acked);
        while let Some((_, (end, _))) = kept.given.range(..=start).next_back().filter(|(_, (end, _))| *end > start) {
            start = *end;
        }
        if start >= to {
            // Init may not have heard that this is kept.
            kept.dirty |= from < kept.acked;
            drop(streams);
            self.notify.notify_one();
            return Verdict::Known;
        }
        kept.given.insert(start, (to, false));
        let bytes = if is_gap { 0 } else { usize::try_from(to - start).unwrap_or(usize::MAX) };
        streams.frames += 1;
        streams.bytes = streams.bytes.saturating_add(bytes);
        let absurd = streams.frames > FRAMES_MAX || streams.bytes > BYTES_MAX;
        drop(streams);
        let receipt = Receipt { ledger: self.clone(), key, start, bytes, kept: false };
        if absurd { Verdict::Absurd } else { Verdict::New(start, receipt) }
    }

    fn settle(&self, receipt: &Receipt) {
        let mut streams = lock(&self.streams);
        streams.frames -= 1;
        streams.bytes -= receipt.bytes;
        let Some(kept) = streams.kept.get_mut(&receipt.key) else { return };
        if !receipt.kept {
            kept.given.remove(&receipt.start);
            return;
        }
        if let Some((_, done)) = kept.given.get_mut(&receipt.start) {
            *done = true;
        }
        while let Some(first) = kept.given.first_entry() {
            let (from, (to, done)) = (*first.key(), *first.get());
            if from > kept.acked || !done {
                break;
            }
            first.remove();
            kept.acked = kept.acked.max(to);
            kept.dirty = true;
        }
        if kept.dirty {
            self.notify.notify_one();
        }
    }

    /// What init has to be told: each stream's first byte that is not kept.
    pub fn take(&self) -> Vec<(Key, u64)> {
        let mut streams = lock(&self.streams);
        let dirty = streams.kept.iter_mut().filter(|(_, kept)| kept.dirty);
        dirty
            .map(|(key, kept)| {
                kept.dirty = false;
                (*key, kept.acked)
            })
            .collect()
    }

    /// Nothing more comes of this process.
    pub fn gone(&self, serial: u32) {
        lock(&self.streams).kept.retain(|(of, _), _| *of != serial);
    }
}

#[cfg(test)]
mod tests {
    use sigil_init::wire::Stream::Stderr;

    use super::*;

    const KEY: Key = (1, Stderr);

    fn new(ledger: &Arc<Ledger>, from: u64, to: u64, begins: u64) -> Receipt {
        match ledger.receive(KEY, from, to, false) {
            Verdict::New(start, receipt) if start == begins => receipt,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn acknowledgements_are_told_in_order_whatever_order_they_come_in() {
        let ledger = Arc::new(Ledger::default());
        let mut receipts: Vec<_> = [0, 10, 20].map(|start| new(&ledger, start, start + 10, start)).into();
        receipts.remove(1).kept();
        assert_eq!(ledger.take(), []);
        receipts.remove(0).kept();
        assert_eq!(ledger.take(), [(KEY, 20)]);
        assert_eq!(ledger.take(), [], "once");
        // Sent again after a new connection: only what is not kept nor on its way is given out.
        assert!(matches!(ledger.receive(KEY, 0, 30, false), Verdict::Known));
        assert_eq!(ledger.take(), [(KEY, 20)], "init had not heard it");
        let last = new(&ledger, 15, 35, 30);
        drop(receipts);
        last.kept();
        assert_eq!(ledger.take(), [], "what was dropped holds back what follows");
        new(&ledger, 20, 30, 20).kept();
        assert_eq!(ledger.take(), [(KEY, 35)]);
        let streams = lock(&ledger.streams);
        assert_eq!((streams.frames, streams.bytes), (0, 0));
    }

    #[test]
    fn a_stream_begins_where_it_is_first_seen() {
        let ledger = Arc::new(Ledger::default());
        let first = new(&ledger, 1000, 1010, 1000);
        ledger.gone(1);
        first.kept();
        assert_eq!(ledger.take(), []);
    }

    #[test]
    fn more_than_init_may_send_is_absurd_but_gaps_may_be_long() {
        let ledger = Arc::new(Ledger::default());
        let gap = ledger.receive(KEY, 0, u64::MAX / 2, true);
        assert!(matches!(gap, Verdict::New(0, _)));
        let from = u64::MAX / 2;
        let most = new(&ledger, from, from + BYTES_MAX as u64, from);
        assert!(matches!(ledger.receive(KEY, from, from + BYTES_MAX as u64 + 1, false), Verdict::Absurd));
        drop(most);
        let receipts: Vec<_> =
            (0..FRAMES_MAX as u64 - 1).map(|n| ledger.receive((2, Stderr), n, n + 1, false)).collect();
        assert!(receipts.iter().all(|v| matches!(v, Verdict::New(..))));
        assert!(matches!(ledger.receive((3, Stderr), 0, 1, false), Verdict::Absurd));
    }
}
