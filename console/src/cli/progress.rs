//! An operation on stderr while it runs: a live line on a terminal, plain lines otherwise, nothing for scripts that
//! read JSON errors there.

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::Instant;

use super::Ctx;
use super::output::{self, Paint, paint};
use super::{text, time};
use crate::link::{Event, What};

/// Output lines kept for the moment a step fails.
const KEPT: usize = 30;

/// How much is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Live,
    Plain,
    Silent,
}

/// The view of one operation.
pub struct Progress {
    mode: Mode,
    colour: bool,
    width: usize,
    step: Option<(String, Instant)>,
    last: String,
    kept: VecDeque<String>,
    drawn: bool,
    turn: usize,
}

impl Progress {
    /// Chooses by where stderr goes and by `-o`.
    pub fn new(ctx: &Ctx) -> Self {
        let mode = match (ctx.term.stderr, ctx.format.is_data()) {
            (true, _) => Mode::Live,
            (false, false) => Mode::Plain,
            (false, true) => Mode::Silent,
        };
        Self {
            mode,
            colour: ctx.term.colour_err,
            width: ctx.term.width,
            step: None,
            last: String::new(),
            kept: VecDeque::new(),
            drawn: false,
            turn: 0,
        }
    }

    /// A line for a person.
    pub fn say(&mut self, line: &str) {
        if self.mode != Mode::Silent {
            self.clear();
            output::note(&text::for_terminal(line.as_bytes(), false));
        }
    }

    /// A share of something long, shown in place.
    pub fn share(&mut self, what: &str, done: u64, total: u64) {
        self.step.get_or_insert_with(|| (what.to_owned(), Instant::now()));
        self.last = format!("{} of {}", time::size(done), time::size(total));
        self.tick();
    }

    /// Takes an event in.
    pub fn event(&mut self, event: &Event) {
        match &event.what {
            What::Step { name, state, message, elapsed_ms } => self.on_step(name, state, message, *elapsed_ms),
            What::Output { stream, line } => self.on_output(stream, line),
            What::Note(note) => self.say(note),
            What::Done(_) => self.clear(),
        }
    }

    fn on_step(&mut self, name: &str, state: &str, message: &str, elapsed_ms: u64) {
        if state == "started" {
            self.kept.clear();
            self.last = message.to_owned();
            self.step = Some((name.to_owned(), Instant::now()));
            match self.mode {
                Mode::Plain if message.is_empty() => self.say(&format!("[{name}] started")),
                Mode::Plain => self.say(&format!("[{name}] started: {message}")),
                _ => self.tick(),
            }
            return;
        }
        self.step = None;
        self.last.clear();
        let mut line = match self.mode {
            Mode::Plain => format!("[{name}] {state}"),
            _ => name.to_owned(),
        };
        if elapsed_ms > 0 {
            line.push_str(&format!(" ({})", time::took(elapsed_ms)));
        }
        if !message.is_empty() {
            line.push_str(&format!(": {message}"));
        }
        match self.mode {
            Mode::Silent => {}
            Mode::Plain => self.say(&line),
            Mode::Live => {
                self.clear();
                let (mark, how) = match state {
                    "finished" => ("ok    ", Paint::Good),
                    "failed" => ("failed", Paint::Bad),
                    _ => ("-     ", Paint::Dim),
                };
                let line = text::for_terminal(line.as_bytes(), false);
                output::note(&format!("{} {line}", paint(mark, how, self.colour)));
                // the live line showed only one at a time
                if state == "failed" {
                    for kept in std::mem::take(&mut self.kept) {
                        output::note(&format!("       {}", paint(&kept, Paint::Dim, self.colour)));
                    }
                }
            }
        }
    }

    fn on_output(&mut self, stream: &str, line: &str) {
        match self.mode {
            Mode::Silent => {}
            Mode::Plain => self.say(&format!("[{stream}] {line}")),
            Mode::Live => {
                let line = text::for_terminal(line.as_bytes(), false);
                if self.kept.len() == KEPT {
                    self.kept.pop_front();
                }
                self.kept.push_back(line.clone());
                self.last = line;
            }
        }
    }

    /// Draws the live line again; at most five times a second.
    pub fn tick(&mut self) {
        if self.mode != Mode::Live {
            return;
        }
        let Some((name, since)) = &self.step else { return };
        let spinner = ['|', '/', '-', '\\'][self.turn % 4];
        self.turn += 1;
        let line = format!("{spinner}      {name} {}  {}", time::span(since.elapsed()), text::one_line(&self.last));
        let line = text::fit(&line, self.width.saturating_sub(1));
        let mut err = std::io::stderr().lock();
        drop(write!(err, "\r\x1b[2K{line}").and_then(|()| err.flush()));
        self.drawn = true;
    }

    /// Takes the live line away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let mut err = std::io::stderr().lock();
            drop(write!(err, "\r\x1b[2K").and_then(|()| err.flush()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
