//! Clients that shake hands before servers that are stateless only, and what the two eras share of a server over HTTP.

use super::*;

struct Place {
    front: Front,
    dir: tempfile::TempDir,
    replica: std::sync::Arc<crate::upstream::Endpoint>,
    _server: Option<Listening>,
}

async fn place(era: &str, transport: Transport) -> Place {
    let (front, dir) = (Front::new().await, tempfile::tempdir().unwrap());
    let (replica, server) = server_of(era, transport, &dir.path().join("notes"));
    front.set(&[(NAME, vec![replica.clone()])]);
    Place { front, dir, replica, _server: server }
}

impl Place {
    fn noted(&self, what: &str) -> usize {
        let notes = std::fs::read_to_string(self.dir.path().join("notes")).unwrap_or_default();
        notes.lines().filter(|line| *line == what).count()
    }
}

fn tool(id: i64, name: &str, meta: Value) -> String {
    json!({"jsonrpc":"2.0","id":id,"method":"tools/call","params":{"name":name,"arguments":{},"_meta":meta}})
        .to_string()
}

fn text(answer: &Answer) -> String {
    let last = answer.last();
    last["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{last}")).to_owned()
}

#[tokio::test]
async fn sessions_share_the_server_and_survive_the_agent() {
    for transport in [Transport::Stdio, Transport::Http] {
        let mut place = place("modern", transport).await;
        let (a, b) = (place.front.begin(NAME).await, place.front.begin(NAME).await);
        assert_ne!(a, b);
        for session in [&a, &b] {
            assert!(
                text(&place.front.post(NAME, Some(session), tool(1, "echo", json!({}))).await).starts_with("you said")
            );
        }
        if transport == Transport::Stdio {
            assert_eq!(replica_keys(&place.replica).len(), 1, "no session has a process of its own");
        }
        let pong = place.front.post(NAME, Some(&a), ping(7)).await.last();
        assert_eq!((&pong["id"], &pong["result"]), (&json!(7), &json!({})));
        place.front.restart().await;
        place.front.set(&[(NAME, vec![place.replica.clone()])]);
        let again = place.front.post(NAME, Some(&a), tool(2, "echo", json!({}))).await;
        assert!(text(&again).starts_with("you said"), "{}", again.text);
        // one that its client ended does not begin again, the other goes on
        let path = format!("/mcp/{NAME}");
        assert_eq!(place.front.raw("DELETE", &path, &owned(&[("mcp-session-id", &a)]), "").await.status, 204);
        let gone = place.front.post(NAME, Some(&a), ping(1)).await;
        assert_eq!((gone.status, gone.code().as_str()), (404, "GATEWAY_SESSION_EXPIRED"));
        assert_eq!(place.front.post(NAME, Some(&b), ping(1)).await.status, 200);
        // no translation, no such sessions
        place.front.translate_nothing();
        place.front.restart().await;
        place.front.translate_nothing();
        place.front.set(&[(NAME, vec![place.replica.clone()])]);
        assert_eq!(place.front.post(NAME, Some(&b), ping(1)).await.status, 404);
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_nothing() {
    let place = place("modern", Transport::Stdio).await;
    let (front, path) = (&place.front, format!("/mcp/{NAME}"));
    let session = front.begin(NAME).await;
    // a question is open when the client's connection breaks
    let able = initialize("2025-11-25").replace(r#""capabilities":{}"#, r#""capabilities":{"elicitation":{}}"#);
    let asking = front.post(NAME, None, able).await.header("mcp-session-id");
    let mut stream = front.open("POST", &path, &accept(Some(&asking)), &tool(3, "ask", json!({}))).await;
    let question = stream.event().await;
    assert_eq!(question["method"], "elicitation/create");
    assert!(stream.primed && !stream.last_id.is_empty(), "it can be resumed");
    let last = stream.last_id.clone();
    drop(stream);
    let reply = json!({"jsonrpc":"2.0","id":question["id"],"result":{"action":"decline"}}).to_string();
    assert_eq!(front.post(NAME, Some(&asking), reply).await.status, 202);
    let headers = [accept(Some(&asking)), owned(&[("last-event-id", &last)])].concat();
    let mut again = front.open("GET", &path, &headers, "").await;
    let answer = again.event().await;
    assert_eq!((&answer["id"], &answer["result"]["content"][0]["text"]), (&json!(3), &json!("decline")), "{answer}");
    // the server hears of a call's end only when the client says so
    let slow = tool(9, "slow", json!({"progressToken": "t"}));
    let mut stream = front.open("POST", &path, &accept(Some(&session)), &slow).await;
    assert_eq!(stream.event().await["params"]["progressToken"], "t");
    drop(stream);
    assert_eq!(front.post(NAME, Some(&session), ping(1)).await.status, 200);
    assert_eq!(front.post(NAME, Some(&session), tool(10, "echo", json!({}))).await.status, 200);
    assert_eq!(place.noted("cancelled"), 0);
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":9}}"#;
    assert_eq!(front.post(NAME, Some(&session), cancel).await.status, 202);
    wait_until("the server was told", || place.noted("cancelled") == 1).await;
}

#[tokio::test]
async fn what_a_client_cannot_do_is_not_asked_of_it() {
    let place = place("modern", Transport::Http).await;
    let front = &place.front;
    let session = front.begin(NAME).await;
    let refused = front.post(NAME, Some(&session), tool(1, "sample", json!({}))).await.last();
    assert_eq!(refused["error"]["code"], -32600, "{refused}");
    assert_eq!(refused["error"]["data"]["requiredCapabilities"], json!({"sampling": {}}));
    // a refusal of the client's own ends the call where the era has no word for it
    let able =
        initialize("2025-11-25").replace(r#""capabilities":{}"#, r#""capabilities":{"sampling":{},"elicitation":{}}"#);
    let able = front.post(NAME, None, able).await.header("mcp-session-id");
    for (name, want) in [("sample", None), ("ask", Some("cancel"))] {
        let mut stream =
            front.open("POST", &format!("/mcp/{NAME}"), &accept(Some(&able)), &tool(4, name, json!({}))).await;
        let question = stream.event().await;
        let no = json!({"jsonrpc":"2.0","id":question["id"],"error":{"code":-1,"message":"I will not"}}).to_string();
        assert_eq!(front.post(NAME, Some(&able), no).await.status, 202);
        let answer = stream.event().await;
        match want {
            Some(word) => assert_eq!(answer["result"]["content"][0]["text"], word, "{answer}"),
            None => assert!(answer["error"]["message"].as_str().unwrap().contains("I will not"), "{answer}"),
        }
    }
    for (method, params, code) in [
        ("logging/setLevel", json!({"level": "loud"}), -32602),
        ("tasks/list", json!({}), -32601),
        ("no/such", json!({}), -32601),
    ] {
        let body = json!({"jsonrpc":"2.0","id":5,"method":method,"params":params}).to_string();
        assert_eq!(front.post(NAME, Some(&able), body).await.last()["error"]["code"], code, "{method}");
    }
}

#[tokio::test]
async fn without_translation_each_era_is_told_where_it_is() {
    for transport in [Transport::Stdio, Transport::Http] {
        let place = place("modern", transport).await;
        place.front.translate_nothing();
        let answer = place.front.post(NAME, None, initialize("2025-11-25")).await;
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, answer.header("mcp-session-id").as_str()), (400, ""), "{error}");
        if transport == Transport::Stdio {
            assert_eq!((&error["code"], &error["data"]["supported"]), (&json!(-32022), &json!(["2026-07-28"])));
        }
    }
    // a stateless client reads no error of its era, and falls back
    for transport in [Transport::Http, Transport::Sse, Transport::Stdio] {
        let place = place("legacy", transport).await;
        place.front.translate_nothing();
        let (headers, body) = stateless("1", "server/discover", "", "");
        let answer = place.front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await;
        assert_eq!(answer.status, 400, "{transport:?}: {}", answer.text);
        let code = serde_json::from_str::<Value>(&answer.text).ok().and_then(|v| v["error"]["code"].as_i64());
        assert!(code.is_none_or(|c| !(-32099..=-32020).contains(&c) && c != -32601), "{}", answer.text);
        place.front.begin(NAME).await;
    }
}

#[tokio::test]
async fn a_session_with_a_server_over_http_is_its_callers_alone() {
    let place = place("legacy", Transport::Http).await;
    let front = &place.front;
    let ask = async |path: &str, key: &str, name: &str, meta: &str| {
        let (headers, body) = stateless("1", "tools/call", &format!(r#""name":"{name}","arguments":{{}}"#), "");
        let body = body.replace(r#""io.modelcontextprotocol/clientCapabilities":{}"#, meta);
        let headers = [headers, owned(&[("x-key", key)])].concat();
        text(&front.raw("POST", path, &headers, &body).await)
    };
    let able = r#""io.modelcontextprotocol/clientCapabilities":{"elicitation":{}}"#;
    let unable = r#""io.modelcontextprotocol/clientCapabilities":{}"#;
    let path = format!("/mcp/{NAME}");
    let first = ask(&path, "a", "session", unable).await;
    assert_eq!(ask(&path, "a", "session", unable).await, first, "the next request finds it again");
    let (keyed, configured) =
        (ask(&path, "b", "session", unable).await, ask(&format!("{path}?tenant=2"), "a", "session", unable).await);
    let own = ask(&path, "a", "session", able).await;
    let all = [&first, &keyed, &configured, &own];
    assert!((0..4).all(|i| (0..i).all(|j| all[i] != all[j])), "{all:?}");
    // a server that forgets its sessions is greeted again, and the call is not lost
    assert_eq!(ask(&path, "a", "forget", unable).await, first);
    let (x, y) = tokio::join!(ask(&path, "a", "session", unable), ask(&path, "a", "session", unable));
    assert!(x == y && x != first, "{x} {y} {first}");
    // sessions are ended when the agent is
    let ended = place.noted("ended");
    let Place { front, dir, _server, .. } = place;
    drop(front);
    let notes = dir.path().join("notes");
    let count = || std::fs::read_to_string(&notes).unwrap_or_default().matches("ended").count();
    wait_until("the server heard of their end", || count() > ended).await;
}

#[tokio::test]
async fn changes_come_on_the_sessions_own_stream() {
    let place = place("modern", Transport::Stdio).await;
    let (front, path) = (&place.front, format!("/mcp/{NAME}"));
    let session = front.begin(NAME).await;
    let mut own = front.open("GET", &path, &accept(Some(&session)), "").await;
    let subscribe = |method: &str| {
        json!({"jsonrpc":"2.0","id":2,"method":format!("resources/{method}"),"params":{"uri":"test://a"}}).to_string()
    };
    assert_eq!(front.post(NAME, Some(&session), subscribe("subscribe")).await.last()["result"], json!({}));
    let touched = front.post(NAME, Some(&session), tool(3, "touch", json!({}))).await;
    assert_eq!(touched.header("content-type"), "application/json", "{}", touched.text);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.push(own.event().await["method"].as_str().unwrap_or_default().to_owned());
    }
    seen.sort();
    assert_eq!(seen, ["notifications/resources/updated", "notifications/tools/list_changed"]);
    // a server that ended is listened to again, and what may have been missed is told
    let key = replica_keys(&place.replica).pop().unwrap();
    replica_end(&place.replica, &key);
    let mut seen = Vec::new();
    while !seen.iter().any(|m| m == "notifications/resources/updated") {
        seen.push(own.event().await["method"].as_str().unwrap_or_default().to_owned());
    }
    assert!(seen.iter().any(|m| m == "notifications/prompts/list_changed"), "{seen:?}");
    // what nobody wants any more is not told
    assert_eq!(front.post(NAME, Some(&session), subscribe("unsubscribe")).await.last()["result"], json!({}));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        assert!(tokio::time::Instant::now() < deadline, "still told of the resource");
        front.post(NAME, Some(&session), tool(4, "touch", json!({}))).await;
        let mut methods = Vec::new();
        while !methods.iter().any(|m| m == "notifications/tools/list_changed") {
            methods.push(own.event().await["method"].as_str().unwrap_or_default().to_owned());
        }
        if methods == ["notifications/tools/list_changed"] {
            break;
        }
    }
}

#[tokio::test]
async fn a_server_over_http_may_answer_in_parts() {
    let place = place("legacy", Transport::Http).await;
    let (headers, body) = stateless("1", "tools/call", r#""name":"parts","arguments":{}"#, r#""progressToken":"p""#);
    let answer = place.front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await;
    let events = answer.events();
    assert_eq!((events.len(), &events[0]["params"]["progressToken"]), (3, &json!("p")), "{}", answer.text);
    assert_eq!(text(&answer), "the rest");
}

#[tokio::test]
async fn a_server_that_only_asks_is_given_up() {
    let place = place("modern", Transport::Stdio).await;
    let front = &place.front;
    let able = initialize("2025-11-25").replace(r#""capabilities":{}"#, r#""capabilities":{"elicitation":{}}"#);
    let session = front.post(NAME, None, able).await.header("mcp-session-id");
    let mut stream =
        front.open("POST", &format!("/mcp/{NAME}"), &accept(Some(&session)), &tool(4, "ever", json!({}))).await;
    let mut asked = 0;
    loop {
        let event = stream.event().await;
        if event["id"] == 4 {
            assert!(event["error"]["message"].as_str().unwrap().contains("asked 32 times"), "{event}");
            break;
        }
        asked += 1;
        let reply = json!({"jsonrpc":"2.0","id":event["id"],"result":{"action":"accept","content":{"who":"x"}}});
        assert_eq!(front.post(NAME, Some(&session), reply.to_string()).await.status, 202);
    }
    assert_eq!(asked, 32);
}

#[tokio::test]
async fn servers_that_know_one_status_alone_are_understood() {
    let place = place("lax-modern", Transport::Http).await;
    let session = place.front.begin(NAME).await;
    let said = text(&place.front.post(NAME, Some(&session), tool(1, "echo", json!({}))).await);
    assert!(said.starts_with("you said"), "{said}");
    // an error of the server's own stays one, and is not asked about
    let (headers, body) = stateless("3", "no/such", "", "");
    let unknown = place.front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await;
    assert_eq!((unknown.status, &unknown.last()["error"]["code"]), (200, &json!(-32601)), "{}", unknown.text);
    let place = self::place("lax-legacy", Transport::Http).await;
    let (headers, body) = stateless("1", "tools/call", r#""name":"echo","arguments":{}"#, "");
    for _ in 0..2 {
        let answer = place.front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await;
        assert!(text(&answer).starts_with("you said"), "{}", answer.text);
    }
}
