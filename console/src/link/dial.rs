//! Byte streams to an agent: unix socket, TLS with a pinned certificate, the system's ssh.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin as StdPin;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme};
use sha2::{Digest, Sha256};
use sigil_config::console::Host;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::address::{Address, Pin};
use super::error::{LinkError, dial_error, plain};
use super::{CONNECT_TIMEOUT, Target};
use crate::os::{self, LocalStream};

/// The line with which `sigil dial --hello` says that the socket is open. What a login shell prints before it is skipped.
pub const HELLO: &str = "sigil-dial 1";

/// Any connected byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Places of a local agent's socket, in the order in which they are tried.
pub fn local_sockets() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("/run/sigil/agent.sock")];
    if os::is_root() {
        places.push(PathBuf::from("/var/lib/sigil/agent.sock"));
    }
    places.push(crate::contexts::state_dir().join("agent.sock"));
    places
}

/// Opens the first local socket that answers.
pub async fn local() -> Result<(PathBuf, LocalStream), LinkError> {
    let mut tried = Vec::new();
    let mut denied = None;
    for path in local_sockets() {
        match os::connect(&path).await {
            Ok(stream) => return Ok((path, stream)),
            Err(e) => {
                if e.kind() == io::ErrorKind::PermissionDenied {
                    denied = denied.or(Some(path.clone()));
                }
                tried.push((path.display().to_string(), socket_error(&path, &e)));
            }
        }
    }
    // a socket that is there but shut is the better explanation than one that is not there
    Err(denied.map_or(LinkError::NoAgent { tried }, |path| LinkError::Denied { path }))
}

fn socket_error(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such socket".to_owned(),
        io::ErrorKind::ConnectionRefused => "nobody listens".to_owned(),
        _ if !path.exists() => "no such socket".to_owned(),
        _ => plain(error),
    }
}

/// Opens a stream to a target within the connect timeout.
pub async fn dial(target: &Target) -> Result<Box<dyn Stream>, LinkError> {
    let address = &target.address;
    let connect = async {
        Ok::<Box<dyn Stream>, LinkError>(match address {
            Address::Local => Box::new(local().await?.1),
            Address::At(Host::Unix(path)) => {
                Box::new(os::connect(path).await.map_err(|e| match dial_error(address, &e) {
                    LinkError::Unreachable { address, .. } => {
                        LinkError::Unreachable { address, why: socket_error(path, &e) }
                    }
                    other => other,
                })?)
            }
            Address::At(Host::Tls { host, port }) => {
                let pin = target.pin.ok_or_else(|| LinkError::NoPin { address: address.to_string() })?;
                Box::new(tls(address, host, *port, Expect::Pin(pin), target.identity.as_ref()).await?.0)
            }
            Address::At(Host::Ssh { user, host, port }) => {
                Box::new(ssh(user.as_deref(), host, *port, target.interactive).await?)
            }
        })
    };
    // a person may have to type a passphrase for ssh, which has its own connect timeout
    let limit = match address {
        Address::At(Host::Ssh { .. }) if target.interactive => Duration::from_secs(120),
        _ => CONNECT_TIMEOUT,
    };
    tokio::time::timeout(limit, connect).await.unwrap_or_else(|_| {
        Err(LinkError::Unreachable { address: address.to_string(), why: format!("no answer in {} s", limit.as_secs()) })
    })
}

/// The fingerprint of the certificate that a TLS address shows, whatever it is.
pub async fn fingerprint(host: &str, port: u16) -> Result<Pin, LinkError> {
    let address = Address::At(Host::Tls { host: host.to_owned(), port });
    let connect = tls(&address, host, port, Expect::Any, None);
    let (_, shown) = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| LinkError::Unreachable {
        address: address.to_string(),
        why: format!("no answer in {} s", CONNECT_TIMEOUT.as_secs()),
    })??;
    shown.ok_or_else(|| LinkError::Tls { address: address.to_string(), why: "no certificate was shown".to_owned() })
}

#[derive(Debug, Clone, Copy)]
enum Expect {
    Pin(Pin),
    Any,
}

async fn tls(
    address: &Address,
    host: &str,
    port: u16,
    expect: Expect,
    identity: Option<&(PathBuf, PathBuf)>,
) -> Result<(tokio_rustls::client::TlsStream<TcpStream>, Option<Pin>), LinkError> {
    let tcp = TcpStream::connect((host, port)).await.map_err(|e| dial_error(address, &e))?;
    tcp.set_nodelay(true).map_err(|e| dial_error(address, &e))?;
    let failed = |why: String| LinkError::Tls { address: address.to_string(), why };
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Pinned { expect, shown: Mutex::new(None), provider: Arc::clone(&provider) });
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| failed(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Pinned>::clone(&verifier));
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let named = |file: &Path, why: String| failed(format!("{}: {why}", file.display()));
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(|found| found.collect::<Result<Vec<_>, _>>())
                .map_err(|e| named(certificate, e.to_string()))?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| named(key, e.to_string()))?;
            config.with_client_auth_cert(chain, secret).map_err(|e| named(certificate, e.to_string()))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(e.to_string()))?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    let shown = verifier.shown.lock().ok().and_then(|shown| *shown);
    match (stream, expect, shown) {
        (Ok(stream), _, shown) => Ok((stream, shown)),
        (Err(_), Expect::Pin(pin), Some(found)) if found != pin => Err(LinkError::WrongPin {
            address: address.to_string(),
            expected: pin.to_string(),
            found: found.to_string(),
        }),
        (Err(e), ..) => Err(failed(plain(&e))),
    }
}

/// Accepts exactly one certificate, by its SHA-256. Names, authorities and dates play no part: the pin is the trust.
/// The handshake's signature is still checked, so that showing a copy of the certificate is not enough.
#[derive(Debug)]
struct Pinned {
    expect: Expect,
    shown: Mutex<Option<Pin>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let found = Pin(Sha256::digest(end_entity.as_ref()).into());
        if let Ok(mut shown) = self.shown.lock() {
            *shown = Some(found);
        }
        match self.expect {
            Expect::Pin(pin) if pin != found => {
                Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A running ssh; ends with the stream.
struct SshStream {
    stdout: BufReader<ChildStdout>,
    stdin: ChildStdin,
    _child: Child,
}

/// Longest line that may come before the greeting (a login banner written to stdout).
const NOISE_MAX: usize = 16 * 1024;

async fn ssh(user: Option<&str>, host: &str, port: Option<u16>, interactive: bool) -> Result<SshStream, LinkError> {
    let name = user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}"));
    let failed = |status: String, stderr: String| LinkError::Ssh { host: name.clone(), status, stderr };
    let mut command = Command::new("ssh");
    command.args(["-T", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"]);
    if !interactive {
        command.args(["-o", "BatchMode=yes"]);
    }
    if let Some(port) = port {
        command.arg("-p").arg(port.to_string());
    }
    if let Some(user) = user {
        command.arg("-l").arg(user);
    }
    command.arg("--").arg(host).args(["sigil", "dial", "--hello"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child =
        command.spawn().map_err(|e| failed(String::new(), format!("ssh cannot be started: {}", plain(&e))))?;
    let (Some(stdin), Some(stdout), Some(mut stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(failed(String::new(), "ssh has no pipes".to_owned()));
    };
    let said = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&said);
    // ends with ssh; it must be read to the end, or a chatty ssh would block
    let reader = tokio::spawn(async move {
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
            if let Ok(mut said) = sink.lock() {
                let room = NOISE_MAX.saturating_sub(said.len());
                said.extend_from_slice(&buffer[..n.min(room)]);
            }
        }
    });
    let mut stdout = BufReader::new(stdout);
    let mut seen = 0;
    loop {
        let mut line = Vec::new();
        let read = (&mut stdout).take(NOISE_MAX as u64).read_until(b'\n', &mut line).await;
        let ended = !matches!(read, Ok(1..));
        if line.trim_ascii() == HELLO.as_bytes() {
            return Ok(SshStream { stdout, stdin, _child: child });
        }
        seen += line.len();
        if ended || seen > NOISE_MAX {
            break;
        }
    }
    drop(stdin);
    let status = tokio::time::timeout(Duration::from_secs(2), child.wait()).await;
    let status = match status {
        Ok(Ok(status)) => format!(" ({status})"),
        _ => String::new(),
    };
    // what was said is complete only once the reader has seen the end; a forked grandchild may hold the pipe open
    drop(tokio::time::timeout(Duration::from_millis(500), reader).await);
    let said = said.lock().map(|said| String::from_utf8_lossy(&said).trim().to_owned()).unwrap_or_default();
    let said = if said.is_empty() { "it ended without a word".to_owned() } else { said };
    Err(failed(status, said))
}

impl AsyncRead for SshStream {
    fn poll_read(mut self: StdPin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        StdPin::new(&mut self.stdout).poll_read(cx, buf)
    }
}

impl AsyncWrite for SshStream {
    fn poll_write(mut self: StdPin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        StdPin::new(&mut self.stdin).poll_write(cx, buf)
    }
    fn poll_flush(mut self: StdPin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        StdPin::new(&mut self.stdin).poll_flush(cx)
    }
    fn poll_shutdown(mut self: StdPin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        StdPin::new(&mut self.stdin).poll_shutdown(cx)
    }
}
