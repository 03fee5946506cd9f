//! Owns: amounts of use, what they cost, where a month will end, and which size would have been enough. May touch: nothing.
//! Never: rounds before the end, or reads a clock. Tested by: units here.
//!
//! Months are those of UTC. A GB is 10^9 bytes, as the rates of `product.md` mean it.

pub mod judge;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use sigil_config::agent::CostConfig;

use crate::model::Resources;
use crate::tier;

const GB: f64 = 1e9;
const HOUR: f64 = 3600.0;

/// What was used. Whole numbers: what is added up does not drift.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Amounts {
    /// Requests that reached a server.
    pub requests: u64,
    /// Of them failed.
    pub errors: u64,
    /// CPU time, microseconds.
    pub cpu_micros: u64,
    /// Memory over time, KiB-seconds.
    pub memory_kib_seconds: u64,
    /// Bytes that left for the world and for clients.
    pub egress_bytes: u64,
    /// Disk over time, KiB-seconds.
    pub storage_kib_seconds: u64,
    /// How long the deployment was there, seconds.
    pub seconds: u64,
}

impl Amounts {
    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.requests, other.requests),
            (&mut self.errors, other.errors),
            (&mut self.cpu_micros, other.cpu_micros),
            (&mut self.memory_kib_seconds, other.memory_kib_seconds),
            (&mut self.egress_bytes, other.egress_bytes),
            (&mut self.storage_kib_seconds, other.storage_kib_seconds),
            (&mut self.seconds, other.seconds),
        ];
        for (sum, more) in pairs {
            *sum = sum.saturating_add(more);
        }
    }

    /// CPU time, hours.
    pub fn cpu_hours(&self) -> f64 {
        self.cpu_micros as f64 / 1e6 / HOUR
    }

    /// Memory over time, GB-hours.
    pub fn memory_gb_hours(&self) -> f64 {
        self.memory_kib_seconds as f64 * 1024.0 / GB / HOUR
    }

    /// Disk over time, GB-months of a month that is so many seconds long.
    pub fn storage_gb_months(&self, month_seconds: f64) -> f64 {
        self.storage_kib_seconds as f64 * 1024.0 / GB / month_seconds
    }
}

/// What it costs, in the currency of the rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Bill {
    /// For being there.
    pub deployment: f64,
    /// Requests.
    pub requests: f64,
    /// CPU.
    pub cpu: f64,
    /// Memory.
    pub memory: f64,
    /// Egress.
    pub egress: f64,
    /// Disk.
    pub storage: f64,
}

impl Bill {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.deployment + self.requests + self.cpu + self.memory + self.egress + self.storage
    }
}

/// What amounts of one month cost.
pub fn price(rates: &CostConfig, amounts: &Amounts, month: Month) -> Bill {
    let seconds = month.seconds();
    Bill {
        deployment: rates.deployment_month * amounts.seconds as f64 / seconds,
        requests: rates.requests_10k * amounts.requests as f64 / 1e4,
        cpu: rates.cpu_hour * amounts.cpu_hours(),
        memory: rates.memory_gb_hour * amounts.memory_gb_hours(),
        egress: rates.egress_gb * amounts.egress_bytes as f64 / GB,
        storage: rates.storage_gb_month * amounts.storage_gb_months(seconds),
    }
}

/// A month of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    year: i16,
    month: i8,
}

impl Month {
    /// The month of a moment.
    pub fn of(at: Timestamp) -> Self {
        let date = at.to_zoned(TimeZone::UTC).date();
        Self { year: date.year(), month: date.month() }
    }

    fn first(self) -> Option<Date> {
        Date::new(self.year, self.month, 1).ok()
    }

    /// When it begins and when the next one does, seconds since 1970.
    pub fn bounds(self) -> (i64, i64) {
        let second = |date: Option<Date>| {
            date.and_then(|d| d.to_zoned(TimeZone::UTC).ok()).map_or(0, |zoned| zoned.timestamp().as_second())
        };
        let first = self.first();
        let next = first.map(|d| d.last_of_month()).and_then(|d| d.tomorrow().ok());
        (second(first), second(next))
    }

    /// How long it is, seconds.
    pub fn seconds(self) -> f64 {
        let (begin, end) = self.bounds();
        (end - begin).max(1) as f64
    }
}

impl std::fmt::Display for Month {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl std::str::FromStr for Month {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('-').and_then(|(year, month)| Some((year.parse().ok()?, month.parse().ok()?)));
        let month = parts.map(|(year, month)| Self { year, month }).filter(|m| m.first().is_some());
        month.ok_or_else(|| format!("'{text}' is no month; write it as 2027-01"))
    }
}

impl Serialize for Month {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Month {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a month ends when it goes on as it went since `since` (seconds since 1970): the begin of the month, or of what is
/// known. `there`: whether the deployment is still there. Amounts of what is over do not grow.
pub fn forecast(amounts: &Amounts, month: Month, since: i64, now: i64, there: bool) -> Amounts {
    let (begin, end) = month.bounds();
    let (since, now) = (since.max(begin), now.min(end));
    let (past, left) = ((now - since) as f64, (end - now) as f64);
    if !there || past < 1.0 || left <= 0.0 {
        return *amounts;
    }
    // rounded down: a forecast is no promise
    let grow = |amount: u64| amount.saturating_add((amount as f64 / past * left) as u64);
    Amounts {
        requests: grow(amounts.requests),
        errors: grow(amounts.errors),
        cpu_micros: grow(amounts.cpu_micros),
        memory_kib_seconds: grow(amounts.memory_kib_seconds),
        egress_bytes: grow(amounts.egress_bytes),
        storage_kib_seconds: grow(amounts.storage_kib_seconds),
        seconds: grow(amounts.seconds),
    }
}

/// What replicas of a deployment really used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evidence {
    /// How long was measured, hours.
    pub hours: f64,
    /// CPU of the busiest replica, cores: below this for 95 % of the time.
    pub cpu_p95: f64,
    /// The most CPU of one replica, cores, mean of a minute.
    pub cpu_peak: f64,
    /// Memory of the largest replica, bytes: below this for 95 % of the time.
    pub memory_p95: f64,
    /// The most memory of one replica, bytes.
    pub memory_peak: f64,
    /// Share of the time for which replicas were held back by their quota, 0 to 1.
    pub throttled: f64,
    /// Processes that were killed for want of memory.
    pub oom_kills: u64,
}

/// Another size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// The tier that would do.
    pub tier: String,
    /// Whether it is larger than what there is.
    pub larger: bool,
    /// Why, with the figures.
    pub why: String,
}

/// Nothing is advised before this much was measured, hours.
pub const EVIDENCE_MIN: f64 = 24.0;
/// Tiers, the smallest first.
const TIERS: [&str; 5] = ["micro", "router", "standard", "processor", "compute"];
/// Of the most memory that was used, so much has to be there.
const MEMORY_ROOM: f64 = 1.25;
/// Of the CPU that was enough for 95 % of the time, so much has to be there.
const CPU_ROOM: f64 = 1.25;
/// Who is held back for more of the time than this has too little CPU.
const THROTTLED: f64 = 0.25;

/// Which tier would have been enough; `None` when it is the one there is, or too little is known. A size is advised only by
/// what was used: whoever was cut off by a limit may want more than what is seen, and is told so by a larger tier.
pub fn advice(now: &Resources, seen: &Evidence) -> Option<Advice> {
    if seen.hours < EVIDENCE_MIN || seen.memory_peak <= 0.0 {
        return None;
    }
    let starved = seen.oom_kills > 0;
    let slow = seen.throttled > THROTTLED;
    let (memory, cpu) = (seen.memory_peak * MEMORY_ROOM, seen.cpu_p95 * CPU_ROOM);
    let fits = |r: &Resources| {
        r.memory as f64 >= memory
            && r.cpu_limit >= cpu
            && (!starved || r.memory > now.memory)
            && (!slow || r.cpu_limit > now.cpu_limit)
    };
    let mut tiers = TIERS.iter().filter_map(|name| tier::tier(name).ok());
    let best = tiers.find(fits)?;
    let larger = best.memory > now.memory || best.cpu_limit > now.cpu_limit;
    let smaller = best.memory < now.memory || best.cpu_limit < now.cpu_limit;
    if best.tier == now.tier || !(larger || smaller) {
        return None;
    }
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let mut why = format!(
        "in {:.0} hours a replica used at most {:.0} MiB of {:.0} MiB (95 % of the time below {:.0} MiB) and {:.2} of {:.2} \
         cores (95 % of the time below {:.2})",
        seen.hours,
        mib(seen.memory_peak),
        mib(now.memory as f64),
        mib(seen.memory_p95),
        seen.cpu_peak,
        now.cpu_limit,
        seen.cpu_p95,
    );
    if starved {
        why.push_str(&format!("; the kernel killed {} processes for want of memory", seen.oom_kills));
    }
    if slow {
        why.push_str(&format!("; the CPU quota held it back for {:.0} % of the time", seen.throttled * 100.0));
    }
    Some(Advice { tier: best.tier, larger, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn months_have_their_length() {
        let month = Month::of(at("2028-02-29T23:59:59Z"));
        assert_eq!((month.to_string().as_str(), month.seconds()), ("2028-02", 29.0 * 86_400.0));
        assert_eq!(month.bounds().1, at("2028-03-01T00:00:00Z").as_second());
        assert_eq!(Month::of(at("2027-12-31T23:59:59Z")).bounds().1, at("2028-01-01T00:00:00Z").as_second());
        assert_eq!("2027-01".parse::<Month>().unwrap(), Month::of(at("2027-01-15T00:00:00Z")));
        for bad in ["2027", "2027-13", "x-1", ""] {
            assert!(bad.parse::<Month>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_rates_of_the_product() {
        let month: Month = "2027-06".parse().unwrap();
        let seconds = month.seconds() as u64;
        let amounts = Amounts {
            requests: 20_000,
            errors: 1,
            cpu_micros: 3600 * 1_000_000 * 10,
            memory_kib_seconds: 1_000_000_000 / 1024 * 3600 * 5,
            egress_bytes: 3_000_000_000,
            storage_kib_seconds: 2_000_000_000 / 1024 * seconds,
            seconds,
        };
        let bill = price(&CostConfig::default(), &amounts, month);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-5, "{a} {b}");
        near(bill.deployment, 5.0);
        near(bill.requests, 1.0);
        near(bill.cpu, 0.2);
        near(bill.memory, 0.05);
        near(bill.egress, 0.3);
        near(bill.storage, 0.6);
        near(bill.total(), 7.15);
    }

    #[test]
    fn a_month_goes_on_as_it_went() {
        let month: Month = "2027-06".parse().unwrap();
        let (begin, end) = month.bounds();
        let amounts = Amounts { requests: 100, seconds: 86_400 * 10, ..Amounts::default() };
        let third = begin + 86_400 * 10;
        assert_eq!(forecast(&amounts, month, begin, third, true).requests, 300);
        // known for five of the ten days only
        assert_eq!(forecast(&amounts, month, begin + 86_400 * 5, third, true).requests, 500);
        assert_eq!(forecast(&amounts, month, begin, third, false), amounts);
        assert_eq!(forecast(&amounts, month, begin, end + 5, true), amounts);
        assert_eq!(forecast(&amounts, month, begin, begin, true), amounts);
    }

    #[test]
    fn advice_has_evidence() {
        let standard = tier::tier("standard").unwrap();
        let small = Evidence {
            hours: 100.0,
            cpu_p95: 0.02,
            cpu_peak: 0.2,
            memory_p95: 60e6,
            memory_peak: 90e6,
            ..Evidence::default()
        };
        let advised = advice(&standard, &small).unwrap();
        assert_eq!((advised.tier.as_str(), advised.larger), ("micro", false));
        assert!(advised.why.contains("at most 86 MiB of 1024 MiB"), "{}", advised.why);
        assert_eq!(advice(&standard, &Evidence { hours: 3.0, ..small }), None, "too early");
        assert_eq!(advice(&tier::tier("micro").unwrap(), &small), None, "it is the right one");
        let killed = Evidence { oom_kills: 2, memory_peak: 128e6, ..small };
        let advised = advice(&tier::tier("micro").unwrap(), &killed).unwrap();
        assert_eq!((advised.tier.as_str(), advised.larger), ("router", true));
        let slow = Evidence { throttled: 0.5, cpu_p95: 0.25, cpu_peak: 0.25, ..small };
        let advised = advice(&tier::tier("router").unwrap(), &slow).unwrap();
        assert_eq!((advised.tier.as_str(), advised.larger), ("standard", true));
        assert!(advised.why.contains("held it back for 50 %"), "{}", advised.why);
        let huge = Evidence { memory_peak: 1e12, ..small };
        assert_eq!(advice(&standard, &huge), None, "no tier would do");
    }
}
