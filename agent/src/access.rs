//! Owns: who a caller of the gRPC link is and what that one may: peers of the unix sockets, bearer tokens, roles.
//! May touch: `<data>/tokens.json` and its lock, `/etc/passwd`.
//! Never: keeps or logs a token; what is on disk is a hash.
//! Tested by: unit tests.
//!
//! Tokens live in a file of their own, replaced whole: `sigil-agent token` makes one while the agent, which holds the
//! store's lock, runs; the agent reads the file again when it changed.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use rustix::fs::{FlockOperation, flock};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sigil_core::policy::{PolicyError, Rate, Scope};
use subtle::ConstantTimeEq;

const FORMAT: u32 = 1;
/// Random bytes of a token: 256 bits.
const SECRET_BYTES: usize = 32;
/// The last use is written at most this often.
const USE_EVERY: SignedDuration = SignedDuration::from_mins(10);
/// Longest label, in characters.
const LABEL_MAX: usize = 100;

/// What a caller may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Call tools through the gateway, and nothing else: the role of keys.
    Caller,
    /// Look at everything but secrets.
    Reader,
    /// Everything.
    Admin,
}

impl Role {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Reader => "reader",
            Self::Admin => "admin",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = AccessError;
    fn from_str(s: &str) -> Result<Self, AccessError> {
        match s {
            "caller" => Ok(Self::Caller),
            "reader" => Ok(Self::Reader),
            "admin" => Ok(Self::Admin),
            other => Err(AccessError::BadRole(other.to_owned())),
        }
    }
}

/// A caller, known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Principal {
    /// `root`, a login name, `uid:1234`, or `token:<label>`.
    pub who: String,
    /// What that one may.
    pub role: Role,
    /// The key that was shown; `None` for users of this host.
    pub holder: Option<Arc<Holder>>,
}

impl Principal {
    /// Whose own things (secrets of a user) are this caller's: the user that its key belongs to, else who it is.
    pub fn user_id(&self) -> &str {
        self.holder.as_ref().map_or(self.who.as_str(), |holder| holder.user.as_str())
    }
}

/// A key's bearer as the gateway knows it.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The key's id.
    pub id: String,
    /// What it is for, in its owner's words.
    pub label: String,
    /// Whose it is.
    pub user: String,
    /// What it is good for beside calling.
    pub role: Role,
    /// Which deployments and tools it may call.
    pub scope: Scope,
    /// Requests over the gateway.
    pub rate: Option<Rate>,
    /// Requests over the gateway at once.
    pub concurrency: Option<u32>,
}

impl PartialEq for Holder {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Holder {}

/// Where a connection came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A process on this host.
    Unix {
        /// Its user, as the kernel says.
        uid: u32,
        /// It came in by the socket that the group `sigil` may open.
        group_socket: bool,
    },
    /// Another host, over TLS.
    Tls {
        /// Its address.
        address: SocketAddr,
    },
}

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
    hash: String,
}

impl TokenInfo {
    fn holder(&self) -> Result<Holder, PolicyError> {
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

/// Why a caller or a token was refused.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Neither admin nor in the group.
    #[error("uid {0} may not use this socket")]
    Stranger(u32),
    /// No credentials.
    #[error("this address needs a token")]
    NoToken,
    /// Wrong, revoked or expired; which of these is nobody's business.
    #[error("the token is not valid")]
    BadToken,
    /// Not one of the three.
    #[error("'{0}' is not a role")]
    BadRole(String),
    /// Empty, too long or with control characters.
    #[error("the label '{0}' is empty, longer than {LABEL_MAX} characters or has control characters")]
    BadLabel(String),
    /// A scope or limit that cannot be.
    #[error(transparent)]
    Scope(#[from] PolicyError),
    /// No token of that id or label.
    #[error("no token '{0}'")]
    NotFound(String),
    /// More than one token has that label.
    #[error("several tokens are labelled '{0}'")]
    Ambiguous(String),
    /// The file was written by a newer version.
    #[error("{0} was written by a newer version of the agent")]
    Newer(PathBuf),
    /// Reading or writing the file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl AccessError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Scope(error) => error.hint(),
            Self::Stranger(_) => "use root, the agent's own user, or a member of the group sigil",
            Self::NoToken | Self::BadToken => {
                "make one on the agent's host with `sigil-agent token create NAME`, and give it as SIGIL_TOKEN"
            }
            Self::BadRole(_) => "the roles are admin, reader and caller",
            Self::BadLabel(_) => "give it a short name, such as 'laptop'",
            Self::NotFound(_) | Self::Ambiguous(_) => "`sigil key ls` shows the keys and their ids",
            Self::Newer(_) => "use the newer agent",
            Self::Io { .. } => "look at the file's owner and mode",
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct TokenFile {
    version: u32,
    tokens: Vec<TokenInfo>,
}

fn path_of(data_dir: &Path) -> PathBuf {
    data_dir.join("tokens.json")
}

fn read(path: &Path) -> Result<TokenFile, AccessError> {
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
fn edit<T>(data_dir: &Path, change: impl FnOnce(&mut TokenFile) -> Result<T, AccessError>) -> Result<T, AccessError> {
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

fn hash(secret: &[u8]) -> String {
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

/// What tells one state of the file from another: the file is only ever replaced, so its inode changes too.
type Stamp = Option<(u64, i64, i64, u64)>;

fn stamp(path: &Path) -> Stamp {
    fs::metadata(path).ok().map(|m| (m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
}

#[derive(Debug)]
struct Token {
    info: TokenInfo,
    holder: Arc<Holder>,
}

#[derive(Debug, Default)]
struct Known {
    stamp: Stamp,
    /// When the file was last looked at.
    looked: Option<Instant>,
    tokens: HashMap<String, Token>,
}

/// How old the look at the file may be when a call of the gateway is judged: there are many of them.
const LOOK: Duration = Duration::from_millis(200);

/// Knows callers. Clones share what was read.
#[derive(Clone, Debug)]
pub struct Access {
    data_dir: Arc<PathBuf>,
    known: Arc<Mutex<Known>>,
}

impl Access {
    /// For the tokens of a data directory.
    pub fn new(data_dir: &Path) -> Self {
        Self { data_dir: Arc::new(data_dir.to_owned()), known: Arc::default() }
    }

    /// Where the keys are kept.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Who a caller is: by the kernel's word on a unix socket, else by its token (the text after `Bearer `).
    ///
    /// # Errors
    /// [`AccessError::Stranger`], [`AccessError::NoToken`], [`AccessError::BadToken`], or that the file cannot be read.
    pub fn principal(&self, peer: &Peer, bearer: Option<&str>) -> Result<Principal, AccessError> {
        match peer {
            Peer::Unix { uid, group_socket } => {
                let me = rustix::process::geteuid().as_raw();
                let role = match (*uid == 0 || *uid == me, group_socket) {
                    (true, _) => Role::Admin,
                    // the kernel let in members of the socket's group only
                    (false, true) => Role::Reader,
                    (false, false) => return Err(AccessError::Stranger(*uid)),
                };
                Ok(Principal { who: login_name(*uid), role, holder: None })
            }
            Peer::Tls { .. } => {
                let holder = self.bearer(bearer.ok_or(AccessError::NoToken)?, Timestamp::now(), Duration::ZERO)?;
                Ok(Principal { who: format!("token:{}", holder.label), role: holder.role, holder: Some(holder) })
            }
        }
    }

    /// Whether any key exists: from then on new deployments ask for one.
    ///
    /// # Errors
    /// That the file cannot be read.
    pub fn any_keys(&self) -> Result<bool, AccessError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(&mut known, Duration::ZERO)?;
        Ok(known.tokens.values().any(|t| t.info.role == Role::Caller))
    }

    /// Who holds a key, given to the gateway. Cheap: a call in the path of every request.
    ///
    /// # Errors
    /// [`AccessError::BadToken`], or that the file cannot be read.
    pub fn holder(&self, text: &str) -> Result<Arc<Holder>, AccessError> {
        self.bearer(text, Timestamp::now(), LOOK)
    }

    /// The ids of all keys that are good now.
    ///
    /// # Errors
    /// That the file cannot be read.
    pub fn ids(&self) -> Result<HashSet<String>, AccessError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(&mut known, Duration::ZERO)?;
        let now = Timestamp::now();
        let good = known.tokens.values().filter(|t| t.info.expires_at.is_none_or(|at| at > now));
        Ok(good.map(|t| t.info.id.clone()).collect())
    }

    /// What changed must be seen by the next call.
    pub fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).looked = None;
    }

    fn look(&self, known: &mut Known, age: Duration) -> Result<(), AccessError> {
        if known.looked.is_some_and(|at| at.elapsed() < age) {
            return Ok(());
        }
        let path = path_of(&self.data_dir);
        let current = stamp(&path);
        if known.stamp != current || current.is_none() {
            // read after the stamp was taken: a change in between is seen the next time
            let mut tokens = HashMap::new();
            for info in read(&path)?.tokens {
                match info.holder() {
                    Ok(holder) => drop(tokens.insert(info.id.clone(), Token { info, holder: Arc::new(holder) })),
                    Err(error) => {
                        tracing::error!(%error, key = info.label, "a key is refused: its scope cannot be read")
                    }
                }
            }
            known.tokens = tokens;
            known.stamp = current;
        }
        known.looked = Some(Instant::now());
        Ok(())
    }

    fn bearer(&self, text: &str, now: Timestamp, age: Duration) -> Result<Arc<Holder>, AccessError> {
        let (id, secret) =
            text.strip_prefix("sigil_").and_then(|rest| rest.split_once('_')).ok_or(AccessError::BadToken)?;
        let secret = zeroize::Zeroizing::new(URL_SAFE_NO_PAD.decode(secret).map_err(|_| AccessError::BadToken)?);
        let given = hash(&secret);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(&mut known, age)?;
        if !known.tokens.contains_key(id) {
            // it may have been made since
            self.look(&mut known, Duration::ZERO)?;
        }
        let token = known.tokens.get_mut(id).ok_or(AccessError::BadToken)?;
        let same: bool = token.info.hash.as_bytes().ct_eq(given.as_bytes()).into();
        if !same || token.info.expires_at.is_some_and(|at| at <= now) {
            return Err(AccessError::BadToken);
        }
        let holder = token.holder.clone();
        if token.info.last_used_at.is_none_or(|at| now.duration_since(at) >= USE_EVERY) {
            token.info.last_used_at = Some(now);
            drop(known);
            self.note_use(id.to_owned(), now);
        }
        Ok(holder)
    }

    /// Writes down when a key was used; beside the call where there is a runtime, for the disk may be slow.
    fn note_use(&self, id: String, now: Timestamp) {
        let dir = self.data_dir.clone();
        let note = move || {
            let noted = edit(&dir, |file| {
                if let Some(token) = file.tokens.iter_mut().find(|t| t.id == id) {
                    token.last_used_at = Some(now);
                }
                Ok(())
            });
            if let Err(e) = noted {
                tracing::warn!(error = %e, "the last use of a token was not noted");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(note)),
            Err(_) => note(),
        }
    }
}

/// The login name of a user of this host, `uid:<n>` when `/etc/passwd` has none.
pub fn login_name(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        })
        .unwrap_or_else(|| format!("uid:{uid}"))
}

/// The text of a token, for showing it once.
pub fn reveal(token: &SecretString) -> &str {
    token.expose_secret()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn tls() -> Peer {
        Peer::Tls { address: "192.0.2.1:5000".parse().unwrap() }
    }

    #[test]
    fn a_token_works_until_it_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let access = Access::new(dir.path());
        assert!(matches!(access.principal(&tls(), None), Err(AccessError::NoToken)));
        assert!(matches!(access.principal(&tls(), Some("sigil_x_y")), Err(AccessError::BadToken)));
        let (token, info) = create_token(dir.path(), NewToken::new("laptop", Role::Reader)).unwrap();
        let text = reveal(&token);
        let who = access.principal(&tls(), Some(text)).unwrap();
        assert_eq!((who.who.as_str(), who.role), ("token:laptop", Role::Reader));
        assert!(list_tokens(dir.path()).unwrap()[0].last_used_at.is_some());

        let kept = fs::read_to_string(path_of(dir.path())).unwrap();
        // the secret is base64url: it may hold, and end with, an underscore of its own
        assert!(!kept.contains(text.splitn(3, '_').nth(2).unwrap()), "the secret is on disk");
        assert_eq!(fs::metadata(path_of(dir.path())).unwrap().permissions().mode() & 0o777, 0o600);

        // one made by another process beside the running agent
        let (second, _) = create_token(dir.path(), NewToken::new("ci", Role::Admin)).unwrap();
        assert_eq!(access.principal(&tls(), Some(reveal(&second))).unwrap().role, Role::Admin);
        revoke_token(dir.path(), &info.id).unwrap();
        assert!(matches!(access.principal(&tls(), Some(text)), Err(AccessError::BadToken)));
        assert!(access.principal(&tls(), Some(reveal(&second))).is_ok());
        assert!(matches!(revoke_token(dir.path(), "laptop"), Err(AccessError::NotFound(_))));
    }

    #[test]
    fn every_flaw_of_a_token_refuses_it() {
        let dir = tempfile::tempdir().unwrap();
        let access = Access::new(dir.path());
        let (token, _) = create_token(dir.path(), NewToken::new("a", Role::Admin)).unwrap();
        let (other, _) = create_token(dir.path(), NewToken::new("b", Role::Admin)).unwrap();
        let text = reveal(&token);
        let secret = text.splitn(3, '_').nth(2).unwrap();
        let id = reveal(&other).split('_').nth(1).unwrap();
        for bad in [
            String::new(),
            text[..text.len() - 1].to_owned(),
            format!("{text}A"),
            format!("sigil_{id}_{secret}"),
            format!("sigil_{id}_"),
        ] {
            assert!(access.principal(&tls(), Some(&bad)).is_err(), "{bad}");
        }
        let (old, _) = create_token(
            dir.path(),
            NewToken { expires_at: Some(Timestamp::now()), ..NewToken::new("old", Role::Admin) },
        )
        .unwrap();
        assert!(matches!(access.principal(&tls(), Some(reveal(&old))), Err(AccessError::BadToken)));
        assert!(matches!(create_token(dir.path(), NewToken::new(" ", Role::Admin)), Err(AccessError::BadLabel(_))));
    }

    #[test]
    fn a_newer_file_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path_of(dir.path()), r#"{"version": 2, "tokens": {}}"#).unwrap();
        assert!(matches!(create_token(dir.path(), NewToken::new("a", Role::Admin)), Err(AccessError::Newer(_))));
        assert_eq!(fs::read_to_string(path_of(dir.path())).unwrap(), r#"{"version": 2, "tokens": {}}"#);
    }

    #[test]
    fn the_kernel_says_who_is_at_the_socket() {
        let access = Access::new(Path::new("/nonexistent"));
        let unix = |uid, group_socket| access.principal(&Peer::Unix { uid, group_socket }, None);
        assert_eq!(unix(0, false).unwrap(), Principal { who: "root".into(), role: Role::Admin, holder: None });
        let me = rustix::process::geteuid().as_raw();
        assert_eq!(unix(me, false).unwrap().role, Role::Admin);
        assert_eq!(
            unix(4_000_000, true).unwrap(),
            Principal { who: "uid:4000000".into(), role: Role::Reader, holder: None }
        );
        assert!(matches!(unix(4_000_000, false), Err(AccessError::Stranger(4_000_000))));
    }
}
