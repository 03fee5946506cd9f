//! Flows: beginning them, what they tell, ending those that nobody looks at any more. And questions with something to look
//! at, and secrets that are asked for.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::desk::{Act, Ask, Deed, Question};
use super::super::flow::{Flow, Masked, Told};
use super::super::model::{Model, Overlay, Screen};
use super::super::port::{Request, Trouble};
use super::{Effect, actions, builds, deploy, joined, policy, sheet, tell, tools};
use crate::link::{Change, Event, Operation, SecretPlace};

/// Longest value of a secret, bytes.
const SECRET: usize = 64 << 10;

/// Begins a flow; `None`: there is no link, which is told.
pub fn start(model: &mut Model, what: Flow) -> Option<(u64, Effect)> {
    if !model.hosts[host_of(model, &what)].is_up() {
        tell(model, "not connected: nothing was asked for", true);
        return None;
    }
    model.counter += 1;
    let flow = model.counter;
    Some((flow, Effect::Ask(Request::Flow { flow, what })))
}

/// The host that a flow goes to.
fn host_of(model: &Model, what: &Flow) -> usize {
    match what {
        Flow::Tap { name } | Flow::Call { name, .. } | Flow::Pins { name, .. } | Flow::Scaling { name, .. } => {
            model.host_at(name)
        }
        _ => model.here(),
    }
}

/// Something that is over at once, and how its end is told.
pub fn act(model: &mut Model, what: Flow, words: String) -> Option<Effect> {
    if let Some(why) = model.refused(host_of(model, &what)) {
        tell(model, why, true);
        return None;
    }
    let secret = match &what {
        Flow::Secret { name, .. } => Some(name.clone()),
        _ => None,
    };
    let (flow, effect) = start(model, what)?;
    model.desk.acts.insert(flow, Act { what: words, secret });
    Some(effect)
}

/// News of a flow. One that nobody knows any more is late.
pub fn told(model: &mut Model, flow: u64, told: Told) -> Vec<Effect> {
    model.dirty = true;
    if model.desk.acts.contains_key(&flow) {
        if let Told::Done(text) = told {
            let act = model.desk.acts.remove(&flow);
            tell(model, text, false);
            let mut effects = sheet::ask_now(model);
            if let Some(secret) = act.and_then(|a| a.secret) {
                effects.extend(deploy::secret_set(model, &secret));
            }
            effects.extend(policy::saved(model));
            return effects;
        }
        return Vec::new();
    }
    if model.desk.call.as_ref().is_some_and(|c| c.flow.is_some_and(|(n, _)| n == flow)) {
        tools::told(model, told);
    } else if let Some(tap) = model.desk.tap.as_mut().filter(|t| t.flow == Some(flow)) {
        if let Told::Frames(frames) = told {
            tap.add(frames);
        }
        // What is frozen, or not looked at, is not drawn for it.
        model.dirty = model.screen() == Screen::Tap;
    } else if model.desk.build.as_ref().is_some_and(|b| b.flow == Some(flow)) {
        builds::told(model, told);
    } else if model.desk.policy.as_ref().is_some_and(|p| p.flow.is_some_and(|(n, _)| n == flow)) {
        policy::told(model, told);
    } else if model.desk.deploy.as_ref().is_some_and(|d| d.flow == Some(flow)) {
        return deploy::told(model, told);
    }
    Vec::new()
}

/// A flow has ended.
pub fn ended(model: &mut Model, flow: u64, trouble: Option<Trouble>) -> Vec<Effect> {
    model.dirty = true;
    if let Some(act) = model.desk.acts.remove(&flow) {
        let why = trouble.map_or_else(|| "it ended without a word".to_owned(), |t| joined(&t.what, &t.hint));
        tell(model, format!("{}: {why}", act.what), true);
        return Vec::new();
    }
    let desk = &mut model.desk;
    if let Some(call) = desk.call.as_mut().filter(|c| c.flow.is_some_and(|(n, _)| n == flow)) {
        call.flow = None;
        if let Some(trouble) = trouble {
            (call.answer, call.shows, call.line, call.offset) = (Some(Err(trouble)), true, 0, 0);
        }
    } else if let Some(tap) = desk.tap.as_mut().filter(|t| t.flow == Some(flow)) {
        let end = || Trouble { what: "the agent ended it".to_owned(), hint: String::new() };
        (tap.flow, tap.trouble) = (None, Some(trouble.unwrap_or_else(end)));
    } else if let Some(build) = desk.build.as_mut().filter(|b| b.flow == Some(flow)) {
        (build.flow, build.trouble) = (None, trouble);
    } else if let Some(policy) = desk.policy.as_mut().filter(|p| p.flow.is_some_and(|(n, _)| n == flow)) {
        policy.flow = None;
        if let Some(trouble) = trouble {
            policy.after = Some(Err(trouble));
        }
    } else if desk.deploy.as_ref().is_some_and(|d| d.flow == Some(flow)) {
        deploy::look_ended(model, trouble);
    }
    Vec::new()
}

/// Ends what nobody looks at any more.
pub fn settle(model: &mut Model) -> Vec<Effect> {
    let mut effects = Vec::new();
    let mut stop = |flow: Option<u64>| effects.extend(flow.map(|flow| Effect::Ask(Request::StopFlow { flow })));
    let there = |screen: Screen| model.screens.contains(&screen);
    let (tap, build, call) = (there(Screen::Tap), there(Screen::Build), there(Screen::Call));
    if !tap && let Some(tap) = model.desk.tap.take() {
        stop(tap.flow);
    }
    if !build && let Some(build) = model.desk.build.take() {
        stop(build.flow);
    }
    if !call && let Some(call) = model.desk.call.take() {
        stop(call.flow.map(|(flow, _)| flow));
        model.desk.keep(format!("{}/{}", call.name, call.tool.name), call.form.draft());
    }
    effects
}

/// An operation that was asked for here was accepted, or refused.
pub fn accepted(model: &mut Model, change: u64, result: &Result<Box<Operation>, Trouble>) {
    if model.desk.deploy.as_ref().is_some_and(|d| d.change == Some(change)) {
        deploy::accepted(model, result);
    }
}

/// An event of an operation that was asked for here.
pub fn happened(model: &mut Model, change: u64, event: &Event) {
    if model.desk.deploy.as_ref().is_some_and(|d| d.change == Some(change)) {
        deploy::happened(model, event);
    }
}

/// Asks for a secret's value.
pub fn ask_secret(model: &mut Model, name: String, place: SecretPlace) {
    model.overlay = Some(Overlay::Secret(Ask { name, place, value: Masked::default(), problem: None }));
}

/// A key while a secret is typed.
pub fn secret_key(model: &mut Model, mut ask: Ask, key: KeyEvent) -> Vec<Effect> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Esc => {
            deploy::secret_left(model);
            return Vec::new();
        }
        KeyCode::Enter if ask.value.0.is_empty() => ask.problem = Some("type the value, or Esc".to_owned()),
        KeyCode::Enter => {
            let Ask { name, place, value, .. } = ask;
            let words = format!("secret {name}");
            return act(model, Flow::Secret { name, place, value }, words).into_iter().collect();
        }
        KeyCode::Backspace => drop(ask.value.0.pop()),
        KeyCode::Char('u') if control => ask.value.0.clear(),
        KeyCode::Char(c) if !control => push(&mut ask, c.encode_utf8(&mut [0; 4])),
        _ => {}
    }
    model.overlay = Some(Overlay::Secret(ask));
    Vec::new()
}

/// Adds to a secret, in a place that is large enough from the beginning: growing would leave copies behind.
pub fn push(ask: &mut Ask, text: &str) {
    ask.problem = None;
    if ask.value.0.capacity() == 0 {
        ask.value.0.reserve_exact(SECRET);
    }
    if ask.value.0.len() + text.len() > SECRET {
        ask.problem = Some("a secret has at most 64 KiB".to_owned());
    } else {
        ask.value.0.push_str(text);
    }
}

/// Asks before something is done.
pub fn question(
    model: &mut Model,
    title: String,
    lines: Vec<(String, super::super::theme::Role)>,
    yes: &'static str,
    deed: Deed,
    command: String,
) {
    // Where one is careful, a name is typed before anything changes.
    let name = match &deed {
        Deed::Change(Change::Rollback(name, _)) => Some(name.clone()),
        Deed::Flow(Flow::Pins { name, .. } | Flow::Scaling { name, .. }, _) => Some(name.clone()),
        _ => None,
    };
    if name.as_ref().is_some_and(|name| !actions::may(model, &[name.as_str()])) {
        return;
    }
    let word = name.and_then(|name| actions::word(model, &[name], "yes"));
    model.overlay =
        Some(Overlay::Question(Question { title, lines, scroll: 0, yes, on_yes: false, word, deed, command }));
}

/// A key for a question.
pub fn question_key(model: &mut Model, mut question: Question, key: KeyEvent) -> Vec<Effect> {
    let most = question.lines.len().saturating_sub(1);
    if let Some((word, typed)) = &mut question.word {
        match key.code {
            KeyCode::Esc => return Vec::new(),
            KeyCode::Enter if word == typed => return done(model, question),
            KeyCode::Char(c) if !key.modifiers.contains(KeyModifiers::CONTROL) => typed.push(c),
            KeyCode::Backspace => drop(typed.pop()),
            KeyCode::PageDown | KeyCode::Down => question.scroll = (question.scroll + 5).min(most),
            KeyCode::PageUp | KeyCode::Up => question.scroll = question.scroll.saturating_sub(5),
            _ => {}
        }
        model.overlay = Some(Overlay::Question(question));
        return Vec::new();
    }
    match key.code {
        KeyCode::Esc | KeyCode::Char('n' | 'N' | 'q') => return Vec::new(),
        KeyCode::Enter if !question.on_yes => return Vec::new(),
        KeyCode::Enter | KeyCode::Char('y' | 'Y') => return done(model, question),
        KeyCode::Tab | KeyCode::BackTab | KeyCode::Left | KeyCode::Right | KeyCode::Char('h' | 'l') => {
            question.on_yes = !question.on_yes;
        }
        KeyCode::Char('j') | KeyCode::Down => question.scroll = (question.scroll + 1).min(most),
        KeyCode::Char('k') | KeyCode::Up => question.scroll = question.scroll.saturating_sub(1),
        KeyCode::PageDown | KeyCode::Char(' ') => question.scroll = (question.scroll + 10).min(most),
        KeyCode::PageUp => question.scroll = question.scroll.saturating_sub(10),
        KeyCode::Char('c') => {
            let text = question.command.clone();
            model.overlay = Some(Overlay::Question(question));
            return vec![Effect::Copy { text, what: "the command".to_owned() }];
        }
        _ => {}
    }
    model.overlay = Some(Overlay::Question(question));
    Vec::new()
}

/// Does what was agreed to.
fn done(model: &mut Model, question: Question) -> Vec<Effect> {
    match question.deed {
        Deed::Flow(flow, words) => {
            let effect = act(model, flow, words);
            if effect.is_some() {
                model.done.push((model.now, question.command));
            }
            effect.into_iter().collect()
        }
        Deed::Change(change) => actions::start(model, change).into_iter().collect(),
    }
}

/// A word as the shell takes it.
pub fn shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=+,%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}
