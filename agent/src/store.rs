//! Owns: desired state, operations, sealed secrets and remembered requests; the only room that names sled.
//! May touch: `<data>/state`, `<data>/journal`, `<data>/exports`.
//! Never: decides, or believes anything about containers.
//! Tested by: unit tests on a temporary directory; `tests/sim` kills it.
use std::path::Path;
use std::sync::Arc;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_core::model::{AgentId, Deployment, DeploymentId, Name, OperationId};
use tokio::sync::watch;

/// What opening found.
#[derive(Debug, Clone, Default)]
pub struct OpenReport {
    /// One line each: set aside, restored from export, journal replayed; empty when all was well.
    pub alarms: Vec<String>,
}

/// An operation as kept (its events are files of `operate`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationRecord {
    pub id: OperationId,
    /// deploy, build, scan, restart, stop, start, scale, rollback, remove
    pub kind: String,
    pub deployment: Option<DeploymentId>,
    pub name: String,
    pub created_by: String,
    pub created_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// queued, running, succeeded, failed, cancelled
    pub state: String,
    /// The step running or last finished.
    pub step: String,
    /// The request, and what finished steps produced, as JSON that `operate` owns.
    pub request: serde_json::Value,
    pub progress: serde_json::Value,
    pub release: Option<u32>,
    /// {code,message,hint,details,exit_code}
    pub error: Option<serde_json::Value>,
    pub result: serde_json::Value,
    pub summary: String,
    pub request_id: String,
}

/// A sealed secret: opaque here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SealedRecord {
    /// `team/default/NAME`, `deployment/<id>/NAME`, `source/<host>`
    pub key: String,
    pub version: u32,
    pub changed_at: Timestamp,
    pub changed_by: String,
    pub sealed: Vec<u8>,
}

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("another agent holds {0}")]
    Locked(String),
    #[error("no deployment '{0}'")]
    NotFound(String),
    #[error("the name '{0}' is taken")]
    NameTaken(String),
    #[error("it was changed meanwhile (generation {found}, expected {expected})")]
    Conflict { expected: u64, found: u64 },
    #[error("less than 5 % of the disk is free; nothing was written")]
    DiskFull,
    #[error("state: {0}")]
    Io(String),
    /// The change itself refused.
    #[error("{0}")]
    Refused(String),
}
/// Result of a store call.
pub type Result<T> = std::result::Result<T, StoreError>;

/// The store. Clones share one database. Every change is on the disk (fdatasync) when the call returns; calls
/// block for milliseconds, so async callers use the async methods (they run on the blocking pool; a group commit
/// joins concurrent writers in one sync).
#[derive(Clone, Debug)]
pub struct Store {}
impl Store {
    pub fn open(_dir: &Path) -> Result<(Self, OpenReport)> { todo!() }
    /// The agent's id, made at first open and kept in `<data>/agent-id`.
    pub fn agent_id(&self) -> AgentId { todo!() }
    /// All deployments, by name. From memory; cheap.
    pub fn deployments(&self) -> Vec<Arc<Deployment>> { todo!() }
    pub fn deployment(&self, _id: DeploymentId) -> Option<Arc<Deployment>> { todo!() }
    pub fn by_name(&self, _name: &Name) -> Option<Arc<Deployment>> { todo!() }
    pub async fn create(&self, _deployment: Deployment) -> Result<Arc<Deployment>> { todo!() }
    /// Compare and set: runs `change` on a copy; `expected` generation `None` = whatever it is. Bumps the generation
    /// when `desired` changed, sets reason and changed_at.
    pub async fn update<F>(&self, _id: DeploymentId, _expected: Option<u64>, _reason: &str, _change: F) -> Result<Arc<Deployment>>
    where F: FnOnce(&mut Deployment) -> std::result::Result<(), String> + Send + 'static { todo!() }
    /// Removes the record (its containers are gone).
    pub async fn delete(&self, _id: DeploymentId) -> Result<()> { todo!() }
    /// Changes with every write to deployments: (epoch fixed per open, revision).
    pub fn changes(&self) -> watch::Receiver<u64> { todo!() }
    pub async fn put_operation(&self, _op: OperationRecord) -> Result<()> { todo!() }
    pub fn operation(&self, _id: OperationId) -> Option<Arc<OperationRecord>> { todo!() }
    /// Newest first; finished ones beyond the newest 500 are forgotten.
    pub fn operations(&self) -> Vec<Arc<OperationRecord>> { todo!() }
    /// The operation that an earlier request with this id made (24 h).
    pub fn operation_of_request(&self, _request_id: &str) -> Option<Arc<OperationRecord>> { todo!() }
    pub async fn put_sealed(&self, _record: SealedRecord) -> Result<()> { todo!() }
    pub fn sealed(&self, _key: &str) -> Option<Arc<SealedRecord>> { todo!() }
    pub fn sealed_keys(&self, _prefix: &str) -> Vec<Arc<SealedRecord>> { todo!() }
    pub async fn remove_sealed(&self, _key: &str) -> Result<bool> { todo!() }
    /// Writes one checksummed export now; answers its path.
    pub async fn export(&self) -> Result<std::path::PathBuf> { todo!() }
    /// Flushes and closes.
    pub async fn close(&self) {}
}
