//! The agent: who it is, how the link does, how many deployments do how, and what is wrong, first.

use super::super::model::{Link, Screen};
use super::super::theme::Role;
use super::sheet::{About, Pen};
use super::{moment, words};
use crate::link::alerts::{Alert, Alerts};

/// Writes the sheet.
pub fn write(pen: &mut Pen<'_>, alerts: Option<&Alerts>) {
    head(pen);
    counts(pen);
    wrong(pen, alerts);
    let Some(alerts) = alerts.filter(|a| !a.ended.is_empty()) else { return };
    pen.head("Was wrong", "");
    for alert in &alerts.ended {
        let times = format!("{} to {}", moment(pen.model, alert.since), moment(pen.model, alert.ended));
        let about = About { key: format!("ended {times} {}", alert.kind), ..told(pen, alert) };
        let what = format!("{:<12} {}  ", alert.kind, alert.about);
        pen.row(about, &[(&format!("{times}  "), Role::Dim), (&what, Role::Text), (&alert.text, Role::Dim)]);
    }
}

fn head(pen: &mut Pen<'_>) {
    let model = pen.model;
    let Some(info) = &model.info else {
        let text = match &model.link {
            Link::Down { trouble, .. } => super::super::update::joined(&trouble.what, &trouble.hint),
            _ => format!("Connecting to {} {}", model.address, model.theme.more()),
        };
        return pen.text(&text, Role::Text);
    };
    let mut fact = |name: &str, value: &str| pen.line(&[(&format!("{name:<9} "), Role::Dim), (value, Role::Text)]);
    fact("host", &format!("{} at {}", info.hostname, model.address));
    let own = env!("CARGO_PKG_VERSION");
    let skew = if info.version == own { String::new() } else { format!("; this console is {own}") };
    fact("agent", &format!("{}, since {}{skew}", info.version, moment(model, info.started_at)));
    if let Some(engine) = &info.engine {
        let state = if engine.reachable { "" } else { ", not reachable" };
        let cgroups = format!("cgroup v{}, logs {}", engine.cgroup_version, engine.log_driver);
        fact("engine", &format!("{} {}, {cgroups}{state}", engine.name, engine.version));
    }
    let link = match (&model.link, model.up_since) {
        (Link::Up { rtt_ms }, Some(since)) => {
            format!("up since {}, round trip under {rtt_ms} ms", moment(model, Some(since)))
        }
        (Link::Down { since, .. }, _) => format!("down since {}", moment(model, Some(*since))),
        _ => "connecting".to_owned(),
    };
    fact("link", &link);
    fact("you", &format!("{}, {}", info.who, if info.role.is_empty() { "no role" } else { &info.role }));
    fact("gateway", &info.gateway);
}

fn counts(pen: &mut Pen<'_>) {
    let model = pen.model;
    if !model.complete {
        return;
    }
    pen.title(&format!("Deployments: {}", model.fleet.len()));
    if model.fleet.is_empty() {
        pen.text("Nothing is deployed here yet. In another terminal: sigil deploy pypi:mcp-server-time", Role::Text);
        return;
    }
    let mut parts: Vec<(String, Role)> = Vec::new();
    for state in ["failed", "degraded", "building", "starting", "pending", "ready", "sleeping", "stopped"] {
        let n = model.fleet.values().filter(|d| d.state == state).count();
        let (glyph, role) = model.theme.state(state);
        if n > 0 {
            let gap = if parts.is_empty() { "" } else { "  " };
            parts.push((format!("{gap}{glyph} {n} {state}"), role));
        }
    }
    let parts: Vec<(&str, Role)> = parts.iter().map(|(t, r)| (t.as_str(), *r)).collect();
    pen.line(&parts);
}

/// One thing that is wrong.
struct Wrong {
    rank: u8,
    name: String,
    about: About,
    parts: Vec<(String, Role)>,
}

fn wrong(pen: &mut Pen<'_>, alerts: Option<&Alerts>) {
    let model = pen.model;
    let mut all: Vec<Wrong> = Vec::new();
    for alert in alerts.iter().flat_map(|a| &a.firing) {
        let about = told(pen, alert);
        let sign = format!("{} {:<12}", model.theme.glyph("▲", "!"), alert.kind);
        let since = format!("{}  ", moment(model, alert.since));
        let name = format!("{}  ", alert.about);
        let parts = vec![(sign, Role::Bad), (since, Role::Dim), (name, Role::Title), (alert.text.clone(), Role::Text)];
        all.push(Wrong { rank: 0, name: alert.about.clone(), about, parts });
    }
    for d in model.fleet.values() {
        let rank = match d.state.as_str() {
            "failed" => 1,
            "degraded" => 2,
            _ if d.health == "unhealthy" => 1,
            _ if d.health == "degraded" => 2,
            _ => continue,
        };
        let bad = matches!(d.state.as_str(), "failed" | "degraded");
        let word = if bad { d.state.as_str() } else { d.health.as_str() };
        let (glyph, role) = model.theme.state(if rank == 1 { "failed" } else { "degraded" });
        let about = About { key: format!("state {}", d.id), deployment: Some(d.name.clone()), ..About::default() };
        let text = if d.message.is_empty() { format!("{}/{} replicas", d.ready, d.desired) } else { d.message.clone() };
        let sign = format!("{glyph} {word:<12}");
        let parts = vec![(sign, role), (format!("{}  ", d.name), Role::Title), (text, Role::Text)];
        all.push(Wrong { rank, name: d.name.clone(), about, parts });
    }
    for note in model.info.iter().flat_map(|i| &i.notes) {
        let about = About {
            key: format!("note {note}"),
            title: "The agent says".to_owned(),
            full: vec![note.clone()],
            ..About::default()
        };
        let sign = format!("{} {:<12}", model.theme.glyph("▲", "!"), "agent");
        all.push(Wrong {
            rank: 3,
            name: String::new(),
            about,
            parts: vec![(sign, Role::Warn), (note.clone(), Role::Text)],
        });
    }
    pen.title("Wrong now");
    if all.is_empty() {
        match (model.complete, alerts) {
            (true, Some(_)) => pen.line(&[(pen.glyph("✔ ", "+ "), Role::Good), ("nothing", Role::Text)]),
            _ => pen.line(&[("not known yet", Role::Dim)]),
        }
        return;
    }
    match Screen::Overview.orders().get(pen.sheet.order) {
        Some(('n', _)) => all.sort_by(|a, b| a.name.cmp(&b.name)),
        _ => all.sort_by(|a, b| a.rank.cmp(&b.rank).then_with(|| a.name.cmp(&b.name))),
    }
    pen.ordered(&mut all);
    for Wrong { about, parts, .. } in all {
        let parts: Vec<(&str, Role)> = parts.iter().map(|(t, r)| (t.as_str(), *r)).collect();
        pen.row(about, &parts);
    }
}

/// An alert in full, and whose it is.
fn told(pen: &Pen<'_>, alert: &Alert) -> About {
    let model = pen.model;
    let deployment = model.fleet.values().find(|d| d.name == alert.about).map(|d| d.name.clone());
    let mut full = vec![alert.text.clone(), String::new(), format!("about {}", words(model, &alert.about))];
    full.push(format!("since {}", moment(model, alert.since)));
    if alert.ended.is_some() {
        full.push(format!("until {}", moment(model, alert.ended)));
    }
    let key = format!("alert {} {} {:?}", alert.kind, alert.about, alert.since);
    About { key, title: format!("Alert: {}", alert.kind), full, deployment, ..About::default() }
}
