//! Stateless clients before a stdio server that knows only the handshake.

use super::*;

const ELICITS: &str = r#""io.modelcontextprotocol/clientCapabilities":{"elicitation":{}}"#;

/// A request of a client with these capabilities.
fn request(id: &str, method: &str, rest: &str, meta: &str) -> (Vec<(String, String)>, String) {
    let (headers, body) = stateless(id, method, rest, "");
    (headers, body.replace(r#""io.modelcontextprotocol/clientCapabilities":{}"#, meta))
}

async fn ask(front: &Front, id: &str, rest: &str, meta: &str) -> Answer {
    let (headers, body) = request(id, "tools/call", rest, meta);
    front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await
}

const NOTHING: &str = r#""io.modelcontextprotocol/clientCapabilities":{}"#;

async fn front() -> (Front, std::sync::Arc<crate::upstream::Endpoint>) {
    let (front, replica) = (Front::new().await, stdio(SERVER));
    front.set(&[(NAME, vec![replica.clone()])]);
    (front, replica)
}

#[tokio::test]
async fn answers_have_what_this_era_wants() {
    let (front, replica) = front().await;
    let path = format!("/mcp/{NAME}");
    let (headers, body) = stateless("\"d\"", "server/discover", "", "");
    let found = front.raw("POST", &path, &headers, &body).await.json();
    assert_eq!((&found["id"], &found["result"]["resultType"]), (&json!("d"), &json!("complete")));
    assert_eq!(found["result"]["supportedVersions"], json!(["2026-07-28"]));
    assert_eq!(found["result"]["capabilities"], json!({"tools": {}}));
    assert_eq!(found["result"]["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "py");
    let (headers, body) = stateless("1", "tools/list", "", "");
    let list = front.raw("POST", &path, &headers, &body).await;
    let result = list.json()["result"].clone();
    assert_eq!((&result["resultType"], &result["ttlMs"]), (&json!("complete"), &json!(0)));
    assert_eq!((&result["cacheScope"], &result["nextCursor"]), (&json!("private"), &json!("2")));
    assert!(list.text.contains(r#""xVendor": 1.0"#), "{}", list.text);
    // clients that can be asked nothing share a process
    let (a, b) =
        tokio::join!(ask(&front, "1", r#""name":"echo""#, NOTHING), ask(&front, "\"1\"", r#""name":"echo""#, NOTHING));
    let (a, b) = (a.last(), b.last());
    assert_eq!((&a["id"], &b["id"], &a["result"]["resultType"]), (&json!(1), &json!("1"), &json!("complete")));
    assert_eq!(a["result"]["pid"], b["result"]["pid"]);
    assert_eq!(replica_keys(&replica).len(), 1);
    // what this era calls otherwise, or not at all
    let (headers, body) = stateless("1", "resources/read", r#""uri":"a://b""#, "");
    let headers = [headers, owned(&[("mcp-name", "a://b")])].concat();
    assert_eq!(front.raw("POST", &path, &headers, &body).await.last()["error"]["code"], -32602);
    for method in ["ping", "initialize", "logging/setLevel"] {
        let (headers, body) = stateless("7", method, "", "");
        let answer = front.raw("POST", &path, &headers, &body).await;
        let error = answer.json();
        assert_eq!(
            (answer.status, &error["error"]["code"], &error["id"]),
            (404, &json!(-32601), &json!(7)),
            "{method}"
        );
    }
}

#[tokio::test]
async fn progress_and_logs_are_passed_on() {
    let (front, _) = front().await;
    let meta = |more: &str| format!(r#"{NOTHING},"progressToken":"mine"{more}"#);
    let quiet = ask(&front, "1", r#""name":"progress""#, &meta("")).await;
    let events = quiet.events();
    assert_eq!((events.len(), &events[0]["params"]["progressToken"]), (2, &json!("mine")), "{}", quiet.text);
    let level = r#","io.modelcontextprotocol/logLevel":"info""#;
    let loud = ask(&front, "1", r#""name":"progress""#, &meta(level)).await;
    let methods: Vec<Value> = loud.events().iter().map(|e| e["method"].clone()).collect();
    assert_eq!(methods, [json!("notifications/progress"), json!("notifications/message"), Value::Null]);
}

#[tokio::test]
async fn a_question_waits_for_the_repeated_request() {
    let (front, replica) = front().await;
    let answered = |state: &str, who: &str| {
        format!(
            r#""name":"ask","inputResponses":{{"input":{{"action":"accept","content":{{"who":"{who}"}}}}}},"requestState":{state}"#
        )
    };
    // two clients at once, the second answers first
    let one = ask(&front, "1", r#""name":"ask""#, ELICITS).await.json();
    let two = ask(&front, "1", r#""name":"ask""#, ELICITS).await.json();
    for asked in [&one, &two] {
        assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
        assert_eq!(
            asked["result"]["inputRequests"],
            json!({"input": {"method": "elicitation/create", "params": {"message": "who?"}}})
        );
    }
    let (first, second) = (one["result"]["requestState"].to_string(), two["result"]["requestState"].to_string());
    assert_ne!(first, second);
    assert_eq!(front.gateway.in_flight(replica.instance), 0, "a call that waits for a person holds up no drain");
    let b = ask(&front, "\"b\"", &answered(&second, "bob"), ELICITS).await.last();
    assert_eq!((&b["id"], &b["result"]["got"]["content"]["who"]), (&json!("b"), &json!("bob")), "{b}");
    assert_eq!(b["result"]["resultType"], "complete");
    // without the answer it is asked again; the state of another request, or a used one, is refused
    let again = ask(&front, "2", &format!(r#""name":"ask","requestState":{first}"#), ELICITS).await.json();
    assert_eq!(again["result"]["resultType"], "input_required");
    let state = again["result"]["requestState"].to_string();
    let other = answered(&state, "eve").replace(r#""name":"ask""#, r#""name":"echo""#);
    for wrong in [other, answered(&second, "eve"), answered("\"made-up\"", "eve")] {
        let answer = ask(&front, "3", &wrong, ELICITS).await;
        assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32602)), "{wrong}");
    }
    let a = ask(&front, "4", &answered(&state, "ann"), ELICITS).await.last();
    assert_eq!(a["result"]["got"]["content"]["who"], "ann", "{a}");
    // a free process serves the next client of the same capabilities
    let before = replica_keys(&replica).len();
    let pid = ask(&front, "5", r#""name":"echo""#, ELICITS).await.last()["result"]["pid"].clone();
    assert_eq!(ask(&front, "6", r#""name":"echo""#, ELICITS).await.last()["result"]["pid"], pid);
    assert_eq!(replica_keys(&replica).len(), before);
}

#[tokio::test]
async fn one_place_is_enough_for_all_in_turn() {
    let (front, replica) = (Front::new().await, limited(SERVER, 1));
    front.set(&[(NAME, vec![replica.clone()])]);
    // the process that was asked for its era, the shared one and one of a client's own, each after the other
    assert_eq!(ask(&front, "1", r#""name":"echo""#, NOTHING).await.status, 200);
    assert_eq!(ask(&front, "1", r#""name":"echo""#, ELICITS).await.status, 200);
    assert_eq!(ask(&front, "1", r#""name":"echo""#, NOTHING).await.status, 200);
    assert_eq!(replica_keys(&replica).len(), 1);
}

#[tokio::test]
async fn nobody_is_asked_who_cannot_answer() {
    let (front, _) = front().await;
    let answer = ask(&front, "1", r#""name":"ask""#, NOTHING).await.last();
    assert_eq!(answer["result"]["refused"]["code"], -32601, "{answer}");
}

#[tokio::test]
async fn a_call_that_was_given_up_asks_no_other_client() {
    let (front, replica) = front().await;
    let (headers, body) = request("9", "tools/call", r#""name":"after-next""#, ELICITS);
    drop(front.open("POST", &format!("/mcp/{NAME}"), &headers, &body).await);
    wait_until("its process is gone", || replica_keys(&replica).is_empty()).await;
    assert_eq!(front.gateway.in_flight(replica.instance), 0);
    assert_eq!(ask(&front, "1", r#""name":"echo""#, ELICITS).await.status, 200);
}

#[tokio::test]
async fn changes_reach_the_subscriptions_that_want_them() {
    let (front, _) = front().await;
    let path = format!("/mcp/{NAME}");
    let listen = async |id: &str, filter: &str| {
        let (headers, body) = stateless(id, "subscriptions/listen", &format!(r#""notifications":{filter}"#), "");
        front.open("POST", &path, &headers, &body).await
    };
    let subscribed = async || ask(&front, "1", r#""name":"subscribed""#, NOTHING).await.last()["result"].clone();
    let mut tools = listen("5", r#"{"toolsListChanged":true}"#).await;
    let mut resource = listen("\"r\"", r#"{"resourceSubscriptions":["a://b"]}"#).await;
    let tag = |event: &Value| event["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"].clone();
    let ack = tools.event().await;
    assert_eq!((&ack["method"], tag(&ack)), (&json!("notifications/subscriptions/acknowledged"), json!(5)));
    assert_eq!(ack["params"]["notifications"], json!({"toolsListChanged": true}));
    assert_eq!(tag(&resource.event().await), json!("r"));
    assert_eq!(subscribed().await["subscribed"], json!(["a://b"]));
    let changed = tools.event().await;
    assert_eq!((&changed["method"], tag(&changed)), (&json!("notifications/tools/list_changed"), json!(5)));
    let updated = resource.event().await;
    assert_eq!((&updated["params"]["uri"], tag(&updated)), (&json!("a://b"), json!("r")));
    // the last one that wanted it leaves
    drop(resource);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while subscribed().await["subscribed"] != json!([]) {
        assert!(tokio::time::Instant::now() < deadline, "still subscribed");
    }
}

#[tokio::test]
async fn what_is_not_translated_is_refused_in_this_eras_words() {
    let (front, dir) = (Front::new().await, tempfile::tempdir().unwrap());
    for transport in [Transport::Stdio, Transport::Http, Transport::Sse] {
        let (replica, _server) = server_of("legacy", transport, &dir.path().join("notes"));
        front.set(&[(NAME, vec![replica])]);
        let path = format!("/mcp/{NAME}");
        let (headers, body) = stateless("1", "server/discover", "", "");
        assert_eq!(front.raw("POST", &path, &headers, &body).await.status, 200);
        let later = |text: &str| text.replace("2026-07-28", "2027-01-01");
        let headers: Vec<_> = headers.into_iter().map(|(n, v)| (n, later(&v))).collect();
        let answer = front.raw("POST", &path, &headers, &later(&body)).await;
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, error["code"].as_i64()), (400, Some(-32022)), "{transport:?} {error}");
        assert_eq!(error["data"], json!({"supported": ["2026-07-28"], "requested": "2027-01-01"}));
        // headers that say something else than the arguments
        let (headers, body) = stateless("1", "tools/call", r#""name":"placed","arguments":{"region":"eu"}"#, "");
        for (region, status) in [("us", 400), ("eu", 200)] {
            let headers = [headers.clone(), owned(&[("mcp-param-region", region)])].concat();
            assert_eq!(front.raw("POST", &path, &headers, &body).await.status, status, "{transport:?} {region}");
        }
        assert_eq!(front.raw("POST", &path, &headers, &body).await.status, 400, "{transport:?} without");
    }
}
