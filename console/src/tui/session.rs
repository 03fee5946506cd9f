//! What a console left behind, to go on with: the screen, filters, orders, commands typed. One file for each set of
//! hosts, in the state directory; nothing in it is needed.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::logbuf::Pattern;
use super::model::{Model, Place, Screen, Sort};
use super::sheet::{Sheet, TITLES};

/// A file that is larger was not written here, bytes.
const LARGEST: u64 = 1 << 20;

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Session {
    /// The screen, as the palette calls it; `get` is one deployment's page.
    screen: String,
    /// What it is about.
    names: Vec<String>,
    /// The table's order, by its word.
    sort: String,
    inverted: bool,
    filter: String,
    /// Orders and filters of sheets, by the palette's word.
    sheets: BTreeMap<String, Left>,
    /// Commands typed, oldest first.
    commands: Vec<String>,
}

/// How a sheet was left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Left {
    order: usize,
    inverted: bool,
    filter: String,
}

fn verb(screen: Screen) -> &'static str {
    screen.titled().map_or("get", |t| t.verb)
}

fn screen(verb: &str) -> Option<Screen> {
    let titled = TITLES.iter().find(|t| t.verb == verb).map(|t| t.screen);
    titled.or_else(|| (verb == "get").then_some(Screen::Detail))
}

fn text(pattern: Option<&Pattern>) -> String {
    pattern.map(|p| p.text.clone()).unwrap_or_default()
}

impl Session {
    /// What there is to remember.
    pub fn of(model: &Model) -> Self {
        // A screen that there was nothing to show on yet is still the one to go on with.
        let place = model.resume.clone().unwrap_or_else(|| model.place());
        let sort = Sort::ALL.iter().find(|(sort, ..)| *sort == model.table.sort);
        let left = |s: &Sheet| Left { order: s.order, inverted: s.inverted, filter: text(s.filter.as_ref()) };
        Self {
            screen: verb(place.screen).to_owned(),
            names: place.names,
            sort: sort.map(|(.., word)| (*word).to_owned()).unwrap_or_default(),
            inverted: model.table.inverted,
            filter: text(model.table.filter.as_ref()),
            sheets: model.sheets.iter().map(|(screen, s)| (verb(*screen).to_owned(), left(s))).collect(),
            commands: model.history.clone(),
        }
    }

    /// Goes on with it: orders and filters at once; the screen is returned, for when there is something to show on it.
    pub fn restore(self, model: &mut Model) -> Option<Place> {
        if let Some((sort, ..)) = Sort::ALL.iter().find(|(.., word)| *word == self.sort) {
            (model.table.sort, model.table.inverted) = (*sort, self.inverted);
        }
        model.table.filter = Pattern::parse(&self.filter).ok().flatten();
        for (word, left) in self.sheets {
            if let Some(screen) = screen(&word).filter(|s| s.is_sheet()) {
                let sheet = model.sheets.entry(screen).or_default();
                sheet.order = left.order.min(screen.orders().len().saturating_sub(1));
                sheet.inverted = left.inverted;
                sheet.filter = Pattern::parse(&left.filter).ok().flatten();
            }
        }
        model.history = self.commands;
        let over = model.history.len().saturating_sub(100);
        model.history.drain(..over);
        screen(&self.screen).filter(|s| *s != Screen::Table).map(|screen| Place { screen, names: self.names })
    }
}

/// The file for these hosts, each by what it is called and its address: one name may stand for several addresses.
pub fn path(state: &Path, hosts: &[(&str, &str)]) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.+".contains(c) { c } else { '_' };
    let names: Vec<&str> = hosts.iter().map(|(name, _)| *name).collect();
    let name: String = names.join("+").chars().map(plain).take(100).collect();
    let mut digest = Sha256::new();
    for (_, address) in hosts {
        digest.update(address.as_bytes());
        digest.update([0]);
    }
    let digest = hex::encode(digest.finalize());
    state.join("console").join(format!("{name}-{}.json", &digest[..8]))
}

/// Reads it. `None`: there is none; a broken one is told of, and is as none.
pub fn load(path: &Path) -> Result<Option<Session>, String> {
    let told =
        |why: String| format!("what was left last time cannot be read and is not used: {}: {why}", path.display());
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(told(e.to_string())),
        Ok(about) if about.len() > LARGEST => return Err(told("it is too large".to_owned())),
        Ok(_) => {}
    }
    let text = std::fs::read(path).map_err(|e| told(e.to_string()))?;
    serde_json::from_slice(&text).map(Some).map_err(|e| told(e.to_string()))
}

/// Writes it at once or not at all, for its owner only.
pub fn save(path: &Path, session: &Session) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(&serde_json::to_vec_pretty(session)?)?;
    file.persist(path)?;
    Ok(())
}
