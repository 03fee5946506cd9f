//! Which version of an SDK a tree asks for: from some version on it looks at Host and Origin by itself.

use std::sync::LazyLock;

use regex::Regex;

use crate::scan::File;

/// Python's: servers on this machine are guarded from here on.
const PYTHON: [u64; 2] = [1, 23];
/// Go's.
const GO: [u64; 2] = [1, 4];

#[allow(clippy::expect_used, reason = "fixed patterns, compiled by the tests")]
fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a fixed pattern")
}

static LOCKED: LazyLock<Regex> = LazyLock::new(|| pattern(r#"(?m)^name = "mcp"\s+version = "(\d+)\.(\d+)"#));
static PINNED: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"(?m)(?:^|["'])\s*mcp(?:\[[^\]]*\])?\s*(?:==|~=|[^"'\n]*?<=?)\s*(\d+)\.(\d+)"#));
static GO_MOD: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?m)github\.com/modelcontextprotocol/go-sdk v(\d+)\.(\d+)"));

/// Whether a version that a file names is older; `None` where it names none.
fn older(pattern: &Regex, text: &str, than: [u64; 2]) -> Option<bool> {
    let found = pattern.captures(text)?;
    let number = |at: usize| found.get(at).and_then(|part| part.as_str().parse::<u64>().ok());
    Some([number(1)?, number(2)?] < than)
}

/// The first answer of files by these names, in this order.
fn first(files: &[File<'_>], names: &[&str], answer: impl Fn(&str) -> Option<bool>) -> bool {
    let of = |name: &&str| {
        let named =
            files.iter().filter(move |file| file.name() == *name || *name == "requirements" && is_list(file.name()));
        named.filter_map(|file| answer(file.text)).collect::<Vec<_>>()
    };
    let answers = names.iter().map(of).find(|answers| !answers.is_empty());
    // of several packages the oldest counts
    answers.is_some_and(|answers| answers.contains(&true))
}

fn is_list(name: &str) -> bool {
    name.starts_with("requirements") && name.ends_with(".txt")
}

/// Whether the tree is known to ask for a version of Python's SDK that does not look: what is locked counts before what is
/// written.
pub(super) fn python(files: &[File<'_>]) -> bool {
    let answer = |text: &str| older(&LOCKED, text, PYTHON).or_else(|| older(&PINNED, text, PYTHON));
    first(files, &["uv.lock", "poetry.lock", "requirements", "pyproject.toml", "setup.py"], answer)
}

/// The same of Go's.
pub(super) fn go(files: &[File<'_>]) -> bool {
    first(files, &["go.mod"], |text| older(&GO_MOD, text, GO))
}

#[cfg(test)]
mod tests {
    use crate::scan::scan;

    fn told(manifest: (&str, &str), server: (&str, &str)) -> bool {
        let report = scan(&[manifest, server]);
        report.findings.iter().any(|finding| finding.rule == "origin-unchecked" && finding.path == server.0)
    }

    #[test]
    fn pythons_sdk_looks_by_itself_from_some_version_on() {
        let server = (
            "server.py",
            "from mcp.server.fastmcp import FastMCP\nmcp = FastMCP('x')\n\nif __name__ == '__main__':\n    mcp.run(transport='streamable-http')\n",
        );
        for (name, text, old) in [
            ("uv.lock", "[[package]]\nname = \"mcp\"\nversion = \"1.9.4\"\n", true),
            ("uv.lock", "[[package]]\nname = \"mcp\"\nversion = \"1.23.1\"\n", false),
            ("uv.lock", "[[package]]\nname = \"mcp-client\"\nversion = \"0.1.0\"\n", false),
            ("requirements.txt", "httpx\nmcp[cli]==1.10.0\n", true),
            ("requirements-prod.txt", "mcp==2.0.0\n", false),
            ("requirements.txt", "mcp>=1.2.0\n", false),
            ("pyproject.toml", "dependencies = [\"mcp[cli]>=1.2,<1.10\"]\n", true),
            ("pyproject.toml", "dependencies = [\"mcp>=1.2\"]\n", false),
        ] {
            assert_eq!(told((name, text), server), old, "{name} {text}");
        }
        let stdio = ("server.py", "from mcp.server.fastmcp import FastMCP\nmcp = FastMCP('x')\nmcp.run()\n");
        assert!(!told(("requirements.txt", "mcp==1.9.0\n"), stdio));
    }

    #[test]
    fn gos_sdk_looks_by_itself_from_some_version_on() {
        let server = (
            "main.go",
            "package main\n\nimport (\n\t\"net/http\"\n\t\"github.com/modelcontextprotocol/go-sdk/mcp\"\n)\n\nfunc main() {\n\t\
             handler := mcp.NewStreamableHTTPHandler(pick, nil)\n\thttp.ListenAndServe(\"127.0.0.1:8080\", handler)\n}\n",
        );
        for (version, old) in [("v1.2.0", true), ("v1.4.0", false), ("v0.8.0", true), ("v2.0.1", false)] {
            let text = format!("module x\n\nrequire github.com/modelcontextprotocol/go-sdk {version}\n");
            assert_eq!(told(("go.mod", &text), server), old, "{version}");
        }
    }
}
