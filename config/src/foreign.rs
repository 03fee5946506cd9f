//! Owns: other catalogues' descriptions of servers -> `server.json`: Docker's (`server.yaml`, `catalog.yaml`) and Smithery's
//! (answers of its registry). May touch: nothing. Never: makes up what is not there; what has no place in a `server.json` is
//! named in a note. Tested by: units here.

mod docker;
mod smithery;

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use crate::server_json::{self, PUBLISHER, SCHEMA_URL};

/// A server of another catalogue.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    /// Its `server.json`, without a version: these catalogues have none.
    pub document: Json,
    /// What was not taken over, a line each.
    pub notes: Vec<String>,
}

/// A version that is made of what a document says: these catalogues number nothing.
pub const NUMBERED_BY_CONTENT: &str = "content-";

/// What a file of another catalogue holds: each server, or why it is not taken. `None`: it is none of theirs.
pub fn read(value: &Json) -> Option<Vec<Result<Taken, String>>> {
    if let Some(registry) = value.get("registry").and_then(Json::as_object) {
        return Some(registry.iter().map(|(name, tile)| docker::tile(name, tile)).collect());
    }
    let list = value.get("servers").and_then(Json::as_array);
    if let Some(snapshots) = list.filter(|list| !list.is_empty() && list.iter().all(|s| s.get("snapshot").is_some())) {
        let of = |entry: &Json| docker::tile("", &entry["snapshot"]["server"]);
        return Some(snapshots.iter().map(of).collect());
    }
    if let Some(list) = list.filter(|list| !list.is_empty() && list.iter().all(|s| s.get("qualifiedName").is_some())) {
        return Some(list.iter().map(smithery::server).collect());
    }
    if value.get("qualifiedName").is_some() {
        return Some(vec![smithery::server(value)]);
    }
    let kind = value.get("type").and_then(Json::as_str);
    let dockers = matches!(kind, Some("server" | "remote" | "poci")) && value.get("name").is_some();
    dockers.then(|| vec![docker::server(value)])
}

fn text<'a>(value: &'a Json, key: &str) -> &'a str {
    value.get(key).and_then(Json::as_str).map(str::trim).unwrap_or_default()
}

fn list<'a>(value: &'a Json, key: &str) -> &'a [Json] {
    value.get(key).and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Whether something is there and is not nothing.
fn said(value: &Json, key: &str) -> bool {
    match value.get(key) {
        None | Some(Json::Null | Json::Bool(false)) => false,
        Some(Json::Array(list)) => !list.is_empty(),
        Some(Json::Object(map)) => !map.is_empty(),
        Some(Json::String(text)) => !text.is_empty(),
        Some(_) => true,
    }
}

/// A `server.json` that grows.
struct Draft {
    document: Map<String, Json>,
    publisher: Map<String, Json>,
    notes: Vec<String>,
}

impl Draft {
    /// Of a package within a namespace; its last part is `name` with what no name may have replaced.
    fn new(namespace: &str, name: &str) -> Result<Self, String> {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = name.trim_matches(['@', ' ']).chars().map(plain).collect();
        if name.is_empty() {
            return Err("a server without a name".into());
        }
        let mut document = Map::new();
        document.insert("$schema".into(), json!(SCHEMA_URL));
        document.insert("name".into(), json!(format!("{namespace}/{name}")));
        Ok(Self { document, publisher: Map::new(), notes: Vec::new() })
    }

    fn name(&self) -> String {
        self.document.get("name").and_then(Json::as_str).unwrap_or_default().to_owned()
    }

    fn note(&mut self, what: impl std::fmt::Display) {
        let line = format!("{}: {what}", self.name());
        self.notes.push(line);
    }

    /// A description of one line and a hundred characters; the whole of it is kept as the README.
    fn describe(&mut self, words: &str) {
        let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
        let short: String = line.chars().take(100).collect();
        if short.len() < line.len() {
            let cut = short.rsplit_once(' ').map_or(short.as_str(), |(head, _)| head);
            let cut: String = cut.chars().take(99).collect();
            self.document.insert("description".into(), json!(format!("{cut}…")));
            self.publisher.insert("readme".into(), json!(words));
        } else {
            self.document.insert("description".into(), json!(line));
        }
    }

    fn title(&mut self, title: &str) {
        if !title.is_empty() {
            self.document.insert("title".into(), json!(title.chars().take(100).collect::<String>()));
        }
    }

    fn icon(&mut self, address: &str) {
        if address.starts_with("https://") && address.len() <= 255 && url::Url::parse(address).is_ok() {
            self.document.insert("icons".into(), json!([{ "src": address }]));
        }
    }

    fn repository(&mut self, address: &str, folder: &str) {
        let address = address.trim_end_matches('/');
        if !address.starts_with("https://") || url::Url::parse(address).is_err() {
            return;
        }
        let source = if address.starts_with("https://github.com/") { "github" } else { "git" };
        let mut repository = json!({ "url": address, "source": source });
        if !folder.is_empty() && folder != "." {
            repository["subfolder"] = json!(folder.trim_matches('/'));
        }
        self.document.insert("repository".into(), repository);
    }

    fn tools(&mut self, tools: &[Json]) {
        let tool = |tool: &Json| json!({ "name": text(tool, "name"), "description": text(tool, "description") });
        let tools: Vec<Json> = tools.iter().filter(|t| !text(t, "name").is_empty()).map(tool).collect();
        if !tools.is_empty() {
            self.publisher.insert("tools".into(), json!(tools));
        }
    }

    /// The document, when it obeys the format.
    fn done(mut self) -> Result<Taken, String> {
        let name = self.name();
        if !self.publisher.is_empty() {
            self.document.insert("_meta".into(), json!({ (PUBLISHER): self.publisher }));
        }
        let document = Json::Object(self.document);
        let mut numbered = document.clone();
        numbered["version"] = json!("1.0.0");
        match server_json::check(&numbered) {
            Ok(_) => Ok(Taken { document, notes: self.notes }),
            Err(flaws) => Err(format!("{name}: {}", flaws.join("; "))),
        }
    }
}

/// An input with a name: environment variable or header.
fn named(name: &str, value: &str, variables: BTreeMap<String, Json>) -> Json {
    let mut out = json!({ "name": name });
    if !value.is_empty() {
        out["value"] = json!(value);
    }
    if !variables.is_empty() {
        out["variables"] = json!(variables);
    }
    out
}

/// An input of what a JSON Schema says of a value.
fn input(schema: &Json, required: bool) -> Json {
    let mut out = json!({});
    let about = text(schema, "description");
    if !about.is_empty() {
        out["description"] = json!(about);
    }
    if required {
        out["isRequired"] = json!(true);
    }
    match text(schema, "type") {
        "number" | "integer" => out["format"] = json!("number"),
        "boolean" => out["format"] = json!("boolean"),
        _ => {}
    }
    match schema.get("default") {
        Some(Json::String(value)) => out["default"] = json!(value),
        Some(value @ (Json::Number(_) | Json::Bool(_))) => out["default"] = json!(value.to_string()),
        _ => {}
    }
    let choices: Vec<&str> = list(schema, "enum").iter().filter_map(Json::as_str).collect();
    if !choices.is_empty() {
        out["choices"] = json!(choices);
    }
    out
}
