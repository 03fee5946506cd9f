//! Answers of tools, kept where a policy says so and their server calls the tool read-only and idempotent: what is known of
//! each server's tools, the answers themselves within their memory, and when they are forgotten.
//!
//! An answer counts as long as what it stands on: the same release, the same policy, a list of tools that says the same of
//! each of them, and no word of the server that its tools are others now. What no longer counts is not found from then on;
//! the memory that it takes is free at the next sweep.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use serde_json::value::RawValue;
use sigil_core::answers;
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo};
use sigil_core::policy::Rules;

use super::table::{Entry, Table};

/// Longest result kept, bytes.
pub(crate) const ANSWER_MAX: usize = 1 << 20;
/// What a kept answer takes beside its text: its key, its places in the map and in the order of use.
const BESIDE: u64 = 384;
/// Tools of one server that are known, and the longest name of one.
const TOOLS_MAX: usize = 4096;
const NAME_MAX: usize = 256;
/// Replicas whose word is known.
const INSTANCES_MAX: usize = 256;

/// Tells a call from others: a digest of everything that its answer may depend on.
pub(crate) type Key = [u8; 32];

/// What is known of one deployment's tools.
#[derive(Debug)]
struct Server {
    release: ReleaseNo,
    /// Replicas that have said it, or were there when one did.
    instances: HashSet<InstanceId>,
    /// Whether a tool is read-only and idempotent.
    tools: HashMap<Box<str>, bool>,
    /// Tools of which it was logged that they are not.
    told: HashSet<Box<str>>,
    /// Answers of this number count.
    number: u64,
    rules: Option<Arc<Rules>>,
}

#[derive(Debug)]
struct Kept {
    deployment: DeploymentId,
    number: u64,
    principal: Arc<str>,
    result: Bytes,
    at: Instant,
    until: Instant,
}

impl Kept {
    fn weight(&self) -> u64 {
        self.result.len() as u64 + BESIDE
    }
}

#[derive(Debug)]
struct Memory {
    kept: LruCache<Key, Kept>,
    bytes: u64,
    servers: HashMap<DeploymentId, Server>,
    /// The last number given away.
    number: u64,
}

impl Memory {
    fn pop(&mut self, key: &Key) {
        if let Some(old) = self.kept.pop(key) {
            self.bytes -= old.weight();
        }
    }

    fn next(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// What is known of a deployment, when it counts for all that serve now.
    fn server(&mut self, entry: &Entry) -> Option<&mut Server> {
        let next = self.number + 1;
        let server = self.servers.get_mut(&entry.id)?;
        let all = entry.ready.iter().map(|live| &live.endpoint);
        if !all.clone().all(|e| e.release == server.release && server.instances.contains(&e.instance)) {
            return None;
        }
        let same = server.rules.as_ref().is_some_and(|rules| Arc::ptr_eq(rules, &entry.rules));
        if !same {
            server.rules = Some(entry.rules.clone());
            server.number = next;
            self.number = next;
        }
        Some(server)
    }
}

/// What is said of a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    /// No list of its server has passed by since it began to count.
    Unlisted,
    /// Its server does not say both.
    Unsaid,
    /// Its answers may be kept, under this number.
    Repeatable(u64),
}

/// A kept answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) result: Bytes,
    pub(crate) age: Duration,
}

/// All kept answers.
#[derive(Debug)]
pub(crate) struct Cache {
    memory: Mutex<Memory>,
    /// Bytes of answers on their way that may be kept.
    collected: AtomicU64,
}

impl Default for Cache {
    fn default() -> Self {
        let memory = Memory { kept: LruCache::unbounded(), bytes: 0, servers: HashMap::new(), number: 0 };
        Self { memory: Mutex::new(memory), collected: AtomicU64::new(0) }
    }
}

impl Cache {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page of a list of tools passed by; `instances`: whose word it is.
    pub(crate) fn learn(
        &self,
        deployment: DeploymentId,
        release: ReleaseNo,
        instances: impl IntoIterator<Item = InstanceId>,
        result: &RawValue,
    ) {
        let Some(said) = answers::repeatable(result) else { return };
        let memory = &mut *self.memory();
        let number = memory.next();
        let of = || Server {
            release,
            instances: HashSet::new(),
            tools: HashMap::new(),
            told: HashSet::new(),
            number,
            rules: None,
        };
        let server = memory.servers.entry(deployment).or_insert_with(of);
        if server.release != release {
            *server = of();
        }
        if server.instances.len() >= INSTANCES_MAX {
            server.instances.clear();
        }
        server.instances.extend(instances);
        for (name, repeatable) in said {
            let room = server.tools.len() < TOOLS_MAX;
            match server.tools.get_mut(name.as_str()) {
                Some(known) if *known == repeatable => {}
                Some(known) => {
                    // it said otherwise before: nothing that stood on that counts
                    *known = repeatable;
                    server.number = number;
                }
                None if room && name.len() <= NAME_MAX => {
                    server.tools.insert(name.into(), repeatable);
                }
                None => {}
            }
        }
    }

    /// The server says that its tools are others now.
    pub(crate) fn forget(&self, deployment: DeploymentId) {
        self.memory().servers.remove(&deployment);
    }

    /// What is said of a tool by the servers that answer now.
    pub(crate) fn hint(&self, entry: &Entry, tool: &str) -> Hint {
        let memory = &mut *self.memory();
        let Some(server) = memory.server(entry) else { return Hint::Unlisted };
        match server.tools.get(tool) {
            None => Hint::Unlisted,
            Some(true) => Hint::Repeatable(server.number),
            Some(false) => {
                if server.told.insert(tool.into()) {
                    tracing::info!(
                        deployment = entry.name,
                        tool,
                        "answers of this tool are not kept, as the policy would have it: its server does not say \
                         readOnlyHint and idempotentHint of it"
                    );
                }
                Hint::Unsaid
            }
        }
    }

    /// The answer to a call that was made before.
    pub(crate) fn find(&self, key: &Key, number: u64, now: Instant) -> Option<Found> {
        let memory = &mut *self.memory();
        let kept = memory.kept.get(key)?;
        if kept.number == number && now < kept.until {
            return Some(Found { result: kept.result.clone(), age: now.duration_since(kept.at) });
        }
        memory.pop(key);
        None
    }

    /// Keeps a result. `limit`: bytes of all of them.
    pub(crate) fn keep(&self, place: &Place, result: &str, limit: u64, now: Instant) {
        if result.len() > ANSWER_MAX {
            return;
        }
        let kept = Kept {
            deployment: place.deployment,
            number: place.number,
            principal: place.principal.clone(),
            result: Bytes::copy_from_slice(result.as_bytes()),
            at: now,
            until: now + place.life,
        };
        let memory = &mut *self.memory();
        // it stood on something that is over
        if memory.servers.get(&place.deployment).is_none_or(|server| server.number != place.number) {
            return;
        }
        let weight = kept.weight();
        memory.pop(&place.key);
        if weight > limit {
            return;
        }
        memory.bytes += weight;
        memory.kept.push(place.key, kept);
        memory.shrink(limit);
    }

    /// Room for a piece of an answer that is on its way; what is not kept in the end is given back.
    pub(crate) fn collect(&self, bytes: usize, limit: u64) -> bool {
        let bytes = bytes as u64;
        self.collected.fetch_update(Relaxed, Relaxed, |all| Some(all + bytes).filter(|all| *all <= limit)).is_ok()
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.collected.fetch_sub(bytes as u64, Relaxed);
    }

    /// Whether nothing is known or kept.
    pub(crate) fn is_empty(&self) -> bool {
        let memory = self.memory();
        memory.servers.is_empty() && memory.kept.is_empty()
    }

    /// Bytes that all of them take.
    pub(crate) fn bytes(&self) -> u64 {
        self.memory().bytes
    }

    /// Frees what no longer counts. `holds`: whether a caller is still one.
    pub(crate) fn sweep(&self, table: &Table, limit: u64, holds: impl Fn(&str) -> bool) {
        let memory = &mut *self.memory();
        if memory.servers.is_empty() && memory.kept.is_empty() {
            return;
        }
        if table.known {
            let caches = |id: &DeploymentId| table.by_id.get(id).is_some_and(|entry| entry.rules.caches());
            memory.servers.retain(|id, _| caches(id));
            for entry in table.by_id.values() {
                // a policy that changed: the answers under the old one count no more
                memory.server(entry);
            }
        }
        let now = Instant::now();
        let Memory { kept, servers, .. } = &*memory;
        let over = |kept: &Kept| {
            kept.until <= now
                || servers.get(&kept.deployment).is_none_or(|server| server.number != kept.number)
                || !holds(&kept.principal)
        };
        let gone: Vec<Key> = kept.iter().filter(|(_, kept)| over(kept)).map(|(key, _)| *key).collect();
        gone.iter().for_each(|key| memory.pop(key));
        memory.shrink(limit);
    }
}

impl Memory {
    /// The one unused for longest goes first.
    fn shrink(&mut self, limit: u64) {
        while self.bytes > limit {
            let Some((_, old)) = self.kept.pop_lru() else { break };
            self.bytes -= old.weight();
        }
    }
}

/// Where an answer will be kept.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) key: Key,
    pub(crate) deployment: DeploymentId,
    /// What it stands on.
    pub(crate) number: u64,
    pub(crate) principal: Arc<str>,
    pub(crate) life: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::table::tests::entry;

    const ON: &str = r#"{"tools":{"cache":{"*":true}}}"#;
    const LIST: &str =
        r#"{"tools":[{"name":"a","annotations":{"readOnlyHint":true,"idempotentHint":true}},{"name":"b"}]}"#;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    fn number(cache: &Cache, entry: &Entry) -> u64 {
        match cache.hint(entry, "a") {
            Hint::Repeatable(number) => number,
            other => panic!("{other:?}"),
        }
    }

    fn place(entry: &Entry, key: u8, number: u64) -> Place {
        let (deployment, principal) = (entry.id, "key:1".into());
        Place { key: [key; 32], deployment, number, principal, life: Duration::from_secs(60) }
    }

    fn known() -> (Cache, Entry) {
        let (cache, entry) = (Cache::default(), entry("time", ON));
        cache.learn(entry.id, 1, [], &raw(LIST));
        (cache, entry)
    }

    #[test]
    fn an_answer_lives_as_long_as_it_may() {
        let (cache, entry) = known();
        let number = number(&cache, &entry);
        let now = Instant::now();
        cache.keep(&place(&entry, 1, number), "{\"x\":1}", 1 << 20, now);
        let later = now + Duration::from_secs(59);
        let found = cache.find(&[1; 32], number, later).unwrap();
        assert_eq!((found.result.as_ref(), found.age.as_secs()), (&b"{\"x\":1}"[..], 59));
        assert_eq!(cache.find(&[2; 32], number, later), None);
        let over = cache.find(&[1; 32], number, later + Duration::from_secs(1));
        assert_eq!((over, cache.bytes()), (None, 0));
    }

    #[test]
    fn memory_is_bounded_and_the_last_used_stay() {
        let (cache, entry) = known();
        let number = number(&cache, &entry);
        let now = Instant::now();
        let keep = |key: u8, text: &str, limit: u64| cache.keep(&place(&entry, key, number), text, limit, now);
        let find = |key: u8| cache.find(&[key; 32], number, now).is_some();
        let text = "x".repeat(1000);
        let limit = 3 * (1000 + BESIDE);
        for key in 0..3 {
            keep(key, &text, limit);
        }
        assert_eq!(cache.bytes(), limit);
        assert!(find(0));
        keep(3, &text, limit);
        let found: Vec<bool> = (0..4).map(find).collect();
        assert_eq!((found, cache.bytes()), (vec![true, false, true, true], limit));
        // the same again takes no more; what is larger than all of it is not kept, and takes nobody's place
        keep(3, &text, limit);
        keep(4, &"x".repeat(9000), limit);
        keep(5, &"x".repeat(ANSWER_MAX + 1), u64::MAX);
        assert_eq!(cache.bytes(), limit);
        cache.sweep(&Table::new([entry], true), 1000 + BESIDE, |_| true);
        assert_eq!(cache.bytes(), 1000 + BESIDE);
        assert!(cache.collect(10, 10) && !cache.collect(1, 10));
        cache.give_back(10);
        assert!(cache.collect(1, 10));
    }

    #[test]
    fn what_it_stands_on_may_go() {
        let (cache, one) = known();
        assert_eq!((cache.hint(&one, "b"), cache.hint(&one, "c")), (Hint::Unsaid, Hint::Unlisted));
        let first = number(&cache, &one);
        let now = Instant::now();
        let keep = |key: u8, number: u64| cache.keep(&place(&one, key, number), "{}", 1 << 20, now);
        let find = |key: u8, number: u64| cache.find(&[key; 32], number, now).is_some();
        keep(1, first);
        // the same list changes nothing
        cache.learn(one.id, 1, [], &raw(LIST));
        assert!(find(1, number(&cache, &one)));
        // another policy
        let second = entry("time", ON);
        let other = number(&cache, &second);
        assert!(other != first && !find(1, other));
        // what was asked under the old one comes late
        keep(2, first);
        assert_eq!(cache.bytes(), 0);
        keep(3, other);
        // another word about one tool
        cache.learn(one.id, 1, [], &raw(&LIST.replace("true}},", "false}},")));
        assert_eq!(cache.hint(&second, "a"), Hint::Unsaid);
        cache.learn(one.id, 1, [], &raw(LIST));
        assert!(!find(3, number(&cache, &second)));
        // its tools are others
        cache.forget(one.id);
        assert_eq!(cache.hint(&second, "a"), Hint::Unlisted);
        // another release
        cache.learn(one.id, 3, [], &raw(LIST));
        keep(4, number(&cache, &second));
        cache.learn(one.id, 4, [], &raw(LIST));
        assert!(!find(4, number(&cache, &second)));
    }

    #[test]
    fn a_sweep_frees_what_counts_no_more() {
        let (cache, entry) = known();
        let table = |entry: &Entry| Table::new([entry.clone()], true);
        let keep = || cache.keep(&place(&entry, 1, number(&cache, &entry)), "{}", 1 << 20, Instant::now());
        keep();
        cache.sweep(&table(&entry), 1 << 20, |_| true);
        assert!(cache.bytes() > 0);
        // its caller's key was revoked
        cache.sweep(&table(&entry), 1 << 20, |principal| principal != "key:1");
        assert_eq!(cache.bytes(), 0);
        keep();
        cache.sweep(&table(&entry_with(ON)), 1 << 20, |_| true);
        assert_eq!(cache.bytes(), 0, "another policy");
        keep();
        cache.sweep(&Table::new([], false), 1 << 20, |_| true);
        assert!(cache.bytes() > 0, "a new agent knows no deployments at first");
        cache.sweep(&Table::new([], true), 1 << 20, |_| true);
        assert_eq!(cache.bytes(), 0, "the deployment was removed");
        assert_eq!(cache.hint(&entry, "a"), Hint::Unlisted);
    }

    fn entry_with(policy: &str) -> Entry {
        entry("time", policy)
    }
}
