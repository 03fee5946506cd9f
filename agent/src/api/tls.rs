//! The agent's certificate: made here, key and all, or taken from files that the owner names. TLS 1.3 only.
//!
//! Consoles pin the certificate's SHA-256, so a new one is an event that people notice. It therefore lives ten years,
//! is renewed at two thirds of that (with the same key), and says so in the log.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use sigil_config::agent::GrpcConfig;

use super::ApiError;
use crate::store::replace_file;

const LIFE: SignedDuration = SignedDuration::from_hours(24 * 3650);

/// How consoles name a certificate: `sha256:` and 64 hexadecimal digits over its DER form.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(certificate.as_ref())))
}

fn fail(path: &Path, why: impl std::fmt::Display) -> ApiError {
    ApiError::Certificate { path: path.to_owned(), why: why.to_string() }
}

/// The fingerprint of the agent's certificate, for printing (`sigil-agent token` does), made if there is none yet.
///
/// # Errors
/// [`ApiError::Certificate`] names the file.
pub fn agent_fingerprint(data_dir: &Path, config: &GrpcConfig, host: &str) -> Result<String, ApiError> {
    let (chain, _) = load(data_dir, config, host, Timestamp::now())?;
    Ok(fingerprint(&chain[0]))
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Configured files, or the agent's own pair, made or renewed as needed. The chain is never empty.
fn load(data_dir: &Path, config: &GrpcConfig, host: &str, now: Timestamp) -> Result<Pair, ApiError> {
    match (&config.certificate, &config.key) {
        (Some(certificate), Some(key)) => read(certificate, key),
        (None, None) => own(data_dir, host, now),
        (Some(path), None) | (None, Some(path)) => {
            Err(fail(path, "[grpc] certificate and key are set together or not at all"))
        }
    }
}

fn read(certificate: &Path, key: &Path) -> Result<Pair, ApiError> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(|found| found.collect::<Result<Vec<_>, _>>())
        .map_err(|e| fail(certificate, e))?;
    if chain.is_empty() {
        return Err(fail(certificate, "there is no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| fail(key, e))?;
    Ok((chain, key))
}

/// When the certificate of a file made by [`own`] was issued: a line before the PEM block says so.
fn issued_at(text: &str) -> Option<Timestamp> {
    text.lines().find_map(|l| l.strip_prefix("Issued: "))?.trim().parse().ok()
}

fn own(data_dir: &Path, host: &str, now: Timestamp) -> Result<Pair, ApiError> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = data_dir.join("tls");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| fail(&dir, e))?;
    let (cert_path, key_path) = (dir.join("agent.pem"), dir.join("agent.key"));
    let key = match fs::read_to_string(&key_path) {
        Ok(text) => rcgen::KeyPair::from_pem(&text).map_err(|e| fail(&key_path, e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let key = rcgen::KeyPair::generate().map_err(|e| fail(&key_path, e))?;
            replace_file(&key_path, key.serialize_pem().as_bytes(), None).map_err(|e| fail(&key_path, e))?;
            key
        }
        Err(e) => return Err(fail(&key_path, e)),
    };
    let known = fs::read_to_string(&cert_path).ok();
    let issued = known.as_deref().and_then(issued_at);
    let due = issued.is_none_or(|at| now.duration_since(at) >= LIFE * 2 / 3);
    if due {
        let failed = |e: rcgen::Error| fail(&cert_path, e);
        let mut names = vec!["localhost".to_owned()];
        if !host.is_empty() && host.is_ascii() {
            names.push(host.to_owned());
        }
        let mut params = rcgen::CertificateParams::new(names).map_err(failed)?;
        let day = |at: Timestamp| {
            let date = at.to_zoned(TimeZone::UTC).date();
            rcgen::date_time_ymd(date.year().into(), date.month() as u8, date.day() as u8)
        };
        // a day earlier: the console's clock may be behind
        params.not_before = day(now - SignedDuration::from_hours(24));
        params.not_after = day(now + LIFE);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "sigil-agent");
        let certificate = params.self_signed(&key).map_err(failed)?;
        let text = format!("Issued: {now}\n{}", certificate.pem());
        replace_file(&cert_path, text.as_bytes(), None).map_err(|e| fail(&cert_path, e))?;
        let print = fingerprint(certificate.der());
        if known.is_some() {
            tracing::warn!(fingerprint = print, "the agent's certificate was renewed: consoles must pin the new one");
        } else {
            tracing::info!(fingerprint = print, "the agent's certificate was made");
        }
    }
    read(&cert_path, &key_path)
}

/// The certificate that is shown now; changes without a new listener.
#[derive(Debug)]
pub(super) struct Shown {
    key: RwLock<Arc<CertifiedKey>>,
    data_dir: PathBuf,
    config: GrpcConfig,
    host: String,
}

impl Shown {
    pub fn new(data_dir: &Path, config: &GrpcConfig, host: &str) -> Result<Self, ApiError> {
        let key = certified(load(data_dir, config, host, Timestamp::now())?, config, data_dir)?;
        Ok(Self { key: RwLock::new(key), data_dir: data_dir.to_owned(), config: config.clone(), host: host.to_owned() })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn fingerprint(&self) -> String {
        self.current().cert.first().map(fingerprint).unwrap_or_default()
    }

    /// Reads the files again, and renews when it is time. What is shown stays when that fails.
    pub fn refresh(&self) {
        let fresh = load(&self.data_dir, &self.config, &self.host, Timestamp::now())
            .and_then(|pair| certified(pair, &self.config, &self.data_dir));
        match fresh {
            Ok(key) => *self.key.write().unwrap_or_else(PoisonError::into_inner) = key,
            Err(e) => tracing::error!(error = %e, "the certificate stays as it is"),
        }
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn certified(pair: Pair, config: &GrpcConfig, data_dir: &Path) -> Result<Arc<CertifiedKey>, ApiError> {
    let path = config.certificate.clone().unwrap_or_else(|| data_dir.join("tls/agent.pem"));
    let provider = rustls::crypto::ring::default_provider();
    // also checks that key and certificate belong together
    CertifiedKey::from_der(pair.0, pair.1, &provider).map(Arc::new).map_err(|e| fail(&path, e))
}

/// Who may show a certificate, and whether somebody must.
fn clients(config: &GrpcConfig, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, ApiError> {
    let Some(path) = &config.client_ca else { return Ok(WebPkiClientVerifier::no_client_auth()) };
    let mut roots = rustls::RootCertStore::empty();
    let read = CertificateDer::pem_file_iter(path).and_then(|found| found.collect::<Result<Vec<_>, _>>());
    for authority in read.map_err(|e| fail(path, e))? {
        roots.add(authority).map_err(|e| fail(path, e))?;
    }
    if roots.is_empty() {
        return Err(fail(path, "there is no certificate in it"));
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = if config.require_client_certificate { verifier } else { verifier.allow_unauthenticated() };
    verifier.build().map_err(|e| fail(path, e))
}

/// The common name in a client's certificate, which the handshake has verified.
pub(super) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, read) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut names = read.subject().iter_common_name();
    match (names.next(), names.next()) {
        // of two names nobody can say which is meant
        (Some(name), None) => name.as_str().ok().map(str::to_owned),
        _ => None,
    }
}

/// TLS 1.3, HTTP/2, no early data; client certificates where the owner names an authority.
pub(super) fn server_config(shown: Arc<Shown>) -> Result<rustls::ServerConfig, ApiError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = clients(&shown.config, &provider)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| fail(Path::new("tls"), e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_the_certificate_renewed_at_two_thirds() {
        let dir = tempfile::tempdir().unwrap();
        let config = GrpcConfig::default();
        let print = agent_fingerprint(dir.path(), &config, "host.example").unwrap();
        assert!(print.starts_with("sha256:") && print.len() == 7 + 64);
        assert_eq!(agent_fingerprint(dir.path(), &config, "other").unwrap(), print);
        let key = fs::read(dir.path().join("tls/agent.key")).unwrap();
        for (name, mode) in [("tls", 0o700), ("tls/agent.key", 0o600), ("tls/agent.pem", 0o600)] {
            assert_eq!(fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
        }
        let later = |days: i64| Timestamp::now() + SignedDuration::from_hours(24 * days);
        let at = |days| fingerprint(&own(dir.path(), "", later(days)).unwrap().0[0]);
        assert_eq!(at(2400), print);
        assert_ne!(at(2500), print);
        assert_eq!(fs::read(dir.path().join("tls/agent.key")).unwrap(), key);
    }

    #[test]
    fn configured_files_must_fit_together() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let none = GrpcConfig::default();
        agent_fingerprint(a.path(), &none, "").unwrap();
        agent_fingerprint(b.path(), &none, "").unwrap();
        let config = |cert: &Path, key: Option<&Path>| GrpcConfig {
            certificate: Some(cert.join("tls/agent.pem")),
            key: key.map(|k| k.join("tls/agent.key")),
            ..GrpcConfig::default()
        };
        assert!(Shown::new(b.path(), &config(a.path(), Some(a.path())), "").is_ok());
        assert!(Shown::new(b.path(), &config(a.path(), Some(b.path())), "").is_err());
        assert!(Shown::new(b.path(), &config(a.path(), None), "").is_err());
    }
}
