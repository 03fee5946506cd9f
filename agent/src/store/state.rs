//! The state in memory. Readers hold an `Arc` of a snapshot; the writer changes a copy (maps are shared until touched)
//! and publishes it once the change is on disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sigil_core::cost::judge::{Limit, Whose};
use sigil_core::model::{Deployment, DeploymentId, Name, OperationId, ReleaseNo};
use sigil_core::package::Version;
use sigil_core::pins::Pins;
use sigil_core::rights::{Directory, Team, User};

use super::record::{ANSWER, DEPLOYMENT, LIMIT, OPERATION, Op, PACKAGE, PINS, REQUEST, SEALED, TEAM, USER};
use super::{OperationRecord, Result, SealedRecord, StoreError};

/// Finished operations that are kept in the list.
pub(super) const OPERATIONS_KEPT: usize = 500;
/// How long a request id is remembered.
pub(super) const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);
/// Most request ids remembered beyond the listed operations; the oldest go first.
pub(super) const ANSWERS_MAX: usize = 2000;

/// The answer to a change that made no operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub at: Timestamp,
    pub answer: serde_json::Value,
}

/// Everything, as of one sequence number.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    pub seq: u64,
    pub deployments: Arc<BTreeMap<DeploymentId, Arc<Deployment>>>,
    pub names: Arc<BTreeMap<Name, DeploymentId>>,
    pub operations: Arc<BTreeMap<OperationId, Arc<OperationRecord>>>,
    /// Request id -> operation in `operations`.
    pub requests: Arc<BTreeMap<String, OperationId>>,
    /// Operations that left the list before their request id may be forgotten.
    pub past: Arc<BTreeMap<String, Arc<OperationRecord>>>,
    pub answers: Arc<BTreeMap<String, Arc<Answer>>>,
    pub sealed: Arc<BTreeMap<String, Arc<SealedRecord>>>,
    pub pins: Arc<BTreeMap<(DeploymentId, ReleaseNo), Arc<Pins>>>,
    /// Users and teams.
    pub directory: Arc<Directory>,
    /// Quotas and budgets.
    pub limits: Arc<BTreeMap<Whose, Limit>>,
    /// Versions of packages that were published here, by name and version.
    pub packages: Arc<BTreeMap<(String, String), Arc<Version>>>,
}

fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|e| StoreError::Io(format!("the record {key} cannot be read: {e}")))
}

fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| StoreError::Io(format!("a record cannot be written: {e}")))
}

impl Snapshot {
    /// Builds the maps from records. Alarms get a line for what had to be repaired.
    pub fn load(seq: u64, records: &BTreeMap<String, Vec<u8>>, alarms: &mut Vec<String>) -> Result<Self> {
        let mut state = Self { seq, ..Self::default() };
        let deployments = Arc::make_mut(&mut state.deployments);
        let names = Arc::make_mut(&mut state.names);
        let operations = Arc::make_mut(&mut state.operations);
        let requests = Arc::make_mut(&mut state.requests);
        let past = Arc::make_mut(&mut state.past);
        let answers = Arc::make_mut(&mut state.answers);
        let sealed = Arc::make_mut(&mut state.sealed);
        let pins = Arc::make_mut(&mut state.pins);
        let limits = Arc::make_mut(&mut state.limits);
        let packages = Arc::make_mut(&mut state.packages);
        let (mut users, mut teams) = (Vec::new(), Vec::new());
        for (key, value) in records {
            if key.starts_with(DEPLOYMENT) {
                let mut d: Deployment = parse(key, value)?;
                if names.contains_key(&d.name) {
                    // only possible when a damaged journal lost a removal: neither may be dropped
                    let tail = d.id.to_string().to_ascii_lowercase();
                    let stem: String = d.name.as_str().chars().take(33).collect();
                    let name = format!("{stem}-{}", &tail[tail.len() - 6..]);
                    alarms.push(format!("two deployments are named '{}': one is now '{name}'", d.name));
                    d.name = name.parse().map_err(|e| StoreError::Io(format!("{e}")))?;
                }
                names.insert(d.name.clone(), d.id);
                deployments.insert(d.id, Arc::new(d));
            } else if key.starts_with(OPERATION) {
                let op: OperationRecord = parse(key, value)?;
                if !op.request_id.is_empty() {
                    requests.insert(op.request_id.clone(), op.id);
                }
                operations.insert(op.id, Arc::new(op));
            } else if let Some(request) = key.strip_prefix(REQUEST) {
                past.insert(request.to_owned(), Arc::new(parse(key, value)?));
            } else if let Some(request) = key.strip_prefix(ANSWER) {
                answers.insert(request.to_owned(), Arc::new(parse(key, value)?));
            } else if key.starts_with(SEALED) {
                let s: SealedRecord = parse(key, value)?;
                sealed.insert(s.key.clone(), Arc::new(s));
            } else if let Some(whose) = key.strip_prefix(PINS) {
                let id = whose.split('/').next().and_then(|id| id.parse().ok());
                let id = id.ok_or_else(|| StoreError::Io(format!("the record {key} is nobody's")))?;
                let p: Pins = parse(key, value)?;
                pins.insert((id, p.release), Arc::new(p));
            } else if key.starts_with(USER) {
                users.push(Arc::new(parse::<User>(key, value)?));
            } else if key.starts_with(TEAM) {
                teams.push(Arc::new(parse::<Team>(key, value)?));
            } else if key.starts_with(LIMIT) {
                let limit: Limit = parse(key, value)?;
                limits.insert(limit.whose.clone(), limit);
            } else if key.starts_with(PACKAGE) {
                let version: Version = parse(key, value)?;
                packages.insert((version.name().to_owned(), version.version().to_owned()), Arc::new(version));
            } else {
                return Err(StoreError::Newer { what: format!("record {key}"), found: 0 });
            }
        }
        state.directory = Arc::new(Directory::new(&users, &teams));
        Ok(state)
    }

    /// All records, for exports and for building the database anew.
    pub fn records(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut out = Vec::new();
        for (id, d) in self.deployments.iter() {
            out.push((format!("{DEPLOYMENT}{id}"), to_json(d.as_ref())?));
        }
        for (id, o) in self.operations.iter() {
            out.push((format!("{OPERATION}{id}"), to_json(o.as_ref())?));
        }
        for (request, o) in self.past.iter() {
            out.push((format!("{REQUEST}{request}"), to_json(o.as_ref())?));
        }
        for (request, a) in self.answers.iter() {
            out.push((format!("{ANSWER}{request}"), to_json(a.as_ref())?));
        }
        for (key, s) in self.sealed.iter() {
            out.push((format!("{SEALED}{key}"), to_json(s.as_ref())?));
        }
        for ((id, release), p) in self.pins.iter() {
            out.push((format!("{PINS}{id}/{release}"), to_json(p.as_ref())?));
        }
        for user in self.directory.users() {
            out.push((format!("{USER}{}", user.id), to_json(user.as_ref())?));
        }
        for team in self.directory.teams() {
            out.push((format!("{TEAM}{}", team.id), to_json(team.as_ref())?));
        }
        for (whose, limit) in self.limits.iter() {
            out.push((format!("{LIMIT}{whose}"), to_json(limit)?));
        }
        for ((name, version), v) in self.packages.iter() {
            out.push((format!("{PACKAGE}{name} {version}"), to_json(v.as_ref())?));
        }
        Ok(out)
    }
}

/// A change of one user or team.
#[derive(Debug, Clone)]
pub enum PersonChange {
    /// Added or replaced.
    User(User),
    /// Removed, by id.
    NoUser(String),
    /// Added or replaced.
    Team(Team),
    /// Removed, by id.
    NoTeam(String),
}

/// What a change of users and teams is decided on: as it is when the change is made.
#[derive(Debug)]
pub struct People<'a>(pub(super) &'a Snapshot);

impl People<'_> {
    /// Users and teams.
    pub fn directory(&self) -> &Directory {
        &self.0.directory
    }

    /// What belongs to a team: its deployments and secrets, in words.
    pub fn belongings(&self, team: &str) -> Vec<String> {
        let deployments =
            self.0.deployments.values().filter(|d| d.team == team).map(|d| format!("deployment {}", d.name));
        let prefix = format!("team/{team}/");
        let secrets = self.0.sealed.keys().filter_map(|key| key.strip_prefix(&prefix));
        deployments.chain(secrets.map(|name| format!("secret {name}"))).collect()
    }
}

/// A change being made: the copy, and the records that it writes.
#[derive(Debug)]
pub(super) struct Change {
    pub state: Snapshot,
    pub ops: Vec<Op>,
}

impl Change {
    fn put<T: Serialize>(&mut self, key: String, value: &T) -> Result<()> {
        let value = Some(to_json(value)?);
        self.ops.push(Op { key, value });
        Ok(())
    }

    fn remove(&mut self, key: String) {
        self.ops.push(Op { key, value: None });
    }

    /// Adds or replaces a deployment, keeping the index of names.
    pub fn put_deployment(&mut self, d: Arc<Deployment>) -> Result<()> {
        if let Some(other) = self.state.names.get(&d.name)
            && *other != d.id
        {
            return Err(StoreError::NameTaken(d.name.to_string()));
        }
        self.put(format!("{DEPLOYMENT}{}", d.id), d.as_ref())?;
        let old = Arc::make_mut(&mut self.state.deployments).insert(d.id, d.clone());
        let old_name = old.map(|o| o.name.clone());
        if old_name.as_ref() != Some(&d.name) {
            let names = Arc::make_mut(&mut self.state.names);
            if let Some(old) = old_name {
                names.remove(&old);
            }
            names.insert(d.name.clone(), d.id);
        }
        Ok(())
    }

    /// Removes a deployment.
    pub fn remove_deployment(&mut self, id: DeploymentId) -> Result<()> {
        let Some(old) = Arc::make_mut(&mut self.state.deployments).remove(&id) else {
            return Err(StoreError::NotFound(id.to_string()));
        };
        Arc::make_mut(&mut self.state.names).remove(&old.name);
        self.remove(format!("{DEPLOYMENT}{id}"));
        self.keep_pins(id, |_| false);
        self.put_limit(&Whose::Deployment(id), None)
    }

    /// Sets somebody's quotas and budget; `None`, or one that limits nothing, takes them away.
    pub fn put_limit(&mut self, whose: &Whose, limit: Option<Limit>) -> Result<()> {
        let limits = Arc::make_mut(&mut self.state.limits);
        let key = format!("{LIMIT}{whose}");
        match limit.filter(|limit| !limit.is_empty()) {
            Some(limit) => {
                limits.insert(whose.clone(), limit.clone());
                self.put(key, &limit)
            }
            None => {
                if limits.remove(whose).is_some() {
                    self.remove(key);
                }
                Ok(())
            }
        }
    }

    /// Adds or replaces a version of a package.
    pub fn put_package(&mut self, version: Version) -> Result<()> {
        let (name, number) = (version.name().to_owned(), version.version().to_owned());
        self.put(format!("{PACKAGE}{name} {number}"), &version)?;
        Arc::make_mut(&mut self.state.packages).insert((name, number), Arc::new(version));
        Ok(())
    }

    /// Adds or replaces the tool pins of a release; forgets those of releases that the deployment no longer has.
    pub fn put_pins(&mut self, id: DeploymentId, pins: Pins) -> Result<()> {
        let deployment = self.state.deployments.get(&id).ok_or_else(|| StoreError::NotFound(id.to_string()))?.clone();
        self.keep_pins(id, |release| deployment.release(release).is_some());
        self.put(format!("{PINS}{id}/{}", pins.release), &pins)?;
        Arc::make_mut(&mut self.state.pins).insert((id, pins.release), Arc::new(pins));
        Ok(())
    }

    fn keep_pins(&mut self, id: DeploymentId, kept: impl Fn(ReleaseNo) -> bool) {
        let all = self.state.pins.range((id, ReleaseNo::MIN)..=(id, ReleaseNo::MAX)).map(|((_, release), _)| *release);
        for release in all.filter(|release| !kept(*release)).collect::<Vec<_>>() {
            Arc::make_mut(&mut self.state.pins).remove(&(id, release));
            self.remove(format!("{PINS}{id}/{release}"));
        }
    }

    /// Adds, replaces and removes users and teams.
    pub fn put_people(&mut self, changes: Vec<PersonChange>) -> Result<()> {
        let old = self.state.directory.clone();
        let mut users: BTreeMap<String, Arc<User>> = old.users().map(|u| (u.id.clone(), u.clone())).collect();
        let mut teams: BTreeMap<String, Arc<Team>> = old.teams().map(|t| (t.id.clone(), t.clone())).collect();
        for change in changes {
            match change {
                PersonChange::User(user) => {
                    self.put(format!("{USER}{}", user.id), &user)?;
                    users.insert(user.id.clone(), Arc::new(user));
                }
                PersonChange::NoUser(id) => {
                    users.remove(&id);
                    self.remove(format!("{USER}{id}"));
                }
                PersonChange::Team(team) => {
                    self.put(format!("{TEAM}{}", team.id), &team)?;
                    teams.insert(team.id.clone(), Arc::new(team));
                }
                PersonChange::NoTeam(id) => {
                    teams.remove(&id);
                    self.remove(format!("{TEAM}{id}"));
                }
            }
        }
        self.state.directory = Arc::new(Directory::new(users.values(), teams.values()));
        Ok(())
    }

    /// Adds or replaces an operation; forgets the oldest finished ones beyond the limit, and request ids that are old.
    pub fn put_operation(&mut self, op: OperationRecord, now: Timestamp) -> Result<()> {
        self.put(format!("{OPERATION}{}", op.id), &op)?;
        if !op.request_id.is_empty() {
            Arc::make_mut(&mut self.state.requests).insert(op.request_id.clone(), op.id);
        }
        let ended = op.ended_at.is_some();
        Arc::make_mut(&mut self.state.operations).insert(op.id, Arc::new(op));
        if !ended {
            return Ok(());
        }
        let finished: Vec<_> = self.state.operations.values().filter(|o| o.ended_at.is_some()).map(|o| o.id).collect();
        for id in finished.iter().take(finished.len().saturating_sub(OPERATIONS_KEPT)) {
            let Some(old) = Arc::make_mut(&mut self.state.operations).remove(id) else { continue };
            self.remove(format!("{OPERATION}{id}"));
            let requests = Arc::make_mut(&mut self.state.requests);
            if requests.get(&old.request_id) == Some(id) {
                requests.remove(&old.request_id);
                if now.duration_since(old.created_at) < REMEMBERED {
                    // what it was asked and how far it came is of no use any more
                    let slim = OperationRecord {
                        request: serde_json::Value::Null,
                        progress: serde_json::Value::Null,
                        ..OperationRecord::clone(&old)
                    };
                    self.put(format!("{REQUEST}{}", slim.request_id), &slim)?;
                    Arc::make_mut(&mut self.state.past).insert(slim.request_id.clone(), Arc::new(slim));
                }
            }
        }
        self.forget(now);
        Ok(())
    }

    /// Remembers the answer to a change that made no operation.
    pub fn remember(&mut self, request_id: String, answer: serde_json::Value, now: Timestamp) -> Result<()> {
        let answer = Answer { at: now, answer };
        self.put(format!("{ANSWER}{request_id}"), &answer)?;
        Arc::make_mut(&mut self.state.answers).insert(request_id, Arc::new(answer));
        self.forget(now);
        Ok(())
    }

    /// Drops request ids older than 24 hours, and the oldest beyond the limit.
    fn forget(&mut self, now: Timestamp) {
        let mut all: Vec<(Timestamp, String, bool)> = Vec::new();
        all.extend(self.state.past.iter().map(|(k, o)| (o.created_at, k.clone(), true)));
        all.extend(self.state.answers.iter().map(|(k, a)| (a.at, k.clone(), false)));
        all.sort();
        let over = all.len().saturating_sub(ANSWERS_MAX);
        for (i, (at, request, past)) in all.into_iter().enumerate() {
            if i >= over && now.duration_since(at) < REMEMBERED {
                break;
            }
            if past {
                Arc::make_mut(&mut self.state.past).remove(&request);
                self.remove(format!("{REQUEST}{request}"));
            } else {
                Arc::make_mut(&mut self.state.answers).remove(&request);
                self.remove(format!("{ANSWER}{request}"));
            }
        }
    }

    /// Adds or replaces a sealed record.
    pub fn put_sealed(&mut self, record: SealedRecord) -> Result<()> {
        self.put(format!("{SEALED}{}", record.key), &record)?;
        Arc::make_mut(&mut self.state.sealed).insert(record.key.clone(), Arc::new(record));
        Ok(())
    }

    /// Removes a sealed record; false when there was none.
    pub fn remove_sealed(&mut self, key: &str) -> bool {
        let there = self.state.sealed.contains_key(key);
        if there {
            Arc::make_mut(&mut self.state.sealed).remove(key);
            self.remove(format!("{SEALED}{key}"));
        }
        there
    }
}
