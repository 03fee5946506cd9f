//! Engines of a test's own: a second Docker daemon and a Podman service with their own storage and socket, which a test
//! may stop, kill and start again without touching the machine's. No network is set up by either.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{docker_at, eventually, fixture};

/// Longest start of an engine.
const UP: Duration = Duration::from_secs(60);

/// An image that carries an MCP server and hardly anything else.
pub const SHELL: &str = "sigil-test/shell:1";

/// A Docker daemon of our own.
#[derive(Debug)]
pub struct Docker {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Docker {
    /// Starts one.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("sigil-docker-").tempdir().expect("a temporary directory");
        let mut engine = Self { dir, daemon: None };
        engine.up();
        engine
    }

    /// Starts it again after [`Self::stop`] or [`Self::crash`].
    ///
    /// # Panics
    /// When it does not come up.
    pub fn up(&mut self) {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let _stale = std::fs::remove_file(at("pid"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(at("log")).expect("a log file");
        // a containerd that belongs to the system is told apart by name spaces
        let space = self.dir.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // the machine's own daemon.json may say otherwise than the flags below, which dockerd refuses
        std::fs::write(at("daemon.json"), "{}").expect("a file");
        // in a network of its own: without a bridge, dockerd removes `docker0`, and that would be the machine's
        let child = Command::new("unshare")
            .args(["--net", "dockerd"])
            .args(["--data-root", &at("data"), "--exec-root", &at("run"), "--pidfile", &at("pid"), "-H", &self.host()])
            .args(["--config-file", &at("daemon.json"), "--bridge=none", "--iptables=false", "--ip-forward=false"])
            .args(["--containerd-namespace", &space, "--containerd-plugins-namespace", &format!("{space}-plugins")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("unshare is part of the system");
        self.daemon = Some(child);
        answers(&self.host(), &self.dir.path().join("log"));
    }

    /// Its address.
    pub fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("docker.sock").display())
    }

    /// Runs `docker` on it.
    pub fn docker(&self, args: &[&str]) -> String {
        docker_at(Some(&self.host()), args)
    }

    /// Ends it in order: containers get their signals and end with it, as no live-restore is set.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let pid = rustix::process::Pid::from_child(&daemon);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is ours");
            eventually("dockerd ends", UP, || daemon.try_wait().ok().flatten());
        }
    }

    /// Ends everything at once as a power cut does: daemon, containerd, shims, containers.
    pub fn crash(&mut self) {
        let mut pids = self.processes();
        if let Some(mut daemon) = self.daemon.take() {
            let _killed = daemon.kill();
            let _reaped = daemon.wait();
        }
        // a shim that lost its containerd is still found; a container's processes were looked up before
        pids.extend(self.processes());
        for pid in pids {
            kill(pid);
        }
        self.unmount();
        // what is under /run elsewhere does not outlive a reboot either
        let _gone = std::fs::remove_dir_all(self.dir.path().join("run"));
    }

    /// Processes of containers, and helpers that name our directory.
    fn processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        let host = self.host();
        let run = |args: &[&str]| Command::new("docker").env("DOCKER_HOST", &host).args(args).output();
        if let Ok(out) = run(&["ps", "-q"]) {
            for id in String::from_utf8_lossy(&out.stdout).split_whitespace() {
                if let Ok(out) = run(&["inspect", "-f", "{{.State.Pid}}", id]) {
                    pids.extend(String::from_utf8_lossy(&out.stdout).trim().parse::<i32>());
                }
            }
        }
        let ours = self.dir.path().as_os_str().as_encoded_bytes();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let helper = ["containerd", "runc"].iter().any(|name| contains(&command, name.as_bytes()));
            if helper && contains(&command, ours) {
                pids.push(pid);
            }
        }
        pids.retain(|pid| *pid > 1);
        pids
    }

    /// What a killed engine leaves mounted below its directory, innermost first.
    fn unmount(&self) {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|path| Path::new(path).starts_with(self.dir.path()))
            .collect();
        for path in ours.into_iter().rev() {
            let _gone = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("---- dockerd, newest first ----\n{}", tail.join("\n"));
        }
        self.crash();
    }
}

/// A Podman service of our own.
#[derive(Debug)]
pub struct Podman {
    dir: tempfile::TempDir,
    child: Child,
    options: Vec<String>,
}

impl Podman {
    /// Starts one. It asks for neither systemd nor a journal.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("sigil-podman-").tempdir().expect("a temporary directory");
        let at = |name: &str| dir.path().join(name).display().to_string();
        let conf = "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        std::fs::write(at("containers.conf"), conf).expect("a file");
        std::fs::create_dir_all(at("networks")).expect("a directory");
        let options = [
            "--root",
            &at("root"),
            "--runroot",
            &at("run"),
            "--tmpdir",
            &at("tmp"),
            "--storage-driver",
            "vfs",
            "--network-config-dir",
            &at("networks"),
        ];
        let options: Vec<String> = options.map(String::from).to_vec();
        let host = format!("unix://{}", at("podman.sock"));
        let child = Command::new("podman")
            .args(&options)
            .args(["system", "service", "--time=0", &host])
            .env("CONTAINERS_CONF", at("containers.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(at("log")).expect("a log file"))
            .spawn()
            .expect("podman is needed for this test: apt-get install podman");
        answers(&host, &dir.path().join("log"));
        Self { dir, child, options }
    }

    /// Its address.
    pub fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("podman.sock").display())
    }

    /// Runs `docker` on it: the API is the same.
    pub fn docker(&self, args: &[&str]) -> String {
        docker_at(Some(&self.host()), args)
    }

    /// Runs Podman's own program on its storage, for what the API does not show.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn podman(&self, words: &[&str]) -> String {
        let conf = self.dir.path().join("containers.conf");
        let mut command = Command::new("podman");
        let said =
            command.args(&self.options).args(words).env("CONTAINERS_CONF", conf).output().expect("podman starts");
        String::from_utf8_lossy(&said.stdout).trim().to_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // a running container keeps mounts below the directory that goes next
        self.podman(&["rm", "--all", "--force", "--time", "0"]);
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Imports [`SHELL`] into the engine at `host`: a static busybox and `tests/fixtures/shell/server`.
///
/// # Panics
/// When there is no static busybox, or the engine refuses.
pub fn import_shell(host: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let put = |from: &Path, to: &str| {
        let to = dir.path().join(to);
        std::fs::create_dir_all(to.parent().expect("it has one")).expect("a directory");
        std::fs::copy(from, to).expect("a file");
    };
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let busybox = busybox.expect("a static busybox is needed for this test: apt-get install busybox-static");
    for name in ["busybox", "sh", "sed", "sleep"] {
        put(&busybox, &format!("bin/{name}"));
    }
    put(&PathBuf::from(fixture("shell/server")), "server");
    let tar = dir.path().join("image.tar");
    let made = Command::new("tar")
        .args(["--owner=0", "--group=0", "--mode=a+rx", "-cf"])
        .arg(&tar)
        .arg("-C")
        .arg(dir.path())
        .args(["bin", "server"])
        .status()
        .expect("tar is installed");
    assert!(made.success(), "tar: {made}");
    let entry = r#"ENTRYPOINT ["/bin/sh","/server"]"#;
    docker_at(Some(host), &["import", "--change", entry, &tar.display().to_string(), SHELL]);
    let told = docker_at(Some(host), &["image", "inspect", "-f", "{{json .Config.Entrypoint}}", SHELL]);
    assert!(told.contains("/server"), "the engine did not take the entry point: {told}");
}

fn answers(host: &str, log: &Path) {
    let socket = PathBuf::from(host.trim_start_matches("unix://"));
    eventually(&format!("an engine at {host} (its log: {})", log.display()), UP, || {
        std::fs::metadata(&socket).ok().filter(|m| m.file_type().is_socket())?;
        let ok = Command::new("docker").env("DOCKER_HOST", host).arg("info").output().ok()?.status.success();
        ok.then_some(())
    });
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
