//! Several agents in one console. What comes from one gets its host's name in front (`host/name`), and what is asked for
//! goes to the host whose name is in front. With one agent names are as they are. Pure, as `update`.

use jiff::{SignedDuration, Timestamp};
use sigil_config::console::Guard;

use super::flow::Flow;
use super::model::{Link, Model, Screen};
use super::port::{LinkEvent, Request};
use super::sheet::{Look, Seen};
use crate::link::alerts::Alerts;
use crate::link::{AgentInfo, Change, LogBatch};

/// Between a host's name and a deployment's. Neither can contain it.
const BETWEEN: char = '/';

/// One agent.
#[derive(Debug)]
pub struct Host {
    /// As its context is called.
    pub name: String,
    /// Its address.
    pub address: String,
    /// The link.
    pub link: Link,
    /// The agent, as it last said.
    pub info: Option<AgentInfo>,
    /// All of its deployments have been told once.
    pub complete: bool,
    /// Its clock minus this one, seconds.
    pub clock_offset: i64,
    /// Since when the link is up.
    pub up_since: Option<Timestamp>,
    /// What was wrong there when it was last asked.
    pub alerts: Option<Alerts>,
    /// How carefully it is handled.
    pub guard: Guard,
}

impl Host {
    /// Before anything is known of it.
    pub fn new(name: String, address: String) -> Self {
        Self {
            name,
            address,
            link: Link::Connecting,
            info: None,
            complete: false,
            clock_offset: 0,
            up_since: None,
            alerts: None,
            guard: Guard::default(),
        }
    }

    /// The link works.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }
}

/// Lines of several hosts that wait a moment for older ones of the others.
#[derive(Debug, Default)]
pub struct Merge {
    batch: LogBatch,
    since: Option<Timestamp>,
}

/// How long lines wait for older ones of other hosts, milliseconds.
const WINDOW: i64 = 300;
/// Lines that wait at most: more are shown as they came.
const WAITING: usize = 20_000;

impl Merge {
    /// Takes lines in; they wait.
    pub fn add(&mut self, batch: LogBatch, now: Timestamp) {
        self.since.get_or_insert(now);
        self.batch.lines.extend(batch.lines);
        self.batch.gaps.extend(batch.gaps);
    }

    /// When what waits is to be shown.
    pub fn due(&self) -> Option<Timestamp> {
        self.since?.checked_add(SignedDuration::from_millis(WINDOW)).ok()
    }

    /// What has waited long enough, by time.
    pub fn take(&mut self, now: Timestamp) -> Option<LogBatch> {
        if self.due()? > now && self.batch.lines.len() < WAITING {
            return None;
        }
        self.since = None;
        let mut batch = std::mem::take(&mut self.batch);
        // Stable: lines of one host stay in their order where their times are the same.
        batch.lines.sort_by_key(|l| l.time);
        Some(batch)
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A deployment's name without its host's.
pub fn bare(name: &str) -> &str {
    name.split_once(BETWEEN).map_or(name, |(_, name)| name)
}

impl Model {
    /// More than one agent.
    pub fn several(&self) -> bool {
        self.hosts.len() > 1
    }

    /// What stands before names of a host.
    pub fn prefix(&self, host: usize) -> String {
        match self.hosts.get(host) {
            Some(host) if self.hosts.len() > 1 => format!("{}{BETWEEN}", host.name),
            _ => String::new(),
        }
    }

    /// The host of a deployment, by its name.
    pub fn host_at(&self, name: &str) -> usize {
        let Some((host, _)) = name.split_once(BETWEEN) else { return 0 };
        self.hosts.iter().position(|h| h.name == host).unwrap_or(0)
    }

    /// The host of a deployment, by its name.
    pub fn host_of(&self, name: &str) -> &Host {
        &self.hosts[self.host_at(name)]
    }

    /// The host that what is shown belongs to: the place's, else the row's under the cursor, else the first that answers.
    pub fn here(&self) -> usize {
        if !self.several() {
            return 0;
        }
        let place = self.place();
        let plain = matches!(place.screen, Screen::Guide | Screen::Deploy);
        if let Some(name) = place.names.first().filter(|_| !plain) {
            return self.host_at(name);
        }
        let row = self.subject().or_else(|| self.table.selected.as_ref().and_then(|id| self.fleet.get(id)));
        match row {
            Some(deployment) => self.host_at(&deployment.name),
            None => self.hosts.iter().position(Host::is_up).unwrap_or(0),
        }
    }

    /// The link to that host.
    pub fn link(&self) -> &Link {
        &self.hosts[self.here()].link
    }

    /// Its agent, as it last said.
    pub fn info(&self) -> Option<&AgentInfo> {
        self.hosts[self.here()].info.as_ref()
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.hosts[self.here()].address
    }

    /// All deployments of all hosts that answer have been told once.
    pub fn complete(&self) -> bool {
        let answers: Vec<&Host> = self.hosts.iter().filter(|h| h.is_up()).collect();
        match answers.as_slice() {
            [] => self.hosts.iter().any(|h| h.complete),
            some => some.iter().all(|h| h.complete),
        }
    }

    /// The whole name of a deployment that was named without its host.
    pub fn whole(&self, name: &str) -> Result<String, String> {
        if !self.several() || name.contains(BETWEEN) {
            return Ok(name.to_owned());
        }
        let found: Vec<&str> = self.fleet.values().filter(|d| bare(&d.name) == name).map(|d| d.name.as_str()).collect();
        match found.as_slice() {
            [one] => Ok((*one).to_owned()),
            [] => Err(format!("no host has a deployment '{name}'")),
            many => Err(format!("several hosts have a '{name}': write {}", many.join(" or "))),
        }
    }

    /// Why nothing may be changed at a host, if so: said before anything is typed.
    pub fn refused(&self, host: usize) -> Option<String> {
        let host = &self.hosts[host];
        if self.read_only {
            return Some(
                "read-only: this console was started so (--read-only, or read_only in console.toml)".to_owned(),
            );
        }
        if host.guard.read_only {
            return Some(format!("read-only: console.toml says so of {}", host.name));
        }
        let info = host.info.as_ref()?;
        let looks = |role: &str| matches!(role, "viewer" | "caller");
        let grants = info.grants.iter().all(|g| looks(&g.role));
        (looks(&info.role) && grants)
            .then(|| format!("read-only: you are {} there, which changes nothing; an admin can grant more", info.role))
    }
}

/// What comes from a host, with its name in front of its deployments', and times by this clock.
pub fn named(model: &Model, host: usize, mut event: LinkEvent) -> LinkEvent {
    let prefix = model.prefix(host);
    if prefix.is_empty() {
        return event;
    }
    let offset = SignedDuration::from_secs(model.hosts[host].clock_offset);
    let before = |name: &mut String| name.insert_str(0, &prefix);
    match &mut event {
        LinkEvent::Fleet(update) => {
            for deployment in &mut update.changed {
                before(&mut deployment.name);
                before(&mut deployment.id);
            }
            update.removed.iter_mut().for_each(before);
        }
        LinkEvent::Detail { name, result } => {
            before(name);
            if let Ok(detail) = result {
                before(&mut detail.deployment.name);
                before(&mut detail.deployment.id);
            }
        }
        LinkEvent::Logs { batch, .. } => {
            for line in &mut batch.lines {
                before(&mut line.deployment);
                line.time = line.time.map(|t| t.checked_sub(offset).unwrap_or(t));
            }
            batch.gaps.iter_mut().for_each(|g| before(&mut g.deployment));
        }
        LinkEvent::Looked { result: Ok(seen), .. } => {
            if let Seen::Overview(alerts) = seen.as_mut() {
                alerts.firing.iter_mut().chain(&mut alerts.ended).for_each(|a| before(&mut a.about));
            }
        }
        _ => {}
    }
    event
}

/// Where a request goes, with names as the hosts know them.
pub fn route(model: &Model, request: Request) -> Vec<(usize, Request)> {
    if !model.several() {
        return vec![(0, request)];
    }
    let all = 0..model.hosts.len();
    let one = |name: &str| (model.host_at(name), bare(name).to_owned());
    match request {
        Request::WatchLogs { watch, query } => all
            .map(|host| {
                let theirs = query.deployments.iter().filter(|n| model.host_at(n) == host);
                let deployments: Vec<String> = theirs.map(|n| bare(n).to_owned()).collect();
                if deployments.is_empty() && !query.all {
                    return (host, Request::StopLogs);
                }
                let offset = SignedDuration::from_secs(model.hosts[host].clock_offset);
                let since = query.since.map(|t| t.checked_add(offset).unwrap_or(t));
                (
                    host,
                    Request::WatchLogs { watch, query: crate::link::LogQuery { deployments, since, ..query.clone() } },
                )
            })
            .collect(),
        Request::StopLogs => all.map(|host| (host, Request::StopLogs)).collect(),
        Request::Reconnect => all.filter(|h| !model.hosts[*h].is_up()).map(|host| (host, Request::Reconnect)).collect(),
        Request::Detail { name } => {
            let (host, name) = one(&name);
            vec![(host, Request::Detail { name })]
        }
        Request::Change { change, what } => {
            let host = model.asked.get(&change).map_or_else(|| model.here(), |a| a.host);
            vec![(host, Request::Change { change, what: without(what) })]
        }
        Request::Flow { flow, what } => {
            let (host, what) = of_host(model, what);
            vec![(host, Request::Flow { flow, what })]
        }
        // The others do not know its number.
        Request::StopFlow { flow } => all.map(|host| (host, Request::StopFlow { flow })).collect(),
        Request::Look { look, what } => {
            let asked = model.sheets.values().find(|s| s.look == look).and_then(|s| s.name.as_deref());
            let host = asked.map_or_else(|| model.here(), |name| model.host_at(name));
            let what = match what {
                Look::Overview => {
                    let up = all.filter(|h| model.hosts[*h].is_up());
                    return up.map(|host| (host, Request::Look { look, what: Look::Overview })).collect();
                }
                Look::Health { name } => Look::Health { name: one(&name).1 },
                Look::Scaling { name, load } => Look::Scaling { name: one(&name).1, load },
                Look::Findings { name, known } => Look::Findings { name: one(&name).1, known },
                Look::Tools { name } => Look::Tools { name: one(&name).1 },
                Look::Releases { name } => Look::Releases { name: one(&name).1 },
                what @ (Look::Secrets
                | Look::Access { .. }
                | Look::Registry { .. }
                | Look::Package { .. }
                | Look::Builds) => what,
            };
            vec![(host, Request::Look { look, what })]
        }
    }
}

/// A flow as its host knows it.
fn of_host(model: &Model, mut what: Flow) -> (usize, Flow) {
    let host = match &mut what {
        Flow::Tap { name } | Flow::Call { name, .. } | Flow::Pins { name, .. } | Flow::Scaling { name, .. } => {
            let host = model.host_at(name);
            *name = bare(name).to_owned();
            host
        }
        Flow::Operation { .. } | Flow::Replay { .. } | Flow::Secret { .. } | Flow::Look { .. } => model.here(),
    };
    (host, what)
}

/// A change as its host knows it.
fn without(what: Change) -> Change {
    let plain = |name: String| bare(&name).to_owned();
    match what {
        Change::Restart(name) => Change::Restart(plain(name)),
        Change::Stop(name) => Change::Stop(plain(name)),
        Change::Start(name) => Change::Start(plain(name)),
        Change::Scale(name, replicas) => Change::Scale(plain(name), replicas),
        Change::Rollback(name, release) => Change::Rollback(plain(name), release),
        Change::Remove(name) => Change::Remove(plain(name)),
        Change::Deploy(mut deploy) => {
            deploy.name = plain(deploy.name);
            Change::Deploy(deploy)
        }
        other @ (Change::Build { .. } | Change::Scan { .. }) => other,
    }
}
