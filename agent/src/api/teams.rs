//! `Teams`: deployments and secrets that belong together.

use sigil_core::model::Deployment;
use sigil_core::rights::{DEFAULT_TEAM, On};
use sigil_protocol::v1;
use tonic::{Request, Response, Status};

use super::{convert, noted, rules, status, users};
use crate::access::{self, Access, PeopleError};
use crate::store::Store;

pub(super) struct TeamsService {
    pub access: Access,
    pub store: Store,
    /// A deployment's row.
    pub row: Box<dyn Fn(&Deployment) -> v1::Deployment + Send + Sync>,
}

impl TeamsService {
    fn show(&self, id: &str, name: &str) -> v1::TeamInfo {
        let directory = self.access.directory();
        let mut members: Vec<String> = Vec::new();
        for user in directory.users() {
            let on = |on: &On| matches!(on, On::Team(team) if team == id);
            let roles: Vec<&str> = user.grants.iter().filter(|g| on(&g.on)).map(|g| g.role.as_str()).collect();
            if !roles.is_empty() {
                members.push(format!("{} ({})", user.name, roles.join(", ")));
            }
        }
        members.sort();
        let made = directory.teams().find(|team| team.id == id);
        let deployments = self.store.deployments();
        v1::TeamInfo {
            id: id.to_owned(),
            name: name.to_owned(),
            created_at: made.map_or(0, |team| convert::time(team.created_at)),
            created_by: made.map(|team| team.created_by.clone()).unwrap_or_default(),
            members,
            deployments: deployments.iter().filter(|d| d.team == id).map(|d| d.name.to_string()).collect(),
        }
    }
}

#[tonic::async_trait]
impl v1::teams_server::Teams for TeamsService {
    async fn list(&self, request: Request<v1::ListTeamsRequest>) -> Result<Response<v1::ListTeamsReply>, Status> {
        let caller = rules::caller(&request)?;
        let directory = self.access.directory();
        let first = std::iter::once((DEFAULT_TEAM, DEFAULT_TEAM));
        let all = first.chain(directory.teams().map(|team| (team.id.as_str(), team.name.as_str())));
        let mine = |id: &str| caller.sees_all() || caller.rights.teams().contains(&id);
        let mut teams: Vec<v1::TeamInfo> =
            all.filter(|(id, _)| mine(id)).map(|(id, name)| self.show(id, name)).collect();
        teams.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(v1::ListTeamsReply { teams }))
    }

    async fn create(&self, request: Request<v1::TeamRequest>) -> Result<Response<v1::TeamInfo>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.name, "");
        note.request(convert::request_id(&asked.request_id)?);
        let team = access::make_team(&self.store, &asked.name, &caller).await.map_err(|e| users::refused(&e))?;
        note.target(&team.name, &team.id);
        tracing::info!(who = caller.who, team = team.name, "a team was made");
        Ok(Response::new(self.show(&team.id, &team.name)))
    }

    async fn remove(&self, request: Request<v1::TeamRequest>) -> Result<Response<v1::TeamInfo>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.name, "");
        note.request(convert::request_id(&asked.request_id)?);
        let before = self.access.directory().team_id(&asked.name).map(|id| self.show(&id, &asked.name));
        let team = access::remove_team(&self.store, &asked.name).await.map_err(|e| users::refused(&e))?;
        note.target(&team.name, &team.id);
        let before = before.unwrap_or_default();
        note.before("members", before.members.join(", "));
        tracing::info!(who = caller.who, team = team.name, "a team was removed");
        Ok(Response::new(before))
    }

    async fn r#move(&self, request: Request<v1::MoveRequest>) -> Result<Response<v1::Deployment>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.deployment, "");
        note.request(convert::request_id(&asked.request_id)?);
        let deployment = caller.finds(&self.store, &asked.deployment)?;
        note.target(&asked.deployment, deployment.id);
        let directory = self.access.directory();
        let team =
            directory.team_id(&asked.team).ok_or_else(|| users::refused(&PeopleError::NoTeam(asked.team.clone())))?;
        note.before("team", directory.team_name(&deployment.team));
        note.after("team", directory.team_name(&team));
        let change = move |d: &mut Deployment| {
            d.team = team;
            Ok(())
        };
        let moved = self.store.update(deployment.id, None, "moved to another team", change).await;
        let moved = moved.map_err(|e| status::store(&e))?;
        tracing::info!(who = caller.who, deployment = asked.deployment, team = asked.team, "moved to another team");
        Ok(Response::new((self.row)(&moved)))
    }
}
