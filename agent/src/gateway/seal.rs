//! Session ids that hold their session: sealed with a key of this agent, so that nobody else can make or read one, and
//! a restarted agent knows them without having written anything.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sigil_core::session::Ticket;
use zeroize::Zeroizing;

use super::error::GatewayError;

/// What is sealed, so that a key used for two things could never confuse them.
const PURPOSE: &[u8] = b"sigil mcp session 1";
const NONCE: usize = 12;
/// Longer ids than we make are not looked at.
pub(crate) const ID_MAX: usize = 2048;

/// Makes and reads session ids.
pub(crate) struct Sealer {
    cipher: Aes256Gcm,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// Reads `<data>/gateway.key`, or makes it (0600).
    pub(crate) fn open(data_dir: &Path) -> Result<Self, GatewayError> {
        let path = data_dir.join("gateway.key");
        let bad = |why: String| GatewayError::Key(path.display().to_string(), why);
        let mut key = Zeroizing::new([0_u8; 32]);
        match std::fs::OpenOptions::new().read(true).custom_flags(nofollow()).open(&path) {
            Ok(mut file) => {
                let meta = file.metadata().map_err(|e| bad(e.to_string()))?;
                if meta.mode() & 0o077 != 0 {
                    return Err(bad(format!("others may read it (mode {:o})", meta.mode() & 0o777)));
                }
                if meta.len() != 32 {
                    return Err(bad(format!("it has {} bytes", meta.len())));
                }
                file.read_exact(key.as_mut()).map_err(|e| bad(e.to_string()))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                getrandom::fill(key.as_mut()).map_err(|e| bad(e.to_string()))?;
                // beside, then renamed: a half-written key would make every later start fail
                let mut file = tempfile::Builder::new()
                    .prefix(".gateway.key")
                    .tempfile_in(data_dir)
                    .map_err(|e| bad(e.to_string()))?;
                file.write_all(key.as_ref()).map_err(|e| bad(e.to_string()))?;
                file.as_file().sync_all().map_err(|e| bad(e.to_string()))?;
                file.persist(&path).map_err(|e| bad(e.to_string()))?;
            }
            Err(error) => return Err(bad(error.to_string())),
        }
        let cipher = Aes256Gcm::new_from_slice(key.as_ref()).map_err(|e| bad(e.to_string()))?;
        Ok(Self { cipher })
    }

    /// A session id for a ticket: visible ASCII, different each time. `None` when the system has no randomness.
    pub(crate) fn seal(&self, ticket: &Ticket) -> Option<String> {
        let mut bytes = vec![0_u8; NONCE];
        getrandom::fill(&mut bytes).ok()?;
        let nonce = Nonce::try_from(bytes.as_slice()).ok()?;
        let plain = ticket.encode();
        bytes.extend(self.cipher.encrypt(&nonce, Payload { msg: &plain, aad: PURPOSE }).ok()?);
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The ticket of an id that this agent made.
    pub(crate) fn unseal(&self, id: &str) -> Option<Ticket> {
        if id.len() > ID_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(id).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE)?;
        let nonce = Nonce::try_from(nonce).ok()?;
        let plain = self.cipher.decrypt(&nonce, Payload { msg: sealed, aad: PURPOSE }).ok()?;
        Ticket::decode(&plain)
    }
}

fn nofollow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0)
}

/// A name for a process or connection that nobody can guess.
pub(crate) fn random_key() -> String {
    let mut bytes = [0_u8; 12];
    match getrandom::fill(&mut bytes) {
        Ok(()) => hex::encode(bytes),
        // unique is enough: a key names a process within its container, the sealed id guards it
        Err(_) => ulid::Ulid::generate().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigil_core::model::Transport;

    fn ticket() -> Ticket {
        Ticket {
            deployment: ulid::Ulid(1).into(),
            instance: ulid::Ulid(2).into(),
            principal: "anonymous".into(),
            transport: Transport::Stdio,
            version: "2025-11-25".into(),
            upstream: "s-x".into(),
            translated: false,
            expires: 9,
            settings: None,
        }
    }

    #[test]
    fn survives_a_restart_and_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let id = Sealer::open(dir.path()).unwrap().seal(&ticket()).unwrap();
        assert!(id.bytes().all(|b| b.is_ascii_graphic()));
        let again = Sealer::open(dir.path()).unwrap();
        assert_eq!(again.unseal(&id), Some(ticket()));
        assert_ne!(again.seal(&ticket()).unwrap(), id);
        for at in 0..id.len() {
            let mut changed = id.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(again.unseal(std::str::from_utf8(&changed).unwrap()), None, "{at}");
        }
        let other = tempfile::tempdir().unwrap();
        assert_eq!(Sealer::open(other.path()).unwrap().unseal(&id), None);
    }

    #[test]
    fn a_key_that_others_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        Sealer::open(dir.path()).unwrap();
        let path = dir.path().join("gateway.key");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Sealer::open(dir.path()), Err(GatewayError::Key(..))));
    }
}
