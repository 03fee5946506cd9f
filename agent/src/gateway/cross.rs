//! Which way between the eras: a client and a server of one era are left alone, the others are translated. What a server
//! speaks is found out when it first refuses the other era.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use hyper::{Response, StatusCode};
use sigil_core::jsonrpc::{self, Head, Kind};
use sigil_core::mirror::{METHOD_NOT_FOUND, UNSUPPORTED_VERSION};
use sigil_core::model::{InstanceId, Transport};
use sigil_core::session::{FIRST_MODERN, Ticket};

use super::Shared;
use super::body::Out;
use super::bridge::Session;
use super::bridged::{self, Opened, Shaken};
use super::client::Client;
use super::error::Refusal;
use super::greeter::{self, Guest, PREFIX};
use super::load::Place;
use super::modern::{self, Speaker};
use super::proxy;
use super::serve::Asked;
use super::table::Entry;
use crate::upstream::Conversation;
use crate::upstream::http::media_type;

/// Sessions that only the gateway holds, at once; beyond that the one unused for longest ends (and goes on when its
/// client comes back). Each may have a subscription open, and these must leave a process room for calls.
const SESSIONS_MAX: usize = 2048;
/// Longest answer that is read for a refusal, bytes.
const REFUSAL_MAX: u64 = 16 << 10;
/// JSON-RPC 2.0, section 5.1.
const INVALID_REQUEST: i64 = -32600;

pub(crate) fn translates(shared: &Shared) -> bool {
    shared.config.borrow().gateway.translate
}

/// Whether stateless clients of a server find no sessions at all: nothing to listen to, and nothing to end.
pub(crate) fn sessionless(shared: &Shared, entry: &Entry) -> bool {
    let first = entry.ready.first().or(entry.draining.first());
    first.is_some_and(|live| match live.endpoint.spec.transport {
        Transport::Http => live.common.is_legacy() && translates(shared),
        Transport::Stdio | Transport::Sse => true,
    })
}

/// A POST to a server over HTTP. One that speaks as its client does gets it as it is.
pub(crate) async fn http(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    head: Option<&Head<'_>>,
    body: &Bytes,
    modern: bool,
) -> Result<Response<Out>, Refusal> {
    let opening = head.filter(|h| h.kind == Kind::Request && (modern || h.method == "initialize"));
    let pass = || proxy::post(shared, asked, head, body.clone(), modern);
    let notifies = modern && head.is_some_and(|h| h.kind == Kind::Notification);
    if notifies && sessionless(shared, asked.entry) {
        // what it may say there it has no words for
        return Box::pin(modern::post(shared, asked, head, body)).await;
    }
    let (Some(head), Some(first)) = (opening, asked.entry.ready.first()) else { return pass().await };
    if !modern {
        if shared.remembered.no_handshake(asked.entry) && translates(shared) {
            return Box::pin(greet(shared, asked, asked.entry, head, body.clone())).await;
        }
        let (response, refused) = refuses(asked.name, pass().await?).await?;
        if refused && Box::pin(no_handshake(shared, asked.name, &Client::of(asked, asked.entry), asked.entry)).await? {
            return Box::pin(greet(shared, asked, asked.entry, head, body.clone())).await;
        }
        return Ok(response);
    }
    if first.common.is_legacy() && translates(shared) {
        return Box::pin(modern::post(shared, asked, Some(head), body)).await;
    }
    // who asks this first may ask a server that answers other requests of an era that it does not know
    let asks = head.method == "server/discover" && shared.remembered.of(&first.endpoint).stateless.is_none();
    if asks && translates(shared) && Box::pin(older(shared, asked)).await.unwrap_or(false) {
        return Box::pin(modern::post(shared, asked, Some(head), body)).await;
    }
    let response = pass().await?;
    if shared.remembered.of(&first.endpoint).stateless == Some(true) || !translates(shared) {
        return Ok(response);
    }
    let (response, refused) = refuses(asked.name, response).await?;
    // what was found out meanwhile, for another call, holds for this one
    if !refused || shared.remembered.of(&first.endpoint).stateless == Some(true) {
        return Ok(response);
    }
    // where that cannot be said now, the refusal of a server that may know no better is no answer for its client
    if !Box::pin(older(shared, asked)).await? {
        return Ok(response);
    }
    // a server refuses an era before it looks at the call
    Box::pin(modern::post(shared, asked, Some(head), body)).await
}

/// Whether an answer may say that the server does not know its client's era: by its status, or, as servers that know one
/// status alone have it, by an error that is said before anything has run.
async fn refuses(name: &str, response: Response<Out>) -> Result<(Response<Out>, bool), Refusal> {
    let status = response.status();
    if status != StatusCode::OK {
        let other = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS];
        let refused = status.is_client_error() && !other.contains(&status);
        return Ok((response, refused));
    }
    let small = response.body().size_hint().exact().is_some_and(|bytes| bytes <= REFUSAL_MAX);
    if !small || media_type(response.headers()) != "application/json" {
        return Ok((response, false));
    }
    let (head, body) = response.into_parts();
    let whole = body
        .collect()
        .await
        .map_err(|_| Refusal::failed(name, format!("'{name}' broke its answer off; the call was not sent again")))?;
    let whole = whole.to_bytes();
    let code = jsonrpc::parse_one(&whole).ok().and_then(|answer| answer.error.and_then(modern::code));
    let refused = code.is_some_and(|code| [METHOD_NOT_FOUND, INVALID_REQUEST, UNSUPPORTED_VERSION].contains(&code));
    Ok((Response::from_parts(head, Out::full(whole)), refused))
}

/// Whether the server speaks the older revisions only; asked if nobody has.
async fn older(shared: &Arc<Shared>, asked: &Asked<'_>) -> Result<bool, Refusal> {
    let caller = Client::of(asked, asked.entry);
    let speaker = modern::speaker(shared, asked.entry, asked.name, Some(&caller), None).await?;
    Ok(matches!(speaker, Some(Speaker::Older(_))))
}

/// Whether the server that just refused a handshake serves stateless requests instead.
pub(crate) async fn no_handshake(
    shared: &Arc<Shared>,
    name: &str,
    caller: &Client,
    entry: &Entry,
) -> Result<bool, Refusal> {
    if !translates(shared) {
        return Ok(false);
    }
    match modern::speaker(shared, entry, name, Some(caller), None).await? {
        Some(Speaker::Modern(live, _)) => {
            tracing::info!(deployment = name, "the server speaks {FIRST_MODERN} only");
            shared.remembered.learn_no_handshake(&live.endpoint);
            Ok(true)
        }
        Some(Speaker::Older(_)) | None => Ok(false),
    }
}

/// Shakes hands in the place of a server that does not.
pub(crate) async fn greet(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    entry: &Arc<Entry>,
    head: &Head<'_>,
    message: Bytes,
) -> Result<Response<Out>, Refusal> {
    let live = shared.order(entry, true).first().copied().cloned();
    let live = live.ok_or_else(|| Refusal::unreached(asked.name, None))?;
    make_room(shared);
    let guest = Guest::of(head);
    let opened = Opened {
        key: guest.key.clone(),
        conversation: conversation(shared, asked, entry, live.endpoint.instance, &guest, false),
        place: nowhere()?,
        starting: live.endpoint.quota.starting(),
        live,
    };
    match bridged::shake(shared, asked, entry, head, message, opened, Some(&guest)).await? {
        Shaken::Session(response) | Shaken::Refused(response) => Ok(response),
    }
}

fn conversation(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    entry: &Entry,
    instance: InstanceId,
    guest: &Guest,
    goes_on: bool,
) -> Conversation {
    let (guest, caller) = (guest.clone(), Client::of(asked, entry));
    greeter::conversation(shared, (asked.name, entry.id, instance), guest, caller, goes_on)
}

/// The server holds nothing of such a session: it takes no place there.
fn nowhere() -> Result<Place, Refusal> {
    let none = || Refusal::overloaded("there is no room for a session", "try again");
    Place::take(&Arc::default(), u64::MAX).ok_or_else(none)
}

fn make_room(shared: &Arc<Shared>) {
    let oldest = {
        let sessions = shared.sessions();
        let ours = sessions.values().filter(|session| session.key.starts_with(PREFIX));
        if ours.clone().count() < SESSIONS_MAX {
            return;
        }
        ours.filter_map(|s| Some((s.idle()?, s))).max_by_key(|(idle, _)| *idle).map(|(_, s)| s.clone())
    };
    oldest.iter().for_each(|session| shared.close(session));
}

/// The session of a request, gone on with when this agent does not know it.
pub(crate) async fn session(shared: &Arc<Shared>, asked: &Asked<'_>, ticket: &Ticket) -> Result<Arc<Session>, Refusal> {
    let gone = || Refusal::expired("this session is over");
    let guest = Guest::unpack(ticket).ok_or_else(gone)?;
    if let Some(session) = shared.session_of(&guest.key) {
        return Ok(session);
    }
    let _one_at_a_time = shared.resuming.lock().await;
    if let Some(session) = shared.session_of(&guest.key) {
        return Ok(session);
    }
    if !guest.whole() || !translates(shared) || shared.greeted_ended.has(&guest.key) {
        return Err(gone());
    }
    let entry = shared.ready_as(asked.name, asked.settings.as_ref()).await?;
    let entry = shared.personal(entry, asked.caller)?;
    let live = entry.instance(ticket.instance).or(entry.ready.first()).ok_or_else(gone)?;
    make_room(shared);
    let conversation = conversation(shared, asked, &entry, live.endpoint.instance, &guest, true);
    let session = shared.begin(live, guest.key.clone(), asked.name, conversation, nowhere()?);
    session.version.set(ticket.version.clone()).ok();
    Ok(session)
}
