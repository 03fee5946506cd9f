//! Token passthrough: credentials that were given to this server and go on to another, and tokens taken that were
//! meant for somebody else.

use std::sync::LazyLock;

use regex::Regex;
use tree_sitter::Node;

use super::code::{Call, Code, Lang, Through, last};
use super::http::{self, incoming_token};
use super::{Findings, Rule, Severity};

const FORWARDED: Rule = Rule {
    id: "token-forwarded",
    class: "token-passthrough",
    severity: Severity::Error,
    impact: "a token that was issued for this server works elsewhere, past the other service's own checks and logs",
    fix: "get a token of the server's own for the other service (client credentials, token exchange)",
};
const USERINFO: Rule = Rule {
    id: "token-userinfo-only",
    class: "token-passthrough",
    severity: Severity::Error,
    impact: "a token that any other application got for a user is accepted here, too",
    fix: "check whom the token was issued for (aud, azp, client_id), with introspection or the token's own claims",
};
const AUDIENCE: Rule = Rule {
    id: "token-audience-unchecked",
    class: "token-passthrough",
    severity: Severity::Error,
    impact: "tokens that the same issuer made for other services are accepted here",
    fix: "give the expected audience to the check, and refuse tokens without it",
};
const SIGNATURE: Rule = Rule {
    id: "token-signature-unchecked",
    class: "token-passthrough",
    severity: Severity::Error,
    impact: "anybody can write a token that is believed",
    fix: "verify the signature with the issuer's keys (jwt.verify, jwtVerify, jwt.decode with a key)",
};
const EXPIRY: Rule = Rule {
    id: "token-expiry-unchecked",
    class: "token-passthrough",
    severity: Severity::Warning,
    impact: "a token that leaked once works for ever",
    fix: "leave the check of exp on",
};
const UPSTREAM: Rule = Rule {
    id: "token-upstream-audience",
    class: "token-passthrough",
    severity: Severity::Error,
    impact: "tokens of the other service are accepted and used here: every one of its clients is a client of this server",
    fix: "accept tokens for this server's own audience only",
};

pub(super) const RULES: &[&Rule] = &[&FORWARDED, &USERINFO, &AUDIENCE, &SIGNATURE, &EXPIRY, &UPSTREAM];

pub(super) fn check(code: &Code<'_>, findings: &mut Findings) {
    if code.mentions(&["authorization", "get_access_token", "authinfo", "auth_info", "auth.token"]) {
        forwarded(code, findings);
    }
    if code.mentions(&["userinfo", "/user", "/me", "tokeninfo", "whoami"]) {
        userinfo(code, findings);
    }
    if code.mentions(&["jwt", "jose", "verify_aud", "verify_signature", "ignoreexpiration", "audience"]) {
        tokens(code, findings);
    }
}

/// Calls whose answer is another token than the one they were given.
fn exchanged(code: &Code<'_>, value: Node<'_>) -> bool {
    let words = ["exchange", "on_behalf_of", "onbehalfof", "obo", "acquire_token", "acquiretoken", "mint", "issue_"];
    code.traces(value, Through::Text, &|path| words.iter().any(|word| last(path).contains(word)))
}

fn forwarded(code: &Code<'_>, findings: &mut Findings) {
    let mut told = Vec::new();
    let mut tell = |node: Node<'_>, findings: &mut Findings| {
        let row = node.start_position().row;
        if !told.contains(&row) {
            told.push(row);
            code.add(findings, &FORWARDED, node, "the caller's own token is sent on to another service");
        }
    };
    let theirs = |value: Node<'_>| code.traces(value, Through::Text, &incoming_token) && !exchanged(code, value);
    for pair in &code.pairs {
        // asking its issuer whether a token is good is not passing it on
        if code.call_around(pair.node).is_some_and(|call| asks_issuer(code, call)) {
            continue;
        }
        let header = matches!(
            pair.key.as_str(),
            "authorization" | "proxy-authorization" | "x-forwarded-authorization" | "x-auth-token"
        );
        if header && !answers(code, pair.node) && theirs(pair.value) {
            tell(pair.node, findings);
            continue;
        }
        // all headers as they came
        if pair.key == "headers"
            && let Some(call) = code.call_around(pair.node)
            && http::outbound(call)
            && code.traces(pair.value, Through::Text, &all_headers)
            && !drops_authorization(code, pair.value)
        {
            tell(pair.node, findings);
            continue;
        }
        let credential = matches!(
            pair.key.as_str(),
            "auth" | "token" | "accesstoken" | "access_token" | "bearertoken" | "bearer_token" | "oauth_token"
        );
        if credential && code.call_around(pair.node).is_some_and(is_client) && theirs(pair.value) {
            tell(pair.node, findings);
        }
    }
    for set in &code.sets {
        let target = code.path(set.target);
        let name = last(&target);
        let object = target.rsplit_once('.').map_or("", |(object, _)| object);
        if name == "authorization" && !object.starts_with("req") && !object.starts_with("res") && theirs(set.value) {
            tell(set.node, findings);
        }
    }
    for call in &code.calls {
        if matches!(
            last(&call.path),
            "set" | "append" | "setheader" | "set_header" | "header" | "add" | "withheader" | "setrequestheader"
        ) && let [name, value, ..] = call.args.as_slice()
            && code.literal(*name).is_some_and(|name| name.eq_ignore_ascii_case("authorization"))
            && !call.path.starts_with("res.")
            && !call.path.starts_with("response.")
            && theirs(*value)
        {
            tell(call.node, findings);
        }
        if is_client(call)
            && call.args.iter().any(|arg| arg.kind() != "object" && arg.kind() != "dictionary" && theirs(*arg))
        {
            tell(call.node, findings);
        }
    }
}

/// The headers of a request that came in, all of them.
fn all_headers(path: &str) -> bool {
    matches!(
        path,
        "req.headers"
            | "request.headers"
            | "ctx.request.headers"
            | "c.req.raw.headers"
            | "get_http_headers()"
            | "r.header"
            | "req.raw.headers"
            | "c.req.header()"
    )
}

fn drops_authorization(code: &Code<'_>, value: Node<'_>) -> bool {
    let function = code.functions.get(code.function_at(value)).map(|f| code.bare_of(f.node)).unwrap_or_default();
    [
        "delete headers",
        "pop(\"authorization",
        "pop('authorization",
        ".delete(\"authorization",
        ".delete('authorization",
        "del headers",
        "!= \"authorization\"",
        "!== \"authorization\"",
        "!== 'authorization'",
        "!= 'authorization'",
        "not in",
    ]
    .iter()
    .any(|word| function.contains(word))
}

/// Whether a pair is part of an answer or of a check, not of a request to somebody else.
fn answers(code: &Code<'_>, node: Node<'_>) -> bool {
    code.call_around(node).is_some_and(|call| {
        let name = last(&call.path);
        matches!(name, "json" | "send" | "log" | "info" | "debug" | "print" | "jsonresponse" | "response" | "writehead")
            || ["verify", "validate", "introspect", "authenticate"].iter().any(|word| name.contains(word))
    })
}

/// Something that is made to talk to another service.
fn is_client(call: &Call<'_>) -> bool {
    let name = last(&call.path);
    let makes =
        call.path.starts_with("new ") || name.ends_with("client") || name.ends_with("api") || name.ends_with("sdk");
    let known = [
        "octokit",
        "github",
        "webclient",
        "gitlab",
        "jira",
        "notion",
        "slack",
        "graph",
        "dropbox",
        "linear",
        "asana",
        "hubspot",
        "atlassian",
        "salesforce",
    ];
    let other = [
        "token",
        "auth",
        "principal",
        "user",
        "session",
        "context",
        "error",
        "transport",
        "map",
        "set",
        "server",
        "url",
        "request",
        "response",
        "buffer",
        "headers",
        "params",
    ];
    makes
        && (name.ends_with("client")
            || name.ends_with("api")
            || name.ends_with("sdk")
            || known.iter().any(|word| name.contains(word)))
        && !other.iter().any(|word| name.contains(word))
}

/// Whether a call asks who a token is for.
fn asks_issuer(code: &Code<'_>, call: &Call<'_>) -> bool {
    let Some(address) = call.args.first() else { return false };
    let url = code.fold_partly(*address).to_lowercase();
    let named = code.bare_of(*address);
    let places = [
        "userinfo",
        "/api/user",
        "api.github.com/user",
        "/v1.0/me",
        "/users/@me",
        "/rest/user",
        "tokeninfo",
        "whoami",
        "/api/v4/user",
        "/me?",
        "/v2/me",
        "/users/me",
        "user_info",
        "auth.test",
    ];
    let asks = places.iter().any(|part| url.contains(part) || named.contains(part)) || url.ends_with("/me");
    asks && !url.contains("introspect")
}

fn userinfo(code: &Code<'_>, findings: &mut Findings) {
    let mut told = Vec::new();
    for call in code.calls.iter().filter(|call| http::outbound(call)) {
        if !asks_issuer(code, call) {
            continue;
        }
        // in what decides whether a caller is let in
        let index = code.function_at(call.node);
        let decides = |name: &str| {
            let name = name.to_lowercase();
            [
                "verify",
                "validate",
                "authenticate",
                "auth",
                "check",
                "introspect",
                "require",
                "load_access_token",
                "dispatch",
            ]
            .iter()
            .any(|word| name.contains(word))
                && !name.contains("callback")
                && !name.contains("authorize")
        };
        let mut around = code.outward(index).filter(|f| !f.name.is_empty());
        let Some(decider) = around.find(|f| decides(f.name)) else { continue };
        let bearer = code.traces(call.node, Through::Calls, &|path| {
            incoming_token(path)
                || matches!(
                    path,
                    "param.token"
                        | "param.access_token"
                        | "param.accesstoken"
                        | "param.bearer"
                        | "param.bearer_token"
                        | "param.auth"
                        | "param.authorization"
                        | "param.credentials.credentials"
                        | "param.raw_token"
                )
        });
        let text = code.bare_of(decider.node);
        let checks = [
            "aud",
            "azp",
            "client_id ==",
            "client_id !=",
            "client_id !==",
            "client_id ===",
            "clientid !==",
            "clientid ===",
            "appid",
            "app_id",
            "introspect",
            "jwt.verify",
            "jwtverify",
            "applications/",
            "resource_server",
            ".resource",
        ]
        .iter()
        .any(|word| text.contains(word));
        if bearer && !checks && !told.contains(&decider.node.id()) {
            told.push(decider.node.id());
            code.add(findings, &USERINFO, call.node, "a token is believed because the other service knows its user");
        }
    }
}

fn tokens(code: &Code<'_>, findings: &mut Findings) {
    let off = |value: Node<'_>| matches!(code.bare_of(value), "false" | "no");
    let mut seen = Vec::new();
    for pair in &code.pairs {
        let rule = match pair.key.as_str() {
            "verify_aud" if off(pair.value) => &AUDIENCE,
            "verify_signature" | "verify"
                if off(pair.value) && code.bare_of(pair.node).contains("verify_signature") =>
            {
                &SIGNATURE
            }
            "verify_exp" if off(pair.value) => &EXPIRY,
            "ignoreexpiration" if code.bare_of(pair.value) == "true" => &EXPIRY,
            "complete" => continue,
            "algorithms" | "algorithm"
                if code.bare_of(pair.value).contains("\"none\"") || code.bare_of(pair.value).contains("'none'") =>
            {
                &SIGNATURE
            }
            "audience" | "aud" | "allowed_audiences" | "audiences" if upstream(code, pair.value) => &UPSTREAM,
            _ => continue,
        };
        // what is asked of the other service names its audience
        let around = pair.node.parent().map(|around| code.bare_of(around)).unwrap_or_default();
        let asks = rule.id == UPSTREAM.id
            && ["prompt", "grant_type", "response_type", "client_id", "redirect_uri"]
                .iter()
                .any(|key| around.contains(key));
        if asks {
            continue;
        }
        let signed_elsewhere = rule.id == SIGNATURE.id && reads_only(code, pair.node);
        if signed_elsewhere || rule.id == UPSTREAM.id && !checks_token(code, pair.node) {
            continue;
        }
        if let Some(call) = code.call_around(pair.node) {
            seen.push(call.node.id());
        }
        let message = match rule.id {
            "token-audience-unchecked" => "the audience of a token is not checked",
            "token-signature-unchecked" => "the signature of a token is not checked",
            "token-expiry-unchecked" => "the expiry of a token is not checked",
            _ => "tokens made for another service are accepted",
        };
        code.add(findings, rule, pair.node, message);
    }
    for call in &code.calls {
        if seen.contains(&call.node.id()) {
            continue;
        }
        let path = call.path.trim_start_matches("new ");
        let text = code.bare_of(call.node);
        let python =
            code.lang == Lang::Python && (path == "jwt.decode" || path == "jose.jwt.decode" || path == "pyjwt.decode");
        if python && call.args.len() >= 2
            || path == "jwt.verify"
            || path == "jwtverify"
            || path == "jose.jwtverify"
            || path == "jsonwebtoken.verify"
        {
            let options = options_text(code, call);
            if options.contains("aud")
                || path.ends_with("verify") && call.args.len() < 2
                || own_secret(code, call)
                || checked_after(code, call)
            {
                continue;
            }
            // options that come from elsewhere may say it
            let open =
                call.args.get(2).is_some_and(|arg| arg.kind() == "identifier" && code.only_value(*arg).is_none());
            if !open && !text.contains("**") {
                code.add(findings, &AUDIENCE, call.node, "the audience of a token is not checked");
            }
            continue;
        }
        let unverified = (matches!(path, "jwt.decode" | "jsonwebtoken.decode") && code.lang == Lang::Script)
            || matches!(
                path,
                "jwtdecode"
                    | "jwt_decode"
                    | "decodejwt"
                    | "jose.decodejwt"
                    | "jwt.get_unverified_claims"
                    | "jose.jwt.get_unverified_claims"
            )
            || last(path) == "parseunverified";
        if unverified && decides(code, call.node) && !reads_only(code, call.node) {
            code.add(findings, &SIGNATURE, call.node, "the claims of a token are read without checking its signature");
        }
    }
}

/// Text of a call's options, with those of the names in it.
fn options_text(code: &Code<'_>, call: &Call<'_>) -> String {
    let mut text = code.bare_of(call.node).to_owned();
    for arg in &call.args {
        if arg.kind() == "identifier"
            && let Some(value) = code.only_value(*arg)
        {
            text.push_str(code.bare_of(value));
        }
    }
    for pair in code.pairs_in(call.node).filter(|pair| pair.value.kind() == "identifier") {
        if let Some(value) = code.only_value(pair.value) {
            text.push_str(code.bare_of(value));
        }
    }
    text
}

/// Tokens that the server signs itself, with a secret of its own: nobody else's tokens fit.
fn own_secret(code: &Code<'_>, call: &Call<'_>) -> bool {
    let key = call.args.get(1).map(|arg| code.bare_of(*arg)).unwrap_or_default();
    let shared = key.contains("secret") || key.contains("signing") && !key.contains("key.key") || key.contains("hmac");
    let text = code.bare_of(call.node);
    shared && !text.contains("rs256") && !text.contains("es256")
        || text.contains("hs256")
        || code.mentions(&["jwt.sign(", "jwt.encode(", "signjwt"]) && !text.contains("rs256")
}

/// Whether the claims are compared after the call.
fn checked_after(code: &Code<'_>, call: &Call<'_>) -> bool {
    static COMPARED: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let claim = r#"(?:\baud\b|\bazp\b|\.resource\b|client_?id)"#;
        Regex::new(&format!(
            r#"{claim}["'\])]*\s*(?:[!=]==?|\bin\b|\bnot in\b|\.includes)|(?:[!=]==?|\bin|includes\(|has\()\s*[\w.\["']*{claim}"#
        ))
        .ok()
    });
    let function = code.functions.get(code.function_at(call.node));
    let text = function.and_then(|f| f.body).map(|body| code.bare_of(body)).unwrap_or_default();
    text.contains("audience") || COMPARED.as_ref().is_some_and(|regex| regex.is_match(text))
}

/// Whether a function verifies the token as well: what is read before only chooses the key or is shown.
fn reads_only(code: &Code<'_>, node: Node<'_>) -> bool {
    let function = code.functions.get(code.function_at(node));
    let text = function.map(|f| code.bare_of(f.node)).unwrap_or_default();
    let verifies = [
        "jwt.verify(",
        "jwtverify(",
        "compactverify(",
        "verify_signature\": true",
        "introspect",
        "verifyidtoken",
        "verify_oauth2_token",
        "parsewithclaims(",
    ];
    verifies.iter().any(|word| text.contains(word)) || text.matches("jwt.decode(").count() > 1
}

/// Whether a function around decides about callers.
fn decides(code: &Code<'_>, node: Node<'_>) -> bool {
    code.outward(code.function_at(node)).any(|f| {
        let name = f.name.to_lowercase();
        [
            "verify",
            "validate",
            "auth",
            "require",
            "check",
            "middleware",
            "dispatch",
            "current_user",
            "currentuser",
            "getuser",
            "get_user",
            "principal",
            "protect",
            "guard",
        ]
        .iter()
        .any(|word| name.contains(word))
    }) || code.mentions(&["req.user =", "request.state.user ="])
}

/// Whether a pair is in a call that checks tokens, or in the options of one.
fn checks_token(code: &Code<'_>, node: Node<'_>) -> bool {
    let name = code.call_around(node).map(|call| call.path.clone()).unwrap_or_default();
    let checks = ["verif", "decode", "jwt", "auth", "bearer", "validate", "protect", "provider"];
    if name.is_empty() {
        return decides(code, node) || code.mentions(&["jwtverify(", "jwt.verify(", "jwt.decode("]);
    }
    checks.iter().any(|word| name.contains(word)) && !http::outbound(&Call { node, path: name, args: Vec::new() })
}

/// Audiences of well-known services, and of the service that this server calls.
fn upstream(code: &Code<'_>, value: Node<'_>) -> bool {
    let known = [
        "graph.microsoft.com",
        "00000003-0000-0000-c000-000000000000",
        "googleapis.com",
        "api.github.com",
        "management.azure.com",
        "management.core.windows.net",
        "api.atlassian.com",
        "api.slack.com",
        "storage.azure.com",
        "vault.azure.net",
        "api.spotify.com",
        "dev.azure.com",
        "499b84ac-1321-427f-aa17-267ca6975798",
    ];
    let text = code.fold_partly(value).to_lowercase();
    let list = code.bare_of(value);
    if known.iter().any(|host| text.contains(host) || list.contains(host)) {
        return true;
    }
    if ["upstream", "downstream", "backend_audience", "target_audience"].iter().any(|word| list.contains(word)) {
        return true;
    }
    let Some(host) =
        text.strip_prefix("https://").and_then(|rest| rest.split('/').next()).filter(|host| host.len() > 3)
    else {
        return false;
    };
    code.calls.iter().filter(|call| http::outbound(call)).any(|call| {
        call.args.first().is_some_and(|arg| {
            let address = code.fold_partly(*arg).to_lowercase();
            address.starts_with(&format!("https://{host}"))
                && !address.contains("jwks")
                && !address.contains(".well-known")
        })
    })
}

#[cfg(test)]
mod tests;
