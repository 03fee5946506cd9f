//! An operation as it goes on: its steps with their times, and the output of each. Bounded, whatever a build prints.

use std::collections::VecDeque;

use jiff::Timestamp;

use crate::link::{Event, Operation, What};

/// Lines of output that are kept.
const LINES: usize = 2_000;
/// Longest line that is kept, bytes.
const LINE: usize = 4 << 10;
/// Notes that are kept.
const NOTES: usize = 100;

/// A step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// `fetch`, `scan`, `build` …
    pub name: String,
    /// `started`, `finished`, `failed` or `skipped`.
    pub state: String,
    /// One line.
    pub message: String,
    /// When it began.
    pub began: Option<Timestamp>,
    /// How long it took; 0: it goes on, or nobody says.
    pub elapsed_ms: u64,
}

/// A line of output.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Counts all lines.
    pub number: u64,
    /// The step that printed it.
    pub step: String,
    /// `build`, `stdout` or `stderr`.
    pub stream: String,
    /// It.
    pub line: String,
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct Steps {
    /// In order.
    pub steps: Vec<Step>,
    /// The newest output.
    pub output: VecDeque<Output>,
    /// Lines that there were.
    pub total: u64,
    /// Words for a person.
    pub notes: Vec<String>,
    /// It has ended.
    pub done: Option<Box<Operation>>,
    /// The newest event.
    seen: u64,
}

impl Steps {
    /// Takes an event in; one that was taken before is not taken again.
    pub fn take(&mut self, event: &Event) {
        if event.seq != 0 && event.seq <= self.seen {
            return;
        }
        self.seen = self.seen.max(event.seq);
        match &event.what {
            What::Step { name, state, message, elapsed_ms } => {
                let open = self.steps.iter_mut().rev().find(|s| s.name == *name && s.state == "started");
                match open {
                    Some(step) if state != "started" => {
                        (step.state, step.elapsed_ms) = (state.clone(), *elapsed_ms);
                        if !message.is_empty() {
                            step.message.clone_from(message);
                        }
                    }
                    _ => {
                        let (name, state, message) = (name.clone(), state.clone(), message.clone());
                        self.steps.push(Step { name, state, message, began: event.time, elapsed_ms: *elapsed_ms });
                    }
                }
            }
            What::Output { stream, line } => {
                let step = self.steps.last().map(|s| s.name.clone()).unwrap_or_default();
                let mut end = line.len().min(LINE);
                while !line.is_char_boundary(end) {
                    end -= 1;
                }
                self.total += 1;
                let line = line[..end].to_owned();
                self.output.push_back(Output { number: self.total, step, stream: stream.clone(), line });
                if self.output.len() > LINES {
                    self.output.pop_front();
                }
            }
            What::Note(note) => {
                self.notes.push(note.clone());
                let over = self.notes.len().saturating_sub(NOTES);
                self.notes.drain(..over);
            }
            What::Done(done) => self.done = Some(done.clone()),
        }
    }

    /// The step that failed.
    pub fn failed(&self) -> Option<&Step> {
        self.steps.iter().rev().find(|s| s.state == "failed")
    }

    /// How the scan ended, in its own words.
    pub fn verdict(&self) -> Option<&str> {
        self.steps.iter().rev().find(|s| s.name == "scan" && s.state != "started").map(|s| s.message.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, what: What) -> Event {
        Event { seq, time: None, what }
    }

    fn step(seq: u64, name: &str, state: &str) -> Event {
        let (name, state) = (name.to_owned(), state.to_owned());
        event(seq, What::Step { name, state, message: format!("m{seq}"), elapsed_ms: seq })
    }

    #[test]
    fn steps_open_and_close_and_output_belongs_to_them() {
        let mut steps = Steps::default();
        let line = |n| What::Output { stream: "build".into(), line: format!("{n}{}", "ä".repeat(4_000)) };
        for e in [step(1, "fetch", "started"), step(2, "fetch", "finished"), step(3, "build", "started")] {
            steps.take(&e);
        }
        for n in 0..3_000 {
            steps.take(&event(4 + n, line(n)));
        }
        // A follower that begins anew tells the same again.
        steps.take(&step(1, "fetch", "started"));
        steps.take(&step(4_000, "build", "failed"));
        let names: Vec<&str> = steps.steps.iter().map(|s| s.state.as_str()).collect();
        assert_eq!(names, ["finished", "failed"]);
        assert_eq!((steps.output.len(), steps.total), (LINES, 3_000));
        assert!(steps.output[0].line.len() <= LINE && steps.output[0].step == "build");
        assert_eq!(steps.failed().map(|s| s.message.as_str()), Some("m4000"));
        assert_eq!(steps.verdict(), None);
    }
}
