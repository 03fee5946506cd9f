//! What is wrong with a source: reports of scans, and what a deploy said of what it scanned on its way.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::resume::Progress;
use super::view::{Event, Operation, Waiver, What};
use super::{Link, LinkError};

/// A scan's answer as `cli.md` promises it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `safe`, `warning` or `blocked`.
    pub verdict: String,
    /// By path, line and rule.
    pub findings: Vec<Finding>,
    /// Files that were read.
    pub files: u64,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// One flaw at one place.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Finding {
    /// Stable name of the rule.
    pub rule: String,
    /// Its family.
    pub class: String,
    /// `info`, `warning`, `error` or `block`.
    pub severity: String,
    /// The file.
    pub path: String,
    /// Line, from 1.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// What is there.
    pub message: String,
    /// What it can lead to.
    #[serde(default)]
    pub impact: String,
    /// What to do.
    #[serde(default)]
    pub fix: String,
    /// Where to read on.
    #[serde(default)]
    pub help: String,
    /// The line itself, secrets masked.
    #[serde(default)]
    pub snippet: String,
}

impl Report {
    /// From an operation's result or an error's details.
    pub fn read(value: &Value) -> Option<Self> {
        serde_json::from_value(value.clone()).ok()
    }
}

impl Finding {
    /// Its place in an order by severity, the worst first.
    pub fn rank(&self) -> u8 {
        match self.severity.as_str() {
            "block" => 0,
            "error" => 1,
            "warning" => 2,
            _ => 3,
        }
    }

    /// Whether somebody answers for it.
    pub fn is_waived(&self, waivers: &[Waiver]) -> bool {
        let place = format!("{}:{}", self.rule, self.path);
        waivers.iter().any(|w| !w.over && (w.finding == self.rule || w.finding == place))
    }
}

/// What is known to be wrong with a deployment's source.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The deployment.
    pub name: String,
    /// Its source as it is pinned.
    pub source: String,
    /// The operation that scanned it last; `None`: none is kept.
    pub operation: Option<String>,
    /// What that one said; `None`: the caller knows.
    pub told: Option<Told>,
    /// Findings that somebody answers for.
    pub waivers: Vec<Waiver>,
}

/// What a deploy said of its scan.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Told {
    /// When it was asked for.
    pub at: Option<jiff::Timestamp>,
    /// By whom.
    pub by: String,
    /// How the scan ended, one line.
    pub outcome: String,
    /// Without what only a report has, unless it was blocked.
    pub findings: Vec<Finding>,
    /// It has everything of them.
    pub whole: bool,
}

/// Whether an agent can scan a source again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It fetches it.
    Fetched,
    /// Somebody's folder, which was sent along.
    Folder,
    /// An image, or a server elsewhere.
    NoSource,
}

impl Found {
    /// Whether it can be scanned again.
    pub fn origin(&self) -> Origin {
        match self.source.split_once(':').map(|(kind, _)| kind) {
            Some("npm" | "pypi" | "mcpb" | "registry") => Origin::Fetched,
            Some(kind) if kind.starts_with("git+") => Origin::Fetched,
            Some("image" | "remote") => Origin::NoSource,
            _ => Origin::Folder,
        }
    }
}

/// Deploys that are looked through for the newest one that ended.
const DEPLOYS: u32 = 30;

/// Asks what is known; of the operation `known` only whether it still is the newest.
pub(super) async fn found(link: &Link, name: &str, known: Option<String>) -> Result<Found, LinkError> {
    let (detail, waivers, operations) =
        tokio::try_join!(link.get(name), link.waivers(name), link.operations(name, DEPLOYS))?;
    let deploys = operations.into_iter().filter(|o| o.kind == "deploy" && !o.is_running());
    let newest = deploys.max_by_key(|o| o.created_at);
    let operation = newest.as_ref().map(|o| o.id.clone());
    let told = match newest {
        Some(o) if known.as_ref() != Some(&o.id) => Some(told(link, &o).await?),
        _ => None,
    };
    let source = detail.deployment.source;
    Ok(Found { name: name.to_owned(), source, operation, told, waivers })
}

async fn told(link: &Link, operation: &Operation) -> Result<Told, LinkError> {
    let mut told = Told { at: operation.created_at, by: operation.created_by.clone(), ..Told::default() };
    let blocked = operation.error.as_ref().filter(|e| e.code == "BLOCKED");
    let report = blocked.and_then(|e| e.details.as_deref()).and_then(Report::read);
    if let (Some(error), Some(report)) = (blocked, report) {
        (told.outcome, told.findings, told.whole) = (error.message.clone(), report.findings, true);
        return Ok(told);
    }
    let mut events = link.follow(&operation.id, 0);
    while let Some(step) = events.next().await? {
        // The scan comes early; what was printed after it is not read.
        if let Progress::Item(event) = step
            && heard(&mut told, &event)
        {
            break;
        }
    }
    Ok(told)
}

/// Takes an event of a deploy in; whether the scan is over.
fn heard(told: &mut Told, event: &Event) -> bool {
    match &event.what {
        What::Step { name, state, message, .. } if name == "scan" && state != "started" => {
            told.outcome.clone_from(message);
            true
        }
        What::Step { name, .. } => matches!(name.as_str(), "build" | "release" | "start"),
        What::Note(note) => {
            told.findings.extend(noted(note));
            false
        }
        What::Done(_) => true,
        What::Output { .. } => false,
    }
}

/// A finding as a deploy notes it: `error src/a.py:12 rule: what is there`.
fn noted(note: &str) -> Option<Finding> {
    let (severity, rest) = note.split_once(' ')?;
    if !matches!(severity, "warning" | "error" | "block") {
        return None;
    }
    let (place, message) = rest.split_once(": ")?;
    let (place, rule) = place.rsplit_once(' ')?;
    let (path, line) = place.rsplit_once(':')?;
    Some(Finding {
        severity: severity.to_owned(),
        path: path.to_owned(),
        line: line.parse().ok()?,
        rule: rule.to_owned(),
        message: message.to_owned(),
        ..Finding::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: What) -> Event {
        Event { seq: 1, time: None, what }
    }

    #[test]
    fn a_deploys_notes_are_findings() {
        let mut told = Told::default();
        let note = |text: &str| event(What::Note(text.into()));
        let step = |name: &str, state: &str, message: &str| {
            let (name, state, message) = (name.into(), state.into(), message.into());
            event(What::Step { name, state, message, elapsed_ms: 1 })
        };
        assert!(!heard(&mut told, &step("recognise", "finished", "mcp.yaml")));
        assert!(!heard(&mut told, &step("scan", "started", "")));
        for text in [
            "mcp.yaml says python",
            "error src/a b.py:12 command-injection: a shell runs text: 'x'",
            "warning Dockerfile:1 docker-root: runs as root",
            "waived a.py:1 ssrf: checked (ada, until 2027-01-31)",
        ] {
            assert!(!heard(&mut told, &note(text)));
        }
        assert!(heard(&mut told, &step("scan", "finished", "warning (2 findings, 3 files, 0 of them known)")));
        let seen: Vec<(&str, &str, u64, &str)> =
            told.findings.iter().map(|f| (f.severity.as_str(), f.path.as_str(), f.line, f.rule.as_str())).collect();
        assert_eq!(
            seen,
            [("error", "src/a b.py", 12, "command-injection"), ("warning", "Dockerfile", 1, "docker-root")]
        );
        assert_eq!(told.findings[0].message, "a shell runs text: 'x'");
        assert!(told.outcome.starts_with("warning (2 findings"));
    }

    #[test]
    fn waivers_count_by_rule_or_place_until_their_day() {
        let waiver = |finding: &str, over| Waiver {
            finding: finding.into(),
            reason: String::new(),
            until: String::new(),
            by: String::new(),
            at: None,
            over,
        };
        let finding = Finding { rule: "ssrf".into(), path: "a.py".into(), ..Finding::default() };
        assert!(finding.is_waived(&[waiver("ssrf", false)]));
        assert!(finding.is_waived(&[waiver("ssrf:a.py", false)]));
        assert!(!finding.is_waived(&[waiver("ssrf:b.py", false), waiver("ssrf", true)]));
    }

    #[test]
    fn what_can_be_scanned_again() {
        let of = |source: &str| {
            let source = source.to_owned();
            Found { name: String::new(), source, operation: None, told: None, waivers: Vec::new() }.origin()
        };
        assert_eq!(of("git+https://host.example/a@abc#b"), Origin::Fetched);
        assert_eq!(of("npm:@a/b@1.0.0"), Origin::Fetched);
        assert_eq!(of("image:a/b:1"), Origin::NoSource);
        assert_eq!(of("./echo"), Origin::Folder);
        assert_eq!(of("/srv/echo"), Origin::Folder);
    }
}
