//! Owns: spans of requests, from their end to the collector that `[telemetry]` names; the rounds of metrics that go there.
//! May touch: that collector, over the HTTP client that knows the configured proxy and authorities.
//! Never: holds up or fails a request, or tells a message's content, a key or a session id.
//! Tested by: `gateway/tests/traces.rs` and units here, against collectors that read what comes.

mod metrics;
mod send;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as Wire, Status};
use prost::Message;
use sigil_config::agent::AgentConfig;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use metrics::Metrics;
use send::Sender;

/// Spans that wait to be sent.
const QUEUED: usize = 4096;
/// Spans of one message.
const BATCH: usize = 512;
/// How long a span waits for others to go with it.
const GATHER: Duration = Duration::from_secs(1);
/// Pauses between tries; after the last one a batch is dropped.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// For what is left when the agent stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// An attribute's name and value.
pub(crate) type Attribute = (&'static str, Text);

/// An attribute's value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Text {
    Text(String),
    Number(i64),
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Text {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// When a span began, by both clocks: its length must not jump with the host's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Began {
    wall: SystemTime,
    at: Instant,
}

impl Began {
    pub(crate) fn now() -> Self {
        Self { wall: SystemTime::now(), at: Instant::now() }
    }
}

/// A part of a request that is over.
#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) trace: [u8; 16],
    pub(crate) id: [u8; 8],
    /// Empty for one that begins a trace.
    pub(crate) parent: Vec<u8>,
    pub(crate) state: String,
    pub(crate) name: String,
    /// The agent asks the server; else it is asked.
    pub(crate) asks: bool,
    pub(crate) began: Began,
    pub(crate) attributes: Vec<Attribute>,
    /// `error.type` and the words.
    pub(crate) error: Option<(String, String)>,
}

fn key_value((key, value): Attribute) -> KeyValue {
    let value = match value {
        Text::Text(text) => Value::StringValue(text),
        Text::Number(number) => Value::IntValue(number),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn wire(span: Span) -> Wire {
    let nanos =
        |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
    let begin = nanos(span.began.wall);
    let took = u64::try_from(span.began.at.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut attributes = span.attributes;
    let status = span.error.map(|(kind, words)| {
        attributes.push(("error.type", kind.into()));
        Status { message: words, code: StatusCode::Error.into() }
    });
    Wire {
        trace_id: span.trace.to_vec(),
        span_id: span.id.to_vec(),
        parent_span_id: span.parent,
        trace_state: span.state,
        name: span.name,
        kind: if span.asks { SpanKind::Client } else { SpanKind::Server }.into(),
        start_time_unix_nano: begin,
        end_time_unix_nano: begin.saturating_add(took),
        attributes: attributes.into_iter().map(key_value).collect(),
        status,
        ..Wire::default()
    }
}

/// What became of spans, and of rounds of metrics.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) sent: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) rounds_sent: AtomicU64,
    pub(crate) rounds_lost: AtomicU64,
}

/// Takes spans that are over.
#[derive(Debug, Clone)]
pub(crate) struct Telemetry {
    queue: mpsc::Sender<Wire>,
    pub(crate) counted: Arc<Counted>,
}

impl Telemetry {
    /// With what sends them, to be run.
    pub(crate) fn new(
        config: watch::Receiver<Arc<AgentConfig>>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()>) {
        let (queue, spans) = mpsc::channel(QUEUED);
        let counted = Arc::<Counted>::default();
        let exporter = Exporter { config, spans, counted: counted.clone(), stop, failing: false };
        (Self { queue, counted }, exporter.run())
    }

    /// Takes one that ends now. Where there is no room it is dropped, and counted.
    pub(crate) fn ended(&self, span: Span) {
        if self.queue.try_send(wire(span)).is_err() {
            self.counted.dropped.fetch_add(1, Relaxed);
        }
    }
}

struct Exporter {
    config: watch::Receiver<Arc<AgentConfig>>,
    spans: mpsc::Receiver<Wire>,
    counted: Arc<Counted>,
    stop: CancellationToken,
    /// The last batch was lost: said once.
    failing: bool,
}

impl Exporter {
    async fn run(mut self) {
        let mut client = Sender::default();
        let mut batch = Vec::with_capacity(BATCH);
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                got = self.spans.recv_many(&mut batch, BATCH) => if got == 0 { return },
            }
            let gathered = tokio::time::Instant::now() + GATHER;
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep_until(gathered) => break,
                    got = self.spans.recv_many(&mut batch, room) => if got == 0 { break },
                }
            }
            if stop.is_cancelled() {
                break;
            }
            let spans = std::mem::take(&mut batch);
            let count = spans.len();
            tokio::select! {
                () = stop.cancelled() => self.drop(count),
                () = self.send(&mut client, spans) => {}
            }
        }
        self.spans.close();
        let left = async {
            while !batch.is_empty() || self.spans.recv_many(&mut batch, BATCH).await > 0 {
                let config = self.config.borrow().clone();
                let spans = std::mem::take(&mut batch);
                let (count, body) = (spans.len(), encode(&config, spans));
                match self.once(&mut client, &config, body).await {
                    Ok(rejected) => self.sent(count, rejected),
                    Err(_) => self.drop(count),
                }
            }
        };
        if tokio::time::timeout(FAREWELL, left).await.is_err() {
            tracing::debug!("the collector took no more spans in time");
        }
    }

    fn drop(&self, count: usize) {
        self.counted.dropped.fetch_add(count as u64, Relaxed);
    }

    fn sent(&self, count: usize, rejected: u64) {
        let rejected = rejected.min(count as u64);
        self.counted.sent.fetch_add(count as u64 - rejected, Relaxed);
        self.counted.dropped.fetch_add(rejected, Relaxed);
    }

    /// Sends a batch, again if that may help; what cannot be sent is dropped.
    async fn send(&mut self, client: &mut Sender, spans: Vec<Wire>) {
        let config = self.config.borrow().clone();
        let (count, body) = (spans.len(), encode(&config, spans));
        if config.telemetry.otlp_endpoint.is_empty() {
            // it was taken away while they waited
            return self.drop(count);
        }
        let mut pauses = PAUSES.iter();
        loop {
            match self.once(client, &config, body.clone()).await {
                Ok(rejected) => {
                    self.sent(count, rejected);
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(endpoint = config.telemetry.otlp_endpoint, "the collector takes spans again");
                    }
                    return;
                }
                Err((why, again)) => {
                    if let Some(pause) = pauses.next().filter(|_| again && !self.failing) {
                        tokio::time::sleep(*pause).await;
                        continue;
                    }
                    self.drop(count);
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(
                            endpoint = config.telemetry.otlp_endpoint,
                            why,
                            "the collector takes no spans; they are dropped, and counted in /metrics, until it does"
                        );
                    }
                    return;
                }
            }
        }
    }

    /// How many spans the collector rejected; or why none was taken, and whether another try may help.
    async fn once(&self, client: &mut Sender, config: &Arc<AgentConfig>, body: Vec<u8>) -> Result<u64, (String, bool)> {
        let told = client.post(config, send::TRACES, body).await?;
        let partial = ExportTraceServiceResponse::decode(told).ok().and_then(|told| told.partial_success);
        Ok(partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0)))
    }
}

fn encode(config: &AgentConfig, spans: Vec<Wire>) -> Vec<u8> {
    let scope_spans = ScopeSpans { scope: Some(send::scope()), spans, ..ScopeSpans::default() };
    let resource = Some(send::resource(config));
    let resource_spans = ResourceSpans { resource, scope_spans: vec![scope_spans], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_room_spans_are_dropped_and_counted() {
        let (_keep, config) = watch::channel(Arc::default());
        // nobody runs what sends them
        let (telemetry, _exporter) = Telemetry::new(config, CancellationToken::new());
        for number in 0..QUEUED + 10 {
            let began = Began::now();
            let (name, state, parent) = (number.to_string(), String::new(), Vec::new());
            let (attributes, error) = (Vec::new(), None);
            let (trace, id, asks) = ([1; 16], [1; 8], false);
            telemetry.ended(Span { trace, id, parent, state, name, asks, began, attributes, error });
        }
        assert_eq!(telemetry.counted.dropped.load(Relaxed), 10);
    }
}
