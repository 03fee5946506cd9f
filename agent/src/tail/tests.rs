use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use sigil_core::model::ReleaseNo;

use super::*;
use crate::initlink::OutputGap;

fn id(n: u128) -> DeploymentId {
    DeploymentId(ulid::Ulid(n))
}

fn inst(n: u128) -> InstanceId {
    InstanceId(ulid::Ulid(n))
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(1_700_000_000_000_000 + micros).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A tail room with a link's end in the test's hand.
struct Room {
    tail: Tail,
    output: mpsc::Sender<OutputChunk>,
    stop: CancellationToken,
    acked: Arc<AtomicU64>,
}

impl Room {
    async fn new(dir: &Path, config: LogsConfig) -> Self {
        let (output, rx) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let tail = Tail::spawn(dir, config, rx, stop.clone()).await.unwrap();
        Self { tail, output, stop, acked: Arc::default() }
    }

    fn name(&self, instance: u128, deployment: u128) {
        self.tail.instance(Instance { instance: inst(instance), deployment: id(deployment), release: 1 });
    }

    fn make(&self, instance: u128, offset: u64, time: i64, text: &[u8]) -> OutputChunk {
        let acked = Arc::clone(&self.acked);
        let end = offset + text.len() as u64;
        let ack = Box::new(move || {
            acked.fetch_max(end, Ordering::SeqCst);
        });
        OutputChunk::new(inst(instance), Stream::Stdout, offset, at(time), Bytes::copy_from_slice(text), ack)
    }

    async fn chunk(&self, instance: u128, offset: u64, time: i64, text: &[u8]) {
        self.output.send(self.make(instance, offset, time, text)).await.unwrap();
    }

    async fn until_acked(&self, end: u64) {
        until(|| self.acked.load(Ordering::SeqCst) >= end).await;
    }

    async fn all(&self, query: Query) -> (Vec<Line>, Vec<Gap>) {
        let mut cursor = self.tail.cursor(query).unwrap();
        let (mut lines, mut gaps) = (Vec::new(), Vec::new());
        while let Some(batch) = cursor.next().await.unwrap() {
            lines.extend(batch.lines);
            gaps.extend(batch.gaps);
        }
        (lines, gaps)
    }

    async fn end(self) {
        self.stop.cancel();
        self.tail.flush().await;
    }
}

async fn until(mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn of(deployment: u128) -> Query {
    Query { deployments: vec![id(deployment)], ..Query::default() }
}

fn texts(lines: &[Line]) -> Vec<String> {
    lines.iter().map(|l| String::from_utf8_lossy(&l.bytes).into_owned()).collect()
}

fn seqs(lines: &[Line]) -> Vec<u64> {
    lines.iter().map(|l| l.seq).collect()
}

#[tokio::test]
async fn lines_outlive_the_agent_and_chunks_sent_again_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    room.chunk(1, 0, 10, b"one\ntwo\nthr").await;
    room.until_acked(11).await;
    // As after kill -9: the former room is not asked to end before the next one reads the files.
    let former = room;
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    assert_eq!(room.tail.kept(inst(1)), Some(at(10)));
    room.chunk(1, 4, 10, b"two\nthr").await;
    room.chunk(1, 4, 20, b"two\nthree\n").await;
    room.until_acked(14).await;
    let (lines, gaps) = room.all(of(1)).await;
    assert_eq!(texts(&lines), ["one", "two", "three"]);
    assert_eq!(seqs(&lines), [1, 2, 3]);
    assert!(gaps.is_empty());
    room.end().await;
    former.end().await;
}

#[tokio::test]
async fn a_container_started_again_counts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    room.chunk(1, 0, 10, b"first life\n").await;
    let mut second = room.make(1, 0, 5, b"clock stepped back\nun");
    second.life = 1;
    room.output.send(second).await.unwrap();
    room.until_acked(21).await;
    let mut third = room.make(1, 0, 30, b"third of its kind, long enough\n");
    third.life = 2;
    room.output.send(third).await.unwrap();
    room.until_acked(31).await;
    let (lines, _) = room.all(of(1)).await;
    assert_eq!(texts(&lines), ["first life", "clock stepped back", "un", "third of its kind, long enough"]);
    room.end().await;
}

#[tokio::test]
async fn an_unfinished_line_is_shown_after_silence_or_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    let mut cursor = room.tail.cursor(Query { follow: true, ..of(1) }).unwrap();
    room.chunk(1, 0, 10, b"Password: ").await;
    let batch = cursor.next().await.unwrap().unwrap();
    assert_eq!(texts(&batch.lines), ["Password: "]);
    room.chunk(1, 10, 20, b"bye").await;
    room.until_acked(13).await;
    assert_eq!(texts(&room.tail.last(id(1), Some(inst(1)), 1).await), ["bye"]);
    room.chunk(1, 13, 30, b"gone").await;
    room.until_acked(17).await;
    room.tail.instance_gone(inst(1));
    room.tail.flush().await;
    assert_eq!(texts(&room.all(Query { previous: true, ..of(1) }).await.0), ["Password: ", "bye", "gone"]);
    room.end().await;
}

#[tokio::test]
async fn output_before_the_name_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.chunk(7, 0, 1, b"early\n").await;
    room.chunk(7, 6, 2, &vec![b'x'; 2 << 20]).await;
    room.until_acked(6 + (2 << 20)).await;
    room.name(7, 1);
    room.chunk(7, 6 + (2 << 20), 3, b"late\n").await;
    room.until_acked(11 + (2 << 20)).await;
    let (lines, gaps) = room.all(of(1)).await;
    assert_eq!(texts(&lines), ["early", "late"]);
    assert!(gaps.iter().any(|g| g.after_seq == 1 && g.reason.contains("2097152 bytes")), "{gaps:?}");
    room.end().await;
}

#[derive(Debug)]
struct Engine(Vec<(Timestamp, bool, Bytes)>);

#[async_trait]
impl GapSource for Engine {
    async fn lines(&self, _: InstanceId, since: Timestamp, until: Timestamp) -> Vec<(Timestamp, bool, Bytes)> {
        self.0.iter().filter(|(t, _, _)| *t >= since && *t <= until).cloned().collect()
    }
}

#[tokio::test]
async fn a_gap_is_filled_from_the_engines_log_once() {
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    let logged = [(20, false, "def"), (21, true, "elsewhere"), (22, false, "missed")];
    let logged = logged.map(|(t, e, l)| (at(t), e, Bytes::from(l))).to_vec();
    room.tail.set_gap_source(Arc::new(Engine(logged)));
    let gap = |mut chunk: OutputChunk, bytes| {
        chunk.gap_before = Some(OutputGap { bytes, since: at(20), until: at(30) });
        chunk
    };
    room.chunk(1, 0, 10, b"start\nabc").await;
    for _ in 0..2 {
        room.output.send(gap(room.make(1, 20, 40, b"after\n"), 11)).await.unwrap();
        room.until_acked(26).await;
    }
    // A second gap that the engine cannot fill.
    let mut chunk = room.make(1, 100, 60, b"end\n");
    chunk.gap_before = Some(OutputGap { bytes: 74, since: at(50), until: at(55) });
    room.output.send(chunk).await.unwrap();
    room.until_acked(104).await;
    let (lines, gaps) = room.all(of(1)).await;
    assert_eq!(texts(&lines), ["start", "abcdef", "missed", "after", "end"]);
    assert_eq!(gaps.len(), 1);
    assert_eq!((gaps[0].after_seq, gaps[0].lost), (4, 0));
    assert!(gaps[0].reason.starts_with("74 bytes"), "{}", gaps[0].reason);
    room.end().await;
}

/// A line of an init's last words, as the engine logs them.
fn mark(gap: bool, offset: u64, bytes: u64, since: i64, until: i64) -> Bytes {
    let nanos = |t: i64| u64::try_from(at(t).as_nanosecond()).unwrap();
    let mark = sigil_init::mark::Mark {
        process: "main".into(),
        life: 7,
        offset,
        bytes,
        times: (nanos(since), nanos(until)),
        gap,
    };
    Bytes::from(mark.line().trim_end().to_owned())
}

/// Acknowledged, kept without init knowing, in a gap that nobody was told of, unread: an init's last words hold all.
#[tokio::test]
async fn last_words_come_in_once_whatever_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    let mut first = room.make(1, 0, 10, b"one\ntwo\nsame\n");
    first.life = 7;
    room.output.send(first).await.unwrap();
    room.until_acked(13).await;
    let former = room;

    // The engine's log: a former life's, a gap, then the last words, in which init begins where it heard the last
    // acknowledgement, and a forged mark at the end that says nothing.
    let log = vec![
        (at(20), false, Bytes::from("gap a")),
        (at(21), true, Bytes::from("an error")),
        (at(22), false, Bytes::from("gap b")),
        (at(50), false, mark(false, 4, 9, 10, 10)),
        (at(50), false, Bytes::from("two")),
        (at(50), false, Bytes::from("same")),
        (at(50), false, mark(true, 13, 12, 20, 22)),
        (at(51), false, mark(false, 25, 13, 30, 30)),
        (at(51), true, mark(false, 0, 3, 31, 31)),
        (at(51), false, Bytes::from("same")),
        (at(51), true, Bytes::from("err")),
        (at(51), false, Bytes::from("same")),
        (at(51), false, Bytes::from("end")),
        (at(52), false, mark(false, 38, 900, 40, 40)),
    ];
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    room.tail.set_gap_source(Arc::new(Engine(log.clone())));
    for _ in 0..2 {
        room.tail.ended(inst(1)).await;
    }
    // the gap's line on stderr was never told of
    let only = |lines: &[Line], stream| {
        let mut lines: Vec<Line> = lines.iter().filter(|l| l.stream == stream).cloned().collect();
        lines.sort_by_key(|l| l.seq);
        texts(&lines)
    };
    let expected = ["one", "two", "same", "gap a", "gap b", "same", "same", "end"];
    let (lines, gaps) = room.all(of(1)).await;
    assert_eq!(only(&lines, Stream::Stdout), expected);
    assert_eq!(only(&lines, Stream::Stderr), ["err", "an error"]);
    assert_eq!(gaps, []);
    assert_eq!(lines.iter().find(|l| &l.bytes[..] == b"an error").map(|l| l.time), Some(at(21)));
    room.end().await;

    // Another agent, and another life of the container behind it: nothing again.
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    room.tail.set_gap_source(Arc::new(Engine(log)));
    room.tail.ended(inst(1)).await;
    let mut next = room.make(1, 0, 60, b"again\n");
    next.life = 8;
    room.output.send(next).await.unwrap();
    room.until_acked(6).await;
    room.tail.ended(inst(1)).await;
    let (lines, _) = room.all(of(1)).await;
    assert_eq!(only(&lines, Stream::Stdout), [&expected[..], &["again"]].concat());
    assert_eq!(only(&lines, Stream::Stderr), ["err", "an error"]);
    room.end().await;
    former.end().await;
}

/// An engine that takes its time.
#[derive(Debug)]
struct Slow(Engine);

#[async_trait]
impl GapSource for Slow {
    async fn lines(&self, instance: InstanceId, since: Timestamp, until: Timestamp) -> Vec<(Timestamp, bool, Bytes)> {
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.0.lines(instance, since, until).await
    }
}

#[tokio::test]
async fn who_does_not_follow_waits_for_what_is_on_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    room.tail.set_gap_source(Arc::new(Slow(Engine(vec![(at(20), false, Bytes::from("its last"))]))));
    drop(room.tail.ended(inst(1)));
    assert_eq!(texts(&room.all(of(1)).await.0), [""; 0]);
    room.tail.caught_up(&[id(1), id(2)]).await;
    assert_eq!(texts(&room.all(of(1)).await.0), ["its last"]);
    room.end().await;
}

/// Killed with its init: only the engine's log has what came after the agent's end.
#[tokio::test]
async fn a_log_without_last_words_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    for turn in 0..3 {
        let room = Room::new(dir.path(), LogsConfig::default()).await;
        room.name(1, 1);
        room.name(2, 1);
        let mut log = vec![(at(20), false, Bytes::from("a")), (at(20), true, Bytes::from("b"))];
        if turn == 2 {
            log.push((at(30), false, Bytes::from("c")));
        }
        room.tail.set_gap_source(Arc::new(Engine(log)));
        room.tail.ended(inst(1)).await;
        room.tail.ended(inst(1)).await;
        room.tail.ended(inst(3)).await;
        let (lines, _) = room.all(of(1)).await;
        assert_eq!(texts(&lines), if turn == 2 { vec!["a", "b", "c"] } else { vec!["a", "b"] });
        assert!(lines.iter().all(|l| l.instance == Some(inst(1))));
        room.end().await;
    }
}

#[tokio::test]
async fn processes_of_one_container_share_its_log_without_repetition() {
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    // The last line is stamped after init's 'until'.
    let logged = [(20, "a1"), (21, "b1"), (22, "a2"), (31, "b2")];
    room.tail.set_gap_source(Arc::new(Engine(logged.map(|(t, l)| (at(t), false, Bytes::from(l))).to_vec())));
    for (process, begins, since, until) in [("a", 4, 20, 22), ("b", 2, 21, 30)] {
        let mut first = room.make(1, 0, 10, &b"own\n"[..begins]);
        first.process = process.into();
        room.output.send(first).await.unwrap();
        let end = begins as u64 + 6;
        let mut gap = room.make(1, end, 40, b"");
        gap.process = process.into();
        gap.gap_before = Some(OutputGap { bytes: 6, since: at(since), until: at(until) });
        room.output.send(gap).await.unwrap();
        room.until_acked(end).await;
    }
    room.until_acked(10).await;
    room.tail.flush().await;
    let (lines, gaps) = room.all(of(1)).await;
    assert_eq!(texts(&lines), ["own", "a1", "b1", "a2", "b2", "ow"]);
    assert!(gaps.is_empty(), "{gaps:?}");
    room.end().await;
}

#[tokio::test]
async fn a_loss_without_a_line_behind_it_is_not_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    room.chunk(1, 0, 1, b"one\n").await;
    let mut gap = room.make(1, 54, 20, b"");
    gap.gap_before = Some(OutputGap { bytes: 50, since: at(5), until: at(20) });
    room.output.send(gap).await.unwrap();
    room.until_acked(54).await;
    // As after kill -9, twice: the loss moves on to the next head file too.
    let mut former = vec![room];
    for text in ["tw", "o"] {
        let room = Room::new(dir.path(), LogsConfig::default()).await;
        room.name(1, 1);
        let offset = if text == "tw" { 54 } else { 56 };
        room.chunk(1, offset, 30, text.as_bytes()).await;
        room.until_acked(offset + text.len() as u64).await;
        former.push(room);
    }
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    room.chunk(1, 57, 40, b"\n").await;
    room.until_acked(58).await;
    let (lines, gaps) = room.all(of(1)).await;
    assert_eq!((texts(&lines), seqs(&lines)), (vec!["one".to_owned(), "two".to_owned()], vec![1, 2]));
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert!(gaps[0].after_seq == 1 && gaps[0].reason.starts_with("50 bytes"), "{gaps:?}");
    for room in former.into_iter().chain([room]) {
        room.end().await;
    }
}

async fn append(room: &Room, deployment: u128, time: i64, stream: Stream, text: &str) {
    let line = Bytes::copy_from_slice(text.as_bytes());
    room.tail.append(id(deployment), 1 as ReleaseNo, None, stream, at(time), line).await;
}

#[tokio::test]
async fn several_deployments_come_merged_and_filtered() {
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    for i in 0..60 {
        let stream = if i % 5 == 0 { Stream::Build } else { Stream::Stderr };
        append(&room, 1 + i as u128 % 3, i, stream, &format!("line {i}")).await;
    }
    room.tail.flush().await;
    let three = || Query { deployments: vec![id(3), id(1), id(2)], ..Query::default() };
    let wanted =
        |which: &dyn Fn(i64) -> bool| (0..60).filter(|i| which(*i)).map(|i| format!("line {i}")).collect::<Vec<_>>();
    assert_eq!(texts(&room.all(three()).await.0), wanted(&|_| true));
    for n in [0, 1, 7, 59, 100] {
        let (lines, _) = room.all(Query { tail: Some(n), ..three() }).await;
        assert_eq!(texts(&lines), wanted(&|i| i >= 60 - n as i64), "tail {n}");
    }
    let (lines, _) = room.all(Query { tail: Some(3), grep: Some("[05]$".into()), ..three() }).await;
    assert_eq!(texts(&lines), ["line 45", "line 50", "line 55"]);
    let (lines, _) =
        room.all(Query { streams: vec![Stream::Build], since: Some(at(20)), until: Some(at(40)), ..three() }).await;
    assert_eq!(texts(&lines), wanted(&|i| i % 5 == 0 && (20..=40).contains(&i)));
    assert!(room.all(Query { previous: true, ..three() }).await.0.is_empty());
    let bad = room.tail.cursor(Query { grep: Some("(".into()), ..three() }).unwrap_err();
    assert!(matches!(bad, TailError::BadPattern { .. }));
    assert!(matches!(room.tail.cursor(Query { tail: Some(2_000_000), ..three() }), Err(TailError::TooMany(_))));
    room.end().await;
}

/// Incompressible enough that files grow.
fn noise(i: u64) -> String {
    let mut x = i.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = format!("{i} ");
    for _ in 0..8 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.push_str(&format!("{x:016x}"));
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_lines_go_and_readers_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogsConfig { max_bytes: 2 << 20, ring_bytes: 256 << 10, ..LogsConfig::default() };
    let room = Room::new(dir.path(), config.clone()).await;
    append(&room, 1, 0, Stream::Stdout, "the very first").await;
    room.tail.flush().await;
    let mut lagging = room.tail.cursor(Query { follow: true, ..of(1) }).unwrap();
    let mut batch = lagging.next().await.unwrap().unwrap();
    assert_eq!(batch.positions, [(id(1), 1)]);
    let total = 60_000u64;
    for i in 2..=total {
        append(&room, 1, i as i64, Stream::Stdout, &noise(i)).await;
    }
    room.tail.flush().await;
    let stats = room.tail.stats(id(1)).await.unwrap();
    assert_eq!(stats.next, total + 1);
    assert_eq!(stats.first, stats.dropped + 1);
    let on_disk: u64 = std::fs::read_dir(dir.path().join("logs").join(id(1).to_string()))
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    assert!(on_disk <= 2 << 20, "{on_disk}");
    assert!(on_disk > 1 << 20, "{on_disk}");
    // The reader that lagged, and one that resumes there, are told exactly what they missed.
    let resumed = Query { follow: true, resume: vec![(id(1), 1)], ..of(1) };
    for mut cursor in [lagging, room.tail.cursor(resumed).unwrap()] {
        let mut seen = Vec::new();
        let mut lost = 0;
        while seen.last() != Some(&total) {
            batch = cursor.next().await.unwrap().unwrap();
            lost += batch.gaps.iter().map(|g| g.lost).sum::<u64>();
            seen.extend(seqs(&batch.lines));
        }
        assert_eq!(seen[0], stats.first);
        assert!(seen.windows(2).all(|w| w[1] == w[0] + 1));
        assert_eq!(lost, stats.first - 2);
    }
    // And from the end, across many blocks.
    let (lines, _) = room.all(Query { tail: Some(20_000), ..of(1) }).await;
    assert_eq!((lines.len(), lines[0].seq), (20_000, total - 19_999));
    let (lines, _) = room.all(Query { tail: Some(5), grep: Some("^(30000|4444.|59999) ".into()), ..of(1) }).await;
    assert_eq!(seqs(&lines), [44_446, 44_447, 44_448, 44_449, 59_999]);
    let (lines, _) = room.all(Query { since: Some(at(50_000)), until: Some(at(50_009)), ..of(1) }).await;
    assert_eq!(lines.len(), 10);
    // A next agent finds the same.
    let (before, _) = room.all(of(1)).await;
    room.end().await;
    let room = Room::new(dir.path(), config).await;
    assert_eq!(room.all(of(1)).await.0, before);
    append(&room, 1, 99_999, Stream::Stdout, "next life").await;
    room.tail.flush().await;
    assert_eq!(seqs(&room.all(Query { tail: Some(1), ..of(1) }).await.0), [total + 1]);
    room.tail.forget(id(1)).await;
    assert!(!dir.path().join("logs").join(id(1).to_string()).exists());
    room.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_resume_without_loss_or_repetition_while_lines_come() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogsConfig { ring_bytes: 64 << 10, ..LogsConfig::default() };
    let room = Room::new(dir.path(), config).await;
    room.name(1, 1);
    room.name(2, 2);
    let total = 20_000u64;
    let write = async {
        for deployment in [1u128, 2] {
            let (output, tail) = (room.output.clone(), room.make(deployment, 0, 0, b""));
            drop(tail);
            let room = &room;
            let mut offset = 0;
            let mut text = Vec::new();
            for i in 1..=total {
                text.extend_from_slice(format!("{} of {deployment}\n", noise(i)).as_bytes());
                // Chunks end anywhere.
                if text.len() > 3_000 || i == total {
                    let keep = if i == total { 0 } else { 13 };
                    let rest = text.split_off(text.len() - keep);
                    output.send(room.make(deployment, offset, i as i64, &text)).await.unwrap();
                    offset += text.len() as u64;
                    text = rest;
                }
            }
        }
    };
    let read = async {
        let mut next = HashMap::from([(id(1), 1u64), (id(2), 1u64)]);
        let mut resume = Vec::new();
        let mut round = 0;
        while next.values().any(|n| *n <= total) {
            round += 1;
            let query =
                Query { deployments: vec![id(1), id(2)], follow: true, resume: resume.clone(), ..Query::default() };
            let mut cursor = room.tail.cursor(query).unwrap();
            for _ in 0..=round % 4 {
                // Dropped in the middle of a wait now and then.
                let Ok(batch) = tokio::time::timeout(Duration::from_millis(20), cursor.next()).await else { continue };
                let batch = batch.unwrap().unwrap();
                assert!(batch.gaps.is_empty(), "{:?}", batch.gaps);
                for line in batch.lines {
                    let n = next.get_mut(&line.deployment).unwrap();
                    assert_eq!(line.seq, *n);
                    assert!(line.bytes.starts_with(format!("{n} ").as_bytes()));
                    *n += 1;
                }
                for (deployment, seq) in batch.positions {
                    resume.retain(|(d, _)| *d != deployment);
                    resume.push((deployment, seq));
                    assert_eq!(next[&deployment], seq + 1);
                }
            }
        }
    };
    tokio::join!(write, read);
    room.end().await;
}

#[tokio::test]
async fn following_ends_with_the_bound_the_deployment_or_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    append(&room, 1, 0, Stream::Agent, "started").await;
    let bound = Query { follow: true, until: Some(Timestamp::now()), ..of(1) };
    assert_eq!(texts(&room.all(bound).await.0), ["started"]);
    let mut cursor = room.tail.cursor(Query { follow: true, ..of(1) }).unwrap();
    cursor.next().await.unwrap().unwrap();
    let (next, ()) = tokio::join!(cursor.next(), room.tail.forget(id(1)));
    assert!(next.unwrap().is_none());
    let mut cursor = room.tail.cursor(Query { follow: true, ..of(2) }).unwrap();
    let stop = room.stop.clone();
    let (next, ()) = tokio::join!(cursor.next(), async move { stop.cancel() });
    assert!(next.unwrap().is_none());
    room.end().await;
}

#[tokio::test]
async fn what_cannot_be_written_is_counted_and_does_not_stop_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    room.chunk(1, 0, 1, b"fine\n").await;
    room.until_acked(5).await;
    let logs = dir.path().join("logs").join(id(1).to_string());
    // Root ignores permissions, so the directory itself is put out of the way: the next head cannot be made.
    room.end().await;
    let room = Room::new(dir.path(), LogsConfig::default()).await;
    room.name(1, 1);
    assert!(room.tail.kept(inst(1)).is_some());
    std::fs::rename(&logs, dir.path().join("aside")).unwrap();
    std::fs::write(&logs, "in the way").unwrap();
    room.chunk(1, 5, 2, b"lost 1\nlost 2\n").await;
    room.until_acked(19).await;
    room.chunk(1, 19, 3, b"lost 3\n").await;
    room.until_acked(26).await;
    assert_eq!(room.tail.stats(id(1)).await.unwrap().dropped, 3);
    std::fs::remove_file(&logs).unwrap();
    std::fs::rename(dir.path().join("aside"), &logs).unwrap();
    room.chunk(1, 26, 3, b"fine again\n").await;
    room.until_acked(37).await;
    let (lines, gaps) = room.all(of(1)).await;
    assert_eq!(texts(&lines), ["fine", "fine again"]);
    assert_eq!(seqs(&lines), [1, 2]);
    assert_eq!((gaps.iter().map(|g| g.lost).sum::<u64>(), gaps[0].after_seq), (3, 1));
    room.end().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever byte a kill (or a lost power) cut the files at: what is found is a beginning of what was written, in
    /// order, and a next life goes on counting without repeating a number that is still there.
    #[test]
    fn any_cut_of_a_file_leaves_a_beginning(
        sizes in prop::collection::vec(1usize..400, 1..120),
        cut in 0.0f64..1.0,
        which in 0usize..4,
        ring in prop::sample::select(vec![8u64 << 10, 64 << 10]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let config = LogsConfig { ring_bytes: ring, ..LogsConfig::default() };
        let written: Vec<String> =
            sizes.iter().enumerate().map(|(i, n)| noise(i as u64).repeat(1 + n / 100)[..*n].to_owned()).collect();
        let rt = runtime();
        rt.block_on(async {
            let room = Room::new(dir.path(), config.clone()).await;
            for (i, line) in written.iter().enumerate() {
                append(&room, 1, i as i64, Stream::Stdout, line).await;
                if i % 7 == 0 {
                    room.tail.flush().await;
                }
            }
            room.tail.flush().await;
            room.end().await;
        });
        let logs = dir.path().join("logs").join(id(1).to_string());
        let mut files: Vec<PathBuf> = std::fs::read_dir(&logs).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        let file = &files[files.len().saturating_sub(1 + which % files.len())];
        let len = std::fs::metadata(file).unwrap().len();
        let keep = (len as f64 * cut) as u64;
        std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(keep).unwrap();
        rt.block_on(async {
            let room = Room::new(dir.path(), config.clone()).await;
            let (found, gaps) = room.all(of(1)).await;
            for line in &found {
                prop_assert_eq!(&line.bytes[..], written[line.seq as usize - 1].as_bytes());
            }
            let numbers = seqs(&found);
            prop_assert!(numbers.windows(2).all(|w| w[0] < w[1]));
            // What is missing in between was told.
            let holes: u64 = numbers.windows(2).map(|w| w[1] - w[0] - 1).sum();
            let told: u64 = gaps.iter().filter(|g| g.after_seq >= numbers.first().copied().unwrap_or(0)).map(|g| g.lost).sum();
            let trailing = gaps.iter().filter(|g| numbers.last().is_none_or(|l| g.after_seq >= *l)).map(|g| g.lost).sum::<u64>();
            prop_assert_eq!(holes, told - trailing);
            append(&room, 1, 1_000_000, Stream::Stdout, "next").await;
            room.tail.flush().await;
            let (after, _) = room.all(of(1)).await;
            prop_assert_eq!(after.len(), found.len() + 1);
            prop_assert_eq!(&after[..found.len()], &found[..]);
            prop_assert!(after[found.len()].seq > numbers.last().copied().unwrap_or(0));
            room.end().await;
            Ok(())
        })?;
    }
}
