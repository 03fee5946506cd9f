//! The gateway's own copy of the route table: replicas with their connections and counters, kept over changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use secrecy::SecretString;
use sigil_core::model::{DeploymentId, Inject, InstanceId, ReleaseNo, SecretUse, Transport};
use sigil_core::pins::View;
use sigil_core::policy::{Access, Rules};
use sigil_core::rights::Subject;
use sigil_core::route::Burden;
use sigil_core::session::Ticket;
use tokio_util::task::TaskTracker;

use super::common::Common;
use super::load::{Recorder, Stats};
use super::mask::Masks;
use super::own::Personal;
use super::pins::{Teller, Watched};
use super::settings::{self, Terms};
use crate::tail::Tail;
use crate::upstream::nap::Nap;
use crate::upstream::{Endpoint, Replica, RouteTable};
use crate::usage::Tally;

/// A replica as requests use it.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) common: Arc<Common>,
}

impl Live {
    pub(crate) fn burden(&self) -> Burden {
        use std::sync::atomic::Ordering::Relaxed;
        Burden { in_flight: self.stats.in_flight.load(Relaxed), sessions: self.stats.sessions.load(Relaxed) }
    }
}

/// A deployment as requests use it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) id: DeploymentId,
    pub(crate) name: String,
    /// The id of its team.
    pub(crate) team: String,
    pub(crate) tags: Vec<String>,
    pub(crate) ready: Vec<Live>,
    pub(crate) draining: Vec<Live>,
    pub(crate) expected: bool,
    /// See [`crate::upstream::Route::returning`].
    pub(crate) returning: Option<Vec<InstanceId>>,
    pub(crate) message: String,
    pub(crate) injected: Arc<Vec<(Inject, SecretString)>>,
    /// What each caller has of its own for it.
    pub(crate) own: Arc<Vec<SecretUse>>,
    /// One caller's, with its own secrets among those.
    pub(crate) personal: Option<Arc<Personal>>,
    /// The release that serves or is to serve.
    pub(crate) release: Option<ReleaseNo>,
    /// See [`crate::upstream::Route::coming`].
    pub(crate) coming: Option<ReleaseNo>,
    pub(crate) access: Access,
    pub(crate) rules: Arc<Rules>,
    /// What its lists of tools are compared with.
    pub(crate) watched: Arc<Watched>,
    /// Who is told of tools that changed.
    pub(crate) teller: Teller,
    /// Finds the values of `injected` in answers.
    pub(crate) masks: Option<Arc<Masks>>,
    /// What callers may set for a session.
    pub(crate) terms: Option<Arc<Terms>>,
    /// Its sessions may be begun again.
    pub(crate) replayable: bool,
    pub(crate) recorder: Arc<Recorder>,
}

impl Entry {
    /// What decides who may call it.
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject { name: &self.name, team: &self.team, tags: &self.tags }
    }

    /// What was counted of it since the agent's start, without its tools.
    pub(crate) fn traffic(&self) -> crate::web::Traffic {
        use std::sync::atomic::Ordering::Relaxed;
        let mut traffic = crate::web::Traffic {
            deployment: self.name.clone(),
            latency: self.recorder.load.latency(),
            bytes_in: self.recorder.bytes.from_clients.load(Relaxed),
            bytes_out: self.recorder.bytes.to_clients.load(Relaxed),
            ready: self.ready.len() as u64,
            connections: self.recorder.connections.load(Relaxed),
            cached: self.recorder.cached.told(),
            ..crate::web::Traffic::default()
        };
        for burden in self.ready.iter().chain(&self.draining).map(Live::burden) {
            traffic.in_flight += burden.in_flight;
            traffic.sessions += burden.sessions;
        }
        traffic
    }

    /// Ready or draining: whoever has a session here may go on.
    pub(crate) fn instance(&self, id: InstanceId) -> Option<&Live> {
        self.ready.iter().chain(&self.draining).find(|l| l.endpoint.instance == id)
    }

    /// Whether whoever could answer is here but out of reach: the replica of a session, else all that are ready.
    pub(crate) fn is_away(&self, session: Option<&Ticket>) -> bool {
        let away = |live: &Live| !live.endpoint.wire.is_up();
        match session {
            Some(ticket) => self.instance(ticket.instance).is_some_and(away),
            None => !self.ready.is_empty() && self.ready.iter().all(away),
        }
    }

    /// Whether an instance that is not here is about to be: a new agent is taking it over.
    pub(crate) fn may_return(&self, id: InstanceId) -> bool {
        self.returning.as_ref().is_none_or(|some| some.contains(&id))
    }
}

/// All deployments by name.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) routes: BTreeMap<String, Arc<Entry>>,
    /// The same by id.
    pub(crate) by_id: HashMap<DeploymentId, Arc<Entry>>,
    /// False until the first table of a new agent.
    pub(crate) known: bool,
}

impl Table {
    pub(crate) fn new(entries: impl IntoIterator<Item = Entry>, known: bool) -> Self {
        let entries: Vec<Arc<Entry>> = entries.into_iter().map(Arc::new).collect();
        let by_id = entries.iter().map(|entry| (entry.id, entry.clone())).collect();
        let routes = entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
        Self { routes, by_id, known }
    }
}

/// What outlives a table.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    stats: Mutex<HashMap<InstanceId, Weak<Stats>>>,
    commons: Mutex<HashMap<InstanceId, Weak<Common>>>,
    recorders: Mutex<HashMap<DeploymentId, Arc<Recorder>>>,
    watched: Mutex<HashMap<DeploymentId, Arc<Watched>>>,
    /// Where calls outlive the agent; set before there are any.
    pub(crate) tally: OnceLock<Tally>,
    /// Who is told of tools that changed.
    pub(crate) teller: Teller,
}

impl Registry {
    pub(crate) fn stats(&self, id: InstanceId) -> Option<Arc<Stats>> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).get(&id)?.upgrade()
    }

    pub(crate) fn recorder(&self, id: DeploymentId) -> Option<Arc<Recorder>> {
        self.recorders.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(crate) fn stats_of(&self, id: InstanceId) -> Arc<Stats> {
        let mut all = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stats) = all.get(&id).and_then(Weak::upgrade) {
            return stats;
        }
        let stats = Arc::new(Stats::default());
        all.insert(id, Arc::downgrade(&stats));
        stats
    }

    pub(crate) fn common_of(&self, id: InstanceId) -> Arc<Common> {
        let mut all = self.commons.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(common) = all.get(&id).and_then(Weak::upgrade) {
            return common;
        }
        let common = Arc::new(Common::default());
        all.insert(id, Arc::downgrade(&common));
        common
    }

    pub(crate) fn common(&self, id: InstanceId) -> Option<Arc<Common>> {
        self.commons.lock().unwrap_or_else(PoisonError::into_inner).get(&id)?.upgrade()
    }

    pub(crate) fn recorder_of(&self, id: DeploymentId, nap: &Nap) -> Arc<Recorder> {
        let mut all = self.recorders.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = || self.tally.get().map(|tally| (tally.clone(), id));
        all.entry(id).or_insert_with(|| Arc::new(Recorder::new(nap.clone(), tally()))).clone()
    }

    fn watched_of(&self, id: DeploymentId, view: &View) -> Arc<Watched> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().clone();
        watched.set(view);
        watched
    }

    /// Forgets deployments that are gone and replicas that nobody holds.
    pub(crate) fn prune(&self, table: &Table) {
        let kept = |id: &DeploymentId| table.by_id.contains_key(id);
        self.recorders.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| kept(id));
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| kept(id));
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, s| s.strong_count() > 0);
        self.commons.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, c| c.strong_count() > 0);
    }
}

/// A replica whose connections are made with the secrets that go there: over HTTP each request has them, over legacy SSE
/// its one stream.
pub(crate) fn carrying(mut endpoint: Endpoint, injected: &[(Inject, SecretString)]) -> Endpoint {
    if endpoint.spec.transport == Transport::Sse {
        endpoint.carried = Some(Box::new(settings::carried(&endpoint, injected, None)));
    }
    endpoint
}

/// What each caller has of its own for whoever serves, or is to.
fn own(route: &crate::upstream::Route) -> Arc<Vec<SecretUse>> {
    let Some(replica) = route.ready.first() else { return route.own.clone() };
    let own = |secret: &&SecretUse| secret.per_user;
    if replica.spec.secrets.iter().filter(own).eq(route.own.iter()) {
        return route.own.clone();
    }
    Arc::new(replica.spec.secrets.iter().filter(own).cloned().collect())
}

/// The next table; replicas that stay keep their connections.
pub(crate) fn build(new: &RouteTable, old: &Table, registry: &Registry, tail: &Tail, tasks: &TaskTracker) -> Table {
    let mut known: HashMap<InstanceId, Live> = HashMap::new();
    for entry in old.routes.values() {
        for live in entry.ready.iter().chain(&entry.draining) {
            known.insert(live.endpoint.instance, live.clone());
        }
    }
    let live = |replica: &Replica, injected: &[(Inject, SecretString)]| -> Live {
        if let Some(live) = known.get(&replica.instance) {
            let same = Arc::ptr_eq(&live.endpoint.spec, &replica.spec) || live.endpoint.spec == replica.spec;
            if same && live.endpoint.wire.is_up() && Arc::ptr_eq(&live.endpoint.env, &replica.env) {
                return live.clone();
            }
        }
        let endpoint = Arc::new(carrying(Endpoint::new(replica, tail, tasks.clone()), injected));
        let (stats, common) = (registry.stats_of(replica.instance), registry.common_of(replica.instance));
        Live { endpoint, stats, common }
    };
    let entries = new.routes.values().map(|route| Entry {
        id: route.id,
        name: route.name.clone(),
        team: route.team.clone(),
        tags: route.tags.clone(),
        ready: route.ready.iter().map(|replica| live(replica, &route.injected)).collect(),
        draining: route.draining.iter().map(|replica| live(replica, &route.injected)).collect(),
        expected: route.expected,
        returning: route.returning.clone(),
        message: route.message.clone(),
        injected: route.injected.clone(),
        own: own(route),
        personal: None,
        release: Some(route.release),
        coming: route.coming,
        access: route.access,
        rules: route.rules.clone(),
        watched: registry.watched_of(route.id, &route.pins),
        teller: registry.teller.clone(),
        masks: match old.by_id.get(&route.id) {
            Some(old) if Arc::ptr_eq(&old.injected, &route.injected) => old.masks.clone(),
            _ => Masks::of(&route.injected),
        },
        terms: Terms::of(
            route.ready.first().map_or(route.session.as_deref(), |replica| replica.spec.session.as_deref()),
            old.by_id.get(&route.id).and_then(|entry| entry.terms.as_ref()),
        ),
        replayable: route.replayable,
        recorder: registry.recorder_of(route.id, &route.nap),
    });
    Table::new(entries, new.known)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A deployment without replicas, under a policy.
    pub(crate) fn entry(name: &str, policy: &str) -> Entry {
        Entry {
            id: DeploymentId(ulid::Ulid(1)),
            name: name.into(),
            team: "default".into(),
            tags: Vec::new(),
            ready: Vec::new(),
            draining: Vec::new(),
            expected: false,
            returning: None,
            message: String::new(),
            injected: Arc::default(),
            own: Arc::default(),
            personal: None,
            release: None,
            coming: None,
            access: Access::Anonymous,
            rules: Arc::new(Rules::new(serde_json::from_str(policy).unwrap()).unwrap()),
            watched: Arc::default(),
            teller: Teller::default(),
            masks: None,
            terms: None,
            replayable: false,
            recorder: Arc::default(),
        }
    }
}
