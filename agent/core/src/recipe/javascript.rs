//! Owns: package.json -> how a JavaScript or TypeScript server is built and started. May touch: nothing. Never: guesses
//! among several programs. Tested by: units here.

use sigil_config::manifest::Manifest;
use sigil_config::node::{self, Node};

use super::{Found, Origin, RecipeError, Tree, at, checked};

/// Directory of the application in the image.
pub(super) const APP: &str = "/app";
/// Where npm packages are installed in the image.
pub(super) const INSTALLED: &str = "/opt/app";

const SDKS: &[&str] = &[
    "@modelcontextprotocol/sdk",
    "@modelcontextprotocol/server",
    "fastmcp",
    "mcp-framework",
    "@smithery/sdk",
    "mcp-handler",
];
/// With one of these a server may speak HTTP: found out by asking.
const HTTP: &[&str] = &["express", "fastify", "hono", "@hono/node-server", "koa", "next", "@modelcontextprotocol/node"];

/// What matters of a package.json.
pub(super) struct Package {
    root: Node,
}

impl Package {
    pub(super) fn read(tree: &Tree) -> Result<Option<(String, Self)>, RecipeError> {
        let Some(file) = tree.first(&["package.json", "package/package.json"]) else { return Ok(None) };
        let Some(text) = tree.text(&file) else { return Ok(None) };
        let text = text.trim_start_matches('\u{feff}');
        // YAML's flow style holds JSON, but not what only JavaScript would take; positions are worth it
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
            return Err(RecipeError::Manifest(vec![format!(
                "{file}:{}:{}: no valid JSON: {error}",
                error.line(),
                error.column()
            )]));
        }
        let (root, flaws) = node::yaml(&file, &text.replace('\t', " "));
        if let Some(flaw) = flaws.first() {
            return Err(RecipeError::Manifest(vec![flaw.to_string()]));
        }
        Ok(Some((file, Self { root })))
    }

    pub(super) fn script(&self, name: &str) -> Option<&str> {
        self.root.get("scripts").and_then(|s| s.get(name)).and_then(Node::as_text).filter(|t| !t.trim().is_empty())
    }

    fn depends(&self, name: &str, dev: bool) -> bool {
        let sections = ["dependencies", "optionalDependencies", "peerDependencies", "devDependencies"];
        let sections = if dev { &sections[..] } else { &sections[..3] };
        sections.iter().any(|s| self.root.get(s).is_some_and(|d| d.get(name).is_some()))
    }

    /// Whether its dependencies can only be installed with the whole tree at hand.
    pub(super) fn needs_tree(&self) -> bool {
        let local = |section: &str| {
            let entries = self.root.get(section).map(Node::entries).unwrap_or_default();
            entries.iter().any(|e| {
                e.value
                    .as_text()
                    .is_some_and(|v| ["file:", "link:", "workspace:", "portal:"].iter().any(|p| v.starts_with(p)))
            })
        };
        self.root.get("workspaces").is_some()
            || ["dependencies", "devDependencies", "optionalDependencies"].into_iter().any(local)
    }

    pub(super) fn manager(&self) -> Option<&str> {
        at(&self.root, "packageManager").map(|m| m.split('+').next().unwrap_or(m))
    }

    pub(super) fn has_dependencies(&self) -> bool {
        ["dependencies", "devDependencies", "optionalDependencies"]
            .iter()
            .any(|s| self.root.get(s).is_some_and(|d| !d.entries().is_empty()))
    }

    /// Programs by name, with their paths.
    fn bins(&self) -> Vec<(String, String)> {
        let Some(bin) = self.root.get("bin") else { return Vec::new() };
        match bin.as_text() {
            Some(path) => vec![(unscoped(at(&self.root, "name").unwrap_or("server")).to_owned(), path.to_owned())],
            None => bin.entries().iter().filter_map(|e| Some((e.key.clone(), e.value.as_text()?.to_owned()))).collect(),
        }
    }

    /// A module that only Smithery's command line turns into a server.
    fn is_smithery(&self) -> bool {
        let builds = self.script("build").is_some_and(|b| b.contains("smithery"));
        at(&self.root, "module").is_some()
            && (self.depends("@smithery/sdk", true) || self.depends("@smithery/cli", true) || builds)
    }
}

fn unscoped(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The one program, or the one named like the package.
fn choose(bins: &[(String, String)], name: &str, file: &str) -> Result<Option<(String, String)>, RecipeError> {
    match bins {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        many => match many.iter().find(|(bin, _)| bin == unscoped(name)) {
            Some(one) => Ok(Some(one.clone())),
            None => {
                let names: Vec<&str> = many.iter().map(|(bin, _)| bin.as_str()).collect();
                Err(RecipeError::unclear(
                    format!("{file} names several programs: {}", names.join(", ")),
                    "choose one with 'command' in an mcp.yaml (--manifest)",
                ))
            }
        },
    }
}

pub(super) fn found(tree: &Tree, origin: &Origin, manifest: &Manifest) -> Result<Found, RecipeError> {
    let Some((file, package)) = Package::read(tree)? else {
        return without_package(tree, origin, manifest);
    };
    let mut found = Found {
        name: at(&package.root, "name").map(str::to_owned),
        version: at(&package.root, "version").map(str::to_owned),
        description: at(&package.root, "description").map(str::to_owned),
        ..Found::default()
    };
    let label = match (&found.name, &found.version) {
        (Some(name), Some(version)) => format!("{name} {version}"),
        (Some(name), None) => name.clone(),
        _ => "a package without a name".to_owned(),
    };
    match SDKS.iter().find(|s| package.depends(s, true)) {
        Some(sdk) => found.why.push(format!("{file}: {label}, Node.js with {sdk}")),
        None => found.why.push(format!("{file}: {label}, Node.js; no MCP SDK found in dependencies")),
    }
    if manifest.transport.is_none() {
        match HTTP.iter().find(|h| package.depends(h, false)) {
            Some(http) => {
                found.why.push(format!("{file}: depends on {http}, so it may speak HTTP: found out by asking"))
            }
            None => found.transport = Some("stdio".to_owned()),
        }
    }
    if let Origin::Npm { name, .. } = origin {
        if manifest.command.is_empty() {
            let bins = package.bins();
            let Some((bin, path)) = choose(&bins, name, &file)? else {
                return Err(RecipeError::unclear(
                    format!("the npm package {name} has no program ('bin' in its package.json)"),
                    "it may be a library; say how to start it with 'command' in an mcp.yaml (--manifest)",
                ));
            };
            found.why.push(format!("{file}: its program is '{bin}' ({path})"));
            found.command = vec![format!("{INSTALLED}/node_modules/.bin/{bin}")];
        }
        return Ok(found);
    }
    installs(tree, &package, &mut found);
    start(tree, &package, manifest, &file, &mut found)?;
    Ok(found)
}

fn without_package(tree: &Tree, origin: &Origin, manifest: &Manifest) -> Result<Found, RecipeError> {
    let mut found = Found { transport: Some("stdio".to_owned()), ..Found::default() };
    if !matches!(origin, Origin::Tree) {
        return Err(RecipeError::unclear("the package has no package.json", "is it an npm package?"));
    }
    if manifest.command.is_empty() {
        let entry = match manifest.entrypoint.first() {
            Some(entry) => checked("entrypoint", entry)?,
            None => tree.first(&["index.js", "server.js", "index.mjs"]).ok_or_else(|| {
                RecipeError::unclear(
                    "runtime: node, but there is no package.json",
                    "add one, or 'entrypoint' to mcp.yaml",
                )
            })?,
        };
        found.command =
            ["node".to_owned(), entry].into_iter().chain(manifest.entrypoint.iter().skip(1).cloned()).collect();
    }
    found.why.push("no package.json: nothing is installed".to_owned());
    Ok(found)
}

fn installs(tree: &Tree, package: &Package, found: &mut Found) {
    let line = match Manager::of(tree, package) {
        Manager::Npm { locked: true } => "package-lock.json: installed with npm ci".to_owned(),
        Manager::Npm { locked: false } if !package.has_dependencies() => "no dependencies to install".to_owned(),
        Manager::Npm { locked: false } => "no lock file: versions are chosen when it is built".to_owned(),
        Manager::Pnpm { with } => format!("pnpm-lock.yaml: installed with {with}, frozen"),
        Manager::Yarn { with } | Manager::Berry { with } => format!("yarn.lock: installed with {with}, frozen"),
    };
    found.why.push(line);
}

fn start(
    tree: &Tree,
    package: &Package,
    manifest: &Manifest,
    file: &str,
    found: &mut Found,
) -> Result<(), RecipeError> {
    let build = build_step(tree, package);
    if let Some(build) = &build {
        found.why.push(format!("{file}: built with '{build}'"));
    }
    if !manifest.command.is_empty() {
        return Ok(());
    }
    if let Some(entry) = manifest.entrypoint.first() {
        let entry = checked("entrypoint", entry)?;
        found.command =
            ["node".to_owned(), entry].into_iter().chain(manifest.entrypoint.iter().skip(1).cloned()).collect();
        return Ok(());
    }
    if package.is_smithery() {
        if package.script("build").is_none() {
            return Err(RecipeError::unclear(
                format!(
                    "{file} exports a module that only Smithery's own command line turns into a server, and has no build script"
                ),
                "add a script \"build\": \"smithery build\" with a version of @smithery/cli that has it, or an mcp.yaml with 'command'",
            ));
        }
        found.why.push(format!("{file}: a module for Smithery's command line, whose build writes .smithery/index.cjs"));
        found.command = vec!["node".into(), ".smithery/index.cjs".into()];
        if package.script("build").is_some_and(|b| !b.contains("stdio")) {
            found.transport = Some("http".into());
        }
        return Ok(());
    }
    let name = at(&package.root, "name").unwrap_or_default();
    let mut unclear = None;
    let bin = choose(&package.bins(), name, file).unwrap_or_else(|error| {
        unclear = Some(error);
        None
    });
    if let Some((bin, path)) = bin {
        let path = checked("package.json: bin", &path)?;
        found.why.push(format!("{file}: started as its program '{bin}' ({path})"));
        found.command = vec!["node".into(), path];
        return Ok(());
    }
    if let Some(script) = package.script("start") {
        let plain = !script.contains(|c: char| "&|;<>$`'\"\\*".contains(c));
        let words: Vec<&str> = script.split_whitespace().collect();
        found.why.push(format!("{file}: started with its script 'start' ({script})"));
        found.command = if plain && words.first() == Some(&"node") {
            words.into_iter().map(str::to_owned).collect()
        } else {
            // silent: npm's own lines on stdout would be read as messages of the server
            ["npm", "run", "--silent", "start"].map(str::to_owned).to_vec()
        };
        return Ok(());
    }
    let main = at(&package.root, "main").or_else(|| at(&package.root, "module")).map(str::to_owned);
    let usual = ["dist/index.js", "build/index.js", "index.js", "server.js", "src/index.js", "dist/server.js"];
    if let Some(main) = main.or_else(|| tree.first(&usual)) {
        let main = checked("package.json: main", &main)?;
        found.why.push(format!("{file}: started as {main}"));
        found.command = vec!["node".into(), main];
        return Ok(());
    }
    Err(unclear.unwrap_or_else(|| {
        RecipeError::unclear(
            format!("{file} does not say how to start the server (no bin, no script 'start', no main)"),
            "add one of them, or 'command' to an mcp.yaml",
        )
    }))
}

/// The command that makes what is started, if there is anything to make.
pub(super) fn build_step(tree: &Tree, package: &Package) -> Option<String> {
    if package.script("build").is_some() {
        return Some("npm run build".into());
    }
    let compiles = package.script("prepare").filter(|p| p.contains("tsc") || p.contains("build") || p.contains("tsup"));
    if compiles.is_some() {
        return Some("npm run prepare".into());
    }
    let typescript = tree.has("tsconfig.json") && package.depends("typescript", true);
    let ran_from_source =
        package.script("start").is_some_and(|s| ["tsx", "ts-node", "bun "].iter().any(|t| s.contains(t)));
    (typescript && !ran_from_source).then(|| "npx tsc".to_owned())
}

/// Whether what starts the server is a tool of development: then these are kept in the image.
pub(super) fn keeps_dev(command: &[String]) -> bool {
    command.first().is_some_and(|c| c == "npm" || c == "npx" || c == "tsx" || c == "ts-node")
}

/// What installs the dependencies.
#[derive(Debug, PartialEq)]
pub(super) enum Manager {
    /// npm, with or without a lock file.
    Npm { locked: bool },
    /// pnpm, as `npx` is told.
    Pnpm { with: String },
    /// Yarn 1.
    Yarn { with: String },
    /// Yarn 2 and later.
    Berry { with: String },
}

impl Manager {
    pub(super) fn of(tree: &Tree, package: &Package) -> Self {
        let named = package.manager();
        let version = |of: &str| {
            named.and_then(|m| m.strip_prefix(of)).and_then(|m| m.strip_prefix('@')).filter(|v| is_version(v))
        };
        if tree.has("package-lock.json") || tree.has("npm-shrinkwrap.json") {
            return Self::Npm { locked: true };
        }
        if tree.has("pnpm-lock.yaml") {
            return Self::Pnpm { with: format!("pnpm@{}", version("pnpm").unwrap_or("9")) };
        }
        if tree.has("yarn.lock") {
            let berry = version("yarn").is_some_and(|v| !v.starts_with('1')) || tree.has(".yarnrc.yml");
            return if berry {
                Self::Berry { with: format!("@yarnpkg/cli-dist@{}", version("yarn").unwrap_or("4")) }
            } else {
                Self::Yarn { with: format!("yarn@{}", version("yarn").unwrap_or("1.22.22")) }
            };
        }
        Self::Npm { locked: false }
    }
}

/// It becomes a word of a command line in the Dockerfile.
fn is_version(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::super::recognise;
    use super::super::tests::{recipe, tree};
    use super::*;

    fn command(package: &str) -> String {
        recipe(&[("package.json", package)]).command.join(" ")
    }

    #[test]
    fn how_it_starts() {
        for (package, expected) in [
            (r#"{"name":"a","bin":"./dist/i.js"}"#, "node dist/i.js"),
            (r#"{"name":"@s/a","bin":{"b":"b.js","a":"a.js"}}"#, "node a.js"),
            (r#"{"bin":{"b":"b.js","c":"c.js"},"scripts":{"start":"node --x s.js"}}"#, "node --x s.js"),
            (r#"{"scripts":{"start":"tsx src/i.ts"}}"#, "npm run --silent start"),
            (r#"{"scripts":{"start":"node a.js && node b.js"}}"#, "npm run --silent start"),
            (r#"{"main":"m.js"}"#, "node m.js"),
            (
                r#"{"module":"src/i.ts","scripts":{"build":"smithery build"},"devDependencies":{"@smithery/cli":"^1"}}"#,
                "node .smithery/index.cjs",
            ),
        ] {
            assert_eq!(command(package), expected, "{package}");
        }
    }

    #[test]
    fn what_cannot_be_known_is_said() {
        for (package, part) in [
            (r#"{"name":"x"}"#, "does not say how to start"),
            (r#"{"bin":{"b":"b.js","c":"c.js"}}"#, "several programs: b, c"),
            (r#"{"module":"src/i.ts","dependencies":{"@smithery/sdk":"1"}}"#, "only Smithery's own command line"),
            (r#"{"bin":"../x.js"}"#, "leaves the source tree"),
            ("{\n \"a\": }", "package.json:2:7: no valid JSON"),
        ] {
            let error = recognise(&tree(&[("package.json", package)]), Origin::Tree, None).unwrap_err();
            assert!(error.to_string().contains(part), "{package}: {error}");
        }
    }

    #[test]
    fn npm_packages_start_their_program() {
        let npm = |name: &str, package: &str| {
            recognise(&tree(&[("package.json", package)]), Origin::Npm { name: name.into(), version: "1".into() }, None)
        };
        let r = npm("@s/everything", r#"{"name":"@s/everything","bin":{"mcp-x":"d.js"},"dependencies":{"express":"4","@modelcontextprotocol/sdk":"1"}}"#).unwrap();
        assert_eq!((r.command.join(" ").as_str(), r.transport), ("/opt/app/node_modules/.bin/mcp-x", None));
        let r = npm("a", r#"{"name":"a","bin":{"x":"x.js","a":"a.js"}}"#).unwrap();
        assert_eq!((r.command[0].as_str(), r.transport.as_deref()), ("/opt/app/node_modules/.bin/a", Some("stdio")));
        assert!(r.why[0].contains("no MCP SDK found in dependencies"), "{:?}", r.why);
        assert!(npm("a", r#"{"bin":{"x":"x.js","y":"y.js"}}"#).unwrap_err().to_string().contains("x, y"));
        assert!(npm("a", "{}").unwrap_err().to_string().contains("no program"));
    }

    #[test]
    fn lock_files_choose_the_manager() {
        let of = |files: &[(&str, &str)]| {
            let t = tree(files);
            Manager::of(&t, &Package::read(&t).unwrap().unwrap().1)
        };
        assert_eq!(of(&[("package.json", "{}")]), Manager::Npm { locked: false });
        assert_eq!(of(&[("package.json", "{}"), ("package-lock.json", "")]), Manager::Npm { locked: true });
        let pinned = r#"{"packageManager":"pnpm@9.1.0+sha512.abc"}"#;
        assert_eq!(
            of(&[("package.json", pinned), ("pnpm-lock.yaml", "")]),
            Manager::Pnpm { with: "pnpm@9.1.0".into() }
        );
        let evil = r#"{"packageManager":"pnpm@9; curl x"}"#;
        assert_eq!(of(&[("package.json", evil), ("pnpm-lock.yaml", "")]), Manager::Pnpm { with: "pnpm@9".into() });
        assert_eq!(of(&[("package.json", "{}"), ("yarn.lock", "")]), Manager::Yarn { with: "yarn@1.22.22".into() });
        let berry = r#"{"packageManager":"yarn@4.2.1"}"#;
        assert_eq!(
            of(&[("package.json", berry), ("yarn.lock", "")]),
            Manager::Berry { with: "@yarnpkg/cli-dist@4.2.1".into() }
        );
    }
}
