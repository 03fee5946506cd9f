//! What is read, from where, and what is said of what is wrong.

use super::*;

fn pairs(env: &[(&str, &str)]) -> Vec<(String, String)> {
    env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn flaws(text: &str) -> String {
    parse(Some(("agent.toml", text)), [], &[]).unwrap_err().to_string()
}

#[test]
fn layers_win_in_order_and_say_where_a_value_is_from() {
    let text = "data_dir = \"/file\"\nname = \"file\"\n[gateway]\nlisten = \"127.0.0.1:1\"\n";
    let env = pairs(&[("SIGIL_DATA_DIR", "/env"), ("SIGIL_GATEWAY_LISTEN", "127.0.0.1:2"), ("HOME", "/x")]);
    let flags = [Override::new("--data-dir", "data_dir", "rel")];
    let loaded = parse(Some(("agent.toml", text)), env, &flags).unwrap();
    assert_eq!(loaded.config.data_dir, Some("rel".into()));
    assert_eq!(loaded.config.gateway.listen, "127.0.0.1:2");
    assert_eq!(loaded.config.name, "file");
    assert_eq!(loaded.config.gateway.max_body, 16 << 20);
    let origins: Vec<_> = loaded.origins.iter().map(|(k, at)| format!("{k} {at}")).collect();
    assert_eq!(origins, ["data_dir --data-dir", "gateway.listen SIGIL_GATEWAY_LISTEN", "name agent.toml:2:8"]);
}

#[test]
fn every_key_has_a_variable_of_its_own() {
    let names: BTreeSet<_> = KEYS.iter().map(|k| variable(k.path)).collect();
    assert_eq!(names.len(), KEYS.len());
}

#[test]
fn opentelemetrys_own_names_are_known_and_ours_count_more() {
    let env = pairs(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20YTpi, x_team=mcp"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1500"),
        ("OTEL_SERVICE_NAME", "theirs"),
        ("OTEL_TRACES_SAMPLER", "always_on"),
        ("SIGIL_TELEMETRY_SERVICE_NAME", "ours"),
    ]);
    let loaded = parse(Some(("f", "[telemetry]\nmetrics_seconds = 5\n")), env, &[]).unwrap();
    let told = &loaded.config.telemetry;
    assert_eq!((told.otlp_endpoint.as_str(), told.service_name.as_str()), ("http://127.0.0.1:4318", "ours"));
    assert_eq!((told.metrics_seconds, told.headers["authorization"].reveal()), (2, "Basic YTpi"));
    assert_eq!(told.headers["x-team"].reveal(), "mcp");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    assert_eq!(
        parse(None, pairs(&[("OTEL_METRICS_EXPORTER", "none")]), &[]).unwrap().config.telemetry.metrics_seconds,
        0
    );
    let wrong = parse(None, pairs(&[("OTEL_METRIC_EXPORT_INTERVAL", "soon")]), &[]).unwrap_err();
    assert!(wrong.flaws[0].to_string().contains("OTEL_METRIC_EXPORT_INTERVAL"), "{wrong:?}");
    assert_eq!(unescaped("a%2Cb%zz%4"), "a,b%zz%4");
}

#[test]
fn the_environment_sets_every_type() {
    let env = pairs(&[
        ("SIGIL_ENGINE_HOST", "unix:///run/x.sock"),
        ("SIGIL_GRPC_LISTEN", "0.0.0.0:7451"),
        ("SIGIL_BUILDER_BASE_IMAGES__NODE", "my/node:1"),
        ("SIGIL_BUILDER_BASE_IMAGES__GO", "my/go:1"),
        ("SIGIL_BUILDER_ARGS__HTTP_PROXY", "http://p"),
        ("SIGIL_BUILDER_CPUS", "1.5"),
        ("SIGIL_BUILDER_MEMORY", "1GiB"),
        ("SIGIL_LIMITS_ALLOW_BRIDGE", "true"),
        ("SIGIL_SOURCES_ALLOWED", "git, npm"),
        ("SIGIL_OUTBOUND_PORTS", "8443,9000"),
        ("SIGIL_OUTBOUND_ALLOW", "*, 10.0.0.0/8:5432"),
        ("SIGIL_TOKEN", "secret"),
        ("SIGIL_HOST", "ssh://x"),
        ("SIGIL_GATEWY_LISTEN", "x"),
    ]);
    let loaded = parse(None, env, &[]).unwrap();
    let c = loaded.config;
    assert_eq!(c.builder.base_images.len(), 2);
    assert_eq!(c.builder.base_images["node"], "my/node:1");
    assert_eq!(c.builder.args["HTTP_PROXY"], "http://p");
    assert_eq!((c.builder.cpus, c.builder.memory), (1.5, 1 << 30));
    assert!(c.limits.allow_bridge);
    assert_eq!(c.sources.allowed, ["git", "npm"]);
    assert_eq!(c.outbound.ports, [8443, 9000]);
    assert_eq!(c.outbound.allow, ["*", "10.0.0.0/8:5432"]);
    assert_eq!(
        lines(&loaded.warnings),
        "SIGIL_GATEWY_LISTEN: names no key of the configuration; ignored; did you mean 'SIGIL_GATEWAY_LISTEN'?"
    );
    let bad =
        pairs(&[("SIGIL_BUILDER_CONCURRENCY", "many"), ("SIGIL_BUILDER_ARGS", "x"), ("SIGIL_BUILDER_CPUS", "NaN")]);
    assert_eq!(
        parse(None, bad, &[]).unwrap_err().to_string(),
        "SIGIL_BUILDER_ARGS: 'builder.args' is a map; set one of its entries with SIGIL_BUILDER_ARGS__NAME\n\
         SIGIL_BUILDER_CONCURRENCY: builder.concurrency must be a whole number, this is a text\n\
         SIGIL_BUILDER_CPUS: builder.cpus must be from 0.1 to 1024 cores, not NaN"
    );
}

#[test]
fn all_flaws_of_a_file_are_named_at_once() {
    insta::assert_snapshot!(flaws(
        r#"nmae = "x"
data_dir = "relative"
max_body = 3
[gatway]
listen = "x"
[gateway]
listen = "127.0.0.1"
max_connections = 0
allowed_origins = ["example.org", "https://ok.example"]
max_body = "huge"
[engine]
host = "tcp://10.0.0.1:2375"
[grpc]
listen = 7451
certificate = "/cert.pem"
[builder]
network = "host"
cpus = 0
npm_registry = "registry.example.org"
[builder.base_images]
ruby = "r"
node = 20
[builder.args]
"A B" = "x"
[sources]
allowed = ["git", "svn"]
[limits]
host_paths = ["data", "/srv/../etc"]
allow_bridge = "no"
[logs]
level = "loud"
[outbound]
ports = [80, 70000, "x"]
default = "maybe"
allow = ["*", "https://x"]
deny = ["10.0.0.1/8"]
proxy = "ftp://user:hunter2@proxy"
"#
    ));
}

#[test]
fn headers_of_a_collector_are_checked_and_not_told() {
    let env = pairs(&[("SIGIL_TELEMETRY_HEADERS__X_API_KEY", "hunter2")]);
    let text = "[telemetry]\nheaders = { authorization = \"file:/run/secrets/otlp\" }\n";
    let loaded = parse(Some(("f", text)), env, &[]).unwrap();
    let headers = &loaded.config.telemetry.headers;
    assert_eq!(
        (headers["authorization"].reveal(), headers["x-api-key"].reveal()),
        ("file:/run/secrets/otlp", "hunter2")
    );
    assert!(!format!("{:?}", loaded.config).contains("hunter2"));
    for (name, value) in [("\"a b\"", "x"), ("Host", "x"), ("a", "hunter2\\n"), ("a", " "), ("a", "file:hunter2")] {
        let text = flaws(&format!("[telemetry.headers]\n{name} = \"{value}\"\n"));
        assert!(text.starts_with("agent.toml:2:") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn syntax_errors_have_a_place_and_hide_nothing_else() {
    let text = flaws("name = \n[gateway]\nlisten = 1\n");
    assert!(text.contains("agent.toml:1:"), "{text}");
    assert!(text.contains("agent.toml:3:10: gateway.listen must be a text, this is a number"), "{text}");
}

#[test]
fn an_open_gateway_warns_and_files_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, "[gateway]\nlisten = \"0.0.0.0:80\"\n").unwrap();
    let loaded = load(Some(&path), [], &[]).unwrap();
    assert_eq!((loaded.warnings.len(), loaded.warnings[0].at.line), (1, 2));
    std::fs::write(&path, "[builder]\nextra_ca = \"/nowhere/ca.pem\"\n").unwrap();
    let error = load(Some(&path), [], &[]).unwrap_err().to_string();
    assert!(error.contains("agent.toml:2:12: builder.extra_ca: '/nowhere/ca.pem' cannot be read"), "{error}");
    let error = load(Some(&dir.path().join("none.toml")), [], &[]).unwrap_err().to_string();
    assert!(error.contains("none.toml: cannot be read: No such file"), "{error}");
}

#[test]
fn addresses_and_levels() {
    for (text, expected) in [
        ("127.0.0.1:0", Some(true)),
        ("[::1]:80", Some(true)),
        ("localhost:80", Some(true)),
        ("0.0.0.0:80", Some(false)),
        ("host.example:80", Some(false)),
        ("300.0.0.1:80", None),
        ("127.0.0.1", None),
        (":80", None),
        ("127.0.0.1:99999", None),
    ] {
        assert_eq!(listen(text), expected, "{text}");
    }
    assert!(level("info,sigil_agent::gateway=trace,h2=off"));
    assert!(!level("info,,debug") && !level("x=loud") && !level("=info"));
}
