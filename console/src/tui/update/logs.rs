//! The log view: following, moving, jumping, patterns, bookmarks.

use std::collections::BTreeSet;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::clean;
use super::super::logbuf::{Buffer, Kind, Level, Pattern, Sieve, Which, thousands};
use super::super::model::{Logs, Model, Overlay, Purpose, SINCE, TimeMode};
use super::super::port::Trouble;
use super::super::view::logs::{Shape, shape, strip_width};
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
        (KeyCode::Char('j') | KeyCode::Down, false) => step(logs, &shape, 1),
        (KeyCode::Char('k') | KeyCode::Up, false) => step(logs, &shape, -1),
        (KeyCode::PageDown, _) => scroll(logs, &shape, page),
        (KeyCode::PageUp, _) => scroll(logs, &shape, -page),
        (KeyCode::Char('g') | KeyCode::Home, false) => {
            logs.follow = false;
            logs.top = (logs.buffer.number(0).unwrap_or(0), 0);
            logs.current = logs.buffer.number(0);
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
        (KeyCode::Char('e'), false) => jump(model, true, "error", Buffer::near_error),
        (KeyCode::Char('E'), false) => jump(model, false, "error", Buffer::near_error),
        (KeyCode::Char('*'), false) => {
            let text = logs.buffer.search().map(|s| s.text.clone()).unwrap_or_default();
            ask(model, Purpose::Search, &text);
        }
        (KeyCode::Char('n'), false) => jump_match(model, true),
        (KeyCode::Char('N'), false) => jump_match(model, false),
        (KeyCode::Char('m'), false) => bookmark(model),
        (KeyCode::Char('\''), false) => jump(model, true, "bookmark", Buffer::near_bookmark),
        (KeyCode::Char('"'), false) => jump(model, false, "bookmark", Buffer::near_bookmark),
        (KeyCode::Char('L'), false) => {
            let sieve = logs.buffer.sieve();
            let (least, words) = match sieve.least {
                Level::None | Level::Debug => (Level::Info, "lines from 'info' on"),
                Level::Info => (Level::Warn, "lines from 'warning' on"),
                Level::Warn => (Level::Error, "errors only"),
                Level::Error => (Level::None, "lines of every level"),
            };
            let sieve = Sieve { least, ..sieve.clone() };
            set_sieve(model, sieve);
            tell(model, words, false);
        }
        (KeyCode::Char('o'), false) => {
            let sieve = logs.buffer.sieve();
            let (which, words) = match sieve.which {
                Which::Both => (Which::Err, "standard error only"),
                Which::Err => (Which::Out, "standard output only"),
                Which::Out => (Which::Both, "standard output and standard error"),
            };
            let sieve = Sieve { which, ..sieve.clone() };
            set_sieve(model, sieve);
            tell(model, words, false);
        }
        (KeyCode::Char('h'), false) => logs.strip = !logs.strip,
        (KeyCode::Char('}'), false) => burst(model, true),
        (KeyCode::Char('{'), false) => burst(model, false),
        (KeyCode::Char('|'), false) => return page_out(model),
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
        logs.buffer = logs.buffer.anew();
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
fn set_sieve(model: &mut Model, sieve: Sieve) {
    if let Some(logs) = &mut model.logs {
        logs.buffer.set_sieve(sieve);
    }
}

/// Some more of what takes long.
pub fn work(model: &mut Model) {
    if let Some(logs) = model.logs.as_mut().filter(|l| l.buffer.is_working()) {
        let before = (logs.buffer.len(), logs.buffer.hits());
        let more = logs.buffer.work();
        model.dirty |= !more || before != (logs.buffer.len(), logs.buffer.hits());
    }
}

/// A pattern while it is typed: lines are shown as if it were kept.
pub fn type_chip(model: &mut Model, text: &str) -> Result<(), String> {
    let typed = Pattern::parse(text)?;
    if let Some(logs) = &mut model.logs {
        let mut sieve = logs.buffer.sieve().clone();
        if sieve.typed.is_none() && typed.is_none() {
            return Ok(());
        }
        sieve.typed = typed;
        logs.buffer.set_sieve(sieve);
    }
    Ok(())
}

/// Keeps a pattern beside those that there are; an empty one takes them all away.
pub fn add_chip(model: &mut Model, text: &str) -> Result<(), String> {
    let chip = Pattern::parse(text)?;
    if let Some(logs) = &mut model.logs {
        let mut sieve = logs.buffer.sieve().clone();
        sieve.typed = None;
        match chip {
            Some(chip) => {
                sieve.chips.retain(|c| c.text != chip.text);
                sieve.chips.push(chip);
            }
            None => sieve.chips.clear(),
        }
        logs.buffer.set_sieve(sieve);
    }
    Ok(())
}

/// Forgets what was typed and not kept.
pub fn drop_typed(model: &mut Model) {
    if let Some(logs) = model.logs.as_mut().filter(|l| l.buffer.sieve().typed.is_some()) {
        let sieve = Sieve { typed: None, ..logs.buffer.sieve().clone() };
        logs.buffer.set_sieve(sieve);
    }
}

/// Takes the newest pattern away, then the level and the stream; what it was, if there was one.
pub fn pop_chip(model: &mut Model) -> Option<String> {
    let logs = model.logs.as_mut()?;
    let mut sieve = logs.buffer.sieve().clone();
    let was = match sieve.chips.pop() {
        Some(chip) => chip.text,
        None if sieve.is_open() => return None,
        None => {
            (sieve.least, sieve.which) = (Level::None, Which::Both);
            String::new()
        }
    };
    logs.buffer.set_sieve(sieve);
    Some(was)
}

/// Stops following with the same lines on the screen.
fn freeze(logs: &mut Logs, shape: &Shape) {
    let (place, row) = shape.bottom(logs);
    logs.top = (logs.buffer.number(place).unwrap_or(0), row);
    logs.current = logs.buffer.len().checked_sub(1).and_then(|last| logs.buffer.number(last));
    logs.follow = false;
}

/// Moves to the line above or below; in one that is higher than the screen, by rows. Beyond the end it follows again.
fn step(logs: &mut Logs, shape: &Shape, by: isize) {
    if logs.follow {
        if by > 0 {
            return;
        }
        freeze(logs, shape);
    }
    let top = logs.buffer.place(logs.top.0);
    let here = logs.current.map_or(top, |number| logs.buffer.place(number)).min(logs.buffer.len().saturating_sub(1));
    let (first, last) = shape.seen(logs);
    let rows = shape.rows(logs, here);
    if rows > shape.height && (first..=last).contains(&here) {
        let hidden_below = here == last && !shape.ends(logs, here);
        if by > 0 && hidden_below || by < 0 && here == top && logs.top.1 > 0 {
            return move_rows(logs, shape, by);
        }
    }
    let to = here.saturating_add_signed(by);
    if to >= logs.buffer.len() {
        (logs.follow, logs.current) = (true, None);
        return;
    }
    logs.current = logs.buffer.number(to);
    show(logs, shape, to, 0);
}

/// Puts a line on the screen, with some rows above it when it has to be moved to.
fn show(logs: &mut Logs, shape: &Shape, place: usize, margin: usize) {
    let (first, last) = shape.seen(logs);
    let wholly = (first..=last).contains(&place)
        && (place != last || shape.ends(logs, place))
        && (place != logs.buffer.place(logs.top.0) || logs.top.1 == 0);
    if wholly && margin == 0 {
        return;
    }
    // as far down as it must, as far up as it can
    let below = place >= first && margin == 0;
    let room = if below { shape.height.saturating_sub(shape.rows(logs, place)) } else { margin };
    let (mut top, mut above) = (place, 0);
    while top > 0 && above + shape.rows(logs, top - 1) <= room {
        top -= 1;
        above += shape.rows(logs, top);
    }
    logs.top = (logs.buffer.number(top).unwrap_or(0), 0);
}

/// Moves the view by rows, and takes the line that one is at along. Up stops following; reaching the end starts it.
fn scroll(logs: &mut Logs, shape: &Shape, by: isize) {
    if logs.follow {
        if by >= 0 {
            return;
        }
        freeze(logs, shape);
    }
    move_rows(logs, shape, by);
    if !logs.follow {
        let (first, last) = shape.seen(logs);
        let here = logs.current.map_or(first, |number| logs.buffer.place(number));
        logs.current = logs.buffer.number(here.clamp(first, last));
    }
}

fn move_rows(logs: &mut Logs, shape: &Shape, by: isize) {
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

/// How a buffer finds the nearest entry of a kind.
type Near = fn(&Buffer, Option<u64>, bool) -> Option<(u64, bool)>;

/// Goes to the next line of a kind and shows it with some lines around it.
fn jump(model: &mut Model, forward: bool, what: &str, near: Near) {
    let Some(shape) = shape(model) else { return };
    let Some(logs) = &mut model.logs else { return };
    // without a line that one is at, from the end
    let from = if logs.follow { None } else { logs.current };
    let Some((number, around)) = near(&logs.buffer, from, forward) else {
        let more = if logs.buffer.is_working() { " so far" } else { "" };
        let text = format!("no {what} in the {} lines shown{more}", thousands(logs.buffer.len() as u64));
        tell(model, text, false);
        return;
    };
    let around = around || (from.is_none() && forward);
    logs.current = Some(number);
    logs.follow = false;
    let place = logs.buffer.place(number);
    show(logs, &shape, place, shape.height / 3);
    if around {
        tell(model, if forward { "from the top" } else { "from the end" }, false);
    }
}

/// The next line that the search matches.
pub fn jump_match(model: &mut Model, forward: bool) {
    if model.logs.as_ref().is_some_and(|l| l.buffer.search().is_some()) {
        jump(model, forward, "match", Buffer::near_hit);
    } else {
        tell(model, "nothing to search for: press * first", false);
    }
}

/// To the next part of the strip that has errors.
fn burst(model: &mut Model, forward: bool) {
    let parts = strip_width(model);
    let Some(shape) = shape(model) else { return };
    let Some(logs) = &mut model.logs else { return };
    let Some((from, to)) = logs.buffer.span() else { return };
    let over = logs.buffer.errors_over(parts);
    let length = (to - from + 1).max(1);
    let part = |second: i64| usize::try_from((second - from) * parts as i64 / length).unwrap_or(0);
    let here = match current(logs).and_then(|place| logs.buffer.get(place)).and_then(|e| e.time) {
        Some(time) if !logs.follow => part(time.as_second()),
        // from the end
        _ => parts,
    };
    let found = match forward {
        true => (here + 1..parts).find(|at| over[*at] > 0),
        false => (0..here.min(parts)).rev().find(|at| over[*at] > 0),
    };
    let Some(at) = found else {
        tell(model, if forward { "no errors later" } else { "no errors earlier" }, false);
        return;
    };
    // the first second of that part
    let second = from
        + (at as i64 * length).div_euclid(parts as i64)
        + i64::from((at as i64 * length).rem_euclid(parts as i64) > 0);
    let Some(number) = logs.buffer.error_since(second.min(to)) else { return };
    (logs.current, logs.follow) = (Some(number), false);
    let place = logs.buffer.place(number);
    show(logs, &shape, place, shape.height / 3);
}

/// Marks the line that one is at, or takes the mark away.
fn bookmark(model: &mut Model) {
    let Some(shape) = shape(model) else { return };
    let Some(logs) = &mut model.logs else { return };
    if logs.follow {
        freeze(logs, &shape);
    }
    let Some(number) = current(logs).and_then(|place| logs.buffer.number(place)) else { return };
    logs.current = Some(number);
    let set = logs.buffer.bookmark(number);
    tell(model, if set { "bookmark set: ' and \" go to it" } else { "bookmark taken away" }, false);
}

/// What the screen shows, into the pager.
pub fn page_out(model: &mut Model) -> Vec<Effect> {
    match &model.logs {
        Some(logs) if logs.buffer.len() > 0 => vec![Effect::Page(export(logs))],
        Some(_) => {
            tell(model, "there are no lines to show", false);
            Vec::new()
        }
        None => {
            tell(model, "the pager shows log lines: open the logs first", true);
            Vec::new()
        }
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
    let stream = match (entry.kind, entry.stderr) {
        (Kind::Line, true) => " stderr",
        (Kind::Line, false) => " stdout",
        _ => "",
    };
    model.overlay = Some(Overlay::Line { title: format!("{name} {time}{stream}"), text: lines, scroll: 0 });
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
