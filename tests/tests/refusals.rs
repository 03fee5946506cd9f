//! What people are shown of the gateway's refusals by the official SDKs, both majors of each, in every manner that they speak
//! in: what happened and what to do about it, word by word. Where an SDK shows less, the table says what it shows.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sigil_tests::{Agent, eventually, fixture, root};

const SOON: Duration = Duration::from_secs(60);
const STATELESS: &str = "2026-07-28";

/// An SDK: its major and the manner it speaks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sdk {
    Python1,
    Python2(&'static str),
    TypeScript1,
    TypeScript2(&'static str),
}

use Sdk::{Python1, Python2, TypeScript1, TypeScript2};

const SDKS: [Sdk; 6] =
    [Python1, Python2("legacy"), Python2(STATELESS), TypeScript1, TypeScript2("legacy"), TypeScript2(STATELESS)];

impl Sdk {
    fn mode(self) -> &'static str {
        match self {
            Self::Python1 | Self::TypeScript1 => "legacy",
            Self::Python2(mode) | Self::TypeScript2(mode) => mode,
        }
    }
}

/// What an SDK shows of a case instead: it reads no body there. Everything else is shown whole.
fn instead(sdk: Sdk, case: &str) -> Option<&'static str> {
    match (sdk, case) {
        // a fixed text for 404
        (Python1, "unknown" | "session gone") => Some("McpError: Session terminated"),
        // its question which revisions there are is answered by the status alone
        (TypeScript2(STATELESS), "no key" | "wrong key") => Some("the server requires authorization (HTTP 401)"),
        (TypeScript2(STATELESS), "other key") => Some("the server denied access (HTTP 403)"),
        (TypeScript2(STATELESS), "stopped" | "starting" | "queue full" | "overloaded") => {
            Some("the server answered the probe with HTTP 503")
        }
        (TypeScript2(STATELESS), "unknown") => Some("the server did not offer pinned protocol version 2026-07-28"),
        _ => None,
    }
}

/// One of them, in a container on the host's network.
struct Speaker {
    sdk: Sdk,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Speaker {
    fn start(sdk: Sdk) -> Self {
        let script = |name: &str, at: &str| format!("{}:{at}:ro", root().join("tests/clients").join(name).display());
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "-i", "--init", "--network", "host", "-v"]);
        match sdk {
            Python1 | Python2(_) => {
                let major = if sdk == Python1 { "/opt/client/bin/python" } else { "/opt/client2/bin/python" };
                command.args([&script("refused.py", "/refused.py"), "--entrypoint", major]);
                command.args(["sigil-test/client-python:latest", "/refused.py"]);
            }
            TypeScript1 | TypeScript2(_) => {
                command.args([&script("refused.mjs", "/client/refused.mjs"), "sigil-test/client-node:latest"]);
                command.args(["node", "/client/refused.mjs", if sdk == TypeScript1 { "1" } else { "2" }]);
            }
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("docker is installed");
        let (input, stdout) = (child.stdin.take(), child.stdout.take().expect("piped"));
        let (tx, lines) = sync_channel(16);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        Self { sdk, child, input, lines }
    }

    fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("open until the end");
        writeln!(input, "{line}").and_then(|()| input.flush()).unwrap_or_else(|e| panic!("{:?} ended: {e}", self.sdk));
    }

    fn hear(&self) -> Value {
        let line = self.lines.recv_timeout(SOON).unwrap_or_else(|e| panic!("{:?} says nothing: {e}", self.sdk));
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{:?} says something else ({e}): {line}", self.sdk))
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        // the end of its input ends it
        drop(self.input.take());
        let _ended = self.child.wait();
    }
}

struct Case {
    name: &'static str,
    at: &'static str,
    key: Option<String>,
    tool: &'static str,
    arguments: Value,
    /// Its server is replaced between the handshake and the call.
    restart: bool,
    /// Every place of those that wait for a start is taken.
    crowded: bool,
    /// What everybody must be shown.
    words: &'static [&'static str],
}

const STARTING: &[&str] = &["'late' is starting", "try again soon; `sigil get late`", "GATEWAY_STARTING"];
/// Calls that may wait for a start, all together, and how long each may.
const WAITING: usize = 256;
const HOLD: Duration = Duration::from_secs(30);

/// A fixture with another manifest.
fn changed(name: &str, change: impl Fn(&str) -> String) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for file in std::fs::read_dir(fixture(name)).expect("a fixture").map(|file| file.expect("readable").path()) {
        std::fs::copy(&file, dir.path().join(file.file_name().expect("a name"))).expect("copied");
    }
    let manifest = dir.path().join("mcp.yaml");
    let text = std::fs::read_to_string(&manifest).expect("a manifest");
    std::fs::write(manifest, change(&text)).expect("written");
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// A request to begin a session, sent and not yet answered.
fn knock(agent: &Agent, name: &str) -> TcpStream {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
    let mut stream = TcpStream::connect(("127.0.0.1", agent.port)).expect("the gateway listens");
    let request = format!(
        "POST /mcp/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("sent");
    stream
}

/// Waits until whoever knocks is sent away, and told when to come back.
fn until_refused(agent: &Agent, name: &str, code: &str) {
    eventually(&format!("{name} refuses with {code}"), SOON, || {
        let mut stream = knock(agent, name);
        stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a limit");
        let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(n @ 1..) = stream.read(&mut chunk) {
            bytes.extend_from_slice(&chunk[..n]);
            if chunk[..n].ends_with(b"}") {
                break;
            }
        }
        let answer = String::from_utf8_lossy(&bytes);
        let head = answer.to_ascii_lowercase();
        let refused = answer.starts_with("HTTP/1.1 503") && answer.contains(code);
        assert!(!refused || head.contains("retry-after: 5"), "{answer}");
        assert!(refused || answer.is_empty(), "another answer than {code}: {answer}");
        refused.then_some(())
    });
}

/// Takes every place of those that wait for a start, for as long as its connections are kept.
fn crowd(agent: &Agent, name: &str) -> Vec<TcpStream> {
    const MORE: usize = 8;
    // more than there are places: once the rest has been sent away, all the others are in
    let all: Vec<_> = (0..WAITING + MORE).map(|_| knock(agent, name)).collect();
    for stream in &all {
        stream.set_nonblocking(true).expect("a socket");
    }
    eventually("every place is taken", SOON, || {
        let answered = |stream: &&TcpStream| stream.peek(&mut [0]).is_ok_and(|n| n > 0);
        (all.iter().filter(answered).count() >= MORE).then_some(())
    });
    all
}

fn cases(key: impl Fn(&str, &[&str]) -> String) -> Vec<Case> {
    let case = |name, at, key, tool, words| {
        let arguments = json!({ "text": "hello" });
        Case { name, at, key, tool, arguments, restart: false, crowded: false, words }
    };
    let good = Some(key("good", &[]));
    vec![
        case(
            "unknown",
            "nobody",
            None,
            "echo",
            &["there is no deployment 'nobody'", "`sigil ls` shows", "GATEWAY_MCP_NOT_FOUND"],
        ),
        case(
            "stopped",
            "resting",
            None,
            "echo",
            &["'resting' does not serve", "`sigil get resting` shows why", "GATEWAY_CONNECTION_FAILED"],
        ),
        case(
            "no key",
            "shut",
            None,
            "echo",
            &["needs a key", "`sigil key create NAME` makes one", "GATEWAY_INVALID_API_KEY"],
        ),
        case(
            "wrong key",
            "shut",
            Some("sigil_wrong".into()),
            "echo",
            &["wrong, revoked or expired", "`sigil key ls`", "GATEWAY_INVALID_API_KEY"],
        ),
        case(
            "other key",
            "shut",
            Some(key("other", &["--deployment", "resting"])),
            "echo",
            &["the key 'other' is not for 'shut'", "`sigil key ls` shows", "GATEWAY_FORBIDDEN"],
        ),
        case(
            "other tool",
            "shut",
            Some(key("narrow", &["--tool", "echo"])),
            "die",
            &["the key 'narrow' is not for the tool 'die'", "`sigil key ls` shows", "GATEWAY_FORBIDDEN"],
        ),
        Case { crowded: true, ..case("queue full", "late", None, "echo", STARTING) },
        case(
            "overloaded",
            "tight",
            None,
            "echo",
            &["'tight' has its most sessions at once: 1 a replica", "`sigil scale`", "GATEWAY_OVERLOADED"],
        ),
        case("hidden tool", "shut", good.clone(), "hang", &["Unknown tool: hang"]),
        case("rate", "shut", good, "echo", &["limit of 1/h is used up", "try again in", "GATEWAY_RATE_LIMITED"]),
        Case {
            arguments: json!({ "text": "x".repeat(100_000) }),
            ..case(
                "too large",
                "stubborn",
                None,
                "echo",
                &["larger than 65536 bytes", "[gateway] max_body", "GATEWAY_BAD_REQUEST"],
            )
        },
        case(
            "dies",
            "stubborn",
            None,
            "die",
            &["during the call", "`sigil logs stubborn` shows what it printed", "GATEWAY_CONNECTION_FAILED"],
        ),
        case(
            "hangs",
            "stubborn",
            None,
            "hang",
            &["'stubborn' did not answer within 2000 ms", "request timeout", "GATEWAY_TIMEOUT"],
        ),
        case(
            "no JSON-RPC",
            "stubborn",
            None,
            "mumble",
            &["'stubborn' did not answer within 2000 ms", "request timeout", "GATEWAY_TIMEOUT"],
        ),
        Case {
            restart: true,
            ..case(
                "session gone",
                "stubborn",
                None,
                "echo",
                &["session", "send initialize again", "GATEWAY_SESSION_EXPIRED"],
            )
        },
    ]
}

#[test]
fn people_are_shown_what_happened_and_what_to_do() {
    let agent = Agent::start_with(&[("SIGIL_GATEWAY_MAX_BODY", "65536")]);
    let source = fixture("stubborn");
    for name in ["stubborn", "shut", "resting"] {
        agent.sigil(&["deploy", &source, "--name", name, "--tier", "processor"]).ok();
    }
    agent.sigil(&["stop", "resting", "--yes"]).ok();
    // one whose start takes longer than this test, and one that is full
    let late =
        changed("slow", |text| format!("{}health: {{ startTimeout: 50m }}\n", text.replace("\"5\"", "\"3000\"")));
    agent.sigil(&["deploy", text(late.path()), "--name", "late", "--tier", "processor", "--no-wait"]).ok();
    agent.until("late", "starting", SOON);
    let tight = changed("stubborn", |text| format!("{text}sessions: {{ max: 1 }}\n"));
    agent.sigil(&["deploy", text(tight.path()), "--name", "tight", "--tier", "processor"]).ok();
    let _only = agent.session("tight");
    eventually("the only session is there", SOON, || agent.ls("tight").filter(|row| row["sessions"] == 1));
    until_refused(&agent, "tight", "GATEWAY_OVERLOADED");
    agent.sigil(&["policy", "set", "shut", "--access", "key", "--deny", "hang", "--tool-rate", "echo=1/h"]).ok();
    agent.sigil(&["call", "shut", "echo", "--arg", "text=the one of this hour"]).ok();
    let key = |name: &str, scope: &[&str]| {
        let made = agent.sigil(&[&["key", "create", name, "-o", "json"], scope].concat()).ok().json();
        made["text"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
    };
    let cases = cases(key);
    let mut wrong = Vec::new();
    for sdk in SDKS {
        let mut speaker = Speaker::start(sdk);
        for case in &cases {
            // who has no session cannot lose it
            if case.restart && sdk.mode() == STATELESS {
                continue;
            }
            let headers = case.key.iter().map(|key| ("authorization".to_owned(), json!(format!("Bearer {key}"))));
            let told = json!({
                "url": agent.url(case.at), "headers": headers.collect::<serde_json::Map<_, _>>(), "mode": sdk.mode(),
                "tool": case.tool, "arguments": case.arguments, "wait": case.restart,
            });
            let _waiting = case.crowded.then(|| crowd(&agent, case.at));
            speaker.say(&told.to_string());
            let mut heard = speaker.hear();
            if heard["ready"] == true {
                agent.sigil(&["restart", case.at]).ok();
                agent.until(case.at, "ready", SOON);
                speaker.say("");
                heard = speaker.hear();
            }
            let text = heard["text"].as_str().unwrap_or_default();
            let instead = instead(sdk, case.name);
            let words = instead.as_ref().map_or(case.words, std::slice::from_ref);
            // the old process may be about to end: then a call fails with it, and says so
            let ended = case.restart && text.contains("during the call") && text.contains("GATEWAY_CONNECTION_FAILED");
            if !ended && !words.iter().all(|words| text.contains(words)) {
                wrong.push(format!("{sdk:?} {}: {text}", case.name));
            }
        }
    }
    // whoever comes while there are places waits for the start, all at once here, and is told when it takes too long
    let began = Instant::now();
    let mut speakers: Vec<Speaker> = SDKS.into_iter().map(Speaker::start).collect();
    for speaker in &mut speakers {
        let told = json!({
            "url": agent.url("late"), "headers": {}, "mode": speaker.sdk.mode(), "tool": "echo", "arguments": {},
            "patience": 55,
        });
        speaker.say(&told.to_string());
    }
    for speaker in &speakers {
        let heard = speaker.hear();
        let text = heard["text"].as_str().unwrap_or_default();
        let instead = instead(speaker.sdk, "starting");
        let words = instead.as_ref().map_or(STARTING, std::slice::from_ref);
        if began.elapsed() < HOLD || !words.iter().all(|words| text.contains(words)) {
            wrong.push(format!("{:?} starting, after {:?}: {text}", speaker.sdk, began.elapsed()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
