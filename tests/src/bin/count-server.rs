//! What the soak deploys: an MCP server whose answers show whose they are. Each session has a tag and counts its calls;
//! each call is written to standard error before it is answered, so that one that ran twice shows.
//!
//! `count-server (sessions|stateless) (stdio|PORT)`: of 2025-11-25 with sessions, or of 2026-07-28 without.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// How often an open stream says whose it is.
const EVERY: Duration = Duration::from_secs(2);

/// A session, or what all share where there are none.
#[derive(Debug)]
struct Talk {
    tag: String,
    stateless: bool,
    calls: Mutex<u64>,
    /// Calls that say so wait for each other.
    turn: tokio::sync::Mutex<()>,
}

impl Talk {
    fn new(stateless: bool) -> Arc<Self> {
        Arc::new(Self {
            tag: ulid::Ulid::generate().to_string(),
            stateless,
            calls: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// The messages that answer one, the last of them its result; none to a notification.
    async fn reply(&self, message: &Value) -> Vec<Value> {
        let Some(id) = message.get("id") else { return Vec::new() };
        let params = &message["params"];
        let list = if self.stateless { json!({"ttlMs": 0, "cacheScope": "private"}) } else { json!({}) };
        let mut said = Vec::new();
        let mut result = match (message["method"].as_str().unwrap_or_default(), self.stateless) {
            ("initialize", false) => json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
                "serverInfo": {"name": "count", "version": "1"}}),
            ("server/discover", true) => merged(
                list,
                json!({"supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}},
                "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "count", "version": "1"}}}),
            ),
            ("tools/list", _) => merged(list, json!({"tools": [{"name": "count", "inputSchema": {"type": "object"}}]})),
            ("ping", false) => json!({}),
            ("tools/call", _) => {
                let arguments = &params["arguments"];
                let call = arguments["call"].as_str().unwrap_or_default().to_owned();
                let count = {
                    let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
                    *calls += 1;
                    *calls
                };
                // one write: the parts of a line may be read apart
                let _gone = std::io::Write::write_all(&mut std::io::stderr(), format!("ran {call}\n").as_bytes());
                if let Some(token) = params["_meta"].get("progressToken") {
                    said.push(json!({"jsonrpc": "2.0", "method": "notifications/progress",
                        "params": {"progressToken": token, "progress": 1, "message": call}}));
                }
                let alone = arguments["alone"] == true;
                let _turn = if alone { Some(self.turn.lock().await) } else { None };
                tokio::time::sleep(Duration::from_millis(arguments["ms"].as_u64().unwrap_or_default())).await;
                let text = json!({"call": call, "tag": self.tag, "count": count}).to_string();
                json!({"content": [{"type": "text", "text": text}]})
            }
            _ => {
                let error = json!({"code": -32601, "message": "no such method"});
                return vec![json!({"jsonrpc": "2.0", "id": id, "error": error})];
            }
        };
        if self.stateless {
            result["resultType"] = json!("complete");
        }
        said.push(json!({"jsonrpc": "2.0", "id": id, "result": result}));
        said
    }
}

fn merged(mut all: Value, more: Value) -> Value {
    if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
        all.extend(more);
    }
    all
}

async fn pipes(stateless: bool) -> anyhow::Result<()> {
    let talk = Talk::new(stateless);
    let (sender, mut answers) = mpsc::channel::<Vec<Value>>(64);
    let writer = tokio::spawn(async move {
        let mut output = tokio::io::stdout();
        while let Some(messages) = answers.recv().await {
            let lines: String = messages.iter().map(|message| format!("{message}\n")).collect();
            output.write_all(lines.as_bytes()).await?;
            output.flush().await?;
        }
        anyhow::Ok(())
    });
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let message: Value = serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))?;
        let (talk, sender) = (talk.clone(), sender.clone());
        tokio::spawn(async move { sender.send(talk.reply(&message).await).await });
    }
    drop(sender);
    writer.await?
}

type Talks = Arc<Mutex<HashMap<String, Arc<Talk>>>>;

/// An answer's body: what comes through the channel.
struct Said(mpsc::Receiver<Bytes>);

impl Body for Said {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

fn status(status: StatusCode) -> Response<Said> {
    let mut response = Response::new(Said(mpsc::channel(1).1));
    *response.status_mut() = status;
    response
}

fn typed(body: mpsc::Receiver<Bytes>, media_type: &'static str) -> Response<Said> {
    let mut response = Response::new(Said(body));
    response.headers_mut().insert("content-type", HeaderValue::from_static(media_type));
    response
}

fn event(message: &Value) -> Bytes {
    Bytes::from(format!("data: {message}\n\n"))
}

/// Says whose stream it is until nobody listens.
fn stream(talk: Arc<Talk>) -> Response<Said> {
    let (sender, body) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut every = tokio::time::interval(EVERY);
        loop {
            every.tick().await;
            let message = json!({"jsonrpc": "2.0", "method": "notifications/message",
                "params": {"level": "info", "data": {"tag": talk.tag}}});
            if sender.send(event(&message)).await.is_err() {
                return;
            }
        }
    });
    typed(body, "text/event-stream")
}

async fn answer(request: Request<Incoming>, talks: Talks, shared: Option<Arc<Talk>>) -> Response<Said> {
    let session = request.headers().get("mcp-session-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let known = || talks.lock().unwrap_or_else(PoisonError::into_inner);
    let talk = match (&shared, &session) {
        (Some(shared), _) => Some(shared.clone()),
        (None, Some(id)) => match known().get(id).cloned() {
            Some(talk) => Some(talk),
            None => return status(StatusCode::NOT_FOUND),
        },
        (None, None) => None,
    };
    match *request.method() {
        Method::GET => {
            return match talk.filter(|talk| !talk.stateless) {
                Some(talk) => stream(talk),
                None => status(StatusCode::METHOD_NOT_ALLOWED),
            };
        }
        Method::DELETE => {
            session.and_then(|id| known().remove(&id));
            return status(StatusCode::OK);
        }
        _ => {}
    }
    let Ok(body) = request.into_body().collect().await else { return status(StatusCode::BAD_REQUEST) };
    let Ok(message) = serde_json::from_slice::<Value>(&body.to_bytes()) else { return status(StatusCode::BAD_REQUEST) };
    let begins = message["method"] == "initialize" && shared.is_none();
    let talk = match talk {
        Some(talk) => talk,
        None if begins => Talk::new(false),
        None => {
            // as the official SDKs say it
            let error = json!({"code": -32000, "message": "Bad Request: Mcp-Session-Id header is required"});
            let (sender, body) = mpsc::channel(1);
            let said = json!({"jsonrpc": "2.0", "id": message.get("id"), "error": error}).to_string();
            let _room = sender.try_send(Bytes::from(said));
            let mut response = typed(body, "application/json");
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return response;
        }
    };
    if begins {
        known().insert(talk.tag.clone(), talk.clone());
    }
    if message.get("id").is_none() {
        return status(StatusCode::ACCEPTED);
    }
    let (sender, body) = mpsc::channel(4);
    let streams = message["params"]["_meta"].get("progressToken").is_some();
    let tag = talk.tag.clone();
    let asked = message.clone();
    tokio::spawn(async move {
        for said in talk.reply(&asked).await {
            let piece = if streams { event(&said) } else { Bytes::from(said.to_string()) };
            // a client that left wants nothing
            sender.send(piece).await.ok();
        }
    });
    // what is no method of this era is told in the status, too
    let known =
        shared.is_none() || ["server/discover", "tools/list", "tools/call"].iter().any(|m| message["method"] == *m);
    let mut response = typed(body, if streams { "text/event-stream" } else { "application/json" });
    if !known {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    if let Some(tag) = begins.then(|| HeaderValue::try_from(tag).ok()).flatten() {
        response.headers_mut().insert("mcp-session-id", tag);
    }
    response
}

async fn http(stateless: bool, port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let talks = Talks::default();
    let shared = stateless.then(|| Talk::new(true));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (talks, shared) = (talks.clone(), shared.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let (talks, shared) = (talks.clone(), shared.clone());
                async move { Ok::<_, Infallible>(answer(request, talks, shared).await) }
            });
            // a client that leaves is no error
            let _ended =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [era, way] = arguments.as_slice() else { anyhow::bail!("count-server (sessions|stateless) (stdio|PORT)") };
    let stateless = era == "stateless";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if way == "stdio" {
        let ended = runtime.block_on(pipes(stateless));
        // a read of standard input that nobody waits for any more
        runtime.shutdown_background();
        return ended;
    }
    runtime.block_on(http(stateless, way.parse()?))
}
