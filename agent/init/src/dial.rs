//! Connecting to the server on the container's loopback, for the agent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

/// A connection that is being made.
#[derive(Debug)]
pub struct Dial {
    pub req: u32,
    pub port: u16,
    pub until: Instant,
    pub socket: OwnedFd,
    family: AddressFamily,
}

/// What became of it so far.
#[derive(Debug)]
pub enum Progress {
    Connected(OwnedFd),
    /// The socket has to be watched until it is writable.
    Waiting(Dial),
    Refused,
    Failed(io::Error),
}

/// Begins with IPv4, where most servers listen, and goes on with IPv6.
pub fn begin(req: u32, port: u16, until: Instant) -> Progress {
    attempt(req, port, until, AddressFamily::INET)
}

fn attempt(req: u32, port: u16, until: Instant, family: AddressFamily) -> Progress {
    let ip =
        if family == AddressFamily::INET { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = match socket_with(family, SocketType::STREAM, flags, None) {
        Ok(socket) => socket,
        // No IPv6 in this kernel: then nothing listens there.
        Err(Errno::AFNOSUPPORT) => return Progress::Refused,
        Err(e) => return Progress::Failed(e.into()),
    };
    match connect(&socket, &SocketAddr::new(ip, port)) {
        Ok(()) => Progress::Connected(socket),
        Err(Errno::INPROGRESS) => Progress::Waiting(Dial { req, port, until, socket, family }),
        Err(e) => next(req, port, until, family, e),
    }
}

fn next(req: u32, port: u16, until: Instant, family: AddressFamily, error: Errno) -> Progress {
    match error {
        Errno::CONNREFUSED | Errno::ADDRNOTAVAIL | Errno::NETUNREACH if family == AddressFamily::INET => {
            attempt(req, port, until, AddressFamily::INET6)
        }
        Errno::CONNREFUSED | Errno::ADDRNOTAVAIL | Errno::NETUNREACH => Progress::Refused,
        other => Progress::Failed(other.into()),
    }
}

/// The socket is writable: connected or not.
pub fn resume(dial: Dial) -> Progress {
    match sockopt::socket_error(&dial.socket) {
        Ok(Ok(())) => Progress::Connected(dial.socket),
        Ok(Err(e)) | Err(e) => next(dial.req, dial.port, dial.until, dial.family, e),
    }
}
