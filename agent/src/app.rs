//! The only file that knows every room. Wiring, no logic.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use sigil_config::agent::AgentConfig;
use sigil_config::reload::Reload;
use sigil_config::rules::{self, Followed};
use sigil_core::alert::{Alert, Fact};
use sigil_core::model::{Deployment, InstanceId, OperationId, State};
use sigil_core::rights::{Role, Subject};
use sigil_core::series::{Point, REQUESTS};
use sigil_core::sleep::Depth;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::alert::{self, AlertRoom};
use crate::api::{self, ApiDeps, ApiHandle};
use crate::audit::{Audit, by_agent};
use crate::autoscale::{self, Autoscale};
use crate::build::Builds;
use crate::engine::docker::Docker;
use crate::engine::{Engine, RegistryLogin, label};
use crate::follow::{self, Followers};
use crate::gateway::{Burdened, Gateway};
use crate::initlink::{InitLinks, Mark};
use crate::inspect::{self, Drift, DriftDeps, Inspect, Scanner};
use crate::operate::{self, Operate};
use crate::probe::{self, Probe};
use crate::reconcile::{self, Reconcile};
use crate::registry::Registry;
use crate::registry::mirror::{self, Mirrors};
use crate::sample::{self, Sample};
use crate::secrets::Secrets;
use crate::source::Sources;
use crate::store::{OpenReport, Store};
use crate::tail::{GapSource, Tail};
use crate::upstream::RouteTable;
use crate::usage::{self, Usage};
use crate::web;

/// Lines read back from the engine's log for one gap.
const GAP_LINES: usize = 1_000_000;

/// Calls of so long are looked at for what comes, seconds: what the rings keep by the minute.
const CALLED: i64 = 8 * 86_400 - 3600;

/// All rooms of an agent, running.
#[derive(Debug)]
pub struct App {
    stops: Stops,
    store: Store,
    tail: Tail,
    reconcile: Reconcile,
    sample: Sample,
    usage: Usage,
    operate: Operate,
    autoscale: Autoscale,
    followers: Followers,
    probe: Probe,
    alerts: AlertRoom,
    registry: Registry,
    mirrors: Mirrors,
    gateway: Gateway,
    api: ApiHandle,
    audit: Audit,
}

/// What is told to stop, in this order.
#[derive(Debug, Default)]
struct Stops {
    /// Listeners: gateway and gRPC.
    edge: CancellationToken,
    /// Operations and the reconciler.
    loops: CancellationToken,
    /// Links and log files.
    floor: CancellationToken,
}

impl App {
    /// Opens the state in `data_dir` and starts every room, the gateway's connections on the threads of `front`.
    ///
    /// # Errors
    /// Another agent on the same directory, an address in use, a directory that cannot be written.
    pub async fn start(data_dir: &Path, reload: &Reload, front: &Handle) -> anyhow::Result<Self> {
        let (store, report) = Store::open(data_dir)?;
        let engine = reload.config().borrow().engine.clone();
        let docker = Docker::connect(&engine, store.agent_id())?.files(data_dir);
        let host = docker.host();
        let state = (store, report);
        Self::wire(data_dir, reload, front, Arc::new(docker), host, state, true).await
    }

    /// The same on an engine that is there already (a simulated one): it must serve the agent id of `data_dir`.
    ///
    /// # Errors
    /// As [`App::start`].
    pub async fn start_on(
        data_dir: &Path,
        reload: &Reload,
        engine: Arc<dyn Engine>,
        engine_host: String,
    ) -> anyhow::Result<Self> {
        let (store, report) = Store::open(data_dir)?;
        let state = (store, report);
        Self::wire(data_dir, reload, &Handle::current(), engine, engine_host, state, false).await
    }

    async fn wire(
        data_dir: &Path,
        reload: &Reload,
        front: &Handle,
        engine: Arc<dyn Engine>,
        engine_host: String,
        (store, report): (Store, OpenReport),
        own_host: bool,
    ) -> anyhow::Result<Self> {
        let stops = Stops::default();
        let config = reload.config();
        let now = config.borrow().clone();
        for alarm in &report.alarms {
            tracing::error!(alarm, "state");
        }
        let agent = store.agent_id();
        let audit = Audit::open(data_dir)?;
        audit.set_max_bytes(now.audit.max_bytes);
        let secrets = Secrets::open(data_dir, &now.secrets, store.clone(), audit.clone(), true)?;
        let masks = secrets.redactor();
        audit.set_redactor(move |text| masks.redact(text).into_owned());
        secrets.reseal_in_background(stops.loops.clone());
        let begun = by_agent("agent.start").target(agent.to_string(), "").after("version", env!("CARGO_PKG_VERSION"));
        audit.record(vec![begun]).await?;
        let (links, output) = InitLinks::spawn(data_dir, now.outbound.clone(), stops.floor.clone()).await?;
        let tail = Tail::spawn(data_dir, now.logs.clone(), output, stops.floor.clone()).await?;
        let masks = secrets.redactor();
        tail.set_masks(move |line| masks.redact_bytes(line));
        tail.set_gap_source(Arc::new(EngineLog { engine: engine.clone() }));
        let sources = Sources::spawn(data_dir, config.clone(), secrets.clone(), engine.clone(), stops.loops.clone())?;
        let builds = Builds::spawn(config.clone(), engine.clone(), links.clone(), agent, data_dir, stops.loops.clone());
        let logins = secrets.clone();
        builds.set_logins(Arc::new(move |host| registry_login(&logins, host)));

        let taken = sigil_core::scan::rules().into_iter().map(|rule| rule.id).collect();
        let own = rules::follow(config.clone(), taken, Arc::new(inspect::examine), stops.loops.clone());
        let access = Access::new(data_dir).with_people(store.clone());
        let tally = usage::Tally::new(data_dir);
        let (routes, routes_seen) = watch::channel(Arc::new(RouteTable::default()));
        let gateway = Gateway::spawn(
            config.clone(),
            routes_seen.clone(),
            tail.clone(),
            access.clone(),
            tally.clone(),
            front,
            stops.edge.clone(),
        )
        .await?;
        let (inspect, changes) = Inspect::spawn(store.clone(), tail.clone(), stops.loops.clone());
        gateway.tell_changes(changes);
        let scanner = Scanner::new(data_dir, own.clone());
        let drift = Drift::spawn(
            DriftDeps {
                store: store.clone(),
                sources: sources.clone(),
                scanner: scanner.clone(),
                audit: audit.clone(),
                tail: tail.clone(),
                config: config.clone(),
            },
            stops.loops.clone(),
        );
        gateway.tell_secrets(secrets.clone());
        // before any container is let out
        links.set_agent_ports(agent_ports(gateway.address(), &now.grpc.listen));
        tell_refusals(links.marks(), tail.clone(), stops.floor.clone());
        let sample = Sample::spawn(
            sample::Deps {
                store: store.clone(),
                engine: engine.clone(),
                links: links.clone(),
                config: config.clone(),
                data_dir: data_dir.to_owned(),
            },
            stops.loops.clone(),
        );
        sample.tell_traffic(gateway.traffic());
        let endings = sample.clone();
        links.tell_ending(move |instance, pid| endings.ending(instance, pid));
        let (load, reach, sessions) = (gateway.clone(), gateway.clone(), gateway.clone());
        let reconcile = Reconcile::spawn(
            reconcile::Deps {
                store: store.clone(),
                engine: engine.clone(),
                links: links.clone(),
                secrets: secrets.clone(),
                inspect: inspect.clone(),
                drift,
                audit: audit.clone(),
                tail: tail.clone(),
                sample: sample.clone(),
                in_flight: Arc::new(move |instance| load.in_flight(instance)),
                reachable: Arc::new(move |deployment, instance| reach.reaches(deployment, instance)),
                sessions: Arc::new(move |deployment| sessions.held(deployment)),
                own_host,
                config: config.clone(),
                data_dir: data_dir.to_owned(),
                agent,
                routes,
                proven: reconcile::Proven::default(),
            },
            stops.loops.clone(),
        );
        gateway.tell(Pages {
            store: store.clone(),
            reconcile: reconcile.clone(),
            links: links.clone(),
            sample: sample.clone(),
        });
        let usage = Usage::spawn(
            usage::Deps {
                store: store.clone(),
                sample: sample.clone(),
                tally,
                engine: engine.clone(),
                config: config.clone(),
            },
            data_dir,
            stops.loops.clone(),
        )
        .context("usage cannot be counted")?;
        let (counted, ended) = (gateway.clone(), gateway.clone());
        usage.tell_counted(move || counted.counted(), move || ended.ended());
        gateway.tell_quotas(usage.verdicts());
        let operate = Operate::spawn(
            operate::Deps {
                store: store.clone(),
                engine: engine.clone(),
                sources: sources.clone(),
                builds,
                secrets: secrets.clone(),
                tail: tail.clone(),
                reconcile: reconcile.clone(),
                config: config.clone(),
                access: access.clone(),
                audit: audit.clone(),
                scanner: scanner.clone(),
                data_dir: data_dir.to_owned(),
                gateway_url: gateway.url(),
            },
            stops.loops.clone(),
        )
        .context("operations cannot be kept")?;
        let (sleepers, containers, traffic) = (reconcile.clone(), reconcile.clone(), gateway.clone());
        let probe = Probe::spawn(
            probe::Deps {
                routes: routes_seen,
                tail: tail.clone(),
                engine: engine.clone(),
                audit: audit.clone(),
                data_dir: data_dir.to_owned(),
                asleep: Arc::new(move |id| sleepers.status(id).is_none_or(|s| s.state == State::Sleeping)),
                container: Arc::new(move |id, instance| containers.container(id, instance)),
                counted: Arc::new(move || traffic.outcomes()),
                look: doing(sample.clone(), gateway.clone()),
                discover: discover(gateway.clone()),
            },
            stops.loops.clone(),
        );
        let autoscale = Autoscale::spawn(
            autoscale::Deps {
                store: store.clone(),
                config: config.clone(),
                audit: audit.clone(),
                data_dir: data_dir.to_owned(),
                seen: seen(reconcile.clone(), sample.clone(), gateway.clone()),
                price: price(config.clone()),
                asleep: asleep(reconcile.clone()),
                called: called(sample.clone()),
                wake: wake(reconcile.clone()),
            },
            stops.loops.clone(),
        );
        let registry = Registry::spawn(store.clone(), data_dir, stops.loops.clone());
        let site = web::registry::Site::new(registry.clone(), access.clone(), audit.clone(), config.clone());
        gateway.tell_site(site);
        let mirrors = Mirrors::spawn(
            mirror::Deps {
                registry: registry.clone(),
                secrets: secrets.clone(),
                audit: audit.clone(),
                config: config.clone(),
                data_dir: data_dir.to_owned(),
                again: mirror::AGAIN,
            },
            stops.loops.clone(),
        );
        let asked = alert::Asked {
            store: store.clone(),
            reconcile: reconcile.clone(),
            probe: probe.clone(),
            usage: usage.clone(),
            sample: sample.clone(),
            config: config.clone(),
        };
        let followers = Followers::spawn(
            follow::Deps {
                store: store.clone(),
                secrets: secrets.clone(),
                sources: sources.clone(),
                audit: audit.clone(),
                deploy: redeploy(operate.clone()),
                preview: preview(operate.clone()),
                remove: remove_preview(operate.clone()),
                link: link(config.clone()),
                may: may_deploy(access.clone()),
                data_dir: data_dir.to_owned(),
            },
            stops.loops.clone(),
        );
        gateway.tell_hooks(followers.clone());
        let alerts = AlertRoom::spawn(
            alert::Deps {
                facts: asked.facts(),
                config: config.clone(),
                data_dir: data_dir.to_owned(),
                agent: agent.to_string(),
            },
            stops.loops.clone(),
        );
        let (measures, counts) = (sample.clone(), usage.clone());
        let no_reclaim = reconcile.reclaim_trouble();
        let api = api::spawn(
            ApiDeps {
                data_dir: data_dir.to_owned(),
                store: store.clone(),
                operate: operate.clone(),
                reconcile: reconcile.clone(),
                inspect,
                tail: tail.clone(),
                gateway: gateway.clone(),
                sources,
                secrets,
                links: links.clone(),
                sample,
                usage,
                engine,
                engine_host,
                config: config.clone(),
                access,
                audit: audit.clone(),
                autoscale: autoscale.clone(),
                followers: followers.clone(),
                alerts: alerts.clone(),
                probe: probe.clone(),
                registry: registry.clone(),
                mirrors: mirrors.clone(),
                scanner,
                started_at: Timestamp::now(),
                notes: notes(report.alarms, reload, own, alerts.firing(), no_reclaim, stops.loops.clone()),
            },
            stops.edge.clone(),
        )
        .await?;
        if let Some((address, _)) = api.tls() {
            links.set_agent_ports(vec![gateway.address().port(), address.port()]);
        }
        follow_config(tail.clone(), links, audit.clone(), config, stops.loops.clone());
        Ok(Self {
            stops,
            store,
            tail,
            reconcile,
            sample: measures,
            usage: counts,
            operate,
            autoscale,
            followers,
            probe,
            alerts,
            registry,
            mirrors,
            gateway,
            api,
            audit,
        })
    }

    /// Where the gateway listens.
    pub fn gateway(&self) -> std::net::SocketAddr {
        self.gateway.address()
    }

    /// What is observed, and how long a pass takes.
    pub fn reconcile(&self) -> &Reconcile {
        &self.reconcile
    }

    /// Where gRPC listens.
    pub fn api(&self) -> &ApiHandle {
        &self.api
    }

    /// Stops accepting, lets calls under way finish, lets loops finish their step, writes everything down. Containers
    /// stay up. Takes at most `limit`.
    pub async fn stop(self, limit: Duration) {
        let deadline = tokio::time::Instant::now() + limit;
        let left = || deadline.saturating_duration_since(tokio::time::Instant::now());
        self.stops.edge.cancel();
        if tokio::time::timeout(left() / 2, self.api.done()).await.is_err() {
            tracing::warn!("gRPC streams were cut");
        }
        self.stops.loops.cancel();
        for (name, ended) in [
            ("operations", self.operate.closed(left() / 2).await),
            ("the reconciler", self.reconcile.closed(left() / 2).await),
            ("what counts use", self.usage.closed(left() / 2).await),
            ("the autoscaler", self.autoscale.closed(left() / 2).await),
            ("followed repositories", self.followers.closed(left() / 2).await),
            ("what probes", self.probe.closed(left() / 2).await),
            ("what alerts", self.alerts.closed(left() / 2).await),
            ("mirrored registries", self.mirrors.closed(left() / 2).await),
            ("the registry", self.registry.closed(left() / 2).await),
            ("what measures", self.sample.closed(left() / 2).await),
        ] {
            if !ended {
                tracing::warn!("{name} did not finish their step in time; the next agent goes on");
            }
        }
        self.tail.flush().await;
        self.stops.floor.cancel();
        self.audit.keep(by_agent("agent.stop").target(self.store.agent_id().to_string(), "")).await;
        self.audit.close().await;
        self.store.close().await;
    }
}

/// Deploys what a deployment follows as it was deployed before.
fn redeploy(operate: Operate) -> follow::Deploy {
    Arc::new(move |deployment, follow, commit, source| {
        let operate = operate.clone();
        Box::pin(async move {
            let mut request = asked_before(&deployment)?;
            request.name = Some(deployment.name.to_string());
            if let Some(text) = source {
                request.source.text = text;
            }
            begin(&operate, operate::Request::Deploy(Box::new(request)), &commit, &follow.by).await
        })
    })
}

/// Deploys a preview as its deployment was, at another commit and under another name.
fn preview(operate: Operate) -> follow::DeployPreview {
    Arc::new(move |deployment, follow, wanted| {
        let operate = operate.clone();
        Box::pin(async move {
            let before = asked_before(&deployment)?;
            let commit = wanted.source.rsplit('@').next().unwrap_or_default().to_owned();
            let request = before.preview(wanted.name.to_string(), wanted.source, &deployment.team, wanted.what);
            begin(&operate, operate::Request::Deploy(Box::new(request)), &commit, &follow.by).await
        })
    })
}

fn remove_preview(operate: Operate) -> follow::Remove {
    Arc::new(move |preview, by| {
        let operate = operate.clone();
        Box::pin(async move {
            let request = operate::Request::Remove { name: preview.name.to_string() };
            begin(&operate, request, &preview.id.to_string(), &by).await
        })
    })
}

/// How a deployment was asked for last.
fn asked_before(deployment: &Deployment) -> Result<operate::DeployRequest, follow::Refused> {
    let refused = |why: String| follow::Refused { why, passing: false };
    let asked = deployment.release(deployment.desired.release).and_then(|release| release.asked.as_deref());
    let asked = asked.ok_or_else(|| refused("how it was asked for is not kept".into()))?;
    serde_json::from_value(asked.clone()).map_err(|e| refused(e.to_string()))
}

async fn begin(
    operate: &Operate,
    request: operate::Request,
    what: &str,
    by: &str,
) -> Result<OperationId, follow::Refused> {
    // each time is another wish: one that failed may be wished for again
    let id = format!("follow-{}-{}", what.get(..12).unwrap_or(what), ulid::Ulid::generate());
    let started = operate.start(request, &id, by).await;
    started.map(|record| record.id).map_err(|f| follow::Refused { passing: f.code == "BUSY", why: f.message })
}

/// Where others reach a deployment: only where the owner has said what they call this host.
fn link(config: watch::Receiver<Arc<AgentConfig>>) -> follow::Link {
    Arc::new(move |name| match config.borrow().gateway.public_url.trim_end_matches('/') {
        "" => String::new(),
        base => format!("{base}/mcp/{name}"),
    })
}

/// Whether whoever has a deployment follow its repository may deploy it still.
fn may_deploy(access: Access) -> follow::May {
    Arc::new(move |deployment, follow| {
        let Some(id) = &follow.user else { return Ok(()) };
        let directory = access.directory();
        let who = &follow.by;
        match directory.user(id) {
            None => Err(format!("{who}, who wanted it, is no user any more; have somebody else set it")),
            Some((user, _)) if user.disabled => Err(format!("{who}, who wanted it, is disabled")),
            Some((_, rights)) if rights.on(Subject::of(deployment)).may(Role::Deployer) => Ok(()),
            Some(_) => Err(format!("{who}, who wanted it, is not deployer of it any more")),
        }
    })
}

/// What the autoscaler decides on: what containers use, and what their callers see.
fn seen(reconcile: Reconcile, sample: Sample, gateway: Gateway) -> autoscale::Look {
    Arc::new(move |id, seconds| {
        let used = sample.deployment(id);
        Some(autoscale::Seen::of(&*reconcile.status(id)?, used.as_deref(), &gateway.recent(id, seconds.into())))
    })
}

/// How deployments sleep.
fn asleep(reconcile: Reconcile) -> autoscale::Asleep {
    Arc::new(move |id| {
        let Some(status) = reconcile.status(id) else { return autoscale::Sleeping::default() };
        let asleep = status.state == State::Sleeping;
        let stopped = asleep && status.replicas.iter().all(|replica| replica.state == Depth::Stopped.as_str());
        autoscale::Sleeping { asleep, stopped, start: status.wake_took }
    })
}

/// When deployments were called, from the rings.
fn called(sample: Sample) -> autoscale::Called {
    Arc::new(move |id| {
        let sample = sample.clone();
        Box::pin(async move {
            let now = Timestamp::now().as_second();
            match sample.series(sample::Of::Deployment(id), now - CALLED, now, 60).await {
                Ok((_, points)) => {
                    let called =
                        |(at, point): &(i64, Point)| (point.values[REQUESTS] > 0.0).then_some(at.div_euclid(60));
                    points.iter().filter_map(called).collect()
                }
                Err(error) => {
                    tracing::warn!(%error, deployment = %id, "when it was called cannot be read");
                    std::collections::BTreeSet::new()
                }
            }
        })
    })
}

fn wake(reconcile: Reconcile) -> autoscale::Wake {
    Arc::new(move |id, why| reconcile.wake(id, why))
}

/// What a replica has to do, for who probes it.
fn doing(sample: Sample, gateway: Gateway) -> probe::Look {
    Arc::new(move |id, instance| {
        let Burdened { in_flight, begun, heard, shared } = gateway.burdened(instance);
        let used = sample.deployment(id);
        let used = used.iter().flat_map(|used| &used.replicas).find(|used| used.instance == instance);
        let cpu = used.map(|used| (used.cpu_cores, used.cpu_limit));
        probe::Doing { under_way: in_flight, streams: begun > 0, heard, shared, cpu }
    })
}

/// The way to the processes that stateless requests share.
fn discover(gateway: Gateway) -> probe::Discover {
    Arc::new(move |instance, limit| {
        let gateway = gateway.clone();
        Box::pin(async move { gateway.discover(instance, limit).await })
    })
}

/// A source credential as the engine wants it.
fn registry_login(secrets: &Secrets, host: &str) -> Option<RegistryLogin> {
    let found = secrets.credential(host).and_then(|found| {
        found.iter().try_for_each(|login| secrets.notes_use(login, "base image"))?;
        Ok(found)
    });
    match found {
        Ok(found) => found.map(|c| RegistryLogin { host: c.host, username: c.username, password: c.password }),
        Err(error) => {
            tracing::warn!(%error, host, "a credential cannot be read; going on without");
            None
        }
    }
}

/// What `sigil info` warns about: alerts that fire, the state's alarms, a configuration that waits or was refused, rules that were refused.
fn notes(
    alarms: Vec<String>,
    reload: &Reload,
    mut own: watch::Receiver<Followed>,
    mut firing: watch::Receiver<Vec<Alert>>,
    mut no_reclaim: watch::Receiver<Option<String>>,
    stop: CancellationToken,
) -> watch::Receiver<Vec<String>> {
    let mut status = reload.watch_status();
    let lines = move |status: &sigil_config::reload::ReloadStatus,
                      own: &Followed,
                      firing: &[Alert],
                      no_reclaim: &Option<String>| {
        let mut lines = alarms.clone();
        lines.extend(status.last_error.as_ref().map(|e| format!("the configuration file was not taken: {e}")));
        lines.extend(
            own.refused.as_ref().map(|e| format!("the scanner's rules were not taken, the old ones count: {e}")),
        );
        lines.extend(status.needs_restart.iter().map(|key| format!("{key} changes with the next start")));
        let alert = |alert: &Alert| {
            let Fact { kind, about, text } = &alert.fact;
            format!("{about}: {} since {}: {text}", kind.as_str(), alert.since.strftime("%Y-%m-%d %H:%M:%S UTC"))
        };
        lines.extend(firing.iter().map(alert));
        let no_reclaim = no_reclaim.as_ref();
        lines.extend(
            no_reclaim.map(|why| format!("frozen deployments keep their memory where the host is short of it: {why}")),
        );
        lines
    };
    let (tx, rx) = watch::channel(lines(&status.borrow(), &own.borrow(), &firing.borrow(), &no_reclaim.borrow()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = status.changed() => {}
                Ok(()) = own.changed() => {}
                Ok(()) = firing.changed() => {}
                Ok(()) = no_reclaim.changed() => {}
            }
            let (status, own) = (status.borrow_and_update(), own.borrow_and_update());
            let now = lines(&status, &own, &firing.borrow_and_update(), &no_reclaim.borrow_and_update());
            tx.send_replace(now);
        }
    });
    rx
}

/// Ports of this host on which the agent listens, as configured.
fn agent_ports(gateway: std::net::SocketAddr, grpc: &str) -> Vec<u16> {
    let grpc = grpc.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    std::iter::once(gateway.port()).chain(grpc).collect()
}

/// What containers are refused is in the logs of their deployments.
fn tell_refusals(mut marks: tokio::sync::mpsc::Receiver<Mark>, tail: Tail, stop: CancellationToken) {
    tokio::spawn(async move {
        loop {
            let mark = tokio::select! {
                () = stop.cancelled() => break,
                mark = marks.recv() => mark,
            };
            let Some(Mark { deployment, release, instance, text }) = mark else { break };
            let (now, stream) = (Timestamp::now(), sigil_core::model::Stream::Agent);
            tail.append(deployment, release, Some(instance), stream, now, text.into()).await;
        }
    });
}

/// `[logs]`, `[outbound]` and `[audit]` are live. That the configuration changed, and in which keys, is on record.
fn follow_config(
    tail: Tail,
    links: InitLinks,
    audit: Audit,
    mut config: watch::Receiver<Arc<sigil_config::agent::AgentConfig>>,
    stop: CancellationToken,
) {
    tokio::spawn(async move {
        let mut before = config.borrow().clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = config.changed() => if changed.is_err() { break },
            }
            let now = config.borrow_and_update().clone();
            tail.configure(now.logs.clone());
            links.set_outbound(now.outbound.clone());
            audit.set_max_bytes(now.audit.max_bytes);
            let keys: Vec<&str> = sigil_config::agent::diff(&before, &now).iter().map(|c| c.path).collect();
            if !keys.is_empty() {
                audit.keep(by_agent("config.change").after("keys", keys.join(", "))).await;
            }
            before = now;
        }
    });
}

/// The engine's capped log, for what init wrote there while no agent listened.
#[derive(Debug)]
struct EngineLog {
    engine: Arc<dyn Engine>,
}

#[async_trait]
impl GapSource for EngineLog {
    async fn lines(&self, instance: InstanceId, since: Timestamp, until: Timestamp) -> Vec<(Timestamp, bool, Bytes)> {
        let read = async {
            let all = self.engine.observe().await?;
            let id = instance.to_string();
            let Some(container) = all.into_iter().find(|c| c.labels.get(label::INSTANCE) == Some(&id)) else {
                return Ok(Vec::new());
            };
            self.engine.engine_log(&container.id, Some(since), GAP_LINES).await
        };
        match read.await {
            Ok(lines) => lines.into_iter().filter(|l| l.time <= until).map(|l| (l.time, l.stderr, l.line)).collect(),
            Err(error) => {
                tracing::warn!(%error, %instance, "the engine's log of a gap cannot be read");
                Vec::new()
            }
        }
    }
}

/// What an hour of a replica costs at most, by the owner's rates: all its CPU quota and all its memory.
fn price(config: watch::Receiver<Arc<sigil_config::agent::AgentConfig>>) -> autoscale::Price {
    Arc::new(move |spec| {
        let rates = config.borrow().cost.clone();
        let memory = spec.resources.memory as f64 / 1e9;
        Some(spec.resources.cpu_limit * rates.cpu_hour + memory * rates.memory_gb_hour)
    })
}

/// What `/readyz` and `/metrics` show.
struct Pages {
    store: Store,
    reconcile: Reconcile,
    links: InitLinks,
    sample: Sample,
}

impl web::Status for Pages {
    fn ready(&self) -> Result<(), String> {
        self.reconcile.engine_trouble().map_or(Ok(()), Err)
    }

    fn deployments(&self) -> Vec<(&'static str, u64)> {
        let mut counts = std::collections::BTreeMap::new();
        for deployment in self.store.deployments() {
            let state = self.reconcile.status(deployment.id).map_or("pending", |s| s.state.as_str());
            *counts.entry(state).or_insert(0u64) += 1;
        }
        counts.into_iter().collect()
    }

    fn outbound(&self) -> web::Outbound {
        let (open, made, failed) = self.links.outbound_counts();
        let named = |(id, count)| Some((self.store.deployment(id)?.name.to_string(), count));
        let refused = self.links.refused_totals().into_iter().filter_map(named).collect();
        web::Outbound { open, made, failed, refused }
    }

    fn measured(&self) -> web::Measured {
        let names = self.store.deployments().into_iter().map(|d| (d.id, d.name.to_string())).collect();
        web::Measured { snapshot: self.sample.latest().borrow().clone(), names }
    }
}
