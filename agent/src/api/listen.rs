//! Listening: unix sockets and TLS, with our own accept loop, since the usual one holds a silent connection for ever.
//! A connection reaches the HTTP/2 server once its 24-byte preface is whole; until then it has five seconds.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;

use super::ApiError;
use crate::access::Peer;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// From accept to the last byte of the preface, TLS included.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections at once, of all kinds.
const CONNECTIONS: usize = 512;
/// Connections at once of one address.
const PER_ADDRESS: usize = 32;

enum Io {
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection past its handshake. Gives the preface back to whoever reads it.
pub(super) struct Conn {
    io: Io,
    peer: Peer,
    preface: &'static [u8],
    _place: Place,
}

impl Connected for Conn {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.preface.is_empty() {
            let n = self.preface.len().min(buf.remaining());
            buf.put_slice(&self.preface[..n]);
            self.preface = &self.preface[n..];
            return Poll::Ready(Ok(()));
        }
        match &mut self.io {
            Io::Unix(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Unix(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Unix(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Unix(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A connection's place among those that may be; given back when dropped.
struct Place {
    _permit: OwnedSemaphorePermit,
    address: Option<(IpAddr, Counts)>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((ip, counts)) = &self.address {
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(n) = counts.get_mut(ip) {
                *n -= 1;
                if *n == 0 {
                    counts.remove(ip);
                }
            }
        }
    }
}

/// Places for connections.
#[derive(Clone)]
struct Places {
    all: Arc<Semaphore>,
    counts: Counts,
}

impl Places {
    fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(CONNECTIONS)), counts: Counts::default() }
    }

    fn take(&self, ip: Option<IpAddr>) -> Option<Place> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let address = match ip {
            None => None,
            Some(ip) => {
                let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
                let n = counts.entry(ip).or_default();
                if *n >= PER_ADDRESS {
                    return None;
                }
                *n += 1;
                Some((ip, self.counts.clone()))
            }
        };
        Some(Place { _permit: permit, address })
    }
}

/// A unix socket being listened on; its file goes with it, unless someone else's is there by then.
pub(super) struct Socket {
    listener: UnixListener,
    pub path: PathBuf,
    group: bool,
    made: Option<(u64, u64)>,
}

fn id_of(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.made.is_some() && id_of(&self.path) == self.made {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds a socket under a name of its own, sets owner and mode, and only then gives it the known name: nobody can
/// connect to it in between, and a stale one is replaced in one step.
fn bind(path: &Path, mode: u32, gid: Option<u32>) -> Result<Socket, ApiError> {
    let fail = |e: io::Error| ApiError::Listen { address: path.display().to_string(), why: e.to_string() };
    if let Ok(meta) = fs::symlink_metadata(path)
        && !meta.file_type().is_socket()
    {
        return Err(fail(io::Error::other("something that is no socket is there")));
    }
    let temp = path.with_file_name(format!(".s{}", std::process::id()));
    let _ = fs::remove_file(&temp);
    let listener = UnixListener::bind(&temp).map_err(fail)?;
    let placed = std::os::unix::fs::chown(&temp, None, gid)
        .and_then(|()| fs::set_permissions(&temp, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&temp, path));
    if let Err(e) = placed {
        let _ = fs::remove_file(&temp);
        return Err(fail(e));
    }
    Ok(Socket { listener, path: path.to_owned(), group: gid.is_some(), made: id_of(path) })
}

/// `<data>/agent.sock`. The store's lock is held: whatever is there is stale.
pub(super) fn data_socket(data_dir: &Path) -> Result<Socket, ApiError> {
    bind(&data_dir.join("agent.sock"), 0o600, None)
}

/// `/run/sigil/agent.sock` for members of the group, when this is root and the group exists. Another agent's is left alone.
pub(super) fn group_socket(dir: &Path) -> Result<Option<Socket>, ApiError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let gid = groups.lines().find_map(|l| l.strip_prefix("sigil:")?.split(':').nth(1)?.parse::<u32>().ok());
    let Some(gid) = gid else { return Ok(None) };
    let path = dir.join("agent.sock");
    let fail = |e: io::Error| ApiError::Listen { address: path.display().to_string(), why: e.to_string() };
    fs::create_dir_all(dir).map_err(fail)?;
    std::os::unix::fs::chown(dir, Some(0), Some(gid)).map_err(fail)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(fail)?;
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        tracing::warn!(path = %path.display(), "another agent answers there; members of group sigil reach that one");
        return Ok(None);
    }
    bind(&path, 0o660, Some(gid)).map(Some)
}

/// A TLS listener.
pub(super) struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    pub address: SocketAddr,
}

impl Tls {
    pub async fn bind(address: &str, config: rustls::ServerConfig) -> Result<Self, ApiError> {
        let fail = |e: io::Error| ApiError::Listen { address: address.to_owned(), why: e.to_string() };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), address })
    }
}

async fn preface<S: AsyncRead + Unpin>(io: &mut S) -> io::Result<()> {
    let mut bytes = [0; 24];
    io.read_exact(&mut bytes).await?;
    if bytes == *PREFACE { Ok(()) } else { Err(io::Error::other("not HTTP/2")) }
}

/// Runs one handshake within its time, then hands the connection on.
fn admit<F>(tasks: &TaskTracker, stop: &CancellationToken, out: &mpsc::Sender<io::Result<Conn>>, handshake: F)
where
    F: Future<Output = io::Result<Conn>> + Send + 'static,
{
    let (stop, out) = (stop.clone(), out.clone());
    tasks.spawn(async move {
        let done = tokio::select! {
            done = tokio::time::timeout(HANDSHAKE, handshake) => done,
            () = stop.cancelled() => return,
        };
        match done {
            Ok(Ok(conn)) => {
                let _ = out.send(Ok(conn)).await;
            }
            Ok(Err(e)) => tracing::debug!(error = %e, "a handshake failed"),
            Err(_) => tracing::debug!("a connection said nothing for five seconds"),
        }
    });
}

/// Accept errors are passing (a peer that gave up, no descriptors left): wait a little, go on.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "accept");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Starts accepting; connections past their handshake come out.
pub(super) fn start(
    sockets: Vec<Socket>,
    tls: Option<Tls>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> mpsc::Receiver<io::Result<Conn>> {
    let (out, incoming) = mpsc::channel(16);
    let places = Places::new();
    for socket in sockets {
        let (tasks_of, stop, out, places) = (tasks.clone(), stop.clone(), out.clone(), places.clone());
        tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = socket.listener.accept() => accepted,
                    () = stop.cancelled() => return,
                };
                let mut io = match accepted {
                    Ok((io, _)) => io,
                    Err(e) => {
                        pause(&e).await;
                        continue;
                    }
                };
                let Ok(peer) = io.peer_cred() else { continue };
                let peer = Peer::Unix { uid: peer.uid(), group_socket: socket.group };
                let Some(place) = places.take(None) else {
                    tracing::warn!("too many connections; one more was closed");
                    continue;
                };
                admit(&tasks_of, &stop, &out, async move {
                    preface(&mut io).await?;
                    Ok(Conn { io: Io::Unix(io), peer, preface: PREFACE, _place: place })
                });
            }
        });
    }
    if let Some(tls) = tls {
        let (tasks_of, stop, out) = (tasks.clone(), stop.clone(), out.clone());
        tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = tls.listener.accept() => accepted,
                    () = stop.cancelled() => return,
                };
                let (io, address) = match accepted {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        pause(&e).await;
                        continue;
                    }
                };
                let Some(place) = places.take(Some(address.ip())) else {
                    tracing::debug!(%address, "too many connections; one more was closed");
                    continue;
                };
                let acceptor = tls.acceptor.clone();
                admit(&tasks_of, &stop, &out, async move {
                    io.set_nodelay(true)?;
                    let mut io = acceptor.accept(io).await?;
                    preface(&mut io).await?;
                    let shown = io.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                    let certificate = shown.map(|leaf| super::tls::common_name(leaf).unwrap_or_default());
                    let peer = Peer::Tls { address, certificate };
                    Ok(Conn { io: Io::Tls(Box::new(io)), peer, preface: PREFACE, _place: place })
                });
            }
        });
    }
    incoming
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_address_and_given_back() {
        let places = Places::new();
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let mut held: Vec<_> = (0..PER_ADDRESS).map(|_| places.take(Some(ip)).unwrap()).collect();
        assert!(places.take(Some(ip)).is_none());
        assert!(places.take(Some("192.0.2.2".parse().unwrap())).is_some());
        held.pop();
        assert!(places.take(Some(ip)).is_some());
        drop(held);
        assert!(places.counts.lock().unwrap().is_empty());
        assert_eq!(places.all.available_permits(), CONNECTIONS);
        let all: Vec<_> = (0..CONNECTIONS).map(|_| places.take(None).unwrap()).collect();
        assert!(places.take(None).is_none());
        drop(all);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = data_socket(dir.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = data_socket(dir.path()).unwrap();
        drop(socket);
        assert!(path.exists(), "the first one removed the second one's file");
        drop(second);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(data_socket(dir.path()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
