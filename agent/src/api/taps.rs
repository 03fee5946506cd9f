//! `Taps`: live frames of a deployment.

use std::sync::Arc;

use futures::stream::BoxStream;
use sigil_protocol::v1;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::asker::Asker;
use super::{convert, noted, rules, status};
use crate::gateway::{Frame, Gateway};
use crate::store::Store;

pub(super) struct TapsService {
    pub gateway: Gateway,
    pub store: Store,
    pub stop: CancellationToken,
}

fn show(frame: &Frame) -> v1::TapFrame {
    v1::TapFrame {
        time: convert::time(frame.at),
        from_client: frame.from_client,
        caller: frame.caller.clone(),
        session: frame.session.clone(),
        method: frame.method.clone(),
        id: frame.id.clone(),
        took_us: u64::try_from(frame.took.as_micros()).unwrap_or(u64::MAX),
        size: frame.size as u64,
        message: frame.message.clone(),
        cut: frame.cut,
        lost: 0,
        cached: frame.cached,
    }
}

#[tonic::async_trait]
impl v1::taps_server::Taps for TapsService {
    type FollowStream = BoxStream<'static, Result<v1::TapFrame, Status>>;

    async fn follow(&self, request: Request<v1::NameRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let name = request.into_inner().name;
        note.target(&name, "");
        let deployment = caller.finds(&self.store, &name)?;
        note.target(&name, deployment.id);
        let frames = self.gateway.tap(&name).map_err(|e| status::gateway(&e))?;
        tracing::info!(who = caller.who, deployment = name, "the frames of a deployment are looked at");
        type From = (broadcast::Receiver<Arc<Frame>>, CancellationToken, Asker);
        let from = Some((frames, self.stop.clone(), caller));
        let out = futures::stream::unfold(from, |from: Option<From>| async {
            let (mut frames, stop, asker) = from?;
            let next = tokio::select! {
                next = frames.recv() => next,
                () = stop.cancelled() => return None,
                status = asker.changes() => return Some((Err(status), None)),
            };
            let shown = match next {
                Ok(frame) => show(&frame),
                Err(RecvError::Lagged(lost)) => v1::TapFrame { lost, ..v1::TapFrame::default() },
                Err(RecvError::Closed) => return None,
            };
            Some((Ok(shown), Some((frames, stop, asker))))
        });
        Ok(Response::new(Box::pin(out)))
    }
}
