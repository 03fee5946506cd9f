//! What works without an agent, and how wrong usage is said.

use super::Home;

#[tokio::test]
async fn help_names_every_verb_and_each_has_an_example() {
    let home = Home::empty();
    let help = home.run(&["--help"]).await.exits(0).out;
    insta::assert_snapshot!("help", help);
    for verb in [
        "new",
        "init",
        "scan",
        "build",
        "deploy",
        "ls",
        "get",
        "releases",
        "plan",
        "logs",
        "restart",
        "stop",
        "start",
        "scale",
        "scaling",
        "health",
        "rollback",
        "rm",
        "tools",
        "call",
        "run",
        "ops",
        "search",
        "package",
        "publish",
        "mirror",
        "secret",
        "audit",
        "context",
        "info",
        "guide",
        "completions",
        "version",
    ] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb} is not in the help");
        let own = home.run(&[verb, "--help"]).await.exits(0).out;
        assert!(own.contains("Example"), "{verb} --help has no example");
        let long =
            own.lines().filter(|l| l.chars().count() > 100 && !l.contains("sigil ") && !l.contains("mcpServers"));
        assert_eq!(long.count(), 0, "{verb} --help is too wide:\n{own}");
    }
    for (group, verbs) in [
        ("secret", &["set", "ls", "rm", "rotate", "reveal", "import", "template"][..]),
        ("package", &["ls", "get", "status", "rm"]),
        ("mirror", &["import"]),
        ("audit", &["export", "verify"]),
        ("context", &["ls", "add", "use", "rm"]),
    ] {
        for verb in verbs {
            let own = home.run(&[group, verb, "--help"]).await.exits(0).out;
            assert!(own.contains("Example"), "{group} {verb} --help has no example");
        }
    }
}

#[tokio::test]
async fn deploy_help_is_golden() {
    insta::assert_snapshot!("deploy_help", Home::empty().run(&["deploy", "--help"]).await.exits(0).out);
}

#[tokio::test]
async fn wrong_usage_is_one_line_with_a_remedy() {
    let home = Home::empty();
    let mut said = String::new();
    for args in [
        &["lss"][..],
        &["ls", "--bogus"],
        &["get"],
        &["scale", "time", "many"],
        &["rollback", "time", "0"],
        &["deploy", "pypi:x", "--transport", "smoke"],
        &["deploy", "pypi:x", "--name", "Not A Name"],
        &["deploy", "pypi:x", "--env", "novalue"],
        &["deploy", "pypi:x", "--waive", "rule"],
        &["deploy", "pypi:x", "--timeout", "soon"],
        &["deploy", "what-is-this"],
        &["deploy", "pypi:"],
        &["deploy", "./nowhere"],
        &["deploy", "pypi:x", "--manifest", "nowhere.yaml"],
        &["logs"],
        &["logs", "time", "--since", "yesterday"],
        &["logs", "time", "--grep", "("],
        &["secret", "set", "my-key"],
        &["ls", "-o", "sarif"],
        &["context", "add", "lab", "tls://host:1"],
        &["context", "add", "lab", "http://host"],
        &["context", "add", "local", "unix:///x"],
    ] {
        let ran = home.run(args).await.exits(2);
        assert_eq!(ran.out, "", "{args:?}");
        said.push_str(&format!("$ sigil {}\n{}", args.join(" "), ran.err));
    }
    insta::assert_snapshot!("usage_errors", said);
}

#[tokio::test]
async fn errors_are_one_object_for_scripts() {
    let home = Home::empty();
    for args in [&["get", "-o", "json"][..], &["deploy", "what", "--output=json"], &["ls", "-ojson"]] {
        let ran = home.run(args).await;
        assert_ne!(ran.code, 0);
        assert_eq!(ran.out, "");
        let error = ran.error();
        for key in ["code", "message", "hint"] {
            assert!(error[key].is_string(), "{key} in {error}");
        }
        assert!(error.as_object().unwrap().contains_key("details"));
    }
}

#[tokio::test]
async fn without_a_verb_and_a_terminal_a_hint_is_given() {
    let ran = Home::empty().run(&[]).await.exits(2);
    assert_eq!(ran.err, "error: the console needs a terminal. hint: name a verb: 'sigil --help' lists them\n");
}

#[tokio::test]
async fn no_agent_names_the_places_that_were_tried() {
    let home = Home::empty();
    // the machine's own agent may run: name an address, and see the list only where none does
    let missing = format!("unix://{}", home.path("none.sock").display());
    let ran = home.run(&["--host", &missing, "ls"]).await.exits(5);
    assert!(ran.err.contains("no such socket") && ran.err.contains("hint: start the agent"), "{}", ran.err);
    let ran = home.run_with(&["ls", "-o", "json"], &[("SIGIL_HOST", "tls://127.0.0.1:1?")]).await.exits(2);
    assert_eq!(ran.error()["code"], "BAD_ADDRESS");
    if !std::path::Path::new("/run/sigil/agent.sock").exists()
        && !std::path::Path::new("/var/lib/sigil/agent.sock").exists()
    {
        let ran = home.run(&["ls"]).await.exits(5);
        let own = home.socket().display().to_string();
        assert!(ran.err.contains(&own) && ran.err.contains("/run/sigil/agent.sock"), "{}", ran.err);
        assert!(ran.err.contains("sigil-agent run"), "{}", ran.err);
        let details = home.run(&["ls", "-o", "json"]).await.error()["details"]["tried"].clone();
        assert!(details.as_array().unwrap().len() >= 2);
    }
}

const SERVER: &str = "[project]\nname = \"my-time\"\nversion = \"1.0\"\ndependencies = [\"mcp==1.2\"]\n\n[project.scripts]\nmy-time = \"my_time:main\"\n";

#[tokio::test]
async fn init_writes_a_manifest_once_and_it_is_understood() {
    let home = Home::empty();
    home.put("server/pyproject.toml", SERVER);
    home.put("server/my_time.py", "from mcp.server.fastmcp import FastMCP\ndef main():\n    FastMCP('t').run()\n");
    let ran = home.run(&["init", "server"]).await.exits(0);
    assert!(ran.out.contains("recognised:") && ran.out.contains("wrote"), "{}", ran.out);
    assert!(ran.err.contains("sigil deploy ./server"), "{}", ran.err);
    let written = std::fs::read_to_string(home.path("server/mcp.yaml")).unwrap();
    assert!(written.contains("runtime: python"), "{written}");
    let ran = home.run(&["init", "server"]).await.exits(2);
    assert!(ran.err.contains("--force"), "{}", ran.err);
    let ran = home.run(&["init", "server", "--force", "-o", "json"]).await.exits(0);
    assert_eq!(ran.json()["manifest"], written);
    home.run(&["build", "server", "--dry-run"]).await.exits(0);
    home.put("nothing/readme.txt", "hello");
    let ran = home.run(&["init", "nothing"]).await.exits(2);
    assert!(ran.err.contains("has none of mcp.yaml"), "{}", ran.err);
}

#[tokio::test]
async fn a_new_server_is_written_once_and_init_reads_its_code() {
    let home = Home::empty();
    for language in ["python", "typescript", "go", "rust"] {
        home.run(&["new", language, "--language", language]).await.exits(0);
        let scanned = home.run(&["scan", language, "-o", "json"]).await.exits(0).json();
        assert_eq!((&scanned["verdict"], &scanned["findings"]), (&"safe".into(), &serde_json::json!([])), "{language}");
        home.run(&["build", language, "--dry-run"]).await.exits(0);
        let init = home.run(&["init", language, "--force", "-o", "json"]).await.exits(0).json();
        assert_eq!(init["tools"], serde_json::json!(["greet", "add"]), "{language}");
    }
    let written = std::fs::read_to_string(home.path("go/main.go")).unwrap();
    let again = home.run(&["new", "go", "--language", "python"]).await.exits(2);
    assert!(again.err.contains("not empty") && again.err.contains("--dir"), "{}", again.err);
    assert_eq!(std::fs::read_to_string(home.path("go/main.go")).unwrap(), written);
    assert!(!home.path("go/server.py").exists());
    home.run(&["new", "Bad Name"]).await.exits(2);
    home.run(&["new", "x", "--description", "a\nb"]).await.exits(2);
}

#[tokio::test]
async fn a_dry_run_prints_the_dockerfile_and_names_every_flaw() {
    let home = Home::empty();
    home.put("server/pyproject.toml", SERVER);
    home.put("server/my_time.py", "");
    let absolute = home.path("server").display().to_string();
    for source in ["./server", "server", absolute.as_str()] {
        let ran = home.run(&["build", source, "--dry-run"]).await.exits(0);
        assert!(ran.out.contains("FROM ") && ran.out.contains("USER"), "{}", ran.out);
        assert!(ran.err.contains("recognised:"), "{}", ran.err);
    }
    home.put("server/Dockerfile", "FROM scratch\n");
    home.put("server/mcp.yaml", "runtime: container\nbuild:\n  dockerfile: Dockerfile\n");
    assert_eq!(home.run(&["build", "./server", "--dry-run"]).await.exits(0).out, "FROM scratch\n");
    home.put("server/mcp.yaml", "runtime: cobol\nport: 99999999\nnonsense: 1\n");
    let ran = home.run(&["build", "./server", "--dry-run"]).await.exits(2);
    for part in ["mcp.yaml:1:", "mcp.yaml:2:", "mcp.yaml:3:", "\nhint: "] {
        assert!(ran.err.contains(part), "{part} is not in\n{}", ran.err);
    }
    let error = home.run(&["build", "./server", "--dry-run", "-o", "json"]).await.exits(2).error();
    assert_eq!(error["code"], "BAD_MANIFEST");
    assert_eq!(error["details"]["flaws"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn scan_gives_a_verdict_and_its_exit_code() {
    let home = Home::empty();
    home.put("safe/main.py", "print('hello')\n");
    let ran = home.run(&["scan", "./safe", "-o", "json"]).await.exits(0);
    let report = ran.json();
    assert_eq!((report["verdict"].as_str(), report["files"].as_u64()), (Some("safe"), Some(1)));
    assert!(report["findings"].as_array().unwrap().is_empty() && report["elapsed_ms"].is_u64());
    let key: String = [
        "-----BEGIN RSA PRIVATE",
        "KEY-----\nMIIEpAIBAAKCAQEA7bq3kZ0Vh1Jx9QeTt2mLr8WcYpNs5UoXa4Gd\n-----END RSA PRIVATE KEY-----\n",
    ]
    .join(" ");
    home.put("bad/dist/key.pem", &key);
    home.put("bad/.gitignore", "dist\n");
    let ran = home.run(&["scan", "bad", "-o", "json"]).await;
    let report = ran.json();
    let findings = report["findings"].as_array().unwrap();
    assert!(!findings.is_empty(), "built output is scanned even when git ignores it");
    let wanted = if report["verdict"] == "blocked" { 6 } else { 0 };
    assert_eq!(ran.code, wanted, "{report}");
    for key in ["rule", "class", "severity", "path", "line", "column", "message", "impact", "fix", "help", "snippet"] {
        assert!(findings[0].get(key).is_some(), "{key}");
    }
    let table = home.run(&["scan", "bad"]).await;
    assert!(table.out.contains("dist/key.pem"), "{}", table.out);
    let sarif = home.run(&["scan", "bad", "-o", "sarif"]).await.json();
    assert_eq!(sarif["version"], "2.1.0");
    assert_eq!(
        sarif["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"],
        "dist/key.pem"
    );
    home.put("blocked/tool.py", "DESCRIPTION = 'adds\u{e0041}\u{e0042}'\n");
    let ran = home.run(&["scan", "./blocked"]).await.exits(6);
    assert!(ran.out.starts_with("block  hidden-tag-characters  tool.py:1:"), "{}", ran.out);
    assert!(ran.out.ends_with(")\n") && ran.out.contains("\nblocked: 1 finding in 1 file ("), "{}", ran.out);
    assert!(!ran.out.contains('\u{e0041}'), "what is hidden is spelled out");
    home.put("empty/.gitkeep.d/x", "");
    std::fs::remove_dir_all(home.path("empty/.gitkeep.d")).unwrap();
    assert!(home.run(&["scan", "empty"]).await.exits(2).err.contains("is empty"));
}

#[tokio::test]
async fn contexts_are_kept_privately_and_used() {
    let home = Home::empty();
    home.run(&["context", "add", "lab", "unix:///nowhere.sock"]).await.exits(0);
    home.run(&["context", "add", "prod", "ssh://ada@host:2222"]).await.exits(0);
    home.run_stdin(&["context", "add", "keyed", "unix:///k.sock", "--token-stdin"], b"secret-key\n").await.exits(0);
    let file = home.path("config/sigil/contexts.toml");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    home.run(&["context", "use", "lab"]).await.exits(0);
    let list = home.run(&["context", "ls", "-o", "json"]).await.exits(0);
    assert!(!list.out.contains("secret-key"));
    let list = list.json();
    let current: Vec<&str> =
        list.as_array().unwrap().iter().filter(|c| c["current"] == true).map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(current, ["lab"]);
    assert!(home.run(&["ls"]).await.exits(5).err.contains("unix:///nowhere.sock"));
    assert!(home.run(&["context", "use", "labb"]).await.exits(3).err.contains("did you mean 'lab'?"));
    assert!(home.run(&["--host", "labb", "ls"]).await.exits(3).err.contains("known contexts"));
    home.run(&["context", "rm", "lab"]).await.exits(0);
    let list = home.run(&["context", "ls"]).await.exits(0).out;
    assert!(list.contains("*        local") && !list.contains("lab "), "{list}");
    std::fs::write(&file, "current = 3\n").unwrap();
    let ran = home.run(&["ls"]).await.exits(2);
    assert!(ran.err.contains("contexts.toml: line 1, column 11"), "{}", ran.err);
}

#[tokio::test]
async fn version_and_completions_need_nothing() {
    let home = Home::empty();
    assert_eq!(home.run(&["version"]).await.exits(0).out, concat!("sigil ", env!("CARGO_PKG_VERSION"), "\n"));
    assert_eq!(home.run(&["version", "-o", "json"]).await.json()["version"], env!("CARGO_PKG_VERSION"));
    assert!(home.run(&["version", "-o", "yaml"]).await.exits(0).out.starts_with("version:"));
    for shell in ["bash", "zsh", "fish"] {
        let script = home.run(&["completions", shell]).await.exits(0).out;
        assert!(script.contains("rollback") && !script.contains("dial-"), "{shell}");
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_program_quietly() {
    let home = Home::empty();
    let mut command = tokio::process::Command::new("sh");
    let sigil = env!("CARGO_BIN_EXE_sigil");
    command.arg("-c").arg(format!("{{ '{sigil}' completions bash; echo \"code $?\" >&2; }} | head -c 10"));
    let ran: super::Ran = command.env("HOME", home.dir.path()).output().await.unwrap().into();
    assert_eq!(ran.err, "code 0\n");
    assert_eq!(ran.out.len(), 10);
}

#[tokio::test]
async fn the_guide_needs_no_agent() {
    let home = Home::empty();
    let list = home.run(&["guide"]).await.exits(0).out;
    assert!(list.lines().any(|line| line.starts_with("start ")), "{list}");
    let page = home.run(&["guide", "scan#path-traversal"]).await.exits(0).out;
    assert!(page.starts_with("path-traversal\n--------------\n"), "{page}");
    let unknown = home.run(&["guide", "strat"]).await.exits(3).err;
    assert_eq!(unknown.trim(), "error: there is no topic 'strat'. hint: did you mean 'start'?");
}
