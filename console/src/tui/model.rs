//! Everything the screens show. Plain data; only `update` changes it and only `view` reads it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::Options;
use super::desk::{Ask, Desk, Question};
use super::fleet::{Host, Merge, bare};
use super::keymap::Keymap;
use super::logbuf::{Buffer, Pattern};
use super::port::Trouble;
use super::sheet::Sheet;
use super::theme::{Palette, Theme};
use crate::link::findings::Report;
use crate::link::{Change, Deployment, Detail, Event};

/// The link's state.
#[derive(Debug, Clone, PartialEq)]
pub enum Link {
    /// The first try.
    Connecting,
    /// The agent answers.
    Up {
        /// Round trip, in milliseconds.
        rtt_ms: u64,
    },
    /// It does not.
    Down {
        /// Why.
        trouble: Trouble,
        /// Since when.
        since: Timestamp,
        /// When it is tried again.
        retry_at: Timestamp,
    },
}

/// A screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Screen {
    /// The agent, and what is wrong.
    Overview,
    /// All deployments.
    Table,
    /// One of them.
    Detail,
    /// Their output.
    Logs,
    /// How the replicas of one answer.
    Health,
    /// How one is scaled.
    Scaling,
    /// What is wrong with the source of one.
    Findings,
    /// Secrets without their values.
    Secrets,
    /// Who may what, and who did what.
    Access,
    /// Packages of the registry.
    Registry,
    /// One of them.
    Package,
    /// Operations.
    Builds,
    /// One of them.
    Build,
    /// The tools of one deployment.
    Tools,
    /// A call of one of them.
    Call,
    /// Messages of one, as they pass.
    Tap,
    /// Releases of one.
    Releases,
    /// The scaling policy of one, to be changed.
    Policy,
    /// Something new is deployed.
    Deploy,
    /// The handbook.
    Guide,
}

/// Where a person is: a screen and what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which screen.
    pub screen: Screen,
    /// Names of deployments.
    pub names: Vec<String>,
}

/// What the table is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    Name,
    State,
    Rpm,
    P99,
    Errors,
    Cpu,
    Memory,
}

impl Sort {
    /// All, with the key that chooses it and its word.
    pub const ALL: [(Self, char, &'static str); 7] = [
        (Self::Name, 'n', "name"),
        (Self::State, 's', "state"),
        (Self::Rpm, 'r', "requests"),
        (Self::P99, 'p', "p99"),
        (Self::Errors, 'e', "errors"),
        (Self::Cpu, 'c', "cpu"),
        (Self::Memory, 'm', "memory"),
    ];

    fn key(self, d: &Deployment) -> f64 {
        match self {
            Self::Name => 0.0,
            // What is wrong first.
            Self::State => {
                const ORDER: [&str; 8] =
                    ["failed", "degraded", "starting", "building", "pending", "ready", "sleeping", "stopped"];
                ORDER.iter().position(|s| *s == d.state).unwrap_or(ORDER.len()) as f64
            }
            // The largest first.
            Self::Rpm => -d.rpm,
            Self::P99 => -d.p99_ms,
            Self::Errors => -d.error_rate,
            Self::Cpu => -d.cpu_percent,
            Self::Memory => -(d.memory_bytes as f64),
        }
    }
}

/// The table's state.
#[derive(Debug)]
pub struct Table {
    /// Id under the cursor.
    pub selected: Option<String>,
    /// First row on the screen.
    pub offset: usize,
    /// Marked ids.
    pub marked: BTreeSet<String>,
    /// The id that was marked last: a range begins there.
    pub anchor: Option<String>,
    /// Order.
    pub sort: Sort,
    /// The other way round.
    pub inverted: bool,
    /// Which are shown.
    pub filter: Option<Pattern>,
}

/// How a log line's time is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeMode {
    Off,
    Absolute,
    Relative,
}

/// Since when lines are asked for, by the digit that chooses it.
pub const SINCE: [(&str, Option<i64>); 7] = [
    ("last 1,000 lines", None),
    ("1 minute", Some(60)),
    ("5 minutes", Some(300)),
    ("15 minutes", Some(900)),
    ("1 hour", Some(3_600)),
    ("6 hours", Some(21_600)),
    ("24 hours", Some(86_400)),
];

/// The log view's state.
#[derive(Debug)]
pub struct Logs {
    /// Names; empty: every deployment.
    pub names: Vec<String>,
    /// The watch's number.
    pub watch: u64,
    /// Lines.
    pub buffer: Buffer,
    /// Keep the newest line on the screen.
    pub follow: bool,
    /// The number of the entry at the top of the screen, and the row within it, when not following.
    pub top: (u64, usize),
    /// The entry that one is at, when not following.
    pub current: Option<u64>,
    /// Long lines go on in the next row.
    pub wrap: bool,
    /// Columns scrolled to the right, without wrap.
    pub shift: usize,
    /// How times are shown.
    pub time: TimeMode,
    /// Index into [`SINCE`].
    pub since: usize,
    /// Only replicas that are gone.
    pub previous: bool,
    /// Errors over time are shown above the lines.
    pub strip: bool,
    /// The stream broke; why.
    pub lost: Option<String>,
    /// It ended for good.
    pub ended: Option<Option<Trouble>>,
    /// Of several hosts those whose stream has ended.
    pub out: BTreeSet<usize>,
    /// A first batch has come.
    pub started: bool,
}

impl Logs {
    /// A view that follows.
    pub fn new(names: Vec<String>, watch: u64) -> Self {
        Self {
            names,
            watch,
            buffer: Buffer::default(),
            follow: true,
            top: (0, 0),
            current: None,
            wrap: true,
            shift: 0,
            time: TimeMode::Off,
            since: 0,
            previous: false,
            strip: false,
            lost: None,
            ended: None,
            out: BTreeSet::new(),
            started: false,
        }
    }
}

/// One deployment's page.
#[derive(Debug)]
pub struct Page {
    /// Whose.
    pub name: String,
    /// What the agent said.
    pub detail: Option<Detail>,
    /// Or why not.
    pub trouble: Option<Trouble>,
    /// When it was last asked for.
    pub asked_at: Timestamp,
    /// First row on the screen.
    pub scroll: usize,
}

/// A change that was asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Name of the deployment.
    pub name: String,
    /// The host that was asked.
    pub host: usize,
    /// `restarting`, `stopping` …
    pub doing: &'static str,
    /// When.
    pub at: Timestamp,
    /// The operation, once it is known.
    pub operation: Option<String>,
    /// Steps and notes so far.
    pub events: Vec<Event>,
}

/// Changes that were agreed to and are not asked for yet.
#[derive(Debug, Clone)]
pub struct Held {
    /// What.
    pub changes: Vec<Change>,
    /// When they are asked for.
    pub until: Timestamp,
}

/// A question before a change.
#[derive(Debug, Clone)]
pub struct Confirm {
    /// `Restart time?`
    pub title: String,
    /// What it touches.
    pub lines: Vec<String>,
    /// What is done on yes.
    pub changes: Vec<Change>,
    /// Whether the cursor is on the button that does it.
    pub on_yes: bool,
    /// The word to type first, and what was typed.
    pub word: Option<(String, String)>,
}

/// What a line of input is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Which rows or lines are shown.
    Filter,
    /// What is highlighted.
    Search,
    /// Which packages are looked for.
    Packages,
    /// Which words of the handbook.
    Words,
    /// A command.
    Command,
    /// Replicas of this deployment.
    Scale(String),
}

/// A line of input at the bottom.
#[derive(Debug, Clone)]
pub struct Input {
    /// What for.
    pub purpose: Purpose,
    /// What was typed.
    pub text: String,
    /// Cursor, in characters.
    pub at: usize,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// How far back in the history.
    pub history: usize,
}

/// What lies over the screen.
#[derive(Debug, Clone)]
pub enum Overlay {
    Help {
        scroll: usize,
    },
    Confirm(Confirm),
    Input(Input),
    Sort,
    /// A question with a difference to look at.
    Question(Question),
    /// A value that nobody may see.
    Secret(Ask),
    /// One log line in full.
    Line {
        title: String,
        text: Vec<String>,
        scroll: usize,
    },
}

/// A passing word to the person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toast {
    /// What.
    pub text: String,
    /// It went wrong.
    pub bad: bool,
    /// When it goes.
    pub until: Timestamp,
}

/// Everything.
#[derive(Debug)]
pub struct Model {
    /// The terminal's columns and rows.
    pub size: (u16, u16),
    /// Told by ticks: nothing in here reads a clock.
    pub now: Timestamp,
    /// For times on the screen.
    pub zone: jiff::tz::TimeZone,
    /// How to draw.
    pub theme: Theme,
    /// As the console was started.
    pub options: Options,
    /// Where `console.toml` is.
    pub config_path: String,
    /// The screen of the last time, until there is something to show on it.
    pub resume: Option<Place>,
    /// Which key does what.
    pub keymap: Keymap,
    /// The wheel scrolls.
    pub mouse: bool,
    /// What was done here, as command lines, the oldest first.
    pub done: Vec<(Timestamp, String)>,
    /// The agents; never none.
    pub hosts: Vec<Host>,
    /// Nothing may be changed from here.
    pub read_only: bool,
    /// Deployments of all hosts by id.
    pub fleet: BTreeMap<String, Deployment>,
    /// Screens, the one on top last; never empty.
    pub screens: Vec<Screen>,
    /// The table.
    pub table: Table,
    /// The page.
    pub page: Option<Page>,
    /// The logs.
    pub logs: Option<Logs>,
    /// Forms, calls, messages, operations that are looked at.
    pub desk: Desk,
    /// Screens that are sheets, as they were left.
    pub sheets: BTreeMap<Screen, Sheet>,
    /// Places that were visited, in order.
    pub visits: Vec<Place>,
    /// Which of them is shown.
    pub visit: usize,
    /// Where one was before.
    pub before: Option<Place>,
    /// Log lines of several hosts that wait for each other.
    pub merge: Merge,
    /// Changes that can still be taken back.
    pub held: Vec<Held>,
    /// What is wrong with `console.toml`.
    pub flaws: Vec<String>,
    /// The palette that a previewed theme stands in for.
    pub preview: Option<Palette>,
    /// Reports of scans that were asked for here, by source.
    pub reports: BTreeMap<String, Report>,
    /// What lies over them.
    pub overlay: Option<Overlay>,
    /// A passing word.
    pub toast: Option<Toast>,
    /// Changes under way, by their number.
    pub asked: BTreeMap<u64, Asked>,
    /// Counts watches and changes.
    pub counter: u64,
    /// Commands typed before, oldest first.
    pub history: Vec<String>,
    /// Something that shows has changed.
    pub dirty: bool,
}

impl Model {
    /// The first screen, before anything is known.
    pub fn new(address: String, theme: Theme, size: (u16, u16), now: Timestamp) -> Self {
        Self {
            size,
            now,
            zone: jiff::tz::TimeZone::UTC,
            theme,
            options: Options {
                colour: theme.colour,
                ascii: theme.ascii,
                plain: false,
                slow: false,
                theme: None,
                read_only: false,
            },
            config_path: String::new(),
            resume: None,
            keymap: Keymap::default(),
            mouse: false,
            done: Vec::new(),
            hosts: vec![Host::new(String::new(), address)],
            read_only: false,
            fleet: BTreeMap::new(),
            screens: vec![Screen::Table],
            table: Table {
                selected: None,
                offset: 0,
                marked: BTreeSet::new(),
                anchor: None,
                sort: Sort::Name,
                inverted: false,
                filter: None,
            },
            page: None,
            logs: None,
            desk: Desk::default(),
            sheets: BTreeMap::new(),
            visits: vec![Place { screen: Screen::Table, names: Vec::new() }],
            visit: 0,
            before: None,
            merge: Merge::default(),
            held: Vec::new(),
            flaws: Vec::new(),
            preview: None,
            reports: BTreeMap::new(),
            overlay: None,
            toast: None,
            asked: BTreeMap::new(),
            counter: 0,
            history: Vec::new(),
            dirty: true,
        }
    }

    /// The screen on top.
    pub fn screen(&self) -> Screen {
        self.screens.last().copied().unwrap_or(Screen::Table)
    }

    /// The table's rows in order.
    pub fn rows(&self) -> Vec<&Deployment> {
        let wanted = |d: &&Deployment| {
            self.table.filter.as_ref().is_none_or(|f| {
                // As a person sees it: name, state and source in one.
                f.wants(format!("{} {} {} {}", d.name, d.state, d.source, d.transport).as_bytes())
            })
        };
        let mut rows: Vec<&Deployment> = self.fleet.values().filter(wanted).collect();
        let sort = self.table.sort;
        rows.sort_by(|a, b| {
            sort.key(a).total_cmp(&sort.key(b)).then_with(|| (bare(&a.name), &a.name).cmp(&(bare(&b.name), &b.name)))
        });
        if self.table.inverted {
            rows.reverse();
        }
        rows
    }

    /// The deployment that actions are about.
    pub fn subject(&self) -> Option<&Deployment> {
        match self.screen() {
            Screen::Table => self.table.selected.as_ref().and_then(|id| self.fleet.get(id)),
            Screen::Detail => {
                let name = &self.page.as_ref()?.name;
                self.fleet.values().find(|d| d.name == *name)
            }
            Screen::Logs => {
                let names = &self.logs.as_ref()?.names;
                self.fleet.values().find(|d| names.len() == 1 && d.name == names[0])
            }
            screen if !screen.is_sheet() => {
                let name = self.desk.names(screen).into_iter().next()?;
                self.fleet.values().find(|d| d.name == name)
            }
            screen => {
                let sheet = self.sheets.get(&screen)?;
                let name = sheet.name.as_ref().or(sheet.about.as_ref())?;
                self.fleet.values().find(|d| d.name == *name)
            }
        }
    }

    /// The sheet on top.
    pub fn sheet(&self) -> Option<&Sheet> {
        self.sheets.get(&self.screen())
    }

    /// Where a person is.
    pub fn place(&self) -> Place {
        let screen = self.screen();
        let names = match screen {
            Screen::Table => Vec::new(),
            Screen::Detail => self.page.iter().map(|p| p.name.clone()).collect(),
            Screen::Logs => self.logs.as_ref().map(|l| l.names.clone()).unwrap_or_default(),
            _ if !screen.is_sheet() => self.desk.names(screen),
            _ => self.sheet().and_then(|s| s.name.clone()).into_iter().collect(),
        };
        Place { screen, names }
    }

    /// All that actions are about: the marked ones, else the one under the cursor.
    pub fn subjects(&self) -> Vec<&Deployment> {
        if self.screen() == Screen::Table && !self.table.marked.is_empty() {
            return self.rows().into_iter().filter(|d| self.table.marked.contains(&d.id)).collect();
        }
        self.subject().into_iter().collect()
    }

    /// What was asked of a deployment and is under way.
    pub fn asked_of(&self, name: &str) -> Option<&Asked> {
        self.asked.values().rev().find(|a| a.name == name)
    }

    /// Whether something goes on that takes long and is done in slices.
    pub fn is_working(&self) -> bool {
        self.logs.as_ref().is_some_and(|l| l.buffer.is_working())
    }

    /// How old what is shown is, once the link is down.
    pub fn stale_seconds(&self) -> Option<i64> {
        self.stale_of(&self.hosts[self.here()])
    }

    /// The same of one host.
    pub fn stale_of(&self, host: &Host) -> Option<i64> {
        match &host.link {
            Link::Down { since, .. } if host.complete => Some((self.now.as_second() - since.as_second()).max(0)),
            _ => None,
        }
    }

    /// What the agent's clock shows, as far as it is known.
    pub fn agent_now(&self) -> Timestamp {
        self.now.checked_add(jiff::SignedDuration::from_secs(self.hosts[self.here()].clock_offset)).unwrap_or(self.now)
    }

    /// The host, for titles and questions.
    pub fn host(&self) -> &str {
        let host = &self.hosts[self.here()];
        match &host.info {
            _ if self.several() => &host.name,
            Some(info) => &info.hostname,
            None => &host.address,
        }
    }

    /// Rows between header and footer.
    pub fn body_rows(&self) -> usize {
        usize::from(self.size.1).saturating_sub(2)
    }
}
