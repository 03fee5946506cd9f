//! What scans found in a deployment's source: the worst first, each with its place, and whether somebody answers for it.

use super::super::model::Screen;
use super::super::theme::Role;
use super::sheet::{About, Pen};
use super::{clock, moment};
use crate::link::Waiver;
use crate::link::findings::{Finding, Found, Origin};

/// Writes the sheet.
pub fn write(pen: &mut Pen<'_>, found: &Found) {
    let model = pen.model;
    pen.line(&[("source    ", Role::Dim), (&found.source, Role::Text)]);
    if let Some(asked) = model.asked_of(&found.source) {
        let text = format!("under way since {}", clock(model, asked.at));
        pen.line(&[("scan      ", Role::Dim), (&text, Role::Busy)]);
    }
    let report = model.reports.get(&found.source);
    let told = found.told.as_ref();
    let (findings, whole): (&[Finding], bool) = match (report, told) {
        (Some(report), _) => {
            let facts = format!("{} files, {} ms", report.files, report.elapsed_ms);
            pen.line(&[
                ("verdict   ", Role::Dim),
                (&report.verdict, verdict(&report.verdict)),
                (&format!("  {facts}, scanned from here"), Role::Dim),
            ]);
            (&report.findings, true)
        }
        (None, Some(told)) => {
            let word = told.outcome.split([' ', ':']).next().unwrap_or_default().to_owned();
            let by = format!("  deploy of {} by {}", moment(model, told.at), told.by);
            pen.line(&[("verdict   ", Role::Dim), (&told.outcome, verdict(&word)), (&by, Role::Dim)]);
            (&told.findings, told.whole)
        }
        (None, None) => {
            pen.line(&[("verdict   ", Role::Dim), ("no deploy of it is kept", Role::Text)]);
            (&[], false)
        }
    };
    hint(pen, found, whole);
    list(pen, found, findings, whole);
    waivers(pen, found);
}

fn verdict(word: &str) -> Role {
    match word {
        "safe" => Role::Good,
        "warning" => Role::Warn,
        "blocked" => Role::Bad,
        _ => Role::Text,
    }
}

fn hint(pen: &mut Pen<'_>, found: &Found, whole: bool) {
    let text = match (whole, found.origin()) {
        (true, _) => return,
        (_, Origin::Fetched) => "s scans it again: with advice, and with what is only worth knowing".to_owned(),
        (_, Origin::Folder) => "its folder is with who deployed it: there, sigil scan DIR says more".to_owned(),
        (_, Origin::NoSource) => "there is no source to scan: it was made elsewhere".to_owned(),
    };
    pen.line(&[(&text, Role::Key)]);
}

fn sign(pen: &Pen<'_>, finding: &Finding) -> (&'static str, Role) {
    match finding.severity.as_str() {
        "block" | "error" => (pen.glyph("✖", "x"), Role::Bad),
        "warning" => (pen.glyph("▲", "!"), Role::Warn),
        _ => (pen.glyph("○", "-"), Role::Dim),
    }
}

fn list(pen: &mut Pen<'_>, found: &Found, findings: &[Finding], whole: bool) {
    pen.head(&format!("Findings: {}", findings.len()), "");
    if findings.is_empty() {
        let text = if whole { "none" } else { "none that a deploy tells of" };
        return pen.text(text, Role::Good);
    }
    let mut all: Vec<&Finding> = findings.iter().collect();
    match Screen::Findings.orders().get(pen.sheet.order) {
        Some(('p', _)) => all.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line))),
        Some(('r', _)) => all.sort_by(|a, b| (&a.rule, &a.path, a.line).cmp(&(&b.rule, &b.path, b.line))),
        _ => all.sort_by(|a, b| (a.rank(), &a.path, a.line).cmp(&(b.rank(), &b.path, b.line))),
    }
    pen.ordered(&mut all);
    for f in all {
        let (glyph, role) = sign(pen, f);
        let waived = f.is_waived(&found.waivers);
        let role = if waived { Role::Dim } else { role };
        let word = format!("{glyph} {:<8}", if waived { "waived" } else { &f.severity });
        let place = format!("{}:{}  ", f.path, f.line);
        let command = format!("sigil waiver add {} {}:{} --reason TEXT --until DATE", found.name, f.rule, f.path);
        let about = About {
            key: format!("{}:{}:{} {}", f.path, f.line, f.column, f.rule),
            title: format!("{}: {}", f.severity, f.rule),
            full: full(f, &command, whole),
            command: Some(command),
            deployment: None,
        };
        let rule = format!("{}  ", f.rule);
        pen.row(about, &[(&word, role), (&rule, Role::Title), (&place, Role::Dim), (&f.message, Role::Text)]);
    }
}

/// Everything that is known of it.
fn full(f: &Finding, command: &str, whole: bool) -> Vec<String> {
    let column = if f.column > 0 { format!(":{}", f.column) } else { String::new() };
    let mut out = vec![f.message.clone(), format!("in {}:{}{column}", f.path, f.line)];
    let mut add = |name: &str, text: &str| {
        if !text.is_empty() {
            out.push(String::new());
            out.push(format!("{name}{text}"));
        }
    };
    add("", &f.snippet);
    add("What it can lead to: ", &f.impact);
    add("What to do: ", &f.fix);
    add("Read on: ", &f.help);
    if !whole {
        add("", "A deploy notes no more than this; a scan says what it can lead to and what to do.");
    }
    add("To answer for it (w copies this): ", command);
    out
}

fn waivers(pen: &mut Pen<'_>, found: &Found) {
    pen.head("Waivers", "");
    if found.waivers.is_empty() {
        return pen.text("none: nobody answers for a finding of it", Role::Dim);
    }
    for w in &found.waivers {
        let over = if w.over { "  over" } else { "" };
        let until = format!("until {}{over}  ", w.until);
        let role = if w.over { Role::Warn } else { Role::Text };
        let about = About {
            key: format!("waiver {}", w.finding),
            title: format!("Waiver of {}", w.finding),
            full: told(w),
            command: Some(format!("sigil waiver rm {} {}", found.name, w.finding)),
            deployment: None,
        };
        let by = format!("  ({})", w.by);
        pen.row(
            about,
            &[(&format!("{}  ", w.finding), Role::Title), (&until, role), (&w.reason, Role::Text), (&by, Role::Dim)],
        );
    }
}

fn told(w: &Waiver) -> Vec<String> {
    vec![w.reason.clone(), format!("until {}, by {}", w.until, w.by)]
}
