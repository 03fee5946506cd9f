//! Images into a registry.

use bollard::query_parameters as query;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::build::{credentials, encoded, next};
use super::connect::{Extra, Shared, translate};
use super::{Inner, objects, text};
use crate::engine::{EngineError, RegistryLogin, Result};

/// See [`Engine::push`](crate::engine::Engine::push).
pub(super) async fn push(
    inner: &Inner,
    conn: &Shared,
    reference: &str,
    login: Option<&RegistryLogin>,
    out: &mpsc::Sender<String>,
    cancel: &CancellationToken,
) -> Result<String> {
    text::safe_name(reference)?;
    let (repository, tag) = text::reference(reference);
    let run = async {
        let headers = match login {
            Some(login) => vec![("x-registry-auth", encoded(&credentials(login))?)],
            None => Vec::new(),
        };
        let docker = conn.with(Extra { headers, ..Extra::default() });
        let options = query::PushImageOptions { tag: Some(tag.clone()), ..Default::default() };
        let stream = docker.push_image(&repository, Some(options), None);
        futures::pin_mut!(stream);
        let mut digest = None;
        while let Some(piece) = next(&mut stream, "push").await? {
            let piece = piece.map_err(|error| match translate(error, &conn.host, "push") {
                EngineError::Api(why) => EngineError::Failed(why),
                other => other,
            })?;
            if let Some(error) = piece.error_detail {
                let why = error.message.unwrap_or_else(|| format!("{reference} was not pushed"));
                return Err(EngineError::Failed(why));
            }
            if let Some(status) = piece.status {
                digest = digest_of(&status).or(digest);
                let _gone = out.send(status.trim_end().to_owned()).await;
            }
        }
        Ok(digest)
    };
    let digest = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(EngineError::Cancelled),
        done = run => done?,
    };
    if let Some(digest) = digest {
        return Ok(digest);
    }
    // an engine that does not say it at the end has it by then
    let held = objects::image(inner, conn, reference).await?;
    let digests = held.map(|image| image.digests).unwrap_or_default();
    let of = |text: &String| text.split_once('@').filter(|(of, _)| *of == repository).map(|(_, d)| d.to_owned());
    digests
        .iter()
        .find_map(of)
        .ok_or_else(|| EngineError::Failed(format!("{reference} was pushed, but no digest is told")))
}

/// `1.0: digest: sha256:… size: 1`, the last line of a push.
fn digest_of(status: &str) -> Option<String> {
    let digest = status.split("digest: ").nth(1)?.split(' ').next()?;
    let hex = digest.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then(|| digest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_the_digest() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(digest_of(&format!("1.0: digest: {digest} size: 1570")), Some(digest));
        assert_eq!(digest_of("1.0: digest: sha256:zz size: 1"), None);
        assert_eq!(digest_of("Pushed"), None);
    }
}
