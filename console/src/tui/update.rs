//! Event -> change of the model -> effects. Nothing here draws, waits, reads a clock or touches a file.

mod actions;
mod builds;
mod deploy;
mod desk;
mod form;
mod logs;
mod overlay;
mod places;
mod policy;
mod registry;
mod releases;
mod sheet;
mod table;
mod tap;
mod tools;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use jiff::Timestamp;

use super::keymap;
use super::model::{Input, Link, Model, Overlay, Page, Purpose, Screen, Toast};
use super::port::{LinkEvent, Request};
use crate::link::What;
use crate::link::findings::Report;
pub use actions::{command_line, run, start};
pub use desk::shell;
pub use overlay::suggestions;
pub use releases::differences;
pub use sheet::cursor;
pub use tools::{command, held};

/// What happens to the console.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A key.
    Key(KeyEvent),
    /// Pasted text.
    Paste(String),
    /// The mouse wheel: down, or up.
    Wheel(bool),
    /// The terminal has another size.
    Resize(u16, u16),
    /// News from the link to a host.
    From(usize, LinkEvent),
    /// News from the link to the first host: most tests have one.
    #[cfg(test)]
    Link(LinkEvent),
    /// `console.toml` was changed.
    Config(Box<sigil_config::console::Read>),
    /// Log lines have waited long enough for those of other hosts.
    Flush,
    /// Time passes; about once a second.
    Tick(Timestamp),
    /// Nothing else happens: time for what takes long.
    Work,
    /// An effect of the console's own has ended: what to tell, and whether it failed.
    Told(String, bool),
}

/// What has to be done outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Ask the link, or the links that it is about.
    Ask(Request),
    /// Ask one host of several only.
    Only(usize, Request),
    /// Put text into the clipboard.
    Copy {
        /// The text.
        text: String,
        /// What it is, to tell.
        what: String,
    },
    /// Write a file that does not exist yet.
    Save {
        /// Where; relative to the working directory.
        path: String,
        /// What.
        text: Vec<u8>,
        /// How many lines that is, to tell.
        lines: usize,
    },
    /// Show a text in the person's pager, and come back.
    Page(Vec<u8>),
    /// The wheel scrolls from now on, or the terminal selects again.
    Mouse(bool),
    /// Give the terminal back to the shell until `fg`.
    Suspend,
    /// Draw everything anew.
    Redraw,
    /// End.
    Quit,
}

impl Effect {
    /// The same for one host only.
    pub fn only(self, host: usize) -> Self {
        match self {
            Self::Ask(request) => Self::Only(host, request),
            other => other,
        }
    }
}

/// Rows that one notch of the wheel is worth.
const WHEEL: usize = 3;
/// How long a passing word stays, seconds.
const TOAST: i64 = 6;

/// Takes an event in.
pub fn update(model: &mut Model, event: Event) -> Vec<Effect> {
    match event {
        Event::Tick(now) => tick(model, now),
        Event::Resize(width, height) => {
            model.size = (width, height);
            model.dirty = true;
            Vec::new()
        }
        Event::Told(text, bad) => {
            tell(model, text, bad);
            Vec::new()
        }
        Event::Work => {
            logs::work(model);
            Vec::new()
        }
        #[cfg(test)]
        Event::Link(event) => link(model, 0, event),
        Event::From(host, event) => {
            let event = super::fleet::named(model, host, event);
            link(model, host, event)
        }
        Event::Config(read) => super::settings::take(model, *read, false),
        Event::Flush => {
            flush(model);
            Vec::new()
        }
        Event::Paste(text) => {
            model.dirty = true;
            if model.overlay.is_none() && paste(model, &text) {
                return Vec::new();
            }
            // One line only: a pasted newline must not run a command.
            overlay::paste(model, text.lines().next().unwrap_or_default())
        }
        Event::Wheel(down) => {
            model.dirty = true;
            let key = KeyEvent::new(if down { KeyCode::Down } else { KeyCode::Up }, KeyModifiers::NONE);
            (0..WHEEL).flat_map(|_| focused(model, key)).collect()
        }
        Event::Key(key) if key.kind == KeyEventKind::Release => Vec::new(),
        Event::Key(key) => {
            model.dirty = true;
            keyed(model, key)
        }
    }
}

/// The first words to somebody who has no state yet.
pub fn tour(model: &mut Model) {
    let lines = [
        "This screen lists what runs on your hosts; it follows by itself.",
        "",
        "j k      move, Space marks, / filters, S sorts",
        "Enter    the selected deployment in full; Esc comes back",
        "l        its logs; several marked: merged by time",
        "1 to 0   the other screens: health, scaling, secrets, access …",
        "r s x D  restart, scale, stop, delete; each asks first,",
        "         and u takes a stop or a deletion back for 5 s",
        ":        commands by name; Tab completes",
        "H        what you did here, as command lines",
        "?        all keys of the screen, with the command line of each",
        "q        leaves; servers keep running",
        "",
        "Keys and colours are yours: ':config' says where.   Esc closes.",
    ];
    let text = lines.iter().map(|l| (*l).to_owned()).collect();
    model.overlay = Some(Overlay::Line { title: "Welcome to Sigil".to_owned(), text, scroll: 0 });
}

/// Leaves a word at the bottom for a while.
pub fn tell(model: &mut Model, text: impl Into<String>, bad: bool) {
    let until = Timestamp::from_second(model.now.as_second() + TOAST).unwrap_or(model.now);
    model.toast = Some(Toast { text: text.into(), bad, until });
    model.dirty = true;
}

fn tick(model: &mut Model, now: Timestamp) -> Vec<Effect> {
    model.now = now;
    if model.toast.as_ref().is_some_and(|t| t.until <= now) {
        model.toast = None;
        model.dirty = true;
    }
    // Only what shows seconds moves by itself: an idle console writes nothing.
    let relative = model.logs.as_ref().is_some_and(|l| l.time == super::model::TimeMode::Relative);
    let counting = super::view::scaling::counts_down(model);
    let calling = model.screen() == Screen::Call && model.desk.call.as_ref().is_some_and(|c| c.flow.is_some());
    let down = model.hosts.iter().any(|h| matches!(h.link, Link::Down { .. }));
    let moving = (relative && model.screen() == Screen::Logs) || counting || calling;
    if down || !model.held.is_empty() || moving {
        model.dirty = true;
    }
    let mut effects = actions::release(model);
    // A page of something that changes without a delta of its own (steps, replicas) is asked for again.
    let busy = |name: &str| {
        model.asked_of(name).is_some()
            || model.fleet.values().any(|d| d.name == name && matches!(d.state.as_str(), "building" | "starting"))
    };
    if model.screen() == Screen::Detail
        && let Some(page) = &model.page
        && model.host_of(&page.name).is_up()
        && now.as_second() - page.asked_at.as_second() >= 2
        && busy(&page.name)
    {
        effects.extend(fetch(model));
        return effects;
    }
    effects.extend(sheet::tick(model));
    effects.extend(policy::tick(model));
    effects
}

/// Shows log lines that have waited for those of other hosts.
fn flush(model: &mut Model) {
    let Some(batch) = model.merge.take(model.now) else { return };
    if let Some(logs) = model.logs.as_mut() {
        logs.buffer.add(batch);
        model.dirty |= model.screens.last() == Some(&Screen::Logs);
    }
}

/// Asks again for the page that is shown.
fn fetch(model: &mut Model) -> Option<Effect> {
    let page = model.page.as_mut()?;
    page.asked_at = model.now;
    Some(Effect::Ask(Request::Detail { name: page.name.clone() }))
}

/// Takes news of a host in, with its name in front of its deployments'.
pub fn link(model: &mut Model, from: usize, event: LinkEvent) -> Vec<Effect> {
    match event {
        LinkEvent::Connected { info, rtt } => {
            let offset = info.now.map_or(0, |now| now.as_second() - model.now.as_second());
            // A second or two is the way here, not the clock.
            let host = &mut model.hosts[from];
            host.clock_offset = if offset.abs() > 2 { offset } else { 0 };
            host.info = Some(*info);
            host.up_since = Some(model.now);
            host.link = Link::Up { rtt_ms: super::view::step(rtt) };
            model.dirty = true;
            let mut effects = logs::joined(model, from);
            // Where one was the last time, unless one has gone elsewhere since.
            if let Some(place) = model.resume.take().filter(|_| model.visits.len() == 1 && model.overlay.is_none()) {
                let from = model.place();
                effects.extend(places::open(model, place));
                places::visited(model, from);
                return effects;
            }
            if model.screen() == Screen::Detail {
                effects.extend(fetch(model));
            } else {
                effects.extend(sheet::ask_now(model));
            }
            return effects;
        }
        LinkEvent::Rtt(rtt) => {
            let up = Link::Up { rtt_ms: super::view::step(rtt) };
            let host = &mut model.hosts[from];
            if host.is_up() && host.link != up {
                host.link = up;
                model.dirty = true;
            }
        }
        LinkEvent::Disconnected { trouble, retry_in } => {
            let host = &mut model.hosts[from];
            let since = match &host.link {
                Link::Down { since, .. } => *since,
                _ => model.now,
            };
            let retry_at = model.now.checked_add(jiff::SignedDuration::try_from(retry_in).unwrap_or_default());
            host.link = Link::Down { trouble, since, retry_at: retry_at.unwrap_or(model.now) };
            host.up_since = None;
            model.dirty = true;
        }
        LinkEvent::Fleet(update) => return table::fleet(model, from, update),
        LinkEvent::Detail { name, result } => {
            if let Some(page) = model.page.as_mut().filter(|p| p.name == name) {
                match result {
                    Ok(detail) => (page.detail, page.trouble) = (Some(*detail), None),
                    Err(trouble) => page.trouble = Some(trouble),
                }
                model.dirty |= model.screens.last() == Some(&Screen::Detail);
            }
        }
        LinkEvent::Looked { look, result } => sheet::looked(model, from, look, result),
        LinkEvent::Logs { watch, batch } => {
            let several = model.several();
            if let Some(logs) = model.logs.as_mut().filter(|l| l.watch == watch) {
                (logs.started, logs.lost) = (true, None);
                if several && logs.names.len() != 1 {
                    model.merge.add(batch, model.now);
                    flush(model);
                } else {
                    logs.buffer.add(batch);
                    model.dirty |= model.screens.last() == Some(&Screen::Logs);
                }
            }
        }
        LinkEvent::LogsLost { watch, why } => {
            let host = model.several().then(|| model.hosts[from].name.clone());
            if let Some(logs) = model.logs.as_mut().filter(|l| l.watch == watch) {
                logs.lost = Some(host.map_or(why.clone(), |host| format!("{host}: {why}")));
                model.dirty = true;
            }
        }
        LinkEvent::LogsBack { watch } => {
            if let Some(logs) = model.logs.as_mut().filter(|l| l.watch == watch) {
                (logs.lost, logs.started) = (None, true);
                model.dirty = true;
            }
        }
        LinkEvent::LogsEnded { watch, trouble } => {
            logs::ended(model, from, watch, trouble);
        }
        LinkEvent::Flow { flow, told } => return desk::told(model, flow, told),
        LinkEvent::FlowEnded { flow, trouble } => return desk::ended(model, flow, trouble),
        LinkEvent::Accepted { change, result } => {
            model.dirty = true;
            desk::accepted(model, change, &result);
            match result {
                Ok(operation) => {
                    if let Some(asked) = model.asked.get_mut(&change) {
                        asked.operation = Some(operation.id);
                    }
                }
                Err(trouble) => {
                    let name = model.asked.remove(&change).map(|a| a.name).unwrap_or_default();
                    tell(model, format!("{name}: {}", joined(&trouble.what, &trouble.hint)), true);
                }
            }
        }
        LinkEvent::Operation { change, event } => {
            model.dirty = true;
            desk::happened(model, change, &event);
            let Some(asked) = model.asked.get_mut(&change) else { return Vec::new() };
            if let What::Done(done) = &event.what {
                let name = asked.name.clone();
                let done = done.clone();
                model.asked.remove(&change);
                if done.kind == "scan"
                    && let Some(report) = done.result.as_ref().and_then(Report::read)
                {
                    model.reports.insert(name.clone(), report);
                    sheet::settle(model);
                }
                let text = match &done.error {
                    Some(problem) => {
                        format!("{name}: {} failed: {}", done.kind, joined(&problem.message, &problem.hint))
                    }
                    None if done.summary.is_empty() => format!("{name}: {} {}", done.kind, done.state),
                    None => format!("{name}: {}", done.summary),
                };
                tell(model, text, done.state != "succeeded");
                if model.screen() == Screen::Detail {
                    return fetch(model).into_iter().collect();
                }
            } else if !matches!(event.what, What::Output { .. }) {
                asked.events.push(event);
                // The newest are enough for a page.
                let over = asked.events.len().saturating_sub(50);
                asked.events.drain(..over);
            }
        }
    }
    Vec::new()
}

/// 'What. What to do.' in one line.
pub fn joined(what: &str, hint: &str) -> String {
    if hint.is_empty() { what.to_owned() } else { format!("{what} - {hint}") }
}

fn keyed(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    // From here on there are only the keys of the table, whatever the owner made of them.
    let (stack, typing) = keymap::holding(model);
    let Some(key) = model.keymap.translate(stack, typing, key) else { return Vec::new() };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if control => return actions::interrupt(model),
        KeyCode::Char('z') if control => return vec![Effect::Suspend],
        KeyCode::Char('l') if control => return vec![Effect::Redraw],
        _ => {}
    }
    let from = model.place();
    let mut effects = focused(model, key);
    places::visited(model, from);
    effects.extend(desk::settle(model));
    effects
}

/// A key for what lies on top, or for the screen.
fn focused(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    if model.overlay.is_some() {
        return overlay::key(model, key);
    }
    // What can be typed into is asked first: there a digit is a digit.
    let own = match model.screen() {
        Screen::Call => tools::call_key(model, key),
        Screen::Policy => policy::key(model, key),
        Screen::Deploy => deploy::key(model, key),
        _ => None,
    };
    if let Some(effects) = own {
        return effects;
    }
    if let Some(effects) = places::key(model, key) {
        return effects;
    }
    if let Some(effects) = row_key(model, key) {
        return effects;
    }
    match key.code {
        KeyCode::Char('?') => {
            model.overlay = Some(Overlay::Help { scroll: 0 });
            return Vec::new();
        }
        KeyCode::Char(':') => {
            ask(model, Purpose::Command, "");
            return Vec::new();
        }
        KeyCode::Char('/') if model.screen() != Screen::Detail => {
            let filter = match model.screen() {
                // one more beside those that there are
                Screen::Logs => None,
                Screen::Table => model.table.filter.as_ref().map(|f| f.text.clone()),
                Screen::Tap => model.desk.tap.as_ref().and_then(|t| t.filter().map(|f| f.text.clone())),
                _ => model.sheet().and_then(|s| s.filter.as_ref().map(|f| f.text.clone())),
            };
            ask(model, Purpose::Filter, &filter.unwrap_or_default());
            return Vec::new();
        }
        KeyCode::Char('q') if model.screens.len() == 1 => return actions::interrupt(model),
        KeyCode::Char('H') => {
            actions::history(model);
            return Vec::new();
        }
        KeyCode::Char('M') => {
            model.mouse = !model.mouse;
            let words = if model.mouse { "the wheel scrolls; Shift selects" } else { "the terminal selects" };
            tell(model, words, false);
            return vec![Effect::Mouse(model.mouse)];
        }
        KeyCode::Char('u') if !model.held.is_empty() => {
            actions::take_back(model);
            return Vec::new();
        }
        KeyCode::Char('R') if !model.hosts.iter().all(super::fleet::Host::is_up) => {
            let mut effects = vec![Effect::Ask(Request::Reconnect)];
            effects.extend(sheet::ask_now(model));
            return effects;
        }
        KeyCode::Esc | KeyCode::Backspace | KeyCode::Char('q') => return back(model, key.code),
        _ => {}
    }
    match model.screen() {
        Screen::Table => table::key(model, key),
        Screen::Detail => page(model, key),
        Screen::Logs => logs::key(model, key),
        Screen::Tap => tap::key(model, key),
        Screen::Call | Screen::Policy | Screen::Deploy => Vec::new(),
        _ => sheet::key(model, key),
    }
}

/// Keys of screens whose rows can do something of their own; `None`: they are for every screen.
fn row_key(model: &mut Model, key: KeyEvent) -> Option<Vec<Effect>> {
    let screen = model.screen();
    let mine = matches!(
        screen,
        Screen::Tools
            | Screen::Registry
            | Screen::Package
            | Screen::Builds
            | Screen::Build
            | Screen::Releases
            | Screen::Guide
    );
    if !mine && !matches!((screen, key.code), (Screen::Scaling, KeyCode::Char('e'))) {
        return None;
    }
    // Without a link, R is to make one.
    if key.code == KeyCode::Char('R') && !matches!(model.link(), Link::Up { .. }) {
        return None;
    }
    // With Ctrl a letter is another key.
    if key.modifiers.contains(KeyModifiers::CONTROL) && screen != Screen::Build {
        return None;
    }
    if key.code == KeyCode::Esc && model.sheet().is_some_and(|s| s.filter.is_some()) {
        return None;
    }
    let doc = super::view::sheet::doc(model);
    let row = model.sheet().and_then(|s| doc.rows.get(cursor(s, &doc))).map(|r| r.key.clone());
    let row = row.as_deref();
    match screen {
        Screen::Tools => tools::key(model, row, key),
        Screen::Registry | Screen::Package => registry::key(model, row, key),
        Screen::Builds => match key.code {
            KeyCode::Enter => Some(builds::open(model, row?.to_owned())),
            KeyCode::Char('d') if !key.modifiers.contains(KeyModifiers::CONTROL) => Some(deploy::open(model, None)),
            _ => None,
        },
        Screen::Build => builds::key(model, key),
        Screen::Releases => releases::key(model, row, key),
        Screen::Guide => guide_key(model, row, key),
        _ => Some(policy::open(model)),
    }
}

/// Keys of the handbook.
fn guide_key(model: &mut Model, row: Option<&str>, key: KeyEvent) -> Option<Vec<Effect>> {
    match key.code {
        KeyCode::Enter => Some(open_guide(model, Some(row?.to_owned()))),
        KeyCode::Char('/') => {
            let words = model.desk.words.clone();
            ask(model, Purpose::Words, &words);
            Some(Vec::new())
        }
        KeyCode::Esc if model.sheet().is_some_and(|s| s.name.is_some()) => {
            let only = model.screens.len() < 2;
            let effects = open_guide(model, None);
            Some(if only { Vec::new() } else { effects })
        }
        KeyCode::Esc if !model.desk.words.is_empty() => {
            model.desk.words.clear();
            Some(Vec::new())
        }
        _ => None,
    }
}

/// The handbook: its contents, or a topic.
fn open_guide(model: &mut Model, topic: Option<String>) -> Vec<Effect> {
    sheet::open(model, Screen::Guide, topic)
}

/// Text was pasted where it can be typed; whether it was.
fn paste(model: &mut Model, text: &str) -> bool {
    let screen = model.screen();
    let desk = &mut model.desk;
    let form = match screen {
        Screen::Call => desk.call.as_mut().filter(|c| !c.shows && c.flow.is_none()).map(|c| &mut c.form),
        Screen::Policy => desk.policy.as_mut().map(|p| &mut p.form),
        Screen::Deploy => desk.deploy.as_mut().filter(|d| d.stage == super::deploy::Stage::Form).map(|d| &mut d.form),
        _ => None,
    };
    match form {
        Some(form) => {
            form::paste(form, text);
            true
        }
        None => false,
    }
}

/// Opens a line of input.
fn ask(model: &mut Model, purpose: Purpose, text: &str) {
    let input = Input { purpose, text: text.to_owned(), at: text.chars().count(), problem: None, history: 0 };
    model.overlay = Some(Overlay::Input(input));
}

/// Esc undoes one thing: marks, then a filter, then the screen.
fn back(model: &mut Model, code: KeyCode) -> Vec<Effect> {
    let undo = code != KeyCode::Char('q');
    match model.screen() {
        Screen::Table if undo && !model.table.marked.is_empty() => model.table.marked.clear(),
        Screen::Table if undo && model.table.filter.is_some() => {
            model.table.filter = None;
            table::keep_cursor(model);
        }
        Screen::Logs if undo && model.logs.as_ref().is_some_and(|l| l.buffer.search().is_some()) => {
            if let Some(logs) = &mut model.logs {
                logs.buffer.set_search(None);
            }
        }
        Screen::Logs if undo && logs::pop_chip(model).is_some() => {}
        Screen::Tap if undo && model.desk.tap.as_ref().is_some_and(|t| t.filter().is_some()) => {
            if let Some(tap) = &mut model.desk.tap {
                tap.set_filter(None);
            }
        }
        screen if undo && model.sheet().is_some_and(|s| s.filter.is_some()) => {
            if let Some(sheet) = model.sheets.get_mut(&screen) {
                sheet.filter = None;
            }
            sheet::settle(model);
        }
        _ if model.screens.len() > 1 => {
            let left = model.screens.pop();
            if left == Some(Screen::Logs) {
                model.logs = None;
                return vec![Effect::Ask(Request::StopLogs)];
            }
            return places::shown(model);
        }
        _ => {}
    }
    Vec::new()
}

fn page(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    let rows = super::view::detail::rows(model);
    let body = model.body_rows();
    let Some(Page { scroll, .. }) = &mut model.page else { return Vec::new() };
    let most = rows.saturating_sub(body);
    let half = (body / 2).max(1);
    match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
        (KeyCode::Char('d'), true) => *scroll += half,
        (KeyCode::Char('u'), true) => *scroll = scroll.saturating_sub(half),
        (KeyCode::Char('j') | KeyCode::Down, false) => *scroll += 1,
        (KeyCode::Char('k') | KeyCode::Up, false) => *scroll = scroll.saturating_sub(1),
        (KeyCode::PageDown, _) => *scroll += body,
        (KeyCode::PageUp, _) => *scroll = scroll.saturating_sub(body),
        (KeyCode::Char('g') | KeyCode::Home, false) => *scroll = 0,
        (KeyCode::Char('G') | KeyCode::End, false) => *scroll = most,
        _ => return actions::key(model, key),
    }
    *scroll = (*scroll).min(most);
    Vec::new()
}
