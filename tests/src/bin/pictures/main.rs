//! What `scripts/pictures` runs: the console on a terminal, with a real agent and real servers behind it, drawn as SVG.
//! `pictures DIRECTORY` writes one file for each scene.

mod svg;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use sigil_tests::screen::Screen;
use sigil_tests::{Agent, binary, fixture};

/// Columns and rows.
const SIZE: (u16, u16) = (110, 30);
const LONG: Duration = Duration::from_secs(300);
const SOON: Duration = Duration::from_secs(30);
/// How long servers are called before the first picture, so that there is something to see.
const CALLED: Duration = Duration::from_secs(75);

/// What is deployed: its name, its source, and a call of it.
const SERVERS: [(&str, &str, &[&str]); 3] = [
    ("time", "pypi:mcp-server-time", &["get_current_time", "--arg", "timezone=Europe/Zurich"]),
    ("everything", "npm:@modelcontextprotocol/server-everything", &["echo", "--arg", "message=hello"]),
    ("git", "pypi:mcp-server-git", &["git_status", "--arg", "repo_path=/tmp"]),
];

/// A picture: its file, the keys that lead to it (`~`: what was asked for comes), and what is on it then.
const SCENES: [(&str, &str, &str); 8] = [
    ("deployments", "2", "everything"),
    ("overview", "1", "Overview"),
    ("health", "2g4", "Health"),
    ("scaling", "2g5", "Scaling"),
    ("logs", "2g    l~h", "following"),
    ("tools", "2gt~", "WHAT IT DOES"),
    ("call", "2gt~\r~hello\x18~", "hello"),
    ("deploy", "2dpypi:mcp-server-fetch\x18~~~", "scan"),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let directory = PathBuf::from(std::env::args().nth(1).context("usage: pictures DIRECTORY")?);
    std::fs::create_dir_all(&directory)?;
    let agent = Agent::start();
    // where this tree lies is nobody's concern
    let servers = tempfile::Builder::new().prefix("servers-").tempdir()?;
    let weather = servers.path().join("weather");
    let copied =
        std::process::Command::new("cp").arg("-a").args([PathBuf::from(fixture("echo")), weather.clone()]).status()?;
    anyhow::ensure!(copied.success(), "cp: {copied}");
    agent.sigil(&["deploy", &weather.display().to_string(), "--name", "weather", "--access", "anonymous"]).ok();
    for (name, source, _) in SERVERS {
        eprintln!("    {name} is built");
        agent.sigil(&["deploy", source, "--name", name]).ok();
    }
    for name in SERVERS.iter().map(|(name, ..)| *name).chain(["weather"]) {
        agent.until(name, "ready", LONG);
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let calls = scope.spawn(|| called(&agent, &over));
        let drawn = scenes(&agent, &directory);
        over.store(true, Relaxed);
        // what it has to say, it says on stderr
        let _ = calls.join();
        drawn
    })
}

/// Calls all of them until it is enough, some more often than others.
fn called(agent: &Agent, over: &AtomicBool) {
    for round in 0_u32.. {
        for (at, (name, _, call)) in SERVERS.iter().enumerate() {
            if over.load(Relaxed) {
                return;
            }
            if round.is_multiple_of(at as u32 * 2 + 1) {
                agent.sigil(&[&["call", name][..], call].concat());
            }
        }
        agent.sigil(&["call", "weather", "echo", "--arg", "text=sunny"]);
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn scenes(agent: &Agent, directory: &std::path::Path) -> anyhow::Result<()> {
    eprintln!("    called for {} s", CALLED.as_secs());
    std::thread::sleep(CALLED);
    let home = tempfile::tempdir()?;
    let (home, host) =
        (home.path().to_string_lossy().into_owned(), format!("unix://{}", agent.data().join("agent.sock").display()));
    std::fs::create_dir_all(&home)?;
    let env = [
        ("HOME", home.as_str()),
        ("TERM", "xterm-256color"),
        ("COLORTERM", "truecolor"),
        ("LANG", "C.UTF-8"),
        ("SIGIL_HOST", host.as_str()),
        ("PATH", "/usr/bin:/bin"),
    ];
    let mut screen = Screen::start(&binary("sigil"), &["--theme", "dark"], &env, SIZE);
    screen.until("the table is there", SOON, |text| text.contains("weather"));
    if screen.text().contains("Esc closes") {
        screen.keys("\x1b");
        screen.until("the first words are gone", SOON, |text| !text.contains("Esc closes"));
    }
    for (name, keys, wanted) in SCENES {
        for key in keys.chars() {
            if key == '~' {
                std::thread::sleep(Duration::from_secs(2));
                continue;
            }
            screen.keys(&key.to_string());
            std::thread::sleep(Duration::from_millis(150));
        }
        screen.until(name, SOON, |text| text.contains(wanted));
        // what is asked of the agent has come
        std::thread::sleep(Duration::from_secs(3));
        let path = directory.join(format!("{name}.svg"));
        std::fs::write(&path, svg::draw(&screen.cells()))?;
        println!("{}", path.display());
        for _ in 0..4 {
            // one by one: two at once are another key
            screen.keys("\x1b");
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    Ok(())
}
