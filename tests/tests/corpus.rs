//! The scanner against servers that were written to be found out, and their mended versions: precision and recall per
//! family. No engine, no agent, no network.
//!
//! `fixtures/scan-corpus/<class>/<case>/{vulnerable,clean}.<ext>`: a comment `flaw: <class>` stands on the line before
//! each flaw (`also: <class>` before the other end of its flow, where a finding is right and none is no miss), or lines and classes in `<file>.flaws` where the format has no comments. Marks are blanked before the scan,
//! so that they cannot help it. Cases were written from descriptions of the flaws, not from the rules.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sigil_core::scan::{Severity, scan};

/// A place and what is wrong there.
type Flaw = (u32, String);

/// A file of the corpus.
struct Case {
    /// The source with its marks blanked.
    source: String,
    flaws: Vec<Flaw>,
    /// Other ends of flaws.
    also: Vec<Flaw>,
}

#[derive(Default)]
struct Score {
    flaws: usize,
    found: usize,
    /// Of findings of this class, how many are where a flaw is.
    told: usize,
    right: usize,
}

fn percent(part: usize, of: usize) -> usize {
    (part * 100).checked_div(of).unwrap_or(100)
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).expect("the corpus is there");
    for entry in entries.map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            files(&entry, found);
        } else if entry.extension().is_none_or(|ext| ext != "flaws") {
            found.push(entry);
        }
    }
    found.sort();
}

fn read(path: &Path) -> Case {
    let text = std::fs::read_to_string(path).expect("text");
    let (mut flaws, mut also) = (Vec::new(), Vec::new());
    let mut source = String::new();
    for (at, line) in text.lines().enumerate() {
        let comment = line.trim().trim_start_matches(['#', '/', ' ']);
        let next = u32::try_from(at + 2).expect("few lines");
        match (comment.strip_prefix("flaw: "), comment.strip_prefix("also: ")) {
            (Some(class), _) => flaws.push((next, class.trim().to_owned())),
            (_, Some(class)) => also.push((next, class.trim().to_owned())),
            _ => source.push_str(line),
        }
        source.push('\n');
    }
    let side = PathBuf::from(format!("{}.flaws", path.display()));
    for line in std::fs::read_to_string(side).unwrap_or_default().lines() {
        let (line, class) = line.split_once(' ').expect("`line class`");
        flaws.push((line.parse().expect("a line"), class.trim().to_owned()));
    }
    Case { source, flaws, also }
}

#[test]
fn precision_and_recall() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/scan-corpus");
    let mut paths = Vec::new();
    files(&root, &mut paths);
    let mut scores: BTreeMap<String, Score> = BTreeMap::new();
    let mut report = String::new();
    let (mut clean, mut clean_flagged, mut clean_blocked) = (0, 0, 0);
    for path in &paths {
        let Case { source, mut flaws, also } = read(path);
        let shown = path.strip_prefix(&root).expect("inside").display().to_string();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let vulnerable = name.starts_with("vulnerable");
        assert_eq!(vulnerable, !flaws.is_empty(), "{shown}: vulnerable files have marks, clean ones none");
        // what a file is called says nothing to the scanner, unless its format does (Dockerfile, package.json)
        let called = shown.replace("vulnerable.", "server.").replace("clean.", "server.");
        let folder = called.rsplit_once('/').map_or("", |(folder, _)| folder).rsplit('/').next().unwrap_or_default();
        let called = match folder {
            _ if name.ends_with("dockerfile") => "Dockerfile".to_owned(),
            "package" => "package.json".to_owned(),
            "requirements" => "requirements.txt".to_owned(),
            "compose" => "compose.yaml".to_owned(),
            _ => called.rsplit('/').next().unwrap_or_default().to_owned(),
        };
        let scanned = scan(&[(called, &source)]);
        // what is only worth knowing is no accusation
        let findings: Vec<_> = scanned.findings.iter().filter(|f| f.severity > Severity::Info).collect();
        if !vulnerable {
            clean += 1;
            clean_flagged += usize::from(!findings.is_empty());
            clean_blocked += usize::from(findings.iter().any(|f| f.severity == Severity::Block));
        }
        for flaw in &flaws {
            scores.entry(flaw.1.clone()).or_default().flaws += 1;
        }
        for finding in findings {
            let score = scores.entry(finding.class.clone()).or_default();
            let place = flaws.iter().position(|(line, class)| *line == finding.line && *class == finding.class);
            score.told += 1;
            match place {
                Some(place) => {
                    score.right += 1;
                    score.found += 1;
                    flaws.remove(place);
                }
                None if also.contains(&(finding.line, finding.class.clone())) => score.right += 1,
                None => {
                    report.push_str(&format!("wrong: {shown}:{} {} {}\n", finding.line, finding.class, finding.snippet))
                }
            }
        }
        for (line, class) in flaws {
            report.push_str(&format!("missed: {shown}:{line} {class}\n"));
        }
    }
    report.push_str("class                      flaws  recall  precision\n");
    let mut all = Score::default();
    for (class, score) in &scores {
        let (recall, precision) = (percent(score.found, score.flaws), percent(score.right, score.told));
        report.push_str(&format!("{class:26} {:5}  {recall:4} %  {precision:4} %\n", score.flaws));
        all.flaws += score.flaws;
        all.found += score.found;
        all.told += score.told;
        all.right += score.right;
    }
    let (recall, precision) = (percent(all.found, all.flaws), percent(all.right, all.told));
    report.push_str(&format!("{:26} {:5}  {recall:4} %  {precision:4} %\n", "all", all.flaws));
    report.push_str(&format!("clean files: {clean}, flagged {clean_flagged}, blocked {clean_blocked}\n"));
    println!("{report}");
    assert!(recall >= 90 && precision >= 95, "{report}");
    for (class, score) in scores.iter().filter(|(_, score)| score.flaws >= 7) {
        assert!(percent(score.found, score.flaws) >= 75, "recall of {class}\n{report}");
    }
    assert_eq!(clean_blocked, 0, "{report}");
}
