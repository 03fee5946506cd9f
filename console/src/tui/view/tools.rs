//! A server's tools: held ones first, then what can be called.

use super::super::theme::Role;
use super::super::update::{held, joined};
use super::moment;
use super::sheet::{About, Pen};
use crate::link::tools::Toolbox;

/// Writes the sheet.
pub fn write(pen: &mut Pen<'_>, toolbox: &Toolbox) {
    let name = pen.sheet.name.clone().unwrap_or_default();
    let held = held(toolbox);
    match &toolbox.pins {
        Err(trouble) => {
            let text = format!("how they are pinned is not told: {}", joined(&trouble.what, &trouble.hint));
            pen.text(&text, Role::Warn);
        }
        Ok(pins) if pins.pinning == "warn" && !held.is_empty() => {
            pen.text("The policy says pins = warn: changed tools are offered all the same.", Role::Warn);
        }
        Ok(_) => {}
    }
    if !held.is_empty() {
        pen.line(&[
            ("Held: changed without a new release", Role::Title),
            ("  a approves, d dismisses, A all", Role::Dim),
        ]);
        let width = held.iter().map(|t| t.name.chars().count()).max().unwrap_or(4).clamp(4, 32);
        for tool in held {
            let since = moment(pen.model, tool.since);
            let findings = tool.findings.join("; ");
            let about = About { key: format!("held {}", tool.name), ..About::default() };
            pen.row(
                about,
                &[
                    (pen.glyph("▲ ", "! "), Role::Warn),
                    (&format!("{:<width$}  ", tool.name), Role::Title),
                    (&format!("{:<9}", tool.state), Role::Warn),
                    (&format!("since {since}  "), Role::Dim),
                    (&findings, Role::Bad),
                ],
            );
        }
        pen.push(ratatui::text::Line::from(""));
    }
    if toolbox.tools.is_empty() {
        pen.line(&[(&format!("{name} offers no tools."), Role::Title)]);
        return pen.text("It may offer resources or prompts only; w shows its messages, l its logs.", Role::Text);
    }
    let width = toolbox.tools.iter().map(|t| t.name.chars().count()).max().unwrap_or(4).clamp(4, 32);
    pen.line(&[(&format!("{:<width$}  WHAT IT DOES", "TOOL"), Role::Title)]);
    for tool in &toolbox.tools {
        let traits = if tool.traits.is_empty() { String::new() } else { format!("[{}] ", tool.traits.join(", ")) };
        let role = if tool.traits.contains(&"destructive") { Role::Warn } else { Role::Dim };
        let first = tool.description.trim().lines().next().unwrap_or_default().trim();
        let told = match tool.title.as_str() {
            "" => first.to_owned(),
            title => format!("{title}: {first}"),
        };
        let about = About { key: format!("tool {}", tool.name), ..About::default() };
        pen.row(about, &[(&format!("{:<width$}  ", tool.name), Role::Title), (&traits, role), (&told, Role::Text)]);
    }
}
