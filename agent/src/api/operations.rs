//! `Operations`: asking for changes and following them.

use futures::stream::BoxStream;
use sigil_core::model::OperationId;
use sigil_protocol::v1;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{convert, noted, rules, status};
use crate::operate::Operate;

/// Operations listed when the caller does not say how many, and at most.
const LIST_DEFAULT: u32 = 50;
const LIST_MAX: u32 = 1000;

pub(super) struct OperationsService {
    pub operate: Operate,
    pub stop: CancellationToken,
}

fn id(text: &str) -> Result<OperationId, Status> {
    text.parse().map_err(|_| status::no_operation(text))
}

#[tonic::async_trait]
impl v1::operations_server::Operations for OperationsService {
    async fn start(&self, request: Request<v1::StartRequest>) -> Result<Response<v1::Operation>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let (what, request_id) = convert::start_request(request.into_inner())?;
        note.request(&request_id);
        let asked = what.told();
        note.what(asked.what);
        note.target(&asked.target, "");
        asked.facts.iter().for_each(|(key, value)| note.after(key, value));
        let op = self.operate.start(what, &request_id, &caller.who).await.map_err(|f| status::failure(&f))?;
        note.target(&op.name, op.deployment.map(|id| id.to_string()).unwrap_or_default());
        note.operation(op.id);
        Ok(Response::new(convert::operation(&op)))
    }

    async fn get(&self, request: Request<v1::OperationId>) -> Result<Response<v1::Operation>, Status> {
        let text = request.into_inner().id;
        let op = self.operate.get(id(&text)?).ok_or_else(|| status::no_operation(&text))?;
        Ok(Response::new(convert::operation(&op)))
    }

    async fn list(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsReply>, Status> {
        let asked = request.into_inner();
        let name = (!asked.deployment.is_empty()).then_some(asked.deployment.as_str());
        let limit = if asked.limit == 0 { LIST_DEFAULT } else { asked.limit.min(LIST_MAX) };
        let found = self.operate.list(name, limit as usize);
        Ok(Response::new(v1::ListOperationsReply {
            operations: found.iter().map(|op| convert::operation(op)).collect(),
        }))
    }

    type FollowStream = BoxStream<'static, Result<v1::OperationEvent, Status>>;

    async fn follow(&self, request: Request<v1::FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let asked = request.into_inner();
        let follow = self.operate.follow(id(&asked.id)?, asked.after).ok_or_else(|| status::no_operation(&asked.id))?;
        let stop = self.stop.clone();
        let events = futures::stream::unfold(Some((follow, stop)), |state| async {
            let (mut follow, stop) = state?;
            tokio::select! {
                event = follow.next() => event.map(|event| (Ok(convert::event(event)), Some((follow, stop)))),
                () = stop.cancelled() => Some((Err(status::stopping()), None)),
            }
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn cancel(&self, request: Request<v1::OperationId>) -> Result<Response<v1::Operation>, Status> {
        let note = noted::note(&request);
        let text = request.into_inner().id;
        note.operation(&text);
        if let Some(op) = text.parse().ok().and_then(|id| self.operate.get(id)) {
            note.target(&op.name, op.deployment.map(|id| id.to_string()).unwrap_or_default());
            note.before("state", &op.state);
        }
        let op = self.operate.cancel(id(&text)?).await.map_err(|f| status::failure(&f))?;
        note.after("state", &op.state);
        Ok(Response::new(convert::operation(&op)))
    }
}
