//! How a deployment is scaled: what holds now and why, replicas and requests over time, and every decision and refusal.

use jiff::Timestamp;
use sigil_core::scale::{Bucket, Decision, History, Policy, Verdict};

use super::super::model::{Model, Screen};
use super::super::sheet::{Scaled, Seen, WINDOWS};
use super::super::theme::Role;
use super::moment;
use super::plot::{self, Chart};
use super::sheet::{About, Pen};
use crate::link::scaling::Decided;

/// Widest plot, in columns.
const WIDEST: usize = 120;

/// Writes the sheet.
pub fn write(pen: &mut Pen<'_>, scaled: &Scaled) {
    let policy = read(scaled);
    head(pen, scaled, policy.as_ref());
    now(pen, scaled, policy.as_ref());
    plots(pen, scaled, policy.as_ref());
    decisions(pen, scaled);
}

/// Whether something on the sheet counts seconds down.
pub fn counts_down(model: &Model) -> bool {
    let Some(Seen::Scaling(scaled)) = model.sheet().and_then(|s| s.seen.as_ref()) else { return false };
    model.screen() == Screen::Scaling && read(scaled).is_some_and(|p| cooling(model, scaled, &p).is_some())
}

fn read(scaled: &Scaled) -> Option<Policy> {
    let text = Some(&scaled.scaling.policy).filter(|text| !text.is_empty())?;
    Policy::read("policy", text, None).ok()
}

/// Seconds in which no step up and no step down is made; `None`: both are over.
fn cooling(model: &Model, scaled: &Scaled, policy: &Policy) -> Option<(i64, i64)> {
    let step = scaled.decisions.iter().find(|d| d.decision.from != d.decision.to)?;
    let age = model.agent_now().as_second() - step.at.as_second();
    let left = |cooldown: u32| (i64::from(cooldown) - age).max(0);
    let (up, down) = (left(policy.up_cooldown), left(policy.down_cooldown));
    (up > 0 || down > 0).then_some((up, down))
}

/// `90 s`, `4 min 10 s`
fn seconds(n: i64) -> String {
    match (n / 60, n % 60) {
        (0, s) => format!("{s} s"),
        (m, 0) => format!("{m} min"),
        (m, s) => format!("{m} min {s} s"),
    }
}

/// At most two decimals, without zeros at the end.
fn figure(value: f64) -> String {
    format!("{}", (value * 100.0).round() / 100.0)
}

fn head(pen: &mut Pen<'_>, scaled: &Scaled, policy: Option<&Policy>) {
    let replicas = scaled.scaling.replicas;
    let wanted = format!("{replicas} replica{} wanted", if replicas == 1 { "" } else { "s" });
    let name = scaled.scaling.name.clone();
    match policy {
        Some(p) => {
            let bounds = format!("  policy {}: {} to {}", p.preset, p.min, p.max);
            let mut how = format!(", every {}", seconds(i64::from(p.evaluate_every)));
            if p.idle_timeout > 0 && p.min == 0 {
                how.push_str(&format!(", sleeps after {} idle", seconds(i64::from(p.idle_timeout))));
            }
            if p.predictive {
                how.push_str(", looks ahead");
            }
            pen.line(&[(&wanted, Role::Title), (&bounds, Role::Text), (&how, Role::Dim)]);
        }
        None if scaled.scaling.policy.is_empty() => {
            pen.line(&[(&wanted, Role::Title), ("  no policy: it keeps the replicas that it has", Role::Warn)]);
            pen.line(&[
                (&format!("sigil scaling set {name} --preset standard"), Role::Key),
                (" gives it one", Role::Dim),
            ]);
        }
        None => {
            pen.line(&[(&wanted, Role::Title), ("  this console cannot read the policy", Role::Warn)]);
            pen.line(&[(&format!("sigil scaling get {name}"), Role::Key), (" shows it", Role::Dim)]);
        }
    }
}

fn now(pen: &mut Pen<'_>, scaled: &Scaled, policy: Option<&Policy>) {
    pen.title("Now");
    let explained = &scaled.explained;
    if let Some(d) = &explained.decision {
        let (what, role) = match d.from.cmp(&d.to) {
            std::cmp::Ordering::Equal => (format!("stays at {}: ", d.from), Role::Good),
            _ => (format!("{} {} {}: ", d.from, pen.glyph("→", "->"), d.to), Role::Busy),
        };
        pen.line(&[(&what, role), (&d.reason, Role::Text)]);
        for held in &d.held {
            pen.line(&[("refused: ", Role::Warn), (&held.why, Role::Text)]);
        }
        let told = explained.notes.iter().any(|note| note.starts_with("forecast"));
        if let Some(forecast) = d.forecast.filter(|_| !told) {
            pen.line(&[("forecast: ", Role::Dim), (&format!("{forecast} for the next hour"), Role::Text)]);
        }
    }
    for note in &explained.notes {
        pen.text(note, Role::Text);
    }
    if let Some((up, down)) = policy.and_then(|p| cooling(pen.model, scaled, p)) {
        let word = |n: i64| if n > 0 { format!("after {}", seconds(n)) } else { "at once".to_owned() };
        let text = format!("up {}, down {}", word(up), word(down));
        pen.line(&[("cools down: ", Role::Busy), (&text, Role::Text)]);
    }
    let Some(measures) = explained.decision.as_ref().map(|d| &d.measures).filter(|m| !m.is_empty()) else { return };
    pen.line(&[("MEASURE              NOW   UP ABOVE  DOWN BELOW  SAYS     NEEDS", Role::Dim)]);
    for m in measures {
        let (says, role) = says(m.verdict);
        let value = m.value.map_or_else(|| "-".to_owned(), figure);
        let facts = format!("{:<14} {value:>9}  {:>9}  {:>10}  ", m.name, figure(m.up), figure(m.down));
        pen.line(&[(&facts, Role::Text), (&format!("{says:<8}"), role), (&format!("{:>5}", m.need), Role::Text)]);
    }
}

fn says(verdict: Verdict) -> (&'static str, Role) {
    match verdict {
        Verdict::Up => ("up", Role::Busy),
        Verdict::Hold => ("hold", Role::Good),
        Verdict::Down => ("down", Role::Dim),
        Verdict::Unknown => ("unknown", Role::Warn),
    }
}

/// Ends of as many columns as there are, in seconds since 1970; the last one is now or soon.
fn columns(now: Timestamp, span: i64, width: usize) -> (i64, Vec<i64>) {
    let slot = (span / width as i64).max(1);
    // On a grid, so that nothing moves but once a column.
    let end = (now.as_second().div_euclid(slot) + 1) * slot;
    (slot, (0..width as i64).map(|c| end - (width as i64 - 1 - c) * slot).collect())
}

/// Replicas wanted at each of those times, as the decisions tell.
fn replicas_at(decisions: &[Decided], present: u32, created: Option<Timestamp>, ends: &[i64]) -> Vec<Option<f64>> {
    let steps: Vec<&Decided> = decisions.iter().rev().filter(|d| d.decision.from != d.decision.to).collect();
    let at = |end: &i64| {
        if created.is_some_and(|c| c.as_second() > *end) {
            return None;
        }
        let after = steps.partition_point(|d| d.at.as_second() <= *end);
        let replicas = match (steps.get(after), after.checked_sub(1).and_then(|i| steps.get(i))) {
            (Some(next), _) => next.decision.from,
            // Somebody may have scaled it by hand since; what is wanted now is known.
            (None, _) => present,
        };
        Some(f64::from(replicas))
    };
    ends.iter().map(at).collect()
}

/// Requests a minute at each of those times.
fn requests_at(history: &History, slot: i64, ends: &[i64]) -> Vec<Option<f64>> {
    let buckets: Vec<(i64, Bucket)> = history.buckets().collect();
    let Some(first) = buckets.first().map(|(n, _)| *n) else { return vec![None; ends.len()] };
    let mean = |end: &i64| {
        let (from, to) = (History::number(end - slot), History::number(end - 1));
        if to < first {
            return None;
        }
        let begin = buckets.partition_point(|(n, _)| *n < from);
        let within = buckets[begin..].iter().take_while(|(n, _)| *n <= to);
        // A bucket that is missing is one without requests.
        let sum: f64 = within.map(|(_, b)| f64::from(b.requests)).sum();
        Some(sum / (to - from + 1) as f64)
    };
    ends.iter().map(mean).collect()
}

fn plots(pen: &mut Pen<'_>, scaled: &Scaled, policy: Option<&Policy>) {
    let (word, span) = WINDOWS[pen.sheet.window % WINDOWS.len()];
    let width = pen.width.saturating_sub(plot::MARGIN + 1).clamp(8, WIDEST);
    let (slot, ends) = columns(pen.model.agent_now(), span, width);
    let created = pen.model.fleet.values().find(|d| d.name == scaled.scaling.name).and_then(|d| d.created_at);
    let most = policy.map(|p| format!(", at most {}", p.max)).unwrap_or_default();
    pen.head(&format!("Replicas, {word}"), &format!("{most}  z: another time"));
    let values = replicas_at(&scaled.decisions, scaled.scaling.replicas, created, &ends);
    let label = |v: f64| if v.fract() == 0.0 { format!("{v:.0}") } else { String::new() };
    plot::chart(pen, &Chart { values: &values, height: 3, width, label, role: Role::Good, steps: true });
    let Some(load) = &scaled.load else { return };
    let values = requests_at(&load.history, slot, &ends);
    pen.line(&[(&format!("Requests a minute, {word}"), Role::Title)]);
    if values.iter().all(Option::is_none) {
        pen.text("none is known of that time", Role::Dim);
        return;
    }
    let label = |v: f64| super::table::short(v).replace('-', "0");
    plot::chart(pen, &Chart { values: &values, height: 4, width, label, role: Role::Busy, steps: false });
    let at = |second: Option<&i64>| second.and_then(|s| Timestamp::from_second(*s).ok());
    let from = at(ends.first()).and_then(|t| t.checked_sub(jiff::SignedDuration::from_secs(slot)).ok());
    let (from, to) = (short_moment(pen.model, from), short_moment(pen.model, at(ends.last())));
    plot::axis(pen, width, &from, &to);
}

/// To the minute: seconds say nothing at this scale.
fn short_moment(model: &Model, at: Option<Timestamp>) -> String {
    let text = moment(model, at);
    match text.matches(':').count() {
        2 => text.rsplit_once(':').map_or(text.clone(), |(head, _)| head.to_owned()),
        _ => text,
    }
}

/// What was done, in a word or two.
fn step(pen: &Pen<'_>, d: &Decision) -> (String, Role) {
    match d.from.cmp(&d.to) {
        std::cmp::Ordering::Equal if d.held.is_empty() => (d.from.to_string(), Role::Text),
        std::cmp::Ordering::Equal => (format!("{} (wanted {})", d.from, d.wanted), Role::Warn),
        _ => (format!("{} {} {}", d.from, pen.glyph("→", "->"), d.to), Role::Busy),
    }
}

fn decisions(pen: &mut Pen<'_>, scaled: &Scaled) {
    pen.head(
        "Decisions and refusals",
        if scaled.decisions.is_empty() { "" } else { "  Enter shows all that led to one" },
    );
    if scaled.decisions.is_empty() {
        return pen.text("none yet: nothing was done and nothing refused", Role::Dim);
    }
    let mut all: Vec<&Decided> = scaled.decisions.iter().collect();
    pen.ordered(&mut all);
    for Decided { at, decision: d } in all {
        let when = moment(pen.model, Some(*at));
        let (what, role) = step(pen, d);
        let requests = d.signals.map_or_else(|| "-".to_owned(), |s| format!("{:.0}", s.requests));
        let why: Vec<&str> = std::iter::once(d.reason.as_str()).chain(d.held.iter().map(|h| h.why.as_str())).collect();
        let about = About {
            key: format!("decision {at}"),
            title: format!("{what}, {when}"),
            full: led_to(d),
            ..About::default()
        };
        let load = format!("{requests:>6}/min  ");
        pen.row(
            about,
            &[
                (&format!("{when:<12}"), Role::Dim),
                (&format!("{what:<13}"), role),
                (&load, Role::Dim),
                (&why.join("; "), Role::Text),
            ],
        );
    }
}

/// Everything that led to a decision, one line each.
fn led_to(d: &Decision) -> Vec<String> {
    let mut out = vec![d.reason.clone(), format!("from {} to {}, {} wanted", d.from, d.to, d.wanted)];
    out.extend(d.held.iter().map(|h| format!("refused: {}", h.why)));
    for m in &d.measures {
        let value = m.value.map_or_else(|| "unknown".to_owned(), figure);
        let (says, _) = says(m.verdict);
        let bounds = format!("up above {}, down below {}", figure(m.up), figure(m.down));
        out.push(format!("{}: {value} ({bounds}) says {says}, needs {}", m.name, m.need));
    }
    if let Some(s) = d.signals {
        let cpu = s.cpu.map_or_else(|| "unknown".to_owned(), |v| format!("{v:.0}%"));
        let p95 = s.p95.map_or_else(|| "unknown".to_owned(), |v| format!("{v:.0} ms"));
        out.push(format!("{:.1} requests/min, {} under way, {} sessions", s.requests, s.in_flight, s.sessions));
        out.push(format!("{} ready, CPU {cpu}, p95 {p95}", s.ready));
    }
    out.extend(d.forecast.map(|n| format!("the forecast asks for {n}")));
    out
}

#[cfg(test)]
mod tests {
    use sigil_core::scale::BUCKET_SECONDS;

    use super::*;
    use crate::tui::demo::at;

    fn decided(seconds: i64, from: u32, to: u32) -> Decided {
        let decision = Decision {
            from,
            to,
            wanted: to,
            reason: String::new(),
            held: Vec::new(),
            measures: Vec::new(),
            signals: None,
            forecast: None,
        };
        Decided { at: at(seconds), decision }
    }

    #[test]
    fn replicas_follow_the_steps_from_creation_until_now() {
        let ends: Vec<i64> = [-400, -300, -200, -100, 0].iter().map(|s| at(*s).as_second()).collect();
        let decisions = [decided(-50, 3, 1), decided(-150, 3, 3), decided(-250, 1, 3)];
        let all = replicas_at(&decisions, 1, Some(at(-350)), &ends);
        assert_eq!(all, [None, Some(1.0), Some(3.0), Some(3.0), Some(1.0)]);
        // Scaled by hand since the last decision.
        assert_eq!(replicas_at(&decisions, 7, None, &ends).last(), Some(&Some(7.0)));
        assert_eq!(replicas_at(&[], 2, None, &ends), [Some(2.0); 5]);
    }

    #[test]
    fn requests_are_means_of_what_is_known() {
        let mut history = History::default();
        let base = History::number(at(0).as_second());
        let bucket = |requests| Bucket { requests, peak: requests, cores: 0.0 };
        history.set(base - 4, bucket(10.0));
        history.set(base - 2, bucket(30.0));
        let end = |n: i64| (base - n + 1) * BUCKET_SECONDS;
        let ends = [end(6), end(4), end(2)];
        assert_eq!(requests_at(&history, 2 * BUCKET_SECONDS, &ends), [None, Some(5.0), Some(15.0)]);
    }

    #[test]
    fn columns_stand_still_within_their_width() {
        assert_eq!(columns(at(0), 3_600, 60), columns(at(56), 3_600, 60));
        assert_ne!(columns(at(0), 3_600, 60), columns(at(60), 3_600, 60));
        let (slot, ends) = columns(at(0), 3_600, 60);
        assert_eq!((slot, ends.len()), (60, 60));
        assert!(ends[59] > at(0).as_second() && ends[58] <= at(0).as_second());
    }
}
