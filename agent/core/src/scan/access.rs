//! Missing authorization: routes that forgot the check that others have, roles that the caller claims; and rights that
//! are wider than any server needs.

use tree_sitter::Node;

use super::code::{Code, Function, Lang, last};
use super::http::{self, Route};
use super::{File, Findings, Rule, Severity, line_at};

const OPEN_ROUTE: Rule = Rule {
    id: "route-without-authentication",
    class: "missing-authorization",
    severity: Severity::Error,
    impact: "what the other routes protect is open through this one",
    fix: "put the same check before this route as before the others, or one before all of them",
};
const CLAIMED: Rule = Rule {
    id: "role-claimed-by-caller",
    class: "missing-authorization",
    severity: Severity::Error,
    impact: "whoever says that they are an administrator is one",
    fix: "take user and role from the checked credential, never from an argument",
};
const WORLD: Rule = Rule {
    id: "file-world-writable",
    class: "over-broad-permissions",
    severity: Severity::Warning,
    impact: "every process of the machine can change the file, and what runs from it",
    fix: "0600 for data, 0700 for folders, 0755 for programs",
};
const SCOPES: Rule = Rule {
    id: "scopes-too-broad",
    class: "over-broad-permissions",
    severity: Severity::Warning,
    impact: "a token that leaks, or a model that is talked into it, can do everything that the account can",
    fix: "ask for the scopes that the tools need, read-only where they only read",
};
const ENGINE: Rule = Rule {
    id: "container-escape-rights",
    class: "over-broad-permissions",
    severity: Severity::Error,
    impact: "the container can take over the host",
    fix: "no privileged mode, no socket of the engine, no root folder of the host; add single capabilities where needed",
};

pub(super) const RULES: &[&Rule] = &[&OPEN_ROUTE, &CLAIMED, &WORLD, &SCOPES, &ENGINE];

pub(super) fn check(code: &Code<'_>, findings: &mut Findings) {
    routes(code, findings);
    claimed(code, findings);
    permissions(code, findings);
}

/// Words of what stands before a route to check who asks.
fn guards(text: &str) -> bool {
    [
        "auth",
        "verify",
        "protect",
        "guard",
        "jwt",
        "currentuser",
        "current_user",
        "login",
        "apikey",
        "api_key",
        "permission",
        "token",
        "ensureuser",
        "session_required",
    ]
    .iter()
    .any(|word| text.contains(word))
}

fn guarded(code: &Code<'_>, route: &Route<'_>) -> bool {
    let before = route.handlers.iter().rev().skip(1).any(|handler| guards(code.bare_of(*handler)));
    let options = code.bare_of(route.node);
    let options = options.contains("prehandler")
        || options.contains("dependencies=") && guards(options)
        || options.contains("onrequest");
    if before || options {
        return true;
    }
    let Some(handler) = route.handlers.last() else { return false };
    let body = http::body_of(code, *handler);
    let function = code.functions.iter().find(|f| f.node.id() == body.id());
    let params = function.map(|f| params_text(code, f)).unwrap_or_default();
    let decorated = function.is_some_and(|f| {
        f.decorators.iter().any(|d| {
            d.byte_range() != route.node.byte_range()
                && !code.bare_of(*d).contains("route(")
                && guards(code.bare_of(*d))
                && !code.bare_of(*d).contains('/')
        })
    });
    if decorated || (params.contains("depends(") || params.contains("security(")) && guards(&params) {
        return true;
    }
    // the body asks by itself
    let text = code.bare_of(body);
    [
        "authorization",
        "req.user",
        "req.auth",
        "request.user",
        "request.state.user",
        "verify",
        "authenticate",
        "unauthorized",
        "401",
        "403",
        "isauth",
        "checkauth",
        "check_auth",
        "require_",
        "apikey",
        "api_key",
        "x-api-key",
        "currentuser",
        "current_user",
    ]
    .iter()
    .any(|word| text.contains(word))
}

fn params_text(code: &Code<'_>, function: &Function<'_>) -> String {
    function.node.child_by_field_name("parameters").map(|params| code.bare_of(params).to_owned()).unwrap_or_default()
}

/// Routes that are open on purpose.
fn public(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    path.is_empty()
        || [
            "health",
            "ready",
            "live",
            "ping",
            "status",
            "metrics",
            "well-known",
            "oauth",
            "login",
            "logout",
            "callback",
            "register",
            "signup",
            "token",
            "authorize",
            "favicon",
            "docs",
            "openapi",
            "static",
            "assets",
            "public",
            "version",
            "auth",
            "webhook",
            "robots",
            "signin",
            "info",
            "home",
            "about",
            "manifest",
            "consent",
            "revoke",
            "jwks",
            "password",
            "verify",
        ]
        .iter()
        .any(|word| path.contains(word))
}

fn routes(code: &Code<'_>, findings: &mut Findings) {
    if !http::serves(code) {
        return;
    }
    let all: Vec<Route<'_>> = http::routes(code).into_iter().filter(|route| route.path.len() > 1).collect();
    // a check before everything, or before a part of the tree
    let for_all = code.calls.iter().any(|call| {
        let name = last(&call.path);
        matches!(name, "use" | "add_middleware" | "addhook" | "before_request" | "middleware")
            && call.args.iter().any(|arg| guards(code.bare_of(*arg)))
    }) || code.mentions(&["before_request", "basehttpmiddleware", "@app.middleware", "dependencies=["]);
    let handled: Vec<&Route<'_>> =
        all.iter().filter(|route| !matches!(route.method.as_str(), "use" | "handle")).collect();
    if for_all || !handled.iter().any(|route| guarded_before(code, route)) {
        return;
    }
    for route in &handled {
        let same_path = handled.iter().any(|other| other.path == route.path && guarded_before(code, other));
        let changes = matches!(route.method.as_str(), "post" | "put" | "delete" | "patch" | "all");
        let private = [
            "admin", "internal", "users", "tools", "mcp", "messages", "sse", "secret", "config", "settings", "exec",
            "keys",
        ]
        .iter()
        .any(|word| route.path.contains(word));
        if (same_path || changes || private) && !public(&route.path) && !guarded(code, route) {
            code.add(
                findings,
                &OPEN_ROUTE,
                route.node,
                format!("{} is open, while other routes ask for a credential", route.path),
            );
        }
    }
}

/// Whether a route has its check in front: what makes the others' lack of it telling.
fn guarded_before(code: &Code<'_>, route: &Route<'_>) -> bool {
    if route.handlers.iter().rev().skip(1).any(|handler| guards(code.bare_of(*handler))) {
        return true;
    }
    let Some(handler) = route.handlers.last() else { return false };
    let function = code.functions.iter().find(|f| f.node.id() == handler.id());
    function.is_some_and(|f| {
        let params = params_text(code, f);
        (params.contains("depends(") || params.contains("security(")) && guards(&params)
            || f.decorators.iter().any(|d| !code.bare_of(*d).contains('/') && guards(code.bare_of(*d)))
    })
}

fn claimed(code: &Code<'_>, findings: &mut Findings) {
    for branch in &code.branches {
        let test = code.bare_of(branch.test);
        let roles = [
            "role",
            "is_admin",
            "isadmin",
            "caller_role",
            "user_role",
            "userrole",
            "privilege",
            "access_level",
            "accesslevel",
        ];
        if !roles.iter().any(|word| test.contains(word)) {
            continue;
        }
        let function = code.function_at(branch.node);
        let tool = code.outward(function).find(|f| {
            f.decorators.iter().any(|decorator| code.bare_of(*decorator).contains("tool"))
                || code
                    .call_around(f.node)
                    .is_some_and(|call| matches!(last(&call.path), "tool" | "registertool" | "addtool"))
        });
        let Some(tool) = tool else { continue };
        let params = tool.node.child_by_field_name("parameters").map(|p| code.bare_of(p)).unwrap_or_default();
        let claims = roles.iter().any(|word| {
            test.contains(word)
                && (params.contains(word)
                    || ["args", "arguments", "params", "input"].iter().any(|of| {
                        test.contains(&format!("{of}.{word}"))
                            || test.contains(&format!("{of}[\"{word}\"]"))
                            || test.contains(&format!("{of}.get(\"{word}\""))
                    }))
        });
        let admin = ["admin", "root", "superuser", "owner", "manager"].iter().any(|word| test.contains(word));
        if claims && admin {
            code.add(findings, &CLAIMED, branch.node, "the caller says by an argument what they may do");
        }
    }
}

fn permissions(code: &Code<'_>, findings: &mut Findings) {
    for call in &code.calls {
        let name = last(&call.path);
        if matches!(name, "chmod" | "chmodsync" | "fchmod" | "lchmod") {
            let mode = call.args.get(1).or_else(|| call.args.first()).map(|arg| code.bare_of(*arg)).unwrap_or_default();
            let mode = mode.trim_matches(['"', '\'']);
            if matches!(
                mode,
                "0o777" | "0777" | "0o666" | "0666" | "511" | "777" | "0o776" | "stat.s_irwxo" | "os.modeperm"
            ) || mode.contains("s_irwxo")
                || mode.contains("s_iwoth")
            {
                code.add(findings, &WORLD, call.node, "everybody may write what this creates");
            }
        }
        if matches!(name, "makedirs" | "mkdir" | "mkdirall" | "mkdirsync") {
            let mode = code
                .option(call, "mode")
                .or_else(|| call.args.get(1).copied())
                .map(|arg| code.bare_of(arg).to_owned())
                .unwrap_or_default();
            if matches!(mode.as_str(), "0o777" | "0777") && code.lang != Lang::Python {
                code.add(findings, &WORLD, call.node, "everybody may write what this creates");
            }
        }
    }
    for pair in code
        .pairs
        .iter()
        .filter(|pair| matches!(pair.key.as_str(), "scope" | "scopes" | "scopes_supported" | "oauth_scopes"))
    {
        let text: String = code.bare_of(pair.value).chars().filter(|c| !c.is_whitespace()).collect();
        if broad(&text) {
            code.add(findings, &SCOPES, pair.node, "every right there is is asked for");
        }
    }
    for set in &code.sets {
        let name = code.path(set.target);
        if last(&name).ends_with("scopes") || last(&name).ends_with("scope") {
            let text: String = code.bare_of(set.value).chars().filter(|c| !c.is_whitespace()).collect();
            if broad(&text) {
                code.add(findings, &SCOPES, set.node, "every right there is is asked for");
            }
        }
    }
    for pair in code.pairs.iter().filter(|pair| pair.key == "privileged") {
        if code.bare_of(pair.value) == "true" {
            code.add(findings, &ENGINE, pair.node, "a container is started in privileged mode");
        }
    }
    for string in &code.strings {
        let Some(text) = code.literal(*string) else { continue };
        let escapes = text == "--privileged"
            || text.starts_with("/var/run/docker.sock:")
            || text == "/:/host"
            || text.starts_with("/:/");
        if escapes && !in_list_of_refusals(code, *string) {
            code.add(findings, &ENGINE, *string, "a container is given the host");
        }
    }
}

/// Whether a string is one of those that are looked for, to refuse them.
fn in_list_of_refusals(code: &Code<'_>, string: Node<'_>) -> bool {
    let mut at = string.parent();
    for _ in 0..4 {
        let Some(node) = at else { return false };
        let name = node
            .child_by_field_name("left")
            .or_else(|| node.child_by_field_name("name"))
            .map(|name| code.bare_of(name))
            .unwrap_or_default();
        if ["block", "forbid", "deny", "danger", "disallow", "unsafe"].iter().any(|word| name.contains(word))
            || matches!(node.kind(), "comparison_operator" | "if_statement")
        {
            return true;
        }
        at = node.parent();
    }
    false
}

fn broad(text: &str) -> bool {
    matches!(
        text,
        "\"*\"" | "'*'" | "[\"*\"]" | "['*']" | "[\"all\"]" | "\"all\"" | "[\"*:*\"]" | "\"*:*\"" | "[\"full_access\"]"
    ) || [
        "admin:org",
        "directory.readwrite.all",
        "sites.fullcontrol.all",
        "rolemanagement.readwrite.directory",
        "https://mail.google.com/",
        "delete_repo",
        "admin:enterprise",
        "\"*\",",
        "'*',",
        ",\"*\"]",
    ]
    .iter()
    .any(|scope| text.contains(scope))
}

/// Compose files, Kubernetes manifests and other YAML that says what containers may do.
pub(super) fn check_data(file: &File<'_>, findings: &mut Findings) {
    let name = file.name();
    if !(name.ends_with(".yml") || name.ends_with(".yaml")) || file.is_test() {
        return;
    }
    let containers = ["services:", "containers:", "container:", "image:", "volumes:", "runtime:"]
        .iter()
        .any(|word| file.text.contains(word));
    if !containers {
        return;
    }
    let mut offset = 0;
    let mut in_caps = false;
    for line in file.text.split_inclusive('\n') {
        let start = offset + line.len() - line.trim_start().len();
        offset += line.len();
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let item = text.trim_start_matches("- ").trim_matches(['"', '\'']);
        let message = if text == "privileged: true" {
            Some("a container is started in privileged mode")
        } else if item.contains("/docker.sock")
            && !text.contains(":ro-proxy")
            && (item.contains(':') || item.contains("path"))
        {
            Some("a container is given the engine's socket")
        } else if item.starts_with("/:/") || text == "path: /" && file.text.contains("hostPath") {
            Some("a container is given the host's root folder")
        } else if matches!(
            text,
            "pid: host"
                | "pid: \"host\""
                | "hostPID: true"
                | "network_mode: host"
                | "network_mode: \"host\""
                | "hostNetwork: true"
                | "ipc: host"
        ) {
            Some("a container shares the host's processes or network")
        } else if in_caps && matches!(item, "ALL" | "SYS_ADMIN" | "CAP_SYS_ADMIN" | "SYS_PTRACE" | "SYS_MODULE") {
            Some("a container is given a capability that takes over the host")
        } else {
            None
        };
        in_caps = text.starts_with("cap_add:") || text.starts_with("add:") || in_caps && text.starts_with('-');
        if let Some(message) = message {
            findings.add(&ENGINE, file, start, message.to_owned(), line_at(file.text, start));
        }
    }
}

#[cfg(test)]
mod tests;
