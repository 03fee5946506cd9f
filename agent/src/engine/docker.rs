//! Owns: one connection to Docker or Podman over its unix socket, made when first needed and again when lost.
//! May touch: the engine's API. Never: an object without this agent's label, a call without a deadline.
//! Tested by: `tests/contract`.
//!
//! Docker and Podman speak the same API here; where they differ, [`Capabilities::name`] decides, in one place each.
//! bollard 0.21 sends unversioned paths whatever was negotiated (`Uri::parse` joins an absolute path over the
//! versioned one), so a request modifier puts the version in. It also ends every request whose headers are late by
//! its own timeout, so that timeout is out of the way and every call here has a deadline of its own.

mod build;
mod connect;
mod create;
mod events;
mod objects;
mod push;
mod stats;
mod text;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bollard::query_parameters as query;
use futures::StreamExt;
use jiff::Timestamp;
use sigil_config::agent::EngineConfig;
use sigil_core::cgroup::Reading;
use sigil_core::model::AgentId;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    BuildSpec, Capabilities, Container, ContainerSpec, ContainerState, Context, Engine, EngineError, EngineLine, Image,
    RegistryLogin, Result, Wanted, label,
};
use connect::Conn;

/// Deadline of a call that only reads, seconds.
const READ: u64 = 20;
/// Deadline of a call that changes something, seconds.
const CHANGE: u64 = 60;
/// Deadline of one inspect within `observe`, seconds: a hung container must not hide the others.
const INSPECT: u64 = 5;
/// Inspects at once within `observe`.
const PARALLEL: usize = 8;

/// Docker or Podman behind a unix socket. Clones share the connection; the last one dropped ends its event task.
#[derive(Clone, Debug)]
pub struct Docker {
    inner: Arc<Inner>,
    _events: Arc<DropGuard>,
}

#[derive(Debug)]
struct Inner {
    /// Where a `resolv.conf` for Podman's containers without a network is kept, see [`Docker::files`].
    files: OnceLock<PathBuf>,
    /// As configured; empty means: look for one.
    host: String,
    /// Our label's value.
    agent: String,
    conn: Mutex<Option<Arc<Conn>>>,
    changes: watch::Sender<u64>,
}

/// Whose an object is.
enum Whose<T> {
    Ours(T),
    Foreign,
    Gone,
}

impl Docker {
    /// Prepares a connection to `config.host`, or to the first of `DOCKER_HOST`, Docker's socket, Podman's user and
    /// system sockets that exists. Succeeds when the engine is away: calls then answer [`EngineError::Unreachable`]
    /// until it is back. Must be called within a tokio runtime (it starts the event task).
    ///
    /// # Errors
    /// `Unreachable` when `host` is set to something that is no unix socket.
    pub fn connect(config: &EngineConfig, agent: AgentId) -> Result<Self> {
        if !config.host.is_empty() {
            connect::socket_path(&config.host)?;
        }
        let (changes, _) = watch::channel(0);
        let inner = Arc::new(Inner {
            files: OnceLock::new(),
            host: config.host.clone(),
            agent: agent.to_string(),
            conn: Mutex::new(None),
            changes,
        });
        let stop = CancellationToken::new();
        tokio::spawn(events::follow(inner.clone(), stop.clone()));
        Ok(Self { inner, _events: Arc::new(stop.drop_guard()) })
    }

    /// Where the engine is looked for, as configured; `auto` when nothing is.
    pub fn host(&self) -> String {
        if self.inner.host.is_empty() { "auto".to_owned() } else { self.inner.host.clone() }
    }

    /// Gives a directory of this host for the `resolv.conf` that Podman needs: unlike Docker it writes none for a
    /// container without a network, and then one of the image's would count. Without a directory such a container is
    /// refused on Podman. Set once; later calls change nothing.
    #[must_use]
    pub fn files(self, dir: &Path) -> Self {
        let _set_before = self.inner.files.set(dir.to_owned());
        self
    }
}

impl Inner {
    /// The connection, made when there is none.
    async fn conn(&self) -> Result<Arc<Conn>> {
        let mut slot = self.conn.lock().await;
        if let Some(conn) = slot.as_ref() {
            return Ok(conn.clone());
        }
        let conn = Arc::new(Conn::open(&self.host).await?);
        tracing::info!(
            host = %conn.host, engine = %conn.caps.name, version = %conn.caps.version, api = %conn.caps.api_version,
            "engine connected"
        );
        *slot = Some(conn.clone());
        Ok(conn)
    }

    /// Forgets a connection that failed, so that the next call negotiates again (another engine may answer then).
    async fn lost(&self, conn: &Arc<Conn>) {
        let mut slot = self.conn.lock().await;
        if slot.as_ref().is_some_and(|held| Arc::ptr_eq(held, conn)) {
            *slot = None;
        }
    }

    /// One call with its deadline; its error in our words.
    async fn call<T>(
        &self,
        conn: &Arc<Conn>,
        what: &str,
        seconds: u64,
        call: impl Future<Output = std::result::Result<T, bollard::errors::Error>>,
    ) -> Result<T> {
        let error = match tokio::time::timeout(Duration::from_secs(seconds), call).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => connect::translate(error, &conn.host, what),
            Err(_) => EngineError::Timeout { what: what.to_owned(), seconds },
        };
        if matches!(error, EngineError::Unreachable { .. } | EngineError::Permission { .. }) {
            self.lost(conn).await;
        }
        Err(error)
    }

    fn ours(&self, labels: Option<&HashMap<String, String>>) -> bool {
        labels.and_then(|labels| labels.get(label::AGENT)).is_some_and(|agent| *agent == self.agent)
    }

    fn label_filter(&self) -> HashMap<String, Vec<String>> {
        HashMap::from([("label".to_owned(), vec![format!("{}={}", label::AGENT, self.agent)])])
    }

    /// Labels of an object to be made: ours always among them.
    fn labels(&self, given: &BTreeMap<String, String>) -> HashMap<String, String> {
        let mut labels: HashMap<_, _> = given.clone().into_iter().collect();
        labels.insert(label::AGENT.to_owned(), self.agent.clone());
        labels
    }

    async fn whose(&self, conn: &Arc<Conn>, id: &str, seconds: u64) -> Result<Whose<Container>> {
        match objects::inspect(self, conn, id, seconds).await {
            Ok(found) if found.labels.get(label::AGENT) == Some(&self.agent) => {
                conn.is_ours(&found.id);
                Ok(Whose::Ours(found))
            }
            Ok(_) => Ok(Whose::Foreign),
            Err(EngineError::NotFound(_)) => Ok(Whose::Gone),
            Err(error) => Err(error),
        }
    }

    /// A container of ours, or the reason why it may not be touched.
    async fn owned(&self, conn: &Arc<Conn>, id: &str) -> Result<Container> {
        match self.whose(conn, id, READ).await? {
            Whose::Ours(container) => Ok(container),
            Whose::Foreign => Err(not_ours("container", id)),
            Whose::Gone => Err(EngineError::NotFound(format!("container {id}"))),
        }
    }
}

fn not_ours(kind: &str, name: &str) -> EngineError {
    EngineError::Conflict(format!("{kind} {name} does not carry this agent's label and is left alone"))
}

#[async_trait]
impl Engine for Docker {
    async fn capabilities(&self) -> Result<Capabilities> {
        let conn = self.inner.conn().await?;
        // A kept answer would hide that the engine went away.
        self.inner.call(&conn, "ping", READ, conn.docker.ping()).await?;
        Ok(conn.caps.clone())
    }

    fn events(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    async fn observe(&self) -> Result<Vec<Container>> {
        let conn = self.inner.conn().await?;
        let listed = objects::list(&self.inner, &conn).await?;
        let looks = listed.into_iter().map(|summary| {
            let (inner, conn) = (&self.inner, &conn);
            async move {
                match inner.whose(conn, &summary.id, INSPECT).await {
                    Ok(Whose::Ours(container)) => Ok(Some(container)),
                    Ok(Whose::Foreign | Whose::Gone) => Ok(None),
                    // One hung container is told as such; it must not blind us to all others.
                    Err(EngineError::Timeout { .. }) => Ok(Some(objects::unresponsive(summary))),
                    Err(error) => Err(error),
                }
            }
        });
        let mut looks = futures::stream::iter(looks).buffered(PARALLEL);
        let mut all = Vec::new();
        while let Some(look) = looks.next().await {
            all.extend(look?);
        }
        Ok(all)
    }

    async fn inspect(&self, id: &str) -> Result<Container> {
        let conn = self.inner.conn().await?;
        match self.inner.whose(&conn, id, READ).await? {
            Whose::Ours(container) => Ok(container),
            Whose::Foreign | Whose::Gone => Err(EngineError::NotFound(format!("container {id}"))),
        }
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String> {
        let conn = self.inner.conn().await?;
        text::safe_name(&spec.name)?;
        let user = create::user(&self.inner, &conn, &spec.image, &spec.user).await?;
        let mut body = create::body(spec, &user, self.inner.labels(&spec.labels), &conn.caps)?;
        if conn.podman() {
            create::resolver(&mut body, spec, self.inner.files.get().map(PathBuf::as_path)).await?;
        }
        let options = query::CreateContainerOptions { name: Some(spec.name.clone()), ..Default::default() };
        let made =
            self.inner.call(&conn, "create container", CHANGE, conn.docker.create_container(Some(options), body)).await;
        let error = match made {
            Ok(made) => return Ok(made.id),
            Err(error) => error,
        };
        // Docker answers 409, Podman 500, when the name is taken: what is there decides, not the code. A create whose
        // answer was lost is found the same way.
        match self.inner.whose(&conn, &spec.name, READ).await {
            Ok(Whose::Ours(held)) if held.labels.get(label::INSTANCE) == spec.labels.get(label::INSTANCE) => {
                Ok(held.id)
            }
            Ok(Whose::Ours(_)) => {
                Err(EngineError::Conflict(format!("the name {} belongs to another instance", spec.name)))
            }
            Ok(Whose::Foreign) => Err(not_ours("container", &spec.name)),
            Ok(Whose::Gone) | Err(_) => Err(error),
        }
    }

    async fn resolve_user(&self, image: &str, user: &str) -> Result<String> {
        let conn = self.inner.conn().await?;
        create::user(&self.inner, &conn, image, user).await
    }

    async fn read_image(&self, image: &str, wanted: Wanted, most: u64) -> Result<Vec<(String, Vec<u8>)>> {
        let conn = self.inner.conn().await?;
        create::read_image(&self.inner, &conn, image, wanted, most).await
    }

    async fn start(&self, id: &str) -> Result<()> {
        let conn = self.inner.conn().await?;
        if conn.knows(id) {
            // what went wrong, if it did, is found out below
            let call = self.inner.call(&conn, "start container", CHANGE, conn.docker.start_container(id, None));
            if call.await.is_ok() {
                return Ok(());
            }
        }
        let held = self.inner.owned(&conn, id).await?;
        if matches!(held.state, ContainerState::Running { .. }) {
            return Ok(());
        }
        self.inner.call(&conn, "start container", CHANGE, conn.docker.start_container(&held.id, None)).await
    }

    async fn stop(&self, id: &str, grace: u32) -> Result<()> {
        let conn = self.inner.conn().await?;
        let held = match self.inner.whose(&conn, id, READ).await? {
            Whose::Ours(held) => held,
            Whose::Gone => return Ok(()),
            Whose::Foreign => return Err(not_ours("container", id)),
        };
        match held.state {
            ContainerState::Created | ContainerState::Exited { .. } => return Ok(()),
            // A frozen process cannot answer a signal; Podman refuses to stop it at all.
            ContainerState::Paused { .. } => {
                self.inner.call(&conn, "unpause container", CHANGE, conn.docker.unpause_container(&held.id)).await?;
            }
            _ => {}
        }
        let options = query::StopContainerOptions { t: Some(i32::try_from(grace).unwrap_or(i32::MAX)), signal: None };
        let deadline = CHANGE + u64::from(grace);
        gone_is_fine(
            self.inner
                .call(&conn, "stop container", deadline, conn.docker.stop_container(&held.id, Some(options)))
                .await,
        )
    }

    async fn kill(&self, id: &str, signal: &str) -> Result<()> {
        let conn = self.inner.conn().await?;
        let held = self.inner.owned(&conn, id).await?;
        if !matches!(held.state, ContainerState::Running { .. } | ContainerState::Paused { .. }) {
            return Err(EngineError::Conflict(format!("container {id} is not running")));
        }
        let options = query::KillContainerOptions { signal: signal.to_owned() };
        self.inner.call(&conn, "kill container", CHANGE, conn.docker.kill_container(&held.id, Some(options))).await
    }

    async fn pause(&self, id: &str) -> Result<()> {
        let conn = self.inner.conn().await?;
        let held = self.inner.owned(&conn, id).await?;
        if matches!(held.state, ContainerState::Paused { .. }) {
            return Ok(());
        }
        if !matches!(held.state, ContainerState::Running { .. }) {
            return Err(EngineError::Conflict(format!("container {id} is not running")));
        }
        self.inner.call(&conn, "pause container", CHANGE, conn.docker.pause_container(&held.id)).await
    }

    async fn unpause(&self, id: &str) -> Result<()> {
        let conn = self.inner.conn().await?;
        if conn.knows(id) {
            let call = self.inner.call(&conn, "unpause container", CHANGE, conn.docker.unpause_container(id));
            if call.await.is_ok() {
                return Ok(());
            }
        }
        let held = self.inner.owned(&conn, id).await?;
        if matches!(held.state, ContainerState::Running { .. }) {
            return Ok(());
        }
        if !matches!(held.state, ContainerState::Paused { .. }) {
            return Err(EngineError::Conflict(format!("container {id} is not paused")));
        }
        self.inner.call(&conn, "unpause container", CHANGE, conn.docker.unpause_container(&held.id)).await
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let conn = self.inner.conn().await?;
        let held = match self.inner.whose(&conn, id, READ).await? {
            Whose::Ours(held) => held,
            Whose::Gone => return Ok(()),
            Whose::Foreign => return Err(not_ours("container", id)),
        };
        objects::remove_container(&self.inner, &conn, &held.id).await
    }

    async fn set_cpus(&self, id: &str, cpus: f64) -> Result<()> {
        let conn = self.inner.conn().await?;
        let held = self.inner.owned(&conn, id).await?;
        create::set_cpus(&self.inner, &conn, &held, cpus).await
    }

    async fn stats(&self, id: &str) -> Result<Option<Reading>> {
        let conn = self.inner.conn().await?;
        let held = match self.inner.whose(&conn, id, READ).await? {
            Whose::Ours(held) => held,
            Whose::Gone => return Ok(None),
            Whose::Foreign => return Err(not_ours("container", id)),
        };
        if !matches!(held.state, ContainerState::Running { .. } | ContainerState::Paused { .. }) {
            return Ok(None);
        }
        stats::read(&self.inner, &conn, &held.id).await
    }

    async fn engine_log(&self, id: &str, since: Option<Timestamp>, limit: usize) -> Result<Vec<EngineLine>> {
        let conn = self.inner.conn().await?;
        let held = self.inner.owned(&conn, id).await?;
        objects::log(&self.inner, &conn, &held.id, since, limit).await
    }

    async fn build(
        &self,
        context: Context,
        spec: &BuildSpec,
        logins: &[RegistryLogin],
        out: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<String> {
        let conn = self.inner.conn().await?;
        build::build(&self.inner, &conn, context, spec, logins, &out, &cancel).await
    }

    async fn pull(
        &self,
        reference: &str,
        login: Option<&RegistryLogin>,
        out: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<String> {
        let conn = self.inner.conn().await?;
        build::pull(&self.inner, &conn, reference, login, &out, &cancel).await
    }

    async fn push(
        &self,
        reference: &str,
        login: Option<&RegistryLogin>,
        out: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<String> {
        let conn = self.inner.conn().await?;
        push::push(&self.inner, &conn, reference, login, &out, &cancel).await
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        let conn = self.inner.conn().await?;
        objects::image(&self.inner, &conn, reference).await
    }

    async fn images(&self) -> Result<Vec<Image>> {
        let conn = self.inner.conn().await?;
        objects::images(&self.inner, &conn, self.inner.label_filter()).await
    }

    async fn images_named(&self, repository: &str) -> Result<Vec<Image>> {
        let conn = self.inner.conn().await?;
        text::safe_name(repository)?;
        let filter = HashMap::from([("reference".to_owned(), vec![repository.to_owned()])]);
        objects::images(&self.inner, &conn, filter).await
    }

    async fn tag(&self, image: &str, reference: &str) -> Result<()> {
        let conn = self.inner.conn().await?;
        objects::tag(&self.inner, &conn, image, reference).await
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        let conn = self.inner.conn().await?;
        objects::remove_image(&self.inner, &conn, reference).await
    }

    async fn ensure_volume(&self, name: &str, labels: &BTreeMap<String, String>, user: &str) -> Result<()> {
        let conn = self.inner.conn().await?;
        objects::ensure_volume(&self.inner, &conn, name, labels, user).await
    }

    async fn remove_volume(&self, name: &str) -> Result<()> {
        let conn = self.inner.conn().await?;
        objects::remove_volume(&self.inner, &conn, name).await
    }

    async fn volumes(&self) -> Result<Vec<(String, BTreeMap<String, String>)>> {
        let conn = self.inner.conn().await?;
        objects::volumes(&self.inner, &conn).await
    }

    async fn volume_places(&self) -> Result<Vec<(String, BTreeMap<String, String>, PathBuf)>> {
        let conn = self.inner.conn().await?;
        objects::volume_places(&self.inner, &conn).await
    }

    async fn ensure_network(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<()> {
        let conn = self.inner.conn().await?;
        objects::ensure_network(&self.inner, &conn, name, labels).await
    }

    async fn remove_network(&self, name: &str) -> Result<()> {
        let conn = self.inner.conn().await?;
        objects::remove_network(&self.inner, &conn, name).await
    }

    async fn networks(&self) -> Result<Vec<String>> {
        let conn = self.inner.conn().await?;
        objects::networks(&self.inner, &conn).await
    }
}

fn gone_is_fine(answer: Result<()>) -> Result<()> {
    match answer {
        Err(EngineError::NotFound(_)) => Ok(()),
        other => other,
    }
}
