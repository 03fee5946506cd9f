//! The handshake that decides whether a replica may serve, and the words for why not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use sigil_core::jsonrpc::{self, Head, Id, Kind};
use sigil_core::model::{ReleaseSpec, Transport};
use sigil_core::route;
use tokio::sync::watch;

use super::http::{self, SendError};
use super::sse::Events;
use super::streamable::Carried;
use super::{
    Conversation, Endpoint, GateOptions, Handshake, LAST_OUTPUT, MODERN_META, Output, UpstreamError, converse, describe,
};
use crate::initlink::{Exit, LinkError};

/// Between two tries while a server starts.
const RETRY: Duration = Duration::from_millis(50);
/// A server that answers, but not as MCP, may still be mounting its routes.
const SETTLE: Duration = Duration::from_secs(3);
/// Most pages of tools: a server that pages for ever is broken.
const PAGES: usize = 200;
/// Largest JSON answer that the gate reads.
const ANSWER_MAX: usize = super::MAX_LINE;
/// From end of input to SIGTERM, for the gate's own process.
const GRACE: Duration = Duration::from_secs(2);
/// Where servers listen that ignore `PORT`, for the hint.
const USUAL_PORTS: [u16; 8] = [3000, 8000, 8080, 8081, 3001, 5000, 80, 8888];

/// Every capability that a client may have: what a server lists may depend on them, and the widest list is pinned.
const INITIALIZE: &str = concat!(
    r#"{"protocolVersion":"2025-11-25","capabilities":{"roots":{"listChanged":true},"sampling":{"context":{},"tools":{}},"#,
    r#""elicitation":{"form":{},"url":{}},"tasks":{"list":{},"cancel":{},"requests":{"sampling":{"createMessage":{}},"#,
    r#""elicitation":{"create":{}}}}},"clientInfo":{"name":"sigil","version":""#,
    env!("CARGO_PKG_VERSION"),
    r#""}}"#
);

/// One answer to one request.
enum Reply {
    Result(Box<RawValue>),
    /// A JSON-RPC error's object.
    Error(String),
}

/// Why a step failed: worth another try, or not.
enum Failure {
    /// Not up yet; the words are for when time runs out.
    NotYet(UpstreamError),
    /// It answered, but not as MCP.
    NotMcp(UpstreamError),
    /// No use in waiting.
    Final(UpstreamError),
}

fn failed(what: impl Into<String>, hint: impl Into<String>) -> UpstreamError {
    UpstreamError::Gate { what: what.into(), hint: hint.into() }
}

fn short(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    let cut: String = line.chars().take(200).collect();
    if cut.len() < line.len() { format!("{cut}…") } else { cut }
}

fn ms(d: Duration) -> String {
    let whole = d.subsec_millis() == 0 || d >= Duration::from_secs(10);
    if whole { format!("{} s", d.as_secs()) } else { format!("{} ms", d.as_millis()) }
}

pub(crate) async fn run(endpoint: &Arc<Endpoint>, options: &GateOptions<'_>) -> Result<Handshake, UpstreamError> {
    let timeout = options.timeout;
    let start = Instant::now();
    let deadline = start + timeout;
    let mut settle: Option<Instant> = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let outcome = match endpoint.spec.transport {
            Transport::Http => attempt_http(endpoint, left, timeout).await,
            Transport::Sse | Transport::Stdio => attempt_conversation(endpoint, left, options).await,
        };
        let failure = match outcome {
            Ok(mut handshake) => {
                handshake.elapsed = start.elapsed();
                return Ok(handshake);
            }
            Err(failure) => failure,
        };
        if endpoint.spec.transport != Transport::Stdio
            && let Some(exit) = endpoint.wire.main_exit()
        {
            return Err(died(endpoint, &describe(&exit), "before it answered").await);
        }
        let error = match failure {
            Failure::Final(error) => return Err(error),
            Failure::NotYet(error) => error,
            Failure::NotMcp(error) => {
                if settle.get_or_insert_with(Instant::now).elapsed() > SETTLE {
                    return Err(suggest_path(endpoint, error).await);
                }
                error
            }
        };
        if Instant::now() + RETRY >= deadline {
            return Err(match &error {
                UpstreamError::Link(LinkError::Refused(port)) => never_listened(endpoint, *port, timeout).await,
                _ => error,
            });
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn died(endpoint: &Endpoint, how: &str, when: &str) -> UpstreamError {
    let words = endpoint.last_words().await;
    let mut what = format!("the server {how} {when}");
    if !words.is_empty() {
        what.push_str(LAST_OUTPUT);
        for line in words {
            what.push_str("\n  ");
            what.push_str(&line);
        }
    }
    failed(what, "run the same command by hand, or see `sigil logs`; a missing secret or argument is the usual cause")
}

async fn never_listened(endpoint: &Endpoint, port: u16, timeout: Duration) -> UpstreamError {
    let mut elsewhere = None;
    for usual in USUAL_PORTS.into_iter().filter(|p| *p != port) {
        if endpoint.wire.dial(usual).await.is_ok() {
            elsewhere = Some(usual);
            break;
        }
    }
    let what = format!("the server never listened on port {port} within {}", ms(timeout));
    match elsewhere {
        Some(other) => failed(
            format!("{what}; it listens on {other}"),
            format!("make it listen on $PORT ({port}), or set `port: {other}` in the manifest (`--port {other}`)"),
        ),
        None => failed(
            what,
            format!(
                "an HTTP server must listen on $PORT ({port}) of 127.0.0.1 or of all addresses; a server that speaks over \
                 stdin and stdout needs `transport: stdio`"
            ),
        ),
    }
}

/// Asks the usual paths, so that the hint names the right one.
async fn suggest_path(endpoint: &Arc<Endpoint>, error: UpstreamError) -> UpstreamError {
    let UpstreamError::Gate { what, hint } = error else { return error };
    for path in ["/mcp", "/", "/api/mcp", "/mcp/"].into_iter().filter(|p| *p != endpoint.spec.path) {
        let mut client =
            Http { endpoint, path: path.to_owned(), headers: HeaderMap::new(), session: None, version: None };
        let asked = client.ask(1, "initialize", INITIALIZE);
        if let Ok(Ok(Reply::Result(_) | Reply::Error(_))) = tokio::time::timeout(Duration::from_secs(3), asked).await {
            return failed(format!("{what}; an MCP endpoint answers on '{path}'"), format!("set `path: {path}`"));
        }
    }
    for path in ["/sse", "/"] {
        let get = http::request(endpoint, Method::GET, path).header(header::ACCEPT, "text/event-stream");
        let Ok(get) = get.body(http::empty()) else { continue };
        if let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(3), http::send(endpoint, get)).await
            && answer.status() == StatusCode::OK
            && http::is_event_stream(answer.headers())
        {
            return failed(
                format!("{what}; '{path}' answers with an event stream, as servers of the old SSE transport do"),
                format!("set `transport: sse` and `path: {path}`"),
            );
        }
    }
    failed(what, hint)
}

/// The handshake over whatever carries requests; `ask` sends one and waits for its answer.
trait Ask {
    async fn ask(&mut self, id: i64, method: &str, params: &str) -> Result<Reply, Failure>;
    async fn notify(&mut self, method: &str) -> Result<(), Failure>;
    /// The era is settled.
    fn agreed(&mut self, version: &str);
}

#[derive(Deserialize)]
struct Initialized<'a> {
    #[serde(rename = "protocolVersion", default)]
    protocol_version: String,
    #[serde(rename = "serverInfo", default)]
    server_info: Implementation,
    #[serde(borrow, default)]
    capabilities: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Implementation {
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
}

#[derive(Deserialize)]
struct Discovered {
    #[serde(rename = "supportedVersions", default)]
    supported_versions: Vec<String>,
    #[serde(rename = "serverInfo", default)]
    server_info: Implementation,
    #[serde(rename = "_meta", default)]
    meta: DiscoveredMeta,
}

#[derive(Deserialize, Default)]
struct DiscoveredMeta {
    #[serde(rename = "io.modelcontextprotocol/serverInfo", default)]
    server_info: Implementation,
}

#[derive(Deserialize)]
struct ToolsPage<'a> {
    #[serde(borrow)]
    tools: &'a RawValue,
    #[serde(rename = "nextCursor", default)]
    next_cursor: Option<String>,
}

async fn handshake(client: &mut impl Ask) -> Result<Handshake, Failure> {
    let (info, version, modern, says_tools) = match client.ask(1, "initialize", INITIALIZE).await? {
        Reply::Result(result) => {
            let read: Initialized<'_> = serde_json::from_str(result.get()).map_err(|e| {
                Failure::NotMcp(failed(
                    format!("its answer to initialize is not one ({e}): {}", short(result.get())),
                    "is this an MCP server?",
                ))
            })?;
            if read.protocol_version.is_empty() {
                return Err(Failure::NotMcp(failed(
                    format!("its answer to initialize names no protocolVersion: {}", short(result.get())),
                    "is this an MCP server?",
                )));
            }
            client.agreed(&read.protocol_version);
            client.notify("notifications/initialized").await?;
            let tools = read.capabilities.is_some_and(|c| c.get().contains("\"tools\""));
            (read.server_info, read.protocol_version, false, tools)
        }
        Reply::Error(refusal) => {
            // a server of the stateless era only: it has no handshake, but says what it is when asked
            client.agreed(sigil_core::session::FIRST_MODERN);
            let refused = || {
                Failure::Final(failed(
                    format!("it refuses initialize: {}", short(&refusal)),
                    "the server's own documentation should say what it needs to start",
                ))
            };
            let Ok(Reply::Result(found)) =
                client.ask(2, "server/discover", &format!("{{\"_meta\":{MODERN_META}}}")).await
            else {
                return Err(refused());
            };
            let found: Discovered = serde_json::from_str(found.get()).map_err(|_| refused())?;
            let version = found.supported_versions.into_iter().max().ok_or_else(refused)?;
            let info = if found.server_info.name.is_empty() { found.meta.server_info } else { found.server_info };
            (info, version, true, true)
        }
    };
    let (tools, tool_count) = all_tools(client, modern, says_tools).await?;
    Ok(Handshake {
        server_name: info.name,
        server_version: info.version,
        protocol_version: version,
        tools,
        tool_count,
        elapsed: Duration::ZERO,
    })
}

/// What a look at a server that serves finds.
pub(crate) struct Looked {
    /// Its tools, whatever their order: two numbers that are not equal are not of the same tools.
    pub(crate) tools: u64,
    /// It speaks the stateless era only.
    pub(crate) modern: bool,
    /// Why the tool that was asked for failed.
    pub(crate) tool: Option<String>,
}

/// One look at a server over HTTP or legacy SSE that has passed its gate, in its own era. No process is started.
pub(crate) async fn look(
    endpoint: &Arc<Endpoint>,
    modern: bool,
    tool: Option<&str>,
    timeout: Duration,
) -> Result<Looked, UpstreamError> {
    let outcome = match endpoint.spec.transport {
        Transport::Http => {
            let Carried { target, headers } = looks(&endpoint.spec);
            let mut client = Http { endpoint, path: target, headers, session: None, version: None };
            if let Some(tool) = tool.and_then(|tool| HeaderValue::try_from(tool).ok()).filter(|_| modern) {
                client.headers.insert("mcp-name", tool);
            }
            let outcome = tokio::time::timeout(timeout, again(&mut client, modern, tool)).await;
            client.end().await;
            outcome
        }
        Transport::Sse | Transport::Stdio => {
            let looking = async {
                let conversation = converse(endpoint, "").await.map_err(Failure::NotYet)?;
                again(&mut Talk { endpoint, conversation }, modern, tool).await
            };
            tokio::time::timeout(timeout, looking).await
        }
    };
    match outcome {
        Ok(Ok(looked)) => Ok(looked),
        Ok(Err(Failure::NotYet(error) | Failure::NotMcp(error) | Failure::Final(error))) => Err(error),
        Err(_) => Err(failed(format!("no answer within {}", ms(timeout)), "see `sigil logs` for where it hangs")),
    }
}

async fn again(client: &mut impl Ask, modern: bool, tool: Option<&str>) -> Result<Looked, Failure> {
    let (tools, modern) = if modern {
        client.agreed(sigil_core::session::FIRST_MODERN);
        match client.ask(2, "server/discover", &format!("{{\"_meta\":{MODERN_META}}}")).await? {
            Reply::Result(_) => (all_tools(client, true, true).await?.0, true),
            Reply::Error(error) => {
                return Err(Failure::Final(failed(format!("server/discover failed: {}", short(&error)), "")));
            }
        }
    } else {
        let done = handshake(client).await?;
        (done.tools, done.protocol_version.as_str() >= sigil_core::session::FIRST_MODERN)
    };
    let tool = match tool {
        None => None,
        Some(name) => {
            let meta = if modern { format!(",\"_meta\":{MODERN_META}") } else { String::new() };
            let params = format!("{{\"name\":{},\"arguments\":{{}}{meta}}}", jsonrpc::quote(name));
            match client.ask(900, "tools/call", &params).await? {
                Reply::Error(error) => Some(short(&error)),
                Reply::Result(result) => {
                    #[derive(Deserialize)]
                    struct Called {
                        #[serde(rename = "isError", default)]
                        is_error: bool,
                    }
                    let called = serde_json::from_str::<Called>(result.get());
                    called.map_or(true, |c| c.is_error).then(|| short(result.get()))
                }
            }
        }
    };
    Ok(Looked { tools: digest(&tools), modern, tool })
}

/// Of a list of tools, whatever the order of it and of the members of each.
fn digest(tools: &RawValue) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut all: Vec<String> = serde_json::from_str::<Vec<serde_json::Value>>(tools.get())
        .map(|tools| tools.iter().map(canonical).collect())
        .unwrap_or_else(|_| vec![tools.get().to_owned()]);
    all.sort();
    let mut hasher = DefaultHasher::new();
    all.hash(&mut hasher);
    hasher.finish()
}

/// A value with the members of its objects in order.
fn canonical(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Object(map) => {
            let mut members: Vec<String> =
                map.iter().map(|(key, value)| format!("{}:{}", jsonrpc::quote(key), canonical(value))).collect();
            members.sort();
            format!("{{{}}}", members.join(","))
        }
        serde_json::Value::Array(items) => {
            format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

async fn all_tools(client: &mut impl Ask, modern: bool, says_tools: bool) -> Result<(Box<RawValue>, usize), Failure> {
    let broken = |what: String| Failure::Final(failed(what, "the server's tools/list must work before it can serve"));
    let mut pages: Vec<Box<RawValue>> = Vec::new();
    let mut count = 0;
    let mut cursor: Option<String> = None;
    loop {
        let mut members = Vec::new();
        if modern {
            members.push(format!("\"_meta\":{MODERN_META}"));
        }
        if let Some(cursor) = &cursor {
            members.push(format!("\"cursor\":{}", jsonrpc::quote(cursor)));
        }
        let id = 10 + i64::try_from(pages.len()).unwrap_or_default();
        let reply = client.ask(id, "tools/list", &format!("{{{}}}", members.join(","))).await?;
        let result = match reply {
            Reply::Result(result) => result,
            // prompts and resources alone make a server too
            Reply::Error(_) if !says_tools && pages.is_empty() => break,
            Reply::Error(error) => return Err(broken(format!("tools/list failed: {}", short(&error)))),
        };
        let page: ToolsPage<'_> = serde_json::from_str(result.get())
            .map_err(|e| broken(format!("its answer to tools/list is not one ({e}): {}", short(result.get()))))?;
        let tools: Vec<&RawValue> = serde_json::from_str(page.tools.get())
            .map_err(|e| broken(format!("its `tools` is not a list ({e}): {}", short(page.tools.get()))))?;
        count += tools.len();
        pages.push(page.tools.to_owned());
        match page.next_cursor.filter(|c| !c.is_empty()) {
            None => break,
            Some(_) if pages.len() >= PAGES => {
                return Err(broken(format!("tools/list has more than {PAGES} pages")));
            }
            Some(next) if Some(&next) == cursor.as_ref() => {
                return Err(broken("tools/list answers the same cursor again and again".into()));
            }
            Some(next) => cursor = Some(next),
        }
    }
    let tools = match pages.len() {
        1 => pages.pop(),
        _ => {
            let inner = |p: &RawValue| p.get().trim().trim_start_matches('[').trim_end_matches(']').trim().to_owned();
            let parts: Vec<String> = pages.iter().map(|p| inner(p)).filter(|p| !p.is_empty()).collect();
            RawValue::from_string(format!("[{}]", parts.join(","))).ok()
        }
    };
    let tools = tools.ok_or_else(|| broken("its pages of tools do not join to a list".into()))?;
    Ok((tools, count))
}

/// What we answer to a server's own requests during the gate.
fn answer_server(head: &Head<'_>) -> Option<String> {
    let id = head.id.as_ref().filter(|_| head.kind == Kind::Request)?;
    let result = match head.method.as_ref() {
        "ping" => "{}",
        "roots/list" => r#"{"roots":[]}"#,
        _ => return Some(jsonrpc::error(Some(id), -32601, "nobody is there to answer this during a health check", "")),
    };
    Some(format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{result}}}", id.to_json()))
}

fn reply(head: &Head<'_>, id: i64) -> Option<Reply> {
    if head.kind != Kind::Response || head.id != Some(Id::Int(id)) {
        return None;
    }
    match (head.result, head.error) {
        (Some(result), _) => Some(Reply::Result(result.to_owned())),
        (None, error) => Some(Reply::Error(error.map_or("no error object", RawValue::get).to_owned())),
    }
}

fn message(id: Option<i64>, method: &str, params: &str) -> Bytes {
    let id = id.map_or_else(String::new, |id| format!("\"id\":{id},"));
    let params = if params.is_empty() { String::new() } else { format!(",\"params\":{params}") };
    Bytes::from(format!("{{\"jsonrpc\":\"2.0\",{id}\"method\":\"{method}\"{params}}}"))
}

// ---------------------------------------------------------------- stdio and legacy SSE

struct Talk<'a> {
    endpoint: &'a Endpoint,
    conversation: Conversation,
}

impl Ask for Talk<'_> {
    async fn ask(&mut self, id: i64, method: &str, params: &str) -> Result<Reply, Failure> {
        // a closed input is told by the output's end, with its reason
        self.conversation.input.send(message(Some(id), method, params)).await.ok();
        loop {
            let text = match self.conversation.output.next(self.endpoint).await {
                Ok(text) => text,
                Err(how) => {
                    let garbage = self.garbage();
                    let when = format!("before it answered {method}{garbage}");
                    return Err(Failure::Final(died(self.endpoint, &how, &when).await));
                }
            };
            let Ok(head) = jsonrpc::parse_one(&text) else {
                match &mut self.conversation.output {
                    Output::Stdio(lines) => lines.stray(self.endpoint, text.clone()).await,
                    Output::Sse(_) | Output::Told(_) => {}
                }
                continue;
            };
            if let Some(reply) = reply(&head, id) {
                return Ok(reply);
            }
            if let Some(answer) = answer_server(&head) {
                self.conversation.input.send(answer.into()).await.ok();
            }
        }
    }

    async fn notify(&mut self, method: &str) -> Result<(), Failure> {
        self.conversation.input.send(message(None, method, "")).await.ok();
        Ok(())
    }

    fn agreed(&mut self, _version: &str) {}
}

impl Talk<'_> {
    /// Tells when its process has ended.
    fn exit(&self) -> Option<watch::Receiver<Option<Exit>>> {
        match &self.conversation.output {
            Output::Stdio(lines) => Some(lines.exit()),
            Output::Sse(_) | Output::Told(_) => None,
        }
    }

    fn garbage(&self) -> String {
        match &self.conversation.output {
            Output::Stdio(lines) => lines.first_stray.as_ref().map_or_else(String::new, |line| {
                format!("; on stdout, which is for the protocol, it printed: '{}'", short(line))
            }),
            Output::Sse(_) | Output::Told(_) => String::new(),
        }
    }
}

async fn attempt_conversation(
    endpoint: &Arc<Endpoint>,
    left: Duration,
    options: &GateOptions<'_>,
) -> Result<Handshake, Failure> {
    let GateOptions { timeout, measure, together } = *options;
    let before = if together { None } else { measure() };
    let key = format!("gate-{}", super::super::gateway::seal::random_key());
    let conversation = match tokio::time::timeout(left, converse(endpoint, &key)).await {
        Ok(Ok(conversation)) => conversation,
        Ok(Err(error @ UpstreamError::Link(LinkError::Spawn { .. }))) => return Err(Failure::Final(error)),
        Ok(Err(error @ UpstreamError::Link(_))) => return Err(Failure::NotYet(error)),
        Ok(Err(error)) => return Err(Failure::NotMcp(error)),
        Err(_) => return Err(Failure::NotYet(failed(format!("it did not start within {}", ms(timeout)), ""))),
    };
    if together && endpoint.spec.transport == Transport::Stdio {
        endpoint.spare.fill(endpoint);
    }
    let mut talk = Talk { endpoint, conversation };
    let left = left.max(Duration::from_millis(1));
    let outcome = tokio::time::timeout(left, handshake(&mut talk)).await;
    let garbage = talk.garbage();
    if endpoint.spec.transport == Transport::Stdio {
        let good = matches!(outcome, Ok(Ok(_)));
        if let (true, Some(before), Some(with)) = (good, before, measure()) {
            endpoint.spare.measured(with.saturating_sub(before));
        }
        let exit = talk.exit();
        drop(talk);
        endpoint.wire.close(&key, GRACE).await;
        if good {
            fill(endpoint, exit);
        }
    }
    match outcome {
        Ok(done) => done,
        Err(_) => {
            let hint = if garbage.is_empty() {
                "a slow start needs a longer start timeout; a server that listens on a port needs `transport: http`"
            } else {
                "let it log to stderr; if it serves HTTP, set `transport: http`"
            };
            Err(Failure::Final(failed(
                format!("it did not answer the handshake within {}{garbage}", ms(timeout)),
                hint,
            )))
        }
    }
}

/// Starts the spare process: at once where two have room, else once the gate's own has ended.
fn fill(endpoint: &Arc<Endpoint>, exit: Option<watch::Receiver<Option<Exit>>>) {
    let resources = &endpoint.spec.resources;
    let room = route::sessions_default(resources.processes, resources.memory, endpoint.spare.memory());
    let endpoint = endpoint.clone();
    match exit.filter(|_| room < 2) {
        None => endpoint.spare.fill(&endpoint),
        Some(mut exit) => drop(endpoint.tasks.clone().spawn(async move {
            let ended = exit.wait_for(Option::is_some);
            drop(tokio::time::timeout(GRACE * 3, ended).await);
            endpoint.spare.fill(&endpoint);
        })),
    }
}

// ---------------------------------------------------------------- streamable HTTP

struct Http<'a> {
    endpoint: &'a Arc<Endpoint>,
    path: String,
    /// Configuration that goes to headers.
    headers: HeaderMap,
    session: Option<header::HeaderValue>,
    version: Option<String>,
}

impl Http<'_> {
    async fn post(&self, body: Bytes, method: &str) -> Result<http::Answer, Failure> {
        let mut request = http::request(self.endpoint, Method::POST, &self.path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream");
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session);
        }
        if let Some(version) = &self.version {
            request = request.header("mcp-protocol-version", version);
            if version.as_str() >= sigil_core::session::FIRST_MODERN {
                request = request.header("mcp-method", method);
            }
        }
        let mut request = request.body(http::full(body)).map_err(|e| {
            Failure::Final(failed(format!("'{}' is no path: {e}", self.shown()), "set `path` in the manifest"))
        })?;
        for (name, value) in &self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        http::send(self.endpoint, request).await.map_err(|e| match e {
            SendError::Dial(link) => Failure::NotYet(link.into()),
            SendError::Lost(why) => Failure::NotYet(failed(
                format!("the connection ended before it answered {method} ({why})"),
                "see `sigil logs`: it may crash on its first request",
            )),
        })
    }

    /// The server should not keep a session for a health check; one that cannot end it answers 405.
    async fn end(&mut self) {
        let Some(session) = self.session.take() else { return };
        let delete = http::request(self.endpoint, Method::DELETE, &self.path).header("mcp-session-id", session);
        if let Ok(delete) = delete.body(http::empty()) {
            drop(tokio::time::timeout(Duration::from_secs(2), http::send(self.endpoint, delete)).await);
        }
    }

    /// Its path without the configuration behind it, which may hold secrets.
    fn shown(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }

    fn not_mcp(&self, method: &str, status: &str, text: &str) -> Failure {
        let shown = if text.trim().is_empty() { String::new() } else { format!(": {}", short(text)) };
        Failure::NotMcp(failed(
            format!("POST {} ({method}) answers {status}{shown}", self.shown()),
            "set `path` to the server's MCP endpoint and `transport` to http, sse or stdio as it speaks",
        ))
    }
}

impl Ask for Http<'_> {
    async fn ask(&mut self, id: i64, method: &str, params: &str) -> Result<Reply, Failure> {
        let answer = self.post(message(Some(id), method, params), method).await?;
        let status = http::describe_answer(&answer);
        if let Some(session) = answer.headers().get("mcp-session-id").filter(|_| method == "initialize") {
            self.session = Some(session.clone());
        }
        if http::is_event_stream(answer.headers()) && answer.status().is_success() {
            let mut events = Events::new(answer.into_body());
            loop {
                let event = events.next().await.map_err(|why| Failure::NotYet(failed(why, "see `sigil logs`")))?;
                let Some(event) = event else {
                    let text = "the event stream ended without an answer";
                    return Err(self.not_mcp(method, &status, text));
                };
                let Ok(head) = jsonrpc::parse_one(event.data.as_bytes()) else { continue };
                if let Some(reply) = reply(&head, id) {
                    return Ok(reply);
                }
                if let Some(answer) = answer_server(&head) {
                    self.post(answer.into(), "").await?;
                }
            }
        }
        let code = answer.status();
        let limited = http_body_util::Limited::new(answer.into_body(), ANSWER_MAX);
        let body = limited.collect().await.map(http_body_util::Collected::to_bytes).map_err(|e| {
            Failure::NotYet(failed(format!("its answer to {method} broke off ({e})"), "see `sigil logs`"))
        })?;
        match jsonrpc::parse_one(&body) {
            Ok(head) if head.kind == Kind::Response && head.error.is_some() => {
                // an error's id may be null; its status may be any
                Ok(Reply::Error(head.error.map_or("", RawValue::get).to_owned()))
            }
            Ok(head) => reply(&head, id).ok_or_else(|| self.not_mcp(method, &status, head.text)),
            Err(_) => {
                let text = String::from_utf8_lossy(&body).into_owned();
                let failure = self.not_mcp(method, &status, &text);
                Err(match failure {
                    Failure::NotMcp(error) if code.is_server_error() => Failure::NotYet(error),
                    other => other,
                })
            }
        }
    }

    async fn notify(&mut self, method: &str) -> Result<(), Failure> {
        let answer = self.post(message(None, method, ""), method).await?;
        let status = answer.status();
        drop(http_body_util::Limited::new(answer.into_body(), ANSWER_MAX).collect().await);
        if status.is_success() { Ok(()) } else { Err(self.not_mcp(method, &status.to_string(), "")) }
    }

    fn agreed(&mut self, version: &str) {
        self.version = Some(version.to_owned());
    }
}

/// How a server is looked at that wants a configuration: with the one that stands in for its callers'.
pub(crate) fn looks(spec: &ReleaseSpec) -> Carried {
    let looks = spec.session.as_ref().map(|session| &session.looks);
    let query = looks.map(|looks| looks.query.as_str()).filter(|query| !query.is_empty());
    let named = looks.into_iter().flat_map(|looks| &looks.headers);
    let headers = named
        .filter_map(|(name, value)| Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?)))
        .collect();
    Carried { target: query.map_or_else(|| spec.path.clone(), |query| format!("{}?{query}", spec.path)), headers }
}

async fn attempt_http(endpoint: &Arc<Endpoint>, left: Duration, timeout: Duration) -> Result<Handshake, Failure> {
    let Carried { target, headers } = looks(&endpoint.spec);
    let mut client = Http { endpoint, path: target, headers, session: None, version: None };
    let outcome = tokio::time::timeout(left.max(Duration::from_millis(1)), handshake(&mut client)).await;
    client.end().await;
    outcome.unwrap_or_else(|_| {
        Err(Failure::Final(failed(
            format!(
                "it took the connection on port {} but did not answer the handshake within {}",
                endpoint.spec.port,
                ms(timeout)
            ),
            "a slow start needs a longer start timeout; see `sigil logs` for where it hangs",
        )))
    })
}
