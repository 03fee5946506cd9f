//! Counters that every request touches: atomics in places found without a lock, and names in a number that is bounded.

use std::array;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::usage::Slot;
use crate::web::{BOUNDS, Latency};

/// Times of calls, and how many of them failed.
#[derive(Debug, Default)]
pub(crate) struct Load {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
    errors: AtomicU64,
}

impl Load {
    pub(crate) fn add(&self, took: Duration, error: bool) {
        let seconds = took.as_secs_f64();
        // a bound belongs to its bucket (`le`)
        let index = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(bucket) = self.buckets.get(index) {
            bucket.fetch_add(1, Relaxed);
        }
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
        if error {
            self.errors.fetch_add(1, Relaxed);
        }
    }

    /// How many there were.
    pub(crate) fn calls(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    pub(crate) fn latency(&self) -> Latency {
        Latency {
            buckets: array::from_fn(|i| self.buckets.get(i).map_or(0, |b| b.load(Relaxed))),
            seconds: self.micros.load(Relaxed) as f64 / 1e6,
            errors: self.errors.load(Relaxed),
        }
    }
}

/// Bytes of messages, in both directions.
#[derive(Debug, Default)]
pub(crate) struct Bytes {
    pub(crate) from_clients: AtomicU64,
    pub(crate) to_clients: AtomicU64,
}

/// What became of calls of tools whose answers a policy would have kept.
#[derive(Debug, Default)]
pub(crate) struct Cached {
    /// Answered by the gateway.
    pub(crate) hits: AtomicU64,
    /// Answered by the server; the answer may have been kept.
    pub(crate) misses: AtomicU64,
    /// Left alone: no list of the server's tools has passed by.
    pub(crate) unlisted: AtomicU64,
    /// Left alone: the server does not say that the tool is read-only and idempotent.
    pub(crate) unsaid: AtomicU64,
    /// Left alone: the request holds something that its answer may depend on and that cannot be compared.
    pub(crate) special: AtomicU64,
}

impl Cached {
    pub(crate) fn told(&self) -> crate::web::Cached {
        crate::web::Cached {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            passed: [
                ("unlisted", self.unlisted.load(Relaxed)),
                ("hints", self.unsaid.load(Relaxed)),
                ("request", self.special.load(Relaxed)),
            ],
        }
    }
}

/// What one key did since the agent's start.
#[derive(Debug, Default)]
pub(crate) struct KeyLoad {
    pub(crate) calls: AtomicU64,
    pub(crate) errors: AtomicU64,
    /// Requests that the gateway did not pass on.
    pub(crate) refused: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) bytes: Bytes,
}

/// What one user did at one deployment since the agent's start.
#[derive(Debug, Default)]
pub(crate) struct UserLoad {
    pub(crate) calls: AtomicU64,
    pub(crate) errors: AtomicU64,
    /// Bytes of answers.
    pub(crate) sent: AtomicU64,
    /// Where they outlive the agent; made by whoever knows whose they are.
    pub(crate) slot: OnceLock<Slot>,
}

impl UserLoad {
    /// A call has ended.
    pub(crate) fn call(&self, error: bool) {
        self.calls.fetch_add(1, Relaxed);
        if error {
            self.errors.fetch_add(1, Relaxed);
        }
        self.write();
    }

    /// Bytes go out.
    pub(crate) fn send(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
        self.write();
    }

    fn write(&self) {
        if let Some(slot) = self.slot.get() {
            slot.set(|| [&self.calls, &self.errors, &self.sent].map(|n| n.load(Relaxed)));
        }
    }
}

/// Names counted by themselves; what comes later is counted together.
pub(crate) const NAMES: usize = 256;
/// Where those are counted.
pub(crate) const OTHERS: &str = "(others)";
/// Longest name that is counted by itself.
const NAME_MAX: usize = 128;
/// Places: twice the names, so that looking is short.
const PLACES: usize = 2 * NAMES;

#[derive(Debug)]
struct Named<V> {
    name: Box<str>,
    value: Arc<V>,
}

#[derive(Debug)]
struct Places<V> {
    all: [OnceLock<Named<V>>; PLACES],
    /// Names that wanted a place.
    taken: AtomicU64,
    hasher: RandomState,
}

/// Values by name. Looking one up takes no lock and allocates nothing; a place that is taken stays taken.
#[derive(Debug)]
pub(crate) struct Names<V> {
    // most deployments are not called: no places until a name comes
    places: OnceLock<Box<Places<V>>>,
    others: OnceLock<Arc<V>>,
}

impl<V> Default for Names<V> {
    fn default() -> Self {
        Self { places: OnceLock::new(), others: OnceLock::new() }
    }
}

impl<V: Default> Names<V> {
    /// The place of a name: where it is, or the first free one behind where it should be.
    fn look<'p>(places: &'p Places<V>, name: &str) -> impl Iterator<Item = &'p OnceLock<Named<V>>> {
        let start = usize::try_from(places.hasher.hash_one(name) % PLACES as u64).unwrap_or(0);
        (0..PLACES).filter_map(move |step| places.all.get((start + step) % PLACES))
    }

    /// The value of a name that is there.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<V>> {
        let places = self.places.get()?;
        for place in Self::look(places, name) {
            let named = place.get()?;
            if *named.name == *name {
                return Some(named.value.clone());
            }
        }
        None
    }

    /// The value of a name, from now on its own if there is room.
    pub(crate) fn of(&self, name: &str) -> Arc<V> {
        if name.len() > NAME_MAX {
            return self.others();
        }
        if let Some(value) = self.get(name) {
            return value;
        }
        let places = self.places.get_or_init(|| {
            let all = array::from_fn(|_| OnceLock::new());
            Box::new(Places { all, taken: AtomicU64::new(0), hasher: RandomState::new() })
        });
        // a name that two bring at once counts twice here: the number of places is a bound all the same
        if places.taken.fetch_update(Relaxed, Relaxed, |n| (n < NAMES as u64).then_some(n + 1)).is_err() {
            return self.others();
        }
        for place in Self::look(places, name) {
            let named = place.get_or_init(|| Named { name: name.into(), value: Arc::default() });
            if *named.name == *name {
                return named.value.clone();
            }
        }
        self.others()
    }

    /// Whether this is where names without a place are counted.
    pub(crate) fn is_others(&self, value: &Arc<V>) -> bool {
        self.others.get().is_some_and(|others| Arc::ptr_eq(others, value))
    }

    /// Where names without a place are counted.
    pub(crate) fn others(&self) -> Arc<V> {
        self.others.get_or_init(Arc::default).clone()
    }

    /// All names in order, the others behind them.
    pub(crate) fn all(&self) -> Vec<(String, Arc<V>)> {
        let named = self.places.get().into_iter().flat_map(|places| &places.all).filter_map(OnceLock::get);
        let mut all: Vec<_> = named.map(|named| (named.name.to_string(), named.value.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.extend(self.others.get().map(|others| (OTHERS.to_owned(), others.clone())));
        all
    }
}

/// How far into a piece of an answer is looked for words.
const LOOKED_AT: usize = 4 << 10;

/// Whether a server's answer to a call says that there is no such tool: servers do so as an error, or as a result that is
/// one.
pub(crate) fn says_unknown(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer.get(..LOOKED_AT.min(answer.len())).unwrap_or_default());
    let error = text.contains("\"error\"");
    let failed = error || text.contains("\"isError\":true") || text.contains("\"isError\": true");
    if !failed {
        return false;
    }
    let text = text.to_ascii_lowercase();
    ["unknown", "not found", "no such", "not exist", "-32601"].iter().any(|words| text.contains(words))
        || error && text.contains("-32602")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_their_buckets() {
        let load = Load::default();
        for (micros, error) in [(0, false), (500, false), (501, false), (1_000_000, true), (3_600_000_000, false)] {
            load.add(Duration::from_micros(micros), error);
        }
        let latency = load.latency();
        let at = |seconds: f64| BOUNDS.iter().position(|b| (b - seconds).abs() < 1e-9).unwrap();
        assert_eq!(latency.buckets[at(0.0005)], 2, "{latency:?}");
        assert_eq!((latency.buckets[at(0.001)], latency.buckets[at(1.0)]), (1, 1));
        assert_eq!((latency.buckets[BOUNDS.len()], latency.calls(), latency.errors), (1, 5, 1));
        assert!((latency.seconds - 3_601.001_001).abs() < 1e-6, "{latency:?}");
    }

    #[test]
    fn names_are_bounded_and_stay() {
        let names = Names::<AtomicU64>::default();
        assert!(names.get("a").is_none() && names.all().is_empty());
        for round in 0..2 {
            for number in 0..1000 {
                names.of(&format!("t{number}")).fetch_add(1, Relaxed);
            }
            names.of(&"x".repeat(NAME_MAX + 1)).fetch_add(1, Relaxed);
            let all = names.all();
            assert_eq!(all.len(), NAMES + 1, "{round}");
            assert_eq!(all.iter().map(|(_, n)| n.load(Relaxed)).sum::<u64>(), (round + 1) * 1001);
            assert_eq!(names.get("t7").unwrap().load(Relaxed), round + 1);
        }
    }

    #[test]
    fn a_name_that_many_bring_at_once_has_one_place() {
        let names = Names::<AtomicU64>::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for number in 0..100 {
                        names.of(&number.to_string()).fetch_add(1, Relaxed);
                    }
                });
            }
        });
        let mut counted = names.all();
        counted.retain(|(name, _)| name != OTHERS);
        let lost: u64 = names.others.get().map_or(0, |others| others.load(Relaxed));
        assert_eq!(counted.iter().map(|(_, n)| n.load(Relaxed)).sum::<u64>() + lost, 800);
        let mut seen: Vec<&String> = counted.iter().map(|(name, _)| name).collect();
        seen.dedup();
        assert_eq!(seen.len(), counted.len());
    }

    #[test]
    fn answers_that_know_no_such_tool() {
        for unknown in [
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"Tool x not found"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"?"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"Unknown tool: x"}],"isError":true}}"#,
        ] {
            assert!(says_unknown(unknown.as_bytes()), "{unknown}");
        }
        for known in [
            r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"the file was not found"}]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"no power"}],"isError":true}}"#,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"boom"}}"#,
        ] {
            assert!(!says_unknown(known.as_bytes()), "{known}");
        }
    }
}
