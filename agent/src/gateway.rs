//! Owns: MCP sessions and the HTTP front for MCP clients.
//! May touch: upstream, the keys of access, `<data>/gateway.key`, `<data>/remembered`, `<data>/sessions`, the identity
//! provider.
//! Never: starts containers, sends a call twice, or keeps a session only in memory.
//! Tested by: unit tests here (against local servers), `tests/docker`, conformance.

pub(crate) mod body;
pub(crate) mod bridge;
pub(crate) mod bridged;
pub(crate) mod bundle;
pub(crate) mod cache;
pub(crate) mod caching;
pub(crate) mod caller;
pub(crate) mod client;
pub(crate) mod common;
pub(crate) mod compress;
pub(crate) mod count;
pub(crate) mod cross;
pub(crate) mod direct;
pub(crate) mod error;
pub(crate) mod find;
pub(crate) mod greeter;
pub(crate) mod guard;
pub(crate) mod jws;
pub(crate) mod lasting;
pub(crate) mod lately;
pub(crate) mod limits;
pub(crate) mod listen;
pub(crate) mod load;
pub(crate) mod mask;
pub(crate) mod modern;
pub(crate) mod oauth;
mod own;
mod pins;
pub(crate) mod plain;
pub(crate) mod proxy;
pub(crate) mod remembered;
mod scrape;
pub(crate) mod seal;
pub(crate) mod serve;
pub(crate) mod settings;
pub(crate) mod subscribed;
pub(crate) mod table;
pub(crate) mod tap;
#[cfg(test)]
mod tests;
pub(crate) mod tls;
pub(crate) mod trace;
pub(crate) mod translate;
pub(crate) mod words;
pub(crate) mod wrap;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sigil_config::agent::AgentConfig;
use sigil_core::model::{DeploymentId, InstanceId};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use error::GatewayError;
pub use tap::Frame;

use crate::access::{Access, Principal};
use crate::follow::Followers;
use crate::inspect::ChangedTool;
use crate::tail::Tail;
use crate::telemetry::{Metrics, Telemetry};
use crate::upstream::{RouteTable, SHARED_PREFIX, spare};
use crate::usage::{Tally, Verdicts};
use crate::web;
use bridge::Session;
use error::Refusal;
use table::{Registry, Table};

/// Load of a deployment as the gateway sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    /// Requests of the last 60 s.
    pub rpm: f64,
    /// 99th percentile of their time, milliseconds (an upper bound, 19 % wide at most).
    pub p99_ms: f64,
    /// Share of them that failed, 0 to 1.
    pub error_rate: f64,
    /// Requests without an answer now.
    pub in_flight: u64,
    /// Open sessions now.
    pub sessions: u64,
}

/// What a deployment's callers saw lately.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Recent {
    /// Requests a minute.
    pub rpm: f64,
    /// Requests since the agent's start.
    pub calls: u64,
    /// Median and 95th percentile of their time, milliseconds (upper bounds, 19 % wide at most); `None`: none ended.
    pub times: Option<(f64, f64)>,
    /// Those that failed, percent; `None`: none ended.
    pub errors: Option<f64>,
    /// Requests without an answer now.
    pub in_flight: u64,
    /// Open sessions now.
    pub sessions: u64,
}

/// What a replica has to do, for whoever probes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Burdened {
    /// Requests without a whole answer now, subscriptions aside.
    pub in_flight: u64,
    /// Those of which a piece of the answer has come.
    pub begun: u64,
    /// Pieces of answers that came from it, since it is known.
    pub heard: u64,
    /// A process runs that stateless requests share.
    pub shared: bool,
}

/// Calls that may wait for a deployment to start, all together.
const WAITING: usize = 256;
/// How long a call waits for a deployment to start.
const HOLD: Duration = Duration::from_secs(30);
/// How often idle sessions are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// How often the certificate is looked at.
const RENEW: Duration = Duration::from_secs(12 * 3600);
/// A request whose client left is forgotten after this.
const ABANDONED: Duration = Duration::from_secs(600);

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: watch::Receiver<Arc<AgentConfig>>,
    pub(crate) table: watch::Receiver<Arc<Table>>,
    pub(crate) registry: Registry,
    pub(crate) sealer: seal::Sealer,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
    /// Keys of direct conversations' processes.
    direct: Mutex<HashSet<String>>,
    /// Keys of sessions that end: their processes may still run.
    closing: Mutex<HashSet<String>>,
    /// Calls whose server waits for its client's input.
    parked: translate::Parked,
    pub(crate) http_sessions: lately::HttpSessions,
    pub(crate) remembered: Arc<remembered::Remembered>,
    pub(crate) lasting: lasting::Ledger,
    pub(crate) greeted_ended: greeter::Ended,
    pub(crate) resuming: tokio::sync::Mutex<()>,
    pub(crate) waiting: Semaphore,
    pub(crate) hold: Duration,
    pub(crate) turn: AtomicUsize,
    /// Bound on a loopback address: only loopback names may be asked for.
    pub(crate) loopback: bool,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) dropped: Arc<AtomicU64>,
    pub(crate) counters: Counters,
    pub(crate) telemetry: Telemetry,
    pub(crate) scrapes: scrape::Scrapes,
    pub(crate) keys: Access,
    pub(crate) limits: limits::Limits,
    pub(crate) bundles: bundle::Bundles,
    pub(crate) kept: settings::Kept,
    pub(crate) own: own::OwnSecrets,
    pub(crate) oauth: oauth::Oauth,
    /// Whoever shows nothing where nothing is asked for.
    pub(crate) anonymous: Arc<caller::Caller>,
    status: OnceLock<Arc<dyn StatusDebug>>,
    /// Who answers forges.
    pub(crate) hooks: OnceLock<Followers>,
    /// Who is beyond a quota.
    pub(crate) quotas: OnceLock<watch::Receiver<Arc<Verdicts>>>,
    /// The registry's pages.
    pub(crate) site: OnceLock<web::registry::Site>,
}

/// [`web::Status`] that a `Debug` struct can hold.
trait StatusDebug: Send + Sync + std::fmt::Debug {
    fn status(&self) -> &dyn web::Status;
}

struct Told<S>(S);

impl<S> std::fmt::Debug for Told<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Status")
    }
}

impl<S: web::Status> StatusDebug for Told<S> {
    fn status(&self) -> &dyn web::Status {
        &self.0
    }
}

/// Counters of the front.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    /// Lists answered in the place of servers that were not ready.
    pub(crate) recalled: AtomicU64,
    keys: count::Names<count::KeyLoad>,
}

impl Counters {
    /// Where a key's calls are counted.
    pub(crate) fn key(&self, name: &str) -> Arc<count::KeyLoad> {
        self.keys.of(name)
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner).entry(refusal.code).or_default() += 1;
    }
}

/// The gateway. Clones are one gateway.
#[derive(Clone, Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Gateway {
    /// Listens on `gateway.listen` and serves what `routes` holds until `stop`. Sessions of stdio servers outlive it.
    /// Connections live on the threads of `front`: whatever else the agent has to do then delays no call.
    pub async fn spawn(
        config: watch::Receiver<Arc<AgentConfig>>,
        mut routes: watch::Receiver<Arc<RouteTable>>,
        tail: Tail,
        keys: Access,
        tally: Tally,
        front: &Handle,
        stop: CancellationToken,
    ) -> Result<Self, GatewayError> {
        let first = routes.borrow_and_update().clone();
        let (publish, table) = watch::channel(Arc::default());
        let gateway = Self::start(config, table, keys, front, stop, HOLD).await?;
        let shared = gateway.shared.clone();
        shared.registry.tally.set(tally).ok();
        let update = move |shared: &Shared, publish: &watch::Sender<Arc<Table>>, new: &RouteTable| {
            let next = table::build(new, &publish.borrow(), &shared.registry, &tail, &shared.tasks);
            shared.registry.prune(&next);
            shared.http_sessions.only(|instance| next.by_id.values().any(|entry| entry.instance(instance).is_some()));
            shared.lasting.only(shared, &next);
            publish.send_replace(Arc::new(next));
        };
        update(&shared, &publish, &first);
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = shared.stop.cancelled() => return,
                    changed = routes.changed() => match changed {
                        Ok(()) => {
                            let new = routes.borrow_and_update().clone();
                            update(&shared, &publish, &new);
                        }
                        // reconcile is gone: what is known is served until the end
                        Err(_) => return shared.stop.cancelled().await,
                    },
                }
            }
        });
        Ok(gateway)
    }

    /// The listener and the sweeper, on a table that somebody else keeps.
    pub(crate) async fn start(
        config: watch::Receiver<Arc<AgentConfig>>,
        table: watch::Receiver<Arc<Table>>,
        keys: Access,
        front: &Handle,
        stop: CancellationToken,
        hold: Duration,
    ) -> Result<Self, GatewayError> {
        // its own line: a borrow that lasts into the await would make every caller's future one for a single thread
        let listen_at = config.borrow().gateway.listen.clone();
        let bound = front.spawn(async move { listen::bind(&listen_at).await }).await;
        let listener =
            bound.map_err(|e| GatewayError::Listen(config.borrow().gateway.listen.clone(), e.to_string()))??;
        let address = listener
            .local_addr()
            .map_err(|e| GatewayError::Listen(config.borrow().gateway.listen.clone(), e.to_string()))?;
        let shown = tls::Shown::open(&config.borrow().clone(), keys.data_dir())?.map(Arc::new);
        let acceptor = shown.clone().map(tls::acceptor).transpose()?;
        let counters = Counters::default();
        let anonymous = caller::Caller::anonymous().counted(counters.key(caller::ANONYMOUS));
        let oauth = oauth::Oauth::counted(counters.key(caller::USERS));
        let (telemetry, exporter) = Telemetry::new(config.clone(), stop.clone());
        let shared = Arc::new(Shared {
            config,
            table,
            registry: Registry::default(),
            sealer: seal::Sealer::open(keys.data_dir())?,
            sessions: Mutex::default(),
            direct: Mutex::default(),
            closing: Mutex::default(),
            parked: translate::Parked::default(),
            http_sessions: lately::HttpSessions::default(),
            remembered: Arc::new(remembered::Remembered::open(keys.data_dir())),
            lasting: lasting::Ledger::open(keys.data_dir()),
            greeted_ended: greeter::Ended::default(),
            resuming: tokio::sync::Mutex::default(),
            waiting: Semaphore::new(WAITING),
            hold,
            turn: AtomicUsize::new(0),
            loopback: address.ip().is_loopback(),
            tasks: TaskTracker::new(),
            stop,
            dropped: Arc::default(),
            counters,
            telemetry,
            scrapes: scrape::Scrapes::default(),
            keys,
            limits: limits::Limits::default(),
            bundles: bundle::Bundles::default(),
            kept: settings::Kept::default(),
            own: own::OwnSecrets::default(),
            oauth,
            anonymous: Arc::new(anonymous),
            status: OnceLock::new(),
            hooks: OnceLock::new(),
            quotas: OnceLock::new(),
            site: OnceLock::new(),
        });
        shared.tasks.spawn_on(listen::accept(shared.clone(), listener, acceptor), front);
        if let Some(shown) = shown {
            shared.tasks.spawn(renew(shared.clone(), shown));
        }
        shared.tasks.spawn(sweep(shared.clone()));
        shared.tasks.spawn(exporter);
        let told = Arc::downgrade(&shared);
        shared.tasks.spawn(Metrics::run(
            shared.config.clone(),
            move || told.upgrade().map(|shared| shared.facts()),
            shared.telemetry.counted.clone(),
            shared.stop.clone(),
        ));
        tracing::info!(%address, "the gateway listens");
        Ok(Self { shared, address })
    }

    /// Its base URL for people on this host.
    pub fn url(&self) -> String {
        let config = self.shared.config.borrow().clone();
        if !config.gateway.public_url.is_empty() {
            return config.gateway.public_url.trim_end_matches('/').to_owned();
        }
        let ip = match self.address.ip() {
            ip if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
            ip => ip,
        };
        let scheme = if config.gateway.tls == "off" { "http" } else { "https" };
        format!("{scheme}://{}", SocketAddr::new(ip, self.address.port()))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives `/readyz` and `/metrics` what the rest of the agent knows; until then the agent is not ready. Only the
    /// first call counts.
    pub fn tell(&self, status: impl web::Status + 'static) {
        self.shared.status.set(Arc::new(Told(status))).ok();
    }

    /// Tells of tools that are not as they were pinned, each form once. Only the first call counts.
    pub fn tell_changes(&self, to: mpsc::Sender<ChangedTool>) {
        self.shared.registry.teller.set(to).ok();
    }

    /// Where callers' own secrets are looked up; until then nobody has any. Only the first call counts.
    pub fn tell_secrets(&self, vault: crate::secrets::Secrets) {
        self.shared.own.look_in(vault);
    }

    /// A deployment's last minute.
    pub fn load(&self, id: DeploymentId) -> Load {
        let table = self.shared.table.borrow().clone();
        let sum = self.shared.registry.recorder(id).map(|r| r.sum()).unwrap_or_default();
        let mut load = Load {
            rpm: sum.calls as f64,
            p99_ms: sum.p99_ms,
            error_rate: if sum.calls == 0 { 0.0 } else { sum.errors as f64 / sum.calls as f64 },
            ..Load::default()
        };
        if let Some(entry) = table.by_id.get(&id) {
            for burden in entry.ready.iter().chain(&entry.draining).map(table::Live::burden) {
                load.in_flight += burden.in_flight;
                load.sessions += burden.sessions;
            }
        }
        load
    }

    /// What a deployment's callers saw in about the last so many seconds (five at least, a minute at most).
    pub fn recent(&self, id: DeploymentId, seconds: u64) -> Recent {
        let Load { in_flight, sessions, .. } = self.load(id);
        let Some(recorder) = self.shared.registry.recorder(id) else {
            return Recent { in_flight, sessions, ..Recent::default() };
        };
        let (sum, seconds) = recorder.recent(seconds);
        let ended = sum.calls > 0;
        Recent {
            rpm: sum.calls as f64 / seconds.max(1.0) * 60.0,
            calls: recorder.load.latency().calls(),
            times: ended.then_some((sum.p50_ms, sum.p95_ms)),
            errors: ended.then(|| sum.errors as f64 / sum.calls as f64 * 100.0),
            in_flight,
            sessions,
        }
    }

    /// Calls of each deployment since the agent's start.
    pub fn outcomes(&self) -> Vec<(DeploymentId, sigil_core::health::Calls)> {
        let count = |(id, traffic): (DeploymentId, web::Traffic)| {
            let calls = sigil_core::health::Calls { all: traffic.latency.calls(), failed: traffic.latency.errors };
            (id, calls)
        };
        self.traffic()().into_iter().map(count).collect()
    }

    /// What was counted of each deployment since the agent's start, without its tools.
    pub fn traffic(&self) -> impl Fn() -> Vec<(DeploymentId, web::Traffic)> + Send + Sync + 'static {
        // whoever counts is shown on the gateway's pages: the two must not keep each other
        let shared = Arc::downgrade(&self.shared);
        move || {
            let table = shared.upgrade().map(|shared| shared.table.borrow().clone()).unwrap_or_default();
            table.routes.values().map(|entry| (entry.id, entry.traffic())).collect()
        }
    }

    /// Who used what since the agent's start, for the books.
    pub fn counted(&self) -> Vec<web::Counted> {
        let table = self.shared.table.borrow().clone();
        table.routes.values().map(|entry| entry.recorder.counted(entry.id)).collect()
    }

    /// Calls that have ended since the agent's start.
    pub fn ended(&self) -> u64 {
        let table = self.shared.table.borrow().clone();
        table.routes.values().map(|entry| entry.recorder.load.calls()).sum()
    }

    /// Gives the registry's pages an address; until then they are not there. Only the first call counts.
    pub fn tell_site(&self, site: web::registry::Site) {
        self.shared.site.set(site).ok();
    }

    /// Tells who answers forges (`/hooks/<name>`); until then nobody does. Only the first call counts.
    pub fn tell_hooks(&self, hooks: Followers) {
        self.shared.hooks.set(hooks).ok();
    }

    /// Tells who is beyond a quota; until then nobody is. Only the first call counts.
    pub fn tell_quotas(&self, verdicts: watch::Receiver<Arc<Verdicts>>) {
        self.shared.quotas.set(verdicts).ok();
    }

    /// Requests that an instance has not answered wholly (what a drain waits for). Idle event streams are not requests.
    pub fn in_flight(&self, instance: InstanceId) -> u64 {
        self.shared.registry.stats(instance).map_or(0, |s| s.in_flight.load(Relaxed))
    }

    /// What a replica has to do.
    pub fn burdened(&self, instance: InstanceId) -> Burdened {
        let shared = self.shared.registry.common(instance).is_some_and(|c| c.running(common::EVERYBODY).is_some());
        let Some(stats) = self.shared.registry.stats(instance) else {
            return Burdened { shared, ..Burdened::default() };
        };
        let now = |n: &AtomicU64| n.load(Relaxed);
        let in_flight = now(&stats.in_flight).saturating_sub(now(&stats.listening));
        let (begun, heard) = (now(&stats.begun), now(&stats.heard));
        Burdened { in_flight, begun, heard, shared }
    }

    /// Whether the process that stateless requests of a stdio server share answers within `limit`; `None`: none runs, and
    /// none is started. It is no traffic, and wakes nobody.
    pub async fn discover(&self, instance: InstanceId, limit: Duration) -> Option<Result<(), String>> {
        let process = self.shared.registry.common(instance)?.running(common::EVERYBODY)?;
        Some(process.discover(limit).await)
    }

    /// Whether a request may still be sent to an instance, or is on its way there.
    pub fn reaches(&self, deployment: DeploymentId, instance: InstanceId) -> bool {
        let entry = self.shared.table.borrow().by_id.get(&deployment).cloned();
        entry.is_some_and(|e| e.instance(instance).is_some()) || self.in_flight(instance) > 0
    }

    /// Sessions that an instance holds (of HTTP servers: those used lately).
    pub fn sessions(&self, instance: InstanceId) -> u64 {
        self.shared.registry.stats(instance).map_or(0, |s| s.sessions.load(Relaxed))
    }

    /// Sessions of a deployment that its clients hold, and that end with its containers. The process that stateless requests
    /// share is none.
    pub fn held(&self, id: DeploymentId) -> u64 {
        let entry = self.shared.table.borrow().by_id.get(&id).cloned();
        let http = |live: &&table::Live| live.endpoint.spec.transport == sigil_core::model::Transport::Http;
        let lately = entry.iter().flat_map(|entry| entry.ready.iter().chain(&entry.draining)).filter(http);
        let lately: u64 = lately.map(|live| live.burden().sessions).sum();
        let own = |session: &&Arc<Session>| session.endpoint.deployment == id && !bridged::greeted(&session.key);
        lately + self.shared.sessions().values().filter(own).count() as u64
    }

    /// Every message of a deployment from now on, for whoever looks.
    pub fn tap(&self, deployment: &str) -> Result<broadcast::Receiver<Arc<Frame>>, GatewayError> {
        let entry = self.shared.table.borrow().routes.get(deployment).cloned();
        let entry = entry.ok_or_else(|| GatewayError::NotFound(deployment.to_owned()))?;
        Ok(entry.recorder.tap.watch())
    }

    /// One raw JSON-RPC conversation (the gRPC `Mcp.Session`): behind the listener, through the same pipeline. Each
    /// item is one message; `config`: the session's configuration, by dotted keys. Returns when the client or the server has ended it.
    pub async fn session(
        &self,
        deployment: &str,
        principal: &Principal,
        config: &BTreeMap<String, String>,
        from_client: mpsc::Receiver<Bytes>,
        to_client: mpsc::Sender<Bytes>,
    ) -> Result<(), GatewayError> {
        let caller = Arc::new(caller::Caller::link(principal, &self.shared.counters));
        direct::run(&self.shared, deployment, &caller, config, from_client, to_client).await
    }
}

impl Shared {
    pub(crate) fn sessions(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn closing(&self) -> MutexGuard<'_, HashSet<String>> {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn direct(&self) -> MutexGuard<'_, HashSet<String>> {
        self.direct.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the agent is not ready to serve; `None` when it is.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.stop.is_cancelled() {
            return Some("the agent is stopping".into());
        }
        self.status.get().map_or_else(|| Some("the agent is starting".into()), |s| s.status().ready().err())
    }

    /// What metrics tell. It walks over all deployments and tools: not for the threads that answer calls.
    pub(crate) fn facts(&self) -> web::Facts {
        let table = self.table.borrow().clone();
        let traffic =
            table.routes.values().map(|entry| web::Traffic { tools: entry.recorder.tools(), ..entry.traffic() });
        let status = self.status.get().map(|s| s.status());
        // its own line: who refuses a call must not wait for the rest
        let refusals = self.counters.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone();
        web::Facts {
            not_ready: self.not_ready(),
            deployments: status.map(web::Status::deployments).unwrap_or_default(),
            outbound: status.map(web::Status::outbound).unwrap_or_default(),
            measured: status.map(web::Status::measured).unwrap_or_default(),
            traffic: traffic.collect(),
            connections: self.counters.connections.load(Relaxed),
            connections_refused: self.counters.connections_refused.load(Relaxed),
            refusals: refusals.into_iter().collect(),
            dropped: self.dropped.load(Relaxed),
            recalled: self.counters.recalled.load(Relaxed),
            replayed: self.lasting.replayed.load(Relaxed),
            cache_bytes: self.remembered.answers.bytes(),
            rounds_sent: self.telemetry.counted.rounds_sent.load(Relaxed),
            rounds_lost: self.telemetry.counted.rounds_lost.load(Relaxed),
            spans_sent: self.telemetry.counted.sent.load(Relaxed),
            spans_dropped: self.telemetry.counted.dropped.load(Relaxed),
            keys: self
                .counters
                .keys
                .all()
                .into_iter()
                .map(|(key, load)| web::KeyTraffic {
                    key,
                    calls: load.calls.load(Relaxed),
                    errors: load.errors.load(Relaxed),
                    refused: load.refused.load(Relaxed),
                    in_flight: load.in_flight.load(Relaxed),
                    bytes_in: load.bytes.from_clients.load(Relaxed),
                    bytes_out: load.bytes.to_clients.load(Relaxed),
                })
                .collect(),
        }
    }
}

/// Renews the certificate when it is time, and when the names by which the gateway is called change.
async fn renew(shared: Arc<Shared>, shown: Arc<tls::Shown>) {
    let mut config = shared.config.clone();
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(RENEW) => {}
            changed = config.changed() => if changed.is_err() { return shared.stop.cancelled().await },
        }
        let (now, shown) = (config.borrow_and_update().clone(), shown.clone());
        // it logs what goes wrong itself
        let _ = tokio::task::spawn_blocking(move || shown.refresh(&now)).await;
    }
}

/// Ends sessions that nobody uses, and processes of a former agent whose clients never came back.
async fn sweep(shared: Arc<Shared>) {
    let mut strangers: HashMap<(InstanceId, String), std::time::Instant> = HashMap::new();
    let mut every = tokio::time::interval(SWEEP);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut turn = 0_u64;
    let mut swept: Arc<Table> = Arc::default();
    loop {
        let ends = tokio::select! {
            () = shared.stop.cancelled() => true,
            _ = every.tick() => false,
        };
        let remembered = shared.remembered.clone();
        // it logs what goes wrong itself
        let _ = tokio::task::spawn_blocking(move || remembered.save()).await;
        if ends {
            return;
        }
        let idle = Duration::from_secs(shared.config.borrow().gateway.session_idle_seconds.max(1));
        let table = shared.table.borrow().clone();
        let all: Vec<Arc<Session>> = shared.sessions().values().cloned().collect();
        for session in all {
            session.sweep(ABANDONED);
            // a session of a replica that is gone ends by itself: its process's output ends
            if session.idle().is_some_and(|d| d > idle) {
                tracing::debug!(deployment = session.name, "an idle session ended");
                shared.close(&session);
            }
        }
        for live in table.routes.values().flat_map(|entry| entry.ready.iter().chain(&entry.draining)) {
            shared.sweep_common(live, idle);
        }
        for live in shared.bundles.lives().iter().chain(&shared.kept.lives()) {
            shared.sweep_common(live, idle);
        }
        shared.kept.sweep(idle);
        shared.bundles.sweep(idle);
        shared.parked.sweep();
        shared.http_sessions.sweep(idle);
        turn += 1;
        // memory that nothing can be found in any more; keys are looked at each minute
        if turn % 12 == 1 || !Arc::ptr_eq(&table, &swept) {
            caching::sweep(&shared, &table);
            shared.lasting.sweep(&table);
            swept = table.clone();
        }
        // init is asked seldom: strangers exist only after a restart
        if turn % 12 == 1 {
            shared.remembered.prune(&table);
            // a frozen init answers nothing
            let awake = table.routes.values().filter(|entry| entry.recorder.nap.is_awake());
            for live in awake.flat_map(|entry| &entry.ready) {
                shared.refill(&live.endpoint).await;
            }
            strangers = reap_strangers(&shared, &table, strangers, idle.max(Duration::from_secs(300))).await;
        }
    }
}

async fn reap_strangers(
    shared: &Shared,
    table: &Table,
    before: HashMap<(InstanceId, String), std::time::Instant>,
    after: Duration,
) -> HashMap<(InstanceId, String), std::time::Instant> {
    let mut now = HashMap::new();
    let mut replicas: Vec<table::Live> = Vec::new();
    for entry in table.routes.values().filter(|entry| entry.recorder.nap.is_awake()) {
        replicas.extend(entry.ready.iter().chain(&entry.draining).cloned());
    }
    for live in replicas {
        if live.endpoint.spec.transport != sigil_core::model::Transport::Stdio {
            continue;
        }
        let Ok(keys) = live.endpoint.wire.keys().await else { continue };
        for key in keys {
            // a gate that still runs is a stranger here too, but never for that long
            let ours = ["s-", "d-", "gate-", spare::PREFIX, SHARED_PREFIX].iter().any(|p| key.starts_with(p));
            if !ours || shared.session_of(&key).is_some() || live.endpoint.spare.key().as_ref() == Some(&key) {
                continue;
            }
            if live.common.holds(&key) || shared.kept.holds(live.endpoint.instance, &key) {
                continue;
            }
            let id = (live.endpoint.instance, key);
            let since = before.get(&id).copied().unwrap_or_else(std::time::Instant::now);
            if since.elapsed() > after && !shared.direct().contains(&id.1) {
                live.endpoint.wire.close(&id.1, Duration::from_secs(2)).await;
            } else {
                now.insert(id, since);
            }
        }
    }
    now
}
