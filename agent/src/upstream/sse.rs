//! Server-sent events, and the transport of 2024-11-05 built on them: a stream whose first event names the address to
//! post messages to.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::header::{self, HeaderMap};
use hyper::{Method, StatusCode};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::http::{self, Answer};
use super::{Conversation, Endpoint, MAX_LINE, Output, UpstreamError};

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// `message` when the server named none.
    pub(crate) event: String,
    pub(crate) data: String,
}

/// Splits a stream of bytes into events, wherever the bytes were cut.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    current: Event,
    has_data: bool,
    after_cr: bool,
    begun: bool,
    /// The id of the event that is being read, and of the last one that was read wholly.
    id: Option<String>,
    last_id: Option<String>,
    /// How long the server wants its client to wait before it comes back, milliseconds.
    retry: Option<u64>,
}

/// The event is larger than [`MAX_LINE`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

impl Parser {
    /// Takes more bytes; finished events are appended to `out`.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<Event>) -> Result<(), TooLong> {
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            let Some(end) = rest.iter().position(|b| matches!(b, b'\n' | b'\r')) else {
                self.line.extend_from_slice(rest);
                break;
            };
            let (head, tail) = rest.split_at(end);
            self.line.extend_from_slice(head);
            self.after_cr = tail.first() == Some(&b'\r');
            rest = tail.get(1..).unwrap_or_default();
            self.end_line(out);
        }
        if self.held() > MAX_LINE { Err(TooLong) } else { Ok(()) }
    }

    /// Bytes of an unfinished event.
    fn held(&self) -> usize {
        self.line.len() + self.current.data.len() + self.current.event.len()
    }

    fn end_line(&mut self, out: &mut Vec<Event>) {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        let text = if std::mem::replace(&mut self.begun, true) {
            text.as_ref()
        } else {
            text.strip_prefix('\u{feff}').unwrap_or(&text)
        };
        if text.is_empty() {
            if let Some(id) = self.id.take() {
                self.last_id = Some(id);
            }
            let mut event = std::mem::take(&mut self.current);
            if std::mem::take(&mut self.has_data) {
                if event.event.is_empty() {
                    event.event = "message".into();
                }
                out.push(event);
            }
            return;
        }
        let (field, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.current.data.push('\n');
                }
                self.has_data = true;
                self.current.data.push_str(value);
            }
            "event" => self.current.event = value.to_owned(),
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "retry" => self.retry = value.parse().ok().or(self.retry),
            _ => {}
        }
    }
}

/// Events of an answer that streams.
#[derive(Debug)]
pub(crate) struct Events {
    body: http::Body,
    parser: Parser,
    ready: std::collections::VecDeque<Event>,
}

impl Events {
    pub(crate) fn new(body: http::Body) -> Self {
        Self { body, parser: Parser::default(), ready: std::collections::VecDeque::new() }
    }

    /// What to resume after, and how long to wait before that: as far as the server said.
    pub(crate) fn position(&self) -> (Option<String>, Option<Duration>) {
        (self.parser.last_id.clone(), self.parser.retry.map(Duration::from_millis))
    }

    /// The next event; `None` at the stream's end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, String> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(format!("its event stream broke: {error}")),
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        let mut events = Vec::new();
                        let pushed = self.parser.push(bytes, &mut events);
                        self.ready.extend(events);
                        pushed.map_err(|TooLong| format!("it sent an event of more than {MAX_LINE} bytes"))?;
                    }
                }
            }
        }
    }
}

/// What a legacy SSE server sends.
#[derive(Debug)]
pub(crate) struct Channel {
    events: Events,
    failed: mpsc::Receiver<String>,
}

impl Channel {
    pub(crate) async fn next(&mut self) -> Result<Bytes, String> {
        loop {
            tokio::select! {
                Some(failure) = self.failed.recv() => return Err(failure),
                event = self.events.next() => match event? {
                    None => return Err("closed its event stream".into()),
                    Some(event) if event.event == "message" => return Ok(Bytes::from(event.data)),
                    Some(_) => {}
                },
            }
        }
    }
}

/// Longest wait for a legacy SSE server to name its address, and to take a posted message.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens the stream and waits for the address.
pub(crate) async fn connect(endpoint: &Arc<Endpoint>) -> Result<Conversation, UpstreamError> {
    let gate = |what: String| UpstreamError::Gate {
        what,
        hint: "a server of transport `sse` answers GET on its path with an event stream; set `transport: http` if it \
               speaks streamable HTTP"
            .into(),
    };
    let path = endpoint.spec.path.clone();
    let target = endpoint.carried.as_ref().map_or(path.as_str(), |carried| carried.target.as_str());
    let mut get = http::request(endpoint, Method::GET, target)
        .header(header::ACCEPT, "text/event-stream")
        .body(http::empty())
        .map_err(|e| gate(e.to_string()))?;
    carry(endpoint, get.headers_mut());
    let answer = tokio::time::timeout(PATIENCE, http::send(endpoint, get));
    let answer = match answer.await {
        Err(_) => return Err(gate(format!("GET {path} was not answered within {} s", PATIENCE.as_secs()))),
        Ok(Err(http::SendError::Dial(link))) => return Err(link.into()),
        Ok(Err(error)) => return Err(gate(format!("GET {path}: {error}"))),
        Ok(Ok(answer)) => answer,
    };
    if answer.status() != StatusCode::OK || !http::is_event_stream(answer.headers()) {
        return Err(gate(format!("GET {path} answers {}, no event stream", http::describe_answer(&answer))));
    }
    let mut events = Events::new(answer.into_body());
    let address = loop {
        match tokio::time::timeout(PATIENCE, events.next()).await {
            Ok(Ok(Some(event))) if event.event == "endpoint" => break event.data,
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Err(gate("it closed its event stream before it named an endpoint".into())),
            Ok(Err(why)) => return Err(gate(why)),
            Err(_) => return Err(gate("its event stream named no endpoint".into())),
        }
    };
    let target = resolve(endpoint, &address).ok_or_else(|| gate(format!("it names a foreign endpoint '{address}'")))?;
    let (input, mut queue) = mpsc::channel::<Bytes>(64);
    let (report, failed) = mpsc::channel(1);
    let poster = endpoint.clone();
    let end = CancellationToken::new();
    let ended = end.clone();
    endpoint.tasks.spawn(async move {
        loop {
            let message = tokio::select! {
                biased;
                message = queue.recv() => message,
                () = ended.cancelled() => return,
            };
            let Some(message) = message else { return };
            if let Err(why) = post(&poster, &target, message).await {
                // the reader may have ended; then nobody needs to know
                report.send(why).await.ok();
                return;
            }
        }
    });
    Ok(Conversation { input, output: Output::Sse(Channel { events, failed }), end })
}

/// The endpoint's path and query; only this server's own address is followed (an event must not aim us elsewhere).
fn resolve(endpoint: &Endpoint, address: &str) -> Option<String> {
    let base = format!("http://127.0.0.1:{}{}", endpoint.spec.port, endpoint.spec.path);
    let url = url::Url::parse(&base).ok()?.join(address.trim()).ok()?;
    let local = url.host_str().is_some_and(|h| sigil_core::route::is_loopback(h) || h == "[::1]" || h == "0.0.0.0");
    if !local || !matches!(url.scheme(), "http") {
        return None;
    }
    Some(url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path())))
}

fn carry(endpoint: &Endpoint, headers: &mut HeaderMap) {
    for (name, value) in endpoint.carried.iter().flat_map(|carried| &carried.headers) {
        headers.insert(name, value.clone());
    }
}

async fn post(endpoint: &Arc<Endpoint>, target: &str, message: Bytes) -> Result<(), String> {
    let mut request = http::request(endpoint, Method::POST, target)
        .header(header::CONTENT_TYPE, "application/json")
        .body(http::full(message))
        .map_err(|e| e.to_string())?;
    carry(endpoint, request.headers_mut());
    let answer: Answer = tokio::time::timeout(PATIENCE, http::send(endpoint, request))
        .await
        .map_err(|_| format!("did not take a message within {} s", PATIENCE.as_secs()))?
        .map_err(|e| e.to_string())?;
    let status = answer.status();
    drop(tokio::time::timeout(PATIENCE, answer.into_body().collect()).await);
    if status.is_success() { Ok(()) } else { Err(format!("refused a message with {status}")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(event: &str, data: &str) -> Event {
        Event { event: event.into(), data: data.into() }
    }

    #[test]
    fn events_however_they_are_cut() {
        let text = "\u{feff}: hello\r\nevent: endpoint\r\ndata: /m?x=1\r\n\r\nid: 3\ndata: a\ndata:b\n\nretry: 5\n\n\rdata\r\r";
        let want = vec![event("endpoint", "/m?x=1"), event("message", "a\nb"), event("message", "")];
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let mut out = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                parser.push(chunk, &mut out).unwrap();
            }
            assert_eq!(out, want, "cut every {size}");
            assert_eq!((parser.last_id.as_deref(), parser.retry), (Some("3"), Some(5)), "cut every {size}");
        }
    }

    /// Endless in every part of an event: what is kept is bounded, and what means nothing is not kept.
    #[test]
    fn endless_events_are_refused() {
        let data = |byte: u8| [b"data: ".as_slice(), &[byte; 1000], b"\n"].concat();
        let long_name = [b"event: ".as_slice(), &vec![b'x'; 12 << 20], b"\ndata: "].concat();
        for (first, then, refused) in [
            (Vec::new(), b"x".to_vec(), true),
            (Vec::new(), data(b'x'), true),
            // reading what is no UTF-8 makes three bytes of one
            (Vec::new(), data(0xff), true),
            (long_name, b"x".to_vec(), true),
            (data(b'x'), b": alive\r\n".to_vec(), false),
            (data(b'x'), b"id: 1\nretry: 5\n".to_vec(), false),
            (data(b'x'), b"event: x\n".to_vec(), false),
            (Vec::new(), b"event: x\n\n".to_vec(), false),
        ] {
            let (mut parser, mut out, mut most) = (Parser::default(), Vec::new(), 0);
            parser.push(&first, &mut out).unwrap();
            let chunk = then.repeat((1 << 20) / then.len());
            let outcome = (0..if refused { 20 } else { 2 }).any(|_| {
                let refused = parser.push(&chunk, &mut out) == Err(TooLong);
                most = most.max(parser.held());
                refused
            });
            let name = String::from_utf8_lossy(&then[..then.len().min(20)]);
            assert_eq!((outcome, out.len()), (refused, 0), "{name:?}");
            assert!(most <= if refused { MAX_LINE + 3 * chunk.len() } else { 2000 }, "{name:?}: {most}");
        }
    }

    /// The specification's words, in another way: no state, the whole stream at once.
    fn wanted(bytes: &[u8]) -> Vec<Event> {
        let mut text = Vec::new();
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' if at > 0 && bytes[at - 1] == b'\r' => {}
                b'\r' => text.push(b'\n'),
                byte => text.push(*byte),
            }
        }
        let mut lines: Vec<String> =
            text.split(|b| *b == b'\n').map(|l| String::from_utf8_lossy(l).into_owned()).collect();
        lines.pop();
        if let Some(first) = lines.first_mut() {
            *first = first.strip_prefix('\u{feff}').unwrap_or(first).to_owned();
        }
        let mut events = Vec::new();
        let ended = lines.iter().rposition(String::is_empty).map_or(0, |at| at + 1);
        for block in lines[..ended].split(String::is_empty) {
            let of = |name: &str| -> Vec<String> {
                let fields = block.iter().map(|line| line.split_once(':').unwrap_or((line, "")));
                let values = fields.filter(|(field, _)| *field == name);
                values.map(|(_, value)| value.strip_prefix(' ').unwrap_or(value).to_owned()).collect()
            };
            let data = of("data");
            if !data.is_empty() {
                let kind = of("event").pop().filter(|kind| !kind.is_empty());
                events.push(Event { event: kind.unwrap_or_else(|| "message".into()), data: data.join("\n") });
            }
        }
        events
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            6 => prop::sample::select(vec!["data", "data:", "data: ", "event:", "event: ", "id: ", "retry: 5", ":", " ", "\u{feff}"])
                .prop_map(|text| text.as_bytes().to_vec()),
            6 => prop::sample::select(vec!["\n", "\r\n", "\r", "\n\n", "\r\n\r\n"]).prop_map(|text| text.as_bytes().to_vec()),
            2 => "[a-z{}é😀]{0,4}".prop_map(String::into_bytes),
            1 => proptest::collection::vec(any::<u8>(), 0..4),
        ];
        proptest::collection::vec(word, 0..60).prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn streams_read_the_same_however_they_are_cut(bytes in stream(), sizes in proptest::collection::vec(1usize..20, 0..60)) {
            let (mut parser, mut out, mut rest) = (Parser::default(), Vec::new(), bytes.as_slice());
            let mut sizes = sizes.into_iter().chain(std::iter::repeat(usize::MAX));
            while !rest.is_empty() {
                let (chunk, more) = rest.split_at(sizes.next().unwrap_or(1).min(rest.len()));
                rest = more;
                prop_assert_eq!(parser.push(chunk, &mut out), Ok(()));
            }
            prop_assert_eq!(out, wanted(&bytes));
        }
    }
}
