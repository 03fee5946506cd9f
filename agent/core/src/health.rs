//! Owns: what a row of probes says of a replica, with hysteresis; whether one that does not answer is busy or hangs; what is
//! done about it, and when; how available a deployment was. May touch: nothing. Never: asks a clock (times are the caller's milliseconds). Tested by:
//! units and properties here.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Failures in a row that make a replica unhealthy.
const FAILS: u32 = 3;
/// Answers in a row that make it healthy again; so many that are slow or other make it degraded.
const PASSES: u32 = 2;
/// Changes of state within [`FLAP_WINDOW`] from which on it is said to flap.
const FLAPS: usize = 4;
/// Milliseconds.
const FLAP_WINDOW: i64 = 600_000;
/// The first wait between two restarts, doubled with each, milliseconds.
const BACKOFF: i64 = 30_000;
/// The longest.
const BACKOFF_MAX: i64 = 900_000;
/// So long without an action, the next one waits as the first did.
const CALM: i64 = 3_600_000;

/// How a replica, or a deployment, does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It answers as it should.
    Healthy,
    /// It was not asked yet, or cannot be.
    #[default]
    Unknown,
    /// It answers, but slowly or with other tools than before; it is too busy to; or it flaps.
    Degraded,
    /// It does not answer.
    Unhealthy,
}

impl State {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
            Self::Unknown => "unknown",
        }
    }
}

/// What one probe found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "outcome", content = "why")]
pub enum Outcome {
    /// It answered in time, with the tools that it had.
    Good,
    /// It answered, but not as it should.
    Poor(String),
    /// It did not answer since it is at work for its callers.
    Busy(String),
    /// It did not answer, or not as an MCP server.
    Failed(String),
    /// Nothing was asked: it sleeps, or has nothing that can be asked without starting it.
    Skipped(String),
}

/// What is done about a replica that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Remedy {
    /// Its container is started again.
    #[default]
    Restart,
    /// Another takes its place.
    Replace,
    /// It is shown, and left alone.
    Leave,
}

/// How a release's replicas are looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// Between two probes of a replica, seconds.
    pub every: u32,
    /// An answer that takes longer is slow, milliseconds.
    pub slow_ms: u32,
    /// A harmless tool that is called with each probe, without arguments.
    pub tool: Option<String>,
    /// What is done about a replica that does not answer.
    pub remedy: Remedy,
    /// Calls that are to be answered, percent of all.
    pub target: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { every: 30, slow_ms: 2000, tool: None, remedy: Remedy::Restart, target: 99.5 }
    }
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// How it did until then.
    pub from: State,
    /// When, milliseconds of the caller's clock.
    pub at: i64,
    /// From then on.
    pub state: State,
    /// Why.
    pub why: String,
}

/// One replica's health.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Course {
    state: State,
    why: String,
    fails: u32,
    poor: u32,
    good: u32,
    turns: VecDeque<i64>,
}

impl Course {
    /// How it does.
    pub fn state(&self) -> State {
        self.state
    }

    /// Why, one line; empty while all is well.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Failures in a row.
    pub fn fails(&self) -> u32 {
        self.fails
    }

    /// Takes a probe's outcome in. Answers the change of state, if it is one.
    pub fn take(&mut self, at: i64, outcome: &Outcome) -> Option<Turn> {
        let (next, why) = match outcome {
            // what is not asked stays as it was
            Outcome::Skipped(_) => return None,
            Outcome::Good => {
                (self.fails, self.poor) = (0, 0);
                self.good = self.good.saturating_add(1);
                // the first word counts at once: there is nothing to hold on to
                let well = self.good >= PASSES || self.state == State::Unknown;
                (if well { State::Healthy } else { self.state }, String::new())
            }
            Outcome::Poor(why) | Outcome::Busy(why) => {
                (self.fails, self.good) = (0, 0);
                self.poor = self.poor.saturating_add(1);
                let poor = self.poor >= PASSES || self.state == State::Unknown;
                (if poor { State::Degraded } else { self.state }, why.clone())
            }
            Outcome::Failed(why) => {
                (self.good, self.poor) = (0, 0);
                self.fails = self.fails.saturating_add(1);
                (if self.fails >= FAILS { State::Unhealthy } else { self.state }, why.clone())
            }
        };
        while self.turns.front().is_some_and(|turn| at.saturating_sub(*turn) > FLAP_WINDOW) {
            self.turns.pop_front();
        }
        let flaps = self.turns.len() >= FLAPS;
        let (next, why) = match (next, flaps) {
            // good news of one that flaps is not believed before it has been quiet for a while
            (State::Healthy, true) if self.state != State::Healthy => {
                (State::Degraded, format!("it flaps: {} changes in ten minutes", self.turns.len()))
            }
            (next, _) if next == self.state && next != State::Healthy && why.is_empty() => (next, self.why.clone()),
            (next, _) => (next, why),
        };
        if next == self.state {
            if next != State::Healthy && next != State::Unknown {
                self.why = why;
            }
            return None;
        }
        let from = std::mem::replace(&mut self.state, next);
        self.why = if next == State::Healthy { String::new() } else { why.clone() };
        if self.turns.len() > FLAPS * 4 {
            self.turns.pop_front();
        }
        self.turns.push_back(at);
        Some(Turn { from, at, state: next, why: self.why.clone() })
    }
}

/// When a remedy may be used again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    times: u32,
    last: Option<i64>,
}

impl Backoff {
    /// Whether something may be done now about a replica; if so it counts as done. `spared`: see [`Weighed::spared`].
    pub fn due(&mut self, at: i64, remedy: Remedy, course: &Course, spared: bool) -> bool {
        if remedy == Remedy::Leave || spared || course.state() != State::Unhealthy || course.fails() < FAILS {
            return false;
        }
        let since = self.last.map_or(i64::MAX, |last| at.saturating_sub(last));
        if since > CALM {
            self.times = 0;
        }
        let wait = match self.times {
            0 => 0,
            n => (BACKOFF << (n - 1).min(16)).min(BACKOFF_MAX),
        };
        if since < wait {
            return false;
        }
        self.times = self.times.saturating_add(1);
        self.last = Some(at);
        true
    }

    /// Whether it says nothing any more: the next remedy would wait as the first one did.
    pub fn is_over(&self, at: i64) -> bool {
        self.last.is_none_or(|last| at.saturating_sub(last) > CALM)
    }
}

/// Since when the calls of a replica have waited for a word from it. A call that begins anew because the one before was given
/// up is no new beginning: a server that hangs would look busy for as long as somebody tries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Silence {
    heard: u64,
    since: Option<i64>,
}

impl Silence {
    /// A look at its calls. `heard`: pieces of answers that it sent so far.
    pub fn look(&mut self, at: i64, under_way: u64, heard: u64) {
        if heard != self.heard {
            (self.heard, self.since) = (heard, None);
        }
        if under_way > 0 && self.since.is_none() {
            self.since = Some(at);
        }
    }

    /// It answered a probe.
    pub fn broken(&mut self) {
        self.since = None;
    }

    /// How long it lasts, milliseconds.
    pub fn lasts(&self, at: i64) -> i64 {
        self.since.map_or(0, |since| at.saturating_sub(since).max(0))
    }
}

/// What is known of a replica that did not answer a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Its container runs.
    pub is_up: bool,
    /// Calls under way.
    pub under_way: u64,
    /// One of them is answered by a stream, which has no time limit.
    pub streams: bool,
    /// It said something to its callers since it was asked.
    pub answers: bool,
    /// For how long its calls wait for a word from it ([`Silence`]), milliseconds.
    pub silence: i64,
    /// How long a call may take, milliseconds.
    pub limit: i64,
    /// CPU that it uses and CPU that it may use, cores; `None`: not known.
    pub cpu: Option<(f64, f64)>,
}

/// What a probe says, its replica's work considered.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighed {
    /// What counts.
    pub outcome: Outcome,
    /// Nothing is done about it now, however it does: a call is under way within its time limit. It may wait for something
    /// else, as a server does that asks a slow service and can do one thing at a time.
    pub spared: bool,
}

/// So much of its quota, or so many cores, are work.
const AT_WORK: (f64, f64) = (0.1, 0.5);
/// A call's time limit and what it may take to become known that it is over, milliseconds.
const SLACK: i64 = 5_000;
/// A stream has no time limit: so long may it be silent while its server computes, milliseconds.
const STREAM_WORKS: i64 = 1_800_000;
/// And so long while it does not.
const STREAM_WAITS: i64 = 300_000;

impl Work {
    /// Whether no answer means that it hangs. It is busy while others are answered, or while it computes for a call that is
    /// within its time limit. It hangs when nothing is under way, or when nothing came of it for longer than a call may take.
    pub fn weigh(&self, outcome: Outcome) -> Weighed {
        let Outcome::Failed(why) = outcome else { return Weighed { outcome, spared: false } };
        let hangs = |why: String| Weighed { outcome: Outcome::Failed(why), spared: false };
        if !self.is_up {
            return hangs(why);
        }
        if self.answers {
            return Weighed { outcome: Outcome::Busy(format!("busy, its callers are answered; {why}")), spared: false };
        }
        if self.under_way == 0 {
            return hangs(why);
        }
        let works = self.cpu.filter(|(used, quota)| *used >= AT_WORK.1.min(quota * AT_WORK.0));
        let patience = match (self.streams, works.is_some()) {
            (false, _) => self.limit,
            (true, true) => self.limit.max(STREAM_WORKS),
            (true, false) => self.limit.max(STREAM_WAITS),
        };
        if self.silence > patience.saturating_add(SLACK) {
            return hangs(why);
        }
        let calls = if self.under_way == 1 { "a call".to_owned() } else { format!("{} calls", self.under_way) };
        match works {
            Some((used, _)) => {
                let outcome = Outcome::Busy(format!("busy with {calls}, using {used:.2} cores; {why}"));
                Weighed { outcome, spared: false }
            }
            None => Weighed { outcome: Outcome::Failed(format!("{why}, with {calls} under way")), spared: true },
        }
    }
}

/// A deployment's health from that of its replicas: as good as what serves its callers.
pub fn together(replicas: &[State]) -> State {
    let count = |state: State| replicas.iter().filter(|s| **s == state).count();
    let (bad, known) = (count(State::Unhealthy), replicas.len() - count(State::Unknown));
    match (known, bad) {
        (0, _) => State::Unknown,
        (known, bad) if bad == known => State::Unhealthy,
        (_, 0) if count(State::Degraded) == 0 => State::Healthy,
        _ => State::Degraded,
    }
}

/// Calls of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Calls {
    /// All.
    pub all: u64,
    /// Those that failed.
    pub failed: u64,
}

impl Calls {
    /// Of both.
    pub fn plus(self, other: Self) -> Self {
        Self { all: self.all.saturating_add(other.all), failed: self.failed.saturating_add(other.failed) }
    }

    /// Those that were answered, percent; `None`: nobody called.
    pub fn available(self) -> Option<f64> {
        (self.all > 0).then(|| (self.all - self.failed.min(self.all)) as f64 / self.all as f64 * 100.0)
    }

    /// What is left of the failures that a target (percent) allows, percent of them; below 0: more failed than that.
    pub fn budget_left(self, target: f64) -> Option<f64> {
        let allowed = self.all as f64 * (100.0 - target) / 100.0;
        match (self.all, allowed > 0.0) {
            (0, _) => None,
            (_, true) => Some((1.0 - self.failed as f64 / allowed) * 100.0),
            (_, false) => Some(if self.failed == 0 { 100.0 } else { -100.0 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn failed() -> Outcome {
        Outcome::Failed("no answer within 5 s".into())
    }

    fn poor() -> Outcome {
        Outcome::Poor("slow: 3.1 s".into())
    }

    fn states(outcomes: &[Outcome]) -> Vec<State> {
        let mut course = Course::default();
        let each = |(i, outcome): (usize, &Outcome)| {
            course.take(i as i64 * 30_000, outcome);
            course.state()
        };
        outcomes.iter().enumerate().map(each).collect()
    }

    #[test]
    fn one_bad_probe_changes_nothing_three_do() {
        use State::{Healthy, Unhealthy, Unknown};
        let good = || Outcome::Good;
        assert_eq!(
            states(&[good(), failed(), failed(), good(), failed(), failed(), failed(), good(), good()]),
            [Healthy, Healthy, Healthy, Healthy, Healthy, Healthy, Unhealthy, Unhealthy, Healthy]
        );
        assert_eq!(states(&[failed(), failed(), failed()]), [Unknown, Unknown, Unhealthy]);
        let skipped = Outcome::Skipped("it sleeps".into());
        assert_eq!(states(&[good(), skipped.clone(), failed(), skipped, failed(), failed()])[5], Unhealthy);
    }

    #[test]
    fn slow_answers_degrade_and_the_reason_is_kept() {
        let mut course = Course::default();
        course.take(0, &Outcome::Good);
        assert_eq!(course.take(1, &poor()), None);
        let turn = course.take(2, &poor()).unwrap();
        assert_eq!((turn.state, turn.why.as_str()), (State::Degraded, "slow: 3.1 s"));
        assert_eq!(course.take(3, &Outcome::Good), None);
        assert_eq!((course.state(), course.why()), (State::Degraded, "slow: 3.1 s"));
        assert_eq!(course.take(4, &Outcome::Good).unwrap().state, State::Healthy);
        assert_eq!(course.why(), "");
    }

    #[test]
    fn what_flaps_is_degraded_until_it_has_been_quiet() {
        let mut course = Course::default();
        let mut at = 0;
        let mut feed = |course: &mut Course, outcome: &Outcome, times: u32| {
            for _ in 0..times {
                at += 10_000;
                course.take(at, outcome);
            }
            at
        };
        for _ in 0..3 {
            feed(&mut course, &Outcome::Good, 2);
            feed(&mut course, &failed(), 3);
        }
        feed(&mut course, &Outcome::Good, 2);
        assert_eq!(course.state(), State::Degraded);
        assert!(course.why().starts_with("it flaps"), "{}", course.why());
        feed(&mut course, &Outcome::Good, 70);
        assert_eq!(course.state(), State::Healthy, "{}", course.why());
    }

    #[test]
    fn restarts_wait_longer_each_time() {
        let mut course = Course::default();
        (0..3).for_each(|at| drop(course.take(at, &failed())));
        let mut backoff = Backoff::default();
        let mut due = |at: i64| backoff.due(at, Remedy::Restart, &course, false);
        assert_eq!([due(0), due(29_999), due(30_000), due(89_999), due(90_000)], [true, false, true, false, true]);
        assert!(due(90_000 + 2 * CALM), "an hour of peace forgives");
        assert!(due(90_000 + 2 * CALM + 30_000));
        assert!(!Backoff::default().due(0, Remedy::Leave, &course, false));
        (3..60).for_each(|at| drop(course.take(at, &failed())));
        assert!(!Backoff::default().due(0, Remedy::Replace, &course, true), "it may just wait for something");
        let mut backoff = Backoff::default();
        assert!(backoff.is_over(0) && backoff.due(0, Remedy::Replace, &course, false));
        assert!(!backoff.is_over(CALM) && backoff.is_over(CALM + 1));
    }

    /// A replica with one call under way that began 20 s ago.
    const AT_IT: Work = Work {
        is_up: true,
        under_way: 1,
        streams: false,
        answers: false,
        silence: 20_000,
        limit: 30_000,
        cpu: Some((0.2, 0.25)),
    };

    /// Busy, hangs and is dealt with, or looks so and is spared.
    fn word(work: Work) -> &'static str {
        match work.weigh(failed()) {
            Weighed { outcome: Outcome::Busy(_), spared: false } => "busy",
            Weighed { outcome: Outcome::Failed(_), spared: false } => "hangs",
            Weighed { outcome: Outcome::Failed(_), spared: true } => "spared",
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_at_work_is_busy_and_one_that_hangs_is_not() {
        assert_eq!(word(AT_IT), "busy");
        assert_eq!(word(Work { under_way: 0, ..AT_IT }), "hangs", "nobody waits, and it does not answer");
        assert_eq!(word(Work { silence: 36_000, ..AT_IT }), "hangs", "its calls take longer than they may");
        assert_eq!(word(Work { silence: 36_000, answers: true, ..AT_IT }), "busy", "others are answered");
        assert_eq!(word(Work { under_way: 0, answers: true, ..AT_IT }), "busy", "one was, just now");
        assert_eq!(word(Work { is_up: false, answers: true, ..AT_IT }), "hangs", "its container has ended");
        // waiting for something else, for as long as a call may
        assert_eq!(word(Work { cpu: Some((0.001, 0.25)), ..AT_IT }), "spared");
        assert_eq!(word(Work { cpu: None, ..AT_IT }), "spared", "what it uses is not known");
        assert_eq!(word(Work { cpu: None, silence: 36_000, ..AT_IT }), "hangs");
        // half a core is work, of however many
        assert_eq!(word(Work { cpu: Some((0.9, 16.0)), ..AT_IT }), "busy");
        assert_eq!(word(Work { cpu: Some((0.3, 16.0)), ..AT_IT }), "spared");
        // minutes of computing behind a stream
        let stream = Work { streams: true, silence: 600_000, ..AT_IT };
        assert_eq!((word(stream), word(Work { cpu: None, ..stream })), ("busy", "hangs"));
        assert_eq!(word(Work { silence: 1_806_000, ..stream }), "hangs");
        assert_eq!(word(Work { silence: 200_000, cpu: None, ..stream }), "spared");
        let good = Weighed { outcome: Outcome::Good, spared: false };
        assert_eq!(AT_IT.weigh(Outcome::Good), good);
        let why = |work: Work| match work.weigh(failed()).outcome {
            Outcome::Busy(why) | Outcome::Failed(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(why(AT_IT), "busy with a call, using 0.20 cores; no answer within 5 s");
        assert_eq!(why(Work { under_way: 3, cpu: None, ..AT_IT }), "no answer within 5 s, with 3 calls under way");
        assert_eq!(why(Work { answers: true, ..AT_IT }), "busy, its callers are answered; no answer within 5 s");
    }

    #[test]
    fn who_tries_again_does_not_make_a_hanging_server_busy() {
        let mut silence = Silence::default();
        // a call each 31 s, given up after 30 s, and nothing was ever said
        for at in 0..200_i64 {
            silence.look(at * 1000, u64::from(at % 31 != 30), 7);
        }
        assert_eq!(silence.lasts(200_000), 200_000);
        silence.look(200_000, 1, 8);
        assert_eq!(silence.lasts(201_000), 1000, "a word begins it anew");
        silence.look(202_000, 0, 9);
        assert_eq!(silence.lasts(300_000), 0, "nobody waits");
        silence.look(300_000, 1, 9);
        silence.broken();
        assert_eq!(silence.lasts(400_000), 0, "a probe was answered");
    }

    #[test]
    fn a_busy_one_is_degraded_and_never_dealt_with() {
        let busy = AT_IT.weigh(failed()).outcome;
        let (mut course, mut backoff) = (Course::default(), Backoff::default());
        course.take(0, &Outcome::Good);
        for at in 1..100 {
            course.take(at * 30_000, &busy);
            assert!(!backoff.due(at * 30_000, Remedy::Restart, &course, false));
        }
        assert_eq!((course.state(), course.fails()), (State::Degraded, 0));
        assert!(course.why().starts_with("busy with a call"), "{}", course.why());
        // it has nothing to do any more, and still does not answer
        let dealt: Vec<bool> = (100..103)
            .map(|at| {
                course.take(at * 30_000, &failed());
                backoff.due(at * 30_000, Remedy::Restart, &course, false)
            })
            .collect();
        assert_eq!(dealt, [false, false, true]);
    }

    #[test]
    fn a_deployment_is_as_healthy_as_what_serves_it() {
        use State::{Degraded, Healthy, Unhealthy, Unknown};
        assert_eq!(together(&[]), Unknown);
        assert_eq!(together(&[Unknown]), Unknown);
        assert_eq!(together(&[Healthy, Unknown]), Healthy);
        assert_eq!(together(&[Healthy, Unhealthy]), Degraded);
        assert_eq!(together(&[Healthy, Degraded]), Degraded);
        assert_eq!(together(&[Unhealthy, Unknown]), Unhealthy);
    }

    #[test]
    fn availability_and_what_is_left_of_it() {
        let calls = Calls { all: 10_000, failed: 5 };
        assert_eq!(calls.available(), Some(99.95));
        assert!((calls.budget_left(99.9).unwrap() - 50.0).abs() < 1e-6);
        assert!(Calls { all: 1000, failed: 3 }.budget_left(99.9).unwrap() < 0.0);
        assert_eq!((Calls::default().available(), Calls::default().budget_left(99.9)), (None, None));
        assert_eq!(Calls { all: 5, failed: 0 }.budget_left(100.0), Some(100.0));
    }

    proptest! {
        #[test]
        fn turns_are_changes_and_need_their_probes(outcomes in prop::collection::vec(0_u8..5, 1..200)) {
            let mut course = Course::default();
            let mut before = State::Unknown;
            let (mut row, mut last) = (0, 9);
            for (i, outcome) in outcomes.iter().enumerate() {
                // a busy one counts like a slow one
                let class = if *outcome == 4 { 1 } else { *outcome };
                if class != 3 {
                    row = if class == last { row + 1 } else { 1 };
                    last = class;
                }
                let outcome = match outcome {
                    0 => Outcome::Good,
                    1 => poor(),
                    2 => failed(),
                    3 => Outcome::Skipped(String::new()),
                    _ => Outcome::Busy("busy".into()),
                };
                let turn = course.take(i as i64 * 5000, &outcome);
                prop_assert_eq!(turn.is_some(), course.state() != before);
                if let Some(turn) = turn {
                    let least = if before == State::Unknown && turn.state != State::Unhealthy { 1 } else { PASSES };
                    prop_assert!(row >= least || matches!(outcome, Outcome::Failed(_)), "{:?}", turn);
                    prop_assert!(turn.state != State::Unhealthy || course.fails() >= FAILS);
                }
                before = course.state();
            }
        }
    }
}
