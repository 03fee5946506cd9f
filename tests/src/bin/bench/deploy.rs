//! From a source to the first answered tool call, beside the same by hand: `docker build` of the very Dockerfile that
//! Sigil generates, `docker run -i`, a handshake and the call over its pipes. No layer cache on either side; each round
//! has an agent of its own, so that nothing that Sigil fetched before helps it.

use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;
use sigil_tests::{Agent, docker};

use crate::mcp::{Piped, first_call};
use crate::report::{Bar, Sample, Section};
use crate::{Options, ROUNDS};

const SOURCE: &str = "pypi:mcp-server-time";
const TOOL: &str = "get_current_time";
const ARGUMENTS: &str = r#"{"timezone":"Europe/Paris"}"#;
const NAME: &str = "clock";

pub fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let (mut ours, mut by_hand, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    let (mut changed, mut changed_deploy, mut unchanged) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // who goes first alternates: the second finds warmer caches of the kernel
        if round % 2 == 0 {
            by_hand.push(hand(round)?);
        }
        let agent = Agent::start();
        let began = Instant::now();
        let deployed = agent.sigil(&["deploy", SOURCE, "--name", NAME, "--force"]).ok();
        call(options, &agent)?;
        ours.push(began.elapsed().as_secs_f64());
        steps.push(deployed.took.as_secs_f64());
        if round % 2 == 1 {
            by_hand.push(hand(round)?);
        }

        let env = format!("ROUND={round}");
        let began = Instant::now();
        let deployed = agent.sigil(&["deploy", SOURCE, "--name", NAME, "--env", &env]).ok();
        call(options, &agent)?;
        changed.push(began.elapsed().as_secs_f64());
        changed_deploy.push(deployed.took.as_secs_f64());
        anyhow::ensure!(serving(&agent)? == 2, "the changed configuration does not serve");

        let again = agent.sigil(&["deploy", SOURCE, "--name", NAME, "--env", &env, "-o", "json"]).ok();
        unchanged.push(again.took.as_secs_f64());
        anyhow::ensure!(again.json()["unchanged"] == true, "it says that something changed: {}", again.out);
        let releases = agent.sigil(&["releases", NAME, "-o", "json"]).ok().json();
        anyhow::ensure!(releases.as_array().map(Vec::len) == Some(2), "a release was made of nothing: {releases}");
        section.say(&format!(
            "round {}: by hand {:.2} s, sigil {:.2} s (deploy {:.2}), changed {:.2} s (deploy {:.2}), unchanged {:.2} s",
            round + 1, by_hand[round], ours[round], steps[round], changed[round], changed_deploy[round], unchanged[round],
        ));
        clean(&agent);
    }
    let hand = Some(("docker build + run", Sample::of(by_hand)?));
    section.row("source to first answered call", "s", Sample::of(ours)?, hand, Bar::RatioAtMost(1.3));
    section.row("of which until `sigil deploy` returned", "s", Sample::of(steps)?, None, Bar::None);
    section.row("changed configuration to next answered call", "s", Sample::of(changed)?, None, Bar::AtMost(2.0));
    section.row("of which until `sigil deploy` returned", "s", Sample::of(changed_deploy)?, None, Bar::None);
    section.row("nothing changed, no new release", "s", Sample::of(unchanged)?, None, Bar::None);
    section.note(format!(
        "{SOURCE}; both sides build without layer cache, through the same indexes; by hand on the host's network"
    ));
    Ok(())
}

fn call(options: &Options, agent: &Agent) -> anyhow::Result<()> {
    let answer = options.runtime.block_on(first_call(&agent.url(NAME), TOOL, ARGUMENTS))?;
    anyhow::ensure!(answer.to_string().contains("Europe/Paris"), "another answer: {answer}");
    Ok(())
}

fn serving(agent: &Agent) -> anyhow::Result<u64> {
    agent.ls(NAME).and_then(|row| row["release"].as_u64()).context("a release serves")
}

/// Seconds that the same takes by hand. On the host's network: an engine may have no bridge, and it is the faster way.
fn hand(round: usize) -> anyhow::Result<f64> {
    let dir = tempfile::tempdir()?;
    let agent = Agent::start();
    let planned = agent.sigil(&["build", SOURCE, "--dry-run", "-o", "json"]).ok().json();
    drop(agent);
    std::fs::write(dir.path().join("Dockerfile"), planned["dockerfile"].as_str().context("a Dockerfile")?)?;
    let tag = format!("sigil-bench-{}:{round}", std::process::id());
    let container = format!("sigil-bench-{}-{round}", std::process::id());
    let path = dir.path().to_string_lossy().into_owned();

    let began = Instant::now();
    docker(&["build", "-q", "--no-cache", "--force-rm", "--network", "host", "-t", &tag, &path]);
    let mut run = Command::new("docker");
    run.args(["run", "-i", "--rm", "--network", "host", "--name", &container, &tag]);
    let mut server = Piped::start(&mut run)?;
    let answer = server.first_call(TOOL, ARGUMENTS);
    let took = began.elapsed().as_secs_f64();

    drop(server);
    docker(&["rm", "-f", &container]);
    docker(&["rmi", "-f", &tag]);
    anyhow::ensure!(answer?.to_string().contains("Europe/Paris"), "another answer");
    Ok(took)
}

/// Removes what was built, with its layers: the test harness would keep them as a cache.
fn clean(agent: &Agent) {
    agent.sigil(&["rm", NAME, "--yes"]).ok();
    let filter = format!("label=sigil.agent={}", agent.id());
    let images = docker(&["image", "ls", "-q", "--filter", &filter]);
    let mut images: Vec<&str> = images.lines().collect();
    images.sort_unstable();
    images.dedup();
    for image in images {
        docker(&["rmi", "-f", image]);
    }
}
