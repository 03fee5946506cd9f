//! `sigil tap`.

use std::time::Duration;

use super::Ctx;
use super::fail::{DONE, Failure, Outcome, USAGE};
use super::output::{self, Paint, paint};
use super::{text, time};
use crate::link::Frame;

/// Show a server's JSON-RPC messages as they pass: direction, caller, session, timing; secrets masked
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil tap time                          # the next 10 seconds\n  sigil tap time -f --method tools/call\n  sigil tap time -f -o json | jq -r .message"
)]
pub struct Args {
    /// The deployment
    name: String,
    /// Until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Only messages whose method begins so (result and error are answers); may be repeated
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<String>,
    /// Only messages that fit this pattern
    #[arg(long, value_name = "REGEX")]
    grep: Option<String>,
    /// How long, without -f
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = time::duration)]
    span: Duration,
    /// Whole messages instead of what fits on a line
    #[arg(long)]
    full: bool,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let pattern = args.grep.as_deref().map(regex::Regex::new).transpose();
    let pattern =
        pattern.map_err(|e| Failure::new(USAGE, "BAD_PATTERN", format!("--grep: {e}"), "see docs.rs/regex"))?;
    let link = ctx.link().await?;
    let mut frames = match link.tap(&args.name).await {
        Ok(frames) => frames,
        Err(error) => return Err(ctx.named(&link, &args.name, error).await),
    };
    if args.follow {
        ctx.quiet_interrupt();
    }
    let limit = tokio::time::sleep(args.span);
    tokio::pin!(limit);
    loop {
        let frame = tokio::select! {
            frame = frames.next() => frame?,
            () = &mut limit, if !args.follow => return Ok(DONE),
        };
        let Some(frame) = frame else { return Ok(DONE) };
        if frame.lost > 0 {
            output::note(&format!("{} messages passed too fast to be shown", frame.lost));
            continue;
        }
        let wanted = args.methods.is_empty() || args.methods.iter().any(|m| frame.method.starts_with(m.as_str()));
        if !wanted || pattern.as_ref().is_some_and(|p| !p.is_match(&frame.message)) {
            continue;
        }
        if ctx.format.is_data() {
            // one object a line, for what reads while it goes on
            let text = serde_json::to_string(&frame).unwrap_or_default();
            output::write(format!("{text}\n").as_bytes())?;
        } else {
            output::write(line(ctx, &frame, args.full).as_bytes())?;
        }
    }
}

fn line(ctx: &Ctx, frame: &Frame, full: bool) -> String {
    let colour = ctx.term.colour;
    let arrow = if frame.from_client { "->" } else { "<-" };
    let took = match (frame.from_client, frame.cached) {
        (true, _) => String::new(),
        (false, true) => format!("{:.1} ms (cached)", frame.took_ms),
        (false, false) => format!("{:.1} ms", frame.took_ms),
    };
    let at = frame.time.map_or_else(String::new, |at| at.strftime("%H:%M:%S%.3f").to_string());
    let method = if frame.method == "error" {
        paint(&frame.method, Paint::Bad, colour)
    } else {
        paint(&text::one_line(&frame.method), Paint::Bold, colour)
    };
    let head = format!(
        "{at} {arrow} {} {} {method} {} {took}",
        text::one_line(&frame.caller),
        if frame.session.is_empty() { "-" } else { &frame.session },
        text::one_line(&frame.id)
    );
    let message = text::one_line(&frame.message);
    let message = match ctx.width().filter(|_| !full) {
        Some(width) => message.chars().take(width.saturating_sub(4)).collect(),
        None => message,
    };
    let more = if frame.cut { " …" } else { "" };
    format!("{head}\n    {message}{more}\n")
}
