//! `Scaling`: how a deployment is scaled, and what was decided. Policies are written as YAML, as manifests write them.

use sigil_core::model::Deployment;
use sigil_core::scale::Policy;
use sigil_protocol::v1;
use tonic::{Request, Response, Status};

use super::status::{self, invalid};
use super::{convert, noted, rules};
use crate::autoscale::Autoscale;
use crate::store::Store;

/// Longest policy, bytes.
const MAX: usize = 16 << 10;
/// Decisions of one answer when the caller does not say, and at most.
const SHOWN: u32 = 100;
const SHOWN_MAX: u32 = 2000;

pub(super) struct ScalingService {
    pub store: Store,
    pub autoscale: Autoscale,
    /// Most replicas that the owner allows.
    pub max_replicas: Box<dyn Fn() -> u32 + Send + Sync>,
    /// Median time of a deployment's answers lately, milliseconds; 0: none.
    pub time_ms: Box<dyn Fn(&Deployment) -> f64 + Send + Sync>,
}

fn yaml(deployment: &Deployment) -> String {
    deployment.scaling.as_ref().map(|policy| policy.to_yaml()).unwrap_or_default()
}

fn show(deployment: &Deployment) -> v1::ScalingReply {
    v1::ScalingReply {
        name: deployment.name.to_string(),
        policy: yaml(deployment),
        replicas: deployment.desired.replicas,
    }
}

/// The policy that is asked for; `None`: none.
fn asked(request: &v1::SetScalingRequest, now: Option<&Policy>) -> Result<Option<Box<Policy>>, Status> {
    if request.off {
        return Ok(None);
    }
    if request.policy.len() > MAX {
        return Err(invalid("the policy is longer than 16 KiB", "it is a map of a few fields"));
    }
    let over = now.filter(|_| request.merge);
    let policy = Policy::read("policy", &request.policy, over).map_err(|e| invalid(e.to_string(), e.hint()))?;
    Ok(Some(Box::new(policy)))
}

#[tonic::async_trait]
impl v1::scaling_server::Scaling for ScalingService {
    async fn get(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::ScalingReply>, Status> {
        let deployment = rules::caller(&request)?.finds(&self.store, &request.get_ref().name)?;
        Ok(Response::new(show(&deployment)))
    }

    /// Setting the same policy twice is setting it once, so the request id is checked and not kept.
    async fn set(&self, request: Request<v1::SetScalingRequest>) -> Result<Response<v1::ScalingReply>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let request = request.into_inner();
        note.target(&request.name, "");
        note.request(convert::request_id(&request.request_id)?);
        let deployment = caller.finds(&self.store, &request.name)?;
        note.target(&request.name, deployment.id);
        let policy = asked(&request, deployment.scaling.as_deref())?;
        let owner = (self.max_replicas)();
        if let Some(least) = policy.as_ref().map(|p| p.awake().0).filter(|least| *least > owner) {
            let what = format!("min {least} is more than this host allows ({owner})");
            return Err(invalid(what, "the owner sets [limits] max_replicas in the agent's configuration"));
        }
        note.before("policy", yaml(&deployment));
        let change = move |d: &mut Deployment| {
            if let Some((least, most)) = policy.as_ref().map(|p| p.awake()).filter(|_| d.desired.replicas > 0) {
                d.desired.replicas = d.desired.replicas.clamp(least, most.min(owner).max(least));
            }
            d.scaling = policy;
            Ok(())
        };
        let changed = self.store.update(deployment.id, None, "scaling policy changed", change).await;
        let changed = changed.map_err(|e| status::store(&e))?;
        note.after("policy", yaml(&changed));
        tracing::info!(who = caller.who, deployment = request.name, "scaling policy changed");
        Ok(Response::new(show(&changed)))
    }

    async fn history(
        &self,
        request: Request<v1::ScalingHistoryRequest>,
    ) -> Result<Response<v1::ScalingHistoryReply>, Status> {
        let deployment = rules::caller(&request)?.finds(&self.store, &request.get_ref().name)?;
        let v1::ScalingHistoryRequest { limit, changes, .. } = *request.get_ref();
        let limit = if limit == 0 { SHOWN } else { limit.min(SHOWN_MAX) } as usize;
        let kept = self.autoscale.history(deployment.id, limit, changes).await;
        let decisions = kept.iter().filter_map(|kept| serde_json::to_string(kept).ok()).collect();
        Ok(Response::new(v1::ScalingHistoryReply { name: deployment.name.to_string(), decisions }))
    }

    async fn explain(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::ScalingExplainReply>, Status> {
        let deployment = rules::caller(&request)?.finds(&self.store, &request.get_ref().name)?;
        let explained = self.autoscale.explain(&deployment);
        Ok(Response::new(v1::ScalingExplainReply {
            name: deployment.name.to_string(),
            policy: yaml(&deployment),
            decision: explained.decision.and_then(|d| serde_json::to_string(&d).ok()).unwrap_or_default(),
            notes: explained.notes,
            next_seconds: explained.next_seconds,
        }))
    }

    async fn trace(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::ScalingTraceReply>, Status> {
        let deployment = rules::caller(&request)?.finds(&self.store, &request.get_ref().name)?;
        let history = self.autoscale.load(deployment.id).await;
        let loads = history.buckets().map(|(number, bucket)| v1::ScalingLoad {
            at: number * sigil_core::scale::BUCKET_SECONDS,
            requests: bucket.requests,
            peak: bucket.peak,
            cores: bucket.cores,
        });
        let release = deployment.release(deployment.desired.release);
        Ok(Response::new(v1::ScalingTraceReply {
            name: deployment.name.to_string(),
            policy: yaml(&deployment),
            loads: loads.collect(),
            cpu_limit: release.map_or(0.0, |r| r.spec.resources.cpu_limit),
            price: self.autoscale.price(&deployment).unwrap_or_default(),
            time_ms: (self.time_ms)(&deployment),
        }))
    }
}
