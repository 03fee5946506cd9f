//! What whole-product tests share: a real agent in a process of its own on a temporary data directory, the real `sigil`
//! beside it, and predicates with deadlines.

pub mod badlink;
pub mod clients;
pub mod double;
pub mod engine;
pub mod flaps;
pub mod kills;
pub mod screen;
pub mod soak;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Where cargo put the workspace's binaries.
///
/// # Panics
/// When the binary has not been built: `cargo build --workspace` makes it.
pub fn binary(name: &str) -> PathBuf {
    let mut dir = std::env::current_exe().expect("a test has a path");
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace` first", path.display());
    path
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

/// A tree under `tests/fixtures`.
pub fn fixture(name: &str) -> String {
    root().join("tests/fixtures").join(name).to_string_lossy().into_owned()
}

/// A git repository made of a fixture; answers its commit.
///
/// # Panics
/// Without git.
pub fn git_repository(fixture_name: &str, dir: &Path) -> String {
    let run = |args: &[&str]| {
        let out = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"])
            .args(args)
            .current_dir(dir)
            .output()
            .expect("git is installed");
        assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    let copied = Command::new("cp").arg("-a").arg(format!("{}/.", fixture(fixture_name))).arg(dir).status();
    assert!(copied.expect("cp").success());
    run(&["init", "-q"]);
    run(&["add", "-A"]);
    run(&["commit", "-q", "-m", "first"]);
    run(&["rev-parse", "HEAD"])
}

/// Waits until `ready` answers something.
///
/// # Panics
/// At the deadline, with `what`.
pub fn eventually<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A xorshift: moments must differ, no more.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Another one for each process.
    pub fn new() -> Self {
        Self::seeded(u64::from(std::process::id()))
    }

    /// The same for the same `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ seed)
    }

    /// Where it stands.
    pub fn seed(&self) -> u64 {
        self.0
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// An index into `n`, which is not 0.
    pub fn pick(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap_or_default()
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs `docker` and answers its standard output.
///
/// # Panics
/// When there is no engine, or the command fails: tests that need one fail without it.
pub fn docker(args: &[&str]) -> String {
    docker_at(None, args)
}

/// The same on the engine at `host` (`unix:///…`) instead of the machine's own.
///
/// # Panics
/// When it cannot be reached, or the command fails.
pub fn docker_at(host: Option<&str>, args: &[&str]) -> String {
    let mut command = Command::new("docker");
    if let Some(host) = host {
        command.env("DOCKER_HOST", host);
    }
    let out = command.args(args).output().expect("docker is installed (scripts/test does it)");
    assert!(out.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// How a `sigil` command ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    fn new(output: Output, took: Duration) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            took,
        }
    }

    /// Standard output, which must be JSON.
    ///
    /// # Panics
    /// When it is not.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("not JSON ({e}): {self:?}"))
    }

    /// Itself, when the exit code is 0.
    ///
    /// # Panics
    /// When it is another.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.out, self.err);
        self
    }
}

/// An agent's configuration file, where a test gives one.
const CONFIG: &str = "agent.toml";

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    child: Option<Child>,
    dir: tempfile::TempDir,
    env: Vec<(String, String)>,
    /// Its engine's address, when it is not the machine's own.
    engine: Option<String>,
    /// Where its gateway listens.
    pub port: u16,
}

impl Agent {
    /// Starts one on a data directory of its own.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with environment overrides.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_with(env: &[(&str, &str)]) -> Self {
        let mut agent = Self::prepare(env, None);
        agent.up();
        agent
    }

    /// One whose configuration file says this.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_from(config: &str) -> Self {
        let mut agent = Self::prepare(&[], None);
        std::fs::write(agent.dir.path().join(CONFIG), config).expect("a file");
        agent.up();
        agent
    }

    /// One on the engine at `host` (`unix:///…`).
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_on(host: &str, env: &[(&str, &str)]) -> Self {
        let mut agent = Self::prepare(env, Some(host));
        agent.up();
        agent
    }

    fn prepare(env: &[(&str, &str)], engine: Option<&str>) -> Self {
        let dir = tempfile::Builder::new().prefix("sigil-test").tempdir().expect("a temporary directory");
        // the kernel picks a free port; the moment between is short
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let mut env: Vec<(String, String)> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        env.extend(engine.map(|host| ("SIGIL_ENGINE_HOST".to_owned(), host.to_owned())));
        Self { child: None, dir, env, engine: engine.map(str::to_owned), port }
    }

    /// Starts it again after [`Self::kill`].
    ///
    /// # Panics
    /// When it does not come up.
    pub fn up(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("agent.log"))
            .expect("a log file");
        let mut command = Command::new(binary("sigil-agent"));
        command
            .args(["run", "--data-dir"])
            .arg(self.data())
            .args(
                Some(self.dir.path().join(CONFIG))
                    .filter(|file| file.exists())
                    .iter()
                    .flat_map(|file| [std::ffi::OsStr::new("--config"), file.as_os_str()]),
            )
            .env("SIGIL_GATEWAY_LISTEN", format!("127.0.0.1:{}", self.port))
            .env("SIGIL_LIMITS_MIN_FREE_DISK", "1000000")
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log);
        self.child = Some(command.spawn().expect("sigil-agent starts"));
        let socket = self.data().join("agent.sock");
        let mut last = String::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if socket.exists() {
                let ran = self.sigil(&["info", "-o", "json"]);
                if ran.code == 0 {
                    return;
                }
                last = ran.err;
            }
            let ended = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
            assert!(ended.is_none(), "the agent ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "the agent does not answer: {last}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Its id.
    pub fn id(&self) -> String {
        std::fs::read_to_string(self.data().join("agent-id")).unwrap_or_default().trim().to_owned()
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn terminate(&mut self) -> Duration {
        let began = Instant::now();
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is ours");
            eventually("the agent ends", Duration::from_secs(30), || child.try_wait().ok().flatten());
        }
        began.elapsed()
    }

    /// A `sigil` command that talks to this agent.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("sigil"));
        command
            .args(args)
            .env("SIGIL_HOST", format!("unix://{}", self.data().join("agent.sock").display()))
            .env("XDG_CONFIG_HOME", self.dir.path().join("config"))
            .env("XDG_STATE_HOME", self.dir.path().join("state"))
            .env_remove("SIGIL_TOKEN")
            .stdin(Stdio::null());
        command
    }

    /// Runs a `sigil` command.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn sigil(&self, args: &[&str]) -> Ran {
        let began = Instant::now();
        let output = self.command(args).output().expect("sigil starts");
        Ran::new(output, began.elapsed())
    }

    /// One deployment as `sigil ls -o json` tells it.
    pub fn ls(&self, name: &str) -> Option<Value> {
        let ran = self.sigil(&["ls", "-o", "json"]);
        if ran.code != 0 {
            return None;
        }
        ran.json().as_array()?.iter().find(|d| d["name"] == name).cloned()
    }

    /// Waits until a deployment is in a state.
    pub fn until(&self, name: &str, state: &str, limit: Duration) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(now) = self.ls(name) {
                if now["state"] == state {
                    return now;
                }
                last = now;
            }
            assert!(Instant::now() < deadline, "'{name}' is not {state} within {limit:?}: {last}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Opens a client's session with a deployment. The process of a stdio server runs, and prints, as long as it is held.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn session(&self, name: &str) -> Session {
        let mut child = self
            .command(&["run", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sigil starts");
        let hello = concat!(
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","#,
            r#""capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#,
            "\n"
        );
        let stdin = child.stdin.as_mut().expect("piped");
        std::io::Write::write_all(stdin, hello.as_bytes()).expect("sigil reads");
        Session { child }
    }

    /// Containers with this agent's label, running or not; without those that are made to look into an image, and never
    /// started.
    pub fn containers(&self) -> Vec<String> {
        let filter = format!("label=sigil.agent={}", self.id());
        let format = "{{.ID}} {{.Label \"sigil.role\"}}";
        let args = ["ps", "-a", "--no-trunc", "--filter", &filter, "--format", format];
        let all = docker_at(self.engine.as_deref(), &args);
        let ours = all.lines().filter_map(|line| line.split_once(' ')).filter(|(_, role)| *role != "look");
        ours.map(|(id, _)| id.to_owned()).collect()
    }

    /// The gateway's URL of a deployment.
    pub fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/mcp/{name}", self.port)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let id = self.id();
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- agent log ----\n{}", self.log());
        }
        if id.is_empty() {
            return;
        }
        let filter = format!("label=sigil.agent={id}");
        let docker = |args: &[&str]| {
            let host = self.engine.as_ref().map(|host| ("DOCKER_HOST", host));
            Command::new("docker").envs(host).args(args).output()
        };
        let run = |list: &[&str], remove: &[&str]| {
            let Ok(out) = docker(&[list, &["--filter", &filter]].concat()) else { return };
            let ids = String::from_utf8_lossy(&out.stdout).into_owned();
            let ids: Vec<&str> = ids.split_whitespace().collect();
            if !ids.is_empty() {
                let _removed = docker(&[remove, &ids].concat());
            }
        };
        run(&["ps", "-aq"], &["rm", "-fv"]);
        run(&["volume", "ls", "-q"], &["volume", "rm", "-f"]);
        run(&["network", "ls", "-q"], &["network", "rm"]);
        // untagged only: the layers stay in the build cache for the next run
        run(&["image", "ls", "-q"], &["rmi", "-f", "--no-prune"]);
    }
}

/// See [`Agent::session`].
#[derive(Debug)]
pub struct Session {
    child: Child,
}

impl Drop for Session {
    fn drop(&mut self) {
        // the end of its input is what ends a session; one whose agent was killed has nobody to tell
        drop(self.child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// An official MCP client in a container on the host's network.
///
/// # Panics
/// When the client fails, or its image is missing (`scripts/client-images` makes it).
pub fn client(image: &str, command: &[&str], url: &str, tool: &str, arguments: &str) -> Value {
    let image = format!("sigil-test/client-{image}:latest");
    let mut args = vec!["run", "--rm", "--network", "host", &image];
    args.extend(command);
    args.extend([url, tool, arguments]);
    let out = docker(&args);
    let line = out.lines().rev().find(|l| l.starts_with('{')).unwrap_or_else(|| panic!("no JSON: {out}"));
    serde_json::from_str(line).expect("one JSON object")
}

/// A call through the official Python SDK.
pub fn python_client(url: &str, tool: &str, arguments: &str) -> Value {
    client("python", &[], url, tool, arguments)
}

/// A call through the official TypeScript SDK.
pub fn typescript_client(url: &str, tool: &str, arguments: &str) -> Value {
    client("node", &["node", "/client/client.mjs"], url, tool, arguments)
}

/// `tools/list` through the official inspector's command line.
///
/// # Panics
/// When it fails.
pub fn inspector_tools(url: &str) -> Vec<String> {
    let inspector = "/client/node_modules/.bin/mcp-inspector";
    let image = "sigil-test/client-node:latest";
    let out = docker(&[
        "run",
        "--rm",
        "--network",
        "host",
        image,
        inspector,
        "--cli",
        url,
        "--transport",
        "http",
        "--method",
        "tools/list",
        "--format",
        "json",
    ]);
    let json: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("not JSON ({e}): {out}"));
    let tools = json["tools"].as_array().or_else(|| json["result"]["tools"].as_array()).cloned().unwrap_or_default();
    tools.iter().filter_map(|t| t["name"].as_str().map(str::to_owned)).collect()
}
