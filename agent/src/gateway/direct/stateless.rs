//! Stateless requests of a raw conversation: each goes the way of the same request over HTTP, to the process that all share
//! or into the words of a server that knows only the handshake, and what comes for it goes back as messages.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use http_body_util::{BodyExt, Limited};
use hyper::Response;
use sigil_core::jsonrpc::{self, Head, Id, Kind, Params};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Party;
use crate::gateway::Shared;
use crate::gateway::body::Out;
use crate::gateway::error::Refusal;
use crate::gateway::modern::{self, Speaker};
use crate::gateway::serve::Asked;
use crate::gateway::trace::{Trace, Upstream};
use crate::gateway::translate;
use crate::upstream::MAX_LINE;
use crate::upstream::http::is_event_stream;
use crate::upstream::sse::Parser;

/// Those that are under way.
#[derive(Default)]
pub(super) struct Stateless {
    under_way: FuturesUnordered<BoxFuture<'static, Id>>,
    stops: HashMap<Id, CancellationToken>,
}

/// Whether a message opens a conversation without a handshake.
pub(super) fn is_stateless(head: &Head<'_>) -> bool {
    // only parameters that name the key can hold it, and looking for a text is cheaper than reading all of them
    head.kind == Kind::Request
        && head.params.is_some_and(|p| p.get().contains("io.modelcontextprotocol/protocolVersion"))
        && Params::read(head.params).modern_version().is_some()
}

impl Stateless {
    pub(super) fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Whether nothing ever came here, or all of it is answered.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Waits until one is answered.
    pub(super) async fn next(&mut self) {
        if let Some(id) = self.under_way.next().await {
            self.stops.remove(&id);
        }
    }

    /// The client wants no answer any more: in this era that closes the request's stream.
    pub(super) fn cancel(&mut self, head: &Head<'_>) -> bool {
        let id = Params::read(head.params).request_id.and_then(Id::read);
        let stop = id.and_then(|id| self.stops.remove(&id));
        stop.iter().for_each(CancellationToken::cancel);
        stop.is_some()
    }

    /// Sends a request on.
    pub(super) fn begin(&mut self, party: &Party, id: Id, frame: Bytes, to_client: mpsc::Sender<Bytes>) {
        let stop = CancellationToken::new();
        self.stops.insert(id.clone(), stop.clone());
        let party = party.clone();
        self.under_way.push(Box::pin(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = serve(&party, &frame, &to_client) => {}
            }
            id
        }));
    }
}

async fn serve(party: &Party, frame: &Bytes, to_client: &mpsc::Sender<Bytes>) {
    let Ok(head) = jsonrpc::parse_one(frame) else { return };
    let mut trace = party.trace(&head);
    let answered = async {
        let upstream = trace.as_deref().and_then(Trace::upstream);
        let response = ask(&party.shared, party, &head, upstream).await?;
        pass_on(&party.entry.name, response, to_client).await
    };
    if let Err(refusal) = answered.await {
        trace.iter_mut().for_each(|trace| trace.refused(&refusal));
        // a client that has left needs no answer
        to_client.send(refusal.to_json(head.id.as_ref())).await.ok();
    }
}

async fn ask(
    shared: &Arc<Shared>,
    party: &Party,
    head: &Head<'_>,
    trace: Option<&Arc<Upstream>>,
) -> Result<Response<Out>, Refusal> {
    let name = &party.entry.name;
    // what serves may be another replica by now
    let _held = Box::pin(shared.awake(name, &party.entry.recorder.nap)).await?;
    let entry = shared.ready_as(name, party.settings.as_ref()).await?;
    let asked = Asked { trace, ..party.asked(&entry) };
    match modern::speaker(shared, &entry, name, Some(&party.client()), None).await? {
        Some(Speaker::Older(live)) => translate::post(shared, &asked, head, &entry, &live).await,
        Some(Speaker::Modern(live, process)) => modern::pass(&asked, head, &entry, &live, &process).await,
        None => Err(modern::fall_back()),
    }
}

/// An answer's messages.
async fn pass_on(name: &str, response: Response<Out>, to_client: &mpsc::Sender<Bytes>) -> Result<(), Refusal> {
    let broken = |why: String| Refusal::failed(name, format!("the answer broke off: {why}"));
    let events = is_event_stream(response.headers());
    let mut body = response.into_body();
    if !events {
        let whole = Limited::new(body, MAX_LINE).collect().await.map_err(|e| broken(e.to_string()))?;
        to_client.send(whole.to_bytes()).await.ok();
        return Ok(());
    }
    let mut parser = Parser::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| broken(e.to_string()))?;
        let mut events = Vec::new();
        if let Some(data) = frame.data_ref() {
            parser.push(data, &mut events).map_err(|_| broken("a message is too long".into()))?;
        }
        for event in events.into_iter().filter(|event| !event.data.is_empty()) {
            to_client.send(Bytes::from(event.data)).await.ok();
        }
    }
    Ok(())
}
