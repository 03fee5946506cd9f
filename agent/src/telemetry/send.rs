//! OTLP over HTTP: one message to the collector, one try.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderValue;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use sigil_config::agent::AgentConfig;

use super::{Attribute, key_value};
use crate::source;

/// Where traces go below a collector's address.
pub(super) const TRACES: &str = "/v1/traces";
/// Where metrics go.
pub(super) const METRICS: &str = "/v1/metrics";
/// One try of one message.
const SEND: Duration = Duration::from_secs(10);

/// Sends messages. What it sends with is made anew when the configuration changes.
#[derive(Debug, Default)]
pub(super) struct Sender {
    client: Option<(Arc<AgentConfig>, reqwest::Client)>,
}

impl Sender {
    /// What the collector answers; or why it did not take it, and whether another try may help.
    pub(super) async fn post(
        &mut self,
        config: &Arc<AgentConfig>,
        signal: &str,
        body: Vec<u8>,
    ) -> Result<Bytes, (String, bool)> {
        let known = self.client.as_ref().filter(|(made_for, _)| Arc::ptr_eq(made_for, config));
        let client = match known {
            Some((_, client)) => client.clone(),
            None => {
                let made = source::straight_client(config).map_err(|e| (e.to_string(), false))?;
                self.client = Some((config.clone(), made.clone()));
                made
            }
        };
        let mut request = client.post(address(&config.telemetry.otlp_endpoint, signal));
        for (name, value) in &config.telemetry.headers {
            request = request.header(name.as_str(), header(name, value.reveal()).await?);
        }
        let request = request.header("content-type", "application/x-protobuf").timeout(SEND).body(body);
        let answer = request.send().await.map_err(|e| (with_causes(&e), true))?;
        let status = answer.status();
        if !status.is_success() {
            // as OTLP says which (opentelemetry.io/docs/specs/otlp, Failures)
            return Err((format!("it answers {status}"), matches!(status.as_u16(), 429 | 502 | 503 | 504)));
        }
        answer.bytes().await.map_err(|e| (with_causes(&e), true))
    }
}

/// Who sends.
pub(super) fn resource(config: &AgentConfig) -> Resource {
    let mut attributes: Vec<Attribute> = vec![
        ("service.name", config.telemetry.service_name.as_str().into()),
        ("service.version", env!("CARGO_PKG_VERSION").into()),
    ];
    if !config.name.is_empty() {
        attributes.push(("host.name", config.name.as_str().into()));
    }
    Resource { attributes: attributes.into_iter().map(key_value).collect(), ..Resource::default() }
}

pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "sigil".into(), ..InstrumentationScope::default() }
}

/// A header's value, or what its file holds now.
async fn header(name: &str, text: &str) -> Result<HeaderValue, (String, bool)> {
    let read;
    let text = match text.strip_prefix("file:") {
        None => text,
        Some(path) => {
            let held = tokio::fs::read_to_string(path).await;
            read = held.map_err(|e| (format!("[telemetry] headers: {path} cannot be read: {e}"), false))?;
            read.trim()
        }
    };
    let value = HeaderValue::try_from(text).ok().filter(|value| !value.is_empty());
    let mut value = value.ok_or_else(|| (format!("[telemetry] headers: {name} has no value of a header"), false))?;
    value.set_sensitive(true);
    Ok(value)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Where a signal goes below a collector's address. One that names a signal already is taken as it is for that, and its
/// neighbour for the other.
fn address(endpoint: &str, signal: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    let base = [TRACES, METRICS].iter().find_map(|named| endpoint.strip_suffix(named)).unwrap_or(endpoint);
    format!("{base}{signal}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_below_the_collectors_address() {
        assert_eq!(address("http://c:4318", TRACES), "http://c:4318/v1/traces");
        assert_eq!(address("https://c/otlp/", METRICS), "https://c/otlp/v1/metrics");
        assert_eq!(address("https://c/v1/traces", TRACES), "https://c/v1/traces");
        assert_eq!(address("https://c/v1/traces", METRICS), "https://c/v1/metrics");
    }
}
