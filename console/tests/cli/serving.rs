//! `tools`, `call` and `run`: MCP over the link.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::Home;
use super::fake::{TOOLS_ONE, TOOLS_TWO, deployment};

fn home() -> Home {
    let home = Home::with_agent();
    home.fake.with(|s| s.deployments = vec![deployment("time", "ready")]);
    home
}

#[tokio::test]
async fn tools_are_listed_over_all_pages_unchanged() {
    let home = home();
    let ran = home.run(&["tools", "time", "-o", "json"]).await.exits(0);
    assert_eq!(ran.out, format!("[{TOOLS_ONE},{TOOLS_TWO}]\n"));
    let table = home.run(&["tools", "time"]).await.exits(0).out;
    assert_eq!(table, "now zone [days]\n    The time.\nslow\n");
    let methods: Vec<Value> = home.fake.with(|s| s.frames.iter().take(4).map(|f| f["method"].clone()).collect());
    assert_eq!(methods, ["initialize", "notifications/initialized", "tools/list", "tools/list"]);
    let first = home.fake.with(|s| s.frames[0].clone());
    assert_eq!(first["params"]["protocolVersion"], "2025-11-25");
}

#[tokio::test]
async fn a_call_types_its_arguments_and_prints_the_answer() {
    let home = home();
    let raw = r#"{"content":[{"type":"text","text":"10:00"},{"type":"image","mimeType":"image/png","data":"AAAA"}],  "x-odd": 1.50}"#;
    home.fake.with(|s| s.results.insert("now".into(), raw.into()));
    let args = ["call", "time", "now", "--arg", "zone=7", "--arg", "days=3"];
    let ran = home.run(&args).await.exits(0);
    assert_eq!(ran.out, "10:00\n[image image/png, 3 B; -o json has it]\n");
    let frames = home.fake.with(|s| s.frames.clone());
    let call = frames.iter().find(|f| f["method"] == "tools/call").unwrap();
    assert_eq!(call["params"], json!({ "name": "now", "arguments": { "zone": "7", "days": 3 } }));
    let answer = frames.iter().find(|f| f["id"] == "ask-1").expect("a server's request is answered");
    assert_eq!(answer["error"]["code"], -32601);
    let ran = home.run(&["call", "time", "now", "--json", r#"{"zone":"UTC"}"#, "-o", "json"]).await.exits(0);
    assert_eq!(ran.out, format!("{raw}\n"), "byte for byte");
    home.run_stdin(&["call", "time", "now", "--json", "-"], br#"{"zone":"UTC"}"#).await.exits(0);
    assert!(home.fake.with(|s| s.session_config.is_empty()));
    let mut args = vec!["call", "time", "now", "--arg", "zone=UTC"];
    args.extend(["--session-config", "server.port=8080", "--session-config", "tags=[\"a=b\"]"]);
    home.run(&args).await.exits(0);
    let given = home.fake.with(|s| s.session_config.clone());
    assert_eq!((given["server.port"].as_str(), given["tags"].as_str(), given.len()), ("8080", "[\"a=b\"]", 2));
    args.extend(["--session-config", "server.port=1"]);
    assert!(home.run(&args).await.exits(2).err.contains("gives 'server.port' twice"));
}

#[tokio::test]
async fn a_call_fails_with_the_right_code() {
    let home = home();
    home.fake
        .with(|s| s.results.insert("now".into(), r#"{"content":[{"type":"text","text":"no"}],"isError":true}"#.into()));
    let ran = home.run(&["call", "time", "now", "--arg", "zone=x"]).await.exits(1);
    assert_eq!(ran.out, "no\n");
    let ran = home.run(&["call", "time", "nwo"]).await.exits(3);
    assert_eq!(ran.err, "error: time has no tool 'nwo'. hint: did you mean 'now'?\n");
    let ran = home.run(&["call", "time", "now"]).await.exits(2);
    assert!(ran.err.contains("argument is missing: zone (string)"), "{}", ran.err);
    home.run(&["call", "time", "now", "--arg", "days=many", "--arg", "zone=x"]).await.exits(2);
    home.run(&["call", "time", "now", "--json", "{"]).await.exits(2);
    let ran = home.run(&["call", "time", "slow", "--timeout", "500ms"]).await.exits(7);
    assert!(ran.err.contains("did not answer tools/call within 500 ms"), "{}", ran.err);
    assert!(home.fake.with(|s| s.frames.iter().any(|f| f["method"] == "tools/call")));
    home.run(&["call", "tmie", "now"]).await.exits(3);
}

#[tokio::test]
async fn run_bridges_lines_and_ends_with_stdin() {
    let home = home();
    let mut child = home.command(&["run", "time"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    stdin.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"initialize\"}\nnot json\n\n").await.unwrap();
    let first: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    assert_eq!(first["result"]["protocolVersion"], "2025-11-25");
    stdin.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"tools/list\"}").await.unwrap();
    // the last request has no newline and is still answered before the bridge ends
    drop(stdin);
    let second: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    assert_eq!((&second["id"], &second["result"]["tools"][0]["name"]), (&json!("x"), &json!("now")));
    assert_eq!(lines.next_line().await.unwrap(), None);
    let output = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("not JSON"));
}

#[tokio::test]
async fn run_answers_open_requests_when_there_is_no_such_server() {
    let home = home();
    let ran =
        home.run_stdin(&["run", "tmie"], b"{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"initialize\"}\n").await.exits(3);
    let answer = ran.json();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(7), &json!(-32000)));
    assert!(answer["error"]["message"].as_str().unwrap().contains("did you mean 'time'?"));
}

/// A client of `sigil run`.
struct Bridge {
    child: tokio::process::Child,
    stdin: tokio::process::ChildStdin,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Bridge {
    fn start(home: &Home, args: &[&str]) -> Self {
        let mut child = home.command(args).stdin(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, stdin, lines }
    }

    async fn send(&mut self, message: &Value) {
        self.stdin.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    /// The next message within a deadline.
    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(Duration::from_secs(20), self.lines.next_line()).await;
        serde_json::from_str(&line.expect("a message in time").unwrap().expect("not the end")).unwrap()
    }

    async fn ask(&mut self, message: Value) -> Value {
        self.send(&message).await;
        self.next().await
    }
}

fn call(id: u32, tool: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": tool, "arguments": {} } })
}

#[tokio::test(flavor = "multi_thread")]
async fn run_outlives_the_link() {
    let home = home();
    home.fake.with(|s| s.results.insert("now".into(), "{\"content\":[]}".into()));
    let proxy = home.proxy();
    let host = format!("unix://{}", proxy.path.display());
    let mut bridge = Bridge::start(&home, &["--host", &host, "run", "time"]);
    let params = json!({ "protocolVersion": "2025-11-25", "clientInfo": { "name": "x" }, "capabilities": {} });
    bridge.ask(json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params })).await;
    bridge.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
    let listed = bridge.ask(json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" })).await;
    assert_eq!(listed["id"], 1);
    // a call that the server is at when the link breaks: an error, once, and it is not sent again
    bridge.send(&call(2, "slow")).await;
    let asked = bridge.next().await;
    assert_eq!(asked["method"], "sampling/createMessage");
    proxy.cut();
    let told = [bridge.next().await, bridge.next().await];
    let failed = told.iter().find(|m| m["id"] == 2).expect("an answer");
    assert!(failed["error"]["message"].as_str().unwrap().contains("is not sent again"), "{failed}");
    let cancelled = told.iter().find(|m| m["method"] == "notifications/cancelled").expect("what it asked is over");
    assert_eq!(cancelled["params"]["requestId"], "ask-1");
    // the next request finds the session as it was; the answer to what the other session asked goes nowhere
    let listed = bridge.ask(json!({ "jsonrpc": "2.0", "id": 3, "method": "tools/list" })).await;
    assert_eq!((&listed["id"], &listed["result"]["tools"][0]["name"]), (&json!(3), &json!("now")));
    bridge.send(&json!({ "jsonrpc": "2.0", "id": "ask-1", "result": {} })).await;
    bridge.ask(json!({ "jsonrpc": "2.0", "id": 4, "method": "tools/list" })).await;
    let frames = home.fake.with(|s| s.frames.clone());
    assert!(frames.iter().all(|f| f["id"] != "ask-1"));
    let methods: Vec<&str> = frames.iter().filter_map(|f| f["method"].as_str()).collect();
    let second = ["initialize", "notifications/initialized", "tools/list"];
    assert_eq!(methods, [&second[..], &["tools/call"], &second, &["tools/list"]].concat());
    assert_eq!(
        frames.iter().filter(|f| f["method"] == "initialize").nth(1).unwrap()["params"],
        params,
        "the same words"
    );
    drop(bridge.stdin);
    assert!(bridge.child.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn run_waits_for_an_agent_that_is_away() {
    let home = Home::empty();
    std::fs::create_dir_all(home.path("state/sigil")).unwrap();
    home.fake.with(|s| s.deployments = vec![deployment("time", "ready")]);
    let mut bridge = Bridge::start(&home, &["run", "time"]);
    bridge.send(&json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize" })).await;
    // it says that nobody is there, and goes on trying
    let mut said = BufReader::new(bridge.child.stderr.take().unwrap()).lines();
    let line = tokio::time::timeout(Duration::from_secs(20), said.next_line()).await.unwrap().unwrap().unwrap();
    assert!(line.contains("no agent answers") && line.contains("trying again"), "{line}");
    home.fake.listen(&home.socket());
    assert_eq!(bridge.next().await["id"], 0);
    bridge.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
    drop(bridge.stdin);
    assert!(bridge.child.wait().await.unwrap().success());
}
