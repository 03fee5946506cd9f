//! What the console knows about an agent, in its own words. Serialised as `cli.md` promises to scripts:
//! times RFC 3339 UTC, sizes in bytes, durations in milliseconds.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

/// The agent and its host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AgentInfo {
    /// Its identity.
    pub agent_id: String,
    /// Its version.
    pub version: String,
    /// Since when it runs.
    pub started_at: Option<Timestamp>,
    /// The host's name.
    pub hostname: String,
    /// Where its state is.
    pub data_dir: String,
    /// Base URL of the gateway.
    pub gateway: String,
    /// The container engine.
    pub engine: Option<Engine>,
    /// What is degraded, a line each.
    pub notes: Vec<String>,
    /// The agent's clock.
    pub now: Option<Timestamp>,
    /// Who the caller is to the agent.
    pub who: String,
    /// The highest role that the caller has on anything.
    pub role: String,
    /// Resident memory of the agent, bytes.
    pub memory_rss: u64,
    /// What the caller may.
    pub grants: Vec<Grant>,
}

/// The container engine as the agent sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Engine {
    /// `docker` or `podman`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The API version in use.
    pub api_version: String,
    /// Its socket.
    pub host: String,
    /// Whether it answers.
    pub reachable: bool,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// Log driver of our containers.
    pub log_driver: String,
    /// Why it does not answer, or what is odd.
    pub message: String,
}

/// A deployment as `ls` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Deployment {
    /// Its name now.
    pub name: String,
    /// `pending`, `building`, `starting`, `ready`, `degraded`, `failed`, `sleeping` or `stopped`.
    pub state: String,
    /// Replicas that serve.
    pub ready: u32,
    /// Replicas wanted.
    pub desired: u32,
    /// The release that serves, else the desired one.
    pub release: u32,
    /// Where it comes from.
    pub source: String,
    /// `http`, `sse` or `stdio`.
    pub transport: String,
    /// URL for MCP clients.
    pub endpoint: String,
    /// `healthy`, `degraded`, `unhealthy` or `unknown`.
    pub health: String,
    /// Requests a minute.
    pub rpm: f64,
    /// 99th percentile of the response time, milliseconds.
    pub p99_ms: f64,
    /// Share of failed requests, 0 to 1.
    pub error_rate: f64,
    /// Of the hard limit.
    pub cpu_percent: f64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Of the present replicas.
    pub restarts: u32,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// One line about its state.
    pub message: String,
    /// Immutable identity.
    pub id: String,
    /// The release that should serve.
    pub desired_release: u32,
    /// Open MCP sessions.
    pub sessions: u64,
    /// When its desired state last changed.
    pub changed_at: Option<Timestamp>,
    /// Resource tier.
    pub tier: String,
}

/// Everything about one deployment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Detail {
    /// As in a list.
    #[serde(flatten)]
    pub deployment: Deployment,
    /// What holds and what does not.
    pub conditions: Vec<Condition>,
    /// Its containers.
    pub replicas: Vec<Replica>,
    /// Kept releases, oldest first.
    pub releases: Vec<Release>,
    /// The last thing done to it.
    pub last_operation: Option<Operation>,
    /// What the reconciler would do now.
    pub plan: Vec<String>,
    /// Counts changes of the desired state.
    pub generation: u64,
    /// Why it last changed.
    pub reason: String,
    /// Last output of the last failed replica.
    pub last_output: Vec<String>,
    /// Who may call: `anonymous`, `key` or `oauth`; empty: an agent that does not say.
    pub access: String,
    /// Bundles that it belongs to.
    pub bundles: Vec<String>,
    /// Hosts that it may reach.
    pub egress: Vec<String>,
    /// Public hosts that are not listed are allowed too.
    pub egress_open: bool,
    /// `link`; `bridge`: nothing holds it to `egress`; empty: an agent that does not say.
    pub network: String,
    /// Hosts that it was refused, the newest first.
    pub refused: Vec<EgressRefusal>,
    /// How often it was refused one.
    pub refused_total: u64,
    /// Disk that its volumes take, bytes.
    pub volume_bytes: u64,
}

/// A host that a deployment was refused.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EgressRefusal {
    /// Name or address.
    pub host: String,
    /// Its port.
    pub port: u32,
    /// Why.
    pub why: String,
    /// How often since the agent's start.
    pub count: u64,
    /// The last time.
    pub last: Option<Timestamp>,
}

/// One thing that holds or not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Condition {
    /// What it is about.
    pub kind: String,
    /// Whether it holds.
    pub ok: bool,
    /// Why not, or why.
    pub reason: String,
    /// Since when.
    pub since: Option<Timestamp>,
}

/// One container of a deployment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replica {
    /// Its identity.
    pub instance: String,
    /// Of which release.
    pub release: u32,
    /// `creating`, `starting`, `gating`, `ready`, `draining`, `backing-off` or `stopping`.
    pub state: String,
    /// The engine's id.
    pub container: String,
    /// Since when it runs.
    pub started_at: Option<Timestamp>,
    /// How often it was restarted in place.
    pub restarts: u32,
    /// One line.
    pub message: String,
    /// Open MCP sessions.
    pub sessions: u64,
}

/// One image with one configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Release {
    /// Its number, from 1.
    pub number: u32,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// By whom.
    pub created_by: String,
    /// Pinned source.
    pub source: String,
    /// Image id.
    pub image: String,
    /// `pending`, `good` or `failed`.
    pub outcome: String,
    /// Why it failed.
    pub why: String,
    /// What was recognised in the source.
    pub recognised: String,
    /// The whole specification.
    pub spec: Option<Value>,
    /// Whether it serves now.
    pub serving: bool,
}

/// A deploy, build, restart or other change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Operation {
    /// Its identity.
    pub id: String,
    /// `deploy`, `build`, `scan`, `restart`, `stop`, `start`, `scale`, `rollback` or `remove`.
    pub kind: String,
    /// Name of the deployment, may be empty.
    pub deployment: String,
    /// `queued`, `running`, `succeeded`, `failed` or `cancelled`.
    pub state: String,
    /// The running or last step.
    pub step: String,
    /// Made or returned to; 0: none.
    pub release: u32,
    /// When it was asked for.
    pub created_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Who asked.
    pub created_by: String,
    /// One line for people.
    pub summary: String,
    /// Why it failed.
    pub error: Option<Problem>,
    /// What it made.
    pub result: Option<Value>,
}

impl Operation {
    /// Whether it still goes on.
    pub fn is_running(&self) -> bool {
        matches!(self.state.as_str(), "queued" | "running")
    }
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Problem {
    /// UPPER_SNAKE.
    pub code: String,
    /// What.
    pub message: String,
    /// What to do.
    pub hint: String,
    /// More for scripts.
    pub details: Option<Box<Value>>,
    /// Exit code of `cli.md`.
    #[serde(skip)]
    pub exit: u8,
}

/// One event of an operation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// From 1, without holes.
    pub seq: u64,
    /// When.
    pub time: Option<Timestamp>,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened in an operation.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A step began, ended or was left out.
    Step {
        /// `fetch`, `recognise`, `scan`, `build`, `release`, `start`, `gate`, `route`, `drain`, `ready`.
        name: String,
        /// `started`, `finished`, `failed` or `skipped`.
        state: String,
        /// One line, may be empty.
        message: String,
        /// How long it took.
        elapsed_ms: u64,
    },
    /// A line of a build or of the server.
    Output {
        /// `build`, `stdout` or `stderr`.
        stream: String,
        /// Without its newline.
        line: String,
    },
    /// One line for people.
    Note(String),
    /// It ended.
    Done(Box<Operation>),
}

/// A batch of log lines.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogBatch {
    /// By time.
    pub lines: Vec<LogLine>,
    /// What is missing.
    pub gaps: Vec<LogGap>,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// When.
    pub time: Option<Timestamp>,
    /// Whose.
    pub deployment: String,
    /// Of which replica.
    pub instance: String,
    /// `stdout`, `stderr`, `build` or `agent`.
    pub stream: String,
    /// Position in the deployment's log.
    pub seq: u64,
    /// Raw, without its newline.
    pub line: Vec<u8>,
    /// It was longer than the limit.
    pub cut: bool,
    /// Of which release.
    pub release: u32,
}

/// Lines that are missing.
#[derive(Debug, Clone, PartialEq)]
pub struct LogGap {
    /// Whose.
    pub deployment: String,
    /// How many.
    pub lost: u64,
    /// After which position.
    pub after_seq: u64,
    /// Why.
    pub reason: String,
}

/// Lines of the audit log.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AuditBatch {
    /// Without their ends, byte for byte.
    pub lines: Vec<Vec<u8>>,
    /// Lines that no filter can judge: they are no records.
    pub damaged: u64,
}

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// `team` (the first one), `team:<name>`, `deployment:<name>`, `user:<name>` or `source`.
    pub scope: String,
    /// Counts its values.
    pub version: u32,
    /// When it was last set.
    pub changed_at: Option<Timestamp>,
    /// By whom.
    pub changed_by: String,
    /// Deployments that ask for it.
    pub used_by: Vec<String>,
}

/// A key to be made.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// What it is for.
    pub label: String,
    /// `caller`, `viewer`, `operator`, `deployer` or `admin`.
    pub role: String,
    /// Whose; empty: who makes it.
    pub user: String,
    /// Patterns of deployments; empty: all.
    pub deployments: Vec<String>,
    /// Patterns of tools (`tool`, `deployment/tool`); empty: all.
    pub tools: Vec<String>,
    /// `60/min`; empty: no limit.
    pub rate: String,
    /// Requests at once; 0: no limit.
    pub concurrency: u32,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
}

/// A key without its text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Key {
    /// Public part.
    pub id: String,
    /// What it is for.
    pub label: String,
    /// `caller`, `viewer`, `operator`, `deployer` or `admin`.
    pub role: String,
    /// Whose it is.
    pub user: String,
    /// Patterns of deployments; empty: all.
    pub deployments: Vec<String>,
    /// Patterns of tools; empty: all.
    pub tools: Vec<String>,
    /// `60/min`; empty: no limit.
    pub rate: String,
    /// Requests at once; 0: no limit.
    pub concurrency: u32,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// When it was last used, within ten minutes.
    pub last_used_at: Option<Timestamp>,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
}

/// A role on something.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Grant {
    /// `viewer`, `operator`, `deployer`, `admin` or `caller`.
    pub role: String,
    /// `all`, `team:NAME`, `tag:TAG`, or a pattern of deployments' names.
    pub on: String,
}

/// Somebody.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct User {
    /// Immutable identity.
    pub id: String,
    /// The name now.
    pub name: String,
    /// Nothing of that user is taken.
    pub disabled: bool,
    /// What that one may.
    pub grants: Vec<Grant>,
    /// When it was added.
    pub created_at: Option<Timestamp>,
    /// By whom.
    pub created_by: String,
    /// How many keys are theirs; of one that was just removed, how many were revoked.
    pub keys: u32,
}

/// Deployments and secrets that belong together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Team {
    /// Immutable identity.
    pub id: String,
    /// The name now.
    pub name: String,
    /// When it was made; absent for the first one.
    pub created_at: Option<Timestamp>,
    /// By whom.
    pub created_by: String,
    /// `ada (deployer)`
    pub members: Vec<String>,
    /// Names.
    pub deployments: Vec<String>,
}

/// Who may call a deployment, and what.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// The deployment.
    pub name: String,
    /// TOML.
    pub text: String,
    /// What holds: `anonymous`, `key` or `oauth`.
    pub access: String,
}

/// A finding that somebody answers for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Waiver {
    /// The rule, or `rule:path`.
    pub finding: String,
    /// Why it may stay.
    pub reason: String,
    /// The last day on which it counts.
    pub until: String,
    /// Who said so.
    pub by: String,
    /// When.
    pub at: Option<Timestamp>,
    /// That day has passed.
    pub over: bool,
}

/// How a release's tools looked when it was first ready to serve, and which are held.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pins {
    /// The deployment.
    pub name: String,
    /// Its release.
    pub release: u32,
    /// `None`: nothing is pinned yet.
    pub pinned_at: Option<Timestamp>,
    /// What the policy says: `enforce`, `warn` or `off`.
    pub pinning: String,
    /// By name.
    pub tools: Vec<PinnedTool>,
}

/// One tool of [`Pins`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PinnedTool {
    /// The server's name for it.
    pub name: String,
    /// `pinned`, or why it is held: `changed`, `added`, `poisoned`.
    pub state: String,
    /// SHA-256 of what is pinned; empty: it never was.
    pub digest: String,
    /// And of what is held.
    pub live_digest: String,
    /// JSON of what is pinned, of a held tool.
    pub pinned: String,
    /// JSON of what is held.
    pub live: String,
    /// What the scanner says of it.
    pub findings: Vec<String>,
    /// Held since.
    pub since: Option<Timestamp>,
}

impl PinnedTool {
    /// Whether it waits for somebody to look at it.
    pub fn is_held(&self) -> bool {
        self.state != "pinned"
    }
}

/// One JSON-RPC message as it passed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Frame {
    /// When.
    pub time: Option<Timestamp>,
    /// From the client to the server.
    pub from_client: bool,
    /// Who calls.
    pub caller: String,
    /// Tells sessions apart; empty: none.
    pub session: String,
    /// Its method; `result` or `error` for an answer.
    pub method: String,
    /// Its id as it was written.
    pub id: String,
    /// Since the request came in.
    pub took_ms: f64,
    /// Length of the whole message, bytes.
    pub size: u64,
    /// The message, secrets masked.
    pub message: String,
    /// Whether that is only its beginning.
    pub cut: bool,
    /// An answer that the gateway had kept: the server was not asked.
    pub cached: bool,
    /// Messages before this that passed too fast; then there is nothing else here.
    pub lost: u64,
}
