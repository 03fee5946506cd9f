//! Text from servers is hostile: only colour passes, every other control byte is made visible.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Cuts to a width in columns, with `…` where something is missing.
pub fn fit(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let w = c.width().unwrap_or(0);
        if used + w + 1 > width {
            break;
        }
        used += w;
        out.push(c);
    }
    if width > 0 {
        out.push('…');
    }
    out
}

/// For a table's cell: no colour, no line ends.
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            c => visible(c, &mut out),
        }
    }
    out
}

/// A line of output for a terminal: colour sequences pass when `colour`, are dropped otherwise; tabs stay; the rest of
/// what controls a terminal is shown as `^[`, `<U+202E>` or `�`.
pub fn for_terminal(line: &[u8], colour: bool) -> String {
    let text = String::from_utf8_lossy(line);
    let mut out = String::with_capacity(text.len());
    let mut coloured = false;
    let mut rest = text.as_ref();
    while let Some(c) = rest.chars().next() {
        if c == '\x1b'
            && let Some(length) = sgr(rest)
        {
            if colour {
                out.push_str(&rest[..length]);
                coloured = true;
            }
            rest = &rest[length..];
            continue;
        }
        match c {
            '\t' => out.push('\t'),
            c => visible(c, &mut out),
        }
        rest = &rest[c.len_utf8()..];
    }
    if coloured {
        out.push_str("\x1b[0m");
    }
    out
}

/// Length of a colour sequence (`ESC [ digits ; : m`) at the start.
fn sgr(text: &str) -> Option<usize> {
    let body = text.strip_prefix("\x1b[")?;
    let end = body.find(|c: char| !c.is_ascii_digit() && c != ';' && c != ':')?;
    body[end..].starts_with('m').then_some(2 + end + 1)
}

fn visible(c: char, out: &mut String) {
    match c {
        '\0'..='\x1f' => {
            out.push('^');
            out.push(char::from(c as u8 + 0x40));
        }
        '\x7f' => out.push_str("^?"),
        // C1 controls, and characters that turn or hide text
        '\u{80}'..='\u{9f}'
        | '\u{200b}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}'
        | '\u{feff}'
        | '\u{e0000}'..='\u{e007f}'
        | '\u{2028}'
        | '\u{2029}' => out.push_str(&format!("<U+{:04X}>", u32::from(c))),
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_colour_passes() {
        assert_eq!(for_terminal(b"\x1b[31mred\x1b[0m", true), "\x1b[31mred\x1b[0m\x1b[0m");
        assert_eq!(for_terminal(b"\x1b[31mred", false), "red");
        assert_eq!(for_terminal(b"a\x1b[2Jb\x07\r\tc", true), "a^[[2Jb^G^M\tc");
        assert_eq!(for_terminal(b"\x1b]0;title\x07", true), "^[]0;title^G");
        assert_eq!(for_terminal("x\u{202e}y\u{9b}2J".as_bytes(), true), "x<U+202E>y<U+009B>2J");
        assert_eq!(for_terminal(b"bad \xff", true), "bad \u{fffd}");
        assert_eq!(for_terminal(b"\x1b[", true), "^[[");
    }

    #[test]
    fn cutting_counts_columns() {
        assert_eq!(fit("abcdef", 6), "abcdef");
        assert_eq!(fit("abcdef", 4), "abc…");
        assert_eq!(fit("漢字漢字", 5), "漢字…");
    }
}
