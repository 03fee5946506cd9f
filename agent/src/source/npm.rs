//! npm packages: metadata, the version that fits, the tarball checked and unpacked.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use semver::Version;
use serde::Deserialize;
use sha2::{Digest, Sha512};
use url::Url;

use super::archive::{self, Packing};
use super::http::{Http, Login};
use super::near::near;
use super::npm_range::{Range, exact};
use super::{Fetched, Job, SourceError, blocking, disk};

const DEFAULT: &str = "https://registry.npmjs.org";
const SETTING: &str = "[builder] npm_registry";
/// Longest metadata read, in bytes: packages with thousands of versions have some 20 MB of it.
const METADATA_MAX: usize = 96 << 20;
const ACCEPT: &str = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8";

#[derive(Deserialize)]
struct Metadata {
    #[serde(default, rename = "dist-tags")]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    versions: BTreeMap<String, Release>,
}

#[derive(Deserialize)]
struct Release {
    dist: Dist,
    /// A text, or (rarely) `false`.
    #[serde(default)]
    deprecated: serde_json::Value,
    #[serde(default)]
    engines: serde_json::Value,
}

#[derive(Deserialize)]
struct Dist {
    tarball: String,
    #[serde(default)]
    integrity: Option<String>,
    #[serde(default)]
    shasum: Option<String>,
}

pub(super) async fn fetch(job: &Job<'_>, name: &str, wanted: Option<&str>) -> Result<Fetched, SourceError> {
    let http = Http::new(job, Login::Bearer, SETTING)?;
    let registry = match job.config.builder.npm_registry.trim_end_matches('/') {
        "" => DEFAULT,
        own => own,
    };
    let address = format!("{registry}/{}", name.replace('/', "%2f"));
    let url = Url::parse(&address).map_err(|e| {
        SourceError::failed(format!("'{registry}' is not a registry's address: {e}"), format!("mend {SETTING}"))
    })?;
    job.say(format!("looking up npm:{name}")).await;
    let Some(document) = http.get(&url, ACCEPT, METADATA_MAX).await? else {
        return Err(SourceError::not_found(
            format!("there is no npm package '{name}'"),
            "check the spelling and the scope (@scope/name); a private one needs a source secret for its registry",
        ));
    };
    let metadata: Metadata = blocking(move || {
        serde_json::from_slice(&document.body).map_err(|e| {
            SourceError::failed(format!("the registry's answer is not npm metadata: {e}"), format!("check {SETTING}"))
        })
    })
    .await?;
    let version = pick(name, &metadata, wanted)?;
    let Some(release) = metadata.versions.get(&version) else {
        return Err(SourceError::failed(
            format!("the registry tags {name}@{version}, but does not describe it"),
            "name a version",
        ));
    };
    if let Some(why) = release.deprecated.as_str() {
        job.say(format!("npm:{name}@{version} is deprecated: {}", one_line(why))).await;
    }
    if let Some(node) = release.engines["node"].as_str() {
        job.say(format!("it asks for node {}", one_line(node))).await;
    }

    let integrity = Integrity::of(&release.dist).ok_or_else(|| {
        SourceError::refused(
            format!("the registry gives no checksum for {name}@{version}"),
            "what is loaded could not be checked; use another registry or version",
        )
    })?;
    let pinned = format!("npm:{name}@{version}");
    let key = format!("npm {name} {version} {}", integrity.shown());
    let package = Some((name.to_owned(), version.clone()));
    if let Some((digest, tree, guard)) = job.cache.find(&key).await? {
        job.say(format!("{pinned} was fetched before")).await;
        return Ok(Fetched { pinned, digest, commit: None, tree: Some(tree), package, image: None, guard });
    }

    let tarball = tarball_url(&release.dist.tarball, &url)?;
    job.say(format!("loading {pinned} from {}", super::http::authority(&tarball))).await;
    let scratch = job.cache.scratch()?;
    let file = scratch.path().join("package.tgz");
    http.download(&tarball, &file, job.config.sources.max_bytes).await?;
    let (checked, shown) = (file.clone(), pinned.clone());
    blocking(move || integrity.check(&checked, &shown)).await?;
    let (digest, written, tree, guard) =
        job.write_tree(&key, move |tree| archive::unpack(&file, Packing::TarGzip, true, tree)).await?;
    job.say(format!("{pinned}: {} files, {} bytes", written.files, written.bytes)).await;
    Ok(Fetched { pinned, digest, commit: None, tree: Some(tree), package, image: None, guard })
}

/// The version that `npm install name@wanted` would take.
fn pick(name: &str, metadata: &Metadata, wanted: Option<&str>) -> Result<String, SourceError> {
    let wanted = wanted.unwrap_or("latest").trim();
    if let Some(version) = metadata.tags.get(wanted) {
        return Ok(version.clone());
    }
    let missing = |what: String| {
        let tags: Vec<&str> = metadata.tags.keys().map(String::as_str).collect();
        let plain = wanted.trim_start_matches(['^', '~', '>', '<', '=', 'v', ' ']);
        let mut close = near(plain, metadata.versions.keys().map(String::as_str), 4);
        close.extend(near(wanted, tags.iter().copied(), 2));
        if close.is_empty() {
            let mut all: Vec<Version> = metadata.versions.keys().filter_map(|v| Version::parse(v).ok()).collect();
            all.sort();
            close = all.iter().rev().take(4).map(ToString::to_string).collect();
        }
        let latest = metadata.tags.get("latest").map(|v| format!("; the latest is {v}")).unwrap_or_default();
        let hint = match close.as_slice() {
            [] => "it has no versions at all".to_owned(),
            close => format!("there are {}{latest}", close.join(", ")),
        };
        SourceError::not_found(what, hint)
    };
    if let Some(version) = exact(wanted) {
        let text = version.to_string();
        let known = [wanted, text.as_str()].into_iter().find(|v| metadata.versions.contains_key(*v));
        return known.map(str::to_owned).ok_or_else(|| missing(format!("npm:{name} has no version {version}")));
    }
    let Some(range) = Range::parse(wanted) else {
        return Err(missing(format!("npm:{name} has no version or tag '{wanted}'")));
    };
    // what is tagged as latest wins where it fits, then what is not deprecated, then the highest
    let latest = metadata.tags.get("latest");
    let fitting = metadata.versions.iter().filter_map(|(text, release)| {
        let version = Version::parse(text).ok()?;
        range.fits(&version).then(|| (Some(text) == latest, release.deprecated.as_str().is_none(), version, text))
    });
    fitting
        .max_by(|a, b| (a.0, a.1, &a.2).cmp(&(b.0, b.1, &b.2)))
        .map(|(.., text)| text.clone())
        .ok_or_else(|| missing(format!("npm:{name} has no version in '{wanted}'")))
}

/// Mirrors often pass on the default registry's addresses; npm itself puts its own registry's host there, so do we.
fn tarball_url(text: &str, registry: &Url) -> Result<Url, SourceError> {
    let bad = |e: url::ParseError| {
        SourceError::failed(
            format!("the registry names a tarball that has no address: {e}"),
            format!("check {SETTING}"),
        )
    };
    let mut url = registry.join(text).map_err(bad)?;
    let default = Url::parse(DEFAULT).map_err(bad)?;
    if url.host_str() == default.host_str() && registry.host_str() != default.host_str() {
        let base = registry.path().rsplit_once('/').map_or("", |(base, _)| base).to_owned();
        let path = format!("{base}{}", url.path());
        let mut own = registry.clone();
        own.set_path(&path);
        own.set_query(url.query());
        url = own;
    }
    if registry.scheme() == "https" && url.scheme() != "https" {
        return Err(SourceError::refused(
            format!("the registry sends to {} without https", super::http::authority(&url)),
            format!("check {SETTING}"),
        ));
    }
    Ok(url)
}

/// What the registry says the tarball's hash is: the strongest one.
enum Integrity {
    Sha512(Vec<u8>),
    Sha1(Vec<u8>),
}

impl Integrity {
    fn of(dist: &Dist) -> Option<Self> {
        let strong = dist.integrity.iter().flat_map(|text| text.split_whitespace()).find_map(|part| {
            let encoded = part.strip_prefix("sha512-")?.split('?').next()?;
            STANDARD.decode(encoded).ok().filter(|hash| hash.len() == 64)
        });
        if let Some(hash) = strong {
            return Some(Self::Sha512(hash));
        }
        let old = dist
            .integrity
            .iter()
            .flat_map(|text| text.split_whitespace())
            .find_map(|part| STANDARD.decode(part.strip_prefix("sha1-")?).ok());
        let old = old.or_else(|| hex::decode(dist.shasum.as_deref()?).ok());
        old.filter(|hash| hash.len() == 20).map(Self::Sha1)
    }

    fn shown(&self) -> String {
        match self {
            Self::Sha512(hash) => format!("sha512-{}", STANDARD.encode(hash)),
            Self::Sha1(hash) => format!("sha1-{}", STANDARD.encode(hash)),
        }
    }

    fn check(&self, file: &Path, what: &str) -> Result<(), SourceError> {
        let found = match self {
            Self::Sha512(_) => Self::Sha512(hash_file::<Sha512>(file)?),
            Self::Sha1(_) => Self::Sha1(hash_file::<sha1::Sha1>(file)?),
        };
        if found.shown() == self.shown() {
            return Ok(());
        }
        Err(SourceError::refused(
            format!(
                "what was loaded for {what} is not what the registry describes ({} instead of {})",
                found.shown(),
                self.shown()
            ),
            "a proxy or mirror on the way changed it; do not use it",
        ))
    }
}

/// The hash of a file's bytes.
pub(super) fn hash_file<D: Digest>(file: &Path) -> Result<Vec<u8>, SourceError> {
    let mut hash = D::new();
    std::fs::File::open(file)
        .and_then(|mut f| std::io::copy(&mut f, &mut super::tree::HashWriter(&mut hash)))
        .map_err(|e| disk(file, &e))?;
    Ok(hash.finalize().to_vec())
}

/// A registry's text as part of one progress line.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        let release = |deprecated: bool| serde_json::json!({ "dist": { "tarball": "x" }, "deprecated": if deprecated { "old".into() } else { serde_json::Value::Bool(false) } });
        serde_json::from_value(serde_json::json!({
            "dist-tags": { "latest": "1.4.0", "next": "2.0.0-rc.1" },
            "versions": {
                "1.0.0": release(false), "1.4.0": release(false), "1.5.0": release(false), "1.3.0": release(true),
                "1.2.0": release(false), "2.0.0-rc.1": release(false), "0.9.0": release(true), "not-a-version": release(false)
            }
        }))
        .unwrap()
    }

    #[test]
    fn the_version_is_picked_as_npm_does() {
        let metadata = metadata();
        let pick = |wanted: Option<&str>| pick("p", &metadata, wanted).unwrap();
        assert_eq!(pick(None), "1.4.0");
        assert_eq!(pick(Some("next")), "2.0.0-rc.1");
        assert_eq!(pick(Some("v1.0.0")), "1.0.0");
        // the tagged one fits
        assert_eq!(pick(Some("^1")), "1.4.0");
        assert_eq!(pick(Some(">=1.5")), "1.5.0");
        // not deprecated before higher
        assert_eq!(pick(Some("<1.4")), "1.2.0");
        assert_eq!(pick(Some("0.x")), "0.9.0");
    }

    #[test]
    fn unknown_versions_name_near_ones() {
        let metadata = metadata();
        let fail = |wanted: &str| match pick("p", &metadata, Some(wanted)) {
            Err(SourceError::NotFound { what, hint }) => (what, hint),
            other => panic!("{other:?}"),
        };
        assert!(fail("1.4.9").1.contains("1.4.0"));
        assert!(fail("latst").1.contains("latest"));
        assert_eq!(fail("^7").0, "npm:p has no version in '^7'");
        assert!(fail("^7").1.contains("the latest is 1.4.0"), "{}", fail("^7").1);
    }

    #[test]
    fn addresses_of_the_default_registry_go_to_the_mirror() {
        let at = |registry: &str, tarball: &str| tarball_url(tarball, &Url::parse(registry).unwrap()).map(String::from);
        let default = "https://registry.npmjs.org/a/-/a-1.0.0.tgz";
        assert_eq!(at("https://registry.npmjs.org/a", default).unwrap(), default);
        assert_eq!(
            at("https://npm.corp.example/repo/npm/a", default).unwrap(),
            "https://npm.corp.example/repo/npm/a/-/a-1.0.0.tgz"
        );
        assert_eq!(at("http://127.0.0.1:4873/@s%2fa", default).unwrap(), "http://127.0.0.1:4873/a/-/a-1.0.0.tgz");
        assert_eq!(
            at("https://npm.corp.example/a", "https://cdn.corp.example/a.tgz").unwrap(),
            "https://cdn.corp.example/a.tgz"
        );
        assert!(at("https://npm.corp.example/a", "http://cdn.corp.example/a.tgz").is_err());
    }

    #[test]
    fn the_strongest_checksum_counts() {
        let dist = |integrity: Option<&str>, shasum: Option<&str>| Dist {
            tarball: String::new(),
            integrity: integrity.map(str::to_owned),
            shasum: shasum.map(str::to_owned),
        };
        let strong = format!("sha1-{} sha512-{}", STANDARD.encode([1; 20]), STANDARD.encode([2; 64]));
        assert!(matches!(Integrity::of(&dist(Some(&strong), None)), Some(Integrity::Sha512(_))));
        assert!(matches!(Integrity::of(&dist(None, Some(&"ab".repeat(20)))), Some(Integrity::Sha1(_))));
        assert!(Integrity::of(&dist(Some("md5-x"), Some("short"))).is_none());
    }
}
