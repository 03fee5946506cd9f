//! Init's side of the link's socket: connecting again and again, and what waits to be sent.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use sigil_init::link::{self, Inbox};
use sigil_init::wire::{TO_INIT_MAX, ToAgent};
use sigil_init::{VERSION, VERSION_MIN};
use zeroize::Zeroize;

use crate::run::{Token, token};

const FIRST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_secs(1);
/// Accepted connections that wait for an agent to come back.
const KEPT: usize = 256;

#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    fds: Vec<Rc<OwnedFd>>,
    /// Means as much to the next agent as to this one.
    keep: bool,
}

/// The connection, or the wait for one.
#[derive(Debug)]
pub struct Uplink {
    path: String,
    life: u64,
    socket: Option<OwnedFd>,
    welcome: bool,
    retry: Instant,
    backoff: Duration,
    queue: VecDeque<Packet>,
    current: Option<Packet>,
    done: usize,
    /// Watched for room.
    out_armed: bool,
    /// Since when nobody listens.
    pub down_since: Instant,
    pub inbox: Inbox,
}

impl Uplink {
    /// What the hello calls this life of the container.
    pub fn life(&self) -> u64 {
        self.life
    }

    pub fn new(path: String, life: u64) -> Self {
        let now = Instant::now();
        Self {
            path,
            life,
            socket: None,
            welcome: false,
            retry: now,
            backoff: FIRST,
            queue: VecDeque::new(),
            current: None,
            done: 0,
            out_armed: false,
            down_since: now,
            inbox: Inbox::new(TO_INIT_MAX, true),
        }
    }

    /// The agent listens to us.
    pub fn is_up(&self) -> bool {
        self.socket.is_some() && self.welcome
    }

    /// When to connect next.
    pub fn retry_at(&self) -> Option<Instant> {
        self.socket.is_none().then_some(self.retry)
    }

    /// Connects when it is time.
    pub fn connect(&mut self, epoll: impl AsFd, now: Instant) {
        if self.socket.is_some() || now < self.retry {
            return;
        }
        let attempt = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            connect(&socket, &SocketAddrUnix::new(self.path.as_str())?)?;
            epoll::add(epoll, &socket, token(Token::Link, 0), epoll::EventFlags::IN)?;
            Ok(socket)
        };
        match attempt() {
            Ok(socket) => {
                self.socket = Some(socket);
                self.out_armed = false;
                let mut bytes = Vec::new();
                ToAgent::Hello { version: VERSION, oldest: VERSION_MIN, life: self.life }.encode(0, &mut bytes);
                if let Some(unsent) = self.current.take().filter(|p| p.keep) {
                    self.queue.push_front(unsent);
                }
                self.current = Some(Packet { bytes, fds: Vec::new(), keep: false });
                self.done = 0;
            }
            Err(_) => self.wait(now),
        }
    }

    fn wait(&mut self, now: Instant) {
        self.retry = now + self.backoff;
        self.backoff = (self.backoff * 2).min(LONGEST);
    }

    /// The agent is gone; what only it asked for is dropped.
    pub fn down(&mut self, now: Instant) {
        if self.is_up() {
            self.down_since = now;
        }
        self.socket = None;
        self.welcome = false;
        self.inbox = Inbox::new(TO_INIT_MAX, true);
        // A packet that began to go out is lost, its descriptors with it.
        self.current = self.current.take().filter(|p| p.keep && self.done == 0);
        self.queue.retain(|p| p.keep);
        self.wait(now);
    }

    /// The agent answered.
    pub fn welcomed(&mut self) {
        self.welcome = true;
        self.backoff = FIRST;
    }

    /// Queues a frame for this agent; without one it is dropped, as the next one is told how things are anyway.
    pub fn push(&mut self, frame: &ToAgent<'_>, fds: Vec<Rc<OwnedFd>>) {
        if !self.is_up() {
            return;
        }
        let mut bytes = Vec::new();
        frame.encode(fds.len(), &mut bytes);
        self.queue.push_back(Packet { bytes, fds, keep: false });
    }

    /// Queues a frame that survives the loss of the agent. Answers false when too many wait.
    pub fn push_kept(&mut self, frame: &ToAgent<'_>, fds: Vec<Rc<OwnedFd>>) -> bool {
        if self.queue.iter().filter(|p| p.keep).count() >= KEPT {
            return false;
        }
        let mut bytes = Vec::new();
        frame.encode(fds.len(), &mut bytes);
        self.queue.push_back(Packet { bytes, fds, keep: true });
        true
    }

    /// Everything queued was handed to the kernel.
    pub fn is_flushed(&self) -> bool {
        self.current.is_none() && self.queue.is_empty()
    }

    /// Receives once.
    pub fn fill(&mut self) -> io::Result<usize> {
        match &self.socket {
            Some(socket) => self.inbox.fill(socket),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Sends what waits; `more` gives further frames (bytes and nothing else) once the queue is empty.
    /// Answers an error when the connection is gone.
    pub fn pump(&mut self, epoll: impl AsFd, mut more: impl FnMut(&mut Vec<u8>) -> bool) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let mut spare = Vec::new();
        let mut blocked = false;
        // A bound, so that a flood of output leaves room for everything else.
        for turn in 0.. {
            if turn == 64 {
                blocked = true;
                break;
            }
            if self.current.is_none() && self.welcome {
                self.done = 0;
                self.current = self.queue.pop_front();
                if self.current.is_none() {
                    spare.clear();
                    if more(&mut spare) {
                        self.current = Some(Packet { bytes: std::mem::take(&mut spare), fds: Vec::new(), keep: false });
                    }
                }
            }
            let Some(packet) = &mut self.current else { break };
            let fds: Vec<_> = packet.fds.iter().map(|fd| fd.as_fd()).collect();
            match link::send(socket, &packet.bytes[self.done..], &fds) {
                Ok(count) => {
                    drop(fds);
                    if count > 0 {
                        packet.fds.clear();
                    }
                    self.done += count;
                    if self.done == packet.bytes.len() {
                        let mut sent = self.current.take().map(|p| p.bytes).unwrap_or_default();
                        if sent.capacity() > 4096 {
                            sent.clear();
                            spare = sent;
                        } else {
                            sent.zeroize();
                        }
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    blocked = true;
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if blocked != self.out_armed {
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, blocked);
            epoll::modify(epoll, socket, token(Token::Link, 0), flags)?;
            self.out_armed = blocked;
        }
        Ok(())
    }
}
