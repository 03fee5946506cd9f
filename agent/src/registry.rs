//! Owns: the packages of this host's registry: their versions, what they are good for, how they are found, how much they
//! are used. May touch: the store (what is published here is state) and its catalogue, `<data>/catalog-index`.
//! Never: changes a document that was published, or says who may: callers do. Whoever may read the registry sees all of it;
//! a package's team says who may change it.
//! Tested by: unit tests here; `web` for the official API, `bench registry` for a hundred thousand packages.
//!
//! What is published here is in the state first, where it is on the disk before it is acknowledged; the catalogue has all
//! packages, those of other registries too; the index is made from the catalogue. What is behind after a crash catches up
//! when it is next asked. Nothing of it is open until somebody asks for packages, nor after nobody has for a while.

mod index;
pub mod mirror;
mod shelf;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value as Json;
use sigil_config::server_json;
use sigil_core::package::cursor::{Cursor, Place, Wanted};
use sigil_core::package::{Extras, MESSAGE_MAX, Origin, Package, Status, Version, digest, said};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use index::{Query, Sort};
use shelf::Shelf;
pub use shelf::{Activity, Used};

use crate::store::{Store, StoreError};

/// Items of a page where nobody says how many.
pub const PAGE: usize = 30;
/// Most items of a page.
pub const PAGE_MAX: usize = 100;
/// Longest text that is looked for, characters.
pub const TEXT_MAX: usize = 200;
/// Questions that are worked on at once; more wait.
const AT_ONCE: usize = 4;
/// Nobody asked for so long: files are closed, memory is given back.
const REST: Duration = Duration::from_secs(600);

/// Why the registry does not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No such package.
    #[error("no package '{0}'")]
    NotFound(String),
    /// The package has no such version.
    #[error("the package '{0}' has no version '{1}'")]
    NoVersion(String, String),
    /// A document that breaks the rules, with every flaw.
    #[error("the document is no server.json that can be published: {}", .0.join("; "))]
    Invalid(Vec<String>),
    /// The version is there already, with another document.
    #[error("version {1} of '{0}' is published already, and versions do not change")]
    Exists(String, String),
    /// The name is one of a mirrored registry.
    #[error("'{0}' is a package of the mirrored registry '{1}'")]
    Mirrored(String, String),
    /// Somebody else's.
    #[error("'{0}' belongs to another team")]
    Forbidden(String),
    /// It is so already.
    #[error("nothing changes: the status of '{0}' is {1} already")]
    Unchanged(String, Status),
    /// A question that makes no sense.
    #[error("{0}")]
    Bad(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The index, or a record of the catalogue.
    #[error("the registry cannot be read: {0}")]
    Broken(String),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

impl RegistryError {
    /// The code that scripts match on.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) | Self::NoVersion(..) => "NOT_FOUND",
            Self::Invalid(_) => "BAD_DOCUMENT",
            Self::Exists(..) => "VERSION_TAKEN",
            Self::Mirrored(..) | Self::Forbidden(_) => "FORBIDDEN",
            Self::Unchanged(..) => "UNCHANGED",
            Self::Bad(_) => "INVALID",
            Self::Store(StoreError::DiskFull) => "DISK_FULL",
            Self::Store(StoreError::Closed) | Self::Stopping => "STOPPING",
            Self::Store(_) | Self::Broken(_) => "INTERNAL",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NotFound(_) => "`sigil search` finds packages".into(),
            Self::NoVersion(name, _) => format!("`sigil package get {name}` shows its versions"),
            Self::Invalid(_) => "mend what is named and publish it again".into(),
            Self::Exists(..) => "give the document another version".into(),
            Self::Mirrored(..) => "publish it under a name of your own".into(),
            Self::Forbidden(_) => "ask a deployer of that team, or publish under another name".into(),
            Self::Unchanged(..) => "nothing needs to be done".into(),
            Self::Bad(_) => "look at the question again".into(),
            Self::Store(error) => error.hint().into(),
            Self::Broken(_) => "look at the agent's log and at the disk".into(),
            Self::Stopping => "try again when the agent is back".into(),
        }
    }
}

/// Result of a call to this room.
pub type Result<T> = std::result::Result<T, RegistryError>;

/// Something to be published.
#[derive(Debug, Clone, Default)]
pub struct New {
    /// The document.
    pub document: Json,
    /// What is known beside it; what the publisher says within the document fills in what is missing here.
    pub extras: Extras,
    /// Who publishes it.
    pub by: String,
    /// Whose it will be if the package is new, by the team's id.
    pub team: String,
}

/// Whether the caller may change what belongs to a team, by the team's id.
pub type May = Box<dyn Fn(&str) -> bool + Send>;

/// What was published.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The version.
    pub version: Version,
    /// Whether it was there before, with the same document.
    pub again: bool,
}

/// A package that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// It.
    pub package: Package,
    /// How much it is used.
    pub activity: Activity,
}

/// Packages that were found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Results {
    /// How many there are, those included that are not told.
    pub total: usize,
    /// The first of them.
    pub packages: Vec<Found>,
}

/// A version, and whether `latest` means it.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// It.
    pub version: Version,
    /// Whether `latest` means it.
    pub latest: bool,
}

/// A page of a list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// Its items.
    pub items: Vec<Item>,
    /// Where the next one begins; `None`: this was the last.
    pub next: Option<Cursor>,
}

/// What became of items of another registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Versions that are new here.
    pub new: u64,
    /// Versions that were here, and whose status or place changed.
    pub changed: u64,
    /// Versions that are here as they are there.
    pub known: u64,
    /// What was not taken, and why, a line each; the first ones.
    pub refused: Vec<String>,
    /// How many were not taken.
    pub refusals: u64,
}

/// The registry. Clones are one registry.
#[derive(Clone)]
pub struct Registry {
    shelf: Arc<Shelf>,
    turns: Arc<Semaphore>,
    store: Store,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registry")
    }
}

impl Registry {
    /// The registry of a data directory. Nothing is opened. Ends with `stop`.
    pub fn spawn(store: Store, data_dir: &Path, stop: CancellationToken) -> Self {
        let shelf = Arc::new(Shelf::new(store.clone(), data_dir));
        let tasks = TaskTracker::new();
        let registry =
            Self { shelf: shelf.clone(), turns: Arc::new(Semaphore::new(AT_ONCE)), store, tasks: tasks.clone() };
        tasks.spawn(async move {
            loop {
                let last = tokio::select! {
                    () = stop.cancelled() => true,
                    () = tokio::time::sleep(REST / 10) => false,
                };
                if last || shelf.is_idle(REST) {
                    let shelf = shelf.clone();
                    let rest = move || if last { shelf.close() } else { shelf.rest() };
                    if tokio::task::spawn_blocking(rest).await.is_err() {
                        tracing::error!("the registry could not be closed");
                    }
                }
                if last {
                    return;
                }
            }
        });
        tasks.close();
        registry
    }

    /// Whether everything was closed within `limit`, after the stop token was cancelled.
    pub async fn closed(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }

    /// Does what blocks where that is allowed.
    async fn work<T: Send + 'static>(&self, run: impl FnOnce(&Shelf) -> Result<T> + Send + 'static) -> Result<T> {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| RegistryError::Stopping)?;
        let shelf = self.shelf.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            run(&shelf)
        });
        done.await.map_err(|_| RegistryError::Stopping)?
    }

    /// Lines for `sigil info`: what was lost and made anew.
    pub fn alarms(&self) -> Vec<String> {
        self.shelf.alarms()
    }

    /// Publishes a version, where `may` allows it. The same document again changes nothing.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`], [`RegistryError::Exists`], [`RegistryError::Mirrored`], [`RegistryError::Forbidden`],
    /// and what the store says.
    pub async fn publish(&self, new: New, may: May) -> Result<Published> {
        let size = new.document.to_string().len();
        if size > server_json::DOCUMENT_MAX {
            let most = server_json::DOCUMENT_MAX >> 10;
            return Err(RegistryError::Invalid(vec![format!("it has {} KiB, {most} are the most", size >> 10)]));
        }
        let server = server_json::check(&new.document).map_err(RegistryError::Invalid)?;
        let name = server.name.clone();
        if let Some(mirror) = self
            .work({
                let name = name.clone();
                move |shelf| shelf.mirror_of(&name)
            })
            .await?
        {
            return Err(RegistryError::Mirrored(name, mirror));
        }
        let extras = new.extras.or(said(&server)).bounded();
        let key = (name.clone(), server.version.clone());
        let digest = digest(&new.document);
        let changed = self.store.update_packages(move |all| {
            let first = (name.clone(), String::new());
            let team = all.range(first..).next().filter(|((n, _), _)| *n == name).map(|(_, v)| v.team.clone());
            let team = team.unwrap_or(new.team);
            if !may(&team) {
                return Err(RegistryError::Forbidden(name));
            }
            if let Some(there) = all.get(&key) {
                return match there.digest == digest {
                    true => Ok((Vec::new(), Published { version: Version::clone(there), again: true })),
                    false => Err(RegistryError::Exists(key.0, key.1)),
                };
            }
            let now = Timestamp::now();
            let version = Version {
                server: new.document,
                digest,
                extras,
                origin: Origin::Own,
                status: Status::Active,
                message: String::new(),
                turns: Vec::new(),
                published_at: now,
                updated_at: now,
                published_by: new.by,
                team,
                upstream_latest: false,
            };
            Ok((vec![version.clone()], Published { version, again: false }))
        });
        let published = changed.await??;
        let version = published.version.clone();
        self.work(move |shelf| shelf.take_in(vec![version])).await?;
        Ok(published)
    }

    /// Takes in items of another registry, in the form of the official API (`server` and `_meta`), under the name that its
    /// mirror has. `settle`: they are found at once; the last of many does so for all.
    ///
    /// # Errors
    /// What the store says; what is wrong with an item is in the answer.
    pub async fn import(&self, mirror: &str, items: Vec<Json>, settle: bool) -> Result<Imported> {
        let mirror = mirror.to_owned();
        self.work(move |shelf| shelf.import(&mirror, &items, settle, Timestamp::now())).await
    }

    /// Gives one version another status, or (without `version`) all of them: all or none.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::NoVersion`], [`RegistryError::Unchanged`], [`RegistryError::Mirrored`],
    /// [`RegistryError::Forbidden`].
    pub async fn set_status(
        &self,
        name: &str,
        version: Option<&str>,
        status: Status,
        message: &str,
        by: &str,
        may: May,
    ) -> Result<Vec<Item>> {
        if message.chars().count() > MESSAGE_MAX || message.chars().any(char::is_control) {
            return Err(RegistryError::Bad(format!("a message has one line of at most {MESSAGE_MAX} characters")));
        }
        let (name, version) = (name.to_owned(), version.map(str::to_owned));
        let (message, by) = (message.to_owned(), by.to_owned());
        let of = name.clone();
        let mirror = self.work(move |shelf| shelf.mirror_of(&of)).await?;
        if let Some(mirror) = mirror {
            return Err(RegistryError::Mirrored(name, mirror));
        }
        let of = name.clone();
        let changed = self.store.update_packages(move |all| {
            let first = (of.clone(), String::new());
            let of_it: Vec<&Arc<Version>> =
                all.range(first..).take_while(|((n, _), _)| *n == of).map(|(_, v)| v).collect();
            let Some(team) = of_it.first().map(|v| v.team.clone()) else { return Err(RegistryError::NotFound(of)) };
            if !may(&team) {
                return Err(RegistryError::Forbidden(of));
            }
            let now = Timestamp::now();
            let mut turned = Vec::new();
            for old in of_it.into_iter().filter(|v| version.as_deref().is_none_or(|wanted| wanted == v.version())) {
                let mut new = Version::clone(old);
                new.turn(status, &message, &by, now);
                turned.push((new.updated_at == now && new.turns != old.turns, new));
            }
            if turned.is_empty() {
                return Err(RegistryError::NoVersion(of, version.unwrap_or_default()));
            }
            if turned.iter().all(|(changes, _)| !changes) {
                return Err(RegistryError::Unchanged(of, status));
            }
            let all: Vec<Version> = turned.iter().map(|(_, v)| v.clone()).collect();
            Ok((turned.into_iter().filter(|(changes, _)| *changes).map(|(_, v)| v).collect(), all))
        });
        let turned = changed.await??;
        let again = turned.clone();
        let latest = self
            .work(move |shelf| {
                shelf.take_in(again)?;
                Ok(shelf.package(&name)?.map(|p| p.latest).unwrap_or_default())
            })
            .await?;
        Ok(turned.into_iter().map(|version| Item { latest: version.version() == latest, version }).collect())
    }

    /// Looks for packages.
    ///
    /// # Errors
    /// [`RegistryError::Bad`] for a text that is too long; [`RegistryError::Broken`].
    pub async fn search(&self, query: Query) -> Result<Results> {
        if query.text.chars().count() > TEXT_MAX {
            return Err(RegistryError::Bad(format!("a text of more than {TEXT_MAX} characters finds nothing")));
        }
        let limit = query.limit.clamp(1, PAGE_MAX);
        self.work(move |shelf| shelf.search(&Query { limit, ..query })).await
    }

    /// A page of versions; `after` is the last item of the page before it.
    ///
    /// # Errors
    /// [`RegistryError::Bad`] for a text that is too long; [`RegistryError::Broken`].
    pub async fn list(&self, wanted: Wanted, after: Option<Place>, limit: usize) -> Result<Page> {
        if wanted.search.chars().count() > TEXT_MAX {
            return Err(RegistryError::Bad(format!("a text of more than {TEXT_MAX} characters finds nothing")));
        }
        let limit = limit.clamp(1, PAGE_MAX);
        self.work(move |shelf| shelf.list(&wanted, after.as_ref(), limit)).await
    }

    /// All versions of a package, the newest first.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], also where all are deleted and nobody asked for those.
    pub async fn versions(&self, name: &str, deleted: bool) -> Result<Vec<Item>> {
        let name = name.to_owned();
        self.work(move |shelf| {
            let mut all = shelf.versions(&name)?;
            all.retain(|item| deleted || item.version.status != Status::Deleted);
            all.sort_by_key(|item| std::cmp::Reverse(item.version.published_at));
            if all.is_empty() { Err(RegistryError::NotFound(name)) } else { Ok(all) }
        })
        .await
    }

    /// One version, or `latest`.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::NoVersion`], also for a deleted one where nobody asked for those.
    pub async fn version(&self, name: &str, version: &str, deleted: bool) -> Result<Item> {
        let (name, version) = (name.to_owned(), version.to_owned());
        self.work(move |shelf| {
            let Some(package) = shelf.package(&name)? else { return Err(RegistryError::NotFound(name)) };
            let wanted = if version == "latest" { &package.latest } else { &version };
            let found = shelf.version(&name, wanted)?.filter(|v| deleted || v.status != Status::Deleted);
            let Some(found) = found else { return Err(RegistryError::NoVersion(name, version)) };
            Ok(Item { latest: found.version() == package.latest, version: found })
        })
        .await
    }

    /// A package and how much it is used.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn package(&self, name: &str) -> Result<Found> {
        let name = name.to_owned();
        self.work(move |shelf| {
            let Some(package) = shelf.package(&name)? else { return Err(RegistryError::NotFound(name)) };
            Ok(Found { activity: shelf.activity(&package.name)?, package })
        })
        .await
    }

    /// Notes that a package was used.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], and what the store says.
    pub async fn note_use(&self, name: &str, used: Used) -> Result<()> {
        let name = name.to_owned();
        self.work(move |shelf| shelf.note_use(&name, used, Timestamp::now())).await
    }

    /// Closes files and gives memory back, until somebody asks again. It does so by itself when nobody has for a while.
    ///
    /// # Errors
    /// [`RegistryError::Stopping`].
    pub async fn rest(&self) -> Result<()> {
        self.work(|shelf| {
            shelf.rest();
            Ok(())
        })
        .await
    }

    /// Bytes on the disk: of the catalogue and of the index.
    ///
    /// # Errors
    /// [`RegistryError::Stopping`].
    pub async fn sizes(&self) -> Result<(u64, u64)> {
        self.work(|shelf| Ok(shelf.sizes())).await
    }
}
