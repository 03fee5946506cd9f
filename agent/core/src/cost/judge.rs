//! Quotas and budgets: who used up what, and what becomes of that.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sigil_config::agent::CostConfig;

use super::{Amounts, Month, price};
use crate::model::DeploymentId;

/// Whom a limit is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Whose {
    /// Everything on the agent.
    All,
    /// A team's deployments, by its id.
    Team(String),
    /// A user, by id: deployments that the user made, requests of the user's keys.
    User(String),
    /// One deployment.
    Deployment(DeploymentId),
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Team(id) => write!(f, "team:{id}"),
            Self::User(id) => write!(f, "user:{id}"),
            Self::Deployment(id) => write!(f, "deployment:{id}"),
        }
    }
}

impl FromStr for Whose {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is neither all, team:NAME, user:NAME nor deployment:NAME");
        match text.split_once(':') {
            None if text == "all" => Ok(Self::All),
            Some(("team", id)) if !id.is_empty() => Ok(Self::Team(id.to_owned())),
            Some(("user", id)) if !id.is_empty() => Ok(Self::User(id.to_owned())),
            Some(("deployment", id)) => id.parse().map(Self::Deployment).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl Serialize for Whose {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Whose {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The most that somebody may have; `None`: any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quota {
    /// Deployments.
    pub deployments: Option<u64>,
    /// Memory that replicas which are to run may use, all together, bytes.
    pub memory: Option<u64>,
    /// Requests a month.
    pub requests: Option<u64>,
    /// Bytes a month that leave.
    pub egress: Option<u64>,
}

/// Money a month.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// In the currency of the rates.
    pub amount: f64,
    /// Whether deployments are stopped when it is used up; else it is said.
    pub stop: bool,
}

/// What is set for somebody.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// For whom.
    pub whose: Whose,
    /// The most of everything.
    #[serde(default)]
    pub quota: Quota,
    /// Money.
    #[serde(default)]
    pub budget: Option<Budget>,
    /// Who set it last.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

impl Limit {
    /// Whether it limits nothing.
    pub fn is_empty(&self) -> bool {
        self.quota == Quota::default() && self.budget.is_none()
    }
}

/// What becomes of whoever used something up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is said.
    Warn,
    /// Requests pass slowly.
    Throttle,
    /// Requests are refused; of a budget: deployments are stopped.
    Stop,
}

impl FromStr for Action {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "warn" => Ok(Self::Warn),
            "throttle" => Ok(Self::Throttle),
            "stop" => Ok(Self::Stop),
            other => Err(format!("'{other}' is neither warn, throttle nor stop")),
        }
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Requests a month.
    Requests,
    /// Bytes a month.
    Egress,
    /// Money a month.
    Budget,
}

/// That something is nearly, or wholly, used up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Crossing {
    /// Whose.
    pub whose: Whose,
    /// Of what.
    pub what: What,
    /// The limit is its deployment's tier's, by name; else one that somebody set.
    pub tier: Option<String>,
    /// So much is used, in requests, bytes or money.
    pub used: f64,
    /// Of so much.
    pub most: f64,
    /// Wholly; else nearly.
    pub over: bool,
    /// What becomes of it once it is over.
    pub action: Action,
}

impl Crossing {
    /// The limit and how it stands, one sentence. `name`: what people call whom it is for.
    pub fn sentence(&self, name: &str) -> String {
        let (used, most) = match self.what {
            What::Requests => (format!("{:.0}", self.used), format!("{:.0} requests", self.most)),
            What::Egress => (format!("{:.2}", self.used / 1e9), format!("{:.2} GB of egress", self.most / 1e9)),
            What::Budget => (format!("{:.2}", self.used), format!("{:.2} of the budget", self.most)),
        };
        let limit = match &self.tier {
            Some(tier) => format!("the tier {tier}'s quota of {name}"),
            None if self.what == What::Budget => format!("the budget of {name}"),
            None => format!("the quota of {name}"),
        };
        let how = if self.over { "is used up" } else { "is nearly used up" };
        format!("{limit} {how}: {used} of {most} this month")
    }
}

/// A share of a limit from which on it is said that it is nearly used up.
pub const NEARLY: f64 = 0.8;

/// Egress and requests a month of a tier (`product.md`); `None` of limits that are nobody's tier.
pub fn tier_quota(tier: &str) -> Option<Quota> {
    let (egress, requests) = match tier {
        "micro" => (1, 10_000),
        "router" => (10, 100_000),
        "standard" => (20, 250_000),
        "processor" => (50, 500_000),
        "compute" => (200, 2_000_000),
        _ => return None,
    };
    Some(Quota { requests: Some(requests), egress: Some(egress * 1_000_000_000), ..Quota::default() })
}

/// What was used this month, by whom.
#[derive(Clone, Debug, Default)]
pub struct Used {
    /// By deployment: its tier, and what it used.
    pub deployments: BTreeMap<DeploymentId, (String, Amounts)>,
    /// By whom a limit may be for, beside deployments.
    pub others: BTreeMap<Whose, Amounts>,
    /// Money of everybody: `others` has no whole months of deployments where these are somebody's else.
    pub money: BTreeMap<Whose, f64>,
}

/// Everything that is nearly or wholly used up. `tiers`: what becomes of deployments beyond their tier's quota.
pub fn judge(rates: &CostConfig, tiers: Action, month: Month, limits: &[Limit], used: &Used) -> Vec<Crossing> {
    let mut found = Vec::new();
    let mut one = |whose: &Whose, what: What, tier: Option<&str>, used: f64, most: f64, action: Action| {
        if used >= most * NEARLY {
            let (whose, tier, over) = (whose.clone(), tier.map(str::to_owned), used >= most);
            found.push(Crossing { whose, what, tier, used, most, over, action });
        }
    };
    let mut quota = |whose: &Whose, tier: Option<&str>, quota: &Quota, used: &Amounts, action: Action| {
        for (what, used, most) in
            [(What::Requests, used.requests, quota.requests), (What::Egress, used.egress_bytes, quota.egress)]
        {
            if let Some(most) = most {
                one(whose, what, tier, used as f64, most as f64, action);
            }
        }
    };
    let limit_of = |whose: &Whose| limits.iter().find(|limit| limit.whose == *whose);
    for (id, (tier, amounts)) in &used.deployments {
        let whose = Whose::Deployment(*id);
        // what somebody set for a deployment takes the place of its tier's quota, each for itself
        let own = limit_of(&whose).map(|limit| limit.quota).unwrap_or_default();
        let mut of_tier = tier_quota(tier).unwrap_or_default();
        of_tier.requests = of_tier.requests.filter(|_| own.requests.is_none());
        of_tier.egress = of_tier.egress.filter(|_| own.egress.is_none());
        quota(&whose, Some(tier), &of_tier, amounts, tiers);
        quota(&whose, None, &own, amounts, Action::Stop);
    }
    for limit in limits.iter().filter(|limit| !matches!(limit.whose, Whose::Deployment(_))) {
        let amounts = used.others.get(&limit.whose).copied().unwrap_or_default();
        quota(&limit.whose, None, &limit.quota, &amounts, Action::Stop);
    }
    for limit in limits {
        let Some(budget) = limit.budget else { continue };
        let action = if budget.stop { Action::Stop } else { Action::Warn };
        let money = match &limit.whose {
            Whose::Deployment(id) => used.deployments.get(id).map(|(_, a)| price(rates, a, month).total()),
            other => used.money.get(other).copied(),
        };
        one(&limit.whose, What::Budget, None, money.unwrap_or(0.0), budget.amount, action);
    }
    found
}

/// A deployment that counts against quotas of how many there are and of their memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Whose it is: its team, and the user who made it.
    pub whose: [Whose; 2],
    /// Memory that its replicas may use, all that are to run, bytes.
    pub memory: u64,
}

/// Whether one more, or one that takes more memory, still fits. `held`: all others. `new`: it is not there yet.
///
/// # Errors
/// The quota that it does not fit, one sentence; `name` makes a name of whom a quota is for.
pub fn room(
    limits: &BTreeMap<Whose, Limit>,
    held: &[Held],
    asked: &Held,
    new: bool,
    name: impl Fn(&Whose) -> String,
) -> Result<(), String> {
    for whose in asked.whose.iter().chain([&Whose::All]) {
        let Some(quota) = limits.get(whose).map(|limit| limit.quota) else { continue };
        let theirs = || held.iter().filter(|held| *whose == Whose::All || held.whose.contains(whose));
        let count = theirs().count() as u64 + 1;
        if let Some(most) = quota.deployments.filter(|most| new && count > *most) {
            return Err(format!("the quota of {} is {most} deployments, and this is number {count}", name(whose)));
        }
        let memory = theirs().map(|held| held.memory).fold(asked.memory, u64::saturating_add);
        if let Some(most) = quota.memory.filter(|most| asked.memory > 0 && memory > *most) {
            let mib = |bytes: u64| bytes >> 20;
            let (name, most, memory) = (name(whose), mib(most), mib(memory));
            return Err(format!("the quota of {name} is {most} MiB of memory, and with this it would be {memory} MiB"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(whose: Whose, quota: Quota, budget: Option<Budget>) -> Limit {
        Limit { whose, quota, budget, by: "ada".into(), at: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn whose_is_written_as_it_is_read() {
        for text in ["all", "team:ops", "user:01X", "deployment:00000000000000000000000001"] {
            assert_eq!(text.parse::<Whose>().unwrap().to_string(), text);
        }
        for bad in ["", "everybody", "team:", "deployment:x", "role:admin"] {
            assert!(bad.parse::<Whose>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tiers_people_and_money() {
        let id = DeploymentId(ulid::Ulid::from_parts(1, 1));
        let (whose, month) = (Whose::Deployment(id), "2027-06".parse().unwrap());
        let mut used = Used::default();
        let amounts = |requests| Amounts { requests, ..Amounts::default() };
        let judged =
            |limits: &[Limit], used: &Used| judge(&CostConfig::default(), Action::Throttle, month, limits, used);
        used.deployments.insert(id, ("micro".into(), amounts(7_999)));
        assert_eq!(judged(&[], &used), []);
        used.deployments.insert(id, ("micro".into(), amounts(8_000)));
        let [near] = &judged(&[], &used)[..] else { panic!() };
        assert!(!near.over && near.tier.as_deref() == Some("micro"));
        used.deployments.insert(id, ("micro".into(), amounts(10_000)));
        let [over] = &judged(&[], &used)[..] else { panic!() };
        assert_eq!((over.over, over.action), (true, Action::Throttle));
        let sentence = "the tier micro's quota of clock is used up: 10000 of 10000 requests this month";
        assert_eq!(over.sentence("clock"), sentence);
        // what somebody set for it counts instead
        let own = Quota { requests: Some(1_000_000), ..Quota::default() };
        assert_eq!(judged(&[limit(whose.clone(), own, None)], &used), []);
        // a user's, and a team that used nothing
        let quota = Quota { egress: Some(1_000_000_000), ..Quota::default() };
        let user = Whose::User("u".into());
        used.others.insert(user.clone(), Amounts { egress_bytes: 2_000_000_000, ..Amounts::default() });
        let limits = [limit(user, quota, None), limit(Whose::Team("t".into()), quota, None)];
        let of_user = judged(&limits, &used).into_iter().find(|c| c.what == What::Egress).unwrap();
        assert_eq!((of_user.action, of_user.over), (Action::Stop, true));
        assert_eq!(of_user.sentence("ada"), "the quota of ada is used up: 2.00 of 1.00 GB of egress this month");
        // money: half a unit for ten thousand requests
        let budget = |amount, stop| Some(Budget { amount, stop });
        let found = judged(&[limit(whose, own, budget(0.5, true))], &used);
        assert_eq!((found[0].what, found[0].over, found[0].action), (What::Budget, true, Action::Stop));
        used.money.insert(Whose::All, 9.0);
        let found = judged(&[limit(Whose::All, Quota::default(), budget(10.0, false))], &used);
        let all = found.iter().find(|c| c.what == What::Budget).unwrap();
        assert_eq!((all.over, all.action), (false, Action::Warn));
    }

    #[test]
    fn there_is_room_or_a_name_for_why_not() {
        let (team, user) = (Whose::Team("t".into()), Whose::User("u".into()));
        let held = |memory| Held { whose: [team.clone(), user.clone()], memory };
        let limits = |whose: &Whose, deployments, memory| {
            let quota = Quota { deployments, memory, ..Quota::default() };
            BTreeMap::from([(whose.clone(), limit(whose.clone(), quota, None))])
        };
        let all = [held(512 << 20), held(0)];
        let ask = |limits: &BTreeMap<Whose, Limit>, memory, new| {
            room(limits, &all, &held(memory), new, |whose| whose.to_string())
        };
        assert_eq!(ask(&limits(&team, Some(3), None), 1, true), Ok(()));
        let full = limits(&user, Some(2), None);
        let why = "the quota of user:u is 2 deployments, and this is number 3";
        assert_eq!(ask(&full, 1, true), Err(why.to_owned()));
        assert_eq!(ask(&full, 1, false), Ok(()), "it is there already");
        let tight = limits(&Whose::All, None, Some(768 << 20));
        assert_eq!(ask(&tight, 256 << 20, true), Ok(()));
        let why = "the quota of all is 768 MiB of memory, and with this it would be 1024 MiB";
        assert_eq!(ask(&tight, 512 << 20, false), Err(why.to_owned()));
        assert_eq!(ask(&tight, 0, true), Ok(()), "what does not run takes none");
    }

    #[test]
    fn a_quota_of_nothing_is_used_up() {
        let quota = Quota { requests: Some(0), ..Quota::default() };
        let limits = [limit(Whose::User("u".into()), quota, None)];
        let found = judge(&CostConfig::default(), Action::Warn, "2027-06".parse().unwrap(), &limits, &Used::default());
        assert!(found[0].over);
    }
}
