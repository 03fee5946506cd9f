//! HTTP for package registries: one place for certificates, proxies, logins by host, retries and limits.

use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use reqwest::{Certificate, Client, ClientBuilder, NoProxy, Proxy, Response, StatusCode, redirect};
use secrecy::ExposeSecret;
use sigil_config::agent::AgentConfig;
use tokio::io::AsyncWriteExt;
use url::Url;

use super::{Job, SourceError, disk};

/// Tries of one request.
const TRIES: u32 = 4;
/// First pause between tries; doubled each time.
const PAUSE: Duration = Duration::from_millis(300);
/// Longest pause that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(20);
/// A connection that brings nothing for so long is dead.
const STALL: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(10);

/// How a login is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// npm: a token alone is a bearer token.
    Bearer,
    /// PyPI: a token alone is the password of `__token__`.
    Basic,
}

/// A client for one fetch.
pub(super) struct Http<'a> {
    client: Client,
    job: &'a Job<'a>,
    login: Login,
    /// The key of the configuration that names this registry, for hints.
    setting: &'static str,
}

/// A document.
pub(super) struct Document {
    /// After redirects.
    pub url: Url,
    pub content_type: String,
    pub body: Vec<u8>,
}

/// An HTTPS client that goes out as the configuration says: through its proxy, trusting its certificate authorities.
pub(crate) fn client(config: &AgentConfig) -> Result<Client, SourceError> {
    built(builder(config)?)
}

/// The same, which goes where it is sent only: what it carries is for that place.
pub(crate) fn straight_client(config: &AgentConfig) -> Result<Client, SourceError> {
    built(builder(config)?.redirect(redirect::Policy::none()))
}

fn built(builder: ClientBuilder) -> Result<Client, SourceError> {
    builder.build().map_err(|e| {
        SourceError::failed(format!("no HTTPS client: {}", reason(&e)), "are the system's CA certificates installed?")
    })
}

fn builder(config: &AgentConfig) -> Result<ClientBuilder, SourceError> {
    // an error only says that another room was first
    let _another_was_first = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("sigil/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .read_timeout(STALL)
        .redirect(redirect::Policy::custom(|attempt| {
            if attempt.previous().len() > 5 {
                return attempt.error("too many redirects");
            }
            let from_https = attempt.previous().iter().any(|url| url.scheme() == "https");
            if from_https && attempt.url().scheme() != "https" {
                return attempt.error("a redirect from https to plain http");
            }
            attempt.follow()
        }));
    if let Some(path) = &config.builder.extra_ca {
        builder = builder.tls_certs_merge(extra_ca(path)?);
    }
    if !config.outbound.proxy.is_empty() {
        let no_proxy = if config.outbound.no_proxy.is_empty() {
            NoProxy::from_env()
        } else {
            NoProxy::from_string(&config.outbound.no_proxy.join(","))
        };
        let proxy = Proxy::all(&config.outbound.proxy).map_err(|e| {
            SourceError::failed(format!("the proxy is not usable: {}", reason(&e)), "mend [outbound] proxy")
        })?;
        builder = builder.proxy(proxy.no_proxy(no_proxy));
    }
    Ok(builder)
}

impl<'a> Http<'a> {
    pub(super) fn new(job: &'a Job<'a>, login: Login, setting: &'static str) -> Result<Self, SourceError> {
        Ok(Self { client: client(&job.config)?, job, login, setting })
    }

    /// Reads a document of at most `limit` bytes. `None` when the server says there is none (404, 410).
    pub(super) async fn get(&self, url: &Url, accept: &str, limit: usize) -> Result<Option<Document>, SourceError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let result = self.try_get(url, accept, limit).await;
            match result {
                Err(Trouble::Passing(why, pause)) if tries < TRIES => self.again(url, tries, &why, pause).await,
                Err(trouble) => return Err(self.explain(url, trouble)),
                Ok(document) => return Ok(document),
            }
        }
    }

    async fn try_get(&self, url: &Url, accept: &str, limit: usize) -> Result<Option<Document>, Trouble> {
        let Some(response) = self.send(url, Some(accept)).await? else { return Ok(None) };
        let content_type =
            response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let url = response.url().clone();
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| Trouble::Passing(reason(&e), None))?;
            if body.len() + chunk.len() > limit {
                return Err(Trouble::Final(SourceError::refused(
                    format!("{url} is longer than {} MiB", limit >> 20),
                    "is that a package registry?",
                )));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(Document { url, content_type, body }))
    }

    /// Loads a file of at most `limit` bytes; answers its length.
    pub(super) async fn download(&self, url: &Url, to: &Path, limit: u64) -> Result<u64, SourceError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_download(url, to, limit).await {
                Err(Trouble::Passing(why, pause)) if tries < TRIES => self.again(url, tries, &why, pause).await,
                Err(trouble) => return Err(self.explain(url, trouble)),
                Ok(length) => return Ok(length),
            }
        }
    }

    async fn try_download(&self, url: &Url, to: &Path, limit: u64) -> Result<u64, Trouble> {
        let Some(response) = self.send(url, None).await? else {
            return Err(Trouble::Final(SourceError::not_found(
                format!("{url} is not there, though the registry names it"),
                "try again; a mirror may lag behind",
            )));
        };
        let writing = |e: std::io::Error| Trouble::Final(disk(to, &e));
        let mut file = tokio::fs::File::create(to).await.map_err(writing)?;
        let expected = response.content_length();
        let mut length = 0_u64;
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| Trouble::Passing(reason(&e), None))?;
            length += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            if length > limit {
                return Err(Trouble::Final(super::tree::too_large(limit)));
            }
            file.write_all(&chunk).await.map_err(writing)?;
        }
        file.flush().await.map_err(writing)?;
        if expected.is_some_and(|expected| expected != length) {
            return Err(Trouble::Passing(format!("it ended after {length} bytes"), None));
        }
        Ok(length)
    }

    async fn send(&self, url: &Url, accept: Option<&str>) -> Result<Option<Response>, Trouble> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Trouble::Final(SourceError::refused(
                format!("'{url}' is not an http address"),
                format!("mend {} in the agent's configuration", self.setting),
            )));
        }
        let mut request = self.client.get(url.clone());
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        // a login goes to the host it is kept for, and never in clear over a network
        let credential = self.job.secrets.credential(&authority(url));
        let credential = credential.map_err(|e| Trouble::Final(SourceError::failed(e.to_string(), e.hint())))?;
        if let Some(credential) = credential.filter(|_| url.scheme() == "https" || is_loopback(url)) {
            self.job.uses(&credential).await.map_err(Trouble::Final)?;
            let secret = credential.password.expose_secret();
            request = match (self.login, credential.username.as_str()) {
                (Login::Bearer, "") => request.bearer_auth(secret),
                (Login::Basic, "") => request.basic_auth("__token__", Some(secret)),
                (_, username) => request.basic_auth(username, Some(secret)),
            };
        }
        let response = request.send().await.map_err(|e| {
            let certificate = chain(&e).any(|cause| cause.contains("certificate"));
            if e.is_redirect() || certificate || e.is_builder() {
                Trouble::Unreachable(reason(&e), certificate)
            } else {
                Trouble::Passing(reason(&e), None)
            }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(Some(response));
        }
        if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
            return Ok(None);
        }
        let host = authority(response.url());
        if matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED
        ) {
            return Err(Trouble::Final(SourceError::refused(
                format!("{host} refuses the request ({status})"),
                format!("keep a login for it as a source secret named {host}, or check the one that is kept"),
            )));
        }
        if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
            let pause = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.trim().parse().ok());
            return Err(Trouble::Passing(format!("{host} answers {status}"), pause.map(Duration::from_secs)));
        }
        Err(Trouble::Unreachable(format!("{host} answers {status}"), false))
    }

    async fn again(&self, url: &Url, tries: u32, why: &str, asked: Option<Duration>) {
        let pause = asked.unwrap_or(PAUSE * 2_u32.pow(tries - 1)).min(RETRY_AFTER_MAX);
        self.job.say(format!("{}: {why}; trying again in {:.1} s", authority(url), pause.as_secs_f32())).await;
        tokio::time::sleep(pause).await;
    }

    fn explain(&self, url: &Url, trouble: Trouble) -> SourceError {
        let host = authority(url);
        match trouble {
            Trouble::Final(error) => error,
            Trouble::Unreachable(why, true) => SourceError::failed(
                format!("{host} shows a certificate that is not trusted: {why}"),
                "name the authority's PEM file in [builder] extra_ca, or install it on the system",
            ),
            Trouble::Unreachable(why, false) | Trouble::Passing(why, _) => SourceError::failed(
                format!("{host} cannot be used: {why}"),
                format!("check the network; set a mirror in {}, or a proxy in [outbound] proxy", self.setting),
            ),
        }
    }
}

/// Why a try failed.
enum Trouble {
    /// May be gone the next time; with the pause that the server asked for.
    Passing(String, Option<Duration>),
    /// Will not change; true for a certificate.
    Unreachable(String, bool),
    /// Already said in full.
    Final(SourceError),
}

/// The certificates of a PEM file.
fn extra_ca(path: &Path) -> Result<Vec<Certificate>, SourceError> {
    let bad = |why: String| {
        SourceError::failed(
            format!("the certificates of {} cannot be used: {why}", path.display()),
            "mend [builder] extra_ca",
        )
    };
    let pem = fs::read(path).map_err(|e| bad(e.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|e| bad(reason(&e)))?;
    if certificates.is_empty() {
        return Err(bad("there is none in it".into()));
    }
    Ok(certificates)
}

/// `host[:port]`, the port only when it is not the usual one.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

fn chain(error: &reqwest::Error) -> impl Iterator<Item = String> {
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(next) = cause {
        causes.push(next.to_string());
        cause = next.source();
    }
    causes.into_iter()
}

/// The innermost cause: 'Connection refused', not 'error sending request'.
pub(crate) fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    chain(error).last().unwrap_or_else(|| error.to_string())
}
