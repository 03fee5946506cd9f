//! The whole front in process: real sockets, a small HTTP server and real stdio processes in the place of containers.

mod access;
mod bundle;
mod cached;
mod compressed;
pub(crate) mod fixture;
mod greeted;
mod lasting;
mod link;
mod matrix;
mod metrics;
mod oauth;
mod openapi;
mod own;
mod probed;
mod recalled;
mod registry;
mod scripts;
mod servers;
mod settings;
mod stateless;
mod tap;
mod traces;
mod translated;
mod waiting;
mod wire;

use std::time::Duration;

use bytes::Bytes;
use fixture::*;
use serde_json::{Value, json};
use servers::*;
use sigil_core::model::{Inject, Transport};
use tokio::sync::mpsc;

use crate::upstream::{GateOptions, UpstreamError, gate};

const NAME: &str = "echo";

// ---------------------------------------------------------------- statuses

#[tokio::test]
async fn statuses_of_the_front() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.translate_nothing();
    front.set(&[("h", vec![http.endpoint()]), (NAME, vec![stdio(SERVER)])]);
    let init = initialize("2025-11-25");
    for name in ["h", NAME] {
        let path = format!("/mcp/{name}");
        let probe = |headers: &[(&str, &str)], body: &str| {
            let (path, headers, body) = (path.clone(), owned(headers), body.to_owned());
            let front = &front;
            async move { front.raw("POST", &path, &headers, &body).await }
        };
        let ok = [("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
        let with = |extra: &[(&'static str, &'static str)]| [ok.as_slice(), extra].concat();
        let bad_origin = probe(&with(&[("origin", "http://evil.example")]), &init).await;
        assert_eq!((bad_origin.status, bad_origin.code().as_str()), (403, "GATEWAY_FORBIDDEN"), "{name}");
        assert_eq!(probe(&with(&[("host", "evil.example")]), &init).await.status, 403);
        assert_eq!(probe(&with(&[("origin", "null")]), &init).await.status, 403);
        let html = [("content-type", "application/json"), ("accept", "text/html")];
        assert_eq!(probe(&html, &init).await.status, 406);
        assert_eq!(probe(&with(&[("mcp-protocol-version", "1999-01-01")]), &init).await.status, 400);
        let broken = probe(&ok, "{\"jsonrpc\":").await;
        assert_eq!((broken.status, broken.json()["error"]["code"].as_i64()), (400, Some(-32700)));
        assert_eq!(probe(&[("content-type", "text/plain"), ok[1]], &init).await.status, 415);
        let batch = probe(&with(&[("mcp-protocol-version", "2025-11-25")]), &format!("[{init}]")).await;
        assert_eq!(batch.status, 400);
        assert_eq!(probe(&with(&[("mcp-session-id", "nobody")]), &ping(1)).await.status, 404);
        let put = front.raw("PUT", &path, &owned(&ok), "").await;
        assert_eq!((put.status, put.header("allow").as_str()), (405, "GET, POST, DELETE, OPTIONS"));
        assert_eq!(front.raw("DELETE", &path, &owned(&[("mcp-session-id", "nobody")]), "").await.status, 404);
        let fine = probe(&with(&[("origin", "http://localhost:6274")]), &init).await;
        assert_eq!((fine.status, fine.header("access-control-allow-origin").as_str()), (200, "http://localhost:6274"));
        let preflight = owned(&[("origin", "http://localhost:1"), ("access-control-request-headers", "x-a")]);
        let preflight = front.raw("OPTIONS", &path, &preflight, "").await;
        assert_eq!((preflight.status, preflight.header("access-control-allow-headers").as_str()), (204, "x-a"));
    }
    let ok = owned(&[("content-type", "application/json"), ("accept", "application/json, text/event-stream")]);
    let path = format!("/mcp/{NAME}/");
    let missing = front.raw("POST", &path, &ok, &ping(7)).await;
    assert_eq!((missing.status, missing.json()["id"].clone()), (400, json!(7)), "no session");
    assert_eq!(front.raw("GET", &path, &owned(&[("accept", "text/event-stream")]), "").await.status, 400);
    let none = front.raw("POST", "/mcp/none", &ok, &init).await;
    assert_eq!((none.status, none.code().as_str()), (404, "GATEWAY_MCP_NOT_FOUND"));
    assert_eq!(front.raw("POST", "/other", &ok, &init).await.status, 404);
    // a stateless request to a server with sessions: 400, and no error of the stateless era, so that clients fall back
    let discover = r#"{"jsonrpc":"2.0","id":1,"method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}"#;
    for headers in [ok.clone(), [ok.clone(), owned(&[("mcp-protocol-version", "2026-07-28")])].concat()] {
        let answer = front.raw("POST", &path, &headers, discover).await;
        assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32600)));
    }
    let large = "x".repeat(3 << 20);
    assert_eq!(front.raw("POST", &path, &ok, &large).await.status, 413);
}

#[tokio::test]
async fn pages_for_machines() {
    let front = Front::new().await;
    front.set(&[]);
    assert_eq!(front.raw("GET", "/healthz", &[], "").await.status, 200);
    assert_eq!(front.raw("GET", "/readyz", &[], "").await.status, 503);
    struct Ready;
    impl crate::web::Status for Ready {
        fn ready(&self) -> Result<(), String> {
            Ok(())
        }
        fn deployments(&self) -> Vec<(&'static str, u64)> {
            vec![("ready", 3)]
        }
    }
    front.gateway.tell(Ready);
    assert_eq!(front.raw("GET", "/readyz", &[], "").await.status, 200);
    assert!(front.raw("GET", "/metrics", &[], "").await.text.contains("sigil_deployments{state=\"ready\"} 3"));
    assert_eq!(front.raw("POST", "/metrics", &[], "").await.status, 405);
}

// ---------------------------------------------------------------- HTTP servers

#[tokio::test]
async fn http_passes_bytes_and_keeps_what_is_the_gateways() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    let secrets = vec![
        (Inject::Header("X-Key".into()), "h-secret".into()),
        (Inject::Query("q".into()), "q-secret".into()),
        (Inject::Body("token".into()), "b-secret".into()),
    ];
    front.set_with(NAME, vec![http.endpoint()], secrets);
    let body = r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","xVendor":1.0,"params":{"name":"echo","arguments":{"n":1.0,"token":"mine"}}}"#;
    let headers = owned(&[
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("authorization", "Bearer client"),
        ("cookie", "a=b"),
        ("x-key", "client"),
        ("mcp-param-region", "eu"),
        ("origin", "http://localhost:3"),
    ]);
    let answer = front.raw("POST", &format!("/mcp/{NAME}?config.a=1&q=client"), &headers, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let seen = http.last();
    assert_eq!(seen.target, "/mcp?config.a=1&q=q-secret");
    assert_eq!(
        seen.body,
        r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","xVendor":1.0,"params":{"name":"echo","arguments":{"n":1.0,"token":"b-secret"}}}"#
    );
    assert_eq!(seen.header("host"), format!("127.0.0.1:{}", http.port));
    assert_eq!((seen.header("x-key"), seen.header("mcp-param-region")), ("h-secret".into(), "eu".into()));
    for kept_back in ["authorization", "cookie", "origin"] {
        assert_eq!(seen.header(kept_back), "", "{kept_back}");
    }
    assert_eq!(answer.json()["id"], "a");
    assert_eq!(answer.header("set-cookie"), "");
}

#[tokio::test]
async fn http_sessions_stay_with_their_replica_over_a_restart() {
    let (one, two) = (HttpServer::start().await, HttpServer::start().await);
    let replicas = vec![one.endpoint(), two.endpoint()];
    let mut front = Front::new().await;
    front.set(&[(NAME, replicas.clone())]);
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let answer = front.post(NAME, None, initialize("2025-11-25")).await;
        let id = answer.header("mcp-session-id");
        assert!(id.len() > 40 && !id.contains("upstream-"), "{id}");
        sessions.push((id, answer.json()["result"]["serverInfo"]["name"].clone()));
    }
    assert!(sessions.iter().any(|(_, who)| *who != sessions[0].1), "both replicas take sessions");
    let instances: Vec<_> = replicas.iter().map(|e| e.instance).collect();
    assert_eq!(instances.iter().map(|i| front.gateway.sessions(*i)).sum::<u64>(), 4);
    front.restart().await;
    front.set(&[(NAME, replicas.clone())]);
    for (id, who) in &sessions {
        let answer = front.post(NAME, Some(id), call(1, "whoami")).await;
        assert_eq!(answer.json()["result"]["who"].to_string(), who.as_str().unwrap());
        assert_eq!(answer.json()["result"]["session"].as_str().map(|s| s.starts_with("upstream-")), Some(true));
    }
    // DELETE is passed on; then the server itself says 404
    let (id, _) = &sessions[0];
    let gone = front.raw("DELETE", &format!("/mcp/{NAME}"), &owned(&[("mcp-session-id", id)]), "").await;
    assert_eq!(gone.status, 200);
    assert_eq!(front.post(NAME, Some(id), call(2, "whoami")).await.status, 404);
    // a vanished replica
    let survivors: Vec<_> = replicas.iter().filter(|e| e.spec.port == two.port).cloned().collect();
    front.set(&[(NAME, survivors)]);
    let lost =
        sessions.iter().skip(1).find(|(_, who)| who.as_str() == Some(&one.port.to_string())).expect("one of them");
    let answer = front.post(NAME, Some(&lost.0), call(3, "whoami")).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "GATEWAY_SESSION_EXPIRED"));
    // another deployment's
    front.set(&[("other", replicas)]);
    assert_eq!(front.post("other", Some(&lost.0), call(3, "whoami")).await.status, 404);
}

#[tokio::test]
async fn events_come_as_they_are_written() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    let replica = http.endpoint();
    front.set(&[(NAME, vec![replica.clone()])]);
    let mut stream = front.open("POST", &format!("/mcp/{NAME}"), &accept(None), &call(5, "stream")).await;
    let first = stream.event().await;
    assert_eq!(first["params"]["progress"], 1, "before the server wrote more");
    assert_eq!(front.gateway.in_flight(replica.instance), 1);
    http.go_on();
    assert_eq!(stream.event().await["id"], 5);
    assert!(stream.ended().await);
    wait_until("the call is over", || front.gateway.in_flight(replica.instance) == 0).await;
    let load = front.gateway.load(replica.deployment);
    assert_eq!((load.rpm, load.error_rate), (1.0, 0.0));
}

#[tokio::test]
async fn a_call_is_never_sent_twice() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.set(&[(NAME, vec![impatient(&http.endpoint())])]);
    // warm: the broken call goes over a used connection, where a retry is tempting
    assert_eq!(front.post(NAME, None, call(1, "whoami")).await.status, 200);
    let answer = front.post(NAME, None, call(2, "break")).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "GATEWAY_CONNECTION_FAILED"), "{}", answer.text);
    assert_eq!(answer.json()["id"], 2);
    assert_eq!(http.count("break"), 1);
    // broken in the middle of a stream: an event says so
    let mut stream = front.open("POST", &format!("/mcp/{NAME}"), &accept(None), &call(3, "stream-break")).await;
    assert_eq!(stream.event().await["params"]["progress"], 1);
    let last = stream.event().await;
    assert_eq!(
        (last["id"].clone(), last["error"]["data"]["code"].clone()),
        (json!(3), json!("GATEWAY_CONNECTION_FAILED"))
    );
    let late = front.post(NAME, None, call(4, "never")).await;
    assert_eq!((late.status, late.code().as_str()), (504, "GATEWAY_TIMEOUT"));
    assert_eq!(http.count("never"), 1);
}

#[tokio::test]
async fn stateless_requests_pass_through() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.set(&[(NAME, vec![http.endpoint()])]);
    let headers =
        [accept(None), owned(&[("mcp-protocol-version", "2026-07-28"), ("mcp-method", "server/discover")])].concat();
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}"#;
    let answer = front.raw("POST", &format!("/mcp/{NAME}"), &headers, body).await;
    assert_eq!(answer.status, 200);
    assert_eq!(http.last().header("mcp-method"), "server/discover");
    // a client of both eras reads the server's own refusal
    let refused = front.post(NAME, None, call(1, "refuse")).await;
    assert_eq!((refused.status, refused.text.as_str()), (400, "Bad Request: from the server"));
}

#[tokio::test]
async fn dead_replica_is_passed_over_when_nothing_was_sent() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    let dead = endpoint(Transport::Http, free_port().await, &[]);
    front.set(&[(NAME, vec![dead.clone(), http.endpoint()])]);
    for n in 0..4 {
        assert_eq!(front.post(NAME, None, call(n, "whoami")).await.status, 200);
    }
    front.set(&[(NAME, vec![dead])]);
    let answer = front.post(NAME, None, call(1, "whoami")).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "GATEWAY_CONNECTION_FAILED"));
}

// ---------------------------------------------------------------- stdio servers

#[tokio::test]
async fn stdio_sessions_have_their_own_process() {
    let front = Front::new().await;
    let replica = stdio(SERVER);
    front.set(&[(NAME, vec![replica.clone()])]);
    let (a, b) = (front.begin(NAME).await, front.begin(NAME).await);
    assert_eq!(front.gateway.sessions(replica.instance), 2);
    let pid = |answer: Answer| answer.last()["result"]["pid"].as_i64().unwrap();
    let first = pid(front.post(NAME, Some(&a), call(1, "echo")).await);
    assert_eq!(pid(front.post(NAME, Some(&a), call(1, "echo")).await), first);
    assert_ne!(pid(front.post(NAME, Some(&b), call(1, "echo")).await), first);
    // bytes survive, ids keep their type, line breaks between tokens do not break the line
    let odd = "{\"jsonrpc\":\"2.0\",\"id\":\"1\",\r\n \"method\":\"tools/call\",\"xVendor\":1.0,\"params\":{\"name\":\"echo\"}}";
    let answer = front.post(NAME, Some(&a), odd).await.last();
    assert_eq!(answer["id"], "1");
    assert_eq!(answer["result"]["line"], odd.replace(['\r', '\n'], " "));
    // an answer that comes at once is plain JSON; a stalled machine may make one late, not all
    let mut plain = false;
    for n in 0..20 {
        plain |= front.post(NAME, Some(&a), call(n, "echo")).await.header("content-type") == "application/json";
    }
    assert!(plain);
    // notifications and responses: 202, no body
    let note = front.post(NAME, Some(&a), r#"{"jsonrpc":"2.0","method":"notifications/x"}"#).await;
    assert_eq!((note.status, note.text.as_str()), (202, ""));
    // two at once, the second answered first
    let (slow, fast) =
        tokio::join!(front.post(NAME, Some(&a), call(10, "after-next")), front.post(NAME, Some(&a), call(11, "echo")));
    assert_eq!((slow.last()["id"].clone(), fast.last()["id"].clone()), (json!(10), json!(11)));
    // DELETE ends the process, and answers what waits for it
    let path = format!("/mcp/{NAME}");
    let (waiting, gone) = tokio::join!(front.post(NAME, Some(&a), call(12, "after-next")), async {
        wait_until("it is under way", || front.gateway.in_flight(replica.instance) == 1).await;
        front.raw("DELETE", &path, &owned(&[("mcp-session-id", &a)]), "").await
    });
    assert_eq!(gone.status, 204);
    assert!(waiting.text.contains("closed by its client"), "{}", waiting.text);
    assert_eq!(front.post(NAME, Some(&a), call(1, "echo")).await.status, 404);
    wait_until("its place is free", || front.gateway.sessions(replica.instance) == 1).await;
    wait_until("its process is gone", || replica_keys(&replica).len() == 1).await;
}

#[tokio::test]
async fn what_belongs_to_a_call_comes_on_its_stream_in_order() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(SERVER)])]);
    let session = front.begin(NAME).await;
    let body =
        r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"progress","_meta":{"progressToken":"p"}}}"#;
    let mut stream = front.open("POST", &format!("/mcp/{NAME}"), &accept(Some(&session)), body).await;
    let mut methods = Vec::new();
    loop {
        let event = stream.event().await;
        if event["id"] == 3 {
            break;
        }
        methods.push(event["method"].as_str().unwrap_or_default().to_owned());
    }
    // the list_changed that came before the handshake's end waited for a stream
    assert_eq!(methods, ["notifications/tools/list_changed", "notifications/progress", "notifications/message"]);
    assert!(stream.primed, "revision 2025-11-25 begins with an empty event that has an id");
    assert!(stream.ended().await);
    // progress of a call that was given up is not the next one's
    let late = call(5, "late").replace(r#""name":"late""#, r#""name":"late","_meta":{"progressToken":"own"}"#);
    let answer = front.post(NAME, Some(&session), late).await;
    assert!(answer.text.contains("\"id\"") && !answer.text.contains("given-up"), "{}", answer.text);
    let mut listening = front.open("GET", &format!("/mcp/{NAME}"), &accept(Some(&session)), "").await;
    assert_eq!(listening.event().await["params"]["progressToken"], "given-up");
    drop(listening);
    // the server asks, the client answers by a POST of its own
    let mut stream = front.open("POST", &format!("/mcp/{NAME}"), &accept(Some(&session)), &call(4, "ask")).await;
    let asked = stream.event().await;
    assert_eq!((asked["method"].clone(), asked["id"].clone()), (json!("elicitation/create"), json!("srv-1")));
    let reply = r#"{"jsonrpc":"2.0","id":"srv-1","result":{"action":"accept"}}"#;
    assert_eq!(front.post(NAME, Some(&session), reply).await.status, 202);
    let done = stream.event().await;
    assert_eq!(done["result"]["got"]["action"], "accept");
}

#[tokio::test]
async fn a_broken_stream_is_resumed() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(SERVER)])]);
    let session = front.begin(NAME).await;
    let mut stream = front.open("POST", &format!("/mcp/{NAME}"), &accept(Some(&session)), &call(4, "ask")).await;
    let mut asked = stream.event().await;
    while asked["id"] != "srv-1" {
        asked = stream.event().await;
    }
    let last = stream.last_id.clone();
    drop(stream);
    // answered while the client is away
    let reply = r#"{"jsonrpc":"2.0","id":"srv-1","result":{"action":"accept"}}"#;
    assert_eq!(front.post(NAME, Some(&session), reply).await.status, 202);
    let headers = [accept(Some(&session)), owned(&[("last-event-id", &last)])].concat();
    let mut again = front.open("GET", &format!("/mcp/{NAME}"), &headers, "").await;
    assert_eq!(again.event().await["id"], 4);
    // the GET stream takes what belongs to no call
    let mut get = front.open("GET", &format!("/mcp/{NAME}"), &accept(Some(&session)), "").await;
    assert_eq!(
        front.post(NAME, Some(&session), r#"{"jsonrpc":"2.0","method":"notifications/poke"}"#).await.status,
        202
    );
    assert_eq!(get.event().await["method"], "notifications/poked");
}

#[tokio::test]
async fn a_late_answer_gets_a_stream_and_none_a_timeout() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![impatient(&stdio(SERVER))])]);
    let session = front.begin(NAME).await;
    let body = front.post(NAME, Some(&session), call(8, "never")).await;
    assert_eq!((body.status, body.header("content-type").as_str()), (200, "text/event-stream"));
    assert_eq!(body.last()["error"]["data"]["code"], "GATEWAY_TIMEOUT");
    // the server was told
    let answer = front.post(NAME, Some(&session), call(9, "cancelled")).await;
    assert_eq!(answer.last()["result"]["cancelled"], json!([8]));
    // a client's own cancel ends its POST
    let (ended, _) = tokio::join!(front.post(NAME, Some(&session), call(20, "never")), async {
        wait_until("the call is there", || front.gateway.load(front.deployment(NAME)).in_flight == 1).await;
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":20}}"#;
        front.post(NAME, Some(&session), cancel).await
    });
    assert_eq!(ended.last()["id"], 20);
}

#[tokio::test]
async fn a_dead_process_is_named() {
    let front = Front::new().await;
    let replica = stdio(SERVER);
    front.set(&[(NAME, vec![replica.clone()])]);
    let session = front.begin(NAME).await;
    let answer = front.post(NAME, Some(&session), call(1, "die")).await;
    let error = answer.last()["error"].clone();
    assert_eq!(error["data"]["code"], "GATEWAY_CONNECTION_FAILED");
    assert!(error["message"].as_str().unwrap().contains("exited with code 3"), "{error}");
    assert!(error["data"]["hint"].as_str().unwrap().contains("sigil logs"), "{error}");
    assert_eq!(front.post(NAME, Some(&session), call(2, "echo")).await.status, 404);
    wait_until("its place is free", || front.gateway.sessions(replica.instance) == 0).await;
    front.set(&[(NAME, vec![stdio("import sys; sys.exit(4)")])]);
    let answer = front.post(NAME, None, initialize("2025-11-25")).await;
    assert_eq!(answer.status, 502);
    assert!(answer.text.contains("exited with code 4"), "{}", answer.text);
}

/// Why a server has closed its stdout is waited for, for two seconds; a call that comes meanwhile is not sent.
#[tokio::test]
async fn a_server_that_says_nothing_more_is_asked_nothing_more() {
    let front = Front::new().await;
    let replica = stdio(SERVER);
    front.set(&[(NAME, vec![replica.clone()])]);
    let (session, path) = (front.begin(NAME).await, format!("/mcp/{NAME}"));
    let mut get = front.open("GET", &path, &accept(Some(&session)), "").await;
    let (before, ()) = tokio::join!(front.post(NAME, Some(&session), call(1, "hush")), async {
        // nothing can come on it any more
        assert_eq!(get.event().await["method"], "notifications/tools/list_changed");
        assert!(get.ended().await);
        let late = front.post(NAME, Some(&session), call(2, "echo")).await;
        assert_eq!((late.status, late.code().as_str()), (404, "GATEWAY_SESSION_EXPIRED"), "{}", late.text);
        let again = front.raw("GET", &path, &accept(Some(&session)), "").await;
        assert_eq!((again.status, again.code().as_str()), (404, "GATEWAY_SESSION_EXPIRED"));
        assert_eq!(front.gateway.in_flight(replica.instance), 1, "the first one still waits for the reason");
        // what its client does then
        let next = front.begin(NAME).await;
        assert_eq!(front.post(NAME, Some(&next), call(3, "echo")).await.status, 200);
    });
    assert!(before.text.contains("closed its stdout during the call"), "{}", before.text);
    // clients without sessions get another process
    front.set(&[(NAME, vec![stdio(MODERN)])]);
    let ask = async |id: &str, tool: &str| {
        let (headers, body) = stateless(id, "tools/call", &format!(r#""name":"{tool}""#), "");
        front.raw("POST", &path, &headers, &body).await.last()
    };
    assert!(ask("1", "echo").await["result"]["pid"].is_i64());
    let (headers, body) = stateless("2", "tools/call", r#""name":"hush""#, "");
    let mut hushed = front.open("POST", &path, &headers, &body).await;
    assert!(ask("3", "echo").await["result"]["pid"].is_i64());
    assert!(hushed.event().await["error"]["message"].as_str().unwrap().contains("closed its stdout during the call"));
}

#[tokio::test]
async fn garbage_goes_to_the_log_and_never_to_a_client() {
    let front = Front::new().await;
    let (replica, mut stray) = stdio_with_stray(SERVER);
    front.set(&[(NAME, vec![replica])]);
    let session = front.begin(NAME).await;
    let answer = front.post(NAME, Some(&session), call(1, "garbage")).await;
    assert!(!answer.text.contains("hello from print"));
    assert_eq!(stray.recv().await.unwrap(), "hello from print");
    assert_eq!(stray.recv().await.unwrap(), "{\"not\": \"rpc\"}");
    let large = front.post(NAME, Some(&session), call(2, "large")).await;
    assert_eq!(large.last()["result"]["text"].as_str().map(str::len), Some(3 << 20));
}

#[tokio::test]
async fn stdio_sessions_survive_the_agent() {
    let mut front = Front::new().await;
    let replica = stdio(SERVER);
    front.set(&[(NAME, vec![replica.clone()])]);
    let session = front.begin(NAME).await;
    let pid = front.post(NAME, Some(&session), call(1, "echo")).await.last()["result"]["pid"].clone();
    front.restart().await;
    front.set(&[(NAME, vec![replica.clone()])]);
    let (a, b) = tokio::join!(
        front.post(NAME, Some(&session), call(2, "echo")),
        front.post(NAME, Some(&session), call(3, "echo"))
    );
    assert_eq!((a.last()["result"]["pid"].clone(), b.last()["result"]["pid"].clone()), (pid.clone(), pid));
    assert_eq!(front.gateway.sessions(replica.instance), 1, "two requests resume one session");
    // a process that ended meanwhile
    let dying = front.begin(NAME).await;
    front.restart().await;
    front.set(&[(NAME, vec![replica.clone()])]);
    replica_kill_all(&replica);
    let answer = front.post(NAME, Some(&dying), call(4, "echo")).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "GATEWAY_SESSION_EXPIRED"));
}

#[tokio::test]
async fn more_sessions_than_a_replica_holds() {
    let front = Front::new().await;
    let replica = limited(SERVER, 1);
    front.set(&[(NAME, vec![replica.clone()])]);
    let first = front.begin(NAME).await;
    let answer = front.post(NAME, None, initialize("2025-11-25")).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "GATEWAY_OVERLOADED"));
    assert!(answer.text.contains("1 a replica"), "{}", answer.text);
    assert_eq!(front.post(NAME, Some(&first), call(1, "echo")).await.status, 200);
    // a draining replica keeps its sessions and gets no new ones
    front.set_draining(NAME, vec![replica], vec![limited(SERVER, 1)]);
    assert_eq!(front.post(NAME, Some(&first), call(1, "echo")).await.status, 200);
    let second = front.begin(NAME).await;
    assert_eq!(front.post(NAME, Some(&second), call(1, "echo")).await.status, 200);
}

/// A server that speaks both eras takes the one of the first message that it hears: a ping is of the older.
#[tokio::test]
async fn a_process_that_was_asked_something_is_for_sessions_only() {
    // answers whatever it is asked
    const AGREES: &str = "import json, sys\nfor line in sys.stdin:\n    message = json.loads(line)\n    if 'id' in message:\n        \
                          print(json.dumps({'jsonrpc': '2.0', 'id': message['id'], 'result': {}}), flush=True)";
    let replica = limited(AGREES, 3);
    replica.spare.fill(&replica);
    wait_until("one waits", || replica.spare.key().is_some()).await;
    let waiting = replica.spare.key();
    assert_eq!(replica.spare.ping(&replica, Duration::from_secs(10)).await, Some(Ok(())));
    assert!(replica.spare.take(&replica, "shared", true).await.is_none());
    assert_eq!(replica.spare.key(), waiting, "it waits on");
    assert!(replica.spare.take(&replica, "session", false).await.is_some());
    assert_eq!(replica.spare.key(), None);
}

#[tokio::test]
async fn a_process_waits_for_the_next_session() {
    let front = Front::new().await;
    let replica = limited(SERVER, 2);
    front.set(&[(NAME, vec![replica.clone()])]);
    let pid = |answer: Answer| answer.last()["result"]["pid"].as_i64().unwrap();
    let first = front.begin(NAME).await;
    wait_until("one waits", || replica.spare.key().is_some()).await;
    let waiting = replica.spare.key();
    assert_eq!(spare_keys(&replica), waiting.iter().cloned().collect::<Vec<_>>());
    // the next session takes it, under a session's name; the replica is full then, and nobody waits
    let second = front.begin(NAME).await;
    assert_eq!((spare_keys(&replica), replica_keys(&replica).len()), (vec![], 2));
    let pids = [
        pid(front.post(NAME, Some(&first), call(1, "echo")).await),
        pid(front.post(NAME, Some(&second), call(1, "echo")).await),
    ];
    assert_ne!(pids[0], pids[1]);
    // an ended session makes room for another that waits
    let path = format!("/mcp/{NAME}");
    front.raw("DELETE", &path, &owned(&[("mcp-session-id", &first)]), "").await;
    wait_until("another waits", || replica.spare.key().is_some()).await;
    assert_eq!(spare_keys(&replica).len(), 1);
    // one that died while it waited costs nothing but time
    for key in spare_keys(&replica) {
        replica_end(&replica, &key);
    }
    let third = front.begin(NAME).await;
    assert_eq!(front.post(NAME, Some(&third), call(1, "echo")).await.status, 200);
}

#[tokio::test]
async fn a_waiting_process_is_taken_over_by_the_next_agent() {
    let mut front = Front::new().await;
    let replica = limited(SERVER, 2);
    front.set(&[(NAME, vec![replica.clone()])]);
    let session = front.begin(NAME).await;
    wait_until("one waits", || replica.spare.key().is_some()).await;
    let waiting = spare_keys(&replica);
    front.restart().await;
    let next = successor(&replica);
    next.spare.adopt(&next).await.unwrap();
    assert_eq!((next.spare.key().into_iter().collect::<Vec<_>>(), spare_keys(&next)), (waiting.clone(), waiting));
    front.set(&[(NAME, vec![next.clone()])]);
    let other = front.begin(NAME).await;
    assert_eq!((spare_keys(&next), replica_keys(&next).len()), (vec![], 2), "it was used, and no other was started");
    for session in [session, other] {
        assert_eq!(front.post(NAME, Some(&session), call(1, "echo")).await.status, 200);
    }
}

#[tokio::test]
async fn the_gate_leaves_one_that_waits_and_knows_what_it_takes() {
    let replica = stdio(SERVER);
    let looks = std::sync::atomic::AtomicU64::new(0);
    let measure = || Some((10 << 20) << (2 * looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
    gate::run(&replica, &GateOptions { measure: &measure, ..options(10_000) }).await.unwrap();
    assert_eq!(replica.spare.memory(), Some(30 << 20));
    wait_until("one waits", || replica.spare.key().is_some()).await;
    wait_until("the gate's own is gone", || replica_keys(&replica).is_empty()).await;
    // where there is room it starts beside the gate's own
    let next = stdio(SERVER);
    gate::run(&next, &GateOptions { together: true, ..options(10_000) }).await.unwrap();
    wait_until("one waits", || next.spare.key().is_some()).await;
    assert_eq!((spare_keys(&next).len(), next.spare.memory()), (1, None));
    // a server that fails leaves none
    let broken = stdio("import sys; sys.stdin.readline(); sys.exit(1)");
    gate::run(&broken, &options(10_000)).await.unwrap_err();
    assert_eq!(broken.spare.key(), None);
}

#[tokio::test]
async fn a_refused_initialize_leaves_nothing() {
    let front = Front::new().await;
    front.translate_nothing();
    let replica = stdio(MODERN);
    front.set(&[(NAME, vec![replica.clone()])]);
    let answer = front.post(NAME, None, initialize("2025-11-25")).await;
    assert_eq!((answer.json()["error"]["code"].as_i64(), answer.header("mcp-session-id").as_str()), (Some(-32022), ""));
    wait_until("no session", || front.gateway.sessions(replica.instance) == 0).await;
    wait_until("no process", || replica_keys(&replica).is_empty()).await;
}

// ---------------------------------------------------------------- legacy SSE servers

#[tokio::test]
async fn legacy_sse_servers_are_translated() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.set(&[(NAME, vec![http.legacy()])]);
    let session = front.begin(NAME).await;
    let answer = front.post(NAME, Some(&session), call(2, "whoami")).await;
    assert_eq!(answer.last()["result"]["who"], json!(http.port));
    let learnt = gate::run(&http.legacy(), &options(5000)).await.unwrap();
    assert_eq!(learnt.tool_count, 1);
}

// ---------------------------------------------------------------- direct conversations

#[tokio::test]
async fn direct_conversations_over_both_kinds() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    let replica = stdio(SERVER);
    front.set(&[("h", vec![http.endpoint()]), (NAME, vec![replica.clone()])]);
    for (name, tool) in [("h", "stream-now"), (NAME, "progress")] {
        let (to_server, from_client) = mpsc::channel(8);
        let (to_client, mut from_server) = mpsc::channel(8);
        let gateway = front.gateway.clone();
        let running =
            tokio::spawn(
                async move { gateway.session(name, &root(), &Default::default(), from_client, to_client).await },
            );
        let send = |text: String| to_server.send(Bytes::from(text));
        send(initialize("2025-11-25")).await.unwrap();
        let answer = until(&mut from_server, 1).await;
        assert_eq!(answer["result"]["protocolVersion"], "2025-11-25", "{name}");
        send(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#.into()).await.unwrap();
        let body =
            json!({"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":tool,"_meta":{"progressToken":"p"}}});
        send(body.to_string()).await.unwrap();
        let progress: Value = loop {
            let message: Value = serde_json::from_slice(&from_server.recv().await.unwrap()).unwrap();
            if message["method"] == "notifications/progress" {
                break message;
            }
        };
        assert_eq!(progress["params"]["progress"], 1);
        assert_eq!(until(&mut from_server, 2).await["id"], 2);
        send("nonsense".into()).await.unwrap();
        let refused: Value = serde_json::from_slice(&from_server.recv().await.unwrap()).unwrap();
        assert_eq!(refused["error"]["code"], -32700);
        drop(to_server);
        running.await.unwrap().unwrap();
    }
    assert_eq!(front.gateway.sessions(replica.instance), 0);
    assert!(replica_keys(&replica).is_empty());
    wait_until("the server's session is ended", || http.count("DELETE") == 1).await;
    let (_, from_client) = mpsc::channel(1);
    let (to_client, _keep) = mpsc::channel(1);
    let error = front.gateway.session("none", &root(), &Default::default(), from_client, to_client).await.unwrap_err();
    assert_eq!(error.code(), "GATEWAY_MCP_NOT_FOUND");
}

// ---------------------------------------------------------------- the gate

fn options(ms: u64) -> GateOptions<'static> {
    GateOptions { timeout: Duration::from_millis(ms), measure: &|| None, together: false }
}

async fn gated(
    endpoint: std::sync::Arc<crate::upstream::Endpoint>,
    ms: u64,
) -> Result<crate::upstream::Handshake, String> {
    gate::run(&endpoint, &options(ms)).await.map_err(|e| match e {
        UpstreamError::Gate { what, hint } => format!("{what} | {hint}"),
        UpstreamError::Link(link) => format!("link: {link}"),
    })
}

#[tokio::test]
async fn the_gate_reads_all_pages() {
    let replica = stdio(SERVER);
    let learnt = gated(replica.clone(), 10_000).await.unwrap();
    assert_eq!((learnt.server_name.as_str(), learnt.protocol_version.as_str()), ("py", "2025-11-25"));
    assert_eq!(learnt.tool_count, 3);
    let tools: Value = serde_json::from_str(learnt.tools.get()).unwrap();
    assert_eq!(tools[2]["name"], "c");
    assert!(learnt.tools.get().contains("\"xVendor\": 1.0"), "as the server wrote them");
    assert!(replica_keys(&replica).is_empty(), "its process is ended");
    let modern = gated(stdio(MODERN), 10_000).await.unwrap();
    assert_eq!(
        (modern.protocol_version.as_str(), modern.tool_count, modern.server_name.as_str()),
        ("2026-07-28", 2, "m")
    );
    let http = HttpServer::start().await;
    let learnt = gated(http.endpoint(), 5_000).await.unwrap();
    assert_eq!(learnt.tool_count, 1);
    assert_eq!(http.count("DELETE"), 1, "the gate's session is ended");
}

#[tokio::test]
async fn the_gate_says_why_not() {
    let dies = gated(stdio("import sys; print('usage: x'); sys.exit(2)"), 10_000).await.unwrap_err();
    assert!(dies.contains("exited with code 2") && dies.contains("usage: x"), "{dies}");
    let mute = ["/bin/sh", "-c", "echo Listening on 8000; exec sleep 60"];
    let silent = gated(endpoint(Transport::Stdio, 0, &mute), 1_500).await.unwrap_err();
    for wanted in ["1500 ms", "Listening on 8000", "transport: http"] {
        assert!(silent.contains(wanted), "{silent}");
    }
    let missing = gated(endpoint(Transport::Stdio, 0, &["/no/such/program"]), 5_000).await.unwrap_err();
    assert!(missing.contains("/no/such/program"), "{missing}");
    let port = free_port().await;
    let deaf = gated(endpoint(Transport::Http, port, &[]), 300).await.unwrap_err();
    assert!(deaf.contains(&format!("never listened on port {port}")) && deaf.contains("$PORT"), "{deaf}");
    let http = HttpServer::start().await;
    let wrong = gated(http.at("/nowhere"), 10_000).await.unwrap_err();
    assert!(wrong.contains("404") && wrong.contains("answers on '/mcp'"), "{wrong}");
}

#[tokio::test]
async fn the_gate_waits_for_a_slow_start() {
    let port = free_port().await;
    let slow = endpoint(Transport::Http, port, &[]);
    let (learnt, _server) = tokio::join!(gated(slow, 10_000), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        HttpServer::on(port).await
    });
    assert_eq!(learnt.unwrap().tool_count, 1);
}
