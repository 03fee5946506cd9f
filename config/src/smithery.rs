//! Owns: `smithery.yaml` -> [`Manifest`]. May touch: nothing. Never: runs JavaScript (a small part of it is evaluated as
//! data), or lets a path leave the tree. Tested by: units here and in `smithery/js.rs`.
//!
//! The format is frozen and has had several shapes, so it is read liberally: what is not known becomes a note. Paths
//! and what cannot work are errors.

mod js;

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use crate::flaw::Flaw;
use crate::manifest::{Manifest, Runtime};
use crate::node::{self, Node, Value, Walk};

pub use js::JsError;

/// Port that Smithery gives its servers.
pub const PORT: u16 = 8081;

/// A `smithery.yaml` that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Smithery {
    /// The same in our own words.
    pub manifest: Manifest,
    /// What was passed over or assumed, one line each.
    pub notes: Vec<String>,
    /// The author's example of configuration values; `Null` without one.
    pub example: Json,
}

/// How a server is started, made by a `commandFunction`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Start {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment to add.
    pub env: BTreeMap<String, String>,
}

/// Reads a `smithery.yaml`. `file` is its name for messages.
///
/// # Errors
/// All flaws that keep it from being used, in the order of the file.
pub fn parse(file: &str, text: &str) -> Result<Smithery, Vec<Flaw>> {
    let (root, flaws) = node::yaml(file, text);
    let mut walk = Walk { flaws };
    let mut out = Smithery { manifest: Manifest::default(), notes: Vec::new(), example: Json::Null };
    if !matches!(root.value, Value::Map(_)) {
        walk.wrong(&root, "smithery.yaml", "a map");
    }
    for entry in root.entries() {
        let node = &entry.value;
        match entry.key.as_str() {
            _ if node.value == Value::Null => {}
            "runtime" => match node.as_text() {
                Some("typescript" | "javascript" | "node") => out.manifest.runtime = Some(Runtime::Node),
                Some("python") => out.manifest.runtime = Some(Runtime::Python),
                Some("container") => out.manifest.runtime = Some(Runtime::Container),
                _ => {
                    let hint = "known: typescript, python, container";
                    walk.flaw_hint(node, format!("runtime cannot be '{}'", node.raw), hint);
                }
            },
            "name" => out.manifest.name = node.as_text().map(str::to_owned),
            "description" => out.manifest.description = node.as_text().map(str::to_owned),
            "startCommand" => start_command(&mut walk, node, &mut out),
            "start" => start_legacy(&mut walk, node, &mut out),
            "configSchema" => config_schema(&entry.key, node, &mut out),
            "exampleConfig" => out.example = node.to_json(),
            "build" => build(&mut walk, node, &mut out),
            "env" => out.manifest.env = walk.text_map(node, "env"),
            "version" | "target" => {}
            other => out.notes.push(format!("{file}:{}: '{other}' is not used", entry.at.line)),
        }
    }
    if out.manifest.command_function.is_some() && walk.flaws.is_empty() {
        // evaluated once with what is known, so that an unsupported function is refused here and not at the deploy
        let function = out.manifest.command_function.clone().unwrap_or_default();
        let example = with_defaults(out.manifest.config.as_ref(), &out.example);
        let at = root.at_path("startCommand.commandFunction").map_or(&root.at, |n| &n.at).clone();
        match start(&function, &example) {
            Ok(start) => out.manifest.command = start.command,
            Err(error) => walk.flaws.push(Flaw::new(&at, error.to_string()).hint(error.hint())),
        }
    }
    if walk.flaws.is_empty() {
        // its configuration is its callers', session by session
        out.manifest.sessions.config = out.manifest.config.is_some();
        out.manifest.sessions.example = Some(out.example.clone()).filter(|e| e.is_object());
        return Ok(out);
    }
    walk.flaws.sort_by_key(|f| (f.at.line, f.at.column));
    Err(walk.flaws)
}

/// Evaluates a `commandFunction` with configuration values: a restricted part of JavaScript, as data.
///
/// # Errors
/// What of the function is not supported, or that it gives no command.
pub fn start(function: &str, config: &Json) -> Result<Start, JsError> {
    let value = js::evaluate(function, config)?;
    let Json::Object(map) = value else { return Err(JsError::Shape("an object with 'command'")) };
    let text = |v: &Json| js::text(v);
    let mut start = Start::default();
    match map.get("command") {
        Some(Json::String(command)) if !command.is_empty() => start.command.push(command.clone()),
        _ => return Err(JsError::Shape("an object with a text 'command'")),
    }
    match map.get("args") {
        None | Some(Json::Null) => {}
        Some(Json::Array(args)) => start.command.extend(args.iter().filter(|a| !a.is_null()).map(text)),
        Some(_) => return Err(JsError::Shape("a list as 'args'")),
    }
    match map.get("env") {
        None | Some(Json::Null) => {}
        // an undefined value is left out of the environment, as in Node
        Some(Json::Object(env)) => {
            for (name, value) in env.iter().filter(|(_, v)| !v.is_null()) {
                if !crate::manifest::is_env_name(name) {
                    return Err(JsError::Shape("names of environment variables in 'env'"));
                }
                start.env.insert(name.clone(), text(value));
            }
        }
        Some(_) => return Err(JsError::Shape("an object as 'env'")),
    }
    Ok(start)
}

/// The example over the defaults of the schema: enough to see which program a function starts, never used to run it.
fn with_defaults(schema: Option<&Json>, example: &Json) -> Json {
    let mut map = Map::new();
    let properties = schema.and_then(|s| s.get("properties")).and_then(Json::as_object);
    for (name, property) in properties.into_iter().flatten() {
        if let Some(default) = property.get("default") {
            map.insert(name.clone(), default.clone());
        }
    }
    if let Json::Object(example) = example {
        map.extend(example.clone());
    }
    Json::Object(map)
}

fn start_command(walk: &mut Walk, node: &Node, out: &mut Smithery) {
    if !matches!(node.value, Value::Map(_)) {
        return walk.wrong(node, "startCommand", "a map");
    }
    for entry in node.entries() {
        let node = &entry.value;
        match entry.key.as_str() {
            _ if node.value == Value::Null => {}
            "type" => match node.as_text() {
                Some("http" | "streamable-http") => {
                    out.manifest.transport = Some("http".into());
                    out.manifest.port = Some(PORT);
                }
                Some("stdio") => out.manifest.transport = Some("stdio".into()),
                Some("sse") => out.manifest.transport = Some("sse".into()),
                _ => walk.flaw_hint(node, format!("startCommand.type cannot be '{}'", node.raw), "known: http, stdio"),
            },
            "configSchema" => config_schema("startCommand.configSchema", node, out),
            "exampleConfig" => out.example = node.to_json(),
            "commandFunction" => match node.as_text() {
                Some(text) => out.manifest.command_function = Some(text.to_owned()),
                None => walk.wrong(node, "startCommand.commandFunction", "a text"),
            },
            "command" => out.manifest.command = crate::manifest::words(walk, node, "startCommand.command"),
            "port" => out.manifest.port = walk.int(node, "startCommand.port", 1, 65_535).map(|p| p as u16),
            "env" => out.manifest.env.extend(walk.text_map(node, "startCommand.env")),
            other => out.notes.push(format!("{}: 'startCommand.{other}' is not used", entry.at)),
        }
    }
}

/// `start: { command, port }` of the first version.
fn start_legacy(walk: &mut Walk, node: &Node, out: &mut Smithery) {
    if let Some(command) = node.get("command") {
        out.manifest.command = crate::manifest::words(walk, command, "start.command");
    }
    if let Some(port) = node.get("port") {
        out.manifest.port = walk.int(port, "start.port", 1, 65_535).map(|p| p as u16);
        out.manifest.transport = Some("http".into());
    }
}

fn config_schema(what: &str, node: &Node, out: &mut Smithery) {
    // many in the wild do not compile; the server runs all the same, without a check
    let mut probe = Walk::default();
    match crate::manifest::schema(&mut probe, node, what) {
        Some(schema) => out.manifest.config = Some(schema),
        None => out.notes.extend(probe.flaws.iter().map(|f| format!("{f}; configuration values are not checked"))),
    }
}

fn build(walk: &mut Walk, node: &Node, out: &mut Smithery) {
    if !matches!(node.value, Value::Map(_)) {
        return walk.wrong(node, "build", "a map");
    }
    for entry in node.entries() {
        let node = &entry.value;
        let what = format!("build.{}", entry.key);
        match entry.key.as_str() {
            _ if node.value == Value::Null => {}
            "dockerfile" => out.manifest.build.dockerfile = crate::manifest::tree_path(walk, node, &what),
            "dockerBuildPath" | "context" => {
                out.manifest.build.context = crate::manifest::tree_path(walk, node, &what);
            }
            "args" => out.manifest.build.args = walk.text_map(node, &what),
            "env" => out.manifest.env.extend(walk.text_map(node, &what)),
            other => out.notes.push(format!("{}: 'build.{other}' is not used", entry.at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flaw::lines;
    use serde_json::json;

    #[test]
    fn a_stdio_container_is_read() {
        let got = parse(
            "smithery.yaml",
            r#"# Smithery configuration file
startCommand:
  type: stdio
  configSchema:
    type: object
    required: [apiKey]
    properties:
      apiKey: { type: string, description: The key }
      limit: { type: number, default: 10 }
  commandFunction:
    # A JS function that produces the CLI command
    |-
    (config) => ({
      command: 'node',
      args: ['dist/index.js', '--limit', String(config.limit)],
      env: { API_KEY: config.apiKey }
    })
  exampleConfig:
    apiKey: dummy
build:
  dockerfile: docker/Dockerfile
  dockerBuildPath: ./docker
  sparkle: 1
"#,
        )
        .map_err(|f| lines(&f))
        .unwrap();
        let m = &got.manifest;
        assert_eq!(m.transport.as_deref(), Some("stdio"));
        assert_eq!(m.command, ["node", "dist/index.js", "--limit", "10"]);
        assert_eq!(m.build.dockerfile.as_deref(), Some("docker/Dockerfile"));
        assert_eq!(m.build.context.as_deref(), Some("docker"));
        assert_eq!(got.example, json!({"apiKey":"dummy"}));
        assert_eq!(got.notes.len(), 1);
        let real = start(m.command_function.as_ref().unwrap(), &json!({"apiKey":"k","limit":3})).unwrap();
        assert_eq!(real.command[3], "3");
        assert_eq!(real.env["API_KEY"], "k");
    }

    #[test]
    fn typescript_http_and_legacy_shapes() {
        let m = parse("s", "runtime: typescript\n").unwrap().manifest;
        assert_eq!((m.runtime, m.transport), (Some(Runtime::Node), None));
        let m = parse("s", "runtime: container\nstartCommand: {type: http}\nconfigSchema: {type: nope}\n").unwrap();
        assert_eq!((m.manifest.transport.as_deref(), m.manifest.port), (Some("http"), Some(8081)));
        assert!(m.notes[0].contains("not checked"), "{:?}", m.notes);
        let m = parse("s", "version: 1\nstart:\n  command: [node, x.js]\n  port: 3000\n").unwrap().manifest;
        assert_eq!((m.command.len(), m.port), (2, Some(3000)));
    }

    #[test]
    fn paths_and_functions_that_cannot_be_evaluated_are_errors() {
        let flaws = parse(
            "smithery.yaml",
            "runtime: cobol\nbuild:\n  dockerfile: ../../etc/passwd\n  dockerBuildPath: /\nstartCommand: {type: pipe}\n",
        )
        .unwrap_err();
        assert_eq!(
            lines(&flaws),
            "smithery.yaml:1:10: runtime cannot be 'cobol'; known: typescript, python, container\n\
             smithery.yaml:3:15: build.dockerfile '../../etc/passwd' leaves the source tree; write a path within the source tree\n\
             smithery.yaml:4:20: build.dockerBuildPath '/' is absolute; write a path within the source tree\n\
             smithery.yaml:5:22: startCommand.type cannot be 'pipe'; known: http, stdio"
        );
        let flaws =
            parse("smithery.yaml", "startCommand:\n  commandFunction: \"(c) => require('x').y()\"\n").unwrap_err();
        assert!(flaws[0].to_string().starts_with("smithery.yaml:2:20: commandFunction"), "{}", flaws[0]);
        assert!(flaws[0].hint.contains("mcp.yaml"), "{}", flaws[0]);
    }
}
