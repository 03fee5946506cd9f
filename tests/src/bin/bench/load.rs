//! The two ends of the gateway's measurement: an MCP echo server that costs next to nothing, and clients that call it
//! as fast as they are answered.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::value::RawValue;
use tokio::net::{TcpListener, TcpStream};

use crate::mcp::{INITIALIZE, INITIALIZED, call};

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
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let status = |status: StatusCode| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        Ok(response)
    };
    if request.method() != Method::POST {
        return status(StatusCode::OK);
    }
    let Ok(body) = request.into_body().collect().await else { return status(StatusCode::BAD_REQUEST) };
    let body = body.to_bytes();
    let Ok(asked) = serde_json::from_slice::<Asked<'_>>(&body) else { return status(StatusCode::BAD_REQUEST) };
    let Some(id) = asked.id else { return status(StatusCode::ACCEPTED) };
    let result = match asked.method {
        "initialize" => concat!(
            r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"#,
            r#""serverInfo":{"name":"bench-echo","version":"1"}}"#
        ),
        "tools/list" => r#"{"tools":[{"name":"echo","inputSchema":{"type":"object"}}]}"#,
        _ => r#"{"content":[{"type":"text","text":"pong"}],"isError":false}"#,
    };
    let mut response = Response::new(Full::from(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)));
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    if asked.method == "initialize" {
        headers.insert("mcp-session-id", hyper::header::HeaderValue::from_static("bench-session"));
    }
    Ok(response)
}

/// Calls a second, and what a call took.
pub struct Load {
    pub rate: f64,
    pub micros: Vec<f64>,
}

/// So many connections, each with a session of its own and one call at a time.
pub async fn load(address: SocketAddr, path: &str, connections: usize, time: Duration) -> anyhow::Result<Load> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Client::open(address, path).await?);
    }
    let began = Instant::now();
    let deadline = began + time;
    let running: Vec<_> = clients.into_iter().map(|client| tokio::spawn(client.run(deadline))).collect();
    let mut micros = Vec::new();
    for client in running {
        micros.extend(client.await??);
    }
    Ok(Load { rate: micros.len() as f64 / began.elapsed().as_secs_f64(), micros })
}

struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    path: String,
    session: Option<hyper::header::HeaderValue>,
}

impl Client {
    async fn open(address: SocketAddr, path: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut client = Self { sender, host: address.to_string(), path: path.to_owned(), session: None };
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
        self.sender.ready().await?;
        let response = self.sender.send_request(request.body(Full::from(body))?).await?;
        anyhow::ensure!(response.status().is_success(), "{} from {}{}", response.status(), self.host, self.path);
        Ok(response)
    }

    async fn run(mut self, deadline: Instant) -> anyhow::Result<Vec<f64>> {
        // 256 bytes of arguments and envelope
        let body = Bytes::from(call("echo", &format!(r#"{{"text":"{}"}}"#, "x".repeat(160))));
        let mut micros = Vec::new();
        while Instant::now() < deadline {
            let asked = Instant::now();
            let answer = self.post(body.clone()).await?.into_body().collect().await?.to_bytes();
            micros.push(asked.elapsed().as_secs_f64() * 1e6);
            anyhow::ensure!(answer.windows(8).any(|w| w == b"\"result\""), "no result: {answer:?}");
        }
        Ok(micros)
    }
}
