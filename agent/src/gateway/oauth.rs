//! OAuth 2.1 resource server: tokens of the configured identity provider open deployments with `access = "oauth"`.
//!
//! A token must be signed by one of the provider's published keys, be meant for this deployment (RFC 8707: its address as
//! an audience), and be in its time. It never travels to the server behind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{DecodingKey, Validation, errors::ErrorKind};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use sigil_config::agent::AgentConfig;
use sigil_core::policy::Scope;
use url::Url;

use super::caller::Caller;
use super::count::KeyLoad;
use super::jws;
use crate::source;

/// Clocks that differ, seconds.
const LEEWAY: u64 = 60;
/// The provider's keys are read again after this,
const FRESH: Duration = Duration::from_secs(600);
/// and when a token names one that is not among them, but not more often than this.
const AGAIN: Duration = Duration::from_secs(10);
/// One look at the provider.
const FETCH: Duration = Duration::from_secs(10);
/// Largest document of the provider, bytes.
const DOCUMENT: usize = 1 << 20;
/// Longest token, bytes.
const TOKEN_MAX: usize = 16 << 10;
/// How long a checked token is not checked again, and how many such there are.
const CHECKED: Duration = Duration::from_secs(30);
const CHECKED_MAX: usize = 4096;

/// Why a token opens nothing.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It is not good: 401.
    Token(String),
    /// It is good, and lacks this scope: 403.
    Scope(String),
    /// Nobody can say: 503.
    Unknown(String),
}

/// What is known of one provider.
#[derive(Debug, Default)]
struct Keys {
    set: Option<(Arc<JwkSet>, Instant)>,
    /// The last look that failed, and why.
    failed: Option<(Instant, String)>,
}

#[derive(Debug)]
struct Checked {
    caller: Arc<Caller>,
    at: Instant,
    /// Seconds since 1970.
    expires: u64,
}

/// Knows the provider's keys, and the tokens that were checked lately.
#[derive(Debug, Default)]
pub(crate) struct Oauth {
    /// By where they are read.
    keys: tokio::sync::Mutex<HashMap<String, Keys>>,
    checked: Mutex<HashMap<[u8; 32], Checked>>,
    /// Where its users' calls are counted, all together.
    load: Arc<KeyLoad>,
}

/// How a client names a deployment.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    /// `https://mcp.example.org`
    pub(crate) base: String,
    /// `/mcp/<name>`; `/mcp` on a host of its own.
    pub(crate) path: String,
}

impl Address {
    /// What a token for it names as its audience.
    pub(crate) fn resource(&self) -> String {
        format!("{}{}", self.base, self.path)
    }
}

/// The `WWW-Authenticate` of a refusal (RFC 9728, section 5.1; RFC 6750, section 3).
pub(crate) fn challenge(address: &Address, missing: Option<&str>) -> String {
    let metadata =
        format!("resource_metadata=\"{}/.well-known/oauth-protected-resource{}\"", address.base, address.path);
    match missing {
        None => format!("Bearer {metadata}"),
        Some(scope) => format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\", {metadata}"),
    }
}

/// The metadata of a deployment (RFC 9728, section 2).
pub(crate) fn metadata(config: &AgentConfig, address: &Address, name: &str) -> String {
    let mut scopes: Vec<&str> = config.oauth.scopes.iter().map(String::as_str).collect();
    scopes.extend(config.oauth.tool_scopes.keys().map(String::as_str));
    serde_json::json!({
        "resource": address.resource(),
        "authorization_servers": [config.oauth.issuer],
        "scopes_supported": scopes,
        "bearer_methods_supported": ["header"],
        "resource_name": name,
    })
    .to_string()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Claims {
    exp: u64,
    #[serde(default)]
    scope: Option<Words>,
    /// The same, as some providers call it.
    #[serde(default)]
    scp: Option<Words>,
    #[serde(flatten)]
    other: HashMap<String, serde_json::Value>,
}

impl Claims {
    fn scopes(&self) -> Vec<&str> {
        let mut all = Vec::new();
        for words in [&self.scope, &self.scp].into_iter().flatten() {
            match words {
                Words::One(text) => all.extend(text.split_whitespace()),
                Words::Many(list) => all.extend(list.iter().map(String::as_str)),
            }
        }
        all
    }
}

impl Oauth {
    pub(crate) fn counted(load: Arc<KeyLoad>) -> Self {
        Self { load, ..Self::default() }
    }

    fn checked(&self) -> MutexGuard<'_, HashMap<[u8; 32], Checked>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose token it is. An empty `resource` is no audience.
    pub(crate) async fn caller(
        &self,
        config: &AgentConfig,
        resource: &str,
        token: &str,
    ) -> Result<Arc<Caller>, Refused> {
        if config.oauth.issuer.is_empty() {
            return Err(Refused::Token("no identity provider is configured".into()));
        }
        if token.len() > TOKEN_MAX {
            return Err(Refused::Token("it is too long".into()));
        }
        // a checked token is good for the same resource under the same rules
        let mut digest = Sha256::new();
        for part in [token, resource] {
            digest.update(part.as_bytes());
            digest.update([0]);
        }
        digest.update(serde_json::to_vec(&config.oauth).unwrap_or_default());
        let key: [u8; 32] = digest.finalize().into();
        let now = super::find::now();
        if let Some(checked) = self.checked().get(&key)
            && checked.at.elapsed() < CHECKED
            && now < checked.expires
        {
            return Ok(checked.caller.clone());
        }
        let (caller, expires) = self.check(config, resource, token).await?;
        let caller = Arc::new(caller);
        let mut all = self.checked();
        if all.len() >= CHECKED_MAX {
            all.retain(|_, c| c.at.elapsed() < CHECKED);
            if all.len() >= CHECKED_MAX {
                all.clear();
            }
        }
        all.insert(key, Checked { caller: caller.clone(), at: Instant::now(), expires });
        Ok(caller)
    }

    async fn check(&self, config: &AgentConfig, resource: &str, token: &str) -> Result<(Caller, u64), Refused> {
        jws::install();
        let bad = |why: &str| Refused::Token(why.to_owned());
        let header = jsonwebtoken::decode_header(token).map_err(|_| bad("it is no JSON web token"))?;
        if !jws::ALGORITHMS.contains(&header.alg) {
            return Err(bad("it is signed in a way that is not taken here"));
        }
        let key = self.key(config, header.kid.as_deref()).await?;
        let mut rules = Validation::new(header.alg);
        rules.leeway = LEEWAY;
        rules.validate_nbf = true;
        rules.set_issuer(&[&config.oauth.issuer]);
        let audiences: Vec<&str> =
            std::iter::once(resource).chain(config.oauth.audience.iter().map(String::as_str)).collect();
        let audiences: Vec<&str> = audiences.into_iter().filter(|audience| !audience.is_empty()).collect();
        rules.set_audience(&audiences);
        rules.set_required_spec_claims(&["exp", "iss", "aud"]);
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &rules).map_err(|e| {
            bad(match e.kind() {
                ErrorKind::ExpiredSignature => "it has expired",
                ErrorKind::ImmatureSignature => "it is not valid yet",
                ErrorKind::InvalidAudience => "it is meant for another resource",
                ErrorKind::InvalidIssuer => "it comes from another issuer",
                ErrorKind::MissingRequiredClaim(_) => "it lacks a claim: exp, iss and aud must be there",
                _ => "its signature is not good",
            })
        })?;
        let claims = claims.claims;
        let scopes = claims.scopes();
        if let Some(missing) = config.oauth.scopes.iter().find(|wanted| !scopes.contains(&wanted.as_str())) {
            return Err(Refused::Scope(missing.clone()));
        }
        let text = |name: &str| claims.other.get(name).and_then(|v| v.as_str());
        let subject = text(&config.oauth.user_claim).filter(|s| !s.is_empty());
        let subject = subject.ok_or_else(|| bad("it does not say whose it is"))?;
        let name = text("preferred_username").or_else(|| text("email")).unwrap_or(subject);
        let opened = &config.oauth.tool_scopes;
        let scope = if opened.is_empty() {
            Scope::default()
        } else {
            let granted = opened.iter().filter(|(scope, _)| scopes.contains(&scope.as_str()));
            let tools: Vec<String> =
                granted.flat_map(|(_, tools)| tools.split_whitespace()).map(str::to_owned).collect();
            if tools.is_empty() {
                Scope::nothing()
            } else {
                Scope::new(&[], &tools).map_err(|e| Refused::Unknown(format!("[oauth] tool_scopes: {e}")))?
            }
        };
        let caller = Caller::user(&config.oauth.issuer, subject, name, scope);
        Ok((caller.counted(self.load.clone()), claims.exp))
    }

    /// The provider's key of that id; without an id its only one.
    async fn key(&self, config: &AgentConfig, kid: Option<&str>) -> Result<DecodingKey, Refused> {
        let place = if config.oauth.jwks_url.is_empty() { &config.oauth.issuer } else { &config.oauth.jwks_url };
        let find = |set: &JwkSet| match kid {
            Some(kid) => set.find(kid).cloned(),
            None => set.keys.first().filter(|_| set.keys.len() == 1).cloned(),
        };
        // one look at a time: the others wait for its answer
        let mut all = self.keys.lock().await;
        let keys = all.entry(place.clone()).or_default();
        let mut found = keys.set.as_ref().and_then(|(set, _)| find(set));
        let due = match (&keys.set, &found) {
            (None, _) => true,
            (Some((_, read)), Some(_)) => read.elapsed() > FRESH,
            (Some((_, read)), None) => read.elapsed() > AGAIN,
        };
        let failed = keys.failed.as_ref().filter(|(at, _)| at.elapsed() < AGAIN).map(|(_, why)| why.clone());
        let looked = match failed {
            _ if !due => Ok(()),
            Some(why) => Err(why),
            None => match fetch(config).await {
                Ok(set) => {
                    found = find(&set);
                    *keys = Keys { set: Some((Arc::new(set), Instant::now())), failed: None };
                    Ok(())
                }
                Err(why) => {
                    tracing::warn!(why, "the identity provider's keys cannot be read");
                    keys.failed = Some((Instant::now(), why.clone()));
                    Err(why)
                }
            },
        };
        if let Err(why) = looked
            && found.is_none()
        {
            return Err(Refused::Unknown(format!("the identity provider's keys cannot be read: {why}")));
        }
        drop(all);
        let jwk =
            found.ok_or_else(|| Refused::Token("it is signed with a key that its issuer does not name".into()))?;
        DecodingKey::from_jwk(&jwk).map_err(|e| Refused::Unknown(format!("a key of the identity provider: {e}")))
    }
}

/// Plain HTTP would let anybody on the way put keys of his own into the answer.
fn safe(url: &str) -> Result<Url, String> {
    let parsed = Url::parse(url).map_err(|e| format!("{url}: {e}"))?;
    let near = parsed.host_str().is_some_and(|h| sigil_core::route::is_loopback(&sigil_core::route::host_of(h)));
    if parsed.scheme() == "https" || near { Ok(parsed) } else { Err(format!("{url} is not https")) }
}

async fn document<T: DeserializeOwned>(client: &reqwest::Client, url: &str) -> Result<T, String> {
    let url = safe(url)?;
    let read = async {
        let response = client.get(url.clone()).header("accept", "application/json").send().await;
        let mut response = response.and_then(reqwest::Response::error_for_status).map_err(|e| e.to_string())?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| e.to_string())? {
            body.extend_from_slice(&chunk);
            if body.len() > DOCUMENT {
                return Err(format!("{url} is longer than 1 MiB"));
            }
        }
        serde_json::from_slice(&body).map_err(|e| format!("{url}: {e}"))
    };
    tokio::time::timeout(FETCH, read).await.unwrap_or_else(|_| Err(format!("{url} did not answer in 10 s")))
}

#[derive(Deserialize)]
struct Provider {
    issuer: String,
    jwks_uri: String,
}

async fn fetch(config: &AgentConfig) -> Result<JwkSet, String> {
    let client = source::http_client(config).map_err(|e| e.to_string())?;
    if !config.oauth.jwks_url.is_empty() {
        return document(&client, &config.oauth.jwks_url).await;
    }
    let issuer = safe(&config.oauth.issuer)?;
    // RFC 8414, section 3.1 puts its name before the issuer's path, OpenID Connect Discovery behind it
    let path = issuer.path().trim_end_matches('/').to_owned();
    let mut first = issuer.clone();
    first.set_path(&format!("/.well-known/oauth-authorization-server{path}"));
    let mut second = issuer;
    second.set_path(&format!("{path}/.well-known/openid-configuration"));
    let provider: Provider = match document(&client, first.as_str()).await {
        Ok(found) => found,
        Err(one) => document(&client, second.as_str()).await.map_err(|other| format!("{one}; {other}"))?,
    };
    if provider.issuer != config.oauth.issuer {
        return Err(format!("it calls itself {}, not {}", provider.issuer, config.oauth.issuer));
    }
    document(&client, &provider.jwks_uri).await
}
