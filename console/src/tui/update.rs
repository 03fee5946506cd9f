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

use super::model::{Input, Link, Model, Overlay, Page, Purpose, Screen, Toast};
use super::port::{LinkEvent, Request};
use crate::link::What;
use crate::link::findings::Report;
pub use actions::{run, start};
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
    /// The terminal has another size.
    Resize(u16, u16),
    /// News from the link.
    Link(LinkEvent),
    /// Time passes; about once a second.
    Tick(Timestamp),
    /// An effect of the console's own has ended: what to tell, and whether it failed.
    Told(String, bool),
}

/// What has to be done outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Ask the link.
    Ask(Request),
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
    /// Give the terminal back to the shell until `fg`.
    Suspend,
    /// Draw everything anew.
    Redraw,
    /// End.
    Quit,
}

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
        Event::Link(event) => link(model, event),
        Event::Paste(text) => {
            model.dirty = true;
            if model.overlay.is_none() && paste(model, &text) {
                return Vec::new();
            }
            // One line only: a pasted newline must not run a command.
            overlay::paste(model, text.lines().next().unwrap_or_default())
        }
        Event::Key(key) if key.kind == KeyEventKind::Release => Vec::new(),
        Event::Key(key) => {
            model.dirty = true;
            keyed(model, key)
        }
    }
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
    if matches!(model.link, Link::Down { .. }) || (relative && model.screen() == Screen::Logs) || counting || calling {
        model.dirty = true;
    }
    // A page of something that changes without a delta of its own (steps, replicas) is asked for again.
    let busy = |name: &str| {
        model.asked_of(name).is_some()
            || model.fleet.values().any(|d| d.name == name && matches!(d.state.as_str(), "building" | "starting"))
    };
    if model.screen() == Screen::Detail
        && matches!(model.link, Link::Up { .. })
        && let Some(page) = &model.page
        && now.as_second() - page.asked_at.as_second() >= 2
        && busy(&page.name)
    {
        return fetch(model).into_iter().collect();
    }
    let mut effects = sheet::tick(model);
    effects.extend(policy::tick(model));
    effects
}

/// Asks again for the page that is shown.
fn fetch(model: &mut Model) -> Option<Effect> {
    let page = model.page.as_mut()?;
    page.asked_at = model.now;
    Some(Effect::Ask(Request::Detail { name: page.name.clone() }))
}

fn link(model: &mut Model, event: LinkEvent) -> Vec<Effect> {
    match event {
        LinkEvent::Connected { info, rtt } => {
            let offset = info.now.map_or(0, |now| now.as_second() - model.now.as_second());
            // A second or two is the way here, not the clock.
            model.clock_offset = if offset.abs() > 2 { offset } else { 0 };
            model.info = Some(*info);
            model.up_since = Some(model.now);
            model.link = Link::Up { rtt_ms: super::view::step(rtt) };
            model.dirty = true;
            if model.screen() == Screen::Detail {
                return fetch(model).into_iter().collect();
            }
            return sheet::ask_now(model);
        }
        LinkEvent::Rtt(rtt) => {
            let up = Link::Up { rtt_ms: super::view::step(rtt) };
            if matches!(model.link, Link::Up { .. }) && model.link != up {
                model.link = up;
                model.dirty = true;
            }
        }
        LinkEvent::Disconnected { trouble, retry_in } => {
            let since = match &model.link {
                Link::Down { since, .. } => *since,
                _ => model.now,
            };
            let retry_at = model.now.checked_add(jiff::SignedDuration::try_from(retry_in).unwrap_or_default());
            model.link = Link::Down { trouble, since, retry_at: retry_at.unwrap_or(model.now) };
            model.up_since = None;
            model.dirty = true;
        }
        LinkEvent::Fleet(update) => return table::fleet(model, update),
        LinkEvent::Detail { name, result } => {
            if let Some(page) = model.page.as_mut().filter(|p| p.name == name) {
                match result {
                    Ok(detail) => (page.detail, page.trouble) = (Some(*detail), None),
                    Err(trouble) => page.trouble = Some(trouble),
                }
                model.dirty |= model.screens.last() == Some(&Screen::Detail);
            }
        }
        LinkEvent::Looked { look, result } => sheet::looked(model, look, result),
        LinkEvent::Logs { watch, batch } => {
            if let Some(logs) = model.logs.as_mut().filter(|l| l.watch == watch) {
                logs.buffer.add(batch);
                (logs.started, logs.lost) = (true, None);
                model.dirty |= model.screens.last() == Some(&Screen::Logs);
            }
        }
        LinkEvent::LogsLost { watch, why } => {
            if let Some(logs) = model.logs.as_mut().filter(|l| l.watch == watch) {
                logs.lost = Some(why);
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
            if let Some(logs) = model.logs.as_mut().filter(|l| l.watch == watch) {
                (logs.ended, logs.started) = (Some(trouble), true);
                model.dirty = true;
            }
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
                Screen::Logs => model.logs.as_ref().and_then(|l| l.buffer.filter().map(|f| f.text.clone())),
                Screen::Table => model.table.filter.as_ref().map(|f| f.text.clone()),
                Screen::Tap => model.desk.tap.as_ref().and_then(|t| t.filter().map(|f| f.text.clone())),
                _ => model.sheet().and_then(|s| s.filter.as_ref().map(|f| f.text.clone())),
            };
            ask(model, Purpose::Filter, &filter.unwrap_or_default());
            return Vec::new();
        }
        KeyCode::Char('q') if model.screens.len() == 1 => return actions::interrupt(model),
        KeyCode::Char('R') if !matches!(model.link, Link::Up { .. }) => {
            return vec![Effect::Ask(Request::Reconnect)];
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
    let undo = code == KeyCode::Esc;
    match model.screen() {
        Screen::Table if undo && !model.table.marked.is_empty() => model.table.marked.clear(),
        Screen::Table if undo && model.table.filter.is_some() => {
            model.table.filter = None;
            table::keep_cursor(model);
        }
        Screen::Logs if undo && model.logs.as_ref().is_some_and(|l| l.search.is_some()) => {
            if let Some(logs) = &mut model.logs {
                logs.search = None;
            }
        }
        Screen::Logs if undo && model.logs.as_ref().is_some_and(|l| l.buffer.filter().is_some()) => {
            logs::set_filter(model, None);
        }
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
