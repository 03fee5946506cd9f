//! `Pins`: how a release's tools looked when it was first ready to serve, and what is done about those that changed.

use std::sync::Arc;

use sigil_core::model::{Deployment, ReleaseNo};
use sigil_core::pins::{self, Answer};
use sigil_protocol::v1;
use tonic::{Request, Response, Status};

use super::asker::Asker;
use super::status::{self, invalid, refuse};
use super::{convert, noted, rules};
use crate::inspect::Inspect;
use crate::store::{Store, StoreError};

/// Most bytes of tools' texts in one answer; what is beyond has its digest alone.
const TEXTS_MAX: usize = 2 << 20;

pub(super) struct PinsService {
    pub store: Store,
    pub inspect: Inspect,
}

impl PinsService {
    fn show(&self, deployment: &Deployment, release: ReleaseNo) -> v1::PinsReply {
        let pins = self.inspect.pins(deployment.id, release);
        let mut room = TEXTS_MAX;
        let mut text = |tool: &pins::Tool| {
            let text = tool.pretty();
            let fits = text.len() <= room;
            room -= if fits { text.len() } else { 0 };
            if fits { text } else { format!("(too long to be shown; sha256 {})", tool.digest) }
        };
        let mut tools = Vec::new();
        if let Some(pins) = &pins {
            for (name, held) in &pins.held {
                let pinned = pins.tools.get(name);
                tools.push(v1::PinnedTool {
                    name: name.clone(),
                    state: held.change.as_str().to_owned(),
                    digest: pinned.map(|tool| tool.digest.clone()).unwrap_or_default(),
                    live_digest: held.tool.digest.clone(),
                    pinned: pinned.map(&mut text).unwrap_or_default(),
                    live: text(&held.tool),
                    findings: held.findings.clone(),
                    since: convert::time(held.since),
                });
            }
            let others = pins.tools.iter().filter(|(name, _)| !pins.held.contains_key(*name));
            tools.extend(others.map(|(name, tool)| v1::PinnedTool {
                name: name.clone(),
                state: "pinned".to_owned(),
                digest: tool.digest.clone(),
                ..Default::default()
            }));
        }
        tools.sort_by(|a, b| a.name.cmp(&b.name));
        v1::PinsReply {
            name: deployment.name.to_string(),
            release,
            pinned_at: pins.map_or(0, |pins| convert::time(pins.pinned_at)),
            pinning: deployment.policy.pins.as_str().to_owned(),
            tools,
        }
    }

    fn find(&self, asker: &Asker, name: &str, release: ReleaseNo) -> Result<(Arc<Deployment>, ReleaseNo), Status> {
        let deployment = asker.finds(&self.store, name)?;
        let release = if release == 0 { deployment.desired.release } else { release };
        if deployment.release(release).is_none() {
            let what = format!("'{name}' has no release {release}");
            return Err(refuse("NOT_FOUND", what, format!("see `sigil releases {name}`"), status::NOT_FOUND));
        }
        Ok((deployment, release))
    }
}

#[tonic::async_trait]
impl v1::pins_server::Pins for PinsService {
    async fn get(&self, request: Request<v1::GetPinsRequest>) -> Result<Response<v1::PinsReply>, Status> {
        let asker = rules::caller(&request)?;
        let asked = request.into_inner();
        let (deployment, release) = self.find(&asker, &asked.name, asked.release)?;
        Ok(Response::new(self.show(&deployment, release)))
    }

    /// What was answered once cannot be again: it is no longer held, and a repeat says so.
    async fn answer(&self, request: Request<v1::AnswerPinsRequest>) -> Result<Response<v1::PinsReply>, Status> {
        let caller = rules::caller(&request)?;
        let note = noted::note(&request);
        let asked = request.into_inner();
        note.target(&asked.name, "");
        note.request(convert::request_id(&asked.request_id)?);
        let (deployment, release) = self.find(&caller, &asked.name, asked.release)?;
        note.target(&asked.name, deployment.id);
        let forms: Vec<String> = asked.tools.iter().map(|tool| format!("{} {}", tool.name, tool.digest)).collect();
        note.after(if asked.dismiss { "dismissed" } else { "approved" }, forms.join(", "));
        note.after("release", release.to_string());
        if asked.tools.is_empty() {
            return Err(invalid("no tool was named", "name those that are meant, or --all"));
        }
        let form = |tool: v1::ToolForm| (tool.name, Some(tool.digest).filter(|digest| !digest.is_empty()));
        let named = asked.tools.into_iter().map(form).collect();
        let answer = if asked.dismiss { Answer::Dismiss } else { Answer::Approve };
        let done = self.inspect.answer(&deployment, release, named, answer, &caller.who).await;
        done.map_err(|e| match e {
            StoreError::Refused(why) => invalid(why, format!("see `sigil pins diff {}`", asked.name)),
            other => status::store(&other),
        })?;
        Ok(Response::new(self.show(&deployment, release)))
    }
}
