//! One request to a host's API: its token, its limits, what has not changed, and what a refusal means.

use std::sync::PoisonError;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::header::{ACCEPT, AUTHORIZATION, ETAG, IF_NONE_MATCH, LINK, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use sigil_core::forge::{App, Kind, Limits};
use url::Url;

use super::{CALL, ForgeError, Forges, Held, Remembered, Result};
use crate::source::http::authority;

/// Longest answer, bytes.
const ANSWER_MAX: usize = 16 << 20;
/// Longest answer that is kept to be asked for again, bytes.
const KEPT_MAX: usize = 256 << 10;
/// Tries of a request that only reads, and the first pause between them; doubled each time.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(300);
/// Longest rest that is waited for, rather than told.
const REST: Duration = Duration::from_secs(10);
/// Longest sentence of a host's that is passed on, in characters.
const SAID: usize = 200;

/// An answer.
pub(super) struct Reply {
    pub body: Bytes,
    pub link: Option<String>,
    pub headers: HeaderMap,
}

/// A request.
pub(super) struct Asked<'a> {
    pub method: Method,
    /// Whole.
    pub url: String,
    pub accept: &'a str,
    pub body: Option<serde_json::Value>,
    /// What the audit log says that the token is used for.
    pub what_for: &'static str,
}

impl<'a> Asked<'a> {
    pub(super) fn get(url: String, what_for: &'static str) -> Self {
        Self { method: Method::GET, url, accept: "", body: None, what_for }
    }
}

impl Reply {
    pub(super) fn json<T: DeserializeOwned>(&self, held: &Held) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|e| ForgeError::Strange { host: host(held), why: e.to_string() })
    }
}

pub(super) fn host(held: &Held) -> String {
    Url::parse(&held.account.api()).map_or_else(|_| held.account.url.clone(), |url| authority(&url))
}

/// Headers that show a token to a host of that kind.
fn shown(kind: Kind, token: &SecretString) -> Option<(http::HeaderName, HeaderValue)> {
    let token = token.expose_secret();
    let (name, value) = match kind {
        Kind::GitHub | Kind::Enterprise => (AUTHORIZATION, format!("Bearer {token}")),
        Kind::Gitea => (AUTHORIZATION, format!("token {token}")),
        Kind::GitLab => (http::HeaderName::from_static("private-token"), token.to_owned()),
    };
    let mut value = HeaderValue::from_str(&value).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

fn limits(headers: &HeaderMap) -> Limits {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let either = |a: &str, b: &str| text(a).or_else(|| text(b));
    Limits {
        retry_after: text("retry-after").and_then(|t| t.parse().ok()),
        remaining: either("x-ratelimit-remaining", "ratelimit-remaining").and_then(|t| t.parse().ok()),
        reset: either("x-ratelimit-reset", "ratelimit-reset").and_then(|t| t.parse().ok()),
    }
}

/// A host's own sentence: one line, without what could steer a terminal.
fn said(body: &[u8], status: StatusCode) -> String {
    let told: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let told = told.and_then(|told| match told.get("message").or_else(|| told.get("error")) {
        Some(serde_json::Value::String(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string()),
        None => None,
    });
    let told = told.unwrap_or_default();
    let line: String = told.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SAID).collect();
    if line.trim().is_empty() { status.to_string() } else { line.trim().to_owned() }
}

/// How one try went wrong.
enum Trouble {
    /// May be gone in a moment.
    Passing(ForgeError),
    /// Asked to rest.
    Rest(Timestamp),
    /// The token is not known.
    Token(ForgeError),
    /// It is somewhere else, of the same host: a repository was renamed.
    Moved(String),
    Final(ForgeError),
}

impl Forges {
    /// Asks, as an account. What only reads is tried again when the host or the way to it is in trouble; a short rest that the
    /// host asks for is kept, a long one is told, and nothing is asked until it is over.
    pub(super) async fn ask(&self, held: &Held, mut asked: Asked<'_>) -> Result<Reply> {
        let name = held.account.name.as_str();
        self.recorded(held, asked.what_for).await?;
        let reads = asked.method == Method::GET;
        let (mut tries, mut renewed) = (0, false);
        loop {
            tries += 1;
            self.rested(held)?;
            let token = self.token(held).await?;
            match self.try_once(held, &asked, &token).await {
                Ok(reply) => return Ok(reply),
                Err(Trouble::Passing(_)) if reads && tries < TRIES => {
                    tokio::time::sleep(PAUSE * 2_u32.pow(tries - 1)).await;
                }
                Err(Trouble::Rest(until)) => {
                    let left = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
                    if reads && tries < TRIES && left <= REST {
                        tokio::time::sleep(left).await;
                        continue;
                    }
                    return Err(self.ended(held, Trouble::Rest(until)));
                }
                Err(Trouble::Moved(url)) if reads && tries < TRIES => asked.url = url,
                // an installation's token may be taken back before its time
                Err(Trouble::Token(_)) if held.account.app.is_some() && !renewed => {
                    renewed = true;
                    self.forget_token(name);
                }
                Err(trouble) => return Err(self.ended(held, trouble)),
            }
        }
    }

    fn rested(&self, held: &Held) -> Result<()> {
        let name = held.account.name.as_str();
        let until = self.learnt().limited.get(name).copied();
        match until.filter(|until| *until > Timestamp::now()) {
            Some(until) => Err(ForgeError::Limited { host: host(held), account: name.to_owned(), until }),
            None => Ok(()),
        }
    }

    async fn try_once(
        &self,
        held: &Held,
        asked: &Asked<'_>,
        token: &SecretString,
    ) -> std::result::Result<Reply, Trouble> {
        let (kind, name) = (held.account.kind, held.account.name.as_str());
        let header = shown(kind, token);
        let (header, value) =
            header.ok_or_else(|| Trouble::Final(ForgeError::Key(name.to_owned(), "it does not go into a header")))?;
        let mut request = self
            .client()
            .map_err(Trouble::Final)?
            .request(asked.method.clone(), &asked.url)
            .timeout(CALL)
            .header(header, value);
        if kind.is_github() {
            request = request.header("x-github-api-version", "2022-11-28");
        }
        let accept = match asked.accept {
            "" if kind.is_github() => "application/vnd.github+json",
            "" => "application/json",
            accept => accept,
        };
        request = request.header(ACCEPT, accept);
        if let Some(body) = &asked.body {
            request = request.json(body);
        }
        let key = format!("{name} {accept} {}", asked.url);
        let reads = asked.method == Method::GET;
        let before = if reads { self.remembered(&key) } else { None };
        if let Some((etag, ..)) = &before {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let response = request.send().await.map_err(|e| Trouble::Passing(unreachable(held, &e)))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let link = headers.get(LINK).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if let (StatusCode::NOT_MODIFIED, Some((_, body, link))) = (status, before) {
            return Ok(Reply { body, link, headers });
        }
        let body = whole(held, response).await?;
        if status.is_success() {
            let etag = headers.get(ETAG).and_then(|value| value.to_str().ok());
            if let Some(etag) = etag.filter(|_| reads && body.len() <= KEPT_MAX) {
                let one = Remembered { etag: etag.to_owned(), body: body.clone(), link: link.clone() };
                self.answers.lock().unwrap_or_else(PoisonError::into_inner).put(key, one);
            }
            return Ok(Reply { body, link, headers });
        }
        Err(judged(held, asked, status, &headers, &body))
    }

    fn remembered(&self, key: &str) -> Option<(String, Bytes, Option<String>)> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(key).map(|one| (one.etag.clone(), one.body.clone(), one.link.clone()))
    }

    /// Asks for a token of an App's installation.
    pub(super) async fn mint(&self, held: &Held, app: App, jwt: &SecretString) -> Result<(SecretString, Timestamp)> {
        #[derive(serde::Deserialize)]
        struct Token {
            token: String,
            expires_at: Timestamp,
        }
        self.recorded(held, "app").await?;
        self.rested(held)?;
        let url = format!("{}/app/installations/{}/access_tokens", held.account.api(), app.installation);
        let asked = Asked { method: Method::POST, ..Asked::get(url, "app") };
        let reply = self.try_once(held, &asked, jwt).await.map_err(|trouble| self.ended(held, trouble))?;
        let Token { token, expires_at } = reply.json(held)?;
        Ok((SecretString::from(token), expires_at))
    }

    /// The installation itself, as its App sees it.
    pub(super) async fn installation(&self, held: &Held, app: App, jwt: &SecretString) -> Result<Reply> {
        self.rested(held)?;
        let asked = Asked::get(format!("{}/app/installations/{}", held.account.api(), app.installation), "app");
        self.try_once(held, &asked, jwt).await.map_err(|trouble| self.ended(held, trouble))
    }

    fn ended(&self, held: &Held, trouble: Trouble) -> ForgeError {
        match trouble {
            Trouble::Rest(until) => {
                let account = held.account.name.to_string();
                self.learnt().limited.insert(account.clone(), until);
                ForgeError::Limited { host: host(held), account, until }
            }
            Trouble::Moved(_) => ForgeError::Strange { host: host(held), why: "it sends on and on".into() },
            Trouble::Passing(error) | Trouble::Token(error) | Trouble::Final(error) => error,
        }
    }
}

async fn whole(held: &Held, response: reqwest::Response) -> std::result::Result<Bytes, Trouble> {
    let mut body = BytesMut::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| Trouble::Passing(unreachable(held, &e)))?;
        if body.len() + chunk.len() > ANSWER_MAX {
            let why = format!("it is longer than {} MiB", ANSWER_MAX >> 20);
            return Err(Trouble::Final(ForgeError::Strange { host: host(held), why }));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn unreachable(held: &Held, error: &reqwest::Error) -> ForgeError {
    ForgeError::Unreachable { host: host(held), why: crate::source::http::reason(error) }
}

/// What an answer that is no success means.
fn judged(held: &Held, asked: &Asked<'_>, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Trouble {
    let (host, account) = (host(held), held.account.name.to_string());
    let mut limits = limits(headers);
    let said = said(body, status);
    // GitHub's second kind of limit comes with neither header now and then
    if status == StatusCode::FORBIDDEN && said.to_ascii_lowercase().contains("rate limit") {
        limits.remaining = Some(0);
    }
    if let Some(until) = limits.until(status.as_u16(), Timestamp::now()) {
        return Trouble::Rest(until);
    }
    match status {
        StatusCode::UNAUTHORIZED => Trouble::Token(ForgeError::Refused { host, account, said }),
        StatusCode::FORBIDDEN => Trouble::Final(ForgeError::Forbidden { host, account, said }),
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            let what = Url::parse(&asked.url).map_or_else(|_| asked.url.clone(), |url| url.path().to_owned());
            Trouble::Final(ForgeError::NotFound(format!("{host}{what}"), account))
        }
        status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            Trouble::Passing(ForgeError::Unreachable { host, why: format!("it answers {status}: {said}") })
        }
        status if status.is_redirection() => {
            let base = Url::parse(&asked.url).ok();
            let to = headers.get(LOCATION).and_then(|value| value.to_str().ok());
            let to = base.as_ref().zip(to).and_then(|(base, to)| base.join(to).ok());
            if let (Some(base), Some(to)) = (base, to)
                && to.origin() == base.origin()
            {
                return Trouble::Moved(to.to_string());
            }
            let why = format!("it sends on ({status}), and the token goes nowhere else");
            Trouble::Final(ForgeError::Strange { host, why })
        }
        status => Trouble::Final(ForgeError::Strange { host, why: format!("{status}: {said}") }),
    }
}
