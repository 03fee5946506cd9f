//! The processes that init knows: running ones, and ended ones that the agent has not closed.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process_group};
use sigil_init::PROCESSES_MAX;
use sigil_init::wire::{self, Exit, Stream};

use crate::output::StreamBuf;

/// One output stream.
#[derive(Debug, Default)]
pub struct Output {
    /// `None` after its end.
    pub fd: Option<OwnedFd>,
    /// Watched for input.
    pub armed: bool,
    pub buf: StreamBuf,
    /// Bytes that went to the engine's log since its last newline, while a gap is open.
    pub line: usize,
}

/// When a closed process is told to end, and when it is killed.
#[derive(Debug, Clone, Copy)]
pub struct Closing {
    pub term: Option<Instant>,
    pub kill: Option<Instant>,
}

/// One process.
#[derive(Debug)]
pub struct Proc {
    pub serial: u32,
    pub key: String,
    pub main: bool,
    pub pid: u32,
    pub exit: Option<Exit>,
    /// The agent knows the exit (of main).
    pub exit_acked: bool,
    /// Our duplicates of the agent's ends.
    pub stdin: Option<Rc<OwnedFd>>,
    pub stdout: Option<Rc<OwnedFd>>,
    pub closing: Option<Closing>,
    /// stdout (main only) and stderr.
    pub outputs: [Output; 2],
}

impl Proc {
    pub fn output(&mut self, stream: Stream) -> &mut Output {
        &mut self.outputs[usize::from(stream == Stream::Stderr)]
    }

    /// Signals the process and whatever it started in its group.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // Gone already is as good.
            let _ = kill_process_group(pid, signal);
        }
    }

    pub fn info(&self) -> wire::Process<'_> {
        wire::Process { serial: self.serial, key: &self.key, pid: self.pid, exit: self.exit }
    }
}

/// All of them, by serial.
#[derive(Debug, Default)]
pub struct Table {
    pub procs: BTreeMap<u32, Proc>,
    next: u32,
}

impl Table {
    pub fn by_key(&mut self, key: &str) -> Option<&mut Proc> {
        self.procs.values_mut().find(|p| p.key == key)
    }

    pub fn by_pid(&mut self, pid: u32) -> Option<&mut Proc> {
        self.procs.values_mut().find(|p| p.pid == pid && p.exit.is_none())
    }

    pub fn main(&self) -> Option<&Proc> {
        self.procs.values().find(|p| p.main)
    }

    pub fn running(&self) -> impl Iterator<Item = &Proc> {
        self.procs.values().filter(|p| p.exit.is_none())
    }

    /// Whether a process id is some running process's: a group of that id is then not the ended one's.
    pub fn is_running(&self, pid: u32) -> bool {
        self.running().any(|p| p.pid == pid)
    }

    /// The next serial, and an ended process that has to go first, if any. `None` when too many run.
    pub fn admit(&mut self) -> Option<(u32, Option<u32>)> {
        let victim = if self.procs.len() >= PROCESSES_MAX {
            Some(self.procs.values().find(|p| p.exit.is_some() && !p.main)?.serial)
        } else {
            None
        };
        self.next += 1;
        Some((self.next, victim))
    }
}
