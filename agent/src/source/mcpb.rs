//! Bundles (MCPB): one file at an address, which has to be the one that whoever named it has seen.

use sha2::Sha256;
use url::Url;

use super::archive::{self, Packing};
use super::http::{Http, Login};
use super::npm::hash_file;
use super::{Fetched, Job, SourceError, blocking};

pub(super) async fn fetch(job: &Job<'_>, address: &str, sha256: &str) -> Result<Fetched, SourceError> {
    let pinned = format!("mcpb:{address}#sha256={sha256}");
    let fetched = |(digest, tree, guard)| Fetched {
        pinned: pinned.clone(),
        digest,
        commit: None,
        tree: Some(tree),
        package: None,
        image: None,
        guard,
    };
    let key = format!("mcpb {sha256}");
    if let Some(found) = job.cache.find(&key).await? {
        job.say(format!("{address} was fetched before")).await;
        return Ok(fetched(found));
    }
    let url = Url::parse(address)
        .map_err(|e| SourceError::refused(format!("'{address}' is not an address: {e}"), "mend it"))?;
    job.say(format!("loading {address}")).await;
    let http = Http::new(job, Login::Bearer, "the bundle's address")?;
    let scratch = job.cache.scratch()?;
    let file = scratch.path().join("bundle.mcpb");
    http.download(&url, &file, job.config.sources.max_bytes).await?;
    let hashed = file.clone();
    let found = hex::encode(blocking(move || hash_file::<Sha256>(&hashed)).await?);
    if found != sha256 {
        return Err(SourceError::refused(
            format!("what was loaded from {address} is not what was asked for (sha256 {found} instead of {sha256})"),
            "the file there has changed, or somebody on the way changed it; do not use it before its publisher explains",
        ));
    }
    let (digest, written, tree, guard) =
        job.write_tree(&key, move |tree| archive::unpack(&file, Packing::Zip, false, tree)).await?;
    job.say(format!("{} files, {} bytes", written.files, written.bytes)).await;
    Ok(fetched((digest, tree, guard)))
}
