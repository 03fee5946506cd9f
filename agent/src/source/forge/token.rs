//! How a GitHub App shows who it is: a JSON Web Token, signed with its private key, good for ten minutes. `jsonwebtoken` stays
//! set to sign nothing (the gateway only ever checks); the one form that is needed here is three lines.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::{ExposeSecret as _, SecretString};
use sigil_core::forge::{Account, App};

use super::{ForgeError, Result};

/// A token is not used any more so long before it ends.
pub(super) const EARLY: SignedDuration = SignedDuration::from_mins(5);
/// GitHub's clock may be behind ours by so much, seconds.
const BEHIND: i64 = 60;
/// How long a JWT is good, seconds: the most that GitHub takes.
const GOOD: i64 = 600;

fn key(account: &Account, pem: &SecretString) -> Result<RsaKeyPair> {
    let bad = |why| ForgeError::Key(account.name.to_string(), why);
    let der = PrivateKeyDer::from_pem_slice(pem.expose_secret().as_bytes())
        .map_err(|_| bad("it is no PEM file with a private key"))?;
    let pair = match &der {
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
        _ => return Err(bad("it is not an RSA key")),
    };
    pair.map_err(|_| bad("it is not an RSA key of 2048 to 4096 bits"))
}

/// Whether what comes with an account can be its token, or its App's key.
pub(super) fn check(account: &Account, value: &SecretString) -> Result<()> {
    if account.app.is_some() {
        return key(account, value).map(drop);
    }
    let text = value.expose_secret();
    // it goes into a header
    if text.is_empty() || text.len() > 4096 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        let why = "a token is one word of printable characters";
        return Err(ForgeError::Key(account.name.to_string(), why));
    }
    Ok(())
}

/// What an App shows for a token of its installation.
pub(super) fn jwt(account: &Account, app: App, pem: &SecretString, now: Timestamp) -> Result<SecretString> {
    let key = key(account, pem)?;
    let begun = now.as_second() - BEHIND;
    let claims = serde_json::json!({ "iat": begun, "exp": begun + GOOD, "iss": app.id.to_string() });
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&serde_json::json!({ "alg": "RS256", "typ": "JWT" })), part(&claims));
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
        .map_err(|_| ForgeError::Key(account.name.to_string(), "nothing can be signed with it"))?;
    Ok(SecretString::from(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
}
