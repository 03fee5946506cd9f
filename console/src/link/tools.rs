//! A server's tools and how they are pinned: what the screen of tools shows.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use super::client::{McpClient, McpError};
use super::{Link, LinkError, Pins, Refusal};
use crate::tui::Trouble;

/// Longest wait for a list: a server that sleeps is woken for it.
const LIST: Duration = Duration::from_secs(60);

/// One tool, as its server describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// By which it is called.
    pub name: String,
    /// What people call it; may be empty.
    pub title: String,
    /// What it does.
    pub description: String,
    /// What the server says that calls do: `reads only`, `destructive` …
    pub traits: Vec<&'static str>,
    /// JSON Schema of its arguments.
    pub schema: Value,
    /// All of it, as it came.
    pub raw: Value,
}

/// A server's tools.
#[derive(Debug, Clone, PartialEq)]
pub struct Toolbox {
    /// In the server's order.
    pub tools: Vec<Tool>,
    /// How they are pinned, or why nobody tells.
    pub pins: Result<Pins, Trouble>,
}

impl Tool {
    fn read(raw: Value) -> Self {
        let word = |key: &str| raw.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let hints = raw.get("annotations").cloned().unwrap_or_default();
        let said = |key: &str| hints.get(key).and_then(Value::as_bool);
        let mut traits = Vec::new();
        if said("readOnlyHint") == Some(true) {
            traits.push("reads only");
        } else {
            traits.extend((said("destructiveHint") == Some(true)).then_some("destructive"));
            traits.extend((said("idempotentHint") == Some(true)).then_some("idempotent"));
        }
        traits.extend((said("openWorldHint") == Some(true)).then_some("reaches out"));
        let title = match word("title") {
            title if title.is_empty() => hints.get("title").and_then(Value::as_str).unwrap_or_default().to_owned(),
            title => title,
        };
        let schema = raw.get("inputSchema").cloned().unwrap_or_default();
        Self { name: word("name"), title, description: word("description"), traits, schema, raw }
    }
}

/// Asks a server for its tools, and the agent for how they are pinned.
pub(super) async fn toolbox(link: &Link, name: &str) -> Result<Toolbox, LinkError> {
    let listed = async {
        let mut client = McpClient::open(link, name, HashMap::new(), LIST, |_| {}).await?;
        let pages = client.tools().await?;
        let mut tools = Vec::new();
        for page in pages.0 {
            let items: Vec<Value> =
                serde_json::from_str(page.get()).map_err(|e| McpError::Odd(format!("the list of tools: {e}")))?;
            tools.extend(items.into_iter().map(Tool::read));
        }
        Ok(tools)
    };
    let (listed, pins) = tokio::join!(listed, link.pins(name, 0));
    let tools = listed.map_err(|e| refusal(name, e))?;
    Ok(Toolbox { tools, pins: pins.map_err(|e| super::port::trouble(&e)) })
}

/// An error of the protocol in a person's words.
pub(super) fn refusal(name: &str, error: McpError) -> LinkError {
    let hint = error.said("hint").map(str::to_owned);
    let (code, exit) = match &error {
        McpError::Link(e) => return e.clone(),
        McpError::Late { .. } => ("TIMED_OUT", 7),
        McpError::Odd(_) => ("BAD_ANSWER", 1),
        McpError::Refused { .. } => ("MCP_ERROR", 1),
    };
    let message = format!("{name}: {error}");
    let hint = hint.unwrap_or_else(|| format!("see its logs (l), or 'sigil logs {name}'"));
    LinkError::Refused(Refusal { code: code.to_owned(), message, hint, details: None, exit })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tool_is_read_as_far_as_it_says_something() {
        let tool = Tool::read(json!({ "name": "rm", "annotations": { "title": "Remove", "destructiveHint": true,
            "openWorldHint": true }, "inputSchema": { "type": "object" }, "x": 1 }));
        assert_eq!((tool.name.as_str(), tool.title.as_str()), ("rm", "Remove"));
        assert_eq!(tool.traits, ["destructive", "reaches out"]);
        assert_eq!(tool.raw["x"], 1);
        // What only reads destroys nothing, whatever else it says.
        let reads = json!({ "name": 7, "annotations": { "readOnlyHint": true, "destructiveHint": true } });
        assert_eq!(Tool::read(reads).traits, ["reads only"]);
    }
}
