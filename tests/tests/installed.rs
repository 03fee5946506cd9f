//! What `sigil install` writes, used as the clients use it: their files are parsed back by their makers' rules, processes are
//! started and addresses asked with what stands there. And the process that they start outlives its agent.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use serde_json::{Value, json};
use sigil_tests::{Agent, fixture};

const SOON: Duration = Duration::from_secs(60);
const HANDSHAKE: &str = "2025-11-25";

/// An agent, and a home with clients' files.
struct Desk {
    agent: Agent,
    home: tempfile::TempDir,
}

/// How a client reaches a server, as it stands in its file.
#[derive(Debug, PartialEq)]
enum Reached {
    Process { command: String, args: Vec<String> },
    Address { url: String, headers: Vec<(String, String)> },
}

impl Desk {
    fn new() -> Self {
        let agent = Agent::start();
        agent.sigil(&["deploy", &fixture("echo"), "--name", "web"]).ok();
        Self { agent, home: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.home.path().join(relative)
    }

    fn put(&self, relative: &str, text: &str) {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }

    fn sigil(&self, args: &[&str]) -> Value {
        let mut command = self.agent.command(args);
        let output =
            command.args(["--yes", "-o", "json"]).env("HOME", self.home.path()).output().expect("sigil starts");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {err}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {err}"))
    }

    /// XDG's folder is where `Agent::command` puts it.
    fn config(&self) -> PathBuf {
        self.agent.data().parent().expect("a folder").join("config")
    }
}

fn words(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

fn headers(value: &Value, resolve: impl Fn(&str) -> String) -> Vec<(String, String)> {
    let map = value.as_object().into_iter().flatten();
    map.map(|(name, value)| (name.clone(), resolve(value.as_str().expect("a text")))).collect()
}

/// `${VAR}` by a table.
fn expand(text: &str, open: &str, known: &[(&str, &str)]) -> String {
    let mut out = text.to_owned();
    for (name, value) in known {
        out = out.replace(&format!("{open}{name}}}"), value);
    }
    assert!(!out.contains("${"), "nothing else is to be expanded: {out}");
    out
}

/// Claude Code: `mcpServers` of `~/.claude.json`; `type` is stdio or http; `${VAR}` from the environment.
fn claude_code(file: &Path, name: &str, env: &[(&str, &str)]) -> Reached {
    let root: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("a file")).expect("plain JSON");
    let entry = &root["mcpServers"][name];
    match entry["type"].as_str() {
        Some("stdio") => process(entry),
        Some("http") => Reached::Address {
            url: expand(entry["url"].as_str().expect("an address"), "${", env),
            headers: headers(&entry["headers"], |text| expand(text, "${", env)),
        },
        other => panic!("Claude Code knows no type {other:?}"),
    }
}

fn process(entry: &Value) -> Reached {
    Reached::Process { command: entry["command"].as_str().expect("a command").to_owned(), args: words(&entry["args"]) }
}

/// VS Code: `servers` of mcp.json, comments allowed; `${input:ID}` is what was answered to the prompt of that id.
fn vs_code(file: &Path, name: &str, answers: &[(&str, &str)]) -> Reached {
    let text = std::fs::read_to_string(file).expect("a file");
    let bare: String = text.lines().map(|line| format!("{}\n", line.split("//  ").next().unwrap_or(line))).collect();
    let root: Value = serde_json::from_str(&bare).expect("JSON with comments");
    let entry = &root["servers"][name];
    for (id, _) in answers {
        let inputs = root["inputs"].as_array().expect("inputs");
        assert!(inputs.iter().any(|i| i["id"] == *id && i["type"] == "promptString" && i["password"] == true), "{id}");
    }
    match entry["type"].as_str() {
        Some("stdio") => process(entry),
        Some("http") => Reached::Address {
            url: entry["url"].as_str().expect("an address").to_owned(),
            headers: headers(&entry["headers"], |text| expand(text, "${input:", answers)),
        },
        other => panic!("VS Code knows no type {other:?}"),
    }
}

/// Codex: `[mcp_servers.NAME]`; `command` or `url`; the variable that `bearer_token_env_var` names becomes a header.
fn codex(file: &Path, name: &str, env: &[(&str, &str)]) -> Reached {
    let (root, flaws) = sigil_config::node::toml("config.toml", &std::fs::read_to_string(file).expect("a file"));
    assert_eq!(flaws, []);
    let entry = root.to_json()["mcp_servers"][name].clone();
    if entry.get("command").is_some() {
        return process(&entry);
    }
    let variable = entry.get("bearer_token_env_var").and_then(Value::as_str);
    let token = variable.map(|name| env.iter().find(|(known, _)| *known == name).expect("set").1);
    Reached::Address {
        url: entry["url"].as_str().expect("an address").to_owned(),
        headers: token.map(|token| ("Authorization".to_owned(), format!("Bearer {token}"))).into_iter().collect(),
    }
}

/// Gemini CLI: `mcpServers` of settings.json; `httpUrl` is streamable HTTP; `$VAR` and `${VAR}` from the environment.
fn gemini(file: &Path, name: &str, env: &[(&str, &str)]) -> Reached {
    let root: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("a file")).expect("JSON");
    let entry = &root["mcpServers"][name];
    match entry["httpUrl"].as_str() {
        Some(url) => Reached::Address {
            url: url.to_owned(),
            headers: headers(&entry["headers"], |text| expand(text, "${", env)),
        },
        None => process(entry),
    }
}

/// A process that speaks MCP on its pipes, with the messages that it wrote.
struct Pipes {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    next: u64,
}

impl Pipes {
    fn start(reached: &Reached) -> Self {
        let Reached::Process { command, args } = reached else { panic!("{reached:?} is no process") };
        assert!(Path::new(command).is_absolute(), "a client's PATH is its own: {command}");
        // nothing but what every client hands on
        let mut child = Command::new(command)
            .args(args)
            .env_clear()
            .env("HOME", std::env::temp_dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("piped"));
        let (tx, lines) = sync_channel(64);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, lines, next: 0 }
    }

    fn send(&mut self, message: &Value) {
        writeln!(self.stdin.as_mut().expect("open"), "{message}").expect("it reads");
    }

    fn begin(&mut self, method: &str, params: Value) -> u64 {
        self.next += 1;
        self.send(&json!({ "jsonrpc": "2.0", "id": self.next, "method": method, "params": params }));
        self.next
    }

    /// The answer to a request; notifications before it are passed over.
    fn answer(&self, id: u64) -> Value {
        loop {
            let line = match self.lines.recv_timeout(SOON) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => panic!("no answer to {id}"),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended before its answer to {id}"),
            };
            let message: Value = serde_json::from_str(&line).expect("JSON and nothing else");
            if message["id"] == id && message.get("method").is_none() {
                return message;
            }
        }
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        let id = self.begin(method, params);
        self.answer(id)
    }

    fn shake(&mut self) {
        let params =
            json!({ "protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
        assert_eq!(self.ask("initialize", params)["result"]["protocolVersion"], HANDSHAKE);
        self.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }));
    }

    fn tools(&mut self) -> Vec<String> {
        names(&self.ask("tools/list", json!({})))
    }

    fn call(&mut self, tool: &str, arguments: Value) -> Value {
        self.ask("tools/call", json!({ "name": tool, "arguments": arguments }))
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|ended| ended.is_none())
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn names(answer: &Value) -> Vec<String> {
    let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("a list of tools: {answer}"));
    tools.iter().filter_map(|tool| tool["name"].as_str().map(str::to_owned)).collect()
}

/// Tools as a client over HTTP gets them; the status when it gets none.
fn asked(url: &str, headers: &[(String, String)]) -> Result<Vec<String>, u16> {
    let _there = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let post = |session: Option<String>, body: Value| {
            let mut request = client.post(url).header("Accept", "application/json, text/event-stream").json(&body);
            for (name, value) in headers {
                request = request.header(name, value);
            }
            if let Some(session) = session {
                request = request.header("Mcp-Session-Id", session).header("MCP-Protocol-Version", HANDSHAKE);
            }
            request.send()
        };
        let params =
            json!({ "protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
        let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params });
        let shaken = post(None, hello).await.expect("an answer");
        if !shaken.status().is_success() {
            return Err(shaken.status().as_u16());
        }
        let session = shaken.headers().get("mcp-session-id").map(|id| id.to_str().expect("a text").to_owned());
        shaken.bytes().await.expect("all of it");
        let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        post(session.clone(), ready).await.expect("an answer");
        let list =
            post(session, json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/list" })).await.expect("an answer");
        let text = list.text().await.expect("all of it");
        let json =
            text.lines().find_map(|line| line.strip_prefix("data:").or(Some(line)).filter(|l| l.contains("\"tools\"")));
        Ok(names(&serde_json::from_str(json.unwrap_or(&text)).unwrap_or_else(|e| panic!("{e}: {text}"))))
    })
}

/// What a client of this configuration gets.
fn reach(reached: &Reached) -> Vec<String> {
    match reached {
        Reached::Process { .. } => {
            let mut pipes = Pipes::start(reached);
            pipes.shake();
            pipes.tools()
        }
        Reached::Address { url, headers } => asked(url, headers).unwrap_or_else(|status| panic!("{url}: {status}")),
    }
}

const CLAUDE: &str = "{\n  \"numStartups\": 12,\n  \"mcpServers\": {},\n  \"projects\": {\"/x\": {\"mcpServers\": {\"a\": {\"command\": \"b\"}}}}\n}";
const CODE: &str = "{\n  //  mine\n  \"servers\": {\n    \"other\": { \"type\": \"stdio\", \"command\": \"npx\" } //  theirs\n  }\n}\n";
const CODEX: &str = "# mine\nmodel = \"o5\"\n\n[mcp_servers.other]\ncommand = \"npx\"\n";
const GEMINI: &str = "{ \"theme\": \"GitHub\" }\n";

#[test]
fn entries_work_as_clients_use_them() {
    let desk = Desk::new();
    let code = desk.config().join("Code/User/mcp.json");
    desk.put(".claude.json", CLAUDE);
    desk.put(".codex/config.toml", CODEX);
    desk.put(".gemini/settings.json", GEMINI);
    std::fs::create_dir_all(code.parent().expect("a folder")).expect("a folder");
    std::fs::write(&code, CODE).expect("a file");
    let four = "claude-code,vscode,codex,gemini";
    type Read = fn(&Path, &str, &[(&str, &str)]) -> Reached;
    let clients: [(&str, PathBuf, Read); 4] = [
        ("claude-code", desk.path(".claude.json"), claude_code),
        ("vscode", code.clone(), vs_code),
        ("codex", desk.path(".codex/config.toml"), codex),
        ("gemini", desk.path(".gemini/settings.json"), gemini),
    ];
    let echo = |reached: &Reached| assert!(reach(reached).contains(&"echo".to_owned()), "{reached:?}");

    // nobody needs a key yet: each asks the address by itself
    desk.sigil(&["install", "web", "--client", four]);
    for (client, file, read) in &clients {
        let reached = read(file, "web", &[]);
        assert_eq!(reached, Reached::Address { url: desk.agent.url("web"), headers: Vec::new() }, "{client}");
        echo(&reached);
    }
    // or starts a process
    desk.sigil(&["install", "web", "--client", four, "--stdio"]);
    for (client, file, read) in &clients {
        let reached = read(file, "web", &[]);
        assert!(matches!(reached, Reached::Process { .. }), "{client}: {reached:?}");
        echo(&reached);
    }
    // with a key of its own, which stands in none of the files
    desk.agent.sigil(&["policy", "set", "web", "--access", "key"]).ok();
    let done = desk.sigil(&["install", "web", "--client", four, "--http"]);
    for (client, file, read) in &clients {
        let row = done.as_array().expect("rows").iter().find(|row| row["client"] == *client).expect("a row");
        let key = row["bearer"].as_str().expect("a key");
        assert!(!std::fs::read_to_string(file).expect("a file").contains(key), "{client}");
        let name = row["variable"].as_str().unwrap_or("sigil-web-key");
        let reached = read(file, "web", &[(name, key)]);
        echo(&reached);
        let Reached::Address { url, headers } = &reached else { panic!("{client}: {reached:?}") };
        assert_eq!(headers, &[("Authorization".to_owned(), format!("Bearer {key}"))], "{client}");
        assert_eq!(asked(url, &[]), Err(401), "{client}");
    }
    let keys = desk.agent.sigil(&["key", "ls", "-o", "json"]).ok().json();
    assert_eq!(keys.as_array().map(Vec::len), Some(4));
    let key = done[0]["bearer"].as_str().expect("a key").to_owned();
    // and out again: files as they were, keys of no use
    desk.sigil(&["uninstall", "web"]);
    for ((_, file, _), before) in clients.iter().zip([CLAUDE, CODE, CODEX, GEMINI]) {
        assert_eq!(std::fs::read_to_string(file).expect("a file"), before);
    }
    let bearer = ("Authorization".to_owned(), format!("Bearer {key}"));
    assert_eq!(asked(&desk.agent.url("web"), &[bearer]), Err(401));
}

#[test]
fn a_process_of_a_client_outlives_the_agent() {
    let mut desk = Desk::new();
    desk.agent.sigil(&["deploy", "pypi:mcp-server-time", "--name", "clock"]).ok();
    desk.sigil(&["install", "web", "clock", "--client", "claude-desktop"]);
    let file = desk.config().join("Claude/claude_desktop_config.json");
    let entry = |name: &str| {
        let root: Value = serde_json::from_str(&std::fs::read_to_string(&file).expect("a file")).expect("JSON");
        process(&root["mcpServers"][name])
    };
    let mut web = Pipes::start(&entry("web"));
    web.shake();
    let mut clock = Pipes::start(&entry("clock"));
    clock.shake();
    let mut modern = Pipes::start(&entry("clock"));
    let meta = json!({ "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": { "name": "t", "version": "1" },
    }});
    let found = modern.ask("server/discover", meta.clone());
    assert!(found["result"]["supportedVersions"].as_array().is_some_and(|all| !all.is_empty()), "{found}");

    for graceful in [false, true] {
        assert_eq!(web.call("echo", json!({ "text": "before" }))["result"]["content"][0]["text"], "before");
        assert!(clock.tools().contains(&"get_current_time".to_owned()));
        // a call that the server is at
        let long = web.begin("tools/call", json!({ "name": "count", "arguments": { "n": 600, "ms": 100 } }));
        std::thread::sleep(Duration::from_millis(300));
        if graceful {
            desk.agent.terminate();
        } else {
            desk.agent.kill();
        }
        let lost = web.answer(long);
        assert!(lost["error"]["message"].is_string(), "{lost}");
        // what is asked meanwhile waits
        let waiting = [web.begin("tools/list", json!({})), clock.begin("tools/list", json!({}))];
        let stateless = modern.begin("tools/list", meta.clone());
        desk.agent.up();
        assert!(names(&web.answer(waiting[0])).contains(&"echo".to_owned()));
        assert!(names(&clock.answer(waiting[1])).contains(&"get_current_time".to_owned()));
        assert!(names(&modern.answer(stateless)).contains(&"get_current_time".to_owned()));
        let now = clock.call("get_current_time", json!({ "timezone": "Europe/Paris" }));
        assert!(now["result"]["content"][0]["text"].as_str().is_some_and(|t| t.contains("Paris")), "{now}");
        assert!(web.runs() && clock.runs() && modern.runs());
    }
    // a new container, of which the server's own session knows nothing: told once at most, then the same process goes on
    desk.agent.sigil(&["restart", "web"]).ok();
    desk.agent.until("web", "ready", SOON);
    let mut after = web.call("echo", json!({ "text": "after" }));
    if after.get("result").is_none() {
        assert!(after["error"]["message"].is_string(), "{after}");
        eprintln!("told after the restart: {after}");
        after = web.call("echo", json!({ "text": "after" }));
    }
    assert_eq!(after["result"]["content"][0]["text"], "after", "{after}");
    assert!(web.runs());
}
