//! Counting through kills, restarts and damage: what was used is known here, and has to come out.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sigil_core::cgroup::Reading;
use sigil_core::model::InstanceId;

use super::report::By;
use super::*;
use crate::engine::fake::Fake;
use crate::initlink::InitLinks;
use crate::sample::{Instance, Life, ReplicaUse};
use crate::store::tests::deployment;

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

const BOOT: u64 = 7;

fn id(n: u64) -> DeploymentId {
    DeploymentId(ulid::Ulid::from_parts(1, u128::from(n)))
}

fn replica(n: u64, life: u64, cpu_micros: u64, memory: u64, sent_bytes: u64) -> ReplicaUse {
    let life = Life { boot: BOOT, began: life, pid: 10 };
    ReplicaUse {
        instance: InstanceId(ulid::Ulid::from_parts(1, u128::from(n))),
        release: 1,
        life,
        reading: Reading { cpu_micros, memory, sent_bytes, ..Reading::default() },
        network_life: life,
        cpu_cores: 0.0,
        cpu_limit: 1.0,
        memory_limit: 1 << 30,
        baseline: None,
        frozen: false,
        ready: true,
        by_engine: false,
        at: Timestamp::now(),
    }
}

fn there(n: u64, replicas: Vec<ReplicaUse>, counts: Vec<(Part, Counts)>) -> There {
    let about = About {
        name: format!("d{n}"),
        team: "default".into(),
        user: "ada".into(),
        tier: "micro".into(),
        since: 0,
        counted_to: 0,
        gone: false,
    };
    There { id: id(n), about, storage: 1 << 20, replicas, counts }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn take(book: &mut Book, run: &str, second: i64, there: &[There]) {
    let uptime_ms = u64::try_from(second).unwrap() * 1000;
    book.take(&Moment { run, now: at(second), boot: BOOT, uptime_ms, lives: &|_| true }, there);
}

fn total(book: &Book, n: u64) -> Amounts {
    let mut sum = Amounts::default();
    book.rows.iter().filter(|(k, _)| k.deployment == id(n) && k.part == Part::Whole).for_each(|(_, a)| sum.add(a));
    sum
}

/// Tears the end of the file off, as a kill in the middle of a write does.
fn tear(dir: &Path, to: u64, dice: &mut Dice) {
    let path = dir.join("usage/journal");
    let length = std::fs::metadata(&path).unwrap().len();
    let keep = to + dice.below((length - to).max(1));
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(keep).unwrap();
}

#[test]
fn an_agent_that_is_killed_at_any_moment_counts_everything_once() {
    for seed in 1..=40 {
        let dir = tempfile::tempdir().unwrap();
        let mut dice = Dice(seed * 0x9e37_79b9);
        let (mut journal, mut book) = Journal::open(dir.path()).unwrap();
        let (mut cpu, mut sent, mut life, mut second) = ([0_u64; 3], [0_u64; 3], [1_u64; 3], 0_i64);
        let mut cpu_ever = [0_u64; 3];
        let (mut run, mut requests, mut requests_ever) = (0, 0_u64, 0_u64);
        // requests that a kill took, and those that nobody wrote down yet
        let (mut lost, mut unwritten) = (0, 0);
        let mut written = 0;
        for _ in 0..200 {
            second += 10;
            for n in 0..3 {
                let more = dice.below(1000);
                (cpu[n], cpu_ever[n], sent[n]) = (cpu[n] + more, cpu_ever[n] + more, sent[n] + 1);
            }
            let more = dice.below(5);
            (requests, requests_ever, unwritten) = (requests + more, requests_ever + more, unwritten + more);
            let all: Vec<There> = (0..3)
                .map(|n| {
                    let replica = replica(n as u64, life[n], cpu[n], 1 << 20, sent[n]);
                    let counts = Counts { requests, errors: 0, sent: 2 * requests };
                    let counts =
                        if n == 0 { vec![(Part::Whole, counts), (Part::User("u".into()), counts)] } else { vec![] };
                    there(n as u64, vec![replica], counts)
                })
                .collect();
            take(&mut book, &run.to_string(), second, &all);
            match dice.below(10) {
                // not written down this time
                0..=2 => {}
                // killed: before, in the middle of, or after a write
                3 => {
                    if dice.below(2) == 0 {
                        journal.append(&book.changed()).unwrap();
                        if dice.below(2) == 0 {
                            tear(dir.path(), written, &mut dice);
                        } else {
                            unwritten = 0;
                        }
                    }
                    (journal, book) = Journal::open(dir.path()).unwrap();
                    written = std::fs::metadata(dir.path().join("usage/journal")).unwrap().len();
                    lost += unwritten;
                    (run, requests, unwritten) = (run + 1, 0, 0);
                }
                // a container starts again; its last figures were taken in
                4 => {
                    let n = dice.below(3) as usize;
                    journal.append(&book.changed()).unwrap();
                    (life[n], cpu[n], sent[n]) = (life[n] + 1, 0, 0);
                    unwritten = 0;
                }
                5 => {
                    journal.compact(&book).unwrap();
                    book.changed();
                    unwritten = 0;
                }
                _ => {
                    journal.append(&book.changed()).unwrap();
                    unwritten = 0;
                }
            }
            written = written.max(std::fs::metadata(dir.path().join("usage/journal")).unwrap().len());
            if unwritten == 0 {
                written = std::fs::metadata(dir.path().join("usage/journal")).unwrap().len();
            }
        }
        // the agent goes on once more, and takes in where everything stands
        let all: Vec<There> = (0..3)
            .map(|n| there(n as u64, vec![replica(n as u64, life[n], cpu[n], 1 << 20, sent[n])], vec![]))
            .collect();
        take(&mut book, &run.to_string(), second + 10, &all);
        for n in 0..3 {
            let counted = total(&book, n as u64);
            assert_eq!(counted.cpu_micros, cpu_ever[n], "seed {seed}, container {n}");
            // the first reading begins at ten seconds; a start of the container ends one span and begins another
            assert!(counted.seconds <= 2000, "{}", counted.seconds);
            assert!(counted.memory_kib_seconds <= 1024 * 2000, "{}", counted.memory_kib_seconds);
            // from a life's begin on, which is written down at once by whoever keeps the book (here: not always)
            assert!(
                counted.memory_kib_seconds >= 1024 * (2000 - 60 * life[n]),
                "{} {}",
                counted.memory_kib_seconds,
                life[n]
            );
        }
        let counted = total(&book, 0);
        assert_eq!(counted.requests, requests_ever - lost, "seed {seed}: {lost} of {requests_ever} were lost");
        let of_user: u64 =
            book.rows.iter().filter(|(k, _)| k.part == Part::User("u".into())).map(|(_, a)| a.requests).sum();
        assert_eq!(of_user, counted.requests);
    }
}

/// Calls of a run as the gateway counts them, by user, beside their slots.
#[derive(Default)]
struct Calls(Vec<(DeploymentId, String, [u64; 3], Option<Slot>)>);

impl Calls {
    fn call(&mut self, tally: &Tally, deployment: DeploymentId, user: &str, sent: u64) {
        let at = self.0.iter().position(|(d, u, ..)| *d == deployment && u == user).unwrap_or_else(|| {
            let slot = Some(tally.slot(deployment, user));
            self.0.push((deployment, user.to_owned(), [0; 3], slot));
            self.0.len() - 1
        });
        let (.., counts, slot) = &mut self.0[at];
        *counts = [counts[0] + 1, counts[1] + u64::from(sent % 7 == 0), counts[2] + sent];
        slot.as_ref().unwrap().set(|| *counts);
    }

    fn there(&self) -> Vec<There> {
        let part = |n: u64| {
            let mine = || self.0.iter().filter(move |(d, ..)| *d == id(n));
            let counts = |c: &[u64; 3]| Counts { requests: c[0], errors: c[1], sent: c[2] };
            let whole: [u64; 3] = std::array::from_fn(|i| mine().map(|(.., c, _)| c[i]).sum());
            let users = mine().map(|(_, user, c, _)| (Part::User(user.clone()), counts(c)));
            there(n, vec![], users.chain([(Part::Whole, counts(&whole))]).collect())
        };
        (0..3).map(part).collect()
    }
}

#[test]
fn no_call_that_has_ended_is_lost_or_counted_twice_whenever_the_agent_is_killed() {
    let users = ["ada", "(anonymous)", "a name of many bytes: äöüäöüäöüäöüäöüäöüäöüäöüäöüäöü"];
    for seed in 1..=40 {
        let dir = tempfile::tempdir().unwrap();
        let mut dice = Dice(seed * 0x9e37_79b9);
        let mut ever: HashMap<(DeploymentId, &str), [u64; 3]> = HashMap::new();
        let mut second = 0;
        for _ in 0..20 {
            // an agent's life: it takes in what is left of those before it, and is killed at some moment
            let tally = Tally::new(dir.path());
            let mut kept = Kept::open(dir.path(), tally.clone()).unwrap();
            kept.take_former(|_| true);
            let mut calls = Calls::default();
            for _ in 0..dice.below(60) {
                second += 1;
                match dice.below(8) {
                    0 => {
                        let moment =
                            Moment { run: tally.run(), now: at(second), boot: BOOT, uptime_ms: 0, lives: &|_| true };
                        kept.book.take(&moment, &calls.there());
                        match dice.below(4) {
                            0 => {}
                            1 => kept.journal.compact(&kept.book).unwrap(),
                            2 => {
                                // killed in the middle of the write
                                let path = dir.path().join("usage/journal");
                                let whole = std::fs::metadata(&path).map_or(0, |m| m.len());
                                kept.journal.append(&kept.book.changed()).unwrap();
                                if dice.below(2) == 0 {
                                    tear(dir.path(), whole, &mut dice);
                                    break;
                                }
                            }
                            _ => kept.write(false),
                        }
                    }
                    _ => {
                        let (n, user, sent) = (dice.below(3), users[dice.below(3) as usize], dice.below(1000));
                        calls.call(&tally, id(n), user, sent);
                        let all = ever.entry((id(n), user)).or_default();
                        *all = [all[0] + 1, all[1] + u64::from(sent % 7 == 0), all[2] + sent];
                    }
                }
            }
        }
        let mut kept = Kept::open(dir.path(), Tally::new(dir.path())).unwrap();
        kept.take_former(|_| true);
        let sum = |part: &dyn Fn(&Part) -> bool, deployment: DeploymentId| {
            let rows = kept.book.rows.iter().filter(|(k, _)| k.deployment == deployment && part(&k.part));
            rows.fold([0; 3], |s, (_, a)| [s[0] + a.requests, s[1] + a.errors, s[2] + a.egress_bytes])
        };
        for ((deployment, user), all) in &ever {
            assert_eq!(sum(&|part| *part == Part::User((*user).into()), *deployment), *all, "seed {seed}, {user}");
        }
        for n in 0..3 {
            let all = ever
                .iter()
                .filter(|((d, _), _)| *d == id(n))
                .fold([0; 3], |s, (_, a)| [s[0] + a[0], s[1] + a[1], s[2] + a[2]]);
            assert_eq!(sum(&|part| *part == Part::Whole, id(n)), all, "seed {seed}");
        }
        let left = std::fs::read_dir(dir.path().join("usage")).unwrap().map(|e| e.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("tally-")).collect();
        assert!(left.is_empty(), "{left:?} are not removed");
    }
}

#[test]
fn a_former_run_whose_file_stays_is_taken_in_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut calls = Calls::default();
    let tally = Tally::new(dir.path());
    (0..5).for_each(|_| calls.call(&tally, id(0), "ada", 10));
    let file = std::fs::read_dir(dir.path().join("usage")).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&file).unwrap();
    for round in 0..3 {
        let mut kept = Kept::open(dir.path(), Tally::new(dir.path())).unwrap();
        kept.take_former(|_| true);
        assert_eq!(total(&kept.book, 0).requests, 5, "round {round}");
        assert!(!file.exists());
        // as if it could not be removed: the next agent finds it again, behind a run of another that called, too
        let moment = Moment { run: "other", now: at(round), boot: BOOT, uptime_ms: 0, lives: &|_| true };
        kept.book.take(&moment, &[there(0, vec![], vec![(Part::Whole, Counts::default())])]);
        kept.write(false);
        std::fs::write(&file, &bytes).unwrap();
    }
    // one that says nothing whole says nothing
    std::fs::write(&file, &bytes[..100]).unwrap();
    let mut torn = bytes.clone();
    torn[40] ^= 1;
    std::fs::write(dir.path().join("usage/tally-torn"), &torn).unwrap();
    let mut kept = Kept::open(dir.path(), Tally::new(dir.path())).unwrap();
    kept.take_former(|_| true);
    assert_eq!(total(&kept.book, 0).requests, 5);
}

#[test]
fn one_that_is_not_seen_yet_counts_on_and_one_that_is_over_is_forgotten() {
    let mut book = Book::default();
    let one = |cpu| [there(1, vec![replica(1, 5, cpu, 0, 0)], vec![])];
    take(&mut book, "a", 10, &one(100));
    // a new agent, which does not see its containers yet
    take(&mut book, "b", 20, &[there(1, vec![], vec![])]);
    take(&mut book, "b", 30, &one(150));
    assert_eq!(total(&book, 1).cpu_micros, 150);
    let over = Moment { run: "b", now: at(40), boot: BOOT, uptime_ms: 40_000, lives: &|_| false };
    book.take(&over, &[there(1, vec![], vec![])]);
    book.changed();
    let whole = serde_json::to_string(&book.whole()).unwrap();
    assert!(whole.contains("\"lasts\":[]"), "{whole}");
    // the deployment goes, what it used stays
    take(&mut book, "b", 50, &[]);
    assert!(book.about[&id(1)].gone);
    assert_eq!((total(&book, 1).cpu_micros, total(&book, 1).seconds), (150, 30));
    take(&mut book, "b", 5000, &[]);
    assert_eq!(total(&book, 1).seconds, 30, "it is not there any more");
}

#[test]
fn the_last_figures_of_a_container_count_and_older_ones_behind_them_do_not() {
    let mut book = Book::default();
    let life = Life { boot: BOOT, began: 5, pid: 10 };
    let ending = |cpu_micros, sent_bytes| Ending {
        deployment: id(1),
        instance: InstanceId(ulid::Ulid::from_parts(1, 1)),
        life,
        reading: Reading { cpu_micros, memory: 1 << 20, sent_bytes, ..Reading::default() },
        network_life: life,
    };
    let one = |cpu, sent| [there(1, vec![replica(1, 5, cpu, 1 << 20, sent)], vec![])];
    let second = |uptime: u64| Moment { run: "a", now: at(0), boot: BOOT, uptime_ms: uptime * 1000, lives: &|_| false };
    book.take(&second(0), &one(100, 10));
    // it ends three seconds behind the round; the rounds after that still show the old one, then none
    book.ending(&second(3), &ending(180, 25));
    book.take(&second(4), &one(100, 10));
    book.take(&second(5), &one(100, 10));
    book.take(&second(10), &[there(1, vec![], vec![])]);
    let sum = total(&book, 1);
    assert_eq!((sum.cpu_micros, sum.egress_bytes, sum.memory_kib_seconds), (180, 25, 3 * 1024));
    assert!(!serde_json::to_string(&book.whole()).unwrap().contains("cpu_micros\":180,\"memory\""), "it is forgotten");
    // a container of processes that come and go lives on
    book.take(&second(20), &one(200, 30));
    book.ending(&second(21), &ending(210, 31));
    book.take(&second(22), &one(200, 30));
    book.take(&second(30), &one(260, 40));
    book.ending(&second(31), &ending(261, 40));
    let sum = total(&book, 1);
    // what was forgotten counts again from its begin: it is another's that came by the same numbers
    assert_eq!((sum.cpu_micros, sum.egress_bytes), (180 + 261, 25 + 40));
    // of what nobody knows nothing is told
    let mut other = Book::default();
    other.ending(&second(3), &ending(180, 25));
    assert!(other.rows.is_empty());
}

#[test]
fn a_clock_that_jumps_makes_no_memory() {
    let mut book = Book::default();
    let one = [there(1, vec![replica(1, 5, 0, 1 << 30, 0)], vec![])];
    take(&mut book, "a", 10, &one);
    // a year later by the clock, ten seconds by the machine's
    let later = Moment { run: "a", now: at(31_536_000), boot: BOOT, uptime_ms: 20_000, lives: &|_| true };
    book.take(&later, &one);
    assert_eq!(total(&book, 1).memory_kib_seconds, (1 << 20) * 10);
    let rows: Vec<_> = book.rows.keys().map(|key| key.month).collect();
    assert_eq!(rows.len(), 1, "ten seconds and a year are of the month in which they were seen: {rows:?}");
}

#[test]
fn a_file_of_something_else_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("usage")).unwrap();
    std::fs::write(dir.path().join("usage/journal"), b"what is this, it is long enough").unwrap();
    let (mut journal, mut book) = Journal::open(dir.path()).unwrap();
    assert_eq!(book, Book::default());
    take(&mut book, "a", 10, &[there(1, vec![replica(1, 5, 9, 0, 0)], vec![])]);
    journal.append(&book.changed()).unwrap();
    let (_, again) = Journal::open(dir.path()).unwrap();
    assert_eq!(total(&again, 1).cpu_micros, 9);
    let names: Vec<String> = std::fs::read_dir(dir.path().join("usage"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().any(|name| name.starts_with("journal.damaged-")), "{names:?}");
}

#[tokio::test]
async fn quotas_are_judged_and_a_budget_stops_once() {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let (store, _) = Store::open(dir.path()).unwrap();
    let fake = Fake::new(store.agent_id());
    let (links, _output) = InitLinks::spawn(dir.path(), Default::default(), stop.clone()).await.unwrap();
    let mut config = AgentConfig::default();
    config.quota.action = "throttle".into();
    let (_, config) = watch::channel(Arc::new(config));
    let mut small = deployment("clock");
    small.releases[0].spec.resources = sigil_core::tier::tier("micro").unwrap();
    let d = store.create(small).await.unwrap();
    let engine: Arc<dyn Engine> = Arc::new(fake);
    let sample = Sample::spawn(
        sample::Deps {
            store: store.clone(),
            engine: engine.clone(),
            links,
            config: config.clone(),
            data_dir: dir.path().to_owned(),
        },
        stop.clone(),
    );
    let deps = Deps { store: store.clone(), sample: sample.clone(), tally: Tally::new(dir.path()), engine, config };
    let usage = Usage::spawn(deps, dir.path(), stop.clone()).unwrap();
    let tier = d.release(1).unwrap().spec.resources.tier.clone();
    let most = judge::tier_quota(&tier).unwrap().requests.unwrap();
    let count = crate::web::Count { requests: most, errors: 1, sent: 10 };
    let deployment = d.id;
    let more = Arc::new(AtomicU64::new(0));
    let (told, ended) = (more.clone(), more.clone());
    let counted = move || {
        let count = crate::web::Count { requests: most + told.load(Relaxed), ..count };
        let users = vec![("ada".to_owned(), count)];
        vec![Counted { deployment, whole: count, users, tools: vec![("now".to_owned(), count)] }]
    };
    usage.tell_counted(counted, move || ended.load(Relaxed));
    let budget = judge::Budget { amount: 0.01, stop: true };
    let set = |whose: Whose, quota, budget| {
        let limit = Limit { whose: whose.clone(), quota, budget, by: "ada".into(), at: Timestamp::now() };
        store.update_limit(whose, move |_| Ok(Some(limit)))
    };
    set(Whose::All, judge::Quota::default(), Some(budget)).await.unwrap();
    let quota = judge::Quota { requests: Some(5), ..judge::Quota::default() };
    set(Whose::User("ada".into()), quota, None).await.unwrap();
    let mut verdicts = usage.verdicts();
    sample.instances(vec![Instance {
        instance: InstanceId(ulid::Ulid::generate()),
        deployment: d.id,
        release: 1,
        container: String::new(),
        pid: u32::MAX,
        ready: true,
    }]);
    tokio::time::timeout(Duration::from_secs(30), verdicts.changed()).await.expect("nothing is judged").unwrap();
    let now = verdicts.borrow().clone();
    let (action, sentence) = &now.deployments[&d.id];
    assert_eq!(*action, Action::Throttle);
    assert!(sentence.contains(&format!("the tier {tier}'s quota of 'clock' is used up")), "{sentence}");
    assert_eq!(now.users["ada"].0, Action::Stop);
    assert!(now.all.is_none(), "a budget refuses nothing");
    let stopped = async {
        loop {
            let now = store.deployment(d.id).unwrap();
            if now.desired.run == Run::Stopped {
                return now.reason.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let reason = tokio::time::timeout(Duration::from_secs(20), stopped).await.expect("it is not stopped");
    assert!(reason.starts_with("stopped: the budget of everything is used up"), "{reason}");
    assert!(usage.facts().borrow().iter().any(|fact| fact.what == What::Budget && fact.over));
    // a call that ends is written down long before the next reading of containers
    let written = || {
        // a copy: whoever opens a journal cuts off what is not whole yet
        let copy = tempfile::tempdir().unwrap();
        std::fs::create_dir(copy.path().join("usage")).unwrap();
        std::fs::copy(dir.path().join("usage/journal"), copy.path().join("usage/journal")).unwrap();
        Journal::open(copy.path()).unwrap().1.rows.values().map(|amounts| amounts.requests).max()
    };
    let soon = async {
        let mut seen = 0;
        while seen < 3 {
            let before = more.fetch_add(1, Relaxed);
            while written() != Some(most + before + 1) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            seen += 1;
        }
    };
    // three times, within the time of one reading
    tokio::time::timeout(Duration::from_secs(9), soon).await.expect("calls are not written down when they end");
    let most = most + 3;
    // somebody starts it again: this month's budget has had its say
    let start = |d: &mut Deployment| {
        d.desired.run = Run::Running;
        Ok(())
    };
    store.update(d.id, None, "started", start).await.unwrap();
    assert!(usage.shared.judge(Timestamp::now()).is_empty());
    // what is told by whom
    let rows = usage.report(By::Tool, None, &|_| true);
    assert_eq!((rows[0].of.as_str(), rows[0].deployment.as_str(), rows[0].amounts.requests), ("now", "clock", most));
    let rows = usage.report(By::User, None, &|_| true);
    assert_eq!(rows.iter().find(|row| row.of == "ada").unwrap().amounts.requests, most);
    assert!(usage.report(By::Deployment, None, &|_| false).is_empty(), "nothing is shown that is not seen");
    stop.cancel();
    assert!(usage.closed(Duration::from_secs(10)).await);
    // another agent knows it all
    let (_, book) = Journal::open(dir.path()).unwrap();
    assert_eq!(book.rows.values().map(|amounts| amounts.requests).max(), Some(most));
    assert_eq!(book.stopped.len(), 1);
}
