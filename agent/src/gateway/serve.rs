//! One HTTP request: who may ask, what it is, and which way it goes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use sigil_core::jsonrpc::{self, Body, Head, Id, Kind, Params};
use sigil_core::model::{InstanceId, Transport};
use sigil_core::route;
use sigil_core::session::{self, Era, Ticket};

use super::body::Out;
use super::error::Refusal;
use super::table::{Entry, Live};
use super::{Shared, bridged, cross, modern, proxy};
use crate::web;

/// Until keys exist, every caller that reaches the listener is the same one.
pub(crate) const ANONYMOUS: &str = "anonymous";
/// Longest wait for a request's body.
const BODY_TIME: Duration = Duration::from_secs(30);
const METHODS: &str = "GET, POST, DELETE, OPTIONS";

/// A refusal and the request it answers.
pub(crate) type Refused = (Refusal, Option<Id>);

/// A request as the ways out see it.
pub(crate) struct Asked<'a> {
    pub(crate) name: &'a str,
    pub(crate) entry: &'a Arc<Entry>,
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) query: Option<&'a str>,
    /// The client's session id and what it holds; the ticket is this deployment's and not expired.
    pub(crate) ticket: Option<(HeaderValue, Ticket)>,
}

/// Answers one request; never fails.
pub(crate) async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Response<Out> {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match admit(&shared, &request) {
        Err(refusal) => {
            shared.counters.refused(&refusal);
            return refuse(&refusal, None);
        }
        Ok(()) => route_path(&shared, request).await,
    };
    if let Some(origin) = origin {
        // admitted above, so it may read the answer
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        let exposed = HeaderValue::from_static("mcp-session-id, mcp-protocol-version, www-authenticate");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    response
}

pub(crate) fn refuse(refusal: &Refusal, id: Option<&Id>) -> Response<Out> {
    let mut response = Response::new(Out::full(refusal.to_json(id)));
    *response.status_mut() = refusal.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.extend(refusal.headers().map(|(name, value)| (Some(name), value)).filter_map(|(n, v)| n.map(|n| (n, v))));
    response
}

/// Host and Origin: a web page must not reach a server on this machine by a name that it chose.
fn admit(shared: &Shared, request: &Request<Incoming>) -> Result<(), Refusal> {
    let config = shared.config.borrow().gateway.clone();
    if shared.loopback || !config.allowed_hosts.is_empty() {
        let host = match request.uri().authority() {
            Some(authority) => Some(authority.as_str().to_owned()),
            None => request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).map(str::to_owned),
        };
        let host = host.map(|h| route::host_of(&h)).unwrap_or_default();
        if !route::is_loopback(&host) && !config.allowed_hosts.iter().any(|h| route::host_of(h) == host) {
            let hint = "call it by a loopback name, or add the name to [gateway] allowed_hosts";
            return Err(Refusal::forbidden(format!("the host name '{host}' is not served here"), hint));
        }
    }
    for origin in request.headers().get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("?");
        if !route::origin_allowed(origin, &config.allowed_origins) {
            let hint = "add it to [gateway] allowed_origins if its pages may call these servers";
            return Err(Refusal::forbidden(format!("pages of '{origin}' may not call this"), hint));
        }
    }
    Ok(())
}

async fn route_path(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Out> {
    let path = request.uri().path();
    if let Some(rest) = path.strip_prefix("/mcp/") {
        let name = rest.strip_suffix('/').unwrap_or(rest);
        if !name.is_empty() && !name.contains('/') {
            let name = name.to_owned();
            return match mcp(shared, &name, request).await {
                Ok(response) => response,
                Err((refusal, id)) => {
                    tracing::debug!(deployment = name, code = refusal.code, "{}", refusal.message);
                    shared.counters.refused(&refusal);
                    refuse(&refusal, id.as_ref())
                }
            };
        }
    }
    match path {
        "/healthz" | "/readyz" | "/metrics" => {
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                return refuse(&Refusal::method("GET"), None);
            }
            let page = web::page(path, &shared.facts());
            let mut response = Response::new(Out::full(page.text));
            *response.status_mut() = page.status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(page.media_type));
            response
        }
        _ => refuse(&Refusal::no_path(path), None),
    }
}

async fn mcp(shared: &Arc<Shared>, name: &str, request: Request<Incoming>) -> Result<Response<Out>, Refused> {
    let plain = |refusal: Refusal| (refusal, None);
    let method = request.method().clone();
    if method == Method::OPTIONS {
        return Ok(preflight(request.headers()));
    }
    if !matches!(method, Method::GET | Method::POST | Method::DELETE) {
        return Err(plain(Refusal::method(METHODS)));
    }
    let mut entry = shared.entry(name).await.map_err(plain)?;
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    let version = header_text(headers, "mcp-protocol-version");
    let header_era = version.and_then(session::era);
    let unknown = version.filter(|_| header_era.is_none()).map(|version| {
        let hint = format!("this gateway knows {} and {}", session::LEGACY.join(", "), session::FIRST_MODERN);
        Refusal::bad_request(format!("MCP-Protocol-Version '{version}' is not supported"), hint)
    });
    let ticket = if header_era == Some(Era::Modern) {
        None
    } else {
        headers.get("mcp-session-id").map(|id| shared.ticket(id, &entry)).transpose().map_err(plain)?
    };
    if let Some((_, ticket)) = &ticket
        && entry.instance(ticket.instance).is_none()
        && entry.may_return(ticket.instance)
    {
        entry = shared.returned(name, ticket.instance).await.map_err(plain)?;
    }
    let mut asked = Asked { name, entry: &entry, method: &method, headers, query: parts.uri.query(), ticket };
    if method != Method::POST {
        if let Some(unknown) = unknown {
            return Err(plain(unknown));
        }
        // without sessions there is nothing to listen to or to end
        if header_era == Some(Era::Modern) && entry_transport(&entry) == Some(Transport::Stdio) {
            return Err(plain(Refusal::method("POST")));
        }
        let translated = asked.ticket.as_ref().is_some_and(|(_, ticket)| ticket.translated);
        return match entry_transport(&entry) {
            Some(Transport::Http) | None if !translated => proxy::without_body(shared, asked).await.map_err(plain),
            _ if method == Method::GET => bridged::listen(shared, asked).await.map_err(plain),
            _ => bridged::delete(shared, asked).await.map_err(plain),
        };
    }
    let media_type = crate::upstream::http::media_type(headers);
    if media_type != "application/json" {
        return Err(plain(Refusal::media_type(&media_type)));
    }
    if !accepts(headers, "application/json") {
        return Err(plain(Refusal::not_acceptable()));
    }
    let body = read(shared, headers, body).await.map_err(plain)?;
    let parsed = jsonrpc::parse(&body).map_err(|e| plain(Refusal::malformed(&e)))?;
    let heads: Vec<&Head<'_>> = match &parsed {
        Body::One(head) => vec![head],
        Body::Batch(heads) => {
            let agreed = asked.ticket.as_ref().map(|(_, t)| t.version.as_str()).filter(|v| !v.is_empty());
            let batches = asked.ticket.is_some() && version.or(agreed).is_none_or(|v| v == "2025-03-26");
            if !batches || heads.iter().any(|h| h.method == "initialize") {
                let hint = "send one message a request; batches exist in revision 2025-03-26 only, within a session";
                return Err(plain(Refusal::bad_request("a batch is not accepted here", hint)));
            }
            heads.iter().collect()
        }
    };
    let first = match heads.as_slice() {
        [head] => Some(*head),
        _ => None,
    };
    let id = first.filter(|h| h.kind == Kind::Request).and_then(|h| h.id.clone());
    // only a body that names the key can hold it, and looking for a text is cheaper than reading all parameters
    let is_modern = header_era == Some(Era::Modern)
        || (asked.ticket.is_none()
            && first.is_some_and(|h| {
                h.params.is_some_and(|p| p.get().contains("io.modelcontextprotocol/protocolVersion"))
                    && Params::read(h.params).modern_version().is_some()
            }));
    if let Some(unknown) = unknown.filter(|_| !is_modern) {
        return Err((unknown, id));
    }
    if is_modern {
        asked.ticket = None;
    }
    let outcome = match shared.transport(&asked).await {
        Err(refusal) => Err(refusal),
        Ok(_) if asked.ticket.as_ref().is_some_and(|(_, ticket)| ticket.translated) => {
            bridged::post(shared, asked, &heads, &body).await
        }
        Ok(Transport::Http) => cross::http(shared, &asked, first, &body, is_modern).await,
        Ok(_) if is_modern => modern::post(shared, &asked, first, &body).await,
        Ok(_) => bridged::post(shared, asked, &heads, &body).await,
    };
    outcome.map_err(|refusal| (refusal, id))
}

fn entry_transport(entry: &Entry) -> Option<Transport> {
    entry.ready.first().or(entry.draining.first()).map(|l| l.endpoint.spec.transport)
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|v| v.to_str().unwrap_or("?"))
}

/// Whether `Accept` (missing: anything) takes a media type. Weights do not matter, but `q=0` refuses.
pub(crate) fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let mut any = false;
    let (kind, _) = media_type.split_once('/').unwrap_or((media_type, ""));
    for value in headers.get_all(header::ACCEPT) {
        any = true;
        for part in value.to_str().unwrap_or_default().split(',') {
            let mut fields = part.split(';').map(str::trim);
            let range = fields.next().unwrap_or_default().to_ascii_lowercase();
            let refused = fields.any(|f| matches!(f, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
            if !refused && (range == media_type || range == "*/*" || range.strip_suffix("/*") == Some(kind)) {
                return true;
            }
        }
    }
    !any
}

async fn read(shared: &Shared, headers: &HeaderMap, body: Incoming) -> Result<Bytes, Refusal> {
    let limit = shared.config.borrow().gateway.max_body;
    let told = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if told.is_some_and(|n| n > limit) {
        return Err(Refusal::too_large(limit));
    }
    let limited = Limited::new(body, usize::try_from(limit).unwrap_or(usize::MAX));
    match tokio::time::timeout(BODY_TIME, limited.collect()).await {
        Err(_) => Err(Refusal::slow_body()),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::too_large(limit)),
        Ok(Err(error)) => Err(Refusal::bad_request(format!("the request's body broke off: {error}"), "")),
    }
}

fn preflight(asked: &HeaderMap) -> Response<Out> {
    let mut response = Response::new(Out::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static(METHODS));
    if asked.contains_key(header::ORIGIN) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let usual = HeaderValue::from_static(
            "content-type, accept, authorization, mcp-session-id, mcp-protocol-version, last-event-id",
        );
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.unwrap_or(usual));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    response
}

impl Shared {
    /// The deployment of a name. A new agent listens a moment before it knows what it serves; then this waits.
    pub(crate) async fn entry(&self, name: &str) -> Result<Arc<Entry>, Refusal> {
        if !self.table.borrow().known {
            self.until(name, |table| table.known).await?;
        }
        self.table.borrow().routes.get(name).cloned().ok_or_else(|| Refusal::not_found(name))
    }

    /// The deployment once an instance of a former agent is taken over, or known not to be.
    async fn returned(&self, name: &str, id: InstanceId) -> Result<Arc<Entry>, Refusal> {
        let decided = |entry: &Arc<Entry>| entry.instance(id).is_some() || !entry.may_return(id);
        self.until(name, |table| table.routes.get(name).is_none_or(decided)).await?;
        self.entry(name).await
    }

    /// Holds a call until the table is so, within the limits of holding.
    async fn until(&self, name: &str, so: impl FnMut(&Arc<super::table::Table>) -> bool) -> Result<(), Refusal> {
        let starting = || Refusal::starting(name, "the agent is starting");
        let _permit = self.waiting.try_acquire().map_err(|_| starting())?;
        let mut table = self.table.clone();
        match tokio::time::timeout(self.hold, table.wait_for(so)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(starting()),
        }
    }

    /// The deployment of a name once something serves; waits while that is expected.
    pub(crate) async fn ready(&self, name: &str) -> Result<Arc<Entry>, Refusal> {
        let entry = self.entry(name).await?;
        if !entry.ready.is_empty() {
            return Ok(entry);
        }
        if !entry.expected {
            return Err(Refusal::unavailable(name, &entry.message));
        }
        let Ok(_permit) = self.waiting.try_acquire() else { return Err(Refusal::starting(name, &entry.message)) };
        let mut table = self.table.clone();
        let deadline = tokio::time::Instant::now() + self.hold;
        let mut message = entry.message.clone();
        loop {
            let found = table.borrow_and_update().routes.get(name).cloned();
            let entry = found.ok_or_else(|| Refusal::not_found(name))?;
            if !entry.ready.is_empty() {
                return Ok(entry);
            }
            if !entry.expected {
                return Err(Refusal::unavailable(name, &entry.message));
            }
            message.clone_from(&entry.message);
            match tokio::time::timeout_at(deadline, table.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(Refusal::starting(name, &message)),
            }
        }
    }

    /// How the asked server speaks, once that is known.
    async fn transport(&self, asked: &Asked<'_>) -> Result<Transport, Refusal> {
        if let Some((_, ticket)) = &asked.ticket {
            return Ok(ticket.transport);
        }
        if let Some(transport) = entry_transport(asked.entry).filter(|_| !asked.entry.ready.is_empty()) {
            return Ok(transport);
        }
        let entry = self.ready(asked.name).await?;
        entry_transport(&entry).ok_or_else(|| Refusal::unavailable(asked.name, &entry.message))
    }

    /// What a session id holds, when it is one of this deployment's and still good.
    fn ticket(&self, id: &HeaderValue, entry: &Entry) -> Result<(HeaderValue, Ticket), Refusal> {
        let ticket = id.to_str().ok().and_then(|id| self.sealer.unseal(id));
        let ticket = ticket.filter(|t| t.deployment == entry.id && t.principal == ANONYMOUS);
        let ticket = ticket.ok_or_else(|| Refusal::expired("this session id is not one of this server's"))?;
        if ticket.expires < now() {
            return Err(Refusal::expired("this session has expired"));
        }
        Ok((id.clone(), ticket))
    }

    /// The replica of a session.
    pub(crate) fn replica_of<'a>(&self, entry: &'a Entry, ticket: &Ticket) -> Result<&'a Live, Refusal> {
        entry.instance(ticket.instance).ok_or_else(|| Refusal::expired("the replica that held this session is gone"))
    }

    /// Replicas in the order in which they should be tried.
    pub(crate) fn order<'a>(&self, entry: &'a Entry, sessions_first: bool) -> Vec<&'a Live> {
        let turn = self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let burdens: Vec<_> = entry.ready.iter().map(Live::burden).collect();
        let Some(first) = route::choose(&burdens, turn, sessions_first) else { return Vec::new() };
        (0..entry.ready.len()).filter_map(|i| entry.ready.get((first + i) % entry.ready.len())).collect()
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_lists() {
        let with = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_str(text).unwrap());
            headers
        };
        assert!(accepts(&HeaderMap::new(), "application/json"));
        assert!(accepts(&with("application/json, text/event-stream"), "text/event-stream"));
        assert!(accepts(&with("text/event-stream;q=0.5,*/*"), "application/json"));
        assert!(accepts(&with("APPLICATION/*"), "application/json"));
        assert!(!accepts(&with("text/html"), "application/json"));
        assert!(!accepts(&with("application/json;q=0"), "application/json"));
        assert!(!accepts(&with("application/json"), "text/event-stream"));
    }
}
