//! Accounts at git hosts, and calls of their APIs: GitHub (also Enterprise, also as an App), GitLab, Gitea and Forgejo.
//!
//! A token goes to its account's host and nowhere else: redirects and pages that lead away are refused. It is sealed like any
//! secret, and each value that leaves the vault, or is minted by an App, is masked in whatever the agent writes.

mod call;
mod hub;
mod token;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use lru::LruCache;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sigil_config::agent::AgentConfig;
use sigil_core::forge::{Account, BadAccount, account_for};
use sigil_core::model::Name;
use tokio::sync::watch;

use super::SourceError;
use crate::secrets::{Credential, Scope, SecretError, Secrets};
pub use hub::{Checked, ManifestFile, Repositories, RepositoryInfo, RequestState};

/// Accounts of an agent.
const ACCOUNTS_MAX: usize = 64;
/// Answers that are kept to ask whether they have changed.
const REMEMBERED: usize = 512;

/// Why a git host's API gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForgeError {
    /// No such account.
    #[error("there is no account '{0}'")]
    NoAccount(String),
    /// No account fits a repository.
    #[error("no account is for {0}")]
    NoneFits(String),
    /// One of that name is there.
    #[error("there is an account '{0}' already")]
    Taken(String),
    /// Its parts do not fit together.
    #[error(transparent)]
    Bad(#[from] BadAccount),
    /// Too many.
    #[error("this agent has {ACCOUNTS_MAX} accounts already")]
    TooMany,
    /// Not a private key that an App has.
    #[error("the key of '{0}' cannot be used: {1}")]
    Key(String, &'static str),
    /// The host does not know the token, or not any more.
    #[error("{host} does not let '{account}' in: {said}")]
    Refused {
        /// The host.
        host: String,
        /// The account.
        account: String,
        /// Its words.
        said: String,
    },
    /// The token is good, and not for this.
    #[error("{host} does not allow '{account}' to do that: {said}")]
    Forbidden {
        /// The host.
        host: String,
        /// The account.
        account: String,
        /// Its words.
        said: String,
    },
    /// Nothing there, or nothing that this account may see: hosts do not tell which.
    #[error("{0} is not there, or '{1}' may not see it")]
    NotFound(String, String),
    /// It was asked too often.
    #[error("{host} takes no more requests of '{account}' until {until}")]
    Limited {
        /// The host.
        host: String,
        /// The account.
        account: String,
        /// Until when.
        until: Timestamp,
    },
    /// It cannot be reached, or is in trouble itself.
    #[error("{host} cannot be used: {why}")]
    Unreachable {
        /// The host.
        host: String,
        /// Why.
        why: String,
    },
    /// It answers what it does not document.
    #[error("{host} answers what is not understood: {why}")]
    Strange {
        /// The host.
        host: String,
        /// What.
        why: String,
    },
    /// No HTTPS client.
    #[error("{0}")]
    Client(String, String),
    /// The vault, in its words, with its hint.
    #[error("{0}")]
    Vault(String, String),
}

impl From<SecretError> for ForgeError {
    fn from(error: SecretError) -> Self {
        Self::Vault(error.to_string(), error.hint())
    }
}

impl ForgeError {
    /// What to do.
    pub fn hint(&self) -> String {
        match self {
            Self::NoAccount(_) => "`sigil git ls` lists them".into(),
            Self::NoneFits(_) => "add one: sigil git add NAME --kind github --token-stdin".into(),
            Self::Taken(name) => format!("remove it first (sigil git rm {name}), or choose another name"),
            Self::Bad(bad) => bad.hint().into(),
            Self::TooMany => "remove some that are not used".into(),
            Self::Key(..) => "give --key-file the .pem file that GitHub made for the App, as it is".into(),
            Self::Refused { account, .. } => {
                format!("the token is wrong, or ran out: make a new one, then sigil git rm {account} and add it again")
            }
            Self::Forbidden { .. } => {
                "give the token or App the right it lacks: contents and pull requests to read, commit statuses to write"
                    .into()
            }
            Self::NotFound(..) => "check the name, and that the account may see it: sigil git repos".into(),
            Self::Limited { .. } => "wait, or use another account; an App may ask more often than a token".into(),
            Self::Unreachable { .. } => {
                "check the network; a proxy is set in [outbound] proxy, an authority of your own in [builder] extra_ca"
                    .into()
            }
            Self::Strange { .. } => "is --kind right for this host, and --url its address?".into(),
            Self::Client(_, hint) | Self::Vault(_, hint) => hint.clone(),
        }
    }

    /// Whether the same may go well later.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Limited { .. } | Self::Unreachable { .. })
    }
}

/// Result of a call of this module.
pub type Result<T> = std::result::Result<T, ForgeError>;

/// An account, with when it was added and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Itself.
    pub account: Account,
    /// Who added it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// An account with what it shows its host.
struct Held {
    account: Account,
    /// A token, or an App's private key.
    value: SecretString,
    version: u32,
}

/// A token that an App's installation was given.
struct Minted {
    /// Of which value of the account's key.
    version: u32,
    token: SecretString,
    until: Timestamp,
}

/// An answer that may be asked for again.
struct Remembered {
    etag: String,
    body: bytes::Bytes,
    link: Option<String>,
}

#[derive(Default)]
struct Learnt {
    minted: HashMap<String, Minted>,
    /// Accounts whose host asked for rest.
    limited: HashMap<String, Timestamp>,
    /// Account, its version, and what for: written down once.
    recorded: BTreeSet<(String, u32, &'static str)>,
}

/// The last client, and the configuration that it was made by.
type Client = (Arc<AgentConfig>, reqwest::Client);

/// Every account, and how their hosts are called. Clones share what was learnt.
#[derive(Clone)]
pub struct Forges {
    config: watch::Receiver<Arc<AgentConfig>>,
    secrets: Secrets,
    learnt: Arc<Mutex<Learnt>>,
    answers: Arc<Mutex<LruCache<String, Remembered>>>,
    client: Arc<Mutex<Option<Client>>>,
    /// One token is minted at a time.
    minting: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Forges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Forges")
    }
}

/// What is kept beside a token, in the same seal.
#[derive(Serialize, Deserialize)]
struct Kept {
    account: Account,
}

impl Forges {
    pub(super) fn new(config: watch::Receiver<Arc<AgentConfig>>, secrets: Secrets) -> Self {
        let size = std::num::NonZeroUsize::new(REMEMBERED).unwrap_or(std::num::NonZeroUsize::MIN);
        Self {
            config,
            secrets,
            learnt: Arc::default(),
            answers: Arc::new(Mutex::new(LruCache::new(size))),
            client: Arc::default(),
            minting: Arc::default(),
        }
    }

    fn learnt(&self) -> MutexGuard<'_, Learnt> {
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every account, by name. One that does not open any more is told in the log and left out.
    pub fn accounts(&self) -> Vec<Listed> {
        let kept = self.secrets.list().into_iter().filter(|meta| meta.scope == Scope::Git);
        let listed = kept.filter_map(|meta| match self.held(&meta.name) {
            Ok(held) => Some(Listed { account: held.account, by: meta.changed_by, at: meta.changed_at }),
            Err(error) => {
                tracing::warn!(account = meta.name, %error, "an account at a git host cannot be used");
                None
            }
        });
        listed.collect()
    }

    fn held(&self, name: &str) -> Result<Held> {
        let missing = || ForgeError::NoAccount(name.to_owned());
        let name: Name = name.parse().map_err(|_| missing())?;
        let (kept, value, version) = self.secrets.reveal(&Scope::Git, name.as_str())?.ok_or_else(missing)?;
        let kept: Kept = serde_json::from_str(&kept).map_err(|e| {
            ForgeError::Vault(format!("the account '{name}': {e}"), "remove it, and add it again".into())
        })?;
        Ok(Held { account: kept.account, value, version })
    }

    /// Keeps an account with its token, or with its App's private key (PEM).
    ///
    /// # Errors
    /// [`ForgeError::Taken`], [`ForgeError::Key`], [`ForgeError::TooMany`], the vault's.
    pub async fn add(&self, account: Account, value: SecretString, who: &str) -> Result<Listed> {
        let there = self.accounts();
        if there.iter().any(|listed| listed.account.name == account.name) {
            return Err(ForgeError::Taken(account.name.to_string()));
        }
        if there.len() >= ACCOUNTS_MAX {
            return Err(ForgeError::TooMany);
        }
        token::check(&account, &value)?;
        let kept = serde_json::to_string(&Kept { account: account.clone() })
            .map_err(|e| ForgeError::Vault(e.to_string(), String::new()))?;
        let meta = self.secrets.set(&Scope::Git, account.name.as_str(), value, &kept, who).await?;
        Ok(Listed { account, by: meta.changed_by, at: meta.changed_at })
    }

    /// Forgets one; its tokens are used no more.
    ///
    /// # Errors
    /// [`ForgeError::NoAccount`], the vault's.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let missing = || ForgeError::NoAccount(name.to_owned());
        let known: Name = name.parse().map_err(|_| missing())?;
        if !self.secrets.remove(&Scope::Git, known.as_str()).await? {
            return Err(missing());
        }
        let mut learnt = self.learnt();
        learnt.minted.remove(name);
        learnt.limited.remove(name);
        drop(learnt);
        // what it was told is another's no more
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    /// The account that a repository's address gets its token from.
    pub fn for_repository(&self, url: &str) -> Option<Account> {
        let accounts: Vec<Account> = self.accounts().into_iter().map(|listed| listed.account).collect();
        account_for(&accounts, url).cloned()
    }

    /// A login for fetching a repository, when an account fits it. That it is handed out is on record when this returns.
    ///
    /// # Errors
    /// As a call of the host's API: an App has to ask for its token.
    pub async fn login(&self, url: &str) -> Result<Option<Credential>> {
        let Some(account) = self.for_repository(url) else { return Ok(None) };
        let held = self.held(account.name.as_str())?;
        let password = self.token(&held).await?;
        self.secrets.uses_account(account.name.as_str(), held.version, "fetch").await?;
        let host = account.url.split_once("://").map_or(account.url.as_str(), |(_, host)| host).to_owned();
        Ok(Some(Credential { host, username: account.kind.login().to_owned(), password, version: held.version }))
    }

    /// A token that is good for a while: the account's own, or one that its App's installation is given.
    async fn token(&self, held: &Held) -> Result<SecretString> {
        let Some(app) = held.account.app else { return Ok(held.value.clone()) };
        let name = held.account.name.as_str();
        let known = || {
            let learnt = self.learnt();
            let minted = learnt.minted.get(name)?;
            let good = minted.version == held.version && Timestamp::now() + token::EARLY < minted.until;
            good.then(|| minted.token.clone())
        };
        if let Some(token) = known() {
            return Ok(token);
        }
        let _one = self.minting.lock().await;
        if let Some(token) = known() {
            return Ok(token);
        }
        let jwt = token::jwt(&held.account, app, &held.value, Timestamp::now())?;
        let (token, until) = self.mint(held, app, &jwt).await?;
        self.secrets.mask(token.clone());
        let minted = Minted { version: held.version, token: token.clone(), until };
        self.learnt().minted.insert(name.to_owned(), minted);
        Ok(token)
    }

    /// What an installation was given is good no more.
    fn forget_token(&self, name: &str) {
        self.learnt().minted.remove(name);
    }

    /// Writes down, once for each of its values and purposes, that a token is used.
    async fn recorded(&self, held: &Held, what_for: &'static str) -> Result<()> {
        let name = held.account.name.as_str();
        let use_ = (name.to_owned(), held.version, what_for);
        if self.learnt().recorded.contains(&use_) {
            return Ok(());
        }
        self.secrets.uses_account(name, held.version, what_for).await?;
        self.learnt().recorded.insert(use_);
        Ok(())
    }

    fn client(&self) -> Result<reqwest::Client> {
        let config = self.config.borrow().clone();
        let mut kept = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = kept.as_ref().filter(|(of, _)| Arc::ptr_eq(of, &config)) {
            return Ok(client.clone());
        }
        let client = super::straight_client(&config)
            .map_err(|e: SourceError| ForgeError::Client(e.to_string(), e.hint().to_owned()))?;
        *kept = Some((config, client.clone()));
        Ok(client)
    }
}

/// Longest time of one request.
const CALL: Duration = Duration::from_secs(20);

#[cfg(test)]
pub(crate) mod double;
#[cfg(test)]
mod tests;
