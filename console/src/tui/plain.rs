//! The console without a screen (`--plain`, `ACCESSIBLE=1`): lines are appended, commands are typed as a line. For
//! screen readers, teletypes and recordings.

use std::io::Write as _;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::signal::unix::{SignalKind, signal};

use super::command::{self, Command, VERBS};
use super::logbuf::thousands;
use super::model::{Model, Screen};
use super::port::{LinkEvent, Port, Request};
use super::update::{Effect, Event, joined, update};
use super::{Options, clean, view};
use crate::link::{Change, Deployment, LogBatch, LogQuery, What};

/// Runs until `quit`, the end of input, or a signal.
pub async fn run(port: Port, options: Options) -> anyhow::Result<()> {
    let Port { address, mut events, requests } = port;
    let mut model = Model::new(address, options.theme(), (80, 24), Timestamp::now());
    model.zone = jiff::tz::TimeZone::system();
    let mut term = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    let mut plain = Plain { model, pending: None, watch: None };
    say(&format!("sigil: connecting to {}. Type 'help' and Enter for commands.", plain.model.address))?;
    loop {
        let asked = tokio::select! {
            _ = term.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
            line = input.next_line() => match line? {
                Some(line) => match plain.typed(line.trim())? {
                    Some(asked) => asked,
                    None => return Ok(()),
                },
                None => return Ok(()),
            },
            event = events.recv() => plain.happened(event.context("the link ended")?)?,
        };
        for request in asked {
            if requests.try_send(request).is_err() {
                say("the link is busy: try again")?;
            }
        }
    }
}

struct Plain {
    model: Model,
    /// What 'yes' does.
    pending: Option<(Change, String)>,
    /// The log watch that is printed, and whether lines name their deployment.
    watch: Option<(u64, bool)>,
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("nobody reads")
}

fn row(d: &Deployment) -> String {
    let release = if d.release == 0 { String::new() } else { format!(", release {}", d.release) };
    let message = if d.message.is_empty() { String::new() } else { format!(": {}", d.message) };
    clean::plain(format!("{}: {}, {}/{} replicas{release}{message}", d.name, d.state, d.ready, d.desired).as_bytes())
}

impl Plain {
    /// Prints what an event means.
    fn happened(&mut self, event: LinkEvent) -> anyhow::Result<Vec<Request>> {
        self.model.now = Timestamp::now();
        let now = view::clock(&self.model, self.model.now);
        let mut first = false;
        match &event {
            LinkEvent::Connected { info, .. } => {
                let engine = info.engine.as_ref().map(|e| format!(", {} {}", e.name, e.version)).unwrap_or_default();
                say(&clean::plain(
                    format!("{now} connected: {}, agent {}{engine}", info.hostname, info.version).as_bytes(),
                ))?;
            }
            LinkEvent::Disconnected { trouble, retry_in } => {
                let why = joined(&trouble.what, &trouble.hint);
                say(&format!("{now} no link: {why}; trying again in {} s", retry_in.as_secs().max(1)))?;
            }
            LinkEvent::Fleet(update) => {
                first = update.complete && !self.model.complete;
                for d in &update.changed {
                    let told = |o: &Deployment| (o.state.clone(), o.ready, o.desired, o.release, o.message.clone());
                    let old = self.model.fleet.get(&d.id);
                    if self.model.complete && old.map(told) != Some(told(d)) {
                        say(&format!("{now} {}", row(d)))?;
                    }
                }
                for id in &update.removed {
                    if let Some(d) = self.model.fleet.get(id) {
                        say(&format!("{now} {}: removed", d.name))?;
                    }
                }
            }
            LinkEvent::Logs { watch, batch } if self.watch.is_some_and(|(w, _)| w == *watch) => self.lines(batch)?,
            LinkEvent::LogsLost { watch, why } if self.watch.is_some_and(|(w, _)| w == *watch) => {
                say(&format!("{now} log stream lost: {why}; it goes on by itself"))?;
            }
            LinkEvent::LogsEnded { watch, trouble } if self.watch.is_some_and(|(w, _)| w == *watch) => {
                let why = trouble.as_ref().map(|t| joined(&t.what, &t.hint));
                say(&format!("{now} log stream ended{}", why.map(|w| format!(": {w}")).unwrap_or_default()))?;
                self.watch = None;
            }
            LinkEvent::Operation { change, event } => {
                let name = self.model.asked.get(change).map(|a| a.name.clone()).unwrap_or_default();
                match &event.what {
                    What::Step { name: step, state, message, .. } => {
                        say(&clean::plain(format!("{now} {name}: {step} {state} {message}").trim_end().as_bytes()))?;
                    }
                    What::Note(note) => say(&clean::plain(format!("{now} {name}: {note}").as_bytes()))?,
                    _ => {}
                }
            }
            _ => {}
        }
        let detail = matches!(event, LinkEvent::Detail { .. });
        let looked = matches!(event, LinkEvent::Looked { .. });
        let effects = update(&mut self.model, Event::Link(event));
        if first {
            self.list()?;
        }
        if detail {
            for line in view::detail::text(&self.model) {
                say(&line)?;
            }
            // Printed once; what changes is told line by line.
            self.model.screens = vec![Screen::Table];
        }
        if looked && self.model.screen().is_sheet() {
            for line in view::sheet::text(&self.model) {
                say(&line)?;
            }
            self.model.screens = vec![Screen::Table];
        }
        if let Some(toast) = self.model.toast.take() {
            say(&format!("{now} {}", clean::plain(toast.text.as_bytes())))?;
        }
        Ok(asks(effects))
    }

    fn lines(&self, batch: &LogBatch) -> anyhow::Result<()> {
        let named = self.watch.is_some_and(|(_, named)| named);
        for gap in &batch.gaps {
            say(&clean::plain(
                format!("{}: {} lines lost ({})", gap.deployment, thousands(gap.lost), gap.reason).as_bytes(),
            ))?;
        }
        for line in &batch.lines {
            let name = if named { format!("{} ", line.deployment) } else { String::new() };
            say(&format!("{name}{}", clean::plain(&line.line)))?;
        }
        Ok(())
    }

    fn list(&self) -> anyhow::Result<()> {
        if self.model.fleet.is_empty() {
            return say("nothing is deployed here yet: sigil deploy SOURCE");
        }
        self.model.rows().into_iter().try_for_each(|d| say(&row(d)))
    }

    /// Runs a typed line; `None` leaves.
    fn typed(&mut self, line: &str) -> anyhow::Result<Option<Vec<Request>>> {
        self.model.now = Timestamp::now();
        if let Some((change, _)) = self.pending.take() {
            return Ok(Some(if line == "yes" {
                self.start(change)?
            } else {
                say("nothing was done")?;
                Vec::new()
            }));
        }
        if line.is_empty() {
            // Enter ends a log.
            return Ok(Some(match self.watch.take() {
                Some(_) => vec![Request::StopLogs],
                None => Vec::new(),
            }));
        }
        let command = match command::parse(line, None) {
            Ok(command) => command,
            Err(problem) => {
                say(&problem)?;
                return Ok(Some(Vec::new()));
            }
        };
        let mut asked = Vec::new();
        match command {
            Command::Quit => return Ok(None),
            Command::Table => self.list()?,
            Command::Help => {
                for (verb, args, about) in VERBS {
                    say(&format!("{verb} {args}: {about}"))?;
                }
                say("Enter alone ends a log.")?;
            }
            Command::Detail(name) => {
                asked = asks(super::update::run(&mut self.model, Command::Detail(name)));
            }
            Command::Logs(names) => {
                self.model.counter += 1;
                self.watch = Some((self.model.counter, names.len() != 1));
                let all = names.is_empty();
                let query = LogQuery { deployments: names, all, follow: true, tail: Some(20), ..LogQuery::default() };
                asked.push(Request::WatchLogs { watch: self.model.counter, query });
            }
            Command::Open(screen, name) => {
                asked = asks(super::update::run(&mut self.model, Command::Open(screen, name)));
            }
            Command::Start(name) => asked = self.start(Change::Start(name))?,
            Command::Scale(name, n) if n > 0 => asked = self.start(Change::Scale(name, n))?,
            Command::Scale(name, _) => self.ask(Change::Scale(name.clone(), 0), format!("scale {name} to 0"))?,
            Command::Restart(name) => self.ask(Change::Restart(name.clone()), format!("restart {name}"))?,
            Command::Stop(name) => self.ask(Change::Stop(name.clone()), format!("stop {name}"))?,
            Command::Remove(name) => self.ask(Change::Remove(name.clone()), format!("delete {name} for good"))?,
            Command::Rollback(name, r) => {
                let to = if r == 0 { "its last good release".to_owned() } else { format!("release {r}") };
                self.ask(Change::Rollback(name.clone(), r), format!("roll {name} back to {to}"))?;
            }
            Command::Sort(sort) => {
                self.model.table.sort = sort;
                self.list()?;
            }
            Command::Filter(_) | Command::Save(_) => say("that needs the screen; 'sigil logs --grep' does it")?,
            Command::Search(words) => {
                self.model.desk.find = words.unwrap_or_default();
                asked = asks(super::update::run(&mut self.model, Command::Search(None)));
            }
            Command::Package(name) => asked = asks(super::update::run(&mut self.model, Command::Package(name))),
            Command::Guide(topic) => {
                super::update::run(&mut self.model, Command::Guide(topic));
                for line in view::sheet::text(&self.model) {
                    say(&line)?;
                }
                self.model.screens = vec![Screen::Table];
            }
            Command::Call(name, _) => {
                say(&format!("that needs the screen; 'sigil call {name} TOOL --arg k=v' does it"))?
            }
            Command::Tap(name) => say(&format!("that needs the screen; 'sigil tap {name} -f' does it"))?,
            Command::Deploy(_) => say("that needs the screen; 'sigil deploy SOURCE' does it")?,
            Command::Operation(id) => say(&format!("that needs the screen; 'sigil ops {id} -f' does it"))?,
        }
        Ok(Some(asked))
    }

    fn ask(&mut self, change: Change, words: String) -> anyhow::Result<()> {
        say(&format!("Type yes to {words} on {}.", clean::plain(self.model.host().as_bytes())))?;
        self.pending = Some((change, words));
        Ok(())
    }

    fn start(&mut self, change: Change) -> anyhow::Result<Vec<Request>> {
        let asked = asks(super::update::start(&mut self.model, change).into_iter().collect());
        if let Some(toast) = self.model.toast.take() {
            say(&toast.text)?;
        } else {
            say("asked for")?;
        }
        Ok(asked)
    }
}

fn asks(effects: Vec<Effect>) -> Vec<Request> {
    effects
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Ask(request) => Some(request),
            _ => None,
        })
        .collect()
}
