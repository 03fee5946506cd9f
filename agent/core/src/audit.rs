//! The audit log as text: what a record says, how records hang together, and what is wrong where they do not.
//!
//! A record is one line of JSON in exactly one form: a line that says the same in another form was changed. Its hash
//! covers every field, each with its length, and the hash of the record before. So whoever has the lines can verify
//! them, without the agent and without a key; what a chain alone cannot show is that its newest records were cut off,
//! for that an earlier head is compared.

mod verify;

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::policy::{Patterns, PolicyError};
pub use verify::{Begin, Flaw, FlawKind, Report, Verifier};

/// What stands before the first record.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The record of a removed segment: `before` has `first`, `last` and `head` (the hash of its last record).
pub const TRIM: &str = "audit.trim";
/// The outcome of what went well; others are codes of errors.
pub const OK: &str = "ok";
/// The outcome of what was begun and of which no end is known.
pub const UNKNOWN: &str = "UNKNOWN";
/// Longest text of a field, in bytes.
const FIELD_MAX: usize = 512;
/// Longest value of a fact, in bytes; longer ones are cut and carry the digest of the whole.
const FACT_MAX: usize = 16 << 10;
/// Most facts on one side.
const FACTS_MAX: usize = 32;

/// Names, versions, digests and texts by key; never a secret's value.
pub type Facts = BTreeMap<String, String>;

/// Who did what, from where, to what, and how it was before and after. Without its place in the chain (`seq`, `prev`,
/// `hash`) until [`Record::sealed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Counts all records of an agent from 1.
    pub seq: u64,
    /// When it was begun, UTC.
    pub time: Timestamp,
    /// `root`, a login name, `token:<label>`, `agent`, or `unknown`.
    pub who: String,
    /// The id of the key that was shown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who_id: String,
    /// `unix:<uid>`, `tls:<address>`, `command line`, or `agent`.
    pub from: String,
    /// `secret.set`, `deploy`, …
    pub what: String,
    /// What it was done to: a name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// The id behind that name, where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target_id: String,
    /// How it was.
    #[serde(default, skip_serializing_if = "Facts::is_empty")]
    pub before: Facts,
    /// How it is, or what was asked for.
    #[serde(default, skip_serializing_if = "Facts::is_empty")]
    pub after: Facts,
    /// `ok`, or the code of the error.
    pub outcome: String,
    /// The caller's id of the attempt.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request: String,
    /// The operation that goes on, or has ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub operation: String,
    /// The agent's own id of the call, the same for its beginning and its end.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The hash of the record before.
    pub prev: String,
    /// The hash of this one, hexadecimal SHA-256.
    pub hash: String,
}

impl Record {
    /// One that says who did what at a time; the rest is to be filled in.
    pub fn new(time: Timestamp, who: &str, from: &str, what: &str) -> Self {
        Self {
            seq: 0,
            time,
            who: who.to_owned(),
            who_id: String::new(),
            from: from.to_owned(),
            what: what.to_owned(),
            target: String::new(),
            target_id: String::new(),
            before: Facts::new(),
            after: Facts::new(),
            outcome: OK.to_owned(),
            request: String::new(),
            operation: String::new(),
            id: String::new(),
            prev: String::new(),
            hash: String::new(),
        }
    }

    /// The same about a target.
    #[must_use]
    pub fn target(mut self, name: impl Into<String>, id: impl Into<String>) -> Self {
        (self.target, self.target_id) = (name.into(), id.into());
        self
    }

    /// The same with a fact of before.
    #[must_use]
    pub fn before(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.before.insert(key.to_owned(), value.to_string());
        self
    }

    /// The same with a fact of afterwards.
    #[must_use]
    pub fn after(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.after.insert(key.to_owned(), value.to_string());
        self
    }

    /// The same with every text of a bounded length: no caller makes a line that fills the log.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        for text in [
            &mut self.who,
            &mut self.who_id,
            &mut self.from,
            &mut self.what,
            &mut self.target,
            &mut self.target_id,
            &mut self.outcome,
            &mut self.request,
            &mut self.operation,
            &mut self.id,
        ] {
            if text.len() > FIELD_MAX {
                *text = format!("{}…", beginning(text, FIELD_MAX));
            }
        }
        for facts in [&mut self.before, &mut self.after] {
            let more = facts.len().saturating_sub(FACTS_MAX);
            for _ in 0..more {
                facts.pop_last();
            }
            if more > 0 {
                facts.insert("…".into(), format!("{more} more"));
            }
            for value in facts.values_mut().filter(|v| v.len() > FACT_MAX) {
                let digest = hex::encode(Sha256::digest(value.as_bytes()));
                *value = format!("{}… (cut: {} bytes, sha256:{digest})", beginning(value, FACT_MAX), value.len());
            }
        }
        self
    }

    /// The record in its place of the chain.
    #[must_use]
    pub fn sealed(mut self, seq: u64, prev: &str) -> Self {
        self.seq = seq;
        prev.clone_into(&mut self.prev);
        self.hash = self.computed();
        self
    }

    /// Its one line, without the line's end.
    pub fn line(&self) -> String {
        // a struct of texts and numbers: there is nothing that cannot be written
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a line and checks everything that it says of itself; its place is the [`Verifier`]'s to check.
    ///
    /// # Errors
    /// [`FlawKind::NoRecord`], [`FlawKind::Form`], [`FlawKind::Content`].
    pub fn parse(line: &[u8]) -> Result<Self, (FlawKind, Option<Box<Self>>)> {
        let record: Self =
            serde_json::from_slice(line).map_err(|e| (FlawKind::NoRecord { why: e.to_string() }, None))?;
        if record.line().as_bytes() != line {
            return Err((FlawKind::Form, Some(Box::new(record))));
        }
        if record.computed() != record.hash {
            return Err((FlawKind::Content, Some(Box::new(record))));
        }
        Ok(record)
    }

    /// SHA-256 over every field but the hash. Each has its length before it, so that no two records read the same.
    fn computed(&self) -> String {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(bytes);
        };
        field(b"sigil audit 1");
        field(&self.seq.to_be_bytes());
        field(self.time.to_string().as_bytes());
        for text in [&self.who, &self.who_id, &self.from, &self.what, &self.target, &self.target_id] {
            field(text.as_bytes());
        }
        for facts in [&self.before, &self.after] {
            field(&u64::try_from(facts.len()).unwrap_or(u64::MAX).to_be_bytes());
            for (key, value) in facts {
                field(key.as_bytes());
                field(value.as_bytes());
            }
        }
        for text in [&self.outcome, &self.request, &self.operation, &self.id, &self.prev] {
            field(text.as_bytes());
        }
        hex::encode(hash.finalize())
    }
}

/// At most so many bytes, whole characters.
fn beginning(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Which records are asked for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    who: Patterns,
    what: Patterns,
    target: Patterns,
}

impl Filter {
    /// Bounds of time, and patterns (`*` stands for any run of characters); an empty one lets everything through.
    ///
    /// # Errors
    /// [`PolicyError::Pattern`] for one that is too long.
    pub fn new(
        since: Option<Timestamp>,
        until: Option<Timestamp>,
        who: &str,
        what: &str,
        target: &str,
    ) -> Result<Self, PolicyError> {
        let patterns = |text: &str| {
            let given: Vec<String> = Some(text).filter(|t| !t.is_empty()).map(str::to_owned).into_iter().collect();
            Patterns::new(&given)
        };
        Ok(Self { since, until, who: patterns(who)?, what: patterns(what)?, target: patterns(target)? })
    }

    /// Whether everything passes: also what is no record.
    pub fn is_open(&self) -> bool {
        self.since.is_none()
            && self.until.is_none()
            && self.who.is_empty()
            && self.what.is_empty()
            && self.target.is_empty()
    }

    /// Whether a record is asked for. A target is named by its name or its id.
    pub fn lets(&self, record: &Record) -> bool {
        let fits = |patterns: &Patterns, texts: &[&str]| {
            patterns.is_empty() || texts.iter().any(|text| patterns.matches(text))
        };
        self.since.is_none_or(|at| record.time >= at)
            && self.until.is_none_or(|at| record.time <= at)
            && fits(&self.who, &[&record.who, &record.who_id])
            && fits(&self.what, &[&record.what])
            && fits(&self.target, &[&record.target, &record.target_id])
    }
}

#[cfg(test)]
mod tests;
