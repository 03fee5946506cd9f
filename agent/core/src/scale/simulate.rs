//! A trace of requests against a policy: replicas, cost and queueing, by the same [`decide`] that runs in the agent.

use std::collections::VecDeque;

use serde::Serialize;

use super::decide::{Basis, Decision, Memory, Signals, decide};
use super::forecast::History;
use super::{BUCKET_SECONDS, Policy};

/// Calls that wait longer than this are given up, seconds (the gateway's own default).
const PATIENCE: f64 = 30.0;
/// Busier than this, waiting is what the queue says.
const BUSY: f64 = 0.97;

/// Requests a minute from a moment on, until the next point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Seconds since the trace began.
    pub at: f64,
    /// Requests a minute.
    pub requests: f64,
}

/// A text that is no trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct TraceError {
    /// Where, from 1.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

/// Reads `time,requests[,…]`, a row a change: time in seconds (from any beginning) or as RFC 3339, requests a minute from
/// then on. Answers the points and when the first one was, seconds since 1970 (0 when times are no dates).
///
/// # Errors
/// The first row that is none.
pub fn read_trace(text: &str) -> Result<(Vec<Point>, i64), TraceError> {
    let mut points: Vec<Point> = Vec::new();
    let (mut begin, mut dated) = (0.0, false);
    for (index, row) in text.lines().enumerate() {
        let flaw = |why: String| TraceError { line: index + 1, why };
        let row = row.trim();
        if row.is_empty() || row.starts_with('#') {
            continue;
        }
        let mut cells = row.split(',').map(str::trim);
        let (time, requests) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        let date = time.parse::<jiff::Timestamp>().ok();
        let Some(at) = date.map(|t| t.as_millisecond() as f64 / 1e3).or_else(|| time.parse().ok()) else {
            // the names of the columns
            if points.is_empty() && time.eq_ignore_ascii_case("time") {
                continue;
            }
            return Err(flaw(format!("'{time}' is no time (seconds, or 2026-01-31T12:00:00Z)")));
        };
        let requests: f64 = requests.parse().map_err(|_| flaw(format!("'{requests}' is no number of requests")))?;
        if !requests.is_finite() || requests < 0.0 || !f64::is_finite(at) {
            return Err(flaw(format!("'{row}' is out of bounds")));
        }
        if points.is_empty() {
            (begin, dated) = (at, date.is_some());
        }
        let at = at - begin;
        if points.last().is_some_and(|last| at <= last.at) {
            return Err(flaw("its time is not later than that of the row before".into()));
        }
        points.push(Point { at, requests });
    }
    if points.len() < 2 {
        return Err(TraceError { line: text.lines().count(), why: "a trace has at least two rows".into() });
    }
    // seconds since 1970, cut
    Ok((points, if dated { begin as i64 } else { 0 }))
}

/// What one replica can do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Server {
    /// Most requests a minute that it can answer.
    pub capacity: f64,
    /// Time of an answer when nothing else is asked, milliseconds.
    pub time_ms: f64,
    /// From its creation until it serves, seconds.
    pub start_seconds: f64,
}

/// What is replayed against what.
#[derive(Clone, Debug)]
pub struct Replay<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// What one replica can do.
    pub server: Server,
    /// What a replica costs an hour.
    pub price: Option<f64>,
    /// Replicas at the beginning.
    pub replicas: u32,
    /// When the trace began, seconds since 1970.
    pub begin: i64,
    /// Past days, and requests a minute of a replica at its target, for policies that look ahead.
    pub history: Option<(&'a History, f64)>,
    /// Requests a minute of a replica above which it is one too few; [`Simulated::short_seconds`] counts those.
    pub need: Option<f64>,
}

impl<'a> Replay<'a> {
    /// With the policy's fewest replicas at the beginning.
    pub fn new(policy: &'a Policy, server: Server) -> Self {
        Self { policy, server, price: None, replicas: policy.awake().0, begin: 0, history: None, need: None }
    }
}

/// One evaluation of a replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tick {
    /// Seconds since the trace began.
    pub at: f64,
    /// Requests a minute.
    pub requests: f64,
    /// Replicas desired after it; 0: asleep.
    pub replicas: u32,
    /// Replicas that served.
    pub ready: u32,
    /// Requests that waited at its end.
    pub queued: f64,
    /// 95th percentile of the response times, milliseconds.
    pub p95: f64,
}

/// What a replay found.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct Simulated {
    /// One for each evaluation.
    pub ticks: Vec<Tick>,
    /// Steps: when (seconds), from, to, and why.
    pub steps: Vec<(f64, u32, u32, String)>,
    /// Hours of all replicas together.
    pub replica_hours: f64,
    /// What they cost, where there is a price.
    pub cost: Option<f64>,
    /// Most replicas at once.
    pub most_replicas: u32,
    /// Steps in the other direction than the step before.
    pub reversals: u32,
    /// Most requests that waited at once.
    pub most_queued: f64,
    /// Requests that waited longer than 30 s and were given up.
    pub given_up: f64,
    /// Requests of the whole trace.
    pub requests: f64,
    /// Slowest 95th percentile of an evaluation, milliseconds.
    pub worst_p95: f64,
    /// Seconds in which the 95th percentile was above the policy's target.
    pub slow_seconds: f64,
    /// Replicas that were missing, times seconds (see [`Replay::need`]).
    pub short_seconds: f64,
    /// How often it slept.
    pub sleeps: u32,
}

/// What is measured between two evaluations.
#[derive(Default)]
struct Period {
    seconds: f64,
    arrived: f64,
    served: f64,
    lost: f64,
    busy: f64,
    /// Waiting by chance, milliseconds times calls.
    chance: f64,
    /// Longest time that the queue stood for, milliseconds.
    behind: f64,
}

/// Replicas as they come and go.
struct Fleet {
    desired: u32,
    ready: u32,
    starting: VecDeque<(f64, u32)>,
    queue: f64,
}

impl Fleet {
    /// Those whose time has come serve.
    fn arrive(&mut self, at: f64) {
        while let Some((_, count)) = self.starting.pop_front_if(|(ready_at, _)| *ready_at <= at) {
            self.ready += count;
        }
    }

    fn set(&mut self, at: f64, to: u32, start_seconds: f64) {
        if to > self.desired {
            self.starting.push_back((at + start_seconds, to - self.desired));
        } else {
            // what still starts goes first
            let mut gone = self.desired - to;
            while gone > 0
                && let Some((_, count)) = self.starting.back_mut()
            {
                let cut = gone.min(*count);
                *count -= cut;
                gone -= cut;
                if *count == 0 {
                    self.starting.pop_back();
                }
            }
            self.ready = self.ready.saturating_sub(gone);
        }
        self.desired = to;
    }

    /// Lets time pass.
    fn step(&mut self, dt: f64, rate: f64, server: &Server, period: &mut Period) {
        let capacity = f64::from(self.ready) * server.capacity / 60.0;
        let arrived = rate / 60.0 * dt;
        self.queue += arrived;
        let served = self.queue.min(capacity * dt);
        self.queue -= served;
        let most = capacity * PATIENCE;
        let lost = if self.ready > 0 { (self.queue - most).max(0.0) } else { 0.0 };
        self.queue -= lost;
        let busy = if capacity > 0.0 { (served / (capacity * dt)).min(1.0) } else { 0.0 };
        // waiting for one of several workers (Sakasegawa), and what is queued before that
        let each = server.capacity / 60.0;
        let workers = f64::from(self.ready.max(1)) * (each * server.time_ms / 1e3).max(1.0);
        let busy_for = (server.time_ms / 1e3).max(1.0 / each);
        let load = (rate / 60.0 / capacity.max(f64::MIN_POSITIVE)).min(BUSY);
        // callers come when they like, calls take about equally long: half of what it would be if those varied as much
        let mean = load.powf((2.0 * (workers + 1.0)).sqrt() - 1.0) / (workers * (1.0 - load)) * busy_for / 2.0;
        let behind = if capacity > 0.0 { self.queue / capacity } else { PATIENCE };
        period.seconds += dt;
        period.arrived += arrived;
        period.served += served;
        period.lost += lost;
        period.busy += busy * dt;
        // a queue that grew shows at its longest, chance on average
        period.chance += 3.0 * mean * 1e3 * arrived;
        period.behind = period.behind.max(if arrived > 0.0 { behind.min(PATIENCE) * 1e3 } else { 0.0 });
    }
}

impl Period {
    fn p95(&self, server: &Server) -> f64 {
        if self.arrived > 0.0 { server.time_ms + self.behind + self.chance / self.arrived } else { 0.0 }
    }

    fn signals(&self, fleet: &Fleet, server: &Server) -> Signals {
        let ended = self.served + self.lost;
        let some = |value: f64| (ended > 0.0).then_some(value);
        Signals {
            ready: fleet.ready,
            cpu: Some(self.busy / self.seconds.max(f64::MIN_POSITIVE) * 100.0),
            memory: Some(0.0),
            requests: self.arrived / self.seconds.max(f64::MIN_POSITIVE) * 60.0,
            p50: some(server.time_ms),
            p95: some(self.p95(server)),
            errors: some(self.lost / ended * 100.0),
            // whole requests, cut
            in_flight: fleet.queue as u64,
            sessions: 0,
        }
    }
}

/// Replays a trace. A trace ends one step after its last point, as long as the one before.
pub fn simulate(replay: &Replay<'_>, trace: &[Point]) -> Simulated {
    let (policy, server) = (replay.policy, &replay.server);
    let every = f64::from(policy.evaluate_every.max(1));
    let dt = (every / 4.0).min(1.0);
    let last = trace.last().map_or(0.0, |p| p.at);
    let tail = trace.len().checked_sub(2).and_then(|i| trace.get(i)).map_or(every, |p| last - p.at);
    let end = last + tail;
    let mut fleet = Fleet { desired: replay.replicas, ready: replay.replicas, starting: VecDeque::new(), queue: 0.0 };
    let mut memory = Memory::default();
    let mut out = Simulated { most_replicas: replay.replicas, ..Simulated::default() };
    let (mut period, mut index, mut idle, mut asleep) = (Period::default(), 0, 0.0, false);
    let mut direction = 0_i64;
    let mut ahead: Option<(i64, Option<super::Forecast>)> = None;
    let steps = (end / dt).ceil().clamp(0.0, 1e9) as u64;
    for step in 0..steps {
        let at = step as f64 * dt;
        while trace.get(index + 1).is_some_and(|next| next.at <= at) {
            index += 1;
        }
        let rate = trace.get(index).map_or(0.0, |p| p.requests);
        idle = if rate > 0.0 { 0.0 } else { idle + dt };
        if asleep && rate > 0.0 {
            asleep = false;
        } else if !asleep && policy.sleeps() && idle >= f64::from(policy.idle_timeout) && fleet.queue < 1.0 {
            asleep = true;
            out.sleeps += 1;
            // what sleeps is one: it was alone long before
            fleet.set(at, 1, server.start_seconds);
        }
        fleet.arrive(at);
        fleet.step(dt, rate, server, &mut period);
        if !asleep {
            out.replica_hours += f64::from(fleet.desired) * dt / 3600.0;
        }
        if let Some(need) = replay.need {
            let missing = ((rate / need).ceil().min(f64::from(policy.max)) - f64::from(fleet.ready)).max(0.0);
            out.short_seconds += missing * dt;
        }
        out.most_queued = out.most_queued.max(fleet.queue);
        if period.seconds + 1e-9 < every {
            continue;
        }
        // whole milliseconds of the trace's own clock
        let now = ((at + dt) * 1e3) as i64;
        let unix = replay.begin + now / 1000;
        if let Some((history, capacity)) = replay.history.filter(|_| policy.predictive) {
            let bucket = unix.div_euclid(BUCKET_SECONDS);
            if ahead.as_ref().is_none_or(|(of, _)| *of != bucket) {
                ahead = Some((bucket, past(history, bucket).forecast(unix, capacity).ok()));
            }
        }
        let signals = period.signals(&fleet, server);
        out.requests += period.arrived;
        out.given_up += period.lost;
        let p95 = period.p95(server);
        out.worst_p95 = out.worst_p95.max(p95);
        if policy.response_time.is_some_and(|target| p95 > target as f64) {
            out.slow_seconds += period.seconds;
        }
        period = Period::default();
        if !asleep {
            let basis = Basis {
                policy,
                signals: Some(&signals),
                replicas: fleet.desired,
                ceiling: None,
                price: replay.price,
                forecast: ahead.as_ref().and_then(|(_, forecast)| forecast.as_ref()),
                now,
            };
            let decision = decide(&basis, &memory);
            memory.note(now, &decision);
            act(&mut out, &mut fleet, &decision, &mut direction, at + dt, server.start_seconds);
        }
        let replicas = if asleep { 0 } else { fleet.desired };
        let (ready, queued) = (signals.ready, fleet.queue);
        out.ticks.push(Tick { at: at + dt, requests: signals.requests, replicas, ready, queued, p95 });
    }
    out.cost = replay.price.map(|price| price * out.replica_hours);
    out
}

fn act(out: &mut Simulated, fleet: &mut Fleet, d: &Decision, direction: &mut i64, at: f64, start_seconds: f64) {
    if d.to == d.from {
        return;
    }
    let way = i64::from(d.to) - i64::from(d.from);
    if way.signum() * *direction < 0 {
        out.reversals += 1;
    }
    *direction = way.signum();
    out.steps.push((at, d.from, d.to, d.reason.clone()));
    out.most_replicas = out.most_replicas.max(d.to);
    fleet.set(at, d.to, start_seconds);
}

/// What was known of a history at the beginning of a bucket.
fn past(history: &History, bucket: i64) -> History {
    let mut known = History::default();
    history.buckets().filter(|(number, _)| *number < bucket).for_each(|(number, b)| known.set(number, b));
    known
}

#[cfg(test)]
mod tests;
