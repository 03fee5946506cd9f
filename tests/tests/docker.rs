//! Whole agents with real servers on a real Docker engine, called by the official clients.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use serde_json::Value;
use sigil_tests::{
    Agent, docker, eventually, fixture, git_repository, inspector_tools, python_client, typescript_client,
};

const SOON: Duration = Duration::from_secs(30);

fn names(value: &Value) -> Vec<String> {
    value["tools"].as_array().expect("tools").iter().filter_map(|t| t.as_str().map(str::to_owned)).collect()
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
    // what `sigil new` writes
    let folder = tempfile::tempdir().expect("a directory");
    for language in ["python", "typescript", "go"] {
        let name = format!("new-{language}");
        let path = folder.path().join(&name).display().to_string();
        agent.sigil(&["new", &name, "--language", language, "--dir", &path]).ok();
        agent.sigil(&["deploy", &path]).ok();
        assert_eq!(inspector_tools(&agent.url(&name)), ["greet", "add"], "{language}");
        let added = typescript_client(&agent.url(&name), "add", r#"{"a":19,"b":23}"#);
        assert!(added["text"].as_str().is_some_and(|text| text.starts_with("42")), "{language}: {added}");
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
    let ended = || !docker(&["top", &container, "-o", "pid,args"]).contains("main.py");
    eventually("the server has ended", SOON, || ended().then_some(()));
    // its init would wait for an agent: as when the host goes down, none comes
    docker(&["kill", "--signal", "TERM", &container]);
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
