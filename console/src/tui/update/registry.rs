//! The registry: what is looked for, as it is typed, and a package's page.

use crossterm::event::{KeyCode, KeyEvent};

use super::super::fleet::bare;
use super::super::model::{Model, Place, Purpose, Screen};
use super::super::sheet::{Seen, Sheet};
use super::{Effect, ask, deploy, places, sheet, tell};
use crate::link::PackageQuery;

/// Packages that are asked for at once.
const LIMIT: u32 = 100;
/// Words that narrow a search: what stands behind the colon is the filter.
pub const FILTERS: [&str; 8] = ["category", "tag", "runtime", "transport", "tool", "secret", "verdict", "setup"];

/// What was typed as a query: words, and `runtime:node` and the like.
pub fn query(text: &str, order: usize) -> PackageQuery {
    let mut query = PackageQuery { limit: LIMIT, ..PackageQuery::default() };
    let mut words = Vec::new();
    for word in text.split_whitespace() {
        match word.split_once(':') {
            Some(("category", value)) => query.category = value.to_owned(),
            Some(("tag", value)) if !value.is_empty() => query.tags.push(value.to_owned()),
            Some(("runtime", value)) => query.runtime = value.to_owned(),
            Some(("transport", value)) => query.transport = value.to_owned(),
            Some(("tool", value)) => query.tool = value.to_owned(),
            Some(("secret", value)) => query.secret = value.to_owned(),
            Some(("verdict", value)) => query.verdict = value.to_owned(),
            Some(("setup", value)) => query.setup = value.to_owned(),
            Some(("origin", value)) => query.origin = value.to_owned(),
            _ => words.push(word),
        }
    }
    query.text = words.join(" ");
    query.sort = ["relevance", "popular", "trending", "recent"].get(order).copied().unwrap_or_default().to_owned();
    query
}

/// The command line that finds the same.
pub fn command(text: &str) -> String {
    let mut out = "sigil search".to_owned();
    for word in text.split_whitespace() {
        match word.split_once(':') {
            Some((key, value)) if FILTERS.contains(&key) => {
                out.push_str(&format!(" --{key} {}", super::desk::shell(value)))
            }
            _ => out.push_str(&format!(" {}", super::desk::shell(word))),
        }
    }
    out
}

/// Looks for something else.
pub fn find(model: &mut Model, text: &str) -> Vec<Effect> {
    if model.desk.find == text {
        return Vec::new();
    }
    text.clone_into(&mut model.desk.find);
    if let Some(sheet) = model.sheets.get_mut(&Screen::Registry) {
        (sheet.row, sheet.offset) = (None, 0);
    }
    sheet::ask_now(model)
}

/// Keys of the list and of a package's page; `None`: none of these.
pub fn key(model: &mut Model, row: Option<&str>, key: KeyEvent) -> Option<Vec<Effect>> {
    let screen = model.screen();
    Some(match (key.code, screen) {
        (KeyCode::Char('/'), Screen::Registry) => {
            let text = model.desk.find.clone();
            ask(model, Purpose::Packages, &text);
            Vec::new()
        }
        (KeyCode::Esc, Screen::Registry) if !model.desk.find.is_empty() => find(model, ""),
        (KeyCode::Enter, Screen::Registry) => open(model, row?.to_owned()),
        (KeyCode::Enter, Screen::Package) => match row.and_then(|r| r.strip_prefix("version ")) {
            Some(version) => {
                let name = model.sheet()?.name.clone()?;
                let name = if model.several() { bare(&name).to_owned() } else { name };
                let name = name.split_once('@').map_or(name.as_str(), |(name, _)| name).to_owned();
                open(model, format!("{name}@{version}"))
            }
            None => return None,
        },
        (KeyCode::Char('d'), Screen::Registry) => {
            let source = format!("registry:{}", row?);
            deploy::open(model, Some(&source))
        }
        (KeyCode::Char('d'), Screen::Package) => match shown(model) {
            Some(name) => deploy::open(model, Some(&format!("registry:{name}"))),
            None => {
                tell(model, "the package is not read yet", false);
                Vec::new()
            }
        },
        (KeyCode::Char('c'), Screen::Registry) => {
            vec![Effect::Copy { text: command(&model.desk.find), what: "the command".to_owned() }]
        }
        (KeyCode::Char('c'), Screen::Package) => {
            let text = format!("sigil package get {} --readme", shown(model)?);
            vec![Effect::Copy { text, what: "the command".to_owned() }]
        }
        _ => return None,
    })
}

/// The package on the page, with its version.
fn shown(model: &Model) -> Option<String> {
    match &model.sheet()?.seen {
        Some(Seen::Package(detail)) => Some(format!("{}@{}", detail.version.name, detail.version.version)),
        _ => None,
    }
}

/// A package's page.
pub fn open(model: &mut Model, name: String) -> Vec<Effect> {
    // With several hosts its host's name stands in front.
    let prefix = model.prefix(model.here());
    let name = if name.starts_with(&prefix) { name } else { format!("{prefix}{name}") };
    // Another version of the same is another page.
    if model.sheets.get(&Screen::Package).is_some_and(|s| s.name.as_ref() != Some(&name)) {
        model.sheets.insert(Screen::Package, Sheet::default());
    }
    places::open(model, Place { screen: Screen::Package, names: vec![name] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_filters_are_told_apart() {
        let q = query("weather runtime:node tag:a tag:b https://x verdict:safe", 1);
        assert_eq!((q.text.as_str(), q.runtime.as_str(), q.verdict.as_str()), ("weather https://x", "node", "safe"));
        assert_eq!((q.tags.len(), q.sort.as_str(), q.limit), (2, "popular", LIMIT));
        assert_eq!(command("big cats tool:create_issue"), "sigil search big cats --tool create_issue");
    }
}
