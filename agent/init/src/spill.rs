//! Init's own stdout or stderr, which the engine logs: where output goes that no agent takes.
//!
//! The descriptor stays blocking, as its flags may be shared; instead a pipe is polled and gets at most
//! PIPE_BUF bytes at a time, for which a writable pipe always has room.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

const PIPE_BUF: usize = 4096;
/// Bytes that may wait; a stream is not read while any do.
const WAITING: usize = 64 * 1024;

/// One of the two.
#[derive(Debug)]
pub struct Spill {
    file: File,
    waiting: Vec<u8>,
    done: usize,
    /// Nobody reads it (any more): what comes is dropped, as it would be without init.
    dead: bool,
    /// Watched for room.
    pub armed: bool,
}

impl Spill {
    pub fn new(file: File) -> Self {
        Self { file, waiting: Vec::new(), done: 0, dead: false, armed: false }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Everything was written.
    pub fn is_idle(&self) -> bool {
        self.waiting.len() == self.done
    }

    /// Takes bytes and writes what fits.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.dead {
            return;
        }
        self.waiting.extend_from_slice(bytes);
        self.flush(0);
    }

    /// Writes what fits, waiting at most so many milliseconds for each room.
    pub fn flush(&mut self, wait_ms: i64) {
        let timeout = Timespec { tv_sec: wait_ms / 1000, tv_nsec: (wait_ms % 1000) * 1_000_000 };
        while !self.is_idle() {
            let flags = {
                let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
                match poll(&mut fds, Some(&timeout)) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => fds[0].revents(),
                }
            };
            if !flags.contains(PollFlags::OUT) {
                self.die();
                return;
            }
            let end = self.waiting.len().min(self.done + PIPE_BUF);
            match rustix::io::write(&self.file, &self.waiting[self.done..end]) {
                Ok(n) => self.done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => {
                    self.die();
                    return;
                }
            }
        }
        self.waiting.clear();
        self.waiting.shrink_to(WAITING);
        self.done = 0;
    }

    fn die(&mut self) {
        self.dead = true;
        self.waiting = Vec::new();
        self.done = 0;
    }
}
