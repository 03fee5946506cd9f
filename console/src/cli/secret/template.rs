//! What well-known services need: `templates.toml`, read when it is asked for.

use std::collections::BTreeMap;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::super::Ctx;
use super::super::fail::{DONE, FAILED, Failure, NOT_FOUND, Outcome};
use super::super::near;
use super::super::output::{Table, cell};

const TEMPLATES: &str = include_str!("templates.toml");

/// A service.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    /// As people write it.
    title: String,
    /// Where its secrets are made.
    url: String,
    secrets: Vec<Template>,
}

/// A secret that it needs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    name: String,
    /// Other names under which servers ask for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    also: Vec<String>,
    what: String,
    /// What every value of it looks like; absent: nothing can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pattern: Option<String>,
}

fn services() -> Result<BTreeMap<String, Service>, Failure> {
    toml::from_str(TEMPLATES)
        .map_err(|e| Failure::new(FAILED, "TEMPLATES", e.to_string(), "this is a fault of Sigil's"))
}

pub(super) fn run(ctx: &Ctx, asked: &str) -> Outcome {
    let all = services()?;
    if asked == "ls" {
        ctx.emit(&all, || {
            let mut table = Table::new(&["SERVICE", "TITLE", "SECRETS"], "SECRETS");
            for (id, service) in &all {
                let names: Vec<&str> = service.secrets.iter().map(|s| s.name.as_str()).collect();
                table.row(vec![cell(id), cell(&service.title), cell(names.join(", "))]);
            }
            table.text(ctx.width(), ctx.term.colour)
        })?;
        return Ok(DONE);
    }
    let Some(service) = all.get(asked) else {
        let hint = near::hint(asked, all.keys().map(String::as_str), "see 'sigil secret template ls'");
        return Err(Failure::new(NOT_FOUND, "NOT_FOUND", format!("no template for '{asked}'"), hint));
    };
    ctx.emit(service, || {
        let mut text = format!("{}: {}\n", service.title, service.url);
        for secret in &service.secrets {
            text.push_str(&format!("\n{}\n  {}\n", secret.name, secret.what));
            if !secret.also.is_empty() {
                text.push_str(&format!("  also asked for as {}\n", secret.also.join(", ")));
            }
            text.push_str(&format!("  sigil secret set {}\n", secret.name));
        }
        text
    })?;
    Ok(DONE)
}

/// Why a value is probably not what its name says; never quotes it.
pub(super) fn doubt(name: &str, value: &str) -> Option<String> {
    let space = value.trim() != value && !value.contains("-----");
    let all = services().ok()?;
    let known = all.values().flat_map(|service| service.secrets.iter().map(move |secret| (service, secret)));
    let (service, secret) = known.into_iter().find(|(_, s)| s.name == name || s.also.iter().any(|a| a == name))?;
    let pattern = Regex::new(&format!("^(?:{})$", secret.pattern.as_deref()?)).ok()?;
    if pattern.is_match(value) {
        return None;
    }
    if space && pattern.is_match(value.trim()) {
        return Some(format!("the value of {name} has white space around it"));
    }
    Some(format!(
        "this does not look like {} of {}; see 'sigil secret template'. It was taken as it is",
        secret.what, service.title
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_can_be_used() {
        let all = services().unwrap();
        assert!(all.len() >= 20);
        let mut names = std::collections::BTreeSet::new();
        for (id, service) in &all {
            assert!(service.url.starts_with("https://"), "{id}");
            assert!(!service.secrets.is_empty(), "{id}");
            for secret in &service.secrets {
                for name in std::iter::once(&secret.name).chain(&secret.also) {
                    assert!(super::super::variable(name).is_ok(), "{name}");
                    assert!(names.insert(name.clone()), "{name} is there twice");
                }
                if let Some(pattern) = &secret.pattern {
                    Regex::new(pattern).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_value_that_cannot_be_one_is_doubted_without_being_quoted() {
        let github = format!("ghp_{}", "a1B2".repeat(9));
        assert_eq!(doubt("GITHUB_TOKEN", &github), None);
        assert_eq!(doubt("UNKNOWN_THING", "x"), None);
        let doubted = doubt("GITHUB_TOKEN", "hunter2").unwrap();
        assert!(doubted.contains("GitHub") && !doubted.contains("hunter2"), "{doubted}");
        assert!(doubt("GITHUB_TOKEN", &format!(" {github}")).unwrap().contains("white space"));
        // one service's key under another's name
        let key = format!("sk-ant-{}", "a".repeat(40));
        assert_eq!(doubt("ANTHROPIC_API_KEY", &key), None);
        assert!(doubt("OPENAI_API_KEY", &key).is_some());
        assert_eq!(doubt("OPENAI_API_KEY", &format!("sk-proj-{}", "a".repeat(40))), None);
        assert!(doubt("POSTGRES_URL", "mysql://x").is_some());
        assert_eq!(doubt("POSTGRES_URL", "postgresql://ada:pw@db.example:5432/x"), None);
    }
}
