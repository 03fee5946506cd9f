//! Owns: one tree of values with positions for YAML and TOML, and the walk that checks it. May touch: nothing.
//! Never: stops at the first flaw. Tested by: units here and every format's own tests.
//!
//! serde reports one error and stops; a person wants all of them. So formats are walked by hand over this tree.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value as Json;
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle};

use crate::flaw::{At, Flaw, did_you_mean};

/// Deepest nesting that is read.
const DEPTH: usize = 64;
/// Most values in a file, aliases expanded: a few lines of aliases can name billions.
const VALUES: usize = 100_000;

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where.
    pub at: At,
    /// What.
    pub value: Value,
    /// A scalar as it was written (`1.10` stays `1.10`); empty for lists and maps.
    pub raw: String,
}

/// What a [`Node`] holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text (dates too).
    Text(String),
    /// Values in order.
    List(Vec<Node>),
    /// Keys with values, in order.
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key was written.
    pub at: At,
    /// Its value.
    pub value: Node,
}

impl Node {
    /// A text from outside any file (environment, flags).
    pub fn text(at: &At, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { at: at.clone(), raw: text.clone(), value: Value::Text(text) }
    }

    /// What it is, in an article and a noun, for messages.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// The value under a key of a map.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|e| e.key == key).map(|e| &e.value)
    }

    /// The value under a dotted path of keys.
    pub fn at_path(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, key| node.get(key))
    }

    /// Keys and values of a map; nothing of anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Members of a list; nothing of anything else.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The same value as JSON, positions forgotten.
    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(i) => Json::from(*i),
            Value::Float(f) => Json::from(*f),
            Value::Text(t) => Json::String(t.clone()),
            Value::List(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(entries) => Json::Object(entries.iter().map(|e| (e.key.clone(), e.value.to_json())).collect()),
        }
    }

    /// The place of a JSON pointer's (`/a/0/b`) target, or of the nearest parent that exists.
    pub fn locate(&self, pointer: &str) -> &At {
        let mut node = self;
        for step in pointer.split('/').skip(1) {
            let step = step.replace("~1", "/").replace("~0", "~");
            let next = match &node.value {
                Value::List(items) => step.parse::<usize>().ok().and_then(|i| items.get(i)),
                _ => node.get(&step),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        &node.at
    }
}

/// Reads TOML. With flaws, the tree holds what could be read.
pub fn toml(origin: &str, text: &str) -> (Node, Vec<Flaw>) {
    let origin: Arc<str> = origin.into();
    let lines = Lines::new(text);
    let (table, errors) = toml::de::DeTable::parse_recoverable(text);
    let mut flaws: Vec<Flaw> = errors
        .iter()
        .map(|e| {
            let at = lines.at(&origin, e.span().map_or(0, |s| s.start));
            // the parser's own words may span lines (what was expected)
            Flaw::new(&at, e.message().lines().collect::<Vec<_>>().join(", "))
        })
        .collect();
    flaws.sort_by_key(|f| (f.at.line, f.at.column));
    let at = At { origin: origin.clone(), line: 1, column: 1 };
    let node = Node { at, raw: String::new(), value: toml_table(&origin, &lines, table.get_ref()) };
    (node, flaws)
}

fn toml_table(origin: &Arc<str>, lines: &Lines<'_>, table: &toml::de::DeTable<'_>) -> Value {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            at: lines.at(origin, key.span().start),
            value: toml_value(origin, lines, value),
        })
        .collect();
    entries.sort_by_key(|e| (e.at.line, e.at.column));
    Value::Map(entries)
}

fn toml_value(origin: &Arc<str>, lines: &Lines<'_>, value: &toml::Spanned<toml::de::DeValue<'_>>) -> Node {
    use toml::de::DeValue;
    let at = lines.at(origin, value.span().start);
    let mut raw = String::new();
    let value = match value.get_ref() {
        DeValue::String(text) => {
            raw = text.to_string();
            Value::Text(text.to_string())
        }
        DeValue::Integer(int) => {
            raw = int.to_string();
            match i64::from_str_radix(int.as_str(), int.radix()) {
                Ok(i) => Value::Int(i),
                Err(_) => Value::Float(f64::INFINITY),
            }
        }
        DeValue::Float(float) => {
            raw = float.to_string();
            Value::Float(float.as_str().parse().unwrap_or(f64::NAN))
        }
        DeValue::Boolean(b) => {
            raw = b.to_string();
            Value::Bool(*b)
        }
        DeValue::Datetime(time) => {
            raw = time.to_string();
            Value::Text(raw.clone())
        }
        DeValue::Array(items) => Value::List(items.iter().map(|v| toml_value(origin, lines, v)).collect()),
        DeValue::Table(table) => toml_table(origin, lines, table),
    };
    Node { at, value, raw }
}

/// Turns byte offsets into lines and columns.
struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self { text, starts }
    }

    fn at(&self, origin: &Arc<str>, offset: usize) -> At {
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let before = self.text.get(self.starts[line - 1]..offset).unwrap_or_default();
        At { origin: origin.clone(), line: line as u32, column: before.chars().count() as u32 + 1 }
    }
}

/// Reads one YAML document (JSON too). With flaws, the tree holds what could be read; an empty file is an empty map.
pub fn yaml(origin: &str, text: &str) -> (Node, Vec<Flaw>) {
    let start = At { origin: origin.into(), line: 1, column: 1 };
    let mut reader = Yaml {
        parser: Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text)),
        origin: start.origin.clone(),
        anchors: HashMap::new(),
        values: 0,
        flaws: Vec::new(),
    };
    let node = reader.document().unwrap_or(Node { at: start, value: Value::Map(Vec::new()), raw: String::new() });
    (node, reader.flaws)
}

struct Yaml<'t> {
    parser: Parser<'t, serde_saphyr::granit_parser::StrInput<'t>>,
    origin: Arc<str>,
    anchors: HashMap<usize, Node>,
    values: usize,
    flaws: Vec<Flaw>,
}

impl<'t> Yaml<'t> {
    /// The next event that is data, or none at the end or after a flaw.
    fn next(&mut self) -> Option<(Event<'t>, At)> {
        loop {
            match self.parser.next_event()? {
                Ok((Event::Comment(..), _)) => {}
                Ok((event, span)) => {
                    let at = self.place(&span.start);
                    return Some((event, at));
                }
                Err(error) => {
                    let at = self.place(error.marker());
                    self.flaws.push(Flaw::new(&at, error.info()));
                    return None;
                }
            }
        }
    }

    fn place(&self, marker: &serde_saphyr::granit_parser::Marker) -> At {
        At { origin: self.origin.clone(), line: marker.line().max(1) as u32, column: marker.col() as u32 + 1 }
    }

    fn document(&mut self) -> Option<Node> {
        let mut root = None;
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                _ if root.is_some() => {
                    self.flaws.push(Flaw::new(&at, "a second document begins here").hint("keep one document a file"));
                    break;
                }
                event => root = Some(self.node(event, at, 0)?),
            }
        }
        // `~` or only comments: a file that says nothing
        root.filter(|n| n.value != Value::Null)
    }

    fn node(&mut self, event: Event<'t>, at: At, depth: usize) -> Option<Node> {
        self.values += 1;
        if depth > DEPTH || self.values > VALUES {
            self.flaws.push(Flaw::new(&at, "nested too deeply, or too many values"));
            return None;
        }
        let (anchor, node) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = style != ScalarStyle::Plain || tag.is_some_and(|t| t.core_suffix() == Some("str"));
                let value = if quoted { Value::Text(text.to_string()) } else { plain(&text) };
                (anchor, Node { at, value, raw: text.to_string() })
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, at) => items.push(self.node(event, at, depth + 1)?),
                    }
                }
                (anchor, Node { at, value: Value::List(items), raw: String::new() })
            }
            Event::MappingStart(_, anchor, _) => {
                let entries = self.mapping(depth)?;
                (anchor, Node { at, value: Value::Map(entries), raw: String::new() })
            }
            Event::Alias(id) => match self.anchors.get(&id) {
                Some(node) => {
                    let node = node.clone();
                    self.values += count(&node);
                    (0, node)
                }
                None => {
                    self.flaws.push(Flaw::new(&at, "an alias that names nothing before it"));
                    (0, Node { at, value: Value::Null, raw: String::new() })
                }
            },
            _ => {
                self.flaws.push(Flaw::new(&at, "a value is missing here"));
                return None;
            }
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Some(node)
    }

    fn mapping(&mut self, depth: usize) -> Option<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let key = self.node(event, at, depth + 1)?;
            let (event, value_at) = self.next()?;
            let value = self.node(event, value_at, depth + 1)?;
            if matches!(key.value, Value::List(_) | Value::Map(_)) {
                self.flaws.push(Flaw::new(&key.at, format!("a key is {}, not a text", key.kind())));
            } else if key.raw == "<<" {
                match &value.value {
                    Value::Map(more) => merged.extend(more.iter().cloned()),
                    Value::List(maps) => merged.extend(maps.iter().flat_map(|m| m.entries().iter().cloned())),
                    _ => self.flaws.push(Flaw::new(&value.at, "'<<' merges maps only")),
                }
            } else if let Some(first) = entries.iter().find(|e| e.key == key.raw) {
                let message = format!("'{}' is written twice (first in line {})", key.raw, first.at.line);
                self.flaws.push(Flaw::new(&key.at, message));
            } else {
                entries.push(Entry { key: key.raw, at: key.at, value });
            }
        }
        for entry in merged {
            if !entries.iter().any(|e| e.key == entry.key) {
                entries.push(entry);
            }
        }
        Some(entries)
    }
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(count).sum::<usize>(),
        Value::Map(entries) => entries.iter().map(|e| count(&e.value)).sum(),
        _ => 0,
    }
}

/// A plain scalar by YAML 1.2's core schema: `yes` and `no` are texts.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        _ => {}
    }
    let unsigned = text.trim_start_matches(['+', '-']);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Value::Float(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    let radix = |prefix: &str, radix| text.strip_prefix(prefix).and_then(|t| i64::from_str_radix(t, radix).ok());
    if let Some(i) = radix("0x", 16).or_else(|| radix("0o", 8)).or_else(|| text.parse().ok()) {
        return Value::Int(i);
    }
    let number_like = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
    match text.parse::<f64>() {
        Ok(f) if number_like => Value::Float(f),
        _ => Value::Text(text.to_owned()),
    }
}

/// Checks a tree and collects every flaw.
#[derive(Debug, Default)]
pub struct Walk {
    /// What was found so far, in the order of the checks.
    pub flaws: Vec<Flaw>,
}

/// The known keys that a map has, by their canonical names.
pub type Fields<'n> = BTreeMap<&'static str, &'n Node>;

impl Walk {
    /// Reports a flaw.
    pub fn flaw(&mut self, node: &Node, message: impl Into<String>) {
        self.flaws.push(Flaw::new(&node.at, message));
    }

    /// Reports a flaw with what to write instead.
    pub fn flaw_hint(&mut self, node: &Node, message: impl Into<String>, hint: impl Into<String>) {
        self.flaws.push(Flaw::new(&node.at, message).hint(hint));
    }

    /// Reports a value of the wrong type.
    pub fn wrong(&mut self, node: &Node, what: &str, wanted: &str) {
        self.flaw(node, format!("{what} must be {wanted}, this is {}", node.kind()));
    }

    /// The known keys of a map (`camelCase` and `snake_case` are one); unknown and doubled ones are flaws, and so is
    /// anything that is no map. Keys without a value count as not written.
    pub fn fields<'n>(&mut self, node: &'n Node, what: &str, known: &[&'static str]) -> Fields<'n> {
        let mut fields = Fields::new();
        if !matches!(node.value, Value::Map(_)) {
            self.wrong(node, what, "a map");
            return fields;
        }
        for entry in node.entries() {
            let camel = camel(&entry.key);
            let Some(key) = known.iter().find(|k| **k == entry.key || **k == camel) else {
                let message = format!("unknown key '{}' in {what}", entry.key);
                let hint = did_you_mean(&entry.key, known.iter().copied());
                self.flaws.push(Flaw::new(&entry.at, message).hint(hint));
                continue;
            };
            if fields.contains_key(key) {
                self.flaws.push(Flaw::new(&entry.at, format!("'{key}' is written twice in {what}")));
            } else if entry.value.value != Value::Null {
                fields.insert(key, &entry.value);
            }
        }
        fields
    }

    /// A text. Numbers and booleans are taken as they were written when `scalar` is set.
    pub fn text(&mut self, node: &Node, what: &str, scalar: bool) -> Option<String> {
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) if scalar => Some(node.raw.clone()),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                self.flaw_hint(node, format!("{what} must be a text, this is {}", node.kind()), "put it in quotes");
                None
            }
            _ => {
                self.wrong(node, what, "a text");
                None
            }
        }
    }

    /// A text that is one of a few words.
    pub fn word(&mut self, node: &Node, what: &str, known: &[&str]) -> Option<String> {
        let text = self.text(node, what, false)?;
        if known.contains(&text.as_str()) {
            return Some(text);
        }
        let hint = did_you_mean(&text, known.iter().copied());
        let hint = if hint.starts_with("known") { hint } else { format!("{hint} known: {}", known.join(", ")) };
        self.flaw_hint(node, format!("{what} cannot be '{text}'"), hint);
        None
    }

    /// A boolean.
    pub fn boolean(&mut self, node: &Node, what: &str) -> Option<bool> {
        match node.value {
            Value::Bool(b) => Some(b),
            _ => {
                self.wrong(node, what, "true or false");
                None
            }
        }
    }

    /// A whole number within bounds (both allowed).
    pub fn int(&mut self, node: &Node, what: &str, least: u64, most: u64) -> Option<u64> {
        match node.value {
            Value::Int(i) => match u64::try_from(i) {
                Ok(n) if (least..=most).contains(&n) => return Some(n),
                _ if most >= i64::MAX as u64 => self.flaw(node, format!("{what} must be at least {least}, not {i}")),
                _ => self.flaw(node, format!("{what} must be from {least} to {most}, not {i}")),
            },
            _ => self.wrong(node, what, "a whole number"),
        }
        None
    }

    /// A list of texts; one text counts as a list of one.
    pub fn texts(&mut self, node: &Node, what: &str) -> Vec<String> {
        match &node.value {
            Value::List(items) => items.iter().filter_map(|n| self.text(n, what, true)).collect(),
            Value::Text(text) => vec![text.clone()],
            _ => {
                self.wrong(node, what, "a list of texts");
                Vec::new()
            }
        }
    }

    /// A map from names to texts; numbers and booleans are taken as written.
    pub fn text_map(&mut self, node: &Node, what: &str) -> BTreeMap<String, String> {
        if !matches!(node.value, Value::Map(_)) {
            self.wrong(node, what, "a map");
        }
        let mut map = BTreeMap::new();
        for entry in node.entries() {
            if let Some(text) = self.text(&entry.value, &format!("{what}.{}", entry.key), true) {
                map.insert(entry.key.clone(), text);
            }
        }
        map
    }
}

/// `input_schema` -> `inputSchema`.
fn camel(key: &str) -> String {
    let mut words = key.split('_');
    let mut out = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        out.extend(letters.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_scalars_follow_the_core_schema_and_keep_their_text() {
        let (node, flaws) =
            yaml("f", "a: yes\nb: 1.10\nc: '8'\nd: 0x10\ne:\nf: -3\ng: 1.2.3\nh: 1e3\ni: e3\nj: True\n");
        assert_eq!(flaws, []);
        assert_eq!(
            node.to_json(),
            serde_json::json!({"a":"yes","b":1.1,"c":"8","d":16,"e":null,"f":-3,"g":"1.2.3","h":1000.0,"i":"e3","j":true})
        );
        assert_eq!(node.get("b").unwrap().raw, "1.10");
        assert_eq!((node.get("g").unwrap().at.line, node.get("g").unwrap().at.column), (7, 4));
    }

    #[test]
    fn yaml_aliases_merge_and_do_not_explode() {
        let (node, flaws) = yaml("f", "x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  b: 3\n");
        assert_eq!(flaws, []);
        assert_eq!(node.get("y").unwrap().to_json(), serde_json::json!({"b":3,"a":1}));
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..9 {
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(",")));
        }
        assert!(!yaml("f", &bomb).1.is_empty());
        assert!(!yaml("f", &"[".repeat(100_000)).1.is_empty());
    }

    #[test]
    fn doubled_keys_second_documents_and_broken_yaml_are_placed() {
        assert_eq!(yaml("f", "a: 1\na: 2\n").1[0].to_string(), "f:2:1: 'a' is written twice (first in line 1)");
        assert_eq!(yaml("f", "a: 1\n---\nb: 1\n").1[0].at.line, 3);
        let broken = yaml("f", "a: [1, 2\nb: 3\n").1;
        assert_eq!(broken.len(), 1);
        assert!(broken[0].at.line >= 1, "{broken:?}");
        assert_eq!(yaml("f", "# nothing\n").0.value, Value::Map(Vec::new()));
    }

    #[test]
    fn toml_positions_and_all_syntax_errors() {
        let (node, flaws) = toml("f", "a = 1\n[t]\nb = \"ä\"\n  c = [true, 2.5]\n");
        assert_eq!(flaws, []);
        assert_eq!(node.at_path("t.c").unwrap().at.line, 4);
        assert_eq!(node.at_path("t.c").unwrap().at.column, 7);
        assert_eq!(node.to_json(), serde_json::json!({"a":1,"t":{"b":"ä","c":[true,2.5]}}));
        let (_, flaws) = toml("f", "a = \nb = [1\n");
        assert!(flaws.len() >= 2, "{flaws:?}");
        assert_eq!(flaws[0].at.line, 1);
    }

    #[test]
    fn spellings_of_a_key_are_one() {
        assert_eq!(camel("input_schema"), "inputSchema");
        let (node, _) = yaml("f", "input_schema: {}\ninputSchema: {}\ninputShema: 1\n");
        let mut walk = Walk::default();
        walk.fields(&node, "a tool", &["inputSchema"]);
        assert_eq!(
            crate::flaw::lines(&walk.flaws),
            "f:2:1: 'inputSchema' is written twice in a tool\n\
             f:3:1: unknown key 'inputShema' in a tool; did you mean 'inputSchema'?"
        );
    }
}
