//! Signatures of images, as cosign keeps them in a registry: an image beside the signed one, tagged `sha256-<digest>.sig`,
//! whose layers are signed statements about it (cosign's signature specification, "simple signing"). Where the owner asks for one,
//! whatever cannot be verified is refused.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Client, StatusCode, header};
use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use secrecy::ExposeSecret;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use url::Url;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{Job, SourceError, http};
use crate::secrets::Credential;

const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const MANIFESTS: &str =
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
/// Largest manifest, statement or token answer.
const MAX: usize = 1 << 20;
/// Signatures that are looked at.
const SIGNATURES: usize = 32;

/// A public key, ready to be asked.
struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
}

impl Key {
    /// Reads `cosign.pub`: a public key in PEM, of P-256 or Ed25519.
    fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read(path).map_err(|e| e.to_string())?;
        Self::parse(&text)
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(text).map_err(|_| "there is no PEM block in it".to_owned())?;
        if pem.label != "PUBLIC KEY" {
            return Err(format!("it is a {}, not a PUBLIC KEY", pem.label));
        }
        let (_, info) = SubjectPublicKeyInfo::from_der(&pem.contents).map_err(|e| e.to_string())?;
        let curve = info.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok()).map(|oid| oid.to_id_string());
        let algorithm: &'static dyn VerificationAlgorithm =
            match (info.algorithm.algorithm.to_id_string().as_str(), curve.as_deref()) {
                ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => &ECDSA_P256_SHA256_ASN1,
                ("1.3.101.112", _) => &ED25519,
                _ => return Err("it is of another kind than ECDSA P-256 and Ed25519".to_owned()),
            };
        Ok(Self { algorithm, bytes: info.subject_public_key.data.to_vec() })
    }

    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.bytes).verify(message, signature).is_ok()
    }
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Statement {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest", alias = "Docker-manifest-digest")]
    digest: String,
}

/// Whether a statement, signed by somebody, is about an image.
fn is_about(statement: &[u8], digest: &str) -> bool {
    serde_json::from_slice::<Statement>(statement)
        .is_ok_and(|s| s.critical.kind == "cosign container image signature" && s.critical.image.digest == digest)
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A registry's API, read only.
struct Registry<'a> {
    client: Client,
    base: Url,
    login: Option<&'a Credential>,
    /// What the registry's token server gave.
    token: Option<String>,
}

/// What a challenge asks for: `Bearer realm="…",service="…",scope="…"`.
fn challenge(value: &str) -> Option<Url> {
    let (scheme, rest) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut query) = (None, Vec::new());
    // values are quoted, and have commas (`pull,push`)
    let mut rest = rest.trim();
    while let Some((name, after)) = rest.split_once("=\"") {
        let (value, more) = after.split_once('"')?;
        match name.trim_matches([',', ' ']) {
            "realm" => realm = Some(value.to_owned()),
            name @ ("service" | "scope") => query.push((name.to_owned(), value.to_owned())),
            _ => {}
        }
        rest = more;
    }
    let mut url: Url = realm?.parse().ok()?;
    url.query_pairs_mut().extend_pairs(query);
    Some(url)
}

impl Registry<'_> {
    fn fail(&self, what: impl std::fmt::Display) -> SourceError {
        SourceError::refused(
            format!("the image's signature cannot be read from {}: {what}", self.base.host_str().unwrap_or_default()),
            "[limits] signatures asks for one; is the registry in reach, and its login kept as a source secret?",
        )
    }

    async fn read(&self, answer: reqwest::Response) -> Result<Vec<u8>, SourceError> {
        use futures::StreamExt;
        let mut bytes = Vec::new();
        let mut stream = answer.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| self.fail(e))?;
            if bytes.len() + chunk.len() > MAX {
                return Err(self.fail("an answer is longer than 1 MiB"));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// `None`: there is no such thing.
    async fn get(&mut self, path: &str, accept: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let url = self.base.join(path).map_err(|e| self.fail(e))?;
        for again in [false, true] {
            let mut request = self.client.get(url.clone()).header(header::ACCEPT, accept);
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            } else if let Some(login) = self.login.filter(|_| again) {
                request = request.basic_auth(&login.username, Some(login.password.expose_secret()));
            }
            let answer = request.send().await.map_err(|e| self.fail(e))?;
            match answer.status() {
                StatusCode::OK => return self.read(answer).await.map(Some),
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::UNAUTHORIZED if !again => {
                    let asked = answer.headers().get(header::WWW_AUTHENTICATE).and_then(|v| v.to_str().ok());
                    if let Some(realm) = asked.and_then(challenge) {
                        self.token = Some(self.token_of(realm).await?);
                    }
                }
                status => return Err(self.fail(format!("it answers {status}"))),
            }
        }
        Err(self.fail("it refuses its own token"))
    }

    async fn token_of(&self, realm: Url) -> Result<String, SourceError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        // a registry names its own token server; a login goes nowhere in clear
        let safe = realm.scheme() == "https" || (realm.scheme() == self.base.scheme() && http::is_loopback(&realm));
        let mut request = self.client.get(realm);
        if let Some(login) = self.login.filter(|_| safe) {
            request = request.basic_auth(&login.username, Some(login.password.expose_secret()));
        }
        let answer = request.send().await.map_err(|e| self.fail(e))?;
        if !answer.status().is_success() {
            return Err(self.fail(format!("its token server answers {}", answer.status())));
        }
        let token: Token = serde_json::from_slice(&self.read(answer).await?).map_err(|e| self.fail(e))?;
        token.token.or(token.access_token).ok_or_else(|| self.fail("its token server gives no token"))
    }
}

/// Where a registry's API is.
fn base_of(registry: &str) -> Result<Url, url::ParseError> {
    let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    let https: Url = format!("https://{host}/v2/").parse()?;
    // engines, too, take a registry on this host without TLS
    if http::is_loopback(&https) { format!("http://{host}/v2/").parse() } else { Ok(https) }
}

/// That an image is signed by a key. `repository` without its registry; `digest` of what the registry has under it.
///
/// # Errors
/// [`SourceError::Refused`], whatever it is that cannot be verified.
pub(super) async fn verify(
    job: &Job<'_>,
    registry: &str,
    repository: &str,
    digest: &str,
    key_path: &Path,
    login: Option<&Credential>,
) -> Result<(), SourceError> {
    let key = Key::read(key_path).map_err(|why| {
        let hint = "[limits] signatures names the public key (cosign.pub) that signs such images";
        SourceError::refused(format!("the key {} cannot be used: {why}", key_path.display()), hint)
    })?;
    let base = base_of(registry).map_err(|e| {
        SourceError::refused(format!("'{registry}' is no registry: {e}"), "name the image with its registry")
    })?;
    let shown = format!("{registry}/{repository}@{digest}");
    let mut registry = Registry { client: http::client(&job.config)?, base, login, token: None };
    let library = registry.base.host_str() == Some("registry-1.docker.io") && !repository.contains('/');
    let repository = if library { format!("library/{repository}") } else { repository.to_owned() };
    let tag = format!("{}.sig", digest.replace(':', "-"));
    let unsigned = |what: &str| {
        SourceError::refused(
            format!("the image {shown} {what}"),
            format!("[limits] signatures asks for one by {}; sign it with `cosign sign`", key_path.display()),
        )
    };
    let manifest = registry.get(&format!("{repository}/manifests/{tag}"), MANIFESTS).await?;
    let manifest = manifest.ok_or_else(|| unsigned("is not signed"))?;
    let manifest: Manifest = serde_json::from_slice(&manifest).map_err(|e| registry.fail(e))?;
    let signatures = manifest.layers.iter().filter(|layer| layer.media_type == MEDIA_TYPE);
    for layer in signatures.take(SIGNATURES) {
        let signature = layer.annotations.get(ANNOTATION).and_then(|text| STANDARD.decode(text).ok());
        let Some(signature) = signature else { continue };
        let statement = registry.get(&format!("{repository}/blobs/{}", layer.digest), "*/*").await?;
        let Some(statement) = statement.filter(|bytes| digest_of(bytes) == layer.digest) else { continue };
        if key.has_signed(&statement, &signature) && is_about(&statement, digest) {
            job.say(format!("signed by {}", key_path.display())).await;
            return Ok(());
        }
    }
    Err(unsigned("has no signature by the key that it needs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};

    /// DER of a public key before the key itself.
    const P256: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
    const EDWARDS: &str = "302a300506032b6570032100";

    fn pem(prefix: &str, key: &[u8]) -> String {
        let der = [hex::decode(prefix).unwrap(), key.to_vec()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    #[test]
    fn keys_of_both_kinds_verify_what_they_signed_and_nothing_else() {
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, made.as_ref(), &random).unwrap();
        let key = Key::parse(pem(P256, pair.public_key().as_ref()).as_bytes()).unwrap();
        let signature = pair.sign(&random, b"statement").unwrap();
        assert!(key.has_signed(b"statement", signature.as_ref()) && !key.has_signed(b"another", signature.as_ref()));
        let made = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(made.as_ref()).unwrap();
        let other = Key::parse(pem(EDWARDS, pair.public_key().as_ref()).as_bytes()).unwrap();
        assert!(other.has_signed(b"statement", pair.sign(b"statement").as_ref()));
        assert!(!other.has_signed(b"statement", signature.as_ref()));
        for bad in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", &pem("3000", &[])] {
            assert!(Key::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_statement_is_about_one_image() {
        let of = |kind: &str, digest: &str| {
            let critical = serde_json::json!({"identity": {"docker-reference": "x"}, "type": kind,
                "image": {"docker-manifest-digest": digest}});
            serde_json::json!({ "critical": critical, "optional": null }).to_string()
        };
        let kind = "cosign container image signature";
        assert!(is_about(of(kind, "sha256:ab").as_bytes(), "sha256:ab"));
        assert!(!is_about(of(kind, "sha256:cd").as_bytes(), "sha256:ab"));
        assert!(!is_about(of("another statement", "sha256:ab").as_bytes(), "sha256:ab"));
        assert!(!is_about(b"{}", "sha256:ab"));
    }

    #[test]
    fn a_challenge_names_its_token_server() {
        let url = challenge(
            r#"Bearer realm="https://auth.example.org/token",service="reg",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(
            url.unwrap().as_str(),
            "https://auth.example.org/token?service=reg&scope=repository%3Aa%2Fb%3Apull%2Cpush"
        );
        assert!(challenge("Basic realm=\"x\"").is_none() && challenge("Bearer").is_none());
        assert_eq!(base_of("docker.io").unwrap().as_str(), "https://registry-1.docker.io/v2/");
        assert_eq!(base_of("127.0.0.1:5000").unwrap().as_str(), "http://127.0.0.1:5000/v2/");
        assert_eq!(base_of("reg.example.org:5000").unwrap().as_str(), "https://reg.example.org:5000/v2/");
    }
}
