//! Owns: the scanner's runs and what it keeps of files and sources; whether what runs would pass today; tool pins; who is
//! told of tools that changed.
//! May touch: of the store the pins, of the tail marks, `<data>/scan`, trees of sources.
//! Never: decides what a request may do (the gateway does, by the pins that reconcile hands it), or what a finding stops
//! (deploy does, in `operate`).
//! Tested by: units in `inspect/`; `tests/trust` (real engine); the comparison of pins in `sigil_core::pins` and
//! `gateway/pins.rs`.
//!
//! A release's tools are pinned when it first passes its gate. What each later gate sees, and what the gateway sees in lists
//! that pass it, is compared with that.

mod drift;
mod looks;
mod scanner;
mod verdicts;

use std::collections::BTreeMap;

use jiff::Timestamp;
use sigil_core::model::{Deployment, DeploymentId, InstanceId, ReleaseNo, Stream};
use sigil_core::pins::{self, Answer, Pins, Tool};
use sigil_core::scan::{self, Severity};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError};
use crate::tail::Tail;
pub use drift::{Current, Drift, DriftDeps};
pub use scanner::{Scanned, Scanner, examine};

/// Changed tools that wait to be written down; the gateway tells again what found no place.
const WAITING: usize = 64;
/// Names in a mark.
const NAMED: usize = 12;

/// A tool that is not as it was pinned.
#[derive(Debug, Clone)]
pub struct ChangedTool {
    /// Whose.
    pub deployment: DeploymentId,
    /// The release that serves.
    pub release: ReleaseNo,
    /// The server's name for it.
    pub name: String,
    /// As it is now.
    pub tool: Tool,
}

/// The room's handle.
#[derive(Clone, Debug)]
pub struct Inspect {
    store: Store,
    tail: Tail,
}

impl Inspect {
    /// Writes down what comes through the answered channel, until `stop`.
    pub fn spawn(store: Store, tail: Tail, stop: CancellationToken) -> (Self, mpsc::Sender<ChangedTool>) {
        let (tell, mut told) = mpsc::channel::<ChangedTool>(WAITING);
        let inspect = Self { store, tail };
        let room = inspect.clone();
        tokio::spawn(async move {
            loop {
                let changed = tokio::select! {
                    () = stop.cancelled() => return,
                    changed = told.recv() => changed,
                };
                let Some(changed) = changed else { return };
                room.changed(changed).await;
            }
        });
        (inspect, tell)
    }

    /// A release passed its gate with these tools (a JSON array): they are pinned, or compared with what was. Returns when
    /// that is on the disk.
    ///
    /// # Errors
    /// The store's, when there is nothing pinned yet and nothing can be.
    pub async fn gated(
        &self,
        deployment: &Deployment,
        release: ReleaseNo,
        instance: InstanceId,
        tools: &str,
    ) -> Result<(), StoreError> {
        let tools = pins::members(tools);
        let Some(known) = self.store.pins(deployment.id, release) else {
            return self.pin(deployment, release, instance, &tools).await;
        };
        for (name, tool) in tools.into_iter().filter(|(name, tool)| !known.fits(name, tool)) {
            self.changed(ChangedTool { deployment: deployment.id, release, name, tool }).await;
        }
        Ok(())
    }

    async fn pin(
        &self,
        deployment: &Deployment,
        release: ReleaseNo,
        instance: InstanceId,
        tools: &[(String, Tool)],
    ) -> Result<(), StoreError> {
        let flaws: BTreeMap<String, Vec<String>> = tools
            .iter()
            .map(|(name, tool)| (name.clone(), flaws(tool)))
            .filter(|(_, flaws)| !flaws.is_empty())
            .collect();
        let made = Pins::new(release, tools, &flaws, Timestamp::now());
        let mut words = Vec::new();
        let before = deployment.releases.iter().rev().filter(|r| r.number < release);
        if let Some(before) = before.filter_map(|r| self.store.pins(deployment.id, r.number)).next() {
            let changes = pins::compare(&before, &made);
            if !changes.is_empty() {
                words.push(format!("tools of release {release} against release {}: {}", before.release, few(&changes)));
            }
        }
        for (name, held) in &made.held {
            words.push(format!("the tool '{name}' is held: {}", reason(&held.findings)));
        }
        // two replicas may pass at once: the first one's list counts
        let (id, new) = (deployment.id, made.clone());
        self.store.update_pins(id, release, move |old| Ok((old.is_none().then_some(new), ()))).await?;
        for words in words {
            let now = Timestamp::now();
            self.tail.append(id, release, Some(instance), Stream::Agent, now, words.into()).await;
        }
        Ok(())
    }

    /// A tool that is not as it was pinned is held.
    async fn changed(&self, changed: ChangedTool) {
        let ChangedTool { deployment: id, release, name, tool } = changed;
        let findings = flaws(&tool);
        let (of, found) = (name.clone(), findings.clone());
        let hold = move |old: Option<&Pins>| {
            // its deployment or release is gone
            let Some(mut pins) = old.cloned() else { return Ok((None, false)) };
            let new = pins.hold(&of, tool, found, Timestamp::now());
            Ok((new.then_some(pins), new))
        };
        match self.store.update_pins(id, release, hold).await {
            Ok(false) | Err(StoreError::NotFound(_)) => {}
            Ok(true) => {
                let who = self.store.deployment(id).map(|d| d.name.to_string()).unwrap_or_default();
                tracing::warn!(deployment = who, release, tool = ?name, ?findings, "a tool changed without a new release");
                let mut words = format!("the tool '{name}' changed without a new release; see: sigil pins diff {who}");
                if !findings.is_empty() {
                    words.push_str("; ");
                    words.push_str(&reason(&findings));
                }
                self.tail.append(id, release, None, Stream::Agent, Timestamp::now(), words.into()).await;
            }
            // it is left out of lists all the same
            Err(error) => {
                tracing::error!(%error, deployment = %id, tool = ?name, "a changed tool cannot be written down")
            }
        }
    }

    /// The pins of a release.
    pub fn pins(&self, id: DeploymentId, release: ReleaseNo) -> Option<std::sync::Arc<Pins>> {
        self.store.pins(id, release)
    }

    /// Does what a person says about held tools: `named` with the digest that was looked at (`None`: whatever it is now).
    /// Answers their names.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when one of them is not held in that form; then nothing is changed.
    pub async fn answer(
        &self,
        deployment: &Deployment,
        release: ReleaseNo,
        named: Vec<(String, Option<String>)>,
        answer: Answer,
        who: &str,
    ) -> Result<Vec<String>, StoreError> {
        let change = move |old: Option<&Pins>| {
            let Some(mut pins) = old.cloned() else { return Err("no tools are pinned".to_owned()) };
            let named = named.iter().map(|(name, digest)| (name.as_str(), digest.as_deref()));
            let done = pins.answer(named, answer).map_err(|e| e.to_string())?;
            Ok((Some(pins), done))
        };
        let done = self.store.update_pins(deployment.id, release, change).await?;
        let word = if answer == Answer::Approve { "approved" } else { "dismissed" };
        tracing::info!(who, deployment = %deployment.name, release, tools = ?done, "changed tools were {word}");
        if !done.is_empty() {
            let words = format!("changed tools {word} by {who}: {}", few(&done.join(" ")));
            self.tail.append(deployment.id, release, None, Stream::Agent, Timestamp::now(), words.into()).await;
        }
        Ok(done)
    }
}

/// What speaks against a tool's own words: findings of the scanner that are errors at least.
fn flaws(tool: &Tool) -> Vec<String> {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(&tool.text) else {
        return vec!["it is too long to be looked at".to_owned()];
    };
    let found = scan::tools(std::slice::from_ref(&value));
    let wrong = found.into_iter().filter(|finding| finding.severity >= Severity::Error);
    wrong.map(|finding| format!("{}: {} ({})", finding.rule, finding.message, finding.path)).collect()
}

fn reason(findings: &[String]) -> String {
    if findings.is_empty() { "two tools have this name".to_owned() } else { findings.join("; ") }
}

/// The first names of a list.
fn few(names: &str) -> String {
    let all: Vec<&str> = names.split(' ').collect();
    let shown = all.iter().take(NAMED).copied().collect::<Vec<_>>().join(" ");
    match all.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
