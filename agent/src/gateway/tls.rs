//! TLS towards clients: files that the owner names, or a certificate of the agent's own authority, renewed by itself.
//!
//! The authority (`<data>/tls/ca.pem`) is what clients are told to trust; it signs for the names by which this gateway is
//! called and for nothing else that matters: its key stays beside it, readable by the agent's user only.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sigil_config::agent::AgentConfig;

use super::error::GatewayError;
use crate::store::replace_file;

/// Life of the authority, and of what it signs: clients refuse certificates that live longer than 398 days.
const CA_LIFE: SignedDuration = SignedDuration::from_hours(24 * 3650);
const LIFE: SignedDuration = SignedDuration::from_hours(24 * 90);

fn fail(path: &Path, why: impl std::fmt::Display) -> GatewayError {
    GatewayError::Certificate(path.display().to_string(), why.to_string())
}

/// The certificate that is shown now; changes without a new listener.
#[derive(Debug)]
pub(crate) struct Shown {
    key: RwLock<Arc<CertifiedKey>>,
    data_dir: PathBuf,
}

impl Shown {
    /// `None` when the gateway speaks plain HTTP.
    pub(crate) fn open(config: &AgentConfig, data_dir: &Path) -> Result<Option<Self>, GatewayError> {
        let key = load(config, data_dir, Timestamp::now())?;
        Ok(key.map(|key| Self { key: RwLock::new(key), data_dir: data_dir.to_owned() }))
    }

    /// Reads the files again, and renews when it is time or the names have changed. Blocks.
    pub(crate) fn refresh(&self, config: &AgentConfig) {
        match load(config, &self.data_dir, Timestamp::now()) {
            Ok(Some(key)) => *self.key.write().unwrap_or_else(PoisonError::into_inner) = key,
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the gateway's certificate stays as it is"),
        }
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// TLS 1.2 (clients on older systems) and 1.3, HTTP/1.1.
pub(crate) fn acceptor(shown: Arc<Shown>) -> Result<tokio_rustls::TlsAcceptor, GatewayError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| fail(Path::new("tls"), e))?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

fn load(config: &AgentConfig, data_dir: &Path, now: Timestamp) -> Result<Option<Arc<CertifiedKey>>, GatewayError> {
    let gateway = &config.gateway;
    let (certificate, key) = match (gateway.tls.as_str(), &gateway.certificate, &gateway.key) {
        ("off", ..) => return Ok(None),
        ("files", Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
        ("files", ..) => {
            return Err(fail(Path::new("agent.toml"), "tls = \"files\" needs [gateway] certificate and key"));
        }
        _ => own(config, data_dir, now)?,
    };
    let chain = CertificateDer::pem_file_iter(&certificate)
        .and_then(|found| found.collect::<Result<Vec<_>, _>>())
        .map_err(|e| fail(&certificate, e))?;
    let private = PrivateKeyDer::from_pem_file(&key).map_err(|e| fail(&key, e))?;
    let provider = rustls::crypto::ring::default_provider();
    // also checks that key and certificate belong together
    let key = CertifiedKey::from_der(chain, private, &provider).map_err(|e| fail(&certificate, e))?;
    Ok(Some(Arc::new(key)))
}

/// By which names clients may call.
fn names(config: &AgentConfig) -> Vec<String> {
    let gateway = &config.gateway;
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let host = crate::api::host_name(config);
    names.extend(Some(host).filter(|h| h.is_ascii() && !h.is_empty()));
    let public = url::Url::parse(&gateway.public_url).ok();
    names.extend(public.and_then(|u| u.host_str().map(|h| h.trim_matches(['[', ']']).to_owned())));
    names.extend(gateway.allowed_hosts.iter().map(|h| sigil_core::route::host_of(h)));
    if !gateway.domain.is_empty() {
        names.extend([gateway.domain.clone(), format!("*.{}", gateway.domain)]);
    }
    let listen = gateway.listen.parse::<std::net::SocketAddr>().ok().map(|a| a.ip());
    names.extend(listen.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()));
    names.sort();
    names.dedup();
    names
}

fn keypair(path: &Path) -> Result<KeyPair, GatewayError> {
    match fs::read_to_string(path) {
        Ok(text) => KeyPair::from_pem(&text).map_err(|e| fail(path, e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let key = KeyPair::generate().map_err(|e| fail(path, e))?;
            replace_file(path, key.serialize_pem().as_bytes(), None).map_err(|e| fail(path, e))?;
            Ok(key)
        }
        Err(e) => Err(fail(path, e)),
    }
}

fn lasting(params: &mut CertificateParams, name: &str, now: Timestamp, life: SignedDuration) {
    let day = |at: Timestamp| {
        let date = at.to_zoned(TimeZone::UTC).date();
        rcgen::date_time_ymd(date.year().into(), date.month() as u8, date.day() as u8)
    };
    // a day earlier: a client's clock may be behind
    params.not_before = day(now - SignedDuration::from_hours(24));
    params.not_after = day(now + life);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
}

fn authority(name: &str, now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    lasting(&mut params, name, now, CA_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// What a line before the PEM block says.
fn noted<'t>(text: &'t str, what: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "))
}

/// The agent's own pair for its names, made or renewed as needed.
fn own(config: &AgentConfig, data_dir: &Path, now: Timestamp) -> Result<(PathBuf, PathBuf), GatewayError> {
    let dir = data_dir.join("tls");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| fail(&dir, e))?;
    let at = |name: &str| dir.join(name);
    let (ca_path, path, key_path) = (at("ca.pem"), at("gateway.pem"), at("gateway.key"));
    let ca_key = keypair(&at("ca.key"))?;
    let known = fs::read_to_string(&ca_path).ok();
    let since = known.as_deref().and_then(|t| noted(t, "Issued")?.parse::<Timestamp>().ok());
    let since = since.filter(|at| now.duration_since(*at) < CA_LIFE * 2 / 3);
    let name = format!("Sigil CA {}", data_dir.file_name().map(|_| crate::api::host_name(config)).unwrap_or_default());
    let begun = since.unwrap_or(now);
    let issued_by =
        known.as_deref().and_then(|t| noted(t, "Name")).filter(|_| since.is_some()).unwrap_or(&name).to_owned();
    let params = authority(&issued_by, begun).map_err(|e| fail(&ca_path, e))?;
    if since.is_none() {
        let certificate = params.clone().self_signed(&ca_key).map_err(|e| fail(&ca_path, e))?;
        let text = format!("Issued: {now}\nName: {issued_by}\n{}", certificate.pem());
        replace_file(&ca_path, text.as_bytes(), None).map_err(|e| fail(&ca_path, e))?;
        tracing::warn!(path = %ca_path.display(), "the gateway's certificate authority was made: clients must trust it");
    }
    let names = names(config);
    let wanted = names.join(" ");
    let current = fs::read_to_string(&path).ok().filter(|_| since.is_some());
    let fresh = current.as_deref().is_some_and(|text| {
        let issued = noted(text, "Issued").and_then(|t| t.parse::<Timestamp>().ok());
        noted(text, "Names") == Some(&wanted) && issued.is_some_and(|at| now.duration_since(at) < LIFE * 2 / 3)
    });
    if !fresh {
        let key = keypair(&key_path)?;
        let mut leaf = CertificateParams::new(names).map_err(|e| fail(&path, e))?;
        lasting(&mut leaf, "sigil gateway", now, LIFE);
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_params(&params, &ca_key);
        let certificate = leaf.signed_by(&key, &issuer).map_err(|e| fail(&path, e))?;
        let text = format!("Issued: {now}\nNames: {wanted}\n{}", certificate.pem());
        replace_file(&path, text.as_bytes(), None).map_err(|e| fail(&path, e))?;
        tracing::info!(names = wanted, "the gateway's certificate was issued");
    }
    Ok((path, key_path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(tls: &str) -> AgentConfig {
        let mut config = AgentConfig::default();
        config.gateway.tls = tls.into();
        config
    }

    #[test]
    fn the_authority_stays_and_what_it_signs_is_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join("tls").join(name)).unwrap();
        let later = |days: i64| Timestamp::now() + SignedDuration::from_hours(24 * days);
        let mut config = config("own");
        load(&config, dir.path(), later(0)).unwrap().unwrap();
        let (ca, leaf) = (read("ca.pem"), read("gateway.pem"));
        load(&config, dir.path(), later(50)).unwrap();
        assert_eq!((read("ca.pem"), read("gateway.pem")), (ca.clone(), leaf.clone()));
        load(&config, dir.path(), later(70)).unwrap();
        assert_eq!(read("ca.pem"), ca);
        let renewed = read("gateway.pem");
        assert_ne!(renewed, leaf);
        config.gateway.domain = "mcp.example.org".into();
        load(&config, dir.path(), later(71)).unwrap();
        assert!(read("gateway.pem").contains("*.mcp.example.org"));
        load(&config, dir.path(), later(2500)).unwrap();
        assert_ne!(read("ca.pem"), ca);
    }

    #[test]
    fn what_cannot_be_served_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(&config("off"), dir.path(), Timestamp::now()).unwrap().is_none());
        let error = load(&config("files"), dir.path(), Timestamp::now()).unwrap_err();
        assert!(error.to_string().contains("certificate and key"), "{error}");
        assert_eq!(error.code(), "GATEWAY_CERTIFICATE");
    }
}
