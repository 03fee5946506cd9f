//! Sleeping and waking on a real engine, and who pays when memory runs out.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sigil_tests::clients::{Client, Way};
use sigil_tests::{Agent, docker, eventually, fixture, python_client};

const SOON: Duration = Duration::from_secs(60);

/// A manifest beside nothing else: what it says is added to what is recognised.
fn manifest(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("mcp.yaml");
    std::fs::write(&path, text).expect("a file");
    let shown = path.display().to_string();
    (dir, shown)
}

fn detail(agent: &Agent, name: &str) -> Value {
    agent.sigil(&["get", name, "-o", "json"]).ok().json()
}

fn asleep(agent: &Agent, name: &str, depth: &str) {
    eventually(&format!("'{name}' is {depth}: {}", agent.log()), SOON, || {
        let detail = detail(agent, name);
        (detail["state"] == "sleeping" && detail["replicas"][0]["state"] == depth).then_some(())
    });
}

fn engine_state(agent: &Agent, name: &str) -> String {
    let filters = [format!("label=sigil.agent={}", agent.id()), format!("label=sigil.deployment={name}")];
    docker(&["ps", "-a", "--filter", &filters[0], "--filter", &filters[1], "--format", "{{.State}}"])
}

#[test]
fn real_servers_sleep_and_wake_for_real_clients() {
    let mut agent = Agent::start();
    let script = std::fs::read_to_string(format!("{}/server.py", fixture("hostile"))).expect("the fixture");
    for depth in ["paused", "stopped"] {
        let (_dir, path) = manifest(&format!(
            "name: pipe\ntransport: stdio\nscaling: {{ min: 0, max: 1, idleTimeout: 2, sleep: {depth} }}\n"
        ));
        let name = format!("pipe-{depth}");
        let head = ["deploy", "image:sigil-base/python:latest", "--name", &name, "--manifest", &path];
        agent.sigil(&[&head[..], &["--access", "anonymous", "--", "python3", "-c", &script]].concat()).ok();
        asleep(&agent, &name, depth);
        assert_eq!(engine_state(&agent, &name), if depth == "paused" { "paused" } else { "exited" });
        // tools are shown without a wake where the client speaks the new era; a call wakes it
        let answer = python_client(&agent.url(&name), "echo", r#"{"text":"awake"}"#);
        assert!(answer.to_string().contains("awake"), "{answer}");
        assert_eq!(engine_state(&agent, &name), "running");
        asleep(&agent, &name, depth);
    }
    // a new agent leaves them alone, and wakes them as the old one did
    agent.kill();
    agent.up();
    for depth in ["paused", "stopped"] {
        let name = format!("pipe-{depth}");
        asleep(&agent, &name, depth);
        let called = agent.sigil(&["call", &name, "echo", "--arg", "text=again"]).ok();
        assert_eq!(called.out.trim(), "again");
    }
    // what sleeps can be stopped and removed
    asleep(&agent, "pipe-paused", "paused");
    agent.sigil(&["rm", "pipe-paused", "--yes"]).ok();
    eventually("its container is gone", SOON, || engine_state(&agent, "pipe-paused").is_empty().then_some(()));
}

#[test]
fn clients_that_stay_go_on_though_the_server_behind_them_was_stopped() {
    let agent = Agent::start();
    let script = std::fs::read_to_string(format!("{}/server.py", fixture("hostile"))).expect("the fixture");
    let sleeps = "scaling: { min: 0, max: 1, idleTimeout: 2, sleep: stopped }\nsessions: { replayable: true }\n";
    let (_dir, path) = manifest(&format!("name: pipe\ntransport: stdio\n{sleeps}"));
    let head = ["deploy", "image:sigil-base/python:latest", "--name", "pipe", "--manifest", &path];
    agent.sigil(&[&head[..], &["--access", "anonymous", "--", "python3", "-c", &script]].concat()).ok();
    let web = "name: web\nruntime: python\ntransport: http\nport: 8080\npath: /mcp\nentrypoint: server.py\n";
    let (_dir, path) = manifest(&format!("{web}{sleeps}"));
    let head = ["deploy", &fixture("echo"), "--name", "web", "--manifest", &path, "--access", "anonymous"];
    agent.sigil(&head).ok();
    for name in ["pipe", "web"] {
        let ways = [Way::Python("legacy"), Way::TypeScript("legacy")];
        let begin = || ways.map(|way| Client::start(way, &agent.url(name), "echo", r#"{"text":"here"}"#));
        let mut clients = begin();
        let check = |client: &mut Client, what: &str| {
            let turn = client.turn();
            let told = (turn.begun, turn.lost.as_deref(), turn.is_error);
            assert_eq!(told, (1, None, false), "{name}, {what}: {:?} {turn:?}", client.way);
            assert!(turn.text.contains("here") && turn.tools.iter().any(|tool| tool == "echo"), "{turn:?}");
        };
        clients.iter_mut().for_each(|client| check(client, "at first"));
        // their streams stay open, and it is stopped all the same
        asleep(&agent, name, "stopped");
        assert_eq!(engine_state(&agent, name), "exited");
        clients.iter_mut().for_each(Client::again);
        clients.iter_mut().for_each(|client| check(client, "after it was stopped"));
        asleep(&agent, name, "stopped");
        // and who comes anew is answered as those were
        begin().iter_mut().for_each(|client| check(client, "of one that sleeps"));
    }
}

#[test]
fn a_memory_hog_dies_alone_and_it_is_said_in_words() {
    let agent = Agent::start();
    agent.sigil(&["deploy", &fixture("echo"), "--name", "neighbour"]).ok();
    let (_dir, path) = manifest("name: hog\ntransport: stdio\nhealth: { requestTimeout: 120 }\n");
    let script = std::fs::read_to_string(format!("{}/server.py", fixture("hostile"))).expect("the fixture");
    let head = ["deploy", "image:sigil-base/python:latest", "--name", "hog", "--tier", "micro", "--manifest", &path];
    agent.sigil(&[&head[..], &["--", "python3", "-c", &script]].concat()).ok();
    let before = engine_state(&agent, "neighbour");
    let mut attack = Command::new(sigil_tests::binary("sigil"));
    let arguments = json!({ "how": "memory", "seconds": 6 }).to_string();
    attack.args(["call", "hog", "wear", "--json", &arguments]);
    attack.env("SIGIL_HOST", format!("unix://{}", agent.data().join("agent.sock").display()));
    let mut attack =
        attack.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("sigil starts");
    let deadline = Instant::now() + SOON;
    while attack.try_wait().expect("it is ours").is_none() {
        assert!(Instant::now() < deadline, "it does not end");
        let called = agent.sigil(&["call", "neighbour", "echo", "--arg", "text=fine"]).ok();
        assert_eq!(called.out.trim(), "fine");
    }
    let words = eventually("it is said what happened", SOON, || {
        let detail = detail(&agent, "hog");
        let conditions = detail["conditions"].as_array()?.clone();
        conditions.iter().find(|c| c["kind"] == "MemoryEnough")?["reason"].as_str().map(str::to_owned)
    });
    assert!(words.contains("ran out of memory and was killed: it may have 128 MiB"), "{words}");
    let logs = agent.sigil(&["logs", "hog", "--grep", "ran out of memory"]).ok();
    assert!(!logs.out.is_empty(), "{logs:?}");
    assert_eq!(engine_state(&agent, "neighbour"), before);
    let neighbour = detail(&agent, "neighbour");
    assert_eq!((&neighbour["restarts"], &neighbour["state"]), (&json!(0), &json!("ready")), "{neighbour}");
    // the kernel would end any container before the agent, and the largest of them first
    let score = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a process");
    let id =
        docker(&["ps", "-q", "--filter", &format!("label=sigil.agent={}", agent.id()), "--filter", "name=neighbour"]);
    let pid = docker(&["inspect", "-f", "{{.State.Pid}}", &id]);
    assert_eq!(score(&pid).trim(), "500");
    // to be spared more than others only some may ask
    let may = Command::new("sh").args(["-c", "echo -900 2>/dev/null >/proc/self/oom_score_adj"]).status();
    let spared = if may.is_ok_and(|status| status.success()) { "-900" } else { "0" };
    assert_eq!(score(&agent.pid().to_string()).trim(), spared);
}

/// The host is made to look short of memory by a reserve that nobody has.
#[test]
fn a_frozen_server_gives_memory_back_where_the_host_is_short_of_it() {
    let mut agent = Agent::start_from("[alerts]\nafter_seconds = 0\n");
    let script = std::fs::read_to_string(format!("{}/server.py", fixture("hostile"))).expect("the fixture");
    // its files are in memory on its own account
    let fill =
        "import os\nwith open('/data/large', 'wb') as f:\n  f.write(b'x' * (9 << 20))\n  f.flush()\n  os.fsync(f)\n";
    let script = format!("{fill}{script}");
    let (_dir, path) =
        manifest("name: pipe\ntransport: stdio\nscaling: { min: 0, max: 1, idleTimeout: 2, sleep: paused }\n");
    let head = ["deploy", "image:sigil-base/python:latest", "--name", "pipe", "--manifest", &path];
    agent.sigil(&[&head[..], &["--volume", "data:/data", "--", "python3", "-c", &script]].concat()).ok();
    asleep(&agent, "pipe", "paused");
    assert!(!detail(&agent, "pipe")["message"].as_str().unwrap_or_default().contains("given back"), "there is enough");
    agent.kill();
    let config = agent.data().parent().expect("it is in a directory").join("agent.toml");
    std::fs::write(config, "[alerts]\nafter_seconds = 0\n[limits]\nmemory_reserve = \"100TiB\"\n").expect("a file");
    agent.up();
    let message = eventually("memory was given back", SOON, || {
        let detail = detail(&agent, "pipe");
        detail["message"].as_str().filter(|message| message.contains("given back to the host")).map(str::to_owned)
    });
    println!("{message}");
    assert_eq!(engine_state(&agent, "pipe"), "paused");
    let logs = agent.sigil(&["logs", "pipe", "--grep", "of memory back to the host"]).ok();
    assert!(!logs.out.is_empty(), "{logs:?}");
    // it wakes all the same
    let called = agent.sigil(&["call", "pipe", "echo", "--arg", "text=awake"]).ok();
    assert_eq!(called.out.trim(), "awake");
    // what its volume takes is known
    let bytes = detail(&agent, "pipe")["volume_bytes"].as_u64().expect("a number");
    assert!((9 << 20..10 << 20).contains(&bytes), "{bytes}");
    let top = agent.sigil(&["top", "--once", "-o", "json"]).ok().json();
    assert_eq!(top["deployments"][0]["volume_bytes"].as_u64(), Some(bytes));
    // and that the first agent was killed
    let alerts = agent.sigil(&["alert", "list", "-o", "json"]).ok().json();
    assert_eq!(alerts["ended"][0]["kind"], "agent-lost", "{alerts}");
    assert!(alerts["firing"].as_array().is_some_and(Vec::is_empty), "{alerts}");
}
