//! The ways from a console to an agent elsewhere: gRPC over TLS with a pinned certificate and a token, and the
//! system's ssh to a real sshd.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sigil_tests::{Agent, binary, eventually, fixture};

const SOON: Duration = Duration::from_secs(30);

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// How a command ended: (exit code, stdout, stderr).
fn ran(command: &mut Command, input: &str) -> (i32, String, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let _closed = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let out = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (out.status.code().unwrap_or(-1), text(out.stdout), text(out.stderr))
}

#[test]
fn tls_with_a_pinned_certificate_and_a_token() {
    let listen = format!("127.0.0.1:{}", free_port());
    let agent = Agent::start_with(&[
        ("SIGIL_GRPC_LISTEN", &listen),
        // no container has a part in this
        ("SIGIL_ENGINE_HOST", "unix:///nonexistent/engine.sock"),
    ]);
    let token = |args: &[&str]| {
        let mut command = Command::new(binary("sigil-agent"));
        command.args(["token"]).args(args).arg("--data-dir").arg(agent.data()).env("SIGIL_GRPC_LISTEN", &listen);
        let (code, out, err) = ran(&mut command, "");
        assert_eq!(code, 0, "{out}{err}");
        (out.trim().to_owned(), err)
    };
    let sigil = |args: &[&str], key: Option<&str>, input: &str| {
        let mut command = agent.command(args);
        command.env_remove("SIGIL_HOST").envs(key.map(|key| ("SIGIL_TOKEN", key)));
        ran(&mut command, input)
    };

    // what `token create` prints is all that a console needs
    let (admin, said) = token(&["create", "laptop"]);
    assert!(admin.starts_with("sigil_") && !said.contains(&admin), "stdout has the token alone, stderr never has it");
    let line = said.lines().find_map(|l| l.trim().strip_prefix("sigil ")).expect("a command to paste");
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, _, name, address, _, pin, _] = words[..] else { panic!("another command: {line}") };
    assert_eq!(address, format!("tls://{listen}"));
    assert!(agent.log().contains(pin), "the fingerprint is the one that the agent shows in its log");
    let (code, _, err) = sigil(&words, None, &format!("{admin}\n"));
    assert_eq!(code, 0, "{err}");
    let (code, out, err) = sigil(&["--host", name, "ls", "-o", "json"], None, "");
    assert_eq!((code, out.trim()), (0, "[]"), "{err}");

    // refused callers: nobody, somebody else, one who may only look, one whose time is over, one taken back
    let bare = format!("tls://{listen}");
    sigil(&["context", "add", "bare", &bare, "--pin", pin], None, "");
    let (reader, _) = token(&["create", "guest", "--role", "reader"]);
    let (late, _) = token(&["create", "late", "--days", "1"]);
    let (revoked, _) = token(&["create", "lost"]);
    token(&["revoke", "lost"]);
    let file = agent.data().join("tokens.json");
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&file).expect("tokens")).expect("JSON");
    for one in kept["tokens"].as_array_mut().expect("a list").iter_mut().filter(|t| t["label"] == "late") {
        one["expires_at"] = "2020-01-01T00:00:00Z".into();
    }
    std::fs::write(&file, kept.to_string()).expect("tokens");
    assert_eq!(sigil(&["--host", "bare", "ls"], Some(&reader), "").0, 0);
    let forged = format!("{}x", &admin[..admin.len() - 1]);
    for (key, verb) in [
        (None, "ls"),
        (None, "deploy"),
        (Some(forged.as_str()), "deploy"),
        (Some("nonsense"), "deploy"),
        (Some(reader.as_str()), "deploy"),
        (Some(late.as_str()), "deploy"),
        (Some(late.as_str()), "ls"),
        (Some(revoked.as_str()), "ls"),
    ] {
        let args: &[&str] =
            if verb == "ls" { &["--host", "bare", "ls"] } else { &["--host", "bare", "deploy", "pypi:nothing"] };
        let (code, out, err) = sigil(args, key, "");
        assert_eq!(code, 4, "{key:?} {verb}: {out}{err}");
        assert!(err.starts_with("error: ") && err.contains("hint: "), "{err}");
        let word = if key == Some(reader.as_str()) { "admin" } else { "SIGIL_TOKEN" };
        assert!(err.contains(word), "{key:?} {verb}: {err}");
        assert!(key.is_none_or(|key| !err.contains(key)), "the token is not repeated: {err}");
    }

    // another certificate than the pinned one: nothing is sent
    let other = format!("sha256:{}", "ab".repeat(32));
    sigil(&["context", "add", "other", &bare, "--pin", &other, "--token-stdin"], None, &admin);
    let (code, _, err) = sigil(&["--host", "other", "deploy", "pypi:nothing"], None, "");
    assert_eq!(code, 5, "{err}");
    assert!(err.contains(pin) && err.contains(&other) && err.contains("someone may be in between"), "{err}");

    // no TLS where TLS is spoken, and TLS where none is
    let mut plain = std::net::TcpStream::connect(&listen).expect("it listens");
    plain.set_read_timeout(Some(SOON)).expect("a timeout");
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("written");
    let mut answer = Vec::new();
    // an alert and the end, or the end alone; never a frame of HTTP/2
    let ended = plain.read_to_end(&mut answer);
    assert!(ended.is_ok() || answer.is_empty(), "{ended:?}");
    assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
    let gateway = format!("tls://127.0.0.1:{}", agent.port);
    sigil(&["context", "add", "gateway", &gateway, "--pin", pin], None, "");
    let (code, _, err) = sigil(&["--host", "gateway", "ls"], Some(&admin), "");
    assert_eq!(code, 5, "{err}");
    assert!(err.contains("no TLS 1.3 link to") && err.contains("[grpc] listen"), "{err}");
    assert_eq!(sigil(&["--host", "http://127.0.0.1:1", "ls"], Some(&admin), "").0, 2);
    assert_eq!(sigil(&["--host", name, "ls"], None, "").0, 0, "good callers are served as before");
}

/// The distribution's sshd for the current user, on loopback, with keys and a configuration of its own.
struct Sshd {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Sshd {
    /// `far` is the environment of commands on the far side.
    fn start(far: &[(&str, String)]) -> Self {
        let dir = tempfile::Builder::new().prefix("sigil-sshd").tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let port = free_port();
        for key in ["host", "user"] {
            let args = ["-q", "-t", "ed25519", "-N", "", "-f"];
            let made = Command::new("ssh-keygen").args(args).arg(at(key)).status();
            assert!(made.expect("ssh-keygen is installed").success());
        }
        std::fs::copy(at("user.pub"), at("authorized")).expect("a copy");
        let host = std::fs::read_to_string(at("host.pub")).expect("a key");
        std::fs::write(at("known"), format!("[127.0.0.1]:{port} {host}")).expect("a file");
        let set: Vec<String> = far.iter().map(|(name, value)| format!("\"{name}={value}\"")).collect();
        let show = |name: &str| at(name).display().to_string();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSetEnv {}\n",
            show("host"),
            show("authorized"),
            set.join(" ")
        );
        std::fs::write(at("sshd_config"), config).expect("a file");
        // ssh reads options from the user's own file, wherever HOME points: a word in front of it stands for that file
        let config = format!(
            "Host 127.0.0.1\n  IdentityFile {}\n  IdentitiesOnly yes\n  UserKnownHostsFile {}\n  StrictHostKeyChecking yes\n",
            show("user"),
            show("known")
        );
        std::fs::write(at("ssh_config"), config).expect("a file");
        std::fs::create_dir(at("bin")).expect("a directory");
        let wrapper = format!("#!/bin/sh\nexec /usr/bin/ssh -F {} \"$@\"\n", show("ssh_config"));
        std::fs::write(at("bin/ssh"), wrapper).expect("a file");
        std::fs::set_permissions(at("bin/ssh"), PermissionsExt::from_mode(0o755)).expect("its mode");
        if rustix::process::geteuid().is_root() {
            // made by the service's start, which a test does without
            std::fs::create_dir_all("/run/sshd").expect("sshd's own directory");
        }
        let log = std::fs::File::create(at("log")).expect("a file");
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(at("sshd_config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sshd is installed (scripts/test does it)");
        let sshd = Self { child, dir, port };
        eventually("sshd listens", SOON, || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        sshd
    }

    fn path(&self) -> String {
        let rest = std::env::var("PATH").unwrap_or_default();
        format!("{}:{rest}", self.dir.path().join("bin").display())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The processes that serve connections now.
    fn sessions(&self) -> Vec<i32> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- sshd ----\n{}", self.log());
        }
        let sessions = self.sessions();
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
        sessions.into_iter().for_each(kill);
    }
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // gone already is as good
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A server that says where it is, twenty times a second.
fn ticking() -> tempfile::TempDir {
    let tree = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(tree.path().join(name), text).expect("a file");
    std::fs::copy(Path::new(&fixture("echo")).join("server.py"), tree.path().join("server.py")).expect("a copy");
    write("mcp.yaml", "name: ticking\nruntime: python\ntransport: http\nport: 8080\nentrypoint: main.py\n");
    write(
        "main.py",
        "import itertools, runpy, threading, time\n\n\ndef tick():\n    for n in itertools.count():\n        \
         print('tick', n, flush=True)\n        time.sleep(0.05)\n\n\nthreading.Thread(target=tick, daemon=True).start()\n\
         runpy.run_path('server.py', run_name='__main__')\n",
    );
    tree
}

#[test]
fn ssh_to_a_real_sshd_and_a_cut_in_the_middle_of_a_stream() {
    let agent = Agent::start();
    // over there, `sigil dial` finds the agent in the place where a user's agent keeps its socket
    let far = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::symlink(agent.data(), far.path().join("sigil")).expect("a link");
    let programs: PathBuf = binary("sigil").parent().expect("a folder").to_owned();
    let sshd = Sshd::start(&[
        ("PATH", format!("{}:/usr/bin:/bin", programs.display())),
        ("XDG_STATE_HOME", far.path().display().to_string()),
    ]);
    let user = String::from_utf8(Command::new("id").arg("-un").output().expect("id").stdout).expect("a name");
    let host = format!("ssh://{}@127.0.0.1:{}", user.trim(), sshd.port);
    let command = |args: &[&str]| {
        let mut command = agent.command(args);
        command.env_remove("SIGIL_HOST").env("PATH", sshd.path()).env("SIGIL_HOST", &host);
        command
    };

    let (code, out, err) = ran(&mut command(&["info", "-o", "json"]), "");
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&agent.id()), "{out}");
    let tree = ticking();
    let (code, _, err) = ran(&mut command(&["deploy", &tree.path().display().to_string(), "--name", "tick"]), "");
    assert_eq!(code, 0, "a folder goes over ssh, too: {err}");
    let (code, out, err) = ran(&mut command(&["call", "tick", "echo", "--arg", "text=over there"]), "");
    assert!(code == 0 && out.contains("over there"), "{out}{err}");
    assert_eq!(ran(&mut command(&["get", "nobody"]), "").0, 3, "exit codes come through");
    eventually("finished commands leave no session", SOON, || sshd.sessions().is_empty().then_some(()));

    let out = tempfile::NamedTempFile::new().expect("a file");
    let mut follow = command(&["logs", "tick", "-f", "-o", "json"])
        .stdout(out.reopen().expect("the file"))
        .stderr(Stdio::null())
        .spawn()
        .expect("sigil starts");
    let seqs = || -> Vec<u64> {
        let text = std::fs::read_to_string(out.path()).unwrap_or_default();
        text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).filter_map(|l| l["seq"].as_u64()).collect()
    };
    eventually("lines arrive", SOON, || (seqs().len() > 20).then_some(()));
    for _ in 0..2 {
        let cut = sshd.sessions();
        assert!(!cut.is_empty(), "it goes through this sshd");
        let before = seqs().len();
        cut.iter().copied().for_each(kill);
        eventually("lines go on arriving", SOON, || (seqs().len() > before + 20).then_some(()));
        assert!(sshd.sessions().iter().all(|pid| !cut.contains(pid)), "over another connection");
    }
    let _killed = follow.kill();
    let _reaped = follow.wait();
    let seen = seqs();
    assert!(seen.windows(2).all(|w| w[1] == w[0] + 1), "no loss, no repetition: {seen:?}");

    // a key that sshd does not know, and a host that nobody pinned
    let (code, _, err) = ran(command(&["ls"]).env("SIGIL_HOST", host.replace(user.trim(), "sigil-nobody")), "");
    assert_eq!(code, 5, "{err}");
    assert!(err.contains("ssh to sigil-nobody@127.0.0.1 failed") && err.contains("Permission denied"), "{err}");
    std::fs::write(sshd.dir.path().join("known"), "").expect("a file");
    let (code, _, err) = ran(&mut command(&["ls"]), "");
    assert!(code == 5 && err.contains("Host key verification failed"), "{err}");
    agent.sigil(&["rm", "tick", "--yes"]).ok();
}
