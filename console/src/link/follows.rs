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
}

fn shown(reply: v1::FollowReply) -> Follow {
    let time = |micros: i64| (micros != 0).then(|| Timestamp::from_microsecond(micros).ok()).flatten();
    Follow {
        name: reply.name,
        follows: reply.follows,
        repository: reply.repository,
        branch: reply.branch,
        every_seconds: reply.every_seconds,
        webhook: reply.webhook,
        hook_path: reply.hook_path,
        paths: reply.paths,
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
        let Wish { every_seconds, webhook, paths, new_secret } = wish.unwrap_or_default();
        let (request_id, name) = (request_id(), name.to_owned());
        let request = v1::SetFollowRequest { request_id, name, every_seconds, webhook, paths, new_secret, off };
        Ok(shown(self.ask("follow set", self.follows_client().set(request)).await?))
    }

    /// Has it looked at now.
    pub async fn look_at_repository(&self, name: &str) -> Result<Follow, LinkError> {
        let request = v1::LookRequest { request_id: request_id(), name: name.to_owned() };
        Ok(shown(self.ask("follow now", self.follows_client().look(request)).await?))
    }
}
