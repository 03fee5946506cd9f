//! A raw conversation under its deployment's policy: what HTTP requests go through one by one, message by message.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sigil_core::jsonrpc::{self, Head, Id, Kind};
use sigil_core::model::DeploymentId;
use tokio::sync::mpsc;

use super::Shared;
use super::caller::Caller;
use super::error::Refusal;
use super::limits::Permits;
use super::load::Flow;
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
        let mut held = Held::default();
        let mut waiting: Option<Bytes> = None;
        loop {
            tokio::select! {
                // what the server says is read meanwhile: it may have no room just because nobody does
                () = room(to_server.as_ref()), if waiting.is_some() => {
                    if let Some((to, message)) = to_server.as_ref().zip(waiting.take())
                        && to.try_send(message).is_err()
                    {
                        to_server = None;
                    }
                }
                frame = from_client.recv(), if to_server.is_some() && waiting.is_none() => {
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
                    waiting = Some(passed);
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

/// Waits for room for one more message, of which there is one sender only.
pub(crate) async fn room(to: Option<&mpsc::Sender<Bytes>>) {
    match to {
        Some(to) => drop(to.reserve().await),
        None => std::future::pending().await,
    }
}

/// What is kept of requests that have no answer yet.
#[derive(Debug, Default)]
struct Held {
    permits: HashMap<Id, Permits>,
    /// When they came, while somebody looks.
    asked: HashMap<Id, Instant>,
}

impl Held {
    /// How long ago that was asked which a server's message belongs to: an answer's request, or the only one there is.
    fn since(&mut self, message: &Head<'_>) -> Option<Duration> {
        let asked = match (&message.id, message.kind) {
            (Some(id), Kind::Response) => self.asked.remove(id),
            _ if self.asked.len() == 1 => self.asked.values().next().copied(),
            _ => None,
        };
        asked.map(|at| at.elapsed())
    }
}

impl Shared {
    fn current(&self, id: DeploymentId) -> Option<Arc<Entry>> {
        self.table.borrow().by_id.get(&id).cloned()
    }

    /// The same as this caller calls it.
    fn currently(&self, id: DeploymentId, caller: &Caller) -> Option<Result<Arc<Entry>, Refusal>> {
        self.current(id).map(|entry| self.personal(entry, caller))
    }

    /// What of a client's message goes on (`None`: all of it), or the answer that it gets instead.
    fn judge(
        &self,
        id: DeploymentId,
        caller: &Caller,
        frame: &Bytes,
        held: &mut Held,
    ) -> Result<Option<Bytes>, Option<Bytes>> {
        // what is no message is answered further in
        let (Some(entry), Ok(head)) = (self.currently(id, caller), jsonrpc::parse_one(frame)) else { return Ok(None) };
        let entry = entry.map_err(|refusal| {
            let request = head.id.as_ref().filter(|_| head.kind == Kind::Request);
            request.map(|id| refusal.to_json(Some(id)))
        })?;
        Flow::new(&entry.recorder, caller).received(frame.len());
        let mut permits = Permits::new();
        let request = head.id.as_ref().filter(|_| head.kind == Kind::Request);
        let tapping = Tapping::begin(&entry, &caller.name, "link");
        if let Some(tapping) = &tapping {
            if let Some(request) = request.filter(|_| held.asked.len() < HELD) {
                held.asked.insert(request.clone(), Instant::now());
            }
            tapping.tell(true, head.text);
        } else if !held.asked.is_empty() {
            held.asked.clear();
        }
        match self.allow(&entry, caller, &head, &mut permits) {
            Ok(changed) => {
                if let Some(request) = request.filter(|_| !permits.is_empty()) {
                    if held.permits.len() >= HELD {
                        let refusal = Refusal::overloaded("too many unanswered requests", "wait for answers");
                        return Err(Some(refusal.to_json(Some(request))));
                    }
                    held.permits.insert(request.clone(), permits);
                }
                Ok(changed.map(Bytes::from))
            }
            Err(refusal) => {
                self.counters.refused(&refusal);
                if let Some(load) = &caller.load {
                    load.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                let answer = request.map(|id| refusal.to_json(Some(id)));
                if let (Some(tapping), Some(request), Some(answer)) = (&tapping, request, &answer) {
                    let took = held.asked.remove(request).map(|at| at.elapsed());
                    tapping.tell_after(&String::from_utf8_lossy(answer), took.unwrap_or_default());
                }
                Err(answer)
            }
        }
    }

    /// A server's message in the caller's view; `None`: as it is.
    fn shown(&self, id: DeploymentId, caller: &Caller, message: &Bytes, held: &mut Held) -> Option<Bytes> {
        if !held.permits.is_empty()
            && let Ok(head) = jsonrpc::parse_one(message)
            && head.kind == Kind::Response
            && let Some(id) = &head.id
        {
            held.permits.remove(id);
        }
        // what cannot be searched for the caller's own secrets was refused on its way in
        let entry = self.currently(id, caller)?.ok()?;
        Flow::new(&entry.recorder, caller).sent(message.len());
        let text = std::str::from_utf8(message).ok()?;
        if let Some(tapping) = Tapping::begin(&entry, &caller.name, "link") {
            let head = jsonrpc::parse_one(message).ok();
            let took = head.and_then(|head| held.since(&head)).unwrap_or_default();
            tapping.tell_after(text, took);
        }
        let starred = entry.masks.as_ref().and_then(|masks| masks.starred(message));
        let text = starred.as_deref().map_or(Some(text), |starred| std::str::from_utf8(starred).ok())?;
        shape(&entry, &caller.scope, text).map(Bytes::from).or(starred.clone())
    }
}
