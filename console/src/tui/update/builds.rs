//! Operations: one of them is followed while it is looked at.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::desk::Building;
use super::super::flow::{Flow, Told};
use super::super::model::{Model, Place, Screen};
use super::super::port::Request;
use super::super::steps::Steps;
use super::desk::start;
use super::{Effect, places, sheet, tell};

/// Shows an operation and follows it.
pub fn open(model: &mut Model, id: String) -> Vec<Effect> {
    let prefix = model.prefix(model.here());
    // With several hosts its host's name stands in front.
    let id = id.strip_prefix(&prefix).map(str::to_owned).unwrap_or(id);
    let mut effects: Vec<Effect> = Vec::new();
    if model.desk.build.as_ref().is_none_or(|b| b.id != id) {
        let old = model.desk.build.take().and_then(|b| b.flow);
        effects.extend(old.map(|flow| Effect::Ask(Request::StopFlow { flow })));
        let begun = start(model, Flow::Operation { id: id.clone() });
        let flow = begun.as_ref().map(|(flow, _)| *flow);
        effects.extend(begun.map(|(_, effect)| effect));
        let steps = Steps::default();
        model.desk.build = Some(Building { id: id.clone(), flow, steps, trouble: None, follow: true });
        model.sheets.remove(&Screen::Build);
    }
    effects.extend(sheet::open(model, Screen::Build, Some(format!("{prefix}{id}"))));
    effects
}

/// What the operation tells.
pub fn told(model: &mut Model, told: Told) {
    let Some(build) = model.desk.build.as_mut() else { return };
    match told {
        Told::Events(events) => events.iter().for_each(|e| build.steps.take(e)),
        Told::Note(text) => build.steps.notes.push(text),
        _ => return,
    }
    let follow = build.follow && build.steps.done.is_none();
    if model.screen() == Screen::Build {
        sheet::settle(model);
        if follow {
            sheet::scroll_to(model, usize::MAX);
        } else if model.desk.build.as_ref().is_some_and(|b| b.steps.done.is_some() && b.follow) {
            // How it ended stands at the top.
            sheet::scroll_to(model, 0);
        }
    }
}

/// Keys of an operation; `None`: none of these.
pub fn key(model: &mut Model, key: KeyEvent) -> Option<Vec<Effect>> {
    let build = model.desk.build.as_mut()?;
    Some(match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
        (KeyCode::Char(' ' | 'f'), false) => {
            build.follow = !build.follow;
            let words = if build.follow { "follows" } else { "frozen: Space goes on" };
            tell(model, words, false);
            Vec::new()
        }
        // Whoever moves reads.
        (KeyCode::Char('j' | 'k' | 'g') | KeyCode::Up | KeyCode::Down | KeyCode::PageUp | KeyCode::PageDown, _)
        | (KeyCode::Char('d' | 'u'), true) => {
            build.follow = false;
            return None;
        }
        (KeyCode::Char('G') | KeyCode::End, false) => {
            build.follow = true;
            return None;
        }
        (KeyCode::Char('R'), false) => {
            let id = build.id.clone();
            let stop = build.flow.map(|flow| Effect::Ask(Request::StopFlow { flow }));
            model.desk.build = None;
            stop.into_iter().chain(open(model, id)).collect()
        }
        (KeyCode::Char('s'), true) => return Some(save(model, None)),
        (KeyCode::Char('c'), false) => {
            let text = format!("sigil ops {} -f", build.id);
            vec![Effect::Copy { text, what: "the command".to_owned() }]
        }
        (KeyCode::Enter | KeyCode::Char('i'), _) => {
            let name = build.steps.done.as_ref().map(|d| d.deployment.clone()).filter(|n| !n.is_empty());
            match name {
                Some(name) => {
                    let name = format!("{}{name}", model.prefix(model.here()));
                    places::open(model, Place { screen: Screen::Detail, names: vec![name] })
                }
                None => Vec::new(),
            }
        }
        _ => return None,
    })
}

/// Writes the output that is kept.
pub fn save(model: &mut Model, path: Option<String>) -> Vec<Effect> {
    let Some(build) = &model.desk.build else { return Vec::new() };
    let (lines, mut text) = (build.steps.output.len(), Vec::new());
    if lines == 0 {
        tell(model, "it has printed nothing that could be saved", true);
        return Vec::new();
    }
    for output in &build.steps.output {
        text.extend_from_slice(output.line.as_bytes());
        text.push(b'\n');
    }
    let path = path.unwrap_or_else(|| format!("operation-{}.log", build.id));
    vec![Effect::Save { path, text, lines }]
}
