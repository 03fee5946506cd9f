//! The MCP server of a simulated container: an echo that counts its calls, and everything that servers get wrong.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// How a server behaves, written in its environment as `ACT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Answers.
    Echo,
    /// Takes requests and never answers.
    Silent,
    /// Says something that is no MCP.
    Garbage,
    /// Listens nowhere.
    Deaf,
    /// Ends with this code, so long after its start.
    Exits(i32, Duration),
}

impl Act {
    /// `echo`, `silent`, `garbage`, `deaf`, `exit:CODE` or `exit:CODE:MILLISECONDS`.
    pub fn parse(text: &str) -> Self {
        let mut words = text.split(':');
        match words.next() {
            Some("silent") => Self::Silent,
            Some("garbage") => Self::Garbage,
            Some("deaf") => Self::Deaf,
            Some("exit") => {
                let code = words.next().and_then(|w| w.parse().ok()).unwrap_or(1);
                Self::Exits(code, Duration::from_millis(words.next().and_then(|w| w.parse().ok()).unwrap_or(0)))
            }
            _ => Self::Echo,
        }
    }
}

/// Tells whether a container is frozen.
pub type Frozen = Arc<dyn Fn() -> bool + Send + Sync>;

/// One running server process.
pub struct Server {
    pub act: Act,
    /// What its answers begin with (`GREETING`): tells releases apart.
    pub greeting: String,
    /// The instance it runs in: tells replicas apart.
    pub instance: String,
    /// Whether its container is frozen: then nothing may reach it.
    frozen: Frozen,
    /// Calls by session.
    sessions: Mutex<HashMap<String, u32>>,
}

impl Server {
    pub fn new(act: Act, greeting: String, instance: String, frozen: Frozen) -> Arc<Self> {
        Arc::new(Self { act, greeting, instance, frozen, sessions: Mutex::default() })
    }

    /// The answer to one message; `None` for notifications.
    pub fn answer(&self, message: &Value, session: &str) -> Option<Value> {
        let id = message.get("id").cloned()?;
        if (self.frozen)() {
            let error = json!({ "code": -32099, "message": "asked while its container was frozen" });
            return Some(json!({ "jsonrpc": "2.0", "id": id, "error": error }));
        }
        let result = match message["method"].as_str().unwrap_or_default() {
            "initialize" => json!({
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": { "tools": {} },
                "serverInfo": { "name": "sim", "version": "1" },
            }),
            "ping" => json!({}),
            "tools/list" => json!({ "tools": [{ "name": "echo", "inputSchema": { "type": "object" } }] }),
            "tools/call" => {
                let mut sessions = self.sessions.lock().unwrap();
                let count = sessions.entry(session.to_owned()).or_default();
                *count += 1;
                let text = format!("{} {} {count}", self.greeting, self.instance);
                json!({ "content": [{ "type": "text", "text": text }] })
            }
            other => {
                return Some(json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32601, "message": other } }));
            }
        };
        Some(json!({ "jsonrpc": "2.0", "id": id, "result": result }))
    }

    /// Serves one connection that the agent dialled, until it closes it.
    pub async fn serve(self: Arc<Self>, socket: tokio::net::TcpStream) {
        let service = hyper::service::service_fn(move |request| {
            let server = self.clone();
            async move { Ok::<_, std::convert::Infallible>(server.http(request).await) }
        });
        // a client that goes away is no error here
        let _ended = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
    }

    async fn http(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let reply = |status: StatusCode, body: String| {
            let builder = Response::builder().status(status).header("content-type", "application/json");
            builder.body(Full::new(Bytes::from(body))).unwrap()
        };
        match self.act {
            Act::Silent => std::future::pending().await,
            Act::Garbage => return reply(StatusCode::OK, "<html>It works!</html>".into()),
            _ => {}
        }
        let session = request.headers().get("mcp-session-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
        match *request.method() {
            Method::POST => {}
            Method::DELETE => {
                self.sessions.lock().unwrap().remove(&session.unwrap_or_default());
                return reply(StatusCode::OK, String::new());
            }
            _ => return reply(StatusCode::METHOD_NOT_ALLOWED, String::new()),
        }
        let Ok(body) = request.into_body().collect().await else {
            return reply(StatusCode::BAD_REQUEST, String::new());
        };
        let message: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        let new = message["method"] == "initialize";
        let session = match session {
            _ if new => {
                let id = ulid::Ulid::generate().to_string();
                self.sessions.lock().unwrap().insert(id.clone(), 0);
                id
            }
            Some(id) if self.sessions.lock().unwrap().contains_key(&id) => id,
            Some(_) => return reply(StatusCode::NOT_FOUND, String::new()),
            None => return reply(StatusCode::BAD_REQUEST, String::new()),
        };
        let Some(answer) = self.answer(&message, &session) else {
            return reply(StatusCode::ACCEPTED, String::new());
        };
        let mut response = reply(StatusCode::OK, answer.to_string());
        if new {
            response.headers_mut().insert("mcp-session-id", session.parse().unwrap());
        }
        response
    }
}
