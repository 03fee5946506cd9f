//! What is kept of the sessions that last: in memory, and each in a file of its own, so that they outlive the agent.

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sigil_core::model::{DeploymentId, InstanceId, ReleaseNo};
use sigil_core::session::Ticket;
use tokio::sync::watch;

use super::super::Shared;
use super::super::find::now;
use super::super::table::Table;
use super::PREFIX;

/// Held at once; beyond that the one unused for longest ends.
const MOST: usize = 10_000;

/// The session of the server's that is open behind one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Inner {
    /// None is.
    None,
    /// This one, by the id that this gateway gave it.
    Session(String),
    /// The server took the handshake and has no sessions.
    Plain,
}

/// What is written down of one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Written {
    pub(super) deployment: DeploymentId,
    /// Whose handshake its client saw.
    pub(super) release: ReleaseNo,
    /// What its client said at the handshake: the parameters of `initialize`.
    pub(super) hello: String,
    /// Seconds since 1970.
    pub(super) expires: u64,
    pub(super) inner: Inner,
    /// The client has said `notifications/initialized`.
    pub(super) initialized: bool,
    /// The session inside knows of that, of the level and of the subscriptions.
    pub(super) told: bool,
    /// It may not be as it was at its beginning any more.
    pub(super) touched: bool,
    /// The client's level of log messages.
    pub(super) level: Option<String>,
    /// Resources of which it wants to know changes.
    pub(super) subscribed: BTreeSet<String>,
}

/// One such session.
#[derive(Debug)]
pub(crate) struct Lasting {
    key: String,
    state: Mutex<Written>,
    /// Whoever opens the session inside.
    pub(super) opening: tokio::sync::Mutex<()>,
    /// Whoever writes it down.
    saving: tokio::sync::Mutex<()>,
    /// Counts the sessions inside; 0: it is over.
    pub(super) opened: watch::Sender<u64>,
    /// The last of them is gone.
    pub(super) lost: AtomicBool,
    /// Milliseconds from the ledger's beginning to its last use.
    used: AtomicU64,
}

impl Lasting {
    pub(super) fn state(&self) -> MutexGuard<'_, Written> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session inside, and which it is of all that there were; `None`: none that can be used.
    pub(super) fn inside(&self) -> Option<(Inner, u64)> {
        let number = *self.opened.borrow();
        let state = self.state();
        (state.told && state.inner != Inner::None).then(|| (state.inner.clone(), number))
    }

    /// The session inside is over, unless there is another one by now.
    pub(super) fn lose(&self, number: u64) {
        if *self.opened.borrow() == number {
            let mut state = self.state();
            (state.inner, state.told) = (Inner::None, false);
            self.lost.store(true, Relaxed);
        }
    }

    /// Its client, or the gateway, has ended it.
    pub(super) fn is_over(&self) -> bool {
        *self.opened.borrow() == 0
    }

    /// Counts one more session inside. False: it is over.
    pub(super) fn next(number: &mut u64) -> bool {
        let goes_on = *number > 0;
        *number += u64::from(goes_on);
        goes_on
    }

    /// Waits for a session inside; `None`: there will be none.
    pub(super) async fn inside_soon(&self) -> Option<(Inner, u64)> {
        let mut opened = self.opened.subscribe();
        loop {
            if *opened.borrow_and_update() == 0 {
                return None;
            }
            if let Some(inside) = self.inside() {
                return Some(inside);
            }
            opened.changed().await.ok()?;
        }
    }
}

/// All such sessions.
#[derive(Debug)]
pub(crate) struct Ledger {
    dir: PathBuf,
    born: Instant,
    all: Mutex<HashMap<String, Arc<Lasting>>>,
    /// Sessions of servers begun in the place of others.
    pub(crate) replayed: AtomicU64,
}

impl Ledger {
    /// Reads `<data>/sessions`. What cannot be read is over.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let dir = data_dir.join("sessions");
        let ledger = Self { dir, born: Instant::now(), all: Mutex::default(), replayed: AtomicU64::new(0) };
        for file in std::fs::read_dir(&ledger.dir).into_iter().flatten().flatten() {
            let path = file.path();
            let read = || serde_json::from_slice::<Written>(&std::fs::read(&path).ok()?).ok();
            let key = path.file_stem().and_then(|name| name.to_str()).filter(|key| key.starts_with(PREFIX));
            match (key, read()) {
                (Some(key), Some(written)) if written.expires > now() => drop(ledger.add(key.to_owned(), written)),
                _ => drop(std::fs::remove_file(&path)),
            }
        }
        ledger
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Lasting>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self, lasting: &Lasting) {
        lasting.used.store(u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn add(&self, key: String, written: Written) -> Arc<Lasting> {
        let lasting = Arc::new(Lasting {
            key: key.clone(),
            state: Mutex::new(written),
            opening: tokio::sync::Mutex::default(),
            saving: tokio::sync::Mutex::default(),
            opened: watch::channel(1).0,
            lost: AtomicBool::new(false),
            used: AtomicU64::new(0),
        });
        self.touch(&lasting);
        let oldest = {
            let mut all = self.all();
            let oldest = (all.len() >= MOST).then(|| all.values().min_by_key(|l| l.used.load(Relaxed)).cloned());
            all.insert(key, lasting.clone());
            oldest.flatten()
        };
        oldest.iter().for_each(|oldest| self.end(oldest));
        lasting
    }

    pub(super) fn find(&self, ticket: &Ticket) -> Option<Arc<Lasting>> {
        let lasting = self.all().get(&ticket.upstream).cloned()?;
        self.touch(&lasting);
        Some(lasting)
    }

    /// It is over, for its client, too.
    pub(super) fn end(&self, lasting: &Lasting) {
        self.all().remove(&lasting.key);
        lasting.opened.send_replace(0);
        // who writes it just now looks again
        drop(std::fs::remove_file(self.file(&lasting.key)));
    }

    /// As after a request whose client left while the session inside was opened.
    #[cfg(test)]
    pub(crate) fn untold(&self, ticket: &Ticket) {
        if let Some(lasting) = self.find(ticket) {
            lasting.state().told = false;
        }
    }

    fn file(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.json"))
    }

    /// Blocks.
    fn write(&self, lasting: &Lasting) -> std::io::Result<()> {
        let written = lasting.state().clone();
        std::fs::create_dir_all(&self.dir)?;
        // it outlives the agent, and need not outlive the machine: containers do not either, so nothing waits for the disk
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(&serde_json::to_vec(&written)?)?;
        file.persist(self.file(&lasting.key)).map_err(|e| e.error)?;
        if !self.all().contains_key(&lasting.key) {
            std::fs::remove_file(self.file(&lasting.key))?;
        }
        Ok(())
    }

    /// Sessions inside whose replicas are gone are over: those that may be begun again wait for that.
    pub(crate) fn only(&self, shared: &Shared, table: &Table) {
        let all: Vec<Arc<Lasting>> = self.all().values().cloned().collect();
        for lasting in all {
            let deployment = lasting.state().deployment;
            let inside = lasting.inside();
            let (Some(entry), Some((Inner::Session(id), number))) = (table.by_id.get(&deployment), inside) else {
                continue;
            };
            let gone = |id: InstanceId| entry.instance(id).is_none() && !entry.may_return(id);
            if entry.replayable && shared.sealer.unseal(&id).is_none_or(|ticket| gone(ticket.instance)) {
                lasting.lose(number);
            }
        }
    }

    /// Forgets what nobody can use any more.
    pub(crate) fn sweep(&self, table: &Table) {
        let over = |lasting: &&Arc<Lasting>| {
            let state = lasting.state();
            state.expires < now() || table.known && !table.by_id.contains_key(&state.deployment)
        };
        let over: Vec<Arc<Lasting>> = self.all().values().filter(over).cloned().collect();
        over.iter().for_each(|lasting| self.end(lasting));
    }
}

impl Shared {
    /// Writes a session down, behind whatever comes next.
    pub(super) fn keep_lasting(self: &Arc<Self>, lasting: &Arc<Lasting>) {
        let (shared, lasting) = (self.clone(), lasting.clone());
        self.tasks.spawn(async move {
            let _one_at_a_time = lasting.saving.lock().await;
            let (ledger, writing) = (shared.clone(), lasting.clone());
            let written = tokio::task::spawn_blocking(move || ledger.lasting.write(&writing)).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(%error, "a session cannot be written down: it would not outlast the agent");
            }
        });
    }
}
