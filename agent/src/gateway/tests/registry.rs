//! The registry's API as clients meet it: requests as VS Code, GitHub Copilot and mirrors send them.

use sigil_config::server_json::{PUBLISHER, SCHEMA_URL};

use super::openapi::Document;
use super::*;
use crate::access::{NewToken, Role, create_token, reveal};
use crate::audit::Audit;
use crate::registry::Registry;
use crate::store::Store;
use crate::web::registry::Site;

pub(super) struct Shop {
    front: Front,
    pub(super) document: Document,
    pub(super) registry: Registry,
    key: String,
    audit: Audit,
    _dir: tempfile::TempDir,
}

impl Shop {
    pub(super) async fn new() -> Self {
        let front = Front::new().await;
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let audit = Audit::open(front.data_dir()).unwrap();
        let shared = &front.gateway.shared;
        let registry = Registry::spawn(store, dir.path(), shared.stop.clone());
        let site = Site::new(registry.clone(), shared.keys.clone(), audit.clone(), shared.config.clone());
        front.gateway.tell_site(site);
        let key = reveal(&create_token(front.data_dir(), NewToken::new("ci", Role::Deployer)).unwrap().0).to_owned();
        Self { front, document: Document::new(), registry, key, audit, _dir: dir }
    }

    fn bearer(&self) -> Vec<(String, String)> {
        owned(&[("authorization", &format!("Bearer {}", self.key)), ("content-type", "application/json")])
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.front.raw("GET", path, &[], "").await
    }

    pub(super) async fn publish(&self, document: &Value) -> Answer {
        self.front.raw("POST", "/v0.1/publish", &self.bearer(), &document.to_string()).await
    }
}

/// With everything that a document may have.
pub(super) fn server(name: &str, version: &str) -> Value {
    json!({
        "$schema": SCHEMA_URL, "name": format!("io.example/{name}"), "description": format!("About {name}."),
        "title": format!("The {name}"), "version": version, "websiteUrl": "https://example.com/",
        "repository": {"url": "https://code.example/x", "source": "git", "subfolder": "a/b"},
        "icons": [{"src": "https://example.com/i.png", "mimeType": "image/png", "sizes": ["48x48"], "theme": "dark"}],
        "packages": [{
            "registryType": "npm", "identifier": "@example/x", "version": "1.0.0", "runtimeHint": "npx",
            "registryBaseUrl": "https://registry.npmjs.org", "transport": {"type": "stdio"},
            "runtimeArguments": [{"type": "named", "name": "--yes"}],
            "packageArguments": [{"type": "positional", "valueHint": "dir", "isRepeated": true, "format": "filepath"}],
            "environmentVariables": [{"name": "X_KEY", "isSecret": true, "isRequired": true, "choices": []}],
        }],
        "remotes": [{"type": "streamable-http", "url": "https://{tenant}.example.com/mcp",
            "variables": {"tenant": {"default": "a", "description": "whose"}}, "headers": [{"name": "X-Y", "value": "z"}]}],
        "_meta": {(PUBLISHER): {"category": "travel", "tags": ["x"], "tools": ["get_it"], "readme": "# hi"}},
    })
}

/// mcpGalleryManifestService.ts and mcpGalleryService.ts: probe, list, pages, one server; what they read unguarded is there.
#[tokio::test]
async fn vs_code_reads_it_as_a_gallery() {
    let shop = Shop::new().await;
    let probe = shop.get("/v0.1/servers?limit=1").await;
    let empty = shop.document.fits("ServerList", &probe);
    assert_eq!(empty, json!({"servers": [], "metadata": {"count": 0}}));
    for n in 0..60 {
        assert_eq!(shop.publish(&server(&format!("p{n:02}"), "1.0.0")).await.status, 200);
    }
    assert_eq!(shop.publish(&server("p07", "1.1.0")).await.status, 200);

    let mut path = "/v0.1/servers?limit=50&version=latest".to_owned();
    let (mut names, mut pages) = (Vec::new(), 0);
    loop {
        let page = shop.document.fits("ServerList", &shop.get(&path).await);
        pages += 1;
        for item in page["servers"].as_array().unwrap() {
            let official = &item["_meta"]["io.modelcontextprotocol.registry/official"];
            assert_eq!((&official["status"], &official["isLatest"]), (&json!("active"), &json!(true)));
            let own = &item["_meta"]["io.sigil.registry/package"];
            assert_eq!((&own["tools"][0]["name"], &own["secrets"][0]["name"]), (&json!("get_it"), &json!("X_KEY")));
            names.push(item["server"]["name"].as_str().unwrap().to_owned());
        }
        assert_eq!(page["metadata"]["count"], page["servers"].as_array().unwrap().len());
        // as it is, and nothing of what was asked for on the first page beside it
        let Some(cursor) = page["metadata"]["nextCursor"].as_str() else { break };
        path = format!("/v0.1/servers?limit=50&version=latest&cursor={cursor}");
    }
    assert_eq!((names.len(), pages), (60, 2));
    assert!(names.is_sorted());

    // a search goes on with its second page, whose request does not say what is looked for
    let first = shop.get("/v0.1/servers?limit=4&version=latest&search=P0").await.json();
    let cursor = first["metadata"]["nextCursor"].as_str().unwrap();
    let second = shop.get(&format!("/v0.1/servers?limit=50&version=latest&cursor={cursor}")).await.json();
    assert_eq!(second["servers"].as_array().unwrap().len(), 6);
    assert_eq!(second["servers"][0]["server"]["name"], "io.example/p04");

    let one = shop.get("/v0.1/servers/io.example%2Fp07/versions/latest").await;
    let one = shop.document.fits("ServerResponse", &one);
    assert_eq!((&one["server"]["version"], &one["server"]["icons"][0]["theme"]), (&json!("1.1.0"), &json!("dark")));
    assert_eq!(one["_meta"]["io.sigil.registry/package"]["readme"], "# hi");
    let missing = shop.get("/v0.1/servers/io.example%2Fnone/versions/latest").await;
    assert_eq!(missing.status, 404);
    assert!(missing.json()["error"].as_str().unwrap().contains("no package 'io.example/none'"), "{}", missing.text);
}

/// GitHub's "Configure an MCP registry": three paths, preflight, CORS for everybody, nobody logs in.
#[tokio::test]
async fn copilot_reads_it_from_another_origin() {
    let shop = Shop::new().await;
    shop.publish(&server("clock", "1.0.0")).await;
    let origin = owned(&[("origin", "https://github.com")]);
    // a registry for this host only is none for somebody's page in a browser of this host
    let refused = shop.front.raw("GET", "/v0.1/servers", &origin, "").await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin").as_str()), (403, ""));
    assert!(refused.json()["error"].is_string());
    shop.front.configure(|config| config.registry.anonymous = "anywhere".into());
    let preflight = [origin.clone(), owned(&[("access-control-request-method", "GET")])].concat();
    for path in [
        "/v0.1/servers",
        "/v0.1/servers/io.example%2Fclock/versions/latest",
        "/v0.1/servers/io.example%2Fclock/versions/1.0.0",
    ] {
        for (method, headers) in [("OPTIONS", &preflight), ("GET", &origin), ("GET", &vec![])] {
            let answer = shop.front.raw(method, path, headers, "").await;
            assert_eq!(answer.status, if method == "OPTIONS" { 204 } else { 200 }, "{method} {path}: {}", answer.text);
            let of = |name: &str| answer.header(&format!("access-control-allow-{name}"));
            assert_eq!(
                (of("origin"), of("methods"), of("headers")),
                ("*".into(), "GET, OPTIONS".into(), "Authorization, Content-Type".into()),
                "{method} {path}"
            );
        }
    }
    // a token of theirs opens nothing and closes nothing
    let theirs = owned(&[("authorization", "Bearer gho_something")]);
    assert_eq!(shop.front.raw("GET", "/v0.1/servers", &theirs, "").await.status, 200);
    let wrong = owned(&[("authorization", "Bearer sigil_x_y")]);
    assert_eq!(shop.front.raw("GET", "/v0.1/servers", &wrong, "").await.status, 401);
    // a name that a page made up for this host is still none of ours
    let rebound = owned(&[("host", "evil.example")]);
    assert_eq!(shop.front.raw("GET", "/v0.1/servers", &rebound, "").await.status, 403);
}

#[tokio::test]
async fn who_may_read_is_the_owners_to_say() {
    let shop = Shop::new().await;
    shop.publish(&server("clock", "1.0.0")).await;
    let status = async |headers: &[(String, String)]| shop.front.raw("GET", "/v0.1/servers", headers, "").await.status;
    assert_eq!((status(&[]).await, status(&shop.bearer()).await), (200, 200));
    shop.front.configure(|config| config.registry.anonymous = "never".into());
    assert_eq!((status(&[]).await, status(&shop.bearer()).await), (401, 200));
    // from a page of any origin with a key: the key is what opens it
    let page = [shop.bearer(), owned(&[("origin", "https://tool.example")])].concat();
    let answer = shop.front.raw("GET", "/v0.1/servers", &page, "").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin").as_str()), (200, "*"));
}

#[tokio::test]
async fn every_reading_endpoint_answers_as_the_document_says() {
    let shop = Shop::new().await;
    for version in ["1.0.0", "1.1.0", "1.2.0-beta.1+b.2"] {
        let answer = shop.publish(&server("clock", version)).await;
        shop.document.fits("ServerResponse", &answer);
    }
    shop.publish(&server("other", "2021.03.15")).await;
    let base = "/v0.1/servers/io.example%2Fclock";
    let patch = |path: String, body: Value| {
        let (shop, headers) = (&shop, shop.bearer());
        async move { shop.front.raw("PATCH", &path, &headers, &body.to_string()).await }
    };
    let deleted = json!({"status": "deleted", "statusMessage": "it lost data"});
    let answer = patch(format!("{base}/versions/1.2.0-beta.1%2Bb.2/status"), deleted.clone()).await;
    let answer = shop.document.fits("ServerResponse", &answer);
    assert_eq!(answer["_meta"]["io.modelcontextprotocol.registry/official"]["statusMessage"], "it lost data");
    let again = patch(format!("{base}/versions/1.2.0-beta.1%2Bb.2/status"), deleted).await;
    assert_eq!(again.status, 400, "{}", again.text);

    for (path, schema, count) in [
        ("/v0.1/servers", "ServerList", 3),
        ("/v0/servers", "ServerList", 3),
        ("/v0.1/servers?include_deleted=true", "ServerList", 4),
        ("/v0.1/servers?version=latest", "ServerList", 2),
        ("/v0.1/servers?version=1.0.0", "ServerList", 1),
        ("/v0.1/servers?search=clo", "ServerList", 2),
        ("/v0.1/servers?search=nothing", "ServerList", 0),
        ("/v0.1/servers?updated_since=2020-01-01T00:00:00Z", "ServerList", 4),
        ("/v0.1/servers?updated_since=2120-01-01T00:00:00Z", "ServerList", 0),
        ("/v0.1/servers/io.example%2Fclock/versions", "ServerList", 2),
        ("/v0.1/servers/io.example%2Fclock/versions?include_deleted=true", "ServerList", 3),
        ("/v0.1/servers/io.example%2Fother/versions/2021.03.15", "ServerResponse", 0),
        ("/v0.1/servers/io.example%2Fclock/versions/latest", "ServerResponse", 0),
        ("/v0.1/servers/io.example%2Fclock/versions/1.2.0-beta.1+b.2?include_deleted=true", "ServerResponse", 0),
    ] {
        let answer = shop.document.fits(schema, &shop.get(path).await);
        if schema == "ServerList" {
            assert_eq!(answer["servers"].as_array().unwrap().len(), count, "{path}");
        }
    }
    let all = patch(format!("{base}/status"), json!({"status": "deprecated"})).await;
    assert_eq!(shop.document.fits("AllVersionsStatusResponse", &all)["updatedCount"], 3);

    for (method, path, status) in [
        ("GET", "/v0.1/servers/io.example%2Fclock/versions/9.9.9", 404),
        ("GET", "/v0.1/servers/io.example%2Fnone/versions", 404),
        ("GET", "/v0.1/servers/io.example%2Fclock", 404),
        ("GET", "/v0.1/nothing", 404),
        ("GET", "/v0.1/servers?limit=none", 400),
        ("GET", "/v0.1/servers?cursor=none", 400),
        ("PUT", "/v0.1/servers/io.example%2Fclock/versions/1.0.0", 501),
        ("DELETE", "/v0.1/servers/io.example%2Fclock/versions/1.0.0", 501),
        ("DELETE", "/v0.1/servers", 405),
        ("GET", "/v0.1/publish", 405),
    ] {
        let answer = shop.front.raw(method, path, &shop.bearer(), "").await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        assert!(answer.json()["error"].as_str().is_some_and(|words| !words.is_empty()), "{method} {path}");
    }
}

#[tokio::test]
async fn publishing_takes_a_key_and_is_recorded() {
    let shop = Shop::new().await;
    let document = server("clock", "1.0.0").to_string();
    let send =
        async |headers: &[(String, String)], body: &str| shop.front.raw("POST", "/v0.1/publish", headers, body).await;
    assert_eq!(send(&[], &document).await.status, 401);
    let caller = reveal(&create_token(shop.front.data_dir(), NewToken::new("a", Role::Caller)).unwrap().0).to_owned();
    assert_eq!(send(&owned(&[("authorization", &format!("Bearer {caller}"))]), &document).await.status, 403);
    assert_eq!(send(&shop.bearer(), "{").await.status, 400);
    let bad = send(&shop.bearer(), &server("clock", "^1.0.0").to_string()).await;
    assert!(bad.status == 400 && bad.json()["error"].as_str().unwrap().contains("/version: "), "{}", bad.text);
    assert_eq!(send(&shop.bearer(), &document).await.status, 200);
    assert_eq!(send(&shop.bearer(), &document).await.status, 200, "the same again");
    let mut other = server("clock", "1.0.0");
    other["title"] = json!("Another");
    assert_eq!(send(&shop.bearer(), &other.to_string()).await.status, 400);
    let mut log = shop.audit.read(crate::audit::Query::default());
    let lines = log.next().await.unwrap().unwrap().lines;
    let records: Vec<Value> = lines.iter().map(|line| serde_json::from_slice(line).unwrap()).collect();
    let published = records.iter().filter(|record| record["what"] == "package.publish");
    let outcomes: Vec<&str> = published.map(|record| record["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["BAD_DOCUMENT", "ok", "ok", "VERSION_TAKEN"]);
}
