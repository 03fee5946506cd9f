//! The full-screen console on a terminal: it is as it was after every way to end, and while it is stopped.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtyPair, PtySize, native_pty_system};
use rustix::process::{Pid, Signal};

use super::Home;
use super::fake::deployment;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A console on a terminal of 80x24, and what that shows.
struct Console {
    pty: PtyPair,
    child: Box<dyn Child + Send + Sync>,
    keys: Box<dyn std::io::Write + Send>,
    shown: Arc<Mutex<vt100::Parser>>,
    reading: Arc<AtomicBool>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Console {
    fn new(home: &Home, args: &[&str]) -> Self {
        let size = PtySize { rows: 24, cols: 80, pixel_width: 0, pixel_height: 0 };
        let pty = native_pty_system().openpty(size).unwrap();
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_sigil"));
        command.args(args);
        command.env_clear();
        command.env("TERM", "xterm-256color");
        command.env("LANG", "C.UTF-8");
        command.env("HOME", home.dir.path());
        command.env("XDG_CONFIG_HOME", home.path("config"));
        command.env("XDG_STATE_HOME", home.path("state"));
        command.cwd(home.dir.path());
        let child = pty.slave.spawn_command(command).unwrap();
        let mut reader = pty.master.try_clone_reader().unwrap();
        let keys = pty.master.take_writer().unwrap();
        let shown = Arc::new(Mutex::new(vt100::Parser::new(24, 80, 0)));
        let screen = Arc::clone(&shown);
        let reading = Arc::new(AtomicBool::new(true));
        let on = Arc::clone(&reading);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while on.load(Ordering::SeqCst)
                && let Ok(n @ 1..) = reader.read(&mut buffer)
            {
                screen.lock().unwrap().process(&buffer[..n]);
            }
        });
        Self { pty, child, keys, shown, reading, reader: Some(reader) }
    }

    fn text(&self) -> String {
        self.shown.lock().unwrap().screen().contents()
    }

    #[track_caller]
    fn until(&mut self, what: &str, fine: impl Fn(&mut Self) -> bool) {
        let begun = Instant::now();
        while !fine(self) {
            assert!(begun.elapsed() < PATIENCE, "timed out: {what}\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn shows(&mut self, text: &str) {
        self.until(text, |c| c.text().contains(text));
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.process_id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    #[track_caller]
    fn ends(&mut self) -> u32 {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.exit_code();
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn is_taken(&self) -> bool {
        let shown = self.shown.lock().unwrap();
        let screen = shown.screen();
        screen.alternate_screen() && screen.bracketed_paste()
    }

    fn is_plain(&self) -> bool {
        let shown = self.shown.lock().unwrap();
        let screen = shown.screen();
        let mouse = screen.mouse_protocol_mode() == vt100::MouseProtocolMode::None;
        !screen.alternate_screen() && !screen.bracketed_paste() && !screen.hide_cursor() && mouse
    }
}

/// A console over an agent with one deployment, started for the first time.
fn started(home: &Home) -> Console {
    home.fake.with(|s| s.deployments = vec![deployment("time", "ready")]);
    let mut console = Console::new(home, &[]);
    console.shows("new here? ':tour'");
    console.shows("ready");
    assert!(console.is_taken());
    console
}

fn modes(master: &dyn MasterPty) -> String {
    format!("{:?}", master.get_termios().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terminal_is_as_it_was_after_every_end() {
    tokio::task::block_in_place(|| {
        for (how, code) in [("q", 0), ("ctrl-c", 0), ("SIGTERM", 0), ("SIGHUP", 0)] {
            let home = Home::with_agent();
            let before = {
                let size = PtySize { rows: 24, cols: 80, pixel_width: 0, pixel_height: 0 };
                modes(native_pty_system().openpty(size).unwrap().master.as_ref())
            };
            let mut console = started(&home);
            // The mouse is given back too.
            console.press("M");
            console.shows("the wheel scrolls");
            assert_ne!(modes(console.pty.master.as_ref()), before, "{how}");
            match how {
                "q" => console.press("q"),
                "ctrl-c" => console.press("\x03"),
                "SIGTERM" => console.signal(Signal::TERM),
                _ => console.signal(Signal::HUP),
            }
            assert_eq!(console.ends(), code, "{how}");
            console.until(how, |c| c.is_plain());
            assert_eq!(modes(console.pty.master.as_ref()), before, "{how}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_it_gives_the_terminal_back_and_continued_it_takes_it_again() {
    tokio::task::block_in_place(|| {
        let home = Home::with_agent();
        let mut console = started(&home);
        let pid = console.child.process_id().unwrap();
        let stopped = move || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        };
        for how in ["a key", "a signal"] {
            let raw = modes(console.pty.master.as_ref());
            match how {
                "a key" => console.press("\x1a"),
                _ => console.signal(Signal::TSTP),
            }
            console.until("stopped", |_| stopped());
            console.until(how, |c| c.is_plain());
            assert_ne!(modes(console.pty.master.as_ref()), raw, "{how}");
            console.signal(Signal::CONT);
            console.until("back", |c| c.is_taken() && c.text().contains("time"));
            assert_eq!(modes(console.pty.master.as_ref()), raw, "{how}");
        }
        console.press("q");
        assert_eq!(console.ends(), 0);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_goes_away_ends_it() {
    tokio::task::block_in_place(|| {
        let home = Home::with_agent();
        let mut console = started(&home);
        // Another size makes it draw, which lets the reader see that it is to end.
        console.reading.store(false, Ordering::SeqCst);
        console.pty.master.resize(PtySize { rows: 20, cols: 70, pixel_width: 0, pixel_height: 0 }).unwrap();
        console.reader.take().unwrap().join().unwrap();
        let Console { pty, mut child, keys, .. } = console;
        drop(keys);
        drop(pty);
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "it lives on without a terminal");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_is_there_again_and_a_broken_file_is_ignored_with_a_word() {
    tokio::task::block_in_place(|| {
        let home = Home::with_agent();
        let mut console = started(&home);
        console.press("Ss1");
        console.shows("Wrong now");
        console.press("\x03");
        assert_eq!(console.ends(), 0);
        let mut console = Console::new(&home, &[]);
        console.shows("Wrong now");
        console.press("2");
        console.shows("STATE↓");
        console.press("q");
        assert_eq!(console.ends(), 0);
        let file = std::fs::read_dir(home.path("state/sigil/console")).unwrap().next().unwrap().unwrap().path();
        std::fs::write(file, "{").unwrap();
        let mut console = Console::new(&home, &[]);
        console.shows("is not used");
        console.press("q");
        assert_eq!(console.ends(), 0);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn console_toml_is_read_again_while_the_console_runs() {
    tokio::task::block_in_place(|| {
        let home = Home::with_agent();
        home.put("config/sigil/console.toml", "[keys.everywhere]\nhelp = \"F12\"\nhlp = \"x\"\n");
        home.fake.with(|s| s.deployments = vec![deployment("time", "ready")]);
        let mut console = Console::new(&home, &[]);
        console.shows("time");
        console.press(":config\r");
        console.shows("everywhere has no 'hlp'");
        console.press("\x1b");
        // As an editor does: a new file in the place of the old one.
        home.put("config/sigil/new", "[keys.everywhere]\nhelp = \"!\"\n");
        std::fs::rename(home.path("config/sigil/new"), home.path("config/sigil/console.toml")).unwrap();
        console.shows("console.toml was read again");
        console.press("!");
        console.shows("Deployments: keys");
        console.press("\x1b");
        home.put("config/sigil/console.toml", "theme = \"pink\"\n");
        console.shows("not taken: console.toml:1:9");
        console.press("!");
        console.shows("Deployments: keys");
        console.press("\x1b");
        console.until("the table", |c| !c.text().contains("Deployments: keys"));
        console.press("q");
        assert_eq!(console.ends(), 0);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_host_delays_neither_keys_nor_the_others() {
    tokio::task::block_in_place(|| {
        let home = Home::with_agent();
        home.fake.with(|s| s.deployments = vec![deployment("time", "ready")]);
        // One that takes connections and never says a word.
        let mute = std::os::unix::net::UnixListener::bind(home.path("mute.sock")).unwrap();
        let hosts = format!(
            "unix://{},unix://{},unix://{}",
            home.socket().display(),
            home.path("mute.sock").display(),
            home.path("nobody.sock").display()
        );
        let mut console = Console::new(&home, &["--host", &hosts]);
        console.shows("ready");
        assert!(console.text().contains("HOST"), "{}", console.text());
        let begun = Instant::now();
        console.press("1");
        console.shows("nobody.sock");
        assert!(begun.elapsed() < Duration::from_secs(2), "a key waited for a dead host");
        console.press("\x03");
        let begun = Instant::now();
        assert_eq!(console.ends(), 0);
        assert!(begun.elapsed() < Duration::from_secs(2), "the end waited for a dead host");
        drop(mute);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_screen_lines_are_appended_sheets_too() {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    let home = Home::with_agent();
    home.fake.with(|s| s.deployments = vec![deployment("time", "ready")]);
    home.put("config/sigil/console.toml", "[contexts.careful]\nprotected = true\n");
    let host = format!("unix://{}", home.socket().display());
    home.run(&["context", "add", "careful", &host]).await.exits(0);
    let mut command = home.command(&["--host", "careful"]);
    command.env("ACCESSIBLE", "1").stdin(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut until = async |text: &str| {
        let found = tokio::time::timeout(PATIENCE, async {
            while let Some(line) = lines.next_line().await.unwrap() {
                assert!(!line.contains(['\x1b', '╭', '│', '\r']), "{line:?}");
                if line.contains(text) {
                    return;
                }
            }
            panic!("it ended before it said '{text}'");
        });
        found.await.unwrap_or_else(|_| panic!("timed out: {text}"));
    };
    until("connecting to unix://").await;
    until("time: ready, 1/1 replicas").await;
    for (typed, said) in [
        ("overview", "Wrong now"),
        ("secrets", "secret"),
        ("", ""),
        ("restart time", "Type time to restart time on"),
        ("yes", "nothing was done"),
        ("scale time 3", "Type time to scale time to 3 on"),
        ("time", "asked for"),
        ("history", "sigil scale time 3"),
        ("config", "console.toml"),
        ("nonsense", "'nonsense' is no command"),
        ("help", "Enter alone ends a log or a screen."),
    ] {
        keys.write_all(format!("{typed}\n").as_bytes()).await.unwrap();
        if !said.is_empty() {
            until(said).await;
        }
    }
    keys.write_all(b"quit\n").await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap().success());
}
