//! kill -9 of the agent at random moments, and whether anything that was acknowledged, ran or was printed is missing
//! afterwards. A few rounds are a test; `scripts/bench kills` does a hundred.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Agent, Dice, docker, eventually, fixture};

/// For whatever goes on by itself after a kill.
const LIMIT: Duration = Duration::from_secs(240);
/// A deploy takes two to four seconds: every part of it is hit.
const LONGEST_WAIT_MS: u64 = 3000;

/// What came of it.
#[derive(Debug, Default)]
pub struct Kills {
    /// Kills.
    pub kills: u32,
    /// Changes that were acknowledged: finished deploys, operations that had an id, restarts.
    pub acknowledged: u32,
    /// Kills that met a change under way.
    pub in_change: u32,
    /// From each kill until the new agent answered.
    pub back: Vec<Duration>,
    /// Numbered lines that the flooding server printed.
    pub lines: u64,
    /// Of those, lines that the log itself says are lost (the engine's capped log was full).
    pub told_lost: u64,
    /// What was wrong: nothing may be.
    pub findings: Vec<String>,
}

/// Kills an agent so often, while a server is deployed anew and restarted and another floods its log all the time.
///
/// # Panics
/// When the agent does not come back, or what it had begun never ends.
pub fn run(rounds: u32, say: &mut dyn FnMut(String)) -> Kills {
    let mut agent = Agent::start();
    let mut kills = Kills::default();
    let mut dice = Dice::new();
    say(format!("seed {}", dice.seed()));
    agent.sigil(&["deploy", &fixture("echo"), "--name", "app", "--env", "ROUND=none"]).ok();
    agent.sigil(&["deploy", &fixture("chatty"), "--name", "talk", "--env", "CHATTY_RATE=2000"]).ok();
    let talk = agent.session("talk");
    let mut value = "none".to_owned();
    for round in 0..rounds {
        let before = app_container(&agent);
        let wish = match dice.below(4) {
            0 | 1 => Wish::Deploy { wait: dice.below(2) == 0 },
            2 => Wish::Restart,
            _ => Wish::Nothing,
        };
        let next = format!("round-{round}");
        let env = format!("ROUND={next}");
        let echo = fixture("echo");
        let deploy = ["deploy", &echo, "--name", "app", "--env", &env];
        let child = match wish {
            Wish::Deploy { wait: true } => Some(agent.command(&deploy)),
            Wish::Deploy { wait: false } => {
                let mut command = agent.command(&deploy);
                command.arg("--no-wait");
                Some(command)
            }
            Wish::Restart => Some(agent.command(&["restart", "app"])),
            Wish::Nothing => None,
        };
        let mut child = child.map(|mut c| c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sigil starts"));
        let moment = Instant::now() + Duration::from_millis(dice.below(LONGEST_WAIT_MS));
        let mut ended = None;
        while Instant::now() < moment {
            if ended.is_none() {
                ended = child.as_mut().and_then(|c| c.try_wait().expect("a child"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let began = Instant::now();
        agent.kill();
        if let Some(child) = &mut child {
            let _killed = child.kill();
            let _reaped = child.wait();
        }
        agent.up();
        kills.kills += 1;
        kills.back.push(began.elapsed());
        let acknowledged = ended.is_some_and(|s| s.success());
        kills.acknowledged += u32::from(acknowledged);
        kills.in_change += u32::from(child.is_some() && (ended.is_none() || wish == Wish::Deploy { wait: false }));
        if let Some(status) = ended.filter(|s| !s.success()) {
            kills.findings.push(format!("round {round}: {wish:?} failed before the kill: {status}"));
        }
        settle(&agent);
        let now = environment(&agent);
        let is_deploy = matches!(wish, Wish::Deploy { .. });
        if is_deploy && acknowledged && now != next {
            kills.findings.push(format!("round {round}: an acknowledged {wish:?} is gone: '{now}' serves"));
        } else if now != value && !(is_deploy && now == next) {
            kills.findings.push(format!("round {round}: '{now}' serves, neither '{value}' nor '{next}'"));
        }
        value = now;
        if wish == Wish::Restart && acknowledged && app_container(&agent) == before {
            kills.findings.push(format!("round {round}: an acknowledged restart replaced nothing"));
        }
        if (round + 1) % 10 == 0 {
            say(format!("{} kills, {} findings", kills.kills, kills.findings.len()));
        }
    }
    drop(talk);
    agent.sigil(&["stop", "talk"]).ok();
    read_back(&agent, &mut kills);
    kills
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Deploy { wait: bool },
    Restart,
    Nothing,
}

/// Everything that was begun ends by itself, and each deployment has exactly one container that runs.
fn settle(agent: &Agent) {
    eventually("operations end", LIMIT, || {
        let ops = agent.sigil(&["ops", "-o", "json"]).ok().json();
        let open = ops.as_array()?.iter().any(|o| o["state"] == "running" || o["state"] == "queued");
        (!open).then_some(())
    });
    for name in ["app", "talk"] {
        agent.until(name, "ready", LIMIT);
    }
    eventually("one running container each", LIMIT, || {
        let all = agent.containers();
        let filter = format!("label=sigil.agent={}", agent.id());
        let format = "{{.Label \"sigil.deployment\"}}";
        let mut up: Vec<String> =
            docker(&["ps", "--filter", &filter, "--format", format]).lines().map(str::to_owned).collect();
        up.sort();
        (all.len() == 2 && up == ["app", "talk"]).then_some(())
    });
}

fn app_container(agent: &Agent) -> String {
    let (id, name) = (format!("label=sigil.agent={}", agent.id()), "label=sigil.deployment=app");
    docker(&["ps", "-aq", "--no-trunc", "--filter", &id, "--filter", name])
}

/// What the serving release has in its environment, as its own tool tells.
fn environment(agent: &Agent) -> String {
    let called = agent.sigil(&["call", "app", "environment", "--arg", "name=ROUND", "-o", "json"]).ok().json();
    called["content"][0]["text"].as_str().expect("text").to_owned()
}

/// The whole log of the flooding server: its lines are numbered, so that any loss or repetition shows.
fn read_back(agent: &Agent, kills: &mut Kills) {
    let mut command = agent.command(&["logs", "talk", "--stream", "stderr", "-o", "json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("sigil starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    // the gate's own process printed too, before the session's
    let mut last: Option<u64> = None;
    let mut told = 0;
    let mut recent: VecDeque<String> = VecDeque::new();
    for line in lines {
        let line = line.expect("UTF-8");
        let value: Value = serde_json::from_str(&line).expect("JSON");
        if let Some(lost) = value["gap"]["lost"].as_u64() {
            told += lost;
            continue;
        }
        let text = value["line"].as_str().unwrap_or_default();
        let Some(number) = text.get(..12).and_then(|n| n.parse::<u64>().ok()) else {
            kills.findings.push(format!("a line that nobody printed: {line}"));
            continue;
        };
        kills.lines += 1;
        recent.push_back(line);
        if recent.len() > 2 {
            recent.pop_front();
        }
        let expected = last.map_or(0, |n| n + 1);
        // a process that begins: the gate's, then the session's
        let begins = number == 0 && kills.lines != 1;
        if number != expected && !begins {
            let missing = number.saturating_sub(expected);
            if missing == 0 || missing > told {
                kills.findings.push(format!("line {expected} was to come: {recent:?}"));
            }
            kills.told_lost += missing.min(told);
        }
        told = 0;
        last = Some(number);
    }
    assert!(child.wait().expect("a child").success(), "the log could be read");
    if last.is_none_or(|n| n < u64::from(kills.kills) * 100) {
        kills.findings.push(format!("the flood stopped on the way: its last line is {last:?}"));
    }
}
