//! Rug pull: tools that are not what they were when somebody looked at them. Descriptions and behaviour that change by
//! count, time, environment, or by what another server sends.

use std::sync::LazyLock;

use regex::Regex;
use tree_sitter::Node;

use super::code::{Call, Code, Function, Through, last};
use super::http;
use super::{Findings, Rule, Severity};

const DESCRIPTION: Rule = Rule {
    id: "rug-description-changes",
    class: "rug-pull",
    severity: Severity::Error,
    impact: "what was read and allowed once is not what models read later",
    fix: "keep names, descriptions and schemas as they are while the server runs; publish a version for a change",
};
const BEHAVIOUR: Rule = Rule {
    id: "rug-behaviour-changes",
    class: "rug-pull",
    severity: Severity::Error,
    impact: "the tool behaves while it is tried out, and does something else afterwards",
    fix: "do the same at every call, whatever the count and the date",
};
const REMOTE_TEXT: Rule = Rule {
    id: "rug-remote-description",
    class: "rug-pull",
    severity: Severity::Error,
    impact: "whoever runs the other server decides at any time what models read here",
    fix: "keep descriptions in the source",
};
const REMOTE_CODE: Rule = Rule {
    id: "rug-remote-code",
    class: "rug-pull",
    severity: Severity::Block,
    impact: "whoever runs the other server, or stands in between, runs code of their own here",
    fix: "ship the code with the server, as a dependency with a fixed version and checksum",
};

pub(super) const RULES: &[&Rule] = &[&DESCRIPTION, &BEHAVIOUR, &REMOTE_TEXT, &REMOTE_CODE];

pub(super) fn check(code: &Code<'_>, findings: &mut Findings) {
    remote_code(code, findings);
    if !http::is_mcp(code) && !code.mentions(&["tool"]) {
        return;
    }
    descriptions(code, findings);
    behaviour(code, findings);
    remote_text(code, findings);
}

static COUNT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r#"\b\w*(?:call_?count|calls_?made|calls?_?counter|invocations?(?:_?counts?)?|invocation_?counter|usage_?count|use_?count|times_?called|executions?_?count|num_?calls|\bcalls|\bcounter|\bcount|request_?count|tool_?calls)\b[\w.\[\]"'()]*\s*(?:>=|>|<=|<|===|==|%)\s*\w+"#).ok()
});
static DATE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r#"(?:datetime\.(?:datetime\.)?(?:now|utcnow|today)\([^)]*\)|date\.today\(\)|new date\(\)|date\.now\(\)|time\.time\(\)|time\.now\(\))(?:\.\w+(?:\(\))?)?\s*(?:>=|>|<=|<|===|==)\s*(?:new date\(|datetime|date\(|\d{2,}|[a-z_]*(?:trigger|activat|release|expir|deadline|cutoff|switch|swap|date|start|threshold)\w*)|\.(?:weekday|gethours|getday|getdate|getutchours)\(\)|\.(?:hour|month|minute)\s*(?:>=|>|<=|<|==)"#).ok()
});
static FLAG: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"\b\w*(?:triggered|activated|rugged|rug_?pull\w*|swapped|poisoned|mutated|armed|malicious\w*|payload_?active|approved|trusted|compromised)\b|math\.random\(\)|random\.random\(\)").ok()
});

/// What a condition depends on that changes by itself.
fn volatile(code: &Code<'_>, test: Node<'_>) -> Option<&'static str> {
    let text = code.bare_of(test);
    let is = |regex: &LazyLock<Option<Regex>>| regex.as_ref().is_some_and(|regex| regex.is_match(text));
    let limits = [
        "retry", "retries", "attempt", "rate", "limit", "max_", "error", "fail", "len(", ".length", "ttl", "cache",
        "timeout",
    ];
    if is(&COUNT) && !limits.iter().any(|word| text.contains(word)) {
        return Some("the number of calls");
    }
    if is(&DATE) && !text.contains("expires") && !text.contains("ttl") && !text.contains("cache") {
        return Some("the date");
    }
    is(&FLAG).then_some("a hidden state")
}

/// The innermost branch around a node that depends on something volatile, within its function and those around.
fn volatile_branch<'c, 't>(code: &'c Code<'t>, node: Node<'_>) -> Option<(&'c super::code::Branch<'t>, &'static str)> {
    let at = node.start_byte();
    let inside = |part: Option<Node<'_>>| part.is_some_and(|part| part.byte_range().contains(&at));
    code.branches
        .iter()
        .rev()
        .filter(|branch| inside(branch.then) || inside(branch.other))
        .find_map(|branch| Some((branch, volatile(code, branch.test)?)))
}

fn is_tool(code: &Code<'_>, function: &Function<'_>) -> bool {
    let decorated = function.decorators.iter().any(|decorator| {
        let text = code.bare_of(*decorator);
        ["tool", "prompt", "resource"].iter().any(|word| text.contains(word))
    });
    decorated
        || function.name.to_lowercase().ends_with("_tool")
        || code.call_around(function.node).is_some_and(|call| {
            matches!(
                last(&call.path),
                "tool" | "registertool" | "addtool" | "add_tool" | "setrequesthandler" | "definetool"
            )
        })
}

fn in_tool(code: &Code<'_>, node: Node<'_>) -> bool {
    code.outward(code.function_at(node)).any(|function| is_tool(code, function))
}

/// Whether a pair belongs to what defines a tool, and not to data with the same key.
fn defines_tool(code: &Code<'_>, pair: Node<'_>) -> bool {
    let schema = |node: Node<'_>| {
        code.pairs_in(node).any(|pair| {
            matches!(pair.key.as_str(), "inputschema" | "input_schema" | "handler" | "parameters" | "execute")
        })
    };
    let object = pair.parent().filter(|parent| matches!(parent.kind(), "object" | "dictionary" | "argument_list"));
    if object.is_some_and(schema) {
        return true;
    }
    code.call_around(pair).is_some_and(|call| {
        matches!(
            last(&call.path),
            "tool"
                | "registertool"
                | "addtool"
                | "add_tool"
                | "types.tool"
                | "fastmcp"
                | "prompt"
                | "definetool"
                | "from_function"
        ) || call.path == "new mcpserver"
            || call.path.ends_with("types.tool")
            || call.path == "tool"
    })
}

fn descriptions(code: &Code<'_>, findings: &mut Findings) {
    let mut told = Vec::new();
    let mut tell = |node: Node<'_>, why: &str, findings: &mut Findings| {
        let row = node.start_position().row;
        if !told.contains(&row) {
            told.push(row);
            code.add(findings, &DESCRIPTION, node, format!("what models read about a tool changes with {why}"));
        }
    };
    for set in &code.sets {
        let target = code.path(set.target);
        let (object, name) = target.rsplit_once('.').unwrap_or(("", &target));
        if !matches!(name, "description" | "__doc__" | "inputschema" | "input_schema" | "title") || object.is_empty() {
            continue;
        }
        let function = code.function_at(set.node);
        if function == 0 {
            continue;
        }
        let maker = code.functions.get(function).is_some_and(|f| matches!(f.name, "__init__" | "constructor"));
        let about_tool = name == "__doc__"
            || object.contains("tool")
            || code.functions.iter().any(|f| f.name.eq_ignore_ascii_case(object) && is_tool(code, f));
        match volatile_branch(code, set.node) {
            Some((_, why)) if about_tool || object.contains("self") || object.contains("this") => {
                tell(set.node, why, findings)
            }
            None if about_tool && in_tool(code, set.node) && !maker => tell(set.node, "its calls", findings),
            _ => {}
        }
    }
    for pair in code.pairs.iter().filter(|pair| matches!(pair.key.as_str(), "description" | "tools" | "inputschema")) {
        let mut value = Code::bare_expr(pair.value);
        if value.kind() == "identifier" {
            value = code.only_value(value).map_or(value, Code::bare_expr);
        }
        let test = match value.kind() {
            "ternary_expression" => value.child_by_field_name("condition"),
            "conditional_expression" => value.named_child(1),
            _ => None,
        };
        if let Some(why) = test.and_then(|test| volatile(code, test)) {
            tell(value, why, findings);
        }
    }
    for call in &code.calls {
        let name = last(&call.path);
        let updates = name == "update"
            && code.pairs_in(call.node).any(|pair| matches!(pair.key.as_str(), "description" | "paramsschema"));
        let registers = call.path.contains('.')
            && matches!(
                name,
                "tool" | "registertool" | "addtool" | "add_tool" | "remove_tool" | "removetool" | "addsessiontool"
            );
        if !(updates || registers) {
            continue;
        }
        match volatile_branch(code, call.node) {
            Some((_, why)) => tell(call.node, why, findings),
            None if updates && in_tool(code, call.node) => tell(call.node, "its calls", findings),
            None => {}
        }
    }
    // the answer to tools/list itself
    for branch in &code.branches {
        let lists = code.outward(code.function_at(branch.node)).any(|function| {
            let name = function.name.to_lowercase();
            let decorated = function.decorators.iter().any(|decorator| code.bare_of(*decorator).contains("list_tools"));
            let handler = code.call_around(function.node).is_some_and(|call| {
                call.args.first().is_some_and(|first| {
                    code.bare_of(*first).contains("listtools") || code.bare_of(*first).contains("tools/list")
                })
            });
            decorated
                || handler
                || matches!(name.as_str(), "list_tools" | "listtools" | "handle_list_tools" | "gettools" | "get_tools")
        });
        if lists && let Some(why) = volatile(code, branch.test) {
            tell(branch.node, why, findings);
        }
    }
}

/// Things that a tool that was harmless so far had no reason for.
const DOES_HARM: &[&str] = &[
    "subprocess",
    "os.system",
    "popen",
    "exec(",
    "execsync",
    "spawn(",
    "eval(",
    "requests.post",
    "requests.get",
    "httpx.",
    "urlopen",
    "fetch(",
    "axios",
    "open(",
    "readfile",
    "read_text",
    "os.environ",
    "process.env",
    "unlink",
    "rmtree",
    "os.remove",
    ".ssh",
    "malicious",
    "exfil",
    "payload",
];

fn behaviour(code: &Code<'_>, findings: &mut Findings) {
    for branch in &code.branches {
        if !in_tool(code, branch.node) {
            continue;
        }
        let Some(why) = volatile(code, branch.test) else { continue };
        let part = |node: Option<Node<'_>>| node.map(|node| code.bare_of(node).to_owned()).unwrap_or_default();
        let rest = match branch.other {
            // `if calls < 3: return …`, and the rest of the function is what comes later
            None if part(branch.then).contains("return") => {
                let end = code.functions.get(code.function_at(branch.node)).map_or(0, |f| f.node.end_byte());
                code.bare().get(branch.node.end_byte()..end).unwrap_or_default().to_owned()
            }
            other => part(other),
        };
        let refuses =
            |text: &str| ["raise ", "throw ", "rate limit", "too many", "quota"].iter().any(|word| text.contains(word));
        let harm = |text: &str| DOES_HARM.iter().any(|word| text.contains(word)) && !refuses(text);
        let (then, one_sided) = (part(branch.then), harm(&part(branch.then)) != harm(&rest));
        let described = code.bare_of(branch.node).contains(".description") || then.contains("__doc__");
        if one_sided && !described {
            code.add(findings, &BEHAVIOUR, branch.node, format!("what the tool does depends on {why}"));
        }
    }
}

/// An answer of another server.
fn fetched(path: &str) -> bool {
    let starts = [
        "fetch()",
        "requests.get()",
        "requests.post()",
        "requests.request()",
        "httpx.get()",
        "httpx.post()",
        "axios.get()",
        "axios()",
        "got()",
        "got.get()",
        "urlopen()",
        "urllib.request.urlopen()",
        "request.urlopen()",
        "http.get()",
        "https.get()",
        "client.get()",
        "session.get()",
        "axios.request()",
        "ky.get()",
        "http_client.get()",
    ];
    starts.iter().any(|start| path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

fn remote_text(code: &Code<'_>, findings: &mut Findings) {
    let mut told = Vec::new();
    let mut places: Vec<(Node<'_>, Node<'_>)> = Vec::new();
    for pair in code.pairs.iter().filter(|pair| matches!(pair.key.as_str(), "description" | "instructions")) {
        if defines_tool(code, pair.node) {
            places.push((pair.node, pair.value));
        }
    }
    for set in &code.sets {
        let target = code.path(set.target);
        if last(&target) == "__doc__" || target.contains("tool") && target.ends_with(".description") {
            places.push((set.node, set.value));
        }
    }
    for call in code.calls.iter().filter(|call| matches!(last(&call.path), "tool" | "addtool" | "add_tool")) {
        if let Some(second) =
            call.args.get(1).filter(|arg| !matches!(arg.kind(), "object" | "arrow_function" | "string"))
        {
            places.push((*second, *second));
        }
    }
    for (node, value) in places {
        let row = node.start_position().row;
        if !told.contains(&row) && code.traces(value, Through::Calls, &fetched) {
            told.push(row);
            code.add(
                findings,
                &REMOTE_TEXT,
                node,
                "what models read about a tool comes from another server at run time",
            );
        }
    }
}

fn runs(call: &Call<'_>) -> bool {
    matches!(
        call.path.as_str(),
        "exec"
            | "eval"
            | "new function"
            | "function"
            | "vm.runinthiscontext"
            | "vm.runinnewcontext"
            | "vm.runincontext"
            | "new vm.script"
            | "import"
            | "builtins.exec"
            | "compile"
            | "indirecteval"
            | "types.functiontype"
            | "pickle.loads"
            | "marshal.loads"
            | "requirefromstring"
    )
}

fn remote_code(code: &Code<'_>, findings: &mut Findings) {
    for call in code.calls.iter().filter(|call| runs(call)) {
        let Some(what) = call.args.last() else { continue };
        let remote_module = call.path == "import" && code.fold_partly(*what).starts_with("http");
        if remote_module || code.traces(*what, Through::Calls, &fetched) {
            code.add(findings, &REMOTE_CODE, call.node, "code that another server sends is run");
        }
    }
}

#[cfg(test)]
mod tests;
