//! `sigil logs`.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::fail::{DONE, Failure, NOT_FOUND, Outcome};
use super::output::{self, Format, Paint, paint};
use super::{Ctx, text, time, wait};
use crate::link::{LogBatch, LogGap, LogLine, LogQuery, Progress};

/// Show the output of deployments, merged by time
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil logs time --tail 50\n  sigil logs -f time weather\n  sigil logs --all --since 10m --grep 'error|panic'\n  sigil logs time --previous -o json"
)]
pub struct Args {
    /// Deployments
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<String>,
    /// Go on with new lines
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// Not before: 10m, 2h, 2026-11-22, RFC 3339
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not after
    #[arg(long, value_name = "TIME", conflicts_with = "follow")]
    until: Option<String>,
    /// Only lines that match a regular expression
    #[arg(long, value_name = "RE", default_value = "", hide_default_value = true)]
    grep: String,
    /// Only replicas that are gone
    #[arg(long)]
    previous: bool,
    /// Every deployment
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Only this stream: stdout, stderr, build or agent
    #[arg(long, value_name = "STREAM", value_parser = ["stdout", "stderr", "build", "agent"])]
    stream: Vec<String>,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let now = Timestamp::now();
    let moment = |text: Option<&str>, flag: &str| {
        let parsed = text.map(|text| time::moment(text, now)).transpose();
        parsed.map_err(|e| Failure::usage(e, format!("check {flag}")))
    };
    if let Err(e) = regex::Regex::new(&args.grep) {
        let why = e.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        return Err(Failure::usage(
            format!("'{}' is not a regular expression: {why}", args.grep),
            "quote it for the shell",
        ));
    }
    let query = LogQuery {
        since: moment(args.since.as_deref(), "--since")?,
        until: moment(args.until.as_deref(), "--until")?,
        deployments: args.names.clone(),
        all: args.all,
        follow: args.follow,
        tail: args.tail,
        grep: args.grep,
        previous: args.previous,
        streams: args.stream,
    };
    let link = ctx.link().await?;
    if args.follow {
        ctx.quiet_interrupt();
    }
    let mut printer = Printer::new(ctx, args.all || args.names.len() > 1);
    let mut logs = link.logs(query);
    loop {
        match logs.next().await {
            Ok(Some(Progress::Item(batch))) => output::write(&printer.batch(&batch))?,
            Ok(Some(Progress::Lost { why, wait })) => wait::lost(ctx, &why, wait),
            Ok(Some(Progress::Back)) => wait::back(ctx),
            Ok(None) => return Ok(DONE),
            Err(e) => {
                let failure = Failure::from(e);
                if failure.exit != NOT_FOUND {
                    return Err(failure);
                }
                // the one that does not exist is the one whose near names help
                let known = link.deployments().await.unwrap_or_default();
                let missing = args.names.iter().find(|n| known.iter().all(|d| d.name != **n));
                return Err(match missing {
                    Some(name) => ctx.with_near_names(&link, name, failure).await,
                    None => failure,
                });
            }
        }
    }
}

struct Printer<'a> {
    ctx: &'a Ctx,
    several: bool,
    /// In order of appearance: the place gives the colour.
    names: Vec<String>,
}

impl<'a> Printer<'a> {
    fn new(ctx: &'a Ctx, several: bool) -> Self {
        Self { ctx, several, names: Vec::new() }
    }

    fn batch(&mut self, batch: &LogBatch) -> Vec<u8> {
        let mut out = Vec::new();
        let mut gaps: Vec<&LogGap> = batch.gaps.iter().collect();
        for line in &batch.lines {
            // a gap stands before the first line that came after it
            gaps.retain(|gap| {
                let here = gap.deployment == line.deployment && line.seq > gap.after_seq;
                if here {
                    self.gap(gap, &mut out);
                }
                !here
            });
            self.line(line, &mut out);
        }
        for gap in gaps {
            self.gap(gap, &mut out);
        }
        out
    }

    fn line(&mut self, line: &LogLine, out: &mut Vec<u8>) {
        if self.ctx.format.is_data() {
            let mut value = json!({
                "time": line.time,
                "deployment": line.deployment,
                "instance": line.instance,
                "stream": line.stream,
                "seq": line.seq,
                "line": String::from_utf8_lossy(&line.line),
                "release": line.release,
            });
            if line.cut {
                value["cut"] = json!(true);
            }
            return self.value(&value, out);
        }
        let colour = self.ctx.term.colour;
        let when = self.when(line.time);
        out.extend_from_slice(paint(&when, Paint::Dim, colour).as_bytes());
        out.push(b' ');
        if self.several {
            let place = self.names.iter().position(|n| *n == line.deployment).unwrap_or_else(|| {
                self.names.push(line.deployment.clone());
                self.names.len() - 1
            });
            let tag = Paint::Tag(u8::try_from(place % 6).unwrap_or(0));
            out.extend_from_slice(paint(&text::one_line(&line.deployment), tag, colour).as_bytes());
            out.push(b' ');
        }
        if self.ctx.format == Format::Wide {
            out.extend_from_slice(format!("r{} {} ", line.release, line.instance).as_bytes());
        }
        let how = match line.stream.as_str() {
            "stderr" => Paint::Warn,
            "agent" => Paint::Bold,
            _ => Paint::Dim,
        };
        out.extend_from_slice(paint(&text::one_line(&line.stream), how, colour).as_bytes());
        out.push(b' ');
        if self.ctx.term.stdout {
            out.extend_from_slice(text::for_terminal(&line.line, colour).as_bytes());
        } else {
            // a file or a program gets what the server wrote
            out.extend_from_slice(&line.line);
        }
        if line.cut {
            out.extend_from_slice("…(cut)".as_bytes());
        }
        out.push(b'\n');
    }

    fn gap(&self, gap: &LogGap, out: &mut Vec<u8>) {
        if self.ctx.format.is_data() {
            let inner = json!({
                "lost": gap.lost, "deployment": gap.deployment, "after_seq": gap.after_seq, "reason": gap.reason,
            });
            return self.value(&json!({ "gap": inner }), out);
        }
        let why = if gap.reason.is_empty() { String::new() } else { format!(": {}", text::one_line(&gap.reason)) };
        let lines = if gap.lost == 1 { "line" } else { "lines" };
        let text = format!("--- {} {lines} of {} lost{why} ---", gap.lost, text::one_line(&gap.deployment));
        out.extend_from_slice(paint(&text, Paint::Bad, self.ctx.term.colour).as_bytes());
        out.push(b'\n');
    }

    /// One object a line; YAML as documents of one stream.
    fn value(&self, value: &serde_json::Value, out: &mut Vec<u8>) {
        match self.ctx.format {
            Format::Yaml => {
                let yaml = serde_saphyr::to_string(value).unwrap_or_default();
                out.extend_from_slice(format!("---\n{}\n", yaml.trim_end()).as_bytes());
            }
            _ => out.extend_from_slice(format!("{value}\n").as_bytes()),
        }
    }

    /// Local and short for a person, RFC 3339 UTC for a file.
    fn when(&self, moment: Option<Timestamp>) -> String {
        let Some(moment) = moment else { return "-".to_owned() };
        if !self.ctx.term.stdout {
            return format!("{moment:.3}");
        }
        let recent = Timestamp::now().duration_since(moment).abs() < SignedDuration::from_hours(18);
        let form = if recent { "%H:%M:%S%.3f" } else { "%m-%d %H:%M:%S" };
        moment.to_zoned(TimeZone::system()).strftime(form).to_string()
    }
}
