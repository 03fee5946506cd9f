//! Session hijacking: ids that can be guessed or chosen, sessions that belong to nobody, ids that stand in for a login.

use regex::Regex;
use std::sync::LazyLock;
use tree_sitter::Node;

use super::code::{Code, Through, last};
use super::http::{self, incoming_session};
use super::{Findings, Rule, Severity};

const PREDICTABLE: Rule = Rule {
    id: "session-predictable-id",
    class: "session-hijacking",
    severity: Severity::Error,
    impact: "whoever guesses the id of a session uses it: reads its stream, calls its tools as somebody else",
    fix: "make ids from a secure random source (crypto.randomUUID, secrets.token_urlsafe, uuid4)",
};
const UNBOUND: Rule = Rule {
    id: "session-not-bound",
    class: "session-hijacking",
    severity: Severity::Error,
    impact: "anybody who is logged in can use the session of somebody else, with its id alone",
    fix: "keep who opened the session with it, and compare that with who asks, at each request",
};
const AS_LOGIN: Rule = Rule {
    id: "session-as-authentication",
    class: "session-hijacking",
    severity: Severity::Error,
    impact: "who has a session's id, from a log or an address, needs no credential any more",
    fix: "check the credential at each request; a session's id says which state, not who",
};
const CHOSEN: Rule = Rule {
    id: "session-chosen-by-caller",
    class: "session-hijacking",
    severity: Severity::Error,
    impact: "an attacker gives a victim an id that they know, and then shares the victim's session",
    fix: "make the id on the server; refuse ids that the server did not give out",
};
const IN_URL: Rule = Rule {
    id: "session-in-url",
    class: "session-hijacking",
    severity: Severity::Warning,
    impact: "addresses stay in histories, proxies' logs and Referer headers, and the session with them",
    fix: "carry the id in a header or a cookie that scripts cannot read",
};

pub(super) const RULES: &[&Rule] = &[&PREDICTABLE, &UNBOUND, &AS_LOGIN, &CHOSEN, &IN_URL];

static ID: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^(?:\w*[._-])?(?:\w*session_?-?(?:id|key|token)(?:_?generator)?|sid|mcp-session-id|x-session-id)$")
        .ok()
});
static MAKER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^_*(?:generate|create|new|make|next|gen|get|build)_?(?:\w*_)?\w*session_?(?:id|key|token)?$|^_*session_?id_?(?:generator|factory)$").ok()
});
static PRINCIPAL: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"user|owner|\bsub\b|subject|principal|client_?id|tenant|account|auth|token|identity|email|api_?key|fingerprint").ok()
});

/// Words of code that knows callers apart.
const IDENTIFIES: &[&str] = &[
    "req.user",
    "req.auth",
    "any).user",
    "any).auth",
    ".user =",
    "request.state.user",
    "request.user",
    "current_user",
    "currentuser",
    "jwt",
    "verify_token",
    "verifytoken",
    "verifyaccesstoken",
    "verify_access_token",
    "requirebearerauth",
    "userid",
    "user_id",
    "principal",
    "authinfo",
    "auth_info",
    "passport",
    "tenant",
    "validate_token",
    "validatetoken",
    "user =",
    "user:",
    "subject",
    "clientid",
];

fn is(regex: &LazyLock<Option<Regex>>, text: &str) -> bool {
    regex.as_ref().is_some_and(|regex| regex.is_match(text))
}

pub(super) fn check(code: &Code<'_>, findings: &mut Findings) {
    if !code.mentions(&["session", "sid"]) {
        return;
    }
    if http::serves(code) || http::is_mcp(code) && code.file.name().to_lowercase().contains("session") {
        predictable(code, findings);
    }
    if !code.mentions(&["session"]) || !http::serves(code) {
        return;
    }
    let chosen = chosen(code, findings);
    if http::authenticates(code) {
        let login = as_login(code, findings);
        // one key for everybody makes one caller of them: there is nobody else's session
        if code.mentions(IDENTIFIES) {
            unbound(code, &chosen, &login, findings);
        }
    }
    in_url(code, findings);
}

/// Sources that others can guess.
fn weak(path: &str) -> bool {
    let path = path.trim_start_matches("new ");
    if strong(path) {
        return false;
    }
    let python =
        ["randint()", "random()", "choice()", "choices()", "randrange()", "getrandbits()", "sample()", "uniform()"];
    if let Some(name) = path.strip_prefix("random.") {
        return python.contains(&name);
    }
    matches!(
        path,
        "math.random()"
            | "date.now()"
            | "date()"
            | "new date()"
            | "time.time()"
            | "time.time_ns()"
            | "time.monotonic()"
            | "time()"
            | "time_ns()"
            | "datetime.now()"
            | "datetime.utcnow()"
            | "datetime.datetime.now()"
            | "datetime.datetime.utcnow()"
            | "performance.now()"
            | "process.hrtime()"
            | "process.hrtime.bigint()"
            | "process.pid"
            | "os.getpid()"
            | "time.now()"
            | "uuid.uuid1()"
            | "uuid1()"
            | "uuidv1()"
            | "uuid.v1()"
            | "randint()"
            | "rand.int()"
            | "rand.intn()"
            | "rand.int63()"
            | "rand.int31n()"
            | "rand.uint64()"
            | "rand.uint32()"
            | "itertools.count()"
            | "len()"
    ) || counter(path)
}

fn counter(path: &str) -> bool {
    let name = last(path).trim_end_matches("[]");
    let name = name.trim_start_matches('_');
    let counts = [
        "counter",
        "nextid",
        "next_id",
        "sequence",
        "seq",
        "lastid",
        "last_id",
        "sessioncount",
        "session_count",
        "sessioncounter",
        "session_counter",
        "nextsessionid",
        "next_session_id",
        "idcounter",
        "id_counter",
    ];
    !path.starts_with("param.")
        && !path.ends_with("()")
        && (counts.contains(&name)
            || matches!(name, "size" | "length") && (path.contains("session") || path.contains("transport")))
}

fn strong(path: &str) -> bool {
    [
        "uuid4",
        "uuidv4",
        "uuid.v4",
        "randomuuid",
        "randombytes",
        "getrandomvalues",
        "secrets.",
        "token_hex",
        "token_urlsafe",
        "urandom",
        "systemrandom",
        "nanoid",
        "crypto.",
        "cuid",
        "ulid",
        "uuid.new",
        "rand.read",
        "rand.text",
        "randomfillsync",
        "random_bytes",
        "uuid7",
        "uuidv7",
        "webcrypto",
    ]
    .iter()
    .any(|word| path.contains(word))
        && !path.contains("createhash")
}

fn predictable(code: &Code<'_>, findings: &mut Findings) {
    let mut told: Vec<usize> = Vec::new();
    let mut places = Vec::new();
    for set in &code.sets {
        if is(&ID, &code.path(set.target)) {
            places.push(set.value);
        }
    }
    for pair in code.pairs.iter().filter(|pair| is(&ID, &pair.key)) {
        places.push(pair.value);
    }
    for call in &code.calls {
        if matches!(last(&call.path), "setheader" | "set" | "header" | "append")
            && let [name, value, ..] = call.args.as_slice()
            && code.literal(*name).is_some_and(|name| is(&ID, &name.to_lowercase()))
        {
            places.push(*value);
        }
    }
    for function in code.functions.iter().filter(|f| is(&MAKER, &f.name.to_lowercase())) {
        places.push(function.node);
    }
    for value in places {
        let Some(source) = code.trace(value, Through::Calls, &weak) else { continue };
        if code.traces(value, Through::Calls, &strong) || told.contains(&source.start_position().row) {
            continue;
        }
        told.push(source.start_position().row);
        let what = code.path(source);
        code.add(
            findings,
            &PREDICTABLE,
            source,
            format!("a session's id is made from `{what}`, which others can guess"),
        );
    }
    // one id for everybody
    for pair in code.pairs.iter().filter(|pair| pair.key == "sessionidgenerator") {
        let Some(function) = code.functions.iter().find(|f| f.node.id() == pair.value.id()) else { continue };
        let Some(body) = function.body else { continue };
        if let Some(id) = code.fold(body) {
            let shown: String = id.chars().take(40).collect();
            code.add(findings, &PREDICTABLE, pair.node, format!("every session has the same id, '{shown}'"));
        }
    }
}

/// Ids that callers choose: offered with a fallback, or stored as they came. Gives the lines that were told.
fn chosen(code: &Code<'_>, findings: &mut Findings) -> Vec<usize> {
    let mut told = Vec::new();
    let makes = |path: &str| strong(path) || weak(path) || is(&MAKER, last(path));
    for set in &code.sets {
        if !is(&ID, &code.path(set.target)) {
            continue;
        }
        let value = Code::bare_expr(set.value);
        let (given, fallback) = match value.kind() {
            "binary_expression" | "boolean_operator" => {
                let operator = value.child_by_field_name("operator").map_or("", |op| code.text(op));
                if !matches!(operator, "||" | "??" | "or") {
                    continue;
                }
                (value.child_by_field_name("left"), value.child_by_field_name("right"))
            }
            "call" => {
                let args = value.child_by_field_name("arguments");
                (Some(value), args.and_then(|args| args.named_child(1)))
            }
            "ternary_expression" => {
                (value.child_by_field_name("consequence"), value.child_by_field_name("alternative"))
            }
            "conditional_expression" => (value.named_child(0), value.named_child(2)),
            _ => continue,
        };
        let (Some(given), Some(fallback)) = (given, fallback) else { continue };
        if code.traces(given, Through::Text, &incoming_session) && code.traces(fallback, Through::Calls, &makes) {
            told.push(set.node.start_position().row);
            code.add(findings, &CHOSEN, set.node, "a new session takes the id that the caller sends");
        }
    }
    for pair in code.pairs.iter().filter(|pair| pair.key == "sessionidgenerator") {
        if code.traces(pair.value, Through::Text, &incoming_session)
            && !code.traces(pair.value, Through::Calls, &strong)
        {
            told.push(pair.node.start_position().row);
            code.add(findings, &CHOSEN, pair.node, "a new session takes the id that the caller sends");
        }
    }
    for (node, map, key, value) in stores(code) {
        let names = ["session", "transport", "connection"];
        if !names.iter().any(|name| code.path(map).contains(name)) {
            continue;
        }
        let comes = code.traces(key, Through::Text, &incoming_session);
        if !comes || code.traces(key, Through::Calls, &makes) || refused_before(code, node, key) {
            continue;
        }
        // an entry that is written again, from what it was
        let reads_itself = code.traces(value, Through::Calls, &|path| {
            path.starts_with(&code.path(map)) && path.len() > code.path(map).len()
        });
        if !reads_itself && code.bare_of(value) != "null" && code.bare_of(value) != "none" {
            told.push(node.start_position().row);
            code.add(findings, &CHOSEN, node, "a session is stored under the id that the caller sends");
        }
    }
    told
}

/// `map[key] = value` and `map.set(key, value)`: the statement, map, key, value.
fn stores<'t>(code: &Code<'t>) -> Vec<(Node<'t>, Node<'t>, Node<'t>, Node<'t>)> {
    let mut found = Vec::new();
    for set in code
        .sets
        .iter()
        .filter(|set| matches!(set.target.kind(), "subscript_expression" | "subscript" | "index_expression"))
    {
        let map = ["object", "value", "operand"].iter().find_map(|name| set.target.child_by_field_name(name));
        let key = ["index", "subscript"].iter().find_map(|name| set.target.child_by_field_name(name));
        if let (Some(map), Some(key)) = (map, key) {
            found.push((set.node, map, key, set.value));
        }
    }
    for call in code.calls.iter().filter(|call| last(&call.path) == "set" && call.args.len() == 2) {
        let map = call.node.child_by_field_name("function").and_then(|callee| callee.child_by_field_name("object"));
        if let (Some(map), [key, value]) = (map, call.args.as_slice()) {
            found.push((call.node, map, *key, *value));
        }
    }
    found
}

/// Whether ids that are not known were refused before: `if (!sessions.has(id)) return …`.
fn refused_before(code: &Code<'_>, node: Node<'_>, key: Node<'_>) -> bool {
    let function = code.function_at(node);
    let name = code.bare_of(key);
    code.branches.iter().any(|branch| {
        let test = code.bare_of(branch.test);
        branch.node.start_byte() < node.start_byte()
            && code.function_at(branch.node) == function
            && test.contains(name)
            && (test.contains('!') || test.contains("not ") || test.contains("is none"))
            && branch.then.is_some_and(|then| {
                let then_text = code.bare_of(then);
                then.end_byte() < node.start_byte()
                    && (then_text.contains("return") || then_text.contains("raise") || then_text.contains("throw"))
            })
            && (test.contains("has(") || test.contains(" in ") || test.contains('[') || test.contains("get("))
    })
}

/// Reads of a session by the id that came in.
fn lookups<'t>(code: &Code<'t>) -> Vec<(Node<'t>, Node<'t>)> {
    let holds = |map: Node<'t>| {
        let path = code.path(map);
        let name = last(&path);
        ["session", "transport", "connection", "client", "server", "state", "store"]
            .iter()
            .any(|word| name.contains(word))
    };
    let mut found = Vec::new();
    for call in &code.calls {
        let verb = last(&call.path);
        let Some(key) = call.args.first() else { continue };
        if matches!(
            verb,
            "get" | "load" | "find" | "get_session" | "getsession" | "lookup" | "loadsession" | "fetch" | "get_by_id"
        ) && let Some(callee) = call.node.child_by_field_name("function")
            && let Some(map) = ["object", "operand"].iter().find_map(|name| callee.child_by_field_name(name))
            && (holds(map) || verb.contains("session"))
            && call.args.len() == 1
            && code.traces(*key, Through::Text, &incoming_session)
        {
            found.push((call.node, *key));
        }
    }
    // subscripts are not collected: they are found where they are used, as values of names, arguments and tests
    let mut stack = vec![code.root];
    let mut steps = 200_000;
    while let Some(node) = stack.pop() {
        steps -= 1;
        if steps == 0 {
            break;
        }
        if matches!(node.kind(), "subscript_expression" | "subscript" | "index_expression") {
            let map = ["object", "value", "operand"].iter().find_map(|name| node.child_by_field_name(name));
            let key = ["index", "subscript"].iter().find_map(|name| node.child_by_field_name(name));
            let written = node.parent().is_some_and(|parent| {
                matches!(parent.kind(), "assignment" | "assignment_expression" | "delete_statement")
                    && parent.child_by_field_name("left").is_some_and(|left| left.id() == node.id())
                    || parent.kind() == "unary_expression"
                    || parent.kind() == "delete_statement"
            });
            if let (Some(map), Some(key)) = (map, key)
                && !written
                && holds(map)
                && code.literal(key).is_none()
                && code.traces(key, Through::Text, &incoming_session)
            {
                found.push((node, key));
            }
        }
        let mut cursor = node.walk();
        stack.extend(node.named_children(&mut cursor));
    }
    found.sort_by_key(|(node, _)| node.start_byte());
    found
}

fn compares_principal(code: &Code<'_>, node: Node<'_>, depth: usize) -> bool {
    let text = code.bare_of(node);
    static COMPARES: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r#"([\w.\[\]"'?!()-]+)\s*(?:===|!==|==|!=|\bis not\b)\s*([\w.\[\]"'?!()-]+)"#).ok()
    });
    let compared = COMPARES.as_ref().is_some_and(|regex| {
        regex.captures_iter(text).any(|found| {
            let (left, right) = (found.get(1).map_or("", |m| m.as_str()), found.get(2).map_or("", |m| m.as_str()));
            let value = |side: &str| {
                !matches!(side, "null" | "undefined" | "none" | "true" | "false" | "nil" | "''" | "\"\"")
                    && !side.starts_with(['"', '\''])
                    && !side.starts_with(|c: char| c.is_ascii_digit())
            };
            value(left) && value(right) && is(&PRINCIPAL, left) && is(&PRINCIPAL, right)
        })
    });
    if compared || text.contains("timingsafeequal(") || text.contains("compare_digest(") && text.contains("owner") {
        return true;
    }
    // a function of its own that is asked about the session and who asks
    let asks = [
        "assertowner",
        "check_owner",
        "checkowner",
        "verify_owner",
        "verifyowner",
        "belongs",
        "isowner",
        "is_owner",
        "owns",
        "ensureowner",
        "ensure_owner",
        "same_principal",
        "sameprincipal",
        "authorize_session",
        "authorizesession",
        "bound_to",
        "boundto",
        "validate_session_owner",
    ];
    if asks.iter().any(|word| text.contains(word)) {
        return true;
    }
    depth < 2
        && code.calls_in(node).any(|call| {
            let name = code.text(call.node.child_by_field_name("function").unwrap_or(call.node));
            let name = name.rsplit('.').next().unwrap_or_default();
            code.named(name).any(|f| f.node.id() != node.id() && compares_principal(code, f.node, depth + 1))
        })
}

/// `told` are lines, `login` functions that have been told already.
fn unbound(code: &Code<'_>, told: &[usize], login: &[usize], findings: &mut Findings) {
    let mut done = login.to_vec();
    let all = lookups(code);
    for (node, key) in &all {
        let function = code.function_at(*node);
        if function == 0 || done.contains(&function) {
            continue;
        }
        let Some(body) = code.functions.get(function).map(|f| f.node) else { continue };
        // the read that gives the session is told, before one that only asks whether it is there
        let gives = |node: &Node<'_>| {
            let mut at = node.parent();
            while let Some(parent) = at {
                match parent.kind() {
                    "variable_declarator"
                    | "assignment"
                    | "assignment_expression"
                    | "return_statement"
                    | "short_var_declaration"
                    | "arguments"
                    | "argument_list" => return true,
                    "if_statement" | "statement_block" | "block" | "parenthesized_expression" => return false,
                    _ => at = parent.parent(),
                }
            }
            false
        };
        let same = || all.iter().filter(|(other, _)| code.function_at(*other) == function);
        let best = same().find(|(node, _)| gives(node)).map_or(*node, |(node, _)| *node);
        done.push(function);
        let keyed = code.traces(*key, Through::Calls, &|path| is(&PRINCIPAL, last(path)) && !incoming_session(path));
        let by_whom = code.bare_of(*node).split(['[', '(']).skip(1).any(|part| {
            part.contains("user") || part.contains("owner") || part.contains("principal") || part.contains("tenant")
        });
        if keyed || by_whom || compares_principal(code, body, 0) || told.contains(&best.start_position().row) {
            continue;
        }
        code.add(findings, &UNBOUND, best, "a session is found by its id, and nobody asks whose it is");
    }
}

fn as_login(code: &Code<'_>, findings: &mut Findings) -> Vec<usize> {
    let mut told = Vec::new();
    static ASKS: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r"auth|verify|protect|guard|require|middleware|dispatch|check_?(?:access|token|login|permission)|logged|current_?user|permitted|allowed").ok()
    });
    for branch in &code.branches {
        let function = code.function_at(branch.node);
        let mut names = code.outward(function).map(|f| f.name.to_lowercase());
        if !names.any(|name| is(&ASKS, &name)) {
            continue;
        }
        let test = code.bare_of(branch.test);
        let asks = test.contains("session")
            && (test.contains(".has(")
                || test.contains(" in ")
                || test.contains('[')
                || test.contains(".get(")
                || test.contains("session)")
                || test.trim_matches(['(', ')']).ends_with("session"))
            && !test.contains("not in")
            && !test.contains('!')
            && !test.starts_with("not ");
        let unsure = ["verify", "token", "authorization", "user", "owner", "expire", "signature"]
            .iter()
            .any(|word| test.contains(word));
        if !asks || unsure {
            continue;
        }
        let Some(then) = branch.then.map(|then| code.bare_of(then)) else { continue };
        let lets_in = [
            "next()",
            "return true",
            "call_next(",
            "return next",
            "return session",
            "authenticated = true",
            "isauthenticated = true",
            "nexthandler",
            "self.app(",
            ".user = ",
            ".user=",
            "servehttp(",
        ]
        .iter()
        .any(|word| then.contains(word));
        let checks = ["verify", "jwt", "compare_digest", "timingsafeequal", "owner", "userid !==", "user_id !="]
            .iter()
            .any(|word| then.contains(word));
        if lets_in && !checks && about_session(code, branch.test) {
            told.push(function);
            code.add(findings, &AS_LOGIN, branch.node, "a session's id is taken for a login");
        }
    }
    told
}

/// Whether a test is about a session's id that came in with the request.
fn about_session(code: &Code<'_>, test: Node<'_>) -> bool {
    if code.traces(test, Through::Calls, &incoming_session) {
        return true;
    }
    // comparisons and lookups end a trace: the names in them are looked at
    let mut stack = vec![test];
    while let Some(node) = stack.pop() {
        if node.kind() == "identifier" && code.traces(node, Through::Text, &incoming_session) {
            return true;
        }
        let mut cursor = node.walk();
        stack.extend(node.named_children(&mut cursor));
    }
    false
}

fn in_url(code: &Code<'_>, findings: &mut Findings) {
    let keys = ["session_token=", "sessiontoken=", "session_id=", "sessionid=", "auth_session="];
    for call in code.calls.iter().filter(|call| matches!(last(&call.path), "redirect" | "redirectresponse")) {
        let text = call.args.iter().map(|arg| code.fold_partly(*arg).to_lowercase()).collect::<String>();
        if keys.iter().any(|key| text.contains(key)) {
            code.add(findings, &IN_URL, call.node, "a session's id is put into an address");
        }
    }
    for pair in code.pairs.iter() {
        let wanted = matches!(pair.key.as_str(), "token" | "user" | "userid" | "user_id" | "authenticated");
        if wanted
            && code.traces(pair.value, Through::Text, &|path| {
                http::incoming(path, &["session_token", "sessiontoken"]) && path.contains("query")
            })
        {
            code.add(findings, &IN_URL, pair.node, "a session's token is taken from the address");
        }
    }
}

#[cfg(test)]
mod tests;
