//! `Logs`: tails. A cursor a reader, never a queue: a console that stalls costs nothing here.

use std::collections::BTreeMap;

use futures::stream::BoxStream;
use sigil_core::model::DeploymentId;
use sigil_protocol::v1;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::asker::Asker;
use super::status::{self, invalid};
use super::{convert, rules};
use crate::store::Store;
use crate::tail::{Cursor, Query, Tail};

/// Longest pattern, in bytes.
const GREP_MAX: usize = 4096;

pub(super) struct LogsService {
    pub store: Store,
    pub tail: Tail,
    pub stop: CancellationToken,
}

struct Reader {
    cursor: Cursor,
    names: BTreeMap<DeploymentId, String>,
    asker: Asker,
    stop: CancellationToken,
}

impl LogsService {
    fn query(&self, asker: &Asker, asked: v1::TailRequest) -> Result<(Query, BTreeMap<DeploymentId, String>), Status> {
        let names: BTreeMap<DeploymentId, String> = if asked.all {
            self.store.deployments().iter().filter(|d| asker.sees(d)).map(|d| (d.id, d.name.to_string())).collect()
        } else {
            let found = asked.deployments.iter().map(|name| asker.finds(&self.store, name));
            found.map(|d| d.map(|d| (d.id, d.name.to_string()))).collect::<Result<_, _>>()?
        };
        if names.is_empty() && !asked.all {
            return Err(invalid("no deployment was named", "name one or more, or use --all"));
        }
        if asked.grep.len() > GREP_MAX {
            return Err(invalid("the pattern is longer than 4096 bytes", "use a shorter one"));
        }
        let resume = asked
            .resume
            .iter()
            .map(|p| {
                let id = p.deployment_id.parse();
                id.map(|id| (id, p.seq)).map_err(|_| invalid("a position names no deployment", "start without resume"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let query = Query {
            deployments: names.keys().copied().collect(),
            streams: convert::streams(&asked.streams)?,
            since: convert::when(asked.since, "since")?,
            until: convert::when(asked.until, "until")?,
            tail: asked.tail,
            grep: (!asked.grep.is_empty()).then_some(asked.grep),
            follow: asked.follow,
            resume,
            previous: asked.previous,
        };
        Ok((query, names))
    }
}

#[tonic::async_trait]
impl v1::logs_server::Logs for LogsService {
    type TailStream = BoxStream<'static, Result<v1::TailBatch, Status>>;

    async fn tail(&self, request: Request<v1::TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        let asker = rules::caller(&request)?;
        let (query, names) = self.query(&asker, request.into_inner())?;
        if !query.follow {
            self.tail.caught_up(&query.deployments).await;
        }
        let cursor = self.tail.cursor(query).map_err(|e| status::tail(&e))?;
        let reader = Reader { cursor, names, asker, stop: self.stop.clone() };
        let batches = futures::stream::unfold(Some(reader), |reader| async {
            let mut reader = reader?;
            tokio::select! {
                batch = reader.cursor.next() => match batch {
                    Ok(Some(batch)) => {
                        let name = |id| reader.names.get(&id).cloned().unwrap_or_else(|| id.to_string());
                        Some((Ok(convert::batch(batch, name)), Some(reader)))
                    }
                    Ok(None) => None,
                    Err(e) => Some((Err(status::tail(&e)), None)),
                },
                () = reader.stop.cancelled() => Some((Err(status::stopping()), None)),
                status = reader.asker.changes() => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(batches)))
    }
}
