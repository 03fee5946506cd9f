//! What is asked of a git host: its repositories and their manifests, how a pull request stands, and what to show beside a commit.

use futures::StreamExt as _;
use http::Method;
use jiff::Timestamp;
use serde::Deserialize;
use sigil_core::forge::{CommitStatus, Kind, Repository, next_page};

use super::call::{Asked, Reply, host};
use super::{Account, ForgeError, Forges, Held, Result, token};

/// Repositories of one answer, at most.
pub const REPOSITORIES_MAX: usize = 2000;
/// Pages of a host's list, at most: one that names itself as the next would never end.
const PAGES_MAX: usize = 100;
/// Repositories whose root is looked at, at once.
const AT_ONCE: usize = 6;
/// Files that describe a server, the first goes before the next (as the agent reads a tree).
const MANIFESTS: [&str; 5] = ["mcp.yaml", "mcp.yml", "smithery.yaml", "smithery.yml", "server.json"];
/// Longest manifest, bytes.
const MANIFEST_MAX: usize = 1 << 20;

/// What a host says of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Who it is there: a user, or the owner of an App's installation.
    pub login: String,
    /// What it may do, in the host's words, where that is told.
    pub rights: String,
    /// Requests left, where that is told.
    pub remaining: Option<u64>,
}

/// A repository of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryInfo {
    /// `owner/name`
    pub path: String,
    /// Where it is cloned from.
    pub url: String,
    /// Not everybody may see it.
    pub private: bool,
    /// Its default branch; empty: it has no commit.
    pub branch: String,
    /// Its manifest's file name; empty: it has none. `None`: it was not looked at.
    pub manifest: Option<String>,
    /// Why it could not be looked at.
    pub trouble: String,
}

/// Repositories of an account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repositories {
    /// By name.
    pub all: Vec<RepositoryInfo>,
    /// There are more.
    pub more: bool,
}

/// A manifest as it stands in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Its name.
    pub file: String,
    /// What it says.
    pub text: String,
}

/// How a pull request (GitLab: merge request) stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestState {
    /// It is neither merged nor closed.
    pub open: bool,
    /// Its newest commit.
    pub commit: String,
}

#[derive(Deserialize)]
struct Hub {
    full_name: String,
    clone_url: String,
    #[serde(default)]
    private: bool,
    #[serde(default)]
    default_branch: Option<String>,
    #[serde(default)]
    empty: bool,
}

#[derive(Deserialize)]
struct Installed {
    repositories: Vec<Hub>,
}

#[derive(Deserialize)]
struct Lab {
    path_with_namespace: String,
    http_url_to_repo: String,
    #[serde(default)]
    visibility: String,
    #[serde(default)]
    default_branch: Option<String>,
}

#[derive(Deserialize)]
struct File {
    name: String,
    #[serde(default, rename = "type")]
    kind: String,
}

impl From<Hub> for RepositoryInfo {
    fn from(hub: Hub) -> Self {
        let branch = hub.default_branch.filter(|_| !hub.empty).unwrap_or_default();
        Self {
            path: hub.full_name,
            url: hub.clone_url,
            private: hub.private,
            branch,
            manifest: None,
            trouble: String::new(),
        }
    }
}

impl From<Lab> for RepositoryInfo {
    fn from(lab: Lab) -> Self {
        Self {
            path: lab.path_with_namespace,
            url: lab.http_url_to_repo,
            private: lab.visibility != "public",
            branch: lab.default_branch.unwrap_or_default(),
            manifest: None,
            trouble: String::new(),
        }
    }
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// Repositories of an account's host, by address.
fn repository(account: &Account, path: &str) -> Result<Repository> {
    let url = format!("{}/{}", account.url, path.trim_matches('/'));
    Repository::of(&url).ok_or_else(|| ForgeError::NotFound(url, account.name.to_string()))
}

impl Forges {
    /// Asks an account's host who it is.
    ///
    /// # Errors
    /// [`ForgeError`].
    pub async fn check(&self, name: &str) -> Result<Checked> {
        #[derive(Deserialize)]
        struct User {
            #[serde(alias = "username")]
            login: String,
        }
        #[derive(Deserialize)]
        struct Installation {
            account: User,
            #[serde(default)]
            permissions: std::collections::BTreeMap<String, String>,
        }
        let held = self.held(name)?;
        let remaining = |reply: &Reply| reply.headers.get("x-ratelimit-remaining")?.to_str().ok()?.parse().ok();
        if let Some(app) = held.account.app {
            let jwt = token::jwt(&held.account, app, &held.value, Timestamp::now())?;
            let reply = self.installation(&held, app, &jwt).await?;
            let found: Installation = reply.json(&held)?;
            // that it gives tokens is what it is for
            self.forget_token(name);
            self.token(&held).await?;
            let rights = found.permissions.iter().map(|(what, how)| format!("{what}:{how}")).collect::<Vec<_>>();
            return Ok(Checked { login: found.account.login, rights: rights.join(" "), remaining: remaining(&reply) });
        }
        let reply = self.ask(&held, Asked::get(format!("{}/user", held.account.api()), "check")).await?;
        let user: User = reply.json(&held)?;
        let rights = reply.headers.get("x-oauth-scopes").and_then(|v| v.to_str().ok()).unwrap_or_default();
        Ok(Checked { login: user.login, rights: rights.to_owned(), remaining: remaining(&reply) })
    }

    /// Repositories that an account may see, at most `limit` whose name holds `filter`; with `manifests`, each with whether it
    /// has one.
    ///
    /// # Errors
    /// [`ForgeError`]. Of a single repository that cannot be looked at, its own entry tells.
    pub async fn repositories(&self, name: &str, filter: &str, limit: usize, manifests: bool) -> Result<Repositories> {
        let held = self.held(name)?;
        let (api, kind) = (held.account.api(), held.account.kind);
        let limit = limit.clamp(1, REPOSITORIES_MAX);
        let first = match (kind, held.account.app) {
            (Kind::GitHub | Kind::Enterprise, Some(_)) => "installation/repositories?per_page=100",
            (Kind::GitHub | Kind::Enterprise, None) => "user/repos?per_page=100&sort=full_name",
            (Kind::Gitea, _) => "user/repos?limit=50",
            (Kind::GitLab, _) => "projects?membership=true&simple=true&order_by=path&sort=asc&per_page=100",
        };
        let filter = filter.to_ascii_lowercase();
        let mut found = Repositories::default();
        let mut next = Some(format!("{api}/{first}"));
        for _ in 0..PAGES_MAX {
            let Some(url) = next.take() else { break };
            let reply = self.ask(&held, Asked::get(url, "list")).await?;
            next = reply.link.as_deref().and_then(|link| next_page(link, &api));
            let page: Vec<RepositoryInfo> = match (kind, held.account.app) {
                (Kind::GitLab, _) => reply.json::<Vec<Lab>>(&held)?.into_iter().map(Into::into).collect(),
                (_, Some(_)) => reply.json::<Installed>(&held)?.repositories.into_iter().map(Into::into).collect(),
                (_, None) => reply.json::<Vec<Hub>>(&held)?.into_iter().map(Into::into).collect(),
            };
            let ours = |one: &RepositoryInfo| {
                let fits = self.fits(&held.account, &one.url);
                fits && one.path.to_ascii_lowercase().contains(&filter)
            };
            found.all.extend(page.into_iter().filter(ours));
            if found.all.len() > limit {
                break;
            }
        }
        found.more = found.all.len() > limit || next.is_some();
        found.all.truncate(limit);
        found.all.sort_by(|a, b| a.path.cmp(&b.path));
        if manifests {
            self.look_for_manifests(&held, &mut found.all).await?;
        }
        Ok(found)
    }

    /// Whether an account with owners is for a repository of its host.
    fn fits(&self, account: &Account, url: &str) -> bool {
        account.owners.is_empty() || sigil_core::forge::account_for(std::slice::from_ref(account), url).is_some()
    }

    async fn look_for_manifests(&self, held: &Held, all: &mut [RepositoryInfo]) -> Result<()> {
        let paths: Vec<(usize, String)> = all.iter().map(|one| one.path.clone()).enumerate().collect();
        let empty = |at: usize| all.get(at).is_some_and(|one| one.branch.is_empty());
        let (without, with): (Vec<_>, Vec<_>) = paths.into_iter().partition(|(at, _)| empty(*at));
        for (at, _) in without {
            all[at].manifest = Some(String::new());
        }
        let looks = with.into_iter().map(|(at, path)| async move { (at, self.root(held, &path, None).await) });
        let mut looks = futures::stream::iter(looks).buffer_unordered(AT_ONCE);
        while let Some((at, looked)) = looks.next().await {
            match looked {
                Ok(files) => all[at].manifest = Some(manifest_of(&files).unwrap_or_default().to_owned()),
                // an answer with holes that nobody knows of would be worse than none
                Err(error @ (ForgeError::Limited { .. } | ForgeError::Refused { .. })) => return Err(error),
                Err(ForgeError::NotFound(..)) => all[at].manifest = Some(String::new()),
                Err(error) => all[at].trouble = error.to_string(),
            }
        }
        Ok(())
    }

    /// Names of the files at a repository's root.
    async fn root(&self, held: &Held, path: &str, reference: Option<&str>) -> Result<Vec<String>> {
        let (api, kind) = (held.account.api(), held.account.kind);
        let repository = repository(&held.account, path)?.in_path(kind);
        let at = reference.map(|reference| format!("ref={}", encoded(reference))).unwrap_or_default();
        let mut next = Some(match kind {
            Kind::GitLab => format!("{api}/projects/{repository}/repository/tree?per_page=100&{at}"),
            _ => format!("{api}/repos/{repository}/contents?{at}"),
        });
        let mut names = Vec::new();
        for _ in 0..PAGES_MAX {
            let Some(url) = next.take() else { break };
            let reply = self.ask(held, Asked::get(url, "look")).await?;
            next = reply.link.as_deref().and_then(|link| next_page(link, &api));
            let files: Vec<File> = reply.json(held)?;
            names.extend(files.into_iter().filter(|f| matches!(f.kind.as_str(), "file" | "blob")).map(|f| f.name));
        }
        Ok(names)
    }

    /// The manifest of a repository (`owner/name`) at a branch, tag or commit; `None` when it has none.
    ///
    /// # Errors
    /// [`ForgeError`].
    pub async fn manifest(&self, name: &str, path: &str, reference: Option<&str>) -> Result<Option<ManifestFile>> {
        let held = self.held(name)?;
        let (api, kind) = (held.account.api(), held.account.kind);
        let files = self.root(&held, path, reference).await?;
        let Some(file) = manifest_of(&files) else { return Ok(None) };
        let repository = repository(&held.account, path)?.in_path(kind);
        let at = reference.map(|reference| format!("ref={}", encoded(reference)));
        let (url, accept) = match kind {
            // the one that will not go without
            Kind::GitLab => {
                let at = at.unwrap_or_else(|| "ref=HEAD".into());
                (format!("{api}/projects/{repository}/repository/files/{}/raw?{at}", encoded(file)), "*/*")
            }
            Kind::Gitea => (format!("{api}/repos/{repository}/raw/{file}?{}", at.unwrap_or_default()), "*/*"),
            Kind::GitHub | Kind::Enterprise => (
                format!("{api}/repos/{repository}/contents/{file}?{}", at.unwrap_or_default()),
                "application/vnd.github.raw+json",
            ),
        };
        let reply = self.ask(&held, Asked { accept, ..Asked::get(url, "look") }).await?;
        if reply.body.len() > MANIFEST_MAX {
            let why = format!("{file} is longer than {} MiB", MANIFEST_MAX >> 20);
            return Err(ForgeError::Strange { host: host(&held), why });
        }
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        Ok(Some(ManifestFile { file: file.to_owned(), text }))
    }

    /// Shows a status beside a commit of the repository at `url`.
    ///
    /// # Errors
    /// [`ForgeError::NoneFits`] when no account is for it.
    pub async fn show_status(&self, url: &str, commit: &str, status: &CommitStatus) -> Result<()> {
        let (held, repository) = self.held_for(url)?;
        let (api, kind) = (held.account.api(), held.account.kind);
        let path = repository.in_path(kind);
        let word = status.state.word(kind);
        let mut body = serde_json::json!({ "state": word, "description": status.description });
        let label = if kind == Kind::GitLab { "name" } else { "context" };
        body[label] = status.context.clone().into();
        if !status.target.is_empty() {
            body["target_url"] = status.target.clone().into();
        }
        let url = match kind {
            Kind::GitLab => format!("{api}/projects/{path}/statuses/{commit}"),
            _ => format!("{api}/repos/{path}/statuses/{commit}"),
        };
        let asked = Asked { method: Method::POST, body: Some(body), ..Asked::get(url, "status") };
        self.ask(&held, asked).await.map(drop)
    }

    /// How a pull request of the repository at `url` stands.
    ///
    /// # Errors
    /// [`ForgeError::NoneFits`] when no account is for it; [`ForgeError::NotFound`].
    pub async fn request_state(&self, url: &str, number: u64) -> Result<RequestState> {
        #[derive(Deserialize)]
        struct Told {
            state: String,
            #[serde(default)]
            head: Option<Head>,
            #[serde(default)]
            sha: Option<String>,
        }
        #[derive(Deserialize)]
        struct Head {
            sha: String,
        }
        let (held, repository) = self.held_for(url)?;
        let (api, kind) = (held.account.api(), held.account.kind);
        let path = repository.in_path(kind);
        let url = match kind {
            Kind::GitLab => format!("{api}/projects/{path}/merge_requests/{number}"),
            _ => format!("{api}/repos/{path}/pulls/{number}"),
        };
        let told: Told = self.ask(&held, Asked::get(url, "look")).await?.json(&held)?;
        let open = matches!(told.state.as_str(), "open" | "opened" | "locked");
        Ok(RequestState { open, commit: told.head.map(|head| head.sha).or(told.sha).unwrap_or_default() })
    }

    fn held_for(&self, url: &str) -> Result<(Held, Repository)> {
        let none = || ForgeError::NoneFits(url.to_owned());
        let account = self.for_repository(url).ok_or_else(none)?;
        let repository = Repository::of(url).ok_or_else(none)?;
        Ok((self.held(account.name.as_str())?, repository))
    }
}

/// The manifest among a root's files.
fn manifest_of(files: &[String]) -> Option<&'static str> {
    MANIFESTS.into_iter().find(|name| files.iter().any(|file| file == name))
}
