//! What is counted: CPU, memory and calls of real containers, over kills of the agent, over ends of servers, over both.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use serde_json::Value;
use sigil_tests::{Agent, eventually, fixture};

const SOON: Duration = Duration::from_secs(30);

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
