//! Bytes of a stream -> lines.
//!
//! A line ends at `\n`; a `\r` before it goes too. Nothing is assumed about the encoding. A line longer than the limit
//! is cut into several, each but the last marked, at a character's boundary where the bytes are UTF-8: no byte is lost.

/// The unfinished end of one stream of one process.
#[derive(Debug, Default, Clone)]
pub(super) struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// With what a former agent had of an unfinished line.
    pub(super) fn with(partial: Vec<u8>) -> Self {
        Self { partial }
    }

    /// What came after the last newline.
    pub(super) fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Drops the last `n` bytes of the unfinished line: they come again from elsewhere.
    pub(super) fn forget_last(&mut self, n: usize) {
        self.partial.truncate(self.partial.len().saturating_sub(n));
    }

    /// Takes bytes in and gives out each line that they finish; `true` means that the line goes on in the next.
    pub(super) fn feed(&mut self, mut bytes: &[u8], max: usize, mut line: impl FnMut(&[u8], bool)) {
        let max = max.max(16);
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (head, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.partial.is_empty() {
                emit(head, max, &mut line);
            } else {
                self.partial.extend_from_slice(head);
                emit(&self.partial, max, &mut line);
                self.partial.clear();
            }
        }
        while !bytes.is_empty() {
            let room = (max + 1).saturating_sub(self.partial.len());
            let (head, rest) = bytes.split_at(room.min(bytes.len()));
            self.partial.extend_from_slice(head);
            bytes = rest;
            // One byte over the limit (that could be the `\r` of a line's end, which is no part of it).
            if self.partial.len() > max && !(rest.is_empty() && self.partial.last() == Some(&b'\r')) {
                let at = boundary(&self.partial, max);
                line(&self.partial[..at], true);
                self.partial.drain(..at);
            }
        }
    }

    /// Ends the line where it is; `false` when there was nothing.
    pub(super) fn finish(&mut self, max: usize, mut line: impl FnMut(&[u8], bool)) -> bool {
        if self.partial.is_empty() {
            return false;
        }
        emit(&self.partial, max.max(16), &mut line);
        self.partial.clear();
        true
    }
}

fn emit(text: &[u8], max: usize, line: &mut impl FnMut(&[u8], bool)) {
    let mut text = text.strip_suffix(b"\r").unwrap_or(text);
    while text.len() > max {
        let at = boundary(text, max);
        line(&text[..at], true);
        text = &text[at..];
    }
    line(text, false);
}

/// The last place at or before `max` that does not tear a UTF-8 character apart.
fn boundary(text: &[u8], max: usize) -> usize {
    (max.saturating_sub(3)..=max).rev().find(|at| text.get(*at).is_none_or(|b| b & 0xC0 != 0x80)).unwrap_or(max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(chunks: &[&[u8]], max: usize) -> (Vec<(String, bool)>, String) {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.feed(chunk, max, |l, cut| lines.push((String::from_utf8_lossy(l).into_owned(), cut)));
        }
        (lines, String::from_utf8_lossy(splitter.partial()).into_owned())
    }

    #[test]
    fn lines_across_chunks_and_line_ends() {
        let (lines, rest) = split(&[b"a\nb", b"c\r\n\r", b"\n\nd\re"], 64);
        let texts: Vec<_> = lines.iter().map(|(l, _)| l.as_str()).collect();
        assert_eq!(texts, ["a", "bc", "", ""]);
        assert_eq!(rest, "d\re");
    }

    #[test]
    fn a_long_line_is_cut_and_marked_and_nothing_is_lost() {
        let (lines, rest) = split(&[&[b'x'; 40], b"yz\n", &[b'q'; 16], b"\r\nend"], 16);
        assert_eq!(
            lines,
            [
                ("x".repeat(16), true),
                ("x".repeat(16), true),
                (format!("{}yz", "x".repeat(8)), false),
                ("q".repeat(16), false)
            ]
        );
        assert_eq!(rest, "end");
    }

    #[test]
    fn a_cut_keeps_characters_whole() {
        let text = "äöü".repeat(10);
        let (lines, rest) = split(&[text.as_bytes()], 17);
        assert!(lines.iter().all(|(l, cut)| *cut && l.len() == 16 && !l.contains('\u{fffd}')), "{lines:?}");
        assert_eq!(lines.iter().map(|(l, _)| l.as_str()).collect::<String>() + &rest, text);
    }

    proptest! {
        /// However the bytes are chunked, the lines are the same and no byte but line ends is lost.
        #[test]
        fn chunking_does_not_matter(text in "[ab\r\n\u{e4}]{0,200}", at in prop::collection::vec(0usize..200, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = at.into_iter().filter(|a| *a <= bytes.len()).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let whole = split(&[bytes], 16);
            let joined = |(lines, rest): &(Vec<(String, bool)>, String)| {
                lines.iter().map(|(l, cut)| format!("{l}{}", if *cut { "" } else { "\n" })).collect::<String>() + rest
            };
            prop_assert_eq!(joined(&split(&chunks, 16)), joined(&whole));
            prop_assert!(whole.0.iter().all(|(l, _)| l.len() <= 16));
        }
    }
}
