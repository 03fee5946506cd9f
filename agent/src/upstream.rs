//! Owns: MCP to one replica, over HTTP or stdio.
//! May touch: initlink, tail for what a stdio server prints beside the protocol, the engine's CPU quota while a process
//! starts.
//! Never: routes or authenticates.
//! Tested by: unit tests here and in `gateway`, `tests/docker`.

pub(crate) mod gate;
pub(crate) mod http;
mod lines;
#[cfg(test)]
pub(crate) mod local;
pub mod nap;
pub mod quota;
pub mod spare;
pub(crate) mod sse;
pub(crate) mod stdio;
mod stream;
pub(crate) mod streamable;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretString;
use sigil_core::health::Outcome;
use sigil_core::jsonrpc::Id;
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo, ReleaseSpec, SessionConfig, Stream, Transport};
use sigil_core::pins::View;
use sigil_core::policy::{Access, Rules};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::initlink::{Exit, Link, LinkError, Pipes, Process};
use crate::tail::Tail;

/// Longest message of a stdio server, bytes; a longer line is dropped and said so in the log.
pub const MAX_LINE: usize = 16 << 20;

/// What reconcile lets the gateway see. A new table replaces the old one whole.
#[derive(Debug, Default, Clone)]
pub struct RouteTable {
    /// Deployments by name.
    pub routes: BTreeMap<String, Arc<Route>>,
    /// Set once reconcile has made it: a missing name is then an unknown one.
    pub known: bool,
}

/// One deployment, as the gateway may know it.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its identity.
    pub id: DeploymentId,
    /// Its name.
    pub name: String,
    /// The id of its team.
    pub team: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Replicas that serve new sessions and calls.
    pub ready: Vec<Replica>,
    /// Replicas that only finish what they have (draining).
    pub draining: Vec<Replica>,
    /// A replica is expected soon: hold calls (bounded) instead of refusing them.
    pub expected: bool,
    /// Instances that a former agent started and that are being taken over: their sessions wait for them. `None`: the
    /// engine has not been seen yet, so it may be any.
    pub returning: Option<Vec<InstanceId>>,
    /// Why nothing is ready, for the caller.
    pub message: String,
    /// Header, query and body secrets.
    pub injected: Arc<Vec<(sigil_core::model::Inject, secrecy::SecretString)>>,
    /// Secrets that each caller has of its own, as the desired release asks for them.
    pub own: Arc<Vec<sigil_core::model::SecretUse>>,
    /// The release that is to serve.
    pub release: ReleaseNo,
    /// The release of which instances are on their way: those of another are about to go.
    pub coming: Option<ReleaseNo>,
    /// Who may call.
    pub access: Access,
    /// What callers may see and use.
    pub rules: Arc<Rules>,
    /// What lists of tools are compared with: the pins of the releases that serve or are to.
    pub pins: View,
    /// What callers may set for a session, as the desired release says.
    pub session: Option<Box<SessionConfig>>,
    /// Whether its sessions may be begun again, as the desired release says.
    pub replayable: bool,
    /// Whether it is awake; who sends it something goes through here.
    pub nap: nap::Nap,
}

/// One replica that can be called.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Its deployment.
    pub deployment: DeploymentId,
    /// The release it runs.
    pub release: ReleaseNo,
    /// The replica itself.
    pub instance: InstanceId,
    /// How its server is started and spoken to.
    pub spec: Arc<ReleaseSpec>,
    /// Its init.
    pub link: Link,
    /// Environment of stdio processes (plain and secret).
    pub env: Arc<Vec<(String, SecretString)>>,
    /// Its CPU quota, wide while a session's process starts.
    pub quota: quota::Quota,
    /// Its process that waits for a session (stdio).
    pub spare: spare::Spare,
}

/// Why a replica did not answer as an MCP server.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UpstreamError {
    /// It is no MCP server, or not one that works.
    #[error("{what}")]
    Gate {
        /// What was seen; may have several lines (the server's last output).
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// Its init could not be reached.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl UpstreamError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Gate { hint, .. } => hint.clone(),
            Self::Link(LinkError::Spawn { .. }) => "check the command in the manifest: it runs inside the image".into(),
            Self::Link(_) => "the container's init did not answer; see `sigil logs`".into(),
        }
    }
}

/// Before the server's last output in the words of a [`UpstreamError::Gate`].
pub const LAST_OUTPUT: &str = "; its last output:";

/// What keys of processes begin with that all stateless requests share. Nothing but connections of one agent uses them, so
/// the next one ends them.
pub(crate) const SHARED_PREFIX: &str = "m-";

/// The `_meta` of our own stateless requests (2026-07-28): with every capability of clients, so that a server shows all.
pub(crate) const MODERN_META: &str = concat!(
    r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":"#,
    r#"{"roots":{"listChanged":true},"sampling":{"context":{},"tools":{}},"elicitation":{"form":{},"url":{}}},"#,
    r#""io.modelcontextprotocol/clientInfo":"#,
    r#"{"name":"sigil","version":""#,
    env!("CARGO_PKG_VERSION"),
    r#""}}"#
);

/// What the gate learnt.
#[derive(Debug, Clone)]
pub struct Handshake {
    /// The server's name for itself; may be empty.
    pub server_name: String,
    /// Its version; may be empty.
    pub server_version: String,
    /// The revision of MCP that was agreed on.
    pub protocol_version: String,
    /// The `tools` array, as the server sent it (all pages joined).
    pub tools: Box<serde_json::value::RawValue>,
    /// How many tools that is.
    pub tool_count: usize,
    /// From the gate's start to its end.
    pub elapsed: Duration,
}

/// How a replica goes through the gate.
pub struct GateOptions<'a> {
    /// From the first try to giving up.
    pub timeout: Duration,
    /// Reads what the container needs of its memory now, bytes; `None` where that cannot be read.
    pub measure: &'a (dyn Fn() -> Option<u64> + Send + Sync),
    /// stdio: the spare process starts beside the gate's own, and nothing is measured.
    pub together: bool,
}

/// The gate: a real handshake (`initialize`, `notifications/initialized`; or `server/discover` where a server speaks
/// only the stateless era) and `tools/list` (all pages), retried until the server listens or time is up. For stdio
/// it starts a process of its own, measures what that takes, ends it, and keeps garbage on stdout as marked log lines;
/// the replica's spare process starts as soon as there is memory for it.
pub async fn gate(replica: &Replica, tail: &Tail, options: &GateOptions<'_>) -> Result<Handshake, UpstreamError> {
    let endpoint = Endpoint::new(replica, tail, TaskTracker::new());
    gate::run(&Arc::new(endpoint), options).await
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed {
    /// In the words of [`sigil_core::health`].
    pub outcome: Outcome,
    /// How long the answer took.
    pub took: Duration,
    /// Its tools, as a number that differs with them; `None`: it was not asked.
    pub tools: Option<u64>,
    /// It speaks the stateless era only: the next probe need not try the other.
    pub modern: bool,
}

/// Looks whether a replica that serves still answers as an MCP server. A stdio server is asked through the process that waits
/// for its first session; none is started for it.
pub async fn probe(replica: &Replica, tail: &Tail, modern: bool, timeout: Duration) -> Probed {
    let endpoint = Arc::new(Endpoint::new(replica, tail, TaskTracker::new()));
    look(&endpoint, modern, timeout).await
}

pub(crate) async fn look(endpoint: &Arc<Endpoint>, modern: bool, timeout: Duration) -> Probed {
    let began = std::time::Instant::now();
    let mut probed = Probed { outcome: Outcome::Good, took: Duration::ZERO, tools: None, modern };
    if !endpoint.wire.is_up() {
        probed.outcome = Outcome::Failed("its container does not answer".into());
        return probed;
    }
    if endpoint.spec.transport == Transport::Stdio {
        probed.outcome = match endpoint.spare.ping(endpoint, timeout).await {
            Some(Ok(())) => Outcome::Good,
            Some(Err(why)) => Outcome::Failed(why),
            None => Outcome::Skipped("its container is up, and no process waits that could be asked".into()),
        };
    } else {
        let rules = &endpoint.spec.health;
        match gate::look(endpoint, modern, rules.tool.as_deref(), timeout).await {
            Err(error) => {
                let text = error.to_string();
                probed.outcome = Outcome::Failed(text.lines().next().unwrap_or_default().to_owned());
            }
            Ok(found) => {
                (probed.tools, probed.modern) = (Some(found.tools), found.modern);
                if let (Some(why), Some(tool)) = (found.tool, &rules.tool) {
                    probed.outcome = Outcome::Poor(format!("its tool {tool} fails: {why}"));
                }
            }
        }
    }
    probed.took = began.elapsed();
    let slow = Duration::from_millis(endpoint.spec.health.slow_ms.into());
    if probed.outcome == Outcome::Good && probed.took > slow {
        probed.outcome = Outcome::Poor(format!("slow: {} ms", probed.took.as_millis()));
    }
    probed
}

/// Takes over what a former agent left in a replica that goes on: the process that waits for a session. Answers how many
/// processes there are.
pub async fn adopt(replica: &Replica, tail: &Tail) -> Result<u64, LinkError> {
    let endpoint = Arc::new(Endpoint::new(replica, tail, TaskTracker::new()));
    endpoint.spare.adopt(&endpoint).await
}

/// How bytes get to a replica.
#[derive(Debug, Clone)]
pub(crate) enum Wire {
    /// Through the container's init.
    Link(Link),
    /// A server within the agent.
    Inside(Arc<dyn Inside>),
    /// Processes and ports of this host, for tests.
    #[cfg(test)]
    Local(Arc<local::Local>),
}

/// A server within the agent: it has conversations and no processes.
pub(crate) trait Inside: Send + Sync + std::fmt::Debug {
    /// Begins one; `None` when the agent is ending.
    fn converse(&self) -> Option<Conversation>;
}

/// What a server within the agent has not.
fn no_process() -> LinkError {
    LinkError::Io("this server runs within the agent and has no processes".into())
}

/// A process with its pipes; dropping them ends nothing ([`Wire::close`] does).
#[derive(Debug)]
pub(crate) struct Piped {
    pub(crate) stdin: tokio::net::unix::pipe::Sender,
    pub(crate) stdout: tokio::net::unix::pipe::Receiver,
    pub(crate) exit: watch::Receiver<Option<Exit>>,
}

impl From<Pipes> for Piped {
    fn from(pipes: Pipes) -> Self {
        Self { stdin: pipes.stdin, stdout: pipes.stdout, exit: pipes.exit }
    }
}

impl Wire {
    /// Whether it is in reach now: a container that was killed is not, before anybody has decided what becomes of it.
    pub(crate) fn is_up(&self) -> bool {
        match self {
            Self::Link(link) => link.is_up(),
            Self::Inside(_) => true,
            #[cfg(test)]
            Self::Local(local) => local.is_up(),
        }
    }

    pub(crate) async fn dial(&self, port: u16) -> Result<tokio::net::TcpStream, LinkError> {
        let stream = match self {
            Self::Link(link) => link.dial(port).await?,
            Self::Inside(_) => return Err(no_process()),
            #[cfg(test)]
            Self::Local(local) => local.dial(port).await?,
        };
        // Nagle and delayed acknowledgement together cost 40 ms a message
        stream.set_nodelay(true).map_err(|e| LinkError::Io(e.to_string()))?;
        Ok(stream)
    }

    pub(crate) async fn spawn(&self, key: &str, process: Process) -> Result<Piped, LinkError> {
        match self {
            Self::Link(link) => link.spawn(key, process).await.map(Piped::from),
            Self::Inside(_) => Err(no_process()),
            #[cfg(test)]
            Self::Local(local) => local.spawn(key, &process),
        }
    }

    /// The pipes of a process of an earlier agent; `None` when init has no such process, or is ending it.
    pub(crate) async fn resume(&self, key: &str) -> Result<Option<Piped>, LinkError> {
        match self {
            Self::Link(link) => Ok(link.resume(key).await?.map(Piped::from)),
            Self::Inside(_) => Ok(None),
            #[cfg(test)]
            Self::Local(local) => local.resume(key),
        }
    }

    pub(crate) async fn close(&self, key: &str, grace: Duration) {
        let closed = match self {
            Self::Link(link) => link.close(key, grace).await,
            // its conversation ends with its input
            Self::Inside(_) => Ok(()),
            #[cfg(test)]
            Self::Local(local) => local.close(key),
        };
        if let Err(error) = closed {
            tracing::debug!(key, %error, "a process was not closed");
        }
    }

    /// Whether [`Self::rename`] works with this init.
    pub(crate) fn renames(&self) -> bool {
        match self {
            Self::Link(link) => link.renames(),
            Self::Inside(_) => false,
            #[cfg(test)]
            Self::Local(_) => true,
        }
    }

    /// A running process goes on under another key.
    pub(crate) async fn rename(&self, key: &str, to: &str) -> Result<(), LinkError> {
        match self {
            Self::Link(link) => link.rename(key, to).await,
            Self::Inside(_) => Err(no_process()),
            #[cfg(test)]
            Self::Local(local) => local.rename(key, to),
        }
    }

    /// Keys of the processes that run.
    pub(crate) async fn keys(&self) -> Result<Vec<String>, LinkError> {
        match self {
            Self::Link(link) => Ok(link.processes().await?.into_iter().map(|p| p.key).collect()),
            Self::Inside(_) => Ok(Vec::new()),
            #[cfg(test)]
            Self::Local(local) => Ok(local.keys()),
        }
    }

    /// How the container's main process ended, if it did.
    pub(crate) fn main_exit(&self) -> Option<Exit> {
        match self {
            Self::Link(link) => link.main_exit().borrow().clone(),
            Self::Inside(_) => None,
            #[cfg(test)]
            Self::Local(_) => None,
        }
    }
}

/// Where lines of a stdio server's stdout go that are no protocol.
#[derive(Debug, Clone)]
pub(crate) enum Stray {
    /// The deployment's log.
    Tail(Tail),
    /// A server within the agent has no lines.
    Nowhere,
    /// A test.
    #[cfg(test)]
    Test(mpsc::Sender<Bytes>),
}

/// A replica with what its callers share.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) deployment: DeploymentId,
    pub(crate) release: ReleaseNo,
    pub(crate) instance: InstanceId,
    pub(crate) spec: Arc<ReleaseSpec>,
    pub(crate) env: Arc<Vec<(String, SecretString)>>,
    pub(crate) quota: quota::Quota,
    pub(crate) spare: spare::Spare,
    pub(crate) wire: Wire,
    pub(crate) stray: Stray,
    pub(crate) pool: http::Pool,
    /// What a connection over legacy SSE carries beside its path.
    pub(crate) carried: Option<Box<streamable::Carried>>,
    pub(crate) tasks: TaskTracker,
}

impl Endpoint {
    pub(crate) fn new(replica: &Replica, tail: &Tail, tasks: TaskTracker) -> Self {
        let looks = (replica.spec.transport == Transport::Sse).then(|| gate::looks(&replica.spec));
        Self {
            deployment: replica.deployment,
            release: replica.release,
            instance: replica.instance,
            spec: replica.spec.clone(),
            env: replica.env.clone(),
            quota: replica.quota.clone(),
            spare: replica.spare.clone(),
            wire: Wire::Link(replica.link.clone()),
            stray: Stray::Tail(tail.clone()),
            pool: http::Pool::default(),
            carried: looks.map(Box::new),
            tasks,
        }
    }

    /// The same replica, for callers that want it started or spoken to in another way. No process waits for them.
    pub(crate) fn like(other: &Self) -> Self {
        let spare = spare::Spare::default();
        other.spare.memory().into_iter().for_each(|bytes| spare.measured(bytes));
        Self {
            deployment: other.deployment,
            release: other.release,
            instance: other.instance,
            spec: other.spec.clone(),
            env: other.env.clone(),
            quota: other.quota.clone(),
            spare,
            wire: other.wire.clone(),
            stray: other.stray.clone(),
            pool: http::Pool::default(),
            carried: None,
            tasks: other.tasks.clone(),
        }
    }

    /// Keeps a line that is no protocol.
    pub(crate) async fn stray(&self, line: Bytes) {
        match &self.stray {
            Stray::Tail(tail) => {
                let now = jiff::Timestamp::now();
                tail.append(self.deployment, self.release, Some(self.instance), Stream::Stdout, now, line).await;
            }
            Stray::Nowhere => {}
            #[cfg(test)]
            Stray::Test(tx) => drop(tx.send(line).await),
        }
    }

    /// The server's last words on stderr, for an error; they may come a moment after its end.
    pub(crate) async fn last_words(&self) -> Vec<String> {
        let Stray::Tail(tail) = &self.stray else { return Vec::new() };
        for attempt in 0..6 {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let lines = tail.last(self.deployment, Some(self.instance), 8).await;
            let lines: Vec<String> = lines
                .iter()
                .filter(|l| l.stream != Stream::Agent)
                .map(|l| String::from_utf8_lossy(&l.bytes).trim_end().to_owned())
                .filter(|l| !l.is_empty())
                .collect();
            if !lines.is_empty() {
                return lines;
            }
        }
        Vec::new()
    }

    /// A process of the server, for stdio.
    pub(crate) fn process(&self) -> Process {
        Process { argv: self.spec.command.clone(), env: self.env.as_ref().clone(), workdir: self.spec.workdir.clone() }
    }
}

/// A two-way stream of whole JSON-RPC messages with one server process (stdio), one connection (legacy SSE) or one
/// session over HTTP.
#[derive(Debug)]
pub(crate) struct Conversation {
    /// Messages to the server. A message must not hold a line break (see [`one_line`]).
    pub(crate) input: mpsc::Sender<Bytes>,
    /// Messages from it.
    pub(crate) output: Output,
    /// Cancelled: what was sent still goes out, then the server reads the end of its input, whoever holds `input`.
    pub(crate) end: CancellationToken,
}

/// A message with the request that it came for, where that is known.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) data: Bytes,
    pub(crate) about: Option<Id>,
}

impl From<Bytes> for Said {
    fn from(data: Bytes) -> Self {
        Self { data, about: None }
    }
}

/// What a server sends.
#[derive(Debug)]
pub(crate) enum Output {
    Stdio(stdio::Lines),
    Sse(sse::Channel),
    /// Messages that one of our own tasks brings.
    Told(mpsc::Receiver<Said>),
}

impl Output {
    /// The next thing that may be a message (begins with `{` or `[`); everything else went to the log. `Err` tells how
    /// the conversation ended. Cancel-safe.
    pub(crate) async fn next(&mut self, endpoint: &Endpoint) -> Result<Bytes, String> {
        match self {
            Self::Stdio(lines) => lines.next(endpoint).await,
            Self::Sse(channel) => channel.next().await,
            Self::Told(told) => told.recv().await.map(|said| said.data).ok_or_else(|| "was closed".to_owned()),
        }
    }

    /// Tells when nothing more comes, where that is known before [`Self::next`] says why.
    pub(crate) fn over(&self) -> CancellationToken {
        match self {
            Self::Stdio(lines) => lines.over(),
            Self::Sse(_) | Self::Told(_) => CancellationToken::new(),
        }
    }

    /// The same, with what is known about it. Cancel-safe.
    pub(crate) async fn said(&mut self, endpoint: &Endpoint) -> Result<Said, String> {
        match self {
            Self::Told(told) => told.recv().await.ok_or_else(|| "was closed".to_owned()),
            _ => self.next(endpoint).await.map(Said::from),
        }
    }
}

/// Opens a conversation. `key` names the process within the container.
pub(crate) async fn converse(endpoint: &Arc<Endpoint>, key: &str) -> Result<Conversation, UpstreamError> {
    if let Wire::Inside(server) = &endpoint.wire {
        return server.converse().ok_or_else(|| no_process().into());
    }
    match endpoint.spec.transport {
        Transport::Sse => sse::connect(endpoint).await,
        Transport::Stdio | Transport::Http => {
            let piped = endpoint.wire.spawn(key, endpoint.process()).await?;
            Ok(stdio::conversation(endpoint, piped, false))
        }
    }
}

/// A message without line breaks, for a transport of lines. JSON allows raw line breaks only between tokens, so a
/// space for each keeps the meaning; every other byte stays.
pub(crate) fn one_line(message: Bytes) -> Bytes {
    let trimmed = message.trim_ascii();
    if !trimmed.iter().any(|b| matches!(b, b'\n' | b'\r')) {
        return message.slice_ref(trimmed);
    }
    trimmed.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }).collect()
}

/// How a process ended, in words.
pub(crate) fn describe(exit: &Exit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(9)) => "was killed (signal 9; out of memory?)".into(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}
