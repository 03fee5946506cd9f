//! `sigil health`.

use serde_json::json;
use sigil_protocol::v1;

use super::Home;
use super::fake::deployment;

const AT: i64 = 1_700_000_000_000_000;

fn reply() -> v1::HealthReply {
    v1::HealthReply {
        name: "time".into(),
        state: "degraded".into(),
        replicas: vec![v1::ReplicaHealth {
            instance: "01NOW".into(),
            state: "degraded".into(),
            why: "busy with a call, using 0.24 cores; no answer within 10 s".into(),
            ms: 10_000.0,
            at: AT,
            remedies: 2,
        }],
        availability: vec![
            v1::Availability { hours: 24, calls: 1000, failed: 1 },
            v1::Availability { hours: 168, calls: 0, failed: 0 },
        ],
        target: 99.8,
        probes: vec![v1::ProbeResult {
            at: AT,
            instance: "01NOW".into(),
            outcome: "busy".into(),
            why: "busy".into(),
            ms: 10_000.0,
        }],
        turns: vec![
            v1::HealthTurn {
                at: AT,
                instance: "01NOW".into(),
                from: "unhealthy".into(),
                to: "unhealthy".into(),
                why: "no answer".into(),
                done: "restarted".into(),
            },
            v1::HealthTurn {
                at: AT - 1_000_000,
                instance: "01NOW".into(),
                from: "healthy".into(),
                to: "unhealthy".into(),
                why: "no answer".into(),
                done: String::new(),
            },
        ],
        lives: vec![
            v1::EndedLife {
                at: AT,
                began: AT - 90_000_000,
                instance: "01NOW".into(),
                release: 3,
                served: true,
                code: Some(137),
                oom: true,
                why: "ran out of memory and was killed".into(),
                output: vec![v1::EndedLine { at: AT, stderr: true, line: "\x1b]0;pwned\x07last words".into() }],
                cut: true,
            },
            v1::EndedLife { at: AT, instance: "01OLD".into(), release: 2, ..v1::EndedLife::default() },
        ],
    }
}

fn home() -> Home {
    let home = Home::with_agent();
    home.fake.with(|s| {
        s.deployments = vec![deployment("time", "ready")];
        s.health = reply();
    });
    home
}

#[tokio::test]
async fn replicas_turns_ends_and_what_callers_saw() {
    let home = home();
    let ran = home.run(&["health", "time"]).await.exits(0);
    assert_eq!(ran.err.trim(), "time: degraded");
    let rows: Vec<Vec<&str>> = ran.out.lines().map(|line| line.split_whitespace().collect()).collect();
    let row = |start: &[&str]| rows.iter().any(|row| start.iter().all(|word| row.contains(word)));
    for wanted in [
        &["REPLICA", "STATE", "RESTARTS", "WHY"][..],
        &["01NOW", "degraded", "2", "busy", "call,"],
        &["24", "99.900", "1000", "50"],
        &["7", "days", "-", "0"],
        &["TARGET", "99.8"],
        &["TURNED", "FROM", "TO"],
        &["unhealthy", "restarted", "no", "answer"],
        &["healthy", "unhealthy"],
        &["ENDED", "LASTED", "EXIT"],
        &["137", "(memory)", "3", "ran", "memory"],
        &["01OLD", "2", "-"],
    ] {
        assert!(row(wanted), "{wanted:?} is not in\n{}", ran.out);
    }
    assert!(!ran.out.contains("last words"), "{}", ran.out);
    let asked = home.fake.with(|s| s.health_asked.clone());
    assert_eq!((asked[0].probes, asked[0].turns, asked[0].lives), (0, 10, 10));
}

#[tokio::test]
async fn the_last_words_are_shown_when_asked_for_and_steer_no_terminal() {
    let home = home();
    let out = home.run(&["health", "time", "--last-output", "--probes", "5"]).await.exits(0).out;
    assert!(out.contains("01NOW, ended") && out.contains("  …\n  ^[]0;pwned^Glast words\n"), "{out}");
    assert!(out.contains("01OLD, ended") && out.contains("nothing was printed"), "{out}");
    assert!(!out.contains('\x1b'));
    assert_eq!(home.fake.with(|s| s.health_asked[0].probes), 5);
    home.run(&["health", "tmie"]).await.exits(3);
}

#[tokio::test]
async fn scripts_read_all_of_it() {
    let home = home();
    let all = home.run(&["health", "time", "-o", "json"]).await.exits(0).json();
    assert_eq!((&all["name"], &all["state"], &all["target"]), (&json!("time"), &json!("degraded"), &json!(99.8)));
    assert_eq!(all["availability"][0]["available"], json!(99.9));
    assert_eq!(all["availability"][1]["available"], json!(null));
    assert_eq!((&all["turns"][0]["done"], &all["turns"][1]["to"]), (&json!("restarted"), &json!("unhealthy")));
    let life = &all["lives"][0];
    assert_eq!((&life["code"], &life["oom"], &life["lasted_ms"]), (&json!(137), &json!(true), &json!(90_000)));
    assert_eq!((&life["output"][0]["stream"], &life["cut"]), (&json!("stderr"), &json!(true)));
    assert_eq!((&all["lives"][1]["code"], &all["lives"][1]["lasted_ms"]), (&json!(null), &json!(null)));
    assert_eq!(all["probes"][0]["outcome"], "busy");
}
