//! Owns: how measurements are kept over time: points of a fixed size, rings of a fixed length, and what becomes of a point
//! when time makes it coarser. May touch: nothing (files are the caller's). Never: grows, or believes bytes whose checksum
//! does not fit. Tested by: units and properties here.
//!
//! A point's place follows from its time alone (`interval % slots`), so a ring has no head that could be lost, a restart
//! goes on where it is, and what is older than the ring is overwritten by what comes after it. Values are kept as
//! logarithms in 16 bits: 819 steps for each doubling, so that what is read differs by 0.05 % at most from what was written.

use std::collections::BTreeMap;

/// Values of a point.
pub const WIDTH: usize = 24;
/// Bytes of a point: the interval's number, the values, a checksum.
pub const POINT_BYTES: usize = 4 + 2 * WIDTH + 4;
/// Bytes before the first point of a ring.
pub const HEADER_BYTES: usize = 32;
/// What a ring begins with.
const MAGIC: &[u8; 8] = b"SIGILRNG";
const VERSION: u16 = 1;

/// How long what is kept how finely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Its name: of its file, too.
    pub name: &'static str,
    /// Seconds of one point.
    pub step: u32,
    /// Points; with `step` this is how far back it goes.
    pub slots: u32,
}

/// From fine to coarse. Each step is a multiple of the one before, and so is each ring's length: the points that one
/// coarser point is made of lie beside each other.
pub const TIERS: [Tier; 3] = [
    Tier { name: "10s", step: 10, slots: 8640 },
    Tier { name: "1m", step: 60, slots: 8 * 1440 },
    Tier { name: "1h", step: 3600, slots: 366 * 24 },
];

impl Tier {
    /// The interval in which a moment lies, seconds since 1970.
    pub fn interval(self, at: i64) -> u32 {
        u32::try_from(at.max(0) / i64::from(self.step)).unwrap_or(u32::MAX)
    }

    /// When an interval begins, seconds since 1970.
    pub fn start(self, interval: u32) -> i64 {
        i64::from(interval) * i64::from(self.step)
    }

    /// Where in its file the point of an interval is, bytes.
    pub fn offset(self, interval: u32) -> u64 {
        HEADER_BYTES as u64 + u64::from(interval % self.slots) * POINT_BYTES as u64
    }

    /// Bytes of its file, always.
    pub fn bytes(self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.slots) * POINT_BYTES as u64
    }

    /// The first bytes of its file. A file that begins otherwise is no ring of this tier.
    pub fn header(self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let (width, step, slots) = (WIDTH as u16, self.step, self.slots);
        let fields =
            [&MAGIC[..], &VERSION.to_le_bytes(), &width.to_le_bytes(), &step.to_le_bytes(), &slots.to_le_bytes()];
        let mut at = 0;
        for field in fields {
            header[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        let sum = crc32c::crc32c(&header[..HEADER_BYTES - 4]);
        header[HEADER_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
        header
    }
}

/// Bytes that one series (a deployment, or the host) takes on disk at most, all tiers.
pub fn series_bytes() -> u64 {
    TIERS.iter().map(|tier| tier.bytes()).sum()
}

/// What becomes of a value when points are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// An amount: amounts add up.
    Sum,
    /// A level: the mean, weighted by the time that was measured.
    Mean,
    /// The highest.
    Max,
    /// Of requests: the mean, weighted by them.
    PerRequest,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name in requests and answers.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// How it gets coarser.
    pub merge: Merge,
}

const fn metric(name: &'static str, unit: &'static str, merge: Merge) -> Metric {
    Metric { name, unit, merge }
}

/// The first value of each point: how long was measured, seconds. What rates are computed with.
pub const SECONDS: usize = 0;
/// Where in a deployment's point the number of requests is.
pub const REQUESTS: usize = 14;

/// The values of a deployment's point, all replicas together, in their order. New ones take the places of `spare`.
pub const DEPLOYMENT: [Metric; WIDTH] = [
    metric("seconds", "s", Merge::Sum),
    metric("cpu_seconds", "s", Merge::Sum),
    metric("cpu_limit_percent", "%", Merge::Mean),
    metric("cpu_limit_percent_max", "%", Merge::Max),
    metric("throttled_seconds", "s", Merge::Sum),
    metric("memory_total_bytes", "B", Merge::Mean),
    metric("memory_bytes", "B", Merge::Mean),
    metric("memory_replica_max_bytes", "B", Merge::Max),
    metric("memory_limit_percent_max", "%", Merge::Max),
    metric("memory_load_percent", "%", Merge::Mean),
    metric("processes", "", Merge::Mean),
    metric("oom_kills", "", Merge::Sum),
    metric("received_bytes", "B", Merge::Sum),
    metric("sent_bytes", "B", Merge::Sum),
    metric("requests", "", Merge::Sum),
    metric("errors", "", Merge::Sum),
    metric("request_seconds", "s", Merge::Sum),
    metric("p50_ms", "ms", Merge::PerRequest),
    metric("p90_ms", "ms", Merge::PerRequest),
    metric("p99_ms", "ms", Merge::Max),
    metric("in_flight", "", Merge::Mean),
    metric("sessions", "", Merge::Mean),
    metric("replicas", "", Merge::Mean),
    metric("disk_bytes", "B", Merge::Sum),
];

/// The values of the host's point.
pub const HOST: [Metric; WIDTH] = [
    metric("seconds", "s", Merge::Sum),
    metric("cpu_percent", "%", Merge::Mean),
    metric("load1", "", Merge::Mean),
    metric("memory_used_bytes", "B", Merge::Mean),
    metric("memory_available_bytes", "B", Merge::Mean),
    metric("swap_used_bytes", "B", Merge::Mean),
    metric("disk_used_bytes", "B", Merge::Mean),
    metric("disk_free_bytes", "B", Merge::Mean),
    metric("inodes_free", "", Merge::Mean),
    metric("pressure_cpu_percent", "%", Merge::Max),
    metric("pressure_memory_percent", "%", Merge::Max),
    metric("pressure_io_percent", "%", Merge::Max),
    metric("received_bytes", "B", Merge::Sum),
    metric("sent_bytes", "B", Merge::Sum),
    metric("spare", "", Merge::Max),
    metric("spare", "", Merge::Max),
    metric("spare", "", Merge::Max),
    metric("spare", "", Merge::Max),
    metric("spare", "", Merge::Max),
    metric("spare", "", Merge::Max),
    metric("spare", "", Merge::Max),
    metric("spare", "", Merge::Max),
    metric("agent_cpu_percent", "%", Merge::Mean),
    metric("agent_memory_bytes", "B", Merge::Mean),
];

/// The place of a metric by its name.
pub fn place(of: &[Metric; WIDTH], name: &str) -> Option<usize> {
    of.iter().position(|metric| metric.name == name && name != "spare")
}

/// Measurements of one interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Of a tier's intervals since 1970.
    pub interval: u32,
    /// Values, in the order of [`DEPLOYMENT`] or [`HOST`]; never negative.
    pub values: [f64; WIDTH],
}

/// Logarithms begin at 2 to the power of minus this.
const LOWEST: f64 = 20.0;
/// What is less than this is nothing: 2 to the power of -20.
const LEAST: f64 = 1.0 / 1_048_576.0;
/// Steps for each doubling.
const STEPS: f64 = 819.0;

fn shrink(value: f64) -> u16 {
    // what is no number, or below a millionth, is nothing
    if value.is_nan() || value < LEAST {
        return 0;
    }
    let code = 1.0 + (value.log2() + LOWEST) * STEPS;
    // bounded on both sides
    code.round().clamp(1.0, f64::from(u16::MAX)) as u16
}

fn grow(code: u16) -> f64 {
    if code == 0 { 0.0 } else { 2_f64.powf((f64::from(code) - 1.0) / STEPS - LOWEST) }
}

impl Point {
    /// An interval in which nothing was.
    pub fn new(interval: u32) -> Self {
        Self { interval, values: [0.0; WIDTH] }
    }

    /// As it is kept.
    pub fn encode(&self) -> [u8; POINT_BYTES] {
        let mut bytes = [0; POINT_BYTES];
        bytes[..4].copy_from_slice(&self.interval.to_le_bytes());
        for (index, value) in self.values.iter().enumerate() {
            bytes[4 + 2 * index..6 + 2 * index].copy_from_slice(&shrink(*value).to_le_bytes());
        }
        let sum = crc32c::crc32c(&bytes[..POINT_BYTES - 4]);
        bytes[POINT_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// What was kept; `None` of a place that was never written, or not wholly.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.get(..POINT_BYTES)?.split_at(POINT_BYTES - 4);
        if body.iter().all(|b| *b == 0) || crc32c::crc32c(body).to_le_bytes() != *sum {
            return None;
        }
        let interval = u32::from_le_bytes(body.get(..4)?.try_into().ok()?);
        let mut point = Self::new(interval);
        for (value, code) in point.values.iter_mut().zip(body[4..].chunks_exact(2)) {
            *value = grow(u16::from_le_bytes([code[0], code[1]]));
        }
        Some(point)
    }
}

/// One point for the time of several.
pub fn merge(metrics: &[Metric; WIDTH], interval: u32, points: &[Point]) -> Point {
    let mut merged = Point::new(interval);
    let total = |weight: usize| points.iter().map(|p| p.values[weight]).sum::<f64>();
    let mean = |index: usize, weight: usize| match total(weight) {
        weights if weights > 0.0 => points.iter().map(|p| p.values[index] * p.values[weight]).sum::<f64>() / weights,
        _ => 0.0,
    };
    for (index, metric) in metrics.iter().enumerate() {
        let values = points.iter().map(|p| p.values[index]);
        merged.values[index] = match metric.merge {
            Merge::Sum => values.sum(),
            Merge::Max => values.fold(0.0, f64::max),
            Merge::Mean => mean(index, SECONDS),
            Merge::PerRequest => mean(index, REQUESTS),
        };
    }
    merged
}

/// The finest tier that reaches back to `from` (seconds since 1970) and is no finer than `step` seconds asks for.
pub fn tier_for(now: i64, from: i64, step: u32) -> Tier {
    let [.., last] = TIERS;
    let reaches = |tier: &&Tier| now.saturating_sub(from) <= i64::from(tier.step) * i64::from(tier.slots);
    // a coarser step is made of the coarsest tier that still divides it
    let fits = TIERS.iter().rev().find(|tier| tier.step <= step.max(TIERS[0].step) && step.is_multiple_of(tier.step));
    let finest = TIERS.iter().find(reaches).copied().unwrap_or(last);
    fits.filter(|tier| tier.step >= finest.step).copied().unwrap_or(finest)
}

/// Points of a tier put together in steps; `points` in order of time. A step without a point is left out.
pub fn in_steps(metrics: &[Metric; WIDTH], tier: Tier, points: &[Point], step: u32) -> Vec<(i64, Point)> {
    let step = i64::from(step.max(tier.step));
    let mut groups: BTreeMap<i64, Vec<Point>> = BTreeMap::new();
    for point in points {
        groups.entry(tier.start(point.interval).div_euclid(step) * step).or_default().push(*point);
    }
    groups.into_iter().map(|(start, group)| (start, merge(metrics, tier.interval(start), &group))).collect()
}

/// A value below which a share (0 to 1) of the counted ones lies: `bounds` are the upper bounds of `counts`' buckets, of
/// which there is one more, without a bound. Within a bucket values are taken to lie evenly.
pub fn quantile(bounds: &[f64], counts: &[u64], share: f64) -> f64 {
    let rank = counts.iter().sum::<u64>() as f64 * share;
    let (mut seen, mut lower) = (0.0, 0.0);
    for (index, count) in counts.iter().enumerate() {
        let (count, upper) = (*count as f64, bounds.get(index).copied());
        if count > 0.0 && seen + count >= rank {
            return upper.map_or(lower, |upper| lower + (upper - lower) * ((rank - seen) / count).clamp(0.0, 1.0));
        }
        (seen, lower) = (seen + count, upper.unwrap_or(lower));
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(interval: u32, seconds: f64, requests: f64, p50: f64) -> Point {
        let mut point = Point::new(interval);
        let place = |name| place(&DEPLOYMENT, name).unwrap();
        point.values[SECONDS] = seconds;
        point.values[REQUESTS] = requests;
        point.values[place("p50_ms")] = p50;
        point.values[place("p99_ms")] = 2.0 * p50;
        point.values[place("sessions")] = p50;
        point
    }

    #[test]
    fn tables_fit_and_tiers_nest() {
        assert_eq!(DEPLOYMENT[REQUESTS].name, "requests");
        assert_eq!((DEPLOYMENT[SECONDS].name, HOST[SECONDS].name), ("seconds", "seconds"));
        for pair in TIERS.windows(2) {
            assert!(pair[1].step.is_multiple_of(pair[0].step));
            assert!(pair[0].slots.is_multiple_of(pair[1].step / pair[0].step));
        }
        let days = |tier: Tier| u64::from(tier.step) * u64::from(tier.slots) / 86_400;
        assert_eq!(TIERS.map(days), [1, 8, 366]);
        assert!(series_bytes() < 1_700_000, "{}", series_bytes());
        assert_eq!(place(&HOST, "spare"), None);
    }

    #[test]
    fn amounts_add_up_levels_do_not() {
        let merged = merge(&DEPLOYMENT, 1, &[point(6, 10.0, 30.0, 10.0), point(7, 10.0, 10.0, 50.0)]);
        let value = |name| merged.values[place(&DEPLOYMENT, name).unwrap()];
        assert_eq!((value("seconds"), value("requests")), (20.0, 40.0));
        assert_eq!((value("p50_ms"), value("p99_ms"), value("sessions")), (20.0, 100.0, 30.0));
        // nothing was measured for long: no mean is made up
        assert_eq!(merge(&DEPLOYMENT, 1, &[point(6, 0.0, 0.0, 9.0)]).values[REQUESTS], 0.0);
    }

    #[test]
    fn the_tier_follows_the_question() {
        let now = 2_000_000_000;
        assert_eq!(tier_for(now, now - 3600, 10).name, "10s");
        assert_eq!(tier_for(now, now - 3600, 60).name, "1m");
        assert_eq!(tier_for(now, now - 3600, 90).name, "10s");
        assert_eq!(tier_for(now, now - 2 * 86_400, 10).name, "1m");
        assert_eq!(tier_for(now, now - 30 * 86_400, 60).name, "1h");
        assert_eq!(tier_for(now, 0, 86_400).name, "1h");
        let steps = in_steps(&DEPLOYMENT, TIERS[0], &[point(6, 10.0, 1.0, 1.0), point(8, 10.0, 2.0, 1.0)], 30);
        assert_eq!(steps.iter().map(|(at, p)| (*at, p.values[REQUESTS])).collect::<Vec<_>>(), [(60, 3.0)]);
    }

    #[test]
    fn quantiles_lie_in_their_buckets() {
        let (bounds, counts) = ([1.0, 2.0, 4.0], [0, 10, 10, 0]);
        assert_eq!(quantile(&bounds, &counts, 0.5), 2.0);
        assert_eq!(quantile(&bounds, &counts, 0.75), 3.0);
        assert_eq!(quantile(&bounds, &[0, 0, 0, 5], 0.99), 4.0);
        assert_eq!(quantile(&bounds, &[0; 4], 0.5), 0.0);
    }

    /// A ring as its file would be.
    struct Held(Tier, Vec<u8>);

    impl Held {
        fn new(tier: Tier) -> Self {
            let mut bytes = tier.header().to_vec();
            bytes.resize(tier.bytes() as usize, 0);
            Self(tier, bytes)
        }
        fn put(&mut self, point: &Point) {
            let at = self.0.offset(point.interval) as usize;
            self.1[at..at + POINT_BYTES].copy_from_slice(&point.encode());
        }
        fn get(&self, interval: u32) -> Option<Point> {
            let at = self.0.offset(interval) as usize;
            Point::decode(&self.1[at..]).filter(|p| p.interval == interval)
        }
    }

    proptest! {
        #[test]
        fn values_come_back_within_a_twentieth_of_a_percent(value in 1e-6..1e17_f64) {
            let back = grow(shrink(value));
            prop_assert!((back / value - 1.0).abs() < 0.0005, "{value} {back}");
            prop_assert!(shrink(value * 1.01) > shrink(value), "order is kept");
        }

        #[test]
        fn a_torn_or_changed_point_is_none(values in prop::array::uniform24(0.0..1e9_f64), interval in 1_u32.., cut in 0..POINT_BYTES, flip in 1_u8..) {
            let whole = Point { interval, values }.encode();
            prop_assert!(Point::decode(&whole).is_some());
            let mut torn = [0; POINT_BYTES];
            torn[..cut].copy_from_slice(&whole[..cut]);
            prop_assert!(torn == whole || Point::decode(&torn).is_none());
            let mut changed = whole;
            changed[cut] ^= flip;
            prop_assert_eq!(Point::decode(&changed), None);
        }

        /// Two years of hours, with jumps of the clock in both directions: the file keeps its length, and what is read is
        /// what was written last for that hour, or nothing.
        #[test]
        fn a_year_stays_in_its_budget(steps in prop::collection::vec((0_u32..900, any::<bool>()), 1..400)) {
            let tier = TIERS[2];
            let mut ring = Held::new(tier);
            let (mut now, mut last) = (500_000_u32, BTreeMap::new());
            for (number, (step, back)) in steps.iter().enumerate() {
                now = if *back { now - step.min(&50) } else { now + step };
                let mut point = Point::new(now);
                point.values[REQUESTS] = (number + 1) as f64;
                ring.put(&point);
                last.insert(now % tier.slots, (now, number + 1));
            }
            prop_assert_eq!(ring.1.len() as u64, tier.bytes());
            for (slot, (interval, number)) in last {
                prop_assert_eq!(interval % tier.slots, slot);
                let found = ring.get(interval).unwrap();
                prop_assert!((found.values[REQUESTS] / number as f64 - 1.0).abs() < 0.001);
                prop_assert_eq!(ring.get(interval + tier.slots), None);
            }
        }
    }

    /// A year in which each minute has one point of ten seconds, as a sleeper's has, rolled up as the agent does it.
    #[test]
    fn a_whole_year_and_what_becomes_of_it() {
        let mut rings = TIERS.map(Held::new);
        let begin = TIERS[1].interval(1_800_000_000);
        let end = begin + 366 * 1440;
        for minute in begin..end {
            let mut fine = Point::new(6 * minute + 5);
            (fine.values[SECONDS], fine.values[REQUESTS]) = (10.0, 1.0);
            rings[0].put(&fine);
            let roll = |ring: &Held, from: u32, to: u32, interval: u32| {
                let points: Vec<Point> = (from..to).filter_map(|i| ring.get(i)).collect();
                merge(&DEPLOYMENT, interval, &points)
            };
            let coarser = roll(&rings[0], 6 * minute, 6 * minute + 6, minute);
            rings[1].put(&coarser);
            if minute % 60 == 59 {
                let coarser = roll(&rings[1], minute - 59, minute + 1, minute / 60);
                rings[2].put(&coarser);
            }
        }
        let bytes: usize = rings.iter().map(|ring| ring.1.len()).sum();
        assert_eq!(bytes as u64, series_bytes());
        let count = |ring: &Held, interval: u32| ring.get(interval).map(|p| p.values[REQUESTS].round());
        assert_eq!(count(&rings[0], 6 * end - 1), Some(1.0));
        assert_eq!(count(&rings[0], 6 * (end - 1441) + 5), None, "a day is over");
        assert_eq!(count(&rings[1], end - 1), Some(1.0));
        assert_eq!(count(&rings[1], end - 8 * 1440 - 1), None, "eight days are over");
        assert_eq!(count(&rings[2], end / 60 - 1), Some(60.0));
        assert_eq!(count(&rings[2], begin.div_ceil(60)), Some(60.0), "a year is not");
    }
}
