//! Session configuration: what a caller gives with its address and headers is checked when a session begins, kept while
//! it lasts, and handed to the server as its kind takes it: as query and headers over HTTP, as command and environment of a
//! process of its own over stdio. Deployments without a schema have none of this.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use sigil_config::manifest::session::{Checker, Given, Upstream, Wrong, canonical};
use sigil_core::jsonrpc;
use sigil_core::model::{InstanceId, SessionConfig, Transport};
use sigil_core::session::Ticket;

use super::Shared;
use super::caller::Caller;
use super::error::Refusal;
use super::oauth::Address;
use super::proxy::{inject_headers, target};
use super::table::{Entry, Live};
use crate::upstream::Endpoint;
use crate::upstream::streamable::Carried;

/// Configurations of sessions that are kept; beyond that the one unused for longest is forgotten, and read again from
/// its client's next request.
const KEPT: usize = 1024;
/// What a schema is called below its server's address.
pub(crate) const WELL_KNOWN: &str = "/.well-known/mcp-config";

/// What callers of a deployment may set. Compiled when somebody first does.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) config: SessionConfig,
    checker: OnceLock<Option<Checker>>,
}

impl Terms {
    /// The terms of a schema; the old ones while they are the same.
    pub(crate) fn of(config: Option<&SessionConfig>, old: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        let config = config?;
        let old = old.filter(|old| old.config == *config).cloned();
        Some(old.unwrap_or_else(|| Arc::new(Self { config: config.clone(), checker: OnceLock::new() })))
    }

    fn checker(&self) -> Result<&Checker, Refusal> {
        let checker = self.checker.get_or_init(|| match Checker::new(&self.config.schema, &self.config.fixed) {
            Ok(checker) => Some(checker),
            Err(error) => {
                tracing::error!(error, "the schema of a deployment's configuration cannot be used");
                None
            }
        });
        let none =
            || Refusal::overloaded("the schema of this server's configuration cannot be used", "deploy it again");
        checker.as_ref().ok_or_else(none)
    }

    /// The schema as callers may see it.
    pub(crate) fn schema(&self, address: &Address) -> Result<String, Refusal> {
        let mut schema = self.checker()?.shown();
        if let serde_json::Value::Object(map) = &mut schema {
            map.insert("$id".into(), link(address).into());
        }
        Ok(schema.to_string())
    }

    /// The configuration of a caller that gives none, and why that is not enough for calls.
    pub(crate) fn unasked(&self) -> Result<(Settings, Option<Refusal>), Refusal> {
        let checker = self.checker()?;
        Ok(match checker.read("", |_| None) {
            Ok(given) => (Settings::new(checker, given), None),
            Err(wrong) => {
                let given = Given { values: self.config.stand_in.clone(), own: false, encoded: false };
                (Settings::new(checker, given), Some(refusal(&wrong, None)))
            }
        })
    }
}

/// The configuration of one session.
pub(crate) struct Settings {
    given: Given,
    upstream: Upstream,
    /// Headers that may hold some of it: only what was checked reaches the server.
    taken: Vec<HeaderName>,
    /// Tells it from others; the same for the same values.
    pub(crate) digest: [u8; 16],
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Settings")
    }
}

impl Settings {
    fn new(checker: &Checker, given: Given) -> Self {
        let upstream = checker.upstream(&given.values, given.encoded);
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        };
        // the same values reach servers of another schema in another way
        add(if given.own { "own" } else { "" });
        add(&canonical(&given.values));
        add(&upstream.query);
        for (name, value) in &upstream.headers {
            add(name);
            add(value);
        }
        checker.headers().for_each(&mut add);
        let mut digest = [0; 16];
        digest.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
        let taken = checker.headers().filter_map(|name| HeaderName::try_from(name).ok()).collect();
        Self { upstream, given, taken, digest }
    }

    /// The query that a server over HTTP gets in the place of the client's.
    pub(crate) fn query(&self) -> Option<&str> {
        Some(self.upstream.query.as_str()).filter(|query| !query.is_empty())
    }

    /// A client's headers as its server may see them.
    pub(crate) fn headers(&self, of: &HeaderMap) -> HeaderMap {
        let mut headers = of.clone();
        for name in &self.taken {
            headers.remove(name);
        }
        self.put(&mut headers);
        headers
    }

    /// Adds what goes to headers.
    pub(crate) fn put(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.upstream.headers {
            if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
    }
}

fn link(address: &Address) -> String {
    // a host of its own has its documents at its root
    let path = if address.path == "/mcp" { "" } else { address.path.as_str() };
    format!("{}{path}{WELL_KNOWN}", address.base)
}

/// Checks what somebody gives by dotted keys.
fn read(checker: &Checker, config: &BTreeMap<String, String>) -> Result<Given, Vec<Wrong>> {
    if let Some(key) = config.keys().find(|key| Checker::reserved(key)) {
        let reason = "is reserved: no server gets it from its callers".to_owned();
        return Err(vec![Wrong { param: key.clone(), pointer: format!("/{key}"), reason, received: "text" }]);
    }
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(config).finish();
    checker.read(&query, |_| None)
}

/// All that is wrong, for people, for programs, and for MCP clients, which read JSON-RPC errors.
pub(crate) fn refusal(wrong: &[Wrong], address: Option<&Address>) -> Refusal {
    let text = |w: &Wrong| format!("{} {}", if w.param.is_empty() { "the configuration" } else { &w.param }, w.reason);
    let message = wrong.iter().map(text).collect::<Vec<_>>().join("; ");
    let message = format!("the configuration of this session is not valid: {message}");
    let errors: Vec<serde_json::Value> = wrong
        .iter()
        .map(
            |w| serde_json::json!({"param": w.param, "pointer": w.pointer, "reason": w.reason, "received": w.received}),
        )
        .collect();
    let schema = address.map(link);
    let hint = match &schema {
        Some(schema) => {
            format!("give the values in the address (?server.host=x&debug=true); {schema} says which there are")
        }
        None => {
            "give the values with `sigil call --session-config KEY=VALUE`, or in the address of a call over HTTP (of a \
             bundle: ?SERVER.KEY=VALUE); `sigil deploy --config KEY=VALUE` sets them for everybody"
                .into()
        }
    };
    let member = |name: &str, value: String| format!(",\"{name}\":{value}");
    let mut problem = String::new();
    problem.push_str(&member("title", jsonrpc::quote("Invalid session configuration")));
    problem.push_str(&member("status", "422".into()));
    problem.push_str(&member("detail", jsonrpc::quote(&message)));
    if let (Some(address), Some(schema)) = (address, &schema) {
        problem.push_str(&member("instance", jsonrpc::quote(&address.path)));
        problem.push_str(&member("configSchema", jsonrpc::quote(schema)));
    }
    problem.push_str(&member("errors", serde_json::Value::from(errors).to_string()));
    problem.push_str(&member("help", jsonrpc::quote(&hint)));
    Refusal::settings(message, hint, problem)
}

/// By what tells them apart, and when each was used last.
type ByDigest = HashMap<[u8; 16], (Arc<Settings>, Instant)>;

/// What sessions were opened with, and the replicas in their form.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    settings: Mutex<ByDigest>,
    configured: Mutex<HashMap<(InstanceId, [u8; 16]), Configured>>,
}

/// A replica for one configuration.
#[derive(Debug)]
struct Configured {
    base: Arc<Endpoint>,
    live: Live,
    used: Instant,
}

impl Kept {
    fn settings(&self) -> MutexGuard<'_, ByDigest> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn configured(&self) -> MutexGuard<'_, HashMap<(InstanceId, [u8; 16]), Configured>> {
        self.configured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, digest: [u8; 16]) -> Option<Arc<Settings>> {
        let mut all = self.settings();
        let (settings, used) = all.get_mut(&digest)?;
        *used = Instant::now();
        Some(settings.clone())
    }

    fn keep(&self, settings: Settings) -> Arc<Settings> {
        let mut all = self.settings();
        if let Some((known, used)) = all.get_mut(&settings.digest) {
            *used = Instant::now();
            return known.clone();
        }
        if all.len() >= KEPT
            && let Some(oldest) = all.iter().min_by_key(|(_, (_, used))| *used).map(|(digest, _)| *digest)
        {
            all.remove(&oldest);
        }
        let settings = Arc::new(settings);
        all.insert(settings.digest, (settings.clone(), Instant::now()));
        settings
    }

    /// Everything that may have a process to sweep.
    pub(crate) fn lives(&self) -> Vec<Live> {
        self.configured().values().map(|configured| configured.live.clone()).collect()
    }

    /// Whether one of a replica's configured forms has a process of this key.
    pub(crate) fn holds(&self, instance: InstanceId, key: &str) -> bool {
        let all = self.configured();
        all.iter().any(|((of, _), configured)| *of == instance && configured.live.common.holds(key))
    }

    /// Forgets what nobody used for `idle`. A session whose configuration is forgotten reads it again.
    pub(crate) fn sweep(&self, idle: Duration) {
        self.settings().retain(|_, (_, used)| used.elapsed() < idle);
        // its processes are ended first
        self.configured().retain(|_, c| c.used.elapsed() < idle || c.live.common.any());
    }
}

impl Shared {
    /// The configuration of a request: its session's, else its own. `None`: the deployment has none.
    pub(crate) fn settle(
        &self,
        entry: &Entry,
        caller: &Caller,
        parts: &Parts,
        ticket: Option<&Ticket>,
        address: &Address,
    ) -> Result<Option<Arc<Settings>>, Box<Refusal>> {
        let Some(terms) = &entry.terms else { return Ok(None) };
        let opened = match ticket {
            Some(ticket) => match ticket.settings {
                None => return Ok(None),
                Some(digest) => Some(digest),
            },
            None if parts.method != hyper::Method::POST => return Ok(None),
            None => None,
        };
        if let Some(known) = opened.and_then(|digest| self.kept.known(digest)) {
            return Ok(Some(known));
        }
        let checker = terms.checker()?;
        let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let settings = match checker.read(parts.uri.query().unwrap_or_default(), header) {
            Ok(given) => Settings::new(checker, given),
            Err(wrong) if caller.lists_only() || opened.is_some() => {
                tracing::debug!(deployment = entry.name, flaws = wrong.len(), "a session's configuration is not given");
                let given = Given { values: terms.config.stand_in.clone(), own: false, encoded: false };
                Settings::new(checker, given)
            }
            Err(wrong) => return Err(Box::new(refusal(&wrong, Some(address)))),
        };
        if opened.is_some_and(|digest| digest != settings.digest) {
            let why = "this session's configuration was forgotten, and the request gives another one";
            return Err(Box::new(Refusal::expired(why)));
        }
        Ok(Some(self.kept.keep(settings)))
    }

    /// What is wrong with the configuration that a bundle's client gives for one member, under its names there.
    pub(crate) fn flaws(&self, entry: &Entry, config: &BTreeMap<String, String>) -> Result<Vec<Wrong>, Refusal> {
        let Some(terms) = entry.terms.as_ref().filter(|_| !config.is_empty()) else { return Ok(Vec::new()) };
        let wrong = read(terms.checker()?, config).err().unwrap_or_default();
        let param = |param: &str| {
            [entry.name.as_str(), param].into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(".")
        };
        Ok(wrong.into_iter().map(|w| Wrong { param: param(&w.param), ..w }).collect())
    }

    /// The configuration of a conversation that is not over HTTP, and why it is enough for lists, and not for calls.
    pub(crate) fn given(
        &self,
        entry: &Entry,
        config: &BTreeMap<String, String>,
    ) -> Result<(Option<Arc<Settings>>, Option<Refusal>), Refusal> {
        let name = &entry.name;
        let Some(terms) = &entry.terms else {
            let hint = "call it without any";
            let refused =
                || Refusal::settings(format!("'{name}' takes no configuration of its callers"), hint, String::new());
            return if config.is_empty() { Ok((None, None)) } else { Err(refused()) };
        };
        if config.is_empty() {
            let (settings, incomplete) = terms.unasked()?;
            return Ok((Some(Arc::new(settings)), incomplete));
        }
        let checker = terms.checker()?;
        let given = read(checker, config).map_err(|wrong| refusal(&wrong, None))?;
        Ok((Some(self.kept.keep(Settings::new(checker, given))), None))
    }

    /// [`Self::ready`], its replicas in the form that a configuration asks for.
    pub(crate) async fn ready_as(&self, name: &str, settings: Option<&Arc<Settings>>) -> Result<Arc<Entry>, Refusal> {
        let mut entry = self.ready(name).await?;
        if entry.is_away(None) {
            entry = Box::pin(self.reached(name, None)).await?;
        }
        let (Some(settings), Some(terms)) = (settings, &entry.terms) else { return Ok(entry) };
        let wanted = |live: &Live| match live.endpoint.spec.transport {
            // each request carries it
            Transport::Http => false,
            Transport::Sse => true,
            // a process as every other one will do
            Transport::Stdio => settings.given.own,
        };
        if !entry.ready.iter().any(wanted) {
            return Ok(entry);
        }
        let ready =
            entry.ready.iter().map(|live| self.configured(&entry, live, terms, settings)).collect::<Result<_, _>>();
        Ok(Arc::new(Entry { ready: ready?, ..entry.as_ref().clone() }))
    }

    fn configured(&self, entry: &Entry, live: &Live, terms: &Terms, settings: &Settings) -> Result<Live, Refusal> {
        let key = (live.endpoint.instance, settings.digest);
        let mut all = self.kept.configured();
        if let Some(kept) = all.get_mut(&key).filter(|kept| Arc::ptr_eq(&kept.base, &live.endpoint)) {
            kept.used = Instant::now();
            return Ok(kept.live.clone());
        }
        let base = &live.endpoint;
        let mut endpoint = Endpoint::like(base);
        if base.spec.transport == Transport::Sse {
            endpoint.carried = Some(Box::new(carried(base, &entry.injected, Some(settings))));
        } else {
            let started = base.spec.started_with(&terms.config, &settings.given.values).map_err(|error| {
                let hint = error.hint().to_owned();
                Refusal::settings(
                    format!("no process can be started with this configuration: {error}"),
                    hint,
                    String::new(),
                )
            })?;
            let mut spec = base.spec.as_ref().clone();
            spec.command = started.command;
            endpoint.spec = Arc::new(spec);
            let leaves = |name: &String| started.remove.contains(name) || started.env.contains_key(name);
            let mut env: Vec<_> = base.env.iter().filter(|(name, _)| !leaves(name)).cloned().collect();
            env.extend(started.env.into_iter().map(|(name, value)| (name, SecretString::from(value))));
            endpoint.env = Arc::new(env);
        }
        let made = Live { endpoint: Arc::new(endpoint), stats: live.stats.clone(), common: Arc::default() };
        if all.len() >= KEPT {
            return Err(Refusal::overloaded("too many configurations are in use at once", "try again later"));
        }
        all.insert(key, Configured { base: base.clone(), live: made.clone(), used: Instant::now() });
        Ok(made)
    }
}

/// What a connection over legacy SSE carries.
pub(crate) fn carried(
    endpoint: &Endpoint,
    injected: &[(sigil_core::model::Inject, SecretString)],
    settings: Option<&Settings>,
) -> Carried {
    let mut headers = HeaderMap::new();
    settings.iter().for_each(|settings| settings.put(&mut headers));
    inject_headers(injected, &mut headers);
    Carried { target: target(&endpoint.spec.path, settings.and_then(Settings::query), injected), headers }
}
