//! Frames over a stream socket, with file descriptors.
//!
//! The kernel never merges two sends that carry descriptors into one receive, and hands descriptors out with
//! the first byte they were sent with: so they queue up in the order of the frames that name them.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use zeroize::Zeroize;

use crate::wire::{HEADER, WireError};

/// Most descriptors of one frame.
pub const FDS_MAX: usize = 2;
/// Descriptors that came but whose frame did not: more is an attack.
const FDS_WAITING: usize = 16;
const SMALL: usize = 4 * 1024;
const BIG: usize = 256 * 1024;

/// A whole frame.
#[derive(Debug)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: u8,
    /// Its fields.
    pub payload: &'a [u8],
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}

/// Collects received bytes until they are frames. Small while idle; wipes what was read, as frames carry secrets.
#[derive(Debug)]
pub struct Inbox {
    buffer: Vec<u8>,
    /// Read but not wiped yet: `read..start`.
    read: usize,
    start: usize,
    end: usize,
    last: usize,
    fds: VecDeque<OwnedFd>,
    max: usize,
    wipe: bool,
}

impl Inbox {
    /// For frames of at most `max` bytes, header included. `wipe`: overwrite every frame after use.
    pub fn new(max: usize, wipe: bool) -> Self {
        Self { buffer: vec![0; SMALL], read: 0, start: 0, end: 0, last: 0, fds: VecDeque::new(), max, wipe }
    }

    fn clean(&mut self) {
        if self.wipe {
            self.buffer[self.read..self.start].zeroize();
        }
        self.read = self.start;
    }

    fn resize(&mut self, size: usize) {
        let mut fresh = vec![0; size];
        let waiting = self.end - self.start;
        fresh[..waiting].copy_from_slice(&self.buffer[self.start..self.end]);
        if self.wipe {
            self.buffer.zeroize();
        }
        self.buffer = fresh;
        (self.read, self.start, self.end) = (0, 0, waiting);
    }

    /// Length of the frame that begins at `start`, header included, once its length is here.
    fn frame_length(&self) -> Option<usize> {
        let head: [u8; 4] = self.buffer[self.start..self.end].get(..4)?.try_into().ok()?;
        Some(u32::from_le_bytes(head) as usize + 4)
    }

    /// Receives once, without blocking. Answers the number of bytes, 0 at the end.
    pub fn fill<F: AsFd>(&mut self, socket: F) -> io::Result<usize> {
        self.clean();
        let waiting = self.end - self.start;
        let need = match self.frame_length() {
            Some(n) if n > self.max => return Err(io::Error::new(io::ErrorKind::InvalidData, WireError::Size(n))),
            Some(n) => n,
            None => HEADER,
        };
        if waiting == 0 && self.buffer.len() > SMALL && self.last < SMALL {
            self.resize(SMALL);
        } else if need > self.buffer.len() {
            self.resize(need.next_power_of_two().max(SMALL));
        } else if self.last >= SMALL / 2 && self.buffer.len() < BIG.min(self.max) {
            self.resize((self.buffer.len() * 4).min(BIG));
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            if self.wipe {
                self.buffer[waiting.max(self.start)..self.end].zeroize();
            }
            (self.read, self.start, self.end) = (0, 0, waiting);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX * 2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(&mut self.buffer[self.end..])];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(socket, &mut iov, &mut control, flags).map_err(io::Error::from)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > FDS_WAITING {
            return Err(io::Error::new(io::ErrorKind::InvalidData, WireError::Descriptors));
        }
        self.end += got.bytes;
        self.last = got.bytes;
        Ok(got.bytes)
    }

    /// The next whole frame, if it is here.
    pub fn pop(&mut self) -> Result<Option<Frame<'_>>, WireError> {
        self.clean();
        let Some(length) = self.frame_length() else { return Ok(None) };
        if length > self.max || length < HEADER {
            return Err(WireError::Size(length));
        }
        if self.end - self.start < length {
            return Ok(None);
        }
        let begin = self.start;
        let (kind, count) = (self.buffer[begin + 4], self.buffer[begin + 5] as usize);
        if count > FDS_MAX || count > self.fds.len() {
            return Err(WireError::Descriptors);
        }
        let fds = self.fds.drain(..count).collect();
        self.start = begin + length;
        Ok(Some(Frame { kind, payload: &self.buffer[begin + HEADER..begin + length], fds }))
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        if self.wipe {
            self.buffer.zeroize();
        }
    }
}

/// Sends once, without blocking; descriptors go with the first byte. Answers how many bytes went.
pub fn send<F: AsFd>(socket: F, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, WireError::Descriptors));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::wire::{TO_AGENT_MAX, ToAgent};

    #[test]
    fn descriptors_stay_with_their_frames() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut pipes = Vec::new();
        for i in 0..5u32 {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(&[i as u8]).unwrap();
            pipes.push(ours);
            let mut bytes = Vec::new();
            ToAgent::Done { req: 100 + i }.encode(0, &mut bytes);
            assert_eq!(send(&a, &bytes, &[]).unwrap(), bytes.len());
            let mut bytes = Vec::new();
            ToAgent::Dialled { req: i }.encode(1, &mut bytes);
            // In two parts: the descriptor must be there when the frame is.
            assert_eq!(send(&a, &bytes[..3], &[theirs.as_fd()]).unwrap(), 3);
            assert_eq!(send(&a, &bytes[3..], &[]).unwrap(), bytes.len() - 3);
        }
        drop(a);
        let mut inbox = Inbox::new(TO_AGENT_MAX, true);
        let mut seen = Vec::new();
        loop {
            while let Some(mut frame) = inbox.pop().unwrap() {
                match ToAgent::decode(frame.kind, frame.payload, frame.fds.len()).unwrap() {
                    ToAgent::Dialled { req } => {
                        let mut byte = [0];
                        UnixStream::from(frame.fds.remove(0)).read_exact(&mut byte).unwrap();
                        assert_eq!(u32::from(byte[0]), req);
                        seen.push(req);
                    }
                    ToAgent::Done { req } => seen.push(req),
                    other => panic!("{other:?}"),
                }
            }
            if inbox.fill(&b).unwrap() == 0 {
                break;
            }
        }
        assert_eq!(seen, [100, 0, 101, 1, 102, 2, 103, 3, 104, 4]);
    }

    #[test]
    fn too_long_and_unaccompanied_frames_are_refused() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&(TO_AGENT_MAX as u32).to_le_bytes()).unwrap();
        let mut inbox = Inbox::new(TO_AGENT_MAX, false);
        inbox.fill(&b).unwrap();
        assert!(matches!(inbox.pop(), Err(WireError::Size(_))));
        assert!(inbox.fill(&b).is_err());

        let mut bytes = Vec::new();
        ToAgent::Dialled { req: 1 }.encode(1, &mut bytes);
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&bytes).unwrap();
        let mut inbox = Inbox::new(TO_AGENT_MAX, false);
        inbox.fill(&b).unwrap();
        assert_eq!(inbox.pop().unwrap_err(), WireError::Descriptors);
    }

    #[test]
    fn large_frames_come_in_parts_and_leave_nothing_behind() {
        let (a, b) = UnixStream::pair().unwrap();
        let value = "v".repeat(600_000);
        let mut bytes = Vec::new();
        crate::wire::ToInit::Start {
            req: 1,
            main: false,
            key: "k",
            argv: vec!["x"],
            env: vec![("SECRET", &value)],
            workdir: "",
        }
        .encode(&mut bytes);
        let mut inbox = Inbox::new(crate::wire::TO_INIT_MAX, true);
        let mut sent = 0;
        let mut found = false;
        while !found {
            if sent < bytes.len() {
                match send(&a, &bytes[sent..], &[]) {
                    Ok(n) => sent += n,
                    Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
                }
            }
            assert!(inbox.fill(&b).unwrap() > 0);
            if let Some(frame) = inbox.pop().unwrap() {
                assert_eq!(frame.payload.len(), bytes.len() - HEADER);
                found = true;
            }
        }
        assert!(inbox.pop().unwrap().is_none());
        assert!(!inbox.buffer.contains(&b'v'), "a frame is left in memory");
    }
}
