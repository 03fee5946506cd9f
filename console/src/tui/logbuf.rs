//! Log lines in the console: bounded, filtered, searchable. Knows nothing of screens.

use std::collections::VecDeque;

use jiff::Timestamp;
use regex::bytes::Regex;

use crate::link::{LogBatch, LogGap, LogLine};

/// Bytes of lines that are kept.
pub const BUDGET: usize = 64 << 20;
/// What an entry counts beside its text.
const OVERHEAD: usize = 96;

/// How loud a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Says nothing of a level.
    None,
    Debug,
    Info,
    Warn,
    Error,
}

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
    /// As it came.
    pub text: Box<[u8]>,
}

/// A pattern, maybe negated.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// As typed.
    pub text: String,
    regex: Regex,
    negated: bool,
}

impl Pattern {
    /// From what a person typed: `!` in front negates, no upper case letter ignores case.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let (body, negated) = match text.strip_prefix('!') {
            Some(body) => (body, true),
            None => (text, false),
        };
        if body.is_empty() {
            return Ok(None);
        }
        let any_case = !body.chars().any(char::is_uppercase);
        let regex = regex::bytes::RegexBuilder::new(body).case_insensitive(any_case).size_limit(1 << 20).build();
        let regex = regex.map_err(|e| e.to_string().lines().last().unwrap_or_default().trim().to_owned())?;
        Ok(Some(Self { text: text.to_owned(), regex, negated }))
    }

    /// Whether a line is wanted.
    pub fn wants(&self, text: &[u8]) -> bool {
        self.regex.is_match(text) != self.negated
    }

    /// Where it matches.
    pub fn find(&self, text: &str) -> Vec<(usize, usize)> {
        self.regex.find_iter(text.as_bytes()).filter(|m| !m.is_empty()).map(|m| (m.start(), m.end())).collect()
    }
}

/// Lines of one watch. Every entry has a number that never changes.
#[derive(Debug, Default)]
pub struct Buffer {
    entries: VecDeque<Entry>,
    /// Number of the first entry.
    first: u64,
    bytes: usize,
    names: Vec<String>,
    filter: Option<Pattern>,
    /// Numbers of wanted entries, when there is a filter.
    wanted: VecDeque<u64>,
    /// Entries dropped because the buffer was full.
    pub dropped: u64,
}

impl Buffer {
    /// Deployments that lines came from, in order of appearance.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The active filter.
    pub fn filter(&self) -> Option<&Pattern> {
        self.filter.as_ref()
    }

    /// Changes the filter and looks at every line again.
    pub fn set_filter(&mut self, filter: Option<Pattern>) {
        self.filter = filter;
        self.wanted.clear();
        if let Some(filter) = &self.filter {
            let first = self.first;
            let wanted = self.entries.iter().enumerate().filter(|(_, e)| is_wanted(filter, e));
            self.wanted = wanted.map(|(i, _)| first + i as u64).collect();
        }
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
            time: line.time,
            name,
            kind,
            stderr: line.stream == "stderr",
            level: level(&line.line),
            cut: line.cut,
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
        let text = text.into_bytes().into_boxed_slice();
        self.push(Entry { time, name, kind: Kind::Gap, stderr: false, level: Level::None, cut: false, text });
    }

    fn name(&mut self, name: &str) -> u16 {
        let at = self.names.iter().position(|n| n == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        u16::try_from(at).unwrap_or(u16::MAX)
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.text.len() + OVERHEAD;
        if self.filter.as_ref().is_some_and(|f| is_wanted(f, &entry)) {
            self.wanted.push_back(self.first + self.entries.len() as u64);
        }
        self.entries.push_back(entry);
        while self.bytes > BUDGET
            && let Some(old) = self.entries.pop_front()
        {
            self.bytes -= old.text.len() + OVERHEAD;
            if self.wanted.front() == Some(&self.first) {
                self.wanted.pop_front();
            }
            self.first += 1;
            self.dropped += 1;
        }
    }

    /// Entries that are shown.
    pub fn len(&self) -> usize {
        if self.filter.is_some() { self.wanted.len() } else { self.entries.len() }
    }

    /// Entries that are kept, shown or not.
    pub fn total(&self) -> usize {
        self.entries.len()
    }

    /// The number of the shown entry at a place.
    pub fn number(&self, place: usize) -> Option<u64> {
        if self.filter.is_some() {
            self.wanted.get(place).copied()
        } else {
            (place < self.entries.len()).then(|| self.first + place as u64)
        }
    }

    /// The place of the first shown entry at or after a number.
    pub fn place(&self, number: u64) -> usize {
        if self.filter.is_some() {
            self.wanted.partition_point(|n| *n < number)
        } else {
            usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.entries.len())
        }
    }

    /// The shown entry at a place.
    pub fn get(&self, place: usize) -> Option<&Entry> {
        let number = self.number(place)?;
        self.entries.get(usize::try_from(number - self.first).ok()?)
    }

    /// Bytes held, as counted against [`BUDGET`].
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Gaps are always shown: a filter must not hide a loss.
fn is_wanted(filter: &Pattern, entry: &Entry) -> bool {
    entry.kind == Kind::Gap || filter.wants(&entry.text)
}

/// What a line says of itself; only its beginning is looked at.
pub fn level(line: &[u8]) -> Level {
    let head = &line[..line.len().min(160)];
    let mut found = Level::None;
    for word in head.split(|b| !b.is_ascii_alphanumeric() && *b != b'_').filter(|w| (3..=11).contains(&w.len())) {
        let level = if any(
            word,
            &["error", "err", "fatal", "panic", "panicked", "critical", "crit", "traceback", "exception", "emerg"],
        ) {
            Level::Error
        } else if any(word, &["warn", "warning"]) {
            Level::Warn
        } else if any(word, &["info", "notice"]) {
            Level::Info
        } else if any(word, &["debug", "trace", "verbose"]) {
            Level::Debug
        } else {
            continue;
        };
        // The first word counts: 'INFO no error' is no error. But 'level' fields may come behind a message.
        found = level;
        break;
    }
    found
}

fn any(word: &[u8], words: &[&str]) -> bool {
    words.iter().any(|w| word.eq_ignore_ascii_case(w.as_bytes()))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: u64, text: &str) -> LogLine {
        LogLine {
            time: None,
            deployment: "a".into(),
            instance: String::new(),
            stream: "stdout".into(),
            seq,
            line: text.into(),
            cut: false,
            release: 1,
        }
    }

    fn shown(b: &Buffer) -> Vec<String> {
        (0..b.len()).map(|i| String::from_utf8_lossy(&b.get(i).unwrap().text).into_owned()).collect()
    }

    #[test]
    fn gaps_stand_where_lines_are_missing() {
        let mut b = Buffer::default();
        let gap = LogGap { deployment: "a".into(), lost: 1204, after_seq: 1, reason: "slow".into() };
        b.add(LogBatch { lines: vec![line(1, "one"), line(1206, "two")], gaps: vec![gap] });
        assert_eq!(shown(&b), ["one", "1,204 lines lost (slow)", "two"]);
    }

    #[test]
    fn filters_apply_to_old_and_new_lines_and_never_hide_a_gap() {
        let mut b = Buffer::default();
        b.add(LogBatch { lines: vec![line(1, "GET /a"), line(2, "POST /b")], gaps: vec![] });
        b.set_filter(Pattern::parse("!get").unwrap());
        let gap = LogGap { deployment: "a".into(), lost: 1, after_seq: 2, reason: "x".into() };
        b.add(LogBatch { lines: vec![line(4, "get"), line(5, "PUT")], gaps: vec![gap] });
        assert_eq!(shown(&b), ["POST /b", "1 line lost (x)", "PUT"]);
        assert_eq!(b.place(b.number(2).unwrap()), 2);
        b.set_filter(None);
        assert_eq!(b.len(), 5);
        assert!(Pattern::parse("(").is_err());
        assert!(Pattern::parse("!").unwrap().is_none());
    }

    #[test]
    fn memory_is_bounded_and_places_stay_right() {
        let mut b = Buffer::default();
        b.set_filter(Pattern::parse("7$").unwrap());
        let text = "x".repeat(1 << 20);
        for i in 0..200 {
            b.add(LogBatch { lines: vec![line(i, &format!("{text}{i}"))], gaps: vec![] });
            assert!(b.bytes() <= BUDGET);
        }
        assert_eq!(b.dropped as usize + b.total(), 200);
        assert!(shown(&b).iter().all(|l| l.ends_with('7')));
        assert!(b.len() >= 6);
    }

    #[test]
    fn levels() {
        for (text, want) in [
            ("2026-01-01 ERROR no", Level::Error),
            (r#"{"level":"warn","msg":"x"}"#, Level::Warn),
            ("INFO no error", Level::Info),
            ("Traceback (most recent call last):", Level::Error),
            ("[debug] x", Level::Debug),
            ("terror and inform", Level::None),
        ] {
            assert_eq!(level(text.as_bytes()), want, "{text}");
        }
    }
}
