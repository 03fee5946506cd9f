//! What is written down of a call: who and from where as the guard knows it, about what as the service fills it in, how
//! it went as the answer says.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Response;
use jiff::Timestamp;
use prost::Message;
use sigil_core::audit::{self, Record};
use sigil_protocol::v1::ErrorInfo;
use tonic::body::Body;

use crate::access::{Peer, Principal};
use crate::audit::{Attempt, Audit, AuditError};

/// Refused calls recorded in a minute, of strangers and of those who are known apart: whoever may do nothing must not be
/// able to push the log's older part out.
const REFUSALS: u32 = 30;

/// A record about a caller.
pub(super) fn record(what: &str, who: Option<&Principal>, peer: Option<&Peer>) -> Record {
    let from = match peer {
        Some(Peer::Unix { uid, .. }) => format!("unix:{uid}"),
        Some(Peer::Tls { address, .. }) => format!("tls:{address}"),
        None => "unknown".into(),
    };
    let mut record = Record::new(Timestamp::now(), who.map_or("unknown", |p| p.who.as_str()), &from, what);
    if let Some(holder) = who.and_then(|p| p.holder.as_ref()) {
        record.who_id.clone_from(&holder.id);
    }
    record
}

/// The code of a refusal.
pub(super) fn code(status: &tonic::Status) -> String {
    match ErrorInfo::decode(status.details()) {
        Ok(info) if !info.code.is_empty() => info.code,
        _ => format!("{:?}", status.code()).to_uppercase(),
    }
}

/// `ok`, or the code of the error in an answer's head: an error is all that such an answer has.
pub(super) fn outcome(answer: &Response<Body>) -> String {
    match tonic::Status::from_header_map(answer.headers()) {
        Some(status) if status.code() != tonic::Code::Ok => code(&status),
        _ => audit::OK.to_owned(),
    }
}

/// A call's record while the call is under way. Services fill it in; clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Note(Arc<Mutex<Record>>);

impl Note {
    pub fn new(record: Record) -> Self {
        Self(Arc::new(Mutex::new(record)))
    }

    fn with(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What it is, where the call's own word is too wide.
    pub fn what(&self, what: &str) {
        self.with(|r| what.clone_into(&mut r.what));
    }

    /// What it is done to: a name, and the id behind it.
    pub fn target(&self, name: impl Into<String>, id: impl ToString) {
        self.with(|r| (r.target, r.target_id) = (name.into(), id.to_string()));
    }

    /// How it was.
    pub fn before(&self, key: &str, value: impl ToString) {
        self.with(|r| drop(r.before.insert(key.to_owned(), value.to_string())));
    }

    /// How it is, or what is asked for.
    pub fn after(&self, key: &str, value: impl ToString) {
        self.with(|r| drop(r.after.insert(key.to_owned(), value.to_string())));
    }

    /// The caller's id of the attempt.
    pub fn request(&self, id: &str) {
        self.with(|r| id.clone_into(&mut r.request));
    }

    /// The operation that goes on.
    pub fn operation(&self, id: impl ToString) {
        self.with(|r| r.operation = id.to_string());
    }

    /// Keeps the attempt.
    pub async fn begin(&self, audit: &Audit) -> Result<Noted, AuditError> {
        let record = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Noted { note: self.clone(), attempt: Some(audit.begin(record).await?) })
    }
}

/// An attempt and its note. Dropped by a caller that goes away, it is recorded with what is known by then.
pub(super) struct Noted {
    note: Note,
    attempt: Option<Attempt>,
}

impl Noted {
    fn take(&mut self) -> Option<Attempt> {
        let mut attempt = self.attempt.take()?;
        let known = self.note.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(record) = attempt.record() {
            let id = std::mem::take(&mut record.id);
            *record = Record { id, ..known };
        }
        Some(attempt)
    }

    /// Records how it went.
    pub async fn end(mut self, outcome: String) -> Result<(), AuditError> {
        match self.take() {
            Some(attempt) => attempt.end(&outcome).await,
            None => Ok(()),
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// The note of a call; one that leads nowhere where nothing is recorded.
pub(super) fn note<T>(request: &tonic::Request<T>) -> Note {
    let found = request.extensions().get().cloned();
    found.unwrap_or_else(|| Note::new(record("", None, None)))
}

/// Counts refusals, so that only so many are recorded.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals(Arc<Mutex<[Counted; 2]>>);

#[derive(Debug, Default)]
struct Counted {
    since: Option<Instant>,
    recorded: u32,
    passed_over: u64,
}

impl Refusals {
    /// The record, if it is to be written: with how many were not, before it.
    pub fn counted(&self, record: Record, known: bool) -> Option<Record> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = &mut all[usize::from(known)];
        if counted.since.is_none_or(|since| since.elapsed() >= Duration::from_secs(60)) {
            (counted.since, counted.recorded) = (Some(Instant::now()), 0);
        }
        if counted.recorded == REFUSALS {
            counted.passed_over += 1;
            return None;
        }
        counted.recorded += 1;
        Some(match std::mem::take(&mut counted.passed_over) {
            0 => record,
            n => record.after("refusals before it that were only counted", n),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::refuse;

    #[test]
    fn an_answer_says_how_it_went() {
        let answer = |status: tonic::Status| status.into_http();
        assert_eq!(outcome(&answer(refuse("NAME_TAKEN", "m", "h", 2))), "NAME_TAKEN");
        assert_eq!(outcome(&answer(tonic::Status::invalid_argument("x"))), "INVALIDARGUMENT");
        assert_eq!(outcome(&Response::new(Body::default())), "ok");
    }

    #[test]
    fn refusals_are_counted_when_there_are_many() {
        let refusals = Refusals::default();
        let one = || record("secret.set", None, None);
        let recorded = (0..500).filter(|_| refusals.counted(one(), false).is_some()).count();
        assert_eq!(recorded, REFUSALS as usize);
        assert!(refusals.counted(one(), true).is_some(), "those who are known have a count of their own");
        refusals.0.lock().unwrap()[0].since = Instant::now().checked_sub(Duration::from_secs(61));
        let next = refusals.counted(one(), false).unwrap();
        assert_eq!(next.after.values().next().map(String::as_str), Some("470"));
    }
}
