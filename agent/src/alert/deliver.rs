//! Telling: webhooks and the command, each as often as it takes, within bounds.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sigil_config::agent::AgentConfig;
use sigil_core::alert::Message;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::source;

/// Between the tries of one delivery.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(20)];
/// How long one try takes at most.
const TRY: Duration = Duration::from_secs(10);
/// How long a command runs at most.
const RUN: Duration = Duration::from_secs(30);

/// How one delivery of a test went.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// To whom: `webhook NAME`, `command` or `heartbeat`.
    pub to: String,
    /// Why it did not arrive; `None`: it did.
    pub trouble: Option<String>,
    /// How long that took.
    pub took: Duration,
}

pub(super) async fn run(
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
    let program = async {
        let [program, arguments @ ..] = config.alerts.command.as_slice() else { return };
        if let Err(why) = command(program, arguments, message, body).await {
            tracing::warn!(program, why, "the command for alerts failed");
        }
    };
    tokio::join!(futures::future::join_all(hooks), program);
}

/// Tries everybody once, all at the same time.
pub(super) async fn test(config: &AgentConfig, message: &Message) -> Vec<Tried> {
    let body = match serde_json::to_vec(message) {
        Ok(body) => body,
        Err(error) => {
            return vec![Tried { to: "everybody".into(), trouble: Some(error.to_string()), took: Duration::ZERO }];
        }
    };
    let body = body.as_slice();
    let alerts = &config.alerts;
    let mut all: Vec<futures::future::BoxFuture<'_, Tried>> = Vec::new();
    let hooks = alerts.webhooks.iter().map(|(name, address)| (format!("webhook {name}"), address));
    let beat = Some(&alerts.heartbeat).filter(|beat| !beat.reveal().is_empty());
    for (to, address) in hooks.chain(beat.map(|beat| ("heartbeat".to_owned(), beat))) {
        all.push(Box::pin(tried(to, post(config, address.reveal(), body))));
    }
    if let [program, arguments @ ..] = alerts.command.as_slice() {
        all.push(Box::pin(tried("command".to_owned(), command(program, arguments, message, body))));
    }
    futures::future::join_all(all).await
}

async fn tried(to: String, what: impl Future<Output = Result<(), String>>) -> Tried {
    let began = Instant::now();
    let trouble = what.await.err();
    Tried { to, trouble, took: began.elapsed() }
}

/// One try. The reason never holds the address.
pub(super) async fn post(config: &AgentConfig, address: &str, body: &[u8]) -> Result<(), String> {
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

async fn command(program: &str, arguments: &[String], message: &Message, body: &[u8]) -> Result<(), String> {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(message.environment())
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
