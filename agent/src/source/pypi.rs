//! PyPI packages: the simple index (JSON, else HTML), the version that pip would take, one file checked and unpacked.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::LazyLock;

use pep440_rs::Version;
use regex::Regex;
use serde::Deserialize;
use sha2::Sha256;
use url::Url;

use super::archive::{self, Packing};
use super::http::{Document, Http, Login};
use super::near::near;
use super::npm::{hash_file, one_line};
use super::{Fetched, Job, SourceError, blocking};

const DEFAULT: &str = "https://pypi.org/simple";
const SETTING: &str = "[builder] pypi_index";
/// Longest index page read, in bytes.
const INDEX_MAX: usize = 64 << 20;
const ACCEPT: &str = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01";

/// A file of the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Item {
    name: String,
    url: String,
    sha256: Option<String>,
    requires_python: Option<String>,
    yanked: bool,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    files: Vec<PageFile>,
}

#[derive(Deserialize)]
struct PageFile {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: BTreeMap<String, String>,
    #[serde(default, rename = "requires-python")]
    requires_python: Option<String>,
    /// `false`, `true`, or the reason.
    #[serde(default)]
    yanked: serde_json::Value,
}

pub(super) async fn fetch(job: &Job<'_>, name: &str, wanted: Option<&str>) -> Result<Fetched, SourceError> {
    let http = Http::new(job, Login::Basic, SETTING)?;
    let (bare, extras) = name.split_once('[').map_or((name, String::new()), |(bare, rest)| (bare, format!("[{rest}")));
    let index = match job.config.builder.pypi_index.trim_end_matches('/') {
        "" => DEFAULT,
        own => own,
    };
    let url = Url::parse(&format!("{index}/{}/", normal(bare))).map_err(|e| {
        SourceError::failed(format!("'{index}' is not an index's address: {e}"), format!("mend {SETTING}"))
    })?;
    job.say(format!("looking up pypi:{bare}")).await;
    let Some(document) = http.get(&url, ACCEPT, INDEX_MAX).await? else {
        return Err(SourceError::not_found(
            format!("there is no PyPI package '{bare}'"),
            "check the spelling; a private one needs [builder] pypi_index and perhaps a source secret for its host",
        ));
    };
    let address = document.url.clone();
    let files = blocking(move || read_index(&document)).await?;
    let wanted_version = match wanted {
        Some(text) => Some(Version::from_str(text).map_err(|_| {
            SourceError::refused(format!("'{text}' is not a version of a Python package"), "as in pypi:name==1.2.3")
        })?),
        None => None,
    };
    let (version, file) = pick(bare, &files, wanted_version.as_ref())?;
    let requires =
        file.requires_python.as_deref().map(|r| format!(", requires Python {}", one_line(r))).unwrap_or_default();
    job.say(format!("{bare} {version}: {}{requires}", file.name)).await;
    if file.yanked {
        job.say(format!("{bare} {version} was yanked by its author")).await;
    }
    let Some(sha256) = file.sha256.clone().filter(|h| h.len() == 64) else {
        return Err(SourceError::refused(
            format!("the index gives no sha256 for {}", file.name),
            "what is loaded could not be checked; use an index that gives checksums",
        ));
    };

    let pinned = format!("pypi:{bare}{extras}=={version}");
    let key = format!("pypi {} {sha256}", file.name);
    let package = Some((format!("{bare}{extras}"), version.to_string()));
    if let Some((digest, tree, guard)) = job.cache.find(&key).await? {
        job.say(format!("{pinned} was fetched before")).await;
        return Ok(Fetched { pinned, digest, commit: None, tree: Some(tree), package, image: None, guard });
    }
    let from = address.join(&file.url).map_err(|e| {
        SourceError::failed(format!("the index names a file that has no address: {e}"), format!("check {SETTING}"))
    })?;
    if address.scheme() == "https" && from.scheme() != "https" {
        let host = super::http::authority(&from);
        return Err(SourceError::refused(
            format!("the index sends to {host} without https"),
            format!("check {SETTING}"),
        ));
    }
    let scratch = job.cache.scratch()?;
    let path = scratch.path().join("package");
    http.download(&from, &path, job.config.sources.max_bytes).await?;
    let (checked, shown) = (path.clone(), file.name.clone());
    blocking(move || {
        let found = hex::encode(hash_file::<Sha256>(&checked)?);
        if found.eq_ignore_ascii_case(&sha256) {
            return Ok(());
        }
        Err(SourceError::refused(
            format!("what was loaded for {shown} is not what the index describes (sha256 {found} instead of {sha256})"),
            "a proxy or mirror on the way changed it; do not use it",
        ))
    })
    .await?;
    let Some(packing) = Packing::of_name(&file.name) else {
        return Err(SourceError::failed(format!("{} is packed in an unknown way", file.name), "name another version"));
    };
    let strip = !is_wheel(&file.name);
    let (digest, written, tree, guard) =
        job.write_tree(&key, move |tree| archive::unpack(&path, packing, strip, tree)).await?;
    job.say(format!("{pinned}: {} files, {} bytes", written.files, written.bytes)).await;
    Ok(Fetched { pinned, digest, commit: None, tree: Some(tree), package, image: None, guard })
}

fn is_wheel(name: &str) -> bool {
    name.ends_with(".whl")
}

/// Lower case, runs of `-_.` as one `-` (PEP 503).
fn normal(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if "-_.".contains(c) {
            if !out.ends_with('-') {
                out.push('-');
            }
        } else {
            out.push(c.to_ascii_lowercase());
        }
    }
    out
}

/// The version that a file's name carries; `None` for a file of another project or kind.
fn version_of(project: &str, file: &str) -> Option<Version> {
    if is_wheel(file) {
        let mut parts = file.trim_end_matches(".whl").split('-');
        let (name, version) = (parts.next()?, parts.next()?);
        return (normal(name) == normal(project)).then(|| Version::from_str(version).ok()).flatten();
    }
    let stem = [".tar.gz", ".tgz", ".zip"].into_iter().find_map(|end| file.strip_suffix(end))?;
    // the name may hold '-' itself
    stem.match_indices('-').find_map(|(at, _)| {
        (normal(&stem[..at]) == normal(project)).then(|| Version::from_str(&stem[at + 1..]).ok()).flatten()
    })
}

/// Which of a version's files stands for it best: what every Python can run, then source, then this machine's kind.
fn rank(file: &str) -> Option<u32> {
    if !is_wheel(file) {
        return Packing::of_name(file).map(|_| 2);
    }
    let tags = file.trim_end_matches(".whl").rsplitn(4, '-').collect::<Vec<_>>();
    let [platform, abi, python, ..] = tags.as_slice() else { return None };
    if *platform == "any" && *abi == "none" {
        return python.split('.').any(|tag| tag.starts_with("py3")).then_some(4);
    }
    let machine = std::env::consts::ARCH;
    Some(u32::from(platform.contains("linux") && platform.ends_with(machine)))
}

/// As pip: the highest version that is neither yanked nor a prerelease, or else the highest prerelease.
fn pick<'a>(name: &str, files: &'a [Item], wanted: Option<&Version>) -> Result<(Version, &'a Item), SourceError> {
    let mut known: Vec<(Version, u32, &Item)> =
        files.iter().filter_map(|file| Some((version_of(name, &file.name)?, rank(&file.name)?, file))).collect();
    known.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    let stable = known.iter().rev().find(|(v, _, f)| !f.yanked && !v.any_prerelease());
    let newest = stable.or_else(|| known.iter().rev().find(|(_, _, f)| !f.yanked));
    let found = match wanted {
        Some(wanted) => known.iter().rev().find(|(v, ..)| v == wanted),
        None => newest,
    };
    if let Some((version, _, file)) = found {
        return Ok((version.clone(), file));
    }
    let versions: Vec<String> = {
        let mut all: Vec<&Version> = known.iter().map(|(v, ..)| v).collect();
        all.dedup();
        all.iter().rev().map(ToString::to_string).collect()
    };
    let latest = newest.map(|(v, ..)| format!("; the latest is {v}")).unwrap_or_default();
    match wanted {
        Some(wanted) => {
            let mut close = near(&wanted.to_string(), versions.iter().map(String::as_str), 4);
            if close.is_empty() {
                close = versions.into_iter().take(4).collect();
            }
            Err(SourceError::not_found(
                format!("pypi:{name} has no version {wanted}"),
                format!("there are {}{latest}", close.join(", ")),
            ))
        }
        None => Err(SourceError::not_found(
            format!("pypi:{name} has no version that can be installed"),
            if versions.is_empty() {
                "nothing was published".into()
            } else {
                format!("name one of {}", versions.join(", "))
            },
        )),
    }
}

fn read_index(document: &Document) -> Result<Vec<Item>, SourceError> {
    if document.content_type.contains("json") {
        let page: Page = serde_json::from_slice(&document.body).map_err(|e| {
            SourceError::failed(format!("the index's answer is not a simple index: {e}"), format!("check {SETTING}"))
        })?;
        let files = page.files.into_iter().map(|file| Item {
            sha256: file.hashes.get("sha256").cloned(),
            yanked: file.yanked.as_bool().unwrap_or(!file.yanked.is_null()),
            name: file.filename,
            url: file.url,
            requires_python: file.requires_python,
        });
        return Ok(files.collect());
    }
    if document.content_type.contains("html") {
        return Ok(read_html(&String::from_utf8_lossy(&document.body)));
    }
    Err(SourceError::failed(
        format!("the index answers '{}', which is no simple index", one_line(&document.content_type)),
        format!("check {SETTING}"),
    ))
}

static ANCHOR: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?is)<a\s([^>]*)>\s*([^<]+?)\s*</a\s*>").ok());
static ATTRIBUTE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"(?is)([a-z-]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'))?"#).ok());

/// PEP 503 pages: anchors, the hash in the fragment.
fn read_html(text: &str) -> Vec<Item> {
    let (Some(anchor), Some(attribute)) = (ANCHOR.as_ref(), ATTRIBUTE.as_ref()) else { return Vec::new() };
    let unescape = |s: &str| {
        s.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'").replace("&amp;", "&")
    };
    let mut items = Vec::new();
    for captures in anchor.captures_iter(text) {
        let mut item = Item { name: unescape(&captures[2]), ..Item::default() };
        for a in attribute.captures_iter(&captures[1]) {
            let value = unescape(a.get(2).or(a.get(3)).map_or("", |m| m.as_str()));
            match a[1].to_ascii_lowercase().as_str() {
                "href" => {
                    let (url, fragment) = value.split_once('#').unwrap_or((&value, ""));
                    item.url = url.to_owned();
                    item.sha256 = fragment.split('&').find_map(|f| f.strip_prefix("sha256=")).map(str::to_owned);
                }
                "data-requires-python" => item.requires_python = Some(value),
                "data-yanked" => item.yanked = true,
                _ => {}
            }
        }
        if !item.url.is_empty() {
            items.push(item);
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str) -> Item {
        Item { name: name.to_owned(), url: name.to_owned(), ..Item::default() }
    }

    fn picked(files: &[Item], wanted: Option<&str>) -> (String, String) {
        let wanted = wanted.map(|w| w.parse().unwrap());
        let (version, file) = pick("my-server", files, wanted.as_ref()).unwrap();
        (version.to_string(), file.name.clone())
    }

    #[test]
    fn the_latest_is_the_highest_final_one_that_is_not_yanked() {
        let mut files: Vec<Item> = [
            "my_server-1.9.0-py3-none-any.whl",
            "my_server-1.10.0-py3-none-any.whl",
            "my_server-1.10.0.tar.gz",
            "my_server-2.0.0rc1-py3-none-any.whl",
            "my_server-1.11.0-py3-none-any.whl",
            "my_server_extra-9.0.0-py3-none-any.whl",
            "my_server-9.9.9-py3.9.egg",
            "my_server-1.10.0.tar.bz2",
        ]
        .into_iter()
        .map(item)
        .collect();
        files[4].yanked = true;
        assert_eq!(picked(&files, None), ("1.10.0".into(), "my_server-1.10.0-py3-none-any.whl".into()));
        // asked for by name, yanked and prereleases are given
        assert_eq!(picked(&files, Some("1.11")).1, "my_server-1.11.0-py3-none-any.whl");
        assert_eq!(picked(&files, Some("2.0.0-rc.1")).0, "2.0.0rc1");
        let only_pre = [item("my-server-1.0a1.tar.gz"), item("my-server-1.0b2.tar.gz")];
        assert_eq!(picked(&only_pre, None).0, "1.0b2");
    }

    #[test]
    fn the_file_that_every_python_runs_comes_first_then_source() {
        let here = format!("my_server-1.0-cp312-cp312-manylinux_2_17_{}.whl", std::env::consts::ARCH);
        let all = [
            item(&here),
            item("my_server-1.0-cp312-cp312-win_amd64.whl"),
            item("my_server-1.0.tar.gz"),
            item("my_server-1.0-py2-none-any.whl"),
            item("my_server-1.0-1-py2.py3-none-any.whl"),
        ];
        assert_eq!(picked(&all, None).1, "my_server-1.0-1-py2.py3-none-any.whl");
        assert_eq!(picked(&all[..4], None).1, "my_server-1.0.tar.gz");
        assert_eq!(picked(&all[..2], None).1, here);
    }

    #[test]
    fn unknown_versions_name_what_there_is() {
        let files = [item("my_server-1.0.1.tar.gz"), item("my_server-1.0.2.tar.gz"), item("my_server-3.0.tar.gz")];
        let Err(SourceError::NotFound { what, hint }) = pick("my-server", &files, Some(&"1.0.3".parse().unwrap()))
        else {
            panic!("found")
        };
        assert_eq!(what, "pypi:my-server has no version 1.0.3");
        assert!(hint.contains("1.0.2") && hint.contains("the latest is 3.0"), "{hint}");
        assert!(matches!(pick("my-server", &[], None), Err(SourceError::NotFound { .. })));
    }

    #[test]
    fn pages_in_html_are_read() {
        let page = r#"<!DOCTYPE html><html><body><h1>Links</h1>
            <a href="../../files/my_server-1.0-py3-none-any.whl#sha256=ab12" data-requires-python="&gt;=3.10" >my_server-1.0-py3-none-any.whl</a><br/>
            <a data-yanked='bad &quot;release&quot;' href='https://f.example/my_server-1.1.tar.gz#md5=00'>my_server-1.1.tar.gz</a>
            <a href="">nothing</a></body></html>"#;
        let items = read_html(page);
        assert_eq!(items.len(), 2);
        assert_eq!(
            items[0],
            Item {
                name: "my_server-1.0-py3-none-any.whl".into(),
                url: "../../files/my_server-1.0-py3-none-any.whl".into(),
                sha256: Some("ab12".into()),
                requires_python: Some(">=3.10".into()),
                yanked: false,
            }
        );
        assert!(items[1].yanked && items[1].sha256.is_none());
    }

    #[test]
    fn names_are_compared_as_the_index_does() {
        assert_eq!(normal("My_Server..x"), "my-server-x");
        assert_eq!(version_of("a-b", "a_b-1.0-py3-none-any.whl").map(|v| v.to_string()).as_deref(), Some("1.0"));
        assert_eq!(version_of("a-b", "a-b-1.0.post1.tar.gz").map(|v| v.to_string()).as_deref(), Some("1.0.post1"));
        assert!(version_of("a", "a_b-1.0-py3-none-any.whl").is_none());
        assert!(version_of("a", "a-1.0.exe").is_none());
    }
}
