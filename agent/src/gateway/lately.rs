//! HTTP sessions that were lately used, for counting only: the ids themselves say everything else. Each call marks its
//! session, so that takes a lock for reading only, of one part of them, and makes nothing.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use sigil_core::model::InstanceId;

use super::load::Stats;
use super::table::Live;

/// Counted at most; beyond that new ones are not counted.
const COUNTED: usize = 65_536;
const PARTS: usize = 32;

#[derive(Debug)]
struct Seen {
    /// Milliseconds from the beginning to its last use.
    used: AtomicU64,
    /// Where it counts.
    stats: Arc<Stats>,
}

/// By replica and the server's own id.
type Part = HashMap<InstanceId, HashMap<String, Seen>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct HttpSessions {
    parts: [RwLock<Part>; PARTS],
    hasher: RandomState,
    count: AtomicUsize,
    born: Instant,
}

impl Default for HttpSessions {
    fn default() -> Self {
        let parts = std::array::from_fn(|_| RwLock::default());
        Self { parts, hasher: RandomState::new(), count: AtomicUsize::new(0), born: Instant::now() }
    }
}

fn reading(part: &RwLock<Part>) -> RwLockReadGuard<'_, Part> {
    part.read().unwrap_or_else(PoisonError::into_inner)
}

fn writing(part: &RwLock<Part>) -> RwLockWriteGuard<'_, Part> {
    part.write().unwrap_or_else(PoisonError::into_inner)
}

impl HttpSessions {
    fn part(&self, upstream: &str) -> Option<&RwLock<Part>> {
        let hash = usize::try_from(self.hasher.hash_one(upstream) % PARTS as u64).unwrap_or_default();
        self.parts.get(hash)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn seen(&self, live: &Live, upstream: &str) {
        let (instance, now) = (live.endpoint.instance, self.now());
        let Some(part) = self.part(upstream) else { return };
        if let Some(seen) = reading(part).get(&instance).and_then(|of| of.get(upstream)) {
            seen.used.store(now, Relaxed);
            return;
        }
        let mut part = writing(part);
        let of = part.entry(instance).or_default();
        if of.contains_key(upstream) || self.count.load(Relaxed) >= COUNTED {
            return;
        }
        self.count.fetch_add(1, Relaxed);
        live.stats.sessions.fetch_add(1, Relaxed);
        of.insert(upstream.to_owned(), Seen { used: AtomicU64::new(now), stats: live.stats.clone() });
    }

    /// Whether a session was used lately and not ended; it is in use again.
    pub(crate) fn touch(&self, instance: InstanceId, upstream: &str) -> bool {
        let Some(part) = self.part(upstream) else { return false };
        let part = reading(part);
        let seen = part.get(&instance).and_then(|of| of.get(upstream));
        seen.iter().for_each(|seen| seen.used.store(self.now(), Relaxed));
        seen.is_some()
    }

    pub(crate) fn ended(&self, instance: InstanceId, upstream: &str) {
        let Some(part) = self.part(upstream) else { return };
        let seen = writing(part).get_mut(&instance).and_then(|of| of.remove(upstream));
        seen.iter().for_each(|seen| self.forget(seen));
    }

    fn forget(&self, seen: &Seen) {
        seen.stats.sessions.fetch_sub(1, Relaxed);
        self.count.fetch_sub(1, Relaxed);
    }

    /// Forgets the sessions of replicas that are not listed: one whose container starts again has none of them.
    pub(crate) fn only(&self, listed: impl Fn(InstanceId) -> bool) {
        for part in &self.parts {
            // most tables change nothing here
            if reading(part).keys().all(|instance| listed(*instance)) {
                continue;
            }
            writing(part).retain(|instance, of| {
                let keep = listed(*instance);
                if !keep {
                    of.values().for_each(|seen| self.forget(seen));
                }
                keep
            });
        }
    }

    /// Forgets sessions that nobody used for `idle`.
    pub(crate) fn sweep(&self, idle: Duration) {
        let (now, idle) = (self.now(), u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
        for part in &self.parts {
            writing(part).retain(|_, of| {
                of.retain(|_, seen| {
                    let keep = now.saturating_sub(seen.used.load(Relaxed)) < idle;
                    if !keep {
                        self.forget(seen);
                    }
                    keep
                });
                !of.is_empty()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::tests::fixture::endpoint;
    use sigil_core::model::Transport;

    fn live() -> Live {
        Live { endpoint: endpoint(Transport::Http, 1, &[]), stats: Arc::default(), common: Arc::default() }
    }

    #[test]
    fn each_counts_once_until_it_ends_or_is_forgotten() {
        let (all, one, two) = (HttpSessions::default(), live(), live());
        let counts = || (one.stats.sessions.load(Relaxed), two.stats.sessions.load(Relaxed), all.count.load(Relaxed));
        for n in 0..100 {
            all.seen(&one, &n.to_string());
            all.seen(&one, &n.to_string());
        }
        all.seen(&two, "7");
        assert_eq!(counts(), (100, 1, 101));
        // of the same name, at another replica
        all.ended(one.endpoint.instance, "7");
        all.ended(one.endpoint.instance, "7");
        all.ended(two.endpoint.instance, "8");
        assert_eq!(counts(), (99, 1, 100));
        all.sweep(Duration::from_secs(60));
        assert_eq!(counts(), (99, 1, 100));
        // its container starts again: what it serves then are other sessions
        all.only(|instance| instance == one.endpoint.instance);
        assert_eq!(counts(), (99, 0, 99));
        all.sweep(Duration::ZERO);
        assert_eq!(counts(), (0, 0, 0));
        assert!(all.parts.iter().all(|part| reading(part).is_empty()));
        all.seen(&two, "7");
        assert_eq!(counts(), (0, 1, 1));
    }
}
