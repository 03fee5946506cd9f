//! The only file that knows every room. Wiring, no logic.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sigil_config::agent::AgentConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{self, ApiDeps};
use crate::build::Builds;
use crate::engine::Engine;
use crate::engine::docker::Docker;
use crate::gateway::Gateway;
use crate::initlink::InitLinks;
use crate::operate::{self, Operate};
use crate::reconcile::{self, Reconcile};
use crate::secrets::Secrets;
use crate::source::Sources;
use crate::store::Store;
use crate::tail::Tail;
use crate::upstream::RouteTable;

/// All rooms that an agent consists of, running.
#[derive(Debug)]
pub struct App {
    stop: Stops,
    store: Store,
    tail: Tail,
    reconcile: Reconcile,
    operate: Operate,
    gateway: Gateway,
    data_dir: PathBuf,
}

/// Shut down in this order, each named when it is waited for.
#[derive(Debug, Default)]
struct Stops {
    edge: CancellationToken,
    loops: CancellationToken,
    floor: CancellationToken,
}

impl App {
    /// Opens the state in `data_dir` and starts every room.
    ///
    /// # Errors
    /// Another agent on the same directory, an address in use, a directory that cannot be written.
    pub async fn start(data_dir: &Path, config: watch::Receiver<Arc<AgentConfig>>) -> anyhow::Result<Self> {
        let stop = Stops::default();
        let now = config.borrow().clone();
        let (store, report) = Store::open(data_dir)?;
        for alarm in &report.alarms {
            tracing::error!(alarm, "state");
        }
        let agent = store.agent_id();
        let engine: Arc<dyn Engine> = Arc::new(Docker::connect(&now.engine, agent)?);
        let secrets = Secrets::open(data_dir, store.clone())?;
        let (links, output) = InitLinks::spawn(data_dir, now.outbound.clone(), stop.floor.clone()).await?;
        let tail = Tail::spawn(data_dir, now.logs.clone(), output, stop.floor.clone()).await?;
        tail.set_gap_source(Arc::new(EngineLog { engine: engine.clone() }));
        let sources =
            Sources::spawn(data_dir, config.clone(), secrets.clone(), engine.clone(), stop.loops.clone())?;
        let builds =
            Builds::spawn(config.clone(), engine.clone(), links.clone(), agent, data_dir, stop.loops.clone());

        let (routes, routes_seen) = watch::channel(Arc::new(RouteTable::default()));
        let gateway =
            Gateway::spawn(config.clone(), routes_seen, tail.clone(), data_dir, stop.edge.clone()).await?;
        let load = gateway.clone();
        let reconcile = Reconcile::spawn(
            reconcile::Deps {
                store: store.clone(),
                engine: engine.clone(),
                links,
                secrets: secrets.clone(),
                tail: tail.clone(),
                in_flight: Arc::new(move |instance| load.in_flight(instance)),
                config: config.clone(),
                agent,
                routes,
            },
            stop.loops.clone(),
        );
        let gateway_url = format!("http://{}", gateway.address());
        let operate = Operate::spawn(
            operate::Deps {
                store: store.clone(),
                engine: engine.clone(),
                sources: sources.clone(),
                builds,
                secrets: secrets.clone(),
                tail: tail.clone(),
                reconcile: reconcile.clone(),
                config: config.clone(),
                data_dir: data_dir.to_owned(),
                gateway_url: gateway_url.clone(),
            },
            stop.loops.clone(),
        )
        .context("operations cannot be kept")?;
        api::spawn(
            ApiDeps {
                store: store.clone(),
                operate: operate.clone(),
                reconcile: reconcile.clone(),
                tail: tail.clone(),
                gateway: gateway.clone(),
                sources,
                secrets,
                engine,
                config,
                data_dir: data_dir.to_owned(),
                gateway_url,
            },
            stop.edge.clone(),
        )
        .await?;
        Ok(Self { stop, store, tail, reconcile, operate, gateway, data_dir: data_dir.to_owned() })
    }
}
