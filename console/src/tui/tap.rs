//! Messages of a deployment as they pass: the newest of them, and which are shown. Bounded: what comes faster than it is
//! read pushes the oldest out.

use std::collections::VecDeque;

use super::logbuf::Pattern;
use super::port::Trouble;
use crate::link::Frame;

/// Messages that are kept.
const FRAMES: usize = 5_000;
/// Bytes of them.
const BYTES: usize = 16 << 20;

/// A message, or how many are missing.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Counts all that came.
    pub number: u64,
    /// It.
    pub frame: Frame,
}

/// Messages that are looked at.
#[derive(Debug)]
pub struct Tap {
    /// Whose.
    pub name: String,
    /// The flow that tells of them; `None`: it has ended.
    pub flow: Option<u64>,
    /// The oldest first.
    entries: VecDeque<Entry>,
    bytes: usize,
    /// How many came.
    pub total: u64,
    /// How many passed too fast to be told.
    pub lost: u64,
    /// Numbers of those that the filter lets through.
    shown: VecDeque<u64>,
    filter: Option<Pattern>,
    /// The newest one stays on the screen.
    pub follow: bool,
    /// The one under the cursor, when not following.
    pub cursor: Option<u64>,
    /// Why no more come.
    pub trouble: Option<Trouble>,
}

impl Tap {
    /// Nothing has passed yet.
    pub fn new(name: String, flow: Option<u64>) -> Self {
        Self {
            name,
            flow,
            entries: VecDeque::new(),
            bytes: 0,
            total: 0,
            lost: 0,
            shown: VecDeque::new(),
            filter: None,
            follow: true,
            cursor: None,
            trouble: None,
        }
    }

    /// Takes messages in.
    pub fn add(&mut self, frames: Vec<Frame>) {
        for frame in frames {
            self.lost += frame.lost;
            self.total += 1;
            self.bytes += weight(&frame);
            let number = self.total;
            if wants(self.filter.as_ref(), &frame) {
                self.shown.push_back(number);
            }
            self.entries.push_back(Entry { number, frame });
        }
        while self.entries.len() > FRAMES || (self.bytes > BYTES && self.entries.len() > 1) {
            if let Some(gone) = self.entries.pop_front() {
                self.bytes -= weight(&gone.frame);
                if self.shown.front() == Some(&gone.number) {
                    self.shown.pop_front();
                }
            }
        }
    }

    /// How many are shown.
    pub fn len(&self) -> usize {
        self.shown.len()
    }

    /// How many are kept.
    pub fn kept(&self) -> usize {
        self.entries.len()
    }

    /// One of those that are shown, by its place.
    pub fn get(&self, at: usize) -> Option<&Entry> {
        let number = self.shown.get(at)?;
        let first = self.entries.front()?.number;
        self.entries.get(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    /// The place of the one under the cursor.
    pub fn at(&self) -> usize {
        let last = self.shown.len().saturating_sub(1);
        match self.cursor {
            Some(number) if !self.follow => self.shown.partition_point(|n| *n < number).min(last),
            _ => last,
        }
    }

    /// The one under the cursor.
    pub fn current(&self) -> Option<&Entry> {
        self.get(self.at())
    }

    /// Moves the cursor; at the end it follows again.
    pub fn go(&mut self, by: isize) {
        let last = self.shown.len().saturating_sub(1);
        let to = self.at().saturating_add_signed(by).min(last);
        self.follow = by > 0 && to == last;
        self.cursor = self.shown.get(to).copied();
    }

    /// Stands still, or follows; what passes is kept all the same.
    pub fn freeze(&mut self, still: bool) {
        self.cursor = self.shown.get(self.at()).copied();
        self.follow = !still;
    }

    /// What is shown.
    pub fn filter(&self) -> Option<&Pattern> {
        self.filter.as_ref()
    }

    /// Says what is shown.
    pub fn set_filter(&mut self, filter: Option<Pattern>) {
        self.filter = filter;
        let filter = self.filter.as_ref();
        self.shown = self.entries.iter().filter(|e| wants(filter, &e.frame)).map(|e| e.number).collect();
    }

    /// What is shown as lines of JSON, and how many.
    pub fn saved(&self) -> (Vec<u8>, usize) {
        let mut out = Vec::new();
        for i in 0..self.len() {
            if let Some(line) = self.get(i).and_then(|e| serde_json::to_string(&e.frame).ok()) {
                out.extend_from_slice(line.as_bytes());
                out.push(b'\n');
            }
        }
        (out, self.len())
    }
}

fn weight(frame: &Frame) -> usize {
    frame.message.len() + frame.method.len() + frame.caller.len() + frame.session.len() + frame.id.len() + 200
}

/// By method, caller and text; gaps are always shown.
fn wants(filter: Option<&Pattern>, frame: &Frame) -> bool {
    frame.lost > 0
        || filter.is_none_or(|f| f.wants(format!("{} {} {}", frame.method, frame.caller, frame.message).as_bytes()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::tui) fn frame(n: u64, from_client: bool, method: &str, message: &str) -> Frame {
        Frame {
            time: Some(crate::tui::demo::at(n as i64)),
            from_client,
            caller: "ada".into(),
            session: "s1".into(),
            method: method.into(),
            id: n.to_string(),
            took_ms: if from_client { 0.0 } else { 12.34 },
            size: message.len() as u64,
            message: message.into(),
            cut: false,
            cached: false,
            lost: 0,
        }
    }

    #[test]
    fn the_newest_are_kept_and_the_cursor_stays_on_its_own() {
        let mut tap = Tap::new("time".into(), Some(1));
        tap.add((0..10).map(|n| frame(n, n % 2 == 0, "tools/call", &format!("n{n}"))).collect());
        assert_eq!((tap.len(), tap.at()), (10, 9));
        tap.go(-3);
        assert_eq!(tap.current().unwrap().frame.message, "n6");
        tap.add((10..FRAMES as u64 + 5).map(|n| frame(n, true, "ping", &format!("n{n}"))).collect());
        assert_eq!((tap.len(), tap.total), (FRAMES, FRAMES as u64 + 5));
        assert_eq!(tap.current().unwrap().frame.message, "n6", "what came in does not move it");
        tap.set_filter(Pattern::parse("tools/").unwrap());
        assert_eq!((tap.len(), tap.current().unwrap().frame.message.as_str()), (5, "n6"));
        tap.set_filter(None);
        tap.go(isize::MAX);
        assert!(tap.follow);
        tap.freeze(true);
        let at = tap.current().unwrap().number;
        tap.add(vec![frame(1, true, "ping", "new")]);
        assert_eq!(tap.current().unwrap().number, at);
        tap.freeze(false);
        assert_eq!(tap.current().unwrap().frame.message, "new");
        assert_eq!(tap.saved().1, FRAMES);
    }

    #[test]
    fn memory_is_bounded_by_bytes() {
        let mut tap = Tap::new("time".into(), None);
        let big = "x".repeat(1 << 20);
        tap.add((0..100).map(|n| frame(n, true, "m", &big)).collect());
        assert!(tap.kept() <= 16 && tap.len() == tap.kept(), "{}", tap.kept());
        let gap = Frame { lost: 7, ..frame(1, true, "", "") };
        tap.set_filter(Pattern::parse("nothing").unwrap());
        tap.add(vec![gap]);
        assert_eq!((tap.len(), tap.lost), (1, 7));
    }
}
