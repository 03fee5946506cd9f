//! A hundred kill -9; the rounds themselves are `sigil_tests::kills`, which the engine suite runs a few of.

use crate::Options;
use crate::report::{Bar, Sample, Section};

pub fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let kills = sigil_tests::kills::run(options.kills, &mut |text| section.say(&text));
    let back = kills.back.iter().map(|d| d.as_secs_f64() * 1e3);
    section.row(
        &format!("lost, doubled or not as acknowledged after {} kill -9", kills.kills),
        "findings",
        Sample::one(kills.findings.len() as f64),
        None,
        Bar::AtMost(0.0),
    );
    section.row("kill to an answer of the next agent", "ms", Sample::of(back)?, None, Bar::None);
    section.note(format!(
        "{} changes acknowledged, {} kills during a change; {} log lines printed and read back, {} of them told lost",
        kills.acknowledged, kills.in_change, kills.lines, kills.told_lost
    ));
    for finding in kills.findings {
        section.note(finding);
    }
    Ok(())
}
