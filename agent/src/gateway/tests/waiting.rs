//! Calls that are held while nobody can answer them.

use std::sync::atomic::Ordering::Relaxed;

use super::servers::server_of;
use super::*;
use crate::gateway::WAITING;

#[tokio::test]
async fn calls_wait_for_a_start_but_not_for_ever() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.set_state(NAME, true, "building");
    let (answer, ()) = tokio::join!(front.post(NAME, None, call(1, "whoami")), async {
        tokio::task::yield_now().await;
        front.set(&[(NAME, vec![http.endpoint()])]);
    });
    assert_eq!(answer.status, 200);
    front.set_state(NAME, true, "building");
    let answer = front.post(NAME, None, call(1, "whoami")).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "GATEWAY_STARTING"));
    assert!(!answer.header("retry-after").is_empty());
    front.set_state(NAME, false, "stopped by root");
    let answer = front.post(NAME, None, call(1, "whoami")).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "GATEWAY_CONNECTION_FAILED"));
    assert!(answer.text.contains("stopped by root"));
}

/// A call that is held until `then` has happened.
async fn held(front: &Front, session: Option<&str>, then: impl FnOnce()) -> Answer {
    let room = || front.gateway.shared.waiting.available_permits();
    let free = room();
    let (answer, ()) = tokio::join!(front.post(NAME, session, call(1, "echo")), async {
        wait_until("it is held", || room() < free).await;
        then();
    });
    answer
}

#[tokio::test]
async fn a_call_waits_for_a_replica_out_of_reach_until_it_is_back_or_gone() {
    let http = HttpServer::start().await;
    for (replica, other) in [(http.endpoint(), http.endpoint()), (stdio(SERVER), stdio(SERVER))] {
        let front = Front::new().await;
        front.set(&[(NAME, vec![replica.clone()])]);
        let session = front.begin(NAME).await;
        replica_away(&replica, true);
        let answer = held(&front, Some(&session), || replica_away(&replica, false)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        // killed: what is held learns that its session is over, and not that a call failed
        replica_kill_all(&replica);
        replica_away(&replica, true);
        wait_until("its process has ended", || front.gateway.shared.sessions().is_empty()).await;
        let answer = held(&front, Some(&session), || front.set(&[(NAME, vec![other.clone()])])).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "GATEWAY_SESSION_EXPIRED"), "{}", answer.text);
        // and nobody new is sent to one out of reach while another serves
        front.set(&[(NAME, vec![replica.clone(), other.clone()])]);
        let before = front.gateway.sessions(replica.instance);
        for _ in 0..4 {
            front.begin(NAME).await;
        }
        assert!(front.gateway.sessions(replica.instance) <= before);
    }
}

#[tokio::test]
async fn a_call_that_waited_for_a_start_is_translated_as_any_other() {
    for (era, stateless_client) in [("legacy", true), ("modern", false)] {
        let notes = tempfile::tempdir().unwrap();
        let (replica, _listening) = server_of(era, Transport::Http, &notes.path().join("notes"));
        let front = Front::new().await;
        front.set_state(NAME, true, "it starts");
        let (headers, body) = if stateless_client {
            stateless("1", "tools/list", "", "")
        } else {
            (accept(None), initialize("2025-11-25"))
        };
        let path = format!("/mcp/{NAME}");
        let (answer, ()) = tokio::join!(front.raw("POST", &path, &headers, &body), async {
            let room = || front.gateway.shared.waiting.available_permits();
            wait_until("it is held", || room() < WAITING).await;
            front.set(&[(NAME, vec![replica.clone()])]);
        });
        assert_eq!(answer.status, 200, "{era}: {}", answer.text);
        assert!(answer.last()["result"].is_object(), "{era}: {}", answer.text);
    }
}

#[tokio::test]
async fn what_could_not_be_sent_is_sent_when_the_link_is_back() {
    let http = HttpServer::start().await;
    let (front, replica) = (Front::new().await, http.endpoint());
    front.set(&[(NAME, vec![replica.clone()])]);
    let local = replica_local(&replica);
    local.broken.store(true, Relaxed);
    let answer = held(&front, None, || local.broken.store(false, Relaxed)).await;
    assert_eq!((answer.status, http.count("echo")), (200, 1), "{}", answer.text);
    // and not for ever
    replica.pool.clear();
    local.broken.store(true, Relaxed);
    let answer = front.post(NAME, None, call(2, "echo")).await;
    assert_eq!((answer.code().as_str(), http.count("echo")), ("GATEWAY_CONNECTION_FAILED", 1), "{}", answer.text);
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_not_waited_for() {
    let (front, replica) = (Front::new().await, endpoint(Transport::Http, free_port().await, &[]));
    front.set(&[(NAME, vec![replica.clone()])]);
    let answer = front.post(NAME, None, call(1, "echo")).await;
    assert_eq!(answer.code(), "GATEWAY_CONNECTION_FAILED", "{}", answer.text);
    assert_eq!(replica_local(&replica).dials.load(Relaxed), 1);
}

#[tokio::test]
async fn a_refusal_is_no_answer_while_the_servers_era_cannot_be_asked_for() {
    let notes = tempfile::tempdir().unwrap();
    let (replica, _listening) = server_of("legacy", Transport::Http, &notes.path().join("notes"));
    let (front, replica) = (Front::new().await, impatient(&replica));
    front.set(&[(NAME, vec![replica.clone()])]);
    let local = replica_local(&replica);
    // the server refuses what it does not know, and is gone before it is asked what it does
    local.good.store(1, Relaxed);
    let (headers, body) = stateless("1", "tools/call", r#""name":"echo","arguments":{}"#, "");
    let path = format!("/mcp/{NAME}");
    let answer = front.raw("POST", &path, &headers, &body).await;
    assert_eq!(answer.code(), "GATEWAY_CONNECTION_FAILED", "{} {}", answer.status, answer.text);
    local.good.store(0, Relaxed);
    let answer = front.raw("POST", &path, &headers, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test]
async fn a_notification_on_its_way_is_waited_for_and_ends_with_its_session() {
    let http = HttpServer::start().await;
    let front = Front::new().await;
    front.set(&[(NAME, vec![http.endpoint()])]);
    let session = front.begin(NAME).await;
    // a server that takes what it is sent, and is killed over it
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut replica = crate::upstream::local::spec(Transport::Http, deaf.local_addr().unwrap().port(), &[]);
    replica.request_timeout_ms = 60_000;
    let live = front.gateway.shared.table.borrow().routes[NAME].ready[0].endpoint.clone();
    let mut same = crate::upstream::local::build(replica, tokio::sync::mpsc::channel(1).0);
    std::sync::Arc::get_mut(&mut same).unwrap().instance = live.instance;
    front.set(&[(NAME, vec![same])]);
    let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let (answer, ()) = tokio::join!(front.post(NAME, Some(&session), initialized), async {
        let (mut socket, _) = deaf.accept().await.unwrap();
        tokio::io::AsyncReadExt::read_u8(&mut socket).await.unwrap();
        assert_eq!(front.gateway.in_flight(live.instance), 1);
        front.set(&[(NAME, vec![http.endpoint()])]);
    });
    assert_eq!((answer.status, answer.code().as_str()), (404, "GATEWAY_SESSION_EXPIRED"), "{}", answer.text);
    wait_until("it is over", || front.gateway.in_flight(live.instance) == 0).await;
}
