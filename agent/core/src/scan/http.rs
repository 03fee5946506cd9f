//! What the families that look at HTTP servers have in common: who a request is from, what it carries, who checks it.

use tree_sitter::Node;

use super::code::{Call, Code, Through, last};

/// Whether a path is a header, query value or the like of a request that came in.
pub(super) fn incoming(path: &str, names: &[&str]) -> bool {
    let path = path.strip_prefix("param.").unwrap_or(path);
    let Some((object, name)) = path.rsplit_once('.') else { return false };
    names.contains(&name)
        // `params.x` alone is anybody's parameter
        && !matches!(object, "params" | "args" | "values")
        && ["headers", "header", "query", "query_params", "params", "body", "cookies", "args", "searchparams", "get_http_headers()", "getheader", "form", "values", "url.query()", "path_params"]
            .iter()
            .any(|place| object == *place || object.ends_with(&format!(".{place}")))
        && !object.split('.').any(|part| matches!(part, "res" | "resp" | "response" | "result" | "axios" | "defaults"))
}

/// The credential that a request came in with.
pub(super) fn incoming_token(path: &str) -> bool {
    if incoming(path, &["authorization", "proxy-authorization"]) && !path.contains("cookies") {
        return true;
    }
    matches!(last(path), "token")
        && [
            "authinfo",
            "auth_info",
            "get_access_token()",
            "req.auth",
            "request.auth",
            "ctx.auth",
            "extra.auth",
            "access_token",
        ]
        .iter()
        .any(|who| {
            path.rsplit_once('.').is_some_and(|(object, _)| object == *who || object.ends_with(&format!(".{who}")))
        })
}

/// Names under which a session's id travels.
pub(super) const SESSION_IDS: &[&str] =
    &["mcp-session-id", "sessionid", "session_id", "session-id", "x-session-id", "mcp_session_id", "session"];

/// A session's id as the caller sent it.
pub(super) fn incoming_session(path: &str) -> bool {
    incoming(path, SESSION_IDS) && !path.contains("cookies")
}

/// Words of code that asks callers who they are.
const AUTHENTICATES: &[&str] = &[
    "requirebearerauth",
    "authmiddleware",
    "auth_middleware",
    "requireauth",
    "require_auth",
    "bearerauth",
    "req.user",
    "req.auth",
    "request.user",
    "request.state.user",
    "authinfo",
    "auth_info",
    "verify_token",
    "verifytoken",
    "verifyaccesstoken",
    "verify_access_token",
    "validate_token",
    "validatetoken",
    "jwt.verify",
    "jwt.decode",
    "jwtverify",
    "jwt_verify",
    "get_current_user",
    "current_user",
    "authenticate(",
    "authenticateuser",
    "authenticated",
    "isauthenticated",
    "is_authenticated",
    "httpbearer",
    "apikeyheader",
    "oauth2passwordbearer",
    "basicauth",
    "basic_auth",
    "passport.",
    "checkauth",
    "check_auth",
    "api_key_header",
    "unauthorized",
    "www-authenticate",
    "compare_digest",
    "timingsafeequal",
    "constanttimecompare",
    "authserverprovider",
    "auth_server_provider",
    "token_verifier",
    "tokenverifier",
    "mcpauthrouter",
    "oauthprovider",
    "authsettings",
    "verify_api_key",
    "verifyapikey",
    "validateapikey",
    "validate_api_key",
    "withmcpauth",
    "experimental_withmcpauth",
];

/// Whether anything in the file asks callers who they are.
pub(super) fn authenticates(code: &Code<'_>) -> bool {
    code.mentions(AUTHENTICATES)
        || code.mentions(&["authorization"])
            && code.branches.iter().any(|b| {
                code.traces(b.test, Through::Calls, &incoming_token) || {
                    let test = code.bare_of(b.test);
                    test.contains("authorization") || test.contains("bearer")
                }
            })
        || code.mentions(&["auth="])
            && code
                .calls
                .iter()
                .any(|call| matches!(last(&call.path), "fastmcp" | "mcpserver") && code.option(call, "auth").is_some())
}

/// Whether the file is one that stands in front of a server and asks for a credential: surer than [`authenticates`], as it
/// speaks for other files.
pub(super) fn guards_server(code: &Code<'_>) -> bool {
    code.mentions(&[
        "requirebearerauth",
        "authmiddleware",
        "auth_middleware",
        "requireauth",
        "require_auth",
        "tokenverifier",
        "token_verifier",
        "auth_server_provider",
        "mcpauthrouter",
        "bearerauth",
        "www-authenticate",
        "verifyaccesstoken",
        "verify_api_key",
        "verifyapikey",
    ]) || code.mentions(&["authorization"])
        && code.mentions(&["401", "unauthorized"])
        && code.branches.iter().any(|b| code.traces(b.test, Through::Calls, &incoming_token))
}

/// Whether it serves HTTP at all.
pub(super) fn serves(code: &Code<'_>) -> bool {
    code.mentions(&[
        "express",
        "createserver",
        "fastapi",
        "starlette",
        "aiohttp",
        "flask",
        "hono",
        "fastify",
        "koa",
        "uvicorn",
        "mcp-session-id",
        "streamablehttp",
        "streamable-http",
        "sseservertransport",
        "websocket",
        "http.handle",
        "listenandserve",
        "http.request",
        "deno.serve",
        "bun.serve",
        "req.headers",
        "request.headers",
        "basehttprequesthandler",
    ])
}

/// Whether it has to do with the Model Context Protocol.
pub(super) fn is_mcp(code: &Code<'_>) -> bool {
    // comments say it, too
    let text = code.file.text;
    ["mcp", "MCP", "Mcp", "modelcontextprotocol", "tools/list"].iter().any(|word| text.contains(word))
}

/// A call that sends a request to somewhere else.
pub(super) fn outbound(call: &Call<'_>) -> bool {
    let path = call.path.as_str();
    let verb = last(path);
    let object = path.rsplit_once('.').map_or("", |(object, _)| object);
    let client = [
        "requests",
        "httpx",
        "axios",
        "got",
        "client",
        "session",
        "http",
        "https",
        "superagent",
        "needle",
        "ky",
        "urllib",
        "aiohttp",
        "undici",
        "api",
        "request",
        "fetcher",
    ];
    match verb {
        "fetch"
        | "axios"
        | "got"
        | "urlopen"
        | "$fetch"
        | "ofetch"
        | "node-fetch"
        | "nodefetch"
        | "newrequest"
        | "newrequestwithcontext" => true,
        "get" | "post" | "put" | "patch" | "delete" | "request" | "head" | "stream" | "send" | "do" => {
            let of = last(object);
            client.iter().any(|word| of.contains(word)) && !matches!(of, "app" | "router" | "request")
        }
        "asyncclient" | "clientsession" | "httpclient" => true,
        _ => path == "axios.create" || path == "new request" || path == "requests.session",
    }
}

/// A route of an HTTP server: its path, the handlers and what stands before them.
pub(super) struct Route<'t> {
    pub node: Node<'t>,
    pub method: String,
    pub path: String,
    /// Middleware and handlers, in their order; a decorated function in Python.
    pub handlers: Vec<Node<'t>>,
}

/// Routes that are written with a path: `app.post("/x", …)`, `@app.post("/x")`, `Route("/x", f)`.
pub(super) fn routes<'t>(code: &Code<'t>) -> Vec<Route<'t>> {
    let mut found = Vec::new();
    for call in &code.calls {
        let verb = last(&call.path);
        let is_verb = matches!(
            verb,
            "get"
                | "post"
                | "put"
                | "delete"
                | "patch"
                | "all"
                | "route"
                | "custom_route"
                | "handlefunc"
                | "handle"
                | "api_route"
                | "new route"
                | "use"
                | "add_route"
                | "websocket"
        );
        let is_verb =
            is_verb && call.path.contains('.') || matches!(call.path.as_str(), "route" | "starlette.routing.route");
        let Some(path) = call.args.first().and_then(|arg| code.literal(*arg)).filter(|path| path.starts_with('/'))
        else {
            continue;
        };
        if !is_verb {
            continue;
        }
        let mut handlers: Vec<Node<'t>> = call.args.iter().skip(1).copied().collect();
        if let Some(decorator) = call.node.parent().filter(|parent| parent.kind() == "decorator") {
            let function = decorator.parent().and_then(|d| d.child_by_field_name("definition"));
            handlers.extend(function);
        } else if handlers.is_empty() {
            continue;
        }
        found.push(Route { node: call.node, method: verb.to_owned(), path: path.to_lowercase(), handlers });
    }
    found
}

/// What a handler that is a name stands for.
pub(super) fn body_of<'t>(code: &Code<'t>, handler: Node<'t>) -> Node<'t> {
    let name = code.text(handler).rsplit('.').next().unwrap_or_default();
    match handler.kind() {
        "identifier" | "member_expression" | "attribute" => code.named(name).next().map_or(handler, |f| f.node),
        _ => handler,
    }
}
