//! Owns: who a caller is and what that one may: peers of the unix sockets, keys, users, teams, roles.
//! May touch: `<data>/tokens.json` and its lock, `/etc/passwd`, users and teams in the store.
//! Never: keeps or logs a token; what is on disk is a hash.
//! Tested by: unit tests; `api::tests_rights` for every call of the link and every role.
//!
//! What somebody may is judged at each call, by what the directory says then. Who is no user of it has the role of the key
//! that was shown, or of the socket that was opened, on everything.

mod people;
mod tokens;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use sigil_core::policy::{PolicyError, Rate, Scope};
pub use sigil_core::rights::Role;
use sigil_core::rights::{Directory, Rights, RightsError, Subject};
use subtle::ConstantTimeEq;

pub use people::{PeopleError, add_user, grant, make_team, remove_team, remove_user, revoke, set_disabled};
pub use tokens::{NewToken, TokenInfo, create_token, list_tokens, revoke_all_of, revoke_token};
use tokens::{Stamp, edit, hash, path_of, read, stamp};

use crate::store::Store;

/// The last use is written at most this often.
const USE_EVERY: SignedDuration = SignedDuration::from_mins(10);
/// Longest label, in characters.
const LABEL_MAX: usize = 100;

/// A caller of the gRPC link, known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Principal {
    /// A user's name, `root`, a login name, `uid:1234`, or `token:<label>`.
    pub who: String,
    /// What that one may.
    pub rights: Arc<Rights>,
    /// The key that was shown; `None` for users of this host.
    pub holder: Option<Arc<Holder>>,
    /// The id of the user, where there is such a user.
    user: Option<String>,
    peer: Peer,
}

impl Principal {
    /// Whoever owns this host.
    pub fn owner() -> Self {
        let peer = Peer::Unix { uid: 0, group_socket: false };
        Self { who: "root".into(), rights: Arc::new(Rights::all(Role::Admin)), holder: None, user: None, peer }
    }

    /// The id of the user that this one is, where there is such a user.
    pub fn user(&self) -> Option<String> {
        self.user.clone()
    }

    /// What secrets of this caller alone are bound to: the id of the user, else the name that the key or the host has.
    pub fn user_id(&self) -> &str {
        match (&self.user, &self.holder) {
            (Some(id), _) => id,
            (None, Some(holder)) => &holder.user,
            (None, None) => &self.who,
        }
    }
}

/// A key's bearer as the gateway knows it.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The key's id.
    pub id: String,
    /// What it is for, in its owner's words.
    pub label: String,
    /// Whose it is: the id of a user, or a name that no user has.
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
        /// The common name of the certificate that it showed, which was verified; empty: it has none of use.
        certificate: Option<String>,
    },
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
    /// Its user is disabled.
    #[error("the user '{0}' is disabled")]
    Disabled(String),
    /// A certificate of somebody who is no user here.
    #[error("the certificate is of '{0}', who is no user of this agent")]
    NobodysCertificate(String),
    /// A role or name that cannot be.
    #[error(transparent)]
    Rights(#[from] RightsError),
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
            Self::NobodysCertificate(_) => "an admin adds the user with `sigil user add NAME`; or show a key",
            Self::Disabled(_) => "an admin enables it with `sigil user enable NAME`",
            Self::Rights(error) => error.hint(),
            Self::BadLabel(_) => "give it a short name, such as 'laptop'",
            Self::NotFound(_) | Self::Ambiguous(_) => "`sigil key ls` shows the keys and their ids",
            Self::Newer(_) => "use the newer agent",
            Self::Io { .. } => "look at the file's owner and mode",
        }
    }
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
    /// Users and teams; `None`: there are none.
    store: Option<Store>,
}

impl Access {
    /// For the tokens of a data directory.
    pub fn new(data_dir: &Path) -> Self {
        Self { data_dir: Arc::new(data_dir.to_owned()), known: Arc::default(), store: None }
    }

    /// The same with the users and teams of a store.
    #[must_use]
    pub fn with_people(self, store: Store) -> Self {
        Self { store: Some(store), ..self }
    }

    /// Users and teams as they are now.
    pub fn directory(&self) -> Arc<Directory> {
        self.store.as_ref().map(Store::directory).unwrap_or_default()
    }

    /// Where the keys are kept.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Who a caller is: by the kernel's word on a unix socket, else by its token (the text after `Bearer `).
    ///
    /// # Errors
    /// [`AccessError::Stranger`], [`AccessError::NoToken`], [`AccessError::BadToken`], [`AccessError::Disabled`], or that
    /// the file cannot be read.
    pub fn principal(&self, peer: &Peer, bearer: Option<&str>) -> Result<Principal, AccessError> {
        match peer {
            Peer::Unix { uid, group_socket } => self.neighbour(*uid, *group_socket),
            Peer::Tls { certificate, .. } => match (bearer, certificate) {
                (Some(token), _) => {
                    let holder = self.bearer(token, Timestamp::now(), Duration::ZERO)?;
                    self.bearing(holder, peer)
                }
                (None, Some(name)) => self.certified(name, peer),
                (None, None) => Err(AccessError::NoToken),
            },
        }
    }

    /// Whoever showed a certificate and no key: the user of that name.
    fn certified(&self, name: &str, peer: &Peer) -> Result<Principal, AccessError> {
        let directory = self.directory();
        match directory.user(name) {
            Some((user, _)) if user.name != name => Err(AccessError::NobodysCertificate(name.to_owned())),
            Some((user, _)) if user.disabled => Err(AccessError::Disabled(user.name.clone())),
            Some((user, rights)) => Ok(Principal {
                who: user.name.clone(),
                rights: rights.clone(),
                holder: None,
                user: Some(user.id.clone()),
                peer: peer.clone(),
            }),
            None => Err(AccessError::NobodysCertificate(name.to_owned())),
        }
    }

    /// Who a caller that was known before is now.
    ///
    /// # Errors
    /// The same as for [`Access::principal`]: a key can be revoked, a user disabled.
    pub fn again(&self, principal: &Principal) -> Result<Principal, AccessError> {
        let Some(holder) = &principal.holder else {
            return match &principal.peer {
                Peer::Unix { uid, group_socket } => self.neighbour(*uid, *group_socket),
                Peer::Tls { certificate: Some(name), .. } => self.certified(name, &principal.peer),
                Peer::Tls { certificate: None, .. } => Err(AccessError::NoToken),
            };
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(&mut known, LOOK)?;
        let good = |token: &&Token| token.info.expires_at.is_none_or(|at| at > Timestamp::now());
        let holder = known.tokens.get(&holder.id).filter(good).ok_or(AccessError::BadToken)?.holder.clone();
        drop(known);
        self.bearing(holder, &principal.peer)
    }

    /// A process of this host.
    fn neighbour(&self, uid: u32, group_socket: bool) -> Result<Principal, AccessError> {
        let me = rustix::process::geteuid().as_raw();
        let peer = Peer::Unix { uid, group_socket };
        let who = login_name(uid);
        if uid == 0 || uid == me {
            return Ok(Principal { who, peer, ..Principal::owner() });
        }
        if !group_socket {
            return Err(AccessError::Stranger(uid));
        }
        let directory = self.directory();
        match directory.user(&who) {
            Some((user, _)) if user.disabled => Err(AccessError::Disabled(user.name.clone())),
            Some((user, rights)) => {
                Ok(Principal { who, rights: rights.clone(), holder: None, user: Some(user.id.clone()), peer })
            }
            // the kernel let in members of the socket's group only
            None => Ok(Principal { who, rights: Arc::new(Rights::all(Role::Viewer)), holder: None, user: None, peer }),
        }
    }

    /// Whoever showed a key.
    fn bearing(&self, holder: Arc<Holder>, peer: &Peer) -> Result<Principal, AccessError> {
        let directory = self.directory();
        let (who, rights, user) = match directory.user(&holder.user) {
            Some((user, _)) if user.disabled => return Err(AccessError::Disabled(user.name.clone())),
            // whoever got hold of a key has no certificate of its user
            Some((user, _)) if matches!(peer, Peer::Tls { certificate: Some(name), .. } if *name != user.name) => {
                return Err(AccessError::BadToken);
            }
            Some((user, rights)) => (user.name.clone(), rights.capped(holder.role), Some(user.id.clone())),
            None => (format!("token:{}", holder.label), Rights::all(holder.role), None),
        };
        Ok(Principal { who, rights: Arc::new(rights), holder: Some(holder), user, peer: peer.clone() })
    }

    /// Whether a key's holder may call a deployment, as far as roles say. In the path of every request.
    ///
    /// # Errors
    /// [`AccessError::Disabled`].
    pub fn calls(&self, holder: &Holder, subject: Subject<'_>) -> Result<bool, AccessError> {
        let directory = self.directory();
        match directory.user(&holder.user) {
            Some((user, _)) if user.disabled => Err(AccessError::Disabled(user.name.clone())),
            Some((_, rights)) => Ok(holder.role != Role::Viewer && rights.on(subject).calls),
            None => Ok(holder.role != Role::Viewer),
        }
    }

    /// What a key's holder may, as its user's roles and its own say.
    ///
    /// # Errors
    /// [`AccessError::Disabled`].
    pub fn rights_of(&self, holder: &Holder) -> Result<Rights, AccessError> {
        let directory = self.directory();
        match directory.user(&holder.user) {
            Some((user, _)) if user.disabled => Err(AccessError::Disabled(user.name.clone())),
            Some((_, rights)) => Ok(rights.capped(holder.role)),
            None => Ok(Rights::all(holder.role)),
        }
    }

    /// Whose own things (secrets of a user) a key's holder has: the id of the user, else the name that the key has.
    pub fn owner(&self, holder: &Holder) -> Arc<str> {
        self.directory().user(&holder.user).map_or(holder.user.as_str(), |(user, _)| &user.id).into()
    }

    /// Whether a key's holder may look at what concerns the whole agent.
    pub fn looks(&self, holder: &Holder) -> bool {
        let directory = self.directory();
        let cap = Rights::all(holder.role).everywhere();
        let held = match directory.user(&holder.user) {
            Some((user, _)) if user.disabled => return false,
            Some((_, rights)) => rights.everywhere(),
            None => cap,
        };
        held.may(Role::Viewer) && cap.may(Role::Viewer)
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
        let directory = self.directory();
        let good = known.tokens.values().filter(|t| {
            t.info.expires_at.is_none_or(|at| at > now) && directory.user(&t.info.user).is_none_or(|(u, _)| !u.disabled)
        });
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
        Peer::Tls { address: "192.0.2.1:5000".parse().unwrap(), certificate: None }
    }

    #[test]
    fn a_token_works_until_it_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let access = Access::new(dir.path());
        assert!(matches!(access.principal(&tls(), None), Err(AccessError::NoToken)));
        assert!(matches!(access.principal(&tls(), Some("sigil_x_y")), Err(AccessError::BadToken)));
        let (token, info) = create_token(dir.path(), NewToken::new("laptop", Role::Viewer)).unwrap();
        let text = reveal(&token);
        let who = access.principal(&tls(), Some(text)).unwrap();
        assert_eq!((who.who.as_str(), who.rights.everywhere().as_str()), ("token:laptop", "viewer"));
        assert!(list_tokens(dir.path()).unwrap()[0].last_used_at.is_some());

        let kept = fs::read_to_string(path_of(dir.path())).unwrap();
        // the secret is base64url: it may hold, and end with, an underscore of its own
        assert!(!kept.contains(text.splitn(3, '_').nth(2).unwrap()), "the secret is on disk");
        assert_eq!(fs::metadata(path_of(dir.path())).unwrap().permissions().mode() & 0o777, 0o600);

        // one made by another process beside the running agent
        let (second, _) = create_token(dir.path(), NewToken::new("ci", Role::Admin)).unwrap();
        assert_eq!(access.principal(&tls(), Some(reveal(&second))).unwrap().rights, Principal::owner().rights);
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
        assert_eq!(unix(0, false).unwrap(), Principal::owner());
        let me = rustix::process::geteuid().as_raw();
        assert_eq!(unix(me, false).unwrap().rights.everywhere().as_str(), "admin");
        let member = unix(4_000_000, true).unwrap();
        assert_eq!((member.who.as_str(), member.rights.everywhere().as_str()), ("uid:4000000", "viewer"));
        assert!(matches!(unix(4_000_000, false), Err(AccessError::Stranger(4_000_000))));
    }
}
