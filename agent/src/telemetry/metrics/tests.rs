use std::sync::atomic::AtomicU16;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsPartialSuccess;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::web::{BOUNDS, Facts, Latency, ToolTraffic, Traffic};

const LONG: Duration = Duration::from_secs(20);

/// Reads what comes; rejects some of it where `status` is 1, else answers that.
struct Collector {
    config: Arc<AgentConfig>,
    status: Arc<AtomicU16>,
    asked: mpsc::Receiver<ExportMetricsServiceRequest>,
}

impl Collector {
    async fn start() -> Self {
        // whoever speaks HTTP needs a provider of TLS, here as in the daemon
        let _there = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = AgentConfig { name: "cellar".into(), ..AgentConfig::default() };
        config.telemetry.otlp_endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (tx, asked) = mpsc::channel(64);
        let status = Arc::new(AtomicU16::new(200));
        let answers = status.clone();
        tokio::spawn(async move {
            loop {
                let mut reader = BufReader::new(listener.accept().await.unwrap().0);
                let (mut length, mut head) = (0, String::new());
                while reader.read_line(&mut head).await.unwrap() > 2 {
                    let line = head.lines().last().unwrap().to_ascii_lowercase();
                    length = line.strip_prefix("content-length:").map_or(length, |n| n.trim().parse().unwrap());
                }
                assert!(head.starts_with("POST /v1/metrics HTTP/1.1\r\n"), "{head}");
                assert!(head.to_ascii_lowercase().contains("content-type: application/x-protobuf"), "{head}");
                let mut body = vec![0; length];
                reader.read_exact(&mut body).await.unwrap();
                let status = answers.load(Relaxed);
                let rejected = ExportMetricsPartialSuccess { rejected_data_points: 2, error_message: "too old".into() };
                let partial_success = (status == 1).then_some(rejected);
                let told = ExportMetricsServiceResponse { partial_success }.encode_to_vec();
                let status = if status == 1 { 200 } else { status };
                if status == 200 {
                    tx.send(ExportMetricsServiceRequest::decode(&*body).unwrap()).await.unwrap();
                }
                let head =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", told.len());
                reader.get_mut().write_all(head.as_bytes()).await.unwrap();
                reader.get_mut().write_all(&told).await.unwrap();
            }
        });
        Self { config: Arc::new(config), status, asked }
    }

    async fn metrics(&mut self) -> Vec<Metric> {
        let asked = tokio::time::timeout(LONG, self.asked.recv()).await.expect("a message").unwrap();
        let [resource] = &asked.resource_metrics[..] else { panic!("{asked:?}") };
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        let names: Vec<&str> = attributes.iter().map(|attribute| attribute.key.as_str()).collect();
        assert_eq!(names, ["service.name", "service.version", "host.name"]);
        resource.scope_metrics[0].metrics.clone()
    }
}

fn facts() -> Facts {
    let mut latency = Latency { seconds: 0.25, errors: 1, ..Latency::default() };
    (latency.buckets[1], latency.buckets[BOUNDS.len()]) = (2, 1);
    let tools = vec![ToolTraffic { tool: "echo".into(), latency: latency.clone() }];
    let traffic = vec![Traffic { deployment: "clock".into(), latency, tools, ..Traffic::default() }];
    let mut facts = Facts { traffic, ..Facts::default() };
    let mut families = Families::new();
    let page = "# TYPE hits counter\nhits{a=\"b\"} 3\n# TYPE took histogram\ntook_bucket{le=\"0.5\"} 1\n\
        took_bucket{le=\"+Inf\"} 4\ntook_sum 2.5\ntook_count 4\nup 1\n# TYPE odd histogram\nodd_bucket{le=\"1\"} 1\n";
    exposition::take(&mut families, page, &[("deployment", "clock")], 100);
    let snapshot = crate::sample::Snapshot { servers: Arc::new(families), ..Default::default() };
    facts.measured.snapshot = Arc::new(snapshot);
    facts
}

fn sends(config: &Arc<AgentConfig>) -> Metrics {
    Metrics {
        config: watch::channel(config.clone()).1,
        counted: Arc::default(),
        began: 7,
        sender: Sender::default(),
        failing: false,
    }
}

fn words(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(&attribute.value))).collect()
}

fn word(name: &str, value: &str) -> (String, String) {
    (name.into(), value.into())
}

#[tokio::test]
async fn a_collector_hears_what_the_page_says() {
    let mut collector = Collector::start().await;
    let mut sends = sends(&collector.config);
    sends.round(|| Some(facts())).await;
    let metrics = collector.metrics().await;
    let of = |name: &str| metrics.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("{name} in {metrics:#?}"));
    let sum = |name: &str| match &of(name).data {
        Some(Data::Sum(sum)) => {
            assert!(sum.is_monotonic && sum.aggregation_temporality == AggregationTemporality::Cumulative as i32);
            sum.data_points.clone()
        }
        other => panic!("{name}: {other:?}"),
    };
    let histogram = |name: &str| match &of(name).data {
        Some(Data::Histogram(histogram)) => {
            assert_eq!(histogram.aggregation_temporality, AggregationTemporality::Cumulative as i32);
            histogram.data_points.clone()
        }
        other => panic!("{name}: {other:?}"),
    };
    let errors = sum("sigil_request_errors_total");
    assert_eq!((errors.len(), errors[0].value, errors[0].start_time_unix_nano), (1, Some(Value::AsDouble(1.0)), 7));
    assert_eq!(words(&errors[0].attributes), [word("deployment", "clock")]);
    let tools = histogram("sigil_tool_duration_seconds");
    assert_eq!(words(&tools[0].attributes), [word("deployment", "clock"), word("tool", "echo")]);
    assert_eq!((tools[0].count, tools[0].sum, &tools[0].explicit_bounds[..]), (3, Some(0.25), &BOUNDS[..]));
    assert_eq!((tools[0].bucket_counts.len(), tools[0].bucket_counts[1]), (BOUNDS.len() + 1, 2));
    assert!(tools[0].time_unix_nano > 1_700_000_000_000_000_000);
    assert_eq!((of("sigil_tool_duration_seconds").unit.as_str(), of("sigil_cache_bytes").unit.as_str()), ("s", "By"));
    assert!(matches!(of("sigil_ready").data, Some(Data::Gauge(_))));
    // servers' own: since when they count is not known
    let hits = sum("sigil_server_hits");
    assert_eq!((hits[0].value, hits[0].start_time_unix_nano), (Some(Value::AsDouble(3.0)), 0));
    assert_eq!(words(&hits[0].attributes), [word("deployment", "clock"), word("a", "b")]);
    let took = histogram("sigil_server_took");
    assert_eq!((took[0].count, took[0].sum, &took[0].bucket_counts[..]), (4, Some(2.5), &[1, 3][..]));
    assert_eq!(took[0].explicit_bounds, [0.5]);
    assert!(matches!(of("sigil_server_up").data, Some(Data::Gauge(_))));
    assert!(!metrics.iter().any(|m| m.name == "sigil_server_odd"), "a histogram without an end is none");
    // one truth: every family of the page with a line under it is told, and no other
    let page = web::metrics(&facts());
    let shown: std::collections::BTreeSet<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .map(|name| ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name))
        .filter(|name| *name != "sigil_server_odd")
        .collect();
    assert_eq!(metrics.iter().map(|m| m.name.as_str()).collect::<std::collections::BTreeSet<_>>(), shown);
}

#[tokio::test]
async fn a_collector_that_is_away_loses_that_round_only() {
    let mut collector = Collector::start().await;
    let mut sends = sends(&collector.config);
    for status in [503, 404, 1] {
        collector.status.store(status, Relaxed);
        sends.round(|| Some(facts())).await;
        assert!(sends.failing);
    }
    collector.metrics().await;
    collector.status.store(200, Relaxed);
    sends.round(|| Some(facts())).await;
    assert!(!sends.failing && !collector.metrics().await.is_empty());
    let counted = (sends.counted.rounds_lost.load(Relaxed), sends.counted.rounds_sent.load(Relaxed));
    assert_eq!(counted, (3, 1));
    // nobody listens there
    let mut config = AgentConfig::clone(&collector.config);
    config.telemetry.otlp_endpoint = "http://127.0.0.1:9".into();
    sends.config = watch::channel(Arc::new(config)).1;
    sends.round(|| Some(facts())).await;
    assert!(sends.failing && sends.counted.rounds_lost.load(Relaxed) == 4);
}

#[tokio::test]
async fn rounds_come_when_they_are_wanted_and_one_at_the_end() {
    let mut collector = Collector::start().await;
    let mut config = AgentConfig::clone(&collector.config);
    config.telemetry.metrics_seconds = 0;
    let (change, config) = watch::channel(Arc::new(config));
    let (counted, stop) = (Arc::<Counted>::default(), CancellationToken::new());
    let run = tokio::spawn(Metrics::run(config, || Some(facts()), counted.clone(), stop.clone()));
    tokio::task::yield_now().await;
    change.send_modify(|config| Arc::make_mut(config).telemetry.metrics_seconds = 1);
    collector.metrics().await;
    let deadline = tokio::time::Instant::now() + LONG;
    while counted.rounds_sent.load(Relaxed) == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the answer to the first round");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    change.send_modify(|config| Arc::make_mut(config).telemetry.metrics_seconds = 3600);
    stop.cancel();
    run.await.unwrap();
    collector.metrics().await;
    assert!(counted.rounds_sent.load(Relaxed) >= 2);
}

#[test]
fn a_large_host_is_several_messages_and_each_is_whole() {
    let latency = Latency { buckets: [1; BOUNDS.len() + 1], ..Latency::default() };
    let tool = |n: usize| ToolTraffic { tool: format!("tool{n}"), latency: latency.clone() };
    let traffic =
        |n: usize| Traffic { deployment: format!("d{n}"), tools: (0..20).map(tool).collect(), ..Traffic::default() };
    let facts = Facts { traffic: (0..200).map(traffic).collect(), ..Facts::default() };
    let mut told = Told::new(1, 2);
    web::tell(&facts, &mut told);
    let messages = told.messages(&AgentConfig::default());
    assert!(messages.len() > 2, "{}", messages.len());
    let mut all = 0;
    for message in &messages {
        assert!(message.len() < 4 << 20, "{}", message.len());
        let told = ExportMetricsServiceRequest::decode(&**message).unwrap();
        for metric in &told.resource_metrics[0].scope_metrics[0].metrics {
            let tools = metric.name == "sigil_tool_duration_seconds";
            all += if tools { points(metric) } else { 0 };
        }
    }
    assert_eq!(all, 200 * 20);
}
