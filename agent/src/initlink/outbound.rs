//! Connections that containers make to the world: asked for by name, made by the agent.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use base64::Engine as _;
use sigil_config::agent::OutboundConfig;
use sigil_core::model::InstanceId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::connection::{reset, stream};
use super::instance::Instance;
use super::lock;

/// Open connections of one instance.
const PER_INSTANCE: usize = 512;
/// Longest wait for the other side.
const CONNECT: Duration = Duration::from_secs(15);
/// Longest wait for one of several addresses.
const CONNECT_ONE: Duration = Duration::from_secs(4);
/// Longest answer of a proxy, in bytes.
const PROXY_ANSWER: usize = 8 * 1024;

/// Whether an instance may connect to a host and port.
pub type Policy = Arc<dyn Fn(InstanceId, &str, u16) -> bool + Send + Sync>;

#[derive(Debug, Default)]
struct Counts {
    open: AtomicU64,
    made: AtomicU64,
    failed: AtomicU64,
}

/// A proxy for the agent's connections.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Proxy {
    host: String,
    port: u16,
    /// Of `Proxy-Authorization`.
    authorization: Option<String>,
}

/// Who goes out, how, and how many.
pub struct Outbound {
    config: RwLock<Arc<OutboundConfig>>,
    policy: RwLock<Option<Policy>>,
    slots: Mutex<std::collections::HashMap<InstanceId, Arc<Semaphore>>>,
    counts: Arc<Counts>,
}

/// Counts an open connection for as long as it lives.
struct Open(Arc<Counts>, #[allow(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Outbound {
    pub fn new(config: OutboundConfig) -> Self {
        Self {
            config: RwLock::new(Arc::new(config)),
            policy: RwLock::default(),
            slots: Mutex::default(),
            counts: Arc::default(),
        }
    }

    fn config(&self) -> Arc<OutboundConfig> {
        self.config.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub fn set(&self, config: OutboundConfig) {
        *self.config.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(config);
    }

    pub fn set_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(policy);
    }

    pub fn ports(&self) -> Vec<u16> {
        self.config().ports.clone()
    }

    pub fn counts(&self) -> (u64, u64, u64) {
        let Counts { open, made, failed } = &*self.counts;
        (open.load(Ordering::Relaxed), made.load(Ordering::Relaxed), failed.load(Ordering::Relaxed))
    }

    /// Connects a socket from inside with the host it asked for, in a task of its own.
    pub fn forward(&self, instance: &Instance, fd: OwnedFd, host: String, port: u16) {
        let id = instance.id;
        let refuse = |why: &str| {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(instance = %id, host, port, why, "an outbound connection was refused");
            reset(&fd);
        };
        let policy = self.policy.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if policy.is_some_and(|allows| !allows(id, &host, port)) {
            return refuse("policy");
        }
        let slots = {
            let mut all = lock(&self.slots);
            // An instance without connections needs no entry.
            all.retain(|other, slots| *other == id || slots.available_permits() < PER_INSTANCE);
            all.entry(id).or_insert_with(|| Arc::new(Semaphore::new(PER_INSTANCE))).clone()
        };
        let Ok(permit) = slots.try_acquire_owned() else { return refuse("too many connections") };
        self.counts.open.fetch_add(1, Ordering::Relaxed);
        self.counts.made.fetch_add(1, Ordering::Relaxed);
        let open = Open(self.counts.clone(), permit);
        let (config, counts, stop) = (self.config(), self.counts.clone(), instance.stop.clone());
        tokio::spawn(carry(id, fd, host, port, config, counts, stop, open));
    }
}

#[allow(clippy::too_many_arguments)]
async fn carry(
    instance: InstanceId,
    fd: OwnedFd,
    host: String,
    port: u16,
    config: Arc<OutboundConfig>,
    counts: Arc<Counts>,
    stop: CancellationToken,
    _open: Open,
) {
    let Ok(mut inside) = stream(fd) else { return };
    let connected = tokio::select! {
        () = stop.cancelled() => return,
        connected = tokio::time::timeout(CONNECT, connect(&config, &host, port)) => {
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
    };
    let mut outside = match connected {
        Ok(outside) => outside,
        Err(error) => {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            tracing::info!(%instance, host, port, %error, "an outbound connection failed");
            reset(inside.as_fd());
            return;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        done = tokio::io::copy_bidirectional(&mut inside, &mut outside) => if let Err(error) = done {
            tracing::debug!(%instance, host, port, %error, "an outbound connection broke");
            reset(inside.as_fd());
        }
    }
}

async fn connect(config: &OutboundConfig, host: &str, port: u16) -> io::Result<TcpStream> {
    let socket = match proxy_for(config, host, &|name| std::env::var(name).ok())? {
        None => connect_host(host, port).await?,
        Some(proxy) => {
            let mut socket = connect_host(&proxy.host, proxy.port).await?;
            tunnel(&mut socket, &proxy, host, port).await?;
            socket
        }
    };
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn connect_host(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.take(8).collect();
    for address in addresses {
        match tokio::time::timeout(CONNECT_ONE, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// Asks a proxy for a connection.
async fn tunnel(socket: &mut TcpStream, proxy: &Proxy, host: &str, port: u16) -> io::Result<()> {
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if let Some(authorization) = &proxy.authorization {
        request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    request.push_str("\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(256);
    // Byte by byte: what follows the empty line belongs to the tunnel.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= PROXY_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the proxy's answer is too long"));
        }
        answer.push(socket.read_u8().await?);
    }
    let line = answer.split(|b| *b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line).into_owned();
    let code = line.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
    match code {
        Some(200..=299) if line.starts_with("HTTP/1.") => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("the proxy answered '{}'", line.escape_debug()),
        )),
    }
}

/// The proxy for a host: configured, or from the environment as other programs read it.
fn proxy_for(
    config: &OutboundConfig,
    host: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> io::Result<Option<Proxy>> {
    let variable = |names: &[&str]| names.iter().find_map(|name| environment(name).filter(|v| !v.is_empty()));
    let text = if config.proxy.is_empty() {
        let names = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"];
        match variable(&names) {
            Some(text) => text,
            None => return Ok(None),
        }
    } else {
        config.proxy.clone()
    };
    let excepted = if config.no_proxy.is_empty() {
        let list = variable(&["NO_PROXY", "no_proxy"]).unwrap_or_default();
        list.split(',').any(|entry| is_excepted(entry.trim(), host))
    } else {
        config.no_proxy.iter().any(|entry| is_excepted(entry.trim(), host))
    };
    if excepted { Ok(None) } else { parse_proxy(&text).map(Some) }
}

fn parse_proxy(text: &str) -> io::Result<Proxy> {
    // The text may hold a password, so no error repeats it.
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("the proxy's address {what}"));
    let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = url::Url::parse(&text).map_err(|_| wrong("is no URL"))?;
    if url.scheme() != "http" {
        return Err(wrong("does not begin with http://"));
    }
    let host = url.host_str().ok_or_else(|| wrong("has no host"))?;
    let authorization = (!url.username().is_empty()).then(|| {
        let plain = |text: &str| percent_decoded(text);
        let login = format!("{}:{}", plain(url.username()), plain(url.password().unwrap_or_default()));
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login))
    });
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Proxy { host, port: url.port().unwrap_or(80), authorization })
}

fn percent_decoded(text: &str) -> String {
    // A form's decoder, with '+' kept as it is in a URL's login.
    let text = text.replace('+', "%2B");
    url::form_urlencoded::parse(text.as_bytes()).next().map_or_else(String::new, |(name, _)| name.into_owned())
}

/// Whether a `no_proxy` entry names the host: `*`, a domain with or without a dot, an address or a network.
fn is_excepted(entry: &str, host: &str) -> bool {
    if entry.is_empty() {
        return false;
    }
    if entry == "*" {
        return true;
    }
    if let (Some((network, length)), Ok(address)) = (entry.split_once('/'), host.parse::<IpAddr>()) {
        return match (network.parse::<IpAddr>(), length.parse::<u32>(), address) {
            (Ok(IpAddr::V4(network)), Ok(length @ 0..=32), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
                u32::from(network) & mask == u32::from(address) & mask
            }
            (Ok(IpAddr::V6(network)), Ok(length @ 0..=128), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
                u128::from(network) & mask == u128::from(address) & mask
            }
            _ => false,
        };
    }
    let domain = entry.trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase();
    host == domain || host.strip_suffix(&domain).is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(proxy: &str, no_proxy: &[&str]) -> OutboundConfig {
        OutboundConfig {
            proxy: proxy.to_owned(),
            no_proxy: no_proxy.iter().map(|s| (*s).to_owned()).collect(),
            ..OutboundConfig::default()
        }
    }

    #[test]
    fn the_proxy_is_the_configured_one_then_the_environments() {
        let none = |_: &str| None;
        let some = |name: &str| match name {
            "https_proxy" => Some("http://env:8080".to_owned()),
            "no_proxy" => Some("localhost, .corp.example,10.0.0.0/8".to_owned()),
            _ => None,
        };
        assert_eq!(proxy_for(&config("", &[]), "a.example", &none).unwrap(), None);
        assert_eq!(proxy_for(&config("", &[]), "a.example", &some).unwrap().unwrap().host, "env");
        assert_eq!(proxy_for(&config("", &[]), "x.corp.example", &some).unwrap(), None);
        assert_eq!(proxy_for(&config("", &[]), "10.1.2.3", &some).unwrap(), None);
        assert_eq!(proxy_for(&config("", &[]), "11.1.2.3", &some).unwrap().unwrap().port, 8080);
        let own = proxy_for(&config("http://u:p%40ss@own:3128", &["a.example"]), "b.example", &some).unwrap().unwrap();
        assert_eq!((own.host.as_str(), own.port), ("own", 3128));
        assert_eq!(own.authorization.as_deref(), Some("Basic dTpwQHNz"));
        assert_eq!(proxy_for(&config("http://own", &["a.example"]), "a.example", &some).unwrap(), None);
        let error = proxy_for(&config("socks5://u:secret@own", &[]), "a.example", &none).unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }

    #[test]
    fn exceptions_match_whole_labels() {
        assert!(is_excepted("example.com", "example.com") && is_excepted(".example.com", "a.example.com"));
        assert!(is_excepted("*.example.com", "a.example.com") && is_excepted("*", "anything"));
        assert!(!is_excepted("example.com", "badexample.com") && !is_excepted("", "a"));
        assert!(is_excepted("0.0.0.0/0", "1.2.3.4") && !is_excepted("fd00::/8", "1.2.3.4"));
    }

    #[tokio::test]
    async fn a_proxy_is_asked_and_its_refusal_is_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = tokio::spawn(async move {
            for answer in ["HTTP/1.1 200 OK\r\nX: y\r\n\r\nhello", "HTTP/1.1 403 Forbidden\r\n\r\n"] {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(socket.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                assert!(request.starts_with("CONNECT far.example:443 HTTP/1.1\r\n"), "{request}");
                assert!(request.contains("Proxy-Authorization: Basic dTpw"), "{request}");
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let config = config(&format!("http://u:p@127.0.0.1:{port}"), &["none"]);
        let mut socket = connect(&config, "far.example", 443).await.unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        let error = connect(&config, "far.example", 443).await.unwrap_err();
        assert!(error.to_string().contains("403 Forbidden"), "{error}");
        proxy.await.unwrap();
    }
}
