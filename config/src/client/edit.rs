//! Changing one entry of a client's file and nothing else. Texts are cut and pasted at places that a parser found, never
//! written anew: what is outside an entry stays as it is, byte for byte. Every change is read back and compared with what it
//! was to be before it is handed out, so that a file of an unforeseen form is refused, not damaged.

mod jsonc;
mod members;
mod tables;
#[cfg(test)]
mod tests;
mod yaml;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How a client's file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// JSON with comments and trailing commas, of which plain JSON is a part.
    Json,
    /// TOML.
    Toml,
    /// YAML, one document.
    Yaml,
}

/// What holds entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A map: an entry's name is its key.
    Map,
    /// A list of maps: an entry's name stands in this field of it.
    List(&'static str),
}

/// Where a file holds entries: keys from the root on, each taken as it is (a dot in one is a dot).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Keys from the root on.
    pub path: Vec<String>,
    /// What is there.
    pub kind: Kind,
}

impl Slot {
    /// A place from constant keys.
    pub fn new(path: &[&str], kind: Kind) -> Self {
        Self { path: path.iter().map(|key| (*key).to_owned()).collect(), kind }
    }
}

/// Something on the way to an entry that held nothing before, so that it can be made so again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Its keys from the root on; none: the file as a whole.
    pub path: Vec<String>,
    /// Its text before; absent: it was not there.
    pub before: Option<String>,
}

/// A changed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The file's new text.
    pub text: String,
    /// What was made or filled by the change ([`put`]), or is still so after it ([`take`]).
    pub made: Vec<Made>,
}

/// Why a file is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It is not what its format asks for.
    #[error("line {line}, column {column}: {why}")]
    Malformed {
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
        /// The parser's reason.
        why: String,
    },
    /// Something on the way to the entry has another type.
    #[error("'{path}' is {found}, not {wanted}")]
    WrongType {
        /// Keys, joined with dots; empty keys: the file.
        path: String,
        /// What is there.
        found: &'static str,
        /// What there should be.
        wanted: &'static str,
    },
    /// A key on the way is there twice: which one counts differs between readers.
    #[error("'{0}' is written twice")]
    Twice(String),
    /// It is written in a form that cannot be changed without changing more than the entry.
    #[error("the entry cannot be written into this file without changing anything else ({0})")]
    Form(&'static str),
}

/// A place to cut and what to paste there.
#[derive(Debug, Clone)]
struct Cut {
    start: usize,
    end: usize,
    paste: String,
}

impl Cut {
    fn new(start: usize, end: usize, paste: impl Into<String>) -> Self {
        Self { start, end, paste: paste.into() }
    }
}

/// Applies cuts, which do not overlap.
fn apply(text: &str, mut cuts: Vec<Cut>) -> String {
    cuts.sort_by_key(|cut| std::cmp::Reverse((cut.start, cut.end)));
    let mut text = text.to_owned();
    for cut in cuts {
        text.replace_range(cut.start..cut.end, &cut.paste);
    }
    text
}

/// The mark that some editors begin a file with.
const BOM: &str = "\u{feff}";

fn without_bom(text: &str) -> (&'static str, &str) {
    text.strip_prefix(BOM).map_or(("", text), |rest| (BOM, rest))
}

/// The end of a line as this text has it.
fn newline(text: &str) -> &'static str {
    match text.find('\n') {
        Some(at) if text[..at].ends_with('\r') => "\r\n",
        _ => "\n",
    }
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// Where the line of a place ends, without its newline.
fn line_end(text: &str, at: usize) -> usize {
    let end = text[at..].find('\n').map_or(text.len(), |newline| at + newline);
    if end > at && text[..end].ends_with('\r') && end < text.len() { end - 1 } else { end }
}

/// The blanks that a line begins with.
fn indentation(text: &str, at: usize) -> &str {
    let line = &text[line_start(text, at)..];
    &line[..line.len() - line.trim_start_matches([' ', '\t']).len()]
}

fn malformed(text: &str, at: usize, why: impl Into<String>) -> EditError {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let line = text[..at].matches('\n').count() + 1;
    EditError::Malformed { line, column: text[line_start(text, at)..at].chars().count() + 1, why: why.into() }
}

fn wrong(path: &[String], found: &'static str, wanted: &'static str) -> EditError {
    let path = if path.is_empty() { "the file".to_owned() } else { path.join(".") };
    EditError::WrongType { path, found, wanted }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// The whole file as a value; an empty one is an empty map.
pub fn read(format: Format, text: &str) -> Result<Value, EditError> {
    let text = without_bom(text).1;
    match format {
        Format::Json => jsonc::read(text),
        Format::Toml => tables::read(text),
        Format::Yaml => yaml::read(text),
    }
}

/// Names and values of the entries at a place, in the file's order.
pub fn entries(format: Format, text: &str, slot: &Slot) -> Result<Vec<(String, Value)>, EditError> {
    let root = read(format, text)?;
    let Some(found) = walk(&root, slot)? else { return Ok(Vec::new()) };
    Ok(match (slot.kind, found) {
        (Kind::Map, Value::Object(map)) => map.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        (Kind::List(field), Value::Array(list)) => {
            list.iter().filter_map(|item| Some((item.get(field)?.as_str()?.to_owned(), item.clone()))).collect()
        }
        _ => Vec::new(),
    })
}

/// What is at a place; refuses what has another type than it should have.
fn walk<'v>(root: &'v Value, slot: &Slot) -> Result<Option<&'v Value>, EditError> {
    let mut at = root;
    if !at.is_object() {
        return Err(wrong(&[], kind_of(at), "a map"));
    }
    for (depth, key) in slot.path.iter().enumerate() {
        let Some(next) = at.get(key) else { return Ok(None) };
        let is_list = depth + 1 == slot.path.len() && slot.kind != Kind::Map;
        let fits = if is_list { next.is_array() } else { next.is_object() };
        if !fits {
            // an empty value of YAML (`extensions:`) stands for nothing
            if next.is_null() {
                return Ok(None);
            }
            return Err(wrong(&slot.path[..=depth], kind_of(next), if is_list { "a list" } else { "a map" }));
        }
        at = next;
    }
    Ok(Some(at))
}

/// Writes an entry: a new one after the others, one that is there in its place.
pub fn put(format: Format, text: &str, slot: &Slot, name: &str, value: &Value) -> Result<Edited, EditError> {
    let (bom, body) = without_bom(text);
    let before = read(format, body)?;
    walk(&before, slot)?;
    let mut edited = match format {
        Format::Json => jsonc::put(body, slot, name, value)?,
        Format::Toml => tables::put(body, slot, name, value)?,
        Format::Yaml => yaml::put(body, slot, name, value)?,
    };
    let mut wanted = before;
    set(&mut wanted, slot, name, value);
    let is = read(format, &edited.text).map_err(|_| EditError::Form("the result would not be readable"))?;
    if is != wanted {
        return Err(EditError::Form("something else would change its meaning"));
    }
    edited.text.insert_str(0, bom);
    Ok(edited)
}

/// Takes an entry out; what was made for it goes with it when nothing else is in it. A name that is not there changes
/// nothing.
pub fn take(format: Format, text: &str, slot: &Slot, name: &str, made: &[Made]) -> Result<Edited, EditError> {
    let (bom, body) = without_bom(text);
    let before = read(format, body)?;
    walk(&before, slot)?;
    if !entries(format, body, slot)?.iter().any(|(known, _)| known == name) {
        return Ok(Edited { text: text.to_owned(), made: made.to_vec() });
    }
    let mut edited = match format {
        Format::Json => jsonc::take(body, slot, name, made)?,
        Format::Toml => tables::take(body, slot, name, made)?,
        Format::Yaml => yaml::take(body, slot, name, made)?,
    };
    let mut wanted = before;
    unset(&mut wanted, slot, name);
    let mut is = read(format, &edited.text).map_err(|_| EditError::Form("the result would not be readable"))?;
    prune(&mut wanted, &slot.path);
    prune(&mut is, &slot.path);
    if is != wanted {
        return Err(EditError::Form("something else would change its meaning"));
    }
    edited.text.insert_str(0, bom);
    Ok(edited)
}

fn set(root: &mut Value, slot: &Slot, name: &str, value: &Value) {
    let mut at = root;
    for (depth, key) in slot.path.iter().enumerate() {
        let Value::Object(map) = at else { return };
        let next = map.entry(key.clone()).or_insert(Value::Null);
        if next.is_null() {
            let is_list = depth + 1 == slot.path.len() && slot.kind != Kind::Map;
            *next = if is_list { Value::Array(Vec::new()) } else { Value::Object(Map::new()) };
        }
        at = next;
    }
    match (slot.kind, at) {
        (Kind::List(field), Value::Array(list)) => match list.iter_mut().find(|item| is_named(item, field, name)) {
            Some(item) => *item = value.clone(),
            None => list.push(value.clone()),
        },
        (Kind::Map, Value::Object(map)) => drop(map.insert(name.to_owned(), value.clone())),
        _ => {}
    }
}

fn unset(root: &mut Value, slot: &Slot, name: &str) {
    let mut at = root;
    for key in &slot.path {
        let Some(next) = at.get_mut(key) else { return };
        at = next;
    }
    match (slot.kind, at) {
        (Kind::List(field), Value::Array(list)) => list.retain(|item| !is_named(item, field, name)),
        (Kind::Map, Value::Object(map)) => drop(map.shift_remove(name)),
        _ => {}
    }
}

fn is_named(item: &Value, field: &str, name: &str) -> bool {
    item.get(field).and_then(Value::as_str) == Some(name)
}

/// Takes what is empty on a path away, so that 'nothing' compares equal however it is written.
fn prune(root: &mut Value, path: &[String]) {
    let Some((key, rest)) = path.split_first() else { return };
    let Value::Object(map) = root else { return };
    let Some(next) = map.get_mut(key) else { return };
    prune(next, rest);
    let empty = match next {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    if empty {
        map.shift_remove(key);
    }
}
