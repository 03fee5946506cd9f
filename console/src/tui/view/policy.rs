//! The editor of a scaling policy: its fields, and under them what the last days would have been like.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use sigil_core::scale::Simulated;

use super::super::desk::Editing;
use super::super::flow::Replayed;
use super::super::model::Model;
use super::super::theme::Role;
use super::super::update::joined;
use super::call::put;
use super::form;

/// Rows for what would have been.
const PREVIEW: u16 = 8;

/// Draws it; answers where the cursor belongs.
pub fn draw(model: &Model, area: Rect, buf: &mut Buffer) -> Option<(u16, u16)> {
    let editing = model.desk.policy.as_ref()?;
    let below = if area.height > PREVIEW + 6 { PREVIEW } else { 0 };
    let above = Rect { height: area.height - below, ..area };
    if below > 0 {
        preview(model, editing, Rect { y: area.y + above.height, height: below, ..area }, buf);
    }
    form::draw(model, &editing.form, above, buf)
}

fn preview(model: &Model, editing: &Editing, area: Rect, buf: &mut Buffer) {
    let theme = model.theme;
    let width = usize::from(area.width);
    buf.set_stringn(area.x, area.y, theme.glyph("─", "-").repeat(width), width, theme.style(Role::Dim));
    let y = area.y + 1;
    let days = editing.load.as_ref().map(|l| l.history.buckets().count()).unwrap_or(0);
    let hours = days as f64 * 300.0 / 3_600.0;
    let head = format!("Replayed over the load of the last days ({hours:.0} hours in which it was used)");
    put(model, area, buf, y, &head, Role::Title);
    let after = match &editing.after {
        Some(Err(trouble)) => {
            put(model, area, buf, y + 1, &joined(&trouble.what, &trouble.hint), Role::Warn);
            None
        }
        Some(Ok(after)) => Some(after),
        None => None,
    };
    let Some(after) = after.or(editing.before.as_ref()) else {
        if editing.after.is_none() {
            let text = if editing.flow.is_some() { "replaying" } else { "nothing is replayed yet" };
            put(model, area, buf, y + 1, text, Role::Dim);
        }
        return;
    };
    let busy = if editing.flow.is_some() { "  replaying" } else { "" };
    put(model, area, buf, y + 1, &format!("{:<22}{:>12}{:>12}{busy}", "", "holds", "this"), Role::Dim);
    for (i, (name, of)) in FACTS.iter().enumerate() {
        let old = editing.before.as_ref().map(|b| of(&b.ran));
        let new = of(&after.ran);
        let role = if old.as_ref().is_some_and(|o| *o != new) { Role::Key } else { Role::Text };
        let line = format!("{name:<22}{:>12}{new:>12}", old.unwrap_or_else(|| "-".to_owned()));
        put(model, area, buf, y + 2 + i as u16, &line, role);
    }
    // Where there is room, how its replicas would have gone up and down.
    if area.width >= 70 {
        let left = 52;
        let steps = Rect { x: area.x + left, width: area.width - left, ..area };
        sketch(model, after, Rect { y: y + 1, height: area.height - 2, ..steps }, buf);
    }
    if let Some(note) = after.notes.first() {
        put(model, area, buf, y + 1, note, Role::Warn);
    }
}

type Fact = (&'static str, fn(&Simulated) -> String);

const FACTS: [Fact; 5] = [
    ("replicas at most", |s| s.most_replicas.to_string()),
    ("replica hours", |s| format!("{:.1}", s.replica_hours)),
    ("cost", |s| s.cost.map_or_else(|| "no rates".to_owned(), |c| format!("{c:.2}"))),
    ("waited at most", |s| format!("{:.0} calls", s.most_queued)),
    ("slowest p95", |s| format!("{:.0} ms", s.worst_p95)),
];

/// Replicas over time, one column for each part of it: the most of that part.
fn sketch(model: &Model, ran: &Replayed, area: Rect, buf: &mut Buffer) {
    const FINE: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
    let (columns, rows) = (usize::from(area.width).saturating_sub(6).max(1), usize::from(area.height).max(1));
    let most = ran.ran.most_replicas.max(1) as usize;
    let part = ran.ran.ticks.len().div_ceil(columns).max(1);
    let heights: Vec<usize> =
        ran.ran.ticks.chunks(part).map(|c| c.iter().map(|t| t.replicas as usize).max().unwrap_or(0)).collect();
    for (x, height) in heights.iter().take(columns).enumerate() {
        let eighths = height * rows * 8 / most;
        for row in 0..rows {
            let fill = eighths.saturating_sub((rows - 1 - row) * 8).min(8);
            let cell = if model.theme.ascii { if fill >= 4 { "#" } else { " " } } else { FINE[fill] };
            let (x, y) = (area.x + 5 + x as u16, area.y + row as u16);
            buf.set_stringn(x, y, cell, 1, model.theme.style(Role::Good));
        }
    }
    buf.set_stringn(area.x, area.y, format!("{most:>4}"), 4, model.theme.style(Role::Dim));
    buf.set_stringn(area.x, area.y + rows as u16 - 1, format!("{:>4}", 0), 4, model.theme.style(Role::Dim));
}
