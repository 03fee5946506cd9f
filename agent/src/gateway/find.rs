//! What a request needs, found: its deployment once something serves there, its session, and the replica to ask.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::header::HeaderValue;
use sigil_config::agent::GatewayConfig;
use sigil_core::model::{InstanceId, Transport};
use sigil_core::route;
use sigil_core::session::Ticket;
use tokio::time::Instant;

use super::Shared;
use super::caller::Caller;
use super::error::Refusal;
use super::serve::Asked;
use super::table::{Entry, Live};
use crate::upstream::nap::{Awake, Nap};

/// Between two looks at a replica that is out of reach while it is said to serve.
const AGAIN: Duration = Duration::from_millis(100);

impl Shared {
    /// Whether a request's host name is known to be one of ours.
    pub(crate) fn checks_hosts(&self, config: &GatewayConfig) -> bool {
        let named = !config.allowed_hosts.is_empty() || !config.domain.is_empty() || !config.public_url.is_empty();
        self.loopback || named
    }

    /// The deployment of a name. A new agent listens a moment before it knows what it serves; then this waits.
    pub(crate) async fn entry(&self, name: &str) -> Result<Arc<Entry>, Refusal> {
        if name.starts_with('@') {
            return self.bundles.entry(name).ok_or_else(|| Refusal::expired("this bundle was forgotten"));
        }
        if !self.table.borrow().known {
            self.until(name, |table| table.known).await?;
        }
        self.table.borrow().routes.get(name).cloned().ok_or_else(|| Refusal::not_found(name))
    }

    /// All deployments, once they are known.
    pub(crate) async fn known(&self) -> Result<Arc<super::table::Table>, Refusal> {
        if !self.table.borrow().known {
            self.until("the gateway", |table| table.known).await?;
        }
        Ok(self.table.borrow().clone())
    }

    /// The deployment once an instance of a former agent is taken over, or known not to be.
    pub(crate) async fn returned(&self, name: &str, id: InstanceId) -> Result<Arc<Entry>, Refusal> {
        let decided = |entry: &Arc<Entry>| entry.instance(id).is_some() || !entry.may_return(id);
        self.until(name, |table| table.routes.get(name).is_none_or(decided)).await?;
        self.entry(name).await
    }

    /// The deployment once whoever can answer is in reach, or known to be gone. Nothing has been sent until then.
    pub(crate) async fn reached(&self, name: &str, session: Option<&Ticket>) -> Result<Arc<Entry>, Refusal> {
        let away = || Refusal::starting(name, "its container does not answer");
        let _permit = self.waiting.try_acquire().map_err(|_| away())?;
        let mut table = self.table.clone();
        let deadline = Instant::now() + self.hold;
        loop {
            let entry = self.entry(name).await?;
            if !entry.is_away(session) {
                return Ok(entry);
            }
            if Instant::now() >= deadline {
                return Err(away());
            }
            // a link that is back changes no table
            if let Ok(Err(_)) = tokio::time::timeout(AGAIN, table.changed()).await {
                return Err(away());
            }
        }
    }

    /// Acts again as long as nothing could be sent because whoever was to be asked was out of reach, within the time of
    /// holding; `refusal` is what the first time came to.
    pub(crate) async fn again<'f, T>(
        &self,
        name: &str,
        session: Option<&Ticket>,
        mut refusal: Refusal,
        mut act: impl FnMut(Arc<Entry>) -> BoxFuture<'f, Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let deadline = Instant::now() + self.hold;
        while refusal.unsent && Instant::now() < deadline {
            {
                // as many as wait for anything else
                let Ok(_permit) = self.waiting.try_acquire() else { break };
                // a link is known to be broken a moment after it is
                tokio::time::sleep(AGAIN).await;
            }
            let found = async {
                let entry = self.reached(name, session).await?;
                if session.is_none() && entry.ready.is_empty() { self.ready(name).await } else { Ok(entry) }
            };
            let Ok(found) = tokio::time::timeout_at(deadline, found).await else { break };
            match act(found?).await {
                Err(again) => refusal = again,
                done => return done,
            }
        }
        Err(refusal)
    }

    /// Holds a call until the table is so, within the limits of holding.
    async fn until(&self, name: &str, so: impl FnMut(&Arc<super::table::Table>) -> bool) -> Result<(), Refusal> {
        let starting = || Refusal::starting(name, "the agent is starting");
        let _permit = self.waiting.try_acquire().map_err(|_| starting())?;
        let mut table = self.table.clone();
        match tokio::time::timeout(self.hold, table.wait_for(so)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(starting()),
        }
    }

    /// Keeps a deployment awake as long as the answer is held; wakes it first where it sleeps.
    pub(crate) async fn awake(&self, name: &str, nap: &Nap) -> Result<Awake, Refusal> {
        let held = nap.hold();
        if nap.is_awake() {
            return Ok(held);
        }
        let late = || Refusal::starting(name, "it was asleep and is not awake yet");
        let Ok(_permit) = self.waiting.try_acquire() else { return Err(late()) };
        Box::pin(nap.enter(self.hold)).await.ok_or_else(late)
    }

    /// The deployment of a name once something serves; waits while that is expected.
    pub(crate) async fn ready(&self, name: &str) -> Result<Arc<Entry>, Refusal> {
        let mut entry = self.entry(name).await?;
        if !entry.ready.is_empty() {
            return Ok(entry);
        }
        let nap = entry.recorder.nap.clone();
        let _held = nap.hold();
        if !nap.is_awake() {
            self.awake(name, &nap).await?;
            entry = self.entry(name).await?;
        }
        if !entry.ready.is_empty() {
            return Ok(entry);
        }
        if !entry.expected {
            return Err(Refusal::unavailable(name, &entry.message));
        }
        let Ok(_permit) = self.waiting.try_acquire() else { return Err(Refusal::starting(name, &entry.message)) };
        let mut table = self.table.clone();
        let deadline = tokio::time::Instant::now() + self.hold;
        let mut message = entry.message.clone();
        loop {
            let found = table.borrow_and_update().routes.get(name).cloned();
            let entry = found.ok_or_else(|| Refusal::not_found(name))?;
            if !entry.ready.is_empty() {
                return Ok(entry);
            }
            if !entry.expected {
                return Err(Refusal::unavailable(name, &entry.message));
            }
            message.clone_from(&entry.message);
            match tokio::time::timeout_at(deadline, table.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(Refusal::starting(name, &message)),
            }
        }
    }

    /// How the asked server speaks, once that is known.
    pub(crate) async fn transport(&self, asked: &Asked<'_>) -> Result<Transport, Refusal> {
        if let Some((_, ticket)) = &asked.ticket {
            return Ok(ticket.transport);
        }
        if let Some(transport) = entry_transport(asked.entry).filter(|_| !asked.entry.ready.is_empty()) {
            return Ok(transport);
        }
        let entry = self.ready(asked.name).await?;
        entry_transport(&entry).ok_or_else(|| Refusal::unavailable(asked.name, &entry.message))
    }

    /// What a session id holds, when it is one of this deployment's and still good.
    pub(crate) fn ticket(
        &self,
        id: &HeaderValue,
        entry: &Entry,
        caller: &Caller,
    ) -> Result<(HeaderValue, Ticket), Refusal> {
        let ticket = id.to_str().ok().and_then(|id| self.sealer.unseal(id));
        let ticket = ticket.filter(|t| t.deployment == entry.id && t.principal == *caller.principal);
        let ticket = ticket.ok_or_else(|| Refusal::expired("this session id is not one of this server's"))?;
        if ticket.expires < now() {
            return Err(Refusal::expired("this session has expired"));
        }
        Ok((id.clone(), ticket))
    }

    /// The replica of a session.
    pub(crate) fn replica_of<'a>(&self, entry: &'a Entry, ticket: &Ticket) -> Result<&'a Live, Refusal> {
        entry.instance(ticket.instance).ok_or_else(|| Refusal::expired("the replica that held this session is gone"))
    }

    /// Replicas in reach, in the order in which they should be tried.
    pub(crate) fn order<'a>(&self, entry: &'a Entry, sessions_first: bool) -> Vec<&'a Live> {
        let turn = self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut ready: Vec<&Live> = entry.ready.iter().filter(|live| live.endpoint.wire.is_up()).collect();
        let burdens: Vec<_> = ready.iter().map(|live| live.burden()).collect();
        if let Some(first) = route::choose(&burdens, turn, sessions_first) {
            ready.rotate_left(first);
        }
        ready
    }
}

pub(crate) fn entry_transport(entry: &Entry) -> Option<Transport> {
    entry.ready.first().or(entry.draining.first()).map(|l| l.endpoint.spec.transport)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}
