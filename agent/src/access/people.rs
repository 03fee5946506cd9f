//! Changes of users, teams and what they may. Each is decided on the state that it changes, in the store's one writer.

use jiff::Timestamp;
use sigil_core::rights::{DEFAULT_TEAM, Directory, Grant, On, Rights, RightsError, Role, Team, User, checked_name};

use super::Principal;
use crate::store::{People, PersonChange, Store, StoreError};

/// Most users, teams, and grants of one user: all of them are in memory, and looked through at each call.
const PEOPLE_MAX: usize = 10_000;
const GRANTS_MAX: usize = 200;

/// Why users and teams stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum PeopleError {
    /// A name or role that cannot be.
    #[error(transparent)]
    Rights(#[from] RightsError),
    /// A pattern that cannot be.
    #[error(transparent)]
    Pattern(#[from] sigil_core::policy::PolicyError),
    /// No user of that name.
    #[error("no user '{0}'")]
    NoUser(String),
    /// No team of that name.
    #[error("no team '{0}'")]
    NoTeam(String),
    /// There is one already.
    #[error("'{0}' is there already")]
    Taken(String),
    /// Something belongs to it.
    #[error("the team '{team}' still has {what}")]
    InUse {
        /// Its name.
        team: String,
        /// What belongs to it.
        what: String,
    },
    /// The first team.
    #[error("the team 'default' is there for what nobody gave to another, and stays")]
    First,
    /// The user does not have it.
    #[error("'{user}' is not {role} on {on}")]
    NoGrant {
        /// The user's name.
        user: String,
        /// What was to be taken away.
        role: String,
        /// On what.
        on: String,
    },
    /// Whoever asks may not give it.
    #[error("only an admin of {0} may do that")]
    NotYours(String),
    /// There is no room for more.
    #[error("there are too many {0}")]
    TooMany(&'static str),
    /// It cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PeopleError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Rights(error) => error.hint(),
            Self::Pattern(error) => error.hint(),
            Self::NoUser(_) => "`sigil user ls` lists them; `sigil user add NAME` makes one",
            Self::NoTeam(_) => "`sigil team ls` lists them; `sigil team create NAME` makes one",
            Self::Taken(_) => "choose another name",
            Self::InUse { .. } => "move its deployments with `sigil team move`, remove its secrets, then try again",
            Self::First => "`sigil team move` gives its deployments to another",
            Self::NoGrant { .. } => "`sigil role ls` shows who may what",
            Self::NotYours(_) => "ask one: `sigil role ls` shows who that is",
            Self::TooMany(_) => "remove some that are not needed any more",
            Self::Store(_) => "look at the agent's log",
        }
    }
}

type Result<T> = std::result::Result<T, PeopleError>;

fn user(directory: &Directory, name: &str) -> Result<User> {
    directory.user(name).map(|(user, _)| User::clone(user)).ok_or_else(|| PeopleError::NoUser(name.to_owned()))
}

/// What a person wrote, with a team's id in the place of its name.
fn resolved(directory: &Directory, on: On) -> Result<On> {
    match on {
        On::Team(name) => directory.team_id(&name).map(On::Team).ok_or(PeopleError::NoTeam(name)),
        other => Ok(other),
    }
}

/// Whether somebody may give and take roles on something: an admin of it. Patterns and tags can fit anything, so that they
/// take an admin of everything.
fn may_give(directory: &Directory, rights: &Rights, on: &On) -> Result<()> {
    let held = match on {
        On::Team(team) => rights.in_team(team),
        _ => rights.everywhere(),
    };
    if held.may(Role::Admin) { Ok(()) } else { Err(PeopleError::NotYours(directory.shown(on))) }
}

/// Adds a user who may nothing yet.
///
/// # Errors
/// [`PeopleError`].
pub async fn add_user(store: &Store, name: &str, by: &Principal) -> Result<User> {
    checked_name(name)?;
    let new = User {
        id: ulid::Ulid::generate().to_string().to_ascii_lowercase(),
        name: name.to_owned(),
        created_at: Timestamp::now(),
        created_by: by.who.clone(),
        disabled: false,
        grants: Vec::new(),
    };
    change(store, move |people| {
        let directory = people.directory();
        if directory.user(&new.name).is_some() {
            return Err(PeopleError::Taken(new.name));
        }
        if directory.users().count() >= PEOPLE_MAX {
            return Err(PeopleError::TooMany("users"));
        }
        Ok((vec![PersonChange::User(new.clone())], new))
    })
    .await
}

/// Nothing of the user is taken any more, or again.
///
/// # Errors
/// [`PeopleError`].
pub async fn set_disabled(store: &Store, name: &str, disabled: bool) -> Result<User> {
    let name = name.to_owned();
    change(store, move |people| {
        let new = User { disabled, ..user(people.directory(), &name)? };
        Ok((vec![PersonChange::User(new.clone())], new))
    })
    .await
}

/// Removes a user. Its keys are to be revoked, too.
///
/// # Errors
/// [`PeopleError`].
pub async fn remove_user(store: &Store, name: &str) -> Result<User> {
    let name = name.to_owned();
    change(store, move |people| {
        let old = user(people.directory(), &name)?;
        Ok((vec![PersonChange::NoUser(old.id.clone())], old))
    })
    .await
}

/// Gives a user a role on something, in the place of the one that the user had on just that (but a role of calling, which
/// goes beside the others). Answers the user as it was and as it is.
///
/// # Errors
/// [`PeopleError`].
pub async fn grant(store: &Store, name: &str, role: Role, on: On, by: &Principal) -> Result<(User, User)> {
    let (name, rights) = (name.to_owned(), by.rights.clone());
    change(store, move |people| {
        let directory = people.directory();
        let on = resolved(directory, on)?;
        // who lowers an admin takes something away: that takes no less than giving it
        may_give(directory, &rights, &on)?;
        let old = user(directory, &name)?;
        let new = Grant { role, on };
        let beside = |old: &Grant| old.on != new.on || ((old.role == Role::Caller) != (role == Role::Caller));
        let mut grants: Vec<Grant> = old.grants.iter().filter(|old| beside(old)).cloned().collect();
        grants.push(new);
        grants.sort();
        if grants.len() > GRANTS_MAX {
            return Err(PeopleError::TooMany("roles of one user"));
        }
        Rights::new(&grants)?;
        let new = User { grants, ..old.clone() };
        Ok((vec![PersonChange::User(new.clone())], (old, new)))
    })
    .await
}

/// Takes away the roles that a user has on something (`role`: only that one). Answers the user as it was and as it is.
///
/// # Errors
/// [`PeopleError`].
pub async fn revoke(store: &Store, name: &str, role: Option<Role>, on: On, by: &Principal) -> Result<(User, User)> {
    let (name, rights) = (name.to_owned(), by.rights.clone());
    change(store, move |people| {
        let directory = people.directory();
        let on = resolved(directory, on)?;
        may_give(directory, &rights, &on)?;
        let old = user(directory, &name)?;
        let goes = |grant: &Grant| grant.on == on && role.is_none_or(|role| role == grant.role);
        if !old.grants.iter().any(goes) {
            return Err(PeopleError::NoGrant {
                user: name,
                role: role.map_or("anything", Role::as_str).to_owned(),
                on: directory.shown(&on),
            });
        }
        let new = User { grants: old.grants.iter().filter(|grant| !goes(grant)).cloned().collect(), ..old.clone() };
        Ok((vec![PersonChange::User(new.clone())], (old, new)))
    })
    .await
}

/// Makes a team.
///
/// # Errors
/// [`PeopleError`].
pub async fn make_team(store: &Store, name: &str, by: &Principal) -> Result<Team> {
    checked_name(name)?;
    let new = Team {
        id: ulid::Ulid::generate().to_string().to_ascii_lowercase(),
        name: name.to_owned(),
        created_at: Timestamp::now(),
        created_by: by.who.clone(),
    };
    change(store, move |people| {
        let directory = people.directory();
        if directory.team_id(&new.name).is_some() || new.name == DEFAULT_TEAM {
            return Err(PeopleError::Taken(new.name));
        }
        if directory.teams().count() >= PEOPLE_MAX {
            return Err(PeopleError::TooMany("teams"));
        }
        Ok((vec![PersonChange::Team(new.clone())], new))
    })
    .await
}

/// Removes a team that nothing belongs to, and the roles that are held on it.
///
/// # Errors
/// [`PeopleError`].
pub async fn remove_team(store: &Store, name: &str) -> Result<Team> {
    let name = name.to_owned();
    change(store, move |people| {
        let directory = people.directory();
        let id = directory.team_id(&name).ok_or_else(|| PeopleError::NoTeam(name.clone()))?;
        // the first team is no record: it cannot go
        let old = directory.teams().find(|team| team.id == id).cloned().ok_or(PeopleError::First)?;
        let what = people.belongings(&id);
        if !what.is_empty() {
            let more = if what.len() > 5 { format!(" and {} more", what.len() - 5) } else { String::new() };
            let what = format!("{}{more}", what.iter().take(5).cloned().collect::<Vec<_>>().join(", "));
            return Err(PeopleError::InUse { team: name, what });
        }
        let gone = On::Team(id.clone());
        let holders = directory.users().filter(|user| user.grants.iter().any(|grant| grant.on == gone));
        let without = |user: &User| User {
            grants: user.grants.iter().filter(|grant| grant.on != gone).cloned().collect(),
            ..user.clone()
        };
        let mut changes: Vec<PersonChange> = holders.map(|user| PersonChange::User(without(user))).collect();
        changes.push(PersonChange::NoTeam(id));
        Ok((changes, Team::clone(&old)))
    })
    .await
}

async fn change<T: Send + 'static>(
    store: &Store,
    change: impl FnOnce(&People<'_>) -> Result<(Vec<PersonChange>, T)> + Send + 'static,
) -> Result<T> {
    store.update_people(change).await?
}
