//! Bodies of answers: whole, passed on as they arrive, or written as server-sent events.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};
use tokio_util::task::AbortOnDropHandle;

use super::common::Held;
use super::load::{Call, Flow};
use super::wrap::Wrapped;
use crate::upstream::http;

/// Proxies and browsers drop a stream that is silent for long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// With a priming event: how soon a client whose stream broke off comes back, milliseconds (2025-11-25, basic/transports).
const RETRY: &str = "retry: 1000\n";
/// Events up to this are written as one piece.
const JOINED: usize = 16 << 10;

/// What hyper gets to write.
#[derive(Debug)]
pub(crate) enum Out {
    Full(Option<Bytes>),
    Proxied(Box<Proxied>),
    Events(Box<Events>),
    Wrapped(Box<Wrapped>),
    Later(Box<Later>),
}

impl Out {
    pub(crate) fn empty() -> Self {
        Self::Full(None)
    }

    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::Full((!bytes.is_empty()).then_some(bytes))
    }

    /// Counts its bytes, as they go out.
    pub(crate) fn counted(&mut self, flow: Flow) {
        match self {
            Self::Full(bytes) => flow.sent(bytes.as_ref().map_or(0, Bytes::len)),
            Self::Proxied(proxied) => proxied.flow = Some(flow),
            Self::Events(events) => events.flow = Some(flow),
            Self::Wrapped(wrapped) => wrapped.counted(flow),
            Self::Later(later) => later.counted(flow),
        }
    }
}

/// A stream that is there as soon as somebody has opened it; `None`: there will be none.
pub(crate) type Next = AbortOnDropHandle<Option<Out>>;

/// A client's stream of events whose server may come and go.
pub(crate) struct Later {
    now: Option<Out>,
    waiting: Option<Next>,
    next: Box<dyn FnMut() -> Next + Send + Sync>,
    keep_alive: Pin<Box<Sleep>>,
    flow: Option<Flow>,
}

impl std::fmt::Debug for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Later").field("now", &self.now).finish_non_exhaustive()
    }
}

impl Later {
    /// Nothing is open yet. `next` finds each stream after the one before.
    pub(crate) fn new(next: impl FnMut() -> Next + Send + Sync + 'static) -> Self {
        let keep_alive = Box::pin(tokio::time::sleep(KEEP_ALIVE));
        Self { now: None, waiting: None, next: Box::new(next), keep_alive, flow: None }
    }

    /// The first one is.
    pub(crate) fn begun(now: Out, next: impl FnMut() -> Next + Send + Sync + 'static) -> Self {
        Self { now: Some(now), ..Self::new(next) }
    }

    fn counted(&mut self, flow: Flow) {
        if let Some(now) = &mut self.now {
            now.counted(flow.clone());
        }
        self.flow = Some(flow);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, http::BodyError>>> {
        loop {
            if let Some(now) = &mut self.now {
                match ready!(Pin::new(now).poll_frame(cx)) {
                    Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
                    // a server's stream that breaks off is no reason for its client's to do so
                    Some(Err(error)) => tracing::debug!(%error, "a server broke its event stream off"),
                    Some(Ok(_)) => continue,
                    None => {}
                }
                self.now = None;
                self.keep_alive.as_mut().reset(Instant::now() + KEEP_ALIVE);
            }
            let Self { waiting, next, .. } = self;
            if let Poll::Ready(found) = Pin::new(waiting.get_or_insert_with(next)).poll(cx) {
                self.waiting = None;
                let Ok(Some(mut found)) = found else { return Poll::Ready(None) };
                if let Some(flow) = &self.flow {
                    found.counted(flow.clone());
                }
                self.now = Some(found);
                continue;
            }
            ready!(self.keep_alive.as_mut().poll(cx));
            self.keep_alive.as_mut().reset(Instant::now() + KEEP_ALIVE);
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b": keep-alive\n\n")))));
        }
    }
}

/// A server's answer on its way through. Its call ends with it.
#[derive(Debug)]
pub(crate) struct Proxied {
    inner: http::Body,
    call: Option<Call>,
    /// Event streams: what to say when the server breaks off, taken when said.
    farewell: Option<Bytes>,
    /// The last two bytes that went through: an event may only be added between events.
    last: [u8; 2],
    flow: Option<Flow>,
}

impl Proxied {
    pub(crate) fn new(inner: http::Body, call: Option<Call>, farewell: Option<Bytes>) -> Self {
        // a stream that breaks before its first event is at a boundary
        Self { inner, call, farewell, last: *b"\n\n", flow: None }
    }
}

/// One event to a client.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// Its id, when the stream can be resumed.
    pub(crate) id: Option<String>,
    /// One JSON-RPC message in one line; empty for a priming event.
    pub(crate) data: Bytes,
    /// The last one of its stream for one request.
    pub(crate) last: bool,
    /// A sign of life about the stream's own request, not something that waited for any stream.
    pub(crate) related: bool,
}

/// A stream of events to a client.
#[derive(Debug)]
pub(crate) struct Events {
    ready: VecDeque<Bytes>,
    from: Option<mpsc::Receiver<Event>>,
    keep_alive: Pin<Box<Sleep>>,
    /// Until the server says anything about the request.
    deadline: Option<(Pin<Box<Sleep>>, Timeout)>,
    call: Option<Call>,
    /// Whoever has to know that the client left.
    held: Option<Held>,
    flow: Option<Flow>,
}

/// What happens when a server says nothing in time.
pub(crate) struct Timeout {
    /// The event that tells.
    pub(crate) event: Bytes,
    /// Gives the request up.
    pub(crate) abandon: Box<dyn FnOnce() + Send + Sync>,
}

impl std::fmt::Debug for Timeout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Timeout")
    }
}

impl Events {
    pub(crate) fn new(first: impl IntoIterator<Item = Event>, from: mpsc::Receiver<Event>, call: Option<Call>) -> Self {
        let mut events = Self {
            ready: VecDeque::new(),
            from: Some(from),
            keep_alive: Box::pin(tokio::time::sleep(KEEP_ALIVE)),
            deadline: None,
            call,
            held: None,
            flow: None,
        };
        for event in first {
            events.write(&event);
        }
        events
    }

    pub(crate) fn with_deadline(mut self, at: Instant, timeout: Timeout) -> Self {
        self.deadline = Some((Box::pin(tokio::time::sleep_until(at)), timeout));
        self
    }

    /// The request is given up when the stream ends before its answer.
    pub(crate) fn holding(mut self, held: Held) -> Self {
        self.held = Some(held);
        self
    }

    fn write(&mut self, event: &Event) {
        let mut id = event.id.as_deref().map_or_else(String::new, |id| format!("id: {id}\n"));
        if event.data.is_empty() {
            id.push_str(RETRY);
        }
        if event.data.len() > JOINED {
            self.ready.push_back(Bytes::from(format!("{id}data: ")));
            self.ready.push_back(event.data.clone());
            self.ready.push_back(Bytes::from_static(b"\n\n"));
            return;
        }
        let mut out = BytesMut::with_capacity(id.len() + event.data.len() + 8);
        out.put(id.as_bytes());
        out.put(&b"data: "[..]);
        out.put(event.data.as_ref());
        out.put(&b"\n\n"[..]);
        self.ready.push_back(out.freeze());
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                if let Some(flow) = &self.flow {
                    flow.sent(bytes.len());
                }
                return Poll::Ready(Some(bytes));
            }
            let Some(from) = &mut self.from else {
                self.call = None;
                self.held = None;
                return Poll::Ready(None);
            };
            match from.poll_recv(cx) {
                Poll::Ready(Some(event)) => {
                    if event.related {
                        self.deadline = None;
                    }
                    self.keep_alive.as_mut().reset(Instant::now() + KEEP_ALIVE);
                    if event.last
                        && let Some(call) = &mut self.call
                    {
                        call.answered(&event.data);
                        if is_error(&event.data) {
                            call.fail();
                        }
                    }
                    self.write(&event);
                    continue;
                }
                Poll::Ready(None) => {
                    self.from = None;
                    continue;
                }
                Poll::Pending => {}
            }
            if let Some((sleep, _)) = &mut self.deadline
                && sleep.as_mut().poll(cx).is_ready()
                && let Some((_, timeout)) = self.deadline.take()
            {
                (timeout.abandon)();
                if let Some(call) = &mut self.call {
                    call.fail();
                }
                self.from = None;
                self.write(&Event { id: None, data: timeout.event, last: true, related: true });
                continue;
            }
            ready!(self.keep_alive.as_mut().poll(cx));
            self.keep_alive.as_mut().reset(Instant::now() + KEEP_ALIVE);
            return Poll::Ready(Some(Bytes::from_static(b": keep-alive\n\n")));
        }
    }
}

/// Whether a response is an error that the caller will count as one.
fn is_error(message: &[u8]) -> bool {
    sigil_core::jsonrpc::parse_one(message).is_ok_and(|head| head.error.is_some())
}

impl Body for Out {
    type Data = Bytes;
    type Error = http::BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, http::BodyError>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Events(events) => events.poll(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b)))),
            Self::Wrapped(wrapped) => wrapped.poll(cx),
            Self::Later(later) => later.poll(cx),
            Self::Proxied(proxied) => {
                let frame = ready!(Pin::new(&mut proxied.inner).poll_frame(cx));
                match &frame {
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            if let Some(flow) = &proxied.flow {
                                flow.sent(data.len());
                            }
                            if let Some(call) = &mut proxied.call {
                                call.answered(data);
                            }
                            if let [.., a, b] = data.as_ref() {
                                proxied.last = [*a, *b];
                            } else if let [b] = data.as_ref() {
                                proxied.last = [proxied.last[1], *b];
                            }
                        }
                        if proxied.inner.is_end_stream() {
                            proxied.call = None;
                        }
                    }
                    Some(Err(error)) => {
                        if let Some(call) = &mut proxied.call {
                            call.fail();
                        }
                        proxied.call = None;
                        let boundary = matches!(&proxied.last, b"\n\n" | b"\r\r" | b"\r\n");
                        if let Some(farewell) = proxied.farewell.take().filter(|_| boundary) {
                            tracing::debug!(%error, "a server broke its event stream off");
                            // hyper asks once more and the broken body then answers its end
                            return Poll::Ready(Some(Ok(Frame::data(farewell))));
                        }
                    }
                    None => proxied.call = None,
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Proxied(proxied) => proxied.inner.is_end_stream(),
            Self::Events(_) | Self::Later(_) => false,
            Self::Wrapped(wrapped) => wrapped.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Proxied(proxied) => proxied.inner.size_hint(),
            Self::Events(_) | Self::Later(_) => SizeHint::default(),
            Self::Wrapped(wrapped) => wrapped.size_hint(),
        }
    }
}
