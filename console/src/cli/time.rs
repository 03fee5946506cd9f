//! Times and sizes as people write and read them.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// `90`, `90s`, `10m`, `1h30m`, `2d`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a duration (write 30s, 10m, 1h30m or 2d)");
    let text = text.trim();
    if text.is_empty() {
        return Err(wrong());
    }
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ms" => {
                total = total.checked_add(Duration::from_millis(number)).ok_or_else(wrong)?;
                0
            }
            "s" => number,
            "m" => number.checked_mul(60).ok_or_else(wrong)?,
            "h" => number.checked_mul(3600).ok_or_else(wrong)?,
            "d" => number.checked_mul(86_400).ok_or_else(wrong)?,
            _ => return Err(wrong()),
        };
        total = total.checked_add(Duration::from_secs(seconds)).ok_or_else(wrong)?;
        rest = &rest[unit..];
    }
    Ok(total)
}

/// A duration before `now`, or a point in time: RFC 3339, or local `2026-11-22`, `2026-11-22 10:00[:05]`.
pub fn moment(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(back) = duration(text) {
        let back = SignedDuration::try_from(back).map_err(|_| format!("'{text}' is too long ago"))?;
        return now.checked_sub(back).map_err(|_| format!("'{text}' is too long ago"));
    }
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment);
    }
    let civil: Result<DateTime, _> = text.parse().or_else(|_| text.parse::<jiff::civil::Date>().map(DateTime::from));
    civil
        .and_then(|civil| civil.to_zoned(TimeZone::system()))
        .map(|zoned| zoned.timestamp())
        .map_err(|_| format!("'{text}' is not a time (write 10m, 2h, 2026-11-22, '2026-11-22 10:00' or RFC 3339)"))
}

/// `now`, `42s ago`, `3m ago`, `5h ago`, `12d ago`; `-` when unknown.
pub fn ago(time: Option<Timestamp>, now: Timestamp) -> String {
    match time {
        None => "-".to_owned(),
        Some(time) => {
            let age = now.duration_since(time);
            if age < SignedDuration::from_secs(2) {
                "now".to_owned()
            } else {
                format!("{} ago", span(age.unsigned_abs()))
            }
        }
    }
}

/// The largest unit only: `42s`, `3m`, `5h`, `12d`.
pub fn span(age: Duration) -> String {
    match age.as_secs() {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// `850 ms`, `12.3 s`, `4m 05s`.
pub fn took(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..100_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{}m {:02}s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// `512 B`, `1.5 KiB`, `256 MiB`.
pub fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[allow(clippy::cast_precision_loss)] // for people: three digits are shown
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 { format!("{value:.1} {}", units[unit]) } else { format!("{value:.0} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        for (text, seconds) in [("90", 90), ("30s", 30), ("10m", 600), ("1h30m", 5400), ("2d", 172_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "m", "10x", "1h30", "-5m", "99999999999999999999s", "9999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments_are_relative_or_absolute() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        assert_eq!(moment("10m", now).unwrap().to_string(), "2026-11-22T09:50:00Z");
        assert_eq!(moment("2026-11-22T08:00:00+01:00", now).unwrap().to_string(), "2026-11-22T07:00:00Z");
        assert!(moment("2026-11-22", now).is_ok());
        assert!(moment("2026-11-22 10:00", now).is_ok());
        assert!(moment("yesterday", now).is_err());
        assert!(moment("99999999999d", now).is_err());
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let at = |text: &str| Some(text.parse().unwrap());
        assert_eq!(ago(at("2026-11-22T09:57:00Z"), now), "3m ago");
        assert_eq!(ago(at("2026-11-22T10:00:09Z"), now), "now");
        assert_eq!(ago(None, now), "-");
        assert_eq!(took(850), "850 ms");
        assert_eq!(took(12_345), "12.3 s");
        assert_eq!(took(245_000), "4m 05s");
        assert_eq!(size(268_435_456), "256 MiB");
        assert_eq!(size(1536), "1.5 KiB");
    }
}
