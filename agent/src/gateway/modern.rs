//! The HTTP face of stateless requests (2026-07-28) to servers that do not take them as they are: each is its own POST,
//! answered by the process that all of them share, or translated for a server of the older era.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{HeaderMap, Response, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use sigil_core::jsonrpc::{self, Head, Kind, Params};
use sigil_core::mirror::{self, Flaw, Mirrored};
use sigil_core::model::{InstanceId, Transport};
use sigil_core::session::FIRST_MODERN;
use tokio::time::Instant;

use super::body::{Events, Timeout};
use super::bridge::halves;
use super::bridged::{self, Opened, PLAIN, accepted, json, stream};
use super::client::Client;
use super::common::{EVERYBODY, Manner, Process, Waiting};
use super::error::Refusal;
use super::load::{Call, Place};
use super::plain::accepts;
use super::proxy::inject_body;
use super::seal::random_key;
use super::serve::Asked;
use super::table::{Entry, Live};
use super::{Shared, translate};
use crate::upstream::quota::Starting;
use crate::upstream::streamable::{self, LOST, REFUSED};
use crate::upstream::{MODERN_META, SHARED_PREFIX};

/// The methods that end only when one side wants it.
pub(crate) const LISTEN: &str = "subscriptions/listen";

/// A server that has not said by then which era it speaks is of the older one.
const PROBE: Duration = Duration::from_secs(10);

pub(crate) async fn post(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    head: Option<&Head<'_>>,
    body: &Bytes,
) -> Result<Response<super::body::Out>, Refusal> {
    let Some(head) = head else {
        return Err(Refusal::bad_request("a batch is not accepted here", "send one message a request"));
    };
    if !accepts(asked.headers, "text/event-stream") {
        return Err(Refusal::not_acceptable());
    }
    let entry = shared.ready_as(asked.name, asked.settings.as_ref()).await?;
    let entry = shared.personal(entry, asked.caller)?;
    let caller = (!is_stdio(&entry)).then(|| Client::of(asked, &entry));
    let Some(speaker) = speaker(shared, &entry, asked.name, caller.as_ref(), None).await? else {
        return Err(fall_back());
    };
    check(asked.headers, head)?;
    if head.kind == Kind::Response {
        let hint = "answers to a server's questions go into the repeated request, as inputResponses";
        return Err(Refusal::bad_request("a stateless client sends no responses", hint));
    }
    let (live, process) = match speaker {
        Speaker::Modern(live, process) => (live, process),
        // this era has no notifications of clients that an older server would know
        Speaker::Older(_) if head.kind == Kind::Notification => return Ok(accepted()),
        Speaker::Older(_) if version(head).is_some_and(|v| v != FIRST_MODERN) => return Ok(unsupported(head)),
        Speaker::Older(live) => return translate::post(shared, asked, head, &entry, &live).await,
    };
    if head.kind == Kind::Notification {
        // a request is cancelled by closing its stream; its id means nothing to a process that many clients share
        if head.method != "notifications/cancelled" {
            process.notify(body.slice_ref(head.text.as_bytes())).await;
        }
        return Ok(accepted());
    }
    let params = Params::read(head.params);
    if head.method == "tools/call"
        && let Some(tool) = params.name.and_then(jsonrpc::string)
    {
        let mirrored = process.mirrored(&tool, MODERN_META).await?;
        check_arguments(&mirrored, &params, asked.headers)?;
    }
    pass(asked, head, &entry, &live, &process).await
}

/// Sends a request on to the process that all share.
pub(crate) async fn pass(
    asked: &Asked<'_>,
    head: &Head<'_>,
    entry: &Entry,
    live: &Live,
    process: &Arc<Process>,
) -> Result<Response<super::body::Out>, Refusal> {
    let mut call = Call::begin(&live.stats, &entry.recorder, asked.caller).traced(asked.trace).of(head);
    let sent = match inject_body(&entry.injected, head) {
        None => process.request(head, Manner::default()).await,
        Some(changed) => match jsonrpc::parse_one(changed.as_bytes()) {
            Ok(head) => process.request(&head, Manner::default()).await,
            Err(error) => Err(Refusal::malformed(&error)),
        },
    };
    match sent {
        Ok(waiting) => answer(asked.name, head, waiting, call, live).await,
        Err(refusal) => {
            call.fail();
            Err(refusal)
        }
    }
}

/// Not one of the modern errors, so that a client of both eras falls back to initialize.
pub(crate) fn fall_back() -> Refusal {
    let message = "this server speaks the revisions with a handshake, up to 2025-11-25";
    Refusal::bad_request(message, "send initialize")
}

fn is_stdio(entry: &Entry) -> bool {
    entry.ready.first().is_some_and(|live| live.endpoint.spec.transport == Transport::Stdio)
}

pub(crate) async fn answer(
    name: &str,
    head: &Head<'_>,
    waiting: Waiting,
    mut call: Call,
    live: &Live,
) -> Result<Response<super::body::Out>, Refusal> {
    let Waiting { mut events, held, .. } = waiting;
    if head.method == LISTEN {
        // it lasts as long as the client listens: neither in flight nor slow
        drop(call);
        return Ok(stream(Events::new(None, events, None).holding(held)));
    }
    let ms = live.endpoint.spec.request_timeout_ms;
    let limit = Duration::from_millis(ms);
    let deadline = Instant::now() + limit;
    let first = match tokio::time::timeout(PLAIN.min(limit), events.recv()).await {
        Ok(Some(event)) if event.last => {
            let (status, failed) = status(&event.data);
            call.answered(&event.data);
            if failed {
                call.fail();
            }
            let mut response = json(event.data);
            *response.status_mut() = status;
            return Ok(response);
        }
        Ok(Some(event)) => Some(event),
        Ok(None) => {
            call.fail();
            return Err(Refusal::failed(name, "the server ended the request without an answer"));
        }
        Err(_) => None,
    };
    let alive = first.is_some();
    let events = Events::new(first, events, Some(call));
    if alive {
        return Ok(stream(events.holding(held)));
    }
    let event = Refusal::timeout(name, ms).to_json(head.id.as_ref());
    let abandon = Box::new(move || drop(held));
    Ok(stream(events.with_deadline(deadline, Timeout { event, abandon })))
}

/// Compares a request with the headers that repeat it.
pub(crate) fn check(headers: &HeaderMap, head: &Head<'_>) -> Result<(), Refusal> {
    mirror::check(head, |name| value(headers, name)).map_err(|flaw| flawed(&flaw))
}

fn version<'a>(head: &Head<'a>) -> Option<Cow<'a, str>> {
    Params::read(head.params).modern_version()
}

/// The answer to a revision that translation does not know.
fn unsupported(head: &Head<'_>) -> Response<super::body::Out> {
    let requested = jsonrpc::quote(&version(head).unwrap_or_default());
    let data = format!("{{\"supported\":[\"{FIRST_MODERN}\"],\"requested\":{requested}}}");
    let message = "this revision is not supported";
    let text = jsonrpc::error(head.id.as_ref(), mirror::UNSUPPORTED_VERSION, message, &data);
    let mut response = json(Bytes::from(text));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

fn value<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    // two values of one header agree with no body
    if values.next().is_some() { Some("\u{fffd}") } else { Some(first.to_str().unwrap_or("\u{fffd}")) }
}

/// Compares a tool call's arguments with the headers that mirror them.
pub(crate) fn check_arguments(mirrored: &[Mirrored], params: &Params<'_>, headers: &HeaderMap) -> Result<(), Refusal> {
    mirror::check_arguments(mirrored, params.arguments, |name| value(headers, name)).map_err(|flaw| flawed(&flaw))
}

fn flawed(flaw: &Flaw) -> Refusal {
    let hint = match flaw {
        Flaw::Mismatch(_) => "the headers of a stateless request repeat its body (MCP 2026-07-28, Request Metadata)",
        Flaw::Params(_) => "every stateless request carries these (MCP 2026-07-28, `_meta`)",
    };
    Refusal { rpc: flaw.code(), ..Refusal::bad_request(flaw.to_string(), hint) }
}

/// The code of an error.
pub(crate) fn code(error: &RawValue) -> Option<i64> {
    #[derive(Deserialize)]
    struct Error {
        code: i64,
    }
    serde_json::from_str::<Error>(error.get()).ok().map(|e| e.code)
}

/// The words of an error.
pub(crate) fn said(error: &RawValue) -> String {
    #[derive(Deserialize)]
    struct Error {
        #[serde(default)]
        message: String,
    }
    let message = serde_json::from_str::<Error>(error.get()).map(|e| e.message).unwrap_or_default();
    message.chars().take(300).collect()
}

/// The HTTP status of a response, and whether it counts as failed.
pub(crate) fn status(response: &[u8]) -> (StatusCode, bool) {
    let error = jsonrpc::parse_one(response).ok().and_then(|head| head.error);
    let Some(error) = error else { return (StatusCode::OK, false) };
    let status = match code(error) {
        Some(mirror::METHOD_NOT_FOUND) => StatusCode::NOT_FOUND,
        Some(mirror::HEADER_MISMATCH | mirror::MISSING_CAPABILITY | mirror::UNSUPPORTED_VERSION) => {
            StatusCode::BAD_REQUEST
        }
        _ => StatusCode::OK,
    };
    (status, true)
}

/// A replica and the era that its server speaks.
pub(crate) enum Speaker {
    /// With the process that requests share.
    Modern(Live, Arc<Process>),
    /// The handshake only.
    Older(Live),
}

/// The replica for a request, its process started if need be; `prefer` comes first. `caller`: for servers over HTTP,
/// which see who asks. `None`: the server speaks the older revisions only, and nothing is to be translated.
pub(crate) async fn speaker(
    shared: &Arc<Shared>,
    entry: &Entry,
    name: &str,
    caller: Option<&Client>,
    prefer: Option<InstanceId>,
) -> Result<Option<Speaker>, Refusal> {
    let translates = shared.config.borrow().gateway.translate;
    let older = |live: &Live| translates.then(|| Speaker::Older(live.clone()));
    let mut last = None;
    let mut order = shared.order(entry, false);
    order.sort_by_key(|live| prefer.is_some_and(|id| live.endpoint.instance != id));
    for live in order {
        let (common, endpoint) = (&live.common, &live.endpoint);
        let whose = match endpoint.spec.transport {
            Transport::Sse => return Ok(older(live)),
            Transport::Http => caller.map_or_else(String::new, |caller| caller.key(endpoint)),
            Transport::Stdio => EVERYBODY.to_owned(),
        };
        let known = || match common.running(&whose) {
            Some(process) => Some(Some(Speaker::Modern(live.clone(), process))),
            None if common.is_legacy() => Some(older(live)),
            None if shared.remembered.of(endpoint).stateless == Some(false) => {
                // another replica of the release has said so
                common.set_legacy(true);
                Some(older(live))
            }
            None => None,
        };
        if let Some(speaker) = known() {
            return Ok(speaker);
        }
        let _one_at_a_time = common.starting.lock().await;
        if let Some(speaker) = known() {
            return Ok(speaker);
        }
        match start(shared, live, &whose, name, caller).await {
            Ok(Some(process)) => return Ok(Some(Speaker::Modern(live.clone(), process))),
            Ok(None) => return Ok(older(live)),
            Err(refusal) => last = Some(refusal),
        }
    }
    Err(last.unwrap_or_else(|| Refusal::unreached(name, None)))
}

#[derive(Deserialize)]
struct Discovered {
    #[serde(rename = "supportedVersions")]
    supported: Vec<String>,
}

/// Starts a process (or connects to a server) that is read from now on. The second is to be held until the server has
/// answered.
pub(crate) async fn spawn(
    shared: &Arc<Shared>,
    live: &Live,
    name: &str,
    caller: Option<&Client>,
) -> Result<(Arc<Process>, Starting), Refusal> {
    let opened = match (live.endpoint.spec.transport, caller) {
        (Transport::Http, Some(caller)) => over_http(live, name, caller)?,
        _ => bridged::open_at(shared, live, name, SHARED_PREFIX).await?,
    };
    let Opened { key, conversation, place, starting, .. } = opened;
    let (input, output) = halves(conversation);
    let endpoint = live.endpoint.clone();
    let kept = (shared.dropped.clone(), shared.remembered.clone());
    let process = Arc::new(Process::new(key, name.to_owned(), endpoint, place, input, kept));
    live.common.add(&process);
    let (task, reading) = (shared.clone(), process.clone());
    shared.tasks.spawn(async move {
        tokio::select! {
            () = task.stop.cancelled() => {
                // a process outlives the agent; a session over HTTP is to be ended
                if reading.endpoint.spec.transport != Transport::Stdio {
                    reading.stop.cancel();
                }
                return;
            }
            ended = reading.run(output) => drop(ended),
        }
        let (endpoint, key) = (reading.endpoint.clone(), reading.key.clone());
        task.finish(&endpoint, &key, reading).await;
    });
    Ok((process, starting))
}

pub(crate) fn over_http(live: &Live, name: &str, caller: &Client) -> Result<Opened, Refusal> {
    let place = Place::take(&live.stats, u64::MAX).ok_or_else(|| Refusal::unavailable(name, ""))?;
    let conversation = streamable::connect(&live.endpoint, caller.carried(&live.endpoint));
    let starting = live.endpoint.quota.starting();
    Ok(Opened { live: live.clone(), key: format!("{SHARED_PREFIX}{}", random_key()), conversation, place, starting })
}

/// Starts a process and asks it what it speaks (2026-07-28, basic/versioning, "Backward Compatibility"): a discovery or
/// one of this era's errors says this era, anything else the older one.
async fn start(
    shared: &Arc<Shared>,
    live: &Live,
    whose: &str,
    name: &str,
    caller: Option<&Client>,
) -> Result<Option<Arc<Process>>, Refusal> {
    let (process, starting) = spawn(shared, live, name, caller).await?;
    // a client that leaves meanwhile leaves nothing behind
    let unowned = process.stop.clone().drop_guard();
    let endpoint = &live.endpoint;
    let limit = PROBE.min(Duration::from_millis(endpoint.spec.start_timeout_ms));
    let asked = process.ask("server/discover", &format!("{{\"_meta\":{MODERN_META}}}"), limit).await;
    drop(starting);
    let http = endpoint.spec.transport == Transport::Http;
    let modern = match &asked {
        Ok(answer) => match jsonrpc::parse_one(answer) {
            Ok(Head { result: Some(result), .. }) => serde_json::from_str::<Discovered>(result.get())
                .is_ok_and(|found| found.supported.iter().any(|v| v.as_str() >= FIRST_MODERN)),
            // no answer at all says nothing
            Ok(Head { error: Some(error), .. }) if http && code(error) == Some(LOST) => {
                return Err(Refusal::failed(name, said(error)));
            }
            _ => status(answer).0 == StatusCode::BAD_REQUEST,
        },
        Err(refusal) if http && refusal.code != "GATEWAY_TIMEOUT" => return Err(refusal.clone()),
        // nothing of the client's call is under way
        Err(_) if http => {
            let what = format!("'{name}' did not say within {} ms which revisions of MCP it speaks", limit.as_millis());
            return Err(Refusal::failed(name, what));
        }
        // a server that ends over an unknown method, or says nothing to it, is of the older era
        Err(_) => false,
    };
    if modern {
        live.common.set(whose, &process);
        shared.remembered.learn_stateless(endpoint, true);
        unowned.disarm();
        shared.refill_soon(endpoint);
        return Ok(Some(process));
    }
    tracing::info!(deployment = name, instance = %endpoint.instance, "the server speaks the revisions with a handshake only");
    // an HTTP answer without JSON-RPC may be about this one client
    let refused = |answer: &Bytes| {
        let error = jsonrpc::parse_one(answer).ok().and_then(|head| head.error.and_then(code));
        error == Some(REFUSED)
    };
    let sure = asked.is_ok_and(|answer| !refused(&answer));
    live.common.set_legacy(sure);
    if sure {
        shared.remembered.learn_stateless(endpoint, false);
    }
    Ok(None)
}

impl Shared {
    /// Ends shared processes that nobody uses.
    pub(crate) fn sweep_common(&self, live: &Live, idle: Duration) {
        while let Some(process) = live.common.retire(idle).or_else(|| live.common.retire_alone(idle)) {
            tracing::debug!(deployment = process.name, "an idle process of stateless requests ends");
            process.stop.cancel();
        }
    }
}
