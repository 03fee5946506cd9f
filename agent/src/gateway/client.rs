//! Who asks: what two requests must have in common to share anything of a server that remembers its clients.

use std::sync::Arc;

use hyper::header::{HeaderMap, HeaderName};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use sigil_core::model::{Inject, Transport};

use super::proxy::{copy_headers, inject_headers, target};
use super::serve::Asked;
use super::settings::Settings;
use super::table::Entry;
use crate::upstream::Endpoint;
use crate::upstream::streamable::Carried;

/// Headers that say nothing of who asks: they differ from request to request, or mirror a body that is translated.
const PASSING: [&str; 16] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "baggage",
    "cache-control",
    "content-encoding",
    "content-type",
    "forwarded",
    "last-event-id",
    "pragma",
    "priority",
    "referer",
    "traceparent",
    "tracestate",
    "user-agent",
    "via",
];
const PASSING_PREFIXES: [&str; 4] = ["mcp-", "sec-", "x-forwarded-", "x-request-"];

/// The client behind a request.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    principal: String,
    query: Option<String>,
    headers: HeaderMap,
    injected: Arc<Vec<(Inject, SecretString)>>,
    /// Some of that is its own.
    personal: bool,
    pub(crate) settings: Option<Arc<Settings>>,
}

/// Who sent a request: the one place that knows.
pub(crate) fn principal<'a>(asked: &Asked<'a>) -> &'a str {
    &asked.caller.principal
}

fn passing(name: &HeaderName) -> bool {
    PASSING.contains(&name.as_str()) || PASSING_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
}

impl Client {
    pub(crate) fn of(asked: &Asked<'_>, entry: &Entry) -> Self {
        let mut all = HeaderMap::new();
        copy_headers(asked.headers, &mut all);
        let kept = all.iter().filter(|(name, _)| !passing(name));
        let headers = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        Self {
            principal: principal(asked).to_owned(),
            query: asked.query.map(str::to_owned),
            headers,
            injected: entry.injected.clone(),
            personal: entry.personal.is_some(),
            settings: asked.settings.clone(),
        }
    }

    pub(crate) fn principal(&self) -> &str {
        &self.principal
    }

    /// Whether the server sees nothing of it but its messages.
    pub(crate) fn carries_nothing(&self) -> bool {
        !self.personal && self.headers.is_empty() && self.query.as_deref().unwrap_or_default().is_empty()
    }

    /// The same for callers that may share a conversation with a server. Only over HTTP a server sees more of its
    /// client than the messages.
    pub(crate) fn key(&self, endpoint: &Endpoint) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        };
        add(self.principal.as_bytes());
        if endpoint.spec.transport == Transport::Http {
            add(self.query.as_deref().unwrap_or_default().as_bytes());
            let mut headers: Vec<(&str, &[u8])> =
                self.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
            headers.sort_unstable();
            for (name, value) in headers {
                add(name.as_bytes());
                add(value);
            }
            // a secret that changes ends what was begun with the old one
            for (_, value) in self.injected.iter() {
                add(value.expose_secret().as_bytes());
            }
        }
        hex::encode(hash.finalize())
    }

    /// What each of the caller's requests carries over HTTP.
    pub(crate) fn carried(&self, endpoint: &Endpoint) -> Carried {
        let mut headers = self.headers.clone();
        inject_headers(&self.injected, &mut headers);
        Carried { target: target(&endpoint.spec.path, self.query.as_deref(), &self.injected), headers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::tests::fixture::endpoint;
    use hyper::header::HeaderValue;

    fn caller(principal: &str, query: &str, headers: &[(&'static str, &str)], secret: &str) -> Client {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect();
        let injected = Arc::new(vec![(Inject::Header("x-secret".into()), SecretString::from(secret))]);
        Client {
            principal: principal.into(),
            query: Some(query.to_owned()),
            headers,
            injected,
            personal: false,
            settings: None,
        }
    }

    #[test]
    fn only_the_same_caller_shares() {
        let over = |transport| endpoint(transport, 1, &[]);
        let (http, stdio) = (over(Transport::Http), over(Transport::Stdio));
        let ann = caller("ann", "a=1", &[("x-key", "1"), ("x-z", "2")], "s");
        let same = caller("ann", "a=1", &[("x-z", "2"), ("x-key", "1")], "s");
        assert_eq!(ann.key(&http), same.key(&http));
        for other in [
            caller("bob", "a=1", &[("x-key", "1"), ("x-z", "2")], "s"),
            caller("ann", "a=2", &[("x-key", "1"), ("x-z", "2")], "s"),
            caller("ann", "a=1", &[("x-key", "1"), ("x-z", "3")], "s"),
            caller("ann", "a=1", &[("x-key", "1")], "s"),
            caller("ann", "a=1", &[("x-key", "1"), ("x-z", "2")], "t"),
        ] {
            assert_ne!(ann.key(&http), other.key(&http), "{other:?}");
        }
        // a process sees messages only
        assert_eq!(ann.key(&stdio), caller("ann", "a=2", &[], "s").key(&stdio));
        assert_ne!(ann.key(&stdio), caller("bob", "a=1", &[], "s").key(&stdio));
        let carried = ann.carried(&http);
        assert_eq!((carried.target.as_str(), carried.headers.len()), ("/mcp?a=1", 3));
    }
}
