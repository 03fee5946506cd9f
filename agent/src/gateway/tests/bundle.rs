//! Several deployments behind one address.

use std::sync::Arc;

use sigil_core::policy::Access;

use super::*;
use crate::access::{NewToken, Role, create_token, reveal};
use crate::upstream::Endpoint;

/// Tools, prompts and resources of its own name; asks back, logs, and counts who calls.
const MEMBER: &str = r#"
import sys, json, os
own = sys.argv[1]
def out(m): print(json.dumps(m), flush=True)
def ok(id, **r): out({"jsonrpc": "2.0", "id": id, "result": r})
asked = None
for line in sys.stdin:
    m = json.loads(line)
    id, method, p = m.get("id"), m.get("method"), m.get("params") or {}
    if method == "initialize":
        ok(id, protocolVersion=p["protocolVersion"], capabilities={"tools": {"listChanged": True}, "prompts": {}, "resources": {"subscribe": True}, "logging": {}}, serverInfo={"name": own, "version": "1"}, instructions="I am " + own)
    elif method == "tools/list":
        if p.get("cursor"): ok(id, tools=[{"name": "second", "inputSchema": {"type": "object"}}])
        else: ok(id, tools=[{"name": "who", "inputSchema": {"type": "object"}, "x": 1.0}], nextCursor="n")
    elif method == "prompts/list": ok(id, prompts=[{"name": "hello"}])
    elif method == "prompts/get": ok(id, messages=[], description=own + " " + p["name"])
    elif method == "resources/list": ok(id, resources=[{"uri": "file:///a", "name": "a"}])
    elif method == "resources/templates/list": ok(id, resourceTemplates=[{"uriTemplate": "file:///{x}", "name": "t"}])
    elif method == "resources/read": ok(id, contents=[{"uri": p["uri"], "text": own}])
    elif method == "resources/subscribe":
        ok(id)
        out({"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": p["uri"]}})
    elif method == "completion/complete": ok(id, completion={"values": [own + " " + p["ref"]["name"]]})
    elif method == "logging/setLevel": ok(id)
    elif method == "tools/call":
        tool = p["name"]
        if tool == "who":
            token = (p.get("_meta") or {}).get("progressToken")
            if token is not None: out({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}})
            ok(id, content=[{"type": "text", "text": own}, {"type": "resource_link", "uri": "file:///a", "name": "a"}])
        elif tool == "ask":
            asked = id
            out({"jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": {"message": "who?"}})
        elif tool == "die": sys.exit(3)
    elif method is None and id == 1:
        ok(asked, content=[{"type": "text", "text": json.dumps(m["result"])}])
"#;

fn member(name: &str) -> Arc<Endpoint> {
    endpoint(Transport::Stdio, 0, &["python3", "-c", MEMBER, name])
}

async fn front() -> Front {
    let front = Front::new().await;
    front.set(&[("time", vec![member("time")]), ("files", vec![member("files")]), ("apart", vec![member("apart")])]);
    for name in ["time", "files"] {
        front.govern(name, Access::Anonymous, r#"{"bundles":["dev"]}"#);
    }
    front
}

fn ask(id: u64, method: &str, params: Value) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
}

fn texts(list: &Value, key: &str, name: &str) -> Vec<String> {
    let list = list["result"][key].as_array().unwrap_or_else(|| panic!("{list}"));
    list.iter().map(|item| item[name].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_bundle_is_one_server_of_all_its_members() {
    let front = front().await;
    let opened = front.post("@dev", None, initialize("2025-11-25")).await;
    let greeting = opened.last()["result"].clone();
    assert_eq!((&greeting["serverInfo"]["name"], &greeting["protocolVersion"]), (&json!("@dev"), &json!("2025-11-25")));
    assert!(greeting["instructions"].as_str().unwrap().contains("time: I am time"), "{greeting}");
    assert_eq!(greeting["capabilities"]["resources"]["subscribe"], true);
    let session = opened.header("mcp-session-id");
    let send = async |body: String| front.post("@dev", Some(&session), body).await;
    assert_eq!(send(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#.into()).await.status, 202);
    let tools = send(ask(1, "tools/list", json!({}))).await;
    assert_eq!(texts(&tools.last(), "tools", "name"), ["files__who", "files__second", "time__who", "time__second"]);
    assert!(tools.text.contains("\"x\": 1.0"), "{}", tools.text);
    assert!(tools.last()["result"]["_meta"].is_null(), "nobody is missing");
    let prompts = send(ask(2, "prompts/list", json!({}))).await.last();
    assert_eq!(texts(&prompts, "prompts", "name"), ["files__hello", "time__hello"]);
    let resources = send(ask(3, "resources/list", json!({}))).await.last();
    assert_eq!(texts(&resources, "resources", "uri"), ["files+file:///a", "time+file:///a"]);
    let templates = send(ask(4, "resources/templates/list", json!({}))).await.last();
    assert_eq!(texts(&templates, "resourceTemplates", "uriTemplate"), ["files+file:///{x}", "time+file:///{x}"]);
    let call =
        send(ask(5, "tools/call", json!({"name": "time__who", "arguments": {}, "_meta": {"progressToken": "p"}})));
    let call = call.await;
    assert_eq!(call.last()["result"]["content"][0]["text"], "time");
    assert_eq!(call.last()["result"]["content"][1]["uri"], "time+file:///a");
    assert!(call.text.contains("\"progressToken\": \"p\""), "{}", call.text);
    let got = send(ask(6, "prompts/get", json!({"name": "files__hello"}))).await.last();
    assert_eq!(got["result"]["description"], "files hello");
    let read = send(ask(7, "resources/read", json!({"uri": "time+file:///b"}))).await.last();
    assert_eq!(
        (&read["result"]["contents"][0]["uri"], &read["result"]["contents"][0]["text"]),
        (&json!("time+file:///b"), &json!("time"))
    );
    let completed =
        json!({"ref": {"type": "ref/prompt", "name": "time__hello"}, "argument": {"name": "a", "value": ""}});
    let completed = send(ask(8, "completion/complete", completed)).await.last();
    assert_eq!(completed["result"]["completion"]["values"][0], "time hello");
    assert_eq!(send(ask(9, "logging/setLevel", json!({"level": "info"}))).await.last()["result"], json!({}));
    assert_eq!(send(ping(10)).await.last()["result"], json!({}));
    for (method, params, code) in [
        ("tools/call", json!({"name": "apart__who"}), -32602),
        ("tools/call", json!({"name": "who"}), -32602),
        ("resources/read", json!({"uri": "file:///a"}), -32602),
        ("other/method", json!({}), -32601),
    ] {
        assert_eq!(send(ask(11, method, params.clone())).await.last()["error"]["code"], code, "{method} {params}");
    }
}

#[tokio::test]
async fn a_member_asks_through_the_bundle_and_its_end_is_its_own() {
    let front = front().await;
    let session = front.begin("@dev").await;
    let path = "/mcp/@dev";
    let mut asking =
        front.open("POST", path, &accept(Some(&session)), &ask(1, "tools/call", json!({"name": "files__ask"}))).await;
    let question = asking.event().await;
    assert_eq!(question["method"], "elicitation/create");
    let reply = json!({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "accept"}}).to_string();
    assert_eq!(front.post("@dev", Some(&session), reply).await.status, 202);
    let answer = asking.event().await;
    assert_eq!(
        (&answer["id"], &answer["result"]["content"][0]["text"]),
        (&json!(1), &json!("{\"action\": \"accept\"}"))
    );
    // one ends in the middle of a call
    let died = front.post("@dev", Some(&session), ask(2, "tools/call", json!({"name": "files__die"}))).await;
    assert!(died.text.contains("exited with code 3") && died.text.contains("files"), "{}", died.text);
    let other = front.post("@dev", Some(&session), ask(3, "tools/call", json!({"name": "time__who"}))).await;
    assert_eq!(other.last()["result"]["content"][0]["text"], "time", "{}", other.text);
    let tools = front.post("@dev", Some(&session), ask(4, "tools/list", json!({}))).await.last();
    assert_eq!(texts(&tools, "tools", "name"), ["time__who", "time__second"]);
    assert!(tools["result"]["_meta"]["sigil/unavailable"]["files"].is_string(), "{tools}");
}

#[tokio::test]
async fn what_cannot_be_reached_is_left_out_and_said() {
    let front = Front::new().await;
    front.set(&[("time", vec![member("time")]), ("gone", vec![])]);
    // everything: `/mcp` itself
    let opened = front.raw("POST", "/mcp", &accept(None), &initialize("2025-06-18")).await;
    assert_eq!(opened.status, 200, "{}", opened.text);
    assert!(
        opened.last()["result"]["instructions"].as_str().unwrap().contains("gone: not available"),
        "{}",
        opened.text
    );
    let session = opened.header("mcp-session-id");
    let tools = front.raw("POST", "/mcp", &accept(Some(&session)), &ask(1, "tools/list", json!({}))).await.last();
    assert_eq!(texts(&tools, "tools", "name"), ["time__who", "time__second"]);
    assert!(tools["result"]["_meta"]["sigil/unavailable"]["gone"].as_str().unwrap().contains("gone"), "{tools}");
    let none = front.post("@none", None, initialize("2025-11-25")).await;
    assert_eq!((none.status, none.code().as_str()), (404, "GATEWAY_MCP_NOT_FOUND"));
}

#[tokio::test]
async fn each_caller_meets_its_own_members() {
    let front = front().await;
    let key = |new: NewToken| reveal(&create_token(front.data_dir(), new).unwrap().0).to_owned();
    for name in ["time", "files"] {
        front.govern(name, Access::Key, r#"{"bundles":["dev"],"tools":{"deny":["second"]}}"#);
    }
    assert_eq!(front.post("@dev", None, initialize("2025-11-25")).await.status, 401);
    let all = key(NewToken::new("all", Role::Caller));
    let one = key(NewToken { deployments: vec!["time".into()], ..NewToken::new("one", Role::Caller) });
    let send = async |key: &str, session: Option<&str>, body: &str| {
        let headers = [accept(session), owned(&[("authorization", &format!("Bearer {key}"))])].concat();
        front.raw("POST", "/mcp/@dev", &headers, body).await
    };
    let mut sessions = Vec::new();
    for (key, wanted) in [(&all, vec!["files__who", "time__who"]), (&one, vec!["time__who"])] {
        let opened = send(key, None, &initialize("2025-11-25")).await;
        assert_eq!(opened.status, 200, "{}", opened.text);
        let session = opened.header("mcp-session-id");
        let tools = send(key, Some(&session), &ask(1, "tools/list", json!({}))).await.last();
        assert_eq!(texts(&tools, "tools", "name"), wanted);
        sessions.push(session);
    }
    let denied = send(&all, Some(&sessions[0]), &ask(2, "tools/call", json!({"name": "time__second"}))).await;
    assert_eq!(denied.last()["error"]["message"], "Unknown tool: second", "{}", denied.text);
    assert_eq!(send(&one, Some(&sessions[0]), &ping(3)).await.status, 404, "a session is its caller's");
}

#[tokio::test]
async fn stateless_clients_use_bundles_too() {
    let front = front().await;
    let (headers, body) = stateless("1", "tools/list", "", "");
    let tools = front.raw("POST", "/mcp/@dev", &headers, &body).await;
    assert_eq!(tools.status, 200, "{}", tools.text);
    assert_eq!(texts(&tools.last(), "tools", "name").len(), 4);
    let (headers, body) = stateless("2", "tools/call", r#""name":"time__who","arguments":{}"#, "");
    let called = front.raw("POST", "/mcp/@dev", &headers, &body).await;
    assert_eq!(called.last()["result"]["content"][0]["text"], "time", "{}", called.text);
}

#[tokio::test]
async fn members_of_both_eras_join_for_clients_of_both() {
    let (front, dir) = (Front::new().await, tempfile::tempdir().unwrap());
    let of = |era, transport, name: &str| server_of(era, transport, &dir.path().join(name));
    let (old, _) = of("legacy", Transport::Stdio, "old");
    let (new, _) = of("modern", Transport::Stdio, "new");
    let (far, _far) = of("modern", Transport::Http, "far");
    let (sse, _sse) = of("legacy", Transport::Sse, "sse");
    front.set(&[("old", vec![old]), ("new", vec![new]), ("far", vec![far]), ("sse", vec![sse])]);
    let members = ["old", "new", "far", "sse"];
    for name in members {
        front.govern(name, Access::Anonymous, r#"{"bundles":["all"]}"#);
    }
    let whole = |list: &Value| {
        let names = texts(list, "tools", "name");
        members.iter().all(|m| names.contains(&format!("{m}__ask")))
            && list["result"]["_meta"]["sigil/unavailable"].is_null()
    };
    // a client with a handshake
    let able = initialize("2025-11-25").replace(r#""capabilities":{}"#, r#""capabilities":{"elicitation":{}}"#);
    let opened = front.post("@all", None, able).await;
    let session = opened.header("mcp-session-id");
    assert_eq!(opened.status, 200, "{}", opened.text);
    let list = front.post("@all", Some(&session), ask(1, "tools/list", json!({}))).await.last();
    assert!(whole(&list), "{list}");
    for member in members {
        let call = ask(2, "tools/call", json!({"name": format!("{member}__ask"), "arguments": {}}));
        let mut stream = front.open("POST", "/mcp/@all", &accept(Some(&session)), &call).await;
        let question = stream.event().await;
        assert_eq!(
            (&question["method"], &question["params"]["message"]),
            (&json!("elicitation/create"), &json!("who?"))
        );
        let reply = json!({"action": "accept", "content": {"who": member}});
        let reply = json!({"jsonrpc": "2.0", "id": question["id"], "result": reply}).to_string();
        assert_eq!(front.post("@all", Some(&session), reply).await.status, 202);
        assert_eq!(stream.event().await["result"]["content"][0]["text"], member);
    }
    // one without
    let able = r#""io.modelcontextprotocol/clientCapabilities":{"elicitation":{}}"#;
    let send = async |method: &str, rest: &str| {
        let (headers, body) = stateless("1", method, rest, "");
        let body = body.replace(r#""io.modelcontextprotocol/clientCapabilities":{}"#, able);
        front.raw("POST", "/mcp/@all", &headers, &body).await.last()
    };
    let list = send("tools/list", "").await;
    assert!(whole(&list), "{list}");
    for member in members {
        let name = format!(r#""name":"{member}__ask","arguments":{{}}"#);
        let asked = send("tools/call", &name).await["result"].clone();
        assert_eq!(asked["resultType"], "input_required", "{member}: {asked}");
        let key = asked["inputRequests"].as_object().unwrap().keys().next().unwrap();
        let given = json!({key: {"action": "accept", "content": {"who": member}}});
        let rest = format!(r#"{name},"inputResponses":{given},"requestState":{}"#, asked["requestState"]);
        let answer = send("tools/call", &rest).await;
        assert_eq!(answer["result"]["content"][0]["text"], member, "{answer}");
    }
}
