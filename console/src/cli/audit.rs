//! `sigil audit`.

mod verify;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use sigil_core::audit::{self, Record};

use super::fail::{DONE, Failure, Outcome};
use super::output::{self, Format, Paint, paint};
use super::{Ctx, text, time, wait};
use crate::link::{AuditQuery, Progress};
use crate::os;

/// Records shown when nobody says how many, or from when.
const TAIL: u64 = 50;

/// Show who did what: every change and every access to a secret, oldest first
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Example:\n  sigil audit                              # the newest 50\n  sigil audit -f --what 'secret.*'\n  sigil audit --since 7d --who 'token:*' -o wide\n  sigil audit export --file audit.jsonl && sigil audit verify audit.jsonl"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    which: Which,
    /// Go on with new records
    #[arg(short, long)]
    follow: bool,
    /// Only the newest that fit (50 when neither this nor a time is given)
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
}

/// Which records.
#[derive(Debug, clap::Args)]
struct Which {
    /// Not before: 10m, 7d, 2026-11-22, RFC 3339
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not after
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only of this one, a pattern: root, 'token:*', agent
    #[arg(long, value_name = "WHO", default_value = "", hide_default_value = true)]
    who: String,
    /// Only this, a pattern: 'secret.*', deploy
    #[arg(long, value_name = "PATTERN", default_value = "", hide_default_value = true)]
    what: String,
    /// Only about this, a pattern of a name or an id
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    target: String,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Write the log's own lines, as 'verify' takes them
    #[command(
        after_help = "Example:\n  sigil audit export --file audit.jsonl\n  sigil audit export --since 24h | gzip > day.jsonl.gz"
    )]
    Export {
        #[command(flatten)]
        which: Which,
        /// Where to; a file that is there is left alone
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Check that nothing was changed, removed or put in. Exit code 1 names the line, its number and what is wrong
    #[command(
        after_help = "Example:\n  sigil audit verify                       # the agent's whole log\n  sigil audit verify audit.jsonl           # an export, no agent needed\n  sudo sigil audit verify /var/lib/sigil   # a data directory\n  sigil audit verify --head 3f1c…          # nothing was cut off since that head was seen"
    )]
    Verify(verify::Args),
}

impl Which {
    fn query(self) -> Result<AuditQuery, Failure> {
        let now = Timestamp::now();
        let moment = |text: Option<&str>, flag: &str| {
            let parsed = text.map(|text| time::moment(text, now)).transpose();
            parsed.map_err(|e| Failure::usage(e, format!("check {flag}")))
        };
        Ok(AuditQuery {
            since: moment(self.since.as_deref(), "--since")?,
            until: moment(self.until.as_deref(), "--until")?,
            who: self.who,
            what: self.what,
            target: self.target,
            ..AuditQuery::default()
        })
    }
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    match args.verb {
        Some(Verb::Export { which, file }) => export(ctx, which, file).await,
        Some(Verb::Verify(args)) => verify::run(ctx, args).await,
        None => show(ctx, args).await,
    }
}

/// Every batch of an answer; where lines were damaged, that is said at its end.
async fn each(ctx: &Ctx, query: AuditQuery, mut take: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    let link = ctx.link().await?;
    let mut lines = link.audit(query);
    let mut damaged = 0;
    while let Some(step) = lines.next().await? {
        match step {
            Progress::Item(batch) => {
                damaged += batch.damaged;
                batch.lines.iter().try_for_each(|line| take(line))?;
            }
            Progress::Lost { why, wait } => wait::lost(ctx, &why, wait),
            Progress::Back => wait::back(ctx),
        }
    }
    if damaged > 0 {
        output::note(&format!("{damaged} lines of the log are damaged: 'sigil audit verify' names them"));
    }
    Ok(())
}

async fn show(ctx: &Ctx, args: Args) -> Outcome {
    let bounded = args.which.since.is_some() || args.which.until.is_some();
    let tail = args.tail.or((!bounded).then_some(TAIL));
    let query = AuditQuery { tail, follow: args.follow, ..args.which.query()? };
    if args.follow {
        ctx.quiet_interrupt();
    }
    each(ctx, query, |line| output::write(&shown(ctx, line))).await?;
    Ok(DONE)
}

async fn export(ctx: &Ctx, which: Which, file: Option<PathBuf>) -> Outcome {
    let query = which.query()?;
    let Some(path) = file else {
        each(ctx, query, |line| output::write(&[line, b"\n"].concat())).await?;
        return Ok(DONE);
    };
    let failed = |e: std::io::Error| Failure::io(path.display(), &e);
    let mut file = match os::private(OpenOptions::new().write(true).create_new(true)).open(&path) {
        Ok(file) => std::io::BufWriter::new(file),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::usage(format!("{} is there already", path.display()), "name another file"));
        }
        Err(e) => return Err(failed(e)),
    };
    let mut records = 0u64;
    each(ctx, query, |line| {
        records += 1;
        file.write_all(line).and_then(|()| file.write_all(b"\n")).map_err(failed)
    })
    .await?;
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(failed)?;
    output::note(&format!("{records} lines in {}", path.display()));
    Ok(DONE)
}

/// A line as it was asked for. What is no record is shown as what it is.
fn shown(ctx: &Ctx, line: &[u8]) -> Vec<u8> {
    let record = match Record::parse(line) {
        Ok(record) => record,
        Err((kind, _)) if ctx.format.is_data() => {
            let damaged = audit::Flaw { line: 0, seq: None, kind }.to_string();
            let text = String::from_utf8_lossy(line);
            return format!("{}\n", serde_json::json!({ "damaged": damaged, "line": text })).into_bytes();
        }
        Err((kind, _)) => {
            let why = audit::Flaw { line: 0, seq: None, kind }.to_string();
            let text = format!("--- a line {} ---", text::one_line(&why));
            return format!("{}\n", paint(&text, Paint::Bad, ctx.term.colour)).into_bytes();
        }
    };
    match ctx.format {
        Format::Yaml => {
            let value = serde_json::to_value(&record).unwrap_or_default();
            let yaml = serde_saphyr::to_string(&value).unwrap_or_default();
            clean(ctx, format!("---\n{}\n", yaml.trim_end()).as_bytes())
        }
        Format::Json | Format::Sarif | Format::Csv => clean(ctx, &[line, b"\n"].concat()),
        Format::Table | Format::Wide => for_a_person(ctx, &record).into_bytes(),
    }
}

/// Data for a terminal: JSON lets some characters through that steer one.
fn clean(ctx: &Ctx, data: &[u8]) -> Vec<u8> {
    if !ctx.term.stdout {
        return data.to_vec();
    }
    let lines = data.split_inclusive(|b| *b == b'\n');
    lines
        .flat_map(|l| format!("{}\n", text::for_terminal(l.strip_suffix(b"\n").unwrap_or(l), false)).into_bytes())
        .collect()
}

fn for_a_person(ctx: &Ctx, record: &Record) -> String {
    let colour = ctx.term.colour;
    let clean = text::one_line;
    let mut line = paint(&when(ctx, record.time), Paint::Dim, colour);
    let mut add = |text: &str, how: Paint| {
        line.push(' ');
        line.push_str(&paint(&clean(if text.is_empty() { "-" } else { text }), how, colour));
    };
    add(&record.who, Paint::Plain);
    add(&record.from, Paint::Dim);
    add(&record.what, Paint::Bold);
    add(&record.target, Paint::Plain);
    add(&record.outcome, if record.outcome == audit::OK { Paint::Good } else { Paint::Bad });
    let wide = ctx.format == Format::Wide;
    let mut below = String::new();
    let keys: BTreeSet<&String> = record.before.keys().chain(record.after.keys()).collect();
    let mut facts = Vec::new();
    for key in keys {
        let (before, after) = (record.before.get(key), record.after.get(key));
        let long = |value: Option<&String>| value.is_some_and(|v| v.contains('\n'));
        match (before, after) {
            (b, a) if long(b) || long(a) => {
                let changes = changes(b.map_or("", String::as_str), a.map_or("", String::as_str));
                let (gone, new) = (count(&changes, '-'), count(&changes, '+'));
                facts.push(format!("{}: -{gone} +{new} lines", clean(key)));
                for (sign, text) in changes {
                    let how = if sign == '-' { Paint::Bad } else { Paint::Good };
                    below.push_str(&format!("    {}\n", paint(&format!("{sign} {}", clean(text)), how, colour)));
                }
            }
            (Some(b), Some(a)) => facts.push(format!("{}: {} -> {}", clean(key), clean(b), clean(a))),
            (Some(b), None) => facts.push(format!("{} was {}", clean(key), clean(b))),
            (None, Some(a)) => facts.push(format!("{}: {}", clean(key), clean(a))),
            (None, None) => {}
        }
    }
    if !facts.is_empty() {
        line.push_str("  ");
        line.push_str(&facts.join("; "));
    }
    line.push('\n');
    if wide {
        line.push_str(&below);
        for (name, value) in [
            ("id", &record.target_id),
            ("key", &record.who_id),
            ("operation", &record.operation),
            ("request", &record.request),
        ] {
            if !value.is_empty() {
                line.push_str(&format!("    {name} {}\n", clean(value)));
            }
        }
        line.push_str(&format!("    seq {} hash {}\n", record.seq, record.hash));
    }
    line
}

fn count(changes: &[(char, &str)], sign: char) -> usize {
    changes.iter().filter(|(s, _)| *s == sign).count()
}

/// Lines that went and came, in order: what both begin and end with is left out, and so are lines that are in both.
fn changes<'a>(before: &'a str, after: &'a str) -> Vec<(char, &'a str)> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[same..], &new[same..]);
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);
    let gone = old.iter().filter(|line| !new.contains(line)).map(|line| ('-', *line));
    gone.chain(new.iter().filter(|line| !old.contains(line)).map(|line| ('+', *line))).collect()
}

/// Local and short for a person, RFC 3339 UTC for a file.
fn when(ctx: &Ctx, moment: Timestamp) -> String {
    if !ctx.term.stdout {
        return format!("{moment:.3}");
    }
    let recent = Timestamp::now().duration_since(moment).abs() < SignedDuration::from_hours(18);
    let form = if recent { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
    moment.to_zoned(TimeZone::system()).strftime(form).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policys_change_is_its_lines() {
        let before = "access = \"key\"\n[tools]\ndeny = [\"a\"]\nrate = 1\n";
        let after = "access = \"key\"\n[tools]\ndeny = [\"a\", \"b\"]\nrate = 1\n";
        assert_eq!(changes(before, after), [('-', "deny = [\"a\"]"), ('+', "deny = [\"a\", \"b\"]")]);
        assert_eq!(changes("", "x\ny"), [('+', "x"), ('+', "y")]);
        assert_eq!(changes("x", "x"), []);
    }
}
