//! Owns: observed instances, conditions, the last plan, the route table. May touch: engine, initlink, secrets, tail, upstream. Never: desired state. Tested by: `tests/sim`, `tests/docker`.
use std::sync::Arc;
use jiff::Timestamp;
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo, State};
use tokio::sync::watch;

/// A deployment as observed, for api and operate.
#[derive(Debug, Clone)]
pub struct Status {
    pub id: DeploymentId,
    pub state: State,
    pub ready: u32,
    pub restarts: u32,
    /// The release that serves, if any.
    pub serving: Option<ReleaseNo>,
    pub message: String,
    /// healthy, degraded, unhealthy, unknown
    pub health: String,
    pub conditions: Vec<Condition>,
    pub replicas: Vec<ReplicaStatus>,
    pub plan: Vec<String>,
    /// Generation this status was computed from.
    pub generation: u64,
    pub changed_at: Timestamp,
    /// Verdict on the newest release: None while gating.
    pub gate: Option<(ReleaseNo, Result<(), String>)>,
    /// Last output of the last failed instance.
    pub last_output: Vec<String>,
    /// Total of replicas' CPU, percent of one core, and memory, bytes.
    pub cpu_percent: f64,
    pub memory_bytes: u64,
}
#[derive(Debug, Clone)]
pub struct Condition { pub kind: String, pub ok: bool, pub reason: String, pub since: Timestamp }
#[derive(Debug, Clone)]
pub struct ReplicaStatus { pub instance: InstanceId, pub release: ReleaseNo, pub state: String, pub container: String, pub started_at: Option<Timestamp>, pub restarts: u32, pub message: String }

#[derive(Clone, Debug)]
pub struct Reconcile {}
impl Reconcile {
    pub fn status(&self, _id: DeploymentId) -> Option<Arc<Status>> { todo!() }
    /// Changes with every change of any status.
    pub fn changes(&self) -> watch::Receiver<u64> { todo!() }
}
