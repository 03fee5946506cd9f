//! Owns: operations, their steps and event streams. May touch: store, source, build, secrets. Never: containers. Tested by: `tests/sim`, `tests/docker`.
use std::sync::Arc;
use jiff::Timestamp;
use sigil_core::model::OperationId;
use crate::store::OperationRecord;

/// What a caller asked for. JSON forms are kept in the operation's record.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Request {
    Deploy(Box<DeployRequest>),
    Build { source: SourceRef, manifest: Option<ManifestText>, dry_run: bool, force: bool },
    Scan { source: SourceRef },
    Restart { name: String },
    Stop { name: String },
    Start { name: String },
    Scale { name: String, replicas: u32 },
    Rollback { name: String, release: Option<u32> },
    Remove { name: String },
}
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SourceRef { pub text: String, pub upload_id: Option<String> }
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ManifestText { pub file: String, pub text: String }
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct WaiverRequest { pub finding: String, pub reason: String, pub until: String }
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DeployRequest {
    pub name: Option<String>, pub source: SourceRef, pub manifest: Option<ManifestText>, pub tier: Option<String>, pub transport: Option<String>,
    pub port: Option<u16>, pub env: std::collections::BTreeMap<String, String>, pub secrets: std::collections::BTreeMap<String, String>,
    pub config: std::collections::BTreeMap<String, String>, pub volumes: Vec<String>, pub egress: Vec<String>, pub access: Option<String>,
    pub scaling: Option<String>, pub replicas: Option<u32>, pub force: bool, pub args: Vec<String>, pub waivers: Vec<WaiverRequest>, pub timeout_ms: Option<u64>,
}
/// What is told of a failure (`ErrorInfo` on the wire).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure { pub code: String, pub message: String, pub hint: String, pub details: String, pub exit_code: i32 }

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Event { pub seq: u64, pub time: Timestamp, pub what: EventKind }
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    Step { name: String, state: String, message: String, elapsed_ms: u64 },
    Output { stream: String, line: String },
    Note(String),
    Done(Box<OperationRecord>),
}
#[derive(Debug)]
pub struct Follow {}
impl Follow { /// `None` after `Done`.
    pub async fn next(&mut self) -> Option<Event> { todo!() } }

#[derive(Clone, Debug)]
pub struct Operate {}
impl Operate {
    /// Kept before it is answered. A repeated request_id answers the first operation.
    pub async fn start(&self, _request: Request, _request_id: &str, _who: &str) -> Result<Arc<OperationRecord>, Failure> { todo!() }
    pub fn get(&self, _id: OperationId) -> Option<Arc<OperationRecord>> { todo!() }
    pub fn list(&self, _deployment: Option<&str>, _limit: usize) -> Vec<Arc<OperationRecord>> { todo!() }
    pub fn follow(&self, _id: OperationId, _after: u64) -> Option<Follow> { todo!() }
    pub async fn cancel(&self, _id: OperationId) -> Result<Arc<OperationRecord>, Failure> { todo!() }
}
