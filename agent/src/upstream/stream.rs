//! A GET to one replica, on a connection of its own that keeps nothing while nothing comes. Thousands of these only wait
//! for events: hyper's client would hold two buffers, a queue and a task for each, 20 KiB more. Framing as RFC 9112 has it
//! (sections 6.3 and 7.1); httparse reads heads and chunk sizes.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::body::{Frame, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::http::BodyError;

/// Largest head of an answer, bytes.
const HEAD_MAX: usize = 64 << 10;
/// As many headers as hyper reads.
const HEADERS_MAX: usize = 100;
/// Longest line of a chunk's size with its extensions, and all trailers together, bytes.
const LINE_MAX: usize = 8 << 10;
/// Read at once, bytes; a place on the stack.
const ROOM: usize = 16 << 10;

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no HTTP/1.1: {0}")]
pub(crate) struct Malformed(&'static str);

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> Self {
        Self::new(io::ErrorKind::InvalidData, malformed)
    }
}

/// The body of an answer to a GET.
#[derive(Debug)]
pub(crate) struct Stream {
    /// None once the body is over.
    io: Option<TcpStream>,
    framing: Framing,
    /// What came with the head.
    first: Bytes,
}

/// Sends `request`, which has no body, and waits for the head of its answer. Time limits are the caller's.
pub(crate) async fn open<B>(mut io: TcpStream, request: &Request<B>) -> io::Result<Response<Stream>> {
    io.write_all(&written(request)).await?;
    let mut buffer = BytesMut::with_capacity(1 << 10);
    loop {
        if let Some((mut head, length)) = read_head(&buffer)? {
            buffer.advance(length);
            if head.status().is_informational() {
                // the real one follows (RFC 9110, section 15.2)
                if head.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return Err(Malformed("it switches to a protocol that nobody asked for").into());
                }
                continue;
            }
            let mut framing = Framing::of(&head)?;
            if framing.state == State::Size {
                // the coding overrides a length, which must not travel on (section 6.3)
                head.headers_mut().remove(header::CONTENT_LENGTH);
            }
            let mut first = BytesMut::new();
            framing.decode(&buffer, &mut first)?;
            let io = (framing.state != State::Over).then_some(io);
            return Ok(head.map(|()| Stream { io, framing, first: first.freeze() }));
        }
        if buffer.len() >= HEAD_MAX {
            return Err(Malformed("the head of its answer is too long").into());
        }
        if io.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A request's head as it goes over the wire.
fn written<B>(request: &Request<B>) -> Vec<u8> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let mut out = Vec::with_capacity(512);
    for part in [request.method().as_str(), " ", target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in request.headers() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// The head and its length, once it is there as a whole. Nothing of it refers to `buffer`.
fn read_head(buffer: &[u8]) -> Result<Option<(Response<()>, usize)>, Malformed> {
    let mut room = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut room);
    let length = match parsed.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed("it has too many headers")),
        Err(_) => return Err(Malformed("the head of its answer cannot be read")),
    };
    let mut head = Response::new(());
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    *head.status_mut() = status.ok_or(Malformed("its status is none"))?;
    *head.version_mut() = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let headers = head.headers_mut();
    for header in parsed.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(header.value)) else {
            return Err(Malformed("a header of it cannot be read"));
        };
        headers.append(name, value);
    }
    Ok(Some((head, length)))
}

/// Where in a body its reader is.
#[derive(Debug)]
struct Framing {
    state: State,
    /// The part of a line that is there: no place while there is none.
    line: Vec<u8>,
    /// Bytes of trailers so far.
    trailers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Bytes still to come, and no chunks.
    Length(u64),
    /// All until the connection ends.
    Close,
    /// A chunk's size comes.
    Size,
    /// Bytes of a chunk still to come.
    Data(u64),
    /// The line's end behind a chunk.
    DataEnd,
    /// Trailers, up to an empty line.
    Trailer,
    Over,
}

impl Framing {
    /// RFC 9112, section 6.3.
    fn of(head: &Response<()>) -> Result<Self, Malformed> {
        let bodiless = matches!(head.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let state = if bodiless {
            State::Over
        } else if head.headers().contains_key(header::TRANSFER_ENCODING) {
            Self::encoded(head)?
        } else {
            match length(head.headers())? {
                Some(0) => State::Over,
                Some(length) => State::Length(length),
                None => State::Close,
            }
        };
        Ok(Self { state, line: Vec::new(), trailers: 0 })
    }

    fn encoded(head: &Response<()>) -> Result<State, Malformed> {
        if head.version() == Version::HTTP_10 {
            // section 6.1: its framing is faulty
            return Err(Malformed("a transfer coding in HTTP/1.0"));
        }
        let mut all = head.headers().get_all(header::TRANSFER_ENCODING).iter();
        match (all.next().map(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")), all.next()) {
            (Some(true), None) => Ok(State::Size),
            // none was offered
            _ => Err(Malformed("its transfer coding is not known")),
        }
    }

    /// Puts what of `input` is content behind `out`.
    fn decode(&mut self, mut input: &[u8], out: &mut BytesMut) -> Result<(), Malformed> {
        while !input.is_empty() {
            match self.state {
                // nobody asked for what is behind the end
                State::Over => return Ok(()),
                State::Close => {
                    out.extend_from_slice(input);
                    return Ok(());
                }
                State::Length(left) | State::Data(left) => {
                    let now = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let (content, rest) = input.split_at(now);
                    out.extend_from_slice(content);
                    input = rest;
                    let left = left - now as u64;
                    self.state = match self.state {
                        State::Length(_) if left == 0 => State::Over,
                        State::Length(_) => State::Length(left),
                        _ if left == 0 => State::DataEnd,
                        _ => State::Data(left),
                    };
                }
                State::Size | State::DataEnd | State::Trailer => {
                    let end = input.iter().position(|byte| *byte == b'\n').map_or(input.len(), |at| at + 1);
                    let (part, rest) = input.split_at(end);
                    input = rest;
                    if self.line.len() + part.len() + self.trailers > LINE_MAX {
                        return Err(Malformed("a line between its chunks is too long"));
                    }
                    self.line.extend_from_slice(part);
                    if self.line.ends_with(b"\n") {
                        // given back: most of the time nothing comes
                        let line = std::mem::take(&mut self.line);
                        self.state = self.behind(&line)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What follows a whole line.
    fn behind(&mut self, line: &[u8]) -> Result<State, Malformed> {
        let empty = line == b"\r\n";
        match self.state {
            State::Size => match httparse::parse_chunk_size(line) {
                Ok(httparse::Status::Complete((_, 0))) => Ok(State::Trailer),
                Ok(httparse::Status::Complete((_, size))) => Ok(State::Data(size)),
                _ => Err(Malformed("the size of a chunk cannot be read")),
            },
            State::DataEnd if empty => Ok(State::Size),
            State::DataEnd => Err(Malformed("a chunk is longer than it said")),
            _ if empty => Ok(State::Over),
            _ => {
                self.trailers += line.len();
                Ok(State::Trailer)
            }
        }
    }
}

/// The length that is told; several that differ are no length.
fn length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut told = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let text = value.to_str().unwrap_or_default();
        for one in text.split(',').map(str::trim) {
            let digits = !one.is_empty() && one.bytes().all(|b| b.is_ascii_digit());
            let one = one.parse::<u64>().ok().filter(|_| digits).ok_or(Malformed("its length is none"))?;
            if told.replace(one).is_some_and(|before| before != one) {
                return Err(Malformed("it tells two lengths"));
            }
        }
    }
    Ok(told)
}

impl Stream {
    fn over(&mut self) {
        self.framing.state = State::Over;
        self.io = None;
    }
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.first)))));
        }
        loop {
            let Some(io) = &mut self.io else { return Poll::Ready(None) };
            let mut room = [const { MaybeUninit::<u8>::uninit() }; ROOM];
            let mut read = ReadBuf::uninit(&mut room);
            if let Err(error) = ready!(Pin::new(io).poll_read(cx, &mut read)) {
                self.over();
                return Poll::Ready(Some(Err(error.into())));
            }
            let read = read.filled();
            if read.is_empty() {
                let whole = self.framing.state == State::Close;
                self.over();
                return Poll::Ready((!whole).then(|| Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())));
            }
            let mut out = BytesMut::with_capacity(read.len());
            let decoded = self.framing.decode(read, &mut out);
            if let Err(malformed) = decoded {
                self.over();
                return Poll::Ready(Some(Err(io::Error::from(malformed).into())));
            }
            if self.framing.state == State::Over {
                self.over();
            }
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.freeze()))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.io.is_none() && self.first.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.len() as u64;
        match self.framing.state {
            State::Length(left) => SizeHint::with_exact(first + left),
            State::Over => SizeHint::with_exact(first),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    /// What a client gets of `parts`, each written by itself, then the connection closed.
    async fn asked(parts: Vec<Vec<u8>>) -> io::Result<(Response<()>, Result<Bytes, String>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let io = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.set_nodelay(true).unwrap();
        let request = Request::get("/mcp?a=1").header("host", "127.0.0.1:1").header("accept", "*/*").body(()).unwrap();
        let server = tokio::spawn(async move {
            let mut head = BytesMut::new();
            while !head.ends_with(b"\r\n\r\n") {
                server.read_buf(&mut head).await.unwrap();
            }
            for part in parts {
                // a client that has seen enough may be gone
                server.write_all(&part).await.ok();
                tokio::task::yield_now().await;
            }
            head
        });
        let opened = open(io, &request).await;
        let head = server.await.unwrap();
        assert_eq!(head, "GET /mcp?a=1 HTTP/1.1\r\nhost: 127.0.0.1:1\r\naccept: */*\r\n\r\n");
        let (head, body) = opened?.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).map_err(|error| error.to_string());
        Ok((Response::from_parts(head, ()), body))
    }

    async fn all(text: &str) -> io::Result<(Response<()>, Result<Bytes, String>)> {
        asked(vec![text.as_bytes().to_vec()]).await
    }

    #[tokio::test]
    async fn every_framing_is_read() {
        for (text, body) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcd", "abc"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3, 3\r\n\r\nabc", "abc"),
            ("HTTP/1.1 200 OK\r\n\r\nto the end", "to the end"),
            ("HTTP/1.0 200 OK\r\n\r\nold", "old"),
            ("HTTP/1.1 204 No Content\r\n\r\n", ""),
            ("HTTP/1.1 405 No\r\ncontent-length: 0\r\n\r\n", ""),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n2\r\nab\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nt: 1\r\n\r\n",
                "ab0123456789",
            ),
            ("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nz", "z"),
        ] {
            let (_, got) = all(text).await.unwrap();
            assert_eq!(got.as_deref(), Ok(body.as_bytes()), "{text}");
        }
        let (head, got) =
            all("HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
                .await
                .unwrap();
        assert_eq!((got.as_deref(), head.headers().get("content-length")), (Ok(&b"a"[..]), None));
    }

    #[tokio::test]
    async fn a_faulty_answer_is_an_error_and_no_shorter_body() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "no http\r\n\r\n",
            "HTTP/1.1 200",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        ] {
            assert!(all(text).await.is_err(), "{text}");
        }
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
        ] {
            let (_, body) = all(text).await.unwrap();
            assert_eq!(body.unwrap_err(), io::Error::from(io::ErrorKind::UnexpectedEof).to_string(), "{text}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(HEAD_MAX));
        assert!(all(&endless).await.is_err());
    }

    #[test]
    fn lines_between_chunks_are_bounded() {
        let mut framing = Framing { state: State::Size, line: Vec::new(), trailers: 0 };
        let mut out = BytesMut::new();
        assert!(framing.decode(format!("1;{}", "x".repeat(LINE_MAX)).as_bytes(), &mut out).is_err());
        let mut framing = Framing { state: State::Trailer, line: Vec::new(), trailers: 0 };
        assert!(framing.decode("a: b\r\n".repeat(LINE_MAX).as_bytes(), &mut out).is_err());
        let mut framing = Framing { state: State::Data(1), line: Vec::new(), trailers: 0 };
        assert!(framing.decode(b"ab\r\n", &mut out).is_err());
    }

    proptest! {
        /// However it is cut into chunks, and these into reads.
        #[test]
        fn chunks_come_through_whole(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8),
            cuts in prop::collection::vec(1usize..40, 1..400),
        ) {
            let mut wire = Vec::new();
            for (n, chunk) in chunks.iter().enumerate() {
                let extension = if n % 2 == 0 { "" } else { ";name=value" };
                wire.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\nx: y\r\n\r\n");
            let mut framing = Framing { state: State::Size, line: Vec::new(), trailers: 0 };
            let mut out = BytesMut::new();
            let mut rest = &wire[..];
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(*cut));
                framing.decode(now, &mut out).unwrap();
                rest = later;
                if rest.is_empty() {
                    break;
                }
                prop_assert!(framing.state != State::Over);
            }
            prop_assert_eq!(framing.state, State::Over);
            prop_assert_eq!(&out[..], &chunks.concat()[..]);
        }

        /// Nothing that a server sends makes it panic.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut framing = Framing { state: State::Size, line: Vec::new(), trailers: 0 };
            let _outcome = framing.decode(&bytes, &mut BytesMut::new());
            let _head = read_head(&bytes);
        }
    }
}
