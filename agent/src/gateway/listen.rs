//! The listener: limits that hold before a request exists.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

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

pub(crate) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // out of descriptors, or the peer was gone again: neither ends the listener
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let limit = u64::from(shared.config.borrow().gateway.max_connections);
        if shared.counters.connections.fetch_add(1, Relaxed) >= limit {
            shared.counters.connections.fetch_sub(1, Relaxed);
            shared.counters.connections_refused.fetch_add(1, Relaxed);
            turn_away(stream).await;
            continue;
        }
        let held = shared.clone();
        shared.tasks.spawn(async move {
            serve(&held, stream).await;
            held.counters.connections.fetch_sub(1, Relaxed);
        });
    }
}

/// Says why, without waiting for anything.
async fn turn_away(mut stream: TcpStream) {
    const ANSWER: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    drop(tokio::time::timeout(Duration::from_millis(10), stream.write_all(ANSWER)).await);
}

async fn serve(shared: &Arc<Shared>, stream: TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone at once");
        return;
    }
    let service = service_fn(|request| {
        let shared = shared.clone();
        async move { Ok::<_, std::convert::Infallible>(handle(shared, request).await) }
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
