//! What a plan's actions do: bring an instance up, take one away, clean up after a removed deployment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use sigil_core::model::{
    Deployment, DeploymentId, InstanceId, Name, NetworkMode, ReleaseNo, ReleaseSpec, Transport, VolumeMode,
};
use sigil_core::route;
use sigil_core::sleep::Depth;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::lives::{Ended, Lives};
use super::slots::Done;
use super::{Deps, sleep};
use crate::engine::{ContainerSpec, ContainerState, Engine, EngineError, Mount, Network, label};
use crate::initlink::{Grant, Link, LinkError, Process, proxy_environment};
use crate::sample;
use crate::tail::Tail;
use crate::upstream::nap::Nap;
use crate::upstream::quota::{Quota, START_CPUS};
use crate::upstream::spare::Spare;
use crate::upstream::{self, GateOptions, Replica};

/// From a container's start until its init has connected.
const LINK_LIMIT: Duration = Duration::from_secs(20);
/// SIGTERM to SIGKILL.
const GRACE_SECONDS: u32 = 10;
/// Longest wait for the gateway to let go of an instance that is to be stopped. Draining was before.
const LET_GO: Duration = Duration::from_secs(2);
/// Lines of output kept of a failed instance.
const LAST_LINES: usize = 20;
/// The word for an instance that is being put to sleep.
pub(super) const FALLING_ASLEEP: &str = "falling-asleep";
/// Between two looks at a server that is starting again.
const LISTENS: Duration = Duration::from_millis(2);
/// A woken server keeps the wide quota so long after it listens: its first answer is a part of its start.
const WARM: Duration = Duration::from_secs(1);
/// Where servers may write beside their volumes.
pub(super) const HOME: &str = "/home/app";

/// Where bringing up begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// No container yet.
    Nothing,
    /// A container that may have to be started.
    Container,
    /// A container that ran before this agent did.
    Adopted,
    /// A container that was put to sleep.
    Asleep(Depth),
}

/// One instance on its way to serving.
pub(super) struct BringUp {
    pub deps: Arc<Deps>,
    pub deployment: Arc<Deployment>,
    pub release: ReleaseNo,
    pub restart: u64,
    pub spec: Arc<ReleaseSpec>,
    pub good: bool,
    pub instance: InstanceId,
    pub container: Option<String>,
    /// When its container started, once it has.
    pub began: Option<Timestamp>,
    /// Its init, once that has connected.
    pub link: Option<Link>,
    /// What it took to wake it, once that is done.
    pub woke: Option<Duration>,
    pub from: From,
    /// Who waits for it to be awake.
    pub nap: Nap,
    pub done: mpsc::Sender<Done>,
    pub cancel: CancellationToken,
    /// Where ends are kept that nobody asked for.
    pub lives: Lives,
    /// For what goes on after it has come up.
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// Why it did not come up, in one line.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Engine(#[from] EngineError),
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("{0}")]
    Gate(#[from] upstream::UpstreamError),
    #[error("{0}")]
    Secret(#[from] crate::secrets::SecretError),
    #[error("its tools cannot be pinned: {0}")]
    Pins(#[from] crate::store::StoreError),
    #[error("{0}")]
    Other(String),
}

impl BringUp {
    pub(super) async fn run(mut self) {
        let cancel = self.cancel.clone();
        let result = tokio::select! {
            () = cancel.cancelled() => None,
            result = self.bring_up() => Some(result),
        };
        let instance = self.instance;
        let done = match result {
            None => Done::Cancelled { instance },
            Some(Ok((replica, gated))) => Done::Up { instance, replica: Box::new(replica), gated, woke: self.woke },
            Some(Err(trouble)) => {
                let (why, ended) = self.explain(&trouble).await;
                // what failed must not go on burning its quota, or hold its volume
                if let Some(container) = &self.container
                    && let Err(error) = self.deps.engine.stop(container, 2).await
                {
                    tracing::warn!(%error, %instance, "a failed instance could not be stopped");
                }
                if self.container.is_some() {
                    self.deps.tail.ended(instance).await;
                }
                let output = last_output(&self.deps.tail, self.deployment.id, instance).await;
                let blameless = matches!(trouble, Trouble::Engine(EngineError::Unreachable { .. }));
                if !blameless && self.began.is_some() {
                    self.keep_life(&why, ended).await;
                }
                Done::Failed { instance, why, output, blameless }
            }
        };
        let _closed = self.done.send(done).await;
    }

    /// The exit of its container explains more than what the gate saw. With its exit code, and whether it ran out of memory,
    /// if it has ended by itself.
    async fn explain(&self, trouble: &Trouble) -> (String, Option<(i64, bool)>) {
        let words = trouble.to_string();
        let Some(container) = &self.container else { return (words, None) };
        match self.deps.engine.inspect(container).await.map(|c| c.state) {
            Ok(ContainerState::Exited { code, oom: true, .. }) => {
                let memory = self.spec.resources.memory >> 20;
                (format!("{words}: it ran out of memory ({memory} MiB)"), Some((code, true)))
            }
            Ok(ContainerState::Exited { code, oom, .. }) => (words, Some((code, oom))),
            // the init tells of its server's end a moment before the engine does of the container's
            _ => (words, self.link.as_ref().and_then(main_exit).map(|code| (code, false))),
        }
    }

    /// Keeps how it ended.
    async fn keep_life(&self, why: &str, ended: Option<(i64, bool)>) {
        let life = Ended {
            at: Timestamp::now(),
            began: self.began,
            instance: self.instance,
            release: self.release,
            served: false,
            code: ended.map(|(code, _)| code),
            oom: ended.is_some_and(|(_, oom)| oom),
            // the output follows it
            why: why.split(upstream::LAST_OUTPUT).next().unwrap_or_default().to_owned(),
            output: Vec::new(),
            cut: false,
        };
        self.lives.ended(&self.deps.tail, self.deployment.id, life).await;
    }

    async fn progress(&self, doing: &'static str, pid: Option<u32>, started_at: Option<Timestamp>) {
        let container = self.container.clone();
        let _closed =
            self.done.send(Done::Progress { instance: self.instance, doing, container, pid, started_at }).await;
    }

    async fn bring_up(&mut self) -> Result<(Replica, bool), Trouble> {
        let engine = self.deps.engine.clone();
        let to = [
            ("deployment", self.deployment.name.to_string()),
            ("release", self.release.to_string()),
            ("instance", self.instance.to_string()),
        ];
        let secrets =
            self.deps.secrets.hand_over(&crate::secrets::Whose::of(&self.deployment), &self.spec, &to).await?;
        let outbound = self.spec.network == NetworkMode::Link;
        // the owner's limits hold for releases that were made under others, too
        if !outbound && !self.deps.config.borrow().limits.allow_bridge {
            return Err(Trouble::Other("this host forbids network.mode: bridge ([limits] allow_bridge)".into()));
        }
        self.deps.links.grant(self.instance, Grant::release(self.deployment.id, self.release, &self.spec.egress));
        if let (From::Asleep(Depth::Stopped), true, Some(container)) = (self.from, self.good, self.container.clone()) {
            return self.awaken(&container, outbound, secrets).await;
        }
        let made = self.container.is_none();
        if made {
            self.progress("creating", None, None).await;
            let spec = self.container_spec(outbound).await?;
            self.container = Some(engine.create(&spec).await?);
        } else {
            // listens again when a former agent made it
            self.deps.links.prepare(self.instance, outbound).await?;
        }
        let Some(container) = self.container.clone() else {
            return Err(Trouble::Other("the engine made no container".into()));
        };

        let state = engine.inspect(&container).await?.state;
        let adopted = matches!(
            (self.from, &state),
            (From::Adopted | From::Asleep(_), ContainerState::Running { .. })
                | (From::Asleep(_), ContainerState::Paused { .. })
        );
        match state {
            ContainerState::Running { .. } => {}
            ContainerState::Paused { .. } => engine.unpause(&container).await?,
            _ => {
                self.progress("starting", None, None).await;
                engine.start(&container).await?;
                // a former life's quota may be the narrow one; Podman changes it of running containers only
                if !made {
                    engine.set_cpus(&container, self.start_cpus()).await?;
                }
            }
        }
        let ContainerState::Running { pid, started_at } = engine.inspect(&container).await?.state else {
            return Err(Trouble::Other("its container ended at once".into()));
        };
        self.began = Some(started_at);
        self.expect(&container, pid);
        self.progress("starting", Some(pid), Some(started_at)).await;
        let link = self.deps.links.wait(self.instance, LINK_LIMIT).await?;
        self.link = Some(link.clone());
        let environment = Arc::new(environment(&self.deployment.name, &self.spec, secrets));
        if self.spec.transport != Transport::Stdio {
            let process = Process {
                argv: self.spec.command.clone(),
                env: environment.as_ref().clone(),
                workdir: self.spec.workdir.clone(),
            };
            link.start_main(process).await?;
        }
        let replica = self.replica(link.clone(), environment);
        if !made && self.spec.transport == Transport::Stdio {
            let processes = upstream::adopt(&replica, &self.deps.tail).await?;
            if let Some(bytes) = sample::needed(pid).filter(|_| self.good && processes > 0) {
                self.measured(&replica, bytes / processes);
            }
        }
        if adopted && self.good && self.serves(&link).await {
            // a former agent may have been killed while a session started
            if self.widens() {
                self.keep(&replica.quota, &container);
            }
            return Ok((replica, false));
        }
        self.progress("gating", Some(pid), Some(started_at)).await;
        let limit = Duration::from_millis(self.spec.start_timeout_ms);
        if let Some(bytes) = self.deps.proven.memory(&self.spec.image) {
            replica.spare.measured(bytes);
        }
        let options = GateOptions { timeout: limit, measure: &|| sample::needed(pid), together: self.together() };
        let handshake = upstream::gate(&replica, &self.deps.tail, &options).await?;
        if let Some(bytes) = replica.spare.memory() {
            self.measured(&replica, bytes);
        }
        tracing::info!(
            deployment = %self.deployment.name, release = self.release, instance = %self.instance,
            server = handshake.server_name, protocol = handshake.protocol_version, tools = handshake.tool_count,
            elapsed_ms = u64::try_from(handshake.elapsed.as_millis()).unwrap_or(u64::MAX), "gate passed"
        );
        self.deps.inspect.gated(&self.deployment, self.release, self.instance, handshake.tools.get()).await?;
        if self.widens() {
            self.keep(&replica.quota, &container);
        } else {
            engine.set_cpus(&container, self.spec.resources.cpu_limit).await?;
        }
        Ok((replica, true))
    }

    /// Starts a container again that was put to sleep. What it serves was proven: it is called as soon as it listens.
    async fn awaken(
        &mut self,
        container: &str,
        outbound: bool,
        secrets: Vec<(String, SecretString)>,
    ) -> Result<(Replica, bool), Trouble> {
        let engine = self.deps.engine.clone();
        self.deps.links.prepare(self.instance, outbound).await?;
        self.progress("starting", None, None).await;
        let began = tokio::time::Instant::now();
        engine.start(container).await?;
        let started = began.elapsed();
        let (wide, cpus, id) = (engine.clone(), self.start_cpus(), container.to_owned());
        // beside the start, not before it; Podman changes the quota of running containers only
        let widened = self.tasks.spawn(async move { wide.set_cpus(&id, cpus).await });
        let ContainerState::Running { pid, started_at } = engine.inspect(container).await?.state else {
            return Err(Trouble::Other("its container ended at once".into()));
        };
        self.began = Some(started_at);
        self.expect(container, pid);
        self.progress("starting", Some(pid), Some(started_at)).await;
        let link = self.deps.links.wait(self.instance, LINK_LIMIT).await?;
        self.link = Some(link.clone());
        let linked = began.elapsed();
        let environment = Arc::new(environment(&self.deployment.name, &self.spec, secrets));
        if self.spec.transport != Transport::Stdio {
            let (argv, workdir) = (self.spec.command.clone(), self.spec.workdir.clone());
            link.start_main(Process { argv, env: environment.as_ref().clone(), workdir }).await?;
            self.listens(&link).await?;
        }
        let replica = self.replica(link, environment);
        if let Some(bytes) = self.deps.proven.memory(&self.spec.image) {
            replica.spare.measured(bytes);
        }
        sleep::publish(&self.deps, &self.deployment, &replica);
        self.nap.woke();
        self.woke = Some(began.elapsed());
        tracing::debug!(
            deployment = %self.deployment.name, instance = %self.instance, ?started, ?linked, ready = ?began.elapsed(),
            "woken"
        );
        if self.widens() {
            self.keep(&replica.quota, container);
        } else {
            let (limit, id) = (self.spec.resources.cpu_limit, container.to_owned());
            self.tasks.spawn(async move {
                // how that ended is told by what follows
                let _ended = widened.await;
                tokio::time::sleep(WARM).await;
                narrow(engine.as_ref(), &id, limit).await;
            });
        }
        Ok((replica, false))
    }

    /// Waits until the server takes connections.
    async fn listens(&self, link: &Link) -> Result<(), Trouble> {
        let limit = Duration::from_millis(self.spec.start_timeout_ms);
        let late = tokio::time::Instant::now() + limit;
        let mut ended = link.main_exit();
        loop {
            if link.dial(self.spec.port).await.is_ok() {
                return Ok(());
            }
            if let Some(exit) = ended.borrow_and_update().clone() {
                return Err(Trouble::Other(format!("the server {} when it was woken", upstream::describe(&exit))));
            }
            if tokio::time::Instant::now() >= late {
                let ms = limit.as_millis();
                return Err(Trouble::Other(format!("the server took no connection within {ms} ms of being woken")));
            }
            tokio::time::sleep(LISTENS).await;
        }
    }

    fn replica(&self, link: Link, env: Arc<Vec<(String, SecretString)>>) -> Replica {
        Replica {
            deployment: self.deployment.id,
            release: self.release,
            instance: self.instance,
            spec: self.spec.clone(),
            link,
            env,
            quota: Quota::default(),
            spare: Spare::default(),
        }
    }

    /// What one of its processes needs is known.
    fn measured(&self, replica: &Replica, bytes: u64) {
        replica.spare.measured(bytes);
        self.deps.proven.passed(&self.spec.image, bytes);
    }

    /// Whether the first session's process starts beside the gate's own: a server that has not shown yet that it works
    /// would say twice why not, and one that is short of memory would run out of it.
    fn together(&self) -> bool {
        let resources = &self.spec.resources;
        let known = self.deps.proven.memory(&self.spec.image);
        self.spec.transport == Transport::Stdio
            && known.is_some_and(|_| route::sessions_default(resources.processes, resources.memory, known) >= 2)
    }

    /// Cores until the gate is passed: one for each process that starts, as far as the host has them.
    fn start_cpus(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let wanted = if self.together() && cores > 1 { 2.0 * START_CPUS } else { START_CPUS };
        wanted.max(self.spec.resources.cpu_limit)
    }

    /// Whether each session starts a process, which then gets what the first one had.
    fn widens(&self) -> bool {
        self.spec.transport == Transport::Stdio && self.spec.resources.cpu_limit < START_CPUS
    }

    fn keep(&self, quota: &Quota, container: &str) {
        let limit = self.spec.resources.cpu_limit;
        quota.keep(self.deps.engine.clone(), container.to_owned(), limit, &self.tasks, self.stop.clone());
    }

    /// Whether a server that a former agent started is still there; no handshake, so that it notices nothing.
    async fn serves(&self, link: &Link) -> bool {
        self.spec.transport == Transport::Stdio || link.dial(self.spec.port).await.is_ok()
    }

    /// From now on its init may be heard.
    fn expect(&self, container: &str, pid: u32) {
        self.deps.sample.expect(sample::Instance {
            instance: self.instance,
            deployment: self.deployment.id,
            release: self.release,
            container: container.to_owned(),
            pid,
            ready: false,
        });
        self.deps.links.expect(self.instance, pid);
    }

    async fn container_spec(&self, outbound: bool) -> Result<ContainerSpec, Trouble> {
        let deps = &self.deps;
        let spec = &self.spec;
        let agent = deps.agent.to_string().to_lowercase();
        let id = self.deployment.id.to_string().to_lowercase();
        let (mut mounts, entrypoint, env) = deps.links.prepare(self.instance, outbound).await?;
        let mut labels = BTreeMap::from([
            (label::AGENT.to_owned(), deps.agent.to_string()),
            (label::DEPLOYMENT.to_owned(), self.deployment.name.to_string()),
            (label::DEPLOYMENT_ID.to_owned(), self.deployment.id.to_string()),
            (label::TEAM.to_owned(), self.deployment.team.clone()),
        ]);
        for volume in &spec.volumes {
            let host = volume.source.starts_with('/');
            let source = if host { volume.source.clone() } else { format!("sigil-{agent}-{id}-{}", volume.source) };
            if !host {
                deps.engine.ensure_volume(&source, &labels, &spec.user).await?;
            }
            mounts.push(Mount {
                source,
                target: volume.path.clone(),
                read_only: volume.mode == VolumeMode::ReadOnly,
                volume: !host,
            });
        }
        let network = match spec.network {
            NetworkMode::Link => Network::None,
            NetworkMode::Bridge => {
                let name = format!("sigil-{agent}-{id}");
                deps.engine.ensure_network(&name, &labels).await?;
                Network::Named(name)
            }
        };
        labels.extend([
            (label::RELEASE.to_owned(), self.release.to_string()),
            (label::INSTANCE.to_owned(), self.instance.to_string()),
            (label::RESTART.to_owned(), self.restart.to_string()),
            (label::ROLE.to_owned(), "replica".to_owned()),
        ]);
        let instance = self.instance.to_string().to_lowercase();
        // half of the quarter that may be tmpfs for each
        let scratch = (spec.resources.memory / 8).max(8 << 20);
        Ok(ContainerSpec {
            name: format!("sigil-{agent}-{}-{}", self.deployment.name, &instance[instance.len() - 10..]),
            image: spec.image.clone(),
            entrypoint,
            env,
            labels,
            user: spec.user.clone(),
            workdir: "/".into(),
            resources: spec.resources.clone(),
            start_cpus: self.start_cpus(),
            mounts,
            tmpfs: BTreeMap::from([("/tmp".to_owned(), scratch), (HOME.to_owned(), scratch)]),
            dns: if network == Network::None { vec!["127.0.0.1".to_owned()] } else { vec![] },
            network,
            hostname: self.deployment.name.to_string(),
        })
    }
}

/// How its server ended, as a container's exit code.
fn main_exit(link: &Link) -> Option<i64> {
    let exit = link.main_exit().borrow().clone()?;
    exit.code.or(exit.signal.map(|signal| 128 + signal)).map(i64::from)
}

/// Takes a woken container's wide quota away: it must not keep what is not its tier's.
async fn narrow(engine: &dyn Engine, container: &str, limit: f64) {
    while let Err(error) = engine.set_cpus(container, limit).await {
        // it may sleep again, or be gone: then its next start sets the quota
        if !engine.inspect(container).await.is_ok_and(|c| matches!(c.state, ContainerState::Running { .. })) {
            return;
        }
        tracing::warn!(%error, container, "its CPU quota could not be narrowed; trying again");
        tokio::time::sleep(WARM).await;
    }
}

/// The whole environment of a server's process: image and manifest, ours, then secrets.
fn environment(name: &Name, spec: &ReleaseSpec, secrets: Vec<(String, SecretString)>) -> Vec<(String, SecretString)> {
    let mut env: BTreeMap<String, SecretString> = BTreeMap::new();
    env.insert("HOME".into(), HOME.into());
    env.insert("TMPDIR".into(), "/tmp".into());
    env.insert("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    for (name, value) in &spec.env {
        env.insert(name.clone(), value.clone().into());
    }
    if spec.transport != Transport::Stdio {
        env.insert("PORT".into(), spec.port.to_string().into());
    }
    env.extend(secrets);
    if spec.network == NetworkMode::Link {
        let port = (spec.transport != Transport::Stdio).then_some(spec.port);
        let offered = proxy_environment(name.as_str(), port, |variable| env.contains_key(variable));
        env.extend(offered.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
    }
    env.into_iter().collect()
}

/// The newest lines of an instance, oldest first, as text.
pub(super) async fn last_output(tail: &Tail, deployment: DeploymentId, instance: InstanceId) -> Vec<String> {
    // its end may be known a moment before its last words are here; one that never said anything costs this much time
    for attempt in 0..30 {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tail.flush().await;
        let lines = tail.last(deployment, Some(instance), LAST_LINES).await;
        let lines: Vec<String> = lines
            .iter()
            .filter(|l| l.stream != sigil_core::model::Stream::Agent)
            .map(|l| String::from_utf8_lossy(&l.bytes).into_owned())
            .collect();
        if !lines.is_empty() {
            return lines;
        }
    }
    Vec::new()
}

/// Puts an instance to sleep that nobody calls.
pub(super) fn rest(
    deps: Arc<Deps>,
    instance: InstanceId,
    container: Option<String>,
    depth: Depth,
    done: mpsc::Sender<Done>,
    tasks: &TaskTracker,
) {
    tasks.spawn(async move {
        let result = async {
            let Some(container) = container else { return Ok(()) };
            match depth {
                Depth::Paused => deps.engine.pause(&container).await,
                Depth::Stopped => {
                    deps.engine.stop(&container, GRACE_SECONDS).await?;
                    deps.tail.ended(instance).await;
                    Ok(())
                }
            }
        };
        let error = result.await.err().map(|error| {
            tracing::warn!(%error, %instance, "an instance could not be put to sleep");
            error.to_string()
        });
        let _closed = done.send(Done::Slept { instance, depth, error }).await;
    });
}

/// Stops an instance and removes its container, once the gateway has let go of it: the table without it is published
/// in the same round.
pub(super) fn remove(
    deps: Arc<Deps>,
    deployment: DeploymentId,
    instance: InstanceId,
    container: Option<String>,
    done: mpsc::Sender<Done>,
    tasks: &TaskTracker,
) {
    tasks.spawn(async move {
        let late = tokio::time::Instant::now() + LET_GO;
        while (deps.reachable)(deployment, instance) && tokio::time::Instant::now() < late {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let result = async {
            if let Some(container) = &container {
                deps.engine.stop(container, GRACE_SECONDS).await?;
                // its log goes with it
                deps.tail.ended(instance).await;
                deps.engine.remove(container).await?;
            }
            Ok::<(), EngineError>(())
        };
        let report = match result.await {
            Ok(()) => Done::Removed { instance },
            Err(error) => {
                tracing::warn!(%error, %instance, "an instance could not be removed; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
                Done::Stuck { instance, why: error.to_string() }
            }
        };
        let _closed = done.send(report).await;
    });
}

/// Removes what a removed deployment leaves beside containers, then its record. Volumes stay: they are data.
pub(super) fn clean(
    deps: Arc<Deps>,
    lives: Lives,
    deployment: Arc<Deployment>,
    done: mpsc::Sender<Done>,
    tasks: &TaskTracker,
) {
    tasks.spawn(async move {
        let agent = deps.agent.to_string().to_lowercase();
        let network = format!("sigil-{agent}-{}", deployment.id.to_string().to_lowercase());
        let bridged = deployment.releases.iter().any(|r| r.spec.network == NetworkMode::Bridge);
        let result = async {
            if bridged {
                deps.engine.remove_network(&network).await.map_err(|e| e.to_string())?;
            }
            deps.tail.forget(deployment.id).await;
            let id = deployment.id;
            tokio::task::spawn_blocking(move || lives.forget(id)).await.map_err(|e| e.to_string())?;
            deps.links.forget_deployment(deployment.id);
            deps.store.delete(deployment.id).await.map_err(|e| e.to_string())
        };
        let error = result.await.err();
        if let Some(error) = &error {
            tracing::warn!(%error, deployment = %deployment.name, "could not clean up; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let _closed = done.send(Done::Cleaned { deployment: deployment.id, error }).await;
    });
}
