//! Following a repository: what a push says, in the words of each forge, and whether it is about a deployment.

mod told;

use globset::{Glob, GlobBuilder, GlobSetBuilder};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::forge::PREVIEWS_MAX;
use crate::model::DeploymentId;
pub use told::read;

/// Shortest time between two looks at a repository, seconds.
pub const EVERY_MIN: u32 = 30;
/// Longest, seconds: a day.
pub const EVERY_MAX: u32 = 86_400;
/// Patterns of paths, and of branches.
pub const PATHS_MAX: usize = 32;

/// That a deployment is to be what its repository's branch is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// Pushes count that touch one of these (globs from the repository's root); none: all do.
    #[serde(default)]
    pub paths: Vec<String>,
    /// Pushes count that are to such a branch (globs), and what was pushed last is deployed; none: to the branch that it was
    /// deployed from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<String>,
    /// Each pull request to such a branch has a deployment of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previews: Option<Previews>,
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

/// How pull requests are previewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previews {
    /// So many at once, at most.
    pub max: u32,
    /// Those of strangers, too: code from a fork is built and run.
    pub forks: bool,
}

/// Whose preview a deployment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previewed {
    /// The deployment whose repository was asked to change.
    pub of: DeploymentId,
    /// The pull request.
    pub number: u64,
    /// It comes from a fork: it gets nothing of the deployment's own.
    pub fork: bool,
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
    /// No glob.
    #[error("'{0}' is no pattern of branches: {1}")]
    Branch(String, String),
    /// A repository is looked at for one branch.
    #[error("patterns of branches are for pushes: looking at a repository is for the branch it was deployed from")]
    LookedBranch,
    /// Too many.
    #[error("more than {PATHS_MAX} patterns of branches")]
    Branches,
    /// Previews are told of.
    #[error("previews need --webhook: pull requests are told by the forge")]
    Untold,
    /// None, or too many.
    #[error("{0} previews at once is not between 1 and {PREVIEWS_MAX}")]
    Previews(u32),
}

impl FollowError {
    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Nothing => "give --every 5m, --webhook, or both",
            Self::Every(_) => "write --every 5m",
            Self::Looked => "leave out --every, or --path",
            Self::Path(..) | Self::Paths => "write --path 'server/**'",
            Self::Branch(..) | Self::Branches => "write --branch 'release/*'",
            Self::LookedBranch => "leave out --every, or --branch",
            Self::Untold => "add --webhook",
            Self::Previews(_) => "write --previews-max 5",
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
        if self.branches.len() > PATHS_MAX {
            return Err(FollowError::Branches);
        }
        if self.every > 0 && !self.branches.is_empty() {
            return Err(FollowError::LookedBranch);
        }
        for branch in &self.branches {
            branches(branch).map_err(|e| FollowError::Branch(branch.clone(), e.kind().to_string()))?;
        }
        match self.previews {
            Some(_) if !self.webhook => Err(FollowError::Untold),
            Some(Previews { max, .. }) if !(1..=PREVIEWS_MAX).contains(&max) => Err(FollowError::Previews(max)),
            _ => Ok(()),
        }
    }

    /// Whether a branch is one that is followed: one of the patterns, else the one that it was deployed from. `branch` is
    /// without `refs/heads/`.
    fn on(&self, branch: &str, deployed_from: Option<&str>) -> bool {
        if self.branches.is_empty() {
            return deployed_from.is_none_or(|wanted| wanted == branch || wanted == format!("refs/heads/{branch}"));
        }
        let mut patterns = self.branches.iter().filter_map(|pattern| branches(pattern).ok());
        patterns.any(|pattern| pattern.compile_matcher().is_match(branch))
    }

    /// Whether a pull request is to be previewed: one to the repository and a branch that are followed, and of no fork where
    /// those are not wished for. An error says why not.
    ///
    /// # Errors
    /// [`NotForUs`].
    pub fn wants_request(&self, url: &str, reference: Option<&str>, request: &PullRequest) -> Result<(), NotForUs> {
        if !request.repositories.iter().any(|told| same_repository(told, url)) {
            return Err(NotForUs::Repository(request.repositories.first().cloned().unwrap_or_default()));
        }
        let Some(previews) = self.previews else { return Err(NotForUs::NoPreviews) };
        let wanted = reference.or(request.default_branch.as_deref());
        // one that was previewed is torn down whatever it was turned to
        if request.what == Happened::Closed {
            return Ok(());
        }
        if !self.on(&request.base, wanted) {
            return Err(NotForUs::Branch(request.base.clone()));
        }
        if request.fork && !previews.forks {
            return Err(NotForUs::Fork(request.number));
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
        let other = match self.branches.is_empty() {
            true => wanted.is_some_and(|wanted| wanted != short && wanted != push.reference),
            // a tag is no branch, whatever it is called
            false => push.reference.starts_with("refs/tags/") || !self.on(short, None),
        };
        if other {
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

/// A pattern of branches: `*` stands for no slash, `**` for whatever.
fn branches(pattern: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(pattern).literal_separator(true).build()
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
    /// A pull request, and nobody wants previews.
    #[error("pull requests are not previewed here")]
    NoPreviews,
    /// A pull request of a stranger's.
    #[error("pull request {0} comes from a fork, whose code is not built here")]
    Fork(u64),
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

impl Push {
    /// The branch alone: `main`. `None` for a tag.
    pub fn branch(&self) -> Option<&str> {
        match self.reference.strip_prefix("refs/") {
            Some(rest) => rest.strip_prefix("heads/"),
            None => Some(&self.reference),
        }
    }
}

/// What became of a pull request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It is open, and this is its newest commit.
    Open,
    /// It was merged or closed.
    Closed,
}

/// A pull request (GitLab: merge request), as a forge tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequest {
    /// As people write it.
    pub number: u64,
    /// What became of it.
    pub what: Happened,
    /// Its newest commit, whole.
    pub commit: String,
    /// The branch that it is to change.
    pub base: String,
    /// Addresses of the repository that it is to change.
    pub repositories: Vec<String>,
    /// That one's default branch, where that is told.
    pub default_branch: Option<String>,
    /// It comes from another repository, or from one that is not told.
    pub fork: bool,
}

/// What a forge says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Is anybody there?
    Ping,
    /// Branches moved.
    Pushes(Vec<Push>),
    /// Somebody asks for a change.
    Request(PullRequest),
    /// Something else, in the forge's word.
    Other(String),
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
        Follow {
            paths,
            branches: Vec::new(),
            previews: None,
            every: 0,
            webhook: true,
            by: "ada".into(),
            user: None,
            at: Timestamp::UNIX_EPOCH,
        }
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
    fn branches_are_filtered_beside_paths() {
        let mut wish = follow(&["server/**"]);
        wish.branches = vec!["main".into(), "release/*".into()];
        assert_eq!(wish.check(), Ok(()));
        let url = "https://github.com/acme/time";
        let push = pushes(Some("push"), GITHUB).remove(0);
        let to = |reference: &str| Push { reference: reference.into(), ..push.clone() };
        for (reference, wanted) in [
            ("refs/heads/main", true),
            ("refs/heads/release/1.2", true),
            ("refs/heads/release/1/2", false),
            ("refs/heads/maint", false),
            ("refs/tags/main", false),
        ] {
            // also where it was deployed from another one
            assert_eq!(wish.wants(url, Some("dev"), &to(reference)).is_ok(), wanted, "{reference}");
        }
        assert_eq!(to("refs/heads/release/1.2").branch(), Some("release/1.2"));
        assert_eq!(to("refs/tags/v1").branch(), None);
        wish.paths = vec!["docs/**".into()];
        assert_eq!(wish.wants(url, None, &push), Err(NotForUs::Paths(2)));
        assert_eq!(Follow { every: 60, paths: Vec::new(), ..wish.clone() }.check(), Err(FollowError::LookedBranch));
        assert!(matches!(Follow { branches: vec!["a[".into()], ..wish }.check(), Err(FollowError::Branch(..))));
    }

    const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

    fn pull(action: &str, head: &str) -> String {
        serde_json::json!({
            "action": action, "number": 7,
            "pull_request": {"number": 7, "state": "open",
                "head": {"ref": "fix", "sha": SHA, "repo": serde_json::from_str::<serde_json::Value>(head).unwrap()},
                "base": {"ref": "main", "sha": SHA, "repo": {"full_name": "Acme/Time"}}},
            "repository": {"full_name": "Acme/Time", "clone_url": "https://github.com/Acme/Time.git", "default_branch": "main"},
        })
        .to_string()
    }

    fn asked(event: &str, body: &str) -> PullRequest {
        match read(Some(event), body.as_bytes()).unwrap() {
            Event::Request(request) => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_in_each_forges_words() {
        let own = asked("pull_request", &pull("synchronize", "{\"full_name\":\"acme/time\"}"));
        assert_eq!((own.number, own.what.clone(), own.fork, own.base.as_str()), (7, Happened::Open, false, "main"));
        assert!(asked("pull_request", &pull("opened", "{\"full_name\":\"eve/time\"}")).fork);
        assert!(asked("pull_request", &pull("opened", "null")).fork, "a fork that was deleted");
        assert_eq!(asked("pull_request", &pull("closed", "null")).what, Happened::Closed);
        assert_eq!(asked("pull_request_sync", &pull("synchronized", "null")).what, Happened::Open);
        let labelled = read(Some("pull_request"), pull("labeled", "null").as_bytes());
        assert_eq!(labelled, Ok(Event::Other("pull request labeled".into())));
        let merge = |action: &str, source: u64| {
            serde_json::json!({
                "object_kind": "merge_request",
                "project": {"git_http_url": "https://gitlab.example/acme/time.git", "default_branch": "main"},
                "object_attributes": {"iid": 3, "action": action, "target_branch": "main", "source_project_id": source,
                    "target_project_id": 1, "last_commit": {"id": SHA}},
            })
            .to_string()
        };
        let lab = asked("Merge Request Hook", &merge("update", 1));
        assert_eq!((lab.number, lab.what, lab.fork), (3, Happened::Open, false));
        assert!(asked("Merge Request Hook", &merge("open", 2)).fork);
        assert_eq!(asked("Merge Request Hook", &merge("merge", 1)).what, Happened::Closed);
        let short = pull("opened", "null").replace(SHA, "main; rm");
        for bad in ["", "{}", "[]", "{\"pull_request\":{}}", short.as_str()] {
            assert!(read(Some("pull_request"), bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_wished_for_requests_are_previewed() {
        let url = "https://github.com/acme/time";
        let own = asked("pull_request", &pull("opened", "{\"full_name\":\"acme/time\"}"));
        let stranger = PullRequest { fork: true, ..own.clone() };
        let none = follow(&[]);
        assert_eq!(none.wants_request(url, None, &own), Err(NotForUs::NoPreviews));
        let wish = |forks| Follow { previews: Some(Previews { max: 5, forks }), ..follow(&[]) };
        assert_eq!(wish(false).wants_request(url, None, &own), Ok(()));
        assert_eq!(wish(false).wants_request(url, Some("dev"), &own), Err(NotForUs::Branch("main".into())));
        assert_eq!(wish(false).wants_request(url, None, &stranger), Err(NotForUs::Fork(7)));
        assert_eq!(wish(true).wants_request(url, None, &stranger), Ok(()));
        let closed = PullRequest { what: Happened::Closed, base: "other".into(), ..stranger };
        assert_eq!(wish(false).wants_request(url, None, &closed), Ok(()), "its preview may be there");
        let elsewhere = wish(true).wants_request("https://evil.example/acme/time", None, &own);
        assert!(matches!(elsewhere, Err(NotForUs::Repository(_))));
        assert_eq!(Follow { webhook: false, every: 60, ..wish(false) }.check(), Err(FollowError::Untold));
        let many = Follow { previews: Some(Previews { max: 0, forks: false }), ..follow(&[]) };
        assert_eq!(many.check(), Err(FollowError::Previews(0)));
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
