//! Commands that change something, and how their operation is followed.

use std::time::Duration;

use serde_json::json;
use sigil_protocol::v1::{self, start_request::What};

use super::Home;
use super::fake::{deployment, done, eventually, output, step};

fn happy() -> Vec<v1::OperationEvent> {
    let result = json!({
        "name": "time", "release": 1, "endpoint": "http://127.0.0.1:7450/mcp/time", "unchanged": false,
    });
    vec![
        step(1, "fetch", "started", 0),
        step(2, "fetch", "finished", 1234),
        output(3, "Step 1/2 : FROM x"),
        step(4, "build", "finished", 12_345),
        done(5, &result.to_string(), None),
    ]
}

#[tokio::test]
async fn deploy_follows_to_ready_and_says_what_is_next() {
    let home = Home::with_agent();
    home.fake.with(|s| s.script = happy());
    let args = [
        "deploy",
        "pypi:mcp-server-time",
        "--name",
        "time",
        "--tier",
        "micro",
        "--transport",
        "stdio",
        "--port",
        "9000",
        "--env",
        "A=1",
        "--env",
        "B=x=y",
        "--secret",
        "KEY",
        "--secret",
        "TOKEN=GH_TOKEN",
        "--config",
        "server.host=h",
        "--volume",
        "data:/data:ro",
        "--egress",
        "example.org:443",
        "--access",
        "key",
        "--scaling",
        "router",
        "--replicas",
        "2",
        "--force",
        "--timeout",
        "2m",
        "--waive",
        "rule-a",
        "--reason",
        "known",
        "--until",
        "2027-01-01",
        "--",
        "--local-timezone",
        "UTC",
    ];
    let ran = home.run(&args).await.exits(0);
    insta::assert_snapshot!("deploy_out", ran.out);
    insta::assert_snapshot!("deploy_progress", ran.err);
    let Some(What::Deploy(asked)) = home.fake.with(|s| s.started[0].what.clone()) else { panic!("no deploy") };
    let source = v1::SourceRef { text: "pypi:mcp-server-time".into(), upload_id: String::new() };
    let pairs = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let waiver = v1::Waiver { finding: "rule-a".into(), reason: "known".into(), until: "2027-01-01".into() };
    assert_eq!(
        asked,
        v1::DeployRequest {
            name: "time".into(),
            source: Some(source),
            tier: "micro".into(),
            transport: "stdio".into(),
            port: 9000,
            env: pairs(&[("A", "1"), ("B", "x=y")]),
            secrets: pairs(&[("KEY", "KEY"), ("TOKEN", "GH_TOKEN")]),
            config: pairs(&[("server.host", "h")]),
            volumes: vec!["data:/data:ro".into()],
            egress: vec!["example.org:443".into()],
            access: "key".into(),
            scaling: "router".into(),
            replicas: Some(2),
            force: true,
            args: vec!["--local-timezone".into(), "UTC".into()],
            waivers: vec![waiver],
            timeout_ms: 120_000,
            ..Default::default()
        }
    );
}

#[tokio::test]
async fn deploy_says_the_derived_name_and_that_nothing_changed() {
    let home = Home::with_agent();
    let result = r#"{"name":"derived","release":3,"endpoint":"http://h/mcp/derived","unchanged":true}"#;
    home.fake.with(|s| s.script = vec![done(1, result, None)]);
    let ran = home.run(&["deploy", "npm:some-server"]).await.exits(0);
    assert!(ran.err.contains("name: derived (derived; --name chooses another)"), "{}", ran.err);
    assert!(ran.out.starts_with("release 3 already serves this\n"), "{}", ran.out);
    let ran = home.run(&["deploy", "npm:some-server", "-o", "json"]).await.exits(0);
    assert_eq!(ran.err, "");
    assert_eq!(
        ran.json(),
        json!({ "name": "derived", "release": 3, "endpoint": "http://h/mcp/derived", "unchanged": true, "operation": "01OP" })
    );
}

#[tokio::test]
async fn a_folder_is_uploaded_whole_and_named() {
    let home = Home::with_agent();
    home.fake.with(|s| s.script = happy());
    home.put("My Server/pyproject.toml", "[project]\nname = \"x\"\nversion = \"1\"\ndependencies = [\"mcp\"]\n");
    home.put("My Server/server.py", "");
    home.put("My Server/big.bin", &"0123456789abcdef".repeat(200_000));
    home.put("My Server/.dockerignore", "secret.txt\n");
    home.put("My Server/secret.txt", "no");
    let ran = home.run(&["deploy", "./My Server"]).await.exits(0);
    assert!(ran.err.contains("name: ") && ran.err.contains("--name chooses another"), "{}", ran.err);
    let (label, archive) = home.fake.with(|s| s.uploads.pop().unwrap());
    assert_eq!(label, "./My Server");
    let mut tar = tar::Archive::new(zstd::stream::read::Decoder::new(&archive[..]).unwrap());
    let mut sizes: Vec<(String, u64)> = tar
        .entries()
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.path().unwrap().display().to_string(), e.size()))
        .collect();
    sizes.sort();
    let names: Vec<&str> = sizes.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, [".dockerignore", "big.bin", "pyproject.toml", "server.py"]);
    assert_eq!(sizes[1].1, 3_200_000);
    let Some(What::Deploy(asked)) = home.fake.with(|s| s.started[0].what.clone()) else { panic!("no deploy") };
    assert_eq!(asked.source.unwrap().upload_id, "sha256:up");
    assert!(!asked.name.is_empty());
}

#[tokio::test]
async fn a_flaw_in_a_folder_is_said_before_the_agent_hears_of_it() {
    let home = Home::with_agent();
    home.put("server/pyproject.toml", "[project]\nname = \"x\"\nversion = \"1\"\ndependencies = [\"mcp\"]\n");
    home.put("server/server.py", "");
    home.put("server/mcp.yaml", "runtime: cobol\n");
    assert!(home.run(&["deploy", "./server"]).await.exits(2).err.contains("mcp.yaml:1:"));
    std::fs::remove_file(home.path("server/mcp.yaml")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", home.path("server/evil")).unwrap();
    assert!(home.run(&["deploy", "./server"]).await.exits(2).err.contains("evil -> /etc/passwd"));
    assert!(home.fake.with(|s| s.uploads.is_empty() && s.started.is_empty()));
}

#[tokio::test]
async fn a_failed_operation_has_the_agents_words_and_exit_code() {
    let home = Home::with_agent();
    home.fake.with(|s| {
        s.script = vec![
            step(1, "scan", "failed", 40),
            done(
                2,
                "",
                Some(v1::ErrorInfo {
                    code: "BLOCKED".into(),
                    message: "2 findings block this source".into(),
                    hint: "see them with 'sigil scan', or waive each".into(),
                    details: r#"{"findings":2}"#.into(),
                    exit_code: 6,
                }),
            ),
        ];
    });
    let ran = home.run(&["deploy", "pypi:x", "--name", "time"]).await.exits(6);
    assert_eq!(ran.out, "");
    assert!(
        ran.err.ends_with("error: 2 findings block this source. hint: see them with 'sigil scan', or waive each\n"),
        "{}",
        ran.err
    );
    let error = home.run(&["deploy", "pypi:x", "-o", "json"]).await.exits(6).error();
    assert_eq!(error["code"], "BLOCKED");
    assert_eq!(error["details"], json!({ "findings": 2, "operation": "01OP" }));
}

#[tokio::test]
async fn waiting_ends_with_a_way_to_follow() {
    let home = Home::with_agent();
    home.fake.with(|s| s.script = vec![step(1, "build", "started", 0)]);
    let ran = home.run(&["deploy", "pypi:x", "--timeout", "300ms"]).await.exits(7);
    let said = "error: operation 01OP has not ended after 300 ms; it goes on. hint: follow it with 'sigil ops 01OP -f'";
    assert!(ran.err.contains(said), "{}", ran.err);
    let ran = home.run(&["deploy", "pypi:x", "--no-wait"]).await.exits(0);
    assert_eq!(ran.out, "operation 01OP started\nfollow it with: sigil ops 01OP -f\n");
    assert_eq!(home.run(&["deploy", "pypi:x", "--no-wait", "-o", "json"]).await.json()["id"], "01OP");

    let followed = home.fake.with(|s| s.followed.len());
    let child = home.command(&["deploy", "pypi:x"]).spawn().unwrap();
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    eventually("the operation is followed", || home.fake.with(|s| s.followed.len()) > followed).await;
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::INT).unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await.unwrap();
    let ran = super::Ran::from(waited.unwrap()).exits(130);
    assert!(
        ran.err.contains("interrupted; operation 01OP goes on. hint: follow it with 'sigil ops 01OP -f'"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn simple_changes_ask_for_what_they_say() {
    let home = Home::with_agent();
    home.fake.with(|s| {
        s.deployments = vec![deployment("time", "ready")];
        s.script = vec![done(1, "", None)];
    });
    let name = || v1::NameRequest { name: "time".into() };
    for (args, what) in [
        (&["restart", "time"][..], What::Restart(name())),
        (&["stop", "time"], What::Stop(name())),
        (&["start", "time"], What::Start(name())),
        (&["scale", "time", "3"], What::Scale(v1::ScaleRequest { name: "time".into(), replicas: 3 })),
        (&["rollback", "time"], What::Rollback(v1::RollbackRequest { name: "time".into(), release: 0 })),
        (&["rollback", "time", "2"], What::Rollback(v1::RollbackRequest { name: "time".into(), release: 2 })),
        (&["rm", "time", "--yes"], What::Remove(name())),
    ] {
        let ran = home.run(args).await.exits(0);
        assert!(ran.out.starts_with("time "), "{}", ran.out);
        assert_eq!(home.fake.with(|s| s.started.last().unwrap().what.clone()), Some(what), "{args:?}");
    }
    let ids: std::collections::HashSet<String> =
        home.fake.with(|s| s.started.iter().map(|r| r.request_id.clone()).collect());
    assert_eq!(ids.len(), 7, "every change has a request id of its own");
    let ran = home.run(&["rm", "time"]).await.exits(2);
    assert!(ran.err.contains("hint: say --yes"), "{}", ran.err);
    assert_eq!(home.fake.with(|s| s.started.len()), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_followed_across_a_cut_link() {
    let home = Home::with_agent();
    let proxy = home.proxy();
    home.fake.with(|s| {
        let mut events: Vec<_> = (1..=30).map(|seq| output(seq, &format!("line {seq}"))).collect();
        events.push(done(31, "", None));
        s.operations.insert("01OP".into(), events);
    });
    home.fake.limit.send_replace(10);
    let host = format!("unix://{}", proxy.path.display());
    let child = home.command(&["--host", &host, "ops", "01OP", "-f"]).spawn().unwrap();
    eventually("the operation is followed", || home.fake.with(|s| s.followed.len()) == 1).await;
    // the first ten have a moment to arrive; the cut may fall anywhere, the result is the same
    home.fake.limit.send_replace(20);
    proxy.cut();
    eventually("it is followed again", || home.fake.with(|s| s.followed.len()) >= 2).await;
    home.fake.limit.send_replace(usize::MAX);
    let waited = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await.unwrap();
    let ran = super::Ran::from(waited.unwrap()).exits(0);
    let wanted: String = (1..=30).map(|n| format!("[build] line {n}\n")).collect();
    assert_eq!(ran.out, format!("{wanted}deploy succeeded\n"));
    assert!(ran.err.contains("link lost") && ran.err.contains("link is back"), "{}", ran.err);
}

#[tokio::test]
async fn operations_are_listed_shown_and_cancelled() {
    let home = Home::with_agent();
    assert!(home.run(&["ops"]).await.exits(0).err.contains("no operations yet"));
    home.fake.with(|s| s.operations.insert("01OP".into(), happy()));
    assert!(home.run(&["ops"]).await.exits(0).out.contains("01OP"));
    let page = home.run(&["ops", "01OP"]).await.exits(0).out;
    assert!(page.contains("took        4.0 s") && page.contains("succeeded"), "{page}");
    assert_eq!(home.run(&["ops", "01OP", "-o", "json"]).await.json()["created_at"], "2023-11-14T22:13:20Z");
    assert_eq!(home.run(&["ops", "01OP", "--cancel", "-o", "json"]).await.json()["state"], "cancelled");
    let events = home.run(&["ops", "01OP", "-f", "-o", "json"]).await.exits(0).out;
    let events: Vec<serde_json::Value> = events.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(events[1]["step"]["name"], "fetch");
    assert_eq!(events[4]["done"]["state"], "succeeded");
    home.run(&["ops", "nope"]).await.exits(3);
}

#[tokio::test]
async fn secrets_come_from_stdin_and_never_from_an_argument() {
    let home = Home::with_agent();
    let ran = home.run_stdin(&["secret", "set", "API_KEY"], b"hunter2\n").await.exits(0);
    assert_eq!(ran.out, "API_KEY set (team, version 1)\n");
    let args = ["secret", "set", "git.example.org", "--source", "--username", "me"];
    home.run_stdin(&args, b"token").await.exits(0);
    home.run_stdin(&["secret", "set", "EMPTY"], b"").await.exits(2);
    home.run_stdin(&["secret", "set", "HUGE"], &vec![b'x'; 70_000]).await.exits(2);
    let kept = home.fake.with(|s| s.secrets.clone());
    assert_eq!(kept.len(), 2);
    assert_eq!((kept[0].value.as_slice(), kept[0].purpose.as_str()), (&b"hunter2"[..], ""));
    assert_eq!((kept[1].purpose.as_str(), kept[1].username.as_str()), ("source", "me"));
    let list = home.run(&["secret", "ls"]).await.exits(0);
    assert!(list.out.contains("API_KEY") && !list.out.contains("hunter2"));
    home.run(&["secret", "rm", "API_KEY"]).await.exits(2);
    home.run(&["secret", "rm", "API_KEY", "--yes"]).await.exits(0);
    let ran = home.run(&["secret", "rm", "API_KYE", "--yes"]).await.exits(3);
    assert!(ran.err.contains("did you mean 'API_KEY'?"), "{}", ran.err);
}

#[tokio::test]
async fn secrets_are_rotated_imported_and_revealed() {
    let home = Home::with_agent();
    home.run_stdin(&["secret", "rotate", "API_KEY"], b"hunter3\n").await.exits(3);
    home.run_stdin(&["secret", "set", "API_KEY"], b"hunter2\n").await.exits(0);
    let ran = home.run_stdin(&["secret", "rotate", "API_KEY", "--no-roll"], b"hunter3\n").await.exits(0);
    let expected = "API_KEY rotated (team, version 2)\nclock: uses the former value until its next restart\n";
    assert_eq!(ran.out, expected);
    // nobody's eyes by accident: it asks
    let ran = home.run(&["secret", "reveal", "API_KEY"]).await.exits(2);
    assert!(!ran.out.contains("hunter") && !ran.err.contains("hunter"));
    assert_eq!(home.run(&["secret", "reveal", "API_KEY", "--yes"]).await.exits(0).out, "hunter3");

    home.put("good.env", "A=one\nexport B='two two'\n");
    let good = home.path("good.env").display().to_string();
    let ran = home.run(&["secret", "import", &good, "--dry-run"]).await.exits(0);
    assert_eq!(ran.out, "A would be set (version 1)\nB would be set (version 1)\n");
    assert_eq!(home.fake.with(|s| s.secrets.len()), 2);
    home.run(&["secret", "import", &good, "--deployment", "clock"]).await.exits(0);
    let kept = home.fake.with(|s| s.secrets.clone());
    assert_eq!(
        (kept[3].name.as_str(), kept[3].value.as_slice(), kept[3].deployment.as_str()),
        ("B", &b"two two"[..], "clock")
    );
    home.put("bad.env", "C=fine\nD\nE=$F\n");
    let ran = home.run(&["secret", "import", &home.path("bad.env").display().to_string()]).await.exits(2);
    assert!(ran.err.contains("bad.env:2:") && ran.err.contains("bad.env:3:"), "{}", ran.err);
    assert_eq!(home.fake.with(|s| s.secrets.len()), 4);

    home.run_stdin(&["secret", "set", "MINE", "--user"], b"own").await.exits(0);
    home.run_stdin(&["secret", "set", "THEIRS", "--user=ada"], b"own").await.exits(0);
    let kept = home.fake.with(|s| s.secrets.clone());
    assert_eq!((kept[4].user.as_str(), kept[5].user.as_str()), ("me", "ada"));
    let ran = home.run(&["secret", "ls", "--user"]).await.exits(0);
    assert!(ran.out.contains("MINE") && !ran.out.contains("THEIRS"));
    let ran = home.run_stdin(&["secret", "set", "GITHUB_TOKEN"], b"hunter2").await.exits(0);
    assert!(ran.err.contains("does not look like a personal access token of GitHub"), "{}", ran.err);
    assert!(!ran.err.contains("hunter2"));
    let ran = home.run(&["secret", "template", "githup"]).await.exits(3);
    assert!(ran.err.contains("did you mean 'github'?"), "{}", ran.err);
    assert!(
        home.run(&["secret", "template", "github"]).await.exits(0).out.contains("https://github.com/settings/tokens")
    );
    assert!(home.run(&["secret", "template", "ls"]).await.exits(0).out.contains("openai"));
}
