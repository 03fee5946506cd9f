//! Where the master key comes from: a systemd credential, a key file, a passphrase, the kernel's keyring. Never the
//! environment: that stays readable in `/proc`.
//!
//! A place that is about to give another key holds both for a while, the new one under the same name with `.next` (files)
//! or `-next` (credentials, kernel keys) behind it. The ring says which of the two is its own, so it opens whenever the
//! agent is killed.

use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sigil_config::agent::SecretsConfig;

use super::files::{make_folder, next_to, put_in_place, read_any, read_private, remove, there, write_private};
use super::key::Key;
use super::prompt;

/// Name of the credential and of the kernel's key.
const NAME: &str = "sigil-kek";
/// Name of the credential that holds a passphrase.
const PASSPHRASE: &str = "sigil-passphrase";
/// What a person is asked for.
const PROMPT: &str = "passphrase of the keyring";
/// Least length of what a key is hashed from.
const TEXT_MIN: usize = 32;
/// Least length of a passphrase that a ring is newly wrapped with, in characters.
const PASSPHRASE_MIN: usize = 12;

/// What is wrong with the keyring, and what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}")]
pub struct Trouble {
    what: String,
    hint: String,
}

impl Trouble {
    pub(super) fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into() }
    }

    pub(super) fn hint(&self) -> &str {
        &self.hint
    }
}

impl From<String> for Trouble {
    fn from(what: String) -> Self {
        let hint =
            "restore <data>/keyring and its key from the same backup; both belong to the agent's user, mode 0600";
        Self::new(what, hint)
    }
}

/// What the process was given, beside its configuration.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    /// systemd's directory of credentials.
    pub credentials: Option<PathBuf>,
    /// A passphrase that somebody typed already.
    pub passphrase: Option<SecretString>,
    /// Whether a terminal may be asked for one.
    pub ask: bool,
}

impl Given {
    /// Of this process.
    pub(super) fn here(ask: bool) -> Self {
        Self { credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from), passphrase: None, ask }
    }

    fn credential(&self, name: &str) -> Option<PathBuf> {
        self.credentials.as_ref().map(|dir| dir.join(name))
    }
}

/// How a passphrase becomes a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Argon2id {
    /// Memory, KiB.
    m: u32,
    /// Passes.
    t: u32,
    /// Lanes.
    p: u32,
    /// Hexadecimal.
    salt: String,
}

impl Argon2id {
    fn fresh() -> Result<Self, String> {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|e| format!("no randomness: {e}"))?;
        Ok(Self { m: 64 << 10, t: 3, p: 4, salt: hex::encode(salt) })
    }

    /// Parameters lie outside the seal: what would take all memory, or for ever, is not begun.
    fn key(&self, passphrase: &SecretString) -> Result<Key, String> {
        let sane = (64 << 10..=1 << 20).contains(&self.m) && (3..=16).contains(&self.t) && (1..=16).contains(&self.p);
        let salt = hex::decode(&self.salt).ok().filter(|salt| salt.len() == 16);
        let (true, Some(salt)) = (sane, salt) else {
            return Err("the keyring's header names Argon2id parameters that Sigil never writes".into());
        };
        let params = Params::new(self.m, self.t, self.p, Some(32)).map_err(|e| e.to_string())?;
        let mut key = Key::random()?;
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.expose_secret().as_bytes(), &salt, key.bytes_mut())
            .map_err(|e| e.to_string())?;
        Ok(key)
    }
}

/// Where a ring's master key comes from, as its header says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub(super) enum Place {
    /// systemd's.
    Credential {},
    /// A file that holds it.
    File {
        /// Absent: beside the ring.
        path: Option<PathBuf>,
    },
    /// A passphrase.
    Passphrase {
        /// Absent: a credential, or whoever is at the terminal.
        file: Option<PathBuf>,
        /// How it becomes a key.
        argon2: Argon2id,
    },
    /// A key of type user that this process may read.
    Kernel {},
}

/// One key that a place has.
enum Holder {
    File(PathBuf),
    Credential(PathBuf),
    PassphraseFile(PathBuf, Argon2id),
    PassphraseCredential(PathBuf, Argon2id),
    Typed(Argon2id),
    Kernel(String),
}

/// What is left to do once a ring has opened with a key.
#[derive(Debug, Default)]
pub(super) struct Settle {
    /// The key that lay beside goes into the place.
    into_place: Option<(PathBuf, PathBuf)>,
    /// A key of a change that was never made.
    leftover: Option<PathBuf>,
}

impl Settle {
    pub(super) fn done(self) -> Result<(), String> {
        if let Some((from, to)) = self.into_place {
            put_in_place(&from, &to)?;
        }
        self.leftover.map_or(Ok(()), |path| remove(&path))
    }
}

impl Holder {
    fn there(&self) -> bool {
        match self {
            Self::File(path)
            | Self::Credential(path)
            | Self::PassphraseFile(path, _)
            | Self::PassphraseCredential(path, _) => there(path),
            Self::Kernel(name) => kernel(name).is_ok(),
            Self::Typed(_) => true,
        }
    }

    fn key(&self, given: &Given) -> Result<Key, String> {
        match self {
            Self::File(path) => {
                let bytes = read_private(path, 64)?;
                Key::of(&bytes).ok_or_else(|| format!("{} does not hold a key of 32 bytes", path.display()))
            }
            Self::Credential(path) => {
                let text = read_any(path)?;
                if text.len() < TEXT_MIN {
                    return Err(format!("the credential {} is shorter than {TEXT_MIN} bytes", path.display()));
                }
                Ok(Key::of_text(b"sigil key-encryption key 1", &text))
            }
            Self::PassphraseFile(path, argon2) => argon2.key(&passphrase(&read_private(path, 4096)?, path)?),
            Self::PassphraseCredential(path, argon2) => argon2.key(&passphrase(&read_any(path)?, path)?),
            Self::Typed(argon2) => match &given.passphrase {
                Some(typed) => argon2.key(typed),
                None if given.ask => argon2.key(&prompt::ask(PROMPT)?),
                None => Err("the passphrase of the keyring is nowhere, and there is no terminal to ask for it".into()),
            },
            Self::Kernel(name) => {
                let text = kernel(name)?;
                if text.len() < TEXT_MIN {
                    return Err(format!("the kernel's key '{name}' is shorter than {TEXT_MIN} bytes"));
                }
                Ok(Key::of_text(b"sigil key-encryption key 1", &text))
            }
        }
    }

    fn words(&self) -> String {
        match self {
            Self::File(path) => format!("the key file {}", path.display()),
            Self::Credential(path) => format!("the credential {}", path.display()),
            Self::PassphraseFile(path, _) => format!("the passphrase in {}", path.display()),
            Self::PassphraseCredential(path, _) => format!("the passphrase in the credential {}", path.display()),
            Self::Typed(_) => "the passphrase".into(),
            Self::Kernel(name) => format!("the kernel's key '{name}'"),
        }
    }

    /// What a holder of the new key leaves to be done.
    fn settle(&self, main: Option<&Path>) -> Settle {
        let (Self::File(path) | Self::PassphraseFile(path, _), Some(main)) = (self, main) else {
            return Settle::default();
        };
        if path != main {
            return Settle { into_place: Some((path.clone(), main.to_owned())), leftover: None };
        }
        // a key file's neighbour is ours; a passphrase's was put there by somebody who means to change it
        let ours = matches!(self, Self::File(_)).then(|| next_to(main));
        Settle { into_place: None, leftover: ours.filter(|path| there(path)) }
    }
}

/// A line of text; the newline at its end is not part of it.
fn passphrase(bytes: &[u8], path: &Path) -> Result<SecretString, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8 text", path.display()))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    Ok(SecretString::from(text))
}

/// A key of type `user` in the keyrings of this process's session and user.
fn kernel(name: &str) -> Result<zeroize::Zeroizing<Vec<u8>>, String> {
    use linux_keyutils::{KeyRing, KeyRingIdentifier};
    let mut last = String::new();
    for ring in [KeyRingIdentifier::Session, KeyRingIdentifier::UserSession, KeyRingIdentifier::User] {
        let read = KeyRing::from_special_id(ring, false).and_then(|ring| ring.search(name)?.read_to_vec());
        match read {
            Ok(bytes) => return Ok(zeroize::Zeroizing::new(bytes)),
            Err(error) => last = format!("the kernel's keyring has no key '{name}' for this process: {error:?}"),
        }
    }
    Err(last)
}

impl Place {
    /// The word in the configuration.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Credential {} => "credential",
            Self::File { .. } => "file",
            Self::Passphrase { .. } => "passphrase",
            Self::Kernel {} => "kernel",
        }
    }

    /// As the configuration has it, for a ring to be made.
    fn configured(config: &SecretsConfig, given: &Given) -> Result<Self, Trouble> {
        let credential = given.credential(NAME).is_some_and(|path| there(&path));
        Ok(match config.master_key.as_str() {
            "auto" if config.key_file.is_none() && credential => Self::Credential {},
            "credential" => Self::Credential {},
            "passphrase" => Self::Passphrase { file: config.passphrase_file.clone(), argon2: Argon2id::fresh()? },
            "kernel" => Self::Kernel {},
            _ => Self::File { path: config.key_file.clone() },
        })
    }

    /// Of a ring that is there: its own word, as far as the configuration does not say another one.
    pub(super) fn agreed(config: &SecretsConfig, own: &Self) -> Result<Self, Trouble> {
        let auto = config.master_key == "auto";
        if !auto && config.master_key != own.word() {
            return Err(Trouble::new(
                format!(
                    "the keyring lies under a master key from '{}', and [secrets] master_key says '{}'",
                    own.word(),
                    config.master_key
                ),
                format!(
                    "`sigil-agent keys rotate --master-key` wraps it anew as configured; or set master_key = \"{}\"",
                    own.word()
                ),
            ));
        }
        Ok(match own.clone() {
            Self::File { path } => {
                Self::File { path: if auto { config.key_file.clone().or(path) } else { config.key_file.clone() } }
            }
            Self::Passphrase { file, argon2 } => {
                let file = if auto { config.passphrase_file.clone().or(file) } else { config.passphrase_file.clone() };
                Self::Passphrase { file, argon2 }
            }
            other => other,
        })
    }

    /// Where a ring is to lie from now on.
    pub(super) fn wanted(config: &SecretsConfig, own: &Self, given: &Given) -> Result<Self, Trouble> {
        if config.master_key != "auto" {
            return Self::configured(config, given);
        }
        Ok(match Self::agreed(config, own)? {
            Self::Passphrase { file, .. } => Self::Passphrase { file, argon2: Argon2id::fresh()? },
            same => same,
        })
    }

    /// The file that holds it, where there is one.
    fn main(&self, data_dir: &Path) -> Option<PathBuf> {
        match self {
            Self::File { path } => Some(path.clone().unwrap_or_else(|| data_dir.join("keyring.key"))),
            Self::Passphrase { file, .. } => file.clone(),
            Self::Credential {} | Self::Kernel {} => None,
        }
    }

    /// All that may hold the key, the usual one first.
    fn holders(&self, data_dir: &Path, given: &Given) -> Vec<Holder> {
        let both = |name: &str| [name.to_owned(), format!("{name}-next")];
        let credentials = |name: &str| both(name).into_iter().filter_map(|name| given.credential(&name));
        match self {
            Self::Credential {} => credentials(NAME).map(Holder::Credential).collect(),
            Self::File { .. } => {
                let main = self.main(data_dir).into_iter();
                main.flat_map(|main| [main.clone(), next_to(&main)]).map(Holder::File).collect()
            }
            Self::Passphrase { file: Some(file), argon2 } => {
                [file.clone(), next_to(file)].map(|path| Holder::PassphraseFile(path, argon2.clone())).into()
            }
            Self::Passphrase { file: None, argon2 } => {
                let kept = credentials(PASSPHRASE).filter(|path| there(path));
                let mut all: Vec<Holder> =
                    kept.map(|path| Holder::PassphraseCredential(path, argon2.clone())).collect();
                if all.is_empty() || given.passphrase.is_some() {
                    all.insert(0, Holder::Typed(argon2.clone()));
                }
                all
            }
            Self::Kernel {} => both(NAME).map(Holder::Kernel).into(),
        }
    }

    /// The key with this id.
    pub(super) fn find(&self, ring: &Path, data_dir: &Path, id: &str, given: &Given) -> Result<(Key, Settle), Trouble> {
        let holders = self.holders(data_dir, given);
        let usual = holders.first().map_or_else(|| "the systemd credential sigil-kek".into(), Holder::words);
        let mut wrong = Vec::new();
        for holder in holders.iter().filter(|holder| holder.there()) {
            let key = holder.key(given)?;
            if key.id() == id {
                return Ok((key, holder.settle(self.main(data_dir).as_deref())));
            }
            wrong.push(holder.words());
        }
        let hint = "nothing was changed. Put back the key that the keyring was wrapped with (from the backup that this \
                    keyring is of); without it the kept secrets cannot be read";
        if wrong.is_empty() {
            let usual = usual.strip_prefix("the key file ").unwrap_or(&usual);
            let what = format!("{usual} is missing; without it the kept secrets cannot be read");
            return Err(Trouble::new(what, hint));
        }
        let what = format!("{} does not open with its key: {} is another one", ring.display(), wrong.join(", nor: "));
        Err(Trouble::new(what, hint))
    }

    /// The key of a ring that is to be made, and where it comes from: what is there already, or one made now where that is
    /// ours to make.
    pub(super) fn first(config: &SecretsConfig, data_dir: &Path, given: &Given) -> Result<(Self, Key), Trouble> {
        let place = Self::configured(config, given)?;
        if let (Self::File { .. }, Some(path)) = (&place, place.main(data_dir))
            && !there(&path)
        {
            let key = Key::random()?;
            make_folder(&path)?;
            write_private(&path, key.bytes())?;
            return Ok((place, key));
        }
        let holders = place.holders(data_dir, given);
        let holder = holders.iter().find(|holder| holder.there()).ok_or_else(|| place.nowhere())?;
        let mut given = given.clone();
        if let (Holder::Typed(_), None, true) = (holder, &given.passphrase, given.ask) {
            given.passphrase = Some(prompt::ask_new(PROMPT)?);
        }
        if let Self::Passphrase { .. } = place {
            strong(holder, &given)?;
        }
        let key = holder.key(&given)?;
        Ok((place, key))
    }

    /// The key of a ring without a header.
    pub(super) fn former(
        config: &SecretsConfig,
        data_dir: &Path,
        given: &Given,
    ) -> Result<(Self, Key, String), Trouble> {
        let place = Self::configured(config, given)?;
        let holder = place.holders(data_dir, given).into_iter().next().ok_or_else(|| place.nowhere())?;
        if !holder.there() {
            let words = holder.words();
            let words = words.strip_prefix("the key file ").unwrap_or(&words);
            return Err(format!("{words} is missing; without it the kept secrets cannot be read").into());
        }
        let key = holder.key(given)?;
        Ok((place, key, holder.words()))
    }

    /// A key other than the present one, on the disk where it is ours to make, and what is left to do once the ring lies
    /// under it.
    pub(super) fn next(&self, data_dir: &Path, present: &str, given: &Given) -> Result<(Key, Settle), Trouble> {
        if let (Self::File { .. }, Some(path)) = (self, self.main(data_dir)) {
            let (key, beside) = (Key::random()?, next_to(&path));
            make_folder(&path)?;
            write_private(&beside, key.bytes())?;
            return Ok((key, Settle { into_place: Some((beside, path)), leftover: None }));
        }
        let mut holders = self.holders(data_dir, given);
        if given.passphrase.is_none() {
            // what was put beside is meant
            holders.reverse();
        }
        for holder in holders.iter().filter(|holder| holder.there()) {
            if let Self::Passphrase { .. } = self {
                strong(holder, given)?;
            }
            let key = holder.key(given)?;
            if key.id() != present {
                return Ok((key, holder.settle(self.main(data_dir).as_deref())));
            }
        }
        if holders.iter().any(Holder::there) {
            let what = format!("the {} is the one that the keyring lies under already", self.word());
            return Err(Trouble::new(
                what,
                "give the new one beside it, its name with -next behind it: sigil-kek-next",
            ));
        }
        Err(self.nowhere())
    }

    fn nowhere(&self) -> Trouble {
        let (what, hint) = match self {
            Self::Credential {} => (
                "the systemd credential sigil-kek is missing",
                "add LoadCredential=sigil-kek:/path (or LoadCredentialEncrypted=) to the unit, with 32 bytes or more",
            ),
            Self::Kernel {} => (
                "the kernel's keyring has no key 'sigil-kek' for this process",
                "put one there before the agent starts: keyctl padd user sigil-kek @u < key, with 32 bytes or more",
            ),
            Self::Passphrase { .. } => (
                "the passphrase of the keyring is nowhere",
                "name a file with [secrets] passphrase_file, or pass the credential sigil-passphrase",
            ),
            Self::File { .. } => ("the key file is missing", "restore it from the backup that the keyring is of"),
        };
        Trouble::new(what, hint)
    }
}

/// Refuses a passphrase that is newly set and can be guessed.
fn strong(holder: &Holder, given: &Given) -> Result<(), Trouble> {
    let text = match holder {
        Holder::PassphraseFile(path, _) => passphrase(&read_private(path, 4096)?, path)?,
        Holder::PassphraseCredential(path, _) => passphrase(&read_any(path)?, path)?,
        Holder::Typed(_) => match &given.passphrase {
            Some(text) => text.clone(),
            // that it is nowhere is told by whoever wants the key
            None => return Ok(()),
        },
        _ => return Ok(()),
    };
    if text.expose_secret().chars().count() >= PASSPHRASE_MIN {
        return Ok(());
    }
    let what = format!("the passphrase is shorter than {PASSPHRASE_MIN} characters");
    Err(Trouble::new(what, "take several words; nothing was changed"))
}

/// Asks at this process's terminal for the passphrase that a ring is to be wrapped with.
///
/// # Errors
/// There is no terminal, nobody answered, or the two answers differ.
pub fn ask_new_passphrase() -> Result<SecretString, Trouble> {
    Ok(prompt::ask_new(PROMPT)?)
}
