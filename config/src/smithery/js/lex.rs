//! Owns: JavaScript text -> words. May touch: nothing. Never: expands anything. Tested by: `smithery/js.rs`.

use super::JsError;

/// A word of the text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A name or a word of the language.
    Name(String),
    Text(String),
    Number(f64),
    /// Literal parts and the sources of what stands between them.
    Template(Vec<String>, Vec<String>),
    Mark(&'static str),
    End,
}

const MARKS: &[&str] = &[
    "...", "===", "!==", "=>", "==", "!=", "&&", "||", "??", "?.", "+=", "(", ")", "{", "}", "[", "]", ",", ":", ";",
    "?", "!", ".", "+", "=", ">", "<",
];

pub(super) fn unsupported<T>(what: &str, near: &str) -> Result<T, JsError> {
    let near: String = near.trim().chars().take(30).collect();
    Err(JsError::Unsupported { what: what.to_owned(), near })
}

pub(super) fn lex(text: &str) -> Result<Vec<(Token, usize)>, JsError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let at = text.len() - rest.len();
        if let Some(after) = rest.strip_prefix("//") {
            rest = after.split_once('\n').map_or("", |(_, rest)| rest);
            continue;
        }
        if let Some(after) = rest.strip_prefix("/*") {
            rest = after.split_once("*/").map_or("", |(_, rest)| rest);
            continue;
        }
        let Some(first) = rest.chars().next() else {
            tokens.push((Token::End, at));
            return Ok(tokens);
        };
        let (token, len) = if first.is_alphabetic() || first == '_' || first == '$' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '$').unwrap_or(rest.len());
            (Token::Name(rest[..end].to_owned()), end)
        } else if first.is_ascii_digit() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            match rest[..end].parse() {
                Ok(number) => (Token::Number(number), end),
                Err(_) => return unsupported("this number", rest),
            }
        } else if first == '"' || first == '\'' {
            let (text, len) = quoted(rest, first)?;
            (Token::Text(text), len)
        } else if first == '`' {
            template(rest)?
        } else if let Some(mark) = MARKS.iter().find(|m| rest.starts_with(**m)) {
            (Token::Mark(mark), mark.len())
        } else {
            return unsupported("this", rest);
        };
        tokens.push((token, at));
        rest = &rest[len..];
    }
}

/// One escaped character after the backslash, and how many bytes it took.
fn escape(rest: &str) -> Result<(String, usize), JsError> {
    let Some(c) = rest.chars().next() else { return unsupported("a text without its end", rest) };
    let plain = match c {
        'n' => "\n".into(),
        't' => "\t".into(),
        'r' => "\r".into(),
        '\n' => String::new(),
        'u' | 'x' | '0'..='9' => return unsupported("this escape", rest),
        c => c.to_string(),
    };
    Ok((plain, c.len_utf8()))
}

fn quoted(rest: &str, quote: char) -> Result<(String, usize), JsError> {
    let mut out = String::new();
    let mut at = 1;
    while let Some(c) = rest[at..].chars().next() {
        at += c.len_utf8();
        match c {
            c if c == quote => return Ok((out, at)),
            '\\' => {
                let (text, len) = escape(&rest[at..])?;
                out.push_str(&text);
                at += len;
            }
            '\n' => break,
            c => out.push(c),
        }
    }
    unsupported("a text without its end", rest)
}

fn template(rest: &str) -> Result<(Token, usize), JsError> {
    let (mut parts, mut holes, mut part) = (Vec::new(), Vec::new(), String::new());
    let mut at = 1;
    while let Some(c) = rest[at..].chars().next() {
        at += c.len_utf8();
        match c {
            '`' => {
                parts.push(part);
                return Ok((Token::Template(parts, holes), at));
            }
            '\\' => {
                let (text, len) = escape(&rest[at..])?;
                part.push_str(&text);
                at += len;
            }
            '$' if rest[at..].starts_with('{') => {
                let inner = &rest[at + 1..];
                let mut depth = 0_usize;
                let end = inner.char_indices().find(|(_, c)| match c {
                    '{' => {
                        depth += 1;
                        false
                    }
                    '}' if depth == 0 => true,
                    '}' => {
                        depth -= 1;
                        false
                    }
                    _ => false,
                });
                let Some((end, _)) = end else { break };
                parts.push(std::mem::take(&mut part));
                holes.push(inner[..end].to_owned());
                at += end + 2;
            }
            c => part.push(c),
        }
    }
    unsupported("a template without its end", rest)
}
