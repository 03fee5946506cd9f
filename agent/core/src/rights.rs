//! Who may what: roles, what they are held on, and the people and teams that hold them.
//!
//! A *grant* is a role on something: everything, a team's deployments, deployments by name, or deployments by tag. What
//! somebody may do to a deployment is the highest of the grants that fit it; what concerns the whole agent (keys of
//! others, logins for sources, the audit log) takes a grant on everything.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::Deployment;
use crate::policy::{Patterns, PolicyError};

/// The team that everything belongs to that nobody gave to another: its id, and its name.
pub const DEFAULT_TEAM: &str = "default";
/// Longest name of a user or team, in bytes.
pub const NAME_MAX: usize = 64;

/// What somebody may, from the least on. Each role from [`Role::Viewer`] on includes those before it, but that a viewer
/// calls no tools.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Calls tools through the gateway, and nothing else: the role of most keys.
    Caller,
    /// Looks at everything but secrets and what callers send.
    #[serde(alias = "reader")]
    Viewer,
    /// Restarts, stops, starts, scales, rolls back; follows calls; calls tools.
    Operator,
    /// Deploys, removes, sets secrets and policies, approves tools.
    Deployer,
    /// Everything: waivers, other people's rights.
    Admin,
}

impl Role {
    /// All of them, the least first.
    pub const ALL: [Self; 5] = [Self::Caller, Self::Viewer, Self::Operator, Self::Deployer, Self::Admin];

    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Deployer => "deployer",
            Self::Admin => "admin",
        }
    }

    /// What it is good for, one line.
    pub fn about(self) -> &'static str {
        match self {
            Self::Caller => "calls tools through the gateway, and nothing else",
            Self::Viewer => "looks at state, logs and lists; never at secrets or at what callers send; calls nothing",
            Self::Operator => "also restarts, stops, starts, scales, rolls back, follows live calls, calls tools",
            Self::Deployer => "also deploys, removes, sets secrets and policies, approves changed tools",
            Self::Admin => "everything: waivers, and on everything also users, teams, keys, the audit log",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a right cannot be written down.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RightsError {
    /// None of the five.
    #[error("'{0}' is not a role")]
    Role(String),
    /// Neither `all` nor one of the forms.
    #[error("'{0}' is nothing that a role can be held on")]
    On(String),
    /// Not a name for a user or team.
    #[error("'{0}' cannot be the name of a user or team")]
    Name(String),
}

impl RightsError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Role(_) => "the roles are viewer, operator, deployer, admin and caller",
            Self::On(_) => "all, team:NAME, tag:TAG, or a deployment's name (a pattern: dev-*)",
            Self::Name(_) => {
                "1 to 64 of a-z, 0-9, '.', '_', '-' and '@', beginning with a letter or digit; not root, which is \
                 this host's"
            }
        }
    }
}

impl FromStr for Role {
    type Err = RightsError;
    fn from_str(text: &str) -> Result<Self, RightsError> {
        if text == "reader" {
            // its name until there were more of them
            return Ok(Self::Viewer);
        }
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| RightsError::Role(text.to_owned()))
    }
}

/// Whether a text can be the name of a user or team.
///
/// # Errors
/// [`RightsError::Name`].
pub fn checked_name(name: &str) -> Result<(), RightsError> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-@".contains(c);
    let begins = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.len() > NAME_MAX || !name.starts_with(begins) || !name.chars().all(fine) || name == "root" {
        return Err(RightsError::Name(name.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect()));
    }
    Ok(())
}

/// What a role is held on.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum On {
    /// The whole agent.
    All,
    /// A team's deployments and secrets, by the team's id.
    Team(String),
    /// Deployments whose name fits; `*` stands for any run of characters.
    Deployment(String),
    /// Deployments with this tag.
    Tag(String),
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Team(team) => write!(f, "team:{team}"),
            Self::Deployment(pattern) => f.write_str(pattern),
            Self::Tag(tag) => write!(f, "tag:{tag}"),
        }
    }
}

impl FromStr for On {
    type Err = RightsError;
    fn from_str(text: &str) -> Result<Self, RightsError> {
        let bad = || RightsError::On(text.chars().filter(|c| !c.is_control()).take(100).collect());
        let plain = |t: &str| !t.is_empty() && t.len() <= 100 && !t.chars().any(|c| c.is_control() || c == ':');
        match text.split_once(':') {
            None if text == "all" => Ok(Self::All),
            None if plain(text) => Ok(Self::Deployment(text.to_owned())),
            Some(("team", team)) if plain(team) => Ok(Self::Team(team.to_owned())),
            Some(("tag", tag)) if plain(tag) => Ok(Self::Tag(tag.to_owned())),
            _ => Err(bad()),
        }
    }
}

impl Serialize for On {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for On {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A role on something.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Grant {
    /// Which.
    pub role: Role,
    /// On what.
    pub on: On,
}

/// Somebody.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct User {
    /// Immutable identity.
    pub id: String,
    /// Its name now; a login of this host, or the subject of a client certificate, of the same name is that user.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// Whether nothing of it is taken at present: no key, no login.
    #[serde(default)]
    pub disabled: bool,
    /// What it may.
    pub grants: Vec<Grant>,
}

/// Several deployments and secrets that belong together.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Team {
    /// Immutable identity; of the first one the word `default`.
    pub id: String,
    /// Its name now.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
}

/// What of a deployment decides who may do something to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subject<'a> {
    /// Its name.
    pub name: &'a str,
    /// The id of its team.
    pub team: &'a str,
    /// Its tags.
    pub tags: &'a [String],
}

impl<'a> Subject<'a> {
    /// A deployment as it is.
    pub fn of(deployment: &'a Deployment) -> Self {
        Self { name: deployment.name.as_str(), team: &deployment.team, tags: &deployment.tags }
    }
}

/// Roles that somebody holds on one thing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Held {
    /// Tools may be called.
    pub calls: bool,
    /// The highest of the roles beside [`Role::Caller`].
    pub role: Option<Role>,
}

impl Held {
    fn add(&mut self, role: Role) {
        self.calls |= role != Role::Viewer;
        if role != Role::Caller {
            self.role = self.role.max(Some(role));
        }
    }

    /// Whether that is enough for what takes `needed`.
    pub fn may(self, needed: Role) -> bool {
        match needed {
            Role::Caller => self.calls,
            needed => self.role.is_some_and(|role| role >= needed),
        }
    }

    /// The word for it: of the highest role; `none` for none.
    pub fn as_str(self) -> &'static str {
        match (self.role, self.calls) {
            (Some(role), _) => role.as_str(),
            (None, true) => Role::Caller.as_str(),
            (None, false) => "none",
        }
    }
}

/// All that somebody may.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    grants: Vec<Grant>,
    /// Of `grants`, in the same order: the pattern of those on deployments.
    patterns: Vec<Patterns>,
    /// At most this: what the key is good for that was shown.
    cap: Option<Role>,
}

impl PartialEq for Rights {
    fn eq(&self, other: &Self) -> bool {
        (&self.grants, self.cap) == (&other.grants, other.cap)
    }
}

impl Eq for Rights {}

impl Rights {
    /// A role on everything.
    pub fn all(role: Role) -> Self {
        Self { grants: vec![Grant { role, on: On::All }], patterns: vec![Patterns::default()], cap: None }
    }

    /// Grants, made ready.
    ///
    /// # Errors
    /// [`PolicyError::Pattern`].
    pub fn new(grants: &[Grant]) -> Result<Self, PolicyError> {
        let pattern = |grant: &Grant| match &grant.on {
            On::Deployment(pattern) => Patterns::new(std::slice::from_ref(pattern)),
            _ => Ok(Patterns::default()),
        };
        let patterns = grants.iter().map(pattern).collect::<Result<_, _>>()?;
        Ok(Self { grants: grants.to_vec(), patterns, cap: None })
    }

    /// The same through a key of a role: that key may no more than its role, whatever its user may.
    #[must_use]
    pub fn capped(&self, role: Role) -> Self {
        Self { cap: Some(role), ..self.clone() }
    }

    /// The grants, as far as the key is good for them.
    pub fn grants(&self) -> impl Iterator<Item = (Role, &On)> {
        let capped = |role: Role| match self.cap {
            // of the two roles that have nothing in common
            Some(Role::Caller) if role == Role::Viewer => None,
            Some(Role::Viewer) if role == Role::Caller => None,
            Some(cap) => Some(role.min(cap)),
            None => Some(role),
        };
        self.grants.iter().filter_map(move |grant| Some((capped(grant.role)?, &grant.on)))
    }

    fn held(&self, fits: impl Fn(&On, &Patterns) -> bool) -> Held {
        let mut held = Held::default();
        for (grant, pattern) in self.grants.iter().zip(&self.patterns) {
            if fits(&grant.on, pattern) {
                held.add(grant.role);
            }
        }
        let Some(cap) = self.cap else { return held };
        let mut most = Held::default();
        most.add(cap);
        Held { calls: held.calls && most.calls, role: held.role.min(most.role) }
    }

    /// On a deployment.
    pub fn on(&self, subject: Subject<'_>) -> Held {
        self.held(|on, pattern| match on {
            On::All => true,
            On::Team(team) => team == subject.team,
            On::Deployment(_) => pattern.matches(subject.name),
            On::Tag(tag) => subject.tags.contains(tag),
        })
    }

    /// On a team: its secrets, new deployments in it.
    pub fn in_team(&self, id: &str) -> Held {
        self.held(|on, _| match on {
            On::All => true,
            On::Team(team) => team == id,
            _ => false,
        })
    }

    /// On the whole agent.
    pub fn everywhere(&self) -> Held {
        self.held(|on, _| *on == On::All)
    }

    /// On anything at all: who has less than is needed even here needs no closer look.
    pub fn somewhere(&self) -> Held {
        self.held(|_, _| true)
    }

    /// Teams that are named in it, by id.
    pub fn teams(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        for grant in &self.grants {
            if let On::Team(team) = &grant.on
                && !all.contains(&team.as_str())
            {
                all.push(team);
            }
        }
        all
    }
}

/// Everybody, ready to be looked up.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    users: BTreeMap<String, (Arc<User>, Arc<Rights>)>,
    /// Name to id.
    names: BTreeMap<String, String>,
    teams: BTreeMap<String, Arc<Team>>,
}

impl Directory {
    /// Of users and teams. One whose grants cannot be read may nothing.
    pub fn new<'a>(
        users: impl IntoIterator<Item = &'a Arc<User>>,
        teams: impl IntoIterator<Item = &'a Arc<Team>>,
    ) -> Self {
        let mut all = Self::default();
        for user in users {
            let rights = Rights::new(&user.grants).unwrap_or_default();
            all.names.insert(user.name.clone(), user.id.clone());
            all.users.insert(user.id.clone(), (user.clone(), Arc::new(rights)));
        }
        all.teams = teams.into_iter().map(|team| (team.id.clone(), team.clone())).collect();
        all
    }

    /// A user by id or name, with what it may.
    pub fn user(&self, id_or_name: &str) -> Option<(&Arc<User>, &Arc<Rights>)> {
        let id = self.names.get(id_or_name).map_or(id_or_name, String::as_str);
        self.users.get(id).map(|(user, rights)| (user, rights))
    }

    /// All users, by id.
    pub fn users(&self) -> impl Iterator<Item = &Arc<User>> {
        self.users.values().map(|(user, _)| user)
    }

    /// All teams but the first one, by id.
    pub fn teams(&self) -> impl Iterator<Item = &Arc<Team>> {
        self.teams.values()
    }

    /// The id of a team, by name or id.
    pub fn team_id(&self, name_or_id: &str) -> Option<String> {
        if name_or_id == DEFAULT_TEAM {
            return Some(DEFAULT_TEAM.to_owned());
        }
        let named = self.teams.values().find(|team| team.name == name_or_id);
        named.or_else(|| self.teams.get(name_or_id)).map(|team| team.id.clone())
    }

    /// The name of a team; its id where it is gone.
    pub fn team_name<'a>(&'a self, id: &'a str) -> &'a str {
        self.teams.get(id).map_or(id, |team| &team.name)
    }

    /// What a grant is on, with the team's name in the place of its id.
    pub fn shown(&self, on: &On) -> String {
        match on {
            On::Team(id) => format!("team:{}", self.team_name(id)),
            other => other.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(text: &str) -> Grant {
        let (role, on) = text.split_once(' ').unwrap();
        Grant { role: role.parse().unwrap(), on: on.parse().unwrap() }
    }

    fn rights(grants: &[&str]) -> Rights {
        Rights::new(&grants.iter().map(|g| grant(g)).collect::<Vec<_>>()).unwrap()
    }

    fn subject<'a>(name: &'a str, team: &'a str, tags: &'a [String]) -> Subject<'a> {
        Subject { name, team, tags }
    }

    #[test]
    fn the_highest_grant_that_fits_counts() {
        let tags = ["prod".to_owned()];
        let all = rights(&["viewer all", "operator tag:prod", "deployer dev-*", "admin team:t1", "caller chat"]);
        for (name, team, tagged, word, calls) in [
            ("a", "default", false, "viewer", false),
            ("a", "default", true, "operator", true),
            ("dev-a", "default", true, "deployer", true),
            ("dev-a", "t1", true, "admin", true),
            ("xdev-a", "default", false, "viewer", false),
            ("chat", "default", false, "viewer", true),
        ] {
            let held = all.on(subject(name, team, if tagged { &tags } else { &[] }));
            assert_eq!((held.as_str(), held.calls), (word, calls), "{name} {team} {tagged}");
        }
        assert_eq!(all.everywhere().as_str(), "viewer");
        assert_eq!((all.in_team("t1").as_str(), all.in_team("t2").as_str()), ("admin", "viewer"));
        assert_eq!((all.somewhere().as_str(), all.teams()), ("admin", vec!["t1"]));
        let none = rights(&[]);
        assert_eq!((none.somewhere(), none.somewhere().as_str()), (Held::default(), "none"));
    }

    #[test]
    fn each_role_may_what_those_before_it_may_and_viewers_call_nothing() {
        for held in Role::ALL {
            for needed in Role::ALL {
                let may = match (held, needed) {
                    (Role::Caller, needed) => needed == Role::Caller,
                    (Role::Viewer, needed) => needed == Role::Viewer,
                    (held, needed) => held >= needed,
                };
                assert_eq!(Rights::all(held).everywhere().may(needed), may, "{held} for {needed}");
                // a key caps its user, and gives nothing that the user has not
                for cap in Role::ALL {
                    let capped = Rights::all(held).capped(cap).everywhere().may(needed);
                    assert_eq!(
                        capped,
                        may && Rights::all(cap).everywhere().may(needed),
                        "{held} by {cap} for {needed}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_a_role_is_held_on_reads_as_it_is_written() {
        for text in ["all", "team:ops", "tag:prod", "dev-*", "time"] {
            assert_eq!(text.parse::<On>().unwrap().to_string(), text);
        }
        for bad in ["", "team:", "tag:", "host:x", "a:b", "x\n", "team:a:b"] {
            assert!(bad.parse::<On>().is_err(), "{bad:?}");
        }
        let kept = serde_json::to_string(&grant("operator team:ops")).unwrap();
        assert_eq!(kept, r#"{"role":"operator","on":"team:ops"}"#);
        assert_eq!(serde_json::from_str::<Grant>(&kept).unwrap(), grant("operator team:ops"));
        assert_eq!(serde_json::from_str::<Role>("\"reader\"").unwrap(), Role::Viewer);
        assert!("owner".parse::<Role>().is_err() && serde_json::from_str::<On>("\"x:y\"").is_err());
    }

    #[test]
    fn names_are_plain() {
        for good in ["ada", "ada.l@example.org", "7of9", "ci-bot_2"] {
            assert!(checked_name(good).is_ok(), "{good}");
        }
        for bad in ["", "root", "Ada", "token:x", "a b", "-a", "@a", "ä", &"a".repeat(65)] {
            assert!(checked_name(bad).is_err(), "{bad}");
        }
    }
}
