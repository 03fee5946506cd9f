//! What can be done to deployments, from every screen the same way. Whatever takes something away asks first.

use crossterm::event::{KeyCode, KeyEvent};

use super::super::command::Command;
use super::super::fleet::bare;
use super::super::model::{Asked, Confirm, Held, Logs, Model, Overlay, Page, Place, Purpose, Screen};
use super::super::port::Request;
use super::{Effect, ask, fetch, tell};
use crate::link::{Change, LogQuery};

/// Command lines that are remembered.
const DONE: usize = 500;
/// How long a stop or a deletion can be taken back, seconds.
pub const GRACE: i64 = 5;

/// Keys that mean the same everywhere.
pub fn key(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    match key.code {
        KeyCode::Char('l') => return open_logs(model),
        KeyCode::Char('r') => confirm(model, Verb::Restart),
        KeyCode::Char('x') => confirm(model, Verb::Stop),
        KeyCode::Char('u') => confirm(model, Verb::Start),
        KeyCode::Char('D') | KeyCode::Delete => confirm(model, Verb::Remove),
        KeyCode::Char('s') => match model.subject().map(|d| (d.name.clone(), d.desired)) {
            Some((name, desired)) if may(model, &[&name]) => ask(model, Purpose::Scale(name), &desired.to_string()),
            Some(_) => {}
            None => nothing(model),
        },
        KeyCode::Char('b') => match model.subject().map(|d| d.name.clone()) {
            Some(name) => return super::places::open(model, Place { screen: Screen::Releases, names: vec![name] }),
            None => nothing(model),
        },
        KeyCode::Char('t') => return super::tools::open(model),
        KeyCode::Char('w') => return super::tap::open(model, None),
        KeyCode::Char('d') if matches!(model.screen(), Screen::Table | Screen::Overview) => {
            return super::deploy::open(model, None);
        }
        KeyCode::Char('y') => return copy_row(model, false),
        KeyCode::Char('Y') => return copy_row(model, true),
        _ => {}
    }
    Vec::new()
}

/// Whether these may be changed; if not, says why, before anybody fills a form in.
pub fn may(model: &mut Model, names: &[&str]) -> bool {
    let why = names.iter().find_map(|name| model.refused(model.host_at(name)));
    let allowed = why.is_none();
    if let Some(why) = why {
        tell(model, why, true);
    }
    allowed
}

/// What is to be typed before something of these is changed, if anything.
pub(super) fn word(model: &Model, names: &[String], verb: &str) -> Option<(String, String)> {
    match names {
        [one] if model.host_of(one).guard.protected => Some((bare(one).to_owned(), String::new())),
        [] | [_] => None,
        _ => Some((verb.to_owned(), String::new())),
    }
}

/// Where these are, for questions.
fn places(model: &Model, names: &[String]) -> String {
    let mut hosts: Vec<&str> = names.iter().map(|n| model.host_of(n).name.as_str()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let protected = names.iter().any(|n| model.host_of(n).guard.protected);
    let sign = if protected { " (protected)" } else { "" };
    if model.several() { format!("on {}{sign}", hosts.join(", ")) } else { format!("on {}{sign}", model.host()) }
}

fn nothing(model: &mut Model) {
    tell(model, "no deployment is selected", true);
}

#[derive(Clone, Copy)]
enum Verb {
    Restart,
    Stop,
    Start,
    Remove,
}

impl Verb {
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Restart => ("Restart", "restart", "Containers of the same release are replaced; open sessions end."),
            Self::Stop => ("Stop", "stop", "No replica serves until it is started again; releases are kept."),
            Self::Start => ("Start", "start", "Replicas start as before it was stopped."),
            Self::Remove => ("Delete", "delete", "Containers, releases and kept logs go for good. Volumes stay."),
        }
    }

    fn change(self, name: String) -> Change {
        match self {
            Self::Restart => Change::Restart(name),
            Self::Stop => Change::Stop(name),
            Self::Start => Change::Start(name),
            Self::Remove => Change::Remove(name),
        }
    }
}

fn confirm(model: &mut Model, verb: Verb) {
    let names: Vec<String> = model.subjects().iter().map(|d| d.name.clone()).collect();
    confirm_of(model, verb, names);
}

fn confirm_of(model: &mut Model, verb: Verb, names: Vec<String>) {
    let (title, typed, touches) = verb.words();
    let Some(first) = names.first() else { return nothing(model) };
    if !may(model, &names.iter().map(String::as_str).collect::<Vec<_>>()) {
        return;
    }
    let title = match names.len() {
        1 => format!("{title} {first}?"),
        n => format!("{title} {n} deployments?"),
    };
    let mut lines = vec![places(model, &names)];
    if names.len() > 1 {
        lines.push(names.join(", "));
    }
    for deployment in model.fleet.values().filter(|d| names.contains(&d.name)) {
        let sessions = match deployment.sessions {
            0 => String::new(),
            1 => ", 1 open session".to_owned(),
            n => format!(", {n} open sessions"),
        };
        let replicas = format!("{}/{} replicas", deployment.ready, deployment.desired);
        if names.len() <= 5 {
            lines.push(format!("{}: {}, {replicas}{sessions}", deployment.name, deployment.state));
        }
    }
    lines.push(touches.to_owned());
    let word = word(model, &names, typed);
    let changes = names.into_iter().map(|n| verb.change(n)).collect();
    model.overlay = Some(Overlay::Confirm(Confirm { title, lines, changes, on_yes: false, word }));
}

/// Asks the link for a change and shows at once that it was asked.
pub fn start(model: &mut Model, what: Change) -> Option<Effect> {
    let host = match subject(&what) {
        Some(name) => model.host_at(name),
        None => model.here(),
    };
    if let Some(why) = model.refused(host) {
        tell(model, why, true);
        return None;
    }
    if !model.hosts[host].is_up() {
        done(model, host, &what, "  # not asked for: no link");
        let at = if model.several() { format!(" to {}", model.hosts[host].name) } else { String::new() };
        tell(
            model,
            format!("not connected{at}: nothing was asked for{}", if at.is_empty() { "" } else { " there" }),
            true,
        );
        return None;
    }
    let (name, doing) = match &what {
        Change::Restart(name) => (name.clone(), "restarting"),
        Change::Stop(name) => (name.clone(), "stopping"),
        Change::Start(name) => (name.clone(), "starting"),
        Change::Scale(name, _) => (name.clone(), "scaling"),
        Change::Rollback(name, _) => (name.clone(), "rolling back"),
        Change::Remove(name) => (name.clone(), "deleting"),
        Change::Deploy(d) => (d.name.clone(), "deploying"),
        Change::Build { source, .. } => (source.text.clone(), "building"),
        Change::Scan { source } => (source.text.clone(), "scanning"),
    };
    done(model, host, &what, "");
    model.counter += 1;
    let change = model.counter;
    model.asked.insert(change, Asked { name, host, doing, at: model.now, operation: None, events: Vec::new() });
    model.table.marked.clear();
    Some(Effect::Ask(Request::Change { change, what }))
}

/// Back to the table from anywhere.
pub fn go_table(model: &mut Model) -> Vec<Effect> {
    model.screens = vec![Screen::Table];
    match model.logs.take() {
        Some(_) => vec![Effect::Ask(Request::StopLogs)],
        None => Vec::new(),
    }
}

/// The page of the subject, or of a name.
pub fn open_detail(model: &mut Model, name: Option<String>) -> Vec<Effect> {
    let Some(name) = name.or_else(|| model.subject().map(|d| d.name.clone())) else {
        nothing(model);
        return Vec::new();
    };
    model.page = Some(Page { name, detail: None, trouble: None, asked_at: model.now, scroll: 0 });
    if model.screen() != Screen::Detail {
        model.screens.push(Screen::Detail);
    }
    fetch(model).into_iter().collect()
}

/// Logs of the marked ones, else of the one under the cursor.
pub fn open_logs(model: &mut Model) -> Vec<Effect> {
    let names: Vec<String> = model.subjects().iter().map(|d| d.name.clone()).collect();
    if names.is_empty() {
        nothing(model);
        return Vec::new();
    }
    open_logs_of(model, names)
}

/// Logs of these; of all when there is no name.
pub fn open_logs_of(model: &mut Model, names: Vec<String>) -> Vec<Effect> {
    model.counter += 1;
    model.logs = Some(Logs::new(names, model.counter));
    model.merge.clear();
    model.screens.retain(|s| *s != Screen::Logs);
    model.screens.push(Screen::Logs);
    watch(model).into_iter().collect()
}

/// Follows what the log view asks for, from nothing.
pub fn watch(model: &mut Model) -> Option<Effect> {
    let now = model.now;
    let logs = model.logs.as_ref()?;
    let since = super::super::model::SINCE.get(logs.since).and_then(|(_, seconds)| *seconds);
    let query = LogQuery {
        deployments: logs.names.clone(),
        all: logs.names.is_empty(),
        follow: true,
        tail: since.is_none().then_some(1_000),
        since: since.and_then(|s| now.checked_sub(jiff::SignedDuration::from_secs(s)).ok()),
        previous: logs.previous,
        ..LogQuery::default()
    };
    Some(Effect::Ask(Request::WatchLogs { watch: logs.watch, query }))
}

/// Remembers what was done, as a command line, and what is to be said of it.
fn done(model: &mut Model, host: usize, what: &Change, note: &str) {
    let mut line = command_line(what);
    if model.several() {
        line = line.replacen("sigil", &format!("sigil --host {}", model.hosts[host].name), 1);
    }
    model.done.push((model.now, line + note));
    let over = model.done.len().saturating_sub(DONE);
    model.done.drain(..over);
}

/// The deployment that a change is about.
fn subject(what: &Change) -> Option<&str> {
    match what {
        Change::Restart(name)
        | Change::Stop(name)
        | Change::Start(name)
        | Change::Scale(name, _)
        | Change::Rollback(name, _)
        | Change::Remove(name) => Some(name),
        Change::Deploy(d) if d.name.contains('/') => Some(&d.name),
        Change::Deploy(_) | Change::Build { .. } | Change::Scan { .. } => None,
    }
}

/// Does what was agreed to: what takes something away is held for a moment, the rest is asked for at once. A host that
/// does not answer refuses its own, the others go on.
pub fn agreed(model: &mut Model, changes: Vec<Change>) -> Vec<Effect> {
    let (held, now): (Vec<Change>, Vec<Change>) =
        changes.into_iter().partition(|c| matches!(c, Change::Stop(_) | Change::Remove(_)));
    if !held.is_empty() {
        let until = model.now.checked_add(jiff::SignedDuration::from_secs(GRACE)).unwrap_or(model.now);
        model.held.push(Held { changes: held, until });
        model.table.marked.clear();
    }
    all(model, now)
}

fn all(model: &mut Model, changes: Vec<Change>) -> Vec<Effect> {
    let (mut effects, mut down) = (Vec::new(), Vec::new());
    for change in changes {
        let name = subject(&change).unwrap_or_default().to_owned();
        match start(model, change) {
            Some(effect) => effects.push(effect),
            None if model.host_of(&name).is_up() => {}
            None => down.push(name),
        }
    }
    if down.len() > 1 || (!down.is_empty() && !effects.is_empty()) {
        tell(model, format!("not asked for, since there is no link: {}", down.join(", ")), true);
    }
    effects
}

/// Asks for what was held long enough.
pub fn release(model: &mut Model) -> Vec<Effect> {
    let now = model.now;
    let (due, held): (Vec<Held>, Vec<Held>) = std::mem::take(&mut model.held).into_iter().partition(|h| h.until <= now);
    model.held = held;
    let changes: Vec<Change> = due.into_iter().flat_map(|h| h.changes).collect();
    if changes.is_empty() { Vec::new() } else { all(model, changes) }
}

/// Takes back what was agreed to last.
pub fn take_back(model: &mut Model) {
    let Some(held) = model.held.pop() else { return };
    let text = match held.changes.as_slice() {
        [one] => format!("taken back: {} was not asked for", command_line(one)),
        many => format!("taken back: {} changes were not asked for", many.len()),
    };
    tell(model, text, false);
}

/// The command line that asks for the same.
pub fn command_line(what: &Change) -> String {
    let bare = |name: &str| bare(name).to_owned();
    match what {
        Change::Restart(name) => format!("sigil restart {}", bare(name)),
        Change::Stop(name) => format!("sigil stop {}", bare(name)),
        Change::Start(name) => format!("sigil start {}", bare(name)),
        Change::Scale(name, replicas) => format!("sigil scale {} {replicas}", bare(name)),
        Change::Rollback(name, 0) => format!("sigil rollback {}", bare(name)),
        Change::Rollback(name, release) => format!("sigil rollback {} {release}", bare(name)),
        Change::Remove(name) => format!("sigil rm {}", bare(name)),
        Change::Deploy(d) => format!("sigil deploy {} --name {}", d.source.text, bare(&d.name)),
        Change::Build { source, .. } => format!("sigil build {}", source.text),
        Change::Scan { source } => format!("sigil scan {}", source.text),
    }
}

/// What was done here, as command lines.
pub fn history(model: &mut Model) {
    let mut text: Vec<String> =
        model.done.iter().map(|(at, line)| format!("{}  {line}", super::super::view::clock(model, *at))).collect();
    if text.is_empty() {
        text.push(
            "Nothing was changed from here yet. What is done with keys is listed here as command lines.".to_owned(),
        );
    }
    let scroll = text.len().saturating_sub(model.body_rows().saturating_sub(2));
    model.overlay = Some(Overlay::Line { title: "Done here, as command lines".to_owned(), text, scroll });
}

/// Ctrl-C, and `q` on the first screen.
pub fn interrupt(model: &mut Model) -> Vec<Effect> {
    let asking = matches!(&model.overlay, Some(Overlay::Confirm(c)) if c.changes.is_empty());
    if (model.asked.is_empty() && model.held.is_empty()) || asking {
        return vec![Effect::Quit];
    }
    let mut lines: Vec<String> = model.asked.values().map(|a| format!("{} {}", a.doing, a.name)).collect();
    if !model.asked.is_empty() {
        lines.push("The agent goes on with it; 'sigil ops' shows how it ends.".to_owned());
    }
    let held: Vec<String> = model.held.iter().flat_map(|h| &h.changes).map(command_line).collect();
    if !held.is_empty() {
        lines.push(format!("Not asked for yet, and not done if you leave now: {}", held.join(", ")));
    }
    let title = "Leave while this is under way?".to_owned();
    model.overlay = Some(Overlay::Confirm(Confirm { title, lines, changes: Vec::new(), on_yes: false, word: None }));
    Vec::new()
}

fn copy_row(model: &mut Model, all: bool) -> Vec<Effect> {
    let rows: Vec<_> = if all { model.rows() } else { model.subject().into_iter().collect() };
    if rows.is_empty() {
        return Vec::new();
    }
    let text: Vec<String> = rows
        .iter()
        .map(|d| format!("{}\t{}\t{}/{}\tr{}\t{}", d.name, d.state, d.ready, d.desired, d.release, d.endpoint))
        .collect();
    let what = match text.len() {
        1 => "1 row".to_owned(),
        n => format!("{n} rows"),
    };
    vec![Effect::Copy { text: text.join("\n"), what }]
}

/// Runs a command of the palette.
pub fn run(model: &mut Model, mut command: Command) -> Vec<Effect> {
    // With several hosts a name may be that of one deployment only.
    for name in command.names() {
        match model.whole(name) {
            Ok(whole) => *name = whole,
            Err(problem) => {
                tell(model, problem, true);
                return Vec::new();
            }
        }
    }
    match command {
        Command::Table => return go_table(model),
        Command::Detail(name) => return open_detail(model, Some(name)),
        Command::Logs(names) => return open_logs_of(model, names),
        Command::Open(screen, name) => {
            let place = Place { screen, names: name.into_iter().collect() };
            return super::places::open(model, place);
        }
        Command::Restart(name) => confirm_of(model, Verb::Restart, vec![name]),
        Command::Stop(name) => confirm_of(model, Verb::Stop, vec![name]),
        Command::Start(name) if model.host_of(&name).guard.protected => confirm_of(model, Verb::Start, vec![name]),
        Command::Start(name) => return start(model, Change::Start(name)).into_iter().collect(),
        Command::Remove(name) => confirm_of(model, Verb::Remove, vec![name]),
        Command::Scale(name, replicas) => return scale(model, name, replicas),
        Command::Rollback(name, release) => rollback(model, name, release),
        Command::Save(path) => {
            return match model.screen() {
                Screen::Tap => super::tap::save(model, path),
                Screen::Build => super::builds::save(model, path),
                _ => super::logs::save(model, path),
            };
        }
        Command::Call(name, tool) => return super::tools::open_call(model, name, tool),
        Command::Tap(name) => return super::tap::open(model, Some(name)),
        Command::Deploy(source) => return super::deploy::open(model, source.as_deref()),
        Command::Search(words) => {
            let mut effects = super::places::open(model, Place { screen: Screen::Registry, names: Vec::new() });
            effects.extend(words.iter().flat_map(|words| super::registry::find(model, words)));
            return effects;
        }
        Command::Package(name) => return super::registry::open(model, name),
        Command::Operation(id) => return super::builds::open(model, id),
        Command::Guide(topic) => return super::open_guide(model, topic),
        Command::Page => return super::logs::page_out(model),
        Command::Filter(text) => {
            if let Err(problem) = super::overlay::filter(model, &text) {
                tell(model, problem, true);
            }
        }
        Command::Sort(sort) => super::overlay::sort(model, sort),
        Command::History => history(model),
        Command::Theme(palette) => {
            model.preview = None;
            model.theme.palette = palette;
            tell(model, format!("theme = \"{}\" in console.toml keeps it", palette.name()), false);
        }
        Command::Config => {
            let text = super::super::settings::report(model);
            model.overlay = Some(Overlay::Line { title: "console.toml".to_owned(), text, scroll: 0 });
        }
        Command::Tour => super::tour(model),
        Command::Help => model.overlay = Some(Overlay::Help { scroll: 0 }),
        Command::Quit => return interrupt(model),
    }
    Vec::new()
}

/// More or fewer replicas; none at all is asked about, and any number where the context is protected.
pub fn scale(model: &mut Model, name: String, replicas: u32) -> Vec<Effect> {
    if !may(model, &[&name]) {
        return Vec::new();
    }
    if replicas > 0 && !model.host_of(&name).guard.protected {
        return start(model, Change::Scale(name, replicas)).into_iter().collect();
    }
    let mut lines = vec![places(model, std::slice::from_ref(&name))];
    if replicas == 0 {
        lines.push("Nothing serves until it is woken or scaled up.".to_owned());
    }
    let word = word(model, std::slice::from_ref(&name), "scale");
    let title = format!("Scale {name} to {replicas}?");
    let changes = vec![Change::Scale(name, replicas)];
    model.overlay = Some(Overlay::Confirm(Confirm { title, lines, changes, on_yes: false, word }));
    Vec::new()
}

/// Back to a release; 0 is the last good one.
pub fn rollback(model: &mut Model, name: String, release: u32) {
    if !may(model, &[&name]) {
        return;
    }
    let to = if release == 0 { "its last good release".to_owned() } else { format!("release {release}") };
    let now = model.fleet.values().find(|d| d.name == name).map(|d| format!("Release {} serves now.", d.release));
    let mut lines = vec![places(model, std::slice::from_ref(&name))];
    lines.extend(now);
    lines.push("The new containers start beside the old ones and take over once they pass the gate.".to_owned());
    let word = word(model, std::slice::from_ref(&name), "rollback");
    let title = format!("Roll {name} back to {to}?");
    let changes = vec![Change::Rollback(name, release)];
    model.overlay = Some(Overlay::Confirm(Confirm { title, lines, changes, on_yes: false, word }));
}
