//! HTTP servers: a request is passed on once, its answer as it comes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response};
use secrecy::{ExposeSecret, SecretString};
use sigil_core::jsonrpc::{self, Head, Kind};
use sigil_core::model::{Inject, Transport};
use sigil_core::session::Ticket;

use super::Shared;
use super::body::{Out, Proxied};
use super::error::Refusal;
use super::find::now;
use super::load::{Call, Passing};
use super::serve::Asked;
use super::table::{Entry, Live};
use crate::upstream::http::{self, Answer, SendError};

/// A session's longest life, seconds: its id must not be good for ever.
pub(crate) const SESSION_LIFE: u64 = 7 * 24 * 3600;

/// Headers that never pass: of the connection itself, or meant for the gateway alone.
const KEPT_BACK: [&str; 16] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "content-length",
    "expect",
    "authorization",
    "cookie",
    "set-cookie",
    // checked here; a server's own check would not know the allowed ones
    "origin",
];

/// GET and DELETE.
pub(crate) async fn without_body(shared: &Arc<Shared>, asked: Asked<'_>) -> Result<Response<Out>, Refusal> {
    let outcome = match exchange(shared, &asked, None, Bytes::new(), None).await {
        Err(refusal) if refusal.unsent => {
            let (asked, session) = (&asked, asked.ticket.as_ref().map(|(_, ticket)| ticket));
            let again = |entry: Arc<Entry>| {
                async move {
                    let entry = shared.personal(entry, asked.caller)?;
                    exchange(shared, &asked.of(&entry), None, Bytes::new(), None).await
                }
                .boxed()
            };
            shared.again(asked.name, session, refusal, again).await?
        }
        outcome => outcome?,
    };
    if asked.method == Method::DELETE
        && let Some((_, ticket)) = &asked.ticket
    {
        shared.http_sessions.ended(ticket.instance, &ticket.upstream);
    }
    Ok(outcome)
}

/// POST. `head`: the message, unless it is a batch.
pub(crate) async fn post(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    head: Option<&Head<'_>>,
    body: Bytes,
    modern: bool,
) -> Result<Response<Out>, Refusal> {
    if modern && let Some(head) = head {
        // the server compares them, too, but whoever reads a body has to (SEP-2243)
        super::modern::check(asked.headers, head)?;
    }
    let version = modern.then_some(sigil_core::session::FIRST_MODERN);
    exchange(shared, asked, head, body, version).await
}

async fn exchange(
    shared: &Arc<Shared>,
    asked: &Asked<'_>,
    head: Option<&Head<'_>>,
    body: Bytes,
    modern: Option<&str>,
) -> Result<Response<Out>, Refusal> {
    let waited;
    let entry = match &asked.ticket {
        Some(_) => asked.entry,
        None if !asked.entry.ready.is_empty() => asked.entry,
        None => {
            waited = shared.personal(shared.ready(asked.name).await?, asked.caller)?;
            &waited
        }
    };
    let replicas = match &asked.ticket {
        Some((_, ticket)) => vec![shared.replica_of(entry, ticket)?],
        None => shared.order(entry, head.is_some_and(|h| h.method == "initialize")),
    };
    let is_request = head.is_none_or(|h| h.kind == Kind::Request) && asked.method == Method::POST;
    let body = match head.and_then(|h| inject_body(&entry.injected, h)) {
        Some(changed) => Bytes::from(changed),
        None => body,
    };
    let mut last = None;
    for live in replicas {
        let mut call = is_request.then(|| {
            let call = Call::begin(&live.stats, &entry.recorder, asked.caller).traced(asked.trace);
            match head {
                Some(head) => call.of(head),
                None => call,
            }
        });
        // a GET may listen for as long as its client likes
        let _passing = (!is_request && asked.method != Method::GET).then(|| Passing::begin(&live.stats));
        let request = outgoing(entry, live, asked, body.clone())?;
        let limit = Duration::from_millis(live.endpoint.spec.request_timeout_ms);
        let sent = http::send(&live.endpoint, request);
        let answer = if asked.method == Method::GET {
            sent.await
        } else {
            match tokio::time::timeout(limit, sent).await {
                Ok(answer) => answer,
                Err(_) => {
                    call.iter_mut().for_each(Call::fail);
                    return Err(Refusal::timeout(asked.name, live.endpoint.spec.request_timeout_ms));
                }
            }
        };
        match answer {
            Ok(answer) => return incoming(shared, entry, live, asked, head, answer, call, modern.is_some()),
            Err(SendError::Dial(error)) => {
                // nothing was sent, so another replica may be asked
                call.iter_mut().for_each(Call::fail);
                // its replica was retired since the request came: the client begins anew, as for any session that ended
                if let Some((_, ticket)) = &asked.ticket {
                    let now = shared.entry(asked.name).await?;
                    shared.replica_of(&now, ticket)?;
                }
                last = Some(error);
            }
            Err(SendError::Lost(why)) => {
                call.iter_mut().for_each(Call::fail);
                // nobody waits for an answer of what is no request: that the session is over is all there is to say
                if let (None, Some((_, ticket))) = (&call, &asked.ticket) {
                    let now = shared.entry(asked.name).await?;
                    shared.replica_of(&now, ticket)?;
                }
                let what = format!(
                    "'{}' broke the connection off before it answered; the call was not sent again ({why})",
                    asked.name
                );
                return Err(Refusal::failed(asked.name, what));
            }
        }
    }
    Err(Refusal::unreached(asked.name, last))
}

fn outgoing(
    entry: &Entry,
    live: &Live,
    asked: &Asked<'_>,
    body: Bytes,
) -> Result<Request<http_body_util::Full<Bytes>>, Refusal> {
    let spec = &live.endpoint.spec;
    let target = target(&spec.path, asked.query, &entry.injected);
    let mut request = Request::new(if body.is_empty() { http::empty() } else { http::full(body) });
    *request.method_mut() = asked.method.clone();
    let bad = |_| Refusal::bad_request("the address cannot be passed on", "");
    *request.uri_mut() = target.parse().map_err(bad)?;
    let out = request.headers_mut();
    copy_headers(asked.headers, out);
    // events must come through as they are written
    out.remove(header::ACCEPT_ENCODING);
    out.insert(header::HOST, http::host(spec.port));
    out.remove("mcp-session-id");
    if let Some((_, ticket)) = &asked.ticket
        && let Ok(session) = HeaderValue::from_str(&ticket.upstream)
    {
        out.insert("mcp-session-id", session);
    }
    inject_headers(&entry.injected, out);
    Ok(request)
}

/// Copies what may pass, all values of each.
pub(crate) fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    let named: Vec<String> = from
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    to.reserve(from.len());
    // a key of this agent is for this agent
    let ours = |name: &HeaderName, value: &HeaderValue| name == "x-api-key" && value.as_bytes().starts_with(b"sigil_");
    for (name, value) in from.iter().filter(|(name, value)| !ours(name, value)) {
        if !KEPT_BACK.contains(&name.as_str()) && !named.iter().any(|n| n == name.as_str()) {
            to.append(name.clone(), value.clone());
        }
    }
}

/// Path and query for the server: its own path, the client's query, secrets that go there.
pub(crate) fn target(path: &str, query: Option<&str>, injected: &[(Inject, SecretString)]) -> String {
    let secrets: Vec<(&String, &SecretString)> = injected
        .iter()
        .filter_map(|(inject, value)| match inject {
            Inject::Query(name) => Some((name, value)),
            _ => None,
        })
        .collect();
    if secrets.is_empty() {
        return query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    }
    // a client's own value for a secret's name would win with some servers: it goes
    let kept = query.unwrap_or_default().split('&').filter(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        let name = url::form_urlencoded::parse(name.as_bytes()).next().map(|(n, _)| n.into_owned()).unwrap_or_default();
        !pair.is_empty() && !secrets.iter().any(|(n, _)| **n == name)
    });
    let mut parts: Vec<String> = kept.map(str::to_owned).collect();
    for (name, value) in secrets {
        parts.push(
            url::form_urlencoded::Serializer::new(String::new()).append_pair(name, value.expose_secret()).finish(),
        );
    }
    format!("{path}?{}", parts.join("&"))
}

pub(crate) fn inject_headers(injected: &[(Inject, SecretString)], headers: &mut HeaderMap) {
    for (inject, value) in injected {
        let Inject::Header(name) = inject else { continue };
        let parsed = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.expose_secret()));
        if let (Ok(name), Ok(mut value)) = parsed {
            value.set_sensitive(true);
            headers.insert(name, value);
        } else {
            tracing::warn!(
                name,
                "a secret cannot be a header: its name or value has characters that headers cannot carry"
            );
        }
    }
}

/// Body secrets are arguments of tool calls: a key beside `jsonrpc` would make strict servers refuse the message.
pub(crate) fn inject_body(injected: &[(Inject, SecretString)], head: &Head<'_>) -> Option<String> {
    let values: Vec<(&str, &str)> = injected
        .iter()
        .filter_map(|(inject, value)| match inject {
            Inject::Body(name) => Some((name.as_str(), value.expose_secret())),
            _ => None,
        })
        .collect();
    if values.is_empty() { None } else { jsonrpc::with_arguments(head, &values) }
}

#[allow(clippy::too_many_arguments, reason = "one place builds the answer, from everything that is known")]
fn incoming(
    shared: &Arc<Shared>,
    entry: &Entry,
    live: &Live,
    asked: &Asked<'_>,
    head: Option<&Head<'_>>,
    answer: Answer,
    mut call: Option<Call>,
    modern: bool,
) -> Result<Response<Out>, Refusal> {
    let (parts, body) = answer.into_parts();
    if parts.status.is_server_error() {
        call.iter_mut().for_each(Call::fail);
    }
    let mut headers = HeaderMap::new();
    copy_headers(&parts.headers, &mut headers);
    for name in ["access-control-allow-origin", "access-control-allow-credentials", "access-control-expose-headers"] {
        headers.remove(name);
    }
    if let Some(length) = parts.headers.get(header::CONTENT_LENGTH) {
        headers.insert(header::CONTENT_LENGTH, length.clone());
    }
    let session = headers.remove("mcp-session-id").filter(|_| !modern);
    if let Some(session) = session {
        let upstream = session.to_str().map_err(|_| {
            Refusal::failed(asked.name, format!("'{}' answers a session id that is no visible ASCII", asked.name))
        })?;
        shared.http_sessions.seen(live, upstream);
        let own = asked.ticket.as_ref().filter(|(_, t)| t.upstream == upstream).map(|(id, _)| id.clone());
        let own = match own {
            Some(own) => own,
            None => {
                let ticket = Ticket {
                    deployment: entry.id,
                    instance: live.endpoint.instance,
                    principal: asked.caller.principal.to_string(),
                    transport: Transport::Http,
                    version: String::new(),
                    upstream: upstream.to_owned(),
                    translated: false,
                    expires: now() + SESSION_LIFE,
                    settings: asked.settings.as_ref().map(|settings| settings.digest),
                };
                let sealed = shared.sealer.seal(&ticket).and_then(|id| HeaderValue::try_from(id).ok());
                sealed.ok_or_else(|| Refusal::failed(asked.name, "no session id could be made: no randomness"))?
            }
        };
        headers.insert("mcp-session-id", own);
    } else if let Some((_, ticket)) = &asked.ticket {
        if parts.status == hyper::StatusCode::NOT_FOUND {
            shared.http_sessions.ended(ticket.instance, &ticket.upstream);
        } else {
            shared.http_sessions.seen(live, &ticket.upstream);
        }
    }
    let stream = http::is_event_stream(&parts.headers);
    if stream {
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    let id = head.filter(|h| h.kind == Kind::Request).and_then(|h| h.id.as_ref());
    let farewell = match id {
        _ if !stream => None,
        Some(id) => {
            let what =
                format!("'{}' broke its event stream off before it answered; the call was not sent again", asked.name);
            let error = Refusal::failed(asked.name, what).to_json(Some(id));
            Some(Bytes::from([b"data: ", error.as_ref(), b"\n\n"].concat()))
        }
        // nothing is owed there: it ends, and whoever still listens comes again. Broken off right behind the head it would
        // take the head with it
        None if *asked.method == Method::GET => Some(Bytes::from_static(b": the server ended the stream\n\n")),
        None => None,
    };
    let mut response = Response::new(Out::Proxied(Box::new(Proxied::new(body, call, farewell))));
    *response.status_mut() = parts.status;
    *response.headers_mut() = headers;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_keep_the_clients_and_gain_the_secrets() {
        let secret = [(Inject::Query("api key".into()), SecretString::from("a&b"))];
        assert_eq!(target("/mcp", None, &[]), "/mcp");
        assert_eq!(target("/mcp", Some("a=1&b"), &[]), "/mcp?a=1&b");
        assert_eq!(target("/mcp", Some("a=%20&api+key=mine"), &secret), "/mcp?a=%20&api+key=a%26b");
        assert_eq!(target("/", None, &secret), "/?api+key=a%26b");
    }

    #[test]
    fn headers_of_the_connection_and_of_the_gateway_stay() {
        let mut from = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("authorization", "Bearer t"),
            ("cookie", "a=b"),
            ("mcp-param-region", "eu"),
            ("traceparent", "00-x"),
        ] {
            from.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut to = HeaderMap::new();
        copy_headers(&from, &mut to);
        let mut names: Vec<&str> = to.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["mcp-param-region", "traceparent"]);
    }
}
