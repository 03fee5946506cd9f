//! A deployment of its own for each pull request: made when it is opened, renewed when it is pushed to, removed when it is
//! closed. What its host says of a request is asked again now and then, so that one whose end was missed does not stay.
//!
//! A preview runs code that nobody has taken over yet. That of people who may push to the repository gets what the deployment
//! itself gets. That of strangers (a fork) is built only where somebody has asked for it, and gets no secret, environment,
//! volume or waiver of the deployment (`operate` sees to it).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sigil_core::follow::{Follow, Happened, Previewed, PullRequest};
use sigil_core::forge::{CommitState, preview_name};
use sigil_core::model::{Deployment, DeploymentId, Run};
use sigil_core::source::Source;
use tokio::time::Instant;

use super::statuses::short;
use super::{AGAIN, BUSY, Ended, QUIET, Refused, Shared, followed};
use crate::audit::by_agent;
use crate::source::forge::ForgeError;

/// How often the hosts are asked how requests stand.
const SWEEP: Duration = Duration::from_secs(300);
/// Requests that are remembered for one deployment; more are not previewed.
const REMEMBERED: usize = 256;
/// Tries of one removal or deploy that somebody else holds up.
const LATER: Duration = Duration::from_secs(60);

/// What is known of one pull request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Preview {
    /// Its newest commit.
    pub commit: String,
    /// It comes from another repository.
    pub fork: bool,
    /// It was merged or closed.
    pub closed: bool,
    /// The commit that was dealt with last.
    pub done: String,
    /// What came of it, one line.
    pub last: String,
    /// When that was.
    pub at: Option<Timestamp>,
}

/// When a request is looked at next.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub at: Option<Instant>,
    pub busy: bool,
}

/// One request that is to be looked at.
pub(super) struct Due {
    pub deployment: Arc<Deployment>,
    pub follow: Follow,
    pub number: u64,
}

impl Shared {
    /// A forge tells of a request that is for this deployment.
    pub(super) fn requested(&self, id: DeploymentId, request: &PullRequest) -> Result<(), &'static str> {
        {
            let mut states = self.states();
            let state = states.entry(id).or_default();
            let known = state.seen.previews.contains_key(&request.number);
            if request.what == Happened::Closed && !known && !self.has_preview(id, request.number) {
                return Ok(());
            }
            if !known && state.seen.previews.len() >= REMEMBERED {
                return Err("too many pull requests are open");
            }
            let preview = state.seen.previews.entry(request.number).or_default();
            preview.closed = request.what == Happened::Closed;
            preview.fork = request.fork;
            request.commit.clone_into(&mut preview.commit);
            state.seen.pushed = Some(Timestamp::now());
            state.turns.entry(request.number).or_default().at = Some(Instant::now() + QUIET);
        }
        self.changed.notify_one();
        Ok(())
    }

    fn has_preview(&self, of: DeploymentId, number: u64) -> bool {
        self.preview_of(of, number).is_some()
    }

    fn preview_of(&self, of: DeploymentId, number: u64) -> Option<Arc<Deployment>> {
        let all = self.deps.store.deployments();
        all.into_iter().find(|d| {
            d.desired.run != Run::Removed && d.preview.as_ref().is_some_and(|p| p.of == of && p.number == number)
        })
    }

    /// Previews that are there, the oldest first.
    pub(super) fn previews_of(&self, of: DeploymentId) -> Vec<Arc<Deployment>> {
        let all = self.deps.store.deployments().into_iter();
        let mut all: Vec<_> =
            all.filter(|d| d.desired.run != Run::Removed && d.preview.as_ref().is_some_and(|p| p.of == of)).collect();
        all.sort_by_key(|d| d.created_at);
        all
    }

    /// Requests whose time has come, and when the next one's does.
    pub(super) fn due_previews(&self, now: Instant) -> (Vec<Due>, Option<Instant>) {
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        let all = self.deps.store.deployments();
        let mut states = self.states();
        for deployment in &all {
            let Some(follow) = deployment.follow.as_deref().filter(|f| f.previews.is_some()) else { continue };
            let Some(state) = states.get_mut(&deployment.id) else { continue };
            let known = &state.seen.previews;
            state.turns.retain(|number, turn| turn.busy || known.contains_key(number));
            for (number, preview) in known {
                let open = preview.closed || preview.done != preview.commit;
                let turn = state.turns.entry(*number).or_default();
                if turn.busy || (!open && turn.at.is_none()) {
                    continue;
                }
                // one that an earlier agent left has no time yet
                let at = *turn.at.get_or_insert(now);
                if at > now {
                    next = Some(next.map_or(at, |next| next.min(at)));
                    continue;
                }
                turn.busy = true;
                turn.at = None;
                due.push(Due { deployment: deployment.clone(), follow: follow.clone(), number: *number });
            }
        }
        (due, next)
    }

    /// Looks at one request, and does what it needs.
    pub(super) async fn preview(self: Arc<Self>, due: Due) {
        let Due { deployment, follow, number } = due;
        let id = deployment.id;
        let known = {
            let mut states = self.states();
            let Some(state) = states.get_mut(&id) else { return };
            let known = state.seen.previews.get(&number).cloned();
            if known.is_none() {
                state.turns.remove(&number);
            }
            known
        };
        let Some(known) = known else { return };
        let came = match known.closed {
            true => self.tear_down(&deployment, &follow, number).await,
            false => self.renew(&deployment, &follow, number, &known).await,
        };
        {
            let mut states = self.states();
            let Some(state) = states.get_mut(&id) else { return };
            state.deploying.remove(&number);
            let turn = state.turns.entry(number).or_default();
            turn.busy = false;
            let now = Instant::now();
            match came {
                Came::Gone => {
                    // opened again meanwhile, it stays
                    if state.seen.previews.get(&number).is_some_and(|p| p.closed) {
                        state.seen.previews.remove(&number);
                    }
                }
                Came::Done(last) => {
                    tracing::info!(deployment = %deployment.name, request = number, "{last}");
                    if let Some(preview) = state.seen.previews.get_mut(&number) {
                        (preview.done, preview.last) = (known.commit.clone(), last);
                        preview.at = Some(Timestamp::now());
                    }
                }
                Came::Later(last, pause) => {
                    turn.at = Some(turn.at.map_or(now + pause, |at| at.min(now + pause)));
                    if let Some(preview) = state.seen.previews.get_mut(&number) {
                        (preview.last, preview.at) = (last, Some(Timestamp::now()));
                    }
                }
                Came::Stopped => {}
            }
        }
        self.changed.notify_one();
        self.keep();
    }

    async fn renew(
        self: &Arc<Self>,
        deployment: &Arc<Deployment>,
        follow: &Follow,
        number: u64,
        known: &Preview,
    ) -> Came {
        let Ok((source, url, _)) = followed(deployment) else {
            return Came::Done("it follows no repository any more".into());
        };
        let Some(name) = preview_name(&deployment.name, number) else {
            return Came::Done(format!("no name can be made of '{}' and {number}", deployment.name));
        };
        let Some(wish) = &follow.previews else { return Came::Done("previews are not wished for".into()) };
        if known.fork && !wish.forks {
            return Came::Done("it comes from a fork, whose code is not built here (--previews-forks)".into());
        }
        if let Err(why) = (self.deps.may)(deployment, follow) {
            return Came::Later(format!("nothing is deployed: {why}"), SWEEP);
        }
        // the host is believed, not the message, where it can be asked
        match self.deps.sources.forges().request_state(&url, number).await {
            Ok(state) if !state.open => {
                self.close(deployment.id, number);
                return Came::Later("it was closed".into(), Duration::ZERO);
            }
            Ok(state) if state.commit != known.commit && !state.commit.is_empty() => {
                self.moved(deployment.id, number, state.commit);
                return Came::Later("it has a newer commit".into(), Duration::ZERO);
            }
            Err(error) if error.passes() => return Came::Later(error.to_string(), AGAIN),
            Ok(_) | Err(_) => {}
        }
        let show = |state, what: &str| self.show(deployment.id, &url, &known.commit, state, name.as_str(), what);
        let others = self.previews_of(deployment.id);
        let others: Vec<_> = others.iter().filter_map(|d| Some((d, d.preview.as_ref()?.number))).collect();
        let others: Vec<_> = others.into_iter().filter(|(_, other)| *other != number).collect();
        // a place is taken before the first deploy ends: many requests may be opened at once
        let beyond = {
            let mut states = self.states();
            let deploying = &mut states.entry(deployment.id).or_default().deploying;
            let coming =
                deploying.iter().filter(|n| **n != number && others.iter().all(|(_, other)| other != *n)).count();
            let beyond = others.len() + coming >= wish.max as usize;
            if !beyond {
                deploying.insert(number);
            }
            beyond.then_some(others.len() + coming)
        };
        if let Some(kept) = beyond {
            let oldest = others.first().map_or_else(
                || "all are being deployed".to_owned(),
                |(oldest, of)| format!("the oldest is {} (pull request {of}): close it, or allow more", oldest.name),
            );
            let why = format!("{kept} previews are kept already; {oldest}");
            if known.last != why {
                show(CommitState::Failure, &why);
            }
            return Came::Later(why, LATER);
        }
        let Source::Git { scheme, url: address, subdir, .. } = source else {
            return Came::Done("it follows no repository any more".into());
        };
        let commit = known.commit.clone();
        let pinned = Source::Git { scheme, url: address, reference: Some(commit.clone()), subdir };
        show(CommitState::Pending, "a preview is being deployed");
        let what = Previewed { of: deployment.id, number, fork: known.fork };
        let record = by_agent("follow.preview").target(name.to_string(), deployment.id.to_string());
        let record = record.after("commit", commit.clone()).after("request", number).after("for", follow.by.clone());
        let wish = super::PreviewDeploy { name: name.clone(), source: pinned.to_string(), what };
        let operation = match (self.deps.preview)(deployment.clone(), follow.clone(), wish).await {
            Ok(operation) => operation,
            Err(Refused { why, passing: true }) => return Came::Later(format!("it waits: {why}"), BUSY),
            Err(Refused { why, passing: false }) => {
                show(CommitState::Failure, &format!("not deployed: {why}"));
                return Came::Done(format!("{} was not deployed: {why}", short(&commit)));
            }
        };
        self.deps.audit.keep(record).await;
        match self.ended(operation).await {
            Ended::Stopped => Came::Stopped,
            Ended::Unknown => Came::Done(format!("{}: what became of its deploy is not known", short(&commit))),
            Ended::Well(_) => {
                show(CommitState::Success, &format!("a preview serves at /mcp/{name}"));
                Came::Done(format!("{} serves as {name}", short(&commit)))
            }
            Ended::Badly(why) => {
                show(CommitState::Failure, &format!("no preview: {why}"));
                Came::Done(format!("{} was not deployed as {name}: {why}", short(&commit)))
            }
        }
    }

    async fn tear_down(self: &Arc<Self>, deployment: &Arc<Deployment>, follow: &Follow, number: u64) -> Came {
        let Some(preview) = self.preview_of(deployment.id, number) else { return Came::Gone };
        match (self.deps.remove)(preview.clone(), follow.by.clone()).await {
            Ok(operation) => {
                let record = by_agent("follow.preview-end").target(preview.name.to_string(), preview.id.to_string());
                self.deps.audit.keep(record.after("request", number)).await;
                match self.ended(operation).await {
                    Ended::Stopped => Came::Stopped,
                    Ended::Well(_) | Ended::Unknown => Came::Gone,
                    Ended::Badly(why) => Came::Later(format!("{} is not removed: {why}", preview.name), LATER),
                }
            }
            Err(Refused { why, .. }) => Came::Later(format!("{} is not removed yet: {why}", preview.name), AGAIN),
        }
    }

    fn close(&self, id: DeploymentId, number: u64) {
        if let Some(preview) = self.states().get_mut(&id).and_then(|state| state.seen.previews.get_mut(&number)) {
            preview.closed = true;
        }
    }

    fn moved(&self, id: DeploymentId, number: u64, commit: String) {
        if let Some(preview) = self.states().get_mut(&id).and_then(|state| state.seen.previews.get_mut(&number)) {
            preview.commit = commit;
        }
    }

    /// Looks for previews that nobody wants any more: of requests that were closed unheard, and of deployments that are gone or
    /// make none now.
    pub(super) async fn sweep(self: Arc<Self>) {
        let all = self.deps.store.deployments();
        let of: BTreeMap<DeploymentId, &Arc<Deployment>> = all.iter().map(|d| (d.id, d)).collect();
        for preview in all.iter().filter(|d| d.desired.run != Run::Removed) {
            if self.stop.is_cancelled() {
                return;
            }
            let Some(what) = preview.preview.as_deref() else { continue };
            let parent = of.get(&what.of).filter(|d| d.desired.run != Run::Removed);
            let wish = |d: &Deployment| d.follow.as_ref().and_then(|follow| follow.previews);
            let wished = parent.filter(|d| wish(d).is_some_and(|wish| wish.forks || !what.fork));
            let Some(parent) = wished else {
                self.remove_stray(preview).await;
                continue;
            };
            self.ask_after(parent, what.number, what.fork).await;
        }
        // and requests that have no preview, but may wait for one
        for deployment in all.iter().filter(|d| d.follow.as_ref().is_some_and(|f| f.previews.is_some())) {
            let known: Vec<(u64, bool)> = match self.states().get(&deployment.id) {
                Some(state) => state.seen.previews.iter().map(|(number, p)| (*number, p.fork)).collect(),
                None => continue,
            };
            for (number, fork) in known {
                if !self.stop.is_cancelled() && !self.has_preview(deployment.id, number) {
                    self.ask_after(deployment, number, fork).await;
                }
            }
        }
        self.keep();
    }

    /// Asks a host how a request stands, and notes what is new.
    async fn ask_after(&self, deployment: &Arc<Deployment>, number: u64, fork: bool) {
        let Ok((_, url, _)) = followed(deployment) else { return };
        let state = match self.deps.sources.forges().request_state(&url, number).await {
            Ok(state) => state,
            // without an account, what forges tell has to do
            Err(ForgeError::NoneFits(_)) => return,
            // a host that cannot be asked, or that does not show it, ends nothing
            Err(error) => {
                tracing::info!(deployment = %deployment.name, request = number, "it cannot be looked at: {error}");
                return;
            }
        };
        {
            let mut states = self.states();
            let known = states.entry(deployment.id).or_default().seen.previews.entry(number).or_default();
            known.fork |= fork;
            known.closed = !state.open;
            if !state.commit.is_empty() {
                known.commit = state.commit;
            }
        }
        self.changed.notify_one();
    }

    async fn remove_stray(&self, preview: &Arc<Deployment>) {
        match (self.deps.remove)(preview.clone(), preview.created_by.clone()).await {
            Ok(_) => {
                let record = by_agent("follow.preview-end").target(preview.name.to_string(), preview.id.to_string());
                self.deps.audit.keep(record.after("why", "its deployment makes no previews any more")).await;
            }
            Err(Refused { why, .. }) => tracing::info!(preview = %preview.name, "it is not removed yet: {why}"),
        }
    }

    /// Sweeps now and then, and as soon as the agent is there.
    pub(super) async fn sweeps(self: Arc<Self>) {
        let mut turn = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = turn.tick() => {}
                () = self.swept.notified() => {}
            }
            self.clone().sweep().await;
        }
    }
}

/// What came of a look at a request.
enum Came {
    /// It has no preview any more.
    Gone,
    /// Its commit is dealt with.
    Done(String),
    /// It is looked at again, so long from now.
    Later(String, Duration),
    /// The agent ends; the next one goes on.
    Stopped,
}
