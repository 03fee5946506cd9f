//! What the link does for a screen over some time: each has a number, tells things, ends or is stopped. Plain data.

use std::fmt;
use std::time::Duration;

use serde_json::Value;
use sigil_core::package::run::Question;
use sigil_core::scale::Policy;
use zeroize::Zeroizing;

use crate::link::findings::Report;
use crate::link::scaling::Load;
use crate::link::{Event, Frame, PackageDetail, SecretPlace};

/// A value that is in no dump and is wiped when it goes.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Masked(pub Zeroizing<String>);

impl fmt::Debug for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Masked")
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Flow {
    /// A deployment's messages as they pass.
    Tap {
        /// Whose.
        name: String,
    },
    /// An operation's events from its first one.
    Operation {
        /// Which.
        id: String,
    },
    /// A call of a tool; stopped: cancelled.
    Call {
        /// The deployment.
        name: String,
        /// The tool.
        tool: String,
        /// Its arguments.
        arguments: Value,
    },
    /// Held tools are pinned as they were looked at, or that form is dismissed.
    Pins {
        /// The deployment.
        name: String,
        /// The release whose pins they are.
        release: u32,
        /// Names, and digests of what was looked at.
        tools: Vec<(String, String)>,
        /// Stay with what is pinned.
        dismiss: bool,
    },
    /// A scaling policy is set as a whole.
    Scaling {
        /// The deployment.
        name: String,
        /// As YAML; `None`: no policy any more.
        policy: Option<String>,
    },
    /// A scaling policy is replayed against the load of the last days.
    Replay {
        /// The policy.
        policy: Box<Policy>,
        /// The load.
        load: Box<Load>,
    },
    /// A secret is set.
    Secret {
        /// Its name.
        name: String,
        /// Whose it is.
        place: SecretPlace,
        /// Its value.
        value: Masked,
    },
    /// A source is looked at before it is deployed: scanned, and sent where it is a folder.
    Look {
        /// As `sigil deploy` takes it.
        source: String,
        /// Secrets that the deploy asks for.
        secrets: Vec<String>,
    },
}

/// What is told of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// Messages.
    Frames(Vec<Frame>),
    /// Events of an operation.
    Events(Vec<Event>),
    /// A word on the way.
    Note(String),
    /// What a tool answered.
    Answer(Box<Answer>),
    /// It is done, in a word.
    Done(String),
    /// What a policy would have done.
    Replayed(Box<Replayed>),
    /// What there is to know of a source.
    Looked(Box<Source>),
}

/// What a tool answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The result as the server wrote it.
    pub result: Value,
    /// From the call to its answer.
    pub took: Duration,
}

/// What a policy would have done.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// The replay.
    pub ran: sigil_core::scale::Simulated,
    /// What else is to know.
    pub notes: Vec<String>,
}

/// What there is to know of a source before it is deployed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Source {
    /// What the scanner says; `None`: it does not look at this kind.
    pub report: Option<Report>,
    /// What was recognised, a line each.
    pub recognised: Vec<String>,
    /// The upload that a folder became.
    pub upload: Option<String>,
    /// The name that it would get; empty: the agent derives one.
    pub name: String,
    /// Secrets that are asked for and that nobody has set.
    pub missing: Vec<String>,
    /// The package of the registry that it is.
    pub package: Option<Box<PackageDetail>>,
    /// What that one asks for.
    pub questions: Vec<Question>,
}
