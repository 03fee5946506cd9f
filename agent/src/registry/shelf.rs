//! Packages where they are kept: the catalogue, and the index made from it. All of this blocks.
//!
//! Keys of the catalogue: `p/<name>` the package, `v/<name> <version>` a version, `u/<when>/<name> <version>` the order in
//! which versions changed, `o/<name> <version>` those that are ours, `a/<name>` how much a package is used, `d/<name>` those
//! that the index has not seen yet. A name has no space in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sigil_config::server_json::{self, Server};
use sigil_core::package::cursor::{Cursor, Place, Wanted};
use sigil_core::package::rank::{Trend, tier};
use sigil_core::package::{MESSAGE_MAX, OFFICIAL, Origin, Package, Status, Version, digest, said, summary};

use super::index::{Entry, Index, Named, Query};
use super::{Found, Imported, Item, Page, RegistryError, Result, Results};
use crate::store::{Catalog, Store};

/// Records read at once while all are read.
const CHUNK: usize = 500;
/// Packages that the index is told of at once; with more of them all of it is made anew.
const AT_ONCE: usize = 5_000;
/// Lines kept of what was not taken in.
const REFUSALS: usize = 50;
/// Alarms that are kept.
const ALARMS: usize = 5;

/// How much a package is used, from this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Activity {
    /// Times that it was installed into a client.
    pub installs: u64,
    /// Times that it was deployed.
    pub deploys: u64,
    /// [`Trend`]; `None`: never.
    trend: Option<f64>,
}

/// How a package was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used {
    /// Installed into a client.
    Installed,
    /// Deployed.
    Deployed,
}

impl Activity {
    /// Use that fades.
    pub fn trend(&self) -> Trend {
        self.trend.map_or_else(Trend::default, Trend)
    }

    /// All of it.
    pub fn uses(&self) -> u64 {
        self.installs.saturating_add(self.deploys)
    }
}

/// Names and what is sought in them, as of one state of the index.
type Names = Arc<Vec<Named>>;

/// See the module.
pub(super) struct Shelf {
    store: Store,
    catalog: Catalog,
    index_dir: PathBuf,
    index: Mutex<Option<Arc<Index>>>,
    names: Mutex<Option<(u64, Names)>>,
    /// Held by whoever changes packages: a package is made of all its versions.
    writing: Mutex<()>,
    /// The catalogue that is known to have what the state has, by its id.
    healed: Mutex<Option<String>>,
    /// When somebody asked, seconds since the epoch; 0: nothing is open.
    asked: AtomicI64,
    alarms: Mutex<Vec<String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|e| RegistryError::Broken(format!("the record {key}: {e}")))
}

fn written<T: Serialize>(value: &T) -> Result<Option<Vec<u8>>> {
    serde_json::to_vec(value).map(Some).map_err(|e| RegistryError::Broken(e.to_string()))
}

fn changed_key(at: Timestamp, name: &str, version: &str) -> String {
    format!("u/{:020}/{name} {version}", at.as_microsecond().max(0))
}

impl Shelf {
    pub fn new(store: Store, data_dir: &Path) -> Self {
        Self {
            store,
            catalog: Catalog::at(data_dir),
            index_dir: data_dir.join("catalog-index"),
            index: Mutex::default(),
            names: Mutex::default(),
            writing: Mutex::default(),
            healed: Mutex::default(),
            asked: AtomicI64::new(0),
            alarms: Mutex::default(),
        }
    }

    pub fn alarms(&self) -> Vec<String> {
        let mut all = self.catalog.alarms();
        all.extend(locked(&self.alarms).iter().cloned());
        all
    }

    /// Whether something is open that nobody has asked for.
    pub fn is_idle(&self, after: Duration) -> bool {
        let asked = self.asked.load(Relaxed);
        asked != 0 && Timestamp::now().as_second().saturating_sub(asked).unsigned_abs() > after.as_secs()
    }

    /// Closes files and forgets what is in memory, until somebody asks again.
    pub fn rest(&self) {
        let _writing = locked(&self.writing);
        self.asked.store(0, Relaxed);
        *locked(&self.names) = None;
        *locked(&self.index) = None;
        *locked(&self.healed) = None;
        self.catalog.rest();
    }

    pub fn close(&self) {
        self.rest();
        self.catalog.close();
    }

    pub fn sizes(&self) -> (u64, u64) {
        let files = std::fs::read_dir(&self.index_dir).into_iter().flatten().flatten();
        let index = files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum();
        (self.catalog.size(), index)
    }

    /// Whether there is nothing at all: then nothing is opened for a question.
    fn is_empty(&self) -> bool {
        !self.catalog.exists() && self.store.packages().is_empty()
    }

    /// Opens what a question needs; `None`: there are no packages.
    fn open(&self) -> Result<Option<Arc<Index>>> {
        if self.is_empty() {
            return Ok(None);
        }
        // whoever reads does not wait for whoever writes
        if let Some(index) = self.is_open()? {
            return Ok(Some(index));
        }
        let _writing = locked(&self.writing);
        self.opened().map(Some)
    }

    /// What is open, of the catalogue that is there now.
    fn is_open(&self) -> Result<Option<Arc<Index>>> {
        self.asked.store(Timestamp::now().as_second(), Relaxed);
        let Some(index) = locked(&self.index).clone() else { return Ok(None) };
        let id = self.catalog.id()?;
        Ok(Some(index).filter(|_| locked(&self.healed).as_deref() == Some(id.as_str())))
    }

    /// The same for whoever changes packages and holds the turn to do so.
    fn opened(&self) -> Result<Arc<Index>> {
        if let Some(index) = self.is_open()? {
            return Ok(index);
        }
        // the database may be another one than the index was made for
        *locked(&self.index) = None;
        *locked(&self.names) = None;
        let id = self.catalog.id()?;
        if locked(&self.healed).as_deref() != Some(id.as_str()) {
            self.heal()?;
            *locked(&self.healed) = Some(id.clone());
        }
        let index = match Index::open(&self.index_dir, &id) {
            Ok(index) => index,
            Err(error) => {
                let began = std::time::Instant::now();
                tracing::info!(%error, "the index of packages is made anew");
                let made = self.remade(&id)?;
                tracing::info!(took_ms = began.elapsed().as_millis() as u64, "the index of packages is there");
                made
            }
        };
        let index = Arc::new(index);
        *locked(&self.index) = Some(index.clone());
        self.catch_up(&index)?;
        Ok(index)
    }

    /// All of the index, from the catalogue.
    fn remade(&self, id: &str) -> Result<Index> {
        let mut last = String::new();
        let mut waiting = Vec::new().into_iter();
        let mut ended = false;
        let entries = std::iter::from_fn(|| {
            loop {
                if let Some((key, value)) = waiting.next() {
                    let (key, value): (String, Vec<u8>) = (key, value);
                    let entry = read(&key, &value).and_then(|package| self.entry(package));
                    return Some(entry.map_err(|e| e.to_string()));
                }
                if ended {
                    return None;
                }
                match self.catalog.after("p/", &last, CHUNK) {
                    Ok(chunk) => {
                        ended = chunk.len() < CHUNK;
                        if let Some((key, _)) = chunk.last() {
                            last.clone_from(key);
                        }
                        waiting = chunk.into_iter();
                    }
                    Err(error) => {
                        ended = true;
                        return Some(Err(error.to_string()));
                    }
                }
            }
        });
        let entries = entries.filter(|entry| !matches!(entry, Ok(e) if e.package.status == Status::Deleted));
        Index::create(&self.index_dir, id, entries).map_err(|e| RegistryError::Broken(e.to_string()))
    }

    /// Brings what the state has into the catalogue, and takes out what it has no longer.
    fn heal(&self) -> Result<()> {
        let own = self.store.packages();
        let mut missing = Vec::new();
        for ((name, version), record) in own.iter() {
            if self.version(name, version)?.as_ref() != Some(record.as_ref()) {
                missing.push(Version::clone(record));
            }
        }
        let mut gone: BTreeSet<String> = BTreeSet::new();
        let mut changes = Vec::new();
        for (key, _) in self.all("o/")? {
            let Some((name, version)) = key.strip_prefix("o/").and_then(|rest| rest.split_once(' ')) else { continue };
            if own.contains_key(&(name.to_owned(), version.to_owned())) {
                continue;
            }
            if let Some(old) = self.version(name, version)? {
                changes.push((changed_key(old.updated_at, name, version), None));
            }
            changes.push((format!("v/{name} {version}"), None));
            changes.push((key.clone(), None));
            gone.insert(name.to_owned());
        }
        self.catalog.apply(&changes)?;
        for chunk in missing.chunks(CHUNK) {
            self.write(chunk.to_vec())?;
        }
        for name in gone {
            let left: Vec<Version> = self.versions_of(&name)?;
            let package = summary(&left).map(|package| written(&package)).transpose()?.flatten();
            self.catalog.apply(&[(format!("p/{name}"), package), (format!("d/{name}"), Some(Vec::new()))])?;
        }
        Ok(())
    }

    /// Tells the index what it has not seen.
    fn catch_up(&self, index: &Index) -> Result<()> {
        loop {
            let marks = self.catalog.after("d/", "", AT_ONCE + 1)?;
            if marks.len() > AT_ONCE {
                // one written at once is made sooner than one changed so often
                (*locked(&self.index), *locked(&self.names)) = (None, None);
                let made = self.remade(&self.catalog.id()?)?;
                *locked(&self.index) = Some(Arc::new(made));
                for chunk in self.all("d/")?.chunks(CHUNK) {
                    let done: Vec<_> = chunk.iter().map(|(key, _)| (key.clone(), None)).collect();
                    self.catalog.apply(&done)?;
                }
                return Ok(());
            }
            let names: Vec<String> =
                marks.iter().filter_map(|(key, _)| key.strip_prefix("d/")).map(str::to_owned).collect();
            if names.is_empty() {
                return Ok(());
            }
            let (mut entries, mut gone) = (Vec::new(), Vec::new());
            for name in names {
                match self.package(&name)?.filter(|package| package.status != Status::Deleted) {
                    Some(package) => entries.push(self.entry(package)?),
                    None => gone.push(name),
                }
            }
            if let Err(error) = index.update(&entries, &gone) {
                // it is made anew when it is next asked for: the packages are where they belong
                tracing::error!(%error, "the index of packages could not be changed");
                let mut alarms = locked(&self.alarms);
                alarms.push(error.to_string());
                alarms.truncate(ALARMS);
                drop(alarms);
                *locked(&self.index) = None;
                return std::fs::remove_dir_all(&self.index_dir)
                    .map_err(|e| RegistryError::Broken(format!("{}: {e}", self.index_dir.display())));
            }
            let done: Vec<(String, Option<Vec<u8>>)> = marks.into_iter().map(|(key, _)| (key, None)).collect();
            self.catalog.apply(&done)?;
        }
    }

    fn entry(&self, package: Package) -> Result<Entry> {
        let tools = self.version(&package.name, &package.latest)?.map(|v| v.extras.tools).unwrap_or_default();
        let activity = self.activity(&package.name)?;
        Ok(Entry { package, tools, uses: activity.uses(), trend: activity.trend() })
    }

    fn all(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mut out: Vec<(String, Vec<u8>)> = Vec::new();
        loop {
            let after = out.last().map(|(key, _)| key.clone()).unwrap_or_default();
            let chunk = self.catalog.after(prefix, &after, CHUNK)?;
            let ended = chunk.len() < CHUNK;
            out.extend(chunk);
            if ended {
                return Ok(out);
            }
        }
    }

    /// Takes versions in, in the place of those of the same name and version.
    pub fn take_in(&self, versions: Vec<Version>) -> Result<()> {
        let _writing = locked(&self.writing);
        // an index that is made anew now has them, too
        let was_there = self.catalog.exists();
        if was_there {
            let index = self.opened()?;
            self.write(versions)?;
            self.catch_up(&index)
        } else {
            self.write(versions)?;
            self.opened().map(|_| ())
        }
    }

    fn write(&self, versions: Vec<Version>) -> Result<()> {
        let mut by_name: BTreeMap<String, Vec<Version>> = BTreeMap::new();
        for version in versions {
            by_name.entry(version.name().to_owned()).or_default().push(version);
        }
        let mut changes = Vec::new();
        for (name, new) in by_name {
            let mut all: BTreeMap<String, Version> =
                self.versions_of(&name)?.into_iter().map(|v| (v.version().to_owned(), v)).collect();
            for version in new {
                let number = version.version().to_owned();
                if let Some(old) = all.get(&number) {
                    changes.push((changed_key(old.updated_at, &name, &number), None));
                }
                let own = (version.origin == Origin::Own).then(Vec::new);
                changes.push((format!("o/{name} {number}"), own));
                changes.push((changed_key(version.updated_at, &name, &number), Some(Vec::new())));
                changes.push((format!("v/{name} {number}"), written(&version)?));
                all.insert(number, version);
            }
            let all: Vec<Version> = all.into_values().collect();
            if let Some(package) = summary(&all) {
                changes.push((format!("p/{name}"), written(&package)?));
            }
            changes.push((format!("d/{name}"), Some(Vec::new())));
        }
        Ok(self.catalog.apply(&changes)?)
    }

    /// See [`super::Registry::import`].
    pub fn import(&self, mirror: &str, items: &[Json], settle: bool, now: Timestamp) -> Result<Imported> {
        let _writing = locked(&self.writing);
        let index = self.opened()?;
        let own = self.store.packages();
        let mut done = Imported::default();
        let mut taken: BTreeMap<(String, String), Version> = BTreeMap::new();
        let mut latest: BTreeMap<String, String> = BTreeMap::new();
        for item in items {
            let (new, dated) = match read_item(mirror, item, now) {
                Ok(new) => new,
                Err(why) => {
                    refuse(&mut done, why);
                    continue;
                }
            };
            let (name, number) = (new.name().to_owned(), new.version().to_owned());
            if own.range((name.clone(), String::new())..).next().is_some_and(|((n, _), _)| *n == name) {
                refuse(&mut done, format!("{name}: a package of that name was published here"));
                continue;
            }
            if let Some(Origin::Mirror(other)) = self.package(&name)?.map(|p| p.origin).filter(|o| *o != new.origin) {
                refuse(&mut done, format!("{name}: it is mirrored from '{other}' already"));
                continue;
            }
            if new.upstream_latest {
                latest.insert(name.clone(), number.clone());
            }
            let key = (name, number);
            let old = match taken.remove(&key) {
                Some(old) => Some(old),
                None => self.version(&key.0, &key.1)?,
            };
            let Some(old) = old else {
                done.new += 1;
                taken.insert(key, new);
                continue;
            };
            if old.digest != new.digest {
                refuse(
                    &mut done,
                    format!("{}@{}: it has another document than before; versions do not change", key.0, key.1),
                );
                taken.insert(key, old);
                continue;
            }
            // what was learnt of it here stays; so does the day, where nobody said another one
            let new = match dated {
                true => new,
                false => Version { published_at: old.published_at, updated_at: old.updated_at, ..new },
            };
            let merged = Version { extras: old.extras.clone(), turns: old.turns.clone(), ..new };
            if merged == old {
                done.known += 1;
                continue;
            }
            done.changed += 1;
            taken.insert(key, merged);
        }
        // a version that is the latest makes another one that was not, whose own item may never come again
        for (name, number) in latest {
            for version in self.versions_of(&name)?.into_iter().filter(|v| v.upstream_latest) {
                taken.entry((name.clone(), version.version().to_owned())).or_insert(version);
            }
            let others = taken.range_mut((name.clone(), String::new())..).take_while(|((n, _), _)| *n == name);
            others.filter(|((_, v), _)| *v != number).for_each(|(_, version)| version.upstream_latest = false);
        }
        let versions: Vec<Version> = taken.into_values().collect();
        self.write(versions)?;
        if settle {
            self.catch_up(&index)?;
        }
        Ok(done)
    }

    /// The mirror that a package comes from; `None`: it is ours, or there is none.
    pub fn mirror_of(&self, name: &str) -> Result<Option<String>> {
        if self.open()?.is_none() {
            return Ok(None);
        }
        Ok(match self.package(name)?.map(|package| package.origin) {
            Some(Origin::Mirror(mirror)) => Some(mirror),
            _ => None,
        })
    }

    pub fn package(&self, name: &str) -> Result<Option<Package>> {
        if self.is_empty() {
            return Ok(None);
        }
        let key = format!("p/{name}");
        self.catalog.get(&key)?.map(|value| read(&key, &value)).transpose()
    }

    pub fn version(&self, name: &str, version: &str) -> Result<Option<Version>> {
        let key = format!("v/{name} {version}");
        self.catalog.get(&key)?.map(|value| read(&key, &value)).transpose()
    }

    fn versions_of(&self, name: &str) -> Result<Vec<Version>> {
        let all = self.all(&format!("v/{name} "))?;
        all.into_iter().map(|(key, value)| read(&key, &value)).collect()
    }

    pub fn versions(&self, name: &str) -> Result<Vec<Item>> {
        if self.open()?.is_none() {
            return Ok(Vec::new());
        }
        let latest = self.package(name)?.map(|package| package.latest).unwrap_or_default();
        let all = self.versions_of(name)?.into_iter();
        Ok(all.map(|version| Item { latest: version.version() == latest, version }).collect())
    }

    pub fn activity(&self, name: &str) -> Result<Activity> {
        let key = format!("a/{name}");
        let found: Option<Activity> = self.catalog.get(&key)?.map(|value| read(&key, &value)).transpose()?;
        Ok(found.unwrap_or_default())
    }

    pub fn note_use(&self, name: &str, used: Used, now: Timestamp) -> Result<()> {
        if self.is_empty() {
            return Err(RegistryError::NotFound(name.to_owned()));
        }
        let _writing = locked(&self.writing);
        let index = self.opened()?;
        if self.package(name)?.is_none() {
            return Err(RegistryError::NotFound(name.to_owned()));
        }
        let mut activity = self.activity(name)?;
        match used {
            Used::Installed => activity.installs += 1,
            Used::Deployed => activity.deploys += 1,
        }
        activity.trend = Some(activity.trend().with(1.0, now.as_second()).0);
        self.catalog.apply(&[(format!("a/{name}"), written(&activity)?), (format!("d/{name}"), Some(Vec::new()))])?;
        self.catch_up(&index)
    }

    pub fn search(&self, query: &Query) -> Result<Results> {
        let Some(index) = self.open()? else { return Ok(Results::default()) };
        let hits = match index.search(query) {
            Ok(hits) => hits,
            Err(error) => {
                tracing::error!(%error, "the index of packages is made anew");
                let _writing = locked(&self.writing);
                (*locked(&self.index), *locked(&self.names)) = (None, None);
                let id = self.catalog.id()?;
                let made = Arc::new(self.remade(&id)?);
                *locked(&self.index) = Some(made.clone());
                made.search(query).map_err(|e| RegistryError::Broken(e.to_string()))?
            }
        };
        let mut packages = Vec::with_capacity(hits.names.len());
        for name in hits.names {
            // one that went between two looks is not told
            if let Some(package) = self.package(&name)? {
                packages.push(Found { activity: self.activity(&name)?, package });
            }
        }
        Ok(Results { total: hits.total, packages })
    }

    pub fn list(&self, wanted: &Wanted, after: Option<&Place>, limit: usize) -> Result<Page> {
        let Some(index) = self.open()? else { return Ok(Page::default()) };
        // one more than the page has: whether there is another page
        let mut items = if wanted.updated_since.is_some() {
            self.changed(wanted, after, limit + 1)?
        } else if !wanted.search.is_empty() {
            self.sought(&index, wanted, after, limit + 1)?
        } else if wanted.version == "latest" {
            self.latest_ones(wanted, after, limit + 1)?
        } else {
            self.every_one(wanted, after, limit + 1)?
        };
        let more = items.len() > limit;
        items.truncate(limit);
        let last = items.last().map(|(place, _)| place.clone()).filter(|_| more);
        let next = last.map(|after| Cursor { wanted: wanted.clone(), after });
        Ok(Page { items: items.into_iter().map(|(_, item)| item).collect(), next })
    }

    /// By name: the latest version of each.
    fn latest_ones(&self, wanted: &Wanted, after: Option<&Place>, limit: usize) -> Result<Vec<(Place, Item)>> {
        let mut key = after.map(|place| format!("p/{}", place.name)).unwrap_or_default();
        let mut out = Vec::new();
        loop {
            let chunk = self.catalog.after("p/", &key, limit)?;
            let ended = chunk.len() < limit;
            for (at, value) in chunk {
                let package: Package = read(&at, &value)?;
                key = at;
                if package.status == Status::Deleted && !wanted.deleted {
                    continue;
                }
                if let Some(version) = self.version(&package.name, &package.latest)? {
                    let place = Place { rank: 0, name: package.name, version: package.latest };
                    out.push((place, Item { version, latest: true }));
                }
                if out.len() == limit {
                    return Ok(out);
                }
            }
            if ended {
                return Ok(out);
            }
        }
    }

    /// By name and version.
    fn every_one(&self, wanted: &Wanted, after: Option<&Place>, limit: usize) -> Result<Vec<(Place, Item)>> {
        let mut key = after.map(|place| format!("v/{} {}", place.name, place.version)).unwrap_or_default();
        let mut latest = (String::new(), String::new());
        let mut out = Vec::new();
        loop {
            let chunk = self.catalog.after("v/", &key, limit)?;
            let ended = chunk.len() < limit;
            for (at, value) in chunk {
                let fits = wanted.version.is_empty() || at.split_once(' ').is_some_and(|(_, v)| v == wanted.version);
                key = at;
                if !fits {
                    continue;
                }
                let version: Version = read(&key, &value)?;
                if version.status == Status::Deleted && !wanted.deleted {
                    continue;
                }
                if latest.0 != version.name() {
                    let found = self.package(version.name())?.map(|package| package.latest);
                    latest = (version.name().to_owned(), found.unwrap_or_default());
                }
                let item = Item { latest: latest.1 == version.version(), version };
                out.push((place(0, &item), item));
                if out.len() == limit {
                    return Ok(out);
                }
            }
            if ended {
                return Ok(out);
            }
        }
    }

    /// In the order of their changes.
    fn changed(&self, wanted: &Wanted, after: Option<&Place>, limit: usize) -> Result<Vec<(Place, Item)>> {
        let since = wanted.updated_since.unwrap_or_default().max(0);
        let mut key = match after {
            Some(place) => format!("u/{:020}/{} {}", place.rank.max(0), place.name, place.version),
            // whatever changed at that very moment belongs to it: a key before all of those
            None => format!("u/{since:020}"),
        };
        let text = wanted.search.to_lowercase();
        let mut out = Vec::new();
        loop {
            let chunk = self.catalog.after("u/", &key, CHUNK)?;
            let ended = chunk.len() < CHUNK;
            for (at, _) in chunk {
                let parts = at.strip_prefix("u/").and_then(|rest| rest.split_once('/'));
                let parts = parts.and_then(|(rank, rest)| Some((rank.parse().ok()?, rest.split_once(' ')?)));
                let Some((rank, (name, number))) = parts else {
                    return Err(RegistryError::Broken(format!("the key {at}")));
                };
                if let Some(item) = self.item(name, number)?.filter(|item| fits(item, wanted, &text)) {
                    out.push((Place { rank, name: name.to_owned(), version: number.to_owned() }, item));
                }
                key = at;
                if out.len() == limit {
                    return Ok(out);
                }
            }
            if ended {
                return Ok(out);
            }
        }
    }

    fn item(&self, name: &str, version: &str) -> Result<Option<Item>> {
        let (Some(package), Some(version)) = (self.package(name)?, self.version(name, version)?) else {
            return Ok(None);
        };
        Ok(Some(Item { latest: package.latest == version.version(), version }))
    }

    /// Names and titles that have a text in them, the best first.
    fn sought(
        &self,
        index: &Index,
        wanted: &Wanted,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<(Place, Item)>> {
        let text = wanted.search.to_lowercase();
        let names = self.names(index)?;
        let mut found: Vec<(i64, &str)> = Vec::new();
        for (name, sought) in names.iter() {
            let (lower, title) = sought.split_once('\0').unwrap_or((sought, ""));
            let Some(rank) = tier(lower, title, &text) else { continue };
            let rank = i64::from(rank);
            if after.is_none_or(|place| (rank, &**name) >= (place.rank, place.name.as_str())) {
                found.push((rank, name));
            }
        }
        found.sort_unstable();
        let mut out: Vec<(Place, Item)> = Vec::new();
        for (rank, name) in found {
            let mut items = if wanted.version == "latest" {
                let package = self.package(name)?;
                package.map(|p| self.item(name, &p.latest)).transpose()?.flatten().into_iter().collect()
            } else {
                self.versions(name)?
            };
            items.retain(|item| fits(item, wanted, ""));
            for item in items {
                let at = place(rank, &item);
                if after.is_none_or(|after| at > *after) {
                    out.push((at, item));
                }
                if out.len() == limit {
                    return Ok(out);
                }
            }
        }
        Ok(out)
    }

    fn names(&self, index: &Index) -> Result<Names> {
        let generation = index.generation();
        let mut kept = locked(&self.names);
        if let Some((of, names)) = &*kept
            && *of == generation
        {
            return Ok(names.clone());
        }
        let names = Arc::new(index.names().map_err(|e| RegistryError::Broken(e.to_string()))?);
        *kept = Some((generation, names.clone()));
        Ok(names)
    }
}

fn refuse(done: &mut Imported, why: String) {
    done.refusals += 1;
    if done.refused.len() < REFUSALS {
        done.refused.push(why);
    }
}

/// An item of another registry. Its document may break rules that ours obey, as long as it has a name, a description and a version.
/// Beside it whether it says when it was published.
fn read_item(mirror: &str, item: &Json, now: Timestamp) -> std::result::Result<(Version, bool), String> {
    let server = item.get("server").ok_or("an item without a server")?;
    let text = |key: &str| server.get(key).and_then(Json::as_str).unwrap_or_default();
    let (name, number) = (text("name"), text("version"));
    let shown: String = name.chars().filter(|c| !c.is_control()).take(200).collect();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if name.len() < 3 || name.len() > 200 || name.split('/').count() != 2 || !name.chars().all(plain) {
        return Err(format!("'{shown}' is no name of a package"));
    }
    if number.is_empty() || number.len() > 255 || number.chars().any(char::is_control) {
        return Err(format!("{shown}: it has no version that could be kept"));
    }
    // clients refuse a whole page of the official API for one such item
    if text("description").is_empty() {
        return Err(format!("{shown}: it has no description"));
    }
    if server.to_string().len() > server_json::DOCUMENT_MAX {
        return Err(format!("{shown}@{number}: it is larger than {} KiB", server_json::DOCUMENT_MAX >> 10));
    }
    let official = item.get("_meta").and_then(|meta| meta.get(OFFICIAL)).cloned().unwrap_or_default();
    let of = |key: &str| official.get(key).and_then(Json::as_str);
    let at = |key: &str| of(key).and_then(|text| text.parse::<Timestamp>().ok());
    let dated = at("publishedAt");
    let published_at = dated.unwrap_or(now);
    let known: Server = serde_json::from_value(server.clone()).unwrap_or_default();
    let version = Version {
        digest: digest(server),
        server: server.clone(),
        extras: said(&known).bounded(),
        origin: Origin::Mirror(mirror.to_owned()),
        status: of("status").and_then(|text| text.parse().ok()).unwrap_or_default(),
        message: of("statusMessage").unwrap_or_default().chars().take(MESSAGE_MAX).collect(),
        turns: Vec::new(),
        published_at,
        updated_at: at("updatedAt").unwrap_or(published_at),
        published_by: String::new(),
        team: String::new(),
        upstream_latest: official.get("isLatest").and_then(Json::as_bool).unwrap_or_default(),
    };
    Ok((version, dated.is_some()))
}

fn place(rank: i64, item: &Item) -> Place {
    Place { rank, name: item.version.name().to_owned(), version: item.version.version().to_owned() }
}

fn fits(item: &Item, wanted: &Wanted, text: &str) -> bool {
    let v = &item.version;
    let version = match wanted.version.as_str() {
        "" => true,
        "latest" => item.latest,
        exact => v.version() == exact,
    };
    // whoever asks what changed is told of what went, too
    let there = v.status != Status::Deleted || wanted.deleted || wanted.updated_since.is_some();
    version && there && (text.is_empty() || tier(&v.name().to_lowercase(), &v.title().to_lowercase(), text).is_some())
}
