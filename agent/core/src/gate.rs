//! What a scan stops: the owner's policy by where a source comes from, and findings that somebody answers for.

use std::collections::BTreeMap;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::policy::{Patterns, PolicyError};
use crate::scan::{Finding, Report, Severity, Verdict};

/// What a folder is called in patterns of sources, wherever it lies.
pub const FOLDER: &str = "folder";

/// The least severity that stops a build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Least {
    /// This one and what is worse.
    From(Severity),
    /// Nothing does.
    Never,
}

/// The words that `Least` is written in.
pub const LEAST: [&str; 5] = ["info", "warning", "error", "block", "never"];

impl FromStr for Least {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        Ok(match word {
            "info" => Self::From(Severity::Info),
            "warning" => Self::From(Severity::Warning),
            "error" => Self::From(Severity::Error),
            "block" => Self::From(Severity::Block),
            "never" => Self::Never,
            _ => return Err(()),
        })
    }
}

impl Least {
    /// What holds for a source as it is pinned (`npm:@scope/name@1.0.0`, [`FOLDER`]): the longest pattern that fits counts,
    /// else `usual`.
    ///
    /// # Errors
    /// A pattern that cannot be read. What is no word stops what `block` does: a typing error opens nothing.
    pub fn of(source: &str, usual: &str, trust: &BTreeMap<String, String>) -> Result<Self, PolicyError> {
        let mut best: Option<(usize, &str)> = None;
        for (pattern, word) in trust {
            let fits = Patterns::new(std::slice::from_ref(pattern))?.matches(source);
            if fits && best.is_none_or(|(length, _)| pattern.len() > length) {
                best = Some((pattern.len(), word));
            }
        }
        let word = best.map_or(usual, |(_, word)| word);
        Ok(word.parse().unwrap_or(Self::From(Severity::Block)))
    }

    fn stops(self, severity: Severity) -> bool {
        matches!(self, Self::From(least) if severity >= least)
    }
}

/// Somebody answers for a finding.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Waiver {
    /// `rule`, or `rule:path` for one file.
    pub finding: String,
    /// Why it may stay.
    pub reason: String,
    /// The last day on which it counts (UTC).
    pub until: Date,
    /// Who said so.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// Why a waiver is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WaiverError {
    /// Which finding?
    #[error("a waiver names no finding")]
    Finding,
    /// Why?
    #[error("the waiver of {0} gives no reason")]
    Reason(String),
    /// Until when?
    #[error("'{0}' is not a day")]
    Date(String),
    /// It would not hold.
    #[error("the waiver of {0} ended on {1}")]
    Over(String, Date),
}

impl WaiverError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Finding => "name the rule, or RULE:PATH, as `sigil scan` shows it",
            Self::Reason(_) => "say with --reason why it may stay",
            Self::Date(_) => "write the last day as 2027-01-31",
            Self::Over(..) => "choose a day to come",
        }
    }
}

impl Waiver {
    /// Reads what a person says.
    ///
    /// # Errors
    /// What is missing or wrong of it.
    pub fn new(finding: &str, reason: &str, until: &str, by: &str, now: Timestamp) -> Result<Self, WaiverError> {
        let (finding, reason) = (finding.trim().to_owned(), reason.trim().to_owned());
        if finding.is_empty() {
            return Err(WaiverError::Finding);
        }
        if reason.is_empty() {
            return Err(WaiverError::Reason(finding));
        }
        let until: Date = until.trim().parse().map_err(|_| WaiverError::Date(until.to_owned()))?;
        if until < today(now) {
            return Err(WaiverError::Over(finding, until));
        }
        Ok(Self { finding, reason, until, by: by.to_owned(), at: now })
    }

    /// Whether it is about a finding.
    pub fn names(&self, finding: &Finding) -> bool {
        match self.finding.split_once(':') {
            Some((rule, path)) => rule == finding.rule && path == finding.path,
            None => self.finding == finding.rule,
        }
    }

    /// Whether it still counts.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until >= today(now)
    }
}

fn today(now: Timestamp) -> Date {
    now.to_zoned(jiff::tz::TimeZone::UTC).date()
}

/// Old and new waivers; a new one takes the place of the old one of the same finding.
pub fn joined(old: &[Waiver], new: &[Waiver]) -> Vec<Waiver> {
    let kept = old.iter().filter(|old| !new.iter().any(|new| new.finding == old.finding));
    kept.chain(new).cloned().collect()
}

/// What comes of a scan.
#[derive(Debug, PartialEq, Eq)]
pub struct Judged<'a> {
    /// Findings that stop the build.
    pub stopped: Vec<&'a Finding>,
    /// Findings that would, but for a waiver.
    pub waived: Vec<(&'a Finding, &'a Waiver)>,
    /// Waivers that are over, of findings that stop the build.
    pub over: Vec<&'a Waiver>,
}

/// Judges a report.
pub fn judge<'a>(report: &'a Report, least: Least, waivers: &'a [Waiver], now: Timestamp) -> Judged<'a> {
    let mut judged = Judged { stopped: Vec::new(), waived: Vec::new(), over: Vec::new() };
    for finding in report.findings.iter().filter(|finding| least.stops(finding.severity)) {
        let mut named = waivers.iter().filter(|waiver| waiver.names(finding));
        match named.clone().find(|waiver| waiver.holds(now)) {
            Some(waiver) => judged.waived.push((finding, waiver)),
            None => {
                judged.stopped.push(finding);
                judged.over.extend(named.next().filter(|waiver| !judged.over.contains(waiver)));
            }
        }
    }
    judged
}

/// The verdict under a policy, waivers left out of account.
pub fn verdict(report: &Report, least: Least) -> Verdict {
    let worst = report.findings.iter().map(|finding| finding.severity).max();
    match worst {
        Some(worst) if least.stops(worst) => Verdict::Blocked,
        Some(Severity::Warning | Severity::Error | Severity::Block) => Verdict::Warning,
        Some(Severity::Info) | None => Verdict::Safe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One finding of each severity but `info`.
    fn report() -> Report {
        let files = [("Dockerfile", "FROM x\n"), ("a.py", "d = 'x\u{e0041}'\n"), ("b.py", "d = 'x\u{e0041}'\n")];
        crate::scan::scan(&files)
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn waiver(finding: &str) -> Waiver {
        Waiver::new(finding, "seen", "2026-12-31", "ann", at("2026-11-23T10:00:00Z")).unwrap()
    }

    #[test]
    fn the_longest_pattern_that_fits_says_what_stops() {
        let trust = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let rules =
            trust(&[("npm:*", "error"), ("npm:@own/*", "never"), (FOLDER, "warning"), ("git+https://x/*", "typo")]);
        let of = |source: &str| Least::of(source, "block", &rules).unwrap();
        assert_eq!(of("npm:left-pad@1.0.0"), Least::From(Severity::Error));
        assert_eq!(of("npm:@own/server@1.0.0"), Least::Never);
        assert_eq!(of(FOLDER), Least::From(Severity::Warning));
        assert_eq!(of("pypi:x==1"), Least::From(Severity::Block));
        assert_eq!(of("git+https://x/y@abc"), Least::From(Severity::Block), "no word opens nothing");
        assert!(Least::of("x", "block", &trust(&[("", "never")])).is_err());
        for word in LEAST {
            assert!(word.parse::<Least>().is_ok(), "{word}");
        }
    }

    #[test]
    fn a_waiver_answers_for_what_it_names_while_it_holds() {
        let report = report();
        let blocks: Vec<&Finding> = report.findings.iter().filter(|f| f.severity == Severity::Block).collect();
        assert_eq!(blocks.len(), 2);
        let rule = blocks[0].rule.clone();
        let (now, later) = (at("2026-12-31T23:00:00Z"), at("2027-01-01T00:00:00Z"));
        let block = Least::From(Severity::Block);

        let one = [waiver(&format!("{rule}:a.py"))];
        let judged = judge(&report, block, &one, now);
        assert_eq!((judged.stopped.len(), judged.waived.len(), judged.over.len()), (1, 1, 0));
        assert_eq!(judged.stopped[0].path, "b.py");
        let all = [waiver(&rule)];
        assert!(judge(&report, block, &all, now).stopped.is_empty());
        let judged = judge(&report, block, &all, later);
        assert_eq!((judged.stopped.len(), judged.over), (2, vec![&all[0]]));

        assert_eq!(judge(&report, Least::From(Severity::Warning), &all, now).stopped.len(), report.findings.len() - 2);
        assert!(judge(&report, Least::Never, &[], now).stopped.is_empty());
        let verdicts = [Least::Never, block].map(|least| verdict(&report, least));
        assert_eq!(verdicts, [Verdict::Warning, Verdict::Blocked]);
    }

    #[test]
    fn what_a_person_leaves_out_is_said() {
        let now = at("2026-11-23T10:00:00Z");
        let new = |finding, reason, until| Waiver::new(finding, reason, until, "ann", now).unwrap_err();
        assert_eq!(new(" ", "x", "2027-01-01"), WaiverError::Finding);
        assert_eq!(new("r", " ", "2027-01-01"), WaiverError::Reason("r".into()));
        assert_eq!(new("r", "x", "tomorrow"), WaiverError::Date("tomorrow".into()));
        assert!(matches!(new("r", "x", "2026-11-22"), WaiverError::Over(..)));
        let joined = joined(&[waiver("a"), waiver("b")], &[Waiver { reason: "again".into(), ..waiver("a") }]);
        assert_eq!(
            joined.iter().map(|w| (&*w.finding, &*w.reason)).collect::<Vec<_>>(),
            [("b", "seen"), ("a", "again")]
        );
    }
}
