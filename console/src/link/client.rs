//! An MCP client just large enough to list tools and to call one. What the server says stays raw: unknown fields survive.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Link, LinkError, McpSession};

/// The protocol version that is offered.
const VERSION: &str = "2025-11-25";
/// Pages of a tool list: a server that goes on for ever is cut off.
const PAGES_MAX: usize = 1000;

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum McpError {
    /// The link's.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Nothing came in time.
    #[error("no answer to {method} within {} s", .timeout.as_secs())]
    Late {
        /// The question.
        method: &'static str,
        /// The longest wait.
        timeout: Duration,
    },
    /// What came is not what the protocol says.
    #[error("{0}")]
    Odd(String),
    /// The server, or the gateway before it, answered with an error.
    #[error("error {code}: {message}")]
    Refused {
        /// The question.
        method: &'static str,
        /// JSON-RPC code.
        code: i64,
        /// What.
        message: String,
        /// More; the gateway's own has `code` and `hint`.
        data: Option<Value>,
    },
}

impl McpError {
    /// What the gateway says in `data`, by its key.
    pub fn said(&self, key: &str) -> Option<&str> {
        match self {
            Self::Refused { data: Some(data), .. } => data.get(key).and_then(Value::as_str),
            _ => None,
        }
    }
}

/// Every tool: the `tools` arrays byte for byte, page by page.
pub struct ToolPages(pub Vec<Box<RawValue>>);

/// An initialised session with a deadline for everything in it.
pub struct McpClient<N> {
    session: McpSession,
    next_id: u64,
    deadline: Instant,
    timeout: Duration,
    /// Told of progress and of what the server logs.
    notice: N,
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

impl<N: FnMut(String)> McpClient<N> {
    /// Opens a session of this configuration: initialize, initialized.
    ///
    /// # Errors
    /// The link's, the server's, or that nothing came in time.
    pub async fn open(
        link: &Link,
        name: &str,
        config: HashMap<String, String>,
        timeout: Duration,
        notice: N,
    ) -> Result<Self, McpError> {
        let deadline = Instant::now() + timeout;
        let hello = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": VERSION,
            "capabilities": {},
            "clientInfo": { "name": "sigil", "version": env!("CARGO_PKG_VERSION") },
        }});
        let opened = tokio::time::timeout_at(deadline, link.mcp(name, config, hello.to_string().into_bytes())).await;
        let session = opened.map_err(|_| McpError::Late { method: "initialize", timeout })??;
        let mut client = Self { session, next_id: 1, deadline, timeout, notice };
        client.answer(0, "initialize").await?;
        client.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await?;
        Ok(client)
    }

    async fn send(&self, message: &Value) -> Result<(), LinkError> {
        self.session.send(message.to_string().into_bytes()).await
    }

    /// Asks and gives the result as the server wrote it.
    ///
    /// # Errors
    /// As [`McpClient::open`].
    pub async fn request(&mut self, method: &'static str, params: Value) -> Result<Box<RawValue>, McpError> {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await?;
        self.answer(id, method).await
    }

    /// Says that nobody waits for the newest question any more.
    pub async fn cancel(&mut self, why: &str) {
        if let Some(id) = self.next_id.checked_sub(1).filter(|id| *id > 0) {
            let params = json!({ "requestId": id, "reason": why });
            drop(self.send(&json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params })).await);
        }
    }

    async fn answer(&mut self, id: u64, method: &'static str) -> Result<Box<RawValue>, McpError> {
        loop {
            let received = tokio::time::timeout_at(self.deadline, self.session.receive()).await;
            let Ok(received) = received else {
                // the server may as well stop; initialize alone must not be cancelled
                if id != 0 {
                    self.cancel("timed out").await;
                }
                return Err(McpError::Late { method, timeout: self.timeout });
            };
            let Some(frame) = received? else {
                return Err(LinkError::Broken { why: "the session was closed".to_owned() }.into());
            };
            let message: Envelope<'_> =
                serde_json::from_slice(&frame).map_err(|e| McpError::Odd(format!("what came is not JSON-RPC: {e}")))?;
            match message {
                Envelope { method: Some(asked), id: Some(request), .. } => {
                    self.session.send(reply(&asked, request).into_bytes()).await?;
                }
                Envelope { method: Some(said), params, .. } => {
                    if let Some(text) = noticed(&said, params) {
                        (self.notice)(text);
                    }
                }
                Envelope { id: Some(of), .. } if of.get() != id.to_string() => {}
                Envelope { error: Some(RpcError { code, message, data }), .. } => {
                    return Err(McpError::Refused { method, code, message, data });
                }
                Envelope { result: Some(result), .. } => return Ok(result.to_owned()),
                _ => {}
            }
        }
    }

    /// Every tool, over all pages. A server without tools has none.
    ///
    /// # Errors
    /// As [`McpClient::open`].
    pub async fn tools(&mut self) -> Result<ToolPages, McpError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Page {
            tools: Box<RawValue>,
            next_cursor: Option<String>,
        }
        let mut pages: Vec<Box<RawValue>> = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let params = cursor.as_ref().map_or_else(|| json!({}), |cursor| json!({ "cursor": cursor }));
            let result = match self.request("tools/list", params).await {
                Err(e @ McpError::Refused { code: -32601, .. }) if e.said("code").is_none() => break,
                other => other?,
            };
            let page: Page =
                serde_json::from_str(result.get()).map_err(|e| McpError::Odd(format!("the list of tools: {e}")))?;
            pages.push(page.tools);
            if page.next_cursor.is_none() || page.next_cursor == cursor || pages.len() == PAGES_MAX {
                break;
            }
            cursor = page.next_cursor;
        }
        Ok(ToolPages(pages))
    }
}

/// What a notification says to a person.
fn noticed(method: &str, params: Option<&RawValue>) -> Option<String> {
    let params: Value = params.and_then(|p| serde_json::from_str(p.get()).ok())?;
    match method {
        "notifications/progress" => params.get("message").and_then(Value::as_str).map(str::to_owned),
        "notifications/message" => params.get("data").map(|d| d.as_str().map_or_else(|| d.to_string(), str::to_owned)),
        _ => None,
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
