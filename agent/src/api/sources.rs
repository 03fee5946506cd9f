//! `Sources`: uploads of folders.

use std::time::Duration;

use sigil_protocol::v1;
use tonic::{Request, Response, Status, Streaming};

use super::status::{self, refuse};
use super::{convert, noted};
use crate::source::Sources;

/// Longest silence within an upload.
const IDLE: Duration = Duration::from_secs(60);
/// Longest label, in characters.
const LABEL_MAX: usize = 500;

pub(super) struct SourcesService {
    pub sources: Sources,
}

async fn next(chunks: &mut Streaming<v1::UploadChunk>) -> Result<Option<v1::UploadChunk>, Status> {
    tokio::time::timeout(IDLE, chunks.message())
        .await
        .map_err(|_| refuse("TIMEOUT", "the upload paused for more than 60 s", "try again", 7))?
}

#[tonic::async_trait]
impl v1::sources_server::Sources for SourcesService {
    async fn upload(&self, request: Request<Streaming<v1::UploadChunk>>) -> Result<Response<v1::UploadReply>, Status> {
        let note = noted::note(&request);
        let mut chunks = request.into_inner();
        let Some(first) = next(&mut chunks).await? else {
            return Err(status::invalid("the upload is empty", "send the header first"));
        };
        // the answer is the content's own digest: a repeat needs no memory to get the same one
        convert::request_id(&first.request_id)?;
        note.request(&first.request_id);
        let label: String = first.label.chars().take(LABEL_MAX).collect();
        note.target(&label, "");
        // an upload that is dropped before `finish` (the client went away) leaves nothing: that is the room's promise
        let mut upload = self.sources.upload(&label, first.size).await.map_err(|e| status::source(&e))?;
        let mut data = first.data;
        loop {
            if !data.is_empty() {
                upload.write(&data).await.map_err(|e| status::source(&e))?;
            }
            match next(&mut chunks).await? {
                Some(chunk) => data = chunk.data,
                None => break,
            }
        }
        let (upload_id, bytes) = upload.finish().await.map_err(|e| status::source(&e))?;
        note.after("digest", &upload_id);
        note.after("bytes", bytes);
        Ok(Response::new(v1::UploadReply { upload_id, bytes }))
    }
}
