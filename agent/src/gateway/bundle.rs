//! Several deployments behind one address: `/mcp/@name` joins those whose policy names the bundle, `/mcp` all that the
//! caller may call. A bundle is a server of its own, made of conversations with its members: it has a replica without a
//! container for each caller, so that nobody meets what another may see.

mod joined;
mod names;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use hyper::header::HeaderMap;
use sha2::{Digest, Sha256};
use sigil_core::model::{DeploymentId, NetworkMode, ReleaseSpec, Resources, Transport};
use tokio_util::task::TaskTracker;

use super::Shared;
use super::caller::Caller;
use super::error::Refusal;
use super::oauth::Address;
use super::settings;
use super::table::{Entry, Live};
use crate::upstream::{Conversation, Endpoint, Inside, Stray, Wire};

/// Bundles of callers kept; those that nobody used longest go first.
const KEPT: usize = 1024;
/// Replicas of one bundle of one caller whose sessions go on after its members have changed.
const OLD: usize = 4;
/// The longest answer: each member has its own limit within.
const REQUEST: Duration = Duration::from_secs(600);

/// A member and who its caller is to it.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) id: DeploymentId,
    pub(crate) caller: Arc<Caller>,
    /// What the client's address says for it: `?<name>.<key>=<value>`.
    pub(crate) config: BTreeMap<String, String>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // its configuration may hold secrets
        f.debug_struct("Member").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The server that a bundle is, for one caller.
#[derive(Debug)]
struct Server {
    shared: Weak<Shared>,
    name: String,
    members: Vec<Member>,
}

impl Inside for Server {
    fn converse(&self) -> Option<Conversation> {
        let shared = self.shared.upgrade()?;
        Some(joined::begin(&shared, &self.name, self.members.clone()))
    }
}

#[derive(Debug)]
struct Kept {
    members: Vec<DeploymentId>,
    entry: Arc<Entry>,
    used: Instant,
}

impl Kept {
    /// Whether anybody has something open with it.
    fn busy(&self) -> bool {
        let mut lives = self.entry.ready.iter().chain(&self.entry.draining).map(Live::burden);
        lives.any(|burden| burden.sessions > 0 || burden.in_flight > 0)
    }
}

/// What an address says for one member.
fn of_member(query: &str, member: &str) -> BTreeMap<String, String> {
    let own = |key: &str| Some(key.strip_prefix(member)?.strip_prefix('.')?.to_owned());
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.filter_map(|(key, value)| Some((own(&key)?, value.into_owned()))).collect()
}

/// Bundles as their callers see them, by the name of their entry.
#[derive(Debug, Default)]
pub(crate) struct Bundles(Mutex<HashMap<String, Kept>>);

impl Bundles {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn entry(&self, name: &str) -> Option<Arc<Entry>> {
        self.all().get(name).map(|kept| kept.entry.clone())
    }

    /// Everything that has a process to sweep.
    pub(crate) fn lives(&self) -> Vec<Live> {
        let all = self.all();
        all.values().flat_map(|kept| kept.entry.ready.iter().chain(&kept.entry.draining).cloned()).collect()
    }

    /// Forgets those that nobody used for `idle`.
    pub(crate) fn sweep(&self, idle: Duration) {
        self.all().retain(|_, kept| kept.used.elapsed() < idle || kept.busy());
    }
}

fn spec() -> ReleaseSpec {
    ReleaseSpec {
        image: String::new(),
        source: String::new(),
        source_digest: String::new(),
        commit: None,
        transport: Transport::Stdio,
        port: 0,
        path: String::new(),
        command: Vec::new(),
        workdir: String::new(),
        user: String::new(),
        env: BTreeMap::new(),
        secrets: Vec::new(),
        // of the agent's own; nothing limits by them
        resources: Resources {
            tier: String::new(),
            cpu_share: 0.0,
            cpu_limit: 0.0,
            memory: 0,
            storage: 0,
            processes: 0,
            files: 0,
        },
        volumes: Vec::new(),
        network: NetworkMode::Link,
        egress: Vec::new(),
        config: serde_json::Value::Null,
        session: None,
        access: String::new(),
        sessions_max: Some(10_000),
        sessions_replayable: false,
        request_timeout_ms: u64::try_from(REQUEST.as_millis()).unwrap_or(u64::MAX),
        start_timeout_ms: 60_000,
        health: sigil_core::health::Rules::default(),
    }
}

impl Shared {
    /// A bundle as the maker of a request sees it, and who that is. `name` is `@bundle`, or `@` for everything.
    pub(crate) async fn bundle(
        self: &Arc<Self>,
        name: &str,
        headers: &HeaderMap,
        query: &str,
        peer: IpAddr,
        address: &Address,
    ) -> Result<(Arc<Entry>, Arc<Caller>), Refusal> {
        let bundle = name.trim_start_matches('@');
        let table = self.known().await?;
        let mut refused = None;
        let (mut members, mut wrong) = (Vec::new(), Vec::new());
        for entry in table.routes.values() {
            let named = entry.rules.policy().bundles.iter().any(|b| b == bundle);
            if !bundle.is_empty() && !named {
                continue;
            }
            match self.caller(entry, headers, peer, address).await {
                Ok(caller) => {
                    let config = of_member(query, &entry.name);
                    wrong.extend(self.flaws(entry, &config)?);
                    members.push(Member { name: entry.name.clone(), id: entry.id, caller, config });
                }
                // a key that is wrong is wrong everywhere; one that is for others only narrows what is seen
                Err(refusal) => drop(refused.get_or_insert(refusal)),
            }
        }
        let known = members.iter().find(|m| *m.caller.principal != *self.anonymous.principal).or(members.first());
        let Some(first) = known else {
            return Err(refused.unwrap_or_else(|| Refusal::no_bundle(bundle)));
        };
        if !wrong.is_empty() {
            return Err(settings::refusal(&wrong, None));
        }
        let caller = Arc::new(Caller::whole(&first.caller));
        Ok((self.joined(name, members, &caller), caller))
    }

    /// The entry of a bundle for one caller.
    fn joined(self: &Arc<Self>, name: &str, members: Vec<Member>, caller: &Caller) -> Arc<Entry> {
        // two callers never meet, nor two configurations: the entry's name tells them apart
        let mut hash = Sha256::new_with_prefix(caller.principal.as_bytes());
        let configured = members.iter().flat_map(|m| m.config.iter().map(|(key, value)| [&m.name, key, value]));
        for part in configured.flatten() {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        let digest = hex::encode(hash.finalize());
        let own = format!("{name}~{}", digest.get(..16).unwrap_or_default());
        let ids: Vec<DeploymentId> = members.iter().map(|m| m.id).collect();
        let mut all = self.bundles.all();
        if let Some(kept) = all.get_mut(&own)
            && kept.members == ids
        {
            kept.used = Instant::now();
            return kept.entry.clone();
        }
        let before = all.remove(&own);
        if all.len() >= KEPT
            && let Some(oldest) =
                all.iter().min_by_key(|(_, kept)| (kept.busy(), kept.used)).map(|(name, _)| name.clone())
        {
            all.remove(&oldest);
        }
        let id = before.as_ref().map_or_else(|| DeploymentId(ulid::Ulid::generate()), |kept| kept.entry.id);
        let server = Server { shared: Arc::downgrade(self), name: name.to_owned(), members };
        let endpoint = Arc::new(Endpoint {
            deployment: id,
            release: 1,
            instance: ulid::Ulid::generate().into(),
            spec: Arc::new(spec()),
            env: Arc::default(),
            quota: crate::upstream::quota::Quota::default(),
            spare: crate::upstream::spare::Spare::default(),
            wire: Wire::Inside(Arc::new(server)),
            stray: Stray::Nowhere,
            pool: crate::upstream::http::Pool::default(),
            carried: None,
            tasks: TaskTracker::new(),
        });
        let live = Live {
            stats: self.registry.stats_of(endpoint.instance),
            common: self.registry.common_of(endpoint.instance),
            endpoint,
        };
        let draining = before.as_ref().map_or_else(Vec::new, |kept| {
            kept.entry.ready.iter().chain(&kept.entry.draining).take(OLD).cloned().collect()
        });
        let entry = Arc::new(Entry {
            id,
            name: own.clone(),
            team: String::new(),
            tags: Vec::new(),
            ready: vec![live],
            draining,
            expected: false,
            returning: Some(Vec::new()),
            message: String::new(),
            injected: Arc::default(),
            own: Arc::default(),
            personal: None,
            release: None,
            coming: None,
            access: sigil_core::policy::Access::Key,
            rules: Arc::default(),
            watched: Arc::default(),
            teller: Arc::default(),
            masks: None,
            terms: None,
            replayable: false,
            recorder: before.map_or_else(Arc::default, |kept| kept.entry.recorder.clone()),
        });
        all.insert(own, Kept { members: ids, entry: entry.clone(), used: Instant::now() });
        entry
    }
}
