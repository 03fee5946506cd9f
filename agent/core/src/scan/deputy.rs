//! Confused deputy: one client at the other service for everybody, without asking the user; redirects that go anywhere.

use tree_sitter::Node;

use super::code::{Code, Lang, Through, last};
use super::http::{self, body_of, incoming};
use super::{Findings, Rule, Severity};

const STATIC_CLIENT: Rule = Rule {
    id: "oauth-static-client",
    class: "confused-deputy",
    severity: Severity::Error,
    impact: "every client that registers is the same client to the other service: a consent given once serves an attacker, too",
    fix: "give each registered client an id of its own, and ask for consent for each",
};
const NO_CONSENT: Rule = Rule {
    id: "oauth-no-consent",
    class: "confused-deputy",
    severity: Severity::Error,
    impact: "a link sends a user who is logged in at the other service straight through, and the code goes to the link's author",
    fix: "show the user which client asks for what, and go on only after their consent, kept per client",
};
const REDIRECT: Rule = Rule {
    id: "oauth-redirect-unchecked",
    class: "confused-deputy",
    severity: Severity::Error,
    impact: "authorization codes go to an address of the attacker's choice",
    fix: "compare redirect_uri exactly with those that the client registered",
};
const STATE: Rule = Rule {
    id: "oauth-state-missing",
    class: "confused-deputy",
    severity: Severity::Warning,
    impact: "an attacker's login can be slipped under a victim, or a victim's code used by the attacker",
    fix: "send a random state, keep it with the browser, and compare it in the callback; use PKCE",
};

pub(super) const RULES: &[&Rule] = &[&STATIC_CLIENT, &NO_CONSENT, &REDIRECT, &STATE];

pub(super) fn check(code: &Code<'_>, findings: &mut Findings) {
    if !code.mentions(&["redirect_uri", "redirecturi", "client_id", "clientid"]) {
        return;
    }
    static_client(code, findings);
    consent(code, findings);
    redirects(code, findings);
    state(code, findings);
}

/// Values that are the same for everybody: from the source, the environment, settings.
fn fixed(code: &Code<'_>, value: Node<'_>) -> bool {
    if code.fold(value).is_some_and(|text| !text.is_empty()) {
        return true;
    }
    let set = |path: &str| {
        path.starts_with("process.env.")
            || path.starts_with("env.")
            || path.starts_with("os.environ.")
            || path.starts_with("os.getenv")
            || path.contains("settings.")
            || path.contains("config.")
            || path.contains(".env.")
            || path.contains("options.clientid")
    };
    code.traces(value, Through::Calls, &set)
}

/// Functions that register clients or start an authorization: routes and methods of providers.
fn handlers<'t>(code: &Code<'t>, paths: &[&str], names: &[&str]) -> Vec<Node<'t>> {
    let mut found: Vec<Node<'t>> = Vec::new();
    for route in http::routes(code) {
        let path = route.path.trim_end_matches('/');
        if paths.iter().any(|end| path.ends_with(end))
            && let Some(handler) = route.handlers.last()
        {
            found.push(body_of(code, *handler));
        }
    }
    for function in &code.functions {
        if names.contains(&function.name.to_lowercase().as_str()) {
            found.push(function.node);
        }
    }
    // `if (url.pathname === "/register") { … }`
    for branch in &code.branches {
        let test = code.bare_of(branch.test);
        if paths.iter().any(|end| test.contains(&format!("{end}\"")) || test.contains(&format!("{end}'")))
            && (test.contains("path") || test.contains("url"))
            && let Some(then) = branch.then
        {
            found.push(then);
        }
    }
    found.sort_by_key(Node::start_byte);
    found.dedup_by_key(|node| node.id());
    found
}

fn static_client(code: &Code<'_>, findings: &mut Findings) {
    let registers = handlers(
        code,
        &["/register", "/registration", "/clients", "/dcr"],
        &[
            "register_client",
            "registerclient",
            "handleregister",
            "handle_register",
            "handleregistration",
            "register",
            "dynamicclientregistration",
            "dynamic_client_registration",
            "handleclientregistration",
            "handle_registration",
            "client_registration",
            "oauth_register",
            "register_oauth_client",
        ],
    );
    for body in registers {
        let mut told = false;
        for pair in code.pairs_in(body).filter(|pair| matches!(pair.key.as_str(), "client_id" | "clientid")) {
            if !told && fixed(code, pair.value) && !outbound_pair(code, pair.node) {
                code.add(findings, &STATIC_CLIENT, pair.node, "every client that registers gets the same client_id");
                told = true;
            }
        }
        let range = body.byte_range();
        for set in code.sets.iter().filter(|set| range.contains(&set.node.start_byte())) {
            let target = code.path(set.target);
            if !told
                && target.contains('.')
                && matches!(last(&target), "client_id" | "clientid")
                && fixed(code, set.value)
            {
                code.add(findings, &STATIC_CLIENT, set.node, "every client that registers gets the same client_id");
                told = true;
            }
        }
    }
}

/// Whether a pair goes to another service.
fn outbound_pair(code: &Code<'_>, node: Node<'_>) -> bool {
    code.call_around(node).is_some_and(|call| http::outbound(call) || last(&call.path) == "urlsearchparams")
}

fn asks_consent(text: &str) -> bool {
    [
        "consent",
        "approv",
        "confirm",
        "dialog",
        "allow this",
        "render_template",
        "res.render(",
        "<form",
        "grant_page",
        "interaction",
        "prompt_user",
    ]
    .iter()
    .any(|word| text.contains(word))
        && !text.contains("prompt=none")
}

fn consent(code: &Code<'_>, findings: &mut Findings) {
    let starts = handlers(
        code,
        &["/authorize", "/oauth/authorize", "/auth"],
        &["authorize", "handleauthorize", "handle_authorize", "oauth_authorize", "authorizehandler"],
    );
    // a login of the server's own has no clients that register; what begins at /authorize has
    for body in starts {
        let text = code.bare_of(body);
        if asks_consent(text) || called_text_asks(code, body) {
            continue;
        }
        let redirects =
            ["redirect", "location", "authorizationurl", "authorization_url"].iter().any(|word| text.contains(word));
        if !redirects {
            continue;
        }
        let sent = |name: &str| matches!(name, "client_id" | "clientid");
        let pair = code.pairs_in(body).find(|pair| sent(&pair.key) && fixed(code, pair.value)).map(|pair| pair.node);
        let set = code.calls_in(body).find(|call| {
            matches!(last(&call.path), "set" | "append" | "add")
                && matches!(call.args.as_slice(), [name, value, ..] if code.literal(*name).is_some_and(|name| sent(&name.to_lowercase())) && fixed(code, *value))
        });
        let range = body.byte_range();
        let text_with = code.strings.iter().find(|string| {
            range.contains(&string.start_byte()) && {
                let text = code.text(**string).to_lowercase();
                text.contains("client_id=")
                    && (!text.contains("client_id={") && !text.contains("client_id=${") || fixed_in(code, **string))
            }
        });
        let Some(first) = pair.or(set.map(|call| call.node)).or(text_with.copied()) else { continue };
        // the redirect is what a reader looks for; where it is not in sight, the fixed id
        let redirect = code
            .calls_in(body)
            .find(|call| last(&call.path).contains("redirect") && call.node.start_byte() >= body.start_byte())
            .map_or(first, |call| call.node);
        code.add(
            findings,
            &NO_CONSENT,
            redirect,
            "users are sent on to the other service, with one client_id for all, before they consent",
        );
    }
}

/// Whether `client_id=…` in a text that is put together is the same for everybody.
fn fixed_in(code: &Code<'_>, string: Node<'_>) -> bool {
    let mut cursor = string.walk();
    let mut before = String::new();
    for child in string.named_children(&mut cursor) {
        if matches!(child.kind(), "interpolation" | "template_substitution") {
            if before.to_lowercase().ends_with("client_id=") {
                return child.named_child(0).is_some_and(|value| {
                    let value = match value.kind() {
                        "call" | "call_expression" => {
                            value.child_by_field_name("arguments").and_then(|a| a.named_child(0)).unwrap_or(value)
                        }
                        _ => value,
                    };
                    fixed(code, value)
                });
            }
        } else {
            before = code.text(child).to_owned();
        }
    }
    false
}

/// Functions of the file that the handler calls, and whether they ask.
fn called_text_asks(code: &Code<'_>, body: Node<'_>) -> bool {
    code.calls_in(body).any(|call| {
        let name = last(&call.path).to_owned();
        code.functions.iter().any(|f| f.name.to_lowercase() == name && asks_consent(code.bare_of(f.node)))
    })
}

fn is_redirect_uri(text: &str) -> bool {
    let name = last(text);
    matches!(
        name,
        "redirect_uri"
            | "redirecturi"
            | "redirect_url"
            | "redirecturl"
            | "callback_url"
            | "return_to"
            | "returnto"
            | "requested_redirect"
            | "requestedredirecturi"
    )
}

fn redirects(code: &Code<'_>, findings: &mut Findings) {
    let mut told = Vec::new();
    let scheme = |text: &str| {
        matches!(
            text,
            "http://" | "https://" | "http" | "https" | "/" | "https:" | "javascript:" | "data:" | "//" | "#" | "*"
        )
    };
    // a part of the address is compared
    for call in &code.calls {
        let name = last(&call.path);
        let parts = ["startswith", "endswith", "includes", "indexof", "match", "contains", "hasprefix", "search"];
        if !parts.contains(&name) {
            continue;
        }
        let subject = match call.path.rsplit_once('.') {
            Some(("strings", "hasprefix" | "contains")) => call.args.first().map(|arg| code.path(*arg)),
            Some((object, _)) => Some(object.to_owned()),
            None => None,
        };
        if !subject.is_some_and(|subject| is_redirect_uri(&subject)) {
            continue;
        }
        let with = call.args.last().and_then(|arg| code.fold(*arg)).unwrap_or_default();
        // refusing more than the list does is no flaw; nor is looking for a wildcard
        if scheme(&with) || denies(code, call.node) {
            continue;
        }
        told.push(code.function_at(call.node));
        code.add(findings, &REDIRECT, call.node, "redirect_uri is compared in part only");
    }
    if code.lang == Lang::Python {
        for branch in &code.branches {
            let test = code.bare_of(branch.test);
            let part = test.split(" in ").collect::<Vec<_>>();
            if let [left, right] = part.as_slice()
                && (left.trim_start_matches(['(', ' ']).starts_with(['"', '\'']))
                && is_redirect_uri(right.trim_end_matches([')', ' ', ':']).trim())
                && !left.contains("://\"")
                && !left.contains("not")
            {
                told.push(code.function_at(branch.node));
                code.add(findings, &REDIRECT, branch.node, "redirect_uri is compared in part only");
            }
        }
    }
    // it is used as it came
    for call in &code.calls {
        let name = last(&call.path);
        if !matches!(
            name,
            "redirect"
                | "redirectresponse"
                | "httpfound"
                | "new redirectresponse"
                | "found"
                | "sendredirect"
                | "writehead"
        ) {
            continue;
        }
        let function = code.function_at(call.node);
        if told.contains(&function) {
            continue;
        }
        let taken = |path: &str| {
            incoming(path, &["redirect_uri", "redirecturi", "redirect_url", "return_to", "returnto"])
                || path == "param.redirect_uri"
                    && code.functions.get(function).is_some_and(|f| !f.decorators.is_empty())
        };
        if !call.args.iter().any(|arg| code.traces(*arg, Through::Calls, &taken)) {
            continue;
        }
        let compared = code
            .outward(function)
            .filter(|f| f.node.id() != code.root.id())
            .any(|f| compares_redirect(code.bare_of(f.node)))
            || code.calls.iter().any(|c| {
                last(&c.path).contains("redirect")
                    && ["valid", "check", "verify", "allow", "is_", "assert", "register", "match"]
                        .iter()
                        .any(|word| last(&c.path).contains(word))
            });
        if !compared {
            told.push(function);
            code.add(
                findings,
                &REDIRECT,
                call.node,
                "users are redirected to redirect_uri as it came, without comparing it",
            );
        }
    }
}

/// Whether a test only refuses.
fn denies(code: &Code<'_>, node: Node<'_>) -> bool {
    let Some(function) = code.functions.get(code.function_at(node)) else { return false };
    let text = code.bare_of(function.node);
    let exact = [
        "redirect_uris.includes(",
        "redirecturis.includes(",
        "in client.redirect_uris",
        "redirect_uris.has(",
        "in redirect_uris",
        "redirecturis.has(",
    ];
    exact.iter().any(|word| text.contains(word)) || function.name.to_lowercase().contains("rewrite")
}

fn compares_redirect(text: &str) -> bool {
    [
        "redirect_uris",
        "redirecturis",
        "allowed_redirect",
        "allowedredirect",
        "registered",
        "redirect_uri ==",
        "redirect_uri !=",
        "redirecturi !==",
        "redirecturi ===",
        "!== redirect_uri",
        "=== redirect_uri",
        "!= redirect_uri",
        "== redirect_uri",
        "not in allowed",
        "in allowed",
        "allowed.has(",
        "allowed.includes(",
        "allowlist",
        "validateredirect",
        "validate_redirect",
        "is_valid_redirect",
        "isvalidredirect",
        "allowed_origins",
        "allowed_hosts",
        "in valid_redirects",
    ]
    .iter()
    .any(|word| text.contains(word))
}

fn state(code: &Code<'_>, findings: &mut Findings) {
    let callbacks = handlers(
        code,
        &["/callback", "/oauth/callback", "/auth/callback", "/oauth2callback", "/oauth2/callback"],
        &["oauth_callback", "handlecallback", "handle_callback", "oauthcallback", "handleoauthcallback"],
    );
    for body in callbacks {
        let text = code.bare_of(body);
        let takes_code = text.contains("code")
            && ["code)", "code }", ".code", "\"code\"", "'code'", "code,", "code:"]
                .iter()
                .any(|word| text.contains(word));
        let exchanges = ["token", "exchange"].iter().any(|word| text.contains(word));
        let checks = text.contains("state")
            || text.contains("code_verifier")
            || text.contains("codeverifier")
            || text.contains("nonce");
        if takes_code && exchanges && !checks && http::serves(code) {
            code.add(findings, &STATE, body, "a callback takes a code without comparing the state");
        }
    }
}

#[cfg(test)]
mod tests;
