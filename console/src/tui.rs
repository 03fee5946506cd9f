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
mod fleet;
mod flow;
mod form;
mod keymap;
mod logbuf;
mod model;
mod plain;
mod port;
mod session;
mod settings;
mod sheet;
mod signals;
mod steps;
mod tap;
mod terminal;
#[cfg(test)]
mod tests;
mod theme;
mod update;
mod view;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

pub use deploy::read_package;
pub use flow::{Answer, Flow, Replayed, Source, Told};
pub use port::{DEPTH, Feed, LinkEvent, Port, Request, Trouble, pair};
pub use sheet::{Look, Released, Scaled, Seen};
pub use theme::Palette;

use fleet::Host;
use model::Model;
use session::Session;
use signals::{Signal, Signals};
use terminal::Terminal;
use theme::Theme;
use update::{Effect, Event, update};

/// Shortest time between two frames that no key asked for.
const FRAME: Duration = Duration::from_millis(100);
/// The same with `--slow`.
const SLOW: Duration = Duration::from_millis(500);

/// Log lines that are taken in before the next key is looked for.
const LINES: usize = 4_000;

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
    /// These colours, whatever `console.toml` says.
    pub theme: Option<Palette>,
    /// Nothing may be changed, whatever `console.toml` says.
    pub read_only: bool,
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
            theme: None,
            read_only: false,
        }
    }

    fn theme(self) -> Theme {
        let palette = self.theme.or_else(|| Palette::named("auto")).unwrap_or(Palette::Sixteen);
        Theme { colour: self.colour, ascii: self.ascii, palette }
    }
}

/// Files of its owner's that the console reads, and the one that it writes. Without a name there is none.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// `console.toml`.
    pub config: Option<PathBuf>,
    /// The state directory: what was left is in there.
    pub state: Option<PathBuf>,
}

/// The hosts, as they are called, and the streams of what they tell.
fn model_of(ports: &[Port], options: Options, size: (u16, u16)) -> Model {
    let mut model = Model::new(String::new(), options.theme(), size, Timestamp::now());
    model.hosts = ports.iter().map(|p| Host::new(p.name.clone(), p.address.clone())).collect();
    model.options = options;
    model.zone = jiff::tz::TimeZone::system();
    model
}

/// Runs the console until a person leaves it or the terminal goes away. The agents and their servers go on.
pub async fn run(ports: Vec<Port>, options: Options, files: Files) -> anyhow::Result<()> {
    anyhow::ensure!(!ports.is_empty(), "the console needs a host");
    if options.plain {
        return plain::run(ports, options, files).await;
    }
    anyhow::ensure!(terminal::is_there(), "the console needs a terminal");
    let mut terminal = Terminal::take().context("the terminal cannot be taken over")?;
    let mut model = model_of(&ports, options, terminal.size());
    let state = files.state.as_deref().map(|state| {
        let hosts: Vec<(&str, &str)> = model.hosts.iter().map(|h| (h.name.as_str(), h.address.as_str())).collect();
        session::path(state, &hosts)
    });
    let result = screens(ports, &mut model, &mut terminal, files.config, state.as_deref()).await;
    drop(terminal);
    // However it ended: a person whose terminal went away comes back, too.
    if let Some(path) = &state
        && let Err(e) = session::save(path, &Session::of(&model))
    {
        eprintln!("where you were is not remembered: {}: {e}", path.display());
    }
    result
}

async fn screens(
    ports: Vec<Port>,
    model: &mut Model,
    terminal: &mut Terminal,
    config: Option<PathBuf>,
    state: Option<&Path>,
) -> anyhow::Result<()> {
    let mut begun = Vec::new();
    let mut followed = None;
    if let Some(path) = &config {
        model.config_path = path.display().to_string();
        followed = Some(settings::follow(path));
        begun.extend(settings::take(model, sigil_config::console::load(path), true));
    }
    match state.map(session::load) {
        Some(Ok(Some(session))) => model.resume = session.restore(model),
        Some(Ok(None)) => update::tell(model, "new here? ':tour' shows you around, '?' lists the keys", false),
        Some(Err(why)) => update::tell(model, why, true),
        None => {}
    }
    let (streams, requests): (Vec<_>, Vec<_>) = ports
        .into_iter()
        .enumerate()
        .map(|(host, port)| (ReceiverStream::new(port.events).map(move |event| (host, event)), port.requests))
        .unzip();
    // One after the other in turn: a host that talks much does not keep another waiting.
    let mut events = futures::stream::select_all(streams);
    let mut keys = crossterm::event::EventStream::new();
    let mut signals = Signals::new()?;
    let _watch = Watch::begin();
    let (told, mut telling) = mpsc::channel::<(String, bool)>(16);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let least = if model.options.slow { SLOW } else { FRAME };
    let mut due = Instant::now();
    let mut linked = true;
    // Hosts whose deployments were told once.
    let mut whole = 0;
    loop {
        if model.dirty && Instant::now() >= due {
            model.dirty = false;
            terminal.paint(model).context("the terminal is gone")?;
            // A terminal that takes long to swallow a frame gets fewer.
            due = Instant::now() + least.max(terminal.slowness * 4).min(SLOW);
        }
        let merged = model.merge.due().map(|at| {
            let wait = at.duration_since(Timestamp::now());
            Instant::now() + Duration::try_from(wait).unwrap_or(Duration::ZERO)
        });
        let mut happened = Vec::new();
        tokio::select! {
            biased;
            signal = signals.next() => match signal {
                Signal::End => return Ok(()),
                Signal::Stop => {
                    terminal.suspend()?;
                    happened.push(resized(terminal));
                }
            },
            key = keys.next() => match key {
                Some(Ok(key)) => {
                    // A key is answered at once.
                    due = Instant::now();
                    happened.extend(translated(key));
                }
                // No terminal, no console.
                Some(Err(_)) | None => return Ok(()),
            },
            event = events.next(), if linked => match event {
                Some((host, event)) => {
                    // Not so many lines that a key would have to wait for them.
                    let mut lines = lines_of(&event);
                    happened.push(Event::From(host, event));
                    while lines < LINES
                        && happened.len() < DEPTH
                        && let Some(Some((host, event))) = events.next().now_or_never()
                    {
                        lines += lines_of(&event);
                        happened.push(Event::From(host, event));
                    }
                }
                None => linked = false,
            },
            Some(read) = changed(&mut followed) => happened.push(Event::Config(Box::new(read))),
            Some((text, bad)) = telling.recv() => happened.push(Event::Told(text, bad)),
            _ = second.tick() => happened.push(Event::Tick(Timestamp::now())),
            () = tokio::time::sleep_until(merged.unwrap_or(due)), if merged.is_some() => happened.push(Event::Flush),
            () = tokio::time::sleep_until(due), if model.dirty => {}
            // Nobody waits for anything: some more of a long search.
            () = std::future::ready(()), if model.is_working() => happened.push(Event::Work),
        }
        let mut effects = std::mem::take(&mut begun);
        for event in happened {
            model.now = Timestamp::now();
            effects.extend(update(model, event));
        }
        // The first whole picture does not wait for the pace of those that follow, nor does that of all hosts.
        let now_told = model.hosts.iter().filter(|host| host.complete).count();
        if now_told > whole && (whole == 0 || now_told == model.hosts.len()) {
            (whole, due) = (now_told, Instant::now());
        }
        for effect in effects {
            match effect {
                Effect::Quit => return Ok(()),
                Effect::Mouse(on) => terminal.mouse(on)?,
                Effect::Redraw => terminal.forget(),
                Effect::Suspend => {
                    terminal.suspend()?;
                    let size = resized(terminal);
                    update(model, size);
                }
                Effect::Ask(request) => {
                    for (host, request) in fleet::route(model, request) {
                        ask(model, &requests, host, request);
                    }
                }
                Effect::Page(text) => {
                    // Nothing else may read keys meanwhile.
                    drop(keys);
                    let said = terminal.page(text).await;
                    keys = crossterm::event::EventStream::new();
                    let size = resized(terminal);
                    update(model, size);
                    if let Err(e) = said {
                        update::tell(model, format!("the pager did not run: {e}"), true);
                    }
                }
                Effect::Only(host, request) => {
                    for (_, request) in fleet::route(model, request).into_iter().filter(|(h, _)| *h == host) {
                        ask(model, &requests, host, request);
                    }
                }
                // A program that may take its time, which no key waits for.
                Effect::Copy { text, what } if terminal::in_tmux() => {
                    let told = told.clone();
                    tokio::spawn(async move {
                        let (text, bad) = match terminal::copy_to_tmux(&text, &what).await {
                            Ok(text) => (text, false),
                            Err(text) => (text, true),
                        };
                        let _ = told.send((text, bad)).await;
                    });
                }
                Effect::Copy { text, what } => {
                    let (text, bad) = match terminal.copy(&text, &what) {
                        Ok(text) => (text, false),
                        Err(text) => (text, true),
                    };
                    update::tell(model, text, bad);
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

/// Asks a host. Never awaited: a link that does not take wishes must not hold up a key, or another host.
fn ask(model: &mut Model, requests: &[mpsc::Sender<Request>], host: usize, request: Request) {
    if requests.get(host).is_none_or(|r| r.try_send(request).is_err()) {
        let which = if model.several() { format!(" to {}", model.hosts[host].name) } else { String::new() };
        update::tell(model, format!("the link{which} is busy: try again"), true);
    }
}

/// The next reading of a followed file; never, when none is.
async fn changed(followed: &mut Option<settings::Followed>) -> Option<sigil_config::console::Read> {
    match followed {
        Some(followed) => followed.read.recv().await,
        None => std::future::pending().await,
    }
}

fn lines_of(event: &LinkEvent) -> usize {
    match event {
        LinkEvent::Logs { batch, .. } => batch.lines.len(),
        _ => 0,
    }
}

fn resized(terminal: &Terminal) -> Event {
    let (width, height) = terminal.size();
    Event::Resize(width, height)
}

/// Ends the process when the terminal is gone and the loop has not left by itself. The reader of keys turns for ever on a terminal that
/// answers with its end, and comes back to nobody: neither signals nor a broken write would be seen, and a core would be burnt.
struct Watch(tokio::task::JoinHandle<()>);

impl Watch {
    fn begin() -> Self {
        Self(tokio::spawn(async {
            signals::hung_up().await;
            // the usual way out keeps what is open for the next time
            tokio::time::sleep(Duration::from_secs(2)).await;
            terminal::give_back();
            // as a shell tells it of SIGHUP
            std::process::exit(129);
        }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn translated(event: crossterm::event::Event) -> Option<Event> {
    match event {
        crossterm::event::Event::Key(key) => Some(Event::Key(key)),
        crossterm::event::Event::Paste(text) => Some(Event::Paste(text)),
        crossterm::event::Event::Mouse(mouse) => match mouse.kind {
            crossterm::event::MouseEventKind::ScrollDown => Some(Event::Wheel(true)),
            crossterm::event::MouseEventKind::ScrollUp => Some(Event::Wheel(false)),
            _ => None,
        },
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
