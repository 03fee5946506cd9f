//! A raw conversation under its deployment's policy: what HTTP requests go through one by one, message by message.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use sigil_core::jsonrpc::{self, Id, Kind};
use sigil_core::model::DeploymentId;
use tokio::sync::mpsc;

use super::Shared;
use super::caller::Caller;
use super::error::Refusal;
use super::limits::Permits;
use super::table::Entry;
use super::tap::Tapping;
use super::wrap::shape;

/// Messages under way in each direction.
const DEPTH: usize = 16;
/// Requests whose places are kept in mind.
const HELD: usize = 1024;

/// What the server's side of a guarded conversation reads and writes.
pub(crate) type Inside = (mpsc::Receiver<Bytes>, mpsc::Sender<Bytes>);

/// Puts the policy between a client and a conversation. The future ends when one side has ended.
pub(crate) fn between(
    shared: Arc<Shared>,
    id: DeploymentId,
    caller: Arc<Caller>,
    mut from_client: mpsc::Receiver<Bytes>,
    to_client: mpsc::Sender<Bytes>,
) -> (Inside, impl Future<Output = ()>) {
    let (to_server, inside_in) = mpsc::channel(DEPTH);
    let (inside_out, mut from_server) = mpsc::channel::<Bytes>(DEPTH);
    let pump = async move {
        let mut to_server = Some(to_server);
        let mut held: HashMap<Id, Permits> = HashMap::new();
        loop {
            tokio::select! {
                frame = from_client.recv(), if to_server.is_some() => {
                    let Some(frame) = frame else { to_server = None; continue };
                    let passed = match shared.judge(id, &caller, &frame, &mut held) {
                        Ok(changed) => changed.unwrap_or(frame),
                        Err(Some(answer)) => {
                            if to_client.send(answer).await.is_err() { return }
                            continue;
                        }
                        // nobody waits for an answer
                        Err(None) => continue,
                    };
                    if let Some(to) = &to_server && to.send(passed).await.is_err() {
                        to_server = None;
                    }
                }
                message = from_server.recv() => {
                    let Some(message) = message else { return };
                    let shown = shared.shown(id, &caller, &message, &mut held);
                    if to_client.send(shown.unwrap_or(message)).await.is_err() { return }
                }
            }
        }
    };
    ((inside_in, inside_out), pump)
}

impl Shared {
    fn current(&self, id: DeploymentId) -> Option<Arc<Entry>> {
        self.table.borrow().by_id.get(&id).cloned()
    }

    /// What of a client's message goes on (`None`: all of it), or the answer that it gets instead.
    fn judge(
        &self,
        id: DeploymentId,
        caller: &Caller,
        frame: &Bytes,
        held: &mut HashMap<Id, Permits>,
    ) -> Result<Option<Bytes>, Option<Bytes>> {
        // what is no message is answered further in
        let (Some(entry), Ok(head)) = (self.current(id), jsonrpc::parse_one(frame)) else { return Ok(None) };
        if let Some(tapping) = Tapping::begin(&entry, &caller.name, "link") {
            tapping.tell(true, head.text);
        }
        let mut permits = Permits::new();
        let request = head.id.as_ref().filter(|_| head.kind == Kind::Request);
        match self.allow(&entry, caller, &head, &mut permits) {
            Ok(changed) => {
                if let Some(request) = request.filter(|_| !permits.is_empty()) {
                    if held.len() >= HELD {
                        let refusal = Refusal::overloaded("too many unanswered requests", "wait for answers");
                        return Err(Some(refusal.to_json(Some(request))));
                    }
                    held.insert(request.clone(), permits);
                }
                Ok(changed.map(Bytes::from))
            }
            Err(refusal) => {
                self.counters.refused(&refusal);
                Err(request.map(|id| refusal.to_json(Some(id))))
            }
        }
    }

    /// A server's message in the caller's view; `None`: as it is.
    fn shown(
        &self,
        id: DeploymentId,
        caller: &Caller,
        message: &Bytes,
        held: &mut HashMap<Id, Permits>,
    ) -> Option<Bytes> {
        if !held.is_empty()
            && let Ok(head) = jsonrpc::parse_one(message)
            && head.kind == Kind::Response
            && let Some(id) = &head.id
        {
            held.remove(id);
        }
        let entry = self.current(id)?;
        let text = std::str::from_utf8(message).ok()?;
        if let Some(tapping) = Tapping::begin(&entry, &caller.name, "link") {
            tapping.tell(false, text);
        }
        let starred = entry.masks.as_ref().and_then(|masks| masks.starred(message));
        let text = starred.as_deref().map_or(Some(text), |starred| std::str::from_utf8(starred).ok())?;
        shape(&entry, &caller.scope, text).map(Bytes::from).or(starred.clone())
    }
}
