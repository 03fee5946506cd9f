//! What a deployment carried in the last minute, and the guard that every request holds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use sigil_core::jsonrpc::{self, Head, Params};

use super::tap::Tap;
use crate::web::ToolTraffic;

/// Seconds of one slot, and how many slots make the minute.
const SLOT: u64 = 5;
const SLOTS: usize = 12;
/// Quarter powers of two from 1/16 ms: 84 of them reach 110 s.
const BUCKETS: usize = 84;

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Number of the slot since the start, plus one; 0: never used.
    number: u64,
    calls: u32,
    errors: u32,
    buckets: [u32; BUCKETS],
}

impl Default for Slot {
    fn default() -> Self {
        Self { number: 0, calls: 0, errors: 0, buckets: [0; BUCKETS] }
    }
}

/// Calls of the last minute.
#[derive(Debug)]
pub(crate) struct Window {
    slots: [Slot; SLOTS],
}

/// What a window says.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sum {
    pub(crate) calls: u64,
    pub(crate) errors: u64,
    /// Upper bound of the 99th percentile, milliseconds.
    pub(crate) p99_ms: f64,
}

impl Default for Window {
    fn default() -> Self {
        Self { slots: [Slot::default(); SLOTS] }
    }
}

impl Window {
    /// `now`: seconds since some start.
    pub(crate) fn add(&mut self, now: u64, ms: f64, error: bool) {
        let number = now / SLOT + 1;
        let index = usize::try_from(number).unwrap_or(0) % SLOTS;
        let Some(slot) = self.slots.get_mut(index) else { return };
        if slot.number != number {
            *slot = Slot { number, ..Slot::default() };
        }
        slot.calls = slot.calls.saturating_add(1);
        slot.errors = slot.errors.saturating_add(u32::from(error));
        if let Some(bucket) = slot.buckets.get_mut(bucket(ms)) {
            *bucket = bucket.saturating_add(1);
        }
    }

    pub(crate) fn sum(&self, now: u64) -> Sum {
        let newest = now / SLOT + 1;
        let oldest = newest.saturating_sub(SLOTS as u64 - 1).max(1);
        let mut sum = Sum::default();
        let mut buckets = [0_u64; BUCKETS];
        for slot in self.slots.iter().filter(|s| (oldest..=newest).contains(&s.number)) {
            sum.calls += u64::from(slot.calls);
            sum.errors += u64::from(slot.errors);
            for (total, count) in buckets.iter_mut().zip(slot.buckets) {
                *total += u64::from(count);
            }
        }
        let rank = (sum.calls * 99).div_ceil(100);
        let mut seen = 0;
        for (index, count) in buckets.iter().enumerate() {
            seen += count;
            if seen >= rank && sum.calls > 0 {
                sum.p99_ms = upper(index);
                break;
            }
        }
        sum
    }
}

fn bucket(ms: f64) -> usize {
    let position = ((ms * 16.0).max(1.0).log2() * 4.0).ceil();
    // bounded by min, never negative
    (position as usize).min(BUCKETS - 1)
}

fn upper(index: usize) -> f64 {
    2_f64.powf(index as f64 / 4.0) / 16.0
}

/// Load of one deployment.
#[derive(Debug)]
pub(crate) struct Recorder {
    start: Instant,
    window: Mutex<Window>,
    /// Since the agent's start.
    pub(crate) calls: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) micros: AtomicU64,
    tools: Mutex<BTreeMap<String, Arc<ToolLoad>>>,
    /// Who looks at its messages.
    pub(crate) tap: Tap,
}

/// Calls of one tool since the agent's start.
#[derive(Debug, Default)]
struct ToolLoad {
    calls: AtomicU64,
    errors: AtomicU64,
    micros: AtomicU64,
}

/// Tools counted by name; others are counted together.
const TOOLS: usize = 256;
const OTHERS: &str = "(others)";

impl Default for Recorder {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            window: Mutex::default(),
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            micros: AtomicU64::new(0),
            tools: Mutex::default(),
            tap: Tap::default(),
        }
    }
}

impl Recorder {
    pub(crate) fn sum(&self) -> Sum {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).sum(self.start.elapsed().as_secs())
    }

    fn tool(&self, name: &str) -> Arc<ToolLoad> {
        let mut tools = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tool) = tools.get(name) {
            return tool.clone();
        }
        // names come from callers
        let name = if tools.len() < TOOLS && name.len() <= 128 { name } else { OTHERS };
        tools.entry(name.to_owned()).or_default().clone()
    }

    pub(crate) fn tools(&self) -> Vec<ToolTraffic> {
        let tools = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        let row = |(name, load): (&String, &Arc<ToolLoad>)| ToolTraffic {
            tool: name.clone(),
            calls: load.calls.load(Relaxed),
            errors: load.errors.load(Relaxed),
            seconds: load.micros.load(Relaxed) as f64 / 1e6,
        };
        tools.iter().map(row).collect()
    }

    fn add(&self, took: std::time::Duration, error: bool) {
        self.calls.fetch_add(1, Relaxed);
        self.errors.fetch_add(u64::from(error), Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
        let now = self.start.elapsed().as_secs();
        let ms = took.as_secs_f64() * 1e3;
        self.window.lock().unwrap_or_else(PoisonError::into_inner).add(now, ms, error);
    }
}

/// What a replica carries now; outlives its place in the route table.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) in_flight: AtomicU64,
    pub(crate) sessions: AtomicU64,
}

/// A session's place at a replica; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    stats: Arc<Stats>,
    given: AtomicBool,
}

impl Place {
    /// Takes a place where fewer than `max` are taken.
    pub(crate) fn take(stats: &Arc<Stats>, max: u64) -> Option<Self> {
        let taken = stats.sessions.fetch_update(Relaxed, Relaxed, |n| (n < max).then_some(n + 1));
        taken.ok().map(|_| Self { stats: stats.clone(), given: AtomicBool::new(false) })
    }

    /// Passes this place on: dropping the old one frees nothing.
    pub(crate) fn hand_over(&self) -> Option<Self> {
        let first = !self.given.swap(true, Relaxed);
        first.then(|| Self { stats: self.stats.clone(), given: AtomicBool::new(false) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !*self.given.get_mut() {
            self.stats.sessions.fetch_sub(1, Relaxed);
        }
    }
}

/// One request on its way: metric, scaling signal and drain waiter in one. Dropping it ends the request.
#[derive(Debug)]
pub(crate) struct Call {
    stats: Arc<Stats>,
    recorder: Arc<Recorder>,
    start: Instant,
    error: bool,
    tool: Option<Arc<ToolLoad>>,
}

impl Call {
    pub(crate) fn begin(stats: &Arc<Stats>, recorder: &Arc<Recorder>) -> Self {
        stats.in_flight.fetch_add(1, Relaxed);
        Self { stats: stats.clone(), recorder: recorder.clone(), start: Instant::now(), error: false, tool: None }
    }

    /// Counts it as a call of the tool that it calls, if it does.
    pub(crate) fn of(mut self, head: &Head<'_>) -> Self {
        if head.method == "tools/call"
            && let Some(name) = Params::read(head.params).name.and_then(jsonrpc::string)
        {
            self.tool = Some(self.recorder.tool(&name));
        }
        self
    }

    pub(crate) fn fail(&mut self) {
        self.error = true;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.stats.in_flight.fetch_sub(1, Relaxed);
        let took = self.start.elapsed();
        if let Some(tool) = &self.tool {
            tool.calls.fetch_add(1, Relaxed);
            tool.errors.fetch_add(u64::from(self.error), Relaxed);
            tool.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
        }
        self.recorder.add(took, self.error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_and_no_more() {
        let mut window = Window::default();
        for i in 0..100 {
            window.add(0, if i < 98 { 1.0 } else { 500.0 }, i == 0);
        }
        let sum = window.sum(0);
        assert_eq!((sum.calls, sum.errors), (100, 1));
        assert!(sum.p99_ms >= 500.0 && sum.p99_ms < 600.0, "{sum:?}");
        assert_eq!(window.sum(54).calls, 100);
        assert_eq!(window.sum(60).calls, 0);
        window.add(60, 2.0, false);
        assert_eq!(window.sum(60).calls, 1, "a slot used again forgets");
    }

    #[test]
    fn buckets_bound_their_values() {
        for ms in [0.0, 0.01, 0.0625, 0.5, 1.0, 33.3, 59_999.0] {
            let index = bucket(ms);
            assert!(upper(index) >= ms, "{ms}");
            assert!(index == 0 || upper(index) <= ms * 1.2, "{ms}");
        }
        assert_eq!(bucket(1e12), BUCKETS - 1);
    }
}
