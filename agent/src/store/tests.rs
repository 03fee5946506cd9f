use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use sigil_core::model::{
    AgentId, Deployment, DeploymentId, Desired, NetworkMode, OperationId, Outcome, Release, ReleaseSpec, Resources,
    Run, Transport,
};

use super::*;

/// A deployment that could be one.
pub(crate) fn deployment(name: &str) -> Deployment {
    let now = Timestamp::now();
    let spec = ReleaseSpec {
        image: "sha256:00".into(),
        source: "pypi:mcp-server-time==1".into(),
        source_digest: "sha256:11".into(),
        commit: None,
        transport: Transport::Stdio,
        port: 8080,
        path: "/mcp".into(),
        command: vec!["serve".into(), "x".repeat(200)],
        workdir: "/".into(),
        env: BTreeMap::new(),
        secrets: Vec::new(),
        resources: Resources {
            tier: "small".into(),
            cpu_share: 0.1,
            cpu_limit: 0.5,
            memory: 256 << 20,
            storage: 1 << 30,
            processes: 64,
            files: 1024,
        },
        volumes: Vec::new(),
        network: NetworkMode::Link,
        egress: Vec::new(),
        config: serde_json::json!({}),
        session: None,
        access: "anonymous".into(),
        sessions_max: None,
        sessions_replayable: false,
        request_timeout_ms: 60_000,
        start_timeout_ms: 60_000,
        health: sigil_core::health::Rules::default(),
        user: "65532:65532".into(),
    };
    Deployment {
        id: DeploymentId(ulid::Ulid::generate()),
        name: name.parse().unwrap(),
        team: "default".into(),
        tags: Vec::new(),
        created_by: "root".into(),
        created_at: now,
        generation: 1,
        reason: "deployed".into(),
        changed_at: now,
        desired: Desired { run: Run::Running, replicas: 1, release: 1, restart: 0 },
        serving: None,
        policy: sigil_core::policy::Policy::default(),
        waivers: Vec::new(),
        scaling: None,
        follow: None,
        until: None,
        preview: None,
        releases: vec![Release {
            number: 1,
            created_at: now,
            created_by: "root".into(),
            spec,
            outcome: Outcome::Pending,
            recognised: "pyproject.toml".into(),
            asked: None,
        }],
    }
}

fn operation(request: &str, age: SignedDuration) -> OperationRecord {
    let at = Timestamp::now() - age;
    OperationRecord {
        id: OperationId(ulid::Ulid::from_datetime(at.into())),
        kind: "deploy".into(),
        deployment: None,
        name: "a".into(),
        created_by: "root".into(),
        created_at: at,
        ended_at: Some(at),
        state: "succeeded".into(),
        step: "ready".into(),
        request: serde_json::json!({"kind": "scan"}),
        progress: serde_json::Value::Null,
        release: Some(1),
        error: None,
        result: serde_json::json!({}),
        summary: String::new(),
        request_id: request.into(),
    }
}

fn secret(key: &str) -> SealedRecord {
    SealedRecord {
        key: key.into(),
        version: 1,
        changed_at: Timestamp::now(),
        changed_by: "root".into(),
        sealed: vec![0, 255, 7],
    }
}

async fn open(dir: &Path) -> Store {
    let (store, report) = Store::open(dir).unwrap();
    assert_eq!(report.alarms, Vec::<String>::new());
    store
}

/// Everything, for comparing.
fn content(store: &Store) -> Vec<(String, Vec<u8>)> {
    store.shared.snapshot().records().unwrap()
}

#[tokio::test]
async fn pins_live_as_long_as_their_release() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let a = store.create(deployment("a")).await.unwrap();
    let pins = |text: &str| Pins::new(0, &sigil_core::pins::members(text), &BTreeMap::new(), Timestamp::UNIX_EPOCH);
    let put = async |release, text: &str| {
        let new = pins(text);
        store.update_pins(a.id, release, move |old| Ok((Some(new), old.is_some()))).await
    };
    let changes = store.changes();
    assert!(!put(1, r#"[{"name":"x"}]"#).await.unwrap());
    assert!(changes.has_changed().unwrap(), "whoever routes must know");
    assert!(put(1, r#"[{"name":"y"}]"#).await.unwrap());
    let nothing = store.update_pins(a.id, 1, |_| Err::<(Option<Pins>, ()), _>("no".into())).await;
    assert!(matches!(nothing, Err(StoreError::Refused(why)) if why == "no"));
    assert_eq!(store.pins(a.id, 1).unwrap().tools.keys().collect::<Vec<_>>(), ["y"]);
    store.close().await;

    let store = open(dir.path()).await;
    assert_eq!(store.pins(a.id, 1).unwrap().release, 1);
    // the release is forgotten, and what was pinned with it when the next one is
    let second = |d: &mut Deployment| {
        d.releases[0].number = 2;
        Ok(())
    };
    store.update(a.id, None, "another release", second).await.unwrap();
    let new = pins("[]");
    store.update_pins(a.id, 2, move |_| Ok((Some(new), ()))).await.unwrap();
    assert!(store.pins(a.id, 1).is_none() && store.pins(a.id, 2).is_some());
    store.delete(a.id).await.unwrap();
    assert!(store.pins(a.id, 2).is_none());
    assert_eq!(content(&store), []);
    let gone = store.update_pins(a.id, 2, |_| Ok((None, ()))).await;
    assert!(gone.is_ok(), "nothing to do");
    store.close().await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let id = store.agent_id();
    let changes = store.changes();
    let a = store.create(deployment("a")).await.unwrap();
    store.create(deployment("b")).await.unwrap();
    assert!(changes.has_changed().unwrap());
    store.put_operation(operation("r-1", SignedDuration::ZERO)).await.unwrap();
    store.put_sealed(secret("team/default/K")).await.unwrap();
    store.remember_answer("r-2", serde_json::json!({"version": 3})).await.unwrap();
    let a = store
        .update(a.id, Some(1), "scaled", |d| {
            d.desired.replicas = 3;
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!((a.generation, a.reason.as_str()), (2, "scaled"));
    let before = content(&store);
    store.close().await;
    assert_eq!(store.delete(a.id).await, Err(StoreError::Closed));

    let store = open(dir.path()).await;
    assert_eq!(content(&store), before);
    assert_eq!(store.agent_id(), id);
    assert_eq!(store.deployments().iter().map(|d| d.name.to_string()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(store.operation_of_request("r-1").unwrap().summary, "");
    assert_eq!(store.answer_of_request("r-2").unwrap()["version"], 3);
    assert_eq!(store.sealed_keys("team/").len(), 1);
    assert!(store.remove_sealed("team/default/K").await.unwrap());
    assert!(!store.remove_sealed("team/default/K").await.unwrap());
    store.close().await;
}

#[tokio::test]
async fn compare_and_set_refuses_what_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let a = store.create(deployment("a")).await.unwrap();
    let b = store.create(deployment("b")).await.unwrap();
    assert_eq!(store.create(deployment("a")).await, Err(StoreError::NameTaken("a".into())));
    assert!(matches!(store.create(Deployment::clone(&a)).await, Err(StoreError::Refused(_))));
    let conflict = store.update(a.id, Some(9), "x", |_| Ok(())).await;
    assert_eq!(conflict, Err(StoreError::Conflict { expected: 9, found: 1 }));
    let refused = store.update(a.id, None, "x", |_| Err("no".into())).await;
    assert_eq!(refused, Err(StoreError::Refused("no".into())));
    let taken = store
        .update(b.id, None, "x", |d| {
            d.name = "a".parse().unwrap();
            Ok(())
        })
        .await;
    assert_eq!(taken, Err(StoreError::NameTaken("a".into())));
    // a panicking change is an error, and the writer lives on
    let panicked = store.update(a.id, None, "x", |_| panic!("a change that panics, on purpose")).await;
    assert!(matches!(panicked, Err(StoreError::Io(_))));
    // a changed outcome alone is no new generation
    let a = store
        .update(a.id, None, "gated", |d| {
            d.serving = Some(1);
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!((a.generation, a.serving), (1, Some(1)));
    let b = store
        .update(b.id, None, "renamed", |d| {
            d.name = "c".parse().unwrap();
            Ok(())
        })
        .await
        .unwrap();
    assert!(store.by_name(&"b".parse().unwrap()).is_none());
    assert_eq!(store.by_name(&"c".parse().unwrap()).unwrap().id, b.id);
    store.delete(a.id).await.unwrap();
    assert_eq!(store.delete(a.id).await, Err(StoreError::NotFound(a.id.to_string())));
    store.close().await;
}

#[tokio::test]
async fn a_second_agent_is_told_who_holds_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let Err(StoreError::Locked(text)) = Store::open(dir.path()).map(|_| ()) else { panic!("opened twice") };
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
    store.close().await;
    open(dir.path()).await.close().await;
}

#[tokio::test]
async fn files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let store = open(dir.path()).await;
    store.create(deployment("a")).await.unwrap();
    store.close().await;
    let mut todo = vec![dir.path().to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::metadata(&path).unwrap();
        let mode = meta.permissions().mode() & 0o777;
        assert_eq!(mode, if meta.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
}

#[tokio::test]
async fn old_operations_are_forgotten_but_not_their_request_ids() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut running = operation("running", SignedDuration::from_hours(99));
    running.ended_at = None;
    store.put_operation(running.clone()).await.unwrap();
    store.put_operation(operation("yesterday", SignedDuration::from_hours(25))).await.unwrap();
    store.put_operation(operation("today", SignedDuration::from_hours(23))).await.unwrap();
    for group in 0..10 {
        let puts = (0..50).map(|n| store.put_operation(operation(&format!("{group}-{n}"), SignedDuration::ZERO)));
        for put in futures::future::join_all(puts).await {
            put.unwrap();
        }
    }
    let check = |store: &Store| {
        assert_eq!(store.operations().len(), 501, "500 finished and one that runs");
        assert!(store.operation(running.id).is_some());
        assert!(store.operation_of_request("yesterday").is_none());
        let today = store.operation_of_request("today").unwrap();
        assert_eq!(today.request, serde_json::Value::Null);
        assert!(store.operation(today.id).is_none());
        assert!(store.operation_of_request("0-0").is_some());
    };
    check(&store);
    store.close().await;
    let store = open(dir.path()).await;
    check(&store);
    store.close().await;
}

#[tokio::test]
async fn a_full_disk_refuses_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    store.create(deployment("a")).await.unwrap();
    store.close().await;
    let (store, _) =
        Store::open_with(dir.path(), &StoreOptions { min_free_percent: 100, ..StoreOptions::default() }).unwrap();
    assert_eq!(store.create(deployment("b")).await, Err(StoreError::DiskFull));
    assert_eq!(store.export().await, Err(StoreError::DiskFull));
    assert_eq!(store.deployments().len(), 1);
    store.close().await;
    assert_eq!(open(dir.path()).await.deployments().len(), 1);
}

#[tokio::test]
async fn compaction_keeps_everything_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) =
        Store::open_with(dir.path(), &StoreOptions { compact_floor: 0, ..StoreOptions::default() }).unwrap();
    let a = store.create(deployment("a")).await.unwrap();
    for n in 0..200u32 {
        let scale = store.update(a.id, None, "scaled", move |d| {
            d.desired.replicas = n + 2;
            Ok(())
        });
        scale.await.unwrap();
    }
    let size = || disk::tree_size(&dir.path().join("state"));
    let before = size();
    store.writer.send(Command::Compact).await.unwrap();
    // taken in turn: once this is answered, the database is the new one
    store.put_sealed(secret("team/default/K")).await.unwrap();
    store.delete(a.id).await.unwrap();
    store.create(deployment("b")).await.unwrap();
    assert_eq!(store.alarms(), Vec::<String>::new());
    let content_before = content(&store);
    store.close().await;
    assert!(size() < before, "{} is not less than {before}", size());
    let asides = fs::read_dir(dir.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("aside"));
    assert_eq!(asides.count(), 0);
    let store = open(dir.path()).await;
    assert_eq!(content(&store), content_before);
    store.close().await;
}

#[tokio::test]
async fn a_newer_record_is_an_error_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    store.create(deployment("a")).await.unwrap();
    store.close().await;
    {
        let db = sled::open(dir.path().join("state")).unwrap();
        let mut raw = vec![2];
        raw.extend_from_slice(&record::checksum("d/new", 2, b"{}").to_le_bytes());
        raw.extend_from_slice(b"{}");
        db.insert("d/new", raw).unwrap();
        db.flush().unwrap();
    }
    for _ in 0..2 {
        let error = Store::open(dir.path()).map(|_| ()).unwrap_err();
        assert_eq!(error, StoreError::Newer { what: "record d/new".into(), found: 2 });
    }
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|n| n.to_string_lossy().contains("aside")), "{names:?}");
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A store with an export in the middle of its history, closed.
fn fixture() -> (tempfile::TempDir, Vec<(String, Vec<u8>)>) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let content = runtime.block_on(async {
        let store = open(dir.path()).await;
        for n in 0..20i32 {
            store.create(deployment(&format!("d{n}"))).await.unwrap();
            store.put_sealed(secret(&format!("team/default/K{n}"))).await.unwrap();
            if n == 10 {
                store.export().await.unwrap();
            }
        }
        // enough that older pages lie in segments of the database which are long complete
        for n in 0..10u8 {
            let many = (0..40u8).map(|m| {
                let big = SealedRecord { sealed: vec![n ^ m; 3000], ..secret(&format!("team/big/{n}-{m}")) };
                store.put_sealed(big)
            });
            for put in futures::future::join_all(many).await {
                put.unwrap();
            }
        }
        let first = store.deployments()[0].id;
        store.delete(first).await.unwrap();
        let content = content(&store);
        store.close().await;
        content
    });
    (dir, content)
}

#[test]
fn a_flipped_byte_in_the_database_costs_nothing() {
    let (good, before) = fixture();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut aside = 0;
    // in every file of the database: spread over all that is written, and in every copy of one record, of which one lives
    let needle = b"\"name\":\"d7\"";
    let mut places = Vec::new();
    let mut todo = vec![good.path().join("state")];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let written = bytes.iter().rposition(|b| *b != 0).unwrap_or(0);
        let copies = bytes.windows(needle.len()).enumerate().filter(|(_, w)| w == needle).map(|(i, _)| i + 9);
        let spread = if written > 100 { 0..7 } else { 0..1 };
        let file = path.strip_prefix(good.path()).unwrap().to_owned();
        places.extend(spread.map(|i| written * i / 7 + 5).chain(copies.take(2)).map(|place| (file.clone(), place)));
    }
    for (file, place) in &places {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(good.path(), dir.path());
        let mut bytes = fs::read(good.path().join(file)).unwrap();
        bytes[*place] ^= 0x10;
        fs::write(dir.path().join(file), bytes).unwrap();
        // the export made at close is gone: only the one in the middle and the journal are left
        let exports = export::list(&dir.path().join("exports")).unwrap();
        assert_eq!(exports.len(), 2);
        fs::remove_file(&exports[0].1).unwrap();
        runtime.block_on(async {
            let (store, report) = Store::open(dir.path()).unwrap();
            assert_eq!(content(&store), before, "{} at {place}: {:?}", file.display(), report.alarms);
            let set_aside = fs::read_dir(dir.path())
                .unwrap()
                .any(|e| e.unwrap().file_name().to_string_lossy().starts_with("state.aside-"));
            assert_eq!(set_aside, !report.alarms.is_empty(), "{:?}", report.alarms);
            assert_eq!(store.alarms(), report.alarms);
            aside += usize::from(set_aside);
            store.create(deployment("after")).await.unwrap();
            store.close().await;
            let (store, report) = Store::open(dir.path()).unwrap();
            assert_eq!((store.deployments().len(), report.alarms), (20, Vec::new()));
            store.close().await;
        });
    }
    assert!(aside > 0, "none of {} flips hit anything", places.len());
}

#[tokio::test]
async fn a_lost_or_old_database_is_brought_forward() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    store.create(deployment("a")).await.unwrap();
    store.close().await;
    copy_dir(&dir.path().join("state"), &dir.path().join("old"));
    let store = open(dir.path()).await;
    store.create(deployment("b")).await.unwrap();
    let before = content(&store);
    store.close().await;
    // an old copy, with the journal beside it
    fs::remove_dir_all(dir.path().join("state")).unwrap();
    fs::rename(dir.path().join("old"), dir.path().join("state")).unwrap();
    let store = open(dir.path()).await;
    assert_eq!(content(&store), before);
    store.close().await;
    // no database and no journal: the export has it
    fs::remove_dir_all(dir.path().join("state")).unwrap();
    fs::remove_dir_all(dir.path().join("journal")).unwrap();
    fs::remove_file(dir.path().join("agent-id")).unwrap();
    let id = store.agent_id();
    let (store, report) = Store::open(dir.path()).unwrap();
    assert_eq!(content(&store), before);
    assert_eq!(store.agent_id(), id, "the export carries it");
    assert_eq!(report.alarms.len(), 1);
    store.close().await;
}

#[tokio::test]
async fn exports_restore_elsewhere() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(a.path()).await;
    store.create(deployment("a")).await.unwrap();
    let file = store.export().await.unwrap();
    let header = verify_export(&file).unwrap();
    assert_eq!((header.agent_id.clone(), header.records), (store.agent_id().to_string(), 1));
    assert!(matches!(restore(a.path(), &file, false), Err(StoreError::Locked(_))));
    let before = content(&store);

    let other = open(b.path()).await;
    other.create(deployment("mine")).await.unwrap();
    other.close().await;
    assert!(matches!(restore(b.path(), &file, false), Err(StoreError::Refused(_))));
    assert_eq!(open(b.path()).await.deployments()[0].name.as_str(), "mine");
    let deadline = Instant::now() + Duration::from_secs(5);
    // dropped without close: the writer ends on its own
    while matches!(disk::lock(b.path()), Err(StoreError::Locked(_))) {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let empty = tempfile::tempdir().unwrap();
    let refused = restore(empty.path(), &file, false).unwrap_err().to_string();
    assert!(refused.ends_with("this directory has no agent id"), "{refused}");
    restore(b.path(), &file, true).unwrap();
    let other = open(b.path()).await;
    assert_eq!(content(&other), before);
    assert_eq!(other.agent_id(), store.agent_id());
    other.close().await;
    let kept = fs::read_dir(b.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains(".aside-"))
        .count();
    assert_eq!(kept, 3, "state, journal and exports of before");
    store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever happens to the journal's bytes, changes that the database or the bytes before hold stay, and no
    /// deployment appears that nobody made.
    #[test]
    fn a_damaged_journal_loses_nothing_before_and_invents_nothing(cut in 0.0f64..1.0, flip: bool, bit in 0u8..8) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        runtime.block_on(async {
            let store = open(dir.path()).await;
            for n in 0..12 {
                store.create(deployment(&format!("d{n:02}"))).await.unwrap();
            }
            store.close().await;
        });
        // the journal alone remains
        fs::remove_dir_all(dir.path().join("state")).unwrap();
        fs::remove_dir_all(dir.path().join("exports")).unwrap();
        let (_, path) = journal::list(&dir.path().join("journal")).unwrap().remove(0);
        let mut bytes = fs::read(&path).unwrap();
        let ends: Vec<u64> = (1..=bytes.len()).filter_map(|n| {
            let read = journal::parse(&bytes[..n], 0, "x").unwrap();
            (read.torn == 0 && read.last > 0).then_some(n as u64)
        }).collect();
        prop_assert_eq!(ends.len(), 12);
        let at = ((bytes.len() - 1) as f64 * cut) as usize;
        if flip { bytes[at] ^= 1 << bit } else { bytes.truncate(at) }
        fs::write(&path, &bytes).unwrap();
        let whole_before = ends.iter().filter(|e| **e <= at as u64).count();
        let names: Vec<String> = runtime.block_on(async {
            let (store, _) = Store::open(dir.path()).unwrap();
            let names = store.deployments().iter().map(|d| d.name.to_string()).collect();
            // it takes writes again, and keeps them
            store.create(deployment("after")).await.unwrap();
            store.close().await;
            let (store, _) = Store::open(dir.path()).unwrap();
            assert!(store.by_name(&"after".parse().unwrap()).is_some());
            store.close().await;
            names
        });
        for n in 0..whole_before {
            prop_assert!(names.contains(&format!("d{n:02}")), "d{n:02} is lost: {names:?}");
        }
        prop_assert!(names.iter().all(|n| n.starts_with('d')));
        let least = if flip { 11 } else { whole_before };
        prop_assert!(names.len() >= least, "{} of {}", names.len(), least);
    }
}

/// Not a test: what the kill test runs in a process of its own.
#[test]
#[ignore = "the child of kill_nine_loses_nothing_acknowledged"]
fn child_that_writes_until_killed() {
    let dir = std::env::var("SIGIL_STORE_CHILD").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, report) = Store::open(Path::new(&dir)).unwrap();
        assert_eq!(report.alarms, Vec::<String>::new());
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    loop {
                        let d = deployment(&format!("d-{}", ulid::Ulid::generate().to_string().to_ascii_lowercase()));
                        let d = store.create(d).await.unwrap();
                        println!("\nACK {}", d.name);
                        if d.id.0.0 % 3 == 0 {
                            println!("\nDEL {}", d.name);
                            store.delete(d.id).await.unwrap();
                            println!("\nGONE {}", d.name);
                        }
                    }
                })
            })
            .collect();
        futures::future::select_all(tasks).await.0.unwrap()
    });
}

#[test]
fn kill_nine_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut there = std::collections::BTreeSet::new();
    let mut unsure = std::collections::BTreeSet::new();
    let mut acknowledged = 0;
    for round in 0..4u64 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::tests::child_that_writes_until_killed",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("SIGIL_STORE_CHILD", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        let mut take = |line: std::io::Result<String>| {
            let line = line.unwrap();
            match line.split_once(' ') {
                Some(("ACK", name)) => {
                    there.insert(name.to_owned());
                    acknowledged += 1;
                    true
                }
                Some(("DEL", name)) => {
                    there.remove(name);
                    unsure.insert(name.to_owned());
                    false
                }
                Some(("GONE", name)) => {
                    unsure.remove(name);
                    false
                }
                _ => false,
            }
        };
        // killed at another point in every round, in the middle of its writes
        while seen < 40 + 37 * round {
            let line = lines.next().unwrap_or_else(|| panic!("the child ended on its own in round {round}"));
            seen += u64::from(take(line));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            // a torn last line names nothing that was acknowledged
            if line.as_ref().is_ok_and(|l| l.len() >= 30 || l.is_empty()) {
                take(line);
            }
        }
    }
    let (store, report) = Store::open(dir.path()).unwrap();
    assert_eq!(report.alarms, Vec::<String>::new());
    let names: std::collections::BTreeSet<String> = store.deployments().iter().map(|d| d.name.to_string()).collect();
    let lost: Vec<_> = there.difference(&names).collect();
    assert!(lost.is_empty(), "{} of {acknowledged} acknowledged changes are lost: {lost:?}", lost.len());
    // what is there beyond that was under way when the child died: at most one a task and round
    let extra = names.difference(&there).filter(|n| !unsure.contains(*n)).count();
    assert!(extra <= 4 * 8, "{extra} deployments that nobody was told of");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_share_syncs_and_opening_is_quick() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let start = Instant::now();
    let tasks: Vec<_> = (0..50)
        .map(|t| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    store.create(deployment(&format!("d-{t}-{n}"))).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let rate = 1000.0 / start.elapsed().as_secs_f64();
    let before: Vec<Arc<Deployment>> = store.deployments();
    // the files as a kill -9 would leave them, page cache and all
    let killed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), killed.path());
    store.close().await;
    let start = Instant::now();
    let store = open(killed.path()).await;
    let took = start.elapsed();
    assert_eq!(store.deployments(), before);
    println!(
        "{rate:.0} acknowledged changes/s with 50 writers; opened after kill -9 with 1,000 deployments in {took:?}"
    );
    assert!(rate >= 300.0, "{rate} changes/s");
    // the bar is 300 ms in a release build
    let bar = if cfg!(debug_assertions) { 3000 } else { 300 };
    assert!(took < Duration::from_millis(bar), "{took:?}");
    store.close().await;
}

#[test]
fn agent_ids_are_ulids() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("agent-id"), "nonsense").unwrap();
    assert!(matches!(Store::open(dir.path()).map(|_| ()), Err(StoreError::Io(text)) if text.contains("agent-id")));
    fs::write(dir.path().join("agent-id"), "01ARZ3NDEKTSV4RRFFQ69G5FAV\n").unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    assert_eq!(store.agent_id(), "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse::<AgentId>().unwrap());
}
