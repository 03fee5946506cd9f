//! Owns: MCP to one replica, over HTTP or stdio. May touch: initlink. Never: routes or authenticates. Tested by: unit tests, `tests/docker`.
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo, ReleaseSpec};
use std::sync::Arc;
use std::time::Duration;
use secrecy::SecretString;
use crate::{initlink::Link, tail::Tail};

/// One replica that can be called.
#[derive(Debug, Clone)]
pub struct Replica {
    pub deployment: DeploymentId,
    pub release: ReleaseNo,
    pub instance: InstanceId,
    pub spec: Arc<ReleaseSpec>,
    pub link: Link,
    /// Environment of stdio processes (plain and secret).
    pub env: Arc<Vec<(String, SecretString)>>,
}
#[derive(Debug, Clone, thiserror::Error)]
pub enum UpstreamError {
    #[error("{what}")]
    Gate { what: String, hint: String },
    #[error(transparent)]
    Link(#[from] crate::initlink::LinkError),
}
/// What reconcile lets the gateway see. A new table replaces the old one whole.
#[derive(Debug, Default, Clone)]
pub struct RouteTable { pub routes: std::collections::BTreeMap<String, Arc<Route>> }
#[derive(Debug, Clone)]
pub struct Route {
    pub id: DeploymentId,
    pub name: String,
    /// Replicas that serve new sessions and calls.
    pub ready: Vec<Replica>,
    /// Replicas that only finish what they have (draining).
    pub draining: Vec<Replica>,
    /// A replica is expected soon: hold calls (bounded) instead of refusing them.
    pub expected: bool,
    /// Why nothing is ready, for the caller.
    pub message: String,
    /// Header, query and body secrets.
    pub injected: Arc<Vec<(sigil_core::model::Inject, secrecy::SecretString)>>,
}
/// What the gate learnt.
#[derive(Debug, Clone)]
pub struct Handshake {
    pub server_name: String, pub server_version: String, pub protocol_version: String,
    /// The `tools` array, as the server sent it.
    pub tools: Box<serde_json::value::RawValue>,
    pub tool_count: usize,
    pub elapsed: Duration,
}
/// The gate: a real handshake (initialize, notifications/initialized) and `tools/list` (all pages), retried until the server
/// listens or `timeout` ends. For stdio it starts a process of its own, ends it afterwards, and keeps garbage on stdout as marked log lines.
pub async fn gate(_replica: &Replica, _tail: &Tail, _timeout: Duration) -> Result<Handshake, UpstreamError> { todo!() }
