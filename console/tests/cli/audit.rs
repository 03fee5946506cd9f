//! `sigil audit`: shown, exported, and verified without an agent.

use serde_json::json;
use sigil_core::audit::{GENESIS, Record};

use super::Home;

fn lines(count: u64) -> Vec<Vec<u8>> {
    let mut prev = GENESIS.to_owned();
    (1..=count)
        .map(|seq| {
            let at = jiff::Timestamp::from_microsecond(1_700_000_000_000_000 + seq as i64 * 1_000_000).unwrap();
            let record = Record::new(at, "token:laptop", "tls:192.0.2.1:9", "policy.set").target("time", "01ID");
            let record =
                record.before("policy", "access = \"key\"\n").after("policy", "access = \"oauth\"\nrate = 1\n");
            let record = record
                .before("version", seq)
                .after("version", seq + 1)
                .after("note", "\u{1b}[2J\u{9b}2J")
                .sealed(seq, &prev);
            prev.clone_from(&record.hash);
            record.line().into_bytes()
        })
        .collect()
}

fn file(lines: &[Vec<u8>]) -> String {
    lines.iter().map(|l| format!("{}\n", String::from_utf8_lossy(l))).collect()
}

#[tokio::test]
async fn records_are_shown_one_a_line() {
    let home = Home::with_agent();
    home.fake.with(|s| s.audit = lines(2));
    let out = home.run(&["audit"]).await.exits(0).out;
    let first = "2023-11-14T22:13:21.000Z token:laptop tls:192.0.2.1:9 policy.set time ok  \
                 note: ^[[2J<U+009B>2J; policy: -1 +2 lines; version: 1 -> 2\n";
    assert!(out.starts_with(first), "{out}");
    assert_eq!(out.lines().count(), 2);
    let wide = home.run(&["audit", "-o", "wide"]).await.exits(0).out;
    assert!(wide.contains("    - access = \"key\"\n    + access = \"oauth\"\n    + rate = 1\n    id 01ID\n"), "{wide}");
    let asked = home.fake.with(|s| s.audit_asked.pop().unwrap());
    assert_eq!((asked.tail, asked.follow), (Some(50), false));
    let args =
        ["audit", "--since", "2023-11-14", "--who", "token:*", "--what", "policy.*", "--target", "time", "-o", "json"];
    let objects = home.run(&args).await.exits(0).out;
    assert_eq!(objects, file(&lines(2)), "the log's own lines");
    let asked = home.fake.with(|s| s.audit_asked.pop().unwrap());
    assert_eq!((asked.who.as_str(), asked.what.as_str(), asked.target.as_str()), ("token:*", "policy.*", "time"));
    assert_eq!((asked.since, asked.tail), (1_699_920_000_000_000, None));
    let yaml = home.run(&["audit", "--tail", "1", "-o", "yaml"]).await.exits(0).out;
    assert!(yaml.starts_with("---\nseq: 1\n"), "{yaml}");
    home.fake.with(|s| s.audit[1] = b"{\"seq\":".to_vec());
    assert!(home.run(&["audit"]).await.exits(0).out.contains("--- a line is no record: "));
    assert_eq!(home.run(&["audit", "--since", "soon"]).await.exits(2).err.matches("check --since").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_log_goes_on_over_a_cut_link() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let home = Home::with_agent();
    let proxy = home.proxy();
    home.fake.with(|s| s.audit = lines(30));
    home.fake.limit.send_replace(10);
    let host = format!("unix://{}", proxy.path.display());
    let mut child = home.command(&["--host", &host, "audit", "-f", "-o", "json"]).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    for limit in [10, 20, 30] {
        home.fake.limit.send_replace(limit);
        while seen.len() < limit {
            let read = tokio::time::timeout(std::time::Duration::from_secs(20), out.next_line()).await;
            let text = read.expect("records go on").unwrap().expect("the follow does not end");
            seen.push(Record::parse(text.as_bytes()).unwrap().seq);
        }
        proxy.cut();
    }
    assert_eq!(seen, (1..=30).collect::<Vec<u64>>());
    child.kill().await.unwrap();
}

#[tokio::test]
async fn an_export_verifies_without_an_agent() {
    let home = Home::with_agent();
    home.fake.with(|s| s.audit = lines(5));
    home.run(&["audit", "export", "--file", "a.jsonl"]).await.exits(0);
    assert_eq!(std::fs::read_to_string(home.path("a.jsonl")).unwrap(), file(&lines(5)));
    assert_eq!(home.run(&["audit", "export"]).await.exits(0).out, file(&lines(5)));
    assert!(home.run(&["audit", "export", "--file", "a.jsonl"]).await.exits(2).err.contains("is there already"));
    let online = home.run(&["audit", "verify"]).await.exits(0).out;

    let offline = Home::empty();
    offline.put("a.jsonl", &file(&lines(5)));
    let said = offline.run(&["audit", "verify", "a.jsonl"]).await.exits(0).out;
    let head = Record::parse(&lines(5)[4]).unwrap().hash;
    assert_eq!(
        said,
        format!(
            "5 records, seq 1 to 5, 2023-11-14T22:13:21Z to 2023-11-14T22:13:25Z\nhead {head}\n\
             from the first record on\nthe chain is whole\n"
        )
    );
    assert_eq!(said, online);
    let piped = offline.run_stdin(&["audit", "verify", "-", "-o", "json"], file(&lines(5)).as_bytes()).await;
    let value = piped.exits(0).json();
    assert_eq!((&value["ok"], &value["records"], &value["head"]), (&json!(true), &json!(5), &json!(head)));
    // parts of one log, and a part alone
    offline.put("1.jsonl", &file(&lines(5)[..2]));
    offline.put("2.jsonl", &file(&lines(5)[2..]));
    offline.run(&["audit", "verify", "1.jsonl", "2.jsonl", "--head", &head]).await.exits(0);
    let part = offline.run(&["audit", "verify", "2.jsonl"]).await.exits(0).out;
    assert!(part.contains("what was before is not in it"), "{part}");
    let cut = offline.run(&["audit", "verify", "1.jsonl", "--head", &head]).await.exits(1).err;
    assert!(cut.contains("the newest ones were cut off"), "{cut}");
    offline.run(&["audit", "verify", "1.jsonl", "--head", "abc"]).await.exits(2);
}

#[tokio::test]
async fn what_was_done_to_a_log_is_named() {
    let home = Home::empty();
    let text = file(&lines(5));
    home.put("a.jsonl", &text.replacen("\"version\":\"3\"", "\"version\":\"9\"", 1));
    let ran = home.run(&["audit", "verify", "a.jsonl"]).await.exits(1);
    assert!(
        ran.err.contains("a.jsonl: line 2, seq 2: was changed: its hash does not fit its content\n"),
        "{}",
        ran.err
    );
    assert!(!ran.out.contains("the chain is whole"), "{}", ran.out);
    let mut missing = lines(5);
    missing.remove(2);
    home.put("b.jsonl", &file(&missing));
    let ran = home.run(&["audit", "verify", "b.jsonl", "-o", "json"]).await.exits(1);
    let value = ran.json();
    assert_eq!(
        value["flaws"],
        json!([{ "file": "b.jsonl", "line": 3, "seq": 4, "what": "record 3 before it is missing" }])
    );
    assert_eq!(ran.error()["code"], "AUDIT_BROKEN");
    // a data directory is the whole log: its beginning has to be there
    home.put("data/audit/00000000000000000003.jsonl", &file(&lines(5)[2..]));
    home.put("data/audit/lock", "");
    let ran = home.run(&["audit", "verify", "data"]).await.exits(1);
    assert!(ran.err.contains("line 1, seq 3: what was before it is missing"), "{}", ran.err);
    home.put("data/audit/00000000000000000001.jsonl", &file(&lines(5)[..2]));
    home.run(&["audit", "verify", "data"]).await.exits(0);
    assert_eq!(home.run(&["audit", "verify", "nowhere.jsonl"]).await.exits(1).err.matches("nowhere.jsonl").count(), 1);
    std::fs::create_dir(home.path("empty")).unwrap();
    home.run(&["audit", "verify", "empty"]).await.exits(2);
}
