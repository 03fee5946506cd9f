//! One decision: what the measures ask for, and what keeps it from being done.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::forecast::Forecast;
use super::{Mode, Policy};

/// The score above which a weighted policy goes up.
const SCORE_UP: f64 = 0.7;
/// The score below which it goes down.
const SCORE_DOWN: f64 = 0.3;
/// A share of its target counts at most so much in a score, and so many times the replicas are asked for at most by what
/// does not say how much work there is (times, errors).
const SHARE_MAX: f64 = 2.0;
/// Down only when so many points below the target.
const POINTS: f64 = 20.0;
/// But a target that is lower than those points is still left at this part of it.
const PART: f64 = 0.25;
/// For times and rates of errors, which are no shares of a whole: this part of the target.
const CALM: f64 = 0.8;
/// Steps kept for cool-downs; one is enough for a decision, the others are for showing.
const STEPS: usize = 16;
/// Wishes kept for the stabilisation window.
const WISHES: usize = 512;

/// What a deployment did since the last evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Signals {
    /// Replicas that serve.
    pub ready: u32,
    /// CPU, percent of a replica's hard limit, averaged over those that serve; `None`: cannot be read.
    pub cpu: Option<f64>,
    /// Memory above the baseline, percent of a replica's limit, averaged; `None`: cannot be read.
    pub memory: Option<f64>,
    /// Requests a minute, of all replicas.
    pub requests: f64,
    /// Median of the response times, milliseconds; `None`: no call ended.
    pub p50: Option<f64>,
    /// 95th percentile of the response times, milliseconds; `None`: no call ended.
    pub p95: Option<f64>,
    /// Calls that failed, percent; `None`: no call ended.
    pub errors: Option<f64>,
    /// Requests under way.
    pub in_flight: u64,
    /// Open sessions.
    pub sessions: u64,
}

/// What a measure says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// More replicas.
    Up,
    /// Leave it.
    Hold,
    /// Fewer would do.
    Down,
    /// It cannot be read.
    Unknown,
}

/// One target and how it is met.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// `cpu`, `memory`, `requests`, `responseTime`, `errorRate`, `score`.
    pub name: String,
    /// What it is now.
    pub value: Option<f64>,
    /// Up above this.
    pub up: f64,
    /// Down below this.
    pub down: f64,
    /// What it says.
    pub verdict: Verdict,
    /// Replicas that it asks for.
    pub need: u32,
}

/// What held a step back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldBy {
    /// The policy's `min` or `max`.
    Bounds,
    /// What the host or the release allows.
    Host,
    /// A cool-down.
    Cooldown,
    /// `stepUp` or `stepDown`.
    Step,
    /// The stabilisation window.
    Stabilisation,
    /// The cost cap.
    Cost,
    /// Replicas of the step before are not ready.
    Starting,
    /// A measure that cannot be read.
    Unknown,
    /// The forecast asks for what is there.
    Forecast,
}

/// A refusal: the whole wish or a part of it was not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What refused.
    pub by: HeldBy,
    /// One sentence.
    pub why: String,
}

/// What should be done, with everything that led to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Replicas desired before.
    pub from: u32,
    /// Replicas that should be desired now; the same: nothing is done.
    pub to: u32,
    /// What the measures ask for, before anything refuses.
    pub wanted: u32,
    /// One sentence.
    pub reason: String,
    /// Refusals, in the order in which they were met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Held>,
    /// Targets, and what they said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measures: Vec<Measure>,
    /// The inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<Signals>,
    /// What the forecast asks for, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<u32>,
}

/// A change of the number of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When, milliseconds of the caller's clock; before its start for what was done under an earlier one.
    pub at: i64,
    /// Replicas before.
    pub from: u32,
    /// Replicas after.
    pub to: u32,
}

/// What decisions remember.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Memory {
    since: Option<i64>,
    steps: VecDeque<Step>,
    wishes: VecDeque<(i64, u32)>,
}

impl Memory {
    /// What is remembered of steps by an earlier clock: how long ago each was, milliseconds, newest last. What lies in the
    /// future (the host's clock was set back) counts as done now: the cool-down begins again, and ends.
    pub fn resumed(now: i64, ages: impl IntoIterator<Item = (i64, u32, u32)>) -> Self {
        let steps = ages.into_iter().map(|(age, from, to)| Step { at: now.saturating_sub(age.max(0)), from, to });
        let mut memory = Self::default();
        steps.for_each(|step| memory.push(step));
        memory
    }

    /// Keeps what a decision wanted and did.
    pub fn note(&mut self, now: i64, decision: &Decision) {
        self.since.get_or_insert(now);
        // a wish counts until the next other one
        if self.wishes.back().is_none_or(|(_, last)| *last != decision.wanted) {
            if self.wishes.len() >= WISHES {
                self.wishes.pop_front();
            }
            self.wishes.push_back((now, decision.wanted));
        }
        if decision.to != decision.from {
            self.push(Step { at: now, from: decision.from, to: decision.to });
        }
    }

    /// Keeps a step that somebody else made: cool-downs count from it as from one's own.
    pub fn stepped(&mut self, now: i64, from: u32, to: u32) {
        self.push(Step { at: now, from, to });
    }

    /// The newest step.
    pub fn last(&self) -> Option<Step> {
        self.steps.back().copied()
    }

    fn push(&mut self, step: Step) {
        if self.steps.len() >= STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back(step);
    }

    /// Seconds that a cool-down still lasts.
    fn cooling(&self, now: i64, cooldown: u32) -> Option<u64> {
        let since = now.saturating_sub(self.last()?.at).max(0);
        let left = i64::from(cooldown) * 1000 - since;
        (left > 0).then(|| u64::try_from(left).unwrap_or(0).div_ceil(1000))
    }

    /// The most that was wanted in the last seconds; `None` while that is not known for all of them.
    fn most_wanted(&self, now: i64, seconds: u32) -> Option<u32> {
        let from = now.saturating_sub(i64::from(seconds) * 1000);
        if self.since.unwrap_or(now) > from {
            return None;
        }
        let older = self.wishes.iter().rev().find(|(at, _)| *at <= from).map(|(_, wanted)| *wanted);
        self.wishes.iter().filter(|(at, _)| *at > from).map(|(_, wanted)| *wanted).chain(older).max()
    }
}

/// What a decision is made on.
#[derive(Clone, Copy, Debug)]
pub struct Basis<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// What happened since the last evaluation; `None`: nothing is known.
    pub signals: Option<&'a Signals>,
    /// Replicas desired now.
    pub replicas: u32,
    /// Most replicas that the host or the release allows, and why.
    pub ceiling: Option<(u32, &'a str)>,
    /// What a replica costs an hour; `None`: the owner has set no rates.
    pub price: Option<f64>,
    /// The next hour's need, where the policy looks ahead.
    pub forecast: Option<&'a Forecast>,
    /// Now, milliseconds of the caller's clock.
    pub now: i64,
}

/// Decides. Doing what it says and [`Memory::note`] are the caller's.
pub fn decide(basis: &Basis<'_>, memory: &Memory) -> Decision {
    let policy = basis.policy;
    let (least, most) = policy.awake();
    let host = basis.ceiling.filter(|(n, _)| *n < most);
    let most = host.map_or(most, |(n, _)| n).max(1);
    let least = least.min(most);
    let mut d = Decision {
        from: basis.replicas,
        to: basis.replicas,
        wanted: basis.replicas.clamp(least, most),
        reason: String::new(),
        held: Vec::new(),
        measures: Vec::new(),
        signals: basis.signals.copied(),
        forecast: None,
    };
    if basis.replicas < least || basis.replicas > most {
        d.to = d.wanted;
        d.reason = match host {
            Some((n, why)) if basis.replicas > n => format!("{why}: at most {n}"),
            _ => format!("the policy's bounds are {least} to {most} while it is awake"),
        };
        return d;
    }
    let Some(signals) = basis.signals.filter(|s| s.ready > 0) else {
        d.reason = "no replica is ready: there is nothing to measure".into();
        return d;
    };
    d.measures = measures(policy, signals);
    want(&mut d, signals, least);
    if let Some(forecast) = basis.forecast.filter(|_| policy.predictive) {
        ahead(&mut d, forecast);
    }
    if d.wanted > most {
        d.held.push(match host {
            Some((n, why)) => Held { by: HeldBy::Host, why: format!("{} wanted; {why}: at most {n}", d.wanted) },
            None => Held { by: HeldBy::Bounds, why: format!("{} wanted, the policy's max is {most}", d.wanted) },
        });
    } else if d.wanted < least {
        d.held.push(Held { by: HeldBy::Bounds, why: format!("{} wanted, the policy's min is {least}", d.wanted) });
    }
    d.wanted = d.wanted.clamp(least, most);
    match d.wanted.cmp(&basis.replicas) {
        std::cmp::Ordering::Greater => up(&mut d, basis, memory),
        std::cmp::Ordering::Less => down(&mut d, basis, memory),
        std::cmp::Ordering::Equal => {}
    }
    d
}

/// Sets what the measures ask for, with its reason.
fn want(d: &mut Decision, signals: &Signals, least: u32) {
    let highest = d.measures.iter().filter(|m| m.verdict == Verdict::Up).max_by_key(|m| m.need).cloned();
    if let Some(m) = highest {
        d.wanted = m.need;
        d.reason = format!("{} is above {}", said(&m), figure(&m.name, m.up));
        if m.need <= d.from && signals.ready < d.from {
            d.wanted = d.from;
            let why = format!("{} of {} replicas are not ready yet", d.from - signals.ready, d.from);
            d.held.push(Held { by: HeldBy::Starting, why });
        }
        return;
    }
    let unknown: Vec<&str> =
        d.measures.iter().filter(|m| m.verdict == Verdict::Unknown).map(|m| m.name.as_str()).collect();
    let calm = d.measures.iter().all(|m| matches!(m.verdict, Verdict::Down | Verdict::Unknown));
    if d.measures.is_empty() {
        d.reason = "the policy has no target".into();
    } else if !calm {
        let above = d.measures.iter().find(|m| m.verdict == Verdict::Hold);
        d.reason = above.map_or_else(String::new, |m| format!("{} is between its thresholds", said(m)));
    } else if !unknown.is_empty() {
        d.reason = "nothing is above its target".into();
        let why = format!("{} cannot be read: nothing is taken away", unknown.join(", "));
        d.held.push(Held { by: HeldBy::Unknown, why });
    } else if signals.ready < d.from {
        d.reason = "everything is below its target".into();
        let why = format!("{} of {} replicas are not ready", d.from - signals.ready, d.from);
        d.held.push(Held { by: HeldBy::Starting, why });
    } else {
        // as few as would not be above a target at once
        d.wanted = d.measures.iter().map(|m| m.need).max().unwrap_or(d.from).min(d.from).max(1);
        d.reason = match (d.wanted < d.from, d.from > least) {
            (true, _) => "everything is far below its target".into(),
            (false, true) => "everything is low, and fewer replicas would be above a target".into(),
            (false, false) => format!("everything is low, and {} is the fewest", d.from),
        };
    }
}

/// What comes soon is there before it comes, and nothing goes that the hour needs.
fn ahead(d: &mut Decision, forecast: &Forecast) {
    d.forecast = Some(forecast.replicas);
    let keep = forecast.keep.min(d.from);
    if forecast.replicas > d.wanted.max(d.from) {
        d.wanted = forecast.replicas;
        d.reason = format!("the forecast asks for {}: {}", forecast.replicas, forecast.why);
    } else if d.wanted < keep {
        let why = format!("{} wanted, the next hour needs {keep}: {}", d.wanted, forecast.why);
        d.held.push(Held { by: HeldBy::Forecast, why });
        d.wanted = keep;
    }
}

fn up(d: &mut Decision, basis: &Basis<'_>, memory: &Memory) {
    let policy = basis.policy;
    if let Some(left) = memory.cooling(basis.now, policy.up_cooldown) {
        let why = format!("{} wanted; the cool-down for steps up ends in {left} s", d.wanted);
        d.held.push(Held { by: HeldBy::Cooldown, why });
        return;
    }
    let mut to = d.wanted;
    let step = d.from.saturating_add(policy.step_up.max(1));
    if to > step {
        let why = format!("{} wanted, a step adds at most {}", d.wanted, policy.step_up);
        d.held.push(Held { by: HeldBy::Step, why });
        to = step;
    }
    if let (Some(cap), Some(price)) = (policy.cost_cap, basis.price.filter(|p| *p > 0.0)) {
        // whole replicas below 2^32: the cast cuts what is beyond
        let paid = d.from.saturating_add((cap / price + 1e-9).floor().clamp(0.0, f64::from(u32::MAX)) as u32);
        if to > paid {
            let added = f64::from(to - d.from) * price;
            let why = format!("{to} would add {added:.4} an hour, the cost cap of a step is {cap}");
            d.held.push(Held { by: HeldBy::Cost, why });
            to = paid;
        }
    }
    d.to = to;
}

fn down(d: &mut Decision, basis: &Basis<'_>, memory: &Memory) {
    let policy = basis.policy;
    if let Some(left) = memory.cooling(basis.now, policy.down_cooldown) {
        let why = format!("{} wanted; the cool-down for steps down ends in {left} s", d.wanted);
        d.held.push(Held { by: HeldBy::Cooldown, why });
        return;
    }
    let mut to = d.wanted;
    let step = d.from.saturating_sub(policy.step_down.max(1));
    if to < step {
        let why = format!("{} wanted, a step takes at most {} away", d.wanted, policy.step_down);
        d.held.push(Held { by: HeldBy::Step, why });
        to = step;
    }
    if policy.stabilisation > 0 {
        let window = policy.stabilisation;
        match memory.most_wanted(basis.now, window) {
            Some(most) if most > to => {
                let why = format!("{to} wanted, {most} was wanted within the last {window} s");
                d.held.push(Held { by: HeldBy::Stabilisation, why });
                to = most.min(d.from);
            }
            Some(_) => {}
            None => {
                let why = format!("{to} wanted, it is watched for less than {window} s");
                d.held.push(Held { by: HeldBy::Stabilisation, why });
                to = d.from;
            }
        }
    }
    d.to = to;
}

/// A measure before it is judged: its name, what it is, its target.
struct Raw {
    name: &'static str,
    value: Option<f64>,
    target: f64,
    /// Grows with the work that a replica has: half the replicas, twice as much.
    shared: bool,
}

fn measures(policy: &Policy, s: &Signals) -> Vec<Measure> {
    let ready = f64::from(s.ready);
    let raw = [
        policy.cpu.map(|target| Raw { name: "cpu", value: s.cpu, target, shared: true }),
        policy.memory.map(|target| Raw { name: "memory", value: s.memory, target, shared: true }),
        policy.response_time.map(|ms| Raw {
            name: "responseTime",
            // nobody waits where nobody calls
            value: s.p95.or((s.in_flight == 0).then_some(0.0)),
            target: ms as f64,
            shared: false,
        }),
        policy.error_rate.map(|target| Raw {
            name: "errorRate",
            value: s.errors.or((s.in_flight == 0).then_some(0.0)),
            target,
            shared: false,
        }),
    ];
    let mut all: Vec<Measure> = match policy.mode {
        Mode::Single => raw.iter().flatten().map(|raw| single(raw, s.ready)).collect(),
        Mode::Weighted => weighted(policy, raw, s.ready).into_iter().collect(),
    };
    if let Some(up) = policy.requests_up {
        let each = s.requests / ready;
        let down = policy.requests_down.unwrap_or(up / 5.0);
        let verdict = judge(each, up, down);
        all.push(Measure {
            name: "requests".into(),
            value: Some(each),
            up,
            down,
            verdict,
            need: replicas(s.requests / up),
        });
    }
    all
}

fn judge(value: f64, up: f64, down: f64) -> Verdict {
    if value > up {
        Verdict::Up
    } else if value < down {
        Verdict::Down
    } else {
        Verdict::Hold
    }
}

/// Replicas that a quotient stands for. What is beyond 2^32 is as good as that.
fn replicas(quotient: f64) -> u32 {
    // a quotient that is a whole number but for the last bits is that number
    (quotient - 1e-9).ceil().clamp(1.0, f64::from(u32::MAX)) as u32
}

fn single(raw: &Raw, ready: u32) -> Measure {
    let (target, shared) = (raw.target, raw.shared);
    let down = if shared { (target - POINTS).max(target * PART) } else { target * CALM };
    let verdict = match raw.value {
        None => Verdict::Unknown,
        Some(value) if value > target => Verdict::Up,
        // a target of 0 is met by 0 only
        Some(value) if value < down || value == 0.0 => Verdict::Down,
        Some(_) => Verdict::Hold,
    };
    let share = raw.value.map_or(0.0, |value| if target > 0.0 { value / target } else { f64::from(value > 0.0) * 2.0 });
    let need = match (verdict, shared) {
        (_, true) => replicas(f64::from(ready) * share),
        (Verdict::Up, false) => replicas(f64::from(ready) * share.min(SHARE_MAX)),
        // how a time would grow with fewer replicas nobody knows: it is low, that is all
        (_, false) => 1,
    };
    Measure { name: raw.name.into(), value: raw.value, up: target, down, verdict, need }
}

fn weighted(policy: &Policy, raw: [Option<Raw>; 4], ready: u32) -> Option<Measure> {
    let w = policy.weights;
    let sum = policy.weight();
    if sum <= 0.0 {
        return None;
    }
    let mut score = 0.0;
    let mut unknown = false;
    for (raw, weight) in raw.into_iter().zip([w.cpu, w.memory, w.response_time, w.errors]) {
        let Some(raw) = raw.filter(|_| weight > 0.0) else { continue };
        let share = match raw.value {
            None => {
                unknown = true;
                0.0
            }
            Some(value) if raw.target > 0.0 => (value / raw.target).min(SHARE_MAX),
            Some(value) => f64::from(value > 0.0) * SHARE_MAX,
        };
        score += weight / sum * share;
    }
    let verdict = match judge(score, SCORE_UP, SCORE_DOWN) {
        // what is not known can only add to a score
        Verdict::Down | Verdict::Hold if unknown => Verdict::Unknown,
        verdict => verdict,
    };
    Some(Measure {
        name: "score".into(),
        value: Some(score),
        up: SCORE_UP,
        down: SCORE_DOWN,
        verdict,
        need: replicas(f64::from(ready) * score / SCORE_UP),
    })
}

/// A measure with its value, in words.
fn said(m: &Measure) -> String {
    let name = match m.name.as_str() {
        "cpu" => "CPU",
        "memory" => "memory above the baseline",
        "requests" => "requests a minute a replica",
        "responseTime" => "the response time (p95)",
        "errorRate" => "the rate of errors",
        _ => "the score",
    };
    m.value.map_or_else(|| name.to_owned(), |value| format!("{name}, {},", figure(&m.name, value)))
}

/// A value with its unit.
fn figure(name: &str, value: f64) -> String {
    match name {
        "cpu" | "memory" | "errorRate" => format!("{value:.1} %"),
        "responseTime" => format!("{value:.0} ms"),
        "requests" => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests;
