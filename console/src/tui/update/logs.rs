//! The log view: following, scrolling, jumping.

use std::collections::BTreeSet;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::clean;
use super::super::logbuf::{Buffer, Kind, Level, Pattern, thousands};
use super::super::model::{Logs, Model, Overlay, Purpose, SINCE, TimeMode};
use super::super::port::Trouble;
use super::super::view::logs::{Shape, shape};
use super::{Effect, actions, ask, tell};

/// Keys of the log view.
pub fn key(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    let Some(shape) = shape(model) else { return Vec::new() };
    let half = isize::try_from(shape.height / 2).unwrap_or(1).max(1);
    let page = isize::try_from(shape.height.saturating_sub(1)).unwrap_or(1).max(1);
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let Some(logs) = &mut model.logs else { return Vec::new() };
    match (key.code, control) {
        (KeyCode::Char('d'), true) => scroll(logs, &shape, half),
        (KeyCode::Char('u'), true) => scroll(logs, &shape, -half),
        (KeyCode::Char('j') | KeyCode::Down, false) => scroll(logs, &shape, 1),
        (KeyCode::Char('k') | KeyCode::Up, false) => scroll(logs, &shape, -1),
        (KeyCode::PageDown, _) => scroll(logs, &shape, page),
        (KeyCode::PageUp, _) => scroll(logs, &shape, -page),
        (KeyCode::Char('g') | KeyCode::Home, false) => {
            logs.follow = false;
            logs.top = (logs.buffer.number(0).unwrap_or(0), 0);
        }
        (KeyCode::Char('G') | KeyCode::End, false) => (logs.follow, logs.current) = (true, None),
        // Freezing stops the view, never the server.
        (KeyCode::Char('f' | ' '), false) if logs.follow => freeze(logs, &shape),
        (KeyCode::Char('f' | ' '), false) => (logs.follow, logs.current) = (true, None),
        (KeyCode::Left, _) => logs.shift = logs.shift.saturating_sub(shape.text / 2),
        (KeyCode::Right, _) if !logs.wrap => logs.shift += shape.text / 2,
        (KeyCode::Char('w'), false) => (logs.wrap, logs.shift) = (!logs.wrap, 0),
        (KeyCode::Char('t'), false) => {
            logs.time = match logs.time {
                TimeMode::Off => TimeMode::Absolute,
                TimeMode::Absolute => TimeMode::Relative,
                TimeMode::Relative => TimeMode::Off,
            };
        }
        (KeyCode::Char(c @ '0'..='6'), false) => {
            let since = usize::from(c as u8 - b'0');
            return again(model, |logs| logs.since = since, format!("showing {}", SINCE[since].0));
        }
        (KeyCode::Char('p'), false) => {
            let words =
                if logs.previous { "output of the present instances too" } else { "only instances that are gone" };
            return again(model, |logs| logs.previous = !logs.previous, words.to_owned());
        }
        (KeyCode::Char('e'), false) => jump(model, true, "error", |e| e.level == Level::Error),
        (KeyCode::Char('E'), false) => jump(model, false, "error", |e| e.level == Level::Error),
        (KeyCode::Char('*'), false) => {
            let text = logs.search.as_ref().map(|s| s.text.clone()).unwrap_or_default();
            ask(model, Purpose::Search, &text);
        }
        (KeyCode::Char('n'), false) => jump_match(model, true),
        (KeyCode::Char('N'), false) => jump_match(model, false),
        (KeyCode::Char('s'), true) => return save(model, None),
        (KeyCode::Char('y'), false) => return copy(model, false),
        (KeyCode::Char('Y'), false) => return copy(model, true),
        (KeyCode::Enter, _) => open_line(model),
        _ => return actions::key(model, key),
    }
    Vec::new()
}

fn again(model: &mut Model, change: impl FnOnce(&mut Logs), words: String) -> Vec<Effect> {
    model.counter += 1;
    if let Some(logs) = &mut model.logs {
        change(logs);
        let filter = logs.buffer.filter().cloned();
        logs.buffer = Buffer::default();
        logs.buffer.set_filter(filter);
        (logs.watch, logs.follow, logs.current) = (model.counter, true, None);
        (logs.started, logs.ended, logs.lost) = (false, None, None);
        logs.out.clear();
    }
    model.merge.clear();
    tell(model, words, false);
    actions::watch(model).into_iter().collect()
}

/// The stream of one host has ended: of several the others go on, and it begins again when the host is back.
pub fn ended(model: &mut Model, host: usize, watch: u64, trouble: Option<Trouble>) {
    let several = model.several();
    let all: BTreeSet<usize> = hosts(model);
    let Some(logs) = model.logs.as_mut().filter(|l| l.watch == watch) else { return };
    logs.started = true;
    model.dirty = true;
    if !several {
        logs.ended = Some(trouble);
        return;
    }
    logs.out.insert(host);
    if all.iter().all(|h| logs.out.contains(h)) {
        logs.ended = Some(trouble);
    } else if let Some(trouble) = trouble {
        let text = format!("logs of {}: {}", model.hosts[host].name, super::joined(&trouble.what, &trouble.hint));
        tell(model, text, true);
    }
}

/// The hosts whose lines are shown.
fn hosts(model: &Model) -> BTreeSet<usize> {
    match &model.logs {
        Some(logs) if !logs.names.is_empty() => logs.names.iter().map(|n| model.host_at(n)).collect(),
        _ => (0..model.hosts.len()).collect(),
    }
}

/// A host is back whose stream had ended for want of a link: its lines are asked for again.
pub fn joined(model: &mut Model, host: usize) -> Vec<Effect> {
    let theirs = hosts(model).contains(&host);
    let Some(logs) = model.logs.as_mut() else { return Vec::new() };
    if !logs.out.remove(&host) || !theirs {
        return Vec::new();
    }
    logs.ended = None;
    actions::watch(model).into_iter().map(|effect| effect.only(host)).collect()
}

/// Changes which lines are shown; the view stays where it was.
pub fn set_filter(model: &mut Model, filter: Option<Pattern>) {
    if let Some(logs) = &mut model.logs {
        logs.buffer.set_filter(filter);
    }
}

/// Stops following with the same lines on the screen.
fn freeze(logs: &mut Logs, shape: &Shape) {
    let (place, row) = shape.bottom(logs);
    logs.top = (logs.buffer.number(place).unwrap_or(0), row);
    logs.follow = false;
}

/// Moves by rows. Up stops following; reaching the end starts it.
fn scroll(logs: &mut Logs, shape: &Shape, by: isize) {
    if logs.follow {
        if by >= 0 {
            return;
        }
        freeze(logs, shape);
    }
    let mut place = logs.buffer.place(logs.top.0);
    let mut row = logs.top.1.min(shape.rows(logs, place).saturating_sub(1));
    for _ in 0..by.unsigned_abs() {
        if by < 0 {
            if row > 0 {
                row -= 1;
            } else if place > 0 {
                place -= 1;
                row = shape.rows(logs, place).saturating_sub(1);
            } else {
                break;
            }
        } else if row + 1 < shape.rows(logs, place) {
            row += 1;
        } else if place + 1 < logs.buffer.len() {
            (place, row) = (place + 1, 0);
        } else {
            break;
        }
    }
    let end = shape.bottom(logs);
    if by > 0 && (place, row) >= end {
        (logs.follow, logs.current) = (true, None);
        return;
    }
    logs.top = (logs.buffer.number(place).unwrap_or(0), row);
}

/// Goes to the next line that fits and shows it with some lines around it.
fn jump(model: &mut Model, forward: bool, what: &str, fits: impl Fn(&super::super::logbuf::Entry) -> bool) {
    let Some(shape) = shape(model) else { return };
    let Some(logs) = &mut model.logs else { return };
    let len = logs.buffer.len();
    let fit = |place: &usize| logs.buffer.get(*place).is_some_and(&fits);
    // From the line that a jump went to, else from the top of the screen downwards or the end upwards.
    let here = match logs.current {
        Some(number) => logs.buffer.place(number) + usize::from(forward),
        None if logs.follow || !forward => len,
        None => logs.buffer.place(logs.top.0),
    };
    let here = here.min(len);
    let found = if forward {
        (here..len).find(fit).map(|p| (p, false)).or_else(|| (0..here).find(fit).map(|p| (p, true)))
    } else {
        (0..here).rev().find(fit).map(|p| (p, false)).or_else(|| (here..len).rev().find(fit).map(|p| (p, true)))
    };
    let Some((place, wrapped)) = found else {
        tell(model, format!("no {what} in the {} lines shown", thousands(len as u64)), false);
        return;
    };
    logs.current = logs.buffer.number(place);
    logs.follow = false;
    let mut top = place;
    let mut above = 0;
    while top > 0 && above < shape.height / 3 {
        top -= 1;
        above += shape.rows(logs, top);
    }
    logs.top = (logs.buffer.number(top).unwrap_or(0), 0);
    if wrapped {
        tell(model, if forward { "from the top" } else { "from the end" }, false);
    }
}

/// The next line that the search matches.
pub fn jump_match(model: &mut Model, forward: bool) {
    match model.logs.as_ref().and_then(|l| l.search.clone()) {
        Some(search) => jump(model, forward, "match", |e| search.wants(&e.text)),
        None => tell(model, "nothing to search for: press * first", false),
    }
}

fn current(logs: &Logs) -> Option<usize> {
    match logs.current {
        Some(number) => Some(logs.buffer.place(number)),
        None if logs.follow => logs.buffer.len().checked_sub(1),
        None => Some(logs.buffer.place(logs.top.0)),
    }
}

fn open_line(model: &mut Model) {
    let Some(logs) = &model.logs else { return };
    let Some(entry) = current(logs).and_then(|place| logs.buffer.get(place)) else { return };
    let name = logs.buffer.names().get(usize::from(entry.name)).cloned().unwrap_or_default();
    let time = entry.time.map(|t| t.to_string()).unwrap_or_default();
    let text = clean::plain(&entry.text);
    let start = text.find(['{', '[']).unwrap_or(text.len());
    let json = serde_json::from_str::<serde_json::Value>(&text[start..]).ok().filter(|v| v.is_object() || v.is_array());
    let mut lines = Vec::new();
    match json.and_then(|v| serde_json::to_string_pretty(&v).ok()) {
        Some(pretty) => {
            if start > 0 {
                lines.push(text[..start].to_owned());
            }
            lines.extend(pretty.lines().map(str::to_owned));
        }
        None => lines.push(text),
    }
    model.overlay = Some(Overlay::Line { title: format!("{name} {time}"), text: lines, scroll: 0 });
}

/// Shown lines as text: time, deployment when there are several, the line as it came.
fn export(logs: &Logs) -> Vec<u8> {
    let several = logs.names.len() != 1;
    let mut out = Vec::new();
    for entry in (0..logs.buffer.len()).filter_map(|p| logs.buffer.get(p)) {
        if let Some(time) = entry.time {
            out.extend_from_slice(format!("{time:.6} ").as_bytes());
        }
        if several && let Some(name) = logs.buffer.names().get(usize::from(entry.name)) {
            out.extend_from_slice(format!("{name} ").as_bytes());
        }
        if entry.kind != Kind::Line {
            out.extend_from_slice(b"-- ");
        }
        out.extend_from_slice(&entry.text);
        out.push(b'\n');
    }
    out
}

/// Writes the shown lines to a file.
pub fn save(model: &mut Model, path: Option<String>) -> Vec<Effect> {
    let Some(logs) = &model.logs else {
        tell(model, "save writes shown log lines: open the logs first", true);
        return Vec::new();
    };
    let path = path.unwrap_or_else(|| {
        let name = if logs.names.len() == 1 { logs.names[0].as_str() } else { "sigil" };
        format!("{name}-{}.log", model.now.to_zoned(model.zone.clone()).strftime("%Y%m%d-%H%M%S"))
    });
    vec![Effect::Save { path, text: export(logs), lines: logs.buffer.len() }]
}

fn copy(model: &mut Model, all: bool) -> Vec<Effect> {
    let Some(logs) = &model.logs else { return Vec::new() };
    if all {
        let text = String::from_utf8_lossy(&export(logs)).into_owned();
        return vec![Effect::Copy { text, what: format!("{} lines", logs.buffer.len()) }];
    }
    let Some(entry) = current(logs).and_then(|place| logs.buffer.get(place)) else { return Vec::new() };
    vec![Effect::Copy { text: String::from_utf8_lossy(&entry.text).into_owned(), what: "1 line".to_owned() }]
}
