//! A server process as a conversation: one JSON-RPC message a line, in and out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::lines::{Cut, Cutter};
use super::{Conversation, Endpoint, MAX_LINE, Output, Piped, describe};
use crate::initlink::Exit;

/// Messages waiting for the process to read them; beyond that callers wait.
const QUEUED: usize = 64;
/// Lines up to this go out in one write with their line break.
const JOINED: usize = 64 << 10;

/// Lines of a process's stdout.
#[derive(Debug)]
pub(crate) struct Lines {
    pipe: pipe::Receiver,
    exit: watch::Receiver<Option<Exit>>,
    cutter: Cutter,
    /// Cancelled when its stdout is closed, which is up to two seconds before it is known why.
    over: CancellationToken,
    /// The first line may be the end of one that a former agent began to read.
    partial: bool,
    /// The first line that was no protocol, for whoever explains a failure.
    pub(crate) first_stray: Option<String>,
}

/// Joins a process's pipes to a conversation. `resumed`: an earlier agent read from it before.
pub(crate) fn conversation(endpoint: &Arc<Endpoint>, piped: Piped, resumed: bool) -> Conversation {
    let (input, queue) = mpsc::channel(QUEUED);
    let end = CancellationToken::new();
    endpoint.tasks.spawn(write(piped.stdin, queue, end.clone()));
    let lines = Lines {
        pipe: piped.stdout,
        exit: piped.exit,
        cutter: Cutter::new(MAX_LINE),
        over: CancellationToken::new(),
        partial: resumed,
        first_stray: None,
    };
    Conversation { input, output: Output::Stdio(lines), end }
}

/// In a task of its own, because a caller that goes away in the middle of a line would spoil the next one.
async fn write(mut stdin: pipe::Sender, mut queue: mpsc::Receiver<Bytes>, end: CancellationToken) {
    let mut line = Vec::new();
    loop {
        let message = tokio::select! {
            biased;
            message = queue.recv() => message,
            () = end.cancelled() => return,
        };
        let Some(message) = message else { return };
        line.clear();
        let written = if message.len() <= JOINED {
            line.extend_from_slice(&message);
            line.push(b'\n');
            while line.len() < JOINED {
                let Ok(more) = queue.try_recv() else { break };
                line.extend_from_slice(&more);
                line.push(b'\n');
            }
            stdin.write_all(&line).await
        } else {
            match stdin.write_all(&message).await {
                Ok(()) => stdin.write_all(b"\n").await,
                failed => failed,
            }
        };
        if let Err(error) = written {
            tracing::debug!(%error, "a server process no longer reads");
            return;
        }
    }
}

impl Lines {
    /// Tells when its process has ended.
    pub(crate) fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.clone()
    }

    /// Tells when nothing more comes from it: what is sent from then on is not answered.
    pub(crate) fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    pub(crate) async fn next(&mut self, endpoint: &Endpoint) -> Result<Bytes, String> {
        loop {
            match self.cutter.next() {
                Some(Cut::Line(line)) => {
                    let text = line.slice_ref(line.trim_ascii());
                    let partial = std::mem::take(&mut self.partial);
                    match text.first() {
                        None => {}
                        Some(b'{' | b'[') => return Ok(text),
                        Some(_) if partial => {}
                        Some(_) => self.stray(endpoint, text).await,
                    }
                }
                Some(Cut::TooLong) => {
                    self.partial = false;
                    let said = format!("a line of more than {MAX_LINE} bytes on stdout was dropped");
                    self.stray(endpoint, Bytes::from(said)).await;
                }
                None => match self.pipe.read_buf(self.cutter.room()).await {
                    Ok(0) => {
                        self.over.cancel();
                        return Err(self.end().await);
                    }
                    Ok(_) => {}
                    Err(error) => return Err(format!("its output could not be read: {error}")),
                },
            }
        }
    }

    /// Keeps what was printed beside the protocol.
    pub(crate) async fn stray(&mut self, endpoint: &Endpoint, text: Bytes) {
        if self.first_stray.is_none() {
            self.first_stray = Some(String::from_utf8_lossy(&text).chars().take(200).collect());
        }
        endpoint.stray(text).await;
    }

    /// Its stdout is closed: usually it has ended, and init knows how a moment later.
    async fn end(&mut self) -> String {
        let known = self.exit.wait_for(Option::is_some);
        match tokio::time::timeout(Duration::from_secs(2), known).await {
            Ok(Ok(exit)) => exit.as_ref().map_or_else(|| "ended".to_owned(), describe),
            Ok(Err(_)) => "ended, and its container with it".to_owned(),
            Err(_) => "closed its stdout".to_owned(),
        }
    }
}
