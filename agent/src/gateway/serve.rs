//! One HTTP request: who may ask, what it is, and which way it goes.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use sigil_core::jsonrpc::{self, Body, Head, Id, Kind, Params};
use sigil_core::mirror;
use sigil_core::model::Transport;
use sigil_core::policy::Access;
use sigil_core::route;
use sigil_core::session::{self, Era, Ticket};

use super::body::Out;
use super::caller::Caller;
use super::compress::{self, Coding};
use super::error::Refusal;
use super::find::entry_transport;
use super::limits::Permits;
use super::listen::Peer;
use super::load::Flow;
use super::mask::Masking;
use super::oauth::{self, Address};
use super::plain::{self, METHODS, accepts, admit, admit_host, header_text, host, named, preflight, read, under};
use super::settings::{self, Settings};
use super::table::Entry;
use super::tap::Tapping;
use super::trace::{Trace, Upstream};
use super::wrap::{Line, Shaping, Wrapped};
use super::{Shared, bridged, caching, cross, lasting, modern, proxy, remembered};
use crate::follow::Hook;
use crate::web;

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

impl<'a> Asked<'a> {
    /// The same of the deployment as it is now.
    pub(crate) fn of<'b>(&'b self, entry: &'b Arc<Entry>) -> Asked<'b>
    where
        'a: 'b,
    {
        Asked { entry, ticket: self.ticket.clone(), settings: self.settings.clone(), ..*self }
    }
}

/// Answers one request; never fails.
pub(crate) async fn handle(shared: Arc<Shared>, peer: Peer, request: Request<Incoming>) -> Response<Out> {
    let mut origin = request.headers().get(header::ORIGIN).cloned();
    let host = host(&request);
    let site = shared.site.get().filter(|_| web::registry::owns(request.uri().path()));
    let mut response = match site {
        Some(site) => {
            // it says itself whose pages may read the answer
            origin = None;
            Box::pin(registry(&shared, site, peer, &host, request)).await
        }
        None => match admit(&shared, &request, &host) {
            Err(refusal) => {
                shared.counters.refused(&refusal);
                return refuse(&refusal, None);
            }
            Ok(()) => route_path(&shared, peer, &host, request).await,
        },
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

/// A page of the registry.
async fn registry(
    shared: &Shared,
    site: &web::registry::Site,
    peer: Peer,
    host: &str,
    request: Request<Incoming>,
) -> Response<Out> {
    let (parts, body) = request.into_parts();
    let read = async {
        admit_host(shared, host)?;
        // whoever only reads sends nothing that is of use
        if matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            return Ok(Bytes::new());
        }
        read(shared, &parts.headers, body).await
    };
    let response = match read.await {
        Err(refusal) => {
            shared.counters.refused(&refusal);
            web::registry::refusal(refusal.status, &format!("{}; {}", refusal.message, refusal.hint))
        }
        Ok(body) => {
            let asked = web::registry::Asked {
                method: parts.method,
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().unwrap_or_default().to_owned(),
                headers: parts.headers,
                body,
                peer: peer.ip,
            };
            site.answer(asked).await
        }
    };
    response.map(Out::full)
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
        let listens = request.method() == Method::GET;
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
        let cached = response.extensions().get().map_or("", |word: &caching::Word| word.as_str());
        if let Some(trace) = &mut trace {
            trace.status(status);
            if !cached.is_empty() {
                trace.cached(cached);
            }
        }
        if let Some(line) = &mut line {
            line.status = status;
            line.cache = cached;
        }
        // a stream's opening is what takes time; how long its client stays says nothing
        let trace = trace.filter(|_| !listens);
        if line.is_some() || trace.is_some() {
            let wrap = |out| Wrapped::new(out, None, Vec::new(), line).traced(trace);
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
    if let Some(name) = path.strip_prefix("/hooks/").filter(|_| own.is_none()) {
        let name = name.to_owned();
        return Box::pin(hook(shared, name, peer, request)).await;
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
            let (status, media_type, text) = match path {
                "/metrics" => match shared.scrapes.page(shared).await {
                    Some(text) => (StatusCode::OK, web::EXPOSITION, text),
                    // whoever makes it has ended before it was made
                    None => (StatusCode::SERVICE_UNAVAILABLE, web::PLAIN, "the agent is stopping\n".into()),
                },
                path => {
                    let not_ready = shared.not_ready();
                    let page = if path == "/healthz" { web::health() } else { web::readiness(not_ready.as_deref()) };
                    (page.status, page.media_type, page.text.into())
                }
            };
            let mut response = Response::new(Out::full(text));
            *response.status_mut() = status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
            response
        }
        _ => refuse(&Refusal::no_path(path), None),
    }
}

/// A forge tells of a push.
async fn hook(shared: &Arc<Shared>, name: String, peer: Peer, request: Request<Incoming>) -> Response<Out> {
    let (Some(hooks), true) = (shared.hooks.get(), request.method() == Method::POST) else {
        return refuse(&Refusal::method("POST"), None);
    };
    let (head, body) = request.into_parts();
    let body = match plain::read(shared, &head.headers, body).await {
        Ok(body) => body,
        Err(refusal) => return refuse(&refusal, None),
    };
    let answer = hooks.hook(Hook { name, headers: head.headers, body, from: peer.ip }).await;
    let mut response = Response::new(Out::full(format!("{}\n", answer.text)));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
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
        (shared.personal(entry, &caller).map_err(plain)?, caller)
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
    // what goes out without a body comes back at once; a stream that listens keeps nobody awake
    let nap = entry.recorder.nap.clone();
    let lasting = lasting::is(ticket.as_ref());
    let held = (method != Method::POST && !lasting).then(|| nap.hold());
    // a session may wait for the agent to take its replica over, and a frozen one does not answer
    if !lasting
        && !nap.is_awake()
        && (held.is_some() || ticket.as_ref().is_some_and(|(_, t)| entry.instance(t.instance).is_none()))
    {
        Box::pin(shared.awake(name, &nap)).await.map_err(plain)?;
        entry = shared.personal(shared.entry(name).await.map_err(plain)?, &caller).map_err(plain)?;
    }
    if let Some((_, ticket)) = &ticket
        && !lasting
        && entry.instance(ticket.instance).is_none()
        && entry.may_return(ticket.instance)
    {
        let found = Box::pin(shared.returned(name, ticket.instance)).await.map_err(plain)?;
        entry = shared.personal(found, &caller).map_err(plain)?;
    }
    // what is wrong with it is told when the message's id is known
    let settings = shared.settle(&entry, &caller, &parts, ticket.as_ref().map(|(_, ticket)| ticket), address);
    if method != Method::POST {
        if let Some(unknown) = unknown {
            return Err(plain(unknown));
        }
        let session = ticket.as_ref().map(|(_, ticket)| ticket);
        if entry.is_away(session) {
            let found = Box::pin(shared.reached(name, session)).await.map_err(plain)?;
            entry = shared.personal(found, &caller).map_err(plain)?;
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
            _ if lasting && method == Method::GET => Box::pin(lasting::listen(shared, asked)).await,
            _ if lasting => Box::pin(lasting::delete(shared, asked)).await,
            // what is seldom lies beside: the future of a call is moved, and should be small
            Some(Transport::Http) | None if !translated => Box::pin(proxy::without_body(shared, asked)).await,
            _ if method == Method::GET => Box::pin(bridged::listen(shared, asked)).await,
            _ => Box::pin(bridged::delete(shared, asked)).await,
        };
        let heard = |response| match entry.rules.caches() {
            true => caching::listened(shared, &entry, response),
            false => response,
        };
        return outcome.map(|r| wrapped(heard(r), &entry, &caller, Vec::new(), tapping, true)).map_err(plain);
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
    match (&mut seen.trace, first) {
        (Some(trace), Some(head)) => trace.read(head, &mut parts.headers),
        (Some(trace), None) => trace.batch(&heads, &mut parts.headers),
        (None, _) => {}
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
    let session = ticket.as_ref().filter(|_| !is_modern).map(|(_, ticket)| ticket);
    if entry.is_away(session) {
        let found = Box::pin(shared.reached(name, session)).await;
        entry = match found.and_then(|found| shared.personal(found, &caller)) {
            Ok(entry) => entry,
            Err(refusal) => return Err((refusal, id)),
        };
    }
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
    // with an old session id too: a client that starts over means a new session
    let ticket = ticket.filter(|_| !(is_modern || lasting && first.is_some_and(is_hello)));
    let configured = settings.as_ref().map(|settings| Box::new(settings.headers(headers)));
    let headers = configured.as_deref().unwrap_or(headers);
    let query = settings.as_deref().map_or(parts.uri.query(), Settings::query);
    let settings = settings.clone();
    let (entry, caller) = (&entry, &caller);
    let asked = Asked { name, entry, caller, method: &method, headers, query, ticket, settings, trace };
    let outcome = pass(shared, asked, first, &heads, &body, is_modern).await;
    outcome
        .map(|response| wrapped(response, entry, caller, permits, tapping, asks_for_tools(&heads)))
        .map_err(|refusal| (refusal, id))
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
        Ok(wrapped(response, entry, caller, permits, tapping, asks_for_tools(&heads)))
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
    if asked.entry.rules.caches() {
        return Box::pin(caching::pass(shared, asked, first, heads, body, is_modern)).await;
    }
    pass_on(shared, asked, first, heads, body, is_modern).await
}

/// The same past the cache.
pub(crate) async fn pass_on(
    shared: &Arc<Shared>,
    asked: Asked<'_>,
    first: Option<&Head<'_>>,
    heads: &[&Head<'_>],
    body: &Bytes,
    is_modern: bool,
) -> Result<Response<Out>, Refusal> {
    // what a server lists may depend on its configuration, and on who asks where it is told that
    let alike = asked.settings.is_none() && asked.entry.personal.is_none();
    if let Some(head) = first.filter(|head| !is_modern && is_hello(head)) {
        let mut response = Box::pin(send(shared, &asked, first, heads, body, false)).await?;
        if alike {
            response = remembered::watch_greeting(shared, &asked, head, response);
        }
        return Ok(if asked.entry.replayable { lasting::keep(shared, &asked, head, response) } else { response });
    }
    match first.filter(|head| is_modern && alike && remembered::is_list(head)) {
        None => send(shared, &asked, first, heads, body, is_modern).await,
        Some(head) => match remembered::recall(shared, &asked, head) {
            Some(recalled) => recalled,
            None => {
                let response = Box::pin(send(shared, &asked, first, heads, body, true)).await?;
                Ok(remembered::watch(shared, &asked, head, response))
            }
        },
    }
}

/// A handshake of the older era.
fn is_hello(head: &Head<'_>) -> bool {
    head.kind == Kind::Request && head.method == "initialize"
}

async fn send(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    first: Option<&Head<'_>>,
    heads: &[&Head<'_>],
    body: &Bytes,
    is_modern: bool,
) -> Result<Response<Out>, Refusal> {
    if lasting::is(asked.ticket.as_ref()) {
        return Box::pin(lasting::post(shared, asked, first, heads, body)).await;
    }
    let nap = &asked.entry.recorder.nap;
    let _held = nap.hold();
    if !nap.is_awake() {
        let hello = first.filter(|head| !is_modern && is_hello(head));
        if let Some(answer) = pong(asked, first).or_else(|| lasting::greet(shared, asked, hello)) {
            return Ok(answer);
        }
        Box::pin(shared.awake(asked.name, nap)).await?;
    }
    send_awake(shared, asked, first, heads, body, is_modern).await
}

/// The same to one that is awake, and is kept so.
pub(crate) async fn send_awake(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    first: Option<&Head<'_>>,
    heads: &[&Head<'_>],
    body: &Bytes,
    is_modern: bool,
) -> Result<Response<Out>, Refusal> {
    if asked.ticket.is_none() && asked.entry.ready.is_empty() {
        return send_late(shared, asked, first, heads, body, is_modern).await;
    }
    match send_now(shared, asked, first, heads, body, is_modern).await {
        Err(refusal) if refusal.unsent => send_again(shared, asked, first, heads, body, is_modern, refusal).await,
        outcome => outcome,
    }
}

/// The answer to a client of the older era that only asks whether its session's server is there: it is, and sleeps on.
fn pong(asked: &Asked<'_>, first: Option<&Head<'_>>) -> Option<Response<Out>> {
    let head = first.filter(|head| head.kind == Kind::Request && head.method == "ping")?;
    let (_, ticket) = asked.ticket.as_ref()?;
    asked.entry.instance(ticket.instance)?;
    let text = format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{{}}}}", head.id.as_ref()?);
    Some(bridged::json(Bytes::from(text)))
}

async fn send_now(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    first: Option<&Head<'_>>,
    heads: &[&Head<'_>],
    body: &Bytes,
    is_modern: bool,
) -> Result<Response<Out>, Refusal> {
    match shared.transport(asked).await? {
        _ if asked.ticket.as_ref().is_some_and(|(_, ticket)| ticket.translated) => {
            bridged::post(shared, asked, heads, body).await
        }
        Transport::Http => cross::http(shared, asked, first, body, is_modern).await,
        _ if is_modern => Box::pin(modern::post(shared, asked, first, body)).await,
        _ => bridged::post(shared, asked, heads, body).await,
    }
}

/// Once a server has started it is asked about like any other: which era it speaks decides the way.
fn send_late<'a>(
    shared: &'a Arc<Shared>,
    asked: &'a Asked<'_>,
    first: Option<&'a Head<'_>>,
    heads: &'a [&Head<'_>],
    body: &'a Bytes,
    is_modern: bool,
) -> BoxFuture<'a, Result<Response<Out>, Refusal>> {
    Box::pin(async move {
        let entry = shared.personal(shared.ready(asked.name).await?, asked.caller)?;
        send_awake(shared, &asked.of(&entry), first, heads, body, is_modern).await
    })
}

/// What could not be sent is, once somebody is in reach.
fn send_again<'a>(
    shared: &'a Arc<Shared>,
    asked: &'a Asked<'_>,
    first: Option<&'a Head<'_>>,
    heads: &'a [&Head<'_>],
    body: &'a Bytes,
    is_modern: bool,
    refusal: Refusal,
) -> BoxFuture<'a, Result<Response<Out>, Refusal>> {
    let session = asked.ticket.as_ref().map(|(_, ticket)| ticket);
    Box::pin(shared.again(asked.name, session, refusal, move |entry| {
        Box::pin(async move {
            let entry = shared.personal(entry, asked.caller)?;
            send_now(shared, &asked.of(&entry), first, heads, body, is_modern).await
        })
    }))
}

/// What tells a session from others.
fn session_of(ticket: &Option<(HeaderValue, Ticket)>) -> &str {
    ticket.as_ref().map_or("", |(_, ticket)| ticket.upstream.as_str())
}

fn asks_for_tools(heads: &[&Head<'_>]) -> bool {
    heads.iter().any(|head| head.method == "tools/list")
}

/// The answer as its caller may see it, holding its places, shown to whoever looks. `lists`: it may be a list of tools.
fn wrapped(
    mut response: Response<Out>,
    entry: &Arc<Entry>,
    caller: &Arc<Caller>,
    permits: Permits,
    tapping: Option<Tapping>,
    lists: bool,
) -> Response<Out> {
    response.body_mut().counted(Flow::new(&entry.recorder, caller).connected());
    let events = crate::upstream::http::is_event_stream(response.headers());
    let shaping = Shaping::new(entry, caller, events, lists);
    let masking = entry.masks.as_ref().map(Masking::new);
    if shaping.is_none() && permits.is_empty() && tapping.is_none() && masking.is_none() {
        return response;
    }
    if shaping.is_some() {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let cached = response.extensions().get() == Some(&caching::Word::Hit);
    let tapping = tapping.map(|tapping| tapping.of_events(events).of_cache(cached));
    response
        .map(|out| Out::Wrapped(Box::new(Wrapped::new(out, shaping, permits, None).tapped(tapping).masked(masking))))
}
