//! `Audit`: the log's lines, byte for byte.

use futures::stream::BoxStream;
use sigil_core::audit::Filter;
use sigil_protocol::v1;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::status::{self, invalid};
use super::{convert, rules};
use crate::audit::{Audit, Query};

pub(super) struct AuditService {
    pub audit: Audit,
    pub stop: CancellationToken,
}

#[tonic::async_trait]
impl v1::audit_server::Audit for AuditService {
    type QueryStream = BoxStream<'static, Result<v1::AuditBatch, Status>>;

    async fn query(&self, request: Request<v1::AuditQuery>) -> Result<Response<Self::QueryStream>, Status> {
        let asker = rules::caller(&request)?;
        let asked = request.into_inner();
        let (since, until) = (convert::when(asked.since, "since")?, convert::when(asked.until, "until")?);
        let filter = Filter::new(since, until, &asked.who, &asked.what, &asked.target);
        let filter = filter.map_err(|e| invalid(e.to_string(), e.hint()))?;
        let query = Query { filter, tail: asked.tail, follow: asked.follow, after: asked.after };
        let from = (self.audit.read(query), self.stop.clone(), asker);
        let batches = futures::stream::unfold(Some(from), |from| async {
            let (mut reader, stop, asker) = from?;
            tokio::select! {
                batch = reader.next() => match batch {
                    Ok(batch) => batch.map(|batch| {
                        let batch = v1::AuditBatch { lines: batch.lines, damaged: batch.damaged };
                        (Ok(batch), Some((reader, stop, asker)))
                    }),
                    Err(e) => Some((Err(status::audit(&e)), None)),
                },
                () = stop.cancelled() => Some((Err(status::stopping()), None)),
                status = asker.changes() => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(batches)))
    }
}
