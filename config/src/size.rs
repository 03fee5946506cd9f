//! Owns: sizes and durations as people write them. May touch: nothing. Never: rounds silently. Tested by: units here.

/// Bytes of a size as people write it: `1024`, `256Mi`, `256MiB`, `1.5G`, `10 GB` (case of the unit aside, `i` tells
/// 1024 from 1000). `None` when it is no size, negative, or beyond `u64`.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let (letter, base) = match unit.strip_suffix('i') {
        Some(letter) => (letter, 1024_u64),
        None => (unit, 1000),
    };
    let power = match letter {
        "" if base == 1000 => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    let factor = base.checked_pow(power)?;
    match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor),
        Err(_) => {
            let value = number.parse::<f64>().ok()? * factor as f64;
            // beyond 2^53 a float no longer counts bytes exactly; nobody writes such a size with a fraction
            (value.is_finite() && (0.0..9.0e15).contains(&value)).then_some(value as u64)
        }
    }
}

/// Seconds of a duration as people write it: `90`, `30s`, `5m`, `2h`. `None` when it is none.
pub fn seconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("256Mi", Some(256 << 20)),
            ("256MiB", Some(256 << 20)),
            ("1G", Some(1_000_000_000)),
            ("10 GB", Some(10_000_000_000)),
            ("1.5Gi", Some(3 << 29)),
            ("8kb", Some(8000)),
            ("-1", None),
            ("", None),
            ("Mi", None),
            ("1i", None),
            ("1 parsec", None),
            ("99999999999T", None),
            ("1.2.3G", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, expected) in [("90", Some(90)), ("30s", Some(30)), ("5m", Some(300)), ("2h", Some(7200))] {
            assert_eq!(seconds(text), expected, "{text}");
        }
        for text in ["", "s", "-1", "1d", "1.5h"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
