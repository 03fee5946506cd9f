//! HTTP/1.1 to one replica over dialled sockets, kept alive and used again. A request goes out once: only one that
//! provably never left is tried on another connection. A GET has a connection of its own: it waits for events.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::unconstrained;

use super::Endpoint;
use super::stream::{self, Stream};
use crate::initlink::LinkError;

/// Idle connections kept to one replica.
const IDLE_MAX: usize = 64;
/// Node and uvicorn close an idle connection after 5 s; a connection that may be about to close would lose a call that
/// must not be sent twice.
const IDLE_LIFE: Duration = Duration::from_secs(2);

/// A connection and what moves its bytes. Whoever waits for an answer moves them: a task that did it for them would cost
/// every answer another task's turn, often on another core.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// None once the connection is over.
    driver: Option<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>,
}

impl Connection {
    /// Moves what can be moved now.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let Poll::Ready(ended) = Pin::new(driver).poll(cx)
        {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to a server ended");
            }
            self.driver = None;
        }
    }

    /// The same, and nobody is woken for it from now on: not whoever used it last, and not whoever is at it already.
    fn drive_quietly(&mut self) {
        self.drive(&mut quiet());
    }

    fn is_idle(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Sends a request and waits for the answer's head.
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Unsent> {
        self.drive_quietly();
        // what is polled with a waker that wakes nobody must not be put off by tokio's budget
        let mut sent = pin!(unconstrained(self.sender.try_send_request(request)));
        poll_fn(|cx| {
            self.drive(cx);
            // only what was moved just now can have brought the answer
            sent.as_mut().poll(&mut quiet())
        })
        .await
    }
}

fn quiet() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

type Unsent = TrySendError<Request<Full<Bytes>>>;

/// Idle connections.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Idle>);

#[derive(Debug, Default)]
struct Idle {
    /// The newest comes last.
    connections: Vec<(Box<Connection>, Instant)>,
    /// A task looks for those that are too old.
    swept: bool,
}

impl Idle {
    fn drop_old(&mut self) {
        let old = self.connections.partition_point(|(_, since)| since.elapsed() > IDLE_LIFE);
        self.connections.drain(..old);
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Box<Connection>> {
        loop {
            let (mut connection, since) = self.lock().connections.pop()?;
            if since.elapsed() > IDLE_LIFE {
                // the newest is too old, so all are
                self.lock().drop_old();
                return None;
            }
            // sees whether the server has closed it
            connection.drive_quietly();
            if connection.is_idle() {
                return Some(connection);
            }
        }
    }

    /// As when all were too old.
    #[cfg(test)]
    pub(crate) fn clear(&self) {
        self.lock().connections.clear();
    }

    fn give(endpoint: &Arc<Endpoint>, connection: Box<Connection>) {
        let mut idle = endpoint.pool.lock();
        if idle.connections.len() < IDLE_MAX {
            idle.connections.push((connection, Instant::now()));
        }
        if !std::mem::replace(&mut idle.swept, true) {
            endpoint.tasks.spawn(sweep(Arc::downgrade(endpoint)));
        }
    }
}

/// Closes connections that nobody has used for a while.
async fn sweep(endpoint: Weak<Endpoint>) {
    loop {
        tokio::time::sleep(IDLE_LIFE).await;
        let Some(endpoint) = endpoint.upgrade() else { return };
        let mut idle = endpoint.pool.lock();
        idle.drop_old();
        if idle.connections.is_empty() {
            idle.swept = false;
            return;
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
    connection: Option<(Box<Connection>, Arc<Endpoint>)>,
}

impl Pooled {
    fn ended(&mut self) {
        let Some((mut connection, endpoint)) = self.connection.take() else { return };
        // it has yet to notice that the answer is over
        connection.drive_quietly();
        if connection.is_idle() {
            Pool::give(&endpoint, connection);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut frame = Poll::Pending;
        if let Some((connection, _)) = &mut self.connection {
            // asking for a frame and bringing it both wake whoever waits: that is us, and we are here
            connection.drive_quietly();
            frame = Pin::new(&mut self.inner).poll_frame(&mut quiet());
            if frame.is_pending() {
                connection.drive(cx);
            }
        }
        if frame.is_pending() {
            frame = Pin::new(&mut self.inner).poll_frame(&mut quiet());
        }
        match ready!(&frame) {
            None => self.ended(),
            Some(Err(_)) => self.connection = None,
            Some(Ok(_)) => {
                if self.inner.is_end_stream() {
                    self.ended();
                }
            }
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(BodyError::from)))
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
        match connection.send(request).await {
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

async fn connect(endpoint: &Arc<Endpoint>) -> Result<Box<Connection>, SendError> {
    let stream = endpoint.wire.dial(endpoint.spec.port).await?;
    let (sender, driver) = http1::Builder::new()
        .max_header_size(64 << 10)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| LinkError::Io(e.to_string()))?;
    Ok(Box::new(Connection { sender, driver: Some(driver) }))
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

#[cfg(test)]
mod tests;
