//! Running the system's git: alone in its environment, without terminal, hooks or configuration of the host, with the
//! login of exactly one host, in a process group that dies as a whole.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use url::Url;
use zeroize::Zeroizing;

use super::super::npm::one_line;
use super::super::{Job, SourceError, disk};
use super::objects::{Entry, parse_entries};
use crate::secrets::Credential;

/// Longest answer of git that is kept, in bytes.
const OUTPUT_MAX: usize = 64 << 20;
/// How much of the end of git's messages is kept for errors, in bytes.
const MESSAGES: usize = 8 << 10;
/// A shell function that answers from the environment, which only processes of this user can read.
const HELPER: &str = "!f() { test \"$1\" = get && printf 'username=%s\\npassword=%s\\n' \"$SIGIL_GIT_USERNAME\" \"$SIGIL_GIT_PASSWORD\"; }; f";

/// The programs to run; others in tests.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub git: PathBuf,
    pub ssh: PathBuf,
}

impl Default for Programs {
    fn default() -> Self {
        Self { git: "git".into(), ssh: "ssh".into() }
    }
}

/// What a git process is started with.
#[derive(Clone)]
pub(super) struct Environment {
    pub program: PathBuf,
    /// `-c key=value`, before the verb.
    pub options: Vec<OsString>,
    pub variables: Vec<(String, OsString)>,
}

/// A failed fetch.
pub(super) struct Failure {
    pub error: SourceError,
    /// The server does not give that commit alone.
    pub unadvertised: bool,
}

/// git for one source.
pub(super) struct Git<'a> {
    job: &'a Job<'a>,
    environment: Environment,
    host: String,
    /// Holds the private key; removed with it.
    _keys: Option<tempfile::TempDir>,
}

impl<'a> Git<'a> {
    pub(super) fn new(
        job: &'a Job<'a>,
        programs: Programs,
        scheme: &str,
        url: &str,
        scratch: &Path,
        credential: Option<Credential>,
    ) -> Result<Self, SourceError> {
        let home = scratch.join("home");
        fs::create_dir(&home).map_err(|e| disk(&home, &e))?;
        let mut variables: Vec<(String, OsString)> = Vec::new();
        let mut set = |name: &str, value: OsString| variables.push((name.to_owned(), value));
        for name in ["PATH", "LD_LIBRARY_PATH", "TZ"] {
            if let Some(value) = std::env::var_os(name) {
                set(name, value);
            }
        }
        for (name, value) in [
            ("LC_ALL", "C"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_ASKPASS", "false"),
            ("SSH_ASKPASS", "false"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_SSH_VARIANT", "ssh"),
        ] {
            set(name, value.into());
        }
        set("GIT_ALLOW_PROTOCOL", scheme.into());
        set("HOME", home.into());

        let mut config: Vec<(String, OsString)> = [
            ("core.hooksPath", "/dev/null"),
            ("credential.helper", ""),
            ("http.followRedirects", "initial"),
            ("http.lowSpeedLimit", "500"),
            ("http.lowSpeedTime", "30"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            ("transfer.unpackLimit", "1"),
            ("protocol.version", "2"),
            ("submodule.recurse", "false"),
        ]
        .map(|(key, value)| (key.to_owned(), OsString::from(value)))
        .to_vec();

        let parsed =
            Url::parse(url).map_err(|e| SourceError::refused(format!("'{url}' is not an address: {e}"), "mend it"))?;
        let host = super::super::http::authority(&parsed);
        proxies(job, &mut set);
        certificates(job, scratch, &mut config)?;
        let mut keys = None;
        if scheme == "ssh" {
            let mut command = SshCommand::new(&programs.ssh, &known_hosts(job)?);
            if let Some(credential) = &credential {
                let secret = credential.password.expose_secret();
                if !secret.contains("PRIVATE KEY-----") {
                    return Err(SourceError::refused(
                        format!("the source secret of {} is not a private key", credential.host),
                        "git+ssh needs an OpenSSH private key without passphrase; a token works with git+https",
                    ));
                }
                let folder = key_folder(job.data_dir)?;
                command.identity(&write_key(folder.path(), secret)?);
                keys = Some(folder);
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                if parsed.username().is_empty()
                    && !credential.username.is_empty()
                    && credential.username.chars().all(plain)
                {
                    command.option(&format!("User={}", credential.username));
                }
            }
            set("GIT_SSH_COMMAND", command.text.into());
        } else if let Some(credential) = &credential {
            // the helper is asked for this host alone, also after a redirect
            config.push((format!("credential.{scheme}://{host}.helper"), HELPER.into()));
            let username = if credential.username.is_empty() { "x-access-token" } else { &credential.username };
            set("SIGIL_GIT_USERNAME", username.into());
            set("SIGIL_GIT_PASSWORD", credential.password.expose_secret().into());
        }
        // on the command line, where every git reads it (GIT_CONFIG_COUNT is newer); nothing in it is secret
        let options = config.into_iter().flat_map(|(key, value)| {
            let mut pair = OsString::from(key);
            pair.push("=");
            pair.push(value);
            ["-c".into(), pair]
        });
        let environment = Environment { program: programs.git, options: options.collect(), variables };
        Ok(Self { job, environment, host, _keys: keys })
    }

    pub(super) fn environment(&self) -> Environment {
        self.environment.clone()
    }

    pub(super) async fn init(&self, repository: &Path) -> Result<(), SourceError> {
        let path = repository.as_os_str().to_owned();
        let arguments: Vec<OsString> =
            ["init", "--quiet", "--bare", "--template="].map(OsString::from).into_iter().chain([path]).collect();
        self.run(None, &arguments, false).await.map(drop).map_err(|e| self.explain(&e).error)
    }

    /// A command that talks to the remote; answers its standard output.
    pub(super) async fn network(&self, repository: Option<&Path>, arguments: &[&str]) -> Result<String, SourceError> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let output = self.run(repository, &arguments, false).await.map_err(|e| self.explain(&e).error)?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    pub(super) async fn fetch(
        &self,
        repository: &Path,
        url: &str,
        options: &[&str],
        specs: &[&str],
    ) -> Result<(), Failure> {
        let fixed = [
            "fetch",
            "--progress",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-auto-maintenance",
            "--no-recurse-submodules",
        ];
        let all = fixed.iter().chain(options).chain([&"--", &url]).chain(specs);
        let arguments: Vec<OsString> = all.map(OsString::from).collect();
        self.run(Some(repository), &arguments, true).await.map(drop).map_err(|e| self.explain(&e))
    }

    /// The commit that a ref, tag object or abbreviation stands for.
    pub(super) async fn commit_of(&self, repository: &Path, name: &str) -> Result<String, SourceError> {
        let wanted = format!("{name}^{{commit}}");
        let arguments = ["rev-parse", "--verify", "--quiet", "--end-of-options", &wanted].map(OsString::from);
        let output = self.run(Some(repository), &arguments, false).await.map_err(|e| match e {
            Ended::Code { .. } => {
                SourceError::not_found(format!("'{name}' is not a commit"), "name a branch, a tag or a commit")
            }
            other => self.explain(&other).error,
        })?;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    /// Everything below a folder of a commit.
    pub(super) async fn entries(
        &self,
        repository: &Path,
        commit: &str,
        folder: &str,
    ) -> Result<Vec<Entry>, SourceError> {
        let tree = format!("{commit}:{folder}");
        let arguments = ["ls-tree", "-r", "-l", "-z", "--full-tree", &tree].map(OsString::from);
        let output = match self.run(Some(repository), &arguments, false).await {
            Ok(output) => output,
            Err(Ended::Code { .. }) if !folder.is_empty() => {
                let listing = ["ls-tree", "-d", "-r", "--name-only", "-z", commit].map(OsString::from);
                let folders = self.run(Some(repository), &listing, false).await.map_err(|e| self.explain(&e).error)?;
                let folders = String::from_utf8_lossy(&folders).into_owned();
                let close = super::near(folder, folders.split('\0').filter(|f| !f.is_empty()), 4);
                let hint = if close.is_empty() {
                    "check the folder after '#'".to_owned()
                } else {
                    format!("near ones are {}", close.join(", "))
                };
                return Err(SourceError::not_found(
                    format!("commit {} has no folder '{folder}'", super::short(commit)),
                    hint,
                ));
            }
            Err(ended) => return Err(self.explain(&ended).error),
        };
        parse_entries(&output)
    }

    /// Path and address of every submodule that a commit describes.
    pub(super) async fn module_addresses(
        &self,
        repository: &Path,
        commit: &str,
    ) -> Result<Vec<(String, String)>, SourceError> {
        let blob = format!("{commit}:.gitmodules");
        let arguments = ["config", "--no-includes", "--blob", &blob, "--null", "--list"].map(OsString::from);
        let output = match self.run(Some(repository), &arguments, false).await {
            Ok(output) => output,
            // no such file, or not one git can read: then the submodules are said to have no address
            Err(Ended::Code { .. }) => Vec::new(),
            Err(ended) => return Err(self.explain(&ended).error),
        };
        let text = String::from_utf8_lossy(&output).into_owned();
        let mut found: Vec<(String, String, String)> = Vec::new();
        for pair in text.split('\0') {
            let Some((key, value)) = pair.split_once('\n') else { continue };
            let Some(rest) = key.strip_prefix("submodule.") else { continue };
            let Some((name, field)) = rest.rsplit_once('.') else { continue };
            let at = match found.iter().position(|(n, ..)| n == name) {
                Some(at) => at,
                None => {
                    found.push((name.to_owned(), String::new(), String::new()));
                    found.len() - 1
                }
            };
            match field {
                "path" => value.clone_into(&mut found[at].1),
                "url" => value.clone_into(&mut found[at].2),
                _ => {}
            }
        }
        Ok(found.into_iter().map(|(_, path, url)| (path, url)).collect())
    }

    /// Runs git to its end; answers its standard output.
    async fn run(&self, repository: Option<&Path>, arguments: &[OsString], watched: bool) -> Result<Vec<u8>, Ended> {
        let mut command = Command::new(&self.environment.program);
        command.env_clear().envs(self.environment.variables.iter().map(|(k, v)| (k, v)));
        command.args(&self.environment.options);
        if let Some(repository) = repository {
            command.arg("--git-dir").arg(repository);
        }
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command.current_dir("/");
        let mut child = command.spawn().map_err(Ended::NotStarted)?;
        let group = Group::of(&child);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ended = async {
            let (stdout, messages) = tokio::join!(read_capped(stdout), self.read_messages(stderr, watched));
            (child.wait().await, stdout, messages)
        };
        tokio::pin!(ended);
        let limit = self.job.config.sources.max_bytes.saturating_mul(2).saturating_add(64 << 20);
        let mut look = tokio::time::interval(Duration::from_secs(1));
        let (status, stdout, messages) = loop {
            tokio::select! {
                biased;
                () = self.job.cancel.cancelled() => return Err(Ended::Cancelled),
                ended = &mut ended => break ended,
                _ = look.tick(), if watched => {
                    if repository.is_some_and(|path| size_of(path) > limit) {
                        return Err(Ended::TooLarge(limit));
                    }
                }
            }
        };
        let status = status.map_err(Ended::NotStarted)?;
        // what it started may outlive it (a credential helper, ssh)
        drop(group);
        if status.success() {
            return stdout.ok_or(Ended::TooLarge(OUTPUT_MAX as u64));
        }
        Err(Ended::Code { messages })
    }

    /// Passes on whole lines of progress, and keeps the end of everything.
    async fn read_messages(&self, stream: Option<impl AsyncRead + Unpin>, watched: bool) -> String {
        let Some(mut stream) = stream else { return String::new() };
        let mut kept: Vec<u8> = Vec::new();
        let mut line: Vec<u8> = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            kept.extend_from_slice(&buffer[..count]);
            if kept.len() > 2 * MESSAGES {
                kept.drain(..kept.len() - MESSAGES);
            }
            for byte in &buffer[..count] {
                match byte {
                    b'\r' => line.clear(),
                    b'\n' => {
                        if watched && !line.is_empty() {
                            self.job.say(one_line(&String::from_utf8_lossy(&line))).await;
                        }
                        line.clear();
                    }
                    byte if line.len() < 400 => line.push(*byte),
                    _ => {}
                }
            }
        }
        String::from_utf8_lossy(&kept).into_owned()
    }

    fn explain(&self, ended: &Ended) -> Failure {
        let failure = |error| Failure { error, unadvertised: false };
        let messages = match ended {
            Ended::Cancelled => return failure(SourceError::Cancelled),
            Ended::NotStarted(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return failure(SourceError::failed(
                    "git is not installed on the agent's host",
                    "install it: apt-get install git",
                ));
            }
            Ended::NotStarted(e) => {
                return failure(SourceError::failed(format!("git cannot be run: {e}"), "look at the agent's log"));
            }
            Ended::TooLarge(limit) => {
                return failure(SourceError::refused(
                    format!("the repository is larger than {} MiB", limit >> 20),
                    "name a branch or tag rather than an old commit, or raise [sources] max_bytes",
                ));
            }
            Ended::Code { messages } => messages,
        };
        let host = &self.host;
        let has = |words: &[&str]| words.iter().any(|word| messages.contains(word));
        if has(&[
            "not our ref",
            "unadvertised object",
            "does not support shallow",
            "Server does not allow request",
            "does not allow reachable",
        ]) {
            let error =
                SourceError::not_found("the server does not give that commit", "name a branch or tag that holds it");
            return Failure { error, unadvertised: true };
        }
        let last: Vec<&str> = messages
            .lines()
            .map(str::trim)
            .filter(|l| l.starts_with("fatal:") || l.starts_with("error:") || l.starts_with("remote:"))
            .collect();
        let said = last.last().copied().or(messages.lines().last()).unwrap_or_default();
        let said = one_line(said.trim_start_matches("fatal:").trim_start_matches("error:").trim());
        failure(
            if has(&[
                "could not read Username",
                "Authentication failed",
                "Permission denied (",
                "error: 403",
                "error: 401",
                "terminal prompts disabled",
            ]) {
                SourceError::refused(
                    format!("{host} does not let the agent in: {said}"),
                    format!(
                        "a private repository needs an account (sigil git add), or a source secret named {host} (a token, or for git+ssh a private key), and the name of the repository must be right"
                    ),
                )
            } else if has(&["dubious ownership"]) {
                SourceError::refused(
                    "the repository belongs to another user than the agent's",
                    "chown it to the agent's user, or deploy the folder itself: ./dir",
                )
            } else if has(&["Host key verification failed", "HOST IDENTIFICATION HAS CHANGED"]) {
                SourceError::refused(
                    format!("the key of {host} is not the one it showed before"),
                    "if that is right, remove its line from known_hosts in the agent's data directory",
                )
            } else if has(&["not found", "does not appear to be a git repository", "does not exist", "No such file"]) {
                SourceError::not_found(
                    format!("there is no repository there: {said}"),
                    "check the address; a private one needs a source secret for its host",
                )
            } else if has(&["couldn't find remote ref"]) {
                SourceError::not_found(said, "it was there a moment ago; try again")
            } else if has(&["certificate", "SSL"]) {
                SourceError::failed(
                    format!("{host} shows a certificate that is not trusted: {said}"),
                    "name the authority's PEM file in [builder] extra_ca",
                )
            } else if has(&[
                "Could not resolve",
                "Connection refused",
                "timed out",
                "Failed to connect",
                "unable to access",
                "Could not read from remote",
                "Network is unreachable",
                "early EOF",
                "RPC failed",
            ]) {
                SourceError::failed(
                    format!("{host} cannot be used: {said}"),
                    "check the network, or set a proxy in [outbound] proxy",
                )
            } else if has(&["No space left on device"]) {
                SourceError::failed("the disk is full", "free some space")
            } else {
                SourceError::failed(format!("git failed: {said}"), "read git's messages above")
            },
        )
    }
}

/// How a git process ended, other than well.
enum Ended {
    NotStarted(std::io::Error),
    Code { messages: String },
    TooLarge(u64),
    Cancelled,
}

/// Kills a process group when dropped.
pub(super) struct Group(Option<rustix::process::Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        Self::new(child.id())
    }

    pub(super) fn new(id: Option<u32>) -> Self {
        // the agent's own place in the line of who ends for want of memory is not theirs; only root's agent has one
        let _as_it_was = id.map(|id| std::fs::write(format!("/proc/{id}/oom_score_adj"), "0"));
        Self(id.and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            let _all_gone_already = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

async fn read_capped(stream: Option<impl AsyncRead + Unpin>) -> Option<Vec<u8>> {
    let mut kept = Vec::new();
    let mut stream = stream?;
    let mut buffer = vec![0; 64 << 10];
    let mut whole = true;
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        whole = whole && kept.len() + count <= OUTPUT_MAX;
        if whole {
            kept.extend_from_slice(&buffer[..count]);
        }
    }
    whole.then_some(kept)
}

/// Bytes of a repository's object files.
fn size_of(repository: &Path) -> u64 {
    let mut total = 0_u64;
    let _what_is_gone_counts_nothing = super::super::tree::walk(repository, &mut |_, meta| {
        total = total.saturating_add(meta.size());
        Ok(())
    });
    total
}

fn proxies(job: &Job<'_>, set: &mut dyn FnMut(&str, OsString)) {
    let outbound = &job.config.outbound;
    if outbound.proxy.is_empty() {
        for name in ["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            if let Some(value) = std::env::var_os(name) {
                set(name, value);
            }
        }
    } else {
        // its address may hold a password
        for name in ["http_proxy", "https_proxy"] {
            set(name, OsString::from(&outbound.proxy));
        }
    }
    if !outbound.no_proxy.is_empty() {
        set("no_proxy", outbound.no_proxy.join(",").into());
        return;
    }
    for name in ["no_proxy", "NO_PROXY"] {
        if let Some(value) = std::env::var_os(name) {
            set(name, value);
        }
    }
}

/// git takes one bundle: the system's and the extra certificates in one file.
fn certificates(job: &Job<'_>, scratch: &Path, config: &mut Vec<(String, OsString)>) -> Result<(), SourceError> {
    let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from).filter(|path| path.is_file());
    let Some(extra) = &job.config.builder.extra_ca else {
        if let Some(own) = own {
            config.push(("http.sslCAInfo".to_owned(), own.into()));
        }
        return Ok(());
    };
    let known = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/cert.pem",
        "/etc/ssl/ca-bundle.pem",
    ];
    let system = own.or_else(|| known.iter().map(PathBuf::from).find(|path| path.is_file()));
    let mut bundle = Vec::new();
    for path in system.iter().chain([extra]) {
        bundle.extend(fs::read(path).map_err(|e| {
            SourceError::failed(
                format!("the certificates of {} cannot be used: {e}", path.display()),
                "mend [builder] extra_ca",
            )
        })?);
        bundle.push(b'\n');
    }
    let path = scratch.join("ca.pem");
    fs::write(&path, bundle).map_err(|e| disk(&path, &e))?;
    config.push(("http.sslCAInfo".to_owned(), path.into()));
    Ok(())
}

/// `GIT_SSH_COMMAND`, which a shell reads. Neither the agent's own keys, agents nor configuration are used: whoever may
/// deploy must not get at repositories through the host's identity.
struct SshCommand {
    text: String,
}

impl SshCommand {
    fn new(program: &Path, known_hosts: &Path) -> Self {
        let mut command = Self { text: quoted(&program.to_string_lossy()) };
        command.text.push_str(" -F /dev/null");
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=accept-new",
            "ConnectTimeout=15",
            "ServerAliveInterval=15",
            "ForwardAgent=no",
            "ClearAllForwardings=yes",
            "IdentityFile=none",
            "PermitLocalCommand=no",
            "ControlPath=none",
            "GlobalKnownHostsFile=/dev/null",
        ] {
            command.option(option);
        }
        command.option(&format!("UserKnownHostsFile={}", known_hosts.display()));
        command
    }

    fn option(&mut self, option: &str) {
        self.text.push_str(" -o ");
        self.text.push_str(&quoted(option));
    }

    fn identity(&mut self, key: &Path) {
        // the first value of an option counts
        self.text = self.text.replace(&format!(" -o {}", quoted("IdentityFile=none")), "");
        self.option(&format!("IdentityFile={}", key.display()));
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn known_hosts(job: &Job<'_>) -> Result<PathBuf, SourceError> {
    let path = job.data_dir.join("known_hosts");
    let open = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    open.map_err(|e| disk(&path, &e))?;
    Ok(path)
}

/// Names folders of keys of this data directory, so that its own leftovers are known at start.
fn key_prefix(data_dir: &Path) -> String {
    let hash = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    format!("sigil-key-{}-", hex::encode(&hash[..6]))
}

/// Places in memory, best first; the data directory where there is none.
fn key_places(data_dir: &Path) -> Vec<PathBuf> {
    const TMPFS: u64 = 0x0102_1994;
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let in_memory = runtime.into_iter().chain(["/run".into(), "/dev/shm".into()]);
    let tmpfs =
        |path: &PathBuf| rustix::fs::statfs(path).is_ok_and(|s| u64::try_from(s.f_type).is_ok_and(|t| t == TMPFS));
    in_memory.filter(tmpfs).chain([data_dir.join("run")]).collect()
}

fn key_folder(data_dir: &Path) -> Result<tempfile::TempDir, SourceError> {
    super::super::cache::private_dir(&data_dir.join("run"))?;
    let prefix = key_prefix(data_dir);
    let mut last = None;
    for place in key_places(data_dir) {
        match tempfile::Builder::new().prefix(&prefix).permissions(fs::Permissions::from_mode(0o700)).tempdir_in(&place)
        {
            Ok(folder) => return Ok(folder),
            Err(error) => last = Some(disk(&place, &error)),
        }
    }
    Err(last.unwrap_or_else(|| {
        SourceError::failed("there is no place for a key", "look at the data directory's permissions")
    }))
}

fn write_key(folder: &Path, secret: &str) -> Result<PathBuf, SourceError> {
    use std::io::Write;
    let path = folder.join("key");
    // OpenSSH refuses a key without its last line break, and what came through a prompt has none
    let text = Zeroizing::new(format!("{}\n", secret.replace("\r\n", "\n").trim()));
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|e| disk(&path, &e))?;
    Ok(path)
}

/// Removes keys that a crash left.
pub(in super::super) fn remove_leftovers(data_dir: &Path) {
    let prefix = key_prefix(data_dir);
    for place in key_places(data_dir) {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix));
            let owner = entry.metadata().is_ok_and(|m| m.is_dir() && m.uid() == rustix::process::geteuid().as_raw());
            if ours
                && owner
                && let Err(error) = fs::remove_dir_all(entry.path())
            {
                tracing::warn!(%error, "a private key left by a crash could not be removed");
            }
        }
    }
}

/// What a crash in the middle of a fetch leaves.
#[cfg(test)]
pub(super) fn leave_a_key(data_dir: &Path) -> PathBuf {
    let Ok(folder) = key_folder(data_dir) else { return PathBuf::new() };
    let kept = folder.keep();
    let _is_asserted_by_the_test = write_key(&kept, "key");
    kept
}
