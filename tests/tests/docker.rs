//! Whole agents with real servers on a real Docker engine, called by the official clients.

use std::io::{Read as _, Write as _};
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
fn sessions_bring_their_own_configuration() {
    let agent = Agent::start();
    // over HTTP it is in the query that the server reads
    agent.sigil(&["deploy", &fixture("ts-smithery"), "--name", "greeter"]).ok();
    let greet = |query: &str| {
        let url = format!("{}{query}", agent.url("greeter"));
        typescript_client(&url, "greet", r#"{"name":"Ann"}"#)["text"].as_str().expect("text").to_owned()
    };
    assert_eq!((greet(""), greet("?greeting=Salut")), ("Hello, Ann!".to_owned(), "Salut, Ann!".to_owned()));
    // over stdio it is the command and environment of the session's own process; nothing was given at the deploy
    agent.sigil(&["deploy", &fixture("py-smithery"), "--name", "weather"]).ok();
    let configured = |query: &str| {
        let answer = python_client(&format!("{}{query}", agent.url("weather")), "configured", "{}");
        answer["text"].as_str().expect("text").to_owned()
    };
    let ann = configured("?weatherKey=ann&units=imperial");
    assert_eq!(ann, r#"{"arguments": ["--units", "imperial"], "key": "ann"}"#);
    assert_eq!(configured("?weatherKey=bob"), r#"{"arguments": ["--units", "metric"], "key": "bob"}"#);
    // whoever gives none is told what there is
    let ask = |request: &str| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", agent.port)).expect("the gateway listens");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let head = "Host: localhost\r\nConnection: close\r\n";
    let schema = ask(&format!("GET /mcp/weather/.well-known/mcp-config HTTP/1.1\r\n{head}\r\n"));
    assert!(schema.starts_with("HTTP/1.1 200") && schema.contains("\"weatherKey\""), "{schema}");
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
    let post = format!(
        "POST /mcp/weather?units=kelvin HTTP/1.1\r\n{head}Content-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let refused = ask(&post);
    assert!(refused.starts_with("HTTP/1.1 422"), "{refused}");
    for part in ["\"param\":\"weatherKey\"", "\"param\":\"units\"", "/mcp/weather/.well-known/mcp-config"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    // from the command line too it must be given: else one may look, and not call
    assert!(agent.sigil(&["tools", "weather"]).ok().out.contains("configured"));
    let call = agent.sigil(&["call", "weather", "configured"]);
    assert!(call.code != 0 && call.err.contains("weatherKey is required"), "{call:?}");
    let call = agent.sigil(&["call", "weather", "configured", "--session-config", "weatherKey=line"]).ok();
    assert!(call.out.contains("line"), "{call:?}");
    agent.sigil(&["deploy", &fixture("py-smithery"), "--name", "weather", "--config", "weatherKey=house"]).ok();
    let call = agent.sigil(&["call", "weather", "configured"]).ok();
    assert!(call.out.contains("house"), "{call:?}");
    // what the deploy sets no caller changes
    assert!(ask(&post.replace("units=kelvin", "weatherKey=mine")).contains("is set by this server's owner"));
    let secrets = ["ann", "bob"].map(|name| format!("weatherKey={name}"));
    assert!(!secrets.iter().any(|secret| agent.log().contains(secret)), "the agent's log shows an address");
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

/// An export into an empty directory: the same agent, and its containers go on being its.
#[test]
fn an_export_is_restored_after_the_loss_of_everything_else() {
    let mut agent = Agent::start();
    agent.sigil(&["deploy", &fixture("echo"), "--name", "app"]).ok();
    agent.sigil(&["restart", "app"]).ok();
    let (id, before) = (agent.id(), agent.containers());
    let away = tempfile::tempdir().expect("a directory");
    let file = away.path().join("state.export");
    let path = file.display().to_string();
    let run = |agent: &Agent, args: &[&str]| {
        let out = std::process::Command::new(sigil_tests::binary("sigil-agent"))
            .args(args)
            .arg("--data-dir")
            .arg(agent.data())
            .output()
            .expect("sigil-agent starts");
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        (out.status.code().unwrap_or(-1), said)
    };

    agent.terminate();
    let (code, said) = run(&agent, &["export", "--out", &path]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(&id), "{said}");
    assert_eq!(run(&agent, &["export", "--out", &path]).0, 2, "nothing is overwritten");
    agent.up();
    let (code, said) = run(&agent, &["restore", &path]);
    assert!(code == 1 && said.contains("another agent holds") && said.contains("hint: stop that agent"), "{said}");
    let running = away.path().join("running.export").display().to_string();
    let (code, said) = run(&agent, &["export", "--out", &running]);
    assert!(code == 0 && said.contains("an agent runs here: this is its newest export"), "{said}");
    agent.kill();

    let damaged = away.path().join("damaged");
    let bytes = std::fs::read(&file).expect("the export");
    std::fs::write(&damaged, &bytes[..bytes.len() / 2]).expect("a file");
    let (code, said) = run(&agent, &["restore", &damaged.display().to_string()]);
    assert!(code == 2 && said.contains("Nothing was changed"), "{said}");
    assert_eq!(run(&agent, &["restore", "/no/such/file"]).0, 3);

    std::fs::remove_dir_all(agent.data()).expect("gone");
    assert_eq!(run(&agent, &["export"]).0, 3, "an empty directory has nothing to export");
    let (code, said) = run(&agent, &["restore", &path]);
    assert!(code == 2 && said.contains("has no agent id") && said.contains("--adopt"), "{said}");
    let (code, said) = run(&agent, &["restore", &path, "--adopt"]);
    assert_eq!(code, 0, "{said}");
    agent.up();
    assert_eq!(agent.id(), id);
    // the sockets went with the directory, so the container is started again: it stays the same one
    agent.until("app", "ready", Duration::from_secs(120));
    assert_eq!(agent.containers(), before);
    assert_eq!(agent.ls("app").expect("listed")["release"], 1);
    assert!(!inspector_tools(&agent.url("app")).is_empty());

    // a state that is there is set aside, never lost
    agent.terminate();
    let (code, said) = run(&agent, &["restore", &path]);
    assert_eq!(code, 0, "its own export needs no --adopt: {said}");
    let names = std::fs::read_dir(agent.data()).expect("the directory").flatten();
    let aside = names.filter(|e| e.file_name().to_string_lossy().contains(".aside-")).count();
    assert!(aside >= 3, "state, journal and exports: {aside}");
    agent.up();
    agent.until("app", "ready", SOON);
    agent.sigil(&["rm", "app", "--yes"]).ok();
}

/// An init binary of a former version goes when no container mounts it any more, and not before.
#[test]
fn former_init_binaries_go_when_unused() {
    let mut agent = Agent::start();
    agent.sigil(&["deploy", &fixture("echo"), "--name", "app"]).ok();
    let home = agent.data().join("init");
    let digests = || {
        let names = std::fs::read_dir(&home).expect("init").flatten().map(|e| e.file_name());
        names.map(|n| n.to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let current = digests();
    assert_eq!(current.len(), 1);
    let old = "0".repeat(64);
    std::fs::create_dir(home.join(&old)).expect("a directory");
    std::fs::write(home.join(&old).join("sigil-init"), "former").expect("a file");
    // it goes with the next removal of a container
    agent.sigil(&["restart", "app"]).ok();
    eventually("the former init is removed", SOON, || (digests() == current).then_some(()));
    // and at a start, but for one that a container of ours mounts
    agent.kill();
    for name in [&old, &"f".repeat(64)] {
        std::fs::create_dir(home.join(name)).expect("a directory");
    }
    let (label, mount) =
        (format!("sigil.agent={}", agent.id()), format!("{}:/x:ro", home.join("f".repeat(64)).display()));
    let image = docker(&["inspect", "-f", "{{.Image}}", &agent.containers()[0]]);
    let user = docker(&["create", "--label", &label, "--network", "none", "-v", &mount, &image, "x"]);
    agent.up();
    eventually("the unused one goes", SOON, || (!home.join(&old).exists()).then_some(()));
    assert!(home.join("f".repeat(64)).exists(), "a container mounts it");
    docker(&["rm", &user]);
    agent.sigil(&["rm", "app", "--yes"]).ok();
    eventually("both are gone", SOON, || (digests() == current).then_some(()));
}

/// What a server wrote and how it ended while no agent ran is in its log afterwards, each line once.
#[test]
fn last_words_without_an_agent_are_read_back_once() {
    let tree = tempfile::tempdir().expect("a directory");
    std::fs::copy(format!("{}/server.py", fixture("echo")), tree.path().join("server.py")).expect("a copy");
    let manifest = "name: parting\nruntime: python\ntransport: http\nport: 8080\nentrypoint: main.py\n";
    std::fs::write(tree.path().join("mcp.yaml"), manifest).expect("a file");
    // more than init keeps, so that the middle goes to the engine's log as a gap that nobody is told of
    let main = "import os, runpy, threading, time\n\n\ndef part():\n    while not os.path.exists('/tmp/go'):\n        \
                time.sleep(0.02)\n    for n in range(6000):\n        print(f'late {n:05d} '.ljust(119, 'x'), flush=True)\n    \
                os.write(2, b'the end')\n    os._exit(3)\n\n\nthreading.Thread(target=part, daemon=True).start()\n\
                runpy.run_path('server.py', run_name='__main__')\n";
    std::fs::write(tree.path().join("main.py"), main).expect("a file");
    let mut agent = Agent::start();
    agent.sigil(&["deploy", &tree.path().display().to_string(), "--name", "app"]).ok();
    let container = agent.containers().remove(0);
    agent.kill();
    docker(&["exec", &container, "touch", "/tmp/go"]);
    assert_eq!(docker(&["wait", &container]), "3");

    let expected: Vec<String> = (0..6000).map(|n| format!("late {n:05}")).collect();
    for turn in 0..2 {
        agent.up();
        agent.until("app", "ready", SOON);
        let logs = agent.sigil(&["logs", "app", "--tail", "20000", "-o", "json"]).ok().out;
        let lines: Vec<Value> = logs.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        assert!(lines.iter().all(|l| l.get("gap").is_none()), "turn {turn}: a loss is told");
        let words = |stream: &str, head: &str| -> Vec<String> {
            let of = lines.iter().filter(|l| l["stream"] == stream).filter_map(|l| l["line"].as_str());
            of.filter(|l| l.starts_with(head)).map(|l| l[..l.len().min(10)].to_owned()).collect()
        };
        assert_eq!(words("stdout", "late "), expected, "turn {turn}");
        assert_eq!(words("stderr", "the end"), ["the end"], "turn {turn}");
        assert_eq!(words("stdout", "sigil-init"), [""; 0], "marks are not output");
        agent.kill();
    }
    agent.up();
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
fn servers_that_misbehave_are_told_apart() {
    let agent = Agent::start();
    let base = "image:sigil-base/python:latest";

    // an image without an MCP server: it says nothing, ends, or talks about something else
    let mute = tempfile::tempdir().expect("a directory");
    let manifest = mute.path().join("mcp.yaml");
    std::fs::write(&manifest, "name: mute\ntransport: stdio\nhealth:\n  start_timeout: 3s\n").expect("a file");
    let manifest = manifest.display().to_string();
    let program = ["--", "python3", "-c"];
    let cases = [
        ("import time; time.sleep(600)", "did not answer the handshake within 3 s"),
        ("print('hello')", "exited with code 0 before it answered initialize"),
        ("import sys; [print('no protocol at all', flush=True) for _ in sys.stdin]", "within 3 s"),
    ];
    for (at, (script, words)) in cases.into_iter().enumerate() {
        let name = format!("mute-{at}");
        let args = [&["deploy", base, "--name", &name, "--manifest", &manifest][..], &program, &[script]].concat();
        let ran = agent.sigil(&args);
        assert_eq!(ran.code, 1, "{script}: {ran:?}");
        assert!(ran.err.contains("did not become ready") && ran.err.contains(words), "{script}: {ran:?}");
        agent.sigil(&["rm", &name, "--yes"]).ok();
    }
    let nothing = agent.sigil(&["deploy", base, "--name", "nothing"]);
    assert_eq!(nothing.code, 2, "{nothing:?}");
    assert!(nothing.err.contains("says what to run"), "{nothing:?}");

    // a server that answers late, but in time
    let slow = agent.sigil(&["deploy", &fixture("slow"), "--name", "slow"]).ok();
    assert!(slow.took >= Duration::from_secs(5), "{slow:?}");

    // one that prints what is no JSON-RPC works, and its lines are kept and marked as standard output
    agent.sigil(&["deploy", &fixture("garbage"), "--name", "garbage"]).ok();
    assert_eq!(agent.sigil(&["call", "garbage", "echo", "--arg", "text=through"]).ok().out.trim(), "through");
    let lines = agent.sigil(&["logs", "garbage", "-o", "json"]).ok();
    let lines: Vec<Value> = lines.out.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let marked =
        lines.iter().any(|l| l["stream"] == "stdout" && l["line"].as_str().unwrap_or("").contains("no JSON-RPC"));
    assert!(marked, "{lines:?}");

    // a disk without room for a build is seen before anything is fetched or built
    drop(agent);
    let full = Agent::start_with(&[("SIGIL_LIMITS_MIN_FREE_DISK", "1000TiB")]);
    let ran = full.sigil(&["deploy", &fixture("echo"), "--name", "app"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("free") && ran.err.contains("min_free_disk"), "{ran:?}");
    assert_eq!(full.containers(), Vec::<String>::new());
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

/// The status of an `initialize` through the gateway, and the answer's text.
fn initialize(agent: &Agent, name: &str, key: Option<&str>) -> (u16, String) {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
    let key = key.map_or_else(String::new, |key| format!("authorization: Bearer {key}\r\n"));
    let head = format!(
        "POST /mcp/{name} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\n{key}content-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", agent.port)).expect("the gateway listens");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream.write_all(format!("{head}{body}").as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{answer}"));
    (status, answer)
}

#[test]
fn keys_policies_and_bundles_hold_from_the_command_line_to_the_wire() {
    let agent = Agent::start();
    let echo = fixture("echo");
    let access = |name: &str| {
        let got = agent.sigil(&["get", name, "-o", "json"]).ok().json();
        got["access"].as_str().expect("said").to_owned()
    };
    agent.sigil(&["deploy", &echo, "--name", "open"]).ok();
    assert_eq!(access("open"), "anonymous");
    assert_eq!(initialize(&agent, "open", None).0, 200);

    // once there are keys, what is new asks for one; what was there stays as it is
    let made = agent.sigil(&["key", "create", "laptop", "--deployment", "closed", "-o", "json"]).ok().json();
    let key = made["text"].as_str().expect("a key").to_owned();
    agent.sigil(&["deploy", &echo, "--name", "closed"]).ok();
    assert_eq!((access("closed").as_str(), access("open").as_str()), ("key", "anonymous"));
    let (status, text) = initialize(&agent, "closed", None);
    assert!(status == 401 && text.contains("GATEWAY_INVALID_API_KEY") && text.contains("sigil key create"), "{text}");
    assert_eq!(initialize(&agent, "closed", Some("sigil_a_b")).0, 401);
    assert_eq!(initialize(&agent, "closed", Some(&key)).0, 200);
    assert_eq!(initialize(&agent, "open", Some(&key)).0, 403);
    let listed = agent.sigil(&["key", "ls"]).ok();
    assert!(listed.out.contains("laptop") && !listed.out.contains(&key), "{}", listed.out);

    // a policy holds at once, without a release, and for an admin at the command line too
    let wrong = agent.sigil(&["policy", "set", "closed", "--rate", "often"]);
    assert!(wrong.code == 2 && wrong.err.contains("'often' is not a rate"), "{wrong:?}");
    agent.sigil(&["policy", "set", "closed", "--deny", "echo"]).ok();
    let tools = agent.sigil(&["tools", "closed", "-o", "json"]).ok().json();
    assert!(tools.as_array().expect("tools").iter().all(|t| t["name"] != "echo"), "{tools}");
    let refused = agent.sigil(&["call", "closed", "echo", "--arg", "text=x"]);
    assert!(refused.code == 3 && refused.err.contains("has no tool 'echo'"), "{refused:?}");
    agent.sigil(&["policy", "set", "closed", "--deny", "", "--rename", "echo=say", "--bundle", "dev"]).ok();
    let said = agent.sigil(&["call", "closed", "say", "--arg", "text=hello", "-o", "json"]).ok().json();
    assert!(said["content"][0]["text"].as_str().expect("text").contains("hello"), "{said}");
    assert_eq!(agent.sigil(&["releases", "closed", "-o", "json"]).ok().json().as_array().expect("an array").len(), 1);
    let shown = agent.sigil(&["policy", "get", "closed"]).ok();
    assert!(shown.out.contains("echo = \"say\"") && shown.out.contains("bundles = [\"dev\"]"), "{}", shown.out);

    // its bundle is a server of its own, for whoever may call a member
    assert_eq!(initialize(&agent, "@dev", None).0, 401);
    let (status, text) = initialize(&agent, "@dev", Some(&key));
    assert!(status == 200 && text.contains("\"name\":\"@dev\""), "{text}");
    assert_eq!(initialize(&agent, "@none", Some(&key)).0, 404);

    agent.sigil(&["key", "revoke", "laptop", "--yes"]).ok();
    assert_eq!(initialize(&agent, "closed", Some(&key)).0, 401);
    let gone = agent.sigil(&["key", "revoke", "laptop", "--yes"]);
    assert_eq!(gone.code, 3, "{gone:?}");
    let nobody = agent.sigil(&["deploy", &echo, "--name", "third", "--access", "oauth"]);
    assert!(nobody.code == 2 && nobody.err.contains("[oauth] issuer"), "{nobody:?}");
}

/// What a real container uses is measured and counted, and counted once over a kill; a quota refuses by name.
#[test]
fn use_is_measured_and_counted_once_over_a_kill() {
    let mut agent = Agent::start();
    agent.sigil(&["deploy", &fixture("echo"), "--name", "echo", "--tier", "standard"]).ok();
    let call = |agent: &Agent| agent.sigil(&["call", "echo", "echo", "--arg", "text=hello"]);
    for _ in 0..5 {
        call(&agent).ok();
    }
    let of_echo = |value: &Value, list: &str| {
        value[list].as_array().and_then(|all| all.iter().find(|d| d["name"] == "echo").cloned())
    };
    let used = eventually("a replica is measured", SOON, || {
        let top = agent.sigil(&["top", "-o", "json"]).ok().json();
        of_echo(&top, "deployments").filter(|d| d["replicas"][0]["memory_baseline_bytes"].as_u64() > Some(0))
    });
    let replica = &used["replicas"][0];
    assert_eq!((replica["by_engine"].as_bool(), replica["paused"].as_bool()), (Some(false), Some(false)));
    assert_eq!(replica["memory_limit_bytes"], 1_u64 << 30);
    assert!(replica["memory_bytes"].as_u64() > Some(1 << 20), "{replica}");
    let counted = |agent: &Agent| {
        let usage = agent.sigil(&["usage", "-o", "json"]).ok().json();
        of_echo(&usage, "rows").map(|row| {
            let cpu = row["cpu_seconds"].as_f64().unwrap_or(0.0);
            (row["requests"].as_u64().unwrap_or(0), cpu, row["cost"].as_f64().unwrap_or(0.0))
        })
    };
    let (requests, cpu, cost) =
        eventually("requests are counted", SOON, || counted(&agent).filter(|(requests, ..)| *requests >= 5));
    assert!(cpu > 0.0 && cost > 0.0, "{cpu} {cost}");
    agent.kill();
    agent.up();
    agent.until("echo", "ready", SOON);
    // the container's counters went on, and so do calls that nobody had counted yet; what was counted is counted no more
    let after = eventually("it counts on", SOON, || counted(&agent).filter(|(_, after, _)| *after >= cpu));
    assert!((requests..=15).contains(&after.0), "five calls of three requests: {requests} and then {}", after.0);
    eventually("it is measured again", SOON, || {
        let top = agent.sigil(&["top", "-o", "json"]).ok().json();
        of_echo(&top, "deployments").filter(|d| d["replicas"][0]["memory_bytes"].as_u64() > Some(0))
    });
    let (_, again, _) = counted(&agent).expect("it is there");
    assert!(again < 2.0 * cpu + 5.0, "counted twice: {cpu} and then {again}");

    agent.sigil(&["quota", "set", "deployment:echo", "--requests", "1"]).ok();
    let refused = eventually("the quota is seen", SOON, || {
        let ran = call(&agent);
        (!format!("{}{}", ran.out, ran.err).contains("hello")).then_some(ran)
    });
    assert!(refused.err.contains("the quota of 'echo' is used up"), "{refused:?}");
    let more = agent.sigil(&["quota", "set", "all", "--deployments", "1"]).ok();
    assert!(more.out.contains("all"), "{more:?}");
    let ran = agent.sigil(&["deploy", &fixture("echo"), "--name", "other"]);
    assert!(ran.err.contains("the quota of everything is 1 deployments"), "{ran:?}");
    let ran = agent.sigil(&["scale", "echo", "1"]);
    assert!(!ran.err.contains("quota"), "{ran:?}");
    let page = agent.sigil(&["usage", "-o", "csv"]).ok().out;
    assert!(page.lines().any(|line| line.contains(",echo,")), "{page}");
}

/// What a container used between the last reading and its end is counted, whether it was stopped or ended by itself.
#[test]
fn cpu_until_the_very_end_is_counted() {
    let agent = Agent::start();
    agent.sigil(&["deploy", &fixture("echo"), "--name", "echo"]).ok();
    let cpu = || {
        let usage = agent.sigil(&["usage", "-o", "json"]).ok().json();
        let row = usage["rows"].as_array()?.iter().find(|row| row["name"] == "echo")?.clone();
        row["cpu_seconds"].as_f64()
    };
    let burn = || agent.sigil(&["call", "echo", "burn", "--arg", "ms=1500"]).ok();
    let before = eventually("it is measured", SOON, cpu);
    burn();
    agent.sigil(&["stop", "echo"]).ok();
    // sooner than the next reading might come: by its end alone
    let stopped = eventually("its end is counted", Duration::from_secs(3), || cpu().filter(|cpu| *cpu >= before + 1.4));
    agent.sigil(&["start", "echo"]).ok();
    burn();
    agent.sigil(&["call", "echo", "crash"]);
    let crashed =
        eventually("the crash is counted", Duration::from_secs(3), || cpu().filter(|cpu| *cpu >= stopped + 1.4));
    assert!(crashed < before + 12.0, "counted more than once: {before}, {stopped}, {crashed}");
}

/// A server that computes and ends while no agent is there: its init waits for the next one, which is told what was used.
#[test]
fn what_is_used_while_no_agent_runs_is_counted_when_the_next_one_comes() {
    let mut agent = Agent::start();
    agent.sigil(&["deploy", &fixture("echo"), "--name", "echo"]).ok();
    let cpu = |agent: &Agent| {
        let usage = agent.sigil(&["usage", "-o", "json"]).ok().json();
        let row = usage["rows"].as_array()?.iter().find(|row| row["name"] == "echo")?.clone();
        row["cpu_seconds"].as_f64()
    };
    let before = eventually("it is measured", SOON, || cpu(&agent));
    let container = agent.containers()[0].clone();
    agent.sigil(&["call", "echo", "burn", "--arg", "ms=2500", "--arg", "crash=true"]).ok();
    agent.kill();
    let server = || sigil_tests::docker(&["top", &container, "-o", "pid,args"]).contains("server.py");
    eventually("the server has ended", SOON, || (!server()).then_some(()));
    // longer than init waits for who only has to be told the last words
    std::thread::sleep(Duration::from_secs(4));
    agent.up();
    let counted = eventually("its end is counted", SOON, || cpu(&agent).filter(|cpu| *cpu >= before + 2.4));
    agent.until("echo", "ready", SOON);
    assert!(counted < before + 6.0, "counted more than once: {before}, {counted}");
    let lives = agent.sigil(&["health", "echo", "-o", "json"]).ok().json();
    let ended = lives["lives"].as_array().map_or(0, Vec::len);
    assert_eq!(ended, 1, "its end is told once: {lives}");
}

/// A call of echo's tool without a session; whether it was sent, and answered.
fn stateless_call(url: &str) -> (bool, bool) {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"count me"},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"t","version":"1"}}}}"#;
    let address = url.trim_start_matches("http://");
    let (address, path) = address.split_once('/').expect("a path");
    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return (false, false) };
    let request = format!(
        "POST /{path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\nmcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: echo\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let sent = stream.write_all(request.as_bytes()).is_ok();
    let mut answer = String::new();
    let whole = stream.read_to_string(&mut answer).is_ok();
    (sent, whole && answer.starts_with("HTTP/1.1 200") && answer.contains("count me"))
}

/// The books after kills at random moments under load: no call that somebody has the answer of is missing, none is there
/// twice.
#[test]
fn every_answered_call_is_counted_once_whenever_the_agent_is_killed() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
    let mut agent = Agent::start();
    agent.sigil(&["deploy", &fixture("echo"), "--name", "echo", "--access", "anonymous"]).ok();
    let (url, mut dice) = (agent.url("echo"), sigil_tests::Dice::new());
    let (over, sent, answered) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    let (was_sent, was_answered) = stateless_call(&url);
                    sent.fetch_add(u64::from(was_sent), Relaxed);
                    answered.fetch_add(u64::from(was_answered), Relaxed);
                    if !was_sent {
                        // nobody is there
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
            });
        }
        for _ in 0..6 {
            let before = answered.load(Relaxed);
            eventually("calls are answered", SOON, || (answered.load(Relaxed) > before + 50).then_some(()));
            std::thread::sleep(Duration::from_millis(dice.below(400)));
            agent.kill();
            agent.up();
            agent.until("echo", "ready", SOON);
        }
        over.store(true, Relaxed);
    });
    let (sent, answered) = (sent.load(Relaxed), answered.load(Relaxed));
    let counted = |agent: &Agent, by: &str, of: &str| {
        let usage = agent.sigil(&["usage", "--by", by, "-o", "json"]).ok().json();
        let row = usage["rows"].as_array()?.iter().find(|row| row["name"] == of || row["of"] == of)?.clone();
        row["requests"].as_u64()
    };
    // those of this agent are in the books a moment after they ended
    let whole =
        eventually("all calls are counted", SOON, || counted(&agent, "deployment", "echo").filter(|n| *n >= answered));
    assert!(
        (answered..=sent).contains(&whole),
        "{answered} answered, {whole} counted, {sent} sent (seed {})",
        dice.seed()
    );
    // the book and the tally may have been read between two calls; a new agent has all of them, and the next no more
    let mut last = whole;
    for turn in 0..2 {
        agent.kill();
        agent.up();
        let now = counted(&agent, "deployment", "echo").unwrap_or(0);
        assert!(
            if turn == 0 { (last..=sent).contains(&now) } else { now == last },
            "{last}, {now} (seed {})",
            dice.seed()
        );
        last = now;
    }
}

/// A push of a branch is deployed with what was asked for before; what is not signed is not.
#[test]
fn what_is_pushed_is_deployed() {
    let agent = Agent::start();
    let repository = tempfile::tempdir().expect("a directory");
    git_repository("echo", repository.path());
    let git = |args: &[&str]| {
        let mut command = std::process::Command::new("git");
        command.args(["-c", "user.name=t", "-c", "user.email=t@example.org"]).args(args).current_dir(repository.path());
        assert!(command.status().expect("git").success(), "{args:?}");
    };
    let url = format!("file://{}", repository.path().display());
    agent.sigil(&["deploy", &format!("git+{url}@main"), "--name", "echo", "--env", "KEPT=yes"]).ok();
    let set = agent.sigil(&["follow", "set", "echo", "--webhook", "-o", "json"]).ok().json();
    let secret = set["secret"].as_str().expect("a secret").to_owned();
    let again = agent.sigil(&["follow", "set", "echo", "--webhook", "-o", "json"]).ok().json();
    assert!(again["secret"].is_null() && again["hook_path"] == "/hooks/echo", "{again}");
    std::fs::write(repository.path().join("NEWS"), "two").expect("written");
    git(&["add", "-A"]);
    git(&["commit", "-q", "-m", "two"]);
    let push = |token: &str| {
        let body = format!(r#"{{"ref":"refs/heads/main","after":"1","project":{{"git_http_url":"{url}"}}}}"#);
        let address = agent.url("echo").replace("http://", "").replace("/mcp/echo", "");
        let mut stream = std::net::TcpStream::connect(&address).expect("the gateway");
        let head = format!(
            "POST /hooks/echo HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nx-gitlab-event: Push Hook\r\nx-gitlab-token: {token}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    };
    let forged = push("guessed");
    assert!(forged.starts_with("HTTP/1.1 401"), "{forged}");
    let taken = push(&secret);
    assert!(taken.starts_with("HTTP/1.1 202"), "{taken}");
    let second = eventually("the push is deployed", Duration::from_secs(90), || {
        let now = agent.ls("echo")?;
        (now["release"] == 2 && now["state"] == "ready").then_some(now)
    });
    assert!(second["source"].as_str().is_some_and(|source| source.contains("file://")), "{second}");
    let kept = agent.sigil(&["call", "echo", "environment", "--arg", "name=KEPT"]).ok();
    assert!(kept.out.contains("yes"), "{kept:?}");
    let told = eventually("what came of it", SOON, || {
        let told = agent.sigil(&["follow", "ls", "-o", "json"]).ok().json();
        told[0]["last"].as_str().filter(|last| last.contains("was deployed")).map(str::to_owned)
    });
    assert!(!told.is_empty());
    assert!(push(&secret).starts_with("HTTP/1.1 409"), "a replay");
    let audit = agent.sigil(&["audit", "-o", "json"]).ok().out;
    assert!(
        audit.contains("follow.deploy") && audit.contains("\"signature\"") && audit.contains("\"replay\""),
        "{audit}"
    );
    assert!(!audit.contains(&secret) && !agent.log().contains(&secret));
    // a folder cannot be followed, and is told what can
    agent.sigil(&["deploy", &fixture("echo"), "--name", "folder"]).ok();
    let folder = agent.sigil(&["follow", "set", "folder", "--every", "5m"]);
    assert!(folder.code == 2 && folder.err.contains("deploy it once more from git"), "{folder:?}");
    agent.sigil(&["follow", "rm", "echo"]).ok();
    assert!(push(&secret).starts_with("HTTP/1.1 404"));
}

/// A source becomes a package: built and started to be looked at, described, found, read by other programs, deployed.
#[test]
fn a_source_is_published_found_and_deployed() {
    let agent = Agent::start();
    let repository = tempfile::tempdir().expect("a directory");
    let commit = git_repository("echo", repository.path());
    let source = format!("git+file://{}@main", repository.path().display());
    let lacking = agent.sigil(&["publish", &source]);
    assert!(lacking.code == 2 && lacking.err.contains("--name") && lacking.err.contains("--version"), "{lacking:?}");
    let named = ["--name", "io.example/echo", "--version", "1.0.0", "--description", "Says what it hears."];
    let publish = [&["publish", &source, "--tag", "parrot"][..], &named].concat();
    agent.sigil(&publish).ok();
    // it ran for that alone
    let left = agent.sigil(&["ls", "-o", "json"]).ok().json();
    assert_eq!(left, serde_json::json!([]));
    assert!(agent.containers().is_empty());
    let package = agent.sigil(&["package", "get", "io.example/echo", "-o", "json"]).ok().json();
    let text = package.to_string();
    assert!(text.contains("Answers the text it was given.") && text.contains(&commit), "{package}");
    assert!(text.contains("\"safe\"") || text.contains("\"warning\""), "{package}");
    let found = agent.sigil(&["search", "parot", "-o", "json"]).ok().json();
    assert!(found.to_string().contains("io.example/echo"), "{found}");
    // the same again is fine, something else under the same number is not
    agent.sigil(&publish).ok();
    let other = [&publish[..publish.len() - 1], &["Says it differently."]].concat();
    let taken = agent.sigil(&other);
    assert!(taken.code != 0 && taken.err.contains("versions do not change"), "{taken:?}");
    let address = agent.url("x").replace("http://", "").replace("/mcp/x", "");
    let mut stream = std::net::TcpStream::connect(&address).expect("the gateway");
    let path = "/v0.1/servers/io.example%2Fecho/versions/latest";
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"name\":\"io.example/echo\""), "{answer}");
    agent.sigil(&["deploy", "registry:io.example/echo@1.0.0", "--name", "parrot"]).ok();
    let heard = agent.sigil(&["call", "parrot", "echo", "--arg", "text=polly"]).ok();
    assert!(heard.out.contains("polly"), "{heard:?}");
}
