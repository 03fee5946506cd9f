//! The table of deployments: cursor, marks, order.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::model::{Model, Overlay};
use super::{Effect, actions};
use crate::link::Update;

/// Takes a change of the fleet in.
pub fn fleet(model: &mut Model, from: usize, update: Update) -> Vec<Effect> {
    if update.resync {
        // What other hosts said stays.
        let prefix = model.prefix(from);
        model.fleet.retain(|id, _| !id.starts_with(&prefix));
        model.hosts[from].complete = false;
        model.dirty = true;
    }
    let page = model.page.as_ref().map(|p| p.name.clone());
    let mut stale_page = false;
    for deployment in update.changed {
        let old = model.fleet.get(&deployment.id);
        if old != Some(&deployment) {
            // A page follows what the list says, but not every figure.
            let moved = |o: &crate::link::Deployment| {
                (o.state.as_str(), o.ready, o.desired, o.release, o.restarts, &o.message)
                    != (
                        &deployment.state,
                        deployment.ready,
                        deployment.desired,
                        deployment.release,
                        deployment.restarts,
                        &deployment.message,
                    )
            };
            stale_page |= page.as_deref() == Some(&deployment.name) && old.is_none_or(moved);
            model.dirty = true;
            model.fleet.insert(deployment.id.clone(), deployment);
        }
    }
    for id in &update.removed {
        model.dirty |= model.fleet.remove(id).is_some();
        model.table.marked.remove(id);
    }
    if update.complete && !model.hosts[from].complete {
        model.hosts[from].complete = true;
        model.dirty = true;
        let (prefix, known) = (model.prefix(from), &model.fleet);
        model.table.marked.retain(|id| !id.starts_with(&prefix) || known.contains_key(id));
    }
    keep_cursor(model);
    if stale_page && model.screen() == super::Screen::Detail {
        return super::fetch(model).into_iter().collect();
    }
    Vec::new()
}

/// The cursor stays on its deployment, wherever that moves; on the nearest row when it is gone.
pub fn keep_cursor(model: &mut Model) {
    let ids: Vec<String> = model.rows().iter().map(|d| d.id.clone()).collect();
    let at = model.table.selected.as_ref().and_then(|id| ids.iter().position(|i| i == id));
    let at = match at {
        Some(at) => at,
        // While a snapshot is on its way, its row may still come.
        None if !model.complete() && model.table.selected.is_some() => return,
        None => {
            let at = model.table.offset.min(ids.len().saturating_sub(1));
            model.table.selected = ids.get(at).cloned();
            at
        }
    };
    let room = super::super::view::table::room(model).max(1);
    let table = &mut model.table;
    table.offset = table.offset.min(at).max((at + 1).saturating_sub(room)).min(ids.len().saturating_sub(1));
}

fn move_to(model: &mut Model, to: impl FnOnce(usize, usize) -> usize) {
    let ids: Vec<String> = model.rows().iter().map(|d| d.id.clone()).collect();
    let at = model.table.selected.as_ref().and_then(|id| ids.iter().position(|i| i == id)).unwrap_or(0);
    let last = ids.len().saturating_sub(1);
    model.table.selected = ids.get(to(at, last).min(last)).cloned();
    keep_cursor(model);
}

/// Marks all rows from the last mark to the cursor; without a mark the row under it.
fn range(model: &mut Model) {
    let ids: Vec<String> = model.rows().iter().map(|d| d.id.clone()).collect();
    let place = |id: &Option<String>| id.as_ref().and_then(|id| ids.iter().position(|i| i == id));
    let Some(at) = place(&model.table.selected) else { return };
    let from = place(&model.table.anchor).unwrap_or(at);
    model.table.marked.extend(ids[from.min(at)..=from.max(at)].iter().cloned());
    model.table.anchor = ids.get(at).cloned();
}

/// Keys of the table.
pub fn key(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    let room = super::super::view::table::room(model).max(1);
    match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
        (KeyCode::Char('j') | KeyCode::Down, false) => move_to(model, |at, _| at + 1),
        (KeyCode::Char('k') | KeyCode::Up, false) => move_to(model, |at, _| at.saturating_sub(1)),
        (KeyCode::Char('g') | KeyCode::Home, false) => move_to(model, |_, _| 0),
        (KeyCode::Char('G') | KeyCode::End, false) => move_to(model, |_, last| last),
        (KeyCode::Char('d'), true) => move_to(model, |at, _| at + room / 2),
        (KeyCode::Char('u'), true) => move_to(model, |at, _| at.saturating_sub(room / 2)),
        (KeyCode::PageDown, _) => move_to(model, |at, _| at + room),
        (KeyCode::PageUp, _) => move_to(model, |at, _| at.saturating_sub(room)),
        (KeyCode::Char(' '), false) => {
            if let Some(id) = model.table.selected.clone() {
                if !model.table.marked.remove(&id) {
                    model.table.marked.insert(id.clone());
                }
                model.table.anchor = Some(id);
                move_to(model, |at, _| at + 1);
            }
        }
        (KeyCode::Char('v'), false) => range(model),
        (KeyCode::Char('S'), false) => model.overlay = Some(Overlay::Sort),
        (KeyCode::Enter | KeyCode::Char('i'), false) => return actions::open_detail(model, None),
        _ => return actions::key(model, key),
    }
    Vec::new()
}
