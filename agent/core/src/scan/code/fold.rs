//! Texts that the source alone decides: literals, put together, joined, trimmed, decoded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tree_sitter::Node;

use super::{Code, Lang};

/// Stands where the source does not say.
pub(in super::super) const UNKNOWN: char = '\u{fffc}';
/// Longest text that is put together.
const MAX: usize = 64 * 1024;

/// The value of a string without anything put in.
pub(super) fn literal(code: &Code<'_>, node: Node<'_>) -> Option<String> {
    match node.kind() {
        "string" | "template_string" => {
            let mut cursor = node.walk();
            let whole = node
                .named_children(&mut cursor)
                .all(|child| !matches!(child.kind(), "interpolation" | "template_substitution"));
            whole.then(|| content(code, node, &mut |_| String::new()))
        }
        "interpreted_string_literal" => Some(unescape(code.text(node).trim_matches('"'), false)),
        "raw_string_literal" => Some(code.text(node).trim_matches('`').to_owned()),
        _ => None,
    }
}

/// What is between the quotes, escapes read, with what is put in as the closure says.
fn content<'t>(code: &Code<'_>, node: Node<'t>, put_in: &mut dyn FnMut(Node<'t>) -> String) -> String {
    let text = code.text(node);
    let raw =
        code.lang == Lang::Python && text.split(['"', '\'']).next().is_some_and(|prefix| prefix.contains(['r', 'R']));
    let (mut out, mut at) = (String::new(), None);
    let mut cursor = node.walk();
    let piece = |out: &mut String, from: usize, to: usize| {
        let text = code.file.text.get(from..to).unwrap_or_default();
        out.push_str(&if raw { text.to_owned() } else { unescape(text, code.lang == Lang::Python) });
    };
    let (mut start, mut end) = (node.start_byte() + 1, node.end_byte().saturating_sub(1));
    for child in node.children(&mut cursor) {
        match child.kind() {
            "string_start" => start = child.end_byte(),
            "string_end" => end = child.start_byte(),
            "interpolation" | "template_substitution" => {
                piece(&mut out, at.unwrap_or(start), child.start_byte());
                out.push_str(&put_in(child));
                at = Some(child.end_byte());
            }
            _ => {}
        }
    }
    piece(&mut out, at.unwrap_or(start), end);
    out
}

/// Escapes of Python and JavaScript.
fn unescape(text: &str, python: bool) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(c) = chars.next() else { break };
        let code = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>, length: usize| {
            let digits: String = std::iter::from_fn(|| chars.next_if(char::is_ascii_hexdigit)).take(length).collect();
            u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32).unwrap_or('\u{fffd}')
        };
        match c {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'e' if !python => out.push('e'),
            'x' => out.push(code(&mut chars, 2)),
            'u' if chars.peek() == Some(&'{') => {
                chars.next();
                out.push(code(&mut chars, 6));
                chars.next_if_eq(&'}');
            }
            'u' => out.push(code(&mut chars, 4)),
            'U' if python => out.push(code(&mut chars, 8)),
            '0'..='7' => {
                let mut value = u32::from(c) - u32::from('0');
                for _ in 0..2 {
                    match chars.next_if(|c| ('0'..='7').contains(c)) {
                        Some(next) => value = value * 8 + u32::from(next) - u32::from('0'),
                        None => break,
                    }
                }
                out.push(char::from_u32(value).unwrap_or('\u{fffd}'));
            }
            '\n' => {}
            other => out.push(other),
        }
    }
    out
}

pub(super) fn fold<'t>(code: &Code<'t>, node: Node<'t>) -> Option<String> {
    Folder { code, steps: 400 }.fold(node, 0)
}

pub(super) fn partly<'t>(code: &Code<'t>, node: Node<'t>) -> String {
    Folder { code, steps: 400 }.partly(node, 0)
}

struct Folder<'c, 't> {
    code: &'c Code<'t>,
    steps: usize,
}

impl<'t> Folder<'_, 't> {
    fn fold(&mut self, node: Node<'t>, depth: usize) -> Option<String> {
        Some(self.partly(node, depth)).filter(|text| !text.contains(UNKNOWN))
    }

    /// Text with [`UNKNOWN`] where the source does not say.
    fn partly(&mut self, node: Node<'t>, depth: usize) -> String {
        let node = Code::bare_expr(node);
        let unknown = || UNKNOWN.to_string();
        if depth > 30 || self.steps == 0 {
            return unknown();
        }
        self.steps -= 1;
        match node.kind() {
            "string" | "template_string" => {
                let code = self.code;
                let mut text = content(code, node, &mut |inner| match inner.named_child(0) {
                    Some(inner) => self.partly(inner, depth + 1),
                    None => unknown(),
                });
                cut(&mut text);
                text
            }
            "concatenated_string" => {
                let mut cursor = node.walk();
                let parts: Vec<Node<'t>> = node.named_children(&mut cursor).collect();
                parts.into_iter().map(|part| self.partly(part, depth + 1)).collect()
            }
            "interpreted_string_literal" | "raw_string_literal" => literal(self.code, node).unwrap_or_else(unknown),
            "binary_operator" | "binary_expression" => {
                let operator = node.child_by_field_name("operator").map_or("", |op| self.code.text(op));
                let sides = (node.child_by_field_name("left"), node.child_by_field_name("right"));
                match (operator, sides) {
                    ("+", (Some(left), Some(right))) => {
                        let mut text = self.partly(left, depth + 1);
                        text.push_str(&self.partly(right, depth + 1));
                        cut(&mut text);
                        text
                    }
                    // `x or "…"`: the literal is what stands when nothing else is given
                    ("||" | "??", (Some(_), Some(right))) => self.partly(right, depth + 1),
                    ("%", (Some(left), _)) => format!("{}{UNKNOWN}", self.partly(left, depth + 1)),
                    _ => unknown(),
                }
            }
            "identifier" | "shorthand_property_identifier" => match self.code.only_value(node) {
                Some(value) => self.partly(value, depth + 1),
                None => unknown(),
            },
            "member_expression" | "attribute" => {
                // a constant of the file's own object or class
                let object = ["object"].iter().find_map(|name| node.child_by_field_name(name));
                let key = self.code.path(node);
                let key = super::last(&key).to_owned();
                let of = object.filter(|o| o.kind() == "identifier").and_then(|o| self.code.only_value(o));
                match of {
                    Some(of) if of.kind() == "object" || of.kind() == "dictionary" => {
                        let value = self.code.pairs_in(of).find(|pair| pair.key == key).map(|pair| pair.value);
                        value.map_or_else(unknown, |value| self.partly(value, depth + 1))
                    }
                    _ => unknown(),
                }
            }
            "call" | "call_expression" => self.call(node, depth).unwrap_or_else(unknown),
            _ => unknown(),
        }
    }

    fn call(&mut self, node: Node<'t>, depth: usize) -> Option<String> {
        let callee = Code::bare_expr(node.child_by_field_name("function")?);
        let path = self.code.path(callee);
        let args = node.child_by_field_name("arguments")?;
        let object = callee.child_by_field_name("object");
        let decoded = |text: &str| {
            let bytes = STANDARD.decode(text.trim()).ok()?;
            String::from_utf8(bytes).ok()
        };
        match super::last(&path) {
            "strip" | "trim" | "lstrip" | "rstrip" | "trimstart" | "trimend" | "decode" | "tostring" | "encode" => {
                Some(self.partly(object?, depth + 1))
            }
            "dedent" | "cleandoc" | "string" | "str" | "fill" => Some(self.partly(args.named_child(0)?, depth + 1)),
            "format" | "replace" | "replaceall" => Some(format!("{}{UNKNOWN}", self.partly(object?, depth + 1))),
            "b64decode" | "atob" => decoded(&self.fold(args.named_child(0)?, depth + 1)?),
            "from" if path == "buffer.from" => {
                let text = self.fold(args.named_child(0)?, depth + 1)?;
                match args.named_child(1).and_then(|how| self.fold(how, depth + 1)).as_deref() {
                    Some("base64") => decoded(&text),
                    Some("hex") => String::from_utf8(hex::decode(text).ok()?).ok(),
                    _ => Some(text),
                }
            }
            "fromhex" => String::from_utf8(hex::decode(self.fold(args.named_child(0)?, depth + 1)?).ok()?).ok(),
            "join" => {
                // `["a", "b"].join("")` and `"".join(["a", "b"])`
                let (list, by) = match object?.kind() {
                    "array" | "list" | "tuple" => (object?, args.named_child(0)),
                    _ => (args.named_child(0)?, object),
                };
                if !matches!(list.kind(), "array" | "list" | "tuple") {
                    return None;
                }
                let by = by.map_or_else(|| ",".to_owned(), |by| self.partly(by, depth + 1));
                let mut cursor = list.walk();
                let parts: Vec<Node<'t>> = list.named_children(&mut cursor).collect();
                let parts: Vec<String> = parts.into_iter().map(|part| self.partly(part, depth + 1)).collect();
                Some(parts.join(&by))
            }
            _ => None,
        }
    }
}

fn cut(text: &mut String) {
    if text.len() > MAX {
        let end = (0..=MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}
