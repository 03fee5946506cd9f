//! One HTTP request: who may ask, what it is, and which way it goes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use sigil_config::agent::GatewayConfig;
use sigil_core::jsonrpc::{self, Body, Head, Id, Kind, Params};
use sigil_core::mirror;
use sigil_core::model::{InstanceId, Transport};
use sigil_core::policy::Access;
use sigil_core::route;
use sigil_core::session::{self, Era, Ticket};

use super::body::Out;
use super::caller::Caller;
use super::compress::{self, Coding};
use super::error::Refusal;
use super::limits::Permits;
use super::listen::Peer;
use super::load::Flow;
use super::mask::Masking;
use super::oauth::{self, Address};
use super::settings::{self, Settings};
use super::table::{Entry, Live};
use super::tap::Tapping;
use super::trace::{Trace, Upstream};
use super::wrap::{Line, Shaping, Wrapped};
use super::{Shared, bridged, cross, modern, proxy, remembered};
use crate::web;

/// Longest wait for a request's body.
const BODY_TIME: Duration = Duration::from_secs(30);
const METHODS: &str = "GET, POST, DELETE, OPTIONS";

/// A refusal and the request it answers.
pub(crate) type Refused = (Refusal, Option<Id>);

/// A request as the ways out see it.
pub(crate) struct Asked<'a> {
    pub(crate) name: &'a str,
    pub(crate) entry: &'a Arc<Entry>,
    pub(crate) caller: &'a Arc<Caller>,
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) query: Option<&'a str>,
    /// The client's session id and what it holds; the ticket is this deployment's and this caller's, and not expired.
    pub(crate) ticket: Option<(HeaderValue, Ticket)>,
    /// The server's part of it, where it is recorded.
    pub(crate) trace: Option<&'a Arc<Upstream>>,
    /// The configuration of its session; `headers` and `query` are then as the server gets them.
    pub(crate) settings: Option<Arc<Settings>>,
}

/// Answers one request; never fails.
pub(crate) async fn handle(shared: Arc<Shared>, peer: Peer, request: Request<Incoming>) -> Response<Out> {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let host = host(&request);
    let mut response = match admit(&shared, &request, &host) {
        Err(refusal) => {
            shared.counters.refused(&refusal);
            return refuse(&refusal, None);
        }
        Ok(()) => route_path(&shared, peer, &host, request).await,
    };
    let headers = response.headers_mut();
    // an answer is data, whatever a browser would like to make of it
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if peer.tls {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    if let Some(origin) = origin {
        // admitted above, so it may read the answer
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        let exposed = HeaderValue::from_static("mcp-session-id, mcp-protocol-version, www-authenticate, retry-after");
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
    if let Some(reason) = refusal.reason() {
        response.extensions_mut().insert(reason);
    }
    response
}

/// The host that a request names, with its port.
fn host(request: &Request<Incoming>) -> String {
    match request.uri().authority() {
        Some(authority) => authority.as_str().to_owned(),
        None => request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned(),
    }
}

/// Host and Origin: a web page must not reach a server on this machine by a name that it chose.
fn admit(shared: &Shared, request: &Request<Incoming>, host: &str) -> Result<(), Refusal> {
    let config = shared.config.borrow().clone();
    let config = &config.gateway;
    if shared.checks_hosts(config) {
        let host = route::host_of(host);
        let known = |name: &String| route::host_of(name) == host;
        let public = url::Url::parse(&config.public_url).ok().and_then(|u| u.host_str().map(route::host_of));
        let fine = route::is_loopback(&host)
            || config.allowed_hosts.iter().any(known)
            || public.is_some_and(|public| public == host)
            || (!config.domain.is_empty() && (host == config.domain || under(&host, &config.domain).is_some()));
        if !fine {
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

/// The deployment that a host of its own names.
fn under<'h>(host: &'h str, domain: &str) -> Option<&'h str> {
    let name = host.strip_suffix(domain)?.strip_suffix('.')?;
    (!name.is_empty() && !name.contains('.')).then_some(name)
}

/// The deployment that a path names behind `prefix`.
fn named<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(prefix)?;
    let name = rest.strip_suffix('/').unwrap_or(rest);
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

const METADATA: &str = "/.well-known/oauth-protected-resource";

async fn route_path(shared: &Arc<Shared>, peer: Peer, host: &str, request: Request<Incoming>) -> Response<Out> {
    let config = shared.config.borrow().clone();
    let path = request.uri().path();
    let own = (!config.gateway.domain.is_empty()).then(|| route::host_of(host));
    let own = own.as_deref().and_then(|host| under(host, &config.gateway.domain));
    let base = || match config.gateway.public_url.trim_end_matches('/') {
        public if !public.is_empty() && own.is_none() => public.to_owned(),
        _ => format!("{}://{host}", if peer.tls { "https" } else { "http" }),
    };
    let at = match own {
        Some(name) if matches!(path, "/" | "/mcp" | "/mcp/") => Some((name, "/mcp".to_owned())),
        Some(_) => None,
        None if matches!(path, "/mcp" | "/mcp/") => Some(("@", "/mcp".to_owned())),
        None => named(path, "/mcp/").map(|name| (name, format!("/mcp/{name}"))),
    };
    if let Some((name, path)) = at {
        let (name, address) = (name.to_owned(), Address { base: base(), path });
        let mut line = config.gateway.access_log.then(|| Box::new(Line::new(&name, peer.ip, &request)));
        let coding = if config.gateway.compress { Some(Coding::asked(request.headers())) } else { None };
        let trace = Trace::begin(&shared.telemetry, &config.telemetry, &name, peer, &request);
        let mut seen = Seen { line: line.as_deref_mut(), trace: trace.map(Box::new), in_band: false };
        let answered = mcp(shared, &name, &address, peer, request, &mut seen).await;
        let (mut trace, in_band) = (seen.trace, seen.in_band);
        let mut response = match answered {
            Ok(response) => response,
            Err((refusal, id)) => {
                tracing::debug!(deployment = name, code = refusal.code, "{}", refusal.message);
                shared.counters.refused(&refusal);
                if let Some(trace) = &mut trace {
                    trace.refused(&refusal);
                }
                if let Some(line) = &mut line {
                    line.code = refusal.code;
                }
                let mut response = refuse(&refusal, id.as_ref());
                if in_band && refusal.in_band() {
                    *response.status_mut() = StatusCode::OK;
                    response.extensions_mut().remove::<ReasonPhrase>();
                }
                response
            }
        };
        if let Some(coding) = coding.filter(|_| compress::fits(&response)) {
            response = Box::pin(compress::encode(response, coding, &name)).await;
        }
        let status = response.status().as_u16();
        if let Some(trace) = &mut trace {
            trace.status(status);
        }
        if let Some(line) = &mut line {
            line.status = status;
        }
        if line.is_some() || trace.is_some() {
            let wrap = |out| Wrapped::new(out, None, Vec::new(), line.map(|line| *line)).traced(trace);
            response = response.map(|out| Out::Wrapped(Box::new(wrap(out))));
        }
        return response;
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let schema_of = match own {
        Some(name) if path == settings::WELL_KNOWN => Some((name, "/mcp".to_owned())),
        Some(_) => None,
        None => path
            .strip_suffix(settings::WELL_KNOWN)
            .and_then(|path| named(path, "/mcp/"))
            .map(|name| (name, format!("/mcp/{name}"))),
    };
    if let Some((name, path)) = schema_of.filter(|_| reads) {
        let address = Address { base: base(), path };
        return Box::pin(schema(shared, name, &address, peer, request.headers())).await;
    }
    let metadata_of = match own {
        Some(name) if path == METADATA || path == "/.well-known/oauth-protected-resource/mcp" => {
            Some((name, "/mcp".to_owned()))
        }
        Some(_) => None,
        None => named(path, "/.well-known/oauth-protected-resource/mcp/").map(|name| (name, format!("/mcp/{name}"))),
    };
    if let Some((name, path)) = metadata_of.filter(|_| reads) {
        // told only where it opens something
        let open = shared.entry(name).await.is_ok_and(|entry| entry.access == Access::Oauth);
        if open && !config.oauth.issuer.is_empty() {
            let text = oauth::metadata(&config, &Address { base: base(), path }, name);
            let mut response = Response::new(Out::full(text));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return response;
        }
        return refuse(&Refusal::no_path(request.uri().path()), None);
    }
    match path {
        "/healthz" | "/readyz" | "/metrics" => {
            if !reads {
                return refuse(&Refusal::method("GET"), None);
            }
            if path == "/metrics"
                && let Err(refusal) = shared.may_read(request.headers(), peer.ip)
            {
                return refuse(&refusal, None);
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

/// What is written down of a request, where it is.
struct Seen<'a> {
    line: Option<&'a mut Line>,
    trace: Option<Box<Trace>>,
    /// A request within a session, which a JSON-RPC error answers best.
    in_band: bool,
}

/// The schema of a deployment's session configuration, for whoever may ask it anything.
async fn schema(shared: &Arc<Shared>, name: &str, address: &Address, peer: Peer, headers: &HeaderMap) -> Response<Out> {
    let told = async {
        let entry = shared.entry(name).await?;
        shared.caller(&entry, headers, peer.ip, address).await?;
        match &entry.terms {
            Some(terms) => terms.schema(address),
            None => Err(Refusal::no_path(&format!("{}{}", address.path, settings::WELL_KNOWN))),
        }
    };
    match told.await {
        Ok(text) => {
            let mut response = Response::new(Out::full(text));
            let kind = HeaderValue::from_static("application/schema+json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(refusal) => {
            shared.counters.refused(&refusal);
            refuse(&refusal, None)
        }
    }
}

async fn mcp(
    shared: &Arc<Shared>,
    name: &str,
    address: &Address,
    peer: Peer,
    request: Request<Incoming>,
    seen: &mut Seen<'_>,
) -> Result<Response<Out>, Refused> {
    let plain = |refusal: Refusal| (refusal, None);
    let method = request.method().clone();
    if method == Method::OPTIONS {
        return Ok(preflight(request.headers()));
    }
    if !matches!(method, Method::GET | Method::POST | Method::DELETE) {
        return Err(plain(Refusal::method(METHODS)));
    }
    let (mut parts, body) = request.into_parts();
    let (mut entry, caller) = if name.starts_with('@') {
        Box::pin(shared.bundle(name, &parts.headers, parts.uri.query().unwrap_or_default(), peer.ip, address))
            .await
            .map_err(plain)?
    } else {
        let entry = shared.entry(name).await.map_err(plain)?;
        let caller = shared.caller(&entry, &parts.headers, peer.ip, address).await.map_err(plain)?;
        (entry, caller)
    };
    // a bundle's entry has a name of its own for each caller
    let own_name = entry.name.clone();
    let name = own_name.as_str();
    if let Some(line) = &mut seen.line {
        line.caller.clone_from(&caller.name);
    }
    if let Some(trace) = &mut seen.trace {
        trace.caller(&caller.name);
    }
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
        headers.get("mcp-session-id").map(|id| shared.ticket(id, &entry, &caller)).transpose().map_err(plain)?
    };
    if let Some((_, ticket)) = &ticket
        && entry.instance(ticket.instance).is_none()
        && entry.may_return(ticket.instance)
    {
        entry = Box::pin(shared.returned(name, ticket.instance)).await.map_err(plain)?;
    }
    // what is wrong with it is told when the message's id is known
    let settings = shared.settle(&entry, &caller, &parts, ticket.as_ref().map(|(_, ticket)| ticket), address);
    if method != Method::POST {
        if let Some(unknown) = unknown {
            return Err(plain(unknown));
        }
        // without sessions there is nothing to listen to or to end
        if header_era == Some(Era::Modern) && cross::sessionless(shared, &entry) {
            return Err(plain(Refusal::method("POST")));
        }
        let settings = settings.map_err(|refusal| plain(*refusal))?;
        let configured = settings.as_ref().map(|settings| Box::new(settings.headers(headers)));
        let query = settings.as_deref().map_or(parts.uri.query(), Settings::query);
        let headers = configured.as_deref().unwrap_or(headers);
        let tapping = Tapping::begin(&entry, &caller.name, session_of(&ticket));
        let translated = ticket.as_ref().is_some_and(|(_, ticket)| ticket.translated);
        let asked = Asked {
            name,
            entry: &entry,
            caller: &caller,
            method: &method,
            headers,
            query,
            ticket,
            settings: settings.clone(),
            trace: None,
        };
        let outcome = match entry_transport(&entry) {
            // what is seldom lies beside: the future of a call is moved, and should be small
            Some(Transport::Http) | None if !translated => Box::pin(proxy::without_body(shared, asked)).await,
            _ if method == Method::GET => Box::pin(bridged::listen(shared, asked)).await,
            _ => Box::pin(bridged::delete(shared, asked)).await,
        };
        return outcome.map(|response| wrapped(response, &entry, &caller, Vec::new(), tapping)).map_err(plain);
    }
    let media_type = crate::upstream::http::media_type(headers);
    if media_type != "application/json" {
        return Err(plain(Refusal::media_type(&media_type)));
    }
    if !accepts(headers, "application/json") {
        return Err(plain(Refusal::not_acceptable()));
    }
    let body = read(shared, headers, body).await.map_err(plain)?;
    Flow::new(&entry.recorder, &caller).received(body.len());
    let parsed = jsonrpc::parse(&body).map_err(|e| plain(Refusal::malformed(&e)))?;
    let heads: Vec<&Head<'_>> = match &parsed {
        Body::One(head) => vec![head],
        Body::Batch(heads) => {
            let agreed = ticket.as_ref().map(|(_, t)| t.version.as_str()).filter(|v| !v.is_empty());
            let batches = ticket.is_some() && version.or(agreed).is_none_or(|v| v == "2025-03-26");
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
    if let (Some(line), Some(head)) = (&mut seen.line, first) {
        line.read(head);
    }
    if let (Some(trace), Some(head)) = (&mut seen.trace, first) {
        trace.read(head, &mut parts.headers);
    }
    let (headers, trace) = (&parts.headers, seen.trace.as_ref().and_then(|trace| trace.upstream()));
    // only a body that names the key can hold it, and looking for a text is cheaper than reading all parameters
    let is_modern = header_era == Some(Era::Modern)
        || (ticket.is_none()
            && first.is_some_and(|h| {
                h.params.is_some_and(|p| p.get().contains("io.modelcontextprotocol/protocolVersion"))
                    && Params::read(h.params).modern_version().is_some()
            }));
    seen.in_band = id.is_some() && !is_modern && ticket.is_some();
    if let Some(unknown) = unknown.filter(|_| !is_modern) {
        return Err((unknown, id));
    }
    let settings = match settings {
        Ok(settings) => settings,
        Err(refusal) => return Err((*refusal, id)),
    };
    let tapping = Tapping::begin(&entry, &caller.name, session_of(&ticket));
    if let Some(tapping) = &tapping {
        heads.iter().for_each(|head| tapping.tell(true, head.text));
    }
    let mut permits = Permits::new();
    let mut renamed = Vec::new();
    for head in &heads {
        match shared.allow(&entry, &caller, head, &mut permits) {
            Ok(None) => renamed.push(None),
            Ok(Some(text)) => renamed.push(Some(text)),
            Err(refusal) => {
                if let Some(load) = &caller.load {
                    load.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                return Err((refusal, id));
            }
        }
    }
    if renamed.iter().any(Option::is_some) {
        // the server knows the tool by another name
        let texts: Vec<&str> =
            heads.iter().zip(&renamed).map(|(head, new)| new.as_deref().unwrap_or(head.text)).collect();
        let text = match texts.as_slice() {
            [one] if first.is_some() => (*one).to_owned(),
            all => format!("[{}]", all.join(",")),
        };
        rename_header(&mut parts.headers, first, renamed.first().and_then(Option::as_deref));
        if let Some(settings) = &settings {
            parts.headers = settings.headers(&parts.headers);
        }
        let trace = seen.trace.as_ref().and_then(|trace| trace.upstream());
        let again = Again { body: text.into(), parts: &parts, ticket, is_modern, settings, trace };
        let passed = Box::pin(again.pass(shared, name, &entry, &caller, permits, tapping)).await;
        return passed.map_err(|refusal| (refusal, id));
    }
    let ticket = ticket.filter(|_| !is_modern);
    let configured = settings.as_ref().map(|settings| Box::new(settings.headers(headers)));
    let headers = configured.as_deref().unwrap_or(headers);
    let query = settings.as_deref().map_or(parts.uri.query(), Settings::query);
    let settings = settings.clone();
    let (entry, caller) = (&entry, &caller);
    let asked = Asked { name, entry, caller, method: &method, headers, query, ticket, settings, trace };
    let outcome = pass(shared, asked, first, &heads, &body, is_modern).await;
    outcome.map(|response| wrapped(response, entry, caller, permits, tapping)).map_err(|refusal| (refusal, id))
}

/// A request whose body was changed on the way.
struct Again<'a> {
    body: Bytes,
    parts: &'a hyper::http::request::Parts,
    ticket: Option<(HeaderValue, Ticket)>,
    is_modern: bool,
    trace: Option<&'a Arc<Upstream>>,
    settings: Option<Arc<Settings>>,
}

impl Again<'_> {
    async fn pass(
        self,
        shared: &Arc<Shared>,
        name: &str,
        entry: &Arc<Entry>,
        caller: &Arc<Caller>,
        permits: Permits,
        tapping: Option<Tapping>,
    ) -> Result<Response<Out>, Refusal> {
        let Self { body, parts, ticket, is_modern, settings, trace } = self;
        let parsed = jsonrpc::parse(&body).map_err(|e| Refusal::malformed(&e))?;
        let heads: Vec<&Head<'_>> = match &parsed {
            Body::One(head) => vec![head],
            Body::Batch(heads) => heads.iter().collect(),
        };
        let first = matches!(parsed, Body::One(_)).then(|| heads.first().copied()).flatten();
        let ticket = ticket.filter(|_| !is_modern);
        let (method, headers) = (&parts.method, &parts.headers);
        let shown = settings.clone();
        let query = shown.as_deref().map_or(parts.uri.query(), Settings::query);
        let asked = Asked { name, entry, caller, method, headers, query, ticket, settings, trace };
        let response = pass(shared, asked, first, &heads, &body, is_modern).await?;
        Ok(wrapped(response, entry, caller, permits, tapping))
    }
}

/// `Mcp-Name` repeats the body's name; one that did not before is left for the check to find.
fn rename_header(headers: &mut HeaderMap, was: Option<&Head<'_>>, now: Option<&str>) {
    let name = |params| Params::read(params).name.and_then(jsonrpc::string);
    let Some(was) = was.and_then(|head| name(head.params)) else { return };
    let agreed = headers
        .get("mcp-name")
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| mirror::decode(v).as_deref() == Some(&*was));
    let now = now.and_then(|text| jsonrpc::parse_one(text.as_bytes()).ok());
    let now = now.as_ref().and_then(|head| name(head.params)).map(|name| mirror::encode(&name).into_owned());
    if let (true, Some(Ok(value))) = (agreed, now.map(HeaderValue::try_from)) {
        headers.insert("mcp-name", value);
    }
}

async fn pass(
    shared: &Arc<Shared>,
    asked: Asked<'_>,
    first: Option<&Head<'_>>,
    heads: &[&Head<'_>],
    body: &Bytes,
    is_modern: bool,
) -> Result<Response<Out>, Refusal> {
    // what a server lists may depend on its configuration
    match first.filter(|head| is_modern && asked.settings.is_none() && remembered::is_list(head)) {
        None => send(shared, asked, first, heads, body, is_modern).await,
        Some(head) => match remembered::recall(shared, &asked, head) {
            Some(recalled) => recalled,
            None => {
                let again = Asked { ticket: None, settings: None, ..asked };
                let response = Box::pin(send(shared, asked, first, heads, body, true)).await?;
                Ok(remembered::watch(shared, &again, head, response))
            }
        },
    }
}

async fn send(
    shared: &Arc<Shared>,
    asked: Asked<'_>,
    first: Option<&Head<'_>>,
    heads: &[&Head<'_>],
    body: &Bytes,
    is_modern: bool,
) -> Result<Response<Out>, Refusal> {
    match shared.transport(&asked).await? {
        _ if asked.ticket.as_ref().is_some_and(|(_, ticket)| ticket.translated) => {
            bridged::post(shared, asked, heads, body).await
        }
        Transport::Http => cross::http(shared, &asked, first, body, is_modern).await,
        _ if is_modern => Box::pin(modern::post(shared, &asked, first, body)).await,
        _ => bridged::post(shared, asked, heads, body).await,
    }
}

/// What tells a session from others.
fn session_of(ticket: &Option<(HeaderValue, Ticket)>) -> &str {
    ticket.as_ref().map_or("", |(_, ticket)| ticket.upstream.as_str())
}

/// The answer as its caller may see it, holding its places, shown to whoever looks.
fn wrapped(
    mut response: Response<Out>,
    entry: &Arc<Entry>,
    caller: &Arc<Caller>,
    permits: Permits,
    tapping: Option<Tapping>,
) -> Response<Out> {
    response.body_mut().counted(Flow::new(&entry.recorder, caller));
    let events = crate::upstream::http::is_event_stream(response.headers());
    let shaping = Shaping::new(entry, caller, events);
    let masking = entry.masks.as_ref().map(Masking::new);
    if shaping.is_none() && permits.is_empty() && tapping.is_none() && masking.is_none() {
        return response;
    }
    if shaping.is_some() {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let tapping = tapping.map(|tapping| tapping.of_events(events));
    response
        .map(|out| Out::Wrapped(Box::new(Wrapped::new(out, shaping, permits, None).tapped(tapping).masked(masking))))
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
    /// Whether a request's host name is known to be one of ours.
    pub(crate) fn checks_hosts(&self, config: &GatewayConfig) -> bool {
        let named = !config.allowed_hosts.is_empty() || !config.domain.is_empty() || !config.public_url.is_empty();
        self.loopback || named
    }

    /// The deployment of a name. A new agent listens a moment before it knows what it serves; then this waits.
    pub(crate) async fn entry(&self, name: &str) -> Result<Arc<Entry>, Refusal> {
        if name.starts_with('@') {
            return self.bundles.entry(name).ok_or_else(|| Refusal::expired("this bundle was forgotten"));
        }
        if !self.table.borrow().known {
            self.until(name, |table| table.known).await?;
        }
        self.table.borrow().routes.get(name).cloned().ok_or_else(|| Refusal::not_found(name))
    }

    /// All deployments, once they are known.
    pub(crate) async fn known(&self) -> Result<Arc<super::table::Table>, Refusal> {
        if !self.table.borrow().known {
            self.until("the gateway", |table| table.known).await?;
        }
        Ok(self.table.borrow().clone())
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
    fn ticket(&self, id: &HeaderValue, entry: &Entry, caller: &Caller) -> Result<(HeaderValue, Ticket), Refusal> {
        let ticket = id.to_str().ok().and_then(|id| self.sealer.unseal(id));
        let ticket = ticket.filter(|t| t.deployment == entry.id && t.principal == *caller.principal);
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
