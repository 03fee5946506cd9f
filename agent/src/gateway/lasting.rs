//! Sessions of the older era that outlast what is behind them: such a session began while its deployment slept, with the
//! handshake that the release's server once answered to the same words, or its server's sessions may be begun again
//! (`sessions.replayable`). The gateway holds what the client said, and opens a session of the server's with it as soon as
//! something comes that only the server can answer.
//!
//! The session inside is like any other and goes the ways of any other; this is what stands around it. One that has ended is
//! over for the client, too (404: it begins anew), unless it may be begun again.

mod inside;
mod ledger;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use sigil_core::jsonrpc::{self, Head, Kind, Params};
use sigil_core::model::{ReleaseNo, Transport};
use sigil_core::session::Ticket;
use tokio_util::task::AbortOnDropHandle;

use super::Shared;
use super::body::{Later, Next, Out};
use super::bridged::{self, accepted, json};
use super::caching;
use super::caller::Caller;
use super::client::{self, Client};
use super::error::Refusal;
use super::find::now;
use super::plain::accepts;
use super::proxy::{self, SESSION_LIFE};
use super::remembered::{self, Greeting, is_older_list};
use super::seal::random_key;
use super::serve::Asked;
use super::settings::Settings;
use super::table::Entry;
use crate::upstream::http;
use inside::{near, open, through, ticket};
pub(crate) use ledger::Ledger;
use ledger::{Inner, Lasting, Written};

/// Sessions inside that a message is tried in, one after the other, where they are over before they did anything with it.
const TRIES: u32 = 4;
/// Pause before the third and later ones.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(50);
/// Begins the key of such a session.
const PREFIX: &str = "l-";
/// Resources to which one may be subscribed.
const SUBSCRIBED_MAX: usize = 1024;
/// Severities of RFC 5424, as `logging/setLevel` knows them.
const LEVELS: [&str; 8] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];
const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

/// Whether a session id is one of these.
pub(crate) fn is(ticket: Option<&(HeaderValue, Ticket)>) -> bool {
    ticket.is_some_and(|(_, ticket)| ticket.instance.0.is_nil() && ticket.upstream.starts_with(PREFIX))
}

fn is_hello(head: &Head<'_>) -> bool {
    head.kind == Kind::Request && head.method == "initialize"
}

/// The one of a request.
fn of(shared: &Shared, asked: &Asked<'_>) -> Result<Arc<Lasting>, Refusal> {
    let found = asked.ticket.as_ref().and_then(|(_, ticket)| shared.lasting.find(ticket));
    found.ok_or_else(|| Refusal::expired("this session is over"))
}

/// Begins one. Answers its id.
fn begin(shared: &Arc<Shared>, asked: &Asked<'_>, written: Written, version: &str) -> Option<HeaderValue> {
    let ticket = Ticket {
        deployment: written.deployment,
        instance: ulid::Ulid(0).into(),
        principal: client::principal(asked).to_owned(),
        // of no meaning here: the session inside has its own
        transport: Transport::Http,
        version: version.to_owned(),
        upstream: format!("{PREFIX}{}", random_key()),
        translated: false,
        expires: written.expires,
        settings: asked.settings.as_ref().map(|settings| settings.digest),
    };
    let id = shared.sealer.seal(&ticket).and_then(|id| HeaderValue::try_from(id).ok())?;
    let lasting = shared.lasting.add(ticket.upstream, written);
    shared.keep_lasting(&lasting);
    Some(id)
}

fn written(entry: &Entry, release: ReleaseNo, hello: &str, inner: Inner) -> Written {
    let told = inner != Inner::None;
    let (initialized, touched, level, subscribed) = (false, false, None, BTreeSet::new());
    let expires = now() + SESSION_LIFE;
    let hello = hello.to_owned();
    Written { deployment: entry.id, release, hello, expires, inner, initialized, told, touched, level, subscribed }
}

/// The answer to a handshake with a deployment that sleeps, where its release's server answered the same words before.
pub(crate) fn greet(shared: &Arc<Shared>, asked: &Asked<'_>, head: Option<&Head<'_>>) -> Option<Response<Out>> {
    let (head, entry) = (head.filter(|head| is_hello(head))?, asked.entry);
    // what is in its configuration, or goes there with each request, the server may answer to as well
    if entry.terms.is_some() || asked.settings.is_some() || !accepts(asked.headers, "text/event-stream") {
        return None;
    }
    let alone = Client::of(asked, entry).carries_nothing();
    let release = entry.release.filter(|_| alone)?;
    let (hello, id) = (head.params?.get(), head.id_text?);
    let Greeting { result, sessions } = shared.remembered.greeting(entry.id, release, hello)?;
    let version = agreed(&result)?;
    let mut response = json(Bytes::from(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}")));
    if sessions {
        let id = begin(shared, asked, written(entry, release, hello, Inner::None), &version)?;
        response.headers_mut().insert(SESSION_ID, id);
    }
    shared.counters.recalled.fetch_add(1, Relaxed);
    tracing::debug!(deployment = asked.name, "a handshake is answered as before: the server sleeps on");
    Some(response)
}

/// A session that a server just began, made one that may be begun again.
pub(crate) fn keep(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    head: &Head<'_>,
    mut response: Response<Out>,
) -> Response<Out> {
    let id = response.headers().get(SESSION_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
    let ticket = id.as_ref().and_then(|id| shared.sealer.unseal(id));
    let (Some(id), Some(ticket), Some(hello)) = (id, ticket, head.params) else { return response };
    let Some(entry) = shared.table.borrow().by_id.get(&asked.entry.id).cloned() else { return response };
    // a replica that went to sleep meanwhile is no reason to give the client a session that dies with it, as long as it
    // is known which release has answered
    let (id_of, before) = (ticket.instance, asked.entry);
    let live = entry.instance(id_of).or_else(|| before.instance(id_of)).map(|live| live.endpoint.release);
    let only = before.release.filter(|release| {
        let mut all = before.ready.iter().chain(&before.draining);
        entry.release == Some(*release) && all.all(|live| live.endpoint.release == *release)
    });
    let Some(release) = live.or(only) else { return response };
    let written = written(&entry, release, hello.get(), Inner::Session(id));
    // the revision that counts is the one of the session inside
    if let Some(id) = begin(shared, asked, written, &ticket.version) {
        response.headers_mut().insert(SESSION_ID, id);
    }
    response
}

fn agreed(result: &str) -> Option<String> {
    let result: &RawValue = serde_json::from_str(result).ok()?;
    jsonrpc::string(Params::read(Some(result)).protocol_version?).map(std::borrow::Cow::into_owned)
}

/// Messages within one.
pub(crate) async fn post(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    first: Option<&Head<'_>>,
    heads: &[&Head<'_>],
    body: &Bytes,
) -> Result<Response<Out>, Refusal> {
    let lasting = of(shared, asked)?;
    let mut tries = TRIES;
    loop {
        tries -= 1;
        if lasting.inside().is_none()
            && let Some(answer) = alone(shared, asked, &lasting, first)
        {
            return Ok(answer);
        }
        let (inner, number) = match open(shared, asked, &lasting).await {
            // one that was over before it was told what its client said: begun anew like those that end later
            Err(refusal)
                if refusal.status == StatusCode::NOT_FOUND
                    && asked.entry.replayable
                    && tries > 0
                    && !lasting.is_over() =>
            {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            opened => opened?,
        };
        if first.is_some_and(|head| head.method == "notifications/initialized" && lasting.state().initialized) {
            // it was said in its place
            return Ok(accepted());
        }
        let outcome = through(shared, asked, &inner, first, heads, body).await;
        if !is_over(&outcome, &inner) {
            let mut response = outcome?;
            note(shared, &lasting, heads);
            owned(asked, &mut response);
            return Ok(watched(shared, asked, &lasting, first, response));
        }
        if !asked.entry.replayable || tries == 0 {
            shared.lasting.end(&lasting);
            return outcome;
        }
        // the server did nothing with it: it is not its session's
        lasting.lose(number);
        if tries < TRIES - 1 {
            // one that has only just begun: whatever ended it may end the next one as well, for a moment
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Whether there is no such session inside any more.
fn is_over(outcome: &Result<Response<Out>, Refusal>, inner: &Inner) -> bool {
    match outcome {
        Ok(response) => response.status() == StatusCode::NOT_FOUND && matches!(inner, Inner::Session(_)),
        Err(refusal) => refusal.status == StatusCode::NOT_FOUND,
    }
}

/// The client's own session id goes out, never the one inside.
fn owned(asked: &Asked<'_>, response: &mut Response<Out>) {
    if let (Some((id, _)), true) = (&asked.ticket, response.headers().contains_key(SESSION_ID)) {
        response.headers_mut().insert(SESSION_ID, id.clone());
    }
}

/// What needs no server while it sleeps.
fn alone(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    lasting: &Arc<Lasting>,
    first: Option<&Head<'_>>,
) -> Option<Response<Out>> {
    let head = first?;
    let result = |result: &str| {
        let id = head.id_text?;
        Some(json(Bytes::from(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}"))))
    };
    match (head.kind, head.method.as_ref()) {
        (Kind::Notification, "notifications/initialized") => {
            lasting.state().initialized = true;
            shared.keep_lasting(lasting);
            return Some(accepted());
        }
        // of what, nobody knows: nothing is under way
        (Kind::Notification, "notifications/cancelled") => return Some(accepted()),
        (Kind::Request, "ping") => return result("{}"),
        _ => {}
    }
    // one that is awake anyway says it better
    if asked.entry.recorder.nap.is_awake() || head.kind != Kind::Request {
        return None;
    }
    let (release, hello, touched) = {
        let state = lasting.state();
        (state.release, state.hello.clone(), state.touched)
    };
    if head.method == "logging/setLevel" {
        let level = level(head)?;
        let greeting = shared.remembered.greeting(asked.entry.id, release, &hello)?;
        let capabilities = serde_json::from_str::<serde_json::Value>(&greeting.result).ok()?;
        capabilities.pointer("/capabilities/logging").filter(|logging| logging.is_object())?;
        lasting.state().level = Some(level);
        shared.keep_lasting(lasting);
        return result("{}");
    }
    if touched || asked.entry.release != Some(release) || !is_older_list(head) {
        return None;
    }
    let text = shared.remembered.older_list(asked.entry.id, release, head, &hello)?;
    shared.counters.recalled.fetch_add(1, Relaxed);
    tracing::debug!(deployment = asked.name, method = %head.method, "answered from what the server said before");
    result(&text)
}

fn level(head: &Head<'_>) -> Option<String> {
    #[derive(Deserialize)]
    struct Level {
        level: String,
    }
    let Level { level } = serde_json::from_str(head.params?.get()).ok()?;
    LEVELS.contains(&level.as_str()).then_some(level)
}

fn uri(head: &Head<'_>) -> Option<String> {
    #[derive(Deserialize)]
    struct Resource {
        uri: String,
    }
    Some(serde_json::from_str::<Resource>(head.params?.get()).ok()?.uri)
}

/// Remembers of what went through what another session inside has to be told.
fn note(shared: &Arc<Shared>, lasting: &Arc<Lasting>, heads: &[&Head<'_>]) {
    let mut changed = false;
    for head in heads {
        let mut state = lasting.state();
        let before = (state.initialized, state.level.clone(), state.subscribed.len(), state.touched);
        match head.method.as_ref() {
            "notifications/initialized" => state.initialized = true,
            "logging/setLevel" => state.level = level(head).or(state.level.take()),
            "resources/subscribe" if state.subscribed.len() < SUBSCRIBED_MAX => state.subscribed.extend(uri(head)),
            "resources/unsubscribe" => state.subscribed.retain(|known| uri(head).as_ref() != Some(known)),
            "ping" => {}
            _ if is_older_list(head) => {}
            _ => state.touched = true,
        }
        changed |= before != (state.initialized, state.level.clone(), state.subscribed.len(), state.touched);
    }
    if changed {
        shared.keep_lasting(lasting);
    }
}

/// What its server says is kept where a session that is as new would be told the same.
fn watched(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    lasting: &Lasting,
    first: Option<&Head<'_>>,
    response: Response<Out>,
) -> Response<Out> {
    let response = caching::listened(shared, asked.entry, response);
    let (release, hello) = {
        let state = lasting.state();
        (state.release, (!state.touched).then(|| state.hello.clone()))
    };
    match (first, hello) {
        (Some(head), Some(hello)) if is_older_list(head) => {
            remembered::watch_older(shared, asked.entry, release, head, &hello, response)
        }
        _ => response,
    }
}

/// GET: what the server says by itself, as soon as there is a session inside.
pub(crate) async fn listen(shared: &Arc<Shared>, asked: Asked<'_>) -> Result<Response<Out>, Refusal> {
    if !accepts(asked.headers, "text/event-stream") {
        return Err(Refusal::not_acceptable());
    }
    let lasting = of(shared, &asked)?;
    let listener = Listener::of(shared, &asked, lasting.clone());
    let Some((inner, number)) = lasting.inside() else { return Ok(later(Later::new(listener.next(0)))) };
    let outcome = listener.once(&asked, &inner).await;
    if is_over(&outcome, &inner) {
        if asked.entry.replayable {
            lasting.lose(number);
            return Ok(later(Later::new(listener.next(0))));
        }
        shared.lasting.end(&lasting);
        return outcome;
    }
    let mut response = outcome?;
    owned(&asked, &mut response);
    let listens = response.status() == StatusCode::OK && http::is_event_stream(response.headers());
    if !listens || !asked.entry.replayable {
        return Ok(response);
    }
    Ok(response.map(|out| Out::Later(Box::new(Later::begun(out, listener.next(number))))))
}

fn later(later: Later) -> Response<Out> {
    bridged::event_stream(Out::Later(Box::new(later)))
}

/// Who listens, for as long as it does.
#[derive(Clone)]
struct Listener {
    shared: Arc<Shared>,
    lasting: Arc<Lasting>,
    name: String,
    caller: Arc<Caller>,
    headers: HeaderMap,
    query: Option<String>,
    settings: Option<Arc<Settings>>,
}

impl Listener {
    fn of(shared: &Arc<Shared>, asked: &Asked<'_>, lasting: Arc<Lasting>) -> Self {
        Self {
            shared: shared.clone(),
            lasting,
            name: asked.name.to_owned(),
            caller: asked.caller.clone(),
            headers: asked.headers.clone(),
            query: asked.query.map(str::to_owned),
            settings: asked.settings.clone(),
        }
    }

    /// The stream of this session inside.
    async fn once(&self, asked: &Asked<'_>, inner: &Inner) -> Result<Response<Out>, Refusal> {
        let (shared, ticket) = (&self.shared, ticket(&self.shared, inner)?);
        let awake = Box::pin(shared.awake(asked.name, &asked.entry.recorder.nap)).await?;
        let entry = near(shared, asked, ticket.as_ref().map(|(_, ticket)| ticket)).await?;
        let ours = ticket.as_ref().is_none_or(|(_, t)| t.transport == Transport::Http && !t.translated);
        let behind = Asked { ticket, ..asked.of(&entry) };
        let response = match ours {
            true => Box::pin(proxy::without_body(shared, behind)).await,
            false => Box::pin(bridged::listen(shared, behind)).await,
        };
        // who only listens keeps nobody awake
        drop(awake);
        response.map(|response| caching::listened(shared, &entry, response))
    }

    /// What comes after the stream of the session inside with that number (0: of none): that of the next one. `None`:
    /// nothing does.
    fn next(self, number: u64) -> impl FnMut() -> Next + Send + Sync + 'static {
        let last = Arc::new(AtomicU64::new(number));
        move || {
            let (listener, last) = (self.clone(), last.clone());
            let tasks = self.shared.tasks.clone();
            AbortOnDropHandle::new(tasks.spawn(async move {
                let (shared, lasting) = (&listener.shared, &listener.lasting);
                // the server itself ended the stream: the client comes again if it likes
                if lasting.inside().is_some_and(|(_, number)| number == last.load(Relaxed)) {
                    return None;
                }
                let (inner, number) = lasting.inside_soon().await?;
                last.store(number, Relaxed);
                let entry = shared.personal(shared.entry(&listener.name).await.ok()?, &listener.caller).ok()?;
                let mut headers = listener.headers.clone();
                // an event of another session
                headers.remove("last-event-id");
                let asked = Asked {
                    name: &listener.name,
                    entry: &entry,
                    caller: &listener.caller,
                    method: &Method::GET,
                    headers: &headers,
                    query: listener.query.as_deref(),
                    ticket: None,
                    trace: None,
                    settings: listener.settings.clone(),
                };
                let response = listener.once(&asked, &inner).await.ok()?;
                let listens = response.status() == StatusCode::OK && http::is_event_stream(response.headers());
                listens.then(|| response.into_body())
            }))
        }
    }
}

/// DELETE: the client ends it.
pub(crate) async fn delete(shared: &Arc<Shared>, asked: Asked<'_>) -> Result<Response<Out>, Refusal> {
    let lasting = of(shared, &asked)?;
    shared.lasting.end(&lasting);
    // one that is being begun, or was and has not been told, is nobody's else: its process would stay, and keep its
    // deployment from being stopped
    let begun = {
        let _not_being_begun = lasting.opening.lock().await;
        lasting.state().inner.clone()
    };
    if let inner @ Inner::Session(_) = begun {
        let ticket = ticket(shared, &inner)?;
        let _awake = Box::pin(shared.awake(asked.name, &asked.entry.recorder.nap)).await?;
        let entry = near(shared, &asked, ticket.as_ref().map(|(_, ticket)| ticket)).await?;
        let ours = ticket.as_ref().is_some_and(|(_, t)| t.transport == Transport::Http && !t.translated);
        let behind = Asked { ticket, ..asked.of(&entry) };
        let ended = match ours {
            true => Box::pin(proxy::without_body(shared, behind)).await,
            false => Box::pin(bridged::delete(shared, behind)).await,
        };
        if !is_over(&ended, &inner) {
            return ended;
        }
    }
    let mut response = Response::new(Out::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}
