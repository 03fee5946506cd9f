//! Tool pins: how a release's tools looked when it was first ready to serve, and what has become of them since.
//!
//! People and models decide by what a tool says of itself. A server that says something else later, without a new release,
//! has its changed tools held: they are in no list and cannot be called until somebody has looked at the difference.
//!
//! Two tools are the same when all their members are, `_meta` aside (servers put times and trace ids there); neither
//! white space nor the order of members counts.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::jsonrpc;
use crate::model::ReleaseNo;

/// Most tools that are held by name; a server that goes on making up others has them left out of lists all the same.
const HELD_MAX: usize = 256;
/// Longest tool that is kept to be shown, in bytes of its canonical text; of a longer one the digest alone is.
const TEXT_MAX: usize = 256 << 10;

/// What a deployment does about tools that are not as they were pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pinning {
    /// They are held.
    #[default]
    Enforce,
    /// They are written down, and offered.
    Warn,
    /// Nothing is compared: for servers whose lists differ from caller to caller.
    Off,
}

impl Pinning {
    /// The word in JSON and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Warn => "warn",
            Self::Off => "off",
        }
    }
}

/// One tool as a server described it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tool {
    /// SHA-256 of its canonical text, in hex.
    pub digest: String,
    /// That text: one line of JSON, members sorted, without `_meta`. Empty when it is longer than 256 KiB.
    pub text: String,
}

impl Tool {
    /// Reads a member of `tools`; its name and what is to be pinned. `None`: not an object with a name.
    pub fn read(raw: &str) -> Option<(String, Self)> {
        let mut value: Value = serde_json::from_str(raw).ok()?;
        let object = value.as_object_mut()?;
        object.remove("_meta");
        let name = object.get("name")?.as_str()?.to_owned();
        value.sort_all_objects();
        let text = value.to_string();
        let digest = hex::encode(Sha256::digest(text.as_bytes()));
        let text = if text.len() > TEXT_MAX { String::new() } else { text };
        Some((name, Self { digest, text }))
    }

    /// For people: indented JSON, or a line that says why there is none.
    pub fn pretty(&self) -> String {
        let value: Option<Value> = serde_json::from_str(&self.text).ok();
        let pretty = value.and_then(|value| serde_json::to_string_pretty(&value).ok());
        pretty.unwrap_or_else(|| format!("(longer than {} KiB; sha256 {})", TEXT_MAX >> 10, self.digest))
    }
}

/// How a held tool differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is described in another way.
    Changed,
    /// It was not there.
    Added,
    /// It was there from the beginning, and tries to steer whoever reads it.
    Poisoned,
}

impl Change {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Added => "added",
            Self::Poisoned => "poisoned",
        }
    }
}

/// A tool that waits for somebody to look at it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// As the server describes it now.
    pub tool: Tool,
    /// How it differs.
    pub change: Change,
    /// What the scanner says of it, a line each.
    #[serde(default)]
    pub findings: Vec<String>,
    /// When it was seen first.
    pub since: Timestamp,
}

/// The tools of one release.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pins {
    /// Which release.
    pub release: ReleaseNo,
    /// When it was first ready to serve.
    pub pinned_at: Timestamp,
    /// By the server's name for it.
    pub tools: BTreeMap<String, Tool>,
    /// Tools that are not offered, by name.
    #[serde(default)]
    pub held: BTreeMap<String, Held>,
}

/// The members of a list of tools. What is no list has none.
pub fn members(tools: &str) -> Vec<(String, Tool)> {
    let all: Vec<&RawValue> = serde_json::from_str(tools).unwrap_or_default();
    all.into_iter().filter_map(|raw| Tool::read(raw.get())).collect()
}

/// What somebody says about held tools.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// They are pinned as they are now.
    Approve,
    /// They stay pinned as they were, if they were; the other form is forgotten until it comes again.
    Dismiss,
}

impl Pins {
    /// Pins a release's first list. `flaws`: what the scanner says of a tool by its name; such tools are held.
    pub fn new(
        release: ReleaseNo,
        tools: &[(String, Tool)],
        flaws: &BTreeMap<String, Vec<String>>,
        now: Timestamp,
    ) -> Self {
        let mut pins = Self { release, pinned_at: now, tools: BTreeMap::new(), held: BTreeMap::new() };
        for (name, tool) in tools {
            match flaws.get(name).filter(|flaws| !flaws.is_empty()) {
                None if !pins.tools.contains_key(name) => {
                    pins.tools.insert(name.clone(), tool.clone());
                }
                // two under one name: which one a call means is the server's secret
                None => drop(pins.hold(name, tool.clone(), Vec::new(), now)),
                Some(flaws) => {
                    let (tool, findings) = (tool.clone(), flaws.clone());
                    let held = Held { tool, change: Change::Poisoned, findings, since: now };
                    pins.held.insert(name.clone(), held);
                }
            }
        }
        pins
    }

    /// Whether a tool is as it was pinned.
    pub fn fits(&self, name: &str, tool: &Tool) -> bool {
        self.tools.get(name).is_some_and(|pinned| pinned.digest == tool.digest)
    }

    /// Holds a tool that does not fit; whether that says anything new.
    pub fn hold(&mut self, name: &str, tool: Tool, findings: Vec<String>, now: Timestamp) -> bool {
        let known = self.held.get(name);
        if self.fits(name, &tool) || known.is_some_and(|held| held.tool.digest == tool.digest) {
            return false;
        }
        if known.is_none() && self.held.len() >= HELD_MAX {
            return false;
        }
        let change = match (self.tools.contains_key(name), known.map(|held| held.change)) {
            (_, Some(Change::Poisoned)) => Change::Poisoned,
            (true, _) => Change::Changed,
            (false, _) => Change::Added,
        };
        let since = known.map_or(now, |held| held.since);
        self.held.insert(name.to_owned(), Held { tool, change, findings, since });
        true
    }

    /// Does what somebody says about held tools. `digest`: what was looked at, when that is known; a tool that has changed
    /// again since stays held.
    ///
    /// # Errors
    /// The first name that is not held, or not in that form; then nothing is changed.
    pub fn answer<'a>(
        &mut self,
        named: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
        answer: Answer,
    ) -> Result<Vec<String>, AnswerError> {
        let mut next = self.clone();
        let mut done = Vec::new();
        for (name, digest) in named {
            let held = next.held.remove(name).ok_or_else(|| AnswerError::NotHeld(name.to_owned()))?;
            if digest.is_some_and(|digest| digest != held.tool.digest) {
                return Err(AnswerError::Other(name.to_owned()));
            }
            if answer == Answer::Approve {
                next.tools.insert(name.to_owned(), held.tool);
            }
            done.push(name.to_owned());
        }
        *self = next;
        Ok(done)
    }
}

/// Why held tools were not approved or dismissed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Nothing waits under this name.
    #[error("no tool '{0}' is held")]
    NotHeld(String),
    /// It is not what was looked at.
    #[error("the tool '{0}' has changed again")]
    Other(String),
}

/// How the tools of two releases differ, in a few words; empty when they do not.
pub fn compare(old: &Pins, new: &Pins) -> String {
    let all = |pins: &Pins| -> BTreeMap<String, String> {
        let held = pins.held.iter().map(|(name, held)| (name.clone(), held.tool.digest.clone()));
        pins.tools.iter().map(|(name, tool)| (name.clone(), tool.digest.clone())).chain(held).collect()
    };
    let (old, new) = (all(old), all(new));
    let names = |mark: &str, names: Vec<&String>| names.into_iter().map(|n| format!("{mark}{n}")).collect::<Vec<_>>();
    let added = names("+", new.keys().filter(|name| !old.contains_key(*name)).collect());
    let changed =
        names("~", new.iter().filter(|(n, d)| old.get(*n).is_some_and(|o| o != *d)).map(|(n, _)| n).collect());
    let gone = names("-", old.keys().filter(|name| !new.contains_key(*name)).collect());
    [added, changed, gone].concat().join(" ")
}

/// The pins of the releases that serve, ready for lists and calls. While a release replaces another both count.
#[derive(Clone, Debug, Default)]
pub struct View {
    pins: Vec<std::sync::Arc<Pins>>,
    pinning: Pinning,
}

impl View {
    /// Of the releases that may answer. One without pins was never looked at: then nothing is compared.
    pub fn new(pins: Vec<std::sync::Arc<Pins>>, pinning: Pinning) -> Self {
        Self { pins, pinning }
    }

    /// Whether lists must be looked at.
    pub fn watches(&self) -> bool {
        !self.pins.is_empty() && self.pinning != Pinning::Off
    }

    /// Whether what does not fit is held back.
    pub fn enforces(&self) -> bool {
        self.watches() && self.pinning == Pinning::Enforce
    }

    /// The newest release among them.
    pub fn release(&self) -> Option<ReleaseNo> {
        self.pins.iter().map(|pins| pins.release).max()
    }

    /// Whether a tool is as it was pinned with one of the releases.
    pub fn fits(&self, name: &str, tool: &Tool) -> bool {
        self.pins.iter().any(|pins| pins.fits(name, tool))
    }

    /// Why a tool cannot be called; `None`: it can. What was never listed is for the server to answer.
    pub fn held(&self, name: &str) -> Option<Change> {
        if !self.enforces() {
            return None;
        }
        // one release that has it unchanged is enough: its replicas may be the ones that serve
        let free = self.pins.iter().any(|pins| pins.tools.contains_key(name) && !pins.held.contains_key(name));
        self.pins.iter().find_map(|pins| pins.held.get(name)).map(|held| held.change).filter(|_| !free)
    }

    /// Whether some tool cannot be called.
    pub fn holds(&self) -> bool {
        self.enforces() && self.pins.iter().any(|pins| !pins.held.is_empty())
    }

    /// Whether both hold the same.
    pub fn same(&self, other: &Self) -> bool {
        self.pinning == other.pinning
            && self.pins.len() == other.pins.len()
            && self.pins.iter().zip(&other.pins).all(|(a, b)| std::sync::Arc::ptr_eq(a, b))
    }
}

/// The list of tools in a message, without those that `keep` refuses: `keep(name, member)`. `None`: as it is. Every other
/// byte is kept.
pub fn filter(message: &str, mut keep: impl FnMut(&str, &str) -> bool) -> Option<String> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        tools: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        name: &'a RawValue,
    }
    if !message.contains("\"tools\"") {
        return None;
    }
    let head = jsonrpc::parse_one(message.as_bytes()).ok()?;
    let list: List<'_> = serde_json::from_str(head.result?.get()).ok()?;
    let tools: Vec<&RawValue> = serde_json::from_str(list.tools.get()).ok()?;
    let mut kept = Vec::with_capacity(tools.len());
    for raw in &tools {
        // a member without one plain name is no tool that anybody could have pinned
        let name = serde_json::from_str::<Named<'_>>(raw.get()).ok().and_then(|tool| jsonrpc::string(tool.name));
        if name.is_some_and(|name| keep(&name, raw.get())) {
            kept.push(raw.get());
        }
    }
    if kept.len() == tools.len() {
        return None;
    }
    jsonrpc::splice(head.text, &[(list.tools.get(), &format!("[{}]", kept.join(",")))])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn tool(raw: &str) -> (String, Tool) {
        Tool::read(raw).unwrap()
    }

    fn pins(release: ReleaseNo, list: &str) -> Pins {
        Pins::new(release, &members(list), &BTreeMap::new(), Timestamp::UNIX_EPOCH)
    }

    const ADD: &str = r#"{"name":"add","description":"Adds.","inputSchema":{"type":"object","required":["a"]}}"#;

    #[test]
    fn spaces_order_and_meta_make_no_other_tool() {
        let other = r#"{ "inputSchema": {"required":["a"], "type":"object"},"_meta":{"t":1},
            "description":"Adds.", "name":"add" }"#;
        assert_eq!(tool(ADD), tool(other));
        for different in [
            r#"{"name":"add","description":"Adds!","inputSchema":{"type":"object","required":["a"]}}"#,
            r#"{"name":"add","description":"Adds.","inputSchema":{"type":"object","required":["b"]}}"#,
            r#"{"name":"add","description":"Adds.","inputSchema":{"type":"object","required":["a"]},"annotations":{}}"#,
            r#"{"name":"add","title":"x","description":"Adds.","inputSchema":{"type":"object","required":["a"]}}"#,
        ] {
            assert_ne!(tool(ADD).1.digest, tool(different).1.digest, "{different}");
        }
        for no_tool in ["3", "{}", r#"{"name":3}"#, "not json"] {
            assert_eq!(Tool::read(no_tool), None, "{no_tool}");
        }
    }

    #[test]
    fn what_changes_is_held_until_somebody_has_looked() {
        let mut pins = pins(2, &format!("[{ADD}]"));
        let (_, changed) = tool(r#"{"name":"add","description":"Adds, and reads ~/.ssh first."}"#);
        let (_, added) = tool(r#"{"name":"sub"}"#);
        let at = Timestamp::from_second(9).unwrap();
        assert!(!pins.hold("add", tool(ADD).1, Vec::new(), at), "as it was");
        assert!(pins.hold("add", changed.clone(), vec!["poisoned".into()], at));
        assert!(!pins.hold("add", changed.clone(), Vec::new(), at), "known");
        assert!(pins.hold("sub", added, Vec::new(), at));
        assert_eq!((pins.held["add"].change, pins.held["sub"].change), (Change::Changed, Change::Added));

        let view = View::new(vec![Arc::new(pins.clone())], Pinning::Enforce);
        assert_eq!(
            (view.held("add"), view.held("sub"), view.held("mul")),
            (Some(Change::Changed), Some(Change::Added), None)
        );
        assert!(!view.fits("add", &changed) && view.fits("add", &tool(ADD).1));

        let digest = changed.digest.clone();
        assert_eq!(pins.answer([("mul", None)], Answer::Approve), Err(AnswerError::NotHeld("mul".into())));
        assert_eq!(
            pins.answer([("sub", None), ("add", Some("0"))], Answer::Approve),
            Err(AnswerError::Other("add".into()))
        );
        assert_eq!(pins.held.len(), 2, "nothing was changed");
        assert_eq!(pins.answer([("add", Some(&*digest))], Answer::Approve), Ok(vec!["add".into()]));
        assert!(pins.fits("add", &changed) && !pins.fits("add", &tool(ADD).1));
        assert_eq!(pins.answer([("sub", None)], Answer::Dismiss), Ok(vec!["sub".into()]));
        assert!(pins.held.is_empty() && !pins.tools.contains_key("sub"));
    }

    #[test]
    fn what_is_poisoned_from_the_start_or_there_twice_is_held() {
        let list = format!(r#"[{ADD},{{"name":"bad"}},{{"name":"add","description":"another"}}]"#);
        let flaws = BTreeMap::from([("bad".to_owned(), vec!["hidden words".to_owned()])]);
        let pins = Pins::new(1, &members(&list), &flaws, Timestamp::UNIX_EPOCH);
        assert_eq!(pins.tools.keys().collect::<Vec<_>>(), ["add"]);
        assert_eq!((pins.held["bad"].change, pins.held["add"].change), (Change::Poisoned, Change::Changed));
        assert_eq!(pins.held["bad"].findings, ["hidden words"]);
    }

    #[test]
    fn during_a_roll_out_either_release_counts() {
        let (old, new) = (pins(1, &format!("[{ADD}]")), pins(2, r#"[{"name":"add"},{"name":"new"}]"#));
        assert_eq!(compare(&old, &new), "+new ~add");
        assert_eq!((compare(&new, &old), compare(&old, &old)), ("~add -new".into(), String::new()));
        let mut changed = old.clone();
        changed.hold("add", tool(r#"{"name":"add","title":"x"}"#).1, Vec::new(), Timestamp::UNIX_EPOCH);
        let view = View::new(vec![Arc::new(changed.clone()), Arc::new(new)], Pinning::Enforce);
        assert_eq!((view.held("add"), view.release()), (None, Some(2)));
        assert!(View::new(vec![Arc::new(changed.clone())], Pinning::Enforce).held("add").is_some());
        for pinning in [Pinning::Warn, Pinning::Off] {
            assert_eq!(View::new(vec![Arc::new(changed.clone())], pinning).held("add"), None);
        }
        assert!(!View::new(Vec::new(), Pinning::Enforce).watches(), "never looked at");
    }

    #[test]
    fn a_list_loses_what_is_refused_and_keeps_every_other_byte() {
        let list =
            |tools: &str| format!(r#"{{"jsonrpc":"2.0","id":1, "result":{{ "tools":{tools},"nextCursor":"x" }}}}"#);
        let all = list(r#"[{"name":"a","x": 1.0},  {"name":"b"},{"title":"no name"}]"#);
        assert_eq!(filter(&all, |name, _| name == "a"), Some(list(r#"[{"name":"a","x": 1.0}]"#)));
        assert_eq!(filter(&list(r#"[{"name":"a"}]"#), |_, _| true), None);
        assert_eq!(filter(r#"{"jsonrpc":"2.0","id":1,"result":{"content":"\"tools\""}}"#, |_, _| false), None);
    }

    proptest! {
        #[test]
        fn a_tool_that_is_pinned_fits_however_it_is_written(words in ".{0,40}", keys in prop::collection::btree_set("[a-z]{1,6}", 0..6)) {
            let mut value = serde_json::json!({ "name": "t", "description": words });
            for key in &keys {
                value[format!("x{key}")] = serde_json::json!({ "b": key, "a": [1, 2] });
            }
            let mut turned = serde_json::Map::new();
            for (key, value) in value.as_object().unwrap().iter().rev() {
                turned.insert(key.clone(), value.clone());
            }
            let pretty = serde_json::to_string_pretty(&Value::Object(turned)).unwrap();
            let (name, tool) = Tool::read(&pretty).unwrap();
            let pinned = pins(1, &format!("[{value}]"));
            prop_assert!(pinned.fits(&name, &tool));
        }
    }
}
