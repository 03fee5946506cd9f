//! Conversations with a replica that stateless requests use (2026-07-28, basic/transports/stdio), be it a process, a
//! connection or a session over HTTP: ids, progress tokens and subscriptions of different clients are told apart by
//! giving each request a number of ours. A server that was greeted with `initialize` speaks the older era, and what it
//! says is put into the words of this one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use sigil_core::jsonrpc::{self, Head, Id, Kind, Meta, Params};
use sigil_core::mirror::{self, Mirrored, Page};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::body::Event;
use super::error::Refusal;
use super::load::Place;
use super::modern::LISTEN;
use super::remembered::Remembered;
use super::words::{Filter, INVALID_PARAMS, Shape, addresses, not_found, tagged};
use crate::upstream::{Endpoint, MODERN_META, Output, Said, one_line};

/// A server that did not answer which era it speaks is asked again after this.
const SILENCE: Duration = Duration::from_secs(60);
/// Longer than a replica lives; what `Instant` can hold everywhere.
const FOR_GOOD: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Messages of one request that its client has not read; a client that lets more wait loses its request.
const QUEUED: usize = 256;
/// Questions of a server that nobody has taken up.
const QUESTIONS: usize = 8;
/// Unanswered requests of one process.
const PENDING_MAX: usize = 4096;
/// Largest number: JSON's integers are exact up to here.
const NUMBER_MAX: u64 = (1 << 53) - 1;
/// Where [`Common`] keeps the process of a server that is stateless itself: it knows no clients, so all share it.
pub(crate) const EVERYBODY: &str = "";
/// Conversations of one replica that are kept for callers to come; beyond that the one unused for longest ends.
const KEPT_MAX: usize = 256;
/// Pages of tools that are read for their annotations.
const PAGES: usize = 200;
/// A tool that is not known has the list read again, at most this often.
const REREAD: Duration = Duration::from_secs(5);

/// One replica's processes for stateless requests.
#[derive(Debug, Default)]
pub(crate) struct Common {
    /// Those that requests share, by who may share them.
    current: Mutex<HashMap<String, Arc<Process>>>,
    /// Greeted with a client's capabilities and free, by who may use them and those.
    alone: Mutex<Vec<(String, Arc<Process>)>>,
    /// All that were started.
    started: Mutex<Vec<Weak<Process>>>,
    /// Held by whoever starts it.
    pub(crate) starting: tokio::sync::Mutex<()>,
    /// The server speaks revisions with a handshake only: until then.
    legacy: Mutex<Option<Instant>>,
    /// Set with `legacy`, for those who ask often.
    ever_legacy: AtomicBool,
}

impl Common {
    fn current(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process that `whose` requests share, when it runs.
    pub(crate) fn running(&self, whose: &str) -> Option<Arc<Process>> {
        self.current().get(whose).filter(|p| p.answers()).cloned()
    }

    pub(crate) fn set(&self, whose: &str, process: &Arc<Process>) {
        let mut current = self.current();
        current.insert(whose.to_owned(), process.clone());
        if current.len() > KEPT_MAX {
            let others = current.iter().filter(|(other, _)| *other != whose);
            let idle = others.filter_map(|(whose, p)| Some((p.idle()?, whose.clone())));
            let oldest = idle.max_by_key(|(idle, _)| *idle).and_then(|(_, whose)| current.remove(&whose));
            oldest.iter().for_each(|process| process.stop.cancel());
        }
    }

    fn started(&self) -> MutexGuard<'_, Vec<Weak<Process>>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more was started.
    pub(crate) fn add(&self, process: &Arc<Process>) {
        let mut started = self.started();
        started.retain(|p| p.strong_count() > 0);
        started.push(Arc::downgrade(process));
    }

    /// Whether there is any.
    pub(crate) fn any(&self) -> bool {
        self.started().iter().filter_map(Weak::upgrade).any(|p| p.ended().is_none())
    }

    /// Whether the process of this key is one of these, in use or free.
    pub(crate) fn holds(&self, key: &str) -> bool {
        self.started().iter().filter_map(Weak::upgrade).any(|p| p.key == key && p.ended().is_none())
    }

    pub(crate) fn is_legacy(&self) -> bool {
        self.ever_legacy.load(Relaxed)
            && self.legacy.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    /// Remembers that it does not speak this era. `sure`: it said so; else it only kept silent, and is asked again.
    pub(crate) fn set_legacy(&self, sure: bool) {
        let until = Instant::now() + if sure { FOR_GOOD } else { SILENCE };
        *self.legacy.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        self.ever_legacy.store(true, Relaxed);
    }

    fn alone(&self) -> MutexGuard<'_, Vec<(String, Arc<Process>)>> {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free process of `whose`, the one used last first: a server that keeps something in memory then finds it again.
    pub(crate) fn take(&self, whose: &str) -> Option<Arc<Process>> {
        let mut alone = self.alone();
        alone.retain(|(_, process)| process.answers());
        let index = alone.iter().rposition(|(held, _)| held == whose)?;
        Some(alone.remove(index).1)
    }

    /// A process is free again.
    pub(crate) fn give_back(&self, whose: String, process: Arc<Process>) {
        let mut alone = self.alone();
        alone.push((whose, process));
        if alone.len() > KEPT_MAX {
            alone.remove(0).1.stop.cancel();
        }
    }

    /// Takes one out that is free, for `idle` at least.
    pub(crate) fn retire_alone(&self, idle: Duration) -> Option<Arc<Process>> {
        let mut alone = self.alone();
        let index = alone.iter().position(|(_, p)| p.ended().is_some() || p.idle().is_some_and(|d| d >= idle))?;
        Some(alone.remove(index).1)
    }

    /// Takes a shared process out that nobody used for `idle`.
    pub(crate) fn retire(&self, idle: Duration) -> Option<Arc<Process>> {
        let mut current = self.current();
        let unused = |p: &Arc<Process>| p.ended().is_some() || p.idle().is_some_and(|d| d > idle);
        let whose = current.iter().find(|(_, p)| unused(p)).map(|(whose, _)| whose.clone())?;
        current.remove(&whose)
    }
}

/// How a request is to be treated.
#[derive(Debug, Default)]
pub(crate) struct Manner {
    pub(crate) shape: Shape,
    /// The process is this request's alone: what it asks is asked about it.
    pub(crate) alone: bool,
    /// A subscription to an older server: nothing is sent, its changes are passed on.
    pub(crate) listens: Option<Filter>,
    /// Nobody's call: it keeps no process from being idle.
    pub(crate) probe: bool,
}

#[derive(Debug)]
struct Pending {
    /// The client's id and progress token, as they were written.
    id: String,
    token: Option<String>,
    /// The client asked for log messages.
    logs: bool,
    manner: Manner,
    events: mpsc::Sender<Event>,
    questions: mpsc::Sender<Bytes>,
}

impl Pending {
    /// Passes the answer on.
    fn finish(self, endpoint: &Endpoint, text: String) {
        // its queue may be full of notifications; the answer waits for its turn
        let (events, last) = (self.events, event(text, true));
        if let Err(mpsc::error::TrySendError::Full(last)) = events.try_send(last) {
            endpoint.tasks.spawn(async move { events.send(last).await });
        }
    }
}

#[derive(Debug, Default)]
struct State {
    number: u64,
    pending: HashMap<u64, Pending>,
    ended: Option<String>,
    /// The server says nothing more; why is known a moment later.
    ending: bool,
    /// When the last request ended.
    used: Option<Instant>,
}

#[derive(Debug, Default)]
struct Tools {
    mirrored: HashMap<String, Arc<Vec<Mirrored>>>,
    read: Option<Instant>,
}

/// A running one.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) endpoint: Arc<Endpoint>,
    _place: Place,
    input: mpsc::Sender<Bytes>,
    state: Mutex<State>,
    tools: tokio::sync::Mutex<Tools>,
    /// An older server's answer to `initialize`.
    pub(crate) greeting: OnceLock<Box<RawValue>>,
    born: Instant,
    dropped: Arc<AtomicU64>,
    remembered: Arc<Remembered>,
    pub(crate) stop: CancellationToken,
}

/// A request on its way: what comes for it, and its end when this is dropped early.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) events: mpsc::Receiver<Event>,
    /// What an older server asks its client meanwhile.
    pub(crate) questions: mpsc::Receiver<Bytes>,
    pub(crate) held: Held,
}

/// Cancels a request that was not answered when its client leaves: in this era a closed stream means that.
#[derive(Debug)]
pub(crate) struct Held(Arc<Process>, u64);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.abandon(self.1, "the client left");
    }
}

impl Process {
    pub(crate) fn new(
        key: String,
        name: String,
        endpoint: Arc<Endpoint>,
        place: Place,
        (input, stop): (mpsc::Sender<Bytes>, CancellationToken),
        (dropped, remembered): (Arc<AtomicU64>, Arc<Remembered>),
    ) -> Self {
        let (state, tools) = (Mutex::default(), tokio::sync::Mutex::default());
        let greeting = OnceLock::new();
        let (_place, born) = (place, Instant::now());
        Self { key, name, endpoint, _place, input, state, tools, greeting, born, dropped, remembered, stop }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it no longer runs.
    pub(crate) fn ended(&self) -> Option<String> {
        self.state().ended.clone()
    }

    /// Whether a request that is sent now can be answered.
    pub(crate) fn answers(&self) -> bool {
        let state = self.state();
        !state.ending && state.ended.is_none()
    }

    /// How long nobody used it; `None` while a request is open.
    pub(crate) fn idle(&self) -> Option<Duration> {
        let state = self.state();
        let open = state.pending.values().any(|pending| !pending.manner.probe);
        (!open).then(|| state.used.unwrap_or(self.born).elapsed())
    }

    fn lost(&self, why: &str) -> Refusal {
        Refusal::failed(&self.name, format!("the server process {why} during the call; the call was not sent again"))
    }

    /// Sends a client's request on under a number of its own.
    pub(crate) async fn request(self: &Arc<Self>, head: &Head<'_>, manner: Manner) -> Result<Waiting, Refusal> {
        let meta = Meta::read(Params::read(head.params).meta);
        let (events, waiting) = mpsc::channel(QUEUED);
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let listens = manner.listens.is_some();
        let id = head.id_text.unwrap_or("null");
        let token = meta.progress_token.map(RawValue::get);
        let number = {
            let mut state = self.state();
            if let Some(why) = &state.ended {
                return Err(self.lost(why));
            }
            if state.pending.len() >= PENDING_MAX {
                let message = format!("'{}' has {PENDING_MAX} unanswered requests", self.name);
                return Err(Refusal::overloaded(message, "wait for answers, or add a replica (`sigil scale`)"));
            }
            let number = self.next(&mut state);
            let (id, token) = (id.to_owned(), token.map(str::to_owned));
            // a subscription is open for long and never logs
            let logs = meta.log_level.is_some() && head.method != LISTEN;
            state.pending.insert(number, Pending { id, token, logs, manner, events, questions });
            number
        };
        let held = Held(self.clone(), number);
        let waiting = Waiting { events: waiting, questions: asked, held };
        if listens {
            return Ok(waiting);
        }
        let ours = number.to_string();
        let mut parts: Vec<(&str, &str)> = vec![(id, &ours)];
        parts.extend(token.map(|token| (token, ours.as_str())));
        parts.sort_by_key(|(part, _)| part.as_ptr() as usize);
        let message = jsonrpc::splice(head.text, &parts)
            .ok_or_else(|| Refusal::bad_request("the request has no id that could be replaced", ""))?;
        if self.input.send(one_line(Bytes::from(message))).await.is_err() {
            let why = self.ended().unwrap_or_else(|| "no longer reads".into());
            return Err(self.lost(&why));
        }
        Ok(waiting)
    }

    /// A request goes on under the id of its repetition.
    pub(crate) fn repeated(&self, held: &Held, head: &Head<'_>) {
        let meta = Meta::read(Params::read(head.params).meta);
        if let Some(pending) = self.state().pending.get_mut(&held.1) {
            pending.id = head.id_text.unwrap_or("null").to_owned();
            pending.token = meta.progress_token.map(|token| token.get().to_owned());
        }
    }

    /// Resources that subscriptions want; several may want the same.
    pub(crate) fn wanted(&self, uri: &str) -> usize {
        let state = self.state();
        let filters = state.pending.values().filter_map(|p| p.manner.listens.as_ref());
        filters.filter(|f| f.resource_subscriptions.iter().any(|wanted| wanted == uri)).count()
    }

    /// A request of our own. Answers the response.
    pub(crate) async fn ask(self: &Arc<Self>, method: &str, params: &str, limit: Duration) -> Result<Bytes, Refusal> {
        self.ask_as(Manner::default(), method, params, limit).await
    }

    /// Whether it answers within `limit`, whatever it says; it is no more in use by that than before.
    pub(crate) async fn discover(self: &Arc<Self>, limit: Duration) -> Result<(), String> {
        let params = format!("{{\"_meta\":{MODERN_META}}}");
        let manner = Manner { probe: true, ..Manner::default() };
        let asked = self.ask_as(manner, "server/discover", &params, limit);
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) if self.ended().is_some() => {
                Err(format!("its shared process {}", self.ended().unwrap_or_default()))
            }
            // its input may be full: then nothing was sent
            Ok(Err(_)) | Err(_) => {
                Err(format!("its shared process did not answer server/discover within {} s", limit.as_secs()))
            }
        }
    }

    async fn ask_as(
        self: &Arc<Self>,
        manner: Manner,
        method: &str,
        params: &str,
        limit: Duration,
    ) -> Result<Bytes, Refusal> {
        let text = format!("{{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"{method}\",\"params\":{params}}}");
        let head = jsonrpc::parse_one(text.as_bytes()).map_err(|e| Refusal::malformed(&e))?;
        let Waiting { mut events, held: _held, .. } = self.request(&head, manner).await?;
        let last = async {
            while let Some(event) = events.recv().await {
                if event.last {
                    return Some(event.data);
                }
            }
            None
        };
        match tokio::time::timeout(limit, last).await {
            Ok(Some(data)) => Ok(data),
            Ok(None) => Err(self.lost(&self.ended().unwrap_or_else(|| "ended".into()))),
            Err(_) => Err(Refusal::timeout(&self.name, u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))),
        }
    }

    /// A notification goes on as it is.
    pub(crate) async fn notify(&self, message: Bytes) {
        // one that cannot be delivered has nobody who waits for it
        self.input.send(one_line(message)).await.ok();
    }

    /// Gives a request up and tells the server; one that was answered is left alone.
    fn abandon(&self, number: u64, reason: &str) {
        let mut state = self.state();
        let Some(pending) = state.pending.remove(&number) else { return };
        if !pending.manner.probe {
            state.used = Some(Instant::now());
        }
        drop(state);
        if let Some(filter) = pending.manner.listens {
            // an older server knows only of the resources
            for uri in filter.resource_subscriptions.iter().filter(|uri| self.wanted(uri) == 0) {
                self.unsubscribe(uri);
            }
            return;
        }
        let text = format!(
            "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{{\"requestId\":{number},\"reason\":{}}}}}",
            jsonrpc::quote(reason)
        );
        if self.input.try_send(text.into()).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Nobody wants a resource's changes any more; the answer is nobody's.
    fn unsubscribe(&self, uri: &str) {
        let number = self.next(&mut self.state());
        let uri = jsonrpc::quote(uri);
        let text = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{number},\"method\":\"resources/unsubscribe\",\"params\":{{\"uri\":{uri}}}}}"
        );
        if self.input.try_send(text.into()).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    fn next(&self, state: &mut State) -> u64 {
        state.number = state.number % NUMBER_MAX + 1;
        state.number
    }

    /// Reads the server until it ends or `stop`. Answers why it ended, `None` when it was stopped.
    pub(crate) async fn run(&self, mut output: Output) -> Option<String> {
        let (over, mut ending) = (output.over(), false);
        loop {
            let said = tokio::select! {
                () = self.stop.cancelled() => {
                    self.end("was closed");
                    return None;
                }
                () = over.cancelled(), if !ending => {
                    ending = true;
                    self.state().ending = true;
                    continue;
                }
                said = output.said(&self.endpoint) => said,
            };
            match said {
                Ok(Said { data, about }) => match jsonrpc::parse_one(&data) {
                    Ok(head) => self.deliver(&head, about.as_ref()),
                    Err(_) => match &mut output {
                        Output::Stdio(lines) => lines.stray(&self.endpoint, data).await,
                        Output::Sse(_) | Output::Told(_) => drop(self.dropped.fetch_add(1, Relaxed)),
                    },
                },
                Err(why) => {
                    self.end(&why);
                    return Some(why);
                }
            }
        }
    }

    /// Fails what waits.
    pub(crate) fn end(&self, why: &str) {
        let pending = {
            let mut state = self.state();
            state.ended.get_or_insert_with(|| why.to_owned());
            std::mem::take(&mut state.pending)
        };
        let refusal = self.lost(why);
        for waiting in pending.into_values() {
            let error = refusal.to_json(None);
            let text = String::from_utf8_lossy(&error).replacen("\"id\":null", &format!("\"id\":{}", waiting.id), 1);
            drop(waiting.events.try_send(event(text, true)));
        }
    }

    /// `about`: the request that it came for, where the transport tells.
    fn deliver(&self, head: &Head<'_>, about: Option<&Id>) {
        match head.kind {
            Kind::Response => self.answer(head),
            Kind::Notification => self.tell(head, about),
            Kind::Request if self.greeting.get().is_some() => self.question(head),
            Kind::Request => {
                // servers of this era write no requests: their questions are answers that ask for input
                let error =
                    jsonrpc::error(head.id.as_ref(), mirror::METHOD_NOT_FOUND, "clients answer no requests", "");
                if self.input.try_send(error.into()).is_err() {
                    self.dropped.fetch_add(1, Relaxed);
                }
            }
        }
    }

    /// What an older server asks its client: passed on when it is known about which request.
    fn question(&self, head: &Head<'_>) {
        let text = match head.method.as_ref() {
            "ping" => format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{{}}}}", head.id_text.unwrap_or("null")),
            "elicitation/create" | "sampling/createMessage" | "roots/list" => {
                let state = self.state();
                let asked = state.pending.values().find(|p| p.manner.alone);
                if asked.is_some_and(|p| p.questions.try_send(one_line(Bytes::from(head.text.to_owned()))).is_ok()) {
                    return;
                }
                drop(state);
                jsonrpc::error(head.id.as_ref(), mirror::METHOD_NOT_FOUND, "nobody is there to answer this", "")
            }
            _ => jsonrpc::error(head.id.as_ref(), mirror::METHOD_NOT_FOUND, "no such method", ""),
        };
        if self.input.try_send(text.into()).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// A change that an older server tells all: to the subscriptions that want it.
    fn broadcast(&self, state: &State, head: &Head<'_>) {
        let uri = Params::read(head.params).uri.and_then(jsonrpc::string);
        for waiting in state.pending.values() {
            if waiting.manner.listens.as_ref().is_some_and(|f| f.wants(&head.method, uri.as_deref())) {
                let uri = uri.as_ref().map_or_else(String::new, |uri| format!("\"uri\":{}", jsonrpc::quote(uri)));
                let text = tagged(&head.method, &waiting.id, &uri);
                if waiting.events.try_send(event(text, false)).is_err() {
                    self.dropped.fetch_add(1, Relaxed);
                }
            }
        }
    }

    /// A response goes to whoever asked, under the client's own id.
    fn answer(&self, head: &Head<'_>) {
        let number = head.id.as_ref().and_then(number);
        let waiting = number.and_then(|number| {
            let mut state = self.state();
            let waiting = state.pending.remove(&number);
            if waiting.as_ref().is_some_and(|waiting| !waiting.manner.probe) {
                state.used = Some(Instant::now());
            }
            waiting
        });
        let Some((waiting, id)) = waiting.zip(head.id_text) else {
            // late: cancelled or timed out
            self.dropped.fetch_add(1, Relaxed);
            return;
        };
        let meta = Meta::read(Params::read(head.result).meta);
        let subscription = meta.subscription.map(|raw| (raw.get(), waiting.id.as_str()));
        let mut parts: Vec<(&str, &str)> = subscription.into_iter().chain([(id, waiting.id.as_str())]).collect();
        let gained = waiting.manner.shape.gained(head.result);
        if let (Some(opening), Some(gained)) = (head.result.and_then(|r| r.get().get(..1)), &gained) {
            parts.push((opening, gained));
        }
        let translated = head.error.filter(|_| waiting.manner.shape != Shape::AsIs);
        if let Some(result) = translated.and_then(addresses) {
            let text = format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{result}}}", waiting.id);
            waiting.finish(&self.endpoint, text);
            return;
        }
        let code = translated.and_then(not_found);
        parts.extend(code.map(|code| (code, INVALID_PARAMS)));
        parts.sort_by_key(|(part, _)| part.as_ptr() as usize);
        let text = jsonrpc::splice(head.text, &parts).unwrap_or_default();
        waiting.finish(&self.endpoint, text);
    }

    fn tell(&self, head: &Head<'_>, about: Option<&Id>) {
        if head.method == "notifications/tools/list_changed" {
            self.remembered.forget_lists(&self.endpoint);
        }
        let params = Params::read(head.params);
        let mut state = self.state();
        let (number, part) = match head.method.as_ref() {
            "notifications/progress" => (params.progress_token.and_then(Id::read), params.progress_token),
            "notifications/cancelled" => {
                // the server ends a subscription: its stream ends
                if let Some(number) = params.request_id.and_then(Id::read).as_ref().and_then(number) {
                    state.pending.remove(&number);
                    state.used = Some(Instant::now());
                }
                return;
            }
            "notifications/message" => {
                // whose it is is not said: else it is known only while one request alone wants any
                let told = about.and_then(number).filter(|n| state.pending.get(n).is_some_and(|p| p.logs));
                let mut wanting = state.pending.iter().filter(|(_, p)| p.logs);
                let only = wanting.next().filter(|_| wanting.next().is_none() && about.is_none()).map(|(n, _)| *n);
                (told.or(only).and_then(|number| i64::try_from(number).ok()).map(Id::Int), None)
            }
            _ if self.greeting.get().is_some() => return self.broadcast(&state, head),
            _ => {
                let subscription = Meta::read(params.meta).subscription;
                (subscription.and_then(Id::read), subscription)
            }
        };
        let Some((number, waiting)) = number.as_ref().and_then(number_of(&state)) else {
            self.dropped.fetch_add(1, Relaxed);
            return;
        };
        let own =
            if head.method == "notifications/progress" { waiting.token.as_deref() } else { Some(waiting.id.as_str()) };
        let text = match (part, own) {
            (Some(part), Some(own)) => jsonrpc::splice(head.text, &[(part.get(), own)]),
            (Some(_), None) => None,
            (None, _) => Some(head.text.to_owned()),
        };
        let Some(text) = text else {
            self.dropped.fetch_add(1, Relaxed);
            return;
        };
        if waiting.events.try_send(event(text, false)).is_err() {
            // one client that does not read must not hold up the others
            drop(state);
            self.abandon(number, "the client does not read");
        }
    }

    /// The arguments of a tool that headers mirror.
    pub(crate) async fn mirrored(self: &Arc<Self>, tool: &str, meta: &str) -> Result<Arc<Vec<Mirrored>>, Refusal> {
        let mut tools = self.tools.lock().await;
        if !tools.mirrored.contains_key(tool) && tools.read.is_none_or(|at| at.elapsed() > REREAD) {
            tools.mirrored = self.read_tools(meta).await?;
            tools.read = Some(Instant::now());
        }
        Ok(tools.mirrored.get(tool).cloned().unwrap_or_default())
    }

    async fn read_tools(self: &Arc<Self>, meta: &str) -> Result<HashMap<String, Arc<Vec<Mirrored>>>, Refusal> {
        let limit = Duration::from_millis(self.endpoint.spec.request_timeout_ms);
        let mut all = HashMap::new();
        let mut cursor: Option<String> = None;
        for _ in 0..PAGES {
            let at = cursor.as_ref().map_or_else(String::new, |c| format!(",\"cursor\":{}", jsonrpc::quote(c)));
            let answer = self.ask("tools/list", &format!("{{\"_meta\":{meta}{at}}}"), limit).await?;
            let head = jsonrpc::parse_one(&answer).ok();
            let result = head.and_then(|h| h.result);
            if let Some(result) = result {
                let Endpoint { deployment, release, instance, .. } = &*self.endpoint;
                self.remembered.answers.learn(*deployment, *release, [*instance], result);
            }
            let page = result.and_then(Page::read);
            // a server without tools, or with a list that nobody can read, has none that a header mirrors
            let Some(page) = page else { break };
            all.extend(page.tools.into_iter().map(|(name, mirrored)| (name, Arc::new(mirrored))));
            match page.next.filter(|c| cursor.as_ref() != Some(c)) {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        Ok(all)
    }
}

fn event(text: String, last: bool) -> Event {
    // this era's streams cannot be resumed: no ids
    Event { id: None, data: one_line(Bytes::from(text)), last, related: true }
}

fn number(id: &Id) -> Option<u64> {
    match id {
        Id::Int(n) => u64::try_from(*n).ok(),
        // a server that keeps ids as texts is still understood
        Id::Str(text) => text.parse().ok(),
        Id::Number(_) => None,
    }
}

fn number_of<'a>(state: &'a State) -> impl Fn(&Id) -> Option<(u64, &'a Pending)> {
    move |id| number(id).and_then(|n| state.pending.get(&n).map(|waiting| (n, waiting)))
}
