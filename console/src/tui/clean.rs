//! A server's bytes -> what a terminal may be shown. Output is hostile: only colour sequences (SGR) mean anything,
//! every other control byte, escape sequence, invalid byte and invisible character is made visible.

use ratatui::style::{Color, Modifier, Style};
use unicode_width::UnicodeWidthChar as _;

/// A tab goes to the next multiple of this.
const TAB: usize = 8;

/// A run of characters with one style.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Printable characters only.
    pub text: String,
    /// As the server coloured it.
    pub style: Style,
}

/// Cleans one line. `colour` false drops colour sequences instead of applying them.
pub fn clean(line: &[u8], colour: bool) -> Vec<Run> {
    let mut out = Painter { runs: Vec::new(), style: Style::new(), width: 0, colour };
    // The parser knows SGR; whatever is not one comes back as what it was.
    let mut rest = line;
    while let Some(at) = rest.iter().position(|b| *b == 0x1b) {
        out.text(&rest[..at]);
        rest = &rest[at..];
        match sgr_len(rest) {
            Some(len) => {
                out.sgr(&rest[..len]);
                rest = &rest[len..];
            }
            None => {
                out.visible("^[");
                rest = &rest[1..];
            }
        }
    }
    out.text(rest);
    out.runs
}

/// The same without styles.
pub fn plain(line: &[u8]) -> String {
    clean(line, false).into_iter().map(|r| r.text).collect()
}

/// The length of the colour sequence at the beginning, if it is one (and not an absurd one).
pub(super) fn sgr_len(bytes: &[u8]) -> Option<usize> {
    let body = bytes.strip_prefix(b"\x1b[")?;
    let len = body.iter().take(64).position(|b| !(b.is_ascii_digit() || matches!(b, b';' | b':')))?;
    (body[len] == b'm').then_some(len + 3)
}

struct Painter {
    runs: Vec<Run>,
    style: Style,
    width: usize,
    colour: bool,
}

impl Painter {
    fn text(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (good, bad) = match std::str::from_utf8(bytes) {
                Ok(text) => (text, &[][..]),
                Err(e) => {
                    let (good, rest) = bytes.split_at(e.valid_up_to());
                    (std::str::from_utf8(good).unwrap_or_default(), &rest[..e.error_len().unwrap_or(rest.len())])
                }
            };
            for c in good.chars() {
                self.char(c);
            }
            for b in bad {
                self.visible(&format!("\\x{b:02x}"));
            }
            bytes = &bytes[good.len() + bad.len()..];
        }
    }

    fn char(&mut self, c: char) {
        match c {
            '\t' => {
                let n = TAB - self.width % TAB;
                self.push(&" ".repeat(n), n);
            }
            '\0'..='\x1f' => {
                let name = char::from(c as u8 + 0x40);
                self.visible(&format!("^{name}"));
            }
            '\x7f' => self.visible("^?"),
            // C1 controls, and characters that reorder, join or hide text.
            '\u{80}'..='\u{9f}'
            | '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}' => self.visible(&format!("<U+{:04X}>", c as u32)),
            c => {
                let mut buffer = [0; 4];
                self.push(c.encode_utf8(&mut buffer), c.width().unwrap_or(0));
            }
        }
    }

    fn visible(&mut self, text: &str) {
        let style = self.style;
        self.style = style.add_modifier(Modifier::DIM);
        self.push(text, text.len());
        self.style = style;
    }

    fn push(&mut self, text: &str, width: usize) {
        self.width += width;
        match self.runs.last_mut() {
            Some(run) if run.style == self.style => run.text.push_str(text),
            _ => self.runs.push(Run { text: text.to_owned(), style: self.style }),
        }
    }

    fn sgr(&mut self, sequence: &[u8]) {
        if !self.colour {
            return;
        }
        let body = std::str::from_utf8(&sequence[2..sequence.len() - 1]).unwrap_or_default();
        let mut codes = body.split([';', ':']).map(|c| c.parse::<u16>().unwrap_or(0));
        while let Some(code) = codes.next() {
            self.style = match code {
                0 => Style::new(),
                1 => self.style.add_modifier(Modifier::BOLD),
                2 => self.style.add_modifier(Modifier::DIM),
                3 => self.style.add_modifier(Modifier::ITALIC),
                4 => self.style.add_modifier(Modifier::UNDERLINED),
                7 => self.style.add_modifier(Modifier::REVERSED),
                22 => self.style.remove_modifier(Modifier::BOLD | Modifier::DIM),
                23 => self.style.remove_modifier(Modifier::ITALIC),
                24 => self.style.remove_modifier(Modifier::UNDERLINED),
                27 => self.style.remove_modifier(Modifier::REVERSED),
                30..=37 => self.style.fg(Color::Indexed(code as u8 - 30)),
                90..=97 => self.style.fg(Color::Indexed(code as u8 - 82)),
                39 => Style { fg: None, ..self.style },
                40..=47 => self.style.bg(Color::Indexed(code as u8 - 40)),
                100..=107 => self.style.bg(Color::Indexed(code as u8 - 92)),
                49 => Style { bg: None, ..self.style },
                38 | 48 => {
                    let colour = match codes.next() {
                        Some(5) => codes.next().map(|i| Color::Indexed(i.min(255) as u8)),
                        Some(2) => {
                            let mut part = || codes.next().unwrap_or(0).min(255) as u8;
                            Some(Color::Rgb(part(), part(), part()))
                        }
                        _ => None,
                    };
                    match colour {
                        Some(c) if code == 38 => self.style.fg(c),
                        Some(c) => self.style.bg(c),
                        None => self.style,
                    }
                }
                // Hidden text (8), blinking and fonts are not ours to pass on.
                _ => self.style,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_colours_pass() {
        let runs = clean(b"\x1b[31merror\x1b[0m: \x1b[2Jgone\x1b]0;title\x07", true);
        assert_eq!(runs[0], Run { text: "error".into(), style: Style::new().fg(Color::Indexed(1)) });
        let text: String = runs.iter().map(|r| r.text.as_str()).collect();
        assert_eq!(text, "error: ^[[2Jgone^[]0;title^G");
        assert_eq!(plain(b"\x1b[31merror\x1b[0m"), "error");
    }

    #[test]
    fn what_hides_is_shown() {
        assert_eq!(plain("a\u{202e}b\u{200b}c\u{9b}31m".as_bytes()), "a<U+202E>b<U+200B>c<U+009B>31m");
        assert_eq!(plain(b"\xff\xc3(\r\x00\x7f"), "\\xff\\xc3(^M^@^?");
        assert_eq!(plain(b"a\tb"), "a       b");
        assert_eq!(plain("ä\u{1b}".as_bytes()), "ä^[");
    }

    #[test]
    fn hidden_text_stays_readable_and_colours_of_every_kind_work() {
        assert!(clean(b"\x1b[8msecret", true)[0].style == Style::new());
        assert_eq!(clean(b"\x1b[38;2;1;2;3mx", true)[0].style.fg, Some(Color::Rgb(1, 2, 3)));
        assert_eq!(clean(b"\x1b[48;5;200mx", true)[0].style.bg, Some(Color::Indexed(200)));
        assert_eq!(clean(b"\x1b[38mx", true)[0].style, Style::new());
        // An endless one is no colour.
        let long = [b"\x1b[".as_slice(), &[b'1'; 100], b"m"].concat();
        assert!(plain(&long).starts_with("^[[111"));
    }

    #[test]
    fn no_control_character_ever_comes_out() {
        for a in 0u8..=255 {
            for b in [0x1b, b'[', b'm', 0x9b, 0xc2, 0x80, b'1'] {
                let text = plain(&[0x1b, a, b, b'[', b, a]);
                assert!(text.chars().all(|c| !c.is_control()), "{a} {b}: {text:?}");
            }
        }
    }
}
