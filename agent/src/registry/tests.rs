use std::path::Path;

use serde_json::json;
use sigil_core::package::Tool;

use super::*;

struct House {
    registry: Registry,
    store: Store,
    stop: CancellationToken,
}

impl House {
    fn open(dir: &Path) -> Self {
        let (store, _) = Store::open(dir).unwrap();
        let stop = CancellationToken::new();
        Self { registry: Registry::spawn(store.clone(), dir, stop.clone()), store, stop }
    }

    async fn close(self) {
        self.stop.cancel();
        assert!(self.registry.closed(Duration::from_secs(30)).await);
        self.store.close().await;
    }
}

fn document(name: &str, version: &str) -> Json {
    json!({"name": format!("io.example/{name}"), "description": format!("About {name}."), "version": version})
}

fn new(name: &str, version: &str) -> New {
    New { document: document(name, version), by: "ada".into(), team: "default".into(), ..New::default() }
}

fn all() -> May {
    Box::new(|_| true)
}

async fn put(registry: &Registry, name: &str, version: &str) -> Published {
    registry.publish(new(name, version), all()).await.unwrap()
}

fn named(items: &[Item]) -> Vec<String> {
    let short = |i: &Item| {
        let mark = if i.latest { "!" } else { "" };
        format!("{}@{}{mark}", i.version.name().rsplit('/').next().unwrap(), i.version.version())
    };
    items.iter().map(short).collect()
}

/// All pages, as a client reads them that gives back nothing but the cursor; `between` runs after each page.
async fn pages(registry: &Registry, wanted: Wanted, limit: usize, mut between: impl AsyncFnMut(usize)) -> Vec<Item> {
    let mut page = registry.list(wanted, None, limit).await.unwrap();
    let mut out = Vec::new();
    let mut n = 0;
    loop {
        assert!(page.items.len() <= limit);
        out.append(&mut page.items);
        let Some(next) = page.next else { return out };
        n += 1;
        between(n).await;
        let next = Cursor::decode(&next.encode()).unwrap();
        page = registry.list(next.wanted, Some(next.after), limit).await.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_opened_until_there_is_something() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let registry = &house.registry;
    assert_eq!(registry.list(Wanted::default(), None, 10).await.unwrap(), Page::default());
    assert_eq!(registry.search(Query::default()).await.unwrap().total, 0);
    let missing = registry.version("io.example/x", "latest", false).await;
    assert_eq!(missing, Err(RegistryError::NotFound("io.example/x".into())));
    assert!(!dir.path().join("catalog").exists() && !dir.path().join("catalog-index").exists());
    house.close().await;
}

#[tokio::test]
async fn a_version_is_published_once() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let registry = &house.registry;
    assert!(!put(registry, "clock", "1.0.0").await.again);
    assert!(put(registry, "clock", "1.0.0").await.again);
    let mut other = new("clock", "1.0.0");
    other.document["description"] = json!("Something else.");
    let refused = registry.publish(other, all()).await;
    assert_eq!(refused, Err(RegistryError::Exists("io.example/clock".into(), "1.0.0".into())));
    let refused = registry.publish(new("clock", "^1"), all()).await;
    assert!(matches!(refused, Err(RegistryError::Invalid(_))), "{refused:?}");
    let theirs: May = Box::new(|team| team != "default");
    let refused = registry.publish(new("clock", "1.1.0"), theirs).await;
    assert_eq!(refused, Err(RegistryError::Forbidden("io.example/clock".into())));
    assert_eq!(named(&registry.versions("io.example/clock", false).await.unwrap()), ["clock@1.0.0!"]);
    house.close().await;
}

#[tokio::test]
async fn a_status_is_one_versions_or_all() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let registry = &house.registry;
    for version in ["1.0.0", "1.1.0", "2.0.0"] {
        put(registry, "clock", version).await;
    }
    let name = "io.example/clock";
    let one = registry.set_status(name, Some("2.0.0"), Status::Deleted, "broken", "ada", all()).await.unwrap();
    assert_eq!(named(&one), ["clock@2.0.0"], "it is the latest no longer");
    assert_eq!(named(&registry.versions(name, false).await.unwrap()), ["clock@1.1.0!", "clock@1.0.0"]);
    assert_eq!(named(&registry.versions(name, true).await.unwrap()).len(), 3);
    assert!(registry.version(name, "2.0.0", false).await.is_err());
    assert_eq!(registry.version(name, "2.0.0", true).await.unwrap().version.message, "broken");
    let again = registry.set_status(name, Some("2.0.0"), Status::Deleted, "broken", "ada", all()).await;
    assert_eq!(again, Err(RegistryError::Unchanged(name.into(), Status::Deleted)));
    let none = registry.set_status(name, Some("3"), Status::Active, "", "ada", all()).await;
    assert_eq!(none, Err(RegistryError::NoVersion(name.into(), "3".into())));
    let every = registry.set_status(name, None, Status::Deleted, "gone", "ada", all()).await.unwrap();
    assert_eq!(every.len(), 3);
    assert_eq!(registry.search(Query::default()).await.unwrap().total, 0);
    assert_eq!(registry.list(Wanted::default(), None, 10).await.unwrap().items.len(), 0);
    let deleted = Wanted { deleted: true, ..Wanted::default() };
    assert_eq!(registry.list(deleted, None, 10).await.unwrap().items.len(), 3);
    registry.set_status(name, None, Status::Active, "", "ada", all()).await.unwrap();
    assert_eq!(registry.version(name, "latest", false).await.unwrap().version.version(), "2.0.0");
    assert_eq!(registry.search(Query::default()).await.unwrap().total, 1);
    house.close().await;
}

#[tokio::test]
async fn lists_page_without_gap_or_repeat_while_packages_come() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let registry = &house.registry;
    for n in 0..12 {
        put(registry, &format!("p{n:02}-clock"), "1.0.0").await;
        put(registry, &format!("p{n:02}-clock"), "1.1.0").await;
    }
    let of =
        |search: &str, version: &str| Wanted { search: search.into(), version: version.into(), ..Wanted::default() };
    for (n, wanted, expected) in [
        (0, of("", ""), 24),
        (1, of("", "latest"), 12),
        (2, of("", "1.0.0"), 12),
        (3, of("CLOCK", "latest"), 12),
        (4, of("clock", ""), 24),
        (5, Wanted { updated_since: Some(0), ..Wanted::default() }, 24),
    ] {
        for limit in [1, 5, 100] {
            let during = async |page: usize| {
                // what comes while changes are read is one more change: some end is needed
                if page > 3 {
                    return;
                }
                put(registry, &format!("new-{n}-{limit}-{page}-clock"), "1.0.0").await;
            };
            let all = named(&pages(registry, wanted.clone(), limit, during).await);
            let mut unique = all.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), all.len(), "{wanted:?} by {limit}: one came twice");
            let old = all.iter().filter(|name| name.starts_with('p')).count();
            assert_eq!(old, expected, "{wanted:?} by {limit}: one is missing");
        }
    }
    let exact = of("p03-clock", "latest");
    assert_eq!(named(&registry.list(exact, None, 10).await.unwrap().items), ["p03-clock@1.1.0!"]);
    house.close().await;
}

#[tokio::test]
async fn what_changed_since_comes_in_order_with_what_went() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let registry = &house.registry;
    put(registry, "a", "1.0.0").await;
    put(registry, "b", "1.0.0").await;
    let since = put(registry, "c", "1.0.0").await.version.updated_at.as_microsecond();
    registry.set_status("io.example/a", None, Status::Deleted, "", "ada", all()).await.unwrap();
    let changed = registry.list(Wanted { updated_since: Some(since), ..Wanted::default() }, None, 10).await.unwrap();
    assert_eq!(named(&changed.items), ["c@1.0.0!", "a@1.0.0!"]);
    house.close().await;
}

#[tokio::test]
async fn what_is_ours_outlives_the_catalogue_and_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    for n in 0..5 {
        put(&house.registry, &format!("clock-{n}"), "1.0.0").await;
    }
    house.registry.note_use("io.example/clock-3", Used::Deployed).await.unwrap();
    let popular = Query { sort: Sort::Popular, ..Query::default() };
    assert_eq!(house.registry.search(popular.clone()).await.unwrap().packages[0].package.name, "io.example/clock-3");
    house.close().await;

    // the index alone
    std::fs::remove_dir_all(dir.path().join("catalog-index")).unwrap();
    let house = House::open(dir.path());
    let found = house.registry.search(popular).await.unwrap();
    assert_eq!((found.total, found.packages[0].activity.deploys), (5, 1));
    house.close().await;

    // the catalogue alone: the index is of one that is no longer there
    std::fs::remove_dir_all(dir.path().join("catalog")).unwrap();
    let house = House::open(dir.path());
    assert_eq!(house.registry.search(Query::default()).await.unwrap().total, 5);
    assert_eq!(house.registry.versions("io.example/clock-1", false).await.unwrap().len(), 1);
    house.close().await;

    // damaged ones, wherever the damage is
    let db = dir.path().join("catalog/db");
    let good = std::fs::read(&db).unwrap();
    for at in (0..good.len()).step_by(good.len() / 8) {
        let mut bad = good.clone();
        bad[at..(at + 64).min(good.len())].fill(0x55);
        std::fs::write(&db, &bad).unwrap();
        let house = House::open(dir.path());
        let mut found = house.registry.search(Query::default()).await;
        if found.is_err() {
            // found on the way: the next question meets a new one
            found = house.registry.search(Query::default()).await;
        }
        assert_eq!(found.unwrap().total, 5, "damage at {at}");
        house.close().await;
    }
}

#[tokio::test]
async fn an_older_state_takes_back_what_came_after_it() {
    let (dir, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let house = House::open(dir.path());
    put(&house.registry, "clock", "1.0.0").await;
    let export = house.store.export().await.unwrap();
    let kept = old.path().join("export");
    std::fs::copy(export, &kept).unwrap();
    put(&house.registry, "clock", "2.0.0").await;
    put(&house.registry, "other", "1.0.0").await;
    house.close().await;
    crate::store::restore(dir.path(), &kept, false).unwrap();
    let house = House::open(dir.path());
    assert_eq!(named(&house.registry.versions("io.example/clock", true).await.unwrap()), ["clock@1.0.0!"]);
    assert_eq!(house.registry.search(Query::default()).await.unwrap().total, 1);
    assert!(house.registry.package("io.example/other").await.is_err());
    house.close().await;
}

#[tokio::test]
async fn what_a_publisher_says_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut package = new("weather", "1.0.0");
    package.document["_meta"] = json!({(server_json::PUBLISHER): {"tags": ["Climate"], "category": "travel"}});
    package.extras.tools = vec![Tool { name: "get_forecast".into(), description: "Rain or shine.".into() }];
    house.registry.publish(package, all()).await.unwrap();
    for text in ["climate", "forecast", "shine", "wether"] {
        let found = house.registry.search(Query { text: text.into(), ..Query::default() }).await.unwrap();
        assert_eq!(found.total, 1, "{text}");
    }
    house.close().await;
}

#[tokio::test]
async fn another_registrys_packages_are_taken_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let registry = &house.registry;
    put(registry, "clock", "1.0.0").await;
    let item = |name: &str, version: &str, latest: bool, status: &str| {
        let official = json!({"status": status, "isLatest": latest, "publishedAt": "2025-09-01T00:00:00Z",
            "updatedAt": "2025-09-02T00:00:00Z"});
        json!({"server": document(name, version), "_meta": {"io.modelcontextprotocol.registry/official": official}})
    };
    let items = vec![
        item("sun", "2.0.0", false, "active"),
        item("sun", "1.9.0", true, "active"),
        item("clock", "9.0.0", true, "active"),
        json!({"server": {"name": "no name", "version": "1"}}),
        json!({"server": {"name": "a/b", "description": "Old.", "version": "^1"}}),
        json!({"server": {"name": "a/c", "description": "", "version": "1"}}),
    ];
    let done = registry.import("official", items.clone(), true).await.unwrap();
    assert_eq!((done.new, done.changed, done.known, done.refusals), (3, 0, 0, 3), "{done:?}");
    assert!(done.refused[0].contains("io.example/clock: a package of that name was published here"));
    let sun = registry.version("io.example/sun", "latest", false).await.unwrap().version;
    assert_eq!((sun.version(), sun.origin.to_string()), ("1.9.0", "mirror:official".to_owned()));
    assert_eq!(sun.published_at.to_string(), "2025-09-01T00:00:00Z");
    let again = registry.import("official", items, true).await.unwrap();
    assert_eq!((again.new, again.changed, again.known), (0, 0, 3));
    let mut other = item("sun", "1.9.0", true, "active");
    other["server"]["description"] = json!("Evil.");
    let turned = vec![item("sun", "2.0.0", false, "deleted"), other];
    let done = registry.import("official", turned, true).await.unwrap();
    assert_eq!((done.changed, done.refusals), (1, 1));
    assert!(done.refused[0].contains("versions do not change"), "{done:?}");
    assert_eq!(named(&registry.versions("io.example/sun", false).await.unwrap()), ["sun@1.9.0!"]);
    let elsewhere = registry.import("other", vec![item("sun", "3.0.0", true, "active")], true).await.unwrap();
    assert!(elsewhere.refused[0].contains("mirrored from 'official' already"));
    let mine = registry.publish(new("sun", "4.0.0"), all()).await;
    assert_eq!(mine, Err(RegistryError::Mirrored("io.example/sun".into(), "official".into())));
    let found = registry.search(Query { origin: "mirror:official".into(), ..Query::default() }).await.unwrap();
    assert_eq!(found.total, 2);
    // the one that was the latest is it no more, though nobody tells it again
    let next = vec![item("sun", "1.9.5", true, "active")];
    assert_eq!(registry.import("official", next, true).await.unwrap().new, 1);
    assert_eq!(registry.version("io.example/sun", "latest", false).await.unwrap().version.version(), "1.9.5");
    house.close().await;
}
