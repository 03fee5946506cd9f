//! Who calls: a key of this agent, a token of the identity provider, or nobody in particular; and what that one may.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::{self, HeaderMap};
use sigil_core::cost::judge::Action;
use sigil_core::jsonrpc::{self, Head, Kind, Params};
use sigil_core::policy::{Access, Rate, Scope};

use super::count::KeyLoad;
use super::error::Refusal;
use super::limits::{Permits, Whose};
use super::oauth::Address;
use super::table::Entry;
use super::{Counters, Shared, oauth};
use crate::access::{AccessError, Principal, Role};

/// A caller, known.
#[derive(Debug)]
pub(crate) struct Caller {
    /// What sessions are bound to; never shown to anybody else.
    pub(crate) principal: Arc<str>,
    /// For logs and people.
    pub(crate) name: String,
    /// Whose own secrets go with its calls; nobody's for whoever shows nothing.
    pub(crate) user: Option<Arc<str>>,
    pub(crate) scope: Scope,
    rate: Option<Rate>,
    concurrency: Option<u32>,
    /// Its deployment's policy about calls does not bind it to a caller's rate (the link of an admin).
    unlimited: bool,
    /// It showed nothing, where lists need nothing.
    lists_only: bool,
    /// Where its calls are counted.
    pub(crate) load: Option<Arc<KeyLoad>>,
}

/// Under these names those are counted that have no key of this agent: links of consoles, whoever shows nothing, users of
/// the identity provider (people's names are not for numbers that others read).
pub(crate) const LINKS: &str = "(links)";
pub(crate) const ANONYMOUS: &str = "(anonymous)";
pub(crate) const USERS: &str = "(users)";

/// How requests to a deployment pass that has used up its tier's quota, where it is slowed down for that.
const THROTTLED: &str = "6/m";

/// Methods that read what a server offers.
const DISCOVERY: [&str; 9] = [
    "initialize",
    "notifications/initialized",
    "ping",
    "server/discover",
    "tools/list",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
    "notifications/cancelled",
];

impl Caller {
    /// Whoever reaches a deployment that asks for nothing.
    pub(crate) fn anonymous() -> Self {
        Self::of("anonymous".into(), "anonymous".into())
    }

    fn of(principal: Arc<str>, name: String) -> Self {
        let scope = Scope::default();
        Self {
            principal,
            name,
            user: None,
            scope,
            rate: None,
            concurrency: None,
            unlimited: false,
            lists_only: false,
            load: None,
        }
    }

    /// A token of the identity provider.
    pub(crate) fn user(issuer: &str, subject: &str, name: &str, scope: Scope) -> Self {
        // users of this agent are other people, however the provider names its own
        let user = Some(format!("oauth:{name}").into());
        Self { scope, user, ..Self::of(format!("oauth:{issuer} {subject}").into(), name.to_owned()) }
    }

    /// Counted there.
    pub(crate) fn counted(self, load: Arc<KeyLoad>) -> Self {
        Self { load: Some(load), ..self }
    }

    /// Somebody on the gRPC link.
    pub(crate) fn link(principal: &Principal, counters: &Counters) -> Self {
        match &principal.holder {
            Some(holder) if holder.role == Role::Caller => Self::holder(holder, principal.user_id().into(), counters),
            _ => Self {
                unlimited: true,
                user: Some(principal.user_id().into()),
                ..Self::of(format!("link:{}", principal.who).into(), principal.who.clone())
            }
            .counted(counters.key(LINKS)),
        }
    }

    /// A caller of a bundle: its members hold it to its limits and count it, each for itself.
    pub(crate) fn whole(of: &Self) -> Self {
        Self { user: of.user.clone(), ..Self::of(of.principal.clone(), of.name.clone()) }
    }

    /// It showed nothing, where lists need nothing.
    pub(crate) fn lists_only(&self) -> bool {
        self.lists_only
    }

    fn holder(holder: &crate::access::Holder, user: Arc<str>, counters: &Counters) -> Self {
        Self {
            load: Some(counters.key(&holder.label)),
            user: Some(user),
            scope: holder.scope.clone(),
            rate: holder.rate,
            concurrency: holder.concurrency,
            ..Self::of(format!("key:{}", holder.id).into(), holder.label.clone())
        }
    }
}

/// What a request shows of its caller.
fn shown(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let parts = value.to_str().ok().and_then(|v| v.split_once(' '));
        // another scheme is the business of a proxy before us
        return Ok(parts.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim()));
    }
    let mut keys = headers.get_all("x-api-key").iter();
    match (keys.next(), keys.next()) {
        (Some(_), Some(_)) => Err(Refusal::bad_request("X-Api-Key is there twice", "send one key")),
        (Some(value), None) => Ok(value.to_str().ok().map(str::trim).filter(|key| !key.is_empty())),
        (None, _) => Ok(None),
    }
}

impl Shared {
    /// Who makes a request to a deployment, when that one may call it.
    pub(crate) async fn caller(
        &self,
        entry: &Entry,
        headers: &HeaderMap,
        peer: IpAddr,
        address: &Address,
    ) -> Result<Arc<Caller>, Refusal> {
        let shown = shown(headers)?;
        let challenge = |refusal: Refusal| match entry.access {
            Access::Oauth => Refusal { challenge: Some(oauth::challenge(address, None).into()), ..refusal },
            _ => Refusal { challenge: Some("Bearer realm=\"sigil\"".into()), ..refusal },
        };
        let caller = match shown {
            Some(text) if text.starts_with("sigil_") => {
                let holder = self.keys.holder(text).map_err(|error| match error {
                    AccessError::BadToken => challenge(Refusal::bad_key()),
                    other => {
                        tracing::error!(error = %other, "keys cannot be read");
                        Refusal::overloaded("keys cannot be read", "look at the agent's log")
                    }
                })?;
                if holder.role == Role::Viewer {
                    let hint = "use a key of role caller: `sigil key create NAME`";
                    return Err(Refusal::forbidden(format!("the key '{}' may only read", holder.label), hint));
                }
                match self.keys.calls(&holder, entry.subject()) {
                    Ok(true) => {}
                    Ok(false) => {
                        let hint = "ask an admin of this agent for the role caller: `sigil role grant USER caller`";
                        let what = format!("the user of the key '{}' may not call '{}'", holder.label, entry.name);
                        return Err(Refusal::forbidden(what, hint));
                    }
                    Err(error) => {
                        let hint = "an admin of this agent enables the user: `sigil user enable NAME`";
                        return Err(Refusal::forbidden(error.to_string(), hint));
                    }
                }
                Arc::new(Caller::holder(&holder, self.keys.owner(&holder), &self.counters))
            }
            Some(token) if entry.access == Access::Oauth => {
                let config = self.config.borrow().clone();
                // a host name that nobody checked is the client's choice: it must not choose what a token is meant for
                let resource =
                    Some(address.resource()).filter(|_| self.checks_hosts(&config.gateway)).unwrap_or_default();
                Box::pin(self.oauth.caller(&config, &resource, token)).await.map_err(|refused| match refused {
                    oauth::Refused::Token(why) => challenge(Refusal::bad_token(&why)),
                    oauth::Refused::Scope(scope) => Refusal {
                        challenge: Some(oauth::challenge(address, Some(&scope)).into()),
                        ..Refusal::forbidden(
                            format!("the token lacks the scope {scope}"),
                            "ask the identity provider for it",
                        )
                    },
                    oauth::Refused::Unknown(why) => {
                        Refusal { retry_after: Some(5), ..Refusal::overloaded(why, "is the identity provider up?") }
                    }
                })?
            }
            Some(_) if entry.access == Access::Key => return Err(challenge(Refusal::bad_key())),
            // a deployment that asks for nothing has no use for what was shown
            Some(_) | None if entry.access == Access::Anonymous => self.nobody(peer)?,
            _ if entry.rules.policy().open_discovery => {
                Arc::new(Caller { lists_only: true, load: self.anonymous.load.clone(), ..Caller::anonymous() })
            }
            _ => return Err(challenge(Refusal::no_key(entry.access))),
        };
        if !caller.scope.deployment(&entry.name) {
            let hint = "`sigil key ls` shows what each key is good for";
            return Err(Refusal::forbidden(format!("the key '{}' is not for '{}'", caller.name, entry.name), hint));
        }
        Ok(caller)
    }

    /// Whether somebody may read the numbers of all deployments: from this host, or with a key that reads.
    pub(crate) fn may_read(&self, headers: &HeaderMap, peer: IpAddr) -> Result<(), Refusal> {
        if peer.to_canonical().is_loopback() {
            return Ok(());
        }
        let challenge = |refusal| Refusal { challenge: Some("Bearer realm=\"sigil\"".into()), ..refusal };
        let key = shown(headers)?.ok_or_else(|| challenge(Refusal::no_reader()))?;
        let holder = self.keys.holder(key).map_err(|_| challenge(Refusal::bad_key()))?;
        if self.keys.looks(&holder) { Ok(()) } else { Err(challenge(Refusal::no_reader())) }
    }

    fn nobody(&self, peer: IpAddr) -> Result<Arc<Caller>, Refusal> {
        let near = peer.to_canonical().is_loopback();
        if !near && self.config.borrow().gateway.anonymous != "anywhere" {
            return Err(Refusal { challenge: Some("Bearer realm=\"sigil\"".into()), ..Refusal::no_key_from_afar() });
        }
        Ok(self.anonymous.clone())
    }

    /// Whether a caller may send a message now, and the message as the server knows its tool (`None`: as it is). Takes
    /// the places that it needs.
    pub(crate) fn allow(
        &self,
        entry: &Entry,
        caller: &Caller,
        head: &Head<'_>,
        permits: &mut Permits,
    ) -> Result<Option<String>, Refusal> {
        if caller.lists_only && head.kind != Kind::Response && !DISCOVERY.contains(&head.method.as_ref()) {
            return Err(Refusal { challenge: Some("Bearer realm=\"sigil\"".into()), ..Refusal::no_key(entry.access) });
        }
        if head.kind == Kind::Response {
            return Ok(None);
        }
        // what a server offers is no secret; using it needs the caller's own
        if let Some(lacks) = entry.personal.as_ref().and_then(|personal| personal.lacks.as_ref())
            && head.kind == Kind::Request
            && !DISCOVERY.contains(&head.method.as_ref())
        {
            return Err(lacks.clone());
        }
        if head.kind == Kind::Request && !DISCOVERY.contains(&head.method.as_ref()) {
            self.within_quotas(entry, caller)?;
        }
        let policy = entry.rules.policy();
        // a stream that only listens is no load, and would hold its place for ever
        let listens = head.method == super::modern::LISTEN;
        if let Some(rate) = caller.rate {
            self.limits.rate(Whose::Caller(caller.principal.clone()), rate)?;
        }
        if let Some(rate) = policy.caller_rate.filter(|_| !caller.unlimited) {
            self.limits.rate(Whose::CallerAt(caller.principal.clone(), entry.id), rate)?;
        }
        if let Some(rate) = policy.rate {
            self.limits.rate(Whose::Deployment(entry.id), rate)?;
        }
        if head.kind != Kind::Request {
            return Ok(None);
        }
        if let Some(most) = caller.concurrency.filter(|_| !listens) {
            self.limits.place(Whose::Caller(caller.principal.clone()), most, permits)?;
        }
        if let Some(most) = policy.concurrency.filter(|_| !listens) {
            self.limits.place(Whose::Deployment(entry.id), most, permits)?;
        }
        let holds = entry.watched.holds();
        if head.method != "tools/call" || !(holds || entry.rules.judges_tools() || caller.scope.narrows()) {
            return Ok(None);
        }
        let raw = Params::read(head.params).name;
        // parameters that cannot be read, or name two tools, must not reach a server that reads them its own way
        let Some((raw, shown)) = raw.and_then(|raw| Some((raw, jsonrpc::string(raw)?))) else {
            return Err(Refusal::no_name());
        };
        let Some(name) = entry.rules.tool(&shown) else { return Err(Refusal::no_tool(&shown)) };
        if !caller.scope.tool(&entry.name, &shown) {
            let hint = "`sigil key ls` shows what each key is good for";
            return Err(Refusal::forbidden(format!("the key '{}' is not for the tool '{shown}'", caller.name), hint));
        }
        if let Some(change) = entry.watched.held(name).filter(|_| holds) {
            return Err(Refusal::held(&entry.name, &shown, change));
        }
        if let Some(rate) = policy.tools.rate.get(name) {
            self.limits.rate(Whose::Tool(entry.id, name.to_owned()), *rate)?;
        }
        if let Some(most) = policy.tools.concurrency.get(name) {
            self.limits.place(Whose::Tool(entry.id, name.to_owned()), *most, permits)?;
        }
        if name == shown {
            return Ok(None);
        }
        Ok(jsonrpc::splice(head.text, &[(raw.get(), &jsonrpc::quote(name))]))
    }

    /// Refuses whoever is beyond a quota of the month. What a server offers may be looked at all the same.
    fn within_quotas(&self, entry: &Entry, caller: &Caller) -> Result<(), Refusal> {
        let Some(quotas) = self.quotas.get() else { return Ok(()) };
        let verdicts = quotas.borrow().clone();
        if verdicts.is_empty() {
            return Ok(());
        }
        let user = caller.user.as_deref().unwrap_or(ANONYMOUS);
        let found = [
            verdicts.deployments.get(&entry.id),
            verdicts.users.get(user),
            verdicts.teams.get(&entry.team),
            verdicts.all.as_ref(),
        ];
        for (action, sentence) in found.into_iter().flatten() {
            match action {
                Action::Warn => {}
                Action::Stop => return Err(Refusal::quota(sentence.clone(), None)),
                Action::Throttle => {
                    let slow: Rate = THROTTLED.parse().map_err(|_| Refusal::quota(sentence.clone(), None))?;
                    self.limits.rate(Whose::Quota(entry.id), slow).map_err(|refusal| {
                        let sentence = format!("{sentence}; requests pass slowly ({THROTTLED})");
                        Refusal::quota(sentence, refusal.retry_after)
                    })?;
                }
            }
        }
        Ok(())
    }
}
