//! The one place where the gateway's refusals get their status and code.

use crate::initlink::LinkError;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::ext::ReasonPhrase;
use hyper::header::{self, HeaderName, HeaderValue};
use sigil_core::jsonrpc::{self, Id, Malformed};
use sigil_core::pins::Change;
use sigil_core::policy::Access;

/// Why the gateway cannot start, or does not pass a conversation on.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The listening address is taken, not ours, or no address.
    #[error("cannot listen on {0}: {1}")]
    Listen(String, String),
    /// The key that seals session ids cannot be read or written.
    #[error("the gateway's key {0}: {1}")]
    Key(String, String),
    /// A certificate that cannot be made, read or used.
    #[error("the gateway's certificate {0}: {1}")]
    Certificate(String, String),
    /// No deployment of that name.
    #[error("no deployment '{0}'")]
    NotFound(String),
    /// There is one, but it does not take this conversation now.
    #[error("{message}")]
    Refused {
        /// `GATEWAY_…`.
        code: &'static str,
        /// What happened.
        message: String,
        /// What to do about it.
        hint: String,
    },
}

impl GatewayError {
    /// The code that scripts match on.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Listen(..) => "GATEWAY_LISTEN",
            Self::Key(..) => "GATEWAY_KEY",
            Self::Certificate(..) => "GATEWAY_CERTIFICATE",
            Self::NotFound(_) => "GATEWAY_MCP_NOT_FOUND",
            Self::Refused { code, .. } => code,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Listen(address, _) => {
                format!("is another agent running? else choose another address than {address} in [gateway] listen")
            }
            Self::Key(path, _) => format!("{path} must be a file of 32 bytes that only the agent's user can read"),
            Self::Certificate(..) => "check [gateway] tls, certificate and key in agent.toml".into(),
            Self::NotFound(_) => "`sigil ls` shows what there is".into(),
            Self::Refused { hint, .. } => hint.clone(),
        }
    }
}

/// An answer that the gateway gives itself.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    /// JSON-RPC error code. Own ones lie outside -32768..-32000, which belong to JSON-RPC and MCP.
    pub(crate) rpc: i64,
    pub(crate) message: String,
    pub(crate) hint: String,
    pub(crate) retry_after: Option<u32>,
    /// Nothing was sent: whoever was to be asked was out of reach, and may be back soon.
    pub(crate) unsent: bool,
    pub(crate) allow: Option<&'static str>,
    /// `WWW-Authenticate`.
    pub(crate) challenge: Option<Box<Text>>,
    /// Further members of the answer, each with a comma before it: for clients that read no JSON-RPC.
    pub(crate) problem: Option<Box<Text>>,
}

/// What few refusals have, so that the others are not larger for it.
#[derive(Debug, Clone)]
pub(crate) struct Text(String);

impl From<String> for Box<Text> {
    fn from(text: String) -> Self {
        Self::new(Text(text))
    }
}

impl From<&str> for Box<Text> {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// Longest reason behind a status: lines of headers are bounded everywhere.
const REASON_MAX: usize = 300;

/// Invalid Request of JSON-RPC.
pub(crate) const INVALID: i64 = -32600;

impl Refusal {
    fn new(
        status: StatusCode,
        code: &'static str,
        rpc: i64,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let (message, hint) = (message.into(), hint.into());
        let (retry_after, unsent, allow, challenge, problem) = (None, false, None, None, None);
        Self { status, code, rpc, message, hint, retry_after, unsent, allow, challenge, problem }
    }

    pub(crate) fn not_found(name: &str) -> Self {
        let message = format!("there is no deployment '{name}'");
        Self::new(StatusCode::NOT_FOUND, "GATEWAY_MCP_NOT_FOUND", -31404, message, "`sigil ls` shows what there is")
    }

    pub(crate) fn no_bundle(name: &str) -> Self {
        let message = match name {
            "" => "there is no deployment".to_owned(),
            name => format!("no deployment belongs to the bundle '{name}'"),
        };
        let hint = "`sigil policy set DEPLOYMENT --bundle NAME` makes one a member";
        Self::new(StatusCode::NOT_FOUND, "GATEWAY_MCP_NOT_FOUND", -31404, message, hint)
    }

    pub(crate) fn no_path(path: &str) -> Self {
        let message = format!("nothing is at {path}");
        Self::new(StatusCode::NOT_FOUND, "GATEWAY_MCP_NOT_FOUND", -31404, message, "MCP servers are at /mcp/<name>")
    }

    pub(crate) fn expired(why: impl Into<String>) -> Self {
        let hint = "send initialize again, without a session id";
        Self::new(StatusCode::NOT_FOUND, "GATEWAY_SESSION_EXPIRED", -31410, why, hint)
    }

    pub(crate) fn starting(name: &str, message: &str) -> Self {
        let message = if message.is_empty() {
            format!("'{name}' is starting")
        } else {
            format!("'{name}' is starting: {message}")
        };
        let hint = format!("try again soon; `sigil get {name}` shows how far it is");
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "GATEWAY_STARTING", -31503, message, hint);
        Self { retry_after: Some(5), ..refusal }
    }

    pub(crate) fn unavailable(name: &str, message: &str) -> Self {
        let why = if message.is_empty() { "no replica serves" } else { message };
        let hint = format!("`sigil get {name}` shows why");
        let message = format!("'{name}' does not serve: {why}");
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "GATEWAY_CONNECTION_FAILED", -31502, message, hint);
        Self { retry_after: Some(10), ..refusal }
    }

    /// No replica was in reach, or `why` the one that was asked could not be. Nothing was sent.
    pub(crate) fn unreached(name: &str, why: Option<LinkError>) -> Self {
        // where nothing listens, nothing is about to be back
        let unsent = why.as_ref().is_none_or(LinkError::passes);
        let refusal = match why {
            Some(why) => Self::failed(name, format!("'{name}' cannot be reached: {why}")),
            None => Self::unavailable(name, "no replica is in reach"),
        };
        Self { unsent, ..refusal }
    }

    pub(crate) fn overloaded(message: impl Into<String>, hint: impl Into<String>) -> Self {
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "GATEWAY_OVERLOADED", -31529, message, hint);
        Self { retry_after: Some(5), ..refusal }
    }

    pub(crate) fn failed(name: &str, what: impl Into<String>) -> Self {
        let hint = format!("`sigil logs {name}` shows what it printed");
        Self::new(StatusCode::BAD_GATEWAY, "GATEWAY_CONNECTION_FAILED", -31502, what, hint)
    }

    pub(crate) fn timeout(name: &str, ms: u64) -> Self {
        let message = format!("'{name}' did not answer within {ms} ms");
        let hint = "the call may still be running in the server; a longer limit is the manifest's request timeout";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "GATEWAY_TIMEOUT", -31504, message, hint)
    }

    fn unauthorized(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "GATEWAY_INVALID_API_KEY", -31401, message, hint)
    }

    pub(crate) fn no_key(access: Access) -> Self {
        match access {
            Access::Oauth => Self::unauthorized(
                "this server needs a token of the identity provider, or a key",
                "log in with your client, or send `Authorization: Bearer KEY` with a key of `sigil key create NAME`",
            ),
            _ => Self::unauthorized(
                "this server needs a key",
                "send `Authorization: Bearer KEY`; `sigil key create NAME` makes one",
            ),
        }
    }

    pub(crate) fn no_key_from_afar() -> Self {
        Self::unauthorized(
            "this server asks for no key, so it is open to its own host only",
            "`sigil policy set NAME --access key`, or [gateway] anonymous = \"anywhere\" in agent.toml",
        )
    }

    pub(crate) fn bad_key() -> Self {
        // which of these it is is nobody's business
        let hint = "`sigil key ls` shows the keys; `sigil key create NAME` makes one";
        Self::unauthorized("the key is wrong, revoked or expired", hint)
    }

    pub(crate) fn no_reader() -> Self {
        let hint = "send `Authorization: Bearer KEY` with a key of `sigil key create NAME --role reader`";
        Self::unauthorized("from other hosts this needs a key that may read", hint)
    }

    pub(crate) fn bad_token(why: &str) -> Self {
        Self::unauthorized(format!("the token is not taken: {why}"), "log in again with your client")
    }

    pub(crate) fn rate_limited(message: impl Into<String>, seconds: u32) -> Self {
        let hint = format!("try again in {seconds} s; `sigil policy get NAME` and `sigil key ls` show the limits");
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "GATEWAY_RATE_LIMITED", -31429, message, hint);
        Self { retry_after: Some(seconds), ..refusal }
    }

    /// A quota of the month is used up.
    pub(crate) fn quota(message: impl Into<String>, seconds: Option<u32>) -> Self {
        let hint = "the month's end gives it back; `sigil usage` shows what was used, `sigil quota ls` what is set";
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "GATEWAY_QUOTA_EXCEEDED", -31429, message, hint);
        Self { retry_after: seconds, ..refusal }
    }

    /// Configuration of a session that cannot be taken.
    pub(crate) fn settings(message: impl Into<String>, hint: impl Into<String>, problem: String) -> Self {
        let (code, rpc) = ("GATEWAY_INVALID_CONFIG", sigil_core::mirror::INVALID_PARAMS);
        let refusal = Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, rpc, message, hint);
        Self { problem: Some(problem.into()), ..refusal }
    }

    pub(crate) fn no_name() -> Self {
        let message = "the call names no tool, or a parameter twice";
        let refusal = Self::bad_request(message, "params.name is one text");
        Self { rpc: sigil_core::mirror::INVALID_PARAMS, ..refusal }
    }

    /// As a server says that it has no such tool: what is hidden is not told from what is not there.
    pub(crate) fn no_tool(name: &str) -> Self {
        let hint = "tools/list shows what there is";
        Self::new(StatusCode::OK, "GATEWAY_FORBIDDEN", -32602, format!("Unknown tool: {name}"), hint)
    }

    /// The tool is not as it was when its release was deployed.
    pub(crate) fn held(deployment: &str, name: &str, change: Change) -> Self {
        let how = match change {
            Change::Changed => "describes itself in another way than when it was deployed",
            Change::Added => "was not there when its server was deployed",
            Change::Poisoned => "has a description that tries to steer whoever reads it",
        };
        let hint = format!("its owner can look at it (`sigil pins diff {deployment}`) and approve it");
        let message = format!("the tool '{name}' is held: it {how}");
        // in band: some clients drop what a 403 says
        Self::new(StatusCode::OK, "GATEWAY_FORBIDDEN", -31403, message, hint)
    }

    /// Secrets that each caller has of its own, and a caller that is nobody.
    pub(crate) fn secrets_of_nobody(name: &str, missing: &[String]) -> Self {
        let missing = missing.join(", ");
        let message = format!("'{name}' needs each caller's own {missing}, and this call says nothing of who calls");
        let hint = "call with a key: `sigil key create NAME` makes one, its user sets the secrets";
        Self::new(StatusCode::FORBIDDEN, "GATEWAY_MISSING_SECRETS", -31424, message, hint)
    }

    pub(crate) fn lacks_own(name: &str, caller: &str, missing: &[String]) -> Self {
        let message = format!("'{name}' needs secrets that {caller} has not set: {}", missing.join(", "));
        let hint = format!("set each one: sigil secret set {} --user", missing.first().map_or("NAME", String::as_str));
        Self::new(StatusCode::FORBIDDEN, "GATEWAY_MISSING_SECRETS", -31424, message, hint)
    }

    pub(crate) fn wrong_own(error: &crate::secrets::SecretError) -> Self {
        let hint = "set it anew: sigil secret set NAME --user";
        Self::new(StatusCode::FORBIDDEN, "GATEWAY_INVALID_SECRETS", -31425, error.to_string(), hint)
    }

    /// They cannot be read, or that they are handed out cannot be recorded.
    pub(crate) fn no_own(error: &crate::secrets::SecretError) -> Self {
        tracing::error!(%error, "a caller's own secrets cannot be used");
        let message = "your own secrets for this server cannot be used now";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "GATEWAY_INVALID_SECRETS", -31425, message, error.hint())
    }

    pub(crate) fn forbidden(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "GATEWAY_FORBIDDEN", -31403, message, hint)
    }

    pub(crate) fn bad_request(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "GATEWAY_BAD_REQUEST", INVALID, message, hint)
    }

    pub(crate) fn malformed(error: &Malformed) -> Self {
        let rpc = if matches!(error, Malformed::Json(_)) { -32700 } else { INVALID };
        let hint = "the body must be one JSON-RPC 2.0 message";
        Self::new(StatusCode::BAD_REQUEST, "GATEWAY_BAD_REQUEST", rpc, error.to_string(), hint)
    }

    pub(crate) fn not_acceptable() -> Self {
        let hint = "send `Accept: application/json, text/event-stream`";
        let message = "the answer may be JSON or an event stream, and Accept excludes one of them";
        Self::new(StatusCode::NOT_ACCEPTABLE, "GATEWAY_BAD_REQUEST", INVALID, message, hint)
    }

    pub(crate) fn media_type(found: &str) -> Self {
        let message = format!("Content-Type is '{found}'");
        let hint = "send `Content-Type: application/json`";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "GATEWAY_BAD_REQUEST", INVALID, message, hint)
    }

    pub(crate) fn method(allow: &'static str) -> Self {
        let message = format!("this address answers {allow}");
        let refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "GATEWAY_BAD_REQUEST", INVALID, message, "");
        Self { allow: Some(allow), ..refusal }
    }

    pub(crate) fn too_large(limit: u64) -> Self {
        let message = format!("the request is larger than {limit} bytes");
        let hint = "the limit is [gateway] max_body in the agent's configuration";
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "GATEWAY_BAD_REQUEST", INVALID, message, hint)
    }

    pub(crate) fn slow_body() -> Self {
        let message = "the request's body did not arrive in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, "GATEWAY_BAD_REQUEST", INVALID, message, "")
    }

    /// The JSON-RPC error response for a request. What to do about it is in the message too: the official clients show
    /// their users the message, and nothing of `data`.
    pub(crate) fn to_json(&self, id: Option<&Id>) -> Bytes {
        let retry = self.retry_after.map_or_else(String::new, |s| format!(",\"retryAfter\":{s}"));
        let problem = self.problem.as_deref().map_or("", |problem| &problem.0);
        let (code, hint) = (jsonrpc::quote(self.code), jsonrpc::quote(&self.hint));
        let data = format!("{{\"code\":{code},\"hint\":{hint}{retry}{problem}}}");
        let mut text = jsonrpc::error(id, self.rpc, &self.words(), &data);
        // the same beside the error, where clients of session configuration look for it
        text.insert_str(text.len() - 1, problem);
        Bytes::from(text)
    }

    fn words(&self) -> String {
        match self.hint.as_str() {
            // in the words of a server that has no such tool
            _ if self.status == StatusCode::OK => self.message.clone(),
            "" => format!("{} ({})", self.message, self.code),
            hint => format!("{}; {hint} ({})", self.message, self.code),
        }
    }

    /// The words behind the status, for clients that show the status line and nothing else (httpx, and so the first major
    /// of the Python SDK).
    pub(crate) fn reason(&self) -> Option<ReasonPhrase> {
        let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
        let words: String = self.words().chars().take(REASON_MAX).map(plain).collect();
        ReasonPhrase::try_from(words.into_bytes()).ok()
    }

    /// Whether it may answer a request within a session as a JSON-RPC error alone, with the HTTP status of an answer: the
    /// first major of the Python SDK reads no body of another status, and ends its whole session over one. What the
    /// protocol says in statuses (no key, a scope that is missing, no session, a broken request) stays there.
    pub(crate) fn in_band(&self) -> bool {
        matches!(self.status.as_u16(), 429 | 502..=504)
    }

    /// Headers beside the body's.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let retry = self.retry_after.map(|s| (header::RETRY_AFTER, HeaderValue::from(s)));
        let allow = self.allow.map(|a| (header::ALLOW, HeaderValue::from_static(a)));
        let challenge = self.challenge.as_deref().and_then(|c| HeaderValue::try_from(&c.0).ok());
        retry.into_iter().chain(allow).chain(challenge.map(|c| (header::WWW_AUTHENTICATE, c)))
    }
}

impl From<Refusal> for GatewayError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused { code: refusal.code, message: refusal.message, hint: refusal.hint }
    }
}
