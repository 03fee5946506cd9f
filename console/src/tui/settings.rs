//! The owner's `console.toml` in force: at the start what is right in it, later a file without mistakes only.

use std::path::Path;
use std::time::Duration;

use notify_debouncer_full::notify::{RecommendedWatcher, RecursiveMode};
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};
use sigil_config::console::{self, Read};
use tokio::sync::mpsc;

use super::keymap::Keymap;
use super::model::{Model, Sort};
use super::theme::Palette;
use super::update::{Effect, tell};

/// Changes closer together than this are read once.
const QUIET: Duration = Duration::from_millis(200);

/// Takes a file in.
pub fn take(model: &mut Model, read: Read, first: bool) -> Vec<Effect> {
    let Read { config, flaws } = read;
    // The whole path is long, and ':config' says it once.
    let path = model.config_path.clone();
    let short = |text: String| if path.is_empty() { text } else { text.replace(&path, "console.toml") };
    model.flaws = flaws.iter().map(|f| short(f.to_string())).collect();
    model.dirty = true;
    if !first && !model.flaws.is_empty() {
        tell(model, format!("not taken: {}", first_of(&model.flaws)), true);
        return Vec::new();
    }
    let named = Palette::named(&config.theme).unwrap_or(Palette::Sixteen);
    model.theme.palette = model.options.theme.unwrap_or(named);
    model.preview = None;
    model.read_only = model.options.read_only || config.read_only;
    for host in &mut model.hosts {
        host.guard = config.contexts.get(&host.name).copied().unwrap_or_default();
    }
    let (keymap, problems) = Keymap::new(&config.keys);
    model.keymap = keymap;
    model.flaws.extend(problems.into_iter().map(short));
    if first {
        let sort = Sort::ALL.iter().find(|(.., word)| *word == config.sort).map_or(Sort::Name, |(sort, ..)| *sort);
        (model.table.sort, model.table.inverted) = (sort, config.inverted);
    }
    if !model.flaws.is_empty() {
        tell(model, first_of(&model.flaws), true);
    } else if !first {
        tell(model, "console.toml was read again", false);
    }
    let moved = model.mouse != config.mouse;
    model.mouse = config.mouse;
    if moved { vec![Effect::Mouse(config.mouse)] } else { Vec::new() }
}

/// The first mistake, and where the others are.
fn first_of(flaws: &[String]) -> String {
    let first = flaws.first().map(String::as_str).unwrap_or_default();
    match flaws.len() {
        0 | 1 => first.to_owned(),
        n => format!("{first} (and {} more: ':config' lists them)", n - 1),
    }
}

/// What is wrong with the file, for `:config`.
pub fn report(model: &Model) -> Vec<String> {
    let mut lines = vec![model.config_path.clone(), String::new()];
    if model.flaws.is_empty() {
        lines.push("Nothing is wrong with it. It is read again when it changes.".to_owned());
    } else {
        lines.extend(model.flaws.iter().cloned());
        lines.push(String::new());
        lines.push("The rest of it holds; it is read again when it changes.".to_owned());
    }
    lines
}

/// A file that is followed; dropping it ends that.
#[derive(Debug)]
pub struct Followed {
    /// Each reading after a change.
    pub read: mpsc::Receiver<Read>,
    _watcher: Option<Debouncer<RecommendedWatcher, RecommendedCache>>,
}

/// Follows a file: its directory is watched, since editors save by renaming, and the one of what it links to. Without a
/// way to watch, the file is read once only.
pub fn follow(path: &Path) -> Followed {
    let (told, read) = mpsc::channel(4);
    let file = path.to_owned();
    let real = std::fs::canonicalize(path).ok();
    let mut last = std::fs::read(path).ok();
    let noticed = move |_: DebounceEventResult| {
        let now = std::fs::read(&file).ok();
        if now != last {
            last = now;
            let _ = told.blocking_send(console::load(&file));
        }
    };
    let mut watcher = new_debouncer(QUIET, None, noticed).ok();
    if let Some(watcher) = &mut watcher {
        for directory in [Some(path), real.as_deref()].into_iter().flatten().filter_map(Path::parent) {
            // A directory that is not there cannot be watched; one that cannot be made holds no file either.
            let _ = std::fs::create_dir_all(directory);
            let _ = watcher.watch(directory, RecursiveMode::NonRecursive);
        }
    }
    Followed { read, _watcher: watcher }
}
