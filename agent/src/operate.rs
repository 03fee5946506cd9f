//! Owns: operations, their steps and event streams, and the lease on a deployment while one runs.
//! May touch: store, source, build, secrets, reconcile's statuses.
//! Never: containers.
//! Tested by: `tests/sim`, `tests/docker`.
//!
//! An operation is in the store before its id is answered. Every step can be repeated: a restarted agent goes on with
//! what the record's `progress` holds, and what is already there (a tree, an image, a release) is found again.

mod bill;
mod change;
mod compose;
mod deploy;
mod events;
mod quota;
mod swept;
mod told;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_config::agent::AgentConfig;
use sigil_core::follow::Previewed;
use sigil_core::model::{Name, OperationId};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::events::Events;
pub use self::events::Follow;
pub use self::told::Told;
use crate::access::Access;
use crate::audit::{Audit, by_agent};
use crate::build::Builds;
use crate::engine::Engine;
use crate::inspect::Scanner;
use crate::reconcile::Reconcile;
use crate::secrets::Secrets;
use crate::source::Sources;
use crate::store::{OperationRecord, Store, StoreError};
use crate::tail::Tail;

/// What a caller asked for. Its JSON form is kept in the operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Request {
    /// Source to running.
    Deploy(Box<DeployRequest>),
    /// Source to image.
    Build {
        /// Where from.
        source: SourceRef,
        /// Instead of the tree's own manifest.
        manifest: Option<ManifestText>,
        /// Only the Dockerfile.
        dry_run: bool,
        /// Do not reuse an image.
        force: bool,
    },
    /// Findings and verdict.
    Scan {
        /// Where from.
        source: SourceRef,
    },
    /// Replaces all instances.
    Restart {
        /// Which deployment.
        name: String,
    },
    /// Keeps everything, runs nothing.
    Stop {
        /// Which deployment.
        name: String,
    },
    /// Runs again.
    Start {
        /// Which deployment.
        name: String,
    },
    /// Sets the number of replicas.
    Scale {
        /// Which deployment.
        name: String,
        /// How many.
        replicas: u32,
    },
    /// Returns to an earlier release.
    Rollback {
        /// Which deployment.
        name: String,
        /// To which; the last good one before the serving one when absent.
        release: Option<u32>,
    },
    /// Removes it.
    Remove {
        /// Which deployment.
        name: String,
    },
}

/// A source and, for a folder, its upload.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SourceRef {
    /// As written, a folder's path included.
    pub text: String,
    /// The upload that holds a folder's content.
    pub upload_id: Option<String>,
}

/// A manifest handed in beside the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestText {
    /// Its file name, for messages and to tell its kind.
    pub file: String,
    /// What it says.
    pub text: String,
}

/// A finding that somebody answers for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaiverRequest {
    /// `rule` or `rule:path`.
    pub finding: String,
    /// Why.
    pub reason: String,
    /// Last day (`2027-01-31`).
    pub until: String,
}

/// All that `sigil deploy` can say.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeployRequest {
    /// Absent: derived.
    pub name: Option<String>,
    /// Where from.
    pub source: SourceRef,
    /// Instead of the tree's own manifest.
    pub manifest: Option<ManifestText>,
    /// A tier's name.
    pub tier: Option<String>,
    /// http, sse, stdio
    pub transport: Option<String>,
    /// Port of an HTTP server.
    pub port: Option<u16>,
    /// Plain environment.
    pub env: BTreeMap<String, String>,
    /// Secret name to environment variable.
    pub secrets: BTreeMap<String, String>,
    /// Dotted key to value.
    pub config: BTreeMap<String, String>,
    /// `V:/path[:ro]`
    pub volumes: Vec<String>,
    /// Hosts.
    pub egress: Vec<String>,
    /// key, oauth, anonymous
    pub access: Option<String>,
    /// A preset's name.
    pub scaling: Option<String>,
    /// How many replicas.
    pub replicas: Option<u32>,
    /// Build anew, release anew.
    pub force: bool,
    /// Added to the server's command line.
    pub args: Vec<String>,
    /// Findings answered for.
    pub waivers: Vec<WaiverRequest>,
    /// Kept for the record: the caller stops waiting after it, the operation goes on.
    pub timeout_ms: Option<u64>,
    /// The id of a new deployment's team; absent: the first one.
    pub team: Option<String>,
    /// A new deployment is removed after so long, whatever becomes of the caller; absent: it stays.
    pub temporary_seconds: Option<u32>,
    /// It is the preview of a pull request; nobody can ask for that but the agent itself.
    pub preview: Option<Previewed>,
}

impl DeployRequest {
    /// The same for a preview. The code of a stranger gets the limits of the deployment and nothing else of it.
    #[must_use]
    pub fn preview(self, name: String, source: String, team: &str, what: Previewed) -> Self {
        let own = Self {
            name: Some(name),
            source: SourceRef { text: source, upload_id: None },
            team: Some(team.to_owned()),
            replicas: self.replicas.map(|replicas| replicas.min(1)),
            force: false,
            waivers: Vec::new(),
            timeout_ms: None,
            temporary_seconds: None,
            preview: Some(what),
            ..self
        };
        if !what.fork {
            return own;
        }
        Self {
            manifest: None,
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            config: BTreeMap::new(),
            volumes: Vec::new(),
            egress: Vec::new(),
            args: Vec::new(),
            ..own
        }
    }
}

/// What is told of a failure (`ErrorInfo` on the wire).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// UPPER_SNAKE.
    pub code: String,
    /// What.
    pub message: String,
    /// What to do.
    pub hint: String,
    /// JSON, may be empty.
    pub details: String,
    /// The exit code of cli.md that fits.
    pub exit_code: i32,
}

impl Failure {
    /// A failure without details.
    pub fn new(code: &str, exit_code: i32, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), hint: hint.into(), details: String::new(), exit_code }
    }

    /// Wrong input.
    pub fn invalid(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new("INVALID", 2, message, hint)
    }

    /// No deployment of that name.
    pub fn no_deployment(name: &str) -> Self {
        Self::new("NOT_FOUND", 3, format!("no deployment '{name}'"), "`sigil ls` lists them")
    }

    fn cancelled() -> Self {
        Self::new("CANCELLED", 1, "cancelled", "start it again when you like")
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NotFound(_) => Self::new("NOT_FOUND", 3, error.to_string(), "`sigil ls` lists them"),
            StoreError::NameTaken(_) => Self::new("NAME_TAKEN", 2, error.to_string(), "choose another with --name"),
            StoreError::Conflict { .. } => {
                Self::new("CONFLICT", 1, error.to_string(), "look with `sigil get`, then try again")
            }
            StoreError::DiskFull => Self::new("DISK_FULL", 1, error.to_string(), "free disk space on the agent's host"),
            _ => Self::new("STATE", 1, error.to_string(), "look at the agent's log"),
        }
    }
}

/// One event of an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// From 1, no holes.
    pub seq: u64,
    /// When.
    pub time: Timestamp,
    /// What.
    pub what: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A step began or ended.
    Step {
        /// fetch, recognise, scan, build, release, start, ready, stop, remove
        name: String,
        /// started, finished, failed, skipped
        state: String,
        /// One line.
        message: String,
        /// Since it began.
        elapsed_ms: u64,
    },
    /// A line of output.
    Output {
        /// build, stdout, stderr
        stream: String,
        /// Without its newline.
        line: String,
    },
    /// One line for people.
    Note(String),
    /// The last event.
    Done(Box<OperationRecord>),
}

/// What the room needs.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Desired state and records.
    pub store: Store,
    /// The engine, for image facts.
    pub engine: Arc<dyn Engine>,
    /// Fetching.
    pub sources: Sources,
    /// Images.
    pub builds: Builds,
    /// Whether what is asked for is there.
    pub secrets: Secrets,
    /// Whether there are keys.
    pub access: Access,
    /// How operations ended.
    pub audit: Audit,
    /// Build output is log, too.
    pub tail: Tail,
    /// How it went.
    pub reconcile: Reconcile,
    /// Reads sources for flaws.
    pub scanner: Scanner,
    /// The owner's limits.
    pub config: watch::Receiver<Arc<AgentConfig>>,
    /// Event files live in `operations` below it.
    pub data_dir: PathBuf,
    /// `http://127.0.0.1:7450`
    pub gateway_url: String,
}

/// The room's handle.
#[derive(Clone, Debug)]
pub struct Operate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    deps: Deps,
    running: Mutex<HashMap<OperationId, Live>>,
    /// Deployment name to the operation that holds its lease.
    leases: Mutex<HashMap<String, OperationId>>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// One image is read through at a time.
    reading: tokio::sync::Mutex<()>,
    /// Images whose bill of materials is to be made.
    bills: Mutex<HashMap<String, Vec<bill::Lock>>>,
}

#[derive(Debug, Clone)]
struct Live {
    events: Arc<Events>,
    cancel: CancellationToken,
}

impl Operate {
    /// Takes up what a former agent left running.
    pub fn spawn(deps: Deps, stop: CancellationToken) -> std::io::Result<Self> {
        std::fs::create_dir_all(deps.data_dir.join("operations"))?;
        let inner = Arc::new(Inner {
            deps,
            running: Mutex::default(),
            leases: Mutex::default(),
            stop,
            tasks: TaskTracker::new(),
            reading: tokio::sync::Mutex::default(),
            bills: Mutex::default(),
        });
        let this = Self { inner };
        events::clean(&this.inner.deps.data_dir, &this.inner.deps.store);
        for record in this.inner.deps.store.operations() {
            if matches!(record.state.as_str(), "queued" | "running") {
                tracing::info!(operation = %record.id, kind = record.kind, step = record.step, "going on with it");
                this.launch(record.as_ref().clone(), true);
            }
        }
        this.inner.tasks.spawn(swept::run(this.clone()));
        Ok(this)
    }

    /// Kept before it is answered. A repeated request id answers the first operation.
    pub async fn start(&self, request: Request, request_id: &str, who: &str) -> Result<Arc<OperationRecord>, Failure> {
        let store = &self.inner.deps.store;
        if let Some(first) = store.operation_of_request(request_id) {
            return Ok(first);
        }
        let (kind, name) = self.check(&request)?;
        let record = OperationRecord {
            id: OperationId(ulid::Ulid::generate()),
            kind: kind.to_owned(),
            deployment: name
                .as_deref()
                .and_then(|n| n.parse::<Name>().ok())
                .and_then(|n| store.by_name(&n))
                .map(|d| d.id),
            name: name.clone().unwrap_or_default(),
            created_by: who.to_owned(),
            created_at: Timestamp::now(),
            ended_at: None,
            state: "queued".into(),
            step: String::new(),
            request: serde_json::to_value(&request).map_err(|e| Failure::invalid(e.to_string(), ""))?,
            progress: serde_json::json!({}),
            release: None,
            error: None,
            result: serde_json::Value::Null,
            summary: String::new(),
            request_id: request_id.to_owned(),
        };
        if let Some(name) = &name {
            // stopping and removing need not wait for what they make pointless
            if matches!(request, Request::Remove { .. } | Request::Stop { .. })
                && let Some(holder) = self.holder(name)
            {
                self.cancel_and_wait(holder).await;
            }
            self.lease(name, record.id)?;
        }
        if let Err(error) = store.put_operation(record.clone()).await {
            self.release_leases(record.id);
            return Err(error.into());
        }
        self.launch(record.clone(), false);
        Ok(store.operation(record.id).unwrap_or_else(|| Arc::new(record)))
    }

    /// One operation.
    pub fn get(&self, id: OperationId) -> Option<Arc<OperationRecord>> {
        self.inner.deps.store.operation(id)
    }

    /// Newest first.
    pub fn list(&self, deployment: Option<&str>, limit: usize) -> Vec<Arc<OperationRecord>> {
        let all = self.inner.deps.store.operations().into_iter();
        all.filter(|r| deployment.is_none_or(|d| r.name == d)).take(limit).collect()
    }

    /// Events after `after`, then as they come; `None` for an unknown operation.
    pub fn follow(&self, id: OperationId, after: u64) -> Option<Follow> {
        let record = self.get(id)?;
        let live = self.inner.running.lock().ok()?.get(&id).map(|l| l.events.clone());
        Some(Follow::new(&self.inner.deps.data_dir, record, live, after))
    }

    /// Ends it at its next step; what a step already did stays.
    pub async fn cancel(&self, id: OperationId) -> Result<Arc<OperationRecord>, Failure> {
        let missing = || Failure::new("NOT_FOUND", 3, format!("no operation {id}"), "`sigil ops` lists them");
        self.get(id).ok_or_else(missing)?;
        self.cancel_and_wait(id).await;
        self.get(id).ok_or_else(missing)
    }

    /// Waits until running operations stopped at a step, at most this long. They go on with the next agent.
    pub async fn closed(&self, limit: Duration) -> bool {
        self.inner.tasks.close();
        tokio::time::timeout(limit, self.inner.tasks.wait()).await.is_ok()
    }

    async fn cancel_and_wait(&self, id: OperationId) {
        let live = self.inner.running.lock().ok().and_then(|r| r.get(&id).cloned());
        let Some(live) = live else { return };
        live.cancel.cancel();
        let mut changes = live.events.changes();
        let _late = tokio::time::timeout(Duration::from_secs(20), async {
            while !live.events.is_done() && changes.changed().await.is_ok() {}
        })
        .await;
    }

    /// What can be refused without doing anything.
    fn check(&self, request: &Request) -> Result<(&'static str, Option<String>), Failure> {
        let store = &self.inner.deps.store;
        let known = |name: &str| {
            let parsed: Name = name.parse().map_err(|_| Failure::no_deployment(name))?;
            store.by_name(&parsed).map(|_| name.to_owned()).ok_or_else(|| Failure::no_deployment(name))
        };
        Ok(match request {
            Request::Deploy(deploy) => {
                deploy::source(&deploy.source)?;
                if let Some(name) = &deploy.name {
                    name.parse::<Name>().map_err(|e| {
                        Failure::new(
                            "BAD_NAME",
                            2,
                            e.to_string(),
                            "a name is a DNS label: a-z, 0-9 and '-', at most 40",
                        )
                    })?;
                }
                ("deploy", deploy.name.clone())
            }
            Request::Build { source, .. } => {
                deploy::source(source)?;
                ("build", None)
            }
            Request::Scan { source } => {
                deploy::source(source)?;
                ("scan", None)
            }
            Request::Restart { name } => ("restart", Some(known(name)?)),
            Request::Stop { name } => ("stop", Some(known(name)?)),
            Request::Start { name } => ("start", Some(known(name)?)),
            Request::Scale { name, .. } => ("scale", Some(known(name)?)),
            Request::Rollback { name, .. } => ("rollback", Some(known(name)?)),
            Request::Remove { name } => ("remove", Some(known(name)?)),
        })
    }

    fn holder(&self, name: &str) -> Option<OperationId> {
        self.inner.leases.lock().ok()?.get(name).copied()
    }

    fn lease(&self, name: &str, id: OperationId) -> Result<(), Failure> {
        let Ok(mut leases) = self.inner.leases.lock() else {
            return Err(Failure::new("STATE", 1, "the lease table is broken", "restart the agent"));
        };
        match leases.get(name) {
            Some(holder) if *holder != id => Err(Failure::new(
                "BUSY",
                1,
                format!("another operation on '{name}' is under way ({holder})"),
                format!("follow it with `sigil ops {holder} -f`, or end it with `sigil ops {holder} --cancel`"),
            )),
            _ => {
                leases.insert(name.to_owned(), id);
                Ok(())
            }
        }
    }

    fn release_leases(&self, id: OperationId) {
        if let Ok(mut leases) = self.inner.leases.lock() {
            leases.retain(|_, holder| *holder != id);
        }
    }

    fn launch(&self, record: OperationRecord, resumed: bool) {
        let events = Arc::new(Events::open(&self.inner.deps.data_dir, record.id));
        let cancel = CancellationToken::new();
        if let Ok(mut running) = self.inner.running.lock() {
            running.insert(record.id, Live { events: events.clone(), cancel: cancel.clone() });
        }
        if !record.name.is_empty() {
            // after a restart nobody else can hold it
            let _held = self.lease(&record.name, record.id);
        }
        let this = self.clone();
        self.inner.tasks.spawn(async move {
            let id = record.id;
            let run = Run { operate: this.clone(), record, events, cancel, began: Instant::now() };
            run.drive(resumed).await;
            this.release_leases(id);
            if let Ok(mut running) = this.inner.running.lock() {
                running.remove(&id);
            }
        });
    }
}

/// One operation while it runs.
struct Run {
    operate: Operate,
    record: OperationRecord,
    events: Arc<Events>,
    cancel: CancellationToken,
    began: Instant,
}

/// How an operation ended when it did not fail.
struct Outcome {
    result: serde_json::Value,
    summary: String,
}

impl Run {
    fn deps(&self) -> &Deps {
        &self.operate.inner.deps
    }

    async fn drive(mut self, resumed: bool) {
        self.record.state = "running".into();
        if resumed {
            let step = if self.record.step.is_empty() { "the beginning" } else { &self.record.step };
            self.events.emit(EventKind::Note(format!("the agent restarted; going on from {step}")));
        }
        let before = self.deployment().map(|d| told::state(&d)).unwrap_or_default();
        let stop = self.operate.inner.stop.clone();
        let cancel = self.cancel.clone();
        let result = tokio::select! {
            // left as it is: the next agent goes on
            () = stop.cancelled() => return,
            () = cancel.cancelled() => Err(Failure::cancelled()),
            result = self.work() => result,
        };
        self.record.ended_at = Some(Timestamp::now());
        match result {
            Ok(outcome) => {
                self.record.state = "succeeded".into();
                self.record.result = outcome.result;
                self.record.summary = outcome.summary;
            }
            Err(failure) => {
                self.record.state = if failure.code == "CANCELLED" { "cancelled" } else { "failed" }.into();
                self.record.summary.clone_from(&failure.message);
                if !self.record.step.is_empty() {
                    self.step_event(&self.record.step.clone(), "failed", &failure.message, self.began);
                }
                tracing::warn!(operation = %self.record.id, kind = self.record.kind, name = self.record.name, step = self.record.step, error = %failure, "failed");
                self.record.error = serde_json::to_value(&failure).ok();
            }
        }
        if let Err(error) = self.deps().store.put_operation(self.record.clone()).await {
            tracing::error!(%error, operation = %self.record.id, "its end could not be kept");
        }
        self.audit_end(before).await;
        self.events.emit(EventKind::Done(Box::new(self.record.clone())));
    }

    /// The deployment that it is about, where there is one.
    fn deployment(&self) -> Option<Arc<sigil_core::model::Deployment>> {
        let store = &self.deps().store;
        match self.record.deployment {
            Some(id) => store.deployment(id),
            None => self.record.name.parse::<Name>().ok().and_then(|name| store.by_name(&name)),
        }
    }

    /// How it ended and what it changed, for the audit log; on the disk before anybody is told.
    async fn audit_end(&self, before: Vec<(&'static str, String)>) {
        let mut record = by_agent(&format!("{}.end", told::word(&self.record.kind)));
        record.who.clone_from(&self.record.created_by);
        record.operation = self.record.id.to_string();
        record.request.clone_from(&self.record.request_id);
        record.target.clone_from(&self.record.name);
        record.target_id = self.record.deployment.map(|id| id.to_string()).unwrap_or_default();
        if let Some(error) = &self.record.error {
            error["code"].as_str().unwrap_or("FAILED").clone_into(&mut record.outcome);
            record.after.insert("step".into(), self.record.step.clone());
        }
        told::put(&mut record.before, before);
        if let Some(now) = self.deployment() {
            told::put(&mut record.after, told::state(&now));
        }
        told::only_changes(&mut record);
        self.deps().audit.keep(record).await;
    }

    async fn work(&mut self) -> Result<Outcome, Failure> {
        let request: Request = serde_json::from_value(self.record.request.clone())
            .map_err(|e| Failure::new("STATE", 1, format!("the kept request cannot be read: {e}"), "start it again"))?;
        match request {
            Request::Deploy(deploy) => self.deploy(*deploy).await,
            Request::Build { source, manifest, dry_run, force } => {
                self.build_only(source, manifest, dry_run, force).await
            }
            Request::Scan { source } => self.scan_only(source).await,
            other => self.change(other).await,
        }
    }

    /// Begins a step: kept, then told.
    async fn begin(&mut self, name: &str) -> Result<Instant, Failure> {
        if self.cancel.is_cancelled() {
            return Err(Failure::cancelled());
        }
        self.record.step = name.to_owned();
        self.began = Instant::now();
        self.deps().store.put_operation(self.record.clone()).await?;
        self.step_event(name, "started", "", self.began);
        Ok(self.began)
    }

    fn end(&self, message: &str) {
        self.step_event(&self.record.step, "finished", message, self.began);
    }

    fn note(&self, text: impl Into<String>) {
        self.events.emit(EventKind::Note(text.into()));
    }

    fn step_event(&self, name: &str, state: &str, message: &str, began: Instant) {
        self.events.emit(EventKind::Step {
            name: name.to_owned(),
            state: state.to_owned(),
            message: message.to_owned(),
            elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
    }

    /// A sink for lines of output; they reach the event stream in order.
    fn output(&self, stream: &'static str) -> (mpsc::Sender<String>, tokio::task::JoinHandle<()>) {
        let (tx, mut rx) = mpsc::channel::<String>(256);
        let events = self.events.clone();
        let pump = self.operate.inner.tasks.spawn(async move {
            while let Some(line) = rx.recv().await {
                events.emit(EventKind::Output { stream: stream.to_owned(), line });
            }
        });
        (tx, pump)
    }
}

#[cfg(test)]
mod tests {
    use sigil_core::model::DeploymentId;

    use super::*;

    #[test]
    fn a_strangers_preview_gets_nothing_of_the_deployments_own() {
        let asked = DeployRequest {
            name: Some("time".into()),
            source: SourceRef { text: "git+https://git.example.org/acme/time@main".into(), upload_id: None },
            tier: Some("micro".into()),
            access: Some("key".into()),
            env: BTreeMap::from([("REGION".into(), "eu".into())]),
            secrets: BTreeMap::from([("API_KEY".into(), "API_KEY".into())]),
            volumes: vec!["data:/data".into()],
            replicas: Some(3),
            ..DeployRequest::default()
        };
        let of = DeploymentId(ulid::Ulid::nil());
        let preview = |fork| {
            let what = Previewed { of, number: 7, fork };
            let source = "git+https://git.example.org/acme/time@aa".to_owned();
            asked.clone().preview("time-pr-7".into(), source, "default", what)
        };
        let own = preview(false);
        assert_eq!((own.name.as_deref(), own.replicas), (Some("time-pr-7"), Some(1)));
        assert_eq!((own.env.len(), own.volumes.len(), own.secrets.len()), (1, 1, 1));
        let strangers = preview(true);
        assert!(strangers.env.is_empty() && strangers.secrets.is_empty() && strangers.volumes.is_empty());
        assert_eq!((strangers.tier.as_deref(), strangers.access.as_deref()), (Some("micro"), Some("key")));
    }
}
