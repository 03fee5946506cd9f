//! Metrics to the collector: every so often the figures of `/metrics`, as they are then. They are cumulative, so that a round
//! that is lost loses nothing but itself: the next one tells all of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum,
};
use prost::Message;
use sigil_config::agent::AgentConfig;
use sigil_core::exposition::{self, Families, Family, Kind, Sink};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Counted;
use super::send::{self, Sender};
use crate::web;

/// Points of one message: collectors take some megabytes at once.
const POINTS: usize = 4000;

/// Sends them.
pub(crate) struct Metrics {
    config: watch::Receiver<Arc<AgentConfig>>,
    counted: Arc<Counted>,
    /// Since when the agent counts.
    began: u64,
    sender: Sender,
    /// The last round was lost: said once.
    failing: bool,
}

impl Metrics {
    /// Sends a round every `[telemetry] metrics_seconds`, and a last one at the end. `facts`: what there is to tell; `None`:
    /// nobody is left to tell it.
    pub(crate) async fn run(
        config: watch::Receiver<Arc<AgentConfig>>,
        facts: impl Fn() -> Option<web::Facts> + Clone + Send + 'static,
        counted: Arc<Counted>,
        stop: CancellationToken,
    ) {
        let mut of = config.clone();
        let mut sends =
            Self { config, counted, began: nanos(SystemTime::now()), sender: Sender::default(), failing: false };
        let mut last = tokio::time::Instant::now();
        loop {
            let every = every(&of.borrow_and_update());
            let due = async {
                match every {
                    Some(every) => tokio::time::sleep_until(last + every).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                changed = of.changed() => if changed.is_err() { return stop.cancelled().await },
                () = due => {
                    last = tokio::time::Instant::now();
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = sends.round(facts.clone()) => {}
                    }
                }
            }
        }
        if every(&of.borrow()).is_some()
            && !sends.failing
            && tokio::time::timeout(super::FAREWELL, sends.round(facts)).await.is_err()
        {
            tracing::debug!("the collector took no more metrics in time");
        }
    }

    async fn round(&mut self, facts: impl Fn() -> Option<web::Facts> + Send + 'static) {
        let config = self.config.borrow().clone();
        let (of, began) = (config.clone(), self.began);
        // a large host's are megabytes
        let made = tokio::task::spawn_blocking(move || {
            let mut told = Told::new(began, nanos(SystemTime::now()));
            web::tell(&facts()?, &mut told);
            Some(told.messages(&of))
        });
        let Ok(Some(messages)) = made.await else { return };
        let mut trouble = None;
        for message in messages {
            match self.sender.post(&config, send::METRICS, message).await {
                Ok(answer) => {
                    let told = ExportMetricsServiceResponse::decode(answer).ok().and_then(|told| told.partial_success);
                    if let Some(partial) = told.filter(|partial| partial.rejected_data_points > 0) {
                        let (count, why) = (partial.rejected_data_points, partial.error_message);
                        trouble = Some(format!("it rejects {count} points: {why}"));
                    }
                }
                // no second try: the next round tells the same, and more
                Err((why, _)) => {
                    trouble = Some(why);
                    break;
                }
            }
        }
        let endpoint = &config.telemetry.otlp_endpoint;
        match trouble {
            None => {
                self.counted.rounds_sent.fetch_add(1, Relaxed);
                if std::mem::take(&mut self.failing) {
                    tracing::info!(endpoint, "the collector takes metrics again");
                }
            }
            Some(why) => {
                self.counted.rounds_lost.fetch_add(1, Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        endpoint,
                        why,
                        "the collector takes no metrics; rounds that are lost are counted in /metrics until it does"
                    );
                }
            }
        }
    }
}

fn every(config: &AgentConfig) -> Option<Duration> {
    let telemetry = &config.telemetry;
    let wanted = !telemetry.otlp_endpoint.is_empty() && telemetry.metrics_seconds > 0;
    wanted.then(|| Duration::from_secs(telemetry.metrics_seconds))
}

fn nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// What one line of a histogram tells: what follows its name, its bound, its value.
type Step<'l> = (&'l str, &'l str, f64);

/// Metrics as a collector takes them.
struct Told {
    began: u64,
    now: u64,
    /// Messages that are full.
    full: Vec<Vec<Metric>>,
    metrics: Vec<Metric>,
    /// Points of those.
    points: usize,
    kind: Kind,
}

impl Told {
    fn new(began: u64, now: u64) -> Self {
        Self { began, now, full: Vec::new(), metrics: Vec::new(), points: 0, kind: Kind::Gauge }
    }

    fn messages(mut self, config: &AgentConfig) -> Vec<Vec<u8>> {
        self.full.push(self.metrics);
        let message = |metrics: Vec<Metric>| {
            // families that have nothing to tell now
            let metrics: Vec<Metric> = metrics.into_iter().filter(|metric| points(metric) > 0).collect();
            let scope_metrics = ScopeMetrics { scope: Some(send::scope()), metrics, ..ScopeMetrics::default() };
            let (resource, scope_metrics) = (Some(send::resource(config)), vec![scope_metrics]);
            let resource_metrics = ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() };
            ExportMetricsServiceRequest { resource_metrics: vec![resource_metrics] }.encode_to_vec()
        };
        self.full.into_iter().map(message).collect()
    }

    /// The family that is told now. One that fills a message goes on in the next.
    fn metric(&mut self) -> Option<&mut Metric> {
        if self.points == POINTS {
            let again = self.metrics.last().map(|metric| {
                let Metric { name, description, unit, .. } = metric.clone();
                Metric { name, description, unit, data: Some(data(self.kind)), ..Metric::default() }
            });
            self.full.push(std::mem::take(&mut self.metrics));
            (self.metrics, self.points) = (again.into_iter().collect(), 0);
        }
        self.points += 1;
        self.metrics.last_mut()
    }

    fn number(&mut self, attributes: Vec<KeyValue>, value: f64) {
        let start_time_unix_nano = since(self.kind, self.began);
        let value = Some(Value::AsDouble(value));
        let time_unix_nano = self.now;
        let point =
            NumberDataPoint { attributes, start_time_unix_nano, time_unix_nano, value, ..NumberDataPoint::default() };
        match self.metric().and_then(|metric| metric.data.as_mut()) {
            Some(Data::Gauge(gauge)) => gauge.data_points.push(point),
            Some(Data::Sum(sum)) => sum.data_points.push(point),
            _ => {}
        }
    }

    fn observed(&mut self, attributes: Vec<KeyValue>, bounds: &[f64], buckets: &[u64], sum: f64) {
        let point = HistogramDataPoint {
            attributes,
            start_time_unix_nano: since(self.kind, self.began),
            time_unix_nano: self.now,
            count: buckets.iter().sum(),
            sum: Some(sum),
            bucket_counts: buckets.to_vec(),
            explicit_bounds: bounds.to_vec(),
            ..HistogramDataPoint::default()
        };
        if let Some(Data::Histogram(histogram)) = self.metric().and_then(|metric| metric.data.as_mut()) {
            histogram.data_points.push(point);
        }
    }

    /// A family of a server's. It says when it began to count to nobody.
    fn server(&mut self, name: &str, family: &Family) {
        let lines: Vec<_> = family.lines.iter().filter_map(|line| exposition::parts(line)).collect();
        match family.kind.as_str() {
            "histogram" => {
                self.begin(name, "", Kind::Histogram, true);
                let mut all: BTreeMap<Vec<(&str, &str)>, Vec<Step<'_>>> = BTreeMap::new();
                for (line, labels, value) in &lines {
                    let end = line.strip_prefix(name).unwrap_or_default();
                    let le = labels.iter().find(|(label, _)| *label == "le").map_or("", |(_, le)| le.as_str());
                    let own = labels.iter().filter(|(label, _)| *label != "le");
                    let own = own.map(|(label, value)| (*label, value.as_str())).collect();
                    all.entry(own).or_default().push((end, le, *value));
                }
                for (labels, lines) in all {
                    if let Some((bounds, buckets, sum)) = histogram(&lines) {
                        self.observed(attributes(&labels), &bounds, &buckets, sum);
                    }
                }
            }
            kind => {
                // quantiles of a summary are levels; of its sum and its count nobody can be sure here
                let kind = if kind == "counter" { Kind::Total } else { Kind::Gauge };
                let mut shown = "";
                for (line, labels, value) in &lines {
                    if *line != shown {
                        self.begin(line, "", kind, true);
                        shown = line;
                    }
                    let labels: Vec<_> = labels.iter().map(|(label, value)| (*label, value.as_str())).collect();
                    self.number(attributes(&labels), *value);
                }
            }
        }
    }

    fn begin(&mut self, name: &str, help: &str, kind: Kind, foreign: bool) {
        // of what a server counts it is not known since when
        self.kind = if foreign && kind == Kind::Counter { Kind::Total } else { kind };
        let (name, unit) = (name.to_owned(), unit(name).to_owned());
        let (description, data) = (help.to_owned(), Some(data(kind)));
        self.metrics.push(Metric { name, description, unit, data, ..Metric::default() });
    }
}

impl Sink for Told {
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        self.begin(name, help, kind, false);
    }

    fn value(&mut self, labels: &[(&str, &str)], value: f64) {
        self.number(attributes(labels), value);
    }

    fn histogram(&mut self, labels: &[(&str, &str)], bounds: &[f64], buckets: &[u64], sum: f64) {
        self.observed(attributes(labels), bounds, buckets, sum);
    }

    fn told(&mut self, families: &Families) {
        for (name, family) in families {
            self.server(name, family);
        }
    }
}

fn data(kind: Kind) -> Data {
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    match kind {
        Kind::Gauge => Data::Gauge(Gauge::default()),
        Kind::Counter | Kind::Total => Data::Sum(Sum { aggregation_temporality, is_monotonic: true, ..Sum::default() }),
        Kind::Histogram => Data::Histogram(Histogram { aggregation_temporality, ..Histogram::default() }),
    }
}

/// Since when something counts; 0: not known, or a level.
fn since(kind: Kind, began: u64) -> u64 {
    match kind {
        Kind::Counter | Kind::Histogram => began,
        Kind::Gauge | Kind::Total => 0,
    }
}

fn points(metric: &Metric) -> usize {
    match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        _ => 0,
    }
}

fn attributes(labels: &[(&str, &str)]) -> Vec<KeyValue> {
    let one = |(label, text): &(&str, &str)| {
        let value = Some(AnyValue { value: Some(any_value::Value::StringValue((*text).to_owned())) });
        KeyValue { key: (*label).to_owned(), value, ..KeyValue::default() }
    };
    labels.iter().map(one).collect()
}

/// The unit that a name tells, as OTLP writes it.
fn unit(name: &str) -> &'static str {
    let base = name.strip_suffix("_total").unwrap_or(name);
    let units = [("_seconds", "s"), ("_bytes", "By"), ("_ratio", "1")];
    units.iter().find(|(end, _)| base.ends_with(end)).map_or("", |(_, unit)| unit)
}

/// Bounds, observations by bucket and the sum of one histogram's lines; `None` where they do not make one.
fn histogram(lines: &[Step<'_>]) -> Option<(Vec<f64>, Vec<u64>, f64)> {
    let mut steps = Vec::new();
    for (_, le, value) in lines.iter().filter(|(end, ..)| *end == "_bucket") {
        steps.push((le.parse::<f64>().ok()?, *value));
    }
    steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let whole = |value: f64| (0.0..1e18).contains(&value).then_some(value as u64);
    let (mut bounds, mut buckets, mut before) = (Vec::new(), Vec::new(), 0);
    for (bound, count) in steps {
        let count = whole(count)?;
        buckets.push(count.checked_sub(before)?);
        before = count;
        bounds.push(bound);
    }
    // the last one has no bound
    (bounds.pop()? == f64::INFINITY).then_some(())?;
    let (_, _, sum) = lines.iter().find(|(end, ..)| *end == "_sum")?;
    Some((bounds, buckets, *sum))
}

#[cfg(test)]
mod tests;
