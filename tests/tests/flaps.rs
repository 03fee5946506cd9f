//! The console's link in bad weather. Ten minutes of it: `scripts/bench flaps`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

#[test]
fn no_line_is_lost_or_told_twice_and_no_key_waits_while_the_link_comes_and_goes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outcome = sigil_tests::flaps::run(&runtime, Duration::from_secs(20), 500).unwrap();
    let some: Vec<_> = outcome.wrong.iter().take(5).collect();
    assert!(some.is_empty(), "{} of {} lines: {some:#?}", outcome.wrong.len(), outcome.lines);
    assert!(outcome.lines > 1_000, "{}", outcome.lines);
    assert!(outcome.connections > 4, "the link was cut: {}", outcome.connections);
    // far above what is measured, and far below what a link that is waited for would take
    let slowest = outcome.keys.iter().copied().fold(0.0, f64::max);
    assert!(slowest < 1_500.0, "a key waited {slowest} ms");
}
