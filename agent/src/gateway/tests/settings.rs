//! Session configuration in its three forms, to servers of every transport.

use std::io::Write;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use serde_json::{Value, json};
use sigil_config::manifest::Runtime;
use sigil_config::manifest::session::Checker;
use sigil_core::model::{Inject, SessionConfig, Transport};
use sigil_core::policy::Access;

use super::fixture::{
    Answer, Front, HttpServer, SERVER, accept, call, configured, endpoint, initialize, owned, ping, root, stateless,
    stdio, until, wait_until,
};
use super::{NAME, replica_keys};

/// Shows how it was started.
const SHOWS: &str = r#"
import sys, json, os
def ok(id, **r): print(json.dumps({"jsonrpc": "2.0", "id": id, "result": r}), flush=True)
for line in sys.stdin:
    m = json.loads(line)
    method, id = m.get("method"), m.get("id")
    if method == "initialize":
        ok(id, protocolVersion=m["params"]["protocolVersion"], capabilities={"tools": {}}, serverInfo={"name": "py", "version": "1"})
    elif method == "tools/list": ok(id, tools=[{"name": "show"}])
    elif method == "tools/call":
        ok(id, pid=os.getpid(), argv=sys.argv[1:], key=os.environ.get("KEY"), secret=os.environ.get("SECRET"), config=json.loads(os.environ.get("SIGIL_CONFIG", "null")))
    elif method == "server/discover":
        print(json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no such method"}}), flush=True)
"#;

fn schema() -> Value {
    json!({"type":"object","required":["apiKey"],"properties":{
        "apiKey":{"type":"string","x-from":{"header":"x-weather-key"},"x-to":{"header":"x-upstream-key"}},
        "server":{"type":"object","properties":{"host":{"type":"string","default":"here"},"port":{"type":"integer"}}},
        "units":{"enum":["c","f"],"default":"c","x-to":{"query":"u"}},
        "root":{"type":"string"}}})
}

fn session(function: Option<&str>) -> SessionConfig {
    let (schema, fixed) = (schema(), json!({"root":"/data"}));
    let checker = Checker::new(&schema, &fixed).unwrap();
    let stand_in = checker.stand_in(None);
    SessionConfig {
        looks: checker.upstream(&stand_in, false),
        stand_in,
        schema,
        fixed,
        function: function.map(|function| (function.to_owned(), Runtime::Node)),
        args: vec!["last".into()],
        kept: Vec::new(),
    }
}

const FUNCTION: &str =
    r#"(config) => ({ command: 'python3', args: ['-c', config.root, config.units], env: { KEY: config.apiKey } })"#;

/// `config.root` is fixed by the deploy, so the program can be given as a value.
fn shows() -> SessionConfig {
    let mut session = session(Some(FUNCTION));
    session.fixed = json!({"root": SHOWS});
    session.stand_in = Checker::new(&session.schema, &session.fixed).unwrap().stand_in(None);
    session
}

async fn post(front: &Front, query: &str, headers: &[(&str, &str)], session: Option<&str>, body: &str) -> Answer {
    let mut all = accept(session);
    all.extend(owned(headers));
    front.raw("POST", &format!("/mcp/{NAME}{query}"), &all, body).await
}

fn encoded(values: &Value) -> String {
    let text = STANDARD.encode(values.to_string());
    url::form_urlencoded::Serializer::new(String::new()).append_pair("config", &text).finish()
}

#[tokio::test]
async fn three_generations_reach_a_server_over_http_and_stay_with_their_session() {
    let mut front = Front::new().await;
    let server = HttpServer::start().await;
    let replica = configured(&server.endpoint(), session(None));
    front.set(&[(NAME, vec![replica.clone()])]);
    let dotted = "?apiKey=k&server.port=9&units=f&api_key=sigil_x&profile=p";
    let answer = post(&front, dotted, &[], None, &initialize("2025-11-25")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let target = "/mcp?root=%2Fdata&server.port=9&server.host=here&u=f";
    let seen = server.last();
    assert_eq!((seen.target.as_str(), seen.header("x-upstream-key").as_str()), (target, "k"));
    // what it was opened with stays, whatever a later request says
    let id = answer.header("mcp-session-id");
    for query in ["", "?apiKey=other&units=c", "?units=wrong"] {
        let again = post(&front, query, &[], Some(&id), &call(2, "whoami")).await;
        assert_eq!(again.status, 200, "{}", again.text);
        let seen = server.last();
        assert_eq!((seen.target.as_str(), seen.header("x-upstream-key").as_str()), (target, "k"), "{query}");
    }
    // the header is configuration: the server gets it under its own name only
    let answer = post(&front, "?server.port=9", &[("x-weather-key", "h")], None, &initialize("2025-11-25")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let seen = server.last();
    assert_eq!((seen.header("x-upstream-key").as_str(), seen.header("x-weather-key").as_str()), ("h", ""));
    // nobody writes the server's own header past the schema
    let forged = [("x-weather-key", "h"), ("x-upstream-key", "forged")];
    let answer = post(&front, "?units=f", &forged, None, &initialize("2025-11-25")).await;
    assert_eq!((answer.status, server.last().header("x-upstream-key").as_str()), (200, "h"), "{}", answer.text);
    // whoever gave base64 has it passed on, with everything filled in
    let query = encoded(&json!({"apiKey":"k","server":{"port":1}}));
    let answer = post(&front, &format!("?{query}"), &[], None, &initialize("2025-11-25")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let url = url::Url::parse(&format!("http://x{}", server.last().target)).unwrap();
    let config = url.query_pairs().find(|(name, _)| name == "config").unwrap().1;
    let config: Value = serde_json::from_slice(&STANDARD.decode(config.as_bytes()).unwrap()).unwrap();
    assert_eq!(config, json!({"root":"/data","apiKey":"k","server":{"port":1,"host":"here"},"units":"c"}));
    // a new agent reads it again, and takes no other
    front.restart().await;
    front.set(&[(NAME, vec![replica])]);
    let other = post(&front, "?apiKey=other", &[], Some(&id), &call(3, "whoami")).await;
    assert_eq!((other.status, other.code().as_str()), (404, "GATEWAY_SESSION_EXPIRED"), "{}", other.text);
    let same = post(&front, dotted, &[], Some(&id), &call(3, "whoami")).await;
    assert_eq!((same.status, server.last().target.as_str()), (200, target), "{}", same.text);
    // each stateless request is its own session
    let (headers, body) = stateless("1", "tools/call", r#""name":"whoami""#, "");
    let answer = front.raw("POST", &format!("/mcp/{NAME}?apiKey=m&units=f"), &headers, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(server.last().target, "/mcp?root=%2Fdata&u=f");
    assert_eq!(server.last().header("x-upstream-key"), "m");
}

#[tokio::test]
async fn the_same_values_reach_servers_of_two_schemas_in_two_ways() {
    let front = Front::new().await;
    let server = HttpServer::start().await;
    let mut other = session(None);
    other.schema["properties"]["apiKey"].as_object_mut().unwrap().remove("x-to");
    let replicas = [session(None), other].map(|session| vec![configured(&server.endpoint(), session)]);
    let [first, second] = replicas;
    front.set(&[(NAME, first), ("other", second)]);
    for (name, target) in [(NAME, "/mcp?root=%2Fdata&u=c"), ("other", "/mcp?root=%2Fdata&apiKey=k&u=c")] {
        let path = format!("/mcp/{name}?apiKey=k");
        let answer = front.raw("POST", &path, &accept(None), &initialize("2025-11-25")).await;
        assert_eq!((answer.status, server.last().target.as_str()), (200, target), "{}", answer.text);
    }
}

#[tokio::test]
async fn what_is_wrong_is_answered_whole_and_without_the_values() {
    let front = Front::new().await;
    let server = HttpServer::start().await;
    front.set(&[(NAME, vec![configured(&server.endpoint(), session(None))]), ("other", vec![server.endpoint()])]);
    let query = "?server.port=hunter2&units=hunter3&root=/etc/hunter4";
    let answer = post(&front, query, &[], None, &initialize("2025-11-25")).await;
    assert_eq!((answer.status, answer.code().as_str()), (422, "GATEWAY_INVALID_CONFIG"), "{}", answer.text);
    let body = answer.json();
    assert_eq!((&body["id"], &body["error"]["code"], &body["status"]), (&json!(1), &json!(-32602), &json!(422)));
    let schema_at = format!("http://{}/mcp/{NAME}/.well-known/mcp-config", front.gateway.address());
    assert_eq!(body["configSchema"], schema_at);
    assert_eq!(body["error"]["data"]["errors"], body["errors"]);
    let errors = body["errors"].as_array().unwrap();
    let params: Vec<&str> = errors.iter().map(|e| e["param"].as_str().unwrap()).collect();
    assert_eq!(params, ["server.port", "root", "apiKey", "units"], "{errors:?}");
    assert!(body["error"]["message"].as_str().unwrap().contains("apiKey is required"), "{}", answer.text);
    assert!(!answer.text.contains("hunter"), "{}", answer.text);
    assert_eq!(server.count(""), 0, "the server has heard nothing");
    // the schema, without what the deploy has set
    let path = schema_at.split_once("/mcp/").map(|(_, path)| format!("/mcp/{path}")).unwrap();
    let told = front.raw("GET", &path, &[], "").await;
    assert_eq!((told.status, told.header("content-type").as_str()), (200, "application/schema+json"));
    let told = told.json();
    assert_eq!((&told["$id"], &told["x-query-style"]), (&json!(schema_at), &json!("dot+bracket")));
    assert!(told["properties"]["apiKey"].is_object() && told["properties"].get("root").is_none(), "{told}");
    assert_eq!(front.raw("GET", "/mcp/other/.well-known/mcp-config", &[], "").await.status, 404);
    // a server without a schema gets its query as it came
    let answer = front.raw("POST", "/mcp/other?a=1&api_key=2", &accept(None), &initialize("2025-11-25")).await;
    assert_eq!((answer.status, server.last().target.as_str()), (200, "/mcp?a=1&api_key=2"));
    // a host of its own
    front.configure(|config| config.gateway.domain = "mcp.test".into());
    let host = owned(&[("host", &format!("{NAME}.mcp.test"))]);
    let told = front.raw("GET", "/.well-known/mcp-config", &host, "").await;
    assert_eq!(
        (told.status, &told.json()["$id"]),
        (200, &json!(format!("http://{NAME}.mcp.test/.well-known/mcp-config")))
    );
}

#[tokio::test]
async fn the_schema_and_lists_are_as_open_as_the_deployment() {
    let front = Front::new().await;
    let server = HttpServer::start().await;
    front.set(&[(NAME, vec![configured(&server.endpoint(), session(None))])]);
    let path = format!("/mcp/{NAME}/.well-known/mcp-config");
    front.govern(NAME, Access::Key, "{}");
    assert_eq!(front.raw("GET", &path, &[], "").await.status, 401);
    front.govern(NAME, Access::Key, r#"{"open_discovery":true}"#);
    assert_eq!(front.raw("GET", &path, &[], "").await.status, 200);
    // lists need neither key nor configuration: the server is shown what the gate showed it
    let answer = front.post(NAME, None, initialize("2025-11-25")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(server.last().header("x-upstream-key"), "example");
    let id = answer.header("mcp-session-id");
    assert_eq!(front.post(NAME, Some(&id), call(2, "whoami")).await.status, 401);
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_and_no_tap_shows_a_configuration() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone());
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let front = Front::new().await;
    front.configure(|config| config.gateway.access_log = true);
    let server = HttpServer::start().await;
    front.set(&[(NAME, vec![configured(&server.endpoint(), session(None))])]);
    let mut tap = front.gateway.tap(NAME).unwrap();
    let answer = post(&front, "?apiKey=hunter2", &[], None, &initialize("2025-11-25")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let wrong = post(&front, "?apiKey=hunter2&units=hunter2", &[], None, &initialize("2025-11-25")).await;
    assert_eq!(wrong.status, 422);
    let shown = || String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    wait_until("two lines of the access log", || shown().matches("deployment=\"echo\" http=\"POST\"").count() == 2)
        .await;
    let ours: Vec<String> = shown().lines().filter(|l| l.contains("sigil")).map(str::to_owned).collect();
    assert!(!ours.is_empty() && !ours.iter().any(|line| line.contains("hunter2")), "{ours:#?}");
    let mut frames = 0;
    while let Ok(frame) = tap.try_recv() {
        frames += 1;
        assert!(!format!("{frame:?}").contains("hunter2"), "{frame:?}");
    }
    assert!(frames > 0);
}

#[tokio::test]
async fn a_session_has_a_process_of_its_own_configuration() {
    let mut front = Front::new().await;
    let base = endpoint(Transport::Stdio, 0, &["python3", "-c", SHOWS, "c", "last"]);
    let replica = configured(&base, shows());
    front.set(&[(NAME, vec![replica.clone()])]);
    let begin = async |front: &Front, query: &str| {
        let answer = post(front, query, &[], None, &initialize("2025-11-25")).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.header("mcp-session-id")
    };
    let (a, b) = (begin(&front, "?apiKey=ann&units=f").await, begin(&front, "?apiKey=bob").await);
    let ask =
        async |front: &Front, id: &str| post(front, "", &[], Some(id), &call(2, "show")).await.last()["result"].clone();
    let (shown, other) = (ask(&front, &a).await, ask(&front, &b).await);
    assert_eq!((&shown["key"], &shown["argv"]), (&json!("ann"), &json!(["f", "last"])), "{shown}");
    assert_eq!((&shown["config"]["apiKey"], &shown["config"]["units"]), (&json!("ann"), &json!("f")));
    assert_eq!((&other["key"], &other["argv"]), (&json!("bob"), &json!(["c", "last"])), "{other}");
    assert_eq!(front.gateway.sessions(replica.instance), 2);
    // the process goes on over a restart, with what it was started with
    front.restart().await;
    front.set(&[(NAME, vec![super::fixture::successor(&replica)])]);
    assert_eq!(
        post(&front, "?apiKey=ann&units=f", &[], Some(&a), &call(3, "show")).await.last()["result"]["pid"],
        shown["pid"]
    );
    // stateless requests of one configuration share a process, of another they do not
    let pid = async |query: &str| {
        let (headers, body) = stateless("1", "tools/call", r#""name":"show""#, "");
        let answer = front.raw("POST", &format!("/mcp/{NAME}{query}"), &headers, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        (answer.last()["result"]["key"].clone(), answer.last()["result"]["pid"].clone())
    };
    let (carol, dora) = (pid("?apiKey=carol").await, pid("?apiKey=dora").await);
    assert_eq!((&carol.0, &dora.0), (&json!("carol"), &json!("dora")));
    assert_ne!(carol.1, dora.1);
    assert_eq!(pid("?apiKey=carol").await, carol);
    assert!(replica_keys(&replica).len() >= 3);
    // secrets of the deploy cannot be replaced
    let spec = &configured(&base, shows()).spec;
    let started = spec.started_with(spec.session.as_ref().unwrap(), &json!({"root": SHOWS, "apiKey": "k"})).unwrap();
    assert_eq!(started.env.keys().collect::<Vec<_>>(), ["KEY", "SIGIL_CONFIG"]);
    let mut spec = spec.as_ref().clone();
    let inject = Inject::Environment("KEY".into());
    spec.secrets = vec![sigil_core::model::SecretUse::new("KEY", true, inject)];
    let started = spec.started_with(spec.session.as_ref().unwrap(), &json!({"root": SHOWS, "apiKey": "k"})).unwrap();
    assert_eq!((started.env.contains_key("KEY"), started.remove.len()), (false, 0));
}

#[tokio::test]
async fn without_an_address_the_deploys_values_must_do() {
    let front = Front::new().await;
    let base = endpoint(Transport::Stdio, 0, &["python3", "-c", SHOWS, "c", "last"]);
    front.set(&[(NAME, vec![configured(&base, shows())])]);
    let (to, from) = tokio::sync::mpsc::channel(8);
    let (out, mut answers) = tokio::sync::mpsc::channel(8);
    let gateway = front.gateway.clone();
    tokio::spawn(async move { gateway.session(NAME, &root(), &Default::default(), from, out).await });
    to.send(initialize("2025-11-25").into()).await.unwrap();
    until(&mut answers, 1).await;
    to.send(json!({"jsonrpc":"2.0","id":2,"method":"tools/list"}).to_string().into()).await.unwrap();
    assert_eq!(until(&mut answers, 2).await["result"]["tools"][0]["name"], "show");
    to.send(call(3, "show").into()).await.unwrap();
    let refused = until(&mut answers, 3).await;
    assert_eq!(refused["error"]["data"]["code"], "GATEWAY_INVALID_CONFIG", "{refused}");
}

#[tokio::test]
async fn legacy_sse_gets_configuration_and_secrets() {
    let front = Front::new().await;
    let server = HttpServer::start().await;
    let replica = configured(&server.legacy(), session(None));
    let secrets = vec![
        (Inject::Header("x-secret".into()), SecretString::from("s1")),
        (Inject::Query("token".into()), "s2".into()),
    ];
    front.set_with(NAME, vec![replica], secrets);
    let answer = post(&front, "?apiKey=k&token=mine", &[], None, &initialize("2025-11-25")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let id = answer.header("mcp-session-id");
    assert_eq!(post(&front, "", &[], Some(&id), &ping(2)).await.status, 200);
    let get = server.find("/sse");
    assert_eq!(get.target, "/sse?root=%2Fdata&u=c&token=s2");
    assert_eq!((get.header("x-secret").as_str(), get.header("x-upstream-key").as_str()), ("s1", "k"));
    assert_eq!(server.last().header("x-secret"), "s1");
}

#[tokio::test]
async fn secrets_that_were_added_do_not_come_back() {
    let front = Front::new().await;
    let echo = stdio(SERVER);
    let server = HttpServer::start().await;
    let secret = || vec![(Inject::Body("key".into()), SecretString::from("hunter2-hunter2"))];
    front.set_with(NAME, vec![echo], secret());
    let id = front.begin(NAME).await;
    let answer = front.post(NAME, Some(&id), call(2, "echo")).await;
    let line = answer.last()["result"]["line"].as_str().unwrap().to_owned();
    // the server got it, and says so
    assert!(line.contains(r#""key":"***************""#), "{line}");
    assert!(!answer.text.contains("hunter2"), "{}", answer.text);
    // over the link as well, and in bundles, which go the same way
    let (to, from) = tokio::sync::mpsc::channel(8);
    let (out, mut answers) = tokio::sync::mpsc::channel(8);
    let gateway = front.gateway.clone();
    tokio::spawn(async move { gateway.session(NAME, &root(), &Default::default(), from, out).await });
    to.send(call(1, "echo").into()).await.unwrap();
    let said = until(&mut answers, 1).await.to_string();
    assert!(said.contains("*****") && !said.contains("hunter2"), "{said}");
    // an answer of known length keeps it
    front.set_with(NAME, vec![server.endpoint()], vec![(Inject::Header("x-key".into()), "upstream-12345".into())]);
    let answer = front.post(NAME, None, call(3, "echo-header")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(server.last().header("x-key"), "upstream-12345");
    assert_eq!(answer.json()["result"]["headers"]["x-key"], "**************");
    assert_eq!(answer.header("content-length"), answer.text.len().to_string());
    // legacy SSE has header and query as well
    front.set_with(
        NAME,
        vec![server.legacy()],
        vec![
            (Inject::Header("x-key".into()), "sse-header".into()),
            (Inject::Query("token".into()), "sse-query".into()),
        ],
    );
    let id = front.begin(NAME).await;
    assert_eq!(server.find("/sse").target, "/sse?token=sse-query");
    assert_eq!(server.find("/sse").header("x-key"), "sse-header");
    assert_eq!(front.post(NAME, Some(&id), ping(9)).await.status, 200);
    assert_eq!(server.last().header("x-key"), "sse-header");
}

/// A conversation over the link, of this configuration; what it says last when it is refused.
async fn over_the_link(front: &Front, config: &[(&str, &str)], tool: &str) -> Result<Value, (String, String)> {
    let (to, from) = tokio::sync::mpsc::channel(8);
    let (out, mut answers) = tokio::sync::mpsc::channel(8);
    let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let gateway = front.gateway.clone();
    let running = tokio::spawn(async move { gateway.session(NAME, &root(), &config, from, out).await });
    to.send(initialize("2025-11-25").into()).await.ok();
    to.send(call(3, tool).into()).await.ok();
    let answer = loop {
        let Some(answer) = answers.recv().await else { break None };
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        if answer["id"] == 3 {
            break Some(answer);
        }
    };
    drop(to);
    let ended = running.await.unwrap();
    answer.ok_or_else(|| ended.map_err(|e| (e.code().to_owned(), format!("{e}; {}", e.hint()))).unwrap_err())
}

#[tokio::test]
async fn a_conversation_over_the_link_brings_its_own() {
    let front = Front::new().await;
    let base = endpoint(Transport::Stdio, 0, &["python3", "-c", SHOWS, "c", "last"]);
    front.set(&[(NAME, vec![configured(&base, shows())])]);
    let shown = over_the_link(&front, &[("apiKey", "ann"), ("units", "f")], "show").await.unwrap()["result"].clone();
    assert_eq!((&shown["key"], &shown["argv"]), (&json!("ann"), &json!(["f", "last"])), "{shown}");
    // all that is wrong, none of its values
    let (code, text) = over_the_link(&front, &[("units", "kelvin"), ("server.port", "x7y"), ("api_key", "k")], "show")
        .await
        .unwrap_err();
    assert!(code == "GATEWAY_INVALID_CONFIG" && text.contains("api_key is reserved"), "{text}");
    let (_, text) = over_the_link(&front, &[("units", "kelvin"), ("server.port", "x7y")], "show").await.unwrap_err();
    for part in ["apiKey is required", "units", "server.port", "--session-config"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("kelvin") && !text.contains("x7y"), "{text}");
    // nested, and as JSON
    let server = HttpServer::start().await;
    front.set(&[(NAME, vec![configured(&server.endpoint(), session(None))])]);
    over_the_link(&front, &[("apiKey", "k"), ("server", r#"{"port":9}"#)], "whoami").await.unwrap();
    let seen = server.find("/mcp");
    assert_eq!(seen.target, "/mcp?root=%2Fdata&server.port=9&server.host=here&u=c");
    assert_eq!(seen.header("x-upstream-key"), "k");
    // where there is nothing to configure
    front.set(&[(NAME, vec![server.endpoint()])]);
    let (code, text) = over_the_link(&front, &[("a", "b")], "whoami").await.unwrap_err();
    assert!(code == "GATEWAY_INVALID_CONFIG" && text.contains("takes no configuration"), "{text}");
}

#[tokio::test]
async fn a_bundles_members_are_configured_by_name() {
    let front = Front::new().await;
    let base = endpoint(Transport::Stdio, 0, &["python3", "-c", SHOWS, "c", "last"]);
    front.set(&[("weather", vec![configured(&base, shows())]), ("plain", vec![stdio(SERVER)])]);
    let send = async |query: &str, session: Option<&str>, body: &str| {
        front.raw("POST", &format!("/mcp{query}"), &accept(session), body).await
    };
    let show = json!({"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"weather__show"}}).to_string();
    for (query, key, units) in
        [("?weather.apiKey=ann&weather.units=f&x=1", "ann", "f"), ("?weather.apiKey=bob", "bob", "c")]
    {
        let opened = send(query, None, &initialize("2025-11-25")).await;
        assert_eq!(opened.status, 200, "{}", opened.text);
        let session = opened.header("mcp-session-id");
        let shown = send(query, Some(&session), &show).await.last()["result"].clone();
        assert_eq!((&shown["key"], &shown["argv"]), (&json!(key), &json!([units, "last"])), "{shown}");
        // it is a session of that configuration
        let other = send("?weather.apiKey=eve", Some(&session), &show).await;
        assert_eq!((other.status, other.code().as_str()), (404, "GATEWAY_SESSION_EXPIRED"), "{}", other.text);
    }
    let refused = send("?weather.units=kelvin&weather.server.port=x7y", None, &initialize("2025-11-25")).await;
    assert_eq!((refused.status, refused.code().as_str()), (422, "GATEWAY_INVALID_CONFIG"), "{}", refused.text);
    for part in ["weather.apiKey is required", "weather.units", "weather.server.port", "?SERVER.KEY=VALUE"] {
        assert!(refused.text.contains(part), "{part}: {}", refused.text);
    }
    assert!(!refused.text.contains("kelvin") && !refused.text.contains("x7y"), "{}", refused.text);
    // without any it may be looked at, and the call says what is missing
    let opened = send("", None, &initialize("2025-11-25")).await;
    let refused = send("", Some(&opened.header("mcp-session-id")), &show).await;
    assert!(refused.text.contains("apiKey is required"), "{}", refused.text);
}
