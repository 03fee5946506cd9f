//! HTTP/1.1 to one replica over dialled sockets, kept alive and used again. A request goes out once: only one that
//! provably never left is tried on another connection. A GET has a connection of its own: it waits for events.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;

use super::Endpoint;
use super::stream::{self, Stream};
use crate::initlink::LinkError;

/// Idle connections kept to one replica.
const IDLE_MAX: usize = 64;
/// Node and uvicorn close an idle connection after 5 s; a connection that may be about to close would lose a call that
/// must not be sent twice.
const IDLE_LIFE: Duration = Duration::from_secs(2);

type Connection = SendRequest<Full<Bytes>>;

/// Idle connections.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<Vec<(Connection, Instant)>>,
}

impl Pool {
    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((connection, since)) = idle.pop() {
            if since.elapsed() > IDLE_LIFE {
                // the newest is too old, so all are
                idle.clear();
                return None;
            }
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn give(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !connection.is_closed() {
            idle.push((connection, Instant::now()));
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// Not sent: nothing could be connected to.
    #[error(transparent)]
    Dial(#[from] LinkError),
    /// Sent, perhaps acted upon, never answered.
    #[error("the connection ended before an answer came ({0})")]
    Lost(String),
}

/// An answer whose body gives the connection back when it has ended.
pub(crate) type Answer = Response<Body>;

/// An answer's body, as it arrives.
#[derive(Debug)]
pub(crate) enum Body {
    /// Over a connection that others use afterwards.
    Pooled(Pooled),
    /// Over one of its own.
    Stream(Box<Stream>),
}

/// How a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// As hyper says it.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// On a connection of its own.
    #[error(transparent)]
    Stream(#[from] std::io::Error),
}

/// An answer's body over a pooled connection.
#[derive(Debug)]
pub(crate) struct Pooled {
    inner: Incoming,
    connection: Option<(Connection, Arc<Endpoint>)>,
}

impl Pooled {
    fn ended(&mut self) {
        if let Some((connection, endpoint)) = self.connection.take() {
            if connection.is_ready() {
                endpoint.pool.give(connection);
            } else if !connection.is_closed() {
                // its task has yet to notice that the answer is over
                let tasks = endpoint.tasks.clone();
                tasks.spawn(async move {
                    let mut connection = connection;
                    if connection.ready().await.is_ok() {
                        endpoint.pool.give(connection);
                    }
                });
            }
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            None => self.ended(),
            Some(Err(_)) => self.connection = None,
            Some(Ok(_)) => {
                if self.inner.is_end_stream() {
                    self.ended();
                }
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Pooled(body) => body.poll_frame(cx),
            Self::Stream(body) => Pin::new(body.as_mut()).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Pooled(body) => body.inner.is_end_stream(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Pooled(body) => body.inner.size_hint(),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// A request to this replica, `target` being path and query.
pub(crate) fn request(endpoint: &Endpoint, method: Method, target: &str) -> request::Builder {
    Request::builder().method(method).uri(target).header(header::HOST, host(endpoint.spec.port))
}

/// What servers that guard against DNS rebinding want to be called.
pub(crate) fn host(port: u16) -> HeaderValue {
    HeaderValue::try_from(format!("127.0.0.1:{port}")).unwrap_or(HeaderValue::from_static("127.0.0.1"))
}

/// No body.
pub(crate) fn empty() -> Full<Bytes> {
    Full::default()
}

/// A whole body.
pub(crate) fn full(bytes: Bytes) -> Full<Bytes> {
    Full::new(bytes)
}

/// Sends a request and waits for the answer's head. Time limits are the caller's.
pub(crate) async fn send(endpoint: &Arc<Endpoint>, mut request: Request<Full<Bytes>>) -> Result<Answer, SendError> {
    if request.method() == Method::GET {
        let connection = endpoint.wire.dial(endpoint.spec.port).await?;
        let answer = stream::open(connection, &request).await.map_err(|error| SendError::Lost(error.to_string()))?;
        return Ok(answer.map(|body| Body::Stream(Box::new(body))));
    }
    loop {
        let pooled = endpoint.pool.take();
        let fresh = pooled.is_none();
        let mut connection = match pooled {
            Some(connection) => connection,
            None => connect(endpoint).await?,
        };
        match connection.try_send_request(request).await {
            Ok(answer) => {
                let connection = Some((connection, endpoint.clone()));
                return Ok(answer.map(|inner| {
                    let mut body = Pooled { inner, connection };
                    if body.inner.is_end_stream() {
                        body.ended();
                    }
                    Body::Pooled(body)
                }));
            }
            Err(mut error) => match error.take_message() {
                // hyper gives a request back only when no byte of it was written
                Some(unsent) if !fresh => request = unsent,
                Some(_) => return Err(SendError::Dial(LinkError::Io(error.error().to_string()))),
                None => return Err(SendError::Lost(words(error.error()))),
            },
        }
    }
}

async fn connect(endpoint: &Arc<Endpoint>) -> Result<Connection, SendError> {
    let stream = endpoint.wire.dial(endpoint.spec.port).await?;
    let (connection, driver) = http1::Builder::new()
        .max_header_size(64 << 10)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| LinkError::Io(e.to_string()))?;
    endpoint.tasks.spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "a connection to a server ended");
        }
    });
    Ok(connection)
}

/// An error with its causes: hyper's own text alone says little.
fn words(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// Whether an answer streams events.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    media_type(headers) == "text/event-stream"
}

/// The media type without parameters, lower case; empty when there is none.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Status and media type, for an error.
pub(crate) fn describe_answer(answer: &Answer) -> String {
    let kind = media_type(answer.headers());
    if kind.is_empty() { answer.status().to_string() } else { format!("{} with {kind}", answer.status()) }
}
