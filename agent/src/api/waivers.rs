//! `Waivers`: findings that somebody answers for, of one deployment.

use jiff::Timestamp;
use sigil_core::gate::{self, Waiver};
use sigil_core::model::Deployment;
use sigil_protocol::v1;
use tonic::{Request, Response, Status};

use super::status::{self, invalid, refuse};
use super::{convert, noted, rules};
use crate::store::Store;

pub(super) struct WaiversService {
    pub store: Store,
}

fn show(deployment: &Deployment) -> v1::WaiversReply {
    let now = Timestamp::now();
    let waivers = deployment.waivers.iter().map(|w| v1::WaiverInfo {
        finding: w.finding.clone(),
        reason: w.reason.clone(),
        until: w.until.to_string(),
        by: w.by.clone(),
        at: convert::time(w.at),
        over: !w.holds(now),
    });
    v1::WaiversReply { name: deployment.name.to_string(), waivers: waivers.collect() }
}

#[tonic::async_trait]
impl v1::waivers_server::Waivers for WaiversService {
    async fn list(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::WaiversReply>, Status> {
        let deployment = rules::caller(&request)?.finds(&self.store, &request.get_ref().name)?;
        Ok(Response::new(show(&deployment)))
    }

    /// Adding the same twice is adding it once, so the request id is checked and not kept.
    async fn add(&self, request: Request<v1::AddWaiverRequest>) -> Result<Response<v1::WaiversReply>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.name, "");
        note.request(convert::request_id(&asked.request_id)?);
        let deployment = caller.finds(&self.store, &asked.name)?;
        note.target(&asked.name, deployment.id);
        let new = asked.waiver.unwrap_or_default();
        let new = Waiver::new(&new.finding, &new.reason, &new.until, &caller.who, Timestamp::now())
            .map_err(|e| invalid(e.to_string(), e.hint()))?;
        note.after("waiver", format!("{} until {}: {}", new.finding, new.until, new.reason));
        tracing::info!(
            who = caller.who, deployment = asked.name, finding = new.finding, until = %new.until, reason = new.reason,
            "a finding is waived"
        );
        let change = move |d: &mut Deployment| {
            d.waivers = gate::joined(&d.waivers, &[new]);
            Ok(())
        };
        let changed = self.store.update(deployment.id, None, "a finding is waived", change).await;
        let changed = changed.map_err(|e| status::store(&e))?;
        Ok(Response::new(show(&changed)))
    }

    async fn remove(&self, request: Request<v1::RemoveWaiverRequest>) -> Result<Response<v1::WaiversReply>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.name, "");
        note.request(convert::request_id(&asked.request_id)?);
        let deployment = caller.finds(&self.store, &asked.name)?;
        note.target(&asked.name, deployment.id);
        if !deployment.waivers.iter().any(|w| w.finding == asked.finding) {
            let what = format!("no finding '{}' of '{}' is waived", asked.finding, asked.name);
            let hint = format!("see `sigil waiver ls {}`", asked.name);
            return Err(refuse("NOT_FOUND", what, hint, status::NOT_FOUND));
        }
        note.before("waiver", asked.finding.clone());
        tracing::info!(who = caller.who, deployment = asked.name, finding = asked.finding, "a waiver is taken back");
        let change = move |d: &mut Deployment| {
            d.waivers.retain(|w| w.finding != asked.finding);
            Ok(())
        };
        let changed = self.store.update(deployment.id, None, "a waiver is taken back", change).await;
        let changed = changed.map_err(|e| status::store(&e))?;
        Ok(Response::new(show(&changed)))
    }
}
