//! `sigil clients`, and what `install` and `uninstall` share: the clients of this machine, their files, the ledger of what is in
//! them.

mod diff;
mod files;
mod ledger;

use std::path::{Path, PathBuf};

use serde_json::json;
use sigil_config::client::{self, Client, Format, Level, Os, Remote, Slot, Surroundings, edit, entry};

pub use diff::shown as diff;
pub use files::{Held, Real};
pub use ledger::{EntryNote, Ledger};

use super::fail::{DONE, Failure, NOT_FOUND, Outcome};
use super::output::{Table, cell};
use super::{Ctx, near};

/// List AI clients: which are on this machine, and which have servers of yours in their configuration
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil clients\n  sigil clients --all\n  sigil install time --client cursor,claude-code"
)]
pub struct Args {
    /// Also those that are not on this machine
    #[arg(long)]
    all: bool,
}

/// What places depend on here.
fn here<T>(look: impl FnOnce(&Surroundings<'_>) -> T) -> T {
    let env = |name: &str| std::env::var(name).ok();
    let home = if Os::HERE == Os::Windows { "USERPROFILE" } else { "HOME" };
    let home = std::env::var(home).ok().filter(|home| !home.is_empty()).unwrap_or_else(|| "/".to_owned());
    look(&Surroundings { os: Os::HERE, home, env: &env })
}

/// A file of a client: for everything, or in a project.
#[derive(Clone, Copy)]
pub struct Spot<'c> {
    /// Whose.
    pub client: &'static Client,
    /// How it is written.
    pub level: Level,
    /// Whether it is a project's.
    pub project: Option<&'c Path>,
}

impl Spot<'_> {
    /// The file: the first that is there, else the likeliest.
    pub fn path(&self) -> PathBuf {
        let base = self.project.map(Path::to_path_buf).unwrap_or_default();
        let all = here(|around| self.level.files.candidates(around));
        let mut all = all.into_iter().map(|path| base.join(path));
        let first = all.next().unwrap_or_default();
        if first.exists() { first } else { all.find(|path| path.exists()).unwrap_or(first) }
    }
}

/// The file of a client that `install` and `uninstall` mean; none: it has no such file.
pub fn spot<'c>(client: &'static Client, project: Option<&'c Path>) -> Option<Spot<'c>> {
    let level = if project.is_some() { client.project } else { client.user };
    level.map(|level| Spot { client, level, project })
}

/// Whether a client is on this machine: its file, its folder or another sign of it.
pub fn is_present(client: &'static Client) -> bool {
    let signs = here(|around| client.signs.iter().map(|sign| around.resolve(sign)).collect::<Vec<_>>());
    if signs.iter().any(|sign| Path::new(sign).exists()) {
        return true;
    }
    let Some(level) = client.user else { return false };
    here(|around| level.files.candidates(around)).iter().map(Path::new).any(|path| {
        // the folder, or the one around it for files that lie deeper than a client makes at once
        path.exists() || (!client.shared_folder && path.parent().is_some_and(Path::exists))
    })
}

/// The clients that words stand for; `all`: those of this machine.
pub fn named(words: &[String], project: Option<&Path>) -> Result<Vec<&'static Client>, Failure> {
    let mut found: Vec<&'static Client> = Vec::new();
    for word in words {
        if word == "all" {
            let present = client::ALL.iter().filter(|c| match spot(c, project) {
                Some(spot) if project.is_some() => spot.path().exists() || is_present(c),
                Some(_) => is_present(c),
                None => false,
            });
            found.extend(present);
            continue;
        }
        let Some(one) = client::find(word) else {
            let known = client::ALL.iter().map(|c| c.id);
            let hint = near::hint(word, known, "'sigil clients --all' lists those that are known");
            return Err(Failure::new(NOT_FOUND, "NO_CLIENT", format!("there is no client '{word}'"), hint));
        };
        found.push(one);
    }
    let mut seen: Vec<&str> = Vec::new();
    found.retain(|c| {
        let new = !seen.contains(&c.id);
        seen.push(c.id);
        new
    });
    if found.is_empty() {
        let hint = "name one: 'sigil clients --all' lists those that are known";
        return Err(Failure::new(NOT_FOUND, "NO_CLIENT", "no AI client was found on this machine", hint));
    }
    Ok(found)
}

/// A project's folder, absolute.
pub fn project_dir(given: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    let Some(given) = given else { return Ok(None) };
    let dir = given.canonicalize().map_err(|e| Failure::usage(format!("{}: {e}", given.display()), "name a folder"))?;
    if dir.is_dir() {
        Ok(Some(dir))
    } else {
        Err(Failure::usage(format!("{} is not a folder", given.display()), "name the project's folder"))
    }
}

/// A refusal to change a file, in words for a person.
pub fn refusal(path: &Path, title: &str, error: &edit::EditError) -> Failure {
    let hint = match error {
        edit::EditError::Malformed { .. } => "mend the file; nothing was changed",
        edit::EditError::Form(_) => "write the entry by hand, in the form that the file has; nothing was changed",
        _ => "mend the file, or move it away; nothing was changed",
    };
    Failure::new(super::fail::FAILED, "CLIENT_FILE", format!("{} ({title}): {error}", path.display()), hint)
}

/// An entry of ours in a client's file, whoever wrote it.
struct Ours {
    name: String,
    deployment: String,
    form: &'static str,
    file: PathBuf,
    project: bool,
}

/// What a client's file for everything has, and what the ledger knows of its projects. The second: why a file cannot be read.
fn ours(client: &'static Client, ledger: &Ledger) -> (Vec<Ours>, Option<String>) {
    let mut all: Vec<Ours> = Vec::new();
    let mut why = None;
    for (file, note) in ledger.entries().filter(|(_, note)| note.client == client.id) {
        let form = if note.form == "http" { "http" } else { "stdio" };
        let (name, deployment) = (note.name.clone(), note.deployment.clone());
        all.push(Ours { name, deployment, form, file: file.to_path_buf(), project: note.project });
    }
    if let Some(spot) = spot(client, None) {
        let read = files::read(&spot.path()).map_err(|failure| failure.message).and_then(|real| {
            let text = real.text.as_deref().unwrap_or_default();
            let found = edit::entries(spot.level.format, text, &spot.level.slot(text)).map_err(|e| e.to_string())?;
            Ok((real.path, found))
        });
        match read {
            Err(reason) => why = Some(reason),
            Ok((path, found)) => {
                // what was taken out by hand is not there any more
                all.retain(|o| o.project || o.file != path || found.iter().any(|(name, _)| *name == o.name));
                for (name, value) in found {
                    let known = all.iter().any(|o| o.file == path && o.name == name);
                    if let Some(deployment) = entry::target(&value).as_ref().and_then(entry::Target::bridged)
                        && !known
                    {
                        let deployment = deployment.to_owned();
                        all.push(Ours { name, deployment, form: "stdio", file: path.clone(), project: false });
                    }
                }
            }
        }
    }
    (all, why)
}

pub fn run(ctx: &Ctx, args: &Args) -> Outcome {
    let ledger = Ledger::load()?;
    let mut rows = Vec::new();
    for client in client::ALL {
        let present = is_present(client);
        let (ours, unreadable) = ours(client, &ledger);
        if !(present || args.all || !ours.is_empty() || ctx.format.is_data()) {
            continue;
        }
        rows.push((client, present, ours, unreadable));
    }
    let data: Vec<_> = rows
        .iter()
        .map(|(client, present, ours, unreadable)| {
            json!({
                "client": client.id,
                "title": client.title,
                "present": present,
                "file": spot(client, None).map(|spot| spot.path()),
                "project": client.project.is_some(),
                "http": client.remote == Remote::Yes,
                "unreadable": unreadable,
                "entries": ours.iter().map(|o| json!({
                    "name": o.name, "deployment": o.deployment, "form": o.form, "file": o.file, "project": o.project,
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    ctx.emit(&data, || {
        if rows.is_empty() {
            return "no AI client was found on this machine; 'sigil clients --all' lists those that are known\n"
                .to_owned();
        }
        let mut table = Table::new(&["CLIENT", "HERE", "SERVERS", "FILE"], "FILE").yielding(&["HERE"]);
        for (client, present, ours, unreadable) in &rows {
            let mut names: Vec<&str> = ours.iter().map(|o| o.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            let path = spot(client, None).map(|spot| tilde(&spot.path()));
            let file = match (unreadable, path) {
                (Some(why), Some(path)) => format!("{path}: {why}"),
                (_, Some(path)) => path,
                (_, None) if client.project.is_some() => "a project's only".to_owned(),
                (_, None) => "none; 'sigil install' shows what to paste".to_owned(),
            };
            table.row(vec![
                cell(client.id),
                cell(if *present { "yes" } else { "" }),
                cell(names.join(", ")),
                cell(file),
            ]);
        }
        table.text(ctx.width(), ctx.term.colour)
    })?;
    Ok(DONE)
}

/// A path as a person writes it.
pub fn tilde(path: &Path) -> String {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.parent().is_some());
    match home.as_deref().and_then(|home| path.strip_prefix(home).ok()) {
        Some(below) => format!("~/{}", below.display()),
        None => path.display().to_string(),
    }
}

/// Where an entry of the ledger is.
pub fn noted_slot(note: &EntryNote, level: &Level) -> Slot {
    Slot { path: note.path.clone(), kind: level.kind }
}

/// A file's level, which the ledger does not repeat.
pub fn noted_level(note: &EntryNote) -> Option<(&'static Client, Level)> {
    let client = client::find(&note.client)?;
    let level = if note.project { client.project } else { client.user };
    level.map(|level| (client, level))
}

/// Reads a file that a client keeps.
pub fn read(path: &Path) -> Result<Real, Failure> {
    files::read(path)
}

/// Whether a format's file says nothing.
pub fn says_nothing(format: Format, text: &str) -> bool {
    let text = text.trim_start_matches('\u{feff}').trim();
    text.is_empty() || (format == Format::Json && text == "{}")
}
