//! The official conformance suite (`@modelcontextprotocol/conformance`) against a fixture server of ours, as it is and
//! behind the gateway: what goes through the gateway scores as it does without. There are no expected failures.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde::Deserialize;
use sigil_tests::{Agent, binary, docker};

/// The server that the suite is run against: `tests/fixtures/conformance`.
const SERVER: &str = "conformance-server";

/// A scenario in which this version of the suite checks nothing.
const EMPTY: [&str; 1] = ["tasks-status-notifications"];

/// The longest run.
const SECONDS: f64 = 30.0;

/// A revision of the protocol, and how many scenarios the suite has for it.
struct Revision {
    name: &'static str,
    required: usize,
    unscored: usize,
    /// Scenarios of extensions, which are in no revision's set.
    named: &'static [&'static str],
}

const LEGACY: Revision = Revision { name: "2025-11-25", required: 30, unscored: 3, named: &[] };

const MODERN: Revision = Revision {
    name: "2026-07-28",
    required: 37,
    unscored: 13,
    named: &["sep-2640-skills-directory", "sep-2640-skills-enumeration", "sep-2640-skills-manifest"],
};

/// What `conformance.mjs` prints.
#[derive(Debug, Deserialize)]
struct Report {
    exit: Option<i32>,
    seconds: f64,
    last: String,
    required: Vec<Scenario>,
    unscored: Vec<Scenario>,
    named: Vec<Scenario>,
}

#[derive(Debug, Deserialize)]
struct Scenario {
    scenario: String,
    /// None: it broke off.
    checks: Option<Vec<Check>>,
}

#[derive(Debug, Deserialize)]
struct Check {
    id: String,
    status: String,
    #[serde(rename = "errorMessage")]
    message: Option<String>,
}

impl Scenario {
    fn count(&self, status: &str) -> usize {
        self.checks.iter().flatten().filter(|check| check.status == status).count()
    }

    /// It found something right and nothing wrong.
    fn passed(&self) -> bool {
        let looked = self.count("SUCCESS") > 0 || EMPTY.contains(&self.scenario.as_str());
        looked && self.count("FAILURE") == 0
    }

    /// One line for each check with this outcome.
    fn told(&self, status: &str) -> Vec<String> {
        let checks = self.checks.iter().flatten().filter(|check| check.status == status);
        checks
            .map(|check| {
                let message: String = check.message.as_deref().unwrap_or("-").chars().take(240).collect();
                format!("  {status} {} / {}: {message}", self.scenario, check.id)
            })
            .collect()
    }
}

impl Report {
    fn all(&self) -> impl Iterator<Item = &Scenario> {
        self.required.iter().chain(&self.unscored).chain(&self.named)
    }

    /// What did not go well, a line for each check.
    fn complaints(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for scenario in self.all() {
            lines.extend(scenario.told("FAILURE"));
            lines.extend(scenario.told("WARNING"));
            if scenario.checks.is_none() {
                lines.push(format!("  {} broke off", scenario.scenario));
            } else if !scenario.passed() && scenario.count("FAILURE") == 0 {
                lines.push(format!("  {} checked nothing", scenario.scenario));
            }
        }
        lines
    }
}

/// Runs the suite in the client image, on the host's network: a server on a loopback address is what it wants.
fn suite(url: &str, revision: &Revision) -> Report {
    let image = "sigil-test/client-node:latest";
    let script = "/client/conformance.mjs";
    let mut args = vec!["run", "--rm", "--network", "host", image, "node", script, url, revision.name];
    args.extend(revision.named);
    let out = docker(&args);
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("not JSON ({e}): {out}"))
}

/// Runs the suite, prints its score, and wants all of it.
fn scores(way: &str, url: &str, revision: &Revision) {
    let report = suite(url, revision);
    let passed = |scenarios: &[Scenario]| {
        let good = scenarios.iter().filter(|scenario| scenario.passed()).count();
        format!("{good}/{}", scenarios.len())
    };
    let sum = |status| report.all().map(|scenario| scenario.count(status)).sum::<usize>();
    let row = [
        revision.name.to_owned(),
        way.to_owned(),
        passed(&report.required),
        passed(&report.unscored),
        passed(&report.named),
        format!("{}/{}", sum("SUCCESS"), sum("SUCCESS") + sum("FAILURE")),
        sum("WARNING").to_string(),
        format!("{:.1}", report.seconds),
    ];
    let head = ["revision", "way", "required", "unscored", "extensions", "checks", "warnings", "seconds"];
    let line = |cells: &[&str]| cells.iter().map(|cell| format!("{cell:<16}")).collect::<String>();
    let row = format!("{}\n{}", line(&head), line(&row.each_ref().map(String::as_str)));
    eprintln!("{row}");

    let complaints = report.complaints();
    assert!(complaints.is_empty(), "{row}\n{}", complaints.join("\n"));
    let sizes = (report.required.len(), report.unscored.len(), report.named.len());
    assert_eq!(sizes, (revision.required, revision.unscored, revision.named.len()), "the suite has changed");
    assert_eq!(report.exit, Some(0), "{}", report.last);
    assert!(report.seconds < SECONDS, "{} s", report.seconds);
}

/// The fixture as a process of this machine.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start() -> Self {
        let mut child = Command::new(binary(SERVER))
            .args(["--http", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let first = lines.next().expect("it says where it listens").expect("text");
        let url = first.strip_prefix("listening at ").unwrap_or_else(|| panic!("{first}")).to_owned();
        // the rest is what it says of broken connections: read, or it waits for a reader
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A folder that can be deployed: the server as it was built here, with the libraries that it was built against, since
/// those of an image may be older.
fn source(transport: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let copy = |from: &Path| {
        let name = from.file_name().expect("a file");
        std::fs::copy(from, dir.path().join(name)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        name.to_string_lossy().into_owned()
    };
    let server = binary(SERVER);
    let server_name = copy(&server);
    let linked = Command::new("ldd").arg(&server).output().expect("ldd is part of the system");
    let linked = String::from_utf8(linked.stdout).expect("text");
    // `libc.so.6 => /lib/libc.so.6 (0x…)`, and the loader: `/lib64/ld-linux.so.2 (0x…)`
    let files = linked.lines().flat_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let names: Vec<String> = files.map(|file| copy(Path::new(file))).collect();
    let loader = names.iter().find(|name| name.starts_with("ld-")).unwrap_or_else(|| panic!("no loader: {linked}"));

    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("a file");
    put("Dockerfile", "FROM sigil-base/node\nCOPY . /app\nUSER 10001:10001\n");
    let mode = if transport == "http" { r#""--http", "0.0.0.0:8080""# } else { r#""--stdio""# };
    let command = format!(r#"["/app/{loader}", "--library-path", "/app", "/app/{server_name}", {mode}]"#);
    let web = if transport == "http" { "port: 8080\npath: /mcp\n" } else { "" };
    let build = "build: { dockerfile: Dockerfile }";
    put("mcp.yaml", &format!("name: conformance\ntransport: {transport}\ncommand: {command}\n{web}{build}\n"));
    dir
}

/// The fixture behind the gateway of an agent of its own.
fn behind_the_gateway(transport: &str, revision: &Revision) {
    let source = source(transport);
    let agent = Agent::start();
    let folder = source.path().to_string_lossy();
    agent.sigil(&["deploy", &folder, "--name", "fixture"]).ok();
    scores(&format!("gateway, {transport}"), &agent.url("fixture"), revision);
}

#[test]
fn direct() {
    let server = Server::start();
    scores("direct", &server.url, &LEGACY);
    scores("direct", &server.url, &MODERN);
}

#[test]
fn http_2025_11_25() {
    behind_the_gateway("http", &LEGACY);
}

#[test]
fn http_2026_07_28() {
    behind_the_gateway("http", &MODERN);
}

#[test]
fn stdio_2025_11_25() {
    behind_the_gateway("stdio", &LEGACY);
}

#[test]
fn stdio_2026_07_28() {
    behind_the_gateway("stdio", &MODERN);
}
