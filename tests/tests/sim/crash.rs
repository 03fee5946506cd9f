//! The agent ends at any point of any operation and comes back: what it acknowledged is in effect, no container is lost,
//! doubled or orphaned, and a client that asks again with the same request id changes nothing twice.
//!
//! An end here drops every task at its next await and closes every file: unlike kill -9 it runs destructors (the real
//! one is in `tests/docker.rs`, and the store's own tests kill a process). Points are counted in calls of the engine
//! and writes of the store, drawn from a seed that a failure prints.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sigil_agent::engine::{ContainerState, label};
use sigil_protocol::v1;
use sigil_protocol::v1::start_request::What;

use crate::world::*;

/// Crash points of one test; there are four of them.
const POINTS: u32 = 55;
/// Nothing happens for so long: then the operation is over, or waits.
const IDLE: Duration = Duration::from_millis(60);

/// A generator of numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self, below: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }
}

/// What a deployment must be, as its client knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    running: bool,
    replicas: u32,
    /// Greeting of each release, by number.
    greetings: BTreeMap<u32, String>,
    release: u32,
}

/// What is asked next, and what must then hold (`None`: it is gone).
fn next(dice: &mut Dice, name: &str, now: Option<&Wanted>, round: u32) -> (What, Option<Wanted>) {
    let release = |replicas: u32| {
        let greeting = format!("g{round}");
        let transport = if name == "pipe" { "stdio" } else { "http" };
        let request = v1::DeployRequest {
            transport: transport.into(),
            replicas: Some(replicas),
            ..deploy(name, &[("GREETING", &greeting)])
        };
        (What::Deploy(request), greeting)
    };
    let Some(now) = now else {
        let replicas = 1 + dice.next(2) as u32;
        let (what, greeting) = release(replicas);
        let greetings = BTreeMap::from([(1, greeting)]);
        return (what, Some(Wanted { running: true, replicas, greetings, release: 1 }));
    };
    let mut then = now.clone();
    let what = match dice.next(12) {
        0..=3 => {
            let (what, greeting) = release(now.replicas.max(1));
            let number = then.greetings.keys().max().unwrap() + 1;
            then.greetings.insert(number, greeting);
            (then.running, then.release, then.replicas) = (true, number, now.replicas.max(1));
            what
        }
        4 | 5 => {
            (then.running, then.replicas) = (true, 1 + dice.next(3) as u32);
            What::Scale(v1::ScaleRequest { name: name.into(), replicas: then.replicas })
        }
        6 => {
            then.running = false;
            What::Stop(named(name))
        }
        7 => {
            then.running = true;
            What::Start(named(name))
        }
        8 | 9 if now.release > 1 => {
            (then.running, then.release) = (true, now.release - 1);
            What::Rollback(v1::RollbackRequest { name: name.into(), release: 0 })
        }
        10 => return (What::Remove(named(name)), None),
        _ => {
            then.running = true;
            What::Restart(named(name))
        }
    };
    (what, Some(then))
}

/// Lets the agent go on for so many steps of the engine or the store, or until nothing happens.
async fn steps(world: &World, count: u64) {
    let mut seen = world.fake.steps();
    let until = *seen.borrow() + count;
    while *seen.borrow_and_update() < until {
        if tokio::time::timeout(IDLE, seen.changed()).await.is_err() {
            return;
        }
    }
}

async fn check(world: &World, agent: &Agent, wanted: &BTreeMap<&str, Wanted>, context: &str) {
    let mut expected = 0;
    for (name, wanted) in wanted {
        let state = if wanted.running { "ready" } else { "stopped" };
        let detail = agent.settled(name, state).await;
        let replicas = if wanted.running { wanted.replicas as usize } else { 0 };
        expected += replicas;
        let running = world.running(name);
        assert_eq!(running.len(), replicas, "{context}: '{name}' {wanted:?}: {detail:#?}");
        let release = wanted.release.to_string();
        assert!(running.iter().all(|r| r.1 == release), "{context}: '{name}' {wanted:?}: {running:?}");
        let numbers: Vec<u32> = detail.releases.iter().map(|r| r.number).collect();
        let newest = wanted.greetings.keys().max();
        assert_eq!(numbers.iter().max(), newest, "{context}: '{name}': no release is lost or doubled: {numbers:?}");
        if wanted.running {
            let (greeting, ..) = Caller::open(agent.gateway, name).await.call().await.unwrap();
            assert_eq!(greeting, wanted.greetings[&wanted.release], "{context}: '{name}'");
        }
    }
    let whole = || {
        let containers = world.containers();
        let instances: BTreeSet<_> = containers.iter().map(|c| c.labels[label::INSTANCE].clone()).collect();
        let up = containers.iter().filter(|c| matches!(c.state, ContainerState::Running { .. })).count();
        up == expected && containers.len() == expected && instances.into_iter().eq(world.sockets())
    };
    let deadline = std::time::Instant::now() + LONG;
    while !whole() {
        assert!(
            std::time::Instant::now() < deadline,
            "{context}: {expected} containers expected: {:#?}\nsockets {:?}",
            world.containers(),
            world.sockets()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn story(seed: u64) {
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let world = World::new();
    let mut wanted: BTreeMap<&str, Wanted> = BTreeMap::new();
    let mut agent = world.agent().await;
    let (mut lost, mut cut) = (0, 0);
    for round in 0..POINTS {
        let name = ["web", "pipe", "other"][dice.next(3) as usize];
        let (what, then) = next(&mut dice, name, wanted.get(name), round);
        let context = format!("seed {seed}, round {round}: {what:?}");
        let id = format!("{seed}-{round}");
        let after = dice.next(30);
        let mut operations = agent.operations();
        let asked = request(&id, what.clone());
        let answer = tokio::spawn(async move { operations.start(asked).await });
        steps(&world, after).await;
        let acknowledged = answer.is_finished();
        agent.crash().await;
        let first = match answer.await.unwrap() {
            Ok(answer) => Some(answer.into_inner().id),
            Err(_) => None,
        };
        lost += u32::from(first.is_none());
        cut += u32::from(acknowledged);
        // sometimes the host goes down with the agent
        if dice.next(8) == 0 {
            world.power_cut();
        }
        agent = world.agent().await;
        // the client asks again: it gets the first answer, if there was one
        let again = agent.operations().start(request(&id, what)).await;
        let again = again.unwrap_or_else(|e| panic!("{context}: {e}")).into_inner();
        if let Some(first) = first {
            assert_eq!(again.id, first, "{context}: an acknowledged change is not forgotten");
        }
        let done = agent.ended(&again.id).await.unwrap();
        assert_eq!(done.state, "succeeded", "{context}: {done:?}");
        match then {
            Some(then) => drop(wanted.insert(name, then)),
            None => drop(wanted.remove(name)),
        }
        check(&world, &agent, &wanted, &context).await;
    }
    println!("{POINTS} crashes: {lost} before the answer, {cut} after it");
    agent.stop().await;
}

/// `SIGIL_SIM_SEED=N` repeats a failure.
fn seed(own: u64) -> u64 {
    std::env::var("SIGIL_SIM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(own)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_first_quarter() {
    story(seed(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_second_quarter() {
    story(seed(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_third_quarter() {
    story(seed(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_last_quarter() {
    story(seed(4)).await;
}
