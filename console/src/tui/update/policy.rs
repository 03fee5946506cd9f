//! The editor of a scaling policy: fields with their bounds, what the last days would have been like, and the difference
//! before it is saved.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Map, Value, json};
use sigil_core::scale::Policy;

use super::super::desk::{Deed, Editing};
use super::super::fleet::bare;
use super::super::flow::{Flow, Told};
use super::super::form::Form;
use super::super::model::{Model, Screen};
use super::super::port::{Request, Trouble};
use super::super::sheet::Seen;
use super::super::theme::Role;
use super::desk::{question, shell, start};
use super::form::{Did, key as form_key};
use super::{Effect, places, tell, tools};

/// What a policy may say, with the bounds that the agent holds it to.
pub fn schema() -> Value {
    let number = |low: f64, high: f64, about: &str| json!({ "type": "number", "minimum": low, "maximum": high, "description": about });
    let whole = |low: u32, high: u32, about: &str| json!({ "type": "integer", "minimum": low, "maximum": high, "description": about });
    let open = |about: &str| json!({ "type": "number", "minimum": 0, "description": about });
    json!({
        "type": "object",
        "properties": {
            "min": whole(0, 10_000, "Fewest replicas; 0: it may sleep."),
            "max": whole(1, 10_000, "Most replicas."),
            "cpu": number(1.0, 100.0, "Target for CPU, percent of a replica's hard limit."),
            "memory": number(1.0, 100.0, "Target for memory above the baseline, percent of a replica's limit."),
            "responseTime": whole(1, 600_000, "Target for the 95th percentile of response times, milliseconds."),
            "errorRate": number(0.0, 100.0, "Target for calls that fail, percent."),
            "requestsUp": open("Up above so many requests a minute a replica."),
            "requestsDown": open("Down below so many."),
            "upCooldown": whole(0, 86_400, "Shortest time from a step to the next one up, seconds."),
            "downCooldown": whole(0, 86_400, "Shortest time from a step to the next one down, seconds."),
            "evaluateEvery": whole(1, 3_600, "Time between evaluations, seconds."),
            "stabilisation": whole(0, 86_400, "Down only to what was the most that was asked for in this time, seconds."),
            "stepUp": whole(1, 10_000, "Most replicas that a step adds."),
            "stepDown": whole(1, 10_000, "Most replicas that a step takes away."),
            "mode": { "enum": ["single", "weighted"], "description": "Each target by itself, or one score of all." },
            "predictive": { "type": "boolean", "description": "Look ahead by what the last seven days say." },
            "costCap": open("Most that a step may add to the cost of an hour."),
            "idleTimeout": whole(0, 2_592_000, "Sleep after so many seconds without a request; 0: never. Needs min: 0."),
            "sleep": { "enum": ["auto", "paused", "stopped"], "description": "How deep it sleeps." },
            "preset": { "enum": ["router", "standard", "processor", "compute"],
                "description": "What holds for all that is left out." },
        },
        "required": ["min", "max", "preset"],
    })
}

/// The values of a policy as the form takes them.
fn values(policy: &Policy) -> Value {
    let Ok(Value::Object(mut map)) = serde_json::to_value(policy) else { return json!({}) };
    map.retain(|_, v| !v.is_null());
    map.remove("weights");
    Value::Object(map)
}

/// What was typed as a policy's YAML. What the form leaves out holds as the preset says.
fn yaml(value: &Value) -> String {
    let line = |(key, value): (&String, &Value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{key}: {text}\n")
    };
    value.as_object().map(|map: &Map<String, Value>| map.iter().map(line).collect()).unwrap_or_default()
}

/// The whole policy that was typed.
fn policy(editing: &Editing, value: &Value) -> Result<Policy, Trouble> {
    let trouble = |e: sigil_core::scale::PolicyError| Trouble { what: e.to_string(), hint: e.hint().to_owned() };
    let mut text = yaml(value);
    // Shares of a score have no fields here: those that hold stay.
    let old = Policy::read("policy", &editing.holds, None).ok().filter(|_| !editing.holds.is_empty());
    if let Some(old) = old.filter(|_| value["mode"] == "weighted") {
        let w = old.weights;
        let all =
            format!("cpu: {}, memory: {}, responseTime: {}, errors: {}", w.cpu, w.memory, w.response_time, w.errors);
        text.push_str(&format!("weights: {{ {all} }}\n"));
    }
    Policy::read("policy", &text, None).map_err(trouble)
}

/// Opens the editor for the deployment whose scaling is shown.
pub fn open(model: &mut Model) -> Vec<Effect> {
    let known = match model.sheets.get(&Screen::Scaling) {
        Some(sheet) => match (&sheet.name, &sheet.seen) {
            (Some(name), Some(Seen::Scaling(scaled))) => {
                Some((name.clone(), scaled.scaling.policy.clone(), scaled.load.clone()))
            }
            _ => None,
        },
        None => None,
    };
    let Some((name, holds, load)) = known else {
        tell(model, "how it is scaled is not read yet: 5, then e", false);
        return Vec::new();
    };
    if !super::actions::may(model, &[name.as_str()]) {
        return Vec::new();
    }
    let draft = model.desk.draft(&format!("policy {name}")).cloned();
    let now = Policy::read("policy", &holds, None).ok().filter(|_| !holds.is_empty());
    let given = draft.unwrap_or_else(|| values(&now.unwrap_or_default()));
    let form = Form::new(&schema(), Some(&given), &["Save", "No policy"]);
    model.desk.policy =
        Some(Editing { name, form, holds, load, before: None, after: None, flow: None, replayed: Value::Null });
    model.screens.retain(|s| *s != Screen::Policy);
    model.screens.push(Screen::Policy);
    replay(model)
}

/// Replays what was typed, unless it was already; first of all what holds.
fn replay(model: &mut Model) -> Vec<Effect> {
    let Some(editing) = &mut model.desk.policy else { return Vec::new() };
    let Some(load) = editing.load.clone() else {
        let what = "its load is not read yet".to_owned();
        editing.after = Some(Err(Trouble { what, hint: "Esc, wait a moment, and e again".to_owned() }));
        return Vec::new();
    };
    let value = editing.form.draft();
    let first = editing.before.is_none() && !editing.holds.is_empty() && editing.flow.is_none();
    let read = match first {
        true => Policy::read("policy", &editing.holds, None).ok(),
        false => match policy(editing, &value) {
            Ok(policy) => Some(policy),
            Err(trouble) => {
                editing.after = Some(Err(trouble));
                None
            }
        },
    };
    let Some(read) = read.filter(|_| first || editing.replayed != value) else { return Vec::new() };
    if !first {
        editing.replayed = value;
    }
    let old = editing.flow.take();
    let mut effects: Vec<Effect> = old.map(|(flow, _)| Effect::Ask(Request::StopFlow { flow })).into_iter().collect();
    let Some((flow, effect)) = start(model, Flow::Replay { policy: Box::new(read), load: Box::new(load) }) else {
        return effects;
    };
    if let Some(editing) = &mut model.desk.policy {
        editing.flow = Some((flow, first));
    }
    effects.push(effect);
    effects
}

/// What a replay tells.
pub fn told(model: &mut Model, told: Told) {
    let (Some(editing), Told::Replayed(ran)) = (&mut model.desk.policy, told) else { return };
    match editing.flow {
        Some((_, true)) => editing.before = Some(*ran),
        _ => editing.after = Some(Ok(*ran)),
    }
}

/// A second has passed: what waits for its turn is replayed.
pub fn tick(model: &mut Model) -> Vec<Effect> {
    let waits = model.desk.policy.as_ref().is_some_and(|p| p.flow.is_none() && p.replayed != p.form.draft());
    if model.screen() == Screen::Policy && waits { replay(model) } else { Vec::new() }
}

/// Keys of the editor; `None`: they are for every screen.
pub fn key(model: &mut Model, key: KeyEvent) -> Option<Vec<Effect>> {
    let editing = model.desk.policy.as_mut()?;
    if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('y') {
        let text = command(&editing.name, &editing.form.draft());
        return Some(vec![Effect::Copy { text, what: "the command".to_owned() }]);
    }
    match form_key(&mut editing.form, key) {
        Did::Changed => {
            // While what holds is replayed, what is typed waits.
            let waits = matches!(editing.flow, Some((_, true))) && editing.before.is_none();
            Some(if waits { Vec::new() } else { replay(model) })
        }
        Did::Pressed(0) => Some(save(model)),
        Did::Pressed(_) => Some(none(model)),
        Did::Left => {
            let (name, draft) = (editing.name.clone(), editing.form.draft());
            model.desk.keep(format!("policy {name}"), draft);
            model.screens.pop();
            Some(places::shown(model))
        }
        Did::Nothing => None,
    }
}

fn save(model: &mut Model) -> Vec<Effect> {
    let Some(editing) = &mut model.desk.policy else { return Vec::new() };
    let Ok(value) = editing.form.check() else {
        tell(model, "a field is not right yet", true);
        return Vec::new();
    };
    let read = match policy(editing, &value) {
        Ok(policy) => policy,
        Err(trouble) => {
            let pointer = place(&trouble.what);
            editing.form.refuse(pointer, super::joined(&trouble.what, &trouble.hint));
            return Vec::new();
        }
    };
    let (name, old, new) = (editing.name.clone(), editing.holds.clone(), read.to_yaml());
    if old == new {
        tell(model, "nothing is changed", false);
        return Vec::new();
    }
    let mut lines = vec![(format!("on {}", model.host()), Role::Text)];
    lines.extend(tools::differences(&old, &new, &|line| line.to_owned()));
    let command = command(&name, &value);
    let title = format!("Scale {name} so?");
    let words = format!("scaling of {name}");
    question(model, title, lines, "Save", Deed::Flow(Flow::Scaling { name, policy: Some(new) }, words), command);
    Vec::new()
}

fn none(model: &mut Model) -> Vec<Effect> {
    let Some(editing) = &model.desk.policy else { return Vec::new() };
    let name = editing.name.clone();
    let lines = vec![
        (format!("on {}", model.host()), Role::Text),
        ("It keeps the replicas that it has until somebody scales it.".to_owned(), Role::Text),
    ];
    let command = format!("sigil scaling set {} --off", shell(bare(&name)));
    let title = format!("No scaling policy for {name} any more?");
    let words = format!("scaling of {name}");
    question(model, title, lines, "No policy", Deed::Flow(Flow::Scaling { name, policy: None }, words), command);
    Vec::new()
}

/// The command line that sets the same.
fn command(name: &str, value: &Value) -> String {
    let flags: Vec<String> = value.as_object().into_iter().flatten().filter_map(|(k, v)| flag(k, v)).collect();
    format!("sigil scaling set {} {}", shell(bare(name)), flags.join(" "))
}

/// A flag of `sigil scaling set`.
fn flag(key: &str, value: &Value) -> Option<String> {
    let mut name = String::new();
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            name.push('-');
        }
        name.push(c.to_ascii_lowercase());
    }
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let unit = match key {
        "responseTime" => "ms",
        "upCooldown" | "downCooldown" | "evaluateEvery" | "stabilisation" | "idleTimeout" => "s",
        _ => "",
    };
    Some(format!("--{name} {text}{unit}"))
}

/// The field that a refusal is about.
fn place(what: &str) -> &'static str {
    match what {
        _ if what.contains("idleTimeout") => "/idleTimeout",
        _ if what.contains("requestsDown") => "/requestsDown",
        _ if what.contains("min (") => "/min",
        _ => "/preset",
    }
}

/// A policy was saved: the editor has done its work.
pub fn saved(model: &mut Model) -> Vec<Effect> {
    if model.screen() != Screen::Policy {
        return Vec::new();
    }
    if let Some(editing) = model.desk.policy.take() {
        model.desk.forget(&format!("policy {}", editing.name));
    }
    model.screens.pop();
    places::shown(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_goes_through_the_form_unchanged() {
        for preset in ["router", "standard", "processor", "compute"] {
            let policy = Policy::preset(preset).unwrap();
            let mut form = Form::new(&schema(), Some(&values(&policy)), &[]);
            let value = form.check().unwrap_or_else(|()| panic!("{preset}: {:?}", form.problems));
            let editing = Editing {
                name: "x".into(),
                form,
                holds: policy.to_yaml(),
                load: None,
                before: None,
                after: None,
                flow: None,
                replayed: Value::Null,
            };
            assert_eq!(super::policy(&editing, &value).unwrap(), policy, "{preset}");
        }
    }

    #[test]
    fn flags_are_those_of_the_command_line() {
        assert_eq!(flag("upCooldown", &json!(30)).unwrap(), "--up-cooldown 30s");
        assert_eq!(flag("responseTime", &json!(500)).unwrap(), "--response-time 500ms");
        assert_eq!(flag("mode", &json!("single")).unwrap(), "--mode single");
    }
}
