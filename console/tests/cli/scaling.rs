//! `sigil scaling`.

use serde_json::{Value, json};
use sigil_core::scale::{Decision, Held, HeldBy, Policy, Signals};
use sigil_protocol::v1;

use super::Home;
use super::fake::deployment;

const POLICY: &str = "{preset: standard, min: 1, max: 6, requestsUp: 100, requestsDown: 20}";

fn decision(from: u32, to: u32, held: &[&str]) -> Decision {
    let held = held.iter().map(|why| Held { by: HeldBy::Cooldown, why: (*why).to_owned() }).collect();
    let signals = Signals { ready: from, requests: 250.0, cpu: Some(80.0), ..Signals::default() };
    Decision {
        from,
        to,
        wanted: 3,
        reason: "requests a minute a replica, 250.0, is above 100.0".into(),
        held,
        measures: Vec::new(),
        signals: Some(signals),
        forecast: None,
    }
}

fn kept(decision: &Decision) -> String {
    let mut value = serde_json::to_value(decision).unwrap();
    value["at"] = json!("2026-01-02T03:04:05Z");
    value.to_string()
}

fn home() -> Home {
    let home = Home::with_agent();
    let policy = Policy::read("p", POLICY, None).unwrap().to_yaml();
    home.fake.with(|s| {
        s.deployments = vec![deployment("time", "ready")];
        s.scaling = v1::ScalingReply { name: "time".into(), policy, replicas: 2 };
    });
    home
}

#[tokio::test]
async fn a_policy_is_shown_as_what_can_be_set() {
    let home = home();
    let ran = home.run(&["scaling", "get", "time"]).await.exits(0);
    assert_eq!(ran.err.trim(), "time: 2 replicas desired");
    let again = Policy::read("shown", &ran.out, None).unwrap();
    assert_eq!(again, Policy::read("p", POLICY, None).unwrap());
    let data = home.run(&["scaling", "get", "time", "-o", "json"]).await.exits(0).json();
    assert_eq!((&data["replicas"], &data["policy"]["max"]), (&json!(2), &json!(6)));
    home.run(&["scaling", "get", "tmie"]).await.exits(3);
}

#[tokio::test]
async fn what_is_given_is_set_and_the_rest_is_left() {
    let home = home();
    home.run(&["scaling", "set", "time", "--max", "8", "--idle-timeout", "10m", "--predictive", "true"]).await.exits(0);
    home.run_stdin(&["scaling", "set", "time", "--file", "-"], POLICY.as_bytes()).await.exits(0);
    home.run(&["scaling", "set", "time", "--off"]).await.exits(0);
    let set = home.fake.with(|s| s.scaling_set.clone());
    assert!(set[0].merge && !set[0].off && !set[0].request_id.is_empty(), "{set:?}");
    for line in ["max: 8", "idleTimeout: 600", "predictive: true"] {
        assert!(set[0].policy.contains(line), "{line} is not in {}", set[0].policy);
    }
    assert_eq!((set[1].policy.as_str(), set[1].merge, set[1].off), (POLICY, false, false));
    assert_eq!((set[2].policy.as_str(), set[2].off), ("", true));
    for wrong in [&["scaling", "set", "time"][..], &["scaling", "set", "time", "--off", "--max", "3"]] {
        home.run(wrong).await.exits(2);
    }
    assert_eq!(home.fake.with(|s| s.scaling_set.len()), 3);
}

#[tokio::test]
async fn decisions_are_told_with_what_held_them_back() {
    let home = home();
    let none = home.run(&["scaling", "history", "time"]).await.exits(0);
    assert!(none.err.contains("nothing was decided yet"), "{none:?}");
    let (step, refused) = (decision(1, 3, &[]), decision(3, 3, &["the last step was 10 s ago"]));
    home.fake.with(|s| s.decisions = vec![kept(&refused), kept(&step)]);
    let out = home.run(&["scaling", "history", "time"]).await.exits(0).out;
    for part in ["REPLICAS", "1 -> 3", "3 (wanted 3)", "250", "80", "requests a minute a replica"] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
    let all = home.run(&["scaling", "history", "time", "-n", "1", "-o", "json"]).await.exits(0).json();
    assert_eq!(all.as_array().unwrap().len(), 1);
    assert_eq!((&all[0]["from"], &all[0]["held"][0]["why"]), (&json!(3), &json!("the last step was 10 s ago")));
}

#[tokio::test]
async fn it_is_explained_what_would_be_done_and_why_not() {
    let home = home();
    let asleep = "it sleeps: a request wakes it";
    let early = "waking ahead of calls is off: no habit holds";
    let mut reply = v1::ScalingExplainReply {
        name: "time".into(),
        notes: vec![asleep.into(), early.into()],
        ..v1::ScalingExplainReply::default()
    };
    home.fake.with(|s| s.explained = reply.clone());
    let out = home.run(&["scaling", "explain", "time"]).await.exits(0).out;
    assert_eq!(out, format!("{asleep}\n{early}\n"));
    let data = home.run(&["scaling", "explain", "time", "-o", "json"]).await.exits(0).json();
    assert_eq!((&data["decision"], &data["notes"][1]), (&Value::Null, &json!(early)));
    reply.decision = serde_json::to_string(&decision(2, 3, &["the owner's limit"])).unwrap();
    reply.next_seconds = 12;
    home.fake.with(|s| s.explained = reply);
    let out = home.run(&["scaling", "explain", "time"]).await.exits(0).out;
    for part in ["time: 2 -> 3 replicas: requests a minute", "refused: the owner's limit", "next evaluation in 12 s"] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
}

#[tokio::test]
async fn the_last_days_are_replayed_against_another_policy() {
    let home = home();
    home.run(&["scaling", "simulate", "time"]).await.exits(2);
    let load = |n: i64| {
        let requests = if (6..18).contains(&n) { 450.0 } else { 10.0 };
        v1::ScalingLoad { at: 1_700_000_100 + n * 300, requests, peak: requests, cores: requests / 1000.0 }
    };
    let policy = home.fake.with(|s| s.scaling.policy.clone());
    let trace = v1::ScalingTraceReply {
        name: "time".into(),
        policy,
        loads: (0..24).map(load).collect(),
        cpu_limit: 0.5,
        price: 0.1,
        time_ms: 20.0,
    };
    home.fake.with(|s| s.trace = trace);
    let most = |data: &Value| data["result"]["most_replicas"].as_u64().unwrap_or_else(|| panic!("{data}"));
    let own = home.run(&["scaling", "simulate", "time", "--capacity", "200", "-o", "json"]).await.exits(0).json();
    let args = ["scaling", "simulate", "time", "--capacity", "200", "--max", "2", "-o", "json"];
    let held = home.run(&args).await.exits(0).json();
    assert!(most(&own) >= 4 && most(&held) == 2, "{own}\n{held}");
    let text = home.run(&["scaling", "simulate", "time", "--capacity", "200"]).await.exits(0);
    assert!(text.out.contains("REPLICAS") && !text.err.is_empty(), "{text:?}");
}
