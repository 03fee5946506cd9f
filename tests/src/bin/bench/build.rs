//! What is shipped, and what making it costs.

use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;
use sigil_tests::{Agent, binary, root};

use crate::Options;
use crate::report::{Bar, Sample, Section};

pub fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    for name in ["sigil-agent", "sigil"] {
        let size = std::fs::metadata(binary(name))?.len() as f64 / (1 << 20) as f64;
        section.row(&format!("{name}, binary"), "MiB", Sample::one(size), None, Bar::None);
    }
    // as an agent lays it out for its containers
    let agent = Agent::start();
    let mut init = None;
    for entry in std::fs::read_dir(agent.data().join("init"))? {
        init = std::fs::metadata(entry?.path().join("sigil-init")).ok().or(init);
    }
    let size = init.context("the agent lays out no init")?.len() as f64 / 1024.0;
    section.row("sigil-init, within sigil-agent", "KiB", Sample::one(size), None, Bar::None);
    drop(agent);
    if !options.cold {
        section.note("build from nothing: skipped (minutes of full load); --cold measures it");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let began = Instant::now();
    let built = Command::new("cargo")
        .args(["build", "--release", "--locked", "-q", "--bin", "sigil", "--bin", "sigil-agent"])
        .current_dir(root())
        .env("CARGO_TARGET_DIR", dir.path())
        .env("CARGO_INCREMENTAL", "0")
        .status()?;
    anyhow::ensure!(built.success(), "cargo build: {built}");
    let seconds = began.elapsed().as_secs_f64();
    section.row("build from nothing (crates downloaded already)", "s", Sample::one(seconds), None, Bar::None);
    Ok(())
}
