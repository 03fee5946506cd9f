//! What does not belong to a folder: litter, `.gitignore` with git's rules, `.dockerignore` with Docker's.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::Purpose;

/// Folders that nobody ships as source.
const LITTER: [&str; 4] = [".git", "node_modules", "__pycache__", ".venv"];
/// Folders that hold built output: scanned even when they are ignored, for packages ship little else.
const BUILT: [&str; 4] = ["dist", "build", "out", "lib"];
/// Files of the root that a build reads whatever `.dockerignore` says, as Docker does with its own two.
const ALWAYS: [&str; 5] = [".dockerignore", "mcp.yaml", "mcp.yml", "smithery.yaml", "smithery.yml"];

/// Everything that belongs to a folder, relative to it.
pub fn paths(root: &Path, purpose: Purpose) -> Result<BTreeSet<PathBuf>, ignore::Error> {
    let mut found = BTreeSet::new();
    let docker = match purpose {
        Purpose::Build => Some(Docker::new(root)),
        Purpose::Scan => None,
    };
    for entry in walker(root, true).build() {
        let path = entry?.into_path();
        let Ok(relative) = path.strip_prefix(root) else { continue };
        if !relative.as_os_str().is_empty() && docker.as_ref().is_none_or(|docker| !docker.ignores(relative)) {
            found.insert(relative.to_owned());
        }
    }
    if purpose == Purpose::Scan {
        for entry in walker(root, false).build() {
            let path = entry?.into_path();
            let Ok(relative) = path.strip_prefix(root) else { continue };
            if relative.components().any(|c| BUILT.iter().any(|built| c.as_os_str() == *built)) {
                found.insert(relative.to_owned());
            }
        }
    }
    Ok(found)
}

/// Everything but litter, with or without git's rules.
fn walker(root: &Path, git: bool) -> WalkBuilder {
    let mut walker = WalkBuilder::new(root);
    walker
        .hidden(false)
        .ignore(false)
        .parents(false)
        .git_global(false)
        .git_ignore(git)
        .git_exclude(git)
        .require_git(false)
        .follow_links(false);
    let outer = Outer::new(root, git);
    walker.filter_entry(move |entry| {
        let is_dir = entry.file_type().is_some_and(|kind| kind.is_dir());
        entry.depth() == 0 || !(is_dir && is_litter(entry.path()) || outer.ignores(entry.path(), is_dir))
    });
    walker
}

fn is_litter(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(OsStr::to_str) else { return false };
    if LITTER.contains(&name) {
        return true;
    }
    // `target` is also a word: only cargo's and Maven's is litter
    let beside = |file: &str| path.with_file_name(file).is_file();
    name == "target" && (beside("Cargo.toml") || beside("pom.xml") || path.join("CACHEDIR.TAG").is_file())
}

/// `.gitignore` files between the repository's root and the folder: a secret that the repository ignores must not
/// leave by way of a subfolder.
struct Outer(Vec<Gitignore>);

impl Outer {
    fn new(root: &Path, git: bool) -> Self {
        let mut found = Vec::new();
        let repository = root.ancestors().find(|dir| dir.join(".git").exists());
        if let (true, Some(repository)) = (git, repository) {
            for dir in root.ancestors().skip(1).take_while(|dir| dir.starts_with(repository)) {
                let file = dir.join(".gitignore");
                if file.is_file() {
                    found.push(Gitignore::new(&file).0);
                }
            }
        }
        Self(found)
    }

    fn ignores(&self, path: &Path, is_dir: bool) -> bool {
        // the nearest file that has an opinion decides
        let opinion = self.0.iter().map(|file| file.matched_path_or_any_parents(path, is_dir)).find(|m| !m.is_none());
        opinion.is_some_and(|m| m.is_ignore())
    }
}

/// `.dockerignore`: patterns are anchored at the root, the last one that matches a path or a folder above it decides,
/// and a `!` takes back even what is in an excluded folder.
struct Docker {
    root: PathBuf,
    /// (takes back, pattern), in the order of the file.
    rules: Vec<(bool, Gitignore)>,
}

impl Docker {
    fn new(root: &Path) -> Self {
        let text = std::fs::read(root.join(".dockerignore")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut rules = Vec::new();
        for line in text.trim_start_matches('\u{feff}').lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (back, pattern) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            // Docker cleans `./x/`, `/x` and `x` to the same thing
            let pattern = pattern.trim_start_matches("./").trim_matches('/');
            if pattern.is_empty() || pattern == "." {
                continue;
            }
            let mut builder = GitignoreBuilder::new(root);
            // a pattern that is none matches nothing, as in Docker's own fallback
            if builder.add_line(None, &format!("/{pattern}")).is_ok()
                && let Ok(rule) = builder.build()
            {
                rules.push((back, rule));
            }
        }
        Self { root: root.to_owned(), rules }
    }

    fn ignores(&self, relative: &Path) -> bool {
        let name = relative.file_name().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
        let dockerfile = name == "containerfile" || name.starts_with("dockerfile") || name.ends_with(".dockerfile");
        if dockerfile || relative.to_str().is_some_and(|path| ALWAYS.contains(&path)) {
            return false;
        }
        let path = self.root.join(relative);
        let last = self.rules.iter().rev().find(|(_, rule)| rule.matched_path_or_any_parents(&path, false).is_ignore());
        last.is_some_and(|(back, _)| !back)
    }
}
