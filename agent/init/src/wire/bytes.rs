//! Fields of a frame as bytes: written in order, read with bounds.

use super::{Exit, Process, Result, Stream, WireError, is_key};
use crate::KEY_MAX;

/// Writes one frame at the end of a buffer.
pub(super) struct Put<'b> {
    out: &'b mut Vec<u8>,
    begin: usize,
}

impl<'b> Put<'b> {
    pub(super) fn new(out: &'b mut Vec<u8>, kind: u8, fds: u8) -> Self {
        let begin = out.len();
        out.extend_from_slice(&[0, 0, 0, 0, kind, fds]);
        Self { out, begin }
    }
    pub(super) fn u8(self, v: u8) -> Self {
        self.out.push(v);
        self
    }
    pub(super) fn u16(self, v: u16) -> Self {
        self.out.extend_from_slice(&v.to_le_bytes());
        self
    }
    pub(super) fn u32(self, v: u32) -> Self {
        self.out.extend_from_slice(&v.to_le_bytes());
        self
    }
    pub(super) fn i32(self, v: i32) -> Self {
        self.out.extend_from_slice(&v.to_le_bytes());
        self
    }
    pub(super) fn u64(self, v: u64) -> Self {
        self.out.extend_from_slice(&v.to_le_bytes());
        self
    }
    pub(super) fn bytes(self, v: &[u8]) -> Self {
        let put = self.u32(v.len() as u32);
        put.out.extend_from_slice(v);
        put
    }
    pub(super) fn str(self, v: &str) -> Self {
        self.bytes(v.as_bytes())
    }
    pub(super) fn stream(self, v: Stream) -> Self {
        self.u8(match v {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        })
    }
    pub(super) fn exit(self, v: Option<Exit>) -> Self {
        match v {
            None => self.u8(0).i32(0),
            Some(Exit::Code(n)) => self.u8(1).i32(n),
            Some(Exit::Signal(n)) => self.u8(2).i32(n),
        }
    }
    pub(super) fn process(self, p: &Process<'_>) -> Self {
        self.u32(p.serial).str(p.key).u32(p.pid).exit(p.exit)
    }
}

impl Drop for Put<'_> {
    fn drop(&mut self) {
        let length = (self.out.len() - self.begin - 4) as u32;
        self.out[self.begin..self.begin + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// Reads fields off a payload.
pub(super) struct Get<'a>(pub(super) &'a [u8]);

impl<'a> Get<'a> {
    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        if n > self.0.len() {
            return Err(WireError::Short);
        }
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        Ok(head)
    }
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| WireError::Short)
    }
    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }
    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(super) fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_le_bytes(self.array()?))
    }
    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub(super) fn bytes(&mut self, max: usize, field: &'static str) -> Result<&'a [u8]> {
        let n = self.u32()? as usize;
        if n > max {
            return Err(WireError::Value(field));
        }
        self.take(n)
    }
    pub(super) fn str(&mut self, max: usize, field: &'static str) -> Result<&'a str> {
        std::str::from_utf8(self.bytes(max, field)?).map_err(|_| WireError::Value(field))
    }
    pub(super) fn key(&mut self) -> Result<&'a str> {
        let key = self.str(KEY_MAX, "key")?;
        if is_key(key) { Ok(key) } else { Err(WireError::Value("key")) }
    }
    pub(super) fn count(&mut self, max: usize, field: &'static str) -> Result<usize> {
        let n = self.u32()? as usize;
        if n > max { Err(WireError::Value(field)) } else { Ok(n) }
    }
    pub(super) fn stream(&mut self) -> Result<Stream> {
        match self.u8()? {
            1 => Ok(Stream::Stdout),
            2 => Ok(Stream::Stderr),
            _ => Err(WireError::Value("stream")),
        }
    }
    pub(super) fn exit(&mut self) -> Result<Option<Exit>> {
        let kind = self.u8()?;
        let n = self.i32()?;
        match kind {
            0 => Ok(None),
            1 => Ok(Some(Exit::Code(n))),
            2 => Ok(Some(Exit::Signal(n))),
            _ => Err(WireError::Value("exit")),
        }
    }
    pub(super) fn process(&mut self) -> Result<Process<'a>> {
        Ok(Process { serial: self.u32()?, key: self.key()?, pid: self.u32()?, exit: self.exit()? })
    }
    pub(super) fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Long) }
    }
}
