//! The container whose network the steps join: our init and nothing else, so that what a build reaches goes through
//! the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sigil_core::model::{InstanceId, Resources};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{BuildError, Inner, REPOSITORY, context};
use crate::engine::{BuildSpec, ContainerSpec, ContainerState, Engine, EngineError, Network, label};
use crate::initlink::{Grant, InitLinks, place};

/// Value of [`label::ROLE`].
const ROLE: &str = "build";
/// Nobody's user: init needs no rights.
const USER: &str = "65532:65532";
/// Longest wait for init to call.
const CALL: Duration = Duration::from_secs(15);
/// Wait between two tries to sweep while the engine is away.
const SWEEP: Duration = Duration::from_secs(5);
/// The image has no files: init is mounted in.
const DOCKERFILE: &str = "FROM scratch\nLABEL sigil.helper=1\n";

/// Helpers of builds that run now.
pub(super) type Live = Arc<Mutex<BTreeSet<InstanceId>>>;

/// A running helper; [`end`](Helper::end) removes it, dropping it does so in the background.
pub(super) struct Helper {
    pub(super) id: String,
    rest: Option<Rest>,
}

struct Rest {
    engine: Arc<dyn Engine>,
    links: InitLinks,
    live: Live,
    instance: InstanceId,
    container: String,
}

impl Rest {
    async fn remove(self) {
        if !self.container.is_empty()
            && let Err(error) = self.engine.remove(&self.container).await
        {
            // The next start's sweep takes it.
            tracing::warn!(%error, container = %self.container, "build helper could not be removed");
        }
        self.links.forget(self.instance).await;
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.instance);
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let (Some(rest), Ok(runtime)) = (self.rest.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(rest.remove());
        }
    }
}

impl Helper {
    pub(super) async fn start(inner: &Inner, cancel: &CancellationToken) -> Result<Self, BuildError> {
        let image = image(inner, cancel).await?;
        let instance = InstanceId(ulid::Ulid::generate());
        inner.helpers.lock().unwrap_or_else(PoisonError::into_inner).insert(instance);
        let rest = Rest {
            engine: inner.engine.clone(),
            links: inner.links.clone(),
            live: inner.helpers.clone(),
            instance,
            container: String::new(),
        };
        let mut helper = Self { id: String::new(), rest: Some(rest) };
        let link_failed = |error: crate::initlink::LinkError| {
            BuildError::failed(
                format!("the build's network helper: {error}"),
                "[builder] network = \"bridge\" builds without it, on the engine's default network",
            )
        };
        inner.links.grant(instance, Grant::build(instance, &inner.config.borrow().builder));
        let (mounts, entrypoint, env) = inner.links.prepare(instance, true).await.map_err(link_failed)?;
        let agent = inner.agent.to_string();
        let spec = ContainerSpec {
            name: format!("sigil-{}-build-{}", agent.to_ascii_lowercase(), instance.to_string().to_ascii_lowercase()),
            image,
            entrypoint,
            env,
            labels: BTreeMap::from([
                (label::AGENT.to_owned(), agent),
                (label::ROLE.to_owned(), ROLE.to_owned()),
                (label::INSTANCE.to_owned(), instance.to_string()),
            ]),
            user: USER.into(),
            workdir: "/".into(),
            resources: Resources {
                tier: "custom".into(),
                cpu_share: 0.25,
                cpu_limit: 1.0,
                memory: 64 << 20,
                storage: 0,
                processes: 32,
                files: 4096,
            },
            start_cpus: 1.0,
            mounts,
            tmpfs: BTreeMap::new(),
            network: Network::None,
            dns: vec!["127.0.0.1".into()],
            hostname: "build".into(),
        };
        let id = inner.engine.create(&spec).await?;
        if let Some(rest) = &mut helper.rest {
            rest.container = id.clone();
        }
        inner.engine.start(&id).await?;
        match inner.engine.inspect(&id).await?.state {
            ContainerState::Running { pid, .. } => inner.links.expect(instance, pid),
            other => {
                return Err(BuildError::failed(
                    format!("the build's network helper did not stay up: {other:?}"),
                    "[builder] network = \"bridge\" builds without it, on the engine's default network",
                ));
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return Err(BuildError::Cancelled),
            called = inner.links.wait(instance, CALL) => called.map_err(link_failed)?,
        };
        helper.id = id;
        Ok(helper)
    }

    /// What the steps were refused, a line each.
    pub(super) fn refused(&self) -> Vec<String> {
        let Some(rest) = &self.rest else { return Vec::new() };
        let line = |r: crate::initlink::Refused| format!("egress refused: {}: {}", place(&r.host, r.port), r.why);
        rest.links.build_refusals(rest.instance).into_iter().map(line).collect()
    }

    pub(super) async fn end(mut self) {
        if let Some(rest) = self.rest.take() {
            rest.remove().await;
        }
    }
}

/// The helper's image, made on first use. It has no files, so that it works whatever base images are here.
async fn image(inner: &Inner, cancel: &CancellationToken) -> Result<String, BuildError> {
    let agent = inner.agent.to_string();
    let tag = format!("{REPOSITORY}/helper:{}", agent.to_ascii_lowercase());
    if let Some(held) = inner.engine.image(&tag).await? {
        return Ok(held.id);
    }
    let spec = BuildSpec {
        dockerfile: format!("{}/Dockerfile", super::OWN),
        tag,
        args: BTreeMap::new(),
        labels: BTreeMap::from([(label::AGENT.to_owned(), agent)]),
        network: Network::None,
        memory: 64 << 20,
        cpus: 1.0,
        target: String::new(),
        no_cache: false,
        extra_hosts: Vec::new(),
        cache: String::new(),
    };
    // Nobody reads two lines about our own plumbing; what failed is in the error.
    let (out, mut lines) = mpsc::channel(16);
    let unread = tokio::spawn(async move { while lines.recv().await.is_some() {} });
    let stream = context::stream(None, DOCKERFILE.to_owned(), None);
    let built = inner.engine.build(stream, &spec, &[], out, cancel.child_token()).await;
    unread.abort();
    Ok(built?)
}

/// Removes helpers of a former agent, as soon as the engine answers.
pub(super) async fn sweep(engine: Arc<dyn Engine>, links: InitLinks, live: Live, stop: CancellationToken) {
    loop {
        match leftovers(&engine, &links, &live).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "leftovers of builds are looked for later"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => {}
        }
    }
}

async fn leftovers(engine: &Arc<dyn Engine>, links: &InitLinks, live: &Live) -> Result<(), EngineError> {
    for held in engine.observe().await? {
        let Some(instance) = held.instance() else { continue };
        let running = live.lock().unwrap_or_else(PoisonError::into_inner).contains(&instance);
        if held.labels.get(label::ROLE).is_some_and(|role| role == ROLE) && !running {
            engine.remove(&held.id).await?;
            links.forget(instance).await;
            tracing::info!(container = %held.name, "removed a build helper that a former agent left");
        }
    }
    Ok(())
}
