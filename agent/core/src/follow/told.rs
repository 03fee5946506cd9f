//! What forges send, each in its own words: pushes and pull requests.

use serde::Deserialize;

use super::{Event, Happened, PullRequest, Push};

/// Commits that forges tell in full at most; with more, files may be missing.
const COMMITS_TOLD: usize = 20;

#[derive(Deserialize)]
struct Commit {
    #[serde(default)]
    added: Vec<String>,
    #[serde(default)]
    modified: Vec<String>,
    #[serde(default)]
    removed: Vec<String>,
}

/// GitHub, Gitea, Forgejo and Gogs say `repository`, GitLab says `project`, Bitbucket `push`.
#[derive(Deserialize)]
struct Told {
    #[serde(default, rename = "ref")]
    reference: String,
    #[serde(default)]
    after: String,
    #[serde(default)]
    deleted: bool,
    commits: Option<Vec<Commit>>,
    total_commits_count: Option<u64>,
    total_commits: Option<u64>,
    #[serde(default)]
    repository: Addresses,
    #[serde(default)]
    project: Addresses,
    push: Option<Changes>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Addresses {
    clone_url: String,
    ssh_url: String,
    git_url: String,
    html_url: String,
    git_http_url: String,
    git_ssh_url: String,
    web_url: String,
    url: String,
    default_branch: Option<String>,
    links: Links,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Links {
    html: Link,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Link {
    href: String,
}

#[derive(Deserialize)]
struct Changes {
    #[serde(default)]
    changes: Vec<Change>,
}

#[derive(Deserialize)]
struct Change {
    new: Option<Branch>,
    old: Option<Branch>,
}

#[derive(Deserialize)]
struct Branch {
    name: String,
}

impl Addresses {
    fn all(&self) -> impl Iterator<Item = &String> {
        let all = [&self.clone_url, &self.ssh_url, &self.git_url, &self.html_url, &self.git_http_url];
        let more = [&self.git_ssh_url, &self.web_url, &self.url, &self.links.html.href];
        all.into_iter().chain(more).filter(|address| !address.is_empty())
    }
}

/// Reads what a forge sent. `event`: its header of that name, if it sent one.
///
/// # Errors
/// It is no JSON of a shape that is known.
pub fn read(event: Option<&str>, body: &[u8]) -> Result<Event, String> {
    match event.map(str::to_ascii_lowercase).as_deref() {
        Some("ping" | "diagnostics:ping") => return Ok(Event::Ping),
        Some("pull_request" | "pull_request_sync" | "merge request hook") => return request(body),
        None | Some("push" | "push hook" | "tag push hook" | "repo:push") => {}
        Some(other) => return Ok(Event::Other(other.to_owned())),
    }
    let told: Told = serde_json::from_slice(body).map_err(|e| format!("the body is no push: {e}"))?;
    let repositories: Vec<String> = told.repository.all().chain(told.project.all()).cloned().collect();
    let default_branch = told.repository.default_branch.or(told.project.default_branch);
    if let Some(push) = told.push {
        let one = |change: Change| {
            let deleted = change.new.is_none();
            let name = change.new.or(change.old)?.name;
            let (repositories, default_branch) = (repositories.clone(), default_branch.clone());
            Some(Push { reference: name, deleted, repositories, default_branch, files: None })
        };
        return Ok(Event::Pushes(push.changes.into_iter().filter_map(one).collect()));
    }
    if told.reference.is_empty() {
        return Err("the body names no branch (`ref`)".into());
    }
    let total = told.total_commits_count.or(told.total_commits);
    let files = told.commits.filter(|commits| {
        let all = total.is_none_or(|total| total == commits.len() as u64);
        // a branch that was moved back or aside tells no commits, and still is another one
        all && !commits.is_empty() && commits.len() < COMMITS_TOLD
    });
    let files = files.map(|commits| {
        commits.into_iter().flat_map(|c| c.added.into_iter().chain(c.modified).chain(c.removed)).collect()
    });
    let gone = !told.after.is_empty() && told.after.bytes().all(|b| b == b'0');
    let deleted = told.deleted || gone;
    Ok(Event::Pushes(vec![Push { reference: told.reference, deleted, repositories, default_branch, files }]))
}

/// GitHub, Gitea and Forgejo say `pull_request`, GitLab `object_attributes`.
#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    action: String,
    pull_request: Option<Pull>,
    object_attributes: Option<Merge>,
    #[serde(default)]
    repository: Addresses,
    #[serde(default)]
    project: Addresses,
}

#[derive(Deserialize)]
struct Pull {
    number: u64,
    head: Side,
    base: Side,
}

#[derive(Deserialize)]
struct Side {
    #[serde(rename = "ref")]
    branch: String,
    sha: String,
    /// Null when a fork was deleted.
    repo: Option<Repo>,
}

#[derive(Deserialize)]
struct Repo {
    full_name: String,
}

#[derive(Deserialize)]
struct Merge {
    iid: u64,
    #[serde(default)]
    action: String,
    target_branch: String,
    source_project_id: Option<u64>,
    target_project_id: Option<u64>,
    last_commit: Option<Last>,
}

#[derive(Deserialize)]
struct Last {
    id: String,
}

fn request(body: &[u8]) -> Result<Event, String> {
    let told: Asked = serde_json::from_slice(body).map_err(|e| format!("the body is no pull request: {e}"))?;
    let repositories: Vec<String> = told.repository.all().chain(told.project.all()).cloned().collect();
    let default_branch = told.repository.default_branch.or(told.project.default_branch);
    let (number, action, base, commit, fork) = match (told.pull_request, told.object_attributes) {
        (Some(pull), _) => {
            let name = |side: &Side| side.repo.as_ref().map(|repo| repo.full_name.to_ascii_lowercase());
            // what does not say that it is from here is from elsewhere
            let own = name(&pull.head).is_some_and(|head| name(&pull.base) == Some(head));
            (pull.number, told.action, pull.base.branch, pull.head.sha, !own)
        }
        (None, Some(merge)) => {
            let own = merge.source_project_id.is_some() && merge.source_project_id == merge.target_project_id;
            let commit = merge.last_commit.map(|last| last.id).unwrap_or_default();
            (merge.iid, merge.action, merge.target_branch, commit, !own)
        }
        (None, None) => return Err("the body names no pull request".into()),
    };
    let what = match action.as_str() {
        "opened" | "synchronize" | "synchronized" | "reopened" | "edited" | "open" | "update" | "reopen" => {
            Happened::Open
        }
        "closed" | "close" | "merge" => Happened::Closed,
        other => return Ok(Event::Other(format!("pull request {other}"))),
    };
    let whole = matches!(commit.len(), 40 | 64) && commit.bytes().all(|b| b.is_ascii_hexdigit());
    if !whole {
        return Err(format!("pull request {number} names no whole commit"));
    }
    Ok(Event::Request(PullRequest { number, what, commit, base, repositories, default_branch, fork }))
}
