use super::*;
use crate::engine::fake::Fake;
use crate::probe::kept::Files;

fn id() -> DeploymentId {
    ulid::Ulid::generate().into()
}

#[test]
fn calls_by_the_hour_are_there_again_for_thirty_days() {
    let dir = tempfile::tempdir().unwrap();
    let (files, one) = (Files::new(dir.path()), id());
    for hour in 0..2000 {
        files.put_hour(one, hour, Calls { all: 10, failed: 1 }).unwrap();
    }
    let files = Files::new(dir.path());
    let [day, week, month] = files.calls(one, 1999, WINDOWS);
    assert_eq!((day.all, week.all, month.all), (240, 1680, 7200));
    assert_eq!(files.calls(one, 1999 + 12, [24]), [Calls { all: 120, failed: 12 }], "half a day was quiet");
    assert_eq!(files.hour(one, 1999), Calls { all: 10, failed: 1 });
    assert_eq!(files.calls(id(), 1999, WINDOWS), [Calls::default(); 3]);
}

struct Lab {
    shared: Shared,
    calls: Arc<Mutex<Vec<(DeploymentId, Calls)>>>,
    dir: tempfile::TempDir,
}

async fn lab() -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let calls = Arc::new(Mutex::new(Vec::new()));
    Lab { shared: shared(dir.path(), calls.clone()).await, calls, dir }
}

async fn shared(dir: &std::path::Path, calls: Arc<Mutex<Vec<(DeploymentId, Calls)>>>) -> Shared {
    let stop = CancellationToken::new();
    let (_, output) = tokio::sync::mpsc::channel(1);
    Shared::new(Deps {
        routes: watch::channel(Arc::default()).1,
        tail: Tail::spawn(dir, sigil_config::agent::LogsConfig::default(), output, stop).await.unwrap(),
        engine: Arc::new(Fake::new(ulid::Ulid::generate().into())),
        audit: Audit::open(dir).unwrap(),
        data_dir: dir.to_owned(),
        asleep: Arc::new(|_| false),
        container: Arc::new(|_, _| None),
        counted: Arc::new(move || calls.lock().unwrap().clone()),
        look: Arc::new(|_, _| Doing::default()),
        discover: Arc::new(|_, _| Box::pin(async { None })),
    })
}

#[tokio::test]
async fn calls_count_once_over_hours_and_agents() {
    let lab = lab().await;
    let one = id();
    let say = |all, failed| *lab.calls.lock().unwrap() = vec![(one, Calls { all, failed })];
    let keep = |shared: &Shared, hour| {
        for (id, hour, calls) in shared.count(hour) {
            shared.files.put_hour(id, hour, calls).unwrap();
        }
    };
    say(10, 1);
    keep(&lab.shared, 100);
    keep(&lab.shared, 100);
    say(15, 1);
    keep(&lab.shared, 100);
    assert_eq!(lab.shared.files.hour(one, 100), Calls { all: 15, failed: 1 });
    say(20, 2);
    keep(&lab.shared, 101);
    assert_eq!(lab.shared.files.hour(one, 101), Calls { all: 5, failed: 1 });
    // the next agent counts from nothing, in the same hour
    say(2, 0);
    let next = shared(lab.dir.path(), lab.calls.clone()).await;
    keep(&next, 101);
    assert_eq!(next.files.hour(one, 101), Calls { all: 7, failed: 1 });
    assert_eq!(next.files.calls(one, 101, [24]), [Calls { all: 22, failed: 2 }]);
}

#[test]
fn what_was_done_outlives_who_it_was_done_to() {
    let (one, [first, second, third]) = (id(), [1, 2, 3].map(|n| InstanceId(ulid::Ulid(n))));
    let mut hangs = Course::default();
    (0..3).for_each(|at| drop(hangs.take(at, &Outcome::Failed("no answer".into()))));
    let mut treated = Treated::default();
    let due = |treated: &mut Treated, instance, at, remedy| {
        treated.seen(one, instance);
        let treatment = treated.of.entry(instance).or_default();
        let due = treatment.backoff.due(at, remedy, &hangs, false);
        treatment.times += u32::from(due);
        due
    };
    assert!(due(&mut treated, first, 0, Remedy::Restart));
    // it starts again, and is not watched meanwhile
    treated.forget(1000, |_| false);
    assert!(!due(&mut treated, first, 29_999, Remedy::Restart), "the second time waits");
    assert!(due(&mut treated, first, 30_000, Remedy::Restart));
    // another takes its place, and waits as it would have
    treated.leaves(one, first);
    assert!(!due(&mut treated, second, 89_999, Remedy::Replace));
    assert!(due(&mut treated, second, 90_000, Remedy::Replace));
    assert_eq!(treated.of[&second].times, 3);
    assert!(due(&mut treated, third, 90_000, Remedy::Replace), "a replica of its own");
    // hours later nothing of it counts
    treated.forget(90_000 + 2 * 3_600_000, |_| false);
    assert!(treated.of.is_empty() && treated.left.is_empty());
}

#[test]
fn turns_are_there_again_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (files, one) = (Files::new(dir.path()), id());
    let turn = |second: i64, done: &str| Turned {
        at: Timestamp::from_second(second).unwrap(),
        instance: InstanceId(ulid::Ulid(1)),
        from: State::Degraded,
        to: State::Unhealthy,
        why: "no answer within 10 s".into(),
        done: done.into(),
    };
    for second in 0..3000 {
        files.turned(one, turn(second, if second % 2 == 0 { "" } else { "restarted" })).unwrap();
    }
    let files = Files::new(dir.path());
    assert_eq!(files.turns(one, 2), [turn(2999, "restarted"), turn(2998, "")]);
    let bytes: u64 =
        std::fs::read_dir(dir.path().join("health")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 3 * (64 << 10), "{bytes}");
    files.prune(|_| false);
    assert_eq!(files.turns(one, 2), []);
}
