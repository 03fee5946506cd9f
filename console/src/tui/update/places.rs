//! From screen to screen: digits and F-keys, the last place, the history.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::model::{Model, Place, Screen};
use super::super::sheet::{TITLES, Title};
use super::{Effect, actions, fetch, sheet, tell};

/// Places that are remembered.
const VISITS: usize = 50;

/// Keys that lead to another screen; `None`: it is another key.
pub fn key(model: &mut Model, key: KeyEvent) -> Option<Vec<Effect>> {
    if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) {
        return None;
    }
    let digit = match key.code {
        KeyCode::F(n @ 1..=9) => char::from(b'0' + n),
        KeyCode::F(10) => '0',
        // In a log, digits say since when, as far as there are such times.
        KeyCode::Char(c @ '0'..='9') if model.screen() != Screen::Logs || c > '6' => c,
        KeyCode::Char('-') => return Some(last(model)),
        KeyCode::Char('[') => return Some(step(model, false)),
        KeyCode::Char(']') => return Some(step(model, true)),
        _ => return None,
    };
    Some(TITLES.iter().find(|t| t.digit == digit).map_or_else(Vec::new, |title| go(model, title)))
}

/// To a screen, about what is selected.
fn go(model: &mut Model, to: &Title) -> Vec<Effect> {
    if model.screen() == to.screen {
        return Vec::new();
    }
    match to.screen {
        Screen::Logs => match (model.subjects().is_empty(), chosen(model)) {
            (true, Some(name)) => actions::open_logs_of(model, vec![name]),
            _ => actions::open_logs(model),
        },
        screen if to.of_one => match chosen(model) {
            Some(name) => open(model, Place { screen, names: vec![name] }),
            None => {
                let text = if model.fleet.is_empty() { "nothing is deployed yet" } else { "no deployment is selected" };
                tell(model, text, true);
                Vec::new()
            }
        },
        screen => open(model, Place { screen, names: Vec::new() }),
    }
}

/// The deployment that the screen is about, else the one under the table's cursor.
fn chosen(model: &Model) -> Option<String> {
    let below = || model.table.selected.as_ref().and_then(|id| model.fleet.get(id));
    model.subject().or_else(below).map(|d| d.name.clone())
}

/// Shows a place.
pub fn open(model: &mut Model, place: Place) -> Vec<Effect> {
    let Place { screen, mut names } = place;
    match screen {
        Screen::Table => actions::go_table(model),
        Screen::Logs => actions::open_logs_of(model, names),
        Screen::Detail => actions::open_detail(model, names.pop()),
        Screen::Tap => super::tap::open(model, names.pop()),
        Screen::Build => names.pop().map(|id| super::builds::open(model, id)).unwrap_or_default(),
        Screen::Deploy => super::deploy::open(model, None),
        // A form is come back to by what it is about.
        Screen::Policy => {
            let name = names.pop();
            sheet::open(model, Screen::Scaling, name)
        }
        Screen::Call => {
            let tool = if names.len() > 1 { names.pop() } else { None };
            names.pop().map(|name| super::tools::open_call(model, name, tool)).unwrap_or_default()
        }
        _ => sheet::open(model, screen, names.pop()),
    }
}

/// What a screen needs that is shown again.
pub fn shown(model: &mut Model) -> Vec<Effect> {
    match model.screen() {
        Screen::Detail => fetch(model).into_iter().collect(),
        _ => sheet::ask_now(model),
    }
}

/// Remembers where a key led.
pub fn visited(model: &mut Model, from: Place) {
    let here = model.place();
    if here == from {
        return;
    }
    model.before = Some(from);
    if model.visits.get(model.visit) == Some(&here) {
        return;
    }
    model.visits.truncate(model.visit + 1);
    model.visits.push(here);
    let over = model.visits.len().saturating_sub(VISITS);
    model.visits.drain(..over);
    model.visit = model.visits.len() - 1;
}

fn last(model: &mut Model) -> Vec<Effect> {
    match model.before.clone() {
        Some(place) => open(model, place),
        None => {
            tell(model, "there is no last screen yet", false);
            Vec::new()
        }
    }
}

fn step(model: &mut Model, on: bool) -> Vec<Effect> {
    let to = if on { model.visit.checked_add(1) } else { model.visit.checked_sub(1) };
    let place = to.and_then(|to| model.visits.get(to).cloned().map(|place| (to, place)));
    match place {
        Some((to, place)) => {
            model.visit = to;
            open(model, place)
        }
        None => {
            tell(model, if on { "this is the newest screen" } else { "this is the first screen" }, false);
            Vec::new()
        }
    }
}
