//! What the agent knows of one container's init, whatever becomes of single connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sigil_core::model::InstanceId;
use sigil_init::wire::{self, ToInit};
use sigil_init::{MAIN, PROCESSES_MAX};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::connection::Reply;
use super::output::Ledger;
use super::{Exit, LinkError, Result, lock};

/// Requests whose answer is awaited.
const PENDING_MAX: usize = 1024;

/// A frame on its way to init; wiped once sent.
pub type Bytes = Zeroizing<Vec<u8>>;

#[derive(Debug)]
struct Known {
    key: String,
    exit: watch::Sender<Option<Exit>>,
}

#[derive(Debug, Default)]
struct State {
    /// Which start of the container this is about.
    life: Option<u64>,
    /// What the present connection speaks.
    version: u16,
    connection: Option<(CancellationToken, mpsc::Sender<Bytes>)>,
    pending: HashMap<u32, oneshot::Sender<Reply>>,
    next_req: u32,
    procs: HashMap<u32, Known>,
    ledger: Arc<Ledger>,
}

/// One container's init.
#[derive(Debug)]
pub struct Instance {
    pub id: InstanceId,
    pub stop: CancellationToken,
    /// PID 1 as the engine tells it.
    pub expected: watch::Sender<Option<u32>>,
    up: watch::Sender<bool>,
    main_exit: watch::Sender<Option<Exit>>,
    state: Mutex<State>,
}

impl From<wire::Exit> for Exit {
    fn from(exit: wire::Exit) -> Self {
        match exit {
            wire::Exit::Code(code) => Self { code: Some(code), signal: None },
            wire::Exit::Signal(signal) => Self { code: None, signal: Some(signal) },
        }
    }
}

/// Removes a request whose asker went away.
struct Pending<'a>(&'a Instance, u32);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).pending.remove(&self.1);
    }
}

impl Instance {
    pub fn new(id: InstanceId, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            id,
            stop,
            expected: watch::Sender::new(None),
            up: watch::Sender::new(false),
            main_exit: watch::Sender::new(None),
            state: Mutex::default(),
        })
    }

    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    pub fn expect(&self, pid: u32) {
        self.expected.send_if_modified(|known| known.replace(pid) != Some(pid));
    }

    pub async fn connected(&self) {
        // The sender lives as long as `self`.
        let _ = self.up.subscribe().wait_for(|up| *up).await;
    }

    pub fn main_exit(&self) -> watch::Receiver<Option<Exit>> {
        self.main_exit.subscribe()
    }

    /// The end of a process; one that is not known (any more) has ended.
    pub fn exit_of(&self, serial: u32) -> watch::Receiver<Option<Exit>> {
        match lock(&self.state).procs.get(&serial) {
            Some(known) => known.exit.subscribe(),
            None => watch::Sender::new(Some(Exit { code: None, signal: None })).subscribe(),
        }
    }

    /// Sends a request and waits for its answer.
    pub async fn ask<'f>(&self, timeout: Duration, frame: impl FnOnce(u32) -> ToInit<'f> + Send) -> Result<Reply> {
        let (sender, answer) = oneshot::channel();
        let (req, out, bytes) = {
            let mut state = lock(&self.state);
            let Some((_, out)) = state.connection.clone() else { return Err(LinkError::Away) };
            if state.pending.len() >= PENDING_MAX {
                return Err(LinkError::Io("too many requests wait for this container".to_owned()));
            }
            state.next_req = state.next_req.wrapping_add(1);
            let req = state.next_req;
            state.pending.insert(req, sender);
            let mut bytes = Zeroizing::new(Vec::new());
            frame(req).encode(&mut bytes);
            (req, out, bytes)
        };
        let _pending = Pending(self, req);
        let asked = async {
            out.send(bytes).await.map_err(|_| LinkError::Away)?;
            answer.await.map_err(|_| LinkError::Away)
        };
        match tokio::time::timeout(timeout, asked).await {
            Ok(done) => done,
            Err(_) => Err(LinkError::Timeout(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))),
        }
    }

    /// Gives an answer to who asked; back when nobody waits for it.
    pub fn answer(&self, req: u32, reply: Reply) -> Option<Reply> {
        match lock(&self.state).pending.remove(&req) {
            Some(waiting) => waiting.send(reply).err(),
            None => Some(reply),
        }
    }

    /// A connection said hello. Answers the ledger of its life; a former connection ends.
    pub fn begin(
        &self,
        life: u64,
        version: u16,
        connection: CancellationToken,
        out: mpsc::Sender<Bytes>,
    ) -> Arc<Ledger> {
        let mut state = lock(&self.state);
        state.version = version;
        if let Some((former, _)) = state.connection.replace((connection, out)) {
            former.cancel();
        }
        state.pending.clear();
        if state.life != Some(life) {
            state.life = Some(life);
            for known in std::mem::take(&mut state.procs).into_values() {
                known.exit.send_if_modified(end);
            }
            state.ledger = Arc::default();
            self.main_exit.send_replace(None);
        }
        state.ledger.clone()
    }

    /// Processes were told: calls find a link.
    pub fn ready(&self) {
        self.up.send_replace(true);
    }

    /// A connection ended. Answers whether it was the present one.
    pub fn end(&self, connection: &CancellationToken) -> bool {
        let mut state = lock(&self.state);
        // A token is equal to its clones only by what it does: cancel it, and see whether ours is.
        connection.cancel();
        if !state.connection.as_ref().is_some_and(|(present, _)| present.is_cancelled()) {
            return false;
        }
        state.connection = None;
        state.pending.clear();
        self.up.send_replace(false);
        true
    }

    /// Init tells of a process. False when it tells of too many.
    pub fn add(&self, process: &wire::Process<'_>) -> bool {
        let mut state = lock(&self.state);
        if state.procs.len() > PROCESSES_MAX && !state.procs.contains_key(&process.serial) {
            return false;
        }
        let exit = process.exit.map(Exit::from);
        let key = process.key.to_owned();
        let known = state.procs.entry(process.serial).or_insert_with(|| Known { key, exit: watch::Sender::new(None) });
        if let Some(exit) = exit {
            known.exit.send_if_modified(|now| settle(now, exit.clone()));
            if known.key == MAIN {
                self.main_exit.send_if_modified(|now| settle(now, exit));
            }
        }
        true
    }

    /// A process ended. False when there is none; else whether it was main.
    pub fn exited(&self, serial: u32, exit: wire::Exit) -> Option<bool> {
        let state = lock(&self.state);
        let known = state.procs.get(&serial)?;
        known.exit.send_if_modified(|now| settle(now, exit.into()));
        let main = known.key == MAIN;
        if main {
            self.main_exit.send_if_modified(|now| settle(now, exit.into()));
        }
        Some(main)
    }

    /// The key of a process.
    pub fn key_of(&self, serial: u32) -> Option<String> {
        lock(&self.state).procs.get(&serial).map(|known| known.key.clone())
    }

    /// The version of the link that is spoken at the moment; 0 before the first connection.
    pub fn version(&self) -> u16 {
        lock(&self.state).version
    }

    /// A process goes on under another key.
    pub fn renamed(&self, key: &str, to: &str) {
        if let Some(known) = lock(&self.state).procs.values_mut().find(|known| known.key == key) {
            to.clone_into(&mut known.key);
        }
    }

    /// Init forgot a process.
    pub fn gone(&self, serial: u32) {
        let mut state = lock(&self.state);
        if let Some(known) = state.procs.remove(&serial) {
            known.exit.send_if_modified(end);
        }
        state.ledger.gone(serial);
    }
}

/// Sets an exit once; answers whether that is news.
fn settle(now: &mut Option<Exit>, exit: Exit) -> bool {
    let news = now.is_none();
    now.get_or_insert(exit);
    news
}

/// Ends what was not known to have ended.
fn end(now: &mut Option<Exit>) -> bool {
    settle(now, Exit { code: None, signal: None })
}
