//! Owns: which alerts are firing and which were, and telling of them: in the log, to webhooks, to a command; that the agent
//! itself is there (a heartbeat).
//! May touch: the configured addresses and command, `<data>/alerts.json`, `<data>/alerts-ended.json`, `<data>/running`; asks
//! reconcile, probe, usage and sample what is wrong.
//! Never: mends anything, or waits for whoever is told.
//! Tested by: unit tests here (a webhook and a command that are really there); the rules in `sigil_core::alert`.

mod deliver;
mod facts;
mod lost;

pub use deliver::Tried;
pub use facts::Asked;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sigil_config::agent::AgentConfig;
use sigil_core::alert::{Alert, Alerts, Ended, Fact, Kind, Message, Turn};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use lost::Running;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);
/// Alerts that wait to be told; what comes beyond is in the log only.
const WAITING: usize = 256;
/// Where those that fire are kept, so that a new agent does not tell them again.
const FILE: &str = "alerts.json";
/// Where those that are over are kept.
const ENDED: &str = "alerts-ended.json";
/// How many of them.
const ENDED_MAX: usize = 200;
/// What is said of the agent is about it.
const AGENT: &str = "agent";

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
    ended: watch::Receiver<VecDeque<Ended>>,
    config: watch::Receiver<Arc<AgentConfig>>,
    agent: String,
    tasks: TaskTracker,
}

impl AlertRoom {
    /// Looks until `stop`.
    pub fn spawn(deps: Deps, stop: CancellationToken) -> Self {
        Self::every(EVERY, deps, stop)
    }

    fn every(every: Duration, deps: Deps, stop: CancellationToken) -> Self {
        let (tell, firing) = watch::channel(Vec::new());
        let (tell_ended, ended) = watch::channel(VecDeque::new());
        let (out, messages) = mpsc::channel(WAITING);
        let (config, agent) = (deps.config.clone(), deps.agent.clone());
        let tasks = TaskTracker::new();
        tasks.spawn(deliver::run(config.clone(), messages, stop.clone()));
        tasks.spawn(lost::beat(config.clone(), firing.clone(), agent.clone(), stop.clone()));
        let looks = Looks { deps, alerts: Alerts::default(), began: Instant::now(), tell, tell_ended, out };
        tasks.spawn(looks.run(every, stop));
        tasks.close();
        Self { firing, ended, config, agent, tasks }
    }

    /// What fires now.
    pub fn firing(&self) -> watch::Receiver<Vec<Alert>> {
        self.firing.clone()
    }

    /// What fired before, the newest first.
    pub fn ended(&self) -> VecDeque<Ended> {
        self.ended.borrow().clone()
    }

    /// Sends a message to everybody who would be told, once, and answers how that went. The log is no one of them.
    pub async fn test(&self) -> Vec<Tried> {
        let config = self.config.borrow().clone();
        let text = "this is a test: nothing is wrong".to_owned();
        let alert = Alert { fact: Fact { kind: Kind::Test, about: AGENT.to_owned(), text }, since: Timestamp::now() };
        deliver::test(&config, &message("test", alert, &self.agent, &config)).await
    }

    /// Waits until the room has ended, at most this long.
    pub async fn closed(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }
}

fn message(state: &str, alert: Alert, agent: &str, config: &AgentConfig) -> Message {
    let host = config.name.clone();
    Message { state: state.to_owned(), alert, at: Timestamp::now(), agent: agent.to_owned(), host }
}

/// Looks again and again.
struct Looks {
    deps: Deps,
    alerts: Alerts,
    began: Instant,
    tell: watch::Sender<Vec<Alert>>,
    tell_ended: watch::Sender<VecDeque<Ended>>,
    out: mpsc::Sender<Message>,
}

impl Looks {
    async fn run(mut self, every: Duration, stop: CancellationToken) {
        self.alerts = Alerts::resume(read(&self.deps.data_dir.join(FILE)).await, self.now());
        self.tell.send_replace(self.alerts.firing());
        self.tell_ended.send_replace(read(&self.deps.data_dir.join(ENDED)).await);
        let (running, before) = Running::begin(&self.deps.data_dir);
        if let Some(from) = before {
            self.was_lost(from).await;
        }
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // what is only starting is not wrong yet
        tick.tick().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => {}
            }
            running.touch();
            self.look().await;
        }
        running.end();
    }

    fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    async fn look(&mut self) {
        let after = self.deps.config.borrow().alerts.after_seconds.saturating_mul(1000);
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let turns = self.alerts.look((self.deps.facts)(), after, self.now(), Timestamp::now());
        if turns.is_empty() {
            return;
        }
        for turn in turns {
            match turn {
                Turn::Fires(alert) => {
                    let fact = &alert.fact;
                    tracing::warn!(kind = fact.kind.as_str(), about = fact.about, "alert: {}", fact.text);
                    self.send("firing", alert);
                }
                Turn::Resolves(alert) => {
                    let fact = &alert.fact;
                    tracing::info!(kind = fact.kind.as_str(), about = fact.about, "over: {}", fact.text);
                    self.over(alert.clone());
                    self.send("resolved", alert);
                }
            }
        }
        self.tell.send_replace(self.alerts.firing());
        self.keep().await;
    }

    /// The agent was not there, and is now: both are told.
    async fn was_lost(&mut self, from: Timestamp) {
        let now = Timestamp::now();
        let shown = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
        let text = format!(
            "the agent was not there from {} to {}: it did not stop by itself (it was killed, it failed, or the power did)",
            shown(from),
            shown(now)
        );
        tracing::warn!(kind = Kind::AgentLost.as_str(), about = AGENT, "alert: {text}");
        let alert = Alert { fact: Fact { kind: Kind::AgentLost, about: AGENT.to_owned(), text }, since: from };
        self.send("firing", alert.clone());
        self.over(alert.clone());
        self.send("resolved", alert);
        self.keep().await;
    }

    fn over(&self, alert: Alert) {
        self.tell_ended.send_modify(|ended| {
            ended.push_front(Ended { alert, ended: Timestamp::now() });
            ended.truncate(ENDED_MAX);
        });
    }

    fn send(&self, state: &str, alert: Alert) {
        let message = message(state, alert, &self.deps.agent, &self.deps.config.borrow());
        if self.out.try_send(message).is_err() {
            tracing::warn!("an alert finds no room to be sent: it is in this log only");
        }
    }

    async fn keep(&self) {
        write(&self.deps.data_dir.join(FILE), &self.alerts.firing()).await;
        let ended = self.tell_ended.borrow().clone();
        write(&self.deps.data_dir.join(ENDED), &ended).await;
    }
}

/// What an earlier agent told; a file that cannot be read tells nothing.
async fn read<T: DeserializeOwned + Default>(file: &Path) -> T {
    match tokio::fs::read(file).await {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, file = %file.display(), "which alerts were told is not known: they may be told again");
            T::default()
        }),
        Err(_) => T::default(),
    }
}

async fn write(file: &Path, told: &impl Serialize) {
    let next = file.with_extension("new");
    let written = async {
        tokio::fs::write(&next, serde_json::to_vec(told)?).await?;
        tokio::fs::rename(&next, file).await
    };
    if let Err(error) = written.await {
        tracing::warn!(%error, "which alerts were told cannot be kept: a new agent may tell them again");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use sigil_core::alert::Kind;
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
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
        let ended = second.ended();
        assert_eq!((ended.len(), ended[0].alert.fact.about.as_str()), (1, "clock"));
        assert_eq!(read().lines().filter(|line| line.ends_with(" firing")).count(), 1, "{}", read());
    }

    #[tokio::test]
    async fn an_agent_that_was_killed_is_told_and_so_is_that_it_is_back() {
        let _there = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = AgentConfig { name: "cellar".into(), ..AgentConfig::default() };
        let address = format!("http://{}/", listener.local_addr().unwrap());
        config.alerts.webhooks.insert("ops".into(), address.as_str().into());
        let (_keep, config) = watch::channel(Arc::new(config));
        let room = |stop: CancellationToken| {
            let (facts, data_dir): (Facts, _) = (Arc::new(Vec::new), dir.path().to_owned());
            let deps = Deps { facts, config: config.clone(), data_dir, agent: "a".into() };
            AlertRoom::every(Duration::from_secs(3600), deps, stop)
        };
        // one that is killed says nothing
        std::fs::write(dir.path().join("running"), "").unwrap();
        let stop = CancellationToken::new();
        let second = room(stop.clone());
        let told = taken(&listener, "200 OK").await;
        assert_eq!((told["state"].as_str(), told["kind"].as_str()), (Some("firing"), Some("agent-lost")));
        assert!(told["text"].as_str().unwrap().contains("was not there from"), "{told}");
        assert_eq!(taken(&listener, "200 OK").await["state"], "resolved");
        assert!(second.firing().borrow().is_empty() && second.ended().len() == 1);
        stop.cancel();
        assert!(second.closed(LONG).await);
        // who stopped by itself is not told, and what was told before is still known
        let stop = CancellationToken::new();
        let third = room(stop.clone());
        let mut ended = third.ended.clone();
        let known = tokio::time::timeout(LONG, ended.wait_for(|ended| !ended.is_empty())).await;
        assert_eq!(known.unwrap().unwrap()[0].alert.fact.kind, Kind::AgentLost);
        let tried = third.test();
        let (tried, told) = tokio::join!(tried, taken(&listener, "410 Gone"));
        assert_eq!((told["state"].as_str(), told["kind"].as_str()), (Some("test"), Some("test")));
        assert_eq!(tried.len(), 1);
        assert_eq!(tried[0].to, "webhook ops");
        assert!(tried[0].trouble.as_deref().unwrap().contains("410"), "{tried:?}");
        stop.cancel();
        assert!(third.closed(LONG).await);
    }

    #[tokio::test]
    async fn heartbeats_come_while_the_agent_runs_and_when_they_are_set_up() {
        let _there = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/beat", listener.local_addr().unwrap());
        let (change, config) = watch::channel(Arc::<AgentConfig>::default());
        let (facts, stop): (Facts, _) = (Arc::new(Vec::new), CancellationToken::new());
        let deps = Deps { facts, config, data_dir: dir.path().to_owned(), agent: "a".into() };
        let room = AlertRoom::every(Duration::from_secs(3600), deps, stop.clone());
        let set = |seconds: u64| {
            change.send_modify(|config| {
                let alerts = &mut Arc::make_mut(config).alerts;
                (alerts.heartbeat, alerts.heartbeat_seconds) = (address.as_str().into(), seconds);
            });
        };
        set(1);
        for status in ["200 OK", "500 No", "200 OK"] {
            let told = taken(&listener, status).await;
            assert_eq!((told["state"].as_str(), told["agent"].as_str()), (Some("alive"), Some("a")), "{told}");
            assert_eq!((told["next_seconds"].as_u64(), told["firing"].as_u64()), (Some(1), Some(0)), "{told}");
        }
        stop.cancel();
        assert!(room.closed(LONG).await);
    }
}
