//! How containers end that nobody had asked to, and who is woken before anybody calls.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use sigil_core::series::{Point, REQUESTS, SECONDS, TIERS};
use sigil_protocol::v1;
use sigil_protocol::v1::start_request::What;

use crate::server::Act;
use crate::world::*;

async fn health(agent: &Agent, name: &str) -> v1::HealthReply {
    let mut health = v1::health_client::HealthClient::new(agent.channel.clone());
    let ask = v1::HealthRequest { name: name.into(), probes: 10, turns: 10, lives: 100 };
    health.get(ask).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_loop_keeps_the_last_words_of_each_life_over_agents() {
    let world = World::new();
    let agent = world.agent().await;
    agent.fine(What::Deploy(deploy("web", &[("GREETING", "hello")]))).await;
    Caller::open(agent.gateway, "web").await.call().await.unwrap();
    // it serves, and is killed for want of memory; its next lives are short, before their gate or behind it
    let (container, ..) = world.running("web").remove(0);
    world.act("web", Act::Exits(3, Duration::from_millis(20)));
    world.fake.crash(&container, 137, true);
    let mut seen = health(&agent, "web").await.lives;
    let deadline = std::time::Instant::now() + LONG;
    while seen.len() < 3 {
        assert!(std::time::Instant::now() < deadline, "{seen:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        seen = health(&agent, "web").await.lives;
    }
    let first = seen.last().unwrap();
    assert_eq!((first.code, first.oom, first.served), (Some(137), true, true), "{first:?}");
    assert!(first.why.starts_with("ran out of memory") && first.began > 0 && first.at >= first.began, "{first:?}");
    for life in &seen[..2] {
        assert_eq!((life.code, life.oom, life.release), (Some(3), false, 1), "{life:?}");
        assert!(life.why.contains("exited with code 3"), "{life:?}");
    }
    // each has what it printed, and nothing of another's
    assert!(seen.iter().all(|life| life.output.iter().all(|line| life.began <= line.at)), "{seen:#?}");
    assert!(!first.output.is_empty(), "{first:?}");
    agent.crash().await;
    let agent = world.agent().await;
    let again = health(&agent, "web").await.lives;
    assert_eq!(&again[again.len() - seen.len()..], &seen[..], "another agent knows them");
    agent.fine(What::Remove(named("web"))).await;
    until("nothing is kept of it", LONG, || std::fs::read_dir(world.dir.path().join("lives")).unwrap().count() == 0)
        .await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_life_that_ends_while_no_agent_runs_is_found_once_and_a_loop_goes_on_where_it_was() {
    let world = World::new();
    let agent = world.agent().await;
    agent.fine(What::Deploy(deploy("web", &[("GREETING", "hello")]))).await;
    Caller::open(agent.gateway, "web").await.call().await.unwrap();
    agent.stop().await;
    let (container, ..) = world.running("web").remove(0);
    world.fake.crash(&container, 9, false);
    let agent = world.agent().await;
    Caller::open(agent.gateway, "web").await.call().await.unwrap();
    let found = |lives: Vec<v1::EndedLife>| lives.into_iter().find(|life| life.code == Some(9));
    let deadline = std::time::Instant::now() + LONG;
    let life = loop {
        if let Some(life) = found(health(&agent, "web").await.lives) {
            break life;
        }
        assert!(std::time::Instant::now() < deadline, "it is not found");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(life.why == "exited with code 9, while no agent ran" && life.served && life.began > 0, "{life:?}");
    assert!(life.at >= life.began && !life.output.is_empty(), "{life:?}");
    // from here on it fails: the agents after this one know how often, and what they saw end they do not see again
    world.act("web", Act::Exits(4, Duration::from_millis(5)));
    let (container, ..) = world.running("web").remove(0);
    world.fake.crash(&container, 4, false);
    let loops = |d: &v1::DeploymentDetail| shown(d).message.contains("crash loop");
    agent.until("web", "a crash loop", LONG, loops).await;
    agent.stop().await;
    let agent = world.agent().await;
    agent.until("web", "a crash loop still, before it failed anew", Duration::from_secs(4), loops).await;
    let lives = health(&agent, "web").await.lives;
    let began: std::collections::BTreeSet<_> = lives.iter().map(|life| (&life.instance, life.began)).collect();
    assert_eq!(began.len(), lives.len(), "one life twice: {lives:#?}");
    // a person's wish forgives
    world.act("web", Act::Echo);
    agent.fine(What::Restart(named("web"))).await;
    agent.settled("web", "ready").await;
    agent.stop().await;
}

/// Writes the calls of the past: these minutes, since 1970.
fn called(world: &World, id: &str, minutes: &[i64]) {
    let tier = TIERS[1];
    let path = world.dir.path().join("metrics").join(id).join(format!("{}.ring", tier.name));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
    file.set_len(tier.bytes()).unwrap();
    file.write_all_at(&tier.header(), 0).unwrap();
    for minute in minutes {
        let mut point = Point::new(tier.interval(minute * 60));
        (point.values[SECONDS], point.values[REQUESTS]) = (60.0, 3.0);
        file.write_all_at(&point.encode(), tier.offset(point.interval)).unwrap();
    }
}

async fn notes(agent: &Agent, name: &str) -> String {
    let mut scaling = v1::scaling_client::ScalingClient::new(agent.channel.clone());
    scaling.explain(named(name)).await.unwrap().into_inner().notes.join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_called_each_day_at_this_time_is_awake_on_the_third_and_others_sleep_on() {
    let world = World::new();
    let agent = world.agent().await;
    let manifest = "health: { startTimeout: 2 }\n\
                    scaling: { min: 0, max: 3, idleTimeout: 300, sleep: stopped, predictive: true }\n";
    for name in ["daily", "random"] {
        let request = v1::DeployRequest { manifest: manifest.into(), ..deploy(name, &[("GREETING", "hello")]) };
        agent.fine(What::Deploy(request)).await;
    }
    let mut ids = Vec::new();
    for name in ["daily", "random"] {
        ids.push(shown(&agent.settled(name, "ready").await).id.clone());
    }
    agent.crash().await;
    // both were put to sleep while nobody looked; what the rings say of the days before
    for container in world.containers() {
        world.fake.crash(&container.id, 0, false);
    }
    let next = jiff::Timestamp::now().as_second() / 60 + 1;
    called(&world, &ids[0], &[next - 2 * 1440, next - 2 * 1440 + 1, next - 1440]);
    called(&world, &ids[1], &[next - 2 * 1440 - 400, next - 1440 + 200, next - 700]);

    let starts = world.fake.calls("start");
    let agent = world.agent().await;
    let minute = Duration::from_secs(90);
    agent.until("daily", "awake before anybody calls", minute, |d| shown(d).state == "ready").await;
    assert_eq!(world.fake.calls("start"), starts + 1);
    assert_eq!(Caller::open(agent.gateway, "daily").await.call().await.unwrap().0, "hello");
    assert_eq!(world.fake.calls("start"), starts + 1, "the first call of the third day waits for nothing");
    let said = notes(&agent, "daily").await;
    assert!(said.contains("waking ahead of calls is on (the same time of day: replayed, 1 of 1 wakes"), "{said}");
    assert!(said.contains("woken once today"), "{said}");
    let random = agent.detail("random").await.unwrap();
    assert_eq!(shown(&random).state, "sleeping", "{random:?}");
    let said = notes(&agent, "random").await;
    assert!(said.contains("waking ahead of calls is off: "), "{said}");
    agent.stop().await;
}
