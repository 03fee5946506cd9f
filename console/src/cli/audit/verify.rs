//! `sigil audit verify`: on files without an agent, or on what an agent sends; never by the agent's word.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde_json::json;
use sigil_core::audit::{Begin, Flaw, Report, Verifier};

use super::super::Ctx;
use super::super::fail::{DONE, FAILED, Failure, Outcome};
use crate::link::AuditQuery;

/// The longest line read at once; no record is nearly as long.
const LINE_MAX: u64 = 8 << 20;

/// What to verify.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Exports (parts of one log, oldest first; '-' is stdin) or a data directory; the agent's log when left out
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Want the record with this hash: the head that an earlier verification said
    #[arg(long, value_name = "HASH")]
    head: Option<String>,
}

/// Where the lines of a file begin.
struct Part {
    name: String,
    /// Lines before it.
    before: u64,
}

#[derive(Default)]
struct Parts(Vec<Part>);

impl Parts {
    /// The place of a line, in words.
    fn place(&self, line: u64) -> (Option<&str>, u64) {
        match self.0.iter().rev().find(|part| part.before < line) {
            Some(part) => (Some(&part.name), line - part.before),
            None => (None, line),
        }
    }
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Outcome {
    if args.head.as_ref().is_some_and(|h| h.len() != 64 || !h.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Err(Failure::usage("--head is not a hash", "give all 64 digits that 'sigil audit verify' says"));
    }
    let mut verifier = Verifier::new(args.head.map(|h| h.to_ascii_lowercase()));
    let mut parts = Parts::default();
    let whole = args.files.is_empty() || args.files.iter().any(|path| path.is_dir());
    if args.files.is_empty() {
        super::each(ctx, AuditQuery::default(), |line| {
            verifier.push(line);
            Ok(())
        })
        .await?;
    } else {
        let mut lines = 0;
        for path in named(&args.files)? {
            parts.0.push(Part { name: path.display().to_string(), before: lines });
            lines += read(&path, &mut verifier).map_err(|e| Failure::io(path.display(), &e))?;
        }
    }
    report(ctx, verifier.finish(whole), &parts)
}

/// The files themselves; of a directory its segments, or those of the data directory that it is.
fn named(given: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in given {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let inner = path.join("audit");
        let dir = if inner.is_dir() { inner } else { path.clone() };
        let entries = std::fs::read_dir(&dir).map_err(|e| Failure::io(dir.display(), &e))?;
        let mut segments: Vec<PathBuf> =
            entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "jsonl")).collect();
        if segments.is_empty() {
            let hint = "name an export, or the agent's data directory";
            return Err(Failure::usage(format!("{} holds no audit log", path.display()), hint));
        }
        segments.sort();
        files.extend(segments);
    }
    Ok(files)
}

/// Hands every line on; answers how many there were.
fn read(path: &Path, verifier: &mut Verifier) -> std::io::Result<u64> {
    let mut reader: Box<dyn BufRead> = match path.as_os_str() == "-" {
        true => Box::new(BufReader::new(std::io::stdin())),
        false => Box::new(BufReader::new(File::open(path)?)),
    };
    let (mut line, mut lines) = (Vec::new(), 0);
    loop {
        line.clear();
        if reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(lines);
        }
        lines += 1;
        verifier.push(line.strip_suffix(b"\n").unwrap_or(&line));
    }
}

fn report(ctx: &Ctx, report: Report, parts: &Parts) -> Outcome {
    let begin = match report.begin {
        Begin::Genesis => "genesis",
        Begin::Trimmed => "trimmed",
        Begin::Partial => "partial",
    };
    let flaws: Vec<serde_json::Value> = report
        .flaws
        .iter()
        .map(|flaw| {
            let (file, line) = parts.place(flaw.line);
            let line = (flaw.line > 0).then_some(line);
            json!({ "file": file, "line": line, "seq": flaw.seq, "what": bare(flaw) })
        })
        .collect();
    let broken = !report.flaws.is_empty();
    let value = json!({
        "ok": !broken,
        "records": report.records,
        "first": report.first,
        "last": report.last,
        "head": report.head,
        "from": report.from,
        "to": report.to,
        "begin": begin,
        "flaws": flaws,
        "more_flaws": report.more,
    });
    ctx.emit(&value, || text(&report))?;
    if !broken {
        return Ok(DONE);
    }
    let mut said: Vec<String> = report.flaws.iter().map(|flaw| named_flaw(flaw, parts)).collect();
    if report.more > 0 {
        said.push(format!("and {} more", report.more));
    }
    let message = format!("the audit log does not verify\n{}", said.join("\n"));
    let hint = "keep a copy of it as it is: it shows what was done to it";
    Err(Failure::new(FAILED, "AUDIT_BROKEN", message, hint))
}

/// What is wrong, without its place.
fn bare(flaw: &Flaw) -> String {
    Flaw { line: 0, ..flaw.clone() }.to_string()
}

fn named_flaw(flaw: &Flaw, parts: &Parts) -> String {
    match parts.place(flaw.line) {
        _ if flaw.line == 0 => flaw.to_string(),
        (None, _) => flaw.to_string(),
        (Some(file), line) => format!("{file}: {}", Flaw { line, ..flaw.clone() }),
    }
}

fn text(report: &Report) -> String {
    let (Some(first), Some(last)) = (report.first, report.last) else { return "no records\n".to_owned() };
    let mut out = format!("{} records, seq {first} to {last}", report.records);
    if let (Some(from), Some(to)) = (report.from, report.to) {
        out.push_str(&format!(", {from:.0} to {to:.0}"));
    }
    out.push_str(&format!("\nhead {}\n", report.head));
    out.push_str(match report.begin {
        Begin::Genesis => "from the first record on\n",
        Begin::Trimmed => "older records were removed for the size cap, which is on record\n",
        Begin::Partial => "what was before is not in it\n",
    });
    if report.flaws.is_empty() {
        out.push_str("the chain is whole\n");
    }
    out
}
