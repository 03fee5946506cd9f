//! Streams that outlive a connection: each asks again from where it was, with a jittered back-off, and says so.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use futures::future::BoxFuture;
use sigil_core::audit::Record;
use sigil_protocol::v1;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::convert;
use super::error::LinkError;
use super::view::{AuditBatch, Deployment, Event, LogBatch, What};
use super::{AuditQuery, Link, LogQuery};

/// What a resumable stream gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress<T> {
    /// The next item.
    Item(T),
    /// The link broke; asked again after `wait`.
    Lost {
        /// The reason.
        why: String,
        /// Until the next try.
        wait: Duration,
    },
    /// The link is back, nothing is missing.
    Back,
}

/// Waits between tries: doubling from 200 ms to 10 s, each cut at random by up to half.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
}

impl Backoff {
    /// How long to wait before the next try.
    pub fn next(&mut self) -> Duration {
        let full = Duration::from_millis(200).saturating_mul(1 << self.tries.min(10)).min(Duration::from_secs(10));
        self.tries += 1;
        // a fresh hasher is seeded by the system: jitter needs no better randomness
        let share = RandomState::new().hash_one(self.tries) % 1000;
        full.mul_f64(0.5 + 0.5 * f64::from(u32::try_from(share).unwrap_or(0)) / 1000.0)
    }

    pub(super) fn tries(&self) -> u32 {
        self.tries
    }

    fn reset(&mut self) {
        self.tries = 0;
    }
}

type Opening<T> = BoxFuture<'static, Result<Streaming<T>, Status>>;

/// One kind of stream: how to ask for the rest, and what to keep.
trait Cursor: Send {
    type Wire: Send + 'static;
    type Item;

    fn open(&mut self, link: &Link) -> Opening<Self::Wire>;
    /// Takes a message in and remembers the position after it.
    fn take(&mut self, wire: Self::Wire) -> Option<Self::Item>;
    /// Whether an end of the stream is the end, rather than an agent that stopped.
    fn is_done(&self) -> bool;
}

struct Resuming<C: Cursor> {
    link: Link,
    cursor: C,
    stream: Option<Streaming<C::Wire>>,
    /// Kept here, so that a dropped `next` does not begin again.
    opening: Option<Opening<C::Wire>>,
    backoff: Backoff,
    retry_at: Option<Instant>,
    lost_since: Option<Instant>,
    /// How long a broken link is worth waiting for; `None`: for ever.
    patience: Option<Duration>,
    over: bool,
}

impl<C: Cursor> Resuming<C> {
    fn new(link: Link, cursor: C, patience: Option<Duration>) -> Self {
        let backoff = Backoff::default();
        Self {
            link,
            cursor,
            stream: None,
            opening: None,
            backoff,
            retry_at: None,
            lost_since: None,
            patience,
            over: false,
        }
    }

    /// Cancel-safe: a dropped call loses neither a message nor a wait.
    async fn next(&mut self) -> Result<Option<Progress<C::Item>>, LinkError> {
        loop {
            if self.over {
                return Ok(None);
            }
            if let Some(at) = self.retry_at {
                tokio::time::sleep_until(at).await;
                self.retry_at = None;
            }
            let Some(stream) = &mut self.stream else {
                let opened = {
                    let Self { opening, cursor, link, .. } = self;
                    opening.get_or_insert_with(|| cursor.open(link)).await
                };
                self.opening = None;
                match opened {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        if self.lost_since.take().is_some() {
                            return Ok(Some(Progress::Back));
                        }
                    }
                    Err(status) => {
                        let error = self.link.error(&status);
                        return self.lose(error).map(Some);
                    }
                }
                continue;
            };
            match stream.message().await {
                Ok(Some(wire)) => {
                    self.backoff.reset();
                    if let Some(item) = self.cursor.take(wire) {
                        return Ok(Some(Progress::Item(item)));
                    }
                }
                Ok(None) if self.cursor.is_done() => {
                    self.over = true;
                    return Ok(None);
                }
                Ok(None) => {
                    let error = LinkError::Broken { why: "the agent ended the stream".to_owned() };
                    return self.lose(error).map(Some);
                }
                Err(status) => {
                    let error = self.link.error(&status);
                    return self.lose(error).map(Some);
                }
            }
        }
    }

    fn lose(&mut self, error: LinkError) -> Result<Progress<C::Item>, LinkError> {
        self.stream = None;
        let since = *self.lost_since.get_or_insert_with(Instant::now);
        if !error.is_transient() || self.patience.is_some_and(|patience| since.elapsed() > patience) {
            self.over = true;
            return Err(error);
        }
        let wait = self.backoff.next();
        self.retry_at = Some(Instant::now() + wait);
        Ok(Progress::Lost { why: error.to_string(), wait })
    }
}

/// An operation's events.
pub struct OperationFollow(Resuming<FollowCursor>);

struct FollowCursor {
    id: String,
    after: u64,
    done: bool,
}

impl Cursor for FollowCursor {
    type Wire = v1::OperationEvent;
    type Item = Event;

    fn open(&mut self, link: &Link) -> Opening<v1::OperationEvent> {
        let mut client = link.operations_client();
        let request = v1::FollowRequest { id: self.id.clone(), after: self.after };
        Box::pin(async move { client.follow(request).await.map(tonic::Response::into_inner) })
    }

    fn take(&mut self, wire: v1::OperationEvent) -> Option<Event> {
        // the end repeats when an agent answers a cursor that is already past it
        if wire.seq <= self.after && wire.seq != 0 {
            return None;
        }
        self.after = self.after.max(wire.seq);
        let event = convert::event(wire)?;
        self.done |= matches!(event.what, What::Done(_));
        Some(event)
    }

    fn is_done(&self) -> bool {
        self.done
    }
}

impl OperationFollow {
    pub(super) fn new(link: Link, id: &str, after: u64) -> Self {
        let cursor = FollowCursor { id: id.to_owned(), after, done: false };
        Self(Resuming::new(link, cursor, Some(Duration::from_secs(120))))
    }

    /// The next event; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Progress<Event>>, LinkError> {
        self.0.next().await
    }
}

/// Log lines of one or more deployments.
pub struct Logs(Resuming<LogCursor>);

struct LogCursor {
    query: LogQuery,
    positions: BTreeMap<String, u64>,
}

impl Cursor for LogCursor {
    type Wire = v1::TailBatch;
    type Item = LogBatch;

    fn open(&mut self, link: &Link) -> Opening<v1::TailBatch> {
        let mut client =
            v1::logs_client::LogsClient::new(link.wire.clone()).max_decoding_message_size(super::MESSAGE_MAX);
        let resume: Vec<v1::Position> = self
            .positions
            .iter()
            .map(|(deployment_id, seq)| v1::Position { deployment_id: deployment_id.clone(), seq: *seq })
            .collect();
        let request = v1::TailRequest {
            deployments: self.query.deployments.clone(),
            all: self.query.all,
            follow: self.query.follow,
            // 'the last N' has been answered once there is a position
            tail: if resume.is_empty() { self.query.tail } else { None },
            since: convert::micros(self.query.since),
            until: convert::micros(self.query.until),
            grep: self.query.grep.clone(),
            previous: self.query.previous,
            resume,
            streams: self.query.streams.clone(),
        };
        Box::pin(async move { client.tail(request).await.map(tonic::Response::into_inner) })
    }

    fn take(&mut self, wire: v1::TailBatch) -> Option<LogBatch> {
        for position in &wire.positions {
            self.positions.insert(position.deployment_id.clone(), position.seq);
        }
        Some(convert::log_batch(wire)).filter(|batch| !batch.lines.is_empty() || !batch.gaps.is_empty())
    }

    fn is_done(&self) -> bool {
        !self.query.follow
    }
}

impl Logs {
    pub(super) fn new(link: Link, query: LogQuery) -> Self {
        let patience = if query.follow { None } else { Some(Duration::from_secs(10)) };
        Self(Resuming::new(link, LogCursor { query, positions: BTreeMap::new() }, patience))
    }

    /// The next batch; `None` at the end of what was asked for. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Progress<LogBatch>>, LinkError> {
        self.0.next().await
    }
}

/// Lines of the audit log.
pub struct AuditLines(Resuming<AuditCursor>);

struct AuditCursor {
    query: AuditQuery,
    /// The number of the newest record that came.
    after: u64,
}

impl Cursor for AuditCursor {
    type Wire = v1::AuditBatch;
    type Item = AuditBatch;

    fn open(&mut self, link: &Link) -> Opening<v1::AuditBatch> {
        let mut client =
            v1::audit_client::AuditClient::new(link.wire.clone()).max_decoding_message_size(super::MESSAGE_MAX);
        let request = v1::AuditQuery {
            since: convert::micros(self.query.since),
            until: convert::micros(self.query.until),
            who: self.query.who.clone(),
            what: self.query.what.clone(),
            target: self.query.target.clone(),
            // 'the last N' has been answered once there is a position
            tail: if self.after == 0 { self.query.tail } else { None },
            follow: self.query.follow,
            after: self.after,
        };
        Box::pin(async move { client.query(request).await.map(tonic::Response::into_inner) })
    }

    fn take(&mut self, wire: v1::AuditBatch) -> Option<AuditBatch> {
        let newest = wire.lines.iter().rev().find_map(|line| Record::parse(line).ok());
        self.after = newest.map_or(self.after, |record| record.seq.max(self.after));
        Some(AuditBatch { lines: wire.lines, damaged: wire.damaged })
    }

    fn is_done(&self) -> bool {
        !self.query.follow
    }
}

impl AuditLines {
    pub(super) fn new(link: Link, query: AuditQuery) -> Self {
        let patience = if query.follow { None } else { Some(Duration::from_secs(10)) };
        Self(Resuming::new(link, AuditCursor { query, after: 0 }, patience))
    }

    /// The next lines; `None` at the end of what was asked for. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Progress<AuditBatch>>, LinkError> {
        self.0.next().await
    }
}

/// A change of the fleet.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Update {
    /// Forget everything first.
    pub resync: bool,
    /// New or changed.
    pub changed: Vec<Deployment>,
    /// Ids of those that are gone.
    pub removed: Vec<String>,
    /// Everything has been told.
    pub complete: bool,
}

/// Every deployment of an agent, kept up to date.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fleet {
    by_id: BTreeMap<String, Deployment>,
}

impl Fleet {
    /// Takes a change in.
    pub fn apply(&mut self, update: Update) {
        if update.resync {
            self.by_id.clear();
        }
        for id in &update.removed {
            self.by_id.remove(id);
        }
        for deployment in update.changed {
            self.by_id.insert(deployment.id.clone(), deployment);
        }
    }

    /// Sorted by name.
    pub fn by_name(&self) -> Vec<&Deployment> {
        let mut all: Vec<&Deployment> = self.by_id.values().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

/// A snapshot of the deployments, then changes.
pub struct DeploymentWatch(Resuming<WatchCursor>);

#[derive(Default)]
struct WatchCursor {
    epoch: String,
    revision: u64,
    complete: bool,
    /// The next event begins a snapshot: one that broke off half-way begins again from nothing.
    fresh: bool,
}

impl Cursor for WatchCursor {
    type Wire = v1::WatchEvent;
    type Item = Update;

    fn open(&mut self, link: &Link) -> Opening<v1::WatchEvent> {
        let mut client = link.deployments_client();
        self.fresh = !self.complete;
        let request = match self.complete {
            true => v1::WatchRequest { epoch: self.epoch.clone(), revision: self.revision },
            false => v1::WatchRequest::default(),
        };
        Box::pin(async move { client.watch(request).await.map(tonic::Response::into_inner) })
    }

    fn take(&mut self, wire: v1::WatchEvent) -> Option<Update> {
        // another epoch is another agent's life: what it does not tell again is gone
        let fresh = std::mem::take(&mut self.fresh);
        let resync = wire.resync || fresh || wire.epoch != self.epoch;
        if resync {
            self.complete = false;
        }
        self.epoch = wire.epoch;
        self.revision = wire.revision;
        self.complete |= wire.complete;
        let changed: Vec<Deployment> = wire.changed.into_iter().map(convert::deployment).collect();
        Some(Update { resync, changed, removed: wire.removed, complete: wire.complete })
    }

    fn is_done(&self) -> bool {
        false
    }
}

impl DeploymentWatch {
    pub(super) fn new(link: Link) -> Self {
        // a snapshot's caller has its own deadline, a screen waits for ever
        Self(Resuming::new(link, WatchCursor::default(), None))
    }

    /// The next change. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Progress<Update>>, LinkError> {
        self.0.next().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_ceiling_and_never_beyond() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next()).collect();
        assert!(waits.iter().all(|w| *w <= Duration::from_secs(10) && *w >= Duration::from_millis(100)));
        assert!(waits[39] >= Duration::from_secs(5));
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(200));
    }

    #[test]
    fn log_positions_move_with_each_batch() {
        let mut cursor = LogCursor { query: LogQuery::default(), positions: BTreeMap::new() };
        let position = |id: &str, seq| v1::Position { deployment_id: id.into(), seq };
        let batch = v1::TailBatch { positions: vec![position("a", 3), position("b", 9)], ..Default::default() };
        assert_eq!(cursor.take(batch), None);
        cursor.take(v1::TailBatch { positions: vec![position("a", 5)], ..Default::default() });
        assert_eq!(cursor.positions, BTreeMap::from([("a".to_owned(), 5), ("b".to_owned(), 9)]));
    }

    #[test]
    fn a_snapshot_in_pieces_is_whole() {
        let (mut cursor, mut fleet) = (WatchCursor { fresh: true, ..WatchCursor::default() }, Fleet::default());
        for (n, piece) in [["a", "b"], ["c", "d"], ["e", "f"]].iter().enumerate() {
            let named = |id: &&str| v1::Deployment { id: (*id).into(), name: (*id).into(), ..Default::default() };
            let changed = piece.iter().map(named).collect();
            let (resync, complete) = (n == 0, n == 2);
            let wire = v1::WatchEvent { epoch: "1".into(), changed, resync, complete, ..Default::default() };
            fleet.apply(cursor.take(wire).unwrap());
            assert_eq!((fleet.by_id.len(), cursor.complete), (2 * (n + 1), complete));
        }
    }

    #[test]
    fn another_epoch_forgets_what_was_known() {
        let mut cursor = WatchCursor::default();
        let mut fleet = Fleet::default();
        let d = |id: &str| v1::Deployment { id: id.into(), name: id.into(), ..Default::default() };
        let event = |epoch: &str, ids: &[&str]| v1::WatchEvent {
            epoch: epoch.into(),
            revision: 1,
            changed: ids.iter().map(|i| d(i)).collect(),
            complete: true,
            ..Default::default()
        };
        for (wire, names) in [(event("1", &["a", "b"]), vec!["a", "b"]), (event("2", &["b"]), vec!["b"])] {
            fleet.apply(cursor.take(wire).unwrap());
            assert_eq!(fleet.by_name().iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), names);
        }
    }
}
