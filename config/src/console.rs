//! What a person writes for the console (`console.toml`): theme, keys, order, what is protected, the fleet. Agents'
//! addresses and keys are not here: `contexts.toml`, which `sigil context` writes, has those.
//!
//! Owns: the form of `$XDG_CONFIG_HOME/sigil/console.toml`. May touch: that file, reading. Never: writes it, or drops a
//! word without telling. Tested by: units here, `samples/console.toml`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::flaw::{At, Flaw, did_you_mean};
use crate::node::{self, Node, Value, Walk};

/// Everything that a person at a console may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// One of [`THEMES`].
    pub theme: String,
    /// The mouse wheel scrolls; the terminal's own selecting then needs Shift.
    pub mouse: bool,
    /// Refuses every change, on every host.
    pub read_only: bool,
    /// How the table of deployments is ordered at first.
    pub sort: String,
    /// The other way round.
    pub inverted: bool,
    /// Contexts that a console without `--host` and `SIGIL_HOST` shows together; none: the current one alone.
    pub fleet: Vec<String>,
    /// What is protected, by context.
    pub contexts: BTreeMap<String, Guard>,
    /// Keys that were moved, in the order of the file.
    pub keys: Vec<Binding>,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self {
            theme: "auto".into(),
            mouse: false,
            read_only: false,
            sort: "name".into(),
            inverted: false,
            fleet: Vec::new(),
            contexts: BTreeMap::new(),
            keys: Vec::new(),
        }
    }
}

/// How carefully a context is handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Asks for the name before anything is changed.
    pub protected: bool,
    /// Refuses every change.
    pub read_only: bool,
}

/// An action that was given other keys. Which actions and keys there are, the console knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Where it holds: `table`, `logs`, …
    pub context: String,
    /// What it does.
    pub action: String,
    /// The keys, as written.
    pub keys: Vec<String>,
    /// Where that was written.
    pub at: At,
}

/// Where an agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A unix socket on this machine.
    Unix(PathBuf),
    /// A TLS address.
    Tls {
        /// Name or address (IPv6 without brackets).
        host: String,
        /// Port.
        port: u16,
    },
    /// Over the system's ssh.
    Ssh {
        /// Login name; the system's ssh decides without one.
        user: Option<String>,
        /// Name or address, or a `Host` of the ssh configuration.
        host: String,
        /// Port; the system's ssh decides without one.
        port: Option<u16>,
    },
}

/// A text that says no place of an agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no host: {why}")]
pub struct BadHost {
    /// As written.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl BadHost {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        "write unix:///path, tls://host:port, or ssh://user@host[:port]"
    }
}

impl std::str::FromStr for Host {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        let bad = |why| BadHost { text: text.to_owned(), why };
        if let Some(path) = text.strip_prefix("unix://") {
            let fine = path.starts_with('/') && path.len() > 1;
            return if fine {
                Ok(Self::Unix(path.into()))
            } else {
                Err(bad("the path must be absolute (unix:///path)"))
            };
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        if !["tls", "ssh"].contains(&scheme) {
            return Err(bad("the scheme is not unix, tls or ssh"));
        }
        let no_port = || bad("the port is not one");
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, address) = match rest.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, rest),
        };
        let (host, port) = match address.strip_prefix('[').and_then(|a| a.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(no_port)?)),
            None => match address.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (address, None),
            },
        };
        let port = port.map(|p| p.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(no_port)).transpose()?;
        // a leading '-' would be an option to the system's ssh
        let word = |w: &str, more: &str| {
            !w.is_empty() && !w.starts_with('-') && w.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        if !word(host, "-_.:%") || user.is_some_and(|u| !word(u, "-_.+@\\")) {
            return Err(bad("the host or login name is not one"));
        }
        match (scheme, user, port) {
            ("tls", None, Some(port)) => Ok(Self::Tls { host: host.to_owned(), port }),
            ("ssh", user, port) => Ok(Self::Ssh { user: user.map(str::to_owned), host: host.to_owned(), port }),
            ("tls", _, None) => Err(bad("the port is missing (tls://host:port)")),
            _ => Err(bad("a login name is for ssh:// only")),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tls { host, port } => write!(f, "tls://{}:{port}", bracketed(host)),
            Self::Ssh { user, host, port } => {
                f.write_str("ssh://")?;
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                f.write_str(&bracketed(host))?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

/// Where the file lies: `$XDG_CONFIG_HOME/sigil/console.toml` (`~/.config` when unset).
pub fn path() -> PathBuf {
    crate::folders::config().join("sigil/console.toml")
}

/// Themes by name. `auto` is dark in 256 colours, or `16` where the terminal says that it has no more.
pub const THEMES: [&str; 6] = ["auto", "dark", "light", "high-contrast", "16", "mono"];

/// What the table of deployments can be ordered by.
pub const SORTS: [&str; 7] = ["name", "state", "requests", "p99", "errors", "cpu", "memory"];

const KEYS: [&str; 7] = ["theme", "mouse", "read_only", "table", "fleet", "contexts", "keys"];

/// A file, read as far as it can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// What is right in it; the rest is as by default. A protection that is written holds whatever else is wrong.
    pub config: ConsoleConfig,
    /// What is wrong, with places.
    pub flaws: Vec<Flaw>,
}

/// Reads a text; `file` is its name for messages.
pub fn parse(file: &str, text: &str) -> Read {
    let (root, flaws) = node::toml(file, text);
    let mut walk = Walk { flaws };
    let mut config = ConsoleConfig::default();
    for entry in root.entries() {
        let node = &entry.value;
        match entry.key.as_str() {
            "theme" => set(&mut config.theme, walk.word(node, "theme", &THEMES)),
            "mouse" => set(&mut config.mouse, walk.boolean(node, "mouse")),
            "read_only" => set(&mut config.read_only, walk.boolean(node, "read_only")),
            "table" if known(&mut walk, node, "table", &["sort", "inverted"]) => {
                if let Some(sort) = node.get("sort") {
                    set(&mut config.sort, walk.word(sort, "table.sort", &SORTS));
                }
                if let Some(inverted) = node.get("inverted") {
                    set(&mut config.inverted, walk.boolean(inverted, "table.inverted"));
                }
            }
            "fleet" if known(&mut walk, node, "fleet", &["hosts"]) => {
                if let Some(hosts) = node.get("hosts") {
                    config.fleet = walk.texts(hosts, "fleet.hosts");
                }
            }
            "contexts" => contexts(&mut walk, node, &mut config.contexts),
            "keys" => keys(&mut walk, node, &mut config.keys),
            "table" | "fleet" => {}
            other => {
                let hint = did_you_mean(other, KEYS);
                walk.flaws.push(Flaw::new(&entry.at, format!("unknown key '{other}'")).hint(hint));
            }
        }
    }
    Read { config, flaws: walk.flaws }
}

fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

/// Whether it is a section; keys that it cannot have are flaws.
fn known(walk: &mut Walk, node: &Node, what: &str, keys: &[&'static str]) -> bool {
    if !matches!(node.value, Value::Map(_)) {
        walk.wrong(node, what, "a section");
        return false;
    }
    for entry in node.entries().iter().filter(|e| !keys.contains(&e.key.as_str())) {
        let hint = did_you_mean(&entry.key, keys.iter().copied());
        walk.flaws.push(Flaw::new(&entry.at, format!("unknown key '{what}.{}'", entry.key)).hint(hint));
    }
    true
}

fn contexts(walk: &mut Walk, node: &Node, contexts: &mut BTreeMap<String, Guard>) {
    if !matches!(node.value, Value::Map(_)) {
        return walk.wrong(node, "contexts", "a section");
    }
    for entry in node.entries() {
        let what = format!("contexts.{}", entry.key);
        if !known(walk, &entry.value, &what, &["protected", "read_only"]) {
            continue;
        }
        let mut guard = Guard::default();
        for (key, slot) in [("protected", &mut guard.protected), ("read_only", &mut guard.read_only)] {
            if let Some(node) = entry.value.get(key) {
                // who wrote it wanted care: a value that is none does not take that away
                *slot = walk.boolean(node, &format!("{what}.{key}")).unwrap_or(true);
            }
        }
        contexts.insert(entry.key.clone(), guard);
    }
}

fn keys(walk: &mut Walk, node: &Node, bindings: &mut Vec<Binding>) {
    if !matches!(node.value, Value::Map(_)) {
        return walk.wrong(node, "keys", "a section for each screen, as [keys.logs]");
    }
    for context in node.entries() {
        let what = format!("keys.{}", context.key);
        if !matches!(context.value.value, Value::Map(_)) {
            walk.wrong(&context.value, &what, "a section of actions with their keys");
            continue;
        }
        for action in context.value.entries() {
            let keys = walk.texts(&action.value, &format!("{what}.{}", action.key));
            let (context, at) = (context.key.clone(), action.at.clone());
            bindings.push(Binding { context, action: action.key.clone(), keys, at });
        }
    }
}

/// Lower-case hex of a fingerprint (`sha256:…`, with or without colons between bytes); `None` when it is none.
pub fn parse_fingerprint(text: &str) -> Option<String> {
    let hex: String = text.strip_prefix("sha256:")?.chars().filter(|c| *c != ':').collect();
    let fine = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    fine.then(|| hex.to_ascii_lowercase())
}

/// Reads a file; a file that does not exist is the default.
pub fn load(path: &Path) -> Read {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&name, &text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Read { config: ConsoleConfig::default(), flaws: Vec::new() }
        }
        Err(error) => {
            let flaw = Flaw::new(&At::whole(name), format!("cannot be read: {error}"));
            Read { config: ConsoleConfig::default(), flaws: vec![flaw] }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for text in [
            "unix:///run/a.sock",
            "tls://h.example:7451",
            "tls://[::1]:7451",
            "ssh://me@h",
            "ssh://h:2222",
            "ssh://u@[fe80::1]:22",
        ] {
            assert_eq!(text.parse::<Host>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "h",
            "unix://rel",
            "unix:///",
            "tls://h",
            "tls://u@h:1",
            "tls://h:0",
            "tls://h:99999",
            "ssh://-oProxyCommand=x",
            "ssh://-u@h",
            "ssh://a b",
            "http://h:1",
            "ssh://h;x",
        ] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_sample_is_the_default_and_names_every_key() {
        let sample = include_str!("../samples/console.toml");
        assert_eq!(parse("console.toml", sample), Read { config: ConsoleConfig::default(), flaws: Vec::new() });
        let open: Vec<&str> = sample
            .lines()
            .map(|l| l.strip_prefix('#').filter(|l| !l.starts_with(' ') && !l.is_empty()).unwrap_or(l))
            .collect();
        let (tree, flaws) = node::toml("console.toml", &open.join("\n"));
        assert_eq!(flaws, []);
        let inner = ["table.sort", "table.inverted", "fleet.hosts", "keys.logs.follow"];
        let guards = ["contexts.production.protected", "contexts.production.read_only"];
        for key in KEYS.iter().chain(&inner).chain(&guards) {
            assert!(tree.at_path(key).is_some(), "the sample lacks {key}");
        }
        let read = parse("console.toml", &open.join("\n"));
        assert_eq!(read.flaws, []);
        assert!(read.config.contexts["production"].protected);
        assert_eq!(read.config.keys[0].keys, ["F"]);
    }

    #[test]
    fn all_flaws_are_named_and_the_rest_holds() {
        let text = "thme = \"dark\"\ntheme = \"pink\"\nmouse = 1\n[table]\nsort = \"size\"\n[contexts.a]\nprotected = \"yes\"\n\
                    [contexts.b]\nreadonly = true\nprotected = true\n[keys]\nlogs = 1\n[keys.table]\nopen = 3\nmark = [\"m\", \"v\"]\n";
        let Read { config, flaws } = parse("c.toml", text);
        let flaws = crate::flaw::lines(&flaws);
        for part in [
            "c.toml:1:1: unknown key 'thme'; did you mean 'theme'?",
            "c.toml:2:9: theme cannot be 'pink'",
            "c.toml:3:9: mouse must be true or false",
            "c.toml:5:8: table.sort cannot be 'size'",
            "c.toml:7:13: contexts.a.protected must be true or false",
            "c.toml:9:1: unknown key 'contexts.b.readonly'; did you mean 'read_only'?",
            "c.toml:12:8: keys.logs must be a section of actions",
            "c.toml:14:8: keys.table.open must be a list of texts",
        ] {
            assert!(flaws.contains(part), "{part}\n{flaws}");
        }
        assert!(config.contexts["a"].protected && config.contexts["b"].protected, "care is not lost by a slip");
        let mark = config.keys.iter().find(|b| b.action == "mark").unwrap();
        assert_eq!((mark.context.as_str(), mark.keys.join(" ").as_str(), mark.at.line), ("table", "m v", 15));
    }

    #[test]
    fn a_file_that_is_not_there_is_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.toml");
        assert_eq!(load(&path), Read { config: ConsoleConfig::default(), flaws: Vec::new() });
        std::fs::write(&path, "theme = \"light\"\n[fleet]\nhosts = [\"a\", \"b\"]\n").unwrap();
        let read = load(&path);
        assert_eq!((read.config.theme.as_str(), read.config.fleet.len()), ("light", 2));
        std::fs::write(&path, "theme = ").unwrap();
        assert!(load(&path).flaws[0].to_string().contains(":1:"), "{:?}", load(&path).flaws);
    }
}
