//! `Health`: whether replicas answer, and how available a deployment was.

use sigil_core::health::{Outcome, Rules};
use sigil_protocol::v1;
use tonic::{Request, Response, Status};

use super::{convert, rules};
use crate::probe::{Probe, Turned, WINDOWS};
use crate::reconcile::{Ended, Reconcile, Said};
use crate::store::Store;

/// Most probes, or turns, of one answer.
const PROBES_MAX: u32 = 2000;

pub(super) struct HealthService {
    pub store: Store,
    pub probe: Probe,
    pub reconcile: Reconcile,
}

fn turn(turned: Turned) -> v1::HealthTurn {
    v1::HealthTurn {
        at: convert::time(turned.at),
        instance: turned.instance.to_string(),
        from: turned.from.as_str().to_owned(),
        to: turned.to.as_str().to_owned(),
        why: turned.why,
        done: turned.done,
    }
}

fn life(ended: Ended) -> v1::EndedLife {
    let line = |said: Said| v1::EndedLine { at: convert::time(said.at), stderr: said.stderr, line: said.line };
    v1::EndedLife {
        at: convert::time(ended.at),
        began: ended.began.map_or(0, convert::time),
        instance: ended.instance.to_string(),
        release: ended.release,
        served: ended.served,
        code: ended.code,
        oom: ended.oom,
        why: ended.why,
        output: ended.output.into_iter().map(line).collect(),
        cut: ended.cut,
    }
}

#[tonic::async_trait]
impl v1::health_server::Health for HealthService {
    async fn get(&self, request: Request<v1::HealthRequest>) -> Result<Response<v1::HealthReply>, Status> {
        let deployment = rules::caller(&request)?.finds(&self.store, &request.get_ref().name)?;
        let most = |wanted: u32| wanted.min(PROBES_MAX) as usize;
        let v1::HealthRequest { probes, turns, lives, .. } = request.get_ref();
        let (limit, turns, lives) = (most(*probes), most(*turns), most(*lives));
        let health = self.probe.health(deployment.id);
        let calls = self.probe.calls(deployment.id).await;
        let probes = self.probe.history(deployment.id, limit).await;
        let turns = self.probe.turns(deployment.id, turns).await;
        let lives = self.reconcile.lives(deployment.id, lives).await;
        let replicas = health.replicas.into_iter().map(|replica| v1::ReplicaHealth {
            instance: replica.instance.to_string(),
            state: replica.state.as_str().to_owned(),
            why: replica.why,
            ms: replica.took.as_secs_f64() * 1e3,
            at: replica.at.map_or(0, convert::time),
            remedies: replica.remedies,
        });
        let windows = WINDOWS.into_iter().zip(calls);
        let probes = probes.into_iter().map(|kept| {
            let (outcome, why) = match kept.outcome {
                Outcome::Good => ("good", String::new()),
                Outcome::Poor(why) => ("poor", why),
                Outcome::Busy(why) => ("busy", why),
                Outcome::Failed(why) => ("failed", why),
                Outcome::Skipped(why) => ("skipped", why),
            };
            let (at, instance) = (convert::time(kept.at), kept.instance.to_string());
            v1::ProbeResult { at, instance, outcome: outcome.to_owned(), why, ms: kept.ms }
        });
        let target = deployment.release(deployment.desired.release).map(|r| r.spec.health.target);
        Ok(Response::new(v1::HealthReply {
            name: deployment.name.to_string(),
            state: health.state.as_str().to_owned(),
            replicas: replicas.collect(),
            availability: windows
                .map(|(hours, calls)| v1::Availability { hours, calls: calls.all, failed: calls.failed })
                .collect(),
            target: target.unwrap_or(Rules::default().target),
            probes: probes.collect(),
            turns: turns.into_iter().map(turn).collect(),
            lives: lives.into_iter().map(life).collect(),
        }))
    }
}
