//! `sigil scan`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use sigil_core::scan::{Own, join_with, look_with};

use super::args::WaitArgs;
use super::fail::{BLOCKED, DONE, FAILED, Failure, Outcome};
use super::folder::{self, Folder, Kind, Purpose};
use super::output::{self, Format, Paint, paint, state_paint};
use super::source::{self, Given};
use super::{Ctx, rules, text, time, wait};
use crate::link::findings::{Finding, Report};
use crate::link::{Change, SourceRef};

/// Look for flaws in a source; nothing is built. Exit code 6 when it is blocked
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil scan ./server\n  sigil scan npm:@scope/name -o json | jq .verdict\n  sigil scan . -o sarif > findings.sarif\n  sigil scan . --rules ./rules.toml"
)]
pub struct Args {
    /// ./dir, git+https://host/org/repo[@ref][#subdir], npm:name[@version], pypi:name[==version] or image:ref
    source: String,
    /// Rules of your own, for a folder: a file, or a directory of files. An agent has its owner's
    #[arg(long, value_name = "PATH")]
    rules: Option<PathBuf>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// A file beyond this is data; the rules skip it too.
const FILE_MAX: u64 = sigil_core::scan::MAX_FILE as u64;

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let report = match source::parse(&args.source)? {
        Given::Folder { root, .. } => {
            let own = args.rules.as_deref().map_or_else(|| Ok(Own::default()), rules::ready)?;
            let scanned = tokio::task::spawn_blocking(move || folder(&folder::walk(&root, Purpose::Scan)?, &own)).await;
            scanned.map_err(|e| Failure::new(FAILED, "SCAN_FAILED", e.to_string(), ""))??
        }
        Given::Remote(_) if args.rules.is_some() => {
            let hint = "the agent scans this source, with the rules of its owner; leave --rules out, or name a folder";
            return Err(Failure::usage("--rules is for folders", hint));
        }
        Given::Remote(text) => {
            let link = ctx.link().await?;
            let source = SourceRef { text, upload: None };
            let Some(operation) = wait::change(ctx, &link, Change::Scan { source }, &args.wait).await? else {
                return Ok(DONE);
            };
            let odd = |why: String| Failure::new(FAILED, "BAD_ANSWER", format!("the agent's report: {why}"), "");
            let result = operation.result.ok_or_else(|| odd("it is missing".to_owned()))?;
            serde_json::from_value(result).map_err(|e| odd(e.to_string()))?
        }
    };
    match ctx.format {
        Format::Sarif => output::data(Format::Json, &sarif(&report))?,
        _ => ctx.emit(&report, || page(ctx, &report))?,
    }
    Ok(if report.verdict == "blocked" { BLOCKED } else { DONE })
}

/// What the rules say of a folder; works for a while.
pub(crate) fn folder(folder: &Folder, own: &Own) -> Result<Report, Failure> {
    let started = Instant::now();
    let mut files = Vec::new();
    for entry in &folder.entries {
        if matches!(entry.kind, Kind::File(length, _) if length <= FILE_MAX) {
            files.push((entry.path.clone(), folder.read(entry)?));
        }
    }
    let report = scanned(&files, own);
    let odd = |e: serde_json::Error| Failure::new(FAILED, "SCAN_FAILED", e.to_string(), "");
    let mut report: Report = serde_json::to_value(&report).and_then(serde_json::from_value).map_err(odd)?;
    report.elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(report)
}

/// Scans the files of a tree, on every processor there is.
fn scanned(files: &[(String, Vec<u8>)], own: &Own) -> sigil_core::scan::Report {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(files.len().max(1));
    let next = AtomicUsize::new(0);
    let work = || {
        let file = || files.get(next.fetch_add(1, Ordering::Relaxed));
        std::iter::from_fn(file).map(|(path, bytes)| look_with(path, bytes, own)).collect::<Vec<_>>()
    };
    let looks = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut looks = work();
        for other in others {
            match other.join() {
                Ok(more) => looks.extend(more),
                // a file that is not looked at must not pass as clean
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        looks
    });
    join_with(looks, own)
}

fn page(ctx: &Ctx, report: &Report) -> String {
    let colour = ctx.term.colour;
    let clean = text::one_line;
    let mut out = String::new();
    let mut findings: Vec<&Finding> = report.findings.iter().collect();
    // the worst first: that is what a person came for
    findings.sort_by_key(|f| f.rank());
    for f in findings {
        let severity = paint(&f.severity, state_paint(&f.severity), colour);
        out.push_str(&format!("{severity}  {}  {}:{}:{}\n", clean(&f.rule), clean(&f.path), f.line, f.column));
        for (name, value) in
            [("", &f.message), ("", &f.snippet), ("impact: ", &f.impact), ("fix: ", &f.fix), ("help: ", &f.help)]
        {
            if !value.is_empty() {
                out.push_str(&format!("    {}{}\n", paint(name, Paint::Dim, colour), clean(value)));
            }
        }
        out.push('\n');
    }
    out.push_str(&format!(
        "{}: {} finding{} in {} file{} ({})\n",
        paint(&report.verdict, state_paint(&report.verdict), colour),
        report.findings.len(),
        if report.findings.len() == 1 { "" } else { "s" },
        report.files,
        if report.files == 1 { "" } else { "s" },
        time::took(report.elapsed_ms)
    ));
    out
}

/// SARIF 2.1.0, for code hosts.
fn sarif(report: &Report) -> Value {
    let mut rules: Vec<&Finding> = report.findings.iter().collect();
    rules.sort_by(|a, b| a.rule.cmp(&b.rule));
    rules.dedup_by(|a, b| a.rule == b.rule);
    let rules: Vec<Value> = rules
        .into_iter()
        .map(|f| {
            json!({
                "id": f.rule,
                "shortDescription": { "text": f.rule },
                "fullDescription": { "text": f.impact },
                "help": { "text": format!("{} {}", f.fix, f.help).trim() },
                "properties": { "class": f.class },
            })
        })
        .collect();
    let results: Vec<Value> = report
        .findings
        .iter()
        .map(|f| {
            let level = match f.severity.as_str() {
                "info" => "note",
                "warning" => "warning",
                _ => "error",
            };
            json!({
                "ruleId": f.rule,
                "level": level,
                "message": { "text": f.message },
                "locations": [{ "physicalLocation": {
                    "artifactLocation": { "uri": f.path },
                    "region": { "startLine": f.line.max(1), "startColumn": f.column.max(1) },
                }}],
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "sigil", "version": env!("CARGO_PKG_VERSION"), "rules": rules } },
            "results": results,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sarif_has_one_rule_each_and_lines_from_one() {
        let finding = |line| Finding {
            rule: "r".into(),
            class: "c".into(),
            severity: "block".into(),
            path: "a.py".into(),
            line,
            column: 0,
            message: "m".into(),
            impact: String::new(),
            fix: String::new(),
            help: String::new(),
            snippet: String::new(),
        };
        let report =
            Report { verdict: "blocked".into(), findings: vec![finding(0), finding(4)], files: 1, elapsed_ms: 1 };
        let sarif = sarif(&report);
        assert_eq!(sarif["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap().len(), 1);
        let region = |i: usize| &sarif["runs"][0]["results"][i]["locations"][0]["physicalLocation"]["region"];
        assert_eq!(region(0)["startLine"], 1);
        assert_eq!(region(1)["startLine"], 4);
        assert_eq!(sarif["runs"][0]["results"][0]["level"], "error");
    }
}
