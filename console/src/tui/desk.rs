//! What screens hold that are more than a sheet: forms and what was typed into them, calls, messages as they pass,
//! operations that are followed. Plain data, as the rest of the model.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use super::deploy::Deploying;
use super::flow::{Answer, Flow, Masked, Replayed};
use super::form::Form;
use super::model::Screen;
use super::port::Trouble;
use super::steps::Steps;
use super::tap::Tap;
use super::theme::Role;
use crate::link::scaling::Load;
use crate::link::tools::Tool;
use crate::link::{Change, SecretPlace};

/// Forms whose values are kept.
const DRAFTS: usize = 50;

/// All of it.
#[derive(Debug, Default)]
pub struct Desk {
    /// A tool that is called.
    pub call: Option<Calling>,
    /// Messages that are looked at.
    pub tap: Option<Tap>,
    /// An operation that is looked at.
    pub build: Option<Building>,
    /// Something that is deployed.
    pub deploy: Option<Deploying>,
    /// A scaling policy that is changed.
    pub policy: Option<Editing>,
    /// Words that are looked for in the handbook.
    pub words: String,
    /// What packages are looked for, as it was typed.
    pub find: String,
    /// Acts under way, by their flows.
    pub acts: BTreeMap<u64, Act>,
    /// What was typed into forms that were left, the newest last.
    drafts: Vec<(String, Value)>,
}

/// An act whose end is told, and what it leads to.
#[derive(Debug, Clone)]
pub struct Act {
    /// What is done, for a person.
    pub what: String,
    /// The secret that it sets: whoever deploys waits for it.
    pub secret: Option<String>,
}

/// A call of a tool.
#[derive(Debug)]
pub struct Calling {
    /// The deployment.
    pub name: String,
    /// The tool.
    pub tool: Tool,
    /// Its arguments.
    pub form: Form,
    /// Under way: its number, and since when.
    pub flow: Option<(u64, Timestamp)>,
    /// The newest word of the server on its way.
    pub note: String,
    /// What came of the last one.
    pub answer: Option<Result<Box<Answer>, Trouble>>,
    /// The answer is shown, not the form.
    pub shows: bool,
    /// The line of the answer that the cursor is on.
    pub line: usize,
    /// First line on the screen.
    pub offset: usize,
    /// Parts of the answer that are folded, by their pointers.
    pub folded: BTreeSet<String>,
    /// The arguments of the last call.
    pub sent: Option<Value>,
}

/// An operation that is looked at.
#[derive(Debug)]
pub struct Building {
    /// Its identity.
    pub id: String,
    /// The flow that tells of it; `None`: it has ended.
    pub flow: Option<u64>,
    /// What happened.
    pub steps: Steps,
    /// Why nothing more is told.
    pub trouble: Option<Trouble>,
    /// The newest line stays on the screen.
    pub follow: bool,
}

/// A scaling policy that is changed.
#[derive(Debug)]
pub struct Editing {
    /// The deployment.
    pub name: String,
    /// Its fields.
    pub form: Form,
    /// The policy that holds, as YAML; empty: none.
    pub holds: String,
    /// Its load, once it is known.
    pub load: Option<Load>,
    /// What the policy that holds would have done.
    pub before: Option<Replayed>,
    /// What the new one would have done, or why that is not known.
    pub after: Option<Result<Replayed, Trouble>>,
    /// The replay under way, and whether it is of the policy that holds.
    pub flow: Option<(u64, bool)>,
    /// The values that were replayed last.
    pub replayed: Value,
}

/// A question before something is done, with text to look at.
#[derive(Debug, Clone)]
pub struct Question {
    /// `Approve get_current_time?`
    pub title: String,
    /// What it is about.
    pub lines: Vec<(String, Role)>,
    /// First line that is shown.
    pub scroll: usize,
    /// On the button.
    pub yes: &'static str,
    /// Whether the cursor is on the button that does it.
    pub on_yes: bool,
    /// The word to type first, and what was typed.
    pub word: Option<(String, String)>,
    /// What is done.
    pub deed: Deed,
    /// The command line that does the same.
    pub command: String,
}

/// What a question is about.
#[derive(Debug, Clone)]
pub enum Deed {
    /// Something that is over at once, and how it is told.
    Flow(Flow, String),
    /// An operation.
    Change(Change),
}

/// A secret's value is asked for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub place: SecretPlace,
    /// What was typed.
    pub value: Masked,
    /// What is wrong with it.
    pub problem: Option<String>,
}

impl Desk {
    /// What a screen is about.
    pub fn names(&self, screen: Screen) -> Vec<String> {
        match screen {
            Screen::Call => self.call.iter().flat_map(|c| [c.name.clone(), c.tool.name.clone()]).collect(),
            Screen::Tap => self.tap.iter().map(|t| t.name.clone()).collect(),
            Screen::Policy => self.policy.iter().map(|p| p.name.clone()).collect(),
            _ => Vec::new(),
        }
    }

    /// What was typed into a form before.
    pub fn draft(&self, key: &str) -> Option<&Value> {
        self.drafts.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// Forgets what was typed.
    pub fn forget(&mut self, key: &str) {
        self.drafts.retain(|(k, _)| k != key);
    }

    /// Keeps what was typed.
    pub fn keep(&mut self, key: String, value: Value) {
        self.drafts.retain(|(k, _)| *k != key);
        self.drafts.push((key, value));
        let over = self.drafts.len().saturating_sub(DRAFTS);
        self.drafts.drain(..over);
    }
}
