//! Whole links against the real init, run as a plain child process.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const LONG: Duration = Duration::from_secs(20);

struct Bench {
    dir: tempfile::TempDir,
    links: InitLinks,
    output: mpsc::Receiver<OutputChunk>,
    stop: CancellationToken,
    id: InstanceId,
    init: Option<Child>,
}

async fn agent(dir: &Path) -> (InitLinks, mpsc::Receiver<OutputChunk>, CancellationToken) {
    let stop = CancellationToken::new();
    let config = sigil_config::agent::OutboundConfig::default();
    let (links, output) = InitLinks::spawn(dir, config, stop.clone()).await.unwrap();
    (links, output, stop)
}

impl Bench {
    async fn new(args: &[&str]) -> (Self, Link) {
        let dir = tempfile::tempdir().unwrap();
        let (links, output, stop) = agent(dir.path()).await;
        let id = InstanceId(ulid::Ulid::from_parts(1, 1));
        let (mounts, argv, env) = links.prepare(id, false).await.unwrap();
        assert_eq!(argv[0], "/.sigil/bin/sigil-init");
        let init = Command::new(links.binary())
            .args(["--socket", &format!("{}/agent.sock", mounts[0].source)])
            .args(args)
            .env_clear()
            .envs(&env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        links.expect(id, init.id());
        let link = links.wait(id, LONG).await.unwrap();
        (Self { dir, links, output, stop, id, init: Some(init) }, link)
    }

    /// The agent dies (its tasks are stopped, its sockets closed) and another begins.
    async fn restart(&mut self) -> Link {
        self.kill_agent();
        self.return_agent().await
    }

    fn kill_agent(&mut self) {
        self.stop.cancel();
    }

    async fn return_agent(&mut self) -> Link {
        let (links, output, stop) = agent(self.dir.path()).await;
        assert_eq!(links.known(), [self.id]);
        (self.links, self.output, self.stop) = (links, output, stop);
        self.links.expect(self.id, self.init.as_ref().unwrap().id());
        self.links.wait(self.id, LONG).await.unwrap()
    }

    async fn exit_code(&mut self) -> i32 {
        let mut init = self.init.take().unwrap();
        tokio::task::spawn_blocking(move || init.wait().unwrap().code().unwrap()).await.unwrap()
    }

    async fn chunk(&mut self) -> OutputChunk {
        tokio::time::timeout(LONG, self.output.recv()).await.unwrap().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(mut init) = self.init.take() {
            let _ = init.kill();
            let _ = init.wait();
        }
    }
}

fn shell(script: &str) -> Process {
    Process {
        argv: vec!["sh".into(), "-c".into(), script.into()],
        env: vec![
            ("PATH".into(), SecretString::from("/usr/bin:/bin")),
            ("TOKEN".into(), SecretString::from("hunter2-hunter2-hunter2")),
        ],
        workdir: String::new(),
    }
}

async fn ended(exit: &mut watch::Receiver<Option<Exit>>) -> Exit {
    tokio::time::timeout(LONG, exit.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap()
}

#[tokio::test]
async fn main_runs_and_its_exit_ends_init_after_its_last_words() {
    let (mut bench, link) = Bench::new(&[]).await;
    let mut exit = link.main_exit();
    let pid = link.start_main(shell("sleep 0.2; echo out; echo err >&2; exit 7")).await.unwrap();
    assert_eq!(link.start_main(shell("false")).await.unwrap(), pid, "repeating is harmless");
    let mut seen = BTreeMap::new();
    for _ in 0..2 {
        let chunk = bench.chunk().await;
        assert_eq!((chunk.process.as_str(), chunk.offset, chunk.instance), ("main", 0, bench.id));
        seen.insert(chunk.stream.as_str(), chunk.bytes.clone());
        chunk.ack();
    }
    assert_eq!(seen["stdout"], "out\n");
    assert_eq!(seen["stderr"], "err\n");
    assert_eq!(ended(&mut exit).await, Exit { code: Some(7), signal: None });
    let began = Instant::now();
    assert_eq!(bench.exit_code().await, 7);
    assert!(began.elapsed() < Duration::from_secs(2), "acknowledged output holds nothing up");
}

#[tokio::test]
async fn sessions_have_pipes_that_outlive_the_agent() {
    let (mut bench, link) = Bench::new(&[]).await;
    let mut pipes = link.spawn("s1", shell("while read line; do echo \"got $line\"; done; exit 3")).await.unwrap();
    pipes.stdin.write_all(b"one\n").await.unwrap();
    let mut buffer = [0; 64];
    let count = pipes.stdout.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..count], b"got one\n");
    assert!(matches!(link.spawn("s1", shell("true")).await, Err(LinkError::Io(_))), "the key is taken");

    // under another name from now on, also for the next agent
    assert!(link.rename("s1", "main").await.is_err(), "the main process's name is taken for good");
    assert!(link.rename("s0", "s2").await.is_err(), "no such process");
    link.rename("s1", "s2").await.unwrap();
    assert!(link.resume("s1").await.unwrap().is_none());
    link.rename("s2", "s1").await.unwrap();

    drop(pipes);
    let link = bench.restart().await;
    let list = link.processes().await.unwrap();
    assert_eq!((list.len(), list[0].key.as_str(), list[0].exit.clone()), (1, "s1", None));
    let mut pipes = link.resume("s1").await.unwrap().unwrap();
    pipes.stdin.write_all(b"two\n").await.unwrap();
    let count = pipes.stdout.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..count], b"got two\n");
    let Pipes { stdin, mut exit, .. } = pipes;
    drop(stdin);
    link.close("s1", LONG).await.unwrap();
    assert_eq!(ended(&mut exit).await, Exit { code: Some(3), signal: None }, "its input ended, it was not killed");
    let mut changes = bench.links.changes();
    while !link.processes().await.unwrap().is_empty() {
        let _ = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
    }
    assert!(link.resume("s1").await.unwrap().is_none());
    link.close("s1", LONG).await.unwrap();
}

#[tokio::test]
async fn a_process_that_ended_without_an_agent_is_told_with_its_last_output() {
    let (mut bench, link) = Bench::new(&[]).await;
    let pipes = link.spawn("s1", shell("read line; echo last; exit 4")).await.unwrap();
    let Pipes { mut stdin, .. } = pipes;
    bench.kill_agent();
    stdin.write_all(b"go\n").await.unwrap();
    drop(stdin);
    let link = bench.return_agent().await;
    let mut pipes = link.resume("s1").await.unwrap().unwrap();
    let mut text = String::new();
    pipes.stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "last\n");
    assert_eq!(ended(&mut pipes.exit).await, Exit { code: Some(4), signal: None });
}

#[tokio::test]
async fn a_stubborn_process_is_killed_with_what_it_started() {
    let (_bench, link) = Bench::new(&[]).await;
    let script = "trap '' TERM; sh -c 'trap \"\" TERM; echo ready; while :; do sleep 1; done' & wait; wait";
    let mut pipes = link.spawn("s1", shell(script)).await.unwrap();
    let mut buffer = [0; 16];
    assert_eq!(pipes.stdout.read(&mut buffer).await.unwrap(), 6);
    let began = Instant::now();
    link.close("s1", Duration::from_millis(100)).await.unwrap();
    assert_eq!(ended(&mut pipes.exit).await, Exit { code: None, signal: Some(9) });
    assert!(began.elapsed() >= Duration::from_millis(200));
    // Only when the grandchild is dead too does the pipe end.
    assert_eq!(tokio::time::timeout(LONG, pipes.stdout.read(&mut buffer)).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn failures_have_words() {
    let (_bench, link) = Bench::new(&[]).await;
    let mut process = shell("");
    process.argv = vec!["no-such-command".into()];
    let error = link.spawn("s1", process.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), "'no-such-command' could not be started: no such command in PATH (/usr/bin:/bin)");
    process.argv.clear();
    assert!(matches!(link.start_main(process).await, Err(LinkError::Spawn { .. })));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert!(matches!(link.dial(port).await, Err(LinkError::Refused(p)) if p == port));
    assert!(matches!(link.signal("nobody", 15).await, Err(LinkError::Io(_))));
}

#[tokio::test]
async fn dialling_reaches_both_families() {
    let (_bench, link) = Bench::new(&[]).await;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = tokio::net::TcpListener::bind(address).await else {
            assert!(address.starts_with('['), "no IPv4");
            continue;
        };
        let (dialled, accepted) = tokio::join!(link.dial(listener.local_addr().unwrap().port()), listener.accept());
        let (mut dialled, (mut accepted, _)) = (dialled.unwrap(), accepted.unwrap());
        dialled.write_all(b"hi").await.unwrap();
        drop(dialled);
        let mut text = String::new();
        accepted.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hi");
    }
}

#[tokio::test]
async fn only_pid_1_is_let_in() {
    let (bench, link) = Bench::new(&[]).await;
    let socket = bench.dir.path().join("run").join(bench.id.to_string()).join("agent.sock");
    let mut stranger = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let mut hello = Vec::new();
    sigil_init::wire::ToAgent::Hello { version: 1, oldest: 1, life: 1 }.encode(0, &mut hello);
    stranger.write_all(&hello).await.unwrap();
    let mut answer = Vec::new();
    // An end or a reset, after the time that a restarted container's connection would be given.
    let _ = tokio::time::timeout(LONG, stranger.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.is_empty());
    assert!(link.is_up(), "and it does not disturb the link");
}

#[tokio::test]
async fn nonsense_closes_the_link_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (links, mut output, _stop) = agent(dir.path()).await;
    let id = InstanceId(ulid::Ulid::from_parts(1, 2));
    links.prepare(id, false).await.unwrap();
    links.expect(id, std::process::id());
    let path = dir.path().join("run").join(id.to_string()).join("agent.sock");
    let hello = |out: &mut Vec<u8>| {
        sigil_init::wire::ToAgent::Hello { version: 9, oldest: 1, life: 1 }.encode(0, out);
    };
    let process = sigil_init::wire::Process { serial: 1, key: "main", pid: 2, exit: None };
    let flood = |out: &mut Vec<u8>| {
        hello(out);
        sigil_init::wire::ToAgent::Process(process.clone()).encode(0, out);
        for n in 0..5000 {
            let frame = sigil_init::wire::ToAgent::Output {
                serial: 1,
                stream: sigil_init::wire::Stream::Stdout,
                offset: n,
                time: 0,
                bytes: b"x",
            };
            frame.encode(0, out);
        }
    };
    let stranger = |out: &mut Vec<u8>| {
        hello(out);
        let exit = sigil_init::wire::Exit::Code(0);
        sigil_init::wire::ToAgent::Exit { serial: 77, exit }.encode(0, out);
    };
    let garbage = |out: &mut Vec<u8>| out.extend_from_slice(&[0xff; 64]);
    #[allow(clippy::type_complexity)]
    let attacks: [&dyn Fn(&mut Vec<u8>); 3] = [&garbage, &stranger, &flood];
    for attack in attacks {
        let mut bytes = Vec::new();
        attack(&mut bytes);
        let mut socket = tokio::net::UnixStream::connect(&path).await.unwrap();
        // It may be closed while it is written to.
        let _ = socket.write_all(&bytes).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LONG, socket.read_to_end(&mut answer)).await.expect("the link stays open");
        assert!(links.link(id).is_none());
        while output.try_recv().is_ok() {}
    }
}

#[tokio::test]
async fn what_is_read_with_the_links_end_is_handed_on() {
    use sigil_init::wire::{Exit, Process, Stream, ToAgent};
    let dir = tempfile::tempdir().unwrap();
    let (links, mut output, _stop) = agent(dir.path()).await;
    for n in 0..20u64 {
        let id = InstanceId(ulid::Ulid::from_parts(1, u128::from(n)));
        links.prepare(id, false).await.unwrap();
        let path = dir.path().join("run").join(id.to_string()).join("agent.sock");
        let mut bytes = Vec::new();
        ToAgent::Hello { version: 9, oldest: 1, life: n + 1 }.encode(0, &mut bytes);
        ToAgent::Process(Process { serial: 1, key: "main", pid: 2, exit: None }).encode(0, &mut bytes);
        ToAgent::Output { serial: 1, stream: Stream::Stderr, offset: 0, time: 0, bytes: b"its last\n" }
            .encode(0, &mut bytes);
        ToAgent::Exit { serial: 1, exit: Exit::Code(3) }.encode(0, &mut bytes);
        let mut socket = tokio::net::UnixStream::connect(&path).await.unwrap();
        socket.write_all(&bytes).await.unwrap();
        // all of it, and the end, is there when it is first looked at
        socket.shutdown().await.unwrap();
        links.expect(id, std::process::id());
        let chunk = tokio::time::timeout(LONG, output.recv()).await.expect("its last words").unwrap();
        assert_eq!((chunk.instance, &chunk.bytes[..]), (id, &b"its last\n"[..]));
        chunk.ack();
    }
}

fn line_numbers(text: &[u8]) -> Vec<u64> {
    text.split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| std::str::from_utf8(l).unwrap().split(' ').next().unwrap().parse().unwrap())
        .collect()
}

#[tokio::test]
async fn main_that_ends_while_the_agent_restarts_is_told_to_the_next() {
    let (mut bench, link) = Bench::new(&[]).await;
    let pid = link.start_main(shell("sleep 0.3; echo late; exit 5")).await.unwrap();
    bench.kill_agent();
    let (process, deadline) = (format!("/proc/{pid}"), Instant::now() + LONG);
    while Path::new(&process).exists() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let link = bench.return_agent().await;
    assert_eq!(ended(&mut link.main_exit()).await, Exit { code: Some(5), signal: None });
    let chunk = bench.chunk().await;
    assert_eq!(&chunk.bytes[..], b"late\n");
    chunk.ack();
    assert_eq!(bench.exit_code().await, 5);
}

/// Without a word to be told: the container stays so that the next agent can read what it used, but for who asks for its end.
#[tokio::test]
async fn init_waits_for_an_agent_that_is_away_unless_it_is_stopped() {
    let (mut bench, link) = Bench::new(&[]).await;
    let pid = link.start_main(shell("exec sleep 0.2")).await.unwrap();
    bench.kill_agent();
    let process = format!("/proc/{pid}");
    let deadline = Instant::now() + LONG;
    while Path::new(&process).exists() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // longer than last words are waited for
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = told.clone();
    let (links, output, stop) = agent(bench.dir.path()).await;
    links.tell_ending(move |instance, pid| lock(&heard).push((instance, pid)));
    (bench.links, bench.output, bench.stop) = (links, output, stop);
    let init = bench.init.as_ref().unwrap().id();
    bench.links.expect(bench.id, init);
    let link = bench.links.wait(bench.id, LONG).await.unwrap();
    assert_eq!(ended(&mut link.main_exit()).await, Exit { code: Some(0), signal: None });
    assert_eq!(bench.exit_code().await, 0);
    assert_eq!(*lock(&told), [(bench.id, init)]);

    let (mut bench, link) = Bench::new(&[]).await;
    link.start_main(shell("exec sleep 0.2")).await.unwrap();
    bench.kill_agent();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let init = rustix::process::Pid::from_child(bench.init.as_ref().unwrap());
    let began = Instant::now();
    rustix::process::kill_process(init, rustix::process::Signal::TERM).unwrap();
    assert_eq!(bench.exit_code().await, 0);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// Reads what init itself prints, as the engine does.
fn engine(mut pipe: impl Read + Send + 'static) -> Arc<Mutex<Vec<u8>>> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let kept = log.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            lock(&kept).extend_from_slice(&buffer[..count]);
        }
    });
    log
}

#[tokio::test]
async fn no_line_is_lost_when_agents_die_in_a_flood() {
    const LINES: u64 = 200_000;
    let (mut bench, link) = Bench::new(&[]).await;
    let log = engine(bench.init.as_mut().unwrap().stdout.take().unwrap());
    // The filler makes it 8 MB, far more than any buffer holds.
    // It stays: when main ends without an agent, init's last words go to the engine and init ends too.
    let flood = format!("seq 1 {LINES} | sed 's/$/ abcdefghijklmnopqrstuvwxyz012345/'; sleep 1000");
    link.start_main(shell(&flood)).await.unwrap();
    // `at` counts like init does; a machine that is slow enough sees gaps, which the engine's log fills.
    let (mut kept, mut at, mut from_log, mut restarts) = (Vec::new(), 0, 0, 0);
    'all: loop {
        for turn in 0..37 {
            let chunk = bench.chunk().await;
            if let Some(gap) = &chunk.gap_before {
                let until = from_log + gap.bytes as usize;
                let deadline = Instant::now() + LONG;
                while lock(&log).len() < until {
                    assert!(Instant::now() < deadline, "the engine has less than the gap");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                kept.extend_from_slice(&lock(&log)[from_log..until]);
                from_log = until;
                at += gap.bytes;
            }
            // What a former agent kept without telling init comes again.
            assert!(chunk.offset <= at, "{} bytes are missing", chunk.offset - at);
            let known = ((at - chunk.offset) as usize).min(chunk.bytes.len());
            kept.extend_from_slice(&chunk.bytes[known..]);
            at += (chunk.bytes.len() - known) as u64;
            // The last ones of a life are kept but not acknowledged.
            if turn < 35 {
                chunk.ack();
            }
            if kept.ends_with(format!("\n{LINES} abcdefghijklmnopqrstuvwxyz012345\n").as_bytes()) {
                break 'all;
            }
        }
        bench.restart().await;
        restarts += 1;
    }
    assert!(restarts > 0);
    assert!(line_numbers(&kept).into_iter().eq(1..=LINES));
}

#[tokio::test]
async fn without_an_agent_the_overflow_goes_to_the_engine_once() {
    let (mut bench, link) = Bench::new(&[]).await;
    const LINES: u64 = 60_000;
    let script = format!("sleep 0.3; seq 1 {LINES} | sed 's/$/ abcdefghijklmnop/'; read line; echo {} end", LINES + 1);
    let mut pipes = link.spawn("s1", shell(&format!("( {script} ) >&2"))).await.unwrap();
    bench.kill_agent();
    drop(link);
    // The engine: reads init's stderr until the flood is over.
    let mut engine = bench.init.as_mut().unwrap().stderr.take().unwrap();
    let marker = format!("\n{LINES} abcdefghijklmnop\n").into_bytes();
    let log = tokio::task::spawn_blocking(move || {
        let mut log = Vec::new();
        let mut buffer = [0; 65536];
        while !log.ends_with(&marker) {
            let count = engine.read(&mut buffer).unwrap();
            assert!(count > 0);
            log.extend_from_slice(&buffer[..count]);
        }
        log
    });
    let log = tokio::time::timeout(LONG, log).await.unwrap().unwrap();
    let _link = bench.return_agent().await;
    pipes.stdin.write_all(b"\n").await.unwrap();
    let (mut text, mut gaps) = (Vec::new(), Vec::new());
    let mut at = 0;
    while !text.ends_with(format!("\n{} end\n", LINES + 1).as_bytes()) {
        let chunk = bench.chunk().await;
        if let Some(gap) = &chunk.gap_before {
            gaps.push(gap.bytes);
            text.extend_from_slice(&log);
            at += gap.bytes;
            assert!(gap.since <= gap.until && gap.bytes == log.len() as u64);
        }
        assert_eq!((chunk.offset, chunk.process.as_str(), chunk.stream), (at, "s1", sigil_core::model::Stream::Stderr));
        at += chunk.bytes.len() as u64;
        text.extend_from_slice(&chunk.bytes);
        chunk.ack();
    }
    assert_eq!(gaps.len(), 1);
    assert_eq!(line_numbers(&text), (1..=LINES + 1).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stalled_keeper_stops_the_process_and_not_the_link() {
    let (mut bench, link) = Bench::new(&[]).await;
    link.start_main(shell("yes")).await.unwrap();
    let first = bench.chunk().await;
    // Nobody takes output: dialling still answers, again and again.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..50 {
        link.dial(listener.local_addr().unwrap().port()).await.unwrap();
    }
    drop(first);
    assert!(link.is_up());
}

#[tokio::test]
async fn stopping_is_quick_and_escalates() {
    let (mut bench, link) = Bench::new(&["--grace", "300"]).await;
    link.spawn("s1", shell("sleep 100")).await.unwrap();
    let pid = rustix::process::Pid::from_child(bench.init.as_ref().unwrap());
    let began = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(bench.exit_code().await, 0);
    let quick = began.elapsed();
    assert!(quick < Duration::from_millis(900), "{quick:?}");

    let (mut bench, link) = Bench::new(&["--grace", "300"]).await;
    let pipes = link.spawn("s1", shell("trap '' TERM; echo ready; while :; do sleep 1; done")).await.unwrap();
    let Pipes { mut stdout, .. } = pipes;
    assert_eq!(stdout.read(&mut [0; 16]).await.unwrap(), 6);
    let pid = rustix::process::Pid::from_child(bench.init.as_ref().unwrap());
    let began = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(bench.exit_code().await, 0);
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn orphans_are_reaped() {
    let (bench, link) = Bench::new(&[]).await;
    let mut pipes = link.spawn("s1", shell("(sh -c 'sleep 0.1; exit 9' & echo $!) ; exit 0")).await.unwrap();
    let mut text = String::new();
    let mut byte = [0; 1];
    while !text.ends_with('\n') {
        assert_eq!(pipes.stdout.read(&mut byte).await.unwrap(), 1);
        text.push(byte[0] as char);
    }
    let orphan = format!("/proc/{}", text.trim());
    let deadline = Instant::now() + LONG;
    while Path::new(&orphan).exists() {
        assert!(Instant::now() < deadline, "a zombie stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(bench);
}

#[tokio::test]
async fn secrets_leave_inits_memory() {
    let (bench, link) = Bench::new(&[]).await;
    let mut pipes = link.spawn("s1", shell("echo ${#TOKEN}; read line")).await.unwrap();
    let mut buffer = [0; 16];
    let count = pipes.stdout.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..count], b"23\n");
    // As root one can look; nobody else can, which is the other half of the promise.
    let pid = bench.init.as_ref().unwrap().id();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"));
    if !rustix::process::getuid().is_root() {
        assert!(maps.is_err() || std::fs::File::open(format!("/proc/{pid}/mem")).is_err());
        return;
    }
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    for line in maps.unwrap().lines().filter(|l| l.contains("rw")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let mut bytes = vec![0; (to - from) as usize];
        if std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, from).is_ok() {
            let found = bytes.windows(15).position(|w| w == b"hunter2-hunter2");
            assert_eq!(found, None, "the secret is in {line}");
        }
    }
}

#[tokio::test]
async fn forgetting_removes_everything() {
    let (bench, link) = Bench::new(&[]).await;
    bench.links.forget(bench.id).await;
    assert!(!bench.dir.path().join("run").join(bench.id.to_string()).exists());
    let deadline = Instant::now() + LONG;
    while link.is_up() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(bench.links.known().is_empty() && bench.links.link(bench.id).is_none());
    assert!(matches!(link.dial(1).await, Err(LinkError::Away)));
}
