//! Who may what, in short, and the audit log, newest first.

use std::collections::BTreeSet;

use sigil_core::audit::{OK, Record};

use super::super::logbuf::thousands;
use super::super::model::Screen;
use super::super::port::Trouble;
use super::super::theme::Role;
use super::super::update::joined;
use super::moment;
use super::sheet::{About, Pen};
use crate::link::keeping::Access;

/// Writes the sheet.
pub fn write(pen: &mut Pen<'_>, access: &Access) {
    users(pen, access);
    keys(pen, access);
    records(pen, access);
}

/// A part that is closed to the caller, or could not be read.
fn closed(pen: &mut Pen<'_>, title: &str, trouble: &Trouble) {
    let text = joined(&trouble.what, &trouble.hint);
    pen.line(&[(&format!("{title}  "), Role::Title), (&text, Role::Warn)]);
}

fn users(pen: &mut Pen<'_>, access: &Access) {
    let users = match &access.users {
        Ok(users) => users,
        Err(trouble) => return closed(pen, "Users", trouble),
    };
    let teams = match &access.teams {
        Ok(teams) => teams.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", "),
        Err(trouble) => joined(&trouble.what, &trouble.hint),
    };
    pen.line(&[(&format!("Users: {}", users.len()), Role::Title), (&format!("  teams: {teams}"), Role::Dim)]);
    if users.is_empty() {
        pen.text("none but who owns this host: sigil user add NAME, then sigil role grant", Role::Dim);
    }
    for u in users {
        let grants: Vec<String> = u.grants.iter().map(|g| format!("{} on {}", g.role, g.on)).collect();
        let may = if grants.is_empty() { "may nothing yet".to_owned() } else { grants.join(", ") };
        let state = if u.disabled { "disabled  " } else { "" };
        let keys = format!("  {} key{}", u.keys, if u.keys == 1 { "" } else { "s" });
        let full = vec![
            format!("{}  {}", u.name, state.trim()),
            may.clone(),
            format!("{}, added {} by {}", keys.trim(), moment(pen.model, u.created_at), u.created_by),
        ];
        let about =
            About { key: format!("user {}", u.id), title: format!("User {}", u.name), full, ..About::default() };
        pen.row(
            about,
            &[(&format!("{:<16}", u.name), Role::Text), (state, Role::Warn), (&may, Role::Text), (&keys, Role::Dim)],
        );
    }
}

fn keys(pen: &mut Pen<'_>, access: &Access) {
    let keys = match &access.keys {
        Ok(keys) => keys,
        Err(trouble) => return closed(pen, "Keys", trouble),
    };
    pen.head(&format!("Keys: {}", keys.len()), "");
    if keys.is_empty() {
        pen.text("none: sigil key create LABEL makes one", Role::Dim);
    }
    let now = pen.model.agent_now();
    for k in keys {
        let over = k.expires_at.is_some_and(|at| at <= now);
        let expires = match k.expires_at {
            Some(at) if over => format!("expired {}", moment(pen.model, Some(at))),
            Some(at) => format!("until {}", moment(pen.model, Some(at))),
            None => "for good".to_owned(),
        };
        let used =
            format!("used {}", k.last_used_at.map_or_else(|| "never".to_owned(), |at| moment(pen.model, Some(at))));
        let all = |patterns: &[String]| if patterns.is_empty() { "all".to_owned() } else { patterns.join(", ") };
        let full = vec![
            format!("{} ({}), role {}, of {}", k.label, k.id, k.role, k.user),
            format!("deployments: {}; tools: {}", all(&k.deployments), all(&k.tools)),
            format!("made {}, {used}, {expires}", moment(pen.model, k.created_at)),
            String::new(),
            format!("sigil key revoke {}", k.id),
        ];
        let about = About { key: format!("key {}", k.id), title: format!("Key {}", k.label), full, ..About::default() };
        let role = if over { Role::Warn } else { Role::Dim };
        pen.row(
            about,
            &[
                (&format!("{:<16}", k.label), Role::Text),
                (&format!("{:<9}", k.role), Role::Text),
                (&format!("{:<12}", k.user), Role::Dim),
                (&format!("{used}, "), Role::Dim),
                (&expires, role),
            ],
        );
    }
}

fn records(pen: &mut Pen<'_>, access: &Access) {
    let records = match &access.records {
        Ok(records) => records,
        Err(trouble) => return closed(pen, "Audit log", trouble),
    };
    let damaged = match access.damaged {
        0 => String::new(),
        n => format!("  {} damaged lines: sigil audit verify names them", thousands(n)),
    };
    pen.head("Audit log", &damaged);
    if records.is_empty() {
        return pen.text("nothing was done yet that is recorded", Role::Dim);
    }
    let mut all: Vec<&Record> = records.iter().collect();
    match Screen::Access.orders().get(pen.sheet.order) {
        Some(('w', _)) => all.sort_by(|a, b| a.who.cmp(&b.who)),
        Some(('a', _)) => all.sort_by(|a, b| a.what.cmp(&b.what)),
        _ => {}
    }
    pen.ordered(&mut all);
    for r in all {
        let good = r.outcome == OK;
        let outcome = format!("{}  ", if good { pen.glyph("✔", "+") } else { r.outcome.as_str() });
        let when = moment(pen.model, Some(r.time));
        let facts = facts(r);
        let mut full = vec![
            format!("{} by {} from {}", r.what, r.who, r.from),
            format!("{} {}", r.target, r.target_id).trim().to_owned(),
            format!("outcome {}, at {}", r.outcome, r.time),
        ];
        full.extend(facts.iter().cloned());
        for (name, value) in [("key", &r.who_id), ("operation", &r.operation), ("request", &r.request)] {
            if !value.is_empty() {
                full.push(format!("{name} {value}"));
            }
        }
        full.push(format!("seq {} hash {}", r.seq, r.hash));
        let about =
            About { key: format!("record {}", r.seq), title: format!("{}, {when}", r.what), full, ..About::default() };
        pen.row(
            about,
            &[
                (&format!("{when:<12}"), Role::Dim),
                (&format!("{:<12} ", r.who), Role::Text),
                (&format!("{:<16} ", r.what), Role::Title),
                (&format!("{}  ", r.target), Role::Text),
                (&outcome, if good { Role::Good } else { Role::Bad }),
                (&facts.join("; "), Role::Dim),
            ],
        );
    }
}

/// How it was and how it is, one fact each; of long ones that they changed.
fn facts(r: &Record) -> Vec<String> {
    let keys: BTreeSet<&String> = r.before.keys().chain(r.after.keys()).collect();
    let long = |value: Option<&String>| value.is_some_and(|v| v.contains('\n') || v.len() > 200);
    keys.into_iter()
        .map(|key| match (r.before.get(key), r.after.get(key)) {
            (b, a) if long(b) || long(a) => format!("{key} changed"),
            (Some(b), Some(a)) => format!("{key}: {b} -> {a}"),
            (Some(b), None) => format!("{key} was {b}"),
            (None, Some(a)) => format!("{key}: {a}"),
            (None, None) => key.clone(),
        })
        .collect()
}
