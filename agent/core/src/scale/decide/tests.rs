use proptest::prelude::*;

use super::*;
use crate::scale::{Point, Replay, Server, simulate};

fn policy(text: &str) -> Policy {
    Policy::read("policy.yaml", text, None).unwrap()
}

fn signals(ready: u32, cpu: f64, requests: f64) -> Signals {
    Signals {
        ready,
        cpu: Some(cpu),
        memory: Some(0.0),
        requests,
        p95: Some(5.0),
        errors: Some(0.0),
        ..Signals::default()
    }
}

/// A decision long after anything happened.
fn quiet(policy: &Policy, signals: &Signals, replicas: u32) -> Decision {
    let mut memory = Memory { since: Some(0), ..Memory::default() };
    memory.wishes.push_back((0, 1));
    decide(&basis(policy, signals, replicas, 10_000_000), &memory)
}

fn basis<'a>(policy: &'a Policy, signals: &'a Signals, replicas: u32, now: i64) -> Basis<'a> {
    Basis { policy, signals: Some(signals), replicas, ceiling: None, price: None, forecast: None, now }
}

fn by(d: &Decision) -> Vec<HeldBy> {
    d.held.iter().map(|held| held.by).collect()
}

#[test]
fn single_goes_up_above_any_target_and_down_only_below_all() {
    let p = policy("{preset: standard, memory: 50}");
    let to = |cpu, memory| {
        let s = Signals { memory: Some(memory), ..signals(2, cpu, 0.0) };
        quiet(&p, &s, 2).to
    };
    assert_eq!(to(70.1, 10.0), 3);
    assert_eq!(to(70.0, 10.0), 2, "at the target is not above it");
    assert_eq!(to(10.0, 51.0), 3);
    assert_eq!(to(10.0, 29.9), 2, "two replicas' memory on one would be above its target");
    assert_eq!(to(10.0, 24.9), 1);
    assert_eq!(to(51.0, 10.0), 2, "within 20 points of the target");
    assert_eq!(to(34.0, 10.0), 1);
    assert_eq!(to(49.0, 10.0), 2, "fewer would be above it");
    let d = quiet(&p, &signals(2, 95.0, 0.0), 2);
    assert_eq!(d.reason, "CPU, 95.0 %, is above 70.0 %");
}

#[test]
fn requests_count_a_replica() {
    let p = policy("router");
    assert_eq!(quiet(&p, &signals(1, 5.0, 50.0), 1).to, 1);
    assert_eq!(quiet(&p, &signals(1, 5.0, 51.0), 1).to, 2);
    assert_eq!(quiet(&p, &signals(1, 5.0, 149.0), 1).to, 3);
    let d = quiet(&p, &signals(1, 5.0, 500.0), 1);
    assert_eq!((d.to, by(&d)), (3, vec![HeldBy::Bounds]), "{:?}", d.held);
    assert_eq!(quiet(&p, &signals(3, 5.0, 29.0), 3).to, 2, "one at a time");
    assert_eq!(quiet(&p, &signals(3, 5.0, 31.0), 3).to, 3);
}

#[test]
fn times_and_errors_are_targets_too() {
    let p = policy("{preset: standard, responseTime: 100, errorRate: 2}");
    let with = |p95: Option<f64>, errors: Option<f64>, in_flight: u64| {
        quiet(&p, &Signals { p95, errors, in_flight, ..signals(2, 10.0, 10.0) }, 2)
    };
    assert_eq!(with(Some(101.0), Some(0.0), 1).to, 3);
    assert_eq!(with(Some(9000.0), Some(0.0), 1).to, 4, "twice as many at once at most: a time is no amount of work");
    assert_eq!(with(Some(90.0), Some(0.0), 1).to, 2);
    assert_eq!(with(Some(79.0), Some(0.0), 1).to, 1);
    assert_eq!(with(Some(5.0), Some(2.5), 1).to, 3);
    assert_eq!(with(Some(5.0), Some(1.9), 1).to, 2);
    assert_eq!(with(None, None, 0).to, 1, "no calls, no slow ones");
    let hanging = with(None, None, 7);
    assert_eq!((hanging.to, by(&hanging)), (2, vec![HeldBy::Unknown]), "calls hang, none has ended");
    let zero = policy("{preset: standard, errorRate: 0}");
    assert_eq!(quiet(&zero, &Signals { errors: Some(0.1), ..signals(1, 10.0, 1.0) }, 1).to, 2);
    assert_eq!(quiet(&zero, &signals(2, 10.0, 1.0), 2).to, 1);
}

#[test]
fn the_weighted_score_is_that_of_the_product() {
    let p = policy("{mode: weighted, preset: standard, cpu: 50, memory: 50, responseTime: 100, errorRate: 10}");
    let score = |cpu, memory, p95, errors| {
        let s = Signals { memory: Some(memory), p95: Some(p95), errors: Some(errors), ..signals(2, cpu, 0.0) };
        let d = quiet(&p, &s, 2);
        (d.measures[0].value.unwrap(), d.to)
    };
    let near = |(score, to): (f64, u32), expected: f64, replicas| {
        assert!((score - expected).abs() < 1e-9 && to == replicas, "{score} {to}");
    };
    near(score(50.0, 0.0, 0.0, 0.0), 0.4, 2);
    near(score(50.0, 50.0, 0.0, 0.0), 0.7, 2);
    near(score(50.0, 50.0, 100.0, 10.0), 1.0, 3);
    near(score(100.0, 0.0, 0.0, 0.0), 0.8, 3);
    near(score(100.0, 100.0, 900.0, 0.0), 1.8, 5);
    near(score(36.0, 0.0, 0.0, 0.0), 0.288, 1);
    // a target of 0 counts twice when it is exceeded; shares without a target fall to the others
    let p = policy("{mode: weighted, preset: standard, errorRate: 0, weights: {errors: 0.5, responseTime: 0.5}}");
    let d = quiet(&p, &Signals { errors: Some(0.1), ..signals(1, 0.0, 0.0) }, 1);
    assert_eq!((d.measures[0].value, d.to), (Some(2.0), 3));
    let d = quiet(&p, &signals(2, 99.0, 0.0), 2);
    assert_eq!((d.measures[0].value, d.to), (Some(0.0), 1));
}

#[test]
fn refusals_say_why() {
    let p = policy("{preset: standard, max: 40, upCooldown: 60, downCooldown: 300, stabilisation: 120, stepUp: 4}");
    let (busy, idle) = (signals(2, 100.0, 0.0), signals(2, 1.0, 0.0));
    let mut memory = Memory::default();
    memory.stepped(0, 1, 2);
    let d = decide(&basis(&p, &busy, 2, 20_000), &memory);
    assert_eq!((d.to, by(&d)), (2, vec![HeldBy::Cooldown]));
    assert_eq!(d.held[0].why, "3 wanted; the cool-down for steps up ends in 40 s");
    assert_eq!(decide(&basis(&p, &busy, 2, 60_000), &memory).to, 3);
    let d = decide(&basis(&p, &idle, 2, 200_000), &memory);
    assert_eq!((d.to, by(&d)), (2, vec![HeldBy::Cooldown]));
    let d = decide(&basis(&p, &idle, 2, 300_000), &memory);
    assert_eq!((d.to, by(&d)), (2, vec![HeldBy::Stabilisation]), "nothing is known of the last two minutes");
    for now in [290_000, 320_000] {
        let seen = decide(&basis(&p, if now == 320_000 { &busy } else { &idle }, 2, now), &Memory::default());
        memory.note(now, &Decision { to: 2, ..seen });
    }
    let d = decide(&basis(&p, &idle, 2, 430_000), &memory);
    assert_eq!((d.to, by(&d)), (2, vec![HeldBy::Stabilisation]), "{:?}", d.held);
    memory.note(430_000, &d);
    assert_eq!(decide(&basis(&p, &idle, 2, 551_000), &memory).to, 1);
    let d = quiet(&policy("{max: 40, requestsUp: 10, requestsDown: 1, stepUp: 4}"), &signals(1, 0.0, 200.0), 1);
    assert_eq!((d.to, d.wanted, by(&d)), (5, 20, vec![HeldBy::Step]));
    let blind = Signals { cpu: None, ..idle };
    let d = quiet(&p, &blind, 2);
    assert_eq!((d.to, by(&d)), (2, vec![HeldBy::Unknown]));
    let starting = Signals { ready: 1, cpu: Some(100.0), ..busy };
    let d = quiet(&p, &starting, 3);
    assert_eq!((d.to, by(&d)), (3, vec![HeldBy::Starting]));
    let d = decide(&Basis { ceiling: Some((1, "an exclusive volume")), ..basis(&p, &busy, 2, 0) }, &Memory::default());
    assert_eq!((d.to, d.reason.as_str()), (1, "an exclusive volume: at most 1"));
    let none = decide(&Basis { signals: None, ..basis(&p, &busy, 2, 0) }, &Memory::default());
    assert_eq!((none.to, none.reason.as_str()), (2, "no replica is ready: there is nothing to measure"));
}

#[test]
fn the_cost_cap_is_for_what_a_step_adds() {
    let p = policy("{max: 40, requestsUp: 10, requestsDown: 1, stepUp: 40, costCap: 0.05}");
    let s = signals(2, 0.0, 90.0);
    let d = |price| decide(&Basis { price, ..basis(&p, &s, 2, 0) }, &Memory::default());
    assert_eq!((d(Some(0.01)).to, by(&d(Some(0.01)))), (7, vec![HeldBy::Cost]));
    assert_eq!(d(Some(0.06)).to, 2);
    assert_eq!(d(None).to, 9);
    assert_eq!(d(Some(0.001)).to, 9);
}

#[test]
fn a_forecast_adds_before_and_keeps_what_the_hour_needs() {
    let p = policy("{preset: standard, predictive: true}");
    let forecast = |replicas, keep| Forecast { replicas, keep, why: "as yesterday".into() };
    let with = |f: &Forecast, s: &Signals, n| {
        let mut memory = Memory { since: Some(0), ..Memory::default() };
        memory.wishes.push_back((0, 1));
        decide(&Basis { forecast: Some(f), ..basis(&p, s, n, 10_000_000) }, &memory)
    };
    assert_eq!(with(&forecast(3, 4), &signals(1, 40.0, 0.0), 1).to, 3);
    let d = with(&forecast(1, 2), &signals(2, 1.0, 0.0), 2);
    assert_eq!((d.to, by(&d)), (2, vec![HeldBy::Forecast]));
    assert_eq!(with(&forecast(1, 1), &signals(2, 1.0, 0.0), 2).to, 1);
    assert_eq!(with(&forecast(1, 1), &signals(2, 99.0, 0.0), 2).to, 3, "what is there counts more than a forecast");
}

#[test]
fn steps_of_an_earlier_agent_count_and_a_clock_that_was_set_back_blocks_for_one_cool_down() {
    let p = policy("{preset: standard, upCooldown: 60}");
    let busy = signals(1, 100.0, 0.0);
    let resumed = |age: i64| Memory::resumed(5_000, [(age, 1, 2)]);
    let to = |memory: &Memory, now: i64| decide(&basis(&p, &busy, 1, now), memory).to;
    assert_eq!(to(&resumed(30_000), 5_000), 1);
    assert_eq!(to(&resumed(30_000), 35_000), 2);
    assert_eq!(to(&resumed(86_400_000), 5_000), 2);
    let back = resumed(-31_536_000_000);
    assert_eq!((to(&back, 5_000), to(&back, 64_999), to(&back, 65_000)), (1, 1, 2));
}

/// Policies of all kinds.
fn policies() -> impl Strategy<Value = Policy> {
    let names = prop::sample::select(vec!["router", "standard", "processor", "compute"]);
    (names, 0_u32..5, 0_u32..12, 0_u32..400, 0_u32..400, 0_u32..300, (1_u32..6, 1_u32..6), any::<bool>(), 1_u32..120)
        .prop_map(|(name, min, more, up, down, stabilisation, (step_up, step_down), weighted, every)| Policy {
            min,
            max: (min + more).max(1),
            up_cooldown: up,
            down_cooldown: down,
            stabilisation,
            step_up,
            step_down,
            evaluate_every: every,
            response_time: Some(200),
            error_rate: Some(5.0),
            mode: if weighted { Mode::Weighted } else { Mode::Single },
            ..Policy::preset(name).unwrap()
        })
}

fn loads() -> impl Strategy<Value = Signals> {
    let figure = || prop_oneof![Just(0.0), 0.0..200.0_f64, Just(100.0)];
    (0_u32..14, figure(), figure(), 0.0..2000.0_f64, 0.0..2000.0_f64, figure(), 0_u64..9).prop_map(
        |(ready, cpu, memory, requests, p95, errors, in_flight)| Signals {
            ready,
            cpu: Some(cpu),
            memory: Some(memory),
            requests,
            p50: Some(p95 / 2.0),
            p95: Some(p95),
            errors: Some(errors),
            in_flight,
            sessions: 0,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn decisions_never_leave_the_bounds(
        p in policies(),
        loads in prop::collection::vec((loads(), 1_i64..600_000), 1..60),
        begin in 0_u32..20,
        ceiling in prop::option::of(1_u32..8),
    ) {
        let (least, most) = p.awake();
        let most = ceiling.map_or(most, |n| most.min(n));
        let (mut replicas, mut memory, mut now) = (begin, Memory::default(), 0);
        for (s, wait) in &loads {
            now += wait;
            let ceiling = ceiling.map(|n| (n, "the host"));
            let d = decide(&Basis { ceiling, ..basis(&p, s, replicas, now) }, &memory);
            memory.note(now, &d);
            prop_assert_eq!(d.from, replicas);
            prop_assert!(d.to >= least.min(most) && d.to <= most, "{} to {}: {:?}", least, most, d);
            prop_assert!(!d.reason.is_empty() && d.held.iter().all(|held| !held.why.is_empty()));
            replicas = d.to;
        }
    }

    #[test]
    fn more_load_never_means_fewer_replicas(
        p in policies(),
        s in loads(),
        more in (0.0..100.0_f64, 0.0..100.0_f64, 0.0..900.0_f64, 0.0..900.0_f64, 0.0..50.0_f64),
        replicas in 1_u32..14,
        last in 0_i64..800_000,
    ) {
        let busier = Signals {
            cpu: s.cpu.map(|v| v + more.0),
            memory: s.memory.map(|v| v + more.1),
            requests: s.requests + more.2,
            p95: s.p95.map(|v| v + more.3),
            errors: s.errors.map(|v| v + more.4),
            ..s
        };
        let mut memory = Memory { since: Some(0), ..Memory::default() };
        memory.stepped(1_000_000 - last, 1, replicas);
        let less = decide(&basis(&p, &s, replicas, 1_000_000), &memory);
        let busy = decide(&basis(&p, &busier, replicas, 1_000_000), &memory);
        prop_assert!(busy.to >= less.to && busy.wanted >= less.wanted, "{:?}\n{:?}", less, busy);
    }

    /// The host's clock jumps as it likes, the agent ends and begins again: no step comes before its cool-down, as a watch
    /// tells it that nobody sets, but where the host's clock was set forward while no agent ran; and none is late for more
    /// than one cool-down.
    #[test]
    fn cool_downs_hold_whatever_the_clock_does(
        p in policies(),
        turns in prop::collection::vec((loads(), 1_i64..200_000, -900_000_000_i64..900_000_000, 0_u8..12), 1..80),
    ) {
        let (mut replicas, mut memory) = (p.awake().0, Memory::default());
        let (mut watch, mut wall, mut began) = (0_i64, 1_700_000_000_000_i64, 0_i64);
        let mut steps: Vec<(i64, i64, u32, u32)> = Vec::new();
        for (s, wait, jump, event) in &turns {
            watch += wait;
            wall += wait;
            match event {
                // set while the agent runs
                0..=3 => wall += jump,
                // begun again, the clock set back at most
                4 => {
                    wall -= jump.abs();
                    began = watch;
                    let ages = steps.iter().map(|(_, at, from, to)| (wall - at, *from, *to)).collect::<Vec<_>>();
                    memory = Memory::resumed(0, ages);
                    // a step whose stamp lies before a jump forward looks older than it is: the room keeps none of those
                    if steps.last().is_some_and(|(at, stamp, ..)| wall - stamp > watch - at) {
                        memory = Memory::resumed(0, steps.iter().map(|(at, _, from, to)| (watch - at, *from, *to)));
                    }
                }
                _ => {}
            }
            let now = watch - began;
            let d = decide(&basis(&p, s, replicas, now), &memory);
            memory.note(now, &d);
            if d.to != d.from {
                if let Some((at, ..)) = steps.last() {
                    let cooldown = if d.to > d.from { p.up_cooldown } else { p.down_cooldown };
                    prop_assert!(watch - at >= i64::from(cooldown) * 1000, "{} ms after the last: {:?}", watch - at, d);
                }
                steps.push((watch, wall, d.from, d.to));
            }
            replicas = d.to;
        }
    }

    /// Whatever the load does, steps reverse at most once in a cool-down.
    #[test]
    fn it_does_not_flap(
        requests in prop::collection::vec(0.0..3000.0_f64, 4..60),
        cooldown in 5_u32..120,
    ) {
        let p = Policy { up_cooldown: cooldown, down_cooldown: cooldown * 2, evaluate_every: 5, stabilisation: 15, max: 20, ..Policy::default() };
        let trace: Vec<Point> =
            requests.iter().enumerate().map(|(i, r)| Point { at: i as f64 * 20.0, requests: *r }).collect();
        let server = Server { capacity: 120.0, time_ms: 20.0, start_seconds: 2.0 };
        let ran = simulate(&Replay::new(&p, server), &trace);
        for pair in ran.steps.windows(2) {
            let [(at, ..), (next, from, to, _)] = pair else { continue };
            let least = if to > from { p.up_cooldown } else { p.down_cooldown };
            prop_assert!(next - at >= f64::from(least), "{:?}", pair);
        }
        let most = requests.len() as f64 * 20.0 / f64::from(cooldown) + 1.0;
        prop_assert!(f64::from(ran.reversals) <= most);
    }
}
