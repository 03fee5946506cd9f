//! What is remembered of a release's server, in files that outlive the agent: which era it speaks, and the lists that it
//! said everybody may keep. While none of its replicas is ready, these are answered in its place (2026-07-28,
//! server/utilities/caching).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use hyper::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sigil_core::jsonrpc::{self, Head, Id, Kind, Params};
use sigil_core::model::{DeploymentId, ReleaseNo, Transport};

use super::Shared;
use super::body::Out;
use super::bridged::json;
use super::cache::Cache;
use super::client::Client;
use super::cross;
use super::error::Refusal;
use super::mask::Masks;
use super::modern;
use super::plain::accepts;
use super::serve::Asked;
use super::table::{Entry, Live, Table};
use super::wrap::Wrapped;
use crate::upstream::{Endpoint, http, sse};

/// Longest list kept, bytes.
const LIST_MAX: usize = 1 << 20;
/// Answers kept of a release: pages, and for servers of the older era one for each kind of client. Beyond that the oldest
/// goes.
const LISTS_MAX: usize = 64;
/// Begins what was asked by a handshake.
const HELLO: &str = "initialize ";
/// Begins what was asked within a session of the older era.
const OLDER: &str = "older ";
/// Longest cursor and capabilities by which a list is kept, bytes.
const ASKED_MAX: usize = 4 << 10;

/// Which era a server turned out to speak; `None` is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// It serves stateless requests.
    pub(crate) stateless: Option<bool>,
    /// It refused a handshake, and serves stateless requests.
    pub(crate) no_handshake: bool,
}

/// A list as its server said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Said {
    /// The result's own text.
    result: String,
    /// When, milliseconds since 1970.
    at: i64,
    /// How long it may be used, milliseconds; `None`: as long as the release, its server being one of the older era that
    /// has no words for it.
    life: Option<i64>,
    /// The answer to a handshake came with a session.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    session: bool,
}

/// A server's answer to a handshake.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// The result's own text.
    pub(crate) result: String,
    /// It has sessions.
    pub(crate) sessions: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Release {
    known: Known,
    /// By what was asked.
    lists: BTreeMap<String, Said>,
}

impl Release {
    /// True: there were some.
    fn forget_lists(&mut self) -> bool {
        let before = self.lists.len();
        self.lists.retain(|asked, _| asked.starts_with(HELLO));
        self.lists.len() != before
    }
}

type Releases = BTreeMap<ReleaseNo, Release>;

#[derive(Debug, Default)]
struct Memory {
    all: HashMap<DeploymentId, Releases>,
    /// Not yet in its file.
    changed: HashSet<DeploymentId>,
}

/// What is remembered of all servers.
#[derive(Debug)]
pub(crate) struct Remembered {
    dir: PathBuf,
    memory: Mutex<Memory>,
    /// Answers of tools, and what is known of these: not written down.
    pub(crate) answers: Cache,
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

impl Remembered {
    /// Reads `<data>/remembered`. What cannot be read is forgotten: the servers will say it again.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let dir = data_dir.join("remembered");
        let mut memory = Memory::default();
        for file in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = file.path();
            let id = path.file_stem().and_then(|name| name.to_str()?.parse().ok());
            let read = || serde_json::from_slice(&std::fs::read(&path).ok()?).ok();
            match (id, read()) {
                (Some(id), Some(releases)) => drop(memory.all.insert(id, releases)),
                _ => tracing::warn!(file = %path.display(), "what was remembered of a server cannot be read"),
            }
        }
        Self { dir, memory: Mutex::new(memory), answers: Cache::default() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn of(&self, endpoint: &Endpoint) -> Known {
        let memory = self.memory();
        let release = memory.all.get(&endpoint.deployment).and_then(|all| all.get(&endpoint.release));
        release.map(|release| release.known).unwrap_or_default()
    }

    fn learn(&self, deployment: DeploymentId, release: ReleaseNo, change: impl FnOnce(&mut Release) -> bool) {
        let memory = &mut *self.memory();
        if change(memory.all.entry(deployment).or_default().entry(release).or_default()) {
            memory.changed.insert(deployment);
        }
    }

    pub(crate) fn learn_stateless(&self, endpoint: &Endpoint, stateless: bool) {
        self.learn(endpoint.deployment, endpoint.release, |release| {
            release.known.stateless.replace(stateless) != Some(stateless)
        });
    }

    pub(crate) fn learn_no_handshake(&self, endpoint: &Endpoint) {
        self.learn(endpoint.deployment, endpoint.release, |release| {
            !std::mem::replace(&mut release.known.no_handshake, true)
        });
    }

    /// Whether handshakes are vain with what serves now.
    pub(crate) fn no_handshake(&self, entry: &Entry) -> bool {
        entry.ready.first().is_some_and(|live| self.of(&live.endpoint).no_handshake)
    }

    /// Keeps a list for everybody who asks the same.
    fn keep(&self, place: &Place, result: &RawValue) {
        let said = said(result, place.translated).map(|said| Said { session: place.session, ..said });
        self.learn(place.deployment, place.release, |release| {
            let Some(said) = said else { return release.lists.remove(&place.asked).is_some() };
            if release.lists.len() >= LISTS_MAX
                && !release.lists.contains_key(&place.asked)
                && let Some(oldest) =
                    release.lists.iter().min_by_key(|(_, said)| said.at).map(|(asked, _)| asked.clone())
            {
                release.lists.remove(&oldest);
            }
            let same = |old: &Said| {
                let young = old.life.is_none() || said.at - old.at < 1000;
                old.result == said.result && old.session == said.session && young
            };
            if release.lists.get(&place.asked).is_some_and(same) {
                return false;
            }
            release.lists.insert(place.asked.clone(), said);
            true
        });
    }

    /// A list that may still be used, as the answer to a request with this id.
    fn answer(&self, entry: &Entry, asked: &str, id: &str) -> Option<Bytes> {
        let memory = self.memory();
        let said = memory.all.get(&entry.id)?.get(&entry.release?)?.lists.get(asked)?;
        let result = match said.life {
            None => said.result.clone(),
            Some(life) => {
                // as old as it is: the client's own cache must not make it live longer
                let left = said.at + life - now();
                let ttl = Hints::read(&said.result)?.ttl?;
                (0 < left && left <= life)
                    .then(|| jsonrpc::splice(&said.result, &[(ttl.get(), &left.to_string())]))??
            }
        };
        Some(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}").into())
    }

    /// Pages of a release's list of tools that may still be used, by their server's own word.
    pub(crate) fn tools(&self, deployment: DeploymentId, release: ReleaseNo) -> Vec<String> {
        let memory = self.memory();
        let lists = memory.all.get(&deployment).and_then(|all| all.get(&release)).map(|release| &release.lists);
        let fresh = |said: &Said| said.life.is_some_and(|life| (said.at..said.at + life).contains(&now()));
        let pages = lists.into_iter().flatten().filter(|(asked, said)| asked.starts_with("tools/list ") && fresh(said));
        pages.map(|(_, said)| said.result.clone()).collect()
    }

    /// What a release's server answered to a handshake with these parameters.
    pub(crate) fn greeting(&self, deployment: DeploymentId, release: ReleaseNo, hello: &str) -> Option<Greeting> {
        let memory = self.memory();
        let said = memory.all.get(&deployment)?.get(&release)?.lists.get(&format!("{HELLO}{hello}"))?;
        Some(Greeting { result: said.result.clone(), sessions: said.session })
    }

    /// It answers otherwise now.
    pub(crate) fn forget_greeting(&self, deployment: DeploymentId, release: ReleaseNo, hello: &str) {
        self.learn(deployment, release, |release| release.lists.remove(&format!("{HELLO}{hello}")).is_some());
    }

    /// What a release's server answered to this request in a session that had begun with `hello`, and with nothing else
    /// since.
    pub(crate) fn older_list(
        &self,
        deployment: DeploymentId,
        release: ReleaseNo,
        head: &Head<'_>,
        hello: &str,
    ) -> Option<String> {
        let memory = self.memory();
        let said = memory.all.get(&deployment)?.get(&release)?.lists.get(&older_key(head, hello)?)?;
        Some(said.result.clone())
    }

    /// The server says that its lists are others now.
    pub(crate) fn forget_lists(&self, endpoint: &Endpoint) {
        self.answers.forget(endpoint.deployment);
        self.learn(endpoint.deployment, endpoint.release, Release::forget_lists);
    }

    /// One of a deployment's servers says so.
    pub(crate) fn forget_all_lists(&self, deployment: DeploymentId) {
        self.answers.forget(deployment);
        let memory = &mut *self.memory();
        let releases = memory.all.get_mut(&deployment).into_iter().flat_map(BTreeMap::values_mut);
        if releases.fold(false, |any, release| release.forget_lists() || any) {
            memory.changed.insert(deployment);
        }
    }

    /// Forgets releases that nobody runs or will run.
    pub(crate) fn prune(&self, table: &Table) {
        if !table.known {
            return;
        }
        let memory = &mut *self.memory();
        for (id, releases) in &mut memory.all {
            let Some(entry) = table.by_id.get(id) else {
                releases.clear();
                memory.changed.insert(*id);
                continue;
            };
            let runs = |no: &ReleaseNo| {
                entry.release == Some(*no)
                    || entry.ready.iter().chain(&entry.draining).any(|live| live.endpoint.release == *no)
            };
            let before = releases.len();
            releases.retain(|no, _| runs(no));
            if releases.len() != before {
                memory.changed.insert(*id);
            }
        }
        memory.all.retain(|_, releases| !releases.is_empty());
    }

    /// Writes what changed. Blocks.
    pub(crate) fn save(&self) {
        let changed: Vec<(DeploymentId, Option<Releases>)> = {
            let memory = &mut *self.memory();
            memory.changed.drain().map(|id| (id, memory.all.get(&id).cloned())).collect()
        };
        if changed.is_empty() {
            return;
        }
        let write = |id: DeploymentId, releases: Option<Releases>| {
            let path = self.dir.join(format!("{id}.json"));
            match releases {
                Some(releases) => {
                    std::fs::create_dir_all(&self.dir)?;
                    crate::store::replace_file(&path, &serde_json::to_vec(&releases)?, None)
                }
                None => match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                },
            }
        };
        for (id, releases) in changed {
            if let Err(error) = write(id, releases) {
                tracing::warn!(%error, dir = %self.dir.display(), "what is known of a server cannot be written down");
            }
        }
    }
}

/// What a server says of how a result may be kept.
#[derive(Deserialize)]
struct Hints<'a> {
    #[serde(borrow, default, rename = "ttlMs")]
    ttl: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "cacheScope")]
    scope: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "resultType")]
    kind: Option<&'a RawValue>,
}

impl<'a> Hints<'a> {
    fn read(result: &'a str) -> Option<Self> {
        serde_json::from_str(result).ok()
    }
}

/// A result for keeping; `None`: it is not to be kept.
fn said(result: &RawValue, translated: bool) -> Option<Said> {
    let hints = Hints::read(result.get())?;
    let text = |raw: Option<&'_ RawValue>| raw.and_then(|raw| jsonrpc::string(raw).map(|text| text.into_owned()));
    if result.get().len() > LIST_MAX || text(hints.kind).is_some_and(|kind| kind != "complete") {
        return None;
    }
    let life = if translated {
        None
    } else {
        let life = hints.ttl.and_then(|ttl| ttl.get().parse::<i64>().ok()).filter(|life| *life > 0)?;
        (text(hints.scope)? == "public").then_some(())?;
        Some(life.min(i64::from(u32::MAX)))
    };
    Some(Said { result: result.get().to_owned(), at: now(), life, session: false })
}

/// Where a list is kept.
#[derive(Debug)]
struct Place {
    deployment: DeploymentId,
    release: ReleaseNo,
    asked: String,
    /// The server is of the older era.
    translated: bool,
    /// The answer came with a session.
    session: bool,
}

/// Whether a stateless request asks for something that may be kept here.
pub(crate) fn is_list(head: &Head<'_>) -> bool {
    head.kind == Kind::Request && matches!(head.method.as_ref(), "tools/list" | "server/discover")
}

/// Whether a request within a session of the older era asks for something that may be kept here.
pub(crate) fn is_older_list(head: &Head<'_>) -> bool {
    let lists = ["tools/list", "prompts/list", "resources/templates/list"];
    head.kind == Kind::Request && lists.contains(&head.method.as_ref())
}

/// By what such a list is kept.
fn older_key(head: &Head<'_>, hello: &str) -> Option<String> {
    let key = format!("{OLDER}{} {} {hello}", head.method, cursor(head)?);
    (key.len() <= ASKED_MAX).then_some(key)
}

/// Which page a request asks for.
fn cursor<'h>(head: &Head<'h>) -> Option<&'h str> {
    #[derive(Deserialize, Default)]
    struct Page<'a> {
        #[serde(borrow, default)]
        cursor: Option<&'a RawValue>,
    }
    let page: Page<'_> = head.params.map(|p| serde_json::from_str(p.get())).transpose().ok()?.unwrap_or_default();
    Some(page.cursor.map_or("", RawValue::get))
}

/// By what a list is kept: a server of the older era shows each kind of client its own.
fn key(head: &Head<'_>, translated: bool) -> Option<String> {
    let cursor = cursor(head)?;
    let capabilities = translated.then(|| {
        let meta = jsonrpc::Meta::read(Params::read(head.params).meta);
        meta.client_capabilities.map_or_else(|| "{}".to_owned(), |c| c.get().to_owned())
    });
    let key = format!("{} {cursor} {}", head.method, capabilities.unwrap_or_default());
    (key.len() <= ASKED_MAX).then_some(key)
}

/// The answer to a request for a list while nobody else can give it.
pub(crate) fn recall(shared: &Shared, asked: &Asked<'_>, head: &Head<'_>) -> Option<Result<Response<Out>, Refusal>> {
    let entry = asked.entry;
    // one that sleeps sleeps on, frozen or stopped
    let away = !entry.recorder.nap.is_awake() || entry.ready.is_empty();
    if !away || !entry.expected || !accepts(asked.headers, "text/event-stream") {
        return None;
    }
    let find = |translated: bool| {
        // the older era's servers may show each client of theirs something else
        if translated && (!cross::translates(shared) || !Client::of(asked, entry).carries_nothing()) {
            return None;
        }
        shared.remembered.answer(entry, &key(head, translated)?, head.id_text.unwrap_or("null"))
    };
    let text = find(false).or_else(|| find(true))?;
    if let Err(refusal) = modern::check(asked.headers, head) {
        return Some(Err(refusal));
    }
    shared.counters.recalled.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    tracing::debug!(deployment = asked.name, method = %head.method, "answered from what the server said before");
    Some(Ok(json(text)))
}

/// The answer to a request for a list, kept on its way out.
pub(crate) fn watch(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    head: &Head<'_>,
    response: Response<Out>,
) -> Response<Out> {
    let Ok(entry) = shared.table.borrow().by_id.get(&asked.entry.id).cloned().ok_or(()) else { return response };
    let Some(Live { endpoint, .. }) = entry.ready.first().filter(|_| response.status() == StatusCode::OK) else {
        return response;
    };
    // another release took over meanwhile: whose answer it is, is not known
    if asked.entry.ready.first().is_some_and(|was| was.endpoint.release != endpoint.release) {
        return response;
    }
    let older = || shared.remembered.of(endpoint).stateless == Some(false);
    let translated = endpoint.spec.transport == Transport::Sse || older();
    if translated && !Client::of(asked, &entry).carries_nothing() {
        return response;
    }
    let Some(asked) = key(head, translated) else { return response };
    let place = Place { deployment: entry.id, release: endpoint.release, asked, translated, session: false };
    learning(shared, &entry, place, head, response)
}

/// The answer to a handshake, kept on its way out for others who say the same.
pub(crate) fn watch_greeting(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    head: &Head<'_>,
    response: Response<Out>,
) -> Response<Out> {
    let Some(entry) = shared.table.borrow().by_id.get(&asked.entry.id).cloned() else { return response };
    let release = entry.ready.first().map(|live| live.endpoint.release);
    let alone = entry.ready.iter().all(|live| Some(live.endpoint.release) == release);
    let hello = head.params.map(RawValue::get).filter(|hello| hello.len() <= ASKED_MAX);
    let (Some(release), Some(hello), true) = (release.filter(|_| alone), hello, response.status() == StatusCode::OK)
    else {
        return response;
    };
    if !Client::of(asked, &entry).carries_nothing() {
        return response;
    }
    let session = response.headers().contains_key("mcp-session-id");
    let place = Place { deployment: entry.id, release, asked: format!("{HELLO}{hello}"), translated: true, session };
    learning(shared, &entry, place, head, response)
}

/// A list within a session that began with `hello`, and in which nothing else was said since.
pub(crate) fn watch_older(
    shared: &Arc<Shared>,
    entry: &Entry,
    release: ReleaseNo,
    head: &Head<'_>,
    hello: &str,
    response: Response<Out>,
) -> Response<Out> {
    let Some(asked) = older_key(head, hello).filter(|_| response.status() == StatusCode::OK) else { return response };
    let place = Place { deployment: entry.id, release, asked, translated: true, session: false };
    learning(shared, entry, place, head, response)
}

fn learning(
    shared: &Arc<Shared>,
    entry: &Entry,
    place: Place,
    head: &Head<'_>,
    response: Response<Out>,
) -> Response<Out> {
    let learning = Learning {
        remembered: shared.remembered.clone(),
        place,
        id: head.id.clone(),
        events: http::is_event_stream(response.headers()),
        kept: BytesMut::new(),
        too_long: false,
        masks: entry.masks.clone(),
    };
    response.map(|out| Out::Wrapped(Box::new(Wrapped::new(out, None, Vec::new(), None).learning(learning))))
}

/// Reads an answer as it goes by; what it says is kept when it has gone by.
#[derive(Debug)]
pub(crate) struct Learning {
    remembered: Arc<Remembered>,
    place: Place,
    id: Option<Id>,
    events: bool,
    kept: BytesMut,
    too_long: bool,
    /// No secret is written down.
    masks: Option<Arc<Masks>>,
}

impl Learning {
    pub(crate) fn push(&mut self, data: &[u8]) {
        if self.kept.len() + data.len() > LIST_MAX + ASKED_MAX {
            self.too_long = true;
            self.kept.clear();
        } else if !self.too_long {
            self.kept.extend_from_slice(data);
        }
    }

    fn learn(&self, message: &[u8]) {
        let starred = self.masks.as_ref().and_then(|masks| masks.starred(message));
        let message = starred.as_deref().unwrap_or(message);
        // an answer that broke off is no JSON
        if let Ok(Head { result: Some(result), id, .. }) = jsonrpc::parse_one(message)
            && id == self.id
        {
            self.remembered.keep(&self.place, result);
        }
    }
}

impl Drop for Learning {
    fn drop(&mut self) {
        if !self.events {
            return self.learn(&self.kept);
        }
        let mut events = Vec::new();
        if sse::Parser::default().push(&self.kept, &mut events).is_ok() {
            events.iter().for_each(|event| self.learn(event.data.as_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::table::tests::entry;
    use crate::gateway::tests::fixture::endpoint;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn an_era_is_known_while_its_release_is_there_and_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let remembered = Remembered::open(dir.path());
        let (one, other) = (endpoint(Transport::Http, 1, &[]), endpoint(Transport::Http, 1, &[]));
        assert_eq!(remembered.of(&one), Known::default());
        remembered.learn_stateless(&one, true);
        remembered.learn_no_handshake(&one);
        let both = Known { stateless: Some(true), no_handshake: true };
        assert_eq!((remembered.of(&one), remembered.of(&other)), (both, Known::default()));
        remembered.save();
        assert_eq!(Remembered::open(dir.path()).of(&one), both);
        // a new agent knows no deployments at first
        remembered.prune(&Table::default());
        assert_eq!(remembered.of(&one), both);
        let stays = Entry { id: one.deployment, release: Some(one.release), ..entry("time", "{}") };
        remembered.prune(&Table::new([stays], true));
        assert_eq!(remembered.of(&one), both);
        remembered.prune(&Table::new([], true));
        assert_eq!(remembered.of(&one), Known::default());
        remembered.save();
        assert_eq!(Remembered::open(dir.path()).of(&one), Known::default());
    }

    #[test]
    fn only_what_everybody_may_keep_is_kept_and_only_as_long() {
        let life = |text: &str| said(&raw(text), false).and_then(|said| said.life);
        assert_eq!(life(r#"{"ttlMs":60000,"cacheScope":"public","tools":[]}"#), Some(60_000));
        assert_eq!(life(r#"{"ttlMs":60000,"cacheScope":"private","tools":[]}"#), None);
        assert_eq!(life(r#"{"ttlMs":60000,"tools":[]}"#), None);
        assert_eq!(life(r#"{"ttlMs":0,"cacheScope":"public","tools":[]}"#), None);
        assert_eq!(life(r#"{"cacheScope":"public","tools":[]}"#), None);
        assert_eq!(life(r#"{"resultType":"input_required","ttlMs":1,"cacheScope":"public"}"#), None);
        assert_eq!(said(&raw(r#"{"ttlMs":0,"cacheScope":"private"}"#), true).map(|said| said.life), Some(None));

        let dir = tempfile::tempdir().unwrap();
        let remembered = Remembered::open(dir.path());
        let (deployment, release) = (DeploymentId(ulid::Ulid(1)), 3);
        let place = Place { deployment, release, asked: "tools/list".into(), translated: false, session: false };
        let entry = Entry { release: Some(release), ..entry("time", "{}") };
        remembered.keep(&place, &raw(r#"{"ttlMs": 60000,"cacheScope":"public","tools":[1]}"#));
        let text =
            |entry: &Entry| remembered.answer(entry, "tools/list", "7").map(|b| String::from_utf8(b.to_vec()).unwrap());
        let answer: serde_json::Value = serde_json::from_str(&text(&entry).unwrap()).unwrap();
        assert_eq!((&answer["id"], &answer["result"]["tools"][0]), (&7.into(), &1.into()));
        let left = answer["result"]["ttlMs"].as_i64().unwrap();
        assert!((50_000..=60_000).contains(&left), "{left}");
        assert_eq!(text(&Entry { release: Some(4), ..super::tests::entry("time", "{}") }), None);
        // it grows old
        remembered.learn(deployment, release, |r| {
            r.lists.values_mut().for_each(|said| said.at -= 60_000);
            true
        });
        assert_eq!(text(&entry), None);
        // what the server no longer lets everybody keep is forgotten at once
        remembered.keep(&place, &raw(r#"{"ttlMs":60000,"cacheScope":"public","tools":[2]}"#));
        assert!(text(&entry).is_some());
        remembered.keep(&place, &raw(r#"{"ttlMs":60000,"cacheScope":"private","tools":[2]}"#));
        assert_eq!(text(&entry), None);
    }
}
