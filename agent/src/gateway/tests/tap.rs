//! Live frames, and numbers by tool.

use tokio::sync::broadcast::error::RecvError;

use super::*;
use crate::gateway::Frame;

const CALL: &str = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"echo","arguments":{}}}"#;

async fn next(frames: &mut tokio::sync::broadcast::Receiver<std::sync::Arc<Frame>>) -> std::sync::Arc<Frame> {
    tokio::time::timeout(Duration::from_secs(10), frames.recv()).await.expect("a frame").unwrap()
}

#[tokio::test]
async fn whoever_looks_sees_messages_and_no_secrets() {
    let front = Front::new().await;
    let secret = vec![(Inject::Body("token".into()), "s3cret\"value".into())];
    front.set_with(NAME, vec![stdio(SERVER)], secret);
    let session = front.begin(NAME).await;
    let mut frames = front.gateway.tap(NAME).unwrap();
    let answer = front.post(NAME, Some(&session), CALL).await;
    assert!(answer.text.contains("*****") && !answer.text.contains("s3cret"), "{}", answer.text);
    let asked = next(&mut frames).await;
    let mut answered = next(&mut frames).await;
    while answered.method.starts_with("notifications/") {
        answered = next(&mut frames).await;
    }
    assert!(asked.from_client && !answered.from_client);
    assert_eq!((asked.method.as_str(), answered.method.as_str()), ("tools/call", "result"));
    assert_eq!((asked.id.as_str(), answered.id.as_str(), asked.message.as_str()), ("2", "2", CALL));
    assert!(!asked.session.is_empty() && asked.session == answered.session && asked.caller == "anonymous");
    assert!(answered.took > Duration::ZERO && !answered.cut && answered.size > 0);
    assert!(answered.message.contains("***") && !answered.message.contains("s3cret"), "{}", answered.message);
    // an answer that is a stream, message by message
    let token =
        r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"progress","_meta":{"progressToken":1}}}"#;
    assert_eq!(front.post(NAME, Some(&session), token).await.status, 200);
    let mut seen = Vec::new();
    while seen.last().is_none_or(|method| method != "result") {
        seen.push(next(&mut frames).await.method.clone());
    }
    assert_eq!(seen, ["tools/call", "notifications/progress", "notifications/message", "result"]);
    // a large one is shown by its beginning
    let large = r#"{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"large"}}"#;
    let whole = front.post(NAME, Some(&session), large).await.text.len();
    next(&mut frames).await;
    let cut = next(&mut frames).await;
    assert!(cut.cut && cut.message.len() <= 64 << 10 && cut.size > 3 << 20 && whole >= cut.size, "{}", cut.size);
    assert!(front.gateway.tap("none").is_err());
}

#[tokio::test]
async fn who_does_not_read_loses_frames_and_is_told() {
    let front = Front::new().await;
    let http = HttpServer::start().await;
    front.set(&[(NAME, vec![http.endpoint()])]);
    let mut frames = front.gateway.tap(NAME).unwrap();
    for _ in 0..200 {
        assert_eq!(front.post(NAME, None, CALL).await.status, 200);
    }
    assert!(matches!(frames.recv().await, Err(RecvError::Lagged(lost)) if lost >= 100));
    assert!(next(&mut frames).await.message.contains("jsonrpc"));
}

#[tokio::test]
async fn answers_over_the_link_take_as_long_as_their_requests() {
    let front = Front::new().await;
    front.set(&[(NAME, vec![stdio(SERVER)])]);
    front.govern(NAME, sigil_core::policy::Access::Anonymous, r#"{"tools":{"deny":["a"]}}"#);
    let mut frames = front.gateway.tap(NAME).unwrap();
    let (to_server, from_client) = mpsc::channel(8);
    let (to_client, mut from_server) = mpsc::channel(8);
    let gateway = front.gateway.clone();
    let running =
        tokio::spawn(async move { gateway.session(NAME, &root(), &Default::default(), from_client, to_client).await });
    let send = |text: String| to_server.send(Bytes::from(text));
    send(initialize("2025-11-25")).await.unwrap();
    until(&mut from_server, 1).await;
    // answered after the one behind it
    send(call(2, "after-next")).await.unwrap();
    while next(&mut frames).await.id != "2" {}
    let seen = std::time::Instant::now();
    // so that there is something to measure
    tokio::time::sleep(Duration::from_millis(30)).await;
    let between = seen.elapsed();
    send(call(3, "echo")).await.unwrap();
    until(&mut from_server, 2).await;
    send(call(4, "a")).await.unwrap();
    assert!(until(&mut from_server, 4).await["error"]["message"].as_str().unwrap().contains("Unknown tool"));
    let mut took = std::collections::BTreeMap::new();
    while took.len() < 3 {
        let frame = next(&mut frames).await;
        if !frame.from_client && ["result", "error"].contains(&frame.method.as_str()) {
            took.insert(frame.id.clone(), frame.took);
        }
    }
    assert!(took["2"] >= between && took["3"] < took["2"] && took["3"] > Duration::ZERO, "{took:?} {between:?}");
    assert!(took["4"] < took["2"], "{took:?}");
    drop(to_server);
    running.await.unwrap().unwrap();
}
