//! Secrets that leave by the side door: logs, error messages, what tools answer.

use std::sync::LazyLock;

use regex::Regex;
use tree_sitter::Node;

use super::code::{Call, Code, Lang, last};
use super::{Findings, Rule, Severity};

const LOG: Rule = Rule {
    id: "secret-in-log",
    class: "secret-exposure",
    severity: Severity::Warning,
    impact: "whoever reads the log can use the secret; logs are copied, shipped and kept",
    fix: "log that it is set, or its last characters; never the value",
};
const RESULT: Rule = Rule {
    id: "secret-in-result",
    class: "secret-exposure",
    severity: Severity::Error,
    impact: "models, their providers and every client see the secret, and can be talked into passing it on",
    fix: "answer with what the caller needs; never with the environment or a credential",
};
const ERROR: Rule = Rule {
    id: "secret-in-error",
    class: "secret-exposure",
    severity: Severity::Warning,
    impact: "error messages go to clients and logs, and the secret with them",
    fix: "name the variable in the message, not its value",
};

pub(super) const RULES: &[&Rule] = &[&LOG, &RESULT, &ERROR];

static NAME: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?:^|[._])\w*(?:api_?key|secret_?key|client_?secret|app_?secret|password|passwd|access_?token|auth_?token|refresh_?token|private_?key|bearer_?token|secret_?access_?key|api_?token|bot_?token|jwt_?secret|session_?secret|encryption_?key|signing_?key|master_?key|credentials_?json|connection_?string|database_?url)$").ok()
});

/// Names in the environment that hold secrets.
static VARIABLE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?:key|token|secret|password|passwd|pat|credentials?|pwd|_pass|dsn|database_url|connection_string)$")
        .ok()
});

/// Keys that open nothing.
const NO_SECRET: &[&str] =
    &["public", "tag_key", "partition_key", "primary_key", "sort_key", "foreign_key", "cache_key", "row_key"];

fn is(regex: &LazyLock<Option<Regex>>, text: &str) -> bool {
    regex.as_ref().is_some_and(|regex| regex.is_match(text))
}

/// A variable of the environment that holds a secret.
fn from_environment(path: &str) -> bool {
    ["process.env.", "os.environ.", "deno.env.", "bun.env.", "import.meta.env."].iter().any(|start| {
        path.strip_prefix(start).is_some_and(|name| {
            is(&VARIABLE, name) && !name.contains('.') && !NO_SECRET.iter().any(|word| name.contains(word))
        })
    })
}

/// All of the environment.
fn environment(path: &str) -> bool {
    matches!(
        path,
        "process.env"
            | "os.environ"
            | "os.environ()"
            | "os.environ.copy()"
            | "deno.env.toobject()"
            | "os.environ.items()"
    )
}

fn named_secret(path: &str) -> bool {
    is(&NAME, path) && !path.contains("()")
}

pub(super) fn check(code: &Code<'_>, findings: &mut Findings) {
    if !code.mentions(&["key", "token", "secret", "password", "environ", "process.env", "credential"]) {
        return;
    }
    let mut told = Vec::new();
    for call in &code.calls {
        let row = call.node.start_position().row;
        if told.contains(&row) {
            continue;
        }
        if logs(code, call) {
            let want = |path: &str| from_environment(path) || environment(path) || named_secret(path);
            if call.args.iter().any(|arg| shows(code, *arg, &want, 0)) {
                told.push(row);
                code.add(findings, &LOG, call.node, "a secret is written to a log");
            }
        }
        let raised =
            call.node.parent().is_some_and(|parent| matches!(parent.kind(), "raise_statement" | "throw_statement"))
                || matches!(call.path.as_str(), "fmt.errorf" | "errors.new");
        let want = |path: &str| from_environment(path) || named_secret(path);
        if raised && call.args.iter().any(|arg| shows(code, *arg, &want, 0)) {
            told.push(row);
            code.add(findings, &ERROR, call.node, "a secret is put into an error message");
        }
    }
    results(code, findings, &mut told);
}

fn logs(code: &Code<'_>, call: &Call<'_>) -> bool {
    let path = call.path.as_str();
    let (object, name) = path.rsplit_once('.').unwrap_or(("", path));
    let level = matches!(
        name,
        "log"
            | "info"
            | "debug"
            | "warn"
            | "warning"
            | "error"
            | "trace"
            | "exception"
            | "critical"
            | "fatal"
            | "printf"
            | "println"
            | "print"
            | "fatalf"
            | "infof"
            | "debugf"
            | "errorf"
    );
    match (object, name) {
        ("", "print" | "pprint") => code.lang == Lang::Python,
        ("sys.stderr" | "sys.stdout" | "process.stderr" | "process.stdout", "write") => true,
        (_, "sendloggingmessage" | "send_log_message") => true,
        (object, _) => {
            level
                && ["console", "log", "logger", "logging", "_logger", "_log", "ctx", "fmt", "winston", "pino", "slog"]
                    .iter()
                    .any(|word| last(object).ends_with(word))
                && name != "errorf"
                || level && matches!(last(object), "log" | "logger")
        }
    }
}

/// Whether a value, or a text that it is put into, has a secret in it as it is: not its length, a part, or whether it
/// is there.
fn shows(code: &Code<'_>, node: Node<'_>, want: &dyn Fn(&str) -> bool, depth: usize) -> bool {
    if depth > 12 {
        return false;
    }
    let node = Code::bare_expr(node);
    let path = code.path(node);
    match node.kind() {
        "identifier" | "shorthand_property_identifier" => {
            let hidden = |value: Node<'_>| {
                code.literal(value).is_some()
                    || matches!(
                        Code::bare_expr(value).kind(),
                        "comparison_operator" | "unary_expression" | "not_operator" | "true" | "false"
                    )
                    || ["mask", "redact", "len(", "[:", "slice", "substr", "hash", "encrypt", "***", "bool("]
                        .iter()
                        .any(|word| code.bare_of(value).contains(word))
            };
            match code.only_value(node) {
                // a loop over the environment goes over names
                Some(value)
                    if code.path(value) == "os.environ"
                        && value.parent().is_some_and(|p| p.kind().starts_with("for")) =>
                {
                    false
                }
                Some(value) => {
                    let inner = code.path(value);
                    let environment = ["process.env.", "os.environ."].iter().any(|start| inner.starts_with(start));
                    !hidden(value)
                        && (shows(code, value, want, depth + 1) || want(&path) && !environment || want(&inner))
                }
                None if want(&path) && !code.text(node).starts_with("has_") => true,
                // of several values, any; names of variables are no values
                None => code.values(node).into_iter().any(|value| {
                    let names = environment(&code.path(value)) && !code.path(value).ends_with(".items()");
                    !names && !hidden(value) && shows(code, value, want, depth + 1)
                }),
            }
        }
        "member_expression" | "attribute" | "selector_expression" => want(&path),
        "subscript" | "subscript_expression" | "index_expression" => {
            let slice = code.text(node).contains(':') && path.ends_with("[]");
            !slice && want(&path)
        }
        "call" | "call_expression" | "new_expression" => {
            if want(&path) {
                return true;
            }
            let name = path.trim_end_matches("()");
            let keeps = [
                "stringify",
                "dumps",
                "str",
                "dict",
                "string",
                "format",
                "join",
                "trim",
                "strip",
                "sprintf",
                "repr",
                "entries",
                "items",
                "fromentries",
                "pformat",
                "new error",
                "valueerror",
                "runtimeerror",
                "exception",
            ];
            if !keeps.contains(&last(name)) {
                return false;
            }
            let object = node.child_by_field_name("function").and_then(|callee| callee.child_by_field_name("object"));
            let args = node.child_by_field_name("arguments");
            object.is_some_and(|object| shows(code, object, want, depth + 1))
                || args.is_some_and(|args| children(code, args, want, depth))
        }
        "for_in_clause"
        | "comparison_operator"
        | "not_operator"
        | "unary_expression"
        | "arrow_function"
        | "lambda"
        | "function_expression" => false,
        "binary_expression" | "boolean_operator" => {
            let operator = node.child_by_field_name("operator").map_or("", |op| code.text(op));
            match operator {
                "===" | "==" | "!==" | "!=" | "<" | ">" | "in" => false,
                // `key && "set"`: the right side is what is shown
                "&&" | "and" => {
                    node.child_by_field_name("right").is_some_and(|right| shows(code, right, want, depth + 1))
                }
                _ => children(code, node, want, depth),
            }
        }
        "ternary_expression" => ["consequence", "alternative"]
            .iter()
            .filter_map(|name| node.child_by_field_name(name))
            .any(|part| shows(code, part, want, depth + 1)),
        "conditional_expression" => {
            [0, 2].iter().filter_map(|at| node.named_child(*at)).any(|part| shows(code, part, want, depth + 1))
        }
        "pair" | "keyword_argument" => {
            node.child_by_field_name("value").is_some_and(|value| shows(code, value, want, depth + 1))
        }
        "interpolation" | "template_substitution" => {
            node.named_child(0).is_some_and(|inner| shows(code, inner, want, depth + 1))
        }
        _ => children(code, node, want, depth),
    }
}

fn children(code: &Code<'_>, node: Node<'_>, want: &dyn Fn(&str) -> bool, depth: usize) -> bool {
    let mut cursor = node.walk();
    let all: Vec<Node<'_>> = node.named_children(&mut cursor).collect();
    all.into_iter().any(|child| shows(code, child, want, depth + 1))
}

/// What tools answer: a text of a result, or what a function returns that is a tool.
fn results(code: &Code<'_>, findings: &mut Findings, told: &mut Vec<usize>) {
    let want = |path: &str| from_environment(path) || environment(path);
    let message = "a secret is in what a tool answers";
    for pair in code.pairs.iter().filter(|pair| pair.key == "text") {
        let row = pair.node.start_position().row;
        if !told.contains(&row) && shows(code, pair.value, &want, 0) {
            told.push(row);
            code.add(findings, &RESULT, pair.node, message);
        }
    }
    for call in &code.calls {
        let answers = matches!(
            call.path.as_str(),
            "res.json" | "res.send" | "reply.send" | "c.json" | "c.text" | "ctx.json" | "jsonresponse" | "jsonify"
        ) || call.path.starts_with("res.status") && matches!(last(&call.path), "json" | "send");
        let row = call.node.start_position().row;
        if answers && !told.contains(&row) && call.args.iter().any(|arg| shows(code, *arg, &want, 0)) {
            told.push(row);
            code.add(findings, &RESULT, call.node, "a secret is in an answer");
        }
    }
    for function in &code.functions {
        let decorated = function.decorators.iter().any(|decorator| {
            let text = code.bare_of(*decorator);
            ["tool", "resource", "prompt"].iter().any(|word| text.contains(word))
        });
        let registered = code.call_around(function.node).is_some_and(|call| {
            matches!(last(&call.path), "tool" | "registertool" | "addtool" | "resource" | "registerresource" | "prompt")
        });
        if !decorated && !registered {
            continue;
        }
        for value in function.returned() {
            let text = code.fold_partly(*value);
            let sends = text.starts_with("http") || text.starts_with("Bearer ");
            // a text of a result is told where it stands
            let rows = value.start_position().row..=value.end_position().row;
            if !sends && !told.iter().any(|row| rows.contains(row)) && shows(code, *value, &want, 0) {
                told.push(*rows.start());
                code.add(findings, &RESULT, *value, message);
            }
        }
    }
}

#[cfg(test)]
mod tests;
