//! Owns: an engine in memory, for tests. Same contract as the real ones, plus faults on demand.
//! May touch: nothing. Never: used by the agent itself. Tested by: `tests/contract`.

mod build;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use sigil_core::cgroup::Reading;
use sigil_core::model::AgentId;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    BuildSpec, CACHE_REPOSITORY, Capabilities, Container, ContainerSpec, ContainerState, Context, Engine, EngineError,
    EngineLine, Image, RegistryLogin, Result, Wanted, label,
};

/// Exit code of a process ended by SIGKILL.
const KILLED: i64 = 137;

/// What a container's process does.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Ends by itself with this code, so long after it was started.
    pub exits: Option<(Duration, i64)>,
    /// Code it ends with on SIGTERM; `None` ignores the signal.
    pub on_term: Option<i64>,
    /// Whether its own end counts as killed for memory.
    pub oom: bool,
    /// What it prints once started: (stderr, line).
    pub prints: Vec<(bool, String)>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { exits: None, on_term: Some(0), oom: false, prints: Vec::new() }
    }
}

type Behave = Arc<dyn Fn(&ContainerSpec) -> Behaviour + Send + Sync>;

/// What a started container really is: its PID 1 in this host's numbering, and what ends it when dropped.
pub type Life = (u32, Box<dyn std::any::Any + Send>);
type Run = Arc<dyn Fn(&str, &ContainerSpec) -> Life + Send + Sync>;

/// An engine in memory. Clones share it.
#[derive(Clone)]
pub struct Fake {
    agent: String,
    state: Arc<Mutex<State>>,
    changes: Arc<watch::Sender<u64>>,
    steps: Arc<watch::Sender<u64>>,
    deaf: Arc<std::sync::atomic::AtomicBool>,
}

struct State {
    containers: BTreeMap<String, Held>,
    /// Container name to id.
    names: BTreeMap<String, String>,
    images: BTreeMap<String, Image>,
    volumes: BTreeMap<String, BTreeMap<String, String>>,
    networks: BTreeMap<String, BTreeMap<String, String>>,
    behave: Behave,
    run: Option<Run>,
    delays: BTreeMap<&'static str, Duration>,
    away: Option<EngineError>,
    faults: BTreeMap<&'static str, VecDeque<EngineError>>,
    calls: BTreeMap<&'static str, u64>,
    made: u64,
    pids: u32,
}

/// What a container uses of which nothing else was said.
const FIGURES: Reading = Reading {
    cpu_micros: 1000,
    throttled_periods: 0,
    throttled_micros: 0,
    memory_total: 1 << 20,
    memory: 1 << 20,
    anonymous: 1 << 20,
    peak: 1 << 20,
    oom_kills: 0,
    processes: 1,
    read_bytes: 0,
    written_bytes: 0,
    received_bytes: 0,
    sent_bytes: 0,
};

struct Held {
    container: Container,
    /// `None` for containers of others.
    spec: Option<ContainerSpec>,
    behaviour: Behaviour,
    cpus: f64,
    /// What it uses, as [`Fake::uses`] said.
    figures: Reading,
    log: Vec<EngineLine>,
    /// Counts starts, so that the timer of an earlier life ends nothing.
    life: u64,
    /// When its present life began; freezing does not end that.
    started_at: Timestamp,
    /// What [`Fake::run_with`] started; ends when dropped.
    process: Option<Box<dyn std::any::Any + Send>>,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fake").field("agent", &self.agent).finish_non_exhaustive()
    }
}

impl Fake {
    /// An empty engine as the agent of that id sees it.
    pub fn new(agent: AgentId) -> Self {
        let state = State {
            containers: BTreeMap::new(),
            names: BTreeMap::new(),
            images: BTreeMap::new(),
            volumes: BTreeMap::new(),
            networks: BTreeMap::new(),
            behave: Arc::new(|_| Behaviour::default()),
            run: None,
            delays: BTreeMap::new(),
            away: None,
            faults: BTreeMap::new(),
            calls: BTreeMap::new(),
            made: 0,
            pids: 1_000_000,
        };
        Self {
            agent: agent.to_string(),
            state: Arc::new(Mutex::new(state)),
            changes: Arc::new(watch::channel(1).0),
            steps: Arc::new(watch::channel(0).0),
            deaf: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call, then fails as asked for.
    fn enter(&self, call: &'static str) -> Result<MutexGuard<'_, State>> {
        self.steps.send_modify(|n| *n += 1);
        let mut state = self.state();
        *state.calls.entry(call).or_default() += 1;
        if let Some(error) = &state.away {
            return Err(error.clone());
        }
        if let Some(error) = state.faults.get_mut(call).and_then(VecDeque::pop_front) {
            return Err(error);
        }
        Ok(state)
    }

    fn bump(&self) {
        if self.deaf.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Decides what each container's process does from now on, by its spec.
    pub fn behave(&self, behave: impl Fn(&ContainerSpec) -> Behaviour + Send + Sync + 'static) {
        self.state().behave = Arc::new(behave);
    }

    /// Really starts something with every container from now on: `run` is told the container's id and what it was made
    /// from, and answers PID 1 and a guard that is dropped when the container ends. Must not call the engine itself.
    pub fn run_with(&self, run: impl Fn(&str, &ContainerSpec) -> Life + Send + Sync + 'static) {
        self.state().run = Some(Arc::new(run));
    }

    /// Sets what a container uses; without it that is one process and a mebibyte.
    pub fn uses(&self, id: &str, figures: Reading) {
        if let Some(held) = self.state().containers.get_mut(id) {
            held.figures = figures;
        }
    }

    /// Every call of that name (`create`, `start`, `stop`, `remove`, `observe`) takes so long from now on.
    pub fn slow(&self, call: &'static str, delay: Duration) {
        self.state().delays.insert(call, delay);
    }

    async fn delay(&self, call: &'static str) {
        let delay = self.state().delays.get(call).copied().filter(|d| !d.is_zero());
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
    }

    /// Changes with every call of the trait.
    pub fn steps(&self) -> watch::Receiver<u64> {
        self.steps.subscribe()
    }

    /// Every container, whosever, without counting as a call.
    pub fn all(&self) -> Vec<Container> {
        self.state().containers.values().map(|held| held.container.clone()).collect()
    }

    /// Puts an image into the engine. Its `id` is made from its tags when empty.
    pub fn add_image(&self, mut image: Image) -> String {
        if image.id.is_empty() {
            image.id = digest(image.tags.join(" ").as_bytes());
        }
        image.created_at.get_or_insert_with(Timestamp::now);
        let id = image.id.clone();
        self.state().images.insert(id.clone(), image);
        id
    }

    /// Puts a running container of somebody else into the engine.
    pub fn add_foreign(&self, name: &str) -> String {
        self.add_container(name, BTreeMap::new())
    }

    /// A container of ours, made by nobody, that runs.
    pub fn add_own(&self, name: &str) -> String {
        let labels = self.labels(&BTreeMap::new());
        self.add_container(name, labels)
    }

    /// Puts a running container with exactly these labels into the engine.
    pub fn add_container(&self, name: &str, labels: BTreeMap<String, String>) -> String {
        let mut state = self.state();
        let id = state.id(name);
        let pid = state.pid();
        let container = Container {
            id: id.clone(),
            name: name.to_owned(),
            labels,
            image: String::new(),
            state: ContainerState::Running { pid, started_at: Timestamp::now() },
            created_at: Timestamp::now(),
            mounts: Some(Vec::new()),
        };
        let held = Held {
            container,
            spec: None,
            behaviour: Behaviour::default(),
            cpus: 0.0,
            figures: FIGURES,
            log: Vec::new(),
            life: 0,
            started_at: Timestamp::now(),
            process: None,
        };
        state.put(held);
        id
    }

    /// The next call of that name (`create`, `start`, `stop`, `build`, …: the trait's names) fails so. May be asked for
    /// several times; a hung call is an [`EngineError::Timeout`].
    pub fn fail_next(&self, call: &'static str, error: EngineError) {
        self.state().faults.entry(call).or_default().push_back(error);
    }

    /// The engine goes away (every call fails so), or comes back.
    pub fn away(&self, error: Option<EngineError>) {
        self.state().away = error;
        self.bump();
    }

    /// The event stream is down from now on: nothing is told any more, as when an engine drops it silently.
    pub fn drop_events(&self) {
        self.deaf.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// A running container's process ends by itself.
    pub fn crash(&self, id: &str, code: i64, oom: bool) {
        if let Some(held) = self.state().containers.get_mut(id) {
            held.end(code, oom);
        }
        self.bump();
    }

    /// A container vanishes, as if removed by hand.
    pub fn vanish(&self, id: &str) {
        self.state().take(id);
        self.bump();
    }

    /// Whether a container, anybody's, is there and runs.
    pub fn has(&self, id: &str) -> bool {
        let state = self.state();
        state.containers.get(id).is_some_and(|held| matches!(held.container.state, ContainerState::Running { .. }))
    }

    /// Whether a container is frozen: then nothing in it moves.
    pub fn is_frozen(&self, id: &str) -> bool {
        let state = self.state();
        state.containers.get(id).is_some_and(|held| matches!(held.container.state, ContainerState::Paused { .. }))
    }

    /// What a container was made from, and its CPU quota now, in cores.
    pub fn spec(&self, id: &str) -> Option<(ContainerSpec, f64)> {
        let state = self.state();
        let held = state.containers.get(id)?;
        Some((held.spec.clone()?, held.cpus))
    }

    /// Its CPU quota, cores.
    pub fn cpus(&self, id: &str) -> Option<f64> {
        self.state().containers.get(id).map(|held| held.cpus)
    }

    /// How often a call of the trait was made.
    pub fn calls(&self, call: &str) -> u64 {
        self.state().calls.get(call).copied().unwrap_or(0)
    }

    fn ours(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.get(label::AGENT) == Some(&self.agent)
    }

    fn labels(&self, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut labels = given.clone();
        labels.insert(label::AGENT.to_owned(), self.agent.clone());
        labels
    }

    /// A container of ours by id or name; `None` when there is none.
    fn find<'a>(&self, state: &'a mut State, id: &str) -> Result<Option<&'a mut Held>> {
        let id = state.names.get(id).map_or(id, String::as_str);
        match state.containers.get_mut(id) {
            Some(held) if !self.ours(&held.container.labels) => Err(not_ours(id)),
            other => Ok(other),
        }
    }

    fn end_later(&self, id: &str, life: u64, after: Duration, code: i64, oom: bool) {
        let (fake, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if let Some(held) = fake.state().containers.get_mut(&id).filter(|held| held.life == life) {
                held.end(code, oom);
            }
            fake.bump();
        });
    }
}

fn not_ours(name: &str) -> EngineError {
    EngineError::Conflict(format!("{name} does not carry this agent's label and is left alone"))
}

/// Every image of the fake knows root and one user, `node`.
fn fake_user(user: &str) -> Result<String> {
    match super::user::numeric(user)? {
        Some(numeric) => Ok(numeric),
        None => super::user::named(user, "root:x:0:0\nnode:x:1000:1000\n", "node:x:1000:\n"),
    }
}

fn missing(id: &str) -> EngineError {
    EngineError::NotFound(format!("container {id}"))
}

fn digest(bytes: &[u8]) -> String {
    use sha2::Digest;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

impl State {
    fn id(&mut self, name: &str) -> String {
        self.made += 1;
        digest(format!("{name} {}", self.made).as_bytes()).trim_start_matches("sha256:").to_owned()
    }

    fn put(&mut self, held: Held) {
        self.names.insert(held.container.name.clone(), held.container.id.clone());
        self.containers.insert(held.container.id.clone(), held);
    }

    fn take(&mut self, id: &str) {
        if let Some(held) = self.containers.remove(id) {
            self.names.remove(&held.container.name);
        }
    }

    fn pid(&mut self) -> u32 {
        self.pids += 1;
        self.pids
    }

    fn image(&self, reference: &str) -> Option<&Image> {
        let tagged = if reference.rsplit('/').next().is_some_and(|last| last.contains(':')) {
            reference.to_owned()
        } else {
            format!("{reference}:latest")
        };
        self.images.values().find(|image| image.id == reference || image.tags.contains(&tagged))
    }
}

impl Held {
    fn end(&mut self, code: i64, oom: bool) {
        let started_at = match self.container.state {
            ContainerState::Running { started_at, .. } => Some(started_at),
            _ => None,
        };
        if started_at.is_some() || matches!(self.container.state, ContainerState::Paused { .. }) {
            self.process = None;
            let finished_at = Some(Timestamp::now());
            self.container.state = ContainerState::Exited { code, oom, started_at, finished_at, error: String::new() };
        }
    }
}

#[async_trait]
impl Engine for Fake {
    async fn capabilities(&self) -> Result<Capabilities> {
        let _state = self.enter("capabilities")?;
        Ok(Capabilities {
            name: "fake".into(),
            version: "1".into(),
            api_version: "1.41".into(),
            cgroup_version: 2,
            log_driver: "local".into(),
            pause: true,
            cpus: 8,
            memory: 16 << 30,
            architecture: "amd64".into(),
            root_dir: None,
        })
    }

    fn events(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn observe(&self) -> Result<Vec<Container>> {
        self.delay("observe").await;
        let state = self.enter("observe")?;
        let all = state.containers.values().map(|held| &held.container);
        Ok(all.filter(|container| self.ours(&container.labels)).cloned().collect())
    }

    async fn inspect(&self, id: &str) -> Result<Container> {
        let mut state = self.enter("inspect")?;
        match self.find(&mut state, id) {
            Ok(Some(held)) => Ok(held.container.clone()),
            Ok(None) | Err(_) => Err(missing(id)),
        }
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String> {
        self.delay("create").await;
        let mut state = self.enter("create")?;
        fake_user(&spec.user)?;
        if let Some(held) = self.find(&mut state, &spec.name)? {
            return if held.container.labels.get(label::INSTANCE) == spec.labels.get(label::INSTANCE) {
                Ok(held.container.id.clone())
            } else {
                Err(EngineError::Conflict(format!("the name {} belongs to another instance", spec.name)))
            };
        }
        let image = state.image(&spec.image).ok_or_else(|| EngineError::NotFound(format!("image {}", spec.image)))?;
        let image = image.id.clone();
        let id = state.id(&spec.name);
        let container = Container {
            id: id.clone(),
            name: spec.name.clone(),
            labels: self.labels(&spec.labels),
            image,
            state: ContainerState::Created,
            created_at: Timestamp::now(),
            mounts: Some(spec.mounts.iter().filter(|m| !m.volume).map(|m| m.source.clone()).collect()),
        };
        let behaviour = (state.behave.clone())(spec);
        let held = Held {
            container,
            spec: Some(spec.clone()),
            behaviour,
            cpus: spec.start_cpus.min(8.0),
            figures: FIGURES,
            log: Vec::new(),
            life: 0,
            started_at: Timestamp::now(),
            process: None,
        };
        state.put(held);
        drop(state);
        self.bump();
        Ok(id)
    }

    async fn resolve_user(&self, _image: &str, user: &str) -> Result<String> {
        drop(self.enter("resolve_user")?);
        fake_user(user)
    }

    async fn read_image(&self, image: &str, wanted: Wanted, most: u64) -> Result<Vec<(String, Vec<u8>)>> {
        drop(self.enter("read_image")?);
        if self.image(image).await?.is_none() {
            return Err(EngineError::NotFound(format!("image {image}")));
        }
        // as much of an image as its contract asks for
        let files = [("bin/busybox", vec![1; 4096]), ("etc/passwd", b"root:x:0:0::/:\n".to_vec())];
        let fits = |(path, bytes): &(&str, Vec<u8>)| wanted(path) && bytes.len() as u64 <= most;
        Ok(files.into_iter().filter(fits).map(|(path, bytes)| (path.to_owned(), bytes)).collect())
    }

    async fn start(&self, id: &str) -> Result<()> {
        self.delay("start").await;
        let mut state = self.enter("start")?;
        let mut pid = state.pid();
        let run = state.run.clone();
        let held = self.find(&mut state, id)?.ok_or_else(|| missing(id))?;
        match held.container.state {
            ContainerState::Running { .. } => return Ok(()),
            ContainerState::Paused { .. } => return Err(EngineError::Conflict(format!("container {id} is paused"))),
            _ => {}
        }
        held.life += 1;
        if let (Some(run), Some(spec)) = (run, &held.spec) {
            let (its, process) = run(&held.container.id, spec);
            (pid, held.process) = (its, Some(process));
        }
        held.started_at = Timestamp::now();
        held.container.state = ContainerState::Running { pid, started_at: held.started_at };
        let lines = held.behaviour.prints.iter().map(|(stderr, line)| EngineLine {
            time: Timestamp::now(),
            stderr: *stderr,
            line: Bytes::from(line.clone()),
        });
        held.log.extend(lines);
        let later = held
            .behaviour
            .exits
            .map(|(after, code)| (held.container.id.clone(), held.life, after, code, held.behaviour.oom));
        drop(state);
        if let Some((id, life, after, code, oom)) = later {
            self.end_later(&id, life, after, code, oom);
        }
        self.bump();
        Ok(())
    }

    async fn stop(&self, id: &str, grace: u32) -> Result<()> {
        self.delay("stop").await;
        let wait = {
            let mut state = self.enter("stop")?;
            let Some(held) = self.find(&mut state, id)? else { return Ok(()) };
            match held.behaviour.on_term {
                Some(code) => {
                    held.end(code, false);
                    None
                }
                None => Some((held.container.id.clone(), held.life)),
            }
        };
        if let Some((id, life)) = wait {
            tokio::time::sleep(Duration::from_secs(u64::from(grace))).await;
            if let Some(held) = self.state().containers.get_mut(&id).filter(|held| held.life == life) {
                held.end(KILLED, false);
            }
        }
        self.bump();
        Ok(())
    }

    async fn kill(&self, id: &str, signal: &str) -> Result<()> {
        let mut state = self.enter("kill")?;
        let held = self.find(&mut state, id)?.ok_or_else(|| missing(id))?;
        if !matches!(held.container.state, ContainerState::Running { .. } | ContainerState::Paused { .. }) {
            return Err(EngineError::Conflict(format!("container {id} is not running")));
        }
        match (signal, held.behaviour.on_term) {
            ("SIGKILL" | "KILL" | "9", _) => held.end(KILLED, false),
            ("SIGTERM" | "TERM" | "15", Some(code)) => held.end(code, false),
            _ => {}
        }
        drop(state);
        self.bump();
        Ok(())
    }

    async fn pause(&self, id: &str) -> Result<()> {
        let mut state = self.enter("pause")?;
        let held = self.find(&mut state, id)?.ok_or_else(|| missing(id))?;
        match held.container.state {
            ContainerState::Paused { .. } => return Ok(()),
            ContainerState::Running { pid, .. } => held.container.state = ContainerState::Paused { pid },
            _ => return Err(EngineError::Conflict(format!("container {id} is not running"))),
        }
        drop(state);
        self.bump();
        Ok(())
    }

    async fn unpause(&self, id: &str) -> Result<()> {
        let mut state = self.enter("unpause")?;
        let held = self.find(&mut state, id)?.ok_or_else(|| missing(id))?;
        match held.container.state {
            ContainerState::Running { .. } => return Ok(()),
            ContainerState::Paused { pid } => {
                held.container.state = ContainerState::Running { pid, started_at: held.started_at };
            }
            _ => return Err(EngineError::Conflict(format!("container {id} is not paused"))),
        }
        drop(state);
        self.bump();
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<()> {
        self.delay("remove").await;
        let mut state = self.enter("remove")?;
        let Some(held) = self.find(&mut state, id)? else { return Ok(()) };
        let id = held.container.id.clone();
        state.take(&id);
        drop(state);
        self.bump();
        Ok(())
    }

    async fn set_cpus(&self, id: &str, cpus: f64) -> Result<()> {
        let mut state = self.enter("set_cpus")?;
        self.find(&mut state, id)?.ok_or_else(|| missing(id))?.cpus = cpus.min(8.0);
        Ok(())
    }

    async fn stats(&self, id: &str) -> Result<Option<Reading>> {
        let mut state = self.enter("stats")?;
        let Some(held) = self.find(&mut state, id)? else { return Ok(None) };
        let runs = matches!(held.container.state, ContainerState::Running { .. } | ContainerState::Paused { .. });
        Ok(runs.then_some(held.figures))
    }

    async fn engine_log(&self, id: &str, since: Option<Timestamp>, limit: usize) -> Result<Vec<EngineLine>> {
        let mut state = self.enter("engine_log")?;
        let held = self.find(&mut state, id)?.ok_or_else(|| missing(id))?;
        let lines: Vec<_> = held.log.iter().filter(|line| since.is_none_or(|since| line.time >= since)).collect();
        Ok(lines[lines.len().saturating_sub(limit)..].iter().map(|line| (*line).clone()).collect())
    }

    async fn build(
        &self,
        context: Context,
        spec: &BuildSpec,
        _logins: &[RegistryLogin],
        out: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<String> {
        drop(self.enter("build")?);
        tokio::select! {
            () = cancel.cancelled() => Err(EngineError::Cancelled),
            built = build::run(self, context, spec, &out) => built,
        }
    }

    async fn pull(
        &self,
        reference: &str,
        _login: Option<&RegistryLogin>,
        out: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<String> {
        let held = self.enter("pull")?.image(reference).map(|image| image.id.clone());
        if cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let _gone = out.send(format!("Pulling {reference}")).await;
        held.ok_or_else(|| EngineError::Failed(format!("manifest for {reference} not found")))
    }

    async fn push(
        &self,
        reference: &str,
        _login: Option<&RegistryLogin>,
        out: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<String> {
        let held = self.enter("push")?.image(reference).map(|image| image.id.clone());
        if cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let _gone = out.send(format!("Pushing {reference}")).await;
        held.ok_or_else(|| EngineError::NotFound(format!("image {reference}")))
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        Ok(self.enter("image")?.image(reference).cloned())
    }

    async fn images(&self) -> Result<Vec<Image>> {
        let state = self.enter("images")?;
        Ok(state.images.values().filter(|image| self.ours(&image.labels)).cloned().collect())
    }

    async fn images_named(&self, repository: &str) -> Result<Vec<Image>> {
        let state = self.enter("images_named")?;
        let named = |image: &&Image| {
            image.tags.iter().any(|tag| tag.rsplit_once(':').is_some_and(|(before, _)| before == repository))
        };
        Ok(state.images.values().filter(named).cloned().collect())
    }

    async fn tag(&self, image: &str, reference: &str) -> Result<()> {
        let mut state = self.enter("tag")?;
        let id = state.image(image).ok_or_else(|| EngineError::NotFound(format!("image {image}")))?.id.clone();
        if state.image(reference).is_some_and(|old| old.id != id && !self.ours(&old.labels)) {
            return Err(not_ours(reference));
        }
        state.move_tag(&id, reference);
        Ok(())
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        let mut state = self.enter("remove_image")?;
        let Some(image) = state.image(reference) else { return Ok(()) };
        let id = image.id.clone();
        let cached = reference.starts_with(&format!("{CACHE_REPOSITORY}/{}:", self.agent.to_ascii_lowercase()));
        if !self.ours(&image.labels) && !cached {
            return Err(not_ours(reference));
        }
        let last = reference == id || image.tags.len() <= 1;
        if last && state.containers.values().any(|held| held.container.image == id) {
            return Err(EngineError::Conflict(format!("image {reference} is used by a container")));
        }
        if last {
            state.images.remove(&id);
        } else if let Some(image) = state.images.get_mut(&id) {
            image.tags.retain(|tag| tag != reference);
        }
        Ok(())
    }

    async fn ensure_volume(&self, name: &str, labels: &BTreeMap<String, String>, _user: &str) -> Result<()> {
        let labels = self.labels(labels);
        let mut state = self.enter("ensure_volume")?;
        match state.volumes.get(name) {
            Some(held) if !self.ours(held) => Err(not_ours(name)),
            Some(_) => Ok(()),
            None => {
                state.volumes.insert(name.to_owned(), labels);
                Ok(())
            }
        }
    }

    async fn remove_volume(&self, name: &str) -> Result<()> {
        let mut state = self.enter("remove_volume")?;
        match state.volumes.get(name) {
            Some(held) if !self.ours(held) => return Err(not_ours(name)),
            _ => {}
        }
        let used = |held: &Held| {
            held.spec.as_ref().is_some_and(|spec| spec.mounts.iter().any(|mount| mount.volume && mount.source == name))
        };
        if state.containers.values().any(used) {
            return Err(EngineError::Conflict(format!("volume {name} is in use")));
        }
        state.volumes.remove(name);
        Ok(())
    }

    async fn volumes(&self) -> Result<Vec<(String, BTreeMap<String, String>)>> {
        let state = self.enter("volumes")?;
        let ours = state.volumes.iter().filter(|(_, labels)| self.ours(labels));
        Ok(ours.map(|(name, labels)| (name.clone(), labels.clone())).collect())
    }

    async fn ensure_network(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<()> {
        let labels = self.labels(labels);
        let mut state = self.enter("ensure_network")?;
        match state.networks.get(name) {
            Some(held) if !self.ours(held) => Err(not_ours(name)),
            Some(_) => Ok(()),
            None => {
                state.networks.insert(name.to_owned(), labels);
                Ok(())
            }
        }
    }

    async fn remove_network(&self, name: &str) -> Result<()> {
        let mut state = self.enter("remove_network")?;
        match state.networks.get(name) {
            Some(held) if !self.ours(held) => return Err(not_ours(name)),
            _ => {}
        }
        state.networks.remove(name);
        Ok(())
    }

    async fn networks(&self) -> Result<Vec<String>> {
        let state = self.enter("networks")?;
        let ours: BTreeSet<_> = state.networks.iter().filter(|(_, labels)| self.ours(labels)).map(|(n, _)| n).collect();
        Ok(ours.into_iter().cloned().collect())
    }
}
