//! Owns: a bundle's manifest.json (MCPB) -> how it is started here. May touch: nothing. Never: takes a value that its
//! user is to give from anywhere but the bundle's own defaults. Tested by: units here, `tests/docker` (a real build).
//!
//! A bundle holds its dependencies, so nothing is installed; what it leaves to `uv` is built like any Python project.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;
use sigil_config::manifest::{Manifest, Runtime, Secret, SecretKind, is_env_name};

use super::javascript::APP;
use super::{RecipeError, Tree, checked};

/// The file that says what a bundle is.
pub(super) const FILE: &str = "manifest.json";

/// What matters of it.
#[derive(Deserialize)]
struct Described {
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    description: String,
    server: Server,
    #[serde(default)]
    user_config: BTreeMap<String, Asked>,
    #[serde(default)]
    compatibility: Compatibility,
}

#[derive(Deserialize)]
struct Server {
    #[serde(rename = "type")]
    kind: String,
    entry_point: String,
    #[serde(default)]
    mcp_config: Start,
}

#[derive(Deserialize, Default)]
struct Start {
    #[serde(default)]
    command: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    platform_overrides: BTreeMap<String, Start>,
}

#[derive(Deserialize, Default)]
struct Compatibility {
    #[serde(default)]
    platforms: Vec<String>,
}

/// What a bundle asks of its user.
#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    title: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    sensitive: bool,
    #[serde(default)]
    default: Json,
}

impl Asked {
    fn about(&self) -> &str {
        if self.description.is_empty() { &self.title } else { &self.description }
    }

    /// Its values where nobody gives one; never those of a secret.
    fn defaults(&self) -> Vec<String> {
        let text = |value: &Json| match value {
            Json::String(text) => Some(text.clone()),
            Json::Number(_) | Json::Bool(_) => Some(value.to_string()),
            _ => None,
        };
        match &self.default {
            _ if self.sensitive => Vec::new(),
            Json::Array(all) => all.iter().filter_map(text).collect(),
            one => text(one).into_iter().collect(),
        }
    }
}

/// A bundle, in the words of our own manifest.
pub(super) struct Bundle {
    pub manifest: Manifest,
    /// Its dependencies are in it. Otherwise they are installed as any Python project's are.
    pub vendored: bool,
    pub why: Vec<String>,
}

/// The variables of a text that have a value here in their places; the first that has none.
fn filled(text: &str, asked: &BTreeMap<String, Asked>) -> Result<String, String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, behind)) = after.split_once('}') else { break };
        out.push_str(before);
        match name {
            "__dirname" => out.push_str(APP),
            "HOME" => out.push_str("/home/app"),
            "/" | "pathSeparator" => out.push('/'),
            _ => {
                let key = name.strip_prefix("user_config.").unwrap_or(name);
                let default = asked.get(key).and_then(|a| a.defaults().into_iter().next()).ok_or(key)?;
                // a default may name a folder of its user's
                out.push_str(&filled(&default, &BTreeMap::new()).map_err(|_| key)?);
            }
        }
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

/// The name of the only variable that a text is.
fn only(text: &str) -> Option<&str> {
    text.strip_prefix("${user_config.")?.strip_suffix('}').filter(|name| !name.contains('}'))
}

pub(super) fn read(tree: &Tree) -> Result<Bundle, RecipeError> {
    let Some(text) = tree.text(FILE) else {
        return Err(RecipeError::unclear(format!("the bundle has no {FILE}"), "is it an MCP bundle (mcpb)?"));
    };
    let described: Described = serde_json::from_str(&text)
        .map_err(|e| RecipeError::Manifest(vec![format!("{FILE}:{}:{}: {e}", e.line(), e.column())]))?;
    let Described { name, version, description, server, user_config: asked, compatibility } = described;
    if !compatibility.platforms.is_empty() && !compatibility.platforms.iter().any(|p| p == "linux") {
        let hint = "its dependencies are of those systems; ask its authors for one that is for Linux";
        let systems = compatibility.platforms.join(", ");
        return Err(RecipeError::unclear(format!("the bundle is for {systems} only, servers run on Linux here"), hint));
    }
    let entry = checked("manifest.json: server.entry_point", server.entry_point.trim_start_matches("./"))?;
    if !tree.has(&entry) {
        return Err(RecipeError::unclear(format!("the bundle has no '{entry}', which starts it"), "ask its authors"));
    }
    let mut start = server.mcp_config;
    if let Some(linux) = start.platform_overrides.remove("linux") {
        if !linux.command.is_empty() {
            start.command = linux.command;
        }
        start.args = linux.args.or(start.args);
        start.env.extend(linux.env);
    }
    let mut why = vec![format!("{FILE}: {name} {version}, a bundle of type {}", server.kind)];
    let mut manifest = Manifest {
        name: Some(name),
        version: Some(version).filter(|v| !v.is_empty()),
        description: Some(description).filter(|d| !d.is_empty()),
        transport: Some("stdio".to_owned()),
        ..Manifest::default()
    };
    let is_uv = server.kind == "uv" || (server.kind == "python" && start.command == "uv");
    let (runtime, program) = match (server.kind.as_str(), start.command.as_str()) {
        _ if is_uv => (Runtime::Python, "python3"),
        ("node", "" | "node") => (Runtime::Node, "node"),
        ("python", "" | "python" | "python3") => (Runtime::Python, "python3"),
        ("node" | "python", other) => {
            return Err(RecipeError::unclear(
                format!("the bundle is started with '{other}', and not with what it holds"),
                "say how to start it with 'command' in an mcp.yaml (--manifest), or deploy its npm or PyPI package",
            ));
        }
        (other, _) => {
            return Err(RecipeError::unclear(
                format!("bundles of type '{other}' are not run here (node, python and uv are)"),
                "deploy it from its source, or as an image",
            ));
        }
    };
    manifest.runtime = Some(runtime);
    let whole = format!("{APP}/{entry}");
    let args = args(start.args.unwrap_or_else(|| vec![whole.clone()]), &asked, &mut why);
    if is_uv {
        // what stands before it is for uv
        let behind = args.iter().position(|arg| *arg == entry || *arg == whole).map_or(args.len(), |at| at + 1);
        manifest.entrypoint = [vec![entry], args[behind..].to_vec()].concat();
    } else {
        manifest.command = [vec![program.to_owned()], args].concat();
    }
    for (name, text) in start.env {
        environment(&name, &text, &asked, &mut manifest, &mut why);
    }
    Ok(Bundle { manifest, vendored: !is_uv, why })
}

fn args(all: Vec<String>, asked: &BTreeMap<String, Asked>, why: &mut Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for text in all {
        let many = only(&text).and_then(|key| asked.get(key)).map(Asked::defaults).unwrap_or_default();
        if many.len() > 1 {
            out.extend(many.iter().filter_map(|value| filled(value, &BTreeMap::new()).ok()));
            continue;
        }
        match filled(&text, asked) {
            Ok(text) => out.push(text),
            Err(key) => {
                // its flag alone would take the next argument for its value
                let flag = out.pop_if(|before| before.starts_with('-') && !before.contains('='));
                let what = flag.map_or(String::new(), |flag| format!("{flag} "));
                let about = asked.get(&key).map_or("", Asked::about);
                why.push(format!("{FILE}: '{what}{text}' is left out, {key} is for its user to give ({about}): --arg"));
            }
        }
    }
    out
}

fn environment(
    name: &str,
    text: &str,
    asked: &BTreeMap<String, Asked>,
    manifest: &mut Manifest,
    why: &mut Vec<String>,
) {
    if !is_env_name(name) {
        why.push(format!("{FILE}: '{name}' is no name of an environment variable, and is left out"));
        return;
    }
    let key = match filled(text, asked) {
        Ok(text) => {
            manifest.env.insert(name.to_owned(), text);
            return;
        }
        Err(key) => key,
    };
    match asked.get(&key).filter(|asked| asked.sensitive && only(text).is_some()) {
        Some(asked) => manifest.secrets.push(Secret {
            name: name.to_owned(),
            description: asked.about().to_owned(),
            required: asked.required,
            kind: SecretKind::String,
            inject: None,
            per: None,
        }),
        None => {
            let about = asked.get(&key).map_or("", Asked::about);
            why.push(format!("{FILE}: {name} is for its user to give ({about}): --env {name}=VALUE"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::tree;
    use super::super::{BuildSettings, Origin, Recipe, dockerfile, recognise};
    use super::*;

    fn described(server: Json, more: Json) -> String {
        let mut all = json!({"manifest_version": "0.3", "name": "weather", "version": "1.2.0",
            "description": "Tells it.", "author": {"name": "A"}, "server": server});
        if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
        }
        all.to_string()
    }

    fn of(server: Json, more: Json, files: &[&str]) -> Result<Recipe, RecipeError> {
        let text = described(server, more);
        let mut all = vec![(FILE, text.as_str())];
        all.extend(files.iter().map(|f| (*f, "")));
        recognise(&tree(&all), Origin::Bundle, None)
    }

    fn node(config: Json) -> Json {
        json!({"type": "node", "entry_point": "server/index.js", "mcp_config": config})
    }

    #[test]
    fn what_its_user_is_to_give_becomes_environment_secrets_and_words() {
        let config = json!({"command": "node",
            "args": ["${__dirname}/server/index.js", "--units", "${user_config.units}", "--dir", "${user_config.dir}",
                "${user_config.all}"],
            "env": {"KEY": "${user_config.key}", "UNITS": "in-${user_config.units}", "DIR": "${user_config.dir}",
                "LIB": "${__dirname}${/}lib", "not a name": "x"}});
        let asked = json!({"user_config": {
            "key": {"type": "string", "title": "Key", "description": "of the service", "sensitive": true,
                "required": true, "default": "never-this"},
            "units": {"type": "string", "title": "Units", "default": "metric"},
            "dir": {"type": "directory", "title": "Folder", "required": true},
            "all": {"type": "directory", "multiple": true, "default": ["${HOME}/a", "${HOME}/b"]}}});
        let recipe = of(node(config), asked, &["server/index.js"]).unwrap();
        let command = ["node", "/app/server/index.js", "--units", "metric", "/home/app/a", "/home/app/b"];
        assert_eq!(recipe.command, command);
        assert_eq!((recipe.runtime, recipe.transport.as_deref()), (Runtime::Node, Some("stdio")));
        let env = &recipe.manifest.env;
        assert_eq!((env["UNITS"].as_str(), env["LIB"].as_str(), env.len()), ("in-metric", "/app/lib", 2));
        let secret = &recipe.manifest.secrets[0];
        assert_eq!((secret.name.as_str(), secret.required, recipe.manifest.secrets.len()), ("KEY", true, 1));
        let why = recipe.why.join("\n");
        assert!(why.contains("'--dir ${user_config.dir}' is left out"), "{why}");
        assert!(why.contains("DIR is for its user to give (Folder): --env"), "{why}");
        assert!(!format!("{recipe:?}").contains("never-this"));
    }

    #[test]
    fn nothing_is_installed_for_what_it_holds() {
        let text = described(node(json!({})), json!({}));
        let files = [(FILE, text.as_str()), ("server/index.js", ""), ("package.json", r#"{"dependencies":{"x":"1"}}"#)];
        let tree = tree(&files);
        let recipe = recognise(&tree, Origin::Bundle, None).unwrap();
        let file = dockerfile(&recipe, &tree, &BuildSettings::default());
        assert!(file.contains("COPY . .") && !file.contains("npm"), "{file}");
        assert!(file.ends_with("ENTRYPOINT [\"node\",\"/app/server/index.js\"]\n"), "{file}");
        assert_eq!(recipe.manifest.version.as_deref(), Some("1.2.0"));
    }

    #[test]
    fn python_runs_what_it_holds_or_is_built_as_a_project() {
        let config = json!({"command": "python", "args": ["${__dirname}/server/main.py"],
            "env": {"PYTHONPATH": "${__dirname}/server/lib"},
            "platform_overrides": {"linux": {"args": ["${__dirname}/server/main.py", "--linux"]}}});
        let server = json!({"type": "python", "entry_point": "server/main.py", "mcp_config": config});
        let recipe = of(server, json!({}), &["server/main.py"]).unwrap();
        assert_eq!(recipe.command, ["python3", "/app/server/main.py", "--linux"]);
        assert_eq!(recipe.manifest.env["PYTHONPATH"], "/app/server/lib");

        let config = json!({"command": "uv", "args": ["run", "--directory", "${__dirname}", "main.py", "--fast"]});
        let server = json!({"type": "uv", "entry_point": "main.py", "mcp_config": config});
        let text = described(server, json!({}));
        let project = "[project]\nname = 'w'\nversion = '1'\ndependencies = ['mcp']\n";
        let tree = tree(&[(FILE, text.as_str()), ("main.py", ""), ("pyproject.toml", project)]);
        let recipe = recognise(&tree, Origin::Bundle, None).unwrap();
        assert!(recipe.command.ends_with(&["main.py".to_owned(), "--fast".to_owned()]), "{:?}", recipe.command);
        let file = dockerfile(&recipe, &tree, &BuildSettings::default());
        assert!(file.contains("pip install mcp"), "{file}");
    }

    #[test]
    fn what_cannot_run_here_is_refused_in_words() {
        let why = |server: Json, more: Json, files: &[&str]| of(server, more, files).unwrap_err().to_string();
        let entry = &["server/index.js"][..];
        let mac = json!({"compatibility": {"platforms": ["darwin", "win32"]}});
        assert!(why(node(json!({})), mac, entry).contains("for darwin, win32 only"));
        assert!(why(node(json!({})), json!({}), &[]).contains("has no 'server/index.js'"));
        assert!(why(node(json!({"command": "npx"})), json!({}), entry).contains("started with 'npx'"));
        let binary = json!({"type": "binary", "entry_point": "server/index.js"});
        assert!(why(binary, json!({}), entry).contains("type 'binary'"));
        let outside = json!({"type": "node", "entry_point": "../x.js"});
        assert!(why(outside, json!({}), entry).contains("leaves the source tree"));
        let nothing = recognise(&tree(&[("index.js", "")]), Origin::Bundle, None).unwrap_err();
        assert!(nothing.to_string().contains("has no manifest.json"));
        let broken = recognise(&tree(&[(FILE, "{\n\"name\":")]), Origin::Bundle, None).unwrap_err();
        assert!(broken.to_string().starts_with("manifest.json:2:"), "{broken}");
    }
}
