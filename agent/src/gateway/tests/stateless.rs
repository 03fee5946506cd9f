//! Stateless requests to stdio servers, which share a process.

use super::*;

async fn ask(front: &Front, id: &str, tool: &str, meta: &str) -> Answer {
    let (headers, body) = stateless(id, "tools/call", &format!(r#""name":"{tool}""#), meta);
    front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await
}

async fn listen(front: &Front, id: &str) -> Stream {
    let (headers, body) = stateless(id, "subscriptions/listen", r#""notifications":{"toolsListChanged":true}"#, "");
    front.open("POST", &format!("/mcp/{NAME}"), &headers, &body).await
}

#[tokio::test]
async fn all_share_one_process_and_keep_their_ids() {
    let front = Front::new().await;
    let replica = stdio(MODERN);
    front.set(&[(NAME, vec![replica.clone()])]);
    let (a, b) = tokio::join!(ask(&front, "1", "echo", ""), ask(&front, "\"1\"", "echo", ""));
    let (a, b) = (a.last(), b.last());
    assert_eq!((&a["id"], &b["id"]), (&json!(1), &json!("1")));
    assert_eq!(a["result"]["pid"], b["result"]["pid"]);
    assert_ne!(a["result"]["own"], b["result"]["own"], "the process sees two ids");
    assert_eq!((replica_keys(&replica).len(), front.gateway.sessions(replica.instance)), (1, 1));
    // the second is answered first
    let (slow, fast) = tokio::join!(ask(&front, "7", "after-next", ""), async {
        wait_until("the first is under way", || front.gateway.in_flight(replica.instance) == 1).await;
        ask(&front, "7", "echo", "").await
    });
    assert_eq!((slow.last()["id"].clone(), fast.last()["id"].clone()), (json!(7), json!(7)));
    // bytes of the client's own survive
    let vendor = ask(&front, "3", "echo", r#""x":1.0"#).await.last();
    assert!(vendor["result"]["line"].as_str().unwrap().contains(r#""x":1.0"#));
}

#[tokio::test]
async fn progress_and_logs_reach_who_asked() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(MODERN)])]);
    let answer =
        ask(&front, "1", "progress", r#""progressToken":"mine","io.modelcontextprotocol/logLevel":"info""#).await;
    let events: Vec<Value> = answer.events();
    assert_eq!(events.len(), 3, "{}", answer.text);
    assert_eq!(events[0]["method"], "notifications/message");
    assert_eq!((&events[1]["params"]["progressToken"], &events[2]["id"]), (&json!("mine"), &json!(1)));
    assert!(!answer.text.contains("\nid:") && !answer.text.starts_with("id:"), "these streams cannot be resumed");
    // without a level nobody wants any
    let quiet = ask(&front, "1", "progress", r#""progressToken":2"#).await;
    assert_eq!(quiet.events().len(), 2, "{}", quiet.text);
}

#[tokio::test]
async fn headers_must_repeat_the_body() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(MODERN)])]);
    let path = format!("/mcp/{NAME}");
    let (headers, body) = stateless("1", "tools/call", r#""name":"echo""#, "");
    let without = |name: &str| headers.iter().filter(|(n, _)| n != name).cloned().collect::<Vec<_>>();
    for name in ["mcp-protocol-version", "mcp-method", "mcp-name"] {
        let answer = front.raw("POST", &path, &without(name), &body).await;
        assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32020)), "{name}");
    }
    let twice = [headers.clone(), owned(&[("mcp-name", "echo")])].concat();
    assert_eq!(front.raw("POST", &path, &twice, &body).await.status, 400);
    let bare = body.replace(r#""io.modelcontextprotocol/clientCapabilities":{}"#, r#""x":1"#);
    let answer = front.raw("POST", &path, &headers, &bare).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32602)));
    // arguments that a tool mirrors in headers
    let (headers, body) = stateless("1", "tools/call", r#""name":"placed","arguments":{"region":"eu"}"#, "");
    let answer = front.raw("POST", &path, &headers, &body).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32020)));
    let with = [headers, owned(&[("Mcp-Param-Region", "=?base64?ZXU=?=")])].concat();
    assert_eq!(front.raw("POST", &path, &with, &body).await.status, 200);
    // statuses of the server's own errors
    let (headers, body) = stateless("\"p\"", "ping", "", "");
    let answer = front.raw("POST", &path, &headers, &body).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (404, Some(-32601)));
    assert_eq!(answer.json()["id"], "p");
    assert_eq!(ask(&front, "1", "capability", "").await.status, 400);
    let (headers, body) = stateless("1", "tools/list", "", "");
    let later = |text: &str| text.replace("2026-07-28", "2027-01-01");
    let headers: Vec<_> = headers.into_iter().map(|(n, v)| (n, later(&v))).collect();
    let answer = front.raw("POST", &path, &headers, &later(&body)).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32022)));
    assert_eq!(answer.json()["error"]["data"]["supported"], json!(["2026-07-28"]));
    // sessions do not exist here
    let get = owned(&[("accept", "text/event-stream"), ("mcp-protocol-version", "2026-07-28")]);
    assert_eq!(front.raw("GET", &path, &get, "").await.status, 405);
}

#[tokio::test]
async fn subscriptions_are_told_apart_and_end_with_their_client() {
    let front = Front::new().await;
    let replica = stdio(MODERN);
    front.set(&[(NAME, vec![replica.clone()])]);
    let (mut a, mut b) = (listen(&front, "5").await, listen(&front, "\"five\"").await);
    let tag = |event: &Value| event["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"].clone();
    assert_eq!((tag(&a.event().await), tag(&b.event().await)), (json!(5), json!("five")));
    assert_eq!(front.gateway.in_flight(replica.instance), 0, "a subscription holds up no drain");
    let (headers, _) = stateless("1", "notifications/poke", "", "");
    let poke = r#"{"jsonrpc":"2.0","method":"notifications/poke"}"#;
    assert_eq!(front.raw("POST", &format!("/mcp/{NAME}"), &headers, poke).await.status, 202);
    let (first, second) = (a.event().await, b.event().await);
    assert_eq!((tag(&first), tag(&second)), (json!(5), json!("five")));
    assert_eq!(first["method"], "notifications/tools/list_changed");
    drop(a);
    wait_for_cancelled(&front, 1).await;
    assert_eq!(front.raw("POST", &format!("/mcp/{NAME}"), &headers, poke).await.status, 202);
    assert_eq!(tag(&b.event().await), json!("five"));
}

async fn wait_for_cancelled(front: &Front, count: usize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let told = ask(front, "1", "cancelled", "").await.last();
        if told["result"]["cancelled"].as_array().is_some_and(|c| c.len() == count) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{told}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request() {
    let front = Front::new().await;
    let replica = stdio(MODERN);
    front.set(&[(NAME, vec![replica.clone()])]);
    assert_eq!(ask(&front, "1", "echo", "").await.status, 200);
    // the answer does not come, so the client gets a stream, and leaves
    let (headers, body) = stateless("9", "tools/call", r#""name":"after-next""#, "");
    drop(front.open("POST", &format!("/mcp/{NAME}"), &headers, &body).await);
    wait_for_cancelled(&front, 1).await;
    wait_until("nothing is in flight", || front.gateway.in_flight(replica.instance) == 0).await;
}

#[tokio::test]
async fn a_process_that_ends_fails_what_waits_and_is_replaced() {
    let front = Front::new().await;
    let replica = stdio(MODERN);
    front.set(&[(NAME, vec![replica.clone()])]);
    let first = ask(&front, "1", "echo", "").await.last()["result"]["pid"].clone();
    let (waiting, died) = tokio::join!(ask(&front, "\"w\"", "after-next", ""), async {
        wait_until("it is under way", || front.gateway.in_flight(replica.instance) == 1).await;
        ask(&front, "2", "die", "").await
    });
    for (answer, id) in [(waiting, json!("w")), (died, json!(2))] {
        let error = answer.last();
        assert_eq!((error["id"].clone(), error["error"]["code"].as_i64()), (id, Some(-31502)), "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains("exited with code 3"), "{error}");
    }
    let next = ask(&front, "1", "echo", "").await.last()["result"]["pid"].clone();
    assert_ne!(first, next);
    wait_until("the dead one is cleared away", || replica_keys(&replica).len() == 1).await;
}

#[tokio::test]
async fn a_server_with_sessions_only_sends_clients_back_to_the_handshake() {
    let front = Front::new().await;
    front.translate_nothing();
    let replica = stdio(SERVER);
    front.set(&[(NAME, vec![replica.clone()])]);
    for _ in 0..2 {
        let (headers, body) = stateless("1", "server/discover", "", "");
        let answer = front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await;
        assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32600)));
    }
    wait_until("the process that was asked is gone", || replica_keys(&replica).is_empty()).await;
    front.begin(NAME).await;
}
