//! Owns: `server.json`, the format in which MCP registries describe a server (2025-12-11): its rules and its parts.
//! May touch: nothing. Never: fetches a schema, or drops a key that it does not know. Tested by: units here.
//!
//! The shape is checked by a JSON Schema of our own that says what the published one says (by its rules, in our words);
//! what a schema cannot say (no ranges, hashes of bundles, which part needs a version) is checked beside it. All flaws are
//! named at once, each with the place where it is.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use jsonschema::Validator;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// The schema that documents of today name.
pub const SCHEMA_URL: &str = "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json";
/// The rules of a document's shape, as JSON Schema (draft 7).
pub const SHAPE: &str = include_str!("server_json/schema.json");
/// Where a publisher's own words are within `_meta`.
pub const PUBLISHER: &str = "io.modelcontextprotocol.registry/publisher-provided";
/// Largest document, bytes.
pub const DOCUMENT_MAX: usize = 512 << 10;
/// Most flaws told of one document.
const FLAWS_MAX: usize = 50;

/// A `server.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// `namespace/name`.
    pub name: String,
    /// One sentence, 100 characters at most.
    pub description: String,
    /// Its version, whatever it is called.
    pub version: String,
    /// What people call it.
    #[serde(default)]
    pub title: Option<String>,
    /// Where it is written about.
    #[serde(default)]
    pub website_url: Option<String>,
    /// Where its code is.
    #[serde(default)]
    pub repository: Option<Repository>,
    /// Ways to run it.
    #[serde(default)]
    pub packages: Vec<Package>,
    /// Where it runs already.
    #[serde(default)]
    pub remotes: Vec<Remote>,
    /// Icons.
    #[serde(default)]
    pub icons: Vec<Icon>,
    /// Extensions, by reverse domain names.
    #[serde(default, rename = "_meta")]
    pub meta: BTreeMap<String, Json>,
}

/// Where code is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// For people and for git.
    pub url: String,
    /// The forge (`github`).
    pub source: String,
    /// The folder within it; empty: its root.
    #[serde(default)]
    pub subfolder: String,
}

/// A picture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Icon {
    /// An HTTPS address.
    pub src: String,
}

/// A way to run a server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Package {
    /// `npm`, `pypi`, `oci`, `nuget`, `mcpb`, `cargo` or another.
    pub registry_type: String,
    /// Another registry than the usual one; empty: that one.
    #[serde(default)]
    pub registry_base_url: String,
    /// The package's name there, or an address.
    pub identifier: String,
    /// One version; empty where the identifier holds it.
    #[serde(default)]
    pub version: String,
    /// Hash of the file, lower-case hex; empty: none is given.
    #[serde(default)]
    pub file_sha256: String,
    /// The program that runs it (`npx`, `uvx`); empty: the usual one.
    #[serde(default)]
    pub runtime_hint: String,
    /// How it is spoken to.
    pub transport: Transport,
    /// For the program that runs it.
    #[serde(default)]
    pub runtime_arguments: Vec<Argument>,
    /// For the server.
    #[serde(default)]
    pub package_arguments: Vec<Argument>,
    /// Its environment.
    #[serde(default)]
    pub environment_variables: Vec<Named>,
}

/// How a package is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Transport {
    /// `stdio`, `streamable-http` or `sse`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A template; empty with stdio.
    #[serde(default)]
    pub url: String,
    /// To be sent along.
    #[serde(default)]
    pub headers: Vec<Named>,
}

/// Where a server runs already.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Remote {
    /// `streamable-http` or `sse`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A template of `variables`.
    pub url: String,
    /// To be sent along.
    #[serde(default)]
    pub headers: Vec<Named>,
    /// What the address asks for.
    #[serde(default)]
    pub variables: BTreeMap<String, Input>,
}

/// A value that somebody gives, or that is fixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Whether it has to be there.
    #[serde(default)]
    pub is_required: bool,
    /// `string`, `number`, `boolean` or `filepath`; empty: a string.
    #[serde(default)]
    pub format: String,
    /// Fixed, with `{variables}`.
    #[serde(default)]
    pub value: Option<String>,
    /// Whether nobody may see it.
    #[serde(default)]
    pub is_secret: bool,
    /// Where nobody says another one.
    #[serde(default)]
    pub default: Option<String>,
    /// An example.
    #[serde(default)]
    pub placeholder: String,
    /// The only values that it may have; empty: any.
    #[serde(default)]
    pub choices: Vec<String>,
}

/// An [`Input`] whose value may have variables of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// The value.
    #[serde(flatten)]
    pub input: Input,
    /// What `{braces}` in it stand for.
    #[serde(default)]
    pub variables: BTreeMap<String, Input>,
}

/// An environment variable or a header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(flatten)]
    pub template: Template,
}

/// An argument of a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    /// `positional` or `named`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The flag with its dashes; empty for a positional one.
    #[serde(default)]
    pub name: String,
    /// What a positional one is called; no part of the command line.
    #[serde(default)]
    pub value_hint: String,
    /// Whether it may be there more than once.
    #[serde(default)]
    pub is_repeated: bool,
    /// Its value.
    #[serde(flatten)]
    pub template: Template,
}

impl Input {
    /// Whether a person has to give it: it is needed, and nothing stands in for it.
    pub fn is_asked(&self) -> bool {
        self.is_required && self.value.is_none() && self.default.is_none()
    }
}

impl Template {
    /// It and its variables, each with its name.
    pub fn inputs<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, &'a Input)> {
        std::iter::once((name, &self.input)).chain(self.variables.iter().map(|(name, input)| (name.as_str(), input)))
    }
}

impl Argument {
    /// The name that people give its value by.
    pub fn label(&self) -> &str {
        if self.name.is_empty() { &self.value_hint } else { &self.name }
    }
}

impl Server {
    /// Everything that somebody may have to give, by name: environment, headers, arguments, variables of addresses.
    pub fn inputs(&self) -> Vec<(&str, &Input)> {
        let mut all = Vec::new();
        for package in &self.packages {
            for argument in package.runtime_arguments.iter().chain(&package.package_arguments) {
                all.extend(argument.template.inputs(argument.label()));
            }
            for named in package.environment_variables.iter().chain(&package.transport.headers) {
                all.extend(named.template.inputs(&named.name));
            }
        }
        for remote in &self.remotes {
            for named in &remote.headers {
                all.extend(named.template.inputs(&named.name));
            }
            all.extend(remote.variables.iter().map(|(name, input)| (name.as_str(), input)));
        }
        all
    }

    /// What the publisher adds in its own words.
    pub fn publisher(&self) -> Option<&serde_json::Map<String, Json>> {
        self.meta.get(PUBLISHER)?.as_object()
    }
}

fn validator() -> Result<&'static Validator, String> {
    static VALIDATOR: OnceLock<Result<Validator, String>> = OnceLock::new();
    let made = VALIDATOR.get_or_init(|| {
        let schema = serde_json::from_str(SHAPE).map_err(|e| e.to_string())?;
        jsonschema::options().should_validate_formats(true).build(&schema).map_err(|e| e.to_string())
    });
    made.as_ref().map_err(Clone::clone)
}

/// Reads a document that obeys the format.
///
/// # Errors
/// Every flaw, one line each.
pub fn check(document: &Json) -> Result<Server, Vec<String>> {
    let mut flaws = Vec::new();
    let validator = validator().map_err(|e| vec![format!("the schema of server.json cannot be used: {e}")])?;
    for error in validator.iter_errors(document).take(FLAWS_MAX) {
        let at = error.instance_path().to_string();
        let at = if at.is_empty() { "the document".to_owned() } else { at };
        flaws.push(format!("{at}: {}", masked(&error.to_string())));
    }
    if !flaws.is_empty() {
        return Err(flaws);
    }
    let server: Server = serde_json::from_value(document.clone()).map_err(|e| vec![e.to_string()])?;
    rules(&server, &mut flaws);
    flaws.truncate(FLAWS_MAX);
    if flaws.is_empty() { Ok(server) } else { Err(flaws) }
}

/// A line of bounded length without control characters: documents are anybody's words.
fn masked(text: &str) -> String {
    let mut line: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
    if line.len() < text.len() {
        line.push('…');
    }
    line
}

/// Whether a version names more than one.
pub fn is_range(version: &str) -> bool {
    let version = version.trim();
    let wild = |part: &str| matches!(part, "x" | "X" | "*");
    version.starts_with(['^', '~', '>', '<', '='])
        || version.contains("||")
        || version.contains(" - ")
        || version.contains(',')
        || version.split(['-', '+']).next().is_some_and(|core| core.split('.').any(wild))
}

/// What the schema cannot say.
fn rules(server: &Server, flaws: &mut Vec<String>) {
    if let Some(why) = bad_version(&server.version) {
        flaws.push(format!("/version: {why}"));
    }
    for (i, icon) in server.icons.iter().enumerate() {
        if !icon.src.starts_with("https://") {
            flaws.push(format!("/icons/{i}/src: must be an https address"));
        }
    }
    if let Some(repository) = &server.repository {
        let folder = repository.subfolder.as_str();
        if folder.starts_with('/') || folder.split('/').any(|part| part == "..") {
            flaws.push("/repository/subfolder: must be a path within the repository".to_owned());
        }
    }
    for (i, package) in server.packages.iter().enumerate() {
        let mut flaw = |at: &str, why: String| flaws.push(format!("/packages/{i}/{at}: {why}"));
        let (kind, version) = (package.registry_type.as_str(), package.version.as_str());
        if package.identifier.is_empty() || package.identifier.chars().any(|c| c.is_whitespace() || c.is_control()) {
            flaw("identifier", "must be a name or an address without spaces".into());
        }
        if !version.is_empty()
            && let Some(why) = bad_version(version)
        {
            flaw("version", why);
        }
        match kind {
            "mcpb" if package.file_sha256.is_empty() => {
                flaw("fileSha256", "a bundle (mcpb) needs the hash of its file".into());
            }
            "mcpb" if !package.identifier.starts_with("https://") => {
                flaw("identifier", "a bundle (mcpb) needs an https address".into());
            }
            "oci" if !version.is_empty() => {
                flaw("version", "an image has its tag or digest in the identifier, and no version".into());
            }
            "npm" | "pypi" | "nuget" | "cargo" if version.is_empty() => {
                flaw("version", format!("a package of {kind} needs one version"));
            }
            _ => {}
        }
        let known = |name: &str| {
            package.package_arguments.iter().chain(&package.runtime_arguments).any(|a| a.label() == name)
                || package.environment_variables.iter().any(|v| v.name == name)
                || package.package_arguments.iter().any(|a| a.label().trim_start_matches('-') == name)
        };
        for name in placeholders(&package.transport.url).filter(|name| !known(name)) {
            flaw("transport/url", format!("{{{name}}} is no argument or variable of the package"));
        }
    }
    for (i, remote) in server.remotes.iter().enumerate() {
        for name in placeholders(&remote.url).filter(|name| !remote.variables.contains_key(*name)) {
            flaws.push(format!("/remotes/{i}/url: {{{name}}} is not among its variables"));
        }
        let scheme = remote.url.split("://").next().unwrap_or_default();
        if !matches!(scheme, "http" | "https") && !remote.url.starts_with('{') {
            flaws.push(format!("/remotes/{i}/url: must begin with http://, https:// or a variable"));
        }
    }
}

fn bad_version(version: &str) -> Option<String> {
    if version.trim().is_empty() || version.chars().any(char::is_control) {
        return Some("a version cannot be empty".into());
    }
    if version == "latest" {
        return Some("'latest' is no version".into());
    }
    is_range(version).then(|| format!("'{}' names more than one version", masked(version)))
}

/// Names in `{braces}`.
pub fn placeholders(template: &str) -> impl Iterator<Item = &str> {
    template.split('{').skip(1).filter_map(|rest| rest.split_once('}').map(|(name, _)| name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn minimal() -> Json {
        json!({
            "$schema": SCHEMA_URL, "name": "io.example/weather", "description": "Tells the weather.", "version": "1.0.2",
            "packages": [{
                "registryType": "npm", "identifier": "@example/weather", "version": "1.0.2",
                "transport": {"type": "stdio"},
                "packageArguments": [
                    {"type": "positional", "valueHint": "folder", "isRequired": true, "format": "filepath"},
                    {"type": "named", "name": "--units", "default": "metric", "choices": ["metric", "imperial"]},
                ],
                "environmentVariables": [
                    {"name": "WEATHER_KEY", "isSecret": true, "isRequired": true},
                    {"name": "MOUNT", "value": "type=bind,src={from}", "variables": {"from": {"isRequired": true}}},
                ],
            }],
            "remotes": [{"type": "streamable-http", "url": "https://{place}.example.com/mcp",
                "variables": {"place": {"isRequired": true}},
                "headers": [{"name": "Authorization", "value": "Bearer {key}", "isSecret": true,
                    "variables": {"key": {"isSecret": true, "isRequired": true}}}]}],
            "_meta": {(PUBLISHER): {"category": "travel"}, "com.example/x": {"y": 1}},
        })
    }

    #[test]
    fn parts_are_read() {
        let server = check(&minimal()).unwrap();
        let asked: Vec<&str> = server.inputs().into_iter().filter(|(_, i)| i.is_asked()).map(|(n, _)| n).collect();
        assert_eq!(asked, ["folder", "WEATHER_KEY", "from", "key", "place"]);
        assert_eq!(server.publisher().unwrap()["category"], "travel");
        assert_eq!(server.packages[0].package_arguments[1].template.input.choices, ["metric", "imperial"]);
    }

    /// Each of these is one step from a document that is taken.
    #[test]
    fn flaws_are_named_with_their_place() {
        let cases: [(&str, Json, &str); 22] = [
            ("/name", json!("weather"), "/name: "),
            ("/name", json!("io.example/a/b"), "/name: "),
            ("/description", json!("x".repeat(101)), "/description: "),
            ("/description", json!(""), "/description: "),
            ("/version", json!("latest"), "/version: 'latest' is no version"),
            ("/version", json!("^1.2.3"), "/version: '^1.2.3' names more"),
            ("/version", json!("1.x"), "/version: '1.x' names more"),
            ("/version", json!("1.0.0 - 2.0.0"), "names more"),
            ("/version", json!(""), "/version: a version cannot be empty"),
            ("/packages/0/version", json!("latest"), "/packages/0/version: "),
            ("/packages/0/version", json!(">=1.2"), "/packages/0/version: '>=1.2' names more"),
            ("/packages/0/transport", json!({"type": "smoke"}), "/packages/0/transport: "),
            ("/packages/0/transport", json!({"type": "streamable-http", "url": "http://h:{port}/"}), "{port} is no"),
            ("/packages/0/registryType", json!("mcpb"), "/packages/0/fileSha256: "),
            ("/packages/0/registryType", json!("oci"), "/packages/0/version: an image has"),
            ("/packages/0/fileSha256", json!("ABC"), "/packages/0/fileSha256: "),
            ("/packages/0/packageArguments/0", json!({"type": "positional"}), "/packages/0/packageArguments/0: "),
            ("/packages/0/packageArguments/0", json!({"type": "named"}), "/packages/0/packageArguments/0: "),
            ("/remotes/0/variables", json!({}), "/remotes/0/url: {place} is not among"),
            ("/remotes/0/url", json!("ftp://x/"), "/remotes/0/url: must begin"),
            ("/icons", json!([{"src": "http://example.com/a.png"}]), "/icons/0/src: must be an https"),
            ("/repository", json!({"url": "https://x.example/y", "source": "git", "subfolder": "../z"}), "subfolder: "),
        ];
        for (at, value, expected) in cases {
            let mut document = minimal();
            match document.pointer_mut(at) {
                Some(slot) => *slot = value.clone(),
                None => {
                    let (parent, key) = at.rsplit_once('/').unwrap();
                    document.pointer_mut(parent).unwrap()[key] = value.clone();
                }
            }
            let flaws = check(&document).expect_err(&format!("{at} = {value}"));
            assert!(flaws.iter().any(|flaw| flaw.contains(expected)), "{at} = {value}: {flaws:?}");
        }
        for missing in ["name", "description", "version"] {
            let mut document = minimal();
            document.as_object_mut().unwrap().remove(missing);
            assert!(check(&document).is_err(), "{missing}");
        }
    }

    #[test]
    fn versions_that_are_no_ranges() {
        for version in ["1.0.2", "2021.03.15", "v1", "1.0.0-x.7", "1.0.0+exp", "3.0.0-beta", "xyz"] {
            assert!(!is_range(version), "{version}");
        }
    }
}
