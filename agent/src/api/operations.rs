//! `Operations`: asking for changes and following them.

use std::sync::Arc;

use futures::stream::BoxStream;
use sigil_core::model::OperationId;
use sigil_core::rights::{Role, Subject};
use sigil_protocol::v1;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::asker::{Asker, forbidden};
use super::status::{self, invalid};
use super::{convert, noted, rules};
use crate::operate::{DeployRequest, Operate, Request as What};
use crate::registry::{Registry, Used};
use crate::store::{OperationRecord, Store};

/// Operations listed when the caller does not say how many, and at most.
const LIST_DEFAULT: u32 = 50;
const LIST_MAX: u32 = 1000;

pub(super) struct OperationsService {
    pub operate: Operate,
    pub store: Store,
    pub registry: Registry,
    pub stop: CancellationToken,
}

fn id(text: &str) -> Result<OperationId, Status> {
    text.parse().map_err(|_| status::no_operation(text))
}

impl OperationsService {
    /// An operation that the caller may know of.
    fn find(&self, asker: &Asker, text: &str) -> Result<Arc<OperationRecord>, Status> {
        let found = self.operate.get(id(text)?).filter(|op| asker.sees_operation(&self.store, op));
        found.ok_or_else(|| status::no_operation(text))
    }

    /// What is asked for, when the caller may have it; a new deployment's team is filled in.
    fn admitted(&self, asker: &Asker, what: What) -> Result<What, Status> {
        match what {
            What::Restart { ref name }
            | What::Stop { ref name }
            | What::Start { ref name }
            | What::Scale { ref name, .. }
            | What::Rollback { ref name, .. } => {
                asker.finds_for(&self.store, name, Role::Operator)?;
            }
            What::Remove { ref name } => {
                asker.finds_for(&self.store, name, Role::Deployer)?;
            }
            What::Build { .. } | What::Scan { .. } => {
                if !asker.rights.somewhere().may(Role::Deployer) {
                    return Err(forbidden(&asker.who, Role::Deployer, "anything"));
                }
            }
            What::Deploy(request) => return self.deploys(asker, *request),
        }
        Ok(what)
    }

    fn deploys(&self, asker: &Asker, request: DeployRequest) -> Result<What, Status> {
        let name = request.name.as_deref().and_then(|name| name.parse().ok());
        let there = name.as_ref().and_then(|name| self.store.by_name(name));
        let waives = !request.waivers.is_empty();
        if there.is_some() {
            // there is no saying whose it is to somebody who may not look: a name that is taken is all that is told
            let name = request.name.as_deref().unwrap_or_default();
            let mine = asker.finds_for(&self.store, name, Role::Deployer);
            mine.map_err(|status| if status.code() == tonic::Code::NotFound { taken(name) } else { status })?;
            if waives {
                asker.finds_for(&self.store, name, Role::Admin)?;
            }
            return Ok(What::Deploy(Box::new(request)));
        }
        let team = asker.team(request.team.as_deref().unwrap_or_default())?;
        // what a source calls itself is known when it is there: it may be the name of somebody else's
        let anyones = asker.rights.everywhere().may(Role::Deployer);
        let held = match &name {
            Some(name) => asker.rights.on(Subject { name: name.as_str(), team: &team, tags: &[] }),
            None if !anyones && request.name.is_none() => {
                return Err(invalid("whose deployment this is to be is not known without a name", "say --name NAME"));
            }
            None if request.team.is_none() => asker.rights.everywhere(),
            None => asker.rights.in_team(&team),
        };
        let role = if waives { Role::Admin } else { Role::Deployer };
        if !held.may(role) {
            let directory = asker.access.directory();
            return Err(forbidden(&asker.who, role, &format!("the team '{}'", directory.team_name(&team))));
        }
        // without a name it may turn out to be a new release of one that is in another team
        let team = (name.is_some() || request.team.is_some()).then_some(team);
        Ok(What::Deploy(Box::new(DeployRequest { team, ..request })))
    }
}

fn taken(name: &str) -> Status {
    let hint = "choose another with --name";
    status::refuse("NAME_TAKEN", format!("the name '{name}' is taken"), hint, status::USAGE)
}

#[tonic::async_trait]
impl v1::operations_server::Operations for OperationsService {
    async fn start(&self, request: Request<v1::StartRequest>) -> Result<Response<v1::Operation>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        let package = match &asked.what {
            Some(v1::start_request::What::Deploy(deploy)) => deploy.package.clone(),
            _ => String::new(),
        };
        let (what, request_id) = convert::start_request(asked)?;
        note.request(&request_id);
        let asked = what.told();
        note.what(asked.what);
        note.target(&asked.target, "");
        asked.facts.iter().for_each(|(key, value)| note.after(key, value));
        // a repeat is answered as it was the first time, also when what was asked for is done and gone
        let first = self.store.operation_of_request(&request_id).filter(|op| op.created_by == caller.who);
        let op = match first {
            Some(first) => first,
            None => {
                let what = self.admitted(&caller, what)?;
                let begun = self.operate.start(what, &request_id, &caller.who).await;
                let begun = begun.map_err(|f| status::failure(&f))?;
                let name = package.split('@').next().unwrap_or_default();
                if !name.is_empty()
                    && let Err(error) = self.registry.note_use(name, Used::Deployed).await
                {
                    tracing::debug!(%error, package = name, "its use is not counted");
                }
                begun
            }
        };
        note.target(&op.name, op.deployment.map(|id| id.to_string()).unwrap_or_default());
        note.operation(op.id);
        Ok(Response::new(convert::operation(&op)))
    }

    async fn get(&self, request: Request<v1::OperationId>) -> Result<Response<v1::Operation>, Status> {
        let asker = rules::caller(&request)?;
        let op = self.find(&asker, &request.into_inner().id)?;
        Ok(Response::new(convert::operation(&op)))
    }

    async fn list(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsReply>, Status> {
        let asker = rules::caller(&request)?;
        let asked = request.into_inner();
        let name = (!asked.deployment.is_empty()).then_some(asked.deployment.as_str());
        let limit = if asked.limit == 0 { LIST_DEFAULT } else { asked.limit.min(LIST_MAX) };
        let found = self.operate.list(name, usize::MAX);
        let seen = found.iter().filter(|op| asker.sees_operation(&self.store, op));
        Ok(Response::new(v1::ListOperationsReply {
            operations: seen.take(limit as usize).map(|op| convert::operation(op)).collect(),
        }))
    }

    type FollowStream = BoxStream<'static, Result<v1::OperationEvent, Status>>;

    async fn follow(&self, request: Request<v1::FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let asker = rules::caller(&request)?;
        let asked = request.into_inner();
        self.find(&asker, &asked.id)?;
        let follow = self.operate.follow(id(&asked.id)?, asked.after).ok_or_else(|| status::no_operation(&asked.id))?;
        let events = futures::stream::unfold(Some((follow, self.stop.clone(), asker)), |state| async {
            let (mut follow, stop, asker) = state?;
            tokio::select! {
                event = follow.next() => event.map(|event| (Ok(convert::event(event)), Some((follow, stop, asker)))),
                () = stop.cancelled() => Some((Err(status::stopping()), None)),
                status = asker.changes() => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn cancel(&self, request: Request<v1::OperationId>) -> Result<Response<v1::Operation>, Status> {
        let asker = rules::caller(&request)?;
        let note = noted::note(&request);
        let text = request.into_inner().id;
        note.operation(&text);
        let op = self.find(&asker, &text)?;
        note.target(&op.name, op.deployment.map(|id| id.to_string()).unwrap_or_default());
        note.before("state", &op.state);
        if op.created_by != asker.who {
            match op.name.as_str() {
                "" => asker.everywhere(asker.need)?,
                name => drop(asker.finds(&self.store, name)?),
            }
        }
        let op = self.operate.cancel(id(&text)?).await.map_err(|f| status::failure(&f))?;
        note.after("state", &op.state);
        Ok(Response::new(convert::operation(&op)))
    }
}
