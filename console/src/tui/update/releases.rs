//! Releases: going back to one, with what would differ.

use crossterm::event::{KeyCode, KeyEvent};
use serde_json::Value;

use super::super::desk::Deed;
use super::super::fleet::bare;
use super::super::model::{Model, Overlay, Screen};
use super::super::sheet::{Released, Seen};
use super::super::theme::Role;
use super::desk::question;
use super::{Effect, tell, tools};
use crate::link::{Change, Release};

/// What of a specification is looked at, and what it is called.
const PARTS: [(&str, &str); 10] = [
    ("image", "image"),
    ("source", "source"),
    ("resources", "limits"),
    ("transport", "transport"),
    ("command", "command"),
    ("secrets", "secrets"),
    ("volumes", "volumes"),
    ("network", "network"),
    ("egress", "egress"),
    ("health", "health"),
];

fn released(model: &Model) -> Option<(&str, &Released)> {
    let sheet = model.sheets.get(&Screen::Releases)?;
    match (&sheet.name, &sheet.seen) {
        (Some(name), Some(Seen::Releases(released))) => Some((name, released)),
        _ => None,
    }
}

/// Keys of the list; `None`: none of these.
pub fn key(model: &mut Model, row: Option<&str>, key: KeyEvent) -> Option<Vec<Effect>> {
    let number: u32 = row?.strip_prefix("release ")?.parse().ok()?;
    match key.code {
        KeyCode::Char('b') => back(model, number),
        KeyCode::Enter | KeyCode::Char('v') => {
            let (name, released) = released(model)?;
            let release = released.releases.iter().find(|r| r.number == number)?;
            let mut text = vec![format!("release {number} of {name}: {} {}", release.outcome, release.why)];
            text.push(format!("source {}", release.source));
            text.push(format!("image {}", release.image));
            text.push(release.recognised.clone());
            if let Some(spec) = &release.spec {
                text.push(String::new());
                text.extend(format!("{spec:#}").lines().map(str::to_owned));
            }
            model.overlay = Some(Overlay::Line { title: format!("Release {number}"), text, scroll: 0 });
        }
        KeyCode::Char('c') => {
            let text = format!("sigil rollback {} {number}", bare(released(model)?.0));
            return Some(vec![Effect::Copy { text, what: "the command".to_owned() }]);
        }
        _ => return None,
    }
    Some(Vec::new())
}

fn back(model: &mut Model, number: u32) {
    let Some((name, released)) = released(model) else { return };
    let name = name.to_owned();
    let now = released.releases.iter().find(|r| r.serving).map(|r| r.number);
    if now == Some(number) {
        return tell(model, format!("release {number} serves already"), false);
    }
    let mut lines = vec![(format!("on {}", model.host()), Role::Text)];
    lines.extend(now.map(|n| (format!("Release {n} serves now. What going back to {number} changes:"), Role::Text)));
    lines.extend(differences(released, number));
    lines.push((
        "The new containers start beside the old ones and take over once they pass the gate.".to_owned(),
        Role::Text,
    ));
    let command = format!("sigil rollback {} {number}", bare(&name));
    let title = format!("Roll {name} back to release {number}?");
    question(model, title, lines, "Roll back", Deed::Change(Change::Rollback(name, number)), command);
}

/// What differs between the release that serves, else the newest one, and another.
pub fn differences(released: &Released, number: u32) -> Vec<(String, Role)> {
    let serving = released.releases.iter().position(|r| r.serving).or(released.releases.len().checked_sub(1));
    let other = released.releases.iter().position(|r| r.number == number);
    let (Some(from), Some(to)) = (serving, other) else { return Vec::new() };
    let (a, b) = (&released.releases[from], &released.releases[to]);
    if from == to {
        return vec![("This one serves.".to_owned(), Role::Good)];
    }
    let mut out = Vec::new();
    let mut part = |what: &str, old: String, new: String| {
        if old != new {
            out.push((format!("{what}:"), Role::Title));
            let spelled = |line: &str| line.to_owned();
            out.extend(tools::differences(&format!("{old}\n"), &format!("{new}\n"), &spelled));
        }
    };
    for (key, title) in PARTS {
        part(title, value(a, key), value(b, key));
    }
    part("environment (names)", names(a), names(b));
    if let (Some(Some(old)), Some(Some(new))) = (released.pins.get(from), released.pins.get(to)) {
        let told = |pins: &crate::link::Pins| {
            let line =
                |t: &crate::link::PinnedTool| format!("{} {}", t.name, t.digest.chars().take(12).collect::<String>());
            pins.tools.iter().filter(|t| !t.digest.is_empty()).map(line).collect::<Vec<_>>().join("\n")
        };
        part("tools (name, digest)", told(old), told(new));
    }
    if out.is_empty() {
        out.push(("Nothing of image, source, limits, environment and tools differs.".to_owned(), Role::Dim));
    }
    out
}

/// A part of a release as lines.
fn value(release: &Release, key: &str) -> String {
    match key {
        "image" => release.image.clone(),
        "source" => release.source.clone(),
        key => match release.spec.as_ref().and_then(|s| s.get(key)) {
            None | Some(Value::Null) => String::new(),
            Some(Value::Array(list)) => list.iter().map(flat).collect::<Vec<_>>().join("\n"),
            Some(Value::Object(map)) => {
                map.iter().map(|(k, v)| format!("{k}: {}", flat(v))).collect::<Vec<_>>().join("\n")
            }
            Some(other) => flat(other),
        },
    }
}

fn flat(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Names of the environment: values may be nobody's business.
fn names(release: &Release) -> String {
    let env = release.spec.as_ref().and_then(|s| s.get("env"));
    match env {
        Some(Value::Object(map)) => map.keys().cloned().collect::<Vec<_>>().join("\n"),
        Some(Value::Array(list)) => {
            let name = |v: &Value| v.get(0).or_else(|| v.get("name")).and_then(Value::as_str).map(str::to_owned);
            list.iter().filter_map(name).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}
