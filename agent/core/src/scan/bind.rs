//! Who can reach the server: all interfaces without a login, web pages through DNS rebinding, WebSockets and CORS.

mod sdk;

use tree_sitter::Node;

use super::code::{Call, Code, Lang, Through, last};
use super::http;
use super::{File, Findings, Rule, Severity};

const ALL: Rule = Rule {
    id: "bind-all-interfaces",
    class: "missing-authentication",
    severity: Severity::Warning,
    impact: "everybody on the network can call the server's tools",
    fix: "listen on 127.0.0.1, or ask for a credential (the gateway's keys do, for what Sigil hosts)",
};
const ORIGIN: Rule = Rule {
    id: "origin-unchecked",
    class: "dns-rebinding",
    severity: Severity::Warning,
    impact: "a web page that a user opens can call the tools of a server on their machine, by DNS rebinding",
    fix: "check Host and Origin (allowedHosts with enableDnsRebindingProtection, TransportSecuritySettings), or ask for a credential",
};
const SOCKET: Rule = Rule {
    id: "websocket-origin-unchecked",
    class: "dns-rebinding",
    severity: Severity::Warning,
    impact: "any web page that a user opens can connect to the socket; browsers do not stop it",
    fix: "compare the Origin header with a list before accepting",
};
const CORS: Rule = Rule {
    id: "cors-any-origin",
    class: "dns-rebinding",
    severity: Severity::Warning,
    impact: "any web page can use the server with its visitor's cookies, and read the answers",
    fix: "list the origins that are meant, or leave credentials off",
};

/// Said of servers whose SDK looks at Host and Origin by itself from some version on; kept where the tree has an older one.
const PYTHON: &str = "mcp below 1.23 takes requests whatever their Host and Origin headers say";
const GO: &str = "go-sdk below 1.4 takes requests whatever their Host and Origin headers say";

pub(super) const RULES: &[&Rule] = &[&ALL, &ORIGIN, &SOCKET, &CORS];

pub(super) fn check(code: &Code<'_>, findings: &mut Findings) {
    cors(code, findings);
    if !http::is_mcp(code) || http::authenticates(code) {
        return;
    }
    all_interfaces(code, findings);
    if !checks_origin(code) {
        transports(code, findings);
        sockets(code, findings);
    }
}

/// Takes back what another file of the same package answers: the one that listens need not be the one that asks.
pub(super) fn settle(paths: &[&str], read: &[File<'_>], guarded: &[&str], findings: &mut Vec<super::Finding>) {
    let manifests = ["package.json", "pyproject.toml", "go.mod", "setup.py", "requirements.txt"];
    // the nearest folder above with a manifest
    let package = |path: &str| {
        let mut folder = path;
        while let Some((above, _)) = folder.rsplit_once('/') {
            folder = above;
            if manifests.iter().any(|name| paths.contains(&format!("{folder}/{name}").as_str())) {
                return folder.to_owned();
            }
        }
        String::new()
    };
    let guarded: std::collections::BTreeSet<String> = guarded.iter().map(|path| package(path)).collect();
    let old = [(PYTHON, sdk::python(read)), (GO, sdk::go(read))];
    let unless_old = |message: &str| old.iter().all(|(told, old)| *told != message || *old);
    findings.retain(|finding| finding.rule != ORIGIN.id || unless_old(&finding.message));
    let rules = [ALL.id, ORIGIN.id, SOCKET.id];
    findings.retain(|finding| !rules.contains(&finding.rule.as_str()) || !guarded.contains(&package(&finding.path)));
}

fn is_all(text: &str) -> bool {
    let host = text
        .rsplit_once(':')
        .filter(|(_, port)| port.is_empty() || port.chars().all(|c| c.is_ascii_digit() || "{}%dvs\u{fffc}".contains(c)))
        .map_or(text, |(host, _)| host);
    matches!(text, "0.0.0.0" | "::" | "[::]")
        || matches!(host, "0.0.0.0" | "[::]")
        || (host.is_empty() && text.starts_with(':') && text.len() > 1)
}

fn names_host(name: &str) -> bool {
    ["host", "bind", "addr", "listen", "interface"].iter().any(|word| name.to_lowercase().contains(word))
}

fn all_interfaces(code: &Code<'_>, findings: &mut Findings) {
    let mut told: Vec<usize> = Vec::new();
    let mut tell = |node: Node<'_>, message: &str, findings: &mut Findings| {
        if !told.contains(&node.start_position().row) {
            told.push(node.start_position().row);
            code.add(findings, &ALL, node, message);
        }
    };
    let serves =
        http::serves(code) || code.mentions(&["transport=", "transport:", "listen(", "socket", "http.server", "sse"]);
    if !serves {
        return;
    }
    let quiet = "listens on all interfaces, and nobody is asked for a credential";
    for string in &code.strings {
        let text = code.fold_partly(*string);
        if is_all(&text)
            && (code.lang == Lang::Go || !text.starts_with(':') || text == "::")
            && sets_host(code, *string, &text)
        {
            tell(*string, quiet, findings);
        }
    }
    for call in &code.calls {
        if let Some(message) = no_host(code, call) {
            tell(call.node, message, findings);
        }
    }
}

/// Whether a string is where a server's address is said.
fn sets_host(code: &Code<'_>, string: Node<'_>, text: &str) -> bool {
    let mut at = string;
    for _ in 0..6 {
        let Some(parent) = at.parent() else { return false };
        match parent.kind() {
            "comparison_operator" | "subscript" | "array" | "list" | "set" | "return_statement" | "binary_operator" => {
                return false;
            }
            "binary_expression" | "boolean_operator" => {
                let operator = parent.child_by_field_name("operator").map_or("", |op| code.text(op));
                if !matches!(operator, "||" | "??" | "or") {
                    return false;
                }
            }
            "pair" | "keyword_argument" | "keyed_element" => {
                let key = parent
                    .child_by_field_name("key")
                    .or_else(|| parent.child_by_field_name("name"))
                    .or_else(|| parent.named_child(0));
                let key = key.map(|key| code.text(key).to_lowercase()).unwrap_or_default();
                let call = code.call_around(parent);
                let to_client = call.is_some_and(|call| {
                    matches!(last(&call.path), "connect" | "createconnection" | "asyncclient" | "get" | "post")
                });
                if to_client {
                    return false;
                }
                return names_host(&key)
                    || key == "default"
                        && call.is_some_and(|call| {
                            call.args.iter().any(|arg| code.literal(*arg).is_some_and(|text| names_host(&text)))
                        })
                    || key == "default" && named_set(code, parent);
            }
            "argument_list" | "arguments" => {
                let Some(call) = code.call_around(string) else { return false };
                let name = last(&call.path);
                let gets =
                    matches!(name, "getenv" | "get" | "env" | "getstring" | "string" | "stringvar" | "getenvordefault");
                if gets {
                    return call
                        .args
                        .first()
                        .is_some_and(|arg| code.literal(*arg).is_some_and(|text| names_host(&text)))
                        || call.args.iter().any(|arg| code.literal(*arg).is_some_and(|text| names_host(&text)));
                }
                if matches!(name, "field" | "option" | "argument") {
                    return named_set(code, parent)
                        || call.args.iter().any(|arg| code.literal(*arg).is_some_and(|text| names_host(&text)));
                }
                return matches!(
                    name,
                    "listen"
                        | "serve"
                        | "start_server"
                        | "create_server"
                        | "run"
                        | "bind"
                        | "run_simple"
                        | "listenandserve"
                        | "listenandservetls"
                        | "start"
                        | "tcpsite"
                        | "make_server"
                        | "startsse"
                        | "new websocketserver"
                        | "run_app"
                        | "sprintf"
                ) && (code.lang != Lang::Go || name != "sprintf" || goes_to_server(code, call.node))
                    || name == "httpserver"
                    || name == "threadinghttpserver";
            }
            "tuple" => {
                // (host, port)
                let first = parent.named_child(0).is_some_and(|first| first.id() == at.id());
                if !first || text == ":" {
                    return false;
                }
            }
            "assignment"
            | "assignment_expression"
            | "variable_declarator"
            | "short_var_declaration"
            | "var_spec"
            | "const_spec"
            | "default_parameter"
            | "typed_default_parameter"
            | "required_parameter"
            | "optional_parameter"
            | "public_field_definition"
            | "assignment_statement"
            | "field_definition" => {
                let name =
                    ["left", "name", "pattern", "property"].iter().find_map(|name| parent.child_by_field_name(name));
                return name.is_some_and(|name| names_host(last(&code.path(name))) || names_host(code.text(name)));
            }
            _ => {}
        }
        at = parent;
    }
    false
}

fn named_set(code: &Code<'_>, node: Node<'_>) -> bool {
    let mut at = node.parent();
    while let Some(parent) = at {
        if matches!(parent.kind(), "assignment" | "variable_declarator") {
            let name = parent.child_by_field_name("left").or_else(|| parent.child_by_field_name("name"));
            return name.is_some_and(|name| names_host(code.text(name)));
        }
        if !matches!(parent.kind(), "call" | "argument_list" | "keyword_argument" | "call_expression" | "arguments") {
            return false;
        }
        at = parent.parent();
    }
    false
}

fn goes_to_server(code: &Code<'_>, node: Node<'_>) -> bool {
    let mut at = node.parent();
    for _ in 0..4 {
        let Some(parent) = at else { return false };
        let text = code.bare_of(parent);
        if ["listen", "addr", "start(", "serve"].iter().any(|word| text.contains(word)) {
            return true;
        }
        at = parent.parent();
    }
    false
}

/// Servers that listen everywhere unless they are told where.
fn no_host<'t>(code: &Code<'t>, call: &Call<'t>) -> Option<&'static str> {
    let name = last(&call.path);
    let everywhere = "listens on all interfaces, as no host is given, and nobody is asked for a credential";
    if code.lang == Lang::Script && name == "listen" && call.path.contains('.') {
        let object = call.path.rsplit_once('.').map_or("", |(object, _)| object);
        let server = ["app", "server", "http", "express()", "koa"]
            .iter()
            .any(|word| last(object).contains(word) || object.ends_with("()"));
        let first = *call.args.first()?;
        if !server
            || object.contains("fastify")
            || code.mentions(&["fastify("])
            || matches!(first.kind(), "object" | "arrow_function" | "function_expression" | "string" | "spread_element")
        {
            return None;
        }
        // a port, not the path of a socket
        if code.bare_of(first).contains("socket") || code.bare_of(first).contains("path") {
            return None;
        }
        let open = match call.args.get(1) {
            None => true,
            Some(second) => {
                matches!(second.kind(), "arrow_function" | "function_expression" | "null" | "undefined")
                    || second.kind() == "identifier"
                        && !names_host(code.text(*second))
                        && code.named(code.text(*second)).next().is_some()
                    || second.kind() == "string" && code.literal(*second).is_some_and(|host| host.is_empty())
            }
        };
        return open.then_some(everywhere);
    }
    if code.lang == Lang::Script && matches!(call.path.as_str(), "serve" | "bun.serve" | "deno.serve") {
        let options = call.args.first().filter(|arg| arg.kind() == "object")?;
        let keys: Vec<&str> = code.pairs_in(*options).map(|pair| pair.key.as_str()).collect();
        let has_port = keys.contains(&"port") || code.bare_of(*options).contains("port");
        let has_host = keys.contains(&"hostname") || keys.contains(&"host") || code.bare_of(*options).contains("host");
        return (has_port && !has_host).then_some(everywhere);
    }
    if code.lang == Lang::Python {
        if matches!(name, "run_app" | "tcpsite") && code.mentions(&["aiohttp"]) {
            let host = code.option(call, "host").is_some() || name == "tcpsite" && call.args.len() >= 2;
            return (!host).then_some(everywhere);
        }
        if matches!(name, "httpserver" | "threadinghttpserver" | "tcpserver" | "threadingtcpserver" | "bind")
            && let Some(address) = call.args.first()
        {
            let address = if address.kind() == "identifier" { code.only_value(*address)? } else { *address };
            let host = (address.kind() == "tuple").then(|| address.named_child(0)).flatten()?;
            return (code.fold(host).is_some_and(|host| host.is_empty())).then_some(everywhere);
        }
    }
    None
}

fn checks_origin(code: &Code<'_>) -> bool {
    code.mentions(&[
        "enablednsrebindingprotection: true",
        "allowedhosts",
        "allowedorigins",
        "allowed_hosts",
        "allowed_origins",
        "hostheadervalidation",
        "hostvalidation",
        "createmcpexpressapp",
        "createmcphonoapp",
        "headers.origin",
        "headers.host",
        "headers['origin']",
        "headers[\"origin\"]",
        "headers['host']",
        "headers[\"host\"]",
        "header(\"origin\")",
        "header('origin')",
        "get(\"origin\")",
        "get('origin')",
        "get(\"host\")",
        "get('host')",
        "trustedhostmiddleware",
        "transportsecuritysettings(",
        "validateorigin",
        "validate_origin",
        "checkorigin",
        "check_origin",
        "verifyclient",
        "origin_validation",
        "isallowedorigin",
        "b\"origin\"",
    ]) && !code.mentions(&["enable_dns_rebinding_protection=false"])
}

fn transports(code: &Code<'_>, findings: &mut Findings) {
    for pair in &code.pairs {
        let off = matches!(pair.key.as_str(), "enablednsrebindingprotection" | "enable_dns_rebinding_protection")
            && code.bare_of(pair.value) == "false";
        if off {
            code.add(findings, &ORIGIN, pair.node, "the check against DNS rebinding is turned off");
            return;
        }
    }
    let mut told = 0;
    for call in &code.calls {
        let name = last(&call.path).trim_start_matches("new ");
        let over_http = |call: &Call<'_>| {
            let word = code.option(call, "transport").or_else(|| call.args.first().copied());
            word.and_then(|word| code.literal(word))
                .is_some_and(|word| matches!(word.as_str(), "sse" | "streamable-http"))
        };
        let fast = code.lang == Lang::Python
            && code.mentions(&["mcp.server.fastmcp"])
            && (name == "run" && over_http(call) || matches!(name, "sse_app" | "streamable_http_app"));
        let go = code.lang == Lang::Go
            && code.mentions(&["modelcontextprotocol/go-sdk"])
            && matches!(name, "newstreamablehttphandler" | "newssehandler");
        if fast || go {
            code.add(findings, &ORIGIN, call.node, if go { GO } else { PYTHON });
            return;
        }
        let script = code.lang == Lang::Script
            && call.path.starts_with("new ")
            && matches!(
                name,
                "sseservertransport" | "streamablehttpservertransport" | "webstandardstreamablehttpservertransport"
            );
        let python = code.lang == Lang::Python
            && matches!(name, "sseservertransport" | "streamablehttpsessionmanager" | "streamablehttpservertransport")
            && code.option(call, "security_settings").is_none();
        if (script || python) && told < 2 {
            told += 1;
            code.add(findings, &ORIGIN, call.node, "requests are taken whatever their Host and Origin headers say");
        }
    }
}

fn sockets(code: &Code<'_>, findings: &mut Findings) {
    for call in &code.calls {
        let path = call.path.as_str();
        let open = match code.lang {
            Lang::Script => {
                matches!(
                    path,
                    "new websocketserver" | "new websocket.server" | "new ws.server" | "new ws.websocketserver"
                ) && code.option(call, "noserver").is_none()
            }
            Lang::Python => {
                (matches!(path, "websockets.serve" | "websockets.asyncio.server.serve" | "ws_serve")
                    || path == "serve" && code.mentions(&["from websockets"]))
                    && code.option(call, "origins").is_none()
                    || matches!(path, "websocket.accept" | "ws.accept")
                        && !code.mentions(&["\"origin\"", "'origin'", ".origin"])
            }
            Lang::Go => false,
        };
        if open {
            code.add(findings, &SOCKET, call.node, "connections are accepted whatever their Origin");
        }
    }
    for pair in code.pairs.iter().filter(|pair| pair.key == "checkorigin") {
        let text: String = code.bare_of(pair.value).chars().filter(|c| !c.is_whitespace()).collect();
        if text.ends_with("{returntrue}") {
            code.add(findings, &SOCKET, pair.node, "connections are accepted whatever their Origin");
        }
    }
}

fn cors(code: &Code<'_>, findings: &mut Findings) {
    if !code.mentions(&["cors", "access-control-allow-credentials"]) {
        return;
    }
    for call in &code.calls {
        let name = last(&call.path);
        let python = matches!(name, "add_middleware" | "corsmiddleware" | "middleware" | "cors");
        if !python
            || code
                .calls_in(call.node)
                .any(|inner| inner.node.id() != call.node.id() && last(&inner.path) == "corsmiddleware")
        {
            continue;
        }
        let pair = |keys: &[&str]| code.pairs_in(call.node).find(|pair| keys.contains(&pair.key.as_str()));
        let credentials = pair(&["allow_credentials", "credentials", "supports_credentials"])
            .is_some_and(|pair| code.bare_of(pair.value) == "true");
        let Some(origins) = pair(&["allow_origins", "origin", "origins", "allow_origin_regex"]) else { continue };
        let value = if origins.value.kind() == "identifier" {
            code.only_value(origins.value).unwrap_or(origins.value)
        } else {
            origins.value
        };
        let text: String = code.bare_of(value).chars().filter(|c| !c.is_whitespace()).collect();
        let any = [
            "\"*\"",
            "'*'",
            "[\"*\"]",
            "['*']",
            "true",
            "\".*\"",
            "r\".*\"",
            "'.*'",
            "(origin,callback)=>callback(null,true)",
            "(_,cb)=>cb(null,true)",
            "(origin)=>origin",
            "origin=>origin",
        ]
        .contains(&text.as_str());
        if any && credentials {
            code.add(findings, &CORS, origins.node, "every origin is allowed, with credentials");
        }
    }
    // the Origin header is given back
    let sets = |header: &str| {
        code.calls.iter().find(|call| {
            matches!(last(&call.path), "setheader" | "header" | "set")
                && call
                    .args
                    .first()
                    .and_then(|arg| code.literal(*arg))
                    .is_some_and(|name| name.eq_ignore_ascii_case(header))
        })
    };
    if let Some(origin) = sets("Access-Control-Allow-Origin")
        && let Some(credentials) = sets("Access-Control-Allow-Credentials")
        && credentials.args.get(1).is_some_and(|value| code.bare_of(*value).contains("true"))
        && origin
            .args
            .get(1)
            .is_some_and(|value| code.traces(*value, Through::Text, &|path| http::incoming(path, &["origin"])))
        && !code.branches.iter().any(|branch| {
            code.bare_of(branch.test).contains("origin") && branch.node.byte_range().contains(&origin.node.start_byte())
        })
    {
        code.add(findings, &CORS, origin.node, "every origin is allowed, with credentials");
    }
}

#[cfg(test)]
mod tests;
