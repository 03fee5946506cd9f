//! A client that shakes hands before a server that is stateless only (2026-07-28): the gateway answers the handshake from
//! what the server says of itself, and each request becomes one that carries its own metadata. What the server wants to
//! know on the way (`input_required`) is asked on the call's own stream, and the call is repeated with the answers.
//!
//! The server holds nothing of the session. What the client said at the handshake is in the session's id, so that a
//! restarted agent goes on with it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use sigil_core::jsonrpc::{self, Head, Id, Kind, Params};
use sigil_core::mirror;
use sigil_core::model::{DeploymentId, InstanceId};
use sigil_core::session::{FIRST_MODERN, LEGACY, Ticket};
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::client::Client;
use super::common::{Manner, Process};
use super::error::Refusal;
use super::modern::{self, Speaker};
use super::seal::random_key;
use super::subscribed::Wants;
use super::words;
use crate::upstream::{Conversation, Output, Said, one_line};

/// What keys of these sessions begin with: they have no process.
pub(crate) const PREFIX: &str = "t-";
/// Messages on their way to and from a client.
const QUEUED: usize = 64;
/// How often a server may ask before it answers.
const ROUNDS: usize = 32;
/// How long a client may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(300);
/// Before a request is repeated whose server wants just that.
const PAUSE: Duration = Duration::from_millis(250);
/// Sessions that their clients ended, which must not begin again.
const ENDED_MAX: usize = 16_384;

const LEVELS: [&str; 8] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];
/// What servers of the older era log to a client that has not said what it wants: all.
const LEVEL: &str = "debug";

/// What a client said of itself at the handshake.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Guest {
    pub(crate) key: String,
    /// `None` where the session's id had no room: another agent cannot go on with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capabilities: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    info: Option<Box<RawValue>>,
}

impl Guest {
    /// Reads `initialize`.
    pub(crate) fn of(head: &Head<'_>) -> Self {
        #[derive(Deserialize, Default)]
        struct Opening<'a> {
            #[serde(borrow, default)]
            capabilities: Option<&'a RawValue>,
            #[serde(borrow, default, rename = "clientInfo")]
            info: Option<&'a RawValue>,
        }
        let opening: Opening<'_> = head.params.and_then(|p| serde_json::from_str(p.get()).ok()).unwrap_or_default();
        // the older era's tasks are not this one's
        let capabilities = opening.capabilities.and_then(|c| jsonrpc::without_members(c.get(), &["tasks"]));
        let capabilities = RawValue::from_string(capabilities.unwrap_or_else(|| "{}".to_owned())).ok();
        Self { key: format!("{PREFIX}{}", random_key()), capabilities, info: opening.info.map(ToOwned::to_owned) }
    }

    /// What a session's id can hold of it, most first.
    pub(crate) fn packed(&self) -> Vec<String> {
        let nameless = Self { info: None, ..self.clone() };
        let bare = Self { capabilities: None, ..nameless.clone() };
        [self, &nameless, &bare].iter().filter_map(|guest| serde_json::to_string(guest).ok()).collect()
    }

    /// The guest of a session's id.
    pub(crate) fn unpack(ticket: &Ticket) -> Option<Self> {
        if ticket.translated { serde_json::from_str(&ticket.upstream).ok() } else { None }
    }

    /// Whether a session can go on with what is known.
    pub(crate) fn whole(&self) -> bool {
        self.capabilities.is_some()
    }

    fn capabilities(&self) -> &str {
        self.capabilities.as_deref().map_or("{}", RawValue::get)
    }
}

/// Sessions that their clients ended, the last ones.
#[derive(Debug, Default)]
pub(crate) struct Ended(Mutex<(HashSet<String>, VecDeque<String>)>);

impl Ended {
    fn both(&self) -> MutexGuard<'_, (HashSet<String>, VecDeque<String>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, key: &str) {
        let mut both = self.both();
        let (keys, order) = &mut *both;
        if keys.insert(key.to_owned()) {
            order.push_back(key.to_owned());
        }
        while order.len() > ENDED_MAX {
            let Some(oldest) = order.pop_front() else { break };
            keys.remove(&oldest);
        }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.both().0.contains(key)
    }
}

/// What the server says of itself.
#[derive(Debug)]
pub(crate) struct Offered {
    capabilities: String,
    info: String,
    instructions: Option<String>,
    pub(crate) tools_change: bool,
    pub(crate) prompts_change: bool,
    pub(crate) resources_change: bool,
    pub(crate) subscribes: bool,
    logs: bool,
}

type Reply = Result<Box<RawValue>, Box<RawValue>>;

/// The server's side of such a session.
#[derive(Debug)]
pub(crate) struct Greeter {
    pub(super) shared: Arc<Shared>,
    pub(super) name: String,
    deployment: DeploymentId,
    instance: InstanceId,
    guest: Guest,
    caller: Client,
    level: Mutex<Option<String>>,
    offered: OnceCell<Offered>,
    calls: Mutex<HashMap<Id, CancellationToken>>,
    questions: Mutex<HashMap<String, oneshot::Sender<Reply>>>,
    number: AtomicU64,
    pub(super) wants: watch::Sender<Wants>,
    /// Which of the wants the server has agreed to, or why it did not.
    pub(super) agreed: watch::Sender<(u64, Option<String>)>,
    say: mpsc::Sender<Said>,
    pub(super) end: CancellationToken,
}

/// The conversation of a session with a server that is stateless. `goes_on`: the client has shaken hands with a former
/// agent.
pub(crate) fn conversation(
    shared: &Arc<Shared>,
    (name, deployment, instance): (&str, DeploymentId, InstanceId),
    guest: Guest,
    caller: Client,
    goes_on: bool,
) -> Conversation {
    let (input, queue) = mpsc::channel(QUEUED);
    let (say, from) = mpsc::channel(QUEUED);
    let end = CancellationToken::new();
    let greeter = Arc::new(Greeter {
        shared: shared.clone(),
        name: name.to_owned(),
        deployment,
        instance,
        guest,
        caller,
        level: Mutex::default(),
        offered: OnceCell::new(),
        calls: Mutex::default(),
        questions: Mutex::default(),
        number: AtomicU64::new(1),
        wants: watch::Sender::default(),
        agreed: watch::Sender::default(),
        say,
        end: end.clone(),
    });
    if goes_on {
        greeter.start_listening();
    }
    shared.tasks.spawn(greeter.serve(queue));
    Conversation { input, output: Output::Told(from), end }
}

/// Why a request has no result.
#[derive(Debug)]
pub(super) enum Unable {
    /// What a server would say: an error's code and message.
    Said(i64, String),
    /// What the gateway says of itself.
    Refused(Refusal),
}

impl From<Refusal> for Unable {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// An answer's result, or the error that stands in its place.
type Outcome = Result<String, Unable>;

fn invalid(what: impl Into<String>) -> Unable {
    Unable::Said(mirror::INVALID_PARAMS, what.into())
}

impl Greeter {
    fn calls(&self) -> MutexGuard<'_, HashMap<Id, CancellationToken>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn questions(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Reply>>> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>, mut queue: mpsc::Receiver<Bytes>) {
        loop {
            let message = tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => break,
                message = queue.recv() => message,
                () = self.end.cancelled() => None,
            };
            let Some(message) = message else { break };
            self.take(&message).await;
        }
        // whoever still waits for the server gives up, and tells it
        self.end.cancel();
    }

    async fn take(self: &Arc<Self>, message: &Bytes) {
        let Ok(head) = jsonrpc::parse_one(message) else { return };
        let params = Params::read(head.params);
        match (head.kind, head.method.as_ref()) {
            (Kind::Request, _) => self.request(&head, message).await,
            (Kind::Notification, "notifications/cancelled") => {
                let id = params.request_id.and_then(Id::read);
                let call = id.and_then(|id| self.calls().remove(&id));
                call.iter().for_each(CancellationToken::cancel);
            }
            (Kind::Notification, "notifications/initialized") => self.start_listening(),
            // a stateless server knows no other: roots are asked for when they are needed
            (Kind::Notification, _) => {}
            (Kind::Response, _) => {
                let Some(Id::Str(id)) = &head.id else { return };
                let Some(waiting) = self.questions().remove(id) else { return };
                let reply = match (head.result, head.error) {
                    (Some(result), _) => Ok(result.to_owned()),
                    (None, Some(error)) => Err(error.to_owned()),
                    (None, None) => return,
                };
                // the call may have been given up
                waiting.send(reply).ok();
            }
        }
    }

    async fn request(self: &Arc<Self>, head: &Head<'_>, message: &Bytes) {
        let Some(id) = head.id.clone() else { return };
        let at_once = match head.method.as_ref() {
            "ping" => Some(Ok("{}".to_owned())),
            "logging/setLevel" => Some(self.set_level(head)),
            _ => None,
        };
        if let Some(outcome) = at_once {
            return self.answer(&id, outcome).await;
        }
        let stop = CancellationToken::new();
        self.calls().insert(id.clone(), stop.clone());
        let (greeter, message) = (self.clone(), message.clone());
        self.shared.tasks.spawn(async move {
            tokio::select! {
                // what it waits for is given up with it
                () = stop.cancelled() => {}
                () = greeter.end.cancelled() => {}
                () = greeter.handle(&id, &message) => drop(greeter.calls().remove(&id)),
            }
        });
    }

    async fn handle(&self, id: &Id, message: &Bytes) {
        let Ok(head) = jsonrpc::parse_one(message) else { return };
        let outcome = match head.method.as_ref() {
            "initialize" => self.greet(&head).await.map_err(Unable::from),
            "resources/subscribe" => self.subscribe(&head, true).await,
            "resources/unsubscribe" => self.subscribe(&head, false).await,
            method if method.starts_with("tasks/") => {
                Err(Unable::Said(mirror::METHOD_NOT_FOUND, format!("'{method}' is not offered here")))
            }
            _ => match self.call(&head, id).await {
                Ok(answer) => return self.say(words::older(&head.method, answer), Some(id)).await,
                Err(refusal) => return self.say(refusal.to_json(Some(id)), Some(id)).await,
            },
        };
        self.answer(id, outcome).await;
    }

    pub(super) async fn say(&self, data: Bytes, about: Option<&Id>) {
        // a session that is over needs nothing more
        self.say.send(Said { data: one_line(data), about: about.cloned() }).await.ok();
    }

    async fn answer(&self, id: &Id, outcome: Outcome) {
        let text = match outcome {
            Ok(result) => format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{result}}}", id.to_json()),
            Err(Unable::Said(code, message)) => jsonrpc::error(Some(id), code, &message, ""),
            Err(Unable::Refused(refusal)) => return self.say(refusal.to_json(Some(id)), Some(id)).await,
        };
        self.say(Bytes::from(text), Some(id)).await;
    }

    /// The process, or connection, that serves stateless requests.
    pub(super) async fn process(&self) -> Result<Arc<Process>, Refusal> {
        match self.process_now().await {
            Err(refusal) if refusal.unsent => {
                self.shared.again(&self.name, None, refusal, |_| self.process_now().boxed()).await
            }
            outcome => outcome,
        }
    }

    async fn process_now(&self) -> Result<Arc<Process>, Refusal> {
        let entry = self.shared.ready_as(&self.name, self.caller.settings.as_ref()).await?;
        if entry.id != self.deployment {
            return Err(Refusal::expired("the server of this session is gone"));
        }
        let speaker =
            modern::speaker(&self.shared, &entry, &self.name, Some(&self.caller), Some(self.instance)).await?;
        match speaker {
            Some(Speaker::Modern(_, process)) => Ok(process),
            Some(Speaker::Older(_)) | None => {
                Err(Refusal::failed(&self.name, format!("'{}' no longer serves {FIRST_MODERN}", self.name)))
            }
        }
    }

    /// The metadata of a request of this client's.
    pub(super) fn meta(&self) -> Vec<(&'static str, String)> {
        let mut meta = vec![
            ("io.modelcontextprotocol/protocolVersion", format!("\"{FIRST_MODERN}\"")),
            ("io.modelcontextprotocol/clientCapabilities", self.guest.capabilities().to_owned()),
        ];
        meta.extend(self.guest.info.as_deref().map(|i| ("io.modelcontextprotocol/clientInfo", i.get().to_owned())));
        if self.offered.get().is_some_and(|offered| offered.logs) {
            let level = self.level.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let level = level.unwrap_or_else(|| LEVEL.to_owned());
            meta.push(("io.modelcontextprotocol/logLevel", jsonrpc::quote(&level)));
        }
        meta
    }

    /// What the server says of itself, asked once.
    pub(super) async fn offered(&self) -> Result<&Offered, Refusal> {
        self.offered
            .get_or_try_init(|| async {
                let process = self.process().await?;
                let limit = Duration::from_millis(process.endpoint.spec.request_timeout_ms);
                let meta = self.meta();
                let meta: Vec<(&str, &str)> = meta.iter().map(|(name, value)| (*name, value.as_str())).collect();
                let meta = jsonrpc::with_raw_members("{}", &meta).unwrap_or_default();
                let answer = process.ask("server/discover", &format!("{{\"_meta\":{meta}}}"), limit).await?;
                let head = jsonrpc::parse_one(&answer).map_err(|e| Refusal::malformed(&e))?;
                let why = || head.error.map_or_else(|| head.text.chars().take(200).collect(), modern::said);
                head.result.and_then(Offered::read).ok_or_else(|| {
                    Refusal::failed(&self.name, format!("'{}' does not say what it offers: {}", self.name, why()))
                })
            })
            .await
    }

    /// The answer to `initialize`.
    async fn greet(&self, head: &Head<'_>) -> Result<String, Refusal> {
        let offered = self.offered().await?;
        let newest = LEGACY.last().copied().unwrap_or_default();
        let asked = Params::read(head.params).protocol_version.and_then(jsonrpc::string);
        let version = LEGACY.iter().find(|v| asked.as_deref() == Some(**v)).copied().unwrap_or(newest);
        let unnamed = format!("{{\"name\":{},\"version\":\"\"}}", jsonrpc::quote(&self.name));
        let info = if offered.info.is_empty() { &unnamed } else { &offered.info };
        let instructions = offered.instructions.as_ref().map_or_else(String::new, |i| format!(",\"instructions\":{i}"));
        Ok(format!(
            "{{\"protocolVersion\":\"{version}\",\"capabilities\":{},\"serverInfo\":{info}{instructions}}}",
            offered.capabilities
        ))
    }

    fn set_level(&self, head: &Head<'_>) -> Outcome {
        #[derive(Deserialize)]
        struct Wanted {
            level: String,
        }
        let wanted: Option<Wanted> = head.params.and_then(|p| serde_json::from_str(p.get()).ok());
        let level = wanted.map(|w| w.level).filter(|level| LEVELS.contains(&level.as_str()));
        let Some(level) = level else { return Err(invalid("there is no such level")) };
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = Some(level);
        Ok("{}".to_owned())
    }

    /// Sends a request on, asks the client what the server wants to know, and repeats it until there is an answer.
    async fn call(&self, head: &Head<'_>, id: &Id) -> Result<Bytes, Refusal> {
        self.offered().await?;
        let mut given: Vec<(&str, String)> = Vec::new();
        for _ in 0..ROUNDS {
            let meta = self.meta();
            let meta: Vec<(&str, &str)> = meta.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let members: Vec<(&str, &str)> = given.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let text = jsonrpc::with_params(head, &members, &meta).ok_or_else(|| {
                let refusal = Refusal::bad_request("the parameters are no object", "");
                Refusal { rpc: mirror::INVALID_PARAMS, ..refusal }
            })?;
            let request = jsonrpc::parse_one(text.as_bytes()).map_err(|e| Refusal::malformed(&e))?;
            let mut waiting = self.process().await?.request(&request, Manner::default()).await?;
            let answer = loop {
                match waiting.events.recv().await {
                    Some(event) if event.last => break event.data,
                    Some(event) => self.say(event.data, Some(id)).await,
                    None => {
                        let what = "the server ended the request without an answer";
                        return Err(Refusal::failed(&self.name, what));
                    }
                }
            };
            let Some(asks) = words::Asks::read(&answer) else { return Ok(answer) };
            given.clear();
            if asks.questions.is_empty() {
                tokio::time::sleep(PAUSE).await;
            } else {
                given.push(("inputResponses", self.ask(id, &asks.questions).await?));
            }
            given.extend(asks.state.map(|state| ("requestState", state)));
        }
        Err(Refusal::failed(&self.name, format!("'{}' asked {ROUNDS} times and did not answer", self.name)))
    }

    /// Asks the client, all at once. Answers what it says, as `inputResponses`.
    async fn ask(&self, about: &Id, questions: &BTreeMap<String, words::Question>) -> Result<String, Refusal> {
        let declared: Value = serde_json::from_str(self.guest.capabilities()).unwrap_or_default();
        let mut open = Open { greeter: self, ids: Vec::new() };
        let mut waiting = Vec::new();
        for (key, question) in questions {
            let capability = question.method.split('/').next().unwrap_or_default();
            let known =
                matches!(question.method.as_str(), "elicitation/create" | "sampling/createMessage" | "roots/list");
            if !known || declared.get(capability).is_none() {
                let what = format!("'{}' asks for {}, which the client has not offered", self.name, question.method);
                return Err(Refusal::failed(&self.name, what));
            }
            let id = format!("sigil-{}", self.number.fetch_add(1, Relaxed));
            let (tx, reply) = oneshot::channel();
            self.questions().insert(id.clone(), tx);
            open.ids.push(id.clone());
            self.say(Bytes::from(question.request(&id)), Some(about)).await;
            waiting.push((key, question, reply));
        }
        let mut replies = Vec::new();
        let answered = async {
            for (key, question, reply) in waiting {
                let reply = reply.await.map_err(|_| Refusal::failed(&self.name, "the session is over"))?;
                let reply = match reply {
                    Ok(result) => result.get().to_owned(),
                    // this era has no other word for it
                    Err(_) if question.method == "elicitation/create" => "{\"action\":\"cancel\"}".to_owned(),
                    Err(error) => {
                        let what = format!("the client refuses {}: {}", question.method, modern::said(&error));
                        return Err(Refusal { rpc: mirror::INVALID_PARAMS, ..Refusal::bad_request(what, "") });
                    }
                };
                replies.push((key.as_str(), reply));
            }
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(outcome) => outcome?,
            Err(_) => {
                let what = format!("the client did not answer within {} s what the server asked", PATIENCE.as_secs());
                return Err(Refusal::failed(&self.name, what));
            }
        }
        let replies: Vec<(&str, &str)> = replies.iter().map(|(key, reply)| (*key, reply.as_str())).collect();
        Ok(jsonrpc::with_raw_members("{}", &replies).unwrap_or_default())
    }
}

/// Questions that are asked; what is still open is forgotten with their call.
struct Open<'a> {
    greeter: &'a Greeter,
    ids: Vec<String>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut questions = self.greeter.questions();
        for id in &self.ids {
            questions.remove(id);
        }
    }
}

impl Offered {
    fn read(result: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        struct Discovered<'a> {
            #[serde(borrow, default)]
            capabilities: Option<&'a RawValue>,
            #[serde(borrow, default)]
            instructions: Option<&'a RawValue>,
            #[serde(borrow, default, rename = "_meta")]
            meta: Option<&'a RawValue>,
        }
        #[derive(Deserialize, Default)]
        struct Meta<'a> {
            #[serde(borrow, default, rename = "io.modelcontextprotocol/serverInfo")]
            info: Option<&'a RawValue>,
        }
        let found: Discovered<'_> = serde_json::from_str(result.get()).ok()?;
        let all = found.capabilities.map_or("{}", RawValue::get);
        let has: Value = serde_json::from_str(all).ok()?;
        let says = |path: &str| has.pointer(path).and_then(Value::as_bool).unwrap_or_default();
        let meta: Meta<'_> = found.meta.and_then(|m| serde_json::from_str(m.get()).ok()).unwrap_or_default();
        Some(Self {
            // what the older era has no words for
            capabilities: jsonrpc::without_members(all, &["extensions", "tasks"])?,
            info: meta.info.map(|i| i.get().to_owned()).unwrap_or_default(),
            instructions: found.instructions.map(|i| i.get().to_owned()),
            tools_change: says("/tools/listChanged"),
            prompts_change: says("/prompts/listChanged"),
            resources_change: says("/resources/listChanged"),
            subscribes: says("/resources/subscribe"),
            logs: has.get("logging").is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigil_core::model::Transport;

    fn guest(capabilities: &str) -> Guest {
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"capabilities":{capabilities},"clientInfo":{{"name":"t"}}}}}}"#
        );
        Guest::of(&jsonrpc::parse_one(text.as_bytes()).unwrap())
    }

    #[test]
    fn a_sessions_id_holds_its_guest() {
        let guest = guest(r#"{"tasks":{},"roots":{"x":1.0}}"#);
        assert_eq!(guest.capabilities(), r#"{"roots":{"x":1.0}}"#);
        let ticket = |upstream: String, translated| Ticket {
            deployment: ulid::Ulid(1).into(),
            instance: ulid::Ulid(2).into(),
            principal: "p".into(),
            transport: Transport::Http,
            version: String::new(),
            upstream,
            translated,
            expires: 0,
            settings: None,
        };
        let packed = guest.packed();
        let read = |index: usize| Guest::unpack(&ticket(packed[index].clone(), true)).unwrap();
        assert_eq!(
            (read(0).whole(), read(0).info.is_some(), read(0).capabilities()),
            (true, true, guest.capabilities())
        );
        assert_eq!((read(1).whole(), read(1).info.is_some()), (true, false));
        assert_eq!((read(2).whole(), read(2).key), (false, guest.key));
        // a server's own session id is nothing of ours, whatever it looks like
        assert!(Guest::unpack(&ticket(packed[0].clone(), false)).is_none());
    }

    #[test]
    fn the_last_ended_sessions_are_known() {
        let ended = Ended::default();
        for n in 0..=ENDED_MAX {
            ended.add(&n.to_string());
        }
        assert_eq!((ended.has("0"), ended.has("1"), ended.has(&ENDED_MAX.to_string())), (false, true, true));
    }
}
