//! Messages as they pass: begin, freeze, move, copy, save.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::Value;

use super::super::flow::Flow;
use super::super::model::{Model, Overlay, Screen};
use super::super::port::Request;
use super::super::tap::Tap;
use super::desk::start;
use super::{Effect, tell};
use crate::link::Frame;

/// Messages of a deployment.
pub fn open(model: &mut Model, name: Option<String>) -> Vec<Effect> {
    let Some(name) = name.or_else(|| model.subject().map(|d| d.name.clone())) else {
        tell(model, "no deployment is selected", true);
        return Vec::new();
    };
    model.screens.retain(|s| *s != Screen::Tap);
    model.screens.push(Screen::Tap);
    // What passed before is still there when one comes back.
    if model.desk.tap.as_ref().is_some_and(|t| t.name == name && t.flow.is_some()) {
        return Vec::new();
    }
    begin(model, name)
}

fn begin(model: &mut Model, name: String) -> Vec<Effect> {
    let mut effects = Vec::new();
    let filter = model.desk.tap.as_ref().and_then(|t| t.filter().cloned());
    effects.extend(model.desk.tap.as_ref().and_then(|t| t.flow).map(|flow| Effect::Ask(Request::StopFlow { flow })));
    let begun = start(model, Flow::Tap { name: name.clone() });
    let mut tap = Tap::new(name, begun.as_ref().map(|(flow, _)| *flow));
    tap.set_filter(filter);
    model.desk.tap = Some(tap);
    effects.extend(begun.map(|(_, effect)| effect));
    effects
}

/// Keys of the messages.
pub fn key(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    let page = isize::try_from(super::super::view::tap::room(model)).unwrap_or(1).max(1);
    let Some(tap) = model.desk.tap.as_mut() else { return Vec::new() };
    match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
        (KeyCode::Char('j') | KeyCode::Down, false) => tap.go(1),
        (KeyCode::Char('k') | KeyCode::Up, false) => tap.go(-1),
        (KeyCode::Char('d'), true) => tap.go(page / 2),
        (KeyCode::Char('u'), true) => tap.go(-(page / 2)),
        (KeyCode::PageDown, _) => tap.go(page),
        (KeyCode::PageUp, _) => tap.go(-page),
        (KeyCode::Char('g') | KeyCode::Home, false) => tap.go(isize::MIN + 1),
        (KeyCode::Char('G') | KeyCode::End, false) => tap.freeze(false),
        (KeyCode::Char(' ' | 'f'), false) => {
            let still = tap.follow;
            tap.freeze(still);
        }
        (KeyCode::Char('R'), false) => {
            let name = tap.name.clone();
            return begin(model, name);
        }
        (KeyCode::Char('s'), true) => return save(model, None),
        (KeyCode::Enter, _) => {
            if let Some(entry) = tap.current() {
                let (title, text) = full(&entry.frame);
                tap.freeze(true);
                model.overlay = Some(Overlay::Line { title, text, scroll: 0 });
            }
        }
        (KeyCode::Char('y'), false) => {
            let message = tap.current().map(|e| e.frame.message.clone());
            return message.map(|text| Effect::Copy { text, what: "1 message".to_owned() }).into_iter().collect();
        }
        (KeyCode::Char('Y'), false) => {
            let (text, lines) = tap.saved();
            let text = String::from_utf8_lossy(&text).into_owned();
            return vec![Effect::Copy { text, what: format!("{lines} messages") }];
        }
        (KeyCode::Char('c'), false) => {
            let text = format!("sigil tap {} -f", super::super::fleet::bare(&tap.name));
            return vec![Effect::Copy { text, what: "the command".to_owned() }];
        }
        (KeyCode::Char('l'), false) => return super::actions::open_logs(model),
        (KeyCode::Char('t'), false) => return super::tools::open(model),
        (KeyCode::Char('i'), false) => return super::actions::open_detail(model, None),
        _ => {}
    }
    Vec::new()
}

/// A message in full, laid out.
fn full(frame: &Frame) -> (String, Vec<String>) {
    let way = if frame.from_client { "to the server" } else { "from the server" };
    let title = format!("{} {way}", frame.method);
    let mut text =
        vec![format!("by {}, session {}, id {}, {} bytes", frame.caller, frame.session, frame.id, frame.size)];
    if !frame.from_client {
        let kept = if frame.cached { ", which the gateway had kept" } else { "" };
        text.push(format!("{:.1} ms after its request{kept}", frame.took_ms));
    }
    text.push(String::new());
    match serde_json::from_str::<Value>(&frame.message) {
        Ok(value) => text.extend(format!("{value:#}").lines().map(str::to_owned)),
        Err(_) => text.extend(frame.message.lines().map(str::to_owned)),
    }
    if frame.cut {
        text.push("… and more: only its beginning was kept".to_owned());
    }
    (title, text)
}

/// Writes what is shown as lines of JSON.
pub fn save(model: &mut Model, path: Option<String>) -> Vec<Effect> {
    let Some(tap) = &model.desk.tap else { return Vec::new() };
    let (text, lines) = tap.saved();
    if lines == 0 {
        tell(model, "nothing is shown that could be saved", true);
        return Vec::new();
    }
    let stamp = model.now.to_zoned(model.zone.clone()).strftime("%Y%m%d-%H%M%S").to_string();
    let path = path.unwrap_or_else(|| format!("{}-messages-{stamp}.jsonl", super::super::fleet::bare(&tap.name)));
    vec![Effect::Save { path, text, lines }]
}
