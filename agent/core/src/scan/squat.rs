//! What installs itself: names that look like a well-known package's, scripts that are fetched and run unseen, packages
//! that are started in whatever version is newest.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::{File, Findings, Rule, Severity, line_at};

const SQUAT: Rule = Rule {
    id: "dependency-typosquat",
    class: "dependencies",
    severity: Severity::Error,
    impact: "a package with a name that is almost a known one is how malware gets installed",
    fix: "check the name; if it is meant, waive this finding with the reason",
};
const FETCHED: Rule = Rule {
    id: "install-pipe-to-shell",
    class: "dependencies",
    severity: Severity::Warning,
    impact: "whoever controls that address, or the way to it, decides what runs",
    fix: "download a fixed version, compare its checksum, then run it",
};
const LATEST: Rule = Rule {
    id: "package-started-unpinned",
    class: "dependencies",
    severity: Severity::Info,
    impact: "the next start can run code that nobody has looked at",
    fix: "name a version (`npx -y name@1.2.3`, `uvx name==1.2.3`)",
};

pub(super) const RULES: &[&Rule] = &[&SQUAT, &FETCHED, &LATEST];

/// Packages that many MCP servers use, and others imitate. Bounded on purpose: names of at least five letters.
const KNOWN_NPM: &[&str] = &[
    "@modelcontextprotocol/sdk",
    "express",
    "fastify",
    "axios",
    "typescript",
    "dotenv",
    "lodash",
    "commander",
    "node-fetch",
    "undici",
    "cheerio",
    "puppeteer",
    "playwright",
    "openai",
    "@anthropic-ai/sdk",
    "langchain",
    "@langchain/core",
    "fastmcp",
    "mcp-framework",
    "eventsource",
    "winston",
    "inquirer",
    "mongodb",
    "mongoose",
    "ioredis",
    "sequelize",
    "prisma",
    "@prisma/client",
    "@octokit/rest",
    "octokit",
    "@slack/web-api",
    "googleapis",
    "jsonwebtoken",
    "bcrypt",
    "bcryptjs",
    "socket.io",
    "zod-to-json-schema",
    "ajv-formats",
    "nodemailer",
    "passport",
    "cross-env",
    "chokidar",
    "esbuild",
    "webpack",
    "rollup",
    "prettier",
    "eslint",
    "vitest",
    "@types/node",
    "reflect-metadata",
    "body-parser",
    "cookie-parser",
    "multer",
    "moment",
    "date-fns",
    "dayjs",
    "nanoid",
    "minimist",
    "yargs",
    "@notionhq/client",
    "discord.js",
    "telegraf",
    "supergateway",
    "mcp-remote",
];
const KNOWN_PYPI: &[&str] = &[
    "fastmcp",
    "requests",
    "pydantic",
    "pydantic-settings",
    "fastapi",
    "uvicorn",
    "starlette",
    "aiohttp",
    "urllib3",
    "python-dotenv",
    "beautifulsoup4",
    "numpy",
    "pandas",
    "openai",
    "anthropic",
    "langchain",
    "sqlalchemy",
    "psycopg2",
    "psycopg2-binary",
    "cryptography",
    "playwright",
    "selenium",
    "google-api-python-client",
    "google-auth",
    "pygithub",
    "gitpython",
    "slack-sdk",
    "websockets",
    "sse-starlette",
    "tenacity",
    "pyyaml",
    "jinja2",
    "httpx-sse",
    "python-dateutil",
    "tiktoken",
    "transformers",
    "scikit-learn",
    "matplotlib",
    "pillow",
    "colorama",
    "pytest",
    "setuptools",
    "certifi",
    "pyjwt",
    "passlib",
    "kubernetes",
    "docker",
    "paramiko",
    "boto3",
    "botocore",
    "discord.py",
    "chromadb",
    "pymongo",
    "asyncpg",
    "loguru",
    "python-multipart",
    "mcp-server-fetch",
    "mcp-server-git",
    "mcp-server-time",
    "mcp-server-sqlite",
];

/// Real packages whose names are near to others'.
const REAL: &[&str] = &[
    "request",
    "expresss-session",
    "preact",
    "momentum",
    "rollups",
    "aiohttp2",
    "boto",
    "lodash-es",
    "lodash.es",
    "dockers",
    "prettierd",
    "multers",
];

static PIPE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(?:curl|wget)\b[^|;&\n]*\|\s*(?:sudo\s+(?:-\S+\s+)*)?(?:/\S*/)?(?:ba|da|z)?sh\b|\b(?:iwr|irm|invoke-webrequest|invoke-restmethod)\b[^|\n]*\|\s*(?:iex|invoke-expression)\b").ok()
});

pub(super) fn check(file: &File<'_>, findings: &mut Findings) {
    if file.is_test() || file.path.split('/').any(|part| matches!(part, "node_modules" | "vendor" | ".venv")) {
        return;
    }
    let name = file.name();
    match name {
        "package.json" => package(file, findings),
        "pyproject.toml" => {
            for (at, found) in toml_names(file.text) {
                squat(file, at, &found, KNOWN_PYPI, findings);
            }
        }
        _ if name.starts_with("requirements") && name.ends_with(".txt") => {
            let mut at = 0;
            for line in file.text.split_inclusive('\n') {
                if !line.trim_start().starts_with(['#', '-']) {
                    squat(file, at, requirement(line), KNOWN_PYPI, findings);
                }
                at += line.len();
            }
        }
        _ if name.ends_with(".json") => starts(file, findings),
        _ => {}
    }
    let script = name.ends_with(".sh") || name.ends_with(".bash") || name.ends_with(".ps1") || name == "Makefile";
    if (script || name == "package.json")
        && let Some(at) = PIPE.as_ref().and_then(|pipe| pipe.find(file.text)).map(|found| found.start())
    {
        findings.add(&FETCHED, file, at, "a script is fetched and run unseen".to_owned(), line_at(file.text, at));
    }
}

fn package(file: &File<'_>, findings: &mut Findings) {
    let Ok(package) = serde_json::from_str::<Value>(file.text) else { return };
    for section in ["dependencies", "devDependencies", "optionalDependencies"] {
        let Some(names) = package[section].as_object() else { continue };
        for name in names.keys() {
            let at = file.text.find(&format!("\"{name}\"")).unwrap_or(0);
            squat(file, at, name, KNOWN_NPM, findings);
        }
    }
}

/// Name of a requirement: what is before its version, extras and markers.
fn requirement(line: &str) -> &str {
    let line = line.trim();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).unwrap_or(line.len());
    line.get(..end).unwrap_or_default()
}

/// Names in the lists of dependencies of a pyproject.toml.
fn toml_names(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut at, mut inside, mut poetry) = (0, false, false);
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        if trimmed.starts_with('[') {
            poetry = trimmed.starts_with("[tool.poetry") && trimmed.contains("dependencies");
            inside = false;
        }
        if trimmed.starts_with("dependencies") && trimmed.contains('[') {
            inside = true;
        }
        if inside {
            for (index, part) in trimmed.split('"').enumerate() {
                if index % 2 == 1 {
                    found.push((at, requirement(part).to_owned()));
                }
            }
            inside =
                !trimmed.ends_with(']') || trimmed.ends_with("[") || trimmed.contains("[\"") && !trimmed.ends_with(']');
        } else if poetry && let Some((name, _)) = trimmed.split_once('=') {
            found.push((at, name.trim().trim_matches('"').to_owned()));
        }
        at += line.len();
    }
    found
}

fn squat(file: &File<'_>, at: usize, name: &str, known: &[&str], findings: &mut Findings) {
    let lower = name.to_lowercase().replace('_', "-");
    if lower.len() < 5 || known.contains(&lower.as_str()) || REAL.contains(&lower.as_str()) {
        return;
    }
    let Some(near) = known.iter().find(|known| known.len() >= 5 && imitates(&lower, known)) else { return };
    let message = format!("`{name}` is almost `{near}`, and is not it");
    findings.add(&SQUAT, file, at, message, line_at(file.text, at));
}

/// One letter more, less or other, or two neighbours swapped; a scope of another's for a scoped name.
fn imitates(name: &str, known: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (name.chars().collect(), known.chars().collect());
    if a.len().abs_diff(b.len()) > 1 {
        return false;
    }
    // versions of one thing are not imitations (`bcrypt` and `bcryptjs` differ by more; `discord.py2` does not)
    let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
    if digits(name) != digits(known) {
        return false;
    }
    let same_start = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let same_end = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let (longer, shorter) = (a.len().max(b.len()), a.len().min(b.len()));
    if longer != shorter {
        return same_start + same_end >= shorter;
    }
    let swapped = same_start + 1 < a.len()
        && a.get(same_start) == b.get(same_start + 1)
        && a.get(same_start + 1) == b.get(same_start);
    same_start + same_end + 1 >= a.len() || swapped && same_start + same_end + 2 >= a.len()
}

/// Clients' configurations that start packages by name alone.
fn starts(file: &File<'_>, findings: &mut Findings) {
    if !file.text.contains("mcpServers") {
        return;
    }
    let Ok(value) = serde_json::from_str::<Value>(file.text) else { return };
    let Some(servers) = value["mcpServers"].as_object() else { return };
    for server in servers.values() {
        let words: Vec<&str> = server["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let runner = server["command"].as_str().unwrap_or_default();
        let latest = match runner {
            "npx" | "bunx" | "pnpx" => words.iter().find(|word| word.ends_with("@latest")),
            "uvx" | "pipx" => words.iter().find(|word| word.ends_with("@latest")),
            _ => None,
        };
        if let Some(word) = latest {
            let at = file.text.find(&format!("\"{word}\"")).unwrap_or(0);
            findings.add(
                &LATEST,
                file,
                at,
                format!("`{word}` is started in whatever version is newest"),
                line_at(file.text, at),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::scan::scan;

    fn rules(path: &str, text: &str) -> Vec<(String, u32)> {
        let own = super::RULES.map_ids();
        scan(&[(path, text)])
            .findings
            .into_iter()
            .filter(|f| own.contains(&f.rule.as_str()))
            .map(|f| (f.rule, f.line))
            .collect()
    }

    trait Ids {
        fn map_ids(&self) -> Vec<&'static str>;
    }
    impl Ids for [&super::Rule] {
        fn map_ids(&self) -> Vec<&'static str> {
            self.iter().map(|rule| rule.id).collect()
        }
    }

    #[test]
    fn names_that_are_almost_known() {
        let squat = |line| vec![("dependency-typosquat".to_owned(), line)];
        for name in ["expres", "exprress", "axois", "lodahs", "@modelcontextprotocol/sdk1x", "dotenvv"] {
            let text = format!("{{\"dependencies\": {{\n\"zod\": \"3\",\n\"{name}\": \"1.0.0\"}}}}");
            let expected = if name.ends_with("1x") { vec![] } else { squat(3) };
            assert_eq!(rules("package.json", &text), expected, "{name}");
        }
        assert_eq!(rules("requirements.txt", "requests==2\nrequets==2.0\n"), squat(2));
        assert_eq!(
            rules("pyproject.toml", "[project]\ndependencies = [\n  \"fastmcp>=2\",\n  \"pydanitc>=2\",\n]\n"),
            squat(4)
        );
        assert_eq!(
            rules("pyproject.toml", "[tool.poetry.dependencies]\npython = \"^3.11\"\nfastapii = \"1\"\n"),
            squat(3)
        );
    }

    #[test]
    fn known_names_and_others_are_clean() {
        let text = "{\"dependencies\": {\"express\": \"5\", \"zod\": \"3\", \"ws\": \"8\", \"@octokit/rest\": \"1\", \"lodash-es\": \"4\", \"my-own-thing\": \"1\"}}";
        assert_eq!(rules("package.json", text), []);
        assert_eq!(rules("requirements.txt", "# reqests\nrequests[socks]>=2\nhttpx\nmcp\nrequest\n"), []);
    }

    #[test]
    fn scripts_and_starts() {
        assert_eq!(
            rules("install.sh", "set -e\ncurl -fsSL https://e.org/i.sh | bash\n"),
            [("install-pipe-to-shell".to_owned(), 2)]
        );
        assert_eq!(rules("install.sh", "curl -fsSLo a.tgz https://e.org/a.tgz\n"), []);
        let config = |word: &str| {
            format!("{{\"mcpServers\": {{\"x\": {{\n\"command\": \"npx\", \"args\": [\"-y\", \"{word}\"]}}}}}}")
        };
        assert_eq!(rules(".mcp.json", &config("thing@latest")), [("package-started-unpinned".to_owned(), 2)]);
        assert_eq!(rules(".mcp.json", &config("thing@1.2.3")), []);
    }
}
