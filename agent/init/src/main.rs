//! PID 1 of every container: reaps, forwards signals, and does over its link what the agent asks for.
//!
//! One thread, one epoll. It has no power that the server has not; what it gives is a pair of hands inside.

mod dial;
mod outbound;
mod output;
mod process;
mod run;
mod spill;
mod table;
mod uplink;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// How init was called.
#[derive(Debug, Clone)]
pub struct Args {
    /// The agent's socket.
    pub socket: String,
    /// Answer DNS and forward connections.
    pub outbound: bool,
    /// Ports beside the usual ones.
    pub ports: Vec<u16>,
    /// Where to answer DNS.
    pub dns: SocketAddr,
    /// From a SIGTERM until what still runs is killed.
    pub grace: Duration,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args {
        socket: "/.sigil/run/agent.sock".into(),
        outbound: false,
        ports: Vec::new(),
        dns: SocketAddr::from(([127, 0, 0, 1], 53)),
        grace: Duration::from_secs(8),
    };
    while let Some(word) = words.next() {
        if word == "--outbound" {
            args.outbound = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("'{word}' wants a value"))?;
        let bad = || format!("'{value}' is no value for '{word}'");
        match word.as_str() {
            "--socket" => args.socket = value,
            "--ports" => {
                args.ports = value.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
            }
            "--dns" => args.dns = value.parse().map_err(|_| bad())?,
            "--grace" => args.grace = Duration::from_millis(value.parse().map_err(|_| bad())?),
            _ => return Err(format!("'{word}' is no option")),
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(why) => {
            eprintln!("sigil-init: {why}");
            return ExitCode::from(2);
        }
    };
    match run::Init::new(args) {
        Ok(mut init) => ExitCode::from(init.run()),
        Err(why) => {
            eprintln!("sigil-init: {why}");
            ExitCode::from(1)
        }
    }
}
