//! What init keeps of one output stream: unacknowledged bytes, and the gaps that went to the engine's log.
//!
//! Offsets count every byte that the process wrote, from 0. Kept data and gaps lie in order behind `acked`; a
//! gap has no bytes here. `sent` says how far the present connection has been told.

use std::collections::VecDeque;

use sigil_init::{OUTPUT_MAX, STREAM_BUFFER};

/// Bytes read within this time of each other may share a stamp, in nanoseconds.
const STAMP: u64 = 1_000_000;
/// Most segments; beyond, bytes join the last one whatever their time.
const SEGMENTS: usize = 2048;
/// Longest unfinished line that moves to the engine's log so that the log begins with a whole line, in bytes.
const LINE_MOVED: usize = 16 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Data { time: u64 },
    Gap { since: u64, until: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    from: u64,
    to: u64,
    kind: Kind,
}

/// The next thing to tell the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Bytes, which were copied out.
    Data { offset: u64, time: u64 },
    /// A finished gap.
    Gap { from: u64, to: u64, since: u64, until: u64 },
}

/// One stream's unacknowledged output.
#[derive(Debug, Default)]
pub struct StreamBuf {
    bytes: VecDeque<u8>,
    segments: VecDeque<Segment>,
    /// First offset after everything read so far.
    end: u64,
    /// First segment that is not wholly sent, and the bytes kept before `sent`.
    sent: u64,
    sent_segment: usize,
    sent_bytes: usize,
    /// Ends of the frames on the way.
    flight: VecDeque<(u64, usize)>,
    flight_bytes: usize,
    /// The last segment is a gap that may still grow.
    open: bool,
}

impl StreamBuf {
    /// How many bytes may be kept besides.
    pub fn room(&self) -> usize {
        STREAM_BUFFER.saturating_sub(self.bytes.len())
    }

    /// Nothing is unacknowledged.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Output goes to the engine's log while no agent listens.
    pub fn is_gap_open(&self) -> bool {
        self.open
    }

    /// Frames and bytes on the way.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.flight.len(), self.flight_bytes)
    }

    /// Keeps what was read; at most `room()` bytes.
    pub fn push(&mut self, bytes: &[u8], now: u64) {
        if bytes.is_empty() {
            return;
        }
        debug_assert!(!self.open && bytes.len() <= self.room());
        self.bytes.extend(bytes);
        self.end += bytes.len() as u64;
        let full = self.segments.len() >= SEGMENTS;
        if let Some(Segment { to, kind: Kind::Data { time }, .. }) = self.segments.back_mut()
            && (full || now.wrapping_sub(*time) < STAMP)
        {
            *to = self.end;
            return;
        }
        let from = self.end - bytes.len() as u64;
        self.segments.push_back(Segment { from, to: self.end, kind: Kind::Data { time: now } });
    }

    /// From now on output goes to the engine's log. Answers the unfinished line that has to go there first, so
    /// that the log has whole lines only. Only without a connection.
    pub fn open_gap(&mut self, now: u64) -> Vec<u8> {
        let tail = self.bytes.iter().rev().take(LINE_MOVED + 1).position(|b| *b == b'\n');
        let mut moved = Vec::new();
        let line = match tail {
            Some(n) => n,
            None if self.bytes.len() <= LINE_MOVED => self.bytes.len(),
            None => 0,
        };
        // Only what lies behind the last gap: a line never moves across one.
        let mut left = line;
        while left > 0 {
            let Some(last) = self.segments.back_mut() else { break };
            if !matches!(last.kind, Kind::Data { .. }) {
                break;
            }
            let part = left.min((last.to - last.from) as usize);
            last.to -= part as u64;
            left -= part;
            if last.to == last.from {
                self.segments.pop_back();
            }
        }
        let taken = line - left;
        moved.extend(self.bytes.drain(self.bytes.len() - taken..));
        let from = self.end - taken as u64;
        match self.segments.back_mut() {
            Some(Segment { kind: Kind::Gap { .. }, .. }) => {}
            _ => self.segments.push_back(Segment { from, to: self.end, kind: Kind::Gap { since: now, until: now } }),
        }
        self.open = true;
        self.rewind();
        moved
    }

    /// Counts bytes that went to the engine's log.
    pub fn grow_gap(&mut self, count: usize, now: u64) {
        self.end += count as u64;
        if let Some(Segment { to, kind: Kind::Gap { until, .. }, .. }) = self.segments.back_mut() {
            *to = self.end;
            *until = now;
        }
    }

    /// The log has a whole line at its end: the gap may be told.
    pub fn close_gap(&mut self) {
        self.open = false;
        // A gap of nothing is none.
        if self.segments.back().is_some_and(|s| s.from == s.to) {
            self.segments.pop_back();
            self.sent_segment = self.sent_segment.min(self.segments.len());
        }
    }

    /// A new connection: everything unacknowledged goes again.
    pub fn rewind(&mut self) {
        self.sent = self.segments.front().map_or(self.end, |s| s.from);
        (self.sent_segment, self.sent_bytes) = (0, 0);
        self.flight.clear();
        self.flight_bytes = 0;
    }

    /// The next frame, its bytes (at most [`OUTPUT_MAX`]) copied to `out`.
    pub fn next(&mut self, out: &mut Vec<u8>) -> Option<Next> {
        loop {
            let segment = self.segments.get(self.sent_segment)?;
            let last = self.sent_segment + 1 == self.segments.len();
            if self.sent >= segment.to {
                // The last segment may still grow, so it stays the current one.
                if last {
                    return None;
                }
                self.sent_segment += 1;
                continue;
            }
            match segment.kind {
                Kind::Data { time } => {
                    let offset = self.sent.max(segment.from);
                    let count = ((segment.to - offset) as usize).min(OUTPUT_MAX);
                    let range = self.sent_bytes..self.sent_bytes + count;
                    let (front, back) = self.bytes.as_slices();
                    let split = front.len();
                    out.clear();
                    out.extend_from_slice(&front[range.start.min(split)..range.end.min(split)]);
                    out.extend_from_slice(&back[range.start.saturating_sub(split)..range.end.saturating_sub(split)]);
                    self.sent = offset + count as u64;
                    self.sent_bytes += count;
                    self.flight.push_back((self.sent, count));
                    self.flight_bytes += count;
                    return Some(Next::Data { offset, time });
                }
                Kind::Gap { since, until } => {
                    if self.open && last {
                        return None;
                    }
                    let (from, to) = (segment.from, segment.to);
                    self.sent = to;
                    self.flight.push_back((to, 0));
                    return Some(Next::Gap { from, to, since, until });
                }
            }
        }
    }

    /// The agent keeps everything before `offset`.
    pub fn ack(&mut self, offset: u64) {
        // Never beyond what was sent: the rest would be lost without anyone having it.
        let offset = offset.min(self.sent);
        while self.flight.front().is_some_and(|(end, _)| *end <= offset) {
            if let Some((_, count)) = self.flight.pop_front() {
                self.flight_bytes -= count;
            }
        }
        while let Some(front) = self.segments.front_mut() {
            let part = front.to.min(offset).saturating_sub(front.from);
            match front.kind {
                Kind::Data { .. } => {
                    self.bytes.drain(..part as usize);
                    self.sent_bytes -= part as usize;
                    front.from += part;
                }
                // A gap is known whole or not at all.
                Kind::Gap { .. } if front.to <= offset && !(self.open && front.to == self.end) => front.from = front.to,
                Kind::Gap { .. } => {}
            }
            if front.from < front.to || (self.open && front.to == self.end) {
                break;
            }
            self.segments.pop_front();
            self.sent_segment = self.sent_segment.saturating_sub(1);
        }
        if self.bytes.is_empty() && self.bytes.capacity() > OUTPUT_MAX {
            self.bytes.shrink_to(4096);
        }
    }

    /// Everything unacknowledged, for the last words of an init without an agent, and the offset behind it.
    pub fn drain(&mut self) -> (Vec<(Next, Vec<u8>)>, u64) {
        self.close_gap();
        self.rewind();
        let (mut all, mut bytes) = (Vec::new(), Vec::new());
        while let Some(next) = self.next(&mut bytes) {
            let taken = match next {
                Next::Data { .. } => std::mem::take(&mut bytes),
                Next::Gap { .. } => Vec::new(),
            };
            all.push((next, taken));
        }
        self.segments.clear();
        self.bytes.clear();
        self.rewind();
        (all, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that takes everything and checks that nothing is missing or doubled.
    #[derive(Default)]
    struct Reader {
        at: u64,
        bytes: Vec<u8>,
        gaps: Vec<(u64, u64)>,
    }

    impl Reader {
        fn take(&mut self, buf: &mut StreamBuf) {
            let mut out = Vec::new();
            while let Some(next) = buf.next(&mut out) {
                match next {
                    Next::Data { offset, .. } => {
                        assert!(offset <= self.at, "hole between {} and {offset}", self.at);
                        let known = (self.at - offset) as usize;
                        if known < out.len() {
                            self.bytes.extend_from_slice(&out[known..]);
                            self.at = offset + out.len() as u64;
                        }
                    }
                    Next::Gap { from, to, .. } => {
                        assert!(from <= self.at, "hole between {} and {from}", self.at);
                        if to > self.at {
                            self.gaps.push((self.at, to));
                            self.at = to;
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_acknowledged_goes_again() {
        let mut buf = StreamBuf::default();
        buf.push(b"one\n", 1);
        buf.push(b"two\n", 10_000_000);
        let mut out = Vec::new();
        assert_eq!(buf.next(&mut out), Some(Next::Data { offset: 0, time: 1 }));
        assert_eq!(out, b"one\n");
        assert_eq!(buf.next(&mut out), Some(Next::Data { offset: 4, time: 10_000_000 }));
        assert_eq!(buf.next(&mut out), None);
        assert_eq!(buf.in_flight(), (2, 8));
        buf.ack(2);
        assert_eq!(buf.in_flight(), (2, 8), "half a frame is still on its way");
        buf.rewind();
        let mut reader = Reader { at: 2, ..Reader::default() };
        reader.take(&mut buf);
        assert_eq!(reader.bytes, b"e\ntwo\n");
        buf.push(b"three\n", 10_000_001);
        reader.take(&mut buf);
        assert_eq!(reader.bytes, b"e\ntwo\nthree\n");
        buf.ack(1_000_000);
        assert!(buf.is_empty());
        assert_eq!((buf.room(), buf.in_flight()), (STREAM_BUFFER, (0, 0)));
    }

    #[test]
    fn acknowledging_what_was_never_sent_loses_nothing() {
        let mut buf = StreamBuf::default();
        buf.push(b"one\n", 1);
        buf.ack(4);
        let mut reader = Reader::default();
        reader.take(&mut buf);
        assert_eq!(reader.bytes, b"one\n");
    }

    #[test]
    fn a_gap_begins_with_a_whole_line() {
        let mut buf = StreamBuf::default();
        buf.push(b"whole\nha", 1);
        buf.push(b"lf", 20_000_000);
        assert_eq!(buf.open_gap(30_000_000), b"half");
        buf.grow_gap(5, 31_000_000);
        let mut reader = Reader::default();
        reader.take(&mut buf);
        assert_eq!((reader.bytes.as_slice(), reader.gaps.len()), (&b"whole\n"[..], 0), "an open gap is not told");
        buf.close_gap();
        buf.push(b"after\n", 40_000_000);
        reader.take(&mut buf);
        assert_eq!(reader.gaps, [(6, 15)]);
        assert_eq!(reader.bytes, b"whole\nafter\n");
        // A second gap before anything was acknowledged.
        assert_eq!(buf.open_gap(50_000_000), b"");
        buf.grow_gap(3, 50_000_001);
        buf.close_gap();
        let mut again = Reader::default();
        again.take(&mut buf);
        assert_eq!(again.gaps, [(6, 15), (21, 24)]);
        buf.ack(15);
        buf.ack(24);
        assert!(buf.is_empty());
        buf.push(b"x", 60_000_000);
        again.take(&mut buf);
        assert_eq!(again.at, 25);
    }

    #[test]
    fn last_words_are_everything_that_is_not_acknowledged() {
        let mut buf = StreamBuf::default();
        buf.push(b"one\n", 1);
        buf.push(b"two\nthr", 20_000_000);
        let mut out = Vec::new();
        while buf.next(&mut out).is_some() {}
        buf.ack(6);
        assert_eq!(buf.open_gap(30_000_000), b"thr");
        buf.grow_gap(3, 31_000_000);
        let gap = Next::Gap { from: 8, to: 14, since: 30_000_000, until: 31_000_000 };
        let data = (Next::Data { offset: 6, time: 20_000_000 }, b"o\n".to_vec());
        assert_eq!(buf.drain(), (vec![data, (gap, Vec::new())], 14));
        assert!(buf.is_empty());
    }

    #[test]
    fn a_gap_of_nothing_is_none() {
        let mut buf = StreamBuf::default();
        buf.push(b"a\n", 1);
        assert_eq!(buf.open_gap(2), b"");
        buf.close_gap();
        let mut reader = Reader::default();
        reader.take(&mut buf);
        assert_eq!((reader.at, reader.gaps.len()), (2, 0));
    }

    /// A long random life: reads, sends, partial acknowledgements, lost connections, gaps.
    #[test]
    fn nothing_is_lost_or_doubled_in_a_long_life() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        for _ in 0..200 {
            let mut buf = StreamBuf::default();
            let mut reader = Reader::default();
            let (mut written, mut spilled) = (Vec::new(), Vec::new());
            let mut clock = 0;
            for _ in 0..300 {
                clock += random(3_000_000);
                match random(10) {
                    0..=4 => {
                        let line: Vec<u8> = (0..random(400)).map(|_| b"ab\n"[random(3) as usize]).collect();
                        if buf.is_gap_open() {
                            buf.grow_gap(line.len(), clock);
                            spilled.extend_from_slice(&line);
                            if random(3) == 0 {
                                buf.close_gap();
                            }
                        } else {
                            buf.push(&line, clock);
                        }
                        written.extend_from_slice(&line);
                    }
                    5 | 6 => reader.take(&mut buf),
                    7 => buf.ack(reader.at - random(reader.at + 1).min(50)),
                    8 => buf.rewind(),
                    _ if !buf.is_gap_open() && random(4) == 0 => {
                        // A restarted agent knows only what it acknowledged; here it acknowledged all it has.
                        reader.take(&mut buf);
                        buf.ack(reader.at);
                        let moved = buf.open_gap(clock);
                        assert!(moved.is_empty(), "what was acknowledged does not move");
                    }
                    _ => {}
                }
            }
            if buf.is_gap_open() {
                buf.close_gap();
            }
            reader.take(&mut buf);
            buf.ack(reader.at);
            assert!(buf.is_empty());
            assert_eq!(reader.at as usize, written.len());
            let gap_bytes: u64 = reader.gaps.iter().map(|(a, b)| b - a).sum();
            assert_eq!(gap_bytes as usize, spilled.len());
            let mut expected = written.clone();
            for (from, to) in reader.gaps.iter().rev() {
                expected.drain(*from as usize..*to as usize);
            }
            assert_eq!(reader.bytes, expected);
        }
    }
}
