//! The server's side of a raw conversation: a process, a connection, a session over HTTP, or the gateway's own greeting
//! before a server of the stateless era.

use std::sync::Arc;

use bytes::Bytes;
use sigil_core::jsonrpc::Head;
use sigil_core::model::Transport;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::gateway::Shared;
use crate::gateway::bridged::{self, Opened};
use crate::gateway::client::Client;
use crate::gateway::error::Refusal;
use crate::gateway::greeter::{self, Guest};
use crate::gateway::load::Place;
use crate::gateway::modern;
use crate::gateway::table::{Entry, Live};
use crate::upstream::quota::Starting;
use crate::upstream::{Conversation, Output};

pub(super) struct Way {
    pub(super) live: Live,
    pub(super) input: mpsc::Sender<Bytes>,
    pub(super) output: Output,
    /// Nothing that is sent now is answered.
    pub(super) over: CancellationToken,
    /// Until the server has said something.
    pub(super) starting: Option<Starting>,
    /// The gateway shakes hands itself.
    pub(super) greets: bool,
    held: Option<Held>,
}

/// A process or a connection, and its place at the replica.
struct Held {
    known: Known,
    place: Place,
}

/// Keeps the sweeper from a direct conversation's process.
struct Known(Arc<Shared>, String);

impl Known {
    fn new(shared: &Arc<Shared>, key: String) -> Self {
        shared.direct().insert(key.clone());
        Self(shared.clone(), key)
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.0.direct().remove(&self.1);
    }
}

impl Way {
    /// Begins a conversation with a server as it is.
    pub(super) async fn open(shared: &Arc<Shared>, entry: &Entry, client: &Client) -> Result<Self, Refusal> {
        let first = shared.order(entry, true).first().copied();
        let opened = match first.filter(|live| live.endpoint.spec.transport == Transport::Http) {
            Some(live) => modern::over_http(live, &entry.name, client)?,
            None => bridged::open(shared, entry, &entry.name, "d-").await?,
        };
        let Opened { live, key, conversation, place, starting } = opened;
        let held = Held { known: Known::new(shared, key), place };
        Ok(Self::new(live, conversation, Some(starting), Some(held)))
    }

    /// Shakes hands in the place of a server that does not. `hello`: the client's `initialize`.
    pub(super) fn greet(
        shared: &Arc<Shared>,
        entry: &Entry,
        client: &Client,
        hello: &Head<'_>,
    ) -> Result<Self, Refusal> {
        let live = shared.order(entry, true).first().copied().cloned();
        let live = live.ok_or_else(|| Refusal::unreached(&entry.name, None))?;
        let server = (entry.name.as_str(), entry.id, live.endpoint.instance);
        let conversation = greeter::conversation(shared, server, Guest::of(hello), client.clone(), false);
        Ok(Self { greets: true, ..Self::new(live, conversation, None, None) })
    }

    fn new(live: Live, conversation: Conversation, starting: Option<Starting>, held: Option<Held>) -> Self {
        let Conversation { input, output, .. } = conversation;
        let over = output.over();
        Self { live, input, output, over, starting, greets: false, held }
    }

    /// Ends it, and its process.
    pub(super) fn end(self, shared: &Arc<Shared>) {
        let Self { live, held, .. } = self;
        let Some(Held { known, place }) = held else { return };
        if live.endpoint.spec.transport == Transport::Stdio {
            let shared = shared.clone();
            shared.tasks.clone().spawn(async move { shared.finish(&live.endpoint, &known.1, place).await });
        }
    }
}
