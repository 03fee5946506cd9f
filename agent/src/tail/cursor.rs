//! A reader's place in the logs of some deployments. Nothing is queued for a reader: it pulls, and what it holds is
//! one piece (a block or some frames) a deployment, however far behind it is.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use regex::bytes::Regex;
use sigil_core::model::{DeploymentId, InstanceId, Stream};
use sigil_core::ring::lost;
use tokio::sync::Notify;

use super::frame::{Reader, Record, stream_code};
use super::store::{Dep, Find, Unit};
use super::worker::Common;
use super::{Batch, Gap, Line, Query, Result, TailError};

/// A batch is given out at this many lines or bytes.
const LINES: usize = 1_000;
const BYTES: usize = 256 << 10;
/// Pieces of all deployments together, bytes (each at least one frame).
const PIECES: usize = 4 << 20;
/// Most lines that `tail` can pick out of several deployments or through a filter: their places are held in memory.
pub(super) const TAIL_MAX: u64 = 1_000_000;

/// Which lines a reader wants.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    streams: u8,
    times: (i64, i64),
    grep: Option<Regex>,
    /// Instances that run now, when only the others are wanted.
    running: Option<Arc<HashSet<InstanceId>>>,
    instance: Option<InstanceId>,
}

impl Filter {
    pub(super) fn new(query: &Query, running: impl FnOnce() -> HashSet<InstanceId>) -> Result<Self> {
        let grep = query.grep.as_deref().filter(|g| !g.is_empty()).map(|pattern| {
            Regex::new(pattern).map_err(|e| TailError::BadPattern { pattern: pattern.to_owned(), why: e.to_string() })
        });
        Ok(Self {
            streams: mask(&query.streams),
            times: (
                query.since.map_or(i64::MIN, Timestamp::as_microsecond),
                query.until.map_or(i64::MAX, Timestamp::as_microsecond),
            ),
            grep: grep.transpose()?,
            running: query.previous.then(|| Arc::new(running())),
            instance: None,
        })
    }

    /// What one instance (or all) printed.
    pub(super) fn output(instance: Option<InstanceId>) -> Self {
        let streams = mask(&[Stream::Stdout, Stream::Stderr]);
        Self { streams, times: (i64::MIN, i64::MAX), grep: None, running: None, instance }
    }

    fn wants(&self, time: i64, instance: Option<InstanceId>, stream: Stream, bytes: &[u8]) -> bool {
        self.streams & (1 << stream_code(stream)) != 0
            && (self.times.0..=self.times.1).contains(&time)
            && self.instance.is_none_or(|i| instance == Some(i))
            && self.running.as_ref().is_none_or(|running| instance.is_some_and(|i| !running.contains(&i)))
            && self.grep.as_ref().is_none_or(|g| g.is_match(bytes))
    }

    /// Takes every line.
    fn is_open(&self) -> bool {
        self.streams == mask(&[])
            && self.times == (i64::MIN, i64::MAX)
            && self.grep.is_none()
            && self.running.is_none()
            && self.instance.is_none()
    }
}

fn mask(streams: &[Stream]) -> u8 {
    if streams.is_empty() { 0x0F } else { streams.iter().fold(0, |m, s| m | (1 << stream_code(*s))) }
}

/// One deployment of a cursor.
#[derive(Debug)]
struct Part {
    dep: Arc<Dep>,
    /// The next line to look at; `None` until the beginning is found.
    at: Option<u64>,
    resume: Option<u64>,
    /// Lines from here on are not wanted (without `follow`).
    end: u64,
    piece: Option<Piece>,
    /// The next wanted line, not given out yet, and the gaps before it.
    head: Option<Line>,
    gaps: Vec<Gap>,
    /// The position that the reader was told last.
    told: Option<u64>,
    done: bool,
}

#[derive(Debug)]
struct Piece {
    reader: Reader,
    next: u64,
}

/// A place in the logs of some deployments.
#[derive(Debug)]
pub struct Cursor {
    parts: Vec<Part>,
    /// Parts with a line in `head`, by its time.
    order: BinaryHeap<Reverse<(Timestamp, DeploymentId, usize)>>,
    filter: Arc<Filter>,
    tail: Option<u64>,
    follow: bool,
    started: bool,
    woken: Arc<Notify>,
    common: Arc<Common>,
    /// Being filled; kept here so that dropping a `next` that waits loses nothing.
    batch: Batch,
    bytes: usize,
}

impl Cursor {
    pub(super) fn new(deps: Vec<Arc<Dep>>, query: &Query, filter: Filter, common: Arc<Common>) -> Result<Self> {
        let woken = Arc::new(Notify::new());
        if let Some(n) = query.tail.filter(|n| *n > TAIL_MAX && (deps.len() > 1 || !filter.is_open())) {
            return Err(TailError::TooMany(n));
        }
        let parts = deps
            .into_iter()
            .map(|dep| {
                if query.follow {
                    dep.subscribe(&woken);
                }
                let resume = query.resume.iter().find(|(id, _)| *id == dep.id).map(|(_, seq)| *seq);
                Part {
                    dep,
                    at: None,
                    resume,
                    end: 0,
                    piece: None,
                    head: None,
                    gaps: Vec::new(),
                    told: None,
                    done: false,
                }
            })
            .collect();
        Ok(Self {
            parts,
            order: BinaryHeap::new(),
            filter: Arc::new(filter),
            tail: query.tail,
            follow: query.follow,
            started: false,
            woken,
            common,
            batch: Batch::default(),
            bytes: 0,
        })
    }

    /// The next lines (at most about 1,000 or 256 KiB), merged by time; `None` at the end (with `follow` only when
    /// every deployment was removed, `until` has passed, or the agent stops). Cancel-safe: what was found is kept for the next call.
    /// A reader that lags is told what it lost by a [`Gap`].
    pub async fn next(&mut self) -> Result<Option<Batch>> {
        if !self.started {
            self.begin().await?;
            self.started = true;
        }
        loop {
            for i in 0..self.parts.len() {
                self.look(i).await?;
            }
            while let Some(Reverse((_, _, i))) = self.order.pop() {
                let part = &mut self.parts[i];
                self.batch.gaps.append(&mut part.gaps);
                if let Some(line) = part.head.take() {
                    self.bytes += line.bytes.len();
                    self.batch.lines.push(line);
                }
                // Only what is at hand: when a file must be read or a part is at its end, the others wait for it above.
                self.step(i);
                if self.batch.lines.len() >= LINES || self.bytes >= BYTES {
                    return Ok(self.give());
                }
                let part = &self.parts[i];
                if part.head.is_none() && !part.done {
                    break;
                }
            }
            let more = self
                .parts
                .iter()
                .any(|p| !p.done && (p.head.is_some() || p.at.is_some_and(|at| p.more(at, self.follow))));
            if more {
                continue;
            }
            for part in &mut self.parts {
                self.batch.gaps.append(&mut part.gaps);
            }
            if !self.batch.lines.is_empty() || !self.batch.gaps.is_empty() {
                return Ok(self.give());
            }
            if !self.follow || self.parts.iter().all(|p| p.dep.shared().forgotten) {
                return Ok(None);
            }
            let until = self.filter.times.1;
            tokio::select! {
                () = self.woken.notified() => {}
                () = sleep_until(until) => return Ok(None),
                () = self.common.stop.cancelled() => return Ok(None),
            }
        }
    }

    fn give(&mut self) -> Option<Batch> {
        let mut batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        for part in &mut self.parts {
            // Behind what was looked at, wanted or not; but never past a gap that is still to be told.
            let passed = match (part.gaps.first(), &part.head, part.at) {
                (Some(gap), _, _) => gap.after_seq,
                (None, Some(line), _) => line.seq - 1,
                (None, None, Some(at)) => at - 1,
                (None, None, None) => continue,
            };
            if part.told.replace(passed) != Some(passed) {
                batch.positions.push((part.dep.id, passed));
            }
        }
        Some(batch)
    }

    /// Makes part `i` have its next wanted line at hand, reading files where needed.
    async fn look(&mut self, i: usize) -> Result<()> {
        loop {
            self.step(i);
            let (follow, times, budget) = (self.follow, self.filter.times, PIECES / self.parts.len().max(1));
            let part = &mut self.parts[i];
            let Some(at) = part.at else { return Ok(()) };
            if part.head.is_some() || part.done {
                return Ok(());
            }
            if !part.more(at, follow) {
                part.done = !follow;
                return Ok(());
            }
            let found = part.dep.shared().find(at, budget.min(BYTES), times);
            match found {
                Find::End => return Ok(()),
                Find::Frames(frames, next) => {
                    part.piece = Some(Piece { reader: Reader::over(frames), next });
                    // A reader that keeps up with a flood and wants none of it must let others run.
                    tokio::task::yield_now().await;
                }
                Find::Lost(lost) => {
                    part.lose(lost.from, lost.to, "no longer kept");
                }
                Find::Block(path, block) => {
                    let read = tokio::task::spawn_blocking(move || block.read(&path)).await;
                    match read.map_err(|e| TailError::Io(e.to_string()))? {
                        Ok(bytes) => {
                            let bytes = window(bytes, at, budget);
                            part.piece =
                                Some(Piece { next: bytes.1.unwrap_or(block.next()), reader: Reader::new(bytes.0) });
                        }
                        // Deleted between looking and reading: look again. Damaged: say so and go on.
                        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                            if part.dep.shared().first() <= at {
                                part.lose(at, block.next(), "log file is missing");
                            }
                        }
                        Err(e) => {
                            tracing::warn!(deployment = %part.dep.id, error = %e, "a log block cannot be read");
                            part.lose(at, block.next(), "damaged on disk");
                        }
                    }
                }
            }
        }
    }

    /// Goes on in the piece at hand to the next wanted line, without waiting.
    fn step(&mut self, i: usize) {
        let part = &mut self.parts[i];
        if part.head.is_some() {
            return;
        }
        let (Some(at), Some(piece)) = (&mut part.at, &mut part.piece) else { return };
        let deployment = part.dep.id;
        while let Some(record) = piece.reader.next() {
            match record {
                Record::Line { seq, time, source, stream, cut, bytes } => {
                    if seq < *at {
                        continue;
                    }
                    if seq >= part.end && !self.follow {
                        part.done = true;
                        part.piece = None;
                        return;
                    }
                    *at = seq + 1;
                    if !self.filter.wants(time, source.instance, stream, bytes) {
                        continue;
                    }
                    let line = Line {
                        time: Timestamp::from_microsecond(time).unwrap_or_default(),
                        deployment,
                        instance: source.instance,
                        release: source.release,
                        stream,
                        seq,
                        // A copy: a line must not hold its whole block in memory.
                        bytes: Bytes::copy_from_slice(bytes),
                        cut,
                    };
                    self.order.push(Reverse((line.time, deployment, i)));
                    part.head = Some(line);
                    return;
                }
                Record::Gap { before, lost, reason } if before >= *at => {
                    part.gaps.push(Gap { deployment, lost, after_seq: before - 1, reason: reason.to_owned() });
                }
                Record::Gap { .. } | Record::Note(_) => {}
            }
        }
        *at = piece.next.max(*at);
        part.piece = None;
    }

    /// Finds where to begin.
    async fn begin(&mut self) -> Result<()> {
        let config = self.common.config();
        for part in &mut self.parts {
            let (dep, config) = (Arc::clone(&part.dep), config.clone());
            let loaded = tokio::task::spawn_blocking(move || dep.load(&config)).await;
            loaded.map_err(|e| TailError::Io(e.to_string()))?.map_err(|e| TailError::Io(e.to_string()))?;
        }
        let mut first = Vec::new();
        for part in &mut self.parts {
            let shared = part.dep.shared();
            part.end = shared.next;
            first.push(shared.first());
        }
        let tail = match self.tail {
            Some(n) if self.parts.len() == 1 && self.filter.is_open() => {
                Some(vec![self.parts[0].end.saturating_sub(n)])
            }
            Some(n) => {
                let deps: Vec<_> = self.parts.iter().map(|p| Arc::clone(&p.dep)).collect();
                let ends: Vec<_> = self.parts.iter().map(|p| p.end).collect();
                let filter = Arc::clone(&self.filter);
                let found = tokio::task::spawn_blocking(move || newest(&deps, &ends, &filter, n)).await;
                Some(found.map_err(|e| TailError::Io(e.to_string()))?)
            }
            None => None,
        };
        for (i, (part, first)) in self.parts.iter_mut().zip(first).enumerate() {
            part.at = Some(match (part.resume, &tail) {
                (Some(seq), _) if seq >= part.end => {
                    let reason = "the log began anew".to_owned();
                    part.gaps.push(Gap { deployment: part.dep.id, lost: 0, after_seq: 0, reason });
                    first
                }
                (Some(seq), _) => {
                    if let Some(lost) = lost(seq + 1, first) {
                        let reason = "no longer kept".to_owned();
                        part.gaps.push(Gap { deployment: part.dep.id, lost: lost.count(), after_seq: seq, reason });
                    }
                    (seq + 1).max(first)
                }
                (None, Some(tail)) => tail.get(i).copied().unwrap_or(first).max(first),
                (None, None) => first,
            });
        }
        Ok(())
    }
}

impl Part {
    /// Is there anything to look at from `at` on?
    fn more(&self, at: u64, follow: bool) -> bool {
        if follow { at < self.dep.shared().next } else { at < self.end }
    }

    fn lose(&mut self, from: u64, to: u64, reason: &str) {
        self.gaps.push(Gap {
            deployment: self.dep.id,
            lost: to - from,
            after_seq: from - 1,
            reason: reason.to_owned(),
        });
        self.at = Some(to);
    }
}

/// The frames of a block from line `at` on, about `budget` bytes of them, and the line after them when frames are left.
fn window(bytes: Bytes, at: u64, budget: usize) -> (Bytes, Option<u64>) {
    if bytes.len() <= budget {
        return (bytes, None);
    }
    let (mut from, mut to) = (None, 0);
    while let Some(meta) = super::frame::peek(&bytes[to..]) {
        if from.is_some_and(|from| to - from >= budget) {
            let from = from.unwrap_or_default();
            return (Bytes::copy_from_slice(&bytes[from..to]), Some(meta.0.first));
        }
        if from.is_none() && meta.0.next() > at {
            from = Some(to);
        }
        to += meta.1;
    }
    (Bytes::copy_from_slice(&bytes[from.unwrap_or(to)..]), None)
}

async fn sleep_until(micros: i64) {
    if micros == i64::MAX {
        return std::future::pending().await;
    }
    let left = micros.saturating_sub(Timestamp::now().as_microsecond());
    // A little later than the bound: a line of the last moment is still on its way.
    let left = std::time::Duration::from_micros(u64::try_from(left).unwrap_or(0)) + super::writer::IDLE;
    tokio::time::sleep(left).await;
}

/// The beginnings from which the newest `n` wanted lines of all deployments follow. Blocks the thread.
fn newest(deps: &[Arc<Dep>], ends: &[u64], filter: &Filter, n: u64) -> Vec<u64> {
    let n = usize::try_from(n).unwrap_or(usize::MAX);
    let mut heap: BinaryHeap<Reverse<(i64, usize, u64)>> = BinaryHeap::new();
    for (i, (dep, end)) in deps.iter().zip(ends).enumerate() {
        // Within a deployment the order is the sequence's; a clock that stepped back must not tear it.
        let mut ceiling = i64::MAX;
        let mut found = 0;
        let units = dep.shared().units();
        for unit in units {
            let (min, max) = unit.times();
            let full = heap.len() >= n && heap.peek().is_some_and(|Reverse((oldest, _, _))| max.min(ceiling) < *oldest);
            if found >= n || full {
                break;
            }
            if max < filter.times.0 || min > filter.times.1 {
                continue;
            }
            let mut wanted: VecDeque<(i64, u64)> = VecDeque::new();
            each(&unit, *end, filter, |seq, time, _| {
                if wanted.len() >= n {
                    wanted.pop_front();
                }
                wanted.push_back((time, seq));
            });
            for (time, seq) in wanted.into_iter().rev() {
                ceiling = ceiling.min(time);
                heap.push(Reverse((ceiling, i, seq)));
                found += 1;
                if heap.len() > n {
                    heap.pop();
                }
            }
        }
    }
    let mut starts = ends.to_vec();
    for Reverse((_, i, seq)) in heap {
        starts[i] = starts[i].min(seq);
    }
    starts
}

/// The last `n` wanted lines of one deployment, oldest first. Blocks the thread.
pub(super) fn last(dep: &Dep, filter: &Filter, n: usize) -> Vec<Line> {
    let (units, end) = {
        let shared = dep.shared();
        (shared.units(), shared.next)
    };
    let mut out: VecDeque<Line> = VecDeque::new();
    for unit in units {
        let mut lines: VecDeque<Line> = VecDeque::new();
        let room = n - out.len();
        if room == 0 {
            break;
        }
        each(&unit, end, filter, |seq, time, record| {
            let Record::Line { source, stream, cut, bytes, .. } = record else { return };
            if lines.len() >= room {
                lines.pop_front();
            }
            lines.push_back(Line {
                time: Timestamp::from_microsecond(time).unwrap_or_default(),
                deployment: dep.id,
                instance: source.instance,
                release: source.release,
                stream,
                seq,
                bytes: Bytes::copy_from_slice(bytes),
                cut,
            });
        });
        while let Some(line) = lines.pop_back() {
            out.push_front(line);
        }
    }
    out.into()
}

fn each(unit: &Unit, end: u64, filter: &Filter, mut take: impl FnMut(u64, i64, Record<'_>)) {
    let bytes = match unit.read() {
        Ok(bytes) => bytes,
        // Deleted meanwhile, or damaged: the reader that comes by there reports it.
        Err(e) => return tracing::debug!(error = %e, "a log block was passed over"),
    };
    let mut reader = Reader::new(bytes);
    while let Some(record) = reader.next() {
        if let Record::Line { seq, time, source, stream, bytes, .. } = record
            && seq < end
            && filter.wants(time, source.instance, stream, bytes)
        {
            take(seq, time, record);
        }
    }
}
