//! Whole agents with real servers on a real Docker engine, called by the official clients.

use std::time::Duration;

use serde_json::Value;
use sigil_tests::{Agent, docker, eventually, fixture, inspector_tools, python_client, typescript_client};

const SOON: Duration = Duration::from_secs(30);

fn names(value: &Value) -> Vec<String> {
    value["tools"].as_array().expect("tools").iter().filter_map(|t| t.as_str().map(str::to_owned)).collect()
}

/// A git repository made of a fixture; answers its commit.
fn git_repository(fixture_name: &str, dir: &std::path::Path) -> String {
    let run = |args: &[&str]| {
        let out = std::process::Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"])
            .args(args)
            .current_dir(dir)
            .output()
            .expect("git is installed");
        assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    let copied =
        std::process::Command::new("cp").arg("-a").arg(format!("{}/.", fixture(fixture_name))).arg(dir).status();
    assert!(copied.expect("cp").success());
    run(&["init", "-q"]);
    run(&["add", "-A"]);
    run(&["commit", "-q", "-m", "first"]);
    run(&["rev-parse", "HEAD"])
}

#[test]
fn a_python_server_from_pypi_is_deployed_called_and_redeployed() {
    let agent = Agent::start();
    let deployed = agent.sigil(&["deploy", "pypi:mcp-server-time", "--name", "clock"]).ok();
    eprintln!("first deploy: {:?}", deployed.took);
    let row = agent.ls("clock").expect("listed");
    assert_eq!(
        (row["state"].as_str(), row["release"].as_u64(), row["transport"].as_str()),
        (Some("ready"), Some(1), Some("stdio"))
    );

    let answer = python_client(&agent.url("clock"), "get_current_time", r#"{"timezone":"Europe/Paris"}"#);
    assert_eq!(answer["isError"], false);
    assert!(answer["text"].as_str().expect("text").contains("Europe/Paris"), "{answer}");
    assert!(names(&answer).contains(&"convert_time".to_owned()), "{answer}");

    let tools = agent.sigil(&["tools", "clock", "-o", "json"]).ok().json();
    assert!(tools.as_array().expect("an array").iter().any(|t| t["name"] == "get_current_time"));
    let called = agent.sigil(&["call", "clock", "get_current_time", "--arg", "timezone=Asia/Tokyo", "-o", "json"]).ok();
    assert!(called.json()["content"][0]["text"].as_str().expect("text").contains("Asia/Tokyo"));

    let again = agent.sigil(&["deploy", "pypi:mcp-server-time", "--name", "clock"]).ok();
    assert!(format!("{}{}", again.out, again.err).contains("release 1 already serves this"), "{again:?}");
    assert_eq!(agent.sigil(&["releases", "clock", "-o", "json"]).ok().json().as_array().expect("an array").len(), 1);

    // unchanged source, changed configuration: no build, a new release
    let changed = agent.sigil(&["deploy", "pypi:mcp-server-time", "--name", "clock", "--env", "A=1"]).ok();
    eprintln!("changed configuration: {:?}", changed.took);
    assert_eq!(agent.ls("clock").expect("listed")["release"], 2);

    let back = agent.sigil(&["rollback", "clock"]).ok();
    eprintln!("rollback: {:?}", back.took);
    assert_eq!(agent.ls("clock").expect("listed")["release"], 1);

    agent.sigil(&["rm", "clock", "--yes"]).ok();
    assert_eq!(agent.containers(), Vec::<String>::new(), "nothing is left");
    assert_eq!(agent.sigil(&["get", "clock"]).code, 3);
}

#[test]
fn a_stdio_server_on_the_new_sdk_reads_a_repository_in_its_volume() {
    let agent = Agent::start();
    agent.sigil(&["deploy", "pypi:mcp-server-git", "--name", "git", "--volume", "work:/repos"]).ok();
    let tools = inspector_tools(&agent.url("git"));
    assert!(tools.contains(&"git_status".to_owned()), "{tools:?}");
    // the new volume belongs to the server's user, who can make a repository there
    let image = docker(&["inspect", "-f", "{{.Image}}", &agent.containers()[0]]);
    let volume = docker(&["volume", "ls", "-q", "--filter", &format!("label=sigil.agent={}", agent.id())]);
    let make = "git init -q /repos/one && cd /repos/one \
                && git -c user.name=t -c user.email=t@example.org commit -q --allow-empty -m first-of-all";
    let mount = format!("{volume}:/repos");
    docker(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--user",
        "10001:10001",
        "-e",
        "HOME=/tmp",
        "-v",
        &mount,
        "--entrypoint",
        "sh",
        &image,
        "-c",
        make,
    ]);
    let log = python_client(&agent.url("git"), "git_log", r#"{"repo_path":"/repos/one"}"#);
    assert!(log["text"].as_str().expect("text").contains("first-of-all"), "{log}");
}

#[test]
fn everything_from_npm_speaks_both_transports() {
    let agent = Agent::start();
    let source = "npm:@modelcontextprotocol/server-everything";
    agent.sigil(&["deploy", source, "--name", "pipes"]).ok();
    agent.sigil(&["deploy", source, "--name", "web", "--transport", "http", "--", "streamableHttp"]).ok();
    for name in ["pipes", "web"] {
        let answer = typescript_client(&agent.url(name), "echo", r#"{"message":"hello"}"#);
        assert_eq!(answer["text"], "Echo: hello", "{name}: {answer}");
        let answer = python_client(&agent.url(name), "echo", r#"{"message":"again"}"#);
        assert_eq!(answer["text"], "Echo: again", "{name}: {answer}");
        let tools = inspector_tools(&agent.url(name));
        assert!(tools.contains(&"echo".to_owned()), "{name}: {tools:?}");
        let called = agent.sigil(&["call", name, "echo", "--arg", "message=cli"]).ok();
        assert!(called.out.contains("Echo: cli"), "{called:?}");
    }
    // hardening, as the engine tells it
    for container in agent.containers() {
        let inspect: Value = serde_json::from_str(&docker(&["inspect", &container])).expect("JSON");
        let host = &inspect[0]["HostConfig"];
        assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]));
        assert_eq!(host["ReadonlyRootfs"], true);
        assert_eq!(host["NetworkMode"], "none");
        assert_eq!(host["RestartPolicy"]["Name"], "no");
        assert_eq!(host["LogConfig"]["Type"], "local");
        assert_eq!(host["Memory"], 256 << 20);
        // wide while a session starts, for a second more, and then its tier's
        eventually("the tier's CPU quota", SOON, || {
            let quota = docker(&["inspect", "-f", "{{.HostConfig.NanoCpus}} {{.HostConfig.CpuQuota}}", &container]);
            matches!(quota.as_str(), "250000000 0" | "0 25000").then_some(())
        });
        assert_eq!(host["PidsLimit"], 512);
        assert!(host["PortBindings"].as_object().is_none_or(serde_json::Map::is_empty), "nothing is published");
        let options = host["SecurityOpt"].to_string();
        assert!(options.contains("no-new-privileges") && !options.contains("unconfined"), "{options}");
        let user = inspect[0]["Config"]["User"].as_str().unwrap_or_default();
        assert!(!matches!(user, "" | "0" | "root" | "0:0"), "{user}");
    }
}

#[test]
fn filesystem_from_npm_takes_arguments_and_keeps_its_volume() {
    let agent = Agent::start();
    let source = "npm:@modelcontextprotocol/server-filesystem";
    let deploy = ["deploy", source, "--name", "files", "--volume", "data:/data", "--", "/data"];
    agent.sigil(&deploy).ok();
    let wrote = typescript_client(&agent.url("files"), "write_file", r#"{"path":"/data/a.txt","content":"kept"}"#);
    assert_eq!(wrote["isError"], false, "{wrote}");
    agent.sigil(&["restart", "files"]).ok();
    let read = typescript_client(&agent.url("files"), "read_text_file", r#"{"path":"/data/a.txt"}"#);
    assert_eq!(read["text"], "kept", "{read}");
    let outside = typescript_client(&agent.url("files"), "read_text_file", r#"{"path":"/etc/passwd"}"#);
    assert_eq!(outside["isError"], true, "{outside}");
}

#[test]
fn trees_of_every_kind_are_recognised_built_and_called() {
    let agent = Agent::start();
    for (tree, name) in [("ts-smithery", "smithery"), ("py-mcp-yaml", "py"), ("go-server", "go")] {
        let deployed = agent.sigil(&["deploy", &fixture(tree), "--name", name]).ok();
        eprintln!("{tree}: {:?}", deployed.took);
        let tools = inspector_tools(&agent.url(name));
        assert!(!tools.is_empty(), "{tree}");
    }
    // a repository with only a Dockerfile, by branch and by commit
    let dir = tempfile::tempdir().expect("a directory");
    let commit = git_repository("docker-only", dir.path());
    let source = format!("git+file://{}@main", dir.path().display());
    agent.sigil(&["deploy", &source, "--name", "repo"]).ok();
    let releases = agent.sigil(&["releases", "repo", "-o", "json"]).ok().json();
    assert!(releases[0]["source"].as_str().expect("source").contains(&commit), "{releases}");
    assert!(!inspector_tools(&agent.url("repo")).is_empty());
    let missing = agent.sigil(&["deploy", &format!("git+file://{}@no-such", dir.path().display()), "--name", "x"]);
    assert_eq!(missing.code, 3, "{missing:?}");
    assert!(missing.err.contains("no-such") && missing.err.contains("hint:"), "{missing:?}");
}

#[test]
fn a_failed_release_leaves_the_old_one_serving() {
    let agent = Agent::start();
    agent.sigil(&["deploy", &fixture("echo"), "--name", "app"]).ok();
    let failed = agent.sigil(&["deploy", &fixture("crashing"), "--name", "app"]);
    assert_eq!(failed.code, 1, "{failed:?}");
    assert!(failed.err.contains("exited with code"), "{failed:?}");
    assert!(failed.err.contains("release 1 goes on serving"), "{failed:?}");
    let row = agent.until("app", "ready", SOON);
    assert_eq!(row["release"], 1);
    assert!(!inspector_tools(&agent.url("app")).is_empty());
    let releases = agent.sigil(&["releases", "app", "-o", "json"]).ok().json();
    assert!(releases.to_string().contains("failed"), "{releases}");
    // its last words are kept though its container is gone
    let logs = agent.sigil(&["logs", "app", "--previous", "--tail", "50"]).ok();
    assert!(!logs.out.trim().is_empty(), "{logs:?}");
}

#[test]
fn what_is_killed_or_removed_by_hand_comes_back() {
    let agent = Agent::start();
    agent.sigil(&["deploy", &fixture("echo"), "--name", "app"]).ok();
    let first = agent.containers();
    docker(&["kill", &first[0]]);
    eventually("it runs again", SOON, || {
        let up = docker(&["inspect", "-f", "{{.State.Running}}", &first[0]]) == "true";
        (up && agent.ls("app")?["state"] == "ready").then_some(())
    });
    docker(&["rm", "-f", &first[0]]);
    eventually("another took its place", SOON, || {
        let now = agent.containers();
        (now.len() == 1 && now != first && agent.ls("app")?["state"] == "ready").then_some(())
    });
    assert!(!inspector_tools(&agent.url("app")).is_empty());

    agent.sigil(&["scale", "app", "3"]).ok();
    assert_eq!(agent.containers().len(), 3);
    agent.sigil(&["stop", "app"]).ok();
    assert_eq!(agent.containers().len(), 0);
    agent.sigil(&["start", "app"]).ok();
    assert_eq!(agent.containers().len(), 3);
}

#[test]
fn an_agent_restart_touches_no_server_and_loses_no_session() {
    let mut agent = Agent::start();
    agent.sigil(&["deploy", &fixture("echo"), "--name", "app"]).ok();
    agent.sigil(&["deploy", "pypi:mcp-server-time", "--name", "clock"]).ok();
    let before: Vec<String> = agent
        .containers()
        .iter()
        .map(|c| docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}} {{.State.Pid}}", c]))
        .collect();
    agent.kill();
    agent.up();
    for name in ["app", "clock"] {
        agent.until(name, "ready", SOON);
        assert!(!inspector_tools(&agent.url(name)).is_empty(), "{name}");
    }
    let after: Vec<String> = agent
        .containers()
        .iter()
        .map(|c| docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}} {{.State.Pid}}", c]))
        .collect();
    assert_eq!(before, after);
    let took = agent.terminate();
    assert!(took < Duration::from_secs(12), "{took:?}");
    assert_eq!(agent.containers().len(), 2, "containers stay up");
}

/// A bounded number of kill -9 at random moments; `scripts/bench kills` does a hundred.
#[test]
fn kill_9_at_any_moment_loses_nothing_acknowledged_or_printed() {
    let rounds: u32 = std::env::var("SIGIL_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let kills = sigil_tests::kills::run(rounds, &mut |text| eprintln!("{text}"));
    assert_eq!(kills.findings, Vec::<String>::new(), "{kills:?}");
    assert_eq!(kills.kills, rounds);
}

#[test]
fn logs_are_followed_over_an_agent_restart_without_loss() {
    let mut agent = Agent::start();
    agent.sigil(&["deploy", &fixture("chatty"), "--name", "talk"]).ok();
    // a stdio server prints while somebody uses it
    let session = agent.session("talk");
    let out = tempfile::NamedTempFile::new().expect("a file");
    let mut follow = agent
        .command(&["logs", "talk", "-f", "-o", "json"])
        .stdout(out.reopen().expect("the file"))
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("sigil starts");
    let seqs = || -> Vec<u64> {
        let text = std::fs::read_to_string(out.path()).unwrap_or_default();
        text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).filter_map(|l| l["seq"].as_u64()).collect()
    };
    eventually("lines arrive", SOON, || (seqs().len() > 20).then_some(()));
    agent.kill();
    agent.up();
    let before = seqs().len();
    eventually("lines go on arriving", SOON, || (seqs().len() > before + 20).then_some(()));
    let _killed = follow.kill();
    let _reaped = follow.wait();
    drop(session);
    let seen = seqs();
    assert!(seen.windows(2).all(|w| w[1] == w[0] + 1), "no loss, no repetition: {seen:?}");
}

#[test]
fn wrong_input_gets_a_clear_error_and_leaves_nothing() {
    let agent = Agent::start();
    let empty = tempfile::tempdir().expect("a directory");
    std::fs::write(empty.path().join("notes.txt"), "nothing to run here").expect("a file");
    let bad = tempfile::tempdir().expect("a directory");
    std::fs::write(bad.path().join("mcp.yaml"), "name: x\nport: seventy\ncolour: red\ntransport: pigeon\n")
        .expect("a file");
    let escape = tempfile::tempdir().expect("a directory");
    std::fs::write(escape.path().join("mcp.yaml"), "name: x\nbuild:\n  dockerfile: ../../etc/passwd\n")
        .expect("a file");
    let breaks = tempfile::tempdir().expect("a directory");
    std::fs::write(breaks.path().join("Dockerfile"), "FROM scratch\nCOPY not-there /x\n").expect("a file");
    let (empty, bad, escape, breaks) = (
        empty.path().display().to_string(),
        bad.path().display().to_string(),
        escape.path().display().to_string(),
        breaks.path().display().to_string(),
    );
    let (crashing, secret) = (fixture("crashing"), fixture("needs-secret"));
    let cases: Vec<(Vec<&str>, i32, Vec<&str>)> = vec![
        (vec!["deploy", "gopher:x"], 2, vec!["gopher:x", "hint:"]),
        (vec!["deploy", "./no/such/folder"], 2, vec!["no/such/folder"]),
        (vec!["deploy", "pypi:sigil-no-such-package-anywhere"], 3, vec!["sigil-no-such-package-anywhere"]),
        (vec!["deploy", "npm:sigil-no-such-package-anywhere"], 3, vec!["sigil-no-such-package-anywhere"]),
        (vec!["deploy", "image:sigil-no-such-image:1"], 3, vec!["sigil-no-such-image"]),
        (vec!["deploy", "pypi:mcp-server-time==0.0.0.1"], 3, vec!["0.0.0.1"]),
        (vec!["deploy", "pypi:mcp-server-time", "--name", "Bad_Name"], 2, vec!["Bad_Name"]),
        (vec!["deploy", "pypi:mcp-server-time", "--tier", "huge"], 2, vec!["huge"]),
        (vec!["deploy", "pypi:mcp-server-time", "--volume", "x"], 2, vec!["'x'"]),
        (vec!["deploy", "pypi:mcp-server-time", "--volume", "/etc:/etc2"], 4, vec!["/etc"]),
        (vec!["deploy", &empty], 2, vec!["hint:"]),
        (vec!["deploy", &bad], 2, vec!["mcp.yaml:2:", "mcp.yaml:3:", "mcp.yaml:4:"]),
        (vec!["deploy", &escape], 2, vec!["../../etc/passwd"]),
        (vec!["deploy", &breaks, "--name", "breaks"], 1, vec!["not-there"]),
        (vec!["deploy", &crashing, "--name", "crash"], 1, vec!["exited with code"]),
        (vec!["deploy", &secret, "--name", "secret"], 2, vec!["missing secret", "sigil secret set"]),
        (vec!["logs", "nobody"], 3, vec!["nobody"]),
        (vec!["restart", "nobody"], 3, vec!["nobody"]),
        (vec!["call", "nobody", "x"], 3, vec!["nobody"]),
        (vec!["no-such-verb"], 2, vec![]),
    ];
    for (args, code, words) in cases {
        let ran = agent.sigil(&args);
        assert_eq!(ran.code, code, "{args:?}: {ran:?}");
        for word in words {
            assert!(ran.err.contains(word), "{args:?} does not say '{word}': {ran:?}");
        }
    }
    agent.sigil(&["rm", "crash", "--yes"]).ok();
    assert_eq!(agent.containers(), Vec::<String>::new());

    let second = std::process::Command::new(sigil_tests::binary("sigil-agent"))
        .args(["run", "--data-dir"])
        .arg(agent.data())
        .env("SIGIL_GATEWAY_LISTEN", "127.0.0.1:0")
        .output()
        .expect("sigil-agent starts");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains(&agent.pid().to_string()), "{said}");
}
