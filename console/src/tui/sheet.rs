//! Screens that are one sheet of lines: what each asks of the link, what came back, and where its reader is. Plain
//! data, as the rest of the model.

use jiff::Timestamp;

use super::logbuf::Pattern;
use super::model::Screen;
use super::port::Trouble;
use crate::link::alerts::Alerts;
use crate::link::findings::Found;
use crate::link::health::Health;
use crate::link::keeping::{Access, Kept};
use crate::link::scaling::{Decided, Explained, Load, Scaling};
use crate::link::tools::Toolbox;
use crate::link::{Operation, PackageDetail, PackageQuery, Packages, Pins, Release};

/// What a sheet asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// What is wrong at the agent.
    Overview,
    /// How a deployment's replicas answer.
    Health {
        /// Whose.
        name: String,
    },
    /// How a deployment is scaled.
    Scaling {
        /// Whose.
        name: String,
        /// With the load of its last days, which is long and changes slowly.
        load: bool,
    },
    /// What is known to be wrong with a deployment's source.
    Findings {
        /// Whose.
        name: String,
        /// The operation whose findings are known.
        known: Option<String>,
    },
    /// A deployment's tools.
    Tools {
        /// Whose.
        name: String,
    },
    /// Packages that fit.
    Registry {
        /// What is looked for.
        query: Box<PackageQuery>,
    },
    /// One package.
    Package {
        /// Its name.
        name: String,
        /// Its version; empty: the latest.
        version: String,
    },
    /// Operations, past and under way.
    Builds,
    /// A deployment's releases.
    Releases {
        /// Whose.
        name: String,
    },
    /// Secrets, and who uses them.
    Secrets,
    /// Who may what, and who did what.
    Access {
        /// Of the audit log only what is not older.
        since: Option<Timestamp>,
    },
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// For [`Look::Overview`].
    Overview(Alerts),
    /// For [`Look::Health`].
    Health(Box<Health>),
    /// For [`Look::Scaling`].
    Scaling(Box<Scaled>),
    /// For [`Look::Findings`].
    Findings(Box<Found>),
    /// For [`Look::Tools`].
    Tools(Box<Toolbox>),
    /// For [`Look::Registry`].
    Registry(Box<Packages>),
    /// For [`Look::Package`].
    Package(Box<PackageDetail>),
    /// For [`Look::Builds`].
    Builds(Vec<Operation>),
    /// For [`Look::Releases`].
    Releases(Box<Released>),
    /// For [`Look::Secrets`].
    Secrets(Box<Kept>),
    /// For [`Look::Access`].
    Access(Box<Access>),
}

/// A deployment's releases, and the tools of each.
#[derive(Debug, Clone, PartialEq)]
pub struct Released {
    /// Oldest first.
    pub releases: Vec<Release>,
    /// Of each, how its tools looked when it was ready; `None`: that is not known.
    pub pins: Vec<Option<Pins>>,
}

/// Records of the audit log that are kept for a screen.
const RECORDS: usize = 500;

/// How a deployment is scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaled {
    /// The policy, and what is wanted.
    pub scaling: Scaling,
    /// What would be decided now.
    pub explained: Explained,
    /// Steps and refusals, newest first.
    pub decisions: Vec<Decided>,
    /// Its load; `None`: not asked for.
    pub load: Option<Load>,
}

impl Seen {
    /// Keeps of the answer before what this one left out, since it is known.
    pub fn over(&mut self, old: Option<&Self>) {
        match (self, old) {
            (Self::Scaling(new), Some(Self::Scaling(old))) if new.load.is_none() => new.load.clone_from(&old.load),
            (Self::Findings(new), Some(Self::Findings(old)))
                if new.told.is_none() && new.operation == old.operation =>
            {
                new.told.clone_from(&old.told);
            }
            (Self::Access(new), Some(Self::Access(old))) => new.over(old, RECORDS),
            _ => {}
        }
    }
}

/// Times that plots over time show, by word and seconds.
pub const WINDOWS: [(&str, i64); 4] =
    [("6 hours", 6 * 3_600), ("24 hours", 86_400), ("7 days", 7 * 86_400), ("1 hour", 3_600)];

/// One sheet. It stays when another screen is shown, with its filter, its order and its place.
#[derive(Debug, Default)]
pub struct Sheet {
    /// Whose, where it is a deployment's.
    pub name: Option<String>,
    /// Number of the newest question; answers to others are late.
    pub look: u64,
    /// Its answer has not come yet.
    pub waiting: bool,
    /// When it was asked.
    pub asked_at: Option<Timestamp>,
    /// The newest answer.
    pub seen: Option<Seen>,
    /// Why the newest question has none.
    pub trouble: Option<Trouble>,
    /// Key of the row under the cursor; `None`: the first one, whichever that is.
    pub row: Option<String>,
    /// The deployment that this row is about.
    pub about: Option<String>,
    /// First line on the screen.
    pub offset: usize,
    /// Index into the screen's orders.
    pub order: usize,
    /// The other way round.
    pub inverted: bool,
    /// Which rows are shown.
    pub filter: Option<Pattern>,
    /// Index into [`WINDOWS`].
    pub window: usize,
    /// When what changes slowly was asked for.
    pub slow_at: Option<Timestamp>,
}

/// What is said of a screen: the digit that opens it, its title, the palette's verb, and whether it is a deployment's.
pub struct Title {
    /// Which.
    pub screen: Screen,
    /// The digit; F1 to F10 are the same.
    pub digit: char,
    /// As the header says it.
    pub title: &'static str,
    /// As the palette says it.
    pub verb: &'static str,
    /// It shows one deployment.
    pub of_one: bool,
}

const fn title(screen: Screen, digit: char, title: &'static str, verb: &'static str, of_one: bool) -> Title {
    Title { screen, digit, title, verb, of_one }
}

/// Screens that digits open.
pub const TITLES: [Title; 10] = [
    title(Screen::Overview, '1', "Overview", "overview", false),
    title(Screen::Table, '2', "Deployments", "ls", false),
    title(Screen::Logs, '3', "Logs", "logs", false),
    title(Screen::Health, '4', "Health", "health", true),
    title(Screen::Scaling, '5', "Scaling", "scaling", true),
    title(Screen::Registry, '6', "Registry", "registry", false),
    title(Screen::Builds, '7', "Builds", "builds", false),
    title(Screen::Findings, '8', "Findings", "findings", true),
    title(Screen::Secrets, '9', "Secrets", "secrets", false),
    title(Screen::Access, '0', "Access and audit", "access", false),
];

/// Screens that other keys open. They have no digit.
pub const OTHERS: [Title; 9] = [
    title(Screen::Tools, ' ', "Tools", "tools", true),
    title(Screen::Call, ' ', "Call", "call", true),
    title(Screen::Tap, ' ', "Messages", "tap", true),
    title(Screen::Releases, ' ', "Releases", "releases", true),
    title(Screen::Policy, ' ', "Scaling policy", "policy", true),
    title(Screen::Package, ' ', "Package", "package", false),
    title(Screen::Build, ' ', "Operation", "operation", false),
    title(Screen::Deploy, ' ', "Deploy", "deploy", false),
    title(Screen::Guide, ' ', "Handbook", "guide", false),
];

impl Screen {
    /// Whether it is a sheet.
    pub fn is_sheet(self) -> bool {
        !matches!(self, Self::Table | Self::Detail | Self::Logs | Self::Call | Self::Tap | Self::Deploy | Self::Policy)
    }

    /// What is said of it; a deployment's page has no digit.
    pub fn titled(self) -> Option<&'static Title> {
        TITLES.iter().chain(&OTHERS).find(|t| t.screen == self)
    }

    /// How old what it shows may become, seconds.
    pub fn every(self) -> i64 {
        match self {
            Self::Overview => 5,
            Self::Findings => 10,
            Self::Secrets => 30,
            Self::Builds => 3,
            // A list of tools may wake a server; packages and releases change seldom: R asks again.
            Self::Tools | Self::Registry | Self::Package => i64::MAX,
            Self::Releases => 10,
            _ => 2,
        }
    }

    /// An answer that takes longer than this is not waited for, seconds.
    pub fn patience(self) -> i64 {
        if self == Self::Tools { 70 } else { 10 }
    }

    /// Its orders: the key that chooses each, and its word. The first one is the usual one.
    pub fn orders(self) -> &'static [(char, &'static str)] {
        match self {
            Self::Overview => &[('w', "what is wrong first"), ('n', "name")],
            Self::Scaling => &[('t', "time")],
            Self::Registry => &[('f', "what fits best"), ('p', "popular"), ('t', "trending"), ('r', "recent")],
            Self::Builds => &[('t', "time"), ('d', "deployment"), ('k', "kind")],
            Self::Secrets => &[('n', "name"), ('c', "changed last"), ('s', "scope")],
            Self::Access => &[('t', "time"), ('w', "who"), ('a', "what was done")],
            Self::Findings => &[('s', "severity"), ('p', "path"), ('r', "rule")],
            _ => &[],
        }
    }
}
