//! An agent made of the generated services: what it says is set by a test, what it is asked is kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use serde_json::{Value, json};
use sigil_protocol::v1;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::server::Router;
use tonic::{Request, Response, Status, Streaming};

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the agent says, and what it was asked.
#[derive(Default)]
pub struct State {
    pub deployments: Vec<v1::Deployment>,
    pub operations: HashMap<String, Vec<v1::OperationEvent>>,
    /// Events of operations that are started; the last one is `done` unless the operation is to hang.
    pub script: Vec<v1::OperationEvent>,
    pub started: Vec<v1::StartRequest>,
    pub followed: Vec<v1::FollowRequest>,
    pub tails: Vec<v1::TailRequest>,
    /// Every line of the log; `follow` never ends.
    pub lines: Vec<v1::LogLine>,
    pub gaps: Vec<v1::LogGap>,
    pub uploads: Vec<(String, Vec<u8>)>,
    pub secrets: Vec<v1::SetSecretRequest>,
    /// Lines of the audit log, and what was asked of it.
    pub audit: Vec<Vec<u8>>,
    pub audit_asked: Vec<v1::AuditQuery>,
    /// Messages of MCP clients.
    pub frames: Vec<Value>,
    /// The configuration of the last MCP session.
    pub session_config: HashMap<String, String>,
    /// Results of tools/call by tool name, byte for byte; a missing one never answers.
    pub results: HashMap<String, String>,
    /// What is used.
    pub top: v1::TopReply,
    /// What was used, and what was asked of that.
    pub packages: Vec<v1::PackageReply>,
    pub searched: Vec<v1::SearchRequest>,
    pub published: Vec<v1::PublishRequest>,
    pub imported: Vec<v1::ImportPackagesRequest>,
    pub mirrors: Vec<v1::Mirror>,
    pub pushed: Vec<v1::PushRequest>,
    pub synced: Vec<v1::SyncMirrorRequest>,
    pub usage: v1::UsageReply,
    pub usage_asked: Vec<v1::UsageRequest>,
    pub limits: Vec<v1::LimitInfo>,
    /// How deployments do, and what was asked of that.
    pub health: v1::HealthReply,
    pub health_asked: Vec<v1::HealthRequest>,
    /// How deployments are scaled, and how that was to be changed.
    pub scaling: v1::ScalingReply,
    pub scaling_set: Vec<v1::SetScalingRequest>,
    pub explained: v1::ScalingExplainReply,
    pub decisions: Vec<String>,
    pub trace: v1::ScalingTraceReply,
    /// How often it was asked what it is.
    pub asked_info: u32,
    pub alerts: v1::AlertsReply,
    pub deliveries: Vec<v1::AlertDelivery>,
    /// Required `authorization`, when set.
    pub token: Option<String>,
    /// Who may call every deployment; empty: `key`.
    pub access: String,
    /// Keys, and those that were revoked.
    pub keys: Vec<v1::KeyInfo>,
    pub revoked: Vec<String>,
}

#[derive(Clone)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    /// How much of a followed stream (log lines, events) may be sent so far.
    pub limit: watch::Sender<usize>,
}

/// An `ErrorInfo` in a status, as the agent sends it.
pub fn refusal(code: tonic::Code, info: v1::ErrorInfo) -> Status {
    let message = info.message.clone();
    Status::with_details(code, message, prost::Message::encode_to_vec(&info).into())
}

fn not_found(name: &str) -> Status {
    refusal(
        tonic::Code::NotFound,
        v1::ErrorInfo {
            code: "NOT_FOUND".into(),
            message: format!("there is no deployment '{name}'"),
            hint: "'sigil ls' lists what there is".into(),
            details: String::new(),
            exit_code: 3,
        },
    )
}

pub fn deployment(name: &str, state: &str) -> v1::Deployment {
    v1::Deployment {
        id: format!("01ID{}", name.to_uppercase()),
        name: name.into(),
        state: state.into(),
        ready: u32::from(state == "ready"),
        desired: 1,
        release: 3,
        desired_release: 3,
        source: "pypi:mcp-server-time==2026.1.1".into(),
        transport: "stdio".into(),
        endpoint: format!("http://127.0.0.1:7450/mcp/{name}"),
        health: "healthy".into(),
        rpm: 12.0,
        p99_ms: 48.0,
        cpu_percent: 3.0,
        memory_bytes: 64 << 20,
        created_at: 1_700_000_000_000_000,
        changed_at: 1_700_000_000_000_000,
        tier: "router".into(),
        ..Default::default()
    }
}

pub fn step(seq: u64, name: &str, state: &str, elapsed_ms: u64) -> v1::OperationEvent {
    let step = v1::Step { name: name.into(), state: state.into(), message: String::new(), elapsed_ms };
    v1::OperationEvent { seq, time: 1_700_000_000_000_000, what: Some(v1::operation_event::What::Step(step)) }
}

pub fn output(seq: u64, line: &str) -> v1::OperationEvent {
    let output = v1::Output { stream: "build".into(), line: line.into() };
    v1::OperationEvent { seq, time: 1_700_000_000_000_000, what: Some(v1::operation_event::What::Output(output)) }
}

pub fn done(seq: u64, result: &str, error: Option<v1::ErrorInfo>) -> v1::OperationEvent {
    let operation = v1::Operation {
        id: "01OP".into(),
        kind: "deploy".into(),
        deployment: "time".into(),
        state: if error.is_some() { "failed" } else { "succeeded" }.into(),
        release: 1,
        created_at: 1_700_000_000_000_000,
        ended_at: 1_700_000_004_000_000,
        created_by: "ada".into(),
        summary: "release 1 serves".into(),
        result: result.into(),
        error,
        ..Default::default()
    };
    v1::OperationEvent { seq, time: 1_700_000_004_000_000, what: Some(v1::operation_event::What::Done(operation)) }
}

pub fn line(seq: u64, deployment: &str, text: &[u8]) -> v1::LogLine {
    v1::LogLine {
        time: 1_700_000_000_000_000 + i64::try_from(seq).unwrap() * 1000,
        deployment: deployment.into(),
        instance: "01INST".into(),
        stream: "stderr".into(),
        seq,
        line: text.to_vec(),
        cut: false,
        release: 1,
    }
}

impl Fake {
    pub fn new() -> Self {
        Self { state: Arc::default(), limit: watch::Sender::new(usize::MAX) }
    }

    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    pub fn router(&self) -> Router {
        tonic::transport::Server::builder()
            .add_service(v1::agent_server::AgentServer::new(self.clone()))
            .add_service(v1::sources_server::SourcesServer::new(self.clone()))
            .add_service(v1::operations_server::OperationsServer::new(self.clone()))
            .add_service(v1::deployments_server::DeploymentsServer::new(self.clone()))
            .add_service(v1::logs_server::LogsServer::new(self.clone()))
            .add_service(v1::mcp_server::McpServer::new(self.clone()))
            .add_service(v1::secrets_server::SecretsServer::new(self.clone()))
            .add_service(v1::audit_server::AuditServer::new(self.clone()))
            .add_service(v1::usage_server::UsageServer::new(self.clone()))
            .add_service(v1::registry_server::RegistryServer::new(self.clone()))
            .add_service(v1::metrics_server::MetricsServer::new(self.clone()))
            .add_service(v1::health_server::HealthServer::new(self.clone()))
            .add_service(v1::scaling_server::ScalingServer::new(self.clone()))
            .add_service(v1::alerts_server::AlertsServer::new(self.clone()))
            .add_service(v1::keys_server::KeysServer::new(self.clone()))
    }

    /// Listens on a unix socket until the runtime ends.
    pub fn listen(&self, path: &Path) {
        let incoming = UnixListenerStream::new(UnixListener::bind(path).unwrap());
        tokio::spawn(self.router().serve_with_incoming(incoming));
    }

    fn package(&self, name: &str) -> Result<Response<v1::PackageReply>, Status> {
        let found =
            self.with(|s| s.packages.iter().find(|p| p.package.as_ref().is_some_and(|p| p.name == name)).cloned());
        found.map(Response::new).ok_or_else(|| {
            let info = v1::ErrorInfo {
                code: "NOT_FOUND".into(),
                message: format!("no package '{name}'"),
                hint: "`sigil search` finds packages".into(),
                details: String::new(),
                exit_code: 3,
            };
            refusal(tonic::Code::NotFound, info)
        })
    }

    fn allowed<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let wanted = self.with(|s| s.token.clone());
        let given = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        match wanted {
            Some(token) if given != Some(&format!("Bearer {token}")) => {
                Err(Status::unauthenticated("the key is not known"))
            }
            _ => Ok(()),
        }
    }

    fn find(&self, name: &str) -> Result<v1::Deployment, Status> {
        self.with(|s| s.deployments.iter().find(|d| d.name == name).cloned()).ok_or_else(|| not_found(name))
    }
}

/// A byte proxy whose connections can be cut: what a bad network does.
pub struct Proxy {
    pub path: PathBuf,
    cut: watch::Sender<u32>,
}

impl Proxy {
    pub fn new(path: PathBuf, behind: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        let cut = watch::Sender::new(0);
        let receiver = cut.subscribe();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (behind, mut cut) = (behind.clone(), receiver.clone());
                tokio::spawn(async move {
                    cut.mark_unchanged();
                    let mut far = UnixStream::connect(behind).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { path, cut }
    }

    pub fn cut(&self) {
        self.cut.send_modify(|n| *n += 1);
    }
}

#[tonic::async_trait]
impl v1::agent_server::Agent for Fake {
    async fn info(&self, request: Request<v1::InfoRequest>) -> Result<Response<v1::InfoReply>, Status> {
        self.allowed(&request)?;
        self.with(|s| s.asked_info += 1);
        Ok(Response::new(v1::InfoReply {
            agent_id: "01AGENT".into(),
            version: "0.1.0".into(),
            hostname: "host".into(),
            who: "ada".into(),
            role: "admin".into(),
            gateway: "http://127.0.0.1:7450".into(),
            ..Default::default()
        }))
    }
}

#[tonic::async_trait]
impl v1::metrics_server::Metrics for Fake {
    async fn top(&self, request: Request<v1::TopRequest>) -> Result<Response<v1::TopReply>, Status> {
        self.allowed(&request)?;
        Ok(Response::new(self.with(|s| s.top.clone())))
    }
    async fn series(&self, _: Request<v1::SeriesRequest>) -> Result<Response<v1::SeriesReply>, Status> {
        Err(Status::unimplemented("not played"))
    }
}

#[tonic::async_trait]
impl v1::health_server::Health for Fake {
    async fn get(&self, request: Request<v1::HealthRequest>) -> Result<Response<v1::HealthReply>, Status> {
        let asked = request.into_inner();
        self.find(&asked.name)?;
        Ok(Response::new(self.with(|s| {
            s.health_asked.push(asked);
            s.health.clone()
        })))
    }
}

#[tonic::async_trait]
impl v1::scaling_server::Scaling for Fake {
    async fn get(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::ScalingReply>, Status> {
        self.find(&request.get_ref().name)?;
        Ok(Response::new(self.with(|s| s.scaling.clone())))
    }
    async fn set(&self, request: Request<v1::SetScalingRequest>) -> Result<Response<v1::ScalingReply>, Status> {
        let asked = request.into_inner();
        self.find(&asked.name)?;
        Ok(Response::new(self.with(|s| {
            s.scaling_set.push(asked);
            s.scaling.clone()
        })))
    }
    async fn history(
        &self,
        request: Request<v1::ScalingHistoryRequest>,
    ) -> Result<Response<v1::ScalingHistoryReply>, Status> {
        let name = self.find(&request.get_ref().name)?.name;
        let limit = request.get_ref().limit as usize;
        let decisions = self.with(|s| s.decisions.iter().take(limit).cloned().collect());
        Ok(Response::new(v1::ScalingHistoryReply { name, decisions }))
    }
    async fn explain(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::ScalingExplainReply>, Status> {
        self.find(&request.get_ref().name)?;
        Ok(Response::new(self.with(|s| s.explained.clone())))
    }
    async fn trace(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::ScalingTraceReply>, Status> {
        self.find(&request.get_ref().name)?;
        Ok(Response::new(self.with(|s| s.trace.clone())))
    }
}

#[tonic::async_trait]
impl v1::alerts_server::Alerts for Fake {
    async fn list(&self, request: Request<v1::AlertsRequest>) -> Result<Response<v1::AlertsReply>, Status> {
        self.allowed(&request)?;
        Ok(Response::new(self.with(|s| s.alerts.clone())))
    }
    async fn test(&self, request: Request<v1::TestAlertRequest>) -> Result<Response<v1::TestAlertReply>, Status> {
        self.allowed(&request)?;
        Ok(Response::new(v1::TestAlertReply { deliveries: self.with(|s| s.deliveries.clone()) }))
    }
}

#[tonic::async_trait]
impl v1::registry_server::Registry for Fake {
    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<v1::SearchReply>, Status> {
        self.allowed(&request)?;
        let asked = request.into_inner();
        Ok(Response::new(self.with(|s| {
            let packages: Vec<_> = s.packages.iter().filter_map(|p| p.package.clone()).collect();
            s.searched.push(asked);
            v1::SearchReply { total: packages.len() as u64 + 40, packages }
        })))
    }
    async fn get(&self, request: Request<v1::GetPackageRequest>) -> Result<Response<v1::PackageReply>, Status> {
        self.allowed(&request)?;
        self.package(&request.get_ref().name)
    }
    async fn publish(&self, request: Request<v1::PublishRequest>) -> Result<Response<v1::PublishReply>, Status> {
        let asked = request.into_inner();
        let document: serde_json::Value = serde_json::from_str(&asked.document).unwrap();
        let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
        let version = v1::PackageVersion {
            name: text("name"),
            version: text("version"),
            latest: true,
            status: "active".into(),
            document: asked.document.clone(),
            ..Default::default()
        };
        self.with(|s| s.published.push(asked));
        Ok(Response::new(v1::PublishReply { version: Some(version), again: false }))
    }
    async fn import(
        &self,
        request: Request<v1::ImportPackagesRequest>,
    ) -> Result<Response<v1::ImportPackagesReply>, Status> {
        let asked = request.into_inner();
        let new = asked.items.len() as u64;
        self.with(|s| s.imported.push(asked));
        let refused = vec!["a/b: it has no version that could be kept".to_owned()];
        Ok(Response::new(v1::ImportPackagesReply { new, refusals: 1, refused, ..Default::default() }))
    }
    async fn push(&self, request: Request<v1::PushRequest>) -> Result<Response<v1::PushReply>, Status> {
        let asked = request.into_inner();
        let repository =
            asked.reference.rsplit_once(':').map_or(asked.reference.as_str(), |(repository, _)| repository);
        let reference = format!("{repository}@sha256:{}", "0".repeat(64));
        self.with(|s| s.pushed.push(asked));
        Ok(Response::new(v1::PushReply { reference }))
    }
    async fn mirrors(&self, request: Request<v1::MirrorsRequest>) -> Result<Response<v1::MirrorsReply>, Status> {
        let name = request.into_inner().name;
        let mirrors = self.with(|s| {
            // what was being read is read by the next look
            let now = s.mirrors.clone();
            for mirror in s.mirrors.iter_mut().filter(|m| m.busy) {
                (mirror.busy, mirror.passes) = (false, mirror.passes + 1);
            }
            now
        });
        let mirrors = mirrors.into_iter().filter(|m| name.is_empty() || m.name == name).collect();
        Ok(Response::new(v1::MirrorsReply { mirrors }))
    }
    async fn sync_mirror(&self, request: Request<v1::SyncMirrorRequest>) -> Result<Response<v1::MirrorsReply>, Status> {
        let asked = request.into_inner();
        let mirrors = self.with(|s| {
            s.mirrors.iter_mut().filter(|m| m.name == asked.name).for_each(|m| m.busy = m.trouble.is_empty());
            s.mirrors.iter().filter(|m| m.name == asked.name).cloned().collect()
        });
        self.with(|s| s.synced.push(asked));
        Ok(Response::new(v1::MirrorsReply { mirrors }))
    }
    async fn set_status(
        &self,
        request: Request<v1::PackageStatusRequest>,
    ) -> Result<Response<v1::PackageReply>, Status> {
        let asked = request.into_inner();
        self.with(|s| {
            for reply in s.packages.iter_mut().filter(|p| p.package.as_ref().is_some_and(|p| p.name == asked.name)) {
                for version in reply.versions.iter_mut().chain(&mut reply.version) {
                    if asked.version.is_empty() || asked.version == version.version {
                        version.status.clone_from(&asked.status);
                        version.message.clone_from(&asked.message);
                    }
                }
            }
        });
        self.package(&asked.name)
    }
}

#[tonic::async_trait]
impl v1::usage_server::Usage for Fake {
    async fn report(&self, request: Request<v1::UsageRequest>) -> Result<Response<v1::UsageReply>, Status> {
        self.allowed(&request)?;
        let asked = request.into_inner();
        if !asked.deployment.is_empty() {
            self.find(&asked.deployment)?;
        }
        Ok(Response::new(self.with(|s| {
            s.usage_asked.push(asked);
            s.usage.clone()
        })))
    }
    async fn limits(&self, _: Request<v1::LimitsRequest>) -> Result<Response<v1::LimitsReply>, Status> {
        Ok(Response::new(v1::LimitsReply { limits: self.with(|s| s.limits.clone()) }))
    }
    async fn set_limit(&self, request: Request<v1::SetLimitRequest>) -> Result<Response<v1::LimitsReply>, Status> {
        let asked = request.into_inner();
        let limit = v1::LimitInfo {
            whose: asked.whose,
            deployments: asked.deployments,
            memory_bytes: asked.memory_bytes,
            requests: asked.requests,
            egress_bytes: asked.egress_bytes,
            budget: asked.budget,
            budget_stops: asked.budget_stops.unwrap_or_default(),
            by: "ada".into(),
            at: 1_700_000_000_000_000,
        };
        self.with(|s| s.limits.push(limit));
        self.limits(Request::new(v1::LimitsRequest {})).await
    }
    async fn remove_limit(
        &self,
        request: Request<v1::RemoveLimitRequest>,
    ) -> Result<Response<v1::LimitsReply>, Status> {
        let asked = request.into_inner();
        self.with(|s| s.limits.retain(|limit| limit.whose != asked.whose));
        self.limits(Request::new(v1::LimitsRequest {})).await
    }
}

#[tonic::async_trait]
impl v1::sources_server::Sources for Fake {
    async fn upload(&self, request: Request<Streaming<v1::UploadChunk>>) -> Result<Response<v1::UploadReply>, Status> {
        let mut chunks = request.into_inner();
        let (mut label, mut data) = (String::new(), Vec::new());
        while let Some(chunk) = chunks.message().await? {
            assert!(chunk.data.len() <= 512 << 10, "chunks stay small");
            if !chunk.label.is_empty() {
                label = chunk.label;
            }
            data.extend(chunk.data);
        }
        let bytes = data.len() as u64;
        self.with(|s| s.uploads.push((label, data)));
        Ok(Response::new(v1::UploadReply { upload_id: "sha256:up".into(), bytes }))
    }
}

#[tonic::async_trait]
impl v1::operations_server::Operations for Fake {
    async fn start(&self, request: Request<v1::StartRequest>) -> Result<Response<v1::Operation>, Status> {
        use v1::start_request::What;
        let request = request.into_inner();
        let name = match request.what.clone().unwrap() {
            What::Deploy(d) if d.name.is_empty() => "derived".to_owned(),
            What::Deploy(d) => d.name,
            What::Restart(n) | What::Stop(n) | What::Start(n) | What::Remove(n) => self.find(&n.name)?.name,
            What::Scale(s) => self.find(&s.name)?.name,
            What::Rollback(r) => self.find(&r.name)?.name,
            What::Build(_) | What::Scan(_) => String::new(),
        };
        self.with(|s| {
            s.started.push(request);
            let script = s.script.clone();
            s.operations.insert("01OP".into(), script);
        });
        Ok(Response::new(v1::Operation {
            id: "01OP".into(),
            kind: "deploy".into(),
            deployment: name,
            state: "running".into(),
            created_at: 1_700_000_000_000_000,
            ..Default::default()
        }))
    }

    async fn get(&self, request: Request<v1::OperationId>) -> Result<Response<v1::Operation>, Status> {
        let id = request.into_inner().id;
        let events = self.with(|s| s.operations.get(&id).cloned()).ok_or_else(|| not_found(&id))?;
        match events.last().and_then(|e| e.what.clone()) {
            Some(v1::operation_event::What::Done(operation)) => Ok(Response::new(operation)),
            _ => Ok(Response::new(v1::Operation { id, state: "running".into(), ..Default::default() })),
        }
    }

    async fn list(&self, _: Request<v1::ListOperationsRequest>) -> Result<Response<v1::ListOperationsReply>, Status> {
        let operations = self.with(|s| s.operations.keys().cloned().collect::<Vec<_>>());
        let operations = operations
            .into_iter()
            .map(|id| v1::Operation { id, kind: "deploy".into(), state: "running".into(), ..Default::default() })
            .collect();
        Ok(Response::new(v1::ListOperationsReply { operations }))
    }

    type FollowStream = Reply<v1::OperationEvent>;

    async fn follow(&self, request: Request<v1::FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let request = request.into_inner();
        let after = request.after;
        let events = self.with(|s| {
            s.followed.push(request.clone());
            s.operations.get(&request.id).cloned()
        });
        let events = events.ok_or_else(|| not_found(&request.id))?;
        let ends = matches!(events.last().map(|e| &e.what), Some(Some(v1::operation_event::What::Done(_))));
        let limit = self.limit.subscribe();
        let events = events.into_iter().filter(move |e| e.seq > after);
        let gated = stream::iter(events).then(move |event| {
            let mut limit = limit.clone();
            async move {
                let seq = usize::try_from(event.seq).unwrap();
                limit.wait_for(|limit| *limit >= seq).await.unwrap();
                Ok(event)
            }
        });
        let rest: Reply<v1::OperationEvent> =
            if ends { Box::pin(stream::empty()) } else { Box::pin(stream::pending()) };
        Ok(Response::new(Box::pin(gated.chain(rest))))
    }

    async fn cancel(&self, request: Request<v1::OperationId>) -> Result<Response<v1::Operation>, Status> {
        let id = request.into_inner().id;
        Ok(Response::new(v1::Operation { id, state: "cancelled".into(), ..Default::default() }))
    }
}

#[tonic::async_trait]
impl v1::deployments_server::Deployments for Fake {
    type WatchStream = Reply<v1::WatchEvent>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.allowed(&request)?;
        // two chunks, as a large fleet would come
        let all = self.with(|s| s.deployments.clone());
        let (a, b) = all.split_at(all.len() / 2);
        let event = |changed: &[v1::Deployment], complete| v1::WatchEvent {
            epoch: "e".into(),
            revision: 1,
            changed: changed.to_vec(),
            complete,
            ..Default::default()
        };
        let events = [Ok(event(a, false)), Ok(event(b, true))];
        Ok(Response::new(Box::pin(stream::iter(events).chain(stream::pending()))))
    }

    async fn bill(&self, request: Request<v1::BillRequest>) -> Result<Response<v1::BillReply>, Status> {
        let deployment = self.find(&request.into_inner().name)?;
        let cyclonedx = r#"{"bomFormat": "CycloneDX", "components": [{"name": "mcp", "version": "1.9.4",
            "purl": "pkg:pypi/mcp@1.9.4", "licenses": [{"license": {"name": "MIT"}}],
            "properties": [{"name": "sigil:found", "value": "locked, installed"}]}]}"#;
        let provenance = format!(r#"{{"subject": [{{"name": "{}"}}]}}"#, deployment.name);
        Ok(Response::new(v1::BillReply { release: 3, cyclonedx: cyclonedx.into(), provenance }))
    }

    async fn get(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::DeploymentDetail>, Status> {
        let deployment = self.find(&request.into_inner().name)?;
        Ok(Response::new(v1::DeploymentDetail {
            deployment: Some(deployment),
            conditions: vec![v1::Condition { kind: "gated".into(), ok: true, reason: "12 tools".into(), since: 0 }],
            replicas: vec![v1::Replica {
                instance: "01INST".into(),
                release: 3,
                state: "ready".into(),
                ..Default::default()
            }],
            releases: vec![
                v1::Release { number: 2, outcome: "good".into(), ..Default::default() },
                v1::Release { number: 3, outcome: "good".into(), serving: true, ..Default::default() },
            ],
            plan: "start one replica of release 3\nstop 01OLD".into(),
            generation: 7,
            reason: "deployed by ada".into(),
            access: self.with(|s| if s.access.is_empty() { "key".into() } else { s.access.clone() }),
            bundles: vec!["dev".into()],
            egress: vec!["api.example.org".into(), "*.tiles.example:443".into()],
            network: "link".into(),
            refused: vec![v1::EgressRefusal {
                host: "evil.example".into(),
                port: 443,
                why: "not in the egress list".into(),
                count: 12,
                last: 0,
            }],
            refused_total: 12,
            last_output: vec!["\x1b]0;pwned\x07boom".into()],
            ..Default::default()
        }))
    }
}

#[tonic::async_trait]
impl v1::logs_server::Logs for Fake {
    type TailStream = Reply<v1::TailBatch>;

    async fn tail(&self, request: Request<v1::TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        let request = request.into_inner();
        for name in &request.deployments {
            self.find(name)?;
        }
        let (mut lines, gaps) = self.with(|s| {
            s.tails.push(request.clone());
            (s.lines.clone(), s.gaps.clone())
        });
        let after = request.resume.first().map_or(0, |p| p.seq);
        lines.retain(|l| l.seq > after);
        if let Some(tail) = request.tail {
            let skip = lines.len().saturating_sub(usize::try_from(tail).unwrap());
            lines.drain(..skip);
        }
        let limit = self.limit.subscribe();
        let batches = stream::iter(lines).then(move |line| {
            let mut limit = limit.clone();
            let gaps: Vec<_> = gaps.iter().filter(|g| g.after_seq + 1 == line.seq).cloned().collect();
            async move {
                let seq = usize::try_from(line.seq).unwrap();
                limit.wait_for(|limit| *limit >= seq).await.unwrap();
                let position = v1::Position { deployment_id: "01ID".into(), seq: line.seq };
                Ok(v1::TailBatch { lines: vec![line], gaps, positions: vec![position] })
            }
        });
        let rest: Reply<v1::TailBatch> =
            if request.follow { Box::pin(stream::pending()) } else { Box::pin(stream::empty()) };
        Ok(Response::new(Box::pin(batches.chain(rest))))
    }
}

/// Two pages of tools, with a field that no type of ours knows.
pub const TOOLS_ONE: &str = r#"{"name":"now","description":"The time.\nMore.","inputSchema":{"type":"object","properties":{"zone":{"type":"string"},"days":{"type":"integer"}},"required":["zone"]},"x-odd":  1.50}"#;
pub const TOOLS_TWO: &str = r#"{"name":"slow","inputSchema":{"type":"object"}}"#;

#[tonic::async_trait]
impl v1::mcp_server::Mcp for Fake {
    type SessionStream = Reply<v1::McpFrame>;

    async fn session(
        &self,
        request: Request<Streaming<v1::McpFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?.ok_or_else(|| Status::invalid_argument("no frame"))?;
        self.find(&first.deployment)?;
        let (send, receive) = mpsc::channel(16);
        let fake = self.clone();
        fake.with(|s| s.session_config.clone_from(&first.config));
        tokio::spawn(async move {
            let mut next = Some(first);
            while let Some(frame) = next {
                let message: Value = serde_json::from_slice(&frame.message).unwrap();
                fake.with(|s| s.frames.push(message.clone()));
                let id = message["id"].clone();
                let result = match message["method"].as_str() {
                    Some("initialize") => Some(json!({ "protocolVersion": "2025-11-25" }).to_string()),
                    Some("tools/list") if message["params"]["cursor"].is_null() => {
                        Some(format!(r#"{{"tools":[{TOOLS_ONE}],"nextCursor":"2"}}"#))
                    }
                    Some("tools/list") => Some(format!(r#"{{"tools":[{TOOLS_TWO}]}}"#)),
                    Some("tools/call") => {
                        // servers ask back in the middle of a call
                        let ask = json!({ "jsonrpc": "2.0", "id": "ask-1", "method": "sampling/createMessage" });
                        let frame = v1::McpFrame { message: ask.to_string().into_bytes(), ..Default::default() };
                        drop(send.send(Ok(frame)).await);
                        if let Ok(Some(answer)) = frames.message().await {
                            fake.with(|s| s.frames.push(serde_json::from_slice(&answer.message).unwrap()));
                        }
                        let tool = message["params"]["name"].as_str().unwrap();
                        fake.with(|s| s.results.get(tool).cloned())
                    }
                    _ => None,
                };
                if let Some(result) = result {
                    let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#);
                    let frame = v1::McpFrame { message: answer.into_bytes(), ..Default::default() };
                    drop(send.send(Ok(frame)).await);
                }
                next = frames.message().await.ok().flatten();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

#[tonic::async_trait]
impl v1::keys_server::Keys for Fake {
    async fn create(&self, request: Request<v1::CreateKeyRequest>) -> Result<Response<v1::CreateKeyReply>, Status> {
        let asked = request.into_inner();
        let key = self.with(|s| {
            let id = format!("k{}", s.keys.len() + s.revoked.len() + 1);
            let v1::CreateKeyRequest { label, role, deployments, .. } = asked;
            let key = v1::KeyInfo { id, label, role, deployments, ..Default::default() };
            s.keys.push(key.clone());
            key
        });
        let text = format!("sigil_text-of-{}", key.id);
        Ok(Response::new(v1::CreateKeyReply { key: Some(key), text }))
    }

    async fn list(&self, _: Request<v1::ListKeysRequest>) -> Result<Response<v1::ListKeysReply>, Status> {
        Ok(Response::new(v1::ListKeysReply { keys: self.with(|s| s.keys.clone()) }))
    }

    async fn revoke(&self, request: Request<v1::RevokeKeyRequest>) -> Result<Response<v1::KeyInfo>, Status> {
        let id = request.into_inner().key;
        let gone = self.with(|s| {
            let at = s.keys.iter().position(|key| key.id == id)?;
            s.revoked.push(id.clone());
            Some(s.keys.remove(at))
        });
        gone.map(Response::new).ok_or_else(|| not_found(&id))
    }
}

#[tonic::async_trait]
impl v1::secrets_server::Secrets for Fake {
    async fn set(&self, request: Request<v1::SetSecretRequest>) -> Result<Response<v1::SecretInfo>, Status> {
        let request = request.into_inner();
        let scope = if request.purpose == "source" { "source" } else { "team" };
        let info = v1::SecretInfo { name: request.name.clone(), scope: scope.into(), version: 1, ..Default::default() };
        self.with(|s| s.secrets.push(request));
        Ok(Response::new(info))
    }

    async fn list(&self, _: Request<v1::ListSecretsRequest>) -> Result<Response<v1::ListSecretsReply>, Status> {
        let secrets = self.with(|s| s.secrets.iter().map(|r| r.name.clone()).collect::<Vec<_>>());
        let secrets = secrets
            .into_iter()
            .map(|name| v1::SecretInfo { name, scope: "team".into(), ..Default::default() })
            .collect();
        Ok(Response::new(v1::ListSecretsReply { secrets }))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveSecretRequest>,
    ) -> Result<Response<v1::RemoveSecretReply>, Status> {
        let name = request.into_inner().name;
        let known = self.with(|s| s.secrets.iter().any(|r| r.name == name));
        if known {
            Ok(Response::new(v1::RemoveSecretReply {}))
        } else {
            Err(Status::not_found(format!("no secret {name}")))
        }
    }

    async fn set_own(&self, request: Request<v1::SetSecretRequest>) -> Result<Response<v1::SecretInfo>, Status> {
        let mut request = request.into_inner();
        request.user = "me".into();
        let info = v1::SecretInfo {
            name: request.name.clone(),
            scope: "user:me".into(),
            version: 1,
            ..v1::SecretInfo::default()
        };
        self.with(|s| s.secrets.push(request));
        Ok(Response::new(info))
    }

    async fn list_own(&self, _: Request<v1::ListSecretsRequest>) -> Result<Response<v1::ListSecretsReply>, Status> {
        let own = |r: &&v1::SetSecretRequest| r.user == "me";
        let names = self.with(|s| s.secrets.iter().filter(own).map(|r| r.name.clone()).collect::<Vec<_>>());
        let info = |name| v1::SecretInfo { name, scope: "user:me".into(), ..v1::SecretInfo::default() };
        Ok(Response::new(v1::ListSecretsReply { secrets: names.into_iter().map(info).collect() }))
    }

    async fn remove_own(
        &self,
        request: Request<v1::RemoveSecretRequest>,
    ) -> Result<Response<v1::RemoveSecretReply>, Status> {
        self.remove(request).await
    }

    async fn rotate(
        &self,
        request: Request<v1::RotateSecretRequest>,
    ) -> Result<Response<v1::RotateSecretReply>, Status> {
        let v1::RotateSecretRequest { secret, no_roll } = request.into_inner();
        let secret = secret.unwrap_or_default();
        if !self.with(|s| s.secrets.iter().any(|r| r.name == secret.name)) {
            return Err(Status::not_found(format!("no secret {}", secret.name)));
        }
        let info = v1::SecretInfo { name: secret.name.clone(), scope: "team".into(), version: 2, ..Default::default() };
        self.with(|s| s.secrets.push(secret));
        let note = if no_roll { "uses the former value until its next restart" } else { "does not run" };
        let rolled = vec![v1::Rolled { deployment: "clock".into(), operation: String::new(), note: note.into() }];
        Ok(Response::new(v1::RotateSecretReply { secret: Some(info), rolled }))
    }

    async fn reveal(
        &self,
        request: Request<v1::RevealSecretRequest>,
    ) -> Result<Response<v1::RevealSecretReply>, Status> {
        let name = request.into_inner().name;
        let value = self.with(|s| s.secrets.iter().rev().find(|r| r.name == name).map(|r| r.value.clone()));
        let value = value.ok_or_else(|| Status::not_found(format!("no secret {name}")))?;
        Ok(Response::new(v1::RevealSecretReply { value, version: 1, username: String::new() }))
    }

    async fn import(
        &self,
        request: Request<v1::ImportSecretsRequest>,
    ) -> Result<Response<v1::ImportSecretsReply>, Status> {
        let v1::ImportSecretsRequest { secrets, deployment, dry_run, .. } = request.into_inner();
        let info =
            |s: &v1::ImportedSecret| v1::SecretInfo { name: s.name.clone(), version: 1, ..v1::SecretInfo::default() };
        let infos = secrets.iter().map(info).collect();
        if !dry_run {
            let set = |s: v1::ImportedSecret| v1::SetSecretRequest {
                name: s.name,
                value: s.value,
                deployment: deployment.clone(),
                ..v1::SetSecretRequest::default()
            };
            self.with(|state| state.secrets.extend(secrets.into_iter().map(set)));
        }
        Ok(Response::new(v1::ImportSecretsReply { secrets: infos }))
    }

    async fn keyring(&self, _: Request<v1::KeyringRequest>) -> Result<Response<v1::KeyringReply>, Status> {
        Ok(Response::new(v1::KeyringReply::default()))
    }

    async fn rotate_keys(&self, _: Request<v1::RotateKeysRequest>) -> Result<Response<v1::KeyringReply>, Status> {
        Err(Status::permission_denied("keys are changed on the agent's host only"))
    }
}

#[tonic::async_trait]
impl v1::audit_server::Audit for Fake {
    type QueryStream = Reply<v1::AuditBatch>;

    async fn query(&self, request: Request<v1::AuditQuery>) -> Result<Response<Self::QueryStream>, Status> {
        let asked = request.into_inner();
        let lines = self.with(|s| {
            s.audit_asked.push(asked.clone());
            s.audit.clone()
        });
        let seq = |line: &[u8]| sigil_core::audit::Record::parse(line).map_or(0, |r| r.seq);
        let lines: Vec<_> = lines.into_iter().filter(|line| asked.after == 0 || seq(line) > asked.after).collect();
        let limit = self.limit.subscribe();
        let batches = stream::iter(lines.into_iter().enumerate()).then(move |(n, line)| {
            let (mut limit, n) = (limit.clone(), usize::try_from(asked.after).unwrap() + n + 1);
            async move {
                limit.wait_for(|limit| *limit >= n).await.unwrap();
                Ok(v1::AuditBatch { lines: vec![line], damaged: 0 })
            }
        });
        let rest: Reply<v1::AuditBatch> =
            if asked.follow { Box::pin(stream::pending()) } else { Box::pin(stream::empty()) };
        Ok(Response::new(Box::pin(batches.chain(rest))))
    }
}

/// Waits for something to hold, with a deadline.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
