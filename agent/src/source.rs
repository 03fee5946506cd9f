//! Owns: fetching and unpacking sources into trees by digest. May touch: `<data>/sources`, `<data>/uploads`, the network, git. Never: runs a source's code. Tested by: unit tests, `tests/docker`.
use std::path::{Path, PathBuf};
use sigil_config::agent::AgentConfig;
use sigil_core::source::Source;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{what}")]
    NotFound { what: String, hint: String },
    #[error("{what}")]
    Refused { what: String, hint: String },
    #[error("{what}")]
    Failed { what: String, hint: String },
    #[error("cancelled")]
    Cancelled,
}
/// A fetched source.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The source with version or commit pinned, as a person would write it.
    pub pinned: String,
    /// Content digest (`sha256:…`): same tree, same digest, whatever the times and owners.
    pub digest: String,
    pub commit: Option<String>,
    /// The tree (subfolder applied), read-only, kept while `guard` lives. None for an image.
    pub tree: Option<PathBuf>,
    /// npm, pypi: the package's name and exact version.
    pub package: Option<(String, String)>,
    /// image: the engine's image id.
    pub image: Option<String>,
    pub guard: Arc<TreeGuard>,
}
/// Keeps a tree from the cache's cleaner.
#[derive(Debug)]
pub struct TreeGuard {}

/// An upload in progress.
#[derive(Debug)]
pub struct Upload {}
impl Upload {
    pub async fn write(&mut self, _data: &[u8]) -> Result<(), SourceError> { todo!() }
    /// Answers `sha256:…`.
    pub async fn finish(self) -> Result<(String, u64), SourceError> { todo!() }
}

#[derive(Clone, Debug)]
pub struct Sources {}
impl Sources {
    pub fn spawn(_data_dir: &Path, _config: watch::Receiver<Arc<AgentConfig>>, _secrets: crate::secrets::Secrets, _engine: Arc<dyn crate::engine::Engine>, _stop: CancellationToken) -> Result<Self, SourceError> { todo!() }
    pub async fn upload(&self, _label: &str, _size: u64) -> Result<Upload, SourceError> { todo!() }
    /// Fetches; progress lines go to `out`. `upload_id` is needed for a folder.
    pub async fn fetch(&self, _source: &Source, _upload_id: Option<&str>, _out: mpsc::Sender<String>, _cancel: CancellationToken) -> Result<Fetched, SourceError> { todo!() }
}
