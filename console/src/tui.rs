//! Owns: the full-screen console. Event -> update -> effects: `update` is pure, `view` only reads, everything slow
//! happens behind the [`Port`] in a task of its own.
//! May touch: the terminal, files that a person asks to save. Never: awaits the link, or shows a server's bytes as
//! they came. Tested by: `tui/tests.rs` (updates, screens at three sizes with colours), `tests/cli` in a pty.

mod clean;
mod command;
#[cfg(test)]
mod demo;
mod deploy;
mod desk;
mod flow;
mod form;
mod logbuf;
mod model;
mod plain;
mod port;
mod sheet;
mod steps;
mod tap;
mod terminal;
#[cfg(test)]
mod tests;
mod theme;
mod update;
mod view;

use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use deploy::read_package;
pub use flow::{Answer, Flow, Replayed, Source, Told};
pub use port::{DEPTH, Feed, LinkEvent, Port, Request, Trouble, pair};
pub use sheet::{Look, Released, Scaled, Seen};

use model::Model;
use terminal::Terminal;
use theme::Theme;
use update::{Effect, Event, update};

/// Shortest time between two frames that no key asked for.
const FRAME: Duration = Duration::from_millis(100);
/// The same with `--slow`.
const SLOW: Duration = Duration::from_millis(500);

/// How the console looks and behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Colours are welcome.
    pub colour: bool,
    /// Only characters of ASCII.
    pub ascii: bool,
    /// No alternate screen, no boxes: appended lines.
    pub plain: bool,
    /// At most two frames a second.
    pub slow: bool,
}

impl Options {
    /// From flags, `NO_COLOR`, `ACCESSIBLE` and the locale.
    pub fn new(ascii: bool, plain: bool, slow: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        Self {
            colour: !set("NO_COLOR"),
            ascii: ascii || !terminal::is_utf8(),
            plain: plain || std::env::var("ACCESSIBLE").is_ok_and(|v| v == "1"),
            slow,
        }
    }

    fn theme(self) -> Theme {
        Theme { colour: self.colour, ascii: self.ascii }
    }
}

/// Runs the console until a person leaves it or the terminal goes away. The agent and its servers go on.
pub async fn run(port: Port, options: Options) -> anyhow::Result<()> {
    if options.plain {
        return plain::run(port, options).await;
    }
    anyhow::ensure!(terminal::is_there(), "the console needs a terminal");
    let mut terminal = Terminal::take().context("the terminal cannot be taken over")?;
    let result = screens(port, options, &mut terminal).await;
    drop(terminal);
    result
}

async fn screens(port: Port, options: Options, terminal: &mut Terminal) -> anyhow::Result<()> {
    let Port { address, mut events, requests } = port;
    let mut model = Model::new(address, options.theme(), terminal.size(), Timestamp::now());
    model.zone = jiff::tz::TimeZone::system();
    let mut keys = crossterm::event::EventStream::new();
    let mut term = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut stop = signal(SignalKind::from_raw(rustix::process::Signal::TSTP.as_raw()))?;
    let (told, mut telling) = mpsc::channel::<(String, bool)>(16);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let least = if options.slow { SLOW } else { FRAME };
    let mut due = Instant::now();
    let mut linked = true;
    loop {
        if model.dirty && Instant::now() >= due {
            model.dirty = false;
            terminal.paint(&model).context("the terminal is gone")?;
            // A terminal that takes long to swallow a frame gets fewer.
            due = Instant::now() + least.max(terminal.slowness * 4).min(SLOW);
        }
        let mut happened = Vec::new();
        tokio::select! {
            biased;
            _ = term.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = stop.recv() => {
                terminal.suspend()?;
                happened.push(resized(terminal));
            }
            key = keys.next() => match key {
                Some(Ok(key)) => {
                    // A key is answered at once.
                    due = Instant::now();
                    happened.extend(translated(key));
                }
                // No terminal, no console.
                Some(Err(_)) | None => return Ok(()),
            },
            event = events.recv(), if linked => match event {
                Some(event) => {
                    happened.push(Event::Link(event));
                    while happened.len() < DEPTH && let Ok(event) = events.try_recv() {
                        happened.push(Event::Link(event));
                    }
                }
                None => linked = false,
            },
            Some((text, bad)) = telling.recv() => happened.push(Event::Told(text, bad)),
            _ = second.tick() => happened.push(Event::Tick(Timestamp::now())),
            () = tokio::time::sleep_until(due), if model.dirty => {}
        }
        for event in happened {
            model.now = Timestamp::now();
            for effect in update(&mut model, event) {
                match effect {
                    Effect::Quit => return Ok(()),
                    Effect::Redraw => terminal.forget(),
                    Effect::Suspend => {
                        terminal.suspend()?;
                        let size = resized(terminal);
                        update(&mut model, size);
                    }
                    Effect::Ask(request) => {
                        // Never awaited: a link that does not take wishes must not hold up a key.
                        if requests.try_send(request).is_err() {
                            update::tell(&mut model, "the link is busy: try again", true);
                        }
                    }
                    Effect::Copy { text, what } => {
                        let (text, bad) = match terminal.copy(&text, &what).await {
                            Ok(text) => (text, false),
                            Err(text) => (text, true),
                        };
                        update::tell(&mut model, text, bad);
                    }
                    Effect::Save { path, text, lines } => {
                        let told = told.clone();
                        tokio::task::spawn_blocking(move || {
                            let _ = told.blocking_send(save(&path, &text, lines));
                        });
                    }
                }
            }
        }
    }
}

fn resized(terminal: &Terminal) -> Event {
    let (width, height) = terminal.size();
    Event::Resize(width, height)
}

fn translated(event: crossterm::event::Event) -> Option<Event> {
    match event {
        crossterm::event::Event::Key(key) => Some(Event::Key(key)),
        crossterm::event::Event::Paste(text) => Some(Event::Paste(text)),
        crossterm::event::Event::Resize(width, height) => Some(Event::Resize(width, height)),
        _ => None,
    }
}

/// Writes a new file; what is there is never overwritten.
fn save(path: &str, text: &[u8], lines: usize) -> (String, bool) {
    use std::io::Write as _;
    let written = std::fs::File::create_new(path).and_then(|mut file| file.write_all(text));
    match written {
        Ok(()) => (format!("{} lines saved to {path}", logbuf::thousands(lines as u64)), false),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            (format!("{path} is there already: name another"), true)
        }
        Err(e) => (format!("not saved: {path}: {e}"), true),
    }
}
