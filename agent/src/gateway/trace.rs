//! A request's spans: the whole of it, and the server's part; of a stream that only listens, its opening; of a batch, one
//! for all its messages; of a conversation over the link, two for each request. Names by OpenTelemetry's conventions for MCP (semantic
//! conventions for generative AI, docs/gen-ai/mcp.md). Nothing of this exists where no collector is configured.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use sigil_config::agent::TelemetryConfig;
use sigil_core::jsonrpc::{self, Head, Kind, Params};
use sigil_core::trace::{self, Context};

use super::error::Refusal;
use super::listen::Peer;
use super::modern;
use crate::telemetry::{Attribute, Began, Span, Telemetry};

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
/// Longest text of a client's in an attribute.
const LONGEST: usize = 128;
/// Longest `tracestate` (W3C trace context, 3.3.1.5).
const STATE_MAX: usize = 512;

fn short(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

/// The trace context that a message carries in `_meta` (2026-07-28; older clients that trace do the same).
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Carried<'a> {
    #[serde(borrow, default)]
    traceparent: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tracestate: Option<&'a RawValue>,
}

impl<'a> Carried<'a> {
    pub(crate) fn of(params: &Params<'a>) -> Self {
        params.meta.and_then(|meta| serde_json::from_str(meta.get()).ok()).unwrap_or_default()
    }

    pub(crate) fn parent(&self) -> Option<std::borrow::Cow<'a, str>> {
        self.traceparent.and_then(jsonrpc::string)
    }
}

/// One request; over when it is dropped.
#[derive(Debug)]
pub(crate) struct Trace {
    telemetry: Telemetry,
    began: Began,
    ratio: f64,
    parent: Option<Context>,
    state: String,
    attributes: Vec<Attribute>,
    name: String,
    refused: Option<(String, String)>,
    /// Set when it is known whether this request is recorded.
    upstream: Option<Arc<Upstream>>,
    own: Option<Context>,
    decided: bool,
}

impl Trace {
    pub(crate) fn begin(
        telemetry: &Telemetry,
        config: &TelemetryConfig,
        deployment: &str,
        peer: Peer,
        request: &Request<Incoming>,
    ) -> Option<Self> {
        if config.otlp_endpoint.is_empty() || request.method() == hyper::Method::OPTIONS {
            return None;
        }
        let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let mut attributes: Vec<Attribute> = vec![
            ("network.transport", "tcp".into()),
            ("network.protocol.name", "http".into()),
            ("client.address", peer.ip.to_string().into()),
            ("sigil.deployment", short(deployment).into()),
        ];
        if let Some(version) = text("mcp-protocol-version") {
            attributes.push(("mcp.protocol.version", short(version).into()));
        }
        if let Some(session) = text("mcp-session-id") {
            // tells sessions apart; the id itself would let whoever reads traces try it
            let digest: String = hex::encode(Sha256::digest(session)).chars().take(16).collect();
            attributes.push(("mcp.session.id", digest.into()));
        }
        Some(Self {
            telemetry: telemetry.clone(),
            began: Began::now(),
            ratio: config.sample_ratio,
            parent: text(PARENT).and_then(Context::parse),
            state: text(STATE).filter(|state| state.len() <= STATE_MAX).unwrap_or_default().to_owned(),
            attributes,
            // of what has a message its method comes in its place
            name: short(request.method().as_str()),
            refused: None,
            upstream: None,
            own: None,
            decided: false,
        })
    }

    /// A request of a conversation over the link; `None` where nothing is traced.
    pub(crate) fn linked(
        telemetry: &Telemetry,
        config: &TelemetryConfig,
        deployment: &str,
        caller: &str,
        head: &Head<'_>,
    ) -> Option<Self> {
        if config.otlp_endpoint.is_empty() {
            return None;
        }
        let mut trace = Self {
            telemetry: telemetry.clone(),
            began: Began::now(),
            ratio: config.sample_ratio,
            parent: None,
            state: String::new(),
            attributes: vec![("rpc.system.name", "grpc".into()), ("sigil.deployment", short(deployment).into())],
            name: String::new(),
            refused: None,
            upstream: None,
            own: None,
            decided: false,
        };
        trace.caller(caller);
        // the message reaches the server as it is: what it carries of a context is its client's
        trace.read(head, &mut HeaderMap::new());
        Some(trace)
    }

    pub(crate) fn caller(&mut self, name: &str) {
        self.attributes.push(("sigil.caller", short(name).into()));
    }

    /// What the message is. The server's part goes into the headers that a server over HTTP gets.
    pub(crate) fn read(&mut self, head: &Head<'_>, headers: &mut HeaderMap) {
        let params = Params::read(head.params);
        if self.parent.is_none() {
            let carried = Carried::of(&params);
            self.parent = carried.parent().and_then(|text| Context::parse(&text));
            let state = carried.tracestate.and_then(jsonrpc::string).filter(|state| state.len() <= STATE_MAX);
            self.state = state.filter(|_| self.parent.is_some()).unwrap_or_default().into_owned();
        }
        self.decide();
        let Some(own) = self.own else { return };
        let method = if head.kind == Kind::Response { "response".to_owned() } else { short(&head.method) };
        self.name.clone_from(&method);
        if head.kind != Kind::Response {
            self.attributes.push(("mcp.method.name", method.into()));
        }
        if let Some(id) = head.id_text {
            self.attributes.push(("jsonrpc.request.id", short(id.trim_matches('"')).into()));
        }
        let name = params.name.and_then(jsonrpc::string).map(|name| short(&name));
        match (&*head.method, name) {
            ("tools/call", Some(tool)) => {
                self.name = format!("tools/call {tool}");
                self.attributes.push(("gen_ai.operation.name", "execute_tool".into()));
                self.attributes.push(("gen_ai.tool.name", tool.into()));
            }
            ("prompts/get", Some(prompt)) => {
                self.name = format!("prompts/get {prompt}");
                self.attributes.push(("gen_ai.prompt.name", prompt.into()));
            }
            _ => {}
        }
        if let Some(uri) = params.uri.and_then(jsonrpc::string) {
            self.attributes.push(("mcp.resource.uri", short(&uri).into()));
        }
        self.goes_on(own, headers);
    }

    /// What several messages in one are: the conventions have no words for it.
    pub(crate) fn batch(&mut self, heads: &[&Head<'_>], headers: &mut HeaderMap) {
        self.decide();
        let Some(own) = self.own else { return };
        self.name = "batch".into();
        self.attributes.push(("sigil.batch.size", i64::try_from(heads.len()).unwrap_or(i64::MAX).into()));
        let mut methods = heads.iter().filter(|head| head.kind != Kind::Response).map(|head| &head.method);
        if let Some(first) = methods.next().filter(|first| methods.all(|other| other == *first)) {
            self.attributes.push(("mcp.method.name", short(first).into()));
        }
        self.goes_on(own, headers);
    }

    fn goes_on(&mut self, own: Context, headers: &mut HeaderMap) {
        let Some(id) = random() else { return };
        let context = Context { span: id, ..own };
        if let Ok(value) = HeaderValue::try_from(context.header()) {
            headers.insert(PARENT, value);
            match HeaderValue::try_from(&self.state) {
                Ok(state) if !self.state.is_empty() => headers.insert(STATE, state),
                _ => headers.remove(STATE),
            };
        }
        let said = ["mcp.", "jsonrpc.", "gen_ai.", "sigil.deployment", "sigil.batch."];
        let told = self.attributes.iter().filter(|(name, _)| said.iter().any(|begin| name.starts_with(begin)));
        self.upstream = Some(Arc::new(Upstream {
            telemetry: self.telemetry.clone(),
            context,
            parent: own.span,
            state: self.state.clone(),
            name: self.name.clone(),
            attributes: told.cloned().collect(),
            failed: OnceLock::new(),
            told: AtomicBool::new(false),
        }));
    }

    pub(crate) fn upstream(&self) -> Option<&Arc<Upstream>> {
        self.upstream.as_ref()
    }

    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        self.refused = Some((refusal.code.to_owned(), refusal.message.clone()));
        self.attributes.push(("rpc.response.status_code", refusal.rpc.to_string().into()));
    }

    /// Whether a kept answer was looked for and found.
    pub(crate) fn cached(&mut self, word: &'static str) {
        self.attributes.push(("sigil.cache", word.into()));
    }

    pub(crate) fn status(&mut self, status: u16) {
        self.attributes.push(("http.response.status_code", i64::from(status).into()));
    }

    /// Whether it is recorded: as whoever began the trace chose, else so many of all.
    fn decide(&mut self) {
        if std::mem::replace(&mut self.decided, true) {
            return;
        }
        let Some(span) = random() else { return };
        self.own = match self.parent {
            Some(parent) => parent.sampled.then_some(Context { span, ..parent }),
            None => random().filter(|trace| trace::sampled(trace, self.ratio)).map(|trace| Context {
                trace,
                span,
                sampled: true,
            }),
        };
    }
}

/// Never all zero: that would be no name.
fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).ok()?;
    (bytes != [0; N]).then_some(bytes)
}

impl Drop for Trace {
    fn drop(&mut self) {
        // one that was refused before it was read
        self.decide();
        let Some(own) = self.own else { return };
        let mut attributes = std::mem::take(&mut self.attributes);
        let failed = self.upstream.as_ref().and_then(|upstream| upstream.failed.get());
        let error = match (self.refused.take(), failed) {
            (Some(refused), _) => Some(refused),
            (None, Some(failed)) => {
                attributes.extend(failed.code());
                Some(failed.words())
            }
            (None, None) => None,
        };
        self.telemetry.ended(Span {
            trace: own.trace,
            id: own.span,
            parent: self.parent.map(|parent| parent.span.to_vec()).unwrap_or_default(),
            state: std::mem::take(&mut self.state),
            name: std::mem::take(&mut self.name),
            asks: false,
            began: self.began,
            attributes,
            error,
        });
    }
}

/// How a server's answer failed.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    code: Option<i64>,
    words: String,
}

impl Failed {
    fn code(&self) -> Option<Attribute> {
        self.code.map(|code| ("rpc.response.status_code", code.to_string().into()))
    }

    fn words(&self) -> (String, String) {
        // the word of the conventions for a result that is an error
        (self.code.map_or_else(|| "tool_error".to_owned(), |code| code.to_string()), self.words.clone())
    }
}

/// The server's part of a request that is recorded.
#[derive(Debug)]
pub(crate) struct Upstream {
    telemetry: Telemetry,
    context: Context,
    parent: [u8; 8],
    state: String,
    name: String,
    attributes: Vec<Attribute>,
    failed: OnceLock<Failed>,
    /// Its span is told: another try is another span.
    told: AtomicBool,
}

impl Upstream {
    /// A piece of the answer: a message, or lines of an event stream. A message in several pieces is not looked at.
    pub(crate) fn hears(&self, data: &[u8]) {
        let Ok(text) = std::str::from_utf8(data) else { return };
        for line in text.lines().map(|line| line.strip_prefix("data:").unwrap_or(line).trim()) {
            let Ok(head) = jsonrpc::parse_one(line.as_bytes()) else { continue };
            let failed = match (head.error, head.result) {
                // its words may hold what only its caller should see
                (Some(error), _) => Failed { code: modern::code(error), words: String::new() },
                (_, Some(result)) if is_error(result) => Failed { code: None, words: String::new() },
                _ => continue,
            };
            let _first_counts = self.failed.set(failed);
        }
    }

    /// It is over, or one try of it at a replica.
    pub(crate) fn ended(&self, began: Began, error: bool) {
        let failed = self.failed.get();
        let mut attributes = self.attributes.clone();
        attributes.extend(failed.and_then(Failed::code));
        let other = || error.then(|| ("_OTHER".to_owned(), String::new()));
        let again = self.told.swap(true, Relaxed);
        let id = random().filter(|_| again).unwrap_or(self.context.span);
        self.telemetry.ended(Span {
            trace: self.context.trace,
            id,
            parent: self.parent.to_vec(),
            state: self.state.clone(),
            name: self.name.clone(),
            asks: true,
            began,
            attributes,
            error: failed.map(Failed::words).or_else(other),
        });
    }
}

fn is_error(result: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Result {
        #[serde(default, rename = "isError")]
        is_error: bool,
    }
    serde_json::from_str::<Result>(result.get()).is_ok_and(|result| result.is_error)
}
