//! Raw JSON-RPC conversations that come over gRPC (`sigil call`, `sigil run`): the client's frames in, the server's out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::BodyExt;
use hyper::header::{self, HeaderValue};
use hyper::{Method, StatusCode};
use sigil_core::jsonrpc::{self, Head, Id, Kind, Params};
use sigil_core::model::Transport;
use sigil_core::session::FIRST_MODERN;
use tokio::sync::mpsc;

use super::bridged::{self, Opened};
use super::caller::Caller;
use super::error::{GatewayError, Refusal};
use super::load::Call;
use super::proxy::{inject_body, inject_headers, target};
use super::settings::Settings;
use super::table::{Entry, Live};
use super::trace::Trace;
use super::{Shared, guard};
use crate::upstream::http::{self, SendError};
use crate::upstream::sse::Events;
use crate::upstream::{MAX_LINE, Output, one_line};

/// Requests at once in one conversation.
const PENDING_MAX: usize = 1024;

pub(crate) async fn run(
    shared: &Arc<Shared>,
    name: &str,
    caller: &Arc<Caller>,
    from_client: mpsc::Receiver<Bytes>,
    to_client: mpsc::Sender<Bytes>,
) -> Result<(), GatewayError> {
    let entry = shared.ready(name).await.map_err(|refusal| match refusal.code {
        "GATEWAY_MCP_NOT_FOUND" => GatewayError::NotFound(name.to_owned()),
        _ => refusal.into(),
    })?;
    if !caller.scope.deployment(name) {
        let hint = "`sigil key ls` shows what each key is good for";
        return Err(Refusal::forbidden(format!("the key '{}' is not for '{name}'", caller.name), hint).into());
    }
    tracing::debug!(deployment = name, caller = caller.name, "a direct conversation begins");
    // nobody gives any configuration this way: what the deploy has set must do
    let (settings, incomplete) = match &entry.terms {
        Some(terms) => terms.unasked().map(|(settings, incomplete)| (Some(Arc::new(settings)), incomplete))?,
        None => (None, None),
    };
    let entry = shared.ready_as(name, settings.as_ref()).await?;
    let terms = Unasked { settings, incomplete };
    let ((from_client, to_client), guard) =
        guard::between(shared.clone(), entry.id, caller.clone(), from_client, to_client);
    let conversation = async {
        match entry.ready.first().map(|l| l.endpoint.spec.transport) {
            Some(Transport::Http) => over_http(shared, &entry, caller, terms, from_client, to_client).await,
            _ => over_process(shared, &entry, caller, terms, from_client, to_client).await,
        }
    };
    // the guard ends when the conversation has: what the server said last still goes out
    let (ended, ()) = tokio::join!(conversation, guard);
    ended
}

/// Reads a frame; what is no message is answered here.
fn read(frame: &Bytes) -> Result<Head<'_>, Bytes> {
    jsonrpc::parse_one(frame).map_err(|e| Refusal::malformed(&e).to_json(None))
}

/// The spans of a request.
fn trace(shared: &Shared, name: &str, caller: &Caller, head: &Head<'_>) -> Option<Box<Trace>> {
    let config = shared.config.borrow().clone();
    Trace::linked(&shared.telemetry, &config.telemetry, name, &caller.name, head).map(Box::new)
}

/// The configuration of a conversation that gives none.
struct Unasked {
    settings: Option<Arc<Settings>>,
    /// Why it is enough for lists, and not for calls.
    incomplete: Option<Refusal>,
}

impl Unasked {
    /// The answer to a call that cannot be made.
    fn refuses(&self, head: &Head<'_>) -> Option<Bytes> {
        let refusal = self.incomplete.as_ref().filter(|_| head.method == "tools/call")?;
        Some(refusal.to_json(head.id.as_ref()))
    }
}

async fn over_process(
    shared: &Arc<Shared>,
    entry: &Entry,
    caller: &Caller,
    terms: Unasked,
    mut from_client: mpsc::Receiver<Bytes>,
    to_client: mpsc::Sender<Bytes>,
) -> Result<(), GatewayError> {
    let Opened { live, key, mut conversation, place, starting } =
        bridged::open(shared, entry, &entry.name, "d-").await?;
    let mut starting = Some(starting);
    let _known = Known::new(shared, &key);
    let mut calls: HashMap<Id, Call> = HashMap::new();
    let ended = loop {
        tokio::select! {
            () = shared.stop.cancelled() => break None,
            frame = from_client.recv() => {
                let Some(frame) = frame else { break None };
                let message = match read(&frame) {
                    Err(answer) => { to_client.send(answer).await.ok(); continue }
                    Ok(head) => {
                        if let Some(answer) = terms.refuses(&head) {
                            to_client.send(answer).await.ok();
                            continue;
                        }
                        if let Some(id) = head.id.as_ref().filter(|_| head.kind == Kind::Request) {
                            if calls.len() >= PENDING_MAX {
                                let refusal = Refusal::overloaded("too many unanswered requests", "wait for answers");
                                to_client.send(refusal.to_json(Some(id))).await.ok();
                                continue;
                            }
                            let call = Call::begin(&live.stats, &entry.recorder, caller).of(&head);
                            calls.insert(id.clone(), call.linked(trace(shared, &entry.name, caller, &head)));
                        }
                        inject_body(&entry.injected, &head).map_or_else(|| frame.clone(), Bytes::from)
                    }
                };
                // a process that ended is told by its output, with the reason
                conversation.input.send(one_line(message)).await.ok();
            }
            message = conversation.output.next(&live.endpoint) => match message {
                Err(why) => break Some(why),
                Ok(text) => {
                    if starting.take().is_some() {
                        shared.refill_soon(&live.endpoint);
                    }
                    let failed = match jsonrpc::parse_one(&text) {
                        Ok(head) if head.kind == Kind::Response => {
                            head.id.and_then(|id| calls.remove(&id)).map(|call| (call, head.error.is_some()))
                        }
                        Ok(_) => None,
                        Err(_) => {
                            if let Output::Stdio(lines) = &mut conversation.output {
                                lines.stray(&live.endpoint, text).await;
                            }
                            continue;
                        }
                    };
                    if let Some((mut call, failed)) = failed {
                        call.answered(&text);
                        if failed {
                            call.fail();
                        }
                    }
                    if to_client.send(text).await.is_err() {
                        break None;
                    }
                }
            },
        }
    };
    if let Some(why) = ended {
        let refusal = Refusal::failed(&entry.name, format!("the server process of this session {why} during the call"));
        for (id, mut call) in calls.drain() {
            call.fail();
            to_client.send(refusal.to_json(Some(&id))).await.ok();
        }
    }
    drop(conversation);
    if live.endpoint.spec.transport == Transport::Stdio {
        let (shared, endpoint) = (shared.clone(), live.endpoint.clone());
        shared.tasks.clone().spawn(async move { shared.finish(&endpoint, &key, place).await });
    }
    Ok(())
}

/// Keeps the sweeper from a direct conversation's process.
struct Known<'a>(&'a Shared, String);

impl<'a> Known<'a> {
    fn new(shared: &'a Shared, key: &str) -> Self {
        shared.direct().insert(key.to_owned());
        Self(shared, key.to_owned())
    }
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.0.direct().remove(&self.1);
    }
}

/// A streamable-HTTP client towards one replica.
struct Client {
    entry: Arc<Entry>,
    caller: Arc<Caller>,
    live: Live,
    settings: Option<Arc<Settings>>,
    session: Option<HeaderValue>,
    version: Option<String>,
    to_client: mpsc::Sender<Bytes>,
}

async fn over_http(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    caller: &Arc<Caller>,
    terms: Unasked,
    mut from_client: mpsc::Receiver<Bytes>,
    to_client: mpsc::Sender<Bytes>,
) -> Result<(), GatewayError> {
    let live = shared.order(entry, true).into_iter().next().cloned();
    let live = live.ok_or_else(|| Refusal::unavailable(&entry.name, &entry.message))?;
    let (known, caller, settings) = (entry.clone(), caller.clone(), terms.settings.clone());
    let mut client = Client { entry: known, caller, live, settings, session: None, version: None, to_client };
    let mut posts = FuturesUnordered::new();
    let mut listening = None;
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => break,
            Some(()) = posts.next(), if !posts.is_empty() => {}
            () = async { match listening.as_mut() { Some(f) => std::pin::Pin::as_mut(f).await, None => std::future::pending().await } } => {
                // a server without such a stream, or one that closed it
                listening = Some(Box::pin(std::future::pending()) as futures::future::BoxFuture<'static, ()>);
            }
            frame = from_client.recv() => {
                let Some(frame) = frame else { break };
                let head = match read(&frame) {
                    Ok(head) => head,
                    Err(answer) => { client.to_client.send(answer).await.ok(); continue }
                };
                if let Some(answer) = terms.refuses(&head) {
                    client.to_client.send(answer).await.ok();
                    continue;
                }
                let body = inject_body(&entry.injected, &head).map_or_else(|| frame.clone(), Bytes::from);
                let mut asked = Frame::of(&head);
                if asked.id.is_some() {
                    asked.trace = trace(shared, &entry.name, &client.caller, &head);
                }
                if asked.initialize {
                    client.initialize(asked, body).await;
                } else if asked.id.is_some() {
                    if posts.len() >= PENDING_MAX {
                        let refusal = Refusal::overloaded("too many unanswered requests", "wait for answers");
                        client.to_client.send(refusal.to_json(asked.id.as_ref())).await.ok();
                        continue;
                    }
                    posts.push(client.copy().post(asked, body));
                } else {
                    let initialized = asked.method == "notifications/initialized";
                    client.copy().post(asked, body).await;
                    if initialized && listening.is_none() && client.session.is_some() {
                        listening = Some(Box::pin(client.copy().listen()));
                    }
                }
            }
        }
    }
    drop(posts);
    drop(listening);
    if let Some(session) = client.session.take() {
        let delete = client.request(Method::DELETE).header("mcp-session-id", session).body(http::empty());
        if let Ok(delete) = delete {
            drop(tokio::time::timeout(Duration::from_secs(2), http::send(&client.live.endpoint, delete)).await);
        }
    }
    Ok(())
}

/// What is known of a client's frame.
struct Frame {
    id: Option<Id>,
    method: String,
    name: Option<String>,
    initialize: bool,
    modern: Option<String>,
    trace: Option<Box<Trace>>,
}

impl Frame {
    fn of(head: &Head<'_>) -> Self {
        let params = Params::read(head.params);
        Self {
            id: head.id.clone().filter(|_| head.kind == Kind::Request),
            method: head.method.clone().into_owned(),
            name: params.name.and_then(jsonrpc::string).map(std::borrow::Cow::into_owned),
            initialize: head.kind == Kind::Request && head.method == "initialize",
            modern: params.modern_version().map(std::borrow::Cow::into_owned),
            trace: None,
        }
    }
}

impl Client {
    fn copy(&self) -> Self {
        Self {
            entry: self.entry.clone(),
            caller: self.caller.clone(),
            live: self.live.clone(),
            settings: self.settings.clone(),
            session: self.session.clone(),
            version: self.version.clone(),
            to_client: self.to_client.clone(),
        }
    }

    fn request(&self, method: Method) -> hyper::http::request::Builder {
        let endpoint = &self.live.endpoint;
        let query = self.settings.as_deref().and_then(Settings::query);
        let mut request = http::request(endpoint, method, &target(&endpoint.spec.path, query, &self.entry.injected));
        if let Some(headers) = request.headers_mut() {
            self.settings.iter().for_each(|settings| settings.put(headers));
            if let Some(version) = &self.version
                && let Ok(version) = HeaderValue::from_str(version)
            {
                headers.insert("mcp-protocol-version", version);
            }
            inject_headers(&self.entry.injected, headers);
        }
        request
    }

    /// Sends `initialize` and keeps what later requests need.
    async fn initialize(&mut self, asked: Frame, body: Bytes) {
        let (tx, mut rx) = mpsc::channel(64);
        let mut first = self.copy();
        first.session = None;
        first.version = None;
        first.to_client = tx;
        let id = asked.id.clone();
        let to_client = self.to_client.clone();
        let mut version = None;
        let watch = async {
            while let Some(message) = rx.recv().await {
                if let Ok(head) = jsonrpc::parse_one(&message)
                    && head.kind == Kind::Response
                    && head.id == id
                {
                    let agreed = Params::read(head.result).protocol_version.and_then(jsonrpc::string);
                    version = agreed.map(std::borrow::Cow::into_owned);
                }
                to_client.send(message).await.ok();
            }
        };
        let (session, ()) = tokio::join!(first.exchange(asked, body), watch);
        self.session = session;
        self.version = version;
    }

    async fn post(self, asked: Frame, body: Bytes) {
        self.exchange(asked, body).await;
    }

    /// One POST and all its answer's messages. Answers the session id that came with it.
    async fn exchange(self, mut asked: Frame, body: Bytes) -> Option<HeaderValue> {
        let mut call = asked.id.as_ref().map(|_| Call::begin(&self.live.stats, &self.entry.recorder, &self.caller));
        if let Some(tool) = asked.name.as_ref().filter(|_| asked.method == "tools/call") {
            call = call.map(|call| call.of_tool(tool));
        }
        call = call.map(|call| call.linked(asked.trace.take()));
        match self.messages(&asked, body, &mut call).await {
            Ok(session) => session,
            Err(refusal) => {
                call.iter_mut().for_each(Call::fail);
                if let Some(id) = &asked.id {
                    self.to_client.send(refusal.to_json(Some(id))).await.ok();
                }
                None
            }
        }
    }

    async fn messages(
        &self,
        asked: &Frame,
        body: Bytes,
        call: &mut Option<Call>,
    ) -> Result<Option<HeaderValue>, Refusal> {
        let mut heard = |head: &Head<'_>| {
            let Some(call) = call else { return };
            call.answered(head.text.as_bytes());
            if head.error.is_some() {
                call.fail();
            }
        };
        let endpoint = &self.live.endpoint;
        let name = &self.entry.name;
        let mut request = self
            .request(Method::POST)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream");
        if let Some(modern) = &asked.modern {
            // headers that mirror the body are this client's to write
            request = request.header("mcp-protocol-version", modern).header("mcp-method", &asked.method);
            if let Some(tool) = asked.name.as_ref().filter(|_| modern.as_str() >= FIRST_MODERN) {
                request = request.header("mcp-name", tool);
            }
        } else if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session);
        }
        let bad = |e: hyper::http::Error| Refusal::bad_request(format!("the message cannot be sent: {e}"), "");
        let request = request.body(http::full(body)).map_err(bad)?;
        let limit = Duration::from_millis(endpoint.spec.request_timeout_ms);
        let answer = tokio::time::timeout(limit, http::send(endpoint, request));
        let answer = answer.await.map_err(|_| Refusal::timeout(name, endpoint.spec.request_timeout_ms))?;
        let answer = answer.map_err(|e| match e {
            SendError::Dial(link) => Refusal::failed(name, format!("'{name}' cannot be reached: {link}")),
            SendError::Lost(why) => {
                Refusal::failed(name, format!("'{name}' broke the connection off before it answered ({why})"))
            }
        })?;
        let session = answer.headers().get("mcp-session-id").cloned();
        let status = answer.status();
        if http::is_event_stream(answer.headers()) {
            let mut events = Events::new(answer.into_body());
            let mut answered = asked.id.is_none();
            loop {
                match events.next().await {
                    Ok(Some(event)) if event.event == "message" && !event.data.is_empty() => {
                        if let Ok(head) = jsonrpc::parse_one(event.data.as_bytes()) {
                            if head.kind == Kind::Response && head.id == asked.id {
                                heard(&head);
                                answered = true;
                            }
                            self.to_client.send(Bytes::from(event.data)).await.ok();
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) if answered => return Ok(session),
                    Ok(None) => {
                        return Err(Refusal::failed(
                            name,
                            format!("'{name}' ended its event stream without an answer"),
                        ));
                    }
                    Err(_) if answered => return Ok(session),
                    Err(why) => return Err(Refusal::failed(name, why)),
                }
            }
        }
        let limited = http_body_util::Limited::new(answer.into_body(), MAX_LINE);
        let body = limited.collect().await.map(http_body_util::Collected::to_bytes);
        let body = body.map_err(|e| Refusal::failed(name, format!("its answer broke off: {e}")))?;
        if asked.id.is_none() {
            return Ok(session);
        }
        match jsonrpc::parse_one(&body) {
            Ok(head) if head.kind == Kind::Response && head.id == asked.id => {
                heard(&head);
                self.to_client.send(body.clone()).await.ok();
                Ok(session)
            }
            Ok(head) => {
                let said = head.error.map_or(head.text, serde_json::value::RawValue::get);
                let said: String = said.chars().take(300).collect();
                Err(Refusal::failed(name, format!("'{name}' answers {status}: {said}")))
            }
            Err(_) => Err(Refusal::failed(name, format!("'{name}' answers {status}, which is no JSON-RPC"))),
        }
    }

    /// The server's own stream, as long as it has one.
    async fn listen(self) {
        let request = self.request(Method::GET).header(header::ACCEPT, "text/event-stream");
        let request = match &self.session {
            Some(session) => request.header("mcp-session-id", session),
            None => request,
        };
        let Ok(request) = request.body(http::empty()) else { return };
        let Ok(answer) = http::send(&self.live.endpoint, request).await else { return };
        if answer.status() != StatusCode::OK || !http::is_event_stream(answer.headers()) {
            return;
        }
        let mut events = Events::new(answer.into_body());
        while let Ok(Some(event)) = events.next().await {
            let message = event.event == "message" && jsonrpc::parse_one(event.data.as_bytes()).is_ok();
            if message && self.to_client.send(Bytes::from(event.data)).await.is_err() {
                return;
            }
        }
    }
}
