//! How often, and how many at once: of a caller, a deployment, a tool. What is refused is told when to come back.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use sigil_core::model::DeploymentId;
use sigil_core::policy::Rate;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Refusal;

/// Limiters kept; those that nobody used lately go first.
const KEPT: usize = 16_384;

/// Whose limit it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Whose {
    /// A caller's own, wherever it calls.
    Caller(Arc<str>),
    /// A caller's at one deployment.
    CallerAt(Arc<str>, DeploymentId),
    Deployment(DeploymentId),
    Tool(DeploymentId, String),
    /// A deployment's that is slowed down for its quota.
    Quota(DeploymentId),
}

impl Whose {
    fn words(&self) -> String {
        match self {
            Self::Caller(_) => "this key's".into(),
            Self::CallerAt(..) => "each caller's".into(),
            Self::Deployment(_) | Self::Quota(_) => "this deployment's".into(),
            Self::Tool(_, tool) => format!("the tool {tool}'s"),
        }
    }
}

/// Places taken; dropping gives them back.
pub(crate) type Permits = Vec<OwnedSemaphorePermit>;

#[derive(Debug)]
struct Kept<V> {
    value: Arc<V>,
    /// Counts uses of the whole map: the smallest was used longest ago.
    used: u64,
}

#[derive(Debug)]
struct Cache<K, V> {
    all: HashMap<K, Kept<V>>,
    used: u64,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self { all: HashMap::new(), used: 0 }
    }
}

impl<K: Eq + Hash + Clone, V> Cache<K, V> {
    fn get(&mut self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        self.used += 1;
        let used = self.used;
        if let Some(kept) = self.all.get_mut(&key) {
            kept.used = used;
            return kept.value.clone();
        }
        if self.all.len() >= KEPT {
            // half at once, so that this is seldom
            let edge = used.saturating_sub(KEPT as u64 / 2);
            self.all.retain(|_, kept| kept.used > edge || Arc::strong_count(&kept.value) > 1);
        }
        let value = Arc::new(make());
        self.all.insert(key, Kept { value: value.clone(), used });
        value
    }
}

/// All limits in force.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    rates: Mutex<Cache<(Whose, Rate), DefaultDirectRateLimiter>>,
    places: Mutex<Cache<(Whose, u32), Semaphore>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn limiter(rate: Rate) -> DefaultDirectRateLimiter {
    let one = Quota::with_period(rate.period().max(Duration::from_nanos(1)));
    let quota = one.unwrap_or_else(|| Quota::per_second(NonZeroU32::MIN));
    RateLimiter::direct(quota.allow_burst(NonZeroU32::new(rate.count).unwrap_or(NonZeroU32::MIN)))
}

impl Limits {
    /// Takes one of so many in so long.
    pub(crate) fn rate(&self, whose: Whose, rate: Rate) -> Result<(), Refusal> {
        let words = whose.words();
        let limiter = lock(&self.rates).get((whose, rate), || limiter(rate));
        limiter.check().map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            let seconds = u32::try_from(wait.as_secs_f64().ceil().max(1.0) as u64).unwrap_or(u32::MAX);
            Refusal::rate_limited(format!("{words} limit of {rate} is used up"), seconds)
        })
    }

    /// Takes one of so many places.
    pub(crate) fn place(&self, whose: Whose, most: u32, permits: &mut Permits) -> Result<(), Refusal> {
        let words = whose.words();
        let places = lock(&self.places).get((whose, most), || Semaphore::new(most as usize));
        match places.try_acquire_owned() {
            Ok(permit) => {
                permits.push(permit);
                Ok(())
            }
            Err(_) => Err(Refusal::rate_limited(format!("{words} limit of {most} requests at once is reached"), 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_a_period() {
        let limits = Limits::default();
        let rate: Rate = "5/h".parse().unwrap();
        let whose = || Whose::Caller("a".into());
        for _ in 0..5 {
            limits.rate(whose(), rate).unwrap();
        }
        let refusal = limits.rate(whose(), rate).unwrap_err();
        assert_eq!((refusal.code, refusal.status.as_u16()), ("GATEWAY_RATE_LIMITED", 429));
        let after = refusal.retry_after.unwrap();
        assert!((700..=721).contains(&after), "{after}");
        limits.rate(Whose::Caller("b".into()), rate).unwrap();
    }

    #[test]
    fn places_come_back() {
        let limits = Limits::default();
        let whose = || Whose::Tool(DeploymentId(ulid::Ulid(1)), "t".into());
        let mut first = Permits::new();
        limits.place(whose(), 1, &mut first).unwrap();
        assert!(limits.place(whose(), 1, &mut Permits::new()).is_err());
        drop(first);
        limits.place(whose(), 1, &mut Permits::new()).unwrap();
    }

    #[test]
    fn many_callers_do_not_fill_the_memory() {
        let limits = Limits::default();
        for i in 0..3 * KEPT {
            limits.rate(Whose::Caller(i.to_string().into()), "5/h".parse().unwrap()).unwrap();
        }
        assert!(lock(&limits.rates).all.len() <= KEPT);
    }
}
