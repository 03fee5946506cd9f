//! From desired state and observed instances to the next actions. Level-triggered: the same inputs always give the
//! same plan, and carrying it out again and again ends in nothing left to do.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::model::{Deployment, InstanceId, Outcome, ReleaseNo, Run};
use crate::sleep::Depth;

/// Where an instance is in its life, as reconcile knows it from the engine and from its own gates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Decided, its container is being made.
    Making,
    /// Its container exists and has never run.
    Created,
    /// Runs, has not passed its gate.
    Gating,
    /// Passed its gate and runs.
    Ready,
    /// Gets no new work, finishes what it has.
    Draining {
        /// When it was told to.
        since: Timestamp,
        /// Requests under way.
        in_flight: u64,
    },
    /// Passed its gate, and sleeps until somebody calls.
    Asleep(Depth),
    /// Exited, or failed its gate.
    Down,
}

/// One instance as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inst {
    /// Its identity; a later one is younger.
    pub id: InstanceId,
    /// The release it was made for.
    pub release: ReleaseNo,
    /// The count of asked-for restarts it was born under.
    pub restart: u64,
    /// Where it is.
    pub phase: Phase,
    /// An action on it is under way: nothing new is planned for it.
    pub busy: bool,
}

/// How often starting went wrong lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Backoff {
    /// Failures in a row.
    pub failures: u32,
    /// When the last one was.
    pub last: Option<Timestamp>,
}

/// First delay after a failure.
const FIRST_DELAY: SignedDuration = SignedDuration::from_secs(1);
/// Longest delay.
const LONGEST_DELAY: SignedDuration = SignedDuration::from_mins(5);
/// Ready for this long forgives all failures,
const FORGIVE: SignedDuration = SignedDuration::from_mins(2);
/// and for less where the last delay was shorter than half of it, but never for less than this.
const FORGIVE_LEAST: SignedDuration = SignedDuration::from_secs(10);
/// From so many failures in a row on it is called a crash loop.
pub const CRASH_LOOP: u32 = 4;
/// An instance that drains longer than this is stopped all the same.
const DRAIN: SignedDuration = SignedDuration::from_secs(30);

impl Backoff {
    /// Counts a failure. Failures far enough apart are not a row.
    pub fn fail(&mut self, now: Timestamp) {
        let apart = self.last.is_some_and(|last| now.duration_since(last) > LONGEST_DELAY + FORGIVE);
        self.failures = if apart { 1 } else { self.failures.saturating_add(1) };
        self.last = Some(now);
    }

    /// Forgets the row once an instance has been ready since `ready_since` for long enough: twice as long as the row made it
    /// wait. A server that serves a minute and dies is started at once, however often that happens; one that dies as soon
    /// as it is up waits longer each time.
    pub fn settle(&mut self, ready_since: Timestamp, now: Timestamp) {
        let enough = self.delay().saturating_mul(2).clamp(FORGIVE_LEAST, FORGIVE);
        if self.failures > 0 && now.duration_since(ready_since) >= enough {
            *self = Self::default();
        }
    }

    /// How long after the last failure the next start may be.
    fn delay(&self) -> SignedDuration {
        match self.failures.checked_sub(1) {
            None => SignedDuration::ZERO,
            Some(doublings) => FIRST_DELAY.saturating_mul(1 << doublings.min(16)).min(LONGEST_DELAY),
        }
    }

    /// When the next start is allowed; `None` means now.
    pub fn until(&self, now: Timestamp) -> Option<Timestamp> {
        // a clock that jumped back must not stretch the delay
        let last = self.last?.min(now);
        let until = last.saturating_add(self.delay()).unwrap_or(Timestamp::MAX);
        (until > now).then_some(until)
    }

    /// Whether the row is long enough to be called a crash loop.
    pub fn is_crash_loop(&self) -> bool {
        self.failures >= CRASH_LOOP
    }
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make (and then start and gate) a new instance.
    Create {
        /// For this release.
        release: ReleaseNo,
        /// Born under this count of restarts.
        restart: u64,
    },
    /// Start an instance that is not running.
    Start(InstanceId),
    /// Find out whether it serves.
    Gate(InstanceId),
    /// Put it to sleep; nobody calls it.
    Rest(InstanceId, Depth),
    /// End its sleep.
    Wake(InstanceId),
    /// Give it no new work.
    Drain(InstanceId),
    /// Stop it and remove its container.
    Remove(InstanceId),
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Create { release, .. } => write!(f, "create an instance of release {release}"),
            Self::Start(id) => write!(f, "start {id}"),
            Self::Gate(id) => write!(f, "gate {id}"),
            Self::Rest(id, depth) => write!(f, "put {id} to sleep ({})", depth.as_str()),
            Self::Wake(id) => write!(f, "wake {id}"),
            Self::Drain(id) => write!(f, "drain {id}"),
            Self::Remove(id) => write!(f, "remove {id}"),
        }
    }
}

/// What to do now, and when to look again.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    /// In no particular order: each touches another instance.
    pub actions: Vec<Action>,
    /// Look again at this time at the latest, whatever happens.
    pub wake_at: Option<Timestamp>,
    /// Why something that could be expected is not being done, one line each.
    pub notes: Vec<String>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |old| old.min(at)));
    }
}

/// A rollout whose gate failed: this release, asked for with this count of restarts.
pub type Failed = (ReleaseNo, u64);

/// The next actions for one deployment. `rest`: it should sleep, so deep; what belongs to another release than the desired
/// one is not meant.
pub fn plan(
    deployment: &Deployment,
    instances: &[Inst],
    backoff: &Backoff,
    failed: Option<Failed>,
    rest: Option<Depth>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let desired = &deployment.desired;
    let release = deployment.release(desired.release);

    for inst in instances.iter().filter(|i| !i.busy) {
        if let Phase::Draining { since, in_flight } = inst.phase {
            let over = since.saturating_add(DRAIN).unwrap_or(Timestamp::MAX);
            if in_flight == 0 || over <= now {
                plan.actions.push(Action::Remove(inst.id));
            } else {
                plan.wake(over);
            }
        }
    }

    let (Run::Running, Some(release)) = (desired.run, release) else {
        for inst in instances.iter().filter(|i| !i.busy) {
            leave(inst, &mut plan);
        }
        return plan;
    };

    let is_target = |i: &&Inst| i.release == desired.release && i.restart == desired.restart;
    let staying = |i: &&Inst| !matches!(i.phase, Phase::Draining { .. });
    let target: Vec<&Inst> = instances.iter().filter(is_target).filter(staying).collect();
    let old: Vec<&Inst> = instances.iter().filter(|i| !is_target(i)).collect();
    let exclusive = release.spec.is_exclusive()
        || old.iter().any(|i| deployment.release(i.release).is_some_and(|r| r.spec.is_exclusive()));
    let want = if exclusive { desired.replicas.min(1) } else { desired.replicas } as usize;
    if exclusive && desired.replicas > 1 {
        plan.notes.push("one replica only: an exclusive volume".into());
    }

    // a release that never passed a gate and failed this one is not tried again by itself
    let hopeless = match &release.outcome {
        Outcome::Failed { .. } => true,
        Outcome::Pending => failed == Some((desired.release, desired.restart)),
        Outcome::Good => false,
    };
    if hopeless {
        plan.notes.push(format!("release {} failed its gate and is not tried again", release.number));
        for inst in target.iter().filter(|i| !i.busy) {
            leave(inst, &mut plan);
        }
        return plan;
    }

    let hold = backoff.until(now);
    for inst in target.iter().filter(|i| !i.busy) {
        match (&inst.phase, rest) {
            // whoever wakes it starts them
            (Phase::Created | Phase::Down, Some(_)) => {}
            (Phase::Created | Phase::Down, None) => match hold {
                None => plan.actions.push(Action::Start(inst.id)),
                Some(until) => plan.wake(until),
            },
            (Phase::Gating, _) => plan.actions.push(Action::Gate(inst.id)),
            (Phase::Ready, Some(depth)) => plan.actions.push(Action::Rest(inst.id, depth)),
            (Phase::Asleep(is), Some(depth)) if *is < depth => plan.actions.push(Action::Rest(inst.id, depth)),
            (Phase::Asleep(_), None) => plan.actions.push(Action::Wake(inst.id)),
            (Phase::Making | Phase::Ready | Phase::Asleep(_) | Phase::Draining { .. }, _) => {}
        }
    }

    if target.len() < want && rest.is_none() {
        if exclusive && !old.is_empty() {
            plan.notes.push("the old instance stops first: an exclusive volume".into());
            for inst in old.iter().filter(|i| !i.busy) {
                leave(inst, &mut plan);
            }
            return plan;
        }
        match hold {
            None => {
                let create = Action::Create { release: desired.release, restart: desired.restart };
                plan.actions.extend(std::iter::repeat_n(create, want - target.len()));
            }
            Some(until) => plan.wake(until),
        }
    }
    if let Some(until) = hold {
        plan.notes.push(format!("{} failures in a row: next start not before {until}", backoff.failures));
    }

    if target.len() > want {
        // the least useful go first: not running, then not gated, then the youngest
        let mut surplus = target.clone();
        surplus.sort_by_key(|i| {
            let use_of = match i.phase {
                Phase::Down => 0,
                Phase::Created => 1,
                Phase::Making => 2,
                Phase::Gating => 3,
                Phase::Asleep(_) => 4,
                Phase::Ready | Phase::Draining { .. } => 5,
            };
            (use_of, std::cmp::Reverse(i.id))
        });
        for inst in surplus.into_iter().take(target.len() - want).filter(|i| !i.busy) {
            plan.actions.retain(|a| {
                !matches!(a, Action::Start(id) | Action::Gate(id) | Action::Rest(id, _) | Action::Wake(id)
                    if *id == inst.id)
            });
            leave(inst, &mut plan);
        }
    }

    let ready = target.iter().filter(|i| i.phase == Phase::Ready).count();
    for inst in old.iter().filter(|i| !i.busy) {
        // one that serves, or would, goes only when its successors do
        if !matches!(inst.phase, Phase::Ready | Phase::Asleep(_)) || ready >= want {
            leave(inst, &mut plan);
        }
    }
    plan
}

fn leave(inst: &Inst, plan: &mut Plan) {
    match inst.phase {
        Phase::Ready => plan.actions.push(Action::Drain(inst.id)),
        // decided by the rule for draining ones
        Phase::Draining { .. } => {}
        // it will be seen again once made
        Phase::Making => {}
        Phase::Created | Phase::Gating | Phase::Asleep(_) | Phase::Down => plan.actions.push(Action::Remove(inst.id)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::model::*;

    fn spec(exclusive: bool) -> ReleaseSpec {
        ReleaseSpec {
            image: "sha256:0".into(),
            source: "./x".into(),
            source_digest: String::new(),
            commit: None,
            transport: Transport::Http,
            port: 8080,
            path: "/mcp".into(),
            command: vec!["server".into()],
            workdir: "/".into(),
            user: "10001:10001".into(),
            env: BTreeMap::new(),
            secrets: vec![],
            resources: Resources {
                tier: "router".into(),
                cpu_share: 0.1,
                cpu_limit: 0.25,
                memory: 256 << 20,
                storage: 512 << 20,
                processes: 512,
                files: 1024,
            },
            volumes: if exclusive {
                vec![Volume { source: "data".into(), path: "/data".into(), mode: VolumeMode::Exclusive }]
            } else {
                vec![]
            },
            network: NetworkMode::Link,
            egress: vec![],
            config: serde_json::Value::Null,
            session: None,
            access: "anonymous".into(),
            sessions_max: None,
            sessions_replayable: false,
            request_timeout_ms: 30_000,
            start_timeout_ms: 60_000,
            health: crate::health::Rules::default(),
        }
    }

    fn deployment(outcomes: &[Outcome], desired: ReleaseNo, replicas: u32, exclusive: bool) -> Deployment {
        Deployment {
            id: DeploymentId(ulid::Ulid::from(1u128)),
            name: "x".parse().unwrap(),
            team: "default".into(),
            tags: Vec::new(),
            created_by: "t".into(),
            created_at: Timestamp::UNIX_EPOCH,
            generation: 1,
            reason: String::new(),
            changed_at: Timestamp::UNIX_EPOCH,
            desired: Desired { run: Run::Running, replicas, release: desired, restart: 0 },
            serving: None,
            policy: crate::policy::Policy::default(),
            waivers: Vec::new(),
            scaling: None,
            follow: None,
            until: None,
            preview: None,
            releases: outcomes
                .iter()
                .enumerate()
                .map(|(i, outcome)| Release {
                    number: i as u32 + 1,
                    created_at: Timestamp::UNIX_EPOCH,
                    created_by: "t".into(),
                    spec: spec(exclusive),
                    outcome: outcome.clone(),
                    recognised: String::new(),
                    asked: None,
                })
                .collect(),
        }
    }

    fn inst(n: u128, release: ReleaseNo, phase: Phase) -> Inst {
        Inst { id: InstanceId(ulid::Ulid::from(n)), release, restart: 0, phase, busy: false }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    /// A world that does what it is told; gates pass unless the release is named.
    fn carry_out(
        world: &mut Vec<Inst>,
        plan: &Plan,
        next: &mut u128,
        bad: Option<ReleaseNo>,
        failed: &mut Option<Failed>,
        now: Timestamp,
    ) {
        for action in &plan.actions {
            match action {
                Action::Create { release, restart } => {
                    *next += 1;
                    let mut new = inst(*next, *release, Phase::Created);
                    new.restart = *restart;
                    world.push(new);
                }
                Action::Start(id) => world.iter_mut().filter(|i| i.id == *id).for_each(|i| i.phase = Phase::Gating),
                Action::Gate(id) => world.iter_mut().filter(|i| i.id == *id).for_each(|i| {
                    if bad == Some(i.release) {
                        *failed = Some((i.release, i.restart));
                        i.phase = Phase::Down;
                    } else {
                        i.phase = Phase::Ready;
                    }
                }),
                Action::Drain(id) => world
                    .iter_mut()
                    .filter(|i| i.id == *id)
                    .for_each(|i| i.phase = Phase::Draining { since: now, in_flight: 0 }),
                Action::Rest(id, depth) => {
                    world.iter_mut().filter(|i| i.id == *id).for_each(|i| i.phase = Phase::Asleep(*depth));
                }
                Action::Wake(id) => world.iter_mut().filter(|i| i.id == *id).for_each(|i| i.phase = Phase::Gating),
                Action::Remove(id) => world.retain(|i| i.id != *id),
            }
        }
    }

    #[test]
    fn a_deployment_sleeps_sinks_and_wakes_whole() {
        let d = deployment(&[Outcome::Good], 1, 2, false);
        let mut world = vec![inst(1, 1, Phase::Ready), inst(2, 1, Phase::Ready)];
        let (mut next, mut failed) = (2, None);
        let mut go = |world: &mut Vec<Inst>, rest| {
            let plan = plan(&d, world, &Backoff::default(), None, rest, at(0));
            carry_out(world, &plan, &mut next, None, &mut failed, at(0));
            world.iter().map(|i| i.phase.clone()).collect::<Vec<_>>()
        };
        let all = |phase: Phase| vec![phase.clone(), phase];
        assert_eq!(go(&mut world, Some(Depth::Paused)), all(Phase::Asleep(Depth::Paused)));
        assert_eq!(go(&mut world, Some(Depth::Paused)), all(Phase::Asleep(Depth::Paused)), "nothing is left to do");
        assert_eq!(go(&mut world, Some(Depth::Stopped)), all(Phase::Asleep(Depth::Stopped)));
        assert_eq!(go(&mut world, None), all(Phase::Gating));
        assert_eq!(go(&mut world, None), all(Phase::Ready));
        // what ended in its sleep is nobody's crash
        world[0].phase = Phase::Down;
        assert_eq!(go(&mut world, Some(Depth::Paused))[0], Phase::Down);
        assert_eq!(go(&mut world, None)[0], Phase::Gating);
    }

    #[test]
    fn a_new_release_lets_the_old_one_sleep_until_it_serves() {
        let d = deployment(&[Outcome::Good, Outcome::Pending], 2, 1, false);
        let mut world = vec![inst(1, 1, Phase::Asleep(Depth::Paused))];
        let (mut next, mut failed) = (1, None);
        for round in 0..10 {
            let plan = plan(&d, &world, &Backoff::default(), failed, None, at(round));
            let serves = |i: &Inst| matches!(i.phase, Phase::Ready | Phase::Asleep(_));
            assert!(world.iter().any(serves), "always one that would serve");
            carry_out(&mut world, &plan, &mut next, None, &mut failed, at(round));
        }
        assert_eq!(world.iter().map(|i| (i.release, i.phase.clone())).collect::<Vec<_>>(), [(2, Phase::Ready)]);
    }

    #[test]
    fn a_new_release_starts_beside_the_old_and_takes_over() {
        let d = deployment(&[Outcome::Good, Outcome::Pending], 2, 1, false);
        let mut world = vec![inst(1, 1, Phase::Ready)];
        let (mut next, mut failed) = (1, None);
        let mut seen = vec![];
        for round in 0..10 {
            let plan = plan(&d, &world, &Backoff::default(), failed, None, at(round));
            seen.extend(plan.actions.iter().map(|a| a.to_string().split(' ').next().unwrap_or_default().to_owned()));
            assert!(world.iter().any(|i| i.phase == Phase::Ready), "always one that serves");
            carry_out(&mut world, &plan, &mut next, None, &mut failed, at(round));
        }
        assert_eq!(seen, ["create", "start", "gate", "drain", "remove"]);
        assert_eq!(world.len(), 1);
        assert_eq!(world[0].release, 2);
    }

    #[test]
    fn a_failed_release_leaves_the_old_one_serving_and_is_not_tried_again() {
        let d = deployment(&[Outcome::Good, Outcome::Pending], 2, 1, false);
        let mut world = vec![inst(1, 1, Phase::Ready)];
        let (mut next, mut failed) = (1, None);
        for round in 0..20 {
            let plan = plan(&d, &world, &Backoff::default(), failed, None, at(round));
            carry_out(&mut world, &plan, &mut next, Some(2), &mut failed, at(round));
        }
        assert_eq!(world, vec![inst(1, 1, Phase::Ready)]);
        assert_eq!(next, 2, "one try");
    }

    #[test]
    fn an_exclusive_volume_is_never_in_two_hands() {
        let d = deployment(&[Outcome::Good, Outcome::Pending], 2, 3, true);
        let mut world = vec![inst(1, 1, Phase::Ready)];
        let (mut next, mut failed) = (1, None);
        for round in 0..10 {
            let plan = plan(&d, &world, &Backoff::default(), failed, None, at(round));
            carry_out(&mut world, &plan, &mut next, None, &mut failed, at(round));
            assert!(world.len() <= 1);
        }
        assert_eq!(world[0].release, 2);
    }

    #[test]
    fn back_off_doubles_to_its_cap_and_is_forgiven() {
        let mut b = Backoff::default();
        assert_eq!(b.until(at(0)), None);
        let mut delays = vec![];
        let mut now = at(0);
        for _ in 0..11 {
            b.fail(now);
            let until = b.until(now).unwrap();
            delays.push(until.duration_since(now).as_secs());
            now = until;
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert!(b.is_crash_loop());
        b.settle(now, now + SignedDuration::from_secs(119));
        assert_eq!(b.failures, 11);
        b.settle(now, now + SignedDuration::from_secs(120));
        assert_eq!(b, Backoff::default());
    }

    #[test]
    fn a_server_that_is_killed_now_and_then_never_waits_long() {
        let mut b = Backoff::default();
        let mut now = at(0);
        for round in 0..100 {
            b.fail(now);
            let ready = b.until(now).unwrap();
            let waited = ready.duration_since(now).as_secs();
            assert!(waited <= 16, "{waited} s in round {round}");
            // as often as somebody likes, but not at once
            now = ready + SignedDuration::from_secs(33);
            b.settle(ready, now);
        }
        // one that dies within a second of its readiness waits, all the same
        for _ in 0..9 {
            b.fail(now);
            let ready = b.until(now).unwrap();
            now = ready + SignedDuration::from_secs(1);
            b.settle(ready, now);
        }
        assert_eq!(b.until(now - SignedDuration::from_secs(1)), None);
        assert!(b.failures >= 9 && b.is_crash_loop());
    }

    #[test]
    fn a_clock_that_jumps_back_does_not_stretch_the_delay() {
        let mut b = Backoff::default();
        b.fail(at(100_000));
        assert_eq!(b.until(at(0)), Some(at(1)));
    }

    fn any_phase() -> impl Strategy<Value = Phase> {
        prop_oneof![
            Just(Phase::Created),
            Just(Phase::Gating),
            Just(Phase::Ready),
            Just(Phase::Down),
            Just(Phase::Asleep(Depth::Paused)),
            Just(Phase::Asleep(Depth::Stopped)),
            (0u64..3).prop_map(|in_flight| Phase::Draining { since: at(0), in_flight }),
        ]
    }

    proptest! {
        /// Whatever the world looks like, carrying out plans reaches a fixed point with exactly what was asked for.
        #[test]
        fn plans_reach_what_is_desired(
            phases in proptest::collection::vec((1u32..4, 0u64..2, any_phase()), 0..8),
            desired in 1u32..4, replicas in 0u32..5, exclusive: bool, stopped: bool, asleep in 0..3_usize,
        ) {
            let rest = [None, Some(Depth::Paused), Some(Depth::Stopped)][asleep];
            let mut d = deployment(&[Outcome::Good, Outcome::Good, Outcome::Pending], desired, replicas, exclusive);
            d.desired.restart = 1;
            if stopped { d.desired.run = Run::Stopped; }
            let mut world: Vec<Inst> = phases.into_iter().enumerate().map(|(n, (release, restart, phase))| {
                let mut i = inst(n as u128 + 1, release, phase);
                i.restart = restart;
                i
            }).collect();
            let (mut next, mut failed) = (100, None);
            let mut rounds = 0;
            loop {
                let now = at(rounds * 31);
                let plan = plan(&d, &world, &Backoff::default(), failed, rest, now);
                if plan.actions.is_empty() && plan.wake_at.is_none() { break; }
                carry_out(&mut world, &plan, &mut next, None, &mut failed, now);
                rounds += 1;
                prop_assert!(rounds < 40, "no fixed point: {world:?}");
            }
            let want = if stopped { 0 } else if exclusive { replicas.min(1) } else { replicas };
            let target = |i: &&Inst| i.release == desired && i.restart == 1;
            match rest {
                None => {
                    prop_assert_eq!(world.len() as u32, want);
                    prop_assert!(world.iter().all(|i| i.phase == Phase::Ready && target(&i)));
                }
                Some(depth) => {
                    // nothing is made or started for who sleeps
                    prop_assert!(world.iter().filter(target).count() as u32 <= want);
                    prop_assert!(!world.iter().filter(target).any(|i| i.phase == Phase::Ready));
                    prop_assert!(world.iter().all(|i| !matches!(i.phase, Phase::Asleep(d) if target(&i) && d < depth)));
                    prop_assert_eq!(next, 100);
                }
            }
        }

        /// A target that serves enough is never reduced below what is wanted.
        #[test]
        fn enough_ready_ones_are_kept(replicas in 1u32..5, extra in 0u128..4) {
            let d = deployment(&[Outcome::Good], 1, replicas, false);
            let world: Vec<Inst> = (1..=u128::from(replicas) + extra).map(|n| inst(n, 1, Phase::Ready)).collect();
            let plan = plan(&d, &world, &Backoff::default(), None, None, at(0));
            prop_assert_eq!(plan.actions.len() as u128, extra);
        }
    }
}
