//! One legacy session over a server process (stdio), a connection (legacy SSE) or our own translation: which of the
//! server's messages belongs on which of the client's streams.
//!
//! One client owns the process, so ids pass unchanged. A response goes to the POST that asked. What is known to belong to
//! a request goes there, progress by its token. Progress of no request that waits goes to the GET stream. Anything else
//! goes to the only POST that waits, if there is just one (so that order is kept: a log message comes before the result
//! it explains), else to the GET stream, else to any POST, else it waits (bounded).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sigil_core::jsonrpc::{self, Head, Id, Kind, Params};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::body::Event;
use super::error::Refusal;
use super::load::Place;
use super::remembered::Remembered;
use crate::upstream::{Conversation, Endpoint, Output, Said, one_line};

/// Events waiting for one client stream.
const STREAM_QUEUE: usize = 64;
/// Messages kept for a stream to come, and events kept for resumption.
const KEPT: usize = 256;
const KEPT_BYTES: usize = 2 << 20;
/// A client that takes nothing for this long has lost its stream.
const STALLED: Duration = Duration::from_secs(30);
/// Requests at once in one session.
const PENDING_MAX: usize = 1024;
/// The number of the GET stream; POST streams count from 1.
const GET: u64 = 0;

#[derive(Debug)]
struct Pending {
    stream: u64,
    token: Option<Id>,
    since: Instant,
}

#[derive(Debug)]
struct Stream {
    tx: mpsc::Sender<Event>,
    /// Requests of it without a response.
    remaining: usize,
    seq: u64,
    /// The client has seen (or will see) events with ids.
    resumable: bool,
}

#[derive(Debug)]
struct Logged {
    stream: u64,
    seq: u64,
    data: Bytes,
    last: bool,
}

#[derive(Debug, Default)]
struct State {
    ended: Option<String>,
    /// The server says nothing more; why is known a moment later.
    ending: bool,
    pending: HashMap<Id, Pending>,
    streams: HashMap<u64, Stream>,
    get: Option<mpsc::Sender<Event>>,
    get_seq: u64,
    next_stream: u64,
    backlog: VecDeque<Bytes>,
    backlog_bytes: usize,
    log: VecDeque<Logged>,
    log_bytes: usize,
}

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    /// Key of its process, in its ticket.
    pub(crate) key: String,
    /// Its deployment's name, for words.
    pub(crate) name: String,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) place: Place,
    /// The revision agreed on; unset until the server has answered `initialize`.
    pub(crate) version: OnceLock<String>,
    input: mpsc::Sender<Bytes>,
    state: Mutex<State>,
    born: Instant,
    used_ms: AtomicU64,
    /// Messages that found no place.
    dropped: Arc<AtomicU64>,
    remembered: Arc<Remembered>,
    /// Requests of the server's to its client so far.
    questions: AtomicU64,
    pub(crate) stop: CancellationToken,
}

/// A POST's place in a session.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) stream: u64,
    pub(crate) events: mpsc::Receiver<Event>,
}

impl Session {
    /// Joins a conversation to a session; [`Session::run`] must then be running.
    pub(crate) fn new(
        key: String,
        name: String,
        endpoint: Arc<Endpoint>,
        place: Place,
        (input, stop): (mpsc::Sender<Bytes>, CancellationToken),
        (dropped, remembered): (Arc<AtomicU64>, Arc<Remembered>),
    ) -> Self {
        Self {
            key,
            name,
            endpoint,
            place,
            version: OnceLock::new(),
            input,
            state: Mutex::default(),
            born: Instant::now(),
            used_ms: AtomicU64::new(0),
            dropped,
            remembered,
            questions: AtomicU64::new(0),
            stop,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn touch(&self) {
        self.used_ms.store(u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// How often its server has asked its client something.
    pub(crate) fn questions(&self) -> u64 {
        self.questions.load(Relaxed)
    }

    /// How long nobody used it; `None` while a request or stream is open.
    pub(crate) fn idle(&self) -> Option<Duration> {
        let state = self.state();
        let open =
            state.get.as_ref().is_some_and(|tx| !tx.is_closed()) || state.streams.values().any(|s| !s.tx.is_closed());
        drop(state);
        let used = Duration::from_millis(self.used_ms.load(Relaxed));
        (!open).then(|| self.born.elapsed().saturating_sub(used))
    }

    pub(crate) fn ended(&self) -> Option<String> {
        self.state().ended.clone()
    }

    /// Reads the server until it ends or `stop`. Answers why it ended, `None` when it was stopped.
    pub(crate) async fn run(&self, mut conversation: Output) -> Option<String> {
        // our own translation knows what belongs to no request
        let knows = matches!(conversation, Output::Told(_));
        let (over, mut ending) = (conversation.over(), false);
        loop {
            let said = tokio::select! {
                () = self.stop.cancelled() => {
                    self.end("was closed by its client").await;
                    return None;
                }
                () = over.cancelled(), if !ending => {
                    ending = true;
                    drop(self.retire());
                    continue;
                }
                said = conversation.said(&self.endpoint) => said,
            };
            match said {
                Ok(Said { data: text, about }) => match jsonrpc::parse(&text) {
                    Ok(jsonrpc::Body::One(head)) => self.deliver(&head, text.clone(), about, knows).await,
                    Ok(jsonrpc::Body::Batch(heads)) => {
                        for head in &heads {
                            self.deliver(head, text.slice_ref(head.text.as_bytes()), None, knows).await;
                        }
                    }
                    Err(_) => match &mut conversation {
                        Output::Stdio(lines) => lines.stray(&self.endpoint, text).await,
                        Output::Sse(_) | Output::Told(_) => {
                            self.dropped.fetch_add(1, Relaxed);
                        }
                    },
                },
                Err(why) => {
                    self.end(&why).await;
                    return Some(why);
                }
            }
        }
    }

    /// Passes a message on to the server. One that does not go out finds the session over: its client begins anew.
    pub(crate) async fn send(&self, message: Bytes) -> Result<(), Refusal> {
        let sent = self.input.send(one_line(message)).await;
        sent.map_err(|_| self.over(&self.state()).unwrap_or_else(|| expired("no longer reads")))
    }

    /// Makes a place for the responses to `requests`. Fails when one of their ids is in use.
    pub(crate) fn register(&self, requests: &[&Head<'_>]) -> Result<Waiting, Refusal> {
        let (tx, events) = mpsc::channel(STREAM_QUEUE);
        let mut state = self.state();
        if let Some(over) = self.over(&state) {
            return Err(over);
        }
        if state.pending.len() + requests.len() > PENDING_MAX {
            let message = format!("this session has {PENDING_MAX} unanswered requests");
            return Err(Refusal::overloaded(message, "wait for answers before asking more"));
        }
        let mut ids = Vec::new();
        for head in requests {
            let Some(id) = head.id.clone() else { continue };
            if state.pending.contains_key(&id) || ids.iter().any(|(other, _)| *other == id) {
                let message = format!("the id {id} is already in use by an unanswered request");
                return Err(Refusal::bad_request(message, "use a new id for every request of a session"));
            }
            let text = head.params.map_or("", serde_json::value::RawValue::get);
            let token =
                text.contains("progressToken").then(|| Params::read(head.params).own_progress_token()).flatten();
            ids.push((id, token));
        }
        state.next_stream += 1;
        let stream = state.next_stream;
        let remaining = ids.len();
        for (id, token) in ids {
            state.pending.insert(id, Pending { stream, token, since: Instant::now() });
        }
        let mut open = Stream { tx, remaining, seq: 0, resumable: false };
        let waiting = if state.get.is_none() && self.version.get().is_some() {
            state.backlog_bytes = 0;
            std::mem::take(&mut state.backlog)
        } else {
            VecDeque::new()
        };
        let mut queue = waiting.into_iter();
        for data in queue.by_ref().take(STREAM_QUEUE / 2) {
            let event = Event { related: false, ..next_event(&mut open, stream, data, false, &mut state) };
            open.tx.try_send(event).ok();
        }
        for rest in queue {
            state.keep(rest, &self.dropped);
        }
        state.streams.insert(stream, open);
        Ok(Waiting { stream, events })
    }

    /// The POST's answer becomes an event stream. Answers its priming event, where the client's revision has those.
    pub(crate) fn upgrade(&self, stream: u64) -> Option<Event> {
        if let Some(open) = self.state().streams.get_mut(&stream) {
            open.resumable = true;
        }
        let primed = self.version.get().is_some_and(|v| v.as_str() >= "2025-11-25");
        primed.then(|| Event { id: Some(format!("{stream}-0")), data: Bytes::new(), last: false, related: false })
    }

    /// Gives a request up and tells the server.
    pub(crate) fn abandon(&self, id: &Id) {
        let mut state = self.state();
        if let Some(pending) = state.pending.remove(id) {
            state.streams.remove(&pending.stream);
        }
        drop(state);
        let text = format!(
            "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{{\"requestId\":{},\"reason\":\"timeout\"}}}}",
            id.to_json()
        );
        if self.input.try_send(text.into()).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// The client cancelled a request: its POST ends, whatever the server still says.
    pub(crate) async fn cancelled(&self, head: &Head<'_>) {
        let Some(id) = Params::read(head.params).request_id.and_then(Id::read) else { return };
        let error = jsonrpc::error(Some(&id), -31499, "cancelled by the client", "");
        self.finish(&id, Bytes::from(error)).await;
    }

    /// Opens the GET stream, or resumes the stream of `last_event_id`: what it missed, and what follows.
    pub(crate) fn listen(&self, last_event_id: Option<&str>) -> Result<(Vec<Event>, mpsc::Receiver<Event>), Refusal> {
        let (tx, rx) = mpsc::channel(STREAM_QUEUE);
        let mut state = self.state();
        if let Some(over) = self.over(&state) {
            return Err(over);
        }
        let after = last_event_id.and_then(|id| {
            let (stream, seq) = id.split_once('-')?;
            Some((stream.parse::<u64>().ok()?, seq.parse::<u64>().ok()?))
        });
        let mut missed = Vec::new();
        if let Some((stream, seq)) = after {
            let kept = state.log.iter().filter(|l| l.stream == stream && l.seq > seq);
            missed.extend(kept.map(|l| Event {
                id: Some(format!("{}-{}", l.stream, l.seq)),
                data: l.data.clone(),
                last: l.last,
                related: true,
            }));
            if stream != GET {
                if let Some(open) = state.streams.get_mut(&stream) {
                    open.tx = tx;
                    return Ok((missed, rx));
                }
                if !missed.is_empty() {
                    // it ended meanwhile: `tx` ends here too
                    return Ok((missed, rx));
                }
            }
        }
        let backlog = std::mem::take(&mut state.backlog);
        state.backlog_bytes = 0;
        for data in backlog {
            missed.push(state.get_event(data));
        }
        state.get = Some(tx);
        Ok((missed, rx))
    }

    /// Requests whose client left long ago are forgotten.
    pub(crate) fn sweep(&self, older: Duration) {
        let mut state = self.state();
        let State { pending, streams, .. } = &mut *state;
        pending.retain(|_, p| {
            let gone = streams.get(&p.stream).is_none_or(|s| s.tx.is_closed());
            !(gone && p.since.elapsed() > older)
        });
        streams.retain(|number, s| !s.tx.is_closed() || pending.values().any(|p| p.stream == *number));
    }

    /// `about`: the request that it came for, where the other side `knows` that.
    async fn deliver(&self, head: &Head<'_>, data: Bytes, about: Option<Id>, knows: bool) {
        let data = one_line(data);
        if head.kind == Kind::Response {
            match &head.id {
                Some(id) => self.finish(id, data).await,
                None => {
                    self.dropped.fetch_add(1, Relaxed);
                }
            }
            return;
        }
        match (head.kind, head.method.as_ref()) {
            (Kind::Request, _) => drop(self.questions.fetch_add(1, Relaxed)),
            (_, "notifications/tools/list_changed") => self.remembered.forget_lists(&self.endpoint),
            _ => {}
        }
        let token = (head.kind == Kind::Notification && head.method == "notifications/progress")
            .then(|| Params::read(head.params).progress_token.and_then(Id::read))
            .flatten();
        let (tx, event) = {
            let mut state = self.state();
            let State { pending, streams, get, .. } = &mut *state;
            let get_open = get.as_ref().is_some_and(|tx| !tx.is_closed());
            let by_token = token.as_ref().and_then(|t| pending.values().find(|p| p.token.as_ref() == Some(t)));
            let by_token = about.and_then(|id| pending.get(&id)).or(by_token);
            let mut open =
                pending.values().map(|p| p.stream).filter(|s| streams.get(s).is_some_and(|s| !s.tx.is_closed()));
            let oldest = open.clone().min();
            let only = oldest.filter(|s| open.all(|other| other == *s));
            let stream = match by_token {
                Some(pending) => Some(pending.stream),
                // before the handshake is done nothing belongs to anybody
                None if self.version.get().is_none() => None,
                None if knows && get_open => None,
                // of a call that was given up, or of a task: not of the call that happens to wait
                None if token.is_some() => None,
                None => only.or(if get_open { None } else { oldest }),
            };
            match stream.and_then(|number| Some((number, streams.remove(&number)?))) {
                Some((number, mut open)) => {
                    let event = next_event(&mut open, number, data, false, &mut state);
                    let tx = open.tx.clone();
                    state.streams.insert(number, open);
                    (tx, event)
                }
                None if get_open && self.version.get().is_some() => {
                    let event = state.get_event(data);
                    let full = state.get.as_ref().is_some_and(|tx| tx.try_send(event).is_err());
                    if full {
                        // it does not read: it may come back and resume from what is kept
                        state.get = None;
                    }
                    return;
                }
                None => {
                    state.keep(data, &self.dropped);
                    return;
                }
            }
        };
        self.pass(&tx, event).await;
    }

    /// A request's last message.
    async fn finish(&self, id: &Id, data: Bytes) {
        let (tx, event) = {
            let mut state = self.state();
            let Some(pending) = state.pending.remove(id) else {
                // late: cancelled, timed out, or asked by a former agent
                self.dropped.fetch_add(1, Relaxed);
                return;
            };
            let Some(mut open) = state.streams.remove(&pending.stream) else { return };
            open.remaining = open.remaining.saturating_sub(1);
            let last = open.remaining == 0;
            let event = next_event(&mut open, pending.stream, data, last, &mut state);
            let tx = open.tx.clone();
            if !last {
                state.streams.insert(pending.stream, open);
            }
            (tx, event)
        };
        self.pass(&tx, event).await;
    }

    async fn pass(&self, tx: &mpsc::Sender<Event>, event: Event) {
        let Err(mpsc::error::TrySendError::Full(event)) = tx.try_send(event) else { return };
        // the client reads slower than the server writes: the server waits
        if tokio::time::timeout(STALLED, tx.send(event)).await.is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// The answer to what is not sent any more. A handshake waits for the reason.
    fn over(&self, state: &State) -> Option<Refusal> {
        let ending = state.ending && self.version.get().is_some();
        state.ended.as_deref().or(ending.then_some("has closed its stdout")).map(expired)
    }

    /// Nothing more is sent to the server, and nothing comes that belongs to no request.
    fn retire(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.ending = true;
        state.get = None;
        state
    }

    async fn end(&self, why: &str) {
        let ids: Vec<Id> = {
            let mut state = self.retire();
            state.ended.get_or_insert_with(|| why.to_owned());
            state.pending.keys().cloned().collect()
        };
        let refusal = Refusal::failed(&self.name, format!("the server process of this session {why} during the call"));
        for id in ids {
            self.finish(&id, refusal.to_json(Some(&id))).await;
        }
    }
}

fn expired(why: &str) -> Refusal {
    Refusal::expired(format!("this session is over: its server process {why}"))
}

/// The stream's next event, kept for resumption where the client can ask for it.
fn next_event(open: &mut Stream, stream: u64, data: Bytes, last: bool, state: &mut State) -> Event {
    open.seq += 1;
    // an answer that is the first message goes out as plain JSON: nothing to resume
    if !(last && open.seq == 1 && !open.resumable) {
        open.resumable = true;
        state.remember(Logged { stream, seq: open.seq, data: data.clone(), last });
    }
    Event { id: Some(format!("{stream}-{}", open.seq)), data, last, related: true }
}

impl State {
    fn get_event(&mut self, data: Bytes) -> Event {
        self.get_seq += 1;
        let seq = self.get_seq;
        self.remember(Logged { stream: GET, seq, data: data.clone(), last: false });
        Event { id: Some(format!("{GET}-{seq}")), data, last: false, related: false }
    }

    fn remember(&mut self, logged: Logged) {
        self.log_bytes += logged.data.len();
        self.log.push_back(logged);
        while self.log.len() > KEPT || self.log_bytes > KEPT_BYTES {
            let Some(old) = self.log.pop_front() else { break };
            self.log_bytes -= old.data.len();
        }
    }

    fn keep(&mut self, data: Bytes, dropped: &AtomicU64) {
        self.backlog_bytes += data.len();
        self.backlog.push_back(data);
        while self.backlog.len() > KEPT || self.backlog_bytes > KEPT_BYTES {
            let Some(old) = self.backlog.pop_front() else { break };
            self.backlog_bytes -= old.len();
            dropped.fetch_add(1, Relaxed);
        }
    }
}

/// A conversation's two halves, for [`Session::new`] and [`Session::run`].
pub(crate) fn halves(conversation: Conversation) -> ((mpsc::Sender<Bytes>, CancellationToken), Output) {
    ((conversation.input, conversation.end), conversation.output)
}
