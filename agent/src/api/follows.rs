//! `Follows`: deployments that are what their repositories' branches are.

use std::sync::Arc;

use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use sigil_core::follow::{Follow, Previews};
use sigil_core::model::Deployment;
use sigil_core::rights::Role;
use sigil_protocol::v1;
use tonic::{Request, Response, Status};

use super::status::{self, invalid};
use super::{convert, noted, rules};
use crate::follow::{Followers, Preview, Seen, followed};
use crate::store::Store;

/// Previews of one deployment, when nothing is said of it.
const PREVIEWS: u32 = 5;

pub(super) struct FollowsService {
    pub store: Store,
    pub followers: Followers,
}

impl FollowsService {
    /// Pull requests that are known, with what came of each.
    fn requests(&self, deployment: &Deployment, seen: &Seen) -> Vec<v1::PullRequest> {
        let there = self.followers.previews(deployment.id);
        let one = |(number, preview): (&u64, &Preview)| v1::PullRequest {
            number: *number,
            commit: preview.commit.clone(),
            fork: preview.fork,
            deployment: there.iter().find(|(_, n)| n == number).map(|(name, _)| name.to_string()).unwrap_or_default(),
            last: preview.last.clone(),
            last_at: preview.at.map_or(0, convert::time),
        };
        seen.previews.iter().map(one).collect()
    }

    fn shown(&self, deployment: &Deployment) -> v1::FollowReply {
        let seen = self.followers.seen(deployment.id);
        let time = |at: Option<Timestamp>| at.map_or(0, convert::time);
        let mut reply = v1::FollowReply { name: deployment.name.to_string(), ..v1::FollowReply::default() };
        match followed(deployment) {
            Ok((_, url, branch)) => (reply.repository, reply.branch) = (url, branch.unwrap_or_default()),
            Err(why) => reply.trouble = format!("{why}; {}", why.hint()),
        }
        let Some(follow) = deployment.follow.as_deref() else { return reply };
        v1::FollowReply {
            follows: true,
            every_seconds: follow.every,
            webhook: follow.webhook,
            paths: follow.paths.clone(),
            by: follow.by.clone(),
            since: convert::time(follow.at),
            commit: seen.commit.clone(),
            last: seen.last.clone(),
            last_at: time(seen.at),
            pushed_at: time(seen.pushed),
            branches: follow.branches.clone(),
            previews: follow.previews.is_some(),
            previews_max: follow.previews.map_or(0, |p| p.max),
            previews_forks: follow.previews.is_some_and(|p| p.forks),
            requests: self.requests(deployment, &seen),
            status_trouble: seen.status_trouble,
            hook_path: if follow.webhook { format!("/hooks/{}", deployment.name) } else { String::new() },
            ..reply
        }
    }
}

#[tonic::async_trait]
impl v1::follows_server::Follows for FollowsService {
    async fn list(&self, request: Request<v1::FollowsRequest>) -> Result<Response<v1::FollowsReply>, Status> {
        let asker = rules::caller(&request)?;
        let name = &request.get_ref().name;
        let all: Vec<Arc<Deployment>> = match name.is_empty() {
            false => vec![asker.finds(&self.store, name)?],
            true => self.store.deployments().into_iter().filter(|d| d.follow.is_some() && asker.sees(d)).collect(),
        };
        let follows = all.iter().map(|deployment| self.shown(deployment)).collect();
        Ok(Response::new(v1::FollowsReply { follows }))
    }

    /// Wishing the same twice is wishing it once, so the request id is checked and not kept; a new secret is another one.
    async fn set(&self, request: Request<v1::SetFollowRequest>) -> Result<Response<v1::FollowReply>, Status> {
        let asker = rules::caller(&request)?;
        let note = noted::note(&request);
        let request = request.into_inner();
        note.target(&request.name, "");
        note.request(convert::request_id(&request.request_id)?);
        let deployment = asker.finds_for(&self.store, &request.name, Role::Deployer)?;
        note.target(&request.name, deployment.id);
        if request.off {
            let change = |d: &mut Deployment| {
                d.follow = None;
                Ok(())
            };
            let reason = format!("{} ended its following", asker.who);
            let now = self.store.update(deployment.id, None, &reason, change).await.map_err(|e| status::store(&e))?;
            self.followers.sweep();
            return Ok(Response::new(self.shown(&now)));
        }
        if deployment.preview.is_some() {
            let what = format!("'{}' is a preview: it follows its pull request", deployment.name);
            return Err(invalid(what, "have the deployment that it is a preview of follow the repository"));
        }
        followed(&deployment).map_err(|why| invalid(why.to_string(), why.hint()))?;
        let follow = Follow {
            paths: request.paths,
            branches: request.branches,
            previews: request.previews.then_some(Previews {
                max: if request.previews_max == 0 { PREVIEWS } else { request.previews_max },
                forks: request.previews_forks,
            }),
            every: request.every_seconds,
            webhook: request.webhook,
            by: asker.who.clone(),
            user: asker.user(),
            at: Timestamp::now(),
        };
        follow.check().map_err(|e| invalid(e.to_string(), e.hint()))?;
        note.after("every", follow.every);
        note.after("webhook", follow.webhook);
        if let Some(previews) = follow.previews {
            note.after("previews", previews.max);
            note.after("previews of forks", previews.forks);
        }
        let mut secret = String::new();
        let has = self.followers.has_secret(deployment.id).map_err(|e| status::secret(&e))?;
        if follow.webhook && (request.new_secret || !has) {
            let new = self.followers.new_secret(deployment.id, &asker.who).await.map_err(|e| status::secret(&e))?;
            new.expose_secret().clone_into(&mut secret);
        }
        let change = move |d: &mut Deployment| {
            d.follow = Some(Box::new(follow));
            Ok(())
        };
        let reason = format!("{} has it follow its repository", asker.who);
        let now = self.store.update(deployment.id, None, &reason, change).await.map_err(|e| status::store(&e))?;
        self.followers.sweep();
        Ok(Response::new(v1::FollowReply { secret, ..self.shown(&now) }))
    }

    /// Looking twice is looking once: the request id is checked and not kept.
    async fn look(&self, request: Request<v1::LookRequest>) -> Result<Response<v1::FollowReply>, Status> {
        let asker = rules::caller(&request)?;
        let note = noted::note(&request);
        let request = request.into_inner();
        note.target(&request.name, "");
        note.request(convert::request_id(&request.request_id)?);
        let deployment = asker.finds_for(&self.store, &request.name, Role::Deployer)?;
        note.target(&request.name, deployment.id);
        if deployment.follow.is_none() {
            return Err(invalid(format!("'{}' follows nothing", request.name), "sigil follow set NAME --every 5m"));
        }
        self.followers.look(deployment.id);
        Ok(Response::new(self.shown(&deployment)))
    }
}
