//! Whether the calls that find a deployment asleep come at times that its own history foretells, and when the next are due.
//!
//! Two kinds of habit are looked for: a time of day (on each day, or on working days and weekends apart), and a beat (each
//! half an hour). Each has to prove itself: it is replayed over the days that are known, knowing at each moment only what was
//! before, and is believed only where [`PRECISION`] of the times that it would have woken the deployment somebody came before
//! it was asleep again, and it would have spared [`RECALL`] of the calls the wait. Days are those of UTC; the two days of a
//! year on which a person's clock changes are missed.

use std::collections::{BTreeMap, BTreeSet};

/// Minutes of a day.
const DAY: i64 = 1440;
/// Days that say something of the next one.
const DAYS: i64 = 7;
/// Days on which a habit has to prove itself, the newest ones: a weekend is always among them.
const TRIED: i64 = 7;
/// Of the days before, so many had a call at a time that is expected.
const USUAL: f64 = 0.6;
/// Of the wakes of a replay, so many were followed by a call.
pub const PRECISION: f64 = 0.7;
/// Of the calls that found it asleep, so many would have been spared the wait.
pub const RECALL: f64 = 0.2;
/// A beat is looked for in so many of the last gaps between calls.
const GAPS: usize = 8;
/// And is one from so many on.
const GAPS_LEAST: usize = 3;
/// Longer gaps than this, minutes, are a matter of the time of day.
const BEAT_MOST: i64 = DAY / 2;
/// A beat is replayed over so many of the last calls.
const BEATS: usize = 24;

/// What is foretold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// When calls are expected, minutes since 1970, from now on, within a day, oldest first.
    pub minutes: Vec<i64>,
    /// What it follows and how that did on the days that are known, one line.
    pub why: String,
}

/// How a habit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Score {
    hits: u32,
    vain: u32,
    calls: u32,
    spared: u32,
}

impl Score {
    fn precision(self) -> f64 {
        f64::from(self.hits) / f64::from((self.hits + self.vain).max(1))
    }

    fn holds(self) -> bool {
        let recall = f64::from(self.spared) / f64::from(self.calls.max(1));
        self.hits > 0 && self.precision() >= PRECISION && recall >= RECALL
    }

    fn words(self) -> String {
        format!(
            "replayed, {} of {} wakes were followed by a call, and {} of {} calls found it awake",
            self.hits,
            self.hits + self.vain,
            self.spared,
            self.calls
        )
    }
}

/// Which days are like each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alike {
    All,
    Week,
}

impl Alike {
    fn same(self, a: i64, b: i64) -> bool {
        match self {
            Self::All => true,
            Self::Week => weekend(a) == weekend(b),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::All => "the same time of day",
            Self::Week => "the same time of day, working days and weekends apart",
        }
    }
}

/// Day 0 was a Thursday.
fn weekend(day: i64) -> bool {
    (day + 3).rem_euclid(7) >= 5
}

/// Minutes in which a call came after `quiet` minutes without any.
fn arrivals(minutes: &BTreeSet<i64>, quiet: i64) -> Vec<i64> {
    let mut before = None;
    let mut found = Vec::new();
    for minute in minutes {
        if before.is_none_or(|before| minute - before > quiet) {
            found.push(*minute);
        }
        before = Some(*minute);
    }
    found
}

/// When calls are expected that would find a deployment asleep. `called`: minutes since 1970 in which somebody called, of the
/// last eight days; `quiet`: so many minutes without a call let it sleep; `stays`: so many minutes it is awake after a wake
/// when nobody comes; `now`: this minute.
///
/// # Errors
/// Why nothing can be foretold, in words.
pub fn expect(called: &BTreeSet<i64>, quiet: i64, stays: i64, now: i64) -> Result<Ahead, String> {
    if stays < 1 {
        return Err(
            "it is awake for less than a minute when nobody comes, and calls cannot be foretold so exactly".into()
        );
    }
    let arrivals: Vec<i64> = arrivals(called, quiet).into_iter().filter(|minute| *minute <= now).collect();
    let Some(first) = arrivals.first().map(|minute| minute.div_euclid(DAY)) else {
        return Err("no call of the last days is known that found it asleep".into());
    };
    let mut days: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for minute in &arrivals {
        days.entry(minute.div_euclid(DAY)).or_default().push(minute.rem_euclid(DAY));
    }
    let today = now.div_euclid(DAY);
    let tried = |alike: Alike| {
        let mut score = Score::default();
        for day in (first + 1).max(today - TRIED + 1)..=today {
            let until = if day == today { now.rem_euclid(DAY) } else { DAY };
            let real = days.get(&day).map_or(&[][..], Vec::as_slice);
            let due: Vec<i64> = usual(&days, first, alike, day, stays);
            for at in &due {
                if real.iter().any(|call| (at - stays + 1..*at).contains(call)) {
                    // somebody came a little before: it is awake, and nothing is done for it
                } else if real.iter().any(|call| (*at..at + stays).contains(call)) {
                    score.hits += 1;
                } else if at + stays <= until {
                    score.vain += 1;
                }
            }
            score.calls += real.len() as u32;
            score.spared +=
                real.iter().filter(|call| due.iter().any(|at| (*at..at + stays).contains(call))).count() as u32;
        }
        score
    };
    let daily = [Alike::All, Alike::Week].map(|alike| (tried(alike), alike));
    // the plainer one, unless the other did better
    let gain = |score: Score| i64::from(score.hits) - i64::from(score.vain);
    let (score, alike) = if gain(daily[1].0) > gain(daily[0].0) { daily[1] } else { daily[0] };
    let (beat, due) = beats(&arrivals, stays);
    let (mut minutes, mut why) = (BTreeSet::new(), Vec::new());
    if score.holds() {
        for day in [today, today + 1] {
            minutes.extend(usual(&days, first, alike, day, stays).into_iter().map(|at| day * DAY + at));
        }
        why.push(format!("{}: {}", alike.words(), score.words()));
    }
    if beat.holds() {
        minutes.extend(due);
        why.push(format!("a beat: {}", beat.words()));
    }
    if why.is_empty() {
        let (best, words) =
            if beat.precision() > score.precision() { (beat, "a beat") } else { (score, alike.words()) };
        return Err(match best.hits + best.vain {
            0 => "its calls have not shown a habit yet: nothing repeats itself in what is known of them".to_owned(),
            _ => format!(
                "no habit holds: of {words}, {}; it takes {:.0} % and {:.0} %",
                best.words(),
                PRECISION * 100.0,
                RECALL * 100.0
            ),
        });
    }
    let mut coming: Vec<i64> = Vec::new();
    for minute in minutes.range(now..now + DAY) {
        // one wake is for all that come while it lasts
        if coming.last().is_none_or(|last| minute - last >= stays) {
            coming.push(*minute);
        }
    }
    Ok(Ahead { minutes: coming, why: why.join("; and ") })
}

/// Minutes of a day at which calls are usual, from the days before it.
fn usual(days: &BTreeMap<i64, Vec<i64>>, first: i64, alike: Alike, day: i64, stays: i64) -> Vec<i64> {
    let before: Vec<i64> = ((day - DAYS).max(first)..day).filter(|other| alike.same(*other, day)).collect();
    if before.is_empty() {
        return Vec::new();
    }
    // of few days whole numbers, far below 2^53
    let least = ((before.len() as f64 * USUAL).ceil() as usize).max(1);
    let mut calls: Vec<(i64, i64)> =
        before.iter().flat_map(|day| days.get(day).into_iter().flatten().map(|minute| (*minute, *day))).collect();
    calls.sort_unstable();
    let (mut usual, mut at) = (Vec::new(), 0);
    while let Some((minute, _)) = calls.get(at) {
        let near = &calls[at..at + calls[at..].partition_point(|(other, _)| *other < minute + stays)];
        let on: BTreeSet<i64> = near.iter().map(|(_, day)| *day).collect();
        if on.len() >= least {
            usual.push(*minute);
            at += near.len();
        } else {
            at += 1;
        }
    }
    usual
}

/// How a beat did on the last calls, and when the next call is due by it.
fn beats(arrivals: &[i64], stays: i64) -> (Score, Option<i64>) {
    let due = |upto: usize| {
        let from = upto.saturating_sub(GAPS);
        let mut gaps: Vec<i64> = arrivals.get(from..=upto)?.windows(2).map(|pair| pair[1] - pair[0]).collect();
        if gaps.len() < GAPS_LEAST {
            return None;
        }
        gaps.sort_unstable();
        // as soon as it may well be: a gap that is much shorter than usual was another matter
        let median = gaps[gaps.len() / 2];
        if median > BEAT_MOST {
            return None;
        }
        let soonest = gaps.iter().find(|gap| **gap * 5 >= median * 4).copied().unwrap_or(median);
        Some(arrivals[upto] + soonest)
    };
    let mut score = Score::default();
    for (next, call) in arrivals.iter().enumerate().skip(arrivals.len().saturating_sub(BEATS)) {
        let Some(due) = next.checked_sub(1).and_then(due) else { continue };
        score.calls += 1;
        match *call {
            // it came before it was expected: nothing was done for it
            call if call < due => {}
            call if call < due + stays => {
                score.hits += 1;
                score.spared += 1;
            }
            _ => score.vain += 1,
        }
    }
    (score, arrivals.len().checked_sub(1).and_then(due))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A Monday.
    const MONDAY: i64 = 20_000 - 20_000 % 7 + 4;

    fn at(day: i64, hour: i64, minute: i64) -> i64 {
        (MONDAY + day) * DAY + hour * 60 + minute
    }

    #[test]
    fn a_call_each_morning_is_expected_on_the_third_day() {
        assert!(!weekend(MONDAY) && weekend(MONDAY + 5) && weekend(MONDAY + 6) && !weekend(MONDAY + 7));
        let called = BTreeSet::from([at(0, 9, 0), at(0, 9, 1), at(1, 9, 3)]);
        let ahead = expect(&called, 15, 15, at(2, 7, 0)).unwrap();
        assert_eq!(ahead.minutes, [at(2, 9, 0)]);
        assert_eq!(
            ahead.why,
            "the same time of day: replayed, 1 of 1 wakes were followed by a call, and 1 of 1 calls found it awake"
        );
        // one day alone says nothing
        let one = BTreeSet::from([at(0, 9, 0)]);
        assert!(expect(&one, 15, 15, at(1, 7, 0)).unwrap_err().contains("have not shown a habit"));
        assert!(expect(&BTreeSet::new(), 15, 15, at(1, 7, 0)).unwrap_err().starts_with("no call"));
        assert!(expect(&called, 15, 0, at(2, 7, 0)).unwrap_err().contains("less than a minute"));
    }

    #[test]
    fn a_weekend_is_no_working_day() {
        let called: BTreeSet<i64> = (0..5).chain(7..10).map(|day| at(day, 9, day % 4)).collect();
        let thursday = expect(&called, 15, 15, at(10, 8, 0)).unwrap();
        assert_eq!(thursday.minutes, [at(10, 9, 0)], "{}", thursday.why);
        let called: BTreeSet<i64> = (3..5).chain(7..12).map(|day| at(day, 9, day % 4)).collect();
        let saturday = expect(&called, 15, 15, at(12, 0, 0)).unwrap();
        assert_eq!(saturday.minutes, [0_i64; 0], "{}", saturday.why);
        let sunday = expect(&called, 15, 15, at(13, 10, 0)).unwrap();
        assert_eq!(sunday.minutes, [at(14, 9, 0)], "{}", sunday.why);
    }

    #[test]
    fn a_beat_is_followed() {
        let called: BTreeSet<i64> = (0..12).map(|n| at(0, 8, 0) + n * 30 + n % 2).collect();
        let last = *called.last().unwrap();
        let ahead = expect(&called, 10, 5, last + 1).unwrap();
        assert_eq!(ahead.minutes, [last + 29], "{}", ahead.why);
        assert!(ahead.why.starts_with("a beat"), "{}", ahead.why);
    }

    #[test]
    fn what_has_no_habit_is_left_asleep_and_says_so() {
        let mut state = 11_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            i64::try_from((state >> 33) % 1440).unwrap()
        };
        let mut wrong = 0;
        for _ in 0..50 {
            let called: BTreeSet<i64> =
                (0..6).flat_map(|day| [next(), next(), next()].map(|m| at(day, 0, m))).collect();
            if let Ok(ahead) = expect(&called, 10, 10, at(6, 0, 0)) {
                wrong += ahead.minutes.len();
            }
        }
        assert!(wrong <= 2, "{wrong} of 50 days");
        // three busy days, and then another life
        let mut called: BTreeSet<i64> = (0..3).map(|day| at(day, 9, 0)).collect();
        called.extend([at(3, 17, 0), at(4, 2, 0), at(5, 22, 0)]);
        let why = expect(&called, 15, 15, at(6, 0, 0)).unwrap_err();
        assert!(why.starts_with("no habit holds"), "{why}");
        assert!(why.ends_with("it takes 70 % and 20 %"), "{why}");
    }

    proptest! {
        /// Whatever happened: what is expected is to come, in order, no two for one wake; and it is no more than once a wake.
        #[test]
        fn what_is_expected_is_to_come(
            called in prop::collection::btree_set(0_i64..8 * DAY, 0..200), quiet in 1_i64..120, stays in 1_i64..120,
            now in 0_i64..9 * DAY,
        ) {
            if let Ok(ahead) = expect(&called, quiet, stays, now) {
                prop_assert!(ahead.minutes.iter().all(|minute| (now..now + DAY).contains(minute)));
                prop_assert!(ahead.minutes.windows(2).all(|pair| pair[1] - pair[0] >= stays));
                prop_assert!(ahead.minutes.len() as i64 <= DAY / stays + 1);
            }
        }

        /// A habit of each day is found, however it wanders within the time that the deployment stays awake.
        #[test]
        fn a_habit_is_found(minute in 0_i64..DAY - 20, wanders in prop::collection::vec(0_i64..10, 3..8)) {
            let called: BTreeSet<i64> =
                wanders.iter().enumerate().map(|(day, by)| at(day as i64, 0, minute + by)).collect();
            let next = wanders.len() as i64;
            let least = wanders.iter().min().copied().unwrap_or_default();
            // one of them may come before those that were known until then
            if let Ok(ahead) = expect(&called, 30, 30, at(next, 0, 0)) {
                prop_assert!(ahead.minutes.contains(&at(next, 0, minute + least)), "{:?}", ahead);
            } else {
                prop_assert!(wanders.len() < 6 || wanders.windows(2).any(|w| w[1] < w[0]));
            }
        }
    }
}
