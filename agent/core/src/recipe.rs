//! What a source is and how its image is made: recognition, and the Dockerfile.
//!
//! Owns: tree -> recipe -> Dockerfile. May touch: nothing, trees are data. Never: lets a path of a manifest leave the
//! tree, or puts a secret into a Dockerfile. Tested by: units beside each runtime, snapshots of Dockerfiles,
//! `tests/docker` (real builds).

mod bundle;
mod compiled;
mod dockerfile;
mod javascript;
mod needs;
mod propose;
mod python;
mod steps;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sigil_config::flaw::Flaw;
use sigil_config::manifest::{self, Build, Health, Manifest, Network, Runtime, Sessions};
use sigil_config::node::Node;
use sigil_config::smithery;

pub use dockerfile::{default_base_image, dockerfile};
pub use needs::{Need, needs, wanted as needed};
pub use propose::manifest_yaml;
pub use steps::{Builder, Unbuildable, unbuildable};

/// Port given to HTTP servers that name none.
pub const PORT: u16 = 8080;

/// A source tree as data: paths relative to its root with '/', sorted; bodies of the files that recognition reads.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// Every file.
    pub files: Vec<String>,
    /// Bodies of those that [`Tree::wanted`] names.
    pub bodies: BTreeMap<String, Vec<u8>>,
}

impl Tree {
    /// Whether recognition wants to read this file's body (manifests near the root; lock files' presence is enough).
    pub fn wanted(path: &str) -> bool {
        const ROOT: &[&str] = &[
            "mcp.yaml",
            "mcp.yml",
            "smithery.yaml",
            "smithery.yml",
            "requirements.txt",
            "go.mod",
            ".yarnrc.yml",
            bundle::FILE,
        ];
        const NEAR: &[&str] =
            &["package.json", "pyproject.toml", "setup.py", "setup.cfg", "entry_points.txt", "METADATA"];
        let depth = path.matches('/').count();
        let name = path.rsplit('/').next().unwrap_or(path);
        (depth == 0 && (ROOT.contains(&name) || python::USUAL.contains(&name)))
            || (depth <= 1 && NEAR.contains(&name))
            || (depth <= 3 && (name == "Cargo.toml" || is_dockerfile(name)))
    }

    /// Whether there is such a file.
    pub fn has(&self, path: &str) -> bool {
        self.files.iter().any(|f| f == path)
    }

    /// A file's body as text; invalid UTF-8 is replaced.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        self.bodies.get(path).map(|b| String::from_utf8_lossy(b).into_owned())
    }

    /// The first of these files that exists.
    pub(crate) fn first(&self, paths: &[&str]) -> Option<String> {
        paths.iter().find(|p| self.has(p)).map(|p| (*p).to_owned())
    }
}

fn is_dockerfile(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "containerfile" || name.starts_with("dockerfile") || name.ends_with(".dockerfile")
}

/// Where the code comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A folder or a git repository.
    Tree,
    /// An npm package; the tree is its tarball, unpacked.
    Npm {
        /// `@scope/name` or `name`.
        name: String,
        /// Exact version.
        version: String,
    },
    /// A PyPI package; the tree is its wheel or source archive, unpacked.
    Pypi {
        /// Name, with extras if any.
        name: String,
        /// Exact version.
        version: String,
    },
    /// An MCP bundle, unpacked: its dependencies are in it.
    Bundle,
    /// An OCI image; there is no tree.
    Image,
}

/// How to make and run the image: manifest and recognition merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Where the code comes from.
    pub origin: Origin,
    /// What it is written in.
    pub runtime: Runtime,
    /// What was recognised and why, one line each.
    pub why: Vec<String>,
    /// The merged manifest (paths checked to stay in the tree).
    pub manifest: Manifest,
    /// Empty until the image says (Dockerfile builds without a command).
    pub command: Vec<String>,
    /// `http`, `sse`, `stdio`; None: unknown, find out at the gate by asking.
    pub transport: Option<String>,
    /// Port of an HTTP server, also told as `PORT`.
    pub port: u16,
    /// Path of its endpoint.
    pub path: String,
    /// A Dockerfile of the tree, relative to it; None: generated.
    pub dockerfile: Option<String>,
    /// Build context within the tree.
    pub context: String,
}

impl Recipe {
    /// The command line and additional environment for configuration values that [`manifest::check_config`] has
    /// passed: they matter only to a `smithery.yaml` with a `commandFunction`; others give [`Recipe::command`] as it is.
    ///
    /// # Errors
    /// The function does not give a command for these values.
    pub fn start(&self, config: &Json) -> Result<(Vec<String>, BTreeMap<String, String>), RecipeError> {
        match &self.manifest.command_function {
            None => Ok((self.command.clone(), BTreeMap::new())),
            Some(function) => start(function, self.runtime, config),
        }
    }
}

/// Settings of the agent that shape a Dockerfile.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BuildSettings {
    /// Base image for the recipe's runtime; empty: [`default_base_image`]. A manifest's own wins.
    pub base_image: String,
    /// npm registry; empty: the default one.
    pub npm_registry: String,
    /// PyPI simple index; empty: the default one.
    pub pypi_index: String,
    /// `GOPROXY`; empty: the default one.
    pub go_proxy: String,
    /// Replaces crates.io; empty: the default one.
    pub cargo_registry: String,
    /// Debian mirror; empty: the base image's own.
    pub apt_mirror: String,
    /// Whether the context has a PEM file [`EXTRA_CA`] to trust.
    pub extra_ca: bool,
    /// Build arguments of every build. Only their names are written down, values go to the engine.
    pub args: BTreeMap<String, String>,
}

/// Where the build context holds the extra certificate authorities when [`BuildSettings::extra_ca`] is set.
pub const EXTRA_CA: &str = ".sigil/ca.crt";

/// Why there is no recipe.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RecipeError {
    /// No file that says what the tree is.
    #[error("nothing here is known as an MCP server")]
    Unrecognised {
        /// File names, in order of authority.
        looked_for: Vec<String>,
    },
    /// All flaws at once, each `file:line:column: what`.
    #[error("{}", .0.join("\n"))]
    Manifest(Vec<String>),
    /// A path that is absolute or leaves the tree.
    #[error("{what} leaves the source tree: {path}")]
    Escapes {
        /// Whose path.
        what: String,
        /// As written.
        path: String,
    },
    /// It is known what it is, but not how to build or start it.
    #[error("{what}")]
    Unclear {
        /// What is not known.
        what: String,
        /// How to say it.
        hint: String,
    },
}

impl RecipeError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Unrecognised { looked_for } => format!(
                "the root of the tree has none of {}; name the folder of the server (…#subdir), or write an mcp.yaml",
                looked_for.join(", ")
            ),
            Self::Manifest(_) => "mend the lines named".to_owned(),
            Self::Escapes { .. } => "write a path within the source tree, without a leading '/' and '..'".to_owned(),
            Self::Unclear { hint, .. } => hint.clone(),
        }
    }

    pub(crate) fn unclear(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unclear { what: what.into(), hint: hint.into() }
    }
}

/// What a language's own files say.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub name: Option<String>,
    pub version: Option<String>,
    pub description: Option<String>,
    pub command: Vec<String>,
    pub transport: Option<String>,
    pub port: Option<u16>,
    pub why: Vec<String>,
}

const LOOKED_FOR: &[&str] = &[
    "mcp.yaml",
    "smithery.yaml",
    "package.json",
    "pyproject.toml",
    "requirements.txt",
    "setup.py",
    "go.mod",
    "Cargo.toml",
    "Dockerfile",
];

/// Recognises a tree. `given` is a manifest handed in beside it (name, text); it takes the place of the tree's own.
///
/// # Errors
/// Flaws of the manifest (all of them), or that it is not clear what the tree is or how to start it.
pub fn recognise(tree: &Tree, origin: Origin, given: Option<(&str, &str)>) -> Result<Recipe, RecipeError> {
    let mut why = Vec::new();
    let mut manifest = read_manifests(tree, given, &mut why)?;
    let mut origin = origin;
    if origin == Origin::Bundle {
        let mut read = bundle::read(tree)?;
        why.append(&mut read.why);
        manifest = over(manifest, read.manifest);
        let runtime = manifest.runtime.filter(|_| read.vendored);
        match runtime {
            Some(runtime) => return Ok(finish(origin, runtime, manifest, Found { why, ..Found::default() }, None)),
            None => origin = Origin::Tree,
        }
    }
    if origin == Origin::Image {
        why.push("an image: it runs as it is".into());
        let command = manifest.command.clone();
        return Ok(finish(origin, Runtime::Container, manifest, Found { command, why, ..Found::default() }, None));
    }
    let dockerfile = match &manifest.build.dockerfile {
        Some(path) => Some(existing_dockerfile(tree, path, &manifest)?),
        None => tree.first(&["Dockerfile", "Containerfile"]),
    };
    let wants_dockerfile = manifest.build.dockerfile.is_some()
        || (manifest.runtime.is_none() && !manifest.command.is_empty() && manifest.command_function.is_some());
    let runtime = match manifest.runtime {
        Some(runtime) => runtime,
        None if dockerfile.is_some() && wants_dockerfile && origin == Origin::Tree => Runtime::Container,
        None => match detect(tree, &origin) {
            Some(runtime) => runtime,
            None if dockerfile.is_some() => Runtime::Container,
            None => {
                let looked_for = LOOKED_FOR.iter().map(|f| (*f).to_owned()).collect();
                return Err(RecipeError::Unrecognised { looked_for });
            }
        },
    };
    let found = match runtime {
        Runtime::Container => Ok(Found::default()),
        Runtime::Node => javascript::found(tree, &origin, &manifest),
        Runtime::Python => python::found(tree, &origin, &manifest),
        Runtime::Go => compiled::go(tree, &manifest),
        Runtime::Rust => compiled::rust(tree, &manifest),
    };
    let (runtime, mut found) = match (found, &dockerfile) {
        (Ok(found), _) => (runtime, found),
        // the language's files do not say how to start it, its author's Dockerfile does
        (Err(RecipeError::Unclear { what, .. }), Some(_)) if manifest.runtime.is_none() && origin == Origin::Tree => {
            (Runtime::Container, Found { why: vec![what], ..Found::default() })
        }
        (Err(error), _) => return Err(error),
    };
    why.append(&mut found.why);
    found.why = why;
    let mut own = None;
    if runtime == Runtime::Container {
        let Some(path) = dockerfile else {
            let hint = "add a Dockerfile, or name the runtime: node, python, go, rust";
            return Err(RecipeError::unclear("runtime: container needs a Dockerfile, and there is none", hint));
        };
        container(tree, &path, &manifest, &mut found);
        own = Some(path);
    } else if dockerfile.is_some() && manifest.build.dockerfile.is_none() {
        let line =
            format!("Dockerfile: not used, the image is made for {}; runtime: container uses it", runtime.as_str());
        found.why.push(line);
    }
    Ok(finish(origin, runtime, manifest, found, own))
}

/// The manifest handed in or the tree's mcp.yaml, over its smithery.yaml.
fn read_manifests(tree: &Tree, given: Option<(&str, &str)>, why: &mut Vec<String>) -> Result<Manifest, RecipeError> {
    let flaws = |flaws: Vec<Flaw>| RecipeError::Manifest(flaws.iter().map(Flaw::to_string).collect());
    let in_tree = |names: &[&str]| {
        let name = tree.first(names)?;
        let text = tree.text(&name)?;
        Some((name, text))
    };
    let named = given.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let is_smithery = |name: &str| name.rsplit('/').next().is_some_and(|n| n.starts_with("smithery."));
    let (ours, theirs) = match named {
        Some((name, text)) if is_smithery(&name) => (None, Some((name, text))),
        Some(ours) => (Some(ours), in_tree(&["smithery.yaml", "smithery.yml"])),
        None => (in_tree(&["mcp.yaml", "mcp.yml"]), in_tree(&["smithery.yaml", "smithery.yml"])),
    };
    let ours = match ours {
        None => None,
        Some((name, text)) => {
            let manifest = manifest::parse(&name, &text).map_err(flaws)?;
            why.push(format!("{name}: {}", summary(&manifest)));
            Some(manifest)
        }
    };
    let theirs = match theirs {
        None => None,
        Some((name, text)) => match smithery::parse(&name, &text) {
            Ok(read) => {
                why.push(format!("{name}: {}", summary(&read.manifest)));
                why.extend(read.notes);
                Some(read.manifest)
            }
            // with a manifest of our own, theirs is a helper and not in the way
            Err(bad) if ours.is_some() && bad.iter().all(|f| !f.message.contains("source tree")) => {
                why.push(format!("{name}: not used ({})", bad.first().map_or(String::new(), Flaw::to_string)));
                None
            }
            Err(bad) => return Err(flaws(bad)),
        },
    };
    Ok(match (ours, theirs) {
        (Some(ours), Some(theirs)) => over(ours, theirs),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => Manifest::default(),
    })
}

fn summary(m: &Manifest) -> String {
    let parts = [
        m.name.clone(),
        m.runtime.map(|r| format!("runtime {}", r.as_str())),
        m.transport.as_ref().map(|t| format!("transport {t}")),
        (!m.command.is_empty()).then(|| format!("command '{}'", m.command.join(" "))),
        m.build.dockerfile.as_ref().map(|d| format!("dockerfile {d}")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "says nothing about how to run it".into() } else { parts.join(", ") }
}

/// Each field of `a`, else of `b`.
fn over(a: Manifest, b: Manifest) -> Manifest {
    fn vec<T>(a: Vec<T>, b: Vec<T>) -> Vec<T> {
        if a.is_empty() { b } else { a }
    }
    let merged = |mut low: BTreeMap<String, String>, high: BTreeMap<String, String>| {
        low.extend(high);
        low
    };
    // whoever says how to start it says it wholly
    let starts = !a.command.is_empty() || !a.entrypoint.is_empty();
    let (command, entrypoint, command_function) = if starts {
        (a.command, a.entrypoint, a.command_function)
    } else {
        (b.command, b.entrypoint, b.command_function)
    };
    // callers may give what the manifest that has the schema lets them give
    let per_session = if a.config.is_some() { a.sessions.config } else { a.sessions.config || b.sessions.config };
    Manifest {
        name: a.name.or(b.name),
        description: a.description.or(b.description),
        version: a.version.or(b.version),
        category: a.category.or(b.category),
        tags: vec(a.tags, b.tags),
        runtime: a.runtime.or(b.runtime),
        // a port belongs to the transport it was written for
        port: if a.transport.is_some() { a.port } else { a.port.or(b.port) },
        transport: a.transport.or(b.transport),
        path: a.path.or(b.path),
        command,
        entrypoint,
        command_function,
        build: Build {
            dockerfile: a.build.dockerfile.or(b.build.dockerfile),
            context: a.build.context.or(b.build.context),
            args: merged(b.build.args, a.build.args),
            base_image: a.build.base_image.or(b.build.base_image),
            packages: vec(a.build.packages, b.build.packages),
        },
        env: merged(b.env, a.env),
        tools: vec(a.tools, b.tools),
        secrets: vec(a.secrets, b.secrets),
        config: a.config.or(b.config),
        resources: a.resources.or(b.resources),
        scaling: a.scaling.or(b.scaling),
        health: Health {
            start_timeout: a.health.start_timeout.or(b.health.start_timeout),
            request_timeout: a.health.request_timeout.or(b.health.request_timeout),
            every: a.health.every.or(b.health.every),
            slow: a.health.slow.or(b.health.slow),
            tool: a.health.tool.or(b.health.tool),
            on_failure: a.health.on_failure.or(b.health.on_failure),
            availability: a.health.availability.or(b.health.availability),
        },
        network: Network { mode: a.network.mode.or(b.network.mode), egress: vec(a.network.egress, b.network.egress) },
        volumes: vec(a.volumes, b.volumes),
        sessions: Sessions {
            max: a.sessions.max.or(b.sessions.max),
            config: per_session,
            replayable: a.sessions.replayable || b.sessions.replayable,
            example: a.sessions.example.or(b.sessions.example),
        },
    }
}

fn detect(tree: &Tree, origin: &Origin) -> Option<Runtime> {
    match origin {
        Origin::Npm { .. } => return Some(Runtime::Node),
        Origin::Pypi { .. } => return Some(Runtime::Python),
        _ => {}
    }
    let order = [
        (Runtime::Node, &["package.json"][..]),
        (Runtime::Python, &["pyproject.toml", "requirements.txt", "setup.py"]),
        (Runtime::Go, &["go.mod"]),
        (Runtime::Rust, &["Cargo.toml"]),
    ];
    order.into_iter().find(|(_, files)| tree.first(files).is_some()).map(|(runtime, _)| runtime)
}

fn existing_dockerfile(tree: &Tree, path: &str, manifest: &Manifest) -> Result<String, RecipeError> {
    let path = checked("build.dockerfile", path)?;
    if tree.has(&path) {
        return Ok(path);
    }
    // relative to the context, as some write it
    let within = manifest.build.context.as_deref().map(|c| format!("{c}/{path}"));
    within.filter(|p| tree.has(p)).ok_or_else(|| {
        RecipeError::unclear(format!("build.dockerfile: there is no '{path}' in the tree"), "mend its path")
    })
}

/// A path within the tree, checked again: recipes are also made from stored manifests.
pub(crate) fn checked(what: &str, path: &str) -> Result<String, RecipeError> {
    manifest::safe_path(path).map_err(|_| RecipeError::Escapes { what: what.to_owned(), path: path.to_owned() })
}

fn container(tree: &Tree, path: &str, manifest: &Manifest, found: &mut Found) {
    found.command = manifest.command.clone();
    let Some(text) = tree.text(path) else {
        found.why.push(format!("{path}: builds the image"));
        return;
    };
    let word = |name: &str| {
        let mut lines = text.lines().rev().filter_map(|l| l.trim().split_once(char::is_whitespace));
        lines.find(|(w, _)| w.eq_ignore_ascii_case(name))
    };
    let start = match word("ENTRYPOINT").or_else(|| word("CMD")) {
        Some((_, start)) => format!(", starts {}", start.trim()),
        None => String::new(),
    };
    found.why.push(format!("{path}: builds the image{start}"));
    let port = word("EXPOSE").and_then(|(_, e)| e.split_whitespace().next()?.split('/').next()?.parse::<u16>().ok());
    if let (Some(port), None) = (port.filter(|p| *p != 0), manifest.port) {
        found.why.push(format!("{path}: EXPOSE {port}: an HTTP server is expected on that port"));
        found.port = Some(port);
    }
}

fn finish(origin: Origin, runtime: Runtime, manifest: Manifest, found: Found, dockerfile: Option<String>) -> Recipe {
    let transport = manifest.transport.clone().or(found.transport);
    let path = manifest.path.clone();
    let path = path.unwrap_or_else(|| if transport.as_deref() == Some("sse") { "/sse" } else { "/mcp" }.to_owned());
    let command = adapt(if manifest.command.is_empty() { found.command } else { manifest.command.clone() }, runtime);
    let mut manifest = manifest;
    manifest.name = manifest.name.or(found.name);
    manifest.version = manifest.version.or(found.version);
    manifest.description = manifest.description.or(found.description);
    Recipe {
        origin,
        runtime,
        why: found.why,
        port: manifest.port.or(found.port).unwrap_or(PORT),
        context: manifest.build.context.clone().unwrap_or_else(|| ".".to_owned()),
        manifest,
        command,
        transport,
        path,
        dockerfile,
    }
}

/// The command line and additional environment that a `commandFunction` makes of configuration values.
///
/// # Errors
/// The function does not give a command for these values.
pub fn start(
    function: &str,
    runtime: Runtime,
    config: &Json,
) -> Result<(Vec<String>, BTreeMap<String, String>), RecipeError> {
    let start = smithery::start(function, config)
        .map_err(|e| RecipeError::Unclear { what: e.to_string(), hint: e.hint().to_owned() })?;
    Ok((adapt(start.command, runtime), start.env))
}

/// `uv run x` is `x` in an image that holds the environment already.
fn adapt(command: Vec<String>, runtime: Runtime) -> Vec<String> {
    let is_uv_run = runtime == Runtime::Python
        && command.first().is_some_and(|c| c == "uv")
        && command.get(1).is_some_and(|c| c == "run")
        && command.get(2).is_some_and(|c| !c.starts_with('-'));
    if is_uv_run { command[2..].to_vec() } else { command }
}

/// A text under a dotted path of a tree of values.
pub(crate) fn at<'n>(node: &'n Node, path: &str) -> Option<&'n str> {
    node.at_path(path).and_then(Node::as_text).filter(|t| !t.trim().is_empty())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A tree from paths and bodies.
    pub(crate) fn tree(files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        for (path, body) in files {
            tree.files.push((*path).to_owned());
            if Tree::wanted(path) {
                tree.bodies.insert((*path).to_owned(), body.as_bytes().to_vec());
            }
        }
        tree.files.sort();
        tree
    }

    pub(crate) fn recipe(files: &[(&str, &str)]) -> Recipe {
        recognise(&tree(files), Origin::Tree, None).unwrap_or_else(|e| panic!("{e}; {}", e.hint()))
    }

    const NODE: &str = r#"{"name":"@acme/weather","version":"1.0.0","bin":"dist/index.js","scripts":{"build":"tsc"},
        "dependencies":{"@modelcontextprotocol/sdk":"^1"}}"#;

    #[test]
    fn authority_goes_down_the_list() {
        let all = [
            ("Dockerfile", "FROM x\nCMD [\"x\"]\n"),
            ("src/main.rs", ""),
            ("Cargo.toml", "[package]\nname = \"r\"\n"),
            ("main.go", ""),
            ("go.mod", "module g\n"),
            ("pyproject.toml", "[project]\nname = \"p\"\nscripts = {p = \"p:main\"}\n"),
            ("package.json", NODE),
        ];
        let runtimes: Vec<&str> = (1..=all.len()).map(|n| recipe(&all[..n]).runtime.as_str()).collect();
        assert_eq!(runtimes, ["container", "container", "rust", "rust", "go", "python", "node"]);
        let error = recognise(&tree(&[("README.md", "")]), Origin::Tree, None).unwrap_err();
        assert!(error.hint().contains("mcp.yaml, smithery.yaml, package.json"), "{}", error.hint());
    }

    #[test]
    fn a_manifest_wins_over_what_is_recognised_and_keeps_the_rest() {
        let r = recipe(&[
            ("package.json", NODE),
            ("mcp.yaml", "name: forecast\ntransport: http\nport: 3000\nentrypoint: server.js --http\n"),
            ("smithery.yaml", "runtime: typescript\nstartCommand: {type: stdio}\nenv: {A: b}\n"),
        ]);
        assert_eq!(r.manifest.name.as_deref(), Some("forecast"));
        assert_eq!(r.manifest.version.as_deref(), Some("1.0.0"));
        assert_eq!((r.transport.as_deref(), r.port, r.path.as_str()), (Some("http"), 3000, "/mcp"));
        assert_eq!(r.command, ["node", "server.js", "--http"]);
        assert_eq!(r.manifest.env["A"], "b");
        let given = recognise(
            &tree(&[("package.json", NODE), ("mcp.yaml", "name: [")]),
            Origin::Tree,
            Some(("x.yaml", "name: g\n")),
        );
        assert_eq!(given.unwrap().manifest.name.as_deref(), Some("g"));
    }

    #[test]
    fn dockerfiles_of_the_tree() {
        let r = recipe(&[("Dockerfile", "FROM a AS b\nFROM c\nEXPOSE 9000/tcp\nENTRYPOINT [\"/s\"]\n")]);
        assert_eq!((r.runtime, r.dockerfile.as_deref(), r.transport), (Runtime::Container, Some("Dockerfile"), None));
        assert!(r.command.is_empty() && r.why[0].contains("starts [\"/s\"]"), "{:?}", r.why);
        assert_eq!(r.port, 9000);
        let r = recipe(&[
            ("package.json", NODE),
            ("docker/Dockerfile", "FROM c\n"),
            ("mcp.yaml", "build: {dockerfile: docker/Dockerfile, context: docker}\n"),
        ]);
        assert_eq!((r.dockerfile.as_deref(), r.context.as_str()), (Some("docker/Dockerfile"), "docker"));
        // smithery's default with a commandFunction is the container
        let r = recipe(&[
            ("package.json", NODE),
            ("Dockerfile", "FROM c\n"),
            (
                "smithery.yaml",
                "startCommand:\n  type: stdio\n  commandFunction: |-\n    (c) => ({command:'node',args:['d.js', c.x || 'y']})\n",
            ),
        ]);
        assert_eq!((r.runtime, r.command.join(" ").as_str()), (Runtime::Container, "node d.js y"));
        assert_eq!(r.start(&serde_json::json!({"x":"z"})).unwrap().0, ["node", "d.js", "z"]);
        // an unclear package.json leaves the word to the Dockerfile
        let r = recipe(&[("package.json", "{\"private\":true}"), ("Dockerfile", "FROM c\n")]);
        assert_eq!(r.runtime, Runtime::Container);
        let error = recognise(&tree(&[("mcp.yaml", "runtime: container\n")]), Origin::Tree, None).unwrap_err();
        assert!(error.to_string().contains("needs a Dockerfile"), "{error}");
    }

    #[test]
    fn flaws_and_escapes_are_errors() {
        for (file, text) in [
            ("mcp.yaml", "build: {dockerfile: ../../../etc/shadow}\n"),
            ("mcp.yaml", "build: {context: /}\n"),
            ("smithery.yaml", "build: {dockerBuildPath: ../..}\n"),
            ("smithery.yaml", "build: {dockerfile: /etc/passwd}\n"),
            ("mcp.yaml", "entrypoint: ../../x.js\n"),
        ] {
            let error = recognise(&tree(&[("package.json", NODE), (file, text)]), Origin::Tree, None).unwrap_err();
            let RecipeError::Manifest(flaws) = &error else { panic!("{text}: {error}") };
            assert!(flaws[0].starts_with(&format!("{file}:1:")), "{flaws:?}");
        }
        assert!(matches!(checked("x", "../a"), Err(RecipeError::Escapes { .. })));
    }

    #[test]
    fn images_run_as_they_are() {
        let r = recognise(&Tree::default(), Origin::Image, None).unwrap();
        assert_eq!((r.runtime, r.command.len(), r.transport), (Runtime::Container, 0, None));
    }

    #[test]
    fn only_small_files_near_the_root_are_read() {
        for path in [
            "mcp.yaml",
            "package.json",
            "package/package.json",
            "x-1.dist-info/entry_points.txt",
            "crates/a/Cargo.toml",
            "docker/Dockerfile.prod",
        ] {
            assert!(Tree::wanted(path), "{path}");
        }
        for path in ["package-lock.json", "node_modules/a/package.json", "src/index.ts", "a/mcp.yaml", "uv.lock"] {
            assert!(!Tree::wanted(path), "{path}");
        }
    }
}
