//! Whole agents on engines that go away, come back, are too old or may not be used, and on Podman. Each test has an
//! engine of its own; the machine's is left alone.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sigil_tests::engine::{self, Docker, Podman, SHELL};
use sigil_tests::{Agent, binary, docker_at, eventually};

/// From the engine's first answer to the desired state (operations.md asks for 10 s; two cores run other tests too).
const BACK: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(60);

fn source() -> String {
    format!("image:{SHELL}")
}

fn hello(agent: &Agent, name: &str) {
    let ran = agent.sigil(&["call", name, "hello"]).ok();
    assert_eq!(ran.out.trim(), "hello", "{ran:?}");
}

/// Id and start of each container, sorted.
fn lives(agent: &Agent, host: &str) -> Vec<String> {
    let one = |id: &String| docker_at(Some(host), &["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", id]);
    let mut lives: Vec<String> = agent.containers().iter().map(one).collect();
    lives.sort();
    lives
}

#[test]
fn an_engine_that_restarts_or_loses_power_ends_in_the_desired_state() {
    let mut docker = Docker::start();
    engine::import_shell(&docker.host());
    let mut agent = Agent::start_on(&docker.host(), &[]);
    agent.sigil(&["deploy", &source(), "--name", "one"]).ok();
    agent.sigil(&["deploy", &source(), "--name", "two", "--replicas", "2"]).ok();
    agent.sigil(&["deploy", &source(), "--name", "off"]).ok();
    agent.sigil(&["stop", "off"]).ok();
    let made = agent.containers();
    assert_eq!(made.len(), 3);

    // in order, under a running agent: no live-restore, so the containers end with the daemon
    docker.stop();
    eventually("the agent tells that the engine is away", SOON, || {
        let row = agent.ls("one")?;
        let words = row["message"].as_str().unwrap_or_default().to_owned();
        (row["ready"] == 0 && words.contains("engine")).then_some(())
    });
    let refused = agent.sigil(&["deploy", &source(), "--name", "three"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("cannot be reached") && refused.err.contains("hint:"), "{refused:?}");
    let info = agent.sigil(&["info"]).ok();
    assert!(info.out.contains("does not answer"), "{info:?}");
    docker.up();
    back(&agent, "restart");
    assert_eq!(agent.containers().len(), 3, "the same three");
    let ids = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    assert_eq!(ids(agent.containers()), ids(made.clone()), "started again, not made again");
    let alarms = agent.log().matches("the engine cannot be seen").count();
    assert_eq!(alarms, 1, "one alarm: {}", agent.log());
    assert_eq!(agent.log().matches("the engine answers again").count(), 1);

    // a reboot: all at once, and the agent is there before the engine
    agent.kill();
    docker.crash();
    agent.up();
    assert_eq!(agent.ls("one").expect("it is kept")["ready"], 0);
    docker.up();
    back(&agent, "reboot, agent first");
    assert_eq!(agent.containers().len(), 3);

    // the other order
    agent.kill();
    docker.crash();
    docker.up();
    agent.up();
    back(&agent, "reboot, engine first");
    assert_eq!(agent.containers().len(), 3);
    assert_eq!(agent.ls("off").expect("it is kept")["state"], "stopped");

    for name in ["one", "two", "off"] {
        agent.sigil(&["rm", name, "--yes"]).ok();
    }
    assert_eq!(agent.containers(), Vec::<String>::new(), "nothing is left behind");
}

/// Waits until all serve again.
fn back(agent: &Agent, what: &str) {
    let began = Instant::now();
    eventually(what, BACK, || {
        let ready = |name: &str, n: u64| {
            let row = agent.ls(name)?;
            (row["state"] == "ready" && row["ready"] == n && row["message"] == "").then_some(())
        };
        ready("one", 1)?;
        ready("two", 2)
    });
    eprintln!("{what}: desired state after {:?}", began.elapsed());
    hello(agent, "one");
    hello(agent, "two");
}

#[test]
fn podman_hosts_servers() {
    let podman = Podman::start();
    let host = podman.host();
    engine::import_shell(&host);
    let mut agent = Agent::start_on(&host, &[]);
    let info = agent.sigil(&["info"]).ok();
    assert!(info.out.to_lowercase().contains("podman"), "{info:?}");
    agent.sigil(&["deploy", &source(), "--name", "app"]).ok();
    hello(&agent, "app");
    let again = agent.sigil(&["deploy", &source(), "--name", "app"]).ok();
    assert!((again.out.clone() + &again.err).contains("already serves"), "{again:?}");
    eventually("what it printed is kept", SOON, || {
        agent.sigil(&["logs", "app", "--tail", "50"]).ok().out.contains("a call").then_some(())
    });

    // the agent's restart touches nothing
    let before = lives(&agent, &host);
    agent.kill();
    agent.up();
    agent.until("app", "ready", SOON);
    hello(&agent, "app");
    assert_eq!(lives(&agent, &host), before);

    // what ends or goes by other hands comes back
    let first = agent.containers().remove(0);
    podman.docker(&["kill", &first]);
    eventually("it was started again", SOON, || {
        let now = lives(&agent, &host);
        (now.len() == 1 && now != before && agent.ls("app")?["state"] == "ready").then_some(())
    });
    podman.docker(&["rm", "-f", &first]);
    eventually("another took its place", SOON, || {
        let now = agent.containers();
        (now.len() == 1 && now[0] != first && agent.ls("app")?["state"] == "ready").then_some(())
    });
    hello(&agent, "app");

    // a new release takes over, a failed one does not
    agent.sigil(&["deploy", &source(), "--name", "app", "--env", "A=1"]).ok();
    assert_eq!(agent.until("app", "ready", SOON)["release"], 2);
    eventually("the old one is drained", SOON, || (agent.containers().len() == 1).then_some(()));
    let failed = agent.sigil(&["deploy", &source(), "--name", "app", "--", "/no/such/argument"]);
    assert_eq!(failed.code, 0, "the server takes no notice of arguments: {failed:?}");
    agent.sigil(&["rollback", "app"]).ok();
    hello(&agent, "app");
    // an idle replica is let go at once; waiting for the next look by chance would take 5 s on average
    let quickest = (0..3).map(|_| {
        agent.sigil(&["scale", "app", "2"]).ok();
        assert_eq!(agent.containers().len(), 2);
        agent.sigil(&["scale", "app", "1"]).ok().took
    });
    let quickest = quickest.min().expect("three of them");
    assert!(quickest < Duration::from_secs(3), "{quickest:?}");
    agent.sigil(&["rm", "app", "--yes"]).ok();
    assert_eq!(agent.containers(), Vec::<String>::new());
}

#[test]
fn an_engine_that_cannot_be_used_is_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let deploy = |agent: &Agent, words: &[&str]| {
        let ran = agent.sigil(&["deploy", &source(), "--name", "app"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        for word in words {
            assert!(ran.err.contains(word), "'{word}' is missing: {ran:?}");
        }
        assert_eq!(agent.sigil(&["ls", "-o", "json"]).ok().json().as_array().map(Vec::len), Some(0));
    };

    let nowhere = format!("unix://{}", dir.path().join("nowhere.sock").display());
    deploy(&Agent::start_on(&nowhere, &[]), &["nowhere.sock", "cannot be reached", "systemctl start docker"]);

    // an engine from 2017; none so old can be installed
    let old = dir.path().join("old.sock");
    let listener = UnixListener::bind(&old).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || old_engine(stream));
        }
    });
    let agent = Agent::start_on(&format!("unix://{}", old.display()), &[]);
    deploy(&agent, &["1.30", "1.41", "upgrade the engine"]);
    drop(agent);

    no_permission();
}

fn old_engine(mut stream: std::os::unix::net::UnixStream) {
    let mut request = [0u8; 4096];
    while let Ok(read @ 1..) = stream.read(&mut request) {
        let body =
            if request[..read].starts_with(b"GET") { r#"{"Version":"17.06.0-ce","ApiVersion":"1.30"}"# } else { "{}" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// An agent of a user who may not use the socket. Its binary is copied to where that user may read it.
fn no_permission() {
    assert!(rustix::process::geteuid().is_root(), "this test changes its user: run it as root");
    let dir = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).expect("root may");
    let program = dir.path().join("sigil-agent");
    std::fs::copy(binary("sigil-agent"), &program).expect("a copy");
    let locked = dir.path().join("locked.sock");
    let _listener = UnixListener::bind(&locked).expect("a socket");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&locked, mode).expect("it is ours");
    let mut child = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["run", "--data-dir"])
        .arg(dir.path().join("data"))
        .env("SIGIL_ENGINE_HOST", format!("unix://{}", locked.display()))
        .env("SIGIL_GATEWAY_LISTEN", "127.0.0.1:0")
        .env("HOME", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("setpriv is part of the system");
    let socket = dir.path().join("data/agent.sock");
    let sigil = |args: &[&str]| {
        Command::new(binary("sigil"))
            .args(args)
            .env("SIGIL_HOST", format!("unix://{}", socket.display()))
            .env("XDG_CONFIG_HOME", dir.path().join("config"))
            .env("XDG_STATE_HOME", dir.path().join("state"))
            .stdin(Stdio::null())
            .output()
            .expect("sigil starts")
    };
    eventually("the agent answers", SOON, || sigil(&["info"]).status.success().then_some(()));
    let ran = sigil(&["deploy", &source(), "--name", "app"]);
    let _ended = child.kill();
    let _reaped = child.wait();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(4), "{said}");
    assert!(said.contains("locked.sock") && said.contains("permission") && said.contains("root"), "{said}");
}
