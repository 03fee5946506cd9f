//! Lists while no replica is ready, from what their server said before.

use super::*;

/// A stateless server that lets everybody keep its lists for a minute.
fn public() -> String {
    let life = r#"ttlMs=60000, cacheScope="public", "#;
    let server = MODERN.replace("ok(id, tools=", &format!("ok(id, {life}tools="));
    server.replace("ok(id, supportedVersions=", &format!("ok(id, {life}supportedVersions="))
}

async fn ask(front: &Front, query: &str, method: &str, rest: &str, meta: &str) -> Answer {
    let (headers, body) = stateless("\"q\"", method, rest, meta);
    front.raw("POST", &format!("/mcp/{NAME}{query}"), &headers, &body).await
}

#[tokio::test]
async fn lists_are_answered_while_a_server_starts_and_by_the_next_agent() {
    let mut front = Front::new().await;
    let replica = stdio(&public());
    front.set(&[(NAME, vec![replica.clone()])]);
    let list = ask(&front, "", "tools/list", "", "").await.last();
    let found = ask(&front, "", "server/discover", "", "").await.last();
    assert!(list["result"]["tools"][0]["name"] == "echo" && found["result"]["ttlMs"] == 60_000, "{list} {found}");
    for restarted in [false, true] {
        if restarted {
            let saved = || {
                let file = front.data_dir().join("remembered").join(format!("{}.json", replica.deployment));
                let text = std::fs::read_to_string(file).unwrap_or_default();
                text.contains("tools/list") && text.contains("server/discover")
            };
            wait_until("it is written down", saved).await;
            front.restart().await;
            front.set(&[(NAME, vec![replica.clone()])]);
        }
        front.set_state(NAME, true, "it starts");
        let again = ask(&front, "", "tools/list", "", "").await.last();
        assert_eq!((&again["id"], &again["result"]["tools"]), (&json!("q"), &list["result"]["tools"]));
        let left = again["result"]["ttlMs"].as_i64().unwrap();
        assert!(0 < left && left <= 60_000, "{left}");
        let again = ask(&front, "", "server/discover", "", "").await.last();
        assert_eq!(again["result"]["supportedVersions"], found["result"]["supportedVersions"]);
        // a call is held, and then told when to come back
        let call = ask(&front, "", "tools/call", r#""name":"echo""#, "").await;
        assert_eq!((call.status, call.code().as_str()), (503, "GATEWAY_STARTING"), "{}", call.text);
        assert!(!call.header("retry-after").is_empty());
        // another page, and headers that differ from their body
        assert_eq!(ask(&front, "", "tools/list", r#""cursor":"2""#, "").await.status, 503);
        let (mut headers, body) = stateless("1", "tools/list", "", "");
        headers.retain(|(name, _)| name != "mcp-method");
        let flawed = front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await;
        assert_eq!((flawed.status, flawed.json()["error"]["code"].as_i64()), (400, Some(-32020)));
    }
    let page = front.raw("GET", "/metrics", &[], "").await.text;
    assert!(page.contains("sigil_gateway_recalled_total 2"), "{page}");
    // one that is meant to be stopped answers nothing
    front.set_state(NAME, false, "stopped");
    assert_eq!(ask(&front, "", "tools/list", "", "").await.code(), "GATEWAY_CONNECTION_FAILED");
}

#[tokio::test]
async fn what_is_for_one_client_alone_is_not_kept() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(&public().replace("public", "private"))])]);
    assert_eq!(ask(&front, "", "tools/list", "", "").await.status, 200);
    front.set_state(NAME, true, "it starts");
    assert_eq!(ask(&front, "", "tools/list", "", "").await.status, 503);
}

#[tokio::test]
async fn the_policy_shapes_what_is_recalled() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(&public())])]);
    assert_eq!(ask(&front, "", "tools/list", "", "").await.status, 200);
    front.set_state(NAME, true, "it starts");
    front.govern_expected(NAME, r#"{"tools":{"deny":["placed"]}}"#);
    let names = ask(&front, "", "tools/list", "", "").await.last()["result"]["tools"].clone();
    assert_eq!(names.as_array().unwrap().len(), 1, "{names}");
}

#[tokio::test]
async fn an_older_servers_list_is_kept_for_its_kind_of_client_until_it_changes() {
    let front = Front::new().await;
    let replica = stdio(SERVER);
    front.set(&[(NAME, vec![replica.clone()])]);
    let path = format!("/mcp/{NAME}");
    let list = ask(&front, "", "tools/list", "", "").await.last();
    front.set_state(NAME, true, "it starts");
    let again = ask(&front, "", "tools/list", "", "").await.last();
    assert_eq!((&again["result"], &again["id"]), (&list["result"], &json!("q")));
    // who can be asked something may see another list, and a query may be meant for the server
    let (headers, body) = stateless("1", "tools/list", "", "");
    let able = body.replace(r#"clientCapabilities":{}"#, r#"clientCapabilities":{"elicitation":{}}"#);
    assert_eq!(front.raw("POST", &path, &headers, &able).await.status, 503);
    assert_eq!(ask(&front, "?team=a", "tools/list", "", "").await.status, 503);
    // without translation a client is to fall back to the handshake
    front.translate_nothing();
    assert_eq!(ask(&front, "", "tools/list", "", "").await.status, 503);
    front.configure(|config| config.gateway.translate = true);
    assert_eq!(ask(&front, "", "tools/list", "", "").await.status, 200);
    // its tools change: nothing is known until it is asked again
    front.set(&[(NAME, vec![replica.clone()])]);
    front.gateway.shared.remembered.forget_lists(&replica);
    front.set_state(NAME, true, "it starts");
    assert_eq!(ask(&front, "", "tools/list", "", "").await.status, 503);
}

#[tokio::test]
async fn a_server_that_says_its_tools_changed_is_asked_again() {
    let front = Front::new().await;
    let replica = stdio(&public());
    front.set(&[(NAME, vec![replica.clone()])]);
    assert_eq!(ask(&front, "", "tools/list", "", "").await.status, 200);
    let (headers, _) = stateless("1", "notifications/poke", "", "");
    let poke = r#"{"jsonrpc":"2.0","method":"notifications/poke","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}"#;
    let told = front.raw("POST", &format!("/mcp/{NAME}"), &headers, poke).await;
    assert_eq!(told.status, 202, "{}", told.text);
    // behind the poke in the same pipe
    assert_eq!(ask(&front, "", "tools/call", r#""name":"echo""#, "").await.status, 200);
    front.set_state(NAME, true, "it starts");
    assert_eq!(ask(&front, "", "tools/list", "", "").await.status, 503);
}

#[tokio::test]
async fn a_server_over_http_and_its_events() {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let _serving = AbortOnDrop(tokio::spawn(async move {
        loop {
            let (stream, _) = server.accept().await.unwrap();
            tokio::spawn(async move {
                let answer = |request: hyper::Request<hyper::body::Incoming>| async move {
                    let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
                    let asked: Value = serde_json::from_slice(&body).unwrap();
                    let result = json!({"resultType": "complete", "ttlMs": 60_000, "cacheScope": "public",
                        "supportedVersions": ["2026-07-28"], "capabilities": {}, "tools": [{"name": "t"}]});
                    let message = json!({"jsonrpc": "2.0", "id": asked["id"], "result": result});
                    let (kind, text) = match asked["method"].as_str() {
                        Some("tools/list") => {
                            ("text/event-stream", format!(": hi\n\nevent: message\ndata: {message}\n\n"))
                        }
                        _ => ("application/json", message.to_string()),
                    };
                    let body = http_body_util::Full::new(Bytes::from(text));
                    hyper::Response::builder().header("content-type", kind).body(body)
                };
                let io = hyper_util::rt::TokioIo::new(stream);
                let service = hyper::service::service_fn(answer);
                drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
            });
        }
    }));
    let front = Front::new().await;
    front.set(&[(NAME, vec![endpoint(Transport::Http, port, &[])])]);
    for method in ["server/discover", "tools/list"] {
        assert_eq!(ask(&front, "", method, "", "").await.last()["result"]["tools"][0]["name"], "t");
    }
    front.set_state(NAME, true, "it starts");
    for method in ["server/discover", "tools/list"] {
        assert_eq!(ask(&front, "", method, "", "").await.last()["result"]["tools"][0]["name"], "t", "{method}");
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
