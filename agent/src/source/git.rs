//! git repositories, through the system's git: refs resolved, one commit fetched into a bare scratch repository, and its
//! objects read out. Nothing is ever checked out, so that no hook, filter or attribute of the repository runs.

mod command;
mod objects;

use std::path::{Path, PathBuf};

use url::Url;

use super::http::{authority, is_loopback};
use super::near::near;
use super::{Fetched, Job, SourceError};
use crate::secrets::Credential;
pub(super) use command::remove_leftovers;
use command::{Git, Programs};
use objects::Module;

/// Submodules within submodules are followed so deep.
const DEPTH: usize = 4;
/// Submodules of one source.
const MODULES: usize = 64;

/// A ref that the remote shows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ref {
    name: String,
    /// What it leads to; of an annotated tag the commit behind it.
    oid: String,
}

/// What to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Want {
    /// A ref, and the commit it showed.
    Named { name: String, oid: String },
    /// A whole commit id that no ref shows.
    Commit(String),
    /// The beginning of a commit id that no ref shows.
    Abbreviated(String),
}

pub(super) async fn fetch(
    job: &Job<'_>,
    scheme: &str,
    url: &str,
    reference: Option<&str>,
    subdir: Option<&str>,
) -> Result<Fetched, SourceError> {
    fetch_with(job, Programs::default(), scheme, url, reference, subdir).await
}

/// The same with another program, which writes down how it is called.
#[cfg(test)]
pub(super) async fn fetch_as(
    job: &Job<'_>,
    program: &Path,
    url: &str,
    reference: Option<&str>,
) -> Result<Fetched, SourceError> {
    let programs = Programs { git: program.to_owned(), ..Programs::default() };
    let scheme = url.split(':').next().unwrap_or_default();
    fetch_with(job, programs, scheme, url, reference, None).await
}

async fn fetch_with(
    job: &Job<'_>,
    programs: Programs,
    scheme: &str,
    url: &str,
    reference: Option<&str>,
    subdir: Option<&str>,
) -> Result<Fetched, SourceError> {
    let scratch = job.cache.scratch()?;
    let login = login(job, scheme, url).await?;
    let git = Git::new(job, programs, scheme, url, scratch.path(), login)?;
    job.say(format!("asking {url} for {}", reference.unwrap_or("its default branch"))).await;
    let refs = list_refs(&git, url).await?;
    let want = choose(url, &refs, reference)?;
    let subdir = subdir.unwrap_or_default();
    let pinned = |commit: &str| {
        let folder = if subdir.is_empty() { String::new() } else { format!("#{subdir}") };
        format!("git+{url}@{commit}{folder}")
    };
    let key = |commit: &str| format!("git {url} {commit} {subdir}");
    if let Want::Named { oid: commit, .. } | Want::Commit(commit) = &want
        && let Some((digest, tree, guard)) = job.cache.find(&key(commit)).await?
    {
        job.say(format!("commit {} was fetched before", short(commit))).await;
        let commit = Some(commit.clone());
        let pinned = pinned(commit.as_deref().unwrap_or_default());
        return Ok(Fetched { pinned, digest, commit, tree: Some(tree), package: None, image: None, guard });
    }

    let repository = scratch.path().join("repository");
    git.init(&repository).await?;
    let commit = load(job, &git, &repository, url, &refs, &want).await?;
    job.say(format!("commit {commit}")).await;
    let modules = gather(job, &git, scratch.path(), &repository, url, &commit, subdir).await?;
    let environment = git.environment();
    let limits = job.limits();
    let (digest, written, tree, guard) =
        job.write_tree(&key(&commit), move |tree| objects::write(&environment, &modules, limits, tree)).await?;
    job.say(format!("{} files, {} bytes", written.files, written.bytes)).await;
    job.say_lfs(&written).await;
    Ok(Fetched {
        pinned: pinned(&commit),
        digest,
        commit: Some(commit),
        tree: Some(tree),
        package: None,
        image: None,
        guard,
    })
}

/// What the remote is shown: the token of an account that fits the repository, else the login that is kept for the host. That
/// it is used is on record when this returns.
async fn login(job: &Job<'_>, scheme: &str, url: &str) -> Result<Option<Credential>, SourceError> {
    if scheme == "file" {
        return Ok(None);
    }
    let parsed =
        Url::parse(url).map_err(|e| SourceError::refused(format!("'{url}' is not an address: {e}"), "mend it"))?;
    if scheme != "ssh" {
        let of_account = job.forges.login(url).await;
        if let Some(login) = of_account.map_err(|e| SourceError::failed(e.to_string(), e.hint()))? {
            return Ok(Some(login));
        }
    }
    let kept = job.secrets.credential(&authority(&parsed));
    let kept = kept.map_err(|e| SourceError::failed(e.to_string(), e.hint()))?;
    let kept = kept.filter(|_| scheme != "http" || is_loopback(&parsed));
    if let Some(kept) = &kept {
        job.uses(kept).await?;
    }
    Ok(kept)
}

/// The commit that a branch or tag leads to now.
pub(super) async fn newest(
    job: &Job<'_>,
    scheme: &str,
    url: &str,
    reference: Option<&str>,
) -> Result<String, SourceError> {
    let scratch = job.cache.scratch()?;
    let login = login(job, scheme, url).await?;
    let git = Git::new(job, Programs::default(), scheme, url, scratch.path(), login)?;
    let refs = list_refs(&git, url).await?;
    match choose(url, &refs, reference)? {
        Want::Named { oid, .. } | Want::Commit(oid) => Ok(oid),
        Want::Abbreviated(_) => Err(no_ref(url, &refs, reference.unwrap_or_default())),
    }
}

fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

async fn list_refs(git: &Git<'_>, url: &str) -> Result<Vec<Ref>, SourceError> {
    let output = git.network(None, &["ls-remote", "--quiet", url, "HEAD", "refs/heads/*", "refs/tags/*"]).await?;
    let mut refs: Vec<Ref> = Vec::new();
    for line in output.lines() {
        let Some((oid, name)) = line.split_once('\t') else { continue };
        // `tag^{}` follows its tag and shows the commit behind it
        match (name.strip_suffix("^{}"), refs.last_mut()) {
            (Some(tag), Some(last)) if last.name == tag => last.oid = oid.to_owned(),
            (Some(_), _) => {}
            (None, _) => refs.push(Ref { name: name.to_owned(), oid: oid.to_owned() }),
        }
    }
    if refs.is_empty() {
        return Err(SourceError::not_found(format!("{url} has no commits"), "push something to it first"));
    }
    Ok(refs)
}

/// A branch goes before a tag of the same name, as with `git clone --branch`; a name before a commit.
fn choose(url: &str, refs: &[Ref], reference: Option<&str>) -> Result<Want, SourceError> {
    let named = |name: String| {
        let found = refs.iter().find(|r| r.name == name)?;
        Some(Want::Named { name: found.name.clone(), oid: found.oid.clone() })
    };
    let Some(asked) = reference else {
        return named("HEAD".into()).ok_or_else(|| {
            let heads = refs.iter().filter_map(|r| r.name.strip_prefix("refs/heads/")).take(5).collect::<Vec<_>>();
            SourceError::not_found(
                format!("{url} has no default branch"),
                format!("name one of its branches: {}", heads.join(", ")),
            )
        });
    };
    let candidates =
        [asked.to_owned(), format!("refs/heads/{asked}"), format!("refs/tags/{asked}"), format!("refs/{asked}")];
    if let Some(found) = candidates.into_iter().find_map(named) {
        return Ok(found);
    }
    let hex = asked.bytes().all(|b| b.is_ascii_hexdigit()) && (4..=64).contains(&asked.len());
    if hex {
        let lower = asked.to_ascii_lowercase();
        if let Some(shown) = refs.iter().find(|r| r.oid == lower) {
            return Ok(Want::Named { name: shown.name.clone(), oid: shown.oid.clone() });
        }
        // an abbreviation is never decided by the refs alone: another commit may begin the same
        return Ok(if matches!(lower.len(), 40 | 64) { Want::Commit(lower) } else { Want::Abbreviated(lower) });
    }
    Err(no_ref(url, refs, asked))
}

fn no_ref(url: &str, refs: &[Ref], asked: &str) -> SourceError {
    let names = || refs.iter().filter_map(|r| r.name.strip_prefix("refs/heads/").or(r.name.strip_prefix("refs/tags/")));
    let close = near(asked, names(), 4);
    let hint = if close.is_empty() {
        let some: Vec<&str> = names().take(6).collect();
        let more = names().count().saturating_sub(some.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("it has {}{more}", some.join(", "))
    } else {
        format!("near ones are {}", close.join(", "))
    };
    SourceError::not_found(format!("{url} has no branch, tag or commit '{asked}'"), hint)
}

/// Fetches; answers the whole commit id.
async fn load(
    job: &Job<'_>,
    git: &Git<'_>,
    repository: &Path,
    url: &str,
    refs: &[Ref],
    want: &Want,
) -> Result<String, SourceError> {
    let spec = match want {
        Want::Named { name, .. } => Some(format!("+{name}:refs/sigil/wanted")),
        Want::Commit(commit) => Some(format!("+{commit}:refs/sigil/wanted")),
        Want::Abbreviated(_) => None,
    };
    if let Some(spec) = spec {
        job.say(format!("fetching {url}")).await;
        match git.fetch(repository, url, &["--depth=1"], &[&spec]).await {
            Ok(()) => return git.commit_of(repository, "refs/sigil/wanted").await,
            // servers that know no shallow clones, or show only what refs lead to
            Err(command::Failure { unadvertised: true, .. }) => {}
            Err(failure) => return Err(failure.error),
        }
    }
    job.say(format!("fetching the whole history of {url}: what was asked for is not the tip of a branch or tag")).await;
    let all = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
    git.fetch(repository, url, &[], &all).await.map_err(|failure| failure.error)?;
    let asked = match want {
        Want::Named { oid, .. } => oid,
        Want::Commit(oid) | Want::Abbreviated(oid) => oid,
    };
    git.commit_of(repository, asked).await.map_err(|_| no_ref(url, refs, asked))
}

/// The repository and its submodules, each with the folder it fills.
async fn gather(
    job: &Job<'_>,
    git: &Git<'_>,
    scratch: &Path,
    repository: &Path,
    url: &str,
    commit: &str,
    subdir: &str,
) -> Result<Vec<Module>, SourceError> {
    let mut modules = Vec::new();
    let mut todo =
        vec![(repository.to_owned(), url.to_owned(), commit.to_owned(), subdir.to_owned(), String::new(), 0)];
    while let Some((repository, url, commit, subdir, prefix, depth)) = todo.pop() {
        let entries = git.entries(&repository, &commit, &subdir).await?;
        let submodules: Vec<_> = entries.iter().filter(|e| e.mode == "160000").cloned().collect();
        if !submodules.is_empty() {
            let addresses = git.module_addresses(&repository, &commit).await?;
            for entry in submodules {
                let full = if subdir.is_empty() { entry.path.clone() } else { format!("{subdir}/{}", entry.path) };
                let place = if prefix.is_empty() { entry.path.clone() } else { format!("{prefix}/{}", entry.path) };
                let address = addresses.iter().find(|(path, _)| *path == full).map(|(_, address)| address.as_str());
                let why = match address.map(|address| module_url(&url, address)) {
                    None => "the repository does not say where it is".to_owned(),
                    Some(Err(why)) => why,
                    Some(Ok(_)) if depth + 1 >= DEPTH => "it lies too deep".to_owned(),
                    Some(Ok(_)) if modules.len() + todo.len() >= MODULES => format!("only {MODULES} are fetched"),
                    Some(Ok(module)) => {
                        job.say(format!("submodule {place}: {module} at {}", short(&entry.oid))).await;
                        let folder: PathBuf = scratch.join(format!("module-{}-{}", modules.len(), todo.len()));
                        git.init(&folder).await?;
                        let refs = list_refs(git, &module).await?;
                        let want = choose(&module, &refs, Some(&entry.oid))?;
                        let found = load(job, git, &folder, &module, &refs, &want).await?;
                        todo.push((folder, module, found, String::new(), place, depth + 1));
                        continue;
                    }
                };
                job.say(format!("submodule {place} is not fetched: {why}")).await;
            }
        }
        modules.push(Module { repository, prefix, entries });
    }
    Ok(modules)
}

/// Where a submodule is: beside its parent, or an address of the same protocol and host. A repository must not be able to
/// make the agent call at other places, or read other folders of the host.
fn module_url(parent: &str, address: &str) -> Result<String, String> {
    let (scheme, rest) = parent.split_once("://").ok_or("its parent has no address")?;
    let authority = rest.split('/').next().unwrap_or_default();
    if address.starts_with("./") || address.starts_with("../") {
        let mut parts: Vec<&str> = rest.trim_end_matches('/').split('/').collect();
        for part in address.split('/') {
            match part {
                "." | "" => {}
                ".." if parts.len() > 1 => {
                    parts.pop();
                }
                ".." => return Err(format!("{address} leaves the host")),
                name => parts.push(name),
            }
        }
        return Ok(format!("{scheme}://{}", parts.join("/")));
    }
    let source: Result<sigil_core::source::Source, _> = format!("git+{address}").parse();
    let host = |authority: &str| authority.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
    match source {
        Ok(sigil_core::source::Source::Git { scheme: own, url, reference: None, subdir: None })
            if own == scheme && scheme != "file" =>
        {
            let own = url.split_once("://").and_then(|(_, r)| r.split('/').next()).unwrap_or_default();
            if host(own) == host(authority) { Ok(url) } else { Err(format!("{address} is on another host")) }
        }
        _ => Err(format!("{address} is not reached by {scheme}, as its parent is")),
    }
}

#[cfg(test)]
mod tests;
