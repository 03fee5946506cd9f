//! How a deployment's replicas answer: states with their reasons, probes with their times, what turned, how lives ended
//! and with what words, and what callers saw.

use super::super::logbuf::thousands;
use super::super::theme::Role;
use super::plot::{self, Chart};
use super::sheet::{About, Pen};
use super::table::millis;
use super::{moment, tail};
use crate::link::health::{Health, Life, Probe};

/// Rows of the plot.
const PLOT: usize = 4;
/// Widest plot: with wider ones, a probe is hard to find.
const WIDEST: usize = 120;

/// Writes the sheet.
pub fn write(pen: &mut Pen<'_>, health: &Health) {
    let (glyph, role) = state(pen, &health.state);
    let target = format!("  {}% of calls are to be answered", figure(health.target));
    pen.line(&[(&format!("{glyph} {}", health.state), role), (&target, Role::Dim)]);
    replicas(pen, health);
    probes(pen, &health.probes);
    availability(pen, health);
    turns(pen, health);
    lives(pen, health);
}

fn state(pen: &Pen<'_>, word: &str) -> (&'static str, Role) {
    match word {
        "healthy" => (pen.glyph("●", "+"), Role::Good),
        "degraded" => (pen.glyph("▲", "!"), Role::Warn),
        "unhealthy" => (pen.glyph("✖", "x"), Role::Bad),
        _ => (pen.glyph("○", "-"), Role::Dim),
    }
}

/// At most three decimals, without zeros at the end.
fn figure(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn replicas(pen: &mut Pen<'_>, health: &Health) {
    if health.replicas.is_empty() {
        pen.title("Replicas");
        let asleep = pen.model.fleet.values().any(|d| d.name == health.name && d.state == "sleeping");
        let text = if asleep {
            "none is asked: it sleeps, and its health is asked when it is awake"
        } else {
            "none was asked yet: replicas are asked every 30 s once they run; i shows how far they are"
        };
        return pen.text(text, Role::Text);
    }
    pen.head("Replicas", "        answered in  asked     remedies  why");
    for r in &health.replicas {
        let (glyph, role) = state(pen, &r.state);
        let facts = format!(" {:>7}  {:<8}  {:>8}  ", millis(r.ms), moment(pen.model, r.at), r.remedies);
        let name = format!("{glyph} {} ", tail(&r.instance, 6));
        let word = format!("{:<10}", r.state);
        let full = vec![
            format!("replica {}", r.instance),
            format!("state {}", r.state),
            format!("why {}", if r.why.is_empty() { "-" } else { &r.why }),
            format!("answered in {}, asked {}", millis(r.ms), moment(pen.model, r.at)),
            format!("restarted or replaced {} times since it was first asked", r.remedies),
        ];
        let about = About {
            key: format!("replica {}", r.instance),
            title: format!("Replica {}", tail(&r.instance, 6)),
            full,
            ..About::default()
        };
        pen.row(about, &[(&name, role), (&word, role), (&facts, Role::Text), (&r.why, Role::Text)]);
    }
}

/// Sign and role of a probe's outcome.
fn outcome(pen: &Pen<'_>, word: &str) -> (&'static str, Role) {
    match word {
        "good" => (pen.glyph("·", "."), Role::Good),
        "poor" => (pen.glyph("▲", "!"), Role::Warn),
        "busy" => (pen.glyph("◐", "~"), Role::Busy),
        "failed" => (pen.glyph("✖", "x"), Role::Bad),
        _ => ("-", Role::Dim),
    }
}

fn probes(pen: &mut Pen<'_>, probes: &[Probe]) {
    pen.title("Probes");
    if probes.is_empty() {
        return pen.text("none yet: a replica is asked every 30 s as an MCP server", Role::Dim);
    }
    let width = pen.width.saturating_sub(plot::MARGIN + 1).clamp(8, WIDEST);
    let shown: Vec<&Probe> = probes.iter().take(width).rev().collect();
    let values: Vec<Option<f64>> = shown.iter().map(|p| Some(p.ms).filter(|ms| *ms > 0.0)).collect();
    let label = |ms: f64| if ms > 0.0 { millis(ms) } else { "0".to_owned() };
    plot::chart(pen, &Chart { values: &values, height: PLOT, width, label, role: Role::Busy, steps: false });
    // Under each time what came of it, one sign a probe.
    let mut spans = vec![ratatui::text::Span::styled(
        format!("{:>7} {}{}", "", pen.glyph("│", "|"), " ".repeat(width - shown.len())),
        pen.style(Role::Dim),
    )];
    for p in &shown {
        let (sign, role) = outcome(pen, &p.outcome);
        spans.push(ratatui::text::Span::styled(sign, pen.style(role)));
    }
    pen.push(ratatui::text::Line::from(spans));
    let (first, last) = (shown.first().and_then(|p| p.at), shown.last().and_then(|p| p.at));
    plot::axis(pen, width, &moment(pen.model, first), &moment(pen.model, last));
    let bad = |p: &&Probe| !matches!(p.outcome.as_str(), "good" | "skipped");
    let Some(worst) = probes.iter().find(bad) else { return };
    let (sign, role) = outcome(pen, &worst.outcome);
    let text = format!("{sign} {} at {}: ", worst.outcome, moment(pen.model, worst.at));
    pen.line(&[("last that was not good  ", Role::Dim), (&text, role), (&worst.why, Role::Text)]);
}

fn availability(pen: &mut Pen<'_>, health: &Health) {
    pen.head("What callers saw", "");
    if health.availability.iter().all(|w| w.calls.all == 0) {
        return pen.text("no call was made in the last month", Role::Dim);
    }
    for w in &health.availability {
        let when = match w.hours {
            h if h < 48 => format!("last {h} h"),
            h => format!("last {} days", h / 24),
        };
        let (answered, role) = match w.available {
            Some(share) if share >= health.target => (format!("{}% answered", figure(share)), Role::Good),
            Some(share) => (format!("{}% answered", figure(share)), Role::Bad),
            None => ("no calls".to_owned(), Role::Dim),
        };
        let left = w.budget_left.map(|left| {
            let role = match left {
                l if l <= 0.0 => Role::Bad,
                l if l < 25.0 => Role::Warn,
                _ => Role::Text,
            };
            (format!("  budget left {left:.0}%"), role)
        });
        let (left, left_role) = left.unwrap_or((String::new(), Role::Dim));
        let calls = format!("  of {} calls, {} failed", thousands(w.calls.all), thousands(w.calls.failed));
        pen.line(&[
            (&format!("{when:<13}"), Role::Dim),
            (&format!("{answered:<18}"), role),
            (&calls, Role::Text),
            (&left, left_role),
        ]);
    }
}

fn turns(pen: &mut Pen<'_>, health: &Health) {
    pen.head("Turns", "");
    if health.turns.is_empty() {
        return pen.text("none: no replica changed its state", Role::Dim);
    }
    for t in &health.turns {
        let (sign, role) = state(pen, &t.to);
        let when = format!("{:<12}", moment(pen.model, t.at));
        let what = match t.done.is_empty() {
            true => format!("{sign} {} from {}  ", t.to, t.from),
            false => format!("{} {}  ", pen.glyph("↻", "*"), t.done),
        };
        let role = if t.done.is_empty() { role } else { Role::Busy };
        let instance = format!("{}  ", tail(&t.instance, 6));
        let about = About {
            key: format!("turn {:?} {} {}", t.at, t.instance, t.done),
            title: format!("Replica {}, {}", tail(&t.instance, 6), moment(pen.model, t.at)),
            full: vec![what.trim().to_owned(), t.why.clone(), format!("replica {}", t.instance)],
            ..About::default()
        };
        pen.row(about, &[(&when, Role::Dim), (&instance, Role::Text), (&what, role), (&t.why, Role::Text)]);
    }
}

fn lives(pen: &mut Pen<'_>, health: &Health) {
    pen.head("Ended lives", if health.lives.is_empty() { "" } else { "  Enter shows the last output" });
    if health.lives.is_empty() {
        return pen.text("none: no container ended that nobody had asked to", Role::Dim);
    }
    for life in &health.lives {
        let when = format!("{:<12}", moment(pen.model, life.at));
        let lasted = life.lasted_ms.map_or_else(|| "-".to_owned(), |ms| millis(ms as f64));
        let exit = exit(life);
        let facts = format!("r{:<3} lasted {lasted:<6} {exit:<12}  ", life.release);
        let instance = format!("{}  ", tail(&life.instance, 6));
        let mut full = vec![
            life.why.clone(),
            format!("{exit} after {lasted}, release {}, replica {}", life.release, life.instance),
            if life.served { "it had passed its gate" } else { "it never passed its gate" }.to_owned(),
            String::new(),
        ];
        full.push(match (life.output.is_empty(), life.cut) {
            (true, _) => "it printed nothing".to_owned(),
            (_, true) => "the last of its output:".to_owned(),
            (_, false) => "its output:".to_owned(),
        });
        full.extend(life.output.iter().map(|l| format!("{} {}", if l.stream == "stderr" { "!" } else { " " }, l.line)));
        let about = About {
            key: format!("life {:?} {}", life.at, life.instance),
            title: format!("Life of {}, ended {}", tail(&life.instance, 6), moment(pen.model, life.at)),
            full,
            ..About::default()
        };
        pen.row(
            about,
            &[
                (&when, Role::Dim),
                (&instance, Role::Text),
                (&facts, if life.oom { Role::Bad } else { Role::Warn }),
                (&life.why, Role::Text),
            ],
        );
    }
}

/// `exit 137 (memory)`, or what is known.
fn exit(life: &Life) -> String {
    match (life.code, life.oom) {
        (Some(code), true) => format!("exit {code} (memory)"),
        (Some(code), false) => format!("exit {code}"),
        (None, true) => "memory".to_owned(),
        (None, false) => "exit unknown".to_owned(),
    }
}
