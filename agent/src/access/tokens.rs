//! Keys: the file that holds their hashes, and what is written into it.
//!
//! A file of its own, replaced whole: `sigil-agent token` makes a key while the agent, which holds the store's lock, runs;
//! the agent reads the file again when it changed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sigil_core::policy::{PolicyError, Rate, Scope};
use sigil_core::rights::Role;

use super::{AccessError, Holder, LABEL_MAX};

const FORMAT: u32 = 1;
/// Random bytes of a token: 256 bits.
const SECRET_BYTES: usize = 32;

/// A token as kept and shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Public part, for listing and revoking.
    pub id: String,
    /// What it is for, in the owner's words.
    pub label: String,
    /// What its bearer may.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used, within ten minutes.
    pub last_used_at: Option<Timestamp>,
    /// When it stops working; `None`: when it is revoked.
    pub expires_at: Option<Timestamp>,
    /// Whose it is: who made it, unless it was made for another.
    #[serde(default)]
    pub user: String,
    /// Patterns of the deployments it may call; empty: all.
    #[serde(default)]
    pub deployments: Vec<String>,
    /// Patterns of the tools it may call (`tool`, `deployment/tool`); empty: all.
    #[serde(default)]
    pub tools: Vec<String>,
    /// Requests over the gateway.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// Requests over the gateway at once.
    #[serde(default)]
    pub concurrency: Option<u32>,
    /// SHA-256 of the secret part, hexadecimal.
    pub(super) hash: String,
}

impl TokenInfo {
    pub(super) fn holder(&self) -> Result<Holder, PolicyError> {
        Ok(Holder {
            id: self.id.clone(),
            label: self.label.clone(),
            user: if self.user.is_empty() { self.label.clone() } else { self.user.clone() },
            role: self.role,
            scope: Scope::new(&self.deployments, &self.tools)?,
            rate: self.rate,
            concurrency: self.concurrency,
        })
    }
}

/// A token to be made.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// What it is for, in the owner's words.
    pub label: String,
    /// What its bearer may.
    pub role: Role,
    /// When it stops working; `None`: when it is revoked.
    pub expires_at: Option<Timestamp>,
    /// Whose it is.
    pub user: String,
    /// Patterns of deployments; empty: all.
    pub deployments: Vec<String>,
    /// Patterns of tools (`tool`, `deployment/tool`); empty: all.
    pub tools: Vec<String>,
    /// Requests over the gateway.
    pub rate: Option<Rate>,
    /// Requests over the gateway at once.
    pub concurrency: Option<u32>,
}

impl NewToken {
    /// One without limits.
    pub fn new(label: &str, role: Role) -> Self {
        Self {
            label: label.to_owned(),
            role,
            expires_at: None,
            user: String::new(),
            deployments: Vec::new(),
            tools: Vec::new(),
            rate: None,
            concurrency: None,
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct TokenFile {
    version: u32,
    pub(super) tokens: Vec<TokenInfo>,
}

pub(super) fn path_of(data_dir: &Path) -> PathBuf {
    data_dir.join("tokens.json")
}

pub(super) fn read(path: &Path) -> Result<TokenFile, AccessError> {
    let io = |source| AccessError::Io { path: path.to_owned(), source };
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(TokenFile { version: FORMAT, tokens: Vec::new() }),
        Err(e) => return Err(io(e)),
    };
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let bad = |e: serde_json::Error| io(io::Error::new(io::ErrorKind::InvalidData, e));
    if serde_json::from_slice::<Version>(&text).map_err(bad)?.version > FORMAT {
        return Err(AccessError::Newer(path.to_owned()));
    }
    serde_json::from_slice(&text).map_err(bad)
}

/// Reads, changes and replaces the file, alone among all processes. Blocks.
pub(super) fn edit<T>(
    data_dir: &Path,
    change: impl FnOnce(&mut TokenFile) -> Result<T, AccessError>,
) -> Result<T, AccessError> {
    let path = path_of(data_dir);
    let io = |source| AccessError::Io { path: path.clone(), source };
    let lock: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(data_dir.join("tokens.lock"))
        .map_err(io)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| io(e.into()))?;
    let mut file = read(&path)?;
    let answer = change(&mut file)?;
    file.version = FORMAT;
    let text = serde_json::to_vec_pretty(&file).map_err(|e| io(io::Error::other(e)))?;
    // root may make a token for an agent that runs as another user; by descriptor, for that user could put links there
    let meta = fs::metadata(data_dir).map_err(io)?;
    let foreign = rustix::process::geteuid().is_root() && meta.uid() != 0;
    let owner = foreign.then(|| (meta.uid(), meta.gid()));
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::fchown(&lock, Some(uid), Some(gid)).map_err(io)?;
    }
    crate::store::replace_file(&path, &text, owner).map_err(io)?;
    Ok(answer)
}

pub(super) fn hash(secret: &[u8]) -> String {
    hex::encode(Sha256::digest(secret))
}

/// Makes a token of 256 bits; its text is shown this once. Works beside a running agent. Blocks.
///
/// # Errors
/// [`AccessError::BadLabel`], [`AccessError::Scope`], [`AccessError::Newer`], [`AccessError::Io`].
pub fn create_token(data_dir: &Path, new: NewToken) -> Result<(SecretString, TokenInfo), AccessError> {
    let plain = |text: &str| text.chars().count() <= LABEL_MAX && !text.chars().any(char::is_control);
    let label = new.label.trim();
    for text in [label, new.user.as_str()] {
        if !plain(text) || label.is_empty() {
            return Err(AccessError::BadLabel(text.chars().filter(|c| !c.is_control()).take(LABEL_MAX).collect()));
        }
    }
    if new.concurrency == Some(0) {
        return Err(PolicyError::Zero("the key".into()).into());
    }
    let mut secret = zeroize::Zeroizing::new([0u8; SECRET_BYTES]);
    getrandom::fill(&mut *secret)
        .map_err(|e| AccessError::Io { path: path_of(data_dir), source: io::Error::other(e.to_string()) })?;
    let id = ulid::Ulid::generate().to_string().to_ascii_lowercase();
    let info = TokenInfo {
        id: id.clone(),
        label: label.to_owned(),
        role: new.role,
        created_at: Timestamp::now(),
        last_used_at: None,
        expires_at: new.expires_at,
        user: new.user.clone(),
        deployments: new.deployments,
        tools: new.tools,
        rate: new.rate,
        concurrency: new.concurrency,
        hash: hash(&*secret),
    };
    info.holder()?;
    let text = SecretString::from(format!("sigil_{id}_{}", URL_SAFE_NO_PAD.encode(secret.as_slice())));
    edit(data_dir, |file| {
        file.tokens.push(info.clone());
        Ok(())
    })?;
    Ok((text, info))
}

/// All tokens, oldest first.
///
/// # Errors
/// [`AccessError::Newer`], [`AccessError::Io`].
pub fn list_tokens(data_dir: &Path) -> Result<Vec<TokenInfo>, AccessError> {
    read(&path_of(data_dir)).map(|file| file.tokens)
}

/// Ends a token, by id or by a label that only one has. A running agent refuses it from then on.
///
/// # Errors
/// [`AccessError::NotFound`], [`AccessError::Ambiguous`], [`AccessError::Newer`], [`AccessError::Io`].
pub fn revoke_token(data_dir: &Path, id_or_label: &str) -> Result<TokenInfo, AccessError> {
    edit(data_dir, |file| {
        let hits: Vec<usize> = (0..file.tokens.len())
            .filter(|i| file.tokens[*i].id == id_or_label || file.tokens[*i].label == id_or_label)
            .collect();
        match hits.as_slice() {
            [] => Err(AccessError::NotFound(id_or_label.to_owned())),
            [one] => Ok(file.tokens.remove(*one)),
            _ => Err(AccessError::Ambiguous(id_or_label.to_owned())),
        }
    })
}

/// Ends all keys of a user, by the user's id or name. A running agent refuses them from then on.
///
/// # Errors
/// [`AccessError::Newer`], [`AccessError::Io`].
pub fn revoke_all_of(data_dir: &Path, user: &[&str]) -> Result<Vec<TokenInfo>, AccessError> {
    edit(data_dir, |file| {
        let (gone, kept) = file.tokens.drain(..).partition(|token| user.contains(&token.user.as_str()));
        file.tokens = kept;
        Ok(gone)
    })
}

/// What tells one state of the file from another: the file is only ever replaced, so its inode changes too.
pub(super) type Stamp = Option<(u64, i64, i64, u64)>;

pub(super) fn stamp(path: &Path) -> Stamp {
    fs::metadata(path).ok().map(|m| (m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
}
