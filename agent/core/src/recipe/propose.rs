//! Owns: the `mcp.yaml` that `sigil init` proposes. May touch: nothing. Never: writes what would not parse. Tested by:
//! units here.

use std::fmt::Write as _;

use super::{Origin, Recipe};
use crate::scan::outline::{Outline, Read};

/// A manifest for what was recognised, with comments. It parses, and recognising the tree with it gives the same
/// command, runtime and transport.
///
/// `outline` is what the tree's code says: its tools and secrets are proposed where the tree's own manifest names none.
pub fn manifest_yaml(recipe: &Recipe, outline: &Outline) -> String {
    let m = &recipe.manifest;
    let mut out = String::from(
        "# Describes this MCP server and how to build and run it. Every key is optional.\n# Recognised:\n",
    );
    for line in &recipe.why {
        let _ = writeln!(out, "#   {}", line.replace(['\n', '\r'], " "));
    }
    out.push('\n');
    let mut put = |key: &str, value: String| {
        let _ = writeln!(out, "{key}: {value}");
    };
    match &m.name {
        Some(name) => put("name", quoted(name)),
        None => put("# name", "my-server".to_owned()),
    }
    put("description", quoted(m.description.as_deref().unwrap_or("What it does, in one sentence")));
    if let Some(version) = &m.version {
        put("version", quoted(version));
    }
    put("runtime", recipe.runtime.as_str().to_owned());
    match &recipe.transport {
        Some(transport) => put("transport", transport.clone()),
        None => put("# transport", "stdio   # or http, sse; without it the server is asked when it starts".to_owned()),
    }
    if matches!(recipe.transport.as_deref(), Some("http" | "sse")) {
        put("port", recipe.port.to_string());
        put("path", quoted(&recipe.path));
    }
    if recipe.command.is_empty() {
        put("# command", "[program, argument]   # without it the image's own".to_owned());
    } else if m.command_function.is_some() {
        put("# command", "[program, argument]   # without it the commandFunction of smithery.yaml".to_owned());
    } else if matches!(recipe.origin, Origin::Tree) {
        put("command", list(&recipe.command));
    }
    if let Some(dockerfile) = &recipe.dockerfile {
        let _ = write!(out, "\nbuild:\n  dockerfile: {}\n  context: {}\n", quoted(dockerfile), quoted(&recipe.context));
    } else if !m.build.packages.is_empty() {
        let _ = write!(out, "\nbuild:\n  packages: {}\n", list(&m.build.packages));
    }
    environment(&mut out, recipe, outline);
    if let Some(config) = &m.config {
        // JSON is YAML
        let _ = write!(out, "\n# JSON Schema of the values given with --config.\nconfig: {config}\n");
    }
    secrets(&mut out, recipe, outline);
    tools(&mut out, recipe, outline);
    out.push_str(
        "\n# A tier: micro, router, standard, processor, compute. Or limits: { cpu: 0.5, memory: 512Mi }\nresources: router\n",
    );
    out
}

/// Plain environment: what is given, and what else the code reads, to be filled in.
fn environment(out: &mut String, recipe: &Recipe, outline: &Outline) {
    let given = &recipe.manifest.env;
    let others: Vec<&Read> =
        outline.reads.iter().filter(|read| !read.secret && !given.contains_key(&read.name)).collect();
    if given.is_empty() && others.is_empty() {
        return;
    }
    out.push('\n');
    if given.is_empty() {
        out.push_str("# The code reads these, too; give them a value here or leave them out.\n# env:\n");
    } else {
        out.push_str("env:\n");
        for (name, value) in given {
            let _ = writeln!(out, "  {name}: {}", quoted(value));
        }
        if !others.is_empty() {
            out.push_str("  # The code reads these, too; give them a value here or leave them out.\n");
        }
    }
    for read in others {
        let needed = if read.required { ", nothing stands in for it" } else { "" };
        let _ = writeln!(out, "#   {}: \"\"   # {}{needed}", read.name, at(&read.path, read.line));
    }
}

fn secrets(out: &mut String, recipe: &Recipe, outline: &Outline) {
    out.push_str("\n# Secrets that it asks for; a required one that is missing refuses the deploy.\n");
    let known = &recipe.manifest.secrets;
    let read: Vec<&Read> =
        outline.reads.iter().filter(|read| read.secret && !recipe.manifest.env.contains_key(&read.name)).collect();
    if read.is_empty() && known.is_empty() {
        out.push_str("# secrets:\n#   - name: API_KEY\n#     description: Key of the service\n#     required: true\n");
        return;
    }
    out.push_str("secrets:\n");
    for secret in known {
        let _ = writeln!(out, "  - name: {}", secret.name);
        if !secret.description.is_empty() {
            let _ = writeln!(out, "    description: {}", quoted(&secret.description));
        }
        let _ = writeln!(out, "    required: {}", secret.required);
    }
    for read in read.iter().filter(|read| known.iter().all(|secret| secret.name != read.name)) {
        let _ = writeln!(out, "  - name: {}   # {}", read.name, at(&read.path, read.line));
        let _ = writeln!(out, "    required: {}", read.required);
    }
}

fn tools(out: &mut String, recipe: &Recipe, outline: &Outline) {
    let known = &recipe.manifest.tools;
    let mut lines = String::new();
    let mut put = |name: &str, description: &str, place: String| {
        let _ = writeln!(lines, "  - name: {}{place}", quoted(name));
        if !description.is_empty() {
            let _ = writeln!(lines, "    description: {}", quoted(description));
        }
    };
    for tool in known {
        put(&tool.name, &tool.description, String::new());
    }
    for tool in outline.tools.iter().filter(|tool| known.iter().all(|known| known.name != tool.name)) {
        put(&tool.name, &tool.description, format!("   # {}", at(&tool.path, tool.line)));
    }
    if !lines.is_empty() {
        let _ = write!(
            out,
            "\n# Tools, as the registry shows them before anybody has started the server.\ntools:\n{lines}"
        );
    }
}

/// A place in the source, for a comment.
fn at(path: &str, line: u32) -> String {
    format!("{}:{line}", path.replace(|c: char| c.is_control(), " "))
}

/// A JSON string is a YAML string.
fn quoted(text: &str) -> String {
    let plain = !text.is_empty()
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !["true", "false", "null", "yes", "no", "on", "off"].contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

fn list(words: &[String]) -> String {
    format!("[{}]", words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::recognise;
    use super::super::tests::tree;
    use super::*;

    #[test]
    fn what_is_proposed_says_the_same() {
        let trees: &[&[(&str, &str)]] = &[
            &[("package.json", r#"{"name":"@a/b","version":"1.0.0","description":"a: \"b\" # c","bin":"i.js"}"#)],
            &[("pyproject.toml", "[project]\nname='x'\nscripts={x='x:m'}\n")],
            &[("go.mod", "module example.org/x\n"), ("main.go", "")],
            &[("Cargo.toml", "[package]\nname='r'\n"), ("src/main.rs", "")],
            &[("Dockerfile", "FROM x\nEXPOSE 80\n")],
            &[
                ("package.json", r#"{"name":"s","main":"i.js"}"#),
                (
                    "smithery.yaml",
                    "runtime: typescript\nstartCommand: {type: http, configSchema: {type: object, properties: {a: {type: string}}}}\nenv: {A: '1'}\n",
                ),
            ],
        ];
        for files in trees {
            let before = recognise(&tree(files), Origin::Tree, None).unwrap();
            let text = manifest_yaml(&before, &Outline::default());
            let mut with: Vec<(&str, &str)> = files.iter().copied().filter(|(f, _)| *f != "smithery.yaml").collect();
            with.push(("mcp.yaml", &text));
            let after = recognise(&tree(&with), Origin::Tree, None).unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(
                (&after.command, after.runtime, &after.transport),
                (&before.command, before.runtime, &before.transport),
                "{text}"
            );
            assert_eq!(
                (&after.manifest.name, &after.dockerfile, &after.manifest.config),
                (&before.manifest.name, &before.dockerfile, &before.manifest.config)
            );
            assert_eq!((&after.manifest.env, &after.manifest.description.is_some()), (&before.manifest.env, &true));
        }
    }

    #[test]
    fn what_the_code_says_is_proposed() {
        let files = [
            ("requirements.txt", "mcp==1.30.0\n"),
            (
                "server.py",
                "import os\nkey = os.environ['WEATHER_API_KEY']\nurl = os.getenv('WEATHER_URL', 'x')\nregion = os.getenv('REGION')\n\
                 @mcp.tool()\ndef forecast(city: str):\n    \"\"\"The weather: of \\\"tomorrow\\\".\n\n    More.\"\"\"\n    return city\n",
            ),
        ];
        let before = recognise(&tree(&files), Origin::Tree, None).unwrap();
        let text = manifest_yaml(&before, &crate::scan::outline::outline(&files));
        assert!(
            text.contains("#   WEATHER_URL: \"\"   # server.py:3\n#   REGION: \"\"   # server.py:4, nothing"),
            "{text}"
        );
        let mut with = files.to_vec();
        with.push(("mcp.yaml", &text));
        let after = recognise(&tree(&with), Origin::Tree, None).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let secret = &after.manifest.secrets[0];
        assert_eq!((secret.name.as_str(), secret.required), ("WEATHER_API_KEY", true));
        let tool = &after.manifest.tools[0];
        assert_eq!((tool.name.as_str(), tool.description.as_str()), ("forecast", "The weather: of \"tomorrow\"."));
        assert_eq!((after.manifest.secrets.len(), after.manifest.tools.len()), (1, 1));
    }
}
