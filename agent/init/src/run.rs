//! The loop: what happened, what it means, what is to be told.

mod words;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::epoll;
use rustix::process::{
    DumpableBehavior, Rlimit, Signal, WaitOptions, getpid, set_child_subreaper, set_dumpable_behavior, wait,
};
use sigil_init::wire::{Exit, Stream, ToAgent, ToInit, Why};
use sigil_init::{IN_FLIGHT_BYTES, IN_FLIGHT_FRAMES, OUTPUT_MAX, VERSION, VERSION_MIN};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGQUIT, SIGTERM};

use crate::Args;
use crate::dial::{self, Dial, Progress};
use crate::outbound::Outbound;
use crate::output::Next;
use crate::process::{self, raise_files};
use crate::spill::Spill;
use crate::table::{Closing, Output, Proc, Table};
use crate::uplink::Uplink;
use words::may_read;

/// Without an agent for this long, a full buffer overflows to the engine's log; a restart of the agent is shorter.
const OVERFLOW_AFTER: Duration = Duration::from_secs(1);
/// A line that is longer is cut where output comes back from the engine's log to the link.
const LINE_MAX: usize = 64 * 1024;
/// How long the last output may take to be acknowledged after main ended.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long an agent that is away is waited for after main ended by itself. Only an agent would start it anew, so nobody
/// waits for that; but a container that is gone cannot be asked any more what it used.
const AGENT_AWAY: Duration = Duration::from_secs(300);
/// The same after a SIGTERM.
const LAST_WORDS_STOPPING: Duration = Duration::from_millis(500);

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    Link,
    Child,
    Stop,
    Output,
    Dial,
    Dns,
    Listener,
    Spill,
    Other,
}

/// An event's data: what it is about, and which.
pub fn token(kind: Token, id: u64) -> epoll::EventData {
    epoll::EventData::new_u64(((kind as u64) << 56) | id)
}

fn untoken(data: epoll::EventData) -> (Token, u64) {
    let raw = data.u64();
    let kinds =
        [Token::Link, Token::Child, Token::Stop, Token::Output, Token::Dial, Token::Dns, Token::Listener, Token::Spill];
    let kind = kinds.into_iter().find(|k| *k as u64 == raw >> 56).unwrap_or(Token::Other);
    (kind, raw & ((1 << 56) - 1))
}

fn realtime() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// The end, once it is near.
#[derive(Debug, Clone, Copy)]
struct Ending {
    code: u8,
    until: Instant,
    /// Nobody asked for it: an agent that is away is waited for until then.
    away: Option<Instant>,
}

/// Everything init is.
#[derive(Debug)]
pub struct Init {
    epoll: OwnedFd,
    args: Args,
    files: Rlimit,
    child_signal: UnixStream,
    stop_signal: UnixStream,
    link: Uplink,
    table: Table,
    dials: HashMap<u64, Dial>,
    next_dial: u64,
    outbound: Option<Outbound>,
    spills: [Spill; 2],
    scratch: Vec<u8>,
    /// Whose output goes next.
    turn: u32,
    /// Asked to stop; when what still runs is killed.
    stopping: Option<Instant>,
    ending: Option<Ending>,
}

impl Init {
    pub fn new(args: Args) -> io::Result<Self> {
        // Before the first secret comes: the server's uid is ours and could read our memory otherwise.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        if getpid().as_raw_nonzero().get() != 1 {
            set_child_subreaper(Some(getpid()))?;
        }
        let files = raise_files();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let child_signal = watch(&epoll, &[SIGCHLD], Token::Child)?;
        let stop_signal = watch(&epoll, &[SIGTERM, SIGINT, SIGQUIT], Token::Stop)?;
        let mut link = Uplink::new(args.socket.clone(), realtime());
        let mut outbound = None;
        if args.outbound {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1024);
            match Outbound::new(&epoll, args.dns, &args.ports, limit) {
                Ok(made) => outbound = Some(made),
                Err(e) => {
                    let text = format!("no DNS at {}: {}", args.dns, process::words(&e));
                    eprintln!("sigil-init: {text}");
                    link.push_kept(&ToAgent::Note { text: &text }, Vec::new());
                }
            }
        }
        let own = |fd: io::Result<OwnedFd>| fd.map(|fd| Spill::new(File::from(fd)));
        let spills = [own(io::stdout().as_fd().try_clone_to_owned())?, own(io::stderr().as_fd().try_clone_to_owned())?];
        Ok(Self {
            epoll,
            args,
            files,
            child_signal,
            stop_signal,
            link,
            table: Table::default(),
            dials: HashMap::new(),
            next_dial: 0,
            outbound,
            spills,
            scratch: vec![0; OUTPUT_MAX],
            turn: 0,
            stopping: None,
            ending: None,
        })
    }

    /// Runs until the container has to end; answers its exit code.
    pub fn run(&mut self) -> u8 {
        let mut events = Vec::with_capacity(64);
        loop {
            let now = Instant::now();
            self.timers(now);
            self.settle(now);
            if let Some(code) = self.finished(now) {
                return code;
            }
            let timeout = self.next_timer().map(|at| {
                // Rounded up: waking just before the time would spin.
                let wait = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                rustix::event::Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) }
            });
            events.clear();
            let got = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref());
            if got.is_err() {
                continue;
            }
            for event in &events {
                let (kind, id) = untoken(event.data);
                match kind {
                    Token::Link => self.on_link(event.flags),
                    Token::Child => self.on_child(),
                    Token::Stop => self.on_stop(),
                    Token::Output => {
                        let stream = if id & 1 == 0 { Stream::Stdout } else { Stream::Stderr };
                        self.read_output((id >> 1) as u32, stream);
                    }
                    Token::Dial => self.on_dial(id),
                    Token::Dns => {
                        if let Some(outbound) = &mut self.outbound {
                            outbound.on_dns(&self.epoll);
                        }
                    }
                    Token::Listener => self.on_accept(id as u32),
                    Token::Spill | Token::Other => {}
                }
            }
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut consider = |at: Option<Instant>| {
            if let Some(at) = at {
                next = Some(next.map_or(at, |n| n.min(at)));
            }
        };
        consider(self.link.retry_at());
        consider(self.stopping.filter(|_| self.ending.is_none()));
        consider(self.ending.map(|e| e.away.filter(|_| !self.link.is_up()).unwrap_or(e.until)));
        for dial in self.dials.values() {
            consider(Some(dial.until));
        }
        for proc in self.table.procs.values() {
            if let Some(closing) = proc.closing.filter(|_| proc.exit.is_none()) {
                consider(closing.term.or(closing.kill));
            }
            if !self.link.is_up() && proc.outputs.iter().any(|o| o.fd.is_some() && o.buf.room() == 0) {
                consider(Some(self.link.down_since + OVERFLOW_AFTER).filter(|at| *at > Instant::now()));
            }
        }
        next
    }

    fn timers(&mut self, now: Instant) {
        self.link.connect(&self.epoll, now);
        let late: Vec<u64> = self.dials.iter().filter(|(_, d)| d.until <= now).map(|(id, _)| *id).collect();
        for id in late {
            if let Some(dial) = self.dials.remove(&id) {
                self.fail(dial.req, Why::Timeout, "no answer");
            }
        }
        for proc in self.table.procs.values_mut().filter(|p| p.exit.is_none()) {
            let Some(closing) = &mut proc.closing else { continue };
            if closing.term.is_some_and(|at| at <= now) {
                closing.term = None;
                proc.signal(Signal::TERM);
            } else if closing.kill.is_some_and(|at| at <= now) {
                closing.kill = None;
                proc.signal(Signal::KILL);
            }
        }
        if self.stopping.is_some_and(|at| at <= now) && self.ending.is_none() {
            self.stopping = Some(now + Duration::from_secs(1));
            for proc in self.table.running() {
                proc.signal(Signal::KILL);
            }
        }
    }

    /// Brings what is watched and what is sent in line with what is.
    fn settle(&mut self, now: Instant) {
        for (n, spill) in self.spills.iter_mut().enumerate() {
            spill.flush(0);
            let want = !spill.is_idle();
            if want != spill.armed {
                let data = token(Token::Spill, n as u64);
                // A file cannot be watched, and is always writable.
                let changed = if want {
                    epoll::add(&self.epoll, spill.fd(), data, epoll::EventFlags::OUT)
                } else {
                    epoll::delete(&self.epoll, spill.fd())
                };
                if changed.is_ok() {
                    spill.armed = want;
                }
            }
        }
        self.forget();
        self.pump();
        let up = self.link.is_up();
        let overflow = !up && now >= self.link.down_since + OVERFLOW_AFTER;
        for proc in self.table.procs.values_mut() {
            for (n, output) in proc.outputs.iter_mut().enumerate() {
                let Some(fd) = &output.fd else { continue };
                let want = may_read(output, &self.spills[n], up, overflow);
                if want != output.armed {
                    let data = token(Token::Output, u64::from(proc.serial) << 1 | n as u64);
                    let changed = if want {
                        epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)
                    } else {
                        epoll::delete(&self.epoll, fd)
                    };
                    if changed.is_ok() {
                        output.armed = want;
                    }
                }
            }
        }
    }

    fn pump(&mut self) {
        let Self { link, table, turn, epoll, scratch, .. } = self;
        let (mut frames, mut bytes) = (0, 0);
        for output in table.procs.values().flat_map(|p| &p.outputs) {
            let (f, b) = output.buf.in_flight();
            frames += f;
            bytes += b;
        }
        let sent = link.pump(&*epoll, |out| {
            if frames >= IN_FLIGHT_FRAMES || bytes + OUTPUT_MAX > IN_FLIGHT_BYTES {
                return false;
            }
            // One frame a turn: a chatty process does not hold up the others.
            let from = *turn;
            let after = table.procs.range(from + 1..).map(|(n, _)| *n);
            let order: Vec<u32> = after.chain(table.procs.range(..=from).map(|(n, _)| *n)).collect();
            for serial in order {
                let Some(proc) = table.procs.get_mut(&serial) else { continue };
                for (output, stream) in proc.outputs.iter_mut().zip([Stream::Stdout, Stream::Stderr]) {
                    match output.buf.next(scratch) {
                        Some(Next::Data { offset, time }) => {
                            frames += 1;
                            bytes += scratch.len();
                            ToAgent::Output { serial, stream, offset, time, bytes: scratch }.encode(0, out);
                        }
                        Some(Next::Gap { from, to, since, until }) => {
                            frames += 1;
                            ToAgent::Gap { serial, stream, from, to, since, until }.encode(0, out);
                        }
                        None => continue,
                    }
                    *turn = serial;
                    return true;
                }
            }
            false
        });
        if scratch.len() < OUTPUT_MAX {
            scratch.resize(OUTPUT_MAX, 0);
        }
        if sent.is_err() {
            self.link_down();
        }
    }

    fn link_down(&mut self) {
        self.link.down(Instant::now());
        for output in self.table.procs.values_mut().flat_map(|p| &mut p.outputs) {
            output.buf.rewind();
        }
        self.dials.clear();
    }

    fn on_link(&mut self, flags: epoll::EventFlags) {
        if !flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            return;
        }
        match self.link.fill() {
            Ok(0) => return self.link_down(),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(_) => return self.link_down(),
        }
        // Out of `self` while its frames are borrowed.
        let mut inbox = std::mem::replace(&mut self.link.inbox, sigil_init::link::Inbox::new(6, false));
        let mut fine = true;
        while fine {
            fine = match inbox.pop() {
                Ok(None) => break,
                Ok(Some(frame)) => match ToInit::decode(frame.kind, frame.payload) {
                    Ok(frame) => self.obey(frame),
                    Err(_) => false,
                },
                Err(_) => false,
            };
        }
        self.link.inbox = inbox;
        if !fine {
            self.link_down();
        }
    }

    /// Does what the agent says; false when it makes no sense.
    fn obey(&mut self, frame: ToInit<'_>) -> bool {
        match frame {
            ToInit::Welcome { version } => {
                if !(VERSION_MIN..=VERSION).contains(&version) || self.link.is_up() {
                    return false;
                }
                self.link.welcomed();
                if let Some(ending) = &mut self.ending {
                    // it came back, and has as long as one that was never away
                    ending.until = ending.until.max(Instant::now() + LAST_WORDS);
                }
                for proc in self.table.procs.values_mut() {
                    self.link.push(&ToAgent::Process(proc.info()), Vec::new());
                    for output in proc.outputs.iter_mut().filter(|o| o.buf.is_gap_open() && o.line == 0) {
                        output.buf.close_gap();
                    }
                }
            }
            _ if !self.link.is_up() => return false,
            ToInit::Start { req, main, key, argv, env, workdir } => {
                self.start(req, key, &process::Start { argv: &argv, env: &env, workdir, main });
            }
            ToInit::Resume { req, key } => match self.table.by_key(key) {
                Some(Proc { serial, pid, main: false, stdin: Some(stdin), stdout: Some(stdout), .. }) => {
                    let fds = vec![stdin.clone(), stdout.clone()];
                    self.link.push(&ToAgent::Started { req, serial: *serial, pid: *pid }, fds);
                }
                Some(_) => self.fail(req, Why::Unknown, "it has no pipes"),
                None => self.fail(req, Why::Unknown, "no such process"),
            },
            ToInit::List { req } => {
                let list = self.table.procs.values().map(Proc::info).collect();
                self.link.push(&ToAgent::Processes { req, list }, Vec::new());
            }
            ToInit::Close { req, key, grace_ms } => {
                if let Some(proc) = self.table.by_key(key).filter(|p| !p.main) {
                    let grace = Duration::from_millis(u64::from(grace_ms.min(3_600_000)));
                    let now = Instant::now();
                    proc.stdin = None;
                    proc.stdout = None;
                    proc.closing = Some(Closing { term: Some(now + grace), kill: Some(now + grace * 2) });
                }
                // Unknown is as good: the agent may ask twice.
                self.link.push(&ToAgent::Done { req }, Vec::new());
            }
            ToInit::Rename { req, key, to } => {
                if to == sigil_init::MAIN || self.table.by_key(to).is_some() {
                    self.fail(req, Why::Taken, "a process of that key exists");
                } else {
                    match self.table.by_key(key).filter(|p| !p.main && p.exit.is_none() && p.closing.is_none()) {
                        Some(proc) => {
                            to.clone_into(&mut proc.key);
                            self.link.push(&ToAgent::Done { req }, Vec::new());
                        }
                        None => self.fail(req, Why::Unknown, "no such process"),
                    }
                }
            }
            ToInit::Signal { req, key, signal } => {
                let signal = Signal::from_named_raw(signal);
                match (self.table.by_key(key).filter(|p| p.exit.is_none()), signal) {
                    (Some(proc), Some(signal)) => {
                        proc.signal(signal);
                        self.link.push(&ToAgent::Done { req }, Vec::new());
                    }
                    (Some(_), None) => self.fail(req, Why::Other, "no such signal"),
                    (None, _) => self.fail(req, Why::Unknown, "no such process"),
                }
            }
            ToInit::Dial { req, port, timeout_ms } => {
                let until = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
                let progress = dial::begin(req, port, until);
                self.dialled(req, progress);
            }
            ToInit::Ack { serial, stream, offset } => {
                if let Some(proc) = self.table.procs.get_mut(&serial) {
                    proc.output(stream).buf.ack(offset);
                }
            }
            ToInit::ExitAck { serial } => {
                if let Some(proc) = self.table.procs.get_mut(&serial) {
                    proc.exit_acked = true;
                }
            }
        }
        true
    }

    fn fail(&mut self, req: u32, why: Why, text: &str) {
        self.link.push(&ToAgent::Failed { req, why, text }, Vec::new());
    }

    fn start(&mut self, req: u32, key: &str, start: &process::Start<'_>) {
        if self.stopping.is_some() || self.ending.is_some() {
            return self.fail(req, Why::Spawn, "the container is stopping");
        }
        if start.main != (key == sigil_init::MAIN) {
            return self.fail(req, Why::Other, "only the main process has the key 'main'");
        }
        if let Some(Proc { serial, pid, main, .. }) = self.table.by_key(key) {
            if *main {
                self.link.push(&ToAgent::Started { req, serial: *serial, pid: *pid }, Vec::new());
                return;
            }
            return self.fail(req, Why::Taken, "a process of that key exists");
        }
        let Some((serial, victim)) = self.table.admit() else {
            return self.fail(req, Why::Spawn, "too many processes");
        };
        if let (true, Some(outbound)) = (start.main, &mut self.outbound) {
            let port = start.env.iter().rev().find(|(name, _)| *name == "PORT").and_then(|(_, v)| v.parse().ok());
            outbound.reserve(port);
        }
        let spawned = match process::spawn(start, &self.files) {
            Ok(spawned) => spawned,
            Err(why) => return self.fail(req, Why::Spawn, &why),
        };
        if let Some(victim) = victim {
            self.drop_process(victim);
        }
        let output = |fd| Output { fd: Some(fd), ..Output::default() };
        let mut fds = Vec::new();
        let (stdin, stdout, outputs) = if start.main {
            (None, None, [output(spawned.stdout), output(spawned.stderr)])
        } else {
            let (stdin, stdout) = (spawned.stdin.map(Rc::new), Rc::new(spawned.stdout));
            fds.extend(stdin.clone());
            fds.push(stdout.clone());
            (stdin, Some(stdout), [Output::default(), output(spawned.stderr)])
        };
        let proc = Proc {
            serial,
            key: key.to_owned(),
            main: start.main,
            pid: spawned.pid,
            exit: None,
            exit_acked: false,
            stdin,
            stdout,
            closing: None,
            outputs,
        };
        self.link.push(&ToAgent::Process(proc.info()), Vec::new());
        self.link.push(&ToAgent::Started { req, serial, pid: proc.pid }, fds);
        self.table.procs.insert(serial, proc);
    }

    fn dialled(&mut self, req: u32, progress: Progress) {
        match progress {
            Progress::Connected(socket) => {
                if let Some(outbound) = &mut self.outbound {
                    outbound.serve(&self.epoll);
                }
                self.link.push(&ToAgent::Dialled { req }, vec![Rc::new(socket)]);
            }
            Progress::Waiting(dial) => {
                self.next_dial += 1;
                let data = token(Token::Dial, self.next_dial);
                match epoll::add(&self.epoll, &dial.socket, data, epoll::EventFlags::OUT) {
                    Ok(()) => {
                        self.dials.insert(self.next_dial, dial);
                    }
                    Err(e) => self.fail(req, Why::Other, &e.to_string()),
                }
            }
            Progress::Refused => self.fail(req, Why::Refused, "nothing listens"),
            Progress::Failed(e) => self.fail(req, Why::Other, &process::words(&e)),
        }
    }

    fn on_dial(&mut self, id: u64) {
        if let Some(dial) = self.dials.remove(&id) {
            let req = dial.req;
            // A connected socket goes out and must leave no watch behind.
            let _ = epoll::delete(&self.epoll, &dial.socket);
            let progress = dial::resume(dial);
            self.dialled(req, progress);
        }
    }

    fn on_accept(&mut self, id: u32) {
        let Some(outbound) = &mut self.outbound else { return };
        for (socket, host, port) in outbound.on_accept(id) {
            let frame = ToAgent::Outbound { host: &host, port };
            // Closed when too many wait: the client sees a broken connection and tries again.
            self.link.push_kept(&frame, vec![Rc::new(socket.into())]);
        }
    }

    fn on_child(&mut self) {
        drain(&self.child_signal);
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let exit = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => continue,
            };
            // Others are orphans that became ours: reaped, and that is all.
            let Some(proc) = self.table.by_pid(pid.as_raw_nonzero().get() as u32) else { continue };
            proc.exit = Some(exit);
            let (serial, main) = (proc.serial, proc.main);
            self.link.push(&ToAgent::Exit { serial, exit }, Vec::new());
            if main && self.ending.is_none() {
                self.end(LAST_WORDS);
            }
        }
        if self.stopping.is_some() && self.table.running().next().is_none() && self.ending.is_none() {
            self.end(LAST_WORDS_STOPPING);
        }
    }

    fn on_stop(&mut self) {
        drain(&self.stop_signal);
        let again = self.stopping.is_some();
        if let Some(ending) = &mut self.ending {
            ending.away = None;
            ending.until = ending.until.max(Instant::now()).min(Instant::now() + LAST_WORDS_STOPPING);
        }
        self.stopping.get_or_insert(Instant::now() + self.args.grace);
        for proc in self.table.running() {
            proc.signal(if again { Signal::KILL } else { Signal::TERM });
        }
        if self.table.running().next().is_none() && self.ending.is_none() {
            self.end(LAST_WORDS_STOPPING);
        }
    }

    fn end(&mut self, wait: Duration) {
        let wait = if self.stopping.is_some() { wait.min(LAST_WORDS_STOPPING) } else { wait };
        let code = match self.table.main().and_then(|p| p.exit) {
            None => 0,
            Some(Exit::Code(code)) => code as u8,
            Some(Exit::Signal(signal)) => 128u8.wrapping_add(signal as u8),
        };
        let now = Instant::now();
        let away = self.stopping.is_none().then(|| now + AGENT_AWAY);
        self.ending = Some(Ending { code, until: now + wait, away });
    }
}

/// A socket that becomes readable when one of the signals came.
fn watch(epoll: &OwnedFd, signals: &[i32], kind: Token) -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    write.set_nonblocking(true)?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, write.try_clone()?)?;
    }
    epoll::add(epoll, &read, token(kind, 0), epoll::EventFlags::IN)?;
    Ok(read)
}

fn drain(mut socket: &UnixStream) {
    let mut bytes = [0; 64];
    while socket.read(&mut bytes).is_ok_and(|n| n > 0) {}
}
