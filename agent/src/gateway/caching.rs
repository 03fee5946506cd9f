//! A call whose answer may be kept, on its way: found in the cache, or kept as it passes by. Lists of tools that pass by say
//! of which tools that is.
//!
//! A kept answer stands in for the server's only where the server would have had no more to go by: the caller, what of its
//! request reaches the server, the configuration of its session. What cannot be compared is passed on as if nothing were
//! kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use sigil_core::answers::{self, Keep, PlainCall};
use sigil_core::jsonrpc::{self, Head, Id, Kind, Params};
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo, Transport};
use sigil_core::session::Ticket;

use super::Shared;
use super::body::Out;
use super::bridge::Session;
use super::bridged::json;
use super::cache::{ANSWER_MAX, Found, Hint, Key, Place};
use super::client;
use super::error::Refusal;
use super::find::entry_transport;
use super::greeter::Guest;
use super::mask::Masks;
use super::modern;
use super::plain::{accepts, header_text};
use super::proxy::copy_headers;
use super::remembered::Remembered;
use super::serve::{self, Asked};
use super::table::{Entry, Table};
use super::wrap::Wrapped;
use crate::upstream::{http, sse};

/// Longest arguments and metadata that are compared, bytes.
const COMPARED_MAX: usize = 64 << 10;
/// Longest page of tools that is read, bytes.
const PAGE_MAX: usize = 4 << 20;
/// Beside a result in its message: its envelope and id.
const ENVELOPE: usize = 4 << 10;
const CHANGED: &str = "notifications/tools/list_changed";
const SAYS: HeaderName = HeaderName::from_static("x-sigil-cache");

/// Headers of a client that reach a server over HTTP and change no answer, or are compared in the body that they repeat.
const UNRELATED: [&str; 18] = [
    "accept",
    "accept-encoding",
    "baggage",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-type",
    "last-event-id",
    "mcp-method",
    "mcp-name",
    "mcp-protocol-version",
    "mcp-session-id",
    "pragma",
    "priority",
    "traceparent",
    "tracestate",
    "user-agent",
    "via",
];
const UNRELATED_PREFIXES: [&str; 2] = ["sec-", "x-request-"];

/// With a response: whether an answer was looked for and found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Hit,
    Miss,
}

impl Word {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
        }
    }
}

/// A request to a deployment whose policy keeps some tool's answers.
pub(crate) async fn pass(
    shared: &Arc<Shared>,
    asked: Asked<'_>,
    first: Option<&Head<'_>>,
    heads: &[&Head<'_>],
    body: &Bytes,
    is_modern: bool,
) -> Result<Response<Out>, Refusal> {
    let entry = asked.entry.clone();
    let request = first.filter(|head| head.kind == Kind::Request);
    let aim = match (request, serving(&asked)) {
        (Some(head), Some(release)) if head.method == "tools/list" => {
            let instances = entry.ready.iter().map(|live| live.endpoint.instance).collect();
            Aim::Tools { id: head.id.clone(), release, instances }
        }
        (Some(head), Some(release)) if head.method == "tools/call" => {
            match plan(shared, &asked, head, release, is_modern)? {
                Plan::Answer(response) => return Ok(response),
                Plan::Keep(aim) => aim,
                Plan::Pass => Aim::Changes,
            }
        }
        _ => Aim::Changes,
    };
    let missed = matches!(aim, Aim::Call { .. });
    let mut response = serve::pass_on(shared, asked, first, heads, body, is_modern).await?;
    if missed {
        response.extensions_mut().insert(Word::Miss);
    }
    Ok(watched(shared, &entry, aim, response))
}

/// A stream on which a server over HTTP may say that its tools are others now.
pub(crate) fn listened(shared: &Arc<Shared>, entry: &Entry, response: Response<Out>) -> Response<Out> {
    watched(shared, entry, Aim::Changes, response)
}

/// Frees memory in which nothing can be found any more.
pub(crate) fn sweep(shared: &Shared, table: &Table) {
    let answers = &shared.remembered.answers;
    if answers.is_empty() {
        return;
    }
    let ids = shared.keys.ids();
    if let Err(error) = &ids {
        tracing::warn!(%error, "keys cannot be read: answers to revoked ones stay until their time is over");
    }
    // whoever has no key of this agent is known by every request only
    let holds = |principal: &str| match (&ids, principal.strip_prefix("key:")) {
        (Ok(ids), Some(id)) => ids.contains(id),
        _ => true,
    };
    answers.sweep(table, shared.config.borrow().gateway.cache_memory, holds);
}

/// The release whose servers alone may answer a request.
fn serving(asked: &Asked<'_>) -> Option<ReleaseNo> {
    let ready = &asked.entry.ready;
    let release = ready.first()?.endpoint.release;
    let here = |(_, ticket): &(HeaderValue, Ticket)| ready.iter().any(|live| live.endpoint.instance == ticket.instance);
    let one = ready.iter().all(|live| live.endpoint.release == release) && asked.ticket.as_ref().is_none_or(here);
    one.then_some(release)
}

enum Plan {
    Answer(Response<Out>),
    Keep(Aim),
    Pass,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

fn plan(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    head: &Head<'_>,
    release: ReleaseNo,
    is_modern: bool,
) -> Result<Plan, Refusal> {
    let (entry, counted) = (asked.entry, &asked.entry.recorder.cached);
    let call = head.params.and_then(|params| serde_json::from_str::<PlainCall<'_>>(params.get()).ok());
    let name = call.as_ref().map_or_else(|| Params::read(head.params).name, |call| Some(call.name));
    let Some(tool) = name.and_then(jsonrpc::string) else { return Ok(Plan::Pass) };
    let keep = entry.rules.cache(&tool);
    let (limit, usual) = {
        let config = shared.config.borrow();
        (config.gateway.cache_memory, config.gateway.cache_seconds)
    };
    let life = match keep {
        Keep::Never => return Ok(Plan::Pass),
        Keep::Usual => Duration::from_secs(usual),
        Keep::Seconds(seconds) => Duration::from_secs(seconds.into()),
    };
    let http = asked.ticket.as_ref().map(|(_, ticket)| ticket.transport).or(entry_transport(entry));
    let http = http == Some(Transport::Http);
    // what has no session where one is needed is refused further in
    if limit == 0 || (!http && !is_modern && asked.ticket.is_none()) {
        return Ok(Plan::Pass);
    }
    let number = match hint(shared, entry, release, &tool) {
        Hint::Repeatable(number) => number,
        Hint::Unlisted => {
            count(&counted.unlisted);
            return Ok(Plan::Pass);
        }
        Hint::Unsaid => {
            count(&counted.unsaid);
            return Ok(Plan::Pass);
        }
    };
    let wish = header_text(asked.headers, "cache-control").unwrap_or_default().to_ascii_lowercase();
    let usable = !wish.contains("no-store") && accepts(asked.headers, "text/event-stream");
    let key = call.filter(|_| usable).and_then(|call| key(shared, asked, release, &tool, &call, (is_modern, http)));
    let Some(key) = key else {
        count(&counted.special);
        return Ok(Plan::Pass);
    };
    let session = session(shared, asked, http);
    let answers = &shared.remembered.answers;
    if !wish.contains("no-cache")
        && session.is_alive()
        && let Some(found) = answers.find(&key, number, Instant::now())
    {
        if is_modern {
            modern::check(asked.headers, head)?;
        }
        session.touch();
        count(&counted.hits);
        return Ok(Plan::Answer(answer(head, &found)));
    }
    count(&counted.misses);
    let principal = asked.caller.principal.clone();
    let place = Place { key, deployment: entry.id, number, principal, life };
    let session = match session {
        At::Session(session) => Some((session.questions(), session)),
        At::Nowhere | At::Server | At::Gone => None,
    };
    Ok(Plan::Keep(Aim::Call { id: head.id.clone(), place, session, spoiled: false }))
}

/// What is known of a tool; lists that are remembered are read first.
fn hint(shared: &Shared, entry: &Entry, release: ReleaseNo, tool: &str) -> Hint {
    let Remembered { answers, .. } = &*shared.remembered;
    match answers.hint(entry, tool) {
        Hint::Unlisted => {}
        known => return known,
    }
    let pages = shared.remembered.tools(entry.id, release);
    let pages: Vec<_> = pages.into_iter().filter_map(|p| serde_json::value::RawValue::from_string(p).ok()).collect();
    if pages.is_empty() {
        return Hint::Unlisted;
    }
    for page in pages {
        answers.learn(entry.id, release, entry.ready.iter().map(|live| live.endpoint.instance), &page);
    }
    answers.hint(entry, tool)
}

/// Where a call belongs.
enum At {
    /// To no session.
    Nowhere,
    /// To one that the gateway holds.
    Session(Arc<Session>),
    /// To one that the server holds, used lately.
    Server,
    /// To one of which it is not known that it is still there.
    Gone,
}

impl At {
    fn is_alive(&self) -> bool {
        !matches!(self, Self::Gone)
    }

    fn touch(&self) {
        if let Self::Session(session) = self {
            session.touch();
        }
    }
}

fn session(shared: &Shared, asked: &Asked<'_>, http: bool) -> At {
    let Some((_, ticket)) = &asked.ticket else { return At::Nowhere };
    if http && !ticket.translated {
        let known = shared.http_sessions.touch(ticket.instance, &ticket.upstream);
        return if known { At::Server } else { At::Gone };
    }
    let session = match Guest::unpack(ticket) {
        Some(guest) => shared.session_of(&guest.key),
        None => shared.session_of(&ticket.upstream),
    };
    session.filter(|session| session.ended().is_none()).map_or(At::Gone, At::Session)
}

fn unrelated(name: &HeaderName) -> bool {
    UNRELATED.contains(&name.as_str()) || UNRELATED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
}

/// Tells a call from all others; `None`: it cannot be compared.
fn key(
    shared: &Shared,
    asked: &Asked<'_>,
    release: ReleaseNo,
    tool: &str,
    call: &PlainCall<'_>,
    (is_modern, http): (bool, bool),
) -> Option<Key> {
    let length = |raw: Option<&serde_json::value::RawValue>| raw.map_or(0, |raw| raw.get().len());
    if length(call.arguments) + length(call.meta) > COMPARED_MAX {
        return None;
    }
    let arguments = match call.arguments {
        Some(arguments) => answers::canonical(arguments)?,
        None => String::new(),
    };
    let meta = answers::canonical_meta(call.meta)?;
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    };
    let entry = asked.entry;
    let ticket = asked.ticket.as_ref().map(|(_, ticket)| ticket);
    add(&entry.id.0.0.to_be_bytes());
    add(&release.to_be_bytes());
    add(client::principal(asked).as_bytes());
    // how the client speaks, and whether its server is to be translated
    let translates = super::cross::translates(shared);
    let session = ticket.map_or(2, |ticket| u8::from(ticket.translated));
    add(&[u8::from(is_modern), u8::from(http), u8::from(translates), session]);
    add(ticket.map_or("", |ticket| ticket.version.as_str()).as_bytes());
    add(header_text(asked.headers, "mcp-protocol-version").unwrap_or_default().as_bytes());
    let digest = asked.settings.as_ref().map(|settings| settings.digest);
    add(digest.as_ref().map_or(&[], |digest| digest.as_slice()));
    add(tool.as_bytes());
    add(arguments.as_bytes());
    add(meta.as_bytes());
    // another secret may be another account
    for (_, value) in entry.injected.iter() {
        add(value.expose_secret().as_bytes());
    }
    for (name, value) in entry.ready.first().iter().flat_map(|live| live.endpoint.env.iter()) {
        add(name.as_bytes());
        add(value.expose_secret().as_bytes());
    }
    let mut headers = HeaderMap::new();
    copy_headers(asked.headers, &mut headers);
    // over other transports a server sees the message only; what mirrors its arguments is checked everywhere
    let counts = |name: &HeaderName| !unrelated(name) && (http || name.as_str().starts_with("mcp-param-"));
    let mut headers: Vec<_> = headers.iter().filter(|(name, _)| counts(name)).collect();
    headers.sort_by_key(|(name, _)| name.as_str());
    for (name, value) in headers {
        add(name.as_str().as_bytes());
        add(value.as_bytes());
    }
    add(asked.query.filter(|_| http).unwrap_or_default().as_bytes());
    Some(hash.finalize().into())
}

fn answer(head: &Head<'_>, found: &Found) -> Response<Out> {
    let id = head.id_text.unwrap_or("null");
    let mut text = BytesMut::with_capacity(found.result.len() + id.len() + 40);
    for part in [b"{\"jsonrpc\":\"2.0\",\"id\":", id.as_bytes(), b",\"result\":", &found.result, b"}"] {
        text.extend_from_slice(part);
    }
    let mut response = json(text.freeze());
    response.headers_mut().insert(header::AGE, HeaderValue::from(found.age.as_secs()));
    response.headers_mut().insert(SAYS, HeaderValue::from_static(Word::Hit.as_str()));
    response.extensions_mut().insert(Word::Hit);
    response
}

/// What an answer is looked at for.
#[derive(Debug)]
enum Aim {
    /// Whether the server says that its tools are others now.
    Changes,
    /// What it says of its tools.
    Tools { id: Option<Id>, release: ReleaseNo, instances: Vec<InstanceId> },
    /// A result to be kept; `session`: how often its server had asked its client something when the call came.
    Call { id: Option<Id>, place: Place, session: Option<(u64, Arc<Session>)>, spoiled: bool },
}

fn watched(shared: &Arc<Shared>, entry: &Entry, aim: Aim, response: Response<Out>) -> Response<Out> {
    let events = http::is_event_stream(response.headers());
    let most = match &aim {
        Aim::Changes => 0,
        Aim::Tools { .. } => PAGE_MAX,
        Aim::Call { .. } => ANSWER_MAX + ENVELOPE,
    };
    let whole = most > 0 && http::media_type(response.headers()) == "application/json";
    let plain = !response.headers().contains_key(header::CONTENT_ENCODING);
    if response.status() != StatusCode::OK || !plain || !(events || whole) {
        return response;
    }
    let keeping = Keeping {
        remembered: shared.remembered.clone(),
        deployment: entry.id,
        masks: entry.masks.clone(),
        limit: shared.config.borrow().gateway.cache_memory,
        aim,
        most,
        parser: events.then(sse::Parser::default),
        body: BytesMut::new(),
    };
    response.map(|out| Out::Wrapped(Box::new(Wrapped::new(out, None, Vec::new(), None).keeping(keeping))))
}

/// Reads an answer as it goes by.
#[derive(Debug)]
pub(crate) struct Keeping {
    remembered: Arc<Remembered>,
    deployment: DeploymentId,
    /// No secret is kept.
    masks: Option<Arc<Masks>>,
    limit: u64,
    aim: Aim,
    /// Longest whole answer that is of interest; 0 once it is not.
    most: usize,
    /// Of an event stream.
    parser: Option<sse::Parser>,
    /// Of a whole answer.
    body: BytesMut,
}

impl Keeping {
    pub(crate) fn push(&mut self, data: &[u8]) {
        if let Some(parser) = &mut self.parser {
            let mut events = Vec::new();
            if parser.push(data, &mut events).is_err() {
                *parser = sse::Parser::default();
                self.spoil();
            }
            for event in events.iter().filter(|event| !event.data.is_empty()) {
                self.message(event.data.as_bytes());
            }
            return;
        }
        let fits = self.body.len() + data.len() <= self.most;
        if fits && self.remembered.answers.collect(data.len(), self.limit) {
            self.body.extend_from_slice(data);
        } else {
            self.most = 0;
            self.release();
        }
    }

    /// Gives back the room of what was collected.
    fn release(&mut self) -> Bytes {
        self.remembered.answers.give_back(self.body.len());
        std::mem::take(&mut self.body).freeze()
    }

    fn spoil(&mut self) {
        if let Aim::Call { spoiled, .. } = &mut self.aim {
            *spoiled = true;
        }
    }

    fn message(&mut self, text: &[u8]) {
        let starred = self.masks.as_ref().and_then(|masks| masks.starred(text));
        // an answer that broke off is no JSON
        let Ok(head) = jsonrpc::parse_one(starred.as_deref().unwrap_or(text)) else { return self.spoil() };
        if head.method == CHANGED {
            self.remembered.forget_all_lists(self.deployment);
        }
        match &mut self.aim {
            Aim::Changes => {}
            Aim::Tools { id, release, instances } => {
                if let Some(result) = head.result.filter(|_| head.id == *id) {
                    self.remembered.answers.learn(self.deployment, *release, instances.iter().copied(), result);
                }
            }
            Aim::Call { id, place, session, spoiled } => {
                // what was said or asked before the answer belongs to it
                let asked = session.as_ref().is_some_and(|(before, session)| session.questions() != *before);
                if let Some(result) = head.result.filter(|_| head.id == *id && !*spoiled && !asked)
                    && answers::complete(result)
                {
                    self.remembered.answers.keep(place, result.get(), self.limit, Instant::now());
                }
                *spoiled = true;
            }
        }
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        if self.parser.is_none() {
            let body = self.release();
            if self.most > 0 && !body.is_empty() {
                self.message(&body);
            }
        }
    }
}
