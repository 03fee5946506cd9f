use super::*;
use crate::store::tests::deployment;

/// A room whose time passes only when it is asked, over a store in a directory of its own.
struct Lab {
    shared: Shared,
    seen: Arc<Mutex<Option<Seen>>>,
    id: DeploymentId,
    _dir: tempfile::TempDir,
}

async fn lab(policy: &str, replicas: u32) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let mut d = deployment("one");
    d.scaling = Some(Box::new(Policy::read("p", policy, None).unwrap()));
    d.desired.replicas = replicas;
    d.releases[0].outcome = Outcome::Good;
    let id = d.id;
    store.create(d).await.unwrap();
    let seen = Arc::new(Mutex::new(None));
    let told = seen.clone();
    let deps = Deps {
        store,
        config: watch::channel(Arc::new(AgentConfig::default())).1,
        audit: Audit::open(dir.path()).unwrap(),
        data_dir: dir.path().to_owned(),
        seen: Arc::new(move |_, _| *told.lock().unwrap()),
        price: Arc::new(|_| None),
        asleep: Arc::new(|_| Sleeping::default()),
        called: Arc::new(|_| Box::pin(async { BTreeSet::new() })),
        wake: Arc::new(|_, _| panic!("nobody sleeps")),
    };
    Lab { shared: Shared::new(deps), seen, id, _dir: dir }
}

impl Lab {
    fn load(&self, ready: u32, requests: f64) {
        let signals = Signals { ready, cpu: Some(5.0), memory: Some(5.0), requests, ..Signals::default() };
        *self.seen.lock().unwrap() = Some(Seen { asleep: false, signals, cores: 0.1, calls: 0 });
    }

    fn follow(&self) {
        self.shared.follow(&self.shared.deps.store.deployments());
    }

    async fn evaluate(&self) -> Option<Kept> {
        let kept = self.shared.evaluate(self.id).await;
        if let Some(kept) = &kept {
            self.shared.files.append(self.id, std::slice::from_ref(kept)).unwrap();
        }
        kept
    }

    async fn change(&self, change: impl FnOnce(&mut Deployment) + Send + 'static) {
        let change = move |d: &mut Deployment| {
            change(d);
            Ok(())
        };
        self.shared.deps.store.update(self.id, None, "changed", change).await.unwrap();
    }

    fn desired(&self) -> u32 {
        self.shared.deps.store.deployment(self.id).unwrap().desired.replicas
    }
}

const AT_ONCE: &str = "{min: 1, max: 6, upCooldown: 0, downCooldown: 0, stabilisation: 0, evaluateEvery: 1}";

#[tokio::test]
async fn it_follows_the_load_and_writes_down_why() {
    let lab = lab(AT_ONCE, 1).await;
    lab.follow();
    lab.load(1, 170.0);
    let kept = lab.evaluate().await.unwrap();
    assert_eq!((kept.decision.from, kept.decision.to, lab.desired()), (1, 4, 4));
    let now = lab.shared.deps.store.deployment(lab.id).unwrap();
    assert_eq!(now.reason, "scaled from 1 to 4: requests a minute a replica, 170.0, is above 50.0");
    lab.load(4, 8.0);
    assert_eq!(lab.evaluate().await.unwrap().decision.to, 3, "one at a time");
    let kept = lab.shared.files.newest(lab.id, 9, |_| true);
    assert_eq!(kept.iter().map(|k| (k.decision.from, k.decision.to)).collect::<Vec<_>>(), [(4, 3), (1, 4)]);
    assert_eq!(kept[1].decision.signals.unwrap().requests, 170.0);
}

#[tokio::test]
async fn a_persons_step_begins_a_cool_down_and_none_stays_none() {
    let lab = lab("{min: 1, max: 6, upCooldown: 3600, downCooldown: 3600, evaluateEvery: 1}", 1).await;
    lab.follow();
    lab.load(1, 20.0);
    assert!(lab.evaluate().await.unwrap().decision.held.is_empty());
    lab.change(|d| d.desired.replicas = 2).await;
    lab.load(2, 500.0);
    let kept = lab.evaluate().await.unwrap();
    assert_eq!((kept.decision.to, kept.decision.held.last().unwrap().by), (2, HeldBy::Cooldown));
    lab.change(|d| d.desired.replicas = 0).await;
    assert_eq!(lab.evaluate().await, None);
    assert_eq!(lab.desired(), 0);
    let handle = Autoscale { shared: Arc::new(lab.shared) };
    let now = handle.shared.deps.store.deployment(lab.id).unwrap();
    let explained = handle.explain(&now);
    assert_eq!(explained.decision, None);
    assert!(explained.notes[0].starts_with("somebody scaled it to none"), "{:?}", explained.notes);
}

#[tokio::test]
async fn a_step_counts_for_the_agent_after_this_one() {
    let mut lab = lab("{min: 1, max: 6, upCooldown: 3600, downCooldown: 3600, evaluateEvery: 1}", 1).await;
    lab.follow();
    lab.load(1, 170.0);
    assert_eq!(lab.evaluate().await.unwrap().decision.to, 4);
    let Shared { deps, .. } = lab.shared;
    lab.shared = Shared::new(deps);
    lab.follow();
    lab.load(4, 900.0);
    let kept = lab.evaluate().await.unwrap();
    assert_eq!((kept.decision.to, kept.decision.held.last().unwrap().by), (4, HeldBy::Cooldown), "{kept:?}");
}

#[tokio::test]
async fn what_rolls_out_sleeps_or_may_not_have_more_is_left_alone() {
    let lab = lab(AT_ONCE, 1).await;
    lab.follow();
    lab.load(1, 170.0);
    lab.change(|d| d.releases[0].outcome = Outcome::Pending).await;
    assert_eq!(lab.evaluate().await, None);
    lab.change(|d| d.releases[0].outcome = Outcome::Good).await;
    *lab.seen.lock().unwrap() = Some(Seen { asleep: true, ..Seen::default() });
    assert_eq!(lab.evaluate().await, None);
    lab.load(1, 170.0);
    let volume = sigil_core::model::Volume {
        source: "data".into(),
        path: "/data".into(),
        mode: sigil_core::model::VolumeMode::Exclusive,
    };
    lab.change(|d| d.releases[0].spec.volumes.push(volume)).await;
    let kept = lab.evaluate().await.unwrap();
    assert_eq!((kept.decision.to, kept.decision.held[0].by), (1, HeldBy::Host));
    assert!(kept.decision.held[0].why.contains("its volume is exclusive"), "{kept:?}");
}

#[tokio::test]
async fn a_policy_that_changes_counts_at_once_and_one_that_ends_is_forgotten() {
    let lab = lab(AT_ONCE, 3).await;
    lab.follow();
    lab.load(3, 60.0);
    lab.change(|d| d.scaling = Some(Box::new(Policy::read("p", "{min: 1, max: 2}", None).unwrap()))).await;
    lab.follow();
    assert_eq!(lab.evaluate().await.unwrap().decision.to, 2, "bounds wait for no cool-down");
    lab.change(|d| d.scaling = None).await;
    lab.follow();
    assert_eq!(lab.evaluate().await, None);
    assert!(lab.shared.watched().is_empty());
}

#[tokio::test]
async fn a_change_in_between_wins() {
    let lab = lab(AT_ONCE, 1).await;
    lab.follow();
    lab.load(1, 170.0);
    let stale = lab.shared.deps.store.deployment(lab.id).unwrap();
    let decision = lab.evaluate().await.unwrap().decision;
    lab.change(|d| d.desired.replicas = 2).await;
    assert_eq!(lab.shared.act(&stale, &decision).await, Err("it was changed meanwhile".to_owned()));
    assert_eq!(lab.desired(), 2);
}

#[tokio::test]
async fn requests_that_wait_count_as_much_as_those_that_are_answered() {
    let lab = lab("{min: 1, max: 9, requestsUp: 1000, requestsDown: 10}", 1).await;
    lab.follow();
    let with = |calls: u64, in_flight: u64| {
        let signals = Signals { ready: 1, cpu: Some(5.0), memory: Some(0.0), in_flight, ..Signals::default() };
        *lab.seen.lock().unwrap() = Some(Seen { signals, calls, ..Seen::default() });
    };
    with(100, 0);
    lab.evaluate().await.unwrap();
    let ten_seconds_ago = lab.shared.now() - 10_000;
    lab.shared.watched().get_mut(&lab.id).unwrap().last = Some(ten_seconds_ago);
    with(110, 40);
    let requests = lab.evaluate().await.unwrap().decision.signals.unwrap().requests;
    assert!((290.0..=300.0).contains(&requests), "{requests}");
}
