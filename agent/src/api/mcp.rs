//! `Mcp`: raw JSON-RPC over the link, into the gateway's pipeline behind its listener.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use sigil_protocol::v1;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::rules;
use super::status::{self, invalid};
use crate::gateway::Gateway;
use crate::store::Store;

/// Messages under way in each direction.
const DEPTH: usize = 16;
/// How long the first frame may take.
const FIRST: Duration = Duration::from_secs(10);

pub(super) struct McpService {
    pub gateway: Gateway,
    pub store: Store,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// Hands the client's messages on until it ends its half.
async fn feed(mut frames: Streaming<v1::McpFrame>, first: Vec<u8>, to: mpsc::Sender<Bytes>) {
    if !first.is_empty() && to.send(first.into()).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            frame = frames.message() => match frame {
                Ok(Some(frame)) if frame.message.is_empty() => {}
                Ok(Some(frame)) => if to.send(frame.message.into()).await.is_err() { return },
                Ok(None) | Err(_) => return,
            },
            () = to.closed() => return,
        }
    }
}

struct Session {
    answers: mpsc::Receiver<Bytes>,
    running: Option<JoinHandle<Result<(), Status>>>,
}

#[tonic::async_trait]
impl v1::mcp_server::Mcp for McpService {
    type SessionStream = BoxStream<'static, Result<v1::McpFrame, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::McpFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = rules::caller(&request)?;
        let mut frames = request.into_inner();
        let first = tokio::time::timeout(FIRST, frames.message())
            .await
            .map_err(|_| invalid("no frame came within 10 s", "the first frame names the deployment"))??
            .ok_or_else(|| invalid("the session ended before it began", "the first frame names the deployment"))?;
        if first.deployment.is_empty() {
            return Err(invalid("no deployment was named", "the first frame names the deployment"));
        }
        // one that is only being made is unknown here, and the gateway says so in its own words
        if first.deployment.parse().is_ok_and(|name| self.store.by_name(&name).is_some()) {
            caller.finds(&self.store, &first.deployment)?;
        }
        let (to_gateway, from_client) = mpsc::channel(DEPTH);
        let (to_client, answers) = mpsc::channel(DEPTH);
        self.tasks.spawn(feed(frames, first.message, to_gateway));
        let (gateway, stop, deployment) = (self.gateway.clone(), self.stop.clone(), first.deployment);
        let config = first.config.into_iter().collect();
        let running = self.tasks.spawn(async move {
            tokio::select! {
                done = gateway.session(&deployment, &caller, &config, from_client, to_client) => done.map_err(|e| status::gateway(&e)),
                () = stop.cancelled() => Ok(()),
                status = caller.changes() => Err(status),
            }
        });
        let session = Session { answers, running: Some(running) };
        let out = futures::stream::unfold(session, |mut session| async {
            if let Some(message) = session.answers.recv().await {
                let frame = v1::McpFrame { message: message.into(), ..v1::McpFrame::default() };
                return Some((Ok(frame), session));
            }
            match session.running.take()?.await {
                Ok(Ok(())) => None,
                Ok(Err(status)) => Some((Err(status), session)),
                Err(_) => {
                    Some((Err(status::refuse("INTERNAL", "the session broke", "look at the agent's log", 1)), session))
                }
            }
        });
        Ok(Response::new(Box::pin(out)))
    }
}
