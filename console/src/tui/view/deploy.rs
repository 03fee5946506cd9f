//! A guided deploy: the form, what the look at the source found, how it goes, and what came of it.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::Line;
use unicode_width::UnicodeWidthStr as _;

use super::super::deploy::{self, Deploying, Stage};
use super::super::model::Model;
use super::super::sheet::Sheet;
use super::super::theme::Role;
use super::super::update::joined;
use super::call::put;
use super::sheet::Pen;
use super::{builds, form};
use crate::link::findings::Report;

/// Findings that are shown before the rest is counted.
const FINDINGS: usize = 12;

/// Draws it; answers where the cursor belongs.
pub fn draw(model: &Model, area: Rect, buf: &mut Buffer) -> Option<(u16, u16)> {
    let deploying = model.desk.deploy.as_ref()?;
    if matches!(deploying.stage, Stage::Form | Stage::Looking) {
        let head = match deploying.stage {
            Stage::Looking => (format!("{}; Esc stops it", deploying.note), Role::Busy),
            _ => (deploy::command(&deploying.form.draft()), Role::Dim),
        };
        put(model, area, buf, area.y, &head.0, head.1);
        if area.height < 3 {
            return None;
        }
        let rest = Rect { y: area.y + 1, height: area.height - 1, ..area };
        let cursor = form::draw(model, &deploying.form, rest, buf);
        return cursor.filter(|_| deploying.stage == Stage::Form);
    }
    let lines = lines(model);
    let height = usize::from(area.height);
    let offset = deploying.offset.min(lines.len().saturating_sub(1));
    for (i, line) in lines.iter().skip(offset).take(height).enumerate() {
        buf.set_line(area.x + 2, area.y + i as u16, line, area.width.saturating_sub(2));
    }
    let more = lines.len().saturating_sub(offset + height);
    if more > 0 && area.width > 16 {
        let text = format!(" {more} more {} ", model.theme.glyph("↓", "v"));
        let x = area.x + area.width - text.width() as u16;
        buf.set_string(x, area.y + area.height - 1, text, model.theme.style(Role::Selected));
    }
    None
}

/// What is to be read once the form is left.
pub fn lines(model: &Model) -> Vec<Line<'static>> {
    let Some(deploying) = &model.desk.deploy else { return Vec::new() };
    let sheet = Sheet::default();
    let mut pen = Pen::new(model, &sheet, usize::from(model.size.0));
    match deploying.stage {
        Stage::Looked => looked(&mut pen, deploying),
        Stage::Running => {
            pen.line(&[("Deploying", Role::Busy), ("  Esc leaves it going on; o shows its output", Role::Dim)]);
            builds::steps(&mut pen, &deploying.steps);
        }
        Stage::Ended => ended(&mut pen, deploying),
        Stage::Form | Stage::Looking => {}
    }
    pen.lines()
}

fn looked(pen: &mut Pen<'_>, deploying: &Deploying) {
    let Some((source, looked)) = &deploying.looked else { return };
    let value = deploying.form.draft();
    pen.line(&[("Plan: ", Role::Title), (source, Role::Title)]);
    let name = value["name"].as_str().map(str::to_owned).unwrap_or_else(|| looked.name.clone());
    let name = if name.is_empty() { "a name that the agent derives".to_owned() } else { name };
    let there = pen.model.fleet.values().find(|d| d.name == name).map(|d| d.release);
    match there {
        Some(release) => {
            pen.line(&[(&format!("a new release of {name}, beside release {release} that serves now"), Role::Warn)])
        }
        None => pen.line(&[(&format!("a new deployment: {name}"), Role::Text)]),
    }
    pen.line(&[(&format!("on {}", pen.model.host()), Role::Text)]);
    for line in &looked.recognised {
        pen.text(&format!("recognised: {line}"), Role::Text);
    }
    pen.push(Line::from(""));
    match &looked.report {
        Some(report) => verdict(pen, report),
        None => pen.line(&[("not scanned: ", Role::Warn), ("its source is not known", Role::Text)]),
    }
    if !deploying.missing.is_empty() {
        pen.push(Line::from(""));
        pen.line(&[("missing secrets: ", Role::Warn), (&deploying.missing.join(", "), Role::Title)]);
        pen.line(&[("s", Role::Key), (" asks for the first one; deploying asks for all of them", Role::Dim)]);
    }
    pen.push(Line::from(""));
    let blocked = looked.report.as_ref().is_some_and(|r| r.verdict == "blocked");
    if blocked {
        pen.text("The agent refuses what the scan blocks. Mend it, or answer for it: --waive FINDING --reason TEXT --until DATE on the command line.", Role::Bad);
    } else {
        pen.line(&[
            ("Enter", Role::Key),
            (" deploys it   ", Role::Text),
            ("Esc", Role::Key),
            (" back to the form", Role::Text),
        ]);
    }
    pen.push(Line::from(""));
    pen.text(&deploy::command(&value), Role::Dim);
}

fn verdict(pen: &mut Pen<'_>, report: &Report) {
    let role = match report.verdict.as_str() {
        "safe" => Role::Good,
        "warning" => Role::Warn,
        _ => Role::Bad,
    };
    let n = report.findings.len();
    let facts = format!("  {n} finding{} in {} files", if n == 1 { "" } else { "s" }, report.files);
    pen.line(&[("scan: ", Role::Title), (&report.verdict, role), (&facts, Role::Dim)]);
    let mut findings: Vec<_> = report.findings.iter().collect();
    findings.sort_by_key(|f| f.rank());
    for f in findings.iter().take(FINDINGS) {
        let role = if f.rank() < 2 { Role::Bad } else { Role::Warn };
        let place = format!("{} {}:{}  ", f.rule, f.path, f.line);
        pen.line(&[(&format!("{:<8}", f.severity), role), (&place, Role::Title), (&f.message, Role::Text)]);
    }
    if n > FINDINGS {
        pen.text(&format!("and {} more: 'sigil scan' lists all", n - FINDINGS), Role::Dim);
    }
}

fn ended(pen: &mut Pen<'_>, deploying: &Deploying) {
    if let Some(trouble) = &deploying.trouble {
        pen.line(&[("Refused", Role::Bad)]);
        pen.text(&joined(&trouble.what, &trouble.hint), Role::Text);
        return pen.line(&[("Enter", Role::Key), (" or Esc: back to the form, with all that was typed", Role::Text)]);
    }
    let Some(done) = deploying.done() else { return };
    if done.state == "succeeded" {
        let result = done.result.clone().unwrap_or_default();
        let word = |key: &str| result.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        let name = done.deployment.clone();
        let endpoint = match word("endpoint") {
            text if text.is_empty() => {
                pen.model.fleet.values().find(|d| d.name == name).map(|d| d.endpoint.clone()).unwrap_or_default()
            }
            text => text,
        };
        pen.line(&[(&format!("{name} is ready"), Role::Good), (&format!(", release {}", done.release), Role::Text)]);
        pen.line(&[("address   ", Role::Dim), (&endpoint, Role::Title)]);
        pen.push(Line::from(""));
        pen.line(&[("Connect a client:", Role::Title)]);
        pen.line(&[(&format!("sigil install {name} --client claude-code,cursor,vscode"), Role::Key)]);
        pen.line(&[(&format!("sigil run {name}"), Role::Key), ("   for a client that starts a process", Role::Dim)]);
        pen.push(Line::from(""));
        pen.line(&[("Enter", Role::Key), (" shows it   ", Role::Text), ("t", Role::Key), (" its tools", Role::Text)]);
    } else if deploying.missing.is_empty() {
        pen.line(&[(&format!("The deploy {}", done.state), Role::Bad)]);
        pen.line(&[
            ("Enter", Role::Key),
            (" or Esc: back to the form, with all that was typed; ", Role::Text),
            ("o", Role::Key),
            (" all output", Role::Text),
        ]);
    } else {
        pen.line(&[("Secrets are missing: ", Role::Bad), (&deploying.missing.join(", "), Role::Title)]);
        pen.line(&[("Enter", Role::Key), (" asks for them, then deploys again", Role::Text)]);
    }
    builds::steps(pen, &deploying.steps);
}
