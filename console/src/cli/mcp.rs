//! The MCP client as `tools` and `call` use it: its errors with their exit codes.

mod arguments;

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

pub use arguments::build as build_arguments;

use super::Ctx;
use super::fail::{FAILED, Failure, NOT_ALLOWED, NOT_FOUND, TIMED_OUT};
use crate::link::{Link, McpClient, McpError};

/// A tool as far as this program understands it, and its own words.
#[derive(Debug)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON Schema of its arguments.
    pub schema: Value,
}

/// Every tool: understood, and the `tools` array byte for byte.
pub struct Tools {
    /// In the server's order.
    pub all: Vec<Tool>,
    /// The array; of several pages, their elements in one.
    pub raw: String,
}

/// An initialised session with a deadline for everything in it.
pub struct Client {
    name: String,
    inner: McpClient<Box<dyn FnMut(String) + Send>>,
}

impl Client {
    /// Opens a session of this configuration: initialize, initialized.
    pub async fn open(
        ctx: &Ctx,
        link: &Link,
        name: &str,
        config: HashMap<String, String>,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let shown = ctx.term.stderr;
        // progress and log notifications are for a person only
        let notice: Box<dyn FnMut(String) + Send> = Box::new(move |text: String| {
            if shown {
                super::output::note(&super::text::for_terminal(text.as_bytes(), false));
            }
        });
        match McpClient::open(link, name, config, timeout, notice).await {
            Ok(inner) => Ok(Self { name: name.to_owned(), inner }),
            Err(McpError::Link(e)) => Err(ctx.named(link, name, e).await),
            Err(error) => {
                let failure = failed(name, error);
                let gone = failure.exit == NOT_FOUND;
                Err(if gone { ctx.with_near_names(link, name, failure).await } else { failure })
            }
        }
    }

    /// Asks and gives the result as the server wrote it.
    pub async fn request(&mut self, method: &'static str, params: Value) -> Result<Box<RawValue>, Failure> {
        self.inner.request(method, params).await.map_err(|e| failed(&self.name, e))
    }

    /// Every tool, over all pages. A server without tools has none.
    pub async fn tools(&mut self) -> Result<Tools, Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Known {
            name: String,
            #[serde(default)]
            description: Option<String>,
            #[serde(default)]
            input_schema: Value,
        }
        let odd = |e: serde_json::Error| Failure::new(FAILED, "BAD_ANSWER", format!("the list of tools: {e}"), "");
        let pages = self.inner.tools().await.map_err(|e| failed(&self.name, e))?.0;
        let mut all = Vec::new();
        let mut elements: Vec<&RawValue> = Vec::new();
        for page in &pages {
            let items: Vec<&RawValue> = serde_json::from_str(page.get()).map_err(odd)?;
            for item in items {
                let known: Known = serde_json::from_str(item.get()).map_err(odd)?;
                let description = known.description.unwrap_or_default();
                all.push(Tool { name: known.name, description, schema: known.input_schema });
                elements.push(item);
            }
        }
        let raw = match pages.as_slice() {
            [only] => only.get().to_owned(),
            _ => format!("[{}]", elements.iter().map(|e| e.get()).collect::<Vec<_>>().join(",")),
        };
        Ok(Tools { all, raw })
    }
}

/// A failure with its exit code; the gateway's own errors carry a code and a hint in `data`.
fn failed(name: &str, error: McpError) -> Failure {
    let word = |key: &str| error.said(key).map(str::to_owned);
    let (said, hinted) = (word("code"), word("hint"));
    match error {
        McpError::Link(e) => e.into(),
        McpError::Late { method, timeout } => {
            let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            let message = format!("{name} did not answer {method} within {}", super::time::took(ms));
            let hint = format!("give it longer with --timeout, or see 'sigil logs {name}'");
            Failure::new(TIMED_OUT, "TIMED_OUT", message, hint)
        }
        McpError::Odd(why) => Failure::new(FAILED, "BAD_ANSWER", format!("{name}: {why}"), ""),
        McpError::Refused { method, code, message, data } => {
            let name_of = match (said, code) {
                (Some(said), _) => said,
                (None, -32601) => "METHOD_NOT_FOUND".to_owned(),
                (None, -32602) => "INVALID_PARAMS".to_owned(),
                (None, _) => "MCP_ERROR".to_owned(),
            };
            let exit = match name_of.as_str() {
                "GATEWAY_MCP_NOT_FOUND" => NOT_FOUND,
                "GATEWAY_INVALID_API_KEY" => NOT_ALLOWED,
                _ => FAILED,
            };
            let hint = hinted.unwrap_or_else(|| format!("see 'sigil logs {name}'"));
            let details = json!({ "rpc_code": code, "data": data });
            let message = format!("{name} answered {method} with error {code}: {message}");
            Failure::new(exit, &name_of, message, hint).with_details(details)
        }
    }
}
