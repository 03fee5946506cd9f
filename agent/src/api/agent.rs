//! `Agent`: what this agent is and how it does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use sigil_config::agent::AgentConfig;
use sigil_protocol::v1;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{convert, rules};
use crate::engine::{Capabilities, EngineError};

/// How long the engine may take to say what it is.
const ENGINE: Duration = Duration::from_secs(3);

/// Asks the engine.
pub(super) type Probe = Arc<dyn Fn() -> BoxFuture<'static, Result<Capabilities, EngineError>> + Send + Sync>;
/// Lines about what needs attention.
pub(super) type Notes = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

pub(super) struct AgentService {
    pub agent_id: String,
    pub started_at: Timestamp,
    pub data_dir: PathBuf,
    pub gateway_url: String,
    pub engine_host: String,
    pub engine: Probe,
    pub notes: Notes,
    pub config: watch::Receiver<Arc<AgentConfig>>,
}

/// The host's name, or the one that the owner gave.
pub fn host_name(config: &AgentConfig) -> String {
    if config.name.is_empty() {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    } else {
        config.name.clone()
    }
}

/// This process' resident memory, bytes; 0 when the kernel does not say.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

#[tonic::async_trait]
impl v1::agent_server::Agent for AgentService {
    async fn info(&self, request: Request<v1::InfoRequest>) -> Result<Response<v1::InfoReply>, Status> {
        let caller = rules::caller(&request)?;
        let engine = match tokio::time::timeout(ENGINE, (self.engine)()).await {
            Ok(Ok(c)) => v1::EngineInfo {
                name: c.name,
                version: c.version,
                api_version: c.api_version,
                host: self.engine_host.clone(),
                reachable: true,
                cgroup_version: c.cgroup_version.to_string(),
                log_driver: c.log_driver,
                message: String::new(),
            },
            Ok(Err(e)) => v1::EngineInfo {
                host: self.engine_host.clone(),
                message: format!("{e}. hint: {}", e.hint()),
                ..v1::EngineInfo::default()
            },
            Err(_) => v1::EngineInfo {
                host: self.engine_host.clone(),
                message: "the engine does not answer".into(),
                ..v1::EngineInfo::default()
            },
        };
        let hostname = host_name(&self.config.borrow());
        Ok(Response::new(v1::InfoReply {
            agent_id: self.agent_id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: convert::time(self.started_at),
            hostname,
            data_dir: self.data_dir.display().to_string(),
            gateway: self.gateway_url.clone(),
            engine: Some(engine),
            notes: (self.notes)(),
            now: convert::time(Timestamp::now()),
            role: caller.rights.somewhere().as_str().into(),
            grants: caller.grants(),
            who: caller.principal.who,
            memory_rss: resident(),
        }))
    }
}
