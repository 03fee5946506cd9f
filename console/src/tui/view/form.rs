//! A form: labels, values, what is wrong with them, buttons, and what the field under the cursor is for.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::UnicodeWidthStr as _;

use super::super::form::{Form, Kind, Node, Row, Text};
use super::super::model::Model;
use super::super::theme::Role;
use super::{fit, overlay, words};

/// Rows for what the field under the cursor is for.
const ABOUT: u16 = 3;

/// A line of the form.
enum Line<'a> {
    Field(usize, &'a Row<'a>),
    Problem(&'a str),
    Buttons,
    Empty,
}

/// Draws a form; answers where the cursor belongs.
pub fn draw(model: &Model, form: &Form, area: Rect, buf: &mut Buffer) -> Option<(u16, u16)> {
    let rows = form.rows();
    let mut lines = Vec::new();
    let mut focus = 0;
    for (i, row) in rows.iter().enumerate() {
        if form.row() == Some(i) {
            focus = lines.len();
        }
        lines.push(Line::Field(i, row));
        lines.extend(form.problem(&row.pointer).map(Line::Problem));
    }
    lines.extend(form.problem("").filter(|_| !rows.iter().any(|r| r.pointer.is_empty())).map(Line::Problem));
    if !rows.is_empty() {
        lines.push(Line::Empty);
    }
    if !form.buttons.is_empty() {
        if form.button().is_some() {
            focus = lines.len();
        }
        lines.push(Line::Buttons);
    }
    let about = if area.height > 10 { ABOUT + 1 } else { 0 };
    let room = usize::from(area.height.saturating_sub(about)).max(1);
    // The line under the cursor, and what is wrong with it, are always there.
    let offset = form.offset.min(focus).max((focus + 2).saturating_sub(room)).min(lines.len().saturating_sub(room));
    let label = rows.iter().map(|r| r.depth * 2 + r.label.width() + 2).max().unwrap_or(8);
    let label = label.clamp(8, (usize::from(area.width) / 3).max(8));
    let mut cursor = None;
    for (i, line) in lines.iter().skip(offset).take(room).enumerate() {
        let y = area.y + i as u16;
        let line_area = Rect { y, height: 1, ..area };
        match line {
            Line::Field(n, row) => {
                let at = field(model, row, label, form.row() == Some(*n), line_area, buf);
                cursor = cursor.or(at);
            }
            Line::Problem(text) => {
                let sign = model.theme.glyph("✖", "x");
                let text =
                    fit(model, &format!("{sign} {}", words(model, text)), usize::from(area.width) - label.min(12));
                let x = area.x + (label as u16 + 2).min(area.width / 2);
                buf.set_stringn(x, y, text, usize::from(area.x + area.width - x), model.theme.style(Role::Bad));
            }
            Line::Buttons => buttons(model, form, line_area, buf),
            Line::Empty => {}
        }
    }
    let hidden = lines.len().saturating_sub(offset + room);
    if hidden > 0 && area.width > 16 {
        let text = format!(" {hidden} more {} ", model.theme.glyph("↓", "v"));
        let x = area.x + area.width - text.width() as u16;
        buf.set_string(x, area.y + room as u16 - 1, text, model.theme.style(Role::Selected));
    }
    if about > 0 {
        let below = Rect { y: area.y + area.height - about, height: about, ..area };
        told(model, form, below, buf);
    }
    cursor
}

fn field(model: &Model, row: &Row<'_>, label: usize, here: bool, area: Rect, buf: &mut Buffer) -> Option<(u16, u16)> {
    let theme = model.theme;
    let width = usize::from(area.width);
    let role = if here { Role::Key } else { Role::Text };
    let sign = if here { theme.glyph("›", ">") } else { " " };
    buf.set_stringn(area.x, area.y, sign, 1, theme.style(Role::Key));
    let star = if row.node.required && !row.item { "*" } else { " " };
    let name = format!("{}{}", "  ".repeat(row.depth), words(model, &row.label));
    let name = fit(model, &name, label.saturating_sub(2));
    buf.set_stringn(area.x + 2, area.y, &name, width, theme.style(role));
    buf.set_stringn(area.x + 2 + name.width() as u16, area.y, star, 1, theme.style(Role::Warn));
    let x = area.x + (label as u16 + 2).min(area.width.saturating_sub(1));
    let room = usize::from((area.x + area.width).saturating_sub(x));
    // What it has to be stands behind it, where there is room for both.
    let hint = words(model, &row.node.hint);
    let side = if room > 44 { (room / 2).min(hint.width() + 2) } else { 0 };
    let value = room.saturating_sub(side).max(1);
    if side > 2 {
        let at = area.x + area.width - side as u16;
        buf.set_stringn(at + 1, area.y, fit(model, &hint, side - 2), side, theme.style(Role::Dim));
    }
    shown(model, row.node, here, (x, area.y), value, buf)
}

/// Draws the value; answers the cursor's place when it is typed into.
fn shown(
    model: &Model,
    node: &Node,
    here: bool,
    (x, y): (u16, u16),
    room: usize,
    buf: &mut Buffer,
) -> Option<(u16, u16)> {
    let theme = model.theme;
    let mut put = |text: &str, role: Role| {
        buf.set_stringn(x, y, fit(model, text, room), room, theme.style(role));
    };
    let (left, right) = (theme.glyph("‹", "<"), theme.glyph("›", ">"));
    match &node.kind {
        Kind::Text { text, .. } => return typed(model, text, node.masked, here, (x, y), room, buf),
        Kind::Pick { options, chosen } => {
            let word = chosen.and_then(|i| options.get(i)).map(|(_, name)| words(model, name));
            match (word, here) {
                (Some(word), true) => put(&format!("{left} {word} {right}"), Role::Title),
                (Some(word), false) => put(&word, Role::Text),
                (None, true) => put(&format!("{left} left out {right}"), Role::Dim),
                (None, false) => put("-", Role::Dim),
            }
        }
        Kind::Group { given: true, .. } => {
            put(if here && !node.required { "Space leaves it out" } else { "" }, Role::Dim);
        }
        Kind::Group { .. } => put(if here { "left out; Space opens it" } else { "left out" }, Role::Dim),
        Kind::List { items, most } => {
            let count = match items.len() {
                0 => "none".to_owned(),
                1 => "1 item".to_owned(),
                n => format!("{n} items"),
            };
            let add = if here && items.len() < *most { "; Enter adds one" } else { "" };
            put(&format!("{count}{add}"), Role::Dim);
        }
        Kind::Shape { shapes, chosen, .. } => {
            let word = chosen.and_then(|i| shapes.get(i)).map(|(name, _)| words(model, name));
            let word = word.unwrap_or_else(|| "left out".to_owned());
            let role = if chosen.is_some() { Role::Title } else { Role::Dim };
            put(&if here { format!("{left} {word} {right}") } else { word }, role);
        }
    }
    None
}

fn typed(
    model: &Model,
    text: &Text,
    masked: bool,
    here: bool,
    (x, y): (u16, u16),
    room: usize,
    buf: &mut Buffer,
) -> Option<(u16, u16)> {
    let theme = model.theme;
    let line = theme.glyph("⏎", "|");
    let cell = |c: char| match c {
        _ if masked => "*".to_owned(),
        '\n' => line.to_owned(),
        c => words(model, c.encode_utf8(&mut [0; 4])),
    };
    let cells: Vec<String> = text.as_str().chars().map(cell).collect();
    let upto = |n: usize| cells.iter().take(n).map(|c| c.width()).sum::<usize>();
    // The part around the cursor.
    let mut skip = 0;
    if here {
        while skip < text.at() && upto(text.at()) - upto(skip) + 1 > room {
            skip += 1;
        }
    }
    let shown: String = cells[skip..].concat();
    let style =
        if here { Style::new().add_modifier(ratatui::style::Modifier::UNDERLINED) } else { theme.style(Role::Text) };
    if here {
        // Where one types is seen without colour.
        buf.set_stringn(x, y, " ".repeat(room.min(60)), room, style);
    }
    let shown = if here { shown } else { fit(model, &shown, room) };
    buf.set_stringn(x, y, shown, room, style);
    here.then(|| (x + (upto(text.at()) - upto(skip)).min(room.saturating_sub(1)) as u16, y))
}

fn buttons(model: &Model, form: &Form, area: Rect, buf: &mut Buffer) {
    let mut x = area.x + 2;
    for (i, name) in form.buttons.iter().enumerate() {
        let role = if form.button() == Some(i) { Role::Selected } else { Role::Title };
        let left = usize::from((area.x + area.width).saturating_sub(x));
        let (next, _) = buf.set_stringn(x, area.y, format!("[ {name} ]"), left, model.theme.style(role));
        x = next + 2;
    }
}

fn told(model: &Model, form: &Form, area: Rect, buf: &mut Buffer) {
    let theme = model.theme;
    let width = usize::from(area.width);
    let rule = theme.glyph("─", "-").repeat(width);
    buf.set_stringn(area.x, area.y, rule, width, theme.style(Role::Dim));
    let mut lines: Vec<(String, Role)> = Vec::new();
    if let Some(node) = form.focused() {
        for line in node.about.lines().filter(|l| !l.trim().is_empty()) {
            lines.extend(
                overlay::wrapped(&words(model, line.trim()), width.saturating_sub(4))
                    .into_iter()
                    .map(|l| (l, Role::Text)),
            );
        }
        if !node.hint.is_empty() {
            lines.push((words(model, &node.hint), Role::Dim));
        }
    } else if !form.is_checked() {
        lines.push(("Not all of this schema is checked here: the server does it.".to_owned(), Role::Dim));
    }
    for (i, (text, role)) in lines.into_iter().take(usize::from(area.height) - 1).enumerate() {
        buf.set_stringn(area.x + 2, area.y + 1 + i as u16, fit(model, &text, width - 3), width, theme.style(role));
    }
}
