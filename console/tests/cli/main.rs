//! The built `sigil`, run as a person or a script runs it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod alerts;
mod audit;
mod clients;
mod fake;
mod health;
mod offline;
mod operations;
mod packages;
mod reading;
mod scaling;
mod serving;
mod terminal;
mod transport;

use std::path::PathBuf;
use std::process::{Output, Stdio};

use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use fake::{Fake, Proxy};

/// A home of its own, and an agent in it when asked for.
pub struct Home {
    pub dir: TempDir,
    pub fake: Fake,
}

/// What a run gave.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// The exit code, asserted with everything that was said.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.out, self.err))
    }

    #[track_caller]
    pub fn error(&self) -> serde_json::Value {
        let value: serde_json::Value =
            serde_json::from_str(&self.err).unwrap_or_else(|e| panic!("stderr is not one object: {e}: {}", self.err));
        value["error"].clone()
    }
}

impl Home {
    /// Without an agent.
    pub fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), fake: Fake::new() }
    }

    /// With an agent on the user's own socket, where `sigil` finds it by itself.
    pub fn with_agent() -> Self {
        let home = Self::empty();
        std::fs::create_dir_all(home.path("state/sigil")).unwrap();
        home.fake.listen(&home.socket());
        home
    }

    pub fn socket(&self) -> PathBuf {
        self.path("state/sigil/agent.sock")
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    pub fn proxy(&self) -> Proxy {
        Proxy::new(self.path("proxy.sock"), self.socket())
    }

    /// A command that sees nothing of this machine but `PATH`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sigil"));
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.dir.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("TZ", "UTC")
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[]).await
    }

    pub async fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Ran {
        self.command(args).envs(env.iter().copied()).output().await.unwrap().into()
    }

    pub async fn run_stdin(&self, args: &[&str], stdin: &[u8]) -> Ran {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(stdin).await.unwrap();
        drop(pipe);
        child.wait_with_output().await.unwrap().into()
    }

    pub fn put(&self, path: &str, body: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, body).unwrap();
    }
}
