//! `Deployments`: the table, watched, and one of them in full.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::BoxStream;
use sigil_config::agent::AgentConfig;
use sigil_core::sbom;
use sigil_protocol::v1;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::asker::Asker;
use super::board::{Board, Table};
use super::{convert, rules, status};
use crate::gateway::Gateway;
use crate::initlink::InitLinks;
use crate::operate::Operate;
use crate::probe::Probe;
use crate::reconcile::Reconcile;
use crate::sample::Sample;
use crate::store::Store;

pub(super) struct DeploymentsService {
    pub store: Store,
    pub operate: Operate,
    pub reconcile: Reconcile,
    pub gateway: Gateway,
    pub probe: Probe,
    pub sample: Sample,
    pub gateway_url: String,
    pub links: InitLinks,
    pub config: watch::Receiver<Arc<AgentConfig>>,
    pub board: Board,
    pub stop: CancellationToken,
}

struct Watcher {
    /// Who sees only some of it.
    asker: Asker,
    table: watch::Receiver<Arc<Table>>,
    epoch: Arc<str>,
    pending: VecDeque<v1::WatchEvent>,
    /// Where the watcher is once `pending` is sent.
    at: u64,
    stop: CancellationToken,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<v1::WatchEvent, Status>> {
        loop {
            if let Some(mut message) = self.pending.pop_front() {
                message.changed.retain(|row| self.asker.sees_row(row));
                return Some(Ok(message));
            }
            // what happened while the last messages were under way comes as one delta
            tokio::select! {
                changed = self.table.changed() => if changed.is_err() { return Some(Err(status::stopping())) },
                () = self.stop.cancelled() => return Some(Err(status::stopping())),
                // a row that may be seen from now on, or no longer, is no change of the table
                status = self.asker.changes() => return Some(Err(status)),
            }
            let table = self.table.borrow_and_update().clone();
            if table.revision() != self.at {
                self.pending = table.messages(&self.epoch, Some(self.at)).into();
                self.at = table.revision();
            }
        }
    }
}

#[tonic::async_trait]
impl v1::deployments_server::Deployments for DeploymentsService {
    type WatchStream = BoxStream<'static, Result<v1::WatchEvent, Status>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let asker = rules::caller(&request)?;
        let asked = request.into_inner();
        self.board.fresh().await;
        let mut table = self.board.subscribe();
        let current = table.borrow_and_update().clone();
        // a revision means something under the epoch that gave it only
        let epoch = asker.epoch(&self.board.epoch);
        let from = (*asked.epoch == *epoch).then_some(asked.revision);
        let watcher = Watcher {
            pending: current.messages(&epoch, from).into(),
            at: current.revision(),
            epoch,
            asker,
            table,
            stop: self.stop.clone(),
        };
        let events = futures::stream::unfold(Some(watcher), |watcher| async {
            let mut watcher = watcher?;
            let event = watcher.next().await?;
            let rest = event.is_ok().then_some(watcher);
            Some((event, rest))
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn bill(&self, request: Request<v1::BillRequest>) -> Result<Response<v1::BillReply>, Status> {
        let asker = rules::caller(&request)?;
        let asked = request.into_inner();
        let d = asker.finds(&self.store, &asked.name)?;
        let number = match asked.release {
            0 => d.serving.unwrap_or(d.desired.release),
            number => number,
        };
        let Some(release) = d.release(number) else {
            let what = format!("'{}' has no release {number}", asked.name);
            let hint = format!("see `sigil releases {}`", asked.name);
            return Err(status::refuse("NOT_FOUND", what, hint, status::NOT_FOUND));
        };
        let cyclonedx = self.operate.bill(release).await.map_err(|f| status::failure(&f))?;
        let provenance = sbom::provenance(d.name.as_str(), release, self.store.agent_id());
        Ok(Response::new(v1::BillReply { release: number, cyclonedx, provenance: format!("{provenance:#}") }))
    }

    async fn get(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::DeploymentDetail>, Status> {
        let asker = rules::caller(&request)?;
        let d = asker.finds(&self.store, &request.into_inner().name)?;
        let observed = self.reconcile.status(d.id);
        let last = self.operate.list(Some(d.name.as_str()), 1).into_iter().next();
        let busy = last.as_ref().is_some_and(|op| op.kind == "deploy" && op.ended_at.is_none());
        let row = convert::deployment(&d, observed.as_deref(), self.gateway.load(d.id), &self.gateway_url, busy);
        let row = convert::probed(row, &self.probe.health(d.id));
        let serving = observed.as_ref().and_then(|s| s.serving).or(d.serving);
        let spec = serving.and_then(|n| d.release(n)).or_else(|| d.release(d.desired.release)).map(|r| &r.spec);
        let (refused_total, refused) = self.links.refusals(d.id);
        Ok(Response::new(v1::DeploymentDetail {
            deployment: Some(row),
            conditions: observed.iter().flat_map(|s| &s.conditions).map(convert::condition).collect(),
            replicas: observed
                .iter()
                .flat_map(|s| &s.replicas)
                .map(|r| convert::replica(r, self.gateway.sessions(r.instance)))
                .collect(),
            releases: d.releases.iter().map(|r| convert::release(r, serving == Some(r.number))).collect(),
            last_operation: last.map(|op| convert::operation(&op)),
            plan: observed.as_ref().map(|s| s.plan.join("\n")).unwrap_or_default(),
            generation: d.generation,
            reason: d.reason.clone(),
            last_output: observed.as_ref().map(|s| s.last_output.clone()).unwrap_or_default(),
            access: d.access().as_str().to_owned(),
            bundles: d.policy.bundles.clone(),
            egress: spec.map(|s| s.egress.clone()).unwrap_or_default(),
            egress_open: self.config.borrow().outbound.default == "allow",
            network: spec.map(|s| s.network.as_str().to_owned()).unwrap_or_default(),
            refused: refused.into_iter().map(convert::refused).collect(),
            refused_total,
            volume_bytes: self.sample.latest().borrow().volumes.get(&d.id).map_or(0, |volumes| volumes.bytes),
        }))
    }
}
