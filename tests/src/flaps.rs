//! The console over a link that comes and goes, while lines come: none may be missing at the end, none be there twice, and no
//! key may wait for the link.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::badlink::BadLink;
use crate::double::Double;
use crate::screen::Screen;
use crate::{Dice, binary};

const SOON: Duration = Duration::from_secs(60);

/// What became of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Lines that were saved at the end.
    pub lines: u64,
    /// Of which the number is not that of the line before and one more.
    pub wrong: Vec<String>,
    /// Connections that were needed.
    pub connections: u64,
    /// Milliseconds from a key to its first byte, all that were pressed meanwhile.
    pub keys: Vec<f64>,
    /// Resident memory after the first and the last tenth of the time, bytes.
    pub memory: (u64, u64),
}

/// Goes on for so long.
///
/// # Errors
/// When there is no directory or no socket to be had.
///
/// # Panics
/// When the console does not come back.
pub fn run(runtime: &tokio::runtime::Runtime, how_long: Duration, rate: u64) -> std::io::Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let _entered = runtime.enter();
    let double = Double::listen(dir.path(), "far", 3)?;
    let link = BadLink::to(dir.path(), &double.socket)?;
    let (home, host) = (dir.path().to_string_lossy().into_owned(), format!("unix://{}", link.socket.display()));
    let env = [
        ("HOME", home.as_str()),
        ("TERM", "xterm-256color"),
        ("LANG", "C.UTF-8"),
        ("SIGIL_HOST", host.as_str()),
        ("PATH", "/usr/bin:/bin"),
    ];
    let mut screen = Screen::start(&binary("sigil"), &[], &env, (100, 30));
    screen.until("the table is there", SOON, |text| text.contains("far-000") && text.contains("ready"));
    screen.keys("l");
    screen.until("the log view", SOON, |text| text.contains("following"));
    double.wish(|wish| (wish.rate, wish.moving) = (rate, true));
    let (began, mut dice, mut keys) = (Instant::now(), Dice::new(), Vec::new());
    let (mut early, mut step) = (None, 0_u64);
    while began.elapsed() < how_long {
        step += 1;
        link.weather(|weather| {
            (weather.half_open, weather.loss, weather.delay) = (false, 5, 250);
            match step % 6 {
                0 => weather.cuts += 1,
                // and then it is cut, as a router does it that has forgotten a connection
                2 => weather.half_open = true,
                3 => weather.cuts += 1,
                _ => {}
            }
        });
        let until = Instant::now() + Duration::from_millis(700 + dice.below(1_500));
        while Instant::now() < until {
            // wrapped or not shows at once, whatever comes or does not
            keys.push(screen.first_byte("w", SOON).as_secs_f64() * 1e3);
            std::thread::sleep(Duration::from_millis(150));
        }
        if early.is_none() && began.elapsed() > how_long / 10 {
            early = Some(memory(screen.pid()));
        }
    }
    let late = memory(screen.pid());
    double.wish(|wish| (wish.rate, wish.moving) = (0, false));
    link.weather(|weather| *weather = crate::badlink::Weather { cuts: weather.cuts, ..Default::default() });
    // what was on its way has come when nothing changes any more
    screen.until("the link is back", SOON, |text| text.contains("up ") && !text.contains("link lost"));
    let path = dir.path().join("saved.log");
    let (mut lines, mut same) = (0, 0);
    while same < 3 {
        std::thread::sleep(Duration::from_millis(500));
        // the file is never written over
        drop(std::fs::remove_file(&path));
        screen.keys(&format!(":save {}\r", path.display()));
        screen.until("it is saved", SOON, |text| text.contains("lines saved to"));
        let now = std::fs::read_to_string(&path).map_or(0, |text| text.lines().count());
        same = if now == lines && now > 0 { same + 1 } else { 0 };
        lines = now;
        // the word that it is saved is gone before the next one
        screen.until("the word has passed", SOON, |text| !text.contains("lines saved to"));
    }
    let wrong = check(&path)?;
    Ok(Outcome {
        lines: lines as u64,
        wrong,
        connections: link.connections(),
        keys,
        memory: (early.unwrap_or(late), late),
    })
}

/// Lines whose number does not follow.
fn check(path: &Path) -> std::io::Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    let (mut before, mut wrong) = (None, Vec::new());
    for line in text.lines() {
        let number = number(line);
        if number.is_none() || before.is_some_and(|before: u64| number != Some(before + 1)) {
            wrong.push(format!("after {before:?}: {line}"));
        }
        before = number.or(before);
    }
    Ok(wrong)
}

/// What the double numbered a line with.
fn number(line: &str) -> Option<u64> {
    let at = ["\"seq\":", "seq=", "request "].iter().find_map(|mark| line.find(mark).map(|at| at + mark.len()))?;
    line[at..].split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
