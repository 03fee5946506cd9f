//! Secrets: names, versions, who uses them and when they were read last. Never a value.

use super::super::model::Screen;
use super::super::theme::Role;
use super::super::update::joined;
use super::moment;
use super::sheet::{About, Pen};
use crate::link::Secret;
use crate::link::keeping::Kept;

/// Writes the sheet.
pub fn write(pen: &mut Pen<'_>, kept: &Kept) {
    if kept.secrets.is_empty() {
        pen.line(&[("No secret is kept that you may know of.", Role::Title)]);
        pen.text("In another terminal, with the value from a prompt or from stdin:", Role::Text);
        return pen.line(&[("sigil secret set NAME", Role::Key)]);
    }
    if let Err(trouble) = &kept.reads {
        let text = format!("when they were read is not told: {}", joined(&trouble.what, &trouble.hint));
        pen.text(&text, Role::Warn);
    }
    let mut all: Vec<&Secret> = kept.secrets.iter().collect();
    match Screen::Secrets.orders().get(pen.sheet.order) {
        Some(('c', _)) => all.sort_by_key(|s| std::cmp::Reverse(s.changed_at)),
        Some(('s', _)) => all.sort_by(|a, b| (&a.scope, &a.name).cmp(&(&b.scope, &b.name))),
        _ => all.sort_by(|a, b| (&a.name, &a.scope).cmp(&(&b.name, &b.scope))),
    }
    pen.ordered(&mut all);
    let name = all.iter().map(|s| s.name.chars().count()).max().unwrap_or(4).clamp(4, 28);
    let scope = all.iter().map(|s| s.scope.chars().count()).max().unwrap_or(5).clamp(5, 20);
    let heading = format!("{:<name$}  {:<scope$}  VER  CHANGED      READ LAST    USED BY", "NAME", "SCOPE");
    pen.line(&[(&heading, Role::Title)]);
    for s in all {
        let read = kept.read(s);
        let last = read.map_or_else(|| "-".to_owned(), |r| moment(pen.model, Some(r.at)));
        let changed = moment(pen.model, s.changed_at);
        let used = if s.used_by.is_empty() { "nobody".to_owned() } else { s.used_by.join(", ") };
        let role = if s.used_by.is_empty() { Role::Dim } else { Role::Text };
        let place = match s.scope.split_once(':') {
            Some(("deployment", d)) => format!(" --deployment {d}"),
            Some(("team", t)) => format!(" --team {t}"),
            Some(("user", _)) => " --user".to_owned(),
            _ => String::new(),
        };
        let command = format!("sigil secret rotate {}{place}", s.name);
        let mut full = vec![
            format!("{}, scope {}, version {}", s.name, s.scope, s.version),
            format!("set {} by {}", changed, s.changed_by),
            format!("used by {used}"),
        ];
        full.push(match read {
            Some(r) if r.what_for.is_empty() => format!("read last at {last}"),
            Some(r) => format!("read last at {last} for {}", r.what_for),
            None => "no read of it is known from the newest records".to_owned(),
        });
        full.push(String::new());
        full.push(format!("A new value (w copies this): {command}"));
        let about = About {
            key: format!("{} {}", s.scope, s.name),
            title: format!("Secret {}", s.name),
            full,
            command: Some(command),
            deployment: None,
        };
        pen.row(
            about,
            &[
                (&format!("{:<name$}  ", s.name), Role::Title),
                (&format!("{:<scope$}  ", s.scope), Role::Dim),
                (&format!("{:>3}  {changed:<11}  {last:<11}  ", s.version), Role::Text),
                (&used, role),
            ],
        );
    }
}
