//! Live frames for whoever looks (`sigil tap`): every message of a deployment with its direction, caller and timing,
//! secrets masked. Nobody looks: one load of an atomic a request. Whoever looks too slowly loses frames and is told how
//! many; the path of the request never waits.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use sigil_core::jsonrpc::{self, Kind};
use sigil_core::model::Inject;
use tokio::sync::broadcast;

use super::table::Entry;
use crate::upstream::sse;

/// Frames that one who looks may be behind.
const QUEUED: usize = 256;
/// What of a message is shown, bytes.
const SHOWN: usize = 64 << 10;
/// Shorter values would mask what is no secret.
const SECRET_MIN: usize = 4;

/// One message, as it is shown.
#[derive(Debug, Clone)]
pub struct Frame {
    /// When it passed.
    pub at: Timestamp,
    /// From the client to the server.
    pub from_client: bool,
    /// Who calls.
    pub caller: String,
    /// Tells sessions apart; says nothing else about them. Empty: no session.
    pub session: String,
    /// Its method; `result` or `error` for an answer.
    pub method: String,
    /// Its id as it was written; empty: none.
    pub id: String,
    /// Since the request came in; zero for the request itself.
    pub took: Duration,
    /// Length of the whole message, bytes.
    pub size: usize,
    /// The message, secrets masked.
    pub message: String,
    /// Whether that is only its beginning.
    pub cut: bool,
    /// An answer that the gateway had kept: the server was not asked.
    pub cached: bool,
}

/// Where those who look at a deployment's frames are told of them.
#[derive(Debug, Default)]
pub(crate) struct Tap(OnceLock<broadcast::Sender<Arc<Frame>>>);

impl Tap {
    /// Begins to look.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Arc<Frame>> {
        self.0.get_or_init(|| broadcast::channel(QUEUED).0).subscribe()
    }

    fn watched(&self) -> bool {
        self.0.get().is_some_and(|tx| tx.receiver_count() > 0)
    }
}

/// One request, or one conversation, that somebody looks at.
#[derive(Debug)]
pub(crate) struct Tapping {
    entry: Arc<Entry>,
    caller: String,
    session: String,
    start: Instant,
    /// What masks: values that must not be seen.
    secrets: Vec<String>,
    events: bool,
    cached: bool,
    parser: sse::Parser,
    kept: BytesMut,
    size: usize,
}

fn secrets(entry: &Entry) -> Vec<String> {
    let mut all: Vec<String> = entry.injected.iter().map(|(_, value)| value.expose_secret().to_owned()).collect();
    for live in entry.ready.iter().chain(&entry.draining) {
        let named = |name: &str| {
            live.endpoint.spec.secrets.iter().any(|s| matches!(&s.inject, Inject::Environment(n) if n == name))
        };
        let env = live.endpoint.env.iter().filter(|(name, _)| named(name));
        all.extend(env.map(|(_, value)| value.expose_secret().to_owned()));
    }
    // as they are written elsewhere, too: in JSON, in JSON within JSON, in base64, in addresses
    let inner = |text: &str| {
        let quoted = jsonrpc::quote(text);
        quoted.get(1..quoted.len() - 1).unwrap_or_default().to_owned()
    };
    let written = |value: &String| {
        let once = inner(value);
        let address: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
        [inner(&once), once, STANDARD_NO_PAD.encode(value), URL_SAFE_NO_PAD.encode(value), address]
    };
    let others: Vec<String> = all.iter().filter(|v| v.len() >= SECRET_MIN).flat_map(written).collect();
    all.extend(others);
    all.retain(|value| value.len() >= SECRET_MIN);
    all.sort_by_key(|value| std::cmp::Reverse(value.len()));
    all.dedup();
    all
}

impl Tapping {
    /// `None` when nobody looks. `session`: anything that tells it from others.
    pub(crate) fn begin(entry: &Arc<Entry>, caller: &str, session: &str) -> Option<Self> {
        entry.recorder.tap.watched().then(|| Self {
            entry: entry.clone(),
            caller: caller.to_owned(),
            session: match session {
                "" => String::new(),
                session => hex::encode(Sha256::digest(session)).chars().take(8).collect(),
            },
            start: Instant::now(),
            secrets: secrets(entry),
            events: false,
            cached: false,
            parser: sse::Parser::default(),
            kept: BytesMut::new(),
            size: 0,
        })
    }

    /// The answer that is looked at is an event stream.
    pub(crate) fn of_events(mut self, events: bool) -> Self {
        self.events = events;
        self
    }

    /// The answer is one that the gateway had kept.
    pub(crate) fn of_cache(mut self, cached: bool) -> Self {
        self.cached = cached;
        self
    }

    /// Shows one message.
    pub(crate) fn tell(&self, from_client: bool, text: &str) {
        self.show(from_client, text, text.len(), self.start.elapsed());
    }

    /// Shows an answer to what was asked so long ago.
    pub(crate) fn tell_after(&self, text: &str, took: Duration) {
        self.show(false, text, text.len(), took);
    }

    fn show(&self, from_client: bool, text: &str, size: usize, took: Duration) {
        let Some(tx) = self.entry.recorder.tap.0.get() else { return };
        let head = jsonrpc::parse_one(text.as_bytes()).ok();
        let method = match &head {
            Some(head) if head.kind == Kind::Response && head.error.is_some() => "error".to_owned(),
            Some(head) if head.kind == Kind::Response => "result".to_owned(),
            Some(head) => head.method.clone().into_owned(),
            None => String::new(),
        };
        let id = head.and_then(|head| head.id_text).unwrap_or_default().to_owned();
        let mut message = text.to_owned();
        for secret in &self.secrets {
            message = message.replace(secret, "***");
        }
        let cut = size > text.len() || message.len() > SHOWN;
        if message.len() > SHOWN {
            message.truncate(message.floor_char_boundary(SHOWN));
        }
        let frame = Frame {
            at: Timestamp::now(),
            from_client,
            caller: self.caller.clone(),
            session: self.session.clone(),
            method,
            id,
            took: if from_client { Duration::ZERO } else { took },
            size,
            message,
            cut,
            cached: self.cached && !from_client,
        };
        // nobody who looks any more is no error
        let _ = tx.send(Arc::new(frame));
    }

    /// A piece of the answer.
    pub(crate) fn push(&mut self, data: &[u8]) {
        if !self.events {
            self.size += data.len();
            // a little more than is shown, so that masking finds a secret at the edge
            let room = (2 * SHOWN).saturating_sub(self.kept.len()).min(data.len());
            self.kept.extend_from_slice(data.get(..room).unwrap_or_default());
            return;
        }
        let mut events = Vec::new();
        if self.parser.push(data, &mut events).is_err() {
            self.parser = sse::Parser::default();
        }
        for event in events.iter().filter(|event| !event.data.is_empty()) {
            self.tell(false, &event.data);
        }
    }
}

/// The answer has ended; nobody asks for more of one whose length is known.
impl Drop for Tapping {
    fn drop(&mut self) {
        let kept: Bytes = std::mem::take(&mut self.kept).freeze();
        if !kept.is_empty() {
            self.show(false, &String::from_utf8_lossy(&kept), self.size, self.start.elapsed());
        }
    }
}
