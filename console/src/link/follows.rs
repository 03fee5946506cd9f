//! Deployments that are what their repositories' branches are.

use jiff::Timestamp;
use serde::Serialize;
use sigil_protocol::v1;

use super::{Link, LinkError, Wire, request_id};

/// What a deployment follows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Follow {
    /// The deployment.
    pub name: String,
    /// Whether it follows anything.
    pub follows: bool,
    /// Its repository.
    pub repository: String,
    /// The branch; empty: the default one.
    pub branch: String,
    /// It is looked at so often, seconds; 0: it is not.
    pub every_seconds: u32,
    /// Signed pushes are listened to.
    pub webhook: bool,
    /// Where on the gateway's address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hook_path: String,
    /// Patterns of files that count.
    pub paths: Vec<String>,
    /// Patterns of branches that count; none: the one above.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<String>,
    /// So many pull requests are previewed at once; `None`: none is.
    pub previews_max: Option<u32>,
    /// Those of forks, too.
    pub previews_forks: bool,
    /// Pull requests that are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<PullRequest>,
    /// Why nothing is shown beside commits.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status_trouble: String,
    /// Who wanted it.
    pub by: String,
    /// Since when.
    pub since: Option<Timestamp>,
    /// The newest commit that was dealt with.
    pub commit: String,
    /// What came of the last look.
    pub last: String,
    /// When that was.
    pub last_at: Option<Timestamp>,
    /// When a push came last.
    pub pushed_at: Option<Timestamp>,
    /// A new secret, shown this once.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub secret: String,
    /// Why it cannot follow.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trouble: String,
}

/// A pull request of a followed repository.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PullRequest {
    /// As its host numbers it.
    pub number: u64,
    /// Its newest commit.
    pub commit: String,
    /// It comes from a fork.
    pub fork: bool,
    /// Its preview; empty: there is none.
    pub deployment: String,
    /// What came of it.
    pub last: String,
    /// When that was.
    pub last_at: Option<Timestamp>,
}

/// What is wished for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Look so often, seconds; 0: do not.
    pub every_seconds: u32,
    /// Listen to signed pushes.
    pub webhook: bool,
    /// Patterns of files that count.
    pub paths: Vec<String>,
    /// Make a new secret.
    pub new_secret: bool,
    /// Patterns of branches that count.
    pub branches: Vec<String>,
    /// Preview so many pull requests at once; `None`: none.
    pub previews: Option<u32>,
    /// Those of forks, too.
    pub previews_forks: bool,
}

fn time(micros: i64) -> Option<Timestamp> {
    (micros != 0).then(|| Timestamp::from_microsecond(micros).ok()).flatten()
}

fn request(told: v1::PullRequest) -> PullRequest {
    let v1::PullRequest { number, commit, fork, deployment, last, last_at } = told;
    PullRequest { number, commit, fork, deployment, last, last_at: time(last_at) }
}

fn shown(reply: v1::FollowReply) -> Follow {
    Follow {
        name: reply.name,
        follows: reply.follows,
        repository: reply.repository,
        branch: reply.branch,
        every_seconds: reply.every_seconds,
        webhook: reply.webhook,
        hook_path: reply.hook_path,
        paths: reply.paths,
        branches: reply.branches,
        previews_max: reply.previews.then_some(reply.previews_max),
        previews_forks: reply.previews_forks,
        requests: reply.requests.into_iter().map(request).collect(),
        status_trouble: reply.status_trouble,
        by: reply.by,
        since: time(reply.since),
        commit: reply.commit,
        last: reply.last,
        last_at: time(reply.last_at),
        pushed_at: time(reply.pushed_at),
        secret: reply.secret,
        trouble: reply.trouble,
    }
}

impl Link {
    fn follows_client(&self) -> v1::follows_client::FollowsClient<Wire> {
        v1::follows_client::FollowsClient::new(self.wire.clone()).max_decoding_message_size(super::MESSAGE_MAX)
    }

    /// Those that follow something; of one by name, whether it does.
    pub async fn follows(&self, name: Option<&str>) -> Result<Vec<Follow>, LinkError> {
        let request = v1::FollowsRequest { name: name.unwrap_or_default().to_owned() };
        let reply = self.ask("follow", self.follows_client().list(request)).await?;
        Ok(reply.follows.into_iter().map(shown).collect())
    }

    /// Has a deployment follow its repository; `None`: no more.
    pub async fn set_follow(&self, name: &str, wish: Option<Wish>) -> Result<Follow, LinkError> {
        let off = wish.is_none();
        let wish = wish.unwrap_or_default();
        let request = v1::SetFollowRequest {
            request_id: request_id(),
            name: name.to_owned(),
            every_seconds: wish.every_seconds,
            webhook: wish.webhook,
            paths: wish.paths,
            new_secret: wish.new_secret,
            off,
            branches: wish.branches,
            previews: wish.previews.is_some(),
            previews_max: wish.previews.unwrap_or_default(),
            previews_forks: wish.previews_forks,
        };
        Ok(shown(self.ask("follow set", self.follows_client().set(request)).await?))
    }

    /// Has it looked at now.
    pub async fn look_at_repository(&self, name: &str) -> Result<Follow, LinkError> {
        let request = v1::LookRequest { request_id: request_id(), name: name.to_owned() };
        Ok(shown(self.ask("follow now", self.follows_client().look(request)).await?))
    }
}
