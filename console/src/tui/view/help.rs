//! Help: the keys that hold on the screen, the nearest first, each with the command line that does the same, and the
//! palette's words. Made from the table of keys, so that it shows the owner's.

use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr as _;

use super::super::command::VERBS;
use super::super::keymap::{ACTIONS, here};
use super::super::model::Model;
use super::super::theme::Role;

/// Columns for keys.
const KEYS: usize = 9;
/// Columns for what they do, where the command line fits behind it.
const ABOUT: usize = 37;

/// The lines of help for the screen on top.
pub fn lines(model: &Model) -> Vec<Line<'static>> {
    let width = usize::from(model.size.0).saturating_sub(4);
    let mut lines = Vec::new();
    for context in here(model) {
        if !lines.is_empty() {
            lines.push(Line::from(""));
        }
        for (place, action) in ACTIONS.iter().enumerate().filter(|(_, a)| a.context == *context) {
            let keys = model.keymap.shown(place);
            if !keys.is_empty() {
                row(model, &mut lines, width, &keys, action.help, action.command);
            }
        }
    }
    lines.push(Line::from(""));
    for (verb, args, about) in VERBS {
        row(model, &mut lines, width, &format!(":{verb}"), &format!("{args:<16} {about}"), "");
    }
    lines
}

/// Keys, what they do, and the command line: behind it, or on a line of its own where there is no room.
fn row(model: &Model, lines: &mut Vec<Line<'static>>, width: usize, keys: &str, about: &str, command: &str) {
    let plain = |text: &str| if model.theme.ascii { text.replace('…', "...") } else { text.to_owned() };
    let (about, command) = (plain(about), plain(command));
    let text = model.theme.style(Role::Text);
    let mut spans = vec![Span::styled(format!("{keys:<KEYS$} "), model.theme.style(Role::Key))];
    let before = keys.width().max(KEYS) + 1 + about.width().max(ABOUT) + 1;
    if command.is_empty() {
        spans.push(Span::styled(about, text));
    } else if before + command.width() <= width {
        let room = (KEYS + 1 + ABOUT).saturating_sub(keys.width().max(KEYS) + 1);
        spans.push(Span::styled(format!("{about:<room$} "), text));
        spans.push(Span::styled(command, model.theme.style(Role::Dim)));
    } else {
        spans.push(Span::styled(about, text));
        lines.push(Line::from(std::mem::take(&mut spans)));
        spans.push(Span::styled(format!("{:KEYS$} {command}", ""), model.theme.style(Role::Dim)));
    }
    lines.push(Line::from(spans));
}
