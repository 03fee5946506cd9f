//! Keys in memory, and the one cipher.

use std::sync::Once;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key as CipherKey, Nonce};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

pub(super) const VERSION: u8 = 1;
pub(super) const AES_256_GCM: u8 = 1;
const NONCE: usize = 12;
const BYTES: usize = 32;
/// A page of its own for every key: what is locked and unlocked is whole pages.
const PAGE: usize = 4096;

#[repr(align(4096))]
struct Page([u8; PAGE]);

/// A key of 256 bits: in a page that the system never writes to swap, wiped when it goes. Neither shown nor cloned.
pub(super) struct Key {
    page: Box<Page>,
    /// `None` where the system's limit of locked memory is used up.
    _locked: Option<region::LockGuard>,
}

impl Key {
    /// A key whose bytes are to be filled in.
    fn blank() -> Self {
        let page = Box::new(Page([0; PAGE]));
        let locked = region::lock(page.0.as_ptr(), PAGE).inspect_err(|error| {
            static ONCE: Once = Once::new();
            ONCE.call_once(
                || tracing::warn!(%error, "memory of keys cannot be locked; it may reach swap (LimitMEMLOCK=)"),
            );
        });
        Self { page, _locked: locked.ok() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.page.0[..BYTES]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.page.0[..BYTES]
    }

    /// A new one.
    pub(super) fn random() -> Result<Self, String> {
        let mut key = Self::blank();
        getrandom::fill(key.bytes_mut()).map_err(|e| format!("no randomness: {e}"))?;
        Ok(key)
    }

    /// One that is there; `None` unless it is 32 bytes.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == BYTES).then(|| {
            let mut key = Self::blank();
            key.bytes_mut().copy_from_slice(bytes);
            key
        })
    }

    /// One in hexadecimal.
    pub(super) fn of_hex(text: &str) -> Option<Self> {
        let mut key = Self::blank();
        hex::decode_to_slice(text, key.bytes_mut()).ok()?;
        Some(key)
    }

    /// The hash of something that may be of any form.
    pub(super) fn of_text(purpose: &[u8], text: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(purpose);
        hash.update(text);
        let mut digest = hash.finalize();
        let mut key = Self::blank();
        key.bytes_mut().copy_from_slice(&digest);
        digest.as_mut_slice().zeroize();
        key
    }

    /// What tells it from another, without telling anything of it: it has 256 bits that nobody can guess, or comes out of
    /// Argon2id.
    pub(super) fn id(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(b"sigil key id 1");
        hash.update(self.bytes());
        hex::encode(&hash.finalize()[..16])
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.page.0[..BYTES].zeroize();
    }
}

/// Associated data: each part with its length before it, so that no two lists of parts read the same.
fn associated(version: u8, algorithm: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    let mut data = vec![version, algorithm];
    for part in parts {
        data.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        data.extend_from_slice(part);
    }
    data
}

fn cipher(key: &Key) -> Option<Aes256Gcm> {
    let key: &CipherKey<Aes256Gcm> = key.bytes().try_into().ok()?;
    Some(Aes256Gcm::new(key))
}

/// `version, algorithm, nonce, ciphertext`.
pub(super) fn wrap(key: &Key, plain: &[u8], parts: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(|e| format!("no randomness: {e}"))?;
    let aad = associated(VERSION, AES_256_GCM, parts);
    let body = cipher(key)
        .and_then(|cipher| cipher.encrypt(&Nonce::from(nonce), Payload { msg: plain, aad: &aad }).ok())
        .ok_or_else(|| "a value is too long to seal".to_owned())?;
    Ok([&[VERSION, AES_256_GCM], nonce.as_slice(), &body].concat())
}

/// `None` when anything differs from what was wrapped.
pub(super) fn unwrap(key: &Key, sealed: &[u8], parts: &[Vec<u8>]) -> Option<Zeroizing<Vec<u8>>> {
    let (&[version, algorithm], rest) = sealed.split_first_chunk::<2>()?;
    if version != VERSION || algorithm != AES_256_GCM {
        return None;
    }
    let (nonce, body) = rest.split_first_chunk::<NONCE>()?;
    let aad = associated(version, algorithm, parts);
    cipher(key)?.decrypt(&Nonce::from(*nonce), Payload { msg: body, aad: &aad }).ok().map(Zeroizing::new)
}
