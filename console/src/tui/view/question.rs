//! A question with a difference to look at, and a secret that is asked for.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::super::desk::{Ask, Question};
use super::super::model::Model;
use super::super::theme::Role;
use super::overlay::{panel, wrapped};
use super::words;
use crate::link::SecretPlace;

/// Draws a question: its text scrolls, its buttons are always there.
pub fn draw(model: &Model, question: &Question, area: Rect, buf: &mut Buffer) {
    let theme = model.theme;
    let width = usize::from(area.width).saturating_sub(6).clamp(8, 100);
    let mut lines: Vec<Line<'static>> = Vec::new();
    for (text, role) in &question.lines {
        // A difference keeps its mark on each of its rows.
        let mark = text.chars().next().filter(|c| matches!(c, '+' | '-')).map(|c| format!("{c} "));
        for (i, row) in wrapped(&words(model, text), width).into_iter().enumerate() {
            let row = match (&mark, i) {
                (Some(mark), 1..) => format!("{mark}{row}"),
                _ => row,
            };
            lines.push(Line::from(Span::styled(row, theme.style(*role))));
        }
    }
    let room = usize::from(area.height).saturating_sub(5).max(1);
    let scroll = question.scroll.min(lines.len().saturating_sub(room));
    let hidden = lines.len().saturating_sub(scroll + room);
    let mut shown: Vec<Line<'static>> = lines.into_iter().skip(scroll).take(room).collect();
    let note = match hidden {
        0 => String::new(),
        n => format!("{n} more lines: j, k"),
    };
    shown.push(Line::from(Span::styled(note, theme.style(Role::Warn))));
    shown.push(Line::from(Span::styled(words(model, &question.command), theme.style(Role::Dim))));
    let on = |here: bool| theme.style(if here { Role::Selected } else { Role::Text });
    if let Some((word, typed)) = &question.word {
        let ready = word == typed;
        let hint = if ready { "  Enter does it, Esc cancels" } else { "  Esc cancels" };
        shown.push(Line::from(vec![
            Span::styled(format!("Type {word}: "), theme.style(Role::Text)),
            Span::styled(format!("{typed}_"), theme.style(if ready { Role::Good } else { Role::Key })),
            Span::styled(hint, theme.style(Role::Dim)),
        ]));
        panel(model, &question.title, &shown, 0, area, buf);
        return;
    }
    shown.push(Line::from(vec![
        Span::styled(" Cancel (n) ", on(!question.on_yes)),
        Span::styled("  ", theme.style(Role::Text)),
        Span::styled(format!(" {} (y) ", question.yes), on(question.on_yes)),
        Span::styled("   c copies the command", theme.style(Role::Dim)),
    ]));
    panel(model, &question.title, &shown, 0, area, buf);
}

/// Draws what asks for a secret; never what was typed.
pub fn secret(model: &Model, ask: &Ask, area: Rect, buf: &mut Buffer) {
    let theme = model.theme;
    let whose = match &ask.place {
        SecretPlace::Team(team) if team.is_empty() => "of your team".to_owned(),
        SecretPlace::Team(team) => format!("of the team {team}"),
        SecretPlace::Deployment(name) => format!("of {name} only"),
        _ => String::new(),
    };
    let typed = ask.value.0.chars().count();
    let stars = "*".repeat(typed.min(40));
    let text = |text: String, role: Role| Line::from(Span::styled(text, theme.style(role)));
    let mut lines = vec![
        text(
            format!("A secret {whose} on {}. It is kept encrypted and never shown.", words(model, model.host())),
            Role::Text,
        ),
        text(String::new(), Role::Text),
        text(format!("value: {stars}_  ({typed} characters)"), Role::Key),
    ];
    lines.extend(ask.problem.iter().map(|p| text(words(model, p), Role::Bad)));
    lines.push(text(String::new(), Role::Text));
    lines.push(text("Enter sets it, Ctrl-U begins anew, Esc leaves it".to_owned(), Role::Dim));
    lines.push(text(format!("sigil secret set {}", words(model, &ask.name)), Role::Dim));
    panel(model, &format!("Secret {}", ask.name), &lines, 0, area, buf);
}
