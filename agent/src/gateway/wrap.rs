//! What goes around an answer on its way out: the caller's view of lists of tools, the places it holds until its end, and
//! its line in the access log. Answers that need none of it are not wrapped.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use serde_json::value::RawValue;
use sigil_core::jsonrpc::{self, Head, Params};
use sigil_core::policy::Scope;

use super::body::Out;
use super::caching::Keeping;
use super::caller::Caller;
use super::limits::Permits;
use super::load::Flow;
use super::mask::Masking;
use super::remembered::Learning;
use super::table::Entry;
use super::tap::Tapping;
use super::trace::{Carried, Trace};
use crate::upstream::{MAX_LINE, http};

/// An answer and what goes around it. What few answers have is boxed: an idle stream holds on to one of these for hours.
#[derive(Debug)]
pub(crate) struct Wrapped {
    inner: Out,
    shaping: Option<Shaping>,
    /// Given back when the answer has gone out, or its client.
    _permits: Permits,
    line: Option<Box<Line>>,
    tapping: Option<Box<Tapping>>,
    learning: Option<Box<Learning>>,
    keeping: Option<Box<Keeping>>,
    /// Over when the answer is; behind `inner`, whose part of it ends first.
    trace: Option<Box<Trace>>,
    masking: Option<Box<Masking>>,
}

impl Wrapped {
    pub(crate) fn new(inner: Out, shaping: Option<Shaping>, permits: Permits, line: Option<Box<Line>>) -> Self {
        Self {
            inner,
            shaping,
            _permits: permits,
            line,
            tapping: None,
            learning: None,
            keeping: None,
            masking: None,
            trace: None,
        }
    }

    pub(crate) fn counted(&mut self, flow: Flow) {
        self.inner.counted(flow);
    }

    /// Its request's span ends with it.
    pub(crate) fn traced(mut self, trace: Option<Box<Trace>>) -> Self {
        self.trace = trace;
        self
    }

    /// Somebody looks at it.
    pub(crate) fn tapped(mut self, tapping: Option<Tapping>) -> Self {
        self.tapping = tapping.map(Box::new);
        self
    }

    /// What its server says is kept.
    pub(crate) fn learning(mut self, learning: Learning) -> Self {
        self.learning = Some(Box::new(learning));
        self
    }

    /// It is looked at for the cache.
    pub(crate) fn keeping(mut self, keeping: Keeping) -> Self {
        self.keeping = Some(Box::new(keeping));
        self
    }

    /// The secrets that were added to the request are kept out of it.
    pub(crate) fn masked(mut self, masking: Option<Masking>) -> Self {
        self.masking = masking.map(Box::new);
        self
    }

    fn masked_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, http::BodyError>>> {
        let Some(masking) = &mut self.masking else { return Pin::new(&mut self.inner).poll_frame(cx) };
        loop {
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => masking.push(data),
                    // trailers say nothing of JSON
                    Err(_) => masking.finish(),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if masking.is_empty() => return Poll::Ready(None),
                None => masking.finish(),
            };
            if !frame.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, http::BodyError>>> {
        loop {
            let polled = ready!(self.masked_frame(cx));
            let frame = match &mut self.shaping {
                None => polled,
                Some(shaping) => match polled {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => match shaping.push(&data) {
                            Ok(out) if out.is_empty() => continue,
                            Ok(out) => Some(Ok(Frame::data(out))),
                            Err(TooLong) => {
                                tracing::warn!("an answer is too long to be looked at; it was cut");
                                self.inner = Out::empty();
                                None
                            }
                        },
                        Err(frame) => Some(Ok(frame)),
                    },
                    Some(Err(error)) => Some(Err(error)),
                    None => {
                        let rest = shaping.finish();
                        (!rest.is_empty()).then(|| Ok(Frame::data(rest)))
                    }
                },
            };
            if let (Some(line), Some(Ok(frame))) = (&mut self.line, &frame) {
                line.bytes += frame.data_ref().map_or(0, |d| d.len() as u64);
            }
            if let (Some(tapping), Some(Ok(frame))) = (&mut self.tapping, &frame) {
                tapping.push(frame.data_ref().map_or(&[][..], |d| d.as_ref()));
            }
            if let (Some(learning), Some(Ok(frame))) = (&mut self.learning, &frame) {
                learning.push(frame.data_ref().map_or(&[][..], |d| d.as_ref()));
            }
            if let (Some(keeping), Some(Ok(frame))) = (&mut self.keeping, &frame) {
                keeping.push(frame.data_ref().map_or(&[][..], |d| d.as_ref()));
            }
            return Poll::Ready(frame);
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
            && self.masking.as_ref().is_none_or(|m| m.is_empty())
            && self.shaping.as_ref().is_none_or(|s| s.kept.is_empty())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        if self.shaping.is_some() { SizeHint::default() } else { self.inner.size_hint() }
    }
}

/// One request's line in the access log; written when its answer has ended.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) start: Instant,
    pub(crate) id: String,
    pub(crate) peer: IpAddr,
    pub(crate) caller: String,
    pub(crate) deployment: String,
    pub(crate) http: String,
    /// JSON-RPC method, and the tool of a call.
    pub(crate) method: String,
    pub(crate) tool: String,
    pub(crate) trace: String,
    pub(crate) status: u16,
    /// Why the gateway refused it; empty: it did not.
    pub(crate) code: &'static str,
    /// Whether a kept answer was looked for and found; empty: none was looked for.
    pub(crate) cache: &'static str,
    pub(crate) bytes: u64,
}

impl Line {
    pub(crate) fn new(deployment: &str, peer: IpAddr, request: &hyper::Request<hyper::body::Incoming>) -> Self {
        let text = |name: &str| {
            let value = request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
            value.chars().take(128).collect::<String>()
        };
        let id = text("x-request-id");
        Self {
            start: Instant::now(),
            id: if id.is_empty() { ulid::Ulid::generate().to_string() } else { id },
            peer,
            caller: String::new(),
            deployment: deployment.to_owned(),
            http: request.method().to_string(),
            method: String::new(),
            tool: String::new(),
            trace: text("traceparent"),
            status: 0,
            code: "",
            cache: "",
            bytes: 0,
        }
    }

    /// What the message is; a trace context of the body goes where the header has none (2026-07-28, `_meta`).
    pub(crate) fn read(&mut self, head: &Head<'_>) {
        let short = |text: &str| text.chars().take(128).collect::<String>();
        self.method = short(&head.method);
        let params = Params::read(head.params);
        if matches!(self.method.as_str(), "tools/call" | "prompts/get") {
            self.tool = params.name.and_then(jsonrpc::string).map(|name| short(&name)).unwrap_or_default();
        }
        if self.trace.is_empty() {
            self.trace = Carried::of(&params).parent().map(|text| short(&text)).unwrap_or_default();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        tracing::info!(
            target: "sigil::access",
            id = self.id,
            peer = %self.peer,
            caller = self.caller,
            deployment = self.deployment,
            http = self.http,
            method = self.method,
            tool = self.tool,
            trace = self.trace,
            status = self.status,
            code = self.code,
            cache = self.cache,
            ms = self.start.elapsed().as_secs_f64() * 1e3,
            bytes = self.bytes,
            "request"
        );
    }
}

/// One message is longer than a message may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Puts lists of tools into their caller's view, in a JSON answer or event by event.
#[derive(Debug)]
pub(crate) struct Shaping {
    entry: Arc<Entry>,
    caller: Arc<Caller>,
    events: bool,
    kept: BytesMut,
    /// How far `kept` has been searched for the end of an event.
    searched: usize,
}

impl Shaping {
    /// `events`: the answer is an event stream; `lists`: the request asks for tools. `None` when this caller sees what the
    /// server says.
    pub(crate) fn new(entry: &Arc<Entry>, caller: &Arc<Caller>, events: bool, lists: bool) -> Option<Self> {
        // a stream may carry the answer to another request, too
        let wanted = entry.rules.shapes() || caller.scope.narrows() || ((lists || events) && entry.watched.watches());
        wanted.then(|| Self {
            entry: entry.clone(),
            caller: caller.clone(),
            events,
            kept: BytesMut::new(),
            searched: 0,
        })
    }

    fn push(&mut self, data: &[u8]) -> Result<Bytes, TooLong> {
        self.kept.extend_from_slice(data);
        let mut out = BytesMut::new();
        while let Some(end) = self.events.then(|| self.end()).flatten() {
            let event = self.kept.split_to(end);
            self.searched = 0;
            out.extend_from_slice(&shape_event(&self.entry, &self.caller.scope, &event));
        }
        if self.kept.is_empty() {
            // an empty one holds the buffer of the last event
            self.kept = BytesMut::new();
        }
        if self.kept.len() > MAX_LINE { Err(TooLong) } else { Ok(out.freeze()) }
    }

    /// Where the first whole event ends: behind a line without text.
    fn end(&mut self) -> Option<usize> {
        // an end may begin in what was searched before
        let from = self.searched.saturating_sub(3);
        let text = self.kept.get(from..).unwrap_or_default();
        let found = memchr::memchr2_iter(b'\n', b'\r', text).find_map(|i| {
            let rest = text.get(i..).unwrap_or_default();
            [&b"\n\n"[..], b"\r\r", b"\n\r\n"].iter().find(|end| rest.starts_with(end)).map(|end| i + end.len())
        });
        self.searched = self.kept.len();
        found.map(|at| from + at)
    }

    fn finish(&mut self) -> Bytes {
        let rest = std::mem::take(&mut self.kept);
        if rest.is_empty() {
            return Bytes::new();
        }
        if self.events {
            return shape_event(&self.entry, &self.caller.scope, &rest);
        }
        match std::str::from_utf8(&rest).ok().and_then(|text| shape_body(&self.entry, &self.caller.scope, text)) {
            Some(shaped) => shaped.into(),
            None => rest.freeze(),
        }
    }
}

/// A message in its caller's view; `None`: as it is.
pub(crate) fn shape(entry: &Entry, scope: &Scope, message: &str) -> Option<String> {
    let kept = entry.watched.filter(entry.id, message, &entry.teller);
    if !(entry.rules.shapes() || scope.narrows()) {
        return kept;
    }
    entry.rules.shape(kept.as_deref().unwrap_or(message), &entry.name, scope).or(kept)
}

fn shape_body(entry: &Entry, scope: &Scope, text: &str) -> Option<String> {
    if !text.trim_ascii_start().starts_with('[') {
        return shape(entry, scope, text);
    }
    // a batch of 2025-03-26
    let parts: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    let shaped: Vec<String> =
        parts.iter().map(|p| shape(entry, scope, p.get()).unwrap_or_else(|| p.get().to_owned())).collect();
    Some(format!("[{}]", shaped.join(",")))
}

fn shape_event(entry: &Entry, scope: &Scope, event: &[u8]) -> Bytes {
    let as_it_is = || Bytes::copy_from_slice(event);
    let Ok(text) = std::str::from_utf8(event) else { return as_it_is() };
    if !text.contains("\"tools\"") {
        return as_it_is();
    }
    let lines = text.split(['\n', '\r']).filter(|line| !line.is_empty());
    let (data, others): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with("data:"));
    let value = |line: &&str| {
        let value = line.get(5..).unwrap_or_default();
        value.strip_prefix(' ').unwrap_or(value).to_owned()
    };
    let message = data.iter().map(value).collect::<Vec<_>>().join("\n");
    let Some(shaped) = shape_body(entry, scope, &message) else { return as_it_is() };
    let mut out = String::with_capacity(shaped.len() + 64);
    for line in others {
        out.push_str(line);
        out.push('\n');
    }
    for line in shaped.split('\n') {
        out.push_str("data: ");
        out.push_str(line);
        out.push('\n');
    }
    out.push('\n');
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::table::tests::entry;

    const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a"},{"name":"b"}]}}"#;
    const SHAPED: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a"}]}}"#;

    fn shaping(events: bool) -> Shaping {
        let entry = Arc::new(entry("time", r#"{"tools":{"deny":["b"]}}"#));
        Shaping::new(&entry, &Arc::new(Caller::anonymous()), events, false).unwrap()
    }

    fn through(mut shaping: Shaping, text: &str, step: usize) -> String {
        let mut out = Vec::new();
        for part in text.as_bytes().chunks(step) {
            out.extend_from_slice(&shaping.push(part).unwrap());
        }
        out.extend_from_slice(&shaping.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn answers_are_shaped_wherever_they_are_cut() {
        let stream = format!("id: 1\ndata: {LIST}\n\n: alive\n\nretry: 5\r\ndata: {LIST}\r\n\r\ndata: {{}}\n\n");
        let wanted = format!("id: 1\ndata: {SHAPED}\n\n: alive\n\nretry: 5\ndata: {SHAPED}\n\ndata: {{}}\n\n");
        for step in [1, 2, 7, 64, 4096] {
            assert_eq!(through(shaping(true), &stream, step), wanted, "{step}");
            assert_eq!(through(shaping(false), LIST, step), SHAPED, "{step}");
            assert_eq!(through(shaping(false), &format!("[{LIST},3]"), step), format!("[{SHAPED},3]"));
        }
        // two lines of data are one message, and a stream that breaks off is still looked at
        let (head, tail) = LIST.split_at(17);
        assert_eq!(
            through(shaping(true), &format!("data:{head}\ndata:{tail}"), 3),
            format!("data: {head}\ndata: {}\n\n", &SHAPED[17..])
        );
    }

    #[test]
    fn what_is_too_long_is_not_held() {
        let mut shaping = shaping(true);
        let block = vec![b'x'; 1 << 20];
        assert!((0..=MAX_LINE >> 20).any(|_| shaping.push(&block) == Err(TooLong)));
    }
}
