//! What goes on for a while on behalf of a screen: each flow is a task that tells what happens and can be stopped.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::McpClient;
use super::port::{Gone, trouble};
use super::tools::refusal;
use super::{Change, Link, LinkError, Progress, Refusal, SourceRef, What};
use crate::cli::fail::Failure;
use crate::cli::{folder, init, scaling::simulate, scan, source};
use crate::link::findings::Report;
use crate::tui::{Answer, Flow, LinkEvent, Replayed, Source, Told, Trouble};

/// Longest call: who calls can stop it at any time.
const CALL: Duration = Duration::from_secs(600);
/// Messages and events are told together that come within this time.
const TOGETHER: Duration = Duration::from_millis(50);
/// Most of them at once.
const BATCH: usize = 500;
/// A policy that is still being typed is not replayed.
const STILL: Duration = Duration::from_millis(150);

/// Flows under way.
#[derive(Default)]
pub(super) struct Flows {
    running: BTreeMap<u64, CancellationToken>,
}

impl Flows {
    /// Begins one.
    pub(super) fn start(
        &mut self,
        tasks: &mut JoinSet<Result<(), Gone>>,
        link: &Link,
        events: &mpsc::Sender<LinkEvent>,
        flow: u64,
        what: Flow,
    ) {
        self.running.retain(|_, token| !token.is_cancelled());
        let token = CancellationToken::new();
        self.running.insert(flow, token.clone());
        let teller = Teller { events: events.clone(), flow };
        let link = link.clone();
        tasks.spawn(async move {
            let ended = run(&link, what, &teller, &token).await;
            token.cancel();
            let trouble = match ended {
                Ok(()) => None,
                Err(Ended::Gone) => return Err(Gone),
                Err(Ended::Trouble(trouble)) => Some(trouble),
            };
            teller.events.send(LinkEvent::FlowEnded { flow, trouble }).await.map_err(|_| Gone)
        });
    }

    /// Ends one.
    pub(super) fn stop(&mut self, flow: u64) {
        if let Some(token) = self.running.remove(&flow) {
            token.cancel();
        }
    }

    /// Tells that all have ended with their link.
    pub(super) async fn lost(&mut self, events: &mpsc::Sender<LinkEvent>) -> Result<(), Gone> {
        for (flow, token) in std::mem::take(&mut self.running) {
            if !token.is_cancelled() {
                token.cancel();
                let what = "the link was made anew".to_owned();
                let trouble = Some(Trouble { what, hint: "try again".to_owned() });
                events.send(LinkEvent::FlowEnded { flow, trouble }).await.map_err(|_| Gone)?;
            }
        }
        Ok(())
    }
}

/// Why a flow ended before its end.
enum Ended {
    Gone,
    Trouble(Trouble),
}

impl From<LinkError> for Ended {
    fn from(error: LinkError) -> Self {
        Self::Trouble(trouble(&error))
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Trouble(Trouble { what: failure.message, hint: failure.hint })
    }
}

struct Teller {
    events: mpsc::Sender<LinkEvent>,
    flow: u64,
}

impl Teller {
    async fn tell(&self, told: Told) -> Result<(), Ended> {
        self.events.send(LinkEvent::Flow { flow: self.flow, told }).await.map_err(|_| Ended::Gone)
    }

    /// A word that may be left out when nobody has time to read it.
    fn note(&self, text: String) {
        let _ = self.events.try_send(LinkEvent::Flow { flow: self.flow, told: Told::Note(text) });
    }
}

async fn run(link: &Link, what: Flow, teller: &Teller, stop: &CancellationToken) -> Result<(), Ended> {
    // A call says to its server that it is stopped; everything else is just left.
    if let Flow::Call { name, tool, arguments } = what {
        return call(link, &name, &tool, arguments, teller, stop).await;
    }
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        ended = go(link, what, teller) => ended,
    }
}

async fn go(link: &Link, what: Flow, teller: &Teller) -> Result<(), Ended> {
    match what {
        Flow::Tap { name } => tap(link, &name, teller).await,
        Flow::Operation { id } => operation(link, &id, teller).await,
        Flow::Pins { name, release, tools, dismiss } => {
            let names: Vec<String> = tools.iter().map(|(name, _)| name.clone()).collect();
            link.answer_pins(&name, release, tools, dismiss).await?;
            let word = if dismiss { "dismissed" } else { "approved" };
            teller.tell(Told::Done(format!("{name}: {} {word}", names.join(", ")))).await
        }
        Flow::Scaling { name, policy } => {
            let word = if policy.is_none() { "has no scaling policy any more" } else { "has a new scaling policy" };
            link.set_scaling(&name, policy, false).await?;
            teller.tell(Told::Done(format!("{name} {word}"))).await
        }
        Flow::Secret { name, place, value } => {
            let set = link.set_secret(&name, value.0.as_bytes().to_vec(), &place, "").await?;
            teller.tell(Told::Done(format!("secret {name} is set, version {}", set.version))).await
        }
        Flow::Replay { policy, load } => {
            tokio::time::sleep(STILL).await;
            let ran = tokio::task::spawn_blocking(move || replay(&policy, &load)).await;
            let odd = |e: tokio::task::JoinError| Trouble { what: format!("not replayed: {e}"), hint: String::new() };
            let ran = ran.map_err(|e| Ended::Trouble(odd(e)))?.map_err(Ended::Trouble)?;
            teller.tell(Told::Replayed(Box::new(ran))).await
        }
        Flow::Look { source, secrets } => {
            let seen = look(link, &source, secrets, teller).await?;
            teller.tell(Told::Looked(Box::new(seen))).await
        }
        // taken before
        Flow::Call { .. } => Ok(()),
    }
}

async fn tap(link: &Link, name: &str, teller: &Teller) -> Result<(), Ended> {
    let mut frames = link.tap(name).await?;
    loop {
        let Some(first) = frames.next().await? else { return Ok(()) };
        let mut batch = vec![first];
        let until = tokio::time::Instant::now() + TOGETHER;
        let mut ended = false;
        while batch.len() < BATCH && !ended {
            match tokio::time::timeout_at(until, frames.next()).await {
                Ok(Ok(Some(frame))) => batch.push(frame),
                Ok(Ok(None)) => ended = true,
                Ok(Err(e)) => {
                    teller.tell(Told::Frames(std::mem::take(&mut batch))).await?;
                    return Err(e.into());
                }
                Err(_) => break,
            }
        }
        teller.tell(Told::Frames(batch)).await?;
        if ended {
            return Ok(());
        }
    }
}

async fn operation(link: &Link, id: &str, teller: &Teller) -> Result<(), Ended> {
    let mut follow = link.follow(id, 0);
    let mut batch = Vec::new();
    loop {
        let next = match batch.is_empty() {
            true => Ok(follow.next().await),
            false => tokio::time::timeout(TOGETHER, follow.next()).await,
        };
        let done = match next {
            Ok(Ok(Some(Progress::Item(event)))) => {
                let done = matches!(event.what, What::Done(_));
                batch.push(event);
                done
            }
            Ok(Ok(Some(Progress::Lost { why, .. }))) => {
                teller.note(format!("link lost ({why}); it goes on by itself"));
                false
            }
            Ok(Ok(Some(Progress::Back))) => false,
            Ok(Ok(None)) => true,
            Ok(Err(e)) => {
                teller.tell(Told::Events(batch)).await?;
                return Err(e.into());
            }
            // nothing more for a moment: what there is is told
            Err(_) => {
                teller.tell(Told::Events(std::mem::take(&mut batch))).await?;
                continue;
            }
        };
        if done || batch.len() >= BATCH {
            teller.tell(Told::Events(std::mem::take(&mut batch))).await?;
        }
        if done {
            return Ok(());
        }
    }
}

async fn call(
    link: &Link,
    name: &str,
    tool: &str,
    arguments: Value,
    teller: &Teller,
    stop: &CancellationToken,
) -> Result<(), Ended> {
    let begun = Instant::now();
    let words = Teller { events: teller.events.clone(), flow: teller.flow };
    let opened = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        opened = McpClient::open(link, name, HashMap::new(), CALL, move |text| words.note(text)) => opened,
    };
    let mut client = opened.map_err(|e| refusal(name, e))?;
    let answer = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        answer = client.request("tools/call", json!({ "name": tool, "arguments": arguments })) => Some(answer),
    };
    let Some(answer) = answer else {
        client.cancel("the caller stopped it").await;
        // so that it is on its way before the session closes
        let _ = tokio::time::timeout(TOGETHER, client.request("ping", json!({}))).await;
        return Ok(());
    };
    let took = begun.elapsed();
    let result = answer.map_err(|e| refusal(name, e))?;
    let odd = |e: serde_json::Error| LinkError::Nonsense { why: format!("the tool's result: {e}") };
    let result = serde_json::from_str(result.get()).map_err(odd)?;
    teller.tell(Told::Answer(Box::new(Answer { result, took }))).await
}

/// Replays a policy; works for a while.
fn replay(policy: &sigil_core::scale::Policy, load: &super::scaling::Load) -> Result<Replayed, Trouble> {
    use sigil_core::scale::{Replay, simulate as run};
    let none = |what: &str, hint: &str| Trouble { what: what.to_owned(), hint: hint.to_owned() };
    let (trace, begin) = simulate::points(&load.history);
    if trace.len() < 2 {
        let hint =
            "a deployment with a policy keeps its load from then on; 'sigil scaling simulate --trace' takes a file";
        return Err(none("nothing is known of its load yet", hint));
    }
    let server = simulate::server_of(policy, load).ok_or_else(|| {
        none("nothing says how much a replica can do", "give requestsUp, or ask 'sigil scaling simulate --capacity'")
    })?;
    let mut replay = Replay::new(policy, server);
    (replay.begin, replay.price) = (begin, load.price);
    let mut notes = Vec::new();
    if policy.predictive {
        match load.history.capacity(policy, load.cpu_limit) {
            Ok(capacity) => replay.history = Some((&load.history, capacity)),
            Err(why) => notes.push(format!("looking ahead is off: {why}")),
        }
    }
    Ok(Replayed { ran: run(&replay, &trace), notes })
}

/// What there is to know of a source.
async fn look(link: &Link, text: &str, secrets: Vec<String>, teller: &Teller) -> Result<Source, Ended> {
    let mut seen = Source::default();
    let mut wanted = secrets;
    let mut text = text.to_owned();
    if let Some(package) = text.strip_prefix(crate::cli::deploy::registry::PREFIX) {
        teller.note("reading the package".to_owned());
        let (name, version) = package.split_once('@').unwrap_or((package, ""));
        let detail = link.package(name, version).await?;
        let what = format!("{}@{}", detail.version.name, detail.version.version);
        let read = crate::tui::read_package(&detail).map_err(|why| {
            Ended::Trouble(Trouble { what: format!("{what}: {why}"), hint: "see 'sigil package get'".to_owned() })
        })?;
        seen.questions = read.questions;
        wanted.extend(seen.questions.iter().filter(|q| q.secret && q.required).map(|q| q.name.clone()));
        seen.recognised.push(format!("package {what}"));
        if detail.version.status != "active" {
            seen.recognised.push(format!("{}: {}", detail.version.status, detail.version.message));
        }
        text = read.source;
        seen.package = Some(Box::new(detail));
    }
    match source::parse(&text)? {
        source::Given::Folder { text, root } => {
            teller.note("reading the folder".to_owned());
            let folder = tokio::task::spawn_blocking(move || {
                let found = folder::walk(&root, folder::Purpose::Build)?;
                let tree = found.tree()?;
                let recipe = init::recognise(&tree, None)?;
                let report =
                    scan::folder(&folder::walk(&root, folder::Purpose::Scan)?, &sigil_core::scan::Own::default())?;
                Ok::<_, Failure>((found, recipe, report, init::folder_name(&root)))
            });
            let odd = |e: tokio::task::JoinError| Failure::new(1, "SCAN_FAILED", e.to_string(), "");
            let (found, recipe, report, own) = folder.await.map_err(odd)??;
            seen.recognised.extend(recipe.why.iter().cloned());
            let named = recipe.manifest.name.as_deref().and_then(sigil_core::model::Name::derive);
            seen.name = named.map(|n| n.as_str().to_owned()).or(own).unwrap_or_default();
            wanted.extend(recipe.manifest.secrets.iter().filter(|s| s.required).map(|s| s.name.clone()));
            let blocked = report.verdict == "blocked";
            seen.report = Some(report);
            // What would be refused need not be sent.
            if !blocked {
                let upload = found.send(link, &text, |done, all| {
                    teller.note(format!("sending the folder: {} of {} KB", done / 1_000, all / 1_000));
                });
                seen.upload = Some(upload.await?.id);
            }
        }
        source::Given::Remote(text) if text.starts_with("image:") || text.starts_with("remote:") => {
            seen.recognised.push("an image is run as it is: there is no source to scan".to_owned());
        }
        source::Given::Remote(text) => seen.report = Some(scanned(link, text, teller).await?),
    }
    // Who may not see secrets is told by the deploy what is missing.
    if let Ok(kept) = link.secrets("").await {
        wanted.sort();
        wanted.dedup();
        // Of scopes, only a team's serve a deployment that is new.
        let has = |name: &String| kept.iter().any(|s| s.name == *name && s.scope.starts_with("team"));
        seen.missing = wanted.into_iter().filter(|name| !has(name)).collect();
    }
    Ok(seen)
}

/// Has the agent scan a source that it fetches.
async fn scanned(link: &Link, text: String, teller: &Teller) -> Result<Report, Ended> {
    let source = SourceRef { text, upload: None };
    let started = link.start(Change::Scan { source }).await?;
    let mut follow = link.follow(&started.id, 0);
    let none = || LinkError::Nonsense { why: "the scan ended without a report".to_owned() };
    while let Some(step) = follow.next().await? {
        let Progress::Item(event) = step else { continue };
        match event.what {
            What::Step { name, state, message, .. } => teller.note(format!("{name} {state} {message}")),
            What::Done(done) => {
                if let Some(problem) = done.error.filter(|p| p.code != "BLOCKED") {
                    let (code, exit) = (problem.code, problem.exit);
                    let (message, hint) = (problem.message, problem.hint);
                    return Err(LinkError::Refused(Refusal { code, message, hint, details: None, exit }).into());
                }
                return Ok(done.result.as_ref().and_then(Report::read).ok_or_else(none)?);
            }
            _ => {}
        }
    }
    Err(none().into())
}
