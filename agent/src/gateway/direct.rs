//! Raw JSON-RPC conversations: `sigil call` and `sigil run` over gRPC, and what bundles have with their members. The
//! client's frames in, the server's out, in whichever era and over whichever transport each of them speaks.

mod stateless;
mod way;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use hyper::header::HeaderMap;
use sigil_core::jsonrpc::{self, Head, Id, Kind, Params};
use sigil_core::model::Transport;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::caller::Caller;
use super::client::Client;
use super::error::{GatewayError, Refusal};
use super::load::Call;
use super::modern::LISTEN;
use super::proxy::inject_body;
use super::serve::Asked;
use super::settings::Settings;
use super::table::Entry;
use super::trace::Trace;
use super::{Shared, cross, guard, modern};
use crate::upstream::streamable::LOST;
use crate::upstream::{Output, Said, one_line};
use stateless::Stateless;
use way::Way;

/// Requests at once in one conversation.
const PENDING_MAX: usize = 1024;

pub(crate) async fn run(
    shared: &Arc<Shared>,
    name: &str,
    caller: &Arc<Caller>,
    config: &BTreeMap<String, String>,
    from_client: mpsc::Receiver<Bytes>,
    to_client: mpsc::Sender<Bytes>,
) -> Result<(), GatewayError> {
    let entry = shared.ready(name).await.map_err(|refusal| match refusal.code {
        "GATEWAY_MCP_NOT_FOUND" => GatewayError::NotFound(name.to_owned()),
        _ => refusal.into(),
    })?;
    if !caller.scope.deployment(name) {
        let hint = "`sigil key ls` shows what each key is good for";
        return Err(Refusal::forbidden(format!("the key '{}' is not for '{name}'", caller.name), hint).into());
    }
    tracing::debug!(deployment = name, caller = caller.name, "a direct conversation begins");
    let (settings, incomplete) = shared.given(&entry, config)?;
    let entry = shared.personal(shared.ready_as(name, settings.as_ref()).await?, caller)?;
    let ((from_client, to_client), guard) =
        guard::between(shared.clone(), entry.id, caller.clone(), from_client, to_client);
    let mut headers = HeaderMap::new();
    settings.iter().for_each(|settings| settings.put(&mut headers));
    let party = Party { shared: shared.clone(), entry, caller: caller.clone(), settings, headers };
    let direct = Direct {
        party,
        incomplete,
        to_client,
        way: None,
        hello: None,
        shook: false,
        plain: false,
        calls: HashMap::new(),
        late: VecDeque::new(),
        stateless: Stateless::default(),
        out: VecDeque::new(),
    };
    // its process or session ends with the container: that may be frozen meanwhile, and not stopped
    let _attached = direct.party.entry.recorder.nap.attach();
    // the guard ends when the conversation has: what the server said last still goes out
    let (ended, ()) = tokio::join!(direct.run(from_client), guard);
    ended
}

/// Who converses with what.
#[derive(Clone)]
struct Party {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    caller: Arc<Caller>,
    settings: Option<Arc<Settings>>,
    /// What a server over HTTP gets of the configuration as headers.
    headers: HeaderMap,
}

impl Party {
    /// The spans of a request.
    fn trace(&self, head: &Head<'_>) -> Option<Box<Trace>> {
        let config = self.shared.config.borrow().clone();
        let (name, caller) = (&self.entry.name, &self.caller.name);
        Trace::linked(&self.shared.telemetry, &config.telemetry, name, caller, head).map(Box::new)
    }

    /// As a request over HTTP, without the headers that repeat its body.
    fn asked<'a>(&'a self, entry: &'a Arc<Entry>) -> Asked<'a> {
        Asked {
            name: &entry.name,
            entry,
            caller: &self.caller,
            method: &Method::POST,
            headers: &self.headers,
            query: self.settings.as_deref().and_then(Settings::query),
            ticket: None,
            trace: None,
            settings: self.settings.clone(),
        }
    }

    fn client(&self) -> Client {
        Client::of(&self.asked(&self.entry), &self.entry)
    }
}

/// A request without an answer.
struct Open {
    call: Call,
    /// A handshake, which must not be cancelled.
    hello: bool,
    token: Option<Id>,
    /// Until then the server must have answered, or shown that it is at it.
    until: Option<Instant>,
    limit: Duration,
}

struct Direct {
    party: Party,
    /// Why the configuration is enough for lists, and not for calls.
    incomplete: Option<Refusal>,
    to_client: mpsc::Sender<Bytes>,
    /// Opened for the first message.
    way: Option<Way>,
    /// The client's handshake, while the server may still say that it knows none.
    hello: Option<(Id, Bytes)>,
    /// The client has shaken hands, or tries to.
    shook: bool,
    /// The client does without a handshake.
    plain: bool,
    calls: HashMap<Id, Open>,
    /// Requests whose time was up.
    late: VecDeque<Id>,
    stateless: Stateless,
    /// Messages that the server has no room for yet.
    out: VecDeque<Bytes>,
}

/// Reads a frame; what is no message is answered here.
fn read(frame: &Bytes) -> Result<Head<'_>, Bytes> {
    jsonrpc::parse_one(frame).map_err(|e| Refusal::malformed(&e).to_json(None))
}

async fn said(way: Option<(&mut Output, &crate::upstream::Endpoint)>) -> Result<Said, String> {
    match way {
        Some((output, endpoint)) => output.said(endpoint).await,
        None => std::future::pending().await,
    }
}

async fn at(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// To the client; one that has left is seen where its messages end.
async fn tell(to_client: &mpsc::Sender<Bytes>, message: Bytes) {
    to_client.send(message).await.ok();
}

impl Direct {
    async fn run(mut self, mut from_client: mpsc::Receiver<Bytes>) -> Result<(), GatewayError> {
        let shared = self.party.shared.clone();
        let ended = loop {
            let until = self.calls.values().filter_map(|open| open.until).min();
            let (input, output) = match &mut self.way {
                Some(way) => (Some(&way.input), Some((&mut way.output, &*way.live.endpoint))),
                None => (None, None),
            };
            tokio::select! {
                () = shared.stop.cancelled() => break None,
                frame = from_client.recv(), if self.out.is_empty() => match frame {
                    Some(frame) => self.heard(frame).await?,
                    None => break None,
                },
                () = guard::room(input), if !self.out.is_empty() => self.send(),
                said = said(output) => match said {
                    Ok(said) => if !self.said(said).await? { break None },
                    Err(why) => break Some(why),
                },
                () = self.stateless.next(), if !self.stateless.is_empty() => {}
                () = at(until) => self.give_up().await,
            }
        };
        if let Some(why) = ended {
            let what = format!("the server process of this session {why} during the call");
            let refusal = Refusal::failed(&self.party.entry.name, what);
            for (id, mut open) in std::mem::take(&mut self.calls) {
                open.call.fail();
                tell(&self.to_client, refusal.to_json(Some(&id))).await;
            }
        }
        if let Some(way) = self.way.take() {
            way.end(&shared);
        }
        Ok(())
    }

    /// Sends what waits and has room now.
    fn send(&mut self) {
        let Some(way) = &self.way else { return };
        while let Some(message) = self.out.pop_front() {
            match way.input.try_send(message) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(message)) => return self.out.push_front(message),
                // a process that ended is told by its output, with the reason
                Err(mpsc::error::TrySendError::Closed(_)) => self.out.clear(),
            }
        }
    }

    async fn heard(&mut self, frame: Bytes) -> Result<(), GatewayError> {
        let head = match read(&frame) {
            Ok(head) => head,
            Err(answer) => {
                tell(&self.to_client, answer).await;
                return Ok(());
            }
        };
        let request = head.id.clone().filter(|_| head.kind == Kind::Request);
        if let Some(refusal) = self.refuses(&head, request.is_some()) {
            // a notification has no answer
            tell(&self.to_client, refusal.to_json(head.id.as_ref())).await;
            return Ok(());
        }
        if !self.shook && stateless::is_stateless(&head) && cross::translates(&self.party.shared) {
            self.plain = true;
            if let Some(id) = request {
                self.stateless.begin(&self.party, id, frame.clone(), self.to_client.clone());
            }
            return Ok(());
        }
        if head.kind == Kind::Notification && head.method == "notifications/cancelled" && self.stateless.cancel(&head) {
            return Ok(());
        }
        let entry = self.party.entry.clone();
        let _held = match self.party.shared.awake(&entry.name, &entry.recorder.nap).await {
            Ok(held) => held,
            Err(refusal) => {
                if let Some(id) = request {
                    tell(&self.to_client, refusal.to_json(Some(&id))).await;
                }
                return Ok(());
            }
        };
        let hello = request.is_some() && head.method == "initialize";
        let way = match &self.way {
            Some(way) => way,
            // that era has no other notifications of clients
            None if request.is_none() && self.plain => return Ok(()),
            None => {
                let shared = &self.party.shared;
                let greets = hello && cross::translates(shared) && shared.remembered.no_handshake(&entry);
                let way = if greets {
                    Way::greet(shared, &entry, &self.party.client(), &head)?
                } else {
                    Way::open(shared, &entry, &self.party.client()).await?
                };
                self.way.insert(way)
            }
        };
        if let Some(id) = &request
            && way.over.is_cancelled()
        {
            let what = "the server process of this session has closed its stdout; the call was not sent";
            tell(&self.to_client, Refusal::failed(&entry.name, what).to_json(Some(id))).await;
            return Ok(());
        }
        let message = inject_body(&entry.injected, &head).map_or_else(|| frame.clone(), Bytes::from);
        if let Some(id) = request {
            let spec = &way.live.endpoint.spec;
            let ms = if hello { spec.request_timeout_ms.max(spec.start_timeout_ms) } else { spec.request_timeout_ms };
            let limit = Duration::from_millis(ms);
            let call =
                Call::begin(&way.live.stats, &entry.recorder, &self.party.caller).linked(self.party.trace(&head));
            let open = Open {
                call: if hello { call } else { call.of(&head) },
                hello,
                token: Params::read(head.params).own_progress_token(),
                // it lasts as long as the client listens
                until: (head.method != LISTEN).then(|| Instant::now() + limit),
                limit,
            };
            self.calls.insert(id.clone(), open);
            if hello {
                self.shook = true;
                self.hello = (!way.greets && cross::translates(&self.party.shared)).then(|| (id, message.clone()));
            }
        }
        self.out.push_back(one_line(message));
        Ok(())
    }

    /// Why a message does not go on.
    fn refuses(&self, head: &Head<'_>, request: bool) -> Option<Refusal> {
        if request && self.calls.len() + self.stateless.len() >= PENDING_MAX {
            return Some(Refusal::overloaded("too many unanswered requests", "wait for answers"));
        }
        self.incomplete.clone().filter(|_| head.method == "tools/call")
    }

    /// Passes on what the server says. False when the client has left.
    async fn said(&mut self, said: Said) -> Result<bool, GatewayError> {
        let Said { data, about } = said;
        let Some(way) = &mut self.way else { return Ok(true) };
        let endpoint = way.live.endpoint.clone();
        if way.starting.take().is_some() {
            self.party.shared.refill_soon(&endpoint);
        }
        let Ok(head) = jsonrpc::parse_one(&data) else {
            if let Output::Stdio(lines) = &mut way.output {
                lines.stray(&endpoint, data).await;
            }
            return Ok(true);
        };
        match (&head.id, head.kind) {
            (Some(id), Kind::Response) => {
                let hello = self.hello.take_if(|(hello, _)| hello == id);
                if let Some((_, hello)) = hello
                    && self.greets_instead(&head, hello).await?
                {
                    return Ok(true);
                }
                if let Some(mut open) = self.calls.remove(id) {
                    open.call.answered(&data);
                    if head.error.is_some() {
                        open.call.fail();
                    }
                } else if let Some(late) = self.late.iter().position(|late| late == id) {
                    // its client has been told that the time is up
                    self.late.remove(late);
                    return Ok(true);
                }
            }
            _ => self.alive(&head, about.as_ref()),
        }
        Ok(self.to_client.send(data).await.is_ok())
    }

    /// A server that refuses the handshake may serve stateless requests: then the gateway shakes hands in its place.
    async fn greets_instead(&mut self, answer: &Head<'_>, hello: Bytes) -> Result<bool, GatewayError> {
        let Some(error) = answer.error else { return Ok(false) };
        let Party { shared, entry, .. } = &self.party;
        let http = self.way.as_ref().is_some_and(|way| way.live.endpoint.spec.transport == Transport::Http);
        // no answer at all says nothing
        let asks = !(http && modern::code(error) == Some(LOST));
        let client = self.party.client();
        if !asks || !cross::no_handshake(shared, &entry.name, &client, entry).await.unwrap_or(false) {
            return Ok(false);
        }
        let head = jsonrpc::parse_one(&hello).map_err(|e| Refusal::malformed(&e))?;
        let way = Way::greet(shared, entry, &client, &head)?;
        if let Some(before) = self.way.replace(way) {
            before.end(shared);
        }
        // what was meant for the other goes after it
        self.out.push_front(one_line(hello));
        Ok(true)
    }

    /// The server is at it: whoever waits for that need not give up.
    fn alive(&mut self, head: &Head<'_>, about: Option<&Id>) {
        let progress = head.method == "notifications/progress";
        let token = || Params::read(head.params).progress_token.and_then(Id::read);
        let token = if progress && head.kind == Kind::Notification { token() } else { None };
        let only = self.calls.len() == 1;
        for (id, open) in &mut self.calls {
            if only || about == Some(id) || (token.is_some() && open.token == token) {
                open.until = None;
            }
        }
    }

    /// Tells the client, and the server, of requests whose time is up.
    async fn give_up(&mut self) {
        let now = Instant::now();
        let late: Vec<Id> =
            self.calls.iter().filter(|(_, o)| o.until.is_some_and(|u| u <= now)).map(|(id, _)| id.clone()).collect();
        for id in late {
            let Some(mut open) = self.calls.remove(&id) else { continue };
            open.call.fail();
            let ms = u64::try_from(open.limit.as_millis()).unwrap_or(u64::MAX);
            tell(&self.to_client, Refusal::timeout(&self.party.entry.name, ms).to_json(Some(&id))).await;
            let cancel = format!(
                "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{{\"requestId\":{},\"reason\":\"timeout\"}}}}",
                id.to_json()
            );
            if !open.hello {
                self.out.push_back(cancel.into());
            }
            self.late.push_back(id);
            if self.late.len() > PENDING_MAX {
                self.late.pop_front();
            }
        }
    }
}
