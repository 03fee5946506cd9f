//! What the made-up agent says to sheets.

use super::super::sheet::{Look, Seen};
use super::at;
use crate::link::alerts::{Alert, Alerts};
use crate::link::health::{Health, Life, Line, Probe, Replica, Turn, Window};
use sigil_core::health::Calls;

pub(crate) fn seen(what: &Look) -> Seen {
    match what {
        Look::Overview => Seen::Overview(alerts()),
        Look::Health { .. } => Seen::Health(Box::new(health())),
    }
}

pub(crate) fn alerts() -> Alerts {
    let alert = |kind: &str, about: &str, text: &str, ended| Alert {
        kind: kind.into(),
        about: about.into(),
        text: text.into(),
        since: Some(at(-1_200)),
        ended,
    };
    Alerts {
        firing: vec![alert("failed", "search", "search has failed for 20 minutes", None)],
        ended: vec![alert("disk", "host", "the data directory has less than 5 % left", Some(at(-300)))],
    }
}

pub(crate) fn health() -> Health {
    let replica = |instance: &str, state: &str, why: &str, ms| Replica {
        instance: instance.into(),
        state: state.into(),
        why: why.into(),
        ms,
        at: Some(at(-5)),
        remedies: u32::from(state != "healthy"),
    };
    let window = |hours, all, failed| {
        let calls = Calls { all, failed };
        Window { hours, calls, available: calls.available(), budget_left: calls.budget_left(99.0) }
    };
    let probe = |n: i64| {
        let (outcome, why) = match n % 37 {
            7 => ("failed", "no answer in 5 s"),
            9 => ("busy", "at work: 3 calls under way"),
            11 => ("poor", "answered in 1.2 s"),
            _ => ("good", ""),
        };
        Probe {
            at: Some(at(-30 * n)),
            instance: "01KAMN8ZQ4XJ7T6W2D5R9V0B3C".into(),
            outcome: outcome.into(),
            why: why.into(),
            ms: if outcome == "failed" { 0.0 } else { 3.0 + (n * 7 % 40) as f64 },
        }
    };
    let turn = |seconds, from: &str, to: &str, why: &str, done: &str| Turn {
        at: Some(at(seconds)),
        instance: "01KAMN8ZQ4XJ7T6W2D5R9V0B3C".into(),
        from: from.into(),
        to: to.into(),
        why: why.into(),
        done: done.into(),
    };
    let line = |stream, line: &str| Line { at: Some(at(-400)), stream, line: line.into() };
    Health {
        name: "git".into(),
        state: "degraded".into(),
        replicas: vec![
            replica("01KAMN8ZQ4XJ7T6W2D5R9V0B3C", "healthy", "", 3.0),
            replica("01KAMN8ZQ4XJ7T6W2D5R9V0B3D", "unhealthy", "no answer in 5 s, three times", 0.0),
        ],
        availability: vec![window(24, 1_204, 3), window(168, 9_120, 80), window(720, 9_120, 80)],
        target: 99.0,
        probes: (0..60).map(probe).collect(),
        turns: vec![
            turn(-210, "unhealthy", "unhealthy", "it did not answer three times", "restarted"),
            turn(-215, "healthy", "unhealthy", "no answer in 5 s, three times", ""),
        ],
        lives: vec![Life {
            at: Some(at(-400)),
            began: Some(at(-700)),
            lasted_ms: Some(300_000),
            instance: "01KAMN8ZQ4XJ7T6W2D5R9V0B3D".into(),
            release: 3,
            served: true,
            code: Some(137),
            oom: true,
            why: "the kernel killed it: it had reached its memory limit of 256 MiB".into(),
            output: vec![line("stdout", "reading the index"), line("stderr", "allocating \x1b[2J 300 MiB")],
            cut: true,
        }],
    }
}
