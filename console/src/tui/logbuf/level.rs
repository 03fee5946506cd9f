//! How loud a line is, by what it says of itself: JSON, logfmt, glog and syslog prefixes, or the first telling word.

/// How loud a line is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Says nothing of a level.
    #[default]
    None,
    /// For who writes the program.
    Debug,
    /// For the record.
    Info,
    /// Something to look at.
    Warn,
    /// Something failed.
    Error,
}

/// Bytes of a line in which a field is looked for.
const FIELDS: usize = 1024;
/// Bytes of a line in which a word is looked for.
const WORDS: usize = 160;
/// Names of fields that tell a level, in JSON and logfmt.
const NAMES: [&[u8]; 5] = [b"level", b"severity", b"lvl", b"levelname", b"loglevel"];

/// What a line says of itself; only its beginning is looked at.
pub fn level(line: &[u8]) -> Level {
    let line = line.trim_ascii_start();
    let fields = &line[..line.len().min(FIELDS)];
    match line.first() {
        Some(b'{') => {
            if let Some(level) = json(fields) {
                return level;
            }
        }
        // a syslog priority of a program that writes to a journal
        Some(b'<') => {
            if let [b'<', digit @ b'0'..=b'7', b'>', ..] = line {
                return [Level::Error, Level::Error, Level::Error, Level::Error, Level::Warn, Level::Info, Level::Info]
                    .get(usize::from(digit - b'0'))
                    .copied()
                    .unwrap_or(Level::Debug);
            }
        }
        _ => {
            if let Some(level) = logfmt(fields) {
                return level;
            }
        }
    }
    glog(line).unwrap_or_else(|| word(&line[..line.len().min(WORDS)]))
}

/// `"level":"warn"`, `"severity": "ERROR"`, `"level":50` (pino, bunyan).
fn json(line: &[u8]) -> Option<Level> {
    let mut from = 0;
    while let Some(at) = line[from..].iter().position(|b| *b == b'"') {
        let name = &line[from + at + 1..];
        let end = name.iter().position(|b| *b == b'"')?;
        let (name, rest) = (&name[..end], name[end + 1..].trim_ascii_start());
        // behind `log.level` and the like, too
        let last = name.rsplit(|b| *b == b'.').next().unwrap_or(name);
        if let Some(value) = rest.strip_prefix(b":")
            && NAMES.iter().any(|n| last.eq_ignore_ascii_case(n))
        {
            let value = value.trim_ascii_start();
            return match value.first()? {
                b'"' => {
                    let value = &value[1..];
                    known(&value[..value.iter().position(|b| *b == b'"').unwrap_or(value.len())])
                }
                b'0'..=b'9' => {
                    let digits = value.iter().take_while(|b| b.is_ascii_digit());
                    let number = digits.take(4).fold(0_u32, |n, d| n * 10 + u32::from(d - b'0'));
                    Some(match number {
                        50.. => Level::Error,
                        40.. => Level::Warn,
                        30.. => Level::Info,
                        // not this scale: nothing is known
                        0..10 => return None,
                        _ => Level::Debug,
                    })
                }
                _ => None,
            };
        }
        from = line.len() - rest.len();
    }
    None
}

/// `level=warn`, `lvl="error"`.
fn logfmt(line: &[u8]) -> Option<Level> {
    let mut from = 0;
    while let Some(at) = line[from..].iter().position(|b| *b == b'=') {
        let at = from + at;
        let start = line[..at].iter().rposition(|b| !b.is_ascii_alphanumeric()).map_or(0, |i| i + 1);
        if NAMES.iter().any(|n| line[start..at].eq_ignore_ascii_case(n)) {
            let value = line[at + 1..].strip_prefix(b"\"").unwrap_or(&line[at + 1..]);
            let end = value.iter().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(value.len());
            return known(&value[..end]);
        }
        from = at + 1;
    }
    None
}

/// `E1122 19:25:54.000000`.
fn glog(line: &[u8]) -> Option<Level> {
    let [letter, month @ .., b' '] = line.get(..6)? else { return None };
    if !month.iter().all(u8::is_ascii_digit) {
        return None;
    }
    match letter {
        b'E' | b'F' => Some(Level::Error),
        b'W' => Some(Level::Warn),
        b'I' => Some(Level::Info),
        b'D' => Some(Level::Debug),
        _ => None,
    }
}

/// The first word that tells counts: 'INFO no error' is no error.
fn word(head: &[u8]) -> Level {
    head.split(|b| !b.is_ascii_alphanumeric() && *b != b'_').find_map(known).unwrap_or_default()
}

/// What a word means.
fn known(word: &[u8]) -> Option<Level> {
    if !(3..=11).contains(&word.len()) {
        return None;
    }
    let is = |words: &[&[u8]]| words.iter().any(|w| word.eq_ignore_ascii_case(w));
    // by the first letter: most words of most lines end here
    let level = match word[0].to_ascii_lowercase() {
        b'e' if is(&[b"error", b"err", b"exception", b"emerg", b"emergency"]) => Level::Error,
        b'f' if is(&[b"fatal"]) => Level::Error,
        b'p' if is(&[b"panic", b"panicked"]) => Level::Error,
        b'c' if is(&[b"critical", b"crit"]) => Level::Error,
        b'a' if is(&[b"alert"]) => Level::Error,
        b't' if is(&[b"traceback"]) => Level::Error,
        b'w' if is(&[b"warn", b"warning"]) => Level::Warn,
        b'i' if is(&[b"info", b"information"]) => Level::Info,
        b'n' if is(&[b"notice"]) => Level::Info,
        b'd' if is(&[b"debug"]) => Level::Debug,
        b't' if is(&[b"trace"]) => Level::Debug,
        b'v' if is(&[b"verbose"]) => Level::Debug,
        _ => return None,
    };
    Some(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        for (text, want) in [
            ("2026-01-01 ERROR no", Level::Error),
            (r#"{"level":"warn","msg":"x"}"#, Level::Warn),
            (r#"{"time":"x","msg":"an error of before","log.level": "info"}"#, Level::Info),
            (r#"{"level":50,"msg":"pino"}"#, Level::Error),
            (r#"{"level":20}"#, Level::Debug),
            (r#"{"severity":"CRITICAL"}"#, Level::Error),
            (r#"{"msg":"warning, no field"}"#, Level::Warn),
            (r#"ts=1 caller=main.go msg="no error" level=info"#, Level::Info),
            (r#"lvl="error" x"#, Level::Error),
            ("nolevel=error info", Level::Error),
            ("E1122 19:25:54.000001 1 main.go:1] x", Level::Error),
            ("W1122 19:25:54.000001 1 main.go:1] error", Level::Warn),
            ("<3>kernel says", Level::Error),
            ("<7>kernel says error", Level::Debug),
            ("INFO no error", Level::Info),
            ("Traceback (most recent call last):", Level::Error),
            ("[debug] x", Level::Debug),
            ("terror and inform", Level::None),
            ("{", Level::None),
            (r#"{"level":"#, Level::None),
            ("", Level::None),
        ] {
            assert_eq!(level(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn no_bytes_upset_it() {
        for a in [b'{', b'"', b'=', b'<', b'E', 0xff] {
            for b in 0u8..=255 {
                for c in [b'"', b':', b'=', b' ', b'1'] {
                    level(&[a, b, c, a, c, b, b' ']);
                }
            }
        }
    }
}
