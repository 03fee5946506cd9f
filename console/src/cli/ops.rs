//! `sigil ops`.

use jiff::Timestamp;

use super::fail::{DONE, FAILED, Failure, INTERRUPTED, Outcome};
use super::output::{self, Paint, Table, cell, paint, state, state_paint};
use super::{Ctx, Format, text, time, wait};
use crate::link::{Event, Link, Operation, Progress, What};

/// List operations, show one, or follow its events
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil ops\n  sigil ops --deployment time\n  sigil ops 01KAMV… -f\n  sigil ops 01KAMV… --cancel"
)]
pub struct Args {
    /// The operation
    id: Option<String>,
    /// Show its events and go on until it ends
    #[arg(short, long, requires = "id")]
    follow: bool,
    /// End it early
    #[arg(long, requires = "id", conflicts_with = "follow")]
    cancel: bool,
    /// Only of this deployment
    #[arg(long, value_name = "NAME", conflicts_with = "id", default_value = "", hide_default_value = true)]
    deployment: String,
    /// At most so many
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: u32,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let Some(id) = args.id else {
        let all = link.operations(&args.deployment, args.limit).await?;
        if all.is_empty() && !ctx.format.is_data() {
            output::note("no operations yet");
            return Ok(DONE);
        }
        ctx.emit(&all, || list(ctx, &all))?;
        return Ok(DONE);
    };
    if args.follow {
        return follow(ctx, &link, &id).await;
    }
    let operation = if args.cancel { link.cancel(&id).await? } else { link.operation(&id).await? };
    ctx.emit(&operation, || page(ctx, &operation))?;
    Ok(DONE)
}

fn list(ctx: &Ctx, all: &[Operation]) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(&["ID", "KIND", "DEPLOYMENT", "STATE", "AGE", "SUMMARY"], "SUMMARY");
    for o in all {
        let summary = match &o.error {
            Some(problem) => problem.message.as_str(),
            None if o.is_running() && o.summary.is_empty() => o.step.as_str(),
            None => o.summary.as_str(),
        };
        let age = o.created_at.map_or_else(|| "-".to_owned(), |t| time::span(now.duration_since(t).unsigned_abs()));
        table.row(vec![cell(&o.id), cell(&o.kind), cell(&o.deployment), state(&o.state), cell(age), cell(summary)]);
    }
    table.text(ctx.width(), ctx.term.colour)
}

fn page(ctx: &Ctx, o: &Operation) -> String {
    let now = Timestamp::now();
    let colour = ctx.term.colour;
    let mut out = String::new();
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            out.push_str(&format!("{}{value}\n", paint(&format!("{name:<12}"), Paint::Bold, colour)));
        }
    };
    let clean = text::one_line;
    field("id", o.id.clone());
    field("kind", clean(&o.kind));
    field("deployment", clean(&o.deployment));
    field("state", paint(&clean(&o.state), state_paint(&o.state), colour));
    field("step", clean(&o.step));
    field("release", if o.release == 0 { String::new() } else { o.release.to_string() });
    field("created", format!("{} by {}", time::ago(o.created_at, now), clean(&o.created_by)));
    if let (Some(start), Some(end)) = (o.created_at, o.ended_at) {
        let ms = u64::try_from(end.duration_since(start).as_millis()).unwrap_or(0);
        field("took", time::took(ms));
    }
    field("summary", clean(&o.summary));
    if let Some(problem) = &o.error {
        field("error", format!("{}: {}", clean(&problem.code), clean(&problem.message)));
        field("hint", clean(&problem.hint));
    }
    out
}

/// Data for a script is the events themselves, one a line; for a person they are text on stdout: they are what was
/// asked for.
async fn follow(ctx: &Ctx, link: &Link, id: &str) -> Outcome {
    let hint = format!("follow it again with 'sigil ops {id} -f'");
    ctx.on_interrupt(Failure::new(INTERRUPTED, "INTERRUPTED", format!("interrupted; operation {id} goes on"), hint));
    let mut follow = link.follow(id, 0);
    while let Some(step) = follow.next().await? {
        match step {
            Progress::Item(event) => {
                match ctx.format {
                    Format::Table | Format::Wide => output::write(plain(ctx, &event).as_bytes())?,
                    _ => output::line(&serde_json::to_string(&event).unwrap_or_default())?,
                }
                if let What::Done(operation) = event.what {
                    return wait::verdict(*operation).map(|_| DONE);
                }
            }
            Progress::Lost { why, wait } => wait::lost(ctx, &why, wait),
            Progress::Back => wait::back(ctx),
        }
    }
    Err(Failure::new(FAILED, "BAD_ANSWER", format!("operation {id} ended without a word"), "see 'sigil ops'"))
}

fn plain(ctx: &Ctx, event: &Event) -> String {
    let colour = ctx.term.colour;
    let clean = |t: &str| text::for_terminal(t.as_bytes(), colour);
    match &event.what {
        What::Step { name, state, message, elapsed_ms } => {
            let took = if *elapsed_ms > 0 { format!(" ({})", time::took(*elapsed_ms)) } else { String::new() };
            let more = if message.is_empty() { String::new() } else { format!(": {}", clean(message)) };
            format!("[{}] {}{took}{more}\n", clean(name), paint(state, state_paint(state), colour))
        }
        What::Output { stream, line } => format!("[{}] {}\n", clean(stream), clean(line)),
        What::Note(note) => format!("{}\n", clean(note)),
        What::Done(o) => format!("{} {}\n", clean(&o.kind), paint(&o.state, state_paint(&o.state), colour)),
    }
}
