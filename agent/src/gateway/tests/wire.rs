//! What the gateway answers to requests that are wrong, or of another era than their server: every probe against every
//! kind of server, as the specifications want it (2025-11-25, basic/transports; 2026-07-28,
//! basic/transports/streamable-http and basic/versioning).

use std::convert::Infallible;

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;

/// How an answer reads: its status, the code of its JSON-RPC error, and `*` when the server said so itself.
type Told = &'static str;

/// The servers, one column each: a stdio server of the older era, translated; the same, not translated; an HTTP server of
/// the older era, not translated; a stdio server of the stateless era; an HTTP server of that era; a legacy SSE server and
/// an HTTP server of the older era, both translated.
const COLUMNS: [&str; 7] = [
    "old stdio, translated",
    "old stdio",
    "old HTTP",
    "new stdio",
    "new HTTP",
    "old SSE, translated",
    "old HTTP, translated",
];

struct Probe {
    name: &'static str,
    method: &'static str,
    headers: Vec<(String, String)>,
    body: String,
    /// Of the first five columns.
    want: [Told; 5],
    /// A client of both eras that keeps to the specification sends this: an older server's refusal must not read as the
    /// stateless era's, or the client never falls back.
    conforms: bool,
}

fn probe(name: &'static str, method: &'static str, headers: Headers, body: &str, want: [Told; 5]) -> Probe {
    Probe { name, method, headers, body: body.to_owned(), want, conforms: false }
}

impl Probe {
    /// The answer in a column. To a stateless client all that is translated is one; a client of the older era meets an
    /// HTTP server of it as it is.
    fn want(&self, at: usize, stateless: bool) -> Told {
        match at {
            5 => self.want[0],
            6 => self.want[if stateless { 0 } else { 2 }],
            at => self.want[at],
        }
    }
}

type Headers = Vec<(String, String)>;

/// The usual headers, with these in the place of theirs (an empty value: without).
fn with(usual: &Headers, changes: &[(&str, &str)]) -> Headers {
    let mut headers: Headers = usual.iter().filter(|(n, _)| !changes.iter().any(|(c, _)| c == n)).cloned().collect();
    headers.extend(owned(changes).into_iter().filter(|(_, value)| !value.is_empty()));
    headers
}

const FORBIDDEN: [Told; 5] = ["403 -31403"; 5];
const INVALID: [Told; 5] = ["400 -32600"; 5];
const GONE: [Told; 5] = ["404 -31410"; 5];
const MISMATCH: [Told; 5] = ["400 -32020", "400 -32600", "400 -32020", "400 -32020", "400 -32020"];
const LACKS_META: [Told; 5] = ["400 -32602", "400 -32600", "400 -32602", "400 -32602", "400 -32602"];

fn probes_of_the_older_era() -> Vec<Probe> {
    let usual = accept(None);
    let init = initialize("2025-11-25");
    let post =
        |name, changes: &[(&str, &str)], body: &str, want| probe(name, "POST", with(&usual, changes), body, want);
    let stream = owned(&[("accept", "text/event-stream")]);
    let nobody = ("mcp-session-id", "nobody");
    vec![
        post("bad Origin", &[("origin", "http://evil.example")], &init, FORBIDDEN),
        post("opaque Origin", &[("origin", "null")], &init, FORBIDDEN),
        post("bad Host", &[("host", "evil.example")], &init, FORBIDDEN),
        // an HTTP server decides itself whether it can do without a stream
        post(
            "Accept JSON only",
            &[("accept", "application/json")],
            &init,
            ["406 -32600", "406 -32600", "200 *", "406 -32600", "400 -32022 *"],
        ),
        post("Accept HTML", &[("accept", "text/html")], &init, ["406 -32600"; 5]),
        post("text/plain", &[("content-type", "text/plain")], &init, ["415 -32600"; 5]),
        post("no Content-Type", &[("content-type", "")], &init, ["415 -32600"; 5]),
        post("broken JSON", &[], "{\"jsonrpc\":", ["400 -32700"; 5]),
        post("no JSON-RPC", &[], "{\"id\":1}", INVALID),
        post("batch", &[("mcp-protocol-version", "2025-11-25")], &format!("[{init}]"), INVALID),
        post("batch without a version", &[], &format!("[{}]", ping(1)), INVALID),
        post("unknown version", &[("mcp-protocol-version", "1999-01-01")], &init, INVALID),
        post("no version at all", &[("mcp-protocol-version", "latest")], &ping(1), INVALID),
        post("unknown session", &[nobody], &ping(1), GONE),
        post("no session", &[], &ping(1), ["400 -32600", "400 -32600", "400 -32000 *", "400 -32600", "400 -32022 *"]),
        // named versions, so that the client knows what the server speaks
        post("initialize", &[], &init, ["200", "200", "200 *", "400 -32022", "400 -32022 *"]),
        probe(
            "GET without a session",
            "GET",
            stream.clone(),
            "",
            ["400 -32600", "400 -32600", "400 -32000 *", "400 -32600", "405 *"],
        ),
        probe("GET, unknown session", "GET", with(&stream, &[nobody]), "", GONE),
        probe("GET, unknown version", "GET", with(&stream, &[("mcp-protocol-version", "1999-01-01")]), "", INVALID),
        probe("DELETE, unknown session", "DELETE", owned(&[nobody]), "", GONE),
        probe(
            "DELETE without a session",
            "DELETE",
            Vec::new(),
            "",
            ["400 -32600", "400 -32600", "400 -32000 *", "400 -32600", "405 *"],
        ),
        probe("PUT", "PUT", usual.clone(), &init, ["405 -32600"; 5]),
        probe("PATCH", "PATCH", usual.clone(), &init, ["405 -32600"; 5]),
    ]
}

fn probes_of_the_stateless_era() -> Vec<Probe> {
    let (usual, discover) = stateless("1", "server/discover", "", "");
    let (called, call) = stateless("1", "tools/call", r#""name":"echo""#, "");
    let conforming = |mut probe: Probe| {
        probe.conforms = true;
        probe
    };
    let post =
        |name, changes: &[(&str, &str)], body: &str, want| probe(name, "POST", with(&usual, changes), body, want);
    let other = |version: &str| {
        let headers = with(&usual, &[("mcp-protocol-version", version)]);
        let want = ["400 -32022", "400 -32600", "400 -32000 *", "400 -32022", "400 -32022 *"];
        (headers, discover.replace("2026-07-28", version), want)
    };
    let (headers_later, later, unsupported) = other("2027-01-01");
    let (headers_before, before, _) = other("1999-01-01");
    let gone = |method: &str| {
        let (headers, body) = stateless("1", method, "", "");
        let want = ["404 -32601", "400 -32600", "400 -32000 *", "404 -32601", "404 -32601 *"];
        (headers, body, want)
    };
    let (headers_ping, ping, no_method) = gone("ping");
    let (headers_init, init, _) = gone("initialize");
    let found = ["200", "400 -32600", "400 -32000 *", "200", "200 *"];
    let get = owned(&[("accept", "text/event-stream"), ("mcp-protocol-version", "2026-07-28")]);
    let no_get = ["405 -32600", "405 -32600", "400 -32000 *", "405 -32600", "405 *"];
    let delete = owned(&[("mcp-session-id", "nobody"), ("mcp-protocol-version", "2026-07-28")]);
    let note = r#"{"jsonrpc":"2.0","method":"notifications/x"}"#;
    let reply = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
    let bare = |meta: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"server/discover","params":{{{meta}}}}}"#);
    vec![
        conforming(post("discover", &[], &discover, found)),
        conforming(post("session ids mean nothing", &[("mcp-session-id", "nobody")], &discover, found)),
        conforming(post("so does Last-Event-ID", &[("last-event-id", "7")], &discover, found)),
        conforming(probe("later version", "POST", headers_later, &later, unsupported)),
        conforming(probe("version of no revision", "POST", headers_before, &before, unsupported)),
        conforming(probe("ping", "POST", headers_ping, &ping, no_method)),
        conforming(probe("initialize", "POST", headers_init, &init, no_method)),
        conforming(probe("GET", "GET", get, "", no_get)),
        probe("DELETE", "DELETE", delete, "", no_get),
        post(
            "Accept JSON only",
            &[("accept", "application/json")],
            &discover,
            ["406 -32600", "406 -32600", "400 -32000 *", "406 -32600", "200 *"],
        ),
        post("no Mcp-Method", &[("mcp-method", "")], &discover, MISMATCH),
        post("another Mcp-Method", &[("mcp-method", "tools/list")], &discover, MISMATCH),
        post("Mcp-Method in capitals", &[("mcp-method", "SERVER/DISCOVER")], &discover, MISMATCH),
        post("no MCP-Protocol-Version", &[("mcp-protocol-version", "")], &discover, MISMATCH),
        post("another version than the body", &[("mcp-protocol-version", "2027-01-01")], &discover, MISMATCH),
        probe("no Mcp-Name", "POST", with(&called, &[("mcp-name", "")]), &call, MISMATCH),
        probe("another Mcp-Name", "POST", with(&called, &[("mcp-name", "whoami")]), &call, MISMATCH),
        probe("broken Mcp-Name", "POST", with(&called, &[("mcp-name", "=?base64?ZWNobw?=")]), &call, MISMATCH),
        post("no _meta", &[], &bare(""), LACKS_META),
        post("empty _meta", &[], &bare(r#""_meta":{}"#), LACKS_META),
        post("no client capabilities", &[], &discover.replace("clientCapabilities", "clientCaps"), LACKS_META),
        post("batch", &[], &format!("[{discover}]"), INVALID),
        post("a notification", &[], note, ["202", "400 -32600", "400 -32000 *", "202", "202 *"]),
        post("a response", &[], reply, ["400 -32602", "400 -32600", "400 -32602", "400 -32602", "400 -32602"]),
    ]
}

#[tokio::test]
async fn every_probe_is_answered_as_specified() {
    let (old, new) = (strict(false).await, strict(true).await);
    let (translating, plain) = (Front::new().await, Front::new().await);
    plain.translate_nothing();
    let dir = tempfile::tempdir().unwrap();
    let (sse, _sse) = server_of("legacy", Transport::Sse, &dir.path().join("notes"));
    let again = endpoint(Transport::Http, old.0, &[]);
    translating.set(&[("a", vec![stdio(SERVER)]), ("f", vec![sse]), ("g", vec![again])]);
    plain.set(&[
        ("b", vec![stdio(SERVER)]),
        ("c", vec![endpoint(Transport::Http, old.0, &[])]),
        ("d", vec![stdio(MODERN)]),
        ("e", vec![endpoint(Transport::Http, new.0, &[])]),
    ]);
    let columns = [
        (&translating, "a"),
        (&plain, "b"),
        (&plain, "c"),
        (&plain, "d"),
        (&plain, "e"),
        (&translating, "f"),
        (&translating, "g"),
    ];
    let mut wrong = Vec::new();
    for (era, probes) in [("older", probes_of_the_older_era()), ("stateless", probes_of_the_stateless_era())] {
        for probe in probes {
            for (at, (front, name)) in columns.iter().enumerate() {
                let answer = front.raw(probe.method, &format!("/mcp/{name}"), &probe.headers, &probe.body).await;
                let told = told(&answer);
                let server = COLUMNS[at];
                let mut complain = |why: String| {
                    wrong.push(format!("{era} era, '{}', {server}: {why}: {}", probe.name, answer.text));
                };
                let want = probe.want(at, era == "stateless");
                if told != want {
                    complain(format!("'{told}' instead of '{want}'"));
                }
                if let Some(why) = ill_formed(&probe, &answer) {
                    complain(why.to_owned());
                }
                if era == "stateless" && !answer.header("mcp-session-id").is_empty() {
                    complain("a session id in an era without sessions".into());
                }
                let falls_back = server.starts_with("old") && !server.ends_with("translated");
                if probe.conforms && falls_back && looks_stateless(&told) {
                    complain("reads as a server of the stateless era, so the client does not fall back".into());
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn told(answer: &Answer) -> String {
    let body: Value = serde_json::from_str(&answer.text).unwrap_or_default();
    let code = body["error"]["code"].as_i64().map_or_else(String::new, |code| format!(" {code}"));
    let own = if answer.header("x-own").is_empty() { "" } else { " *" };
    format!("{}{code}{own}", answer.status)
}

/// What a client takes for the word of a server of the stateless era (2026-07-28, basic/versioning).
fn looks_stateless(told: &str) -> bool {
    ["-32020", "-32021", "-32022"].iter().any(|code| told.contains(code)) || told.starts_with("404 -32601")
}

/// What is wrong with an answer whatever it says.
fn ill_formed(probe: &Probe, answer: &Answer) -> Option<&'static str> {
    if answer.status == 405 && answer.header("allow").is_empty() {
        return Some("405 without Allow");
    }
    if answer.text.is_empty() {
        return None;
    }
    let Ok(body) = serde_json::from_str::<Value>(&answer.text) else { return Some("no JSON") };
    if body["jsonrpc"] != "2.0" {
        return Some("no JSON-RPC");
    }
    if answer.status < 300 && body["result"].is_null() {
        return Some("neither an error's status nor a result");
    }
    if answer.status >= 300 && body["error"]["message"].as_str().is_none_or(str::is_empty) {
        return Some("an error without a message");
    }
    if body["error"]["code"] == -32022 && !body["error"]["data"]["supported"].is_array() {
        return Some("the supported versions are not named");
    }
    // an id that could be read comes back, and no other
    let asked: Value = serde_json::from_str(&probe.body).unwrap_or_default();
    let id = if asked["method"].is_string() { &asked["id"] } else { &Value::Null };
    if !body["id"].is_null() && body["id"] != *id { Some("another id") } else { None }
}

/// A server over HTTP that keeps to one era's rules, and marks what it says. Answers its port; ends with the guard.
async fn strict(modern: bool) -> (u16, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = tokio::select! {
                () = stopped.cancelled() => return,
                accepted = listener.accept() => accepted.unwrap(),
            };
            let service = hyper::service::service_fn(move |request: Request<Incoming>| async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                let message: Value = serde_json::from_slice(&body).unwrap_or_default();
                let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
                let (status, answer) = if modern {
                    say_modern(parts.method.as_str(), header("mcp-protocol-version"), &message)
                } else {
                    say_old(header("mcp-session-id"), &message)
                };
                let text = if answer.is_null() { String::new() } else { answer.to_string() };
                let mut response = Response::builder().status(status).header("x-own", "1");
                if status == 405 {
                    response = response.header("allow", "POST");
                }
                if !text.is_empty() {
                    response = response.header("content-type", "application/json");
                }
                if parts.method == "POST" {
                    // of a server of the stateless era it means nothing
                    response = response.header("mcp-session-id", "own");
                }
                Ok::<_, Infallible>(response.body(Full::<Bytes>::from(text)).unwrap())
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (port, stop.drop_guard())
}

fn refused(message: &Value, code: i64, data: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": message["id"], "error": {"code": code, "message": "refused", "data": data}})
}

/// It makes sessions, and knows of none.
fn say_old(session: &str, message: &Value) -> (u16, Value) {
    let greets = message["params"]["protocolVersion"].is_string();
    match message["method"].as_str() {
        Some("initialize") if greets && session.is_empty() => {
            let info = json!({"name": "o", "version": "1"});
            let result = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": info});
            (200, json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
        }
        // as the SDKs of that era put it
        _ => (400, refused(&Value::Null, -32000, Value::Null)),
    }
}

fn say_modern(method: &str, header: &str, message: &Value) -> (u16, Value) {
    if method != "POST" {
        return (405, Value::Null);
    }
    if message["id"].is_null() {
        return (202, Value::Null);
    }
    let version = &message["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"];
    if header != "2026-07-28" || version != header {
        let requested = version.as_str().unwrap_or(header);
        return (400, refused(message, -32022, json!({"supported": ["2026-07-28"], "requested": requested})));
    }
    match message["method"].as_str() {
        Some("server/discover") => {
            let result = json!({"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {}});
            (200, json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
        }
        _ => (404, refused(message, -32601, Value::Null)),
    }
}

/// Every request moves its future: what is seldom must not lie in it.
#[test]
fn a_requests_future_is_small() {
    fn size<F, A, B, C, R>(_: F) -> usize
    where
        F: FnOnce(A, B, C) -> R,
    {
        size_of::<R>()
    }
    let size = size(crate::gateway::serve::handle);
    assert!(size <= 8 << 10, "{size} bytes");
}
