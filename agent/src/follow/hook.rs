//! What forges send: signed, once, about a repository that is followed, and not too often. Everything else is refused, and the
//! audit log says so, once a minute for each deployment and reason at most.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::{HeaderMap, StatusCode};
use ring::hmac;
use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};
use sigil_core::audit::Record;
use sigil_core::follow::{self, Event, Follow, NotForUs, PullRequest, Push};
use sigil_core::model::{Deployment, DeploymentId, Run};
use subtle::ConstantTimeEq as _;

use super::{REMEMBERED, SECRET, Shared, followed};
use crate::audit::by_agent;
use crate::secrets::Scope;

/// Pushes of a deployment a minute, from one address: who floods it with forged ones does not hold up its forge.
const A_MINUTE: NonZeroU32 = per_minute(60);
/// Addresses whose pushes are counted.
const ADDRESSES: usize = 4096;
/// Requests about deployments that are none, or do not listen, a minute, together.
const STRAYS_A_MINUTE: NonZeroU32 = per_minute(120);
const fn per_minute(count: u32) -> NonZeroU32 {
    match NonZeroU32::new(count) {
        Some(count) => count,
        None => NonZeroU32::MIN,
    }
}

/// One reason is recorded this often for one deployment.
const RECORDED: Duration = Duration::from_secs(60);

/// What came.
#[derive(Clone, Debug)]
pub struct Hook {
    /// The deployment that the path names.
    pub name: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, whole.
    pub body: bytes::Bytes,
    /// Where it came from.
    pub from: IpAddr,
}

/// What is answered: a sentence, for the forge's page of deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// As HTTP has it.
    pub status: StatusCode,
    /// One line.
    pub text: String,
}

impl Answer {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

#[derive(Debug, Default)]
struct Recorded {
    at: Option<Instant>,
    /// Since then, unrecorded.
    more: u64,
}

#[derive(Debug)]
pub(super) struct Limits {
    all: Mutex<HashMap<(DeploymentId, IpAddr), Arc<DefaultDirectRateLimiter>>>,
    strays: DefaultDirectRateLimiter,
    recorded: Mutex<HashMap<(Option<DeploymentId>, &'static str), Recorded>>,
}

impl Default for Limits {
    fn default() -> Self {
        let strays = RateLimiter::direct(Quota::per_minute(STRAYS_A_MINUTE));
        Self { all: Mutex::default(), strays, recorded: Mutex::default() }
    }
}

impl Limits {
    fn of(&self, id: DeploymentId, from: IpAddr) -> Arc<DefaultDirectRateLimiter> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= ADDRESSES {
            // a limit that begins anew is better than memory without one
            all.clear();
        }
        all.entry((id, from)).or_insert_with(|| Arc::new(RateLimiter::direct(Quota::per_minute(A_MINUTE)))).clone()
    }

    /// Whether a refusal is recorded now; how many were not before it.
    fn records(&self, id: Option<DeploymentId>, why: &'static str) -> Option<u64> {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let one = recorded.entry((id, why)).or_default();
        if one.at.is_some_and(|at| at.elapsed() < RECORDED) {
            one.more += 1;
            return None;
        }
        one.at = Some(Instant::now());
        Some(std::mem::take(&mut one.more))
    }
}

/// Whether a body is signed as one of the forges signs it: GitHub, Gitea, Forgejo, Gogs and Bitbucket by HMAC-SHA256, GitLab by
/// sending the secret.
fn is_signed(headers: &HeaderMap, body: &[u8], secret: &[u8]) -> bool {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let signed = |digits: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        hex::decode(digits).is_ok_and(|tag| hmac::verify(&key, body, &tag).is_ok())
    };
    let signature = header("x-hub-signature-256").or_else(|| header("x-hub-signature"));
    if let Some(signature) = signature {
        return signature.strip_prefix("sha256=").is_some_and(signed);
    }
    if let Some(signature) = header("x-gitea-signature").or_else(|| header("x-gogs-signature")) {
        return signed(signature);
    }
    header("x-gitlab-token").is_some_and(|token| bool::from(token.as_bytes().ct_eq(secret)))
}

/// What a forge tells that may change something.
enum Told {
    Pushes(Vec<Push>),
    Request(PullRequest),
}

impl Shared {
    pub(super) async fn hook(&self, hook: Hook) -> Answer {
        let deployment = hook.name.parse().ok().and_then(|name| self.deps.store.by_name(&name));
        let listening =
            deployment.filter(|d| d.desired.run != Run::Removed && d.follow.as_ref().is_some_and(|f| f.webhook));
        let Some(deployment) = listening else {
            // whether there is such a deployment is nobody's business
            if self.limits.strays.check().is_err() {
                return Answer::new(StatusCode::TOO_MANY_REQUESTS, "too many requests");
            }
            self.refused(None, &hook, "unknown").await;
            return Answer::new(StatusCode::NOT_FOUND, "nothing of that name listens");
        };
        let id = deployment.id;
        if self.limits.of(id, hook.from).check().is_err() {
            self.refused(Some(&deployment), &hook, "flood").await;
            return Answer::new(StatusCode::TOO_MANY_REQUESTS, "too many pushes; what is newest is looked at anyway");
        }
        let secret = match self.deps.secrets.get(&Scope::Deployment(id), SECRET) {
            Ok(Some(secret)) => secret,
            Ok(None) => {
                self.refused(Some(&deployment), &hook, "no-secret").await;
                return Answer::new(StatusCode::FORBIDDEN, "there is no secret to check the signature with");
            }
            Err(error) => {
                tracing::error!(%error, deployment = %deployment.name, "a push's signature cannot be checked");
                return Answer::new(StatusCode::SERVICE_UNAVAILABLE, "the signature cannot be checked now");
            }
        };
        if !is_signed(&hook.headers, &hook.body, secret.expose_secret().as_bytes()) {
            self.refused(Some(&deployment), &hook, "signature").await;
            return Answer::new(StatusCode::UNAUTHORIZED, "the signature is missing or wrong");
        }
        let names = ["x-github-event", "x-gitea-event", "x-gogs-event", "x-gitlab-event", "x-event-key"];
        let event = names.iter().find_map(|name| hook.headers.get(*name)).and_then(|value| value.to_str().ok());
        let told = match follow::read(event, &hook.body) {
            Ok(Event::Ping) => return Answer::new(StatusCode::OK, "listening"),
            Ok(Event::Other(what)) => return Answer::new(StatusCode::OK, format!("'{what}' changes nothing here")),
            Ok(Event::Pushes(pushes)) => Told::Pushes(pushes),
            Ok(Event::Request(request)) => Told::Request(request),
            Err(why) => return Answer::new(StatusCode::BAD_REQUEST, why),
        };
        let (_, url, branch) = match followed(&deployment) {
            Ok(followed) => followed,
            Err(why) => return Answer::new(StatusCode::CONFLICT, format!("{why}; {}", why.hint())),
        };
        if !self.is_new(id, &hook.body) {
            self.refused(Some(&deployment), &hook, "replay").await;
            return Answer::new(StatusCode::CONFLICT, "this very push has come before");
        }
        let Some(wish) = deployment.follow.as_deref() else {
            return Answer::new(StatusCode::NOT_FOUND, "nothing of that name listens");
        };
        let pushes = match told {
            Told::Pushes(pushes) => pushes,
            Told::Request(request) => return self.request(&deployment, wish, &hook, (&url, branch), &request).await,
        };
        let judged: Vec<Result<(), NotForUs>> =
            pushes.iter().map(|push| wish.wants(&url, branch.as_deref(), push)).collect();
        if let Some((push, _)) = pushes.iter().zip(&judged).rfind(|(_, judged)| judged.is_ok()) {
            self.pushed(id, push.branch().filter(|_| !wish.branches.is_empty()));
            self.keep();
            return Answer::new(StatusCode::ACCEPTED, "it is looked at");
        }
        self.keep();
        match judged.into_iter().find_map(Result::err) {
            Some(why @ NotForUs::Repository(_)) => {
                self.refused(Some(&deployment), &hook, "repository").await;
                Answer::new(StatusCode::UNPROCESSABLE_ENTITY, why.to_string())
            }
            Some(why) => Answer::new(StatusCode::OK, why.to_string()),
            None => Answer::new(StatusCode::OK, "it names no branch"),
        }
    }

    /// A pull request was told of.
    async fn request(
        &self,
        deployment: &Deployment,
        wish: &Follow,
        hook: &Hook,
        (url, branch): (&str, Option<String>),
        request: &PullRequest,
    ) -> Answer {
        let judged = wish.wants_request(url, branch.as_deref(), request);
        let judged = judged.map(|()| self.requested(deployment.id, request));
        self.keep();
        match judged {
            Ok(Ok(())) => Answer::new(StatusCode::ACCEPTED, "it is looked at"),
            Ok(Err(why)) => Answer::new(StatusCode::TOO_MANY_REQUESTS, why),
            Err(why @ NotForUs::Repository(_)) => {
                self.refused(Some(deployment), hook, "repository").await;
                Answer::new(StatusCode::UNPROCESSABLE_ENTITY, why.to_string())
            }
            Err(why) => Answer::new(StatusCode::OK, why.to_string()),
        }
    }

    /// Whether a push has not been taken before; from now on it has.
    fn is_new(&self, id: DeploymentId, body: &[u8]) -> bool {
        let hash = hex::encode(Sha256::digest(body));
        let mut states = self.states();
        let taken = &mut states.entry(id).or_default().seen.taken;
        if taken.contains(&hash) {
            return false;
        }
        if taken.len() >= REMEMBERED {
            taken.pop_front();
        }
        taken.push_back(hash);
        true
    }

    async fn refused(&self, deployment: Option<&Deployment>, hook: &Hook, why: &'static str) {
        let Some(more) = self.limits.records(deployment.map(|d| d.id), why) else { return };
        let target = match deployment {
            Some(deployment) => (deployment.name.to_string(), deployment.id.to_string()),
            // a stranger's words do not go into the log at length
            None => (hook.name.chars().filter(|c| !c.is_control()).take(40).collect(), String::new()),
        };
        let record = by_agent("follow.push").target(target.0, target.1).after("from", hook.from.to_string());
        let record = if more > 0 { record.after("more", more.to_string()) } else { record };
        self.deps.audit.keep(Record { outcome: why.to_owned(), ..record }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_of_each_forge() {
        let (secret, body) = (b"It's a Secret to Everybody", b"Hello, World!");
        // from GitHub's documentation of webhooks
        let digits = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let with = |name: &'static str, value: String| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            headers
        };
        for good in [
            with("x-hub-signature-256", format!("sha256={digits}")),
            with("x-hub-signature", format!("sha256={digits}")),
            with("x-gitea-signature", digits.to_owned()),
            with("x-gitlab-token", "It's a Secret to Everybody".into()),
        ] {
            assert!(is_signed(&good, body, secret), "{good:?}");
            assert!(!is_signed(&good, body, b"another"), "{good:?}");
        }
        for bad in [
            HeaderMap::new(),
            with("x-hub-signature-256", digits.to_owned()),
            with("x-hub-signature-256", format!("sha256={}", &digits[..62])),
            with("x-hub-signature-256", "sha256=".into()),
            with("x-hub-signature", format!("sha1={}", &digits[..40])),
            with("x-gitlab-token", String::new()),
        ] {
            assert!(!is_signed(&bad, body, secret), "{bad:?}");
        }
        let tampered = with("x-hub-signature-256", format!("sha256={digits}"));
        assert!(!is_signed(&tampered, b"Hello, World?", secret));
    }
}
