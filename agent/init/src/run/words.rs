//! What is read from processes, where it goes without an agent, and the last words.

use std::fs::File;
use std::io::Read;
use std::time::Instant;

use rustix::process::Signal;
use sigil_init::OUTPUT_MAX;
use sigil_init::mark::Mark;
use sigil_init::wire::{Stream, ToAgent};

use super::{Init, LINE_MAX, OVERFLOW_AFTER, realtime};
use crate::output::Next;
use crate::spill::Spill;
use crate::table::{Output, Proc};

impl Init {
    /// The exit code, once everything is told or cannot be told. An agent that is being restarted is waited for.
    pub(super) fn finished(&mut self, now: Instant) -> Option<u8> {
        let ending = self.ending?;
        let up = self.link.is_up();
        let away = ending.away.filter(|_| !up);
        if now >= away.unwrap_or(ending.until) {
            self.last_words();
            return Some(ending.code);
        }
        let ended: Vec<u32> = self.table.procs.values().filter(|p| p.exit.is_some()).map(|p| p.serial).collect();
        let mut drained = true;
        for serial in ended {
            for stream in [Stream::Stdout, Stream::Stderr] {
                drained &= !self.read_output(serial, stream);
            }
        }
        self.pump();
        let up = self.link.is_up();
        let away = ending.away.is_some() && !up;
        let told = self.table.procs.values().filter(|p| p.exit.is_some()).all(|proc| {
            // Who asked for the end does not wait for an agent: the engine tells it.
            (proc.exit_acked || !proc.main || !(up || away)) && proc.outputs.iter().all(|output| output.buf.is_empty())
        });
        let flushed = !up || self.link.is_flushed();
        (drained && told && flushed).then_some(ending.code)
    }

    /// Writes to the engine's log what no agent acknowledged, with marks that say what it is.
    fn last_words(&mut self) {
        let life = self.link.life();
        for proc in self.table.procs.values_mut() {
            for (output, spill) in proc.outputs.iter_mut().zip(&mut self.spills) {
                if output.line > 0 && output.buf.is_gap_open() {
                    spill.write(b"\n");
                }
                let mut say = |offset: u64, times: (u64, u64), gap: Option<u64>, bytes: &[u8]| {
                    let process = proc.key.clone();
                    let count = gap.unwrap_or(bytes.len() as u64);
                    let mark = Mark { process, life, offset, bytes: count, times, gap: gap.is_some() };
                    spill.write(mark.line().as_bytes());
                    spill.write(bytes);
                    if bytes.last().is_some_and(|b| *b != b'\n') {
                        spill.write(b"\n");
                    }
                    spill.flush(500);
                };
                let (all, mut end) = output.buf.drain();
                for (next, bytes) in all {
                    match next {
                        Next::Data { offset, time } => say(offset, (time, time), None, &bytes),
                        Next::Gap { from, to, since, until } => say(from, (since, until), Some(to - from), &[]),
                    }
                }
                let Some(fd) = output.fd.take() else { continue };
                let mut file = File::from(fd);
                // Bounded, as a child that outlives main may write for ever.
                for _ in 0..64 {
                    match file.read(&mut self.scratch) {
                        Ok(0) | Err(_) => break,
                        Ok(count) => {
                            let now = realtime();
                            say(end, (now, now), None, &self.scratch[..count]);
                            end += count as u64;
                        }
                    }
                }
            }
        }
    }

    /// Reads once; true when there may be more.
    pub(super) fn read_output(&mut self, serial: u32, stream: Stream) -> bool {
        let up = self.link.is_up();
        let overflow = !up && Instant::now() >= self.link.down_since + OVERFLOW_AFTER;
        let Some(proc) = self.table.procs.get_mut(&serial) else { return false };
        let last_call = proc.exit.is_some() && (proc.main || proc.closing.is_some());
        let n = usize::from(stream == Stream::Stderr);
        let spill = &mut self.spills[n];
        let output = &mut proc.outputs[n];
        let Some(fd) = &output.fd else { return false };
        let room = output.buf.room();
        if !may_read(output, spill, up, overflow) {
            return false;
        }
        let limit = if room == 0 { OUTPUT_MAX } else { room.min(OUTPUT_MAX) };
        let count = match rustix::io::read(fd, &mut self.scratch[..limit]) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => return true,
            // An ended process writes no more; someone it left behind is not waited for.
            Err(rustix::io::Errno::AGAIN) if !last_call => return false,
            Err(_) => 0,
        };
        let now = realtime();
        if count == 0 {
            output.fd = None;
            output.armed = false;
            if output.buf.is_gap_open() {
                if output.line > 0 {
                    spill.write(b"\n");
                }
                output.buf.close_gap();
            }
            return false;
        }
        let bytes = &self.scratch[..count];
        if !output.buf.is_gap_open() && room == 0 {
            let moved = output.buf.open_gap(now);
            output.line = moved.len();
            spill.write(&moved);
        }
        if !output.buf.is_gap_open() {
            output.buf.push(bytes, now);
            return true;
        }
        // Back to the link with the first whole line after the agent came back.
        let split = match bytes.iter().position(|b| *b == b'\n') {
            _ if !up => None,
            _ if output.line == 0 => Some(0),
            Some(at) => Some(at + 1),
            None if output.line + count > LINE_MAX => Some(count),
            None => None,
        };
        let (log, rest) = bytes.split_at(split.unwrap_or(count));
        if !log.is_empty() {
            spill.write(log);
            output.buf.grow_gap(log.len(), now);
            output.line = match log.iter().rev().position(|b| *b == b'\n') {
                Some(after) => after,
                None => output.line + log.len(),
            };
        }
        if split.is_some() {
            output.buf.close_gap();
            output.buf.push(rest, now);
        }
        true
    }

    /// Forgets closed processes that ended and whose output is kept by the agent.
    pub(super) fn forget(&mut self) {
        let done: Vec<u32> = self
            .table
            .procs
            .values()
            .filter(|p| p.exit.is_some() && p.closing.is_some() && !p.main)
            .map(|p| p.serial)
            .collect();
        for serial in done {
            if let Some(proc) = self.table.procs.get(&serial)
                && proc.outputs[1].fd.is_some()
            {
                // What its group still runs would hold the pipe. Its id may be another's by now.
                if !self.table.is_running(proc.pid) {
                    proc.signal(Signal::KILL);
                }
                while self.read_output(serial, Stream::Stderr) {}
            }
            let empty = |p: &Proc| p.outputs.iter().all(|o| o.fd.is_none() && o.buf.is_empty());
            if self.table.procs.get(&serial).is_some_and(empty) {
                self.drop_process(serial);
            }
        }
    }

    pub(super) fn drop_process(&mut self, serial: u32) {
        if self.table.procs.remove(&serial).is_some() && self.link.is_up() {
            self.link.push(&ToAgent::Gone { serial }, Vec::new());
        }
    }
}

/// Whether there is a place for what a stream would give.
pub(super) fn may_read(output: &Output, spill: &Spill, up: bool, overflow: bool) -> bool {
    let room = output.buf.room() > 0;
    match output.buf.is_gap_open() {
        // The line that is being finished in the log may be followed by output for the link.
        true => spill.is_idle() && (room || !up),
        false => room || (overflow && spill.is_idle()),
    }
}
