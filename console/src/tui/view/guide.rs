//! The handbook: topics, what is found by words, and a page.

use super::super::theme::Role;
use super::sheet::{About, Pen};
use crate::cli::guide;

/// Writes the contents, what is found, or a page.
pub fn write(pen: &mut Pen<'_>) {
    match pen.sheet.name.clone() {
        Some(topic) => page(pen, &topic),
        None => contents(pen),
    }
}

fn contents(pen: &mut Pen<'_>) {
    let find = pen.model.desk.words.clone();
    if find.is_empty() {
        pen.line(&[("Topics", Role::Title), ("  Enter reads one, / finds words in all of them", Role::Dim)]);
        for (topic, about) in guide::topics() {
            let row = About { key: topic.to_owned(), ..About::default() };
            pen.row(row, &[(&format!("{topic:<20}  "), Role::Title), (about, Role::Text)]);
        }
        return;
    }
    let found = guide::search(&find);
    pen.line(&[(&format!("Sections that have '{find}'"), Role::Title), ("  Esc shows all topics", Role::Dim)]);
    if found.is_empty() {
        return pen.text("None. Fewer words find more.", Role::Text);
    }
    let width = found.iter().map(|f| f.topic.chars().count()).max().unwrap_or(8).clamp(8, 40);
    for f in found {
        let row = About { key: f.topic.clone(), ..About::default() };
        pen.row(row, &[(&format!("{:<width$}  ", f.topic), Role::Title), (&f.line, Role::Text)]);
    }
}

fn page(pen: &mut Pen<'_>, topic: &str) {
    let text = match guide::find(topic) {
        Ok(text) => text,
        Err(failure) => {
            pen.text(&failure.message, Role::Bad);
            return pen.text(&failure.hint, Role::Text);
        }
    };
    let mut code = false;
    for line in text.lines() {
        if line.starts_with("```") {
            code = !code;
            continue;
        }
        match (code, line.strip_prefix("# ").or_else(|| line.strip_prefix("## "))) {
            (false, Some(title)) => {
                pen.title(title);
            }
            (true, _) => pen.line(&[(&format!("    {line}"), Role::Key)]),
            (false, None) => pen.text(line, Role::Text),
        }
    }
}
