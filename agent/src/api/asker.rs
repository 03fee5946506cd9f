//! Who calls, and whether that one may do to *this* what the call does: the one place where a role meets what it is held on.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sigil_core::model::Deployment;
use sigil_core::rights::{DEFAULT_TEAM, Directory, Held, Role, Subject};
use sigil_protocol::v1;
use tokio::time::Instant;
use tonic::Status;

use super::status;
use crate::access::{Access, Principal};
use crate::store::{OperationRecord, Store};

/// How often it is looked whether somebody who reads a stream still may.
const AGAIN: Duration = Duration::from_secs(2);

/// A caller whom the guard has let in, and the role that the call takes.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub principal: Principal,
    pub need: Role,
    pub access: Access,
    /// When it is looked again whether a reader still may: kept over the calls of [`Asker::changes`], which a stream that is
    /// never still begins again and again.
    due: Arc<Mutex<Instant>>,
}

impl Deref for Asker {
    type Target = Principal;
    fn deref(&self) -> &Principal {
        &self.principal
    }
}

/// Somebody lacks a role.
pub(super) fn forbidden(who: &str, role: Role, on: &str) -> Status {
    let what = format!("{who} is not {role} of {on}");
    status::refuse("FORBIDDEN", what, "ask an admin of this agent; `sigil info` shows your roles", status::FORBIDDEN)
}

impl Asker {
    pub fn new(principal: Principal, need: Role, access: Access) -> Self {
        Self { principal, need, access, due: Arc::new(Mutex::new(Instant::now() + AGAIN)) }
    }

    fn needs(&self, held: Held, role: Role, on: &str) -> Result<(), Status> {
        if held.may(role) { Ok(()) } else { Err(forbidden(&self.who, role, on)) }
    }

    /// A deployment by name. Who may not even look at it is told that there is none.
    pub fn finds(&self, store: &Store, name: &str) -> Result<Arc<Deployment>, Status> {
        self.finds_for(store, name, self.need)
    }

    /// The same for what takes another role.
    pub fn finds_for(&self, store: &Store, name: &str, role: Role) -> Result<Arc<Deployment>, Status> {
        let found =
            name.parse().ok().and_then(|name| store.by_name(&name)).ok_or_else(|| status::no_deployment(name))?;
        let held = self.rights.on(Subject::of(&found));
        if !held.may(role) && !held.may(Role::Viewer) {
            return Err(status::no_deployment(name));
        }
        self.needs(held, role, &format!("'{name}'"))?;
        Ok(found)
    }

    /// Whether this one may look at a deployment.
    pub fn sees(&self, deployment: &Deployment) -> bool {
        self.rights.on(Subject::of(deployment)).may(Role::Viewer)
    }

    /// Whether this one may look at a row of the table.
    pub fn sees_row(&self, row: &v1::Deployment) -> bool {
        self.rights.on(Subject { name: &row.name, team: &row.team, tags: &row.tags }).may(Role::Viewer)
    }

    /// Whether this one may look at everything.
    pub fn sees_all(&self) -> bool {
        self.rights.everywhere().may(Role::Viewer)
    }

    /// That this one has a role on a team, by the team's id.
    pub fn in_team(&self, id: &str, role: Role) -> Result<(), Status> {
        let on = format!("the team '{}'", self.access.directory().team_name(id));
        self.needs(self.rights.in_team(id), role, &on)
    }

    /// That this one has a role on the whole agent.
    pub fn everywhere(&self, role: Role) -> Result<(), Status> {
        self.needs(self.rights.everywhere(), role, "the whole agent")
    }

    /// The id of a team by its name; without one that of the caller's only team, else of the first.
    pub fn team(&self, name: &str) -> Result<String, Status> {
        let directory: Arc<Directory> = self.access.directory();
        if name.is_empty() {
            return Ok(match self.rights.teams().as_slice() {
                [only] if !self.rights.everywhere().may(Role::Deployer) => (*only).to_owned(),
                _ => DEFAULT_TEAM.to_owned(),
            });
        }
        directory.team_id(name).ok_or_else(|| {
            let hint = "`sigil team ls` lists them";
            status::refuse("NOT_FOUND", format!("no team '{name}'"), hint, status::NOT_FOUND)
        })
    }

    /// What this one may, for showing.
    pub fn grants(&self) -> Vec<v1::RoleGrant> {
        let directory = self.access.directory();
        let show = |(role, on): (Role, &_)| v1::RoleGrant { role: role.to_string(), on: directory.shown(on) };
        self.rights.grants().map(show).collect()
    }

    /// The epoch of a table of which this one sees only what its rights let through: with other rights it is another table.
    pub fn epoch(&self, of: &Arc<str>) -> Arc<str> {
        if self.sees_all() {
            return of.clone();
        }
        let digest = Sha256::digest(format!("{:?}", self.rights));
        Arc::from(format!("{of}-{}", hex::encode(&digest[..8])))
    }

    /// Whether this one may know of an operation: one of its own, or of a deployment that it may look at.
    pub fn sees_operation(&self, store: &Store, operation: &OperationRecord) -> bool {
        let named = || operation.name.parse().ok().and_then(|name| store.by_name(&name));
        let of = operation.deployment.and_then(|id| store.deployment(id)).or_else(named);
        operation.created_by == self.who || of.map_or_else(|| self.sees_all(), |deployment| self.sees(&deployment))
    }

    /// Ends when this one may no longer exactly what it may: whoever reads a stream then asks again. Answers what to say.
    pub async fn changes(&self) -> Status {
        loop {
            let due = *self.due.lock().unwrap_or_else(PoisonError::into_inner);
            tokio::time::sleep_until(due).await;
            match self.access.again(&self.principal) {
                Ok(now) if now.rights == self.rights => {
                    *self.due.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + AGAIN;
                }
                Ok(_) => return status::refuse("RIGHTS_CHANGED", "your roles have changed", "connect again", 5),
                Err(error) => return status::access(&error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{NewToken, Peer, create_token, reveal, revoke_token};

    #[tokio::test]
    async fn a_stream_that_is_never_still_ends_too() {
        let dir = tempfile::tempdir().unwrap();
        let access = Access::new(dir.path());
        let (token, info) = create_token(dir.path(), NewToken::new("a", Role::Viewer)).unwrap();
        let peer = Peer::Tls { address: "192.0.2.1:1".parse().unwrap(), certificate: None };
        let principal = access.principal(&peer, Some(reveal(&token))).unwrap();
        let asker = Asker::new(principal, Role::Viewer, access);
        revoke_token(dir.path(), &info.id).unwrap();
        // each line of a busy log begins to wait anew
        let busy = async {
            loop {
                if let Ok(status) = tokio::time::timeout(Duration::from_millis(50), asker.changes()).await {
                    return status;
                }
            }
        };
        let ended = tokio::time::timeout(AGAIN * 3, busy).await.expect("a revoked key reads on");
        assert_eq!(ended.code(), tonic::Code::Unauthenticated);
    }
}
