//! `sigil tools`.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use super::fail::{DONE, FAILED, Failure, Outcome};
use super::output::{self, Format, Paint, paint};
use super::{Ctx, mcp, pins, text, time};

/// List a server's tools
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sigil tools time\n  sigil tools time -o json | jq '.[].name'")]
pub struct Args {
    /// The deployment
    name: String,
    /// Longest wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time::duration)]
    timeout: Duration,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let mut client = mcp::Client::open(ctx, &link, &args.name, HashMap::new(), args.timeout).await?;
    let tools = client.tools().await?;
    match ctx.format {
        Format::Json => output::line(&tools.raw)?,
        Format::Yaml => {
            let odd = |e: serde_json::Error| Failure::new(FAILED, "BAD_ANSWER", e.to_string(), "");
            output::data(Format::Yaml, &serde_json::from_str::<Value>(&tools.raw).map_err(odd)?)?;
        }
        _ if tools.all.is_empty() => output::note(&format!("{} has no tools", args.name)),
        _ => {
            for tool in &tools.all {
                output::write(describe(ctx, tool).as_bytes())?;
            }
        }
    }
    let held = pins::held(&link, &args.name).await.len();
    if held > 0 {
        output::note(&format!("{held} held, and not in this list: sigil pins diff {}", args.name));
    }
    Ok(DONE)
}

/// Name and arguments on one line, the first sentence under it.
fn describe(ctx: &Ctx, tool: &mcp::Tool) -> String {
    let colour = ctx.term.colour;
    let required: Vec<&str> =
        tool.schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = tool.schema.get("properties").and_then(Value::as_object);
    let arguments: Vec<String> = properties
        .into_iter()
        .flatten()
        .map(|(name, _)| if required.contains(&name.as_str()) { name.clone() } else { format!("[{name}]") })
        .collect();
    let arguments = text::one_line(&arguments.join(" "));
    let name = text::one_line(&tool.name);
    let wide = ctx.format == Format::Wide;
    let width = if wide { usize::MAX } else { ctx.term.width };
    let head = text::fit(&format!("{name} {arguments}"), width);
    let rest = head.strip_prefix(name.as_str()).map_or_else(|| head.clone(), str::to_owned);
    let shown = if rest.len() == head.len() { head } else { format!("{}{rest}", paint(&name, Paint::Bold, colour)) };
    let mut out = format!("{}\n", shown.trim_end());
    let lines = tool.description.trim().lines().filter(|l| !l.trim().is_empty());
    for line in lines.take(if wide { usize::MAX } else { 1 }) {
        let line = text::fit(&text::one_line(line.trim()), width.saturating_sub(4));
        out.push_str(&format!("    {}\n", paint(&line, Paint::Dim, colour)));
    }
    out
}
