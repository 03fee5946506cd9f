//! What goes wrong around the agent: the engine, the host, people with a shell. Afterwards all is as desired, by itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sigil_agent::engine::{ContainerState, EngineError, label};
use sigil_protocol::v1;
use sigil_protocol::v1::start_request::What;

use crate::world::*;

/// From the end of a trouble until desired state, without help.
const REPAIR: Duration = Duration::from_secs(10);

fn away() -> EngineError {
    EngineError::Unreachable { host: "fake".into(), why: "connection refused".into() }
}

async fn three(agent: &Agent) {
    for (name, replicas, transport) in [("a", 1, "http"), ("b", 2, "http"), ("c", 1, "stdio")] {
        let request = v1::DeployRequest { replicas: Some(replicas), transport: transport.into(), ..deploy(name, &[]) };
        agent.fine(What::Deploy(request)).await;
    }
}

async fn all_ready(agent: &Agent, limit: Duration) {
    let deadline = Instant::now() + limit;
    for (name, replicas) in [("a", 1), ("b", 2), ("c", 1)] {
        let left = deadline.saturating_duration_since(Instant::now());
        agent.until(name, "ready again", left, |d| is_settled(d) && shown(d).ready == replicas).await;
        Caller::open(agent.gateway, name).await.call().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_went_away_took_all_containers_with_it() {
    let world = World::new();
    let agent = world.agent().await;
    three(&agent).await;
    let before: Vec<String> = world.containers().into_iter().map(|c| c.id).collect();

    // first only the engine: what runs goes on serving
    world.fake.away(Some(away()));
    let mut caller = Caller::open(agent.gateway, "a").await;
    let looks = world.fake.calls("observe");
    agent.until("a", "told", REPAIR, |d| shown(d).message.starts_with("the engine cannot be seen")).await;
    caller.call().await.unwrap();
    let ready = readyz(&agent).await;
    assert!(ready.0 == 503 && ready.1.contains("cannot be reached"), "{ready:?}");
    until("it looks again and again", REPAIR, || world.fake.calls("observe") >= looks + 3).await;

    // then its containers, as without live-restore; and nobody tells that it is back
    world.fake.drop_events();
    world.power_cut();
    let began = Instant::now();
    world.fake.away(None);
    all_ready(&agent, REPAIR).await;
    println!("desired state {:?} after the engine came back", began.elapsed());
    assert_eq!(readyz(&agent).await.0, 200);
    let mut after: Vec<String> = world.containers().into_iter().map(|c| c.id).collect();
    after.sort();
    assert_eq!(after, before, "the same containers, started again");
    agent.stop().await;
}

async fn readyz(agent: &Agent) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(agent.gateway).await.unwrap();
    let ask = format!("GET /readyz HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", agent.gateway);
    socket.write_all(ask.as_bytes()).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    (text[9..12].parse().unwrap(), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_while_the_event_stream_is_down_is_seen_all_the_same() {
    let world = World::new();
    let agent = world.agent().await;
    three(&agent).await;
    world.fake.drop_events();
    // no event tells of it; its init's link does
    world.fake.crash(&world.running("a")[0].0, 1, false);
    world.fake.vanish(&world.running("b")[0].0);
    until("both are seen", REPAIR, || world.running("a").len() == 1 && world.running("b").len() == 2).await;
    all_ready(&agent, REPAIR).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_with_a_shell_and_other_peoples_containers() {
    let world = World::new();
    let foreign = world.fake.add_foreign("postgres");
    let labels = |agent: &str, deployment: &str| {
        BTreeMap::from([
            (label::AGENT.to_owned(), agent.to_owned()),
            (label::DEPLOYMENT.to_owned(), "gone".to_owned()),
            (label::DEPLOYMENT_ID.to_owned(), deployment.to_owned()),
            (label::INSTANCE.to_owned(), ulid::Ulid::generate().to_string()),
            (label::ROLE.to_owned(), "replica".to_owned()),
        ])
    };
    // somebody's `docker run` of an image that was built here: the image's labels are all it has
    let by_hand = BTreeMap::from([(label::AGENT.to_owned(), world.id.to_string())]);
    let by_hand = world.fake.add_container("debugging", by_hand);
    let unknown = ulid::Ulid::generate().to_string();
    let others = world.fake.add_container("sigil-other-x", labels(&ulid::Ulid::generate().to_string(), &unknown));
    let leftover = world.fake.add_container("sigil-own-x", labels(&world.id.to_string(), &unknown));
    let agent = world.agent().await;
    until("our own leftover is removed", REPAIR, || !world.fake.has(&leftover)).await;
    three(&agent).await;

    // removed by hand, killed by hand, stopped by hand
    let (a, b, c) = (world.running("a"), world.running("b"), world.running("c"));
    world.fake.vanish(&a[0].0);
    world.fake.crash(&b[0].0, 137, false);
    world.fake.crash(&c[0].0, 0, false);
    until("a is made anew", REPAIR, || world.running("a").first().is_some_and(|now| now.0 != a[0].0)).await;
    until("b is started", REPAIR, || world.running("b").len() == 2).await;
    until("c is started", REPAIR, || world.running("c").len() == 1).await;
    all_ready(&agent, REPAIR).await;
    assert!(world.running("b").iter().any(|now| *now == b[1]), "the other replica was left alone");
    assert!(world.fake.has(&by_hand), "a container that was made by hand was left alone");
    world.fake.vanish(&by_hand);
    assert!(shown(&agent.detail("b").await.unwrap()).restarts == 1);

    for name in ["a", "b", "c"] {
        agent.fine(What::Remove(named(name))).await;
    }
    until("nothing of ours is left", REPAIR, || world.containers().is_empty() && world.sockets().is_empty()).await;
    assert!(world.fake.has(&foreign) && world.fake.has(&others), "others' containers were never touched");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reboot_brings_everything_back() {
    let world = World::new();
    let mut agent = world.agent().await;
    three(&agent).await;
    agent.fine(What::Deploy(deploy("stopped", &[]))).await;
    agent.fine(What::Stop(named("stopped"))).await;
    for orderly in [true, false] {
        if orderly {
            agent.stop().await;
        } else {
            agent.crash().await;
        }
        world.power_cut();
        let began = Instant::now();
        agent = world.agent().await;
        all_ready(&agent, REPAIR).await;
        println!("desired state {:?} after a reboot", began.elapsed());
        agent.settled("stopped", "stopped").await;
        assert!(world.running("stopped").is_empty());
        assert_eq!(world.containers().len(), 4);
        for name in ["a", "b", "c"] {
            let detail = agent.detail(name).await.unwrap();
            assert!(!shown(&detail).message.contains("crash"), "a reboot is no crash: {:?}", shown(&detail).message);
        }
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_the_engine_may_fail_or_be_slow() {
    let world = World::new();
    let agent = world.agent().await;
    three(&agent).await;
    let failed = || EngineError::Api("something broke".into());
    let late = || EngineError::Timeout { what: "call".into(), seconds: 60 };
    // stopping and removing: tried until it is done
    for (call, times) in [("stop", 1), ("remove", 2), ("stop", 2)] {
        for _ in 0..times {
            world.fake.fail_next(call, if times == 1 { failed() } else { late() });
        }
        agent.fine(What::Restart(named("b"))).await;
        agent.settled("b", "ready").await;
        until("the old ones are gone", REPAIR, || world.containers().len() == 4).await;
    }
    // what brings one up: a good release is tried again by itself
    for (call, times) in [("create", 1), ("start", 1), ("inspect", 1), ("set_cpus", 1), ("start", 2)] {
        let gone = world.running("a")[0].0.clone();
        for _ in 0..times {
            world.fake.fail_next(call, failed());
        }
        world.fake.vanish(&gone);
        until("there is a new one", REPAIR, || world.running("a").first().is_some_and(|now| now.0 != gone)).await;
        all_ready(&agent, REPAIR).await;
        assert_eq!(world.containers().len(), 4, "after a failed {call}");
        // a person's wish forgives the row of failures, so that the next round does not wait for it
        agent.fine(What::Restart(named("a"))).await;
        agent.settled("a", "ready").await;
    }
    // a slow engine: one deployment's calls hold up no other's
    world.fake.slow("create", Duration::from_millis(400));
    world.fake.slow("start", Duration::from_millis(400));
    world.fake.slow("stop", Duration::from_millis(400));
    let began = Instant::now();
    let all = ["a", "b", "c"].map(|name| agent.fine(What::Restart(named(name))));
    futures::future::join_all(all).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "three restarts of 1.2 s at once took {took:?}");
    for call in ["create", "start", "stop"] {
        world.fake.slow(call, Duration::ZERO);
    }
    all_ready(&agent, REPAIR).await;
    until("the old ones are gone", REPAIR, || world.containers().len() == 4).await;
    let created = world.containers().iter().filter(|c| c.state == ContainerState::Created).count();
    assert_eq!(created, 0);
    agent.stop().await;
}
