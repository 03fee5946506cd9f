//! Owns: when a deployment that nobody calls goes to sleep, how deep, and when it sinks deeper. May touch: nothing. Never:
//! wakes anybody (a request does, in the shell). Tested by: units and properties here.
//!
//! Two depths. *Paused*: frozen by the engine, its memory stays; back in milliseconds, and sessions go on. *Stopped*: no
//! process, no memory; back when its server has started, and sessions are gone.

use jiff::{SignedDuration, Timestamp};

/// How deep a deployment sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Frozen; its memory is still its own.
    Paused,
    /// Its containers have ended.
    Stopped,
}

impl Depth {
    /// The word in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// What a deployment's policy and its engine allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Without a request for this long it may sleep.
    pub idle: SignedDuration,
    /// The depth that its policy asks for; `None`: chosen here.
    pub depth: Option<Depth>,
    /// Its sessions can be begun again for their clients: they do not keep it from stopping.
    pub replayable: bool,
    /// The engine can freeze containers.
    pub can_pause: bool,
    /// How long a session lives that nobody uses.
    pub session_life: SignedDuration,
}

/// What is known of a deployment now.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// How it sleeps, and since when; `None`: it is awake.
    pub asleep: Option<(Depth, Timestamp)>,
    /// When the last request ended, or when it became ready.
    pub used: Timestamp,
    /// Requests are under way.
    pub busy: bool,
    /// Open sessions of the older era.
    pub sessions: u64,
    /// Conversations that end with its process, whatever its sessions are like.
    pub attached: u64,
    /// The host is short of memory.
    pub tight: bool,
    /// How long it slept the last times, in any order.
    pub naps: &'a [SignedDuration],
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing before then; `None`: nothing, ever, by the clock alone.
    Stay(Option<Timestamp>),
    /// Go to sleep so deep.
    Go(Depth),
}

/// A paused deployment is stopped after this at the earliest, unless memory is short.
const DEEPER: SignedDuration = SignedDuration::from_mins(10);
/// A deployment that has been asleep this many times longer than usual is not expected back soon.
const OVERDUE: i32 = 3;

/// What a deployment should do now. A clock that jumps back lengthens nothing beyond one idle time.
pub fn rest(terms: &Terms, facts: &Facts<'_>, now: Timestamp) -> Rest {
    if facts.busy {
        return Rest::Stay(Some(after(now, terms.idle)));
    }
    let since = match facts.asleep {
        Some((Depth::Stopped, _)) => return Rest::Stay(None),
        Some((Depth::Paused, since)) => since.min(now),
        None => {
            let at = after(facts.used.min(now), terms.idle);
            if at > now {
                return Rest::Stay(Some(at));
            }
            now
        }
    };
    let stops = if facts.attached > 0 || facts.sessions > 0 && !terms.replayable {
        // they are counted until nobody has used them for their life: looked at again
        Some(after(now, LOOK))
    } else {
        match terms.depth {
            Some(Depth::Stopped) => Some(since),
            Some(Depth::Paused) if terms.can_pause => None,
            None if terms.can_pause && !facts.tight => Some(after(since, patience(facts.naps, terms.session_life))),
            _ => Some(since),
        }
    };
    match stops {
        Some(at) if at <= now => Rest::Go(Depth::Stopped),
        at if facts.asleep.is_some() => Rest::Stay(at),
        _ if terms.can_pause => Rest::Go(Depth::Paused),
        at => Rest::Stay(at),
    }
}

/// Open sessions are looked at again after this.
const LOOK: SignedDuration = SignedDuration::from_secs(30);

/// How long it is left paused: as long as it may well be back.
fn patience(naps: &[SignedDuration], most: SignedDuration) -> SignedDuration {
    let mut naps = naps.to_vec();
    naps.sort_unstable();
    let least = DEEPER.min(most);
    naps.get(naps.len() / 2).map_or(least, |median| median.saturating_mul(OVERDUE).clamp(least, most))
}

fn after(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    const TERMS: Terms = Terms {
        idle: SignedDuration::from_secs(60),
        depth: None,
        replayable: false,
        can_pause: true,
        session_life: SignedDuration::from_mins(30),
    };

    fn quiet(used: i64) -> Facts<'static> {
        Facts { asleep: None, used: at(used), busy: false, sessions: 0, attached: 0, tight: false, naps: &[] }
    }

    #[test]
    fn a_quiet_deployment_is_frozen_and_then_stopped() {
        assert_eq!(rest(&TERMS, &quiet(0), at(59)), Rest::Stay(Some(at(60))));
        assert_eq!(rest(&TERMS, &quiet(0), at(60)), Rest::Go(Depth::Paused));
        let asleep = |seconds, facts: Facts<'static>| rest(&TERMS, &facts, at(seconds));
        let paused = Facts { asleep: Some((Depth::Paused, at(60))), ..quiet(0) };
        assert_eq!(asleep(61, paused), Rest::Stay(Some(at(660))));
        assert_eq!(asleep(660, paused), Rest::Go(Depth::Stopped));
        assert_eq!(asleep(61, Facts { tight: true, ..paused }), Rest::Go(Depth::Stopped), "its memory is wanted");
        let stopped = Facts { asleep: Some((Depth::Stopped, at(660))), ..quiet(0) };
        assert_eq!(asleep(99_999, stopped), Rest::Stay(None));
    }

    #[test]
    fn who_is_soon_back_is_left_frozen_for_longer() {
        const NAPS: [SignedDuration; 3] =
            [SignedDuration::from_mins(5), SignedDuration::from_mins(1), SignedDuration::from_mins(400)];
        let paused = Facts { asleep: Some((Depth::Paused, at(0))), naps: &NAPS, ..quiet(-60) };
        assert_eq!(rest(&TERMS, &paused, at(1)), Rest::Stay(Some(at(15 * 60))));
        let late = [SignedDuration::from_mins(400)];
        let paused = Facts { asleep: Some((Depth::Paused, at(0))), naps: &late, ..quiet(-60) };
        assert_eq!(rest(&TERMS, &paused, at(1)), Rest::Stay(Some(at(30 * 60))), "never beyond a session's life");
    }

    #[test]
    fn sessions_keep_it_from_stopping_and_not_from_freezing() {
        let terms = Terms { depth: Some(Depth::Stopped), ..TERMS };
        let held = Facts { sessions: 1, ..quiet(0) };
        assert_eq!(rest(&terms, &held, at(60)), Rest::Go(Depth::Paused));
        let paused = Facts { asleep: Some((Depth::Paused, at(60))), ..held };
        assert_eq!(rest(&terms, &paused, at(90)), Rest::Stay(Some(at(120))));
        assert_eq!(rest(&terms, &Facts { sessions: 0, ..paused }, at(120)), Rest::Go(Depth::Stopped));
        assert_eq!(rest(&Terms { replayable: true, ..terms }, &held, at(60)), Rest::Go(Depth::Stopped));
        let rigid = Terms { can_pause: false, ..terms };
        assert_eq!(rest(&rigid, &held, at(60)), Rest::Stay(Some(at(90))));
        assert_eq!(
            rest(&Terms { depth: Some(Depth::Paused), ..TERMS }, &paused, at(9_999_999)),
            Rest::Stay(Some(at(9_999_999 + 30)))
        );
        let only = Terms { depth: Some(Depth::Paused), ..TERMS };
        assert_eq!(rest(&only, &Facts { sessions: 0, ..paused }, at(9_999_999)), Rest::Stay(None));
    }

    proptest! {
        #[test]
        fn nobody_is_disturbed(
            busy: bool, used in -10_000_i64..10_000, now in -10_000_i64..10_000, sessions in 0_u64..3,
            attached in 0_u64..2, tight: bool,
            can_pause: bool, replayable: bool, asked in 0..3_usize, asleep in 0..3_usize, since in -10_000_i64..10_000,
            naps in proptest::collection::vec(0_i64..100_000, 0..9),
        ) {
            let depth: [Option<Depth>; 3] = [None, Some(Depth::Paused), Some(Depth::Stopped)];
            let terms = Terms { depth: depth[asked], replayable, can_pause, ..TERMS };
            let naps: Vec<SignedDuration> = naps.into_iter().map(SignedDuration::from_secs).collect();
            let asleep = depth[asleep].map(|depth| (depth, at(since)));
            let facts = Facts { asleep, used: at(used), busy, sessions, attached, tight, naps: &naps };
            match rest(&terms, &facts, at(now)) {
                Rest::Go(depth) => {
                    prop_assert!(!busy);
                    prop_assert!(depth != Depth::Paused || can_pause);
                    prop_assert!(asleep.is_none_or(|(was, _)| was < depth), "only ever deeper");
                    prop_assert!(depth != Depth::Stopped || attached == 0 && (sessions == 0 || replayable));
                    prop_assert!(asleep.is_some() || now >= used + 60);
                }
                Rest::Stay(Some(until)) => prop_assert!(until > at(now), "or it would be asked at once again"),
                Rest::Stay(None) => prop_assert!(asleep.is_some()),
            }
        }
    }
}
