//! What else comes in with the source: install scripts, and versions that nobody fixed.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{File, Findings, Rule, Severity, line_at};

const INSTALL_SCRIPT: Rule = Rule {
    id: "npm-install-script",
    class: "dependencies",
    severity: Severity::Info,
    impact: "this command runs when the package is installed, at build time",
    fix: "read what it does; builds run it without privileges and without secrets",
};
const NO_LOCK: Rule = Rule {
    id: "dependencies-not-locked",
    class: "dependencies",
    severity: Severity::Info,
    impact: "the same source can bring other code tomorrow than today",
    fix: "commit a lock file (package-lock.json, uv.lock, go.sum, Cargo.lock), or pin every requirement with ==",
};

pub(super) const RULES: &[&Rule] = &[&INSTALL_SCRIPT, &NO_LOCK];

pub(super) fn check_file(file: &File<'_>, findings: &mut Findings) {
    if file.name() != "package.json" || file.path.split('/').any(|part| part == "node_modules") {
        return;
    }
    let Ok(package) = serde_json::from_str::<Value>(file.text) else { return };
    for name in ["preinstall", "install", "postinstall"] {
        let Some(command) = package["scripts"][name].as_str() else { continue };
        let at = file.text.find(&format!("\"{name}\"")).unwrap_or(0);
        let command: String = command.chars().take(80).collect();
        findings.add(
            &INSTALL_SCRIPT,
            file,
            at,
            format!("`{name}` runs at installation: {command}"),
            line_at(file.text, at),
        );
    }
}

pub(super) fn check_tree(files: &[File<'_>], paths: &[&str], findings: &mut Findings) {
    let paths: BTreeSet<&str> = paths.iter().copied().collect();
    // a lock file counts in the manifest's own folder and in those above it (workspaces)
    let locked = |manifest: &str, names: &[&str]| {
        let mut folder = manifest.rsplit_once('/').map_or("", |(folder, _)| folder);
        loop {
            let here = |name: &&str| {
                let path = if folder.is_empty() { (*name).to_owned() } else { format!("{folder}/{name}") };
                paths.contains(path.as_str())
            };
            if names.iter().any(here) {
                return true;
            }
            match folder.rsplit_once('/') {
                Some((above, _)) => folder = above,
                None if folder.is_empty() => return false,
                None => folder = "",
            }
        }
    };
    for file in files {
        if file.is_test() || file.path.split('/').any(|part| matches!(part, "node_modules" | "vendor" | ".venv")) {
            continue;
        }
        let lacking = match file.name() {
            "package.json" => {
                let needs = serde_json::from_str::<Value>(file.text)
                    .is_ok_and(|p| p["dependencies"].as_object().is_some_and(|d| !d.is_empty()));
                let locks = [
                    "package-lock.json",
                    "npm-shrinkwrap.json",
                    "yarn.lock",
                    "pnpm-lock.yaml",
                    "bun.lock",
                    "bun.lockb",
                ];
                needs && !locked(file.path, &locks)
            }
            "pyproject.toml" => {
                let needs = file.text.lines().any(|l| {
                    let l = l.trim_start();
                    l.starts_with("dependencies") && l.contains('=') && !l.replace(' ', "").ends_with("[]")
                        || l.starts_with("[tool.poetry.dependencies]")
                });
                needs
                    && !locked(
                        file.path,
                        &["uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock.toml", "requirements.txt"],
                    )
            }
            "requirements.txt" => {
                if let Some(at) = unpinned(file.text) {
                    let message = "not every requirement is pinned with ==".to_owned();
                    findings.add(&NO_LOCK, file, at, message, line_at(file.text, at));
                }
                false
            }
            "go.mod" => {
                file.text.lines().any(|l| l.trim_start().starts_with("require")) && !locked(file.path, &["go.sum"])
            }
            "Cargo.toml" => {
                file.text.lines().any(|l| l.trim().starts_with("[dependencies")) && !locked(file.path, &["Cargo.lock"])
            }
            _ => false,
        };
        if lacking {
            findings.add(&NO_LOCK, file, 0, "dependencies without a lock file".to_owned(), line_at(file.text, 0));
        }
    }
}

/// Offset of the first requirement that is not pinned to one version or one file.
fn unpinned(text: &str) -> Option<usize> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let requirement = line.split(" #").next().unwrap_or_default().trim();
        let skip = requirement.is_empty() || requirement.starts_with(['#', '-']);
        // a continuation of hashes belongs to the line before
        if !skip && !requirement.contains("==") && !requirement.contains(" @ ") && !requirement.starts_with(['.', '/'])
        {
            return Some(at);
        }
        at += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use crate::scan::scan;

    fn rules(files: &[(&str, &str)]) -> Vec<(String, String, u32)> {
        scan(files).findings.into_iter().map(|f| (f.rule, f.path, f.line)).collect()
    }
    fn no_lock(path: &str, line: u32) -> Vec<(String, String, u32)> {
        vec![("dependencies-not-locked".to_owned(), path.to_owned(), line)]
    }

    #[test]
    fn install_scripts_are_named() {
        let text = "{\n \"scripts\": {\n  \"build\": \"tsc\",\n  \"postinstall\": \"node fetch.js\"\n }\n}\n";
        let report = scan(&[("package.json", text)]);
        assert_eq!((report.findings[0].rule.as_str(), report.findings[0].line), ("npm-install-script", 4));
        assert!(report.findings[0].message.contains("node fetch.js"));
        assert_eq!(rules(&[("package.json", r#"{"scripts":{"build":"tsc","prepare":"husky"}}"#)]), []);
        assert_eq!(rules(&[("node_modules/a/package.json", text)]), []);
    }

    #[test]
    fn dependencies_without_a_lock_are_told() {
        let node = r#"{"dependencies":{"zod":"^3"}}"#;
        assert_eq!(rules(&[("package.json", node)]), no_lock("package.json", 1));
        assert_eq!(rules(&[("a/package.json", node), ("b/package-lock.json", "{}")]), no_lock("a/package.json", 1));
        let python = "[project]\ndependencies = [\"mcp\"]\n";
        assert_eq!(rules(&[("pyproject.toml", python)]), no_lock("pyproject.toml", 1));
        assert_eq!(rules(&[("requirements.txt", "a==1\nmcp>=1\n")]), no_lock("requirements.txt", 2));
        assert_eq!(rules(&[("go.mod", "module x\nrequire y v1\n")]), no_lock("go.mod", 1));
        assert_eq!(rules(&[("Cargo.toml", "[dependencies]\nserde = \"1\"\n")]), no_lock("Cargo.toml", 1));
    }

    #[test]
    fn locked_pinned_or_free_of_dependencies_is_clean() {
        let node = r#"{"dependencies":{"zod":"^3"}}"#;
        assert_eq!(rules(&[("packages/a/package.json", node), ("pnpm-lock.yaml", "")]), []);
        assert_eq!(rules(&[("package.json", r#"{"devDependencies":{"tsc":"1"}}"#)]), []);
        assert_eq!(rules(&[("pyproject.toml", "[project]\ndependencies = []\n")]), []);
        assert_eq!(rules(&[("pyproject.toml", "dependencies = [\"a\"]\n"), ("uv.lock", "")]), []);
        assert_eq!(rules(&[("requirements.txt", "# x\n-r more.txt\na==1 \\\n    --hash=sha256:00\n\n./local\n")]), []);
        assert_eq!(rules(&[("go.mod", "module x\ngo 1.22\n")]), []);
        assert_eq!(rules(&[("Cargo.toml", "[dependencies]\n"), ("Cargo.lock", "")]), []);
    }
}
