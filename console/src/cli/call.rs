//! `sigil call`.

use std::collections::HashMap;
use std::io::Read as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::pair;
use super::fail::{BLOCKED, DONE, FAILED, Failure, NOT_FOUND, Outcome};
use super::output::{self, Format};
use super::{Ctx, mcp, near, pins, text, time};

/// Call a tool and print its answer. Exit code 1 when the tool reports an error
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil call time get_current_time --arg timezone=Europe/Berlin\n  sigil call search query --json '{\"text\": \"cats\", \"limit\": 3}' -o json\n  sigil call weather today --session-config apiKey=k --session-config server.port=8080"
)]
pub struct Args {
    /// The deployment
    name: String,
    /// The tool
    tool: String,
    /// Argument; its type comes from the tool's schema; repeat it for a list
    #[arg(long, value_name = "K=V", value_parser = pair)]
    arg: Vec<(String, String)>,
    /// All arguments as one JSON object; '-' reads stdin
    #[arg(long, value_name = "JSON")]
    json: Option<String>,
    /// Configuration that the server takes from its callers; dots nest it, and a value that is no text is JSON; repeat
    /// it for more
    #[arg(long, value_name = "K=V", value_parser = pair)]
    session_config: Vec<(String, String)>,
    /// Longest wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time::duration)]
    timeout: Duration,
}

/// Largest `--json -`, bytes.
const INPUT_MAX: u64 = 32 << 20;

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let json = match args.json.as_deref() {
        Some("-") => {
            let mut text = String::new();
            let stdin = std::io::stdin().lock();
            stdin.take(INPUT_MAX).read_to_string(&mut text).map_err(|e| Failure::io("standard input", &e))?;
            Some(text)
        }
        other => other.map(str::to_owned),
    };
    // bad JSON is said before anything is woken up
    mcp::build_arguments(&Value::Null, Some(json.as_deref().unwrap_or("{}")), &[])?;
    let config = once(&args.session_config)?;
    let link = ctx.link().await?;
    let mut client = mcp::Client::open(ctx, &link, &args.name, config, args.timeout).await?;
    let tools = client.tools().await?;
    let Some(tool) = tools.all.iter().find(|t| t.name == args.tool) else {
        if let Some(held) = pins::held(&link, &args.name).await.iter().find(|t| t.name == args.tool) {
            let how = match held.state.as_str() {
                "added" => "it was not there when its server was deployed",
                "poisoned" => "its description tries to steer whoever reads it",
                _ => "it describes itself in another way than when its server was deployed",
            };
            let message = format!("the tool '{}' of {} is held: {how}", args.tool, args.name);
            let hint = format!("look at it with 'sigil pins diff {}', then approve or dismiss it", args.name);
            return Err(Failure::new(BLOCKED, "TOOL_HELD", message, hint));
        }
        let names = tools.all.iter().map(|t| t.name.as_str());
        let hint = near::hint(&args.tool, names, &format!("'sigil tools {}' lists its tools", args.name));
        let message = format!("{} has no tool '{}'", args.name, args.tool);
        return Err(Failure::new(NOT_FOUND, "TOOL_NOT_FOUND", message, hint));
    };
    let arguments = mcp::build_arguments(&tool.schema, json.as_deref(), &args.arg)?;
    let result = client.request("tools/call", json!({ "name": args.tool, "arguments": arguments })).await?;
    let odd = |e: serde_json::Error| Failure::new(FAILED, "BAD_ANSWER", format!("the tool's result: {e}"), "");
    let value: Value = serde_json::from_str(result.get()).map_err(odd)?;
    match ctx.format {
        // as the server wrote it
        Format::Json => output::line(result.get())?,
        Format::Yaml => output::data(Format::Yaml, &value)?,
        _ => output::write(&page(ctx, &value))?,
    }
    Ok(if value.get("isError").and_then(Value::as_bool).unwrap_or(false) { FAILED } else { DONE })
}

/// A configuration has one value of each name.
fn once(pairs: &[(String, String)]) -> Result<HashMap<String, String>, Failure> {
    let mut config = HashMap::new();
    for (key, value) in pairs {
        if config.insert(key.clone(), value.clone()).is_some() {
            let hint = format!("a list is JSON: --session-config '{key}=[\"a\", \"b\"]'");
            return Err(Failure::usage(format!("--session-config gives '{key}' twice"), hint));
        }
    }
    Ok(config)
}

/// Text as it is, everything else as a note of what is there.
fn page(ctx: &Ctx, result: &Value) -> Vec<u8> {
    let mut out = String::new();
    for item in result.get("content").and_then(Value::as_array).into_iter().flatten() {
        let word = |key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default();
        // base 64: four characters are three bytes
        let bytes = |key: &str| time::size(word(key).len() as u64 / 4 * 3);
        match word("type") {
            "text" => out.push_str(&said(ctx, word("text"))),
            kind @ ("image" | "audio") => {
                out.push_str(&format!(
                    "[{kind} {}, {}; -o json has it]\n",
                    text::one_line(word("mimeType")),
                    bytes("data")
                ));
            }
            "resource_link" => out.push_str(&format!("[resource {}]\n", text::one_line(word("uri")))),
            "resource" => {
                let resource = item.get("resource").unwrap_or(&Value::Null);
                let part = |key: &str| resource.get(key).and_then(Value::as_str);
                out.push_str(&format!("[resource {}]\n", text::one_line(part("uri").unwrap_or_default())));
                if let Some(inner) = part("text") {
                    out.push_str(&said(ctx, inner));
                }
            }
            other => out.push_str(&format!("[{}; -o json has it]\n", text::one_line(other))),
        }
    }
    if out.is_empty()
        && let Some(structured) = result.get("structuredContent")
    {
        out = format!("{structured:#}\n");
    }
    out.into_bytes()
}

/// A server's text; on a terminal it must not steer it.
fn said(ctx: &Ctx, words: &str) -> String {
    let words = words.trim_end_matches('\n');
    if !ctx.term.stdout {
        return format!("{words}\n");
    }
    words.split('\n').map(|line| format!("{}\n", text::for_terminal(line.as_bytes(), ctx.term.colour))).collect()
}
