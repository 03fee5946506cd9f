//! Packages that fit, and one of them: what it takes, its tools, its versions, its README.

use ratatui::text::Line;
use serde_json::Value;

use super::super::theme::Role;
use super::moment;
use super::sheet::{About, Pen};
use crate::link::{PackageDetail, Packages};

fn judged(verdict: &str) -> Role {
    match verdict {
        "safe" => Role::Good,
        "warning" => Role::Warn,
        "blocked" => Role::Bad,
        _ => Role::Dim,
    }
}

/// Writes the list.
pub fn write(pen: &mut Pen<'_>, found: Option<&Packages>) {
    let text = pen.model.desk.find.clone();
    let shown = if text.is_empty() { "everything".to_owned() } else { text.clone() };
    pen.line(&[
        ("Search: ", Role::Key),
        (&shown, Role::Title),
        ("   / changes it; runtime:node tag:x tool:y secret:Z verdict:safe narrow it", Role::Dim),
    ]);
    let Some(found) = found else { return };
    if found.packages.is_empty() && text.is_empty() {
        pen.push(Line::from(""));
        pen.line(&[("The registry of this agent is empty.", Role::Title)]);
        pen.text("Publish a server of your own, or mirror a registry:", Role::Text);
        pen.line(&[("sigil publish --deployment NAME", Role::Key)]);
        return pen.line(&[("sigil guide registry", Role::Key), (" (:guide registry) tells how", Role::Dim)]);
    }
    if found.packages.is_empty() {
        pen.push(Line::from(""));
        return pen.text("No package fits. Esc shows everything; fewer words find more.", Role::Text);
    }
    let width = found.packages.iter().map(|p| p.name.chars().count()).max().unwrap_or(4).clamp(4, 34);
    let heading = format!(
        "{:<width$}  {:<9}  {:<12}  {:<8}  {:>5}  {:<8}  ABOUT",
        "PACKAGE", "VERSION", "RUNS", "SETUP", "USES", "VERDICT"
    );
    pen.line(&[(&heading, Role::Title)]);
    for p in &found.packages {
        let cut = |text: &str, width| super::fit(pen.model, text, width);
        let (name, version, runs) = (cut(&p.name, width), cut(&p.latest, 9), cut(&p.runtimes.join(","), 12));
        let verdict = if p.verdict.is_empty() { "-" } else { &p.verdict };
        let about = match p.status.as_str() {
            "active" | "" => p.description.clone(),
            status => format!("({status}) {}", if p.message.is_empty() { &p.description } else { &p.message }),
        };
        let row = About { key: p.name.clone(), ..About::default() };
        pen.row(
            row,
            &[
                (&format!("{name:<width$}  "), Role::Title),
                (&format!("{version:<9}  {runs:<12}  {:<8}  {:>5}  ", p.setup, p.installs + p.deploys), Role::Text),
                (&format!("{verdict:<8}  "), judged(verdict)),
                (&about, Role::Dim),
            ],
        );
    }
    let shown = found.packages.len() as u64;
    if shown < found.total {
        pen.text(&format!("{shown} of {}: more words find fewer", found.total), Role::Dim);
    }
}

/// Names and words of a list of objects, or of texts.
fn named(list: &Value) -> Vec<(String, String)> {
    let one = |value: &Value| match value {
        Value::String(name) => (name.clone(), String::new()),
        other => {
            let text = |key: &str| other.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            (text("name"), text("description"))
        }
    };
    list.as_array().map(|list| list.iter().map(one).collect()).unwrap_or_default()
}

/// Writes a package.
pub fn package(pen: &mut Pen<'_>, detail: &PackageDetail) {
    let (p, v) = (&detail.package, &detail.version);
    let latest = if v.latest { " (latest)" } else { "" };
    pen.line(&[(&format!("{} {}{latest}", p.name, v.version), Role::Title), ("   d deploys it", Role::Key)]);
    pen.text(&p.description, Role::Text);
    if v.status != "active" {
        pen.text(&format!("{}: {}", v.status, v.message), Role::Warn);
    }
    pen.push(Line::from(""));
    let verdict = if p.verdict.is_empty() { "not scanned".to_owned() } else { p.verdict.clone() };
    let repository = &v.server["repository"];
    let repository = repository.as_str().or_else(|| repository["url"].as_str()).unwrap_or_default();
    for (label, value, role) in [
        ("runs", p.runtimes.join(", "), Role::Text),
        ("speaks", p.transports.join(", "), Role::Text),
        ("setup", p.setup.clone(), Role::Text),
        ("verdict", verdict, judged(&p.verdict)),
        ("authors", p.authors.join(", "), Role::Text),
        ("tags", p.tags.join(", "), Role::Text),
        ("category", p.category.clone(), Role::Text),
        ("origin", p.origin.clone(), Role::Text),
        ("used", format!("{} installs, {} deploys", p.installs, p.deploys), Role::Text),
        ("repository", repository.to_owned(), Role::Text),
    ] {
        if !value.is_empty() {
            pen.line(&[(&format!("{label:<12}"), Role::Dim), (&value, role)]);
        }
    }
    let own = v.meta.as_object().and_then(|meta| meta.iter().find(|(key, _)| key.starts_with("io.sigil.")));
    let own = own.map(|(_, value)| value.clone()).unwrap_or_default();
    // What the registry knows more of stands before what the document only names.
    let told = |key: &str, names: &[String]| match named(&own[key]) {
        list if list.is_empty() => names.iter().map(|n| (n.clone(), String::new())).collect(),
        list => list,
    };
    for (title, what, list) in [
        ("Secrets that it asks for", "secret", told("secrets", &p.secrets)),
        ("Tools", "tool", told("tools", &p.tools)),
    ] {
        if list.is_empty() {
            continue;
        }
        pen.head(title, "");
        let width = list.iter().map(|(n, _)| n.chars().count()).max().unwrap_or(4).clamp(4, 32);
        for (name, about) in list {
            let first = about.trim().lines().next().unwrap_or_default().to_owned();
            let mut full: Vec<String> = about.lines().map(str::to_owned).collect();
            if full.is_empty() {
                full.push("The registry knows its name only.".to_owned());
            }
            let row = About { key: format!("{what} {name}"), title: name.clone(), full, ..About::default() };
            pen.row(row, &[(&format!("{name:<width$}  "), Role::Title), (&first, Role::Text)]);
        }
    }
    pen.head("Versions", "  Enter shows one");
    for v in &detail.versions {
        let latest = if v.latest { " (latest)" } else { "" };
        let row = About { key: format!("version {}", v.version), ..About::default() };
        let when = moment(pen.model, v.published_at);
        let role = if v.status == "active" { Role::Text } else { Role::Warn };
        pen.row(
            row,
            &[
                (&format!("{:<20}  ", format!("{}{latest}", v.version)), Role::Title),
                (&format!("{:<10}  ", v.status), role),
                (&format!("{when} by {}  ", v.published_by), Role::Dim),
                (&v.message, Role::Text),
            ],
        );
    }
    if let Some(readme) = own["readme"].as_str() {
        pen.head("README", "");
        for line in readme.lines().take(2_000) {
            pen.text(line, Role::Text);
        }
    }
}
