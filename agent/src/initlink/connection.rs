//! One connection from an init: who it is, what it says, what is said to it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes as Slice;
use jiff::Timestamp;
use rustix::net::{AddressFamily, SocketType, sockopt};
use sigil_core::model::Stream;
use sigil_init::link::{Inbox, send};
use sigil_init::wire::{self, TO_AGENT_MAX, ToAgent, ToInit, Why, WireError};
use sigil_init::{VERSION, VERSION_MIN};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::instance::{Bytes, Instance};
use super::output::{FRAMES_MAX, Ledger, OutputChunk, OutputGap, Receipt, Verdict};
use super::{LinkError, Running, Shared};

/// Connections of one container that may wait for `expect`.
const HELD: usize = 16;
/// How long a connection waits for `expect` to be told for the first time.
const HOLD_FIRST: Duration = Duration::from_secs(30);
/// How long one waits that is not from the expected process: it may be a restarted container's.
const HOLD_OTHER: Duration = Duration::from_secs(2);
const HELLO: Duration = Duration::from_secs(10);
/// How long what was read of a link that has ended may take to be handed on.
const REST: Duration = Duration::from_secs(2);
/// Frames on their way to init.
const OUTGOING: usize = 64;

/// What init answered.
#[derive(Debug)]
pub enum Reply {
    /// A process runs; with its pipes when it has any.
    Started { serial: u32, pid: u32, fds: Vec<OwnedFd> },
    /// Done.
    Done,
    /// Not done.
    Failed(Why, String),
    /// All processes.
    Processes(Vec<Running>),
    /// A connected socket.
    Dialled(OwnedFd),
}

impl Reply {
    /// The error that an answer of another kind than asked for is.
    pub fn unexpected(self) -> LinkError {
        match self {
            Self::Failed(_, text) => LinkError::Io(text),
            _ => LinkError::Io("init answered something else than it was asked".to_owned()),
        }
    }

    /// For requests that have nothing to answer.
    pub fn done(self) -> super::Result<()> {
        match self {
            Self::Done => Ok(()),
            other => Err(other.unexpected()),
        }
    }
}

/// A socket from inside as a TCP stream, if that is what it is.
pub fn stream(fd: OwnedFd) -> io::Result<TcpStream> {
    let family = sockopt::socket_domain(&fd)?;
    let fine = (family == AddressFamily::INET || family == AddressFamily::INET6)
        && sockopt::socket_type(&fd)? == SocketType::STREAM;
    if !fine {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what init passed is no TCP socket"));
    }
    let socket = std::net::TcpStream::from(fd);
    socket.peer_addr()?;
    socket.set_nonblocking(true)?;
    let socket = TcpStream::from_std(socket)?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Accepts connections of one instance until it is forgotten.
pub fn serve(shared: Arc<Shared>, instance: Arc<Instance>, listener: UnixListener) {
    tokio::spawn(async move {
        let held = Arc::new(Semaphore::new(HELD));
        loop {
            let accepted = tokio::select! {
                () = instance.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    // Out of descriptors, most likely: going on at once would spin.
                    tracing::warn!(instance = %instance.id, %error, "a link could not be accepted");
                    tokio::select! {
                        () = instance.stop.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_millis(200)) => continue,
                    }
                }
            };
            let pid = socket.peer_cred().ok().and_then(|c| c.pid()).and_then(|pid| u32::try_from(pid).ok());
            // A pid of 0 is a process that this agent's namespace does not contain.
            let Some(pid) = pid.filter(|pid| *pid != 0) else { continue };
            let permit = if *instance.expected.borrow() == Some(pid) {
                None
            } else {
                match held.clone().try_acquire_owned() {
                    Ok(permit) => Some(permit),
                    Err(_) => continue,
                }
            };
            let (shared, instance) = (shared.clone(), instance.clone());
            tokio::spawn(async move {
                let stop = instance.stop.child_token();
                let admitted = tokio::select! {
                    () = stop.cancelled() => return,
                    admitted = is_expected(&instance, pid) => admitted,
                };
                drop(permit);
                if !admitted {
                    tracing::debug!(instance = %instance.id, pid, "a connection that is not PID 1's was refused");
                    return;
                }
                tokio::select! {
                    () = stop.cancelled() => {}
                    ended = talk(&shared, &instance, socket, stop.clone()) => if let Err(error) = ended {
                        tracing::warn!(instance = %instance.id, %error, "a link was closed");
                    }
                }
                if instance.end(&stop) {
                    shared.changed();
                }
            });
        }
    });
}

/// Whether the process is PID 1, once that is known.
async fn is_expected(instance: &Instance, pid: u32) -> bool {
    let mut expected = instance.expected.subscribe();
    let before = *expected.borrow_and_update();
    if before == Some(pid) {
        return true;
    }
    let wait = if before.is_none() { HOLD_FIRST } else { HOLD_OTHER };
    matches!(tokio::time::timeout(wait, expected.changed()).await, Ok(Ok(())) if *expected.borrow() == Some(pid))
}

fn invalid(error: WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

async fn talk(
    shared: &Arc<Shared>,
    instance: &Arc<Instance>,
    socket: UnixStream,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut inbox = Inbox::new(TO_AGENT_MAX, false);
    let hello = async {
        loop {
            if let Some(frame) = inbox.pop().map_err(invalid)? {
                return match ToAgent::decode(frame.kind, frame.payload, frame.fds.len()).map_err(invalid)? {
                    ToAgent::Hello { version, oldest, life } => Ok((version, oldest, life)),
                    _ => Err(invalid(WireError::Kind(frame.kind))),
                };
            }
            if socket.async_io(Interest::READABLE, || inbox.fill(&socket)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    };
    let hello = tokio::time::timeout(HELLO, hello).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
    let (version, oldest, life) = hello?;
    let version = version.min(VERSION);
    if version < oldest.max(VERSION_MIN) {
        let text = format!("it speaks versions from {oldest} on, this agent {VERSION_MIN} to {VERSION}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let (out, outgoing) = mpsc::channel(OUTGOING);
    let mut welcome = Zeroizing::new(Vec::new());
    ToInit::Welcome { version }.encode(&mut welcome);
    out.try_send(welcome).map_err(io::Error::other)?;
    let ledger = instance.begin(life, version, stop, out.clone());
    instance.ready();
    shared.changed();
    tracing::debug!(instance = %instance.id, version, "init connected");
    let (chunks, mut waiting) = mpsc::channel(FRAMES_MAX);
    let mut held = None;
    let reader = Reader { shared, instance, life, ledger: ledger.clone(), chunks, out, strays: VecDeque::new() };
    // Whichever ends first ends the connection.
    let ended = tokio::select! {
        ended = reader.run(&socket, inbox) => ended,
        ended = write(&socket, outgoing, &ledger) => ended,
        () = give_out(shared, &mut waiting, &mut held) => Ok(()),
    };
    // What was read before the end is handed on, too: there may be no other link to give it out again.
    let rest = async {
        while let Some(chunk) = held.take().or_else(|| waiting.try_recv().ok()) {
            if shared.output.send(chunk).await.is_err() {
                break;
            }
        }
    };
    let _late = tokio::time::timeout(REST, rest).await;
    ended
}

/// Hands output on in order; a stalled reader of it stalls nothing else of this link. `held` is on its way: dropped in
/// between, nothing is lost.
async fn give_out(shared: &Shared, waiting: &mut mpsc::Receiver<OutputChunk>, held: &mut Option<OutputChunk>) {
    loop {
        if held.is_none() {
            *held = waiting.recv().await;
        }
        // Nobody keeps output any more: the agent is going down, and init keeps it for the next.
        let (true, Ok(permit)) = (held.is_some(), shared.output.reserve().await) else { break };
        if let Some(chunk) = held.take() {
            permit.send(chunk);
        }
    }
    // The link itself may still be needed.
    std::future::pending::<()>().await;
}

async fn write(socket: &UnixStream, mut outgoing: mpsc::Receiver<Bytes>, ledger: &Ledger) -> io::Result<()> {
    loop {
        let bytes = tokio::select! {
            bytes = outgoing.recv() => match bytes {
                Some(bytes) => bytes,
                None => return Ok(()),
            },
            () = ledger.notify.notified() => {
                let mut bytes = Zeroizing::new(Vec::new());
                for ((serial, stream), offset) in ledger.take() {
                    ToInit::Ack { serial, stream, offset }.encode(&mut bytes);
                }
                bytes
            }
        };
        let mut done = 0;
        while done < bytes.len() {
            done += socket.async_io(Interest::WRITABLE, || send(socket, &bytes[done..], &[])).await?;
        }
    }
}

struct Reader<'a> {
    shared: &'a Arc<Shared>,
    instance: &'a Arc<Instance>,
    life: u64,
    ledger: Arc<Ledger>,
    chunks: mpsc::Sender<OutputChunk>,
    out: mpsc::Sender<Bytes>,
    /// Serials of processes that were started for someone who went away.
    strays: VecDeque<u32>,
}

fn timestamp(nanoseconds: u64) -> Timestamp {
    // The server may claim any time; one that cannot be is now.
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_else(|_| Timestamp::now())
}

impl Reader<'_> {
    async fn run(mut self, socket: &UnixStream, mut inbox: Inbox) -> io::Result<()> {
        loop {
            while let Some(frame) = inbox.pop().map_err(invalid)? {
                let parsed = ToAgent::decode(frame.kind, frame.payload, frame.fds.len()).map_err(invalid)?;
                self.hear(parsed, frame.fds)?;
            }
            while let Some(serial) = self.strays.pop_front() {
                if let Some(key) = self.instance.key_of(serial) {
                    let mut bytes = Zeroizing::new(Vec::new());
                    ToInit::Close { req: 0, key: &key, grace_ms: 0 }.encode(&mut bytes);
                    self.out.send(bytes).await.map_err(io::Error::other)?;
                }
            }
            if socket.async_io(Interest::READABLE, || inbox.fill(socket)).await? == 0 {
                return Ok(());
            }
        }
    }

    fn hear(&mut self, frame: ToAgent<'_>, mut fds: Vec<OwnedFd>) -> io::Result<()> {
        let nonsense = |what| Err(invalid(WireError::Value(what)));
        match frame {
            ToAgent::Hello { .. } => return nonsense("second hello"),
            ToAgent::Process(process) => {
                if !self.instance.add(&process) {
                    return nonsense("process count");
                }
                if process.exit.is_some() {
                    // it ended while no agent was there, or this one did not hear of it
                    if process.key == sigil_init::MAIN {
                        self.tell_ending();
                    }
                    self.exit_known(process.serial)?;
                    self.shared.changed();
                }
            }
            ToAgent::Exit { serial, exit } => {
                let Some(main) = self.instance.exited(serial, exit) else { return nonsense("process") };
                self.tell_ending();
                if main {
                    self.exit_known(serial)?;
                }
                self.shared.changed();
            }
            ToAgent::Gone { serial } => self.instance.gone(serial),
            ToAgent::Started { req, serial, pid } => {
                let is_session = !fds.is_empty();
                if self.instance.answer(req, Reply::Started { serial, pid, fds }).is_some() && is_session {
                    self.strays.push_back(serial);
                }
            }
            ToAgent::Done { req } => drop(self.instance.answer(req, Reply::Done)),
            ToAgent::Failed { req, why, text } => {
                // Shown to people: nothing that could move a cursor.
                let text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                drop(self.instance.answer(req, Reply::Failed(why, text)));
            }
            ToAgent::Processes { req, list } => {
                let running = |p: &wire::Process<'_>| Running {
                    key: p.key.to_owned(),
                    pid: p.pid,
                    exit: p.exit.map(super::Exit::from),
                };
                drop(self.instance.answer(req, Reply::Processes(list.iter().map(running).collect())));
            }
            ToAgent::Dialled { req } => {
                if let Some(fd) = fds.pop() {
                    drop(self.instance.answer(req, Reply::Dialled(fd)));
                }
            }
            ToAgent::Outbound { host, port } => {
                if let Some(fd) = fds.pop() {
                    self.shared.outbound.forward(self.instance, fd, host.to_ascii_lowercase(), port);
                }
            }
            ToAgent::Note { text } => {
                tracing::warn!(instance = %self.instance.id, note = ?text, "init has something to say");
            }
            ToAgent::Output { serial, stream, offset, time, bytes } => {
                let end = offset + bytes.len() as u64;
                match self.ledger.receive((serial, stream), offset, end, false) {
                    Verdict::Known => {}
                    Verdict::Absurd => return nonsense("output window"),
                    Verdict::New(start, receipt) => {
                        let skip = usize::try_from(start - offset).unwrap_or(bytes.len());
                        let bytes = Slice::copy_from_slice(&bytes[skip..]);
                        return self.give(serial, stream, start, time, bytes, None, receipt);
                    }
                }
            }
            ToAgent::Gap { serial, stream, from, to, since, until } => {
                match self.ledger.receive((serial, stream), from, to, true) {
                    Verdict::Known => {}
                    Verdict::Absurd => return nonsense("output window"),
                    Verdict::New(start, receipt) => {
                        let gap = OutputGap { bytes: to - start, since: timestamp(since), until: timestamp(until) };
                        return self.give(serial, stream, to, until, Slice::new(), Some(gap), receipt);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whoever wants to know what the container used is told, before init is let go.
    fn tell_ending(&self) {
        let pid = *self.instance.expected.borrow();
        if let Some((ending, pid)) = self.shared.ending.get().zip(pid) {
            ending(self.instance.id, pid);
        }
    }

    /// Lets init's last words end: it waits for this when main ended.
    fn exit_known(&self, serial: u32) -> io::Result<()> {
        let mut bytes = Zeroizing::new(Vec::new());
        ToInit::ExitAck { serial }.encode(&mut bytes);
        // Full only when init does not read; it gives up waiting after a while.
        match self.out.try_send(bytes) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(e) => Err(io::Error::other(e)),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn give(
        &self,
        serial: u32,
        stream: wire::Stream,
        offset: u64,
        time: u64,
        bytes: Slice,
        gap_before: Option<OutputGap>,
        receipt: Receipt,
    ) -> io::Result<()> {
        let Some(process) = self.instance.key_of(serial) else { return Err(invalid(WireError::Value("process"))) };
        let stream = match stream {
            wire::Stream::Stdout => Stream::Stdout,
            wire::Stream::Stderr => Stream::Stderr,
        };
        let ack = Box::new(move || receipt.kept());
        let mut chunk = OutputChunk::new(self.instance.id, stream, offset, timestamp(time), bytes, ack);
        (chunk.process, chunk.life, chunk.gap_before) = (process, self.life, gap_before);
        // Has room for everything that the ledger lets through.
        self.chunks.try_send(chunk).map_err(|_| io::Error::other("output has nowhere to go"))
    }
}

/// Ends a connection from inside so that its client sees a failure, not an end.
pub fn reset(fd: impl AsFd) {
    // Best effort: without it the client sees an end of stream.
    let _ = sockopt::set_socket_linger(fd, Some(Duration::ZERO));
}
