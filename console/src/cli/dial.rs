//! `sigil dial` (hidden): stdin and stdout become the local agent's socket. The far end of `ssh://` contexts.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd as _;

use super::fail::{DONE, Failure, Outcome};
use crate::link;

/// Copy stdin and stdout to the local agent's socket
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ssh host sigil dial")]
pub struct Args {
    /// Say on a line of its own that the socket is open
    #[arg(long)]
    hello: bool,
}

pub async fn run(args: Args) -> Outcome {
    let (_, stream) = link::local().await?;
    let failed = |e: io::Error| Failure::io("the agent's socket", &e);
    let socket = stream.into_std().map_err(failed)?;
    socket.set_nonblocking(false).map_err(failed)?;
    // past std's buffers: they wait for a newline
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(failed)?);
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?);
    if args.hello {
        stdout.write_all(format!("{}\n", link::HELLO).as_bytes()).map_err(failed)?;
    }
    let mut to_agent = socket.try_clone().map_err(failed)?;
    // ends with stdin, or with the process
    std::thread::spawn(move || {
        drop(copy(&mut stdin, &mut to_agent));
        drop(to_agent.shutdown(Shutdown::Write));
    });
    let mut from_agent = socket;
    let copied = tokio::task::spawn_blocking(move || copy(&mut from_agent, &mut stdout)).await;
    match copied {
        Ok(Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => Err(failed(e)),
        _ => Ok(DONE),
    }
}

/// Hands on what is there at once. `io::copy` splices between pipes and sockets, which may hold bytes back until the
/// far side has sent more: two sides that wait for each other never would.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
