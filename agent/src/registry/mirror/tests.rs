//! A registry of ours that reads another one of ours, over real connections which break now and then.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;
use hyper::{HeaderMap, Method};
use secrecy::SecretString;
use serde_json::json;
use sigil_core::package::{OFFICIAL, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::access::Access;
use crate::registry::{New, Query, RegistryError};
use crate::secrets::Scope;
use crate::store::Store;
use crate::web::registry::{Asked, Site};

/// What goes wrong with one answer.
#[derive(Clone, Debug, PartialEq)]
enum Fault {
    Status(u16, &'static str),
    /// Half of it, and the end.
    Cut,
    /// Nothing for so long, then all of it.
    Slow(Duration),
    /// Something else than was asked for.
    Words(&'static str),
    /// The page names itself as the next.
    Round,
}

/// The other registry, on a socket.
struct Upstream {
    _dir: tempfile::TempDir,
    registry: Registry,
    address: SocketAddr,
    faults: Arc<Mutex<VecDeque<Option<Fault>>>>,
    /// Queries that came, and what they showed.
    asked: Arc<Mutex<Vec<(String, String)>>>,
    stop: CancellationToken,
}

fn document(name: &str, version: &str) -> Json {
    json!({"name": name, "description": format!("About {name}."), "version": version})
}

async fn put(registry: &Registry, name: &str, version: &str) {
    let new = New { document: document(name, version), ..New::default() };
    registry.publish(new, Box::new(|_| true)).await.unwrap();
}

/// Many packages at once: a publish of each is on the disk before the next one begins.
async fn fill(registry: &Registry, many: usize) {
    let items = (0..many).map(|n| json!({ "server": document(&format!("io.example/p{n:03}"), "1.0.0") }));
    assert_eq!(registry.import("seed", items.collect(), true).await.unwrap().new, many as u64);
}

impl Upstream {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let stop = CancellationToken::new();
        let registry = Registry::spawn(store, dir.path(), stop.clone());
        let config = watch::channel(Arc::new(AgentConfig::default())).1;
        let audit = Audit::open(dir.path()).unwrap();
        let site = Site::new(registry.clone(), Access::new(dir.path()), audit, config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (faults, asked) = (Arc::<Mutex<VecDeque<_>>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (to_come, told, ends) = (faults.clone(), asked.clone(), stop.clone());
        tokio::spawn(async move {
            loop {
                let (stream, peer) = tokio::select! {
                    () = ends.cancelled() => return,
                    came = listener.accept() => came.unwrap(),
                };
                let fault = to_come.lock().unwrap().pop_front().flatten();
                answer(stream, peer, &site, fault, &told).await;
            }
        });
        Self { _dir: dir, registry, address, faults, asked, stop }
    }

    fn fails(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        *self.faults.lock().unwrap() = faults.into_iter().collect();
    }

    fn asked(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// One request and its answer, by hand: only so can it break in the middle.
async fn answer(
    mut stream: TcpStream,
    peer: SocketAddr,
    site: &Site,
    fault: Option<Fault>,
    told: &Mutex<Vec<(String, String)>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap().to_owned();
    let login = head.lines().find_map(|line| line.strip_prefix("authorization: ")).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap();
    told.lock().unwrap().push((query.to_owned(), login.to_owned()));
    let asked = Asked {
        method: Method::GET,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        peer: peer.ip(),
    };
    let done = site.answer(asked).await;
    let (mut status, mut extra, mut body) = (done.status().as_u16(), "", done.into_body());
    match &fault {
        Some(Fault::Status(other, header)) => (status, extra, body) = (*other, header, Bytes::from_static(b"{}")),
        Some(Fault::Words(words)) => body = Bytes::from_static(words.as_bytes()),
        Some(Fault::Slow(time)) => tokio::time::sleep(*time).await,
        Some(Fault::Round) => {
            let cursor = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "cursor");
            let cursor = cursor.map_or("again".to_owned(), |(_, cursor)| cursor.into_owned());
            body = Bytes::from(json!({"servers": [], "metadata": {"nextCursor": cursor}}).to_string());
        }
        _ => {}
    }
    let date = jiff::fmt::rfc2822::DateTimePrinter::new();
    let date = date.timestamp_to_rfc9110_string(&Timestamp::now()).unwrap();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\ndate: {date}\r\n{extra}connection: close\r\n\r\n",
        body.len()
    );
    let body = if fault == Some(Fault::Cut) { body.slice(..body.len() / 2) } else { body };
    // a reader that has gone is no fault of this one
    let _gone = stream.write_all(head.as_bytes()).await;
    let _gone = stream.write_all(&body).await;
}

/// The reader.
struct Here {
    dir: Arc<tempfile::TempDir>,
    registry: Registry,
    mirrors: Mirrors,
    secrets: Secrets,
    config: watch::Sender<Arc<AgentConfig>>,
    stop: CancellationToken,
    store: Store,
    audit: Audit,
}

impl Here {
    fn new(url: &str, filter: &str) -> Self {
        Self::at(Arc::new(tempfile::tempdir().unwrap()), url, filter, Duration::from_millis(20))
    }

    fn at(dir: Arc<tempfile::TempDir>, url: &str, filter: &str, again: Duration) -> Self {
        let mut config = AgentConfig::default();
        config.registry.mirrors.insert("other".into(), url.to_owned());
        config.registry.mirror_filters.insert("other".into(), filter.to_owned());
        let (keep, config) = watch::channel(Arc::new(config));
        let (store, _) = Store::open(dir.path()).unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        let secrets = Secrets::open(dir.path(), &config.borrow().secrets, store.clone(), audit.clone(), false).unwrap();
        let stop = CancellationToken::new();
        let registry = Registry::spawn(store.clone(), dir.path(), stop.clone());
        let deps = Deps {
            registry: registry.clone(),
            secrets: secrets.clone(),
            audit: audit.clone(),
            config,
            data_dir: dir.path().to_owned(),
            again,
        };
        let mirrors = Mirrors::spawn(deps, stop.clone());
        Self { dir, registry, mirrors, secrets, config: keep, stop, store, audit }
    }

    fn now(&self) -> Mirror {
        self.mirrors.list().remove(0)
    }

    async fn until(&self, what: &str, is: impl Fn(&Mirror) -> bool) -> Mirror {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let now = self.now();
            if is(&now) {
                return now;
            }
            assert!(Instant::now() < deadline, "not within 20 s: {what}; it is {now:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Reads what is new, and answers what that was.
    async fn synced(&self, whole: bool) -> Mirror {
        let before = self.mirrors.sync("other", whole).unwrap();
        self.until("a pass", |m| m.passes > before && !m.busy).await
    }

    async fn names(&self) -> Vec<String> {
        let query = Query { limit: 100, origin: "mirror:other".into(), ..Query::default() };
        let mut names: Vec<String> =
            self.registry.search(query).await.unwrap().packages.into_iter().map(|p| p.package.name).collect();
        names.sort();
        names
    }

    async fn ended(self) -> Arc<tempfile::TempDir> {
        self.stop.cancel();
        assert!(self.mirrors.closed(Duration::from_secs(10)).await);
        assert!(self.registry.closed(Duration::from_secs(10)).await);
        let dir = self.dir.clone();
        self.store.close().await;
        drop(self.audit);
        dir
    }
}

#[tokio::test]
async fn everything_is_read_once_and_then_what_changed() {
    let upstream = Upstream::new().await;
    fill(&upstream.registry, 230).await;
    put(&upstream.registry, "io.example/gone", "1.0.0").await;
    let here = Here::new(&upstream.url(), "");
    put(&here.registry, "io.example/p007", "0.1.0").await;
    let first = here.until("the first pass", |m| m.passes == 1 && !m.busy).await;
    assert_eq!((first.last.read, first.last.new, first.last.refusals), (231, 230, 1), "{first:?}");
    assert!(first.last.refused[0].contains("io.example/p007: a package of that name was published here"));
    let asked = upstream.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|(query, _)| !query.contains("updated_since")), "{asked:?}");
    // ours is what it was
    let ours = here.registry.version("io.example/p007", "latest", false).await.unwrap();
    assert_eq!((ours.version.version(), ours.version.origin.to_string()), ("0.1.0", "own".to_owned()));

    let more = [("io.example/p001", "2.0.0"), ("io.example/new", "1.0.0")];
    let more = more.map(|(name, version)| json!({ "server": document(name, version) }));
    upstream.registry.import("seed", more.to_vec(), true).await.unwrap();
    let all: super::super::May = Box::new(|_| true);
    let gone = upstream.registry.set_status("io.example/gone", None, Status::Deleted, "it lost data", "me", all);
    gone.await.unwrap();
    let second = here.synced(false).await;
    // the deleted one, and the one that is not the latest any more
    assert_eq!((second.last.new, second.last.changed), (2, 2), "{second:?}");
    assert!(upstream.asked().iter().all(|(query, _)| query.contains("updated_since=")));
    assert_eq!(here.registry.version("io.example/p001", "latest", false).await.unwrap().version.version(), "2.0.0");
    let missing = here.registry.version("io.example/gone", "latest", false).await.map(drop);
    assert!(matches!(missing, Err(RegistryError::NoVersion(..) | RegistryError::NotFound(_))), "{missing:?}");
    let told = here.registry.version("io.example/gone", "1.0.0", true).await.unwrap().version;
    assert_eq!((told.status, told.message.as_str()), (Status::Deleted, "it lost data"));
    // once more the same, and all of it: nothing is new
    let third = here.synced(true).await;
    assert_eq!((third.last.read, third.last.new, third.last.changed), (233, 0, 0), "{third:?}");
    assert_eq!(here.mirrors.sync("nobody", false), None);
    here.ended().await;
    upstream.stop.cancel();
}

#[tokio::test]
async fn whatever_breaks_is_tried_again_and_goes_on_where_it_was() {
    let upstream = Upstream::new().await;
    fill(&upstream.registry, 450).await;
    let slow = Some(Fault::Slow(Duration::from_millis(300)));
    upstream.fails([
        Some(Fault::Status(500, "")),
        Some(Fault::Words("<html>maintenance</html>")),
        None,
        Some(Fault::Cut),
        Some(Fault::Status(429, "retry-after: 0\r\n")),
        slow,
        Some(Fault::Words("{\"servers\": 7}")),
        Some(Fault::Status(503, "")),
        None,
        Some(Fault::Words("")),
        Some(Fault::Status(401, "")),
    ]);
    let here = Here::new(&upstream.url(), "");
    let done = here.until("the pass", |m| m.passes == 1 && !m.busy).await;
    assert_eq!((done.last.read, done.last.new, done.last.refusals), (450, 450, 0), "no page was read twice: {done:?}");
    assert_eq!((done.failures, done.trouble.as_str()), (0, ""));
    assert_eq!(here.names().await.len(), 100, "a page of what is found");
    // 5 pages, and 8 that came to nothing
    assert_eq!(upstream.asked().len(), 13);
    here.ended().await;
    upstream.stop.cancel();
}

#[tokio::test]
async fn a_killed_agent_goes_on_where_the_pass_was() {
    let upstream = Upstream::new().await;
    fill(&upstream.registry, 350).await;
    let never = Fault::Status(503, "retry-after: 3600\r\n");
    upstream.fails([None, None, Some(never)]);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let here = Here::at(dir.clone(), &upstream.url(), "", Duration::from_secs(3600));
    let stuck = here.until("a failure", |m| m.failures == 1 && !m.busy).await;
    assert!(stuck.trouble.contains("503") && stuck.read == 200, "{stuck:?}");
    assert_eq!(upstream.asked().len(), 3);
    here.ended().await;
    let here = Here::at(dir, &upstream.url(), "", Duration::from_millis(20));
    let done = here.until("the pass", |m| m.passes == 1 && !m.busy).await;
    assert_eq!((done.last.read, done.last.new), (350, 350), "{done:?}");
    assert_eq!(upstream.asked().len(), 2, "the first two pages are not read again");
    here.ended().await;
    upstream.stop.cancel();
}

#[tokio::test]
async fn a_place_that_the_other_registry_forgot_begins_again() {
    let upstream = Upstream::new().await;
    fill(&upstream.registry, 250).await;
    upstream.fails([None, Some(Fault::Status(400, "")), None, Some(Fault::Round)]);
    let here = Here::new(&upstream.url(), "");
    let done = here.until("the pass", |m| m.passes == 1 && !m.busy).await;
    // one page of the first try is known when the last one comes
    assert_eq!((done.last.read, done.last.refusals), (250, 0), "{done:?}");
    assert_eq!(upstream.asked().len(), 2 + 2 + 3);
    let query = Query { limit: 1, ..Query::default() };
    assert_eq!(here.registry.search(query).await.unwrap().total, 250);
    here.ended().await;
    upstream.stop.cancel();
}

#[tokio::test]
async fn a_filter_and_a_login_are_as_the_owner_says() {
    let upstream = Upstream::new().await;
    for name in ["io.good/a", "io.good/b", "io.good/evil", "com.other/x"] {
        put(&upstream.registry, name, "1.0.0").await;
    }
    let here = Here::new(&upstream.url(), "io.good/* !*/evil");
    let done = here.until("the pass", |m| m.passes == 1 && !m.busy).await;
    assert_eq!((done.last.new, done.last.passed_over), (2, 2), "{done:?}");
    assert_eq!(here.names().await, ["io.good/a", "io.good/b"]);
    assert!(upstream.asked().iter().all(|(_, login)| login.is_empty()));

    let secret = SecretString::from("s3cret-of-the-mirror");
    here.secrets.set(&Scope::Source, "127.0.0.1", secret, "", "me").await.unwrap();
    here.synced(false).await;
    assert_eq!(upstream.asked()[0].1, "Bearer s3cret-of-the-mirror");

    // another filter reads everything again; what is no registry is said, and is an alarm when it stays
    here.config.send_modify(|config| {
        Arc::make_mut(config).registry.mirror_filters.insert("other".into(), "com.*".into());
    });
    here.until("another pass", |m| m.filter == "com.*" && m.passes == 1 && !m.busy).await;
    assert_eq!(here.names().await, ["com.other/x", "io.good/a", "io.good/b"]);
    assert_eq!(here.mirrors.alarms(), Vec::<String>::new());
    here.config.send_modify(|config| {
        let registry = &mut Arc::make_mut(config).registry;
        registry.mirrors.insert("other".into(), "http://127.0.0.1:1".into());
    });
    let bad = here.until("failures", |m| m.failures >= ALARM).await;
    assert!(!bad.trouble.is_empty());
    assert!(here.mirrors.alarms()[0].contains("mirrored as 'other' cannot be read"), "{:?}", here.mirrors.alarms());
    // one that is not configured any more is forgotten, its packages are not
    here.config.send_modify(|config| Arc::make_mut(config).registry.mirrors.clear());
    assert_eq!((here.mirrors.list(), here.mirrors.sync("other", true)), (vec![], None));
    assert_eq!(here.names().await.len(), 3);
    here.ended().await;
    upstream.stop.cancel();
}

/// An item that says something of somebody else's package, or of one that is there with another document, changes nothing.
#[tokio::test]
async fn what_another_registry_says_of_a_version_does_not_change_it() {
    let upstream = Upstream::new().await;
    put(&upstream.registry, "io.example/a", "1.0.0").await;
    let here = Here::new(&upstream.url(), "");
    here.until("the pass", |m| m.passes == 1 && !m.busy).await;
    upstream.fails([Some(Fault::Words(
        r#"{"servers": [{"server": {"name": "io.example/a", "description": "Evil.", "version": "1.0.0"}}, 7,
            {"server": {"name": "../../x", "description": "x", "version": "1"}}, {"server": {}}], "metadata": {}}"#,
    ))]);
    let done = here.synced(true).await;
    assert_eq!((done.last.read, done.last.new, done.last.changed, done.last.refusals), (4, 0, 0, 4), "{done:?}");
    let item = here.registry.version("io.example/a", "latest", false).await.unwrap();
    assert_eq!(item.version.server["description"], "About io.example/a.");
    let shown = sigil_core::package::shown(&item.version, true, true);
    assert_eq!(shown["_meta"][OFFICIAL]["status"], "active");
    here.ended().await;
    upstream.stop.cancel();
}
