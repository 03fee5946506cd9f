//! Named agents: `$XDG_CONFIG_HOME/sigil/contexts.toml`, readable by its owner only (it may hold tokens).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::link::{Address, LinkError, Pin, Target};

/// The contexts file.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contexts {
    /// The one that is used; absent: the local socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// By name.
    pub contexts: BTreeMap<String, Context>,
}

/// One named agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `unix://`, `tls://` or `ssh://`.
    pub address: String,
    /// The certificate's fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
    /// Key sent with every request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// File (PEM) of the certificate that is shown to the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// File (PEM) of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// `$XDG_CONFIG_HOME/sigil`, else `~/.config/sigil` (`%APPDATA%\\sigil` on Windows).
pub fn config_dir() -> PathBuf {
    sigil_config::folders::config().join("sigil")
}

/// `$XDG_STATE_HOME/sigil`, else `~/.local/state/sigil` (`%LOCALAPPDATA%\\sigil` on Windows).
pub fn state_dir() -> PathBuf {
    sigil_config::folders::state().join("sigil")
}

/// Where the contexts are.
pub fn path() -> PathBuf {
    config_dir().join("contexts.toml")
}

impl Contexts {
    /// Reads the file; a missing one is empty.
    pub fn load() -> Result<Self, LinkError> {
        let path = path();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(LinkError::ContextFile { path, why: e.to_string() }),
        };
        toml::from_str(&text).map_err(|e| {
            let why = match e.span() {
                Some(span) => {
                    let before = &text[..span.start.min(text.len())];
                    let line = before.matches('\n').count() + 1;
                    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
                    format!("line {line}, column {column}: {}", e.message())
                }
                None => e.message().to_owned(),
            };
            LinkError::ContextFile { path, why }
        })
    }

    /// Writes the file at once or not at all, mode 0600.
    pub fn save(&self) -> Result<(), LinkError> {
        let path = path();
        let failed = |why: String| LinkError::ContextFile { path: path.clone(), why };
        let dir = config_dir();
        std::fs::create_dir_all(&dir).map_err(|e| failed(e.to_string()))?;
        let text = toml::to_string_pretty(self).map_err(|e| failed(e.to_string()))?;
        // a named temporary file is made with mode 0600
        let mut file = tempfile::NamedTempFile::new_in(&dir).map_err(|e| failed(e.to_string()))?;
        file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(|e| failed(e.to_string()))?;
        file.persist(&path).map_err(|e| failed(e.to_string()))?;
        Ok(())
    }

    /// The target that a context's name stands for.
    pub fn target(&self, name: &str) -> Result<Target, LinkError> {
        if name == "local" {
            return Ok(Target::local());
        }
        let context = self.contexts.get(name).ok_or_else(|| LinkError::UnknownContext {
            name: name.to_owned(),
            known: self.contexts.keys().cloned().collect(),
        })?;
        let pin = context.pin.as_deref().map(str::parse::<Pin>).transpose()?;
        Ok(Target {
            context: Some(name.to_owned()),
            address: context.address.parse()?,
            pin,
            token: context.token.clone(),
            identity: context.certificate.clone().zip(context.key.clone()),
            interactive: true,
        })
    }
}

/// Finds the agent: `--host`, `SIGIL_HOST`, current context, local socket. A value without `://` is a context's name.
/// `SIGIL_TOKEN` wins over a context's token.
pub fn resolve(host: Option<&str>) -> Result<Target, LinkError> {
    let variable = std::env::var("SIGIL_HOST").ok().filter(|v| !v.is_empty());
    let mut target = match host.map(str::to_owned).or(variable) {
        Some(text) if text.contains("://") => {
            let address: Address = text.parse()?;
            // the pin and the token of the context with this very address
            let contexts = Contexts::load()?;
            let same =
                contexts.contexts.iter().find(|(_, c)| c.address.parse::<Address>().ok().as_ref() == Some(&address));
            match same {
                Some((name, _)) => contexts.target(name)?,
                None => Target::address(address),
            }
        }
        Some(name) => Contexts::load()?.target(&name)?,
        None => {
            let contexts = Contexts::load()?;
            match &contexts.current {
                Some(name) => contexts.target(name)?,
                None => Target::local(),
            }
        }
    };
    if let Some(token) = std::env::var("SIGIL_TOKEN").ok().filter(|t| !t.is_empty()) {
        target.token = Some(token);
    }
    Ok(target)
}

/// The hosts of a console, each with what it is called: those of `--host` with commas between them, all contexts, those
/// of `SIGIL_HOST`, those of the fleet in `console.toml`, else the one that [`resolve`] finds.
pub fn resolve_all(host: Option<&str>, all: bool, fleet: &[String]) -> Result<Vec<(String, Target)>, LinkError> {
    let variable = std::env::var("SIGIL_HOST").ok().filter(|v| !v.is_empty());
    let mut wanted: Vec<String> = match host.map(str::to_owned).or(variable.filter(|_| !all)) {
        Some(text) => text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect(),
        None if all => Contexts::load()?.contexts.keys().cloned().collect(),
        None => fleet.to_vec(),
    };
    let mut seen = std::collections::BTreeSet::new();
    wanted.retain(|name| seen.insert(name.clone()));
    if wanted.is_empty() {
        return resolve(None).map(|target| vec![(called(&target), target)]);
    }
    let mut found: Vec<(String, Target)> = Vec::new();
    for name in wanted {
        let target = resolve(Some(&name))?;
        let name = called(&target);
        // Two addresses of one kind without contexts: told apart by their place.
        let taken = |n: &str| found.iter().any(|(other, _)| other == n);
        let name = if taken(&name) { format!("{name}-{}", found.len() + 1) } else { name };
        found.push((name, target));
    }
    Ok(found)
}

/// What a host is called: its context, else the machine in its address.
fn called(target: &Target) -> String {
    let address = target.address.to_string();
    target.context.clone().unwrap_or_else(|| match address.split_once("://") {
        Some(("unix", path)) => path.rsplit('/').find(|p| !p.is_empty()).unwrap_or("local").to_owned(),
        Some((_, rest)) => rest.rsplit('@').next().unwrap_or(rest).replace('/', ""),
        None => "local".to_owned(),
    })
}
