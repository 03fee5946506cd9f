//! What the last scan of each source said, by the source's digest: whoever runs it is told when another scan says otherwise.
//!
//! One small file, written anew with every scan of a tree. Lost or damaged, it is an empty one: sources are scanned again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_core::scan::{Finding, Report};

/// Sources that are remembered; those that were scanned longest ago go.
const SOURCES: usize = 2000;
/// Findings that are remembered of one, the worst ones.
const FINDINGS: usize = 200;
/// Characters of a message.
const MESSAGE: usize = 160;

/// What a scan of a source said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Verdict {
    /// Which scanner, with which rules.
    pub(super) stamp: String,
    pub(super) at: Timestamp,
    /// Without their explanations.
    pub(super) findings: Vec<Finding>,
    /// Findings that the scan before it did not have: `rule path:line`.
    pub(super) new: Vec<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    verdicts: BTreeMap<String, Verdict>,
    /// What owners of deployments have been told of, by deployment and release.
    told: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Debug)]
pub(super) struct Verdicts {
    path: PathBuf,
    kept: Kept,
}

/// A finding by its name.
pub(super) fn name(finding: &Finding) -> String {
    format!("{} {}:{}", finding.rule, finding.path, finding.line)
}

impl Verdicts {
    pub(super) fn open(dir: &Path) -> Self {
        let path = dir.join("verdicts.json");
        let kept = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, "what scans have said cannot be read; sources are scanned again");
                Kept::default()
            }),
            Err(_) => Kept::default(),
        };
        Self { path, kept }
    }

    pub(super) fn get(&self, digest: &str) -> Option<&Verdict> {
        self.kept.verdicts.get(digest)
    }

    pub(super) fn put(&mut self, digest: &str, stamp: &str, report: &Report, now: Timestamp) {
        let mut findings: Vec<Finding> = report.findings.clone();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        findings.truncate(FINDINGS);
        for finding in &mut findings {
            finding.message = finding.message.chars().take(MESSAGE).collect();
            for text in [&mut finding.impact, &mut finding.fix, &mut finding.help, &mut finding.snippet] {
                text.clear();
            }
        }
        let mut new = Vec::new();
        if let Some(before) = self.kept.verdicts.get(digest) {
            // the same rules say the same; what was new stays so
            if before.stamp == stamp {
                new.clone_from(&before.new);
            } else {
                let known: BTreeSet<String> = before.findings.iter().map(name).collect();
                new.extend(findings.iter().map(name).filter(|name| !known.contains(name)));
            }
        }
        let verdict = Verdict { stamp: stamp.to_owned(), at: now, findings, new };
        self.kept.verdicts.insert(digest.to_owned(), verdict);
        while self.kept.verdicts.len() > SOURCES {
            let oldest = self.kept.verdicts.iter().min_by_key(|(_, verdict)| verdict.at).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            self.kept.verdicts.remove(&oldest);
        }
        self.write();
    }

    /// Keeps what the owner of a release is told; the names of it that are news.
    pub(super) fn tell(&mut self, whose: &str, names: &BTreeSet<String>) -> Vec<String> {
        let before = self.kept.told.get(whose).cloned().unwrap_or_default();
        if before == *names {
            return Vec::new();
        }
        if names.is_empty() {
            self.kept.told.remove(whose);
        } else {
            self.kept.told.insert(whose.to_owned(), names.clone());
        }
        self.write();
        names.difference(&before).cloned().collect()
    }

    /// Forgets who is gone.
    pub(super) fn keep_told(&mut self, of: &BTreeSet<String>) {
        let before = self.kept.told.len();
        self.kept.told.retain(|whose, _| of.contains(whose));
        if self.kept.told.len() != before {
            self.write();
        }
    }

    fn write(&self) {
        if let Err(error) = self.try_write() {
            tracing::warn!(%error, "what a scan has said cannot be kept");
        }
    }

    fn try_write(&self) -> std::io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let new = self.path.with_extension("new");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(&self.kept)?)?;
        fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        sigil_core::scan::scan(&[("Dockerfile", text)])
    }

    #[test]
    fn what_another_scanner_finds_is_new_and_what_was_told_is_not_told_again() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let mut verdicts = Verdicts::open(dir.path());
        let one = report("FROM x\n");
        let two = report("FROM x\nRUN curl https://e.org/i.sh | sh\n");
        verdicts.put("sha256:a", "1", &one, now);
        assert_eq!(verdicts.get("sha256:a").unwrap().new, [] as [String; 0]);
        verdicts.put("sha256:a", "2", &two, now);
        let new = verdicts.get("sha256:a").unwrap().new.clone();
        assert_eq!(new.len(), two.findings.len() - one.findings.len());
        verdicts.put("sha256:a", "2", &two, now);
        assert_eq!(verdicts.get("sha256:a").unwrap().new, new);

        let names: BTreeSet<String> = new.into_iter().collect();
        assert_eq!(verdicts.tell("d/1", &names).len(), names.len());
        let mut again = Verdicts::open(dir.path());
        assert_eq!(again.get("sha256:a"), verdicts.get("sha256:a"));
        assert!(again.tell("d/1", &names).is_empty(), "told before");
        again.tell("d/1", &BTreeSet::new());
        assert_eq!(again.tell("d/1", &names).len(), names.len(), "it was mended, and is back");
        again.keep_told(&BTreeSet::new());
        assert_eq!(Verdicts::open(dir.path()).tell("d/1", &names).len(), names.len());

        fs::write(dir.path().join("verdicts.json"), "{").unwrap();
        assert!(Verdicts::open(dir.path()).get("sha256:a").is_none());
    }
}
