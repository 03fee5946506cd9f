//! The console on a terminal: how soon it is there, how soon it answers a key, what it writes and what it costs. The agents
//! are doubles in this process: their figures and their lines are what is wanted, and of a real one only twenty would fit here.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use sigil_tests::binary;
use sigil_tests::double::Double;
use sigil_tests::screen::Screen;

use crate::Options;
use crate::machine::{cpu_seconds, memory_mib};
use crate::report::{Bar, Sample, Section, percentile};

const LIMIT: Duration = Duration::from_secs(20);
/// Starts, and keys of each kind.
const STARTS: usize = 40;
const KEYS: usize = 200;
const WATCHED: Duration = Duration::from_secs(30);
/// Until nothing of a beginning is left.
const SETTLE: Duration = Duration::from_secs(25);

pub fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let _entered = options.runtime.enter();
    starts(section, dir.path())?;
    keys(section, dir.path())?;
    idle(section, dir.path())?;
    fleet(section, dir.path())?;
    crowd(section, dir.path())?;
    drawing(section, dir.path())?;
    lines(section, dir.path())?;
    search(section, dir.path())?;
    Ok(())
}

/// A console on one agent, once its table is there.
fn console(dir: &Path, double: &Double, args: &[&str], size: (u16, u16)) -> Screen {
    consoles(dir, &double.address(), args, size)
}

/// A console on the agents of an address.
fn consoles(dir: &Path, address: &str, args: &[&str], size: (u16, u16)) -> Screen {
    // what one left behind is not gone on with by the next
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let home = dir.join(format!("home{}", COUNT.fetch_add(1, Relaxed)));
    std::fs::create_dir_all(&home).expect("a home");
    let home = home.to_string_lossy().into_owned();
    let env = [
        ("HOME", home.as_str()),
        ("TERM", "xterm-256color"),
        ("LANG", "C.UTF-8"),
        ("SIGIL_HOST", address),
        ("PATH", "/usr/bin:/bin"),
    ];
    Screen::start(&binary("sigil"), args, &env, size)
}

fn shown(screen: &mut Screen) -> Instant {
    let there = screen.until("the table is there", LIMIT, |text| text.contains("-000") && text.contains("ready"));
    // the first words to somebody who is here for the first time
    if screen.text().contains("Esc closes") {
        screen.keys("\x1b");
        screen.until("the first words are gone", LIMIT, |text| !text.contains("Esc closes"));
    }
    there
}

fn p95(values: Vec<f64>) -> Sample {
    let mut sorted = values.clone();
    Sample { median: percentile(&mut sorted, 0.95), ..Sample::of(values).unwrap_or_else(|_| Sample::one(f64::NAN)) }
}

fn starts(section: &mut Section, dir: &Path) -> anyhow::Result<()> {
    let double = Double::listen(dir, "start", 20)?;
    let mut took = Vec::new();
    for _ in 0..STARTS {
        let mut screen = console(dir, &double, &[], (120, 40));
        took.push(shown(&mut screen).duration_since(screen.began).as_secs_f64() * 1e3);
    }
    let what = "exec to the first whole picture with 20 deployments, p95 (lowest-highest)";
    section.row(what, "ms", p95(took), None, Bar::AtMost(50.0));
    Ok(())
}

fn keys(section: &mut Section, dir: &Path) -> anyhow::Result<()> {
    let double = Double::listen(dir, "keys", 20)?;
    let mut screen = console(dir, &double, &[], (120, 40));
    shown(&mut screen);
    let press = |screen: &mut Screen, pause: u64| {
        let took = (0..KEYS).map(|n| {
            let took = screen.first_byte(if n % 2 == 0 { "j" } else { "k" }, LIMIT).as_secs_f64() * 1e3;
            std::thread::sleep(Duration::from_millis(pause));
            took
        });
        p95(took.collect())
    };
    let quiet = press(&mut screen, 10);
    section.row("key to first byte, p95", "ms", quiet, None, Bar::AtMost(16.0));
    // every figure of every row, every second
    double.wish(|wish| wish.moving = true);
    let moving = press(&mut screen, 10);
    section.row("the same while all figures move", "ms", moving, None, Bar::AtMost(16.0));
    double.wish(|wish| wish.moving = false);
    // lines come all the time, so that a byte says nothing: what the key does has to show
    screen.keys("l");
    double.wish(|wish| wish.rate = 100_000);
    screen.until("lines come", LIMIT, |text| text.contains("request"));
    let mut took = Vec::new();
    for n in 0..KEYS / 2 {
        let wrap = n % 2 == 1;
        let began = Instant::now();
        screen.keys("w");
        let there = screen.until("wrap", LIMIT, |text| text.contains("no wrap") != wrap);
        took.push(there.duration_since(began).as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(20));
    }
    let what = "key to its effect on the screen in a log of 100,000 lines/s, p95";
    section.row(what, "ms", p95(took), None, Bar::AtMost(16.0));
    let (frames, cpu, began) = (screen.frames(), cpu_seconds(screen.pid())?, Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    let seconds = began.elapsed().as_secs_f64();
    let a_second = (screen.frames() - frames) as f64 / seconds;
    section.row("frames a second while it follows 100,000 lines/s", "", Sample::one(a_second), None, Bar::AtMost(10.2));
    let percent = (cpu_seconds(screen.pid())? - cpu) / seconds * 100.0;
    section.row("CPU of it meanwhile", "% of a core", Sample::one(percent), None, Bar::None);
    double.wish(|wish| wish.rate = 0);
    drop(screen);
    let mut screen = console(dir, &double, &["--slow"], (120, 40));
    shown(&mut screen);
    screen.keys("l");
    double.wish(|wish| wish.rate = 10_000);
    screen.until("lines come", LIMIT, |text| text.contains("request"));
    let frames = screen.frames();
    std::thread::sleep(Duration::from_secs(5));
    let a_second = (screen.frames() - frames) as f64 / 5.0;
    section.row("frames a second with --slow", "", Sample::one(a_second), None, Bar::AtMost(2.2));
    double.wish(|wish| wish.rate = 0);
    Ok(())
}

fn idle(section: &mut Section, dir: &Path) -> anyhow::Result<()> {
    let double = Double::listen(dir, "idle", 20)?;
    let mut screen = console(dir, &double, &[], (120, 40));
    shown(&mut screen);
    // the first round trip is measured, and shown once; the first words go by themselves
    std::thread::sleep(SETTLE);
    let (bytes, cpu) = (screen.bytes(), cpu_seconds(screen.pid())?);
    std::thread::sleep(WATCHED);
    let a_second = (screen.bytes() - bytes) as f64 / WATCHED.as_secs_f64();
    section.row("bytes a second, idle", "B/s", Sample::one(a_second), None, Bar::AtMost(0.0));
    let percent = (cpu_seconds(screen.pid())? - cpu) / WATCHED.as_secs_f64() * 100.0;
    section.row("CPU, idle", "% of a core", Sample::one(percent), None, Bar::AtMost(0.5));
    section.row("resident memory", "MiB", Sample::one(memory_mib(screen.pid(), "VmRSS")?), None, Bar::None);
    Ok(())
}

/// Twenty hosts, two hundred deployments, and every figure another one each second.
fn fleet(section: &mut Section, dir: &Path) -> anyhow::Result<()> {
    let doubles: Vec<Double> =
        (0..20).map(|n| Double::listen(dir, &format!("host{n:02}"), 10)).collect::<Result<_, _>>()?;
    let addresses: Vec<String> = doubles.iter().map(Double::address).collect();
    let mut screen = consoles(dir, &addresses.join(","), &[], (120, 40));
    shown(&mut screen);
    screen.until("all hosts are there", LIMIT, |text| text.contains("200 deployments"));
    std::thread::sleep(Duration::from_secs(3));
    for double in &doubles {
        double.wish(|wish| wish.moving = true);
    }
    std::thread::sleep(Duration::from_secs(2));
    let (bytes, frames, cpu) = (screen.bytes(), screen.frames(), cpu_seconds(screen.pid())?);
    std::thread::sleep(WATCHED);
    let seconds = WATCHED.as_secs_f64();
    let a_second = (screen.bytes() - bytes) as f64 / seconds;
    let what = "bytes a second, 20 hosts with 200 deployments in all, each changing every second";
    section.row(what, "B/s", Sample::one(a_second), None, Bar::AtMost(1_500.0));
    section.row("frames a second then", "", Sample::one((screen.frames() - frames) as f64 / seconds), None, Bar::None);
    let percent = (cpu_seconds(screen.pid())? - cpu) / seconds * 100.0;
    section.row("CPU then", "% of a core", Sample::one(percent), None, Bar::AtMost(1.0));
    section.row(
        "resident memory then",
        "MiB",
        Sample::one(memory_mib(screen.pid(), "VmRSS")?),
        None,
        Bar::AtMost(38.1),
    );
    Ok(())
}

/// Five hundred hosts: as fast as one.
fn crowd(section: &mut Section, dir: &Path) -> anyhow::Result<()> {
    // each is a connection here and there, and a socket that is listened to
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: hard, maximum: hard },
    )?;
    let doubles: Vec<Double> =
        (0..500).map(|n| Double::listen(dir, &format!("c{n:03}"), 2)).collect::<Result<_, _>>()?;
    let addresses: Vec<String> = doubles.iter().map(Double::address).collect();
    let mut screen = consoles(dir, &addresses.join(","), &[], (120, 40));
    shown(&mut screen);
    screen.until("all hosts are there", LIMIT, |text| text.contains("1000 deployments"));
    section.row(
        "until 500 hosts are there",
        "ms",
        Sample::one(screen.began.elapsed().as_secs_f64() * 1e3),
        None,
        Bar::None,
    );
    std::thread::sleep(SETTLE);
    let took = (0..KEYS).map(|n| {
        let took = screen.first_byte(if n % 2 == 0 { "j" } else { "k" }, LIMIT).as_secs_f64() * 1e3;
        std::thread::sleep(Duration::from_millis(10));
        took
    });
    let took = p95(took.collect());
    section.row("key to first byte with 500 hosts, p95", "ms", took, None, Bar::AtMost(16.0));
    let resident = memory_mib(screen.pid(), "VmRSS")?;
    section.row("resident memory with 500 hosts", "MiB", Sample::one(resident), None, Bar::AtMost(143.0));
    Ok(())
}

/// CPU of a frame: from the outside, a key that moves the cursor in a long table, with all that belongs to it.
fn drawing(section: &mut Section, dir: &Path) -> anyhow::Result<()> {
    const PRESSED: usize = 600;
    let double = Double::listen(dir, "draw", 500)?;
    let mut screen = console(dir, &double, &[], (200, 50));
    shown(&mut screen);
    let (frames, cpu) = (screen.frames(), cpu_seconds(screen.pid())?);
    for n in 0..PRESSED {
        // page down and up: every row is another one
        screen.first_byte(if n % 2 == 0 { "\x1b[6~" } else { "\x1b[5~" }, LIMIT);
    }
    let drawn = (screen.frames() - frames).max(1);
    let each = (cpu_seconds(screen.pid())? - cpu) * 1e3 / drawn as f64;
    let what = "CPU of a key that changes every row of 500 deployments at 200x50: update, draw, diff, write";
    section.row(what, "ms", Sample::one(each), None, Bar::AtMost(4.0));
    Ok(())
}

/// Lines through the link into the buffer: more than the buffer alone is asked to take.
fn lines(section: &mut Section, dir: &Path) -> anyhow::Result<()> {
    const LINES: u64 = 1_000_000;
    let double = Double::listen(dir, "lines", 4)?;
    let mut screen = console(dir, &double, &[], (120, 40));
    shown(&mut screen);
    screen.keys(":logs lines-000 lines-001 lines-002 lines-003\r");
    screen.until("the log view", LIMIT, |text| text.contains("following"));
    let cpu = cpu_seconds(screen.pid())?;
    let began = Instant::now();
    double.wish(|wish| (wish.burst, wish.length) = (LINES, 100));
    // 999,999 is no multiple of fifty
    screen.until("the last line", Duration::from_secs(120), |text| text.contains("1000000"));
    let seconds = began.elapsed().as_secs_f64();
    let what = "lines of 100 B taken in, from the agent to the buffer: levels, marks, escapes";
    section.row(what, "lines/s", Sample::one(LINES as f64 / seconds), None, Bar::AtLeast(200_000.0));
    let each = (cpu_seconds(screen.pid())? - cpu) / LINES as f64 * 1e9;
    section.row("CPU of one, link and all", "ns", Sample::one(each), None, Bar::None);
    section.row("resident memory then", "MiB", Sample::one(memory_mib(screen.pid(), "VmRSS")?), None, Bar::None);
    Ok(())
}

/// A pattern over a million lines.
fn search(section: &mut Section, dir: &Path) -> anyhow::Result<()> {
    const LINES: u64 = 1_000_000;
    let double = Double::listen(dir, "million", 4)?;
    let mut screen = console(dir, &double, &[], (120, 40));
    shown(&mut screen);
    screen.keys(":logs million-000 million-001 million-002 million-003\r");
    screen.until("the log view", LIMIT, |text| text.contains("following"));
    double.wish(|wish| (wish.burst, wish.length) = (LINES, 40));
    screen.until("the last line", Duration::from_secs(120), |text| text.contains("1000000"));
    let (mut first, mut whole, mut key) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..crate::ROUNDS {
        // five of a hundred thousand lines, in every stream
        let pattern = format!("(request|seq\\W+) ?\\d*{round}7\\d\\d\\b");
        screen.keys("/");
        screen.until("the line of input", LIMIT, |text| text.contains("filter:"));
        let began = Instant::now();
        // pasted, so that it is one pattern and not twenty
        screen.keys(&format!("\x1b[200~{pattern}\x1b[201~"));
        let wanted = format!("{round}7");
        let full = |text: &str| text.lines().filter(|line| line.contains(&wanted)).count() >= 30;
        first.push(screen.until("a screen of matches", LIMIT, full).duration_since(began).as_secs_f64() * 1e3);
        let all = |text: &str| text.contains(" of 1,000,000") && !text.contains("… of 1,000,000");
        whole.push(screen.until("all matches", LIMIT, all).duration_since(began).as_secs_f64() * 1e3);
        screen.keys("\x1b");
        screen.until("no filter", LIMIT, |text| !text.contains(" of 1,000,000"));
        // keys while it goes on: help opens and closes
        screen.keys("/");
        screen.until("the line of input", LIMIT, |text| text.contains("filter:"));
        screen.keys(&format!("\x1b[200~{pattern}\x1b[201~"));
        for text in ["x", "y"] {
            let began = Instant::now();
            screen.keys(text);
            let typed = format!("{pattern}{}", if text == "x" { "x" } else { "xy" });
            let there = screen.until("what is typed", LIMIT, |screen| screen.contains(&typed));
            key.push(there.duration_since(began).as_secs_f64() * 1e3);
        }
        screen.keys("\x1b");
        screen.until("no filter", LIMIT, |text| !text.contains("filter:"));
    }
    section.row("a pattern over 1,000,000 lines: first screen", "ms", Sample::of(first)?, None, Bar::AtMost(50.0));
    section.row("all of them", "ms", Sample::of(whole)?, None, Bar::AtMost(1_000.0));
    section.row("a key while they are looked at, p95", "ms", p95(key), None, Bar::AtMost(16.0));
    Ok(())
}
