//! The session inside: opened with the client's own words, and asked.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Response, StatusCode};
use sigil_core::jsonrpc::{self, Head, Id, Kind};
use sigil_core::session::Ticket;

use super::super::Shared;
use super::super::body::Out;
use super::super::error::Refusal;
use super::super::serve::{self, Asked};
use super::super::table::Entry;
use super::ledger::{Inner, Lasting, Written};
use super::{SESSION_ID, agreed};
use crate::upstream::{http, sse};

/// Longest answer to a handshake, bytes.
const ANSWER_MAX: usize = 1 << 20;

/// The session inside, opened where there is none.
pub(super) async fn open(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    lasting: &Arc<Lasting>,
) -> Result<(Inner, u64), Refusal> {
    if let Some(inside) = lasting.inside() {
        return Ok(inside);
    }
    let _one_at_a_time = lasting.opening.lock().await;
    if let Some(inside) = lasting.inside() {
        return Ok(inside);
    }
    let over = || Refusal::expired("this session is over");
    if lasting.is_over() {
        return Err(over());
    }
    let _awake = Box::pin(shared.awake(asked.name, &asked.entry.recorder.nap)).await?;
    let entry = shared.personal(shared.ready(asked.name).await?, asked.caller)?;
    let state = lasting.state().clone();
    // of another release it would have been told something else
    if entry.release != Some(state.release) && entry.ready.iter().all(|live| live.endpoint.release != state.release) {
        shared.lasting.end(lasting);
        return Err(Refusal::expired("this session began with a release that is gone"));
    }
    let headers = headers(asked.headers, &state, shared);
    let behind = Asked { method: &Method::POST, headers: &headers, ticket: None, ..asked.of(&entry) };
    // one may have been begun for a request whose client left before it was told, and its replica be gone by now
    let begun = match &state.inner {
        Inner::None => None,
        begun => match tell(shared, &behind, begun, &state).await {
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => None,
            told => told.map(|()| Some(begun.clone()))?,
        },
    };
    let inner = match begun {
        Some(inner) => inner,
        None => {
            let inner = shake(shared, &behind, lasting, &state).await?;
            lasting.state().inner = inner.clone();
            tell(shared, &behind, &inner, &state).await?;
            inner
        }
    };
    lasting.state().told = true;
    // its client may have ended it meanwhile, and ends this one as well
    if !lasting.opened.send_if_modified(Lasting::next) {
        return Err(over());
    }
    if lasting.lost.swap(false, Relaxed) {
        shared.lasting.replayed.fetch_add(1, Relaxed);
        tracing::debug!(deployment = asked.name, "a session was begun again in its client's place");
    }
    shared.keep_lasting(lasting);
    Ok((inner, *lasting.opened.borrow()))
}

/// A request's headers for messages of our own.
fn headers(of: &HeaderMap, state: &Written, shared: &Shared) -> HeaderMap {
    let mut headers = of.clone();
    for name in ["mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-name", "last-event-id"] {
        headers.remove(name);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
    let greeting = shared.remembered.greeting(state.deployment, state.release, &state.hello);
    let version = greeting.and_then(|greeting| agreed(&greeting.result));
    if let Some(version) = version.and_then(|version| HeaderValue::try_from(version).ok()) {
        headers.insert("mcp-protocol-version", version);
    }
    headers
}

pub(super) fn ticket(shared: &Shared, inner: &Inner) -> Result<Option<(HeaderValue, Ticket)>, Refusal> {
    let Inner::Session(id) = inner else { return Ok(None) };
    let ticket = shared.sealer.unseal(id);
    let id = HeaderValue::try_from(id.as_str()).ok();
    id.zip(ticket).map(Some).ok_or_else(|| Refusal::expired("this session is over"))
}

/// Repeats the client's handshake. A server that answers it otherwise than it did has its client begin anew.
async fn shake(shared: &Arc<Shared>, asked: &Asked<'_>, lasting: &Lasting, state: &Written) -> Result<Inner, Refusal> {
    // a handshake names the revision itself
    let mut headers = asked.headers.clone();
    headers.remove("mcp-protocol-version");
    let asked = &Asked { headers: &headers, ..asked.of(asked.entry) };
    let text =
        format!("{{\"jsonrpc\":\"2.0\",\"id\":\"sigil-1\",\"method\":\"initialize\",\"params\":{}}}", state.hello);
    let (id, answer) = ask(shared, asked, text).await?;
    let result = jsonrpc::parse_one(&answer).ok().and_then(|head| head.result);
    let Some(result) = result else {
        let said = String::from_utf8_lossy(&answer).chars().take(300).collect::<String>();
        return Err(Refusal::failed(
            asked.name,
            format!("'{}' refuses a handshake it took before: {said}", asked.name),
        ));
    };
    let before = shared.remembered.greeting(state.deployment, state.release, &state.hello);
    let promise = |text: &str| {
        let value: serde_json::Value = serde_json::from_str(text).ok()?;
        Some((value.get("protocolVersion").cloned(), value.get("capabilities").cloned()))
    };
    if let Some(before) = before
        && promise(&before.result) != promise(result.get())
    {
        shared.remembered.forget_greeting(state.deployment, state.release, &state.hello);
        shared.lasting.end(lasting);
        return Err(Refusal::expired("the server offers something else than when this session began"));
    }
    Ok(id.map_or(Inner::Plain, Inner::Session))
}

/// Tells a new session inside what the client has said of itself. What a server does not take is not repeated.
async fn tell(shared: &Arc<Shared>, asked: &Asked<'_>, inner: &Inner, state: &Written) -> Result<(), Refusal> {
    if !state.initialized {
        // the client says it itself
        return Ok(());
    }
    let asked = &Asked { ticket: ticket(shared, inner)?, ..asked.of(asked.entry) };
    ask(shared, asked, r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#.to_owned()).await?;
    let request = |number: usize, method: &str, name: &str, value: &str| {
        let value = jsonrpc::quote(value);
        format!(r#"{{"jsonrpc":"2.0","id":"sigil-{number}","method":"{method}","params":{{"{name}":{value}}}}}"#)
    };
    let level = state.level.iter().map(|level| ("logging/setLevel", "level", level));
    let subscribed = state.subscribed.iter().map(|uri| ("resources/subscribe", "uri", uri));
    for (number, (method, name, value)) in level.chain(subscribed).enumerate() {
        let (_, answer) = ask(shared, asked, request(number + 2, method, name, value)).await?;
        if jsonrpc::parse_one(&answer).is_ok_and(|head| head.error.is_some()) {
            tracing::warn!(deployment = asked.name, method, "the server refuses what it took before in this session");
        }
    }
    Ok(())
}

/// One message of our own, and the answer to it: the session id that came with it, and the message (empty: it needed none).
async fn ask(shared: &Arc<Shared>, asked: &Asked<'_>, text: String) -> Result<(Option<String>, Bytes), Refusal> {
    let body = Bytes::from(text);
    let head = jsonrpc::parse_one(&body).map_err(|e| Refusal::malformed(&e))?;
    let mut response = serve::send_awake(shared, asked, Some(&head), &[&head], &body, false).await?;
    let failed = |why: String| Refusal::failed(asked.name, format!("'{}' {why}", asked.name));
    if !response.status().is_success() {
        if response.status() == StatusCode::NOT_FOUND && asked.ticket.is_some() {
            return Err(Refusal::expired("this session is over"));
        }
        return Err(failed(format!("answers {} to a session that is begun again", response.status())));
    }
    let id = response.headers().get(SESSION_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
    let Some(wanted) = &head.id else { return Ok((id, Bytes::new())) };
    let events = http::is_event_stream(response.headers());
    let ready = asked.entry.ready.first();
    let ms = ready.map_or(0, |live| live.endpoint.spec.request_timeout_ms.max(live.endpoint.spec.start_timeout_ms));
    let reading = read(response.body_mut(), wanted, events);
    match tokio::time::timeout(Duration::from_millis(ms), reading).await {
        Ok(Some(answer)) => Ok((id, answer)),
        Ok(None) => Err(failed("broke its answer off".to_owned())),
        Err(_) => Err(Refusal::timeout(asked.name, ms)),
    }
}

/// The response to a request in an answer's body.
async fn read(body: &mut Out, wanted: &Id, events: bool) -> Option<Bytes> {
    let (mut whole, mut parser, mut length) = (Vec::new(), sse::Parser::default(), 0);
    let is_wanted = |text: &[u8]| {
        jsonrpc::parse_one(text).is_ok_and(|head| head.kind == Kind::Response && head.id.as_ref() == Some(wanted))
    };
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        length += data.len();
        if length > ANSWER_MAX {
            return None;
        }
        if !events {
            whole.extend_from_slice(&data);
            continue;
        }
        let mut said = Vec::new();
        parser.push(&data, &mut said).ok()?;
        if let Some(event) = said.into_iter().find(|event| is_wanted(event.data.as_bytes())) {
            return Some(event.data.into());
        }
    }
    (!events && is_wanted(&whole)).then(|| whole.into())
}

/// A message through the session inside.
pub(super) async fn through(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    inner: &Inner,
    first: Option<&Head<'_>>,
    heads: &[&Head<'_>],
    body: &Bytes,
) -> Result<Response<Out>, Refusal> {
    let ticket = ticket(shared, inner)?;
    let _awake = Box::pin(shared.awake(asked.name, &asked.entry.recorder.nap)).await?;
    let entry = near(shared, asked, ticket.as_ref().map(|(_, ticket)| ticket)).await?;
    let behind = Asked { ticket, ..asked.of(&entry) };
    serve::send_awake(shared, &behind, first, heads, body, false).await
}

/// The deployment with the replica that holds a session.
pub(super) async fn near(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    ticket: Option<&Ticket>,
) -> Result<Arc<Entry>, Refusal> {
    let mut entry = shared.entry(asked.name).await?;
    if let Some(ticket) = ticket
        && entry.instance(ticket.instance).is_none()
        && entry.may_return(ticket.instance)
    {
        entry = Box::pin(shared.returned(asked.name, ticket.instance)).await?;
    }
    if entry.is_away(ticket) {
        entry = Box::pin(shared.reached(asked.name, ticket)).await?;
    }
    shared.personal(entry, asked.caller)
}
