//! Answers that are kept, and what keeps them from being.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use sigil_core::policy::{Access, Rules};

use super::*;
use crate::access;
use crate::gateway::mask::Masks;
use crate::gateway::table::Entry;
use crate::upstream::Endpoint;

const ON: &str = r#"{"tools":{"cache":{"get*":true}}}"#;

#[derive(Debug, Default)]
struct Inner {
    /// Calls by tool.
    calls: HashMap<String, usize>,
    /// Tools of which the server does not say both.
    unsaid: Vec<String>,
    lists_as_events: bool,
}

/// A server of both eras over HTTP that counts its calls.
struct Counting {
    port: u16,
    inner: Arc<Mutex<Inner>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

const TOOLS: [&str; 9] =
    ["get", "get_events", "get_noisy", "get_failed", "get_error", "get_large", "get_more", "get_secret", "put"];

fn events(messages: &[Value]) -> (&'static str, String) {
    let text: String = messages.iter().map(|message| format!(": hi\n\nevent: message\ndata: {message}\n\n")).collect();
    ("text/event-stream", text)
}

async fn answer(inner: Arc<Mutex<Inner>>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let respond = |status: u16, (kind, text): (&str, String)| {
        let response = Response::builder().status(status).header("content-type", kind);
        let session = parts.headers.get("x-begin").map_or("s1", |_| "s2");
        response.header("mcp-session-id", session).body(Full::from(text)).unwrap()
    };
    let changed = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
    if parts.method == "GET" {
        return respond(200, events(&[changed]));
    }
    let body = body.collect().await.unwrap().to_bytes();
    let Ok(asked) = serde_json::from_slice::<Value>(&body) else { return respond(202, ("text/plain", String::new())) };
    if asked.get("id").is_none() {
        return respond(202, ("text/plain", String::new()));
    }
    let message = |result: Value| json!({"jsonrpc": "2.0", "id": asked["id"], "result": result});
    let plain = |result: Value| ("application/json", message(result).to_string());
    let tool = asked["params"]["name"].as_str().unwrap_or_default();
    let mut inner = inner.lock().unwrap();
    let text = match asked["method"].as_str().unwrap() {
        "initialize" => {
            let version = &asked["params"]["protocolVersion"];
            plain(
                json!({"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "c", "version": "1"}}),
            )
        }
        "server/discover" => {
            plain(json!({"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {}}))
        }
        "tools/list" => {
            let hints = |name: &str| !inner.unsaid.iter().any(|unsaid| unsaid == name);
            let tool = |name: &&str| json!({"name": name, "annotations": {"readOnlyHint": true, "idempotentHint": hints(name)}});
            let tools: Vec<Value> = TOOLS.iter().map(tool).collect();
            let result = json!({"resultType": "complete", "tools": tools});
            if inner.lists_as_events { events(&[message(result)]) } else { plain(result) }
        }
        "tools/call" => {
            let count = inner.calls.entry(tool.to_owned()).or_default();
            *count += 1;
            let result = json!({"resultType": "complete", "n": *count, "content": []});
            let noise =
                json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}});
            match tool {
                "get_events" => events(&[message(result)]),
                "get_noisy" => events(&[noise, message(result)]),
                "get_failed" => plain(json!({"resultType": "complete", "isError": true, "content": []})),
                "get_error" => {
                    let error = json!({"code": -32603, "message": "no"});
                    ("application/json", json!({"jsonrpc": "2.0", "id": asked["id"], "error": error}).to_string())
                }
                "get_large" => plain(json!({"resultType": "complete", "text": "x".repeat(2 << 20)})),
                "get_more" => plain(json!({"resultType": "input_required", "requestState": "s"})),
                "get_secret" => plain(json!({"secret": parts.headers["x-secret"].to_str().unwrap()})),
                "put_changed" => events(&[changed, message(result)]),
                _ => plain(result),
            }
        }
        _ => plain(json!({})),
    };
    respond(200, text)
}

impl Counting {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let inner = Arc::new(Mutex::new(Inner::default()));
        let shared = inner.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let inner = shared.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(|request| {
                        let inner = inner.clone();
                        async move { Ok::<_, std::convert::Infallible>(answer(inner, request).await) }
                    });
                    let io = hyper_util::rt::TokioIo::new(stream);
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
                });
            }
        });
        Self { port, inner, serving }
    }

    fn endpoint(&self) -> Arc<Endpoint> {
        endpoint(Transport::Http, self.port, &[])
    }

    fn count(&self, tool: &str) -> usize {
        self.inner.lock().unwrap().calls.get(tool).copied().unwrap_or(0)
    }
}

/// A front before such a server, under a policy, that has seen its list.
async fn front(policy: &str) -> (Front, Counting) {
    let (front, server) = (Front::new().await, Counting::start().await);
    front.set(&[(NAME, vec![server.endpoint()])]);
    front.govern(NAME, Access::Anonymous, policy);
    list(&front).await;
    (front, server)
}

async fn list(front: &Front) {
    let (headers, body) = stateless("1", "tools/list", "", "");
    let answer = front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

/// A stateless call; `more`: headers beside.
async fn ask(front: &Front, tool: &str, arguments: &str, meta: &str, more: &[(&str, &str)]) -> Answer {
    let rest = format!(r#""name":"{tool}","arguments":{arguments}"#);
    let (mut headers, body) = stateless("\"q\"", "tools/call", &rest, meta);
    headers.extend(owned(more));
    let answer = front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await;
    assert!(answer.status != 200 || answer.last()["id"] == "q", "{}", answer.text);
    answer
}

async fn hits(front: &Front, tool: &str) -> bool {
    ask(front, tool, "{}", "", &[]).await.header("x-sigil-cache") == "hit"
}

async fn metric(front: &Front, series: &str) -> f64 {
    let page = front.raw("GET", "/metrics", &[], "").await.text;
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} in {page}")).parse().unwrap()
}

#[tokio::test]
async fn the_same_call_is_answered_once() {
    let (front, server) = front(ON).await;
    let first = ask(&front, "get", r#"{"a":1,"b":"é"}"#, "", &[]).await;
    assert_eq!((first.last()["result"]["n"].as_i64(), first.header("x-sigil-cache").as_str()), (Some(1), ""));
    let mut frames = front.gateway.tap(NAME).unwrap();
    let again = ask(&front, "get", r#"{ "b" : "\u00e9", "a":1 }"#, r#""progressToken":7,"traceparent":"x""#, &[]).await;
    assert_eq!((again.header("x-sigil-cache").as_str(), again.header("age").as_str()), ("hit", "0"));
    assert_eq!(again.json()["result"], first.last()["result"]);
    assert_eq!(server.count("get"), 1);
    let mut shown = Vec::new();
    while shown.len() < 2 {
        let frame = tokio::time::timeout(Duration::from_secs(10), frames.recv()).await.expect("a frame").unwrap();
        shown.push((frame.method.clone(), frame.cached));
    }
    assert_eq!(shown, [("tools/call".to_owned(), false), ("result".to_owned(), true)]);
    // anything that the answer may depend on
    type Headers = &'static [(&'static str, &'static str)];
    let others: [(&str, &str, Headers); 8] = [
        (r#"{"a":1.0,"b":"é"}"#, "", &[]),
        (r#"{"a":1}"#, "", &[]),
        (r#"{"a":1,"b":"é"}"#, r#""io.modelcontextprotocol/clientInfo":{"name":"x","version":"1"}"#, &[]),
        (r#"{"a":1,"b":"é"}"#, r#""io.modelcontextprotocol/logLevel":"info""#, &[]),
        (r#"{"a":1,"b":"é"}"#, r#""vendor/thing":1"#, &[]),
        (r#"{"a":1,"b":"é"}"#, "", &[("x-team", "red")]),
        (r#"{"a":1,"b":"é"}"#, "", &[("cache-control", "no-cache")]),
        (r#"{"a":1,"b":"é","b":"é"}"#, "", &[]),
    ];
    for (index, (arguments, meta, more)) in others.iter().enumerate() {
        let other = ask(&front, "get", arguments, meta, more).await;
        assert_eq!((other.status, server.count("get"), other.header("x-sigil-cache").as_str()), (200, index + 2, ""));
    }
    let rest = r#""name":"get","arguments":{"a":1,"b":"é"},"requestState":"x""#;
    let (headers, body) = stateless("1", "tools/call", rest, "");
    assert_eq!(front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await.status, 200);
    assert_eq!(front.raw("POST", &format!("/mcp/{NAME}?x=1"), &headers, &body).await.status, 200);
    assert_eq!(server.count("get"), 11);
    // what is wrong with a request is told as ever
    let (mut headers, body) = stateless("1", "tools/call", r#""name":"get","arguments":{"a":1,"b":"é"}"#, "");
    headers.retain(|(name, _)| name != "mcp-method");
    assert_eq!(front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await.status, 400);
    // a tool that the policy does not name
    for _ in 0..2 {
        assert!(!hits(&front, "put").await);
    }
    let of = |name: &str| format!("sigil_cache_{name}{{deployment=\"{NAME}\"}}");
    assert_eq!((metric(&front, &of("hits_total")).await, metric(&front, &of("misses_total")).await), (1.0, 6.0));
    let passed = format!("sigil_cache_passed_total{{deployment=\"{NAME}\",reason=\"request\"}}");
    assert_eq!(metric(&front, &passed).await, 5.0);
    assert!(metric(&front, "sigil_cache_bytes").await > 1000.0);
}

#[tokio::test]
async fn one_callers_answer_is_no_others() {
    let (front, server) = front(ON).await;
    assert!(!hits(&front, "get").await && hits(&front, "get").await);
    front.govern(NAME, Access::Key, ON);
    let make = |label: &str| {
        let new = access::NewToken::new(label, access::Role::Caller);
        access::reveal(&access::create_token(front.data_dir(), new).unwrap().0).to_owned()
    };
    let (ann, bob) = (make("ann"), make("bob"));
    for (key, wanted) in [(&ann, ""), (&ann, "hit"), (&bob, ""), (&bob, "hit"), (&ann, "hit")] {
        let answer = ask(&front, "get", "{}", "", &[("x-api-key", key)]).await;
        assert_eq!((answer.status, answer.header("x-sigil-cache").as_str()), (200, wanted), "{}", answer.text);
    }
    assert_eq!(server.count("get"), 3);
    assert_eq!(ask(&front, "get", "{}", "", &[]).await.status, 401);
    // a key that is revoked takes its answers with it
    let full = front.gateway.shared.remembered.answers.bytes();
    access::revoke_token(front.data_dir(), "bob").unwrap();
    let table = front.gateway.shared.table.borrow().clone();
    crate::gateway::caching::sweep(&front.gateway.shared, &table);
    let left = front.gateway.shared.remembered.answers.bytes();
    assert!(0 < left && left < full, "{left} of {full}");
    wait_for(&front, &bob, 401).await;
    assert_eq!(ask(&front, "get", "{}", "", &[("x-api-key", &ann)]).await.header("x-sigil-cache"), "hit");
}

async fn wait_for(front: &Front, key: &str, status: u16) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while ask(front, "get", "{}", "", &[("x-api-key", key)]).await.status != status {
        assert!(tokio::time::Instant::now() < deadline, "{status} within 10 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_hit_is_a_call_of_the_callers_rate() {
    let (front, server) = front(r#"{"caller_rate":"3/h","tools":{"cache":{"get":true}}}"#).await;
    // the list was the first one
    assert!(!hits(&front, "get").await && hits(&front, "get").await);
    assert_eq!((ask(&front, "get", "{}", "", &[]).await.status, server.count("get")), (429, 1));
}

#[tokio::test]
async fn only_whole_plain_successes_are_kept() {
    let (front, server) = front(ON).await;
    for tool in ["get_noisy", "get_failed", "get_error", "get_large", "get_more"] {
        for count in 1..=2 {
            let answer = ask(&front, tool, "{}", "", &[]).await;
            assert_eq!((server.count(tool), answer.header("x-sigil-cache").as_str()), (count, ""), "{tool}");
        }
    }
    // a stream that holds nothing but the answer
    let first = ask(&front, "get_events", "{}", "", &[]).await;
    assert_eq!(first.header("content-type"), "text/event-stream");
    let again = ask(&front, "get_events", "{}", "", &[]).await;
    assert_eq!((again.header("content-type").as_str(), server.count("get_events")), ("application/json", 1));
    assert_eq!(again.json(), first.last());
}

#[tokio::test]
async fn what_a_server_does_not_say_is_not_kept() {
    let (front, server) = (Front::new().await, Counting::start().await);
    server.inner.lock().unwrap().unsaid = vec!["get_events".into()];
    server.inner.lock().unwrap().lists_as_events = true;
    front.set(&[(NAME, vec![server.endpoint()])]);
    front.govern(NAME, Access::Anonymous, ON);
    // no list has passed by
    assert!(!hits(&front, "get").await && !hits(&front, "get").await);
    list(&front).await;
    assert!(!hits(&front, "get").await && hits(&front, "get").await);
    assert!(!hits(&front, "get_events").await && !hits(&front, "get_events").await);
    let passed = |reason: &str| format!("sigil_cache_passed_total{{deployment=\"{NAME}\",reason=\"{reason}\"}}");
    assert_eq!(metric(&front, &passed("unlisted")).await, 2.0);
    assert_eq!(metric(&front, &passed("hints")).await, 2.0);
    // it says otherwise now
    server.inner.lock().unwrap().unsaid = vec!["get".into()];
    list(&front).await;
    assert!(!hits(&front, "get").await && !hits(&front, "get").await);
    assert!(!hits(&front, "get_events").await && hits(&front, "get_events").await);
    assert_eq!(server.count("get"), 5);
}

#[tokio::test]
async fn what_an_answer_stands_on_may_change() {
    let (front, server) = front(ON).await;
    let kept = async |what: &str| {
        assert!(!hits(&front, "get").await, "{what}");
        assert!(hits(&front, "get").await, "{what}");
    };
    kept("at first").await;
    front.govern(NAME, Access::Anonymous, r#"{"tools":{"cache":{"get*":true},"describe":{"get":"other words"}}}"#);
    kept("another policy").await;
    front.govern(NAME, Access::Anonymous, r#"{"tools":{"cache":{"get*":true,"get":false}}}"#);
    assert!(!hits(&front, "get").await && !hits(&front, "get").await);
    front.govern(NAME, Access::Anonymous, ON);
    kept("switched on again").await;
    // a stream in which the server says that its tools are others
    assert_eq!(ask(&front, "put_changed", "{}", "", &[]).await.status, 200);
    assert!(!hits(&front, "get").await && !hits(&front, "get").await, "nothing is known until the next list");
    list(&front).await;
    kept("listed again").await;
    let headers = [accept(None), owned(&[("accept", "text/event-stream")])].concat();
    assert_eq!(front.raw("GET", &format!("/mcp/{NAME}"), &headers, "").await.status, 200);
    list(&front).await;
    kept("a stream without a call said so").await;
    // another release, and another replica
    let mut next = Endpoint::like(&server.endpoint());
    next.release = 2;
    front.set(&[(NAME, vec![Arc::new(next)])]);
    front.govern(NAME, Access::Anonymous, ON);
    assert!(!hits(&front, "get").await && !hits(&front, "get").await);
    list(&front).await;
    kept("another release").await;
    front.configure(|config| config.gateway.cache_memory = 0);
    assert!(!hits(&front, "get").await && !hits(&front, "get").await);
    front.configure(|config| config.gateway.cache_memory = 1 << 20);
    assert!(hits(&front, "get").await);
    // the deployment is removed
    front.set(&[]);
    let table = front.gateway.shared.table.borrow().clone();
    crate::gateway::caching::sweep(&front.gateway.shared, &table);
    assert_eq!(front.gateway.shared.remembered.answers.bytes(), 0);
}

#[tokio::test]
async fn an_answer_is_kept_for_its_time() {
    let (front, server) = front(r#"{"tools":{"cache":{"get":"3s"}}}"#).await;
    assert!(!hits(&front, "get").await && hits(&front, "get").await);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while hits(&front, "get").await {
        assert!(tokio::time::Instant::now() < deadline, "its time is over within 20 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.count("get"), 2);
    // the usual time is the configuration's
    front.govern(NAME, Access::Anonymous, ON);
    front.configure(|config| config.gateway.cache_seconds = 3600);
    assert!(!hits(&front, "get").await && hits(&front, "get").await);
}

#[tokio::test]
async fn the_one_unused_for_longest_makes_room() {
    let (front, server) = front(ON).await;
    front.configure(|config| config.gateway.cache_memory = 1200);
    let call = async |n: usize| {
        let answer = ask(&front, "get", &format!("{{\"n\":{n}}}"), "", &[]).await;
        answer.header("x-sigil-cache") == "hit"
    };
    assert!(!call(1).await && !call(2).await && call(1).await);
    for n in 3..10 {
        assert!(!call(n).await && call(1).await, "{n}");
        let bytes = front.gateway.shared.remembered.answers.bytes();
        assert!(bytes <= 1200, "{bytes}");
    }
    assert!(!call(2).await);
    assert_eq!(server.count("get"), 10);
}

#[tokio::test]
async fn renamed_tools_and_secrets() {
    let (front, server) = (Front::new().await, Counting::start().await);
    let policy = r#"{"tools":{"cache":{"get_secret":true},"rename":{"get_secret":"shown"}}}"#;
    let injected = vec![(Inject::Header("x-secret".into()), "hunter2-hunter2".into())];
    let entry = front.entry(NAME, &[server.endpoint()]);
    let rules = Arc::new(Rules::new(serde_json::from_str(policy).unwrap()).unwrap());
    let masks = Masks::of(&injected);
    front.publish(vec![Entry { rules, masks, injected: Arc::new(injected), ..entry.clone() }]);
    list(&front).await;
    for wanted in ["", "hit"] {
        let answer = ask(&front, "shown", "{}", "", &[]).await;
        assert_eq!(answer.header("x-sigil-cache"), wanted, "{}", answer.text);
        assert_eq!(answer.last()["result"]["secret"], "*".repeat("hunter2-hunter2".len()));
    }
    assert_eq!((server.count("get_secret"), hits(&front, "get_secret").await), (1, false));
    // starred before it was kept: nothing masks it now
    let rules = front.gateway.shared.table.borrow().routes[NAME].rules.clone();
    let injected = front.gateway.shared.table.borrow().routes[NAME].injected.clone();
    front.publish(vec![Entry { rules, injected, ..entry }]);
    let bare = ask(&front, "shown", "{}", "", &[]).await;
    assert_eq!(bare.header("x-sigil-cache"), "hit");
    assert!(!bare.text.contains("hunter2"), "{}", bare.text);
}

/// A stdio server of the handshake's era, with annotations.
fn annotated() -> String {
    let hints = r#""annotations": {"readOnlyHint": True, "idempotentHint": True}"#;
    let tools: Vec<String> =
        ["echo", "progress", "ask"].iter().map(|t| format!("{{\"name\": \"{t}\", {hints}}}")).collect();
    SERVER.replace(r#"{"name": "echo"}"#, &tools.join(", "))
}

fn echo(id: i64) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"echo","arguments":{{"a":1}}}}}}"#)
}

#[tokio::test]
async fn sessions_of_one_caller_share_what_is_kept() {
    let front = Front::new().await;
    let (replica, http) = (stdio(&annotated()), Counting::start().await);
    front.set(&[(NAME, vec![replica.clone()]), ("h", vec![http.endpoint()])]);
    let policy = r#"{"tools":{"cache":{"*":true}}}"#;
    front.govern(NAME, Access::Anonymous, policy);
    let (one, two) = (front.begin(NAME).await, front.begin(NAME).await);
    let listed = r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#;
    assert_eq!(front.post(NAME, Some(&one), listed).await.status, 200);
    let first = front.post(NAME, Some(&one), echo(3)).await;
    assert_eq!((first.status, first.header("x-sigil-cache").as_str()), (200, ""));
    for session in [&one, &two] {
        let again = front.post(NAME, Some(session), echo(4)).await;
        assert_eq!((again.header("x-sigil-cache").as_str(), again.json()["id"].as_i64()), ("hit", Some(4)));
        assert_eq!(again.json()["result"], first.last()["result"]);
    }
    // without its session, and in one that is over, nobody gets it
    assert_eq!(front.post(NAME, None, echo(5)).await.status, 400);
    let path = format!("/mcp/{NAME}");
    assert_eq!(front.raw("DELETE", &path, &accept(Some(&two)), "").await.status, 204);
    assert_eq!(front.post(NAME, Some(&two), echo(6)).await.status, 404);
    // what came with progress
    for id in [7, 8] {
        let params = r#"{"name":"progress","_meta":{"progressToken":1}}"#;
        let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{params}}}"#);
        let answer = front.post(NAME, Some(&one), text).await;
        assert_eq!((answer.status, answer.header("x-sigil-cache").as_str()), (200, ""));
        assert!(answer.events().len() > 1);
    }
    // the server says that its tools are others at every handshake
    front.begin(NAME).await;
    assert_eq!(front.post(NAME, Some(&one), echo(9)).await.header("x-sigil-cache"), "");

    front.govern("h", Access::Anonymous, policy);
    let session = front.begin("h").await;
    assert_eq!(front.post("h", Some(&session), listed).await.status, 200);
    let get = |id: i64| call(id, "get");
    assert_eq!(front.post("h", Some(&session), get(3)).await.header("x-sigil-cache"), "");
    let again = front.post("h", Some(&session), get(4)).await;
    assert_eq!((again.header("x-sigil-cache").as_str(), again.json()["id"].as_i64()), ("hit", Some(4)));
    // a request without the session is another one
    assert_eq!(front.post("h", None, get(5)).await.header("x-sigil-cache"), "");
    assert_eq!(http.count("get"), 2);
}

#[tokio::test]
async fn a_question_to_the_client_keeps_the_answer_from_being_kept() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(&annotated())])]);
    front.govern(NAME, Access::Anonymous, r#"{"tools":{"cache":{"*":true}}}"#);
    let session = front.begin(NAME).await;
    assert_eq!(front.post(NAME, Some(&session), r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#).await.status, 200);
    for id in [3, 4] {
        let mut asked = front.open("POST", &format!("/mcp/{NAME}"), &accept(Some(&session)), &call(id, "ask")).await;
        assert_eq!(asked.event().await["method"], "elicitation/create");
        let said = r#"{"jsonrpc":"2.0","id":"srv-1","result":{"action":"accept","content":{}}}"#;
        assert_eq!(front.post(NAME, Some(&session), said).await.status, 202);
        assert_eq!(asked.event().await["id"], id);
        assert!(asked.ended().await);
    }
    // the question goes another call's way, and nothing of it is in the answer's own
    let path = format!("/mcp/{NAME}");
    let mut other = front.open("POST", &path, &accept(Some(&session)), &call(10, "after-next")).await;
    for id in [11, 12] {
        let answering = async {
            assert_eq!(other.event().await["method"], "elicitation/create");
            let said = r#"{"jsonrpc":"2.0","id":"srv-1","result":{"action":"accept","content":{}}}"#;
            assert_eq!(front.post(NAME, Some(&session), said).await.status, 202);
        };
        let (answer, ()) = tokio::join!(front.post(NAME, Some(&session), call(id, "ask")), answering);
        assert_eq!((answer.last()["id"].as_i64(), answer.header("x-sigil-cache").as_str()), (Some(id), ""));
    }
}

#[tokio::test]
async fn a_stateless_clients_list_is_read_by_the_gateway_itself() {
    let modern = MODERN.replace(
        r#"{"name": "echo"}"#,
        r#"{"name": "echo", "annotations": {"readOnlyHint": True, "idempotentHint": True}}"#,
    );
    for script in [modern, annotated()] {
        let front = Front::new().await;
        front.set(&[(NAME, vec![stdio(&script)])]);
        front.govern(NAME, Access::Anonymous, r#"{"tools":{"cache":{"echo":true}}}"#);
        // the first call has the list read, for the headers that mirror arguments
        assert!(!hits(&front, "echo").await && !hits(&front, "echo").await && hits(&front, "echo").await);
    }
}
