//! `Users`: who may what.

use sigil_core::rights::{On, RightsError, Role, User};
use sigil_protocol::v1;
use tonic::{Request, Response, Status};

use super::status::{self, invalid, refuse};
use super::{convert, noted, rules};
use crate::access::{self, Access, PeopleError};
use crate::store::Store;

pub(super) struct UsersService {
    pub access: Access,
    pub store: Store,
}

pub(super) fn refused(error: &PeopleError) -> Status {
    match error {
        PeopleError::NoUser(_) | PeopleError::NoTeam(_) | PeopleError::NoGrant { .. } => {
            refuse("NOT_FOUND", error.to_string(), error.hint(), status::NOT_FOUND)
        }
        PeopleError::NotYours(_) => refuse("FORBIDDEN", error.to_string(), error.hint(), status::FORBIDDEN),
        PeopleError::Taken(_) => refuse("NAME_TAKEN", error.to_string(), error.hint(), status::USAGE),
        PeopleError::TooMany(_) => refuse("TOO_MANY", error.to_string(), error.hint(), 1),
        PeopleError::Store(error) => status::store(error),
        PeopleError::InUse { .. } | PeopleError::First => refuse("IN_USE", error.to_string(), error.hint(), 1),
        PeopleError::Rights(_) | PeopleError::Pattern(_) => invalid(error.to_string(), error.hint()),
    }
}

fn read(text: &str) -> Result<On, Status> {
    let read = if text.is_empty() { Ok(On::All) } else { text.parse() };
    read.map_err(|e: RightsError| invalid(e.to_string(), e.hint()))
}

fn role(text: &str) -> Result<Role, Status> {
    text.parse().map_err(|e: RightsError| invalid(e.to_string(), e.hint()))
}

impl UsersService {
    fn grants(&self, user: &User) -> Vec<v1::RoleGrant> {
        let directory = self.access.directory();
        let show = |grant: &sigil_core::rights::Grant| v1::RoleGrant {
            role: grant.role.to_string(),
            on: directory.shown(&grant.on),
        };
        user.grants.iter().map(show).collect()
    }

    fn show(&self, user: &User, keys: u32) -> v1::UserInfo {
        v1::UserInfo {
            id: user.id.clone(),
            name: user.name.clone(),
            disabled: user.disabled,
            grants: self.grants(user),
            created_at: convert::time(user.created_at),
            created_by: user.created_by.clone(),
            keys,
        }
    }

    fn words(&self, user: &User) -> String {
        let all: Vec<String> = self.grants(user).into_iter().map(|g| format!("{} on {}", g.role, g.on)).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    }

    /// Keys of each user, by the text that they know their user by.
    async fn keys(&self) -> Result<Vec<String>, Status> {
        let dir = self.access.data_dir().to_owned();
        let read = tokio::task::spawn_blocking(move || access::list_tokens(&dir)).await;
        let all = read.map_err(|e| refuse("INTERNAL", e.to_string(), "look at the agent's log", 1))?;
        let all = all.map_err(|e| status::access(&e))?;
        Ok(all.into_iter().map(|token| token.user).collect())
    }
}

#[tonic::async_trait]
impl v1::users_server::Users for UsersService {
    async fn list(&self, request: Request<v1::ListUsersRequest>) -> Result<Response<v1::ListUsersReply>, Status> {
        let caller = rules::caller(&request)?;
        // who may give roles must see to whom; others see themselves
        let all = caller.sees_all() || caller.rights.somewhere().may(Role::Admin);
        let keys = self.keys().await?;
        let directory = self.access.directory();
        let shown = directory.users().filter(|user| all || user.id == caller.user_id()).map(|user| {
            let count = keys.iter().filter(|of| **of == user.id || **of == user.name).count();
            self.show(user, u32::try_from(count).unwrap_or(u32::MAX))
        });
        let mut users: Vec<v1::UserInfo> = shown.collect();
        users.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(v1::ListUsersReply { users }))
    }

    async fn add(&self, request: Request<v1::UserRequest>) -> Result<Response<v1::UserInfo>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.name, "");
        note.request(convert::request_id(&asked.request_id)?);
        let user = access::add_user(&self.store, &asked.name, &caller).await.map_err(|e| refused(&e))?;
        note.target(&user.name, &user.id);
        tracing::info!(who = caller.who, user = user.name, "a user was added");
        Ok(Response::new(self.show(&user, 0)))
    }

    async fn remove(&self, request: Request<v1::UserRequest>) -> Result<Response<v1::UserInfo>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.name, "");
        note.request(convert::request_id(&asked.request_id)?);
        let there = self.access.directory().user(&asked.name).map(|(user, _)| user.clone());
        let Some(there) = there else { return Err(refused(&PeopleError::NoUser(asked.name))) };
        note.target(&there.name, &there.id);
        note.before("roles", self.words(&there));
        // its keys first: they must never be good for more because their user is gone
        let (dir, names) = (self.access.data_dir().to_owned(), [there.id.clone(), there.name.clone()]);
        let ended = tokio::task::spawn_blocking(move || access::revoke_all_of(&dir, &[&names[0], &names[1]])).await;
        self.access.forget();
        let ended = ended.map_err(|e| refuse("INTERNAL", e.to_string(), "look at the agent's log", 1))?;
        let ended = ended.map_err(|e| status::access(&e))?;
        note.before("keys", ended.iter().map(|key| key.label.clone()).collect::<Vec<_>>().join(", "));
        let gone = access::remove_user(&self.store, &there.id).await.map_err(|e| refused(&e))?;
        tracing::info!(who = caller.who, user = gone.name, keys = ended.len(), "a user was removed");
        Ok(Response::new(self.show(&gone, u32::try_from(ended.len()).unwrap_or(u32::MAX))))
    }

    async fn enable(&self, request: Request<v1::EnableUserRequest>) -> Result<Response<v1::UserInfo>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.name, "");
        note.request(convert::request_id(&asked.request_id)?);
        note.after("disabled", asked.disabled);
        let user = access::set_disabled(&self.store, &asked.name, asked.disabled).await.map_err(|e| refused(&e))?;
        note.target(&user.name, &user.id);
        tracing::info!(who = caller.who, user = user.name, disabled = user.disabled, "a user was changed");
        Ok(Response::new(self.show(&user, 0)))
    }

    async fn grant(&self, request: Request<v1::GrantRequest>) -> Result<Response<v1::UserInfo>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.user, "");
        note.request(convert::request_id(&asked.request_id)?);
        let (role, on) = (role(&asked.role)?, read(&asked.on)?);
        let done = access::grant(&self.store, &asked.user, role, on, &caller).await;
        let (before, after) = done.map_err(|e| refused(&e))?;
        note.target(&after.name, &after.id);
        note.before("roles", self.words(&before));
        note.after("roles", self.words(&after));
        tracing::info!(who = caller.who, user = after.name, role = asked.role, on = asked.on, "a role was given");
        Ok(Response::new(self.show(&after, 0)))
    }

    async fn revoke(&self, request: Request<v1::GrantRequest>) -> Result<Response<v1::UserInfo>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.user, "");
        note.request(convert::request_id(&asked.request_id)?);
        let which = if asked.role.is_empty() { None } else { Some(role(&asked.role)?) };
        let done = access::revoke(&self.store, &asked.user, which, read(&asked.on)?, &caller).await;
        let (before, after) = done.map_err(|e| refused(&e))?;
        note.target(&after.name, &after.id);
        note.before("roles", self.words(&before));
        note.after("roles", self.words(&after));
        tracing::info!(who = caller.who, user = after.name, role = asked.role, on = asked.on, "a role was taken back");
        Ok(Response::new(self.show(&after, 0)))
    }
}
