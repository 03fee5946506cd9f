//! A client of the soak: it knows what it asked and believes nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{Site, Tally};
use crate::Dice;

/// Longest wait for an answer: longer than the gateway holds a call.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// A client's thinking, milliseconds.
const THINK: [u64; 2] = [500, 4500];
/// An answer had begun and cannot become an error any more: its end is missing, and its client knows.
const BROKEN: &str = "the answer broke off";
const OVER: &str = "404: the session is over";
/// Calls of a session.
const CALLS: [usize; 2] = [5, 60];

struct Client {
    name: String,
    address: SocketAddr,
    site: Site,
    tally: Arc<Tally>,
    dice: Dice,
    sender: SendRequest<Full<Bytes>>,
    /// Message ids, and calls, so far.
    sent: u64,
}

/// A session as its client knows it.
#[derive(Default)]
struct Session {
    id: Option<HeaderValue>,
    /// The server's own name for it, from its first answer.
    tag: Option<String>,
    /// Calls that its server counted.
    count: u64,
}

/// What an exchange came to.
enum Outcome {
    Result(Value),
    /// The session is over: a new one is to be begun.
    Gone,
    /// An error of JSON-RPC.
    Error(String),
}

/// Calls until the tally says stop.
pub(super) async fn run(n: usize, address: SocketAddr, site: Site, tally: Arc<Tally>) {
    let name = format!("{}-{n}", site.name);
    let outcome = async {
        let sender = connect(address).await?;
        let dice = Dice::seeded(n as u64);
        let mut client = Client { name: name.clone(), address, site, tally: tally.clone(), dice, sender, sent: 0 };
        // of each deployment's clients one in five is of the other era
        let other = n / 20 % 5 == 4;
        client.think().await;
        while !tally.stop.load(Relaxed) {
            let stateless = client.site.stateless != other;
            if stateless { client.without_session().await? } else { client.session().await? }
        }
        anyhow::Ok(())
    };
    if let Err(error) = outcome.await {
        tally.finding(format!("{name}: {error:#}"));
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// What is at a path.
pub(super) async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let request = Request::get(path).header("host", address.to_string()).body(Full::default())?;
    let answer = connect(address).await?.send_request(request).await?;
    let status = answer.status();
    let text = String::from_utf8(answer.into_body().collect().await?.to_bytes().into())?;
    if status.is_success() { Ok(text) } else { bail!("{path}: {status} {text}") }
}

impl Client {
    async fn think(&mut self) {
        let [least, most] = THINK;
        let until = Instant::now() + Duration::from_millis(least + self.dice.below(most - least));
        while Instant::now() < until && !self.tally.stop.load(Relaxed) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn request(&self, method: Method, session: &Session) -> hyper::http::request::Builder {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/mcp/{}", self.site.name))
            .header("host", self.address.to_string())
            .header("accept", "application/json, text/event-stream");
        if let Some(id) = &session.id {
            request = request.header("mcp-session-id", id).header("mcp-protocol-version", "2025-11-25");
        }
        if let Some(key) = &self.site.key {
            request = request.header("x-api-key", key);
        }
        request
    }

    /// `None`: an answer had begun and broke off before any of it went out; then a gateway can only close the connection.
    async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Option<Response<Incoming>>> {
        // the gateway may close a connection between two requests, never within one
        if self.sender.ready().await.is_err() {
            self.sender = connect(self.address).await?;
            self.sender.ready().await?;
        }
        let answer = tokio::time::timeout(PATIENCE, self.sender.send_request(request)).await;
        match answer.map_err(|_| anyhow!("no answer within {PATIENCE:?}"))? {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.is_incomplete_message() => {
                self.sender = connect(self.address).await?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn ask(
        &mut self,
        session: &Session,
        headers: &[(&str, &str)],
        mut message: Value,
    ) -> anyhow::Result<Outcome> {
        self.sent += 1;
        message["jsonrpc"] = json!("2.0");
        message["id"] = json!(self.sent);
        let mut request = self.request(Method::POST, session).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let asked = Instant::now();
        let Some(answer) = self.send(request.body(Full::from(message.to_string()))?).await? else {
            return Ok(Outcome::Error(BROKEN.to_owned()));
        };
        let (parts, body) = answer.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.map_err(|_| anyhow!("no end of an answer"))?;
        if parts.status == StatusCode::NOT_FOUND && session.id.is_some() {
            return Ok(Outcome::Gone);
        }
        let Ok(body) = body else {
            self.sender = connect(self.address).await?;
            return Ok(Outcome::Error(BROKEN.to_owned()));
        };
        let text = String::from_utf8(body.to_bytes().into())?;
        let mut said: Vec<Value> = Vec::new();
        if parts.headers.get("content-type").is_some_and(|t| t == "text/event-stream") {
            for data in
                text.lines().filter_map(|line| line.strip_prefix("data:")).filter(|data| !data.trim().is_empty())
            {
                said.push(serde_json::from_str(data).with_context(|| format!("no JSON: {data}"))?);
            }
        } else {
            said.push(serde_json::from_str(&text).with_context(|| format!("{}: no JSON: {text}", parts.status))?);
        }
        let last = said.pop().context("an answer that says nothing")?;
        let token = &message["params"]["_meta"]["progressToken"];
        for other in &said {
            let own = other["method"] == "notifications/progress"
                && &other["params"]["progressToken"] == token
                && other["params"]["message"] == message["params"]["arguments"]["call"];
            if !own {
                bail!("on the stream of {message}: {other}");
            }
        }
        if last["id"] != message["id"] {
            bail!("{message} was answered {} {last}", parts.status);
        }
        if last.get("error").is_some() {
            return Ok(Outcome::Error(format!("{} {}", parts.status.as_u16(), last["error"])));
        }
        let took = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.tally.longest_ms.fetch_max(took, Relaxed);
        Ok(Outcome::Result(last["result"].clone()))
    }

    /// What may be told while a server is killed or replaced is written down; all else is wrong.
    fn told(&self, error: &str) -> anyhow::Result<()> {
        let known = [BROKEN, "GATEWAY_CONNECTION_FAILED", "GATEWAY_STARTING", "GATEWAY_OVERLOADED", "GATEWAY_TIMEOUT"];
        match known.iter().find(|known| error.contains(*known)) {
            Some(known) => self.tally.told((*known).to_owned()),
            None => bail!("an error that no kill explains: {error}"),
        }
        Ok(())
    }

    /// Arguments of the next call, and its name.
    fn next_call(&mut self) -> (String, Value) {
        let call = format!("{}-{}", self.name, self.sent + 1);
        let ms = if self.dice.below(8) == 0 { 300 } else { 0 };
        let mut params = json!({"name": "count", "arguments": {"call": call, "ms": ms}});
        if self.dice.below(4) == 0 {
            params["_meta"] = json!({"progressToken": format!("p-{call}")});
        }
        (call, params)
    }

    /// The content of a call's result, which must be this call's.
    fn own(call: &str, result: &Value) -> anyhow::Result<Value> {
        let text = result["content"][0]["text"].as_str().with_context(|| format!("no text: {result}"))?;
        let said: Value = serde_json::from_str(text)?;
        if said["call"] != call {
            bail!("{call} was answered {said}");
        }
        Ok(said)
    }

    async fn session(&mut self) -> anyhow::Result<()> {
        let initialize = json!({"method": "initialize", "params": {"protocolVersion": "2025-11-25",
            "capabilities": {}, "clientInfo": {"name": "soak", "version": "1"}}});
        let Some(mut session) = self.begin(initialize).await? else { return Ok(()) };
        self.tally.sessions.fetch_add(1, Relaxed);
        let enough = CancellationToken::new();
        let _left = enough.clone().drop_guard();
        let listens = self.dice.below(3) == 0 && !self.site.stateless;
        let listening = listens.then(|| self.listen(&session, enough.clone())).transpose()?;
        let heard = listening.map(tokio::spawn);
        let [least, most] = CALLS;
        let calls = least + self.dice.pick(most - least);
        for _ in 0..calls {
            self.think().await;
            if self.tally.stop.load(Relaxed) {
                break;
            }
            let (call, params) = self.next_call();
            match self.ask(&session, &[], json!({"method": "tools/call", "params": params})).await? {
                Outcome::Gone => {
                    self.tally.told(OVER.to_owned());
                    session.id = None;
                    break;
                }
                // its process or its replica is gone, and its session with it
                Outcome::Error(error) => {
                    self.told(&error)?;
                    // whether that one ran nobody knows; what comes next is refused, or this session's
                    session.count = u64::MAX;
                }
                Outcome::Result(result) => self.check(&mut session, &call, &Self::own(&call, &result)?)?,
            }
        }
        if let Some(id) = session.id.take() {
            let session = Session { id: Some(id), ..Session::default() };
            let answer = self.send(self.request(Method::DELETE, &session).body(Full::default())?).await?;
            let answer = answer.context("the answer to its session's end broke off")?;
            let status = answer.status();
            let text = String::from_utf8(answer.into_body().collect().await?.to_bytes().into())?;
            if !(status.is_success() || status == StatusCode::NOT_FOUND) {
                self.told(&format!("its session's end was answered {status} {text}"))?;
            }
        }
        enough.cancel();
        match heard {
            Some(heard) => self.heard(heard.await?, session.tag.as_deref()),
            None => Ok(()),
        }
    }

    async fn begin(&mut self, initialize: Value) -> anyhow::Result<Option<Session>> {
        self.sent += 1;
        let mut message = initialize;
        message["jsonrpc"] = json!("2.0");
        message["id"] = json!(self.sent);
        let request = self.request(Method::POST, &Session::default()).header("content-type", "application/json");
        let Some(answer) = self.send(request.body(Full::from(message.to_string()))?).await? else {
            self.tally.told(BROKEN.to_owned());
            return Ok(None);
        };
        let id = answer.headers().get("mcp-session-id").cloned();
        let status = answer.status();
        let Ok(body) = answer.into_body().collect().await else {
            self.tally.told(BROKEN.to_owned());
            self.sender = connect(self.address).await?;
            return Ok(None);
        };
        let text = String::from_utf8(body.to_bytes().into())?;
        let Some(id) = id.filter(|_| status.is_success()) else {
            self.told(&format!("{status} {text}"))?;
            return Ok(None);
        };
        let session = Session { id: Some(id), ..Session::default() };
        let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string();
        let request = self.request(Method::POST, &session).header("content-type", "application/json");
        let Some(answer) = self.send(request.body(Full::from(ready))?).await? else {
            self.tally.told(BROKEN.to_owned());
            return Ok(None);
        };
        let status = answer.status();
        let text = String::from_utf8(answer.into_body().collect().await?.to_bytes().into())?;
        match status {
            StatusCode::NOT_FOUND => {
                self.tally.told(OVER.to_owned());
                Ok(None)
            }
            status if status.is_success() => Ok(Some(session)),
            status => {
                self.told(&format!("{status} {text}"))?;
                Ok(None)
            }
        }
    }

    /// A result is of its own session, and the one after the last.
    fn check(&self, session: &mut Session, call: &str, said: &Value) -> anyhow::Result<()> {
        self.tally.calls.fetch_add(1, Relaxed);
        if self.site.stateless {
            // translated: its server has no sessions
            return Ok(());
        }
        let tag = said["tag"].as_str().context("no tag")?;
        let count = said["count"].as_u64().context("no count")?;
        match &session.tag {
            Some(own) if own != tag => bail!("{call} of session {own} was answered by session {tag}"),
            Some(_) => {}
            None => session.tag = Some(tag.to_owned()),
        }
        if session.count != u64::MAX && count != session.count + 1 {
            bail!("{call} is call {count} of its session and not {}", session.count + 1);
        }
        session.count = count;
        Ok(())
    }

    /// Reads the session's stream on a connection of its own until it is `enough`; answers whose events came.
    fn listen(
        &self,
        session: &Session,
        enough: CancellationToken,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<Vec<String>>> + use<>> {
        let (address, request) = (self.address, self.request(Method::GET, session).body(Full::default())?);
        let tally = self.tally.clone();
        Ok(async move {
            let mut sender = connect(address).await?;
            let answer = sender.send_request(request).await?;
            let (mut tags, mut text, mut body) = (Vec::new(), String::new(), answer.into_body());
            // it ends with its server, or with the client's interest
            while let Some(Some(Ok(frame))) = enough.run_until_cancelled(body.frame()).await {
                let Ok(data) = frame.into_data() else { continue };
                text.push_str(std::str::from_utf8(&data)?);
                while let Some(end) = text.find("\n\n") {
                    let event: String = text.drain(..end + 2).collect();
                    let data = event.lines().find_map(|line| line.strip_prefix("data:").map(str::trim));
                    if let Some(data) = data.filter(|data| !data.is_empty()) {
                        let message: Value = serde_json::from_str(data)?;
                        if let Some(tag) = message["params"]["data"]["tag"].as_str() {
                            tally.events.fetch_add(1, Relaxed);
                            tags.push(tag.to_owned());
                        }
                    }
                }
            }
            Ok(tags)
        })
    }

    fn heard(&self, tags: anyhow::Result<Vec<String>>, own: Option<&str>) -> anyhow::Result<()> {
        let tags = tags.context("on its stream")?;
        match tags.iter().find(|tag| own.is_some_and(|own| own != tag.as_str())) {
            Some(other) => bail!("an event of session {other} on the stream of {own:?}"),
            None => Ok(()),
        }
    }

    async fn without_session(&mut self) -> anyhow::Result<()> {
        self.tally.sessions.fetch_add(1, Relaxed);
        while !self.tally.stop.load(Relaxed) {
            let (call, mut params) = self.next_call();
            params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
            params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
            let headers = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/call"), ("mcp-name", "count")];
            let message = json!({"method": "tools/call", "params": params});
            match self.ask(&Session::default(), &headers, message).await? {
                Outcome::Gone => bail!("a session is over where there is none"),
                Outcome::Error(error) => self.told(&error)?,
                Outcome::Result(result) => {
                    Self::own(&call, &result)?;
                    self.tally.calls.fetch_add(1, Relaxed);
                }
            }
            self.think().await;
        }
        Ok(())
    }
}
