//! Streamable HTTP as a conversation: each message is a POST of its own, and what comes for it is read until its answer
//! is there. A request that carries its own metadata (2026-07-28) gets the headers that mirror it; else the server's
//! session is kept (2025-03-26 to 2025-11-25), with its event stream, and begun anew when the server has forgotten it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use sigil_core::jsonrpc::{self, Head, Id, Kind, Params};
use sigil_core::mirror::{self, Mirrored, Page};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::http::{self, Answer, SendError};
use super::sse::Events;
use super::{Conversation, Endpoint, MAX_LINE, MODERN_META, Output, Said, one_line};

/// Messages waiting to be sent, and to be read.
const QUEUED: usize = 64;
/// Longest wait for a server to take a message that has no answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for the end of a session.
const FAREWELL: Duration = Duration::from_secs(2);
/// Before an event stream that ended is opened again, unless the server says otherwise, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Pages of tools that are read for what headers mirror, and how soon again for a tool that is not there.
const PAGES: usize = 200;
const REREAD: Duration = Duration::from_secs(5);
/// How long a server may be out of reach before a request that cannot be sent fails, and between two tries.
const REACH: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(100);

/// JSON-RPC code of a request that got no answer at all: the gateway's own for a connection that failed.
pub(crate) const LOST: i64 = -31502;
/// JSON-RPC code of a request that the server's HTTP refuses, with no JSON-RPC error of its own.
pub(crate) const REFUSED: i64 = -31400;

/// What every request of a conversation carries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Carried {
    /// Path and query.
    pub(crate) target: String,
    /// Secrets, and what the client passes on to the server.
    pub(crate) headers: HeaderMap,
}

/// The handshake and what came of it.
#[derive(Debug, Default, Clone)]
struct Session {
    /// The client's `initialize`, to begin anew with.
    greeting: Option<Bytes>,
    id: Option<HeaderValue>,
    version: Option<HeaderValue>,
}

#[derive(Debug, Default)]
struct Tools {
    mirrored: HashMap<String, Arc<Vec<Mirrored>>>,
    read: Option<Instant>,
}

#[derive(Debug)]
struct Door {
    endpoint: Arc<Endpoint>,
    carried: Carried,
    session: Mutex<Session>,
    /// Held while a forgotten session is begun anew.
    renewing: tokio::sync::Mutex<()>,
    tools: tokio::sync::Mutex<Tools>,
    /// Requests under way, by their id.
    posts: Mutex<HashMap<Id, CancellationToken>>,
    /// The event stream that belongs to no request.
    stream: Mutex<Option<CancellationToken>>,
    say: mpsc::Sender<Said>,
    quit: CancellationToken,
}

/// Why a request has no answer of the server's.
struct Failed {
    code: i64,
    what: String,
}

fn lost(what: impl Into<String>) -> Failed {
    Failed { code: LOST, what: what.into() }
}

/// Opens a conversation; nothing is sent before its first message.
pub(crate) fn connect(endpoint: &Arc<Endpoint>, carried: Carried) -> Conversation {
    let (input, queue) = mpsc::channel(QUEUED);
    let (say, from) = mpsc::channel(QUEUED);
    let end = CancellationToken::new();
    let door = Arc::new(Door {
        endpoint: endpoint.clone(),
        carried,
        session: Mutex::default(),
        renewing: tokio::sync::Mutex::default(),
        tools: tokio::sync::Mutex::default(),
        posts: Mutex::default(),
        stream: Mutex::default(),
        say,
        quit: CancellationToken::new(),
    });
    endpoint.tasks.spawn(door.serve(queue, end.clone()));
    Conversation { input, output: Output::Told(from), end }
}

impl Door {
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn posts(&self) -> MutexGuard<'_, HashMap<Id, CancellationToken>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>, mut queue: mpsc::Receiver<Bytes>, end: CancellationToken) {
        loop {
            let message = tokio::select! {
                biased;
                message = queue.recv() => message,
                () = end.cancelled() => None,
            };
            let Some(message) = message else { break };
            self.take(message).await;
        }
        self.quit.cancel();
        let session = self.session().clone();
        if session.id.is_some()
            && let Ok(request) = self.request(Method::DELETE, &session).body(http::empty())
        {
            // a server need not let sessions be ended
            drop(tokio::time::timeout(FAREWELL, http::send(&self.endpoint, request)).await);
        }
    }

    async fn take(self: &Arc<Self>, message: Bytes) {
        let Ok(head) = jsonrpc::parse_one(&message) else { return };
        match (head.kind, head.method.as_ref()) {
            (Kind::Request, _) => {
                let Some(id) = head.id.clone() else { return };
                let stop = self.quit.child_token();
                self.posts().insert(id.clone(), stop.clone());
                let (door, message) = (self.clone(), message.clone());
                self.endpoint.tasks.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = door.ask(&id, message) => {}
                    }
                    door.posts().remove(&id);
                });
            }
            (Kind::Notification, "notifications/cancelled") => {
                let id = Params::read(head.params).request_id.and_then(Id::read);
                let stop = id.and_then(|id| self.posts().remove(&id));
                if self.session().greeting.is_some() {
                    self.post(message.clone()).await;
                }
                // to a stateless server the closed connection says it
                stop.iter().for_each(CancellationToken::cancel);
            }
            // a stateless server takes neither
            _ if self.session().greeting.is_none() => {}
            (_, method) => {
                self.post(message.clone()).await;
                if method == "notifications/initialized" {
                    self.listen();
                }
            }
        }
    }

    fn request(&self, method: Method, session: &Session) -> hyper::http::request::Builder {
        let mut request = http::request(&self.endpoint, method, &self.carried.target);
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.carried.headers.clone());
            headers.extend(session.id.clone().map(|id| (HeaderName::from_static("mcp-session-id"), id)));
            let version = session.version.clone();
            headers.extend(version.map(|version| (HeaderName::from_static("mcp-protocol-version"), version)));
        }
        request
    }

    /// A POST with `more` headers.
    async fn send(&self, session: &Session, more: &[(HeaderName, HeaderValue)], body: Bytes) -> Result<Answer, Failed> {
        let request = self
            .request(Method::POST, session)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream");
        let mut request: Request<_> =
            request.body(http::full(body)).map_err(|e| lost(format!("the message cannot be sent: {e}")))?;
        for (name, value) in more {
            request.headers_mut().insert(name, value.clone());
        }
        let deadline = Instant::now() + REACH;
        loop {
            match http::send(&self.endpoint, request.clone()).await {
                Ok(answer) => return Ok(answer),
                // nothing was sent: a container that starts again is back soon
                Err(SendError::Dial(link)) if link.passes() && Instant::now() < deadline => {
                    tokio::time::sleep(AGAIN).await
                }
                Err(SendError::Dial(link)) => return Err(lost(format!("the server cannot be reached: {link}"))),
                Err(SendError::Lost(why)) => {
                    return Err(lost(format!(
                        "the server broke the connection off before it answered; the call was not sent again ({why})"
                    )));
                }
            }
        }
    }

    /// A message without an answer.
    async fn post(&self, message: Bytes) {
        let session = self.session().clone();
        let sent = async {
            let answer = self.send(&session, &[], message).await?;
            drop(answer.into_body().collect().await);
            Ok::<_, Failed>(())
        };
        if let Ok(Err(failed)) = tokio::time::timeout(PATIENCE, sent).await {
            tracing::debug!(instance = %self.endpoint.instance, "a message did not arrive: {}", failed.what);
        }
    }

    async fn ask(self: &Arc<Self>, id: &Id, message: Bytes) {
        let Ok(head) = jsonrpc::parse_one(&message) else { return };
        let Err(failed) = self.exchange(id, &head, message.clone()).await else { return };
        let (code, hint) = (jsonrpc::quote("GATEWAY_CONNECTION_FAILED"), jsonrpc::quote("see what the server printed"));
        let data = format!("{{\"code\":{code},\"hint\":{hint}}}");
        let error = jsonrpc::error(Some(id), failed.code, &failed.what, &data);
        self.say(Bytes::from(error), Some(id)).await;
    }

    async fn exchange(self: &Arc<Self>, id: &Id, head: &Head<'_>, message: Bytes) -> Result<(), Failed> {
        // after a handshake no request is stateless, whatever it still carries
        let greeted = self.session().greeting.is_some();
        let modern = Params::read(head.params).modern_version().filter(|_| !greeted);
        if let Some(version) = modern {
            let headers = self.mirroring(head, &version).await?;
            let answer = self.send(&Session::default(), &headers, message).await?;
            return self.read(id, answer, &Session::default()).await;
        }
        if head.method == "initialize" {
            *self.session() = Session { greeting: Some(message.clone()), ..Session::default() };
            let answer = self.send(&Session::default(), &[], message).await?;
            self.session().id = answer.headers().get("mcp-session-id").cloned();
            return self.read(id, answer, &Session::default()).await;
        }
        let session = self.session().clone();
        let answer = self.send(&session, &[], message.clone()).await?;
        if answer.status() == StatusCode::NOT_FOUND && session.id.is_some() {
            // the server has forgotten the session, so it has not looked at the request
            let session = self.renew(&session).await?;
            let answer = self.send(&session, &[], message).await?;
            return self.read(id, answer, &session).await;
        }
        self.read(id, answer, &session).await
    }

    /// Begins a session anew in the place of `old`, unless somebody just did.
    async fn renew(self: &Arc<Self>, old: &Session) -> Result<Session, Failed> {
        let _one_at_a_time = self.renewing.lock().await;
        let now = self.session().clone();
        if now.id != old.id {
            return Ok(now);
        }
        let greeting = now.greeting.ok_or_else(|| lost("the session is over"))?;
        let mut next = Session { greeting: Some(greeting.clone()), ..Session::default() };
        let limit = Duration::from_millis(self.endpoint.spec.start_timeout_ms);
        let asked = async {
            let answer = self.send(&Session::default(), &[], greeting.clone()).await?;
            next.id = answer.headers().get("mcp-session-id").cloned();
            self.whole(&greeting, answer).await
        };
        let answer =
            tokio::time::timeout(limit, asked).await.map_err(|_| lost("the server does not greet again"))??;
        next.version = agreed(&answer);
        if next.version.is_none() {
            return Err(lost("the session is over, and the server refuses a new one"));
        }
        *self.session() = next.clone();
        self.post(Bytes::from_static(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#)).await;
        self.listen();
        Ok(next)
    }

    /// Passes on what comes for a request, until its answer.
    async fn read(&self, id: &Id, answer: Answer, session: &Session) -> Result<(), Failed> {
        let status = answer.status();
        if status.is_success() && http::is_event_stream(answer.headers()) {
            let mut events = Events::new(answer.into_body());
            loop {
                let broken = match self.pass(&mut events, Some(id)).await {
                    Passed::Answered => return Ok(()),
                    Passed::Ended(why) => why,
                };
                // a server may close the stream on the way; what follows is to be fetched
                let (Some(last), pause) = events.position() else { return Err(lost(broken)) };
                if session.version.is_none() {
                    return Err(lost(broken));
                }
                tokio::time::sleep(pause.unwrap_or(PAUSE).min(PAUSE_MAX)).await;
                events = self.open(Some(&last)).await.map_err(|_| lost(broken))?;
            }
        }
        let limited = Limited::new(answer.into_body(), MAX_LINE);
        let body = limited.collect().await.map_err(|e| lost(format!("the server's answer broke off: {e}")))?.to_bytes();
        if let Ok(head) = jsonrpc::parse_one(&body)
            && head.kind == Kind::Response
        {
            if head.id.as_ref() == Some(id) {
                self.say(body.clone(), Some(id)).await;
                return Ok(());
            }
            if let Some(error) = head.error.filter(|_| head.id.is_none() || !status.is_success()) {
                let text = format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"error\":{}}}", id.to_json(), error.get());
                self.say(Bytes::from(text), Some(id)).await;
                return Ok(());
            }
        }
        let said: String = String::from_utf8_lossy(&body).chars().take(200).collect();
        let open = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS);
        let code = if open || status.is_server_error() { LOST } else { REFUSED };
        Err(Failed { code, what: format!("the server answers {status}: {said}") })
    }

    /// Passes a stream's messages on until the answer to `id`, or its end.
    async fn pass(&self, events: &mut Events, id: Option<&Id>) -> Passed {
        loop {
            let event = match events.next().await {
                Ok(Some(event)) => event,
                Ok(None) => return Passed::Ended("the server ended its event stream without an answer".into()),
                Err(why) => return Passed::Ended(format!("the call was not sent again: {why}")),
            };
            if event.event != "message" || event.data.is_empty() {
                continue;
            }
            let data = Bytes::from(event.data);
            let Ok(head) = jsonrpc::parse_one(&data) else { continue };
            let last = id.is_some() && head.kind == Kind::Response && head.id.as_ref() == id;
            self.say(data.clone(), id).await;
            if last {
                return Passed::Answered;
            }
        }
    }

    async fn say(&self, data: Bytes, about: Option<&Id>) {
        let greeted = {
            let session = self.session();
            session.greeting.is_some() && session.version.is_none()
        };
        if let Some(version) = greeted.then(|| agreed(&data)).flatten() {
            self.session().version = Some(version);
        }
        // nobody listens any more: then nobody needs it
        self.say.send(Said { data: one_line(data), about: about.cloned() }).await.ok();
    }

    /// Opens the session's event stream.
    async fn open(&self, last: Option<&str>) -> Result<Events, Failed> {
        let session = self.session().clone();
        let mut request = self.request(Method::GET, &session).header(header::ACCEPT, "text/event-stream");
        if let Some(last) = last.and_then(|last| HeaderValue::from_str(last).ok()) {
            request = request.header("last-event-id", last);
        }
        let request = request.body(http::empty()).map_err(|e| lost(e.to_string()))?;
        let answer = http::send(&self.endpoint, request).await.map_err(|e| lost(e.to_string()))?;
        if answer.status() != StatusCode::OK || !http::is_event_stream(answer.headers()) {
            return Err(lost(format!("GET answers {}", http::describe_answer(&answer))));
        }
        Ok(Events::new(answer.into_body()))
    }

    /// Keeps the session's own event stream open, if the server has one.
    fn listen(self: &Arc<Self>) {
        let stop = self.quit.child_token();
        let before = self.stream.lock().unwrap_or_else(PoisonError::into_inner).replace(stop.clone());
        before.iter().for_each(CancellationToken::cancel);
        let door = self.clone();
        self.endpoint.tasks.spawn(async move {
            let listening = async {
                let mut last = None;
                while let Ok(mut events) = door.open(last.as_deref()).await {
                    door.pass(&mut events, None).await;
                    let (position, pause) = events.position();
                    last = position.or(last);
                    tokio::time::sleep(pause.unwrap_or(PAUSE).min(PAUSE_MAX)).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = listening => {}
            }
        });
    }

    /// The headers that repeat a stateless request.
    async fn mirroring(&self, head: &Head<'_>, version: &str) -> Result<Vec<(HeaderName, HeaderValue)>, Failed> {
        let mut texts = vec![
            ("mcp-protocol-version".to_owned(), version.to_owned()),
            ("mcp-method".to_owned(), mirror::encode(&head.method).into_owned()),
        ];
        if let Some(name) = mirror::name(head) {
            texts.push(("mcp-name".to_owned(), mirror::encode(&name).into_owned()));
            if head.method == "tools/call" {
                let mirrored = self.mirrored(&name).await?;
                texts.extend(mirror::headers(&mirrored, Params::read(head.params).arguments));
            }
        }
        let header = |(name, value): (String, String)| {
            let bad = || lost(format!("the header {name} cannot be written"));
            Ok((HeaderName::try_from(&name).map_err(|_| bad())?, HeaderValue::try_from(value).map_err(|_| bad())?))
        };
        texts.into_iter().map(header).collect()
    }

    /// What headers mirror of a tool's arguments.
    async fn mirrored(&self, tool: &str) -> Result<Arc<Vec<Mirrored>>, Failed> {
        let mut tools = self.tools.lock().await;
        if !tools.mirrored.contains_key(tool) && tools.read.is_none_or(|at| at.elapsed() > REREAD) {
            tools.mirrored = self.read_tools().await?;
            tools.read = Some(Instant::now());
        }
        Ok(tools.mirrored.get(tool).cloned().unwrap_or_default())
    }

    async fn read_tools(&self) -> Result<HashMap<String, Arc<Vec<Mirrored>>>, Failed> {
        let mut all = HashMap::new();
        let mut cursor: Option<String> = None;
        let limit = Duration::from_millis(self.endpoint.spec.request_timeout_ms);
        for _ in 0..PAGES {
            let at = cursor.as_ref().map_or_else(String::new, |c| format!(",\"cursor\":{}", jsonrpc::quote(c)));
            let text = format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":\"sigil-tools\",\"method\":\"tools/list\",\"params\":{{\"_meta\":{MODERN_META}{at}}}}}"
            );
            let message = Bytes::from(text);
            let headers = [("mcp-protocol-version", sigil_core::session::FIRST_MODERN), ("mcp-method", "tools/list")]
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            let asked = async {
                let answer = self.send(&Session::default(), &headers, message.clone()).await?;
                self.whole(&message, answer).await
            };
            let answer =
                tokio::time::timeout(limit, asked).await.map_err(|_| lost("tools/list was not answered"))??;
            let head = jsonrpc::parse_one(&answer).ok();
            // a server without tools has none that a header mirrors
            let Some(page) = head.and_then(|h| h.result).and_then(Page::read) else { break };
            all.extend(page.tools.into_iter().map(|(name, mirrored)| (name, Arc::new(mirrored))));
            match page.next.filter(|next| cursor.as_ref() != Some(next)) {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        Ok(all)
    }

    /// The answer to a request of our own, and nothing else of what comes.
    async fn whole(&self, message: &Bytes, answer: Answer) -> Result<Bytes, Failed> {
        let id = jsonrpc::parse_one(message).ok().and_then(|head| head.id);
        let status = answer.status();
        if status.is_success() && http::is_event_stream(answer.headers()) {
            let mut events = Events::new(answer.into_body());
            while let Some(event) = events.next().await.map_err(lost)? {
                let data = Bytes::from(event.data);
                if jsonrpc::parse_one(&data).is_ok_and(|head| head.kind == Kind::Response && head.id == id) {
                    return Ok(data);
                }
            }
            return Err(lost("the server ended its event stream without an answer"));
        }
        let limited = Limited::new(answer.into_body(), MAX_LINE);
        let body = limited.collect().await.map_err(|e| lost(format!("the server's answer broke off: {e}")))?;
        Ok(body.to_bytes())
    }
}

enum Passed {
    Answered,
    Ended(String),
}

/// The revision that an answer to `initialize` agrees on.
fn agreed(answer: &[u8]) -> Option<HeaderValue> {
    let head = jsonrpc::parse_one(answer).ok()?;
    let version = Params::read(head.result).protocol_version.and_then(jsonrpc::string)?;
    HeaderValue::from_str(&version).ok()
}
