//! What callers of a deployment may see and use: which tools, under which names, how often. Rules in, decisions out.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::answers::{Keep, Keeps};
use crate::jsonrpc;
use crate::pins::Pinning;

/// Who may call a deployment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Whoever reaches the gateway from this host.
    Anonymous,
    /// Holders of a key of this agent.
    Key,
    /// Holders of a token of the configured identity provider; keys, too.
    Oauth,
}

impl Access {
    /// The word in JSON and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Key => "key",
            Self::Oauth => "oauth",
        }
    }
}

impl FromStr for Access {
    type Err = PolicyError;
    fn from_str(s: &str) -> Result<Self, PolicyError> {
        match s {
            "anonymous" => Ok(Self::Anonymous),
            "key" => Ok(Self::Key),
            "oauth" => Ok(Self::Oauth),
            other => Err(PolicyError::Access(other.to_owned())),
        }
    }
}

/// So many in so long, as `60/min`; all of them may come at once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Rate {
    /// How many, at least one.
    pub count: u32,
    /// In how many seconds: 1, 60, 3600 or 86400.
    pub seconds: u32,
}

impl Rate {
    /// The time in which one more becomes free.
    pub fn period(self) -> Duration {
        Duration::from_secs(u64::from(self.seconds)) / self.count.max(1)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.seconds {
            1 => "s",
            60 => "min",
            3600 => "h",
            _ => "day",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

impl FromStr for Rate {
    type Err = PolicyError;
    fn from_str(s: &str) -> Result<Self, PolicyError> {
        let bad = || PolicyError::Rate(s.to_owned());
        let (count, unit) = s.split_once('/').ok_or_else(bad)?;
        let seconds = match unit.trim() {
            "s" | "sec" | "second" => 1,
            "m" | "min" | "minute" => 60,
            "h" | "hour" => 3600,
            "d" | "day" => 86_400,
            _ => return Err(bad()),
        };
        let count = count.trim().parse().ok().filter(|n| *n > 0).ok_or_else(bad)?;
        Ok(Self { count, seconds })
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl TryFrom<String> for Rate {
    type Error = PolicyError;
    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

/// What is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not one of the words.
    #[error("'{0}' is not an access")]
    Access(String),
    /// Not `60/min`.
    #[error("'{0}' is not a rate")]
    Rate(String),
    /// Not a name with stars.
    #[error("'{0}' is not a pattern of names")]
    Pattern(String),
    /// Two tools under one name.
    #[error("two tools would be called '{0}'")]
    Twice(String),
    /// A limit of nothing.
    #[error("a limit of 0 for '{0}' would refuse every call")]
    Zero(String),
    /// Not a name for a bundle.
    #[error("'{0}' is not a name for a bundle")]
    Bundle(String),
    /// Not a name that clients take.
    #[error("'{0}' is not a name for a tool")]
    Name(String),
    /// Not a time for which answers may be kept.
    #[error("'{0}' is not a time for which answers may be kept")]
    Keep(String),
}

impl PolicyError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Access(_) => "anonymous, key or oauth",
            Self::Rate(_) => "a count and s, min, h or day, such as 60/min",
            Self::Pattern(_) => "a name, with * for any run of characters: get_*",
            Self::Twice(_) => "choose another name in tools.rename",
            Self::Zero(_) => "deny the tool, or leave the limit out",
            Self::Bundle(_) => "1 to 40 lower-case letters, digits or '-'",
            Self::Name(_) => "1 to 128 letters, digits, '_', '-' or '.'",
            Self::Keep(_) => "true, false, or 1s to 1h, such as 60s",
        }
    }
}

/// Rules about a deployment's tools. Names are the server's own but for the values of `rename`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolRules {
    /// Patterns of what is offered; empty: everything.
    pub allow: Vec<String>,
    /// Patterns of what is not; wins over `allow`.
    pub deny: Vec<String>,
    /// The server's name to the one that clients see.
    pub rename: BTreeMap<String, String>,
    /// What clients read about a tool, in place of the server's words.
    pub describe: BTreeMap<String, String>,
    /// Calls of a tool by all callers together.
    pub rate: BTreeMap<String, Rate>,
    /// Calls of a tool at once.
    pub concurrency: BTreeMap<String, u32>,
    /// Patterns of tools whose answers the gateway keeps, and for how long; the narrowest counts. Only answers of tools
    /// that their server calls read-only and idempotent are.
    pub cache: BTreeMap<String, Keep>,
}

/// Rules of a deployment, changed without a new release.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Who may call; nothing leaves it to the release.
    pub access: Option<Access>,
    /// Whether lists and discovery need no key while calls do.
    pub open_discovery: bool,
    /// Requests of all callers together.
    pub rate: Option<Rate>,
    /// Requests of each caller.
    pub caller_rate: Option<Rate>,
    /// Requests at once.
    pub concurrency: Option<u32>,
    /// Bundles that it belongs to: `/mcp/@name` joins their members.
    pub bundles: Vec<String>,
    /// What is done about tools that are not as they were pinned.
    #[serde(skip_serializing_if = "is_usual")]
    pub pins: Pinning,
    /// Rules about tools.
    pub tools: ToolRules,
}

fn is_usual(pins: &Pinning) -> bool {
    *pins == Pinning::default()
}

/// Names with stars.
#[derive(Clone, Debug, Default)]
pub struct Patterns(Vec<Regex>);

impl Patterns {
    /// Reads patterns; `*` stands for any run of characters.
    ///
    /// # Errors
    /// [`PolicyError::Pattern`] for an empty pattern, or one longer than 256 characters.
    pub fn new(patterns: &[String]) -> Result<Self, PolicyError> {
        let read = |pattern: &String| {
            let bad = || PolicyError::Pattern(pattern.clone());
            if pattern.is_empty() || pattern.len() > 256 {
                return Err(bad());
            }
            let text = regex::escape(pattern).replace("\\*", ".*");
            Regex::new(&format!("^(?s:{text})$")).map_err(|_| bad())
        };
        patterns.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Whether any fits.
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.is_match(name))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a key may be used for.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    deployments: Patterns,
    /// Patterns of deployments, and of their tools.
    tools: Vec<(Patterns, Patterns)>,
}

impl Scope {
    /// `deployments`: patterns of names. `tools`: `tool` or `deployment/tool`, patterns both. Empty lists allow all.
    ///
    /// # Errors
    /// [`PolicyError::Pattern`].
    pub fn new(deployments: &[String], tools: &[String]) -> Result<Self, PolicyError> {
        let read = |text: &String| {
            let (deployment, tool) = text.split_once('/').unwrap_or(("*", text));
            Ok((Patterns::new(&[deployment.to_owned()])?, Patterns::new(&[tool.to_owned()])?))
        };
        let tools = tools.iter().map(read).collect::<Result<_, PolicyError>>()?;
        Ok(Self { deployments: Patterns::new(deployments)?, tools })
    }

    /// Deployments, but none of their tools.
    pub fn nothing() -> Self {
        Self { deployments: Patterns::default(), tools: vec![Default::default()] }
    }

    /// Whether a deployment may be called at all.
    pub fn deployment(&self, name: &str) -> bool {
        self.deployments.is_empty() || self.deployments.matches(name)
    }

    /// Whether a tool, by the name that clients see, may be called.
    pub fn tool(&self, deployment: &str, tool: &str) -> bool {
        self.tools.is_empty() || self.tools.iter().any(|(d, t)| d.matches(deployment) && t.matches(tool))
    }

    /// Whether some tool of some deployment is left out.
    pub fn narrows(&self) -> bool {
        !self.tools.is_empty()
    }
}

/// A policy made ready for requests.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    policy: Policy,
    allow: Patterns,
    deny: Patterns,
    /// By the name that clients see.
    original: HashMap<String, String>,
    keeps: Keeps,
    keeps_any: bool,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    tools: &'a RawValue,
}

#[derive(Deserialize)]
struct Tool<'a> {
    #[serde(borrow)]
    name: &'a RawValue,
    #[serde(borrow, default)]
    description: Option<&'a RawValue>,
}

impl Rules {
    /// Checks a policy and makes it ready.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn new(policy: Policy) -> Result<Self, PolicyError> {
        let tools = &policy.tools;
        let mut original = HashMap::new();
        for (name, shown) in &tools.rename {
            let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            if shown.is_empty() || shown.len() > 128 || !shown.chars().all(fine) {
                return Err(PolicyError::Name(shown.clone()));
            }
            if original.insert(shown.clone(), name.clone()).is_some() {
                return Err(PolicyError::Twice(shown.clone()));
            }
        }
        if let Some((name, _)) = tools.concurrency.iter().find(|(_, n)| **n == 0) {
            return Err(PolicyError::Zero(name.clone()));
        }
        let label = |b: &String| {
            !b.is_empty()
                && b.len() <= 40
                && b.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        if let Some(bundle) = policy.bundles.iter().find(|b| !label(b)) {
            return Err(PolicyError::Bundle(bundle.clone()));
        }
        if policy.concurrency == Some(0) {
            return Err(PolicyError::Zero("the deployment".into()));
        }
        let (allow, deny) = (Patterns::new(&tools.allow)?, Patterns::new(&tools.deny)?);
        let keeps = Keeps::new(&tools.cache)?;
        Ok(Self { allow, deny, original, keeps_any: keeps.any(), keeps, policy })
    }

    /// Whether any tool's answers are to be kept.
    pub fn caches(&self) -> bool {
        self.keeps_any
    }

    /// Whether answers of a tool, by its server's name, are to be kept.
    pub fn cache(&self, name: &str) -> Keep {
        self.keeps.of(name)
    }

    /// As it was given.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether a tool of the server is offered.
    fn offered(&self, name: &str) -> bool {
        (self.allow.is_empty() || self.allow.matches(name)) && !self.deny.matches(name)
    }

    /// The server's name of a tool that clients know as `shown`; `None` when it is not offered.
    pub fn tool<'a>(&'a self, shown: &'a str) -> Option<&'a str> {
        let name = match self.original.get(shown) {
            Some(name) => name.as_str(),
            // its own name was given up for another
            None if self.policy.tools.rename.contains_key(shown) => return None,
            None => shown,
        };
        self.offered(name).then_some(name)
    }

    /// The name that clients see of a server's tool; `None` when it is not offered.
    pub fn shown<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let shown = match self.policy.tools.rename.get(name) {
            Some(shown) => shown.as_str(),
            // another tool has taken its name
            None if self.original.contains_key(name) => return None,
            None => name,
        };
        self.offered(name).then_some(shown)
    }

    /// Whether a call of a tool must be looked at.
    pub fn judges_tools(&self) -> bool {
        let tools = &self.policy.tools;
        self.shapes() || !tools.rate.is_empty() || !tools.concurrency.is_empty()
    }

    /// Whether lists of tools differ from the server's.
    pub fn shapes(&self) -> bool {
        let tools = &self.policy.tools;
        !(self.allow.is_empty() && self.deny.is_empty() && tools.rename.is_empty() && tools.describe.is_empty())
    }

    /// A message as its caller may see it: when its result is a list of tools, without those that are not offered, and
    /// with other names and descriptions. `None`: as it is. Every other byte is kept.
    pub fn shape(&self, message: &str, deployment: &str, scope: &Scope) -> Option<String> {
        // a list names this; anything else costs one search
        if !message.contains("\"tools\"") {
            return None;
        }
        let head = jsonrpc::parse_one(message.as_bytes()).ok()?;
        let list: List<'_> = serde_json::from_str(head.result?.get()).ok()?;
        let tools: Vec<&RawValue> = serde_json::from_str(list.tools.get()).ok()?;
        let mut kept = Vec::with_capacity(tools.len());
        for raw in tools {
            // what is no tool makes this no list of tools
            let tool: Tool<'_> = serde_json::from_str(raw.get()).ok()?;
            let name = jsonrpc::string(tool.name)?;
            let Some(shown) = self.shown(&name).filter(|shown| scope.tool(deployment, shown)) else { continue };
            kept.push(self.described(raw, &tool, &name, shown)?);
        }
        jsonrpc::splice(head.text, &[(list.tools.get(), &format!("[{}]", kept.join(",")))])
    }

    fn described(&self, raw: &RawValue, tool: &Tool<'_>, name: &str, shown: &str) -> Option<String> {
        let mut parts: Vec<(&str, String)> = Vec::new();
        if shown != name {
            parts.push((tool.name.get(), jsonrpc::quote(shown)));
        }
        match (self.policy.tools.describe.get(name), tool.description) {
            (Some(words), Some(old)) => parts.push((old.get(), jsonrpc::quote(words))),
            (Some(words), None) => {
                // beside the name: an object may end in spaces, its name is where it is
                let renamed = parts.pop().map_or_else(|| tool.name.get().to_owned(), |(_, name)| name);
                parts.push((tool.name.get(), format!("{renamed},\"description\":{}", jsonrpc::quote(words))));
            }
            (None, _) => {}
        }
        parts.sort_by_key(|(part, _)| part.as_ptr() as usize);
        let parts: Vec<(&str, &str)> = parts.iter().map(|(part, other)| (*part, other.as_str())).collect();
        jsonrpc::splice(raw.get(), &parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        Rules::new(serde_json::from_str(text).unwrap()).unwrap()
    }

    fn list(tools: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1, "result":{{ "tools":{tools},"nextCursor":"x" }}}}"#)
    }

    #[test]
    fn rates_are_written_as_they_are_read() {
        for text in ["60/min", "1/s", "5/h", "100/day"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        assert_eq!("60/min".parse::<Rate>().unwrap().period(), Duration::from_secs(1));
        for text in ["", "60", "0/min", "-1/s", "1/week", "x/min"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_list_loses_what_is_denied_and_keeps_every_other_byte() {
        let rules = rules(r#"{"tools":{"allow":["get_*","put"],"deny":["get_secret"]}}"#);
        let all = list(
            r#"[{"name":"get_a","inputSchema":{"x": 1.0}}, {"name":"get_secret"},{"name":"drop"},{"name":"put"}]"#,
        );
        let kept = rules.shape(&all, "d", &Scope::default()).unwrap();
        assert_eq!(kept, list(r#"[{"name":"get_a","inputSchema":{"x": 1.0}},{"name":"put"}]"#));
        assert_eq!(rules.tool("get_a"), Some("get_a"));
        assert_eq!((rules.tool("get_secret"), rules.tool("drop")), (None, None));
    }

    #[test]
    fn names_and_words_are_replaced_both_ways() {
        let rules = rules(r#"{"tools":{"rename":{"a":"b","b":"c"},"describe":{"a":"new \"words\"","b":"said"}}}"#);
        let all = list(r#"[{"description":"old","name":"a"},{"name":"b","title":"B"},{"name":"c"}]"#);
        let shown = rules.shape(&all, "d", &Scope::default()).unwrap();
        assert_eq!(
            shown,
            list(r#"[{"description":"new \"words\"","name":"b"},{"name":"c","description":"said","title":"B"}]"#)
        );
        assert_eq!((rules.tool("b"), rules.tool("c"), rules.tool("a")), (Some("a"), Some("b"), None));
    }

    #[test]
    fn what_is_no_list_of_tools_passes() {
        let rules = rules(r#"{"tools":{"deny":["*"]}}"#);
        for message in [
            r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"\"tools\""}]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":3}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":["a"]}}"#,
            r#"{"jsonrpc":"2.0","method":"x","params":{"tools":[{"name":"a"}]}}"#,
            "not json \"tools\"",
        ] {
            assert_eq!(rules.shape(message, "d", &Scope::default()), None, "{message}");
        }
        assert_eq!(rules.shape(&list(r#"[{"name":"a"}]"#), "d", &Scope::default()), Some(list("[]")));
    }

    #[test]
    fn a_scope_narrows_deployments_and_tools() {
        let scope = Scope::new(&["time".into(), "git-*".into()], &["time/*".into(), "get_*".into()]).unwrap();
        assert!(scope.deployment("time") && scope.deployment("git-a") && !scope.deployment("other"));
        assert!(scope.tool("time", "convert") && scope.tool("git-a", "get_x") && !scope.tool("git-a", "put_x"));
        let all = Scope::default();
        assert!(all.deployment("x") && all.tool("x", "y") && !all.narrows());
        let only = Scope::new(&[], &["now".into()]).unwrap();
        let shaped = Rules::default().shape(&list(r#"[{"name":"now"},{"name":"then"}]"#), "d", &only).unwrap();
        assert_eq!(shaped, list(r#"[{"name":"now"}]"#));
    }

    #[test]
    fn policies_that_make_no_sense_are_refused() {
        let read = |text: &str| Rules::new(serde_json::from_str(text).unwrap()).unwrap_err();
        assert_eq!(read(r#"{"tools":{"rename":{"a":"x","b":"x"}}}"#), PolicyError::Twice("x".into()));
        assert_eq!(read(r#"{"tools":{"rename":{"a":"x y"}}}"#), PolicyError::Name("x y".into()));
        assert_eq!(read(r#"{"tools":{"allow":[""]}}"#), PolicyError::Pattern(String::new()));
        assert_eq!(read(r#"{"concurrency":0}"#), PolicyError::Zero("the deployment".into()));
        assert!(serde_json::from_str::<Policy>(r#"{"tool":{}}"#).is_err(), "an unknown key");
    }

    proptest::proptest! {
        #[test]
        fn a_star_is_any_run_and_nothing_else_is_special(name in "[a-c.+]{0,8}", cut in 0usize..9) {
            let cut = cut.min(name.len());
            let pattern = format!("{}*", &name[..cut]);
            let one = |p: &str| Patterns::new(&[p.to_owned()]).unwrap();
            proptest::prop_assert!(one(&pattern).matches(&name));
            if !name.is_empty() {
                proptest::prop_assert!(one(&name).matches(&name));
                let longer = format!("{name}x");
                proptest::prop_assert!(!one(&name).matches(&longer));
            }
        }
    }
}
