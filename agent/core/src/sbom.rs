//! What is in an image: packages from lock files of the source and from what the image has installed, as a CycloneDX bill
//! of materials; and where the image came from, as an in-toto statement with SLSA provenance.
//!
//! Lock files say what was to be installed and its hash, the image what is there. A package that both know is listed once,
//! with both said.

use std::collections::{BTreeMap, BTreeSet};

use cyclonedx_bom::models::bom::{Bom, SpecVersion};
use cyclonedx_bom::models::component::{Classification, Component, Components};
use cyclonedx_bom::models::hash::{Hash, HashAlgorithm, HashValue, Hashes};
use cyclonedx_bom::models::license::{LicenseChoice, Licenses};
use cyclonedx_bom::models::metadata::Metadata;
use cyclonedx_bom::models::property::{Properties, Property};
use cyclonedx_bom::models::tool::{Tool, Tools};
use purl::{GenericPurl, GenericPurlBuilder};
use serde::Deserialize;

use crate::model::{AgentId, Release};

/// Largest file that is read for packages, bytes.
pub const FILE_MAX: u64 = 16 << 20;

/// Kinds of packages, in the words of package URLs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Npm,
    Pypi,
    Cargo,
    Golang,
    Deb,
    Apk,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Npm => "npm",
            Self::Pypi => "pypi",
            Self::Cargo => "cargo",
            Self::Golang => "golang",
            Self::Deb => "deb",
            Self::Apk => "apk",
        }
    }
}

/// What identifies a package.
type Id = (Kind, String, String);

/// What is known of one.
#[derive(Clone, PartialEq, Debug, Default)]
struct Known {
    licence: Option<String>,
    /// Algorithm and hexadecimal value, of what was fetched.
    hash: Option<(&'static str, String)>,
    /// Files that name it, the first few.
    files: BTreeSet<String>,
    locked: bool,
    installed: bool,
}

/// Files that name one package are not listed beyond so many.
const FILES: usize = 3;

/// Packages, as they are found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Packages {
    all: BTreeMap<Id, Known>,
    /// Files that could not be read, and why.
    unread: Vec<String>,
}

/// Whether a file of an image's file system says something about packages. Paths have no leading slash.
pub fn is_installed_record(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    match name {
        "METADATA" => path.contains(".dist-info/"),
        "PKG-INFO" => path.contains(".egg-info/"),
        // a package's own, not one that it has among its files
        "package.json" => {
            let mut parts = path.rsplit('/').skip(1);
            match (parts.next(), parts.next(), parts.next()) {
                (Some(_), Some("node_modules"), _) => true,
                (Some(_), Some(scope), Some("node_modules")) => scope.starts_with('@'),
                _ => false,
            }
        }
        _ => {
            matches!(path, "var/lib/dpkg/status" | "lib/apk/db/installed")
                || (path.starts_with("var/lib/dpkg/status.d/") && !path.ends_with(".md5sums"))
        }
    }
}

/// Whether a file of a source tree locks packages.
pub fn is_lock(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let known =
        ["package-lock.json", "npm-shrinkwrap.json", "Cargo.lock", "go.sum", "uv.lock", "poetry.lock", "pdm.lock"];
    let locked = known.contains(&name) || (name.starts_with("requirements") && name.ends_with(".txt"));
    locked && !path.contains("node_modules/")
}

impl Packages {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Takes what a lock file of the source says.
    pub fn lock(&mut self, path: &str, text: &str) {
        let name = path.rsplit('/').next().unwrap_or_default();
        let read = match name {
            "package-lock.json" | "npm-shrinkwrap.json" => npm_lock(text),
            "Cargo.lock" => toml_lock(text, Kind::Cargo),
            "uv.lock" | "poetry.lock" | "pdm.lock" => toml_lock(text, Kind::Pypi),
            "go.sum" => Ok(go_sum(text)),
            _ => Ok(requirements(text)),
        };
        match read {
            Ok(found) => found.into_iter().for_each(|(id, known)| self.add(id, Known { locked: true, ..known }, path)),
            Err(why) => self.unread.push(format!("{path}: {why}")),
        }
    }

    /// Takes what a file of the image says is installed.
    pub fn installed(&mut self, path: &str, text: &str) {
        let name = path.rsplit('/').next().unwrap_or_default();
        let found = match name {
            "METADATA" | "PKG-INFO" => python(text).into_iter().collect(),
            "package.json" => match package_json(text) {
                Ok(found) => found.into_iter().collect(),
                Err(why) => {
                    self.unread.push(format!("/{path}: {why}"));
                    return;
                }
            },
            "installed" => paragraphs(text).filter_map(|p| apk(&p)).collect::<Vec<_>>(),
            _ => paragraphs(text).filter_map(|p| dpkg(&p)).collect(),
        };
        let file = format!("/{path}");
        for (id, known) in found {
            self.add(id, Known { installed: true, ..known }, &file);
        }
    }

    fn add(&mut self, id: Id, new: Known, file: &str) {
        if id.1.is_empty() || id.2.is_empty() {
            return;
        }
        let known = self.all.entry(id).or_default();
        known.locked |= new.locked;
        known.installed |= new.installed;
        known.licence = known.licence.take().or(new.licence);
        known.hash = known.hash.take().or(new.hash);
        if known.files.len() < FILES {
            known.files.insert(file.to_owned());
        }
    }
}

fn known(licence: Option<&str>, hash: Option<(&'static str, String)>) -> Known {
    let licence = licence.map(str::trim).filter(|l| !l.is_empty() && l.len() <= 200 && *l != "UNKNOWN");
    Known { licence: licence.map(str::to_owned), hash, ..Known::default() }
}

/// `sha512-…` in base64, as npm writes it.
fn integrity(text: &str) -> Option<(&'static str, String)> {
    use base64::Engine as _;
    // of several the strongest comes last
    let (algorithm, value) = text.split_whitespace().last()?.split_once('-')?;
    let algorithm = match algorithm {
        "sha512" => "SHA-512",
        "sha384" => "SHA-384",
        "sha256" => "SHA-256",
        "sha1" => "SHA-1",
        _ => return None,
    };
    let bytes = base64::engine::general_purpose::STANDARD.decode(value).ok()?;
    Some((algorithm, hex::encode(bytes)))
}

#[derive(Deserialize)]
struct NpmLock {
    #[serde(default)]
    packages: BTreeMap<String, NpmPackage>,
    /// Before npm 7.
    #[serde(default)]
    dependencies: BTreeMap<String, NpmPackage>,
}

#[derive(Deserialize)]
struct NpmPackage {
    name: Option<String>,
    version: Option<String>,
    integrity: Option<String>,
    #[serde(default)]
    link: bool,
    licence: Option<serde_json::Value>,
    license: Option<serde_json::Value>,
    #[serde(default)]
    dependencies: serde_json::Value,
}

fn licence(value: Option<&serde_json::Value>) -> Option<String> {
    match value? {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Object(map) => map.get("type")?.as_str().map(str::to_owned),
        _ => None,
    }
}

fn npm_lock(text: &str) -> Result<Vec<(Id, Known)>, String> {
    let lock: NpmLock = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut found = Vec::new();
    let mut take = |name: String, package: &NpmPackage| {
        if let Some(version) = package.version.clone().filter(|_| !package.link) {
            let licence = licence(package.license.as_ref().or(package.licence.as_ref()));
            let hash = package.integrity.as_deref().and_then(integrity);
            found.push(((Kind::Npm, name, version), known(licence.as_deref(), hash)));
        }
    };
    for (path, package) in &lock.packages {
        // the tree itself, and folders of it
        let Some((_, name)) = path.rsplit_once("node_modules/") else { continue };
        take(package.name.clone().unwrap_or_else(|| name.to_owned()), package);
    }
    if lock.packages.is_empty() {
        let mut below: Vec<(String, NpmPackage)> = lock.dependencies.into_iter().collect();
        while let Some((name, package)) = below.pop() {
            take(name, &package);
            if let Ok(more) = serde_json::from_value::<BTreeMap<String, NpmPackage>>(package.dependencies) {
                below.extend(more);
            }
        }
    }
    Ok(found)
}

#[derive(Deserialize)]
struct TomlLock {
    #[serde(default)]
    package: Vec<TomlPackage>,
}

#[derive(Deserialize)]
struct TomlPackage {
    name: String,
    #[serde(default)]
    version: String,
    checksum: Option<String>,
    source: Option<toml::Value>,
}

fn toml_lock(text: &str, kind: Kind) -> Result<Vec<(Id, Known)>, String> {
    let lock: TomlLock = toml::from_str(text).map_err(|e| e.message().to_owned())?;
    // of a crate without a source, and of an editable package, the tree has the text
    let own = |package: &TomlPackage| match &package.source {
        None => kind == Kind::Cargo,
        Some(toml::Value::Table(source)) => {
            ["editable", "virtual", "directory"].iter().any(|key| source.contains_key(*key))
        }
        Some(_) => false,
    };
    let packages = lock.package.into_iter().filter(|package| !own(package));
    let of = |package: TomlPackage| {
        let hash = package.checksum.filter(|sum| sum.len() == 64).map(|sum| ("SHA-256", sum));
        ((kind, normal(kind, &package.name), package.version), known(None, hash))
    };
    Ok(packages.map(of).collect())
}

/// The name as indexes compare it (PEP 503).
fn normal(kind: Kind, name: &str) -> String {
    if kind != Kind::Pypi {
        return name.to_owned();
    }
    let mut out = String::new();
    for c in name.trim().chars() {
        match c {
            '-' | '_' | '.' if out.ends_with('-') => {}
            '-' | '_' | '.' => out.push('-'),
            c => out.push(c.to_ascii_lowercase()),
        }
    }
    out
}

fn go_sum(text: &str) -> Vec<(Id, Known)> {
    let module = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, version) = (words.next()?, words.next()?);
        // the sum of a go.mod alone stands for a module that was looked at, and is not built
        (!version.ends_with("/go.mod")).then(|| ((Kind::Golang, name.to_owned(), version.to_owned()), Known::default()))
    };
    text.lines().filter_map(module).collect()
}

fn requirements(text: &str) -> Vec<(Id, Known)> {
    let pinned = |line: &str| {
        let line = line.split('#').next()?.split(';').next()?.trim();
        let (name, version) = line.split_once("==")?;
        let name = name.split('[').next()?.trim();
        let version = version.split_whitespace().next()?.trim_start_matches('=');
        let plain = |t: &str| !t.is_empty() && t.chars().all(|c| c.is_ascii_alphanumeric() || "._-+!".contains(c));
        (plain(name) && plain(version))
            .then(|| ((Kind::Pypi, normal(Kind::Pypi, name), version.to_owned()), Known::default()))
    };
    text.lines().filter_map(pinned).collect()
}

#[derive(Deserialize)]
struct PackageJson {
    name: Option<String>,
    version: Option<String>,
    license: Option<serde_json::Value>,
}

fn package_json(text: &str) -> Result<Option<(Id, Known)>, String> {
    let package: PackageJson = serde_json::from_str(text).map_err(|e| e.to_string())?;
    // parts of a package have one without either
    let (Some(name), Some(version)) = (package.name, package.version) else { return Ok(None) };
    let licence = licence(package.license.as_ref());
    Ok(Some(((Kind::Npm, name, version), known(licence.as_deref(), None))))
}

/// Fields of a block of `Name: value` lines; continuation lines are left out.
fn fields(block: &str, between: &str) -> BTreeMap<String, String> {
    let lines = block.lines().filter(|line| !line.starts_with([' ', '\t']));
    let of = |line: &str| line.split_once(between).map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_owned()));
    let mut fields = BTreeMap::new();
    for (key, value) in lines.filter_map(of) {
        // the first counts: what follows the headers of a METADATA is prose
        fields.entry(key).or_insert(value);
    }
    fields
}

fn paragraphs(text: &str) -> impl Iterator<Item = String> {
    text.split("\n\n").filter(|p| !p.trim().is_empty()).map(str::to_owned)
}

fn python(text: &str) -> Option<(Id, Known)> {
    let head = text.split("\n\n").next().unwrap_or_default();
    let all = fields(head, ":");
    let licence = all.get("license-expression").or_else(|| all.get("license"));
    let id = (Kind::Pypi, normal(Kind::Pypi, all.get("name")?), all.get("version")?.clone());
    Some((id, known(licence.map(String::as_str), None)))
}

fn dpkg(block: &str) -> Option<(Id, Known)> {
    let all = fields(block, ":");
    // what was removed and left its configuration is not there
    let there = all.get("status").is_none_or(|status| status.ends_with(" installed"));
    there.then(|| Some(((Kind::Deb, all.get("package")?.clone(), all.get("version")?.clone()), Known::default())))?
}

fn apk(block: &str) -> Option<(Id, Known)> {
    let mut name = None;
    let (mut version, mut licence) = (None, None);
    // here large and small letters differ
    for line in block.lines() {
        match line.split_once(':') {
            Some(("P", value)) => name = Some(value.to_owned()),
            Some(("V", value)) => version = Some(value.to_owned()),
            Some(("L", value)) => licence = Some(value),
            _ => {}
        }
    }
    Some(((Kind::Apk, name?, version?), known(licence, None)))
}

/// The package URL of a package (purl-spec); `None` where its name cannot be one.
fn purl((kind, name, version): &Id, distribution: &str) -> Option<String> {
    let (namespace, name) = match kind {
        Kind::Npm | Kind::Golang => name.rsplit_once('/').map_or((None, name.as_str()), |(n, rest)| (Some(n), rest)),
        Kind::Deb | Kind::Apk if !distribution.is_empty() => (Some(distribution), name.as_str()),
        _ => (None, name.as_str()),
    };
    let mut builder = GenericPurlBuilder::new(kind.as_str().to_owned(), name).with_version(version.as_str());
    if let Some(namespace) = namespace {
        builder = builder.with_namespace(namespace);
    }
    builder.build().ok().map(|purl: GenericPurl<String>| purl.to_string())
}

/// What the bill is of.
#[derive(Clone, Debug, Default)]
pub struct Image<'a> {
    /// The deployment's name.
    pub name: &'a str,
    /// The release's number.
    pub version: &'a str,
    /// The image's content id (`sha256:…`).
    pub id: &'a str,
    /// The pinned source.
    pub source: &'a str,
    /// Of the base image, as `/etc/os-release` names it (`debian`); empty: not known.
    pub distribution: &'a str,
    /// What is missing, one line each.
    pub notes: Vec<String>,
}

/// The bill of materials, CycloneDX 1.5 as JSON. The same packages make the same text.
///
/// # Errors
/// The text of what could not be written.
pub fn cyclonedx(image: &Image<'_>, packages: &Packages) -> Result<String, String> {
    let mut components = Vec::new();
    for (id, known) in &packages.all {
        let purl = purl(id, image.distribution);
        let mut component = Component::new(Classification::Library, &id.1, &id.2, purl.clone());
        component.purl = purl.and_then(|text| text.parse().ok());
        component.licenses = known.licence.as_deref().map(|name| Licenses(vec![LicenseChoice::license(name)]));
        component.hashes = known.hash.as_ref().map(|(algorithm, value)| {
            let alg = HashAlgorithm::new_unchecked(algorithm);
            Hashes(vec![Hash { alg, content: HashValue(value.clone()) }])
        });
        let found = match (known.locked, known.installed) {
            (true, true) => "locked, installed",
            (true, false) => "locked",
            _ => "installed",
        };
        let mut properties = vec![Property::new("sigil:found", found)];
        properties.extend(known.files.iter().map(|file| Property::new("sigil:file", file)));
        component.properties = Some(Properties(properties));
        components.push(component);
    }
    let mut of = Component::new(Classification::Container, image.name, image.version, Some(image.id.to_owned()));
    of.hashes = image
        .id
        .strip_prefix("sha256:")
        .map(|digest| Hashes(vec![Hash { alg: HashAlgorithm::SHA_256, content: HashValue(digest.to_owned()) }]));
    let unread = packages.unread.iter().map(|line| format!("not read: {line}"));
    let mut properties = vec![Property::new("sigil:source", image.source)];
    properties.extend(image.notes.iter().cloned().chain(unread).map(|line| Property::new("sigil:note", &line)));
    of.properties = Some(Properties(properties));
    let bom = Bom {
        version: 1,
        serial_number: None,
        metadata: Some(Metadata {
            timestamp: None,
            tools: Some(Tools::List(vec![Tool::new("sigil", "sigil-agent", env!("CARGO_PKG_VERSION"))])),
            authors: None,
            component: Some(of),
            manufacture: None,
            supplier: None,
            licenses: None,
            properties: None,
            lifecycles: None,
        }),
        components: Some(Components(components)),
        services: None,
        external_references: None,
        dependencies: None,
        compositions: None,
        properties: None,
        vulnerabilities: None,
        signature: None,
        annotations: None,
        formulation: None,
        spec_version: SpecVersion::V1_5,
    };
    let mut out = Vec::new();
    bom.output_as_json_v1_5(&mut out).map_err(|e| e.to_string())?;
    String::from_utf8(out).map_err(|e| e.to_string())
}

/// Where a release's image came from: an in-toto statement (v1) with SLSA provenance (v1), unsigned.
pub fn provenance(name: &str, release: &Release, agent: AgentId) -> serde_json::Value {
    let spec = &release.spec;
    let digest = |text: &str| text.strip_prefix("sha256:").unwrap_or(text).to_owned();
    let mut source = serde_json::json!({ "uri": spec.source, "digest": { "sha256": digest(&spec.source_digest) } });
    if let Some(commit) = &spec.commit {
        source["digest"]["gitCommit"] = commit.as_str().into();
    }
    let materials = [source];
    serde_json::json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": name, "digest": { "sha256": digest(&spec.image) } }],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:sigil:build:1",
                "externalParameters": { "source": spec.source, "recognised": release.recognised },
                "internalParameters": { "release": release.number, "createdBy": release.created_by },
                "resolvedDependencies": materials,
            },
            "runDetails": {
                "builder": {
                    "id": format!("urn:sigil:agent:{agent}"),
                    "version": { "sigil-agent": env!("CARGO_PKG_VERSION") },
                },
                "metadata": { "finishedOn": release.created_at.to_string() },
            },
        },
    })
}

/// The distribution's id in an `os-release` file.
pub fn distribution(os_release: &str) -> String {
    let id = os_release.lines().find_map(|line| line.strip_prefix("ID="));
    id.map(|id| id.trim().trim_matches(['"', '\'']).to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cyclonedx_bom::validation::Validate;

    fn names(packages: &Packages) -> Vec<String> {
        packages.all.keys().filter_map(|id| purl(id, "debian")).collect()
    }

    #[test]
    fn lock_files_of_each_kind_are_read() {
        let mut all = Packages::default();
        all.lock(
            "package-lock.json",
            r#"{"lockfileVersion": 3, "packages": {"": {"name": "own", "version": "1.0.0"},
               "node_modules/@scope/a": {"version": "1.2.3", "license": "MIT", "integrity": "sha512-AAAA"},
               "node_modules/b/node_modules/c": {"version": "0.1.0"}, "packages/x": {"version": "1.0.0"},
               "node_modules/x": {"link": true, "resolved": "packages/x"}}}"#,
        );
        all.lock(
            "old/npm-shrinkwrap.json",
            r#"{"dependencies": {"d": {"version": "1.0.0", "dependencies": {"e": {"version": "2.0.0"}}}}}"#,
        );
        all.lock(
            "Cargo.lock",
            "[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n[[package]]\nname = \"serde\"\nversion = \"1.0.0\"\n\
             source = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"00\"\n",
        );
        all.lock(
            "uv.lock",
            "[[package]]\nname = \"own\"\nversion = \"0.1.0\"\nsource = { editable = \".\" }\n\
             [[package]]\nname = \"Typing_Extensions\"\nversion = \"4.0\"\nsource = { registry = \"https://pypi.org/simple\" }\n",
        );
        all.lock(
            "go.sum",
            "github.com/a/b v1.0.0 h1:x=\ngithub.com/a/b v1.0.0/go.mod h1:y=\ngolang.org/x/c v2.0.0/go.mod h1:z=\n",
        );
        all.lock(
            "requirements-dev.txt",
            "# pins\nmcp[cli]==1.9.4 ; python_version > '3.8' \\\n  --hash=sha256:00\nrequests>=2\n-e .\n",
        );
        assert_eq!(
            names(&all),
            [
                "pkg:npm/%40scope/a@1.2.3",
                "pkg:npm/c@0.1.0",
                "pkg:npm/d@1.0.0",
                "pkg:npm/e@2.0.0",
                "pkg:pypi/mcp@1.9.4",
                "pkg:pypi/typing-extensions@4.0",
                "pkg:cargo/serde@1.0.0",
                "pkg:golang/github.com/a/b@v1.0.0",
            ]
        );
        all.lock("package-lock.json", "{");
        assert_eq!(all.unread.len(), 1);
    }

    #[test]
    fn what_an_image_has_installed_is_read() {
        for (path, expected) in [
            ("usr/lib/python3/dist-packages/mcp-1.9.4.dist-info/METADATA", true),
            ("usr/lib/METADATA", false),
            ("app/node_modules/a/package.json", true),
            ("app/node_modules/@s/a/package.json", true),
            ("app/node_modules/a/lib/package.json", false),
            ("app/package.json", false),
            ("var/lib/dpkg/status", true),
            ("var/lib/dpkg/status.d/base", true),
            ("var/lib/dpkg/status.d/base.md5sums", false),
            ("lib/apk/db/installed", true),
        ] {
            assert_eq!(is_installed_record(path), expected, "{path}");
        }
        let mut all = Packages::default();
        all.lock("requirements.txt", "mcp==1.9.4\n");
        all.installed("x/mcp-1.9.4.dist-info/METADATA", "Name: mcp\nVersion: 1.9.4\nLicense: MIT\n\nName: prose\n");
        all.installed(
            "app/node_modules/a/package.json",
            r#"{"name": "a", "version": "1.0.0", "license": {"type": "ISC"}}"#,
        );
        all.installed("app/node_modules/p/package.json", r#"{"type": "module"}"#);
        all.installed(
            "var/lib/dpkg/status",
            "Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\nDescription: the\n Package: no\n\n\
             Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n",
        );
        all.installed("lib/apk/db/installed", "C:Q1x\nP:musl\nV:1.2.5-r0\nL:MIT\np:so:libc\n\n");
        assert_eq!(
            names(&all),
            ["pkg:npm/a@1.0.0", "pkg:pypi/mcp@1.9.4", "pkg:deb/debian/libc6@2.36-9", "pkg:apk/debian/musl@1.2.5-r0"]
        );
        let mcp = &all.all[&(Kind::Pypi, "mcp".to_owned(), "1.9.4".to_owned())];
        assert!(mcp.locked && mcp.installed && mcp.licence.as_deref() == Some("MIT") && mcp.files.len() == 2);
    }

    #[test]
    fn the_bill_is_valid_and_the_same_each_time() {
        let mut all = Packages::default();
        all.lock(
            "package-lock.json",
            r#"{"packages": {"node_modules/@s/a": {"version": "1.0.0", "license": "MIT",
               "integrity": "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg=="}}}"#,
        );
        all.installed("var/lib/dpkg/status", "Package: libc6\nVersion: 2.36-9+deb12u9\n");
        let id = format!("sha256:{}", "ab".repeat(32));
        let image = Image {
            name: "time",
            version: "3",
            id: &id,
            source: "npm:x@1.0.0",
            distribution: "debian",
            notes: vec!["a note".into()],
        };
        let text = cyclonedx(&image, &all).unwrap();
        assert_eq!(text, cyclonedx(&image, &all).unwrap());
        let bom = Bom::parse_from_json_v1_5(text.as_bytes()).unwrap();
        assert!(bom.validate_version(SpecVersion::V1_5).passed(), "{:?}", bom.validate_version(SpecVersion::V1_5));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((json["bomFormat"].as_str(), json["specVersion"].as_str()), (Some("CycloneDX"), Some("1.5")));
        assert_eq!(json["components"][0]["hashes"][0]["alg"], "SHA-512");
        assert_eq!(json["components"][1]["purl"], "pkg:deb/debian/libc6@2.36-9+deb12u9");
        assert_eq!(json["metadata"]["component"]["hashes"][0]["content"], "ab".repeat(32));
    }

    #[test]
    fn an_os_release_names_its_distribution() {
        assert_eq!(distribution("NAME=\"Debian\"\nID=debian\nVERSION_ID=\"12\"\n"), "debian");
        assert_eq!(distribution("ID=\"alpine\"\n"), "alpine");
        assert_eq!(distribution(""), "");
    }
}
