//! What is remembered of waking a deployment before its calls come: when they are expected, whether somebody came the last
//! time, and how often nobody did today. What is expected `sigil_core::sleep::ahead` says; reconcile wakes.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_core::scale::{Depth, Policy};
use sigil_core::sleep::ahead::Ahead;

/// A day's wakes for nothing; then it is left asleep until the next day.
pub(super) const VAIN_MOST: u32 = 3;
/// What was learnt is worked out anew after this, seconds.
const REFRESH: i64 = 3600;
/// A start that was not measured yet takes so long.
const START: Duration = Duration::from_secs(10);
/// Starts take longer now and then: so many times what the last one took, and so many seconds.
const MARGIN: (f64, f64) = (1.5, 5.0);
/// A wake that is later than this, seconds, is none.
const LATE: i64 = 60;
/// Frozen before it is stopped where the policy leaves the depth open, minutes at least.
const FROZEN: i64 = 10;

/// How a deployment sleeps, as reconcile knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sleeping {
    /// It sleeps.
    pub asleep: bool,
    /// With its containers ended.
    pub stopped: bool,
    /// What its last start from there took until it could be called.
    pub start: Option<Duration>,
}

/// See the module. Times are seconds since 1970.
#[derive(Clone, Debug, Default)]
pub(super) struct Early {
    /// Why calls are expected, or are not; `None`: not worked out yet.
    learnt: Option<Result<String, String>>,
    read: Option<i64>,
    expected: VecDeque<i64>,
    pending: Option<Pending>,
    day: i64,
    woken: u32,
    vain: u32,
}

/// A wake of which is not known yet whether somebody comes.
#[derive(Clone, Copy, Debug)]
struct Pending {
    until: i64,
    calls: u64,
}

/// What of a day's wakes a new agent goes on with: it does not begin the day anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Woken {
    day: i64,
    woken: u32,
    vain: u32,
}

/// Whether a policy leaves anything to wake ahead, and its minutes of quiet before a sleep and of staying awake. An error says
/// why not.
pub(super) fn minutes(policy: &Policy) -> Option<Result<(i64, i64), &'static str>> {
    if !policy.predictive || policy.min > 0 || policy.idle_timeout == 0 {
        return None;
    }
    let idle = i64::from(policy.idle_timeout);
    Some(match policy.sleep {
        Depth::Paused => Err("it is frozen only, and back within milliseconds"),
        Depth::Stopped => Ok(((idle / 60).max(1), idle / 60)),
        Depth::Auto => Ok((idle / 60 + FROZEN, idle / 60)),
    })
}

fn lead(start: Option<Duration>) -> i64 {
    // seconds of a start
    (start.unwrap_or(START).as_secs_f64() * MARGIN.0 + MARGIN.1).ceil() as i64
}

impl Early {
    /// Goes on where a former agent was. A wake that it was not sure of counts as one for nothing.
    pub(super) fn resumed(woken: Woken) -> Self {
        let Woken { day, woken, vain } = woken;
        Self { day, woken, vain, ..Self::default() }
    }

    /// The day's wakes, if there were any. One that nobody has come for yet is one for nothing until somebody does.
    pub(super) fn woken(&self) -> Option<Woken> {
        let vain = self.vain + u32::from(self.pending.is_some());
        (self.woken > 0).then_some(Woken { day: self.day, woken: self.woken, vain })
    }

    /// Whether its history is to be read.
    pub(super) fn is_stale(&self, now: i64) -> bool {
        self.read.is_none_or(|at| !(at..at + REFRESH).contains(&now))
    }

    /// Takes in what its history says.
    pub(super) fn learn(&mut self, now: i64, ahead: Result<Ahead, String>) {
        self.read = Some(now);
        self.expected.clear();
        self.learnt = Some(ahead.map(|ahead| {
            self.expected.extend(ahead.minutes.iter().map(|minute| minute * 60));
            ahead.why
        }));
    }

    /// Whether [`Self::look`] has something to do.
    pub(super) fn is_due(&self, now: i64, start: Option<Duration>) -> bool {
        self.pending.is_some_and(|pending| pending.until <= now)
            || self.expected.front().is_some_and(|at| at - lead(start) <= now)
    }

    /// Whether it is to be woken now, and the words for it. `calls`: how many there were so far; `idle`: seconds for which it
    /// is awake when nobody comes.
    pub(super) fn look(&mut self, now: i64, sleeping: Sleeping, calls: u64, idle: i64) -> Option<String> {
        let day = now.div_euclid(86_400);
        if self.day != day {
            (self.day, self.woken, self.vain) = (day, 0, 0);
        }
        if let Some(pending) = self.pending.filter(|pending| pending.until <= now) {
            self.pending = None;
            self.vain += u32::from(pending.calls == calls);
        }
        let mut wake = None;
        while let Some(at) = self.expected.front().copied().filter(|at| at - lead(sleeping.start) <= now) {
            self.expected.pop_front();
            if now < at + LATE && sleeping.stopped && self.vain < VAIN_MOST && self.pending.is_none() {
                wake = Some(at);
            }
        }
        let at = wake?;
        self.woken += 1;
        self.pending = Some(Pending { until: at + idle.max(LATE), calls });
        let why = self.learnt.as_ref().and_then(|learnt| learnt.as_ref().ok()).map_or("", String::as_str);
        Some(format!("calls are expected at {} ({why})", clock(at)))
    }

    /// One line about it.
    pub(super) fn note(&self) -> String {
        let mut text = match &self.learnt {
            None => return "waking ahead of calls: worked out once it sleeps".into(),
            Some(Err(why)) => format!("waking ahead of calls is off: {why}"),
            Some(Ok(why)) => match self.expected.front() {
                Some(next) => format!("waking ahead of calls is on ({why}); the next are expected at {}", clock(*next)),
                None => format!("waking ahead of calls is on ({why}); none are expected within a day"),
            },
        };
        if self.woken > 0 {
            text.push_str(&format!("; woken {} today, {} for nothing", times(self.woken), times(self.vain)));
        }
        if self.vain >= VAIN_MOST {
            text.push_str(", and left asleep until tomorrow");
        }
        text
    }
}

fn times(n: u32) -> String {
    if n == 1 { "once".to_owned() } else { format!("{n} times") }
}

fn clock(at: i64) -> String {
    Timestamp::from_second(at).map_or_else(|_| String::new(), |at| at.strftime("%H:%M UTC").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Midnight.
    const DAY: i64 = 20_000 * 86_400;
    const ASLEEP: Sleeping = Sleeping { asleep: true, stopped: true, start: Some(Duration::from_secs(2)) };

    fn expecting(minutes: &[i64]) -> Early {
        let mut early = Early::default();
        let minutes = minutes.iter().map(|minute| DAY / 60 + minute).collect();
        early.learn(DAY, Ok(Ahead { minutes, why: "a habit".into() }));
        early
    }

    #[test]
    fn a_new_agent_goes_on_with_the_day() {
        let mut early = Early { day: 5, woken: 2, vain: 1, ..Early::default() };
        assert_eq!(Early::resumed(early.woken().unwrap()).woken(), early.woken());
        early.pending = Some(Pending { until: 5 * 86_400 + 9, calls: 0 });
        let mut next = Early::resumed(early.woken().unwrap());
        assert_eq!((next.woken, next.vain), (2, 2), "nobody will know whether somebody came");
        next.look(6 * 86_400, Sleeping::default(), 0, 60);
        assert_eq!((next.woken, next.vain, next.woken()), (0, 0, None), "a new day");
    }

    #[test]
    fn it_is_woken_as_long_before_as_its_start_takes() {
        let mut early = expecting(&[540]);
        let nine = DAY + 540 * 60;
        assert!(early.note().ends_with("the next are expected at 09:00 UTC"), "{}", early.note());
        assert!(!early.is_due(nine - 9, ASLEEP.start));
        assert_eq!(early.look(nine - 9, ASLEEP, 7, 300), None);
        assert!(early.is_due(nine - 8, ASLEEP.start));
        let why = early.look(nine - 8, ASLEEP, 7, 300).unwrap();
        assert_eq!(why, "calls are expected at 09:00 UTC (a habit)");
        assert_eq!(early.look(nine - 7, ASLEEP, 7, 300), None, "once");
        // somebody came
        early.look(nine + 300, Sleeping::default(), 8, 300);
        assert!(early.note().ends_with("; woken once today, 0 times for nothing"), "{}", early.note());
        // one that is awake, or only frozen, or that it is too late for, needs nothing
        for (sleeping, now) in
            [(Sleeping::default(), nine - 5), (Sleeping { stopped: false, ..ASLEEP }, nine - 5), (ASLEEP, nine + 60)]
        {
            let mut early = expecting(&[540]);
            assert_eq!((early.look(now, sleeping, 0, 300), early.expected.len()), (None, 0));
        }
        // a start that was not measured takes a while
        let unknown = Sleeping { start: None, ..ASLEEP };
        assert!(expecting(&[540]).look(nine - 20, unknown, 0, 300).is_some());
    }

    #[test]
    fn wakes_for_nothing_end_for_the_day() {
        let hours: Vec<i64> = (1..10).map(|hour| hour * 60).collect();
        let mut early = expecting(&hours);
        let mut woken = 0;
        for second in 0..36_000 {
            woken += u32::from(early.look(DAY + second, ASLEEP, 7, 300).is_some());
        }
        assert_eq!((woken, early.vain), (VAIN_MOST, VAIN_MOST));
        assert!(early.note().contains("woken 3 times today, 3 times for nothing, and left asleep until"));
        early.learn(DAY + 90_000, Ok(Ahead { minutes: vec![(DAY + 93_600) / 60], why: String::new() }));
        assert!(early.look(DAY + 93_600, ASLEEP, 7, 300).is_some(), "another day");
    }

    #[test]
    fn what_is_known_is_known_for_an_hour() {
        let mut early = Early::default();
        assert!(early.is_stale(DAY) && early.note().contains("worked out once it sleeps"));
        early.learn(DAY, Err("no habit".into()));
        assert!(!early.is_stale(DAY + 3599) && early.is_stale(DAY + 3600));
        assert!(early.is_stale(DAY - 1), "the clock was set back");
        assert_eq!(early.note(), "waking ahead of calls is off: no habit");
    }

    #[test]
    fn the_policy_says_whether_and_how() {
        let of = |text: &str| minutes(&Policy::read("p", text, None).unwrap());
        assert_eq!(of("{min: 0, idleTimeout: 300}"), None, "only where it is asked for");
        assert_eq!(of("{min: 1, predictive: true}"), None, "what never sleeps");
        assert_eq!(of("{min: 0, idleTimeout: 300, predictive: true}"), Some(Ok((15, 5))));
        assert_eq!(of("{min: 0, idleTimeout: 300, predictive: true, sleep: stopped}"), Some(Ok((5, 5))));
        assert!(of("{min: 0, idleTimeout: 300, predictive: true, sleep: paused}").unwrap().is_err());
    }
}
