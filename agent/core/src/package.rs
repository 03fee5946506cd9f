//! Owns: what a package of the registry is: its versions, which of them is the latest, what it takes to set it up, how it
//! ranks, how its use fades, and how the official API shows it. May touch: nothing. Never: reads a clock, or changes a
//! document that was published. Tested by: units here and beside the parts.

pub mod cursor;
pub mod filter;
pub mod rank;
pub mod run;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};
use sha2::{Digest as _, Sha256};
use sigil_config::server_json::Server;

/// Under this key of an answer's `_meta` the official API has what the registry knows.
pub const OFFICIAL: &str = "io.modelcontextprotocol.registry/official";
/// Under this one it has what only this registry knows: verdict, provenance, tools, secrets.
pub const OWN: &str = "io.sigil.registry/package";
/// Longest message of a status, characters.
pub const MESSAGE_MAX: usize = 500;
/// Largest README that is kept, bytes.
pub const README_MAX: usize = 64 << 10;
/// Most tools, tags, authors or secrets that are kept of one version.
pub const LIST_MAX: usize = 500;
/// Tools of each package that a list tells, and characters of what each of them does.
const LISTED_TOOLS: usize = 50;
const LISTED_WORDS: usize = 160;
/// Changes of status that are remembered of one version; the oldest go first.
const TURNS_MAX: usize = 20;

/// What a version is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// To be used.
    #[default]
    Active,
    /// Still there, but there is something better.
    Deprecated,
    /// Not to be used; it is shown to those who ask for it.
    Deleted,
}

impl Status {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deprecated => "deprecated",
            Self::Deleted => "deleted",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Status {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Active, Self::Deprecated, Self::Deleted]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| format!("'{text}' is no status: active, deprecated or deleted"))
    }
}

/// A change of status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// What it became.
    pub status: Status,
    /// Why, in somebody's words.
    #[serde(default)]
    pub message: String,
    /// When.
    pub at: Timestamp,
    /// Who did it.
    pub by: String,
}

/// A tool that a server has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does.
    #[serde(default)]
    pub description: String,
}

/// A secret that a server asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its name, as an environment variable or a header.
    pub name: String,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// Whether nothing goes without it.
    #[serde(default)]
    pub required: bool,
}

/// What the scanner said of a version's source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// `safe`, `warning` or `blocked`.
    pub verdict: String,
    /// Findings by rule.
    #[serde(default)]
    pub findings: Vec<String>,
    /// When it was scanned.
    #[serde(default)]
    pub at: Option<Timestamp>,
}

/// What is known of a version beside its document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Extras {
    /// Its category; empty: none.
    pub category: String,
    /// Tags, lower-case.
    pub tags: Vec<String>,
    /// Who wrote it.
    pub authors: Vec<String>,
    /// Markdown; empty: none.
    pub readme: String,
    /// What it is written in, where the document does not say so (`node`, `python`).
    pub runtime: String,
    /// Its tools.
    pub tools: Vec<Tool>,
    /// Secrets beside those of the document.
    pub secrets: Vec<Secret>,
    /// JSON Schema of its configuration.
    pub config: Option<Json>,
    /// What the scanner said.
    pub verdict: Option<Verdict>,
    /// Where it comes from: source, commit, digests, builder.
    pub provenance: Option<Json>,
    /// The very source, as `sigil deploy` takes it; empty: it cannot be had again, or nobody knows.
    pub source: String,
}

/// Where a version comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Published here.
    #[default]
    Own,
    /// Of another registry, by the name that its mirror has.
    Mirror(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("own"),
            Self::Mirror(name) => write!(f, "mirror:{name}"),
        }
    }
}

/// A published version. Its document never changes; its status does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// The document (`server.json`), as it was published.
    pub server: Json,
    /// Of the document, whatever the order of its keys ([`digest`]).
    pub digest: String,
    /// What is known beside it.
    #[serde(default)]
    pub extras: Extras,
    /// Where it comes from.
    #[serde(default)]
    pub origin: Origin,
    /// What it is good for.
    #[serde(default)]
    pub status: Status,
    /// Why; empty: nobody said.
    #[serde(default)]
    pub message: String,
    /// How that came about, the newest last.
    #[serde(default)]
    pub turns: Vec<Turn>,
    /// When it was published.
    pub published_at: Timestamp,
    /// When anything of it changed.
    pub updated_at: Timestamp,
    /// By whom; empty: another registry.
    #[serde(default)]
    pub published_by: String,
    /// Whose it is, by the team's id; empty: everybody's.
    #[serde(default)]
    pub team: String,
    /// That another registry calls this one its latest.
    #[serde(default)]
    pub upstream_latest: bool,
}

fn text<'a>(server: &'a Json, key: &str) -> &'a str {
    server.get(key).and_then(Json::as_str).unwrap_or_default()
}

impl Version {
    /// The package's name.
    pub fn name(&self) -> &str {
        text(&self.server, "name")
    }

    /// What this version is called.
    pub fn version(&self) -> &str {
        text(&self.server, "version")
    }

    /// What people call it: its title, else its name.
    pub fn title(&self) -> &str {
        Some(text(&self.server, "title")).filter(|title| !title.is_empty()).unwrap_or_else(|| self.name())
    }

    /// One sentence.
    pub fn description(&self) -> &str {
        text(&self.server, "description")
    }

    /// Gives it another status. Answers whether that changes anything.
    pub fn turn(&mut self, status: Status, message: &str, by: &str, now: Timestamp) -> bool {
        if self.status == status && self.message == message {
            return false;
        }
        (self.status, self.message) = (status, message.to_owned());
        self.turns.push(Turn { status, message: message.to_owned(), at: now, by: by.to_owned() });
        let over = self.turns.len().saturating_sub(TURNS_MAX);
        self.turns.drain(..over);
        self.updated_at = now;
        true
    }
}

/// SHA-256 of a document, lower-case hex: the same for the same document, whatever the order of its keys.
pub fn digest(document: &Json) -> String {
    fn sorted(value: &Json) -> Json {
        match value {
            Json::Object(map) => {
                let mut keys: Vec<&String> = map.keys().collect();
                keys.sort();
                let entries = keys.into_iter().map(|key| (key.clone(), sorted(&map[key])));
                Json::Object(entries.collect::<Map<_, _>>())
            }
            Json::Array(list) => Json::Array(list.iter().map(sorted).collect()),
            other => other.clone(),
        }
    }
    hex::encode(Sha256::digest(sorted(document).to_string()))
}

/// A version's number, where it has one: `v1.2` counts as 1.2.0.
fn number(version: &str) -> Option<semver::Version> {
    let plain = version.strip_prefix('v').unwrap_or(version);
    if let Ok(exact) = plain.parse() {
        return Some(exact);
    }
    let end = plain.find(['-', '+']).unwrap_or(plain.len());
    let (core, rest) = plain.split_at(end);
    match core.split('.').count() {
        1 => format!("{core}.0.0{rest}").parse().ok(),
        2 => format!("{core}.0{rest}").parse().ok(),
        _ => None,
    }
}

/// Which of two versions is the later one: by number where all have one, else by the day.
fn later(numbered: bool, a: &Version, b: &Version) -> Ordering {
    let by_day = || a.published_at.cmp(&b.published_at).then_with(|| a.version().cmp(b.version()));
    match (numbered, number(a.version()), number(b.version())) {
        (true, Some(x), Some(y)) => x.cmp(&y).then_with(by_day),
        _ => by_day(),
    }
}

/// The one that `latest` means: of those that are not deleted (if there are such) the one that another registry says it is,
/// else the highest number, else the newest.
pub fn latest(versions: &[Version]) -> Option<&Version> {
    let alive = versions.iter().any(|v| v.status != Status::Deleted);
    let of: Vec<&Version> = versions.iter().filter(|v| !alive || v.status != Status::Deleted).collect();
    if of.iter().all(|v| v.origin != Origin::Own)
        && let Some(said) = of.iter().find(|v| v.upstream_latest)
    {
        return Some(said);
    }
    let numbered = of.iter().all(|v| number(v.version()).is_some());
    of.into_iter().max_by(|a, b| later(numbered, a, b))
}

/// What a package is, over all its versions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Package {
    /// `namespace/name`.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// One sentence.
    pub description: String,
    /// The version that `latest` means.
    pub latest: String,
    /// How many versions there are, deleted ones too.
    pub versions: u32,
    /// Of the latest.
    pub status: Status,
    /// Why.
    #[serde(default)]
    pub message: String,
    /// Its category; empty: none.
    #[serde(default)]
    pub category: String,
    /// Tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Who wrote it.
    #[serde(default)]
    pub authors: Vec<String>,
    /// What runs it: `node`, `python`, `container`, `dotnet`, `rust`, `bundle`, `remote`.
    #[serde(default)]
    pub runtimes: Vec<String>,
    /// `stdio`, `http`, `sse`.
    #[serde(default)]
    pub transports: Vec<String>,
    /// Names of its tools.
    #[serde(default)]
    pub tools: Vec<String>,
    /// Names of secrets that it asks for.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// What the scanner said; empty: nobody asked it.
    #[serde(default)]
    pub verdict: String,
    /// What somebody has to do before it runs.
    #[serde(default)]
    pub setup: Setup,
    /// When its first version was published.
    #[serde(default)]
    pub published_at: Timestamp,
    /// When anything of it changed, for the last time.
    #[serde(default)]
    pub updated_at: Timestamp,
    /// Where its latest version comes from.
    #[serde(default)]
    pub origin: Origin,
    /// Whose it is, by the team's id.
    #[serde(default)]
    pub team: String,
}

/// What somebody has to do before a server runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Setup {
    /// Nothing.
    #[default]
    None,
    /// One or two values.
    Simple,
    /// More.
    Involved,
}

impl Setup {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Simple => "simple",
            Self::Involved => "involved",
        }
    }

    fn of(asked: usize) -> Self {
        match asked {
            0 => Self::None,
            1 | 2 => Self::Simple,
            _ => Self::Involved,
        }
    }
}

/// A word for what runs a kind of package.
pub fn runtime_of(registry_type: &str) -> &str {
    match registry_type {
        "npm" => "node",
        "pypi" => "python",
        "oci" => "container",
        "nuget" => "dotnet",
        "cargo" => "rust",
        "mcpb" => "bundle",
        other => other,
    }
}

fn transport_of(kind: &str) -> &str {
    if kind == "streamable-http" { "http" } else { kind }
}

/// What a version's document and the rest ask for and offer, as the lists of a [`Package`].
pub fn secrets_of(server: &Server, extras: &Extras) -> Vec<Secret> {
    let mut seen = BTreeSet::new();
    let of_document = server.inputs().into_iter().filter(|(_, input)| input.is_secret).map(|(name, input)| Secret {
        name: name.to_owned(),
        description: input.description.clone(),
        required: input.is_required,
    });
    let all = of_document.chain(extras.secrets.iter().cloned());
    all.filter(|secret| !secret.name.is_empty() && seen.insert(secret.name.clone())).take(LIST_MAX).collect()
}

/// The package that these versions make; `None` without any.
pub fn summary(versions: &[Version]) -> Option<Package> {
    let latest = latest(versions)?;
    // a mirrored document may break the rules that ours obey: what can be read of it counts
    let server: Server = serde_json::from_value(latest.server.clone()).unwrap_or_default();
    let extras = &latest.extras;
    let mut runtimes: BTreeSet<&str> = server.packages.iter().map(|p| runtime_of(&p.registry_type)).collect();
    if !extras.runtime.is_empty() {
        runtimes.insert(&extras.runtime);
    }
    if !server.remotes.is_empty() {
        runtimes.insert("remote");
    }
    let transports: BTreeSet<&str> = server
        .packages
        .iter()
        .map(|p| transport_of(&p.transport.kind))
        .chain(server.remotes.iter().map(|r| transport_of(&r.kind)))
        .collect();
    let secrets = secrets_of(&server, extras);
    let asked: BTreeSet<&str> = server
        .inputs()
        .into_iter()
        .filter(|(_, input)| input.is_asked())
        .map(|(name, _)| name)
        .chain(extras.secrets.iter().filter(|s| s.required).map(|s| s.name.as_str()))
        .collect();
    let words = |set: BTreeSet<&str>| set.into_iter().filter(|w| !w.is_empty()).map(str::to_owned).collect();
    Some(Package {
        name: latest.name().to_owned(),
        title: latest.title().to_owned(),
        description: latest.description().to_owned(),
        latest: latest.version().to_owned(),
        versions: u32::try_from(versions.len()).unwrap_or(u32::MAX),
        status: latest.status,
        message: latest.message.clone(),
        category: extras.category.clone(),
        tags: extras.tags.clone(),
        authors: extras.authors.clone(),
        runtimes: words(runtimes),
        transports: words(transports),
        tools: extras.tools.iter().map(|tool| tool.name.clone()).collect(),
        secrets: secrets.into_iter().map(|secret| secret.name).collect(),
        verdict: extras.verdict.as_ref().map(|v| v.verdict.clone()).unwrap_or_default(),
        setup: Setup::of(asked.len()),
        published_at: versions.iter().map(|v| v.published_at).min().unwrap_or_default(),
        updated_at: versions.iter().map(|v| v.updated_at).max().unwrap_or_default(),
        origin: latest.origin.clone(),
        team: latest.team.clone(),
    })
}

/// What a publisher says in its document's `_meta` beside the document, where it says it in these words: `category`, `tags`,
/// `authors`, `readme`, `tools`. What has another shape is passed over.
pub fn said(server: &Server) -> Extras {
    let Some(said) = server.publisher() else { return Extras::default() };
    let words = |key: &str| -> Vec<String> {
        let list = said.get(key).and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Json::as_str).map(str::to_owned).collect()
    };
    let line = |key: &str| said.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
    let readme = match line("readme") {
        readme if readme.is_empty() => said
            .get("github")
            .and_then(|github| github.get("readme"))
            .and_then(Json::as_str)
            .unwrap_or_default()
            .to_owned(),
        readme => readme,
    };
    let tool = |tool: &Json| match tool {
        Json::String(name) => Some(Tool { name: name.clone(), description: String::new() }),
        other => serde_json::from_value(other.clone()).ok(),
    };
    let tools = said.get("tools").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
    Extras {
        category: line("category"),
        tags: words("tags"),
        authors: words("authors"),
        readme,
        tools: tools.iter().filter_map(tool).collect(),
        ..Extras::default()
    }
}

impl Extras {
    /// Within the bounds that one version has, without what no list should have: control characters, empty words, the
    /// same twice. What is too long is cut.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        fn line(text: &mut String, max: usize) {
            *text = text.chars().filter(|c| !c.is_control()).take(max).collect::<String>().trim().to_owned();
        }
        fn cut(text: &mut String, max: usize) {
            if text.len() > max {
                let end = (0..=max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
                text.truncate(end);
            }
        }
        line(&mut self.category, 64);
        self.category = self.category.to_lowercase();
        line(&mut self.runtime, 32);
        line(&mut self.source, 2048);
        cut(&mut self.readme, README_MAX);
        for (list, max, lower) in [(&mut self.tags, 64, true), (&mut self.authors, 128, false)] {
            let mut seen = BTreeSet::new();
            for word in list.iter_mut() {
                line(word, max);
                if lower {
                    *word = word.to_lowercase();
                }
            }
            list.retain(|word| !word.is_empty() && seen.insert(word.clone()));
            list.truncate(LIST_MAX);
        }
        for tool in &mut self.tools {
            line(&mut tool.name, 256);
            cut(&mut tool.description, 4096);
        }
        self.tools.retain(|tool| !tool.name.is_empty());
        self.tools.truncate(LIST_MAX);
        for secret in &mut self.secrets {
            line(&mut secret.name, 256);
            line(&mut secret.description, 1000);
        }
        self.secrets.retain(|secret| !secret.name.is_empty());
        self.secrets.truncate(LIST_MAX);
        self
    }

    /// What is said here, else what `other` says.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        fn either<T>(a: Vec<T>, b: Vec<T>) -> Vec<T> {
            if a.is_empty() { b } else { a }
        }
        let text = |a: String, b: String| if a.is_empty() { b } else { a };
        Self {
            category: text(self.category, other.category),
            tags: either(self.tags, other.tags),
            authors: either(self.authors, other.authors),
            readme: text(self.readme, other.readme),
            runtime: text(self.runtime, other.runtime),
            source: text(self.source, other.source),
            tools: either(self.tools, other.tools),
            secrets: either(self.secrets, other.secrets),
            config: self.config.or(other.config),
            verdict: self.verdict.or(other.verdict),
            provenance: self.provenance.or(other.provenance),
        }
    }
}

/// A version as the official API shows it. `whole`: with its README, configuration schema and provenance.
pub fn shown(version: &Version, is_latest: bool, whole: bool) -> Json {
    let mut official = json!({
        "status": version.status,
        "statusChangedAt": version.turns.last().map_or(version.published_at, |turn| turn.at),
        "publishedAt": version.published_at,
        "updatedAt": version.updated_at,
        "isLatest": is_latest,
    });
    if !version.message.is_empty() {
        official["statusMessage"] = json!(version.message);
    }
    let extras = &version.extras;
    let server: Server = serde_json::from_value(version.server.clone()).unwrap_or_default();
    let mut own = Map::new();
    let mut put = |key: &str, value: Json| {
        let empty = match &value {
            Json::Null => true,
            Json::String(text) => text.is_empty(),
            Json::Array(list) => list.is_empty(),
            _ => false,
        };
        if !empty {
            own.insert(key.to_owned(), value);
        }
    };
    put("digest", json!(format!("sha256:{}", version.digest)));
    put("origin", json!(version.origin.to_string()));
    put("source", json!(extras.source));
    put("category", json!(extras.category));
    put("tags", json!(extras.tags));
    put("authors", json!(extras.authors));
    // a page of a hundred packages is for looking through
    let tools = extras.tools.iter().take(if whole { LIST_MAX } else { LISTED_TOOLS });
    let told = |tool: &Tool| match whole {
        true => json!(tool),
        false => {
            json!({ "name": tool.name, "description": tool.description.chars().take(LISTED_WORDS).collect::<String>() })
        }
    };
    put("tools", tools.map(told).collect());
    put("secrets", json!(secrets_of(&server, extras)));
    put("verdict", json!(extras.verdict));
    if whole {
        put("readme", json!(extras.readme));
        put("configSchema", json!(extras.config));
        put("provenance", json!(extras.provenance));
    }
    json!({ "server": version.server, "_meta": { OFFICIAL: official, OWN: own } })
}

#[cfg(test)]
mod tests {
    use sigil_config::server_json::PUBLISHER;

    use super::*;

    fn day(n: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + n * 86_400).unwrap()
    }

    fn version(version: &str, at: i64) -> Version {
        let server = json!({
            "name": "io.example/weather", "description": "Tells the weather.", "version": version,
            "packages": [{"registryType": "npm", "identifier": "weather", "version": "1.0.0",
                "transport": {"type": "stdio"},
                "environmentVariables": [{"name": "WEATHER_KEY", "isSecret": true, "isRequired": true}]}],
            "remotes": [{"type": "streamable-http", "url": "https://weather.example.com/mcp"}],
        });
        Version {
            digest: digest(&server),
            server,
            extras: Extras::default(),
            origin: Origin::Own,
            status: Status::Active,
            message: String::new(),
            turns: Vec::new(),
            published_at: day(at),
            updated_at: day(at),
            published_by: "ada".into(),
            team: "default".into(),
            upstream_latest: false,
        }
    }

    #[test]
    fn the_latest_is_the_highest_number_that_is_not_deleted() {
        let latest_of = |all: &[Version]| latest(all).unwrap().version().to_owned();
        let mut all = vec![version("1.10.0", 0), version("1.9.0", 1), version("v1.11", 2), version("1.12.0-rc.1", 3)];
        assert_eq!(latest_of(&all), "1.12.0-rc.1");
        all[3].turn(Status::Deleted, "broken", "ada", day(4));
        assert_eq!(latest_of(&all), "v1.11");
        all.push(version("summer", 1));
        assert_eq!(latest_of(&all), "v1.11", "where one has no number, the newest");
        for v in &mut all {
            v.turn(Status::Deleted, "", "ada", day(5));
        }
        assert_eq!(latest_of(&all), "1.12.0-rc.1", "all of them deleted");
        assert!(latest(&[]).is_none());
        let mut mirrored = vec![version("2.0.0", 0), version("1.9.5", 1)];
        for v in &mut mirrored {
            v.origin = Origin::Mirror("official".into());
        }
        mirrored[1].upstream_latest = true;
        assert_eq!(latest_of(&mirrored), "1.9.5", "what its registry says counts");
    }

    #[test]
    fn a_document_is_the_same_in_any_order() {
        let a: Json = serde_json::from_str(r#"{"a":1,"b":{"c":[1,2],"d":null}}"#).unwrap();
        let b: Json = serde_json::from_str(r#"{"b":{"d":null,"c":[1,2]},"a":1}"#).unwrap();
        assert_eq!(digest(&a), digest(&b));
        let c: Json = serde_json::from_str(r#"{"b":{"d":null,"c":[2,1]},"a":1}"#).unwrap();
        assert_ne!(digest(&a), digest(&c));
    }

    #[test]
    fn a_package_says_what_it_takes() {
        let mut one = version("1.0.0", 0);
        one.extras.tools = vec![Tool { name: "get_weather".into(), description: "now".into() }];
        one.extras.secrets = vec![Secret { name: "MAP_KEY".into(), required: true, ..Secret::default() }];
        let package = summary(&[one]).unwrap();
        assert_eq!(
            (package.runtimes, package.transports),
            (vec!["node".into(), "remote".into()], vec!["http".to_owned(), "stdio".to_owned()])
        );
        assert_eq!(
            (package.secrets.as_slice(), package.setup),
            (["WEATHER_KEY", "MAP_KEY"].map(str::to_owned).as_slice(), Setup::Simple)
        );
        assert_eq!(package.tools, ["get_weather"]);
    }

    #[test]
    fn a_status_is_remembered() {
        let mut one = version("1.0.0", 0);
        assert!(one.turn(Status::Deprecated, "use 2", "ada", day(1)));
        assert!(!one.turn(Status::Deprecated, "use 2", "bob", day(2)), "nothing changes");
        let shown = shown(&one, true, false);
        let official = &shown["_meta"][OFFICIAL];
        assert_eq!((&official["status"], &official["statusMessage"]), (&json!("deprecated"), &json!("use 2")));
        assert_eq!(official["statusChangedAt"], json!(day(1)));
        assert_eq!(shown["_meta"][OWN]["secrets"][0]["name"], "WEATHER_KEY");
        for n in 0..50 {
            one.turn(if n % 2 == 0 { Status::Active } else { Status::Deleted }, "", "ada", day(n + 2));
        }
        assert_eq!(one.turns.len(), TURNS_MAX);
    }

    #[test]
    fn what_publishers_say_is_taken_within_bounds() {
        let mut one = version("1.0.0", 0).server;
        one["_meta"] = json!({(PUBLISHER): {"category": "Travel", "tags": ["A", "a", "", 7], "tools": ["x", {"name": "y"}, 3],
            "github": {"readme": "# hi"}}});
        let server = sigil_config::server_json::check(&one).unwrap();
        let extras = said(&server).bounded();
        assert_eq!((extras.category.as_str(), extras.tags.as_slice()), ("travel", ["a".to_owned()].as_slice()));
        assert_eq!((extras.tools.len(), extras.readme.as_str()), (2, "# hi"));
        let long = Extras { readme: "é".repeat(README_MAX), ..Extras::default() }.bounded();
        assert!(long.readme.len() <= README_MAX);
    }
}
