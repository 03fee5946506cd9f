//! An agent that has nothing to do.

use std::time::{Duration, Instant};

use sigil_tests::{Agent, fixture};

use crate::Options;
use crate::machine::{cpu_seconds, memory_mib};
use crate::report::{Bar, Sample, Section};

const DEPLOYMENTS: usize = 20;
/// After the last deploy: drained instances go, caches are written, and a minute later what is in the image is read for its
/// bill of materials, once for each image.
const SETTLE: Duration = Duration::from_secs(90);
const WINDOW: Duration = Duration::from_secs(60);

pub fn run(_: &Options, section: &mut Section) -> anyhow::Result<()> {
    let agent = Agent::start();
    let echo = fixture("echo");
    for n in 0..DEPLOYMENTS {
        agent.sigil(&["deploy", &echo, "--name", &format!("echo-{n}")]).ok();
    }
    section.say(&format!("{DEPLOYMENTS} deployments are ready; {} s to settle", SETTLE.as_secs()));
    std::thread::sleep(SETTLE);
    let (began, before) = (Instant::now(), cpu_seconds(agent.pid())?);
    std::thread::sleep(WINDOW);
    let used = cpu_seconds(agent.pid())? - before;
    let percent = used / began.elapsed().as_secs_f64() * 100.0;
    anyhow::ensure!(agent.containers().len() == DEPLOYMENTS, "not all {DEPLOYMENTS} run");
    let mib = |key: &str| memory_mib(agent.pid(), key).map(Sample::one);
    section.row("CPU of the agent over 60 s", "% of a core", Sample::one(percent), None, Bar::AtMost(1.0));
    section.row("resident memory of the agent", "MiB", mib("VmRSS")?, None, Bar::AtMost(60e6 / 1_048_576.0));
    section.row("of which its own (anonymous)", "MiB", mib("RssAnon")?, None, Bar::None);
    section.note(format!("{DEPLOYMENTS} deployments of the HTTP fixture `echo`, each a container that runs"));
    Ok(())
}
