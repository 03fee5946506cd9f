//! YAML: an entry is a block below its parent's last one. In a flow container (`{…}`, `[…]`) it is a member of that, written
//! as JSON, which is YAML.

use std::ops::Range;

use serde_json::Value;
use serde_saphyr::granit_parser::{Event, Parser, StrInput, StructureStyle};

use super::jsonc::{absent, nested, one_line};
use super::members::{Brackets, Comments};
use super::{
    Cut, EditError, Edited, Kind, Made, Slot, apply, indentation, line_end, line_start, malformed, newline, wrong,
};

/// Deepest nesting that is read.
const DEPTH: usize = 64;

pub(super) fn read(text: &str) -> Result<Value, EditError> {
    let (node, flaws) = crate::node::yaml("", text);
    match flaws.first() {
        Some(flaw) => Err(EditError::Malformed {
            line: flaw.at.line as usize,
            column: flaw.at.column as usize,
            why: flaw.message.clone(),
        }),
        None => Ok(node.to_json()),
    }
}

/// A value and where it is; a block's range ends with its last value.
struct Node {
    range: Range<usize>,
    what: What,
}

enum What {
    /// Its text; none for what is not written.
    Scalar(Option<String>),
    Map {
        flow: bool,
        members: Vec<Member>,
    },
    List {
        flow: bool,
        items: Vec<Node>,
    },
    /// `*name`.
    Alias,
}

struct Member {
    name: String,
    key: Range<usize>,
    value: Node,
}

struct Reader<'t> {
    text: &'t str,
    parser: Parser<'t, StrInput<'t>>,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<(Event<'t>, Range<usize>), EditError> {
        loop {
            let next = self.parser.next_event().ok_or(EditError::Form("it ends too early"))?;
            let (event, span) =
                next.map_err(|e| malformed(self.text, e.marker().byte_offset().unwrap_or(0), e.info()))?;
            if matches!(event, Event::Comment(..)) {
                continue;
            }
            let (Some(start), Some(end)) = (span.start.byte_offset(), span.end.byte_offset()) else {
                return Err(EditError::Form("a value without a place"));
            };
            return Ok((event, start..end));
        }
    }

    fn root(&mut self) -> Result<Option<Node>, EditError> {
        let mut root = None;
        loop {
            match self.next()? {
                (Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd, _) => {}
                (Event::StreamEnd, _) => return Ok(root),
                _ if root.is_some() => return Err(EditError::Form("it holds several documents")),
                (event, range) => root = Some(self.node(event, range, 0)?),
            }
        }
    }

    fn node(&mut self, event: Event<'t>, at: Range<usize>, depth: usize) -> Result<Node, EditError> {
        if depth > DEPTH {
            return Err(EditError::Form("it is nested too deeply"));
        }
        let mut range = at.clone();
        let what = match event {
            Event::Scalar(text, ..) => What::Scalar((!at.is_empty() || text.as_ref() != "~").then(|| text.to_string())),
            Event::Alias(_) => What::Alias,
            Event::SequenceStart(style, ..) => {
                let mut items: Vec<Node> = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, end) => {
                            let flow = style == StructureStyle::Flow;
                            range.end = if flow { end.end } else { items.last().map_or(at.end, |item| item.range.end) };
                            break What::List { flow, items };
                        }
                        (event, at) => items.push(self.node(event, at, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(style, ..) => {
                let mut members: Vec<Member> = Vec::new();
                loop {
                    match self.next()? {
                        (Event::MappingEnd, end) => {
                            let flow = style == StructureStyle::Flow;
                            range.end = match members.last() {
                                Some(last) if !flow => last.value.range.end.max(last.key.end),
                                _ => end.end,
                            };
                            break What::Map { flow, members };
                        }
                        (event, at) => {
                            let key = self.node(event, at, depth + 1)?;
                            let (event, at) = self.next()?;
                            let value = self.node(event, at, depth + 1)?;
                            let name = match key.what {
                                What::Scalar(name) => name.unwrap_or_default(),
                                _ => return Err(EditError::Form("a key is not a text")),
                            };
                            members.push(Member { name, key: key.range, value });
                        }
                    }
                }
            }
            _ => return Err(EditError::Form("a value is missing")),
        };
        Ok(Node { range, what })
    }
}

/// The tree; none for a file that says nothing.
fn tree(text: &str) -> Result<Option<Node>, EditError> {
    let root = Reader { text, parser: Parser::new_from_str(text) }.root()?;
    Ok(root.filter(|root| !matches!(&root.what, What::Scalar(None))))
}

/// Where the line ends on which a value ends.
fn end_of(text: &str, range: &Range<usize>) -> usize {
    // a block of text ends after its newline, which belongs to it
    let end = range.start.max(text[..range.end].trim_end().len());
    line_end(text, end)
}

/// The place before which a member's line begins, its newline included where there is one before.
fn cut_lines(text: &str, start: usize, end: usize) -> Cut {
    let line = line_start(text, start);
    let before = &text[..line];
    let newline = if before.ends_with("\r\n") { 2 } else { usize::from(before.ends_with('\n')) };
    if newline > 0 {
        return Cut::new(line - newline, end, "");
    }
    let rest = &text[end..];
    let after = if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) };
    Cut::new(line, end + after, "")
}

fn column(text: &str, at: usize) -> usize {
    text[line_start(text, at)..at].chars().count()
}

/// A text as a plain or, where that would mean something else, a quoted scalar.
fn scalar(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "_-./\\@+".contains(c);
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_') && text.chars().all(safe);
    let word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_lowercase().as_str());
    if plain && !word { text.to_owned() } else { Value::from(text).to_string() }
}

/// Lines of a value below a key or a dash, each with these blanks before it.
fn lines(value: &Value, blanks: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let key = scalar(key);
                match inner {
                    Value::Object(more) if !more.is_empty() => {
                        out.push(format!("{blanks}{key}:"));
                        lines(inner, &format!("{blanks}  "), out);
                    }
                    Value::Array(more) if !more.is_empty() => {
                        out.push(format!("{blanks}{key}:"));
                        lines(inner, &format!("{blanks}  "), out);
                    }
                    Value::String(text) => out.push(format!("{blanks}{key}: {}", scalar(text))),
                    other => out.push(format!("{blanks}{key}: {other}")),
                }
            }
        }
        Value::Array(list) => {
            for item in list {
                match item {
                    Value::String(text) => out.push(format!("{blanks}- {}", scalar(text))),
                    Value::Object(map) if !map.is_empty() => {
                        let mut inner = Vec::new();
                        lines(item, &format!("{blanks}  "), &mut inner);
                        if let Some(first) = inner.first_mut() {
                            first.replace_range(blanks.len()..blanks.len() + 2, "- ");
                        }
                        out.append(&mut inner);
                    }
                    other => out.push(format!("{blanks}- {}", one_line(other))),
                }
            }
        }
        other => out.push(format!("{blanks}{other}")),
    }
}

/// The whole of an entry as lines: below its key, or behind a dash.
fn block(value: &Value, blanks: &str, nl: &str) -> String {
    let mut out = Vec::new();
    lines(value, blanks, &mut out);
    out.join(nl)
}

fn named<'n>(items: &'n [Node], field: &str) -> Vec<Option<&'n str>> {
    let name = |item: &'n Node| match &item.what {
        What::Map { members, .. } => members.iter().find(|m| m.name == field).and_then(|m| match &m.value.what {
            What::Scalar(text) => text.as_deref(),
            _ => None,
        }),
        _ => None,
    };
    items.iter().map(name).collect()
}

/// The last container that is there on the way to the entries: its depth, the member that it is the value of, itself.
fn deepest<'n>(root: &'n Node, slot: &Slot) -> Result<(usize, Option<&'n Member>, &'n Node), EditError> {
    let mut at = (0, None, root);
    for (depth, key) in slot.path.iter().enumerate() {
        let What::Map { members, .. } = &at.2.what else { break };
        let mut same = members.iter().filter(|member| member.name == *key);
        let Some(member) = same.next() else { break };
        if same.next().is_some() {
            return Err(EditError::Twice(slot.path[..=depth].join(".")));
        }
        at = (depth + 1, Some(member), &member.value);
    }
    Ok(at)
}

pub(super) fn put(text: &str, slot: &Slot, name: &str, value: &Value) -> Result<Edited, EditError> {
    let nl = newline(text);
    let Some(root) = tree(text)? else {
        let whole = block(&nested(&slot.path, slot, name, value), "", nl);
        let said = text.trim_end().len();
        let made = filled(text, slot);
        let text =
            if said == 0 { format!("{whole}{nl}") } else { format!("{}{nl}{whole}{}", &text[..said], &text[said..]) };
        return Ok(Edited { text, made });
    };
    let (depth, member, node) = deepest(&root, slot)?;
    let complete = depth == slot.path.len();
    let (path, rest) = slot.path.split_at(depth);
    // below this container: the entry in what it needs around it
    let inside = nested(rest, slot, name, value);
    let flow = match (&node.what, complete, slot.kind) {
        (What::Map { flow, members }, false, _) | (What::Map { flow, members }, true, Kind::Map) => {
            let same = members.iter().find(|member| complete && member.name == name);
            if let Some(same) = same {
                return Ok(Edited {
                    text: apply(text, vec![replace_member(text, same, *flow, &inside, nl)]),
                    made: Vec::new(),
                });
            }
            flow.then(|| {
                members.iter().map(|member| member.key.start..member.value.range.end.max(member.key.end)).collect()
            })
        }
        (What::List { flow, items }, true, Kind::List(field)) => {
            let same = named(items, field).iter().position(|known| *known == Some(name));
            if let Some(same) = same {
                return Ok(Edited {
                    text: apply(text, vec![replace_item(text, &items[same], *flow, value, nl)]),
                    made: Vec::new(),
                });
            }
            flow.then(|| items.iter().map(|item| item.range.clone()).collect::<Vec<_>>())
        }
        (What::Scalar(text), ..) if text.as_deref().is_none_or(|text| matches!(text, "" | "~" | "null")) => None,
        (What::Alias, ..) => return Err(EditError::Form("an alias stands where entries are")),
        _ => return Err(wrong(path, "something else", "a container of entries")),
    };
    if let Some(members) = flow.as_ref().filter(|members| !members.is_empty()) {
        let brackets = Brackets { range: node.range.clone(), members: members.clone() };
        let manner = brackets.manner(text, "  ", false);
        let member = flow_member(&inside);
        let cuts = brackets.add(text, &member, manner.as_deref(), Comments::Hash);
        return Ok(Edited { text: apply(text, cuts), made: Vec::new() });
    }
    let empty = flow.is_some() || matches!(node.what, What::Scalar(_));
    if !empty {
        // below the last of the others, set as they are
        let blanks = " ".repeat(match &node.what {
            What::List { .. } => dash(text, node),
            _ => column(text, node.range.start),
        });
        let end = end_of(text, &node.range);
        let added = format!("{nl}{}", block(&inside, &blanks, nl));
        let made = absent(slot, depth).collect();
        return Ok(Edited { text: apply(text, vec![Cut::new(end, end, added)]), made });
    }
    // `key: {}`, `key: ~` or `key:`: what stands for nothing gives way
    let Some(member) = member else {
        let made = filled(text, slot);
        let whole = block(&inside, "", nl);
        return Ok(Edited { text: apply(text, vec![Cut::new(node.range.start, node.range.end, whole)]), made });
    };
    let colon = member.key.end + text[member.key.end..].find(':').ok_or(EditError::Form("a key without a colon"))? + 1;
    let written = colon.max(node.range.end);
    let blanks = " ".repeat(column(text, member.key.start) + 2);
    let end = line_end(text, written);
    let mut made = vec![Made { path: path.to_vec(), before: Some(text[colon..written].to_owned()) }];
    made.extend(absent(slot, depth));
    let cuts = vec![Cut::new(colon, written, ""), Cut::new(end, end, format!("{nl}{}", block(&inside, &blanks, nl)))];
    Ok(Edited { text: apply(text, cuts), made })
}

/// What is made in a file that says nothing.
fn filled(text: &str, slot: &Slot) -> Vec<Made> {
    let whole = Made { path: Vec::new(), before: Some(text.to_owned()) };
    std::iter::once(whole).chain(absent(slot, 0)).collect()
}

/// The column of a block list's dashes.
fn dash(text: &str, list: &Node) -> usize {
    indentation(text, list.range.start).len()
}

/// `"key": {…}` of a map with one member, or the only item of a list.
fn flow_member(value: &Value) -> String {
    let printed = one_line(value);
    printed[1..printed.len() - 1].to_owned()
}

fn replace_member(text: &str, member: &Member, flow: bool, inside: &Value, nl: &str) -> Cut {
    let end = member.value.range.end.max(member.key.end);
    if flow {
        return Cut::new(member.key.start, end, flow_member(inside));
    }
    let blanks = " ".repeat(column(text, member.key.start));
    let end = end_of(text, &(member.key.start..end));
    Cut::new(line_start(text, member.key.start), end, block(inside, &blanks, nl))
}

fn replace_item(text: &str, item: &Node, flow: bool, value: &Value, nl: &str) -> Cut {
    if flow {
        return Cut::new(item.range.start, item.range.end, one_line(value));
    }
    let blanks = " ".repeat(dash(text, item));
    let end = end_of(text, &item.range);
    let whole = block(&Value::Array(vec![value.clone()]), &blanks, nl);
    Cut::new(line_start(text, item.range.start), end, whole)
}

pub(super) fn take(text: &str, slot: &Slot, name: &str, made: &[Made]) -> Result<Edited, EditError> {
    let mut made = made.to_vec();
    let Some(root) = tree(text)? else { return Ok(Edited { text: text.to_owned(), made }) };
    let mut chain: Vec<(Option<&Member>, &Node)> = vec![(None, &root)];
    for key in &slot.path {
        let Some((_, Node { what: What::Map { members, .. }, .. })) = chain.last() else { break };
        let Some(member) = members.iter().find(|member| member.name == *key) else { break };
        chain.push((Some(member), &member.value));
    }
    let mut wanted = name.to_owned();
    while let Some((member, node)) = chain.pop() {
        let depth = chain.len();
        let path = &slot.path[..depth];
        let (flow, members, index) = match (&node.what, slot.kind) {
            (What::List { flow, items }, Kind::List(field)) => {
                let index = named(items, field).iter().position(|known| *known == Some(&*wanted));
                (*flow, items.iter().map(|item| item.range.clone()).collect::<Vec<_>>(), index)
            }
            (What::Map { flow, members }, _) => {
                let range = |member: &Member| member.key.start..member.value.range.end.max(member.key.end);
                let index = members.iter().position(|member| member.name == wanted);
                (*flow, members.iter().map(range).collect(), index)
            }
            _ => return Err(EditError::Form("the entry is not where it was")),
        };
        let index = index.ok_or(EditError::Form("the entry is not where it was"))?;
        let known = made.iter().find(|known| known.path == path).map(|known| known.before.clone());
        if members.len() > 1 || (flow && known.is_none()) {
            let cuts = if flow {
                Brackets { range: node.range.clone(), members }.remove(text, index, Comments::Hash)
            } else {
                vec![cut_lines(text, members[index].start, end_of(text, &members[index]))]
            };
            return Ok(Edited { text: apply(text, cuts), made });
        }
        made.retain(|known| known.path != path);
        let mut cut = cut_lines(text, members[index].start, end_of(text, &members[index]));
        match (known, member) {
            (Some(None), Some(_)) => {
                let Some(key) = path.last() else { return Err(EditError::Form("no root")) };
                wanted.clone_from(key);
            }
            (known, Some(member)) => {
                let colon = text[member.key.end..].find(':').ok_or(EditError::Form("a key without a colon"))?;
                let colon = member.key.end + colon + 1;
                let is_list = matches!(node.what, What::List { .. });
                let before = known.flatten().unwrap_or_else(|| if is_list { " []" } else { " {}" }.to_owned());
                cut.start = cut.start.max(colon);
                return Ok(Edited { text: apply(text, vec![Cut::new(colon, colon, before), cut]), made });
            }
            (known, None) => {
                let shrunk = apply(text, vec![cut]);
                let before = known.flatten();
                let same = before.as_ref().is_some_and(|before| {
                    let nothing = before.trim();
                    nothing == shrunk.trim() || (shrunk.trim().is_empty() && matches!(nothing, "{}" | "~" | "null"))
                });
                let text = if same { before.unwrap_or_default() } else { shrunk };
                return Ok(Edited { text, made });
            }
        }
    }
    Ok(Edited { text: text.to_owned(), made })
}
