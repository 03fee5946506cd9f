//! Who may call what, and what is written down of it: one table, one place that asks it. An RPC without a rule is refused,
//! and a test fails; so does a test when one that changes something has no word for the audit log.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::asker::{Asker, forbidden};
use super::noted::{self, Note, Refusals};
use super::status;
use crate::access::{Access, Peer, Principal, Role};
use crate::audit::Audit;

/// Longest time from a request's first header to its answer's, streams that the client feeds exempt.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Of what a caller's role is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Whoever is known may: the service shows what that one may see.
    Anyone,
    /// Of what the call is about, which the service knows ([`Asker::finds`] and its like); nobody gets there who has the
    /// role on nothing at all.
    Target,
    /// Of the whole agent.
    Agent,
}

/// What an RPC asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// `/package.Service/Method`
    pub path: &'static str,
    /// The least role.
    pub role: Role,
    /// Of what.
    pub reach: Reach,
    /// The client sends a stream: its length is its own affair (it has limits of its own).
    pub feeds: bool,
    /// What it is called in the audit log; `None` for what only reads.
    pub audit: Option<&'static str>,
}

const fn anyone(path: &'static str) -> Rule {
    Rule { path, role: Role::Caller, reach: Reach::Anyone, feeds: false, audit: None }
}

const fn target(path: &'static str, role: Role) -> Rule {
    Rule { path, role, reach: Reach::Target, feeds: false, audit: None }
}

const fn agent(path: &'static str, role: Role) -> Rule {
    Rule { reach: Reach::Agent, ..target(path, role) }
}

impl Rule {
    const fn fed(self) -> Self {
        Self { feeds: true, ..self }
    }

    /// Each call is recorded, refused ones, too.
    const fn audited(self, what: &'static str) -> Self {
        Self { audit: Some(what), ..self }
    }
}

/// Every RPC of the contract. Calling a tool may change things, so `Session` is no reading.
pub(super) const RULES: &[Rule] = &[
    anyone("/sigil.v1.Agent/Info"),
    target("/sigil.v1.Sources/Upload", Role::Deployer).fed().audited("source.upload"),
    target("/sigil.v1.Operations/Start", Role::Operator).audited("operation.start"),
    target("/sigil.v1.Operations/Get", Role::Viewer),
    target("/sigil.v1.Operations/List", Role::Viewer),
    target("/sigil.v1.Operations/Follow", Role::Viewer),
    target("/sigil.v1.Operations/Cancel", Role::Operator).audited("operation.cancel"),
    target("/sigil.v1.Deployments/Watch", Role::Viewer),
    target("/sigil.v1.Deployments/Get", Role::Viewer),
    target("/sigil.v1.Deployments/Bill", Role::Viewer),
    target("/sigil.v1.Logs/Tail", Role::Viewer),
    target("/sigil.v1.Mcp/Session", Role::Caller).fed(),
    target("/sigil.v1.Secrets/Set", Role::Deployer).audited("secret.set"),
    target("/sigil.v1.Secrets/List", Role::Viewer),
    target("/sigil.v1.Secrets/Remove", Role::Deployer).audited("secret.remove"),
    anyone("/sigil.v1.Secrets/SetOwn").audited("secret.set-own"),
    anyone("/sigil.v1.Secrets/ListOwn"),
    anyone("/sigil.v1.Secrets/RemoveOwn").audited("secret.remove-own"),
    target("/sigil.v1.Secrets/Rotate", Role::Deployer).audited("secret.rotate"),
    target("/sigil.v1.Secrets/Reveal", Role::Admin).audited("secret.reveal"),
    target("/sigil.v1.Secrets/Import", Role::Deployer).audited("secret.import"),
    agent("/sigil.v1.Secrets/Keyring", Role::Viewer),
    agent("/sigil.v1.Secrets/RotateKeys", Role::Admin).audited("keys.rotate"),
    anyone("/sigil.v1.Keys/Create").audited("key.create"),
    anyone("/sigil.v1.Keys/List"),
    anyone("/sigil.v1.Keys/Revoke").audited("key.revoke"),
    anyone("/sigil.v1.Users/List"),
    agent("/sigil.v1.Users/Add", Role::Admin).audited("user.add"),
    agent("/sigil.v1.Users/Remove", Role::Admin).audited("user.remove"),
    agent("/sigil.v1.Users/Enable", Role::Admin).audited("user.enable"),
    target("/sigil.v1.Users/Grant", Role::Admin).audited("role.grant"),
    target("/sigil.v1.Users/Revoke", Role::Admin).audited("role.revoke"),
    anyone("/sigil.v1.Teams/List"),
    agent("/sigil.v1.Teams/Create", Role::Admin).audited("team.create"),
    agent("/sigil.v1.Teams/Remove", Role::Admin).audited("team.remove"),
    agent("/sigil.v1.Teams/Move", Role::Admin).audited("team.move"),
    target("/sigil.v1.Policies/Get", Role::Viewer),
    target("/sigil.v1.Policies/Set", Role::Deployer).audited("policy.set"),
    target("/sigil.v1.Scaling/Get", Role::Viewer),
    target("/sigil.v1.Scaling/Set", Role::Deployer).audited("scaling.set"),
    target("/sigil.v1.Scaling/History", Role::Viewer),
    target("/sigil.v1.Scaling/Explain", Role::Viewer),
    target("/sigil.v1.Scaling/Trace", Role::Viewer),
    target("/sigil.v1.Follows/List", Role::Viewer),
    target("/sigil.v1.Follows/Set", Role::Deployer).audited("follow.set"),
    target("/sigil.v1.Follows/Look", Role::Deployer).audited("follow.look"),
    target("/sigil.v1.Git/Accounts", Role::Viewer),
    agent("/sigil.v1.Git/Add", Role::Admin).audited("git.add"),
    agent("/sigil.v1.Git/Remove", Role::Admin).audited("git.remove"),
    agent("/sigil.v1.Git/Check", Role::Admin).audited("git.check"),
    target("/sigil.v1.Git/Repositories", Role::Deployer).audited("git.repositories"),
    target("/sigil.v1.Git/Manifest", Role::Deployer).audited("git.manifest"),
    target("/sigil.v1.Health/Get", Role::Viewer),
    target("/sigil.v1.Alerts/List", Role::Viewer),
    agent("/sigil.v1.Alerts/Test", Role::Admin).audited("alert.test"),
    target("/sigil.v1.Waivers/List", Role::Viewer),
    target("/sigil.v1.Waivers/Add", Role::Admin).audited("waiver.add"),
    target("/sigil.v1.Waivers/Remove", Role::Admin).audited("waiver.remove"),
    target("/sigil.v1.Pins/Get", Role::Viewer),
    target("/sigil.v1.Pins/Answer", Role::Deployer).audited("pins.answer"),
    target("/sigil.v1.Taps/Follow", Role::Operator).audited("tap.follow"),
    target("/sigil.v1.Metrics/Top", Role::Viewer),
    target("/sigil.v1.Metrics/Series", Role::Viewer),
    target("/sigil.v1.Usage/Report", Role::Viewer),
    target("/sigil.v1.Usage/Limits", Role::Viewer),
    target("/sigil.v1.Usage/SetLimit", Role::Admin).audited("limit.set"),
    target("/sigil.v1.Usage/RemoveLimit", Role::Admin).audited("limit.remove"),
    target("/sigil.v1.Registry/Search", Role::Viewer),
    target("/sigil.v1.Registry/Get", Role::Viewer),
    target("/sigil.v1.Registry/Publish", Role::Deployer).audited("package.publish"),
    target("/sigil.v1.Registry/SetStatus", Role::Deployer).audited("package.status"),
    agent("/sigil.v1.Registry/Import", Role::Admin).audited("package.import"),
    target("/sigil.v1.Registry/Push", Role::Deployer).audited("package.push"),
    agent("/sigil.v1.Registry/Mirrors", Role::Viewer),
    agent("/sigil.v1.Registry/SyncMirror", Role::Admin).audited("mirror.ask"),
    agent("/sigil.v1.Audit/Query", Role::Admin),
];

/// Puts [`Guarded`] around the services.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    access: Access,
    audit: Audit,
    refusals: Refusals,
}

/// Why a call goes no further.
struct Refused {
    status: tonic::Status,
    /// The rule that it fell under, and who asked for it as far as that is known.
    of: Option<Box<(&'static Rule, Option<Principal>)>>,
}

impl From<tonic::Status> for Refused {
    fn from(status: tonic::Status) -> Self {
        Self { status, of: None }
    }
}

impl Guard {
    pub fn new(access: Access, audit: Audit) -> Self {
        Self { access, audit, refusals: Refusals::default() }
    }

    /// Who calls, when that one may call this.
    fn admit(&self, request: &Request<Body>) -> Result<(Principal, &'static Rule), Refused> {
        let path = request.uri().path();
        let Some(rule) = RULES.iter().find(|r| r.path == path) else {
            let words = "this agent has no such call; it may be older than the console";
            return Err(tonic::Status::unimplemented(words).into());
        };
        let Some(peer) = request.extensions().get::<Peer>() else {
            return Err(tonic::Status::internal("a connection without a peer").into());
        };
        let bearer = request
            .headers()
            .get(http::header::AUTHORIZATION)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let principal = self.access.principal(peer, bearer).map_err(|e| {
            tracing::info!(?peer, path, why = %e, "call refused");
            Refused { status: status::access(&e), of: Some(Box::new((rule, None))) }
        })?;
        let held = match rule.reach {
            Reach::Anyone => None,
            Reach::Target => Some(principal.rights.somewhere()),
            Reach::Agent => Some(principal.rights.everywhere()),
        };
        if let Some(held) = held.filter(|held| !held.may(rule.role)) {
            tracing::info!(who = principal.who, role = held.as_str(), path, "call refused");
            let on = if rule.reach == Reach::Agent { "the whole agent" } else { "anything" };
            let status = forbidden(&principal.who, rule.role, on);
            return Err(Refused { status, of: Some(Box::new((rule, Some(principal)))) });
        }
        Ok((principal, rule))
    }

    /// What is written down of a refusal, if anything: a change that somebody tried who may not.
    fn refusal(&self, refused: &Refused, peer: Option<&Peer>) -> Option<sigil_core::audit::Record> {
        let (rule, principal) = &**refused.of.as_ref()?;
        let mut record = noted::record(rule.audit?, principal.as_ref(), peer);
        record.outcome = noted::code(&refused.status);
        self.refusals.counted(record, principal.is_some())
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;
    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: self.clone(), inner }
    }
}

/// Services behind the table.
#[derive(Clone, Debug)]
pub(super) struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let admitted = self.guard.admit(&request);
        let audit = self.guard.audit.clone();
        let (principal, rule) = match admitted {
            Ok(admitted) => admitted,
            Err(refused) => {
                let record = self.guard.refusal(&refused, request.extensions().get());
                return Box::pin(async move {
                    // it is refused in any case: where that cannot be recorded, the agent's log has it
                    if let Some(record) = record
                        && let Err(error) = audit.record(vec![record]).await
                    {
                        tracing::error!(%error, "a refused call is not in the audit log");
                    }
                    Ok(refused.status.into_http())
                });
            }
        };
        // the token has done its work: nothing behind here needs it, or could log it
        request.headers_mut().remove(http::header::AUTHORIZATION);
        let note = rule.audit.map(|what| Note::new(noted::record(what, Some(&principal), request.extensions().get())));
        let access = self.guard.access.clone();
        request.extensions_mut().insert(Asker::new(principal, rule.role, access));
        if let Some(note) = &note {
            request.extensions_mut().insert(note.clone());
        }
        // nothing of it runs before it is polled
        let answer = self.inner.call(request);
        let answer = async move {
            if rule.feeds {
                return answer.await;
            }
            tokio::time::timeout(CALL_TIMEOUT, answer).await.unwrap_or_else(|_| {
                let late = status::refuse("TIMEOUT", "the call took longer than 30 s", "try again", 7);
                Ok(late.into_http())
            })
        };
        match note {
            None => Box::pin(answer),
            Some(note) => Box::pin(async move {
                let attempt = match note.begin(&audit).await {
                    Ok(attempt) => attempt,
                    Err(error) => return Ok(status::audit(&error).into_http()),
                };
                let answer = answer.await?;
                Ok(match attempt.end(noted::outcome(&answer)).await {
                    Ok(()) => answer,
                    Err(error) => status::unrecorded(&error).into_http(),
                })
            }),
        }
    }
}

/// Who calls, as the guard found.
pub(super) fn caller<T>(request: &tonic::Request<T>) -> Result<Asker, tonic::Status> {
    request.extensions().get().cloned().ok_or_else(|| tonic::Status::internal("a call that nobody admitted"))
}
#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    #[test]
    fn every_rpc_has_one_rule_and_every_rule_an_rpc() {
        let set = FileDescriptorSet::decode(sigil_protocol::DESCRIPTORS).unwrap();
        let mut rpcs = BTreeSet::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let rule = RULES.iter().find(|r| r.path == path).unwrap_or_else(|| panic!("{path} has no rule"));
                    assert_eq!(rule.feeds, method.client_streaming(), "{path}");
                    rpcs.insert(path);
                }
            }
        }
        assert_eq!(RULES.iter().map(|r| r.path.to_owned()).collect::<BTreeSet<_>>(), rpcs);
        assert_eq!(RULES.len(), rpcs.len(), "a rule is there twice");
    }

    #[test]
    fn whatever_takes_more_than_a_look_has_a_word_for_the_audit_log() {
        // the gateway has a log of calls of its own; who reads the audit log changes nothing
        let no_change = ["/sigil.v1.Mcp/Session", "/sigil.v1.Audit/Query"];
        // whatever is shown to everybody is called so
        let looks = |rule: &Rule| {
            let word = rule.path.rsplit('/').next().unwrap();
            rule.role == Role::Viewer || (rule.reach == Reach::Anyone && ["Info", "List", "ListOwn"].contains(&word))
        };
        let mut words = BTreeSet::new();
        for rule in RULES {
            let expected = !looks(rule) && !no_change.contains(&rule.path);
            assert_eq!(rule.audit.is_some(), expected, "{}: .audited(\"…\")", rule.path);
            assert!(rule.audit.is_none_or(|word| words.insert(word)), "{} has another's word", rule.path);
        }
    }

    async fn ask(access: &Access, path: &str, peer: Option<Peer>, token: Option<&str>) -> (i32, Option<Principal>) {
        let seen = std::sync::Arc::new(std::sync::Mutex::new(None));
        let noted = seen.clone();
        let inner = tower::service_fn(move |r: Request<Body>| {
            assert!(!r.headers().contains_key(http::header::AUTHORIZATION));
            *noted.lock().unwrap() = r.extensions().get::<Asker>().map(|asker| asker.principal.clone());
            std::future::ready(Ok::<_, Infallible>(Response::new(Body::default())))
        });
        let mut request = Request::builder().uri(format!("http://agent{path}"));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut request = request.body(Body::default()).unwrap();
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let audit = Audit::open(access.data_dir()).unwrap();
        let answer = Guard::new(access.clone(), audit).layer(inner).call(request).await.unwrap();
        let code = answer.headers().get("grpc-status").map_or(0, |v| v.to_str().unwrap().parse().unwrap());
        let seen = seen.lock().unwrap().take();
        (code, seen)
    }

    #[tokio::test]
    async fn strangers_do_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let access = Access::new(dir.path());
        let new = crate::access::NewToken::new("r", Role::Viewer);
        let (token, _) = crate::access::create_token(dir.path(), new).unwrap();
        let tls = || Some(Peer::Tls { address: "192.0.2.1:1".parse().unwrap(), certificate: None });
        let token = Some(crate::access::reveal(&token));
        for rule in RULES {
            assert_eq!(ask(&access, rule.path, tls(), None).await, (16, None));
            assert_eq!(ask(&access, rule.path, None, token).await, (13, None));
        }
        assert_eq!(ask(&access, "/sigil.v1.Agent/Other", tls(), token).await, (12, None));
        let root = Some(Peer::Unix { uid: 0, group_socket: false });
        assert_eq!(ask(&access, "/sigil.v1.Secrets/Set", root, None).await.1.unwrap().who, "root");
    }
}
