//! Owns: tree + recipe -> image. May touch: the engine, free disk. Never: fetches sources, or runs anything outside the engine. Tested by: `tests/docker`.
use std::sync::Arc;
use sigil_config::agent::AgentConfig;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use crate::{engine::{Engine, EngineError, Image}, source::Fetched};

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{what}")]
    Failed { what: String, hint: String },
    #[error("the build took longer than {0} s")]
    TooLong(u64),
    #[error("{0}")]
    DiskFull(String),
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Engine(#[from] EngineError),
}
#[derive(Debug, Clone)]
pub struct Built { pub image: Image, pub tag: String, pub reused: bool, pub dockerfile: String }

#[derive(Clone, Debug)]
pub struct Builds {}
impl Builds {
    pub fn spawn(_config: watch::Receiver<Arc<AgentConfig>>, _engine: Arc<dyn Engine>, _links: crate::initlink::InitLinks, _agent: sigil_core::model::AgentId, _data_dir: &std::path::Path, _stop: CancellationToken) -> Self { todo!() }
    /// The Dockerfile that `build` would use, with base images resolved.
    pub async fn dockerfile(&self, _fetched: &Fetched, _recipe: &sigil_core::recipe::Recipe) -> Result<String, BuildError> { todo!() }
    /// Builds, or reuses an image with the same input digest. Output lines go to `out`.
    pub async fn build(&self, _fetched: &Fetched, _recipe: &sigil_core::recipe::Recipe, _force: bool, _out: mpsc::Sender<String>, _cancel: CancellationToken) -> Result<Built, BuildError> { todo!() }
}
