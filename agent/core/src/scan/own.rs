//! The owner's own rules: data flow from named sources to named calls, calls of a name, text that a pattern matches. What
//! they find looks like any other finding. How they are written is in `sigil_config::rules`.

use std::sync::LazyLock;

use regex::Regex;
use sha2::{Digest, Sha256};
use sigil_config::flaw::Flaw;
use sigil_config::rules::{self, CLIENT, Find, Rule};

use super::code::Lang;
use super::{File, Finding, Findings, Severity, line_at};
use crate::policy::Patterns;

/// Rules of an owner, ready to run.
#[derive(Debug, Default)]
pub struct Own {
    /// Those that follow data come first: their places are their bits.
    rules: Vec<Ready>,
    digest: [u8; 32],
}

#[derive(Debug)]
struct Ready {
    rule: Rule,
    severity: Severity,
    files: Option<Patterns>,
    regex: Option<Regex>,
}

impl Own {
    /// Makes rules ready.
    ///
    /// # Errors
    /// What cannot be used of them, as [`rules::parse`] says it first.
    pub fn new(given: &[Rule]) -> Result<Self, Vec<Flaw>> {
        let mut flaws = rules::clashes(given, &[]);
        let mut ready = Vec::new();
        for rule in given {
            match Ready::of(rule) {
                Ok(rule) => ready.push(rule),
                Err(why) => flaws.push(Flaw::new(&rule.at, why)),
            }
        }
        if !flaws.is_empty() {
            return Err(flaws);
        }
        ready.sort_by_key(|ready| !matches!(ready.rule.find, Find::Flow { .. }));
        let mut hash = Sha256::new();
        for ready in &ready {
            // a rule without a form that can be written would be no rule
            let text = serde_json::to_vec(&ready.rule).map_err(|e| vec![Flaw::new(&ready.rule.at, e.to_string())])?;
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        let digest = if ready.is_empty() { [0; 32] } else { hash.finalize().into() };
        Ok(Self { rules: ready, digest })
    }

    /// No rules.
    pub fn none() -> &'static Self {
        static NONE: LazyLock<Own> = LazyLock::new(Own::default);
        &NONE
    }

    /// What tells these rules from others; zeros where there is none.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Those that are about a file of code.
    pub(super) fn about(&self, path: &str, lang: Lang) -> About<'_> {
        let fits = |at: &usize| self.rules.get(*at).is_some_and(|ready| ready.reads(path, Some(lang)));
        About { own: self, rules: (0..self.rules.len()).filter(fits).collect() }
    }

    /// Checks of a value that clients send: what only other sources' rules look for is none of them.
    pub(super) fn clients(&self) -> u64 {
        let other = |ready: &Ready| match &ready.rule.find {
            Find::Flow { sources, .. } => sources.iter().all(|source| source != CLIENT),
            _ => false,
        };
        self.rules.iter().enumerate().filter(|(_, ready)| other(ready)).fold(0, |bits, (at, _)| bits | bit(at))
    }

    /// Looks for text.
    pub(super) fn check(&self, file: &File<'_>, lang: Option<Lang>, findings: &mut Findings) {
        for (at, ready) in self.rules.iter().enumerate() {
            let Some(regex) = ready.regex.as_ref().filter(|_| ready.reads(file.path, lang)) else { continue };
            if file.is_test() && ready.files.is_none() {
                continue;
            }
            for found in regex.find_iter(file.text).take(super::MAX_PER_FILE) {
                self.add(at, findings, file, found.start(), None, true);
            }
        }
    }

    /// Adds what a rule has found, once a line.
    pub(super) fn add(
        &self,
        at: usize,
        findings: &mut Findings,
        file: &File<'_>,
        offset: usize,
        how: Option<String>,
        certain: bool,
    ) {
        let Some(Ready { rule, severity, .. }) = self.rules.get(at) else { return };
        let message = match how {
            Some(how) => format!("{} ({how})", rule.message),
            None => rule.message.clone(),
        };
        let help = if rule.help.is_empty() { format!("{} in {}", rule.id, rule.at) } else { rule.help.clone() };
        findings.add_whole(
            file,
            offset,
            Finding {
                rule: rule.id.clone(),
                class: rule.class.clone(),
                severity: if certain { *severity } else { (*severity).min(Severity::Warning) },
                path: file.path.to_owned(),
                line: 0,
                column: 0,
                message,
                impact: rule.impact.clone(),
                fix: rule.fix.clone(),
                help,
                snippet: line_at(file.text, offset),
            },
        );
    }
}

impl Ready {
    fn of(rule: &Rule) -> Result<Self, String> {
        let severity = match rule.severity.as_str() {
            "info" => Severity::Info,
            "warning" => Severity::Warning,
            "error" => Severity::Error,
            "block" => Severity::Block,
            other => return Err(format!("severity cannot be '{other}'")),
        };
        let files = match rule.files.as_slice() {
            [] => None,
            files => Some(Patterns::new(files).map_err(|e| e.to_string())?),
        };
        let regex = match &rule.find {
            Find::Regex(text) => Some(rules::pattern(text).map_err(|e| e.to_string())?),
            _ => None,
        };
        Ok(Self { rule: rule.clone(), severity, files, regex })
    }

    fn reads(&self, path: &str, lang: Option<Lang>) -> bool {
        let typed = |path: &str| [".ts", ".tsx", ".mts", ".cts"].iter().any(|end| path.ends_with(end));
        let name = match lang {
            Some(Lang::Python) => "python",
            Some(Lang::Go) => "go",
            Some(Lang::Script) if typed(path) => "typescript",
            Some(Lang::Script) => "javascript",
            None => "",
        };
        let spoken = self.rule.languages.is_empty() || self.rule.languages.iter().any(|language| language == name);
        spoken && self.files.as_ref().is_none_or(|files| files.matches(path))
    }
}

/// The rules that are about one file.
pub(super) struct About<'o> {
    own: &'o Own,
    rules: Vec<usize>,
}

/// What is called, by the names that it has.
pub(super) struct Called<'c> {
    /// As its module names it.
    pub path: &'c str,
    /// As the source has it.
    pub spelled: &'c str,
    pub method: &'c str,
}

impl Called<'_> {
    fn is(&self, name: &str) -> bool {
        match name.strip_prefix("*.") {
            Some(method) => self.method == method && (self.path.contains('.') || self.spelled.contains('.')),
            None => self.path == name || self.spelled == name,
        }
    }

    fn any(&self, names: &[String]) -> bool {
        names.iter().any(|name| self.is(name))
    }
}

/// What a call is to the rules.
#[derive(Debug, Default)]
pub(super) struct Meaning {
    /// Rules that look for it, with the argument that matters (`None` within: any).
    pub sinks: Vec<(usize, Option<String>)>,
    /// Rules that want no such call, whatever it is given.
    pub calls: Vec<usize>,
    /// Rules whose data begins here.
    pub begins: u64,
    /// Rules for which it makes things harmless.
    pub cleans: u64,
}

impl About<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(super) fn clients(&self) -> u64 {
        self.own.clients()
    }

    fn each(&self) -> impl Iterator<Item = (usize, &Find)> {
        self.rules.iter().filter_map(|at| Some((*at, &self.own.rules.get(*at)?.rule.find)))
    }

    pub(super) fn meaning(&self, called: &Called<'_>) -> Meaning {
        let mut meaning = Meaning::default();
        for (at, find) in self.each() {
            match find {
                Find::Flow { sources, sinks, sanitizers } => {
                    let hit = sinks.iter().filter(|sink| called.is(&sink.name));
                    meaning.sinks.extend(hit.map(|sink| (at, sink.argument.clone())));
                    if called.any(sources) {
                        meaning.begins |= bit(at);
                    }
                    if called.any(sanitizers) {
                        meaning.cleans |= bit(at);
                    }
                }
                Find::Call(names) if called.any(names) => meaning.calls.push(at),
                Find::Call(_) | Find::Regex(_) => {}
            }
        }
        meaning
    }

    /// Rules whose data begins with a variable, or a member of one.
    pub(super) fn begins(&self, path: &str) -> u64 {
        let is = |source: &String| {
            path.strip_prefix(source.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.each().fold(0, |bits, (at, find)| match find {
            Find::Flow { sources, .. } if sources.iter().any(is) => bits | bit(at),
            _ => bits,
        })
    }
}

/// The place of a rule among what is known of a value; those that follow no data have none.
pub(super) fn bit(at: usize) -> u64 {
    if at < rules::MAX_FLOWS { 1 << (16 + at) } else { 0 }
}

/// Runs the examples of rules; those that do not come out as they say.
pub fn examine(given: &[Rule]) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    for rule in given {
        let own = match Own::new(std::slice::from_ref(rule)) {
            Ok(own) => own,
            Err(more) => {
                flaws.extend(more);
                continue;
            }
        };
        for test in &rule.tests {
            let report = super::scan_with(&[(test.file.as_str(), test.code.as_str())], &own);
            let mut lines: Vec<u32> =
                report.findings.iter().filter(|f| f.rule == rule.id).map(|finding| finding.line).collect();
            lines.dedup();
            if lines != test.lines {
                let told = |lines: &[u32]| match lines {
                    [] => "no line".to_owned(),
                    lines => format!("line {}", lines.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
                };
                let what = format!("'{}' finds {} of this example, not {}", rule.id, told(&lines), told(&test.lines));
                flaws.push(Flaw::new(&test.at, what));
            }
        }
    }
    flaws
}

#[cfg(test)]
mod tests;
