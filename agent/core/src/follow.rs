//! Following a repository: what a push says, in the words of each forge, and whether it is about a deployment.

use globset::{Glob, GlobSetBuilder};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Shortest time between two looks at a repository, seconds.
pub const EVERY_MIN: u32 = 30;
/// Longest, seconds: a day.
pub const EVERY_MAX: u32 = 86_400;
/// Patterns of paths.
pub const PATHS_MAX: usize = 32;

/// That a deployment is to be what its repository's branch is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// Pushes count that touch one of these (globs from the repository's root); none: all do.
    #[serde(default)]
    pub paths: Vec<String>,
    /// It is looked at so often, seconds; 0: it is told.
    pub every: u32,
    /// Signed pushes are listened to.
    pub webhook: bool,
    /// Who wanted it, for people.
    pub by: String,
    /// The id of that user: deploys are that one's, and need the right still. `None`: a user of the host, or a key of nobody.
    #[serde(default)]
    pub user: Option<String>,
    /// Since when.
    pub at: Timestamp,
}

/// What is wrong with a wish to follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// Neither.
    #[error("neither looking nor listening is asked for")]
    Nothing,
    /// Too often, or too seldom.
    #[error("{0} s is not between {EVERY_MIN} s and {EVERY_MAX} s")]
    Every(u32),
    /// No glob.
    #[error("'{0}' is no pattern of paths: {1}")]
    Path(String, String),
    /// What is looked at tells no files.
    #[error("patterns of paths are for pushes: looking at a repository does not tell which files changed")]
    Looked,
    /// Too many.
    #[error("more than {PATHS_MAX} patterns of paths")]
    Paths,
}

impl FollowError {
    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Nothing => "give --every 5m, --webhook, or both",
            Self::Every(_) => "write --every 5m",
            Self::Looked => "leave out --every, or --path",
            Self::Path(..) | Self::Paths => "write --path 'server/**'",
        }
    }
}

impl Follow {
    /// Whether it can be kept.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn check(&self) -> Result<(), FollowError> {
        if self.every == 0 && !self.webhook {
            return Err(FollowError::Nothing);
        }
        if self.every != 0 && !(EVERY_MIN..=EVERY_MAX).contains(&self.every) {
            return Err(FollowError::Every(self.every));
        }
        if self.paths.len() > PATHS_MAX {
            return Err(FollowError::Paths);
        }
        if self.every > 0 && !self.paths.is_empty() {
            return Err(FollowError::Looked);
        }
        for path in &self.paths {
            Glob::new(path).map_err(|e| FollowError::Path(path.clone(), e.kind().to_string()))?;
        }
        Ok(())
    }

    /// Whether one of these files is looked at.
    fn touches(&self, files: &[String]) -> bool {
        let mut set = GlobSetBuilder::new();
        self.paths.iter().filter_map(|path| Glob::new(path).ok()).for_each(|glob| {
            set.add(glob);
        });
        self.paths.is_empty() || set.build().is_ok_and(|set| files.iter().any(|file| set.is_match(file)))
    }

    /// Whether a push is about what is followed: a repository and a branch (`None`: its default one). An error says why not.
    ///
    /// # Errors
    /// [`NotForUs`].
    pub fn wants(&self, url: &str, reference: Option<&str>, push: &Push) -> Result<(), NotForUs> {
        if !push.repositories.iter().any(|told| same_repository(told, url)) {
            return Err(NotForUs::Repository(push.repositories.first().cloned().unwrap_or_default()));
        }
        let short = push.reference.strip_prefix("refs/heads/").or_else(|| push.reference.strip_prefix("refs/tags/"));
        let short = short.unwrap_or(&push.reference);
        let wanted = reference.or(push.default_branch.as_deref());
        if wanted.is_some_and(|wanted| wanted != short && wanted != push.reference) {
            return Err(NotForUs::Branch(short.to_owned()));
        }
        if push.deleted {
            return Err(NotForUs::Deleted(short.to_owned()));
        }
        match &push.files {
            Some(files) if !self.touches(files) => Err(NotForUs::Paths(files.len())),
            _ => Ok(()),
        }
    }
}

/// Why a push changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotForUs {
    /// Of another repository.
    #[error("it is about another repository ({0})")]
    Repository(String),
    /// Of another branch.
    #[error("it is about another branch ({0})")]
    Branch(String),
    /// The branch is gone.
    #[error("the branch {0} was deleted")]
    Deleted(String),
    /// It changes nothing that is looked at.
    #[error("none of its {0} files is looked at")]
    Paths(usize),
}

/// A push, as a forge tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Push {
    /// `refs/heads/main`, or a bare name.
    pub reference: String,
    /// The branch is gone.
    pub deleted: bool,
    /// The repository's addresses.
    pub repositories: Vec<String>,
    /// Its default branch, where that is told.
    pub default_branch: Option<String>,
    /// Every file that it touches; `None`: not all are told.
    pub files: Option<Vec<String>>,
}

/// What a forge says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Is anybody there?
    Ping,
    /// Branches moved.
    Pushes(Vec<Push>),
    /// Something else, in the forge's word.
    Other(String),
}

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

/// Whether two addresses are of one repository, by whatever way it is reached: host (without port and user) and path.
pub fn same_repository(a: &str, b: &str) -> bool {
    fn parts(url: &str) -> Option<(String, String)> {
        let (host, path) = match url.split_once("://") {
            Some(("file", path)) => ("", path),
            Some((_, rest)) => rest.split_once('/')?,
            // git@host:org/repo
            None => url.split_once(':')?,
        };
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let host = host.split_once(':').map_or(host, |(host, _)| host).to_ascii_lowercase();
        let path = path.trim_matches('/').trim_end_matches(".git").trim_matches('/');
        // forges take a path in any case
        (!path.is_empty()).then(|| (host, path.to_ascii_lowercase()))
    }
    parts(a).is_some_and(|a| parts(b) == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(paths: &[&str]) -> Follow {
        let paths = paths.iter().map(|p| (*p).to_owned()).collect();
        Follow { paths, every: 0, webhook: true, by: "ada".into(), user: None, at: Timestamp::UNIX_EPOCH }
    }

    fn pushes(event: Option<&str>, body: &str) -> Vec<Push> {
        match read(event, body.as_bytes()).unwrap() {
            Event::Pushes(pushes) => pushes,
            other => panic!("{other:?}"),
        }
    }

    const GITHUB: &str = r#"{"ref":"refs/heads/main","before":"aa","after":"bb","deleted":false,
        "repository":{"full_name":"Acme/Time","clone_url":"https://github.com/Acme/Time.git","ssh_url":"git@github.com:Acme/Time.git","html_url":"https://github.com/Acme/Time","default_branch":"main"},
        "commits":[{"added":["server/a.py"],"modified":[],"removed":["README.md"]}]}"#;

    #[test]
    fn each_forge_says_it_in_its_words() {
        let github = &pushes(Some("push"), GITHUB)[0];
        assert_eq!(github.files.as_deref(), Some(&["server/a.py".to_owned(), "README.md".to_owned()][..]));
        let gitlab = r#"{"object_kind":"push","ref":"refs/heads/main","after":"bb","project":{"git_http_url":"https://gitlab.example/acme/time.git","git_ssh_url":"git@gitlab.example:acme/time.git","web_url":"https://gitlab.example/acme/time","default_branch":"main"},"total_commits_count":40,"commits":[{"added":["x"],"modified":[],"removed":[]}]}"#;
        let gitlab = &pushes(Some("Push Hook"), gitlab)[0];
        assert_eq!(gitlab.files, None, "not all commits are told");
        assert_eq!(follow(&["server/**"]).wants("ssh://git@gitlab.example:22/acme/time", None, gitlab), Ok(()));
        let bitbucket = r#"{"push":{"changes":[{"new":{"name":"main","type":"branch"},"old":null},{"new":null,"old":{"name":"old"}}]},"repository":{"links":{"html":{"href":"https://bitbucket.org/acme/time"}}}}"#;
        let bitbucket = pushes(Some("repo:push"), bitbucket);
        assert_eq!((bitbucket.len(), bitbucket[1].deleted, bitbucket[0].reference.as_str()), (2, true, "main"));
        assert_eq!(read(Some("ping"), b"{}"), Ok(Event::Ping));
        assert_eq!(read(Some("issues"), b"{}"), Ok(Event::Other("issues".into())));
        for bad in ["", "[]", "{}", "{\"ref\":7}"] {
            assert!(read(None, bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_is_followed_counts() {
        let push = pushes(Some("push"), GITHUB).remove(0);
        let url = "https://github.com/acme/time";
        assert_eq!(follow(&[]).wants(url, None, &push), Ok(()));
        assert_eq!(follow(&["server/**"]).wants(url, Some("main"), &push), Ok(()));
        assert_eq!(follow(&["docs/**"]).wants(url, Some("main"), &push), Err(NotForUs::Paths(2)));
        assert_eq!(follow(&[]).wants(url, Some("dev"), &push), Err(NotForUs::Branch("main".into())));
        let other = follow(&[]).wants("https://github.com/acme/timer", None, &push);
        assert_eq!(other, Err(NotForUs::Repository("https://github.com/Acme/Time.git".into())));
        let gone = Push { deleted: true, ..push.clone() };
        assert_eq!(follow(&[]).wants(url, None, &gone), Err(NotForUs::Deleted("main".into())));
        let side = Push { reference: "refs/heads/side".into(), ..push };
        assert_eq!(follow(&[]).wants(url, None, &side), Err(NotForUs::Branch("side".into())), "not the default one");
    }

    #[test]
    fn addresses_of_one_repository() {
        let one = "https://github.com/acme/time";
        for same in [
            "git@github.com:acme/time.git",
            "ssh://git@github.com:22/acme/time/",
            "https://u:p@GitHub.com/Acme/time.git",
        ] {
            assert!(same_repository(one, same), "{same}");
        }
        for other in [
            "https://github.com/acme/time2",
            "https://evil.example/acme/time",
            "https://github.com",
            "",
            "file:///acme/time",
        ] {
            assert!(!same_repository(one, other), "{other}");
        }
        assert!(same_repository("file:///srv/git/a.git", "file:///srv/git/a"));
    }

    #[test]
    fn wishes_are_checked() {
        assert_eq!(follow(&["a/**"]).check(), Ok(()));
        assert!(matches!(follow(&["a[/"]).check(), Err(FollowError::Path(..))));
        let nothing = Follow { webhook: false, ..follow(&[]) };
        assert_eq!(nothing.check(), Err(FollowError::Nothing));
        assert_eq!(Follow { every: 5, ..nothing.clone() }.check(), Err(FollowError::Every(5)));
        assert_eq!(Follow { every: 60, ..nothing }.check(), Ok(()));
        assert_eq!(Follow { every: 60, ..follow(&["a"]) }.check(), Err(FollowError::Looked));
    }
}
