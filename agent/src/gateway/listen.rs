//! The listener: limits that hold before a request exists.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::Shared;
use super::error::GatewayError;
use super::serve::handle;

/// A request's head must be there by then.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Largest head of a request, bytes; more answers 431.
const HEAD_MAX: usize = 64 << 10;
/// How long streams may finish when the agent stops.
const STOP_TIME: Duration = Duration::from_secs(5);

pub(crate) async fn bind(listen: &str) -> Result<TcpListener, GatewayError> {
    TcpListener::bind(listen).await.map_err(|e| {
        let why = match e.kind() {
            std::io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
            std::io::ErrorKind::PermissionDenied => "not allowed (ports below 1024 need a capability)".to_owned(),
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
            _ => e.to_string(),
        };
        GatewayError::Listen(listen.to_owned(), why)
    })
}

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) ip: IpAddr,
    pub(crate) tls: bool,
}

/// Connections of each address that is not this host's.
type Counts = Arc<Mutex<HashMap<IpAddr, u32>>>;

/// One connection of an address; dropping it makes room.
struct Counted(Option<(Counts, IpAddr)>);

impl Counted {
    fn take(counts: &Counts, ip: IpAddr, most: u32) -> Option<Self> {
        if ip.is_loopback() {
            return Some(Self(None));
        }
        let mut all = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(ip).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Self(Some((counts.clone(), ip))))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Some((counts, ip)) = &self.0 else { return };
        let mut all = counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(ip) {
            *count -= 1;
            if *count == 0 {
                all.remove(ip);
            }
        }
    }
}

pub(crate) async fn accept(shared: Arc<Shared>, listener: TcpListener, tls: Option<TlsAcceptor>) {
    let counts = Counts::default();
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // out of descriptors, or the peer was gone again: neither ends the listener
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let ip = from.ip().to_canonical();
        let (limit, each) = {
            let config = shared.config.borrow();
            (u64::from(config.gateway.max_connections), config.gateway.connections_per_address)
        };
        let Some(counted) = Counted::take(&counts, ip, each) else {
            shared.counters.connections_refused.fetch_add(1, Relaxed);
            turn_away(stream, tls.is_some()).await;
            continue;
        };
        if shared.counters.connections.fetch_add(1, Relaxed) >= limit {
            shared.counters.connections.fetch_sub(1, Relaxed);
            shared.counters.connections_refused.fetch_add(1, Relaxed);
            turn_away(stream, tls.is_some()).await;
            continue;
        }
        let (held, tls) = (shared.clone(), tls.clone());
        shared.tasks.spawn(async move {
            let _counted = counted;
            begin(&held, stream, ip, tls).await;
            held.counters.connections.fetch_sub(1, Relaxed);
        });
    }
}

/// Says why, without waiting for anything.
async fn turn_away(mut stream: TcpStream, encrypted: bool) {
    if encrypted {
        // an answer in plain text would be noise to it
        return;
    }
    const ANSWER: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    drop(tokio::time::timeout(Duration::from_millis(10), stream.write_all(ANSWER)).await);
}

async fn begin(shared: &Arc<Shared>, stream: TcpStream, ip: IpAddr, tls: Option<TlsAcceptor>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone at once");
        return;
    }
    // each way a place of its own size
    match tls {
        None => Box::pin(serve(shared, stream, Peer { ip, tls: false })).await,
        Some(tls) => Box::pin(encrypted(shared, stream, ip, tls)).await,
    }
}

async fn encrypted(shared: &Arc<Shared>, stream: TcpStream, ip: IpAddr, tls: TlsAcceptor) {
    match tokio::time::timeout(HEAD_TIME, tls.accept(stream)).await {
        Ok(Ok(stream)) => Box::pin(serve(shared, stream, Peer { ip, tls: true })).await,
        Ok(Err(error)) => tracing::debug!(%error, %ip, "no TLS connection came about"),
        Err(_) => tracing::debug!(%ip, "a TLS handshake took too long"),
    }
}

async fn serve(shared: &Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin, peer: Peer) {
    let service = service_fn(|request| {
        // a place of its own, given back with the answer's head: hyper keeps a service's future as long as the connection,
        // and thousands of these only listen
        let answer: BoxFuture<'_, _> = Box::pin(handle(shared.clone(), peer, request));
        answer.map(Ok::<_, std::convert::Infallible>)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_header_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shared.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(STOP_TIME, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}
