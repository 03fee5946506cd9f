//! An MCP client just large enough for `tools` and `call`. What the server says stays raw: unknown fields survive.

mod arguments;

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Instant;

pub use arguments::build as build_arguments;

use super::Ctx;
use super::fail::{FAILED, Failure, NOT_ALLOWED, NOT_FOUND, TIMED_OUT};
use crate::link::{Link, LinkError, McpSession};

/// The protocol version that is offered.
const VERSION: &str = "2025-11-25";
/// Pages of a tool list: a server that goes on for ever is cut off.
const PAGES_MAX: usize = 1000;

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
pub struct Client<'a> {
    ctx: &'a Ctx,
    name: String,
    session: McpSession,
    next_id: u64,
    deadline: Instant,
    timeout: Duration,
}

/// Only what routing needs; the rest stays raw.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<String>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<RpcError>,
}

#[derive(Deserialize)]
struct RpcError {
    code: i64,
    #[serde(default)]
    message: String,
    data: Option<Value>,
}

impl<'a> Client<'a> {
    /// Opens a session of this configuration: initialize, initialized.
    pub async fn open(
        ctx: &'a Ctx,
        link: &Link,
        name: &str,
        config: HashMap<String, String>,
        timeout: Duration,
    ) -> Result<Client<'a>, Failure> {
        let deadline = Instant::now() + timeout;
        let hello = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": VERSION,
            "capabilities": {},
            "clientInfo": { "name": "sigil", "version": env!("CARGO_PKG_VERSION") },
        }});
        let opened = tokio::time::timeout_at(deadline, link.mcp(name, config, hello.to_string().into_bytes())).await;
        let session = match opened {
            Err(_) => return Err(late(name, "initialize", timeout)),
            Ok(Err(e)) => return Err(ctx.named(link, name, e).await),
            Ok(Ok(session)) => session,
        };
        let mut client = Self { ctx, name: name.to_owned(), session, next_id: 1, deadline, timeout };
        match client.answer(0, "initialize").await {
            Err(failure) if failure.exit == NOT_FOUND => return Err(ctx.with_near_names(link, name, failure).await),
            other => other?,
        };
        client.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await?;
        Ok(client)
    }

    async fn send(&self, message: &Value) -> Result<(), Failure> {
        Ok(self.session.send(message.to_string().into_bytes()).await?)
    }

    /// Asks and gives the result as the server wrote it.
    pub async fn request(&mut self, method: &'static str, params: Value) -> Result<Box<RawValue>, Failure> {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await?;
        self.answer(id, method).await
    }

    async fn answer(&mut self, id: u64, method: &'static str) -> Result<Box<RawValue>, Failure> {
        loop {
            let received = tokio::time::timeout_at(self.deadline, self.session.receive()).await;
            let Ok(received) = received else {
                if id != 0 {
                    // the server may as well stop; initialize alone must not be cancelled
                    let params = json!({ "requestId": id, "reason": "timed out" });
                    let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params });
                    drop(self.send(&cancel).await);
                }
                return Err(late(&self.name, method, self.timeout));
            };
            let Some(frame) = received? else {
                return Err(LinkError::Broken { why: format!("{} closed the session", self.name) }.into());
            };
            let message: Envelope<'_> = serde_json::from_slice(&frame).map_err(|e| {
                Failure::new(FAILED, "BAD_ANSWER", format!("{} sent what is not JSON-RPC: {e}", self.name), "")
            })?;
            match message {
                Envelope { method: Some(asked), id: Some(request), .. } => {
                    self.session.send(reply(&asked, request).into_bytes()).await?;
                }
                Envelope { method: Some(said), params, .. } => self.notice(&said, params),
                Envelope { id: Some(of), .. } if of.get() != id.to_string() => {}
                Envelope { error: Some(error), .. } => return Err(failed(&self.name, method, error)),
                Envelope { result: Some(result), .. } => return Ok(result.to_owned()),
                _ => {}
            }
        }
    }

    /// Progress and log notifications are for a person only.
    fn notice(&self, method: &str, params: Option<&RawValue>) {
        if !self.ctx.term.stderr {
            return;
        }
        let params: Value = params.and_then(|p| serde_json::from_str(p.get()).ok()).unwrap_or_default();
        let text = match method {
            "notifications/progress" => params.get("message").and_then(Value::as_str).map(str::to_owned),
            "notifications/message" => {
                params.get("data").map(|d| d.as_str().map_or_else(|| d.to_string(), str::to_owned))
            }
            _ => None,
        };
        if let Some(text) = text {
            super::output::note(&super::text::for_terminal(text.as_bytes(), false));
        }
    }

    /// Every tool, over all pages. A server without tools has none.
    pub async fn tools(&mut self) -> Result<Tools, Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Page {
            tools: Box<RawValue>,
            next_cursor: Option<String>,
        }
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
        let mut pages: Vec<Box<RawValue>> = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let params = cursor.as_ref().map_or_else(|| json!({}), |cursor| json!({ "cursor": cursor }));
            let result = match self.request("tools/list", params).await {
                Err(failure) if failure.code == "METHOD_NOT_FOUND" => break,
                other => other?,
            };
            let page: Page = serde_json::from_str(result.get()).map_err(odd)?;
            pages.push(page.tools);
            if page.next_cursor.is_none() || page.next_cursor == cursor || pages.len() == PAGES_MAX {
                break;
            }
            cursor = page.next_cursor;
        }
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

/// What this client answers to a server: it declared no capability, so there is little to ask.
fn reply(method: &str, id: &RawValue) -> String {
    let id = id.get();
    match method {
        "ping" => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#),
        "roots/list" => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"roots":[]}}}}"#),
        _ => format!(
            r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"the command line does not answer this"}}}}"#
        ),
    }
}

fn late(name: &str, method: &str, timeout: Duration) -> Failure {
    let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let message = format!("{name} did not answer {method} within {}", super::time::took(ms));
    Failure::new(TIMED_OUT, "TIMED_OUT", message, format!("give it longer with --timeout, or see 'sigil logs {name}'"))
}

/// A JSON-RPC error; the gateway's own carry a code and a hint in `data`.
fn failed(name: &str, method: &str, error: RpcError) -> Failure {
    let word = |key: &str| error.data.as_ref().and_then(|d| d.get(key)).and_then(Value::as_str).map(str::to_owned);
    let code = match (word("code"), error.code) {
        (Some(code), _) => code,
        (None, -32601) => "METHOD_NOT_FOUND".to_owned(),
        (None, -32602) => "INVALID_PARAMS".to_owned(),
        (None, _) => "MCP_ERROR".to_owned(),
    };
    let exit = match code.as_str() {
        "GATEWAY_MCP_NOT_FOUND" => NOT_FOUND,
        "GATEWAY_INVALID_API_KEY" => NOT_ALLOWED,
        _ => FAILED,
    };
    let hint = word("hint").unwrap_or_else(|| format!("see 'sigil logs {name}'"));
    let details = json!({ "rpc_code": error.code, "data": error.data });
    Failure::new(exit, &code, format!("{name} answered {method} with error {}: {}", error.code, error.message), hint)
        .with_details(details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_requests_are_answered_with_their_own_id() {
        let id = RawValue::from_string("\"a-1\"".into()).unwrap();
        let parse = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        assert_eq!(parse(reply("ping", &id)), json!({ "jsonrpc": "2.0", "id": "a-1", "result": {} }));
        assert_eq!(parse(reply("roots/list", &id))["result"]["roots"], json!([]));
        assert_eq!(parse(reply("sampling/createMessage", &id))["error"]["code"], -32601);
    }
}
