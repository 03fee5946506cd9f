//! An image into a registry, for packages that others are to run.

use std::sync::Arc;

use sigil_config::agent::AgentConfig;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::api::status::{invalid, refuse};
use crate::engine::{Engine, EngineError, RegistryLogin};
use crate::secrets::Secrets;
use crate::source;

/// Longest reference, bytes.
const REFERENCE_MAX: usize = 255;
/// Lines of the engine that are kept, to say why it failed.
const LINES: usize = 64;

/// What pushing takes.
pub(crate) struct Push {
    pub engine: Arc<dyn Engine>,
    pub secrets: Secrets,
    pub config: watch::Receiver<Arc<AgentConfig>>,
}

/// `host/path[:tag]`, the host said: what is left out would be somebody else's registry.
fn checked(reference: &str) -> Result<(), Status> {
    let hint = "name it with its registry and a tag: registry.example.org/team/server:1.0.0";
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/:".contains(c);
    let tagged = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let bad = |why: &str| Err(invalid(format!("'{reference}' {why}"), hint));
    if reference.len() > REFERENCE_MAX || reference.contains('@') {
        return bad("is no name that an image can be pushed under");
    }
    let Some((host, path)) = reference.split_once('/') else { return bad("names no registry") };
    if !(host == "localhost" || host.contains(['.', ':'])) {
        return bad("names no registry");
    }
    let (path, tag) = path.rsplit_once(':').unwrap_or((path, "latest"));
    let empty = path.split('/').any(str::is_empty) || tag.is_empty();
    if empty || !host.chars().all(plain) || path.contains(':') || !path.chars().all(plain) || !tag.chars().all(tagged) {
        return bad("is no name of an image");
    }
    Ok(())
}

impl Push {
    /// Pushes an image that is here; answers the name under which it is there for good: by its digest.
    pub(crate) async fn push(&self, image: &str, reference: &str) -> Result<String, Status> {
        checked(reference)?;
        let host = reference.split('/').next().unwrap_or_default();
        let allowed = self.config.borrow().limits.registries.clone();
        if !allowed.is_empty() && !allowed.iter().any(|entry| source::permits(entry, reference, host)) {
            let what = format!("the owner of this host does not allow the registry of '{reference}'");
            return Err(refuse("FORBIDDEN", what, format!("allowed are {}", allowed.join(", ")), 4));
        }
        let login = self.secrets.credential(host).map_err(|e| refuse("INTERNAL", e.to_string(), e.hint(), 1))?;
        if let Some(login) = &login {
            let used = self.secrets.uses(login, &format!("push {reference}")).await;
            used.map_err(|e| refuse("AUDIT", e.to_string(), e.hint(), 1))?;
        }
        let login = login.map(|c| RegistryLogin { host: c.host, username: c.username, password: c.password });
        let failed = |e: EngineError| refuse("PUSH_FAILED", format!("{reference} was not pushed: {e}"), e.hint(), 1);
        let there = self.engine.image(reference).await.map_err(failed)?;
        if there.as_ref().is_some_and(|there| there.id != image) {
            let what = format!("this host has another image of the name {reference}");
            return Err(refuse("CONFLICT", what, "remove it, or push under another tag", 1));
        }
        self.engine.tag(image, reference).await.map_err(failed)?;
        let (out, mut lines) = mpsc::channel(LINES);
        // what is said on the way is for the log only
        let told = reference.to_owned();
        let telling = async move {
            while let Some(line) = lines.recv().await {
                tracing::debug!(reference = told, "push: {line}");
            }
        };
        let pushing = self.engine.push(reference, login.as_ref(), out, CancellationToken::new());
        let (digest, ()) = tokio::join!(pushing, telling);
        if there.is_none() {
            // the name was for the push alone
            if let Err(error) = self.engine.remove_image(reference).await {
                tracing::warn!(%error, reference, "the pushed image's name is still on this host");
            }
        }
        let digest = digest.map_err(failed)?;
        Ok(format!("{}@{digest}", source::repository_of(reference)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_where_it_goes() {
        for fine in ["registry.example.org/a/b:1.0.0", "localhost/a", "127.0.0.1:5000/a:X_1", "ghcr.io/o/r"] {
            assert!(checked(fine).is_ok(), "{fine}");
        }
        let long = format!("h.example/{}", "a".repeat(REFERENCE_MAX));
        for bad in [
            "",
            "app",
            "team/app:1",
            "h.example/",
            "h.example/a:",
            "h.example//a",
            "h.example/A",
            "h.example/a@sha256:00",
            "h.example/a b",
            "h.example/a:b:c",
            "h.example/a:1;rm",
            "h.example/../a?x",
            &long,
        ] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }
}
