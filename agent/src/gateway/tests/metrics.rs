//! Numbers: by deployment, tool and key, as /metrics shows them.

use std::collections::BTreeMap;

use sigil_core::policy::Access;

use super::*;
use crate::access;
use crate::gateway::caller::Caller;
use crate::gateway::load::Call;

const CALL: &str = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"echo","arguments":{}}}"#;

/// The page, line by line: every line is a comment or `name{labels} value`, every family is announced before its lines and
/// stays together, no line comes twice (the text format 0.0.4).
fn read(page: &str) -> BTreeMap<String, f64> {
    let (mut types, mut values, mut last) = (BTreeMap::new(), BTreeMap::new(), String::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is announced twice");
            last = name.to_owned();
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let base = base.filter(|base| types.get(*base).is_some_and(|kind| kind == "histogram")).unwrap_or(name);
        assert_eq!(base, last, "{line}");
        if types[base] == "histogram" {
            assert!(base != name, "a histogram has no value of its own: {line}");
        }
        let value = value.parse::<f64>().unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(values.insert(series.to_owned(), value).is_none(), "{series} is there twice");
    }
    values
}

async fn page(front: &Front) -> BTreeMap<String, f64> {
    let answer = front.raw("GET", "/metrics", &[], "").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    read(&answer.text)
}

#[tokio::test]
async fn calls_are_counted_by_tool() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(SERVER)])]);
    let session = front.begin(NAME).await;
    for _ in 0..3 {
        assert_eq!(front.post(NAME, Some(&session), CALL).await.status, 200);
    }
    let values = page(&front).await;
    let of = |name: &str, labels: &str| values[&format!("{name}{{deployment=\"{NAME}\"{labels}}}")];
    assert_eq!(of("sigil_tool_duration_seconds_count", ",tool=\"echo\""), 3.0);
    assert_eq!(of("sigil_tool_duration_seconds_bucket", ",tool=\"echo\",le=\"+Inf\""), 3.0);
    // initialize and three calls
    assert_eq!(of("sigil_request_duration_seconds_count", ""), 4.0);
    let buckets: Vec<f64> = crate::web::BOUNDS
        .iter()
        .map(|bound| of("sigil_request_duration_seconds_bucket", &format!(",le=\"{bound}\"")))
        .collect();
    assert!(buckets.is_sorted() && buckets.last() == Some(&4.0), "{buckets:?}");
    assert!(of("sigil_request_duration_seconds_sum", "") > 0.0);
    assert!(of("sigil_bytes_received_total", "") > 3.0 * CALL.len() as f64);
    assert!(of("sigil_bytes_sent_total", "") > 100.0 && of("sigil_sessions", "") == 1.0);
    assert_eq!(of("sigil_connections", ""), 0.0);
    let stream = front.open("GET", &format!("/mcp/{NAME}"), &accept(Some(&session)), "").await;
    assert_eq!(page(&front).await[&format!("sigil_connections{{deployment=\"{NAME}\"}}")], 1.0);
    drop(stream);

    let entry = front.gateway.shared.table.borrow().routes[NAME].clone();
    let nobody = Caller::anonymous();
    for number in 0..1000 {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t{number}"}}}}"#);
        let head = sigil_core::jsonrpc::parse_one(text.as_bytes()).unwrap();
        let mut call = Call::begin(&std::sync::Arc::default(), &entry.recorder, &nobody).of(&head);
        call.answered(br#"{"jsonrpc":"2.0","id":1,"result":{"content":[]}}"#);
    }
    let tools = entry.recorder.tools();
    assert!(tools.len() <= 257, "names that callers make up are bounded");
    assert_eq!(tools.iter().map(|t| t.latency.calls()).sum::<u64>(), 1003);
}

#[tokio::test]
async fn a_tool_that_no_server_knows_has_no_name() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(SERVER)]), ("h", vec![http.endpoint()])]);
    let unknown = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"Unknown tool: x"}}"#;
    let entry = front.gateway.shared.table.borrow().routes[NAME].clone();
    let head = sigil_core::jsonrpc::parse_one(CALL.as_bytes()).unwrap();
    let begin = || Call::begin(&std::sync::Arc::default(), &entry.recorder, &Caller::anonymous()).of(&head);
    // no answer, and one that says no
    drop(begin());
    begin().answered(unknown.as_bytes());
    let names = || entry.recorder.tools().iter().map(|t| t.tool.clone()).collect::<Vec<_>>();
    assert_eq!(names(), ["(others)"]);
    begin().answered(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}");
    assert_eq!(names(), ["echo", "(others)"]);
    // a server over HTTP, whose answer is passed on as it comes
    assert_eq!(front.post("h", None, call(1, "echo")).await.status, 200);
    let values = page(&front).await;
    assert_eq!(values["sigil_tool_duration_seconds_count{deployment=\"h\",tool=\"echo\"}"], 1.0, "{values:?}");
}

#[tokio::test]
async fn calls_are_counted_by_key() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(SERVER)])]);
    front.govern(NAME, Access::Key, "{}");
    let make = |label: &str, tools: Vec<String>| {
        let new = access::NewToken { tools, ..access::NewToken::new(label, access::Role::Caller) };
        access::reveal(&access::create_token(front.data_dir(), new).unwrap().0).to_owned()
    };
    let (first, second) = (make("first", Vec::new()), make("second", vec!["a".into()]));
    let post = async |key: &str, session: Option<&str>, body: &str| {
        let mut headers = accept(session);
        headers.push(("authorization".into(), format!("Bearer {key}")));
        front.raw("POST", &format!("/mcp/{NAME}"), &headers, body).await
    };
    for (key, status) in [(&first, 200), (&second, 403)] {
        let begun = post(key, None, &initialize("2025-11-25")).await;
        assert_eq!(begun.status, 200, "{}", begun.text);
        let session = begun.header("mcp-session-id");
        assert_eq!(post(key, Some(&session), CALL).await.status, status);
        let failed = r#"{"jsonrpc":"2.0","id":3,"method":"resources/read","params":{"uri":"x:y"}}"#;
        assert_eq!(post(key, Some(&session), failed).await.status, 200);
    }
    let values = page(&front).await;
    let of = |name: &str, key: &str| values[&format!("sigil_key_{name}{{key=\"{key}\"}}")];
    for (key, calls, refused) in [("first", 3.0, 0.0), ("second", 2.0, 1.0)] {
        let seen = (of("calls_total", key), of("errors_total", key), of("refused_total", key), of("in_flight", key));
        assert_eq!(seen, (calls, 1.0, refused, 0.0), "{key}");
        assert!(of("bytes_received_total", key) > CALL.len() as f64 && of("bytes_sent_total", key) > 100.0);
    }
    // the key itself is nowhere
    assert!(!values.keys().any(|series| series.contains("sigil_ey") || series.contains(&first)));
}

/// The bar of 20 ms is for a release build, with the page made, sent and read; a debug build has ten times as long.
#[tokio::test]
async fn a_large_page_is_fast_and_holds_up_no_call() {
    const DEPLOYMENTS: usize = 200;
    const TOOLS: usize = 20;
    let (front, http) = (Front::new().await, HttpServer::start().await);
    let names: Vec<String> = (0..DEPLOYMENTS).map(|n| format!("deployment-{n}")).collect();
    let routes: Vec<_> = names.iter().map(|name| (name.as_str(), vec![http.endpoint()])).collect();
    front.set(&routes);
    let table = front.gateway.shared.table.borrow().clone();
    let nobody = Caller::anonymous();
    for tool in 0..TOOLS {
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"a_tool_with_a_name_{tool}"}}}}"#
        );
        let head = sigil_core::jsonrpc::parse_one(text.as_bytes()).unwrap();
        for entry in table.routes.values() {
            let mut call = Call::begin(&std::sync::Arc::default(), &entry.recorder, &nobody).of(&head);
            call.answered(br#"{"jsonrpc":"2.0","id":1,"result":{"content":[]}}"#);
        }
    }
    let scrape = async || {
        let began = std::time::Instant::now();
        let text = front.raw("GET", "/metrics", &[], "").await.text;
        (began.elapsed(), text)
    };
    let (mut best, text) = scrape().await;
    for _ in 0..4 {
        best = best.min(scrape().await.0);
    }
    let series = text.lines().filter(|l| l.starts_with("sigil_tool_duration_seconds_count{")).count();
    assert_eq!(series, DEPLOYMENTS * TOOLS);
    println!(
        "/metrics of {DEPLOYMENTS} deployments with {TOOLS} tools each, over HTTP: {} bytes in {best:?}",
        text.len()
    );
    let factor = if cfg!(debug_assertions) { 10 } else { 1 };
    assert!(best.as_millis() < 20 * factor, "{best:?}");
    // the page is made beside the thread that answers: making it many times costs a call next to nothing
    let shared = front.gateway.shared.clone();
    let made = tokio::spawn(async move { shared.scrapes.page(&shared).await });
    let began = std::time::Instant::now();
    tokio::task::yield_now().await;
    let turn = began.elapsed();
    println!("a turn of the gateway's thread while a page is made: {turn:?}");
    assert!(turn < best.max(std::time::Duration::from_millis(1)), "{turn:?} of {best:?}");
    assert!(made.await.unwrap().is_some_and(|page| page.len() > text.len() / 2));
}
