//! W3C trace context (level 1): which trace a request belongs to, and whether it is recorded.

use std::fmt::Write;

/// Names a span in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace; never all zero.
    pub trace: [u8; 16],
    /// The span; never all zero.
    pub span: [u8; 8],
    /// Whether whoever began the trace records it.
    pub sampled: bool,
}

impl Context {
    /// Reads `traceparent`. A version that is not known yet is read as far as this one goes, as it asks for.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version = bytes::<1>(parts.next()?)?;
        let (trace, span) = (bytes::<16>(parts.next()?)?, bytes::<8>(parts.next()?)?);
        let flags = bytes::<1>(parts.next()?)?;
        let ours = version == [0];
        let whole = parts.next().is_none();
        if version == [0xff] || (ours && !whole) || trace == [0; 16] || span == [0; 8] {
            return None;
        }
        Some(Self { trace, span, sampled: flags[0] & 1 == 1 })
    }

    /// As `traceparent` writes it.
    pub fn header(&self) -> String {
        let mut text = String::with_capacity(55);
        text.push_str("00-");
        self.trace.iter().chain(&self.span).enumerate().for_each(|(index, byte)| {
            if index == self.trace.len() {
                text.push('-');
            }
            // writing to a String cannot fail
            let _ = write!(text, "{byte:02x}");
        });
        text.push_str(if self.sampled { "-01" } else { "-00" });
        text
    }
}

/// Lower case only: the specification has no other.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |d: u8| match d {
        b'0'..=b'9' => Some(d - b'0'),
        b'a'..=b'f' => Some(d - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(out)
}

/// Whether a trace that begins here is recorded, so many of all being `ratio`. The same for one trace everywhere.
pub fn sampled(trace: &[u8; 16], ratio: f64) -> bool {
    if ratio >= 1.0 {
        return true;
    }
    let [.., a, b, c, d, e, f, g, h] = *trace;
    let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 11;
    // 53 bits are exact in a float
    (number as f64) < ratio * (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn contexts_are_read_and_written() {
        let context = Context::parse(PARENT).unwrap();
        assert!(context.sampled && context.trace[0] == 0x4b && context.span[7] == 0xb7);
        assert_eq!(context.header(), PARENT);
        let quiet = PARENT.replace("-01", "-00");
        assert_eq!(Context::parse(&quiet).unwrap().header(), quiet);
        assert_eq!(Context::parse(&format!("cc{}-more", &PARENT[2..])), Some(context));
    }

    #[test]
    fn what_is_no_context_is_none() {
        for bad in [
            "",
            "00",
            &PARENT[..54],
            &format!("{PARENT}-more"),
            &format!("ff{}", &PARENT[2..]),
            &PARENT.to_uppercase(),
            &PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &PARENT.replace('4', "g"),
            "é0-é",
        ] {
            assert_eq!(Context::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_share_of_traces_is_recorded() {
        let traces = || {
            (0..10_000_u64).map(|n| {
                let mut trace = [1; 16];
                trace[8..].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
                trace
            })
        };
        for (ratio, least, most) in [(0.0, 0, 0), (0.25, 2_400, 2_600), (1.0, 10_000, 10_000)] {
            let count = traces().filter(|trace| sampled(trace, ratio)).count();
            assert!((least..=most).contains(&count), "{ratio}: {count}");
        }
    }
}
