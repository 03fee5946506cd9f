//! Messages as they pass: when, which way, by whom, what, and how long the answer took.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr as _;

use super::super::logbuf::thousands;
use super::super::model::Model;
use super::super::tap::Entry;
use super::super::theme::Role;
use super::super::update::joined;
use super::call::put;
use super::{fit, words};

/// Rows for messages.
pub fn room(model: &Model) -> usize {
    model.body_rows().saturating_sub(2)
}

/// Draws them.
pub fn draw(model: &Model, area: Rect, buf: &mut Buffer) {
    let Some(tap) = &model.desk.tap else { return };
    let (state, role) = match (&tap.trouble, tap.flow.is_some(), tap.follow) {
        (Some(trouble), ..) => (format!("ended: {}; R begins anew", joined(&trouble.what, &trouble.hint)), Role::Bad),
        (None, false, _) => ("not connected; R begins anew".to_owned(), Role::Bad),
        (None, true, true) => ("live".to_owned(), Role::Good),
        (None, true, false) => ("frozen: Space goes on; what passes is kept".to_owned(), Role::Warn),
    };
    let mut head = format!("{} of {}", thousands(tap.len() as u64), thousands(tap.total));
    if tap.lost > 0 {
        head.push_str(&format!(", {} passed too fast to be shown", thousands(tap.lost)));
    }
    if let Some(filter) = tap.filter() {
        head.push_str(&format!(", /{}", filter.text));
    }
    put(model, area, buf, area.y, &format!("{state}  {head}"), role);
    if tap.len() == 0 {
        let text = match (tap.kept(), tap.trouble.is_some()) {
            (0, false) => {
                "Nothing has passed yet. Call a tool (t), or use a client; each message is shown as it comes."
            }
            (0, true) => "",
            _ => "No message fits the filter. Esc shows all.",
        };
        return put(model, area, buf, area.y + 2, text, Role::Text);
    }
    let [caller, method, id] = widths(usize::from(area.width));
    let heads = ("TIME", "CALLER", "METHOD", "ID", "TOOK");
    let text =
        format!("{:<15} {:<caller$} {:<method$} {:<id$} {:>8} MESSAGE", heads.0, heads.1, heads.2, heads.3, heads.4);
    buf.set_stringn(area.x + 1, area.y + 1, text, usize::from(area.width) - 1, model.theme.style(Role::Dim));
    let room = room(model);
    let at = tap.at();
    // The newest at the bottom, or the cursor in sight.
    let first = if tap.follow {
        tap.len().saturating_sub(room)
    } else {
        at.saturating_sub(room / 2).min(tap.len().saturating_sub(room))
    };
    for i in 0..room {
        let Some(entry) = tap.get(first + i) else { break };
        let y = area.y + 2 + i as u16;
        buf.set_line(area.x + 1, y, &row(model, entry, usize::from(area.width).saturating_sub(2)), area.width - 1);
        if first + i == at && !tap.follow {
            buf.set_style(Rect { y, height: 1, ..area }, model.theme.style(Role::Selected));
        }
    }
}

/// Of callers, methods and ids.
fn widths(columns: usize) -> [usize; 3] {
    if columns < 100 { [6, 16, 3] } else { [12, 24, 6] }
}

fn row(model: &Model, entry: &Entry, width: usize) -> Line<'static> {
    let (frame, theme) = (&entry.frame, model.theme);
    if frame.lost > 0 {
        let text = format!("{} messages passed too fast to be shown", thousands(frame.lost));
        return Line::from(Span::styled(text, theme.style(Role::Warn)));
    }
    let time = frame.time.map(|t| t.to_zoned(model.zone.clone()).strftime("%H:%M:%S%.3f").to_string());
    let (way, role) = match frame.from_client {
        true => (theme.glyph("→", ">"), Role::Key),
        false => (theme.glyph("←", "<"), Role::Good),
    };
    let role = if frame.method == "error" { Role::Bad } else { role };
    let took = match (frame.from_client, frame.cached) {
        (true, _) => String::new(),
        (false, true) => "kept".to_owned(),
        (false, false) if frame.took_ms >= 1_000.0 => format!("{:.1} s", frame.took_ms / 1_000.0),
        (false, false) => format!("{:.1} ms", frame.took_ms),
    };
    let cell = |text: &str, width: usize| {
        let text = fit(model, &words(model, text), width);
        let pad = width.saturating_sub(text.width());
        format!("{text}{} ", " ".repeat(pad))
    };
    let head = format!("{:<12} ", time.unwrap_or_default());
    let [caller, method, id] = widths(width + 2);
    let used = 13 + 3 + caller + method + id + 3 + 9;
    let message =
        fit(model, &words(model, &frame.message.chars().take(500).collect::<String>()), width.saturating_sub(used));
    Line::from(vec![
        Span::styled(head, theme.style(Role::Dim)),
        Span::styled(format!("{way}  "), theme.style(role)),
        Span::styled(cell(&frame.caller, caller), theme.style(Role::Dim)),
        Span::styled(cell(&frame.method, method), theme.style(role)),
        Span::styled(cell(&frame.id, id), theme.style(Role::Dim)),
        Span::styled(format!("{took:>8} "), theme.style(Role::Text)),
        Span::styled(message, theme.style(Role::Text)),
    ])
}
