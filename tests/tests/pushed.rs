//! From a repository and from the registry to something that answers, on a real engine.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use sigil_tests::{Agent, eventually, fixture, git_repository};

const SOON: Duration = Duration::from_secs(30);

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
