//! What is known of values: whether clients' data is in them, what somebody has made sure of it, what they stand for.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::shared;

/// What has been made sure of a value, a bit each.
pub(super) mod check {
    /// A shell takes it as one word.
    pub(in super::super) const SHELL: u64 = 1;
    /// It does not begin with a dash.
    pub(in super::super) const DASH: u64 = 2;
    /// It is a path within a folder.
    pub(in super::super) const PATH: u64 = 4;
    /// Its host is one of a few, or a public one.
    pub(in super::super) const HOST: u64 = 8;
    /// It stays the name or the text that it is in a query.
    pub(in super::super) const SQL: u64 = 16;
    /// No `..` is left in it, because it has been resolved.
    pub(in super::super) const NORMAL: u64 = 32;
    /// Nobody has written `..` into it.
    pub(in super::super) const DOTS: u64 = 64;
    /// It is no absolute path.
    pub(in super::super) const RELATIVE: u64 = 128;
    /// Nothing of it is a program, or a template.
    pub(in super::super) const CODE: u64 = 256;
    /// Names were resolved to addresses on the way to it.
    pub(in super::super) const RESOLVED: u64 = 512;
    /// It is a text, and no record.
    pub(in super::super) const FLAT: u64 = 1024;
    /// It is one of a few words, or a number.
    pub(in super::super) const ALL: u64 = SHELL | DASH | PATH | HOST | SQL | DOTS | RELATIVE | CODE | FLAT;
    /// What the owner's own rules ask, a bit each.
    pub(in super::super) const OWN: u64 = !0 << 16;
}
use check::{DOTS, HOST, NORMAL, PATH, RELATIVE};

/// Elements and fields that are told apart.
pub(super) const LONG: usize = 256;
/// Bytes of text that are kept.
const TEXT: usize = 4096;

/// What is known of a value.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Value {
    /// What clients send that is in it, in words.
    #[serde(with = "shared::maybe_text", skip_serializing_if = "Option::is_none")]
    pub(super) input: Option<Arc<str>>,
    /// Parameters of the function under way that are in it.
    pub(super) params: u64,
    /// Of these, the ones that it begins with; none where that is not told apart.
    pub(super) head: u64,
    /// The one member of the parameter that it is.
    #[serde(with = "shared::maybe_text", skip_serializing_if = "Option::is_none")]
    pub(super) part: Option<Arc<str>>,
    pub(super) checks: u64,
    /// Text of the source and something else were put together.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) built: bool,
    /// What is foreign in it may be how it begins.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) leads: bool,
    /// What it stands for: `child_process.exec`.
    #[serde(with = "shared::maybe_text", skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<Arc<str>>,
    #[serde(with = "shared::maybe", skip_serializing_if = "Option::is_none")]
    pub(super) items: Option<Arc<Vec<Value>>>,
    #[serde(with = "shared::maybe", skip_serializing_if = "Option::is_none")]
    pub(super) fields: Option<Arc<Vec<(String, Value)>>>,
    /// It is false, or nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) no: bool,
    /// Text of the source in it.
    #[serde(with = "shared::maybe_text", skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<Arc<str>>,
    /// The text is a regular expression.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) regex: bool,
    /// The variable that it was made from.
    #[serde(with = "shared::maybe_text", skip_serializing_if = "Option::is_none")]
    pub(super) of: Option<Arc<str>>,
    /// What is sure of variables when it is true.
    #[serde(with = "shared::maybe", skip_serializing_if = "Option::is_none")]
    pub(super) proves: Option<Arc<Vec<(String, u64)>>>,
}

impl Value {
    pub(super) fn text(text: &str) -> Self {
        Self { text: Some(text.into()), ..Self::default() }
    }

    /// What a client sends.
    pub(super) fn sent(what: &Arc<str>) -> Self {
        Self { input: Some(what.clone()), leads: true, ..Self::default() }
    }

    pub(super) fn foreign(&self) -> bool {
        self.input.is_some() || self.params != 0
    }

    /// Whether it is foreign, and nobody has looked at it for this.
    pub(super) fn unchecked(&self, check: u64) -> bool {
        self.foreign() && self.checks & check == 0
    }

    /// What is foreign in it, and no more.
    pub(super) fn carried(&self) -> Self {
        Self {
            input: self.input.clone(),
            params: self.params,
            head: self.head,
            part: self.part.clone(),
            checks: self.checks,
            built: self.built,
            leads: self.leads,
            of: self.of.clone(),
            ..Self::default()
        }
    }

    /// Either of them.
    pub(super) fn or(self, other: Self) -> Self {
        if !other.foreign() {
            let items = either(self.items, other.items);
            return Self {
                items,
                path: self.path.or(other.path),
                fields: self.fields.or(other.fields),
                text: self.text.or(other.text),
                ..self
            };
        }
        if !self.foreign() {
            return other.or(self);
        }
        // what cannot do harm, whoever asks, takes nothing from what is sure of the other
        let clean = |value: &Self| value.checks & (check::ALL | check::OWN) == check::ALL | check::OWN;
        match (clean(&self), clean(&other)) {
            (true, false) => return Self { path: other.path.or(self.path), ..other },
            (false, true) => return Self { path: self.path.or(other.path), ..self },
            _ => {}
        }
        let head = if self.head | other.head == 0 { 0 } else { self.heads() | other.heads() };
        Self {
            part: if self.part == other.part { self.part } else { None },
            input: self.input.or(other.input),
            params: self.params | other.params,
            head,
            checks: self.checks & other.checks,
            built: self.built || other.built,
            leads: self.leads || other.leads,
            path: self.path.or(other.path),
            items: either(self.items, other.items),
            fields: None,
            no: false,
            text: self.text.or(other.text),
            regex: false,
            of: self.of.or(other.of),
            proves: None,
        }
    }

    /// Parameters that it may begin with.
    pub(super) fn heads(&self) -> u64 {
        if self.head == 0 { self.params } else { self.head }
    }

    /// A path into this value, where its parts are known.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        self.fields.as_ref()?.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Whether its fields are known, and these are all.
    pub(super) fn whole(&self) -> bool {
        self.fields.as_ref().is_some_and(|fields| fields.iter().all(|(key, _)| !key.is_empty()))
    }

    /// A list of it: the elements that are known, or itself as the only one.
    pub(super) fn elements(&self) -> Vec<Self> {
        match &self.items {
            Some(items) => items.as_ref().clone(),
            None => vec![self.clone()],
        }
    }

    /// A list.
    pub(super) fn list(mut items: Vec<Self>) -> Self {
        // behind `--` nothing is an option
        let ends = |item: &Self| matches!(item.text.as_deref(), Some("--" | "--end-of-options"));
        if let Some(at) = items.iter().position(ends) {
            items.iter_mut().skip(at).for_each(|item| item.checks |= check::DASH);
        }
        let whole = items.iter().map(Self::carried).reduce(Self::or).unwrap_or_default();
        items.truncate(LONG);
        Self { items: Some(Arc::new(items)), ..whole }
    }

    /// Either of its elements.
    pub(super) fn any_item(&self) -> Self {
        match &self.items {
            Some(items) => items.iter().cloned().reduce(Self::or).unwrap_or_default(),
            None => self.carried(),
        }
    }
}

/// Of two lists that one place may hold, the one that has grown.
fn either(one: Option<Arc<Vec<Value>>>, other: Option<Arc<Vec<Value>>>) -> Option<Arc<Vec<Value>>> {
    match (one, other) {
        (Some(one), Some(other)) => {
            let (long, short) = if one.len() >= other.len() { (one, other) } else { (other, one) };
            // a branch of its own that has the foreign part is the one that matters
            let foreign = |list: &Arc<Vec<Value>>| list.iter().any(Value::foreign);
            Some(if foreign(&short) && !foreign(&long) { short } else { long })
        }
        (one, other) => one.or(other),
    }
}

/// Whether a text that begins an address leaves its host open, and no client has a say in it.
fn unknown_host(text: &str) -> bool {
    text.contains('\u{1}') && (text.starts_with('\u{1}') || text.contains("://"))
}

/// A string of parts.
pub(super) fn joined(parts: Vec<Value>) -> Value {
    joined_with(parts, true)
}

/// `kept`: that a part has no `..` says that it stays below what is before it.
fn joined_with(parts: Vec<Value>, kept: bool) -> Value {
    if parts.len() > 1 && parts.iter().all(|part| part.items.is_some()) {
        return Value::list(parts.iter().flat_map(Value::elements).collect());
    }
    let mut text = String::new();
    let mut begins: Option<bool> = None;
    let (mut fixed, mut host) = (false, false);
    let mut whole: Option<Value> = None;
    let mut head = 0;
    for part in &parts {
        let leading = text.is_empty();
        match &part.text {
            Some(known) if !part.regex => {
                fixed |= !known.is_empty();
                if text.len() < TEXT {
                    text.push_str(known);
                }
            }
            _ => {
                fixed |= !part.foreign();
                let separator = part.path.as_deref().is_some_and(|path| path.ends_with("sep"));
                text.push(if separator { '/' } else { '\u{1}' });
            }
        }
        host |= has_host(&text) || (!text.is_empty() && !text.contains("://") && !text.starts_with('\u{1}'));
        if part.foreign() && part.checks & HOST == 0 {
            // what comes behind a whole host is a path of it
            if begins.is_none() {
                head = part.heads();
            }
            begins.get_or_insert(part.leads && !host);
        } else if !part.foreign() && part.text.as_ref().is_none_or(|text| unknown_host(text)) {
            // somebody else's text, an address most likely
            begins.get_or_insert(false);
        }
        if part.foreign() {
            let mut carried = part.carried();
            carried.checks &= !NORMAL;
            if kept && !leading && carried.checks & DOTS != 0 {
                carried.checks |= PATH;
            }
            whole = Some(match whole {
                Some(before) => before.or(carried),
                None => carried,
            });
        }
    }
    let whole = whole.unwrap_or_default();
    let built = whole.foreign() && (fixed || parts.iter().any(|part| part.built));
    let checks = if parts.len() > 1 { whole.checks | check::FLAT } else { whole.checks };
    Value { built, leads: begins.unwrap_or(false), text: Some(text.into()), checks, head, ..whole }
}

/// A path of parts. A rooted part further back begins anew where `roots` says so.
pub(super) fn joined_path(parts: &[Value], roots: bool) -> Value {
    let mut parts = parts.to_vec();
    for part in parts.iter_mut().skip(1) {
        let needed = if roots { DOTS | RELATIVE } else { DOTS };
        if part.checks & needed == needed {
            part.checks |= PATH;
        }
    }
    let value = joined_with(parts, false);
    // parts of a path are put together, and it is no text of the source that does harm
    Value { built: false, items: None, ..value }
}

/// Whether a text is an address up to the end of its host.
pub(super) fn has_host(text: &str) -> bool {
    text.split_once("://").is_some_and(|(_, rest)| rest.contains('/') && !rest.starts_with('\u{1}'))
}

/// Multiplies and rotates, as compilers hash their names: these maps live as long as one file is looked at.
#[derive(Default, Clone)]
pub(super) struct Hasher(u64);

impl std::hash::Hasher for Hasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}

pub(super) type Names<V> = HashMap<Arc<str>, V, std::hash::BuildHasherDefault<Hasher>>;

/// Variables. Changes can be taken back, so that branches need no copies.
#[derive(Debug, Default)]
pub(super) struct Env {
    vars: Names<Value>,
    log: Vec<(Arc<str>, Option<Value>)>,
    /// How many of the names are members (`a.b`).
    dotted: usize,
}

/// What a branch has changed.
pub(super) type Changes = Names<Option<Value>>;

impl Env {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.vars.get(name)
    }

    pub(super) fn set(&mut self, name: &str, value: Value) {
        let name: Arc<str> = name.into();
        let old = self.vars.insert(name.clone(), value);
        if old.is_none() && name.contains('.') {
            self.dotted += 1;
        }
        self.log.push((name, old));
    }

    /// Binds a name anew: what was known of its members no longer holds.
    pub(super) fn bind(&mut self, name: &str, value: Value) {
        if self.dotted > 0 {
            let member = |key: &&Arc<str>| {
                key.len() > name.len() && key.starts_with(name) && key.as_bytes().get(name.len()) == Some(&b'.')
            };
            let members: Vec<Arc<str>> = self.vars.keys().filter(member).cloned().collect();
            for key in members {
                let old = self.vars.remove(&key);
                self.dotted = self.dotted.saturating_sub(1);
                self.log.push((key, old));
            }
        }
        self.set(name, value);
    }

    pub(super) fn mark(&self) -> usize {
        self.log.len()
    }

    /// Takes back what happened since, and says what it was.
    pub(super) fn back(&mut self, mark: usize) -> Changes {
        let mut changes = Changes::default();
        while self.log.len() > mark {
            let Some((name, old)) = self.log.pop() else { break };
            let now = match old {
                Some(old) => self.vars.insert(name.clone(), old),
                None => self.vars.remove(&name),
            };
            if name.contains('.') {
                let was = now.is_some();
                let is = self.vars.contains_key(&name);
                self.dotted = (self.dotted + usize::from(is)).saturating_sub(usize::from(was));
            }
            changes.entry(name).or_insert(now);
        }
        changes
    }

    /// Takes over what a branch has changed.
    pub(super) fn take(&mut self, changes: Changes) {
        for (name, value) in changes {
            match value {
                Some(value) => self.set(&name, value),
                None => {
                    let old = self.vars.remove(&name);
                    if old.is_some() && name.contains('.') {
                        self.dotted = self.dotted.saturating_sub(1);
                    }
                    self.log.push((name, old));
                }
            }
        }
    }

    /// Takes over what may have been changed.
    pub(super) fn merge(&mut self, changes: Changes) {
        for (name, value) in changes {
            let Some(value) = value else { continue };
            let merged = match self.vars.get(&name) {
                Some(old) => old.clone().or(value),
                None => value,
            };
            self.set(&name, merged);
        }
    }

    /// Takes over what one of two branches has changed.
    pub(super) fn merge_both(&mut self, one: Changes, mut other: Changes) {
        for (name, value) in one {
            let was = self.vars.get(&name).cloned();
            let second = other.remove(&name).unwrap_or(was);
            let merged = match (value, second) {
                (Some(value), Some(second)) => value.or(second),
                (Some(value), None) | (None, Some(value)) => value,
                (None, None) => continue,
            };
            self.set(&name, merged);
        }
        self.merge(other);
    }
}
