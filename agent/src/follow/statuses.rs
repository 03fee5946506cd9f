//! What is shown beside a commit at its host: that it is being deployed, that it serves, that it does not. A host that is away
//! is tried again; nothing waits for it, and no deploy fails by it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use sigil_core::forge::{CommitState, CommitStatus};
use sigil_core::model::DeploymentId;

use super::Shared;
use crate::source::forge::ForgeError;

/// Pauses between tries of one status, seconds (milliseconds in tests).
const PAUSES: [u64; 5] = [5, 30, 120, 600, 1800];
/// Commits whose status is under way, at most; of more, nothing is shown.
const UNDER_WAY: usize = 512;

/// One line beside one commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Line {
    pub url: String,
    pub commit: String,
    pub context: String,
}

/// Lines that somebody is at, each with what is to be shown next.
#[derive(Debug, Default)]
pub(super) struct Lines(Mutex<HashMap<Line, Option<CommitStatus>>>);

impl Lines {
    fn all(&self) -> MutexGuard<'_, HashMap<Line, Option<CommitStatus>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Has a status shown beside a commit, soon, when an account is for its repository. Of several for one line the newest
    /// counts. `of`: the followed deployment, which is told when it does not go.
    pub(super) fn show(
        self: &Arc<Self>,
        of: DeploymentId,
        url: &str,
        commit: &str,
        state: CommitState,
        name: &str,
        what: &str,
    ) {
        if self.deps.sources.forges().for_repository(url).is_none() {
            return;
        }
        let link = if state == CommitState::Success { (self.deps.link)(name) } else { String::new() };
        let status = CommitStatus::new(state, name, what, &link);
        let line = Line { url: url.to_owned(), commit: commit.to_owned(), context: status.context.clone() };
        {
            let mut all = self.lines.all();
            if let Some(waiting) = all.get_mut(&line) {
                *waiting = Some(status);
                return;
            }
            if all.len() >= UNDER_WAY {
                drop(all);
                self.status_trouble(of, "too many statuses wait for their hosts".into());
                return;
            }
            all.insert(line.clone(), Some(status));
        }
        let shared = self.clone();
        self.tasks.spawn(async move { shared.show_line(of, line).await });
    }

    async fn show_line(self: Arc<Self>, of: DeploymentId, line: Line) {
        let (mut status, mut tries) = (None, 0);
        loop {
            {
                let mut all = self.lines.all();
                let newer = all.get_mut(&line).and_then(Option::take);
                if newer.is_some() {
                    (status, tries) = (newer, 0);
                }
                if status.is_none() {
                    all.remove(&line);
                    return;
                }
            }
            let Some(one) = &status else { return };
            match self.deps.sources.forges().show_status(&line.url, &line.commit, one).await {
                Ok(()) => {
                    self.status_trouble(of, String::new());
                    status = None;
                }
                Err(error) => {
                    let unit = if cfg!(test) { Duration::from_millis } else { Duration::from_secs };
                    let pause = PAUSES.get(tries).copied().filter(|_| error.passes()).map(unit);
                    let told = format!("no status is shown beside {}: {error}; {}", short(&line.commit), error.hint());
                    self.status_trouble(of, told);
                    let Some(pause) = pause else {
                        status = None;
                        continue;
                    };
                    let rest = match error {
                        ForgeError::Limited { until, .. } => {
                            Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default()
                        }
                        _ => Duration::ZERO,
                    };
                    tries += 1;
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(pause.max(rest)) => {}
                    }
                }
            }
        }
    }

    /// What is wrong with showing statuses; empty: nothing.
    fn status_trouble(&self, of: DeploymentId, why: String) {
        let changed = {
            let mut states = self.states();
            let Some(state) = states.get_mut(&of) else { return };
            let changed = state.seen.status_trouble != why;
            if changed && !why.is_empty() {
                tracing::warn!(deployment = %of, "{why}");
            }
            state.seen.status_trouble = why;
            changed
        };
        if changed {
            self.keep();
        }
    }
}

/// A commit as people write it.
pub(super) fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}
