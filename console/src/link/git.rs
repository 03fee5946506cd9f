//! Accounts at git hosts, and their repositories.

use jiff::Timestamp;
use serde::Serialize;
use sigil_protocol::v1;

use super::{Link, LinkError, Wire, request_id};

/// An account; never its token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GitAccount {
    /// What it is called here.
    pub name: String,
    /// github, github-enterprise, gitea, gitlab
    pub kind: String,
    /// Its host.
    pub url: String,
    /// Whose repositories it is for; none: all of the host.
    pub owners: Vec<String>,
    /// The GitHub App; `None`: it is a token.
    pub app_id: Option<u64>,
    /// That App's installation.
    pub installation_id: Option<u64>,
    /// When it was added.
    pub added_at: Option<Timestamp>,
    /// By whom.
    pub added_by: String,
}

/// A new one.
#[derive(Clone, Default)]
pub struct NewGitAccount {
    /// What it is to be called.
    pub name: String,
    /// github, github-enterprise, gitea, forgejo, gitlab
    pub kind: String,
    /// Its host; empty: the kind's usual one.
    pub url: String,
    /// Whose repositories it is for.
    pub owners: Vec<String>,
    /// App and installation; `None`: it is a token.
    pub app: Option<(u64, u64)>,
    /// A token, or the App's private key.
    pub secret: Vec<u8>,
}

/// What a host says of an account.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GitAccountState {
    /// The account.
    pub name: String,
    /// Who it is at its host.
    pub login: String,
    /// What it may do, in the host's words.
    pub rights: String,
    /// Requests left.
    pub remaining: Option<i64>,
}

/// A repository.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Repository {
    /// The account that sees it.
    pub account: String,
    /// `owner/name`
    pub repository: String,
    /// As `sigil deploy` takes it.
    pub source: String,
    /// Not everybody may see it.
    pub private: bool,
    /// Its default branch.
    pub branch: String,
    /// Its manifest; empty: none. `None`: it was not looked at.
    pub manifest: Option<String>,
    /// Why it could not be looked at.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trouble: String,
}

fn shown(account: v1::GitAccount) -> GitAccount {
    let number = |n: u64| (n != 0).then_some(n);
    GitAccount {
        name: account.name,
        kind: account.kind,
        url: account.url,
        owners: account.owners,
        app_id: number(account.app_id),
        installation_id: number(account.installation_id),
        added_at: Timestamp::from_microsecond(account.added_at).ok(),
        added_by: account.added_by,
    }
}

impl Link {
    fn git_client(&self) -> v1::git_client::GitClient<Wire> {
        v1::git_client::GitClient::new(self.wire.clone()).max_decoding_message_size(super::MESSAGE_MAX)
    }

    /// Every account.
    pub async fn git_accounts(&self) -> Result<Vec<GitAccount>, LinkError> {
        let reply = self.ask("git ls", self.git_client().accounts(v1::GitAccountsRequest {})).await?;
        Ok(reply.accounts.into_iter().map(shown).collect())
    }

    /// Keeps one.
    pub async fn add_git_account(&self, new: NewGitAccount) -> Result<GitAccount, LinkError> {
        let NewGitAccount { name, kind, url, owners, app, secret } = new;
        let (app_id, installation_id) = app.unwrap_or_default();
        let request_id = request_id();
        let asked = v1::AddGitAccountRequest { request_id, name, kind, url, owners, secret, app_id, installation_id };
        Ok(shown(self.ask("git add", self.git_client().add(asked)).await?))
    }

    /// Forgets one.
    pub async fn remove_git_account(&self, name: &str) -> Result<(), LinkError> {
        let asked = v1::RemoveGitAccountRequest { request_id: request_id(), name: name.to_owned() };
        self.ask("git rm", self.git_client().remove(asked)).await.map(drop)
    }

    /// Has its host asked who it is.
    pub async fn check_git_account(&self, name: &str) -> Result<GitAccountState, LinkError> {
        let asked = v1::NameRequest { name: name.to_owned() };
        let v1::GitAccountState { login, rights, remaining } =
            self.ask("git test", self.git_client().check(asked)).await?;
        Ok(GitAccountState { name: name.to_owned(), login, rights, remaining: (remaining >= 0).then_some(remaining) })
    }

    /// Repositories that one sees, and whether there are more.
    pub async fn repositories(
        &self,
        account: &str,
        filter: &str,
        limit: u32,
        manifests: bool,
    ) -> Result<(Vec<Repository>, bool), LinkError> {
        let (name, filter) = (account.to_owned(), filter.to_owned());
        let asked = v1::RepositoriesRequest { account: name, filter, limit, manifests };
        let reply = self.ask("git repos", self.git_client().repositories(asked)).await?;
        let one = |repository: v1::Repository| Repository {
            account: account.to_owned(),
            source: format!("git+{}", repository.url),
            repository: repository.path,
            private: repository.private,
            branch: repository.branch,
            manifest: repository.looked.then_some(repository.manifest),
            trouble: repository.trouble,
        };
        Ok((reply.repositories.into_iter().map(one).collect(), reply.more))
    }

    /// The manifest of a repository: its file and what it says.
    pub async fn repository_manifest(
        &self,
        account: &str,
        path: &str,
        reference: &str,
    ) -> Result<Option<(String, String)>, LinkError> {
        let (account, path, reference) = (account.to_owned(), path.to_owned(), reference.to_owned());
        let asked = v1::RepositoryManifestRequest { account, path, reference };
        let reply = self.ask("git manifest", self.git_client().manifest(asked)).await?;
        Ok((!reply.file.is_empty()).then_some((reply.file, reply.text)))
    }
}
