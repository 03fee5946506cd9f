//! Both eras of clients before both eras of servers, over every transport: each cell is a real exchange through the
//! gateway. The table is printed (`--no-capture`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;

const FEATURES: [&str; 9] = [
    "tools",
    "resources",
    "prompts",
    "progress",
    "cancellation",
    "logging",
    "sampling",
    "elicitation",
    "subscriptions",
];
/// Cells that cannot be, and why.
const HOLES: [(&str, &str, &str); 1] = [("sse", "modern", "the transport does not exist in that era")];

const ABLE: &str = r#"{"elicitation":{},"sampling":{},"roots":{}}"#;

/// A client of one of the eras, before one server.
#[derive(Clone)]
struct Client {
    front: Arc<Front>,
    name: String,
    /// A legacy client's.
    session: Option<String>,
    notes: PathBuf,
}

/// What came for a call.
struct Got {
    before: Vec<Value>,
    result: Value,
}

impl Got {
    fn text(&self) -> &str {
        self.result["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{}", self.result))
    }

    fn methods(&self) -> Vec<&str> {
        self.before.iter().filter_map(|m| m["method"].as_str()).collect()
    }
}

/// What a person, or a model, answers.
fn reply(question: &Value) -> Value {
    match question["method"].as_str() {
        Some("elicitation/create") => json!({"action": "accept", "content": {"who": "ann"}}),
        Some("sampling/createMessage") => {
            json!({"role": "assistant", "model": "m", "content": {"type": "text", "text": "Paris"}})
        }
        Some("roots/list") => json!({"roots": [{"uri": "file:///r"}]}),
        _ => panic!("an odd question: {question}"),
    }
}

impl Client {
    async fn new(front: &Arc<Front>, name: &str, modern: bool, notes: &Path) -> Self {
        let mut client = Self { front: front.clone(), name: name.to_owned(), session: None, notes: notes.to_owned() };
        if !modern {
            client.session = Some(client.begin(ABLE).await);
        }
        client
    }

    async fn begin(&self, capabilities: &str) -> String {
        let body =
            initialize("2025-06-18").replace(r#""capabilities":{}"#, &format!(r#""capabilities":{capabilities}"#));
        let answer = self.front.post(&self.name, None, body).await;
        let session = answer.header("mcp-session-id");
        let greeting = answer.last();
        assert!(!session.is_empty(), "{greeting}");
        assert_eq!(greeting["result"]["protocolVersion"], "2025-06-18", "{greeting}");
        assert_eq!(greeting["result"]["instructions"], "be kind", "{greeting}");
        assert!(!greeting["result"]["serverInfo"]["name"].as_str().unwrap().is_empty());
        let offered = &greeting["result"]["capabilities"];
        assert_eq!((&offered["resources"]["subscribe"], &offered["extensions"]), (&json!(true), &Value::Null));
        let done = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(self.front.post(&self.name, Some(&session), done).await.status, 202);
        session
    }

    fn message(&self, id: &str, method: &str, params: &Value, meta: &Value) -> (Vec<(String, String)>, String) {
        let mut params = params.clone();
        let mut all = meta.clone();
        let mut headers = accept(self.session.as_deref());
        match &self.session {
            Some(_) => headers.extend(owned(&[("mcp-protocol-version", "2025-06-18")])),
            None => {
                all["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
                if all["io.modelcontextprotocol/clientCapabilities"].is_null() {
                    all["io.modelcontextprotocol/clientCapabilities"] = json!({});
                }
                headers.extend(owned(&[("mcp-protocol-version", "2026-07-28"), ("mcp-method", method)]));
                let name = params["name"].as_str().or(params["uri"].as_str());
                headers.extend(name.map(|name| ("mcp-name".to_owned(), name.to_owned())));
                let region = params["arguments"]["region"].as_str();
                headers.extend(region.map(|region| ("mcp-param-region".to_owned(), region.to_owned())));
            }
        }
        if all.as_object().is_some_and(|all| !all.is_empty()) {
            params["_meta"] = all;
        }
        let id: Value = serde_json::from_str(id).unwrap();
        (headers, json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string())
    }

    fn path(&self) -> String {
        format!("/mcp/{}", self.name)
    }

    /// A request whose server asks nothing.
    async fn ask(&self, method: &str, params: Value, meta: Value) -> Got {
        let (headers, body) = self.message("\"q\"", method, &params, &meta);
        let answer = self.front.raw("POST", &self.path(), &headers, &body).await;
        let mut before =
            if answer.header("content-type") == "text/event-stream" { answer.events() } else { vec![answer.json()] };
        let result = before.pop().unwrap_or_else(|| panic!("no answer: {}", answer.text));
        assert_eq!(result["id"], "q", "{}", answer.text);
        if self.session.is_none() && result.get("result").is_some() {
            assert!(result["result"]["resultType"].is_string(), "{result}");
        }
        Got { before, result }
    }

    async fn tool(&self, tool: &str, arguments: Value, meta: Value) -> Got {
        self.ask("tools/call", json!({"name": tool, "arguments": arguments}), meta).await
    }

    /// A call whose server asks something, answered until it is done.
    async fn answered(&self, tool: &str) -> Got {
        let params = json!({"name": tool, "arguments": {}});
        if self.session.is_none() {
            let able: Value = serde_json::from_str(ABLE).unwrap();
            let meta = json!({"io.modelcontextprotocol/clientCapabilities": able});
            let (mut params, mut questions) = (params, Vec::new());
            loop {
                let got = self.ask("tools/call", params.clone(), meta.clone()).await;
                let result = &got.result["result"];
                if result["resultType"] != "input_required" {
                    return Got { before: questions, result: got.result };
                }
                assert!(questions.len() < 5, "it asks for ever");
                let mut responses = json!({});
                for (key, question) in result["inputRequests"].as_object().unwrap() {
                    responses[key] = reply(question);
                    questions.push(question.clone());
                }
                params["inputResponses"] = responses;
                params["requestState"] = result["requestState"].clone();
            }
        }
        let (headers, body) = self.message("\"q\"", "tools/call", &params, &json!({}));
        let mut stream = self.front.open("POST", &self.path(), &headers, &body).await;
        let mut before = Vec::new();
        loop {
            let event = stream.event().await;
            if event["id"] == "q" {
                return Got { before, result: event };
            }
            if event.get("id").is_some() {
                let reply = json!({"jsonrpc": "2.0", "id": event["id"], "result": reply(&event)});
                assert_eq!(self.front.post(&self.name, self.session.as_deref(), reply.to_string()).await.status, 202);
                before.push(event);
            }
        }
    }

    fn cancelled(&self) -> usize {
        let notes = std::fs::read_to_string(&self.notes).unwrap_or_default();
        notes.lines().filter(|line| *line == "cancelled").count()
    }

    async fn cell(self, feature: &str) {
        let none = json!({});
        match feature {
            "tools" => {
                let list = self.ask("tools/list", json!({}), none.clone()).await.result;
                assert!(list["result"]["tools"].as_array().is_some_and(|t| t.len() > 5), "{list}");
                let echo = self.tool("echo", json!({"a": 1}), none.clone()).await;
                assert!(echo.text().starts_with(r#"you said {"a": 1}"#), "{}", echo.text());
                // what a stateless request's headers repeat of its arguments
                let placed = self.tool("placed", json!({"region": "eu"}), none).await;
                assert!(placed.text().contains(r#"{"region": "eu"}"#), "{}", placed.text());
            }
            "resources" => {
                let list = self.ask("resources/list", json!({}), none.clone()).await.result;
                assert_eq!(list["result"]["resources"][0]["uri"], "test://a");
                let read = self.ask("resources/read", json!({"uri": "test://a"}), none.clone()).await.result;
                assert_eq!(read["result"]["contents"][0]["text"], "the text");
                let missing = self.ask("resources/read", json!({"uri": "test://b"}), none).await.result;
                let code = if self.session.is_some() { -32002 } else { -32602 };
                assert_eq!(missing["error"]["code"], code, "{missing}");
            }
            "prompts" => {
                let list = self.ask("prompts/list", json!({}), none.clone()).await.result;
                assert_eq!(list["result"]["prompts"][0]["name"], "greet");
                let params = json!({"name": "greet", "arguments": {"who": "bob"}});
                let greet = self.ask("prompts/get", params, none).await.result;
                assert_eq!(greet["result"]["messages"][0]["content"]["text"], "hello bob", "{greet}");
            }
            "progress" => {
                let got = self.tool("progress", json!({}), json!({"progressToken": "mine"})).await;
                let told = got.before.iter().filter(|m| m["method"] == "notifications/progress");
                let told: Vec<_> =
                    told.map(|m| (m["params"]["progressToken"].clone(), m["params"]["progress"].clone())).collect();
                assert_eq!(told, [(json!("mine"), json!(1)), (json!("mine"), json!(2))]);
                assert_eq!(got.text(), "done");
            }
            "cancellation" => self.cancels().await,
            "logging" => {
                let meta = if self.session.is_some() {
                    let set = self.ask("logging/setLevel", json!({"level": "info"}), none.clone()).await.result;
                    assert_eq!(set["result"], json!({}), "{set}");
                    none
                } else {
                    json!({"io.modelcontextprotocol/logLevel": "info"})
                };
                let got = self.tool("log", json!({}), meta).await;
                let logs: Vec<&Value> = got.before.iter().filter(|m| m["method"] == "notifications/message").collect();
                assert_eq!(logs.len(), 1, "{:?}", got.before);
                assert_eq!(logs[0]["params"]["data"], "a warning");
            }
            "sampling" => {
                let got = self.answered("sample").await;
                assert_eq!((got.text(), got.methods()), ("Paris", vec!["sampling/createMessage"]));
                let roots = self.answered("roots").await;
                assert_eq!((roots.text(), roots.methods()), ("file:///r", vec!["roots/list"]));
            }
            "elicitation" => {
                let got = self.answered("ask").await;
                assert_eq!((got.text(), got.methods()), ("ann", vec!["elicitation/create"]));
                assert_eq!(got.before[0]["params"]["message"], "who?");
                let twice = self.answered("twice").await;
                assert_eq!((twice.text(), twice.methods().len()), ("ann and ann", 2));
            }
            "subscriptions" => self.subscribes().await,
            other => panic!("no such feature: {other}"),
        }
    }

    async fn cancels(&self) {
        let before = self.cancelled();
        let params = json!({"name": "slow", "arguments": {}});
        let (headers, body) = self.message("77", "tools/call", &params, &json!({"progressToken": 5}));
        let mut stream = self.front.open("POST", &self.path(), &headers, &body).await;
        if self.session.is_some() {
            let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":77}}"#;
            // it is under way at the server once the gateway has turned its answer into a stream, or said something
            assert_eq!(self.front.post(&self.name, self.session.as_deref(), cancel).await.status, 202);
            drop(tokio::time::timeout(Duration::from_secs(5), stream.ended()).await);
        }
        drop(stream);
        wait_until("the server was told", || self.cancelled() > before).await;
    }

    async fn subscribes(&self) {
        let wanted = |event: &Value| event["method"] == "notifications/resources/updated";
        let mut stream = match &self.session {
            Some(session) => {
                let headers = [accept(Some(session)), owned(&[("mcp-protocol-version", "2025-06-18")])].concat();
                let stream = self.front.open("GET", &self.path(), &headers, "").await;
                let done = self.ask("resources/subscribe", json!({"uri": "test://a"}), json!({})).await.result;
                assert_eq!(done["result"], json!({}), "{done}");
                stream
            }
            None => {
                let filter = json!({"toolsListChanged": true, "resourceSubscriptions": ["test://a"]});
                let (headers, body) =
                    self.message("5", "subscriptions/listen", &json!({"notifications": filter}), &json!({}));
                let mut stream = self.front.open("POST", &self.path(), &headers, &body).await;
                assert_eq!(stream.event().await["method"], "notifications/subscriptions/acknowledged");
                stream
            }
        };
        let touched = self.tool("touch", json!({}), json!({})).await;
        assert_eq!(touched.text(), "done");
        // a session's server does not say to which stream its changes belong: its only open call may get them
        let mut early = touched.before.into_iter();
        let (mut list, mut updated) = (false, false);
        while !(list && updated) {
            let event = match early.next() {
                Some(event) => event,
                None => stream.event().await,
            };
            list |= event["method"] == "notifications/tools/list_changed";
            updated |= wanted(&event);
            if wanted(&event) {
                assert_eq!(event["params"]["uri"], "test://a");
            }
            if self.session.is_none() {
                assert_eq!(event["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], 5, "{event}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_reaches_every_server() {
    let dir = tempfile::tempdir().unwrap();
    let front = Arc::new(Front::new().await);
    let transports = [(Transport::Http, "http"), (Transport::Stdio, "stdio"), (Transport::Sse, "sse")];
    let hole = |transport: &str, era: &str| {
        HOLES.iter().find(|(t, e, _)| *t == transport && *e == era).map(|(_, _, why)| *why)
    };
    let mut servers = Vec::new();
    let mut routes = Vec::new();
    for (transport, word) in transports {
        for era in ["legacy", "modern"] {
            if hole(word, era).is_none() {
                let name = format!("{word}-{era}");
                let (endpoint, listening) = server_of(era, transport, &dir.path().join(&name));
                servers.push(listening);
                routes.push((name, vec![endpoint]));
            }
        }
    }
    let routes: Vec<(&str, Vec<_>)> = routes.iter().map(|(name, replicas)| (name.as_str(), replicas.clone())).collect();
    front.set(&routes);
    let mut table = format!("{:8}{:8}{:8}", "client", "server", "over");
    FEATURES.iter().for_each(|feature| table.push_str(&format!("{feature:14}")));
    let (mut failures, mut reasons) = (Vec::new(), Vec::new());
    for client in ["legacy", "modern"] {
        for server in ["legacy", "modern"] {
            for (_, word) in transports {
                table.push_str(&format!("\n{client:8}{server:8}{word:8}"));
                if let Some(why) = hole(word, server) {
                    FEATURES.iter().for_each(|_| table.push_str(&format!("{:14}", "-")));
                    reasons.push(format!("- {word} x {server} server: {why}"));
                    continue;
                }
                let name = format!("{word}-{server}");
                for feature in FEATURES {
                    let (front, name, notes) = (front.clone(), name.clone(), dir.path().join(&name));
                    let cell = async move {
                        Client::new(&front, &name, client == "modern", &notes).await.cell(feature).await;
                    };
                    let works = match tokio::time::timeout(Duration::from_secs(30), tokio::spawn(cell)).await {
                        Ok(Ok(())) => "ok",
                        Ok(Err(panic)) => {
                            failures.push(format!("{client} {server} {word} {feature}: {panic}"));
                            "FAILS"
                        }
                        Err(_) => {
                            failures.push(format!("{client} {server} {word} {feature}: not within 30 s"));
                            "LATE"
                        }
                    };
                    table.push_str(&format!("{works:14}"));
                }
            }
        }
    }
    reasons.sort();
    reasons.dedup();
    println!("{table}\n{}", reasons.join("\n"));
    assert!(failures.is_empty(), "{}\n{}", table, failures.join("\n"));
}
