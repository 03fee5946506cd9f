//! One deployment's lines on their way in: chunks -> lines -> a frame -> the head file -> the ring, then the
//! acknowledgement. Runs on a blocking thread; a reader's lock is held only while a finished frame is published.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use sigil_config::agent::LogsConfig;
use sigil_core::model::{InstanceId, ReleaseNo, Stream};
use sigil_core::ring::Entry;

use super::disk::Disk;
use super::frame::{Builder, Frame, Key, Masks, Note, Reader, Record, Source};
use super::late::Logged;
use super::split::Splitter;
use super::store::{Dep, Seed};
use crate::initlink::{OutputChunk, OutputGap};

/// A frame is closed at the first chunk that passes this.
const FRAME: usize = 128 << 10;
/// A block of a segment holds about this much before compression.
const BLOCK: usize = 256 << 10;
/// An unfinished line is shown after its stream was silent for this long; what follows is a line of its own.
/// Long enough for a process that writes a line in pieces, short enough for a person who looks at a prompt.
pub(super) const IDLE: Duration = Duration::from_millis(250);
/// Streams whose position is kept, newest first: sessions of stdio servers come and go with their own stderr.
const STREAMS: usize = 1024;
/// What a frame counts in memory beside its bytes.
pub(super) const OVERHEAD: usize = 96;

/// Something to take in.
#[derive(Debug)]
pub(super) enum Item {
    Chunk {
        chunk: OutputChunk,
        release: ReleaseNo,
        /// What the engine's log held for the chunk's gap; `None` when there was no gap or nobody to ask.
        fill: Option<Vec<(Timestamp, Bytes)>>,
    },
    Line {
        release: ReleaseNo,
        instance: Option<InstanceId>,
        stream: Stream,
        time: Timestamp,
        bytes: Bytes,
    },
    /// What the engine's log has of an instance that ended, last words left out.
    Late {
        instance: InstanceId,
        release: ReleaseNo,
        lines: Vec<Logged>,
    },
    /// Ends unfinished lines: all, or one instance's.
    Finish(Option<InstanceId>),
    /// The instance is gone: its streams are finished and forgotten.
    Gone(InstanceId),
    /// Output that could not be held.
    Lost {
        bytes: u64,
        reason: String,
    },
}

/// One stream's state.
#[derive(Debug)]
struct Feed {
    release: ReleaseNo,
    splitter: Splitter,
    end: u64,
    time: i64,
    filled: i64,
    fed: Instant,
}

/// Takes items in, in order.
#[derive(Debug)]
pub(super) struct Writer {
    dep: Arc<Dep>,
    disk: Disk,
    feeds: HashMap<Key, Feed>,
    /// How far each stream is *on disk*: what a new head file begins with.
    noted: HashMap<Key, Note>,
    next: u64,
    /// Gaps to be written before the next line, and how many of them are on disk already, without one.
    gaps: Vec<(u64, String)>,
    gaps_kept: usize,
    /// Bytes of the engine's log that were brought in beyond the gap that asked: other processes' gaps.
    surplus: HashMap<(InstanceId, Stream), u64>,
    config: LogsConfig,
    masks: Arc<OnceLock<Masks>>,
    failing: bool,
}

struct Open {
    builder: Builder,
    touched: Vec<Key>,
    chunks: Vec<OutputChunk>,
}

impl Writer {
    pub(super) fn new(dep: Arc<Dep>, seed: Seed, config: LogsConfig, masks: Arc<OnceLock<Masks>>) -> Self {
        let Seed { disk, notes, next, gaps } = seed;
        let feeds = notes
            .iter()
            .map(|(key, note)| {
                let feed = Feed {
                    release: 0,
                    splitter: Splitter::with(note.partial.clone()),
                    end: note.end,
                    time: note.time,
                    filled: note.filled,
                    fed: Instant::now(),
                };
                (key.clone(), feed)
            })
            .collect();
        Self {
            dep,
            disk,
            feeds,
            noted: notes,
            next,
            gaps_kept: gaps.len(),
            gaps,
            surplus: HashMap::new(),
            config,
            masks,
            failing: false,
        }
    }

    pub(super) fn configure(&mut self, config: &LogsConfig) {
        if *config != self.config {
            self.config = config.clone();
            self.seal_if_due();
            self.dep.shared().ring.set_budget(ring_budget(config));
        }
    }

    /// Up to when the engine's log was read for the instance's stream, microseconds; 0: never. The log does not say
    /// which process wrote a line, so whichever process's gap comes first brings in the lines of all.
    pub(super) fn filled(&self, instance: InstanceId, stream: Stream) -> i64 {
        let same = self.feeds.iter().filter(|(k, _)| k.instance == instance && k.stream == stream);
        same.map(|(_, f)| f.filled).max().unwrap_or(0)
    }

    /// Is the chunk wholly known already?
    pub(super) fn knows(&self, chunk: &OutputChunk) -> bool {
        let end = chunk.offset + chunk.bytes.len() as u64;
        self.feeds.get(&key_of(chunk)).is_some_and(|f| end <= f.end)
    }

    /// Does a later start of the same container say more already?
    pub(super) fn is_former(&self, chunk: &OutputChunk) -> bool {
        self.feeds.keys().any(|k| k.instance == chunk.instance && k.life > chunk.life)
    }

    /// When the next unfinished line is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.feeds.values().filter(|f| !f.splitter.partial().is_empty()).map(|f| f.fed + IDLE).min()
    }

    /// Takes everything in and acknowledges it.
    pub(super) fn apply(&mut self, items: Vec<Item>) {
        let mut open = self.open();
        for item in items {
            match item {
                Item::Chunk { chunk, release, fill } => self.chunk(&mut open, chunk, release, fill),
                Item::Line { release, instance, stream, time, bytes } => {
                    let source = Source { instance, release };
                    let mut splitter = Splitter::default();
                    let (max, time) = (self.config.max_line as usize, time.as_microsecond());
                    let gaps = &mut self.gaps;
                    let mut emit = |l: &[u8], cut: bool| {
                        put(&mut open.builder, gaps, source, stream, time, l, cut);
                    };
                    splitter.feed(&bytes, max, &mut emit);
                    if !splitter.finish(max, &mut emit) && bytes.is_empty() {
                        emit(b"", false);
                    }
                }
                Item::Late { instance, release, lines } => self.late(&mut open, instance, release, lines),
                Item::Finish(instance) => self.finish_where(&mut open, |k, _| instance.is_none_or(|i| k.instance == i)),
                Item::Gone(instance) => {
                    self.finish_where(&mut open, |k, _| k.instance == instance);
                    self.close(&mut open);
                    self.feeds.retain(|k, _| k.instance != instance);
                    self.dep.shared().kept.remove(&instance);
                    self.surplus.retain(|(i, _), _| *i != instance);
                    self.noted.retain(|k, _| k.instance != instance);
                }
                Item::Lost { bytes, reason } => self.gaps.push((0, format!("{bytes} bytes: {reason}"))),
            }
            if open.builder.len() >= FRAME {
                self.close(&mut open);
            }
        }
        let now = Instant::now();
        self.finish_where(&mut open, |_, f| now >= f.fed + IDLE);
        self.close(&mut open);
    }

    fn open(&self) -> Open {
        Open {
            builder: Builder::new(self.next, 4096).masked(self.masks.get().cloned()),
            touched: Vec::new(),
            chunks: Vec::new(),
        }
    }

    fn chunk(
        &mut self,
        open: &mut Open,
        chunk: OutputChunk,
        release: ReleaseNo,
        fill: Option<Vec<(Timestamp, Bytes)>>,
    ) {
        if self.knows(&chunk) {
            open.chunks.push(chunk);
            return;
        }
        let key = key_of(&chunk);
        let time = chunk.time.as_microsecond();
        let source = Source { instance: Some(chunk.instance), release };
        let max = self.config.max_line as usize;
        let filled = self.filled(chunk.instance, chunk.stream);
        if !self.feeds.contains_key(&key) {
            // A former life of the same stream says no more.
            let former = |k: &Key| {
                k.instance == key.instance && k.stream == key.stream && k.process == key.process && k.life < key.life
            };
            self.finish_where(open, |k, _| former(k));
            self.feeds.retain(|k, _| !former(k));
        }
        let begin = begin_of(&chunk);
        if let Some(feed) = self.feeds.get(&key).filter(|f| f.end < begin) {
            // Offsets count every byte of the process, so this is a loss that nobody told of.
            self.gaps.push((0, format!("{} bytes of output never arrived", begin - feed.end)));
        }
        if let Some(gap) = &chunk.gap_before {
            self.fill(open, &key, source, begin, gap, fill);
        }
        let feed = self.feeds.entry(key.clone()).or_insert_with(|| Feed::new(chunk.offset, 0));
        // The engine's log goes on over a container's lives, and so does how far it was read.
        feed.filled = feed.filled.max(filled);
        let known = usize::try_from(feed.end.saturating_sub(chunk.offset)).unwrap_or(usize::MAX);
        let bytes = chunk.bytes.get(known..).unwrap_or_default();
        (feed.release, feed.time, feed.fed) = (release, time, Instant::now());
        feed.end = chunk.offset + chunk.bytes.len() as u64;
        let gaps = &mut self.gaps;
        feed.splitter.feed(bytes, max, |l, cut| put(&mut open.builder, gaps, source, key.stream, time, l, cut));
        touch(&mut open.touched, key);
        open.chunks.push(chunk);
    }

    /// Puts what the engine's log had for a gap before the chunk that comes behind it.
    fn fill(
        &mut self,
        open: &mut Open,
        key: &Key,
        source: Source,
        begin: u64,
        gap: &OutputGap,
        fill: Option<Vec<(Timestamp, Bytes)>>,
    ) {
        let (since, until) = (gap.since.as_microsecond(), gap.until.as_microsecond());
        let max = self.config.max_line as usize;
        let done = self.filled(key.instance, key.stream);
        let same = |k: &&Key| k.instance == key.instance && k.stream == key.stream && k.life == key.life;
        let alone = self.feeds.keys().filter(same).all(|k| k == key);
        let feed = self.feeds.entry(key.clone()).or_insert_with(|| Feed::new(begin, source.release));
        // Init moves a line that is not finished into the log, also when we had it already without init knowing.
        feed.splitter.forget_last(usize::try_from(feed.end.saturating_sub(begin)).unwrap_or(usize::MAX));
        let mut lines = fill.unwrap_or_default();
        lines.retain(|(time, _)| time.as_microsecond() > done);
        let found: u64 = lines.iter().map(|(_, line)| line.len() as u64 + 1).sum();
        let surplus = self.surplus.entry((key.instance, key.stream)).or_insert(0);
        let available = if done >= until { *surplus } else { found };
        *surplus = available.saturating_sub(gap.bytes);
        let missing = gap.bytes.saturating_sub(available);
        // Half of it was brought in by a former agent: how much is not known.
        let resumed = done >= since && done < until;
        if missing > 0 || !alone || done >= until {
            // The log's next line does not (surely) go on with ours.
            self.finish_where(open, |k, _| k == key);
        }
        if missing > 0 && !resumed {
            let reason = format!("{missing} bytes were written while no agent ran, and the engine's log lost them");
            self.gaps.push((0, reason));
        }
        let mut last = None;
        for (time, line) in lines {
            let time = time.as_microsecond();
            // Only between two times: a frame's note says 'filled up to here'.
            if open.builder.len() >= FRAME
                && let Some(filled) = last.filter(|l| *l < time)
            {
                if let Some(feed) = self.feeds.get_mut(key) {
                    feed.filled = filled;
                }
                touch(&mut open.touched, key.clone());
                self.close(open);
            }
            let Some(feed) = self.feeds.get_mut(key) else { return };
            let gaps = &mut self.gaps;
            let mut emit = |l: &[u8], cut: bool| put(&mut open.builder, gaps, source, key.stream, time, l, cut);
            feed.splitter.feed(line.strip_suffix(b"\n").unwrap_or(&line), max, &mut emit);
            feed.splitter.feed(b"\n", max, &mut emit);
            last = Some(time);
        }
        if let Some(feed) = self.feeds.get_mut(key) {
            // The engine stamps a line when it reads it, a little after init wrote it.
            feed.filled = until.max(last.unwrap_or(0)).max(feed.filled);
        }
    }

    /// Lines that init wrote to the engine's log and never could tell of: nothing else is there without a mark. The time
    /// up to which the log was read is kept, so that each comes in once.
    fn late(&mut self, open: &mut Open, instance: InstanceId, release: ReleaseNo, lines: Vec<Logged>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let done = self.filled(instance, stream);
            let new = |l: &&Logged| l.1 == (stream == Stream::Stderr) && l.0.as_microsecond() > done;
            let Some(last) = lines.iter().filter(new).map(|l| l.0.as_microsecond()).max() else { continue };
            let newest =
                self.feeds.keys().filter(|k| k.instance == instance && k.stream == stream).max_by_key(|k| k.life);
            let key = newest.cloned().unwrap_or_else(|| Key {
                instance,
                stream,
                process: sigil_init::MAIN.to_owned(),
                life: 0,
            });
            let max = self.config.max_line as usize;
            let source = Source { instance: Some(instance), release };
            self.finish_where(open, |k, _| *k == key);
            for (time, _, line) in lines.iter().filter(new) {
                let gaps = &mut self.gaps;
                let mut emit = |l: &[u8], cut: bool| {
                    put(&mut open.builder, gaps, source, stream, time.as_microsecond(), l, cut);
                };
                let mut splitter = Splitter::default();
                splitter.feed(line.strip_suffix(b"\n").unwrap_or(line), max, &mut emit);
                splitter.feed(b"\n", max, &mut emit);
            }
            let feed = self.feeds.entry(key.clone()).or_insert_with(|| Feed::new(0, release));
            (feed.filled, feed.time) = (last, feed.time.max(last));
            touch(&mut open.touched, key);
        }
    }

    fn finish_where(&mut self, open: &mut Open, mut which: impl FnMut(&Key, &Feed) -> bool) {
        let max = self.config.max_line as usize;
        for (key, feed) in &mut self.feeds {
            if feed.splitter.partial().is_empty() || !which(key, feed) {
                continue;
            }
            let source = Source { instance: Some(key.instance), release: feed.release };
            let gaps = &mut self.gaps;
            let time = feed.time;
            feed.splitter.finish(max, |l, cut| put(&mut open.builder, gaps, source, key.stream, time, l, cut));
            touch(&mut open.touched, key.clone());
        }
    }

    /// Writes the frame, publishes it, acknowledges, and seals a block when there is enough.
    fn close(&mut self, open: &mut Open) {
        let Open { mut builder, touched, chunks } = std::mem::replace(open, self.open());
        let notes: Vec<Note> = touched.into_iter().filter_map(|key| self.note(key)).collect();
        for note in &notes {
            builder.note(note);
        }
        let lines = builder.count();
        if lines == 0 {
            // An acknowledged loss must be known to the next agent, though no reader sees it before the next line.
            for (lost, reason) in self.gaps.iter().skip(self.gaps_kept) {
                builder.gap(*lost, reason);
            }
        }
        if builder.is_empty() {
            acknowledge(chunks);
            return;
        }
        let frame = builder.finish();
        match self.write(&frame) {
            Ok(()) => {
                let kept: Vec<_> = notes.iter().map(|n| (n.key.instance, n.time)).collect();
                for mut note in notes {
                    if let (true, Some(old)) = (note.appends, self.noted.get_mut(&note.key)) {
                        let mut partial = std::mem::take(&mut old.partial);
                        partial.append(&mut note.partial);
                        note.partial = partial;
                    }
                    self.noted.insert(note.key.clone(), note);
                }
                // Lines carry the gaps before them; what came behind the last line is still to be kept.
                self.gaps_kept = if lines == 0 { self.gaps.len() } else { 0 };
                acknowledge(chunks);
                // Before readers see the line: what the ring may drop must be in a segment.
                self.next = frame.meta.next().max(self.next);
                self.seal_if_due();
                self.publish(frame, lines, &kept);
                self.forget_old_streams();
            }
            Err(e) => {
                if !self.failing {
                    tracing::error!(deployment = %self.dep.id, error = %e, "log lines cannot be written and are lost");
                }
                self.failing = true;
                if lines > 0 {
                    // The gaps that the frame carried are still to be told.
                    let mut reader = Reader::new(frame.bytes.clone());
                    while let Some(record) = reader.next() {
                        if let Record::Gap { lost, reason, .. } = record {
                            self.gaps.push((lost, reason.to_owned()));
                        }
                    }
                    self.gaps_kept = 0;
                }
                self.lose(u64::from(lines), &format!("could not be written: {e}"));
                // A full disk must not stop a server: what cannot be kept is counted, not held.
                acknowledge(chunks);
            }
        }
        *open = self.open();
    }

    fn lose(&mut self, lines: u64, reason: &str) {
        self.dep.shared().dropped += lines;
        match self.gaps.last_mut() {
            Some((lost, why)) if why == reason => *lost += lines,
            _ if lines > 0 => self.gaps.push((lines, reason.to_owned())),
            _ => {}
        }
    }

    /// A stream's position, with only what is new of its unfinished line.
    fn note(&self, key: Key) -> Option<Note> {
        let feed = self.feeds.get(&key)?;
        // an unfinished line is kept on the disk, too
        let masked = self.masks.get().and_then(|masks| masks.0(feed.splitter.partial()));
        let partial = masked.as_deref().unwrap_or(feed.splitter.partial());
        let old = self.noted.get(&key).map(|n| n.partial.as_slice());
        let suffix = old.and_then(|old| partial.strip_prefix(old));
        Some(Note {
            key,
            end: feed.end,
            time: feed.time,
            filled: feed.filled,
            appends: suffix.is_some(),
            partial: suffix.unwrap_or(partial).to_vec(),
        })
    }

    fn write(&mut self, frame: &Frame) -> std::io::Result<()> {
        self.make_room(frame.bytes.len() as u64);
        loop {
            let (noted, gaps) = (&self.noted, &self.gaps[..self.gaps_kept.min(self.gaps.len())]);
            let snapshot = || {
                let mut builder = Builder::new(0, 256);
                gaps.iter().for_each(|(lost, reason)| builder.gap(*lost, reason));
                noted.values().for_each(|note| builder.note(&Note { appends: false, ..note.clone() }));
                builder.finish()
            };
            match self.disk.append(frame, snapshot) {
                Ok(()) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(deployment = %self.dep.id, "log lines can be written again");
                    }
                    return Ok(());
                }
                Err(e) if is_full(&e) && self.drop_oldest() => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn publish(&mut self, frame: Frame, lines: u32, kept: &[(InstanceId, i64)]) {
        if lines > 0 {
            let entry =
                Entry { first: frame.meta.first, count: lines, cost: frame.bytes.len() + OVERHEAD, value: frame };
            let mut shared = self.dep.shared();
            if let Err(e) = shared.ring.push(entry) {
                tracing::error!(deployment = %self.dep.id, error = %e, "a log frame came out of order");
            }
            shared.next = self.next;
            for (instance, time) in kept {
                let newest = shared.kept.entry(*instance).or_insert(*time);
                *newest = (*newest).max(*time);
            }
            drop(shared);
            self.dep.wake();
        }
    }

    /// The ring must hold what no segment does, so a small ring means small blocks.
    fn seal_if_due(&mut self) {
        let target = BLOCK.min(ring_budget(&self.config) / 2);
        if self.disk.unsealed() < target {
            return;
        }
        let segment_max = (self.config.max_bytes / 16).clamp(64 << 10, 32 << 20);
        loop {
            match self.disk.seal(segment_max) {
                Ok(sealed) => {
                    if let Some(sealed) = sealed {
                        self.dep.shared().add(sealed);
                        self.make_room(0);
                    }
                    return;
                }
                Err(e) if is_full(&e) && self.drop_oldest() => {}
                Err(e) => {
                    let lines = self.disk.give_up();
                    tracing::error!(deployment = %self.dep.id, error = %e, lines, "a log block cannot be written");
                    self.dep.shared().dropped += lines;
                    return;
                }
            }
        }
    }

    fn make_room(&mut self, incoming: u64) {
        let keep = self.config.max_bytes.saturating_sub(self.disk.head_len() + incoming);
        while self.dep.shared().segment_bytes() > keep && self.drop_oldest() {}
    }

    /// Deletes the oldest segment; `false` when there is none.
    fn drop_oldest(&mut self) -> bool {
        let (path, last) = {
            let mut shared = self.dep.shared();
            let Some(segment) = shared.segments.pop_front() else { return false };
            shared.dropped += segment.blocks.iter().map(|b| u64::from(b.count)).sum::<u64>();
            (segment.path, shared.segments.is_empty())
        };
        if last {
            self.disk.current_gone();
        }
        if let Err(e) = std::fs::remove_file(&path) {
            tracing::warn!(file = %path.display(), error = %e, "an old log segment stays");
        }
        true
    }

    fn forget_old_streams(&mut self) {
        if self.feeds.len() <= STREAMS {
            return;
        }
        let mut times: Vec<i64> = self.feeds.values().map(|f| f.time).collect();
        let at = times.len() - STREAMS / 2;
        let (_, limit, _) = times.select_nth_unstable(at);
        let limit = *limit;
        self.feeds.retain(|_, f| f.time >= limit || !f.splitter.partial().is_empty());
        let feeds = &self.feeds;
        self.noted.retain(|k, _| feeds.contains_key(k));
    }
}

impl Feed {
    fn new(end: u64, release: ReleaseNo) -> Self {
        Self { release, splitter: Splitter::default(), end, time: 0, filled: 0, fed: Instant::now() }
    }
}

/// Bytes the ring of a deployment may hold.
pub(super) fn ring_budget(config: &LogsConfig) -> usize {
    usize::try_from(config.ring_bytes).unwrap_or(usize::MAX)
}

fn is_full(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

fn key_of(chunk: &OutputChunk) -> Key {
    Key { instance: chunk.instance, stream: chunk.stream, process: chunk.process.clone(), life: chunk.life }
}

/// Where the chunk, or the gap before it, begins.
fn begin_of(chunk: &OutputChunk) -> u64 {
    chunk.offset.saturating_sub(chunk.gap_before.as_ref().map_or(0, |g| g.bytes))
}

fn put(
    b: &mut Builder,
    gaps: &mut Vec<(u64, String)>,
    source: Source,
    stream: Stream,
    time: i64,
    line: &[u8],
    cut: bool,
) {
    for (lost, reason) in gaps.drain(..) {
        b.gap(lost, &reason);
    }
    b.line(source, stream, time, line, cut);
}

fn touch(touched: &mut Vec<Key>, key: Key) {
    if !touched.contains(&key) {
        touched.push(key);
    }
}

fn acknowledge(chunks: Vec<OutputChunk>) {
    for chunk in chunks {
        chunk.ack();
    }
}
