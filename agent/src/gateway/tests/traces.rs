//! Spans, as a collector reads them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use prost::Message as _;
use sigil_core::policy::Access;
use tokio::net::TcpListener;

use super::*;

/// Takes spans, or answers another status.
struct Collector {
    endpoint: String,
    status: Arc<AtomicU16>,
    asked: mpsc::Receiver<ExportTraceServiceRequest>,
    kept: Vec<Span>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (tx, asked) = mpsc::channel(64);
        let status = Arc::new(AtomicU16::new(200));
        let answers = status.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tx, answers) = (tx.clone(), answers.clone());
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (tx, status) = (tx.clone(), answers.load(Relaxed));
                    async move {
                        assert_eq!(request.uri().path(), "/v1/traces");
                        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                        // one that asks for a login
                        let login = request.headers().get("x-login").map(|login| login.to_str().unwrap().to_owned());
                        let status = if status == 401 && login.as_deref() == Some("hunter2") { 200 } else { status };
                        let body = request.into_body().collect().await?.to_bytes();
                        if status == 200 {
                            tx.send(ExportTraceServiceRequest::decode(body).unwrap()).await.unwrap();
                        }
                        let response = Response::builder().status(status).body(Full::<Bytes>::default()).unwrap();
                        Ok::<_, hyper::Error>(response)
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { endpoint, status, asked, kept: Vec::new() }
    }

    /// Waits for so many spans that are so.
    async fn spans(&mut self, count: usize, so: impl Fn(&Span) -> bool) -> Vec<Span> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let found: Vec<Span> = self.kept.iter().filter(|span| so(span)).cloned().collect();
            if found.len() >= count {
                return found;
            }
            let asked = tokio::time::timeout_at(deadline, self.asked.recv()).await;
            let asked = asked.unwrap_or_else(|_| panic!("{count} spans, of {:#?}", self.kept)).unwrap();
            for resource in asked.resource_spans {
                let service = &resource.resource.as_ref().unwrap().attributes[0];
                assert_eq!(
                    (service.key.as_str(), text(service.value.as_ref())),
                    ("service.name", "sigil-agent".into())
                );
                self.kept.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
    }
}

fn text(value: Option<&opentelemetry_proto::tonic::common::v1::AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

fn attributes(span: &Span) -> HashMap<String, String> {
    span.attributes.iter().map(|a| (a.key.clone(), text(a.value.as_ref()))).collect()
}

async fn traced(collector: &Collector) -> Front {
    let front = Front::new().await;
    front.configure(|config| config.telemetry.otlp_endpoint.clone_from(&collector.endpoint));
    front
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn of(method: &'static str) -> impl Fn(&Span) -> bool {
    move |span| span.name.starts_with(method)
}

#[tokio::test]
async fn a_call_is_two_spans_of_its_callers_trace() {
    let mut collector = Collector::start().await;
    let (front, http) = (traced(&collector).await, HttpServer::start().await);
    front.set(&[(NAME, vec![http.endpoint()])]);
    let session = front.begin(NAME).await;
    let mut headers = accept(Some(&session));
    headers.extend(owned(&[("traceparent", PARENT), ("tracestate", "v=1"), ("mcp-protocol-version", "2025-11-25")]));
    assert_eq!(front.raw("POST", &format!("/mcp/{NAME}"), &headers, &call(7, "whoami")).await.status, 200);
    let passed = http.last();
    let spans = collector.spans(2, of("tools/call whoami")).await;
    let kind = |kind: SpanKind| spans.iter().find(|span| span.kind == kind as i32).unwrap();
    let (own, server) = (kind(SpanKind::Server), kind(SpanKind::Client));
    assert_eq!(hex::encode(&own.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!((hex::encode(&own.parent_span_id).as_str(), own.trace_state.as_str()), ("00f067aa0ba902b7", "v=1"));
    assert_eq!((&server.trace_id, &server.parent_span_id), (&own.trace_id, &own.span_id));
    // the server is told that it is the child of its own part
    let to_server = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", hex::encode(&server.span_id));
    assert_eq!((passed.header("traceparent"), passed.header("tracestate")), (to_server, "v=1".into()));
    assert!(own.start_time_unix_nano <= server.start_time_unix_nano);
    assert!(server.end_time_unix_nano > server.start_time_unix_nano);
    assert!(
        own.end_time_unix_nano - own.start_time_unix_nano >= server.end_time_unix_nano - server.start_time_unix_nano
    );
    let said = attributes(own);
    for (name, value) in [
        ("mcp.method.name", "tools/call"),
        ("gen_ai.operation.name", "execute_tool"),
        ("gen_ai.tool.name", "whoami"),
        ("jsonrpc.request.id", "7"),
        ("mcp.protocol.version", "2025-11-25"),
        ("network.transport", "tcp"),
        ("http.response.status_code", "200"),
        ("sigil.deployment", NAME),
        ("sigil.caller", "anonymous"),
    ] {
        assert_eq!(said.get(name).map(String::as_str), Some(value), "{said:?}");
    }
    assert!(own.status.is_none() && server.status.is_none(), "{own:?}");
    assert!(!said["mcp.session.id"].is_empty() && !session.contains(&said["mcp.session.id"]));
    assert_eq!(attributes(server)["gen_ai.tool.name"], "whoami");
}

#[tokio::test]
async fn a_context_in_the_message_counts_and_stays_there() {
    let mut collector = Collector::start().await;
    let (front, http) = (traced(&collector).await, HttpServer::start().await);
    front.set(&[(NAME, vec![http.endpoint()]), ("pipes", vec![stdio(SERVER)])]);
    let asks = |id: u8| {
        format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"echo","_meta":{{"traceparent":"{PARENT}","tracestate":"v=2"}}}}}}"#
        )
    };
    assert_eq!(front.post(NAME, None, asks(1)).await.status, 200);
    let passed = http.last();
    assert!(passed.body.contains(PARENT), "the message is as its client sent it: {}", passed.body);
    assert!(passed.header("traceparent").starts_with(&PARENT[..36]) && passed.header("traceparent") != PARENT);
    assert_eq!(passed.header("tracestate"), "v=2");
    let session = front.begin("pipes").await;
    let answer = front.post("pipes", Some(&session), asks(2)).await;
    assert!(answer.text.contains(PARENT), "{}", answer.text);
    for span in collector.spans(4, of("tools/call")).await {
        assert_eq!(hex::encode(&span.trace_id), PARENT[3..35], "{span:?}");
    }
    // whoever began the trace does not record it: then nobody does
    let quiet = asks(3).replace("-01\"", "-00\"");
    assert_eq!(front.post(NAME, None, quiet).await.status, 200);
    assert_eq!(http.last().header("traceparent"), "");
    // a share of none, and one that was chosen all the same
    front.configure(|config| config.telemetry.sample_ratio = 0.0);
    assert_eq!(front.post(NAME, None, call(4, "unheard")).await.status, 200);
    assert_eq!(front.post(NAME, None, asks(5)).await.status, 200);
    let spans = collector.spans(6, of("tools/call")).await;
    let mut ids: Vec<String> = spans.iter().map(|span| attributes(span)["jsonrpc.request.id"].clone()).collect();
    ids.sort();
    assert_eq!(ids, ["1", "1", "2", "2", "5", "5"]);
}

#[tokio::test]
async fn failures_are_told_apart() {
    let mut collector = Collector::start().await;
    let front = traced(&collector).await;
    front.set(&[(NAME, vec![stdio(SERVER)]), ("shut", vec![stdio(SERVER)])]);
    front.govern("shut", Access::Key, "{}");
    let session = front.begin(NAME).await;
    let read = r#"{"jsonrpc":"2.0","id":2,"method":"resources/read","params":{"uri":"x:y"}}"#;
    assert_eq!(front.post(NAME, Some(&session), read).await.status, 200);
    assert_eq!(front.post("shut", None, call(3, "echo")).await.status, 401);
    let spans = collector.spans(2, of("resources/read")).await;
    for span in &spans {
        let said = attributes(span);
        assert_eq!((said["error.type"].as_str(), said["rpc.response.status_code"].as_str()), ("-32002", "-32002"));
        assert_eq!((span.status.as_ref().unwrap().code, said["mcp.resource.uri"].as_str()), (2, "x:y"));
    }
    // refused before it was read
    let refused = &collector.spans(1, of("POST")).await[0];
    assert_eq!(attributes(refused)["error.type"], "GATEWAY_INVALID_API_KEY");
    assert_eq!(attributes(refused)["http.response.status_code"], "401");
}

#[tokio::test]
async fn a_stream_is_its_opening_and_a_batch_is_one() {
    let mut collector = Collector::start().await;
    let front = traced(&collector).await;
    front.set(&[(NAME, vec![stdio(SERVER)])]);
    let begun = front.post(NAME, None, &*initialize("2025-03-26")).await;
    let session = begun.header("mcp-session-id");
    let path = format!("/mcp/{NAME}");
    let mut headers = accept(Some(&session));
    headers.extend(owned(&[("traceparent", PARENT)]));
    let stream = front.open("GET", &path, &headers, "").await;
    // told while it is still open
    let opening = collector.spans(1, of("GET")).await.remove(0);
    assert_eq!((hex::encode(&opening.trace_id), opening.kind), (PARENT[3..35].to_owned(), SpanKind::Server as i32));
    assert_eq!(attributes(&opening)["http.response.status_code"], "200");
    drop(stream);
    let read = r#"{"jsonrpc":"2.0","id":3,"method":"resources/read","params":{"uri":"x:y"}}"#;
    for (second, method) in [(call(3, "cancelled"), Some("tools/call")), (read.to_owned(), None)] {
        let batch = format!("[{},{second}]", call(2, "cancelled"));
        assert_eq!(front.raw("POST", &path, &headers, &batch).await.status, 200);
        let spans = collector.spans(2, |span| span.name == "batch" && span.trace_id == opening.trace_id).await;
        assert_eq!(spans.iter().filter(|span| span.kind == SpanKind::Client as i32).count(), 1, "{spans:?}");
        for span in &spans {
            let said = attributes(span);
            assert_eq!(said["sigil.batch.size"], "2");
            assert_eq!(said.get("mcp.method.name").map(String::as_str), method);
        }
        collector.kept.retain(|span| span.name != "batch");
    }
}

#[tokio::test]
async fn a_kept_answer_is_one_span_that_says_so() {
    let mut collector = Collector::start().await;
    let front = traced(&collector).await;
    let hints = r#"{"name": "echo", "annotations": {"readOnlyHint": True, "idempotentHint": True}}"#;
    front.set(&[(NAME, vec![stdio(&MODERN.replace(r#"{"name": "echo"}"#, hints))])]);
    front.govern(NAME, Access::Anonymous, r#"{"tools":{"cache":{"echo":true}}}"#);
    // the list is read behind the first one; the second is kept
    for id in ["1", "2", "3"] {
        let (headers, body) = stateless(id, "tools/call", r#""name":"echo""#, "");
        assert_eq!(front.raw("POST", &format!("/mcp/{NAME}"), &headers, &body).await.status, 200);
    }
    let spans = collector.spans(5, of("tools/call echo")).await;
    let mut said: Vec<(String, Option<String>, i32)> = spans
        .iter()
        .map(|span| (attributes(span), span.kind))
        .map(|(said, kind)| (said["jsonrpc.request.id"].clone(), said.get("sigil.cache").cloned(), kind))
        .collect();
    said.sort();
    let (server, client) = (SpanKind::Server as i32, SpanKind::Client as i32);
    let of = |id: &str, word: Option<&str>, kind: i32| (id.to_owned(), word.map(str::to_owned), kind);
    let wanted = [
        of("1", None, server),
        of("1", None, client),
        of("2", None, client),
        of("2", Some("miss"), server),
        of("3", Some("hit"), server),
    ];
    assert_eq!(said, wanted);
}

#[tokio::test]
async fn a_request_over_the_link_is_two_spans() {
    for over_http in [false, true] {
        let mut collector = Collector::start().await;
        let (front, http) = (traced(&collector).await, HttpServer::start().await);
        front.set(&[(NAME, vec![if over_http { http.endpoint() } else { stdio(SERVER) }])]);
        let (to_server, from_client) = mpsc::channel(8);
        let (to_client, mut from_server) = mpsc::channel(8);
        let gateway = front.gateway.clone();
        let running = tokio::spawn(async move {
            gateway.session(NAME, &root(), &std::collections::BTreeMap::new(), from_client, to_client).await
        });
        let send = |text: String| to_server.send(Bytes::from(text));
        send(initialize("2025-11-25")).await.unwrap();
        until(&mut from_server, 1).await;
        let asks = format!(
            r#"{{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{{"name":"echo","_meta":{{"traceparent":"{PARENT}"}}}}}}"#
        );
        send(asks).await.unwrap();
        until(&mut from_server, 2).await;
        let spans = collector.spans(2, of("tools/call echo")).await;
        let kind = |kind: SpanKind| spans.iter().find(|span| span.kind == kind as i32).unwrap();
        let (own, server) = (kind(SpanKind::Server), kind(SpanKind::Client));
        assert_eq!((&server.parent_span_id, hex::encode(&own.trace_id).as_str()), (&own.span_id, &PARENT[3..35]));
        assert_eq!(hex::encode(&own.parent_span_id), "00f067aa0ba902b7");
        let said = attributes(own);
        assert_eq!((said["rpc.system.name"].as_str(), said["sigil.caller"].as_str()), ("grpc", "root"));
        assert!(own.end_time_unix_nano >= server.end_time_unix_nano && own.status.is_none());
        drop(to_server);
        running.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_collector_with_a_login_gets_it() {
    let mut collector = Collector::start().await;
    collector.status.store(401, Relaxed);
    let (front, http) = (Front::new().await, HttpServer::start().await);
    front.set(&[(NAME, vec![http.endpoint()])]);
    let file = front.data_dir().join("login");
    std::fs::write(&file, "hunter2\n").unwrap();
    for (number, login) in ["hunter2".to_owned(), format!("file:{}", file.display())].into_iter().enumerate() {
        front.configure(|config| {
            config.telemetry.otlp_endpoint.clone_from(&collector.endpoint);
            config.telemetry.headers = [("x-login".to_owned(), login.as_str().into())].into();
        });
        assert_eq!(front.post(NAME, None, call(1, "a")).await.status, 200);
        assert_eq!(collector.spans(2 * (number + 1), of("tools/call a")).await.len(), 2 * (number + 1));
    }
    // one that cannot be read: nothing is sent without it, and what is lost is counted
    front.configure(|config| {
        config.telemetry.headers = [("x-login".to_owned(), "file:/nowhere/login".into())].into();
    });
    assert_eq!(front.post(NAME, None, call(2, "b")).await.status, 200);
    let dropped = || front.gateway.shared.telemetry.counted.dropped.load(Relaxed) == 2;
    wait_until("they are dropped", dropped).await;
}

#[tokio::test]
async fn a_collector_that_is_down_fails_no_request_and_what_it_misses_is_counted() {
    let mut collector = Collector::start().await;
    let (front, http) = (Front::new().await, HttpServer::start().await);
    front.set(&[(NAME, vec![http.endpoint()])]);
    let page = async || front.raw("GET", "/metrics", &[], "").await.text;
    let value = |page: &str, name: &str| -> f64 {
        page.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).unwrap().parse().unwrap()
    };
    // nothing is configured: nothing is made
    assert_eq!(front.post(NAME, None, call(1, "a")).await.status, 200);
    assert_eq!(value(&page().await, "sigil_spans_dropped_total"), 0.0);
    // it refuses for good: no other try is made
    collector.status.store(400, Relaxed);
    front.configure(|config| config.telemetry.otlp_endpoint.clone_from(&collector.endpoint));
    assert_eq!(front.post(NAME, None, call(2, "b")).await.status, 200);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while value(&page().await, "sigil_spans_dropped_total") < 2.0 {
        assert!(tokio::time::Instant::now() < deadline, "{}", page().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    collector.status.store(200, Relaxed);
    assert_eq!(front.post(NAME, None, call(3, "c")).await.status, 200);
    let spans = collector.spans(2, |_| true).await;
    assert!(spans.iter().all(|span| span.name == "tools/call c"), "{spans:?}");
    while value(&page().await, "sigil_spans_sent_total") < 2.0 {
        assert!(tokio::time::Instant::now() < deadline, "{}", page().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(value(&page().await, "sigil_spans_dropped_total"), 2.0);
}
