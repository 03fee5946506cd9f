//! JSON as clients write it: comments and trailing commas are read, whatever a client thinks of them.

use std::ops::Range;

use jsonc_parser::ast;
use jsonc_parser::common::Ranged as _;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast, parse_to_serde_value};
use serde_json::Value;

use super::members::{Brackets, Comments};
use super::{EditError, Edited, Kind, Made, Slot, apply, malformed, newline, wrong};

fn options() -> ParseOptions {
    ParseOptions {
        allow_comments: true,
        allow_loose_object_property_names: false,
        allow_trailing_commas: true,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    }
}

fn ast(text: &str) -> Result<Option<ast::Value<'_>>, EditError> {
    let parsed = parse_to_ast(text, &CollectOptions::default(), &options());
    parsed.map(|parsed| parsed.value).map_err(|e| malformed(text, e.range().start, e.kind().to_string()))
}

pub(super) fn read(text: &str) -> Result<Value, EditError> {
    let value: Option<Value> = parse_to_serde_value(text, &options())
        .map_err(|e: jsonc_parser::errors::ParseError| malformed(text, e.range().start, e.kind().to_string()))?;
    Ok(value.unwrap_or_else(|| Value::Object(serde_json::Map::new())))
}

/// A container on the way to an entry.
struct Found {
    brackets: Brackets,
    /// Of a member of the container: name (its key, or what its field says), and where its value is.
    names: Vec<(Option<String>, Range<usize>)>,
}

fn container(value: &ast::Value<'_>, kind: Kind) -> Option<Found> {
    let range = |range: jsonc_parser::common::Range| range.start..range.end;
    match (value, kind) {
        (ast::Value::Object(object), Kind::Map) => Some(Found {
            brackets: Brackets {
                range: range(object.range),
                members: object.properties.iter().map(|member| range(member.range)).collect(),
            },
            names: object
                .properties
                .iter()
                .map(|member| (Some(member.name.as_str().to_owned()), range(member.value.range())))
                .collect(),
        }),
        (ast::Value::Array(array), Kind::List(field)) => Some(Found {
            brackets: Brackets {
                range: range(array.range),
                members: array.elements.iter().map(|member| range(member.range())).collect(),
            },
            names: array
                .elements
                .iter()
                .map(|member| {
                    let named = member.as_object().and_then(|object| object.get_string(field));
                    (named.map(|text| text.value.to_string()), range(member.range()))
                })
                .collect(),
        }),
        _ => None,
    }
}

fn kind_at(slot: &Slot, depth: usize) -> Kind {
    if depth == slot.path.len() { slot.kind } else { Kind::Map }
}

/// The containers that are there, from the root on.
fn chain(text: &str, slot: &Slot) -> Result<Vec<Found>, EditError> {
    let Some(root) = ast(text)? else { return Ok(Vec::new()) };
    let mut at = &root;
    let mut found = Vec::new();
    for depth in 0..=slot.path.len() {
        let kind = kind_at(slot, depth);
        let wanted = if kind == Kind::Map { "a map" } else { "a list" };
        let here = container(at, kind).ok_or_else(|| wrong(&slot.path[..depth], "something else", wanted))?;
        found.push(here);
        let Some(key) = slot.path.get(depth) else { break };
        let ast::Value::Object(object) = at else { break };
        let mut same = object.properties.iter().filter(|member| member.name.as_str() == key);
        let Some(member) = same.next() else { break };
        if same.next().is_some() {
            return Err(EditError::Twice(slot.path[..=depth].join(".")));
        }
        at = &member.value;
    }
    Ok(found)
}

/// The blanks of one level, as the file has them.
fn unit(text: &str) -> Result<String, EditError> {
    let blanks = match ast(text)? {
        Some(ast::Value::Object(root)) => root.properties.first().and_then(|first| {
            let before = &text[root.range.start + 1..first.range.start];
            before.rfind('\n').map(|newline| before[newline + 1..].to_owned())
        }),
        _ => None,
    };
    Ok(blanks.filter(|blanks| !blanks.is_empty() && blanks.trim().is_empty()).unwrap_or_else(|| "  ".to_owned()))
}

/// A value as a person would set it: maps spread, lists of plain values on a line; all on one line when `blanks` is `None`.
fn print(value: &Value, blanks: Option<&str>, unit: &str, nl: &str) -> String {
    let Some(blanks) = blanks else { return one_line(value) };
    let deeper = format!("{blanks}{unit}");
    let spread = |open: char, items: Vec<String>, close: char| {
        let items = items.join(&format!(",{nl}{deeper}"));
        format!("{open}{nl}{deeper}{items}{nl}{blanks}{close}")
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            let item = |(key, value): (&String, &Value)| {
                format!("{}: {}", Value::from(key.as_str()), print(value, Some(&deeper), unit, nl))
            };
            spread('{', map.iter().map(item).collect(), '}')
        }
        Value::Array(list) if list.iter().any(|item| item.is_object() || item.is_array()) => {
            spread('[', list.iter().map(|item| print(item, Some(&deeper), unit, nl)).collect(), ']')
        }
        other => one_line(other),
    }
}

pub(super) fn one_line(value: &Value) -> String {
    match value {
        Value::Object(map) if !map.is_empty() => {
            let items: Vec<String> =
                map.iter().map(|(key, value)| format!("{}: {}", Value::from(key.as_str()), one_line(value))).collect();
            format!("{{{}}}", items.join(", "))
        }
        Value::Array(list) if !list.is_empty() => {
            format!("[{}]", list.iter().map(one_line).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

pub(super) fn put(text: &str, slot: &Slot, name: &str, value: &Value) -> Result<Edited, EditError> {
    let chain = chain(text, slot)?;
    let (nl, unit) = (newline(text), unit(text)?);
    let Some(deepest) = chain.last() else {
        // a file that says nothing: what it says stays before
        let whole = nested(&slot.path, slot, name, value);
        let lead = if text.is_empty() || text.ends_with('\n') { "" } else { nl };
        let text_after = format!("{text}{lead}{}{nl}", print(&whole, Some(""), &unit, nl));
        let mut made = vec![Made { path: Vec::new(), before: Some(text.to_owned()) }];
        made.extend(absent(slot, 0));
        return Ok(Edited { text: text_after, made });
    };
    let depth = chain.len() - 1;
    let mut made = Vec::new();
    let complete = depth == slot.path.len();
    if complete {
        let mut same = deepest.names.iter().filter(|(known, _)| known.as_deref() == Some(name));
        if let Some((_, range)) = same.next() {
            if same.next().is_some() {
                return Err(EditError::Twice(name.to_owned()));
            }
            let spread = text[range.clone()].contains('\n');
            let blanks = super::indentation(text, range.start);
            let printed = print(value, spread.then_some(blanks), &unit, nl);
            let cut = super::Cut::new(range.start, range.end, printed);
            return Ok(Edited { text: apply(text, vec![cut]), made });
        }
    }
    let Some(root) = chain.first() else { return Err(EditError::Form("no root")) };
    let spread = text[root.brackets.range.clone()].contains('\n') || root.brackets.members.is_empty();
    let manner = deepest.brackets.manner(text, &unit, spread);
    let member = {
        let (key, inner) = if complete {
            (name, value.clone())
        } else {
            (slot.path[depth].as_str(), nested(&slot.path[depth + 1..], slot, name, value))
        };
        let printed = print(&inner, manner.as_deref(), &unit, nl);
        match kind_at(slot, depth) {
            Kind::Map => format!("{}: {printed}", Value::from(key)),
            Kind::List(_) => printed,
        }
    };
    if deepest.brackets.members.is_empty() && deepest.brackets.is_blank(text) {
        let before = Some(text[deepest.brackets.range.clone()].to_owned());
        made.push(Made { path: slot.path[..depth].to_vec(), before });
    }
    if !complete {
        made.extend(absent(slot, depth));
    }
    let cuts = deepest.brackets.add(text, &member, manner.as_deref(), Comments::Slashes);
    Ok(Edited { text: apply(text, cuts), made })
}

/// What is made below a depth, where nothing is.
pub(super) fn absent(slot: &Slot, depth: usize) -> impl Iterator<Item = Made> + '_ {
    (depth + 1..=slot.path.len()).map(|to| Made { path: slot.path[..to].to_vec(), before: None })
}

/// An entry inside what it needs around it.
pub(super) fn nested(path: &[String], slot: &Slot, name: &str, value: &Value) -> Value {
    match path.split_first() {
        Some((key, rest)) => {
            let mut map = serde_json::Map::new();
            map.insert(key.clone(), nested(rest, slot, name, value));
            Value::Object(map)
        }
        None if slot.kind == Kind::Map => {
            let mut map = serde_json::Map::new();
            map.insert(name.to_owned(), value.clone());
            Value::Object(map)
        }
        None => Value::Array(vec![value.clone()]),
    }
}

pub(super) fn take(text: &str, slot: &Slot, name: &str, made: &[Made]) -> Result<Edited, EditError> {
    let mut made = made.to_vec();
    let mut chain = chain(text, slot)?;
    if chain.len() != slot.path.len() + 1 {
        return Ok(Edited { text: text.to_owned(), made });
    }
    let mut wanted = name.to_owned();
    // from the entry outwards: what becomes empty and was made for it goes, too
    while let Some(found) = chain.pop() {
        let depth = chain.len();
        let Some(index) = found.names.iter().position(|(known, _)| known.as_deref() == Some(&wanted)) else {
            return Err(EditError::Form("the entry is not where it was"));
        };
        let brackets = &found.brackets;
        let range = brackets.range.clone();
        let cuts = brackets.remove(text, index, Comments::Slashes);
        let shrunk = apply(text, cuts);
        let end = shrunk.len() - (text.len() - range.end);
        let emptied = brackets.members.len() == 1 && shrunk[range.start + 1..end - 1].trim().is_empty();
        let path = &slot.path[..depth];
        let known = made.iter().position(|known| known.path == path);
        let restored = match known.map(|at| made[at].before.clone()) {
            _ if !emptied => return Ok(Edited { text: shrunk, made }),
            Some(None) => {
                made.retain(|known| known.path != path);
                let Some(key) = path.last() else { return Err(EditError::Form("no root")) };
                wanted.clone_from(key);
                continue;
            }
            Some(Some(before)) => {
                made.retain(|known| known.path != path);
                if depth == 0 && !before.starts_with('{') {
                    // the file said nothing; what it said beside stands around
                    let outside = format!("{}{}", &text[..range.start], &text[range.end..]);
                    let same = outside.trim() == before.trim();
                    return Ok(Edited { text: if same { before } else { outside }, made });
                }
                before
            }
            None => text[range.start..=range.start].to_owned() + &text[range.end - 1..range.end],
        };
        let cut = super::Cut::new(range.start, range.end, restored);
        return Ok(Edited { text: apply(text, vec![cut]), made });
    }
    Ok(Edited { text: text.to_owned(), made })
}
