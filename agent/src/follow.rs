//! Owns: which deployments are what their repositories' branches are: looking at a repository now and then, listening to its
//! forge, and asking for a deploy when there is something newer.
//! May touch: store (what is followed), secrets (what pushes are signed with), source (what is newest), audit, and the
//! file of what was seen last (`<data>/learnt/follows.json`). Deploys are operations like any other's.
//! Never: takes more from a push than that it is time to look; deploys for somebody who may no longer; lets a deploy wait for what
//! is shown beside its commit.
//! Tested by: unit tests here, with real repositories.
//!
//! A push is answered at once. What it is about is looked at when no other has come for two seconds (ten at most), and one
//! deployment has one deploy at a time: a storm of pushes makes one deploy of what is newest.

mod hook;
mod previews;
mod statuses;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sigil_core::follow::{Follow, Previewed};
use sigil_core::forge::CommitState;
use sigil_core::model::{Deployment, DeploymentId, Name, OperationId, Run};
use sigil_core::source::Source;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use hook::{Answer, Hook};
pub use previews::Preview;

use crate::audit::{Audit, by_agent};
use crate::kept::Kept;
use crate::secrets::{Scope, SecretError, Secrets};
use crate::source::{SourceError, Sources};
use crate::store::Store;

/// What pushes of a deployment's repository are signed with: a secret of the deployment's own.
pub const SECRET: &str = "SIGIL_WEBHOOK_SECRET";
/// No other push has come for so long,
const QUIET: Duration = Duration::from_secs(2);
/// or this is how long they have been coming.
const LONGEST: Duration = Duration::from_secs(10);
/// After a push, a repository that cannot be looked at is looked at again so often, and so long after each time.
const TRIES: u32 = 4;
const AGAIN: Duration = Duration::from_secs(30);
/// Somebody else changes the deployment: then it is tried again.
const BUSY: Duration = Duration::from_secs(5);
/// How often an operation is looked at, beside being told.
const LOOK: Duration = Duration::from_secs(5);
/// Pushes of a deployment that are remembered, so that none is taken twice.
const REMEMBERED: usize = 128;

/// An operation that was begun, or why not, and whether that may pass.
pub type Begun = BoxFuture<'static, Result<OperationId, Refused>>;
/// Starts a deploy of what a deployment was deployed with; of another branch's source where one is given. The commit names it.
pub type Deploy = Arc<dyn Fn(Arc<Deployment>, Follow, String, Option<String>) -> Begun + Send + Sync>;
/// Starts the deploy of a preview of a deployment.
pub type DeployPreview = Arc<dyn Fn(Arc<Deployment>, Follow, PreviewDeploy) -> Begun + Send + Sync>;
/// Removes a preview, for whom the text names.
pub type Remove = Arc<dyn Fn(Arc<Deployment>, String) -> Begun + Send + Sync>;
/// Where people reach a deployment, by its name; empty where the gateway has no address that others know.
pub type Link = Arc<dyn Fn(&str) -> String + Send + Sync>;
/// Whether whoever follows may deploy that still; an error says why not.
pub type May = Arc<dyn Fn(&Deployment, &Follow) -> Result<(), String> + Send + Sync>;

/// A preview that is to be deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewDeploy {
    /// What it is called.
    pub name: Name,
    /// The source, at one commit.
    pub source: String,
    /// What it is a preview of.
    pub what: Previewed,
}

/// A deploy that was not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// One line.
    pub why: String,
    /// It may be possible in a moment.
    pub passing: bool,
}

/// What the room needs.
pub struct Deps {
    /// Deployments, and what became of operations.
    pub store: Store,
    /// What pushes are signed with.
    pub secrets: Secrets,
    /// What is newest.
    pub sources: Sources,
    /// Pushes that were refused, and deploys.
    pub audit: Audit,
    /// Begins a deploy.
    pub deploy: Deploy,
    /// Begins that of a preview.
    pub preview: DeployPreview,
    /// Ends a preview.
    pub remove: Remove,
    /// What is shown beside a commit leads there.
    pub link: Link,
    /// Asks for the right.
    pub may: May,
    /// The data directory.
    pub data_dir: PathBuf,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

/// What is known of a followed repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// The newest commit that was dealt with.
    pub commit: String,
    /// What came of the last look, one line.
    pub last: String,
    /// When that was.
    pub at: Option<Timestamp>,
    /// When a push came last.
    pub pushed: Option<Timestamp>,
    /// The branch that was pushed last, where several are followed.
    pub branch: Option<String>,
    /// The commit beside which it is shown that it is being deployed.
    pub pending: String,
    /// Why nothing is shown beside a commit; empty: it is.
    pub status_trouble: String,
    /// Pull requests that are known, by number.
    pub previews: BTreeMap<u64, Preview>,
    /// Hashes of pushes that were taken, the oldest first.
    taken: VecDeque<String>,
}

/// Where a followed deployment stands.
#[derive(Debug, Default)]
struct State {
    seen: Seen,
    /// It is looked at then, after pushes from there on.
    push: Option<(Instant, Instant)>,
    /// It is looked at then, since it is time.
    poll: Option<Instant>,
    /// Looks that failed since the push.
    tries: u32,
    busy: bool,
    /// When each pull request is looked at.
    turns: BTreeMap<u64, previews::Turn>,
    /// Pull requests whose preview is being deployed.
    deploying: BTreeSet<u64>,
}

/// The room's handle.
#[derive(Clone, Debug)]
pub struct Followers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    deps: Deps,
    states: Mutex<HashMap<DeploymentId, State>>,
    file: Arc<Mutex<Kept>>,
    changed: Notify,
    /// It is time to see which previews are wanted still.
    swept: Notify,
    lines: statuses::Lines,
    limits: hook::Limits,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Why a deployment cannot follow anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoFollow {
    /// It has no release.
    #[error("it has no release yet")]
    NoRelease,
    /// Nothing is known of how it was deployed.
    #[error("how release {0} was asked for is not kept: it is a folder's, or older than following")]
    NotKept(u32),
    /// Not from git.
    #[error("it comes from {0}, and only branches of git repositories are followed")]
    NoRepository(String),
    /// A commit.
    #[error("it was deployed at the commit {0}, which never changes")]
    Commit(String),
}

impl NoFollow {
    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoRelease => "deploy it first",
            Self::NotKept(_) => "deploy it once more from git: sigil deploy git+https://…@main --name NAME",
            Self::NoRepository(_) => "deploy it from git+https://…",
            Self::Commit(_) => "deploy it from a branch: git+https://…@main",
        }
    }
}

/// What a deployment follows: the source as it was asked for, and what it names.
///
/// # Errors
/// [`NoFollow`].
pub fn followed(deployment: &Deployment) -> Result<(Source, String, Option<String>), NoFollow> {
    let release = deployment.release(deployment.desired.release).ok_or(NoFollow::NoRelease)?;
    let text = release.asked.as_ref().and_then(|asked| asked.get("source")?.get("text")?.as_str());
    let text = text.ok_or(NoFollow::NotKept(release.number))?;
    match text.parse() {
        Ok(Source::Git { reference: Some(commit), .. }) if is_commit(&commit) => Err(NoFollow::Commit(commit)),
        Ok(Source::Git { scheme, url, reference, subdir }) => {
            let (address, branch) = (url.clone(), reference.clone());
            Ok((Source::Git { scheme, url, reference, subdir }, address, branch))
        }
        _ => Err(NoFollow::NoRepository(text.to_owned())),
    }
}

fn is_commit(reference: &str) -> bool {
    matches!(reference.len(), 40 | 64) && reference.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The commit of a pinned source.
fn commit_of(deployment: &Deployment) -> Option<String> {
    let release = deployment.release(deployment.desired.release)?;
    match release.spec.source.parse() {
        Ok(Source::Git { reference: Some(commit), .. }) if is_commit(&commit) => Some(commit),
        _ => None,
    }
}

impl Followers {
    /// Follows until `stop`.
    pub fn spawn(deps: Deps, stop: CancellationToken) -> Self {
        let (kept, seen) = Kept::open::<BTreeMap<DeploymentId, Seen>>(&deps.data_dir, "follows");
        let states = seen.into_iter().map(|(id, seen)| (id, State { seen, ..State::default() })).collect();
        let shared = Arc::new(Shared {
            deps,
            states: Mutex::new(states),
            file: Arc::new(Mutex::new(kept)),
            changed: Notify::new(),
            swept: Notify::new(),
            lines: statuses::Lines::default(),
            limits: hook::Limits::default(),
            stop,
            tasks: TaskTracker::new(),
        });
        shared.tasks.spawn(run(shared.clone()));
        shared.tasks.spawn(shared.clone().sweeps());
        Self { shared }
    }

    /// What is known of a followed deployment.
    pub fn seen(&self, id: DeploymentId) -> Seen {
        self.shared.states().get(&id).map(|state| state.seen.clone()).unwrap_or_default()
    }

    /// Previews that there are of a deployment: name and pull request, the oldest first.
    pub fn previews(&self, id: DeploymentId) -> Vec<(Name, u64)> {
        let all = self.shared.previews_of(id).into_iter();
        all.filter_map(|d| Some((d.name.clone(), d.preview.as_ref()?.number))).collect()
    }

    /// What is wished for has changed: previews that are not any more are removed.
    pub fn sweep(&self) {
        self.shared.swept.notify_one();
    }

    /// Looks at a repository as soon as possible, whatever was seen of it: somebody asks for it.
    pub fn look(&self, id: DeploymentId) {
        {
            let mut states = self.shared.states();
            let state = states.entry(id).or_default();
            state.push = Some((Instant::now(), Instant::now()));
            state.tries = 0;
            state.seen.commit.clear();
        }
        self.shared.changed.notify_one();
    }

    /// What a deployment's pushes are signed with, where there is such a secret.
    ///
    /// # Errors
    /// The keyring's.
    pub fn has_secret(&self, id: DeploymentId) -> Result<bool, SecretError> {
        Ok(self.shared.deps.secrets.get(&Scope::Deployment(id), SECRET)?.is_some())
    }

    /// Makes a new one, and answers it: it is shown this once.
    ///
    /// # Errors
    /// The store's and keyring's.
    pub async fn new_secret(&self, id: DeploymentId, who: &str) -> Result<SecretString, SecretError> {
        use base64::Engine as _;
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|e| {
            tracing::error!(error = %e, "no randomness");
            SecretError::BadValue(SECRET.to_owned(), "cannot be made: the machine has no randomness")
        })?;
        let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let value = SecretString::from(text);
        self.shared.deps.secrets.set(&Scope::Deployment(id), SECRET, value.clone(), "", who).await?;
        Ok(value)
    }

    /// Answers a forge. Never waits for more than the audit log.
    pub async fn hook(&self, hook: Hook) -> Answer {
        self.shared.hook(hook).await
    }

    /// Waits until it has ended, at most this long.
    pub async fn closed(&self, limit: Duration) -> bool {
        self.shared.tasks.close();
        tokio::time::timeout(limit, self.shared.tasks.wait()).await.is_ok()
    }
}

impl Shared {
    fn states(&self) -> MutexGuard<'_, HashMap<DeploymentId, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A push has come, to a branch where several are followed.
    fn pushed(&self, id: DeploymentId, branch: Option<&str>) {
        {
            let mut states = self.states();
            let state = states.entry(id).or_default();
            let now = Instant::now();
            let first = state.push.map_or(now, |(first, _)| first);
            state.push = Some((first, (now + QUIET).min(first + LONGEST)));
            state.tries = 0;
            state.seen.pushed = Some(Timestamp::now());
            state.seen.branch = branch.map(str::to_owned);
        }
        self.changed.notify_one();
    }

    /// Whose time has come, and when the next one's does.
    fn due(&self, now: Instant) -> (Vec<(Arc<Deployment>, Follow)>, Option<Instant>) {
        let all = self.deps.store.deployments();
        let mut states = self.states();
        states.retain(|id, state| state.busy || all.iter().any(|d| d.id == *id && d.follow.is_some()));
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        for deployment in &all {
            let Some(follow) = deployment.follow.as_deref() else { continue };
            let state = states.entry(deployment.id).or_default();
            let every = (follow.every > 0).then(|| Duration::from_secs(follow.every.into()));
            // a new agent looks at once: something may have been pushed meanwhile
            state.poll = every.map(|every| state.poll.unwrap_or(now).min(now + every));
            let at = [state.push.map(|(_, at)| at), state.poll].into_iter().flatten().min();
            let Some(at) = at.filter(|_| !state.busy && deployment.desired.run != Run::Removed) else { continue };
            if at > now {
                next = Some(next.map_or(at, |next| next.min(at)));
                continue;
            }
            state.busy = true;
            state.push = None;
            state.poll = every.map(|every| now + every);
            due.push((deployment.clone(), follow.clone()));
        }
        (due, next)
    }

    async fn look(self: &Arc<Self>, deployment: Arc<Deployment>, follow: Follow) {
        let id = deployment.id;
        let was_pushed = self.states().get(&id).is_some_and(|state| state.seen.pushed.is_some());
        let came = self.step(&deployment, &follow).await;
        let mut states = self.states();
        let Some(state) = states.get_mut(&id) else { return };
        state.busy = false;
        let now = Instant::now();
        match came {
            Came::Nothing => state.tries = 0,
            Came::Done(commit, last) => {
                tracing::info!(deployment = %deployment.name, commit, "followed: {last}");
                (state.seen.commit, state.seen.last, state.seen.at) = (commit, last, Some(Timestamp::now()));
                state.tries = 0;
            }
            Came::Failed(why) => {
                if state.seen.last != why {
                    tracing::warn!(deployment = %deployment.name, "following its repository: {why}");
                }
                (state.seen.last, state.seen.at) = (why, Some(Timestamp::now()));
                state.tries += 1;
                // one that is looked at anyway needs no other turn
                if follow.every == 0 && was_pushed && state.tries < TRIES && state.push.is_none() {
                    state.push = Some((now, now + AGAIN));
                }
            }
            Came::Busy(why) => {
                (state.seen.last, state.seen.at) = (why, Some(Timestamp::now()));
                state.push.get_or_insert((now, now + BUSY));
            }
        }
        drop(states);
        self.changed.notify_one();
        self.keep();
    }

    async fn step(self: &Arc<Self>, deployment: &Arc<Deployment>, follow: &Follow) -> Came {
        let (source, url, _) = match followed(deployment) {
            Ok(followed) => followed,
            Err(why) => return Came::Failed(format!("{why}; {}", why.hint())),
        };
        if let Err(why) = (self.deps.may)(deployment, follow) {
            return Came::Failed(format!("nothing is deployed: {why}"));
        }
        let (source, other) = self.of_branch(deployment.id, follow, source);
        let newest = match self.deps.sources.newest(&source, self.stop.child_token()).await {
            Ok(newest) => newest,
            Err(SourceError::Cancelled) => return Came::Nothing,
            Err(error) => return Came::Failed(format!("{error}; {}", error.hint())),
        };
        let seen = self.states().get(&deployment.id).map(|state| state.seen.commit.clone()).unwrap_or_default();
        if seen == newest {
            return Came::Nothing;
        }
        let name = deployment.name.as_str();
        let show = |state, what: &str| self.show(deployment.id, &url, &newest, state, name, what);
        if commit_of(deployment).as_deref() == Some(&newest) {
            // an agent that ended while it was deployed left that beside it
            if self.take_pending(deployment.id, &newest) {
                show(CommitState::Success, &format!("it serves at /mcp/{name}"));
            }
            return Came::Done(newest, "it is what serves already".into());
        }
        let short = statuses::short(&newest).to_owned();
        let record = by_agent("follow.deploy").target(deployment.name.to_string(), deployment.id.to_string());
        let record = record.after("commit", newest.clone()).after("for", follow.by.clone());
        let operation = match (self.deps.deploy)(deployment.clone(), follow.clone(), newest.clone(), other).await {
            Ok(operation) => operation,
            Err(Refused { why, passing: true }) => return Came::Busy(format!("{short} waits: {why}")),
            Err(Refused { why, passing: false }) => {
                show(CommitState::Failure, &format!("not deployed: {why}"));
                return Came::Done(newest, format!("{short} was not deployed: {why}"));
            }
        };
        self.deps.audit.keep(record).await;
        if let Some(state) = self.states().get_mut(&deployment.id) {
            state.seen.last = format!("{short} is being deployed (`sigil ops {operation}`)");
            state.seen.at = Some(Timestamp::now());
            state.seen.pending.clone_from(&newest);
        }
        // another agent may have to say how it ended
        self.keep();
        show(CommitState::Pending, "it is being deployed");
        let ended = self.ended(operation).await;
        if !matches!(ended, Ended::Stopped) {
            self.take_pending(deployment.id, &newest);
        }
        match ended {
            // the operation goes on with the next agent, which finds its commit deployed
            Ended::Stopped => Came::Nothing,
            Ended::Unknown => {
                show(CommitState::Failure, "what became of its deploy is not known");
                Came::Done(newest, format!("{short}: what became of its deploy is not known"))
            }
            Ended::Well(summary) => {
                // something newer may have been pushed while it was fetched
                let now = self.deps.store.deployment(deployment.id).and_then(|now| commit_of(&now));
                match now.filter(|now| *now != newest) {
                    Some(now) => {
                        let what = format!("{} was deployed in its place", statuses::short(&now));
                        show(CommitState::Success, &what);
                        let what = format!("it serves at /mcp/{name}");
                        self.show(deployment.id, &url, &now, CommitState::Success, name, &what);
                    }
                    None => show(CommitState::Success, &format!("it serves at /mcp/{name}")),
                }
                Came::Done(newest, format!("{short} was deployed: {summary}"))
            }
            Ended::Badly(why) => {
                show(CommitState::Failure, &format!("not deployed: {why}"));
                Came::Done(newest, format!("{short} was not deployed: {why}"))
            }
        }
    }

    /// Whether it was shown beside this commit that it is being deployed; from now on it is not.
    fn take_pending(&self, id: DeploymentId, commit: &str) -> bool {
        let mut states = self.states();
        let Some(state) = states.get_mut(&id).filter(|state| state.seen.pending == commit) else { return false };
        state.seen.pending.clear();
        true
    }

    /// What is looked at: the branch that was pushed last, where several are followed. With the text of its source, when it is
    /// not the one that was deployed from.
    fn of_branch(&self, id: DeploymentId, follow: &Follow, source: Source) -> (Source, Option<String>) {
        let pushed = self.states().get(&id).and_then(|state| state.seen.branch.clone());
        let pushed = pushed.filter(|_| !follow.branches.is_empty());
        match (source, pushed) {
            (Source::Git { scheme, url, reference, subdir }, Some(branch)) if reference.as_ref() != Some(&branch) => {
                let source = Source::Git { scheme, url, reference: Some(branch), subdir };
                let text = source.to_string();
                (source, Some(text))
            }
            (source, _) => (source, None),
        }
    }

    /// Waits for the end of an operation.
    async fn ended(&self, operation: OperationId) -> Ended {
        let mut changes = self.deps.store.operation_changes();
        loop {
            let Some(now) = self.deps.store.operation(operation) else { return Ended::Unknown };
            if now.ended_at.is_some() {
                return match &now.error {
                    None => Ended::Well(now.summary.clone()),
                    Some(error) => Ended::Badly(error["message"].as_str().unwrap_or("it failed").to_owned()),
                };
            }
            tokio::select! {
                () = self.stop.cancelled() => return Ended::Stopped,
                _ = changes.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Writes down what was seen, beside everything else.
    fn keep(&self) {
        let file = self.file.clone();
        let seen: BTreeMap<DeploymentId, Seen> =
            self.states().iter().map(|(id, state)| (*id, state.seen.clone())).collect();
        self.tasks.spawn_blocking(move || {
            let kept = file.lock().unwrap_or_else(PoisonError::into_inner).keep(&seen);
            if let Err(error) = kept {
                tracing::warn!(%error, "what was seen of followed repositories is not kept");
            }
        });
    }
}

/// What came of a look.
enum Came {
    /// Nothing new.
    Nothing,
    /// This commit is dealt with.
    Done(String, String),
    /// It could not be seen.
    Failed(String),
    /// Not now.
    Busy(String),
}

/// How an operation ended.
enum Ended {
    /// It did, with this summary.
    Well(String),
    /// It failed: why.
    Badly(String),
    /// It is forgotten already.
    Unknown,
    /// The agent ends first.
    Stopped,
}

async fn run(shared: Arc<Shared>) {
    let mut changes = shared.deps.store.changes();
    loop {
        let (due, next) = shared.due(Instant::now());
        let (requests, later) = shared.due_previews(Instant::now());
        let next = [next, later].into_iter().flatten().min();
        for request in requests {
            shared.tasks.spawn(shared.clone().preview(request));
        }
        for (deployment, follow) in due {
            let one = shared.clone();
            shared.tasks.spawn(async move { one.look(deployment, follow).await });
        }
        let wait = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = wait => {}
            () = shared.changed.notified() => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}
