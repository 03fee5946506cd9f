//! Owns: which alerts are firing, and telling of them: in the log, to webhooks, to a command.
//! May touch: the configured addresses and command, `<data>/alerts.json`; asks reconcile, probe, usage and sample what is wrong.
//! Never: mends anything, or waits for whoever is told.
//! Tested by: unit tests here (a webhook and a command that are really there); the rules in `sigil_core::alert`.

mod facts;

pub use facts::Asked;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use sigil_config::agent::AgentConfig;
use sigil_core::alert::{Alert, Alerts, Fact, Turn};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::source;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);
/// Alerts that wait to be told; what comes beyond is in the log only.
const WAITING: usize = 256;
/// Between the tries of one delivery.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(20)];
/// How long one try takes at most.
const TRY: Duration = Duration::from_secs(10);
/// How long a command runs at most.
const RUN: Duration = Duration::from_secs(30);
/// Where those that fire are kept, so that a new agent does not tell them again.
const FILE: &str = "alerts.json";

/// Tells what should not be, as it is now.
pub type Facts = Arc<dyn Fn() -> Vec<Fact> + Send + Sync>;

/// What the room needs.
pub struct Deps {
    /// What is wrong now.
    pub facts: Facts,
    /// `[alerts]`, and the agent's name.
    pub config: watch::Receiver<Arc<AgentConfig>>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// This agent's id.
    pub agent: String,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

/// The room's handle.
#[derive(Clone, Debug)]
pub struct AlertRoom {
    firing: watch::Receiver<Vec<Alert>>,
    tasks: TaskTracker,
}

/// What is sent: to webhooks as JSON, to a command on its standard input.
#[derive(Debug, Clone, Serialize)]
struct Message {
    /// `firing` or `resolved`.
    state: &'static str,
    #[serde(flatten)]
    alert: Alert,
    at: Timestamp,
    /// The agent's id, and what its owner calls it.
    agent: String,
    host: String,
}

impl AlertRoom {
    /// Looks until `stop`.
    pub fn spawn(deps: Deps, stop: CancellationToken) -> Self {
        Self::every(EVERY, deps, stop)
    }

    fn every(every: Duration, deps: Deps, stop: CancellationToken) -> Self {
        let (tell, firing) = watch::channel(Vec::new());
        let (out, messages) = mpsc::channel(WAITING);
        let tasks = TaskTracker::new();
        tasks.spawn(deliver(deps.config.clone(), messages, stop.clone()));
        tasks.spawn(look(every, deps, tell, out, stop));
        tasks.close();
        Self { firing, tasks }
    }

    /// What fires now.
    pub fn firing(&self) -> watch::Receiver<Vec<Alert>> {
        self.firing.clone()
    }

    /// Waits until the room has ended, at most this long.
    pub async fn closed(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }
}

async fn look(
    every: Duration,
    deps: Deps,
    tell: watch::Sender<Vec<Alert>>,
    out: mpsc::Sender<Message>,
    stop: CancellationToken,
) {
    let began = Instant::now();
    let now = || i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
    let file = deps.data_dir.join(FILE);
    let mut alerts = Alerts::resume(read(&file).await, now());
    tell.send_replace(alerts.firing());
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // what is only starting is not wrong yet
    tick.tick().await;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let config = deps.config.borrow().clone();
        let after = i64::try_from(config.alerts.after_seconds.saturating_mul(1000)).unwrap_or(i64::MAX);
        let at = Timestamp::now();
        let turns = alerts.look((deps.facts)(), after, now(), at);
        if turns.is_empty() {
            continue;
        }
        for turn in turns {
            let (state, alert) = match turn {
                Turn::Fires(alert) => {
                    tracing::warn!(
                        kind = alert.fact.kind.as_str(),
                        about = alert.fact.about,
                        "alert: {}",
                        alert.fact.text
                    );
                    ("firing", alert)
                }
                Turn::Resolves(alert) => {
                    tracing::info!(
                        kind = alert.fact.kind.as_str(),
                        about = alert.fact.about,
                        "over: {}",
                        alert.fact.text
                    );
                    ("resolved", alert)
                }
            };
            let message = Message { state, alert, at, agent: deps.agent.clone(), host: config.name.clone() };
            if out.try_send(message).is_err() {
                tracing::warn!("an alert finds no room to be sent: it is in this log only");
            }
        }
        tell.send_replace(alerts.firing());
        write(&file, &alerts.firing()).await;
    }
}

/// What an earlier agent told; a file that cannot be read tells nothing.
async fn read(file: &Path) -> Vec<Alert> {
    match tokio::fs::read(file).await {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, "which alerts were told is not known: they may be told again");
            Vec::new()
        }),
        Err(_) => Vec::new(),
    }
}

async fn write(file: &Path, firing: &[Alert]) {
    let next = file.with_extension("new");
    let written = async {
        tokio::fs::write(&next, serde_json::to_vec(firing)?).await?;
        tokio::fs::rename(&next, file).await
    };
    if let Err(error) = written.await {
        tracing::warn!(%error, "which alerts were told cannot be kept: a new agent may tell them again");
    }
}

async fn deliver(
    config: watch::Receiver<Arc<AgentConfig>>,
    mut messages: mpsc::Receiver<Message>,
    stop: CancellationToken,
) {
    loop {
        let message = tokio::select! {
            () = stop.cancelled() => return,
            message = messages.recv() => message,
        };
        let Some(message) = message else { return };
        let config = config.borrow().clone();
        let body = match serde_json::to_vec(&message) {
            Ok(body) => body,
            Err(error) => {
                tracing::error!(%error, "an alert cannot be written");
                continue;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = to_all(&config, &message, &body) => {}
        }
    }
}

async fn to_all(config: &AgentConfig, message: &Message, body: &[u8]) {
    let hooks = config.alerts.webhooks.iter().map(|(name, address)| async move {
        let mut pauses = PAUSES.iter();
        while let Err(why) = post(config, address.reveal(), body).await {
            match pauses.next() {
                Some(pause) => tokio::time::sleep(*pause).await,
                // never with the address: that may be the secret
                None => return tracing::warn!(webhook = name, why, "an alert could not be sent"),
            }
        }
    });
    let command = async {
        let [program, arguments @ ..] = config.alerts.command.as_slice() else { return };
        if let Err(why) = run(program, arguments, message, body).await {
            tracing::warn!(program, why, "the command for alerts failed");
        }
    };
    tokio::join!(futures::future::join_all(hooks), command);
}

/// One try. The reason never holds the address.
async fn post(config: &AgentConfig, address: &str, body: &[u8]) -> Result<(), String> {
    let read;
    let address = match address.strip_prefix("file:") {
        None => address,
        Some(path) => {
            read = tokio::fs::read_to_string(path).await.map_err(|e| format!("{path} cannot be read: {e}"))?;
            read.trim()
        }
    };
    let client = source::straight_client(config).map_err(|e| e.to_string())?;
    let request = client.post(address).header("content-type", "application/json").timeout(TRY).body(body.to_vec());
    let answer = request.send().await.map_err(|e| e.without_url().to_string())?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answers {}", answer.status())) }
}

async fn run(program: &str, arguments: &[String], message: &Message, body: &[u8]) -> Result<(), String> {
    let fact = &message.alert.fact;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("SIGIL_ALERT_STATE", message.state)
        .env("SIGIL_ALERT_KIND", fact.kind.as_str())
        .env("SIGIL_ALERT_ABOUT", &fact.about)
        .env("SIGIL_ALERT_TEXT", &fact.text)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| e.to_string())?;
    let stdin = child.stdin.take();
    let ended = async {
        if let Some(mut stdin) = stdin {
            // one that does not read needs it not
            let _gone = stdin.write_all(body).await;
        }
        child.wait().await
    };
    match tokio::time::timeout(RUN, ended).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(status.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it was still running after {} s", RUN.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use sigil_core::alert::Kind;
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Takes one POST, and answers it so.
    async fn taken(listener: &TcpListener, status: &str) -> serde_json::Value {
        let (socket, _) = tokio::time::timeout(LONG, listener.accept()).await.expect("a delivery").unwrap();
        let mut reader = BufReader::new(socket);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).await.unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).await.unwrap();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        reader.get_mut().write_all(answer.as_bytes()).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test]
    async fn an_alert_and_its_end_reach_a_webhook_and_a_command_once() {
        // whoever speaks HTTP needs a provider of TLS, here as in the daemon
        let _there = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let heard = dir.path().join("heard");
        let mut config = AgentConfig { name: "cellar".into(), ..AgentConfig::default() };
        config.alerts.after_seconds = 0;
        let address = format!("http://{}/secret", listener.local_addr().unwrap());
        config.alerts.webhooks.insert("ops".into(), address.as_str().into());
        let script = format!("cat >>{0}; echo \" $SIGIL_ALERT_STATE\" >>{0}", heard.display());
        config.alerts.command = vec!["sh".into(), "-c".into(), script];
        let (_keep, config) = watch::channel(Arc::new(config));
        let wrong =
            Arc::new(Mutex::new(vec![Fact { kind: Kind::Failed, about: "clock".into(), text: "it ended".into() }]));
        let room = |stop: CancellationToken| {
            let wrong = wrong.clone();
            let deps = Deps {
                facts: Arc::new(move || wrong.lock().unwrap().clone()),
                config: config.clone(),
                data_dir: dir.path().to_owned(),
                agent: "a".into(),
            };
            AlertRoom::every(Duration::from_millis(20), deps, stop)
        };
        let stop = CancellationToken::new();
        let first = room(stop.clone());
        // one that is busy is asked again
        taken(&listener, "503 Busy").await;
        let told = taken(&listener, "200 OK").await;
        let seen = |told: &serde_json::Value| {
            ["state", "kind", "about", "text", "host"].map(|key| told[key].as_str().unwrap_or_default().to_owned())
        };
        assert_eq!(seen(&told), ["firing", "failed", "clock", "it ended", "cellar"]);
        let mut firing = first.firing();
        assert_eq!(firing.wait_for(|all| all.len() == 1).await.unwrap()[0].fact.about, "clock");
        let read = || std::fs::read_to_string(&heard).unwrap_or_default();
        let deadline = Instant::now() + LONG;
        while !read().ends_with(" firing\n") {
            assert!(Instant::now() < deadline, "the command heard: {}", read());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
        assert!(first.closed(LONG).await);

        // a new agent tells what is over, and not what was told
        wrong.lock().unwrap().clear();
        let stop = CancellationToken::new();
        let second = room(stop.clone());
        assert_eq!(seen(&taken(&listener, "200 OK").await)[0], "resolved");
        stop.cancel();
        assert!(second.closed(LONG).await);
        assert_eq!(read().lines().filter(|line| line.ends_with(" firing")).count(), 1, "{}", read());
    }
}
