//! The console over a link that is slow, loses packets, is half open and gone, for minutes.

use std::time::Duration;

use crate::Options;
use crate::report::{Bar, Sample, Section, percentile};

pub fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let how_long = Duration::from_secs(options.minutes * 60);
    let mut outcome = sigil_tests::flaps::run(&options.runtime, how_long, 500)?;
    section.row("lines that came", "", Sample::one(outcome.lines as f64), None, Bar::AtLeast(1.0));
    section.row(
        "lines lost, repeated or out of order",
        "",
        Sample::one(outcome.wrong.len() as f64),
        None,
        Bar::AtMost(0.0),
    );
    let key = percentile(&mut outcome.keys, 0.95);
    section.row("key to first byte meanwhile, p95", "ms", Sample::one(key), None, Bar::AtMost(16.0));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (early, late) = (mib(outcome.memory.0), mib(outcome.memory.1));
    // what the lines themselves take: about 100 bytes, and 96 for each
    let grown = late - early - mib(outcome.lines * 9 / 10 * 200);
    section.row("memory that grew beyond the lines", "MiB", Sample::one(grown), None, Bar::AtMost(8.0));
    for wrong in outcome.wrong.iter().take(5) {
        section.note(wrong.clone());
    }
    section.note(format!(
        "{} minutes; 250 ms each way, 5 % of packets lost, half open and cut every few seconds: {} connections",
        options.minutes, outcome.connections
    ));
    Ok(())
}
