//! Probes: what they ask of a server, and that callers do not notice.

use std::time::Duration;

use sigil_core::health::Outcome;

use super::*;
use crate::upstream::local::build;
use crate::upstream::look;

/// Answers everything with the same result, a ping before it was greeted, too.
const WILLING: &str = r#"
import sys, json
result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "p", "version": "1"},
    "tools": [], "content": []}
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"#;

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_server_over_http_is_greeted_and_keeps_nothing_of_it() {
    let http = HttpServer::start().await;
    let replica = http.endpoint();
    let first = look(&replica, false, SOON).await;
    assert_eq!(first.outcome, Outcome::Good, "{first:?}");
    let second = look(&replica, first.modern, SOON).await;
    assert!(first.tools.is_some() && first.tools == second.tools);
    assert_eq!(http.count("DELETE"), 2, "no session is left behind");
    assert_eq!(look(&http.legacy(), false, SOON).await.outcome, Outcome::Good, "the old SSE transport, too");
    let mut spec = replica.spec.as_ref().clone();
    (spec.health.tool, spec.health.slow_ms) = (Some("echo".into()), 60_000);
    let called = look(&build(spec.clone(), mpsc::channel(1).0), false, SOON).await;
    assert_eq!((called.outcome, http.count("echo")), (Outcome::Good, 1));
    spec.health.slow_ms = 0;
    let slow = look(&build(spec, mpsc::channel(1).0), false, SOON).await;
    assert!(matches!(&slow.outcome, Outcome::Poor(why) if why.starts_with("slow: ")), "{slow:?}");
    let gone = look(&endpoint(Transport::Http, 1, &[]), false, SOON).await;
    assert!(matches!(gone.outcome, Outcome::Failed(_)), "{gone:?}");
}

#[tokio::test]
async fn a_stdio_server_is_asked_through_the_process_that_waits() {
    let front = Front::new().await;
    let replica = limited(WILLING, 2);
    assert!(matches!(look(&replica, false, SOON).await.outcome, Outcome::Skipped(_)));
    assert_eq!(replica_keys(&replica).len(), 0, "none is started for a probe");
    front.set(&[(NAME, vec![replica.clone()])]);
    let first = front.begin(NAME).await;
    wait_until("one waits", || replica.spare.key().is_some()).await;
    let waiting = replica.spare.key();
    assert_eq!(look(&replica, false, SOON).await.outcome, Outcome::Good);
    assert_eq!(look(&replica, false, SOON).await.outcome, Outcome::Good);
    assert_eq!((replica.spare.key(), replica_keys(&replica).len()), (waiting, 1), "no other was started");
    // the next session takes the same process and hears nothing of what was asked
    let second = front.begin(NAME).await;
    assert_eq!(replica_keys(&replica).len(), 2);
    for session in [first, second] {
        let answer = front.post(NAME, Some(&session), call(1, "echo")).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(!answer.text.contains("sigil-ping"));
    }
}

#[tokio::test]
async fn a_waiting_process_that_hangs_is_found_and_ended() {
    let replica = stdio("import time\ntime.sleep(600)");
    replica.spare.fill(&replica);
    wait_until("one waits", || replica.spare.key().is_some()).await;
    let found = look(&replica, false, Duration::from_millis(300)).await;
    assert!(matches!(&found.outcome, Outcome::Failed(why) if why.contains("did not answer a ping")), "{found:?}");
    assert_eq!(replica.spare.key(), None);
    wait_until("it is ended", || replica_keys(&replica).is_empty()).await;
}

/// Speaks the stateless era only, does one thing at a time, and stops over `hang` until its client goes away.
const SINGLE: &str = r#"
import json, sys, time
def ok(id, **r): print(json.dumps({"jsonrpc": "2.0", "id": id, "result": {"resultType": "complete", **r}}), flush=True)
for line in sys.stdin:
    m = json.loads(line)
    id, method = m.get("id"), m["method"]
    if id is None: continue
    if method == "server/discover": ok(id, supportedVersions=["2026-07-28"])
    elif m["params"].get("name") == "hang": time.sleep(600)
    else: ok(id, content=[])
"#;

#[tokio::test]
async fn a_stateless_server_is_asked_through_the_process_that_all_share() {
    let front = Front::new().await;
    let replica = stdio(SINGLE);
    front.set(&[(NAME, vec![replica.clone()])]);
    let instance = replica.instance;
    assert_eq!(front.gateway.discover(instance, SOON).await, None);
    assert_eq!((replica_keys(&replica).len(), front.gateway.burdened(instance).shared), (0, false), "none is started");
    let (headers, body) = stateless("1", "tools/call", r#""name":"echo""#, "");
    let path = format!("/mcp/{NAME}");
    assert_eq!(front.raw("POST", &path, &headers, &body).await.status, 200);
    let before = front.gateway.burdened(instance);
    assert!(before.shared && before.heard == 1 && before.in_flight == 0, "{before:?}");
    let calls = front.gateway.outcomes();
    assert_eq!(front.gateway.discover(instance, SOON).await, Some(Ok(())));
    // nobody's call, and nobody's use of it
    assert_eq!((front.gateway.outcomes(), front.gateway.burdened(instance)), (calls, before));
    assert_eq!(replica_keys(&replica).len(), 1);

    let (headers, body) = stateless("2", "tools/call", r#""name":"hang""#, "");
    let gateway = front.gateway.clone();
    let hangs = tokio::spawn(async move { front.raw("POST", &path, &headers, &body).await });
    wait_until("it hangs", || gateway.burdened(instance).in_flight == 1).await;
    let asked = gateway.discover(instance, Duration::from_millis(300)).await;
    let why = asked.and_then(Result::err).unwrap();
    assert!(why.starts_with("its shared process did not answer server/discover"), "{why}");
    let now = gateway.burdened(instance);
    assert_eq!((now.heard, now.in_flight, now.begun), (before.heard, 1, 0), "and no word came from it");
    hangs.abort();
}

#[tokio::test]
async fn being_asked_keeps_no_shared_process_from_being_idle() {
    let front = Front::new().await;
    let replica = stdio(SINGLE);
    front.set(&[(NAME, vec![replica.clone()])]);
    let (headers, body) = stateless("1", "tools/call", r#""name":"echo""#, "");
    assert_eq!(front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await.status, 200);
    let process = front
        .gateway
        .shared
        .registry
        .common(replica.instance)
        .unwrap()
        .running(crate::gateway::common::EVERYBODY)
        .unwrap();
    let quiet = || process.idle().unwrap();
    wait_until("nobody used it for a while", || quiet() > Duration::from_millis(200)).await;
    process.discover(SOON).await.unwrap();
    assert!(quiet() > Duration::from_millis(200), "{:?}", quiet());
}
