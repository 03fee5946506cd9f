//! A made-up agent to look at the screens with: `cargo test -p sigil tui::demo -- --ignored --nocapture` in a terminal.

pub(super) mod sheets;

use std::time::Duration;

use jiff::Timestamp;

use super::port::{Feed, LinkEvent, Request, pair};
use crate::link::{
    AgentInfo, Condition, Deployment, Detail, Engine, Event, LogBatch, LogGap, LogLine, Operation, Problem, Release,
    Replica, Update, What,
};

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_795_311_243 + seconds).unwrap()
}

pub(super) fn info() -> AgentInfo {
    AgentInfo {
        agent_id: "01KAMN".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        started_at: Some(at(-9_000)),
        hostname: "basement".into(),
        data_dir: "/var/lib/sigil".into(),
        gateway: "http://127.0.0.1:7450".into(),
        engine: Some(Engine {
            name: "docker".into(),
            version: "20.10.24".into(),
            api_version: "1.41".into(),
            host: "unix:///var/run/docker.sock".into(),
            reachable: true,
            cgroup_version: "1".into(),
            log_driver: "local".into(),
            message: String::new(),
        }),
        notes: Vec::new(),
        now: Some(at(0)),
        who: "root".into(),
        role: "admin".into(),
        grants: Vec::new(),
        memory_rss: 31 << 20,
    }
}

pub(super) fn deployment(name: &str, state: &str, ready: u32, desired: u32) -> Deployment {
    let serves = ready > 0;
    Deployment {
        name: name.into(),
        state: state.into(),
        ready,
        desired,
        release: 3,
        source: format!("pypi:mcp-server-{name}==1.2.0"),
        transport: "stdio".into(),
        endpoint: format!("http://127.0.0.1:7450/mcp/{name}"),
        health: if serves { "healthy" } else { "unknown" }.into(),
        rpm: if serves { 42.0 } else { 0.0 },
        p99_ms: if serves { 18.4 } else { 0.0 },
        error_rate: 0.0,
        cpu_percent: if serves { 12.0 } else { 0.0 },
        memory_bytes: if serves { 61 << 20 } else { 0 },
        restarts: 0,
        created_at: Some(at(-86_400)),
        message: String::new(),
        id: format!("id-{name}"),
        desired_release: 3,
        sessions: u64::from(ready) * 2,
        changed_at: Some(at(-7_200)),
        tier: "router".into(),
    }
}

pub(super) fn fleet() -> Vec<Deployment> {
    let mut git = deployment("git", "degraded", 1, 2);
    (git.message, git.error_rate, git.restarts) = ("replica 2 restarts: crash loop, next try in 40 s".into(), 0.031, 4);
    let mut search = deployment("search", "failed", 0, 1);
    search.message =
        "release 3 never passed its gate: exited with 1 (ModuleNotFoundError: No module named 'mcp')".into();
    let mut busy = deployment("everything", "ready", 3, 3);
    (busy.rpm, busy.p99_ms, busy.cpu_percent, busy.memory_bytes) = (12_840.0, 1_234.0, 93.0, 1_482 << 20);
    (busy.source, busy.transport) = ("npm:@modelcontextprotocol/server-everything".into(), "http".into());
    vec![
        deployment("time", "ready", 1, 1),
        git,
        search,
        busy,
        deployment("filesystem", "sleeping", 0, 0),
        deployment("weather-for-the-whole-wide-world", "building", 0, 1),
        deployment("notes", "stopped", 0, 1),
    ]
}

pub(super) fn snapshot() -> LinkEvent {
    LinkEvent::Fleet(Update { resync: true, changed: fleet(), removed: Vec::new(), complete: true })
}

pub(super) fn line(seq: u64, deployment: &str, stream: &str, text: &[u8]) -> LogLine {
    LogLine {
        time: Some(at(seq as i64)),
        deployment: deployment.into(),
        instance: "01KAMNINSTANCE".into(),
        stream: stream.into(),
        seq,
        line: text.to_vec(),
        cut: false,
        release: 3,
    }
}

pub(super) fn logs() -> LogBatch {
    let texts: [(&str, &[u8]); 9] = [
        ("agent", b"started release 3"),
        ("stderr", b"INFO     listening on 127.0.0.1:8000"),
        ("stderr", b"\x1b[32mINFO\x1b[0m     tools/call get_current_time timezone=Europe/Zurich"),
        ("stderr", b"WARNING  upstream took 812 ms, which is more than the half second that was allowed for it"),
        ("stderr", b"ERROR    could not reach api.example.org: \x1b]0;pwned\x07timed out"),
        ("stderr", b"{\"level\":\"debug\",\"msg\":\"retry\",\"try\":2}"),
        ("stdout", b"plain words on standard output\tand a tab"),
        ("stderr", b"bytes \xff\xfe and \xe2\x80\xae hidden"),
        ("stderr", b"INFO     recovered"),
    ];
    let lines =
        texts.iter().enumerate().map(|(i, (s, t))| line(if i < 6 { i as u64 } else { i as u64 + 1204 }, "time", s, t));
    let gap = LogGap { deployment: "time".into(), lost: 1204, after_seq: 5, reason: "no longer kept".into() };
    LogBatch { lines: lines.collect(), gaps: vec![gap] }
}

pub(super) fn detail() -> Detail {
    let search = fleet().remove(2);
    let step =
        |name: &str, reason: &str, ok| Condition { kind: name.into(), ok, reason: reason.into(), since: Some(at(-95)) };
    let release = |number, outcome: &str, why: &str, serving| Release {
        number,
        created_at: Some(at(-86_400 / i64::from(number))),
        created_by: "root".into(),
        source: format!("pypi:mcp-server-search==1.{number}.0"),
        image: "sha256:abc".into(),
        outcome: outcome.into(),
        why: why.into(),
        recognised: "pyproject.toml".into(),
        spec: None,
        serving,
    };
    Detail {
        conditions: vec![
            step("desired", "release 3, 1 replica", true),
            step("image", "built 2 minutes ago", true),
            step("gate", "exited with 1 before it answered", false),
        ],
        replicas: vec![Replica {
            instance: "01KAMN8ZQ4XJ7T6W2D5R9V0B3C".into(),
            release: 3,
            state: "backing-off".into(),
            container: "4be2".into(),
            started_at: Some(at(-12)),
            restarts: 5,
            message: "next try in 40 s".into(),
            sessions: 0,
        }],
        releases: vec![
            release(1, "good", "", false),
            release(2, "good", "", false),
            release(3, "failed", "exited with 1 (ModuleNotFoundError)", false),
        ],
        last_operation: Some(Operation {
            id: "01KAMNOP".into(),
            kind: "deploy".into(),
            deployment: "search".into(),
            state: "failed".into(),
            step: "gate".into(),
            release: 3,
            created_at: Some(at(-120)),
            ended_at: Some(at(-90)),
            created_by: "root".into(),
            summary: String::new(),
            error: Some(Problem {
                code: "GATE_FAILED".into(),
                message: "the server exited with 1 before it answered 'initialize'".into(),
                hint: "see its last output; 'sigil logs search --previous' has all of it".into(),
                details: None,
                exit: 1,
            }),
            result: None,
        }),
        plan: vec!["wait 40 s, then start 1 replica of release 3".into()],
        generation: 7,
        reason: "deploy by root".into(),
        access: "key".into(),
        bundles: Vec::new(),
        egress: vec!["api.search.example".into()],
        egress_open: false,
        network: "link".into(),
        refused: Vec::new(),
        refused_total: 0,
        volume_bytes: 0,
        last_output: vec![
            "Traceback (most recent call last):".into(),
            "  File \"/app/main.py\", line 1, in <module>".into(),
            "ModuleNotFoundError: No module named 'mcp'".into(),
        ],
        deployment: search,
    }
}

async fn act(mut feed: Feed) {
    let (events, tick) = (feed.events.clone(), Duration::from_millis(200));
    tokio::time::sleep(tick).await;
    let connected = LinkEvent::Connected { info: Box::new(info()), rtt: Duration::from_micros(3_200) };
    let _ = events.send(connected).await;
    let _ = events.send(snapshot()).await;
    let mut watch = None;
    let mut seq = 10_000;
    let mut ticks = tokio::time::interval(tick);
    loop {
        tokio::select! {
            request = feed.requests.recv() => match request {
                None => return,
                Some(Request::WatchLogs { watch: w, query }) => {
                    watch = Some((w, query.deployments.clone()));
                    let _ = events.send(LinkEvent::Logs { watch: w, batch: logs() }).await;
                }
                Some(Request::StopLogs) => watch = None,
                Some(Request::Detail { name }) => {
                    let result = Ok(Box::new(detail()));
                    let _ = events.send(LinkEvent::Detail { name, result }).await;
                }
                Some(Request::Change { change, .. }) => {
                    let what = What::Step { name: "start".into(), state: "started".into(), message: String::new(), elapsed_ms: 0 };
                    let event = Event { seq: 1, time: Some(Timestamp::now()), what };
                    let _ = events.send(LinkEvent::Operation { change, event }).await;
                    let events = events.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_secs(4)).await;
                        let mut done = detail().last_operation.unwrap();
                        (done.state, done.error, done.summary) = ("succeeded".into(), None, "1 replica is ready".into());
                        let event = Event { seq: 2, time: None, what: What::Done(Box::new(done)) };
                        let _ = events.send(LinkEvent::Operation { change, event }).await;
                    });
                }
                Some(Request::Look { look, what }) => {
                    let result = Ok(Box::new(sheets::seen(&what)));
                    let _ = events.send(LinkEvent::Looked { look, result }).await;
                }
                Some(Request::Flow { flow, what }) => {
                    for told in sheets::flow(&what) {
                        let _ = events.send(LinkEvent::Flow { flow, told }).await;
                    }
                    if !matches!(what, super::flow::Flow::Tap { .. }) {
                        let _ = events.send(LinkEvent::FlowEnded { flow, trouble: None }).await;
                    }
                }
                Some(Request::Reconnect | Request::StopFlow { .. }) => {}
            },
            _ = ticks.tick() => if let Some((w, names)) = &watch {
                let mut lines = Vec::new();
                for name in names {
                    seq += 1;
                    let level = ["INFO", "DEBUG", "WARNING", "ERROR"][usize::from(seq % 7 == 0) * 2 + usize::from(seq % 31 == 0)];
                    let mut l = line(seq, name, "stderr", format!("{level} request {seq} took {} ms", seq * 7 % 90).as_bytes());
                    l.time = Some(Timestamp::now());
                    lines.push(l);
                }
                let batch = LogBatch { lines, gaps: Vec::new() };
                let _ = events.send(LinkEvent::Logs { watch: *w, batch }).await;
            },
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "for a person at a terminal"]
async fn look() {
    let (port, feed) = pair("local", "unix:///run/sigil/agent.sock");
    tokio::spawn(act(feed));
    super::run(vec![port], super::Options::new(false, false, false), super::Files::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "for a person at a terminal"]
async fn look_plain() {
    let (port, feed) = pair("local", "unix:///run/sigil/agent.sock");
    tokio::spawn(act(feed));
    super::run(vec![port], super::Options::new(true, true, false), super::Files::default()).await.unwrap();
}
