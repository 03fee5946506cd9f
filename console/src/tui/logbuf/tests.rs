use super::*;

fn of(deployment: &str, seq: u64, text: &str) -> LogLine {
    LogLine {
        time: None,
        deployment: deployment.into(),
        instance: String::new(),
        stream: "stdout".into(),
        seq,
        line: text.into(),
        cut: false,
        release: 1,
    }
}

fn line(seq: u64, text: &str) -> LogLine {
    of("a", seq, text)
}

fn lines(lines: Vec<LogLine>) -> LogBatch {
    LogBatch { lines, gaps: vec![] }
}

fn shown(b: &Buffer) -> Vec<String> {
    (0..b.len()).map(|i| String::from_utf8_lossy(&b.get(i).unwrap().text).into_owned()).collect()
}

fn chips(patterns: &[&str]) -> Sieve {
    let chips = patterns.iter().map(|p| Pattern::parse(p).unwrap().unwrap()).collect();
    Sieve { chips, ..Sieve::default() }
}

fn worked(b: &mut Buffer) {
    while b.work() {}
}

#[test]
fn gaps_stand_where_lines_are_missing() {
    let mut b = Buffer::default();
    let gap = LogGap { deployment: "a".into(), lost: 1204, after_seq: 1, reason: "slow".into() };
    b.add(LogBatch { lines: vec![line(1, "one"), line(1206, "two")], gaps: vec![gap] });
    assert_eq!(shown(&b), ["one", "1,204 lines lost (slow)", "two"]);
}

#[test]
fn filters_apply_to_old_and_new_lines_and_never_hide_a_gap() {
    let mut b = Buffer::default();
    b.add(lines(vec![line(1, "GET /a"), line(2, "POST /b")]));
    b.set_sieve(chips(&["!get"]));
    let gap = LogGap { deployment: "a".into(), lost: 1, after_seq: 2, reason: "x".into() };
    b.add(LogBatch { lines: vec![line(4, "get"), line(5, "PUT")], gaps: vec![gap] });
    assert_eq!(shown(&b), ["POST /b", "1 line lost (x)", "PUT"]);
    assert_eq!(b.place(b.number(2).unwrap()), 2);
    b.set_sieve(Sieve::default());
    assert_eq!(b.len(), 5);
    assert!(Pattern::parse("(").is_err());
    assert!(Pattern::parse("!").unwrap().is_none());
}

#[test]
fn chips_levels_and_streams_go_together() {
    let mut b = Buffer::default();
    let on = |stream: &str, mut l: LogLine| {
        l.stream = stream.into();
        l
    };
    b.add(lines(vec![
        line(1, "info: GET /a"),
        line(2, "error: GET /b"),
        on("stderr", line(3, "warn: GET /c")),
        on("agent", line(4, "GET exited")),
        line(5, "error: POST /d"),
        line(6, "error: \x1b[31mGE\x1b[0mT /e"),
    ]));
    b.set_sieve(chips(&["GET", "!/e$"]));
    assert_eq!(shown(&b), ["info: GET /a", "error: GET /b", "warn: GET /c", "GET exited"]);
    b.set_sieve(Sieve { least: Level::Warn, ..chips(&["GET"]) });
    assert_eq!(b.len(), 4, "colours do not part a word: {:?}", shown(&b));
    b.set_sieve(Sieve { which: Which::Err, ..Sieve::default() });
    assert_eq!(shown(&b), ["warn: GET /c", "GET exited"], "the agent's word has no stream");
}

#[test]
fn memory_is_bounded_and_places_stay_right() {
    let mut b = Buffer::default();
    b.set_sieve(chips(&["7$"]));
    let text = "x".repeat(1 << 20);
    for i in 0..200 {
        b.add(lines(vec![line(i, &format!("{text}{i}"))]));
        assert!(b.bytes() <= STREAM);
    }
    worked(&mut b);
    assert_eq!(b.dropped as usize + b.total(), 200);
    assert!(shown(&b).iter().all(|l| l.ends_with('7')));
    assert!(b.len() >= 6);
}

#[test]
fn a_loud_deployment_takes_nothing_from_a_quiet_one() {
    let mut b = Buffer::default();
    let text = "x".repeat(1 << 20);
    for i in 0..400_u64 {
        // the quiet one's lines stand between those of the loud ones
        if i % 100 == 0 {
            b.add(lines(vec![of("quiet", i, &format!("error {i}"))]));
            let number = b.number(b.len() - 1).unwrap();
            b.bookmark(number);
        }
        for loud in ["a", "b", "c"] {
            b.add(lines(vec![of(loud, i, &text)]));
        }
        assert!(b.bytes() <= ALL);
    }
    b.set_sieve(chips(&["^error"]));
    worked(&mut b);
    assert_eq!(shown(&b), ["error 0", "error 100", "error 200", "error 300"]);
    assert_eq!((b.errors(), b.dropped as usize + b.total()), (4, 1204));
    // numbers are found again after lines before them were dropped
    for place in 0..4 {
        let number = b.number(place).unwrap();
        assert_eq!((b.place(number), b.is_bookmarked(number)), (place, true));
    }
    // five loud ones would be more than there is room for: then the oldest of all go
    for i in 0..64_u64 {
        for loud in ["d", "e"] {
            b.add(lines(vec![of(loud, i, &text)]));
        }
    }
    assert!(b.bytes() <= ALL);
}

#[test]
fn long_logs_are_looked_at_in_slices_from_the_newest_on() {
    let mut b = Buffer::default();
    let pad = "x".repeat(1000);
    for i in 0..20_000 {
        b.add(lines(vec![line(i, &format!("{} {pad}", if i % 100 == 0 { "hit" } else { "no" }))]));
    }
    b.set_sieve(chips(&["hit"]));
    let first = b.len();
    assert!(b.is_working() && first > 0 && first < 100, "{first}");
    assert_eq!(b.number(b.len() - 1), Some(19_900));
    // what comes meanwhile is not lost, and not told twice
    b.add(lines(vec![line(20_000, "hit too")]));
    worked(&mut b);
    assert_eq!((b.len(), b.number(0), b.number(200)), (201, Some(0), Some(20_000)));
    b.set_search(Pattern::parse("too|hit x").unwrap());
    b.add(lines(vec![line(20_001, "hit too"), line(20_002, "too")]));
    worked(&mut b);
    assert_eq!((b.len(), b.hits()), (202, 202), "what is not shown is not found");
    assert_eq!(b.near_hit(Some(19_900), true), Some((20_000, false)));
    assert_eq!(b.near_hit(Some(20_001), true), Some((0, true)));
    assert_eq!(b.near_hit(None, false), Some((20_001, false)));
    assert_eq!(b.hit(100), Some(2));
}

#[test]
fn errors_bookmarks_and_hits_are_found_by_place_and_by_time() {
    let mut b = Buffer::default();
    let at = |seq: u64, second: i64, text: &str| LogLine {
        time: Some(Timestamp::from_second(1_000_000 + second).unwrap()),
        ..line(seq, text)
    };
    b.add(lines((0..100).map(|i| at(i, i as i64, if i % 40 == 30 { "error" } else { "fine" })).collect()));
    assert_eq!(b.errors_over(10), [0, 0, 0, 1, 0, 0, 0, 1, 0, 0]);
    assert_eq!(b.error_since(1_000_031), Some(70));
    assert_eq!(b.near_error(None, true), Some((30, false)));
    assert_eq!(b.near_error(Some(70), true), Some((30, true)));
    assert_eq!(b.near_error(Some(30), false), Some((70, true)));
    assert!(b.bookmark(50));
    assert_eq!(b.between(30, 51), Ticks { error: true, hit: false, bookmark: true });
    assert_eq!(b.between(31, 50), Ticks::default());
    assert_eq!(b.near_bookmark(Some(0), true), Some((50, false)));
    b.set_sieve(chips(&["fine"]));
    assert_eq!((b.near_error(None, true), b.near_bookmark(None, true)), (None, Some((50, false))));
    assert!(!b.bookmark(50));
    assert_eq!(b.near_bookmark(None, true), None);
}
