//! Owns: the scanner's rules that a host's owner writes (TOML or YAML): their form, and every flaw of them. May touch: the
//! files that [`load`] is given. Never: runs a rule (the scanner does, in `sigil-core`). Tested by: units here and in
//! `sigil-core`.

mod follow;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::flaw::{At, Flaw};
use crate::node::{self, Node, Value, Walk};

pub use follow::{Followed, Given, follow};

/// Severities, the least first.
pub const SEVERITIES: [&str; 4] = ["info", "warning", "error", "block"];
/// Languages whose code is read. TypeScript is read as JavaScript is.
pub const LANGUAGES: [&str; 4] = ["python", "javascript", "typescript", "go"];
/// What clients send: arguments of tools and prompts, addresses of resources, parts of HTTP requests.
pub const CLIENT: &str = "client";
/// Rules that follow data; each has a bit of its own in what is known of a value.
pub const MAX_FLOWS: usize = 48;
/// Rules of all files.
const MAX_RULES: usize = 500;
/// Names in one list.
const MAX_NAMES: usize = 200;
/// Bytes of one file.
const MAX_FILE: u64 = 1 << 20;
/// Bytes that a compiled pattern may take: a pattern that wants more is no pattern of a line of code.
pub const PATTERN_LIMIT: usize = 1 << 20;

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Its name: lower-case words with dashes, unlike any other.
    pub id: String,
    /// Family; one of the scanner's own or a new one.
    pub class: String,
    /// One of [`SEVERITIES`].
    pub severity: String,
    /// Languages that it is for; empty: all of them.
    pub languages: Vec<String>,
    /// Paths that it is for, with stars; empty: all of them.
    pub files: Vec<String>,
    /// What it looks for.
    pub find: Find,
    /// What is there.
    pub message: String,
    /// What it can lead to.
    pub impact: String,
    /// What to do.
    pub fix: String,
    /// Where to read on: an address, or a text.
    pub help: String,
    /// Examples that it is held to.
    #[serde(skip)]
    pub tests: Vec<Test>,
    /// Where it was written.
    #[serde(skip)]
    pub at: At,
}

/// What a rule looks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Find {
    /// Data that gets from a source to a sink, and through no sanitizer.
    Flow {
        /// Where it comes from: names of variables and calls, or [`CLIENT`].
        sources: Vec<String>,
        /// Where it must not get.
        sinks: Vec<Sink>,
        /// Calls that make it harmless.
        sanitizers: Vec<String>,
    },
    /// A call of one of these names, whatever it is given.
    Call(Vec<String>),
    /// Text that a regular expression matches.
    Regex(String),
}

/// A call, and which of its arguments matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sink {
    /// What is called (`subprocess.run`; `*.execute`: whatever it is called on).
    pub name: String,
    /// The argument, by its place from 0 or by its name; `None`: any.
    pub argument: Option<String>,
}

/// An example: what the rule has to say of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    /// What the file is called; it says the language.
    pub file: String,
    /// What is in it.
    pub code: String,
    /// Lines with a finding; none where the file is clean.
    pub lines: Vec<u32>,
    /// Where the example was written.
    pub at: At,
}

/// Reads the rules of one text. `yaml` says which of the two forms it has. With flaws, nothing of it is to be used.
pub fn parse(origin: &str, text: &str, yaml: bool) -> (Vec<Rule>, Vec<Flaw>) {
    let (root, flaws) = if yaml { node::yaml(origin, text) } else { node::toml(origin, text) };
    let mut walk = Walk { flaws };
    // what could not be read says little about what is missing
    if !walk.flaws.is_empty() {
        return (Vec::new(), walk.flaws);
    }
    let fields = walk.fields(&root, "the rules", &["rule"]);
    let mut rules = Vec::new();
    match fields.get("rule").map(|node| (node, &node.value)) {
        Some((_, Value::List(items))) => rules.extend(items.iter().filter_map(|item| rule(&mut walk, item))),
        Some((node, _)) => walk.wrong(node, "rule", "a list of rules ([[rule]])"),
        None if walk.flaws.is_empty() => walk.flaw_hint(&root, "there is no rule here", "begin one with [[rule]]"),
        None => {}
    }
    (rules, walk.flaws)
}

fn rule(walk: &mut Walk, node: &Node) -> Option<Rule> {
    let known = [
        "id",
        "class",
        "severity",
        "languages",
        "files",
        "sources",
        "sinks",
        "sanitizers",
        "call",
        "regex",
        "message",
        "impact",
        "fix",
        "help",
        "test",
    ];
    let before = walk.flaws.len();
    let fields = walk.fields(node, "a rule", &known);
    let text = |walk: &mut Walk, key: &'static str, needed: bool| match fields.get(key) {
        Some(node) => {
            let text = walk.text(node, key, false).unwrap_or_default();
            if text.trim().is_empty() && needed {
                walk.flaw(node, format!("'{key}' is empty"));
            }
            text.trim().to_owned()
        }
        None if needed => {
            walk.flaw(node, format!("a rule needs '{key}'"));
            String::new()
        }
        None => String::new(),
    };
    let (id, class) = (text(walk, "id", true), text(walk, "class", true));
    let message = text(walk, "message", true);
    let (impact, fix, help) = (text(walk, "impact", true), text(walk, "fix", true), text(walk, "help", false));
    for (key, value) in [("id", &id), ("class", &class)] {
        if let Some(node) = fields.get(key).filter(|_| !value.is_empty() && !is_word(value)) {
            walk.flaw_hint(
                node,
                format!("{key} cannot be '{value}'"),
                "write lower-case words with dashes, at most 60 letters",
            );
        }
    }
    let severity = match fields.get("severity") {
        Some(node) => walk.word(node, "severity", &SEVERITIES).unwrap_or_default(),
        None => {
            walk.flaw(node, "a rule needs 'severity'");
            String::new()
        }
    };
    let mut languages = Vec::new();
    for item in fields.get("languages").map(|node| listed(walk, node, "languages")).unwrap_or_default() {
        languages.extend(walk.word(item, "languages", &LANGUAGES));
    }
    let mut files = Vec::new();
    for item in fields.get("files").map(|node| listed(walk, node, "files")).unwrap_or_default() {
        match item.as_text() {
            Some(text) if !text.is_empty() && text.len() <= 256 => files.push(text.to_owned()),
            _ => walk.flaw_hint(item, "this is no pattern of a path", "write one with stars, such as \"src/*.py\""),
        }
    }
    let find = find(walk, node, &fields);
    let mut tests = Vec::new();
    if let Some(list) = fields.get("test") {
        match &list.value {
            Value::List(items) => tests.extend(items.iter().filter_map(|item| test(walk, item))),
            _ => walk.wrong(list, "test", "a list of examples ([[rule.test]])"),
        }
    }
    if walk.flaws.len() > before {
        return None;
    }
    let at = node.at.clone();
    Some(Rule { id, class, severity, languages, files, find: find?, message, impact, fix, help, tests, at })
}

fn find(walk: &mut Walk, node: &Node, fields: &node::Fields<'_>) -> Option<Find> {
    let given: Vec<&str> = ["sinks", "call", "regex"].into_iter().filter(|key| fields.contains_key(key)).collect();
    match given.as_slice() {
        ["sinks"] => {
            let sources = match fields.get("sources") {
                Some(node) => names(walk, node, "sources"),
                None => vec![CLIENT.to_owned()],
            };
            let mut sinks = Vec::new();
            for item in fields.get("sinks").map(|node| listed(walk, node, "sinks")).unwrap_or_default() {
                match item.as_text().and_then(sink) {
                    Some(sink) => sinks.push(sink),
                    None => {
                        walk.flaw_hint(item, "this is no call", "write module.function, *.method or either with (0)")
                    }
                }
            }
            let sanitizers = fields.get("sanitizers").map(|node| names(walk, node, "sanitizers")).unwrap_or_default();
            Some(Find::Flow { sources, sinks, sanitizers })
        }
        ["call"] | ["regex"] => {
            for key in ["sources", "sanitizers"] {
                if let Some(node) = fields.get(key) {
                    walk.flaw_hint(node, format!("'{key}' says nothing without 'sinks'"), "leave it out");
                }
            }
            if let Some(node) = fields.get("call") {
                return Some(Find::Call(names(walk, node, "call")));
            }
            let node = fields.get("regex")?;
            let text = walk.text(node, "regex", false)?;
            match pattern(&text) {
                Ok(regex) if regex.is_match("") => {
                    walk.flaw_hint(node, "regex matches an empty text", "say what has to be there");
                    None
                }
                Ok(_) => Some(Find::Regex(text)),
                Err(error) => {
                    // the library draws a picture over several lines; its last one says what is wrong
                    let error = error.to_string();
                    let why = error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                    walk.flaw(node, format!("regex cannot be read: {why}"));
                    None
                }
            }
        }
        _ => {
            let hint = "sinks (with sources and sanitizers) for data flow, call for calls, regex for text";
            walk.flaw_hint(node, "a rule needs one of 'sinks', 'call' and 'regex'", hint);
            None
        }
    }
}

/// Compiles what a rule looks for in text. The engine takes time in proportion to the text, whatever the pattern.
///
/// # Errors
/// A pattern that cannot be read, or that grows beyond [`PATTERN_LIMIT`].
pub fn pattern(text: &str) -> Result<regex::Regex, regex::Error> {
    regex::RegexBuilder::new(text).multi_line(true).size_limit(PATTERN_LIMIT).dfa_size_limit(PATTERN_LIMIT).build()
}

fn test(walk: &mut Walk, node: &Node) -> Option<Test> {
    let fields = walk.fields(node, "an example", &["file", "code", "lines"]);
    let before = walk.flaws.len();
    for key in ["file", "code", "lines"] {
        if !fields.contains_key(key) {
            walk.flaw(node, format!("an example needs '{key}'"));
        }
    }
    let file = fields.get("file").and_then(|node| walk.text(node, "file", false));
    let code = fields.get("code").and_then(|node| walk.text(node, "code", false));
    let mut lines = Vec::new();
    for item in fields.get("lines").map(|node| listed(walk, node, "lines")).unwrap_or_default() {
        lines.extend(walk.int(item, "lines", 1, 1_000_000).and_then(|line| u32::try_from(line).ok()));
    }
    lines.sort_unstable();
    (walk.flaws.len() == before).then_some(Test { file: file?, code: code?, lines, at: node.at.clone() })
}

/// The items of a list; a single value is a list of one.
fn listed<'n>(walk: &mut Walk, node: &'n Node, what: &str) -> Vec<&'n Node> {
    match &node.value {
        Value::List(items) if items.len() > MAX_NAMES => {
            walk.flaw(node, format!("'{what}' has more than {MAX_NAMES} entries"));
            Vec::new()
        }
        Value::List(items) => items.iter().collect(),
        Value::Map(_) | Value::Null => {
            walk.wrong(node, what, "a list");
            Vec::new()
        }
        _ => vec![node],
    }
}

fn names(walk: &mut Walk, node: &Node, what: &str) -> Vec<String> {
    let mut all = Vec::new();
    let items = listed(walk, node, what);
    if items.is_empty() {
        walk.flaw(node, format!("'{what}' is empty"));
    }
    for item in items {
        match item.as_text() {
            // `f()` and `f` are one
            Some(text) if is_name(text.trim_end_matches("()")) => all.push(text.trim_end_matches("()").to_owned()),
            _ => walk.flaw_hint(item, format!("'{}' is no name", item.raw), "write module.function, or *.method"),
        }
    }
    all
}

fn sink(text: &str) -> Option<Sink> {
    let (name, argument) = match text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        Some((name, "")) => (name, None),
        Some((name, argument)) => (name, Some(argument.trim())),
        None => (text, None),
    };
    let place = |word: &str| word.len() < 3 && word.bytes().all(|b| b.is_ascii_digit());
    let fine = argument.is_none_or(|word| place(word) || (is_name(word) && !word.contains(['.', '*', '/'])));
    (is_name(name) && fine).then(|| Sink { name: name.to_owned(), argument: argument.map(str::to_owned) })
}

/// `a.b.c`, `os/exec.Command`, `*.run`.
fn is_name(text: &str) -> bool {
    let text = text.strip_prefix("*.").unwrap_or(text);
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(|c: char| c.is_ascii_digit())
            && part.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | '/' | '-' | ':' | '@'))
    };
    text.len() <= 200 && text.split('.').all(part)
}

fn is_word(text: &str) -> bool {
    text.len() <= 60
        && text.split('-').all(|part| !part.is_empty())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether a file has rules, by its name.
fn form(path: &Path) -> Option<bool> {
    match path.extension()?.to_str()? {
        "toml" => Some(false),
        "yaml" | "yml" => Some(true),
        _ => None,
    }
}

/// The files of a path: itself, or the rule files of a directory in their order.
fn files(path: &Path) -> Result<Vec<PathBuf>, Vec<Flaw>> {
    let fail = |path: &Path, why: String| vec![Flaw::new(&At::whole(path.display().to_string()), why)];
    if !path.is_dir() {
        return match form(path) {
            Some(_) => Ok(vec![path.to_owned()]),
            None => Err(fail(path, "rules are in files that end with .toml, .yaml or .yml".to_owned())),
        };
    }
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|error| fail(path, error.to_string()))?;
    let mut all: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(|p| form(p).is_some()).collect();
    all.sort();
    Ok(all)
}

/// Reads the rules of a file, or of all files of a directory. `taken` are names that are no longer free.
///
/// # Errors
/// Every flaw of every file.
pub fn load(path: &Path, taken: &[&str]) -> Result<Vec<Rule>, Vec<Flaw>> {
    let mut rules = Vec::new();
    let mut flaws = Vec::new();
    for file in files(path)? {
        let origin = file.display().to_string();
        let read = std::fs::metadata(&file).and_then(|meta| match meta.len() {
            length if length > MAX_FILE => Err(std::io::Error::other("it is longer than 1 MiB")),
            _ => std::fs::read_to_string(&file),
        });
        match read {
            Ok(text) => {
                let (more, wrong) = parse(&origin, &text, form(&file) == Some(true));
                rules.extend(more);
                flaws.extend(wrong);
            }
            Err(error) => flaws.push(Flaw::new(&At::whole(origin), error.to_string())),
        }
    }
    flaws.extend(clashes(&rules, taken));
    if flaws.is_empty() { Ok(rules) } else { Err(flaws) }
}

/// What is wrong with rules that are right each.
pub fn clashes(rules: &[Rule], taken: &[&str]) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let mut flows = 0;
    for (at, rule) in rules.iter().enumerate() {
        if taken.contains(&rule.id.as_str()) {
            flaws.push(
                Flaw::new(&rule.at, format!("'{}' is a rule of the scanner itself", rule.id)).hint("call it otherwise"),
            );
        }
        if let Some(first) = rules.iter().take(at).find(|first| first.id == rule.id) {
            flaws.push(Flaw::new(&rule.at, format!("'{}' is written twice (first in {})", rule.id, first.at)));
        }
        flows += usize::from(matches!(rule.find, Find::Flow { .. }));
        if flows == MAX_FLOWS + 1 && matches!(rule.find, Find::Flow { .. }) {
            flaws.push(Flaw::new(&rule.at, format!("more than {MAX_FLOWS} rules with sinks")));
        }
        if at == MAX_RULES {
            flaws.push(Flaw::new(&rule.at, format!("more than {MAX_RULES} rules")));
        }
    }
    flaws
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[rule]]
id = "own-shell"
class = "command-injection"
severity = "block"
languages = ["python", "go"]
sources = ["client", "tickets.fetch()"]
sinks = ["jobs.submit(0)", "*.enqueue(command)", "os/exec.Command"]
sanitizers = "jobs.quote"
message = "a ticket reaches the job queue"
impact = "whoever writes a ticket runs commands"
fix = "quote it with jobs.quote"
help = "https://wiki.example.org/jobs"

[[rule.test]]
file = "a.py"
code = "x = 1\n"
lines = []

[[rule]]
id = "no-legacy"
class = "own"
severity = "info"
call = ["legacy.connect"]
message = "m"
impact = "i"
fix = "f"

[[rule]]
id = "no-todo"
class = "own"
severity = "warning"
files = ["src/*"]
regex = 'TODO\(\w+\)'
message = "m"
impact = "i"
fix = "f"
"#;

    #[test]
    fn toml_and_yaml_say_the_same() {
        let (rules, flaws) = parse("rules.toml", GOOD, false);
        assert_eq!(flaws, []);
        assert_eq!(rules.len(), 3);
        let Find::Flow { sources, sinks, sanitizers } = &rules[0].find else { panic!("{rules:?}") };
        assert_eq!(sources, &["client", "tickets.fetch"]);
        assert_eq!(sinks[0], Sink { name: "jobs.submit".into(), argument: Some("0".into()) });
        assert_eq!(sinks[2], Sink { name: "os/exec.Command".into(), argument: None });
        assert_eq!(sanitizers, &["jobs.quote"]);
        assert_eq!(rules[2].find, Find::Regex("TODO\\(\\w+\\)".into()));
        assert_eq!((rules[1].at.line, rules[0].tests[0].at.line), (20, 15));
        let yaml = "rule:\n- id: no-legacy\n  class: own\n  severity: info\n  call: [legacy.connect]\n  message: m\n  impact: i\n  fix: f\n";
        let (other, flaws) = parse("rules.yaml", yaml, true);
        assert_eq!(flaws, []);
        assert_eq!((&other[0].id, &other[0].find), (&rules[1].id, &rules[1].find));
    }

    #[test]
    fn every_flaw_is_named_with_its_place() {
        let text = "[[rule]]\nid = \"Bad Id\"\nclass = \"x\"\nseverity = \"worst\"\nlanguages = [\"cobol\"]\nregex = \"a(\"\nmessage = \"m\"\nfix = \"\"\n\n\
                    [[rule]]\nid = \"b\"\nclass = \"x\"\nseverity = \"info\"\nsinks = [\"a b\"]\ncall = [\"c\"]\nmesage = \"m\"\nimpact = \"i\"\nfix = \"f\"\n";
        let (rules, flaws) = parse("r.toml", text, false);
        assert_eq!(rules, []);
        let told: Vec<String> = flaws.iter().map(ToString::to_string).collect();
        for part in [
            "r.toml:1:1: a rule needs 'impact'",
            "r.toml:2:6: id cannot be 'Bad Id'",
            "r.toml:4:12: severity cannot be 'worst'",
            "r.toml:5:14: languages cannot be 'cobol'",
            "r.toml:6:9: regex cannot be read: unclosed group",
            "r.toml:8:7: 'fix' is empty",
            "r.toml:16:1: unknown key 'mesage' in a rule; did you mean 'message'?",
            "r.toml:10:1: a rule needs one of 'sinks', 'call' and 'regex'",
        ] {
            assert!(told.iter().any(|line| line.starts_with(part)), "{part}\n{}", told.join("\n"));
        }
        let (_, flaws) = parse("r.toml", "[[rule]\n", false);
        assert!(flaws[0].to_string().starts_with("r.toml:1:"), "{flaws:?}");
        assert!(parse("r.toml", "", false).1[0].message.contains("no rule"));
    }

    #[test]
    fn a_pattern_that_grows_without_bound_is_refused() {
        assert!(pattern(r"(?:\w{200}){200}").is_err());
        let text = "[[rule]]\nid='a'\nclass='x'\nseverity='info'\nregex='x*'\nmessage='m'\nimpact='i'\nfix='f'\n";
        assert!(parse("r", text, false).1[0].message.contains("empty text"));
    }

    #[test]
    fn a_directory_is_read_whole_and_names_do_not_clash() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put("a.toml", GOOD);
        put("notes.txt", "no rules");
        assert_eq!(load(dir.path(), &[]).unwrap().len(), 3);
        put("b.toml", &GOOD.replace("own-shell", "ssrf"));
        let flaws = load(dir.path(), &["ssrf"]).unwrap_err();
        let told: Vec<&str> = flaws.iter().map(|flaw| flaw.message.as_str()).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("of the scanner itself") && told[1].contains("written twice"), "{told:?}");
        assert!(load(&dir.path().join("notes.txt"), &[]).is_err());
        assert!(load(&dir.path().join("none.toml"), &[]).is_err());
    }
}
