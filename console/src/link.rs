//! Owns: the connection to one agent: dialling, authentication, reconnecting, resuming. May touch: sockets, the
//! system's ssh. Never: prints, decides what a person sees, or lets a generated type out.
//! Tested by: `link/*`, `console/tests/*` against an agent made of the generated services.

mod address;
pub mod alerts;
mod client;
mod convert;
mod dial;
mod error;
pub mod findings;
mod flows;
pub mod follows;
pub mod git;
pub mod health;
pub mod keeping;
mod look;
mod mcp;
mod people;
pub mod port;
mod registry;
mod resume;
pub mod scaling;
pub mod tools;
mod usage;
mod used;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde::Serialize;
use sigil_protocol::v1;
use tokio::sync::mpsc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

pub use address::{Address, Pin};
pub use client::{McpClient, McpError};
#[cfg(unix)]
pub use dial::{HELLO, local};
pub use dial::{fingerprint, local_sockets};
pub use error::{LinkError, Refusal};
pub use mcp::{McpSender, McpSession};
pub use registry::{Imported, Package, PackageDetail, PackageQuery, PackageVersion, Packages};
pub use resume::{AuditLines, Backoff, DeploymentWatch, Fleet, Logs, OperationFollow, Progress, Update};
pub use usage::{Limit, NewLimit, Usage, UsageQuery, UsageRow};
pub use used::{HostUse, Top};
pub use view::{
    AgentInfo, Deployment, Detail, Event, Frame, LogBatch, LogGap, LogLine, NewKey, Operation, PinnedTool, Pins,
    Policy, Problem, Release, Secret, User, Waiver, What,
};
// made by the tests of the screens only, which are given whole values
#[cfg(test)]
pub use view::{Condition, Engine, Grant, Key, Replica, Team};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the answer to a question.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest message in either direction: one JSON-RPC frame may carry an image.
const MESSAGE_MAX: usize = 64 << 20;

/// Which agent, and what proves both sides.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// The context it came from.
    pub context: Option<String>,
    /// Where.
    pub address: Address,
    /// The agent's certificate (TLS).
    pub pin: Option<Pin>,
    /// The caller's key.
    pub token: Option<String>,
    /// Files (PEM) of the caller's certificate and its key (TLS).
    pub identity: Option<(std::path::PathBuf, std::path::PathBuf)>,
    /// Whether ssh may ask a person for a passphrase; false under a full-screen console.
    pub interactive: bool,
}

impl Target {
    /// The agent on this machine.
    pub fn local() -> Self {
        Self { context: None, address: Address::Local, pin: None, token: None, identity: None, interactive: true }
    }

    /// An address without pin or token.
    pub fn address(address: Address) -> Self {
        Self { address, ..Self::local() }
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // the token stays out of every log
        f.debug_struct("Target")
            .field("context", &self.context)
            .field("address", &self.address)
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Auth(Option<MetadataValue<Ascii>>);

impl Interceptor for Auth {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

type Wire = InterceptedService<Channel, Auth>;

/// A connection to one agent. Cheap to clone; reconnects by itself on the next request.
#[derive(Clone)]
pub struct Link {
    wire: Wire,
    /// Why the last dialling failed: tonic only says 'transport error'.
    last_dial: Arc<Mutex<Option<LinkError>>>,
}

/// What `logs` asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogQuery {
    /// Names; empty with `all`.
    pub deployments: Vec<String>,
    /// Every deployment.
    pub all: bool,
    /// Go on with new lines.
    pub follow: bool,
    /// Only the last lines, over all deployments.
    pub tail: Option<u64>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// Regular expression; empty: all.
    pub grep: String,
    /// Only replicas that are gone.
    pub previous: bool,
    /// Empty: stdout, stderr and agent.
    pub streams: Vec<String>,
}

/// What `audit` asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AuditQuery {
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// Pattern of who; empty: all.
    pub who: String,
    /// Pattern of what was done; empty: all.
    pub what: String,
    /// Pattern of a name or id; empty: all.
    pub target: String,
    /// Only the newest that fit.
    pub tail: Option<u64>,
    /// Go on with new ones.
    pub follow: bool,
}

/// A folder's upload.
#[derive(Debug, Clone, PartialEq)]
pub struct Upload {
    /// `sha256:…` of the archive.
    pub id: String,
    /// Its size.
    pub bytes: u64,
}

/// A source: its text, and the upload that a folder became.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SourceRef {
    /// As written.
    pub text: String,
    /// For a folder.
    pub upload: Option<String>,
}

/// A manifest handed in beside the source.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GivenManifest {
    /// Its file name, for messages.
    pub name: String,
    /// Its text; empty: the tree's own.
    pub text: String,
}

/// Everything a deploy may say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Deploy {
    /// Empty: derived by the agent.
    pub name: String,
    /// What to deploy.
    pub source: SourceRef,
    /// Instead of the tree's own.
    pub manifest: GivenManifest,
    /// Resource tier; empty: the manifest's.
    pub tier: String,
    /// `http`, `sse`, `stdio` or empty.
    pub transport: String,
    /// 0: the manifest's.
    pub port: u16,
    /// Plain environment.
    pub env: BTreeMap<String, String>,
    /// Secret's name to environment variable.
    pub secrets: BTreeMap<String, String>,
    /// Dotted key to value.
    pub config: BTreeMap<String, String>,
    /// `V:/path[:ro]`.
    pub volumes: Vec<String>,
    /// `HOST[:PORT]`.
    pub egress: Vec<String>,
    /// `key`, `oauth`, `anonymous` or empty.
    pub access: String,
    /// A preset or empty.
    pub scaling: String,
    /// How many.
    pub replicas: Option<u32>,
    /// A new release even when nothing changed.
    pub force: bool,
    /// Arguments of the server.
    pub args: Vec<String>,
    /// (finding, reason, until).
    pub waivers: Vec<(String, String, String)>,
    /// Until ready; 0: the agent's default.
    pub timeout_ms: u64,
    /// A new deployment is removed after so long, seconds; 0: it stays.
    pub temporary_seconds: u32,
    /// Team of a new deployment; empty: the caller's only one, else the first.
    pub team: String,
    /// The registry's package that it is of (`name@version`); empty: of none.
    pub package: String,
}

/// Whose a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretPlace {
    /// A team's, by its name; empty: the caller's only one, else the first.
    Team(String),
    /// One deployment's.
    Deployment(String),
    /// A login for fetching sources from a host.
    Source,
    /// The caller's own.
    Own,
    /// Another user's.
    User(String),
}

/// A deployment that uses a secret whose value changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rolled {
    /// Its name.
    pub deployment: String,
    /// Its restart; empty: it is not restarted.
    pub operation: String,
    /// Why not.
    pub note: String,
}

/// A change that the agent is asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Source to running.
    Deploy(Box<Deploy>),
    /// Image only.
    Build {
        /// What to build.
        source: SourceRef,
        /// Instead of the tree's own.
        manifest: GivenManifest,
        /// Only say how.
        dry_run: bool,
        /// Even when the image exists.
        force: bool,
    },
    /// Findings only.
    Scan {
        /// What to scan.
        source: SourceRef,
    },
    /// New containers of the same release.
    Restart(String),
    /// Keep everything, run nothing.
    Stop(String),
    /// Run again.
    Start(String),
    /// As many replicas.
    Scale(String, u32),
    /// Back to a release; 0: the last good one.
    Rollback(String, u32),
    /// Containers and record.
    Remove(String),
}

impl Link {
    /// Connects; fails at once when the agent does not answer.
    pub async fn connect(target: Target) -> Result<Self, LinkError> {
        let auth = match &target.token {
            Some(token) => {
                let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| {
                    LinkError::Refused(Refusal {
                        code: "BAD_TOKEN".into(),
                        message: "the token has characters that no header may carry".into(),
                        hint: "check SIGIL_TOKEN for a stray newline".into(),
                        details: None,
                        exit: 2,
                    })
                })?;
                value.set_sensitive(true);
                Auth(Some(value))
            }
            None => Auth(None),
        };
        let target = Arc::new(target);
        let last_dial = Arc::new(Mutex::new(None));
        let (to, slot) = (Arc::clone(&target), Arc::clone(&last_dial));
        let connector = tower::service_fn(move |_: http::Uri| {
            let (to, slot) = (Arc::clone(&to), Arc::clone(&slot));
            async move {
                let dialled = dial::dial(&to).await;
                if let Ok(mut slot) = slot.lock() {
                    *slot = dialled.as_ref().err().cloned();
                }
                dialled.map(TokioIo::new)
            }
        });
        // the name is not used: the connector knows where to go
        let channel = Endpoint::from_static("http://agent.sigil.invalid")
            .http2_keep_alive_interval(Duration::from_secs(15))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            // a log over a slow, long line: 64 KiB a round trip would be the limit
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(2 << 20)
            .user_agent(concat!("sigil/", env!("CARGO_PKG_VERSION")))
            .map_err(|e| LinkError::Broken { why: e.to_string() })?
            .connect_with_connector(connector)
            .await
            .map_err(|e| {
                taken(&last_dial).unwrap_or_else(|| LinkError::Unreachable {
                    address: target.address.to_string(),
                    why: convert::root_cause(&e),
                })
            })?;
        Ok(Self { wire: InterceptedService::new(channel, auth), last_dial })
    }

    fn error(&self, status: &Status) -> LinkError {
        match convert::status(status) {
            LinkError::Broken { why } => taken(&self.last_dial).unwrap_or(LinkError::Broken { why }),
            other => other,
        }
    }

    async fn ask<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, LinkError> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.error(&status)),
            Err(_) => Err(LinkError::Slow { what, seconds: CALL_TIMEOUT.as_secs() }),
        }
    }

    fn operations_client(&self) -> v1::operations_client::OperationsClient<Wire> {
        v1::operations_client::OperationsClient::new(self.wire.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    fn deployments_client(&self) -> v1::deployments_client::DeploymentsClient<Wire> {
        v1::deployments_client::DeploymentsClient::new(self.wire.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    fn secrets_client(&self) -> v1::secrets_client::SecretsClient<Wire> {
        v1::secrets_client::SecretsClient::new(self.wire.clone())
    }

    fn policies_client(&self) -> v1::policies_client::PoliciesClient<Wire> {
        v1::policies_client::PoliciesClient::new(self.wire.clone())
    }

    fn waivers_client(&self) -> v1::waivers_client::WaiversClient<Wire> {
        v1::waivers_client::WaiversClient::new(self.wire.clone())
    }

    fn pins_client(&self) -> v1::pins_client::PinsClient<Wire> {
        v1::pins_client::PinsClient::new(self.wire.clone())
    }

    /// The agent and its host.
    pub async fn info(&self) -> Result<AgentInfo, LinkError> {
        let mut client = v1::agent_client::AgentClient::new(self.wire.clone());
        Ok(convert::info(self.ask("info", client.info(v1::InfoRequest {})).await?))
    }

    /// Sends a folder's archive. An `Err` from the producer leaves the upload unfinished: the caller drops the future.
    pub async fn upload(&self, label: &str, chunks: mpsc::Receiver<Result<Vec<u8>, ()>>) -> Result<Upload, LinkError> {
        let mut client = v1::sources_client::SourcesClient::new(self.wire.clone());
        let header = v1::UploadChunk { request_id: request_id(), label: label.to_owned(), size: 0, data: Vec::new() };
        let data = stream::unfold(chunks, |mut chunks| async move {
            match chunks.recv().await? {
                Ok(data) => Some((v1::UploadChunk { data, ..Default::default() }, chunks)),
                // an end would make the agent keep half a tree
                Err(()) => std::future::pending().await,
            }
        });
        let reply = client.upload(stream::iter([header]).chain(data)).await.map_err(|s| self.error(&s))?.into_inner();
        Ok(Upload { id: reply.upload_id, bytes: reply.bytes })
    }

    /// Asks for a change. A broken link is tried again with the same request id, so nothing is done twice.
    pub async fn start(&self, change: Change) -> Result<Operation, LinkError> {
        let request = v1::StartRequest { request_id: request_id(), what: Some(wire_change(change)) };
        let mut backoff = resume::Backoff::default();
        loop {
            let mut client = self.operations_client();
            match self.ask("start", client.start(request.clone())).await {
                Ok(operation) => return Ok(convert::operation(operation)),
                Err(e) if e.is_transient() && backoff.tries() < 5 => tokio::time::sleep(backoff.next()).await,
                Err(e) => return Err(e),
            }
        }
    }

    /// One operation.
    pub async fn operation(&self, id: &str) -> Result<Operation, LinkError> {
        let mut client = self.operations_client();
        let request = v1::OperationId { id: id.to_owned() };
        Ok(convert::operation(self.ask("operation", client.get(request)).await?))
    }

    /// The newest operations, of one deployment when a name is given.
    pub async fn operations(&self, deployment: &str, limit: u32) -> Result<Vec<Operation>, LinkError> {
        let mut client = self.operations_client();
        let request = v1::ListOperationsRequest { deployment: deployment.to_owned(), limit };
        let reply = self.ask("operations", client.list(request)).await?;
        Ok(reply.operations.into_iter().map(convert::operation).collect())
    }

    /// Ends an operation early.
    pub async fn cancel(&self, id: &str) -> Result<Operation, LinkError> {
        let mut client = self.operations_client();
        let request = v1::OperationId { id: id.to_owned() };
        Ok(convert::operation(self.ask("cancel", client.cancel(request)).await?))
    }

    /// An operation's events after `after`, then new ones until it ends; goes on over a broken link.
    pub fn follow(&self, id: &str, after: u64) -> OperationFollow {
        OperationFollow::new(self.clone(), id, after)
    }

    /// Every deployment now, by name.
    pub async fn deployments(&self) -> Result<Vec<Deployment>, LinkError> {
        let mut watch = self.watch();
        let mut fleet = Fleet::default();
        let mut losses = 0;
        let snapshot = async {
            while let Some(step) = watch.next().await? {
                match step {
                    Progress::Item(update) => {
                        let complete = update.complete;
                        fleet.apply(update);
                        if complete {
                            break;
                        }
                    }
                    Progress::Lost { why, .. } if losses == 3 => return Err(LinkError::Broken { why }),
                    Progress::Lost { .. } => losses += 1,
                    Progress::Back => {}
                }
            }
            Ok::<_, LinkError>(())
        };
        tokio::time::timeout(CALL_TIMEOUT, snapshot)
            .await
            .map_err(|_| LinkError::Slow { what: "list", seconds: CALL_TIMEOUT.as_secs() })??;
        Ok(fleet.by_name().into_iter().cloned().collect())
    }

    /// A snapshot, then changes, over broken links.
    pub fn watch(&self) -> DeploymentWatch {
        DeploymentWatch::new(self.clone())
    }

    /// Everything about one deployment.
    pub async fn get(&self, name: &str) -> Result<Detail, LinkError> {
        let mut client = self.deployments_client();
        let request = v1::NameRequest { name: name.to_owned() };
        convert::detail(self.ask("get", client.get(request)).await?)
    }

    /// What is in a release's image, and where that came from; 0: the release that serves. Both JSON.
    pub async fn bill(&self, name: &str, release: u32) -> Result<(String, String), LinkError> {
        let request = v1::BillRequest { name: name.to_owned(), release };
        let reply = self.ask("sbom", self.deployments_client().bill(request)).await?;
        Ok((reply.cyclonedx, reply.provenance))
    }

    /// Log lines; resumes by cursor over broken links.
    pub fn logs(&self, query: LogQuery) -> Logs {
        Logs::new(self.clone(), query)
    }

    /// Lines of the audit log as they are; goes on over broken links.
    pub fn audit(&self, query: AuditQuery) -> AuditLines {
        AuditLines::new(self.clone(), query)
    }

    /// Live frames of a deployment; a broken link ends them.
    pub async fn tap(&self, name: &str) -> Result<Frames, LinkError> {
        let mut client = v1::taps_client::TapsClient::new(self.wire.clone()).max_decoding_message_size(MESSAGE_MAX);
        let request = v1::NameRequest { name: name.to_owned() };
        let frames = client.follow(request).await.map_err(|s| self.error(&s))?.into_inner();
        Ok(Frames { link: self.clone(), frames })
    }

    /// Opens an MCP session with its configuration and its first message.
    pub async fn mcp(
        &self,
        deployment: &str,
        config: HashMap<String, String>,
        first: Vec<u8>,
    ) -> Result<McpSession, LinkError> {
        McpSession::open(self.clone(), deployment, config, first).await
    }

    /// Sets a secret.
    pub async fn set_secret(
        &self,
        name: &str,
        value: Vec<u8>,
        place: &SecretPlace,
        username: &str,
    ) -> Result<Secret, LinkError> {
        let request = setting(name, value, place, username);
        let mut client = self.secrets_client();
        let set = match place {
            SecretPlace::Own => self.ask("secret set", client.set_own(request)).await?,
            _ => self.ask("secret set", client.set(request)).await?,
        };
        Ok(convert::secret(set))
    }

    /// Sets a new value and asks for new containers of whoever uses it, unless told not to.
    pub async fn rotate_secret(
        &self,
        name: &str,
        value: Vec<u8>,
        place: &SecretPlace,
        username: &str,
        no_roll: bool,
    ) -> Result<(Secret, Vec<Rolled>), LinkError> {
        let request = v1::RotateSecretRequest { secret: Some(setting(name, value, place, username)), no_roll };
        let reply = self.ask("secret rotate", self.secrets_client().rotate(request)).await?;
        let rolled = |r: v1::Rolled| Rolled { deployment: r.deployment, operation: r.operation, note: r.note };
        let secret = convert::secret(reply.secret.unwrap_or_default());
        Ok((secret, reply.rolled.into_iter().map(rolled).collect()))
    }

    /// A secret's value, and its login name.
    pub async fn reveal_secret(&self, name: &str, place: &SecretPlace) -> Result<(Vec<u8>, String), LinkError> {
        let v1::SetSecretRequest { name, deployment, purpose, user, team, .. } = setting(name, Vec::new(), place, "");
        let request = v1::RevealSecretRequest { name, deployment, purpose, user, team };
        let reply = self.ask("secret reveal", self.secrets_client().reveal(request)).await?;
        Ok((reply.value, reply.username))
    }

    /// Sets many: all of them, or none.
    pub async fn import_secrets(
        &self,
        secrets: Vec<(String, Vec<u8>)>,
        place: &SecretPlace,
        dry_run: bool,
    ) -> Result<Vec<Secret>, LinkError> {
        let secrets = secrets.into_iter().map(|(name, value)| v1::ImportedSecret { name, value }).collect();
        let v1::SetSecretRequest { request_id, deployment, team, .. } = setting("", Vec::new(), place, "");
        let request = v1::ImportSecretsRequest { request_id, secrets, deployment, dry_run, team };
        let reply = self.ask("secret import", self.secrets_client().import(request)).await?;
        Ok(reply.secrets.into_iter().map(convert::secret).collect())
    }

    /// Secrets without values; of one deployment when a name is given.
    pub async fn secrets(&self, deployment: &str) -> Result<Vec<Secret>, LinkError> {
        let request = v1::ListSecretsRequest { deployment: deployment.to_owned() };
        let reply = self.ask("secret ls", self.secrets_client().list(request)).await?;
        Ok(reply.secrets.into_iter().map(convert::secret).collect())
    }

    /// The caller's own secrets, without values.
    pub async fn own_secrets(&self) -> Result<Vec<Secret>, LinkError> {
        let request = v1::ListSecretsRequest::default();
        let reply = self.ask("secret ls", self.secrets_client().list_own(request)).await?;
        Ok(reply.secrets.into_iter().map(convert::secret).collect())
    }

    /// Deletes a secret.
    pub async fn remove_secret(&self, name: &str, place: &SecretPlace) -> Result<(), LinkError> {
        let v1::SetSecretRequest { request_id, name, deployment, purpose, user, team, .. } =
            setting(name, Vec::new(), place, "");
        let request = v1::RemoveSecretRequest { request_id, name, deployment, purpose, user, team };
        let mut client = self.secrets_client();
        match place {
            SecretPlace::Own => self.ask("secret rm", client.remove_own(request)).await.map(drop),
            _ => self.ask("secret rm", client.remove(request)).await.map(drop),
        }
    }

    /// Who may call a deployment, and what.
    pub async fn policy(&self, name: &str) -> Result<Policy, LinkError> {
        let request = v1::NameRequest { name: name.to_owned() };
        Ok(convert::policy(self.ask("policy get", self.policies_client().get(request)).await?))
    }

    /// Sets it. `merge` leaves what `text` (TOML) does not name.
    pub async fn set_policy(&self, name: &str, text: String, merge: bool) -> Result<Policy, LinkError> {
        let request = v1::SetPolicyRequest { request_id: request_id(), name: name.to_owned(), policy: text, merge };
        Ok(convert::policy(self.ask("policy set", self.policies_client().set(request)).await?))
    }

    /// Findings of a deployment's source that somebody answers for.
    pub async fn waivers(&self, name: &str) -> Result<Vec<Waiver>, LinkError> {
        let request = v1::NameRequest { name: name.to_owned() };
        Ok(convert::waivers(self.ask("waiver ls", self.waivers_client().list(request)).await?))
    }

    /// Answers for one more; `until` is the last day (`2027-01-31`).
    pub async fn add_waiver(
        &self,
        name: &str,
        finding: &str,
        reason: &str,
        until: &str,
    ) -> Result<Vec<Waiver>, LinkError> {
        let (finding, reason, until) = (finding.to_owned(), reason.to_owned(), until.to_owned());
        let waiver = Some(v1::Waiver { finding, reason, until });
        let request = v1::AddWaiverRequest { request_id: request_id(), name: name.to_owned(), waiver };
        Ok(convert::waivers(self.ask("waiver add", self.waivers_client().add(request)).await?))
    }

    /// Nobody answers for it any more.
    pub async fn remove_waiver(&self, name: &str, finding: &str) -> Result<Vec<Waiver>, LinkError> {
        let (name, finding) = (name.to_owned(), finding.to_owned());
        let request = v1::RemoveWaiverRequest { request_id: request_id(), name, finding };
        Ok(convert::waivers(self.ask("waiver rm", self.waivers_client().remove(request)).await?))
    }

    /// The tool pins of a release; 0 is the desired one.
    pub async fn pins(&self, name: &str, release: u32) -> Result<Pins, LinkError> {
        let request = v1::GetPinsRequest { name: name.to_owned(), release };
        Ok(convert::pins(self.ask("pins", self.pins_client().get(request)).await?))
    }

    /// Pins held tools as they are now, or dismisses that form: names, and digests of what was looked at.
    pub async fn answer_pins(
        &self,
        name: &str,
        release: u32,
        tools: Vec<(String, String)>,
        dismiss: bool,
    ) -> Result<Pins, LinkError> {
        let tools = tools.into_iter().map(|(name, digest)| v1::ToolForm { name, digest }).collect();
        let request =
            v1::AnswerPinsRequest { request_id: request_id(), name: name.to_owned(), release, tools, dismiss };
        Ok(convert::pins(self.ask("pins approve", self.pins_client().answer(request)).await?))
    }
}

/// See [`Link::tap`].
pub struct Frames {
    link: Link,
    frames: tonic::Streaming<v1::TapFrame>,
}

impl Frames {
    /// The next frame; `None` when the agent has ended them.
    pub async fn next(&mut self) -> Result<Option<Frame>, LinkError> {
        match self.frames.message().await {
            Ok(frame) => Ok(frame.map(convert::frame)),
            Err(status) => Err(self.link.error(&status)),
        }
    }
}

fn taken(slot: &Mutex<Option<LinkError>>) -> Option<LinkError> {
    slot.lock().ok().and_then(|mut slot| slot.take())
}

fn request_id() -> String {
    ulid::Ulid::generate().to_string()
}

fn setting(name: &str, value: Vec<u8>, place: &SecretPlace, username: &str) -> v1::SetSecretRequest {
    let mut request = v1::SetSecretRequest {
        request_id: request_id(),
        name: name.to_owned(),
        value,
        username: username.to_owned(),
        ..v1::SetSecretRequest::default()
    };
    match place {
        SecretPlace::Team(name) => request.team.clone_from(name),
        SecretPlace::Own => {}
        SecretPlace::Deployment(name) => request.deployment.clone_from(name),
        SecretPlace::Source => request.purpose = "source".to_owned(),
        SecretPlace::User(id) => request.user.clone_from(id),
    }
    request
}

fn wire_source(source: SourceRef) -> v1::SourceRef {
    v1::SourceRef { text: source.text, upload_id: source.upload.unwrap_or_default() }
}

fn wire_change(change: Change) -> v1::start_request::What {
    use v1::start_request::What;
    match change {
        Change::Deploy(d) => What::Deploy(v1::DeployRequest {
            name: d.name,
            source: Some(wire_source(d.source)),
            manifest: d.manifest.text,
            manifest_name: d.manifest.name,
            tier: d.tier,
            transport: d.transport,
            port: u32::from(d.port),
            env: d.env.into_iter().collect(),
            secrets: d.secrets.into_iter().collect(),
            config: d.config.into_iter().collect(),
            volumes: d.volumes,
            egress: d.egress,
            access: d.access,
            scaling: d.scaling,
            replicas: d.replicas,
            force: d.force,
            args: d.args,
            waivers: d
                .waivers
                .into_iter()
                .map(|(finding, reason, until)| v1::Waiver { finding, reason, until })
                .collect(),
            timeout_ms: d.timeout_ms,
            temporary_seconds: d.temporary_seconds,
            team: d.team,
            package: d.package,
        }),
        Change::Build { source, manifest, dry_run, force } => What::Build(v1::BuildRequest {
            source: Some(wire_source(source)),
            manifest: manifest.text,
            manifest_name: manifest.name,
            dry_run,
            force,
        }),
        Change::Scan { source } => What::Scan(v1::ScanRequest { source: Some(wire_source(source)) }),
        Change::Restart(name) => What::Restart(v1::NameRequest { name }),
        Change::Stop(name) => What::Stop(v1::NameRequest { name }),
        Change::Start(name) => What::Start(v1::NameRequest { name }),
        Change::Scale(name, replicas) => What::Scale(v1::ScaleRequest { name, replicas }),
        Change::Rollback(name, release) => What::Rollback(v1::RollbackRequest { name, release }),
        Change::Remove(name) => What::Remove(v1::NameRequest { name }),
    }
}
