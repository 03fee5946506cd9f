//! Owns: tree + recipe -> image: the context, its digest, the network of the steps, and limits of time, size and disk.
//! May touch: the engine, `statfs`, the tree (reading), the extra CA's file.
//! Never: fetches sources, or runs anything outside the engine.
//! Tested by: units beside the code, `tests/tests/build.rs` (real engine).

mod context;
mod credentials;
mod disk;
mod from;
mod helper;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use sigil_config::agent::AgentConfig;
use sigil_config::manifest::Runtime;
use sigil_core::model::AgentId;
use sigil_core::recipe::{BuildSettings, Origin, Recipe, Tree};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::engine::{
    BuildSpec, CACHE_REPOSITORY, Engine, EngineError, Image, Network, RegistryLogin, label as engine_label,
};
use crate::initlink::InitLinks;
use crate::source::Fetched;

/// Labels of an image that we built.
pub mod label {
    /// Digest of everything that went into it.
    pub const INPUT: &str = "sigil.input";
    /// The pinned source.
    pub const SOURCE: &str = "sigil.source";
    /// Digest of the source tree.
    pub const SOURCE_DIGEST: &str = "sigil.source-digest";
    /// Commit of a git source.
    pub const COMMIT: &str = "sigil.commit";
    /// SHA-256 of the merged manifest as JSON.
    pub const MANIFEST: &str = "sigil.manifest";
    /// Version of this builder.
    pub const BUILDER: &str = "sigil.builder";
}

/// Version of the builder: changing it makes every image anew.
const BUILDER: &str = concat!("sigil-", env!("CARGO_PKG_VERSION"), "/1");
/// Repository of built images; the tag is the agent's id, so that two agents on one engine never take each other's.
const REPOSITORY: &str = "sigil-build";
/// Repository of our own base images, followed by `/<runtime>`.
const BASE_REPOSITORY: &str = "sigil-base";
/// Stages kept as the cache of later builds; the oldest go first.
const CACHED_STAGES: usize = 16;
/// Where our own files are in the context.
const OWN: &str = ".sigil";
/// Longest body of a file that recognition reads, bytes.
const BODY: u64 = 1 << 20;
/// How long a cancelled or late build may take to clean up before we stop waiting for it.
const CLEANING: Duration = Duration::from_secs(60);

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A step failed, or something that the build needs is not there. `what` may have several lines.
    #[error("{what}")]
    Failed {
        /// What, with the step's last output.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A step that no build here can carry out; found before anything is built. `what` may have several lines.
    #[error("{what}")]
    Refused {
        /// Where, which step, and why.
        what: String,
        /// What to do.
        hint: String,
    },
    /// Over `builder.timeout_seconds`.
    #[error("the build took longer than {0} s")]
    TooLong(u64),
    /// Less free than `limits.min_free_disk`; says where, how much, and the remedy.
    #[error("{0}")]
    DiskFull(String),
    /// Cancelled by us.
    #[error("cancelled")]
    Cancelled,
    /// The engine did not do it.
    #[error(transparent)]
    Engine(EngineError),
}

impl BuildError {
    /// What to do about it.
    pub fn hint(&self) -> &str {
        match self {
            Self::Failed { hint, .. } | Self::Refused { hint, .. } => hint,
            Self::TooLong(_) => "look for a step that waits; [builder] timeout_seconds sets the limit",
            Self::DiskFull(_) => "remove images that nothing uses, or set [limits] min_free_disk",
            Self::Cancelled => "start it again when you like",
            Self::Engine(error) => error.hint(),
        }
    }

    fn failed(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), hint: hint.into() }
    }
}

impl From<EngineError> for BuildError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Cancelled => Self::Cancelled,
            EngineError::Failed(what) => Self::failed(what, "the step's own output above says why"),
            other => Self::Engine(other),
        }
    }
}

/// An image made, or found made.
#[derive(Debug, Clone)]
pub struct Built {
    /// The image.
    pub image: Image,
    /// A tag that holds it.
    pub tag: String,
    /// Identical input: nothing was built.
    pub reused: bool,
    /// The Dockerfile; empty for an image that is the source itself.
    pub dockerfile: String,
}

/// Finds the login for a registry host, if there is one.
pub type Logins = Arc<dyn Fn(&str) -> Option<RegistryLogin> + Send + Sync>;

/// Makes images.
#[derive(Clone)]
pub struct Builds {
    inner: Arc<Inner>,
}

struct Inner {
    config: watch::Receiver<Arc<AgentConfig>>,
    engine: Arc<dyn Engine>,
    links: InitLinks,
    agent: AgentId,
    data_dir: PathBuf,
    stop: CancellationToken,
    logins: Mutex<Option<Logins>>,
    running: Mutex<u32>,
    freed: Notify,
    /// One build for one input at a time: the second finds the first's image.
    inputs: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    helpers: helper::Live,
}

impl std::fmt::Debug for Builds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builds").field("agent", &self.inner.agent).finish_non_exhaustive()
    }
}

/// A place among the builds at once.
struct Place(Arc<Inner>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_waiters();
    }
}

/// What is to be built, settled before anything is asked of the engine.
struct Plan {
    dockerfile: String,
    /// Root of the context; `None`: only our own files.
    root: Option<PathBuf>,
    /// The root's path within the tree.
    context: String,
    ca: Option<Vec<u8>>,
    args: BTreeMap<String, String>,
}

impl Builds {
    /// Starts the room, and removes helper containers that a former agent left. Must be called within a tokio runtime.
    pub fn spawn(
        config: watch::Receiver<Arc<AgentConfig>>,
        engine: Arc<dyn Engine>,
        links: InitLinks,
        agent: AgentId,
        data_dir: &Path,
        stop: CancellationToken,
    ) -> Self {
        let inner = Arc::new(Inner {
            config,
            engine,
            links,
            agent,
            data_dir: data_dir.to_owned(),
            stop: stop.clone(),
            logins: Mutex::new(None),
            running: Mutex::new(0),
            freed: Notify::new(),
            inputs: Mutex::new(HashMap::new()),
            helpers: helper::Live::default(),
        });
        tokio::spawn(helper::sweep(inner.engine.clone(), inner.links.clone(), inner.helpers.clone(), stop));
        Self { inner }
    }

    /// Gives the logins for registries that base images come from. Without it they are pulled without a login.
    pub fn set_logins(&self, logins: Logins) {
        *self.inner.logins.lock().unwrap_or_else(PoisonError::into_inner) = Some(logins);
    }

    /// The Dockerfile that `build` would use, with base images resolved. Empty for a source that is an image.
    ///
    /// # Errors
    /// When the tree's own Dockerfile cannot be read, or the engine does not answer which base images it has.
    pub async fn dockerfile(&self, fetched: &Fetched, recipe: &Recipe) -> Result<String, BuildError> {
        if fetched.image.is_some() {
            return Ok(String::new());
        }
        Ok(self.plan(fetched, recipe).await?.dockerfile)
    }

    /// Builds, or reuses an image with the same input digest (unless `force`). Output lines go to `out`. Whatever the
    /// end, no container, and on failure no nameless image of this build is left.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn build(
        &self,
        fetched: &Fetched,
        recipe: &Recipe,
        force: bool,
        out: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<Built, BuildError> {
        if let Some(id) = &fetched.image {
            return self.ready(id).await;
        }
        let _place = self.place(&out, &cancel).await?;
        let plan = self.plan(fetched, recipe).await?;
        let suspects = credentials::check(self, fetched, recipe, &plan).await?;
        let bases = self.bases(&plan, &out, &cancel).await?;
        let input = self.input(fetched, &plan, &bases);
        let lock = self.lock(&input);
        let _one = tokio::select! {
            () = cancel.cancelled() => return Err(BuildError::Cancelled),
            held = lock.lock() => held,
        };
        let hex = input.trim_start_matches("sha256:");
        let tag = format!("{REPOSITORY}/{}:{}", &hex[..32], self.inner.agent.to_string().to_ascii_lowercase());
        let before = self.made(&tag, &input).await?;
        if let Some(image) = before.clone().filter(|_| !force) {
            let short: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
            say(&out, format!("same source, recipe and base image: image {short} is reused")).await;
            return Ok(Built { image, tag, reused: true, dockerfile: plan.dockerfile });
        }
        let made = self.make(fetched, recipe, &plan, &tag, &input, force, &out, &cancel).await;
        let image = made.map_err(|error| credentials::explain(error, &suspects))?;
        if let Some(old) = before.filter(|old| old.id != image.id) {
            // Its tag has moved on. A container that still runs from it keeps it; whoever removes that finds it by label.
            if let Err(error) = self.inner.engine.remove_image(&old.id).await {
                tracing::debug!(%error, image = %old.id, "replaced image kept");
            }
        }
        self.trim_cache().await;
        Ok(Built { image, tag, reused: false, dockerfile: plan.dockerfile })
    }

    async fn ready(&self, id: &str) -> Result<Built, BuildError> {
        let image = self.inner.engine.image(id).await?.ok_or_else(|| {
            BuildError::failed(format!("the engine no longer has image {id}"), "deploy again: it is pulled anew")
        })?;
        let tag = image.tags.first().cloned().unwrap_or_else(|| image.id.clone());
        Ok(Built { image, tag, reused: true, dockerfile: String::new() })
    }

    fn config(&self) -> Arc<AgentConfig> {
        self.inner.config.borrow().clone()
    }

    /// Waits for a place among `builder.concurrency` builds.
    async fn place(&self, out: &mpsc::Sender<String>, cancel: &CancellationToken) -> Result<Place, BuildError> {
        let mut said = false;
        loop {
            let freed = self.inner.freed.notified();
            tokio::pin!(freed);
            // Registered before the look, so that a place freed in between is not missed.
            freed.as_mut().enable();
            let most = self.config().builder.concurrency.max(1);
            let taken = {
                let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
                if *running < most {
                    *running += 1;
                    return Ok(Place(self.inner.clone()));
                }
                *running
            };
            if !said {
                said = true;
                say(out, format!("waiting: {taken} builds are running, {most} may")).await;
            }
            tokio::select! {
                () = freed => {}
                () = cancel.cancelled() => return Err(BuildError::Cancelled),
                () = self.inner.stop.cancelled() => return Err(BuildError::Cancelled),
            }
        }
    }

    fn lock(&self, input: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut inputs = self.inner.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        inputs.retain(|_, lock| Arc::strong_count(lock) > 1);
        inputs.entry(input.to_owned()).or_default().clone()
    }

    async fn plan(&self, fetched: &Fetched, recipe: &Recipe) -> Result<Plan, BuildError> {
        let config = self.config();
        let builder = &config.builder;
        let ca = match &builder.extra_ca {
            None => None,
            Some(path) => Some(tokio::fs::read(path).await.map_err(|error| {
                BuildError::failed(
                    format!("{}: {error}", path.display()),
                    "[builder] extra_ca must name a readable PEM file",
                )
            })?),
        };
        // The owner's word wins over the author's.
        let mut args = recipe.manifest.build.args.clone();
        args.extend(builder.args.clone());
        let packaged = matches!(recipe.origin, Origin::Npm { .. } | Origin::Pypi { .. });
        let root = match &fetched.tree {
            Some(tree) if !packaged => Some(context::within(tree, &recipe.context)?),
            _ => None,
        };
        let dockerfile = match (&recipe.dockerfile, &fetched.tree) {
            (Some(path), Some(tree)) => {
                let path = context::within(tree, path)?;
                let read = tokio::fs::read_to_string(&path).await;
                read.map_err(|error| {
                    BuildError::failed(format!("the tree's Dockerfile: {error}"), "is it UTF-8 text?")
                })?
            }
            _ => {
                let tree = match &fetched.tree {
                    Some(root) => context::tree(root, Tree::wanted).await?,
                    None => Tree::default(),
                };
                let settings = BuildSettings {
                    base_image: self.base_image(recipe.runtime, builder).await?,
                    npm_registry: builder.npm_registry.clone(),
                    pypi_index: builder.pypi_index.clone(),
                    go_proxy: builder.go_proxy.clone(),
                    cargo_registry: builder.cargo_registry.clone(),
                    apt_mirror: builder.apt_mirror.clone(),
                    extra_ca: ca.is_some(),
                    args: builder.args.clone(),
                };
                sigil_core::recipe::dockerfile(recipe, &tree, &settings)
            }
        };
        let context = if root.is_some() { recipe.context.clone() } else { String::new() };
        Ok(Plan { dockerfile, root, context, ca, args })
    }

    /// The configured base image, else our newest own one; empty leaves the choice to the recipe (the official image).
    async fn base_image(
        &self,
        runtime: Runtime,
        builder: &sigil_config::agent::BuilderConfig,
    ) -> Result<String, BuildError> {
        if let Some(image) = builder.base_images.get(runtime.as_str()).filter(|image| !image.is_empty()) {
            return Ok(image.clone());
        }
        let repository = format!("{BASE_REPOSITORY}/{}", runtime.as_str());
        let own = self.inner.engine.images_named(&repository).await?;
        let newest = own.iter().max_by_key(|image| image.created_at);
        let tag = newest.and_then(|image| image.tags.iter().find(|tag| tag.contains(&repository)));
        Ok(tag.cloned().unwrap_or_default())
    }

    /// Images that the Dockerfile begins from, pulled when missing: `reference -> id`. Pulling here and not in the
    /// build keeps logins out of it and makes the digest know what the build stands on.
    async fn bases(
        &self,
        plan: &Plan,
        out: &mpsc::Sender<String>,
        cancel: &CancellationToken,
    ) -> Result<BTreeMap<String, String>, BuildError> {
        let mut ids = BTreeMap::new();
        for reference in from::references(&plan.dockerfile, &plan.args) {
            let id = match self.inner.engine.image(&reference).await? {
                Some(image) => image.id,
                None => self.pull(&reference, out, cancel).await?,
            };
            ids.insert(reference, id);
        }
        Ok(ids)
    }

    async fn pull(
        &self,
        reference: &str,
        out: &mpsc::Sender<String>,
        cancel: &CancellationToken,
    ) -> Result<String, BuildError> {
        let config = self.config();
        let host = from::registry(reference);
        let allowed = &config.limits.registries;
        if !allowed.is_empty() && !allowed.iter().any(|one| one == host) {
            return Err(BuildError::failed(
                format!("base image {reference} comes from {host}, which this host does not allow"),
                "the owner's [limits] registries names those that are allowed",
            ));
        }
        disk::check(&self.inner.engine, &self.inner.data_dir, config.limits.min_free_disk).await?;
        say(out, format!("pulling {reference}")).await;
        let login = self.login(host);
        match self.inner.engine.pull(reference, login.as_ref(), out.clone(), cancel.child_token()).await {
            Ok(id) => Ok(id),
            Err(EngineError::Cancelled) => Err(BuildError::Cancelled),
            Err(error) => Err(BuildError::failed(
                format!("base image {reference} is not here and cannot be pulled: {error}"),
                "make base images with scripts/base-images, or set [builder] base_images to ones that this host reaches",
            )),
        }
    }

    /// The login that is kept for a host.
    fn login(&self, host: &str) -> Option<RegistryLogin> {
        let logins = self.inner.logins.lock().unwrap_or_else(PoisonError::into_inner).clone();
        logins.and_then(|find| find(host))
    }

    /// Digest of everything that decides what the image is.
    fn input(&self, fetched: &Fetched, plan: &Plan, bases: &BTreeMap<String, String>) -> String {
        let mut hash = Sha256::new();
        let mut add = |name: &str, value: &[u8]| {
            // Length-prefixed, so that no two different inputs read the same.
            for part in [name.as_bytes(), value] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        };
        add("builder", BUILDER.as_bytes());
        add("source", fetched.digest.as_bytes());
        add("context", plan.context.as_bytes());
        add("dockerfile", plan.dockerfile.as_bytes());
        add("ca", plan.ca.as_deref().unwrap_or_default());
        for (reference, id) in bases {
            add(reference, id.as_bytes());
        }
        for (name, value) in &plan.args {
            add(name, value.as_bytes());
        }
        format!("sha256:{}", hex::encode(hash.finalize()))
    }

    /// Our image for an input, when the engine has it.
    async fn made(&self, tag: &str, input: &str) -> Result<Option<Image>, BuildError> {
        let image = self.inner.engine.image(tag).await?;
        let agent = self.inner.agent.to_string();
        Ok(image.filter(|image| {
            image.labels.get(label::INPUT).is_some_and(|held| held == input)
                && image.labels.get(engine_label::AGENT) == Some(&agent)
        }))
    }

    #[allow(clippy::too_many_arguments)]
    async fn make(
        &self,
        fetched: &Fetched,
        recipe: &Recipe,
        plan: &Plan,
        tag: &str,
        input: &str,
        force: bool,
        out: &mpsc::Sender<String>,
        cancel: &CancellationToken,
    ) -> Result<Image, BuildError> {
        let config = self.config();
        let builder = &config.builder;
        let inner = &self.inner;
        disk::check(&inner.engine, &inner.data_dir, config.limits.min_free_disk).await?;

        // Ends with the caller, the agent, and the time limit alike; whoever ends it, the engine cleans up.
        let ending = cancel.child_token();
        let run = async {
            let helper = match builder.network.as_str() {
                "bridge" => None,
                "link" => Some(helper::Helper::start(inner, &ending).await?),
                other => {
                    return Err(BuildError::failed(
                        format!("[builder] network is '{other}'"),
                        "it is 'link' (through the agent) or 'bridge' (the engine's default network)",
                    ));
                }
            };
            let spec = BuildSpec {
                dockerfile: format!("{OWN}/Dockerfile"),
                tag: tag.to_owned(),
                args: plan.args.clone(),
                labels: self.labels(fetched, recipe, input),
                network: helper.as_ref().map_or(Network::Default, |helper| Network::Container(helper.id.clone())),
                memory: builder.memory,
                cpus: builder.cpus,
                target: String::new(),
                no_cache: force,
                extra_hosts: Vec::new(),
                cache: self.cache(),
            };
            let stream = context::stream(plan.root.clone(), plan.dockerfile.clone(), plan.ca.clone());
            let built = inner.engine.build(stream, &spec, &[], out.clone(), ending.clone()).await;
            if let Some(helper) = helper {
                for line in helper.refused() {
                    say(out, format!("{line}; [builder] egress of the agent's configuration lists what builds reach"))
                        .await;
                }
                helper.end().await;
            }
            Ok(built?)
        };
        tokio::pin!(run);
        let limit = Duration::from_secs(builder.timeout_seconds);
        let late = tokio::select! {
            built = &mut run => return self.checked(&built?, tag, builder.max_image).await,
            () = tokio::time::sleep(limit) => BuildError::TooLong(builder.timeout_seconds),
            () = inner.stop.cancelled() => BuildError::Cancelled,
        };
        ending.cancel();
        if tokio::time::timeout(CLEANING, &mut run).await.is_err() {
            tracing::warn!(%tag, "the engine did not end the build in time");
        }
        Err(late)
    }

    fn labels(&self, fetched: &Fetched, recipe: &Recipe, input: &str) -> BTreeMap<String, String> {
        let manifest = serde_json::to_vec(&recipe.manifest).unwrap_or_default();
        let mut labels = BTreeMap::from([
            (engine_label::AGENT.to_owned(), self.inner.agent.to_string()),
            (label::INPUT.to_owned(), input.to_owned()),
            (label::SOURCE.to_owned(), fetched.pinned.clone()),
            (label::SOURCE_DIGEST.to_owned(), fetched.digest.clone()),
            (label::MANIFEST.to_owned(), format!("sha256:{}", hex::encode(Sha256::digest(manifest)))),
            (label::BUILDER.to_owned(), BUILDER.to_owned()),
        ]);
        labels.extend(fetched.commit.clone().map(|commit| (label::COMMIT.to_owned(), commit)));
        labels
    }

    /// The image that a build answered, unless it is too large.
    async fn checked(&self, id: &str, tag: &str, most: u64) -> Result<Image, BuildError> {
        let image = self.inner.engine.image(id).await?.ok_or_else(|| {
            BuildError::failed("the image vanished right after it was built", "something else removes images here")
        })?;
        if image.size <= most {
            return Ok(image);
        }
        self.inner.engine.remove_image(tag).await?;
        Err(BuildError::failed(
            format!("the image has {}, more than the {} allowed", disk::bytes(image.size), disk::bytes(most)),
            "leave build tools and caches out of the last stage; [builder] max_image sets the limit",
        ))
    }

    fn cache(&self) -> String {
        format!("{CACHE_REPOSITORY}/{}", self.inner.agent.to_string().to_ascii_lowercase())
    }

    /// Keeps the newest stages only.
    async fn trim_cache(&self) {
        let repository = self.cache();
        let mut stages = match self.inner.engine.images_named(&repository).await {
            Ok(stages) => stages,
            Err(error) => return tracing::warn!(%error, "the build cache could not be counted"),
        };
        stages.sort_by_key(|stage| std::cmp::Reverse(stage.created_at));
        for tag in
            stages.iter().skip(CACHED_STAGES).flat_map(|stage| &stage.tags).filter(|tag| tag.contains(&repository))
        {
            if let Err(error) = self.inner.engine.remove_image(tag).await {
                tracing::warn!(%error, %tag, "a cached stage could not be removed");
            }
        }
    }
}

/// A line of our own among the build's. A reader that went away stops nothing.
async fn say(out: &mpsc::Sender<String>, line: String) {
    let _gone = out.send(line).await;
}
