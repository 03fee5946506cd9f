//! Owns: MCP sessions and the HTTP front. May touch: upstream. Never: starts containers. Tested by: `tests/docker`, conformance.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use sigil_config::agent::AgentConfig;
use sigil_core::model::DeploymentId;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use bytes::Bytes;
use crate::upstream::Replica;

/// What reconcile lets the gateway see. A new table replaces the old one whole.
#[derive(Debug, Default, Clone)]
pub struct RouteTable { pub routes: BTreeMap<String, Arc<Route>> }
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
/// Load of a deployment as the gateway sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load { pub rpm: f64, pub p99_ms: f64, pub error_rate: f64, pub in_flight: u64, pub sessions: u64 }

#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("cannot listen on {0}: {1}")]
    Listen(String, String),
    #[error("no deployment '{0}'")]
    NotFound(String),
}
#[derive(Clone, Debug)]
pub struct Gateway {}
impl Gateway {
    pub async fn spawn(_config: watch::Receiver<Arc<AgentConfig>>, _routes: watch::Receiver<Arc<RouteTable>>, _tail: crate::tail::Tail, _data_dir: &std::path::Path, _stop: CancellationToken) -> Result<Self, GatewayError> { todo!() }
    pub fn address(&self) -> SocketAddr { todo!() }
    pub fn load(&self, _id: DeploymentId) -> Load { todo!() }
    /// Requests, streams and sessions that an instance still carries (drain waits for requests).
    pub fn in_flight(&self, _instance: sigil_core::model::InstanceId) -> u64 { todo!() }
    pub fn sessions(&self, _instance: sigil_core::model::InstanceId) -> u64 { todo!() }
    /// One raw JSON-RPC conversation (the gRPC `Mcp.Session`): behind the listener, through the same pipeline.
    pub async fn session(&self, _deployment: &str, _principal: &str, _from_client: mpsc::Receiver<Bytes>, _to_client: mpsc::Sender<Bytes>) -> Result<(), GatewayError> { todo!() }
}
