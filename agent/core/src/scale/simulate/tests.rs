use super::*;
use crate::scale::HISTORY_BUCKETS;
use crate::scale::forecast::Bucket;

fn policy(text: &str) -> Policy {
    Policy::read("policy.yaml", text, None).unwrap()
}

const SERVER: Server = Server { capacity: 3000.0, time_ms: 20.0, start_seconds: 2.0 };

/// `shape` at each second.
fn trace(seconds: u32, shape: impl Fn(f64) -> f64) -> Vec<Point> {
    (0..seconds).map(|at| Point { at: f64::from(at), requests: shape(f64::from(at)) }).collect()
}

#[test]
fn a_step_is_met_within_two_evaluations_and_left_after_it() {
    let p = policy(
        "{preset: standard, max: 10, evaluateEvery: 5, upCooldown: 5, downCooldown: 30, stabilisation: 10, responseTime: 200}",
    );
    let step = trace(480, |at| if (60.0..180.0).contains(&at) { 9000.0 } else { 750.0 });
    let ran = simulate(&Replay::new(&p, SERVER), &step);
    assert_eq!(ran.steps[0].1, 1);
    assert!(ran.steps[0].0 <= 70.0 && ran.most_replicas >= 4, "{:?}", ran.steps);
    let settled = ran.ticks.iter().find(|t| t.at > 65.0 && t.p95 <= 200.0).unwrap();
    assert!(settled.at <= 65.0 + 4.0 * 5.0, "{settled:?}");
    assert_eq!(ran.ticks.last().unwrap().replicas, 1);
    assert_eq!(ran.reversals, 1);
    assert!(ran.given_up == 0.0 && ran.worst_p95 > 200.0 && ran.slow_seconds > 0.0);
    // 120 s of three replicas at least, and the rest of one
    assert!(ran.replica_hours > 0.2 && ran.replica_hours < 0.6, "{}", ran.replica_hours);
    assert!((ran.requests - (120.0 * 150.0 + 360.0 * 12.5)).abs() < 20.0, "{}", ran.requests);
}

#[test]
fn too_few_replicas_queue_and_give_up() {
    let p = policy("{preset: standard, max: 1}");
    let ran = simulate(&Replay::new(&p, SERVER), &trace(600, |_| 6000.0));
    assert!((ran.most_queued - 1500.0).abs() < 60.0, "30 s of work wait at most: {}", ran.most_queued);
    assert!(ran.given_up > 20_000.0 && ran.most_replicas == 1);
}

#[test]
fn an_idle_deployment_sleeps_and_costs_nothing_meanwhile() {
    let p = policy("{min: 0, idleTimeout: 60, evaluateEvery: 10}");
    let mut replay = Replay::new(&p, SERVER);
    replay.price = Some(2.0);
    let ran =
        simulate(&replay, &trace(3600, |at| if at < 60.0 || (1800.0..1860.0).contains(&at) { 30.0 } else { 0.0 }));
    assert_eq!(ran.sleeps, 2);
    assert!((ran.replica_hours - 240.0 / 3600.0).abs() < 0.01, "{}", ran.replica_hours);
    assert_eq!(ran.cost, Some(ran.replica_hours * 2.0));
    assert_eq!(ran.ticks.iter().find(|t| t.at > 900.0).unwrap().replicas, 0);
}

#[test]
fn traces_are_read_with_seconds_or_dates() {
    let (points, begin) = read_trace("time,requests,cpu\n10,5\n20.5, 7 ,x\n\n# end\n").unwrap();
    assert_eq!((points[1].at, points[1].requests, begin), (10.5, 7.0, 0));
    let (points, begin) = read_trace("2026-01-31T12:00:00Z,5\n2026-01-31T12:01:00Z,6\n").unwrap();
    assert_eq!((points[1].at, begin), (60.0, 1_769_860_800));
    let bad = |text: &str| read_trace(text).unwrap_err().to_string();
    assert_eq!(bad("time,requests\n1,x\n"), "line 2: 'x' is no number of requests");
    assert_eq!(bad("1,2\n1,3\n"), "line 2: its time is not later than that of the row before");
    assert_eq!(bad("when,2\n"), "line 1: 'when' is no time (seconds, or 2026-01-31T12:00:00Z)");
    assert_eq!(bad("1,2\n"), "line 1: a trace has at least two rows");
    assert_eq!(bad("1,-2\n2,3\n"), "line 1: '1,-2' is out of bounds");
}

#[test]
fn a_history_is_replayed_with_what_was_known_at_each_moment() {
    let mut history = History::default();
    for number in 0..HISTORY_BUCKETS {
        let busy = (96..216).contains(&(number % 288));
        let requests = if busy { 400.0 } else { 10.0 };
        history.set(number, Bucket { requests, peak: requests, cores: 0.0 });
    }
    let p = policy("{preset: standard, min: 1, max: 10, requestsUp: 50, requestsDown: 10, predictive: true}");
    let day: Vec<Point> = (7 * 288..8 * 288)
        .map(|number| Point {
            at: ((number - 7 * 288) * BUCKET_SECONDS) as f64,
            requests: if (96..216).contains(&(number % 288)) { 400.0 } else { 10.0 },
        })
        .collect();
    let mut replay = Replay::new(&p, Server { start_seconds: 60.0, ..SERVER });
    replay.need = Some(50.0);
    replay.begin = 7 * 288 * BUCKET_SECONDS;
    let reactive = simulate(&replay, &day);
    replay.history = Some((&history, 50.0));
    let ahead = simulate(&replay, &day);
    assert!(ahead.short_seconds < reactive.short_seconds / 10.0, "{} {}", ahead.short_seconds, reactive.short_seconds);
    assert!(ahead.steps[0].3.contains("the forecast asks for 8"), "{:?}", ahead.steps[0]);
}
