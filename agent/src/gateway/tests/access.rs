//! Who may call, and what: keys, policies, limits.

use sigil_core::policy::Access;

use std::collections::HashMap;
use std::sync::Arc;

use sigil_core::cost::judge::Action;
use tokio::sync::watch;

use super::*;
use crate::access::{NewToken, Role, create_token, reveal, revoke_token};
use crate::gateway::oauth::Address;
use crate::usage::Verdicts;

fn key(front: &Front, new: NewToken) -> String {
    reveal(&create_token(front.data_dir(), new).unwrap().0).to_owned()
}

fn caller(label: &str) -> NewToken {
    NewToken::new(label, Role::Caller)
}

fn with(key: &str, session: Option<&str>) -> Vec<(String, String)> {
    [accept(session), owned(&[("authorization", &format!("Bearer {key}"))])].concat()
}

fn call(id: u64, tool: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}","arguments":{{}}}}}}"#)
}

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

async fn open(front: &Front, key: &str) -> String {
    let path = format!("/mcp/{NAME}");
    let answer = front.raw("POST", &path, &with(key, None), &initialize("2025-11-25")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.header("mcp-session-id")
}

fn names(answer: &Answer) -> Vec<String> {
    let last = answer.last();
    let tools = last["result"]["tools"].as_array().unwrap_or_else(|| panic!("no list: {}", answer.text));
    tools.iter().map(|t| t["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_key_opens_what_it_is_for_until_it_is_revoked() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(SERVER)]), ("other", vec![stdio(SERVER)])]);
    front.govern(NAME, Access::Key, "{}");
    front.govern("other", Access::Key, "{}");
    let path = format!("/mcp/{NAME}");
    let bare = front.post(NAME, None, initialize("2025-11-25")).await;
    assert_eq!((bare.status, bare.code().as_str()), (401, "GATEWAY_INVALID_API_KEY"));
    assert_eq!(bare.header("www-authenticate"), "Bearer realm=\"sigil\"");
    assert!(bare.json()["error"]["data"]["hint"].as_str().unwrap().contains("sigil key create"));
    for wrong in ["sigil_x_y", "secret", "sigil_01arz3ndektsv4rrffq69g5fav_AAAA"] {
        assert_eq!(front.raw("POST", &path, &with(wrong, None), LIST).await.status, 401, "{wrong}");
    }
    let text = key(&front, NewToken { deployments: vec![NAME.into()], ..caller("laptop") });
    let session = open(&front, &text).await;
    let pong = front.raw("POST", &path, &with(&text, Some(&session)), LIST).await;
    assert_eq!((pong.status, pong.last()["id"].clone()), (200, json!(1)));
    // the other way of sending it
    let header = [accept(Some(&session)), owned(&[("x-api-key", &text)])].concat();
    assert_eq!(front.raw("POST", &path, &header, LIST).await.status, 200);
    let elsewhere = front.raw("POST", "/mcp/other", &with(&text, None), &initialize("2025-11-25")).await;
    assert_eq!((elsewhere.status, elsewhere.code().as_str()), (403, "GATEWAY_FORBIDDEN"));

    // a session is its caller's: another key, good as it is, finds none
    let second = key(&front, caller("second"));
    let stolen = front.raw("POST", &path, &with(&second, Some(&session)), LIST).await;
    assert_eq!((stolen.status, stolen.code().as_str()), (404, "GATEWAY_SESSION_EXPIRED"));
    let reader = key(&front, NewToken::new("console", Role::Viewer));
    assert_eq!(front.raw("POST", &path, &with(&reader, None), &initialize("2025-11-25")).await.status, 403);
    let admin = key(&front, NewToken::new("admin", Role::Admin));
    open(&front, &admin).await;

    revoke_token(front.data_dir(), "laptop").unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let answer = front.raw("POST", &path, &with(&text, Some(&session)), LIST).await;
        if answer.status == 401 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "a revoked key is refused soon");
    }
    let old = NewToken { expires_at: Some(jiff::Timestamp::now()), ..caller("old") };
    assert_eq!(front.raw("POST", &path, &with(&key(&front, old), None), LIST).await.status, 401);
}

#[tokio::test]
async fn keys_do_not_travel_on() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.set(&[(NAME, vec![http.endpoint()])]);
    front.govern(NAME, Access::Key, "{}");
    let text = key(&front, caller("a"));
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{}}}"#;
    for header in [("authorization", format!("Bearer {text}")), ("x-api-key", text.clone())] {
        let headers = [accept(None), owned(&[(header.0, &header.1)])].concat();
        let answer = front.raw("POST", &format!("/mcp/{NAME}"), &headers, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let seen = http.last();
        assert_eq!((seen.header("authorization"), seen.header("x-api-key")), (String::new(), String::new()));
    }
}

#[tokio::test]
async fn without_a_key_only_from_this_host() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![])]);
    let entry = front.gateway.shared.table.borrow().routes[NAME].clone();
    let shared = front.gateway.shared.clone();
    let address = Address { base: "http://h".into(), path: format!("/mcp/{NAME}") };
    let from = async |ip: &str| {
        let headers = hyper::HeaderMap::new();
        shared.caller(&entry, &headers, ip.parse().unwrap(), &address).await.map(|c| c.principal.to_string())
    };
    for near in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        assert_eq!(from(near).await.unwrap(), "anonymous");
    }
    let refusal = from("192.0.2.1").await.unwrap_err();
    assert_eq!((refusal.status.as_u16(), refusal.code), (401, "GATEWAY_INVALID_API_KEY"));
    assert!(refusal.hint.contains("--access key"), "{}", refusal.hint);
    front.configure(|config| config.gateway.anonymous = "anywhere".into());
    assert_eq!(from("192.0.2.1").await.unwrap(), "anonymous");
}

#[tokio::test]
async fn tools_are_hidden_renamed_and_refused_in_every_way_in() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(SERVER)]), ("modern", vec![stdio(MODERN)]), ("http", vec![http.endpoint()])]);
    let all = {
        let session = front.begin(NAME).await;
        names(&front.post(NAME, Some(&session), LIST).await)
    };
    assert!(all.contains(&"echo".to_owned()) && all.len() > 1, "{all:?}");
    let policy = r#"{"tools":{"allow":["echo"],"rename":{"echo":"say"},"describe":{"echo":"Says it."}}}"#;
    for name in [NAME, "modern", "http"] {
        front.govern(name, Access::Anonymous, policy);
    }
    // over a session
    let session = front.begin(NAME).await;
    let list = front.post(NAME, Some(&session), LIST).await;
    assert_eq!(names(&list), ["say"]);
    assert_eq!(list.last()["result"]["tools"][0]["description"], "Says it.");
    let said = front.post(NAME, Some(&session), call(2, "say")).await;
    assert!(said.last()["result"].is_object(), "{}", said.text);
    for hidden in ["echo", "slow", "nothing"] {
        let refused = front.post(NAME, Some(&session), call(3, hidden)).await;
        let error = refused.json()["error"].clone();
        assert_eq!((refused.status, &error["code"]), (200, &json!(-32602)), "{hidden}");
        assert_eq!(error["message"], format!("Unknown tool: {hidden}"));
    }
    for sly in [
        r#"{"name":"echo","name":"say","arguments":{}}"#,
        r#"{"name":"say","name":"echo","arguments":{}}"#,
        r#"{"name":["echo"]}"#,
        "{}",
    ] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{sly}}}"#);
        let refused = front.post(NAME, Some(&session), body).await;
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (400, &json!(-32602)), "{sly}");
    }
    // stateless, where a header repeats the name
    let (headers, body) = stateless("4", "tools/call", r#""name":"say""#, "");
    let said = front.raw("POST", "/mcp/modern", &headers, &body).await;
    assert_eq!(said.status, 200, "{}", said.text);
    assert!(said.last()["result"]["line"].as_str().unwrap().contains(r#""name":"echo""#), "{}", said.text);
    let (headers, _) = stateless("4", "tools/call", r#""name":"other""#, "");
    let apart = front.raw("POST", "/mcp/modern", &headers, &body).await;
    assert_eq!((apart.status, apart.json()["error"]["code"].clone()), (400, json!(-32020)));
    // to an HTTP server
    let said = front.post("http", None, call(5, "say")).await;
    assert_eq!(said.status, 200, "{}", said.text);
    assert!(http.last().body.contains(r#""name":"echo""#), "{}", http.last().body);
    // over the link, where the same holds for an admin
    let (to_server, from_client) = mpsc::channel(4);
    let (to_client, mut answers) = mpsc::channel(4);
    let gateway = front.gateway.clone();
    let running =
        tokio::spawn(async move { gateway.session(NAME, &root(), &Default::default(), from_client, to_client).await });
    for message in [initialize("2025-11-25"), LIST.to_owned(), call(2, "say"), call(3, "echo")] {
        to_server.send(message.into()).await.unwrap();
    }
    let mut seen = std::collections::HashMap::new();
    while seen.len() < 4 {
        let answer = tokio::time::timeout(Duration::from_secs(10), answers.recv()).await.unwrap().unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        if let Some(id) = answer["id"].as_u64() {
            seen.entry((id, answer["result"]["tools"].is_array())).or_insert(answer);
        }
    }
    assert_eq!(seen[&(1, true)]["result"]["tools"].as_array().unwrap().len(), 1);
    assert!(seen[&(2, false)]["result"].is_object());
    assert_eq!(seen[&(3, false)]["error"]["code"], -32602);
    drop(to_server);
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_narrow_key_sees_and_calls_its_tools_only() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(SERVER)])]);
    front.govern(NAME, Access::Key, "{}");
    let text = key(&front, NewToken { tools: vec![format!("{NAME}/echo")], ..caller("narrow") });
    let path = format!("/mcp/{NAME}");
    let session = open(&front, &text).await;
    let list = front.raw("POST", &path, &with(&text, Some(&session)), LIST).await;
    assert_eq!(names(&list), ["echo"]);
    assert_eq!(front.raw("POST", &path, &with(&text, Some(&session)), &call(2, "echo")).await.status, 200);
    let refused = front.raw("POST", &path, &with(&text, Some(&session)), &call(3, "slow")).await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "GATEWAY_FORBIDDEN"));
}

#[tokio::test]
async fn limits_say_when_to_come_back() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.set(&[(NAME, vec![http.endpoint()])]);
    let refused = |answer: &Answer| {
        let data = answer.json()["error"]["data"].clone();
        let after: u64 = answer.header("retry-after").parse().unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (429, "GATEWAY_RATE_LIMITED"));
        assert_eq!(data["retryAfter"], after);
        after
    };
    // of all callers
    front.govern(NAME, Access::Anonymous, r#"{"rate":"2/h"}"#);
    for id in [1, 2] {
        assert_eq!(front.post(NAME, None, call(id, "echo")).await.status, 200);
    }
    let after = refused(&front.post(NAME, None, call(3, "echo")).await);
    assert!((1000..=1800).contains(&after), "{after}");
    // of a tool; another is free
    front.govern(NAME, Access::Anonymous, r#"{"tools":{"rate":{"echo":"1/h"}}}"#);
    assert_eq!(front.post(NAME, None, call(1, "echo")).await.status, 200);
    refused(&front.post(NAME, None, call(2, "echo")).await);
    assert_eq!(front.post(NAME, None, call(3, "other")).await.status, 200);
    // of a key
    front.govern(NAME, Access::Key, "{}");
    let slow = key(&front, NewToken { rate: Some("1/h".parse().unwrap()), ..caller("slow") });
    let path = format!("/mcp/{NAME}");
    assert_eq!(front.raw("POST", &path, &with(&slow, None), &call(1, "echo")).await.status, 200);
    refused(&front.raw("POST", &path, &with(&slow, None), &call(2, "echo")).await);
    let other = key(&front, caller("other"));
    assert_eq!(front.raw("POST", &path, &with(&other, None), &call(1, "echo")).await.status, 200);
}

#[tokio::test]
async fn who_is_beyond_a_quota_is_refused_by_name_and_may_look() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.set(&[(NAME, vec![http.endpoint()])]);
    front.govern(NAME, Access::Key, "{}");
    let (verdicts, told) = watch::channel(Arc::new(Verdicts::default()));
    front.gateway.tell_quotas(told);
    let text = key(&front, NewToken { user: "01USER".into(), ..caller("laptop") });
    let path = format!("/mcp/{NAME}");
    let ask = async |body: &str| front.raw("POST", &path, &with(&text, None), body).await;
    assert_eq!(ask(&call(1, "echo")).await.status, 200);
    let stop = (Action::Stop, "the quota of the user 'ada' is used up: 5 of 5 requests this month".to_owned());
    let users = HashMap::from([("01USER".to_owned(), stop)]);
    verdicts.send_replace(Arc::new(Verdicts { users, ..Verdicts::default() }));
    let refused = ask(&call(2, "echo")).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "GATEWAY_QUOTA_EXCEEDED"));
    assert!(refused.text.contains("the quota of the user 'ada' is used up: 5 of 5 requests"), "{}", refused.text);
    assert_eq!(ask(LIST).await.status, 200, "what there is may be looked at");
    // a deployment that is slowed down
    let slow = (Action::Throttle, "the tier micro's quota of 'echo' is used up: 1 of 1 requests this month".to_owned());
    let deployments = HashMap::from([(front.deployment(NAME), slow)]);
    verdicts.send_replace(Arc::new(Verdicts { deployments, ..Verdicts::default() }));
    let mut refused = None;
    for id in 3..20 {
        let answer = ask(&call(id, "echo")).await;
        if answer.status != 200 {
            refused = Some((id, answer));
            break;
        }
    }
    let (id, refused) = refused.expect("nobody is slowed down");
    assert_eq!((id, refused.code().as_str()), (9, "GATEWAY_QUOTA_EXCEEDED"));
    assert!(refused.header("retry-after").parse::<u64>().unwrap() <= 10);
    // counted by whom: the calls that were passed on
    let counted = front.gateway.counted();
    let users = &counted.iter().find(|c| c.deployment == front.deployment(NAME)).unwrap().users;
    let (user, count) = &users[0];
    assert_eq!((user.as_str(), count.requests), ("01USER", 8), "{users:?}");
    assert!(count.sent > 0);
}

#[tokio::test]
async fn requests_at_once_are_counted_until_their_answers_end() {
    let front = Front::new().await;
    let replica = stdio(MODERN);
    front.set(&[(NAME, vec![replica.clone()])]);
    front.govern(NAME, Access::Anonymous, r#"{"concurrency":1}"#);
    let path = format!("/mcp/{NAME}");
    let ask = async |id: &str, tool: &str| {
        let (headers, body) = stateless(id, "tools/call", &format!(r#""name":"{tool}""#), "");
        front.raw("POST", &path, &headers, &body).await
    };
    assert_eq!(ask("1", "echo").await.status, 200);
    let (first, second) = tokio::join!(ask("2", "after-next"), async {
        wait_until("the first is under way", || front.gateway.in_flight(replica.instance) == 1).await;
        let second = ask("3", "echo").await;
        // what the first waits for
        front.govern(NAME, Access::Anonymous, "{}");
        assert_eq!(ask("4", "echo").await.status, 200);
        second
    });
    assert_eq!((first.status, second.status), (200, 429));
    front.govern(NAME, Access::Anonymous, r#"{"concurrency":1}"#);
    assert_eq!(ask("5", "echo").await.status, 200);
}

#[tokio::test]
async fn lists_may_be_open_where_calls_need_a_key() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(SERVER)])]);
    front.govern(NAME, Access::Key, r#"{"open_discovery":true}"#);
    let session = front.begin(NAME).await;
    assert!(names(&front.post(NAME, Some(&session), LIST).await).len() > 1);
    let refused = front.post(NAME, Some(&session), call(2, "echo")).await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "GATEWAY_INVALID_API_KEY"));
    // and a wrong key is told so, not taken for none
    assert_eq!(front.raw("POST", &format!("/mcp/{NAME}"), &with("sigil_a_b", None), LIST).await.status, 401);
}

#[tokio::test]
async fn a_host_of_its_own_is_the_deployment() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.set(&[("time", vec![http.endpoint()])]);
    let at = |host: &str| [accept(None), owned(&[("host", host)])].concat();
    assert_eq!(front.raw("POST", "/mcp", &at("time.mcp.test"), &call(1, "echo")).await.status, 403);
    front.configure(|config| config.gateway.domain = "mcp.test".into());
    for path in ["/mcp", "/", "/mcp/"] {
        let answer = front.raw("POST", path, &at("time.mcp.test:7450"), &call(1, "echo")).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    }
    assert_eq!(front.raw("POST", "/mcp", &at("none.mcp.test"), &call(1, "echo")).await.status, 404);
    assert_eq!(front.raw("POST", "/mcp/time", &at("time.mcp.test"), &call(1, "echo")).await.status, 404);
    assert_eq!(front.raw("POST", "/mcp/time", &at("mcp.test"), &call(1, "echo")).await.status, 200);
    assert_eq!(front.raw("POST", "/mcp", &at("time.evil.test"), &call(1, "echo")).await.status, 403);
}

#[tokio::test]
async fn a_limit_within_a_session_does_not_end_it() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(SERVER)])]);
    let session = front.post(NAME, None, initialize("2025-11-25")).await.header("mcp-session-id");
    front.govern(NAME, Access::Anonymous, r#"{"rate":"1/h"}"#);
    assert_eq!(front.post(NAME, Some(&session), call(1, "echo")).await.status, 200);
    // the first major of the Python SDK gives a session up over another status
    let answer = front.post(NAME, Some(&session), call(2, "echo")).await;
    assert_eq!((answer.status, answer.code().as_str()), (200, "GATEWAY_RATE_LIMITED"), "{}", answer.text);
    assert_eq!((answer.json()["id"].clone(), answer.header("retry-after").is_empty()), (json!(2), false));
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("limit"), "{}", answer.text);
    // without one the status says it
    assert_eq!(front.post(NAME, None, initialize("2025-11-25")).await.status, 429);
}
