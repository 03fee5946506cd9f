//! Canaries: secrets that are deployed, used, rotated, shown once and deleted, while servers print them, crash, and the
//! agent is killed. Then everything that anybody could look at is searched for them: they are in their servers' own
//! environment, and nowhere else.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use sigil_tests::{Agent, Ran, binary, docker, eventually};

const SOON: Duration = Duration::from_secs(60);

/// Over stdio. Says what it has by a sum, prints it in every form, and dies of it.
const STDIO: &str = r#"
import base64, json, os, sys, urllib.parse

value = os.environ["CANARY"]
print("starting with", value, file=sys.stderr, flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    result = {}
    if asked["method"] == "initialize":
        result = {"protocolVersion": "2025-11-25", "serverInfo": {"name": "canary", "version": "1"}, "capabilities": {"tools": {}}}
    elif asked["method"] == "tools/list":
        result = {"tools": [{"name": n, "description": "One.", "inputSchema": {"type": "object"}} for n in ("total", "shout", "crash")]}
    elif asked["method"] == "tools/call":
        name = asked["params"]["name"]
        if name == "crash":
            raise RuntimeError("cannot use " + value)
        if name == "shout":
            for form in (value, base64.b64encode(b"user:" + value.encode()).decode(), urllib.parse.quote(value, safe=""), json.dumps({"v": value})):
                print("I have", form, file=sys.stderr, flush=True)
        total = sum((i + 1) * b for i, b in enumerate(value.encode()))
        result = {"content": [{"type": "text", "text": str(total)}]}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"#;

/// What cannot be guessed of a value; around it stand characters that are written otherwise in JSON, base64 and addresses.
struct Canary {
    core: String,
    value: String,
}

impl Canary {
    fn new() -> Self {
        let core = ulid::Ulid::generate().to_string();
        Self { value: format!("q\"/+ {core} &=\\"), core }
    }

    /// Its core as it stands, and in base64 at each of three alignments.
    fn needles(&self) -> Vec<Vec<u8>> {
        let mut all = vec![self.core.clone().into_bytes(), self.core.to_lowercase().into_bytes()];
        for before in 0..3 {
            let padded = [vec![0; before], self.core.clone().into_bytes()].concat();
            for text in [STANDARD_NO_PAD.encode(&padded), URL_SAFE_NO_PAD.encode(&padded)] {
                all.push(text.as_bytes()[[0, 2, 3][before]..padded.len() / 3 * 4].to_vec());
            }
        }
        all
    }

    fn total(&self) -> String {
        self.value.bytes().enumerate().map(|(i, b)| (i + 1) * usize::from(b)).sum::<usize>().to_string()
    }
}

/// Everything that was looked at, by where.
#[derive(Default)]
struct Seen {
    texts: BTreeMap<String, Vec<u8>>,
    /// What is large is searched by `grep`.
    files: Vec<(String, tempfile::NamedTempFile)>,
}

impl Seen {
    fn add(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.texts.entry(place.into()).or_default().extend(bytes.into());
    }

    fn ran(&mut self, what: &str, ran: Ran) -> Ran {
        self.add(format!("`{what}`"), format!("{}\n{}\n", ran.out, ran.err));
        ran
    }

    fn file(&mut self, path: &Path) {
        // sockets; and files that went while this looked
        let Ok(bytes) = std::fs::symlink_metadata(path).and_then(|m| match m.is_file() {
            true => std::fs::read(path),
            false => Ok(Vec::new()),
        }) else {
            return;
        };
        // compressed parts, wherever in the file they begin
        let magic = [0x28, 0xb5, 0x2f, 0xfd];
        for (at, _) in bytes.windows(4).enumerate().filter(|(_, w)| *w == magic) {
            let mut plain = Vec::new();
            if let Ok(mut decoder) = zstd::stream::read::Decoder::new(&bytes[at..]) {
                // what comes before a broken end counts
                let _ended = decoder.read_to_end(&mut plain);
            }
            self.add(format!("{} (unpacked)", path.display()), plain);
        }
        self.add(path.display().to_string(), bytes);
    }

    fn folder(&mut self, path: &Path) {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.folder(&entry.path());
            } else {
                self.file(&entry.path());
            }
        }
    }

    fn has_none_of(&self, canaries: &[&Canary]) {
        let mut found = Vec::new();
        for (place, bytes) in &self.texts {
            for (n, canary) in canaries.iter().enumerate() {
                for needle in canary.needles() {
                    if let Some(at) = bytes.windows(needle.len()).position(|w| w == needle) {
                        let from = at.saturating_sub(60);
                        let around = String::from_utf8_lossy(&bytes[from..(at + 60).min(bytes.len())]).into_owned();
                        found.push(format!("canary {n} is in {place}: …{around}…"));
                    }
                }
            }
        }
        let mut needles = tempfile::NamedTempFile::new().expect("a file");
        for needle in canaries.iter().flat_map(|canary| canary.needles()) {
            needles.write_all(&[needle.as_slice(), b"\n"].concat()).expect("it is written");
        }
        for (place, file) in &self.files {
            let mut grep = std::process::Command::new("grep");
            let found_here = grep.args(["-a", "-q", "-F", "-f"]).args([needles.path(), file.path()]).status();
            match found_here.expect("grep").code() {
                Some(1) => {}
                Some(0) => found.push(format!("a canary is in {place}")),
                other => panic!("grep: {other:?}"),
            }
        }
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

fn fed(agent: &Agent, args: &[&str], stdin: &str) -> Ran {
    let mut child = agent
        .command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sigil starts");
    child.stdin.take().expect("a pipe").write_all(stdin.as_bytes()).expect("it reads");
    let out = child.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: out.status.code().unwrap_or(-1), out: text(&out.stdout), err: text(&out.stderr), took: Duration::ZERO }
}

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let tree = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        std::fs::write(tree.path().join(name), text).expect("a file");
    }
    tree
}

fn total(agent: &Agent, seen: &mut Seen) -> String {
    let ran = eventually("an answer", SOON, || {
        let ran = seen.ran("call total", agent.sigil(&["call", "app", "total", "-o", "json"]));
        (ran.code == 0).then_some(ran)
    });
    ran.json()["content"][0]["text"].as_str().expect("a text").to_owned()
}

fn keys(agent: &Agent, seen: &mut Seen, args: &[&str]) {
    let mut command = std::process::Command::new(binary("sigil-agent"));
    let out = command.arg("keys").args(args).arg("--data-dir").arg(agent.data()).output().expect("sigil-agent starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    seen.add("`sigil-agent keys`", [out.stdout, out.stderr].concat());
}

/// What an engine tells of an agent's containers and their images.
fn engine(agent: &Agent, seen: &mut Seen) {
    let containers = agent.containers();
    assert_eq!(containers.len(), 2, "both servers run");
    let mut images = Vec::new();
    for container in &containers {
        seen.add("docker inspect", docker(&["inspect", container]));
        let logs = std::process::Command::new("docker").args(["logs", container]).output().expect("docker");
        seen.add("docker logs", [logs.stdout, logs.stderr].concat());
        let image = docker(&["inspect", "-f", "{{.Image}}", container]);
        seen.add("docker image inspect", docker(&["image", "inspect", &image]));
        seen.add("docker history", docker(&["history", "--no-trunc", &image]));
        images.push(image);
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().display().to_string();
    docker(&[&["save", "-o", &path], images.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat());
    seen.files.push(("docker save".into(), file));
}

#[test]
fn a_secret_is_in_its_servers_environment_and_nowhere_else() {
    let (first, second, query, head) = (Canary::new(), Canary::new(), Canary::new(), Canary::new());
    let canaries = [&first, &second, &query, &head];
    let mut seen = Seen::default();
    let stdio = tree(&[
        ("main.py", STDIO),
        ("mcp.yaml", "name: app\nruntime: python\ntransport: stdio\nentrypoint: main.py\nsecrets: [CANARY]\n"),
    ]);
    let server = std::fs::read_to_string(sigil_tests::root().join("tests/fixtures/echo/server.py")).expect("a fixture");
    // it knows its path without a query only
    let server = server.replace("self.path != \"/mcp\"", "self.path.split(\"?\")[0] != \"/mcp\"");
    let manifest = "name: web\nruntime: python\ntransport: http\nport: 8080\npath: /mcp\nentrypoint: server.py\nsecrets:\n  \
                    - { name: QUERY, inject: { as: query, name: key } }\n  \
                    - { name: HEAD, inject: { as: header, name: X-Head } }\n";
    let http = tree(&[("server.py", &server), ("mcp.yaml", manifest)]);
    let mut agent = Agent::start();
    let sources = [stdio.path().display().to_string(), http.path().display().to_string()];

    // deployed: first without, which is refused
    let refused = seen.ran("deploy", agent.sigil(&["deploy", &sources[0], "--name", "app"]));
    assert!(refused.code == 2 && refused.err.contains("CANARY"), "{}", refused.err);
    for (name, canary) in [("CANARY", &first), ("QUERY", &query), ("HEAD", &head)] {
        seen.ran("secret set", fed(&agent, &["secret", "set", name], &canary.value)).ok();
    }
    for (name, source) in [("app", &sources[0]), ("web", &sources[1])] {
        seen.ran("deploy", agent.sigil(&["deploy", source, "--name", name])).ok();
    }
    // used, printed in every form, and sent back by a server that is asked what it was sent
    assert_eq!(total(&agent, &mut seen), first.total());
    seen.ran("call shout", agent.sigil(&["call", "app", "shout"])).ok();
    let told = seen.ran("call headers", agent.sigil(&["call", "web", "headers"])).ok();
    assert!(told.out.to_lowercase().contains("x-head"), "{}", told.out);
    // crashes
    let crashed = seen.ran("call crash", agent.sigil(&["call", "app", "crash"]));
    assert_ne!(crashed.code, 0);
    assert_eq!(total(&agent, &mut seen), first.total());
    // rotated: who uses it is restarted, and nobody else
    let before = agent.containers();
    let rotated = seen.ran("secret rotate", fed(&agent, &["secret", "rotate", "CANARY"], &second.value)).ok();
    assert!(rotated.out.contains("app: restarted") && !rotated.out.contains("web"), "{}", rotated.out);
    assert_eq!(total(&agent, &mut seen), second.total());
    let kept = agent.containers().iter().filter(|c| before.contains(c)).count();
    assert_eq!(kept, 1, "the other server goes on");
    // the agent dies, and its keys change
    agent.kill();
    agent.up();
    agent.until("app", "ready", SOON);
    assert_eq!(total(&agent, &mut seen), second.total());
    seen.ran("call shout", agent.sigil(&["call", "app", "shout"])).ok();
    keys(&agent, &mut seen, &["rotate"]);
    keys(&agent, &mut seen, &["rotate", "--master-key"]);
    keys(&agent, &mut seen, &["ls"]);
    // shown once, to whoever asks for it
    let shown = agent.sigil(&["secret", "reveal", "CANARY", "--yes"]).ok();
    assert_eq!(shown.out, second.value);
    // wrong turns: a value where a name belongs
    seen.ran("secret rotate", fed(&agent, &["secret", "rotate", "NONE"], &second.value));
    seen.ran("secret set", fed(&agent, &["secret", "set", "bad-name"], &second.value));

    for args in [
        &["logs", "--all", "-o", "json"][..],
        &["audit", "-o", "json"],
        &["ops", "-o", "json"],
        &["get", "app", "-o", "json"],
        &["get", "web", "-o", "json"],
        &["ls", "-o", "json"],
        &["secret", "ls", "-o", "json"],
        &["info", "-o", "json"],
    ] {
        seen.ran(&args.join(" "), agent.sigil(args)).ok();
    }
    let logs = String::from_utf8_lossy(&seen.texts["`logs --all -o json`"]).into_owned();
    assert!(logs.contains("starting with") && logs.contains("I have") && logs.contains("key="), "{logs}");
    let audit = String::from_utf8_lossy(&seen.texts["`audit -o json`"]).into_owned();
    for word in ["secret.set", "secret.rotate", "secret.reveal", "secret.read", "keys.rotate"] {
        assert!(audit.contains(word), "{word} is not in the audit log");
    }
    for page in ["metrics", "readyz"] {
        let url = format!("http://127.0.0.1:{}/{page}", agent.port);
        let text = get(agent.port, page);
        seen.add(url, text);
    }
    engine(&agent, &mut seen);
    seen.file(Path::new(&format!("/proc/{}/environ", agent.pid())));
    seen.file(Path::new(&format!("/proc/{}/cmdline", agent.pid())));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.pid())).expect("our child");
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    seen.folder(&agent.data());
    seen.add("the agent's log", agent.log());
    seen.has_none_of(&canaries);
    seen = Seen::default();

    // deleted: gone from the disk, sealed or not, as far as anybody can tell
    for name in ["app", "web"] {
        seen.ran("rm", agent.sigil(&["rm", name, "--yes"])).ok();
    }
    for name in ["CANARY", "QUERY", "HEAD"] {
        seen.ran("secret rm", agent.sigil(&["secret", "rm", name, "--yes"])).ok();
    }
    assert_eq!(agent.sigil(&["secret", "reveal", "CANARY", "--yes"]).code, 3);
    agent.terminate();
    seen.folder(&agent.data());
    seen.add("the agent's log", agent.log());
    seen.has_none_of(&canaries);
}

fn get(port: u16, page: &str) -> Vec<u8> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("the gateway listens");
    write!(stream, "GET /{page} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    answer
}

/// The search finds what is there: a test that cannot fail would say nothing.
#[test]
fn the_search_finds_every_form() {
    let canary = Canary::new();
    let value = &canary.value;
    let packed = zstd::encode_all(format!("line {value}").as_bytes(), 1).expect("it packs");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), [b"head".as_slice(), &packed].concat()).expect("a file");
    let mut seen = Seen::default();
    seen.file(file.path());
    assert!(std::panic::catch_unwind(|| seen.has_none_of(&[&canary])).is_err(), "packed");
    for form in [
        value.clone(),
        STANDARD_NO_PAD.encode(value),
        URL_SAFE_NO_PAD.encode(format!("u:{value}")),
        STANDARD_NO_PAD.encode(format!("us:{value}")),
        serde_json::json!({ "v": value }).to_string(),
    ] {
        let mut seen = Seen::default();
        seen.add("somewhere", format!("before {form} after"));
        assert!(std::panic::catch_unwind(|| seen.has_none_of(&[&canary])).is_err(), "{form}");
    }
    let mut seen = Seen::default();
    let mut large = tempfile::NamedTempFile::new().expect("a file");
    large.write_all(&[vec![0; 100_000], value.clone().into_bytes()].concat()).expect("it is written");
    seen.files.push(("a large file".into(), large));
    assert!(std::panic::catch_unwind(|| seen.has_none_of(&[&canary])).is_err(), "large");
    let mut seen = Seen::default();
    seen.add("somewhere", "before ••••••• after");
    seen.has_none_of(&[&canary]);
}
