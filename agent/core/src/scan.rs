//! Reads source trees for flaws, without running anything: the hook every deploy passes, and its first rules.
//!
//! Deterministic and pure: callers read the files, hand them in sorted or not, and get findings sorted by path and
//! line. One file per rule family under `scan/`; a family is a function `(&File, &mut Findings)`, or over all files. What
//! follows data through code is `scan/flow.rs`.

mod access;
mod bind;
mod code;
mod dependencies;
mod deputy;
mod docker;
mod exposure;
mod flow;
mod hidden;
mod http;
mod kept;
mod literal;
pub mod outline;
mod own;
mod poison;
mod rugpull;
mod secrets;
mod session;
mod squat;
mod token;
#[cfg(test)]
mod told;

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

pub use hidden::is_hidden;
pub use kept::key;
pub use own::{Own, examine};
pub use poison::tools;

/// Which scanner this is: another one may find other things.
pub const ENGINE: &str = concat!(env!("CARGO_PKG_VERSION"), "-", env!("SIGIL_SCAN_ENGINE"));
/// Files longer than this (in bytes) are not read: they are data or bundles that a person did not write.
pub const MAX_FILE: usize = 1 << 20;
/// Findings of one rule in one file; more say nothing new.
const MAX_PER_FILE: usize = 20;
/// Longest snippet, in characters.
const SNIPPET: usize = 160;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Worth mending.
    Warning,
    /// Wrong.
    Error,
    /// Not run unless waived.
    Block,
}

impl Severity {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Block => "block",
        }
    }
}

/// The answer of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing above info.
    Safe,
    /// At least one warning or error.
    Warning,
    /// At least one block: not built.
    Blocked,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Verdict {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Warning => "warning",
            Self::Blocked => "blocked",
        }
    }
}

/// One flaw at one place (`cli.md`, `scan -o json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable name of the rule (`secret-private-key`).
    pub rule: String,
    /// Family (`secrets`, `container`, `dependencies`, or the attack: `command-injection`, `tool-poisoning`).
    pub class: String,
    /// How bad.
    pub severity: Severity,
    /// File, relative to the tree, with '/'.
    pub path: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is there.
    pub message: String,
    /// What it can lead to.
    pub impact: String,
    /// What to do.
    pub fix: String,
    /// Where to read on (a `sigil guide` topic).
    pub help: String,
    /// The line, secrets masked and hidden characters spelled out.
    pub snippet: String,
}

/// Everything that a scan found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The answer.
    pub verdict: Verdict,
    /// Findings by path, line and rule.
    pub findings: Vec<Finding>,
    /// Files read (binaries and files over [`MAX_FILE`] are not).
    pub files: usize,
    /// How long it took; 0 until the caller, who has a clock, fills it in.
    pub elapsed_ms: u64,
}

/// What a rule says wherever it fires.
pub(crate) struct Rule {
    id: &'static str,
    class: &'static str,
    severity: Severity,
    impact: &'static str,
    fix: &'static str,
}

/// A text file under scan.
pub(crate) struct File<'a> {
    path: &'a str,
    text: &'a str,
}

impl File<'_> {
    /// Last part of the path.
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }

    /// Whether the file is there to test or show something, not to run.
    fn is_test(&self) -> bool {
        let folder = |part: &str| {
            matches!(part, "test" | "tests" | "testdata" | "__tests__" | "fixtures" | "spec" | "specs" | "examples")
        };
        let name = self.name();
        self.path.split('/').any(folder)
            || name.starts_with("test_")
            || name.contains(".test.")
            || name.contains("_test.")
    }
}

/// Collects findings, bounded per file and rule.
#[derive(Default)]
pub(crate) struct Findings {
    list: Vec<Finding>,
}

impl Findings {
    /// Adds one at a byte offset of the file. `snippet` is shown as given (already masked by the rule).
    fn add(&mut self, rule: &Rule, file: &File<'_>, at: usize, message: String, snippet: String) {
        self.add_as(rule, rule.severity, file, at, message, snippet);
    }

    /// The same, but where the rule has not fired on this line before.
    fn add_once(
        &mut self,
        rule: &Rule,
        severity: Severity,
        file: &File<'_>,
        at: usize,
        message: String,
        snippet: String,
    ) {
        let known = self.list.len();
        self.add_as(rule, severity, file, at, message, snippet);
        if let Some(new) = self.list.get(known) {
            let same = |f: &Finding| f.rule == new.rule && f.line == new.line && f.path == new.path;
            if self.list[..known].iter().any(same) {
                self.list.truncate(known);
            }
        }
    }

    /// Adds a finding that has all but its place, where its rule has not fired on the line before.
    fn add_whole(&mut self, file: &File<'_>, at: usize, finding: Finding) {
        let (line, column) = place(file, at);
        let mut seen = self.list.iter().rev().take_while(|f| f.path == file.path).filter(|f| f.rule == finding.rule);
        let many = seen.clone().count() >= MAX_PER_FILE;
        if !many && !seen.any(|f| f.line == line) {
            self.list.push(Finding { line, column, ..finding });
        }
    }

    fn add_as(
        &mut self,
        rule: &Rule,
        severity: Severity,
        file: &File<'_>,
        at: usize,
        message: String,
        snippet: String,
    ) {
        let seen = self.list.iter().rev().take_while(|f| f.path == file.path).filter(|f| f.rule == rule.id).count();
        if seen >= MAX_PER_FILE {
            return;
        }
        let (line, column) = place(file, at);
        self.list.push(Finding {
            rule: rule.id.to_owned(),
            class: rule.class.to_owned(),
            severity,
            path: file.path.to_owned(),
            line,
            column,
            message,
            impact: rule.impact.to_owned(),
            fix: rule.fix.to_owned(),
            help: format!("sigil guide scan#{}", rule.id),
            snippet,
        });
    }
}

/// Line and column of a byte offset.
fn place(file: &File<'_>, at: usize) -> (u32, u32) {
    let before = file.text.get(..at).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
    let column = before[line_start..].chars().count() + 1;
    (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
}

/// The line around a byte offset, trimmed and cut, control characters shown as escapes.
fn line_at(text: &str, at: usize) -> String {
    let start = text.get(..at).and_then(|t| t.rfind('\n')).map_or(0, |i| i + 1);
    let end = text.get(at..).and_then(|t| t.find('\n')).map_or(text.len(), |i| at + i);
    let line = text.get(start..end).unwrap_or_default().trim();
    let mut shown = String::new();
    for (count, c) in line.chars().enumerate() {
        if count == SNIPPET {
            shown.push('…');
            break;
        }
        if hidden::is_hidden(c) || (c.is_control() && c != '\t') {
            shown.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// What one file says on its own, and to the files around it. Made by [`look`], for [`join`].
pub struct Look<'a> {
    path: &'a str,
    /// The file, where it is a text that is read.
    file: Option<File<'a>>,
    findings: Findings,
    facts: Option<flow::Facts>,
    /// It asks callers for a credential.
    guards: bool,
}

fn text(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > MAX_FILE || bytes.iter().take(8192).any(|b| *b == 0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

/// Whether a file's content is read at all.
pub fn is_text(bytes: &[u8]) -> bool {
    text(bytes).is_some()
}

/// Looks at one file of a tree: its path relative with '/', its bytes. Files over [`MAX_FILE`] and binaries (a NUL in
/// the first 8 KiB, or not UTF-8) are skipped by content rules, but count as present. Files can be looked at in any
/// order, and at once on several threads.
pub fn look<'a>(path: &'a str, bytes: &'a [u8]) -> Look<'a> {
    look_with(path, bytes, Own::none())
}

/// The same, with the owner's rules.
pub fn look_with<'a>(path: &'a str, bytes: &'a [u8], own: &Own) -> Look<'a> {
    let mut look = Look { path, file: None, findings: Findings::default(), facts: None, guards: false };
    let Some(text) = text(bytes) else { return look };
    let file = File { path, text };
    let findings = &mut look.findings;
    secrets::check(&file, findings);
    docker::check(&file, findings);
    hidden::check(&file, findings);
    dependencies::check_file(&file, findings);
    poison::check_data(&file, findings);
    access::check_data(&file, findings);
    squat::check(&file, findings);
    let parsed = code::parse(&file);
    own.check(&file, parsed.as_ref().map(|(lang, _)| *lang), findings);
    if let Some((lang, tree)) = parsed {
        look.facts = Some(flow::check(&file, lang, &tree, own, findings));
        look.guards = check_code(&file, lang, &tree, findings);
    }
    look.file = Some(file);
    look
}

/// Scans a tree given as `(path, bytes)`: [`look`] at each, then [`join`].
pub fn scan<P: AsRef<str>, B: AsRef<[u8]>>(files: &[(P, B)]) -> Report {
    scan_with(files, Own::none())
}

/// The same, with the owner's rules.
pub fn scan_with<P: AsRef<str>, B: AsRef<[u8]>>(files: &[(P, B)], own: &Own) -> Report {
    join_with(files.iter().map(|(path, bytes)| look_with(path.as_ref(), bytes.as_ref(), own)).collect(), own)
}

/// What a tree says, of what its files say.
pub fn join(looks: Vec<Look<'_>>) -> Report {
    join_with(looks, Own::none())
}

/// The same, with the owner's rules that the files were looked at with.
pub fn join_with(mut looks: Vec<Look<'_>>, own: &Own) -> Report {
    looks.sort_by(|a, b| a.path.cmp(b.path));
    let mut findings = Findings::default();
    for look in &mut looks {
        findings.list.append(&mut look.findings.list);
    }
    let facts: Vec<(&File<'_>, &flow::Facts)> =
        looks.iter().filter_map(|look| Some((look.file.as_ref()?, look.facts.as_ref()?))).collect();
    flow::join(&facts, own, &mut findings);
    let paths: Vec<&str> = looks.iter().map(|look| look.path).collect();
    let guarded: Vec<&str> = looks.iter().filter(|look| look.guards).map(|look| look.path).collect();
    let read: Vec<File<'_>> = looks.into_iter().filter_map(|look| look.file).collect();
    dependencies::check_tree(&read, &paths, &mut findings);
    bind::settle(&paths, &read, &guarded, &mut findings.list);

    let mut list = findings.list;
    list.sort_by(|a, b| {
        let place = |f: &Finding| (f.line, f.column);
        match a.path.cmp(&b.path) {
            Ordering::Equal => place(a).cmp(&place(b)).then_with(|| a.rule.cmp(&b.rule)),
            other => other,
        }
    });
    let worst = list.iter().map(|f| f.severity).max();
    let verdict = match worst {
        Some(Severity::Block) => Verdict::Blocked,
        Some(Severity::Warning | Severity::Error) => Verdict::Warning,
        Some(Severity::Info) | None => Verdict::Safe,
    };
    Report { verdict, findings: list, files: read.len(), elapsed_ms: 0 }
}

/// Rules that need the syntax of a file, and no data flow. Whether the file asks callers for a credential.
fn check_code(file: &File<'_>, lang: code::Lang, tree: &tree_sitter::Tree, findings: &mut Findings) -> bool {
    let code = code::Code::read(file, lang, tree);
    session::check(&code, findings);
    token::check(&code, findings);
    deputy::check(&code, findings);
    bind::check(&code, findings);
    poison::check(&code, findings);
    rugpull::check(&code, findings);
    exposure::check(&code, findings);
    access::check(&code, findings);
    literal::check(&code, findings);
    http::guards_server(&code)
}

/// A rule by what is stable of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its name, as in [`Finding::rule`].
    pub id: &'static str,
    /// Its family, as in [`Finding::class`].
    pub class: &'static str,
}

/// Rules of `flow.rs`, each a family by itself.
const FLOW: &[&str] = &[
    "command-injection",
    "argument-injection",
    "code-injection",
    "path-traversal",
    "ssrf",
    "sql-injection",
    "nosql-injection",
    "unsafe-deserialisation",
    "template-injection",
];

/// Every rule there is, by family.
pub fn rules() -> Vec<RuleInfo> {
    let families: &[&[&Rule]] = &[
        literal::RULES,
        docker::RULES,
        hidden::RULES,
        dependencies::RULES,
        squat::RULES,
        session::RULES,
        token::RULES,
        deputy::RULES,
        bind::RULES,
        poison::RULES,
        rugpull::RULES,
        exposure::RULES,
        access::RULES,
    ];
    let own = families.iter().flat_map(|family| family.iter()).copied().chain(secrets::rules());
    let flow = FLOW.iter().map(|id| RuleInfo { id, class: id });
    let mut all: Vec<RuleInfo> = own.map(|rule| RuleInfo { id: rule.id, class: rule.class }).chain(flow).collect();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (rule, severity, path, line) of every finding.
    fn found(files: &[(&str, &str)]) -> Vec<(String, Severity, String, u32)> {
        scan(files).findings.into_iter().map(|f| (f.rule, f.severity, f.path, f.line)).collect()
    }

    #[test]
    fn an_empty_tree_is_safe() {
        let report = scan::<&str, &[u8]>(&[]);
        assert_eq!((report.verdict, report.files), (Verdict::Safe, 0));
    }

    #[test]
    fn binaries_and_huge_files_are_not_read() {
        let key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAtestkeytestkeytestkeytestkeytestkey\n";
        let binary = [b"\0".as_slice(), key.as_bytes()].concat();
        let huge = [key.as_bytes(), &vec![b'a'; MAX_FILE]].concat();
        let latin = [key.as_bytes(), b"\xff"].concat();
        let report = scan(&[("a.bin", binary), ("b.txt", huge), ("c.txt", latin)]);
        assert_eq!((report.findings.len(), report.files), (0, 0));
    }

    #[test]
    fn findings_are_in_order_whatever_the_order_of_files() {
        let a = ("a/Dockerfile", "FROM x\nRUN curl https://e.org/i.sh | sh\n");
        let b = ("b/Dockerfile", "FROM x\n");
        assert_eq!(found(&[a, b]), found(&[b, a]));
        assert_eq!(found(&[a, b]).len(), 3);
    }

    #[test]
    fn the_worst_finding_decides() {
        assert_eq!(scan(&[("package.json", r#"{"scripts":{"postinstall":"node x"}}"#)]).verdict, Verdict::Safe);
        assert_eq!(scan(&[("Dockerfile", "FROM x\n")]).verdict, Verdict::Warning);
        assert_eq!(scan(&[("a.py", "d = 'x\u{e0041}'\n")]).verdict, Verdict::Blocked);
    }

    #[test]
    fn one_rule_floods_no_report() {
        let text = "x = 'a\u{200b}b'\n".repeat(500);
        assert_eq!(scan(&[("a.py", &text)]).findings.len(), MAX_PER_FILE);
    }

    #[test]
    fn json_has_the_documented_shape() {
        let value = serde_json::to_value(scan(&[("Dockerfile", "FROM x\n")])).unwrap();
        assert_eq!(value["verdict"], "warning");
        assert_eq!(value["findings"][0]["severity"], "warning");
        for key in ["rule", "class", "path", "line", "column", "message", "impact", "fix", "help", "snippet"] {
            assert!(!value["findings"][0][key].is_null(), "{key}");
        }
        assert_eq!((value["files"].as_u64(), value["elapsed_ms"].as_u64()), (Some(1), Some(0)));
    }
}
