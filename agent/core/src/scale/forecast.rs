//! The next hour's need from the last seven days, and whether it would have been worth something.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Policy;
use super::simulate::{Point, Replay, Server, Simulated, simulate};

/// Length of one bucket of a history, seconds.
pub const BUCKET_SECONDS: i64 = 300;
/// Buckets of a day.
const DAY: i64 = 86_400 / BUCKET_SECONDS;
/// Buckets kept: seven days to look back from each moment of the last one.
pub const HISTORY_BUCKETS: i64 = 8 * DAY;
/// Buckets for which a step up is made ahead.
const SOON: i64 = 2;
/// Buckets in which nothing is taken away that they need.
const HOUR: i64 = 3600 / BUCKET_SECONDS;
/// Days that a history has to have before it says anything.
const DAYS_LEAST: i64 = 2;
/// Today may be so much busier or quieter than the days before.
const LEVEL: (f64, f64) = (0.5, 2.0);
/// It has to miss the need by so much less than reaction alone does.
const BETTER: f64 = 0.9;
/// For at most so many times the replica hours.
const DEARER: f64 = 1.2;

/// What happened in [`BUCKET_SECONDS`].
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Bucket {
    /// Requests a minute, the mean.
    pub requests: f32,
    /// Requests a minute, the busiest evaluation.
    pub peak: f32,
    /// Cores that all replicas used together, the mean.
    pub cores: f32,
}

/// Buckets by their number since 1970. One that is missing within the span is one without requests.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct History {
    buckets: BTreeMap<i64, Bucket>,
}

/// What the next hour needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Replicas to have now for what comes soon.
    pub replicas: u32,
    /// Replicas that are not taken away, since they are needed within the hour.
    pub keep: u32,
    /// Which days it follows, one line.
    pub why: String,
}

/// How past buckets say what a later one holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Like {
    Yesterday,
    Weekday,
    Days,
}

impl Like {
    const ALL: [Self; 3] = [Self::Days, Self::Weekday, Self::Yesterday];

    fn words(self) -> &'static str {
        match self {
            Self::Yesterday => "as yesterday",
            Self::Weekday => "as a week ago",
            Self::Days => "as the median of the last days",
        }
    }
}

impl History {
    /// The number of the bucket of a moment, seconds since 1970.
    pub fn number(seconds: i64) -> i64 {
        seconds.div_euclid(BUCKET_SECONDS)
    }

    /// Sets a bucket, and forgets what is too old for the newest one.
    pub fn set(&mut self, number: i64, bucket: Bucket) {
        self.buckets.insert(number, bucket);
        let newest = self.buckets.last_key_value().map_or(number, |(n, _)| *n);
        while let Some((oldest, _)) = self.buckets.first_key_value().filter(|(n, _)| **n <= newest - HISTORY_BUCKETS) {
            let oldest = *oldest;
            self.buckets.remove(&oldest);
        }
    }

    /// All, oldest first.
    pub fn buckets(&self) -> impl Iterator<Item = (i64, Bucket)> + '_ {
        self.buckets.iter().map(|(n, bucket)| (*n, *bucket))
    }

    /// Requests a minute of a bucket; `None` before the first one.
    fn peak(&self, number: i64) -> Option<f64> {
        let first = *self.buckets.first_key_value()?.0;
        (number >= first).then(|| self.buckets.get(&number).map_or(0.0, |bucket| f64::from(bucket.peak)))
    }

    /// What past days say of a bucket.
    fn like(&self, like: Like, number: i64) -> Option<f64> {
        match like {
            Like::Yesterday => self.peak(number - DAY),
            Like::Weekday => self.peak(number - 7 * DAY),
            Like::Days => {
                let mut days: Vec<f64> = (1..=7).filter_map(|day| self.peak(number - day * DAY)).collect();
                days.sort_by(f64::total_cmp);
                days.get(days.len() / 2).copied()
            }
        }
    }

    /// Cores that one request a minute costs, from all of it.
    fn cores_per_request(&self) -> Option<f64> {
        let (requests, cores) = self.buckets.values().fold((0.0, 0.0), |(requests, cores), bucket| {
            (requests + f64::from(bucket.requests), cores + f64::from(bucket.cores))
        });
        (requests > 100.0 && cores > 0.0).then(|| cores / requests)
    }

    /// Requests a minute that one replica takes at the policy's target. `cpu_limit`: its hard quota, cores.
    ///
    /// # Errors
    /// The policy says nothing that requests can be turned into, in words.
    pub fn capacity(&self, policy: &Policy, cpu_limit: f64) -> Result<f64, String> {
        let by_cpu = policy.cpu.zip(self.cores_per_request()).map(|(cpu, cores)| cpu / 100.0 * cpu_limit / cores);
        let capacity = match (policy.requests_up, by_cpu) {
            (Some(up), Some(by_cpu)) => Some(up.min(by_cpu)),
            (up, by_cpu) => up.or(by_cpu),
        };
        let why =
            "neither requestsUp nor what a request costs of CPU is known: requests cannot be turned into replicas";
        capacity.filter(|c| c.is_finite() && *c > 0.0).ok_or_else(|| why.to_owned())
    }

    /// What the next hour needs. `now`: seconds since 1970; `capacity`: requests a minute of one replica at its target.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub fn forecast(&self, now: i64, capacity: f64) -> Result<Forecast, String> {
        let number = Self::number(now);
        let days = self.buckets.first_key_value().map_or(0, |(first, _)| (number - first) / DAY);
        if days < DAYS_LEAST {
            return Err(format!("{days} whole days of history, it takes {DAYS_LEAST}"));
        }
        // whichever was nearest to the last day is believed
        let errors = Like::ALL.iter().filter_map(|like| {
            let mut error = 0.0;
            for past in number - DAY..number {
                error += (self.like(*like, past)? - self.peak(past)?).abs();
            }
            Some((*like, error))
        });
        let best = errors.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(like, _)| like);
        let like = best.unwrap_or(Like::Yesterday);
        let lately = number - HOUR..number;
        let (was, said) = lately.fold((0.0, 0.0), |(was, said), past| {
            (was + self.peak(past).unwrap_or(0.0), said + self.like(like, past).unwrap_or(0.0))
        });
        // a quiet hour says nothing about the level of a busy one
        let level = if said >= capacity { (was / said).clamp(LEVEL.0, LEVEL.1) } else { 1.0 };
        let most = |buckets: i64| {
            (number..=number + buckets).filter_map(|ahead| self.like(like, ahead)).fold(0.0, f64::max) * level
        };
        let (soon, hour) = (most(SOON), most(HOUR));
        // whole replicas, far below 2^32
        let need = |requests: f64| (requests / capacity).ceil().clamp(1.0, 1e6) as u32;
        let why = format!(
            "{}, {level:.2} times that: {soon:.0} requests a minute soon, {hour:.0} within the hour",
            like.words()
        );
        Ok(Forecast { replicas: need(soon), keep: need(hour), why })
    }
}

/// How looking ahead would have done on the newest day of a history, beside reaction alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// It missed less, for not much more.
    pub better: bool,
    /// Both figures, one line.
    pub why: String,
}

/// Replays the newest day with and without the forecast. `capacity`: requests a minute of one replica at its target;
/// `start_seconds`: how long a replica takes until it serves.
///
/// # Errors
/// The history is too short to tell, in words.
pub fn trial(history: &History, policy: &Policy, capacity: f64, start_seconds: f64) -> Result<Trial, String> {
    let (Some(first), Some(last)) = (history.buckets.first_key_value(), history.buckets.last_key_value()) else {
        return Err("there is no history yet".into());
    };
    let (first, last) = (*first.0, *last.0);
    if last - first < (DAYS_LEAST + 1) * DAY {
        let days = (last - first) / DAY;
        return Err(format!("{days} whole days of history, it takes {}", DAYS_LEAST + 1));
    }
    let (ahead, reactive) = both(history, policy, capacity, start_seconds);
    let missed = |s: &Simulated| s.short_seconds / 60.0;
    let better =
        ahead.short_seconds < reactive.short_seconds * BETTER && ahead.replica_hours <= reactive.replica_hours * DEARER;
    let why = format!(
        "on the last day it missed {:.0} replica minutes with {:.1} replica hours, reaction alone {:.0} with {:.1}",
        missed(&ahead),
        ahead.replica_hours,
        missed(&reactive),
        reactive.replica_hours
    );
    Ok(Trial { better, why })
}

/// The newest day of a history, with the forecast and without.
fn both(history: &History, policy: &Policy, capacity: f64, start_seconds: f64) -> (Simulated, Simulated) {
    let last = history.buckets.last_key_value().map_or(0, |(number, _)| *number);
    let begin = last - DAY;
    let trace: Vec<Point> = (begin..=last)
        .map(|number| Point {
            at: ((number - begin) * BUCKET_SECONDS) as f64,
            requests: history.peak(number).unwrap_or(0.0),
        })
        .collect();
    let run = |predictive: bool| {
        let policy = Policy { predictive, ..policy.clone() };
        // twice its target is what it can do at most: what matters here is when there are how many replicas
        let server = Server { capacity: capacity * 2.0, time_ms: 10.0, start_seconds };
        let mut replay = Replay::new(&policy, server);
        replay.begin = begin * BUCKET_SECONDS;
        replay.need = Some(capacity);
        replay.history = predictive.then_some((history, capacity));
        simulate(&replay, &trace)
    };
    (run(true), run(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Days that go up and down between 20 and 220 requests a minute, weekends at a fifth.
    fn office(days: i64) -> History {
        let mut history = History::default();
        for number in 0..days * DAY {
            let hour = (number % DAY) as f64 / 12.0;
            let weekend = (number / DAY) % 7 >= 5;
            let busy = if (8.0..18.0).contains(&hour) { 220.0 } else { 20.0 };
            let requests = if weekend { busy / 5.0 } else { busy } as f32;
            history.set(number, Bucket { requests, peak: requests, cores: requests / 1000.0 });
        }
        history
    }

    #[test]
    fn too_little_history_says_so() {
        let why = office(1).forecast(86_400, 50.0).unwrap_err();
        assert_eq!(why, "1 whole days of history, it takes 2");
        assert!(History::default().forecast(0, 50.0).is_err());
        assert!(trial(&office(2), &Policy::default(), 50.0, 5.0).is_err());
    }

    #[test]
    fn the_hour_before_a_busy_one_asks_for_its_replicas_soon_and_keeps_them() {
        let history = office(4);
        let at = |hour: f64| (4.0 * 86_400.0 + hour * 3600.0) as i64;
        let mut known = history.clone();
        let today = |known: &mut History, until: i64| {
            for number in 4 * DAY..History::number(until) {
                let hour = (number % DAY) as f64 / 12.0;
                let requests = if (8.0..18.0).contains(&hour) { 220.0 } else { 20.0 };
                known.set(number, Bucket { requests, peak: requests, cores: 0.0 });
            }
        };
        today(&mut known, at(7.2));
        let f = known.forecast(at(7.2), 50.0).unwrap();
        assert_eq!((f.replicas, f.keep), (1, 5), "{f:?}");
        today(&mut known, at(7.9));
        let f = known.forecast(at(7.9), 50.0).unwrap();
        assert_eq!((f.replicas, f.keep), (5, 5), "{f:?}");
        today(&mut known, at(17.95));
        let f = known.forecast(at(19.0), 50.0).unwrap();
        assert_eq!((f.replicas, f.keep), (1, 1), "{f:?}");
    }

    #[test]
    fn a_weekend_is_like_the_one_before() {
        let history = office(13);
        let at = 13 * 86_400 + 9 * 3600;
        let mut today = history.clone();
        for number in 13 * DAY..History::number(at) {
            let hour = (number % DAY) as f64 / 12.0;
            let requests = if (8.0..18.0).contains(&hour) { 44.0 } else { 4.0 };
            today.set(number, Bucket { requests, peak: requests, cores: 0.0 });
        }
        let f = today.forecast(at, 50.0).unwrap();
        assert_eq!(f.replicas, 1, "a quiet Sunday after a quiet Saturday: {f:?}");
    }

    #[test]
    fn only_eight_days_are_kept() {
        let history = office(30);
        assert_eq!(history.buckets().count() as i64, HISTORY_BUCKETS);
        assert_eq!(history.buckets().next().unwrap().0, 22 * DAY);
    }

    #[test]
    fn capacity_is_what_the_policy_says_or_what_requests_cost() {
        let history = office(3);
        let router = Policy::preset("router").unwrap();
        assert_eq!(history.capacity(&router, 0.25), Ok(50.0));
        // a thousandth of a core each: 70 % of half a core are 350
        let standard = Policy::preset("standard").unwrap();
        let capacity = history.capacity(&standard, 0.5).unwrap();
        assert!((capacity - 350.0).abs() < 1.0, "{capacity}");
        assert!(History::default().capacity(&standard, 0.5).is_err());
    }

    #[test]
    fn it_is_on_where_it_is_better_and_off_where_it_is_not() {
        let policy = Policy::read("p", "{min: 1, max: 10, evaluateEvery: 30, predictive: true}", None).unwrap();
        let won = trial(&office(5), &policy, 50.0, 20.0).unwrap();
        assert!(won.better, "{}", won.why);
        // bursts at times that no day has in common with another
        let mut random = History::default();
        let mut state = 7_u64;
        for number in 0..5 * DAY {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let burst = (state >> 33).is_multiple_of(40);
            let requests = if burst { 220.0 } else { 20.0 };
            random.set(number, Bucket { requests, peak: requests, cores: 0.0 });
        }
        let lost = trial(&random, &policy, 50.0, 20.0).unwrap();
        assert!(!lost.better, "{}", lost.why);
    }

    /// The recorded month against both: looking ahead has to win where it is on.
    #[test]
    fn on_a_recorded_month_it_misses_less_than_reaction_alone_or_stays_off() {
        let recorded: Vec<Bucket> = include_str!("traces/nasa-1995-07.csv")
            .lines()
            .filter_map(|row| {
                let (mean, peak) = row.split_once(',')?;
                Some(Bucket { requests: mean.parse().ok()?, peak: peak.parse().ok()?, cores: 0.0 })
            })
            .collect();
        assert_eq!(recorded.len() as i64, 24 * DAY);
        let policy = Policy::read(
            "p",
            "{preset: standard, min: 1, max: 20, requestsUp: 20, requestsDown: 8, downCooldown: 120, predictive: true}",
            None,
        )
        .unwrap();
        let (mut on, mut off, mut told) = (0, 0, Vec::new());
        let (mut short, mut short_alone) = (0.0, 0.0);
        for day in (8..24).step_by(3) {
            let mut history = History::default();
            for (number, bucket) in recorded.iter().enumerate().take((day * DAY) as usize) {
                history.set(number as i64, *bucket);
            }
            // what yesterday says of it decides whether it is on today
            let decided = trial(&history, &policy, 20.0, 30.0).unwrap();
            if !decided.better {
                off += 1;
                continue;
            }
            on += 1;
            for (number, bucket) in recorded.iter().enumerate().take(((day + 1) * DAY) as usize) {
                history.set(number as i64, *bucket);
            }
            let (ahead, alone) = both(&history, &policy, 20.0, 30.0);
            short += ahead.short_seconds;
            short_alone += alone.short_seconds;
            told.push(format!(
                "day {day}: {:.0} s missed, alone {:.0} s; {:.1} and {:.1} replica hours",
                ahead.short_seconds, alone.short_seconds, ahead.replica_hours, alone.replica_hours
            ));
        }
        println!("on {on}, off {off}\n{}", told.join("\n"));
        assert!(on == 0 || short < short_alone, "{short} {short_alone}\n{}", told.join("\n"));
    }
}
