//! The ways to an agent: TLS with a pin, a token, ssh, a socket that is shut, a terminal.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use portable_pty::{CommandBuilder, PtySize, native_pty_system};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, ServerTlsConfig};

use super::Home;
use super::fake::{deployment, done, step};

/// Serves TLS on a free port: (address, fingerprint).
async fn tls(home: &Home) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec!["some-other-name".to_owned()]).unwrap();
    let pin = format!("sha256:{}", hex::encode(Sha256::digest(made.cert.der())));
    let identity = Identity::from_pem(made.cert.pem(), made.signing_key.serialize_pem());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tls://{}", listener.local_addr().unwrap());
    let fake = home.fake.clone();
    let router = {
        let state = Arc::clone(&fake.state);
        drop(state);
        tonic::transport::Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(sigil_protocol::v1::deployments_server::DeploymentsServer::new(fake.clone()))
            .add_service(sigil_protocol::v1::agent_server::AgentServer::new(fake))
    };
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener).map(|stream| stream)));
    (address, pin)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_accepts_the_pinned_certificate_and_no_other() {
    let home = Home::empty();
    home.fake.with(|s| s.deployments = vec![deployment("time", "ready")]);
    let (address, pin) = tls(&home).await;
    let ran = home.run(&["--host", &address, "ls"]).await.exits(2);
    assert!(ran.err.contains("no certificate is pinned"), "{}", ran.err);
    home.run(&["context", "add", "lab", &address, "--pin", &pin]).await.exits(0);
    let ran = home.run(&["--host", "lab", "ls", "-o", "json"]).await.exits(0);
    assert_eq!(ran.json()[0]["name"], "time");
    // the address alone finds the context's pin
    home.run(&["--host", &address, "ls"]).await.exits(0);

    let wrong = format!("sha256:{}", "0".repeat(64));
    home.run(&["context", "add", "lab", &address, "--pin", &wrong]).await.exits(0);
    let error = home.run(&["--host", "lab", "ls", "-o", "json"]).await.exits(5).error();
    assert_eq!(error["code"], "WRONG_PIN");
    assert_eq!(
        (error["details"]["expected"].as_str(), error["details"]["found"].as_str()),
        (Some(wrong.as_str()), Some(pin.as_str()))
    );

    let ran = home.run(&["context", "add", "lab", &address, "--trust"]).await.exits(0);
    assert!(ran.err.contains(&pin), "the fingerprint is shown: {}", ran.err);
    home.run(&["--host", "lab", "ls"]).await.exits(0);
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = format!("tls://{}", plain.local_addr().unwrap());
    drop(plain);
    home.run(&["context", "add", "dead", &dead, "--pin", &pin]).await.exits(0);
    assert!(home.run(&["--host", "dead", "ls"]).await.exits(5).err.contains("connection refused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_goes_with_every_request() {
    let home = Home::with_agent();
    home.fake.with(|s| s.token = Some("k1".into()));
    let ran = home.run(&["ls"]).await.exits(4);
    assert!(ran.err.contains("SIGIL_TOKEN"), "{}", ran.err);
    home.run_with(&["ls"], &[("SIGIL_TOKEN", "wrong")]).await.exits(4);
    home.run_with(&["ls"], &[("SIGIL_TOKEN", "k1")]).await.exits(0);
    let host = format!("unix://{}", home.socket().display());
    home.run_stdin(&["context", "add", "mine", &host, "--token-stdin"], b"k1\n").await.exits(0);
    home.run(&["--host", "mine", "ls"]).await.exits(0);
    home.run_with(&["ls"], &[("SIGIL_TOKEN", "a\nb")]).await.exits(2);
}

fn fake_ssh(home: &Home, script: &str) -> String {
    home.put("bin/ssh", &format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(home.path("bin/ssh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", home.path("bin").display(), std::env::var("PATH").unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_reaches_the_socket_of_the_other_side() {
    let home = Home::with_agent();
    home.fake.with(|s| s.deployments = vec![deployment("time", "ready")]);
    let log = home.path("ssh.log").display().to_string();
    let sigil = env!("CARGO_BIN_EXE_sigil");
    // what ssh does: a login shell that talks, then the command
    let path = fake_ssh(&home, &format!("echo \"$@\" >> {log}\necho 'Welcome to host'\nexec '{sigil}' dial --hello"));
    let ran = home.run_with(&["--host", "ssh://ada@host:2222", "ls", "-o", "json"], &[("PATH", &path)]).await.exits(0);
    assert_eq!(ran.json()[0]["name"], "time");
    let asked = std::fs::read_to_string(&log).unwrap();
    assert!(asked.trim_end().ends_with("-p 2222 -l ada -- host sigil dial --hello"), "{asked}");

    let path = fake_ssh(&home, "echo 'ada@host: Permission denied (publickey).' >&2\nexit 255");
    let ran = home.run_with(&["--host", "ssh://ada@host", "ls"], &[("PATH", &path)]).await.exits(5);
    assert!(ran.err.contains("Permission denied (publickey)") && ran.err.contains("255"), "{}", ran.err);
    let path = fake_ssh(&home, "echo 'sh: 1: sigil: not found' >&2\nexit 127");
    let ran = home.run_with(&["--host", "ssh://host", "ls"], &[("PATH", &path)]).await.exits(5);
    assert!(ran.err.contains("install sigil on that machine"), "{}", ran.err);
    let ran = home.run_with(&["--host", "ssh://host", "ls"], &[("PATH", "/nowhere")]).await.exits(5);
    assert!(ran.err.contains("ssh cannot be started"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn dial_copies_bytes_both_ways_without_a_greeting() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let home = Home::empty();
    std::fs::create_dir_all(home.path("state/sigil")).unwrap();
    let listener = tokio::net::UnixListener::bind(home.socket()).unwrap();
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
    });
    // binary, without a newline, larger than any buffer
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let mut child = home.command(&["dial"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&bytes).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.stdout, bytes);
    assert!(output.status.success());
    echo.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shut_socket_says_who_may_open_it() {
    let home = Home::with_agent();
    std::fs::set_permissions(home.socket(), std::fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = home.command(&["--host", &format!("unix://{}", home.socket().display()), "ls"]);
    if rustix::process::geteuid().is_root() {
        // root may open anything: be nobody, who may walk to the socket and run this program
        let open = |path: &std::path::Path| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        open(home.dir.path());
        let copy = home.path("sigil");
        std::fs::copy(env!("CARGO_BIN_EXE_sigil"), &copy).unwrap();
        open(&copy);
        let mut nobody = std::process::Command::new(&copy);
        std::os::unix::process::CommandExt::uid(&mut nobody, 65534);
        nobody.args(["--host", &format!("unix://{}", home.socket().display()), "ls"]).env_clear().env("HOME", "/");
        command = nobody.into();
    }
    let ran = super::Ran::from(command.output().await.unwrap()).exits(4);
    assert!(ran.err.contains("no permission to open") && ran.err.contains("group 'sigil'"), "{}", ran.err);
}

/// Runs `sigil` on a terminal of 80x24 and gives everything it wrote, raw.
fn on_terminal(home: &Home, args: &[&str], typed: &str) -> (u32, String) {
    let pty = native_pty_system().openpty(PtySize { rows: 24, cols: 80, pixel_width: 0, pixel_height: 0 }).unwrap();
    let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_sigil"));
    command.args(args);
    command.env_clear();
    command.env("TERM", "xterm-256color");
    command.env("HOME", home.dir.path());
    command.env("XDG_CONFIG_HOME", home.path("config"));
    command.env("XDG_STATE_HOME", home.path("state"));
    command.cwd(home.dir.path());
    let mut child = pty.slave.spawn_command(command).unwrap();
    drop(pty.slave);
    let mut reader = pty.master.try_clone_reader().unwrap();
    let mut writer = pty.master.take_writer().unwrap();
    std::io::Write::write_all(&mut writer, typed.as_bytes()).unwrap();
    let mut all = Vec::new();
    // a terminal whose last writer is gone reads as an error: that is its end
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = reader.read(&mut buffer) {
        all.extend_from_slice(&buffer[..n]);
    }
    let code = child.wait().unwrap().exit_code();
    drop(writer);
    (code, String::from_utf8_lossy(&all).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_colour_and_progress_in_place() {
    let home = Home::with_agent();
    home.fake.with(|s| {
        s.deployments = vec![deployment("time", "ready")];
        s.script = vec![step(1, "build", "started", 0), step(2, "build", "finished", 900), done(3, "", None)];
    });
    let (code, text) = tokio::task::block_in_place(|| on_terminal(&home, &["ls"], ""));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("\x1b[32mready\x1b[0m"), "{text:?}");
    let (code, text) = tokio::task::block_in_place(|| on_terminal(&home, &["restart", "time"], ""));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("ok    \x1b[0m build (900 ms)"), "{text:?}");
    assert!(text.contains("time restarted"), "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_asks_and_no_is_the_default() {
    let home = Home::with_agent();
    home.fake.with(|s| {
        s.deployments = vec![deployment("time", "ready")];
        s.script = vec![done(1, "", None)];
    });
    let (code, text) = tokio::task::block_in_place(|| on_terminal(&home, &["rm", "time"], "\n"));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("[y/N]") && text.contains("nothing was done"), "{text:?}");
    assert!(home.fake.with(|s| s.started.is_empty()));
    let (code, text) = tokio::task::block_in_place(|| on_terminal(&home, &["rm", "time"], "y\n"));
    assert_eq!(code, 0, "{text}");
    assert_eq!(home.fake.with(|s| s.started.len()), 1);
}
