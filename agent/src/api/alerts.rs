//! `Alerts`: what fires and what did, and trying whether they arrive.

use sigil_core::alert::{Alert, Kind};
use sigil_protocol::v1;
use tonic::{Request, Response, Status};

use super::asker::Asker;
use super::{convert, noted, rules};
use crate::alert::AlertRoom;
use crate::store::Store;

pub(super) struct AlertsService {
    pub store: Store,
    pub alerts: AlertRoom,
}

impl AlertsService {
    /// Who looks after some deployments hears of those; of the host, quotas and budgets who may look at everything.
    fn sees(&self, asker: &Asker, alert: &Alert) -> bool {
        let fact = &alert.fact;
        let of_deployment = matches!(fact.kind, Kind::Unhealthy | Kind::Failed | Kind::Memory | Kind::Room);
        let named = || fact.about.parse().ok().and_then(|name| self.store.by_name(&name));
        asker.sees_all() || (of_deployment && named().is_some_and(|deployment| asker.sees(&deployment)))
    }
}

fn shown(alert: &Alert, ended: i64) -> v1::Alert {
    v1::Alert {
        kind: alert.fact.kind.as_str().to_owned(),
        about: alert.fact.about.clone(),
        text: alert.fact.text.clone(),
        since: convert::time(alert.since),
        ended,
    }
}

#[tonic::async_trait]
impl v1::alerts_server::Alerts for AlertsService {
    async fn list(&self, request: Request<v1::AlertsRequest>) -> Result<Response<v1::AlertsReply>, Status> {
        let asker = rules::caller(&request)?;
        let firing = self.alerts.firing().borrow().clone();
        let firing = firing.iter().filter(|alert| self.sees(&asker, alert)).map(|alert| shown(alert, 0)).collect();
        let ended = self.alerts.ended();
        let ended = ended.iter().filter(|ended| self.sees(&asker, &ended.alert));
        let ended = ended.map(|ended| shown(&ended.alert, convert::time(ended.ended))).collect();
        Ok(Response::new(v1::AlertsReply { firing, ended }))
    }

    /// Trying twice is two messages: the request id is checked and not kept.
    async fn test(&self, request: Request<v1::TestAlertRequest>) -> Result<Response<v1::TestAlertReply>, Status> {
        let note = noted::note(&request);
        note.request(convert::request_id(&request.get_ref().request_id)?);
        let deliveries = self.alerts.test().await.into_iter().map(|tried| v1::AlertDelivery {
            to: tried.to,
            trouble: tried.trouble.unwrap_or_default(),
            ms: tried.took.as_secs_f64() * 1e3,
        });
        Ok(Response::new(v1::TestAlertReply { deliveries: deliveries.collect() }))
    }
}
