//! Owns: secret plaintext and the keyring.
//! May touch: the store's sealed records, `<data>/keyring`, `<data>/keyring.key`.
//! Never: logs a value, writes one anywhere in clear, or hands one out that the audit log does not tell of.
//! Tested by: unit tests.

mod keyring;
mod redact;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use sigil_core::audit::Record;
use sigil_core::model::{DeploymentId, Inject, ReleaseSpec, SecretUse};
use zeroize::Zeroizing;

use crate::audit::{Audit, AuditError, by_agent};
use crate::store::{SealedRecord, Store, StoreError};
use keyring::Keyring;
pub use redact::Redactor;

/// Why a secret could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The keyring's files: missing, readable by others, or not openable with this key.
    #[error("keyring: {0}")]
    Keyring(String),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record that was changed, moved, renamed, rolled back, or sealed with another keyring.
    #[error("the record of '{0}' does not open with this keyring")]
    Broken(String),
    /// Not a name for a secret of that scope.
    #[error("'{0}' is not a valid environment variable name")]
    BadName(String),
    /// Not a host name a source secret can be kept for.
    #[error("'{0}' is not a host name")]
    BadHost(String),
    /// Empty, too long, or with a NUL in it.
    #[error("the value of '{0}' {1}")]
    BadValue(String, &'static str),
    /// Required by a release and nowhere.
    #[error("missing secrets: {}", .0.join(", "))]
    Missing(Vec<String>),
    /// That it is handed out cannot be recorded.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl SecretError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Keyring(_) => {
                "restore <data>/keyring and its key from the same backup; both belong to the agent's user, mode 0600"
                    .into()
            }
            Self::Store(_) => "see the agent's log".into(),
            Self::Broken(name) => {
                format!("set '{name}' again, or restore the data directory and the keyring from one backup")
            }
            Self::BadName(_) => "letters, digits and '_', not beginning with a digit, at most 128: API_KEY".into(),
            Self::BadHost(_) => "write the host alone, with a port if it is not the usual one: git.example.org".into(),
            Self::BadValue(..) => "a value is 1 byte to 64 KiB of text".into(),
            Self::Missing(names) => match names.first() {
                Some(name) => format!("set each one: sigil secret set {name}"),
                None => "set them with sigil secret set".into(),
            },
            Self::Audit(error) => error.hint().into(),
        }
    }
}

/// Result of a call to this room.
pub type Result<T> = std::result::Result<T, SecretError>;

/// Whose a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Shared by all deployments of a team.
    Team(String),
    /// One deployment's own; wins over its team's.
    Deployment(DeploymentId),
    /// A login for fetching sources; its name is the host.
    Source,
}

impl Scope {
    /// What the secret is for, as bound into the seal.
    fn purpose(&self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Team(_) | Self::Deployment(_) => "server",
        }
    }

    fn prefix(&self) -> String {
        match self {
            Self::Team(team) => format!("team/{team}/"),
            Self::Deployment(id) => format!("deployment/{id}/"),
            Self::Source => "source/".to_owned(),
        }
    }

    /// The key of a secret of this scope, unique in the agent: `team/default/NAME`, `deployment/<id>/NAME`, `source/<host>`.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix())
    }

    /// Scope and name of a store key.
    fn of_key(key: &str) -> Option<(Self, String)> {
        let (kind, rest) = key.split_once('/')?;
        match kind {
            "source" => Some((Self::Source, rest.to_owned())),
            "team" => rest.split_once('/').map(|(team, name)| (Self::Team(team.to_owned()), name.to_owned())),
            "deployment" => {
                let (id, name) = rest.split_once('/')?;
                Some((Self::Deployment(id.parse().ok()?), name.to_owned()))
            }
            _ => None,
        }
    }
}

/// A login for fetching sources from a host.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The host it was kept for: the asked one, or a parent domain of it.
    pub host: String,
    /// Login; empty when the token stands alone.
    pub username: String,
    /// Password, token, or an OpenSSH private key.
    pub password: SecretString,
    /// Which of its values this is.
    pub version: u32,
}

/// What is shown of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretMeta {
    /// Its name (the host, for a source secret).
    pub name: String,
    /// Whose it is.
    pub scope: Scope,
    /// Counts its changes, from 1.
    pub version: u32,
    /// When it was last set.
    pub changed_at: Timestamp,
    /// Who set it.
    pub changed_by: String,
}

/// Longest value, in bytes.
const VALUE_MAX: usize = 64 << 10;
/// Longest name, in bytes.
const NAME_MAX: usize = 128;

/// Where sealed records are kept: the store, or a map in tests.
#[async_trait]
trait Records: Send + Sync {
    async fn put(&self, record: SealedRecord) -> std::result::Result<(), StoreError>;
    fn get(&self, key: &str) -> Option<Arc<SealedRecord>>;
    fn all(&self, prefix: &str) -> Vec<Arc<SealedRecord>>;
    async fn remove(&self, key: &str) -> std::result::Result<bool, StoreError>;
}

#[async_trait]
impl Records for Store {
    async fn put(&self, record: SealedRecord) -> std::result::Result<(), StoreError> {
        self.put_sealed(record).await
    }
    fn get(&self, key: &str) -> Option<Arc<SealedRecord>> {
        self.sealed(key)
    }
    fn all(&self, prefix: &str) -> Vec<Arc<SealedRecord>> {
        self.sealed_keys(prefix)
    }
    async fn remove(&self, key: &str) -> std::result::Result<bool, StoreError> {
        self.remove_sealed(key).await
    }
}

struct Inner {
    records: Box<dyn Records>,
    keyring: Mutex<Keyring>,
    /// One change at a time: a version is read, raised and written as one step.
    changing: tokio::sync::Mutex<()>,
    redactor: RwLock<Option<Redactor>>,
    audit: Audit,
    /// What the gateway was given since the start: deployment, key, version.
    given: Mutex<BTreeSet<(DeploymentId, String, u32)>>,
}

/// A secret that a release asks for.
struct Found {
    inject: Inject,
    value: SecretString,
    key: String,
    version: u32,
}

/// The secrets of this agent. Clones share one keyring.
#[derive(Clone)]
pub struct Secrets {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Secrets {
    /// Opens the keyring of a data directory, or makes it. The key that wraps it is the systemd credential `sigil-kek`
    /// when the unit passes one, else `<data>/keyring.key`.
    ///
    /// # Errors
    /// [`SecretError::Keyring`] when a file belongs to another user, can be read by others, is a link, or does not
    /// open with the key. A missing keyring beside existing records is no error: each record then answers
    /// [`SecretError::Broken`], so that it can be set again.
    pub fn open(data_dir: &Path, store: Store, audit: Audit) -> Result<Self> {
        let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| Path::new(&dir).join("sigil-kek"));
        Self::open_with(data_dir, Box::new(store), audit, credential.filter(|path| path.exists()).as_deref())
    }

    fn open_with(data_dir: &Path, records: Box<dyn Records>, audit: Audit, credential: Option<&Path>) -> Result<Self> {
        let (keyring, made) = Keyring::open(data_dir, credential).map_err(SecretError::Keyring)?;
        if made {
            let orphans = records.all("").len();
            if orphans > 0 {
                tracing::error!(
                    records = orphans,
                    "the keyring was missing and has been made anew: kept secrets cannot be read"
                );
            }
        }
        let inner = Inner {
            records,
            keyring: Mutex::new(keyring),
            changing: tokio::sync::Mutex::new(()),
            redactor: RwLock::new(None),
            audit,
            given: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Keeps a value, on disk and sealed when this returns. `username` is used by source secrets only.
    ///
    /// # Errors
    /// [`SecretError::BadName`], [`SecretError::BadHost`], [`SecretError::BadValue`], the store's and keyring's.
    pub async fn set(
        &self,
        scope: &Scope,
        name: &str,
        value: SecretString,
        username: &str,
        who: &str,
    ) -> Result<SecretMeta> {
        let name = checked_name(scope, name)?;
        let text = value.expose_secret();
        if text.is_empty() {
            return Err(SecretError::BadValue(name, "is empty"));
        }
        if text.len() + username.len() > VALUE_MAX {
            return Err(SecretError::BadValue(name, "is longer than 64 KiB"));
        }
        if text.contains('\0') || username.contains(['\0', '\n']) {
            return Err(SecretError::BadValue(name, "has a NUL or a line break where none can be"));
        }
        let _one = self.inner.changing.lock().await;
        let key = format!("{}{name}", scope.prefix());
        let version = {
            let known = self.inner.records.get(&key).map_or(0, |r| r.version);
            // continues after a removal, so that a removed record cannot come back as the current one
            known.max(lock(&self.inner.keyring).floor(&key)) + 1
        };
        let mut plain = Zeroizing::new(Vec::with_capacity(4 + username.len() + text.len()));
        plain.extend_from_slice(&u32::try_from(username.len()).unwrap_or(u32::MAX).to_be_bytes());
        plain.extend_from_slice(username.as_bytes());
        plain.extend_from_slice(text.as_bytes());
        let sealed =
            lock(&self.inner.keyring).seal(&parts(scope, &name, version), &plain).map_err(SecretError::Keyring)?;
        let record = SealedRecord {
            key: key.clone(),
            version,
            changed_at: Timestamp::now(),
            changed_by: who.to_owned(),
            sealed,
        };
        let meta = meta(&record).ok_or_else(|| SecretError::BadName(name.clone()))?;
        // the record first: a floor above every record there is would make the old value unreadable
        self.inner.records.put(record).await?;
        lock(&self.inner.keyring).raise_floor(&key, version).map_err(SecretError::Keyring)?;
        self.refresh_redactor();
        Ok(meta)
    }

    /// Everything that is kept, by key; never a value.
    pub fn list(&self) -> Vec<SecretMeta> {
        let mut all: Vec<_> =
            self.inner.records.all("").iter().filter_map(|r| Some((r.key.clone(), meta(r)?))).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.into_iter().map(|(_, meta)| meta).collect()
    }

    /// Forgets one; answers whether it was there.
    ///
    /// # Errors
    /// The store's and keyring's.
    pub async fn remove(&self, scope: &Scope, name: &str) -> Result<bool> {
        let name = checked_name(scope, name)?;
        let _one = self.inner.changing.lock().await;
        let key = format!("{}{name}", scope.prefix());
        let version = self.inner.records.get(&key).map(|r| r.version);
        let removed = self.inner.records.remove(&key).await?;
        if let Some(version) = version {
            lock(&self.inner.keyring).raise_floor(&key, version + 1).map_err(SecretError::Keyring)?;
        }
        self.refresh_redactor();
        Ok(removed)
    }

    /// One value.
    ///
    /// # Errors
    /// [`SecretError::Broken`] when the record was changed, moved or rolled back.
    pub fn get(&self, scope: &Scope, name: &str) -> Result<Option<SecretString>> {
        let name = checked_name(scope, name)?;
        Ok(self.open_record(scope, &name)?.map(|(_, value, _)| value))
    }

    /// Names that a release requires and that are nowhere, in the release's order.
    pub fn missing(&self, id: Option<DeploymentId>, team: &str, uses: &[SecretUse]) -> Vec<String> {
        let there = |scope: &Scope, name: &str| self.inner.records.get(&format!("{}{name}", scope.prefix())).is_some();
        let required = uses.iter().filter(|s| s.required);
        let nowhere = required.filter(|s| {
            !(id.is_some_and(|id| there(&Scope::Deployment(id), &s.name))
                || there(&Scope::Team(team.to_owned()), &s.name))
        });
        nowhere.map(|s| s.name.clone()).collect()
    }

    /// Environment secrets of a release for one of its instances: (variable, value), looked up in the deployment, then its
    /// team. That they were handed out is on record when this returns.
    ///
    /// # Errors
    /// [`SecretError::Missing`] names every required one that is nowhere; [`SecretError::Broken`], [`SecretError::Audit`].
    pub async fn hand_over(
        &self,
        id: DeploymentId,
        team: &str,
        spec: &ReleaseSpec,
        to: &[(&str, String)],
    ) -> Result<Vec<(String, SecretString)>> {
        let (values, records) = self.environment(id, team, spec, to)?;
        if !records.is_empty() {
            self.inner.audit.record(records).await?;
        }
        Ok(values)
    }

    #[allow(clippy::type_complexity)] // two lists of the same things
    fn environment(
        &self,
        id: DeploymentId,
        team: &str,
        spec: &ReleaseSpec,
        to: &[(&str, String)],
    ) -> Result<(Vec<(String, SecretString)>, Vec<Record>)> {
        let (mut values, mut records) = (Vec::new(), Vec::new());
        for found in self.of_release(id, team, spec)? {
            if let Inject::Environment(variable) = found.inject {
                let record = read(&found.key, found.version, "environment").after("deployment id", id);
                records.push(to.iter().fold(record, |record, (key, value)| record.after(key, value)));
                values.push((variable, found.value));
            }
        }
        Ok((values, records))
    }

    /// Header, query and body secrets of a release, for the gateway. Recorded once for each deployment and version: the
    /// gateway injects what it was given into every request.
    ///
    /// # Errors
    /// As [`Self::hand_over`].
    pub fn injected(&self, id: DeploymentId, team: &str, spec: &ReleaseSpec) -> Result<Vec<(Inject, SecretString)>> {
        let mut found = self.of_release(id, team, spec)?;
        found.retain(|f| !matches!(f.inject, Inject::Environment(_)));
        for secret in &found {
            let given = (id, secret.key.clone(), secret.version);
            if lock(&self.inner.given).contains(&given) {
                continue;
            }
            // the reconciler, which asks, must not stand while the disk is slow
            self.inner.audit.note(read(&secret.key, secret.version, "gateway").after("deployment id", id))?;
            lock(&self.inner.given).insert(given);
        }
        Ok(found.into_iter().map(|f| (f.inject, f.value)).collect())
    }

    fn of_release(&self, id: DeploymentId, team: &str, spec: &ReleaseSpec) -> Result<Vec<Found>> {
        let missing = self.missing(Some(id), team, &spec.secrets);
        if !missing.is_empty() {
            return Err(SecretError::Missing(missing));
        }
        let mut found = Vec::new();
        for secret in &spec.secrets {
            for scope in [Scope::Deployment(id), Scope::Team(team.to_owned())] {
                if let Some((_, value, version)) = self.open_record(&scope, &secret.name)? {
                    let (inject, key) = (secret.inject.clone(), scope.key(&secret.name));
                    found.push(Found { inject, value, key, version });
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Login for a host: kept for `host:port`, for the host, or for the longest parent domain of at least two labels.
    ///
    /// # Errors
    /// [`SecretError::Broken`].
    pub fn credential(&self, host: &str) -> Result<Option<Credential>> {
        for candidate in candidates(&host.to_ascii_lowercase()) {
            if let Some((username, password, version)) = self.open_record(&Scope::Source, &candidate)? {
                return Ok(Some(Credential { host: candidate, username, password, version }));
            }
        }
        Ok(None)
    }

    /// Records that a login is about to be used; on the disk when this returns.
    ///
    /// # Errors
    /// [`SecretError::Audit`]: it must not be used.
    pub async fn uses(&self, login: &Credential, what_for: &str) -> Result<()> {
        Ok(self.inner.audit.record(vec![read(&Scope::Source.key(&login.host), login.version, what_for)]).await?)
    }

    /// [`Secrets::uses`] where nothing can be waited for; it is on the disk soon.
    ///
    /// # Errors
    /// As there.
    pub fn notes_use(&self, login: &Credential, what_for: &str) -> Result<()> {
        Ok(self.inner.audit.note(read(&Scope::Source.key(&login.host), login.version, what_for))?)
    }

    /// Masks every value that is kept now or set later, in lines of text. All clones share one table.
    pub fn redactor(&self) -> Redactor {
        if let Some(redactor) = self.inner.redactor.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            return redactor.clone();
        }
        let redactor = Redactor::default();
        *self.inner.redactor.write().unwrap_or_else(PoisonError::into_inner) = Some(redactor.clone());
        self.refresh_redactor();
        redactor
    }

    fn refresh_redactor(&self) {
        let redactor = self.inner.redactor.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(redactor) = redactor else { return };
        let mut values = BTreeMap::new();
        for record in self.inner.records.all("") {
            let Some((scope, name)) = Scope::of_key(&record.key) else { continue };
            // a record that does not open has no value to leak
            if let Ok(Some((_, value, _))) = self.open_record(&scope, &name) {
                values.insert(record.key.clone(), value);
            }
        }
        redactor.replace(values.values());
    }

    /// Username, value and version.
    fn open_record(&self, scope: &Scope, name: &str) -> Result<Option<(String, SecretString, u32)>> {
        let key = scope.key(name);
        let Some(record) = self.inner.records.get(&key) else { return Ok(None) };
        let broken = || SecretError::Broken(key.clone());
        let keyring = lock(&self.inner.keyring);
        // a record of another place under this key, or an older one than was acknowledged
        if record.key != key || record.version < keyring.floor(&key) {
            return Err(broken());
        }
        let plain = keyring.open_sealed(&parts(scope, name, record.version), &record.sealed).ok_or_else(broken)?;
        let (length, rest) = plain.split_first_chunk::<4>().ok_or_else(broken)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| broken())?;
        let (username, value) = rest.split_at_checked(length).ok_or_else(broken)?;
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| broken());
        Ok(Some((text(username)?, SecretString::from(text(value)?), record.version)))
    }
}

/// The record of a value that leaves this room.
fn read(key: &str, version: u32, what_for: &str) -> Record {
    by_agent("secret.read").target(key, "").after("version", version).after("for", what_for)
}

fn meta(record: &SealedRecord) -> Option<SecretMeta> {
    let (scope, name) = Scope::of_key(&record.key)?;
    let SealedRecord { version, changed_at, ref changed_by, .. } = *record;
    Some(SecretMeta { name, scope, version, changed_at, changed_by: changed_by.clone() })
}

/// What a seal is bound to, besides the data key.
fn parts(scope: &Scope, name: &str, version: u32) -> Vec<Vec<u8>> {
    let (team, kind, id) = match scope {
        Scope::Team(team) => (team.clone(), "team", team.clone()),
        // a deployment's team can change, its identity cannot
        Scope::Deployment(id) => (String::new(), "deployment", id.to_string()),
        Scope::Source => (String::new(), "source", String::new()),
    };
    let texts = [scope.purpose(), &team, kind, &id, name].map(|text| text.as_bytes().to_vec());
    texts.into_iter().chain([version.to_be_bytes().to_vec()]).collect()
}

/// The name as kept: hosts in lower case.
fn checked_name(scope: &Scope, name: &str) -> Result<String> {
    if let Scope::Source = scope {
        let lower = name.to_ascii_lowercase();
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:[]".contains(c);
        let ends = |c: char| c.is_ascii_alphanumeric() || c == '[' || c == ']';
        if lower.is_empty()
            || lower.len() > 260
            || !lower.chars().all(fine)
            || !lower.starts_with(ends)
            || !lower.ends_with(ends)
        {
            return Err(SecretError::BadHost(name.to_owned()));
        }
        return Ok(lower);
    }
    if let Scope::Team(team) = scope
        && (team.is_empty() || team.contains('/') || team.len() > NAME_MAX)
    {
        return Err(SecretError::BadName(format!("{team}/{name}")));
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty()
        || name.len() > NAME_MAX
        || !name.chars().all(fine)
        || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(SecretError::BadName(name.to_owned()));
    }
    Ok(name.to_owned())
}

/// Keys to try for a host, best first.
fn candidates(host: &str) -> Vec<String> {
    let mut found = vec![host.to_owned()];
    let bare = if host.starts_with('[') {
        host.split_inclusive(']').next().unwrap_or(host)
    } else if host.matches(':').count() == 1 {
        host.split(':').next().unwrap_or(host)
    } else {
        host
    };
    if bare != host {
        found.push(bare.to_owned());
    }
    let address = bare.starts_with('[') || bare.parse::<std::net::IpAddr>().is_ok();
    let mut rest = bare;
    while let Some((_, parent)) = rest.split_once('.').filter(|(_, parent)| !address && parent.contains('.')) {
        found.push(parent.to_owned());
        rest = parent;
    }
    found
}

#[cfg(test)]
impl Secrets {
    /// A vault whose records live in memory, for tests of other rooms.
    #[allow(clippy::unwrap_used)]
    pub(crate) fn in_memory(data_dir: &Path) -> Self {
        std::fs::create_dir_all(data_dir).unwrap();
        let audit = Audit::open(data_dir).unwrap();
        Self::open_with(data_dir, Box::new(tests::Map::default()), audit, None).unwrap()
    }
}

#[cfg(test)]
mod tests;
