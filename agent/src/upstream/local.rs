//! Tests only: ports and processes of this host in the place of a container.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sigil_core::model::{NetworkMode, ReleaseSpec, Resources, Transport};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use super::{Endpoint, Piped, Stray, Wire};
use crate::initlink::{Exit, LinkError, Process};

#[derive(Debug)]
struct Kept {
    stdin: OwnedFd,
    stdout: OwnedFd,
    exit: watch::Receiver<Option<Exit>>,
    child: Arc<Mutex<Child>>,
}

/// A container's stand-in.
#[derive(Debug, Default)]
pub(crate) struct Local {
    kept: Mutex<HashMap<String, Kept>>,
    /// As when a container was killed.
    pub(crate) away: AtomicBool,
    /// As when it was killed just now: it looks up, and is not.
    pub(crate) broken: AtomicBool,
    /// How often it was dialled.
    pub(crate) dials: AtomicUsize,
    /// How many of these before it breaks; 0: it does not.
    pub(crate) good: AtomicUsize,
}

fn io(e: std::io::Error) -> LinkError {
    LinkError::Io(e.to_string())
}

impl Local {
    pub(crate) fn is_up(&self) -> bool {
        !self.away.load(Relaxed)
    }

    pub(crate) async fn dial(&self, port: u16) -> Result<tokio::net::TcpStream, LinkError> {
        let dialled = self.dials.fetch_add(1, Relaxed) + 1;
        let good = self.good.load(Relaxed);
        if self.broken.load(Relaxed) || (good > 0 && dialled > good) {
            return Err(LinkError::Away);
        }
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.map_err(|_| LinkError::Refused(port))
    }

    pub(crate) fn spawn(&self, key: &str, process: &Process) -> Result<Piped, LinkError> {
        let argv0 = process.argv[0].clone();
        let mut child = Command::new(&argv0)
            .args(&process.argv[1..])
            .envs(process.env.iter().map(|(k, v)| (k, v.expose_secret())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| LinkError::Spawn { argv0, why: e.to_string() })?;
        let stdin: OwnedFd = child.stdin.take().unwrap().into();
        let stdout: OwnedFd = child.stdout.take().unwrap().into();
        let (tx, exit) = watch::channel(None);
        let child = Arc::new(Mutex::new(child));
        let waited = child.clone();
        std::thread::spawn(move || {
            loop {
                if let Ok(Some(status)) = waited.lock().unwrap().try_wait() {
                    use std::os::unix::process::ExitStatusExt;
                    tx.send(Some(Exit { code: status.code(), signal: status.signal() })).ok();
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        // unlike init no duplicate of the server's own ends is kept, so that its end is an end of file
        let kept = Kept { stdin, stdout, exit, child };
        let piped = kept.piped()?;
        self.kept.lock().unwrap().insert(key.into(), kept);
        Ok(piped)
    }

    pub(crate) fn resume(&self, key: &str) -> Result<Option<Piped>, LinkError> {
        self.kept.lock().unwrap().get(key).filter(|k| k.exit.borrow().is_none()).map(Kept::piped).transpose()
    }

    pub(crate) fn close(&self, key: &str) -> Result<(), LinkError> {
        if let Some(kept) = self.kept.lock().unwrap().remove(key) {
            kept.child.lock().unwrap().kill().map_err(io)?;
        }
        Ok(())
    }

    pub(crate) fn rename(&self, key: &str, to: &str) -> Result<(), LinkError> {
        let mut all = self.kept.lock().unwrap();
        let kept = all.remove(key).ok_or_else(|| LinkError::Io("no such process".into()))?;
        all.insert(to.into(), kept);
        Ok(())
    }

    /// Ends a process, and returns when that is known.
    pub(crate) fn end(&self, key: &str) {
        let (child, exit) = {
            let all = self.kept.lock().unwrap();
            (all[key].child.clone(), all[key].exit.clone())
        };
        child.lock().unwrap().kill().unwrap();
        while exit.borrow().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.kept.lock().unwrap().keys().cloned().collect()
    }
}

impl Kept {
    fn piped(&self) -> Result<Piped, LinkError> {
        Ok(Piped {
            stdin: pipe::Sender::from_owned_fd(self.stdin.try_clone().map_err(io)?).map_err(io)?,
            stdout: pipe::Receiver::from_owned_fd(self.stdout.try_clone().map_err(io)?).map_err(io)?,
            exit: self.exit.clone(),
        })
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        for kept in self.kept.lock().unwrap().values() {
            kept.child.lock().unwrap().kill().ok();
        }
    }
}

/// A release of it.
pub(crate) fn spec(transport: Transport, port: u16, command: &[&str]) -> ReleaseSpec {
    ReleaseSpec {
        image: String::new(),
        source: String::new(),
        source_digest: String::new(),
        commit: None,
        transport,
        port,
        path: if transport == Transport::Sse { "/sse".into() } else { "/mcp".into() },
        command: command.iter().map(|s| (*s).to_owned()).collect(),
        workdir: String::new(),
        user: String::new(),
        env: std::collections::BTreeMap::new(),
        secrets: Vec::new(),
        resources: Resources {
            tier: "router".into(),
            cpu_share: 0.1,
            cpu_limit: 0.25,
            memory: 256 << 20,
            storage: 0,
            processes: 512,
            files: 1024,
        },
        volumes: Vec::new(),
        network: NetworkMode::Link,
        egress: Vec::new(),
        config: Value::Null,
        session: None,
        access: "anonymous".into(),
        sessions_max: None,
        sessions_replayable: false,
        request_timeout_ms: 10_000,
        start_timeout_ms: 10_000,
        health: sigil_core::health::Rules::default(),
    }
}

/// A replica with it.
pub(crate) fn build(spec: ReleaseSpec, stray: mpsc::Sender<Bytes>) -> Arc<Endpoint> {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Arc::new(Endpoint {
        deployment: ulid::Ulid(u128::from(number) << 64).into(),
        release: 1,
        instance: ulid::Ulid(u128::from(number)).into(),
        spec: Arc::new(spec),
        env: Arc::new(vec![("PYTHONUNBUFFERED".into(), SecretString::from("1"))]),
        quota: super::quota::Quota::default(),
        spare: super::spare::Spare::default(),
        wire: Wire::Local(Arc::new(Local::default())),
        stray: Stray::Test(stray),
        pool: super::http::Pool::default(),
        carried: None,
        tasks: TaskTracker::new(),
    })
}
