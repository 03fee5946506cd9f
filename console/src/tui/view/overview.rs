//! The agent: who it is, how the link does, how many deployments do how, and what is wrong, first.

use super::super::fleet::Host;
use super::super::model::{Link, Model, Screen};
use super::super::theme::Role;
use super::sheet::{About, Pen};
use super::{moment, words};
use crate::link::Deployment;
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

/// The one host, or all of them with what is wrong first.
fn head(pen: &mut Pen<'_>) {
    let model = pen.model;
    if !model.several() {
        for (name, value) in facts(model, &model.hosts[0]) {
            if model.hosts[0].info.is_none() {
                return pen.text(&value, Role::Text);
            }
            pen.line(&[(&format!("{name:<9} "), Role::Dim), (&value, Role::Text)]);
        }
        return;
    }
    let mut hosts: Vec<&Host> = model.hosts.iter().collect();
    let worst = |h: &Host| match &h.link {
        Link::Down { .. } => 0,
        Link::Connecting => 1,
        Link::Up { .. } if bad(model, h) > 0 => 2,
        Link::Up { .. } => 3,
    };
    hosts.sort_by_key(|h| worst(h));
    let name = hosts.iter().map(|h| h.name.chars().count()).max().unwrap_or(4).clamp(4, 20);
    pen.line(&[
        ("Hosts  ", Role::Title),
        (&format!("{:<w$}  link                 agent      deployments", "", w = name.saturating_sub(5)), Role::Dim),
    ]);
    for host in hosts {
        let facts = facts(model, host);
        let full: Vec<String> = facts.iter().map(|(name, value)| format!("{name:<9} {value}")).collect();
        let about = About { key: format!("host {}", host.name), title: host.name.clone(), full, ..About::default() };
        let theme = model.theme;
        let (glyph, role, link) = match &host.link {
            Link::Connecting => (theme.glyph("◌", "."), Role::Busy, "connecting".to_owned()),
            Link::Up { rtt_ms } => {
                (theme.glyph("●", "+"), Role::Good, format!("{} <{rtt_ms} ms", moment(model, host.up_since)))
            }
            Link::Down { since, .. } => {
                (theme.glyph("✖", "x"), Role::Bad, format!("down since {}", moment(model, Some(*since))))
            }
        };
        let version = host.info.as_ref().map_or("-", |i| i.version.as_str());
        let skew = if matches!(version, "-" | OWN) { Role::Text } else { Role::Warn };
        let (all, bad) = (theirs(model, host).count(), bad(model, host));
        let wrong = if bad > 0 { format!(", {bad} wrong") } else { String::new() };
        let count = if host.complete { all.to_string() } else { "-".to_owned() };
        let offset = match host.clock_offset {
            0 => String::new(),
            s => format!(", clock {s:+} s"),
        };
        let why = match &host.link {
            Link::Down { trouble, .. } => format!("  {}", super::super::update::joined(&trouble.what, &trouble.hint)),
            _ => String::new(),
        };
        pen.row(
            about,
            &[
                (&format!("{glyph} "), role),
                (&format!("{:<name$}  ", host.name), Role::Title),
                (&format!("{link:<19}  "), role),
                (&format!("{version:<9}  "), skew),
                (&format!("{count}{wrong}{offset}"), if bad > 0 { Role::Warn } else { Role::Text }),
                (&why, Role::Dim),
            ],
        );
    }
}

/// This console's version.
const OWN: &str = env!("CARGO_PKG_VERSION");

/// A host's deployments.
fn theirs<'m>(model: &'m Model, host: &'m Host) -> impl Iterator<Item = &'m Deployment> {
    model.fleet.values().filter(|d| std::ptr::eq(model.host_of(&d.name), host))
}

/// How many of them are not well.
fn bad(model: &Model, host: &Host) -> usize {
    theirs(model, host).filter(|d| matches!(d.state.as_str(), "failed" | "degraded") || d.health == "unhealthy").count()
}

/// What is known of a host, by name.
fn facts(model: &Model, host: &Host) -> Vec<(&'static str, String)> {
    let Some(info) = &host.info else {
        let text = match &host.link {
            Link::Down { trouble, .. } => super::super::update::joined(&trouble.what, &trouble.hint),
            _ => format!("Connecting to {} {}", host.address, model.theme.more()),
        };
        return vec![("link", text)];
    };
    let skew = match info.version.as_str() {
        OWN => String::new(),
        _ => format!("; this console is {OWN}: install the same on both sides"),
    };
    let mut facts = vec![
        ("host", format!("{} at {}", info.hostname, host.address)),
        ("agent", format!("{}, since {}{skew}", info.version, moment(model, info.started_at))),
    ];
    if let Some(engine) = &info.engine {
        let state = if engine.reachable { "" } else { ", not reachable" };
        let cgroups = format!("cgroup v{}, logs {}", engine.cgroup_version, engine.log_driver);
        facts.push(("engine", format!("{} {}, {cgroups}{state}", engine.name, engine.version)));
    }
    let link = match (&host.link, host.up_since) {
        (Link::Up { rtt_ms }, Some(since)) => {
            format!("up since {}, round trip under {rtt_ms} ms", moment(model, Some(since)))
        }
        (Link::Down { since, trouble, .. }, _) => {
            format!("down since {}: {}", moment(model, Some(*since)), trouble.what)
        }
        _ => "connecting".to_owned(),
    };
    facts.push(("link", link));
    if host.clock_offset != 0 {
        facts.push(("clock", format!("{:+} s against this one", host.clock_offset)));
    }
    facts.push(("you", format!("{}, {}", info.who, if info.role.is_empty() { "no role" } else { &info.role })));
    facts.push(("gateway", info.gateway.clone()));
    facts
}

fn counts(pen: &mut Pen<'_>) {
    let model = pen.model;
    if !model.complete() {
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
    for host in model.hosts.iter().filter(|_| model.several()) {
        let Link::Down { trouble, since, .. } = &host.link else { continue };
        let sign = format!("{} {:<12}", model.theme.glyph("✖", "x"), "no link");
        let text = super::super::update::joined(&trouble.what, &trouble.hint);
        let full = vec![text.clone(), String::new(), format!("since {}", moment(model, Some(*since)))];
        let about = About { key: format!("link {}", host.name), title: host.name.clone(), full, ..About::default() };
        let named = (format!("{}  ", host.name), Role::Title);
        let parts = vec![(sign, Role::Bad), named, (text, Role::Text)];
        all.push(Wrong { rank: 0, name: host.name.clone(), about, parts });
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
    for (host, note) in
        model.hosts.iter().flat_map(|h| h.info.iter().flat_map(move |i| i.notes.iter().map(move |n| (h, n))))
    {
        let about = About {
            key: format!("note {} {note}", host.name),
            title: "The agent says".to_owned(),
            full: vec![note.clone()],
            ..About::default()
        };
        let sign = format!("{} {:<12}", model.theme.glyph("▲", "!"), "agent");
        let named = if model.several() { format!("{}  ", host.name) } else { String::new() };
        all.push(Wrong {
            rank: 3,
            name: String::new(),
            about,
            parts: vec![(sign, Role::Warn), (named, Role::Title), (note.clone(), Role::Text)],
        });
    }
    pen.title("Wrong now");
    if all.is_empty() {
        match (model.complete(), alerts) {
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
