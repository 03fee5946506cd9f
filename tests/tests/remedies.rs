//! Real servers that hang, and what is done about them: restarted, replaced or left alone, each time later than the time
//! before; and one that is only busy.

use std::time::{Duration, Instant};

use serde_json::Value;
use sigil_tests::{Agent, docker, eventually};

/// A probe waits ten seconds for its answer, and three of them count.
const LONG: Duration = Duration::from_secs(120);

/// One thread and nothing but the standard library. `hang` never answers, `deaf` does and listens no more, `compute` keeps a
/// core busy for so many seconds.
const SERVER: &str = r#"
import http.server, json, os, sys, time
deaf = False
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self): self.answer(405, None)
    def do_DELETE(self): self.answer(200, None)
    def answer(self, status, message):
        body = b"" if message is None else json.dumps(message).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        global deaf
        m = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "id" not in m: return self.answer(202, None)
        method, p = m["method"], m.get("params") or {}
        result = {}
        if method == "initialize":
            result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                "serverInfo": {"name": "single", "version": "1"}}
        elif method == "tools/list":
            names = ["hang", "deaf", "compute", "echo"]
            result = {"tools": [{"name": n, "inputSchema": {"type": "object"}} for n in names]}
        elif method == "tools/call":
            if p["name"] == "hang":
                print("about to hang", file=sys.stderr, flush=True)
                time.sleep(3600)
            until = time.monotonic() + float((p.get("arguments") or {}).get("seconds", 0))
            while p["name"] == "compute" and time.monotonic() < until: pass
            deaf = p["name"] == "deaf"
            result = {"content": [{"type": "text", "text": "done"}]}
        self.answer(200, {"jsonrpc": "2.0", "id": m["id"], "result": result})
server = http.server.HTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler)
print("a life begins", file=sys.stderr, flush=True)
while not deaf: server.handle_request()
server.server_close()
time.sleep(3600)
"#;

fn deploy(agent: &Agent, name: &str, health: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("mcp.yaml");
    std::fs::write(&path, format!("name: {name}\ntransport: http\nport: 8080\nhealth: {{ {health} }}\n"))
        .expect("a file");
    let shown = path.display().to_string();
    let head = ["deploy", "image:sigil-base/python:latest", "--name", name, "--manifest", &shown];
    agent.sigil(&[&head[..], &["--access", "anonymous", "--", "python3", "-c", SERVER]].concat()).ok();
}

fn health(agent: &Agent, name: &str) -> Value {
    agent.sigil(&["health", name, "--probes", "20", "-o", "json"]).ok().json()
}

/// Its container, and whether that runs.
fn container(agent: &Agent, name: &str) -> (String, String) {
    let filters = [format!("label=sigil.agent={}", agent.id()), format!("label=sigil.deployment={name}")];
    let words =
        docker(&["ps", "-a", "--filter", &filters[0], "--filter", &filters[1], "--format", "{{.ID}} {{.State}}"]);
    let (id, state) = words.split_once(' ').unwrap_or_default();
    (id.to_owned(), state.to_owned())
}

/// What was done about it, oldest first, and when.
fn done(health: &Value) -> Vec<(String, jiff::Timestamp)> {
    let turns = health["turns"].as_array().expect("turns");
    let done = turns.iter().rev().filter(|turn| turn["done"] != "");
    let one = |turn: &Value| {
        let at = turn["at"].as_str().and_then(|at| at.parse().ok()).expect("a time");
        (turn["done"].as_str().unwrap_or_default().to_owned(), at)
    };
    done.map(one).collect()
}

fn answers(agent: &Agent, name: &str) {
    eventually(&format!("'{name}' answers: {}", agent.log()), LONG, || {
        let ready = agent.ls(name).is_some_and(|d| d["state"] == "ready");
        (ready && agent.sigil(&["call", name, "echo"]).code == 0).then_some(())
    });
}

#[test]
fn who_hangs_is_restarted_replaced_or_left_alone_and_who_works_is_none_of_them() {
    let agent = Agent::start();
    let rules = [("again", "restart"), ("other", "replace"), ("alone", "leave")];
    for (name, remedy) in rules {
        deploy(&agent, name, &format!("every: 2, requestTimeout: 2, onFailure: {remedy}"));
    }
    deploy(&agent, "busy", "every: 2, requestTimeout: 300");
    let before: Vec<(String, String)> = rules.iter().map(|(name, _)| container(&agent, name)).collect();
    let working = container(&agent, "busy");
    // a call that takes longer than it takes to find that a server hangs
    let patient = ["call", "busy", "compute", "--arg", "seconds=60", "--timeout", "3m"];
    let mut work = agent.command(&patient).spawn().expect("sigil starts");
    let began = Instant::now();
    for (name, _) in rules {
        let called = agent.sigil(&["call", name, "hang"]);
        assert_eq!(called.code, 1, "{called:?}");
    }
    for (name, _) in &rules[..2] {
        let turns = eventually(&format!("something is done about '{name}': {}", agent.log()), LONG, || {
            let health = health(&agent, name);
            (!done(&health).is_empty()).then_some(health)
        });
        assert_eq!(done(&turns)[0].0, if *name == "again" { "restarted" } else { "replaced" }, "{turns}");
        answers(&agent, name);
    }
    assert_eq!(container(&agent, "again"), before[0], "the same container runs again");
    assert_ne!(container(&agent, "other").0, before[1].0, "another one");
    // the end of the first is on record, with what it said
    let seen = health(&agent, "again");
    let life = &seen["lives"][0];
    assert_eq!((&life["code"], &life["served"]), (&Value::from(137), &Value::from(true)), "{seen}");
    let output: Vec<&str> =
        life["output"].as_array().expect("lines").iter().filter_map(|l| l["line"].as_str()).collect();
    assert_eq!(output, ["a life begins", "about to hang"], "{seen}");
    let text = agent.sigil(&["health", "again", "--last-output"]).ok().out;
    assert!(text.contains("restarted") && text.contains("about to hang"), "{text}");
    // left alone: it is said, and nothing is done
    let alone = eventually("it is said of the one that is left alone", LONG, || {
        let health = health(&agent, "alone");
        (health["state"] == "unhealthy").then_some(health)
    });
    assert!(done(&alone).is_empty(), "{alone}");
    assert_eq!(container(&agent, "alone"), before[2]);
    // and who works is degraded, answers in the end, and was never touched
    eventually(&format!("the busy one is said to be so: {}", agent.log()), LONG, || {
        let health = health(&agent, "busy");
        let busy = |turn: &Value| turn["why"].as_str().is_some_and(|why| why.starts_with("busy with a call"));
        let turns = health["turns"].as_array()?;
        turns.iter().any(|turn| turn["to"] == "degraded" && busy(turn)).then_some(())
    });
    assert!(work.wait().expect("it ends").success());
    assert!(began.elapsed() >= Duration::from_secs(60));
    assert_eq!(container(&agent, "busy"), working);
    let busy = eventually("it is healthy again", LONG, || {
        let health = health(&agent, "busy");
        (health["state"] == "healthy").then_some(health)
    });
    assert!(done(&busy).is_empty() && busy["lives"] == serde_json::json!([]), "{busy}");
}

#[test]
fn each_time_waits_longer_than_the_one_before() {
    let agent = Agent::start();
    deploy(&agent, "deaf", "every: 1, requestTimeout: 2, onFailure: restart");
    for times in 1..=3 {
        answers(&agent, "deaf");
        agent.sigil(&["call", "deaf", "deaf"]).ok();
        eventually(&format!("it is restarted, {times}: {}", agent.log()), LONG, || {
            (done(&health(&agent, "deaf")).len() == times).then_some(())
        });
    }
    let at: Vec<jiff::Timestamp> = done(&health(&agent, "deaf")).into_iter().map(|(_, at)| at).collect();
    // what hangs for good a second later is found in three seconds, and waits all the same
    let waits: Vec<i64> = at.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs()).collect();
    assert!(waits[0] >= 29 && waits[1] >= 59, "{waits:?}");
    let lives = health(&agent, "deaf")["lives"].as_array().expect("lives").len();
    assert_eq!(lives, 3);
}
