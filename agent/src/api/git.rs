//! `Git`: accounts at git hosts, their repositories, and the manifests in these.

use std::time::Duration;

use sigil_core::forge::{Account, App, Kind};
use sigil_core::model::Name;
use sigil_protocol::v1;
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

use super::status::{self, invalid, refuse};
use super::{convert, noted, rules, secrets};
use crate::source::forge::{Forges, Listed};
use crate::store::Store;

/// Repositories of one answer, when nothing is said of it.
const USUAL: usize = 100;
/// Repositories of one answer that are looked at, at most: each is a request more.
const LOOKED_AT: usize = 200;
/// Longest time for a list: a call is cut soon after.
const LONGEST: Duration = Duration::from_secs(25);

pub(super) struct GitService {
    pub forges: Forges,
    pub store: Store,
    /// Makes 'was this asked before' and the change one step.
    pub turn: Mutex<()>,
}

fn shown(listed: Listed) -> v1::GitAccount {
    let Listed { account, by, at } = listed;
    v1::GitAccount {
        name: account.name.to_string(),
        kind: account.kind.to_string(),
        url: account.url,
        owners: account.owners,
        app_id: account.app.map_or(0, |app| app.id),
        installation_id: account.app.map_or(0, |app| app.installation),
        added_at: convert::time(at),
        added_by: by,
    }
}

#[tonic::async_trait]
impl v1::git_server::Git for GitService {
    async fn accounts(&self, _: Request<v1::GitAccountsRequest>) -> Result<Response<v1::GitAccountsReply>, Status> {
        let accounts = self.forges.accounts().into_iter().map(shown).collect();
        Ok(Response::new(v1::GitAccountsReply { accounts }))
    }

    async fn add(&self, request: Request<v1::AddGitAccountRequest>) -> Result<Response<v1::GitAccount>, Status> {
        let (asker, note) = (rules::caller(&request)?, noted::note(&request));
        let asked = request.into_inner();
        note.target(&asked.name, "");
        let value = secrets::value(asked.secret)?;
        let request_id = convert::request_id(&asked.request_id)?;
        note.request(request_id);
        let name: Name = asked.name.parse().map_err(|e: sigil_core::model::BadName| {
            invalid(e.to_string(), "an account is called as a deployment is: a-z, 0-9 and '-', at most 40")
        })?;
        let kind: Kind =
            asked.kind.parse().map_err(|e: sigil_core::forge::BadAccount| invalid(e.to_string(), e.hint()))?;
        let app = match (asked.app_id, asked.installation_id) {
            (0, 0) => None,
            (0, _) | (_, 0) => {
                return Err(invalid("an App has an id and an installation", "give --app-id and --installation"));
            }
            (id, installation) => Some(App { id, installation }),
        };
        let account = Account::new(name, kind, &asked.url, asked.owners, app);
        let account = account.map_err(|e| invalid(e.to_string(), e.hint()))?;
        note.after("kind", account.kind);
        note.after("url", &account.url);
        let _turn = self.turn.lock().await;
        let key = format!("git-add {request_id}");
        if self.store.answer_of_request(&key).is_some() {
            note.after("repeated", "the first answer was given again");
            let there = self.forges.accounts().into_iter().find(|listed| listed.account == account);
            return there
                .map(|listed| Response::new(shown(listed)))
                .ok_or_else(|| refuse("CONFLICT", "it was added, and removed since", "add it anew", 1));
        }
        let listed = self.forges.add(account, value, &asker.who).await.map_err(|e| status::forge(&e))?;
        let kept = self.store.remember_answer(&key, serde_json::Value::Bool(true)).await;
        kept.map_err(|e| status::store(&e))?;
        Ok(Response::new(shown(listed)))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveGitAccountRequest>,
    ) -> Result<Response<v1::RemoveGitAccountReply>, Status> {
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.name, "");
        let request_id = convert::request_id(&asked.request_id)?;
        note.request(request_id);
        let _turn = self.turn.lock().await;
        let key = format!("git-remove {request_id}");
        if self.store.answer_of_request(&key).is_some() {
            note.after("repeated", "the first answer was given again");
            return Ok(Response::new(v1::RemoveGitAccountReply {}));
        }
        self.forges.remove(&asked.name).await.map_err(|e| status::forge(&e))?;
        let kept = self.store.remember_answer(&key, serde_json::Value::Bool(true)).await;
        kept.map_err(|e| status::store(&e))?;
        Ok(Response::new(v1::RemoveGitAccountReply {}))
    }

    async fn check(&self, request: Request<v1::NameRequest>) -> Result<Response<v1::GitAccountState>, Status> {
        noted::note(&request).target(&request.get_ref().name, "");
        let found = self.forges.check(&request.get_ref().name).await.map_err(|e| status::forge(&e))?;
        let remaining = found.remaining.and_then(|left| i64::try_from(left).ok()).unwrap_or(-1);
        Ok(Response::new(v1::GitAccountState { login: found.login, rights: found.rights, remaining }))
    }

    async fn repositories(
        &self,
        request: Request<v1::RepositoriesRequest>,
    ) -> Result<Response<v1::RepositoriesReply>, Status> {
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.account, "");
        let limit = if asked.limit == 0 { USUAL } else { asked.limit as usize };
        if asked.manifests && limit > LOOKED_AT {
            return Err(invalid(
                format!("at most {LOOKED_AT} repositories are looked at in one answer"),
                "say which with --find, or leave out looking for manifests: --no-manifests",
            ));
        }
        let found = self.forges.repositories(&asked.account, &asked.filter, limit, asked.manifests);
        let found = tokio::time::timeout(LONGEST, found).await.map_err(|_| {
            let what = format!("the host did not list everything within {} s", LONGEST.as_secs());
            refuse("TIMEOUT", what, "ask for fewer (--limit, --find), or without manifests (--no-manifests)", 7)
        })?;
        let found = found.map_err(|e| status::forge(&e))?;
        let repositories = found.all.into_iter().map(|one| v1::Repository {
            path: one.path,
            url: one.url,
            private: one.private,
            branch: one.branch,
            looked: one.manifest.is_some(),
            manifest: one.manifest.unwrap_or_default(),
            trouble: one.trouble,
        });
        Ok(Response::new(v1::RepositoriesReply { repositories: repositories.collect(), more: found.more }))
    }

    async fn manifest(
        &self,
        request: Request<v1::RepositoryManifestRequest>,
    ) -> Result<Response<v1::RepositoryManifestReply>, Status> {
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.account, "");
        note.after("repository", &asked.path);
        let reference = Some(asked.reference.as_str()).filter(|reference| !reference.is_empty());
        let found = self.forges.manifest(&asked.account, &asked.path, reference).await;
        let found = found.map_err(|e| status::forge(&e))?;
        let (file, text) = found.map_or_else(Default::default, |found| (found.file, found.text));
        Ok(Response::new(v1::RepositoryManifestReply { file, text }))
    }
}
