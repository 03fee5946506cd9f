//! Owns: pyproject.toml, requirements.txt, setup.py and unpacked distributions -> how a Python server is started. May
//! touch: nothing. Never: guesses among several programs. Tested by: units here.

use std::collections::BTreeMap;

use sigil_config::manifest::Manifest;
use sigil_config::node::{self, Node};

use super::{Found, Origin, RecipeError, Tree, at, checked};

/// The environment that the image holds.
pub(super) const VENV: &str = "/opt/venv";

const SDKS: &[&str] = &["mcp", "fastmcp", "smithery", "mcp-server", "arcade-mcp-server"];

/// With one of these a server may speak HTTP: found out by asking.
const HTTP: &[&str] = &["uvicorn", "starlette", "fastapi", "flask", "aiohttp", "hypercorn", "gunicorn", "smithery"];
/// Programs that lie in the root of small trees; recognition reads them.
pub(super) const USUAL: &[&str] = &["server.py", "main.py", "app.py"];

/// `stdio` unless something hints at HTTP. In a tree only its own files can tell: without them, it is asked.
fn transport(tree: &Tree, dependencies: &[String], in_tree: bool, why: &mut Vec<String>) -> Option<String> {
    if let Some(http) = HTTP.iter().find(|h| dependencies.iter().any(|d| normal(d) == **h)) {
        why.push(format!("depends on {http}, so it may speak HTTP: found out by asking"));
        return None;
    }
    if !in_tree {
        return Some("stdio".to_owned());
    }
    let programs: Vec<String> = USUAL.iter().filter_map(|f| tree.text(f)).collect();
    let http =
        programs.iter().any(|t| ["streamable", "\"sse\"", "'sse'", "\"http\"", "'http'"].iter().any(|w| t.contains(w)));
    (!programs.is_empty() && !http).then(|| "stdio".to_owned())
}

/// How the project's dependencies are installed.
#[derive(Debug, PartialEq)]
pub(super) enum Install {
    /// `uv.lock`, honoured exactly; whether the project itself is installed too.
    Uv { project: bool },
    /// The project with its dependencies.
    Project { requirements: bool },
    /// `requirements.txt` only.
    Requirements,
    /// The dependencies that pyproject.toml lists, the project is run from its files.
    Listed(Vec<String>),
    /// Nothing.
    Nothing,
}

/// What matters of a project's files.
pub(super) struct Project {
    root: Option<Node>,
}

impl Project {
    pub(super) fn read(tree: &Tree, origin: &Origin) -> Result<Self, RecipeError> {
        let within = |name: &str| match origin {
            // the archive of a source distribution has one folder at its root
            Origin::Pypi { .. } => {
                tree.files.iter().find(|f| f.ends_with(&format!("/{name}")) && f.matches('/').count() == 1).cloned()
            }
            _ => None,
        };
        let file = tree.first(&["pyproject.toml"]).or_else(|| within("pyproject.toml"));
        let Some((file, text)) = file.and_then(|f| Some((f.clone(), tree.text(&f)?))) else {
            return Ok(Self { root: None });
        };
        let (root, flaws) = node::toml(&file, &text);
        if flaws.is_empty() {
            Ok(Self { root: Some(root) })
        } else {
            Err(RecipeError::Manifest(flaws.iter().map(ToString::to_string).collect()))
        }
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.root.as_ref().and_then(|r| at(r, path))
    }

    fn name(&self) -> Option<&str> {
        self.text("project.name").or_else(|| self.text("tool.poetry.name"))
    }

    /// Programs by name, with what they call.
    fn scripts(&self) -> BTreeMap<String, String> {
        let tables = ["project.scripts", "tool.poetry.scripts"].into_iter();
        let nodes = tables.filter_map(|t| self.root.as_ref().and_then(|r| r.at_path(t)));
        nodes.flat_map(Node::entries).filter_map(|e| Some((e.key.clone(), e.value.as_text()?.to_owned()))).collect()
    }

    fn dependencies(&self) -> Vec<String> {
        let Some(root) = &self.root else { return Vec::new() };
        let listed = root.at_path("project.dependencies").map(Node::items).unwrap_or_default();
        let mut all: Vec<String> = listed.iter().filter_map(|n| n.as_text().map(str::to_owned)).collect();
        let poetry = root.at_path("tool.poetry.dependencies").map(Node::entries).unwrap_or_default();
        all.extend(poetry.iter().map(|e| e.key.clone()).filter(|k| k != "python"));
        all
    }

    fn is_packaged(&self) -> bool {
        self.root.as_ref().is_some_and(|r| r.get("build-system").is_some())
    }
}

pub(super) fn install(tree: &Tree, project: &Project) -> Install {
    let packaged = project.is_packaged() || tree.has("setup.py") || !project.scripts().is_empty();
    if tree.has("uv.lock") && project.root.is_some() {
        return Install::Uv { project: packaged };
    }
    if packaged {
        return Install::Project { requirements: tree.has("requirements.txt") };
    }
    if tree.has("requirements.txt") {
        return Install::Requirements;
    }
    match project.dependencies() {
        none if none.is_empty() => Install::Nothing,
        listed => Install::Listed(listed),
    }
}

/// `Foo.Bar_baz[x]>=1` -> `foo-bar-baz`: how PyPI compares names.
fn normal(name: &str) -> String {
    let end = name.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)).unwrap_or(name.len());
    let mut out = String::new();
    for c in name[..end].chars() {
        let c = if c == '_' || c == '.' { '-' } else { c.to_ascii_lowercase() };
        if !(c == '-' && out.ends_with('-')) {
            out.push(c);
        }
    }
    out
}

/// The one script, or the one named like the project.
fn choose(scripts: &BTreeMap<String, String>, name: &str, file: &str) -> Result<Option<String>, RecipeError> {
    if scripts.len() <= 1 {
        return Ok(scripts.keys().next().cloned());
    }
    if let Some(script) = scripts.keys().find(|s| normal(s) == normal(name)) {
        return Ok(Some(script.clone()));
    }
    let names: Vec<&str> = scripts.keys().map(String::as_str).collect();
    Err(RecipeError::unclear(
        format!("{file} names several programs: {}", names.join(", ")),
        "choose one with 'command' in an mcp.yaml (--manifest)",
    ))
}

pub(super) fn found(tree: &Tree, origin: &Origin, manifest: &Manifest) -> Result<Found, RecipeError> {
    if let Origin::Pypi { name, version } = origin {
        return distribution(tree, origin, manifest, name, version);
    }
    let project = Project::read(tree, origin)?;
    let file = tree.first(&["pyproject.toml", "requirements.txt", "setup.py"]).unwrap_or_else(|| "the tree".into());
    let mut found = Found {
        name: project.name().map(str::to_owned),
        version: project.text("project.version").or_else(|| project.text("tool.poetry.version")).map(str::to_owned),
        description: project.text("project.description").map(str::to_owned),
        ..Found::default()
    };
    let mut dependencies = project.dependencies();
    if let Some(text) = tree.text("requirements.txt") {
        dependencies.extend(
            text.lines().map(str::trim).filter(|l| !l.starts_with(['#', '-']) && !l.is_empty()).map(str::to_owned),
        );
    }
    let setup = tree.text("setup.py").unwrap_or_default();
    let sdk = SDKS.iter().find(|s| {
        dependencies.iter().any(|d| normal(d) == **s)
            || setup.contains(&format!("\"{s}"))
            || setup.contains(&format!("'{s}"))
    });
    let label = found.name.clone().unwrap_or_else(|| "a project without a name".to_owned());
    match sdk {
        Some(sdk) => found.why.push(format!("{file}: {label}, Python with {sdk}")),
        None => found.why.push(format!("{file}: {label}, Python; no MCP SDK found in dependencies")),
    }
    if let Some(wanted) = project.text("project.requires-python") {
        found.why.push(format!("pyproject.toml: requires Python {wanted}; the base image decides which there is"));
    }
    found.why.push(match install(tree, &project) {
        Install::Uv { .. } => "uv.lock: installed with uv, frozen".to_owned(),
        Install::Project { .. } if tree.has("poetry.lock") => {
            "poetry.lock: not read, pip installs the project with the versions that pyproject.toml allows".to_owned()
        }
        Install::Project { .. } => "no lock file: pip chooses versions when it is built".to_owned(),
        Install::Requirements => "requirements.txt: installed with pip".to_owned(),
        Install::Listed(_) => {
            "pyproject.toml: its dependencies are installed, the server runs from its files".to_owned()
        }
        Install::Nothing => "no dependencies to install".to_owned(),
    });
    if manifest.transport.is_none() {
        found.transport = transport(tree, &dependencies, true, &mut found.why);
    }
    if !manifest.command.is_empty() {
        return Ok(found);
    }
    found.command = start(tree, &project, manifest, &file, &mut found.why)?;
    Ok(found)
}

fn start(
    tree: &Tree,
    project: &Project,
    manifest: &Manifest,
    file: &str,
    why: &mut Vec<String>,
) -> Result<Vec<String>, RecipeError> {
    let python = |more: &[&str]| {
        let words = std::iter::once(format!("{VENV}/bin/python")).chain(more.iter().map(|w| (*w).to_owned()));
        words.collect::<Vec<String>>()
    };
    if let Some(entry) = manifest.entrypoint.first() {
        let is_file = entry.ends_with(".py") || tree.has(entry);
        let mut command = if is_file { python(&[&checked("entrypoint", entry)?]) } else { python(&["-m", entry]) };
        command.extend(manifest.entrypoint.iter().skip(1).cloned());
        return Ok(command);
    }
    let scripts = project.scripts();
    if project.text("tool.smithery.server").is_some() {
        // Smithery's own runner is a dependency of such projects and their script
        return match scripts.iter().find(|(name, call)| {
            *name == "start" || call.starts_with("smithery.") && *name != "dev" && *name != "playground"
        }) {
            Some((name, call)) => {
                why.push(format!("{file}: [tool.smithery], started with its script '{name}' ({call})"));
                Ok(vec![format!("{VENV}/bin/{name}")])
            }
            None => Err(RecipeError::unclear(
                "pyproject.toml names [tool.smithery] server, which only Smithery's own runner starts, and no script 'start'",
                "add start = \"smithery.cli.start:main\" to [project.scripts], or 'command' to an mcp.yaml",
            )),
        };
    }
    let mut unclear = None;
    let script = choose(&scripts, project.name().unwrap_or_default(), file).unwrap_or_else(|error| {
        unclear = Some(error);
        None
    });
    if let Some(script) = script {
        why.push(format!("{file}: started as its program '{script}'"));
        return Ok(vec![format!("{VENV}/bin/{script}")]);
    }
    if let Some(module) = main_module(tree, project.name()) {
        why.push(format!("{module} has a __main__.py: started with python -m {module}"));
        return Ok(python(&["-m", &module]));
    }
    let usual = ["server.py", "main.py", "app.py", "src/server.py", "src/main.py", "mcp_server.py", "run.py"];
    if let Some(path) = tree.first(&usual) {
        why.push(format!("{path}: started with python"));
        return Ok(python(&[&path]));
    }
    Err(unclear.unwrap_or_else(|| {
        RecipeError::unclear(
            format!("{file} does not say how to start the server (no script, no __main__.py, no server.py or main.py)"),
            "add [project.scripts], or 'command' or 'entrypoint' to an mcp.yaml",
        )
    }))
}

/// The package with a `__main__.py`, when there is one only or one named like the project.
fn main_module(tree: &Tree, name: Option<&str>) -> Option<String> {
    let modules: Vec<String> = tree
        .files
        .iter()
        .filter_map(|f| f.strip_suffix("/__main__.py"))
        .map(|f| f.strip_prefix("src/").unwrap_or(f))
        .filter(|f| !f.contains('/') && !matches!(*f, "tests" | "test" | "docs" | "examples"))
        .map(str::to_owned)
        .collect();
    let wanted = name.map(normal);
    modules.iter().find(|m| Some(normal(m)) == wanted).or(modules.first().filter(|_| modules.len() == 1)).cloned()
}

/// A package of PyPI, unpacked: a wheel's or a source archive's own list of programs.
fn distribution(
    tree: &Tree,
    origin: &Origin,
    manifest: &Manifest,
    name: &str,
    version: &str,
) -> Result<Found, RecipeError> {
    let mut found = Found {
        name: Some(name.split('[').next().unwrap_or(name).to_owned()),
        version: Some(version.to_owned()),
        ..Found::default()
    };
    let ends = |end: &str| tree.files.iter().find(|f| f.ends_with(end)).cloned();
    let metadata = ends(".dist-info/METADATA").and_then(|f| tree.text(&f)).unwrap_or_default();
    let header = |key: &str| {
        let lines = metadata.lines().take_while(|l| !l.is_empty());
        lines
            .filter_map(|l| l.split_once(": "))
            .filter(|(k, _)| *k == key)
            .map(|(_, v)| v.trim().to_owned())
            .collect::<Vec<_>>()
    };
    found.description = header("Summary").into_iter().next();
    let project = Project::read(tree, origin)?;
    let mut dependencies = header("Requires-Dist");
    dependencies.extend(project.dependencies());
    match SDKS.iter().find(|s| dependencies.iter().any(|d| normal(d) == **s)) {
        Some(sdk) => found.why.push(format!("PyPI: {name} {version}, Python with {sdk}")),
        None => found.why.push(format!("PyPI: {name} {version}, Python; no MCP SDK found in dependencies")),
    }
    if manifest.transport.is_none() {
        // 'extra == "http"' is no dependency of everybody
        dependencies.retain(|d| !d.contains("extra =="));
        found.transport = transport(tree, &dependencies, false, &mut found.why);
    }
    if !manifest.command.is_empty() {
        return Ok(found);
    }
    let entry_points = ends(".dist-info/entry_points.txt").or_else(|| ends(".egg-info/entry_points.txt"));
    let scripts = match entry_points.as_ref().and_then(|f| tree.text(f)) {
        Some(text) => console_scripts(&text),
        None => project.scripts(),
    };
    if let Some(script) = choose(&scripts, name, &format!("the package {name}"))? {
        found.why.push(format!("entry points: its program is '{script}'"));
        found.command = vec![format!("{VENV}/bin/{script}")];
        return Ok(found);
    }
    let prefixed = |f: &String| f.strip_suffix("/__main__.py").map(|m| m.rsplit('/').next().unwrap_or(m).to_owned());
    let modules: Vec<String> = tree.files.iter().filter(|f| f.matches('/').count() <= 3).filter_map(prefixed).collect();
    let module = modules.iter().find(|m| normal(m) == normal(name)).or(modules.first().filter(|_| modules.len() == 1));
    let Some(module) = module else {
        return Err(RecipeError::unclear(
            format!("the PyPI package {name} has no program (console script) and no module to run"),
            "it may be a library; say how to start it with 'command' in an mcp.yaml (--manifest)",
        ));
    };
    found.why.push(format!("no console script: started with python -m {module}"));
    found.command = vec![format!("{VENV}/bin/python"), "-m".into(), module.clone()];
    Ok(found)
}

/// The `[console_scripts]` of an `entry_points.txt`.
fn console_scripts(text: &str) -> BTreeMap<String, String> {
    let mut inside = false;
    let mut scripts = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[console_scripts]";
        } else if let (true, Some((name, call))) = (inside, line.split_once('=')) {
            scripts.insert(name.trim().to_owned(), call.trim().to_owned());
        }
    }
    // a name becomes a path in the image
    scripts.retain(|name, _| !name.contains('/') && !name.is_empty());
    scripts
}

/// What `Install::Listed` passes on: requirement specifiers only, no options of pip.
pub(super) fn is_requirement(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && !text.contains(['\'', '\n', '\r', '\0'])
}

#[cfg(test)]
mod tests {
    use super::super::recognise;
    use super::super::tests::{recipe, tree};
    use super::*;

    fn command(files: &[(&str, &str)]) -> String {
        recipe(files).command.join(" ")
    }

    #[test]
    fn how_it_starts() {
        let script = "[project]\nname = \"a-b\"\ndependencies = [\"mcp[cli]>=1\"]\nscripts = {other = \"x:y\", a_b = \"a:main\"}\n";
        assert_eq!(command(&[("pyproject.toml", script)]), "/opt/venv/bin/a_b");
        assert!(recipe(&[("pyproject.toml", script)]).why[0].contains("with mcp"));
        let bare = "[project]\nname = \"a-b\"\n";
        assert_eq!(command(&[("pyproject.toml", bare), ("src/a_b/__main__.py", "")]), "/opt/venv/bin/python -m a_b");
        assert_eq!(command(&[("requirements.txt", "fastmcp\n"), ("server.py", "")]), "/opt/venv/bin/python server.py");
        assert_eq!(
            command(&[("setup.py", ""), ("mcp.yaml", "entrypoint: a/b.py -v\n")]),
            "/opt/venv/bin/python a/b.py -v"
        );
        assert_eq!(command(&[("setup.py", ""), ("mcp.yaml", "entrypoint: a.b\n")]), "/opt/venv/bin/python -m a.b");
        assert_eq!(command(&[("setup.py", ""), ("mcp.yaml", "command: uv run srv --x\n")]), "srv --x");
        let of = |body: &str| recipe(&[("requirements.txt", "mcp\n"), ("server.py", body)]).transport;
        assert_eq!(of("FastMCP('x').run()"), Some("stdio".into()));
        assert_eq!(of("run(transport='streamable-http')"), None);
        assert_eq!(recipe(&[("requirements.txt", "mcp\nuvicorn\n"), ("server.py", "")]).transport, None);
        let smithery = "[project]\nname='s'\nscripts={dev='smithery.cli.dev:main', start='smithery.cli.start:main'}\n[tool.smithery]\nserver='s.server:create_server'\n";
        assert_eq!(command(&[("pyproject.toml", smithery)]), "/opt/venv/bin/start");
    }

    #[test]
    fn what_cannot_be_known_is_said() {
        for (files, part) in [
            (&[("pyproject.toml", "[project]\nname = \"x\"\n")][..], "does not say how to start"),
            (&[("pyproject.toml", "[project]\nname='x'\nscripts = {a='a:a', b='b:b'}\n")], "several programs: a, b"),
            (
                &[("pyproject.toml", "[project]\nname='x'\n[tool.smithery]\nserver='s:c'\n")],
                "only Smithery's own runner",
            ),
            (&[("pyproject.toml", "[project\n")], "pyproject.toml:1:"),
        ] {
            let error = recognise(&tree(files), Origin::Tree, None).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn packages_of_pypi_start_their_console_script() {
        let pypi = |name: &str, files: &[(&str, &str)]| {
            recognise(&tree(files), Origin::Pypi { name: name.into(), version: "1".into() }, None)
        };
        let wheel = [
            ("mcp_server_time/__main__.py", ""),
            (
                "mcp_server_time-1.dist-info/METADATA",
                "Name: x\nSummary: Tells the time\nRequires-Dist: mcp>=1.0\n\nRequires-Dist: no\n",
            ),
            (
                "mcp_server_time-1.dist-info/entry_points.txt",
                "[gui_scripts]\ng = g:g\n[console_scripts]\nmcp-server-time = mcp_server_time:main\n",
            ),
        ];
        let r = pypi("mcp-server-time", &wheel).unwrap();
        assert_eq!(r.command, ["/opt/venv/bin/mcp-server-time"]);
        assert_eq!(r.manifest.description.as_deref(), Some("Tells the time"));
        assert!(r.why[0].contains("Python with mcp"));
        assert_eq!(
            pypi("mcp-server-time", &wheel[..2]).unwrap().command,
            ["/opt/venv/bin/python", "-m", "mcp_server_time"]
        );
        let sdist = [("x-1/pyproject.toml", "[project]\nname='x'\nscripts={x='x:m'}\n")];
        assert_eq!(pypi("x", &sdist).unwrap().command, ["/opt/venv/bin/x"]);
        let two = [("x-1.dist-info/entry_points.txt", "[console_scripts]\na = a:a\nb = b:b\n")];
        assert!(pypi("x", &two).unwrap_err().to_string().contains("a, b"));
        assert!(pypi("x", &[]).unwrap_err().to_string().contains("no program"));
    }

    #[test]
    fn what_is_installed() {
        let of = |files: &[(&str, &str)]| {
            let t = tree(files);
            install(&t, &Project::read(&t, &Origin::Tree).unwrap())
        };
        let packaged = "[build-system]\nrequires=[]\n[project]\nname='x'\ndependencies=['mcp']\n";
        let bare = "[project]\nname='x'\ndependencies=['mcp', 'httpx>=0.2']\n";
        assert_eq!(of(&[("pyproject.toml", packaged), ("uv.lock", "")]), Install::Uv { project: true });
        assert_eq!(of(&[("pyproject.toml", bare), ("uv.lock", "")]), Install::Uv { project: false });
        assert_eq!(of(&[("pyproject.toml", packaged)]), Install::Project { requirements: false });
        assert_eq!(of(&[("pyproject.toml", bare)]), Install::Listed(vec!["mcp".into(), "httpx>=0.2".into()]));
        assert_eq!(of(&[("requirements.txt", "")]), Install::Requirements);
        assert_eq!(of(&[("server.py", "")]), Install::Nothing);
    }
}
