//! `sigil pins`.

use std::fmt::Write as _;

use jiff::Timestamp;
use similar::{ChangeTag, TextDiff};

use super::fail::{DONE, Failure, Outcome};
use super::output::{self, Paint, Table, cell, paint};
use super::{Ctx, near, text, time};
use crate::link::{Link, PinnedTool, Pins};

/// See which tools changed without a new release, and approve them
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A release's tools are pinned when it is first ready to serve. One that describes itself in another way later is held: it is in no list and cannot be called until somebody approves it.\n\nExample:\n  sigil pins ls time\n  sigil pins diff time\n  sigil pins approve time get_current_time"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List tools, held ones with the reason
    #[command(after_help = "Example:\n  sigil pins ls time")]
    Ls {
        /// The deployment
        name: String,
        /// Another release than the desired one
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        release: u32,
    },
    /// Show how held tools differ from what is pinned
    #[command(after_help = "Example:\n  sigil pins diff time\n  sigil pins diff time get_current_time")]
    Diff {
        /// The deployment
        name: String,
        /// Only these tools
        tools: Vec<String>,
        /// Another release than the desired one
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        release: u32,
    },
    /// Pin held tools as they are now; clients get them again
    #[command(
        after_help = "Example:\n  sigil pins approve time get_current_time\n  sigil pins approve time --all --yes"
    )]
    Approve(Answer),
    /// Stay with what is pinned: the tool can be called again, its other form is held when it comes again
    #[command(after_help = "Example:\n  sigil pins dismiss time get_current_time")]
    Dismiss(Answer),
}

#[derive(Debug, clap::Args)]
struct Answer {
    /// The deployment
    name: String,
    /// The tools
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    tools: Vec<String>,
    /// All that are held
    #[arg(long)]
    all: bool,
    /// Another release than the desired one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    release: u32,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    match args.verb {
        Verb::Ls { name, release } => {
            let pins = get(ctx, &link, &name, release).await?;
            ctx.emit(&pins, || table(ctx, &pins))?;
            if !ctx.format.is_data() {
                output::note(&summary(&pins));
            }
        }
        Verb::Diff { name, tools, release } => {
            let mut pins = get(ctx, &link, &name, release).await?;
            let held = chosen(&pins, &tools)?;
            pins.tools = held;
            ctx.emit(&pins, || pins.tools.iter().map(|tool| diff(ctx, tool)).collect())?;
            if pins.tools.is_empty() && !ctx.format.is_data() {
                output::note(&format!("no tool of {} is held", pins.name));
            }
        }
        Verb::Approve(answer) => return say(ctx, &link, answer, false).await,
        Verb::Dismiss(answer) => return say(ctx, &link, answer, true).await,
    }
    Ok(DONE)
}

async fn get(ctx: &Ctx, link: &Link, name: &str, release: u32) -> Result<Pins, Failure> {
    match link.pins(name, release).await {
        Ok(pins) => Ok(pins),
        Err(error) => Err(ctx.named(link, name, error).await),
    }
}

/// Tools that are held. None for who may not see them: this only explains what else was found missing.
pub(super) async fn held(link: &Link, name: &str) -> Vec<PinnedTool> {
    let pins = link.pins(name, 0).await.ok().filter(|pins| pins.pinning == "enforce");
    pins.map_or_else(Vec::new, |pins| pins.tools.into_iter().filter(PinnedTool::is_held).collect())
}

async fn say(ctx: &Ctx, link: &Link, answer: Answer, dismiss: bool) -> Outcome {
    let pins = get(ctx, link, &answer.name, answer.release).await?;
    let held = chosen(&pins, &answer.tools)?;
    if held.is_empty() {
        output::note(&format!("no tool of {} is held", pins.name));
        return Ok(DONE);
    }
    if !ctx.format.is_data() {
        let shown: String = held.iter().map(|tool| diff(ctx, tool)).collect();
        output::note(shown.trim_end());
    }
    let names: Vec<String> = held.iter().map(|tool| text::one_line(&tool.name)).collect();
    let what = if dismiss { "stay with what is pinned of" } else { "pin, as it is now," };
    ctx.confirm(&format!("{what} {} of {}", names.join(", "), pins.name)).await?;
    // what was shown is what is meant: a tool that has changed again meanwhile is refused
    let forms = held.into_iter().map(|tool| (tool.name, tool.live_digest)).collect();
    let pins = link.answer_pins(&answer.name, pins.release, forms, dismiss).await?;
    let word = if dismiss { "dismissed" } else { "approved" };
    ctx.emit(&pins, || format!("{} {word}\n", names.join(", ")))?;
    Ok(DONE)
}

/// Held tools by name; all of them when none is named.
fn chosen(pins: &Pins, names: &[String]) -> Result<Vec<PinnedTool>, Failure> {
    let held: Vec<&PinnedTool> = pins.tools.iter().filter(|tool| tool.is_held()).collect();
    let find = |name: &String| {
        held.iter().find(|tool| tool.name == *name).map(|tool| (*tool).clone()).ok_or_else(|| {
            let hint = near::hint(name, held.iter().map(|tool| tool.name.as_str()), "see 'sigil pins ls'");
            Failure::usage(format!("no tool '{}' of {} is held", text::one_line(name), pins.name), hint)
        })
    };
    if names.is_empty() { Ok(held.into_iter().cloned().collect()) } else { names.iter().map(find).collect() }
}

fn summary(pins: &Pins) -> String {
    let held = pins.tools.iter().filter(|tool| tool.is_held()).count();
    let release = pins.release;
    match (pins.pinned_at, held) {
        (None, _) => format!("release {release} of {} has not been ready to serve yet: nothing is pinned", pins.name),
        (Some(_), _) if pins.pinning == "off" => format!("policy pins = off: lists of {} are not compared", pins.name),
        (Some(_), 0) => format!("all tools of {} are as they were when release {release} was deployed", pins.name),
        (Some(_), n) if pins.pinning == "warn" => format!("{n} changed, and offered all the same: policy pins = warn"),
        (Some(_), n) => {
            format!("{n} held. look: sigil pins diff {name}; then: sigil pins approve {name} TOOL", name = pins.name)
        }
    }
}

fn table(ctx: &Ctx, pins: &Pins) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(&["TOOL", "STATE", "SINCE", "DIGEST"], "DIGEST");
    for tool in &pins.tools {
        let digest = if tool.is_held() { &tool.live_digest } else { &tool.digest };
        let since = if tool.is_held() { tool.since } else { pins.pinned_at };
        let state = if tool.findings.is_empty() {
            tool.state.clone()
        } else {
            format!("{}: {}", tool.state, tool.findings.join("; "))
        };
        table.row(vec![
            cell(text::one_line(&tool.name)),
            cell(text::one_line(&state)),
            cell(time::ago(since, now)),
            cell(digest.chars().take(12).collect::<String>()),
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}

/// A tool's difference, line by line, nothing hidden in it.
fn diff(ctx: &Ctx, tool: &PinnedTool) -> String {
    let colour = ctx.term.colour;
    let mut out = String::new();
    let head = format!("{}: {}", text::one_line(&tool.name), tool.state);
    let _ = writeln!(out, "{}", paint(&head, Paint::Bold, colour));
    for finding in &tool.findings {
        let _ = writeln!(out, "  {}", paint(&text::one_line(finding), Paint::Bad, colour));
    }
    let diff = TextDiff::from_lines(&tool.pinned, &tool.live);
    for group in diff.grouped_ops(3) {
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let (mark, how) = match change.tag() {
                ChangeTag::Delete => ('-', Some(Paint::Bad)),
                ChangeTag::Insert => ('+', Some(Paint::Good)),
                ChangeTag::Equal => (' ', None),
            };
            let line = format!("{mark} {}", spelled(change.value().trim_end_matches('\n')));
            let _ = writeln!(out, "{}", how.map_or_else(|| line.clone(), |how| paint(&line, how, colour)));
        }
    }
    out
}

/// What a terminal would not show, or obey, as an escape.
pub(crate) fn spelled(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for c in line.chars() {
        if sigil_core::scan::is_hidden(c) || c.is_control() {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}
