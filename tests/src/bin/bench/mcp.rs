//! The least MCP client that is one: initialize, initialized, tools/call; over HTTP, and over a process's pipes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

pub const INITIALIZE: &str = concat!(
    r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"#,
    r#""clientInfo":{"name":"bench","version":"1"}}}"#
);
pub const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

pub fn call(tool: &str, arguments: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments}}}}}"#)
}

fn good(answer: Value) -> anyhow::Result<Value> {
    anyhow::ensure!(answer["result"].is_object() && answer["result"]["isError"] != true, "refused: {answer}");
    Ok(answer)
}

/// A new session over HTTP, one tool call, the session's end.
pub async fn first_call(url: &str, tool: &str, arguments: &str) -> anyhow::Result<Value> {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut session = None;
    let mut answer = Value::Null;
    for body in [INITIALIZE.to_owned(), INITIALIZED.to_owned(), call(tool, arguments)] {
        let mut request = Request::post(url)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if let Some(session) = &session {
            request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
        }
        let response = client.request(request.body(Full::from(body))?).await?;
        let status = response.status();
        if let Some(id) = response.headers().get("mcp-session-id") {
            session = Some(id.clone());
        }
        let text = response.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        anyhow::ensure!(status.is_success(), "{status}: {text}");
        if status == StatusCode::ACCEPTED {
            continue;
        }
        // JSON, or the last event of a stream
        let json = if text.trim_start().starts_with('{') {
            text.as_str()
        } else {
            text.lines().rev().find_map(|l| l.strip_prefix("data:").filter(|d| d.trim().starts_with('{'))).unwrap_or("")
        };
        answer = good(serde_json::from_str(json).with_context(|| format!("no JSON: {text}"))?)?;
    }
    let delete = Request::delete(url).header("mcp-session-id", session.context("no session id")?);
    client.request(delete.body(Full::default())?).await?;
    Ok(answer)
}

/// A server as a process.
pub struct Piped {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Piped {
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdin = child.stdin.take().context("piped")?;
        let stdout = BufReader::new(child.stdout.take().context("piped")?);
        Ok(Self { child, stdin, stdout })
    }

    pub fn ask(&mut self, message: &str) -> anyhow::Result<Value> {
        writeln!(self.stdin, "{message}")?;
        loop {
            let mut line = String::new();
            anyhow::ensure!(self.stdout.read_line(&mut line)? > 0, "the server ended");
            let value: Value = serde_json::from_str(&line)?;
            if value.get("id").is_some() && value.get("method").is_none() {
                return good(value);
            }
        }
    }

    pub fn first_call(&mut self, tool: &str, arguments: &str) -> anyhow::Result<Value> {
        self.ask(INITIALIZE)?;
        writeln!(self.stdin, "{INITIALIZED}")?;
        self.ask(&call(tool, arguments))
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}
