//! The room as its callers see it, with registries and an engine played here.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use sha2::{Digest, Sha256, Sha512};

use super::*;
use crate::engine;
use crate::secrets::Scope;

/// (path, query, method, headers, body) -> (status, headers, body)
pub(crate) type Answer = (u16, Vec<(String, String)>, Vec<u8>);
pub(crate) type Handler = dyn Fn(&str, &str, &str, &BTreeMap<String, String>, &[u8]) -> Answer + Send + Sync;

/// An HTTP server on loopback, for as long as the test's runtime.
pub(crate) async fn serve(handler: Arc<Handler>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let handler = handler.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: hyper::Request<Incoming>| {
                    let handler = handler.clone();
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let headers = parts
                            .headers
                            .iter()
                            .map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned()))
                            .collect();
                        let answer = tokio::task::spawn_blocking(move || {
                            handler(
                                parts.uri.path(),
                                parts.uri.query().unwrap_or(""),
                                parts.method.as_str(),
                                &headers,
                                &body,
                            )
                        });
                        let (status, headers, body) = answer.await.unwrap();
                        let mut response = hyper::Response::builder().status(status);
                        for (name, value) in headers {
                            response = response.header(name, value);
                        }
                        Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).unwrap())
                    }
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                // a client that goes away is part of the tests
                let _ended = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            });
        }
    });
    port
}

/// All lines until the sender is gone.
pub(super) async fn drained(mut lines: mpsc::Receiver<String>) -> Vec<String> {
    let mut said = Vec::new();
    while let Some(line) = lines.recv().await {
        said.push(line);
    }
    said
}

/// A vault of its own.
pub(super) fn secrets(data_dir: &Path) -> Secrets {
    Secrets::in_memory(data_dir)
}

/// An engine with some images, that can pull others.
#[derive(Debug, Default)]
struct Images {
    here: Mutex<Vec<String>>,
    remote: Vec<String>,
    logins: Mutex<Vec<Option<String>>>,
}

fn not_played<T>() -> engine::Result<T> {
    Err(EngineError::Api("not played here".into()))
}

#[async_trait]
impl Engine for Images {
    async fn image(&self, reference: &str) -> engine::Result<Option<engine::Image>> {
        let here = self.here.lock().unwrap().iter().any(|r| r == reference);
        let digest = format!("{}@sha256:{}", repository_of(reference), "d".repeat(64));
        let digests = if reference.contains('/') { vec!["other/x@sha256:00".into(), digest] } else { Vec::new() };
        Ok(here.then(|| engine::Image { id: "sha256:1234".into(), digests, ..engine::Image::default() }))
    }
    async fn pull(
        &self,
        reference: &str,
        login: Option<&RegistryLogin>,
        _out: mpsc::Sender<String>,
        _cancel: CancellationToken,
    ) -> engine::Result<String> {
        self.logins.lock().unwrap().push(login.map(|l| format!("{} {}", l.host, l.username)));
        if !self.remote.iter().any(|r| r == reference) {
            return Err(EngineError::NotFound(format!("image {reference}")));
        }
        self.here.lock().unwrap().push(reference.to_owned());
        Ok("sha256:1234".into())
    }
    async fn push(
        &self,
        _: &str,
        _: Option<&RegistryLogin>,
        _: mpsc::Sender<String>,
        _: CancellationToken,
    ) -> engine::Result<String> {
        not_played()
    }
    async fn capabilities(&self) -> engine::Result<engine::Capabilities> {
        not_played()
    }
    fn events(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
    async fn observe(&self) -> engine::Result<Vec<engine::Container>> {
        not_played()
    }
    async fn inspect(&self, _: &str) -> engine::Result<engine::Container> {
        not_played()
    }
    async fn read_image(&self, _: &str, _: engine::Wanted, _: u64) -> engine::Result<Vec<(String, Vec<u8>)>> {
        not_played()
    }
    async fn create(&self, _: &engine::ContainerSpec) -> engine::Result<String> {
        not_played()
    }
    async fn start(&self, _: &str) -> engine::Result<()> {
        not_played()
    }
    async fn stop(&self, _: &str, _: u32) -> engine::Result<()> {
        not_played()
    }
    async fn kill(&self, _: &str, _: &str) -> engine::Result<()> {
        not_played()
    }
    async fn pause(&self, _: &str) -> engine::Result<()> {
        not_played()
    }
    async fn unpause(&self, _: &str) -> engine::Result<()> {
        not_played()
    }
    async fn remove(&self, _: &str) -> engine::Result<()> {
        not_played()
    }
    async fn set_cpus(&self, _: &str, _: f64) -> engine::Result<()> {
        not_played()
    }
    async fn stats(&self, _: &str) -> engine::Result<Option<sigil_core::cgroup::Reading>> {
        not_played()
    }
    async fn engine_log(
        &self,
        _: &str,
        _: Option<jiff::Timestamp>,
        _: usize,
    ) -> engine::Result<Vec<engine::EngineLine>> {
        not_played()
    }
    async fn build(
        &self,
        _: engine::Context,
        _: &engine::BuildSpec,
        _: &[RegistryLogin],
        _: mpsc::Sender<String>,
        _: CancellationToken,
    ) -> engine::Result<String> {
        not_played()
    }
    async fn images(&self) -> engine::Result<Vec<engine::Image>> {
        not_played()
    }
    async fn images_named(&self, _: &str) -> engine::Result<Vec<engine::Image>> {
        not_played()
    }
    async fn tag(&self, _: &str, _: &str) -> engine::Result<()> {
        not_played()
    }
    async fn remove_image(&self, _: &str) -> engine::Result<()> {
        not_played()
    }
    async fn ensure_volume(&self, _: &str, _: &BTreeMap<String, String>, _: &str) -> engine::Result<()> {
        not_played()
    }
    async fn remove_volume(&self, _: &str) -> engine::Result<()> {
        not_played()
    }
    async fn volumes(&self) -> engine::Result<Vec<(String, BTreeMap<String, String>)>> {
        not_played()
    }
    async fn ensure_network(&self, _: &str, _: &BTreeMap<String, String>) -> engine::Result<()> {
        not_played()
    }
    async fn remove_network(&self, _: &str) -> engine::Result<()> {
        not_played()
    }
    async fn networks(&self) -> engine::Result<Vec<String>> {
        not_played()
    }
}

struct World {
    dir: tempfile::TempDir,
    engine: Arc<Images>,
    secrets: Secrets,
    sources: Sources,
    cancel: CancellationToken,
    _stop: tokio_util::sync::DropGuard,
}

fn world(config: AgentConfig, engine: Images) -> World {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(engine);
    let secrets = secrets(dir.path());
    let stop = CancellationToken::new();
    let config = watch::channel(Arc::new(config)).1;
    let sources = Sources::spawn(dir.path(), config, secrets.clone(), engine.clone(), stop.clone()).unwrap();
    World { dir, engine, secrets, sources, cancel: CancellationToken::new(), _stop: stop.drop_guard() }
}

impl World {
    async fn fetch(&self, source: &str, upload: Option<&str>) -> (Result<Fetched, SourceError>, Vec<String>) {
        let (out, lines) = mpsc::channel(4);
        let source: Source = source.parse().unwrap();
        let work = self.sources.fetch(&source, upload, out, self.cancel.clone());
        let result = tokio::join!(work, drained(lines));
        assert_eq!(
            std::fs::read_dir(self.dir.path().join("sources/tmp")).unwrap().count(),
            0,
            "something was left behind"
        );
        result
    }

    async fn fetched(&self, source: &str) -> Fetched {
        let (result, said) = self.fetch(source, None).await;
        result.unwrap_or_else(|e| panic!("{e} ({}): {said:?}", e.hint()))
    }

    async fn upload(&self, files: &[(&str, &[u8])]) -> String {
        let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
        for (path, body) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(body.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, *body).unwrap();
        }
        let archive = tar.into_inner().unwrap().finish().unwrap();
        let mut upload = self.sources.upload("./dir", archive.len() as u64).await.unwrap();
        for chunk in archive.chunks(7) {
            upload.write(chunk).await.unwrap();
        }
        upload.finish().await.unwrap().0
    }
}

fn read(fetched: &Fetched, path: &str) -> String {
    std::fs::read_to_string(fetched.tree.as_ref().unwrap().join(path)).unwrap()
}

fn tgz(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, body) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, body.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

#[tokio::test]
async fn an_uploaded_folder_becomes_a_tree_that_is_read_by_recognition_and_scan() {
    let w = world(AgentConfig::default(), Images::default());
    let id = w.upload(&[("mcp.yaml", b"name: x"), ("src/app.py", b"print()"), ("data.bin", &[0; 2000])]).await;
    let (fetched, said) = w.fetch("./dir", Some(&id)).await;
    let fetched = fetched.unwrap();
    assert_eq!((fetched.pinned.as_str(), read(&fetched, "src/app.py").as_str()), ("./dir", "print()"));
    assert!(said.iter().any(|l| l.contains("3 files")), "{said:?}");
    let root = fetched.tree.clone().unwrap();
    let tree = read_tree(&root, |path| path == "mcp.yaml").unwrap();
    assert_eq!(tree.files, ["data.bin", "mcp.yaml", "src/app.py"]);
    assert_eq!(tree.bodies.into_iter().collect::<Vec<_>>(), [("mcp.yaml".to_owned(), b"name: x".to_vec())]);
    let files = Sources::scan_files(&root, 1000).unwrap();
    let sizes: Vec<_> = files.iter().map(|(path, body)| (path.as_str(), body.len())).collect();
    assert_eq!(sizes, [("data.bin", 0), ("mcp.yaml", 7), ("src/app.py", 7)]);
    // the same upload and the same content again are the same tree
    assert_eq!(w.fetch("./dir", Some(&id)).await.0.unwrap().digest, fetched.digest);
    let other = w.upload(&[("src/app.py", b"print()"), ("data.bin", &[0; 2000]), ("mcp.yaml", b"name: x")]).await;
    assert_ne!(other, id);
    assert_eq!(w.fetch("./dir", Some(&other)).await.0.unwrap().digest, fetched.digest);
}

#[tokio::test]
async fn a_folder_without_its_upload_is_refused() {
    let w = world(AgentConfig::default(), Images::default());
    assert!(matches!(w.fetch("./dir", None).await.0, Err(SourceError::Refused { .. })));
    let id = format!("sha256:{}", "0".repeat(64));
    assert!(matches!(w.fetch("./dir", Some(&id)).await.0, Err(SourceError::NotFound { .. })));
}

#[tokio::test]
async fn only_allowed_kinds_are_fetched() {
    let mut config = AgentConfig::default();
    config.sources.allowed = vec!["git".into()];
    let w = world(config, Images::default());
    for source in ["./dir", "npm:a", "pypi:a", "image:a"] {
        let error = w.fetch(source, None).await.0.unwrap_err();
        assert!(
            matches!(&error, SourceError::Refused { .. }) && error.hint().contains("allowed are git"),
            "{source}: {error}"
        );
    }
    assert!(w.sources.upload("./dir", 1).await.is_err());
}

#[tokio::test]
async fn a_cancelled_fetch_ends_and_leaves_nothing() {
    let port = serve(Arc::new(|_, _, _, _, _| {
        std::thread::sleep(Duration::from_millis(300));
        (500, Vec::new(), Vec::new())
    }))
    .await;
    let mut config = AgentConfig::default();
    config.builder.npm_registry = format!("http://127.0.0.1:{port}");
    let w = world(config, Images::default());
    let cancel = w.cancel.clone();
    let (result, ()) = tokio::join!(w.fetch("npm:a", None), async { cancel.cancel() });
    assert!(matches!(result.0, Err(SourceError::Cancelled)));
}

/// A registry with one package, whose tarball says what it wants.
async fn npm_registry(tarball: Vec<u8>, integrity: String, needs: Option<&'static str>) -> (u16, Arc<AtomicUsize>) {
    let loads = Arc::new(AtomicUsize::new(0));
    let count = loads.clone();
    let stumbles = AtomicUsize::new(0);
    let port = serve(Arc::new(move |path: &str, _: &str, _: &str, headers: &BTreeMap<String, String>, _: &[u8]| {
        if let Some(token) = needs
            && headers.get("authorization").map(String::as_str) != Some(token)
        {
            return (401, Vec::new(), Vec::new());
        }
        // every second request fails in passing
        if stumbles.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            return (503, vec![("retry-after".into(), "0".into())], Vec::new());
        }
        match path {
            "/npm/@scope%2fname" => {
                let release = |v: &str| serde_json::json!({ "dist": {
                    "tarball": format!("https://registry.npmjs.org/@scope/name/-/name-{v}.tgz"), "integrity": integrity } });
                let body = serde_json::json!({ "dist-tags": { "latest": "1.2.0" },
                    "versions": { "1.2.0": release("1.2.0"), "1.10.0": release("1.10.0") } });
                (200, vec![("content-type".into(), "application/json".into())], body.to_string().into_bytes())
            }
            "/npm/@scope/name/-/name-1.2.0.tgz" => {
                count.fetch_add(1, Ordering::SeqCst);
                (200, Vec::new(), tarball.clone())
            }
            _ => (404, Vec::new(), Vec::new()),
        }
    }))
    .await;
    (port, loads)
}

fn sha512(bytes: &[u8]) -> String {
    format!("sha512-{}", STANDARD.encode(Sha512::digest(bytes)))
}

#[tokio::test]
async fn an_npm_package_is_resolved_checked_unpacked_and_kept() {
    let tarball = tgz(&[("package/package.json", "{}"), ("package/dist/index.js", "1")]);
    let (port, loads) = npm_registry(tarball.clone(), sha512(&tarball), Some("Bearer t0ken")).await;
    let mut config = AgentConfig::default();
    config.builder.npm_registry = format!("http://127.0.0.1:{port}/npm/");
    let w = world(config, Images::default());
    let refused = w.fetch("npm:@scope/name", None).await.0;
    assert!(
        matches!(&refused, Err(SourceError::Refused { hint, .. }) if hint.contains(&format!("127.0.0.1:{port}"))),
        "{refused:?}"
    );
    w.secrets.set(&Scope::Source, "127.0.0.1", "t0ken".to_owned().into(), "", "t").await.unwrap();
    let fetched = w.fetched("npm:@scope/name").await;
    assert_eq!(fetched.pinned, "npm:@scope/name@1.2.0");
    assert_eq!(fetched.package, Some(("@scope/name".into(), "1.2.0".into())));
    assert_eq!(read(&fetched, "dist/index.js"), "1");
    assert_eq!(w.fetched("npm:@scope/name@^1").await.digest, fetched.digest);
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    match w.fetch("npm:@scope/name@1.3.0", None).await.0 {
        Err(SourceError::NotFound { what, hint }) => {
            assert_eq!(what, "npm:@scope/name has no version 1.3.0");
            assert!(hint.contains("1.2.0"), "{hint}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(w.fetch("npm:unknown", None).await.0, Err(SourceError::NotFound { .. })));
    // described, but not there
    assert!(matches!(w.fetch("npm:@scope/name@1.10.0", None).await.0, Err(SourceError::NotFound { .. })));
}

#[tokio::test]
async fn a_tarball_that_was_changed_on_the_way_is_refused() {
    let tarball = tgz(&[("package/package.json", "{}")]);
    let (port, _) = npm_registry(tarball, sha512(b"another"), None).await;
    let mut config = AgentConfig::default();
    config.builder.npm_registry = format!("http://127.0.0.1:{port}/npm");
    let w = world(config, Images::default());
    let refused = w.fetch("npm:@scope/name", None).await.0;
    assert!(
        matches!(&refused, Err(SourceError::Refused { what, .. }) if what.contains("is not what the registry describes")),
        "{refused:?}"
    );
    assert!(w.sources.cache.find("any").await.unwrap().is_none());
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named_with_the_setting() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let mut config = AgentConfig::default();
    config.builder.npm_registry = format!("http://127.0.0.1:{port}");
    config.builder.pypi_index = format!("http://127.0.0.1:{port}/simple");
    config.sources.timeout_seconds = 60;
    let w = world(config, Images::default());
    for (source, setting) in [("npm:a", "npm_registry"), ("pypi:a", "pypi_index")] {
        match w.fetch(source, None).await.0 {
            Err(SourceError::Failed { what, hint }) => {
                assert!(what.contains(&format!("127.0.0.1:{port}")) && what.contains("refused"), "{what}");
                assert!(hint.contains(setting), "{hint}");
            }
            other => panic!("{other:?}"),
        }
    }
}

fn wheel(files: &[(&str, &str)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (path, body) in files {
        zip.start_file(*path, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(body.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[tokio::test]
async fn pypi_packages_come_as_wheels_or_source_from_json_and_html_indexes() {
    let whl = wheel(&[("my_server/__main__.py", "main"), ("my_server-2.0.dist-info/METADATA", "Name: my-server")]);
    let sdist = tgz(&[("my_server-1.0/pyproject.toml", "[project]"), ("my_server-1.0/src/x.py", "x")]);
    let hash = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let (whl_hash, sdist_hash) = (hash(&whl), hash(&sdist));
    let port = serve(Arc::new(move |path: &str, _: &str, _: &str, headers: &BTreeMap<String, String>, _: &[u8]| {
        let typed = |kind: &str| vec![("content-type".to_owned(), kind.to_owned())];
        match path {
            "/json/my-server/" => {
                assert!(headers["accept"].contains("vnd.pypi.simple.v1+json"));
                let body = serde_json::json!({ "files": [
                    { "filename": "my_server-1.0.tar.gz", "url": "/files/my_server-1.0.tar.gz", "hashes": { "sha256": sdist_hash } },
                    { "filename": "my_server-2.0-py3-none-any.whl", "url": "../../files/my_server-2.0-py3-none-any.whl",
                      "hashes": { "sha256": whl_hash }, "requires-python": ">=3.10", "yanked": false },
                    { "filename": "my_server-3.0-py3-none-any.whl", "url": "x", "hashes": { "sha256": whl_hash }, "yanked": "broken" },
                    { "filename": "my_server-4.0b1-py3-none-any.whl", "url": "x", "hashes": {} } ] });
                (200, typed("application/vnd.pypi.simple.v1+json"), body.to_string().into_bytes())
            }
            "/html/my-server/" => {
                let body = format!("<a href=\"/files/my_server-1.0.tar.gz#sha256={sdist_hash}\">my_server-1.0.tar.gz</a>");
                (200, typed("text/html; charset=utf-8"), body.into_bytes())
            }
            "/files/my_server-2.0-py3-none-any.whl" => (200, Vec::new(), whl.clone()),
            "/files/my_server-1.0.tar.gz" => (200, Vec::new(), sdist.clone()),
            _ => (404, Vec::new(), Vec::new()),
        }
    }))
    .await;
    let mut config = AgentConfig::default();
    config.builder.pypi_index = format!("http://127.0.0.1:{port}/json");
    let w = world(config.clone(), Images::default());
    let (fetched, said) = w.fetch("pypi:My_Server[http]", None).await;
    let fetched = fetched.unwrap();
    assert_eq!(fetched.pinned, "pypi:My_Server[http]==2.0");
    assert_eq!(read(&fetched, "my_server/__main__.py"), "main");
    assert!(said.iter().any(|l| l.contains("requires Python >=3.10")), "{said:?}");
    assert_eq!(read(&w.fetched("pypi:my-server==1.0").await, "src/x.py"), "x");
    assert!(
        matches!(w.fetch("pypi:my-server==4.0b1", None).await.0, Err(SourceError::Refused { what, .. }) if what.contains("no sha256"))
    );
    assert!(
        matches!(w.fetch("pypi:my-server==5", None).await.0, Err(SourceError::NotFound { hint, .. }) if hint.contains("the latest is 2.0"))
    );
    assert!(matches!(w.fetch("pypi:nothing", None).await.0, Err(SourceError::NotFound { .. })));
    config.builder.pypi_index = format!("http://127.0.0.1:{port}/html/");
    let w = world(config, Images::default());
    assert_eq!(w.fetched("pypi:my-server").await.pinned, "pypi:my-server==1.0");
}

#[tokio::test]
async fn images_are_taken_from_here_or_pulled_with_the_login_of_their_registry() {
    let mut config = AgentConfig::default();
    config.limits.registries = vec!["registry.example.org".into(), "ghcr.io/ours".into()];
    let remote = vec!["registry.example.org/a/b:1".into()];
    let w = world(config, Images { here: Mutex::new(vec!["local:1".into()]), remote, ..Images::default() });
    let local = w.fetched("image:local:1").await;
    assert_eq!(
        (local.image.as_deref(), local.pinned.as_str(), local.tree),
        (Some("sha256:1234"), "image:local:1", None)
    );
    w.secrets.set(&Scope::Source, "registry.example.org", "token".to_owned().into(), "ada", "t").await.unwrap();
    let pulled = w.fetched("image:registry.example.org/a/b:1").await;
    assert_eq!(pulled.pinned, format!("image:registry.example.org/a/b@sha256:{}", "d".repeat(64)));
    assert_eq!(*w.engine.logins.lock().unwrap(), [Some("registry.example.org ada".to_owned())]);
    assert!(matches!(w.fetch("image:registry.example.org/none", None).await.0, Err(SourceError::NotFound { .. })));
    for reference in
        ["evil.example/x", "x/y", "ghcr.io/theirs/x", "ghcr.io/oursnot/x", "registry.example.org.evil.example/x"]
    {
        let refused = w.fetch(&format!("image:{reference}"), None).await.0;
        assert!(matches!(&refused, Err(SourceError::Refused { .. })), "{reference}: {refused:?}");
    }
    assert!(matches!(w.fetch("image:ghcr.io/ours/x", None).await.0, Err(SourceError::NotFound { .. })));
}

#[test]
fn references_of_images_are_read_as_engines_do() {
    assert_eq!(registry_of("python:3"), "docker.io");
    assert_eq!(registry_of("a/b"), "docker.io");
    assert_eq!(registry_of("localhost/x"), "localhost");
    assert_eq!(registry_of("h.example:5000/a/b@sha256:00"), "h.example:5000");
    assert_eq!(repository_of("h.example:5000/a/b:1"), "h.example:5000/a/b");
    assert_eq!(repository_of("h.example:5000/a"), "h.example:5000/a");
    assert_eq!(repository_of("a:1@sha256:00"), "a");
    assert!(same_repository("docker.io/library/python", "python"));
}

#[tokio::test]
async fn a_bundle_is_taken_with_its_hash_only() {
    let pack = |body: &[u8]| {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, body) in [("manifest.json", &b"{}"[..]), ("server/index.js", body)] {
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(body).unwrap();
        }
        zip.finish().unwrap().into_inner()
    };
    let bundle = pack(b"1");
    let (loads, sent) = (Arc::new(AtomicUsize::new(0)), bundle.clone());
    let count = loads.clone();
    let port = serve(Arc::new(move |path: &str, _: &str, _: &str, _: &BTreeMap<String, String>, _: &[u8]| {
        count.fetch_add(1, Ordering::SeqCst);
        if path == "/weather.mcpb" { (200, Vec::new(), sent.clone()) } else { (404, Vec::new(), Vec::new()) }
    }))
    .await;
    let w = world(AgentConfig::default(), Images::default());
    let at = |name: &str, of: &[u8]| {
        format!("mcpb:http://127.0.0.1:{port}/{name}#sha256={}", hex::encode(Sha256::digest(of)))
    };
    match w.fetch(&at("weather.mcpb", &pack(b"2")), None).await.0 {
        Err(SourceError::Refused { what, .. }) => assert!(what.contains("is not what was asked for"), "{what}"),
        other => panic!("{other:?}"),
    }
    let fetched = w.fetched(&at("weather.mcpb", &bundle)).await;
    assert_eq!(
        (fetched.pinned.as_str(), read(&fetched, "server/index.js").as_str()),
        (at("weather.mcpb", &bundle).as_str(), "1")
    );
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    // what its hash names is here already, wherever it is
    assert_eq!(w.fetched(&at("weather.mcpb", &bundle)).await.digest, fetched.digest);
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    assert!(matches!(w.fetch(&at("gone.mcpb", &pack(b"3")), None).await.0, Err(SourceError::NotFound { .. })));
}
