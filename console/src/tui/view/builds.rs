//! Operations: what goes on and what was; one of them with its steps, their times, what the scan said and what was printed.

use jiff::Timestamp;

use super::super::model::Screen;
use super::super::steps::{Output, Steps};
use super::super::theme::Role;
use super::super::update::joined;
use super::sheet::{About, Pen};
use super::{moment, tail};
use crate::link::Operation;

/// Words of a state, and what it means.
fn state(state: &str) -> Role {
    match state {
        "succeeded" | "finished" => Role::Good,
        "failed" => Role::Bad,
        "queued" | "running" | "started" => Role::Busy,
        _ => Role::Dim,
    }
}

/// `840 ms`, `12.4 s`, `3m 20s`
pub fn took(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1_000.0),
        _ => format!("{}m {}s", ms / 60_000, ms / 1_000 % 60),
    }
}

fn lasted(from: Option<Timestamp>, to: Option<Timestamp>) -> String {
    let Some(from) = from else { return String::new() };
    match to {
        Some(to) => took(u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)),
        // An idle screen stands still: no time that counts up.
        None => "goes on".to_owned(),
    }
}

/// Writes the list.
pub fn write(pen: &mut Pen<'_>, operations: &[Operation]) {
    if operations.is_empty() {
        pen.line(&[("Nothing was done here yet.", Role::Title)]);
        pen.text("Deploys, builds, scans and restarts are listed here. d deploys something.", Role::Text);
        return;
    }
    let mut all: Vec<&Operation> = operations.iter().collect();
    match Screen::Builds.orders().get(pen.sheet.order) {
        Some(('d', _)) => all.sort_by(|a, b| a.deployment.cmp(&b.deployment).then(b.created_at.cmp(&a.created_at))),
        Some(('k', _)) => all.sort_by(|a, b| a.kind.cmp(&b.kind).then(b.created_at.cmp(&a.created_at))),
        // What goes on comes first.
        _ => all.sort_by_key(|o| (!o.is_running(), std::cmp::Reverse(o.created_at))),
    }
    pen.ordered(&mut all);
    let width = all.iter().map(|o| o.deployment.chars().count()).max().unwrap_or(10).clamp(10, 28);
    let times: Vec<String> = all.iter().map(|o| moment(pen.model, o.created_at)).collect();
    let at = times.iter().map(String::len).max().unwrap_or(8);
    let heads = ("WHEN", "WHAT", "DEPLOYMENT", "STATE", "TOOK");
    let heading = format!("{:<at$}  {:<8} {:<width$} {:<9} {:<9} SUMMARY", heads.0, heads.1, heads.2, heads.3, heads.4);
    pen.line(&[(&heading, Role::Title)]);
    for (o, when) in all.into_iter().zip(times) {
        let summary = match &o.error {
            Some(problem) => problem.message.as_str(),
            None if o.is_running() && o.summary.is_empty() => o.step.as_str(),
            None => o.summary.as_str(),
        };
        let about = About { key: o.id.clone(), command: Some(format!("sigil ops {} -f", o.id)), ..About::default() };
        let name = if o.deployment.is_empty() { "-" } else { &o.deployment };
        let time = lasted(o.created_at, o.ended_at);
        pen.row(
            about,
            &[
                (&format!("{when:<at$}  "), Role::Dim),
                (&format!("{:<8} ", o.kind), Role::Text),
                (&format!("{:<width$} ", super::fit(pen.model, name, width)), Role::Title),
                (&format!("{:<9} ", o.state), state(&o.state)),
                (&format!("{time:<9} "), Role::Dim),
                (summary, Role::Text),
            ],
        );
    }
}

/// Writes one operation: how it ended first, then its steps, then its output.
pub fn one(pen: &mut Pen<'_>) {
    let Some(build) = &pen.model.desk.build else { return };
    if let Some(done) = &build.steps.done {
        let about = format!(
            "{} {} by {}, {}, {}",
            done.kind,
            done.deployment,
            done.created_by,
            moment(pen.model, done.created_at),
            lasted(done.created_at, done.ended_at)
        );
        pen.line(&[(&format!("{}  ", done.state), state(&done.state)), (&about, Role::Text)]);
    } else {
        let on = if build.flow.is_some() { "goes on" } else { "is not followed" };
        pen.line(&[(&format!("operation {} {on}", tail(&build.id, 8)), Role::Busy)]);
    }
    if let Some(verdict) = build.steps.verdict() {
        pen.line(&[("scan: ", Role::Dim), (verdict, Role::Text)]);
    }
    if let Some(trouble) = &build.trouble {
        pen.text(&joined(&trouble.what, &trouble.hint), Role::Bad);
    }
    steps(pen, &build.steps);
    if build.steps.output.is_empty() {
        return;
    }
    let (kept, all) = (build.steps.output.len() as u64, build.steps.total);
    let cut = if kept < all { format!("  the newest {kept} of {all} lines") } else { String::new() };
    pen.head("Output", &cut);
    for output in &build.steps.output {
        line(pen, output);
    }
}

/// Writes steps: what failed stands first, with why and what to do.
pub fn steps(pen: &mut Pen<'_>, steps: &Steps) {
    if let Some(problem) = steps.done.as_ref().and_then(|d| d.error.as_ref()) {
        let at = steps.failed().map(|s| format!("{}: ", s.name)).unwrap_or_default();
        pen.text(&format!("{at}{}", problem.message), Role::Bad);
        if !problem.hint.is_empty() {
            pen.text(&problem.hint, Role::Text);
        }
        let failed = steps.failed().map(|s| s.name.clone()).unwrap_or_default();
        let last: Vec<&Output> = steps.output.iter().filter(|o| o.step == failed).collect();
        for output in &last[last.len().saturating_sub(8)..] {
            line(pen, output);
        }
    }
    pen.head("Steps", "");
    if steps.steps.is_empty() {
        pen.text("none has begun yet", Role::Dim);
    }
    for step in &steps.steps {
        let sign = match step.state.as_str() {
            "finished" => pen.glyph("✔", "+"),
            "failed" => pen.glyph("✖", "x"),
            "skipped" => pen.glyph("○", "-"),
            _ => pen.glyph("◐", "~"),
        };
        let time = match (step.state.as_str(), step.elapsed_ms) {
            ("started", _) => format!("since {}", moment(pen.model, step.began)),
            (_, 0) => String::new(),
            (_, ms) => took(ms),
        };
        let role = state(&step.state);
        pen.line(&[
            (&format!("{sign} {:<10} ", step.name), role),
            (&format!("{time:<16} "), Role::Dim),
            (&step.message, Role::Text),
        ]);
    }
    for note in &steps.notes {
        pen.text(note, Role::Dim);
    }
}

fn line(pen: &mut Pen<'_>, output: &Output) {
    let role = if output.stream == "stderr" { Role::Warn } else { Role::Dim };
    let about = About { key: format!("out {}", output.number), ..About::default() };
    pen.row(about, &[("  ", role), (&output.line, role)]);
}
