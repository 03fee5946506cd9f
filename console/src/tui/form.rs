//! Forms made from JSON Schemas: fields, what was typed into them, and the value that they make. Plain data and pure
//! functions: nothing here draws or waits. Schemas come from servers, so what a form expands by itself and what is checked
//! with it is bounded.

mod make;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use jsonschema::error::ValidationErrorKind;
use serde_json::{Map, Value};
use zeroize::Zeroize as _;

/// What text is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Typed {
    /// As it is.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// JSON of any kind.
    Json,
    /// JSON where it is some, else a text.
    Loose,
}

/// Text that is typed. Wiped when it goes, and never part of a dump: a form may ask for a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Text {
    /// What was typed; may have several lines.
    text: String,
    /// Cursor, in characters.
    at: usize,
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Text({} characters, at {})", self.text.chars().count(), self.at)
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}

impl Text {
    /// With the cursor at its end.
    pub fn new(text: &str) -> Self {
        // Room for a password, so that growing leaves no copies behind.
        let mut own = String::with_capacity(text.len().max(256));
        own.push_str(text);
        Self { at: own.chars().count(), text: own }
    }

    /// What was typed.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Cursor, in characters.
    pub fn at(&self) -> usize {
        self.at
    }

    fn byte(&self, at: usize) -> usize {
        self.text.char_indices().nth(at).map_or(self.text.len(), |(i, _)| i)
    }

    /// Puts text in at the cursor.
    pub fn insert(&mut self, text: &str) {
        let at = self.byte(self.at);
        self.text.insert_str(at, text);
        self.at += text.chars().count();
    }

    /// Takes away what stands before the cursor; whether there was something.
    pub fn backspace(&mut self) -> bool {
        let some = self.at > 0;
        if some {
            self.at -= 1;
            let at = self.byte(self.at);
            self.text.remove(at);
        }
        some
    }

    /// Takes away what stands under the cursor.
    pub fn delete(&mut self) {
        let at = self.byte(self.at);
        if at < self.text.len() {
            self.text.remove(at);
        }
    }

    /// Takes away the word before the cursor.
    pub fn delete_word(&mut self) {
        let end = self.byte(self.at);
        let head = self.text[..end].trim_end();
        let start = head.rfind(char::is_whitespace).map_or(0, |i| i + 1);
        self.at = self.text[..start].chars().count();
        self.text.drain(start..end);
    }

    /// Takes away all that stands before the cursor.
    pub fn delete_head(&mut self) {
        let end = self.byte(self.at);
        self.text.drain(..end);
        self.at = 0;
    }

    /// Moves the cursor.
    pub fn go(&mut self, by: isize) {
        self.at = self.at.saturating_add_signed(by).min(self.text.chars().count());
    }

    /// To the beginning, or to the end.
    pub fn go_edge(&mut self, end: bool) {
        self.at = if end { self.text.chars().count() } else { 0 };
    }
}

/// What a field is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Text is typed.
    Text {
        /// It.
        text: Text,
        /// What it has to be.
        what: Typed,
    },
    /// One of some values.
    Pick {
        /// They, and how each is called.
        options: Vec<(Value, String)>,
        /// Which; `None`: left out.
        chosen: Option<usize>,
    },
    /// Fields with names.
    Group {
        /// They; none while it is left out.
        fields: Vec<Node>,
        /// It is part of the value.
        given: bool,
    },
    /// As many as one likes.
    List {
        /// They.
        items: Vec<Node>,
        /// Most of them.
        most: usize,
    },
    /// One of several shapes.
    Shape {
        /// Their names and schemas.
        shapes: Vec<(String, Value)>,
        /// Which; `None`: left out.
        chosen: Option<usize>,
        /// Its field.
        inner: Option<Box<Node>>,
    },
}

/// A field.
#[derive(Debug, Clone)]
pub struct Node {
    /// The property's name; empty in lists.
    pub key: String,
    /// How people call it.
    pub title: String,
    /// What it is for.
    pub about: String,
    /// What it has to be, in words.
    pub hint: String,
    /// Nothing goes without it.
    pub required: bool,
    /// It may be `null`, which it is when it is required and nothing is given.
    pub nullable: bool,
    /// What is typed is not shown.
    pub masked: bool,
    /// What it is.
    pub kind: Kind,
    /// Its schema, without references.
    schema: Value,
}

impl Node {
    fn children(&self) -> &[Self] {
        match &self.kind {
            Kind::Group { fields, given: true } => fields,
            Kind::List { items, .. } => items,
            Kind::Shape { inner: Some(inner), .. } => std::slice::from_ref(inner),
            _ => &[],
        }
    }

    fn child_mut(&mut self, i: usize) -> Option<&mut Self> {
        match &mut self.kind {
            Kind::Group { fields, .. } => fields.get_mut(i),
            Kind::List { items, .. } => items.get_mut(i),
            Kind::Shape { inner: Some(inner), .. } if i == 0 => Some(inner),
            _ => None,
        }
    }

    /// The value, as far as there is one; what is wrong with it goes to `wrong`.
    fn value(&self, pointer: &str, wrong: &mut Vec<Problem>) -> Option<Value> {
        let mut flaw = |text: &str| wrong.push(Problem { pointer: pointer.to_owned(), text: text.to_owned() });
        let nothing = |flaw: &mut dyn FnMut(&str)| match (self.required, self.nullable) {
            (true, true) => Some(Value::Null),
            (true, false) => {
                flaw("has to be given");
                None
            }
            _ => None,
        };
        match &self.kind {
            Kind::Text { text, .. } if text.text.is_empty() => nothing(&mut flaw),
            Kind::Text { text, what } => {
                let json = || serde_json::from_str::<Value>(text.text.trim());
                match what {
                    Typed::String => Some(Value::String(text.text.clone())),
                    Typed::Loose => Some(json().unwrap_or_else(|_| Value::String(text.text.clone()))),
                    Typed::Integer => match json() {
                        Ok(Value::Number(n)) if n.is_i64() || n.is_u64() => Some(Value::Number(n)),
                        // JSON Schema counts 1.0 as whole.
                        Ok(Value::Number(n)) if n.as_f64().is_some_and(|f| f.fract() == 0.0) => Some(Value::Number(n)),
                        _ => {
                            flaw("must be a whole number");
                            None
                        }
                    },
                    Typed::Number => match json() {
                        Ok(Value::Number(n)) => Some(Value::Number(n)),
                        _ => {
                            flaw("must be a number");
                            None
                        }
                    },
                    Typed::Json => match json() {
                        Ok(value) => Some(value),
                        Err(e) => {
                            flaw(&format!("is no JSON: {e}"));
                            None
                        }
                    },
                }
            }
            Kind::Pick { options, chosen } => match chosen.and_then(|i| options.get(i)) {
                Some((value, _)) => Some(value.clone()),
                None => nothing(&mut flaw),
            },
            Kind::Group { given: false, .. } => nothing(&mut flaw),
            Kind::Group { fields, .. } => {
                let mut map = Map::new();
                for field in fields {
                    if let Some(value) = field.value(&below(pointer, &field.key), wrong) {
                        map.insert(field.key.clone(), value);
                    }
                }
                Some(Value::Object(map))
            }
            Kind::List { items, .. } if items.is_empty() && !self.required => None,
            Kind::List { items, .. } => {
                let mut list = Vec::new();
                for (i, item) in items.iter().enumerate() {
                    list.extend(item.value(&below(pointer, &i.to_string()), wrong));
                }
                Some(Value::Array(list))
            }
            Kind::Shape { inner: Some(inner), .. } => inner.value(pointer, wrong),
            Kind::Shape { inner: None, .. } => nothing(&mut flaw),
        }
    }
}

/// A pointer (RFC 6901) to what is called so within what another points to.
fn below(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Of the field.
    pub pointer: String,
    /// What.
    pub text: String,
}

/// A line of a form.
#[derive(Debug)]
pub struct Row<'a> {
    /// Through which children it is come to.
    path: Vec<usize>,
    /// Of its value.
    pub pointer: String,
    /// Within how many groups.
    pub depth: usize,
    /// As it is labelled.
    pub label: String,
    /// It is one of a list.
    pub item: bool,
    /// The field.
    pub node: &'a Node,
}

/// A form: its fields, and where its reader is.
#[derive(Debug, Clone)]
pub struct Form {
    schema: Value,
    root: Node,
    /// Counts rows, then buttons.
    focus: usize,
    /// What is done with it, one word each.
    pub buttons: Vec<&'static str>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// It was tried: from now on everything is checked while it is typed.
    tried: bool,
    /// `None`: the schema is too intricate to be checked here.
    validator: Option<Arc<jsonschema::Validator>>,
    /// First line on the screen.
    pub offset: usize,
}

impl Form {
    /// From a schema, filled with values where there are any.
    pub fn new(schema: &Value, given: Option<&Value>, buttons: &[&'static str]) -> Self {
        let root = make::root(schema, given);
        let validator = make::validator(schema).map(Arc::new);
        let buttons = buttons.to_vec();
        let schema = schema.clone();
        Self { schema, root, focus: 0, buttons, problems: Vec::new(), tried: false, validator, offset: 0 }
    }

    /// Whether values are checked against all of the schema before they are sent.
    pub fn is_checked(&self) -> bool {
        self.validator.is_some()
    }

    /// Its lines, from the top.
    pub fn rows(&self) -> Vec<Row<'_>> {
        let mut rows = Vec::new();
        if !matches!(self.root.kind, Kind::Group { .. }) {
            let label = if self.root.title.is_empty() { "JSON".to_owned() } else { self.root.title.clone() };
            let (path, pointer) = (Vec::new(), String::new());
            rows.push(Row { path, pointer, depth: 0, label, item: false, node: &self.root });
        }
        walk(&self.root, &[], "", 0, &mut rows);
        rows
    }

    /// Which of the rows has the cursor; `None`: a button.
    pub fn row(&self) -> Option<usize> {
        (self.focus < self.rows().len()).then_some(self.focus)
    }

    /// Which of the buttons has the cursor.
    pub fn button(&self) -> Option<usize> {
        self.focus.checked_sub(self.rows().len())
    }

    /// Moves the cursor over rows and buttons.
    pub fn go(&mut self, by: isize) {
        let last = (self.rows().len() + self.buttons.len()).saturating_sub(1);
        self.leave();
        self.focus = self.focus.saturating_add_signed(by).min(last);
    }

    /// To the first field, or to the first button.
    pub fn go_edge(&mut self, end: bool) {
        self.leave();
        self.focus = if end { self.rows().len() } else { 0 };
    }

    /// To the first field that something is wrong with.
    pub fn go_problem(&mut self) {
        let at = self.rows().iter().position(|r| self.problem(&r.pointer).is_some());
        if let Some(at) = at {
            self.focus = at;
        }
    }

    /// The field under the cursor.
    pub fn focused(&self) -> Option<&Node> {
        self.rows().get(self.focus).map(|r| r.node)
    }

    fn node_mut(&mut self, path: &[usize]) -> Option<&mut Node> {
        path.iter().try_fold(&mut self.root, |node, i| node.child_mut(*i))
    }

    fn focused_mut(&mut self) -> Option<&mut Node> {
        let path = self.rows().get(self.focus)?.path.clone();
        self.node_mut(&path)
    }

    /// The text under the cursor; what is done to it is checked once it was tried.
    pub fn edit(&mut self, change: impl FnOnce(&mut Text)) -> bool {
        let Some(Node { kind: Kind::Text { text, .. }, .. }) = self.focused_mut() else { return false };
        change(text);
        self.changed();
        true
    }

    /// The next or the former choice of the field under the cursor; whether it has any.
    pub fn turn(&mut self, forth: bool) -> bool {
        let root = self.schema.clone();
        let Some(node) = self.focused_mut() else { return false };
        let optional = !node.required || node.nullable;
        match &mut node.kind {
            Kind::Pick { options, chosen } => *chosen = turned(*chosen, options.len(), optional, forth),
            Kind::Group { .. } => return self.open(),
            Kind::Shape { shapes, chosen, inner } => {
                *chosen = turned(*chosen, shapes.len(), optional, forth);
                let shape = chosen.and_then(|i| shapes.get(i));
                *inner = shape.map(|(_, schema)| Box::new(make::shape(&root, &node.key, schema, 0, None)));
            }
            _ => return false,
        }
        self.changed();
        true
    }

    /// The choice that begins with a letter.
    pub fn pick(&mut self, letter: char) -> bool {
        let Some(Node { kind: Kind::Pick { options, chosen }, .. }) = self.focused_mut() else { return false };
        let begins = |name: &str| name.to_lowercase().starts_with(letter.to_ascii_lowercase());
        let from = chosen.map_or(0, |i| i + 1);
        let found = (0..options.len()).map(|i| (from + i) % options.len()).find(|i| begins(&options[*i].1));
        if found.is_some() {
            *chosen = found;
            self.changed();
        }
        found.is_some()
    }

    /// Gives a group that was left out, or leaves it out; adds to a list.
    pub fn open(&mut self) -> bool {
        let root = self.schema.clone();
        let Some(node) = self.focused_mut() else { return false };
        let (required, schema) = (node.required, node.schema.clone());
        match &mut node.kind {
            Kind::Group { given, .. } if required && *given => return false,
            Kind::Group { fields, given } => {
                *given = !*given;
                if *given && fields.is_empty() {
                    *fields = make::fields(&root, &schema, 0, None);
                }
            }
            Kind::List { items, most } if items.len() < *most => {
                let item = schema.get("items").cloned().unwrap_or(Value::Bool(true));
                items.push(make::node(&root, "", &item, true, 0, None));
                // To what was added.
                let (added, pointer) = (items.len() - 1, self.rows()[self.focus].pointer.clone());
                let wanted = below(&pointer, &added.to_string());
                self.focus = self.rows().iter().position(|r| r.pointer == wanted).unwrap_or(self.focus);
            }
            _ => return false,
        }
        self.changed();
        true
    }

    /// Takes away the item of a list that the cursor is on; whether it is on one.
    pub fn remove(&mut self) -> bool {
        let rows = self.rows();
        let Some(path) = rows.get(self.focus).filter(|r| r.item).map(|r| r.path.clone()) else { return false };
        drop(rows);
        let Some((last, list)) = path.split_last() else { return false };
        let Some(Node { kind: Kind::List { items, .. }, .. }) = self.node_mut(list) else { return false };
        items.remove(*last);
        let most = self.rows().len();
        self.focus = self.focus.min(most);
        self.changed();
        true
    }

    /// What is wrong with a field.
    pub fn problem(&self, pointer: &str) -> Option<&str> {
        self.problems.iter().find(|p| p.pointer == pointer).map(|p| p.text.as_str())
    }

    /// The value as it stands, whatever is wrong with it.
    pub fn draft(&self) -> Value {
        self.root.value("", &mut Vec::new()).unwrap_or(Value::Null)
    }

    /// Checks everything.
    ///
    /// # Errors
    /// Something is wrong: [`Form::problems`] says what, and the cursor is on the first of it.
    pub fn check(&mut self) -> Result<Value, ()> {
        self.tried = true;
        let (problems, value) = self.flaws();
        self.problems = problems;
        if self.problems.is_empty() {
            return Ok(value);
        }
        self.go_problem();
        Err(())
    }

    /// Says what somebody else found wrong.
    pub fn refuse(&mut self, pointer: &str, text: impl Into<String>) {
        let pointer = self.nearest(pointer);
        self.problems.push(Problem { pointer, text: text.into() });
        self.go_problem();
    }

    fn flaws(&self) -> (Vec<Problem>, Value) {
        let mut problems = Vec::new();
        let value = self.root.value("", &mut problems).unwrap_or(Value::Null);
        // What is not there cannot be checked: one thing after the other.
        if problems.is_empty() {
            problems = self.against_schema(&value);
        }
        (problems, value)
    }

    fn against_schema(&self, value: &Value) -> Vec<Problem> {
        let mut problems = Vec::new();
        for error in self.validator.iter().flat_map(|v| v.iter_errors(value)).take(20) {
            let mut pointer = error.instance_path().to_string();
            if let ValidationErrorKind::Required { property } = error.kind()
                && let Some(name) = property.as_str()
            {
                pointer = below(&pointer, name);
            }
            let pointer = self.nearest(&pointer);
            let hidden = self.rows().iter().any(|r| r.pointer == pointer && r.node.masked);
            let text = if hidden { error.masked().to_string() } else { error.to_string() };
            problems.push(Problem { pointer, text: text.chars().take(300).collect() });
        }
        problems
    }

    /// The field that shows what is said of this place.
    fn nearest(&self, pointer: &str) -> String {
        let rows = self.rows();
        let mut pointer = pointer;
        loop {
            if rows.iter().any(|r| r.pointer == pointer) {
                return pointer.to_owned();
            }
            match pointer.rsplit_once('/') {
                Some((head, _)) => pointer = head,
                None => return String::new(),
            }
        }
    }

    fn changed(&mut self) {
        if self.tried {
            self.problems = self.flaws().0;
        } else if let Some(pointer) = self.rows().get(self.focus).map(|r| r.pointer.clone()) {
            self.problems.retain(|p| p.pointer != pointer);
        }
    }

    /// A field that is left says what is wrong with it, unless it is only not there yet.
    fn leave(&mut self) {
        if self.tried {
            return;
        }
        let rows = self.rows();
        let Some(row) = rows.get(self.focus).filter(|r| matches!(r.node.kind, Kind::Text { .. })) else { return };
        let (pointer, mut wrong) = (row.pointer.clone(), Vec::new());
        let empty = matches!(&row.node.kind, Kind::Text { text, .. } if text.text.is_empty());
        if !empty && row.node.value(&pointer, &mut wrong).is_some() {
            wrong = self.against_schema(&self.draft()).into_iter().filter(|p| p.pointer == pointer).collect();
        }
        drop(rows);
        self.problems.retain(|p| p.pointer != pointer);
        if !empty {
            self.problems.append(&mut wrong);
        }
    }
}

/// The next or the former of some choices; nothing, where that can be, comes before the first.
fn turned(chosen: Option<usize>, options: usize, optional: bool, forth: bool) -> Option<usize> {
    let none = usize::from(optional);
    let all = (options + none).max(1);
    let to = match (chosen, forth) {
        (Some(i), true) => (i + none + 1) % all,
        (Some(i), false) => (i + none + all - 1) % all,
        (None, true) => none,
        (None, false) => all - 1,
    };
    to.checked_sub(none).filter(|i| *i < options)
}

fn walk<'a>(node: &'a Node, path: &[usize], pointer: &str, depth: usize, rows: &mut Vec<Row<'a>>) {
    let list = matches!(node.kind, Kind::List { .. });
    let shape = matches!(node.kind, Kind::Shape { .. });
    for (i, child) in node.children().iter().enumerate() {
        let path = [path, &[i]].concat();
        let (pointer, label) = match (list, shape) {
            (true, _) => (below(pointer, &i.to_string()), (i + 1).to_string()),
            (_, true) => (pointer.to_owned(), child.title.clone()),
            _ => (below(pointer, &child.key), child.title.clone()),
        };
        // A shape's own group is what the shape's line stands for.
        let hidden = shape && matches!(child.kind, Kind::Group { .. });
        if !hidden {
            rows.push(Row { path: path.clone(), pointer: pointer.clone(), depth, label, item: list, node: child });
        }
        walk(child, &path, &pointer, if hidden { depth } else { depth + 1 }, rows);
    }
}

/// A schema in words: a line for each field, with what it has to be.
pub fn described(schema: &Value) -> Vec<String> {
    let form = Form::new(schema, None, &[]);
    let mut out = Vec::new();
    for row in form.rows() {
        let need = if row.node.required { " (required)" } else { "" };
        let hint = if row.node.hint.is_empty() { String::new() } else { format!(": {}", row.node.hint) };
        out.push(format!("{}{}{need}{hint}", "  ".repeat(row.depth), row.label));
        if !row.node.about.is_empty() {
            out.extend(row.node.about.lines().map(|l| format!("{}    {}", "  ".repeat(row.depth), l.trim())));
        }
        // What is within, though nobody has asked for it yet.
        let item = match &row.node.kind {
            Kind::Group { given: false, .. } => Some(&row.node.schema),
            Kind::List { items, .. } if items.is_empty() => row.node.schema.get("items"),
            _ => None,
        };
        if let Some(names) = item.and_then(|s| s.get("properties")).and_then(Value::as_object) {
            let names: Vec<&str> = names.keys().map(String::as_str).collect();
            out.push(format!("{}    with {}", "  ".repeat(row.depth), names.join(", ")));
        }
    }
    out
}
