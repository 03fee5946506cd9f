//! Log lines in the console: bounded, filtered, searched. Knows nothing of screens.
//!
//! Filtering and searching a million lines takes longer than a key may wait. So both go in slices, the newest lines first:
//! [`Buffer::work`] does one, and the caller comes back while it says that there is more.

mod level;
mod sieve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};

use jiff::Timestamp;

pub use level::{Level, level};
pub use sieve::{Pattern, Sieve, Which};

use crate::link::{LogBatch, LogGap, LogLine};

/// Bytes of one deployment's lines that are kept.
pub const STREAM: usize = 64 << 20;
/// Bytes of all lines that are kept.
pub const ALL: usize = 256 << 20;
/// What is dropped at once when there is too much.
const SWEEP: usize = 4 << 20;
/// What an entry counts beside its text.
const OVERHEAD: usize = 96;
/// Bytes of lines that one slice of filtering or searching looks at.
const SLICE: usize = 2 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A server's line.
    Line,
    /// A mark of the agent: started, exited, released.
    Mark,
    /// Lines that are missing.
    Gap,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Counts up, and never changes.
    pub number: u64,
    /// When; a gap's is that of the line before it.
    pub time: Option<Timestamp>,
    /// Place in [`Buffer::names`].
    pub name: u16,
    /// What it is.
    pub kind: Kind,
    /// From standard error.
    pub stderr: bool,
    /// How loud.
    pub level: Level,
    /// It goes on in the next.
    pub cut: bool,
    /// It has escape sequences.
    escapes: bool,
    /// As it came.
    pub text: Box<[u8]>,
}

impl Entry {
    /// Its text without colours, which must not part a word from a pattern.
    pub fn plain<'e>(&'e self, scratch: &'e mut Vec<u8>) -> &'e [u8] {
        if !self.escapes {
            return &self.text;
        }
        scratch.clear();
        let mut rest = &*self.text;
        while let Some(at) = memchr::memchr(0x1b, rest) {
            scratch.extend_from_slice(&rest[..at]);
            rest = &rest[at..];
            let skip = super::clean::sgr_len(rest).unwrap_or_else(|| {
                scratch.push(0x1b);
                1
            });
            rest = &rest[skip..];
        }
        scratch.extend_from_slice(rest);
        scratch
    }

    fn size(&self) -> usize {
        self.text.len() + OVERHEAD
    }
}

/// Entries of one kind by number, found in slices from the newest on.
#[derive(Debug, Default)]
struct Found {
    /// In order.
    numbers: VecDeque<u64>,
    /// Entries below this number have not been looked at; 0: all have.
    below: u64,
}

impl Found {
    /// Begins anew with the entries below a number.
    fn begin(&mut self, below: u64) {
        self.numbers.clear();
        self.below = below;
    }

    fn done(&self) -> bool {
        self.below == 0
    }

    /// Looks at older entries, as many as the slice has bytes for.
    fn slice(&mut self, entries: &VecDeque<Entry>, wants: &mut dyn FnMut(&Entry) -> bool) {
        let (mut looked, mut at) = (0, entries.partition_point(|e| e.number < self.below));
        while at > 0 && looked < SLICE {
            at -= 1;
            let entry = &entries[at];
            looked += entry.size();
            if wants(entry) {
                self.numbers.push_front(entry.number);
            }
            self.below = entry.number;
        }
        if at == 0 {
            self.below = 0;
        }
    }

    /// Forgets entries that are gone.
    fn forget(&mut self, entries: &VecDeque<Entry>, from_the_front: bool) {
        let first = entries.front().map_or(u64::MAX, |e| e.number);
        while self.numbers.front().is_some_and(|n| *n < first) {
            self.numbers.pop_front();
        }
        if !from_the_front {
            self.numbers.retain(|n| entries.binary_search_by_key(n, |e| e.number).is_ok());
        }
    }
}

/// Lines of one watch.
#[derive(Debug, Default)]
pub struct Buffer {
    /// By number, which has gaps where lines were dropped.
    entries: VecDeque<Entry>,
    /// Number of the next entry.
    next: u64,
    bytes: usize,
    names: Vec<String>,
    /// Bytes of each name.
    sizes: Vec<usize>,
    sieve: Sieve,
    /// Entries that are shown, unless all are.
    wanted: Found,
    search: Option<Pattern>,
    /// Of those that are shown, the ones that the search matches.
    hits: Found,
    /// Errors, shown or not, with their seconds.
    errors: VecDeque<(u64, i64)>,
    /// Entries that a person marked.
    bookmarks: BTreeSet<u64>,
    scratch: Vec<u8>,
    /// Entries dropped because there were too many.
    pub dropped: u64,
}

impl Buffer {
    /// An empty one with the same sieve and search.
    pub fn anew(&self) -> Self {
        Self { sieve: self.sieve.clone(), search: self.search.clone(), ..Self::default() }
    }

    /// Deployments that lines came from, in order of appearance.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Which lines are shown.
    pub fn sieve(&self) -> &Sieve {
        &self.sieve
    }

    /// Changes which lines are shown; lines are looked at again, the newest at once.
    pub fn set_sieve(&mut self, sieve: Sieve) {
        self.sieve = sieve;
        self.wanted.begin(if self.sieve.is_open() { 0 } else { self.next });
        self.hits.begin(if self.search.is_some() { self.next } else { 0 });
        self.work();
    }

    /// What is searched for.
    pub fn search(&self) -> Option<&Pattern> {
        self.search.as_ref()
    }

    /// Changes what is searched for.
    pub fn set_search(&mut self, search: Option<Pattern>) {
        self.hits.begin(if search.is_some() { self.next } else { 0 });
        self.search = search;
        self.work();
    }

    /// Looks at some more lines; whether there are more to look at.
    pub fn work(&mut self) -> bool {
        let scratch = &mut self.scratch;
        if !self.wanted.done() {
            self.wanted.slice(&self.entries, &mut |entry| self.sieve.wants(entry, scratch));
        } else if let Some(search) = &self.search
            && !self.hits.done()
        {
            let sieve = &self.sieve;
            self.hits.slice(&self.entries, &mut |entry| {
                search.wants(entry.plain(scratch)) && (sieve.is_open() || sieve.wants(entry, scratch))
            });
        }
        self.is_working()
    }

    /// Whether there are lines that were not looked at yet.
    pub fn is_working(&self) -> bool {
        !self.wanted.done() || !self.hits.done()
    }

    /// Takes a batch in.
    pub fn add(&mut self, batch: LogBatch) {
        let mut gaps = batch.gaps;
        for line in batch.lines {
            let before = |g: &LogGap| g.deployment == line.deployment && g.after_seq < line.seq;
            while let Some(at) = gaps.iter().position(before) {
                let gap = gaps.remove(at);
                self.gap(&gap, line.time);
            }
            self.line(line);
        }
        let time = self.entries.back().and_then(|e| e.time);
        for gap in gaps {
            self.gap(&gap, time);
        }
    }

    fn line(&mut self, line: LogLine) {
        let name = self.name(&line.deployment);
        let kind = if line.stream == "agent" { Kind::Mark } else { Kind::Line };
        self.push(Entry {
            number: 0,
            time: line.time,
            name,
            kind,
            stderr: line.stream == "stderr",
            level: level(&line.line),
            cut: line.cut,
            escapes: memchr::memchr(0x1b, &line.line).is_some(),
            text: line.line.into_boxed_slice(),
        });
    }

    fn gap(&mut self, gap: &LogGap, time: Option<Timestamp>) {
        let name = self.name(&gap.deployment);
        let text = match gap.lost {
            0 => format!("lines lost ({})", gap.reason),
            1 => format!("1 line lost ({})", gap.reason),
            n => format!("{} lines lost ({})", thousands(n), gap.reason),
        };
        let (text, level) = (text.into_bytes().into_boxed_slice(), Level::None);
        let (kind, number) = (Kind::Gap, 0);
        self.push(Entry { number, time, name, kind, stderr: false, level, cut: false, escapes: false, text });
    }

    fn name(&mut self, name: &str) -> u16 {
        let at = self.names.iter().position(|n| n == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.sizes.push(0);
            self.names.len() - 1
        });
        u16::try_from(at).unwrap_or(u16::MAX)
    }

    fn push(&mut self, mut entry: Entry) {
        entry.number = self.next;
        self.next += 1;
        let (size, name) = (entry.size(), usize::from(entry.name));
        if !self.sieve.is_open() || self.search.is_some() {
            let wanted = self.sieve.is_open() || self.sieve.wants(&entry, &mut self.scratch);
            if wanted && !self.sieve.is_open() {
                self.wanted.numbers.push_back(entry.number);
            }
            if wanted && self.search.as_ref().is_some_and(|s| s.wants(entry.plain(&mut self.scratch))) {
                self.hits.numbers.push_back(entry.number);
            }
        }
        if entry.level == Level::Error && entry.kind == Kind::Line {
            self.errors.push_back((entry.number, entry.time.map_or(0, |t| t.as_second())));
        }
        self.entries.push_back(entry);
        self.bytes += size;
        if let Some(bytes) = self.sizes.get_mut(name) {
            *bytes += size;
            if *bytes > STREAM {
                self.sweep(Some(name));
            }
        }
        if self.bytes > ALL {
            self.sweep(None);
        }
    }

    /// Drops the oldest entries, of one deployment or of all: some at once, so that it is seldom.
    fn sweep(&mut self, name: Option<usize>) {
        let mut freed = 0;
        let is = |entry: &Entry| name.is_none_or(|n| usize::from(entry.name) == n);
        let (sizes, count) = (&mut self.sizes, &mut self.dropped);
        let mut dropped = |entry: &Entry| {
            freed += entry.size();
            if let Some(bytes) = sizes.get_mut(usize::from(entry.name)) {
                *bytes -= entry.size();
            }
            *count += 1;
            freed < SWEEP
        };
        // most often the oldest of all are of this deployment
        let (mut more, mut from_the_front) = (true, true);
        while more && let Some(entry) = self.entries.pop_front_if(|entry| is(entry)) {
            more = dropped(&entry);
        }
        if more && !self.entries.is_empty() {
            from_the_front = false;
            self.entries.retain(|entry| {
                let drop = more && is(entry);
                if drop {
                    more = dropped(entry);
                }
                !drop
            });
        }
        self.bytes -= freed;
        let first = self.entries.front().map_or(u64::MAX, |e| e.number);
        self.wanted.forget(&self.entries, from_the_front);
        self.hits.forget(&self.entries, from_the_front);
        while self.errors.front().is_some_and(|(n, _)| *n < first) {
            self.errors.pop_front();
        }
        let gone = |n: &u64| self.entries.binary_search_by_key(n, |e| e.number).is_err();
        if !from_the_front {
            self.errors.retain(|(n, _)| !gone(n));
        }
        self.bookmarks.retain(|n| !gone(n));
    }

    /// Entries that are shown.
    pub fn len(&self) -> usize {
        if self.sieve.is_open() { self.entries.len() } else { self.wanted.numbers.len() }
    }

    /// Entries that are kept, shown or not.
    pub fn total(&self) -> usize {
        self.entries.len()
    }

    /// The number of the shown entry at a place.
    pub fn number(&self, place: usize) -> Option<u64> {
        if self.sieve.is_open() {
            self.entries.get(place).map(|e| e.number)
        } else {
            self.wanted.numbers.get(place).copied()
        }
    }

    /// The place of the first shown entry at or after a number.
    pub fn place(&self, number: u64) -> usize {
        if self.sieve.is_open() {
            self.entries.partition_point(|e| e.number < number)
        } else {
            self.wanted.numbers.partition_point(|n| *n < number)
        }
    }

    /// The shown entry at a place.
    pub fn get(&self, place: usize) -> Option<&Entry> {
        if self.sieve.is_open() {
            return self.entries.get(place);
        }
        self.find(self.wanted.numbers.get(place).copied()?)
    }

    fn find(&self, number: u64) -> Option<&Entry> {
        self.entries.get(self.entries.binary_search_by_key(&number, |e| e.number).ok()?)
    }

    /// How many lines the search matches so far.
    pub fn hits(&self) -> usize {
        self.hits.numbers.len()
    }

    /// Which of them an entry is, from 1 on.
    pub fn hit(&self, number: u64) -> Option<usize> {
        self.hits.numbers.binary_search(&number).ok().map(|at| at + 1)
    }

    /// The nearest entry that the search matches, behind or before a number; the other end's where there is none.
    pub fn near_hit(&self, number: Option<u64>, forward: bool) -> Option<(u64, bool)> {
        near(self.hits.numbers.len(), |at| self.hits.numbers[at], number, forward)
    }

    /// The same of errors that are shown.
    pub fn near_error(&self, number: Option<u64>, forward: bool) -> Option<(u64, bool)> {
        let shown = |n: u64| self.sieve.is_open() || self.wanted.numbers.binary_search(&n).is_ok();
        let (mut at, mut around) = (number, false);
        for _ in 0..self.errors.len() {
            let (found, wrapped) = near(self.errors.len(), |at| self.errors[at].0, at, forward)?;
            around |= wrapped;
            if shown(found) {
                return Some((found, around));
            }
            at = Some(found);
        }
        None
    }

    /// The same of bookmarks that are shown.
    pub fn near_bookmark(&self, number: Option<u64>, forward: bool) -> Option<(u64, bool)> {
        let shown: Vec<u64> =
            self.bookmarks.iter().copied().filter(|n| self.number(self.place(*n)) == Some(*n)).collect();
        near(shown.len(), |at| shown[at], number, forward)
    }

    /// Sets a bookmark, or takes it away; whether it is set then.
    pub fn bookmark(&mut self, number: u64) -> bool {
        let set = !self.bookmarks.remove(&number);
        if set {
            self.bookmarks.insert(number);
        }
        set
    }

    /// Whether an entry has a bookmark.
    pub fn is_bookmarked(&self, number: u64) -> bool {
        self.bookmarks.contains(&number)
    }

    /// What stands between two numbers: errors, lines that the search matches, bookmarks.
    pub fn between(&self, from: u64, to: u64) -> Ticks {
        let some =
            |numbers: &VecDeque<u64>| numbers.get(numbers.partition_point(|n| *n < from)).is_some_and(|n| *n < to);
        let error = self.errors.get(self.errors.partition_point(|(n, _)| *n < from));
        Ticks {
            error: error.is_some_and(|(n, _)| *n < to),
            hit: some(&self.hits.numbers),
            bookmark: self.bookmarks.range(from..to).next().is_some(),
        }
    }

    /// Seconds of the first and the last line that has a time.
    pub fn span(&self) -> Option<(i64, i64)> {
        let from = self.entries.iter().take(64).find_map(|e| e.time)?;
        let to = self.entries.iter().rev().take(64).find_map(|e| e.time)?;
        Some((from.as_second(), to.as_second().max(from.as_second())))
    }

    /// How many errors there are in each of so many equal parts of [`Self::span`].
    pub fn errors_over(&self, parts: usize) -> Vec<u32> {
        let mut out = vec![0; parts];
        let Some((from, to)) = self.span() else { return out };
        let length = (to - from + 1).max(1);
        let mut begin = 0;
        for (part, count) in out.iter_mut().enumerate() {
            // of lines that come late a few may be told a part too early
            let until = from + length * (part as i64 + 1) / (parts as i64).max(1);
            let end = self.errors.partition_point(|(_, at)| *at < until).max(begin);
            *count = u32::try_from(end - begin).unwrap_or(u32::MAX);
            begin = end;
        }
        out
    }

    /// The first error at or after a moment, seconds.
    pub fn error_since(&self, second: i64) -> Option<u64> {
        self.errors.get(self.errors.partition_point(|(_, at)| *at < second)).map(|(n, _)| *n)
    }

    /// How many errors are kept.
    pub fn errors(&self) -> usize {
        self.errors.len()
    }

    /// Bytes held, as counted against [`STREAM`] and [`ALL`].
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What stands in a part of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ticks {
    /// An error.
    pub error: bool,
    /// A line that the search matches.
    pub hit: bool,
    /// A line that a person marked.
    pub bookmark: bool,
}

/// Of ordered numbers the next one beyond `number`, and whether it was come to around the end.
fn near(len: usize, get: impl Fn(usize) -> u64, number: Option<u64>, forward: bool) -> Option<(u64, bool)> {
    if len == 0 {
        return None;
    }
    let below = |limit: u64| {
        let (mut low, mut high) = (0, len);
        while low < high {
            let middle = low.midpoint(high);
            if get(middle) < limit { low = middle + 1 } else { high = middle }
        }
        low
    };
    Some(match (number, forward) {
        (None, true) => (get(0), false),
        (None, false) => (get(len - 1), false),
        (Some(number), true) => match below(number + 1) {
            at if at < len => (get(at), false),
            _ => (get(0), true),
        },
        (Some(number), false) => match below(number) {
            0 => (get(len - 1), true),
            at => (get(at - 1), false),
        },
    })
}

/// `1,204`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}
