//! What a deployment carried in the last minute, and the guard that every request holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::time::{Duration, Instant};

use sigil_core::jsonrpc::{self, Head, Params};
use sigil_core::model::DeploymentId;

use super::caller::ANONYMOUS;
use super::caller::Caller;
use super::count::{self, KeyLoad, Load, Names, UserLoad};
use super::modern::LISTEN;
use super::tap::Tap;
use super::trace::{Trace, Upstream};
use crate::telemetry::Began;
use crate::upstream::nap::{Attached, Awake, Nap};
use crate::usage::Tally;
use crate::web::{Count, Counted, ToolTraffic};

/// Seconds of one slot, and how many slots make the minute.
const SLOT: u64 = 5;
const SLOTS: usize = 12;
/// Quarter powers of two from 1/16 ms: 84 of them reach 110 s.
const BUCKETS: usize = 84;
/// A slot that is being emptied for its next turn.
const EMPTYING: u64 = u64::MAX;

#[derive(Debug)]
struct Slot {
    /// Number of the slot since the start, plus one; 0: never used.
    number: AtomicU64,
    calls: AtomicU32,
    errors: AtomicU32,
    buckets: [AtomicU32; BUCKETS],
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            number: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            errors: AtomicU32::new(0),
            buckets: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

/// Calls of the last minute. Nobody waits: a call that ends while its slot is emptied, once in five seconds and for less
/// than a microsecond, may be missing in it.
#[derive(Debug, Default)]
pub(crate) struct Window {
    slots: [Slot; SLOTS],
}

/// What a window says.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sum {
    pub(crate) calls: u64,
    pub(crate) errors: u64,
    /// Upper bounds of percentiles, milliseconds.
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Window {
    /// `now`: seconds since some start.
    pub(crate) fn add(&self, now: u64, ms: f64, error: bool) {
        let number = now / SLOT + 1;
        let index = usize::try_from(number).unwrap_or(0) % SLOTS;
        let Some(slot) = self.slots.get(index) else { return };
        let seen = slot.number.load(Acquire);
        // one that comes late for its slot finds a newer one in its place
        if seen > number {
            return;
        }
        if seen != number {
            if slot.number.compare_exchange(seen, EMPTYING, Relaxed, Relaxed).is_err() {
                return;
            }
            slot.calls.store(0, Relaxed);
            slot.errors.store(0, Relaxed);
            slot.buckets.iter().for_each(|bucket| bucket.store(0, Relaxed));
            slot.number.store(number, Release);
        }
        slot.calls.fetch_add(1, Relaxed);
        if error {
            slot.errors.fetch_add(1, Relaxed);
        }
        if let Some(bucket) = slot.buckets.get(bucket(ms)) {
            bucket.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn sum(&self, now: u64) -> Sum {
        self.sum_of(now, SLOTS as u64)
    }

    /// Of the newest slots.
    fn sum_of(&self, now: u64, slots: u64) -> Sum {
        let newest = now / SLOT + 1;
        let oldest = newest.saturating_sub(slots.saturating_sub(1)).max(1);
        let mut sum = Sum::default();
        let mut buckets = [0_u64; BUCKETS];
        for slot in self.slots.iter().filter(|s| (oldest..=newest).contains(&s.number.load(Acquire))) {
            sum.calls += u64::from(slot.calls.load(Relaxed));
            sum.errors += u64::from(slot.errors.load(Relaxed));
            for (total, count) in buckets.iter_mut().zip(&slot.buckets) {
                *total += u64::from(count.load(Relaxed));
            }
        }
        let percentile = |percent: u64| {
            let rank = (sum.calls * percent).div_ceil(100).max(1);
            let mut seen = 0;
            let reached = buckets.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            reached.map_or(0.0, upper)
        };
        (sum.p50_ms, sum.p95_ms, sum.p99_ms) = (percentile(50), percentile(95), percentile(99));
        sum
    }

    /// Of at least so many whole seconds (five at least, a minute at most), and how many it is of, in seconds: never fewer,
    /// however new it is.
    fn recent(&self, now: f64, seconds: u64) -> (Sum, f64) {
        let whole = seconds.div_ceil(SLOT).clamp(1, SLOTS as u64 - 1);
        // the cut is wanted: whole seconds name the slot
        let at = now as u64;
        let begin = (at / SLOT).saturating_sub(whole) * SLOT;
        // nobody called before the counting began: three calls in its first second are no hundred and eighty a minute
        (self.sum_of(at, whole + 1), (now - begin as f64).max((whole * SLOT) as f64))
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
    window: Window,
    /// Since the agent's start.
    pub(crate) load: Load,
    pub(crate) bytes: count::Bytes,
    pub(crate) cached: count::Cached,
    tools: Names<Load>,
    users: Names<UserLoad>,
    /// Answers on their way to clients: event streams, and what is long.
    pub(crate) connections: AtomicU64,
    /// Who looks at its messages.
    pub(crate) tap: Tap,
    /// Whether it is awake.
    pub(crate) nap: Nap,
    /// Where calls outlive the agent.
    tally: Option<(Tally, DeploymentId)>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new(Nap::default(), None)
    }
}

impl Recorder {
    pub(crate) fn new(nap: Nap, tally: Option<(Tally, DeploymentId)>) -> Self {
        Self {
            start: Instant::now(),
            window: Window::default(),
            load: Load::default(),
            bytes: count::Bytes::default(),
            cached: count::Cached::default(),
            tools: Names::default(),
            users: Names::default(),
            connections: AtomicU64::new(0),
            tap: Tap::default(),
            nap,
            tally,
        }
    }

    pub(crate) fn sum(&self) -> Sum {
        self.window.sum(self.start.elapsed().as_secs())
    }

    /// What happened in about the last so many seconds, and in how many exactly.
    pub(crate) fn recent(&self, seconds: u64) -> (Sum, f64) {
        self.window.recent(self.start.elapsed().as_secs_f64(), seconds)
    }

    pub(crate) fn tools(&self) -> Vec<ToolTraffic> {
        self.tools.all().into_iter().map(|(tool, load)| ToolTraffic { tool, latency: load.latency() }).collect()
    }

    /// Where a caller's calls are counted.
    fn user(&self, caller: &Caller) -> Arc<UserLoad> {
        let name = caller.user.as_deref().unwrap_or(ANONYMOUS);
        let load = self.users.of(name);
        if let Some((tally, deployment)) = &self.tally {
            load.slot.get_or_init(|| {
                let name = if self.users.is_others(&load) { count::OTHERS } else { name };
                tally.slot(*deployment, name)
            });
        }
        load
    }

    /// Who used it, for the books.
    pub(crate) fn counted(&self, deployment: DeploymentId) -> Counted {
        let latency = self.load.latency();
        let sent = self.bytes.to_clients.load(Relaxed);
        let tool = |(name, load): (String, Arc<Load>)| {
            let latency = load.latency();
            (name, Count { requests: latency.calls(), errors: latency.errors, sent: 0 })
        };
        let user = |(name, load): (String, Arc<UserLoad>)| {
            let UserLoad { calls, errors, sent, .. } = &*load;
            (name, Count { requests: calls.load(Relaxed), errors: errors.load(Relaxed), sent: sent.load(Relaxed) })
        };
        Counted {
            deployment,
            whole: Count { requests: latency.calls(), errors: latency.errors, sent },
            users: self.users.all().into_iter().map(user).collect(),
            tools: self.tools.all().into_iter().map(tool).collect(),
        }
    }

    fn add(&self, took: Duration, error: bool) {
        self.load.add(took, error);
        self.window.add(self.start.elapsed().as_secs(), took.as_secs_f64() * 1e3, error);
    }
}

/// Counts bytes of one request for its deployment and its key.
#[derive(Debug)]
pub(crate) struct Flow {
    recorder: Arc<Recorder>,
    key: Option<Arc<KeyLoad>>,
    user: Arc<UserLoad>,
    /// It counts among its deployment's connections.
    connected: bool,
}

impl Clone for Flow {
    fn clone(&self) -> Self {
        Self { recorder: self.recorder.clone(), key: self.key.clone(), user: self.user.clone(), connected: false }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if self.connected {
            self.recorder.connections.fetch_sub(1, Relaxed);
        }
    }
}

impl Flow {
    pub(crate) fn new(recorder: &Arc<Recorder>, caller: &Caller) -> Self {
        let (recorder, key, user) = (recorder.clone(), caller.load.clone(), recorder.user(caller));
        Self { recorder, key, user, connected: false }
    }

    /// Of an answer: its client is connected until it has gone out.
    pub(crate) fn connected(mut self) -> Self {
        self.recorder.connections.fetch_add(1, Relaxed);
        self.connected = true;
        self
    }

    pub(crate) fn received(&self, bytes: usize) {
        for counted in self.key.iter().map(|key| &key.bytes).chain([&self.recorder.bytes]) {
            counted.from_clients.fetch_add(bytes as u64, Relaxed);
        }
    }

    pub(crate) fn sent(&self, bytes: usize) {
        for counted in self.key.iter().map(|key| &key.bytes).chain([&self.recorder.bytes]) {
            counted.to_clients.fetch_add(bytes as u64, Relaxed);
        }
        self.user.send(bytes as u64);
    }
}

/// What a replica carries now; outlives its place in the route table.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) in_flight: AtomicU64,
    pub(crate) sessions: AtomicU64,
    /// Pieces of answers that came from it: who probes it sees by them that it is alive.
    pub(crate) heard: AtomicU64,
    /// Calls under way of which a piece has come, subscriptions aside.
    pub(crate) begun: AtomicU64,
    /// Subscriptions among the calls under way: they want nothing from their server.
    pub(crate) listening: AtomicU64,
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

/// The tool of a call.
#[derive(Debug)]
enum Tool {
    Known(Arc<Load>),
    /// Callers make names up: one gets a place of its own when its server has answered as if there were such a tool.
    New(Box<str>, Answered),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answered {
    Nothing,
    Something,
    Unknown,
}

/// What is no request, on its way: it is no call, but whoever drains waits for it as well.
#[derive(Debug)]
pub(crate) struct Passing(Arc<Stats>);

impl Passing {
    pub(crate) fn begin(stats: &Arc<Stats>) -> Self {
        stats.in_flight.fetch_add(1, Relaxed);
        Self(stats.clone())
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// One request on its way: metric, scaling signal and drain waiter in one. Dropping it ends the request.
#[derive(Debug)]
pub(crate) struct Call {
    stats: Arc<Stats>,
    recorder: Arc<Recorder>,
    key: Option<Arc<KeyLoad>>,
    user: Arc<UserLoad>,
    start: Instant,
    error: bool,
    /// A piece of its answer has come.
    begun: bool,
    tool: Option<Tool>,
    /// Keeps its server awake; one that only listens does not.
    hold: Result<Awake, Attached>,
    trace: Option<Box<(Arc<Upstream>, Began)>>,
    /// The request that it is, where nobody else holds that; its span ends behind the server's part.
    whole: Option<Box<Trace>>,
}

impl Call {
    pub(crate) fn begin(stats: &Arc<Stats>, recorder: &Arc<Recorder>, caller: &Caller) -> Self {
        stats.in_flight.fetch_add(1, Relaxed);
        let key = caller.load.clone();
        if let Some(key) = &key {
            key.in_flight.fetch_add(1, Relaxed);
        }
        let user = recorder.user(caller);
        let (stats, recorder, hold) = (stats.clone(), recorder.clone(), Ok(recorder.nap.hold()));
        let start = Instant::now();
        Self {
            stats,
            recorder,
            key,
            user,
            start,
            error: false,
            begun: false,
            tool: None,
            hold,
            trace: None,
            whole: None,
        }
    }

    /// Counts it as a call of the tool that it calls, if it does.
    pub(crate) fn of(mut self, head: &Head<'_>) -> Self {
        if head.method == LISTEN {
            self.hold = Err(self.recorder.nap.attach());
            self.stats.listening.fetch_add(1, Relaxed);
        }
        if head.method != "tools/call" {
            return self;
        }
        match Params::read(head.params).name.and_then(jsonrpc::string) {
            Some(name) => self.of_tool(&name),
            None => self,
        }
    }

    pub(crate) fn of_tool(mut self, name: &str) -> Self {
        self.tool = Some(match self.recorder.tools.get(name) {
            Some(load) => Tool::Known(load),
            None => Tool::New(name.into(), Answered::Nothing),
        });
        self
    }

    /// It is a span of its own.
    pub(crate) fn traced(mut self, trace: Option<&Arc<Upstream>>) -> Self {
        self.trace = trace.map(|upstream| Box::new((upstream.clone(), Began::now())));
        self
    }

    /// It is all that there is of its request.
    pub(crate) fn linked(self, trace: Option<Box<Trace>>) -> Self {
        let mut call = self.traced(trace.as_ref().and_then(|trace| trace.upstream()));
        call.whole = trace;
        call
    }

    pub(crate) fn fail(&mut self) {
        self.error = true;
    }

    /// A piece of the server's answer.
    pub(crate) fn answered(&mut self, data: &[u8]) {
        self.stats.heard.fetch_add(1, Relaxed);
        if self.hold.is_ok() && !std::mem::replace(&mut self.begun, true) {
            self.stats.begun.fetch_add(1, Relaxed);
        }
        if let Some(trace) = &self.trace {
            trace.0.hears(data);
        }
        if let Some(Tool::New(_, answered)) = &mut self.tool
            && *answered != Answered::Unknown
        {
            *answered = if count::says_unknown(data) { Answered::Unknown } else { Answered::Something };
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.stats.in_flight.fetch_sub(1, Relaxed);
        if self.begun {
            self.stats.begun.fetch_sub(1, Relaxed);
        }
        if self.hold.is_err() {
            self.stats.listening.fetch_sub(1, Relaxed);
        }
        let took = self.start.elapsed();
        if let Some(key) = &self.key {
            key.in_flight.fetch_sub(1, Relaxed);
            key.calls.fetch_add(1, Relaxed);
            if self.error {
                key.errors.fetch_add(1, Relaxed);
            }
        }
        self.user.call(self.error);
        match &self.tool {
            None => {}
            Some(Tool::Known(load)) => load.add(took, self.error),
            Some(Tool::New(name, Answered::Something)) => self.recorder.tools.of(name).add(took, self.error),
            Some(Tool::New(..)) => self.recorder.tools.others().add(took, self.error),
        }
        self.recorder.add(took, self.error);
        if let Some((upstream, began)) = self.trace.take().map(|trace| *trace) {
            upstream.ended(began, self.error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_and_no_more() {
        let window = Window::default();
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
    fn a_part_of_the_minute_is_as_long_as_it_says() {
        let window = Window::default();
        (0..60).for_each(|second| window.add(second, if second >= 50 { 100.0 } else { 1.0 }, second >= 55));
        let (sum, seconds) = window.recent(59.5, 5);
        assert_eq!((sum.calls, sum.errors, seconds), (10, 5, 9.5));
        assert!(sum.p50_ms >= 100.0 && sum.p95_ms < 120.0, "{sum:?}");
        let (sum, seconds) = window.recent(59.5, 20);
        assert_eq!((sum.calls, seconds), (25, 24.5));
        assert!(sum.p50_ms < 1.2, "{sum:?}");
        assert_eq!(window.recent(59.0, 500).1, 59.0);
        assert_eq!(window.recent(3.0, 5).1, 5.0, "what is new is not taken for more than it is");
        assert_eq!(Window::default().recent(2.0, 5).0, Sum::default());
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
