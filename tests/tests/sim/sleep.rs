//! Deployments that nobody calls, and the first call after that.

use std::time::Duration;

use sigil_agent::engine::ContainerState;
use sigil_protocol::v1;
use sigil_protocol::v1::start_request::What;

use crate::server::Act;
use crate::world::*;

/// A deployment that sleeps after a second.
fn sleeper(name: &str, transport: &str, depth: &str) -> v1::DeployRequest {
    let manifest =
        format!("health: {{ startTimeout: 2 }}\nscaling: {{ min: 0, max: 3, idleTimeout: 1, sleep: {depth} }}\n");
    v1::DeployRequest { transport: transport.into(), manifest, ..deploy(name, &[("GREETING", "hello")]) }
}

fn states(world: &World) -> Vec<&'static str> {
    let word = |state| match state {
        ContainerState::Paused { .. } => "paused",
        ContainerState::Exited { .. } => "exited",
        ContainerState::Running { .. } => "running",
        _ => "other",
    };
    world.containers().into_iter().map(|c| word(c.state)).collect()
}

async fn asleep(agent: &Agent, name: &str, depth: &str) -> v1::DeploymentDetail {
    let what = format!("asleep ({depth})");
    agent
        .until(name, &what, LONG, |d| {
            shown(d).state == "sleeping" && !d.replicas.is_empty() && d.replicas.iter().all(|r| r.state == depth)
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_calls_is_frozen_and_fifty_calls_wake_it_once() {
    let world = World::new();
    let agent = world.agent().await;
    for (name, transport) in [("web", "http"), ("pipe", "stdio")] {
        agent.fine(What::Deploy(sleeper(name, transport, "paused"))).await;
        let mut before = Caller::open(agent.gateway, name).await;
        let instance = before.call().await.unwrap().1;
        let detail = asleep(&agent, name, "paused").await;
        assert!(shown(&detail).message.contains("the next call wakes it"), "{detail:?}");
        let unpauses = world.fake.calls("unpause");
        // a process each is more than a small container holds
        let crowd = if name == "web" { 50 } else { 4 };
        let callers: Vec<_> = (0..crowd)
            .map(|_| {
                let gateway = agent.gateway;
                tokio::spawn(async move { Caller::open(gateway, name).await.call().await })
            })
            .collect();
        assert_eq!(before.call().await.unwrap().1, instance, "the session went on");
        assert_eq!(before.call().await.unwrap().2, 3, "and the server kept what it knew");
        for caller in callers {
            assert_eq!(caller.await.unwrap().unwrap().1, instance);
        }
        assert_eq!(world.fake.calls("unpause"), unpauses + 1, "one wake");
        agent.until(name, "ready", LONG, |d| shown(d).state == "ready").await;
        let lines = agent_lines(&agent, name).await;
        assert!(lines.iter().any(|l| l.starts_with("asleep (paused)")), "{lines:?}");
        assert!(lines.iter().any(|l| l.starts_with("awake again after")), "{lines:?}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stopped_starts_with_the_first_call_and_old_sessions_begin_anew() {
    let world = World::new();
    let agent = world.agent().await;
    for (name, transport) in [("web", "http"), ("pipe", "stdio")] {
        agent.fine(What::Deploy(sleeper(name, transport, "stopped"))).await;
        let mut caller = Caller::open(agent.gateway, name).await;
        let instance = caller.call().await.unwrap().1;
        // a session keeps it from stopping, and not from being frozen
        asleep(&agent, name, "paused").await;
        assert_eq!(caller.call().await.unwrap().2, 2);
        caller.close().await;
        asleep(&agent, name, "stopped").await;
        let starts = world.fake.calls("start");
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let gateway = agent.gateway;
                tokio::spawn(async move { Caller::open(gateway, name).await.call().await })
            })
            .collect();
        for one in callers {
            assert_eq!(one.await.unwrap().unwrap().1, instance, "the same container");
        }
        assert_eq!(world.fake.calls("start"), starts + 1, "one wake");
        assert_eq!(shown(&agent.settled(name, "ready").await).restarts, 0, "no crash");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_agent_leaves_sleepers_asleep_and_their_sessions_alive() {
    let world = World::new();
    let agent = world.agent().await;
    agent.fine(What::Deploy(sleeper("frozen", "http", "paused"))).await;
    agent.fine(What::Deploy(sleeper("still", "http", "stopped"))).await;
    let mut session = Caller::open(agent.gateway, "frozen").await;
    session.call().await.unwrap();
    asleep(&agent, "frozen", "paused").await;
    asleep(&agent, "still", "stopped").await;
    agent.crash().await;

    let (starts, unpauses) = (world.fake.calls("start"), world.fake.calls("unpause"));
    let agent = world.agent().await;
    asleep(&agent, "frozen", "paused").await;
    asleep(&agent, "still", "stopped").await;
    let now = states(&world);
    assert!(now.contains(&"paused") && now.contains(&"exited"), "{now:?}");
    assert_eq!((world.fake.calls("start"), world.fake.calls("unpause")), (starts, unpauses), "nobody was woken");
    session.moved(agent.gateway);
    assert_eq!(session.call().await.unwrap().2, 2, "the session outlived the agent");
    Caller::open(agent.gateway, "still").await.call().await.unwrap();
    assert_eq!((world.fake.calls("start"), world.fake.calls("unpause")), (starts + 1, unpauses + 1));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_wakes_a_sleeper_and_what_is_removed_does_not_wake() {
    let world = World::new();
    let agent = world.agent().await;
    agent.fine(What::Deploy(sleeper("web", "http", "paused"))).await;
    asleep(&agent, "web", "paused").await;
    // a new release starts beside the frozen one and takes its place
    let mut next = sleeper("web", "http", "paused");
    next.env.insert("GREETING".into(), "hi".into());
    agent.fine(What::Deploy(next)).await;
    assert_eq!(Caller::open(agent.gateway, "web").await.call().await.unwrap().0, "hi");
    until("one container", LONG, || world.containers().len() == 1).await;
    asleep(&agent, "web", "paused").await;
    agent.fine(What::Stop(named("web"))).await;
    agent.settled("web", "stopped").await;
    assert!(world.containers().is_empty(), "{:?}", world.containers());
    agent.fine(What::Start(named("web"))).await;
    agent.settled("web", "ready").await;
    asleep(&agent, "web", "paused").await;
    agent.fine(What::Remove(named("web"))).await;
    until("no container", LONG, || world.containers().is_empty()).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wake_that_fails_says_why_and_the_next_one_may_succeed() {
    let world = World::new();
    let agent = world.agent().await;
    agent.fine(What::Deploy(sleeper("web", "http", "stopped"))).await;
    asleep(&agent, "web", "stopped").await;
    world.act("web", Act::Deaf);
    let gateway = agent.gateway;
    let call = tokio::spawn(async move { Caller::begun(gateway, "web").await });
    let failing =
        |d: &v1::DeploymentDetail| shown(d).message.contains("took no connection within 2000 ms of being woken");
    agent.until("web", "failing with its reason", LONG, failing).await;
    world.act("web", Act::Echo);
    call.await.unwrap().expect("held until it was there");
    // frozen and killed meanwhile: the call starts it
    agent.fine(What::Deploy(sleeper("ice", "http", "paused"))).await;
    asleep(&agent, "ice", "paused").await;
    let of_ice = |c: &sigil_agent::engine::Container| c.labels[sigil_agent::engine::label::DEPLOYMENT] == "ice";
    let id = world.containers().into_iter().find(of_ice).unwrap().id;
    world.fake.crash(&id, 137, true);
    agent.until("ice", "stopped in its sleep", LONG, |d| d.replicas.iter().all(|r| r.state == "stopped")).await;
    assert_eq!(Caller::open(agent.gateway, "ice").await.call().await.unwrap().0, "hello");
    // and one that the engine cannot thaw at first
    asleep(&agent, "ice", "paused").await;
    world.fake.fail_next("unpause", sigil_agent::engine::EngineError::Failed("not now".into()));
    assert_eq!(Caller::open(agent.gateway, "ice").await.call().await.unwrap().0, "hello");
    agent.stop().await;
}

/// What the agent itself wrote into a deployment's log.
async fn agent_lines(agent: &Agent, name: &str) -> Vec<String> {
    let ask =
        v1::TailRequest { deployments: vec![name.into()], streams: vec!["agent".into()], ..v1::TailRequest::default() };
    let mut logs = v1::logs_client::LogsClient::new(agent.channel.clone());
    let mut tail = logs.tail(ask).await.unwrap().into_inner();
    let mut lines = Vec::new();
    while let Some(batch) = tail.message().await.unwrap() {
        lines.extend(batch.lines.iter().map(|l| String::from_utf8_lossy(&l.line).into_owned()));
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_no_room_waits_with_a_sentence_and_sleepers_make_room() {
    let world = World::new();
    // room for two of the half cores that this tier promises
    let agent = world.agent_with(&[("SIGIL_LIMITS_CPUS", "1")]).await;
    let standard = |name: &str| v1::DeployRequest { tier: "standard".into(), ..sleeper(name, "http", "paused") };
    agent.fine(What::Deploy(standard("one"))).await;
    agent.fine(What::Deploy(standard("two"))).await;
    asleep(&agent, "one", "paused").await;
    asleep(&agent, "two", "paused").await;
    // two halves of a core are promised as soon as both are awake again
    let (mut first, mut second) = (Caller::open(agent.gateway, "one").await, Caller::open(agent.gateway, "two").await);
    let what = What::Deploy(v1::DeployRequest { tier: "standard".into(), ..deploy("three", &[("GREETING", "3")]) });
    let id = ulid::Ulid::generate().to_string();
    let started = agent.operations().start(request(&id, what)).await.unwrap().into_inner();
    let keeps = async {
        loop {
            first.call().await.unwrap();
            second.call().await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waits = agent.until("three", "waiting for room", LONG, |d| {
        shown(d).message.contains("waits for room: the host's CPUs are promised already: 1.0 of 1.0 cores")
    });
    tokio::select! {
        () = keeps => {}
        detail = waits => assert_eq!(shown(&detail).ready, 0),
    }
    // nobody calls them any more: they go to sleep, and there is room
    assert_eq!(agent.ended(&started.id).await.unwrap().state, "succeeded");
    assert_eq!(Caller::open(agent.gateway, "three").await.call().await.unwrap().0, "3");
    agent.stop().await;
}
