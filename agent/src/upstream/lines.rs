//! Bytes of a process's stdout -> lines.

use bytes::{Bytes, BytesMut};

/// Cuts lines at `\n`, wherever the bytes themselves were cut. Nothing is assumed about the encoding.
#[derive(Debug)]
pub(super) struct Cutter {
    buffer: BytesMut,
    /// Bytes of `buffer` known to hold no line break.
    scanned: usize,
    /// In a line longer than `max`, whose rest is dropped.
    skipping: bool,
    max: usize,
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// A line without its break.
    Line(Bytes),
    /// A line longer than the limit was dropped, or its beginning was.
    TooLong,
}

const FIRST: usize = 16 << 10;
const ROOM: usize = 8 << 10;

impl Cutter {
    /// For lines of at most `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self { buffer: BytesMut::with_capacity(FIRST), scanned: 0, skipping: false, max }
    }

    /// Whether nothing is left of what was read.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Where more bytes go, with room for some; to be called only when [`Self::next`] has no more.
    pub(super) fn room(&mut self) -> &mut BytesMut {
        self.buffer.reserve(ROOM);
        &mut self.buffer
    }

    /// The next line that is whole, or known to be too long.
    pub(super) fn next(&mut self) -> Option<Cut> {
        loop {
            let Some(at) = self.buffer.get(self.scanned..)?.iter().position(|b| *b == b'\n') else {
                self.scanned = self.buffer.len();
                if self.scanned <= self.max && !self.skipping {
                    return None;
                }
                // the memory of a line that nobody gets goes with it
                self.buffer = BytesMut::new();
                self.scanned = 0;
                return if std::mem::replace(&mut self.skipping, true) { None } else { Some(Cut::TooLong) };
            };
            let mut line = self.buffer.split_to(self.scanned + at + 1);
            self.scanned = 0;
            line.truncate(line.len() - 1);
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            return Some(if line.len() > self.max { Cut::TooLong } else { Cut::Line(line.freeze()) });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::upstream::one_line;

    /// What comes of these bytes when they arrive in chunks of these sizes.
    fn cut(bytes: &[u8], sizes: &[usize], max: usize) -> Vec<Cut> {
        let (mut cutter, mut cuts, mut rest) = (Cutter::new(max), Vec::new(), bytes);
        let mut sizes = sizes.iter().copied().chain(std::iter::repeat(usize::MAX));
        while !rest.is_empty() {
            let (chunk, more) = rest.split_at(sizes.next().unwrap_or(1).clamp(1, rest.len()));
            rest = more;
            cutter.room().extend_from_slice(chunk);
            while let Some(found) = cutter.next() {
                cuts.push(found);
            }
            assert!(cutter.buffer.len() <= max, "more is kept than a line may have");
        }
        cuts
    }

    /// The same, said at once.
    fn wanted(bytes: &[u8], max: usize) -> Vec<Cut> {
        let mut lines: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
        let unfinished = lines.pop().unwrap_or_default();
        let mut cuts: Vec<Cut> = lines
            .into_iter()
            .map(|line| if line.len() > max { Cut::TooLong } else { Cut::Line(Bytes::copy_from_slice(line)) })
            .collect();
        cuts.extend((unfinished.len() > max).then_some(Cut::TooLong));
        cuts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn lines_however_they_are_cut(
            // breaks are frequent; NUL, CR and what is no UTF-8 are bytes like others
            bytes in proptest::collection::vec(prop_oneof![2 => Just(b'\n'), 1 => Just(b'\r'), 1 => Just(0), 6 => any::<u8>()], 0..200),
            sizes in proptest::collection::vec(1usize..40, 0..60),
            max in 1usize..60,
        ) {
            prop_assert_eq!(cut(&bytes, &sizes, max), wanted(&bytes, max));
        }

        #[test]
        fn a_message_becomes_one_line(before in "[ \r\n\t]{0,3}", parts in proptest::collection::vec("[\\[\\]{}:,0-9\"a-zé]{0,4}[ \r\n]{0,2}", 0..20)) {
            let message = format!("{before}{}", parts.concat());
            let line = one_line(Bytes::from(message.clone()));
            let wanted = message.trim_ascii().replace(['\r', '\n'], " ");
            prop_assert_eq!(&line[..], wanted.as_bytes());
        }
    }

    /// Once, a line over the limit passed when its break came in the same read as the byte that was too many.
    #[test]
    fn the_limit_is_the_same_however_bytes_come() {
        for sizes in [[9, 9].as_slice(), &[4, 1], &[1; 9]] {
            assert_eq!(cut(b"1234\n12345\n", sizes, 4), [Cut::Line(Bytes::from_static(b"1234")), Cut::TooLong]);
        }
    }

    #[test]
    fn an_endless_line_takes_no_more_than_the_limit() {
        let mut cutter = Cutter::new(1 << 20);
        let mut told = 0;
        for _ in 0..1000 {
            cutter.room().extend_from_slice(&[b'x'; 64 << 10]);
            while let Some(found) = cutter.next() {
                assert_eq!(found, Cut::TooLong);
                told += 1;
            }
            assert!(cutter.buffer.capacity() <= 4 << 20, "{}", cutter.buffer.capacity());
        }
        assert_eq!(told, 1, "one line is one complaint");
        cutter.room().extend_from_slice(b"\n{}\n");
        assert_eq!(cutter.next(), Some(Cut::Line(Bytes::from_static(b"{}"))));
        assert_eq!(cutter.next(), None);
    }
}
