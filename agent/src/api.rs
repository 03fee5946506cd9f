//! Owns: the gRPC link: its listeners, the rule of every call, wire types and statuses.
//! May touch: the handles of the other rooms, `<data>/agent.sock`, `/run/sigil/agent.sock`, `<data>/tls`.
//! Never: decides. Wire types stop at `convert`, errors at `status`.
//! Tested by: unit tests, a server on a real socket and on TLS; `tests/tests/proto.rs` for the contract.

mod agent;
mod alerts;
mod asker;
mod audit;
mod board;
mod convert;
mod deployments;
mod follows;
mod git;
mod health;
mod keys;
mod listen;
mod logs;
mod mcp;
mod metrics;
mod noted;
mod operations;
mod pins;
mod policies;
mod registry;
mod rules;
mod scaling;
mod secrets;
mod sources;
pub mod status;
mod taps;
mod teams;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_audit;
#[cfg(test)]
mod tests_house;
#[cfg(test)]
mod tests_rights;
#[cfg(test)]
mod tests_secrets;
pub mod tls;
mod usage;
mod users;
mod waivers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sigil_config::agent::AgentConfig;
use sigil_protocol::v1;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::RoutesBuilder;
use tonic::transport::Server;

pub use agent::host_name;

use crate::access::Access;
use crate::alert::AlertRoom;
use crate::audit::Audit;
use crate::autoscale::Autoscale;
use crate::engine::Engine;
use crate::follow::Followers;
use crate::gateway::Gateway;
use crate::initlink::InitLinks;
use crate::inspect::{Inspect, Scanner};
use crate::operate::Operate;
use crate::probe::Probe;
use crate::reconcile::Reconcile;
use crate::registry::Registry;
use crate::registry::mirror::Mirrors;
use crate::sample::Sample;
use crate::secrets::Secrets;
use crate::source::Sources;
use crate::store::Store;
use crate::tail::Tail;
use crate::usage::Usage;

/// Largest message taken, in bytes; uploads come in chunks below it.
const DECODE_MAX: usize = 1 << 20;
/// The same where documents are published, with what is said beside them.
const PUBLISH_MAX: usize = 2 << 20;
/// What a frame of `Mcp.Session` may be longer than the gateway's largest body.
const FRAME_SLACK: usize = 4096;
/// Calls at once on one connection; more are refused at once, not queued.
const CALLS: usize = 64;
/// How often the certificate is looked at.
const CERTIFICATE: Duration = Duration::from_secs(12 * 3600);
/// How long streams may take to end once the agent stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the link could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// An address or socket path that cannot be listened on.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// Where.
        address: String,
        /// The system's words.
        why: String,
    },
    /// A certificate or key that cannot be made, read or used.
    #[error("certificate {}: {why}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl ApiError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Listen { .. } => "is another agent running? choose another [grpc] listen or data directory",
            Self::Certificate { .. } => "check [grpc] certificate and key, or remove both: the agent makes its own",
        }
    }
}

/// What the link needs of the house.
#[derive(Debug)]
pub struct ApiDeps {
    /// The data directory; the store's lock on it is held.
    pub data_dir: PathBuf,
    /// Desired state.
    pub store: Store,
    /// Operations.
    pub operate: Operate,
    /// Observed state.
    pub reconcile: Reconcile,
    /// Tool pins.
    pub inspect: Inspect,
    /// Logs.
    pub tail: Tail,
    /// MCP sessions and load.
    pub gateway: Gateway,
    /// Uploads.
    pub sources: Sources,
    /// Secrets.
    pub secrets: Secrets,
    /// What was refused to containers.
    pub links: InitLinks,
    /// What is used.
    pub sample: Sample,
    /// What was used.
    pub usage: Usage,
    /// For `Info`.
    pub engine: Arc<dyn Engine>,
    /// Where the engine is, for `Info`.
    pub engine_host: String,
    /// Configuration; `grpc` is read once.
    pub config: watch::Receiver<Arc<AgentConfig>>,
    /// Keys and who callers are.
    pub access: Access,
    /// Who did what.
    pub audit: Audit,
    /// Whether replicas answer.
    pub probe: Probe,
    /// Scaling policies at work.
    pub autoscale: Autoscale,
    /// Who follows a repository.
    pub followers: Followers,
    /// What is wrong.
    pub alerts: AlertRoom,
    /// Packages.
    pub registry: Registry,
    /// Registries whose packages are taken in.
    pub mirrors: Mirrors,
    /// What was said of sources.
    pub scanner: Scanner,
    /// When the agent started.
    pub started_at: Timestamp,
    /// What is degraded, one line each, beside the store's alarms; for `Info`.
    pub notes: watch::Receiver<Vec<String>>,
}

/// The open link.
#[derive(Clone, Debug)]
pub struct ApiHandle {
    sockets: Vec<PathBuf>,
    tls: Option<(SocketAddr, String)>,
    tasks: TaskTracker,
}

impl ApiHandle {
    /// Unix sockets listened on.
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// TLS address and the certificate's fingerprint (`sha256:…`), for pinning.
    pub fn tls(&self) -> Option<(SocketAddr, &str)> {
        self.tls.as_ref().map(|(address, print)| (*address, print.as_str()))
    }

    /// Ends when everything has, after the stop token was cancelled.
    pub async fn done(&self) {
        self.tasks.wait().await;
    }
}

/// Opens the link: `<data>/agent.sock`, the group's socket where there is one, and TLS when configured.
///
/// # Errors
/// [`ApiError`], when nothing of it is left open.
pub async fn spawn(deps: ApiDeps, stop: CancellationToken) -> Result<ApiHandle, ApiError> {
    let tasks = TaskTracker::new();
    let config = deps.config.borrow().clone();
    let url = deps.gateway.url();
    let listeners = Listeners::open(&deps.data_dir, &config, Path::new("/run/sigil")).await?;

    let board = board::Board::spawn(
        deps.store.clone(),
        deps.reconcile.clone(),
        deps.gateway.clone(),
        deps.probe.clone(),
        url.clone(),
        &tasks,
        stop.clone(),
    );
    let engine = deps.engine.clone();
    let (store, notes, audit) = (deps.store.clone(), deps.notes.clone(), deps.audit.clone());
    let (packages, mirrors) = (deps.registry.clone(), deps.mirrors.clone());
    let agent = agent::AgentService {
        agent_id: deps.store.agent_id().to_string(),
        started_at: deps.started_at,
        data_dir: deps.data_dir.clone(),
        gateway_url: url.clone(),
        engine_host: deps.engine_host,
        engine: Arc::new(move || {
            let engine = engine.clone();
            Box::pin(async move { engine.capabilities().await })
        }),
        notes: Arc::new(move || {
            let mut lines = store.alarms();
            lines.extend(packages.alarms());
            lines.extend(mirrors.alarms());
            lines.extend(audit.trouble().map(|e| format!("nothing is recorded, so nothing is changed: {e}")));
            for line in notes.borrow().iter() {
                if !lines.contains(line) {
                    lines.push(line.clone());
                }
            }
            lines
        }),
        config: deps.config.clone(),
    };
    let reconcile = deps.reconcile.clone();
    let usage = usage::UsageService {
        store: deps.store.clone(),
        usage: deps.usage,
        sample: deps.sample.clone(),
        config: deps.config.clone(),
    };
    let metrics = metrics::MetricsService {
        store: deps.store.clone(),
        sample: deps.sample.clone(),
        reconcile: deps.reconcile.clone(),
        gateway: deps.gateway.clone(),
    };
    let operations = operations::OperationsService {
        operate: deps.operate.clone(),
        store: deps.store.clone(),
        registry: deps.registry.clone(),
        stop: stop.clone(),
    };
    let deployments = deployments::DeploymentsService {
        store: deps.store.clone(),
        operate: deps.operate.clone(),
        reconcile: deps.reconcile.clone(),
        gateway: deps.gateway.clone(),
        probe: deps.probe.clone(),
        sample: deps.sample.clone(),
        gateway_url: url.clone(),
        links: deps.links,
        config: deps.config.clone(),
        board,
        stop: stop.clone(),
    };
    let logs = logs::LogsService { store: deps.store.clone(), tail: deps.tail, stop: stop.clone() };
    let gateway = deps.gateway.clone();
    let mcp =
        mcp::McpService { gateway: deps.gateway, store: deps.store.clone(), tasks: tasks.clone(), stop: stop.clone() };
    let keys = keys::KeysService {
        access: deps.access.clone(),
        store: deps.store.clone(),
        turn: tokio::sync::Mutex::default(),
    };
    let seen = deps.config.clone();
    let policies = policies::PoliciesService {
        store: deps.store.clone(),
        oauth: Box::new(move || !seen.borrow().oauth.issuer.is_empty()),
    };
    let users = users::UsersService { access: deps.access.clone(), store: deps.store.clone() };
    let teams = teams::TeamsService {
        access: deps.access.clone(),
        store: deps.store.clone(),
        row: Box::new({
            let (reconcile, gateway, url) = (reconcile, gateway.clone(), url.clone());
            move |d| convert::deployment(d, reconcile.status(d.id).as_deref(), gateway.load(d.id), &url, false)
        }),
    };
    let (limits, lately) = (deps.config.clone(), gateway.clone());
    let scaling = scaling::ScalingService {
        store: deps.store.clone(),
        autoscale: deps.autoscale,
        max_replicas: Box::new(move || limits.borrow().limits.max_replicas),
        time_ms: Box::new(move |d| lately.recent(d.id, 60).times.map_or(0.0, |(median, _)| median)),
    };
    let follows = follows::FollowsService { store: deps.store.clone(), followers: deps.followers };
    let health = health::HealthService { store: deps.store.clone(), probe: deps.probe, reconcile: deps.reconcile };
    let alerts = alerts::AlertsService { store: deps.store.clone(), alerts: deps.alerts };
    let registry = registry::RegistryService {
        registry: deps.registry,
        mirrors: deps.mirrors,
        push: registry::Push {
            engine: deps.engine.clone(),
            secrets: deps.secrets.clone(),
            config: deps.config.clone(),
        },
        store: deps.store.clone(),
        scanner: deps.scanner,
        config: deps.config.clone(),
    };
    let waivers = waivers::WaiversService { store: deps.store.clone() };
    let pins = pins::PinsService { store: deps.store.clone(), inspect: deps.inspect };
    let taps = taps::TapsService { gateway: gateway.clone(), store: deps.store.clone(), stop: stop.clone() };
    let audit = audit::AuditService { audit: deps.audit.clone(), stop: stop.clone() };
    let secrets = secrets::SecretsService {
        secrets: deps.secrets,
        store: deps.store,
        operate: deps.operate,
        turn: tokio::sync::Mutex::default(),
    };
    let git = git::GitService {
        forges: deps.sources.forges().clone(),
        store: secrets.store.clone(),
        turn: tokio::sync::Mutex::default(),
    };
    let sources = sources::SourcesService { sources: deps.sources };

    // a tool call may be as long through the link as through the gateway
    let frame = usize::try_from(config.gateway.max_body).unwrap_or(usize::MAX).saturating_add(FRAME_SLACK);
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(v1::agent_server::AgentServer::new(agent).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::sources_server::SourcesServer::new(sources).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::operations_server::OperationsServer::new(operations).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::deployments_server::DeploymentsServer::new(deployments).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::logs_server::LogsServer::new(logs).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::mcp_server::McpServer::new(mcp).max_decoding_message_size(frame))
        .add_service(v1::secrets_server::SecretsServer::new(secrets).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::keys_server::KeysServer::new(keys).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::users_server::UsersServer::new(users).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::teams_server::TeamsServer::new(teams).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::policies_server::PoliciesServer::new(policies).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::scaling_server::ScalingServer::new(scaling).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::follows_server::FollowsServer::new(follows).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::git_server::GitServer::new(git).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::health_server::HealthServer::new(health).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::alerts_server::AlertsServer::new(alerts).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::waivers_server::WaiversServer::new(waivers).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::pins_server::PinsServer::new(pins).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::taps_server::TapsServer::new(taps).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::metrics_server::MetricsServer::new(metrics).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::usage_server::UsageServer::new(usage).max_decoding_message_size(DECODE_MAX))
        .add_service(v1::registry_server::RegistryServer::new(registry).max_decoding_message_size(PUBLISH_MAX))
        .add_service(v1::audit_server::AuditServer::new(audit).max_decoding_message_size(DECODE_MAX));
    Ok(serve(routes, listeners, rules::Guard::new(deps.access, deps.audit), tasks, stop))
}

/// Everything that is listened on.
struct Listeners {
    sockets: Vec<listen::Socket>,
    tls: Option<(listen::Tls, Arc<tls::Shown>)>,
}

impl Listeners {
    async fn open(data_dir: &Path, config: &AgentConfig, run_dir: &Path) -> Result<Self, ApiError> {
        let mut sockets = vec![listen::data_socket(data_dir)?];
        match listen::group_socket(run_dir) {
            Ok(socket) => sockets.extend(socket),
            // the agent is whole without it: root still has its own socket
            Err(e) => tracing::warn!(error = %e, "no socket for the group sigil"),
        }
        let tls = if config.grpc.listen.is_empty() {
            None
        } else {
            let shown = Arc::new(tls::Shown::new(data_dir, &config.grpc, &agent::host_name(config))?);
            Some((listen::Tls::bind(&config.grpc.listen, tls::server_config(shown.clone())?).await?, shown))
        };
        Ok(Self { sockets, tls })
    }
}

/// Serves on the listeners until `stop`, with the limits of security.md section 4.
fn serve(
    routes: RoutesBuilder,
    listeners: Listeners,
    guard: rules::Guard,
    tasks: TaskTracker,
    stop: CancellationToken,
) -> ApiHandle {
    let sockets = listeners.sockets.iter().map(|s| s.path.clone()).collect();
    let tls = listeners.tls.as_ref().map(|(tls, shown)| (tls.address, shown.fingerprint()));
    if let Some((address, print)) = &tls {
        tracing::info!(%address, fingerprint = print, "gRPC over TLS");
    }
    if let Some((_, shown)) = &listeners.tls {
        let (shown, stop) = (shown.clone(), stop.clone());
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(CERTIFICATE) => {}
                    () = stop.cancelled() => return,
                }
                let shown = shown.clone();
                let _ = tokio::task::spawn_blocking(move || shown.refresh()).await;
            }
        });
    }
    let incoming = listen::start(listeners.sockets, listeners.tls.map(|(tls, _)| tls), &tasks, &stop);
    let server = Server::builder()
        .max_concurrent_streams(64)
        .http2_max_local_error_reset_streams(Some(128))
        .http2_max_pending_accept_reset_streams(Some(32))
        .http2_max_header_list_size(8 << 10)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .concurrency_limit_per_connection(CALLS)
        .load_shed(true)
        .layer(guard)
        .add_routes(routes.routes());
    let stopped = stop.clone();
    tasks.spawn(async move {
        let graceful = stopped.clone().cancelled_owned();
        let serving =
            server.serve_with_incoming_shutdown(tokio_stream::wrappers::ReceiverStream::new(incoming), graceful);
        let late = async {
            stopped.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            done = serving => if let Err(e) = done { tracing::error!(error = %e, "the gRPC server ended") },
            () = late => tracing::warn!("console connections were still open; the agent does not wait for them"),
        }
    });
    tasks.close();
    ApiHandle { sockets, tls, tasks }
}
