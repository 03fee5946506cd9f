//! Init in real containers: hardened, without a network, in an image that has nothing else in it than one static
//! program, compiled here.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's helper fails the test")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sigil_agent::initlink::{Exit, Grant, InitLinks, Link, LinkError, OutputChunk, Process};
use sigil_config::agent::OutboundConfig;
use sigil_core::model::{DeploymentId, InstanceId, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(30);

/// The only program of the image.
const PROGRAM: &str = r#"
use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
fn resolve(name: &str) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') { query.push(label.len() as u8); query.extend(label.as_bytes()); }
    query.extend([0, 0, 1, 0, 1]);
    socket.send_to(&query, "127.0.0.1:53").unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    let mut reply = [0; 512];
    let count = socket.recv(&mut reply).unwrap();
    let last: [u8; 4] = reply[count - 4..count].try_into().unwrap();
    (reply[7] == 1).then(|| last.into())
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |n: usize| args[n].parse::<u64>().unwrap();
    match args[1].as_str() {
        "serve" => {
            let listener = TcpListener::bind((args[2].as_str(), number(3) as u16)).unwrap();
            println!("ready");
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = socket.read(&mut buffer) { socket.write_all(&buffer[..count]).unwrap(); }
            }
        }
        "get" => {
            let address = resolve(&args[2]).expect("no address");
            // whatever a refusal comes before: it may be there at once
            let said = TcpStream::connect((address, number(3) as u16)).and_then(|mut socket| {
                socket.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                let mut text = String::new();
                socket.read_to_string(&mut text).map(|_| text)
            });
            match said { Ok(text) => print!("{address} {text}"), Err(e) => print!("{}", e.kind()) }
        }
        "lines" => {
            let mut out = std::io::BufWriter::with_capacity(65536, std::io::stdout().lock());
            for n in 1..=number(2) { writeln!(out, "{n:09} {}", "x".repeat(number(3) as usize)).unwrap(); }
        }
        "echo" => for line in std::io::stdin().lock().lines() { println!("got {}", line.unwrap()); },
        "write" => match std::fs::write(&args[2], b"x") { Ok(()) => print!("written"), Err(e) => print!("{}", e.kind()) },
        "memory" => print!("{}", std::fs::File::open("/proc/1/mem").is_err() && std::fs::File::open("/proc/1/environ").is_err()),
        "exit" => { eprintln!("bye"); std::process::exit(number(2) as i32) }
        _ => std::thread::sleep(std::time::Duration::from_secs(1000)),
    }
}
"#;

/// Runs the engine's client; the tests fail where there is no engine.
fn docker(args: &[&str]) -> String {
    let done = Command::new("docker").args(args).output().expect("these tests need the docker client and an engine");
    assert!(done.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// An image of the program and nothing else.
struct Image(String);

/// The program, compiled once for all tests.
fn compiled() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (source, program) = (dir.path().join("program.rs"), dir.path().join("program"));
        std::fs::write(&source, PROGRAM).unwrap();
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
        let compiled = Command::new(rustc)
            .args(["--edition", "2024", "-C", "target-feature=+crt-static", "-C", "opt-level=1", "-o"])
            .args([&program, &source])
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        std::fs::read(&program).unwrap()
    })
}

impl Image {
    fn make() -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        let bytes = compiled();
        header.set_mode(0o755);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, "program", bytes).unwrap();
        let bytes = tar.into_inner().unwrap();
        let tag = format!("sigil-init-test:{}", ulid::Ulid::generate().to_string().to_lowercase());
        let mut import = Command::new("docker")
            .args(["import", "-", &tag])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("these tests need the docker client and an engine");
        import.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(import.wait().unwrap().success());
        Self(tag)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "-f", &self.0]).output();
    }
}

struct Container(String);

impl Container {
    /// What the engine logged, of both streams.
    fn log(&self) -> String {
        let done = Command::new("docker").args(["logs", &self.0]).output().unwrap();
        String::from_utf8([done.stdout, done.stderr].concat()).unwrap()
    }

    fn state(&self, what: &str) -> String {
        docker(&["inspect", "--format", &format!("{{{{.State.{what}}}}}"), &self.0])
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "-f", "-v", &self.0]).output();
    }
}

/// A container with an agent's link to its init. Fields drop in order: the container before its image.
struct Bench {
    container: Container,
    links: InitLinks,
    output: mpsc::Receiver<OutputChunk>,
    stop: CancellationToken,
    id: InstanceId,
    pid: u32,
    image: Image,
    dir: tempfile::TempDir,
}

async fn agent(dir: &Path, ports: &[u16]) -> (InitLinks, mpsc::Receiver<OutputChunk>, CancellationToken) {
    let stop = CancellationToken::new();
    let config = OutboundConfig {
        ports: ports.to_vec(),
        no_proxy: vec!["*".into()],
        allow: ["*", "127.0.0.1"].map(str::to_owned).to_vec(),
        ..OutboundConfig::default()
    };
    let (links, output) = InitLinks::spawn(dir, config, stop.clone()).await.unwrap();
    (links, output, stop)
}

/// What the containers of these tests may reach.
fn grant() -> Grant {
    let egress = ["127.0.0.1:*", "no-such-host.invalid:*"].map(str::to_owned);
    Grant::release(DeploymentId(ulid::Ulid::from_parts(1, 1)), 1, &egress)
}

const HARDENED: &[&str] = &[
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--read-only",
    "--user=65532:65532",
    "--memory=64m",
    "--pids-limit=64",
    "--ulimit=nofile=4096:4096",
];

impl Bench {
    async fn new(ports: &[u16]) -> (Self, Link) {
        let (image, dir) = (Image::make(), tempfile::tempdir().unwrap());
        let (links, output, stop) = agent(dir.path(), ports).await;
        let id = InstanceId(ulid::Ulid::generate());
        links.grant(id, grant());
        let (mounts, argv, env) = links.prepare(id, true).await.unwrap();
        let name = format!("sigil-init-test-{id}").to_lowercase();
        let mut args = vec!["create".to_owned(), format!("--name={name}")];
        args.extend(HARDENED.iter().map(|s| (*s).to_owned()));
        args.extend(["--network=none", "--dns=127.0.0.1"].map(str::to_owned));
        args.push("--sysctl=net.ipv4.ip_unprivileged_port_start=0".to_owned());
        for mount in &mounts {
            args.push(format!("--mount=type=bind,source={},target={},readonly", mount.source, mount.target));
        }
        args.extend(env.iter().map(|(name, value)| format!("--env={name}={value}")));
        args.extend([format!("--entrypoint={}", argv[0]), image.0.clone()]);
        args.extend(argv[1..].iter().cloned());
        docker(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let container = Container(name);
        let began = Instant::now();
        docker(&["start", &container.0]);
        let started = began.elapsed();
        let pid = container.state("Pid").parse().unwrap();
        links.expect(id, pid);
        let link = match links.wait(id, LONG).await {
            Ok(link) => link,
            Err(e) => panic!("{e}: {}", container.log()),
        };
        println!("docker start {started:?}, linked after {:?}", began.elapsed());
        (Self { container, links, output, stop, id, pid, image, dir }, link)
    }

    async fn restart(&mut self) -> Link {
        self.stop.cancel();
        let (links, output, stop) = agent(self.dir.path(), &[]).await;
        (self.links, self.output, self.stop) = (links, output, stop);
        self.links.grant(self.id, grant());
        self.links.expect(self.id, self.pid);
        self.links.wait(self.id, LONG).await.unwrap()
    }

    async fn chunk(&mut self) -> OutputChunk {
        tokio::time::timeout(LONG, self.output.recv()).await.unwrap().unwrap()
    }
}

fn program(args: &[&str]) -> Process {
    let argv = ["/program"].iter().chain(args).map(|s| (*s).to_owned()).collect();
    Process { argv, env: vec![("PATH".into(), "/".to_owned().into())], workdir: String::new() }
}

/// What a short process prints.
async fn run(link: &Link, key: &str, args: &[&str]) -> String {
    let mut pipes = link.spawn(key, program(args)).await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(LONG, pipes.stdout.read_to_string(&mut text)).await.unwrap().unwrap();
    link.close(key, Duration::ZERO).await.unwrap();
    text
}

async fn echoes(mut socket: tokio::net::TcpStream) {
    socket.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"hello");
}

/// One container for everything that does not end it: starting one is the slow part.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_dialling_and_the_world_work_in_a_hardened_container() {
    // A server of the world, on this host's loopback, reached by the one name that means it on every host.
    let world = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = world.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        while let Ok((mut socket, _)) = world.accept().await {
            let mut request = [0; 64];
            let count = socket.read(&mut request).await.unwrap();
            assert!(request[..count].starts_with(b"GET /"));
            socket.write_all(b"the world").await.unwrap();
        }
    });
    let (mut bench, link) = Bench::new(&[port]).await;

    // Sessions.
    let began = Instant::now();
    let mut pipes = link.spawn("s1", program(&["echo"])).await.unwrap();
    let spawned = began.elapsed();
    pipes.stdin.write_all(b"one\n").await.unwrap();
    let mut line = [0; 64];
    let count = pipes.stdout.read(&mut line).await.unwrap();
    assert_eq!(&line[..count], b"got one\n");
    assert_eq!(run(&link, "s2", &["write", "/x"]).await, "read-only filesystem or storage medium");
    assert_eq!(run(&link, "s3", &["memory"]).await, "true", "init's memory and environment are closed to the server");
    let error = link.spawn("s4", Process { argv: vec!["/none".into()], ..program(&[]) }).await.unwrap_err();
    assert_eq!(error.to_string(), "'/none' could not be started: '/none' does not exist");

    // The world, then a failing name.
    let text = run(&link, "get", &["get", "127.0.0.1", &port.to_string()]).await;
    assert!(text.starts_with("127.88.") && text.ends_with(" the world"), "{text}");
    let text = run(&link, "get2", &["get", "no-such-host.invalid", &port.to_string()]).await;
    assert_eq!(text, "connection reset");
    let (_, made, failed) = bench.links.outbound_counts();
    assert_eq!((made, failed), (2, 1));
    // what is not listed is not even looked up, and what resolves to this host is not reached by its name
    let text = run(&link, "get3", &["get", "unlisted.example", &port.to_string()]).await;
    assert_eq!(text, "connection reset");
    let text = run(&link, "get4", &["get", "2130706434", &port.to_string()]).await;
    assert_eq!(text, "connection reset");
    let (_, made, _) = bench.links.outbound_counts();
    let (total, refused) = bench.links.refusals(DeploymentId(ulid::Ulid::from_parts(1, 1)));
    assert_eq!((made, total, refused.len()), (3, 2, 2), "{refused:?}");
    assert!(refused.iter().any(|r| r.why.contains("127.0.0.2 is the host's loopback")), "{refused:?}");
    serving.abort();

    // A former agent's session goes on.
    drop(pipes);
    let link = {
        drop(link);
        bench.restart().await
    };
    let mut pipes = link.resume("s1").await.unwrap().unwrap();
    pipes.stdin.write_all(b"two\n").await.unwrap();
    let count = pipes.stdout.read(&mut line).await.unwrap();
    assert_eq!(&line[..count], b"got two\n");
    drop(pipes);
    link.close("s1", LONG).await.unwrap();

    // The server's own port, also on the wildcard address, after names were resolved.
    let mut main = program(&["serve", "0.0.0.0", "8080"]);
    main.env.push(("PORT".into(), "8080".to_owned().into()));
    assert!(matches!(link.dial(8080).await, Err(LinkError::Refused(8080))));
    link.start_main(main).await.unwrap();
    let ready = bench.chunk().await;
    assert_eq!((ready.stream, &ready.bytes[..]), (Stream::Stdout, &b"ready\n"[..]));
    ready.ack();
    echoes(link.dial(8080).await.unwrap()).await;
    let mut dials: Vec<Duration> = Vec::new();
    for _ in 0..300 {
        let began = Instant::now();
        link.dial(8080).await.unwrap();
        dials.push(began.elapsed());
    }
    dials.sort();
    let status = std::fs::read_to_string(format!("/proc/{}/status", bench.pid)).unwrap();
    let rss = status.lines().find(|l| l.starts_with("VmRSS")).unwrap().to_owned();
    println!("spawn {spawned:?}, dial p50 {:?} p99 {:?}, init's {rss}", dials[150], dials[297]);
    // Its code goes to the stack, its heap is small; the binary's pages are shared by all containers.
    let kib: u64 = rss.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 4096, "{rss}");

    // Stop: the engine's SIGTERM to PID 1 ends everything quickly.
    let began = Instant::now();
    docker(&["stop", "--time", "10", &bench.container.0]);
    let stopped = began.elapsed();
    println!("docker stop {stopped:?}");
    assert!(stopped < Duration::from_secs(4), "{stopped:?}");
    assert_eq!(bench.container.state("ExitCode"), "143", "what main ended with");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_step_that_joins_the_network_reaches_the_world() {
    let world = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = world.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = world.accept().await {
            let _ = socket.read(&mut [0; 64]).await;
            let _ = socket.write_all(b"the world").await;
        }
    });
    let (bench, _link) = Bench::new(&[port]).await;
    let mut args = vec!["run".to_owned(), "--rm".to_owned(), format!("--network=container:{}", bench.container.0)];
    args.extend(["--entrypoint=/program", &bench.image.0, "get", "127.0.0.1"].map(str::to_owned));
    args.push(port.to_string());
    let step = tokio::task::spawn_blocking(move || docker(&args.iter().map(String::as_str).collect::<Vec<_>>()));
    let text = step.await.unwrap();
    assert!(text.ends_with(" the world"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn main_that_ends_ends_the_container_with_its_code_and_its_last_words() {
    let (mut bench, link) = Bench::new(&[]).await;
    let mut exit = link.main_exit();
    link.start_main(program(&["exit", "9"])).await.unwrap();
    let chunk = bench.chunk().await;
    assert_eq!((chunk.stream, &chunk.bytes[..]), (Stream::Stderr, &b"bye\n"[..]));
    chunk.ack();
    let exit = tokio::time::timeout(LONG, exit.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert_eq!(exit, Some(Exit { code: Some(9), signal: None }));
    assert_eq!(docker(&["wait", &bench.container.0]), "9");
    assert_eq!(bench.container.log(), "", "what an agent keeps is not in the engine's log");

    // The same instance again, with nobody there: the engine's log has the last words.
    bench.stop.cancel();
    docker(&["start", &bench.container.0]);
    bench.pid = bench.container.state("Pid").parse().unwrap();
    let link = bench.restart().await;
    assert!(link.main_exit().borrow().is_none(), "another life");
    link.start_main(program(&["exit", "8"])).await.unwrap();
    bench.stop.cancel();
    // init waits for an agent, until it is stopped
    let alone = || docker(&["top", &bench.container.0, "-o", "pid,args"]).lines().count() == 2;
    sigil_tests::eventually("main has ended", LONG, || alone().then_some(()));
    docker(&["kill", "--signal", "TERM", &bench.container.0]);
    assert_eq!(docker(&["wait", &bench.container.0]), "8");
    let log = bench.container.log();
    let (mark, words) = log.split_once('\n').expect("a mark, then the words");
    let mark = sigil_init::mark::Mark::parse(mark.as_bytes()).expect("a mark");
    assert_eq!((mark.process.as_str(), mark.offset, mark.bytes, mark.gap), ("main", 0, 4, false));
    assert_eq!(words, "bye\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_fast_and_whole() {
    let (mut bench, link) = Bench::new(&[]).await;
    const LINES: u64 = 1_000_000;
    let began = Instant::now();
    link.start_main(program(&["lines", &LINES.to_string(), "117"])).await.unwrap();
    let mut total = 0u64;
    while total < LINES * 128 {
        let chunk = bench.chunk().await;
        assert_eq!((chunk.offset, chunk.gap_before.is_none()), (total, true));
        // Every line has 128 bytes, so each chunk shows where it belongs.
        let first = total.div_ceil(128);
        let at = (first * 128 - total) as usize;
        if let Some(number) = chunk.bytes.get(at..at + 9) {
            assert_eq!(number, format!("{:09}", first + 1).as_bytes());
        }
        total += chunk.bytes.len() as u64;
        chunk.ack();
    }
    let rate = (total as f64 / 1e6) / began.elapsed().as_secs_f64();
    println!("output {rate:.0} MB/s");
    assert!(rate > 20.0, "{rate:.0} MB/s");
    assert_eq!(docker(&["wait", &bench.container.0]), "0");
}
