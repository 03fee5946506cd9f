//! `sigil run`: the stdio bridge that an AI client starts. stdout is protocol and nothing else.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Stdin};
use tokio::sync::mpsc;

use super::Ctx;
use super::fail::{DONE, Failure, Outcome};
use super::output;
use crate::link::{Link, LinkError, McpSession};

/// Speak MCP on stdin and stdout with a deployment, for clients that start a process
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example (an AI client's configuration):\n  { \"mcpServers\": { \"time\": { \"command\": \"sigil\", \"args\": [\"run\", \"time\"] } } }"
)]
pub struct Args {
    /// The deployment
    name: String,
}

/// Longest message, bytes: the link's own limit.
const LINE_MAX: u64 = 64 << 20;
/// After the end of stdin, how long open requests may still be answered.
const GRACE: Duration = Duration::from_secs(30);

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let (lines, mut input) = mpsc::channel(16);
    let reader = tokio::spawn(read_lines(lines));
    // connect at once: a client that waits to speak still learns that nobody is there
    let link = ctx.link().await?;
    let outcome = match input.recv().await {
        None => Ok(DONE),
        Some(first) => bridge(ctx, &link, &args.name, first, &mut input).await,
    };
    reader.abort();
    outcome
}

/// stdin, one message a line; what is no JSON object is said and left out.
async fn read_lines(lines: mpsc::Sender<Vec<u8>>) {
    let mut stdin: BufReader<Stdin> = BufReader::new(tokio::io::stdin());
    loop {
        let mut line = Vec::new();
        match (&mut stdin).take(LINE_MAX).read_until(b'\n', &mut line).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) => return output::note(&format!("stdin: {e}")),
        }
        if line.len() as u64 == LINE_MAX && !line.ends_with(b"\n") {
            return output::note("a message on stdin is longer than 64 MiB; ending");
        }
        let message = line.trim_ascii();
        if message.is_empty() {
            continue;
        }
        if serde_json::from_slice::<&RawValue>(message).is_err() {
            output::note("a line on stdin is not JSON; left out");
            continue;
        }
        if lines.send(message.to_vec()).await.is_err() {
            return;
        }
    }
}

/// Only what is needed to know which requests are open.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<String>,
}

/// Requests of the client that have no answer yet, by raw id.
#[derive(Default)]
struct Open(BTreeSet<String>);

impl Open {
    fn sent(&mut self, message: &[u8]) {
        if let Ok(Head { id: Some(id), method: Some(_) }) = serde_json::from_slice(message) {
            self.0.insert(id.get().to_owned());
        }
    }

    fn received(&mut self, message: &[u8]) {
        if let Ok(Head { id: Some(id), method: None }) = serde_json::from_slice(message) {
            self.0.remove(id.get());
        }
    }
}

async fn bridge(ctx: &Ctx, link: &Link, name: &str, first: Vec<u8>, input: &mut mpsc::Receiver<Vec<u8>>) -> Outcome {
    let mut open = Open::default();
    open.sent(&first);
    let mut session = match link.mcp(name, HashMap::new(), first).await {
        Ok(session) => session,
        Err(e) => {
            let failure = ctx.named(link, name, e).await;
            answer_open(&open, &failure.text())?;
            return Err(failure);
        }
    };
    let error = match exchange(&mut session, input, &mut open).await? {
        None => return Ok(DONE),
        Some(error) => error,
    };
    let failure = Failure::from(error);
    // a client must not wait for ever for what will not come
    answer_open(&open, &failure.text())?;
    Err(failure)
}

/// Copies both ways until stdin ends and everything is answered, or the session ends.
async fn exchange(
    session: &mut McpSession,
    input: &mut mpsc::Receiver<Vec<u8>>,
    open: &mut Open,
) -> Result<Option<LinkError>, Failure> {
    let mut sender = session.sender();
    let mut ended = None;
    loop {
        let grace = async {
            match ended {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            line = input.recv(), if sender.is_some() => match (line, &sender) {
                (Some(line), Some(to)) => {
                    open.sent(&line);
                    // a closed session says why on its receiving side
                    if !to.send(line).await {
                        sender = None;
                    }
                }
                _ => {
                    sender = None;
                    session.finish();
                    ended = Some(tokio::time::Instant::now() + GRACE);
                    if open.0.is_empty() {
                        return Ok(None);
                    }
                }
            },
            frame = session.receive() => match frame {
                Ok(Some(mut frame)) => {
                    open.received(&frame);
                    frame.push(b'\n');
                    output::write(&frame)?;
                    if ended.is_some() && open.0.is_empty() {
                        return Ok(None);
                    }
                }
                Ok(None) if open.0.is_empty() => return Ok(None),
                Ok(None) => return Ok(Some(LinkError::Broken { why: "the agent closed the session".to_owned() })),
                Err(e) => return Ok(Some(e)),
            },
            () = grace => return Ok(None),
        }
    }
}

fn answer_open(open: &Open, why: &str) -> Result<(), Failure> {
    for id in &open.0 {
        let message = serde_json::Value::String(why.to_owned());
        let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32000,"message":{message}}}}}"#);
        output::line(&answer)?;
    }
    Ok(())
}
