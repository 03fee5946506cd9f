//! The console without a screen (`--plain`, `ACCESSIBLE=1`): lines are appended, commands are typed as a line. For
//! screen readers, teletypes and recordings.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio_stream::wrappers::ReceiverStream;

use super::command::{self, Command, VERBS};
use super::logbuf::thousands;
use super::model::{Link, Model, Screen};
use super::port::{LinkEvent, Port, Request};
use super::signals::{Signal, Signals};
use super::update::{Effect, Event, joined, update};
use super::{Files, Options, clean, view};
use crate::link::{Change, Deployment, LogBatch, LogQuery, What};

/// Runs until `quit`, the end of input, or a signal.
pub async fn run(ports: Vec<Port>, options: Options, files: Files) -> anyhow::Result<()> {
    let mut model = super::model_of(&ports, options, (80, 24));
    if let Some(path) = &files.config {
        model.config_path = path.display().to_string();
        // Keys and colours have no place here; what is protected has.
        super::settings::take(&mut model, sigil_config::console::load(path), true);
        model.toast = None;
        for flaw in &model.flaws {
            say(flaw)?;
        }
    }
    let (streams, requests): (Vec<_>, Vec<_>) = ports
        .into_iter()
        .enumerate()
        .map(|(host, port)| (ReceiverStream::new(port.events).map(move |event| (host, event)), port.requests))
        .unzip();
    let mut events = futures::stream::select_all(streams);
    let mut signals = Signals::new()?;
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut plain = Plain { model, pending: None, watch: None, shows: None };
    let to: Vec<&str> = plain.model.hosts.iter().map(|h| h.address.as_str()).collect();
    say(&format!("sigil: connecting to {}. Type 'help' and Enter for commands.", to.join(", ")))?;
    loop {
        let asked = tokio::select! {
            signal = signals.next() => match signal {
                Signal::End => return Ok(()),
                Signal::Stop => {
                    super::signals::stop()?;
                    Vec::new()
                }
            },
            _ = tokio::signal::ctrl_c() => return Ok(()),
            line = input.next_line() => match line? {
                Some(line) => match plain.typed(line.trim())? {
                    Some(asked) => asked,
                    None => return Ok(()),
                },
                None => return Ok(()),
            },
            event = events.next() => {
                let (host, event) = event.context("the link ended")?;
                plain.happened(host, event)?
            }
            _ = second.tick() => plain.ticked()?,
        };
        for request in asked {
            for (host, request) in super::fleet::route(&plain.model, request) {
                if requests.get(host).is_none_or(|r| r.try_send(request).is_err()) {
                    say("the link is busy: try again")?;
                }
            }
        }
    }
}

struct Plain {
    model: Model,
    /// What is done on a word, and the word.
    pending: Option<(Change, String)>,
    /// The log watch that is printed, and whether lines name their deployment.
    watch: Option<(u64, bool)>,
    /// The sheet that stays: what is new on it is appended.
    shows: Option<Vec<String>>,
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
    fn happened(&mut self, host: usize, event: LinkEvent) -> anyhow::Result<Vec<Request>> {
        self.model.now = Timestamp::now();
        let mut now = view::clock(&self.model, self.model.now);
        if self.model.several() && !matches!(event, LinkEvent::Logs { .. }) {
            now = format!("{now} {}:", self.model.hosts[host].name);
        }
        let event = super::fleet::named(&self.model, host, event);
        let mut first = false;
        match &event {
            LinkEvent::Connected { info, .. } => {
                let engine = info.engine.as_ref().map(|e| format!(", {} {}", e.name, e.version)).unwrap_or_default();
                say(&clean::plain(
                    format!("{now} connected: {}, agent {}{engine}", info.hostname, info.version).as_bytes(),
                ))?;
            }
            // Said once: it is tried again for as long as it takes.
            LinkEvent::Disconnected { trouble, .. } if matches!(&self.model.hosts[host].link, Link::Down { trouble: told, .. } if told == trouble) =>
                {}
            LinkEvent::Disconnected { trouble, retry_in } => {
                let why = joined(&trouble.what, &trouble.hint);
                say(&format!("{now} no link: {why}; trying again in {} s", retry_in.as_secs().max(1)))?;
            }
            LinkEvent::Fleet(update) => {
                first = update.complete && !self.model.hosts[host].complete;
                for d in &update.changed {
                    let told = |o: &Deployment| (o.state.clone(), o.ready, o.desired, o.release, o.message.clone());
                    let old = self.model.fleet.get(&d.id);
                    if self.model.hosts[host].complete && old.map(told) != Some(told(d)) {
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
        let effects = self.took(host, event);
        if first {
            self.list(host)?;
        }
        if detail {
            for line in view::detail::text(&self.model) {
                say(&line)?;
            }
            // Printed once; what changes is told line by line.
            self.model.screens = vec![Screen::Table];
        }
        // Not for an answer to what was asked before.
        if looked && self.model.screen().is_sheet() && self.model.sheet().is_some_and(|s| !s.waiting) {
            self.sheet(&now)?;
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

    /// The deployments of a host.
    fn list(&self, host: usize) -> anyhow::Result<()> {
        let theirs = |d: &&Deployment| self.model.host_at(&d.name) == host;
        let rows: Vec<&Deployment> = self.model.rows().into_iter().filter(theirs).collect();
        if rows.is_empty() {
            let at =
                if self.model.several() { format!(" on {}", self.model.hosts[host].name) } else { " here".to_owned() };
            return say(&format!("nothing is deployed{at} yet: sigil deploy SOURCE"));
        }
        rows.into_iter().try_for_each(|d| say(&row(d)))
    }

    /// Takes an event into the model.
    fn took(&mut self, host: usize, event: LinkEvent) -> Vec<Effect> {
        // It has its host's name already.
        super::update::link(&mut self.model, host, event)
    }

    /// Time passes: a sheet that stays is asked for again, and what was held is done.
    fn ticked(&mut self) -> anyhow::Result<Vec<Request>> {
        let effects = update(&mut self.model, Event::Tick(Timestamp::now()));
        if let Some(toast) = self.model.toast.take() {
            say(&clean::plain(toast.text.as_bytes()))?;
        }
        Ok(asks(effects))
    }

    /// A sheet is said whole once; afterwards only lines that were not there before.
    fn sheet(&mut self, now: &str) -> anyhow::Result<()> {
        let lines = view::sheet::text(&self.model);
        match &self.shows {
            None => lines.iter().try_for_each(|line| say(line))?,
            Some(old) => {
                let new = lines.iter().filter(|l| !l.is_empty() && !old.contains(l));
                new.into_iter().try_for_each(|line| say(&format!("{now} {line}")))?;
            }
        }
        self.shows = Some(lines);
        Ok(())
    }

    /// No sheet stays.
    fn leave(&mut self) {
        self.model.screens = vec![Screen::Table];
        self.shows = None;
    }

    /// Runs a typed line; `None` leaves.
    fn typed(&mut self, line: &str) -> anyhow::Result<Option<Vec<Request>>> {
        self.model.now = Timestamp::now();
        if let Some((change, word)) = self.pending.take() {
            return Ok(Some(if line == word {
                self.start(change)?
            } else {
                say("nothing was done")?;
                Vec::new()
            }));
        }
        if line.is_empty() {
            // Enter ends a log, and a sheet.
            self.leave();
            return Ok(Some(match self.watch.take() {
                Some(_) => vec![Request::StopLogs],
                None => Vec::new(),
            }));
        }
        let read = command::parse(line, None).and_then(|mut command| {
            for name in command.names() {
                *name = self.model.whole(name)?;
            }
            Ok(command)
        });
        let command = match read {
            Ok(command) => command,
            Err(problem) => {
                say(&problem)?;
                return Ok(Some(Vec::new()));
            }
        };
        let mut asked = Vec::new();
        match command {
            Command::Quit => return Ok(None),
            Command::Table => {
                self.leave();
                (0..self.model.hosts.len()).try_for_each(|host| self.list(host))?;
            }
            Command::Help => {
                for (verb, args, about) in VERBS {
                    say(&format!("{verb} {args}: {about}"))?;
                }
                say("Enter alone ends a log or a screen.")?;
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
                self.leave();
                asked = asks(super::update::run(&mut self.model, Command::Open(screen, name)));
            }
            Command::Start(name) if self.model.host_of(&name).guard.protected => {
                self.ask(Change::Start(name.clone()), &name, &format!("start {name}"))?;
            }
            Command::Start(name) => asked = self.start(Change::Start(name))?,
            Command::Scale(name, n) if n > 0 && !self.model.host_of(&name).guard.protected => {
                asked = self.start(Change::Scale(name, n))?;
            }
            Command::Scale(name, n) => {
                self.ask(Change::Scale(name.clone(), n), &name, &format!("scale {name} to {n}"))?;
            }
            Command::Restart(name) => self.ask(Change::Restart(name.clone()), &name, &format!("restart {name}"))?,
            Command::Stop(name) => self.ask(Change::Stop(name.clone()), &name, &format!("stop {name}"))?,
            Command::Remove(name) => {
                self.ask(Change::Remove(name.clone()), &name, &format!("delete {name} for good"))?;
            }
            Command::Rollback(name, r) => {
                let to = if r == 0 { "its last good release".to_owned() } else { format!("release {r}") };
                self.ask(Change::Rollback(name.clone(), r), &name, &format!("roll {name} back to {to}"))?;
            }
            Command::Sort(sort) => {
                self.model.table.sort = sort;
                (0..self.model.hosts.len()).try_for_each(|host| self.list(host))?;
            }
            Command::History => self.model.done.iter().try_for_each(|(_, line)| say(line))?,
            Command::Config => super::settings::report(&self.model).iter().try_for_each(|line| say(line))?,
            Command::Filter(_) | Command::Save(_) | Command::Page | Command::Theme(_) | Command::Tour => {
                say("that needs the screen; 'sigil logs --grep' does it")?
            }
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

    fn ask(&mut self, change: Change, name: &str, words: &str) -> anyhow::Result<()> {
        let host = self.model.host_of(name);
        if let Some(why) = self.model.refused(self.model.host_at(name)) {
            return say(&why);
        }
        let at = if self.model.several() { host.name.as_str() } else { self.model.host() };
        // In a protected context a word that is always the same is too quickly said.
        let word = if host.guard.protected { super::fleet::bare(name) } else { "yes" };
        say(&format!("Type {word} to {words} on {}.", clean::plain(at.as_bytes())))?;
        self.pending = Some((change, word.to_owned()));
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
