//! Official MCP clients that stay: they call a tool, wait, and call again.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde::Deserialize;

/// An answer on a machine that is busy with other clients' starts.
const SOON: Duration = Duration::from_secs(60);

/// Which client, and the manner it speaks in: `legacy` (the handshake), `auto` (it asks), or a revision without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The Python SDK's second major.
    Python(&'static str),
    /// The TypeScript SDK's second major.
    TypeScript(&'static str),
    /// The same over its pipes to `mcp-remote`.
    Remote(&'static str),
}

impl Way {
    /// What the client speaks to.
    pub fn manner(&self) -> &'static str {
        match self {
            Self::Python(manner) | Self::TypeScript(manner) | Self::Remote(manner) => manner,
        }
    }
}

/// What a client tells of one turn: the tools listed and one called.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Turn {
    /// How many times it began, this one included.
    pub begun: u32,
    /// What ended the session before, if it had to begin anew.
    pub lost: Option<String>,
    /// The server's name.
    pub server: Option<String>,
    /// The revision that the two agreed on.
    pub protocol: Option<String>,
    /// Names of tools.
    pub tools: Vec<String>,
    /// Whether the call failed.
    pub is_error: bool,
    /// What it answered.
    pub text: String,
}

/// A client in a container on the host's network.
#[derive(Debug)]
pub struct Client {
    /// What it is.
    pub way: Way,
    name: String,
    child: Child,
    lines: Receiver<String>,
}

impl Client {
    /// Starts one; [`Self::turn`] waits for its first.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(way: Way, url: &str, tool: &str, arguments: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sigil-client-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new("docker");
        // an init of the engine's: these programs are not made to be the first process
        command.args(["run", "--rm", "-i", "--init", "--network", "host", "--name", &name]);
        match way {
            Way::Python(manner) => {
                command.args(["--entrypoint", "/opt/client2/bin/python", "sigil-test/client-python:latest"]);
                command.args(["/client2.py", manner]);
            }
            Way::TypeScript(manner) => {
                command.args(["sigil-test/client-node:latest", "node", "/client/client2.mjs", manner, "http"]);
            }
            Way::Remote(manner) => {
                command.args(["sigil-test/client-node:latest", "node", "/client/client2.mjs", manner, "remote"]);
            }
        }
        command.args([url, tool, arguments]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("docker is installed");
        let stdout = child.stdout.take().expect("piped");
        let (tx, lines) = sync_channel(16);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        Self { way, name, child, lines }
    }

    /// The turn that is under way.
    ///
    /// # Panics
    /// When it does not come to its end; what the client said is above.
    pub fn turn(&mut self) -> Turn {
        let line = self.lines.recv_timeout(SOON).unwrap_or_else(|e| panic!("{:?} says nothing: {e}", self.way));
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{:?} says something else ({e}): {line}", self.way))
    }

    /// Lets it have another turn.
    ///
    /// # Panics
    /// When it has ended.
    pub fn again(&mut self) {
        let input = self.child.stdin.as_mut().expect("piped");
        input.write_all(b"\n").unwrap_or_else(|e| panic!("{:?} has ended: {e}", self.way));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // the end of its input ends it
        drop(self.child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _removed = Command::new("docker").args(["rm", "-f", &self.name]).output();
            let _killed = self.child.kill();
        }
        let _reaped = self.child.wait();
    }
}
