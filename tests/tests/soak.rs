//! A minute of what operators do to a thousand clients; `scripts/bench soak --minutes 60` takes an hour of it.

use std::time::Duration;

use sigil_tests::soak::{Plan, run};

#[test]
fn nobody_gets_a_wrong_answer_while_replicas_die_and_releases_change() {
    let soak = run(Plan::minutes(Duration::from_secs(60)), &mut |text| println!("{text}"));
    println!("{soak:#?}");
    assert_eq!(soak.findings, Vec::<String>::new());
    assert!(soak.kills >= 5 && soak.rolls >= 2, "{} kills, {} releases", soak.kills, soak.rolls);
    assert!(soak.calls > 3_000 && soak.events > 200, "{} calls, {} events", soak.calls, soak.events);
    let (early, late) = soak.growth();
    assert!(late < early * 1.2 + 16.0, "resident memory grew from {early:.1} to {late:.1} MiB");
}
