//! TOML: an entry is a table of its own, at the end of the file; in an inline table or list it is a member of that.

use std::ops::Range;

use serde_json::Value;
use toml_edit::{Array, Document, InlineTable, Item, Key, Table, TableLike};

use super::members::{Brackets, Comments};
use super::{Cut, EditError, Edited, Kind, Made, Slot, apply, line_end, line_start, malformed, newline};

fn document(text: &str) -> Result<Document<&str>, EditError> {
    Document::parse(text).map_err(|e| {
        let why = e.message().lines().collect::<Vec<_>>().join(", ");
        malformed(text, e.span().map_or(0, |span| span.start), why)
    })
}

pub(super) fn read(text: &str) -> Result<Value, EditError> {
    document(text)?;
    Ok(crate::node::toml("", text).0.to_json())
}

/// Where an entry is.
enum Place {
    /// Tables with headers: its own, and those inside it. Each from its header to the end of its last line.
    Headed(Vec<Range<usize>>),
    /// A key and its value.
    Line(Range<usize>),
    /// A member of an inline container.
    Inline(Brackets, usize),
}

/// What entries are put into.
enum Parent {
    /// Not there, or made of tables with headers.
    Headed,
    /// Inline; its members' names.
    Inline(Brackets, Vec<Option<String>>),
}

fn parent<'d>(document: &'d Document<&str>, slot: &Slot) -> Option<(Option<&'d Item>, Parent)> {
    let mut item = document.as_item();
    for key in &slot.path {
        let Some(next) = item.as_table_like().and_then(|table| table.get(key)) else {
            return Some((None, Parent::Headed));
        };
        item = next;
    }
    let inline = match slot.kind {
        Kind::Map => match item.as_inline_table() {
            Some(table) if !table.is_dotted() => Some(inline_members(table)?),
            _ => None,
        },
        Kind::List(field) => match item.as_array() {
            Some(array) => Some(array_members(array, field)?),
            None => None,
        },
    };
    Some((Some(item), inline.map_or(Parent::Headed, |(brackets, names)| Parent::Inline(brackets, names))))
}

fn inline_members(table: &InlineTable) -> Option<(Brackets, Vec<Option<String>>)> {
    let mut members = Vec::new();
    let mut names = Vec::new();
    for (name, value) in table.iter() {
        let (key, _) = table.get_key_value(name)?;
        members.push(key.span()?.start..value.span()?.end);
        names.push(Some(name.to_owned()));
    }
    Some((Brackets { range: table.span()?, members }, names))
}

fn array_members(array: &Array, field: &str) -> Option<(Brackets, Vec<Option<String>>)> {
    let mut members = Vec::new();
    let mut names = Vec::new();
    for value in array.iter() {
        members.push(value.span()?);
        let named = value.as_inline_table().and_then(|table| table.get(field)).and_then(|name| name.as_str());
        names.push(named.map(str::to_owned));
    }
    Some((Brackets { range: array.span()?, members }, names))
}

/// The furthest place that a table's own lines reach to.
fn reach(table: &Table, text: &str) -> Option<usize> {
    let mut end = table.span()?.end;
    for (_, item) in table.iter() {
        end = end.max(line_reach(item).unwrap_or(0));
    }
    Some(line_end(text, end))
}

fn line_reach(item: &Item) -> Option<usize> {
    match item {
        Item::Value(value) => value.span().map(|span| span.end).or_else(|| {
            // `a.b = 1`: the table has no place, its values have
            value.as_inline_table().and_then(|table| table.iter().filter_map(|(_, v)| v.span()).map(|s| s.end).max())
        }),
        Item::Table(table) if table.is_dotted() => table.iter().filter_map(|(_, item)| line_reach(item)).max(),
        _ => None,
    }
}

fn headed(table: &Table, text: &str, found: &mut Vec<Range<usize>>) -> Option<()> {
    if !table.is_implicit() && !table.is_dotted() {
        found.push(line_start(text, table.span()?.start)..reach(table, text)?);
    }
    for (_, item) in table.iter() {
        match item {
            Item::Table(inner) => headed(inner, text, found)?,
            Item::ArrayOfTables(list) => list.iter().try_for_each(|inner| headed(inner, text, found))?,
            _ => {}
        }
    }
    Some(())
}

fn place(document: &Document<&str>, text: &str, slot: &Slot, name: &str) -> Result<Option<Place>, EditError> {
    const ODD: EditError = EditError::Form("a table without a place");
    let (item, parent) = parent(document, slot).ok_or(ODD)?;
    if let Parent::Inline(brackets, names) = parent {
        let index = names.iter().position(|known| known.as_deref() == Some(name));
        return Ok(index.map(|index| Place::Inline(brackets, index)));
    }
    let Some(item) = item else { return Ok(None) };
    let mut found = Vec::new();
    match slot.kind {
        Kind::List(field) => {
            let Some(list) = item.as_array_of_tables() else { return Ok(None) };
            let mut same = list.iter().filter(|table| table.get(field).and_then(Item::as_str) == Some(name));
            let Some(table) = same.next() else { return Ok(None) };
            if same.next().is_some() {
                return Err(EditError::Twice(name.to_owned()));
            }
            headed(table, text, &mut found).ok_or(ODD)?;
        }
        Kind::Map => {
            let Some((key, entry)) = item.as_table_like().and_then(|table: &dyn TableLike| table.get_key_value(name))
            else {
                return Ok(None);
            };
            match entry {
                Item::Table(table) if !table.is_dotted() => headed(table, text, &mut found).ok_or(ODD)?,
                Item::Value(value) if value.span().is_some() => {
                    let (start, end) = (key.span().ok_or(ODD)?.start, value.span().ok_or(ODD)?.end);
                    return Ok(Some(Place::Line(line_start(text, start)..line_end(text, end))));
                }
                _ => return Err(EditError::Form("it is written with dotted keys")),
            }
        }
    }
    found.sort_by_key(|range| range.start);
    Ok(Some(Place::Headed(found)))
}

fn value(json: &Value) -> Result<toml_edit::Value, EditError> {
    Ok(match json {
        Value::Bool(b) => (*b).into(),
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(int), _) => int.into(),
            (None, Some(float)) => float.into(),
            _ => return Err(EditError::Form("a number too large")),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(list) => toml_edit::Value::Array(list.iter().map(value).collect::<Result<Array, _>>()?),
        Value::Object(map) => {
            let mut table = InlineTable::new();
            for (key, inner) in map {
                table.insert(key, value(inner)?);
            }
            toml_edit::Value::InlineTable(table)
        }
        Value::Null => return Err(EditError::Form("TOML has no null")),
    })
}

/// `name = {…}`, or `{…}` in a list.
fn inline(slot: &Slot, name: &str, entry: &Value) -> Result<String, EditError> {
    let printed = value(entry)?.to_string();
    let printed = printed.trim();
    Ok(match slot.kind {
        Kind::Map => format!("{} = {printed}", Key::new(name).to_string().trim()),
        Kind::List(_) => printed.to_owned(),
    })
}

/// A table with its header, without a newline at its end.
fn block(slot: &Slot, name: &str, entry: &Value, nl: &str) -> Result<String, EditError> {
    let Value::Object(map) = entry else { return Err(EditError::Form("an entry that is no table")) };
    let mut keys: Vec<String> = slot.path.iter().map(|key| Key::new(key).to_string().trim().to_owned()).collect();
    let (open, close) = match slot.kind {
        Kind::Map => {
            keys.push(Key::new(name).to_string().trim().to_owned());
            ("[", "]")
        }
        Kind::List(_) => ("[[", "]]"),
    };
    let mut text = format!("{open}{}{close}", keys.join("."));
    for (key, inner) in map {
        text.push_str(&format!("{nl}{} = {}", Key::new(key).to_string().trim(), value(inner)?.to_string().trim()));
    }
    Ok(text)
}

pub(super) fn put(text: &str, slot: &Slot, name: &str, entry: &Value) -> Result<Edited, EditError> {
    let document = document(text)?;
    let nl = newline(text);
    let edited = |cuts| Ok(Edited { text: apply(text, cuts), made: Vec::new() });
    match place(&document, text, slot, name)? {
        Some(Place::Headed(ranges)) => {
            let mut cuts = gone(text, &ranges[1..]);
            cuts.push(Cut::new(ranges[0].start, ranges[0].end, block(slot, name, entry, nl)?));
            return edited(cuts);
        }
        Some(Place::Line(range)) => return edited(vec![Cut::new(range.start, range.end, inline(slot, name, entry)?)]),
        Some(Place::Inline(brackets, index)) => {
            let range = brackets.members[index].clone();
            return edited(vec![Cut::new(range.start, range.end, inline(slot, name, entry)?)]);
        }
        None => {}
    }
    let (_, parent) = parent(&document, slot).ok_or(EditError::Form("a table without a place"))?;
    if let Parent::Inline(brackets, _) = parent {
        let manner = brackets.manner(text, "    ", slot.kind != Kind::Map);
        let made = if brackets.members.is_empty() && brackets.is_blank(text) {
            vec![Made { path: slot.path.clone(), before: Some(text[brackets.range.clone()].to_owned()) }]
        } else {
            Vec::new()
        };
        let cuts = brackets.add(text, &inline(slot, name, entry)?, manner.as_deref(), Comments::Hash);
        return Ok(Edited { text: apply(text, cuts), made });
    }
    let block = block(slot, name, entry, nl)?;
    let added = if text.is_empty() {
        format!("{block}{nl}")
    } else if text.ends_with('\n') {
        format!("{nl}{block}{nl}")
    } else {
        // no newline at the end before, none after
        format!("{nl}{nl}{block}")
    };
    edited(vec![Cut::new(text.len(), text.len(), added)])
}

/// The last newline of a text.
fn last_newline(text: &str) -> usize {
    if text.ends_with("\r\n") { 2 } else { usize::from(text.ends_with('\n')) }
}

/// Cuts for tables with headers: the lines themselves, and the blank line that stands before each.
fn gone(text: &str, ranges: &[Range<usize>]) -> Vec<Cut> {
    let mut cuts = Vec::new();
    for range in ranges {
        let rest = &text[range.end..];
        let newline = if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) };
        let mut start = range.start;
        let line_before = start - last_newline(&text[..start]);
        let blank_before = line_before < start && (line_before == 0 || text[..line_before].ends_with('\n'));
        if blank_before {
            start = line_before;
        }
        if newline == 0 {
            // the last line of a text that has no newline at its end
            start -= last_newline(&text[..start]);
        }
        cuts.push(Cut::new(start, range.end + newline, ""));
    }
    cuts
}

pub(super) fn take(text: &str, slot: &Slot, name: &str, made: &[Made]) -> Result<Edited, EditError> {
    let document = document(text)?;
    let mut made = made.to_vec();
    let cuts = match place(&document, text, slot, name)? {
        None => Vec::new(),
        Some(Place::Headed(ranges)) => gone(text, &ranges),
        Some(Place::Line(range)) => {
            let rest = &text[range.end..];
            let newline = if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) };
            vec![Cut::new(range.start, range.end + newline, "")]
        }
        Some(Place::Inline(brackets, index)) => {
            let known = made.iter().position(|known| known.path == slot.path);
            match known.and_then(|at| made[at].before.clone()) {
                Some(before) if brackets.members.len() == 1 => {
                    made.retain(|known| known.path != slot.path);
                    vec![Cut::new(brackets.range.start, brackets.range.end, before)]
                }
                _ => brackets.remove(text, index, Comments::Hash),
            }
        }
    };
    Ok(Edited { text: apply(text, cuts), made })
}
