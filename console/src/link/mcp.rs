//! One MCP session over the link: raw JSON-RPC frames in both directions.

use std::collections::HashMap;

use futures::stream;
use sigil_protocol::v1;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::error::LinkError;
use super::{Link, MESSAGE_MAX};

/// Frames that may wait for the network; a slow link holds the sender back.
const QUEUE: usize = 16;

/// An open session. Dropping it closes it.
pub struct McpSession {
    link: Link,
    send: Option<mpsc::Sender<v1::McpFrame>>,
    receive: Streaming<v1::McpFrame>,
}

impl McpSession {
    pub(super) async fn open(
        link: Link,
        deployment: &str,
        config: HashMap<String, String>,
        first: Vec<u8>,
    ) -> Result<Self, LinkError> {
        let mut client = v1::mcp_client::McpClient::new(link.wire.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        let (send, receive) = mpsc::channel(QUEUE);
        let first = v1::McpFrame { deployment: deployment.to_owned(), message: first, config };
        let frames = stream::unfold((Some(first), receive), |(first, mut receive)| async move {
            match first {
                Some(first) => Some((first, (None, receive))),
                None => receive.recv().await.map(|frame| (frame, (None, receive))),
            }
        });
        let receive = client.session(frames).await.map_err(|s| link.error(&s))?.into_inner();
        Ok(Self { link, send: Some(send), receive })
    }

    /// Sends one JSON-RPC message. Fails when the agent has closed the session.
    pub async fn send(&self, message: Vec<u8>) -> Result<(), LinkError> {
        let frame = v1::McpFrame { message, ..v1::McpFrame::default() };
        let closed = || LinkError::Broken { why: "the session is closed".to_owned() };
        self.send.as_ref().ok_or_else(closed)?.send(frame).await.map_err(|_| closed())
    }

    /// A sender that can be moved elsewhere; the session closes its sending side when all are gone.
    pub fn sender(&self) -> Option<McpSender> {
        self.send.clone().map(McpSender)
    }

    /// Says that nothing more will be sent.
    pub fn finish(&mut self) {
        self.send = None;
    }

    /// The next message, or `None` when the agent closed the session. Cancel-safe.
    pub async fn receive(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        match self.receive.message().await {
            Ok(frame) => Ok(frame.map(|f| f.message)),
            Err(status) => Err(self.link.error(&status)),
        }
    }
}

/// The sending side of a session.
#[derive(Clone)]
pub struct McpSender(mpsc::Sender<v1::McpFrame>);

impl McpSender {
    /// Sends one JSON-RPC message; gives it back when there is no room now, or the session is over.
    pub fn try_send(&self, message: Vec<u8>) -> Result<(), Vec<u8>> {
        let frame = v1::McpFrame { message, ..v1::McpFrame::default() };
        self.0.try_send(frame).map_err(|e| e.into_inner().message)
    }

    /// Waits for room; for ever once the session is over, which says so on its receiving side.
    pub async fn room(&self) {
        if self.0.reserve().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
