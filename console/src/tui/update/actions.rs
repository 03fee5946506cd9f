//! What can be done to deployments, from every screen the same way. Whatever takes something away asks first.

use crossterm::event::{KeyCode, KeyEvent};

use super::super::command::Command;
use super::super::model::{Asked, Confirm, Link, Logs, Model, Overlay, Page, Place, Purpose, Screen};
use super::super::port::Request;
use super::{Effect, ask, fetch, tell};
use crate::link::{Change, LogQuery};

/// Keys that mean the same everywhere.
pub fn key(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    match key.code {
        KeyCode::Char('l') => return open_logs(model),
        KeyCode::Char('r') => confirm(model, Verb::Restart),
        KeyCode::Char('x') => confirm(model, Verb::Stop),
        KeyCode::Char('u') => confirm(model, Verb::Start),
        KeyCode::Char('D') | KeyCode::Delete => confirm(model, Verb::Remove),
        KeyCode::Char('s') => match model.subject().map(|d| (d.name.clone(), d.desired)) {
            Some((name, desired)) => ask(model, Purpose::Scale(name), &desired.to_string()),
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
    let (title, word, touches) = verb.words();
    let Some(first) = names.first() else { return nothing(model) };
    let title = match names.len() {
        1 => format!("{title} {first}?"),
        n => format!("{title} {n} deployments?"),
    };
    let mut lines = vec![format!("on {}", model.host())];
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
    let word = (names.len() > 1).then(|| (word.to_owned(), String::new()));
    let changes = names.into_iter().map(|n| verb.change(n)).collect();
    model.overlay = Some(Overlay::Confirm(Confirm { title, lines, changes, on_yes: false, word }));
}

/// Asks the link for a change and shows at once that it was asked.
pub fn start(model: &mut Model, what: Change) -> Option<Effect> {
    if !matches!(model.link, Link::Up { .. }) {
        tell(model, "not connected: nothing was asked for", true);
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
    model.counter += 1;
    let change = model.counter;
    model.asked.insert(change, Asked { name, doing, at: model.now, operation: None, events: Vec::new() });
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

/// Ctrl-C, and `q` on the first screen.
pub fn interrupt(model: &mut Model) -> Vec<Effect> {
    let asking = matches!(&model.overlay, Some(Overlay::Confirm(c)) if c.changes.is_empty());
    if model.asked.is_empty() || asking {
        return vec![Effect::Quit];
    }
    let mut lines: Vec<String> = model.asked.values().map(|a| format!("{} {}", a.doing, a.name)).collect();
    lines.push("The agent goes on with it; 'sigil ops' shows how it ends.".to_owned());
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
pub fn run(model: &mut Model, command: Command) -> Vec<Effect> {
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
        Command::Filter(text) => {
            if let Err(problem) = super::overlay::filter(model, &text) {
                tell(model, problem, true);
            }
        }
        Command::Sort(sort) => super::overlay::sort(model, sort),
        Command::Help => model.overlay = Some(Overlay::Help { scroll: 0 }),
        Command::Quit => return interrupt(model),
    }
    Vec::new()
}

/// More or fewer replicas; none at all is asked about.
pub fn scale(model: &mut Model, name: String, replicas: u32) -> Vec<Effect> {
    if replicas > 0 {
        return start(model, Change::Scale(name, replicas)).into_iter().collect();
    }
    let lines = vec![format!("on {}", model.host()), "Nothing serves until it is woken or scaled up.".to_owned()];
    let title = format!("Scale {name} to 0?");
    let changes = vec![Change::Scale(name, 0)];
    model.overlay = Some(Overlay::Confirm(Confirm { title, lines, changes, on_yes: false, word: None }));
    Vec::new()
}

/// Back to a release; 0 is the last good one.
pub fn rollback(model: &mut Model, name: String, release: u32) {
    let to = if release == 0 { "its last good release".to_owned() } else { format!("release {release}") };
    let now = model.fleet.values().find(|d| d.name == name).map(|d| format!("Release {} serves now.", d.release));
    let mut lines = vec![format!("on {}", model.host())];
    lines.extend(now);
    lines.push("The new containers start beside the old ones and take over once they pass the gate.".to_owned());
    let title = format!("Roll {name} back to {to}?");
    let changes = vec![Change::Rollback(name, release)];
    model.overlay = Some(Overlay::Confirm(Confirm { title, lines, changes, on_yes: false, word: None }));
}
