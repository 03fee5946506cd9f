//! What the loop has learnt of deployments, as a new agent goes on with it: failures in a row, what a replica takes of memory,
//! how long a start takes and how long it slept. Looked at with each reading of containers, every ten seconds, and written
//! where it is something else.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sigil_core::model::DeploymentId;
use sigil_core::plan::Backoff;
use tokio::task::JoinHandle;

use super::slots::Room;
use crate::kept::Kept;

/// Memory is kept in whole ones of this, bytes: each page more is no news.
const MEMORY_STEP: u64 = 4 << 20;

/// Of one deployment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Learnt {
    /// Desired state that the failures belong to.
    generation: u64,
    backoff: Backoff,
    /// What went wrong last, and with which desired state.
    failure: Option<(u64, String)>,
    /// The most memory of a replica, bytes; 0: none was measured.
    memory: u64,
    /// What the last start took, milliseconds.
    start_ms: Option<u64>,
    /// How long it slept the last times, seconds, the newest first.
    naps: Vec<i64>,
}

/// The file, for whoever writes it.
pub(super) struct Book {
    kept: Arc<Mutex<Kept>>,
    writing: Option<JoinHandle<()>>,
}

impl Book {
    /// Opens it. Blocks.
    pub(super) fn open(data_dir: &std::path::Path) -> (Self, BTreeMap<DeploymentId, Learnt>) {
        let (kept, learnt) = Kept::open(data_dir, "deployments");
        (Self { kept: Arc::new(Mutex::new(kept)), writing: None }, learnt)
    }
}

fn write(kept: &Mutex<Kept>, learnt: &BTreeMap<DeploymentId, Learnt>) -> io::Result<()> {
    kept.lock().unwrap_or_else(PoisonError::into_inner).keep(learnt)
}

impl Room {
    /// Goes on with what a former agent knew. Of deployments that are no more nothing is kept.
    pub(super) fn recall(&mut self, learnt: BTreeMap<DeploymentId, Learnt>) {
        for (id, learnt) in learnt.into_iter().filter(|(id, _)| self.deps.store.deployment(*id).is_some()) {
            if learnt.memory > 0 {
                self.measured.insert(id, learnt.memory);
            }
            let memory = self.memory.entry(id).or_default();
            memory.generation = learnt.generation;
            memory.backoff = learnt.backoff;
            memory.failure = learnt.failure;
            memory.sleep.took = learnt.start_ms.map(Duration::from_millis);
            memory.sleep.recall(&learnt.naps);
        }
    }

    fn learnt(&self) -> BTreeMap<DeploymentId, Learnt> {
        let one = |(id, memory): (&DeploymentId, &super::slots::Memory)| {
            let learnt = Learnt {
                generation: memory.generation,
                backoff: memory.backoff,
                failure: memory.failure.clone().filter(|_| memory.backoff.failures > 0),
                memory: self.measured.get(id).map_or(0, |bytes| bytes.next_multiple_of(MEMORY_STEP)),
                start_ms: memory.sleep.took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
                naps: memory.sleep.lengths(),
            };
            // one of which nothing but its generation is known is like a new one
            let empty = Learnt { generation: learnt.generation, ..Learnt::default() };
            (learnt != empty).then_some((*id, learnt))
        };
        self.memory.iter().filter_map(one).collect()
    }

    /// Writes down what is new, beside the loop.
    pub(super) fn keep_learnt(&mut self) {
        // a slow disk holds up what is written next, not the loop
        if self.book.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        let (kept, learnt) = (self.book.kept.clone(), self.learnt());
        self.book.writing = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = write(&kept, &learnt) {
                tracing::warn!(%error, "what was learnt of deployments is not kept");
            }
        }));
    }

    /// The last time, at the end of the loop.
    pub(super) async fn keep_last(mut self) {
        if let Some(writing) = self.book.writing.take() {
            drop(writing.await);
        }
        self.keep_learnt();
        if let Some(writing) = self.book.writing.take() {
            drop(writing.await);
        }
    }
}
