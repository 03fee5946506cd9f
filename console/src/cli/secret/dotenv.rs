//! `.env` files, read strictly: what one program takes for a variable and another for text is no value to guess at.
//!
//! `NAME=value`, `export ` before it, `#` comments. A value in `'…'` is as it stands, one in `"…"` knows `\n`, `\r`, `\t`,
//! `\"`, `\\` and `\$`; both may be several lines long. One without quotes ends with its line, or before ` #`. `$NAME` and
//! `${NAME}` are refused outside `'…'`.

use std::io::Read as _;
use std::path::Path;

use super::super::args::variable;
use super::super::fail::{Failure, USAGE};

/// Largest file, bytes.
const FILE_MAX: u64 = 1 << 20;

/// A line of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub value: String,
    line: usize,
}

pub(super) fn read(file: &Path) -> Result<String, Failure> {
    let io = |e: std::io::Error| Failure::io(file.display(), &e);
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().lock().take(FILE_MAX + 1).read_to_string(&mut text).map_err(io)?;
    } else {
        std::fs::File::open(file).map_err(io)?.take(FILE_MAX + 1).read_to_string(&mut text).map_err(io)?;
    }
    if text.len() as u64 > FILE_MAX {
        return Err(Failure::usage(format!("{} is longer than 1 MiB", file.display()), "a .env file has a few lines"));
    }
    Ok(text)
}

/// All entries, or all flaws at once. No flaw quotes a value.
pub(super) fn parse(file: &str, text: &str) -> Result<Vec<Entry>, Failure> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut flaws: Vec<String> = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().enumerate().map(|(n, line)| (n + 1, line));
    while let Some((number, line)) = lines.next() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with('#') {
            continue;
        }
        let bare = bare.strip_prefix("export ").map_or(bare, str::trim_start);
        let Some((name, value)) = bare.split_once('=') else {
            flaws.push(format!("{file}:{number}: no '=' in it"));
            continue;
        };
        let name = name.trim_end();
        if let Err(why) = variable(name) {
            flaws.push(format!("{file}:{number}: {why}"));
        }
        let value = match value.trim_start() {
            quoted if quoted.starts_with(['"', '\'']) => {
                // a quoted value goes on until its quote
                let mut whole = quoted.to_owned();
                loop {
                    match unquoted(&whole) {
                        Ok(Some(value)) => break Ok(value),
                        Err(why) => break Err(why),
                        Ok(None) => match lines.next() {
                            Some((_, more)) => {
                                whole.push('\n');
                                whole.push_str(more);
                            }
                            None => break Err("the quote is not closed"),
                        },
                    }
                }
            }
            plain => plain_value(plain),
        };
        match value {
            Ok(value) if value.is_empty() => flaws.push(format!("{file}:{number}: {name} has no value")),
            Ok(value) => {
                if let Some(other) = entries.iter().find(|e| e.name == name) {
                    flaws.push(format!("{file}:{number}: {name} is there already, in line {}", other.line));
                }
                entries.push(Entry { name: name.to_owned(), value, line: number });
            }
            Err(why) => flaws.push(format!("{file}:{number}: {name}: {why}")),
        }
    }
    match flaws.as_slice() {
        [] if entries.is_empty() => Err(Failure::usage(format!("{file} holds no secret"), "a line is NAME=value")),
        [] => Ok(entries),
        _ => Err(Failure::new(USAGE, "BAD_FILE", flaws.join("\n"), "nothing was set; mend these lines")),
    }
}

const VARIABLE: &str = "'$' refers to a variable here; write the value in '…'";

/// Whether something looks like `$NAME` or `${NAME}`.
fn refers(rest: &str) -> bool {
    rest.starts_with(|c: char| c == '{' || c == '_' || c.is_ascii_alphabetic())
}

fn plain_value(text: &str) -> Result<String, &'static str> {
    let value = match text.find(" #").or_else(|| text.find("\t#")) {
        Some(at) => &text[..at],
        None if text.starts_with('#') => "",
        None => text,
    };
    let value = value.trim_end();
    if value.match_indices('$').any(|(at, _)| refers(&value[at + 1..])) {
        return Err(VARIABLE);
    }
    if value.contains(['"', '\'', '`']) {
        return Err("a quote in the middle of it; write the value in '…' or \"…\"");
    }
    Ok(value.to_owned())
}

/// The value in quotes; `None`: its quote is not in this text.
fn unquoted(text: &str) -> Result<Option<String>, &'static str> {
    let quote = text.chars().next().unwrap_or('"');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => {
                let rest = text[at + 1..].trim();
                if rest.is_empty() || rest.starts_with('#') {
                    return Ok(Some(value));
                }
                return Err("there is more behind the closing quote");
            }
            '\\' if quote == '"' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, 't')) => value.push('\t'),
                Some((_, c @ ('"' | '\\' | '$'))) => value.push(c),
                Some(_) => return Err("an unknown escape; known in \"…\": \\n \\r \\t \\\" \\\\ \\$"),
                None => return Ok(None),
            },
            '$' if quote == '"' && refers(&text[at + 1..]) => return Err(VARIABLE),
            c => value.push(c),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(".env", text).unwrap().into_iter().map(|e| (e.name, e.value)).collect()
    }

    fn flaws(text: &str) -> Vec<String> {
        parse(".env", text).unwrap_err().message.lines().map(str::to_owned).collect()
    }

    #[test]
    fn values_in_every_form() {
        let text = "\u{feff}# keys\r\n\r\nexport A=one\r\nB = two words # a remark\nC='$not \"a\" variable # no remark'\n\
                    D=\"tab\\there \\\"q\\\" \\$5\\\\\" # remark\nE=a=b==\nF='-----BEGIN\nabc\n-----END'\nG=p#d\nH=cost$5\n\
                    I=\"two\nlines\"";
        let expected = [
            ("A", "one"),
            ("B", "two words"),
            ("C", "$not \"a\" variable # no remark"),
            ("D", "tab\there \"q\" $5\\"),
            ("E", "a=b=="),
            ("F", "-----BEGIN\nabc\n-----END"),
            ("G", "p#d"),
            ("H", "cost$5"),
            ("I", "two\nlines"),
        ];
        assert_eq!(pairs(text), expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn all_flaws_at_once_with_their_lines_and_without_values() {
        let text = "GOOD=hunter2\nno equals hunter2\n1BAD=hunter2\nA=$HOME/hunter2\nB=\"${X}hunter2\"\nC=\"hunter2\" more\n\
                    D=\nE=\"\\hunter2\"\nGOOD=hunter2\nF=it's hunter2\nG='never closed hunter2\nH=lost\n";
        let found = flaws(text);
        let starts: Vec<String> =
            found.iter().map(|f| f.splitn(3, ':').take(2).collect::<Vec<_>>().join(":")).collect();
        let lines = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
        assert_eq!(starts, lines.map(|n| format!(".env:{n}")), "{found:?}");
        assert!(!found.iter().any(|f| f.contains("hunter2")), "{found:?}");
        assert!(found[7].contains("GOOD is there already, in line 1"), "{found:?}");
        assert_eq!(flaws("# nothing\n"), [".env holds no secret"]);
    }
}
