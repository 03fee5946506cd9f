//! A client of the stateless era (2026-07-28) before a server that knows only the handshake, however that is reached: the gateway greets the
//! server, puts its answers into this era's words, and parks a call whose server asks its client something until the
//! client repeats the request with the answers (basic/patterns/mrtr).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::{Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sigil_core::jsonrpc::{self, Head, Meta, Params};
use sigil_core::mirror;
use sigil_core::model::DeploymentId;
use sigil_core::session::{FIRST_MODERN, LEGACY};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::body::{Event, Events, Out, Timeout};
use super::bridged::{PLAIN, json, stream};
use super::client::{self, Client};
use super::common::{Common, Manner, Process, Waiting};
use super::error::Refusal;
use super::load::Call;
use super::modern::{self, LISTEN};
use super::proxy::inject_body;
use super::seal::random_key;
use super::serve::Asked;
use super::table::{Entry, Live};
use super::words::{Filter, Shape, tagged};
use crate::upstream::one_line;

/// How long a server waits for its client's input.
const PARKED: Duration = Duration::from_secs(300);
/// Calls that wait for input at once; beyond that the oldest is given up.
const PARKED_MAX: usize = 1024;
/// How long a call waits for room for a process of its own, and how often it looks.
const ROOM: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(100);
/// The extension whose results an older server has no words for.
const TASKS: &str = "io.modelcontextprotocol/tasks";
/// The one question of an answer that asks for input.
const KEY: &str = "input";
/// Events of a stream that its client has not read.
const QUEUED: usize = 64;

#[derive(Deserialize)]
struct Greeting<'a> {
    #[serde(borrow, default)]
    capabilities: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "serverInfo")]
    server_info: Option<&'a RawValue>,
    #[serde(borrow, default)]
    instructions: Option<&'a RawValue>,
}

/// Starts a process and shakes hands with it for a client of these capabilities.
async fn greeted(
    shared: &Arc<Shared>,
    live: &Live,
    name: &str,
    capabilities: &str,
    client: Option<&str>,
    caller: &Client,
) -> Result<Arc<Process>, Refusal> {
    let limit = Instant::now() + ROOM;
    let (process, starting) = loop {
        match modern::spawn(shared, live, name, Some(caller)).await {
            Err(refusal) if refusal.code == "GATEWAY_OVERLOADED" && Instant::now() < limit => {
                // one that serves nobody at the moment makes room
                let common = &live.common;
                if let Some(idle) = common.retire_alone(Duration::ZERO).or_else(|| common.retire(Duration::ZERO)) {
                    idle.stop.cancel();
                }
                tokio::time::sleep(AGAIN).await;
            }
            spawned => break spawned?,
        }
    };
    // a client that leaves meanwhile leaves nothing behind
    let unowned = process.stop.clone().drop_guard();
    let ours = format!("{{\"name\":\"sigil\",\"version\":\"{}\"}}", env!("CARGO_PKG_VERSION"));
    let client = client.unwrap_or(&ours);
    let version = LEGACY.last().copied().unwrap_or_default();
    let params =
        format!("{{\"protocolVersion\":\"{version}\",\"capabilities\":{capabilities},\"clientInfo\":{client}}}");
    let limit = Duration::from_millis(live.endpoint.spec.start_timeout_ms);
    let answer = process.ask("initialize", &params, limit).await?;
    drop(starting);
    let greeting = jsonrpc::parse_one(&answer).ok().and_then(|head| head.result.map(ToOwned::to_owned));
    let Some(greeting) = greeting else {
        let said: String = String::from_utf8_lossy(&answer).chars().take(200).collect();
        return Err(Refusal::failed(name, format!("'{name}' refuses the handshake: {said}")));
    };
    process.greeting.set(greeting).ok();
    process.notify(Bytes::from_static(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#)).await;
    shared.refill_soon(&live.endpoint);
    unowned.disarm();
    Ok(process)
}

/// The process that requests share whose clients can be asked nothing.
async fn common(shared: &Arc<Shared>, live: &Live, name: &str, caller: &Client) -> Result<Arc<Process>, Refusal> {
    let whose = whose(live, caller, "{}");
    let _one_at_a_time = live.common.starting.lock().await;
    if let Some(process) = live.common.running(&whose) {
        return Ok(process);
    }
    let process = greeted(shared, live, name, "{}", None, caller).await?;
    live.common.set(&whose, &process);
    Ok(process)
}

/// Under which name a greeted process is kept. It remembers its client: only requests of the same one get it.
fn whose(live: &Live, caller: &Client, capabilities: &str) -> String {
    format!("{} {capabilities}", caller.key(&live.endpoint))
}

pub(crate) async fn post(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    head: &Head<'_>,
    entry: &Arc<Entry>,
    live: &Live,
) -> Result<Response<Out>, Refusal> {
    let caller = Client::of(asked, entry);
    let version = Meta::read(Params::read(head.params).meta).protocol_version.and_then(jsonrpc::string);
    if version.as_deref().is_some_and(|version| version != FIRST_MODERN) {
        return Ok(unsupported(head, &version.unwrap_or_default()));
    }
    match head.method.as_ref() {
        "server/discover" => {
            let process = common(shared, live, asked.name, &caller).await?;
            Ok(discover(&process, head))
        }
        LISTEN => listen(&common(shared, live, asked.name, &caller).await?, head).await,
        "initialize" | "ping" | "logging/setLevel" | "resources/subscribe" | "resources/unsubscribe" => Err(Refusal {
            status: StatusCode::NOT_FOUND,
            rpc: mirror::METHOD_NOT_FOUND,
            ..Refusal::bad_request(format!("'{}' is no method of {FIRST_MODERN}", head.method), "")
        }),
        _ => call(shared, asked, head, entry, live, &caller).await,
    }
}

/// A stateless revision that is not the one that is translated.
fn unsupported(head: &Head<'_>, version: &str) -> Response<Out> {
    let data = format!("{{\"supported\":[\"{FIRST_MODERN}\"],\"requested\":{}}}", jsonrpc::quote(version));
    let message = "this revision is not spoken here";
    let mut response = json(Bytes::from(jsonrpc::error(head.id.as_ref(), mirror::UNSUPPORTED_VERSION, message, &data)));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

fn discover(process: &Process, head: &Head<'_>) -> Response<Out> {
    let greeting = process.greeting.get().and_then(|g| serde_json::from_str::<Greeting<'_>>(g.get()).ok());
    let part = |raw: Option<&RawValue>, other: &str| raw.map_or_else(|| other.to_owned(), |r| r.get().to_owned());
    // the older era's tasks are not this one's, which are an extension
    let capabilities: BTreeMap<String, &RawValue> =
        greeting.as_ref().and_then(|g| serde_json::from_str(g.capabilities?.get()).ok()).unwrap_or_default();
    let offered = capabilities.iter().filter(|(name, _)| name.as_str() != "tasks").map(|(name, raw)| {
        let extensions = (name == "extensions").then(|| jsonrpc::without_members(raw.get(), &[TASKS])).flatten();
        format!("{}:{}", jsonrpc::quote(name), extensions.as_deref().unwrap_or(raw.get()))
    });
    let capabilities: Vec<String> = offered.collect();
    let capabilities = capabilities.join(",");
    let info = part(greeting.as_ref().and_then(|g| g.server_info), "{\"name\":\"\",\"version\":\"\"}");
    let instructions = greeting.as_ref().and_then(|g| g.instructions);
    let instructions = instructions.map_or_else(String::new, |i| format!(",\"instructions\":{}", i.get()));
    let text = format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{{\"resultType\":\"complete\",\"supportedVersions\":[\"{FIRST_MODERN}\"],\
         \"capabilities\":{{{capabilities}}}{instructions},\"ttlMs\":0,\"cacheScope\":\"private\",\
         \"_meta\":{{\"io.modelcontextprotocol/serverInfo\":{info}}}}}}}",
        head.id_text.unwrap_or("null")
    );
    json(one_line(Bytes::from(text)))
}

async fn listen(process: &Arc<Process>, head: &Head<'_>) -> Result<Response<Out>, Refusal> {
    #[derive(Deserialize)]
    struct Wanted<'a> {
        #[serde(borrow, default)]
        notifications: Option<&'a RawValue>,
    }
    let wanted =
        head.params.and_then(|p| serde_json::from_str::<Wanted<'_>>(p.get()).ok()).and_then(|w| w.notifications);
    let filter: Filter = wanted.and_then(|w| serde_json::from_str(w.get()).ok()).unwrap_or_default();
    let uris = filter.resource_subscriptions.clone();
    let manner = Manner { listens: Some(filter), ..Manner::default() };
    let Waiting { events, held, .. } = process.request(head, manner).await?;
    let limit = Duration::from_millis(process.endpoint.spec.request_timeout_ms);
    for uri in &uris {
        if process.wanted(uri) == 1 {
            // an address that the server does not know has no changes: nothing to tell the client
            let params = format!("{{\"uri\":{}}}", jsonrpc::quote(uri));
            process.ask("resources/subscribe", &params, limit).await?;
        }
    }
    let honoured = wanted.map_or_else(|| "{}".to_owned(), |w| w.get().to_owned());
    let id = head.id_text.unwrap_or("null");
    let ack = tagged("notifications/subscriptions/acknowledged", id, &format!("\"notifications\":{honoured}"));
    let first = Event { id: None, data: one_line(Bytes::from(ack)), last: false, related: true };
    Ok(stream(Events::new([first], events, None).holding(held)))
}

/// Whose process a call uses.
enum Lease {
    Shared(Arc<Process>),
    Alone { process: Arc<Process>, whose: String, common: Arc<Common>, clean: bool },
}

impl Lease {
    fn process(&self) -> &Arc<Process> {
        match self {
            Self::Shared(process) | Self::Alone { process, .. } => process,
        }
    }

    /// The call is answered: nothing of it can come any more.
    fn clean(&mut self) {
        if let Self::Alone { clean, .. } = self {
            *clean = true;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Self::Alone { process, whose, common, clean } = self {
            if *clean && process.answers() {
                common.give_back(std::mem::take(whose), process.clone());
            } else {
                // it may still ask about a call that was given up: nobody else may get that question
                process.stop.cancel();
            }
        }
    }
}

/// A process of its own for a client that can be asked something. What it can decides what a server shows and asks, so
/// it is greeted with just that.
async fn alone(
    shared: &Arc<Shared>,
    live: &Live,
    name: &str,
    meta: &Meta<'_>,
    caller: &Client,
) -> Result<Lease, Refusal> {
    let capabilities = meta.client_capabilities.map_or("{}", RawValue::get);
    let whose = whose(live, caller, capabilities);
    let common = live.common.clone();
    let client = meta.client_info.map(RawValue::get);
    let process = match common.take(&whose) {
        Some(process) => process,
        None => greeted(shared, live, name, capabilities, client, caller).await?,
    };
    Ok(Lease::Alone { process, whose, common, clean: false })
}

/// Whether a client can be asked something.
fn answers(capabilities: Option<&RawValue>) -> bool {
    let value: Value = capabilities.and_then(|c| serde_json::from_str(c.get()).ok()).unwrap_or_default();
    ["elicitation", "sampling", "roots"].iter().any(|name| value.get(name).is_some())
}

/// What a request is about, for comparing it with its repetition.
fn subject(head: &Head<'_>, params: &Params<'_>) -> String {
    let of = params.name.or(params.uri).map_or("", RawValue::get);
    format!("{} {of} {}", head.method, params.arguments.map_or("", RawValue::get))
}

/// A call with what belongs to it.
struct Running {
    waiting: Waiting,
    lease: Lease,
    subject: String,
    deployment: DeploymentId,
    principal: String,
}

async fn call(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    head: &Head<'_>,
    entry: &Arc<Entry>,
    live: &Live,
    caller: &Client,
) -> Result<Response<Out>, Refusal> {
    let params = Params::read(head.params);
    let meta = Meta::read(params.meta);
    if let Some(state) = params.request_state.and_then(jsonrpc::string) {
        return repeated(shared, asked, head, entry, &state, &params).await;
    }
    let mut counted = Call::begin(&live.stats, &entry.recorder, asked.caller).traced(asked.trace).of(head);
    let begun = async {
        let mut lease = if answers(meta.client_capabilities) || meta.log_level.is_some() {
            alone(shared, live, asked.name, &meta, caller).await?
        } else {
            Lease::Shared(common(shared, live, asked.name, caller).await?)
        };
        // a conversation that is not over HTTP has no headers that could say something else
        let repeats = asked.headers.contains_key("mcp-protocol-version");
        if repeats
            && head.method == "tools/call"
            && let Some(tool) = params.name.and_then(jsonrpc::string)
        {
            let mirrored = lease.process().mirrored(&tool, "{}").await?;
            // nothing was asked yet
            modern::check_arguments(&mirrored, &params, asked.headers).inspect_err(|_| lease.clean())?;
        }
        let limit = Duration::from_millis(live.endpoint.spec.request_timeout_ms);
        if let Some(level) = meta.log_level {
            // a server without levels answers an error, and logs as it likes
            let params = format!("{{\"level\":{}}}", level.get());
            lease.process().ask("logging/setLevel", &params, limit).await?;
        }
        let alone = matches!(lease, Lease::Alone { .. });
        let manner = Manner { shape: Shape::of(&head.method), alone, ..Manner::default() };
        let waiting = match inject_body(&entry.injected, head) {
            None => lease.process().request(head, manner).await?,
            Some(changed) => {
                let head = jsonrpc::parse_one(changed.as_bytes()).map_err(|e| Refusal::malformed(&e))?;
                lease.process().request(&head, manner).await?
            }
        };
        let principal = caller.principal().to_owned();
        Ok(Running { waiting, lease, subject: subject(head, &params), deployment: entry.id, principal })
    };
    let running = begun.await.inspect_err(|_| counted.fail())?;
    answer(shared, asked.name, head, running, counted).await
}

/// Answers with JSON what ends soon, else with a stream.
async fn answer(
    shared: &Arc<Shared>,
    name: &str,
    head: &Head<'_>,
    mut running: Running,
    mut counted: Call,
) -> Result<Response<Out>, Refusal> {
    let id = head.id_text.unwrap_or("null").to_owned();
    let ms = running.lease.process().endpoint.spec.request_timeout_ms;
    let limit = Duration::from_millis(ms);
    let deadline = Instant::now() + limit;
    let first = match tokio::time::timeout(PLAIN.min(limit), next(&mut running.waiting)).await {
        Ok(Heard::Question(question)) => {
            drop(counted);
            return Ok(json(shared.parked.park(running, &id, question)));
        }
        Ok(Heard::Event(event)) if event.last => {
            running.lease.clean();
            let (status, failed) = modern::status(&event.data);
            counted.answered(&event.data);
            if failed {
                counted.fail();
            }
            let mut response = json(event.data);
            *response.status_mut() = status;
            return Ok(response);
        }
        Ok(Heard::Event(event)) => Some(event),
        Ok(Heard::End) => {
            counted.fail();
            return Err(Refusal::failed(name, "the server ended the request without an answer"));
        }
        Err(_) => None,
    };
    let alive = first.is_some();
    let (to_client, events) = mpsc::channel(QUEUED);
    let given_up = CancellationToken::new();
    let (pump, stopped) = (shared.clone(), given_up.clone());
    shared.tasks.spawn(async move {
        tokio::select! {
            () = stopped.cancelled() => {}
            () = to_client.closed() => {}
            () = pass_on(&pump, running, &id, &to_client) => {}
        }
    });
    let events = Events::new(first, events, Some(counted));
    if alive {
        return Ok(stream(events));
    }
    let event = Refusal::timeout(name, ms).to_json(head.id.as_ref());
    let abandon = Box::new(move || given_up.cancel());
    Ok(stream(events.with_deadline(deadline, Timeout { event, abandon })))
}

enum Heard {
    Event(Event),
    Question(Bytes),
    End,
}

/// What comes next for a call: what was said before a question comes before it.
async fn next(waiting: &mut Waiting) -> Heard {
    tokio::select! {
        biased;
        event = waiting.events.recv() => event.map_or(Heard::End, Heard::Event),
        Some(question) = waiting.questions.recv() => Heard::Question(question),
    }
}

async fn pass_on(shared: &Arc<Shared>, mut running: Running, id: &str, to_client: &mpsc::Sender<Event>) {
    loop {
        match next(&mut running.waiting).await {
            Heard::Event(event) => {
                let last = event.last;
                if last {
                    running.lease.clean();
                }
                if to_client.send(event).await.is_err() || last {
                    return;
                }
            }
            Heard::Question(question) => {
                let data = shared.parked.park(running, id, question);
                // a client that left meanwhile may still repeat its request
                to_client.send(Event { id: None, data, last: true, related: true }).await.ok();
                return;
            }
            Heard::End => return,
        }
    }
}

/// One that waits for its client's input.
struct Waits {
    running: Running,
    question: Bytes,
    since: Instant,
}

/// Calls whose server waits for its client's input, by a name that only their client knows.
#[derive(Default)]
pub(crate) struct Parked(Mutex<HashMap<String, Waits>>);

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Parked").field(&self.map().len()).finish()
    }
}

impl Parked {
    fn map(&self) -> MutexGuard<'_, HashMap<String, Waits>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a call. Answers what its client gets: the question, and the name to come back with.
    fn park(&self, running: Running, id: &str, question: Bytes) -> Bytes {
        let state = random_key();
        let text = match jsonrpc::parse_one(&question) {
            Ok(head) => {
                let params = head.params.map_or_else(String::new, |p| format!(",\"params\":{}", p.get()));
                format!(
                    "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"resultType\":\"input_required\",\"inputRequests\":\
                     {{\"{KEY}\":{{\"method\":{}{params}}}}},\"requestState\":\"{state}\"}}}}",
                    jsonrpc::quote(&head.method)
                )
            }
            Err(error) => String::from_utf8_lossy(&Refusal::malformed(&error).to_json(None)).into_owned(),
        };
        let mut map = self.map();
        let oldest = map.iter().min_by_key(|(_, w)| w.since).map(|(name, _)| name.clone());
        let given_up = oldest.filter(|_| map.len() >= PARKED_MAX).and_then(|name| map.remove(&name));
        map.insert(state, Waits { running, question, since: Instant::now() });
        drop(map);
        drop(given_up);
        one_line(Bytes::from(text))
    }

    /// Gives up what waits too long.
    pub(crate) fn sweep(&self) {
        let late: Vec<Waits> = {
            let mut map = self.map();
            let names: Vec<String> =
                map.iter().filter(|(_, w)| w.since.elapsed() > PARKED).map(|(name, _)| name.clone()).collect();
            names.iter().filter_map(|name| map.remove(name)).collect()
        };
        drop(late);
    }
}

/// A client comes back with the answers that a server waits for.
async fn repeated(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    head: &Head<'_>,
    entry: &Arc<Entry>,
    state: &str,
    params: &Params<'_>,
) -> Result<Response<Out>, Refusal> {
    let about = subject(head, params);
    let found = {
        let mut map = shared.parked.map();
        let fits = map.get(state).is_some_and(|w| {
            let running = &w.running;
            running.deployment == entry.id && running.subject == about && running.principal == client::principal(asked)
        });
        if fits { map.remove(state) } else { None }
    };
    let Some(Waits { running, question, .. }) = found else {
        let message = "this requestState is not known, no longer good, or another request's";
        let refusal = Refusal::bad_request(message, "send the request again without requestState and inputResponses");
        return Err(Refusal { rpc: mirror::INVALID_PARAMS, ..refusal });
    };
    let id = head.id_text.unwrap_or("null");
    let given: Option<HashMap<String, &RawValue>> =
        params.input_responses.and_then(|raw| serde_json::from_str(raw.get()).ok());
    let Some(given) = given.and_then(|mut given| given.remove(KEY)) else {
        // asked again, as the revision wants it
        return Ok(json(shared.parked.park(running, id, question)));
    };
    let process = running.lease.process().clone();
    process.repeated(&running.waiting.held, head);
    let asked_as = jsonrpc::parse_one(&question).ok().and_then(|q| q.id_text.map(str::to_owned));
    let reply = format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{}}}",
        asked_as.unwrap_or_else(|| "null".to_owned()),
        given.get()
    );
    let stats = shared.registry.stats_of(process.endpoint.instance);
    let counted = Call::begin(&stats, &entry.recorder, asked.caller).traced(asked.trace).of(head);
    process.notify(Bytes::from(reply)).await;
    answer(shared, asked.name, head, running, counted).await
}
