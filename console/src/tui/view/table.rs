//! All deployments. Fits 80 columns; more room shows more, less room shows what matters most.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use unicode_width::UnicodeWidthStr as _;

use super::super::fleet::{Host, bare};
use super::super::model::{Link, Model, Sort};
use super::super::theme::Role;
use super::{clock, fit, words};
use crate::link::Deployment;

/// A column: title, width, right-aligned, shown from this many columns of the terminal on.
struct Column {
    title: &'static str,
    width: usize,
    right: bool,
    from: u16,
    sort: Option<Sort>,
    text: fn(&Model, &Deployment) -> String,
}

const COLUMNS: [Column; 12] = [
    // Only where there are several.
    Column {
        title: "HOST",
        width: 10,
        right: false,
        from: 0,
        sort: None,
        text: |m, d| words(m, &m.host_of(&d.name).name),
    },
    Column { title: "STATE", width: 12, right: false, from: 0, sort: Some(Sort::State), text: |m, d| state(m, d) },
    Column {
        title: "READY",
        width: 5,
        right: true,
        from: 0,
        sort: None,
        text: |_, d| format!("{}/{}", d.ready, d.desired),
    },
    Column { title: "REL", width: 4, right: true, from: 60, sort: None, text: |_, d| release(d) },
    Column { title: "REQ/M", width: 6, right: true, from: 60, sort: Some(Sort::Rpm), text: |_, d| short(d.rpm) },
    Column { title: "P99", width: 6, right: true, from: 60, sort: Some(Sort::P99), text: |_, d| millis(d.p99_ms) },
    Column { title: "ERR", width: 5, right: true, from: 70, sort: Some(Sort::Errors), text: |_, d| share(d) },
    Column { title: "CPU", width: 4, right: true, from: 60, sort: Some(Sort::Cpu), text: |_, d| cpu(d) },
    Column {
        title: "MEM",
        width: 6,
        right: true,
        from: 70,
        sort: Some(Sort::Memory),
        text: |_, d| size(d.memory_bytes),
    },
    Column { title: "VIA", width: 5, right: false, from: 100, sort: None, text: |m, d| words(m, &d.transport) },
    Column { title: "RST", width: 4, right: true, from: 100, sort: None, text: |_, d| d.restarts.to_string() },
    Column { title: "SOURCE", width: 24, right: false, from: 110, sort: None, text: |m, d| words(m, &d.source) },
];

fn release(d: &Deployment) -> String {
    if d.release == 0 { "-".to_owned() } else { d.release.to_string() }
}

/// A figure in a few characters; `-` for none.
pub fn short(n: f64) -> String {
    match n {
        n if n <= 0.0 => "-".to_owned(),
        n if n < 10.0 => format!("{n:.1}"),
        n if n < 10_000.0 => format!("{n:.0}"),
        n => format!("{:.0}k", n / 1_000.0),
    }
}

/// A time in a few characters.
pub fn millis(ms: f64) -> String {
    match ms {
        ms if ms <= 0.0 => "-".to_owned(),
        ms if ms < 1.0 => "<1ms".to_owned(),
        ms if ms < 1_000.0 => format!("{ms:.0}ms"),
        ms if ms < 100_000.0 => format!("{:.1}s", ms / 1_000.0),
        ms => format!("{:.0}s", ms / 1_000.0),
    }
}

fn share(d: &Deployment) -> String {
    match d.error_rate * 100.0 {
        _ if d.rpm <= 0.0 && d.error_rate <= 0.0 => "-".to_owned(),
        p if p <= 0.0 => "0%".to_owned(),
        p if p < 1.0 => "<1%".to_owned(),
        p => format!("{p:.0}%"),
    }
}

/// To 5 points: an idle server must not make the screen move.
fn cpu(d: &Deployment) -> String {
    match d.cpu_percent {
        _ if d.ready == 0 => "-".to_owned(),
        p if p < 2.5 => "0%".to_owned(),
        p => format!("{:.0}%", (p / 5.0).round() * 5.0),
    }
}

/// Bytes in three digits.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let mut n = bytes as f64;
    let mut unit = 0;
    while n >= 1_000.0 && unit < 4 {
        n /= 1_024.0;
        unit += 1;
    }
    match (bytes, n) {
        (0, _) => "-".to_owned(),
        (_, n) if unit > 2 && n < 10.0 => format!("{n:.1}{}", UNITS[unit]),
        (_, n) => format!("{n:.0}{}", UNITS[unit]),
    }
}

fn state(model: &Model, d: &Deployment) -> String {
    let (glyph, _) = model.theme.state(&d.state);
    let word = model.asked_of(&d.name).map_or(d.state.as_str(), |a| a.doing);
    format!("{glyph} {word}")
}

/// Rows for deployments on the screen.
pub fn room(model: &Model) -> usize {
    model.body_rows().saturating_sub(2)
}

/// Draws the table.
pub fn draw(model: &Model, area: Rect, buf: &mut Buffer) {
    let rows = model.rows();
    if rows.is_empty() {
        return empty(model, area, buf);
    }
    // A column more leaves room for less of the others.
    let room_for = if model.several() { area.width.saturating_sub(11) } else { area.width };
    let has = |c: &&Column| c.from <= room_for && (c.title != "HOST" || model.several());
    let shown: Vec<&Column> = COLUMNS.iter().filter(has).collect();
    let fixed: usize = shown.iter().map(|c| c.width + 1).sum();
    let name = usize::from(area.width).saturating_sub(fixed + 2).max(8);
    // Of a wide screen the source gets a share of what is left.
    let longest = rows.iter().map(|d| bare(&d.name).width()).max().unwrap_or(8).max(12);
    let spare = name.saturating_sub(longest + 1);
    let has_source = area.width >= 110;
    let (name, wider) = if has_source { (name - spare, spare) } else { (name, 0) };
    let title = model.theme.style(Role::Title);
    let sign = match model.table.inverted {
        false => model.theme.glyph("↓", "v"),
        true => model.theme.glyph("↑", "^"),
    };
    let heading = |text: &str, sort: Option<Sort>| match sort {
        Some(s) if s == model.table.sort => format!("{text}{sign}"),
        _ => text.to_owned(),
    };
    let filter = model.table.filter.as_ref();
    let first = match filter {
        Some(f) => format!(
            "{} /{} ({} of {})",
            heading("NAME", Some(Sort::Name)),
            words(model, &f.text),
            rows.len(),
            model.fleet.len()
        ),
        None => heading("NAME", Some(Sort::Name)),
    };
    let mut x = area.x + 2;
    buf.set_stringn(x, area.y, fit(model, &first, name), name, title);
    x += name as u16;
    for c in &shown {
        let width = if c.title == "SOURCE" { c.width + wider } else { c.width };
        cell(buf, x + 1, area.y, width, c.right, &fit(model, &heading(c.title, c.sort), width), title);
        x += width as u16 + 1;
    }
    for (i, d) in rows.iter().skip(model.table.offset).take(room(model)).enumerate() {
        let y = area.y + 1 + i as u16;
        let selected = model.table.selected.as_ref() == Some(&d.id);
        let marked = model.table.marked.contains(&d.id);
        let host = model.host_of(&d.name);
        let stale = model.stale_of(host).is_some() || !host.complete;
        let base = match (stale, selected) {
            (true, _) => model.theme.style(Role::Stale),
            _ => model.theme.style(Role::Text),
        };
        let base = if selected { base.add_modifier(Modifier::REVERSED) } else { base };
        buf.set_style(Rect { x: area.x, y, width: area.width, height: 1 }, base);
        let mark = match (marked, selected) {
            (true, _) => "*",
            (false, true) => model.theme.glyph("›", ">"),
            _ => " ",
        };
        buf.set_stringn(area.x, y, mark, 1, base.add_modifier(Modifier::BOLD));
        let mut x = area.x + 2;
        buf.set_stringn(x, y, fit(model, &words(model, bare(&d.name)), name), name, base);
        x += name as u16;
        for c in &shown {
            let width = if c.title == "SOURCE" { c.width + wider } else { c.width };
            let style = if stale { base } else { base.patch(colour(model, c, d, selected)) };
            cell(buf, x + 1, y, width, c.right, &fit(model, &(c.text)(model, d), width), style);
            x += width as u16 + 1;
        }
    }
    let y = area.y + area.height - 1;
    let (text, role) = message(model, rows.len());
    buf.set_stringn(
        area.x + 2,
        y,
        fit(model, &text, usize::from(area.width) - 3),
        usize::from(area.width) - 3,
        model.theme.style(role),
    );
}

fn colour(model: &Model, c: &Column, d: &Deployment, selected: bool) -> Style {
    let role = match c.title {
        "STATE" => model.theme.state(&d.state).1,
        "ERR" if d.error_rate >= 0.05 => Role::Bad,
        "ERR" if d.error_rate >= 0.01 => Role::Warn,
        "CPU" if d.cpu_percent >= 90.0 => Role::Warn,
        "READY" if d.ready < d.desired && d.state != "stopped" => Role::Warn,
        "VIA" | "SOURCE" => Role::Dim,
        _ => return Style::new(),
    };
    // Grey on a reversed row cannot be read.
    if selected && role == Role::Dim { Style::new() } else { model.theme.style(role) }
}

fn cell(buf: &mut Buffer, x: u16, y: u16, width: usize, right: bool, text: &str, style: Style) {
    let pad = if right { width.saturating_sub(text.width()) } else { 0 };
    buf.set_stringn(x + pad as u16, y, text, width - pad.min(width), style);
}

/// The line under the table: what was asked of the selected one, or its own word, or the agent's.
fn message(model: &Model, rows: usize) -> (String, Role) {
    if let Some(d) = model.table.selected.as_ref().and_then(|id| model.fleet.get(id)) {
        if let Some(asked) = model.asked_of(&d.name) {
            let step = asked.events.iter().rev().find_map(|e| match &e.what {
                crate::link::What::Step { name, .. } => Some(format!(": {name}")),
                _ => None,
            });
            let text =
                format!("{}: {} (asked {}){}", d.name, asked.doing, clock(model, asked.at), step.unwrap_or_default());
            return (words(model, &text), Role::Busy);
        }
        if !d.message.is_empty() {
            let role = match d.state.as_str() {
                "failed" => Role::Bad,
                "degraded" => Role::Warn,
                _ => Role::Dim,
            };
            return (words(model, &format!("{}: {}", d.name, d.message)), role);
        }
    }
    if let Some(note) = model.info().and_then(|i| i.notes.first()) {
        return (words(model, note), Role::Warn);
    }
    let marked = model.table.marked.len();
    match (marked, rows) {
        (0, 1) => ("1 deployment".to_owned(), Role::Dim),
        (0, n) => (format!("{n} deployments"), Role::Dim),
        (m, n) => (format!("{m} of {n} marked: l shows their logs together"), Role::Dim),
    }
}

/// An empty table says why, and what to do.
fn empty(model: &Model, area: Rect, buf: &mut Buffer) {
    let mut lines: Vec<(String, Role)> = Vec::new();
    match model.link() {
        _ if model.several() && !model.hosts.iter().any(Host::is_up) => {
            lines.push(("No host answers.".to_owned(), Role::Bad));
            for host in &model.hosts {
                match &host.link {
                    Link::Down { trouble, .. } => {
                        lines.push((format!("{}: {}", host.name, trouble.what), Role::Text));
                        lines.push((trouble.hint.clone(), Role::Key));
                    }
                    _ => lines.push((format!("{}: connecting to {}", host.name, host.address), Role::Text)),
                }
            }
            lines.retain(|(text, _)| !text.is_empty());
            lines.push(("Each is tried again by itself; R tries now, q quits.".to_owned(), Role::Dim));
        }
        Link::Connecting => {
            lines.push((format!("Connecting to {} {}", model.address(), model.theme.more()), Role::Text))
        }
        Link::Down { trouble, retry_at, .. } if model.fleet.is_empty() => {
            let wait = (retry_at.as_second() - model.now.as_second()).max(0);
            lines.push(("No agent.".to_owned(), Role::Bad));
            lines.push((trouble.what.clone(), Role::Text));
            if !trouble.hint.is_empty() {
                lines.push((trouble.hint.clone(), Role::Key));
            }
            lines.push((format!("Trying again in {wait} s; R tries now, q quits."), Role::Dim));
        }
        _ if !model.complete() => lines.push(("Reading the list of deployments.".to_owned(), Role::Text)),
        _ if model.fleet.is_empty() => {
            lines.push(("Nothing is deployed here yet.".to_owned(), Role::Title));
            lines.push(("d deploys from here. A small server to begin with, from a shell:".to_owned(), Role::Text));
            lines.push(("sigil deploy pypi:mcp-server-time --name time".to_owned(), Role::Key));
            lines.push(("It appears here as it builds and starts. Then:".to_owned(), Role::Text));
            lines.push(("sigil install time --client claude-code".to_owned(), Role::Key));
            lines.push((
                "':tour' shows you around, '?' lists the keys, 'sigil guide' has the handbook.".to_owned(),
                Role::Dim,
            ));
        }
        _ => {
            let filter = model.table.filter.as_ref().map(|f| f.text.clone()).unwrap_or_default();
            lines.push((format!("None of {} deployments matches /{filter}.", model.fleet.len()), Role::Text));
            lines.push(("Esc clears the filter, / changes it.".to_owned(), Role::Dim));
        }
    }
    let width = usize::from(area.width).saturating_sub(4).max(1);
    let mut rows = Vec::new();
    for (text, role) in lines {
        rows.extend(super::overlay::wrapped(&words(model, &text), width).into_iter().map(|l| (l, role)));
    }
    let top = area.y + (area.height.saturating_sub(rows.len() as u16)) / 3;
    for (i, (text, role)) in rows.iter().enumerate().take(usize::from(area.height)) {
        buf.set_stringn(area.x + 2, top + i as u16, text, width, model.theme.style(*role));
    }
}
