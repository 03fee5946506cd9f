//! Sessions that outlast what is behind them: begun while their server sleeps, or begun again after it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;
use crate::gateway::table::Entry;
use crate::upstream::Endpoint;
use crate::upstream::nap::Nap;

/// A server that keeps every message it gets; its tool `seen` tells them, and `poke` makes it say something by itself.
const KEEPER: &str = r#"
import sys, json, os
seen = []
def out(m):
    sys.stdout.write(json.dumps(m) + "\n")
    sys.stdout.flush()
for line in sys.stdin:
    m = json.loads(line)
    method, id = m.get("method"), m.get("id")
    seen.append(m)
    def ok(**r): out({"jsonrpc": "2.0", "id": id, "result": r})
    if method == "initialize":
        ok(protocolVersion=m["params"]["protocolVersion"], capabilities=CAPABILITIES, serverInfo={"name": "k", "version": "1"})
    elif method == "tools/list": ok(tools=[{"name": "seen"}])
    elif method == "tools/call":
        if m["params"]["name"] == "poke": out({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "error", "data": os.getpid()}})
        ok(pid=os.getpid(), seen=seen)
    elif id is not None: ok()
"#;

fn keeper() -> Arc<Endpoint> {
    able(r#"{"tools": {}, "logging": {}, "resources": {"subscribe": True}}"#)
}

fn able(capabilities: &str) -> Arc<Endpoint> {
    stdio(&KEEPER.replace("CAPABILITIES", capabilities))
}

/// What a deployment's sleep is like for the loop that puts it to sleep.
struct Bed {
    nap: Nap,
    wakes: Arc<AtomicUsize>,
}

impl Bed {
    fn of(front: &Front) -> Self {
        let id = front.deployment(NAME);
        Self { nap: front.gateway.shared.registry.recorder(id).unwrap().nap.clone(), wakes: Arc::default() }
    }

    /// Frozen: its replicas are still there.
    async fn asleep(&self) {
        wait_until("nobody needs it", || self.nap.close()).await;
        let (nap, wakes) = (self.nap.clone(), self.wakes.clone());
        self.nap.closed(move || {
            wakes.fetch_add(1, SeqCst);
            nap.woke();
        });
    }

    fn wakes(&self) -> usize {
        self.wakes.load(SeqCst)
    }
}

fn named(version: &str, client: &str) -> String {
    json!({"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":version,"capabilities":{"roots":{}},
        "clientInfo":{"name":client,"version":"1"}}})
    .to_string()
}

fn request(id: i64, method: &str, params: Value) -> String {
    json!({"jsonrpc":"2.0","id":id,"method":method,"params":params}).to_string()
}

const READY: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

fn methods(seen: &Value) -> Vec<String> {
    let all = seen["result"]["seen"].as_array().unwrap_or_else(|| panic!("{seen}"));
    all.iter().map(|m| m["method"].as_str().unwrap_or_default().to_owned()).collect()
}

/// A session with a handshake that is known already, and the answer to it.
async fn greeted(front: &Front) -> (String, Value) {
    let answer = front.post(NAME, None, named("2025-11-25", "one")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let session = answer.header("mcp-session-id");
    assert_eq!(front.post(NAME, Some(&session), READY).await.status, 202);
    (session, answer.last())
}

#[tokio::test]
async fn a_client_that_only_looks_does_not_wake_a_server_and_one_that_calls_does_once() {
    let http = HttpServer::start().await;
    for (replica, tool) in [(keeper(), "seen"), (http.endpoint(), "whoami")] {
        let front = Front::new().await;
        front.set(&[(NAME, vec![replica.clone()])]);
        let bed = Bed::of(&front);
        // what is asked for the first time is asked of the server
        let first = front.post(NAME, None, named("2025-11-25", "one")).await;
        bed.asleep().await;
        let (session, hello) = greeted(&front).await;
        assert_eq!((&hello["result"], bed.wakes()), (&first.last()["result"], 0));
        assert_eq!(front.post(NAME, Some(&session), ping(2)).await.last()["result"], json!({}));
        assert_eq!(bed.wakes(), 0);
        let list = front.post(NAME, Some(&session), request(3, "tools/list", json!({}))).await.last();
        assert_eq!((list["id"].as_i64(), bed.wakes()), (Some(3), 1), "{list}");
        // the next one's list is known as well
        bed.asleep().await;
        let (session, _) = greeted(&front).await;
        let again = front.post(NAME, Some(&session), request(4, "tools/list", json!({}))).await.last();
        assert_eq!((&again["result"], bed.wakes()), (&list["result"], 1));
        let calls = (0..10).map(|n| front.post(NAME, Some(&session), call(10 + n, tool)));
        for answer in futures::future::join_all(calls).await {
            assert_eq!(answer.status, 200, "{}", answer.text);
            assert!(answer.last()["result"].is_object(), "{}", answer.text);
            assert!(answer.header("mcp-session-id").is_empty() || answer.header("mcp-session-id") == session);
        }
        assert_eq!(bed.wakes(), 2);
        // another kind of client, and one that says more than its messages, are for the server to answer
        for (client, query) in [("two", ""), ("one", "?team=a")] {
            bed.asleep().await;
            let before = bed.wakes();
            let path = format!("/mcp/{NAME}{query}");
            let answer = front.raw("POST", &path, &accept(None), &named("2025-11-25", client)).await;
            assert_eq!((answer.status, bed.wakes()), (200, before + 1), "{client} {query}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn the_server_hears_what_its_client_said_once_and_in_order() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![keeper()])]);
    let bed = Bed::of(&front);
    assert_eq!(front.post(NAME, None, named("2025-11-25", "one")).await.status, 200);
    bed.asleep().await;
    let (session, _) = greeted(&front).await;
    let level = |level: &str| request(2, "logging/setLevel", json!({"level": level}));
    assert_eq!(front.post(NAME, Some(&session), level("error")).await.last()["result"], json!({}));
    assert_eq!(bed.wakes(), 0);
    let seen = front.post(NAME, Some(&session), call(3, "seen")).await.last();
    let expected = ["initialize", "notifications/initialized", "logging/setLevel", "tools/call"];
    assert_eq!(methods(&seen), expected);
    let hello: Value = serde_json::from_str(&named("2025-11-25", "one")).unwrap();
    let all = &seen["result"]["seen"];
    assert_eq!((&all[0]["params"], &all[2]["params"]["level"]), (&hello["params"], &json!("error")));
    // it is a session like any other now
    let pid = &seen["result"]["pid"];
    bed.asleep().await;
    let seen = front.post(NAME, Some(&session), call(4, "seen")).await.last();
    assert_eq!((&seen["result"]["pid"], methods(&seen).len()), (pid, 5));
    assert_eq!(front.raw("DELETE", &format!("/mcp/{NAME}"), &accept(Some(&session)), "").await.status, 204);
    wait_until("its process has ended", || front.gateway.shared.sessions().len() == 1).await;
    let after = front.post(NAME, Some(&session), call(5, "seen")).await;
    assert_eq!((after.status, after.code().as_str()), (404, "GATEWAY_SESSION_EXPIRED"));
}

#[tokio::test]
async fn a_stream_opened_before_the_server_woke_carries_what_it_says_then() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![keeper()])]);
    let bed = Bed::of(&front);
    assert_eq!(front.post(NAME, None, named("2025-11-25", "one")).await.status, 200);
    bed.asleep().await;
    let (session, _) = greeted(&front).await;
    let mut stream = front.open("GET", &format!("/mcp/{NAME}"), &accept(Some(&session)), "").await;
    assert_eq!(bed.wakes(), 0);
    assert_eq!(front.post(NAME, Some(&session), call(2, "seen")).await.status, 200);
    // on the stream or with the call: it is the server's to choose where, and nothing is lost
    let session_inside = || front.gateway.shared.sessions().values().any(|s| s.idle().is_none());
    wait_until("the stream reached the server", session_inside).await;
    front.gateway.shared.sessions().values().for_each(|session| session.touch());
    let answer = front.post(NAME, Some(&session), call(3, "poke")).await;
    let with_call = answer.text.contains("notifications/message");
    assert!(with_call || stream.event().await["method"] == "notifications/message");
    assert_eq!(front.raw("DELETE", &format!("/mcp/{NAME}"), &accept(Some(&session)), "").await.status, 204);
    assert!(stream.ended().await);
}

#[tokio::test]
async fn they_outlive_the_agent_open_or_not() {
    let mut front = Front::new().await;
    let replica = keeper();
    front.set(&[(NAME, vec![replica.clone()])]);
    assert_eq!(front.post(NAME, None, named("2025-11-25", "one")).await.status, 200);
    Bed::of(&front).asleep().await;
    let ((unopened, _), (opened, _)) = (greeted(&front).await, greeted(&front).await);
    let pid = front.post(NAME, Some(&opened), call(2, "seen")).await.last()["result"]["pid"].clone();
    let written = |text: &str| {
        let files = std::fs::read_dir(front.data_dir().join("sessions")).into_iter().flatten().flatten();
        files.filter(|f| std::fs::read_to_string(f.path()).is_ok_and(|file| file.contains(text))).count()
    };
    wait_until("both are written down", || written("\"initialized\":true") == 2 && written("\"Session\"") == 1).await;
    let known = || {
        let file = front.data_dir().join("remembered").join(format!("{}.json", replica.deployment));
        std::fs::read_to_string(file).unwrap_or_default().contains("initialize ")
    };
    wait_until("the handshake is written down", known).await;
    front.restart().await;
    front.set(&[(NAME, vec![successor(&replica)])]);
    let bed = Bed::of(&front);
    bed.asleep().await;
    assert_eq!(front.post(NAME, Some(&unopened), ping(3)).await.last()["result"], json!({}));
    assert_eq!(bed.wakes(), 0);
    let again = front.post(NAME, Some(&opened), call(4, "seen")).await.last();
    assert_eq!((&again["result"]["pid"], bed.wakes()), (&pid, 1), "{again}");
    let new = front.post(NAME, Some(&unopened), call(5, "seen")).await.last();
    assert_eq!(methods(&new), ["initialize", "notifications/initialized", "tools/call"]);
    assert_ne!(new["result"]["pid"], pid);
}

/// The deployment as it is when its sessions may be begun again.
fn set_replayable(front: &Front, ready: &[Arc<Endpoint>]) {
    let release = front.gateway.shared.table.borrow().routes.get(NAME).and_then(|entry| entry.release);
    let entry = front.entry(NAME, ready);
    let release = release.or(entry.release);
    front.publish(vec![Entry { replayable: true, expected: true, release, ..entry }]);
    let table = front.gateway.shared.table.borrow().clone();
    front.gateway.shared.lasting.only(&front.gateway.shared, &table);
}

#[tokio::test]
async fn one_that_may_be_begun_again_is() {
    let front = Front::new().await;
    let (replica, other) = (keeper(), keeper());
    set_replayable(&front, std::slice::from_ref(&replica));
    let session = {
        let answer = front.post(NAME, None, named("2025-11-25", "one")).await;
        assert_eq!(front.post(NAME, Some(&answer.header("mcp-session-id")), READY).await.status, 202);
        answer.header("mcp-session-id")
    };
    for (id, method, params) in [
        (2, "logging/setLevel", json!({"level": "error"})),
        (3, "resources/subscribe", json!({"uri": "a://1"})),
        (4, "resources/subscribe", json!({"uri": "a://2"})),
        (5, "resources/unsubscribe", json!({"uri": "a://1"})),
    ] {
        assert_eq!(front.post(NAME, Some(&session), request(id, method, params)).await.status, 200);
    }
    let mut stream = front.open("GET", &format!("/mcp/{NAME}"), &accept(Some(&session)), "").await;
    let before = front.post(NAME, Some(&session), call(6, "seen")).await.last();
    // its containers end, and start again for the next call
    replica_kill_all(&replica);
    set_replayable(&front, &[]);
    wait_until("its process has ended", || front.gateway.shared.sessions().is_empty()).await;
    let bed = Bed::of(&front);
    bed.asleep().await;
    assert_eq!(front.post(NAME, Some(&session), ping(7)).await.last()["result"], json!({}));
    assert_eq!(bed.wakes(), 0);
    set_replayable(&front, std::slice::from_ref(&other));
    let same = Entry { release: Some(replica.release), ..front.entry(NAME, &[other]) };
    let renamed = same.ready.iter().map(|live| live.endpoint.release).all(|release| release == replica.release);
    assert!(renamed, "the test's replicas are of one release");
    let after = front.post(NAME, Some(&session), call(8, "seen")).await.last();
    let expected = ["initialize", "notifications/initialized", "logging/setLevel", "resources/subscribe", "tools/call"];
    assert_eq!(methods(&after), expected);
    assert_eq!(after["result"]["seen"][3]["params"]["uri"], "a://2");
    assert_ne!(after["result"]["pid"], before["result"]["pid"]);
    // what the client listens to goes on, too
    wait_until("the stream reached the server", || {
        front.gateway.shared.sessions().values().any(|s| s.idle().is_none())
    })
    .await;
    let answer = front.post(NAME, Some(&session), call(9, "poke")).await;
    assert!(answer.text.contains("notifications/message") || stream.event().await["params"]["level"] == "error");
    let page = front.raw("GET", "/metrics", &[], "").await.text;
    assert!(page.contains("sigil_gateway_sessions_replayed_total 1"), "{page}");
}

/// What is left of it would keep its deployment from being stopped for as long as a session lives.
#[tokio::test]
async fn one_that_was_begun_and_never_told_ends_with_its_client() {
    let front = Front::new().await;
    let replica = keeper();
    set_replayable(&front, std::slice::from_ref(&replica));
    let (session, _) = greeted(&front).await;
    let shared = front.gateway.shared.clone();
    let ticket = shared.sealer.unseal(&session).unwrap();
    shared.lasting.untold(&ticket);
    assert_eq!(shared.sessions().len(), 1);
    let ended = front.raw("DELETE", &format!("/mcp/{NAME}"), &accept(Some(&session)), "").await;
    assert_eq!(ended.status, 204, "{}", ended.text);
    assert_eq!(shared.sessions().len(), 0);
}

#[tokio::test]
async fn one_that_was_begun_and_never_told_does_not_hold_its_client_to_a_replica_that_is_gone() {
    let front = Front::new().await;
    let (replica, other) = (keeper(), keeper());
    set_replayable(&front, std::slice::from_ref(&replica));
    let (session, _) = greeted(&front).await;
    let shared = front.gateway.shared.clone();
    let ticket = shared.sealer.unseal(&session).unwrap();
    shared.lasting.untold(&ticket);
    replica_kill_all(&replica);
    set_replayable(&front, &[]);
    wait_until("its process has ended", || front.gateway.shared.sessions().is_empty()).await;
    set_replayable(&front, &[other]);
    let answer = front.post(NAME, Some(&session), call(2, "seen")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(methods(&answer.last()), ["initialize", "notifications/initialized", "tools/call"]);
}

#[tokio::test]
async fn one_over_http_that_the_server_does_not_know_any_more_is_begun_again() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    set_replayable(&front, &[http.endpoint()]);
    let (session, _) = greeted(&front).await;
    let first = front.post(NAME, Some(&session), call(2, "whoami")).await.last();
    http.forget_sessions();
    let again = front.post(NAME, Some(&session), call(3, "whoami")).await;
    assert_eq!(again.status, 200, "{}", again.text);
    assert!(first["result"]["session"].as_str().is_some_and(|s| s.starts_with("upstream-")), "{first}");
    assert_eq!(http.count("whoami"), 2, "no call twice");
    // without that word it is over, for good
    let front = Front::new().await;
    front.set(&[(NAME, vec![http.endpoint()])]);
    let (session, _) = greeted(&front).await;
    http.forget_sessions();
    assert_eq!(front.post(NAME, Some(&session), call(4, "whoami")).await.status, 404);
}

#[tokio::test]
async fn a_server_that_offers_something_else_has_its_client_begin_anew() {
    let mut front = Front::new().await;
    let replica = keeper();
    front.set(&[(NAME, vec![replica.clone()])]);
    assert_eq!(front.post(NAME, None, named("2025-11-25", "one")).await.status, 200);
    Bed::of(&front).asleep().await;
    let (session, hello) = greeted(&front).await;
    // the same release answers otherwise: what it answers may depend on its secrets
    let other = able(r#"{"tools": {}}"#);
    let other =
        Arc::new(Endpoint { deployment: replica.deployment, release: replica.release, ..Endpoint::like(&other) });
    front.set(&[(NAME, vec![other])]);
    let refused = front.post(NAME, Some(&session), call(2, "seen")).await;
    assert_eq!((refused.status, refused.code().as_str()), (404, "GATEWAY_SESSION_EXPIRED"), "{}", refused.text);
    let anew = front.post(NAME, None, named("2025-11-25", "one")).await.last();
    assert_eq!(anew["result"]["capabilities"], json!({"tools": {}}));
    assert_ne!(anew["result"]["capabilities"], hello["result"]["capabilities"]);
    // and one of a release that is gone as well
    Bed::of(&front).asleep().await;
    let (session, _) = greeted(&front).await;
    let next = keeper();
    let next =
        Arc::new(Endpoint { deployment: replica.deployment, release: replica.release + 1, ..Endpoint::like(&next) });
    front.set(&[(NAME, vec![next])]);
    assert_eq!(front.post(NAME, Some(&session), call(3, "seen")).await.status, 404);
    front.restart().await;
    assert_eq!(std::fs::read_dir(front.data_dir().join("sessions")).map_or(0, Iterator::count), 0);
}
