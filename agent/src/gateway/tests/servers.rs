//! Servers of one era over any transport (`server.py`).

use std::io::BufRead as _;
use std::sync::Arc;

use sigil_core::model::Transport;

use super::fixture::endpoint;
use crate::upstream::Endpoint;

/// A server of one era over one transport.
const SERVER_OF: &str = include_str!("server.py");

/// A process of [`SERVER_OF`] that listens on a port.
pub(super) struct Listening(std::process::Child);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A replica of [`SERVER_OF`]: it lives as long as the second does.
pub(super) fn server_of(
    era: &str,
    transport: Transport,
    notes: &std::path::Path,
) -> (Arc<Endpoint>, Option<Listening>) {
    let notes = notes.display().to_string();
    let word = match transport {
        Transport::Http => "http",
        Transport::Sse => "sse",
        Transport::Stdio => "stdio",
    };
    let command = ["python3", "-c", SERVER_OF, era, word, &notes];
    if transport == Transport::Stdio {
        return (endpoint(transport, 0, &command), None);
    }
    let mut child = std::process::Command::new(command[0])
        .args(&command[1..])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port = line.trim().parse().unwrap();
    (endpoint(transport, port, &[]), Some(Listening(child)))
}
