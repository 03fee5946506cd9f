//! Screens that are one sheet of lines: what each asks of the link, what came back, and where its reader is. Plain
//! data, as the rest of the model.

use jiff::Timestamp;

use super::logbuf::Pattern;
use super::model::Screen;
use super::port::Trouble;
use crate::link::alerts::Alerts;
use crate::link::health::Health;

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
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// For [`Look::Overview`].
    Overview(Alerts),
    /// For [`Look::Health`].
    Health(Box<Health>),
}

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
pub const TITLES: [Title; 4] = [
    title(Screen::Overview, '1', "Overview", "overview", false),
    title(Screen::Table, '2', "Deployments", "ls", false),
    title(Screen::Logs, '3', "Logs", "logs", false),
    title(Screen::Health, '4', "Health", "health", true),
];

impl Screen {
    /// Whether it is a sheet.
    pub fn is_sheet(self) -> bool {
        !matches!(self, Self::Table | Self::Detail | Self::Logs)
    }

    /// What is said of it; a deployment's page has no digit.
    pub fn titled(self) -> Option<&'static Title> {
        TITLES.iter().find(|t| t.screen == self)
    }

    /// How old what it shows may become, seconds.
    pub fn every(self) -> i64 {
        match self {
            Self::Overview => 5,
            _ => 2,
        }
    }

    /// Its orders: the key that chooses each, and its word. The first one is the usual one.
    pub fn orders(self) -> &'static [(char, &'static str)] {
        match self {
            Self::Overview => &[('w', "what is wrong first"), ('n', "name")],
            _ => &[],
        }
    }
}
