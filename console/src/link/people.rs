//! Keys, users, teams and roles: who may what.

use sigil_protocol::v1;

use super::error::LinkError;
use super::view::{Deployment, Key, NewKey, Team, User};
use super::{Link, Wire, convert, request_id};

impl Link {
    fn keys_client(&self) -> v1::keys_client::KeysClient<Wire> {
        v1::keys_client::KeysClient::new(self.wire.clone())
    }

    fn users_client(&self) -> v1::users_client::UsersClient<Wire> {
        v1::users_client::UsersClient::new(self.wire.clone())
    }

    fn teams_client(&self) -> v1::teams_client::TeamsClient<Wire> {
        v1::teams_client::TeamsClient::new(self.wire.clone())
    }

    /// Makes a key. Answers it and its text, which nobody can ask for again.
    pub async fn create_key(&self, new: NewKey) -> Result<(Key, String), LinkError> {
        let request = v1::CreateKeyRequest {
            request_id: request_id(),
            label: new.label,
            role: new.role,
            user: new.user,
            deployments: new.deployments,
            tools: new.tools,
            rate: new.rate,
            concurrency: new.concurrency,
            expires_at: new.expires_at.map_or(0, |at| at.as_microsecond()),
        };
        let reply = self.ask("key create", self.keys_client().create(request)).await?;
        Ok((convert::key(reply.key.unwrap_or_default()), reply.text))
    }

    /// Keys without their text.
    pub async fn keys(&self) -> Result<Vec<Key>, LinkError> {
        let reply = self.ask("key ls", self.keys_client().list(v1::ListKeysRequest {})).await?;
        Ok(reply.keys.into_iter().map(convert::key).collect())
    }

    /// Ends a key, by id or by a label that only one has.
    pub async fn revoke_key(&self, key: &str) -> Result<Key, LinkError> {
        let request = v1::RevokeKeyRequest { request_id: request_id(), key: key.to_owned() };
        Ok(convert::key(self.ask("key revoke", self.keys_client().revoke(request)).await?))
    }

    /// Users and what each may; of those that the caller may know of.
    pub async fn users(&self) -> Result<Vec<User>, LinkError> {
        let reply = self.ask("user ls", self.users_client().list(v1::ListUsersRequest {})).await?;
        Ok(reply.users.into_iter().map(convert::user).collect())
    }

    /// Adds a user, who may nothing yet.
    pub async fn add_user(&self, name: &str) -> Result<User, LinkError> {
        let request = v1::UserRequest { request_id: request_id(), name: name.to_owned() };
        Ok(convert::user(self.ask("user add", self.users_client().add(request)).await?))
    }

    /// Removes a user and revokes the user's keys.
    pub async fn remove_user(&self, name: &str) -> Result<User, LinkError> {
        let request = v1::UserRequest { request_id: request_id(), name: name.to_owned() };
        Ok(convert::user(self.ask("user rm", self.users_client().remove(request)).await?))
    }

    /// Takes what comes from a user again, or nothing of it.
    pub async fn enable_user(&self, name: &str, enabled: bool) -> Result<User, LinkError> {
        let request = v1::EnableUserRequest { request_id: request_id(), name: name.to_owned(), disabled: !enabled };
        Ok(convert::user(self.ask("user", self.users_client().enable(request)).await?))
    }

    /// Gives a role; `on` as a person writes it, empty: everything.
    pub async fn grant_role(&self, user: &str, role: &str, on: &str) -> Result<User, LinkError> {
        let request = grant(user, role, on);
        Ok(convert::user(self.ask("role grant", self.users_client().grant(request)).await?))
    }

    /// Takes roles back; an empty `role` means all on just that.
    pub async fn revoke_role(&self, user: &str, role: &str, on: &str) -> Result<User, LinkError> {
        let request = grant(user, role, on);
        Ok(convert::user(self.ask("role revoke", self.users_client().revoke(request)).await?))
    }

    /// Teams that the caller may know of.
    pub async fn teams(&self) -> Result<Vec<Team>, LinkError> {
        let reply = self.ask("team ls", self.teams_client().list(v1::ListTeamsRequest {})).await?;
        Ok(reply.teams.into_iter().map(convert::team).collect())
    }

    /// Makes a team.
    pub async fn create_team(&self, name: &str) -> Result<Team, LinkError> {
        let request = v1::TeamRequest { request_id: request_id(), name: name.to_owned() };
        Ok(convert::team(self.ask("team create", self.teams_client().create(request)).await?))
    }

    /// Removes a team that has nothing any more.
    pub async fn remove_team(&self, name: &str) -> Result<Team, LinkError> {
        let request = v1::TeamRequest { request_id: request_id(), name: name.to_owned() };
        Ok(convert::team(self.ask("team rm", self.teams_client().remove(request)).await?))
    }

    /// Gives a deployment to another team.
    pub async fn move_deployment(&self, deployment: &str, team: &str) -> Result<Deployment, LinkError> {
        let (deployment, team) = (deployment.to_owned(), team.to_owned());
        let request = v1::MoveRequest { request_id: request_id(), deployment, team };
        Ok(convert::deployment(self.ask("team move", self.teams_client().r#move(request)).await?))
    }
}

fn grant(user: &str, role: &str, on: &str) -> v1::GrantRequest {
    v1::GrantRequest { request_id: request_id(), user: user.to_owned(), role: role.to_owned(), on: on.to_owned() }
}
