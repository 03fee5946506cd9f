//! kill -9 of a process that sets, removes, rotates and wraps anew, a hundred times at random moments.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

const ROUNDS: u32 = 100;
const NAMES: u64 = 6;

/// Not a test: what the kill test runs in a process of its own.
#[test]
#[ignore = "the child of a_hundred_kills_lose_no_secret"]
fn child_that_changes_secrets_until_killed() {
    let dir = std::path::PathBuf::from(std::env::var("SIGIL_SECRETS_CHILD").unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, report) = Store::open(&dir).unwrap();
        assert_eq!(report.alarms, Vec::<String>::new());
        let audit = Audit::open(&dir).unwrap();
        let secrets = Secrets::open(&dir, &SecretsConfig::default(), store.clone(), audit, false).unwrap();
        for n in 0..NAMES {
            match secrets.get(&team(), &format!("K{n}")) {
                Ok(value) => println!("\nHAS K{n} {}", value.as_ref().map_or("-", |v| v.expose_secret())),
                Err(error) => println!("\nBAD K{n} {error}"),
            }
        }
        println!("\nREADY {}", secrets.keyring().keys.len());
        // what the killed one left, and what comes
        secrets.reseal_in_background(tokio_util::sync::CancellationToken::new());
        let rotating = secrets.clone();
        tokio::spawn(async move {
            loop {
                rotating.rotate_data_key().unwrap();
                println!("\nROTATED");
                tokio::time::sleep(Duration::from_millis(7)).await;
                rotating.rewrap(&SecretsConfig::default(), None).unwrap();
                println!("\nWRAPPED");
            }
        });
        let tasks: Vec<_> = (0..NAMES)
            .map(|n| {
                let secrets = secrets.clone();
                tokio::spawn(async move {
                    let name = format!("K{n}");
                    for turn in 0.. {
                        if turn % 9 == 8 {
                            println!("\nTRY {name} -");
                            secrets.remove(&team(), &name).await.unwrap();
                            println!("\nACK {name} -");
                        } else {
                            let value = ulid::Ulid::generate().to_string();
                            println!("\nTRY {name} {value}");
                            secrets.set(&team(), &name, value.clone().into(), "", "ada").await.unwrap();
                            println!("\nACK {name} {value}");
                        }
                    }
                })
            })
            .collect();
        futures::future::select_all(tasks).await.0.unwrap();
    });
}

/// What is known of a secret: its last value, and the one that was under way.
#[derive(Default)]
struct Known {
    last: String,
    tried: Option<String>,
}

#[test]
fn a_hundred_kills_lose_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let seed = ulid::Ulid::generate().random() as u64 | 1;
    let mut random = seed;
    let mut below = move |most: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % most
    };
    let mut known: HashMap<String, Known> = HashMap::new();
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "secrets::tests::kill::child_that_changes_secrets_until_killed"])
            .args(["--ignored", "--nocapture", "--test-threads=1"])
            .env("SIGIL_SECRETS_CHILD", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        // most of them while it works, some while it opens
        let opening = round % 8 == 7;
        // so far does it get, however slow the machine is: to some changes, or to a new master key
        let (mut changes, mut wrapped, mut ready) = (below(5), round % 5 == 4, false);
        while !(opening || ready && changes == 0 && !wrapped) {
            let from = text.len();
            if out.read_line(&mut text).unwrap() == 0 {
                let mut why = String::new();
                child.stderr.take().unwrap().read_to_string(&mut why).unwrap();
                panic!("round {round}, seed {seed}: the child ended on its own: {text} {why}");
            }
            match text[from..].split(' ').next() {
                Some("READY") => ready = true,
                Some("ACK") => changes = changes.saturating_sub(1),
                Some("WRAPPED\n") => wrapped = false,
                _ => {}
            }
        }
        std::thread::sleep(Duration::from_millis(below(if opening { 60 } else { 12 })));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut rest = Vec::new();
        out.read_to_end(&mut rest).unwrap();
        text.push_str(&String::from_utf8_lossy(&rest));
        // a torn last line tells nothing
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            let mut words = line.splitn(3, ' ');
            let (what, name, value) = (words.next().unwrap(), words.next().unwrap_or(""), words.next().unwrap_or("-"));
            *counts.entry(what.to_owned()).or_default() += 1;
            let one = known.entry(name.to_owned()).or_insert_with(|| Known { last: "-".into(), tried: None });
            match what {
                "HAS" => {
                    let tried = one.tried.take();
                    assert!(
                        value == one.last || Some(value) == tried.as_deref(),
                        "round {round}, seed {seed}: {name} is {value}; acknowledged was {}, under way {tried:?}",
                        one.last
                    );
                    value.clone_into(&mut one.last);
                }
                "BAD" => panic!("round {round}, seed {seed}: {line}"),
                "TRY" => one.tried = Some(value.to_owned()),
                "ACK" => {
                    value.clone_into(&mut one.last);
                    one.tried = None;
                }
                _ => {}
            }
        }
    }
    let count = |what: &str| counts.get(what).copied().unwrap_or(0);
    println!("{counts:?} in {:?}", began.elapsed());
    assert!(count("ACK") > 100 && count("ROTATED") > 50 && count("WRAPPED") > 15, "nothing was under way: {counts:?}");
    // and at the end a whole one, with every record sealed by the newest key
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, _) = Store::open(dir.path()).unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        let secrets = Secrets::open(dir.path(), &SecretsConfig::default(), store.clone(), audit, false).unwrap();
        let done = secrets.reseal().await.unwrap();
        assert_eq!(done.broken, Vec::<String>::new());
        assert_eq!(secrets.keyring().keys.len(), 1);
        for (name, known) in known.iter().filter(|(name, _)| name.starts_with('K')) {
            let value = shown(secrets.get(&team(), name).unwrap()).unwrap_or_else(|| "-".to_owned());
            assert!(value == known.last || Some(&value) == known.tried.as_ref(), "{name}");
        }
        store.close().await;
    });
}
