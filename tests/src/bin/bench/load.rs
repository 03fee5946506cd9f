//! The two ends of a measurement: an MCP echo server that costs next to nothing, over HTTP and over its pipes, and
//! clients that call it as fast as they are answered.

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::value::RawValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::mcp::{INITIALIZE, INITIALIZED, call};

const SESSION_ID: hyper::header::HeaderName = hyper::header::HeaderName::from_static("mcp-session-id");

/// Serves until the listener fails.
pub async fn serve(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(answer);
            // a client that leaves is no error
            let _ended =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[derive(serde::Deserialize)]
struct Asked<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: &'a str,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// The tool that says little, and the one that says everything again.
pub const ECHO: &str = "echo";
pub const MIRROR: &str = "mirror";

/// What is answered to a message; `Ok(None)`: nothing.
fn reply(message: &[u8]) -> serde_json::Result<Option<String>> {
    #[derive(serde::Deserialize)]
    struct Params<'a> {
        #[serde(borrow)]
        name: &'a str,
        #[serde(borrow)]
        arguments: Arguments<'a>,
    }
    #[derive(serde::Deserialize)]
    struct Arguments<'a> {
        #[serde(borrow)]
        text: &'a RawValue,
    }
    let Asked { id, method, params } = serde_json::from_slice(message)?;
    let Some(id) = id else { return Ok(None) };
    let result = match method {
        "initialize" => concat!(
            r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"#,
            r#""serverInfo":{"name":"bench-echo","version":"1"}}"#
        ),
        "tools/list" => r#"{"tools":[{"name":"echo","inputSchema":{"type":"object"}}]}"#,
        "tools/call" => {
            let params: Option<Params<'_>> = params.and_then(|p| serde_json::from_str(p.get()).ok());
            if let Some(Params { arguments: Arguments { text }, .. }) = params.filter(|p| p.name == MIRROR) {
                let content = format!(r#"{{"content":[{{"type":"text","text":{text}}}],"isError":false}}"#);
                return Ok(Some(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{content}}}"#)));
            }
            r#"{"content":[{"type":"text","text":"pong"}],"isError":false}"#
        }
        "ping" => "{}",
        _ => {
            let error = r#"{"code":-32601,"message":"no such method"}"#;
            return Ok(Some(format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)));
        }
    };
    Ok(Some(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)))
}

/// The same server over its pipes, until its input ends: no runtime, one thread.
pub fn serve_pipes() -> anyhow::Result<()> {
    let (mut input, mut output) =
        (BufReader::with_capacity(64 << 10, std::io::stdin().lock()), std::io::stdout().lock());
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? > 0 {
        if let Some(mut answer) = reply(&line)? {
            answer.push('\n');
            output.write_all(answer.as_bytes())?;
            output.flush()?;
        }
        line.clear();
    }
    Ok(())
}

/// An answer's body: whole, or events.
enum Said {
    Whole(Full<Bytes>),
    Events(mpsc::Receiver<Bytes>),
}

impl Body for Said {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(whole) => Pin::new(whole).poll_frame(cx),
            Self::Events(events) => events.poll_recv(cx).map(|event| event.map(|event| Ok(Frame::data(event)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(whole) if whole.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Events(..) => SizeHint::default(),
        }
    }
}

/// A stream that says that it is open, and nothing else; with `?events` an event with its nanosecond a hundred times a
/// second.
fn events(request: &Request<Incoming>) -> Response<Said> {
    let (sender, events) = mpsc::channel(8);
    let _room = sender.try_send(Bytes::from_static(b": open\n\n"));
    let speaks = request.uri().query() == Some("events");
    tokio::spawn(async move {
        if !speaks {
            return sender.closed().await;
        }
        let mut every = tokio::time::interval(Duration::from_millis(10));
        loop {
            every.tick().await;
            let ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            let message = format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"level":"info","data":"","ns":{ns}}}}}"#
            );
            if sender.send(Bytes::from(format!("data: {message}\n\n"))).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(Said::Events(events));
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("text/event-stream"));
    response
}

/// Sessions so far: each has an id of its own.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

async fn answer(request: Request<Incoming>) -> Result<Response<Said>, Infallible> {
    let status = |status: StatusCode| {
        let mut response = Response::new(Said::Whole(Full::default()));
        *response.status_mut() = status;
        Ok(response)
    };
    if request.method() == Method::GET {
        return Ok(events(&request));
    }
    if request.method() != Method::POST {
        return status(StatusCode::OK);
    }
    let Ok(body) = request.into_body().collect().await else { return status(StatusCode::BAD_REQUEST) };
    let body = body.to_bytes();
    let text = match reply(&body) {
        Ok(Some(text)) => text,
        Ok(None) => return status(StatusCode::ACCEPTED),
        Err(_) => return status(StatusCode::BAD_REQUEST),
    };
    let begins = text.contains("protocolVersion");
    let mut response = Response::new(Said::Whole(Full::from(text)));
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    if begins {
        let id = format!("bench-{}", SESSIONS.fetch_add(1, Relaxed));
        headers.extend(hyper::header::HeaderValue::try_from(id).map(|id| (SESSION_ID, id)));
    }
    Ok(response)
}

/// Calls a second, and what a call took.
pub struct Load {
    pub rate: f64,
    pub micros: Vec<f64>,
}

/// What the clients do.
#[derive(Clone, Copy)]
pub struct Work {
    /// Each with a session of its own and one call at a time.
    pub connections: usize,
    pub time: Duration,
    pub tool: &'static str,
    /// Length of a call's argument.
    pub bytes: usize,
    /// What each request shows of its caller.
    pub key: Option<&'static str>,
}

impl Work {
    /// Calls of 256 bytes.
    pub fn small(connections: usize, time: Duration) -> Self {
        Self { connections, time, tool: ECHO, bytes: 160, key: None }
    }
}

/// Calls of one kind.
pub async fn load(address: SocketAddr, path: &str, kind: Work) -> anyhow::Result<Load> {
    work(address, path, kind, || ()).await.map(|(load, ())| load)
}

/// The same with other calls, and with a look at it while all sessions are open.
pub async fn work<T>(
    address: SocketAddr,
    path: &str,
    work: Work,
    look: impl FnOnce() -> T,
) -> anyhow::Result<(Load, T)> {
    let mut clients = Vec::new();
    for _ in 0..work.connections {
        clients.push(Client::open(address, path, work.key).await?);
    }
    let body = Bytes::from(call(work.tool, &format!(r#"{{"text":"{}"}}"#, "x".repeat(work.bytes))));
    let began = Instant::now();
    let deadline = began + work.time;
    let running = clients.into_iter().map(|client| tokio::spawn(client.run(body.clone(), deadline)));
    let running: Vec<_> = running.collect();
    let (mut micros, mut clients) = (Vec::new(), Vec::new());
    for client in running {
        let (client, took) = client.await??;
        micros.extend(took);
        clients.push(client);
    }
    let rate = micros.len() as f64 / began.elapsed().as_secs_f64();
    let seen = look();
    for client in clients {
        client.end().await?;
    }
    Ok((Load { rate, micros }, seen))
}

/// An answer that is none is an error with its own words.
async fn fine(response: Response<Incoming>) -> anyhow::Result<Response<Incoming>> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = response.into_body().collect().await?.to_bytes();
    anyhow::bail!("{status} {}", String::from_utf8_lossy(&text))
}

/// A client with a session.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    path: String,
    key: Option<&'static str>,
    session: Option<hyper::header::HeaderValue>,
}

impl Client {
    pub async fn open(address: SocketAddr, path: &str, key: Option<&'static str>) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut client = Self { sender, host: address.to_string(), path: path.to_owned(), key, session: None };
        let response = client.post(Bytes::from_static(INITIALIZE.as_bytes())).await?;
        client.session = Some(response.headers().get("mcp-session-id").context("no session id")?.clone());
        response.into_body().collect().await?;
        client.post(Bytes::from_static(INITIALIZED.as_bytes())).await?.into_body().collect().await?;
        Ok(client)
    }

    async fn post(&mut self, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::post(&self.path)
            .header("host", &self.host)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
        }
        if let Some(key) = self.key {
            request = request.header("x-api-key", key);
        }
        self.sender.ready().await?;
        let response = self.sender.send_request(request.body(Full::from(body))?).await?;
        fine(response).await.with_context(|| format!("from {}{}", self.host, self.path))
    }

    /// Opens its event stream, `query` behind the path, and waits for the first sign of life. The client is to be kept
    /// with it.
    pub async fn listen(mut self, query: &str) -> anyhow::Result<(Self, Response<Incoming>)> {
        let mut request = Request::get(format!("{}{query}", self.path))
            .header("host", &self.host)
            .header("accept", "text/event-stream")
            .header("mcp-protocol-version", "2025-11-25");
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session);
        }
        if let Some(key) = self.key {
            request = request.header("x-api-key", key);
        }
        self.sender.ready().await?;
        let response = self.sender.send_request(request.body(Full::default())?).await?;
        let mut response = fine(response).await.context("for a stream")?;
        response.body_mut().frame().await.context("the stream ended at once")??;
        Ok((self, response))
    }

    async fn run(mut self, body: Bytes, deadline: Instant) -> anyhow::Result<(Self, Vec<f64>)> {
        let mut micros = Vec::new();
        while Instant::now() < deadline {
            let asked = Instant::now();
            let answer = self.post(body.clone()).await?.into_body().collect().await?.to_bytes();
            micros.push(asked.elapsed().as_secs_f64() * 1e6);
            anyhow::ensure!(answer.windows(8).any(|w| w == b"\"result\""), "no result: {answer:?}");
        }
        Ok((self, micros))
    }

    /// Ends its session, as clients do.
    async fn end(mut self) -> anyhow::Result<()> {
        let mut request = Request::delete(&self.path).header("host", &self.host);
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
        }
        if let Some(key) = self.key {
            request = request.header("x-api-key", key);
        }
        self.sender.ready().await?;
        // servers may answer 405
        self.sender.send_request(request.body(Full::default())?).await?.into_body().collect().await?;
        Ok(())
    }
}
