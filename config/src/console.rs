//! The console's configuration (`console.toml`): contexts, theme, log view.
//!
//! Owns: `$XDG_CONFIG_HOME/sigil/console.toml`. May touch: that file. Never: loses a comment, or shows a token. Tested
//! by: units here, `samples/console.toml`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::agent::ConfigErrors;
use crate::flaw::{At, Flaw, did_you_mean};
use crate::node::{self, Node, Value, Walk};

/// Everything that a person at a console may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// Name of the context used without `--host` and `SIGIL_HOST`; empty: the local socket.
    pub current: String,
    /// `auto`, `dark`, `light` or `none`.
    pub theme: String,
    /// The log view.
    pub logs: LogView,
    /// Agents by name.
    pub contexts: BTreeMap<String, Context>,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self { current: String::new(), theme: "auto".into(), logs: LogView::default(), contexts: BTreeMap::new() }
    }
}

/// The log view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogView {
    /// Lines shown before what is new.
    pub tail: u32,
    /// Answers slower than this are marked, milliseconds.
    pub slow_ms: u64,
}

impl Default for LogView {
    fn default() -> Self {
        Self { tail: 200, slow_ms: 1000 }
    }
}

/// An agent that the console can reach.
#[derive(Clone, PartialEq, Eq)]
pub struct Context {
    /// Where it is.
    pub host: Host,
    /// File that holds the token.
    pub token_file: Option<PathBuf>,
    /// The token itself.
    pub token: Option<String>,
    /// SHA-256 of the agent's certificate, lower-case hex without its prefix.
    pub fingerprint: Option<String>,
    /// Asks for the name before anything is changed.
    pub protected: bool,
    /// Refuses every change.
    pub read_only: bool,
}

impl Context {
    /// A context with nothing but its host.
    pub fn new(host: Host) -> Self {
        Self { host, token_file: None, token: None, fingerprint: None, protected: false, read_only: false }
    }

    /// The token, from the file if one is named (its trailing line break removed).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn token(&self) -> std::io::Result<Option<String>> {
        match &self.token_file {
            Some(file) => std::fs::read_to_string(file).map(|t| Some(t.trim_end().to_owned())),
            None => Ok(self.token.clone()),
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("host", &self.host)
            .field("token_file", &self.token_file)
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("fingerprint", &self.fingerprint)
            .field("protected", &self.protected)
            .field("read_only", &self.read_only)
            .finish()
    }
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
    crate::agent::xdg("XDG_CONFIG_HOME", ".config").join("sigil/console.toml")
}

const THEMES: &[&str] = &["auto", "dark", "light", "none"];

/// Reads a text; `file` is its name for messages.
///
/// # Errors
/// All flaws with their places.
pub fn parse(file: &str, text: &str) -> Result<ConsoleConfig, ConfigErrors> {
    let (root, flaws) = node::toml(file, text);
    let mut walk = Walk { flaws };
    let mut config = ConsoleConfig::default();
    for entry in root.entries() {
        let node = &entry.value;
        match entry.key.as_str() {
            "current" => config.current = walk.text(node, "current", false).unwrap_or_default(),
            "theme" => config.theme = walk.word(node, "theme", THEMES).unwrap_or_default(),
            "logs" => logs(&mut walk, node, &mut config.logs),
            "contexts" => {
                if !matches!(node.value, Value::Map(_)) {
                    walk.wrong(node, "contexts", "a section");
                }
                for entry in node.entries() {
                    if !is_name(&entry.key) {
                        let message = format!("'{}' is no name for a context", entry.key);
                        walk.flaws.push(Flaw::new(&entry.at, message).hint("letters, digits, '-', '_' and '.'"));
                    }
                    if let Some(context) = context(&mut walk, &entry.key, &entry.value) {
                        config.contexts.insert(entry.key.clone(), context);
                    }
                }
            }
            other => {
                let hint = did_you_mean(other, ["current", "theme", "logs", "contexts"]);
                walk.flaws.push(Flaw::new(&entry.at, format!("unknown key '{other}'")).hint(hint));
            }
        }
    }
    if let Some(node) = root.get("current")
        && walk.flaws.is_empty()
        && !config.current.is_empty()
        && !config.contexts.contains_key(&config.current)
    {
        let hint = did_you_mean(&config.current, config.contexts.keys().map(String::as_str));
        walk.flaw_hint(node, format!("there is no context '{}'", config.current), hint);
    }
    if walk.flaws.is_empty() { Ok(config) } else { Err(ConfigErrors { flaws: walk.flaws, warnings: Vec::new() }) }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('-')
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// The known keys of a section, exactly as written.
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

fn logs(walk: &mut Walk, node: &Node, logs: &mut LogView) {
    if known(walk, node, "logs", &["tail", "slow_ms"]) {
        if let Some(tail) = node.get("tail").and_then(|n| walk.int(n, "logs.tail", 0, 100_000)) {
            logs.tail = tail as u32;
        }
        if let Some(slow) = node.get("slow_ms").and_then(|n| walk.int(n, "logs.slow_ms", 1, 3_600_000)) {
            logs.slow_ms = slow;
        }
    }
}

fn context(walk: &mut Walk, name: &str, node: &Node) -> Option<Context> {
    let what = format!("contexts.{name}");
    let keys = ["host", "token_file", "token", "fingerprint", "protected", "read_only"];
    if !known(walk, node, &what, &keys) {
        return None;
    }
    let Some(at) = node.get("host") else {
        walk.flaw_hint(node, format!("{what} has no host"), BadHost { text: String::new(), why: "" }.hint());
        return None;
    };
    let text = walk.text(at, &format!("{what}.host"), false)?;
    let host: Host = match text.parse() {
        Ok(host) => host,
        Err(error) => {
            let error: BadHost = error;
            walk.flaw_hint(at, format!("{what}.host: {error}"), error.hint());
            return None;
        }
    };
    let mut context = Context::new(host);
    let mut text = |key: &str| {
        let text = node.get(key).and_then(|n| walk.text(n, &format!("{what}.{key}"), false));
        text.filter(|t| !t.is_empty())
    };
    context.token_file = text("token_file").map(PathBuf::from);
    context.token = text("token");
    let fingerprint = text("fingerprint");
    if let (Some(written), Some(n)) = (fingerprint, node.get("fingerprint")) {
        context.fingerprint = parse_fingerprint(&written);
        if context.fingerprint.is_none() {
            walk.flaw_hint(n, format!("{what}.fingerprint is none"), "write sha256: and 64 hexadecimal digits");
        }
    }
    if let (Some(n), true) = (node.get("token"), context.token.is_some() && context.token_file.is_some()) {
        walk.flaw_hint(n, format!("{what} has a token and a token_file"), "keep one of them");
    }
    let tls = matches!(context.host, Host::Tls { .. });
    if tls && context.fingerprint.is_none() && node.get("fingerprint").is_none() {
        let hint = "'sigil-agent info' shows it on the agent's machine";
        walk.flaw_hint(at, format!("{what}: a tls host needs the fingerprint of its certificate"), hint);
    }
    for (key, slot) in [("protected", &mut context.protected), ("read_only", &mut context.read_only)] {
        if let Some(value) = node.get(key).and_then(|n| walk.boolean(n, &format!("{what}.{key}"))) {
            *slot = value;
        }
    }
    Some(context)
}

/// Lower-case hex of a fingerprint (`sha256:…`, with or without colons between bytes); `None` when it is none.
pub fn parse_fingerprint(text: &str) -> Option<String> {
    let hex: String = text.strip_prefix("sha256:")?.chars().filter(|c| *c != ':').collect();
    let fine = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    fine.then(|| hex.to_ascii_lowercase())
}

/// Reads a file; a file that does not exist is the default.
///
/// # Errors
/// All flaws with their places, or that it cannot be read.
pub fn load(path: &Path) -> Result<ConsoleConfig, ConfigErrors> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&name, &text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(ConsoleConfig::default()),
        Err(error) => Err(one(&name, format!("cannot be read: {error}"))),
    }
}

fn one(name: &str, message: String) -> ConfigErrors {
    ConfigErrors { flaws: vec![Flaw::new(&At::whole(name), message)], warnings: Vec::new() }
}

/// Writes a configuration over what is in the file: comments, order and layout of what does not change are kept. The
/// file is replaced whole (0600, it may hold tokens), through a symlink if it is one.
///
/// # Errors
/// What is in the file is not TOML, or it cannot be written.
pub fn save(path: &Path, config: &ConsoleConfig) -> Result<(), ConfigErrors> {
    let name = path.display().to_string();
    let old = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(one(&name, format!("cannot be read: {error}"))),
    };
    let text = render(&old, config).map_err(|e| one(&name, e))?;
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    replace(&target, &text).map_err(|e| one(&name, format!("cannot be written: {e}")))
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension(format!("toml.{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    let done =
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&temporary, path));
    if done.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    done
}

/// The text of [`save`].
fn render(old: &str, config: &ConsoleConfig) -> Result<String, String> {
    use toml_edit::{DocumentMut, Item, Table, TableLike, value};
    fn set(table: &mut dyn TableLike, key: &str, new: Option<toml_edit::Value>) {
        match (new, table.get_mut(key)) {
            (None, _) => drop(table.remove(key)),
            (Some(new), Some(Item::Value(old))) => {
                // the note behind a value stays with it
                let decor = old.decor().clone();
                *old = new;
                *old.decor_mut() = decor;
            }
            (Some(new), _) => drop(table.insert(key, value(new))),
        }
    }
    fn table<'t>(parent: &'t mut dyn TableLike, key: &str, implicit: bool) -> Result<&'t mut dyn TableLike, String> {
        if parent.get(key).is_none() {
            let mut table = Table::new();
            table.set_implicit(implicit);
            parent.insert(key, Item::Table(table));
        }
        parent.get_mut(key).and_then(Item::as_table_like_mut).ok_or_else(|| format!("'{key}' is not a section"))
    }
    let mut document: DocumentMut = old.parse().map_err(|e: toml_edit::TomlError| e.message().to_owned())?;
    let root = document.as_table_mut();
    let default = ConsoleConfig::default();
    // a default is written only over something that is written
    let had = |root: &Table, path: &[&str]| {
        let mut at: Option<&Item> = None;
        for key in path {
            at = match at {
                None => root.get(key),
                Some(item) => item.as_table_like().and_then(|t| t.get(key)),
            };
            if at.is_none() {
                return false;
            }
        }
        true
    };
    for (key, new, old) in [("current", &config.current, &default.current), ("theme", &config.theme, &default.theme)] {
        if new != old || had(root, &[key]) {
            set(root, key, Some(new.as_str().into()));
        }
    }
    let numbers = [
        ("tail", i64::from(config.logs.tail), i64::from(default.logs.tail)),
        ("slow_ms", config.logs.slow_ms as i64, default.logs.slow_ms as i64),
    ];
    for (key, new, old) in numbers {
        if new != old || had(root, &["logs", key]) {
            set(table(root, "logs", false)?, key, Some(new.into()));
        }
    }
    if !config.contexts.is_empty() || had(root, &["contexts"]) {
        let contexts = table(root, "contexts", true)?;
        let gone: Vec<String> =
            contexts.iter().map(|(k, _)| k.to_owned()).filter(|k| !config.contexts.contains_key(k)).collect();
        for name in gone {
            contexts.remove(&name);
        }
        for (name, context) in &config.contexts {
            let t = table(contexts, name, false)?;
            set(t, "host", Some(context.host.to_string().into()));
            set(t, "token_file", context.token_file.as_ref().map(|p| p.display().to_string().into()));
            set(t, "token", context.token.as_deref().map(Into::into));
            set(t, "fingerprint", context.fingerprint.as_ref().map(|f| format!("sha256:{f}").into()));
            set(t, "protected", context.protected.then_some(true.into()));
            set(t, "read_only", context.read_only.then_some(true.into()));
        }
    }
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print() -> String {
        "ab".repeat(32)
    }

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
        assert_eq!(parse("console.toml", sample).unwrap(), ConsoleConfig::default());
        let open: Vec<&str> = sample
            .lines()
            .map(|l| l.strip_prefix('#').filter(|l| !l.starts_with(' ') && !l.is_empty()).unwrap_or(l))
            .collect();
        let (tree, flaws) = node::toml("console.toml", &open.join("\n"));
        assert_eq!(flaws, []);
        for key in ["current", "theme", "logs.tail", "logs.slow_ms"] {
            assert!(tree.at_path(key).is_some(), "the sample lacks {key}");
        }
        for key in ["host", "token_file", "token", "fingerprint", "protected", "read_only"] {
            assert!(tree.at_path(&format!("contexts.production.{key}")).is_some(), "the sample lacks {key}");
        }
        let config = parse("console.toml", &open.join("\n")).unwrap();
        assert!(config.contexts["production"].protected);
    }

    #[test]
    fn all_flaws_are_named_at_once() {
        let text = "curent = \"x\"\ntheme = \"pink\"\n[logs]\ntail = -1\n[contexts.a]\nhost = \"http://x\"\n[contexts.b]\nhst = \"x\"\n\
                    [contexts.c]\nhost = \"tls://h:1\"\n[contexts.d]\nhost = \"tls://h:1\"\nfingerprint = \"sha256:1\"\nprotected = \"yes\"\n";
        let flaws = parse("c.toml", text).unwrap_err().to_string();
        for part in [
            "c.toml:1:1: unknown key 'curent'; did you mean 'current'?",
            "c.toml:2:9: theme cannot be 'pink'",
            "c.toml:4:8: logs.tail must be from 0 to 100000, not -1",
            "c.toml:6:8: contexts.a.host: 'http://x' is no host: the scheme is not unix, tls or ssh; write unix:///path",
            "c.toml:8:1: unknown key 'contexts.b.hst'; did you mean 'host'?",
            "contexts.b has no host",
            "c.toml:10:8: contexts.c: a tls host needs the fingerprint",
            "c.toml:13:15: contexts.d.fingerprint is none",
            "c.toml:14:13: contexts.d.protected must be true or false",
        ] {
            assert!(flaws.contains(part), "{part}\n{flaws}");
        }
        let error = parse("c", "current = \"prd\"\n[contexts.prod]\nhost = \"ssh://h\"\n").unwrap_err().to_string();
        assert_eq!(error, "c:1:11: there is no context 'prd'; did you mean 'prod'?");
    }

    #[test]
    fn saving_keeps_comments_and_secrets_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/console.toml");
        assert_eq!(load(&path).unwrap(), ConsoleConfig::default());
        let mut config = ConsoleConfig::default();
        let mut context = Context::new("tls://h:7451".parse().unwrap());
        context.fingerprint = Some(print());
        context.token = Some("hunter2".into());
        assert!(!format!("{context:?}").contains("hunter2"));
        config.contexts.insert("prod".into(), context);
        config.current = "prod".into();
        save(&path, &config).unwrap();
        assert_eq!(load(&path).unwrap(), config);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("# mine\n{}", text.replace("\"prod\"", "\"prod\" # why"))).unwrap();
        config.contexts.insert("home".into(), Context::new("ssh://h".parse().unwrap()));
        config.current = "home".into();
        config.logs.tail = 5;
        save(&path, &config).unwrap();
        assert_eq!(load(&path).unwrap(), config);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# mine\ncurrent = \"home\" # why\n"), "{text}");

        config.contexts.remove("prod");
        save(&path, &config).unwrap();
        assert_eq!(load(&path).unwrap(), config);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn tokens_come_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut context = Context::new("ssh://h".parse().unwrap());
        assert_eq!(context.token().unwrap(), None);
        context.token_file = Some(dir.path().join("t"));
        assert!(context.token().is_err());
        std::fs::write(dir.path().join("t"), "abc\n").unwrap();
        assert_eq!(context.token().unwrap().as_deref(), Some("abc"));
    }
}
