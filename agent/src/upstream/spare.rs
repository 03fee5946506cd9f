//! A server process that has started and waits for its first message: a session takes it and need not wait for an
//! interpreter. A spare one is called `w-…` until then, so that a later agent knows it from a session's process.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::lines::{Cut, Cutter};
use super::{Conversation, Endpoint, Piped, SHARED_PREFIX, stdio};
use crate::initlink::LinkError;

/// What keys of spare processes begin with.
pub(crate) const PREFIX: &str = "w-";
/// How long the replica's quota stays wide for a spare process that starts: nothing tells when it has.
const START: Duration = Duration::from_secs(2);
/// From end of input to SIGTERM: it has done nothing that could need longer.
const GRACE: Duration = Duration::from_secs(1);
/// A server whose spare processes ended this often before anybody needed them gets no more of them.
const DEATHS: u32 = 3;

/// One replica's spare process. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Spare(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    slot: Mutex<Slot>,
    /// Bytes that one process needs, as the gate saw; 0: not known.
    memory: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    place: Place,
    /// How many ended unused in a row.
    deaths: u32,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Empty,
    Starting,
    Warm {
        key: String,
        piped: Piped,
        /// It was asked something, or may have been. Servers that speak both eras take the one of the first message that they
        /// hear: this one may not be of the stateless era any more.
        spoken: bool,
    },
}

impl Spare {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.0.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that one process of the server needs, if that was seen.
    pub fn memory(&self) -> Option<u64> {
        Some(self.0.memory.load(Relaxed)).filter(|bytes| *bytes > 0)
    }

    /// Keeps what one process needs, bytes.
    pub fn measured(&self, bytes: u64) {
        self.0.memory.store(bytes, Relaxed);
    }

    /// The key of the process that waits.
    pub(crate) fn key(&self) -> Option<String> {
        match &self.slot().place {
            Place::Warm { key, .. } => Some(key.clone()),
            Place::Empty | Place::Starting => None,
        }
    }

    /// Starts a process unless one waits already; returns at once.
    pub(crate) fn fill(&self, endpoint: &Arc<Endpoint>) {
        {
            let mut slot = self.slot();
            if !matches!(slot.place, Place::Empty) || slot.deaths >= DEATHS || !endpoint.wire.renames() {
                return;
            }
            slot.place = Place::Starting;
        }
        let (spare, endpoint) = (self.clone(), endpoint.clone());
        endpoint.tasks.clone().spawn(async move {
            let starting = endpoint.quota.starting();
            let key = format!("{PREFIX}{}", crate::gateway::seal::random_key());
            match endpoint.wire.spawn(&key, endpoint.process()).await {
                Ok(piped) => {
                    let mut exit = piped.exit.clone();
                    spare.slot().place = Place::Warm { key, piped, spoken: false };
                    let ended = exit.wait_for(Option::is_some);
                    drop(tokio::time::timeout(START, ended).await);
                }
                Err(error) => {
                    tracing::debug!(instance = %endpoint.instance, %error, "no spare process could be started");
                    spare.slot().place = Place::Empty;
                }
            }
            drop(starting);
        });
    }

    /// The waiting process as a conversation, from now on called `key`. `None`: none waits, or it has ended, or one is wanted that
    /// was never spoken to (`unspoken`), and this one was.
    pub(crate) async fn take(&self, endpoint: &Arc<Endpoint>, key: &str, unspoken: bool) -> Option<Conversation> {
        if unspoken && matches!(self.slot().place, Place::Warm { spoken: true, .. }) {
            return None;
        }
        let (old, piped) = self.remove(endpoint)?;
        match endpoint.wire.rename(&old, key).await {
            Ok(()) => {
                self.slot().deaths = 0;
                Some(stdio::conversation(endpoint, piped, false))
            }
            Err(error) => {
                tracing::debug!(instance = %endpoint.instance, %error, "the spare process cannot be used");
                drop(piped);
                endpoint.wire.close(&old, GRACE).await;
                None
            }
        }
    }

    /// Takes the waiting process out; one that has ended is cleared away.
    fn remove(&self, endpoint: &Arc<Endpoint>) -> Option<(String, Piped)> {
        let mut slot = self.slot();
        match std::mem::take(&mut slot.place) {
            Place::Empty => None,
            Place::Starting => {
                slot.place = Place::Starting;
                None
            }
            Place::Warm { key, piped, .. } if piped.exit.borrow().is_none() => Some((key, piped)),
            Place::Warm { key, .. } => {
                slot.deaths += 1;
                let endpoint = endpoint.clone();
                endpoint.tasks.clone().spawn(async move { endpoint.wire.close(&key, GRACE).await });
                None
            }
        }
    }

    /// Asks the waiting process whether it answers (`ping` is allowed before `initialize`). `None`: none waits. While it is
    /// asked a session gets one of its own; one that does not answer is ended.
    pub(crate) async fn ping(&self, endpoint: &Arc<Endpoint>, timeout: Duration) -> Option<Result<(), String>> {
        let (key, mut piped) = self.remove(endpoint)?;
        let asked = tokio::time::timeout(timeout, pong(endpoint, &mut piped)).await;
        let outcome = match asked {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("its waiting process did not answer a ping within {} s", timeout.as_secs())),
        };
        let kept = outcome.as_ref().is_ok_and(|whole| *whole) && {
            let mut slot = self.slot();
            let free = matches!(slot.place, Place::Empty);
            if free {
                slot.place = Place::Warm { key: key.clone(), piped, spoken: true };
            }
            free
        };
        if !kept {
            endpoint.wire.close(&key, GRACE).await;
        }
        Some(outcome.map(drop))
    }

    /// Puts another in the place of one that ended.
    pub(crate) fn tend(&self, endpoint: &Arc<Endpoint>) {
        let ended = match &self.slot().place {
            Place::Empty => true,
            Place::Starting => false,
            Place::Warm { piped, .. } => piped.exit.borrow().is_some(),
        };
        if ended {
            self.remove(endpoint);
            self.fill(endpoint);
        }
    }

    /// Takes a former agent's spare process over; of several it keeps one, and a shared one it ends. Answers how many processes there are, of any
    /// kind.
    pub(crate) async fn adopt(&self, endpoint: &Arc<Endpoint>) -> Result<u64, LinkError> {
        let keys = endpoint.wire.keys().await?;
        let count = keys.len() as u64;
        for key in keys {
            if !key.starts_with(PREFIX) && !key.starts_with(SHARED_PREFIX) {
                continue;
            }
            if key.starts_with(PREFIX)
                && matches!(self.slot().place, Place::Empty)
                && endpoint.wire.renames()
                && let Some(piped) = endpoint.wire.resume(&key).await?
                && piped.exit.borrow().is_none()
            {
                self.slot().place = Place::Warm { key, piped, spoken: true };
            } else {
                endpoint.wire.close(&key, GRACE).await;
            }
        }
        Ok(count)
    }
}

/// Sends a ping and reads until its answer. Answers whether nothing was read beyond it.
async fn pong(endpoint: &Endpoint, piped: &mut Piped) -> Result<bool, String> {
    const ID: &str = "sigil-ping";
    let ping = format!("{{\"jsonrpc\":\"2.0\",\"id\":\"{ID}\",\"method\":\"ping\"}}\n");
    piped.stdin.write_all(ping.as_bytes()).await.map_err(|e| format!("its waiting process takes no input: {e}"))?;
    let mut cutter = Cutter::new(super::MAX_LINE);
    loop {
        match cutter.next() {
            // an error is an answer, too: some servers want to be greeted first
            Some(Cut::Line(line)) if line.windows(ID.len()).any(|w| w == ID.as_bytes()) => return Ok(cutter.is_empty()),
            Some(Cut::Line(line)) => endpoint.stray(line).await,
            Some(Cut::TooLong) => return Err("its waiting process printed a line without end".to_owned()),
            None => match piped.stdout.read_buf(cutter.room()).await {
                Ok(0) => return Err("its waiting process ended".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(format!("its waiting process cannot be read: {error}")),
            },
        }
    }
}
