//! The HTTP face of bridged sessions: streamable HTTP towards the client, a process or a legacy SSE connection behind.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::value::RawValue;
use sigil_core::jsonrpc::{self, Head, Kind, Params};
use sigil_core::model::{Resources, Transport};
use sigil_core::session::Ticket;
use tokio::time::Instant;

use super::body::{Events, Out, Timeout};
use super::bridge::{Session, halves};
use super::error::Refusal;
use super::find::now;
use super::greeter::{self, Guest};
use super::load::{Call, Place};
use super::plain::accepts;
use super::proxy::{SESSION_LIFE, inject_body};
use super::seal::{ID_MAX, random_key};
use super::serve::Asked;
use super::table::{Entry, Live};
use super::{Shared, client, cross, modern};
use crate::upstream::quota::Starting;
use crate::upstream::{Conversation, Endpoint, SHARED_PREFIX, UpstreamError, converse, spare, stdio};

/// An answer that comes this soon goes out as plain JSON; a later one gets a stream, so that the client sees a sign of
/// life and can come back to it.
pub(crate) const PLAIN: Duration = Duration::from_secs(1);
/// A session without a stream may make room for a new one after this.
const EVICTABLE: Duration = Duration::from_secs(10);
/// Between two looks at whether a process has ended.
const ENDING: Duration = Duration::from_millis(100);
/// From a session's beginning or end to the start of the next spare process.
const CALM: Duration = Duration::from_secs(1);
/// From end of input to SIGTERM.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

pub(crate) async fn post(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    heads: &[&Head<'_>],
    body: &Bytes,
) -> Result<Response<Out>, Refusal> {
    if !accepts(asked.headers, "text/event-stream") {
        return Err(Refusal::not_acceptable());
    }
    let piece = |head: &Head<'_>| match inject_body(&asked.entry.injected, head) {
        Some(changed) => Bytes::from(changed),
        None => body.slice_ref(head.text.as_bytes()),
    };
    if let [head] = heads
        && head.kind == Kind::Request
        && head.method == "initialize"
    {
        // with an old session id too: a client that starts over means a new session
        return Box::pin(initialize(shared, asked, head, piece(head))).await;
    }
    let session = session(shared, asked).await?;
    session.touch();
    let requests: Vec<&Head<'_>> = heads.iter().filter(|h| h.kind == Kind::Request).copied().collect();
    let waiting = if requests.is_empty() { None } else { Some(session.register(&requests)?) };
    let mut call = waiting.as_ref().map(|_| call(shared, &session, asked.entry, asked, &requests));
    for head in heads {
        if let Err(refusal) = session.send(piece(head)).await {
            call.iter_mut().for_each(Call::fail);
            return Err(refusal);
        }
        if head.kind == Kind::Notification && head.method == "notifications/cancelled" {
            session.cancelled(head).await;
        }
    }
    let Some(mut waiting) = waiting else { return Ok(accepted()) };
    let limit = Duration::from_millis(session.endpoint.spec.request_timeout_ms);
    let deadline = Instant::now() + limit;
    let first = tokio::time::timeout(PLAIN.min(limit), waiting.events.recv()).await;
    let first = match first {
        Ok(Some(event)) if event.last && requests.len() == 1 => {
            call.iter_mut().for_each(|call| call.answered(&event.data));
            if jsonrpc::parse_one(&event.data).is_ok_and(|h| h.error.is_some()) {
                call.iter_mut().for_each(Call::fail);
            }
            return Ok(json(event.data));
        }
        Ok(Some(event)) => Some(event),
        Ok(None) => {
            call.iter_mut().for_each(Call::fail);
            let why = session.ended().unwrap_or_else(|| "was closed".into());
            let what = format!("the server process of this session {why} during the call");
            return Err(Refusal::failed(asked.name, what));
        }
        Err(_) => None,
    };
    let alive = first.as_ref().is_some_and(|e| e.related);
    let priming = session.upgrade(waiting.stream);
    let events = Events::new(priming.into_iter().chain(first), waiting.events, call);
    let id = match requests.as_slice() {
        [head] if !alive => head.id.clone(),
        _ => None,
    };
    let Some(id) = id else { return Ok(stream(events)) };
    let event = Refusal::timeout(asked.name, session.endpoint.spec.request_timeout_ms).to_json(Some(&id));
    let abandon = Box::new(move || session.abandon(&id));
    Ok(stream(events.with_deadline(deadline, Timeout { event, abandon })))
}

pub(crate) async fn listen(shared: &Arc<Shared>, asked: Asked<'_>) -> Result<Response<Out>, Refusal> {
    if !accepts(asked.headers, "text/event-stream") {
        return Err(Refusal::not_acceptable());
    }
    let session = session(shared, &asked).await?;
    session.touch();
    let last = asked.headers.get("last-event-id").and_then(|v| v.to_str().ok());
    let (missed, events) = session.listen(last)?;
    Ok(stream(Events::new(missed, events, None)))
}

pub(crate) async fn delete(shared: &Arc<Shared>, asked: Asked<'_>) -> Result<Response<Out>, Refusal> {
    let session = session(shared, &asked).await?;
    if greeted(&session.key) {
        shared.greeted_ended.add(&session.key);
    }
    shared.close(&session);
    let mut response = Response::new(Out::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn call(shared: &Shared, session: &Session, entry: &Entry, asked: &Asked<'_>, heads: &[&Head<'_>]) -> Call {
    let stats = shared.registry.stats_of(session.endpoint.instance);
    let call = Call::begin(&stats, &entry.recorder, asked.caller).traced(asked.trace);
    match heads {
        [head] => call.of(head),
        _ => call,
    }
}

/// The session of a request, resumed from init when a former agent began it.
async fn session(shared: &Arc<Shared>, asked: &Asked<'_>) -> Result<Arc<Session>, Refusal> {
    let Some((_, ticket)) = &asked.ticket else {
        let hint = "send initialize first, then its Mcp-Session-Id with every request";
        return Err(Refusal::bad_request("the Mcp-Session-Id header is missing", hint));
    };
    if ticket.translated {
        return Box::pin(cross::session(shared, asked, ticket)).await;
    }
    match shared.session_of(&ticket.upstream) {
        Some(session) => Ok(session),
        None => Box::pin(resumed(shared, asked, ticket)).await,
    }
}

/// A session that a former agent began.
async fn resumed(shared: &Arc<Shared>, asked: &Asked<'_>, ticket: &Ticket) -> Result<Arc<Session>, Refusal> {
    let gone = || Refusal::expired("this session is over: its server process has ended");
    if ticket.transport != Transport::Stdio {
        return Err(gone());
    }
    let live = shared.replica_of(asked.entry, ticket)?;
    let _one_at_a_time = shared.resuming.lock().await;
    if let Some(session) = shared.session_of(&ticket.upstream) {
        return Ok(session);
    }
    if shared.closing().contains(&ticket.upstream) {
        return Err(gone());
    }
    let resumed = live.endpoint.wire.resume(&ticket.upstream).await;
    let piped = resumed.map_err(|e| Refusal::failed(asked.name, format!("the session cannot be resumed: {e}")))?;
    let piped = piped.ok_or_else(gone)?;
    let conversation = stdio::conversation(&live.endpoint, piped, true);
    let place = Place::take(&live.stats, u64::MAX).ok_or_else(gone)?;
    let session = shared.begin(live, ticket.upstream.clone(), asked.name, conversation, place);
    session.version.set(ticket.version.clone()).ok();
    Ok(session)
}

async fn initialize(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    head: &Head<'_>,
    message: Bytes,
) -> Result<Response<Out>, Refusal> {
    let entry = shared.ready_as(asked.name, asked.settings.as_ref()).await?;
    let entry = shared.personal(entry, asked.caller)?;
    if cross::translates(shared) && shared.remembered.no_handshake(&entry) {
        return cross::greet(shared, asked, &entry, head, message).await;
    }
    let opened = open(shared, &entry, asked.name, "s-").await?;
    let response = match shake(shared, asked, &entry, head, message.clone(), opened, None).await? {
        Shaken::Session(response) => return Ok(response),
        Shaken::Refused(response) => response,
    };
    let caller = client::Client::of(asked, &entry);
    // where that cannot be said now, a process has answered all the same
    if cross::no_handshake(shared, asked.name, &caller, &entry).await.unwrap_or(false) {
        return cross::greet(shared, asked, &entry, head, message).await;
    }
    Ok(response)
}

/// How a handshake ended.
pub(crate) enum Shaken {
    Session(Response<Out>),
    /// The server's own words.
    Refused(Response<Out>),
}

/// Passes `initialize` on and makes a session of its answer. `guest`: the gateway itself is the other side.
pub(crate) async fn shake(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    entry: &Arc<Entry>,
    head: &Head<'_>,
    message: Bytes,
    opened: Opened,
    guest: Option<&Guest>,
) -> Result<Shaken, Refusal> {
    let Opened { live, key, conversation, place, starting: _starting } = opened;
    let spec = &live.endpoint.spec;
    let session = shared.begin(&live, key, asked.name, conversation, place);
    // until the handshake is done a failure, or a client that leaves, ends the session
    let unfinished = Unfinished { shared, session: Some(session.clone()) };
    let mut call = call(shared, &session, entry, asked, &[]);
    let ms = spec.request_timeout_ms.max(spec.start_timeout_ms);
    let answered = async {
        let mut waiting = session.register(&[head]).ok()?;
        // a process that has ended is told by its output, with the reason
        session.send(message).await.ok();
        waiting.events.recv().await
    };
    let outcome = tokio::time::timeout(Duration::from_millis(ms), answered).await;
    let event = match outcome {
        Ok(Some(event)) => event,
        Ok(None) => {
            call.fail();
            let why = session.ended().unwrap_or_else(|| "was closed".into());
            return Err(Refusal::failed(asked.name, format!("the server process {why} before it answered initialize")));
        }
        Err(_) => {
            call.fail();
            return Err(Refusal::timeout(asked.name, ms));
        }
    };
    if let Some(why) = session.ended() {
        call.fail();
        let what = format!("the server process {why} before it answered initialize");
        return Err(Refusal::failed(asked.name, what));
    }
    let version = jsonrpc::parse_one(&event.data).ok().and_then(|h| agreed(h.result));
    let Some(version) = version else {
        // the server refuses: its own words go to the client, and there is no session
        call.fail();
        let (status, _) = modern::status(&event.data);
        let mut response = json(event.data);
        if status == StatusCode::BAD_REQUEST {
            *response.status_mut() = status;
        }
        return Ok(Shaken::Refused(response));
    };
    let ticket = Ticket {
        deployment: entry.id,
        instance: live.endpoint.instance,
        principal: client::principal(asked).to_owned(),
        transport: spec.transport,
        version: version.clone(),
        upstream: session.key.clone(),
        translated: guest.is_some(),
        expires: now() + SESSION_LIFE,
        settings: asked.settings.as_ref().map(|settings| settings.digest),
    };
    let texts = guest.map_or_else(|| vec![session.key.clone()], Guest::packed);
    let mut ids = texts.into_iter().filter_map(|text| shared.sealer.seal(&Ticket { upstream: text, ..ticket.clone() }));
    let id = ids.find(|id| id.len() <= ID_MAX).and_then(|id| HeaderValue::try_from(id).ok());
    let id = id.ok_or_else(|| Refusal::failed(asked.name, "no session id could be made: no randomness"))?;
    session.version.set(version).ok();
    session.touch();
    unfinished.done();
    shared.refill_soon(&live.endpoint);
    let mut response = json(event.data);
    response.headers_mut().insert("mcp-session-id", id);
    Ok(Shaken::Session(response))
}

fn agreed(result: Option<&RawValue>) -> Option<String> {
    jsonrpc::string(Params::read(result).protocol_version?).map(std::borrow::Cow::into_owned)
}

/// Ends a session whose handshake did not come to its end.
struct Unfinished<'a> {
    shared: &'a Arc<Shared>,
    session: Option<Arc<Session>>,
}

impl Unfinished<'_> {
    fn done(mut self) {
        self.session = None;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.shared.close(&session);
        }
    }
}

/// Whether the session of a key is one of the gateway's own: no process stands behind it.
pub(crate) fn greeted(key: &str) -> bool {
    key.starts_with(greeter::PREFIX)
}

/// Most sessions of a replica at once.
fn most(endpoint: &Endpoint) -> u32 {
    let Resources { processes, memory, .. } = endpoint.spec.resources;
    let default = sigil_core::route::sessions_default(processes, memory, endpoint.spare.memory());
    endpoint.spec.sessions_max.unwrap_or(default).max(1)
}

/// A conversation with a replica, and its place there.
pub(crate) struct Opened {
    pub(crate) live: Live,
    pub(crate) key: String,
    pub(crate) conversation: Conversation,
    pub(crate) place: Place,
    /// To be held until the server has answered.
    pub(crate) starting: Starting,
}

/// Finds a replica with room and begins a conversation with it. `prefix` begins the key of its process.
pub(crate) async fn open(shared: &Arc<Shared>, entry: &Entry, name: &str, prefix: &str) -> Result<Opened, Refusal> {
    let mut last = None;
    for live in shared.order(entry, true) {
        match open_at(shared, live, name, prefix).await {
            Ok(opened) => return Ok(opened),
            Err(refusal) => last = Some(refusal),
        }
    }
    Err(last.unwrap_or_else(|| Refusal::unreached(name, None)))
}

/// The same with this replica.
pub(crate) async fn open_at(shared: &Arc<Shared>, live: &Live, name: &str, prefix: &str) -> Result<Opened, Refusal> {
    let place = shared.admit_session(live, name)?;
    let key = format!("{prefix}{}", random_key());
    let starting = live.endpoint.quota.starting();
    let begun = match live.endpoint.spare.take(&live.endpoint, &key, prefix == SHARED_PREFIX).await {
        Some(conversation) => Ok(conversation),
        None => converse(&live.endpoint, &key).await,
    };
    match begun {
        Ok(conversation) => Ok(Opened { live: live.clone(), key, conversation, place, starting }),
        Err(UpstreamError::Gate { what, .. }) => {
            Err(Refusal::failed(name, format!("'{name}' cannot be reached: {what}")))
        }
        Err(UpstreamError::Link(link)) => Err(Refusal::unreached(name, Some(link))),
    }
}

impl Shared {
    pub(crate) fn session_of(&self, key: &str) -> Option<Arc<Session>> {
        self.sessions().get(key).cloned()
    }

    /// Starts a session.
    pub(crate) fn begin(
        self: &Arc<Self>,
        live: &Live,
        key: String,
        name: &str,
        conversation: Conversation,
        place: Place,
    ) -> Arc<Session> {
        let (input, output) = halves(conversation);
        let session = Arc::new(Session::new(
            key.clone(),
            name.to_owned(),
            live.endpoint.clone(),
            place,
            input,
            (self.dropped.clone(), self.remembered.clone()),
        ));
        self.sessions().insert(key, session.clone());
        let (shared, reading) = (self.clone(), session.clone());
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                // processes outlive the agent: only the reading stops
                () = shared.stop.cancelled() => return,
                ended = reading.run(output) => ended,
            };
            if let Some(why) = ended {
                tracing::debug!(deployment = reading.name, "a session's server process {why}");
                shared.close(&reading);
            }
        });
        session
    }

    /// Ends a session and its process.
    pub(crate) fn close(self: &Arc<Self>, session: &Arc<Session>) {
        {
            // in one step: who does not find the session any more must find that it ends
            let mut closing = self.closing();
            if self.sessions().remove(&session.key).is_none() {
                return;
            }
            closing.insert(session.key.clone());
        }
        session.stop.cancel();
        let (shared, session) = (self.clone(), session.clone());
        self.tasks.spawn(async move {
            let (endpoint, key) = (session.endpoint.clone(), session.key.clone());
            if !greeted(&key) {
                shared.finish(&endpoint, &key, session).await;
            }
            shared.closing().remove(&key);
        });
    }

    /// Ends a session's process, and has another wait in the place that gets free with `held`.
    pub(crate) async fn finish(&self, endpoint: &Arc<Endpoint>, key: &str, held: impl Send) {
        if endpoint.spec.transport != Transport::Stdio {
            return;
        }
        let wire = &endpoint.wire;
        wire.close(key, GRACE).await;
        // memory is free when it has ended, not before
        let limit = Instant::now() + GRACE * 3;
        let waits = || Instant::now() < limit && !self.stop.is_cancelled();
        while waits() && wire.keys().await.is_ok_and(|keys| keys.iter().any(|k| k == key)) {
            tokio::time::sleep(ENDING).await;
        }
        drop(held);
        self.refill_later(endpoint).await;
    }

    /// [`Self::refill`], without waiting for it.
    pub(crate) fn refill_soon(self: &Arc<Self>, endpoint: &Arc<Endpoint>) {
        let (shared, endpoint) = (self.clone(), endpoint.clone());
        self.tasks.spawn(async move { shared.refill_later(&endpoint).await });
    }

    /// [`Self::refill`] after a moment: a new release that comes right behind a first call needs the processor more than
    /// the old one's next session.
    async fn refill_later(&self, endpoint: &Arc<Endpoint>) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(CALM) => self.refill(endpoint).await,
        }
    }

    /// Has a process wait for the next session, if a replica that takes sessions has room for it.
    pub(crate) async fn refill(&self, endpoint: &Arc<Endpoint>) {
        if endpoint.spec.transport != Transport::Stdio || self.stop.is_cancelled() {
            return;
        }
        let table = self.table.borrow().clone();
        let entry = table.by_id.get(&endpoint.deployment);
        // not one of a session's own configuration: the next session's is not known
        let live = entry.and_then(|e| e.ready.iter().find(|live| live.endpoint.instance == endpoint.instance));
        let Some(Live { endpoint, .. }) = live else { return };
        // what is about to go needs none
        if entry.and_then(|e| e.coming).is_some_and(|release| release != endpoint.release) {
            return;
        }
        // init knows, also of sessions that a former agent began and nobody has come back to
        let Ok(keys) = endpoint.wire.keys().await else { return };
        let taken = keys.iter().filter(|key| !key.starts_with(spare::PREFIX)).count();
        if taken < most(endpoint) as usize {
            endpoint.spare.tend(endpoint);
        }
    }

    /// Takes a place for a session, ending one that nobody uses if it must.
    fn admit_session(self: &Arc<Self>, live: &Live, name: &str) -> Result<Place, Refusal> {
        let max = most(&live.endpoint);
        if let Some(place) = Place::take(&live.stats, u64::from(max)) {
            return Ok(place);
        }
        let oldest = {
            let sessions = self.sessions();
            let here = sessions.values().filter(|s| s.endpoint.instance == live.endpoint.instance);
            let here = here.filter(|s| !greeted(&s.key));
            let idle = here.filter_map(|s| Some((s.idle()?, s.clone()))).filter(|(idle, _)| *idle > EVICTABLE);
            idle.max_by_key(|(idle, _)| *idle).map(|(_, session)| session)
        };
        if let Some(oldest) = oldest
            && let Some(place) = oldest.place.hand_over()
        {
            tracing::debug!(deployment = name, "an idle session made room for a new one");
            self.close(&oldest);
            return Ok(place);
        }
        if let Some(process) = live.common.retire(EVICTABLE) {
            // what it holds is free as soon as its reader has let go
            process.stop.cancel();
            tracing::debug!(deployment = name, "an idle shared process made room for a session");
        }
        let message = format!("'{name}' has its most sessions at once: {max} a replica");
        let hint = "end a session, add a replica (`sigil scale`), or raise sessions.max in the manifest";
        Err(Refusal::overloaded(message, hint))
    }
}

pub(crate) fn json(data: Bytes) -> Response<Out> {
    let mut response = Response::new(Out::full(data));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(crate) fn stream(events: Events) -> Response<Out> {
    event_stream(Out::Events(Box::new(events)))
}

/// A stream of events.
pub(crate) fn event_stream(out: Out) -> Response<Out> {
    let mut response = Response::new(out);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

pub(crate) fn accepted() -> Response<Out> {
    let mut response = Response::new(Out::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}
