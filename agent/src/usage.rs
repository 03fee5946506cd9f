//! Owns: what was used by whom in which month, what of it is beyond quotas and budgets, and stopping whoever a budget stops.
//! May touch: sample, store (to stop what a budget stops), the engine (sizes of images), `<data>/usage`.
//! Never: counts a thing twice, or refuses a call itself: the gateway reads the verdicts.
//! Tested by: unit tests here, with agents that are killed at any moment.
//!
//! Every reading of `sample` is taken in at once, in memory, and so are calls, a quarter of a second after they ended at the
//! latest: quotas are judged then, too. It is written down when there were requests or a new container, else once a minute.
//! A killed agent loses no call and no byte of an answer, since they are in the tally as they end (by user; of tools it may
//! lose a quarter of a second), and nothing of a container that lives on, whose counters do. One that ends is read once more
//! before its init is let go. What a container used since it was read last (at most ten seconds), or since that was written
//! down (at most a minute), is lost only where its init itself is killed, or where no agent runs at its end. A lost power may
//! take a minute.

mod book;
mod journal;
pub mod report;
mod tally;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sigil_config::agent::AgentConfig;
use sigil_core::cost::judge::{self, Action, Crossing, Limit, Used, What, Whose};
use sigil_core::cost::{Amounts, Month, price};
use sigil_core::model::{Deployment, DeploymentId, Run};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::Engine;
use crate::sample::{self, Ending, Sample, Snapshot};
use crate::store::Store;
use crate::web::{Count, Counted};
use book::{About, Book, Counts, Moment, Part, There};
use journal::Journal;
use tally::Former;
pub use tally::{Slot, Tally};

/// What was not requests is written down this often.
const WRITE: Duration = Duration::from_secs(60);
/// Calls that have ended are looked for this often.
const CALLS: Duration = Duration::from_millis(250);
/// Images' sizes are asked for this often.
const SIZES: Duration = Duration::from_secs(3600);

/// What the room needs.
#[derive(Debug)]
pub struct Deps {
    /// Deployments, limits; who is called what.
    pub store: Store,
    /// What is used.
    pub sample: Sample,
    /// Where the gateway writes its calls down as they end.
    pub tally: Tally,
    /// Sizes of images.
    pub engine: Arc<dyn Engine>,
    /// Rates, and what becomes of who uses up a quota.
    pub config: watch::Receiver<Arc<AgentConfig>>,
}

/// Whom the gateway refuses or slows down, and why.
#[derive(Debug, Default, PartialEq)]
pub struct Verdicts {
    /// By deployment.
    pub deployments: HashMap<DeploymentId, (Action, String)>,
    /// By user, by id.
    pub users: HashMap<String, (Action, String)>,
    /// By team, by id.
    pub teams: HashMap<String, (Action, String)>,
    /// Everybody.
    pub all: Option<(Action, String)>,
}

impl Verdicts {
    /// Whether nobody is beyond anything.
    pub fn is_empty(&self) -> bool {
        self.deployments.is_empty() && self.users.is_empty() && self.teams.is_empty() && self.all.is_none()
    }
}

/// The room's handle.
#[derive(Clone)]
pub struct Usage {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Usage")
    }
}

struct Shared {
    kept: Mutex<Kept>,
    store: Store,
    config: watch::Receiver<Arc<AgentConfig>>,
    counted: OnceLock<Box<dyn Fn() -> Vec<Counted> + Send + Sync>>,
    ended: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
    verdicts: watch::Sender<Arc<Verdicts>>,
    facts: watch::Sender<Arc<Vec<Crossing>>>,
    tasks: TaskTracker,
}

struct Kept {
    book: Book,
    journal: Journal,
    /// Of this run of the agent, under whose name the gateway's counters count.
    tally: Tally,
    /// Those of runs before, until the book that they are in is written down.
    former: Vec<Former>,
    written: Instant,
    trouble: Option<String>,
}

impl Usage {
    /// Reads what was used before, and goes on counting until `stop`.
    ///
    /// # Errors
    /// The journal cannot be opened.
    pub fn spawn(deps: Deps, data_dir: &Path, stop: CancellationToken) -> std::io::Result<Self> {
        let mut kept = Kept::open(data_dir, deps.tally.clone())?;
        let there: BTreeSet<DeploymentId> = deps.store.deployments().iter().map(|d| d.id).collect();
        kept.take_former(|id| there.contains(&id));
        let shared = Arc::new(Shared {
            kept: Mutex::new(kept),
            store: deps.store.clone(),
            config: deps.config.clone(),
            counted: OnceLock::new(),
            ended: OnceLock::new(),
            verdicts: watch::Sender::default(),
            facts: watch::Sender::default(),
            tasks: TaskTracker::new(),
        });
        shared.tasks.spawn(run_on(deps, shared.clone(), stop));
        shared.tasks.close();
        Ok(Self { shared })
    }

    /// Tells where the gateway's counts are, and how many calls have ended of all that it counts (cheap, and asked often).
    /// Only the first call counts.
    pub fn tell_counted(
        &self,
        counted: impl Fn() -> Vec<Counted> + Send + Sync + 'static,
        ended: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.shared.counted.set(Box::new(counted)).ok();
        self.shared.ended.set(Box::new(ended)).ok();
    }

    /// Whom the gateway refuses or slows down.
    pub fn verdicts(&self) -> watch::Receiver<Arc<Verdicts>> {
        self.shared.verdicts.subscribe()
    }

    /// Everything that is nearly or wholly used up, for whoever tells people.
    pub fn facts(&self) -> watch::Receiver<Arc<Vec<Crossing>>> {
        self.shared.facts.subscribe()
    }

    /// Why usage cannot be written down, while it cannot.
    pub fn trouble(&self) -> Option<String> {
        self.shared.kept().trouble.clone()
    }

    /// Waits until it has written everything down, at most this long.
    pub async fn closed(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.shared.tasks.wait()).await.is_ok()
    }
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run_on(deps: Deps, shared: Arc<Shared>, stop: CancellationToken) {
    let mut latest = deps.sample.latest();
    let mut sizes = Sizes::default();
    let mut ended = 0;
    let mut calls = tokio::time::interval(CALLS);
    calls.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let ends = tokio::select! {
            () = stop.cancelled() => true,
            changed = latest.changed() => changed.is_err(),
            _ = calls.tick() => {
                let now = shared.ended.get().map_or(0, |ended| ended());
                if std::mem::replace(&mut ended, now) == now && !deps.sample.has_endings() {
                    continue;
                }
                false
            }
        };
        let snapshot = latest.borrow_and_update().clone();
        sizes.look(&deps).await;
        let there = there(&deps.store, &shared, &snapshot, &sizes);
        let (taken, endings) = (shared.clone(), deps.sample.endings());
        let over = tokio::task::spawn_blocking(move || {
            let now = Timestamp::now();
            taken.kept().take(now, &there, &endings, ends);
            taken.judge(now)
        });
        let over = over.await.unwrap_or_default();
        shared.stop_over_budget(&over).await;
        if ends {
            return;
        }
    }
}

/// How much disk images take.
#[derive(Default)]
struct Sizes {
    by_image: HashMap<String, u64>,
    looked: Option<Instant>,
}

impl Sizes {
    async fn look(&mut self, deps: &Deps) {
        let due = self.looked.is_none_or(|at| at.elapsed() >= SIZES);
        let images: Vec<String> = deps.store.deployments().iter().filter_map(|d| image(d).map(str::to_owned)).collect();
        for image in &images {
            if !due && self.by_image.contains_key(image) {
                continue;
            }
            // an engine that is away is asked again in an hour, and the old size counts
            let size = deps.engine.image(image).await.ok().flatten().map(|found| found.size);
            let old = self.by_image.get(image).copied();
            self.by_image.insert(image.clone(), size.or(old).unwrap_or(0));
        }
        if due {
            self.looked = Some(Instant::now());
            self.by_image.retain(|image, _| images.contains(image));
        }
    }
}

fn image(d: &Deployment) -> Option<&str> {
    d.release(d.desired.release).map(|release| release.spec.image.as_str())
}

fn there(store: &Store, shared: &Shared, snapshot: &Snapshot, sizes: &Sizes) -> Vec<There> {
    let mut counted: HashMap<DeploymentId, Vec<(Part, Counts)>> = HashMap::new();
    for one in shared.counted.get().map(|counted| counted()).unwrap_or_default() {
        let counts = |c: &Count| Counts { requests: c.requests, errors: c.errors, sent: c.sent };
        let all = counted.entry(one.deployment).or_default();
        all.push((Part::Whole, counts(&one.whole)));
        all.extend(one.users.iter().map(|(user, c)| (Part::User(user.clone()), counts(c))));
        all.extend(one.tools.iter().map(|(tool, c)| (Part::Tool(tool.clone()), counts(c))));
    }
    let one = |d: &Arc<Deployment>| {
        let release = d.release(d.desired.release);
        There {
            id: d.id,
            about: About {
                name: d.name.to_string(),
                team: d.team.clone(),
                user: store.maker(d),
                tier: release.map(|r| r.spec.resources.tier.clone()).unwrap_or_default(),
                since: 0,
                counted_to: 0,
                gone: false,
            },
            storage: image(d).and_then(|image| sizes.by_image.get(image).copied()).unwrap_or(0)
                + snapshot.volumes.get(&d.id).map_or(0, |volumes| volumes.bytes),
            replicas: snapshot.deployments.get(&d.id).map(|used| used.replicas.clone()).unwrap_or_default(),
            counts: counted.remove(&d.id).unwrap_or_default(),
        }
    };
    store.deployments().iter().map(one).collect()
}

impl Kept {
    fn open(data_dir: &Path, tally: Tally) -> std::io::Result<Self> {
        let (journal, mut book) = Journal::open(data_dir)?;
        let mut former = tally::former(data_dir);
        // its own is no former one
        former.retain(|former| former.run != tally.run());
        book.keep_former(&former.iter().map(|former| former.run.clone()).collect());
        Ok(Self { book, journal, tally, former, written: Instant::now(), trouble: None })
    }

    /// Takes in what runs before this one counted last.
    fn take_former(&mut self, known: impl Fn(DeploymentId) -> bool) {
        for former in &self.former {
            self.book.end(&former.run, Month::of(former.at), &former.counts, &known);
        }
        if !self.former.is_empty() {
            self.write(false);
        }
    }

    fn take(&mut self, now: Timestamp, there: &[There], endings: &[Ending], last: bool) {
        let (boot, uptime_ms) = sample::uptime();
        let moment = Moment { run: self.tally.run(), now, boot, uptime_ms, lives: &sample::lives };
        // before what is over is forgotten
        for ending in endings {
            self.book.ending(&moment, ending);
        }
        let urgent = self.book.take(&moment, there) || !endings.is_empty();
        if urgent || last || self.written.elapsed() >= WRITE {
            self.write(last);
        }
    }

    fn write(&mut self, last: bool) {
        self.written = Instant::now();
        let frame = self.book.changed();
        let written = match self.trouble.is_some() || self.journal.has_grown() {
            // after a failure nobody knows what of it is there: everything is written anew
            true => self.journal.compact(&self.book),
            false if frame.is_empty() => Ok(()),
            false => self.journal.append(&frame),
        };
        let written = written.and_then(|()| if last { self.journal.sync() } else { Ok(()) });
        if let Err(error) = &written
            && self.trouble.is_none()
        {
            tracing::error!(%error, "usage cannot be written down; it is counted in memory, and tried again");
        }
        if written.is_ok() && !self.former.is_empty() {
            self.former.retain(|former| !former.remove());
            let left = self.former.iter().map(|former| former.run.clone()).collect();
            self.book.keep_former(&left);
        }
        self.trouble = written.err().map(|error| error.to_string());
    }
}

impl Shared {
    /// Judges what is used up, and tells it. Answers the budgets whose deployments are to be stopped now.
    fn judge(&self, now: Timestamp) -> Vec<Crossing> {
        let config = self.config.borrow().clone();
        let month = Month::of(now);
        let limits: Vec<Limit> = self.store.limits().values().cloned().collect();
        let action = config.quota.action.parse().unwrap_or(Action::Warn);
        let mut kept = self.kept();
        let used = used(&kept.book, month, &limits, &config);
        let mut found = judge::judge(&config.cost, action, month, &limits, &used);
        found.sort_by(|a, b| (&a.whose, a.what).cmp(&(&b.whose, b.what)));
        let over = |c: &&Crossing| c.what == What::Budget && c.over && c.action == Action::Stop;
        let stops: Vec<Crossing> = found.iter().filter(over).cloned().collect();
        let stops: Vec<Crossing> = stops.into_iter().filter(|c| kept.book.stop(month, &c.whose)).collect();
        if !stops.is_empty() {
            kept.write(false);
        }
        drop(kept);
        let verdicts = self.verdicts_of(&found);
        self.verdicts.send_if_modified(|held| {
            let other = **held != verdicts;
            if other {
                *held = Arc::new(verdicts);
            }
            other
        });
        self.facts.send_if_modified(|held| {
            let alike = |c: &Crossing| (c.whose.clone(), c.what, c.over);
            let other = !held.iter().map(alike).eq(found.iter().map(alike));
            if other {
                for new in found.iter().filter(|new| !held.iter().any(|old| alike(old) == alike(new))) {
                    tracing::warn!("{}", new.sentence(&self.store.named(&new.whose)));
                }
                *held = Arc::new(found);
            }
            other
        });
        stops
    }

    fn verdicts_of(&self, found: &[Crossing]) -> Verdicts {
        let mut verdicts = Verdicts::default();
        // deployments that a budget stops are stopped, not refused; what is only said refuses nothing
        for c in found.iter().filter(|c| c.over && c.what != What::Budget && c.action != Action::Warn) {
            let verdict = (c.action, c.sentence(&self.store.named(&c.whose)));
            match &c.whose {
                Whose::All => verdicts.all = Some(verdict),
                Whose::Team(id) => drop(verdicts.teams.insert(id.clone(), verdict)),
                Whose::User(id) => drop(verdicts.users.insert(id.clone(), verdict)),
                Whose::Deployment(id) => drop(verdicts.deployments.insert(*id, verdict)),
            }
        }
        verdicts
    }

    async fn stop_over_budget(&self, over: &[Crossing]) {
        for crossing in over {
            let reason = format!("stopped: {}", crossing.sentence(&self.store.named(&crossing.whose)));
            for d in self.store.deployments().iter().filter(|d| d.desired.run == Run::Running) {
                if !is_of(&self.store, d, &crossing.whose) {
                    continue;
                }
                let stopped = self.store.update(d.id, None, &reason, |d| {
                    d.desired.run = Run::Stopped;
                    Ok(())
                });
                if let Err(error) = stopped.await {
                    tracing::error!(%error, deployment = %d.name, "a budget is used up, and its deployment still runs");
                }
            }
        }
    }
}

fn is_of(store: &Store, d: &Deployment, whose: &Whose) -> bool {
    match whose {
        Whose::All => true,
        Whose::Team(team) => d.team == *team,
        Whose::User(user) => store.maker(d) == *user,
        Whose::Deployment(id) => d.id == *id,
    }
}

/// What the book says of a month, by whom limits are for.
fn used(book: &Book, month: Month, limits: &[Limit], config: &AgentConfig) -> Used {
    let mut used = Used::default();
    let mut money: BTreeMap<DeploymentId, f64> = BTreeMap::new();
    for (key, amounts) in book.rows.iter().filter(|(key, _)| key.month == month) {
        let Some(about) = book.about.get(&key.deployment) else { continue };
        match &key.part {
            Part::Whole => {
                money.insert(key.deployment, price(&config.cost, amounts, month).total());
                used.others.entry(Whose::All).or_default().add(amounts);
                used.others.entry(Whose::Team(about.team.clone())).or_default().add(amounts);
                if !about.gone {
                    used.deployments.insert(key.deployment, (about.tier.clone(), *amounts));
                }
            }
            Part::User(user) => used.others.entry(Whose::User(user.clone())).or_default().add(amounts),
            Part::Tool(_) => {}
        }
    }
    for limit in limits {
        let of = |id: &DeploymentId| {
            book.about.get(id).is_some_and(|about| match &limit.whose {
                Whose::All => true,
                Whose::Team(team) => about.team == *team,
                Whose::User(user) => about.user == *user,
                Whose::Deployment(one) => id == one,
            })
        };
        let sum = money.iter().filter(|(id, _)| of(id)).map(|(_, money)| money).sum();
        used.money.insert(limit.whose.clone(), sum);
    }
    used
}

/// Amounts that are nobody's.
pub(crate) const NOTHING: Amounts = Amounts {
    requests: 0,
    errors: 0,
    cpu_micros: 0,
    memory_kib_seconds: 0,
    egress_bytes: 0,
    storage_kib_seconds: 0,
    seconds: 0,
};
