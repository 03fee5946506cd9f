//! The log on a real directory: what a crash, a full disk, another process and an attacker leave of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use sigil_core::audit::{Begin, Filter, FlawKind, Report, TRIM, Verifier};

use super::*;

fn did(n: usize) -> Record {
    Record::new(Timestamp::now(), "root", "unix:0", "policy.set").target(format!("d{n}"), "").after("n", n)
}

fn files(data: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(data.join("audit")).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<_> = all.filter(|p| p.extension().is_some_and(|e| e == "jsonl")).collect();
    all.sort();
    all
}

fn lines(data: &Path) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for path in files(data) {
        let text = fs::read(path).unwrap();
        lines.extend(text.split_inclusive(|b| *b == b'\n').map(|l| l.strip_suffix(b"\n").unwrap_or(l).to_vec()));
    }
    lines
}

fn records(data: &Path) -> Vec<Record> {
    lines(data)
        .iter()
        .map(|l| Record::parse(l).unwrap_or_else(|e| panic!("{e:?}: {}", String::from_utf8_lossy(l))))
        .collect()
}

fn verify(data: &Path) -> Report {
    let mut verifier = Verifier::default();
    lines(data).iter().for_each(|line| verifier.push(line));
    verifier.finish(true)
}

async fn all(audit: &Audit, query: Query) -> Vec<Record> {
    let mut reader = audit.read(query);
    let mut found = Vec::new();
    while let Some(batch) = reader.next().await.unwrap() {
        found.extend(batch.lines.iter().map(|l| Record::parse(l).unwrap()));
    }
    found
}

fn targets(records: &[Record]) -> Vec<&str> {
    records.iter().map(|r| r.target.as_str()).collect()
}

#[tokio::test]
async fn what_is_recorded_is_there_after_a_restart_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let audit = Audit::open(dir.path()).unwrap();
        let writes = (0..20).map(|n| audit.record(vec![did(round * 20 + n)]));
        futures::future::try_join_all(writes).await.unwrap();
        audit.close().await;
        assert!(matches!(audit.record(vec![did(0)]).await, Err(AuditError::Closed)));
    }
    let report = verify(dir.path());
    assert_eq!((report.flaws.as_slice(), report.records, report.begin), (&[][..], 60, Begin::Genesis));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("audit")), 0o700);
    assert!(fs::read_dir(dir.path().join("audit")).unwrap().all(|e| mode(&e.unwrap().path()) == 0o600));
    let left: Vec<_> = fs::read_dir(dir.path().join("audit")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "a lock and a segment: {left:?}");
}

#[tokio::test]
async fn two_processes_write_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (agent, by_hand) = (Audit::open(dir.path()).unwrap(), Audit::open(dir.path()).unwrap());
    for n in 0..10 {
        agent.record(vec![did(2 * n)]).await.unwrap();
        let attempt = by_hand.begin(did(2 * n + 1)).await.unwrap();
        attempt.end("ok").await.unwrap();
    }
    let report = verify(dir.path());
    assert_eq!((report.flaws.as_slice(), report.records), (&[][..], 20));
    // the attempts of one that lives are not another's to take up
    let open = agent.begin(did(99)).await.unwrap();
    drop(Audit::open(dir.path()).unwrap());
    assert_eq!(verify(dir.path()).records, 20);
    open.end("NOT_FOUND").await.unwrap();
    assert_eq!(records(dir.path()).last().unwrap().outcome, "NOT_FOUND");
}

#[tokio::test]
async fn a_torn_last_line_is_cut_off_and_said() {
    for tail in [&b"{\"seq\":4,\"time\":\"20"[..], b"\0\0\0\0\0\0", b"{\"seq\"\0\0\0"] {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        audit.record((0..3).map(did).collect()).await.unwrap();
        audit.close().await;
        let path = files(dir.path()).pop().unwrap();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole, tail].concat()).unwrap();
        assert_eq!(verify(dir.path()).flaws.len(), 1, "seen without an agent, too");
        let audit = Audit::open(dir.path()).unwrap();
        audit.record(vec![did(3)]).await.unwrap();
        let all = records(dir.path());
        assert_eq!(verify(dir.path()).flaws, []);
        assert_eq!(
            (all[3].what.as_str(), all[3].after["bytes cut off"].as_str()),
            ("audit.repair", &*tail.len().to_string())
        );
        assert_eq!(targets(&all), ["d0", "d1", "d2", "", "d3"]);
    }
}

#[tokio::test]
async fn damage_stays_seen_and_the_log_goes_on_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    audit.record((0..5).map(did).collect()).await.unwrap();
    audit.close().await;
    let path = files(dir.path()).pop().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("\"d4\"", "\"d5\"", 1)).unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    audit.record(vec![did(6)]).await.unwrap();
    let report = verify(dir.path());
    assert_eq!((report.flaws[0].line, report.flaws[0].seq), (5, Some(5)));
    assert_eq!(report.flaws[0].kind, FlawKind::Content);
    assert_eq!(report.last, Some(7), "{report:?}");
    // whoever reads with a filter is told how much could not be judged; without one gets the lines as they are
    fs::write(&path, fs::read_to_string(&path).unwrap().replacen("{\"seq\":2,", "{\"seq\":x,", 1)).unwrap();
    let filter = Filter::new(None, None, "root", "", "").unwrap();
    let batch = audit.read(Query { filter, ..Query::default() }).next().await.unwrap().unwrap();
    assert_eq!((batch.damaged, batch.lines.len()), (1, 5));
    let batch = audit.read(Query::default()).next().await.unwrap().unwrap();
    assert_eq!((batch.damaged, batch.lines.len()), (0, 7));
}

#[tokio::test]
async fn what_was_begun_and_not_ended_is_recorded_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    let ended = audit.begin(did(1)).await.unwrap();
    let killed = audit.begin(did(2)).await.unwrap();
    let gone = audit.begin(did(3)).await.unwrap();
    ended.end("ok").await.unwrap();
    drop(gone);
    // one whose caller stops waiting for its beginning is ended as well
    let mut hasty = Box::pin(audit.begin(did(5)));
    assert!(futures::poll!(&mut hasty).is_pending());
    drop(hasty);
    audit.record(vec![did(4)]).await.unwrap();
    // the files as a killed process leaves them: its lock goes with it
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("audit")).unwrap();
    for entry in fs::read_dir(dir.path().join("audit")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join("audit").join(entry.file_name())).unwrap();
    }
    drop(Audit::open(copy.path()).unwrap());
    let all = records(copy.path());
    let mut rows: Vec<_> = all.iter().map(|r| (r.target.as_str(), r.outcome.as_str())).collect();
    // its end may not have been written yet when the files were copied
    rows.retain(|(target, _)| *target != "d5");
    assert_eq!(rows, [("d1", "ok"), ("d3", UNKNOWN), ("d4", "ok"), ("d2", UNKNOWN)]);
    assert!(
        all[1].after["note"].contains("went away") && all.last().unwrap().after["note"].contains("the agent ended")
    );
    assert_eq!(verify(copy.path()).flaws, []);
    // and once only
    drop(Audit::open(copy.path()).unwrap());
    assert_eq!(records(copy.path()).len(), all.len());
    killed.end("ok").await.unwrap();
    audit.close().await;
    assert_eq!(records(dir.path()).iter().filter(|r| r.target == "d5").count(), 1);
    let left = fs::read_dir(dir.path().join("audit")).unwrap().count();
    assert_eq!(left, 2, "no attempt is open");
}

/// The agent's side of `acknowledged means kept`: this test's binary is run again and kills itself.
#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    const DIR: &str = "SIGIL_TEST_AUDIT_KILL";
    if let Ok(dir) = std::env::var(DIR) {
        let audit = Audit::open(Path::new(&dir)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for n in 0.. {
            runtime.block_on(async { audit.begin(did(n)).await.unwrap().end("ok").await.unwrap() });
            fs::write(Path::new(&dir).join("acknowledged"), n.to_string()).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let name = "audit::tests::kill_9_loses_nothing_that_was_acknowledged";
    let mut least = 0;
    for round in 0..4usize {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--test-threads=1"])
            .env(DIR, dir.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let path = dir.path().join("acknowledged");
        let acknowledged = || fs::read_to_string(&path).ok().and_then(|t| t.parse::<usize>().ok()).unwrap_or_default();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while acknowledged() < 5 + 3 * round {
            assert!(std::time::Instant::now() < deadline, "the child writes nothing");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        least += acknowledged() + 1;
        fs::remove_file(&path).unwrap();
        drop(Audit::open(dir.path()).unwrap());
        assert_eq!(verify(dir.path()).flaws, []);
        let kept = records(dir.path()).iter().filter(|r| r.outcome == "ok" && r.who == "root").count();
        assert!(kept >= least, "{kept} of {least} acknowledged records are there");
    }
}

#[tokio::test]
async fn the_log_stays_below_its_cap_and_still_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    audit.set_max_bytes(512 << 10);
    let size = || files(dir.path()).iter().map(|p| fs::metadata(p).unwrap().len()).sum::<u64>();
    for round in 0..40usize {
        let group = (0..50).map(|n| did(round * 50 + n).after("text", "x".repeat(600))).collect();
        audit.record(group).await.unwrap();
        // the segment that is written to, and a group beyond its end
        assert!(size() <= (512 << 10) + (128 << 10), "{} after round {round}", size());
        assert_eq!(verify(dir.path()).flaws, [], "round {round}");
    }
    let report = verify(dir.path());
    assert_eq!(report.begin, Begin::Trimmed);
    assert!(report.first.unwrap() > 1000);
    let trims: Vec<Record> = records(dir.path()).into_iter().filter(|r| r.what == TRIM).collect();
    assert!(trims.iter().any(|t| t.before["last"] == (report.first.unwrap() - 1).to_string()), "{trims:?}");
    audit.close().await;
    let audit = Audit::open(dir.path()).unwrap();
    audit.record(vec![did(1)]).await.unwrap();
    assert_eq!(verify(dir.path()).flaws, []);
    // removed by another hand: seen
    fs::remove_file(&files(dir.path())[0]).unwrap();
    assert_eq!(verify(dir.path()).flaws[0].kind, FlawKind::Beginning);
    // a smaller cap counts at once
    audit.set_max_bytes(128 << 10);
    audit.record(vec![did(2)]).await.unwrap();
    assert!(files(dir.path()).len() <= 3 && size() <= 256 << 10, "{}", size());
}

#[tokio::test]
async fn what_cannot_be_recorded_is_refused_before_it_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    let under_way = audit.begin(did(1)).await.unwrap();
    audit.shared.full.store(true, Ordering::Relaxed);
    assert!(matches!(audit.begin(did(2)).await, Err(AuditError::Full)));
    assert!(matches!(audit.record(vec![did(3)]).await, Err(AuditError::Full)));
    assert!(matches!(under_way.end("ok").await, Err(AuditError::Full)));
    assert!(matches!(audit.trouble(), Some(AuditError::Full)));
    assert!(matches!(audit.note(did(4)), Err(AuditError::Full)));
    audit.shared.full.store(false, Ordering::Relaxed);
    // what was under way is written as soon as that is possible
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while records(dir.path()).is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "nothing is written when the disk has room again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    audit.begin(did(5)).await.unwrap().end("ok").await.unwrap();
    audit.note(did(6)).unwrap();
    audit.close().await;
    let all = records(dir.path());
    assert_eq!(targets(&all), ["d1", "d5", "d6"]);
    assert_eq!((all[0].outcome.as_str(), verify(dir.path()).flaws.len()), ("ok", 0));
    drop(Audit::open(dir.path()).unwrap());
    assert_eq!(records(dir.path()).len(), 3, "no attempt was left");
}

#[tokio::test]
async fn live_values_are_masked_and_texts_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    audit.set_redactor(|text| text.replace("hunter2", "•••"));
    let record = did(1).target("hunter2", "").before("policy", "a\nhunter2").after("text", "y".repeat(100_000));
    audit.begin(record.clone()).await.unwrap().end("ok").await.unwrap();
    audit.record(vec![record]).await.unwrap();
    for entry in fs::read_dir(dir.path().join("audit")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains("hunter2") && text.len() < 80_000, "{text}");
    }
    assert_eq!(targets(&records(dir.path())), ["•••", "•••"]);
}

#[tokio::test]
async fn readers_pick_follow_and_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    audit.set_max_bytes(2 << 20);
    for round in 0..4 {
        audit.record((0..100).map(|n| did(round * 100 + n).after("text", "z".repeat(2600))).collect()).await.unwrap();
    }
    assert!(files(dir.path()).len() > 2, "several segments");
    let filter = |what: &str, target: &str| Filter::new(None, None, "", what, target).unwrap();
    assert_eq!(all(&audit, Query::default()).await.len(), 400);
    let last = all(&audit, Query { tail: Some(250), ..Query::default() }).await;
    assert_eq!((last.len(), last[0].target.as_str(), last[249].target.as_str()), (250, "d150", "d399"));
    assert_eq!(all(&audit, Query { tail: Some(0), ..Query::default() }).await, []);
    assert_eq!(all(&audit, Query { tail: Some(9000), ..Query::default() }).await.len(), 400);
    let some = all(&audit, Query { filter: filter("policy.*", "d1*9"), tail: Some(3), ..Query::default() }).await;
    assert_eq!(targets(&some), ["d179", "d189", "d199"]);
    assert_eq!(all(&audit, Query { filter: filter("key.*", ""), ..Query::default() }).await, []);
    assert_eq!(all(&audit, Query { after: 395, ..Query::default() }).await.len(), 5);

    let mut follower = audit.read(Query { tail: Some(1), follow: true, ..Query::default() });
    let other = Audit::open(dir.path()).unwrap();
    let first = follower.next().await.unwrap().unwrap().lines;
    let mut seen: Vec<String> = first.iter().map(|l| Record::parse(l).unwrap().target).collect();
    for n in 400..520 {
        // this process' and another's
        let who = if n % 2 == 0 { &audit } else { &other };
        who.record(vec![did(n).after("text", "z".repeat(4000))]).await.unwrap();
    }
    while seen.len() < 121 {
        let batch = tokio::time::timeout(Duration::from_secs(20), follower.next()).await.expect("nothing comes");
        seen.extend(batch.unwrap().unwrap().lines.iter().map(|l| Record::parse(l).unwrap().target));
    }
    assert_eq!(seen, (399..520).map(|n| format!("d{n}")).collect::<Vec<_>>());
}
