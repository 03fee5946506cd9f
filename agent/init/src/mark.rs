//! Marks in the engine's log: what init writes before its last words, so that the next agent knows which bytes of which
//! process they are and takes in each once.
//!
//! A mark is a line of its own on the stream that it speaks of. After a `data` mark follow exactly `bytes` bytes (and a
//! line end, if they had none); a `gap` mark speaks of lines that were written to the log earlier.

const HEAD: &str = "sigil-init: last words 1";

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Key of the process.
    pub process: String,
    /// Which start of the container, as in the link's hello.
    pub life: u64,
    /// Offset of the first byte in this stream of this process.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Data: when init read them, twice. Gap: when the first and the last were written. Nanoseconds since 1970.
    pub times: (u64, u64),
    /// The bytes are earlier in the log, as lines without a mark.
    pub gap: bool,
}

impl Mark {
    /// The line, with its end.
    pub fn line(&self) -> String {
        let Self { process, life, offset, bytes, times: (since, until), gap } = self;
        let kind = if *gap { "gap" } else { "data" };
        format!("{HEAD} {kind} {process} {life} {offset} {bytes} {since} {until}\n")
    }

    /// Reads a line of the log; `None`: it is no mark.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let mut words = line.strip_prefix(HEAD)?.strip_prefix(' ')?.trim_end_matches(['\r', '\n']).split(' ');
        let gap = match words.next()? {
            "data" => false,
            "gap" => true,
            _ => return None,
        };
        let process = words.next().filter(|p| crate::wire::is_key(p))?.to_owned();
        let mut number = || words.next()?.parse().ok();
        let mark =
            Self { process, life: number()?, offset: number()?, bytes: number()?, times: (number()?, number()?), gap };
        (words.next().is_none() && mark.offset.checked_add(mark.bytes).is_some()).then_some(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_were_written_and_nothing_else_is() {
        let mark =
            Mark { process: "s-1/a".into(), life: 7, offset: 1 << 40, bytes: 12, times: (1, u64::MAX), gap: true };
        for mark in [mark.clone(), Mark { gap: false, ..mark }] {
            assert_eq!(Mark::parse(mark.line().as_bytes()), Some(mark.clone()));
            assert_eq!(Mark::parse(mark.line().trim_end().as_bytes()), Some(mark));
        }
        let max = u64::MAX;
        for line in [
            "",
            "sigil-init: last words 1",
            "sigil-init: last words 2 data main 1 2 3 4 5",
            "sigil-init: last words 1 data main 1 2 3 4",
            "sigil-init: last words 1 data main 1 2 3 4 5 6",
            "sigil-init: last words 1 data ma\u{e9}n 1 2 3 4 5",
            "sigil-init: last words 1 data main 1 -2 3 4 5",
            " sigil-init: last words 1 data main 1 2 3 4 5",
        ] {
            assert_eq!(Mark::parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(Mark::parse(format!("{HEAD} data main 1 {max} 1 0 0").as_bytes()), None);
    }
}
