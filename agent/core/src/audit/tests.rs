//! A chain as someone with write access to the file sees it.

use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_microsecond(1_790_000_000_000_000 + second * 1_000_000).unwrap()
}

fn record(n: u64) -> Record {
    let mut record = Record::new(at(n as i64), "token:laptop", "tls:192.0.2.1:5000", "policy.set")
        .target("time", "01KAMV")
        .before("policy", "access = \"key\"\n")
        .after("policy", "access = \"anonymous\"\n[tools]\ndeny = [\"a\"]\n")
        .after("größe", "\u{202e}\u{7}x");
    record.who_id = "01key".into();
    record.request = format!("r{n}");
    record.operation = "01OP".into();
    record.id = format!("01CALL{n}");
    record
}

fn chain(from: u64, count: u64, prev: &str) -> Vec<Record> {
    let mut all: Vec<Record> = Vec::new();
    for seq in from..from + count {
        let prev = all.last().map_or(prev, |r| r.hash.as_str()).to_owned();
        all.push(record(seq).bounded().sealed(seq, &prev));
    }
    all
}

fn verified<'a>(lines: impl IntoIterator<Item = &'a [u8]>, whole: bool) -> Report {
    let mut verifier = Verifier::default();
    for line in lines {
        verifier.push(line);
    }
    verifier.finish(whole)
}

fn verify(records: &[Record], whole: bool) -> Report {
    let lines: Vec<String> = records.iter().map(Record::line).collect();
    verified(lines.iter().map(String::as_bytes), whole)
}

fn kinds(report: &Report) -> Vec<(u64, Option<u64>, FlawKind)> {
    report.flaws.iter().map(|f| (f.line, f.seq, f.kind.clone())).collect()
}

#[test]
fn a_whole_chain_verifies_and_says_its_head() {
    let all = chain(1, 5, GENESIS);
    let report = verify(&all, true);
    assert_eq!(report.flaws, []);
    assert_eq!((report.records, report.first, report.last, report.begin), (5, Some(1), Some(5), Begin::Genesis));
    assert_eq!(report.head, all[4].hash);
    assert_eq!((report.from, report.to), (Some(at(1)), Some(at(5))));
    let none = verify(&[], true);
    assert_eq!((none.flaws.len(), none.records, none.head.as_str()), (0, 0, GENESIS));
}

#[test]
fn the_form_of_a_record_is_fixed() {
    let line = record(1).bounded().sealed(1, GENESIS).line();
    assert!(
        line.starts_with(r#"{"seq":1,"time":"2026-09-21T14:13:21Z","who":"token:laptop","who_id":"01key","from":"#),
        "{line}"
    );
    // an older agent's lines must verify for ever: a change of this hash is a change of the format
    assert_eq!(record(1).sealed(1, GENESIS).hash, "c3aa8502f35f339ea1867cb4842e2814630289120410e18ac0ca463adf5fe123");
}

#[test]
fn every_field_is_covered() {
    let good = record(1).bounded().sealed(1, GENESIS);
    type Change = fn(&mut Record);
    let changes: Vec<(&str, Change)> = vec![
        ("seq", |r| r.seq = 2),
        ("time", |r| r.time = at(9)),
        ("who", |r| r.who.push('x')),
        ("who_id", |r| r.who_id.clear()),
        ("from", |r| r.from = "agent".into()),
        ("what", |r| r.what = "policy.get".into()),
        ("target", |r| r.target = "tim".into()),
        ("target_id", |r| r.target_id.push('x')),
        ("before", |r| r.before.clear()),
        ("before's key", |r| {
            let value = r.before.remove("policy").unwrap();
            r.before.insert("policies".into(), value);
        }),
        ("after", |r| drop(r.after.insert("policy".into(), "x".into()))),
        ("a fact from one side to the other", |r| std::mem::swap(&mut r.before, &mut r.after)),
        ("outcome", |r| r.outcome = "FORBIDDEN".into()),
        ("request", |r| r.request.push('x')),
        ("operation", |r| r.operation.clear()),
        ("id", |r| r.id.push('x')),
        ("prev", |r| r.prev = r.prev.replace('0', "1")),
        ("hash", |r| r.hash = GENESIS.into()),
        ("the border between two fields", |r| {
            r.target_id = format!("{}{}", r.target, r.target_id);
            r.target.clear();
        }),
    ];
    for (name, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let (kind, seen) = Record::parse(bad.line().as_bytes()).unwrap_err();
        assert_eq!((kind, seen.is_some()), (FlawKind::Content, true), "{name}");
    }
}

#[test]
fn another_form_of_the_same_is_a_change() {
    let line = record(1).bounded().sealed(1, GENESIS).line();
    for other in [
        format!(" {line}"),
        format!("{line} "),
        line.replace("\"seq\":1", "\"seq\": 1"),
        line.replace("policy.set", "policy\\u002eset"),
        line.replace("token:laptop", "token\\u003Alaptop"),
    ] {
        assert_ne!(other, line);
        assert_eq!(Record::parse(other.as_bytes()).unwrap_err().0, FlawKind::Form, "{other}");
    }
    for none in ["", "{}", "null", "x", &line[..line.len() - 1], &line.replace("\"who\"", "\"whoo\"")] {
        assert!(matches!(Record::parse(none.as_bytes()), Err((FlawKind::NoRecord { .. }, None))), "{none}");
    }
}

#[test]
fn what_is_missing_moved_or_repeated_is_named() {
    let all = chain(1, 6, GENESIS);
    let without = |drop: &[usize]| {
        let kept: Vec<Record> =
            all.iter().enumerate().filter(|(i, _)| !drop.contains(i)).map(|(_, r)| r.clone()).collect();
        kinds(&verify(&kept, true))
    };
    assert_eq!(without(&[2]), [(3, Some(4), FlawKind::Missing { from: 3, to: 3 })]);
    assert_eq!(without(&[1, 2, 3]), [(2, Some(5), FlawKind::Missing { from: 2, to: 4 })]);
    assert_eq!(without(&[0]), [(1, Some(2), FlawKind::Beginning)]);
    let mut moved = all.clone();
    moved.swap(2, 3);
    assert_eq!(
        kinds(&verify(&moved, true)),
        [(3, Some(4), FlawKind::Missing { from: 3, to: 3 }), (4, Some(3), FlawKind::Order { after: 4 }),]
    );
    let mut twice = all.clone();
    twice.insert(3, all[2].clone());
    assert_eq!(kinds(&verify(&twice, true)), [(4, Some(3), FlawKind::Order { after: 3 })]);
    // one that is whole in itself in another's place
    let mut replaced = all.clone();
    replaced[3] = record(99).sealed(4, &all[2].hash);
    assert_eq!(kinds(&verify(&replaced, true)), [(5, Some(5), FlawKind::Link)]);
    let mut begun_anew = all;
    begun_anew[0] = record(1).sealed(1, &"1".repeat(64));
    let found = kinds(&verify(&begun_anew, true));
    assert_eq!(found[0], (1, Some(1), FlawKind::Link));
}

#[test]
fn a_beginning_that_was_removed_must_be_on_record() {
    let old = chain(1, 3, GENESIS);
    let mut kept = chain(4, 2, &old[2].hash);
    let trim = Record::new(at(9), "agent", "agent", TRIM).before("last", 3).before("head", &old[2].hash);
    let unexplained = verify(&kept, true);
    assert_eq!((unexplained.begin, kinds(&unexplained)), (Begin::Partial, vec![(1, Some(4), FlawKind::Beginning)]));
    let part = verify(&kept, false);
    assert_eq!((part.begin, part.flaws.len()), (Begin::Partial, 0));
    kept.push(trim.clone().sealed(6, &kept[1].hash));
    assert_eq!((verify(&kept, true).begin, verify(&kept, true).flaws.len()), (Begin::Trimmed, 0));
    // a removal of something else explains nothing
    for other in [trim.clone().before("last", 2), trim.before("head", GENESIS)] {
        kept[2] = other.sealed(6, &kept[1].hash);
        assert_eq!(kinds(&verify(&kept, true)), [(1, Some(4), FlawKind::Beginning)]);
    }
}

#[test]
fn a_cut_end_is_seen_by_who_knows_an_earlier_head() {
    let all = chain(1, 4, GENESIS);
    let check = |count: usize, head: &str| {
        let mut verifier = Verifier::new(Some(head.to_owned()));
        for record in &all[..count] {
            verifier.push(record.line().as_bytes());
        }
        verifier.finish(true).flaws
    };
    assert_eq!(check(4, &all[2].hash), []);
    let cut = check(2, &all[2].hash);
    assert_eq!(cut[0].kind, FlawKind::NoHead { head: all[2].hash.clone() });
    assert!(cut[0].to_string().starts_with("no record has the hash"), "{}", cut[0]);
}

#[test]
fn many_flaws_are_counted() {
    let report = verified((0..50).map(|_| &b"x"[..]), true);
    assert_eq!((report.flaws.len(), report.more, report.records), (20, 30, 0));
    assert_eq!(report.flaws[0].to_string(), "line 1: is no record: expected value at line 1 column 1");
}

#[test]
fn no_caller_makes_a_line_that_fills_the_log() {
    let mut huge = record(1).after("policy", "ä".repeat(1 << 20)).target("é".repeat(9000), "x".repeat(9000));
    for n in 0..100 {
        huge = huge.after(&format!("k{n:03}"), "x".repeat(1 << 20));
    }
    let bounded = huge.bounded();
    assert_eq!(bounded.after.len(), FACTS_MAX + 1);
    assert!(bounded.target.len() < FIELD_MAX + 8 && bounded.target.ends_with('…'));
    assert!(bounded.after["k000"].contains("… (cut: 1048576 bytes, sha256:"));
    assert!(bounded.line().len() < 600 << 10, "{}", bounded.line().len());
    let small = record(1);
    assert_eq!(small.clone().bounded(), small);
}

#[test]
fn a_filter_knows_times_and_patterns() {
    let record = record(5);
    let lets = |since: Option<i64>, until: Option<i64>, who: &str, what: &str, target: &str| {
        Filter::new(since.map(at), until.map(at), who, what, target).unwrap().lets(&record)
    };
    assert!(lets(None, None, "", "", "") && Filter::default().is_open());
    assert!(lets(Some(5), Some(5), "token:*", "policy.*", "time"));
    assert!(lets(None, None, "01key", "*", "01KAMV"));
    assert!(!lets(Some(6), None, "", "", "") && !lets(None, Some(4), "", "", ""));
    assert!(!lets(None, None, "root", "", "") && !lets(None, None, "", "policy", "") && !lets(None, None, "", "", "t"));
    assert!(Filter::new(None, None, &"x".repeat(300), "", "").is_err());
}

proptest! {
    /// Whatever single byte of a log is changed, verifying finds it; the form is fixed, so there is no white space that
    /// could be changed unseen.
    #[test]
    fn any_changed_byte_is_found(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut text: Vec<u8> = chain(1, 4, GENESIS).iter().flat_map(|r| format!("{}\n", r.line()).into_bytes()).collect();
        let place = place.index(text.len());
        prop_assume!(text[place] != byte);
        text[place] = byte;
        let lines = text.strip_suffix(b"\n").unwrap_or(&text);
        let report = verified(lines.split(|b| *b == b'\n'), true);
        prop_assert!(!report.flaws.is_empty(), "byte {place}");
    }
}
