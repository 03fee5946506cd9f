//! Owns: when something that should not be becomes an alert, and when it is over. May touch: nothing. Never: tells anybody.
//! Tested by: units and properties here.
//!
//! What is seen has to last before it is told, and to be gone for as long before the all-clear: one that comes and goes is
//! one alert, not many.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The engine cannot be seen.
    Engine,
    /// A deployment does not answer as it should.
    Unhealthy,
    /// A deployment does not stay up, or nothing of it serves.
    Failed,
    /// A server ran out of the memory that it may have.
    Memory,
    /// A server waits for room on the host.
    Room,
    /// Disk or inodes run out.
    Disk,
    /// A certificate ends soon.
    Certificate,
    /// A quota is used up, or nearly.
    Quota,
    /// A budget is.
    Budget,
    /// An agent is not there, or was not.
    AgentLost,
    /// Somebody tries whether alerts arrive.
    Test,
}

impl Kind {
    /// The word in logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Unhealthy => "unhealthy",
            Self::Failed => "failed",
            Self::Memory => "memory",
            Self::Room => "room",
            Self::Disk => "disk",
            Self::Certificate => "certificate",
            Self::Quota => "quota",
            Self::Budget => "budget",
            Self::AgentLost => "agent-lost",
            Self::Test => "test",
        }
    }
}

/// Something that should not be, as it is seen now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What kind.
    pub kind: Kind,
    /// Of what: a deployment's name, or `host`.
    pub about: String,
    /// A sentence.
    pub text: String,
}

/// A fact that lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// What it is about, in its latest words.
    #[serde(flatten)]
    pub fact: Fact,
    /// Since when.
    pub since: Timestamp,
}

/// A fact that lasted, and is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// What it was.
    #[serde(flatten)]
    pub alert: Alert,
    /// When that was told, or it ended.
    pub ended: Timestamp,
}

/// What is sent to whoever is told, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `firing`, `resolved` or `test`.
    pub state: String,
    /// What it is about.
    #[serde(flatten)]
    pub alert: Alert,
    /// When this was said.
    pub at: Timestamp,
    /// The agent's id.
    pub agent: String,
    /// What its owner calls it.
    pub host: String,
}

impl Message {
    /// What a command gets in its environment.
    pub fn environment(&self) -> [(&'static str, &str); 4] {
        let fact = &self.alert.fact;
        [
            ("SIGIL_ALERT_STATE", &self.state),
            ("SIGIL_ALERT_KIND", fact.kind.as_str()),
            ("SIGIL_ALERT_ABOUT", &fact.about),
            ("SIGIL_ALERT_TEXT", &fact.text),
        ]
    }
}

/// What is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has lasted.
    Fires(Alert),
    /// It is over.
    Resolves(Alert),
}

#[derive(Clone, Debug)]
struct Held {
    alert: Alert,
    fired: bool,
    /// When it was first seen, milliseconds of the caller's clock.
    first: i64,
    /// When it was last seen.
    last: i64,
}

/// All that is seen. Times are milliseconds of a clock that only goes forward.
#[derive(Clone, Debug, Default)]
pub struct Alerts {
    held: BTreeMap<(Kind, String), Held>,
}

impl Alerts {
    /// Goes on with what an earlier agent has told: it is told again only when it is over.
    pub fn resume(alerts: Vec<Alert>, now: i64) -> Self {
        let held = alerts.into_iter().map(|alert| {
            let key = (alert.fact.kind, alert.fact.about.clone());
            (key, Held { alert, fired: true, first: now, last: now })
        });
        Self { held: held.collect() }
    }

    /// Takes in what is seen now. `after`: how long something lasts before it is told, and is gone before that is.
    pub fn look(&mut self, facts: Vec<Fact>, after: i64, now: i64, at: Timestamp) -> Vec<Turn> {
        for fact in facts {
            let key = (fact.kind, fact.about.clone());
            let held = self.held.entry(key).or_insert_with(|| Held {
                alert: Alert { fact: fact.clone(), since: at },
                fired: false,
                first: now,
                last: now,
            });
            (held.alert.fact.text, held.last) = (fact.text, now);
        }
        let mut turns = Vec::new();
        for held in self.held.values_mut() {
            // seen now, and for long enough
            if !held.fired && held.last == now && now - held.first >= after {
                held.fired = true;
                turns.push(Turn::Fires(held.alert.clone()));
            }
        }
        self.held.retain(|_, held| {
            let gone = now - held.last;
            if gone > 0 && (!held.fired || gone >= after) {
                if held.fired {
                    turns.push(Turn::Resolves(held.alert.clone()));
                }
                return false;
            }
            true
        });
        turns
    }

    /// What has been told and is not over.
    pub fn firing(&self) -> Vec<Alert> {
        self.held.values().filter(|held| held.fired).map(|held| held.alert.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fact(about: &str) -> Fact {
        Fact { kind: Kind::Failed, about: about.into(), text: "it exited".into() }
    }

    fn words(turns: &[Turn]) -> Vec<String> {
        let word = |turn: &Turn| match turn {
            Turn::Fires(alert) => format!("+{}", alert.fact.about),
            Turn::Resolves(alert) => format!("-{}", alert.fact.about),
        };
        turns.iter().map(word).collect()
    }

    #[test]
    fn what_lasts_is_told_once_and_so_is_its_end() {
        let mut alerts = Alerts::default();
        let mut look = |facts: &[&str], now| {
            let facts = facts.iter().map(|about| fact(about)).collect();
            words(&alerts.look(facts, 60_000, now, Timestamp::UNIX_EPOCH))
        };
        assert!(look(&["a"], 0).is_empty());
        assert!(look(&[], 10_000).is_empty(), "it was nothing");
        assert!(look(&["a"], 20_000).is_empty());
        assert_eq!(look(&["a", "b"], 80_000), ["+a"]);
        assert!(look(&["a", "b"], 90_000).is_empty());
        // away for a moment
        assert!(look(&["b"], 100_000).is_empty());
        assert_eq!(look(&["a", "b"], 140_000), ["+b"]);
        assert!(look(&[], 150_000).is_empty());
        assert_eq!(look(&[], 200_000), ["-a", "-b"]);
    }

    #[test]
    fn a_new_agent_tells_only_what_changed() {
        let told = vec![Alert { fact: fact("a"), since: Timestamp::UNIX_EPOCH }];
        let mut alerts = Alerts::resume(told.clone(), 0);
        assert_eq!(alerts.firing(), told);
        assert!(alerts.look(vec![fact("a")], 1000, 5000, Timestamp::UNIX_EPOCH).is_empty());
        assert_eq!(words(&alerts.look(vec![], 1000, 6000, Timestamp::UNIX_EPOCH)), ["-a"]);
        assert!(alerts.firing().is_empty());
    }

    proptest! {
        #[test]
        fn every_end_had_a_beginning(seen in proptest::collection::vec(any::<bool>(), 1..200), after in 0_i64..5) {
            let mut alerts = Alerts::default();
            let (mut fires, mut ends) = (0, 0);
            for (now, seen) in seen.into_iter().enumerate() {
                let facts = if seen { vec![fact("a")] } else { vec![] };
                for turn in alerts.look(facts, after, now as i64, Timestamp::UNIX_EPOCH) {
                    match turn {
                        Turn::Fires(_) => fires += 1,
                        Turn::Resolves(_) => ends += 1,
                    }
                    prop_assert!(fires == ends || fires == ends + 1);
                }
                prop_assert_eq!(alerts.firing().len(), fires - ends);
            }
        }
    }
}
