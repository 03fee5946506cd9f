//! What a person does with a deployment, and what its server may do to them.

use std::time::Duration;

use sigil_protocol::v1;
use sigil_protocol::v1::start_request::What;

use crate::server::Act;
use crate::world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployed_is_ready_answers_and_is_logged_and_the_same_again_is_no_release() {
    let world = World::new();
    let agent = world.agent().await;
    for (name, transport) in [("web", "http"), ("pipe", "stdio")] {
        let request = v1::DeployRequest { transport: transport.into(), ..deploy(name, &[("GREETING", "one")]) };
        agent.fine(What::Deploy(request.clone())).await;
        let detail = agent.settled(name, "ready").await;
        assert_eq!((shown(&detail).ready, shown(&detail).release, world.running(name).len()), (1, 1, 1));
        let mut caller = Caller::open(agent.gateway, name).await;
        let (greeting, instance, count) = caller.call().await.unwrap();
        assert_eq!((greeting.as_str(), instance, count), ("one", detail.replicas[0].instance.clone(), 1));
        assert_eq!(caller.call().await.unwrap().2, 2, "the same session");
        let lines = agent.lines(name).await;
        assert!(lines.iter().any(|l| l == "the server starts (Echo)"), "{lines:?}");

        let before = world.running(name);
        let again = agent.fine(What::Deploy(request)).await;
        assert!(again.result.contains("\"unchanged\":true"), "{again:?}");
        assert_eq!(agent.detail(name).await.unwrap().releases.len(), 1);
        assert_eq!(world.running(name), before, "nothing was touched");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_built_once() {
    let world = World::new();
    let agent = world.agent().await;
    let mut tree = tar::Builder::new(Vec::new());
    let mut put = |name: &str, text: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tree.append_data(&mut header, name, text.as_bytes()).unwrap();
    };
    put("Dockerfile", "FROM sim/base:1\nRUN echo built\n");
    put(
        "mcp.yaml",
        "name: folder\ntransport: http\nport: 8080\ncommand: [/server]\nbuild: { dockerfile: Dockerfile }\n",
    );
    let tree = zstd::encode_all(&tree.into_inner().unwrap()[..], 1).unwrap();
    let chunk = v1::UploadChunk { request_id: "u".into(), label: "./server".into(), size: 0, data: tree };
    let mut sources = v1::sources_client::SourcesClient::new(agent.channel.clone());
    let sent = sources.upload(futures::stream::iter([chunk])).await.unwrap().into_inner();
    let request = |greeting: &str| v1::DeployRequest {
        source: Some(v1::SourceRef { text: "./server".into(), upload_id: sent.upload_id.clone() }),
        manifest: String::new(),
        ..deploy("folder", &[("GREETING", greeting)])
    };
    agent.fine(What::Deploy(request("one"))).await;
    assert_eq!(Caller::open(agent.gateway, "folder").await.call().await.unwrap().0, "one");
    let builds = world.fake.calls("build");
    agent.fine(What::Deploy(request("two"))).await;
    assert_eq!(Caller::open(agent.gateway, "folder").await.call().await.unwrap().0, "two");
    assert_eq!(world.fake.calls("build"), builds, "the same tree needs no second build");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_release_takes_over_without_a_failed_call() {
    let world = World::new();
    let agent = world.agent().await;
    let release = |greeting: &str| v1::DeployRequest { replicas: Some(2), ..deploy("web", &[("GREETING", greeting)]) };
    agent.fine(What::Deploy(release("one"))).await;
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (gateway, done) = (agent.gateway, done.clone());
            // new sessions all the time, as many clients make them
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut caller = Caller::open(gateway, "web").await;
                    for _ in 0..3 {
                        seen.push(caller.call_as_clients_do().await);
                    }
                }
                seen
            })
        })
        .collect();
    agent.fine(What::Deploy(release("two"))).await;
    let detail = agent.settled("web", "ready").await;
    assert_eq!((shown(&detail).release, shown(&detail).ready), (2, 2));
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    let (mut calls, mut greetings) = (0, std::collections::BTreeSet::new());
    for caller in callers {
        for answer in caller.await.unwrap() {
            calls += 1;
            greetings.insert(answer.unwrap_or_else(|e| panic!("a call failed during the switch: {e}")).0);
        }
    }
    assert!(calls > 20, "{calls} calls only");
    assert!(greetings.contains("one"), "the old release served: {greetings:?}");
    assert_eq!(Caller::open(agent.gateway, "web").await.call().await.unwrap().0, "two");
    assert!(world.running("web").iter().all(|(_, release, _)| release == "2"), "{:?}", world.running("web"));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_release_leaves_the_old_one_serving_and_says_what_it_printed() {
    let world = World::new();
    let agent = world.agent().await;
    agent.fine(What::Deploy(deploy("web", &[("GREETING", "good")]))).await;
    let before = world.running("web");
    let mut session = Caller::open(agent.gateway, "web").await;
    let cases = [
        ("silent", "did not answer the handshake"),
        ("exit:3", "exited with code 3"),
        ("garbage", "It works!"),
        ("deaf", "never listened on port 8080"),
    ];
    for (number, (act, why)) in cases.into_iter().enumerate() {
        let done = agent.run(What::Deploy(deploy("web", &[("ACT", act)]))).await;
        let error = done.error.unwrap();
        assert_eq!((done.state.as_str(), error.code.as_str()), ("failed", "NOT_READY"), "{act}: {error:?}");
        assert!(error.message.contains(why) && error.message.contains("release 1 goes on serving"), "{error:?}");
        let printed = format!("the server starts ({:?})", Act::parse(act));
        assert!(error.details.contains(&printed), "{act}: its last output: {error:?}");
        let detail = agent.settled("web", "ready").await;
        assert_eq!((shown(&detail).release, detail.releases.len()), (1, number + 2));
        assert_eq!(detail.last_output, [printed]);
        assert!(shown(&detail).message.contains("failed"), "{:?}", shown(&detail).message);
        assert_eq!(world.running("web"), before, "the old one was never touched");
        assert_eq!(session.call().await.unwrap().2, number as u32 + 1);
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_loop_is_slowed_named_and_over_when_the_server_behaves() {
    let world = World::new();
    let agent = world.agent().await;
    agent.fine(What::Deploy(deploy("web", &[]))).await;
    world.act("web", Act::parse("exit:7"));
    let began = std::time::Instant::now();
    world.fake.crash(&world.running("web")[0].0, 9, false);
    // 1, 2 and 4 seconds between four failures
    let limit = Duration::from_secs(15);
    let detail = agent
        .until("web", "in a crash loop", limit, |d| {
            shown(d).message.starts_with("crash loop") && shown(d).state == "failed"
        })
        .await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(6_500), "the back-off did not grow: {took:?}");
    assert!(shown(&detail).message.contains("exited with code 7"), "{:?}", shown(&detail).message);
    assert_eq!(detail.last_output.last().unwrap(), "the server starts (Exits(7, 0ns))");
    assert_eq!(shown(&detail).health, "unhealthy");
    let starts = world.fake.calls("start");
    assert!(starts <= 6, "{starts} starts");

    // it behaves again: the next try, or a person's, succeeds
    world.act("web", Act::Echo);
    agent.fine(What::Restart(named("web"))).await;
    let detail = agent.settled("web", "ready").await;
    assert_eq!((shown(&detail).message.as_str(), world.running("web").len()), ("", 1));
    Caller::open(agent.gateway, "web").await.call().await.unwrap();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_touches_nothing_and_sessions_go_on() {
    let world = World::new();
    let mut agent = world.agent().await;
    agent.fine(What::Deploy(v1::DeployRequest { replicas: Some(3), ..deploy("web", &[]) })).await;
    agent.fine(What::Deploy(v1::DeployRequest { transport: "stdio".into(), ..deploy("pipe", &[]) })).await;
    let (web, pipe) = (world.running("web"), world.running("pipe"));
    let mut callers = [Caller::open(agent.gateway, "web").await, Caller::open(agent.gateway, "pipe").await];
    let mut calls = 0;
    for orderly in [true, false, true, false] {
        calls += 1;
        let mut before = Vec::new();
        for caller in &mut callers {
            let (_, instance, count) = caller.call().await.unwrap();
            assert_eq!(count, calls);
            before.push(instance);
        }
        if orderly {
            agent.stop().await;
        } else {
            agent.crash().await;
        }
        agent = world.agent().await;
        calls += 1;
        for (caller, instance) in callers.iter_mut().zip(&before) {
            caller.moved(agent.gateway);
            let answer = caller.call().await.unwrap();
            assert_eq!((&answer.1, answer.2), (instance, calls), "the session goes on where it was");
        }
        agent.settled("web", "ready").await;
        agent.settled("pipe", "ready").await;
        assert_eq!((world.running("web"), world.running("pipe")), (web.clone(), pipe.clone()), "nothing was restarted");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_egress_list_is_shown_and_one_beyond_the_owners_is_refused_by_entry() {
    let world = World::new();
    let agent = world.agent_with(&[("SIGIL_OUTBOUND_ALLOW", "*.example,10.1.0.0/16:5432")]).await;
    let asking = |egress: &[&str]| {
        let egress = egress.iter().map(|e| (*e).to_owned()).collect();
        What::Deploy(v1::DeployRequest { egress, ..deploy("web", &[]) })
    };
    let refused = agent.run(asking(&["api.example", "other.test", "10.0.0.0/8", "127.0.0.1:80"])).await;
    let error = refused.error.unwrap();
    assert_eq!((refused.state.as_str(), error.code.as_str(), error.exit_code), ("failed", "NOT_ALLOWED", 4));
    for entry in ["other.test", "10.0.0.0/8", "127.0.0.1:80"] {
        assert!(error.message.contains(&format!("{entry} (")), "{entry}: {}", error.message);
    }
    assert!(!error.message.contains("api.example") && error.hint.contains("[outbound]"), "{error:?}");
    let wrong = agent.run(asking(&["http://api.example"])).await.error.unwrap();
    assert!(wrong.exit_code == 2 && wrong.message.contains("'http://api.example' is no host name"), "{wrong:?}");

    agent.fine(asking(&["API.example.", "api.example", "10.1.0.0/16:5432"])).await;
    let detail = agent.settled("web", "ready").await;
    assert_eq!((detail.egress.join(" ").as_str(), detail.network.as_str()), ("api.example 10.1.0.0/16:5432", "link"));
    assert!(!detail.egress_open && detail.refused.is_empty() && detail.refused_total == 0);
    // one entry written in another way is no other release
    let again = agent.fine(asking(&["api.example", "10.1.0.0/16:5432"])).await;
    assert!(again.result.contains("\"unchanged\":true"), "{again:?}");
    agent.stop().await;
}

/// What a publish makes for itself goes when its time is over: whoever made it may have been killed, and the agent, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_for_a_while_goes_by_itself() {
    let world = World::new();
    let agent = world.agent().await;
    let brief = |name: &str, seconds| v1::DeployRequest { temporary_seconds: seconds, ..deploy(name, &[]) };
    agent.fine(What::Deploy(brief("short", 4))).await;
    agent.fine(What::Deploy(brief("kept", 4))).await;
    agent.fine(What::Deploy(brief("long", 3600))).await;
    // whoever deploys it to stay keeps it
    agent.fine(What::Deploy(v1::DeployRequest { force: true, ..brief("kept", 0) })).await;
    agent.crash().await;
    let agent = world.agent().await;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while agent.detail("short").await.is_some() || !world.running("short").is_empty() {
        assert!(std::time::Instant::now() < deadline, "it is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    agent.settled("kept", "ready").await;
    agent.settled("long", "ready").await;
    agent.stop().await;
}
