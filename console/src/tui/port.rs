//! The boundary between the screens and the link. Both directions are bounded channels: the link runs in a task of its
//! own, so a dead agent never holds up a key, and a slow screen makes the link wait, not the memory grow.

use std::time::Duration;

use tokio::sync::mpsc;

use super::flow::{Flow, Told};
use super::sheet::{Look, Seen};
use crate::link::{AgentInfo, Change, Detail, Event, LogBatch, LogQuery, Operation, Update};

/// Messages that may wait in each direction. A batch of log lines has at most about 1,000.
pub const DEPTH: usize = 64;

/// What went wrong, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What.
    pub what: String,
    /// What to do; may be empty.
    pub hint: String,
}

/// News from the link.
#[derive(Debug, Clone, PartialEq)]
pub enum LinkEvent {
    /// The agent answered; again after each reconnection.
    Connected {
        /// Who it is.
        info: Box<AgentInfo>,
        /// How long its answer took.
        rtt: Duration,
    },
    /// A later measurement.
    Rtt(Duration),
    /// It does not answer (any more).
    Disconnected {
        /// Why, and what to do.
        trouble: Trouble,
        /// Until the next try.
        retry_in: Duration,
    },
    /// The fleet changed.
    Fleet(Update),
    /// The answer to [`Request::Detail`].
    Detail {
        /// As asked.
        name: String,
        /// What there is, or why not.
        result: Result<Box<Detail>, Trouble>,
    },
    /// The answer to [`Request::Look`].
    Looked {
        /// Its number.
        look: u64,
        /// What there is, or why not.
        result: Result<Box<Seen>, Trouble>,
    },
    /// Lines of the watch with this number.
    Logs {
        /// [`Request::WatchLogs`]'s number; others are late and of no interest.
        watch: u64,
        /// Lines and gaps.
        batch: LogBatch,
    },
    /// The log stream broke; it goes on by cursor after `retry_in`.
    LogsLost {
        /// As above.
        watch: u64,
        /// Why.
        why: String,
    },
    /// And is back, with nothing missing.
    LogsBack {
        /// As above.
        watch: u64,
    },
    /// The stream ended for good; with a reason unless it was at its end.
    LogsEnded {
        /// As above.
        watch: u64,
        /// Why.
        trouble: Option<Trouble>,
    },
    /// The answer to [`Request::Change`].
    Accepted {
        /// [`Request::Change`]'s number.
        change: u64,
        /// The operation, or why it was refused.
        result: Result<Box<Operation>, Trouble>,
    },
    /// News of [`Request::Flow`].
    Flow {
        /// Its number.
        flow: u64,
        /// What.
        told: Told,
    },
    /// A flow has ended; with a reason unless it was at its end.
    FlowEnded {
        /// Its number.
        flow: u64,
        /// Why.
        trouble: Option<Trouble>,
    },
    /// An event of an accepted operation; the last is `Done`.
    Operation {
        /// As above.
        change: u64,
        /// What happened.
        event: Event,
    },
}

/// What the screens ask of the link.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Follow logs; ends the former watch.
    WatchLogs {
        /// Counts up; comes back with each batch.
        watch: u64,
        /// What to follow.
        query: LogQuery,
    },
    /// Nobody looks at logs any more.
    StopLogs,
    /// Ask for a change and follow it.
    Change {
        /// Counts up; comes back with each answer.
        change: u64,
        /// What.
        what: Change,
    },
    /// Everything about one deployment.
    Detail {
        /// Its name.
        name: String,
    },
    /// What a sheet shows.
    Look {
        /// Counts up; comes back with the answer.
        look: u64,
        /// What.
        what: Look,
    },
    /// Something that goes on for a while.
    Flow {
        /// Counts up; comes back with all that is told of it.
        flow: u64,
        /// What.
        what: Flow,
    },
    /// Nobody waits for it any more.
    StopFlow {
        /// Its number.
        flow: u64,
    },
    /// Do not wait for the next try.
    Reconnect,
}

/// The screens' end.
#[derive(Debug)]
pub struct Port {
    /// What its context is called; several hosts are told apart by it.
    pub name: String,
    /// The agent's address, for people.
    pub address: String,
    /// News.
    pub events: mpsc::Receiver<LinkEvent>,
    /// Wishes.
    pub requests: mpsc::Sender<Request>,
}

/// The link's end.
#[derive(Debug)]
pub struct Feed {
    /// News.
    pub events: mpsc::Sender<LinkEvent>,
    /// Wishes.
    pub requests: mpsc::Receiver<Request>,
}

/// Both ends.
pub fn pair(name: impl Into<String>, address: impl Into<String>) -> (Port, Feed) {
    let (news, events) = mpsc::channel(DEPTH);
    let (requests, wishes) = mpsc::channel(DEPTH);
    (Port { name: name.into(), address: address.into(), events, requests }, Feed { events: news, requests: wishes })
}
