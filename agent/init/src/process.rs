//! Starting processes, with an error that says what to do about it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Access, access};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to start.
#[derive(Debug)]
pub struct Start<'a> {
    pub argv: &'a [&'a str],
    pub env: &'a [(&'a str, &'a str)],
    pub workdir: &'a str,
    /// Has no stdin, and its stdout is output.
    pub main: bool,
}

/// What was started, with our ends of its pipes.
#[derive(Debug)]
pub struct Spawned {
    pub pid: u32,
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Raises the limit of open files as far as it goes and answers what it was: children get that back.
pub fn raise_files() -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    // Nothing depends on it succeeding.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum });
    before
}

/// Starts a process in a group of its own, with nothing but the given environment.
pub fn spawn(start: &Start<'_>, files: &Rlimit) -> Result<Spawned, String> {
    let Some(argv0) = start.argv.first().filter(|a| !a.is_empty()) else { return Err("the command is empty".into()) };
    let workdir = if start.workdir.is_empty() { "/" } else { start.workdir };
    match std::fs::metadata(workdir) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(format!("working directory '{workdir}' is no directory")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(format!("working directory '{workdir}' does not exist"));
        }
        Err(e) => return Err(format!("working directory '{workdir}': {}", words(&e))),
    }
    let program = find(argv0, start.env, Path::new(workdir))?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| format!("no pipe: {e}"));
    let (stdout, child_stdout) = pipe()?;
    let (stderr, child_stderr) = pipe()?;
    let (child_stdin, stdin) = if start.main {
        (Stdio::null(), None)
    } else {
        let (read, write) = pipe()?;
        (Stdio::from(read), Some(write))
    };
    for ours in [Some(&stdout), Some(&stderr), stdin.as_ref()].into_iter().flatten() {
        rustix::io::ioctl_fionbio(ours, true).map_err(|e| format!("no pipe: {e}"))?;
    }
    let mut command = Command::new(&program);
    command
        .arg0(argv0)
        .args(&start.argv[1..])
        .env_clear()
        .envs(start.env.iter().copied())
        .current_dir(workdir)
        .stdin(child_stdin)
        .stdout(child_stdout)
        .stderr(child_stderr)
        .process_group(0);
    let raised = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, *files);
    let child = command.spawn();
    let _ = setrlimit(Resource::Nofile, raised);
    match child {
        Ok(child) => Ok(Spawned { pid: child.id(), stdin, stdout, stderr }),
        Err(e) => Err(explain(&program, &e)),
    }
}

/// Looks the program up as execvp does, but with the child's PATH.
fn find(argv0: &str, env: &[(&str, &str)], workdir: &Path) -> Result<PathBuf, String> {
    if argv0.contains('/') {
        let path = workdir.join(argv0);
        return match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => Err(format!("'{}' is a directory", path.display())),
            Ok(_) if access(&path, Access::EXEC_OK).is_err() => {
                Err(format!("'{}' is not executable by this user", path.display()))
            }
            Ok(_) => Ok(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(format!("'{}' does not exist", path.display())),
            Err(e) => Err(format!("'{}': {}", path.display(), words(&e))),
        };
    }
    let path = env.iter().rev().find(|(name, _)| *name == "PATH").map_or(DEFAULT_PATH, |(_, value)| *value);
    let mut denied = None;
    for directory in path.split(':') {
        let candidate = workdir.join(directory).join(argv0);
        if !std::fs::metadata(&candidate).is_ok_and(|found| found.is_file()) {
            continue;
        }
        if access(&candidate, Access::EXEC_OK).is_ok() {
            return Ok(candidate);
        }
        denied = Some(candidate);
    }
    Err(match denied {
        Some(path) => format!("'{}' is not executable by this user", path.display()),
        None => format!("no such command in PATH ({path})"),
    })
}

/// Why the kernel refused a program that is there.
fn explain(program: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            let mut head = [0; 128];
            let count = File::open(program).and_then(|mut file| file.read(&mut head)).unwrap_or(0);
            let head = &head[..count];
            if let Some(rest) = head.strip_prefix(b"#!") {
                let line = rest.split(|b| *b == b'\n').next().unwrap_or(rest);
                let line = String::from_utf8_lossy(line);
                let interpreter = line.split_whitespace().next().unwrap_or("");
                format!("its interpreter '{interpreter}' does not exist")
            } else {
                "its dynamic loader does not exist: it was built for another C library".into()
            }
        }
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => words(error),
    }
}

/// The system's words, without Rust's `(os error N)`.
pub fn words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn failure(argv: &[&str], env: &[(&str, &str)], workdir: &str) -> String {
        let files = getrlimit(Resource::Nofile);
        spawn(&Start { argv, env, workdir, main: false }, &files).unwrap_err()
    }

    #[test]
    fn failures_say_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        let script = dir.path().join("script");
        File::create(&script).unwrap().write_all(b"#!/no/such/node\n").unwrap();
        assert_eq!(
            failure(&["nothing-here"], &[("PATH", "/bin:/usr/bin")], ""),
            "no such command in PATH (/bin:/usr/bin)"
        );
        assert!(failure(&["./script"], &[], root).ends_with("is not executable by this user"));
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(failure(&["./script"], &[], root), "its interpreter '/no/such/node' does not exist");
        assert_eq!(failure(&["script"], &[("PATH", root)], ""), "its interpreter '/no/such/node' does not exist");
        assert_eq!(failure(&["/bin/sh"], &[], "/no/where"), "working directory '/no/where' does not exist");
        assert_eq!(failure(&["/no/sh"], &[], "/"), "'/no/sh' does not exist");
        assert_eq!(failure(&[""], &[], "/"), "the command is empty");
        std::fs::write(&script, b"no program").unwrap();
        assert_eq!(failure(&["./script"], &[], root), "exec format error");
    }

    #[test]
    fn a_process_has_its_environment_and_its_limits_only() {
        let before = raise_files();
        let argv = ["sh", "-c", "env; ulimit -n; pwd"];
        let start =
            Start { argv: &argv, env: &[("ONLY", "this"), ("PATH", "/bin:/usr/bin")], workdir: "/tmp", main: true };
        let spawned = spawn(&start, &before).unwrap();
        rustix::io::ioctl_fionbio(&spawned.stdout, false).unwrap();
        let mut text = String::new();
        File::from(spawned.stdout).read_to_string(&mut text).unwrap();
        assert!(text.contains("ONLY=this\n") && !text.contains("HOME="), "{text}");
        if let Some(limit) = before.current {
            assert!(text.contains(&format!("\n{limit}\n")), "{text}");
        }
        assert!(text.ends_with("/tmp\n"), "{text}");
    }
}
