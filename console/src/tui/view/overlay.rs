//! What lies over a screen: help, questions, input, one line in full.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr as _;

use super::super::command::VERBS;
use super::super::model::{Confirm, Input, Model, Overlay, Purpose, Sort};
use super::super::theme::Role;
use super::super::update::suggestions;
use super::{fit, prompt, words};

/// Text in lines of a width, broken at spaces where there are any; what is indented stays so.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let indent = text.len() - text.trim_start_matches(' ').len();
    if indent > 0 && indent * 2 < width && indent < text.len() {
        let pad = " ".repeat(indent);
        return wrapped(&text[indent..], width - indent).into_iter().map(|l| format!("{pad}{l}")).collect();
    }
    let mut out = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let len = word.width();
        if used > 0 && used + 1 + len > width {
            out.push(String::new());
            used = 0;
        } else if used > 0
            && let Some(line) = out.last_mut()
        {
            line.push(' ');
            used += 1;
        }
        for c in word.chars() {
            let w = unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
            if used + w > width.max(1) {
                out.push(String::new());
                used = 0;
            }
            if let Some(line) = out.last_mut() {
                line.push(c);
            }
            used += w;
        }
    }
    out
}

/// Draws what lies over the screen, but for input.
pub fn draw(model: &Model, area: Rect, buf: &mut Buffer) {
    match &model.overlay {
        None | Some(Overlay::Input(_)) => {}
        Some(Overlay::Help { scroll }) => {
            let screen = model.screen().titled().map_or("Detail", |t| t.title);
            panel(model, &format!("{screen}: keys"), &super::help::lines(model), *scroll, area, buf);
        }
        Some(Overlay::Confirm(confirm)) => question(model, confirm, area, buf),
        Some(Overlay::Question(asked)) => super::question::draw(model, asked, area, buf),
        Some(Overlay::Secret(ask)) => super::question::secret(model, ask, area, buf),
        Some(Overlay::Sort) if model.screen().is_sheet() => {
            let now = model.sheet().map_or(0, |s| s.order);
            let orders = model.screen().orders().iter().enumerate();
            let lines: Vec<Line<'static>> = orders
                .map(|(i, (key, word))| {
                    let sign = if i == now { " (now; again inverts)" } else { "" };
                    let key = Span::styled(format!(" {key} "), model.theme.style(Role::Key));
                    Line::from(vec![key, Span::styled(format!(" {word}{sign}"), model.theme.style(Role::Text))])
                })
                .collect();
            panel(model, "Sort by", &lines, 0, area, buf);
        }
        Some(Overlay::Sort) => {
            let lines: Vec<Line<'static>> = Sort::ALL
                .iter()
                .map(|(by, key, word)| {
                    let sign = if *by == model.table.sort { " (now; again inverts)" } else { "" };
                    let key = Span::styled(format!(" {key} "), model.theme.style(Role::Key));
                    Line::from(vec![key, Span::styled(format!(" {word}{sign}"), model.theme.style(Role::Text))])
                })
                .collect();
            panel(model, "Sort by", &lines, 0, area, buf);
        }
        Some(Overlay::Line { title, text, scroll }) => {
            let width = usize::from(area.width).saturating_sub(6).max(8);
            let lines: Vec<Line<'static>> = text
                .iter()
                .flat_map(|l| wrapped(&words(model, l), width))
                .map(|l| Line::from(Span::styled(l, model.theme.style(Role::Text))))
                .collect();
            panel(model, title, &lines, *scroll, area, buf);
        }
    }
}

/// A box in the middle, as large as its text.
pub(super) fn panel(
    model: &Model,
    title: &str,
    lines: &[Line<'static>],
    scroll: usize,
    area: Rect,
    buf: &mut Buffer,
) -> Rect {
    let title = fit(model, &words(model, title), usize::from(area.width).saturating_sub(6));
    let widest = lines.iter().map(Line::width).max().unwrap_or(0).max(title.width() + 2);
    let width = (widest as u16 + 4).min(area.width);
    let height = (lines.len() as u16 + 2).min(area.height);
    let rect = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let plain = model.theme.style(Role::Text);
    let (h, v, corners) =
        if model.theme.ascii { ("-", "|", ["+"; 4]) } else { ("─", "│", ["╭", "╮", "╰", "╯"]) };
    for y in rect.y..rect.y + rect.height {
        for x in rect.x..rect.x + rect.width {
            let (left, right) = (x == rect.x, x + 1 == rect.x + rect.width);
            let (top, bottom) = (y == rect.y, y + 1 == rect.y + rect.height);
            let symbol = match (left, right, top, bottom) {
                (true, _, true, _) => corners[0],
                (_, true, true, _) => corners[1],
                (true, _, _, true) => corners[2],
                (_, true, _, true) => corners[3],
                (true, ..) | (_, true, ..) => v,
                (_, _, true, _) | (.., true) => h,
                _ => " ",
            };
            if let Some(cell) = buf.cell_mut((x, y)) {
                cell.reset();
                cell.set_symbol(symbol).set_style(plain);
            }
        }
    }
    buf.set_stringn(
        rect.x + 2,
        rect.y,
        format!(" {title} "),
        usize::from(width).saturating_sub(4),
        model.theme.style(Role::Title),
    );
    let room = usize::from(height.saturating_sub(2));
    let scroll = scroll.min(lines.len().saturating_sub(room));
    for (i, line) in lines.iter().skip(scroll).take(room).enumerate() {
        buf.set_line(rect.x + 2, rect.y + 1 + i as u16, line, width.saturating_sub(4));
    }
    if lines.len() > scroll + room {
        let text = format!(" {} more {} ", lines.len() - scroll - room, model.theme.glyph("↓", "v"));
        let x = rect.x + rect.width.saturating_sub(text.width() as u16 + 2);
        buf.set_string(x.max(rect.x + 1), rect.y + rect.height - 1, text, model.theme.style(Role::Dim));
    }
    rect
}

fn question(model: &Model, confirm: &Confirm, area: Rect, buf: &mut Buffer) {
    let width = usize::from(area.width).saturating_sub(6).clamp(8, 64);
    let mut lines: Vec<Line<'static>> = Vec::new();
    for text in &confirm.lines {
        for line in wrapped(&words(model, text), width) {
            lines.push(Line::from(Span::styled(line, model.theme.style(Role::Text))));
        }
    }
    // The buttons are always there; what they are about gives way.
    let room = usize::from(area.height).saturating_sub(3);
    if lines.len() > room {
        lines.truncate(room.saturating_sub(1));
        lines.push(Line::from(Span::styled(model.theme.more(), model.theme.style(Role::Dim))));
    }
    if lines.len() < room {
        lines.push(Line::from(""));
    }
    match &confirm.word {
        Some((word, typed)) => {
            let ready = word == typed;
            let role = if ready { Role::Good } else { Role::Key };
            let mut spans = vec![
                Span::styled(format!("Type {word}: "), model.theme.style(Role::Text)),
                Span::styled(format!("{typed}_"), model.theme.style(role)),
            ];
            let hint = if ready { "  Enter does it, Esc cancels" } else { "  Esc cancels" };
            spans.push(Span::styled(hint, model.theme.style(Role::Dim)));
            lines.push(Line::from(spans));
        }
        None => {
            let yes = if confirm.changes.is_empty() { " Leave (y) " } else { " Yes (y) " };
            let on = |here: bool| model.theme.style(if here { Role::Selected } else { Role::Text });
            lines.push(Line::from(vec![
                Span::styled(" Cancel (n) ", on(!confirm.on_yes)),
                Span::styled("  ", model.theme.style(Role::Text)),
                Span::styled(yes, on(confirm.on_yes)),
            ]));
        }
    }
    panel(model, &confirm.title, &lines, 0, area, buf);
}

/// The line of input, what is wrong with it, and what it could become. Answers the cursor's place.
pub fn input(model: &Model, input: &Input, body: Rect, foot: Rect, buf: &mut Buffer) -> (u16, u16) {
    let theme = model.theme;
    let prompt = prompt(&input.purpose);
    let width = usize::from(foot.width);
    let (x, _) = buf.set_stringn(foot.x, foot.y, &prompt, width, theme.style(Role::Key));
    let room = width.saturating_sub(prompt.width() + 1).max(1);
    // The part around the cursor.
    let skip = input.at.saturating_sub(room.saturating_sub(1));
    let text: String = input.text.chars().skip(skip).take(room).collect();
    let before: String = text.chars().take(input.at - skip).collect();
    let (end, _) = buf.set_stringn(x, foot.y, &text, room, theme.style(Role::Text));
    let mut rows: Vec<(String, Role)> = Vec::new();
    if let Some(problem) = &input.problem {
        rows.push((format!("{} {problem}", theme.glyph("✖", "x")), Role::Bad));
    } else if input.purpose == Purpose::Command {
        let found = suggestions(model, input);
        if let Some(best) = found.first().filter(|b| **b != input.text.trim_end()) {
            let ghost = best.strip_prefix(input.text.as_str()).map_or_else(|| format!("  Tab: {best}"), str::to_owned);
            buf.set_stringn(
                end,
                foot.y,
                ghost,
                usize::from((foot.x + foot.width).saturating_sub(end)),
                theme.style(Role::Dim),
            );
        }
        for text in found.iter().take(usize::from(body.height).min(8)) {
            let verb = text.split(' ').next().unwrap_or_default();
            let about = VERBS
                .iter()
                .find(|(v, ..)| *v == verb && *v == text)
                .map(|(_, args, about)| format!(" {args}  {about}"));
            rows.push((format!("{text}{}", about.unwrap_or_default()), Role::Text));
        }
    }
    let rows_shown = rows.len().min(usize::from(body.height));
    for (i, (text, role)) in rows.iter().take(rows_shown).enumerate() {
        let y = body.y + body.height - (rows_shown - i) as u16;
        let line = Rect { x: body.x, y, width: body.width, height: 1 };
        for x in line.x..line.x + line.width {
            if let Some(cell) = buf.cell_mut((x, y)) {
                cell.reset();
            }
        }
        buf.set_stringn(line.x + 1, y, fit(model, &words(model, text), width - 2), width - 2, theme.style(*role));
    }
    ((x + before.width() as u16).min(foot.x + foot.width - 1), foot.y)
}
