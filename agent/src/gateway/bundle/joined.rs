//! One conversation with a bundle: a server with a handshake towards the client, a client of each member behind.
//!
//! A request about one member's tool, prompt or resource goes to it under the client's own id; lists and the handshake go
//! to all. A member that fails is left out of what is joined, and said; it ends nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sigil_core::jsonrpc::{self, Head, Id, Kind, Params};
use sigil_core::session::LEGACY;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Member;
use super::names::{self, LISTS};
use crate::gateway::{Shared, direct};
use crate::upstream::{Conversation, Output, Said, one_line};

/// Messages under way in each direction.
const DEPTH: usize = 64;
/// How long members have for the handshake, and for a page of a list.
const GREET: Duration = Duration::from_secs(30);
const LIST: Duration = Duration::from_secs(10);
/// Pages read of one list of one member.
const PAGES: usize = 50;

/// Begins one; it ends when its input does.
pub(super) fn begin(shared: &Arc<Shared>, name: &str, members: Vec<Member>) -> Conversation {
    let (input, from_client) = mpsc::channel(DEPTH);
    let (to_client, output) = mpsc::channel(DEPTH);
    let end = CancellationToken::new();
    let (task, name, over) = (shared.clone(), name.to_owned(), end.clone());
    shared.tasks.spawn(async move { Joined::new(&task, name, members, to_client).run(from_client, over).await });
    Conversation { input, output: Output::Told(output), end }
}

/// A member's end of the bundle.
struct Side {
    name: String,
    to: mpsc::Sender<Bytes>,
    /// Its capabilities; `None` until it has answered the handshake, and when it has failed.
    capabilities: Option<Value>,
    /// Why it takes no part.
    failed: Option<String>,
}

/// Our own request to a member.
type Own = (oneshot::Sender<Bytes>, usize);

struct Joined {
    name: String,
    sides: Vec<Side>,
    to_client: mpsc::Sender<Said>,
    from_members: mpsc::Receiver<(usize, Option<Bytes>)>,
    /// Requests of our own, by id.
    own: HashMap<String, Own>,
    number: u64,
    /// The client's requests under way: which member has them.
    under_way: HashMap<Id, usize>,
    /// Questions of members to the client: our id, the member, its id as it wrote it.
    questions: HashMap<String, (usize, String)>,
}

#[derive(Deserialize)]
struct Greeting<'a> {
    #[serde(default)]
    capabilities: Option<Value>,
    #[serde(borrow, default)]
    instructions: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Reference<'a> {
    #[serde(borrow)]
    r#ref: &'a RawValue,
}

#[derive(Deserialize)]
struct Target<'a> {
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    uri: Option<&'a RawValue>,
}

fn failure(id: &str, code: i64, message: &str) -> Bytes {
    let message = jsonrpc::quote(message);
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":{code},\"message\":{message}}}}}").into()
}

fn result(id: &str, result: &str) -> Bytes {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}").into()
}

impl Joined {
    fn new(shared: &Arc<Shared>, name: String, members: Vec<Member>, to_client: mpsc::Sender<Said>) -> Self {
        let (out, from_members) = mpsc::channel(DEPTH);
        let sides = members.into_iter().enumerate().map(|(index, member)| {
            let (to, from_us) = mpsc::channel(DEPTH);
            let (to_us, mut answers) = mpsc::channel::<Bytes>(DEPTH);
            let (out, pumped) = (out.clone(), shared.clone());
            let name = member.name.clone();
            shared.tasks.spawn(async move {
                let pump = async {
                    while let Some(message) = answers.recv().await {
                        if out.send((index, Some(message))).await.is_err() {
                            return;
                        }
                    }
                };
                let conversation = direct::run(&pumped, &member.name, &member.caller, &member.config, from_us, to_us);
                let (ended, ()) = tokio::join!(conversation, pump);
                // what it says goes to whoever asked it something
                let why = ended.err().map_or_else(|| "its conversation ended".to_owned(), |error| error.to_string());
                tracing::debug!(deployment = member.name, why, "a member of a bundle is out");
                let said = failure("null", -31502, &why);
                out.send((index, Some(said))).await.ok();
                out.send((index, None)).await.ok();
            });
            Side { name, to, capabilities: None, failed: None }
        });
        Self {
            name,
            sides: sides.collect(),
            to_client,
            from_members,
            own: HashMap::new(),
            number: 0,
            under_way: HashMap::new(),
            questions: HashMap::new(),
        }
    }

    async fn run(mut self, mut from_client: mpsc::Receiver<Bytes>, end: CancellationToken) {
        loop {
            tokio::select! {
                () = end.cancelled() => return,
                message = from_client.recv() => match message {
                    Some(message) => self.heard_client(&message, &end).await,
                    None => return,
                },
                Some((side, message)) = self.from_members.recv() => self.heard_member(side, message).await,
            }
        }
    }

    async fn say(&self, message: Bytes) {
        // a client that has left is told by the end of its input
        self.to_client.send(one_line(message).into()).await.ok();
    }

    async fn heard_client(&mut self, message: &Bytes, end: &CancellationToken) {
        let Ok(head) = jsonrpc::parse_one(message) else { return };
        let id = head.id_text.unwrap_or("null");
        match (head.kind, head.method.as_ref()) {
            (Kind::Response, _) => self.answered(&head).await,
            (Kind::Notification, "notifications/cancelled") => {
                let about = Params::read(head.params).request_id.and_then(Id::read);
                if let Some(side) = about.and_then(|id| self.under_way.get(&id)).and_then(|i| self.sides.get(*i)) {
                    side.to.send(message.clone()).await.ok();
                }
            }
            (Kind::Notification, _) => {
                for side in self.sides.iter().filter(|s| s.failed.is_none()) {
                    side.to.send(message.clone()).await.ok();
                }
            }
            (Kind::Request, "initialize") => self.initialize(&head, id, end).await,
            (Kind::Request, "ping") => self.say(result(id, "{}")).await,
            (Kind::Request, "logging/setLevel") => {
                let params = head.params.map_or("{}", RawValue::get);
                for index in self.capable("logging") {
                    drop(self.ask(index, "logging/setLevel", params).await);
                }
                self.say(result(id, "{}")).await;
            }
            (Kind::Request, method) => match LISTS.iter().find(|(list, ..)| *list == method) {
                Some((method, key, kind)) => self.list(method, key, *kind, id, end).await,
                None => self.pass(&head, id).await,
            },
        }
    }

    /// Members with a capability.
    fn capable(&self, what: &str) -> Vec<usize> {
        let has = |side: &Side| side.capabilities.as_ref().is_some_and(|c| c.get(what).is_some());
        self.sides.iter().enumerate().filter(|(_, side)| has(side)).map(|(index, _)| index).collect()
    }

    /// Sends a request of our own; the answer comes by the receiver.
    async fn ask(&mut self, index: usize, method: &str, params: &str) -> oneshot::Receiver<Bytes> {
        let (tx, rx) = oneshot::channel();
        self.number += 1;
        let id = format!("sigil-{}", self.number);
        let text = format!("{{\"jsonrpc\":\"2.0\",\"id\":\"{id}\",\"method\":\"{method}\",\"params\":{params}}}");
        if let Some(side) = self.sides.get(index).filter(|s| s.failed.is_none())
            && side.to.send(one_line(text.into())).await.is_ok()
        {
            self.own.insert(id, (tx, index));
        }
        rx
    }

    /// Answers of our own requests, in any order, while everything else goes on. `None` for a member that gave none.
    async fn gather(
        &mut self,
        asked: Vec<(usize, oneshot::Receiver<Bytes>)>,
        limit: Duration,
        end: &CancellationToken,
    ) -> Vec<(usize, Option<Bytes>)> {
        let deadline = Instant::now() + limit;
        let wait = |(index, rx): (usize, oneshot::Receiver<Bytes>)| async move { (index, rx.await.ok()) };
        let mut waiting: FuturesUnordered<_> = asked.into_iter().map(wait).collect();
        let mut all = Vec::new();
        while !waiting.is_empty() {
            tokio::select! {
                () = end.cancelled() => break,
                Some(answer) = waiting.next() => all.push(answer),
                Some((side, message)) = self.from_members.recv() => self.heard_member(side, message).await,
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        all.sort_by_key(|(index, _)| *index);
        all
    }

    async fn initialize(&mut self, head: &Head<'_>, id: &str, end: &CancellationToken) {
        let params = head.params.map_or("{}", RawValue::get);
        let mut asked = Vec::new();
        for index in 0..self.sides.len() {
            asked.push((index, self.ask(index, "initialize", params).await));
        }
        let answers = self.gather(asked, GREET, end).await;
        let mut instructions = Vec::new();
        for (index, answer) in answers {
            let Some(side) = self.sides.get_mut(index) else { continue };
            let head = answer.as_ref().and_then(|a| jsonrpc::parse_one(a).ok());
            let greeting = head.as_ref().and_then(|h| serde_json::from_str::<Greeting<'_>>(h.result?.get()).ok());
            match greeting {
                Some(greeting) => {
                    let words = greeting.instructions.and_then(jsonrpc::string);
                    instructions.extend(words.map(|words| format!("{}: {words}", side.name)));
                    side.capabilities = Some(greeting.capabilities.unwrap_or_default());
                }
                None => {
                    let said = head.and_then(|h| h.error).map_or("it did not answer", RawValue::get);
                    side.failed.get_or_insert_with(|| said.chars().take(300).collect());
                }
            }
        }
        // who did not answer in time takes no part
        for side in self.sides.iter_mut().filter(|s| s.capabilities.is_none()) {
            side.failed.get_or_insert_with(|| "it did not answer in time".into());
        }
        if self.sides.iter().all(|s| s.failed.is_some()) {
            let why: Vec<String> = self.failures().map(|(name, why)| format!("{name}: {why}")).collect();
            return self
                .say(failure(id, -31502, &format!("no member of the bundle answers: {}", why.join("; "))))
                .await;
        }
        instructions.extend(self.failures().map(|(name, _)| format!("{name}: not available now")));
        let asked = Params::read(head.params).protocol_version.and_then(jsonrpc::string).unwrap_or_default();
        let newest = LEGACY.last().copied().unwrap_or_default();
        let version = LEGACY.iter().find(|v| **v == asked).copied().unwrap_or(newest);
        let greeting = serde_json::json!({
            "protocolVersion": version,
            "capabilities": self.capabilities(),
            "serverInfo": {"name": self.name, "version": env!("CARGO_PKG_VERSION")},
            "instructions": instructions.join("\n\n"),
        });
        self.say(result(id, &greeting.to_string())).await;
    }

    fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.sides.iter().filter_map(|s| Some((s.name.as_str(), s.failed.as_deref()?)))
    }

    /// What any member can do.
    fn capabilities(&self) -> Value {
        let mut all = serde_json::Map::new();
        for known in ["tools", "prompts", "resources", "logging", "completions"] {
            let of = self.sides.iter().filter_map(|s| s.capabilities.as_ref()?.get(known)?.as_object());
            let mut joined: Option<serde_json::Map<String, Value>> = None;
            for one in of {
                let joined = joined.get_or_insert_default();
                for (key, value) in one {
                    if value != &Value::Bool(false) {
                        joined.insert(key.clone(), value.clone());
                    }
                }
            }
            all.extend(joined.map(|joined| (known.to_owned(), Value::Object(joined))));
        }
        Value::Object(all)
    }

    /// A list of all members' items, whole: their pages are read to the end.
    async fn list(&mut self, method: &str, key: &str, kind: names::Kind, id: &str, end: &CancellationToken) {
        let capability = method.split('/').next().unwrap_or_default().to_owned();
        let mut items: Vec<(usize, String)> = Vec::new();
        let mut failed: Vec<(usize, String)> = Vec::new();
        let mut next: Vec<(usize, Option<String>)> = self.capable(&capability).into_iter().map(|i| (i, None)).collect();
        for _ in 0..PAGES {
            let mut asked = Vec::new();
            for (index, cursor) in std::mem::take(&mut next) {
                let params = cursor.map_or_else(|| "{}".into(), |c| format!("{{\"cursor\":{}}}", jsonrpc::quote(&c)));
                asked.push((index, self.ask(index, method, &params).await));
            }
            let expected: Vec<usize> = asked.iter().map(|(index, _)| *index).collect();
            let answers = self.gather(asked, LIST, end).await;
            for index in expected.iter().filter(|i| !answers.iter().any(|(index, _)| index == *i)) {
                failed.push((*index, "it did not answer in time".into()));
            }
            for (index, answer) in answers {
                let name = self.sides.get(index).map_or("", |s| s.name.as_str());
                match answer.as_ref().map(|a| page(name, a, key, kind)) {
                    Some(Ok((found, cursor))) => {
                        items.extend(found.into_iter().map(|item| (index, item)));
                        next.extend(cursor.map(|cursor| (index, Some(cursor))));
                    }
                    Some(Err(why)) => failed.push((index, why)),
                    None => failed.push((index, "it ended".into())),
                }
            }
            if next.is_empty() {
                break;
            }
        }
        items.sort_by_key(|(index, _)| *index);
        let items: Vec<&str> = items.iter().map(|(_, item)| item.as_str()).collect();
        let mut out: Vec<(&str, String)> = self.failures().map(|(name, why)| (name, why.to_owned())).collect();
        out.extend(failed.into_iter().filter_map(|(i, why)| Some((self.sides.get(i)?.name.as_str(), why))));
        let meta = if out.is_empty() {
            String::new()
        } else {
            let out = out.iter().map(|(name, why)| (*name, Value::from(why.as_str())));
            let out: serde_json::Map<String, Value> = out.map(|(name, why)| (name.to_owned(), why)).collect();
            format!(",\"_meta\":{{\"sigil/unavailable\":{}}}", Value::Object(out))
        };
        self.say(result(id, &format!("{{\"{key}\":[{}]{meta}}}", items.join(",")))).await;
    }

    /// A request about something of one member.
    async fn pass(&mut self, head: &Head<'_>, id: &str) {
        let reference = head.params.and_then(|p| serde_json::from_str::<Reference<'_>>(p.get()).ok());
        let target = match head.method.as_ref() {
            "completion/complete" => reference.map(|r| r.r#ref),
            _ => head.params,
        };
        let target = target.and_then(|p| serde_json::from_str::<Target<'_>>(p.get()).ok());
        let by_uri = head.method.starts_with("resources/") || target.as_ref().is_some_and(|t| t.name.is_none());
        let found = target.and_then(|target| {
            let raw = if by_uri { target.uri? } else { target.name? };
            let text = jsonrpc::string(raw)?.into_owned();
            let (member, own) = if by_uri { names::split_uri(&text)? } else { names::split(&text)? };
            let index = self.sides.iter().position(|s| s.name == member)?;
            Some((index, raw, own.to_owned(), text))
        });
        let Some((index, raw, own, _)) = found else {
            let known = matches!(
                head.method.as_ref(),
                "tools/call"
                    | "prompts/get"
                    | "resources/read"
                    | "resources/subscribe"
                    | "resources/unsubscribe"
                    | "completion/complete"
            );
            let (code, message) = if known {
                (-32602, "no member of the bundle has that name: lists say what there is, as <deployment>__<name>")
            } else {
                (-32601, "a bundle has no such method")
            };
            return self.say(failure(id, code, message)).await;
        };
        let Some(side) = self.sides.get(index) else { return };
        if let Some(why) = &side.failed {
            return self.say(failure(id, -31502, &format!("'{}' is not available: {why}", side.name))).await;
        }
        let Some(message) = jsonrpc::splice(head.text, &[(raw.get(), &jsonrpc::quote(&own))]) else { return };
        if side.to.send(one_line(message.into())).await.is_err() {
            return self.say(failure(id, -31502, &format!("'{}' has ended", side.name))).await;
        }
        if let Some(id) = &head.id {
            self.under_way.insert(id.clone(), index);
        }
    }

    /// The client's answer to a member's question.
    async fn answered(&mut self, head: &Head<'_>) {
        let Some(Id::Str(id)) = &head.id else { return };
        let Some((index, own)) = self.questions.remove(id) else { return };
        let (Some(side), Some(raw)) = (self.sides.get(index), head.id_text) else { return };
        if let Some(message) = jsonrpc::splice(head.text, &[(raw, &own)]) {
            side.to.send(one_line(message.into())).await.ok();
        }
    }

    async fn heard_member(&mut self, index: usize, message: Option<Bytes>) {
        let Some(message) = message else { return self.ended(index).await };
        let Ok(head) = jsonrpc::parse_one(&message) else { return };
        let name = self.sides.get(index).map(|s| s.name.clone()).unwrap_or_default();
        match head.kind {
            Kind::Response => {
                if let Some(Id::Str(own)) = &head.id
                    && self.own.get(own).is_some_and(|(_, of)| *of == index)
                {
                    if let Some((tx, _)) = self.own.remove(own) {
                        tx.send(message.clone()).ok();
                    }
                    return;
                }
                let Some(id) = &head.id else {
                    // the last words of a member that could not be reached
                    let said = head.error.map_or_else(String::new, |e| e.get().chars().take(300).collect());
                    if let Some(side) = self.sides.get_mut(index) {
                        side.failed.get_or_insert(said);
                    }
                    return;
                };
                if self.under_way.get(id) == Some(&index) {
                    self.under_way.remove(id);
                    let shown = head.result.and_then(|result| names::answer(&name, head.text, result));
                    self.say(shown.map_or_else(|| message.clone(), Bytes::from)).await;
                }
            }
            Kind::Request if head.method == "ping" => {
                if let Some(side) = self.sides.get(index) {
                    side.to.send(result(head.id_text.unwrap_or("null"), "{}")).await.ok();
                }
            }
            Kind::Request => {
                self.number += 1;
                let id = format!("sigil-{}", self.number);
                let raw = head.id_text.unwrap_or("null");
                if let Some(asked) = jsonrpc::splice(head.text, &[(raw, &jsonrpc::quote(&id))]) {
                    self.questions.insert(id, (index, raw.to_owned()));
                    self.say(asked.into()).await;
                }
            }
            Kind::Notification => {
                let uri = Params::read(head.params).uri.filter(|_| head.method == "notifications/resources/updated");
                let shown = uri.and_then(|raw| {
                    let own = names::prefixed_uri(&name, &jsonrpc::string(raw)?);
                    jsonrpc::splice(head.text, &[(raw.get(), &jsonrpc::quote(&own))])
                });
                self.say(shown.map_or_else(|| message.clone(), Bytes::from)).await;
            }
        }
    }

    /// A member is out: what it was asked fails, everything else goes on.
    async fn ended(&mut self, index: usize) {
        let Some(side) = self.sides.get_mut(index) else { return };
        let why = side.failed.get_or_insert_with(|| "its conversation ended".into()).clone();
        let name = side.name.clone();
        side.capabilities = None;
        self.own.retain(|_, (_, of)| *of != index);
        self.questions.retain(|_, (of, _)| *of != index);
        let lost: Vec<Id> = self.under_way.iter().filter(|(_, of)| **of == index).map(|(id, _)| id.clone()).collect();
        for id in lost {
            self.under_way.remove(&id);
            let text = format!("'{name}' ended before it answered: {why}");
            self.say(failure(&id.to_json(), -31502, &text)).await;
        }
        // what was offered is not any more
        let changed = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
        self.say(Bytes::from_static(changed.as_bytes())).await;
    }
}

/// The items of a page under the bundle's names, and the next page's cursor.
fn page(member: &str, answer: &[u8], key: &str, kind: names::Kind) -> Result<(Vec<String>, Option<String>), String> {
    let head = jsonrpc::parse_one(answer).map_err(|e| e.to_string())?;
    let Some(result) = head.result else {
        return Err(head.error.map_or_else(String::new, |e| e.get().chars().take(300).collect()));
    };
    let fields: HashMap<String, &RawValue> = serde_json::from_str(result.get()).map_err(|e| e.to_string())?;
    let raws = fields.get(key).and_then(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok());
    let items = raws.ok_or_else(|| format!("its answer has no {key}"))?;
    let cursor = fields.get("nextCursor").and_then(|raw| jsonrpc::string(raw)).map(std::borrow::Cow::into_owned);
    Ok((items.into_iter().filter_map(|raw| names::item(member, kind, raw)).collect(), cursor))
}
