//! AI clients: where each keeps its list of MCP servers, and how an entry of it is written.
//!
//! Owns: the table of clients ([`known`]), their files' places ([`place`]), an entry's form ([`entry`]), changing a file's text
//! ([`edit`]). May touch: nothing; what is on a machine is told to it. Never: reads or writes a file.
//! Tested by: units beside each, properties in `edit/tests.rs`.

pub mod edit;
pub mod entry;
pub mod known;
pub mod place;

pub use edit::{EditError, Edited, Format, Kind, Made, Slot};
pub use entry::{Auth, Entry, Shape};
pub use known::{ALL, find};
pub use place::{Files, Os, Surroundings};

/// A client.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// What `--client` says.
    pub id: &'static str,
    /// Other words for it.
    pub aliases: &'static [&'static str],
    /// Its name for a person.
    pub title: &'static str,
    /// Its file for all of a user's work; absent: it has none that is documented.
    pub user: Option<Level>,
    /// Its file in a project; absent: it has none.
    pub project: Option<Level>,
    /// Whether it speaks HTTP itself.
    pub remote: Remote,
    /// How its file names a secret that stands elsewhere.
    pub reference: Reference,
    /// What a person does for a change to count.
    pub reload: &'static str,
    /// Places that show that it is installed, besides its file and that file's folder.
    pub signs: &'static [&'static str],
    /// Whether the folder of its file alone shows nothing, because others use it, too.
    pub shared_folder: bool,
}

/// One of a client's files.
#[derive(Debug, Clone, Copy)]
pub struct Level {
    /// Where it is.
    pub files: Files,
    /// How it is written.
    pub format: Format,
    /// Keys to its entries.
    pub path: &'static [&'static str],
    /// What holds them.
    pub kind: Kind,
    /// How one is written.
    pub shape: Shape,
}

/// Whether a client speaks HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    /// It starts processes and nothing else.
    No,
    /// Probably, in the form that is known here; its makers do not document it. Used when asked for.
    Unsure,
    /// Documented.
    Yes,
}

/// How a client's file names a secret that is not written in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    /// Not at all, or not in a way that is documented.
    None,
    /// A variable of its environment, written like this with `VAR` for the variable's name.
    Env(&'static str),
    /// It asks for it once and keeps it: `${input:ID}`, declared in `inputs`.
    Input,
}

impl Level {
    /// Where entries are in this file: what it already holds decides where a format has two.
    pub fn slot(&self, text: &str) -> Slot {
        let slot = Slot::new(self.path, self.kind);
        if self.shape == Shape::OpenCode {
            let nested = Slot::new(&["mcp", "servers"], Kind::Map);
            let root = edit::read(self.format, text).ok();
            let servers = root.as_ref().and_then(|root| root.get("mcp")?.get("servers"));
            // an entry of the older form that is called 'servers' is not a map of entries
            let is_entry = servers.is_some_and(|servers| servers.get("type").is_some_and(serde_json::Value::is_string));
            if servers.is_some_and(serde_json::Value::is_object) && !is_entry {
                return nested;
            }
        }
        slot
    }
}
