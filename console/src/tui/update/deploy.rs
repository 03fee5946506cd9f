//! A guided deploy: the form, the look at the source, secrets that are missing, and how it goes. Nothing that was typed is
//! lost on a refusal.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::Value;

use super::super::deploy::{self, BUTTONS, Deploying, Stage};
use super::super::flow::{Flow, Told};
use super::super::form::Form;
use super::super::model::{Model, Place, Screen};
use super::super::port::{Request, Trouble};
use super::desk::{ask_secret, start};
use super::form::{Did, key as form_key};
use super::{Effect, actions, places, tell};
use crate::link::{Change, Event, Operation, SecretPlace, What};

/// Opens the form, with a source where one is known; without one, with what was typed before.
pub fn open(model: &mut Model, source: Option<&str>) -> Vec<Effect> {
    if let Some(why) = model.refused(model.here()) {
        tell(model, why, true);
        return Vec::new();
    }
    let given = match source {
        Some(source) => Some(deploy::given(source)),
        None => model.desk.draft("deploy").cloned(),
    };
    let busy = model.desk.deploy.as_ref().is_some_and(|d| d.stage == Stage::Running);
    if model.desk.deploy.is_none() || source.is_some() || !busy {
        let ended = model.desk.deploy.as_ref().is_none_or(|d| d.stage == Stage::Ended || source.is_some());
        if ended {
            let mut deploying = Deploying::new(given.as_ref());
            // As on the command line, one line says it all: 'pypi:name'. Where it comes from is seldom chosen first.
            deploying.form.go(1);
            model.desk.deploy = Some(deploying);
        }
    }
    model.screens.retain(|s| *s != Screen::Deploy);
    model.screens.push(Screen::Deploy);
    // What a package asks for is read at once.
    match source.is_some_and(|s| s.starts_with("registry:")) {
        true => look(model),
        false => Vec::new(),
    }
}

/// Keys; `None`: they are for every screen.
pub fn key(model: &mut Model, key: KeyEvent) -> Option<Vec<Effect>> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let deploying = model.desk.deploy.as_mut()?;
    if control && key.code == KeyCode::Char('y') {
        let text = deploy::command(&deploying.form.draft());
        return Some(vec![Effect::Copy { text, what: "the command".to_owned() }]);
    }
    match deploying.stage {
        Stage::Form => match form_key(&mut deploying.form, key) {
            Did::Changed => Some(Vec::new()),
            Did::Pressed(0) => Some(look(model)),
            Did::Pressed(_) => Some(go(model)),
            Did::Left => {
                let draft = deploying.form.draft();
                model.desk.keep("deploy".to_owned(), draft);
                model.screens.pop();
                Some(places::shown(model))
            }
            Did::Nothing => None,
        },
        Stage::Looking if key.code == KeyCode::Esc => {
            let flow = deploying.flow.take();
            deploying.stage = Stage::Form;
            Some(flow.map(|flow| Effect::Ask(Request::StopFlow { flow })).into_iter().collect())
        }
        Stage::Looking => None,
        Stage::Looked | Stage::Running | Stage::Ended => paged(model, key),
    }
}

fn paged(model: &mut Model, key: KeyEvent) -> Option<Vec<Effect>> {
    let page = model.body_rows().max(1);
    let most = super::super::view::deploy::lines(model).len().saturating_sub(page);
    let deploying = model.desk.deploy.as_mut()?;
    match (key.code, deploying.stage) {
        (KeyCode::Char('j') | KeyCode::Down, _) => deploying.offset = (deploying.offset + 1).min(most),
        (KeyCode::Char('k') | KeyCode::Up, _) => deploying.offset = deploying.offset.saturating_sub(1),
        (KeyCode::PageDown | KeyCode::Char(' '), _) => deploying.offset = (deploying.offset + page).min(most),
        (KeyCode::PageUp, _) => deploying.offset = deploying.offset.saturating_sub(page),
        // It goes on at the agent.
        (KeyCode::Esc, Stage::Running) => {
            model.screens.pop();
            return Some(places::shown(model));
        }
        // It is there: nothing is to be said differently.
        (KeyCode::Esc, Stage::Ended) if deploying.done().is_some_and(|d| d.state == "succeeded") => {
            model.desk.forget("deploy");
            model.screens.pop();
            model.desk.deploy = None;
            return Some(places::shown(model));
        }
        (KeyCode::Esc | KeyCode::Backspace, _) => (deploying.stage, deploying.offset) = (Stage::Form, 0),
        (KeyCode::Char('s'), Stage::Looked | Stage::Ended) => return Some(secret(model)),
        (KeyCode::Enter | KeyCode::Char('d'), Stage::Looked) => return Some(go(model)),
        (KeyCode::Enter, Stage::Ended) => {
            let Some(done) = deploying.done().filter(|d| d.state == "succeeded") else {
                if !deploying.missing.is_empty() {
                    return Some(secret(model));
                }
                (deploying.stage, deploying.offset) = (Stage::Form, 0);
                return Some(Vec::new());
            };
            let name = done.deployment.clone();
            let name = format!("{}{name}", model.prefix(model.here()));
            model.desk.forget("deploy");
            model.screens.pop();
            model.desk.deploy = None;
            return Some(places::open(model, Place { screen: Screen::Detail, names: vec![name] }));
        }
        (KeyCode::Char('t'), Stage::Ended) => {
            let name = deploying.done().filter(|d| d.state == "succeeded").map(|d| d.deployment.clone())?;
            let name = format!("{}{name}", model.prefix(model.here()));
            return Some(places::open(model, Place { screen: Screen::Tools, names: vec![name] }));
        }
        (KeyCode::Char('o'), Stage::Running | Stage::Ended) => {
            let id = deploying.done().map(|d| d.id.clone());
            let change = deploying.change;
            let asked = change.and_then(|c| model.asked.get(&c)).and_then(|a| a.operation.clone());
            return id.or(asked).map(|id| super::builds::open(model, id));
        }
        _ => return None,
    }
    Some(Vec::new())
}

fn secrets(value: &Value) -> Vec<String> {
    deploy::secrets(value).into_iter().map(|(name, _)| name).collect()
}

/// Has the source looked at.
fn look(model: &mut Model) -> Vec<Effect> {
    let Some(deploying) = &mut model.desk.deploy else { return Vec::new() };
    let value = deploying.form.draft();
    let source = deploy::source(&value);
    // What a package asks for is known only after the look.
    let package = source.starts_with("registry:");
    if !package && deploying.form.check().is_err() || value["source"].as_str().is_none_or(|s| s.trim().is_empty()) {
        drop(deploying.form.check());
        tell(model, "a field is not right yet", true);
        return Vec::new();
    }
    let Some((flow, effect)) = start(model, Flow::Look { source: source.clone(), secrets: secrets(&value) }) else {
        return Vec::new();
    };
    if let Some(deploying) = &mut model.desk.deploy {
        (deploying.stage, deploying.flow, deploying.trouble) = (Stage::Looking, Some(flow), None);
        (deploying.note, deploying.offset) = (format!("looking at {source}"), 0);
    }
    vec![effect]
}

/// What the look tells.
pub fn told(model: &mut Model, told: Told) -> Vec<Effect> {
    let Some(deploying) = &mut model.desk.deploy else { return Vec::new() };
    match told {
        Told::Note(text) => deploying.note = text,
        Told::Looked(seen) => {
            let value = deploying.form.draft();
            let source = deploy::source(&value);
            let asks = seen.questions.iter().any(|q| !q.secret);
            deploying.missing.clone_from(&seen.missing);
            let new = deploying.looked.as_ref().is_none_or(|(s, l)| *s != source || l.questions != seen.questions);
            if asks && new {
                deploying.form = Form::new(&deploy::schema(&seen.questions), Some(&value), BUTTONS);
            }
            (deploying.looked, deploying.flow) = (Some((source, *seen)), None);
            // A package whose questions are not answered asks them first.
            let ready = deploying.form.check().is_ok();
            if !ready {
                deploying.form.problems.clear();
            }
            deploying.stage = if ready { Stage::Looked } else { Stage::Form };
            if deploying.goes_on && ready {
                deploying.goes_on = false;
                return go(model);
            }
            if !ready {
                tell(model, "the package asks for what stands under 'inputs'", false);
            }
        }
        _ => {}
    }
    Vec::new()
}

/// The look has ended without an answer.
pub fn look_ended(model: &mut Model, trouble: Option<Trouble>) {
    let Some(deploying) = &mut model.desk.deploy else { return };
    (deploying.flow, deploying.goes_on) = (None, false);
    if let Some(trouble) = trouble {
        deploying.stage = Stage::Form;
        deploying.form.problems.clear();
        deploying.form.refuse("/source", super::joined(&trouble.what, &trouble.hint));
        deploying.trouble = Some(trouble);
    }
}

/// Asks the agent for it.
fn go(model: &mut Model) -> Vec<Effect> {
    let Some(deploying) = &mut model.desk.deploy else { return Vec::new() };
    let Ok(value) = deploying.form.check() else {
        deploying.stage = Stage::Form;
        tell(model, "a field is not right yet", true);
        return Vec::new();
    };
    let source = deploy::source(&value);
    let looked = deploying.looked.as_ref().filter(|(s, _)| *s == source).map(|(_, looked)| looked);
    // Folders are sent, and packages read, by a look.
    let whole = match looked {
        Some(looked) => looked.package.is_some() || looked.upload.is_some() || !is_folder(&source),
        None => !source.starts_with("registry:") && !is_folder(&source),
    };
    if !whole {
        let blocked = looked.and_then(|l| l.report.as_ref()).is_some_and(|r| r.verdict == "blocked");
        if blocked {
            deploying.stage = Stage::Looked;
            tell(model, "the scan blocks it: mend what it names, or waive it on the command line", true);
            return Vec::new();
        }
        deploying.goes_on = true;
        return look(model);
    }
    if !deploying.missing.is_empty() {
        deploying.goes_on = true;
        return secret(model);
    }
    let made = match deploy::compose(&value, looked) {
        Ok(made) => Box::new(made),
        Err((pointer, why)) => {
            deploying.stage = Stage::Form;
            deploying.form.refuse(&pointer, why);
            return Vec::new();
        }
    };
    deploying.sent = Some(made.clone());
    let Some(effect) = actions::start(model, Change::Deploy(made)) else { return Vec::new() };
    let change = model.counter;
    if let Some(deploying) = &mut model.desk.deploy {
        (deploying.change, deploying.stage, deploying.offset) = (Some(change), Stage::Running, 0);
        (deploying.steps, deploying.trouble) = (Default::default(), None);
    }
    vec![effect]
}

fn is_folder(source: &str) -> bool {
    !["npm:", "pypi:", "git+", "mcpb:", "image:", "registry:", "remote:"].iter().any(|p| source.starts_with(p))
}

/// Asks for the next secret that is missing.
fn secret(model: &mut Model) -> Vec<Effect> {
    let Some(deploying) = &mut model.desk.deploy else { return Vec::new() };
    let Some(name) = deploying.missing.first().cloned() else {
        tell(model, "no secret is missing", false);
        return Vec::new();
    };
    let team = deploying.form.draft()["more"]["team"].as_str().unwrap_or_default().to_owned();
    ask_secret(model, name, SecretPlace::Team(team));
    Vec::new()
}

/// A secret was set: the next one is asked for, or it goes on.
pub fn secret_set(model: &mut Model, name: &str) -> Vec<Effect> {
    let Some(deploying) = &mut model.desk.deploy else { return Vec::new() };
    let before = deploying.missing.len();
    deploying.missing.retain(|m| m != name);
    if before == 0 || model.screen() != Screen::Deploy {
        return Vec::new();
    }
    let Some(deploying) = &mut model.desk.deploy else { return Vec::new() };
    match (deploying.missing.is_empty(), deploying.goes_on) {
        (false, _) => secret(model),
        (true, true) => {
            deploying.goes_on = false;
            go(model)
        }
        (true, false) => Vec::new(),
    }
}

/// Nobody wants to give a secret now.
pub fn secret_left(model: &mut Model) {
    if let Some(deploying) = &mut model.desk.deploy {
        deploying.goes_on = false;
    }
}

/// The agent has taken it, or not.
pub fn accepted(model: &mut Model, result: &Result<Box<Operation>, Trouble>) {
    if let (Some(deploying), Err(trouble)) = (&mut model.desk.deploy, result) {
        deploying.stage = Stage::Ended;
        deploying.trouble = Some(trouble.clone());
        deploying.change = None;
    }
}

/// How it goes.
pub fn happened(model: &mut Model, event: &Event) {
    let Some(deploying) = &mut model.desk.deploy else { return };
    deploying.steps.take(event);
    if let What::Done(done) = &event.what {
        (deploying.stage, deploying.offset) = (Stage::Ended, 0);
        if let Some(problem) = &done.error {
            deploying.missing = deploy::missing(&problem.code, &problem.message);
            deploying.goes_on = !deploying.missing.is_empty();
        }
    }
}
