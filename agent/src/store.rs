//! Owns: desired state, operations, sealed secrets, remembered requests, the catalogue of packages; the only room that
//! names sled.
//! May touch: `<data>/lock`, `<data>/agent-id`, `<data>/state`, `<data>/journal`, `<data>/exports`, `<data>/catalog`.
//! Never: decides, or believes anything about containers.
//! Tested by: unit tests on a temporary directory, one of which kills itself; property tests of journal and database.
//!
//! A change is acknowledged when the journal has it (one fdatasync for all that wait); the database is where a start
//! reads from, and may be lost. All reads come from memory.

mod catalog;
mod database;
mod disk;
mod export;
mod journal;
mod record;
mod recover;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_core::cost::judge::{Limit, Whose};
use sigil_core::model::{AgentId, Deployment, DeploymentId, Name, OperationId, ReleaseNo};
use sigil_core::package::Version;
use sigil_core::pins::Pins;
use sigil_core::rights::Directory;
use tokio::sync::{mpsc, oneshot, watch};

pub use catalog::{Catalog, Entry};
pub(crate) use disk::replace_file;
pub use export::ExportHeader;
use recover::Paths;
use state::{Change, Snapshot};
pub use state::{People, PersonChange};
use writer::{Command, ExportCommand, Exporter, Writer};

/// Changes that may wait for the writer; more wait at the door.
const QUEUE: usize = 1024;
/// Alarm lines kept for showing; older ones are in the log.
const ALARMS_KEPT: usize = 20;

/// What opening found.
#[derive(Debug, Clone, Default)]
pub struct OpenReport {
    /// One line each: set aside, restored from export, journal damaged; empty when all was well.
    pub alarms: Vec<String>,
}

/// An operation as kept (its events are files of `operate`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Its id.
    pub id: OperationId,
    /// deploy, build, scan, restart, stop, start, scale, rollback, remove
    pub kind: String,
    /// The deployment it is about, once that exists.
    pub deployment: Option<DeploymentId>,
    /// That deployment's name, may be empty.
    pub name: String,
    /// Who asked.
    pub created_by: String,
    /// When it was asked.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// queued, running, succeeded, failed, cancelled
    pub state: String,
    /// The step running or last finished.
    pub step: String,
    /// The request, as JSON that `operate` owns.
    pub request: serde_json::Value,
    /// What finished steps produced, as JSON that `operate` owns.
    pub progress: serde_json::Value,
    /// The release made or returned to.
    pub release: Option<u32>,
    /// {code,message,hint,details,exit_code}
    pub error: Option<serde_json::Value>,
    /// What it produced, as JSON.
    pub result: serde_json::Value,
    /// One line for people.
    pub summary: String,
    /// The caller's id for the attempt; empty for the agent's own.
    pub request_id: String,
}

/// A sealed secret: opaque here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SealedRecord {
    /// `team/default/NAME`, `deployment/<id>/NAME`, `user/<id>/NAME`, `source/<host>`
    pub key: String,
    /// Counts its values, from 1.
    pub version: u32,
    /// When the value was set.
    pub changed_at: Timestamp,
    /// Who set it.
    pub changed_by: String,
    /// Ciphertext with its header.
    #[serde(with = "base64_bytes")]
    pub sealed: Vec<u8>,
}

/// Bytes as base64 text in JSON.
mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// Why state could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has the data directory open.
    #[error("another agent holds {0}")]
    Locked(String),
    /// No such deployment.
    #[error("no deployment '{0}'")]
    NotFound(String),
    /// The name is another deployment's.
    #[error("the name '{0}' is taken")]
    NameTaken(String),
    /// Compare and set found another generation.
    #[error("it was changed meanwhile (generation {found}, expected {expected})")]
    Conflict {
        /// What the caller had seen.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// Nearly no space left.
    #[error("less than 5 % of the disk is free; nothing was written")]
    DiskFull,
    /// A newer build wrote this. Nothing was touched.
    #[error("{what} was written by a newer version of the agent (format {found})")]
    Newer {
        /// Which record or file.
        what: String,
        /// Its format or version; 0 for a kind of record that is not known here.
        found: u32,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Disk or database.
    #[error("state: {0}")]
    Io(String),
    /// The change itself refused.
    #[error("{0}")]
    Refused(String),
}

impl StoreError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Locked(_) => "stop the other agent, or give this one its own --data-dir",
            Self::NotFound(_) => "`sigil ls` lists what there is",
            Self::NameTaken(_) => "choose another --name, or deploy to the same name for a new release",
            Self::Conflict { .. } => "look at it again and repeat the change",
            Self::DiskFull => "free some space on the file system of the data directory",
            Self::Newer { .. } => "run the newer agent again, or restore a backup made by this version",
            Self::Closed => "the agent is shutting down; try again when it is back",
            Self::Io(_) => "look at the agent's log and at the disk",
            Self::Refused(_) => "change the request",
        }
    }
}

/// Result of a store call.
pub type Result<T> = std::result::Result<T, StoreError>;

/// How a store is opened; the default is what the agent uses.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Writes are refused when less than this percentage of the file system is free.
    pub min_free_percent: u64,
    /// A database smaller than this is never compacted, bytes.
    pub compact_floor: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { min_free_percent: 5, compact_floor: 64 << 20 }
    }
}

struct Shared {
    snapshot: RwLock<Arc<Snapshot>>,
    changes: watch::Sender<u64>,
    operation_changes: watch::Sender<u64>,
    alarms: Mutex<Vec<String>>,
    agent_id: AgentId,
    epoch: String,
}

impl Shared {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn publish(&self, before: &Snapshot, after: Snapshot) {
        let deployments =
            !Arc::ptr_eq(&before.deployments, &after.deployments) || !Arc::ptr_eq(&before.pins, &after.pins);
        let operations = !Arc::ptr_eq(&before.operations, &after.operations);
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
        if deployments {
            self.changes.send_modify(|n| *n += 1);
        }
        if operations {
            self.operation_changes.send_modify(|n| *n += 1);
        }
    }

    fn alarm(&self, line: String) {
        tracing::error!("{line}");
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        if alarms.len() == ALARMS_KEPT {
            alarms.remove(0);
        }
        alarms.push(line);
    }
}

/// The store. Clones share one database. Every change is on the disk (fdatasync) when the call returns; concurrent
/// changes share one sync. A change whose caller stops waiting is made all the same.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    writer: mpsc::Sender<Command>,
    exporter: std::sync::mpsc::SyncSender<ExportCommand>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("agent_id", &self.shared.agent_id).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the state in a data directory, making or repairing it as needed. Blocks (tens of milliseconds).
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another agent has it, [`StoreError::Newer`] when a newer one wrote it.
    pub fn open(dir: &Path) -> Result<(Self, OpenReport)> {
        Self::open_with(dir, &StoreOptions::default())
    }

    /// [`Store::open`] with other limits.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(dir: &Path, options: &StoreOptions) -> Result<(Self, OpenReport)> {
        disk::private_dir(dir, true)?;
        let lock = disk::lock(dir)?;
        let paths = Paths::of(dir);
        for path in [&paths.state, &paths.journal, &paths.exports] {
            disk::private_dir(path, false)?;
        }
        let agent_id = agent_id(dir, &paths)?;
        let mut found = recover::recover(&paths)?;
        let snapshot = Snapshot::load(found.seq, &found.records, &mut found.alarms)?;
        drop(std::mem::take(&mut found.records));
        for line in &found.alarms {
            tracing::error!("{line}");
        }
        let exported = export::list(&paths.exports)?.first().map_or(0, |e| e.0);
        let shared = Arc::new(Shared {
            snapshot: RwLock::new(Arc::new(snapshot)),
            changes: watch::Sender::new(0),
            operation_changes: watch::Sender::new(0),
            alarms: Mutex::new(found.alarms.clone()),
            agent_id,
            epoch: ulid::Ulid::generate().to_string(),
        });
        let (writer, commands) = mpsc::channel(QUEUE);
        let (exporter, export_commands) = std::sync::mpsc::sync_channel(16);
        if found.export_due {
            let _ = exporter.try_send(ExportCommand::Due);
        }
        let exporting = Exporter {
            shared: Arc::downgrade(&shared),
            commands: export_commands,
            writer: writer.downgrade(),
            paths: paths.clone(),
            agent_id: agent_id.to_string(),
            min_free_percent: options.min_free_percent,
            exported,
        };
        let writing = Writer {
            shared: shared.clone(),
            commands,
            exporter: exporter.clone(),
            journal: found.journal,
            database: Some(found.database),
            paths,
            min_free_percent: options.min_free_percent,
            compact_floor: options.compact_floor,
            lock,
        };
        thread("sigil-export", move || exporting.run())?;
        thread("sigil-store", move || writing.run())?;
        Ok((Self { shared, writer, exporter }, OpenReport { alarms: found.alarms }))
    }

    /// The agent's id, made at first open and kept in `<data>/agent-id`.
    pub fn agent_id(&self) -> AgentId {
        self.shared.agent_id
    }

    /// Alarms since the store was opened, oldest first (the newest 20): what needs a person's attention.
    pub fn alarms(&self) -> Vec<String> {
        self.shared.alarms.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A text that differs for every opening; a revision of [`Store::changes`] means nothing under another epoch.
    pub fn epoch(&self) -> &str {
        &self.shared.epoch
    }

    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Change) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = oneshot::channel();
        let run = Box::new(move |c: &mut Change| -> writer::Answer {
            let outcome = writer::guarded(|| change(c));
            Box::new(move |durable: Result<()>| {
                // a refusal is final; a success counts once it is on the disk
                let _ = tell.send(outcome.and_then(|value| durable.map(|()| value)));
            })
        });
        self.writer.send(Command::Change(run)).await.map_err(|_| StoreError::Closed)?;
        told.await.map_err(|_| StoreError::Closed)?
    }

    /// All deployments, by name. From memory; cheap.
    pub fn deployments(&self) -> Vec<Arc<Deployment>> {
        let state = self.shared.snapshot();
        state.names.values().filter_map(|id| state.deployments.get(id).cloned()).collect()
    }

    /// A deployment.
    pub fn deployment(&self, id: DeploymentId) -> Option<Arc<Deployment>> {
        self.shared.snapshot().deployments.get(&id).cloned()
    }

    /// A deployment by its name now.
    pub fn by_name(&self, name: &Name) -> Option<Arc<Deployment>> {
        let state = self.shared.snapshot();
        state.deployments.get(state.names.get(name)?).cloned()
    }

    /// Adds a deployment.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`], or [`StoreError::Refused`] when the id is known already.
    pub async fn create(&self, deployment: Deployment) -> Result<Arc<Deployment>> {
        self.change(move |c| {
            if c.state.deployments.contains_key(&deployment.id) {
                return Err(StoreError::Refused(format!("the deployment {} exists", deployment.id)));
            }
            let deployment = Arc::new(deployment);
            c.put_deployment(deployment.clone())?;
            Ok(deployment)
        })
        .await
    }

    /// Compare and set: runs `change` on a copy; `expected` generation `None` = whatever it is. Bumps the generation
    /// when `desired` changed, sets reason and changed_at.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Conflict`], [`StoreError::NameTaken`], or [`StoreError::Refused`] with
    /// the text that `change` answered.
    pub async fn update<F>(
        &self,
        id: DeploymentId,
        expected: Option<u64>,
        reason: &str,
        change: F,
    ) -> Result<Arc<Deployment>>
    where
        F: FnOnce(&mut Deployment) -> std::result::Result<(), String> + Send + 'static,
    {
        let reason = reason.to_owned();
        self.change(move |c| {
            let old = c.state.deployments.get(&id).cloned().ok_or_else(|| StoreError::NotFound(id.to_string()))?;
            if let Some(expected) = expected
                && expected != old.generation
            {
                return Err(StoreError::Conflict { expected, found: old.generation });
            }
            let mut new = Deployment::clone(&old);
            change(&mut new).map_err(StoreError::Refused)?;
            if new == *old {
                return Ok(old);
            }
            new.id = id;
            new.generation = old.generation + u64::from(new.desired != old.desired);
            new.reason = reason;
            new.changed_at = Timestamp::now();
            let new = Arc::new(new);
            c.put_deployment(new.clone())?;
            Ok(new)
        })
        .await
    }

    /// Removes the record (its containers are gone).
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete(&self, id: DeploymentId) -> Result<()> {
        self.change(move |c| c.remove_deployment(id)).await
    }

    /// The tool pins of a release; `None`: it was never looked at.
    pub fn pins(&self, id: DeploymentId, release: ReleaseNo) -> Option<Arc<Pins>> {
        self.shared.snapshot().pins.get(&(id, release)).cloned()
    }

    /// Changes the tool pins of a release: `change` gets what there is and answers what there is to be (`None`: as it was)
    /// beside its own answer.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without the deployment, [`StoreError::Refused`] with the text that `change` answered.
    pub async fn update_pins<T, F>(&self, id: DeploymentId, release: ReleaseNo, change: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Option<&Pins>) -> std::result::Result<(Option<Pins>, T), String> + Send + 'static,
    {
        self.change(move |c| {
            let old = c.state.pins.get(&(id, release)).cloned();
            let (new, answer) = change(old.as_deref()).map_err(StoreError::Refused)?;
            if let Some(new) = new.filter(|new| old.as_deref() != Some(new)) {
                c.put_pins(id, Pins { release, ..new })?;
            }
            Ok(answer)
        })
        .await
    }

    /// Users and teams, as they are now. From memory; cheap.
    pub fn directory(&self) -> Arc<Directory> {
        self.shared.snapshot().directory.clone()
    }

    /// Changes users and teams: `change` is told how things are when the change is made, and answers what is to be written
    /// beside its own answer.
    ///
    /// # Errors
    /// What `change` answered, in its own type; the outer error is the store's.
    pub async fn update_people<T, E, F>(&self, change: F) -> Result<std::result::Result<T, E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: FnOnce(&People<'_>) -> std::result::Result<(Vec<PersonChange>, T), E> + Send + 'static,
    {
        self.change(move |c| {
            let (changes, answer) = match change(&People(&c.state)) {
                Ok(done) => done,
                Err(refused) => return Ok(Err(refused)),
            };
            c.put_people(changes)?;
            Ok(Ok(answer))
        })
        .await
    }

    /// Quotas and budgets, by whom they are for. From memory; cheap.
    pub fn limits(&self) -> Arc<BTreeMap<Whose, Limit>> {
        self.shared.snapshot().limits.clone()
    }

    /// What people call whom a limit is for.
    pub fn named(&self, whose: &Whose) -> String {
        let directory = self.directory();
        match whose {
            Whose::All => "everything".to_owned(),
            Whose::Team(id) => format!("the team '{}'", directory.team_name(id)),
            Whose::User(id) => format!("the user '{}'", directory.user(id).map_or(id.as_str(), |(user, _)| &user.name)),
            Whose::Deployment(id) => self.deployment(*id).map_or_else(|| id.to_string(), |d| format!("'{}'", d.name)),
        }
    }

    /// The user who made a deployment, by id; the name that was kept where there is no such user any more.
    pub fn maker(&self, d: &Deployment) -> String {
        self.directory().user(&d.created_by).map_or_else(|| d.created_by.clone(), |(user, _)| user.id.clone())
    }

    /// Changes somebody's quotas and budget: `change` is told what there is. One that limits nothing is forgotten.
    ///
    /// # Errors
    /// [`StoreError::Refused`] with the text that `change` answered.
    pub async fn update_limit<F>(&self, whose: Whose, change: F) -> Result<Option<Limit>>
    where
        F: FnOnce(Option<&Limit>) -> std::result::Result<Option<Limit>, String> + Send + 'static,
    {
        self.change(move |c| {
            let new = change(c.state.limits.get(&whose)).map_err(StoreError::Refused)?;
            let new = new.map(|limit| Limit { whose: whose.clone(), ..limit });
            c.put_limit(&whose, new.clone())?;
            Ok(new.filter(|limit| !limit.is_empty()))
        })
        .await
    }

    /// Versions of packages that were published here, by name and version. From memory; cheap.
    pub fn packages(&self) -> Arc<BTreeMap<(String, String), Arc<Version>>> {
        self.shared.snapshot().packages.clone()
    }

    /// Changes versions of packages that were published here: `change` is told what there is, and answers what is to be
    /// written beside its own answer.
    ///
    /// # Errors
    /// What `change` answered, in its own type; the outer error is the store's.
    pub async fn update_packages<T, E, F>(&self, change: F) -> Result<std::result::Result<T, E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: FnOnce(&BTreeMap<(String, String), Arc<Version>>) -> std::result::Result<(Vec<Version>, T), E>
            + Send
            + 'static,
    {
        self.change(move |c| {
            let (versions, answer) = match change(&c.state.packages) {
                Ok(done) => done,
                Err(refused) => return Ok(Err(refused)),
            };
            for version in versions {
                c.put_package(version)?;
            }
            Ok(Ok(answer))
        })
        .await
    }

    /// Changes with every write to deployments and their pins: a revision within [`Store::epoch`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Changes with every write to operations.
    pub fn operation_changes(&self) -> watch::Receiver<u64> {
        self.shared.operation_changes.subscribe()
    }

    /// Adds or replaces an operation.
    ///
    /// # Errors
    /// Disk errors only.
    pub async fn put_operation(&self, op: OperationRecord) -> Result<()> {
        self.change(move |c| c.put_operation(op, Timestamp::now())).await
    }

    /// An operation that is still listed.
    pub fn operation(&self, id: OperationId) -> Option<Arc<OperationRecord>> {
        self.shared.snapshot().operations.get(&id).cloned()
    }

    /// Newest first; finished ones beyond the newest 500 are forgotten.
    pub fn operations(&self) -> Vec<Arc<OperationRecord>> {
        self.shared.snapshot().operations.values().rev().cloned().collect()
    }

    /// The operation that an earlier request with this id made (24 h). One that left the list comes without its request
    /// and progress.
    pub fn operation_of_request(&self, request_id: &str) -> Option<Arc<OperationRecord>> {
        let state = self.shared.snapshot();
        let listed = state.requests.get(request_id).and_then(|id| state.operations.get(id));
        let op = listed.or_else(|| state.past.get(request_id))?;
        (Timestamp::now().duration_since(op.created_at) < state::REMEMBERED).then(|| op.clone())
    }

    /// The answer that an earlier request with this id got (24 h), for changes that make no operation.
    pub fn answer_of_request(&self, request_id: &str) -> Option<serde_json::Value> {
        let state = self.shared.snapshot();
        let answer = state.answers.get(request_id)?;
        (Timestamp::now().duration_since(answer.at) < state::REMEMBERED).then(|| answer.answer.clone())
    }

    /// Remembers the answer to a request for 24 hours (at most the newest 2,000). Never a secret.
    ///
    /// # Errors
    /// Disk errors only.
    pub async fn remember_answer(&self, request_id: &str, answer: serde_json::Value) -> Result<()> {
        let request_id = request_id.to_owned();
        self.change(move |c| c.remember(request_id, answer, Timestamp::now())).await
    }

    /// Adds or replaces a sealed record.
    ///
    /// # Errors
    /// Disk errors only.
    pub async fn put_sealed(&self, record: SealedRecord) -> Result<()> {
        self.change(move |c| c.put_sealed(record)).await
    }

    /// Adds or replaces sealed records: all of them, or none.
    ///
    /// # Errors
    /// Disk errors only.
    pub async fn put_sealed_all(&self, records: Vec<SealedRecord>) -> Result<()> {
        self.change(move |c| records.into_iter().try_for_each(|record| c.put_sealed(record))).await
    }

    /// A sealed record.
    pub fn sealed(&self, key: &str) -> Option<Arc<SealedRecord>> {
        self.shared.snapshot().sealed.get(key).cloned()
    }

    /// Sealed records whose key begins with `prefix`, by key.
    pub fn sealed_keys(&self, prefix: &str) -> Vec<Arc<SealedRecord>> {
        let state = self.shared.snapshot();
        state
            .sealed
            .range(prefix.to_owned()..)
            .take_while(|(k, _)| k.starts_with(prefix))
            .map(|(_, s)| s.clone())
            .collect()
    }

    /// Removes a sealed record; false when there was none.
    ///
    /// # Errors
    /// Disk errors only.
    pub async fn remove_sealed(&self, key: &str) -> Result<bool> {
        let key = key.to_owned();
        self.change(move |c| Ok(c.remove_sealed(&key))).await
    }

    /// Writes one checksummed export now; answers its path.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`] and disk errors.
    pub async fn export(&self) -> Result<PathBuf> {
        let (tell, told) = oneshot::channel();
        self.exporter.try_send(ExportCommand::Now(tell)).map_err(|e| match e {
            std::sync::mpsc::TrySendError::Full(_) => StoreError::Refused("many exports wait already".into()),
            std::sync::mpsc::TrySendError::Disconnected(_) => StoreError::Closed,
        })?;
        told.await.map_err(|_| StoreError::Closed)?
    }

    /// Exports what changed, flushes and closes; the data directory is free afterwards. Later changes answer
    /// [`StoreError::Closed`]; reads go on from memory.
    pub async fn close(&self) {
        let (tell, told) = oneshot::channel();
        let exporter = self.exporter.clone();
        // a full queue means exports are being written: wait off the async threads
        let sent = tokio::task::spawn_blocking(move || exporter.send(ExportCommand::Close(tell)).is_ok()).await;
        if sent.unwrap_or(false) {
            let _ = told.await;
        }
        let (tell, told) = oneshot::channel();
        if self.writer.send(Command::Close(tell)).await.is_ok() {
            let _ = told.await;
        }
    }
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map(|_| ())
        .map_err(|e| StoreError::Io(format!("no thread: {e}")))
}

/// Reads the agent's id, takes it from the newest good export, or makes one.
fn agent_id(dir: &Path, paths: &Paths) -> Result<AgentId> {
    let path = dir.join("agent-id");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            return text.trim().parse().map_err(|e| StoreError::Io(format!("{}: {e}", path.display())));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(disk::io_error(&path)(e)),
    }
    let known =
        export::list(&paths.exports)?.into_iter().find_map(|(_, p)| export::read(&p).ok()).map(|e| e.header.agent_id);
    let id = known.and_then(|text| text.parse().ok()).unwrap_or_else(|| AgentId(ulid::Ulid::generate()));
    disk::replace_file(&path, format!("{id}\n").as_bytes(), None).map_err(disk::io_error(&path))?;
    Ok(id)
}

/// The newest export of a data directory that verifies.
///
/// # Errors
/// The directory cannot be read.
pub fn newest_export(dir: &Path) -> Result<Option<(PathBuf, ExportHeader)>> {
    let all = export::list(&Paths::of(dir).exports)?;
    Ok(all.into_iter().find_map(|(_, path)| export::read(&path).ok().map(|found| (path, found.header))))
}

/// Copies an export to a place of the caller's choice (0600), and verifies the copy.
///
/// # Errors
/// Disk errors; the file is there already.
pub fn copy_export(from: &Path, to: &Path) -> Result<ExportHeader> {
    if to.exists() {
        return Err(StoreError::Refused(format!("{} is there already", to.display())));
    }
    let bytes = std::fs::read(from).map_err(disk::io_error(from))?;
    disk::replace_file(to, &bytes, None).map_err(disk::io_error(to))?;
    verify_export(to)
}

/// Verifies an export file (`sigil-agent export` makes one with [`Store::export`]) and answers its header.
///
/// # Errors
/// [`StoreError::Io`] names the flaw, [`StoreError::Newer`] a format that this build does not know.
pub fn verify_export(file: &Path) -> Result<ExportHeader> {
    export::read(file).map(|e| e.header)
}

/// Replaces the state in a data directory by an export; no agent may run there. What was there is set aside, never
/// deleted. With `adopt` the directory takes over the export's agent id (and with it that agent's containers).
///
/// # Errors
/// [`StoreError::Refused`] when the export is another agent's and `adopt` is false; else as [`Store::open`].
pub fn restore(dir: &Path, file: &Path, adopt: bool) -> Result<ExportHeader> {
    let found = export::read(file)?;
    let id: AgentId = found.header.agent_id.parse().map_err(|e| StoreError::Io(format!("{}: {e}", file.display())))?;
    disk::private_dir(dir, true)?;
    let _lock = disk::lock(dir)?;
    let id_path = dir.join("agent-id");
    let mine = match std::fs::read_to_string(&id_path) {
        Ok(mine) => Some(mine.trim().to_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(disk::io_error(&id_path)(e)),
    };
    if mine.as_deref() != Some(id.to_string().as_str()) && !adopt {
        let whose = mine.map_or_else(|| "has no agent id".to_owned(), |mine| format!("belongs to {mine}"));
        return Err(StoreError::Refused(format!("the export is of agent {id}, this directory {whose}")));
    }
    // read before anything moves: the records must be ones that this build understands
    let records = found.records.iter().cloned().collect();
    Snapshot::load(found.header.seq, &records, &mut Vec::new())?;
    let paths = Paths::of(dir);
    // a database beside the export would win over it; the journal would be replayed on top of it
    for path in [&paths.state, &paths.journal, &paths.exports] {
        if path.exists() {
            disk::set_aside(path)?;
        }
        disk::private_dir(path, false)?;
    }
    disk::replace_file(&id_path, format!("{id}\n").as_bytes(), None).map_err(disk::io_error(&id_path))?;
    export::write(&paths.exports, &found.header.agent_id, found.header.seq, &found.records)?;
    drop(database::Database::build(&paths.state, found.header.seq, &found.records)?);
    Ok(found.header)
}
