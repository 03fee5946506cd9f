//! Whose a secret is, what it may be called, and where it is looked for.

use sigil_core::model::{DeploymentId, Name};

use super::{Result, SecretError};

/// Longest name, in bytes.
const NAME_MAX: usize = 128;

/// Whose a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Shared by all deployments of a team.
    Team(String),
    /// One deployment's own; wins over its team's.
    Deployment(DeploymentId),
    /// One user's own, by id; found only where a manifest asks for it `per: user`.
    User(String),
    /// A login for fetching sources; its name is the host.
    Source,
    /// The token, or the key, of an account at a git host; its name is the account's.
    Git,
}

impl Scope {
    /// What the secret is for, as bound into the seal.
    fn purpose(&self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Git => "git",
            Self::Team(_) | Self::Deployment(_) | Self::User(_) => "server",
        }
    }

    pub(super) fn prefix(&self) -> String {
        match self {
            Self::Team(team) => format!("team/{team}/"),
            Self::Deployment(id) => format!("deployment/{id}/"),
            Self::User(id) => format!("user/{}/", escaped(id)),
            Self::Source => "source/".to_owned(),
            Self::Git => "git/".to_owned(),
        }
    }

    /// The key of a secret of this scope, unique in the agent: `team/default/NAME`, `deployment/<id>/NAME`,
    /// `user/<id>/NAME`, `source/<host>`, `git/<account>`.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix())
    }

    /// Scope and name of a store key.
    pub(super) fn of_key(key: &str) -> Option<(Self, String)> {
        let (kind, rest) = key.split_once('/')?;
        match kind {
            "source" => Some((Self::Source, rest.to_owned())),
            "git" => Some((Self::Git, rest.to_owned())),
            "user" => {
                let (id, name) = rest.split_once('/')?;
                Some((Self::User(unescaped(id)?), name.to_owned()))
            }
            "team" => rest.split_once('/').map(|(team, name)| (Self::Team(team.to_owned()), name.to_owned())),
            "deployment" => {
                let (id, name) = rest.split_once('/')?;
                Some((Self::Deployment(id.parse().ok()?), name.to_owned()))
            }
            _ => None,
        }
    }
}

/// An id as part of a key: whatever could be taken for the key's own parts is written as `%2f`.
fn escaped(id: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._@:".contains(&b);
    id.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02x}") }).collect()
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (code, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

/// What a seal is bound to, besides the data key.
pub(super) fn parts(scope: &Scope, name: &str, version: u32) -> Vec<Vec<u8>> {
    let (team, kind, id) = match scope {
        Scope::Team(team) => (team.clone(), "team", team.clone()),
        // a deployment's team can change, its identity cannot
        Scope::Deployment(id) => (String::new(), "deployment", id.to_string()),
        // nor does a user's
        Scope::User(id) => (String::new(), "user", id.clone()),
        Scope::Source => (String::new(), "source", String::new()),
        Scope::Git => (String::new(), "git", String::new()),
    };
    let texts = [scope.purpose(), &team, kind, &id, name].map(|text| text.as_bytes().to_vec());
    texts.into_iter().chain([version.to_be_bytes().to_vec()]).collect()
}

/// The name as kept: hosts in lower case.
pub(super) fn checked_name(scope: &Scope, name: &str) -> Result<String> {
    if let Scope::Source = scope {
        let lower = name.to_ascii_lowercase();
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:[]".contains(c);
        let ends = |c: char| c.is_ascii_alphanumeric() || c == '[' || c == ']';
        if lower.is_empty()
            || lower.len() > 260
            || !lower.chars().all(fine)
            || !lower.starts_with(ends)
            || !lower.ends_with(ends)
        {
            return Err(SecretError::BadHost(name.to_owned()));
        }
        return Ok(lower);
    }
    if let Scope::Git = scope {
        let account: std::result::Result<Name, _> = name.parse();
        return account.map(|name| name.to_string()).map_err(|_| SecretError::BadName(name.to_owned()));
    }
    if let Scope::Team(team) = scope
        && (team.is_empty() || team.contains('/') || team.len() > NAME_MAX)
    {
        return Err(SecretError::BadName(format!("{team}/{name}")));
    }
    if let Scope::User(id) = scope
        && (id.is_empty() || id.len() > 2 * NAME_MAX)
    {
        return Err(SecretError::BadName(format!("{id}/{name}")));
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty()
        || name.len() > NAME_MAX
        || !name.chars().all(fine)
        || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(SecretError::BadName(name.to_owned()));
    }
    Ok(name.to_owned())
}

/// Keys to try for a host, best first.
pub(super) fn candidates(host: &str) -> Vec<String> {
    let mut found = vec![host.to_owned()];
    let bare = if host.starts_with('[') {
        host.split_inclusive(']').next().unwrap_or(host)
    } else if host.matches(':').count() == 1 {
        host.split(':').next().unwrap_or(host)
    } else {
        host
    };
    if bare != host {
        found.push(bare.to_owned());
    }
    let address = bare.starts_with('[') || bare.parse::<std::net::IpAddr>().is_ok();
    let mut rest = bare;
    while let Some((_, parent)) = rest.split_once('.').filter(|(_, parent)| !address && parent.contains('.')) {
        found.push(parent.to_owned());
        rest = parent;
    }
    found
}
