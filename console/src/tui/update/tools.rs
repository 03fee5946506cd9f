//! Tools: the list, a call from its form to its answer, and held tools that are approved.

use std::collections::BTreeSet;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};

use super::super::desk::{Calling, Deed};
use super::super::fleet::bare;
use super::super::flow::{Flow, Told};
use super::super::form::{self, Form};
use super::super::model::{Model, Overlay, Place, Screen};
use super::super::port::Request;
use super::super::sheet::Seen;
use super::super::theme::Role;
use super::super::view::call;
use super::desk::{question, shell, start};
use super::form::{Did, key as form_key};
use super::{Effect, places, tell};
use crate::link::PinnedTool;
use crate::link::tools::{Tool, Toolbox};

/// Lines that stay the same around what changed.
const CONTEXT: usize = 3;

/// The tools of the subject.
pub fn open(model: &mut Model) -> Vec<Effect> {
    match model.subject().map(|d| d.name.clone()) {
        Some(name) => places::open(model, Place { screen: Screen::Tools, names: vec![name] }),
        None => {
            tell(model, "no deployment is selected", true);
            Vec::new()
        }
    }
}

fn toolbox(model: &Model) -> Option<(&str, &Toolbox)> {
    let sheet = model.sheets.get(&Screen::Tools)?;
    match (&sheet.name, &sheet.seen) {
        (Some(name), Some(Seen::Tools(toolbox))) => Some((name, toolbox)),
        _ => None,
    }
}

/// Held tools of a list; none where pins are not enforced or not told.
pub fn held(toolbox: &Toolbox) -> Vec<&PinnedTool> {
    let pins = toolbox.pins.as_ref().ok().filter(|p| p.pinning != "off");
    pins.map(|p| p.tools.iter().filter(|t| t.is_held()).collect()).unwrap_or_default()
}

/// Keys of the list, where the row under the cursor has this key; `None`: none of these.
pub fn key(model: &mut Model, row: Option<&str>, key: KeyEvent) -> Option<Vec<Effect>> {
    let held_row = row.and_then(|r| r.strip_prefix("held ")).map(str::to_owned);
    let tool_row = row.and_then(|r| r.strip_prefix("tool ")).map(str::to_owned);
    Some(match (key.code, held_row, tool_row) {
        (KeyCode::Enter | KeyCode::Char('a'), Some(tool), _) => answer(model, Some(&tool), false),
        (KeyCode::Char('A'), ..) => answer(model, None, false),
        (KeyCode::Char('d'), Some(tool), _) => answer(model, Some(&tool), true),
        (KeyCode::Char('a' | 'd'), None, _) => {
            tell(model, "this tool is not held: there is nothing to approve", false);
            Vec::new()
        }
        (KeyCode::Enter, _, Some(tool)) => {
            let (name, found) = find(model, &tool)?;
            call_of(model, name, found);
            Vec::new()
        }
        (KeyCode::Char('v'), _, Some(tool)) => {
            let (_, found) = find(model, &tool)?;
            let mut text: Vec<String> = found.description.lines().map(str::to_owned).collect();
            text.push(String::new());
            text.extend(form::described(&found.schema));
            text.push(String::new());
            text.extend(format!("{:#}", found.raw).lines().map(str::to_owned));
            model.overlay = Some(Overlay::Line { title: tool, text, scroll: 0 });
            Vec::new()
        }
        (KeyCode::Char('c'), _, Some(tool)) => {
            let (name, found) = find(model, &tool)?;
            let names = found.schema.get("properties").and_then(Value::as_object);
            let args: String = names.into_iter().flatten().map(|(n, _)| format!(" --arg {}=…", shell(n))).collect();
            let text = format!("sigil call {} {}{args}", bare(&name), shell(&tool));
            vec![Effect::Copy { text, what: "the command".to_owned() }]
        }
        _ => return None,
    })
}

fn find(model: &Model, tool: &str) -> Option<(String, Tool)> {
    let (name, toolbox) = toolbox(model)?;
    Some((name.to_owned(), toolbox.tools.iter().find(|t| t.name == tool)?.clone()))
}

/// The form of a tool, with what was typed into it before.
fn call_of(model: &mut Model, name: String, tool: Tool) {
    let draft = model.desk.draft(&format!("{name}/{}", tool.name)).cloned();
    let schema = if tool.schema.is_object() { tool.schema.clone() } else { json!({ "type": "object" }) };
    let form = Form::new(&schema, draft.as_ref(), &["Call"]);
    model.desk.call = Some(Calling {
        name,
        tool,
        form,
        flow: None,
        note: String::new(),
        answer: None,
        shows: false,
        line: 0,
        offset: 0,
        folded: BTreeSet::new(),
        sent: None,
    });
    model.screens.retain(|s| *s != Screen::Call);
    model.screens.push(Screen::Call);
}

/// `:call NAME TOOL`: opens the list when it is not known yet.
pub fn open_call(model: &mut Model, name: String, tool: Option<String>) -> Vec<Effect> {
    let found = tool.as_deref().and_then(|tool| find(model, tool)).filter(|(n, _)| *n == name);
    match found {
        Some((name, tool)) => {
            call_of(model, name, tool);
            Vec::new()
        }
        None => {
            let effects = places::open(model, Place { screen: Screen::Tools, names: vec![name] });
            if let Some(sheet) = model.sheets.get_mut(&Screen::Tools) {
                sheet.row = tool.map(|tool| format!("tool {tool}"));
            }
            effects
        }
    }
}

/// Keys of a call: of its form, or of its answer. `None`: they are for every screen.
pub fn call_key(model: &mut Model, key: KeyEvent) -> Option<Vec<Effect>> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let running = model.desk.call.as_ref().is_some_and(|c| c.flow.is_some());
    if running && key.code == KeyCode::Esc {
        return Some(cancel(model));
    }
    if model.desk.call.as_ref()?.shows {
        return answer_key(model, key);
    }
    let call = model.desk.call.as_mut()?;
    // What is sent does not change on its way.
    if running {
        return None;
    }
    if control && key.code == KeyCode::Char('y') {
        let text = command(call, &call.form.draft());
        return Some(vec![Effect::Copy { text, what: "the command".to_owned() }]);
    }
    match form_key(&mut call.form, key) {
        Did::Changed => Some(Vec::new()),
        Did::Pressed(_) => Some(send(model)),
        Did::Left => {
            model.screens.pop();
            Some(places::shown(model))
        }
        Did::Nothing => None,
    }
}

fn send(model: &mut Model) -> Vec<Effect> {
    let Some(call) = model.desk.call.as_mut() else { return Vec::new() };
    let Ok(arguments) = call.form.check() else {
        let n = call.form.problems.len();
        let words =
            if n == 1 { "one field is not right yet".to_owned() } else { format!("{n} fields are not right yet") };
        tell(model, words, true);
        return Vec::new();
    };
    let (name, tool) = (call.name.clone(), call.tool.name.clone());
    call.sent = Some(arguments.clone());
    let Some((flow, effect)) = start(model, Flow::Call { name, tool, arguments }) else { return Vec::new() };
    let now = model.now;
    if let Some(call) = model.desk.call.as_mut() {
        (call.flow, call.answer) = (Some((flow, now)), None);
        call.note.clear();
    }
    vec![effect]
}

fn cancel(model: &mut Model) -> Vec<Effect> {
    let flow = model.desk.call.as_mut().and_then(|c| c.flow.take());
    tell(model, "the call was cancelled; what was typed is still there", false);
    flow.map(|(flow, _)| Effect::Ask(Request::StopFlow { flow })).into_iter().collect()
}

/// What a call tells.
pub fn told(model: &mut Model, told: Told) {
    let Some(call) = model.desk.call.as_mut() else { return };
    match told {
        Told::Note(text) => call.note = text,
        Told::Answer(answer) => {
            (call.answer, call.shows, call.line, call.offset) = (Some(Ok(answer)), true, 0, 0);
            call.folded.clear();
        }
        _ => {}
    }
}

/// The command line of a call.
pub fn command(call: &Calling, arguments: &Value) -> String {
    let json = match arguments {
        Value::Object(map) if map.is_empty() => String::new(),
        Value::Null => String::new(),
        value => format!(" --json {}", shell(&value.to_string())),
    };
    format!("sigil call {} {}{json}", bare(&call.name), shell(&call.tool.name))
}

fn answer_key(model: &mut Model, key: KeyEvent) -> Option<Vec<Effect>> {
    let lines = call::answer(model);
    let room = call::room(model).max(1);
    let call = model.desk.call.as_mut()?;
    let last = lines.len().saturating_sub(1);
    let half = room / 2;
    let to = match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
        (KeyCode::Esc | KeyCode::Backspace | KeyCode::Char('q'), _) => {
            call.shows = false;
            return Some(Vec::new());
        }
        (KeyCode::Char('j') | KeyCode::Down, false) => call.line + 1,
        (KeyCode::Char('k') | KeyCode::Up, false) => call.line.saturating_sub(1),
        (KeyCode::Char('d'), true) => call.line + half,
        (KeyCode::Char('u'), true) => call.line.saturating_sub(half),
        (KeyCode::PageDown, _) => call.line + room,
        (KeyCode::PageUp, _) => call.line.saturating_sub(room),
        (KeyCode::Char('g') | KeyCode::Home, false) => 0,
        (KeyCode::Char('G') | KeyCode::End, false) => last,
        (KeyCode::Enter | KeyCode::Char(' '), _) => {
            if let Some(fold) = lines.get(call.line).and_then(|l| l.fold.clone())
                && !call.folded.remove(&fold)
            {
                call.folded.insert(fold);
            }
            call.line
        }
        (KeyCode::Char('y'), false) => {
            let text = call::plain(call);
            return Some(vec![Effect::Copy { text, what: "the answer".to_owned() }]);
        }
        (KeyCode::Char('Y'), false) => {
            let text = match &call.answer {
                Some(Ok(answer)) => answer.result.to_string(),
                _ => return Some(Vec::new()),
            };
            return Some(vec![Effect::Copy { text, what: "the answer as JSON".to_owned() }]);
        }
        (KeyCode::Char('c'), false) => {
            let text = command(call, call.sent.as_ref().unwrap_or(&Value::Null));
            return Some(vec![Effect::Copy { text, what: "the command".to_owned() }]);
        }
        (KeyCode::Char('r'), false) => return Some(send(model)),
        _ => return None,
    };
    call.line = to.min(last);
    call.offset = call.offset.min(call.line).max((call.line + 1).saturating_sub(room));
    Some(Vec::new())
}

/// Asks whether held tools are approved, or dismissed, and shows how they differ.
fn answer(model: &mut Model, tool: Option<&str>, dismiss: bool) -> Vec<Effect> {
    let Some((name, toolbox)) = toolbox(model) else { return Vec::new() };
    let all: Vec<&PinnedTool> = held(toolbox).into_iter().filter(|t| tool.is_none_or(|n| t.name == n)).collect();
    let Some(release) = toolbox.pins.as_ref().ok().map(|p| p.release).filter(|_| !all.is_empty()) else {
        tell(model, "no tool is held", false);
        return Vec::new();
    };
    let mut lines = Vec::new();
    for tool in &all {
        lines.extend(diff(tool));
        lines.push((String::new(), Role::Text));
    }
    let (verb, word) = if dismiss { ("Dismiss", "dismiss") } else { ("Approve", "approve") };
    lines.push(if dismiss {
        ("It stays as it was pinned; this form is held when it comes again.".to_owned(), Role::Text)
    } else {
        ("Clients get it as it is now, and it is pinned so.".to_owned(), Role::Text)
    });
    let names: Vec<String> = all.iter().map(|t| t.name.clone()).collect();
    let title = match names.as_slice() {
        [one] => format!("{verb} {one} of {name}?"),
        some => format!("{verb} {} tools of {name}?", some.len()),
    };
    let words: Vec<String> = names.iter().map(|n| shell(n)).collect();
    let command = format!("sigil pins {word} {} {}", bare(name), words.join(" "));
    // What was shown is what is meant: a tool that has changed again meanwhile is refused.
    let tools = all.iter().map(|t| (t.name.clone(), t.live_digest.clone())).collect();
    let flow = Flow::Pins { name: name.to_owned(), release, tools, dismiss };
    let words = format!("{word} {}", names.join(", "));
    question(model, title, lines, verb, Deed::Flow(flow, words), command);
    Vec::new()
}

/// A held tool's difference to what is pinned, nothing hidden in it.
pub fn diff(tool: &PinnedTool) -> Vec<(String, Role)> {
    let why = match tool.state.as_str() {
        "added" => "it was not there when its release was first ready",
        "poisoned" => "its description tries to steer whoever reads it",
        _ => "it describes itself in another way than when its release was first ready",
    };
    let mut out = vec![(format!("{}: {why}", tool.name), Role::Title)];
    out.extend(tool.findings.iter().map(|f| (format!("! {f}"), Role::Bad)));
    out.extend(differences(&laid_out(&tool.pinned), &laid_out(&tool.live), &crate::cli::pins::spelled));
    out
}

/// JSON in lines, so that a difference is a line of it.
fn laid_out(text: &str) -> String {
    serde_json::from_str::<Value>(text).map_or_else(|_| text.to_owned(), |v| format!("{v:#}"))
}

/// Lines of two texts that differ, with some around them.
pub fn differences(old: &str, new: &str, spelled: &dyn Fn(&str) -> String) -> Vec<(String, Role)> {
    let diff = TextDiff::from_lines(old, new);
    let mut out = Vec::new();
    for (i, group) in diff.grouped_ops(CONTEXT).iter().enumerate() {
        if i > 0 {
            out.push(("…".to_owned(), Role::Dim));
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let (mark, role) = match change.tag() {
                ChangeTag::Delete => ('-', Role::Bad),
                ChangeTag::Insert => ('+', Role::Good),
                ChangeTag::Equal => (' ', Role::Dim),
            };
            out.push((format!("{mark} {}", spelled(change.value().trim_end_matches('\n'))), role));
        }
    }
    out
}
