//! `sigil mirror`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value as Json, json};
use sigil_config::foreign::{self, Taken};
use sigil_core::package;

use super::fail::{DONE, FAILED, Failure, Outcome, TIMED_OUT, USAGE};
use super::output::{self, Table, cell};
use super::{Ctx, text, time};
use crate::link::Imported;

/// Take packages of other registries in
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Registries that the agent reads by itself are named in its configuration: [registry] mirrors, mirror_filters and mirror_seconds. A file holds what another registry's API answers (/v0.1/servers), a list of such items or of server.json documents, or one of them a line. Packages keep the name that they have there; one that was published here, or comes from another mirror, is not replaced, and a version that is here keeps its document.\n\nExample:\n  sigil mirror ls\n  sigil mirror sync official\n  sigil mirror import servers.json --as official"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// See which registries are read, what the last pass brought, and what is wrong
    #[command(after_help = "Example:\n  sigil mirror ls\n  sigil mirror ls official -o json")]
    Ls {
        /// One of them, with what was not taken
        name: Option<String>,
    },
    /// Read one now, and wait for it
    #[command(after_help = "Example:\n  sigil mirror sync official\n  sigil mirror sync official --whole")]
    Sync {
        /// What the mirror is called
        name: String,
        /// All of it, and not only what changed
        #[arg(long)]
        whole: bool,
        /// Do not wait until it is read
        #[arg(long)]
        no_wait: bool,
        /// Wait at most this long
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time::duration)]
        timeout: Duration,
    },
    /// From a file, for hosts without a way out, or from another catalogue
    #[command(
        after_help = "Docker's catalogue (catalog.yaml, or a folder of its registry with server.yaml files) and answers of Smithery's registry (/servers/NAME) are turned into packages; what has no place in one is told. They number nothing: a version there is named after its content.\n\nExample:\n  sigil mirror import servers.json --as official\n  sigil mirror import mcp-registry/servers --as docker\n  sigil mirror import answer.json --as smithery"
    )]
    Import {
        /// JSON, JSON lines or YAML; a folder of Docker's server.yaml files
        file: PathBuf,
        /// What the mirror is called
        #[arg(long = "as", value_name = "NAME")]
        name: String,
    },
}

/// Largest file, bytes.
const FILE_MAX: u64 = 1 << 30;
/// Notes that are printed.
const NOTES: usize = 30;
/// Bytes sent at once.
const CHUNK: usize = 768 << 10;

/// How often it is asked how far a pass is.
const LOOK: Duration = Duration::from_millis(300);

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    match args.verb {
        Verb::Ls { name } => list(ctx, name.as_deref().unwrap_or_default()).await,
        Verb::Sync { name, whole, no_wait, timeout } => sync(ctx, &name, whole, no_wait, timeout).await,
        Verb::Import { file, name } => import(ctx, file, name).await,
    }
}

async fn list(ctx: &Ctx, name: &str) -> Outcome {
    let mirrors = ctx.link().await?.mirrors(name).await?;
    ctx.emit(&mirrors, || {
        if mirrors.is_empty() {
            return "no registry is mirrored; the agent's [registry] mirrors names some\n".to_owned();
        }
        let mut table = Table::new(&["MIRROR", "READ", "VERSIONS", "NEW", "CHANGED", "NOT TAKEN", "STATE"], "STATE");
        for mirror in &mirrors {
            let state = match (mirror.busy, mirror.trouble.as_str()) {
                (true, _) if mirror.read > 0 => format!("reading, {} so far", mirror.read),
                (true, _) => "reading".to_owned(),
                (false, "") if mirror.passes == 0 => "not read yet".to_owned(),
                (false, "") => format!("fine, {}", mirror.url),
                (false, trouble) => trouble.to_owned(),
            };
            table.row(vec![
                cell(&mirror.name),
                cell(time::ago(mirror.ended_at, Timestamp::now())),
                cell(mirror.last_read.to_string()),
                cell(mirror.last.new.to_string()),
                cell(mirror.last.changed.to_string()),
                cell(mirror.last.refusals.to_string()),
                cell(state),
            ]);
        }
        table.text(ctx.width(), ctx.term.colour)
    })?;
    if !name.is_empty() && !ctx.format.is_data() {
        for line in mirrors.iter().flat_map(|mirror| &mirror.last.refused) {
            output::note(&text::one_line(line));
        }
    }
    Ok(DONE)
}

async fn sync(ctx: &Ctx, name: &str, whole: bool, no_wait: bool, timeout: Duration) -> Outcome {
    let link = ctx.link().await?;
    let mut now = link.sync_mirror(name, whole).await?;
    let deadline = tokio::time::Instant::now() + timeout;
    while now.busy && !no_wait {
        if tokio::time::Instant::now() > deadline {
            let what = format!("{} is still being read", text::one_line(name));
            return Err(Failure::new(
                TIMED_OUT,
                "TIMED_OUT",
                what,
                format!("`sigil mirror ls {name}` shows how far it is"),
            ));
        }
        tokio::time::sleep(LOOK).await;
        now = link.mirrors(name).await?.into_iter().next().unwrap_or_default();
    }
    if !no_wait && !now.trouble.is_empty() {
        let what = format!("{} was not read: {}", text::one_line(name), text::one_line(&now.trouble));
        return Err(Failure::new(FAILED, "MIRROR_FAILED", what, "the agent tries again by itself"));
    }
    ctx.emit(&now, || match no_wait {
        true => format!("{} is read next\n", text::one_line(name)),
        false => {
            let read = format!("{} versions were read, {} of them passed over", now.last_read, now.last_passed_over);
            format!("{read}\n{}", now.last.line())
        }
    })?;
    Ok(DONE)
}

impl Imported {
    fn line(&self) -> String {
        let Self { new, changed, known, refusals, .. } = self;
        format!("{new} versions are new, {changed} changed, {known} were here as they are, {refusals} were not taken\n")
    }
}

async fn import(ctx: &Ctx, file: PathBuf, name: String) -> Outcome {
    let shown = file.display().to_string();
    let bad = |why: String, hint: &str| Failure::new(USAGE, "BAD_FILE", format!("{shown}: {why}"), hint);
    let hint = "save what /v0.1/servers answers, a list of server.json, or a catalogue of Docker's or Smithery's";
    let mut read = Read::default();
    for part in files(&file).map_err(|why| bad(why, "name a file, or a folder of server.yaml files"))? {
        let words = std::fs::read_to_string(&part).map_err(|e| bad(e.to_string(), "name a file of JSON or YAML"))?;
        let at = if part == file { String::new() } else { format!("{}: ", part.display()) };
        read.take(&words).map_err(|why| bad(format!("{at}{why}"), hint))?;
    }
    let Read { items, notes, refused } = read;
    let link = ctx.link().await?;
    let mut done = Imported { refusals: refused.len() as u64, refused, ..Imported::default() };
    let mut chunks = chunks(items).into_iter().peekable();
    while let Some(chunk) = chunks.next() {
        done.add(link.import(&name, chunk, chunks.peek().is_none()).await?);
    }
    let told = Told { done: &done, notes: &notes };
    ctx.emit(&told, || told.done.line())?;
    if !ctx.format.is_data() {
        for line in done.refused.iter().chain(notes.iter().take(NOTES)) {
            output::note(&text::one_line(line));
        }
        if notes.len() > NOTES {
            output::note(&format!("{} more notes; -o json shows all", notes.len() - NOTES));
        }
    }
    Ok(DONE)
}

/// What became of a file.
#[derive(serde::Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    done: &'a Imported,
    /// What of another format was not taken over.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    notes: &'a [String],
}

/// The file itself, or the `server.yaml` files of a folder and of the folders in it, as Docker's registry has them.
fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    let meta = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if !meta.is_dir() {
        return match meta.len() > FILE_MAX {
            true => Err("it is larger than 1 GiB; take it in parts".into()),
            false => Ok(vec![path.to_owned()]),
        };
    }
    let mut found = Vec::new();
    let inside = |folder: &Path, found: &mut Vec<PathBuf>| -> Result<Vec<PathBuf>, String> {
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|e| e.to_string())? {
            let entry = entry.map_err(|e| e.to_string())?.path();
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.file_name().is_some_and(|name| name == "server.yaml") {
                found.push(entry);
            }
        }
        Ok(folders)
    };
    for folder in inside(path, &mut found)? {
        inside(&folder, &mut found)?;
    }
    found.sort();
    if found.is_empty() {
        return Err("the folder has no server.yaml, nor has one in it".into());
    }
    Ok(found)
}

/// What files hold.
#[derive(Debug, Default)]
struct Read {
    items: Vec<Json>,
    notes: Vec<String>,
    refused: Vec<String>,
}

impl Read {
    /// Whatever form the items come in.
    fn take(&mut self, words: &str) -> Result<(), String> {
        let all = match serde_json::from_str::<Json>(words) {
            Ok(whole) => whole,
            Err(error) => {
                let lines = words.lines().filter(|line| !line.trim().is_empty()).map(serde_json::from_str);
                match lines.collect::<Result<Vec<Json>, _>>() {
                    Ok(lines) => Json::Array(lines),
                    Err(_) => serde_saphyr::from_str::<Json>(words)
                        .ok()
                        .filter(Json::is_object)
                        .ok_or_else(|| format!("it is neither JSON nor YAML: {error}"))?,
                }
            }
        };
        if let Some(foreign) = foreign::read(&all) {
            for server in foreign {
                match server {
                    Ok(Taken { document, notes }) => {
                        self.items.push(numbered(document));
                        self.notes.extend(notes);
                    }
                    Err(why) => self.refused.push(why),
                }
            }
            return Ok(());
        }
        let all = match all {
            Json::Array(list) => list,
            Json::Object(mut map) => match map.remove("servers") {
                Some(Json::Array(list)) => list,
                _ => vec![Json::Object(map)],
            },
            _ => return Err("it holds no packages".into()),
        };
        let item = |item: Json| if item.get("server").is_some() { item } else { json!({ "server": item }) };
        self.items.extend(all.into_iter().map(item));
        Ok(())
    }
}

/// With a version that says what is in it, where the catalogue has none: what changes is another version.
fn numbered(mut document: Json) -> Json {
    let digest = package::digest(&document);
    let digest = digest.strip_prefix("sha256:").unwrap_or(&digest);
    let short: String = digest.chars().take(12).collect();
    document["version"] = json!(format!("{}{short}", foreign::NUMBERED_BY_CONTENT));
    json!({ "server": document })
}

/// In order, each small enough to be sent.
fn chunks(items: Vec<Json>) -> Vec<Vec<String>> {
    let (mut out, mut size) = (vec![Vec::new()], 0);
    for item in items {
        let text = item.to_string();
        if size > 0 && size + text.len() > CHUNK {
            out.push(Vec::new());
            size = 0;
        }
        size += text.len();
        if let Some(last) = out.last_mut() {
            last.push(text);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &str) -> Result<Read, String> {
        let mut read = Read::default();
        read.take(words).map(|()| read)
    }

    #[test]
    fn every_form_is_a_list_of_items() {
        let one = r#"{"name": "a/b", "version": "1"}"#;
        for words in [
            format!(r#"{{"servers": [{{"server": {one}, "_meta": {{}}}}], "metadata": {{}}}}"#),
            format!("[{one}]"),
            one.to_owned(),
            format!("{{\"server\": {one}}}\n\n"),
        ] {
            let items = of(&words).unwrap().items;
            assert_eq!((items.len(), &items[0]["server"]["name"]), (1, &json!("a/b")), "{words}");
        }
        assert_eq!(of(&format!("{one}\n{one}\n")).unwrap().items.len(), 2);
        assert!(of("7").is_err() && of("{").is_err() && of("words").is_err());
        let large = vec![json!({"server": "x".repeat(CHUNK / 2)}); 5];
        assert_eq!(chunks(large).iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_folder_of_dockers_registry_is_taken_and_numbered_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        assert!(files(dir.path()).is_err());
        let server =
            |description: &str| format!("name: x\nimage: mcp/x\ntype: server\nabout: {{description: {description}}}\n");
        for (name, words) in [("a", server("A.")), ("b", "name: y\ntype: poci\n".to_owned())] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("server.yaml"), words).unwrap();
        }
        std::fs::write(dir.path().join("a/readme.md"), "x").unwrap();
        let found = files(dir.path()).unwrap();
        assert_eq!(found.len(), 2);
        let mut read = Read::default();
        found.iter().for_each(|file| read.take(&std::fs::read_to_string(file).unwrap()).unwrap());
        assert_eq!((read.items.len(), read.refused.len()), (1, 1), "{read:?}");
        let version = read.items[0]["server"]["version"].as_str().unwrap().to_owned();
        assert!(version.starts_with("content-") && version.len() == 20, "{version}");
        assert_eq!(of(&server("A.")).unwrap().items[0]["server"]["version"], json!(version), "the same again");
        assert_ne!(of(&server("B.")).unwrap().items[0]["server"]["version"], json!(version));
    }
}
