//! Conversations that come over gRPC: both eras of clients before both eras of servers, over every transport.

use tokio::task::JoinHandle;

use super::*;
use crate::gateway::{Gateway, GatewayError};

const ABLE: &str = r#"{"elicitation":{},"sampling":{},"roots":{}}"#;

/// A client over the link.
struct Link {
    to: mpsc::Sender<Bytes>,
    from: mpsc::Receiver<Bytes>,
    running: JoinHandle<Result<(), GatewayError>>,
    modern: bool,
}

impl Link {
    fn open(gateway: &Gateway, name: &str, modern: bool) -> Self {
        let (to, from_client) = mpsc::channel(8);
        let (to_client, from) = mpsc::channel(8);
        let (gateway, name) = (gateway.clone(), name.to_owned());
        let running =
            tokio::spawn(
                async move { gateway.session(&name, &root(), &Default::default(), from_client, to_client).await },
            );
        Self { to, from, running, modern }
    }

    async fn send(&self, message: Value) {
        self.to.send(Bytes::from(message.to_string())).await.unwrap();
    }

    async fn next(&mut self) -> Value {
        let message = tokio::time::timeout(Duration::from_secs(20), self.from.recv()).await;
        serde_json::from_slice(&message.expect("a message within 20 s").expect("more messages")).unwrap()
    }

    /// Sends a request.
    async fn begin(&self, id: i64, method: &str, mut params: Value, mut meta: Value) {
        if self.modern {
            meta["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
            let able = if params["name"] == "slow" { "{}" } else { ABLE };
            meta["io.modelcontextprotocol/clientCapabilities"] = serde_json::from_str(able).unwrap();
        }
        if meta.as_object().is_some_and(|meta| !meta.is_empty()) {
            params["_meta"] = meta;
        }
        self.send(json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})).await;
    }

    /// The answer to a request, and what came before it.
    async fn ask(&mut self, id: i64, method: &str, params: Value, meta: Value) -> (Value, Vec<Value>) {
        self.begin(id, method, params, meta).await;
        let mut before = Vec::new();
        loop {
            let message = self.next().await;
            if message["id"] == id {
                return (message, before);
            }
            if message["id"].is_string() {
                let reply = json!({"jsonrpc": "2.0", "id": message["id"], "result": answer(&message)});
                self.send(reply).await;
            }
            before.push(message);
        }
    }

    async fn tool(&mut self, id: i64, tool: &str, more: Value, meta: Value) -> (Value, Vec<Value>) {
        let mut params = json!({"name": tool, "arguments": {}});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.ask(id, "tools/call", params, meta).await
    }

    /// A call whose server asks something.
    async fn answered(&mut self, id: i64, tool: &str) -> String {
        let (mut got, before) = self.tool(id, tool, json!({}), json!({})).await;
        if self.modern {
            assert_eq!(got["result"]["resultType"], "input_required", "{got}");
            let questions = got["result"]["inputRequests"].as_object().unwrap();
            let responses: Value = questions.iter().map(|(key, q)| (key.clone(), answer(q))).collect();
            let more = json!({"inputResponses": responses, "requestState": got["result"]["requestState"]});
            got = self.tool(id + 100, tool, more, json!({})).await.0;
        } else {
            assert_eq!(before.iter().filter(|m| m["id"].is_string()).count(), 1, "{before:?}");
        }
        text(&got)
    }

    async fn end(self) {
        drop(self.to);
        self.running.await.unwrap().unwrap();
    }
}

fn text(message: &Value) -> String {
    message["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{message}")).to_owned()
}

fn answer(question: &Value) -> Value {
    match question["method"].as_str() {
        Some("elicitation/create") => json!({"action": "accept", "content": {"who": "ann"}}),
        Some("roots/list") => json!({"roots": [{"uri": "file:///r"}]}),
        _ => panic!("an odd question: {question}"),
    }
}

async fn exchange(link: &mut Link, notes: &std::path::Path) {
    if link.modern {
        let (found, _) = link.ask(1, "server/discover", json!({}), json!({})).await;
        assert_eq!(found["result"]["supportedVersions"], json!(["2026-07-28"]), "{found}");
    } else {
        let hello = json!({"protocolVersion": "2025-06-18", "capabilities": serde_json::from_str::<Value>(ABLE).unwrap(), "clientInfo": {"name": "t", "version": "1"}});
        let (hello, _) = link.ask(1, "initialize", hello, json!({})).await;
        assert_eq!(hello["result"]["protocolVersion"], "2025-06-18", "{hello}");
        assert_eq!(hello["result"]["instructions"], "be kind", "{hello}");
        link.send(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    }
    let (list, _) = link.ask(2, "tools/list", json!({}), json!({})).await;
    assert!(list["result"]["tools"].as_array().is_some_and(|tools| tools.len() > 5), "{list}");
    assert!(list["result"]["resultType"].is_string() || !link.modern, "{list}");
    // with what headers would repeat over HTTP
    let (placed, _) = link.tool(3, "placed", json!({"arguments": {"region": "eu"}}), json!({})).await;
    assert!(text(&placed).contains(r#"{"region": "eu"}"#), "{placed}");
    let (done, before) = link.tool(4, "progress", json!({}), json!({"progressToken": "mine"})).await;
    let told: Vec<&Value> = before.iter().filter(|m| m["method"] == "notifications/progress").collect();
    assert_eq!((told.len(), &told[0]["params"]["progressToken"], text(&done).as_str()), (2, &json!("mine"), "done"));
    assert_eq!(link.answered(5, "ask").await, "ann");
    assert_eq!(link.answered(6, "roots").await, "file:///r");
    let (missing, _) = link.ask(7, "resources/read", json!({"uri": "test://b"}), json!({})).await;
    assert_eq!(missing["error"]["code"], if link.modern { -32602 } else { -32002 }, "{missing}");
    // a call that is given up is given up at the server, and is not answered
    let cancelled = || std::fs::read_to_string(notes).unwrap_or_default().matches("cancelled").count();
    let before = cancelled();
    // one that is given up before the server has it never gets there: then again
    for id in 20.. {
        assert!(id < 100, "the server is told of none");
        link.begin(id, "tools/call", json!({"name": "slow", "arguments": {}}), json!({"progressToken": id})).await;
        let begun = tokio::time::timeout(Duration::from_millis(100 * (id as u64 - 19)), link.from.recv()).await;
        link.send(json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}})).await;
        let told = async {
            while cancelled() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(Duration::from_millis(500), told).await.is_ok() {
            break;
        }
        drop(begun);
    }
    let (echo, _) = link.tool(9, "echo", json!({}), json!({})).await;
    assert!(text(&echo).starts_with("you said {}"), "{echo}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_reaches_every_server_over_the_link() {
    let dir = tempfile::tempdir().unwrap();
    let servers = [
        ("legacy", Transport::Stdio),
        ("legacy", Transport::Http),
        ("legacy", Transport::Sse),
        ("modern", Transport::Stdio),
        ("modern", Transport::Http),
    ];
    for (era, transport) in servers {
        let notes = dir.path().join(format!("{era}-{transport:?}"));
        let (replica, _server) = server_of(era, transport, &notes);
        let front = Front::new().await;
        front.set(&[(NAME, vec![replica.clone()])]);
        // twice: the era is to be found out, and then it is known
        for modern in [false, true, false, true] {
            println!("{era} server over {transport:?}, {} client", if modern { "modern" } else { "legacy" });
            let mut link = Link::open(&front.gateway, NAME, modern);
            exchange(&mut link, &notes).await;
            link.end().await;
        }
        wait_until("nothing is left", || {
            front.gateway.in_flight(replica.instance) == 0
                && !replica_keys(&replica).iter().any(|k| k.starts_with("d-"))
        })
        .await;
    }
}

#[tokio::test]
async fn what_a_client_cannot_be_asked_is_said() {
    let (front, dir) = (Front::new().await, tempfile::tempdir().unwrap());
    front.set(&[(NAME, vec![server_of("modern", Transport::Stdio, &dir.path().join("notes")).0])]);
    let mut link = Link::open(&front.gateway, NAME, false);
    link.send(serde_json::from_str(&initialize("2025-11-25")).unwrap()).await;
    assert_eq!(link.next().await["result"]["serverInfo"]["name"], "modern");
    let (refused, _) = link.tool(2, "ask", json!({}), json!({})).await;
    assert!(refused["error"]["message"].as_str().unwrap().contains("elicitation"), "{refused}");
    link.end().await;
    // without translation the server's own words arrive
    front.translate_nothing();
    let mut link = Link::open(&front.gateway, NAME, false);
    link.send(serde_json::from_str(&initialize("2025-11-25")).unwrap()).await;
    assert_eq!(link.next().await["error"]["code"], -32022);
    link.end().await;
}

/// A server that never answers holds up nobody for ever, over the link as little as over HTTP.
#[tokio::test]
async fn time_is_up_over_the_link_too() {
    let (front, replica) = (Front::new().await, impatient(&stdio(SERVER)));
    front.set(&[(NAME, vec![replica])]);
    let mut link = Link::open(&front.gateway, NAME, false);
    link.send(serde_json::from_str(&initialize("2025-11-25")).unwrap()).await;
    while link.next().await["id"] != 1 {}
    let (late, _) = link.tool(2, "never", json!({}), json!({})).await;
    assert_eq!(late["error"]["data"]["code"], "GATEWAY_TIMEOUT", "{late}");
    let (told, _) = link.tool(3, "cancelled", json!({}), json!({})).await;
    assert_eq!(told["result"]["cancelled"], json!([2]), "{told}");
    link.end().await;
}
