//! Owns: fetching and unpacking sources into trees by digest.
//! May touch: `<data>/sources`, `<data>/uploads`, `<data>/known_hosts`, the network, git.
//! Never: runs a source's code.
//! Tested by: unit tests (registries, git over HTTP and ssh are played on loopback), `tests/docker`.

mod archive;
mod cache;
mod cosign;
pub mod forge;
mod git;
mod http;
mod mcpb;
mod near;
mod npm;
mod npm_range;
mod pypi;
mod tree;
mod upload;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sigil_config::agent::AgentConfig;
use sigil_core::recipe::Tree;
use sigil_core::source::Source;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, EngineError, RegistryLogin};
use crate::secrets::{Credential, Secrets};
use cache::Cache;
pub use cache::TreeGuard;
use forge::Forges;
pub(crate) use http::{authority, client as http_client, is_loopback, reason, straight_client};
pub use upload::Upload;
use upload::Uploads;

/// Fetches at once; more wait their turn.
const FETCHES: usize = 4;
/// How often what has expired is removed.
const SWEEP: Duration = Duration::from_secs(60);
/// Largest file whose body recognition gets, in bytes.
const BODY_MAX: u64 = 1 << 20;

/// Why a source could not be fetched. Each carries its own hint.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such repository, ref, folder, package, version, image or upload.
    #[error("{what}")]
    NotFound {
        /// What is not there.
        what: String,
        /// What to do: near names, if any.
        hint: String,
    },
    /// Not allowed: by the owner's configuration, by a login, or because it is not safe to unpack.
    #[error("{what}")]
    Refused {
        /// What is refused, and why.
        what: String,
        /// What to do.
        hint: String,
    },
    /// It could not be done: network, disk, a damaged archive, a missing program.
    #[error("{what}")]
    Failed {
        /// What failed.
        what: String,
        /// What to do.
        hint: String,
    },
    /// Cancelled by the caller or at shutdown.
    #[error("cancelled")]
    Cancelled,
}

impl SourceError {
    /// What to do about it.
    pub fn hint(&self) -> &str {
        match self {
            Self::NotFound { hint, .. } | Self::Refused { hint, .. } | Self::Failed { hint, .. } => hint,
            Self::Cancelled => "start it again when you like",
        }
    }

    fn failed(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), hint: hint.into() }
    }

    fn not_found(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::NotFound { what: what.into(), hint: hint.into() }
    }

    fn refused(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), hint: hint.into() }
    }
}

/// A fetched source.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The source with version or commit pinned, as a person would write it.
    pub pinned: String,
    /// Content digest (`sha256:…`): same tree, same digest, whatever the times and owners. Of an image: its id.
    pub digest: String,
    /// git: the whole commit.
    pub commit: Option<String>,
    /// The tree (subfolder applied), kept while `guard` lives; not to be written to. `None` for an image.
    pub tree: Option<PathBuf>,
    /// npm, pypi: the package's name and exact version.
    pub package: Option<(String, String)>,
    /// image: the engine's image id.
    pub image: Option<String>,
    /// Keeps `tree` from the cache's cleaner.
    pub guard: Arc<TreeGuard>,
}

/// What every kind of fetch needs.
pub(crate) struct Job<'a> {
    config: Arc<AgentConfig>,
    secrets: &'a Secrets,
    forges: &'a Forges,
    cache: &'a Cache,
    data_dir: &'a Path,
    out: mpsc::Sender<String>,
    cancel: CancellationToken,
    /// Hosts whose login this fetch has used: each is recorded once.
    used: Mutex<BTreeSet<String>>,
}

impl Job<'_> {
    /// A login of this host is about to be used; it is on record when this returns.
    async fn uses(&self, login: &Credential) -> Result<(), SourceError> {
        if !self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(login.host.clone()) {
            return Ok(());
        }
        self.secrets.uses(login, "fetch").await.map_err(|e| SourceError::failed(e.to_string(), e.hint()))
    }

    /// A progress line; nobody listening is fine, a slow listener is waited for.
    async fn say(&self, line: impl Into<String>) {
        let line: String = line.into();
        let _nobody_listens = self.out.send(line).await;
    }

    fn limits(&self) -> tree::Limits {
        tree::Limits { bytes: self.config.sources.max_bytes, files: self.config.sources.max_files }
    }

    /// Runs blocking work that writes a tree, and keeps what it wrote under its digest and under `key`.
    async fn write_tree<F>(
        &self,
        key: &str,
        write: F,
    ) -> Result<(String, tree::Written, PathBuf, Arc<TreeGuard>), SourceError>
    where
        F: FnOnce(&mut tree::TreeWriter) -> Result<(), SourceError> + Send + 'static,
    {
        let folder = self.cache.scratch()?;
        let limits = self.limits();
        // when this future is dropped, the blocking work ends soon too
        let cancel = self.cancel.child_token();
        let _ends_with_us = cancel.clone().drop_guard();
        let cache = self.cache.clone();
        let key = key.to_owned();
        let budget = self.config.sources.cache_bytes;
        blocking(move || {
            let root = folder.path().join("tree");
            std::fs::create_dir(&root).map_err(|e| disk(&root, &e))?;
            let mut tree = tree::TreeWriter::new(&root, limits, cancel);
            write(&mut tree)?;
            let written = tree.finish()?;
            let (path, guard) = cache.keep(&root, &written, &key, budget)?;
            Ok((written.digest.clone(), written, path, guard))
        })
        .await
    }

    /// Says what of Git LFS was left out.
    async fn say_lfs(&self, written: &tree::Written) {
        if let Some(first) = written.lfs.first() {
            let count = written.lfs.len();
            self.say(format!("{count} file(s) are Git LFS pointers, whose content is not fetched (first: {first})"))
                .await;
        }
    }
}

/// The room's handle; clones share caches and limits.
#[derive(Clone)]
pub struct Sources {
    data_dir: Arc<Path>,
    config: watch::Receiver<Arc<AgentConfig>>,
    secrets: Secrets,
    forges: Forges,
    engine: Arc<dyn Engine>,
    cache: Cache,
    uploads: Uploads,
    turns: Arc<Semaphore>,
    stop: CancellationToken,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

impl Sources {
    /// Prepares the folders, removes what a crash left, and starts the sweeper.
    ///
    /// # Errors
    /// [`SourceError::Failed`] when the data directory cannot be written.
    pub fn spawn(
        data_dir: &Path,
        config: watch::Receiver<Arc<AgentConfig>>,
        secrets: Secrets,
        engine: Arc<dyn Engine>,
        stop: CancellationToken,
    ) -> Result<Self, SourceError> {
        git::remove_leftovers(data_dir);
        let cache = Cache::open(&data_dir.join("sources"))?;
        let uploads = Uploads::open(&data_dir.join("uploads"))?;
        let sources = Self {
            data_dir: data_dir.into(),
            forges: Forges::new(config.clone(), secrets.clone()),
            config,
            secrets,
            engine,
            cache,
            uploads,
            turns: Arc::new(Semaphore::new(FETCHES)),
            stop,
        };
        let (sweeping, every) = (sources.clone(), SWEEP);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = sweeping.stop.cancelled() => return,
                    () = tokio::time::sleep(every) => {}
                }
                let (cache, uploads) = (sweeping.cache.clone(), sweeping.uploads.clone());
                let budget = sweeping.config.borrow().sources.cache_bytes;
                let swept = blocking(move || {
                    uploads.sweep();
                    cache.sweep(budget);
                    Ok(())
                });
                if let Err(error) = swept.await {
                    tracing::warn!(%error, "the cache of sources could not be swept");
                }
            }
        });
        Ok(sources)
    }

    /// Accounts at git hosts.
    pub fn forges(&self) -> &Forges {
        &self.forges
    }

    /// Begins the upload of a folder: a zstd-compressed tar of `size` bytes, written with [`Upload::write`]. `label`
    /// is shown in errors.
    ///
    /// # Errors
    /// [`SourceError::Refused`] when folders are not allowed, it is too large, or too many are under way.
    pub async fn upload(&self, label: &str, size: u64) -> Result<Upload, SourceError> {
        let config = self.config.borrow().clone();
        allowed(&config, "folder")?;
        self.uploads.begin(label, size, config.sources.max_bytes)
    }

    fn job(&self, config: Arc<AgentConfig>, out: mpsc::Sender<String>, cancel: &CancellationToken) -> Job<'_> {
        Job {
            config,
            secrets: &self.secrets,
            forges: &self.forges,
            cache: &self.cache,
            data_dir: &self.data_dir,
            out,
            cancel: cancel.child_token(),
            used: Mutex::default(),
        }
    }

    /// Fetches; progress lines go to `out`. `upload_id` (`sha256:…`) is needed for a folder. A source that was fetched
    /// before is answered from the cache: packages and branches are resolved again, their content is not loaded again.
    ///
    /// # Errors
    /// See [`SourceError`]. Nothing is left behind by a failed, cancelled or dropped fetch.
    pub async fn fetch(
        &self,
        source: &Source,
        upload_id: Option<&str>,
        out: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<Fetched, SourceError> {
        let config = self.config.borrow().clone();
        allowed(&config, source.kind())?;
        let longest = Duration::from_secs(config.sources.timeout_seconds.max(1));
        let job = self.job(config, out, &cancel);
        let _ends_with_us = job.cancel.clone().drop_guard();
        let work = async {
            let _turn = self.turns.acquire().await.map_err(|_| SourceError::Cancelled)?;
            match source {
                Source::Folder { path } => self.folder(&job, path, upload_id).await,
                Source::Git { scheme, url, reference, subdir } => {
                    git::fetch(&job, scheme, url, reference.as_deref(), subdir.as_deref()).await
                }
                Source::Npm { name, version } => npm::fetch(&job, name, version.as_deref()).await,
                Source::Pypi { name, version } => pypi::fetch(&job, name, version.as_deref()).await,
                Source::Bundle { url, sha256 } => mcpb::fetch(&job, url, sha256).await,
                Source::Image { reference } => self.image(&job, reference).await,
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(SourceError::Cancelled),
            () = self.stop.cancelled() => Err(SourceError::Cancelled),
            () = tokio::time::sleep(longest) => Err(SourceError::failed(
                format!("fetching took longer than {} s", longest.as_secs()),
                "try again, or raise [sources] timeout_seconds",
            )),
            result = work => result,
        }
    }

    /// The commit that a git source's branch or tag leads to now (its default branch's where it names none). Nothing is
    /// loaded.
    ///
    /// # Errors
    /// See [`SourceError`]; [`SourceError::Refused`] for what is no git source.
    pub async fn newest(&self, source: &Source, cancel: CancellationToken) -> Result<String, SourceError> {
        let config = self.config.borrow().clone();
        allowed(&config, source.kind())?;
        let longest = Duration::from_secs(config.sources.timeout_seconds.max(1));
        let (out, _unheard) = mpsc::channel(16);
        let job = self.job(config, out, &cancel);
        let _ends_with_us = job.cancel.clone().drop_guard();
        let Source::Git { scheme, url, reference, .. } = source else {
            let what = "only git repositories have something newer";
            return Err(SourceError::refused(what, "deploy it from git+https://…"));
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(SourceError::Cancelled),
            () = self.stop.cancelled() => Err(SourceError::Cancelled),
            () = tokio::time::sleep(longest) => Err(SourceError::failed(
                format!("{url} did not answer within {} s", longest.as_secs()),
                "try again, or raise [sources] timeout_seconds",
            )),
            newest = git::newest(&job, scheme, url, reference.as_deref()) => newest,
        }
    }

    /// A tree that was fetched before, by its digest (`sha256:…`), while it is kept.
    ///
    /// # Errors
    /// [`SourceError::Failed`] when the cache cannot be read.
    pub async fn kept(&self, digest: &str) -> Result<Option<(PathBuf, Arc<TreeGuard>)>, SourceError> {
        self.cache.tree(digest).await
    }

    /// What recognition reads of a tree: every path, and the bodies it wants (up to 1 MiB each). Blocks; callers in
    /// async code use the blocking pool.
    ///
    /// # Errors
    /// [`SourceError::Failed`] when the tree cannot be read.
    pub fn tree(root: &Path) -> Result<Tree, SourceError> {
        read_tree(root, Tree::wanted)
    }

    /// What a scan reads of a tree: every path with its bytes, those of files over `max` bytes left empty. Links are
    /// not followed. Blocks; callers in async code use the blocking pool.
    ///
    /// # Errors
    /// [`SourceError::Failed`] when the tree cannot be read.
    pub fn scan_files(root: &Path, max: u64) -> Result<Vec<(String, Vec<u8>)>, SourceError> {
        let mut files = Vec::new();
        tree::walk(root, &mut |path, meta| {
            if meta.is_file() {
                let body = if meta.len() <= max { std::fs::read(root.join(&path))? } else { Vec::new() };
                files.push((path, body));
            }
            Ok(())
        })
        .map_err(|e| disk(root, &e))?;
        files.sort();
        Ok(files)
    }

    async fn folder(&self, job: &Job<'_>, path: &str, upload_id: Option<&str>) -> Result<Fetched, SourceError> {
        let Some(id) = upload_id else {
            return Err(SourceError::refused(
                format!("the folder '{path}' was not uploaded"),
                "folders are read by the console: `sigil deploy ./dir`",
            ));
        };
        let key = format!("upload {id}");
        let (digest, tree, guard) = match self.cache.find(&key).await? {
            Some(found) => found,
            None => {
                let archive = self.uploads.open_finished(id)?;
                job.say(format!("unpacking {path}")).await;
                let (digest, written, tree, guard) = job
                    .write_tree(&key, move |tree| archive::unpack(&archive, archive::Packing::TarZstd, false, tree))
                    .await?;
                job.say(format!("{} files, {} bytes", written.files, written.bytes)).await;
                job.say_lfs(&written).await;
                (digest, tree, guard)
            }
        };
        Ok(Fetched {
            pinned: path.to_owned(),
            digest,
            commit: None,
            tree: Some(tree),
            package: None,
            image: None,
            guard,
        })
    }

    /// That an image is signed where the owner asks for it.
    async fn signed(
        &self,
        job: &Job<'_>,
        reference: &str,
        registry: &str,
        exact: Option<&str>,
    ) -> Result<(), SourceError> {
        let Some(key) = key_for(&job.config.limits.signatures, reference, registry) else { return Ok(()) };
        let Some((repository, digest)) = exact.and_then(|exact| exact.split_once('@')) else {
            return Err(SourceError::refused(
                format!("'{reference}' is not from a registry, where its signature would be"),
                "[limits] signatures asks for one; push the image and deploy it from there",
            ));
        };
        let repository = repository.strip_prefix(&format!("{registry}/")).unwrap_or(repository);
        let login = self.secrets.credential(registry).map_err(|e| SourceError::failed(e.to_string(), e.hint()))?;
        if let Some(login) = &login {
            job.uses(login).await?;
        }
        cosign::verify(job, registry, repository, digest, key, login.as_ref()).await
    }

    async fn image(&self, job: &Job<'_>, reference: &str) -> Result<Fetched, SourceError> {
        let registry = registry_of(reference);
        let names_registry = reference.split('/').next().is_some_and(|first| first == registry);
        let permitted = &job.config.limits.registries;
        let fits = permitted.is_empty() || permitted.iter().any(|p| permits(p, reference, &registry));
        let not_permitted = || {
            SourceError::refused(
                format!("images of {registry} are not allowed on this host"),
                format!("allowed are {}; the owner of the host sets [limits] registries", permitted.join(", ")),
            )
        };
        if names_registry && !fits {
            return Err(not_permitted());
        }
        let engine_failed = |e: EngineError| SourceError::failed(e.to_string(), e.hint());
        let image = match self.engine.image(reference).await.map_err(engine_failed)? {
            Some(image) => {
                job.say(format!("{reference} is here")).await;
                image
            }
            None => {
                if !fits {
                    return Err(not_permitted());
                }
                job.say(format!("pulling {reference}")).await;
                let login =
                    self.secrets.credential(&registry).map_err(|e| SourceError::failed(e.to_string(), e.hint()))?;
                if let Some(login) = &login {
                    job.uses(login).await?;
                }
                let login =
                    login.map(|c| RegistryLogin { host: registry.clone(), username: c.username, password: c.password });
                let pulled = self.engine.pull(reference, login.as_ref(), job.out.clone(), job.cancel.clone()).await;
                pulled.map_err(|e| match e {
                    EngineError::Cancelled => SourceError::Cancelled,
                    EngineError::NotFound(_) | EngineError::Failed(_) | EngineError::Api(_) => SourceError::not_found(
                        format!("image '{reference}' is neither here nor can it be pulled: {e}"),
                        format!("check the name; a private registry needs a source secret for {registry}"),
                    ),
                    other => engine_failed(other),
                })?;
                self.engine.image(reference).await.map_err(engine_failed)?.ok_or_else(|| {
                    SourceError::failed(
                        format!("the engine pulled '{reference}', but does not show it"),
                        "look at the engine's own log",
                    )
                })?
            }
        };
        let repository = repository_of(reference);
        let exact = image.digests.iter().find(|d| d.split('@').next().is_some_and(|r| same_repository(r, &repository)));
        self.signed(job, reference, &registry, exact.map(String::as_str)).await?;
        Ok(Fetched {
            pinned: format!("image:{}", exact.map_or(reference, String::as_str)),
            digest: image.id.clone(),
            commit: None,
            tree: None,
            package: None,
            image: Some(image.id),
            guard: Arc::new(TreeGuard::none()),
        })
    }
}

fn allowed(config: &AgentConfig, kind: &str) -> Result<(), SourceError> {
    if config.sources.allowed.iter().any(|k| k == kind) {
        return Ok(());
    }
    Err(SourceError::refused(
        format!("sources of kind '{kind}' are not allowed on this host"),
        format!("allowed are {}; the owner of the host sets [sources] allowed", config.sources.allowed.join(", ")),
    ))
}

/// The registry's host of an image reference, as engines read it.
fn registry_of(reference: &str) -> String {
    match reference.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first.to_owned(),
        _ => "docker.io".to_owned(),
    }
}

/// The longest entry that fits an image counts.
fn key_for<'a>(
    signatures: &'a std::collections::BTreeMap<String, PathBuf>,
    reference: &str,
    registry: &str,
) -> Option<&'a PathBuf> {
    let fits = signatures.iter().filter(|(entry, _)| permits(entry, reference, registry));
    fits.max_by_key(|(entry, _)| entry.len()).map(|(_, key)| key)
}

/// The reference without tag and digest.
pub(crate) fn repository_of(reference: &str) -> String {
    let bare = reference.split('@').next().unwrap_or(reference);
    match bare.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name.to_owned(),
        _ => bare.to_owned(),
    }
}

fn same_repository(a: &str, b: &str) -> bool {
    let plain = |text: &str| text.trim_start_matches("docker.io/").trim_start_matches("library/").to_owned();
    plain(a) == plain(b)
}

/// An entry of `[limits] registries`: a host, or a host with the beginning of a path (`ghcr.io/our-org`).
pub(crate) fn permits(entry: &str, reference: &str, registry: &str) -> bool {
    let entry = entry.trim_end_matches('/');
    let full = if reference.starts_with(&format!("{registry}/")) {
        reference.to_owned()
    } else {
        format!("{registry}/{reference}")
    };
    full.strip_prefix(entry).is_some_and(|rest| {
        rest.starts_with('/') || (entry.contains('/') && rest.starts_with([':', '@'])) || rest.is_empty()
    })
}

fn read_tree(root: &Path, wanted: impl Fn(&str) -> bool) -> Result<Tree, SourceError> {
    let mut tree = Tree::default();
    tree::walk(root, &mut |path, meta| {
        if meta.is_dir() {
            return Ok(());
        }
        // links were checked to stay within the tree when it was written
        let full = root.join(&path);
        let target = if meta.is_symlink() { std::fs::metadata(&full).ok() } else { Some(meta.clone()) };
        if target.is_some_and(|t| t.is_file() && t.len() <= BODY_MAX) && wanted(&path) {
            tree.bodies.insert(path.clone(), std::fs::read(&full)?);
        }
        tree.files.push(path);
        Ok(())
    })
    .map_err(|e| disk(root, &e))?;
    tree.files.sort();
    Ok(tree)
}

/// Runs blocking work on the pool for it.
async fn blocking<T, F>(work: F) -> Result<T, SourceError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, SourceError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(SourceError::failed(format!("unpacking ended early: {e}"), "try again; see the agent's log"))
    })
}

fn disk(path: &Path, error: &std::io::Error) -> SourceError {
    let hint = if error.kind() == std::io::ErrorKind::StorageFull {
        "the disk is full; free some space"
    } else {
        "look at the data directory's file system and permissions"
    };
    SourceError::failed(format!("{}: {error}", path.display()), hint)
}

#[cfg(test)]
pub(crate) mod tests;
