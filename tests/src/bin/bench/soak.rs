//! 1,000 clients of 20 deployments while replicas are killed and releases change; `sigil_tests::soak` does it, and a minute
//! of it is a test.

use std::time::Duration;

use sigil_tests::soak::{Plan, run as soak};

use crate::Options;
use crate::report::{Bar, Sample, Section};

/// Resident memory at the end over that of the second quarter: flat, but for what an allocator keeps.
const FLAT: f64 = 1.2;

pub fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let time = Duration::from_secs(options.minutes * 60);
    let soak = soak(Plan::minutes(time), &mut |text| section.say(&text));
    let (early, late) = soak.growth();
    let one = |value: f64| Sample::one(value);
    let wrong = "answers that were wrong, another's, lost or doubled";
    section.row(wrong, "findings", one(soak.findings.len() as f64), None, Bar::AtMost(0.0));
    section.row("calls answered", "calls", one(soak.calls as f64), None, Bar::None);
    section.row("resident memory in the second quarter", "MiB", one(early), None, Bar::None);
    section.row("resident memory in the last quarter", "MiB", one(late), None, Bar::AtMost(early * FLAT));
    section.row("the longest call that was answered", "s", one(soak.longest.as_secs_f64()), None, Bar::None);
    section.note(format!(
        "{} min: {} replicas killed, {} releases rolled, {} sessions, {} events; clients were told {:?}",
        options.minutes, soak.kills, soak.rolls, soak.sessions, soak.events, soak.told
    ));
    for finding in soak.findings {
        section.note(finding);
    }
    Ok(())
}
