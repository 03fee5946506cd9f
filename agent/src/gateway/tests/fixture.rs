//! Servers, a front and a client for the tests.

mod http;

pub(super) use http::HttpServer;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use secrecy::SecretString;
use serde_json::{Value, json};
use sigil_config::agent::AgentConfig;
use sigil_core::model::{DeploymentId, Inject, Transport};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{Access, Principal};
use crate::gateway::Gateway;
use crate::gateway::mask::Masks;
use crate::gateway::settings::Terms;
use crate::gateway::table::{Entry, Live, Table, carrying};
use crate::upstream::local::{Local, build, spec};
use crate::upstream::nap::Nap;
use crate::upstream::spare::PREFIX;
use crate::upstream::sse::Parser;
use crate::upstream::{Endpoint, Wire};

pub(super) use super::scripts::{MODERN, SERVER};

/// Who may do everything, over the link.
pub(super) fn root() -> Principal {
    Principal::owner()
}

/// A stateless request, its parameters' other members in `rest`, with the headers that repeat it.
pub(super) fn stateless(id: &str, method: &str, rest: &str, meta: &str) -> (Vec<(String, String)>, String) {
    let comma = if rest.is_empty() { "" } else { "," };
    let meta = if meta.is_empty() { String::new() } else { format!(",{meta}") };
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{{rest}{comma}"_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{{}}{meta}}}}}}}"#
    );
    let mut headers = accept(None);
    headers.extend(owned(&[("mcp-protocol-version", "2026-07-28"), ("mcp-method", method)]));
    let params: Value = serde_json::from_str(&body).unwrap();
    if let Some(name) = params["params"]["name"].as_str() {
        headers.push(("mcp-name".to_owned(), name.to_owned()));
    }
    (headers, body)
}

pub(super) fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

pub(super) fn accept(session: Option<&str>) -> Vec<(String, String)> {
    let mut headers = owned(&[("content-type", "application/json"), ("accept", "application/json, text/event-stream")]);
    headers.extend(session.map(|s| ("mcp-session-id".to_owned(), s.to_owned())));
    headers
}

pub(super) fn initialize(version: &str) -> String {
    json!({"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":version,"capabilities":{},"clientInfo":{"name":"t","version":"1"}}}).to_string()
}

pub(super) fn ping(id: i64) -> String {
    json!({"jsonrpc":"2.0","id":id,"method":"ping"}).to_string()
}

pub(super) fn call(id: i64, tool: &str) -> String {
    json!({"jsonrpc":"2.0","id":id,"method":"tools/call","params":{"name":tool}}).to_string()
}

pub(super) async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

pub(super) async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) async fn until(from: &mut mpsc::Receiver<Bytes>, id: i64) -> Value {
    loop {
        let message: Value = serde_json::from_slice(&from.recv().await.expect("more messages")).unwrap();
        if message["id"] == id {
            return message;
        }
    }
}

// ---------------------------------------------------------------- replicas

pub(crate) fn endpoint(transport: Transport, port: u16, command: &[&str]) -> Arc<Endpoint> {
    build(spec(transport, port, command), mpsc::channel(1).0)
}

pub(super) fn stdio(script: &str) -> Arc<Endpoint> {
    stdio_with_stray(script).0
}

pub(super) fn stdio_with_stray(script: &str) -> (Arc<Endpoint>, mpsc::Receiver<Bytes>) {
    let (tx, rx) = mpsc::channel(16);
    (build(spec(Transport::Stdio, 0, &["python3", "-c", script]), tx), rx)
}

pub(super) fn limited(script: &str, sessions: u32) -> Arc<Endpoint> {
    let mut spec = spec(Transport::Stdio, 0, &["python3", "-c", script]);
    spec.sessions_max = Some(sessions);
    build(spec, mpsc::channel(1).0)
}

/// The same with callers' own configuration.
pub(super) fn configured(endpoint: &Endpoint, session: sigil_core::model::SessionConfig) -> Arc<Endpoint> {
    let mut spec = endpoint.spec.as_ref().clone();
    spec.session = Some(Box::new(session));
    build(spec, mpsc::channel(1).0)
}

/// The same with short time limits.
pub(super) fn impatient(endpoint: &Endpoint) -> Arc<Endpoint> {
    let mut spec = endpoint.spec.as_ref().clone();
    spec.request_timeout_ms = 1500;
    spec.start_timeout_ms = 1500;
    build(spec, mpsc::channel(1).0)
}

/// Processes that belong to somebody.
pub(super) fn replica_keys(endpoint: &Endpoint) -> Vec<String> {
    all_keys(endpoint).into_iter().filter(|key| !key.starts_with(PREFIX)).collect()
}

/// Processes that wait for a session.
pub(super) fn spare_keys(endpoint: &Endpoint) -> Vec<String> {
    all_keys(endpoint).into_iter().filter(|key| key.starts_with(PREFIX)).collect()
}

fn all_keys(endpoint: &Endpoint) -> Vec<String> {
    let Wire::Local(local) = &endpoint.wire else { return Vec::new() };
    local.keys()
}

/// One of its processes ends, and nobody has closed it.
pub(super) fn replica_end(endpoint: &Endpoint, key: &str) {
    let Wire::Local(local) = &endpoint.wire else { return };
    local.end(key);
}

/// The same replica as another agent finds it.
pub(super) fn successor(endpoint: &Endpoint) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        deployment: endpoint.deployment,
        release: endpoint.release,
        instance: endpoint.instance,
        spec: endpoint.spec.clone(),
        env: endpoint.env.clone(),
        quota: crate::upstream::quota::Quota::default(),
        spare: crate::upstream::spare::Spare::default(),
        wire: endpoint.wire.clone(),
        stray: endpoint.stray.clone(),
        pool: crate::upstream::http::Pool::default(),
        carried: None,
        tasks: TaskTracker::new(),
    })
}

/// As while its container is killed or its init connects again.
pub(super) fn replica_away(endpoint: &Endpoint, away: bool) {
    replica_local(endpoint).away.store(away, std::sync::atomic::Ordering::Relaxed);
}

/// What stands in for its container.
pub(super) fn replica_local(endpoint: &Endpoint) -> &Local {
    let Wire::Local(local) = &endpoint.wire else { panic!("no replica of this host") };
    local
}

pub(super) fn replica_kill_all(endpoint: &Endpoint) {
    let Wire::Local(local) = &endpoint.wire else { return };
    for key in local.keys() {
        local.close(&key).unwrap();
    }
}

// ---------------------------------------------------------------- the front and a client

pub(super) struct Front {
    pub(super) gateway: Gateway,
    publish: watch::Sender<Arc<Table>>,
    config: watch::Sender<Arc<AgentConfig>>,
    stop: CancellationToken,
    dir: Arc<tempfile::TempDir>,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    headers: hyper::HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
    }
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text))
    }
    pub(super) fn code(&self) -> String {
        self.json()["error"]["data"]["code"].as_str().unwrap_or_default().to_owned()
    }
    /// The last message, be it JSON or a stream.
    pub(super) fn last(&self) -> Value {
        if self.header("content-type") != "text/event-stream" {
            return self.json();
        }
        self.events().pop().expect("an event")
    }
    pub(super) fn events(&self) -> Vec<Value> {
        let mut events = Vec::new();
        Parser::default().push(self.text.as_bytes(), &mut events).unwrap();
        events.iter().filter(|e| !e.data.is_empty()).map(|e| serde_json::from_str(&e.data).unwrap()).collect()
    }
}

impl Front {
    pub(super) async fn new() -> Self {
        Self::with(Arc::new(tempfile::tempdir().unwrap())).await
    }

    async fn with(dir: Arc<tempfile::TempDir>) -> Self {
        let mut config = AgentConfig::default();
        config.gateway.listen = "127.0.0.1:0".into();
        config.gateway.max_body = 2 << 20;
        let (keep, config) = watch::channel(Arc::new(config));
        let (publish, table) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let (keys, here) = (Access::new(dir.path()), tokio::runtime::Handle::current());
        let hold = Duration::from_millis(400);
        let gateway = Gateway::start(config, table, keys, &here, stop.clone(), hold).await.unwrap();
        Self { gateway, publish, config: keep, stop, dir }
    }

    /// Stateless clients are told to fall back where a server knows only the handshake.
    pub(super) fn translate_nothing(&self) {
        self.configure(|config| config.gateway.translate = false);
    }

    /// Another agent on the same data directory.
    pub(super) async fn restart(&mut self) {
        self.stop.cancel();
        *self = Self::with(self.dir.clone()).await;
    }

    fn live(&self, endpoints: &[Arc<Endpoint>]) -> Vec<Live> {
        let registry = &self.gateway.shared.registry;
        endpoints
            .iter()
            .map(|e| Live {
                endpoint: e.clone(),
                stats: registry.stats_of(e.instance),
                common: registry.common_of(e.instance),
            })
            .collect()
    }

    pub(super) fn entry(&self, name: &str, ready: &[Arc<Endpoint>]) -> Entry {
        let id = self.id(name, ready);
        Entry {
            id,
            name: name.into(),
            team: "default".into(),
            tags: Vec::new(),
            ready: self.live(ready),
            draining: Vec::new(),
            expected: false,
            returning: Some(Vec::new()),
            message: String::new(),
            injected: Arc::default(),
            own: Arc::default(),
            personal: None,
            release: Some(ready.first().map_or(1, |e| e.release)),
            coming: None,
            access: sigil_core::policy::Access::Anonymous,
            rules: Arc::default(),
            watched: Arc::default(),
            teller: Arc::default(),
            masks: None,
            terms: Terms::of(ready.first().and_then(|e| e.spec.session.as_deref()), None),
            replayable: false,
            recorder: self.gateway.shared.registry.recorder_of(id, &Nap::default()),
        }
    }

    /// By name, so that a deployment stays the same while its replicas change; tests of one replica use its own.
    fn id(&self, name: &str, ready: &[Arc<Endpoint>]) -> DeploymentId {
        match ready {
            [only] if name == "echo" && self.publish.borrow().routes.is_empty() => only.deployment,
            _ => match self.publish.borrow().routes.get(name) {
                Some(entry) => entry.id,
                None => ulid::Ulid(name.bytes().fold(7, |sum, b| sum * 31 + u128::from(b))).into(),
            },
        }
    }

    pub(super) fn deployment(&self, name: &str) -> DeploymentId {
        self.publish.borrow().routes[name].id
    }

    pub(super) fn publish(&self, entries: Vec<Entry>) {
        self.publish.send_replace(Arc::new(Table::new(entries, true)));
    }

    pub(super) fn set(&self, routes: &[(&str, Vec<Arc<Endpoint>>)]) {
        self.publish(routes.iter().map(|(name, ready)| self.entry(name, ready)).collect());
    }

    pub(super) fn set_with(&self, name: &str, ready: Vec<Arc<Endpoint>>, injected: Vec<(Inject, SecretString)>) {
        let carrying = |endpoint: &Arc<Endpoint>| Arc::new(carrying(Endpoint::like(endpoint), &injected));
        let ready: Vec<_> =
            ready.iter().map(|e| if e.spec.transport == Transport::Sse { carrying(e) } else { e.clone() }).collect();
        let masks = Masks::of(&injected);
        let entry = Entry { injected: Arc::new(injected), masks, ..self.entry(name, &ready) };
        self.publish(vec![entry]);
    }

    /// The deployments that there are, one of them under other rules.
    pub(super) fn govern(&self, name: &str, access: sigil_core::policy::Access, policy: &str) {
        let routes = self.publish.borrow().routes.clone();
        let of = |old: &Arc<Entry>| {
            let ready: Vec<Arc<Endpoint>> = old.ready.iter().map(|live| live.endpoint.clone()).collect();
            let entry = self.entry(&old.name, &ready);
            if old.name != name {
                return Entry { access: old.access, rules: old.rules.clone(), ..entry };
            }
            let rules = sigil_core::policy::Rules::new(serde_json::from_str(policy).unwrap()).unwrap();
            Entry { access, rules: Arc::new(rules), ..entry }
        };
        self.publish(routes.values().map(of).collect());
    }

    /// The same for one of which nothing is ready yet.
    pub(super) fn govern_expected(&self, name: &str, policy: &str) {
        let rules = sigil_core::policy::Rules::new(serde_json::from_str(policy).unwrap()).unwrap();
        let entry = Entry { expected: true, rules: Arc::new(rules), ..self.entry(name, &[]) };
        self.publish(vec![entry]);
    }

    pub(super) fn configure(&self, change: impl FnOnce(&mut AgentConfig)) {
        self.config.send_modify(|config| change(Arc::make_mut(config)));
    }

    pub(super) fn data_dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub(super) fn set_state(&self, name: &str, expected: bool, message: &str) {
        let entry = Entry { expected, message: message.into(), ..self.entry(name, &[]) };
        self.publish(vec![entry]);
    }

    pub(super) fn set_draining(&self, name: &str, draining: Vec<Arc<Endpoint>>, ready: Vec<Arc<Endpoint>>) {
        let entry = Entry { draining: self.live(&draining), ..self.entry(name, &ready) };
        self.publish(vec![entry]);
    }

    async fn send(&self, method: &str, path: &str, headers: &[(String, String)], body: &str) -> Response<Incoming> {
        let stream = TcpStream::connect(self.gateway.address()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(n, _)| n == "host") {
            request = request.header("host", self.gateway.address().to_string());
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::from(body.to_owned())).unwrap();
        let sent = tokio::time::timeout(Duration::from_secs(15), sender.send_request(request));
        let response = sent.await.expect("an answer within 15 s").unwrap();
        // the connection lives as long as the answer is read
        tokio::spawn(async move {
            let _sender = sender;
            std::future::pending::<()>().await;
        });
        response
    }

    pub(super) async fn raw(&self, method: &str, path: &str, headers: &[(String, String)], body: &str) -> Answer {
        let response = self.send(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(Duration::from_secs(15), body.collect());
        let body = body.await.expect("the end within 15 s").unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// The answer's headers and its body as it was sent.
    pub(super) async fn bytes(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &str,
    ) -> (hyper::HeaderMap, Vec<u8>) {
        let (parts, body) = self.send(method, path, headers, body).await.into_parts();
        let body = tokio::time::timeout(Duration::from_secs(15), body.collect());
        (parts.headers, body.await.expect("the end within 15 s").unwrap().to_bytes().to_vec())
    }

    pub(super) async fn post(&self, name: &str, session: Option<&str>, body: impl Into<String>) -> Answer {
        self.raw("POST", &format!("/mcp/{name}"), &accept(session), &body.into()).await
    }

    /// A session that is through its handshake.
    pub(super) async fn begin(&self, name: &str) -> String {
        let answer = self.post(name, None, &initialize("2025-11-25")).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let session = answer.header("mcp-session-id");
        assert!(!session.is_empty());
        let done = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(self.post(name, Some(&session), done).await.status, 202);
        session
    }

    pub(super) async fn open(&self, method: &str, path: &str, headers: &[(String, String)], body: &str) -> Stream {
        let response = self.send(method, path, headers, body).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Stream { body: response.into_body(), text: String::new(), last_id: String::new(), primed: false }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(super) struct Stream {
    body: Incoming,
    text: String,
    pub(super) last_id: String,
    pub(super) primed: bool,
}

impl Stream {
    async fn more(&mut self) -> bool {
        let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame());
        match frame.await.expect("more within 10 s") {
            Some(Ok(frame)) => {
                self.text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
                true
            }
            _ => false,
        }
    }

    /// The next event that holds a message.
    pub(super) async fn event(&mut self) -> Value {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| event.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned());
                if let Some(id) = field("id:") {
                    self.last_id = id;
                }
                match field("data:") {
                    Some(data) if data.is_empty() => self.primed = true,
                    Some(data) => return serde_json::from_str(&data).unwrap(),
                    None => {}
                }
            }
            assert!(self.more().await, "the stream ended; left: {:?}", self.text);
        }
    }

    pub(super) async fn ended(&mut self) -> bool {
        while self.more().await {}
        self.text.is_empty()
    }
}
