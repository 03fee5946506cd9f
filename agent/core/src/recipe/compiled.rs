//! Owns: go.mod and Cargo.toml -> which program is built. May touch: nothing. Never: guesses among several programs.
//! Tested by: units here.

use sigil_config::manifest::Manifest;
use sigil_config::node::{self, Node};

use super::{Found, RecipeError, Tree, at, checked};

/// Where the program lies in the image.
pub(super) const PROGRAM: &str = "/server";

/// The Go package that is built: `.` or `./cmd/name`.
pub(super) fn go_package(tree: &Tree, manifest: &Manifest) -> Result<String, RecipeError> {
    if let Some(entry) = manifest.entrypoint.first() {
        let entry = checked("entrypoint", entry)?;
        let folder = match entry.strip_suffix(".go") {
            Some(_) => entry.rsplit_once('/').map_or(".", |(folder, _)| folder).to_owned(),
            None => entry,
        };
        return Ok(if folder == "." { folder } else { format!("./{folder}") });
    }
    let module = tree.text("go.mod").unwrap_or_default();
    let module = module.lines().find_map(|l| l.trim().strip_prefix("module ")).unwrap_or_default().trim().to_owned();
    if tree.has("main.go") {
        return Ok(".".to_owned());
    }
    let mut commands: Vec<&str> = tree
        .files
        .iter()
        .filter_map(|f| {
            f.strip_prefix("cmd/")?.split_once('/').filter(|(_, rest)| *rest == "main.go").map(|(name, _)| name)
        })
        .collect();
    commands.dedup();
    // v2 and later end in their major version
    let mut last = module.rsplit('/').filter(|p| !(p.starts_with('v') && p[1..].parse::<u32>().is_ok()));
    let last = last.next().unwrap_or_default();
    let chosen = match commands.as_slice() {
        [] if tree.has("cmd/main.go") => return Ok("./cmd".to_owned()),
        [] => {
            return Err(RecipeError::unclear(
                "go.mod: there is neither a main.go nor a cmd/*/main.go",
                "name the folder of the main package with 'entrypoint' in an mcp.yaml",
            ));
        }
        [one] => *one,
        many => {
            let named = many.iter().find(|c| **c == last);
            let mut servers = many.iter().filter(|c| c.contains("mcp") || c.contains("server"));
            match (named, servers.next(), servers.next()) {
                (Some(named), _, _) => named,
                (None, Some(only), None) => only,
                _ => {
                    return Err(RecipeError::unclear(
                        format!("go.mod: several main packages: {}", many.join(", ")),
                        "choose one with 'entrypoint: cmd/NAME' in an mcp.yaml",
                    ));
                }
            }
        }
    };
    Ok(format!("./cmd/{chosen}"))
}

pub(super) fn go(tree: &Tree, manifest: &Manifest) -> Result<Found, RecipeError> {
    let text = tree.text("go.mod").unwrap_or_default();
    let module =
        text.lines().find_map(|l| l.trim().strip_prefix("module ")).map(|m| m.trim().trim_matches('"').to_owned());
    let package = go_package(tree, manifest)?;
    let mut found = Found { name: module.clone(), command: vec![PROGRAM.into()], ..Found::default() };
    found.command.extend(manifest.entrypoint.iter().skip(1).cloned());
    let sdks = ["modelcontextprotocol/go-sdk", "mark3labs/mcp-go", "metoro-io/mcp-golang", "ThinkInAIXYZ/go-mcp"];
    let module = module.unwrap_or_else(|| "a module without a name".into());
    found.why.push(match sdks.iter().find(|s| text.contains(*s)) {
        Some(sdk) => format!("go.mod: {module}, Go with {sdk}"),
        None => format!("go.mod: {module}, Go; no MCP SDK found in dependencies"),
    });
    let locked = if tree.has("go.sum") { "dependencies checked against go.sum" } else { "no go.sum" };
    found.why.push(format!("go.mod: builds {package}, {locked}"));
    Ok(found)
}

/// What of a Rust tree is built.
#[derive(Debug, PartialEq)]
pub(super) struct Crate {
    /// The package, to be named when the root is a workspace.
    pub package: Option<String>,
    /// The program.
    pub bin: String,
}

struct Member {
    name: String,
    version: Option<String>,
    description: Option<String>,
    default_run: Option<String>,
    bins: Vec<String>,
    sdk: bool,
}

/// The packages of a tree that have programs, and whether the root is one of them.
fn members(tree: &Tree) -> Result<(Vec<Member>, bool), RecipeError> {
    let mut members = Vec::new();
    let mut root_is_package = false;
    for file in tree.files.iter().filter(|f| *f == "Cargo.toml" || f.ends_with("/Cargo.toml")) {
        let Some(text) = tree.text(file) else { continue };
        let (root, flaws) = node::toml(file, &text);
        if !flaws.is_empty() {
            if file == "Cargo.toml" {
                return Err(RecipeError::Manifest(flaws.iter().map(ToString::to_string).collect()));
            }
            continue;
        }
        let Some(name) = at(&root, "package.name") else { continue };
        root_is_package |= file == "Cargo.toml";
        let folder = file.strip_suffix("Cargo.toml").unwrap_or_default();
        let mut bins: Vec<String> = root
            .get("bin")
            .map(Node::items)
            .unwrap_or_default()
            .iter()
            .filter_map(|b| at(b, "name"))
            .map(str::to_owned)
            .collect();
        if bins.is_empty() && tree.has(&format!("{folder}src/main.rs")) {
            bins.push(name.to_owned());
        }
        for path in &tree.files {
            let Some(rest) = path.strip_prefix(&format!("{folder}src/bin/")) else { continue };
            let bin = rest.strip_suffix("/main.rs").or_else(|| rest.strip_suffix(".rs")).filter(|b| !b.contains('/'));
            bins.extend(bin.filter(|b| !bins.iter().any(|x| x == b)).map(str::to_owned));
        }
        if bins.is_empty() {
            continue;
        }
        let deps = root.get("dependencies").map(Node::entries).unwrap_or_default();
        members.push(Member {
            name: name.to_owned(),
            version: at(&root, "package.version").map(str::to_owned),
            description: at(&root, "package.description").map(str::to_owned),
            default_run: at(&root, "package.default-run").map(str::to_owned),
            bins,
            sdk: deps.iter().any(|d| ["rmcp", "rust-mcp-sdk", "mcp-core", "mcpkit"].contains(&d.key.as_str())),
        });
    }
    Ok((members, root_is_package))
}

fn chosen(tree: &Tree, manifest: &Manifest) -> Result<(Member, Crate), RecipeError> {
    let (members, root_is_package) = members(tree)?;
    let all: Vec<String> = members.iter().flat_map(|m| m.bins.iter().cloned()).collect();
    let named = |m: Member, bin: String| {
        let package = if root_is_package && members_is_root(tree, &m.name) { None } else { Some(m.name.clone()) };
        Ok((m, Crate { package, bin }))
    };
    let unclear = |what: String| Err(RecipeError::unclear(what, "choose one with 'entrypoint: NAME' in an mcp.yaml"));
    let asked =
        manifest.entrypoint.first().map(|e| e.rsplit('/').next().unwrap_or(e).trim_end_matches(".rs").to_owned());
    if let Some(asked) = asked {
        return match members.into_iter().find(|m| m.bins.contains(&asked)) {
            Some(m) => named(m, asked),
            None => unclear(format!("Cargo.toml: there is no program '{asked}' (there are: {})", all.join(", "))),
        };
    }
    // the root's own programs first; among several members the ones with an MCP SDK
    let root = |m: &Member| root_is_package && members_is_root(tree, &m.name);
    let narrowed: Vec<Member> = if members.iter().any(root) {
        members.into_iter().filter(root).collect()
    } else if members.iter().any(|m| m.sdk) {
        members.into_iter().filter(|m| m.sdk).collect()
    } else {
        members
    };
    let mut narrowed = narrowed.into_iter();
    match (narrowed.next(), narrowed.next()) {
        (None, _) => Err(RecipeError::unclear(
            "Cargo.toml: there is no program (no src/main.rs, no [[bin]])",
            "it may be a library; name the folder of the server, or add a program",
        )),
        (Some(m), None) => {
            let bin = match (&m.default_run, m.bins.as_slice()) {
                (Some(run), _) => run.clone(),
                (None, [one]) => one.clone(),
                (None, bins) if bins.contains(&m.name) => m.name.clone(),
                _ => return unclear(format!("Cargo.toml: several programs: {}", m.bins.join(", "))),
            };
            named(m, bin)
        }
        _ => unclear(format!("Cargo.toml: several programs: {}", all.join(", "))),
    }
}

fn members_is_root(tree: &Tree, name: &str) -> bool {
    tree.text("Cargo.toml").is_some_and(|t| at(&node::toml("Cargo.toml", &t).0, "package.name") == Some(name))
}

pub(super) fn rust_crate(tree: &Tree, manifest: &Manifest) -> Result<Crate, RecipeError> {
    chosen(tree, manifest).map(|(_, c)| c)
}

pub(super) fn rust(tree: &Tree, manifest: &Manifest) -> Result<Found, RecipeError> {
    let (member, target) = chosen(tree, manifest)?;
    for (what, word) in [("package", target.package.as_deref().unwrap_or("x")), ("program", target.bin.as_str())] {
        // it becomes a word of a command line and a path
        if !word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return Err(RecipeError::unclear(format!("Cargo.toml: '{word}' is no name of a {what}"), "mend it"));
        }
    }
    let mut found = Found {
        name: Some(member.name.clone()),
        version: member.version,
        description: member.description,
        command: vec![PROGRAM.into()],
        ..Found::default()
    };
    found.command.extend(manifest.entrypoint.iter().skip(1).cloned());
    let sdk = if member.sdk { "with an MCP SDK" } else { "; no MCP SDK found in dependencies" };
    found.why.push(format!("Cargo.toml: {}, Rust {sdk}", member.name).replace(" ;", ";"));
    let locked = if tree.has("Cargo.lock") { "with the versions of Cargo.lock" } else { "without a lock file" };
    found.why.push(format!("Cargo.toml: builds the program '{}', {locked}", target.bin));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{recipe, tree};
    use super::super::{Origin, recognise};
    use super::*;

    fn go_of(files: &[&str], manifest: &str) -> Result<String, RecipeError> {
        let mut all = vec![("go.mod", "module example.org/acme/weather/v2\n\ngo 1.22\n")];
        all.extend(files.iter().map(|f| (*f, "")));
        go_package(&tree(&all), &sigil_config::manifest::parse("m", manifest).unwrap())
    }

    #[test]
    fn the_main_package_of_go() {
        assert_eq!(go_of(&["main.go", "cmd/x/main.go"], "").unwrap(), ".");
        assert_eq!(go_of(&["cmd/x/main.go"], "").unwrap(), "./cmd/x");
        assert_eq!(go_of(&["cmd/weather/main.go", "cmd/x/main.go"], "").unwrap(), "./cmd/weather");
        assert_eq!(go_of(&["cmd/a/main.go", "cmd/mcp-a/main.go"], "").unwrap(), "./cmd/mcp-a");
        assert_eq!(go_of(&["a/b/main.go"], "entrypoint: a/b/main.go\n").unwrap(), "./a/b");
        assert_eq!(go_of(&[], "entrypoint: a/b\n").unwrap(), "./a/b");
        assert!(go_of(&["cmd/a/main.go", "cmd/b/main.go"], "").unwrap_err().to_string().contains("a, b"));
        assert!(go_of(&["lib.go"], "").is_err());
        let r = recipe(&[("go.mod", "module m\n"), ("main.go", ""), ("mcp.yaml", "command: [/server, stdio]\n")]);
        assert_eq!(r.command, ["/server", "stdio"]);
    }

    #[test]
    fn the_program_of_a_crate() {
        let of = |files: &[(&str, &str)], manifest: &str| {
            rust_crate(&tree(files), &sigil_config::manifest::parse("m", manifest).unwrap())
        };
        let root = ("Cargo.toml", "[package]\nname = \"w\"\n[dependencies]\nrmcp = \"1\"\n");
        let c = of(&[root, ("src/main.rs", "")], "").unwrap();
        assert_eq!(c, Crate { package: None, bin: "w".into() });
        assert!(
            of(&[root, ("src/bin/a.rs", ""), ("src/bin/b/main.rs", "")], "").unwrap_err().to_string().contains("a, b")
        );
        assert_eq!(of(&[root, ("src/bin/a.rs", ""), ("src/bin/b/main.rs", "")], "entrypoint: b\n").unwrap().bin, "b");
        let workspace = [
            ("Cargo.toml", "[workspace]\nmembers = [\"crates/*\"]\n"),
            ("crates/cli/Cargo.toml", "[package]\nname = \"cli\"\n"),
            ("crates/cli/src/main.rs", ""),
            ("crates/srv/Cargo.toml", "[package]\nname = \"srv\"\n[dependencies]\nrmcp.workspace = true\n"),
            ("crates/srv/src/main.rs", ""),
        ];
        assert_eq!(of(&workspace, "").unwrap(), Crate { package: Some("srv".into()), bin: "srv".into() });
        assert!(of(&[root, ("src/lib.rs", "")], "").unwrap_err().to_string().contains("no program"));
        let evil = [("Cargo.toml", "[package]\nname = \"a;b\"\n"), ("src/main.rs", "")];
        assert!(recognise(&tree(&evil), Origin::Tree, None).is_err());
    }
}
