//! Owns: secret plaintext and the keyring.
//! May touch: the store's sealed records, `<data>/keyring`, the key file, the kernel's keyring, a terminal (for a passphrase).
//! Never: logs a value, writes one anywhere in clear, or hands one out that the audit log does not tell of.
//! Tested by: unit tests, kills in `secrets/tests_kill.rs`, a canary on a real engine in `tests/tests/canary.rs`.

mod files;
mod key;
mod keyring;
mod master;
mod prompt;
mod redact;
mod rotate;
mod scope;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use sigil_config::agent::SecretsConfig;
use sigil_config::manifest::SecretKind;
use sigil_core::audit::Record;
use sigil_core::follow::Previewed;
use sigil_core::model::{Deployment, DeploymentId, Inject, ReleaseSpec, SecretUse};
use zeroize::Zeroizing;

use crate::audit::{Audit, AuditError, by_agent};
use crate::store::{SealedRecord, Store, StoreError};
pub use keyring::DataKeyInfo;
use keyring::{Keyring, With};
use master::Given;
pub use master::{Trouble, ask_new_passphrase};
pub use redact::Redactor;
pub use rotate::{KeyringInfo, Resealed};
pub use scope::Scope;
use scope::{candidates, checked_name, parts};

/// Why a secret could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The keyring's files: missing, readable by others, or not openable with this key.
    #[error("keyring: {0}")]
    Keyring(#[from] Trouble),
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
    /// Not what those who use it ask for: name, what it has to be, who asks.
    #[error("{}", mistyped(.0))]
    Mistyped(Vec<(String, SecretKind, String)>),
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
            Self::Keyring(trouble) => trouble.hint().into(),
            Self::Store(_) => "see the agent's log".into(),
            Self::Broken(name) => {
                format!("set '{name}' again, or restore the data directory and the keyring from one backup")
            }
            Self::BadName(_) => "letters, digits and '_', not beginning with a digit, at most 128: API_KEY".into(),
            Self::BadHost(_) => "write the host alone, with a port if it is not the usual one: git.example.org".into(),
            Self::BadValue(..) => "a value is 1 byte to 64 KiB of text".into(),
            Self::Mistyped(_) => "look at `type` in the manifest's `secrets`; nothing was changed".into(),
            Self::Missing(names) => match names.first() {
                Some(name) => format!("set each one: sigil secret set {name}"),
                None => "set them with sigil secret set".into(),
            },
            Self::Audit(error) => error.hint().into(),
        }
    }
}

fn mistyped(flaws: &[(String, SecretKind, String)]) -> String {
    let one = |(name, kind, by): &(String, SecretKind, String)| {
        format!("the value of {name} is not {} ({by} asks for one)", kind.words())
    };
    flaws.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Result of a call to this room.
pub type Result<T> = std::result::Result<T, SecretError>;

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

/// Values masked after they were replaced or removed, or that are not kept at all.
const FORMER_MAX: usize = 256;
/// Longest value, in bytes.
const VALUE_MAX: usize = 64 << 10;

/// Where sealed records are kept: the store, or a map in tests.
#[async_trait]
trait Records: Send + Sync {
    /// All of them, or none.
    async fn put(&self, records: Vec<SealedRecord>) -> std::result::Result<(), StoreError>;
    fn get(&self, key: &str) -> Option<Arc<SealedRecord>>;
    fn all(&self, prefix: &str) -> Vec<Arc<SealedRecord>>;
    async fn remove(&self, key: &str) -> std::result::Result<bool, StoreError>;
    /// Writes down what a lost store is restored from.
    async fn back_up(&self) -> std::result::Result<(), StoreError>;
}

#[async_trait]
impl Records for Store {
    async fn put(&self, records: Vec<SealedRecord>) -> std::result::Result<(), StoreError> {
        self.put_sealed_all(records).await
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
    async fn back_up(&self) -> std::result::Result<(), StoreError> {
        self.export().await.map(drop)
    }
}

struct Inner {
    records: Box<dyn Records>,
    keyring: Mutex<Keyring>,
    /// One change at a time: a version is read, raised and written as one step.
    changing: tokio::sync::Mutex<()>,
    /// Something is sealed with a former data key.
    stale: tokio::sync::Notify,
    redactor: RwLock<Option<Redactor>>,
    audit: Audit,
    /// Values that were replaced or removed: servers that were not restarted since still have them, and may print them.
    former: Mutex<VecDeque<SecretString>>,
    /// Counts changes of values.
    generation: AtomicU64,
    /// What the gateway was given since the start: deployment, key, version.
    given: Mutex<BTreeSet<(DeploymentId, String, u32)>>,
}

/// Where a deployment's secrets are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    /// It; `None`: it is not there yet.
    own: Option<DeploymentId>,
    /// Best first.
    scopes: Vec<Scope>,
}

impl Whose {
    /// A deployment's own, then its team's. A preview finds those of the deployment that it is one of before the team's; one of
    /// a fork, whose code is a stranger's, finds what was set for itself and nothing else.
    pub fn new(own: Option<DeploymentId>, team: &str, preview: Option<&Previewed>) -> Self {
        let mut scopes: Vec<Scope> = own.map(Scope::Deployment).into_iter().collect();
        if !preview.is_some_and(|preview| preview.fork) {
            scopes.extend(preview.map(|preview| Scope::Deployment(preview.of)));
            scopes.push(Scope::Team(team.to_owned()));
        }
        Self { own, scopes }
    }

    /// The places, best first.
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// Those of a deployment that is there.
    pub fn of(deployment: &Deployment) -> Self {
        Self::new(Some(deployment.id), &deployment.team, deployment.preview.as_deref())
    }
}

/// A secret that a release asks for.
struct Found {
    inject: Inject,
    value: SecretString,
    key: String,
    version: u32,
}

/// What one caller has of its own.
#[derive(Debug)]
pub struct Own {
    /// Where each goes, and what it is.
    pub values: Vec<(Inject, SecretString)>,
    /// Why that is not enough.
    pub lacks: Option<SecretError>,
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
    /// Opens the keyring of a data directory, or makes it. The key that wraps it comes from where `config` says; with `ask`
    /// a passphrase may be asked for at the terminal.
    ///
    /// # Errors
    /// [`SecretError::Keyring`] when a file belongs to another user, can be read by others, is a link, or does not
    /// open with the key; nothing is touched then. A missing keyring beside existing records is no error: each record then
    /// answers [`SecretError::Broken`], so that it can be set again.
    pub fn open(data_dir: &Path, config: &SecretsConfig, store: Store, audit: Audit, ask: bool) -> Result<Self> {
        Self::open_with(data_dir, Box::new(store), audit, &With::Config(config), &Given::here(ask))
    }

    /// The same whatever `config` says of where the master key comes from: the keyring itself says it. For
    /// [`Secrets::rewrap`].
    ///
    /// # Errors
    /// As [`Secrets::open`].
    pub fn open_as_it_is(data_dir: &Path, config: &SecretsConfig, store: Store, audit: Audit) -> Result<Self> {
        Self::open_with(data_dir, Box::new(store), audit, &With::Itself(config), &Given::here(true))
    }

    fn open_with(
        data_dir: &Path,
        records: Box<dyn Records>,
        audit: Audit,
        with: &With<'_>,
        given: &Given,
    ) -> Result<Self> {
        let (keyring, made) = Keyring::open(data_dir, with, given)?;
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
            stale: tokio::sync::Notify::new(),
            redactor: RwLock::new(None),
            audit,
            former: Mutex::default(),
            generation: AtomicU64::new(0),
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
        let mut kept = self.set_all(scope, vec![(name.to_owned(), value)], username, who).await?;
        kept.pop().ok_or_else(|| SecretError::BadName(name.to_owned()))
    }

    /// Keeps several values of one scope: all of them, or none.
    ///
    /// # Errors
    /// As [`Secrets::set`].
    pub async fn set_all(
        &self,
        scope: &Scope,
        values: Vec<(String, SecretString)>,
        username: &str,
        who: &str,
    ) -> Result<Vec<SecretMeta>> {
        let checked = Self::checked(scope, values, username)?;
        let _one = self.inner.changing.lock().await;
        let newest = lock(&self.inner.keyring).newest();
        let (mut records, mut floors, mut metas) = (Vec::new(), Vec::new(), Vec::new());
        for (name, value) in &checked {
            let key = scope.key(name);
            // continues after a removal, so that a removed record cannot come back as the current one
            let known = self.inner.records.get(&key).map_or(0, |r| r.version);
            let version = known.max(lock(&self.inner.keyring).floor(&key)) + 1;
            let text = value.expose_secret();
            let mut plain = Zeroizing::new(Vec::with_capacity(4 + username.len() + text.len()));
            plain.extend_from_slice(&u32::try_from(username.len()).unwrap_or(u32::MAX).to_be_bytes());
            plain.extend_from_slice(username.as_bytes());
            plain.extend_from_slice(text.as_bytes());
            let sealed = lock(&self.inner.keyring).seal(&parts(scope, name, version), &plain)?;
            let (changed_at, changed_by) = (Timestamp::now(), who.to_owned());
            let record = SealedRecord { key: key.clone(), version, changed_at, changed_by, sealed };
            metas.push(meta(&record).ok_or_else(|| SecretError::BadName(name.clone()))?);
            records.push(record);
            floors.push((key, version));
        }
        for name in checked.keys() {
            self.keep_masked(scope, name);
        }
        // the records first: a floor above every record there is would make the old value unreadable
        self.inner.records.put(records).await?;
        lock(&self.inner.keyring).raise_floors(&floors)?;
        self.refresh_redactor();
        if lock(&self.inner.keyring).newest() != newest {
            // a data key that was used up has been replaced
            self.inner.stale.notify_one();
        }
        Ok(metas)
    }

    /// Names as they are kept, and values that can be kept.
    ///
    /// # Errors
    /// As [`Secrets::set`].
    pub fn checked(
        scope: &Scope,
        values: Vec<(String, SecretString)>,
        username: &str,
    ) -> Result<BTreeMap<String, SecretString>> {
        let mut checked = BTreeMap::new();
        for (name, value) in values {
            let name = checked_name(scope, &name)?;
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
            checked.insert(name, value);
        }
        Ok(checked)
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
        self.keep_masked(scope, &name);
        let removed = self.inner.records.remove(&key).await?;
        if let Some(version) = version {
            lock(&self.inner.keyring).raise_floors(&[(key, version + 1)])?;
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
    pub fn missing(&self, whose: &Whose, uses: &[SecretUse]) -> Vec<String> {
        let there = |scope: &Scope, name: &str| self.inner.records.get(&format!("{}{name}", scope.prefix())).is_some();
        // each caller's own is looked for at the call
        let required = uses.iter().filter(|s| s.required && !s.per_user);
        let nowhere = required.filter(|s| !whose.scopes.iter().any(|scope| there(scope, &s.name)));
        nowhere.map(|s| s.name.clone()).collect()
    }

    /// Checks the values of a release's secrets against what it says that they are, `by` being who asks.
    ///
    /// # Errors
    /// [`SecretError::Mistyped`] names all; [`SecretError::Broken`].
    pub fn check_types(&self, whose: &Whose, uses: &[SecretUse], by: &str) -> Result<()> {
        let mut flaws = Vec::new();
        for secret in uses.iter().filter(|s| s.kind != SecretKind::String && !s.per_user) {
            for scope in &whose.scopes {
                if let Some((_, value, _)) = self.open_record(scope, &secret.name)? {
                    if !secret.kind.fits(value.expose_secret()) {
                        flaws.push((secret.name.clone(), secret.kind, by.to_owned()));
                    }
                    break;
                }
            }
        }
        if flaws.is_empty() { Ok(()) } else { Err(SecretError::Mistyped(flaws)) }
    }

    /// A caller's own values for a release that asks for them, and why these are not enough for a call: some are missing, or
    /// not what the release says that they are. Recorded once for each deployment, user and version.
    ///
    /// # Errors
    /// [`SecretError::Broken`], [`SecretError::Audit`].
    pub fn own(&self, id: DeploymentId, user: &str, uses: &[SecretUse]) -> Result<Own> {
        let (mut values, mut missing, mut flaws) = (Vec::new(), Vec::new(), Vec::new());
        let scope = Scope::User(user.to_owned());
        for secret in uses.iter().filter(|s| s.per_user) {
            match self.open_record(&scope, &secret.name)? {
                Some((_, value, _)) if !secret.kind.fits(value.expose_secret()) => {
                    flaws.push((secret.name.clone(), secret.kind, "this deployment".to_owned()));
                }
                Some((_, value, version)) => {
                    self.given(id, &scope.key(&secret.name), version)?;
                    values.push((secret.inject.clone(), value));
                }
                None if secret.required => missing.push(secret.name.clone()),
                None => {}
            }
        }
        let lacks = match (missing.is_empty(), flaws.is_empty()) {
            (false, _) => Some(SecretError::Missing(missing)),
            (true, false) => Some(SecretError::Mistyped(flaws)),
            (true, true) => None,
        };
        Ok(Own { values, lacks })
    }

    /// Changes with every value that is set or removed.
    pub fn generation(&self) -> u64 {
        self.inner.generation.load(Ordering::Acquire)
    }

    fn given(&self, id: DeploymentId, key: &str, version: u32) -> Result<()> {
        let given = (id, key.to_owned(), version);
        if lock(&self.inner.given).contains(&given) {
            return Ok(());
        }
        // the reconciler, or a call, must not stand while the disk is slow
        self.inner.audit.note(read(key, version, "gateway").after("deployment id", id))?;
        lock(&self.inner.given).insert(given);
        Ok(())
    }

    /// A value that somebody is to see, with its version and login name. That it is seen is for the caller to record.
    ///
    /// # Errors
    /// [`SecretError::Broken`].
    pub fn reveal(&self, scope: &Scope, name: &str) -> Result<Option<(String, SecretString, u32)>> {
        self.open_record(scope, &checked_name(scope, name)?)
    }

    /// Environment secrets of a release for one of its instances: (variable, value), looked up in the deployment, then its
    /// team. That they were handed out is on record when this returns.
    ///
    /// # Errors
    /// [`SecretError::Missing`] names every required one that is nowhere; [`SecretError::Broken`], [`SecretError::Audit`].
    pub async fn hand_over(
        &self,
        whose: &Whose,
        spec: &ReleaseSpec,
        to: &[(&str, String)],
    ) -> Result<Vec<(String, SecretString)>> {
        let (values, records) = self.environment(whose, spec, to)?;
        if !records.is_empty() {
            self.inner.audit.record(records).await?;
        }
        Ok(values)
    }

    #[allow(clippy::type_complexity)] // two lists of the same things
    fn environment(
        &self,
        whose: &Whose,
        spec: &ReleaseSpec,
        to: &[(&str, String)],
    ) -> Result<(Vec<(String, SecretString)>, Vec<Record>)> {
        let (mut values, mut records) = (Vec::new(), Vec::new());
        let id = whose.own.map(|id| id.to_string()).unwrap_or_default();
        for found in self.of_release(whose, spec)? {
            if let Inject::Environment(variable) = found.inject {
                let record = read(&found.key, found.version, "environment").after("deployment id", &id);
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
    pub fn injected(&self, whose: &Whose, spec: &ReleaseSpec) -> Result<Vec<(Inject, SecretString)>> {
        let mut found = self.of_release(whose, spec)?;
        found.retain(|f| !matches!(f.inject, Inject::Environment(_)));
        if let Some(id) = whose.own {
            found.iter().try_for_each(|secret| self.given(id, &secret.key, secret.version))?;
        }
        Ok(found.into_iter().map(|f| (f.inject, f.value)).collect())
    }

    fn of_release(&self, whose: &Whose, spec: &ReleaseSpec) -> Result<Vec<Found>> {
        let missing = self.missing(whose, &spec.secrets);
        if !missing.is_empty() {
            return Err(SecretError::Missing(missing));
        }
        let mut found = Vec::new();
        for secret in spec.secrets.iter().filter(|s| !s.per_user) {
            for scope in &whose.scopes {
                if let Some((_, value, version)) = self.open_record(scope, &secret.name)? {
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

    /// Records that an account at a git host is about to be used; on the disk when this returns.
    ///
    /// # Errors
    /// [`SecretError::Audit`]: it must not be used.
    pub async fn uses_account(&self, name: &str, version: u32, what_for: &str) -> Result<()> {
        Ok(self.inner.audit.record(vec![read(&Scope::Git.key(name), version, what_for)]).await?)
    }

    /// Masks a value that is not kept: one that a kept one was exchanged for.
    pub fn mask(&self, value: SecretString) {
        {
            let mut former = lock(&self.inner.former);
            former.push_back(value);
            if former.len() > FORMER_MAX {
                former.pop_front();
            }
        }
        self.refresh_redactor();
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

    /// Goes on masking a value that is about to go.
    fn keep_masked(&self, scope: &Scope, name: &str) {
        let Ok(Some((_, value, _))) = self.open_record(scope, name) else { return };
        let mut former = lock(&self.inner.former);
        former.push_back(value);
        if former.len() > FORMER_MAX {
            former.pop_front();
        }
    }

    fn refresh_redactor(&self) {
        self.inner.generation.fetch_add(1, Ordering::Release);
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
        redactor.replace(values.values().chain(lock(&self.inner.former).iter()));
    }

    /// Username, value and version.
    fn open_record(&self, scope: &Scope, name: &str) -> Result<Option<(String, SecretString, u32)>> {
        let key = scope.key(name);
        let Some(record) = self.inner.records.get(&key) else { return Ok(None) };
        let broken = || SecretError::Broken(key.clone());
        let plain = open_sealed(&lock(&self.inner.keyring), &key, scope, name, &record).ok_or_else(broken)?;
        let (length, rest) = plain.split_first_chunk::<4>().ok_or_else(broken)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| broken())?;
        let (username, value) = rest.split_at_checked(length).ok_or_else(broken)?;
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| broken());
        Ok(Some((text(username)?, SecretString::from(text(value)?), record.version)))
    }
}

/// What a record holds; `None` when it is another one's, or an older one than was acknowledged, or was changed.
fn open_sealed(
    keyring: &Keyring,
    key: &str,
    scope: &Scope,
    name: &str,
    record: &SealedRecord,
) -> Option<Zeroizing<Vec<u8>>> {
    if record.key != key || record.version < keyring.floor(key) {
        return None;
    }
    keyring.open_sealed(&parts(scope, name, record.version), &record.sealed)
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

#[cfg(test)]
impl Secrets {
    /// A vault whose records live in memory, for tests of other rooms.
    #[allow(clippy::unwrap_used)]
    pub(crate) fn in_memory(data_dir: &Path) -> Self {
        std::fs::create_dir_all(data_dir).unwrap();
        let audit = Audit::open(data_dir).unwrap();
        let (config, given) = (SecretsConfig::default(), Given::default());
        Self::open_with(data_dir, Box::new(tests::Map::default()), audit, &With::Config(&config), &given).unwrap()
    }
}

#[cfg(test)]
mod tests;
