//! Connections that containers make to the world: asked for by name, made by the agent.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use base64::Engine as _;
use sigil_config::agent::OutboundConfig;
use sigil_core::egress::{Host, Refusal, plain};
use sigil_core::model::InstanceId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::connection::{reset, stream};
use super::instance::Instance;
use super::lock;
use super::proxy;
use super::walls::{Gate, Pace, place};

/// Open connections of one instance.
const PER_INSTANCE: usize = 512;
/// Longest wait for the other side.
pub const CONNECT: Duration = Duration::from_secs(15);
/// Longest wait for one of several addresses.
const CONNECT_ONE: Duration = Duration::from_secs(4);
/// Addresses of one name that are looked at, and of those that are tried.
const ADDRESSES: (usize, usize) = (64, 8);
/// Lines about failed connections in a minute: what a server does fills no log of the agent.
const LINES: u32 = 120;
/// Longest answer of a proxy, in bytes.
const PROXY_ANSWER: usize = 8 * 1024;

/// Bytes that one instance's connections carried since the agent's start.
#[derive(Debug, Default)]
pub struct Carried {
    received: AtomicU64,
    sent: AtomicU64,
}

/// A connection to the world whose bytes are counted.
#[derive(Debug)]
pub struct Outside {
    socket: TcpStream,
    carried: Arc<Carried>,
}

impl AsyncRead for Outside {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buf);
        let more = buf.filled().len().saturating_sub(before);
        self.carried.received.fetch_add(more as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Outside {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        if let Poll::Ready(Ok(more)) = written {
            self.carried.sent.fetch_add(more as u64, Ordering::Relaxed);
        }
        written
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        if let Poll::Ready(Ok(more)) = written {
            self.carried.sent.fetch_add(more as u64, Ordering::Relaxed);
        }
        written
    }
    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

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

/// Why a connection is not there.
#[derive(Debug)]
pub enum Trouble {
    /// It is not allowed.
    Refused(Refusal),
    /// It did not work.
    Failed(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Who goes out, how, and how many.
pub struct Outbound {
    config: RwLock<Arc<OutboundConfig>>,
    gate: Arc<Gate>,
    slots: Mutex<std::collections::HashMap<InstanceId, Arc<Semaphore>>>,
    carried: Mutex<std::collections::HashMap<InstanceId, Arc<Carried>>>,
    counts: Arc<Counts>,
    pace: Arc<Mutex<Pace>>,
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
            gate: Arc::new(Gate::new(&config)),
            config: RwLock::new(Arc::new(config)),
            slots: Mutex::default(),
            carried: Mutex::default(),
            counts: Arc::default(),
            pace: Arc::default(),
        }
    }

    fn config(&self) -> Arc<OutboundConfig> {
        self.config.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub fn set(&self, config: OutboundConfig) {
        self.gate.set(&config);
        *self.config.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(config);
    }

    /// Who may connect where.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    pub fn ports(&self) -> Vec<u16> {
        self.config().ports.clone()
    }

    /// Bytes that an instance received and sent; `None` while it never asked for a connection.
    pub fn carried(&self, instance: InstanceId) -> Option<(u64, u64)> {
        let carried = lock(&self.carried).get(&instance).cloned()?;
        Some((carried.received.load(Ordering::Relaxed), carried.sent.load(Ordering::Relaxed)))
    }

    /// Forgets the counts of an instance that is gone.
    pub fn forget(&self, instance: InstanceId) {
        lock(&self.carried).remove(&instance);
    }

    pub fn counts(&self) -> (u64, u64, u64) {
        let Counts { open, made, failed } = &*self.counts;
        (open.load(Ordering::Relaxed), made.load(Ordering::Relaxed), failed.load(Ordering::Relaxed))
    }

    /// Connects a socket from inside with the host it asked for, in a task of its own.
    pub fn forward(&self, instance: &Instance, fd: OwnedFd, asked: String, port: u16) {
        let id = instance.id;
        let proxy = asked == proxy::NAME;
        let way = Way {
            instance: id,
            host: Host::Name(asked.clone()),
            port,
            config: self.config(),
            gate: self.gate.clone(),
            counts: self.counts.clone(),
            pace: self.pace.clone(),
            carried: lock(&self.carried).entry(id).or_default().clone(),
            open: None,
        };
        let allowed = asked.parse::<Host>().map_err(|_| Refusal::NoHost).and_then(|host| {
            let way = way.to(host, port);
            if !proxy {
                way.allowed()?;
            }
            Ok(way)
        });
        let way = match allowed {
            Ok(way) => way,
            Err(why) => {
                way.refused(&why);
                return reset(&fd);
            }
        };
        let slots = {
            let mut all = lock(&self.slots);
            // An instance without connections needs no entry.
            all.retain(|other, slots| *other == id || slots.available_permits() < PER_INSTANCE);
            all.entry(id).or_insert_with(|| Arc::new(Semaphore::new(PER_INSTANCE))).clone()
        };
        let Ok(permit) = slots.try_acquire_owned() else {
            way.failed(&"too many connections");
            return reset(&fd);
        };
        self.counts.open.fetch_add(1, Ordering::Relaxed);
        self.counts.made.fetch_add(1, Ordering::Relaxed);
        let way = Way { open: Some(Arc::new(Open(self.counts.clone(), permit))), ..way };
        let stop = instance.stop.clone();
        if proxy {
            tokio::spawn(async move {
                let Ok(inside) = stream(fd) else { return };
                proxy::serve(inside, move |host, port| way.to(host, port), stop).await;
            });
        } else {
            tokio::spawn(way.carry(fd, stop));
        }
    }
}

/// One connection on its way.
#[derive(Clone)]
pub struct Way {
    instance: InstanceId,
    pub host: Host,
    port: u16,
    config: Arc<OutboundConfig>,
    gate: Arc<Gate>,
    counts: Arc<Counts>,
    pace: Arc<Mutex<Pace>>,
    carried: Arc<Carried>,
    #[allow(dead_code, reason = "held, not read")]
    open: Option<Arc<Open>>,
}

impl Way {
    /// The same container's way to another host.
    pub fn to(&self, host: Host, port: u16) -> Self {
        Self { host, port, ..self.clone() }
    }

    /// Whether the host may be asked for.
    pub fn allowed(&self) -> Result<(), Refusal> {
        self.gate.before(self.instance, &self.host, self.port)
    }

    async fn carry(self, fd: OwnedFd, stop: CancellationToken) {
        let Ok(mut inside) = stream(fd) else { return };
        let connected = tokio::select! {
            () = stop.cancelled() => return,
            connected = tokio::time::timeout(CONNECT, self.connect()) => {
                connected.unwrap_or_else(|_| Err(Trouble::Failed(io::ErrorKind::TimedOut.into())))
            }
        };
        let (outside, address) = match connected {
            Ok(connected) => connected,
            Err(trouble) => {
                match trouble {
                    Trouble::Refused(why) => self.refused(&why),
                    Trouble::Failed(error) => self.failed(&error),
                }
                return reset(inside.as_fd());
            }
        };
        if !self.carry_on(&mut inside, outside, address, &stop).await {
            reset(inside.as_fd());
        }
    }

    /// Carries bytes both ways until either side ends or the connection is no longer allowed; false when it broke.
    pub async fn carry_on(
        &self,
        inside: &mut (impl AsyncRead + AsyncWrite + Unpin),
        mut outside: Outside,
        address: Option<IpAddr>,
        stop: &CancellationToken,
    ) -> bool {
        let copy = tokio::io::copy_bidirectional(inside, &mut outside);
        tokio::select! {
            () = stop.cancelled() => true,
            why = self.until_refused(address) => {
                self.refused(&why);
                false
            }
            done = copy => {
                if let Err(error) = &done {
                    let Self { instance, host, port, .. } = self;
                    tracing::debug!(%instance, %host, port, %error, "an outbound connection broke");
                }
                done.is_ok()
            }
        }
    }

    /// Waits until the owner's limits no longer let the connection through.
    pub async fn until_refused(&self, address: Option<IpAddr>) -> Refusal {
        let mut limits = self.gate.limits();
        loop {
            limits.mark_unchanged();
            if let Err(why) = self.gate.still(self.instance, &self.host, self.port, address) {
                return why;
            }
            if limits.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub fn refused(&self, why: &Refusal) {
        self.gate.refused(self.instance, &self.host.to_string(), self.port, why);
    }

    pub fn failed(&self, error: &dyn std::fmt::Display) {
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = lock(&self.pace).go(Instant::now(), LINES) {
            let Self { instance, host, port, .. } = self;
            tracing::info!(%instance, %host, port, %error, left_out, "an outbound connection failed");
        }
    }

    /// The connection, and the address it goes to where the agent itself chose it.
    pub async fn connect(&self) -> Result<(Outside, Option<IpAddr>), Trouble> {
        let allowed = |address| self.gate.at(self.instance, &self.host, self.port, address);
        let name = self.host.to_string();
        let (socket, address) = match proxy_for(&self.config, &name, &|name| std::env::var(name).ok())? {
            None => {
                let (socket, address) = dial(&self.host, self.port, allowed).await?;
                (socket, Some(address))
            }
            Some(proxy) => {
                // names are the proxy's to resolve; an address is one here already
                let literal = match self.host {
                    Host::Address(address) => Some(address),
                    Host::Name(_) => None,
                };
                literal.map_or(Ok(()), allowed).map_err(Trouble::Refused)?;
                let own: Host = proxy.host.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
                let (mut socket, _) = dial(&own, proxy.port, |_| Ok(())).await?;
                tunnel(&mut socket, &proxy, &place(&name, self.port)).await?;
                (socket, literal)
            }
        };
        socket.set_nodelay(true)?;
        Ok((Outside { socket, carried: self.carried.clone() }, address))
    }
}

/// Resolves a host and connects to the first of its allowed addresses that answers: what was judged is what is dialled.
async fn dial(
    host: &Host,
    port: u16,
    allowed: impl Fn(IpAddr) -> Result<(), Refusal>,
) -> Result<(TcpStream, IpAddr), Trouble> {
    let mut addresses: Vec<IpAddr> = match host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => {
            let found = tokio::net::lookup_host((name.as_str(), port)).await?;
            found.map(|a| plain(a.ip())).take(ADDRESSES.0).collect()
        }
    };
    let mut refused = None;
    addresses.retain(|address| allowed(*address).map_err(|why| refused = Some(why)).is_ok());
    if let (true, Some(why)) = (addresses.is_empty(), refused) {
        return Err(Trouble::Refused(why));
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses.into_iter().take(ADDRESSES.1) {
        match tokio::time::timeout(CONNECT_ONE, TcpStream::connect((address, port))).await {
            Ok(Ok(socket)) => return Ok((socket, address)),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(Trouble::Failed(last))
}

/// Asks a proxy for a connection.
async fn tunnel(socket: &mut TcpStream, proxy: &Proxy, place: &str) -> io::Result<()> {
    let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
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
pub(super) mod tests {
    use super::super::walls::Grant;
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

    /// Connections of one container with this list.
    pub(in super::super) fn way(config: OutboundConfig, egress: &[&str]) -> impl Fn(&str) -> Way + use<> {
        let gate = Arc::new(Gate::new(&config));
        let id = InstanceId(ulid::Ulid::from_parts(1, 1));
        let builder = sigil_config::agent::BuilderConfig {
            egress: egress.iter().map(|s| (*s).to_owned()).collect(),
            ..Default::default()
        };
        gate.grant(id, Grant::build(id, &builder));
        move |host| Way {
            instance: id,
            host: host.parse().unwrap(),
            port: 443,
            config: Arc::new(config.clone()),
            gate: gate.clone(),
            counts: Arc::default(),
            pace: Arc::default(),
            carried: Arc::default(),
            open: None,
        }
    }

    #[tokio::test]
    async fn the_address_that_was_judged_is_dialled_and_no_other() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let host: Host = "localhost".parse().unwrap();
        let four = |a: IpAddr| if a.is_ipv4() { Ok(()) } else { Err(Refusal::Unlisted) };
        let (_, address) = dial(&host, port, four).await.unwrap();
        assert_eq!(address, IpAddr::from([127, 0, 0, 1]));
        let error =
            dial(&host, port, |a| Err(Refusal::Special(sigil_core::egress::Kind::Loopback, a))).await.unwrap_err();
        assert!(matches!(error, Trouble::Refused(Refusal::Special(..))), "{error:?}");
        let direct = way(config("", &["*"]), &["other.example"]);
        let error = direct("127.0.0.1").connect().await.unwrap_err();
        assert!(matches!(error, Trouble::Refused(Refusal::Special(..))), "{error:?}");
    }

    #[tokio::test]
    async fn new_limits_end_what_they_do_not_let_through() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = way(config("", &["*"]), &[&format!("127.0.0.1:{port}")])("127.0.0.1");
        let way = way.to("127.0.0.1".parse().unwrap(), port);
        let (outside, address) = way.connect().await.unwrap();
        let _held = listener.accept().await.unwrap();
        let ((mut inside, _other), stop) = (tokio::io::duplex(64), CancellationToken::new());
        let carrying = way.carry_on(&mut inside, outside, address, &stop);
        tokio::pin!(carrying);
        way.gate.set(&OutboundConfig { deny: vec!["10.0.0.0/8".into()], ..OutboundConfig::default() });
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut carrying).await.is_err(), "it goes on");
        way.gate.set(&OutboundConfig { deny: vec!["127.0.0.0/8".into()], ..OutboundConfig::default() });
        assert!(!tokio::time::timeout(CONNECT, carrying).await.expect("it ends"));
        assert_eq!(way.gate.build_refusals(way.instance)[0].why, Refusal::Denied.to_string());
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
        let way = way(config, &["far.example"]);
        let (mut socket, address) = way("far.example").connect().await.unwrap();
        assert_eq!(address, None);
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        // what the proxy said of itself is no traffic of the container's
        socket.write_all(b"bye").await.unwrap();
        let Carried { received, sent } = &*socket.carried;
        assert_eq!((received.load(Ordering::Relaxed), sent.load(Ordering::Relaxed)), (5, 3));
        let error = way("far.example").connect().await.unwrap_err();
        assert!(matches!(&error, Trouble::Failed(e) if e.to_string().contains("403 Forbidden")), "{error:?}");
        proxy.await.unwrap();
        // an address is judged before the proxy hears of it
        let error = way("10.1.2.3").connect().await.unwrap_err();
        assert!(matches!(error, Trouble::Refused(Refusal::Special(..))), "{error:?}");
    }
}
