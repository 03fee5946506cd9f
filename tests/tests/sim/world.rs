//! The simulated host, the agents that run on it, and clients of both of an agent's doors.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use sigil_agent::app::App;
use sigil_agent::engine::fake::Fake;
use sigil_agent::engine::{self, ContainerState, Image, label};
use sigil_agent::store::StoreError;
use sigil_config::reload;
use sigil_core::model::AgentId;
use sigil_protocol::v1;
use sigil_protocol::v1::start_request::What;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::container::{self, Director, Guard};
use crate::server::Act;

/// Longer than anything takes that works.
pub const LONG: Duration = Duration::from_secs(20);

/// A host: an engine, its containers, a data directory. Agents come and go on it.
pub struct World {
    pub dir: tempfile::TempDir,
    pub fake: Fake,
    pub id: AgentId,
    acts: Arc<Mutex<BTreeMap<String, Act>>>,
}

impl World {
    /// Containers run on the runtime that this is called on, whatever becomes of agents.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("sigil-sim").tempdir().unwrap();
        let id = AgentId(ulid::Ulid::generate());
        std::fs::write(dir.path().join("agent-id"), format!("{id}\n")).unwrap();
        let fake = Fake::new(id);
        let image = |tag: &str| Image {
            tags: vec![tag.to_owned()],
            entrypoint: vec!["/server".into()],
            user: "10001:10001".into(),
            architecture: "amd64".into(),
            ..Image::default()
        };
        fake.add_image(image("sim/server:1"));
        fake.add_image(image("sim/base:1"));
        let acts: Arc<Mutex<BTreeMap<String, Act>>> = Arc::default();
        let told = acts.clone();
        let director: Director =
            Arc::new(move |name, act| told.lock().unwrap().get(name).cloned().unwrap_or_else(|| Act::parse(act)));
        let (engine, host) = (fake.clone(), tokio::runtime::Handle::current());
        fake.run_with(move |id, spec| {
            let label = |key: &str| spec.labels.get(key).cloned().unwrap_or_default();
            let made = container::Container {
                id: id.to_owned(),
                fake: engine.clone(),
                socket: PathBuf::from(&spec.mounts[0].source).join("agent.sock"),
                deployment: label(label::DEPLOYMENT),
                instance: label(label::INSTANCE),
                director: director.clone(),
            };
            // the process that connects is this one
            (std::process::id(), Box::new(Guard(host.spawn(container::run(made)).abort_handle())))
        });
        Self { dir, fake, id, acts }
    }

    /// Servers of this deployment behave so from their next start on, whatever their `ACT` says.
    pub fn act(&self, deployment: &str, act: Act) {
        self.acts.lock().unwrap().insert(deployment.to_owned(), act);
    }

    /// This agent's containers, by id.
    pub fn containers(&self) -> Vec<engine::Container> {
        let own = self.id.to_string();
        self.fake.all().into_iter().filter(|c| c.labels.get(label::AGENT) == Some(&own)).collect()
    }

    /// Running containers of one deployment: id, release, start time.
    pub fn running(&self, deployment: &str) -> Vec<(String, String, jiff::Timestamp)> {
        let of =
            self.containers().into_iter().filter(|c| c.labels.get(label::DEPLOYMENT).is_some_and(|d| d == deployment));
        of.filter_map(|c| match c.state {
            ContainerState::Running { started_at, .. } => Some((c.id, c.labels[label::RELEASE].clone(), started_at)),
            _ => None,
        })
        .collect()
    }

    /// Instances that the agent keeps a socket directory for.
    pub fn sockets(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.dir.path().join("run")) else { return Vec::new() };
        let mut names: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The engine restarts without keeping containers, or the host does: all of them end at once.
    pub fn power_cut(&self) {
        for container in self.containers() {
            self.fake.crash(&container.id, 137, false);
        }
    }

    /// A new agent, in a runtime of its own. Waits for the data directory when a former one has just gone.
    pub async fn agent(&self) -> Agent {
        self.agent_with(&[]).await
    }

    /// The same with environment overrides.
    pub async fn agent_with(&self, env: &[(&str, &str)]) -> Agent {
        if std::env::var_os("SIGIL_SIM_LOG").is_some() {
            let filter = tracing_subscriber::EnvFilter::from_env("SIGIL_SIM_LOG");
            // the second agent of a test finds it set
            let _set = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut vars = vec![
            ("SIGIL_GATEWAY_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
            ("SIGIL_LIMITS_MIN_FREE_DISK".to_owned(), "1000000".to_owned()),
        ];
        vars.extend(env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let loaded = sigil_config::agent::load(None, vars.clone(), &[]).unwrap();
        let stop = CancellationToken::new();
        let deadline = Instant::now() + LONG;
        let app = loop {
            let (dir, fake, loaded) = (self.dir.path().to_owned(), self.fake.clone(), loaded.clone());
            let (vars, stop) = (vars.clone(), stop.clone());
            let started = runtime.spawn(async move {
                let reload = reload::watch(&loaded, vars, Vec::new(), stop);
                App::start_on(&dir, &reload, Arc::new(fake), "fake".into()).await
            });
            match started.await.unwrap() {
                Ok(app) => break app,
                Err(error) if matches!(error.downcast_ref(), Some(StoreError::Locked(_))) => {
                    assert!(Instant::now() < deadline, "the former agent keeps the data directory");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err(error) => panic!("the agent does not start: {error:#}"),
            }
        };
        let path = self.dir.path().join("agent.sock");
        let channel = Endpoint::from_static("http://agent").connect_with_connector_lazy(tower::service_fn(move |_| {
            let path = path.clone();
            async move {
                let socket = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(socket))
            }
        }));
        Agent { gateway: app.gateway(), channel, app: Some(app), runtime: Some(runtime) }
    }
}

/// A running agent.
pub struct Agent {
    pub gateway: SocketAddr,
    pub channel: Channel,
    pub app: Option<App>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A request to serve the simulated server under a name.
pub fn deploy(name: &str, env: &[(&str, &str)]) -> v1::DeployRequest {
    v1::DeployRequest {
        name: name.into(),
        source: Some(v1::SourceRef { text: "image:sim/server:1".into(), upload_id: String::new() }),
        transport: "http".into(),
        port: 8080,
        access: "anonymous".into(),
        env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        manifest: "health: { startTimeout: 2 }\n".into(),
        manifest_name: "mcp.yaml".into(),
        ..v1::DeployRequest::default()
    }
}

pub fn named(name: &str) -> v1::NameRequest {
    v1::NameRequest { name: name.into() }
}

pub fn request(request_id: &str, what: What) -> v1::StartRequest {
    v1::StartRequest { request_id: request_id.into(), what: Some(what) }
}

impl Agent {
    /// Ends in order, as on SIGTERM.
    pub async fn stop(mut self) {
        let (app, runtime) = (self.app.take().unwrap(), self.runtime.take().unwrap());
        runtime.spawn(app.stop(LONG)).await.unwrap();
        runtime.shutdown_background();
    }

    /// Ends at once, wherever it is: every task is dropped at its next await. Afterwards nothing of it is left.
    pub async fn crash(mut self) {
        let (app, runtime) = (self.app.take(), self.runtime.take().unwrap());
        let ended = tokio::task::spawn_blocking(move || {
            runtime.shutdown_timeout(LONG);
            drop(app);
        });
        ended.await.unwrap();
    }

    pub fn operations(&self) -> v1::operations_client::OperationsClient<Channel> {
        v1::operations_client::OperationsClient::new(self.channel.clone())
    }

    pub fn deployments(&self) -> v1::deployments_client::DeploymentsClient<Channel> {
        v1::deployments_client::DeploymentsClient::new(self.channel.clone())
    }

    /// Starts an operation and waits for its end.
    pub async fn run(&self, what: What) -> v1::Operation {
        let id = ulid::Ulid::generate().to_string();
        let started = self.operations().start(request(&id, what)).await.unwrap().into_inner();
        self.ended(&started.id).await.unwrap()
    }

    /// The same, which must succeed.
    pub async fn fine(&self, what: What) -> v1::Operation {
        let done = self.run(what).await;
        assert_eq!(done.state, "succeeded", "{done:?}");
        done
    }

    /// Waits for an operation's end.
    pub async fn ended(&self, id: &str) -> Result<v1::Operation, Status> {
        let follow = v1::FollowRequest { id: id.into(), after: 0 };
        let mut events = self.operations().follow(follow).await?.into_inner();
        let end = async {
            while let Some(event) = events.message().await? {
                if let Some(v1::operation_event::What::Done(done)) = event.what {
                    return Ok(done);
                }
            }
            Err(Status::unavailable("the events ended early"))
        };
        match tokio::time::timeout(LONG, end).await {
            Ok(done) => done,
            Err(_) => {
                let now = self.operations().get(v1::OperationId { id: id.into() }).await?.into_inner();
                let detail = self.detail(&now.deployment).await;
                panic!("not within {LONG:?}: {now:?}\n{detail:#?}")
            }
        }
    }

    pub async fn detail(&self, name: &str) -> Option<v1::DeploymentDetail> {
        match self.deployments().get(named(name)).await {
            Ok(detail) => Some(detail.into_inner()),
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => panic!("{status}"),
        }
    }

    /// Waits until a deployment is as wanted.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&v1::DeploymentDetail) -> bool,
    ) -> v1::DeploymentDetail {
        let deadline = Instant::now() + limit;
        loop {
            let now = self.detail(name).await;
            if let Some(now) = &now
                && wanted(now)
            {
                return now.clone();
            }
            assert!(Instant::now() < deadline, "'{name}' is not {what} within {limit:?}: {now:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until nothing is left to do, with this state.
    pub async fn settled(&self, name: &str, state: &str) -> v1::DeploymentDetail {
        self.until(name, &format!("settled and {state}"), LONG, |d| is_settled(d) && shown(d).state == state).await
    }

    /// All lines that the server of a deployment printed.
    pub async fn lines(&self, name: &str) -> Vec<String> {
        let ask = v1::TailRequest {
            deployments: vec![name.into()],
            streams: vec!["stdout".into(), "stderr".into()],
            ..v1::TailRequest::default()
        };
        let mut logs = v1::logs_client::LogsClient::new(self.channel.clone());
        let mut tail = logs.tail(ask).await.unwrap().into_inner();
        let mut lines = Vec::new();
        while let Some(batch) = tail.message().await.unwrap() {
            lines.extend(batch.lines.iter().map(|l| String::from_utf8_lossy(&l.line).into_owned()));
        }
        lines
    }
}

pub fn shown(detail: &v1::DeploymentDetail) -> &v1::Deployment {
    detail.deployment.as_ref().unwrap()
}

pub fn is_settled(detail: &v1::DeploymentDetail) -> bool {
    detail.conditions.iter().any(|c| c.kind == "Settled" && c.ok)
}

/// Waits until `ready`.
pub async fn until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !ready() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An MCP client with one session on one deployment.
#[derive(Debug)]
pub struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    pub url: String,
    session: Option<String>,
    calls: u64,
}

impl Caller {
    /// Initialises a session through the gateway. As clients do, it begins anew when the replica was retired between the
    /// two steps of the handshake.
    pub async fn open(gateway: SocketAddr, name: &str) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut caller = Self { client, url: format!("http://{gateway}/mcp/{name}"), session: None, calls: 0 };
        let mut begun = caller.begin().await;
        for _ in 0..3 {
            if !begun.as_ref().is_err_and(|e| e.contains("GATEWAY_SESSION_EXPIRED")) {
                break;
            }
            caller.session = None;
            begun = caller.begin().await;
        }
        begun.unwrap();
        caller
    }

    /// A session, if one can be had.
    pub async fn begun(gateway: SocketAddr, name: &str) -> Result<Self, String> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut caller = Self { client, url: format!("http://{gateway}/mcp/{name}"), session: None, calls: 0 };
        caller.begin().await.map(|()| caller)
    }

    /// Ends the session.
    pub async fn close(&mut self) {
        let Some(session) = self.session.take() else { return };
        let request = hyper::Request::delete(&self.url).header("mcp-session-id", session);
        let request = request.body(Full::default()).unwrap();
        let answer = tokio::time::timeout(LONG, self.client.request(request)).await.unwrap().unwrap();
        assert!(answer.status().is_success() || answer.status() == 405, "{answer:?}");
    }

    async fn begin(&mut self) -> Result<(), String> {
        let params = json!({
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "sim", "version": "1" },
        });
        self.ask("initialize", params).await?;
        self.post(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await.map(drop)
    }

    /// Goes on with the same session at another address.
    pub fn moved(&mut self, gateway: SocketAddr) {
        let (_, path) = self.url.split_once("/mcp/").unwrap();
        self.url = format!("http://{gateway}/mcp/{path}");
    }

    /// The same as a client does it: a session that is over (404) is begun anew, and the call repeated.
    pub async fn call_as_clients_do(&mut self) -> Result<(String, String, u32), String> {
        match self.call().await {
            Err(error) if error.starts_with("404") => {
                self.session = None;
                self.begin().await?;
                self.call().await
            }
            other => other,
        }
    }

    /// Calls the tool; its text is `GREETING INSTANCE COUNT`.
    pub async fn call(&mut self) -> Result<(String, String, u32), String> {
        let result = self.ask("tools/call", json!({ "name": "echo", "arguments": {} })).await?;
        let text = result["content"][0]["text"].as_str().ok_or_else(|| format!("no text: {result}"))?;
        let mut words = text.split(' ').map(str::to_owned);
        let mut next = || words.next().unwrap_or_default();
        let (greeting, instance, count) = (next(), next(), next());
        Ok((greeting, instance, count.parse().map_err(|_| text.to_owned())?))
    }

    async fn ask(&mut self, method: &str, params: Value) -> Result<Value, String> {
        self.calls += 1;
        let id = self.calls;
        let body = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let text = self.post(&body).await?;
        let messages = text.lines().filter_map(|l| serde_json::from_str::<Value>(l.trim_start_matches("data:")).ok());
        let answer = messages.into_iter().find(|m| m["id"] == id).ok_or_else(|| format!("no answer in: {text}"))?;
        match answer.get("result") {
            Some(result) => Ok(result.clone()),
            None => Err(answer["error"].to_string()),
        }
    }

    async fn post(&mut self, body: &Value) -> Result<String, String> {
        let mut request = hyper::Request::post(&self.url)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
        }
        let request = request.body(Full::new(Bytes::from(body.to_string()))).unwrap();
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|e| format!("{e:?}"))?;
            let status = answer.status();
            let session = answer.headers().get("mcp-session-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
            let body = answer.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
            let text = String::from_utf8_lossy(&body).into_owned();
            if status.is_success() { Ok((session, text)) } else { Err(format!("{status}: {text}")) }
        };
        let (session, text) = tokio::time::timeout(LONG, exchange).await.map_err(|_| "no answer in time")??;
        self.session = session.or(self.session.take());
        Ok(text)
    }
}
