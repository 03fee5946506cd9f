//! A program on a terminal of its own: what it draws is read as a terminal would, byte for byte and with the time of each.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

/// What begins a frame: synchronized output is switched on.
const FRAME: &[u8] = b"\x1b[?2026h";

/// A colour, as a program asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colour {
    /// The terminal's own.
    #[default]
    Default,
    /// Of its 256.
    Indexed(u8),
    /// Red, green and blue.
    Rgb(u8, u8, u8),
}

/// One place of the screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// What stands there; empty: nothing.
    pub text: String,
    /// Colour of the text.
    pub fore: Colour,
    /// Colour behind it.
    pub back: Colour,
    /// Both are exchanged.
    pub reversed: bool,
    /// Heavy.
    pub bold: bool,
    /// Faint.
    pub dim: bool,
    /// Slanted.
    pub italic: bool,
}

impl Cell {
    /// All but the text.
    pub fn style(&self) -> Self {
        Self { text: String::new(), ..self.clone() }
    }
}

/// What has been seen so far.
struct Seen {
    parser: vt100::Parser,
    bytes: u64,
    frames: u64,
    /// The end of what was read last, in which a frame's beginning may have been cut.
    tail: Vec<u8>,
    /// When the first byte came after it was armed.
    answered: Option<Instant>,
    armed: bool,
    /// Nothing more comes.
    ended: bool,
}

/// A terminal and the program on it.
pub struct Screen {
    child: Box<dyn Child + Send + Sync>,
    master: Box<dyn MasterPty + Send>,
    writer: Box<dyn std::io::Write + Send>,
    seen: Arc<(Mutex<Seen>, Condvar)>,
    /// When the program was started.
    pub began: Instant,
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Screen").field("pid", &self.pid()).finish_non_exhaustive()
    }
}

impl Screen {
    /// Starts `program` with `args` and exactly these variables on a terminal of `size` columns and rows.
    ///
    /// # Panics
    /// When there is no terminal to be had or the program does not start.
    pub fn start(program: &Path, args: &[&str], env: &[(&str, &str)], size: (u16, u16)) -> Self {
        let size = PtySize { cols: size.0, rows: size.1, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).expect("a pseudo-terminal");
        let mut command = CommandBuilder::new(program);
        command.args(args);
        command.env_clear();
        for (name, value) in env {
            command.env(name, value);
        }
        let mut reader = pair.master.try_clone_reader().expect("a reader");
        let writer = pair.master.take_writer().expect("a writer");
        let seen = Seen {
            parser: vt100::Parser::new(size.rows, size.cols, 0),
            bytes: 0,
            frames: 0,
            tail: Vec::new(),
            answered: None,
            armed: false,
            ended: false,
        };
        let seen = Arc::new((Mutex::new(seen), Condvar::new()));
        let began = Instant::now();
        let child = pair.slave.spawn_command(command).expect("the program starts");
        drop(pair.slave);
        let shared = seen.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let read = reader.read(&mut buffer).unwrap_or(0);
                let now = Instant::now();
                let (lock, changed) = &*shared;
                let mut seen = lock.lock().unwrap_or_else(PoisonError::into_inner);
                if read == 0 {
                    seen.ended = true;
                    changed.notify_all();
                    return;
                }
                seen.take(&buffer[..read], now);
                changed.notify_all();
            }
        });
        Self { child, master: pair.master, writer, seen, began }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The program's process.
    ///
    /// # Panics
    /// When it has none.
    pub fn pid(&self) -> u32 {
        self.child.process_id().expect("a process")
    }

    /// Types.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn keys(&mut self, keys: &str) {
        self.writer.write_all(keys.as_bytes()).and_then(|()| self.writer.flush()).expect("the terminal takes keys");
    }

    /// Another size.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn resize(&self, cols: u16, rows: u16) {
        self.seen().parser.screen_mut().set_size(rows, cols);
        self.master.resize(PtySize { cols, rows, pixel_width: 0, pixel_height: 0 }).expect("another size");
    }

    /// What is on the screen, line by line.
    pub fn text(&self) -> String {
        self.seen().parser.screen().contents()
    }

    /// What is on the screen, row by row.
    pub fn cells(&self) -> Vec<Vec<Cell>> {
        let seen = self.seen();
        let screen = seen.parser.screen();
        let (rows, columns) = screen.size();
        let colour = |colour: vt100::Color| match colour {
            vt100::Color::Default => Colour::Default,
            vt100::Color::Idx(n) => Colour::Indexed(n),
            vt100::Color::Rgb(r, g, b) => Colour::Rgb(r, g, b),
        };
        let cell = |row: u16, column: u16| {
            screen.cell(row, column).map_or_else(Cell::default, |cell| Cell {
                text: cell.contents().to_owned(),
                fore: colour(cell.fgcolor()),
                back: colour(cell.bgcolor()),
                reversed: cell.inverse(),
                bold: cell.bold(),
                dim: cell.dim(),
                italic: cell.italic(),
            })
        };
        (0..rows).map(|row| (0..columns).map(|column| cell(row, column)).collect()).collect()
    }

    /// Whether the alternate screen is shown, and whether the cursor is hidden.
    pub fn modes(&self) -> (bool, bool) {
        let seen = self.seen();
        (seen.parser.screen().alternate_screen(), seen.parser.screen().hide_cursor())
    }

    /// Bytes that were drawn so far.
    pub fn bytes(&self) -> u64 {
        self.seen().bytes
    }

    /// Frames that were drawn so far.
    pub fn frames(&self) -> u64 {
        self.seen().frames
    }

    /// Types, and answers how long it took until the first byte came.
    ///
    /// # Panics
    /// At the deadline.
    pub fn first_byte(&mut self, keys: &str, limit: Duration) -> Duration {
        {
            let mut seen = self.seen();
            (seen.armed, seen.answered) = (true, None);
        }
        let began = Instant::now();
        self.keys(keys);
        let (seen, _) = self.wait(limit, |seen| seen.answered.is_some());
        let answered = seen.answered;
        drop(seen);
        let Some(at) = answered else { panic!("{keys:?} shows nothing within {limit:?}:\n{}", self.text()) };
        at.saturating_duration_since(began)
    }

    /// Waits until the screen's text is as wanted, and answers when that was.
    ///
    /// # Panics
    /// At the deadline, with `what` and the screen.
    pub fn until(&self, what: &str, limit: Duration, mut wanted: impl FnMut(&str) -> bool) -> Instant {
        let (seen, met) = self.wait(limit, |seen| wanted(&seen.parser.screen().contents()));
        assert!(met, "not within {limit:?}: {what}\n{}", seen.parser.screen().contents());
        drop(seen);
        Instant::now()
    }

    fn wait(&self, limit: Duration, mut done: impl FnMut(&mut Seen) -> bool) -> (MutexGuard<'_, Seen>, bool) {
        let deadline = Instant::now() + limit;
        let (mut seen, changed) = (self.seen(), &self.seen.1);
        loop {
            if done(&mut seen) {
                return (seen, true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || seen.ended {
                return (seen, false);
            }
            seen = changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The program's exit code, once it has ended.
    ///
    /// # Panics
    /// At the deadline.
    pub fn ended(&mut self, limit: Duration) -> u32 {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("the program can be waited for") {
                return status.exit_code();
            }
            assert!(Instant::now() < deadline, "still there after {limit:?}:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Seen {
    fn take(&mut self, bytes: &[u8], now: Instant) {
        self.bytes += bytes.len() as u64;
        let mut joined = std::mem::take(&mut self.tail);
        joined.extend_from_slice(bytes);
        self.frames += joined.windows(FRAME.len()).filter(|w| *w == FRAME).count() as u64;
        // a frame whose beginning was counted must not be in the tail
        let keep = joined.len().min(FRAME.len() - 1);
        self.tail = joined.split_off(joined.len() - keep);
        if self.armed && self.answered.is_none() {
            (self.answered, self.armed) = (Some(now), false);
        }
        self.parser.process(bytes);
    }
}
