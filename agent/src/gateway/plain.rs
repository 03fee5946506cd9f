//! What of a request is plain HTTP: which hosts and pages may ask, which media types its client takes, its body, and what
//! a browser asks before it.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use sigil_core::route;

use super::Shared;
use super::body::Out;
use super::error::Refusal;

/// Longest wait for a request's body.
const BODY_TIME: Duration = Duration::from_secs(30);
pub(crate) const METHODS: &str = "GET, POST, DELETE, OPTIONS";

/// The host that a request names, with its port.
pub(crate) fn host(request: &Request<Incoming>) -> String {
    match request.uri().authority() {
        Some(authority) => authority.as_str().to_owned(),
        None => request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned(),
    }
}

/// Host and Origin: a web page must not reach a server on this machine by a name that it chose.
pub(crate) fn admit(shared: &Shared, request: &Request<Incoming>, host: &str) -> Result<(), Refusal> {
    admit_host(shared, host)?;
    let config = shared.config.borrow().clone();
    for origin in request.headers().get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("?");
        if !route::origin_allowed(origin, &config.gateway.allowed_origins) {
            let hint = "add it to [gateway] allowed_origins if its pages may call these servers";
            return Err(Refusal::forbidden(format!("pages of '{origin}' may not call this"), hint));
        }
    }
    Ok(())
}

/// Host alone: for pages that judge the Origin themselves.
pub(crate) fn admit_host(shared: &Shared, host: &str) -> Result<(), Refusal> {
    let config = shared.config.borrow().clone();
    let config = &config.gateway;
    if !shared.checks_hosts(config) {
        return Ok(());
    }
    let host = route::host_of(host);
    let known = |name: &String| route::host_of(name) == host;
    let public = url::Url::parse(&config.public_url).ok().and_then(|u| u.host_str().map(route::host_of));
    let fine = route::is_loopback(&host)
        || config.allowed_hosts.iter().any(known)
        || public.is_some_and(|public| public == host)
        || (!config.domain.is_empty() && (host == config.domain || under(&host, &config.domain).is_some()));
    if fine {
        return Ok(());
    }
    let hint = "call it by a loopback name, or add the name to [gateway] allowed_hosts";
    Err(Refusal::forbidden(format!("the host name '{host}' is not served here"), hint))
}

/// The deployment that a host of its own names.
pub(crate) fn under<'h>(host: &'h str, domain: &str) -> Option<&'h str> {
    let name = host.strip_suffix(domain)?.strip_suffix('.')?;
    (!name.is_empty() && !name.contains('.')).then_some(name)
}

/// The deployment that a path names behind `prefix`.
pub(crate) fn named<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(prefix)?;
    let name = rest.strip_suffix('/').unwrap_or(rest);
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

pub(crate) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
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

pub(crate) async fn read(shared: &Shared, headers: &HeaderMap, body: Incoming) -> Result<Bytes, Refusal> {
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

pub(crate) fn preflight(asked: &HeaderMap) -> Response<Out> {
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
