//! A server that tries to get out of its container and to wear out what is around it, on a real engine; beside it one
//! that must not notice.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sigil_tests::{Agent, eventually, fixture};

const SOON: Duration = Duration::from_secs(60);

/// A service of the host, which says `words` to whoever connects.
fn service(address: &str, words: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).expect("a free port");
    let at = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { continue };
            std::thread::spawn(move || {
                // whoever goes away before is not the one that is waited for
                let _sent = socket.write_all(words.as_bytes());
                let _ended = socket.read(&mut [0; 512]);
            });
        }
    });
    at
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// Deploys the hostile server from the Python base image: nothing is built.
fn deploy(agent: &Agent, name: &str, more: &[&str]) -> sigil_tests::Ran {
    let dir = tempfile::tempdir().expect("a directory");
    let manifest = dir.path().join("mcp.yaml");
    std::fs::write(&manifest, "name: hostile\ntransport: stdio\nhealth: { requestTimeout: 120 }\n").expect("a file");
    let manifest = manifest.display().to_string();
    let script = std::fs::read_to_string(format!("{}/server.py", fixture("hostile"))).expect("the fixture");
    let image = "image:sigil-base/python:latest";
    let head = ["deploy", image, "--name", name, "--manifest", &manifest];
    agent.sigil(&[&head, more, &["--", "python3", "-c", &script]].concat())
}

fn call(agent: &Agent, name: &str, tool: &str, arguments: &Value) -> Value {
    let ran = agent.sigil(&["call", name, tool, "--json", &arguments.to_string()]).ok();
    serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
}

fn detail(agent: &Agent, name: &str) -> Value {
    agent.sigil(&["get", name, "-o", "json"]).ok().json()
}

/// This host's own addresses that are not its loopback: what it would speak from.
fn own_addresses() -> Vec<String> {
    let from = |to: &str| {
        let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    };
    ["93.184.216.34", "172.17.0.2"].into_iter().filter_map(from).collect()
}

#[test]
fn nothing_is_reached_but_what_is_listed() {
    let secret = service("0.0.0.0", "SECRET");
    let welcome = service("127.0.0.1", "WELCOME");
    let gateway = free_port();
    let ports = format!("{},{},{gateway}", secret.port(), welcome.port());
    let agent = Agent::start_with(&[
        // open to the network, so that only the walls are in the way
        ("SIGIL_GATEWAY_LISTEN", &format!("0.0.0.0:{gateway}")),
        ("SIGIL_OUTBOUND_PORTS", &ports),
        ("SIGIL_OUTBOUND_ALLOW", &format!("*,127.0.0.1:{}", welcome.port())),
        ("SIGIL_OUTBOUND_NO_PROXY", "*"),
        ("SIGIL_BUILDER_EGRESS", "good.example"),
    ]);
    agent.sigil(&["deploy", &fixture("echo"), "--name", "neighbour"]).ok();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name").trim().to_owned();
    let (listed, rebound) = (format!("127.0.0.1:{}", welcome.port()), format!("{host}:{}", secret.port()));
    let deployed = deploy(&agent, "hostile", &["--egress", &listed, "--egress", &rebound]).ok();
    assert!(deployed.err.contains(&format!("egress: {listed}")), "{deployed:?}");

    let seen = call(&agent, "hostile", "look", &json!({}));
    assert_eq!(seen["interfaces"], json!(["lo"]), "{seen}");
    assert_eq!((&seen["talked"], &seen["abstract"], &seen["written"]), (&json!([]), &json!([]), &json!([])), "{seen}");
    assert_eq!(
        (&seen["opened"], &seen["uid"], &seen["new_privileges"]),
        (&json!([]), &json!(10001), &json!("1")),
        "{seen}"
    );
    assert!(seen["capabilities"].as_str().expect("text").bytes().all(|b| b == b'0'), "{seen}");

    let mut targets = vec![json!({ "host": "127.0.0.1", "port": welcome.port() })];
    let mut add = |host: &str, port: u16| targets.push(json!({ "host": host, "port": port }));
    // the host's services and the agent, by every name of here
    let mut names: Vec<String> = ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0", "::1", "::ffff:127.0.0.1"]
        .into_iter()
        .chain(["localhost.localdomain", "host.docker.internal", "gateway.docker.internal"])
        .map(str::to_owned)
        .collect();
    names.extend(own_addresses());
    names.push(host.clone());
    for name in &names {
        add(name, secret.port());
        add(name, gateway);
    }
    // neighbours, the engine over TCP, metadata, the network around, the world
    for (name, port) in [
        ("neighbour", 8080),
        ("172.17.0.1", 2375),
        ("127.0.0.1", 2375),
        ("169.254.169.254", 80),
        ("100.100.100.200", 80),
        ("fd00:ec2::254", 80),
        ("metadata.google.internal", 80),
        ("192.168.0.1", 80),
        ("10.0.0.1", 443),
        ("1.1.1.1", 443),
        ("pypi.org", 443),
        ("example.com", 443),
    ] {
        add(name, port);
    }
    let mut reached = Vec::new();
    for some in targets.chunks(12) {
        let answer = call(&agent, "hostile", "reach", &json!({ "targets": some }));
        assert_eq!(answer["tries"], some.len() * 4, "{answer}");
        reached.extend(answer["reached"].as_array().expect("a list").clone());
    }
    let (good, bad): (Vec<_>, Vec<_>) = reached.into_iter().partition(|r| r["port"] == welcome.port());
    assert_eq!(bad, Vec::<Value>::new(), "reached");
    assert!(good.iter().any(|r| r["got"] == "WELCOME"), "what is listed by both works: {good:?}");

    // each refusal is there to be seen, with its reason
    let shown = detail(&agent, "hostile");
    assert_eq!(shown["egress"], json!([listed, rebound]), "{shown}");
    let why = |host: &str, port: u16| {
        let all = shown["refused"].as_array().expect("a list").clone();
        let found = all.into_iter().find(|r| r["host"] == host && r["port"] == port);
        found.and_then(|r| r["why"].as_str().map(str::to_owned)).unwrap_or_default()
    };
    assert!(why("169.254.169.254", 80).contains("a cloud's metadata service"), "{shown}");
    assert!(why("127.0.0.1", secret.port()).contains("the host's loopback"), "{shown}");
    assert!(why("127.0.0.1", gateway).contains("the agent's own port"), "{shown}");
    assert!(why("192.168.0.1", 80).contains("a private address"), "{shown}");
    assert!(why("example.com", 443).contains("not in the egress list"), "{shown}");
    assert!(why("1.1.1.1", 443).contains("not in the egress list"), "{shown}");
    assert!(why("metadata.google.internal", 80).contains("metadata"), "{shown}");
    if (host.as_str(), 1).to_socket_addrs().is_ok_and(|mut found| found.next().is_some()) {
        assert!(why(&host, secret.port()).contains("is the host"), "a listed name that resolves to this host: {shown}");
    }
    let page = agent.sigil(&["get", "hostile"]).ok();
    assert!(page.out.contains("Refused egress (") && page.out.contains("169.254.169.254"), "{page:?}");
    let logs = agent.sigil(&["logs", "hostile", "-o", "json"]).ok();
    let marked = logs
        .out
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        .any(|l| l["stream"] == "agent" && l["line"].as_str().is_some_and(|t| t.starts_with("egress refused: ")));
    assert!(marked, "{logs:?}");
    let mut metrics = std::net::TcpStream::connect(("127.0.0.1", gateway)).expect("the gateway");
    metrics.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("sent");
    let mut text = String::new();
    metrics.read_to_string(&mut text).expect("an answer");
    let total = text.lines().find_map(|l| l.strip_prefix("sigil_outbound_refused_total{deployment=\"hostile\"} "));
    assert!(total.is_some_and(|n| n.parse::<u64>().expect("a number") >= 20), "{text}");

    // a list that asks for more than the owner allows does not get as far as a release
    let more =
        deploy(&agent, "hostile", &["--egress", "10.0.0.0/8", "--egress", "169.254.169.254", "--egress", "ok.example"]);
    assert_eq!(more.code, 4, "{more:?}");
    assert!(
        more.err.contains("10.0.0.0/8") && more.err.contains("169.254.169.254") && !more.err.contains("ok.example"),
        "{more:?}"
    );
    let bridge = tempfile::NamedTempFile::with_suffix(".yaml").expect("a file");
    std::fs::write(bridge.path(), "name: b\ntransport: stdio\nnetwork: { mode: bridge }\n").expect("written");
    let manifest = bridge.path().display().to_string();
    let bridged = agent.sigil(&[
        "deploy",
        "image:sigil-base/python:latest",
        "--name",
        "b",
        "--manifest",
        &manifest,
        "--",
        "python3",
    ]);
    assert!(bridged.code == 4 && bridged.err.contains("this host forbids"), "{bridged:?}");
    agent.sigil(&["rm", "hostile", "--yes"]).ok();

    // a build step is held to the builder's list
    let tree = tempfile::tempdir().expect("a directory");
    let step = "RUN python3 -c 'import urllib.request as u; u.urlopen(\"http://unlisted.example/\")' || echo unreached";
    let file = format!("FROM sigil-base/python:latest\n{step}\n");
    std::fs::write(tree.path().join("Dockerfile"), file).expect("a file");
    let built = agent.sigil(&["build", &tree.path().display().to_string(), "--force"]).ok();
    let said = format!("{}{}", built.out, built.err);
    assert!(
        said.contains("unreached") && said.contains("egress refused: unlisted.example:80: not in the egress list"),
        "{said}"
    );
}

fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

fn files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
}

/// The neighbour answers, soon.
fn neighbour_answers(agent: &Agent, while_: &str) -> Duration {
    let began = Instant::now();
    let ran = agent.sigil(&["call", "neighbour", "echo", "--arg", "text=still here"]);
    assert!(ran.code == 0 && ran.out.trim() == "still here", "{while_}: {ran:?}\n{}", agent.log());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "{while_}: {took:?}");
    took
}

#[test]
fn what_it_wears_out_is_its_own() {
    let welcome = service("127.0.0.1", "WELCOME");
    let listed = format!("127.0.0.1:{}", welcome.port());
    let agent = Agent::start_with(&[
        ("SIGIL_OUTBOUND_PORTS", &welcome.port().to_string()),
        ("SIGIL_OUTBOUND_ALLOW", &listed),
        ("SIGIL_OUTBOUND_NO_PROXY", "*"),
    ]);
    agent.sigil(&["deploy", &fixture("echo"), "--name", "neighbour"]).ok();
    let volume = ["--egress", &listed, "--volume", "data:/data"];
    deploy(&agent, "hostile", &volume).ok();
    let usual = neighbour_answers(&agent, "before");
    let (memory, open) = (resident_mib(agent.pid()), files(agent.pid()));
    let mut slowest = Duration::ZERO;
    for how in ["processes", "memory", "disk", "files", "log"] {
        let arguments = json!({ "how": how, "seconds": 6 }).to_string();
        let mut attack = agent
            .command(&["call", "hostile", "wear", "--json", &arguments])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("sigil starts");
        let deadline = Instant::now() + SOON;
        while attack.try_wait().expect("it is ours").is_none() {
            slowest = slowest.max(neighbour_answers(&agent, how));
            assert!(Instant::now() < deadline, "{how} does not end");
        }
        let done = attack.wait_with_output().expect("it ended");
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let (memory, open) = (resident_mib(agent.pid()), files(agent.pid()));
        let errors = String::from_utf8_lossy(&done.stderr);
        eprintln!("{how}: {}{} agent: {memory} MiB, {open} files", said.trim(), errors.trim());
        let told: Value = serde_json::from_str(&said).unwrap_or(Value::Null);
        match how {
            "processes" => assert!(told["count"].as_u64().is_none_or(|n| n < 512), "{said}"),
            "files" => assert!(told["raised"] == false && told["count"].as_u64().is_some_and(|n| n < 1024), "{said}"),
            "disk" => {
                let places = told.as_object().expect("places");
                assert!(places.values().all(|v| v[0].as_u64().is_some_and(|n| n <= 64 << 20)), "{said}");
                let closed = ["/", "/run", "/var/tmp", "/.sigil/run"].iter().all(|p| places[*p][0] == 0);
                assert!(closed && places["/tmp"][0] != 0, "{said}");
            }
            _ => {}
        }
        // whatever it did to itself, it comes back by itself
        eventually(&format!("it answers again after {how}"), SOON, || {
            let ran = agent.sigil(&["call", "hostile", "echo", "--arg", "text=back"]);
            (ran.code == 0 && ran.out.trim() == "back").then_some(())
        });
    }

    // connections: the way out gives one container so many, and refusals fill neither log nor memory
    let crowd = json!({ "host": "127.0.0.1", "port": welcome.port(), "count": 900 });
    let crowd = call(&agent, "hostile", "crowd", &crowd);
    assert!(crowd["open"].as_u64().is_some_and(|n| (300..=512).contains(&n)), "{crowd}");
    neighbour_answers(&agent, "after a crowd of connections");
    for n in 0..60 {
        let name = format!("h{n}.example");
        let answer = call(&agent, "hostile", "crowd", &json!({ "host": name, "port": 443, "count": 5 }));
        assert_eq!(answer["open"], 0, "{answer}");
    }
    let shown = detail(&agent, "hostile");
    // at least one of each name; on a busy machine a refusal comes before the connection, and it tries no more
    assert!(shown["refused_total"].as_u64().is_some_and(|n| n >= 60), "{shown}");
    assert!(shown["refused"].as_array().expect("a list").len() <= 64, "{shown}");
    let logs = agent.sigil(&["logs", "hostile", "--grep", "^egress refused: ", "-o", "json"]).ok();
    let marks = logs.out.lines().count();
    assert!((10..=60).contains(&marks), "{marks} lines: {logs:?}");

    // links in its volume lead nowhere outside, whatever is done with the volume
    let outside = tempfile::tempdir().expect("a directory");
    let kept = outside.path().join("kept");
    std::fs::write(&kept, "as it was").expect("a file");
    std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o600)).expect("ours");
    let before = std::fs::metadata(&kept).expect("it is there");
    for target in [
        kept.display().to_string(),
        outside.path().display().to_string(),
        "/".into(),
        agent.data().display().to_string(),
    ] {
        call(&agent, "hostile", "link", &json!({ "path": "/data", "target": target }));
        deploy(&agent, "hostile", &[&volume[..], &["--env", &format!("A={}", target.len())]].concat()).ok();
        agent.sigil(&["restart", "hostile"]).ok();
    }
    let mounted = deploy(&agent, "hostile", &["--egress", &listed, "--volume", "data:/data/way"]);
    eprintln!("a volume at a link: {} {}", mounted.code, mounted.err.lines().last().unwrap_or_default());
    agent.sigil(&["rm", "hostile", "--yes"]).ok();
    let after = std::fs::metadata(&kept).expect("it is there");
    assert_eq!((before.uid(), before.mode(), before.mtime_nsec()), (after.uid(), after.mode(), after.mtime_nsec()));
    assert_eq!(std::fs::read_to_string(&kept).expect("readable"), "as it was");

    let now = neighbour_answers(&agent, "at the end");
    eprintln!("neighbour: {usual:?} before, {slowest:?} at worst, {now:?} at the end");
    let (memory_now, open_now) = (resident_mib(agent.pid()), files(agent.pid()));
    eprintln!("agent: {memory} MiB and {open} files before, {memory_now} and {open_now} after");
    assert!(memory_now < memory + 100, "{memory_now} MiB");
    assert!(open_now < open + 100, "{open_now} files");
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}
