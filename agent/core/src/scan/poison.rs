//! Poisoning: instructions to models in what describes tools, where a person sees a name at most.
//!
//! Texts come from code (descriptions, docstrings, parameters, what is assigned to them at run time; put together and
//! decoded first), from JSON and YAML, and from a live server's list of tools ([`tools`]).

mod signs;

use std::collections::HashSet;

use serde_json::Value;
use tree_sitter::Node;

use super::code::{Call, Code, Function, last};
use super::{File, Finding, Findings, Rule, Severity, hidden, line_at};
use signs::{Kind, Sign};

const fn rule(id: &'static str, severity: Severity, impact: &'static str, fix: &'static str) -> Rule {
    Rule { id, class: "tool-poisoning", severity, impact, fix }
}

const EXFIL: Rule = rule(
    "poison-exfiltration",
    Severity::Error,
    "a model that reads this takes files or conversations of the user and hands them to the server",
    "remove it; a description says what the tool does and needs, and nothing else",
);
const CONCEAL: Rule = rule(
    "poison-concealment",
    Severity::Error,
    "a model that reads this keeps from the user what is done in their name",
    "remove it; what a tool does may be known",
);
const SHADOW: Rule = rule(
    "poison-shadowing",
    Severity::Error,
    "the description changes how the tools of other servers are used",
    "describe this tool only",
);
const INSTRUCTION: Rule = rule(
    "poison-instruction",
    Severity::Warning,
    "marks like these make models take a description for orders from above",
    "write plain sentences without tags, comments and role marks",
);
const PREEMPT: Rule = rule(
    "poison-preempt",
    Severity::Warning,
    "the tool has itself called before all others, and sees what was meant for them",
    "say when the tool is useful, and leave the order to the model",
);
const ENCODED: Rule =
    rule("poison-encoded", Severity::Error, "a model decodes what no person reads", "write the text as it is");
const ESCAPES: Rule = rule(
    "poison-terminal-escape",
    Severity::Error,
    "control sequences hide text on a terminal that a model still reads",
    "remove the escape sequences",
);

pub(super) const RULES: &[&Rule] = &[&EXFIL, &CONCEAL, &SHADOW, &INSTRUCTION, &PREEMPT, &ENCODED, &ESCAPES];

/// Where a text stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It describes a tool, a parameter, a prompt.
    Metadata,
    /// Anywhere else: models may see it, and so may programs only.
    Other,
}

/// What a text's signs come to: the rule, how bad, where in the text, in words.
fn verdict(signs: &[Sign], place: Place) -> Option<(&'static Rule, Severity, String, String)> {
    let kinds: HashSet<Kind> = signs.iter().map(|sign| sign.kind).collect();
    let order = [
        (Kind::Exfil, &EXFIL),
        (Kind::Conceal, &CONCEAL),
        (Kind::Shadow, &SHADOW),
        (Kind::Encoded, &ENCODED),
        (Kind::Escape, &ESCAPES),
        (Kind::Override, &INSTRUCTION),
        (Kind::Mark, &INSTRUCTION),
        (Kind::Comment, &INSTRUCTION),
        (Kind::OffScreen, &INSTRUCTION),
        (Kind::Preempt, &PREEMPT),
    ];
    let (kind, rule) = order.iter().find(|(kind, _)| kinds.contains(kind))?;
    let acts = [Kind::Exfil, Kind::Conceal, Kind::Shadow].iter().filter(|kind| kinds.contains(kind)).count();
    if place == Place::Other && (acts == 0 || kinds.len() < 2) {
        return None;
    }
    // several signs far apart are a long text, not one order
    let near = |a: &Sign, b: &Sign| a.kind != b.kind && a.at.abs_diff(b.at) <= 600;
    let acting = |sign: &Sign| matches!(sign.kind, Kind::Exfil | Kind::Conceal | Kind::Shadow);
    let together = signs.iter().any(|a| acting(a) && signs.iter().any(|b| near(a, b)));
    if place == Place::Other && !together {
        return None;
    }
    let severity = match (kind, acts) {
        (_, 1..) if together => Severity::Block,
        (Kind::Override, _) => Severity::Error,
        _ => rule.severity,
    };
    // told where the text turns: at the first sign of all
    let first = signs.iter().min_by_key(|sign| sign.at)?;
    let words: Vec<&str> =
        order.iter().filter(|(kind, _)| kinds.contains(kind)).map(|(kind, _)| kind.words()).collect();
    Some((rule, severity, first.text.clone(), words.join("; ")))
}

/// Keys of what describes things to models.
fn describes(key: &str) -> bool {
    matches!(
        key,
        "description"
            | "title"
            | "instructions"
            | "prompt"
            | "summary"
            | "help"
            | "doc"
            | "tooldescription"
            | "tool_description"
            | "systemprompt"
            | "system_prompt"
            | "longdescription"
            | "hint"
            | "usage"
            | "name"
    )
}

pub(super) fn check(code: &Code<'_>, findings: &mut Findings) {
    let mut places: Vec<(Node<'_>, Place)> = Vec::new();
    for pair in code.pairs.iter().filter(|pair| describes(&pair.key)) {
        places.push((pair.value, Place::Metadata));
    }
    for set in &code.sets {
        let target = code.path(set.target);
        let name = last(&target);
        let says = describes(name) && target.contains('.')
            || name == "__doc__"
            || ["desc", "instruction", "docstring", "tool_doc"].iter().any(|word| name.contains(word));
        if says {
            places.push((set.value, Place::Metadata));
        }
    }
    for call in &code.calls {
        let args: &[Node<'_>] = match last(&call.path) {
            "tool" | "prompt" | "resource" | "addtool" | "add_tool" | "registertool" | "registerprompt" | "newtool" => {
                call.args.get(..2).unwrap_or(&call.args)
            }
            "describe" | "withdescription" | "description" | "setdescription" | "meta" => {
                call.args.get(..1).unwrap_or(&[])
            }
            _ => &[],
        };
        places.extend(
            args.iter()
                .filter(|arg| !matches!(arg.kind(), "object" | "arrow_function" | "function_expression"))
                .map(|arg| (*arg, Place::Metadata)),
        );
    }
    for function in &code.functions {
        let first =
            function.body.and_then(|body| body.named_child(0)).filter(|first| first.kind() == "expression_statement");
        if let Some(doc) = first.and_then(|first| first.named_child(0)).filter(|doc| doc.kind() == "string") {
            places.push((doc, if is_offered(code, function) { Place::Metadata } else { Place::Other }));
        }
    }
    for string in &code.strings {
        // the whole of what is put together
        let mut whole = *string;
        while let Some(parent) = whole.parent().filter(|p| {
            matches!(
                p.kind(),
                "concatenated_string" | "binary_operator" | "binary_expression" | "parenthesized_expression"
            )
        }) {
            whole = parent;
        }
        places.push((whole, Place::Other));
    }
    let mut seen = HashSet::new();
    let mut told = HashSet::new();
    for (node, place) in places {
        let short = place == Place::Other && node.end_byte() - node.start_byte() < 40;
        if short || !seen.insert(node.id()) {
            continue;
        }
        let text = code.fold_partly(node);
        let mut signs = signs::of(&text, place == Place::Metadata);
        if place == Place::Metadata && spelled_out(code.text(node)) {
            signs.push(Sign { kind: Kind::Encoded, at: 0, text: String::new() });
        }
        let Some((rule, severity, found, what)) = verdict(&signs, place) else { continue };
        let at = locate(code, node, &found);
        if told.insert(at) {
            findings.add_as(
                rule,
                severity,
                code.file,
                at,
                format!("a text that models read {what}"),
                line_at(code.file.text, at),
            );
        }
    }
}

/// Whether models get to see a function's docstring: it has a decorator that registers it, or is handed to a call that may.
fn is_offered(code: &Code<'_>, function: &Function<'_>) -> bool {
    let decorated = function.decorators.iter().any(|decorator| {
        let text = code.bare_of(*decorator);
        ["tool", "prompt", "resource"].iter().any(|word| text.contains(word))
    });
    let handed = |call: &Call<'_>| {
        let path = &call.path;
        ["tool", "prompt", "resource", "from_function"].iter().any(|word| path.contains(word))
            && call.args.iter().any(|arg| code.text(*arg).rsplit('.').next() == Some(function.name))
    };
    decorated || !function.name.is_empty() && code.calls.iter().any(handed)
}

/// Whether a literal writes letters as escapes.
fn spelled_out(source: &str) -> bool {
    let letters = ["\\x2", "\\x4", "\\x5", "\\x6", "\\x7", "\\u002", "\\u004", "\\u005", "\\u006", "\\u007"];
    letters.iter().map(|start| source.matches(start).count()).sum::<usize>() >= 12
}

/// Where the words stand in the source: in the node, else where a name of it was set, else the node.
fn locate(code: &Code<'_>, node: Node<'_>, words: &str) -> usize {
    let start = node.start_byte();
    let line = words.lines().next().unwrap_or_default().trim();
    if line.len() < 4 {
        return start;
    }
    if let Some(at) = code.text(node).find(line) {
        return start + at;
    }
    code.file.text.find(line).unwrap_or(start)
}

/// JSON and YAML that describe tools.
pub(super) fn check_data(file: &File<'_>, findings: &mut Findings) {
    let name = file.name();
    let json = name.ends_with(".json") || name.ends_with(".mcpb") || name.ends_with(".dxt");
    let yaml = name.ends_with(".yaml") || name.ends_with(".yml");
    if !json && !yaml || file.is_test() || name.contains("lock") {
        return;
    }
    let tell = |text: &str, findings: &mut Findings| {
        let Some((rule, severity, found, what)) = verdict(&signs::of(text, true), Place::Metadata) else { return };
        let quoted = serde_json::to_string(found.lines().next().unwrap_or_default().trim()).unwrap_or_default();
        let at = file.text.find(quoted.trim_matches('"')).unwrap_or(0);
        findings.add_as(rule, severity, file, at, format!("a text that models read {what}"), line_at(file.text, at));
    };
    if yaml {
        for text in yaml_texts(file.text) {
            tell(&text, findings);
        }
        return;
    }
    let Ok(value) = serde_json::from_str::<Value>(file.text) else { return };
    let mut texts = Vec::new();
    collect(&value, None, &mut texts, 0);
    for (_, text) in texts {
        tell(text, findings);
    }
}

/// Values of `description:` and the like, blocks included, as far as lines and their depth tell.
fn yaml_texts(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    for (at, line) in lines.iter().enumerate() {
        let body = line.trim_start().trim_start_matches("- ");
        let own = line.len() - body.len();
        let Some((key, value)) = body.split_once(':') else { continue };
        if !describes(key.trim().to_lowercase().as_str()) {
            continue;
        }
        let mut whole = value.trim().trim_matches(['"', '\'']).to_owned();
        for next in lines.iter().skip(at + 1).take_while(|next| next.trim().is_empty() || depth(next) > own) {
            whole.push('\n');
            whole.push_str(next.trim());
        }
        found.push(whole);
    }
    found
}

/// Texts of a JSON value that describe something, with where.
fn collect<'v>(value: &'v Value, key: Option<&str>, found: &mut Vec<(String, &'v str)>, depth: usize) {
    if depth > 40 {
        return;
    }
    match value {
        Value::String(text) if key.is_some_and(|key| describes(&last_key(key).to_lowercase())) => {
            found.push((key.unwrap_or_default().to_owned(), text));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, key, found, depth + 1)),
        Value::Object(fields) => {
            for (name, inner) in fields {
                let path = key.map_or_else(|| name.clone(), |key| format!("{key}.{name}"));
                collect(inner, Some(&path), found, depth + 1);
            }
        }
        _ => {}
    }
}

fn last_key(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Every text of a live tool that a model gets to see: keys of the schema as well as values.
fn everything<'v>(value: &'v Value, path: &str, found: &mut Vec<(String, &'v str)>, depth: usize) {
    if depth > 40 {
        return;
    }
    match value {
        Value::String(text) => found.push((path.to_owned(), text)),
        Value::Array(items) => items.iter().for_each(|item| everything(item, path, found, depth + 1)),
        Value::Object(fields) => {
            for (name, inner) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                found.push((path.clone(), name));
                everything(inner, &path, found, depth + 1);
            }
        }
        _ => {}
    }
}

/// Looks at a live server's tools as `tools/list` gives them (name, title, description, schemas). `path` of a finding
/// is `tool.member`, its line 1.
pub fn tools(tools: &[Value]) -> Vec<Finding> {
    let mut findings = Findings::default();
    for tool in tools {
        let name = tool.get("name").and_then(Value::as_str).unwrap_or("(unnamed)");
        let mut texts = Vec::new();
        everything(tool, "", &mut texts, 0);
        for (member, text) in texts {
            let path = format!("{name}.{member}");
            let file = File { path: &path, text };
            hidden::check(&file, &mut findings);
            let Some((rule, severity, found, what)) = verdict(&signs::of(text, true), Place::Metadata) else {
                continue;
            };
            let at = text.find(&found).unwrap_or(0);
            findings.add_as(rule, severity, &file, at, format!("a text that models read {what}"), line_at(text, at));
        }
    }
    findings.list
}

#[cfg(test)]
mod tests;
