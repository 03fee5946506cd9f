//! Walks a chain and names what is wrong with it.

use std::fmt;

use jiff::Timestamp;

use super::{GENESIS, Record, TRIM};

/// Flaws kept; more are counted.
const FLAWS_MAX: usize = 20;

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlawKind {
    /// Not JSON, or not what a record says.
    NoRecord {
        /// The parser's words.
        why: String,
    },
    /// Says what a record says, but not in the form in which the agent writes it.
    Form,
    /// The hash does not fit the content.
    Content,
    /// Fits, but names another record before it than the one that is there.
    Link,
    /// Records are missing before it.
    Missing {
        /// The first missing one.
        from: u64,
        /// The last missing one.
        to: u64,
    },
    /// Stands after one with the same or a greater number: repeated, or out of order.
    Order {
        /// The number before it.
        after: u64,
    },
    /// The log begins with it, and no record says that those before it were removed.
    Beginning,
    /// A record with the head that was asked for is not there.
    NoHead {
        /// Its hash.
        head: String,
    },
}

/// Something wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The line, from 1; 0 when it is about the whole.
    pub line: u64,
    /// The number that the record gives itself, where that can be read.
    pub seq: Option<u64>,
    /// What is wrong.
    pub kind: FlawKind,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.seq) {
            (0, _) => {}
            (line, None) => write!(f, "line {line}: ")?,
            (line, Some(seq)) => write!(f, "line {line}, seq {seq}: ")?,
        }
        match &self.kind {
            FlawKind::NoRecord { why } => write!(f, "is no record: {why}"),
            FlawKind::Form => f.write_str("was changed: it is not in the form in which records are written"),
            FlawKind::Content => f.write_str("was changed: its hash does not fit its content"),
            FlawKind::Link => f.write_str("does not follow from the record before it: one of the two was replaced"),
            FlawKind::Missing { from, to } if from == to => write!(f, "record {from} before it is missing"),
            FlawKind::Missing { from, to } => write!(f, "records {from} to {to} before it are missing"),
            FlawKind::Order { after } => write!(f, "stands after seq {after}: repeated or out of order"),
            FlawKind::Beginning => f.write_str("what was before it is missing, and no record says that it was removed"),
            FlawKind::NoHead { head } => write!(f, "no record has the hash {head}: the newest ones were cut off"),
        }
    }
}

/// What stands before the first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Nothing: the chain is there from its first record on.
    Genesis,
    /// Records that the size cap removed, and a later record says so.
    Trimmed,
    /// Records that are not in what was given.
    Partial,
}

/// What verifying found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Lines that are records.
    pub records: u64,
    /// Number of the first one.
    pub first: Option<u64>,
    /// Number of the last one.
    pub last: Option<u64>,
    /// Hash of the last one: keep it, and a later verification can show that nothing was cut off.
    pub head: String,
    /// When the first one was made.
    pub from: Option<Timestamp>,
    /// When the last one was made.
    pub to: Option<Timestamp>,
    /// What stands before the first one.
    pub begin: Begin,
    /// What is wrong, first things first; at most 20.
    pub flaws: Vec<Flaw>,
    /// How many more are wrong.
    pub more: u64,
}

/// Takes lines, oldest first.
#[derive(Debug, Default)]
pub struct Verifier {
    line: u64,
    records: u64,
    first: Option<(u64, String, Timestamp)>,
    last: Option<(u64, String, Timestamp)>,
    /// Removals: last number and hash of what was removed.
    trims: Vec<(u64, String)>,
    flaws: Vec<Flaw>,
    more: u64,
    /// A head that must be there, and whether it is.
    wanted: Option<String>,
}

impl Verifier {
    /// One that also wants a record of this hash: the head of an earlier verification.
    pub fn new(wanted: Option<String>) -> Self {
        Self { wanted, ..Self::default() }
    }

    fn flaw(&mut self, seq: Option<u64>, kind: FlawKind) {
        if self.flaws.len() == FLAWS_MAX {
            self.more += 1;
        } else {
            self.flaws.push(Flaw { line: self.line, seq, kind });
        }
    }

    /// The next line, without its end.
    pub fn push(&mut self, line: &[u8]) {
        self.line += 1;
        let record = match Record::parse(line) {
            Ok(record) => record,
            Err((kind, None)) => return self.flaw(None, kind),
            Err((kind, Some(record))) => {
                self.flaw(Some(record.seq), kind);
                *record
            }
        };
        let seq = record.seq;
        match &self.last {
            Some((last, _, _)) if seq <= *last => {
                let after = *last;
                return self.flaw(Some(seq), FlawKind::Order { after });
            }
            Some((last, _, _)) if seq > last + 1 => {
                let (from, to) = (last + 1, seq - 1);
                self.flaw(Some(seq), FlawKind::Missing { from, to });
            }
            Some((_, hash, _)) if record.prev != *hash => self.flaw(Some(seq), FlawKind::Link),
            None if seq == 0 || (seq == 1 && record.prev != GENESIS) => self.flaw(Some(seq), FlawKind::Link),
            _ => {}
        }
        self.records += 1;
        if record.what == TRIM
            && let (Some(last), Some(head)) = (record.before.get("last"), record.before.get("head"))
            && let Ok(last) = last.parse()
        {
            self.trims.push((last, head.clone()));
        }
        if self.wanted.as_ref() == Some(&record.hash) {
            self.wanted = None;
        }
        if self.first.is_none() {
            self.first = Some((seq, record.prev, record.time));
        }
        self.last = Some((seq, record.hash, record.time));
    }

    /// What was found. `whole`: the lines are all that there is, so their beginning has to be explained.
    pub fn finish(mut self, whole: bool) -> Report {
        let begin = match &self.first {
            None => Begin::Genesis,
            Some((1, _, _)) => Begin::Genesis,
            Some((seq, prev, _)) if self.trims.iter().any(|(last, head)| last + 1 == *seq && head == prev) => {
                Begin::Trimmed
            }
            Some((seq, _, _)) => {
                let seq = *seq;
                if whole {
                    // said first: it is where the log begins
                    self.flaws.insert(0, Flaw { line: 1, seq: Some(seq), kind: FlawKind::Beginning });
                }
                Begin::Partial
            }
        };
        if let Some(head) = self.wanted.take() {
            self.line = 0;
            self.flaw(None, FlawKind::NoHead { head });
        }
        Report {
            records: self.records,
            first: self.first.as_ref().map(|(seq, _, _)| *seq),
            last: self.last.as_ref().map(|(seq, _, _)| *seq),
            head: self.last.as_ref().map_or_else(|| GENESIS.to_owned(), |(_, hash, _)| hash.clone()),
            from: self.first.map(|(_, _, time)| time),
            to: self.last.map(|(_, _, time)| time),
            begin,
            flaws: self.flaws,
            more: self.more,
        }
    }
}
