//! Whether the agent itself is there: a file that says when it last was, which the next agent reads, and a post every so often
//! to somebody who notices when none comes.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::Serialize;
use sigil_config::agent::AgentConfig;
use sigil_core::alert::Alert;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::deliver;

/// There while an agent runs; touched again and again, and removed when it stops.
const FILE: &str = "running";

/// That this agent runs, on disk.
pub(super) struct Running {
    path: PathBuf,
    file: Option<File>,
}

impl Running {
    /// Says that an agent runs. Answers when the one before was last there, if it did not stop by itself.
    pub(super) fn begin(data_dir: &Path) -> (Self, Option<Timestamp>) {
        let path = data_dir.join(FILE);
        let before = std::fs::metadata(&path).and_then(|found| found.modified()).ok();
        // a clock that was set back puts no end before its beginning
        let before = before.and_then(|at| Timestamp::try_from(at).ok()).map(|at| at.min(Timestamp::now()));
        let made = OpenOptions::new().create(true).write(true).truncate(true).open(&path).and_then(|mut file| {
            file.write_all(b"an agent runs here; it says so in this file's time\n")?;
            file.sync_all()?;
            Ok(file)
        });
        if let Err(error) = &made {
            tracing::warn!(%error, path = %path.display(), "an end of this agent that is not its own will not be told");
        }
        (Self { path, file: made.ok() }, before)
    }

    /// It is still there.
    pub(super) fn touch(&self) {
        if let Some(Err(error)) = self.file.as_ref().map(|file| file.set_modified(SystemTime::now())) {
            tracing::debug!(%error, "when this agent was last there is not kept");
        }
    }

    /// It stops by itself.
    pub(super) fn end(self) {
        if self.file.is_some()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, "the next agent will tell that this one did not stop by itself");
        }
    }
}

/// What a heartbeat says.
#[derive(Serialize)]
struct Beat<'a> {
    state: &'static str,
    agent: &'a str,
    host: &'a str,
    version: &'static str,
    at: Timestamp,
    /// How many alerts fire.
    firing: usize,
    /// When the next one comes, seconds.
    next_seconds: u64,
}

/// Posts heartbeats where they are wanted.
pub(super) async fn beat(
    mut config: watch::Receiver<Arc<AgentConfig>>,
    firing: watch::Receiver<Vec<Alert>>,
    agent: String,
    stop: CancellationToken,
) {
    let mut failing = false;
    loop {
        let now = config.borrow_and_update().clone();
        let address = now.alerts.heartbeat.reveal();
        let every = (!address.is_empty()).then(|| Duration::from_secs(now.alerts.heartbeat_seconds));
        if every.is_some() {
            let beat = Beat {
                state: "alive",
                agent: &agent,
                host: &now.name,
                version: env!("CARGO_PKG_VERSION"),
                at: Timestamp::now(),
                firing: firing.borrow().len(),
                next_seconds: now.alerts.heartbeat_seconds,
            };
            let sent = async {
                let body = serde_json::to_vec(&beat).map_err(|e| e.to_string())?;
                deliver::post(&now, address, &body).await
            };
            let sent = tokio::select! {
                () = stop.cancelled() => return,
                sent = sent => sent,
            };
            match sent {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("heartbeats arrive again");
                    }
                }
                Err(why) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(
                        why,
                        "a heartbeat could not be sent: whoever waits for it will say that this agent is lost"
                    );
                }
                Err(_) => {}
            }
        }
        let pause = async {
            match every {
                Some(every) => tokio::time::sleep(every).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = pause => {}
            changed = config.changed() => if changed.is_err() { return stop.cancelled().await },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_was_killed_is_known_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (first, before) = Running::begin(dir.path());
        assert_eq!(before, None, "there was none");
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        first.file.as_ref().unwrap().set_modified(long_ago).unwrap();
        drop(first);
        let (second, before) = Running::begin(dir.path());
        assert_eq!(before, Some(Timestamp::try_from(long_ago).unwrap()));
        second.touch();
        second.end();
        let (third, before) = Running::begin(dir.path());
        assert_eq!(before, None, "it stopped by itself");
        let ahead = SystemTime::now() + Duration::from_secs(3600);
        third.file.as_ref().unwrap().set_modified(ahead).unwrap();
        drop(third);
        assert!(Running::begin(dir.path()).1.unwrap() <= Timestamp::now(), "the clock was set back");
    }
}
