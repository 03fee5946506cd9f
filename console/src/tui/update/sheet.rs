//! Sheets: asking for what they show, the cursor, and what a row can do.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::fleet::Host;
use super::super::logbuf::Pattern;
use super::super::model::{Link, Model, Overlay, Screen};
use super::super::port::{Request, Trouble};
use super::super::sheet::{Look, Seen, Sheet, WINDOWS};
use super::super::view::sheet::{Doc, doc, room};
use super::{Effect, actions, tell};
use crate::link::findings::Origin;
use crate::link::{Change, SourceRef};

/// How old what changes slowly may become, seconds.
const SLOW: i64 = 60;

/// Shows a sheet, about a deployment where it is one's.
pub fn open(model: &mut Model, screen: Screen, name: Option<String>) -> Vec<Effect> {
    // Of several hosts each has its own secrets, users and the like: the name is then the host's alone.
    let own = model.several() && !matches!(screen, Screen::Overview | Screen::Guide);
    let name = name.or_else(|| own.then(|| model.prefix(model.here())));
    let sheet = model.sheets.entry(screen).or_default();
    if sheet.name != name {
        // Another one's: the filter and the order stay, what was seen does not.
        let Sheet { order, inverted, filter, .. } = std::mem::take(sheet);
        *sheet = Sheet { name, order, inverted, filter, ..Sheet::default() };
    }
    model.screens.retain(|s| *s != screen);
    model.screens.push(screen);
    settle(model);
    ask_now(model)
}

/// Asks for what is shown, unless an answer is on its way.
pub fn ask_now(model: &mut Model) -> Vec<Effect> {
    let several = model.several();
    let (screen, now) = (model.screen(), model.now);
    let any = screen == Screen::Overview && model.hosts.iter().any(Host::is_up);
    if !screen.is_sheet() || !(any || matches!(model.link(), Link::Up { .. })) {
        return Vec::new();
    }
    let Some(sheet) = model.sheets.get_mut(&screen) else { return Vec::new() };
    let what = match (screen, sheet.name.clone()) {
        (Screen::Overview, _) => Look::Overview,
        (Screen::Health, Some(name)) => Look::Health { name },
        (Screen::Scaling, Some(name)) => {
            let load = sheet.slow_at.is_none_or(|at| now.as_second() - at.as_second() >= SLOW);
            if load {
                sheet.slow_at = Some(now);
            }
            Look::Scaling { name, load }
        }
        (Screen::Tools, Some(name)) => Look::Tools { name },
        (Screen::Registry, _) => {
            let query = Box::new(super::registry::query(&model.desk.find, sheet.order));
            Look::Registry { query }
        }
        (Screen::Package, Some(name)) => {
            // With several hosts its host's name stands in front.
            let name = if several { super::super::fleet::bare(&name).to_owned() } else { name };
            let (name, version) = name.split_once('@').unwrap_or((name.as_str(), ""));
            Look::Package { name: name.to_owned(), version: version.to_owned() }
        }
        (Screen::Builds, _) => Look::Builds,
        (Screen::Releases, Some(name)) => Look::Releases { name },
        (Screen::Secrets, _) => Look::Secrets,
        (Screen::Access, _) => {
            let since = match &sheet.seen {
                Some(Seen::Access(access)) => access.records.as_ref().ok().and_then(|r| r.first()).map(|r| r.time),
                _ => None,
            };
            Look::Access { since }
        }
        (Screen::Findings, Some(name)) => {
            let known = match &sheet.seen {
                Some(Seen::Findings(found)) => found.operation.clone().filter(|_| found.told.is_some()),
                _ => None,
            };
            Look::Findings { name, known }
        }
        _ => return Vec::new(),
    };
    model.counter += 1;
    (sheet.look, sheet.waiting, sheet.asked_at) = (model.counter, true, Some(now));
    vec![Effect::Ask(Request::Look { look: sheet.look, what })]
}

/// A second has passed.
pub fn tick(model: &mut Model) -> Vec<Effect> {
    let Some(sheet) = model.sheet() else { return Vec::new() };
    let age = sheet.asked_at.map_or(i64::MAX, |at| model.now.as_second() - at.as_second());
    let due = if sheet.waiting { model.screen().patience() } else { model.screen().every() };
    if age >= due { ask_now(model) } else { Vec::new() }
}

/// An answer came; the screen is drawn again only when it says something new.
pub fn looked(model: &mut Model, from: usize, look: u64, result: Result<Box<Seen>, Trouble>) {
    let top = model.screen();
    let several = model.several();
    let Some((screen, sheet)) = model.sheets.iter_mut().find(|(_, s)| s.look == look) else { return };
    sheet.waiting = false;
    let changed = match result {
        Ok(mut seen) => {
            // What is wrong is told by each host; all of it is shown.
            if let (Seen::Overview(alerts), true) = (seen.as_mut(), several) {
                model.hosts[from].alerts = Some(std::mem::take(alerts));
                for theirs in model.hosts.iter().filter_map(|h| h.alerts.as_ref()) {
                    alerts.firing.extend(theirs.firing.iter().cloned());
                    alerts.ended.extend(theirs.ended.iter().cloned());
                }
                alerts.ended.sort_by_key(|a| std::cmp::Reverse(a.ended));
            }
            seen.over(sheet.seen.as_ref());
            let new = sheet.seen.as_ref() != Some(&*seen) || sheet.trouble.is_some();
            (sheet.seen, sheet.trouble) = (Some(*seen), None);
            new
        }
        // Others have told theirs; how the link to this one does is on the screen anyway.
        Err(_) if *screen == Screen::Overview && several && model.hosts.iter().any(|h| h.alerts.is_some()) => false,
        Err(trouble) => {
            sheet.slow_at = None;
            let new = sheet.trouble.as_ref() != Some(&trouble);
            sheet.trouble = Some(trouble);
            new
        }
    };
    if changed && *screen == top {
        model.dirty = true;
        settle(model);
    }
}

/// The row under the cursor, by its place.
pub fn cursor(sheet: &Sheet, doc: &Doc) -> usize {
    sheet.row.as_ref().and_then(|key| doc.rows.iter().position(|r| r.key == *key)).unwrap_or(0)
}

/// Keeps the cursor on its row and on the screen after something changed.
pub fn settle(model: &mut Model) {
    if !model.screen().is_sheet() {
        return;
    }
    let doc = doc(model);
    let at = model.sheet().map_or(0, |s| cursor(s, &doc));
    let offset = model.sheet().map_or(0, |s| s.offset);
    place(model, &doc, at);
    let (most, screen) = (doc.lines.len().saturating_sub(room(model).max(1)), model.screen());
    // The first row has not been gone to: what stands above it stays where it is.
    if let Some(sheet) = model.sheets.get_mut(&screen).filter(|s| s.row.is_none()) {
        sheet.offset = offset.min(most);
    }
}

fn place(model: &mut Model, doc: &Doc, at: usize) {
    let (room, screen) = (room(model).max(1), model.screen());
    let Some(sheet) = model.sheets.get_mut(&screen) else { return };
    let most = doc.lines.len().saturating_sub(room);
    sheet.about = doc.rows.get(at).and_then(|r| r.about.clone());
    // At the top the cursor stays there, whatever comes in above.
    sheet.row = doc.rows.get(at).filter(|_| at > 0).map(|r| r.key.clone());
    if let Some(row) = doc.rows.get(at) {
        let first_fits = at == 0 && row.at < room;
        sheet.offset = match sheet.offset {
            _ if first_fits => 0,
            offset => offset.min(row.at).max((row.at + 1).saturating_sub(room)),
        };
    }
    sheet.offset = sheet.offset.min(most);
}

/// Moves by rows; beyond the first and the last one the lines move.
fn step(model: &mut Model, by: isize) {
    let (doc, room, screen) = (doc(model), room(model).max(1), model.screen());
    let Some(sheet) = model.sheets.get_mut(&screen) else { return };
    let at = cursor(sheet, &doc);
    let to = at.saturating_add_signed(by).min(doc.rows.len().saturating_sub(1));
    // A cursor that is out of sight is come to by lines.
    let seen = doc.rows.get(at).is_some_and(|r| (sheet.offset..sheet.offset + room).contains(&r.at));
    if to != at && seen {
        return place(model, &doc, to);
    }
    let most = doc.lines.len().saturating_sub(room);
    sheet.offset = sheet.offset.saturating_add_signed(by).min(most);
}

/// Moves by lines, and takes the cursor along.
fn scroll(model: &mut Model, by: isize) {
    let (doc, room, screen) = (doc(model), room(model).max(1), model.screen());
    let Some(sheet) = model.sheets.get_mut(&screen) else { return };
    let most = doc.lines.len().saturating_sub(room);
    let now = cursor(sheet, &doc);
    let line = doc.rows.get(now).map_or(0, |r| r.at).saturating_add_signed(by);
    sheet.offset = sheet.offset.saturating_add_signed(by).min(most);
    let at = if by > 0 {
        doc.rows.iter().rposition(|r| r.at <= line).unwrap_or(0)
    } else {
        doc.rows.iter().position(|r| r.at >= line).unwrap_or(0)
    };
    // Without a row to go to, only the lines move.
    if at != now {
        place(model, &doc, at);
    }
}

/// Sets which rows are shown.
pub fn filter(model: &mut Model, pattern: Option<Pattern>) {
    let screen = model.screen();
    if let Some(sheet) = model.sheets.get_mut(&screen) {
        sheet.filter = pattern;
        settle(model);
    }
}

/// Orders the rows; the same order again turns them round.
pub fn sort(model: &mut Model, order: usize) -> Vec<Effect> {
    let screen = model.screen();
    if let Some(sheet) = model.sheets.get_mut(&screen) {
        sheet.inverted = sheet.order == order && !sheet.inverted;
        sheet.order = order;
        settle(model);
    }
    // Packages are ordered by the agent.
    if screen == Screen::Registry { ask_now(model) } else { Vec::new() }
}

/// Keys of a sheet.
pub fn key(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    let page = isize::try_from(room(model)).unwrap_or(1).max(1);
    let half = (page / 2).max(1);
    match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
        (KeyCode::Char('d'), true) => scroll(model, half),
        (KeyCode::Char('u'), true) => scroll(model, -half),
        (KeyCode::PageDown, _) => scroll(model, page),
        (KeyCode::PageUp, _) => scroll(model, -page),
        (KeyCode::Char('j') | KeyCode::Down, false) => step(model, 1),
        (KeyCode::Char('k') | KeyCode::Up, false) => step(model, -1),
        (KeyCode::Char('g') | KeyCode::Home, false) => {
            let doc = doc(model);
            place(model, &doc, 0);
            scroll_to(model, 0);
        }
        (KeyCode::Char('G') | KeyCode::End, false) => {
            let doc = doc(model);
            place(model, &doc, doc.rows.len().saturating_sub(1));
            scroll_to(model, usize::MAX);
        }
        (KeyCode::Char('S'), false) if !model.screen().orders().is_empty() => model.overlay = Some(Overlay::Sort),
        (KeyCode::Char('R'), false) => return ask_now(model),
        (KeyCode::Enter, _) => return enter(model),
        (KeyCode::Char('i'), false) => return actions::open_detail(model, None),
        (KeyCode::Char('y'), false) => return copy(model, false),
        (KeyCode::Char('Y'), false) => return copy(model, true),
        (KeyCode::Char('l'), false) => return actions::open_logs(model),
        (KeyCode::Char('z'), false) if model.screen() == Screen::Scaling => {
            let sheet = model.sheets.entry(Screen::Scaling).or_default();
            sheet.window = (sheet.window + 1) % WINDOWS.len();
        }
        (KeyCode::Char('s'), false) if model.screen() == Screen::Findings => return scan(model),
        (KeyCode::Char('w'), false)
            if matches!(model.screen(), Screen::Findings | Screen::Secrets | Screen::Builds) =>
        {
            return command(model);
        }
        // What changes a deployment works where the screen shows one.
        (KeyCode::Char('t' | 'w'), false)
            if matches!(model.screen(), Screen::Tools | Screen::Releases | Screen::Findings) =>
        {
            return actions::key(model, key);
        }
        _ if matches!(model.screen(), Screen::Overview | Screen::Health | Screen::Scaling) => {
            return actions::key(model, key);
        }
        _ => {}
    }
    Vec::new()
}

/// Shows this line at the top, as far as that can be.
pub(super) fn scroll_to(model: &mut Model, line: usize) {
    let most = doc(model).lines.len().saturating_sub(room(model).max(1));
    let screen = model.screen();
    if let Some(sheet) = model.sheets.get_mut(&screen) {
        sheet.offset = line.min(most);
    }
}

/// The row in full, or the page of what it is about.
fn enter(model: &mut Model) -> Vec<Effect> {
    let doc = doc(model);
    let Some(row) = model.sheet().and_then(|s| doc.rows.get(cursor(s, &doc))) else { return Vec::new() };
    if row.full.is_empty() {
        return match &row.about {
            Some(name) => actions::open_detail(model, Some(name.clone())),
            None => Vec::new(),
        };
    }
    model.overlay = Some(Overlay::Line { title: row.title.clone(), text: row.full.clone(), scroll: 0 });
    Vec::new()
}

fn copy(model: &Model, all: bool) -> Vec<Effect> {
    let doc = doc(model);
    let at = model.sheet().map_or(0, |s| cursor(s, &doc));
    let rows: Vec<&str> = if all {
        doc.rows.iter().map(|r| r.copy.as_str()).collect()
    } else {
        doc.rows.get(at).map(|r| r.copy.as_str()).into_iter().collect()
    };
    let what = match rows.len() {
        0 => return Vec::new(),
        1 => "1 row".to_owned(),
        n => format!("{n} rows"),
    };
    vec![Effect::Copy { text: rows.join("\n"), what }]
}

/// Has the agent scan the source anew; what comes of it is shown when it ends.
fn scan(model: &mut Model) -> Vec<Effect> {
    let Some(Seen::Findings(found)) = model.sheet().and_then(|s| s.seen.as_ref()) else { return Vec::new() };
    let source = found.source.clone();
    match found.origin() {
        Origin::Fetched if model.asked_of(&source).is_some() => {
            tell(model, "it is being scanned", false);
            Vec::new()
        }
        Origin::Fetched => {
            let source = SourceRef { text: source, upload: None };
            actions::start(model, Change::Scan { source }).into_iter().collect()
        }
        Origin::Folder => {
            tell(model, "this is a folder of who deployed it: run 'sigil scan DIR' where it lies", true);
            Vec::new()
        }
        Origin::NoSource => {
            tell(model, "there is no source to scan: the image or the server was made elsewhere", true);
            Vec::new()
        }
    }
}

/// Copies the command that goes with the row under the cursor.
fn command(model: &mut Model) -> Vec<Effect> {
    let doc = doc(model);
    let command = model.sheet().and_then(|s| doc.rows.get(cursor(s, &doc))).and_then(|r| r.command.clone());
    match command {
        Some(text) => vec![Effect::Copy { text, what: "the command".to_owned() }],
        None => Vec::new(),
    }
}
