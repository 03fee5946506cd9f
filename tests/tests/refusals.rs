//! What people are shown of the gateway's refusals by the official SDKs, both majors of each, in every manner that they speak
//! in: what happened and what to do about it, word by word. Where an SDK shows less, the table says what it shows.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use serde_json::{Value, json};
use sigil_tests::{Agent, fixture, root};

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
        (TypeScript2(STATELESS), "stopped") => Some("the server answered the probe with HTTP 503"),
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
    /// What everybody must be shown.
    words: &'static [&'static str],
}

fn cases(key: impl Fn(&str, &[&str]) -> String) -> Vec<Case> {
    let case = |name, at, key, tool, words| {
        let arguments = json!({ "text": "hello" });
        Case { name, at, key, tool, arguments, restart: false, words }
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
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
