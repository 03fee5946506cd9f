//! Owns: whether the host has room for one more replica, who makes room for it, and what is said when nobody can. May touch:
//! nothing. Never: counts what is only promised: limits are no use, measured memory is. Tested by: units and properties here.

use crate::model::{DeploymentId, Resources};

/// Memory that a server is expected to take of which nothing is known yet, bytes, where its limit is not lower.
const UNKNOWN: u64 = 64 << 20;

/// With less free disk than this no container is started: its first file would fail, bytes.
const DISK: u64 = 64 << 20;

/// What the host has, in bytes and cores. What is not known does not limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Host {
    /// All memory.
    pub memory: Option<u64>,
    /// Memory that processes can have now without swapping.
    pub available: Option<u64>,
    /// Memory that is left to the host itself.
    pub reserve: u64,
    /// Most memory that all replicas together may take; the owner's word.
    pub budget: Option<u64>,
    /// Most CPU shares of awake replicas, together.
    pub cpus: Option<f64>,
    /// What is free where containers are kept, bytes.
    pub disk: Option<u64>,
}

/// What is taken or promised already, besides what [`Host::available`] shows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Taken {
    /// Memory of replicas that are frozen or awake, bytes.
    pub memory: u64,
    /// Memory that replicas on their way up are expected to take and do not have yet, bytes.
    pub coming: u64,
    /// CPU shares of replicas that are awake or on their way up.
    pub cpus: f64,
}

/// A frozen deployment that can be stopped for its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sleeper {
    /// Which one.
    pub id: DeploymentId,
    /// What it holds, bytes.
    pub memory: u64,
    /// Whether clients have sessions with it, which end.
    pub held: bool,
    /// How long nobody has called it, milliseconds.
    pub quiet_ms: u64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// There is room.
    Go,
    /// There will be, once these have been stopped: those without sessions first, of them the longest unused.
    Evict(Vec<DeploymentId>),
    /// There is none now; a sentence for whoever waits.
    Wait(String),
    /// There never is; a sentence for whoever asks.
    Refuse(String),
}

/// What a replica will take of memory, bytes: what its like was measured to need, else a guess within its limit.
pub fn expected(resources: &Resources, measured: Option<u64>) -> u64 {
    measured.map_or(UNKNOWN, |bytes| bytes.saturating_mul(5) / 4).min(resources.memory)
}

/// Whether one more replica fits, that is expected to take so much memory.
pub fn admit(host: &Host, taken: &Taken, resources: &Resources, expected: u64, sleepers: &[Sleeper]) -> Admission {
    if let Some(all) = host.budget.into_iter().chain(host.memory.map(|all| all.saturating_sub(host.reserve))).min()
        && expected.max(resources.memory.min(UNKNOWN)) > all
    {
        let (needs, has) = (mib(expected), mib(all));
        return Admission::Refuse(format!(
            "it needs about {needs} MiB of memory, and this host has {has} MiB for servers"
        ));
    }
    if let Some(free) = host.disk.filter(|free| *free < DISK) {
        return Admission::Wait(format!("the host's disk is full: {} MiB are free", mib(free)));
    }
    if let Some(most) = host.cpus
        && taken.cpus + resources.cpu_share > most + 1e-9
    {
        // frozen ones hold no share: stopping them helps nobody here
        return Admission::Wait(format!(
            "the host's CPUs are promised already: {:.1} of {most:.1} cores, and it asks for {:.1} more ([limits] cpus)",
            taken.cpus, resources.cpu_share
        ));
    }
    let by_host = host.available.map(|free| lack(free, host.reserve + taken.coming + expected));
    let by_budget = host.budget.map(|budget| lack(budget, taken.memory + taken.coming + expected));
    let lack = by_host.into_iter().chain(by_budget).max().unwrap_or(0);
    if lack == 0 {
        return Admission::Go;
    }
    let mut sleepers = sleepers.to_vec();
    sleepers.sort_unstable_by_key(|sleeper| (sleeper.held, std::cmp::Reverse(sleeper.quiet_ms), sleeper.id));
    let (mut freed, mut evicted) = (0_u64, Vec::new());
    for sleeper in sleepers {
        if freed >= lack {
            break;
        }
        freed = freed.saturating_add(sleeper.memory);
        evicted.push(sleeper.id);
    }
    if freed >= lack {
        return Admission::Evict(evicted);
    }
    Admission::Wait(format!(
        "the host is short of memory: it needs about {} MiB, {} MiB are missing, and no sleeping server can make room",
        mib(expected),
        mib(lack - freed).max(1)
    ))
}

fn lack(has: u64, wants: u64) -> u64 {
    wants.saturating_sub(has)
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn router() -> Resources {
        crate::tier::tier("router").unwrap()
    }

    fn id(n: u128) -> DeploymentId {
        DeploymentId(ulid::Ulid(n))
    }

    fn host(available: u64) -> Host {
        Host { memory: Some(4096 * MIB), available: Some(available * MIB), reserve: 256 * MIB, ..Host::default() }
    }

    #[test]
    fn room_is_what_is_free_and_not_what_is_promised() {
        let none = Taken::default();
        let ask = |host: &Host, taken: &Taken| admit(host, taken, &router(), 64 * MIB, &[]);
        assert_eq!(ask(&host(320), &none), Admission::Go);
        assert!(matches!(ask(&host(319), &none), Admission::Wait(why) if why.contains("1 MiB are missing")));
        assert!(
            matches!(ask(&Host { disk: Some(0), ..host(4000) }, &none), Admission::Wait(why) if why.contains("disk"))
        );
        let coming = Taken { coming: 64 * MIB, ..none };
        assert!(matches!(ask(&host(320), &coming), Admission::Wait(_)), "who is on the way up counts");
        assert_eq!(ask(&Host::default(), &coming), Admission::Go, "what is not known does not limit");
        let budget = Host { budget: Some(200 * MIB), ..Host::default() };
        assert_eq!(ask(&budget, &Taken { memory: 136 * MIB, ..none }), Admission::Go);
        assert!(matches!(ask(&budget, &Taken { memory: 137 * MIB, ..none }), Admission::Wait(_)));
        let cpus = Host { cpus: Some(2.0), ..Host::default() };
        assert_eq!(ask(&cpus, &Taken { cpus: 1.9, ..none }), Admission::Go);
        assert!(matches!(ask(&cpus, &Taken { cpus: 1.95, ..none }), Admission::Wait(why) if why.contains("cores")));
    }

    #[test]
    fn the_longest_unused_sleeper_makes_room() {
        let sleeper = |n, held, quiet_ms| Sleeper { id: id(n), memory: 40 * MIB, held, quiet_ms };
        let sleepers = [sleeper(1, true, 99), sleeper(2, false, 9), sleeper(3, false, 7)];
        let ask = |available| admit(&host(available), &Taken::default(), &router(), 64 * MIB, &sleepers);
        assert_eq!(ask(300), Admission::Evict(vec![id(2)]));
        assert_eq!(ask(260), Admission::Evict(vec![id(2), id(3)]));
        assert!(matches!(ask(100), Admission::Wait(_)), "nobody is stopped in vain");
    }

    #[test]
    fn what_can_never_fit_is_refused() {
        let small = Host { memory: Some(512 * MIB), available: Some(500 * MIB), reserve: 256 * MIB, ..Host::default() };
        let refused = admit(&small, &Taken::default(), &router(), 300 * MIB, &[]);
        assert!(matches!(refused, Admission::Refuse(why) if why.contains("256 MiB for servers")));
        assert_eq!(expected(&router(), None), 64 * MIB);
        assert_eq!(expected(&router(), Some(80 * MIB)), 100 * MIB);
        assert_eq!(expected(&router(), Some(900 * MIB)), 256 * MIB, "its limit holds");
    }

    proptest! {
        #[test]
        fn nobody_is_let_in_beyond_what_there_is(
            available in 0_u64..2000, coming in 0_u64..500, expected in 1_u64..400,
            sleepers in prop::collection::vec((0_u64..200, 0_u64..100), 0..6),
        ) {
            let sleepers: Vec<Sleeper> = sleepers.into_iter().enumerate()
                .map(|(n, (memory, quiet_ms))| Sleeper {
                    id: id(n as u128), memory: memory * MIB, held: n % 2 == 0, quiet_ms,
                })
                .collect();
            let taken = Taken { coming: coming * MIB, ..Taken::default() };
            let room = available.saturating_sub(256 + coming);
            match admit(&host(available), &taken, &router(), expected * MIB, &sleepers) {
                Admission::Go => prop_assert!(expected <= room),
                Admission::Evict(ids) => {
                    let freed: u64 = sleepers.iter().filter(|s| ids.contains(&s.id)).map(|s| s.memory / MIB).sum();
                    prop_assert!(expected + 256 + coming <= available + freed && expected > room);
                }
                Admission::Wait(_) => prop_assert!(expected > room),
                Admission::Refuse(_) => prop_assert!(false, "it would fit an idle host"),
            }
        }
    }
}
