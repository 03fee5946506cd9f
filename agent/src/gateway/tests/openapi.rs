//! The registry's API against an OpenAPI document: parameters are generated from it, and every answer is held against it.
//! `tests/fixtures/registry/README.md` says which document.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use jiff::Timestamp;
use jsonschema::Validator;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use sigil_config::server_json::{SCHEMA_URL, SHAPE};

use super::registry::{Shop, server};
use super::*;

/// What is read of the API, where `SIGIL_REGISTRY_OPENAPI` names no other document.
const OURS: &str = include_str!("../../../../tests/fixtures/registry/openapi.json");
/// Requests of each operation.
const CASES: usize = 250;
/// Longest text that is looked for.
const SEARCH_MAX: usize = 200;

pub(super) struct Document {
    all: Value,
    validators: RefCell<HashMap<String, Rc<Validator>>>,
}

/// A read operation of the document.
struct Operation {
    path: String,
    parameters: Vec<Parameter>,
    /// The schema of each status that is said.
    answers: BTreeMap<u16, Value>,
}

struct Parameter {
    name: String,
    in_path: bool,
    schema: Value,
}

impl Document {
    pub(super) fn new() -> Self {
        let mut all: Value = match std::env::var("SIGIL_REGISTRY_OPENAPI") {
            Ok(path) => serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap(),
            Err(_) => serde_json::from_str(OURS).unwrap(),
        };
        let schemas = all["components"]["schemas"].as_object_mut().unwrap();
        if !schemas.contains_key("ServerDetail") {
            let shape: Value = serde_json::from_str(SHAPE).unwrap();
            schemas.insert("ServerDetail".to_owned(), json!({ "$ref": shape["$ref"] }));
            all["definitions"] = shape["definitions"].clone();
        }
        Self { all, validators: RefCell::default() }
    }

    fn validator(&self, schema: &Value) -> Rc<Validator> {
        let key = schema.to_string();
        if let Some(made) = self.validators.borrow().get(&key) {
            return made.clone();
        }
        let mut whole = json!({ "allOf": [schema], "components": self.all["components"] });
        if let Some(definitions) = self.all.get("definitions") {
            whole["definitions"] = definitions.clone();
        }
        let made = Rc::new(jsonschema::options().should_validate_formats(true).build(&whole).unwrap());
        self.validators.borrow_mut().insert(key, made.clone());
        made
    }

    fn schema(name: &str) -> Value {
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    /// What is wrong with a value, a line each.
    fn flaws(&self, schema: &Value, value: &Value) -> Vec<String> {
        self.validator(schema).iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect()
    }

    #[track_caller]
    pub(super) fn fits(&self, name: &str, answer: &Answer) -> Value {
        let kind = answer.header("content-type");
        assert_eq!((answer.status, kind.as_str()), (200, "application/json"), "{}", answer.text);
        let value = answer.json();
        let flaws = self.flaws(&Self::schema(name), &value);
        assert!(flaws.is_empty(), "{name}: {flaws:?}\n{value}");
        value
    }

    /// What a part refers to, if it does.
    fn resolved<'a>(&'a self, part: &'a Value) -> &'a Value {
        match part["$ref"].as_str() {
            Some(at) => self.all.pointer(at.trim_start_matches('#')).unwrap(),
            None => part,
        }
    }

    fn reads(&self) -> Vec<Operation> {
        let of = |(path, item): (&String, &Value)| {
            let get = item.get("get")?;
            let parameters = get["parameters"].as_array().unwrap().iter().map(|p| {
                let p = self.resolved(p);
                let name = p["name"].as_str().unwrap().to_owned();
                Parameter { name, in_path: p["in"] == "path", schema: self.resolved(&p["schema"]).clone() }
            });
            let answers = get["responses"].as_object().unwrap().iter().map(|(status, answer)| {
                let schema = &self.resolved(answer)["content"]["application/json"]["schema"];
                (status.parse().unwrap(), schema.clone())
            });
            Some(Operation { path: path.clone(), parameters: parameters.collect(), answers: answers.collect() })
        };
        self.all["paths"].as_object().unwrap().iter().filter_map(of).collect()
    }
}

/// A version as it should be found.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    deleted: bool,
}

/// What is in the registry, by name and version.
type Rows = BTreeMap<(String, String), Row>;

/// Names, versions and words that are allowed and that something may stumble over.
async fn filled(shop: &Shop) -> Rows {
    let long = format!("io.example/{}", "n".repeat(189));
    let names = ["io.example/a", "a/b", "A.B/C", "io.example/versions", "x/..", "../x", "0/_", "io.example/a.", &long];
    let odd = "v".repeat(255);
    let versions = ["1.0.0", "1.0.0+b/c%2F", "2021.03.15", "0 ?#&=", "ünï\u{202e}cödé", "latest-1", "..", odd.as_str()];
    let mut rows = Rows::new();
    let mut items = Vec::new();
    for (n, name) in names.into_iter().enumerate() {
        for (v, version) in versions.into_iter().enumerate() {
            let status = if (n + v) % 5 == 4 { "deleted" } else { ["active", "deprecated"][v % 2] };
            let mut item = server("x", version);
            item["name"] = json!(name);
            item["title"] = json!("<script>\u{202e}\"'`${x}\u{0}\n");
            item["description"] = json!("\u{1f980}\\u0000 \u{7f}'; DROP TABLE packages; --");
            let official = json!({"status": status, "isLatest": v == 0, "publishedAt": "2025-09-01T00:00:00Z",
                "updatedAt": format!("2025-09-{:02}T0{v}:00:00.123456789Z", n + 2)});
            items.push(json!({"server": item, "_meta": {"io.modelcontextprotocol.registry/official": official}}));
            rows.insert((name.to_owned(), version.to_owned()), Row { deleted: status == "deleted" });
        }
    }
    let done = shop.registry.import("hostile", items, true).await.unwrap();
    assert_eq!((done.new as usize, done.refusals), (rows.len(), 0), "{done:?}");
    for n in 0..40 {
        let own = server(&format!("own-{n:03}"), "1.0.0");
        assert_eq!(shop.publish(&own).await.status, 200);
        rows.insert((format!("io.example/own-{n:03}"), "1.0.0".into()), Row { deleted: false });
    }
    rows
}

/// Texts that readers stumble over.
fn hostile() -> impl Strategy<Value = String> {
    let all =
        ["", "%", "%00", "../../etc/passwd", "a/b/c", "\0", "\r\nx: y", "'; --", "<b>", "ß\u{202e}", "latest", "null"];
    prop_oneof![
        select(all.to_vec()).prop_map(str::to_owned),
        "\\PC{0,30}",
        "[a-z./]{1,12}",
        (195_usize..210).prop_map(|n| "ö".repeat(n)),
    ]
}

/// What a schema of the document lets through, what is near it, and what is there.
fn values(parameter: &Parameter, there: Vec<String>) -> BoxedStrategy<String> {
    let words = |list: &[&str]| select(list.iter().map(|w| (*w).to_owned()).collect::<Vec<String>>());
    match (parameter.schema["type"].as_str(), parameter.schema["format"].as_str()) {
        (Some("integer"), _) => prop_oneof![
            (1_u32..150).prop_map(|n| n.to_string()),
            any::<i64>().prop_map(|n| n.to_string()),
            words(&["0", "1", "100", "101", "-1", "", "1e3", " 5", "99999999999999999999999"]),
        ]
        .boxed(),
        (Some("boolean"), _) => words(&["true", "false", "true", "false", "", "1", "TRUE", "maybe"]).boxed(),
        (_, Some("date-time")) => prop_oneof![
            (0_i64..4_000_000_000).prop_map(|s| Timestamp::from_second(s).unwrap().to_string()),
            words(&[
                "2025-09-05T00:00:00Z",
                "2025-09-05T02:00:00.123+02:00",
                "1960-01-01T00:00:00Z",
                "2025-09-05",
                "now",
                "",
                "9999-12-31T23:59:59Z",
                "2025-02-30T00:00:00Z",
            ]),
        ]
        .boxed(),
        _ => prop_oneof![3 => select(there), 2 => hostile()].boxed(),
    }
}

fn encoded(part: &str) -> String {
    part.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// The status that a request has coming, from what is there and what is asked.
fn expected(operation: &Operation, said: &BTreeMap<&str, String>, rows: &Rows, cursors: &BTreeSet<String>) -> u16 {
    let of = |name: &str| said.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let odd = |part: &str| part.is_empty() || part.chars().any(char::is_control);
    let named: Vec<&str> =
        ["serverName", "version"].into_iter().filter(|n| operation.path.contains(&format!("{{{n}}}"))).collect();
    if named.iter().any(|n| odd(&said[n])) {
        return 400;
    }
    let bad = of("limit").is_some_and(|v| !v.parse::<usize>().is_ok_and(|n| n > 0))
        || of("include_deleted").is_some_and(|v| v != "true" && v != "false")
        || of("updated_since").is_some_and(|v| v.parse::<Timestamp>().is_err())
        || of("cursor").is_some_and(|v| !cursors.contains(v))
        || (of("cursor").is_none() && of("search").is_some_and(|v| v.trim().chars().count() > SEARCH_MAX));
    if bad {
        return 400;
    }
    let Some(name) = said.get("serverName") else { return 200 };
    let deleted = of("include_deleted") == Some("true");
    let mut of_it = rows.iter().filter(|((n, _), row)| n == name && (deleted || !row.deleted));
    let there = match (named.len(), said.get("version").map(String::as_str)) {
        (2, Some("latest")) => return u16::MAX,
        (2, Some(version)) => of_it.any(|((_, v), _)| v == version),
        _ => of_it.next().is_some(),
    };
    if there { 200 } else { 404 }
}

#[tokio::test]
async fn whatever_is_asked_is_answered_as_the_document_says() {
    let shop = Shop::new().await;
    let rows = filled(&shop).await;
    let first = shop.get("/v0.1/servers?limit=5").await.json();
    let late = shop.get("/v0.1/servers?limit=3&updated_since=2025-09-03T00:00:00Z").await.json();
    let cursor = |page: &Value| page["metadata"]["nextCursor"].as_str().unwrap().to_owned();
    let cursors = BTreeSet::from([cursor(&first), cursor(&late)]);
    let there = |name: &str| -> Vec<String> {
        let all: BTreeSet<String> = match name {
            "serverName" => rows.keys().map(|(n, _)| n.clone()).collect(),
            "version" => rows.keys().map(|(_, v)| v.clone()).chain(["latest".to_owned()]).collect(),
            "cursor" => cursors.clone(),
            _ => ["own", "IO.EXAMPLE", "script", "/", "own-01"].map(str::to_owned).into(),
        };
        all.into_iter().collect()
    };
    let mut runner = TestRunner::deterministic();
    let operations = shop.document.reads();
    assert_eq!(operations.len(), 3, "read endpoints of the API");
    let mut seen: BTreeMap<u16, usize> = BTreeMap::new();
    for operation in &operations {
        let strategies: Vec<_> = operation
            .parameters
            .iter()
            .map(|p| {
                let value = values(p, there(&p.name));
                if p.in_path { value.prop_map(Some).boxed() } else { prop::option::weighted(0.4, value).boxed() }
            })
            .collect();
        for _ in 0..CASES {
            let drawn = strategies.new_tree(&mut runner).unwrap().current();
            let (mut path, mut query) = (operation.path.clone(), url::form_urlencoded::Serializer::new(String::new()));
            let mut said = BTreeMap::new();
            for (parameter, value) in operation.parameters.iter().zip(drawn) {
                let Some(value) = value else { continue };
                match parameter.in_path {
                    true => path = path.replace(&format!("{{{}}}", parameter.name), &encoded(&value)),
                    false => drop(query.append_pair(&parameter.name, &value)),
                }
                said.insert(parameter.name.as_str(), value);
            }
            if path.ends_with('/') {
                // without its last part it is another operation's
                continue;
            }
            let asked = format!("{path}?{}", query.finish());
            let answer = shop.get(&asked).await;
            *seen.entry(answer.status).or_default() += 1;
            assert_eq!(answer.header("content-type"), "application/json", "{asked}");
            let value = answer.json();
            match expected(operation, &said, &rows, &cursors) {
                u16::MAX => assert!(matches!(answer.status, 200 | 404), "{asked}: {} {value}", answer.status),
                status => assert_eq!(answer.status, status, "{asked}: {value}"),
            }
            // the document names no schema for what breaks its own
            let missing = json!({"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}});
            let schema = operation.answers.get(&answer.status).unwrap_or(&missing);
            let flaws = shop.document.flaws(schema, &value);
            assert!(flaws.is_empty(), "{asked}: {flaws:?}\n{value}");
            if let Some(items) = value["servers"].as_array() {
                let unique: BTreeSet<String> =
                    items.iter().map(|i| format!("{} {}", i["server"]["name"], i["server"]["version"])).collect();
                assert_eq!((unique.len(), &value["metadata"]["count"]), (items.len(), &json!(items.len())), "{asked}");
                assert!(items.iter().all(|item| item["_meta"].is_object()), "{asked}");
            }
        }
    }
    assert!([200, 400, 404].into_iter().all(|status| seen.get(&status).is_some_and(|n| *n > 50)), "{seen:?}");
}

/// Pages of every size hold everything once, whatever it is called.
#[tokio::test]
async fn hostile_names_page_through_without_gap_or_repeat() {
    let shop = Shop::new().await;
    let rows = filled(&shop).await;
    let all: BTreeSet<(String, String)> = rows.keys().cloned().collect();
    let there: BTreeSet<(String, String)> = rows.iter().filter(|(_, r)| !r.deleted).map(|(k, _)| k.clone()).collect();
    for (query, wanted) in [("", &there), ("include_deleted=true", &all), ("updated_since=2020-01-01T00:00:00Z", &all)]
    {
        for limit in [1, 7, 100] {
            let mut path = format!("/v0.1/servers?limit={limit}&{query}");
            let mut found = Vec::new();
            loop {
                let page = shop.document.fits("ServerList", &shop.get(&path).await);
                let items = page["servers"].as_array().unwrap();
                assert!(items.len() <= limit);
                let text = |item: &Value, key: &str| item["server"][key].as_str().unwrap().to_owned();
                found.extend(items.iter().map(|item| (text(item, "name"), text(item, "version"))));
                let Some(cursor) = page["metadata"]["nextCursor"].as_str() else { break };
                path = format!("/v0.1/servers?limit={limit}&cursor={cursor}");
            }
            let unique: BTreeSet<(String, String)> = found.iter().cloned().collect();
            assert_eq!(unique.len(), found.len(), "limit {limit}, {query}: something is told twice");
            assert_eq!(&unique, wanted, "limit {limit}, {query}");
        }
    }
}

/// A document that the schema of the API refuses is not published, and what is published comes back as it says.
#[tokio::test]
async fn no_document_is_published_that_breaks_the_schema() {
    let shop = Shop::new().await;
    let schema = Document::schema("ServerDetail");
    let odd = [
        json!(null),
        json!(7),
        json!(""),
        json!("x"),
        json!([]),
        json!({}),
        json!([7]),
        json!("\u{202e}é"),
        json!(true),
    ];
    let mut runner = TestRunner::deterministic();
    let mut places = Vec::new();
    let whole = server("x", "1.0.0");
    pointers(&whole, String::new(), &mut places);
    let (mut taken, mut refused) = (0, 0);
    for case in 0..CASES {
        let mut document = server(&format!("case-{case}"), "1.0.0");
        document["$schema"] = json!(SCHEMA_URL);
        let tree = (select(places.clone()), select(odd.to_vec())).new_tree(&mut runner).unwrap();
        let (at, value) = tree.current();
        *document.pointer_mut(&at).unwrap() = value.clone();
        let answer = shop.publish(&document).await;
        let flaws = shop.document.flaws(&schema, &document);
        match answer.status {
            200 => {
                assert!(flaws.is_empty(), "{at} = {value} is published: {flaws:?}");
                shop.document.fits("ServerResponse", &answer);
                taken += 1;
            }
            400 => {
                assert!(answer.json()["error"].as_str().is_some_and(|e| !e.is_empty()), "{at} = {value}");
                refused += 1;
            }
            other => panic!("{at} = {value}: {other} {}", answer.text),
        }
    }
    assert!(taken > 20 && refused > 20, "{taken} taken, {refused} refused");
}

/// Every place of a document.
fn pointers(value: &Value, at: String, out: &mut Vec<String>) {
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => map.iter().for_each(|(key, v)| pointers(v, format!("{at}/{}", escaped(key)), out)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, v)| pointers(v, format!("{at}/{i}"), out)),
        _ => {}
    }
    if !at.is_empty() {
        out.push(at);
    }
}
