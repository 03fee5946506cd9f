//! Whether what runs would pass the scanner of today. When the scanner or the owner's rules have changed, sources of running
//! releases are scanned again, one after the other; what would be stopped now is told, and nothing is stopped by itself.
//!
//! Scanned is the tree that was fetched for the build, from the cache of sources or fetched again as it was pinned. It
//! cannot be had again of a folder that left the cache, of what its registry no longer has, or has with another content;
//! an image has none. That is said of the deployment.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use sigil_config::agent::AgentConfig;
use sigil_core::gate::{self, Least};
use sigil_core::model::{Deployment, DeploymentId, Release, Run, Stream};
use sigil_core::scan::{Report, Verdict as Word};
use sigil_core::source::Source;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::scanner::Scanner;
use super::verdicts::{self, Verdict};
use crate::audit::{Audit, by_agent};
use crate::source::{Sources, TreeGuard};
use crate::store::Store;
use crate::tail::Tail;

/// Changes closer together than this are looked at once.
const QUIET: Duration = Duration::from_millis(500);
/// Waivers end with the day, and what could not be fetched may come back.
const EVERY: Duration = Duration::from_secs(3600);
/// Findings that a sentence names.
const NAMED: usize = 3;

/// What the scanner of today says of what runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    /// Nothing would stop it.
    pub ok: bool,
    /// In words.
    pub reason: String,
    /// Findings that would.
    pub stopped: usize,
}

/// What is needed of other rooms.
#[derive(Clone)]
pub struct DriftDeps {
    /// What runs.
    pub store: Store,
    /// Its sources.
    pub sources: Sources,
    /// Who looks at them.
    pub scanner: Scanner,
    /// That a release is affected is on record.
    pub audit: Audit,
    /// And in its log.
    pub tail: Tail,
    /// What stops.
    pub config: watch::Receiver<Arc<AgentConfig>>,
}

/// The handle; clones share what is known.
#[derive(Clone, Debug)]
pub struct Drift {
    known: Arc<RwLock<HashMap<DeploymentId, Arc<Current>>>>,
    changes: watch::Receiver<u64>,
}

impl Drift {
    /// Looks at what runs, now and whenever something has changed, until `stop`.
    pub fn spawn(deps: DriftDeps, stop: CancellationToken) -> Self {
        let known = Arc::new(RwLock::default());
        let (tell, changes) = watch::channel(0);
        let task = Task { deps, known: Arc::clone(&known), tell, unread: HashMap::new(), stop: stop.clone() };
        tokio::spawn(task.run());
        Self { known, changes }
    }

    /// What is said of a deployment; `None` where nothing runs, or before it was looked at.
    pub fn of(&self, id: DeploymentId) -> Option<Arc<Current>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Changes with what is said of any.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

struct Task {
    deps: DriftDeps,
    known: Arc<RwLock<HashMap<DeploymentId, Arc<Current>>>>,
    tell: watch::Sender<u64>,
    /// Why sources could not be scanned by a scanner.
    unread: HashMap<(String, String), String>,
    stop: CancellationToken,
}

impl Task {
    async fn run(mut self) {
        let (mut store, mut config) = (self.deps.store.changes(), self.deps.config.clone());
        let mut rules = self.deps.scanner.rules();
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.pass() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = store.changed() => {}
                Ok(()) = config.changed() => {}
                Ok(()) = rules.changed() => {}
                () = tokio::time::sleep(EVERY) => self.unread.clear(),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(QUIET) => {}
            }
            store.mark_unchanged();
            config.mark_unchanged();
            rules.mark_unchanged();
        }
    }

    async fn pass(&mut self) {
        let deployments = self.deps.store.deployments();
        let running: Vec<_> = deployments.iter().filter(|d| d.desired.run == Run::Running).collect();
        let mut whose = BTreeSet::new();
        for deployment in &running {
            let Some(release) = deployment.release(deployment.desired.release) else { continue };
            whose.insert(owner(deployment, release));
            let current = self.current(deployment, release).await;
            self.set(deployment.id, Some(current));
        }
        let gone: Vec<DeploymentId> = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            known.keys().filter(|id| running.iter().all(|d| d.id != **id)).copied().collect()
        };
        gone.into_iter().for_each(|id| self.set(id, None));
        self.deps.scanner.verdicts().keep_told(&whose);
    }

    fn set(&self, id: DeploymentId, current: Option<Current>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.get(&id).map(AsRef::as_ref) == current.as_ref() {
            return;
        }
        match current {
            Some(current) => known.insert(id, Arc::new(current)),
            None => known.remove(&id),
        };
        drop(known);
        self.tell.send_modify(|n| *n += 1);
    }

    async fn current(&mut self, deployment: &Deployment, release: &Release) -> Current {
        let (spec, number) = (&release.spec, release.number);
        let source = spec.source.parse::<Source>();
        if matches!(source, Ok(Source::Image { .. })) {
            return Current { ok: true, reason: "an image has no source to scan".into(), stopped: 0 };
        }
        let stamp = self.deps.scanner.stamp();
        let digest = spec.source_digest.as_str();
        let up_to_date = |verdict: &&Verdict| verdict.stamp == stamp;
        let mut found = self.deps.scanner.verdicts().get(digest).filter(up_to_date).cloned();
        if found.is_none() {
            let key = (digest.to_owned(), stamp.clone());
            if !self.unread.contains_key(&key) {
                tracing::info!(deployment = %deployment.name, release = number, "the source is scanned again");
                match self.again(&source, digest).await {
                    Ok(()) => found = self.deps.scanner.verdicts().get(digest).filter(up_to_date).cloned(),
                    Err(why) => drop(self.unread.insert(key.clone(), why)),
                }
            }
            if let Some(why) = self.unread.get(&key) {
                let reason = format!("release {number} cannot be scanned again: {why}; deploy it again");
                return Current { ok: false, reason, stopped: 0 };
            }
        }
        let Some(verdict) = found else {
            // the rules changed while it was scanned: the next pass is near
            return Current { ok: true, reason: format!("release {number} is scanned again"), stopped: 0 };
        };
        self.judged(deployment, release, verdict, matches!(source, Ok(Source::Folder { .. }))).await
    }

    /// Scans a source again, which leaves a verdict.
    async fn again(&self, source: &Result<Source, sigil_core::source::BadSource>, digest: &str) -> Result<(), String> {
        let (tree, guard) = self.tree(source, digest).await?;
        let (scanner, digest) = (self.deps.scanner.clone(), digest.to_owned());
        let scanned = tokio::task::spawn_blocking(move || {
            let _guard: Arc<TreeGuard> = guard;
            scanner.scan_quietly(&tree, &digest).map(drop)
        });
        match scanned.await {
            Ok(result) => result.map_err(|error| format!("the source cannot be read ({error})")),
            Err(error) => Err(format!("the scan ended early ({error})")),
        }
    }

    async fn tree(
        &self,
        source: &Result<Source, sigil_core::source::BadSource>,
        digest: &str,
    ) -> Result<(PathBuf, Arc<TreeGuard>), String> {
        let sources = &self.deps.sources;
        if let Some(kept) = sources.kept(digest).await.map_err(|error| error.to_string())? {
            return Ok(kept);
        }
        let source = match source {
            Ok(Source::Folder { .. }) => return Err("the folder that was uploaded is no longer kept".to_owned()),
            Ok(source) => source,
            Err(error) => return Err(format!("its source is not known ({error})")),
        };
        // nobody reads along
        let (out, _) = tokio::sync::mpsc::channel(1);
        let fetched = sources.fetch(source, None, out, self.stop.child_token()).await;
        let fetched = fetched.map_err(|error| format!("its source cannot be fetched ({error})"))?;
        match fetched.tree {
            Some(tree) if fetched.digest == digest => Ok((tree, fetched.guard)),
            _ => Err("what its source gives today is not what was deployed".to_owned()),
        }
    }

    async fn judged(&self, deployment: &Deployment, release: &Release, verdict: Verdict, folder: bool) -> Current {
        let number = release.number;
        let config = self.deps.config.borrow().clone();
        let source = if folder { gate::FOLDER } else { release.spec.source.as_str() };
        let least = match Least::of(source, &config.scan.block, &config.scan.trust) {
            Ok(least) => least,
            Err(error) => {
                return Current { ok: false, reason: format!("[scan] trust cannot be read: {error}"), stopped: 0 };
            }
        };
        let Verdict { findings, new, .. } = verdict;
        let report = Report { verdict: Word::Safe, files: 0, elapsed_ms: 0, findings };
        let now = Timestamp::now();
        let judged = gate::judge(&report, least, &deployment.waivers, now);
        let names: BTreeSet<String> = judged.stopped.iter().map(|finding| verdicts::name(finding)).collect();
        let news = self.deps.scanner.verdicts().tell(&owner(deployment, release), &names);
        if !news.is_empty() {
            let words = format!("{}; {}", stops(number, &names), "nothing was stopped");
            tracing::warn!(deployment = %deployment.name, release = number, "{words}");
            let record = by_agent("scan.drift").target(deployment.id.to_string(), deployment.name.to_string());
            let record = record.after("release", number.to_string()).after("findings", few(&news));
            self.deps.audit.keep(record).await;
            self.deps.tail.append(deployment.id, number, None, Stream::Agent, now, words.into()).await;
        }
        if !names.is_empty() {
            return Current { ok: false, reason: stops(number, &names), stopped: names.len() };
        }
        let waived = match judged.waived.len() {
            0 => String::new(),
            n => format!(", {n} waived"),
        };
        let mut reason = format!("nothing stops release {number}: {} findings{waived}", report.findings.len());
        if !new.is_empty() {
            reason.push_str(&format!("; new since it was deployed: {}", few(&new)));
        }
        Current { ok: true, reason, stopped: 0 }
    }
}

fn owner(deployment: &Deployment, release: &Release) -> String {
    format!("{}/{}", deployment.id, release.number)
}

fn stops(release: u32, names: &BTreeSet<String>) -> String {
    let all: Vec<String> = names.iter().cloned().collect();
    let findings = if all.len() == 1 { "finding" } else { "findings" };
    format!("{} {findings} would stop a deploy of release {release} today: {}", all.len(), few(&all))
}

/// The first of some names.
fn few(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
